"""The three ways to say which candles: a span, the newest so many, the first so many. Several markets at once.

A span's end is cut to what is closed on the venue's clock. While that clock is not known (before the first reply, and
after this machine slept), only the machine's is, which may be hours off; so a range that ends now is looked at once
more when the venue was heard, be it by the pages that were asked or, where nothing was missing, by asking the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

from backbone.candle_table import count_inside, times_of
from backbone.clock import VenueClock
from backbone.coordinator.candles.fetcher import CandleAnswer, CandleFetcher, Pending, Progress
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


class _Nobody:
    def update(self) -> None:
        """Nobody watches."""


def unwatched(_: Callable[[], Progress]) -> AbstractContextManager[Watch]:
    """The watcher of a call that nobody watches."""
    return nullcontext(_Nobody())


class CandleRanges:
    """Answers ranges with the fetcher's spans."""

    def __init__(self, fetcher: CandleFetcher, venue: VenueClock, hear: Callable[[], object]) -> None:
        self._fetcher = fetcher
        self._venue = venue
        self._hear = hear  # any request will do: each reply tells the time

    def collect(
        self,
        markets: Sequence[str],
        timeframe: Timeframe,
        asked: Range,
        priority: Priority,
        watcher: Watcher = unwatched,
    ) -> list[CandleAnswer]:
        """The candles of each market; what could not be had is in each answer's ``gaps``."""
        heard = self._venue.is_known
        answers = self._collect(markets, timeframe, asked, priority, watcher)
        ends_now = asked.end_us is None or asked.end_us > self._fetcher.closed_before(timeframe)
        if not heard and ends_now and not any(a.gaps for a in answers):
            if not self._venue.is_known:
                self._hear()
            again = self._collect(markets, timeframe, asked, priority, watcher)
            return [_joined(first, second) for first, second in zip(answers, again, strict=True)]
        return answers

    def recall(self, markets: Sequence[str], timeframe: Timeframe, asked: Range) -> list[CandleAnswer]:
        """The same from the store alone; what is unknown is in ``gaps``."""
        return [self._recall(market, timeframe, asked) for market in markets]

    def _recall(self, market: str, timeframe: Timeframe, asked: Range) -> CandleAnswer:
        end = self._end(timeframe, asked)
        if asked.count is None:
            start = timeframe.ceil(asked.start_us or 0)
            return self._fetcher.recall(market, timeframe, Span(min(start, end), end))
        if asked.start_us is None:
            known, further = self._fetcher.reach_back(market, timeframe, end, asked.count)
            start = known.start if further is None else further.start
            return self._fetcher.recall(market, timeframe, Span(start, end))
        start, slots = timeframe.ceil(asked.start_us), asked.count
        while True:
            stop = min(end, timeframe.next(start, slots))
            answer = self._fetcher.recall(market, timeframe, Span(min(start, stop), stop))
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
        closed = self._fetcher.closed_before(timeframe)
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
            self._fetcher.flush([pending.series.market for pending in pendings if pending.rows], timeframe)
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
        pages = dict.fromkeys(markets, 0)
        fetched: dict[str, list[Span]] = {market: [] for market in markets}
        ends = dict.fromkeys(markets, end_us)
        open_markets = list(markets)
        while True:
            wanted: list[tuple[str, Span]] = []
            for market in open_markets:
                end = ends[market]
                known, further = self._fetcher.reach_back(market, timeframe, end, count)
                if further is None:
                    answers[market] = self._fetcher.recall(market, timeframe, known, fetched[market], pages[market])
                else:
                    wanted.append((market, further))
            if not wanted:
                break
            open_markets = []
            for pending in self._fetch(wanted, timeframe, priority, watcher, enough=count):
                market = pending.series.market
                ends[market] = min(ends[market], pending.closed_us)
                if pending.want.failed:
                    whole = Span(pending.span.start, end_us)
                    before, asked = fetched[market], pages[market]
                    answers[market] = self._fetcher.answer(pending, whole, fetched=before, pages=asked)
                else:
                    open_markets.append(market)
                pages[market] += pending.want.pages
                fetched[market] += list(pending.fetched)
        return [answers[market] for market in markets]

    # -- the first so many ---------------------------------------------------------------------------------------

    def _first(
        self, market: str, timeframe: Timeframe, start_us: int, count: int, priority: Priority, watcher: Watcher
    ) -> CandleAnswer:
        slots, pages, end = count, 0, start_us
        closed = self._fetcher.closed_before(timeframe)
        fetched: list[Span] = []
        while True:
            end = max(start_us, min(closed, timeframe.next(end, slots)))
            (pending,) = self._fetch([(market, Span(start_us, end))], timeframe, priority, watcher)
            closed = min(closed, pending.closed_us)
            if pending.want.failed:
                return self._fetcher.answer(pending, fetched=fetched, pages=pages)
            pages += pending.want.pages
            fetched += list(pending.fetched)
            end = max(start_us, min(end, closed))
            answer = self._fetcher.recall(market, timeframe, Span(start_us, end), fetched, pages)
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
        return self._fetcher.recall(answer.market, timeframe, span, answer.fetched.spans, answer.pages)


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


def _joined(first: CandleAnswer, second: CandleAnswer) -> CandleAnswer:
    """The second look's rows, with what both looks cost: what the first one brought, the second found in memory."""
    sources = dict(second.sources)
    brought = count_inside(second.table, first.fetched - second.fetched)
    archived = min(brought, first.sources.get("archive", 0))
    read = first.sources.get("disk", 0) - sources.get("disk", 0)
    for name, rows in (("archive", archived), ("rest", brought - archived), ("disk", read)):
        taken = max(0, min(rows, sources.get("memory", 0)))
        sources["memory"] = sources.get("memory", 0) - taken
        sources[name] = sources.get(name, 0) + taken
    found = {name: rows for name, rows in sources.items() if rows}
    return replace(second, pages=first.pages + second.pages, sources=found, fetched=first.fetched | second.fetched)
