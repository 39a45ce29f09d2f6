"""The three ways to say which candles: a span, the newest so many, the first so many. Several markets at once.

A span's end is cut to what is closed on the venue's clock. While that clock is not known, only the machine's is, which
may be hours off; and both clocks of a machine may have stood still together. So an answer that ends now rests on a
reply of the last seconds: of the pages that were asked or, where nothing was missing, of one small request; and where
that moves the end, the range is read once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import msgspec
import pyarrow as pa
from msgspec.structs import replace

from backbone.candle_table import rows_inside, times_of
from backbone.clock import VenueClock, current_deadline
from backbone.coordinator.candles.fetcher import CandleFetcher
from backbone.coordinator.candles.pending import Pending, Progress
from backbone.coordinator.candles.reader import CandleAnswer, Fetched, Reach, with_cost
from backbone.coordinator.candles.witness import shows_since
from backbone.errors import PayloadError
from backbone.model import Priority, Span
from backbone.routing.rest import Reply
from backbone.routing.wire import PAGE, Ask, CandlePage, candles_ask
from backbone.storage.coverage import EVER, SpanSet
from backbone.timeframe import Timeframe

__all__ = ["CandleRanges", "Range", "Request", "Watch", "with_page"]

_CHANGES = 5  # times a range is collected anew because what was stored was quarantined meanwhile
_FRESH_S = 2.0  # an answer that ends now rests on a venue clock that was received within so many seconds


class Range(msgspec.Struct, frozen=True):
    """Any two of start, end and count; a missing end is now."""

    start_us: int | None
    end_us: int | None
    count: int | None

    def closed_end(self, timeframe: Timeframe, closed_us: int) -> int:
        """Where it ends on the timeframe's grid, at the latest with what is closed."""
        return closed_us if self.end_us is None else min(closed_us, timeframe.ceil(self.end_us))

    def cut(self, table: pa.Table, timeframe: Timeframe, span: Span) -> tuple[pa.Table, Span]:
        """The first or the newest `count` rows of a table that covers `span`, and the span that those fill."""
        if self.count is None or table.num_rows < self.count:
            return table, span
        if self.start_us is None:
            table = table.slice(table.num_rows - self.count)
            return table, Span(int(times_of(table)[0]), span.end)
        table = table.slice(0, self.count)
        return table, Span(span.start, timeframe.next(int(times_of(table)[-1])))


class Watch(Protocol):
    """Something that shows progress on the caller's thread."""

    def update(self) -> None: ...


Request = Callable[[Ask, Priority], Reply]
Watcher = Callable[[Callable[[], Progress]], AbstractContextManager[Watch]]


class _Call(msgspec.Struct, frozen=True):
    """How a range is collected, whatever part of it: see `CandleRanges.collect`."""

    timeframe: Timeframe
    priority: Priority
    watcher: Watcher | None = None
    forming: bool = False
    refresh: bool = False


class CandleRanges:
    """Answers ranges with the fetcher's spans.

    `request` sends one request and waits for its reply: each reply has the venue's time.
    """

    def __init__(self, fetcher: CandleFetcher, venue: VenueClock, request: Request) -> None:
        self._fetcher = fetcher
        self._reader = fetcher.reader
        self._venue = venue
        self._request = request

    def collect(
        self,
        markets: Sequence[str],
        timeframe: Timeframe,
        asked: Range,
        priority: Priority,
        watcher: Watcher | None = None,
        *,
        forming: bool = False,
        refresh: bool = False,
    ) -> list[CandleAnswer]:
        """The candles of each market; what could not be had is in each answer's ``gaps``.

        What has not arrived by the deadline of the block that the thread is in (`within`) is given up.

        Parameters
        ----------
        forming : the newest page is asked so that it brings the candles that are not closed yet, where one is asked.
        refresh : what is held is asked again as well.
        """
        call = _Call(timeframe, priority, watcher, forming)
        answers: list[CandleAnswer] = []
        before = self._fetcher.units.warn(markets)
        for _ in range(_CHANGES):
            answers = with_cost(self._collected(markets, timeframe, asked, call, refresh), answers)
            now = self._fetcher.units.warn(markets)
            if now == before:
                return answers
            before = now  # rows from before are gone from the store: nothing of them is shown
        raise PayloadError(f"{', '.join(markets)}: the venue's unit changes faster than the candles can be fetched")

    def _collected(
        self, markets: Sequence[str], timeframe: Timeframe, asked: Range, call: _Call, refresh: bool
    ) -> list[CandleAnswer]:
        ends_now = asked.end_us is None or asked.end_us > self._reader.closed_before(timeframe)
        is_stale, end_us = not self.is_clock_fresh, self._end(timeframe, asked)
        answers = self._collect(markets, asked, call)
        if is_stale and ends_now and not any(a.gaps for a in answers):
            page = self._newest_page(markets[0], call) if markets and not self.is_clock_fresh else None
            if page is not None:
                self.check_unit(markets[0], timeframe, page, call.priority)
            if self._end(timeframe, asked) != end_us:
                again = self._collect(markets, asked, call)
                answers = [second.after(first) for first, second in zip(answers, again, strict=True)]
            if page is not None:
                answers[0] = with_page(answers[0], page)
        return self._refreshed(answers, call) if refresh else answers

    def check_unit(self, market: str, timeframe: Timeframe, page: CandlePage, priority: Priority) -> bool:
        """Whether a page that no fetch asked for is of the same unit as what is held.

        Where it seems to be of another, its span is fetched again: that decides, and quarantines the old unit.
        """
        if not self._fetcher.units.is_other_unit(market, timeframe, page.table):
            return True
        times, before = times_of(page.table), self._fetcher.units.generation(market)
        call = _Call(timeframe, priority, refresh=True)
        self._fetch([(market, Span(int(times[0]), self._reader.closed_before(timeframe)))], call)
        return self._fetcher.units.generation(market) == before

    @property
    def is_clock_fresh(self) -> bool:
        """Whether the venue's clock was received within the last seconds."""
        return self._venue.age_s <= _FRESH_S

    def _newest_page(self, market: str, call: _Call) -> CandlePage:
        """A small request that says what time it is at the venue; a page, where that is wanted anyway."""
        ask = candles_ask(market, call.timeframe, None, PAGE if call.forming else 1)
        page: CandlePage = self._request(ask, call.priority).value
        return page

    def _refreshed(self, answers: Sequence[CandleAnswer], call: _Call) -> list[CandleAnswer]:
        """The same spans with what had been held asked again: what differs is a revision."""
        call = replace(call, refresh=True)
        parts = [(answer.market, span) for answer in answers for span in SpanSet([answer.span]) - answer.fetched.spans]
        pendings = self._fetch(parts, call)
        found = []
        for answer in answers:
            mine = [pending for pending in pendings if pending.market == answer.market]
            fetched = sum((pending.fetched for pending in mine), answer.fetched)
            now = self._reader.recall(answer.market, call.timeframe, answer.span, fetched)
            lost = SpanSet(answer.gaps)
            for pending in mine:
                lost = lost | pending.lacking()
            causes = (*answer.causes, *(cause for pending in mine for cause in pending.causes))
            unknown = sum(call.timeframe.count(span) for span in lost)
            found.append(replace(now, gaps=tuple(lost), causes=causes, unknown=unknown, forming=answer.forming))
        return found

    def recall(
        self, markets: Sequence[str], timeframe: Timeframe, asked: Range, *, newest_held: bool = False
    ) -> list[CandleAnswer]:
        """The same from the store alone; what is unknown is in ``gaps``.

        With `newest_held` the newest so many end with what is held, and what lies behind is in ``behind``.
        """
        if asked.count is not None:
            return [self._recall(market, timeframe, asked, asked.count, newest_held) for market in markets]
        end = self._end(timeframe, asked)
        span = Span(min(timeframe.ceil(asked.start_us or 0), end), end)
        wanted = [(market, span) for market in markets]
        return [self._reader.recall(market, timeframe, span) for market, span in self._reader.ahead(timeframe, wanted)]

    def _recall(self, market: str, timeframe: Timeframe, asked: Range, count: int, newest_held: bool) -> CandleAnswer:
        end = self._end(timeframe, asked)
        if asked.start_us is None:
            held_us = self._reader.held_until(market, timeframe, end) if newest_held else end
            reach = self._reader.reach_back(market, timeframe, held_us, count)
            further = self._further(market, timeframe, reach)
            start = reach.known.start if further is None else further.start
            answer = self._reader.recall(market, timeframe, Span(start, held_us))
            return answer if held_us >= end else replace(answer, behind=Span(held_us, end))
        start, slots = timeframe.ceil(asked.start_us), count
        while True:
            stop = min(end, timeframe.next(start, slots))
            answer = self._reader.recall(market, timeframe, Span(min(start, stop), stop))
            if answer.gaps or stop >= end or answer.table.num_rows >= count:
                return self._first_rows(answer, timeframe, count)
            slots *= 4

    def _collect(self, markets: Sequence[str], asked: Range, call: _Call) -> list[CandleAnswer]:
        timeframe, end = call.timeframe, self._end(call.timeframe, asked)
        call = replace(call, forming=call.forming and asked.end_us is None)
        if asked.start_us is None and asked.count is not None:
            return self._newest(markets, end, asked.count, call)
        start = timeframe.ceil(asked.start_us or 0)
        if asked.count is None:
            span = Span(min(start, end), end)
            return [self._fetcher.answer(p) for p in self._fetch([(market, span) for market in markets], call)]
        return [self._first(market, start, asked.count, call) for market in markets]

    def _end(self, timeframe: Timeframe, asked: Range) -> int:
        return asked.closed_end(timeframe, self._reader.closed_before(timeframe))

    def _fetch(self, wanted: Sequence[tuple[str, Span]], call: _Call, *, enough: int | None = None) -> list[Pending]:
        """Fetch several spans at once and wait for all; flushed, so that what is answered is durable."""
        pendings: list[Pending] = []
        closed = self._reader.closed_before(call.timeframe)
        try:
            for market, span in self._reader.ahead(call.timeframe, wanted):
                pending = Pending(market, call.timeframe, span, call.priority, enough=enough, refresh=call.refresh)
                pending.newest = call.forming and span.end >= closed
                pendings.append(self._fetcher.begin(pending))
            with nullcontext() if call.watcher is None else call.watcher(lambda: _together(pendings)) as watch:
                for pending in pendings:
                    self._fetcher.wait(pending, None if watch is None else watch.update, deadline=current_deadline())
        finally:
            for pending in pendings:
                self._fetcher.release(pending)
            self._fetcher.flush([pending.market for pending in pendings if pending.rows], call.timeframe)
        for pending in pendings:
            if pending.store_error is not None:
                raise pending.store_error
        return pendings

    # -- the newest so many --------------------------------------------------------------------------------------

    def _newest(self, markets: Sequence[str], end_us: int, count: int, call: _Call) -> list[CandleAnswer]:
        timeframe = call.timeframe
        forming: dict[str, pa.Table | None] = dict.fromkeys(markets)
        answers: dict[str, CandleAnswer] = {}
        fetched = dict.fromkeys(markets, Fetched())
        ends = dict.fromkeys(markets, end_us)
        open_markets = list(markets)
        while True:
            wanted: list[tuple[str, Span]] = []
            for market in open_markets:
                reach = self._reader.reach_back(market, timeframe, ends[market], count)
                further = self._further(market, timeframe, reach)
                if further is None:
                    answers[market] = self._reader.recall(market, timeframe, reach.known, fetched[market])
                else:
                    to_now = Span(further.start, ends[market])
                    is_one_page = call.forming and forming[market] is None and timeframe.count(to_now) < PAGE
                    wanted.append((market, to_now if is_one_page else further))
            if not wanted:
                break
            open_markets = []
            for pending in self._fetch(wanted, call, enough=count):
                market = pending.market
                forming[market] = forming[market] if pending.forming is None else pending.forming
                ends[market] = min(ends[market], pending.closed_us)
                if pending.failed:
                    whole = Span(pending.span.start, end_us)
                    answers[market] = self._fetcher.answer(pending, whole, fetched[market])
                else:
                    open_markets.append(market)
                fetched[market] += pending.fetched
        return [replace(answers[market], forming=forming[market]) for market in markets]

    def _further(self, market: str, timeframe: Timeframe, reach: Reach) -> Span | None:
        """The span before what is known that should hold the rows that are wanted; None where nothing is wanted."""
        if not reach.short:
            return None
        slots = self._fetcher.slots_for(market, timeframe, reach.short)
        start = timeframe.next(timeframe.floor(reach.known.start), -slots)
        return Span(max(self._reader.quiet_before(market, timeframe), start), reach.known.start)

    # -- the first so many ---------------------------------------------------------------------------------------

    def _first(self, market: str, start_us: int, count: int, call: _Call) -> CandleAnswer:
        timeframe = call.timeframe
        slots, end = count, start_us
        closed = self._reader.closed_before(timeframe)
        fetched = Fetched()
        while True:
            end = max(start_us, min(closed, timeframe.next(end, slots)))
            (pending,) = self._fetch([(market, Span(start_us, end))], call)
            closed = min(closed, pending.closed_us)
            if pending.failed:
                return self._fetcher.answer(pending, fetched=fetched)
            fetched += pending.fetched
            end = max(start_us, min(end, closed))
            answer = self._reader.recall(market, timeframe, Span(start_us, end), fetched)
            short = count - answer.table.num_rows
            if short <= 0 or end >= closed:
                return self._first_rows(answer, timeframe, count)
            seen = timeframe.count(Span(start_us, end))
            slots = min(self._fetcher.slots_for(market, timeframe, short), 4 * max(seen, count))

    def _first_rows(self, answer: CandleAnswer, timeframe: Timeframe, count: int) -> CandleAnswer:
        """`answer` cut behind its first `count` rows."""
        if answer.table.num_rows <= count:
            return answer
        span = Span(answer.span.start, timeframe.next(int(times_of(answer.table)[count - 1])))
        return self._reader.recall(answer.market, timeframe, span, answer.fetched)


def with_page(answer: CandleAnswer, page: CandlePage) -> CandleAnswer:
    """An answer at the cost of one page more, and with the candles behind it that the page shows."""
    is_shown = shows_since(answer.span.end, page.oldest_us)
    forming = rows_inside(page.table, [Span(answer.span.end, EVER.end)]) if is_shown else answer.forming
    return replace(answer, forming=forming, fetched=answer.fetched + Fetched(pages=1))


def _together(pendings: Sequence[Pending]) -> Progress:
    parts = [pending.progress() for pending in pendings]
    return Progress(
        sum(p.done_slots for p in parts),
        sum(p.total_slots for p in parts),
        sum(p.pages for p in parts),
        sum(p.rows for p in parts),
        min((p.reached_us for p in parts), default=0),
        all(p.ascending for p in parts),
    )
