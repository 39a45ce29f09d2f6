"""Proving files from themselves, and mending them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from backbone.clock import Clock
from backbone.errors import StoreError
from backbone.model import CANDLE_SCHEMA, Span
from backbone.storage import audit
from backbone.storage import files as files_module
from backbone.storage.coverage import Coverage, SpanSet
from backbone.storage.files import Files
from backbone.storage.layout import Series, tmp_key
from backbone.storage.partition import REVISION_SCHEMA, Partition, encode_coverage, encode_partition
from backbone.testing import ManualClock
from backbone.timeframe import period_of
from tests.storage.helpers import DAY, MAY, MINUTE, candles, minutes, open_store, span
from tests.storage.test_partition import reseal
from tests.storage.test_store import BTC, ETH, EVER, corrupt, partitions_in

SERIES = Series("upbit", BTC, MINUTE)
PERIOD = period_of(MINUTE, MAY)


def fill(root: Path) -> None:
    """Two markets with rows, quiet before them."""
    store = open_store(root)
    store.put(BTC, MINUTE, minutes(0, 200, every=3), Span(0, MAY + 200 * 60_000_000), now_us=MAY)
    store.put(ETH, MINUTE, minutes(31 * 1440 - 9, 31 * 1440 + 9), span(31 * 1440 - 9, 31 * 1440 + 9), now_us=MAY)
    store.put(ETH, DAY, candles([MAY]), Span(MAY, MAY + 1), now_us=MAY)
    store.close()


def forge(root: Path, table: pa.Table, covered: SpanSet | None = None) -> Path:
    """A partition with a right seal over rows that the store would never take."""
    held = Partition(table, Coverage(covered or SpanSet([PERIOD])), REVISION_SCHEMA.empty_table())
    path = root / SERIES.key(PERIOD)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_partition(held, SERIES, PERIOD).data)
    return path


def changed(column: str, value: float) -> pa.Table:
    """Good rows but for one number."""
    table = minutes(0, 9)
    values = table.column(column).to_numpy().copy()
    values[4] = value
    return table.set_column(table.schema.get_field_index(column), CANDLE_SCHEMA.field(column), [values])


def test_verify_of_a_good_store_finds_nothing(tmp_path: Path) -> None:
    """A store that was only written by backbone has no problem, and an empty one neither."""
    assert open_store(tmp_path / "none").verify() == []
    assert open_store(tmp_path / "none").repair() == []
    fill(tmp_path)
    assert open_store(tmp_path).verify() == []
    assert open_store(tmp_path).repair() == []
    (tmp_path / "candles" / ".DS_Store").write_bytes(b"")
    assert open_store(tmp_path).verify() == []


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        (candles([MAY + 1_000_000]), "grid"),
        (candles([MAY, MAY]), "damaged"),
        (candles([MAY + 60_000_000, MAY]), "damaged"),
        (candles([MAY - 60_000_000]), "damaged"),
        *((changed(name, value), "prices") for name in ("open", "close") for value in (1.0, 1e9, NAN, -1.0)),
        *((changed("low", value), "prices") for value in (0.0, -1.0, 1e9, NAN)),
        *((changed("high", value), "prices") for value in (0.0, INF, NAN)),
        *((changed("volume", value), "prices") for value in (-1.0, INF, NAN)),
        *((changed("value", value), "prices") for value in (-1.0, INF)),
    ],
)
def test_verify_finds_rows_that_break_a_rule(tmp_path: Path, table: pa.Table, kind: str) -> None:
    """Grid, order, uniqueness, period and prices are proved from the rows; repair sets the file aside."""
    path = forge(tmp_path, table)
    (problem,) = open_store(tmp_path).verify()
    assert (problem.market, problem.timeframe, problem.path, problem.kind) == (BTC, "1m", str(path), kind)
    assert problem.detail
    store = open_store(tmp_path)
    (repaired,) = store.repair()
    assert repaired.kind == kind
    assert "moved to" in repaired.detail
    assert open_store(tmp_path).verify() == []
    assert store.coverage(BTC, MINUTE, EVER) == SpanSet()
    assert [incident.kind for incident in store.incidents()] == ["quarantined"]


def test_verify_takes_a_turnover_that_was_never_known(tmp_path: Path) -> None:
    """Recorded history without turnover is no damage."""
    forge(tmp_path, changed("value", NAN))
    assert open_store(tmp_path).verify() == []


def test_verify_finds_rows_outside_what_the_file_covers(tmp_path: Path) -> None:
    """A row that is not covered is a problem; a covered minute without a row is just a quiet one."""
    forge(tmp_path, minutes(0, 9), SpanSet([span(0, 8)]))
    assert [problem.kind for problem in open_store(tmp_path).verify()] == ["uncovered"]


def test_verify_finds_every_damaged_file_and_changes_nothing(tmp_path: Path) -> None:
    """Auditing is reading: the damage is reported each time, until somebody repairs."""
    fill(tmp_path)
    paths = [*partitions_in(tmp_path), *(tmp_path / "_quiet").rglob("*.json")]
    for path in paths:
        corrupt(path)
    store = open_store(tmp_path)
    for _ in range(2):
        assert sorted(p.path for p in store.verify()) == sorted(map(str, paths))
    assert {problem.kind for problem in store.verify()} == {"damaged"}
    assert [p.path for p in store.verify(ETH)] == [p.path for p in store.verify() if p.market == ETH]
    assert len(store.verify(ETH, DAY)) == 1
    assert len(store.repair()) == len(paths)
    assert store.verify() == []
    assert len([path for path in (tmp_path / "_quarantine").rglob("*") if path.is_file()]) == len(paths)


def test_foreign_file_among_the_partitions_is_reported_and_quarantined(tmp_path: Path) -> None:
    """A copy that a sync tool left would be read by other engines as more candles."""
    fill(tmp_path)
    copy = partitions_in(tmp_path)[0].with_name("candles (conflicted copy).parquet")
    copy.write_bytes(partitions_in(tmp_path)[0].read_bytes())
    (tmp_path / "_quiet" / "notes.txt").write_text("hello")
    (tmp_path / "_quiet" / "exchange=upbit" / "notes.txt").write_text("hello")
    store = open_store(tmp_path)
    problems = store.verify()
    assert {problem.kind for problem in problems} == {"foreign"}
    assert str(copy) in {problem.path for problem in problems}
    store.repair()
    assert store.verify() == []
    assert len(list((tmp_path / "_quarantine").rglob("candles (conflicted copy).parquet*"))) == 1


def test_unfinished_write_is_reported_and_removed_unless_somebody_is_at_it(tmp_path: Path) -> None:
    """What a killed writer left is garbage; what a living one is writing is not."""
    fill(tmp_path)
    left = tmp_path / (tmp_key(SERIES.key(PERIOD)) + ".4711-0")
    left.write_bytes(b"PAR1half")
    sidecars = [tmp_path / f"{tmp_key(key)}.4711-{i}" for i, key in enumerate(SERIES.sidecar_keys)]
    for sidecar in sidecars:
        sidecar.write_bytes(b"{")
    store = open_store(tmp_path)
    assert [problem.kind for problem in store.verify()] == ["leftover"] * 4

    import threading

    found: list[object] = []
    with store._files.exclusive(SERIES.lock_key):
        thread = threading.Thread(target=lambda: found.extend(open_store(tmp_path).verify()))
        thread.start()
        thread.join()
    assert found == []
    assert [problem.detail.split("; ")[1] for problem in store.repair()] == ["removed"] * 4
    assert not any(path.exists() for path in (left, *sidecars))
    assert store.verify() == []


def test_partition_of_a_newer_version_is_reported_and_left(tmp_path: Path) -> None:
    """Repair does not touch what a newer backbone has written."""
    fill(tmp_path)
    path = partitions_in(tmp_path)[0]
    path.write_bytes(reseal(path.read_bytes().replace(b'"format":1', b'"format":3')))
    store = open_store(tmp_path)
    assert [problem.kind for problem in store.verify()] == ["newer"]
    assert [problem.detail.rsplit("; ", 1)[1] for problem in store.repair()] == ["left where it is"]
    assert path.exists()


def test_repair_forgets_stale_quiet_spans_of_a_quarantined_file(tmp_path: Path) -> None:
    """The span of a partition that repair moved is unknown, whatever an old sidecar says of it."""
    fill(tmp_path)
    sidecar = tmp_path / SERIES.quiet_key
    sidecar.write_bytes(encode_coverage(Coverage(SpanSet([Span(0, PERIOD.end)])), SERIES))
    corrupt(tmp_path / SERIES.key(PERIOD))
    store = open_store(tmp_path)
    store.repair()
    assert store.coverage(BTC, MINUTE, EVER) == SpanSet([Span(0, MAY)])


def test_repair_flushes_first_and_reads_anew(tmp_path: Path) -> None:
    """What waits in memory is on disk before anything is moved."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    assert store.repair() == []
    assert store.pending_rows() == 0


def test_file_that_the_disk_refuses_to_give_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable file is one problem, not the end of the audit."""
    fill(tmp_path)
    store = open_store(tmp_path)
    read = store._files.read

    def refuse(key: str) -> object:
        if "KRW-ETH" in key and "month-2024-05" in key:
            raise StoreError(f"cannot read {key}: Input/output error", path=key)
        return read(key)

    monkeypatch.setattr(store._files, "read", refuse)
    assert [problem.kind for problem in store.verify()] == ["unreadable"]


def test_generation_that_is_just_being_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process that quarantines a market, which would fail if its unfinished write were moved away."""
    fill(tmp_path)
    store, other, seen = open_store(tmp_path), open_store(tmp_path), list[audit.Problem]()
    rename = files_module.rename_over

    def watched(source: str, target: str, clock: Clock) -> None:
        if "_generations" in source:
            seen.extend(other.verify() + other.repair())
        rename(source, target, clock)

    monkeypatch.setattr(files_module, "rename_over", watched)
    assert store.upkeep.quarantine(BTC)
    assert seen == []
    assert store.generation(BTC) == 1


def test_verify_of_a_market_that_is_just_moved_away_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its note of what was written is read before the move, its files are looked for afterwards."""
    store = open_store(tmp_path)
    around = 31 * 1440 - 9, 31 * 1440 + 9  # two files
    store.put(BTC, MINUTE, minutes(*around), span(*around), now_us=MAY)
    store.flush()
    listed = audit.listed

    def read_late(files: Files, series: Series) -> frozenset[str]:
        monkeypatch.setattr(audit, "listed", listed)
        names = listed(files, series)
        store.upkeep.quarantine(BTC)
        return names

    monkeypatch.setattr(audit, "listed", read_late)
    assert open_store(tmp_path).verify() == []


@pytest.mark.parametrize("kind", ["damaged", "missing"])
def test_repair_leaves_a_file_that_was_stored_anew_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Another process writes it between the finding and the repair: the good file stays, and stays noted."""
    store = open_store(tmp_path)
    around = 31 * 1440 - 9, 31 * 1440 + 9
    store.put(BTC, MINUTE, minutes(*around), span(*around), now_us=MAY)
    store.flush()
    path = tmp_path / SERIES.key(PERIOD)
    good = path.read_bytes()
    path.unlink()
    if kind == "damaged":
        path.write_bytes(good[:-200])
    repair = audit._repair

    def late(files: Files, found: audit._Found, now_us: int) -> audit.Problem:
        path.write_bytes(good)
        return repair(files, found, now_us)

    monkeypatch.setattr(audit, "_repair", late)
    assert open_store(tmp_path).repair() == []
    assert path.read_bytes() == good
    path.unlink()
    assert [each.kind for each in open_store(tmp_path).verify()] == ["missing"]


def test_verified_year_of_minutes_is_quick_enough_to_be_done_often(tmp_path: Path) -> None:
    """Every row of every partition is looked at, in one vectorised pass each."""
    store = open_store(tmp_path, ManualClock(MAY))
    first = np.arange(0, 366 * 1440 * 60_000_000, 60_000_000, dtype=np.int64) + 1_704_067_200_000_000
    store.put(BTC, MINUTE, candles(first.tolist()), Span(int(first[0]), int(first[-1]) + 60_000_000), now_us=MAY)
    store.close()
    assert len(partitions_in(tmp_path)) == 12
    assert open_store(tmp_path).verify() == []
    assert open_store(tmp_path).read(BTC, MINUTE, EVER).table.num_rows == 366 * 1440
