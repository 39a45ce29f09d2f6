"""Candles straight from the venue, past the store: the critical lane, the forming candle, what an audit compares with.

Pages are asked one after the other and nothing is stored.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from backbone.candle_table import times_of
from backbone.coordinator.candles.ranges import CandleRanges, Range
from backbone.coordinator.candles.reader import CandleAnswer, CandleReader, Fetched
from backbone.model import Priority, Span, empty_candles
from backbone.routing.rest import Reply
from backbone.routing.wire import PAGE, Ask, CandlePage, candles_ask
from backbone.storage.coverage import SpanSet
from backbone.timeframe import Timeframe

__all__ = ["DirectCandles"]

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
        tables: list[pa.Table] = []
        to_us, rows, pages = asked.end_us, 0, 0
        while True:
            page = self._page(market, timeframe, to_us, PAGE, Priority.CRITICAL)
            closed = self._reader.closed_before(timeframe)
            table = page.table.slice(0, int(np.searchsorted(times_of(page.table), closed)))
            tables.append(table)
            pages, rows = pages + 1, rows + table.num_rows
            begun = page.rows < PAGE
            reached = page.oldest_us is None or (asked.start_us is not None and page.oldest_us <= asked.start_us)
            if begun or reached or (asked.start_us is None and asked.count is not None and rows >= asked.count):
                break
            to_us = page.oldest_us
        return self._answer(market, timeframe, asked, pa.concat_tables(tables[::-1]), pages)

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
        """The venue's own candles of `span`: what an audit compares with."""
        tables: list[pa.Table] = []
        to_us = span.end
        while to_us > span.start:
            count = min(PAGE, timeframe.count(Span(span.start, to_us)))
            page = self._page(market, timeframe, to_us, count, priority)
            tables.append(page.table)
            if page.oldest_us is None or page.rows < page.asked_count:
                break
            to_us = page.oldest_us
        table = pa.concat_tables([empty_candles(), *tables[::-1]])
        return table.slice(int(np.searchsorted(times_of(table), span.start)))
