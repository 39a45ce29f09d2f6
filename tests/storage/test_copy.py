"""A store copied to another folder: the same to the byte, never over something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backbone.errors import StoreError
from backbone.storage import copy as module
from backbone.storage.coverage import EVER
from backbone.storage.generations import Note
from backbone.storage.s3 import open_files
from backbone.testing import ManualClock
from tests.storage.helpers import MAY, MINUTE, minutes, open_store, span


def filled(root: Path, salt: int = 0) -> None:
    store = open_store(root)
    store.put("KRW-BTC", MINUTE, minutes(0, 300, salt), span(0, 300), source="rest", now_us=MAY + 10**12)
    store.close()


def partitions(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.parquet")}


def test_copy_is_the_same_to_the_byte_and_writes_nothing_twice(tmp_path: Path) -> None:
    """Every file arrives as it was; the second copy finds all of them there."""
    filled(tmp_path / "here")
    target = open_files(str(tmp_path / "there"), ManualClock(MAY))
    store = open_store(tmp_path / "here")
    first = store.copy_to(target)
    assert (first.files, first.same, first.problems) == (1, 0, ())
    assert first.bytes > 0
    again = store.copy_to(target)
    assert (again.files, again.bytes, again.same) == (0, 0, 1)
    assert partitions(tmp_path / "there") == partitions(tmp_path / "here")


def test_copy_over_other_candles_changes_nothing(tmp_path: Path) -> None:
    """A target that holds something else under the same name is left as it is, with one error that names the file."""
    filled(tmp_path / "here")
    filled(tmp_path / "there", salt=1)
    before = partitions(tmp_path / "there")
    with pytest.raises(StoreError, match="nothing was copied"):
        open_store(tmp_path / "here").copy_to(open_files(str(tmp_path / "there"), ManualClock(MAY)))
    assert partitions(tmp_path / "there") == before


def test_copy_takes_the_events_along(tmp_path: Path) -> None:
    """Who was listed when goes with the candles: all, what was added since, or what a log with others lacks."""
    here, there = open_store(tmp_path / "here"), open_store(tmp_path / "there")
    target = open_files(str(tmp_path / "there"), ManualClock(MAY))
    here.events.add("KRW-A", "listed", how="x")
    assert here.copy_to(target).files == 1
    assert there.events.read() == here.events.read()
    there.events.add("KRW-B", "listed", how="x")
    here.events.add("KRW-A", "delisted", how="x")
    assert here.copy_to(target).files == 1
    assert here.copy_to(target).files == 0
    assert [event.market for event in there.events.read()] == ["KRW-A", "KRW-B", "KRW-A"]
    assert len(here.events.read()) == 2


@pytest.mark.parametrize("is_stored_anew", [False, True])
def test_copy_has_one_generation_of_a_market(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stored_anew: bool
) -> None:
    """A market is quarantined, and part of it is stored in another unit, when one of its two files was copied."""
    store, month = open_store(tmp_path / "here"), 31 * 1440
    store.put("KRW-BTC", MINUTE, minutes(month - 9, month + 9), span(month - 9, month + 9), now_us=MAY)
    store.flush()
    copy = module._copy

    def late(*words: Any, **more: Any) -> int | None:
        size = copy(*words, **more)
        monkeypatch.setattr(module, "_copy", copy)
        store.upkeep.quarantine("KRW-BTC")
        if is_stored_anew:
            store.put("KRW-BTC", MINUTE, minutes(month, month + 9, 1), span(month, month + 9), now_us=MAY)
            store.flush()
        return size

    monkeypatch.setattr(module, "_copy", late)
    done = store.copy_to(open_files(str(tmp_path / "there"), ManualClock(MAY)))
    assert done.problems == ()
    there = open_store(tmp_path / "there")
    expected = minutes(month, month + 9, 1) if is_stored_anew else minutes(0, 0)
    assert there.read("KRW-BTC", MINUTE, EVER).table.equals(expected)
    assert there.verify() == []
    here = {name: data for name, data in partitions(tmp_path / "here").items() if name.startswith("candles/")}
    assert partitions(tmp_path / "there") == here


def test_copy_beside_candles_of_the_old_unit_is_refused(tmp_path: Path) -> None:
    """An older copy has a month of before a redenomination, and the source has another one only: no mix of both."""
    store, month = open_store(tmp_path / "here"), 31 * 1440
    for market in ("KRW-BTC", "KRW-ETH"):
        store.put(market, MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    store.flush()
    target = open_files(str(tmp_path / "there"), ManualClock(MAY))
    store.copy_to(target)
    store.upkeep.remove("KRW-ETH")  # which says nothing against what the copy has
    note = Note("redenominated", {"factor": 1000.0, "generation": 1}, "overlap of pages")
    store.upkeep.quarantine_market("KRW-BTC", how="overlap of pages", note=note)
    store.put("KRW-BTC", MINUTE, minutes(month, month + 9, 1), span(month, month + 9), now_us=MAY)
    store.flush()
    with pytest.raises(StoreError, match=r"before a redenomination in 1 files .*market=KRW-BTC"):
        store.copy_to(target)
    there = open_store(tmp_path / "there")
    assert there.read("KRW-BTC", MINUTE, EVER).table.equals(minutes(0, 9))
    there.upkeep.remove("KRW-BTC")
    assert store.copy_to(target).problems == ()
    assert there.read("KRW-BTC", MINUTE, EVER).table.equals(minutes(month, month + 9, 1))
    assert there.read("KRW-ETH", MINUTE, EVER).table.equals(minutes(0, 9))
