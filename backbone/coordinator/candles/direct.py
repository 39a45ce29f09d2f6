"""Candles straight from the venue, past the store: the critical lane, the forming candle, what an audit compares with.

Pages are asked one after the other, by the same plan and the same rule of proof (`witness`) as all others. Nothing is
stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from backbone.candle_table import rows_inside, times_of
from backbone.coordinator.candles.pending import Pending
from backbone.coordinator.candles.planner import SeriesPlan
from backbone.coordinator.candles.ranges import CandleRanges, Range, Request, with_page
from backbone.coordinator.candles.reader import CandleAnswer, CandleReader, Fetched, out_of_reach
from backbone.coordinator.candles.witness import EARLIEST_US, FOREVER_US, Verdict, check, judge
from backbone.coordinator.units import compare_units, is_leap, leaps_between
from backbone.errors import PayloadError
from backbone.model import Priority, Span, empty_candles
from backbone.routing.wire import PAGE, CandlePage, candles_ask
from backbone.storage.coverage import EVER, SpanSet
from backbone.timeframe import Timeframe

__all__ = ["DirectCandles"]

_FAILURES = 3  # replies that are not valid, before it is given up

Streamed = Callable[[str, Timeframe, int, Priority], "pa.Table | None"]


@dataclass(frozen=True)
class _Lane:
    """Whose pages, and how urgent."""

    market: str
    timeframe: Timeframe
    priority: Priority


@dataclass(frozen=True)
class _Walk:
    """What was found: closed candles, how many requests they took, and the candles that are not closed; ``newest`` is
    the page of the newest candles as it came, where one was asked. Candles that open at or after ``closed_us`` were not
    closed when the first page arrived: `table` has none of them. ``lost`` is what the venue has forgotten."""

    table: pa.Table = field(default_factory=empty_candles)
    pages: int = 0
    forming: pa.Table | None = None
    newest: CandlePage | None = None
    closed_us: int = FOREVER_US
    lost: SpanSet = field(default_factory=SpanSet)


class DirectCandles:
    """Candles that storage has no part in.

    Parameters
    ----------
    request : sends one request in the lane of its priority and waits for its reply.
    streamed : the candles of a series that open at or after a time, where the live stream has them all; else None.
    """

    def __init__(
        self,
        request: Request,
        ranges: CandleRanges,
        reader: CandleReader,
        streamed: Streamed,
    ) -> None:
        self._request = request
        self._ranges = ranges
        self._reader = reader
        self._streamed = streamed

    def candles(self, market: str, timeframe: Timeframe, asked: Range) -> CandleAnswer:
        """The critical lane: what memory and disk hold in full, else straight from the venue, not stored."""
        lane = _Lane(market, timeframe, Priority.CRITICAL)
        held = self._held(lane, asked)
        if held is not None:
            return held
        end = FOREVER_US if asked.end_us is None else timeframe.ceil(asked.end_us)
        if asked.start_us is None:
            walk = self._walk(lane, Span(EARLIEST_US, end), asked.count)
        elif asked.count is None:
            start = timeframe.ceil(asked.start_us)
            walk = self._walk(lane, Span(min(start, end), end))
        else:
            walk = self._first(lane, timeframe.ceil(asked.start_us), end, asked.count)
        return self._answer(market, timeframe, asked, walk)

    def _held(self, lane: _Lane, asked: Range) -> CandleAnswer | None:
        """The answer from memory and disk, if they hold all of it up to what the venue's clock says now."""
        ends_now = asked.end_us is None or asked.end_us > self._reader.closed_before(lane.timeframe)
        held = self._ranges.recall([lane.market], lane.timeframe, asked)[0]
        if held.gaps or not ends_now or self._ranges.is_clock_fresh:
            return None if held.gaps else held
        page = self._page(lane, None, PAGE)  # it has the newest candles besides the time
        if not self._ranges.check_unit(lane.market, lane.timeframe, page, Priority.HIGH):
            return None
        held = self._ranges.recall([lane.market], lane.timeframe, asked)[0]
        return None if held.gaps else with_page(held, page)

    def _first(self, lane: _Lane, start: int, end: int, count: int) -> _Walk:
        """The first `count` candles from `start` on."""
        walk, slots = _Walk(), max(count, PAGE)
        while walk.table.num_rows < count and start < end:
            stop = min(end, lane.timeframe.next(start, slots))
            further = self._walk(lane, Span(start, stop))
            table = pa.concat_tables([walk.table, further.table])
            walk = _Walk(table, walk.pages + further.pages, closed_us=further.closed_us, lost=further.lost)
            slots, start = slots * 4, stop
            if stop >= walk.closed_us:
                break
            if walk.lost:  # which are the first is not known any more
                return replace(walk, closed_us=stop)
        return walk

    def _walk(self, lane: _Lane, span: Span, enough: int | None = None, changes: int = 0) -> _Walk:
        """The venue's closed candles of `span` (the newest `enough` at least).

        Newest first, page by page, until all is proven. What was not a valid reply is asked for again a few times.
        Raises the error tree.
        """
        timeframe, what = lane.timeframe, f"{lane.market} {lane.timeframe}"
        plan = SeriesPlan(timeframe, PAGE)
        lost = self._reader.forgotten(timeframe, SpanSet([span]))
        pending = Pending(lane.market, timeframe, span, lane.priority, SpanSet([span]) - lost)
        plan.add(pending)
        tables: list[pa.Table] = [empty_candles()]
        forming: list[pa.Table] = []
        newest: CandlePage | None = None
        oldest_us, rows, failures, proven, closed_us = None, 0, 0, SpanSet(), FOREVER_US
        while (page := plan.next_page(pending)) is not None:
            reply = self._page(lane, page.bound_us, page.count)
            times = times_of(reply.table)
            verdict = judge(page, reply.oldest_us, reply.rows)
            try:
                check(page, verdict, int(times[-1]) if len(times) else None, oldest_us, what)
            except PayloadError:
                failures += 1
                if failures >= _FAILURES:
                    raise
                plan.retract(page)
                continue
            if page.seeks:  # its row is not taken, so it proves nothing: the second reply has it
                verdict = Verdict(SpanSet())
            else:
                if proven and oldest_us is not None and self._is_other_unit(lane, tables[-1], reply.table):
                    changes += 1
                    if changes >= _FAILURES:
                        raise PayloadError(f"{what}: the venue's unit changes while its candles are fetched")
                    return self._walk(lane, span, enough, changes)
                lost = lost | self._reader.provable(timeframe, verdict.proof, reply.oldest_us)[1].clip(span)
                closed_us = min(closed_us, self._reader.closed_before(timeframe))
                closed = Span(span.start, min(span.end, closed_us))
                table = rows_inside(reply.table, verdict.proof - proven)
                oldest_us = int(times_of(table)[0]) if table.num_rows else oldest_us
                newest = reply if page.bound_us is None else newest
                if page.bound_us is None or forming:
                    forming.append(rows_inside(table, [Span(closed.end, EVER.end)]))
                table = rows_inside(table, [closed] if closed.start < closed.end else [])
                tables.append(table)
                rows, proven = rows + table.num_rows, proven | verdict.proof
            plan.settle(page, verdict, reply.rows, anchor_us=None if verdict.edge_us is None else oldest_us)
            if enough is not None and rows >= enough:
                lost = SpanSet()
                break
        behind = pa.concat_tables(forming[::-1]) if forming else None
        return _Walk(pa.concat_tables(tables[::-1]), pending.pages, behind, newest, closed_us, lost)

    def _is_other_unit(self, lane: _Lane, newer: pa.Table, older: pa.Table) -> bool:
        """Whether an older page of a walk is of another unit than the newer one. Where the prices between them are far
        apart, a page that shows candles of both is asked, which decides."""
        older = rows_inside(older, [Span(EVER.start, int(times_of(newer)[0]))] if newer.num_rows else [])
        if not leaps_between(older, newer):
            return False
        again = self._page(lane, lane.timeframe.next(int(times_of(newer)[0])), PAGE).table
        return compare_units(newer, again).factor is not None or compare_units(older, again).factor is not None

    def _page(self, lane: _Lane, to_us: int | None, count: int) -> CandlePage:
        ask = candles_ask(lane.market, lane.timeframe, to_us, count)
        page: CandlePage = self._request(ask, lane.priority).value
        return page

    def _answer(self, market: str, timeframe: Timeframe, asked: Range, walk: _Walk) -> CandleAnswer:
        end = asked.closed_end(timeframe, min(walk.closed_us, self._reader.closed_before(timeframe)))
        start, table, times = end, walk.table, times_of(walk.table)
        if asked.start_us is not None:
            start = timeframe.ceil(asked.start_us)
            table = table.slice(int(np.searchsorted(times, start)))
        elif len(times):
            start = int(times[0])
        if asked.count is not None and asked.start_us is None and walk.lost:
            start = timeframe.next(start, table.num_rows - asked.count)  # so many more are not known
        table, span = asked.cut(table, timeframe, Span(min(start, end), end))
        gaps = walk.lost.clip(span)
        unknown = sum(timeframe.count(gap) for gap in gaps)
        quiet = max(0, timeframe.count(span) - unknown - table.num_rows)
        sources = {"rest": table.num_rows} if table.num_rows else {}
        fetched = Fetched(pages=walk.pages)
        causes = (out_of_reach(gaps.spans[0].start),) if gaps else ()
        return CandleAnswer(
            market, span, table, quiet, unknown, sources, tuple(gaps), causes, fetched, walk.forming
        )  # fmt: skip

    def forming(
        self,
        market: str,
        timeframe: Timeframe,
        after_us: int,
        before_us: int | None,
        priority: Priority,
        last_close: float | None = None,
    ) -> tuple[pa.Table, str]:
        """The candles that open at or after `after_us` and are not closed yet, and their source; never stored.

        The stream answers if it has them all, was received just now, and begins near `last_close`, the price before
        them. Otherwise REST answers: with one page, where that reaches back to `after_us`. If the page is of another
        unit than what is held, the held candles are quarantined.
        """
        table, source = self._streamed(market, timeframe, after_us, priority), "stream"
        if table is not None and table.num_rows and last_close is not None:
            is_near = not is_leap(last_close, table.column("open")[0].as_py())
            table = table if is_near else None  # a page shows what is held as well
        if table is None:
            source = "rest"
            walk = self._walk(_Lane(market, timeframe, priority), Span(after_us, FOREVER_US))
            table = walk.table if walk.forming is None else pa.concat_tables([walk.table, walk.forming])
            if walk.newest is not None:
                lower = Priority.HIGH if priority is Priority.CRITICAL else priority
                self._ranges.check_unit(market, timeframe, walk.newest, lower)
        times = times_of(table)
        first = int(np.searchsorted(times, after_us))
        last = len(times) if before_us is None else int(np.searchsorted(times, before_us))
        return table.slice(first, max(0, last - first)), source

    def unstored(self, market: str, timeframe: Timeframe, span: Span, priority: Priority) -> pa.Table:
        """The venue's own closed candles of `span`: what an audit compares with.

        Raises `InputError` where the venue has forgotten some of them: nothing can be compared with those.
        """
        walk = self._walk(_Lane(market, timeframe, priority), span)
        if walk.lost:
            raise out_of_reach(walk.lost.spans[0].start)
        return walk.table
