"""The three ways to say which candles: a span, the newest so many, the first so many. Several markets at once.

A span's end is cut to what is closed on the venue's clock. While that clock is not known (before the first reply, and
after this machine slept), only the machine's is, which may be hours off; so a range that ends now is read once more
when the venue's clock is known, from the pages that were asked or, where nothing was missing, by a small request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from backbone.candle_table import times_of
from backbone.clock import VenueClock
from backbone.coordinator.candles.fetcher import CandleFetcher
from backbone.coordinator.candles.pending import Pending, Progress
from backbone.coordinator.candles.reader import CandleAnswer, Fetched, Reach
from backbone.model import Priority, Span
from backbone.timeframe import Timeframe

__all__ = ["CandleRanges", "Range", "Watch"]


@dataclass(frozen=True)
class Range:
    """Any two of start, end and count; a missing end is now."""

    start_us: int | None
    end_us: int | None
    count: int | None


class Watch(Protocol):
    """Something that shows progress on the caller's thread."""

    def update(self) -> None: ...


Watcher = Callable[[Callable[[], Progress]], AbstractContextManager[Watch]]


class _Unwatched:
    def update(self) -> None:
        """Nothing is shown."""


def unwatched(_: Callable[[], Progress]) -> AbstractContextManager[Watch]:
    """The watcher of a call without a progress display."""
    return nullcontext(_Unwatched())


class CandleRanges:
    """Answers ranges with the fetcher's spans."""

    def __init__(self, fetcher: CandleFetcher, venue: VenueClock, sync_clock: Callable[[], object]) -> None:
        self._fetcher = fetcher
        self._reader = fetcher.reader
        self._venue = venue
        self._sync_clock = sync_clock  # any request will do: each reply has the time

    def collect(
        self,
        markets: Sequence[str],
        timeframe: Timeframe,
        asked: Range,
        priority: Priority,
        watcher: Watcher = unwatched,
    ) -> list[CandleAnswer]:
        """The candles of each market; what could not be had is in each answer's ``gaps``."""
        was_known = self._venue.is_known
        answers = self._collect(markets, timeframe, asked, priority, watcher)
        ends_now = asked.end_us is None or asked.end_us > self._reader.closed_before(timeframe)
        if not was_known and ends_now and not any(a.gaps for a in answers):
            if not self._venue.is_known:
                self._sync_clock()
            again = self._collect(markets, timeframe, asked, priority, watcher)
            return [second.after(first) for first, second in zip(answers, again, strict=True)]
        return answers

    def recall(self, markets: Sequence[str], timeframe: Timeframe, asked: Range) -> list[CandleAnswer]:
        """The same from the store alone; what is unknown is in ``gaps``."""
        return [self._recall(market, timeframe, asked) for market in markets]

    def _recall(self, market: str, timeframe: Timeframe, asked: Range) -> CandleAnswer:
        end = self._end(timeframe, asked)
        if asked.count is None:
            start = timeframe.ceil(asked.start_us or 0)
            return self._reader.recall(market, timeframe, Span(min(start, end), end))
        if asked.start_us is None:
            reach = self._reader.reach_back(market, timeframe, end, asked.count)
            further = self._further(market, timeframe, reach)
            start = reach.known.start if further is None else further.start
            return self._reader.recall(market, timeframe, Span(start, end))
        start, slots = timeframe.ceil(asked.start_us), asked.count
        while True:
            stop = min(end, timeframe.next(start, slots))
            answer = self._reader.recall(market, timeframe, Span(min(start, stop), stop))
            if answer.gaps or stop >= end or answer.table.num_rows >= asked.count:
                return self._first_rows(answer, timeframe, asked.count)
            slots *= 4

    def _collect(
        self, markets: Sequence[str], timeframe: Timeframe, asked: Range, priority: Priority, watcher: Watcher
    ) -> list[CandleAnswer]:
        if asked.count is None:
            start = timeframe.ceil(asked.start_us or 0)
            return self._spans(markets, timeframe, Span(start, self._end(timeframe, asked)), priority, watcher)
        if asked.start_us is None:
            return self._newest(markets, timeframe, self._end(timeframe, asked), asked.count, priority, watcher)
        start = timeframe.ceil(asked.start_us)
        return [self._first(market, timeframe, start, asked.count, priority, watcher) for market in markets]

    def _end(self, timeframe: Timeframe, asked: Range) -> int:
        closed = self._reader.closed_before(timeframe)
        return closed if asked.end_us is None else min(closed, timeframe.ceil(asked.end_us))

    # -- a span --------------------------------------------------------------------------------------------------

    def _spans(
        self, markets: Sequence[str], timeframe: Timeframe, span: Span, priority: Priority, watcher: Watcher
    ) -> list[CandleAnswer]:
        span = Span(min(span.start, span.end), span.end)
        pendings = self._fetch([(market, span) for market in markets], timeframe, priority, watcher)
        return [self._fetcher.answer(pending) for pending in pendings]

    def _fetch(
        self,
        wanted: Sequence[tuple[str, Span]],
        timeframe: Timeframe,
        priority: Priority,
        watcher: Watcher,
        *,
        enough: int | None = None,
    ) -> list[Pending]:
        """Fetch several spans at once and wait for all; flushed, so that what is answered is durable."""
        pendings: list[Pending] = []
        try:
            for market, span in wanted:
                pendings.append(self._fetcher.begin(market, timeframe, span, priority, enough=enough))
            with watcher(lambda: _together(pendings)) as watch:
                for pending in pendings:
                    self._fetcher.wait(pending, watch.update)
        finally:
            for pending in pendings:
                self._fetcher.release(pending)
            self._fetcher.flush([pending.market for pending in pendings if pending.rows], timeframe)
        for pending in pendings:
            if pending.store_error is not None:
                raise pending.store_error
        return pendings

    # -- the newest so many --------------------------------------------------------------------------------------

    def _newest(
        self,
        markets: Sequence[str],
        timeframe: Timeframe,
        end_us: int,
        count: int,
        priority: Priority,
        watcher: Watcher,
    ) -> list[CandleAnswer]:
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
                    wanted.append((market, further))
            if not wanted:
                break
            open_markets = []
            for pending in self._fetch(wanted, timeframe, priority, watcher, enough=count):
                market = pending.market
                ends[market] = min(ends[market], pending.closed_us)
                if pending.failed:
                    whole = Span(pending.span.start, end_us)
                    answers[market] = self._fetcher.answer(pending, whole, fetched[market])
                else:
                    open_markets.append(market)
                fetched[market] += pending.fetched
        return [answers[market] for market in markets]

    def _further(self, market: str, timeframe: Timeframe, reach: Reach) -> Span | None:
        """The span before what is known that should hold the rows that are wanted; None where nothing is wanted."""
        if not reach.short:
            return None
        slots = self._fetcher.slots_for(market, timeframe, reach.short)
        start = timeframe.next(timeframe.floor(reach.known.start), -slots)
        return Span(max(self._reader.quiet_before(market, timeframe), start), reach.known.start)

    # -- the first so many ---------------------------------------------------------------------------------------

    def _first(
        self, market: str, timeframe: Timeframe, start_us: int, count: int, priority: Priority, watcher: Watcher
    ) -> CandleAnswer:
        slots, end = count, start_us
        closed = self._reader.closed_before(timeframe)
        fetched = Fetched()
        while True:
            end = max(start_us, min(closed, timeframe.next(end, slots)))
            (pending,) = self._fetch([(market, Span(start_us, end))], timeframe, priority, watcher)
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
