"""Stored files as a Polars LazyFrame: whatever moves them away while it is kept or collected."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.exceptions import PolarsError

from backbone.errors import StoreError
from backbone.model import Span
from backbone.storage import lazy as module
from backbone.storage.coverage import EVER
from backbone.storage.files import LocalFiles
from backbone.storage.lazy import SCAN_COLUMNS, FileScan, Selected
from backbone.storage.store import CandleStore
from backbone.testing import ManualClock
from tests.storage.helpers import MAY, MINUTE, MINUTE_US, minutes, open_store, span

BTC, ETH = "KRW-BTC", "KRW-ETH"
JUNE = 31 * 1440
FIRST, LAST = JUNE - 30, JUNE + 30  # two files a market


def fill(store: CandleStore, *markets: str, salt: int = 0) -> None:
    for market in markets:
        store.put(market, MINUTE, minutes(FIRST, LAST, salt), span(FIRST, LAST), now_us=MAY)
    store.flush()


@pytest.fixture
def store(tmp_path: Path) -> CandleStore:
    """Two markets of two files each."""
    made = open_store(tmp_path)
    fill(made, BTC, ETH)
    return made


class Scan(FileScan):
    """A scan of both markets, and how often it selected."""

    def __init__(self, store: CandleStore, root: Path, *, within: Span = EVER) -> None:
        self.store, self.within, self.selections = store, within, 0
        self.before_check: Callable[[], None] = lambda: None
        super().__init__(self.select(), LocalFiles(root, ManualClock(MAY)), "upbit", self.select)

    def select(self) -> Selected:
        self.selections += 1
        states = {market: self.store.state(market) for market in (BTC, ETH)}
        paths = [str(path) for market in states for path in self.store.paths(market, MINUTE, self.within)]
        return Selected(paths, self.within, states)

    def _check(self, selected: Selected) -> None:
        self.before_check()
        super()._check(selected)


def rows(salt_of_btc: int, salt_of_eth: int = 0) -> pl.DataFrame:
    parts = [
        pl.DataFrame(minutes(FIRST, LAST, salt)).select(pl.lit(market).alias("market"), pl.all())
        for market, salt in ((BTC, salt_of_btc), (ETH, salt_of_eth))
    ]
    return pl.concat(parts).with_columns(pl.col("time").dt.replace_time_zone("UTC"))


def is_ether(market: str) -> bool:
    """A filter that only Python can say."""
    return any(part == "ETH" for part in market.split("-"))


def two_ways(lazy: pl.LazyFrame) -> list[pl.LazyFrame]:
    return [lazy.filter(pl.col("close") > limit).select("market", "time", "close") for limit in (0, 50_000)]


QUERIES: dict[str, Callable[[pl.LazyFrame], pl.DataFrame]] = {
    "collect": lambda lazy: lazy.collect(),
    "streaming": lambda lazy: lazy.collect(engine="streaming"),
    "filter": lambda lazy: lazy.filter(pl.col("market") == ETH, pl.col("close") > 50_000).select("time").collect(),
    "head": lambda lazy: lazy.head(7).collect(),
    "tail": lambda lazy: lazy.tail(7).collect(),
    "slice": lambda lazy: lazy.slice(25, 50).select("close").collect(),
    "filtered head": lambda lazy: lazy.filter(pl.col("close") > 50_000).head(3).collect(engine="streaming"),
    "head, filtered": lambda lazy: lazy.head(70).filter(pl.col("market") == ETH).select("close").collect(),
    "head, filtered, streaming": lambda lazy: lazy.head(70).filter(pl.col("market") == ETH).collect(engine="streaming"),
    "count": lambda lazy: lazy.select(pl.len()).collect(),
    "function": lambda lazy: lazy.filter(pl.col("market").map_elements(is_ether, pl.Boolean)).collect(),
    "group": lambda lazy: lazy.group_by("market").agg(pl.col("close").max()).sort("market").collect(engine="streaming"),
    "join": lambda lazy: (
        lazy.join(lazy.group_by("market").agg(mean=pl.col("close").mean()), on="market", maintain_order="left")
        .filter(pl.col("close") > pl.col("mean"))
        .collect()
    ),
    "two filters": lambda lazy: pl.concat(two_ways(lazy)).collect(),
    "two filters, streaming": lambda lazy: pl.concat(two_ways(lazy)).collect(engine="streaming"),
    "concat": lambda lazy: pl.concat([lazy, lazy]).collect(),
    "together": lambda lazy: pl.concat(pl.collect_all([lazy.select("close"), lazy.head(2).select("close")])),
    "batches": lambda lazy: pl.concat(list(lazy.collect_batches(chunk_size=11))),
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_scan_answers_as_plain_polars_does(
    store: CandleStore, tmp_path: Path, query: Callable[[pl.LazyFrame], pl.DataFrame]
) -> None:
    """Filters, columns and numbers of rows are cut where the files are read, and nothing else is lost by it."""
    assert query(Scan(store, tmp_path).frame()).equals(query(rows(0).lazy()))


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_kept_scan_shows_the_new_state(
    store: CandleStore, tmp_path: Path, query: Callable[[pl.LazyFrame], pl.DataFrame]
) -> None:
    """A market is quarantined and stored anew before the first collect, and between two, whatever is made of it."""
    lazy = Scan(store, tmp_path).frame()
    lazy.collect_schema()
    for salt in (1, 2):
        store.upkeep.quarantine(BTC)
        fill(store, BTC, salt=salt)
        assert query(lazy).equals(query(rows(salt).lazy()))


def test_scan_of_a_span_reads_no_other_rows(store: CandleStore, tmp_path: Path) -> None:
    """Half-open; the rows outside it are in the files all the same."""
    found = Scan(store, tmp_path, within=span(JUNE - 2, JUNE + 3)).frame().filter(pl.col("market") == BTC).collect()
    assert found.columns == list(SCAN_COLUMNS)
    assert found["time"].dt.epoch("us").to_list() == [MAY + i * MINUTE_US for i in range(JUNE - 2, JUNE + 3)]


def test_nothing_selected_is_no_rows_with_all_columns(tmp_path: Path) -> None:
    """Typed, as with rows."""
    found = Scan(open_store(tmp_path), tmp_path).frame().collect()
    assert found.schema == rows(0).schema
    assert found.height == 0


@pytest.mark.parametrize("at_check", [1, 2])
@pytest.mark.parametrize("is_stored_anew", [False, True])
def test_market_that_is_quarantined_while_it_is_read_is_read_again(
    store: CandleStore, tmp_path: Path, at_check: int, is_stored_anew: bool
) -> None:
    """Before Polars opens the files, and after it has read them: the rows are of one state."""
    scan, checks = Scan(store, tmp_path), []

    def interfere() -> None:
        checks.append(1)
        if len(checks) == at_check:
            store.upkeep.quarantine(BTC)
            if is_stored_anew:
                fill(store, BTC, salt=1)

    scan.before_check = interfere
    expected = rows(1) if is_stored_anew else rows(0).filter(pl.col("market") == ETH)
    assert scan.frame().collect().equals(expected)
    assert scan.selections == 2


def test_market_that_changes_after_rows_were_handed_on_is_an_error_of_ours(
    store: CandleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what happened and what to do; doing that gives the new state."""
    monkeypatch.setattr(module, "_BATCH_ROWS", 10)
    scan, checks = Scan(store, tmp_path), []

    def interfere() -> None:
        checks.append(1)
        if len(checks) == 4:
            store.upkeep.quarantine(BTC)
            fill(store, BTC, salt=1)

    scan.before_check = interfere
    with pytest.raises(StoreError, match=r"KRW-BTC was quarantined .*collect it again") as caught:
        scan.frame().collect(engine="streaming")
    assert caught.value.path == f"{tmp_path}/"
    assert scan.frame().collect(engine="streaming").equals(rows(1))


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_query_that_has_a_frame_twice_shows_one_state(store: CandleStore, tmp_path: Path, engine: Any) -> None:
    """A join of all prices with those of the same frame never has two units: there is one read."""
    scan, checks = Scan(store, tmp_path), []

    def interfere() -> None:
        checks.append(1)
        if len(checks) == 3:  # the first read is over
            store.upkeep.quarantine(BTC)
            fill(store, BTC, salt=1)

    scan.before_check = interfere
    lazy = scan.frame().with_columns(pl.col("time").dt.convert_time_zone("Asia/Seoul"))
    joined = lazy.join(lazy.select("market", "time", other="close"), on=["market", "time"]).collect(engine=engine)
    assert joined.height == 4 * (LAST - JUNE)
    assert joined["close"].equals(joined["other"])
    assert len(checks) == 2


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
@pytest.mark.parametrize("limits", [(0, 50_000), (10**9, 0)])
def test_query_that_cuts_a_frame_in_two_ways_never_shows_two_states(
    store: CandleStore, tmp_path: Path, engine: Any, limits: tuple[int, int]
) -> None:
    """It is two reads: where a market is quarantined between them, also after one without rows, it is an error of ours
    that says what to do; doing that gives the new state."""
    scan, one_by_one, shown = Scan(store, tmp_path), threading.Lock(), []
    show = scan._show

    def interfere(selected: Selected) -> None:
        with one_by_one:
            show(selected)
            shown.append(selected)
            if len(shown) == 1:
                store.upkeep.quarantine(BTC)
                fill(store, BTC, salt=1)

    scan._show = interfere  # type: ignore[method-assign]
    lazy = scan.frame()
    query = pl.concat([lazy.filter(pl.col("close") > limit) for limit in limits])
    with pytest.raises(StoreError, match=r"KRW-BTC was quarantined between two reads .*collect it again") as caught:
        query.collect(engine=engine)
    assert caught.value.path == f"{tmp_path}/"
    expected = pl.concat([rows(1).filter(pl.col("close") > limit) for limit in limits])
    assert query.collect(engine=engine).equals(expected)


@pytest.mark.parametrize("reading", [False, True])
def test_one_timeframe_that_is_moved_away_is_selected_anew(
    store: CandleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: bool
) -> None:
    """No generation changes: the file itself is missed."""
    scan = Scan(store, tmp_path)
    batches = FileScan._batches

    def late(self: FileScan, *words: Any) -> Any:
        monkeypatch.setattr(FileScan, "_batches", batches)
        store.upkeep.quarantine(BTC, MINUTE)
        return batches(self, *words)

    if reading:
        monkeypatch.setattr(FileScan, "_batches", late)
    else:
        store.upkeep.quarantine(BTC, MINUTE)
    assert scan.frame().collect().equals(rows(0).filter(pl.col("market") == ETH))


def test_file_that_cannot_be_read_is_a_store_error(store: CandleStore, tmp_path: Path) -> None:
    """Where the selection names it again, such as for want of a permission: never an error of Polars'."""
    scan = Scan(store, tmp_path)
    chosen = scan.select()
    scan._again = lambda: chosen
    Path(chosen.paths[0]).unlink()
    with pytest.raises(StoreError, match="cannot be read: No such file") as caught:
        scan.frame().collect()
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_files_that_are_moved_away_again_and_again_end_in_an_error(store: CandleStore, tmp_path: Path) -> None:
    """Not in an endless loop."""
    scan = Scan(store, tmp_path)

    def interfere() -> None:
        fill(store, BTC)
        store.upkeep.quarantine(BTC)

    scan.before_check = interfere
    with pytest.raises(StoreError, match="again and again"):
        scan.frame().collect()
    assert scan.selections == module._SELECTIONS + 1


@pytest.mark.parametrize("is_pickled", [False, True])
def test_error_of_the_query_stays_what_it_is(store: CandleStore, tmp_path: Path, is_pickled: bool) -> None:
    """A filter that fails on the rows is not the files' doing; in a process without a client neither."""
    wrong = Scan(store, tmp_path).frame().filter(pl.col("market").str.to_integer() > 0)
    with pytest.raises(PolarsError, match="strict integer parsing failed"):
        (pickle.loads(pickle.dumps(wrong)) if is_pickled else wrong).collect()


def test_pickled_scan_reads_the_same_files_and_says_when_they_are_gone(store: CandleStore, tmp_path: Path) -> None:
    """Such as in a worker process, which has no client."""
    copy = pickle.loads(pickle.dumps(Scan(store, tmp_path).frame().select("market", "close")))
    assert copy.collect().equals(rows(0).select("market", "close"))
    store.upkeep.quarantine(BTC)
    with pytest.raises(StoreError, match=r"KRW-BTC was quarantined .*make the scan again, in the client"):
        copy.collect()
