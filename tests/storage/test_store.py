"""The store: what it holds, what it covers, and when that is on disk."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backbone.errors import ClosedError, InputError, StoreError
from backbone.locks import RUN_LOCK
from backbone.model import CANDLE_SCHEMA, Span
from backbone.storage.coverage import SpanSet
from backbone.storage.store import CandleStore
from backbone.testing import ManualClock
from backbone.timeframe import TIMEFRAMES, parse_timeframe
from tests.storage.helpers import (
    DAY,
    MAY,
    MINUTE,
    MINUTE_US,
    SECOND,
    candles,
    in_child,
    minutes,
    needs_fork,
    open_store,
    opens,
    rows_of,
    span,
)

EVER = Span(0, 1 << 62)
BTC, ETH = "KRW-BTC", "KRW-ETH"


def files_in(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def partitions_in(root: Path) -> list[Path]:
    return sorted(root.glob("candles/**/*.parquet"))


def corrupt(path: Path, at: int = 50) -> None:
    """Flip a bit of a file, as a failing disk would."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# -- rows and coverage


def test_store_constructed_touches_no_disk(tmp_path: Path) -> None:
    """Opening a store in a folder that does not exist makes none, and finds nothing."""
    store = open_store(tmp_path / "none")
    assert store.read(BTC, MINUTE, span(0, 9)).table.num_rows == 0
    assert store.coverage(BTC, MINUTE, EVER) == SpanSet()
    assert store.series() == []
    store.close()
    assert not (tmp_path / "none").exists()


def test_put_rows_are_readable_at_once_and_from_another_store_after_flush(tmp_path: Path) -> None:
    """Pages are visible to this process before they are on disk, and to others after."""
    store, other = open_store(tmp_path), open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 200), span(0, 200), now_us=MAY)
    assert store.read(BTC, MINUTE, span(0, 200)).table.equals(minutes(0, 200))
    assert store.coverage(BTC, MINUTE, span(0, 200)) == SpanSet([span(0, 200)])
    assert other.coverage(BTC, MINUTE, span(0, 200)) == SpanSet()
    assert store.pending_rows() == 200
    store.flush()
    found = other.read(BTC, MINUTE, span(0, 200))
    assert found.table.equals(minutes(0, 200))
    assert found.covered == SpanSet([span(0, 200)])
    assert store.pending_rows() == 0


def test_read_slices_to_the_span_and_keeps_the_schema(tmp_path: Path) -> None:
    """The start is included, the end is not, and zero rows are typed."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 100), span(0, 100), now_us=MAY)
    assert opens(store.read(BTC, MINUTE, span(10, 12)).table) == [MAY + 10 * MINUTE_US, MAY + 11 * MINUTE_US]
    nothing = store.read(BTC, MINUTE, span(100, 120))
    assert nothing.table.schema == CANDLE_SCHEMA
    assert nothing.table.num_rows == 0
    assert nothing.covered == SpanSet()


def test_proof_without_rows_is_quiet_and_outlives_the_process(tmp_path: Path) -> None:
    """A quiet span is covered, has no rows, makes no partition file, and is not asked for again."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 0), Span(0, MAY), now_us=MAY)
    store.flush()
    assert files_in(tmp_path / "candles") == []
    again = open_store(tmp_path)
    assert again.coverage(BTC, MINUTE, Span(0, MAY)) == SpanSet([Span(0, MAY)])
    assert again.quiet_before(BTC, MINUTE) == MAY


def test_period_that_gets_rows_keeps_the_quiet_spans_known_before(tmp_path: Path) -> None:
    """Coverage moves from the sidecar into the new file, and nothing of it is lost or covered twice."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 0), Span(0, MAY + 50 * MINUTE_US), now_us=MAY)
    store.flush()
    store.put(BTC, MINUTE, minutes(60, 70), span(60, 70), now_us=MAY)
    store.flush()
    again = open_store(tmp_path)
    assert again.coverage(BTC, MINUTE, EVER) == SpanSet([Span(0, MAY + 50 * MINUTE_US), span(60, 70)])
    partitions_in(tmp_path)[0].unlink()
    assert open_store(tmp_path).coverage(BTC, MINUTE, EVER) == SpanSet([Span(0, MAY)])


def test_quiet_minutes_of_a_period_with_rows_are_kept_with_them(tmp_path: Path) -> None:
    """Quiet minutes beside trades are covered by the file of their period."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 10, every=4), span(0, 10), now_us=MAY)
    store.put(BTC, MINUTE, minutes(0, 0), span(10, 500), now_us=MAY)
    store.flush()
    assert [name for name in files_in(tmp_path) if name.startswith("_quiet")] == []
    assert open_store(tmp_path).coverage(BTC, MINUTE, EVER) == SpanSet([span(0, 500)])


def test_page_across_periods_is_stored_in_each(tmp_path: Path) -> None:
    """Rows and coverage of one page are split at the month's end and joined again on reading."""
    store = open_store(tmp_path)
    june = 31 * 1440
    store.put(BTC, MINUTE, minutes(june - 100, june + 100), span(june - 100, june + 100), now_us=MAY)
    store.flush()
    assert [path.parent.name for path in partitions_in(tmp_path)] == ["period=month-2024-05", "period=month-2024-06"]
    found = open_store(tmp_path).read(BTC, MINUTE, span(june - 150, june + 150))
    assert rows_of(found.table) == rows_of(minutes(june - 100, june + 100))
    assert found.covered == SpanSet([span(june - 100, june + 100)])
    assert found.tiers == {"memory": 0, "disk": 200}


def test_coverage_of_ragged_spans_counts_candle_opens_only(tmp_path: Path) -> None:
    """Proofs that leave out no candle open join, and a span's ends between opens are no gap."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 5), Span(MAY - 7, MAY + 5 * MINUTE_US - 30), now_us=MAY)
    store.put(BTC, MINUTE, minutes(5, 9), Span(MAY + 5 * MINUTE_US - 11, MAY + 9 * MINUTE_US), now_us=MAY)
    store.flush()
    asked = Span(MAY - 59, MAY + 9 * MINUTE_US - 1)
    assert open_store(tmp_path).coverage(BTC, MINUTE, asked) == SpanSet([asked])
    between = Span(MAY + 100 * MINUTE_US + 1, MAY + 100 * MINUTE_US + 9)
    assert store.coverage(BTC, MINUTE, between) == SpanSet([between])


@pytest.mark.parametrize("timeframe", TIMEFRAMES.values(), ids=str)
def test_every_timeframe_is_held_and_found_again(tmp_path: Path, timeframe: Any) -> None:
    """From seconds to years, rows and coverage come back from disk."""
    first = timeframe.ceil(MAY)
    times = [timeframe.next(first, n) for n in range(40)]
    proof = Span(first, timeframe.next(times[-1]))
    store = open_store(tmp_path)
    store.put(BTC, timeframe, candles(times), proof, now_us=MAY)
    store.close()
    again = open_store(tmp_path)
    found = again.read(BTC, timeframe, EVER)
    assert rows_of(found.table) == rows_of(candles(times))
    assert again.coverage(BTC, timeframe, EVER) == SpanSet([proof])
    assert again.series() == [(BTC, timeframe)]
    assert again.oldest(BTC, timeframe) == first
    assert again.verify() == []


def test_span_of_very_many_periods_is_answered_by_one_listing(tmp_path: Path) -> None:
    """A second-candle question since 1970 asks the disk for what exists, not for twenty thousand days."""
    store = open_store(tmp_path)
    store.put(BTC, SECOND, candles([MAY, MAY + 1_000_000]), Span(0, MAY + 2_000_000), now_us=MAY)
    store.flush()
    asked: list[str] = []
    again = open_store(tmp_path)
    stat = again._files.stat
    again._files.stat = lambda key: asked.append(key) or stat(key)  # type: ignore[method-assign, func-returns-value]
    assert again.coverage(BTC, SECOND, EVER) == SpanSet([Span(0, MAY + 2_000_000)])
    assert len(asked) < 10


def test_markets_timeframes_and_exchanges_do_not_mix(tmp_path: Path) -> None:
    """Each series has its own folder."""
    store, other = open_store(tmp_path), CandleStore(tmp_path, "127.0.0.1-8080", clock=ManualClock(MAY))
    store.put(BTC, MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    store.put(ETH, DAY, candles([MAY]), Span(MAY, MAY + 1440 * MINUTE_US), now_us=MAY)
    other.put(BTC, MINUTE, minutes(0, 9, 1), span(0, 9), now_us=MAY)
    store.close()
    other.close()
    assert store.read(ETH, MINUTE, span(0, 9)).table.num_rows == 0
    assert store.series() == [(BTC, MINUTE), (ETH, DAY)]
    assert other.series() == [(BTC, MINUTE)]
    assert other.read(BTC, MINUTE, span(0, 9)).table.equals(minutes(0, 9, 1))
    assert store.read(BTC, MINUTE, span(0, 9)).table.equals(minutes(0, 9))
    assert store.verify() == other.verify() == []


@pytest.mark.parametrize("market", ["../../etc", "KRW-BTC/../..", "krw-btc", "KRW-.."])
def test_market_name_that_could_leave_the_folder_is_refused_everywhere(tmp_path: Path, market: str) -> None:
    """No call builds a path from such a name."""
    store = open_store(tmp_path / "store")
    with pytest.raises(InputError):
        store.put(market, MINUTE, minutes(0, 1), span(0, 1), now_us=MAY)
    for call in (store.read, store.coverage, store.paths, store.version):
        with pytest.raises(InputError):
            call(market, MINUTE, span(0, 1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("table", "proof", "words"),
    [
        (minutes(0, 10), span(0, 9), "outside"),
        (minutes(0, 10), span(1, 10), "outside"),
        (candles([MAY + MINUTE_US, MAY]), span(0, 9), "order"),
        (candles([MAY, MAY]), span(0, 9), "order"),
        (candles([MAY + 1_000_000]), span(0, 9), "grid"),
        (minutes(0, 3).rename_columns(["t", *CANDLE_SCHEMA.names[1:]]), span(0, 9), "columns"),
        (minutes(0, 3).drop_columns(["value"]), span(0, 9), "columns"),
    ],
)
def test_page_that_contradicts_itself_is_refused_whole(tmp_path: Path, table: Any, proof: Span, words: str) -> None:
    """Rows outside their proof, unsorted, doubled, off the grid or misshapen leave no trace."""
    store = open_store(tmp_path)
    with pytest.raises(StoreError, match=words):
        store.put(BTC, MINUTE, table, proof, now_us=MAY)
    assert store.coverage(BTC, MINUTE, EVER) == SpanSet()
    assert store.pending_rows() == 0


# -- truth over time


def test_second_ask_that_differs_is_a_revision_and_the_newest_is_given(tmp_path: Path) -> None:
    """A restated candle replaces the old one, and what it was is reported."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    store.flush()
    store.put(BTC, MINUTE, minutes(3, 5, 1), span(3, 6), source="rest", now_us=MAY + 5)
    for which in (store, store, open_store(tmp_path)):
        if which is not store:
            store.flush()
        reported = which.revisions(BTC, MINUTE)
        assert reported["time"].cast("int64").to_pylist() == [MAY + n * MINUTE_US for n in (3, 4, 5)]
        assert reported["old_close"].to_pylist() == minutes(3, 6)["close"].to_pylist()
        assert reported["new_close"].to_pylist() == [*minutes(3, 5, 1)["close"].to_pylist(), None]
        assert set(reported["seen"].cast("int64").to_pylist()) == {MAY + 5}
        assert set(reported["market"].to_pylist()) == {BTC}
        rows = rows_of(which.read(BTC, MINUTE, span(0, 9)).table)
        assert rows == rows_of(minutes(0, 3)) | rows_of(minutes(3, 5, 1)) | rows_of(minutes(6, 9))
    assert open_store(tmp_path).revisions().num_rows == 3


def test_first_ask_is_no_revision(tmp_path: Path) -> None:
    """Candles of a span that was not covered before have no history."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    store.put(BTC, MINUTE, minutes(9, 20), span(9, 20), now_us=MAY)
    assert store.revisions().num_rows == 0


def test_candle_in_what_was_quiet_is_a_revision(tmp_path: Path) -> None:
    """A candle that comes late, into a quiet span, is recorded even where no file was."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 0), Span(0, MAY + 9 * MINUTE_US), now_us=MAY)
    store.flush()
    store.put(BTC, MINUTE, minutes(2, 3), span(0, 9), now_us=MAY + 1)
    store.flush()
    reported = open_store(tmp_path).revisions(BTC)
    assert reported["old_open"].to_pylist() == [None]
    assert reported["new_open"].to_pylist() == minutes(2, 3)["open"].to_pylist()


def test_provisional_span_is_due_once_and_then_no_more(tmp_path: Path) -> None:
    """The newest candles are held provisionally until a second ask has confirmed them."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 9), span(0, 9), provisional=(span(7, 99), MAY + 100), now_us=MAY)
    for which in (store, open_store(tmp_path)):
        assert which.due(BTC, MINUTE, EVER, MAY + 99) == SpanSet()
        assert which.due(BTC, MINUTE, EVER, MAY + 100) == SpanSet([span(7, 9)])
        assert which.due(BTC, MINUTE, span(0, 8), MAY + 100) == SpanSet([span(7, 8)])
        assert which.coverage(BTC, MINUTE, span(0, 9)) == SpanSet([span(0, 9)])
        store.flush()
    store.put(BTC, MINUTE, minutes(7, 9), span(7, 9), now_us=MAY + 200)
    assert store.due(BTC, MINUTE, EVER, MAY + 300) == SpanSet()
    store.flush()
    assert open_store(tmp_path).due(BTC, MINUTE, EVER, MAY + 300) == SpanSet()


def test_provisional_quiet_is_due_too(tmp_path: Path) -> None:
    """A provisional quiet span in a period without rows survives in the sidecar."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 0), span(0, 9), provisional=(span(5, 9), MAY + 1), now_us=MAY)
    store.flush()
    assert open_store(tmp_path).due(BTC, MINUTE, EVER, MAY + 1) == SpanSet([span(5, 9)])


# -- when it is on disk


def test_put_does_not_wait_for_a_commit_that_somebody_else_is_making(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk holds the one thread that writes, not every thread that brings a page; all is written in the end."""
    store = open_store(tmp_path, group_commit_s=0.0)
    replace, is_writing, may_go = store._files.replace, threading.Event(), threading.Event()

    def slowly(*args: Any) -> Any:
        is_writing.set()
        assert may_go.wait(20)
        return replace(*args)

    monkeypatch.setattr(store._files, "replace", slowly)

    def put(first: int) -> None:
        store.put(BTC, MINUTE, minutes(first, first + 10), span(first, first + 10), now_us=MAY)

    writer = threading.Thread(target=put, args=(0,))
    writer.start()
    try:
        assert is_writing.wait(20)
        put(10)  # would wait for ever
        assert store.pending_rows() == 20
    finally:
        may_go.set()
        writer.join()
    assert store.pending_rows() == 10
    put(20)
    assert store.pending_rows() == 0
    assert open_store(tmp_path).read(BTC, MINUTE, span(0, 30)).table.equals(minutes(0, 30))


def test_put_after_the_group_commit_time_brings_all_to_disk(tmp_path: Path) -> None:
    """Pages of 0.8 s are one file rewrite, and are not left in memory for longer."""
    clock = ManualClock(MAY)
    store = open_store(tmp_path, clock)
    for n in range(5):
        store.put(BTC, MINUTE, minutes(n * 200, n * 200 + 200), span(n * 200, n * 200 + 200), now_us=MAY)
        clock.advance(0.159)
    assert (store.commits, store.pending_rows()) == (0, 1000)
    clock.advance(0.01)
    store.put(ETH, MINUTE, minutes(0, 1), span(0, 1), now_us=MAY)
    assert (store.commits, store.pending_rows()) == (1, 1)
    assert open_store(tmp_path).coverage(BTC, MINUTE, EVER) == SpanSet([span(0, 1000)])


def test_many_pending_rows_go_to_disk_without_waiting(tmp_path: Path) -> None:
    """Memory for pages that are not on disk is bounded by rows."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 20_000), span(0, 20_000), now_us=MAY)
    assert (store.commits, store.pending_rows()) == (1, 0)


def test_flush_of_one_market_leaves_the_others_pending(tmp_path: Path) -> None:
    """A flush may be narrowed to what a caller waits for."""
    store = open_store(tmp_path)
    for market in (BTC, ETH):
        store.put(market, MINUTE, minutes(0, 5), span(0, 5), now_us=MAY)
    store.flush(BTC, MINUTE)
    assert store.pending_rows() == 5
    store.flush(timeframe=DAY)
    assert store.pending_rows() == 5
    store.close()
    assert store.pending_rows() == 0


def test_page_that_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    """The same page from a second process is not stored twice, nor written again."""
    first, second = open_store(tmp_path), open_store(tmp_path)
    for store in (first, second):
        store.put(BTC, MINUTE, minutes(0, 50), span(0, 50), now_us=MAY)
    first.flush()
    before = first.version(BTC, MINUTE, EVER)
    second.flush()
    assert second.commits == 0
    assert first.version(BTC, MINUTE, EVER) == before
    assert second.read(BTC, MINUTE, EVER).table.num_rows == 50


def test_two_stores_that_fill_one_partition_lose_nothing_of_each_other(tmp_path: Path) -> None:
    """A write merges with what another process has written since."""
    one, two = open_store(tmp_path), open_store(tmp_path)
    for n in range(10):
        store = (one, two)[n % 2]
        store.put(BTC, MINUTE, minutes(n * 10, n * 10 + 10), span(n * 10, n * 10 + 10), now_us=MAY)
        store.flush()
        assert two.read(BTC, MINUTE, EVER).covered == SpanSet([span(0, n * 10 + 10)])
    assert rows_of(one.read(BTC, MINUTE, EVER).table) == rows_of(minutes(0, 100))
    assert one.verify() == []


def test_closed_store_takes_no_more_and_still_reads(tmp_path: Path) -> None:
    """After `close` nothing is accepted that could be lost."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 5), span(0, 5), now_us=MAY)
    store.close()
    with pytest.raises(ClosedError):
        store.put(BTC, MINUTE, minutes(5, 6), span(5, 6), now_us=MAY)
    assert store.read(BTC, MINUTE, EVER).table.num_rows == 5
    store.close()


# -- the memory tier


def test_second_read_comes_from_memory_and_asks_for_no_bytes(tmp_path: Path) -> None:
    """A decoded partition is kept, named in the tiers, and handed out without a copy."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 500), span(0, 500), now_us=MAY)
    store.flush()
    again = open_store(tmp_path)
    assert again.read(BTC, MINUTE, span(0, 500)).tiers == {"memory": 0, "disk": 500}
    read, again._files.read = again._files.read, None  # type: ignore[method-assign, assignment]
    found = again.read(BTC, MINUTE, span(100, 200))
    assert found.tiers == {"memory": 100, "disk": 0}
    addresses = [
        t.column("open").chunk(0).buffers()[1].address
        for t in (found.table, again.read(BTC, MINUTE, span(0, 500)).table)
    ]
    assert addresses[0] == addresses[1]
    assert again.coverage(BTC, MINUTE, EVER) == SpanSet([span(0, 500)])
    assert read is not None


def test_partition_replaced_by_another_process_is_read_anew(tmp_path: Path) -> None:
    """A cached partition is never served once the file has changed."""
    one, two = open_store(tmp_path), open_store(tmp_path)
    one.put(BTC, MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    one.flush()
    assert two.read(BTC, MINUTE, EVER).table.num_rows == 9
    version = two.version(BTC, MINUTE, EVER)
    one.put(BTC, MINUTE, minutes(0, 9, 1), span(0, 9), now_us=MAY)
    one.flush()
    assert two.read(BTC, MINUTE, EVER).table.equals(minutes(0, 9, 1))
    assert two.version(BTC, MINUTE, EVER) != version


def test_store_with_no_memory_still_answers(tmp_path: Path) -> None:
    """The memory tier is an optimisation: with none of it, every answer is the same."""
    store = open_store(tmp_path, memory_bytes=0)
    store.put(BTC, MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    store.flush()
    store.put(BTC, MINUTE, minutes(9, 12), span(9, 12), now_us=MAY)
    for _ in range(2):
        assert store.read(BTC, MINUTE, EVER).table.equals(minutes(0, 12))
    assert store.memory_stats().bytes == 0


def test_version_changes_with_pending_pages_and_only_for_their_span(tmp_path: Path) -> None:
    """A memoised result cannot outlive what it was made from, pending pages included."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    waiting = store.version(BTC, MINUTE, span(0, 9))
    store.flush()
    flushed = store.version(BTC, MINUTE, span(0, 9))
    store.put(BTC, MINUTE, minutes(20, 21), span(20, 21), now_us=MAY)
    assert len({waiting, flushed, store.version(BTC, MINUTE, span(0, 30))}) == 3
    assert store.version(BTC, MINUTE, span(0, 9)) == flushed


# -- damage


def test_damaged_partition_is_quarantined_reported_once_and_unknown_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped bit costs a refetch: the file is kept elsewhere, the rest is answered, one line says so."""
    june = 31 * 1440
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(june - 50, june + 50), span(june - 50, june + 50), now_us=MAY)
    store.flush()
    damaged = partitions_in(tmp_path)[0]
    corrupt(damaged)
    spoilt = damaged.read_bytes()
    again = open_store(tmp_path)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            found = again.read(BTC, MINUTE, span(june - 50, june + 50))
            assert opens(found.table) == opens(minutes(june, june + 50))
            assert found.covered == SpanSet([span(june, june + 50)])
    assert not damaged.exists()
    kept = [path for path in (tmp_path / "_quarantine").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in kept] == [spoilt]
    (incident,) = again.incidents()
    assert (incident.kind, incident.path) == ("quarantined", str(damaged))
    assert [str(damaged) in record.getMessage() for record in caplog.records] == [True]
    again.put(BTC, MINUTE, minutes(june - 50, june), span(june - 50, june), now_us=MAY)
    again.flush()
    assert again.read(BTC, MINUTE, EVER).table.num_rows == 100
    assert again.verify() == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a candle file", b"\0" * 4096])
def test_cut_empty_or_foreign_partition_is_quarantined_by_coverage_alone(tmp_path: Path, content: bytes) -> None:
    """A file counts as coverage only after its seal was checked."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    store.flush()
    partitions_in(tmp_path)[0].write_bytes(content)
    again = open_store(tmp_path)
    assert again.coverage(BTC, MINUTE, EVER) == SpanSet()
    assert [incident.kind for incident in again.incidents()] == ["quarantined"]
    assert partitions_in(tmp_path) == []


def test_partition_damaged_under_a_running_store_is_found_at_the_next_write(tmp_path: Path) -> None:
    """New pages do not bury damage: the file is quarantined first, and its old span is unknown."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    store.flush()
    corrupt(partitions_in(tmp_path)[0])
    store.put(BTC, MINUTE, minutes(9, 12), span(9, 12), now_us=MAY)
    store.flush()
    assert open_store(tmp_path).coverage(BTC, MINUTE, EVER) == SpanSet([span(9, 12)])
    assert [incident.kind for incident in store.incidents()] == ["quarantined"]


def test_damaged_sidecar_is_quarantined_and_its_quiet_spans_unknown(tmp_path: Path) -> None:
    """The bytes that cover quiet spans are checked like any others."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 0), Span(0, MAY), now_us=MAY)
    store.put(BTC, MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    store.flush()
    (sidecar,) = (tmp_path / "_quiet").rglob("*.json")
    corrupt(sidecar)
    again = open_store(tmp_path)
    assert again.coverage(BTC, MINUTE, EVER) == SpanSet([span(0, 9)])
    assert not sidecar.exists()


def test_stale_sidecar_does_not_cover_a_damaged_partition(tmp_path: Path) -> None:
    """What a crash left in the sidecar about a period with a file never comes back to life."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 0), Span(0, MAY + 50 * MINUTE_US), now_us=MAY)
    store.flush()
    (sidecar,) = (tmp_path / "_quiet").rglob("*.json")
    stale = sidecar.read_bytes()
    store.put(BTC, MINUTE, minutes(3, 9), span(0, 9), now_us=MAY)
    store.flush()
    sidecar.write_bytes(stale)  # as if the process had died before the sidecar was cleaned
    assert open_store(tmp_path).read(BTC, MINUTE, span(0, 50)).table.num_rows == 6
    corrupt(partitions_in(tmp_path)[0])
    assert open_store(tmp_path).coverage(BTC, MINUTE, EVER) == SpanSet([Span(0, MAY)])


def test_damaged_partition_that_cannot_be_quarantined_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the damaged file cannot be moved, it stays, reads report it once, and new pages wait in memory."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    store.flush()
    (path,) = partitions_in(tmp_path)
    corrupt(path)
    spoilt = path.read_bytes()
    again = open_store(tmp_path)

    def refuse(key: str, now_us: int) -> Path:
        raise StoreError(f"cannot quarantine {key}", path=key)

    with monkeypatch.context() as patched:
        patched.setattr(again._files, "quarantine", refuse)
        again.put(BTC, MINUTE, minutes(9, 12), span(9, 12), now_us=MAY)
        for _ in range(2):
            assert again.read(BTC, MINUTE, EVER).covered == SpanSet([span(9, 12)])
        with pytest.raises(StoreError, match="cannot be moved to quarantine"):
            again.flush()
        assert path.read_bytes() == spoilt
        assert [incident.kind for incident in again.incidents()] == ["damaged", "damaged", "flush-failed"]
    again.flush()
    assert open_store(tmp_path).coverage(BTC, MINUTE, EVER) == SpanSet([span(9, 12)])


def test_partition_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    """A store does not quarantine or write over, what a newer backbone has written."""
    from tests.storage.test_partition import reseal

    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    store.flush()
    (path,) = partitions_in(tmp_path)
    newer = reseal(path.read_bytes().replace(b'"format":1', b'"format":2'))
    path.write_bytes(newer)
    again = open_store(tmp_path)
    with pytest.raises(StoreError, match="upgrade"):
        again.read(BTC, MINUTE, EVER)
    again.put(BTC, MINUTE, minutes(9, 10), span(9, 10), now_us=MAY)
    with pytest.raises(StoreError, match="upgrade"):
        again.flush()
    assert path.read_bytes() == newer


# -- threads and forks


def test_threads_that_write_and_read_one_partition_see_whole_pages(tmp_path: Path) -> None:
    """Readers find each page whole, rows with their coverage, while writers come and go."""
    clock = ManualClock(MAY)
    store = open_store(tmp_path, clock, memory_bytes=1 << 20)
    wrong: list[str] = []

    def write(worker: int) -> None:
        for n in range(worker, 120, 3):
            store.put(BTC, MINUTE, minutes(n * 10, n * 10 + 10), span(n * 10, n * 10 + 10), now_us=MAY)
            if n % 7 == 0:
                store.flush()

    def read() -> None:
        while not done.is_set():
            found = store.read(BTC, MINUTE, EVER)
            held = set(opens(found.table))
            covered = {t for a, b in found.covered for t in range(a, b, MINUTE_US)}
            if not covered <= held:
                wrong.append(f"{len(covered - held)} covered without rows")

    done = threading.Event()
    writers = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in writers + readers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    store.flush()
    assert wrong == []
    assert open_store(tmp_path).read(BTC, MINUTE, EVER).covered == SpanSet([span(0, 1200)])
    assert store.verify() == []


@needs_fork
def test_forked_child_neither_writes_the_parents_pages_nor_waits_for_its_locks(tmp_path: Path) -> None:
    """Pending pages are the parent's; the child starts with fresh locks and can write its own."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    locks = [store._pending._lock, store._periods._memory._lock]
    for lock in locks:
        lock.acquire()

    def child() -> bool:
        if store.pending_rows() or store.coverage(BTC, MINUTE, EVER):
            return False
        store.put(ETH, MINUTE, minutes(0, 3), span(0, 3), now_us=MAY)
        store.close()
        return True

    try:
        assert in_child(child)
    finally:
        for lock in locks:
            lock.release()
    assert open_store(tmp_path).series() == [(ETH, MINUTE)]
    store.flush()
    assert open_store(tmp_path).coverage(BTC, MINUTE, EVER) == SpanSet([span(0, 9)])


@needs_fork
def test_child_forked_while_a_series_is_locked_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A child that lives on does not block its parent's folder, nor wait for the lock it inherited."""
    store = open_store(tmp_path)
    key = store._series(BTC, MINUTE).lock_key
    with store._files.exclusive(key):
        child = os.fork()
        if child == 0:
            try:
                import time

                time.sleep(20)
            finally:
                os._exit(0)
    try:
        with open_store(tmp_path)._files.exclusive(key, timeout_s=2.0):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


# -- outside readers


def test_folder_is_read_by_other_engines_as_it_lies(tmp_path: Path) -> None:
    """pandas, Polars and Arrow find the same rows, with text partitions, while locks and sidecars
    exist.
    """
    import pandas as pd
    import polars as pl
    import pyarrow.dataset as ds

    store = open_store(tmp_path)
    june = 31 * 1440
    store.put(BTC, MINUTE, minutes(june - 5, june + 5), Span(0, MAY + (june + 5) * MINUTE_US), now_us=MAY)
    store.put(ETH, DAY, candles([MAY]), Span(MAY, MAY + 1440 * MINUTE_US), now_us=MAY)
    store.flush()
    folder = str(tmp_path / "candles")
    texts = ["exchange", "market", "timeframe", "period"]
    polars = pl.scan_parquet(folder, hive_partitioning=True).collect()
    assert polars.shape == (11, 11)
    assert [polars.schema[name] for name in texts] == [pl.String] * 4
    assert polars.schema["time"] == pl.Datetime("us", "UTC")
    assert polars.filter(pl.col("market") == BTC)["close"].to_list() == minutes(june - 5, june + 5)["close"].to_pylist()
    assert pd.read_parquet(folder).shape == (11, 11)
    assert ds.dataset(folder, partitioning="hive").to_table().num_rows == 11


def test_folder_is_read_by_duckdb_as_it_lies(tmp_path: Path) -> None:
    """DuckDB sees the partition values as text and every row once."""
    duckdb = pytest.importorskip("duckdb")
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 11), span(0, 11), now_us=MAY)
    store.flush()
    glob = f"{tmp_path}/candles/**/*.parquet"
    relation = duckdb.sql(f"select * from read_parquet('{glob}', hive_partitioning=true)")
    types = dict(zip(relation.columns, map(str, relation.types), strict=True))
    assert [types[name] for name in ("exchange", "market", "timeframe", "period")] == ["VARCHAR"] * 4
    assert relation.aggregate("count(*), count(distinct time)").fetchall() == [(11, 11)]


# -- against a model


class StoreMachine(RuleBasedStateMachine):
    """Two stores on one folder against a dictionary, with flushes, reopenings and damage in any order."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self._folder = tempfile.TemporaryDirectory()
        self.root = Path(self._folder.name)
        self.clock = ManualClock(MAY)
        self.stores = [open_store(self.root, self.clock) for _ in range(2)]
        self.disk: dict[int, Any] = {}
        self.pending: list[list[tuple[Span, dict[int, Any]]]] = [[], []]

    def teardown(self) -> None:
        self._folder.cleanup()

    @rule(
        who=st.integers(0, 1),
        start=st.integers(0, 60),
        length=st.integers(1, 25),
        every=st.integers(1, 9),
        salt=st.integers(0, 1),
    )
    def put(self, who: int, start: int, length: int, every: int, salt: int) -> None:
        first = 31 * 1440 - 30 + start  # across the end of May
        proof = span(first, first + length)
        table = minutes(first, first + length, salt, every=every)
        self.stores[who].put(BTC, MINUTE, table, proof, now_us=MAY)
        self.pending[who].append((proof, rows_of(table)))

    @rule(who=st.integers(0, 1))
    def flush(self, who: int) -> None:
        self.stores[who].flush()
        for page in self.pending[who]:
            self.apply(self.disk, page)
        self.pending[who] = []

    @rule(who=st.integers(0, 1))
    def crash(self, who: int) -> None:
        self.stores[who] = open_store(self.root, self.clock)
        self.pending[who] = []

    @precondition(lambda self: partitions_in(self.root))
    @rule(which=st.integers(0, 1), at=st.integers(4, 3000))
    def damage(self, which: int, at: int) -> None:
        paths = partitions_in(self.root)
        path = paths[which % len(paths)]
        corrupt(path, at % path.stat().st_size)
        border = MAY + 31 * 1440 * MINUTE_US
        is_may = path.parent.name.endswith("05")
        self.disk = {t: row for t, row in self.disk.items() if (t < border) is not is_may}

    @staticmethod
    def apply(held: dict[int, Any], page: tuple[Span, dict[int, Any]]) -> None:
        proof, rows = page
        for t in range(proof.start, proof.end, MINUTE_US):
            held[t] = rows.get(t)

    @invariant()
    def stores_agree_with_the_model(self) -> None:
        for store, pages in zip(self.stores, self.pending, strict=True):
            held = dict(self.disk)
            for page in pages:
                self.apply(held, page)
            found = store.read(BTC, MINUTE, EVER)
            assert rows_of(found.table) == {t: row for t, row in held.items() if row is not None}
            assert found.covered == SpanSet((t, t + MINUTE_US) for t in held)
            assert store.coverage(BTC, MINUTE, EVER) == found.covered

    @rule()
    def verify(self) -> None:
        assert [problem for problem in self.stores[0].verify() if problem.kind != "damaged"] == []


StoreMachine.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestStoreMachine = StoreMachine.TestCase


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=5),
    st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
@settings(deadline=None, max_examples=50)
def test_coverage_of_any_span_agrees_with_the_slots(pages: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    """For any question, exactly the candle opens that were proved are covered."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder))
        proved: set[int] = set()
        for first, length in pages:
            store.put(BTC, MINUTE, minutes(0, 0), span(first, first + length), now_us=MAY)
            proved |= set(range(first, first + length))
        question = Span(*sorted(MAY + n * MINUTE_US + 17 * (n % 3) for n in asked))
        slots = [n for n in range(70) if question.start <= MAY + n * MINUTE_US < question.end]
        for which in (store, store):
            found = which.coverage(BTC, MINUTE, question)
            assert [n for n in slots if found.holds(MAY + n * MINUTE_US)] == [n for n in slots if n in proved]
            assert all(question.start <= a and b <= question.end for a, b in found)
            if all(n in proved for n in slots) and question.start < question.end:
                assert found == SpanSet([question])
            store.flush()


def test_size_and_repr_show_what_is_held(tmp_path: Path) -> None:
    """Files, bytes and pending rows are countable, and the repr names the folder."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    assert store.size() == {"files": 0, "bytes": 0, "markets": 1, "pending_rows": 9}
    store.flush()
    size = store.size()
    assert (size["files"], size["pending_rows"]) == (1, 0)
    assert size["bytes"] == partitions_in(tmp_path)[0].stat().st_size
    assert store.paths(BTC, MINUTE, EVER) == partitions_in(tmp_path)
    assert str(tmp_path) in repr(store)
    assert "upbit" in repr(store)
    assert np.isfinite(size["bytes"])
    assert parse_timeframe("1m") is MINUTE


def test_others_have_their_turn_while_a_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may take long to make it last."""
    store = open_store(tmp_path)
    seen: list[bool] = []
    monkeypatch.setattr(store._files, "make_room", lambda key: seen.append(RUN_LOCK.is_held))
    with RUN_LOCK.running():
        store.make_room("KRW-BTC", MINUTE, MAY)
        seen.append(RUN_LOCK.is_held)
    assert seen == [False, True]
