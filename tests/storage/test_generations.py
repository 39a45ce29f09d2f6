"""A market's candles quarantined as one: for every process at once, whatever is on its way, wherever a crash comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backbone.model import Span
from backbone.storage.coverage import EVER
from backbone.storage.files import LocalFiles
from backbone.storage.generations import Generation, Generations, Note
from backbone.storage.store import CandleStore
from backbone.testing import ManualClock
from tests.storage.helpers import DAY, MAY, MINUTE, MINUTE_US, candles, minutes, open_store, span

BTC = "KRW-BTC"
JUNE = 31 * 1440


def filled(root: Path) -> CandleStore:
    """Minutes in two files, a day, a quiet span."""
    store = open_store(root)
    store.put(BTC, MINUTE, minutes(JUNE - 5, JUNE + 5), span(JUNE - 5, JUNE + 5), now_us=MAY)
    store.put(BTC, MINUTE, minutes(0, 0), span(-9000, -8000), now_us=MAY)
    store.put(BTC, DAY, candles([MAY]), Span(0, MAY + 1440 * MINUTE_US), now_us=MAY)
    store.flush()
    return store


def nothing_of(store: CandleStore) -> bool:
    return not any(store.read(BTC, each, EVER).covered or store.coverage(BTC, each, EVER) for each in (MINUTE, DAY))


def test_page_that_was_asked_before_is_not_stored(tmp_path: Path) -> None:
    """A page that another process has in memory, or puts later with the former generation, is not stored."""
    store, other = filled(tmp_path), open_store(tmp_path)
    asked = other.generation(BTC)
    assert other.put(BTC, MINUTE, minutes(20, 30), span(20, 30), now_us=MAY, generation=asked)
    where = store.upkeep.quarantine(BTC)
    assert nothing_of(other), "what it holds in memory does not count either"
    other.flush()
    assert not other.put(BTC, MINUTE, minutes(40, 50), span(40, 50), now_us=MAY, generation=asked)
    other.close()
    for each in (store, open_store(tmp_path)):
        assert nothing_of(each)
        assert each.series() == []
    assert open_store(Path(where)).read(BTC, MINUTE, EVER).table.equals(minutes(JUNE - 5, JUNE + 5))
    assert store.put(BTC, MINUTE, minutes(40, 50), span(40, 50), now_us=MAY, generation=store.generation(BTC))
    store.flush()
    assert open_store(tmp_path).read(BTC, MINUTE, EVER).table.equals(minutes(40, 50))


@pytest.mark.parametrize("steps", range(9))
def test_killed_while_files_are_moved_is_nothing_held_and_nothing_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Wherever it is killed, readers find the whole or nothing, and the next writer ends the move before it writes."""
    store = filled(tmp_path)
    whole = {each: store.read(BTC, each, EVER) for each in (MINUTE, DAY)}
    files = tmp_path / "candles"
    left = iter(range(steps))

    def cut(name: str) -> None:
        real = getattr(LocalFiles, name)

        def step(*args: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(LocalFiles, name, step)

    with monkeypatch.context() as monkeypatch:
        for name in ("move", "replace", "append"):
            cut(name)
        try:
            store.upkeep.quarantine_market(
                BTC, name="old", how="overlap", note=Note("redenominated", {"factor": 10.0}, "it")
            )
        except KeyboardInterrupt:
            is_whole = steps == 0
        else:
            is_whole = False
    reader = open_store(tmp_path)
    if is_whole:
        assert {each: reader.read(BTC, each, EVER).table.num_rows for each in whole} == {MINUTE: 10, DAY: 1}
        return
    assert nothing_of(reader)
    assert reader.series() == []
    assert reader.oldest(BTC, DAY) is None
    assert reader.paths(BTC, MINUTE, EVER) == []
    reader.put(BTC, MINUTE, minutes(0, 3, salt=1), span(0, 3), now_us=MAY)
    reader.flush()
    assert list(files.rglob("*.parquet")) == [Path(str(path)) for path in reader.paths(BTC, MINUTE, EVER)]
    old = open_store(tmp_path / "_quarantine" / "old")
    for each, held in whole.items():
        assert old.read(BTC, each, EVER).table.equals(held.table)
        assert old.read(BTC, each, EVER).covered == held.covered
    assert sorted(event.kind for event in reader.events.read(BTC)) == ["quarantined", "redenominated"]
    assert reader.events.read(BTC)[0].detail["where"].endswith("old")


def test_two_processes_that_notice_the_same_quarantine_once(tmp_path: Path) -> None:
    """The second one finds the number risen, and what was stored since stays."""
    store, other = filled(tmp_path), open_store(tmp_path)
    assert store.upkeep.quarantine_market(BTC, how="overlap", after=0)
    store.put(BTC, MINUTE, minutes(0, 3), span(0, 3), now_us=MAY)
    store.flush()
    assert other.upkeep.quarantine_market(BTC, how="overlap", after=0) == ""
    assert other.read(BTC, MINUTE, EVER).table.equals(minutes(0, 3))
    assert len(store.upkeep.quarantined()) == 1


def test_number_is_read_again_when_the_file_changed(tmp_path: Path) -> None:
    """Each process sees the other's step; a damaged file is the first generation, not an error."""
    files = LocalFiles(tmp_path, ManualClock(MAY))
    one, two = Generations(files, "upbit"), Generations(files, "upbit")
    assert two.of(BTC) == Generation()
    assert one.begin(BTC, "old", (), 0)
    assert not one.begin(BTC, "older", (), None), "a move has not ended"
    assert (two.of(BTC).number, two.of(BTC).leaving, two.leaving()) == (1, "old", [BTC])
    assert two.end(BTC, 1)
    assert not one.end(BTC, 1)
    assert one.of(BTC) == Generation(1)
    next(tmp_path.rglob(f"market={BTC}.json")).write_bytes(b"{")
    assert one.of(BTC) == Generation()
