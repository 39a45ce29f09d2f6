"""Long fetches that drive themselves: no thread of their own, each finished section starts the next.

A `CandleJob` cuts each market's span into sections, oldest first, one market after the other in the order given. The
first section is small, so that a reader soon has something to work on; each later one may be half as large again, up to
a twelfth of the whole, and up to ten thousand candles where the reader is behind. The next section begins when those
under way have few pages left to ask, so the queue never runs dry between them. Rows are on disk when their section is
finished, so memory does not grow with the span. A market listed long after the start is not walked up to page by page:
its months (one request) say where it begins.

The job's condition guards its sections and counters; fetching and callbacks happen outside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from backbone.clock import Clock
from backbone.coordinator.candles.fetcher import CandleFetcher
from backbone.coordinator.candles.pending import Pending, Progress
from backbone.coordinator.candles.reader import CandleAnswer, Fetched
from backbone.errors import BackboneError, ClosedError, StoreError
from backbone.model import Priority, Span
from backbone.timeframe import TIMEFRAMES, Timeframe

__all__ = ["CandleJob", "Jobs"]

SECTION_ROWS = 10_000
_FIRST_ROWS, _LEAST_ROWS = 1_000, 400  # five pages: half a second at the legal rate; two pages
_GROWTH = 1.5
_PART = 12  # no section is more than this part of the whole, unless the reader is behind
_PAGES_AHEAD = 4  # the next section begins when those under way have fewer pages left to ask
_AT_ONCE = 8
_PROBE_SLOTS = 50 * 200  # a shorter span is walked as fast as probed
_MONTH = TIMEFRAMES["1M"]


@dataclass(eq=False)
class _Section:
    """A part of one market, fetched as a whole."""

    market: str
    span: Span
    ascending: bool = True
    pending: Pending | None = None
    is_done: bool = False
    is_kept: bool = True  # the disk took all that arrived

    def progress(self) -> Progress:
        """How far it is; what the disk did not take is not had."""
        if self.pending is None:
            return Progress(0, 0, 0, 0, self.span.start)
        now = self.pending.progress()
        if self.is_kept:
            return now
        slots = sum(self.pending.timeframe.count(s) for s in self.pending.fetched.spans.clip(self.span))
        return replace(now, done_slots=max(0, now.done_slots - slots))

    def whole_until_us(self) -> int:
        """The time up to which all of it is stored, now that it ended."""
        if self.pending is None or not self.is_kept:
            return self.span.start
        lacking = self.pending.lacking()
        return lacking.spans[0].start if lacking else self.pending.closed_span.end


class CandleJob:
    """Candles of `markets` over `span`, on their way."""

    def __init__(
        self,
        fetcher: CandleFetcher,
        clock: Clock,
        markets: Sequence[str],
        timeframe: Timeframe,
        span: Span,
        priority: Priority,
    ) -> None:
        self._fetcher = fetcher
        self._reader = fetcher.reader
        self._clock = clock
        self.markets = tuple(markets)
        self.timeframe = timeframe
        self.span = span
        self.priority = priority
        self.changed = threading.Condition()
        self._sections: list[_Section] = []
        self._outdated: list[_Section] = []  # done, but quarantined since: fetched again
        self._plan = self._planned()  # whoever advances takes the next section from it
        self._is_planned = False  # whole
        self._probes: list[Pending] = []
        self._began_s = clock.monotonic()
        self._ended_s: float | None = None
        self._end = "running"  # how it ended; nothing that comes later changes it
        self._cancelled = False
        self._error: BackboneError | None = None
        self._ahead: int | None = None  # back-pressure of a caller that iterates
        self._taken = 0
        self._advancing = False
        self._again = False

    # -- driving -------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Start what may be started. Called by whoever finished a section; one caller at a time does the work."""
        while True:
            with self.changed:
                if self._advancing:
                    self._again = True
                    return
                self._advancing, self._again = True, False
            has_begun = False
            try:
                has_begun = self._begin_next()
            except BackboneError as exc:
                self._fail(exc)
            except BaseException as exc:  # the plan has ended with it: what it did not come to is not done
                error = BackboneError(f"the job was broken off: {exc!r}")
                error.__cause__ = exc
                self._fail(error)
                raise
            finally:
                with self.changed:
                    self._advancing = False
                    more = self._again or has_begun
                    if self._ended_s is None and self._is_over_locked():
                        self._ended_s = self._clock.monotonic()
                        self._end = self._end_locked()
                        self.changed.notify_all()
            if not more:
                return

    def _begin_next(self) -> bool:
        """Begin the next section, where one may begin now; whether one did."""
        with self.changed:
            running = [s.pending for s in self._sections if not s.is_done and s not in self._outdated]
            if self._cancelled or self._error is not None or len(running) >= _AT_ONCE:
                return False
            section = self._outdated.pop(0) if self._outdated else None
            if section is None:
                if self._ahead is not None and len(self._sections) - self._taken >= self._ahead:
                    return False
                pages = sum(_PAGES_AHEAD if one is None else self._fetcher.pages_left(one) for one in running)
                if pages >= _PAGES_AHEAD:
                    return False
        if section is None:
            try:
                section = next(self._plan)
            except StopIteration:
                self._is_planned = True
            if section is None:
                return False
            with self.changed:
                self._sections.append(section)
        self._begin(section)
        return True

    def _planned(self) -> Iterator[_Section | None]:
        """The sections in time order, each cut when it is to begin; None while a market's probe is on its way."""
        for market in self.markets:
            at_us = self.span.start
            if self._is_worth_probing(market):
                probe = self._probe(market)
                while not probe.is_done:
                    yield None
                listed_us = self._reader.listed_from(market, _MONTH)
                if listed_us is not None and self.span.start < listed_us:
                    before = Span(at_us, min(self.span.end, self.timeframe.ceil(listed_us)))
                    yield _Section(market, before, ascending=False)
                    at_us = before.end
                if listed_us is not None and self.span.start < listed_us < self.span.end:
                    first = Span(at_us, min(self.span.end, self.timeframe.ceil(_MONTH.next(listed_us))))
                    yield _Section(market, first, ascending=False)
                    at_us = first.end
            while at_us < self.span.end:
                section = self._cut(market, at_us)
                at_us = section.span.end
                yield section

    def _is_over_locked(self) -> bool:
        if any(not section.is_done for section in self._sections):
            return False
        if self._error is not None:
            return True
        return (self._cancelled or self._is_planned) and all(probe.is_done for probe in self._probes)

    def _cut(self, market: str, start_us: int) -> _Section:
        with self.changed:
            rows = self._rows_locked()
        end = min(self.span.end, self.timeframe.next(start_us, self._fetcher.slots_for(market, self.timeframe, rows)))
        end = self._fetcher.section_end(market, self.timeframe, Span(start_us, self.span.end), end)
        return _Section(market, Span(start_us, end))

    def _rows_locked(self) -> int:
        """How many candles the next section should have."""
        if self._ahead is not None and any(s.is_done for s in self._sections[self._taken + 1 :]):
            return SECTION_ROWS  # the reader has more to read than the section in its hands
        whole = self.timeframe.count(self.span) * len(self.markets)
        grown = _FIRST_ROWS * _GROWTH ** min(len(self._sections), 10)
        return max(_LEAST_ROWS, int(min(SECTION_ROWS, whole / _PART, grown)))

    def _begin(self, section: _Section) -> None:
        def done(pending: Pending) -> None:
            self._finished(section, pending)

        pending = Pending(section.market, self.timeframe, section.span, self.priority, patient=True, on_done=done)
        pending.ascending, pending.on_page = section.ascending, self.advance
        section.pending = self._fetcher.begin(pending)
        self._check_cancelled(section.pending)

    def _check_cancelled(self, pending: Pending) -> None:
        """A job that was cancelled while `pending` began does not wait for it."""
        with self.changed:
            is_cancelled = self._cancelled
        if is_cancelled:
            self._fetcher.abandon(pending, _cancelled())

    def _finished(self, section: _Section, pending: Pending) -> None:
        section.pending = pending
        error: BackboneError | None = pending.store_error
        try:
            self._fetcher.release(pending)
            self._fetcher.flush([section.market], self.timeframe)
        except StoreError as exc:
            error = exc
        generation = self._fetcher.units.generation(section.market)
        with self.changed:
            section.is_done, section.is_kept = True, error is None
            self._error = self._error or error
            if self._error is None and not self._cancelled:
                self._repeat_locked(section.market, generation)
            self.changed.notify_all()
        self.advance()

    def _repeat_locked(self, market: str, generation: int) -> None:
        """Sections whose candles were quarantined since, with all stored of their market, are fetched again."""
        for section in self._sections:
            pending = section.pending
            if pending is None or not section.is_done or section.market != market:
                continue
            if pending.generation != generation:
                section.pending, section.is_done = None, False
                self._outdated.append(section)

    def _is_worth_probing(self, market: str) -> bool:
        """Whether it may save many pages to know where the market's history begins."""
        if self.timeframe.step_us >= TIMEFRAMES["1d"].step_us:
            return False
        if self.timeframe.count(self.span) <= _PROBE_SLOTS or _MONTH.count(self.span) < 1:
            return False
        return self._reader.is_start_unknown(market, self.timeframe, self.span.start)

    def _probe(self, market: str) -> Pending:
        """Ask for the market's months, which say where its history begins."""

        def done(pending: Pending) -> None:
            self._fetcher.release(pending)
            self.advance()

        months = Span(_MONTH.floor(self.span.start), _MONTH.floor(self.span.end))
        probe = self._fetcher.begin(Pending(market, _MONTH, months, self.priority, patient=True, on_done=done))
        with self.changed:
            self._probes.append(probe)
        self._check_cancelled(probe)
        return probe

    def _fail(self, error: BackboneError) -> None:
        with self.changed:
            self._error = self._error or error
            for section in self._sections:
                if section.pending is None:
                    section.is_done = True
            self._again = True
            self.changed.notify_all()

    # -- watching ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """``running``, ``done``, ``incomplete``, ``failed`` or ``cancelled``."""
        with self.changed:
            return self._end

    def _end_locked(self) -> str:
        if self._error is not None:
            return "failed"
        if self._cancelled:
            return "cancelled"
        pendings = [s.pending for s in self._sections if s.pending is not None]
        lost = any(pending.failed - pending.held.stored.covered for pending in pendings)
        return "incomplete" if lost else "done"

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do; `state` says so a moment later, when the thread that did the last has noted
        it."""
        with self.changed:
            return self._ended_s is not None or self._is_over_locked()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called, though pages may still be on their way."""
        return self._cancelled

    @property
    def progress(self) -> Progress:
        """A consistent reading of where the job stands."""
        with self.changed:
            sections = [(section, section.is_done) for section in self._sections]
            state, ended = self._end, self._ended_s
            probes = list(self._probes)
        now = [section.progress() for section, _ in sections]
        total = self.timeframe.count(self.span) * len(self.markets)
        total -= sum(
            self.timeframe.count(Span(section.pending.closed_span.end, section.span.end))
            for section, _ in sections
            if section.pending is not None
        )
        finished, reached = self._stored(sections, every_market=ended is not None)
        return Progress(
            sum(n.done_slots for n in now),
            total,
            sum(n.pages for n in now) + sum(probe.pages for probe in probes),
            sum(n.rows for n in now),
            reached,
            state=state,
            sections_done=finished,
            elapsed_s=max(1e-9, (ended if ended is not None else self._clock.monotonic()) - self._began_s),
        )

    def _stored(self, sections: Sequence[tuple[_Section, bool]], *, every_market: bool) -> tuple[int, int]:
        """How many sections are stored whole, and the time up to which all is stored."""
        finished, until, stopped = 0, {}, set()
        for section, is_done in sections:
            whole = section.whole_until_us() if is_done else section.span.start
            finished += is_done and whole == section.span.end
            if section.market not in stopped:
                until[section.market] = whole
            if whole < section.span.end:
                stopped.add(section.market)
        markets = self.markets if every_market else until
        return finished, min((until.get(market, self.span.start) for market in markets), default=self.span.start)

    def wait(self, watch: Callable[[], None] | None = None, timeout_s: float | None = None) -> bool:
        """Block until it ended; False when `timeout_s` ran out first. Raises what broke it (a full disk, a close)."""
        deadline = None if timeout_s is None else self._clock.monotonic() + timeout_s
        while True:
            with self.changed:
                if self._ended_s is not None:
                    break
                left = 0.2 if deadline is None else min(0.2, deadline - self._clock.monotonic())
                if left <= 0:
                    return False
                self._clock.wait(self.changed, left)
            if watch is not None:
                watch()
        if watch is not None:
            watch()
        self._fetcher.units.warn(self.markets)
        if self._error is not None:
            raise self._error
        return True

    def sections(self, ahead: int) -> Iterator[CandleAnswer]:
        """Each finished section, in time order; the job runs at most `ahead` sections before the one taken last.

        What could not be had of a section is in its answer's ``gaps``.
        """
        with self.changed:
            self._ahead, self._taken = ahead, 0
        try:
            at = 0
            while True:
                with self.changed:
                    while at >= len(self._sections) or not self._sections[at].is_done:
                        if self._error is not None:
                            raise self._error
                        if self._ended_s is not None:
                            return
                        self._clock.wait(self.changed, 0.2)
                    section = self._sections[at]
                    pending = section.pending
                assert pending is not None
                self._fetcher.units.warn([section.market])
                unit = self._fetcher.units.generation(section.market)
                yield replace(self._fetcher.answer(pending), unit=unit)
                at += 1
                with self.changed:
                    self._taken = at
                self.advance()
        finally:
            with self.changed:
                self._ahead = None
            self.advance()

    def answers(self) -> list[CandleAnswer]:
        """What there now is of each market's whole span, with all causes of what is missing."""
        found = []
        for market in self.markets:
            mine = [s.pending for s in self._sections if s.market == market and s.pending is not None]
            probes = [probe for probe in self._probes if probe.market == market]
            fetched = sum((p.fetched for p in mine), Fetched(pages=sum(p.pages for p in probes)))
            end = max(self.span.start, min([self.span.end, *(p.closed_us for p in mine)]))  # not closed is not missing
            answer = self._reader.recall(market, self.timeframe, Span(self.span.start, end), fetched)
            causes = tuple(cause for p in mine for cause in p.causes)
            found.append(replace(answer, causes=(*causes, *answer.causes)))
        return found

    def end(self, error: BackboneError) -> None:
        """Start nothing more; whoever waits gets `error`."""
        self._fail(error)
        self.advance()  # where nothing is under way, nothing else would end it

    def cancel(self) -> None:
        """Ask nothing more; pages in flight and rows already here are kept. Nothing happens to a job that is over."""
        with self.changed:
            if self._is_over_locked():
                return
            self._cancelled = True
            waits = [s.pending for s in self._sections if not s.is_done]
            waits += [probe for probe in self._probes if not probe.is_done]
        for pending in waits:
            if pending is not None:
                self._fetcher.abandon(pending, _cancelled())
        self.advance()


def _cancelled() -> ClosedError:
    return ClosedError("the job was cancelled")


class Jobs:
    """The jobs of one client. A job that is asked for again while it runs is joined, not doubled."""

    def __init__(self, fetcher: CandleFetcher, clock: Clock) -> None:
        self._fetcher = fetcher
        self._clock = clock
        self._lock = threading.Lock()
        self._jobs: dict[tuple[object, ...], CandleJob] = {}

    def start(
        self, markets: Sequence[str], timeframe: Timeframe, start_us: int, end_us: int | None, priority: Priority
    ) -> CandleJob:
        """A running job for this request: the one there is, or a new one."""
        key = (tuple(markets), timeframe.name, start_us, end_us, priority)
        closed = self._fetcher.reader.closed_before(timeframe)
        end = closed if end_us is None else min(closed, timeframe.ceil(end_us))
        start = timeframe.ceil(start_us)
        self._fetcher.units.warn(markets)
        with self._lock:
            known = self._jobs.get(key)
            if known is not None and known.state == "running":
                return known
            job = CandleJob(self._fetcher, self._clock, markets, timeframe, Span(min(start, end), end), priority)
            self._jobs = {k: j for k, j in self._jobs.items() if j.state == "running"}
            self._jobs[key] = job
        job.advance()
        return job

    def close(self) -> None:
        """End every job with `ClosedError`; what arrived is kept."""
        for job in self.running():
            job.end(ClosedError("the client was closed while the job was running"))

    def running(self) -> list[CandleJob]:
        """The jobs that have not ended."""
        with self._lock:
            return [job for job in self._jobs.values() if not job.is_over]
