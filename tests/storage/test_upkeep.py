"""Series as wholes: inventory, quarantine and removal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backbone.errors import InputError
from backbone.model import Span
from backbone.storage.coverage import EVER, SpanSet
from backbone.storage.layout import Series
from backbone.storage.store import CandleStore
from backbone.storage.upkeep import Holding
from tests.storage.helpers import DAY, MAY, MINUTE, MINUTE_US, candles, minutes, open_store, opens, span

BTC, ETH = "KRW-BTC", "KRW-ETH"
JUNE = 31 * 1440


@pytest.fixture
def store(tmp_path: Path) -> CandleStore:
    """Minutes of two markets over a month's end, with a hole, and days of one."""
    store = open_store(tmp_path)
    for market in (BTC, ETH):
        store.put(market, MINUTE, minutes(JUNE - 5, JUNE + 5), span(JUNE - 5, JUNE + 5), now_us=MAY)
        store.put(market, MINUTE, minutes(JUNE + 9, JUNE + 10), span(JUNE + 9, JUNE + 12), now_us=MAY)
    store.put(BTC, DAY, candles([MAY]), Span(0, MAY + 1440 * MINUTE_US), now_us=MAY)
    return store


def test_inventory_is_a_line_a_series(store: CandleStore) -> None:
    """From the first candle to the last one's end, rows, unknown holes between them, bytes."""
    sizes = {(m, t): sum(Path(p).stat().st_size for p in store.paths(m, t, EVER)) for m, t in store.series()}
    found = store.upkeep.inventory()
    start, end = span(JUNE - 5, JUNE + 10)
    sizes = {(m, t): sum(Path(p).stat().st_size for p in store.paths(m, t, EVER)) for m, t in store.series()}
    assert found == [
        Holding(BTC, MINUTE, start, end, 11, 1, sizes[BTC, MINUTE]),
        Holding(BTC, DAY, MAY, MAY + 1440 * MINUTE_US, 1, 0, sizes[BTC, DAY]),
        Holding(ETH, MINUTE, start, end, 11, 1, sizes[ETH, MINUTE]),
    ]


def test_quarantined_market_is_unknown_here_and_whole_there(store: CandleStore, tmp_path: Path) -> None:
    """Every timeframe leaves the data, pending pages too; a store opened at the quarantine holds it as it was."""
    other = open_store(tmp_path)
    whole = store.read(BTC, MINUTE, EVER)
    before = store.version(BTC, MINUTE, EVER)
    where = store.upkeep.quarantine(BTC, name="old unit", how="overlap")
    assert [event.kind for event in other.events.read(BTC)] == ["quarantined"]
    assert other.events.read(BTC)[0].detail == {"name": "old unit", "timeframes": ["1m", "1d"]}
    for each in (store, other, open_store(tmp_path)):
        assert not each.read(BTC, MINUTE, EVER).covered
        assert each.read(BTC, MINUTE, EVER).table.num_rows == 0
        assert each.oldest(BTC, DAY) is None
        assert each.series() == [(ETH, MINUTE)]
    assert store.version(BTC, MINUTE, EVER) != before
    kept = open_store(Path(where))
    assert kept.verify() == []
    assert kept.series() == [(BTC, MINUTE), (BTC, DAY)]
    assert kept.read(BTC, MINUTE, EVER).table.equals(whole.table)
    assert kept.read(BTC, MINUTE, EVER).covered == whole.covered
    assert store.verify() == []


def test_market_is_held_anew_after_its_quarantine(store: CandleStore, tmp_path: Path) -> None:
    """New pages of the market stand alone: nothing of the old ones comes back."""
    other = open_store(tmp_path)
    store.flush()
    assert opens(other.read(BTC, MINUTE, EVER).table) == opens(store.read(BTC, MINUTE, EVER).table)
    store.upkeep.quarantine(BTC)
    store.put(BTC, MINUTE, minutes(0, 3, salt=1), span(0, 3), now_us=MAY)
    store.flush()
    for each in (store, other):
        assert each.read(BTC, MINUTE, EVER).table.equals(minutes(0, 3, salt=1))
        assert each.coverage(BTC, MINUTE, EVER) == SpanSet([span(0, 3)])
    assert store.revisions(BTC).num_rows == 0


def test_removed_series_is_in_quarantine_or_gone(store: CandleStore, tmp_path: Path) -> None:
    """`remove` takes what was named and nothing else; for good, it leaves no file; `clear` empties the quarantine."""
    where = store.upkeep.remove(BTC, DAY)
    assert where is not None
    assert store.series() == [(BTC, MINUTE), (ETH, MINUTE)]
    assert open_store(Path(where)).oldest(BTC, DAY) == MAY
    assert store.upkeep.remove(BTC, for_good=True) is None
    assert len(store.upkeep.quarantined()) == 1
    files, size = store.upkeep.clear()
    assert files == 1
    assert size > 0
    assert not list((tmp_path / "_quarantine").rglob("*"))
    assert store.series() == [(ETH, MINUTE)]
    assert store.verify() == []


@pytest.mark.parametrize(("market", "timeframe"), [("KRW-XRP", None), (ETH, DAY)])
def test_removing_what_is_not_stored_names_what_is(store: CandleStore, market: str, timeframe: object) -> None:
    """Nothing to remove is an error, not a success."""
    store.flush()
    with pytest.raises(InputError, match=r"KRW-BTC"):
        store.upkeep.remove(market, timeframe)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".", "x" * 101, "x.", "-x", 5, "NUL", "com1.x"])
def test_name_of_a_quarantine_stays_in_its_folder(store: CandleStore, name: str) -> None:
    """A name is a folder's, on every system."""
    with pytest.raises(InputError, match="name"):
        store.upkeep.quarantine(BTC, name=name)
    assert (BTC, MINUTE) in store.series()


def test_other_engines_see_candles_only(store: CandleStore, tmp_path: Path) -> None:
    """Pointed at the data folder or at candles/, pandas, Arrow, Polars and DuckDB find the candles and nothing else."""
    import duckdb
    import pandas as pd
    import polars as pl
    import pyarrow.dataset as ds

    store.upkeep.quarantine(BTC)
    store.events.add(ETH, "listed", how="x")
    rows = 11
    for folder in (str(tmp_path), str(tmp_path / "candles")):
        assert len(pd.read_parquet(folder)) == rows
        assert ds.dataset(folder).count_rows() == rows
        assert pl.scan_parquet(f"{folder}/**/*.parquet").collect().height == rows
        found = duckdb.sql(f"select count(*) from read_parquet('{folder}/**/*.parquet')").fetchall()
        assert found == [(rows,)]
    assert pl.scan_parquet(str(tmp_path / "candles")).collect().height == rows


def test_snapshot_never_changes(store: CandleStore, tmp_path: Path) -> None:
    """It holds what was stored, whatever is fetched, revised, repaired, quarantined (as after a redenomination),
    removed or cleared afterwards, and takes no write."""
    whole, other, events = store.read(BTC, MINUTE, EVER), store.read(ETH, MINUTE, EVER), store.events
    events.add(BTC, "listed", how="x")
    where = Path(store.upkeep.snapshot("paper-1"))
    store.put(BTC, MINUTE, minutes(0, 9, salt=1), span(0, 9), now_us=MAY)
    store.put(BTC, MINUTE, minutes(JUNE, JUNE + 9, salt=1), span(JUNE, JUNE + 9), now_us=MAY)
    store.flush()
    store.upkeep.quarantine(ETH, how="overlap of pages")
    (store_root := tmp_path / "candles" / "exchange=upbit").joinpath("stray.parquet").write_bytes(b"not ours")
    assert store.repair()
    store.upkeep.remove(BTC, for_good=True)
    store.upkeep.clear()
    assert not [*store_root.rglob("*.parquet")]
    events.add(BTC, "delisted", how="x")
    kept = open_store(where)
    assert kept.verify() == []
    assert kept.read(BTC, MINUTE, EVER).table.equals(whole.table)
    assert kept.read(BTC, MINUTE, EVER).covered == whole.covered
    assert kept.read(ETH, MINUTE, EVER).table.equals(other.table)
    assert [event.kind for event in kept.events.read()] == ["listed"]
    (snapshot,) = store.upkeep.snapshots()
    assert (snapshot.name, snapshot.path, snapshot.rows, snapshot.at_us) == ("paper-1", str(where), 23, MAY)
    with pytest.raises(InputError, match="a new name; there are paper-1"):
        store.upkeep.snapshot("paper-1")


@pytest.mark.parametrize("is_stored_anew", [False, True])
def test_snapshot_has_one_generation_of_a_market(
    store: CandleStore, monkeypatch: pytest.MonkeyPatch, is_stored_anew: bool
) -> None:
    """A market is quarantined, and stored in another unit, between the links of two of its timeframes."""
    store.flush()
    link = store.upkeep._link

    def late(series: Series, *words: Any) -> int:
        rows = link(series, *words)
        if series == Series("upbit", BTC, DAY):
            monkeypatch.setattr(store.upkeep, "_link", link)
            store.upkeep.quarantine(BTC)
            if is_stored_anew:
                store.put(BTC, MINUTE, minutes(JUNE - 5, JUNE + 5, 1), span(JUNE - 5, JUNE + 5), now_us=MAY)
                store.put(BTC, DAY, candles([MAY], 1), Span(0, MAY + 1440 * MINUTE_US), now_us=MAY)
                store.flush()
        return rows

    monkeypatch.setattr(store.upkeep, "_link", late)
    kept = open_store(Path(store.upkeep.snapshot("one")))
    assert kept.verify() == []
    days, found = kept.read(BTC, DAY, EVER).table, kept.read(BTC, MINUTE, EVER).table
    assert days.equals(candles([MAY] * is_stored_anew, 1))
    assert found.equals(minutes(JUNE - 5, JUNE + 5, 1) if is_stored_anew else minutes(0, 0))
    assert store.upkeep.snapshots()[0].rows == len(days) + len(found) + 11  # with the other market's


def test_snapshots_of_the_same_rows_have_the_same_content(store: CandleStore, tmp_path: Path) -> None:
    """The hash is of the rows, not of the files: pages, coverage and time of fetching do not count, one bit does."""
    store.upkeep.snapshot("a")
    other = open_store(tmp_path / "other")
    for market in (BTC, ETH):
        for first in range(JUNE - 5, JUNE + 5):
            other.put(market, MINUTE, minutes(first, first + 1), span(first, first + 1), now_us=MAY + 7)
            other.flush()
        other.put(market, MINUTE, minutes(JUNE + 9, JUNE + 10), span(JUNE + 5, JUNE + 30), now_us=MAY)
    other.put(BTC, DAY, candles([MAY]), Span(MAY, MAY + 1440 * MINUTE_US), now_us=MAY)
    other.upkeep.snapshot("b")
    other.put(BTC, MINUTE, minutes(JUNE, JUNE + 1, salt=1), span(JUNE, JUNE + 1), now_us=MAY)
    other.upkeep.snapshot("c")
    (a,), (b, c) = store.upkeep.snapshots(), other.upkeep.snapshots()
    assert a.content == b.content != c.content


def test_snapshot_that_another_program_changed_in_place_is_reported(store: CandleStore, tmp_path: Path) -> None:
    """Damaged, or another file of the same series that is whole in itself; from the store and from the snapshot."""
    where = Path(store.upkeep.snapshot("a"))
    store.upkeep.snapshot("b")
    store.upkeep.snapshots()
    kept = open_store(where)
    assert store.upkeep.changed_snapshots() == kept.upkeep.changed_snapshots() == []
    file = next(where.rglob(f"market={ETH}/**/*.kept"))
    whole = file.read_bytes()
    store.put(ETH, MINUTE, minutes(JUNE - 5, JUNE + 5, salt=1), span(JUNE - 5, JUNE + 5), now_us=MAY)
    store.flush()
    other = next((tmp_path / "candles").rglob(str(file.relative_to(where / "candles")).removesuffix(".kept")))
    for data in (other.read_bytes(), whole[:-100]):
        file.unlink()
        file.write_bytes(data)
        (seen,), (own,) = store.upkeep.changed_snapshots(), kept.upkeep.changed_snapshots()
        assert (seen.kind, seen.path) == (own.kind, own.path) == ("changed", str(where))
    store.upkeep.snapshot("c")
    next((tmp_path / "_snapshots" / "c").rglob(f"market={ETH}/**/*.kept")).write_bytes(b"x")  # others may be b's, too
    assert [one.content == "damaged" for one in store.upkeep.snapshots()] == [False, False, True]
    assert len(store.upkeep.changed_snapshots()) == 2


def test_condition_counts_each_slot_of_each_day_once(store: CandleStore) -> None:
    """Rows, quiet, unknown, provisional and revised, from the first candle to the last."""
    store.put(BTC, MINUTE, minutes(JUNE + 2, JUNE + 3, salt=1), span(JUNE + 2, JUNE + 4),
              provisional=(span(JUNE + 3, JUNE + 4), 1), now_us=MAY)  # fmt: skip
    may31, june1 = MAY + 30 * 1440 * MINUTE_US, MAY + JUNE * MINUTE_US
    assert store.upkeep.condition(BTC, MINUTE) == [
        (may31, 5, 0, 0, 0, 0, "venue"),
        (june1, 5, 1, 4, 1, 2, "venue"),
    ]
    assert store.upkeep.condition(BTC, DAY) == [(MAY, 1, 0, 0, 0, 0, "venue")]
