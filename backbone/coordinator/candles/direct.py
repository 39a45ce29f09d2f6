"""Candles straight from the venue, past the store: the critical lane, the forming candle, what an audit compares with.

Pages are asked one after the other, by the same plan and the same rule about silence as every other, and nothing is
stored.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from backbone.candle_table import rows_inside, times_of
from backbone.coordinator.candles.pending import Pending
from backbone.coordinator.candles.planner import SeriesPlan
from backbone.coordinator.candles.ranges import CandleRanges, Range
from backbone.coordinator.candles.reader import CandleAnswer, CandleReader, Fetched
from backbone.coordinator.candles.witness import EARLIEST_US, FOREVER_US, check, judge
from backbone.errors import PayloadError
from backbone.model import Priority, Span, empty_candles
from backbone.routing.rest import Reply
from backbone.routing.wire import PAGE, Ask, CandlePage, candles_ask
from backbone.storage.coverage import SpanSet
from backbone.timeframe import Timeframe

__all__ = ["DirectCandles"]

_FAILURES = 3  # replies that are not valid, before it is given up

Streamed = Callable[[str, Timeframe, int, Priority], "pa.Table | None"]


class DirectCandles:
    """Candles that storage has no part in.

    Parameters
    ----------
    request : sends one request in the lane of its priority and waits for its reply.
    streamed : the candles of a series that open at or after a time, where the live stream has them all; else None.
    """

    def __init__(
        self,
        request: Callable[[Ask, Priority], Reply],
        ranges: CandleRanges,
        reader: CandleReader,
        streamed: Streamed,
        *,
        grace_s: float,
    ) -> None:
        self._request = request
        self._ranges = ranges
        self._reader = reader
        self._streamed = streamed
        self._grace_us = int(grace_s * 1e6)

    def candles(self, market: str, timeframe: Timeframe, asked: Range) -> CandleAnswer:
        """The critical lane: what memory and disk hold in full, else straight from the venue, not stored."""
        held = self._ranges.recall([market], timeframe, asked)[0]
        if not held.gaps:
            return held
        end = FOREVER_US if asked.end_us is None else timeframe.ceil(asked.end_us)
        if asked.start_us is None:
            span, enough = Span(EARLIEST_US, end), asked.count
            table, pages = self._walk(market, timeframe, span, Priority.CRITICAL, enough)
        elif asked.count is None:
            start = timeframe.ceil(asked.start_us)
            table, pages = self._walk(market, timeframe, Span(min(start, end), end), Priority.CRITICAL)
        else:
            table, pages = self._first(market, timeframe, timeframe.ceil(asked.start_us), end, asked.count)
        return self._answer(market, timeframe, asked, table, pages)

    def _first(self, market: str, timeframe: Timeframe, start: int, end: int, count: int) -> tuple[pa.Table, int]:
        """The first `count` candles from `start` on."""
        tables, pages, rows, slots = [empty_candles()], 0, 0, max(count, PAGE)
        while rows < count and start < end:
            stop = min(end, timeframe.next(start, slots))
            table, took = self._walk(market, timeframe, Span(start, stop), Priority.CRITICAL)
            tables.append(table)
            pages, rows, slots, start = pages + took, rows + table.num_rows, slots * 4, stop
            if stop >= self._reader.closed_before(timeframe):
                break
        return pa.concat_tables(tables), pages

    def _walk(
        self, market: str, timeframe: Timeframe, span: Span, priority: Priority, enough: int | None = None
    ) -> tuple[pa.Table, int]:
        """The venue's closed candles of `span` (the newest `enough` at least), and how many requests they took.

        Newest first, page by page, until all is proven. What was not a valid reply is asked for again a few times.
        Raises the error tree.
        """
        plan = SeriesPlan(timeframe, PAGE)
        pending = Pending(market, timeframe, span, priority, SpanSet([span]))
        plan.add(pending)
        tables: list[pa.Table] = [empty_candles()]
        oldest_us, rows, failures, proven = None, 0, 0, SpanSet()
        while (page := plan.next_page(pending)) is not None:
            reply = self._page(market, timeframe, page.bound_us, page.count, priority)
            times = times_of(reply.table)
            verdict = judge(page, reply.oldest_us, reply.rows)
            try:
                check(page, verdict, int(times[-1]) if len(times) else None, oldest_us, f"{market} {timeframe}")
            except PayloadError:
                failures += 1
                if failures >= _FAILURES:
                    raise
                plan.retract(page)
                continue
            if not page.seeks:
                closed = Span(span.start, min(span.end, self._reader.closed_before(timeframe)))
                table = rows_inside(reply.table, verdict.proof - proven)
                oldest_us = int(times_of(table)[0]) if table.num_rows else oldest_us
                table = rows_inside(table, [closed] if closed.start < closed.end else [])
                tables.append(table)
                rows, proven = rows + table.num_rows, proven | verdict.proof
            plan.settle(page, verdict, reply.rows, anchor_us=None if verdict.edge_us is None else oldest_us)
            if enough is not None and rows >= enough:
                break
        return pa.concat_tables(tables[::-1]), pending.pages

    def _page(self, market: str, timeframe: Timeframe, to_us: int | None, count: int, priority: Priority) -> CandlePage:
        page: CandlePage = self._request(candles_ask(market, timeframe, to_us, count), priority).value
        return page

    def _answer(self, market: str, timeframe: Timeframe, asked: Range, table: pa.Table, pages: int) -> CandleAnswer:
        times = times_of(table)
        start = 0 if asked.start_us is None else int(np.searchsorted(times, asked.start_us))
        table = table.slice(start)
        if asked.count is not None:
            table = (
                table.slice(0, asked.count)
                if asked.start_us is not None
                else table.slice(max(0, table.num_rows - asked.count))
            )
        times = times_of(table)
        closed = self._reader.closed_before(timeframe)
        end = closed if asked.end_us is None else min(closed, timeframe.ceil(asked.end_us))
        if asked.start_us is not None:
            span = Span(min(timeframe.ceil(asked.start_us), end), end)
            if asked.count is not None and len(times) == asked.count:
                span = Span(span.start, timeframe.next(int(times[-1])))
        else:
            span = Span(int(times[0]) if len(times) else end, end)
        quiet = max(0, timeframe.count(span) - len(times))
        sources = {"rest": len(times)} if len(times) else {}
        return CandleAnswer(market, span, table, quiet, 0, sources, fetched=Fetched(SpanSet(), SpanSet(), pages))

    def forming(
        self, market: str, timeframe: Timeframe, after_us: int, before_us: int | None, priority: Priority
    ) -> tuple[pa.Table, str]:
        """The candles that open at or after `after_us` and are not closed yet, and where from; never stored.

        The stream answers where it has them all and was received just now, otherwise REST.
        """
        table, source = self._streamed(market, timeframe, after_us, priority), "stream"
        if table is None:
            grace_slots = self._grace_us // timeframe.step_us
            table, source = self._page(market, timeframe, None, 3 + grace_slots, priority).table, "rest"
        times = times_of(table)
        first = int(np.searchsorted(times, after_us))
        last = len(times) if before_us is None else int(np.searchsorted(times, before_us))
        return table.slice(first, max(0, last - first)), source

    def unstored(self, market: str, timeframe: Timeframe, span: Span, priority: Priority) -> pa.Table:
        """The venue's own closed candles of `span`: what an audit compares with."""
        return self._walk(market, timeframe, span, priority)[0]
