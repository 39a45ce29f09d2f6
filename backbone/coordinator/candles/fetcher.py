"""Any range of candles, complete: coverage → plan → schedule → store → answer.

One `SeriesPlan` a market and timeframe is shared by everyone who waits for it, so identical asks are one ask, and a
foreground call takes the page that a backfill had queued. Pages arrive on the scheduler's workers; each is checked,
put into the store with what it proves, and only then taken out of the plan, so whoever is woken finds its rows.

A series' condition guards its plan and the counters beside it; storage, scheduling and callbacks happen outside it.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from backbone.candle_table import count_inside, rows_inside, times_of
from backbone.clock import Clock, VenueClock
from backbone.coordinator.candles.planner import EARLIEST_US, FOREVER_US, Page, SeriesPlan, Verdict, Want, pages_needed
from backbone.coordinator.scheduler import Scheduler
from backbone.errors import (
    BackboneError,
    ClosedError,
    IncompleteError,
    InputError,
    PayloadError,
    RateLimitedError,
    RejectedError,
    StoreError,
    UnreachableError,
)
from backbone.model import Priority, Span, empty_candles
from backbone.routing.rest import Reply
from backbone.routing.wire import PAGE, Ask, CandlePage, candles_ask
from backbone.settings import Settings
from backbone.storage.continuity import Interval, Outage, intervals, outages
from backbone.storage.coverage import SpanSet
from backbone.storage.fold import fold
from backbone.storage.store import CandleStore, Stored
from backbone.timeframe import DAY_US, TIMEFRAMES, Timeframe, periods_in

if TYPE_CHECKING:
    from backbone.coordinator.candles.archive import Archive
    from backbone.routing.archive import ArchiveFile

__all__ = ["CandleAnswer", "CandleFetcher", "CandlePlan", "Pending", "Progress"]

_log = logging.getLogger("backbone.candles")

GROUP = "candles"
_WINDOW = {Priority.LOW: 3}  # tickets of one want in the queue; low work is paced one by one anyway
_BURST = 10
_FIRST_BURST = (
    5  # before the first reply the density is a guess: enough for 1,000 candles, little lost on a thin market
)
_FAILURES = 3  # final failures after which a want stops asking: the venue is down, not a page
_PATIENCE = 200  # the same for a job: the scheduler tries each for some seconds, so a quarter of an hour's outage
_MINUTE = TIMEFRAMES["1m"]
_NOTHING = SpanSet()


@dataclass(frozen=True)
class Progress:
    """How far a fetch is: candle slots had and in all, pages asked, rows received, the time reached.

    What was given up is not had; what is not closed on the venue's clock is not counted in all.
    """

    done_slots: int
    total_slots: int
    pages: int
    rows: int
    reached_us: int
    ascending: bool


@dataclass(frozen=True)
class CandleAnswer:
    """One market's candles and where they came from. ``sources`` counts rows by source.

    ``pages`` counts the requests of this answer: each page that was asked for it, whether or not its reply was still
    needed, and each that somebody else had asked and that answered it. So answers that share a page both count it,
    and together they never count less than was sent. A page that the transport had to repeat counts once.
    ``fetched`` is what the call did not find in the store.
    """

    market: str
    span: Span
    table: pa.Table
    quiet: int
    unknown: int
    pages: int
    sources: dict[str, int]
    gaps: tuple[Span, ...] = ()
    causes: tuple[BaseException, ...] = ()
    fetched: SpanSet = _NOTHING


@dataclass(frozen=True)
class CandlePlan:
    """What a request would do, asked of nobody: spans already held, spans foldable from minutes, gaps, pages, time."""

    market: str
    timeframe: Timeframe
    span: Span
    cached: tuple[Span, ...]
    derived: tuple[Span, ...]
    gaps: tuple[Span, ...]
    pages: int
    seconds: float


@dataclass(frozen=True)
class _Look:
    """A span as the store had it: what was read, and how the span divides."""

    stored: Stored
    have: SpanSet
    derived: SpanSet
    gaps: SpanSet


@dataclass
class _Series:
    market: str
    timeframe: Timeframe
    plan: SeriesPlan
    changed: threading.Condition = field(default_factory=threading.Condition)
    queued: dict[Want, int] = field(default_factory=dict)
    pending: dict[Want, Pending] = field(default_factory=dict)
    is_committing: bool = False  # a flush is on its way
    archived: SpanSet = field(default_factory=SpanSet)  # what came from the archive rather than from pages


@dataclass(eq=False)
class Pending:
    """A span on its way: one want in a series' plan, and what has arrived for it."""

    series: _Series
    span: Span
    priority: Priority
    want: Want
    look: _Look
    gaps: SpanSet
    patient: bool = False
    enough: int | None = None
    beyond: SpanSet = _NOTHING  # what its pages brought besides the gaps, and nobody held
    closed_us: int = FOREVER_US  # candles that open at or after this turned out not to be closed on the venue's clock
    rows: int = 0
    failures: int = 0
    store_error: StoreError | None = None
    on_done: Callable[[Pending], None] | None = None

    @property
    def is_done(self) -> bool:
        return self.want.is_done

    @property
    def fetched(self) -> SpanSet:
        """What was not in the store when it was begun."""
        return self.gaps | self.beyond

    @property
    def closed_span(self) -> Span:
        """Its span, as far as that is closed on the venue's clock."""
        return Span(self.span.start, max(self.span.start, min(self.span.end, self.closed_us)))

    def lacking(self) -> SpanSet:
        """What of the closed span is not had: still to come, or given up."""
        with self.series.changed:
            return self._lacking_locked()

    def _lacking_locked(self) -> SpanSet:
        owed = self.want.missing | self.want.failed
        return owed and (owed - self.look.stored.covered).clip(self.closed_span)

    def progress(self) -> Progress:
        """Where it stands now."""
        with self.series.changed:
            span, lacking, pages, rows = self.closed_span, self._lacking_locked(), self.want.pages, self.rows
        total = self.series.timeframe.count(span)
        left = sum(self.series.timeframe.count(s) for s in lacking)
        if self.want.ascending:
            reached = lacking.spans[0].start if lacking else span.end
        else:
            reached = lacking.spans[-1].end if lacking else span.start
        return Progress(total - left, total, pages, rows, reached, self.want.ascending)


class _Ticket:
    """One place in the queue for a want; what it asks is decided when its permit opens."""

    def __init__(self, fetcher: CandleFetcher, pending: Pending) -> None:
        self._fetcher = fetcher
        self._pending = pending
        self._page: Page | None = None

    def bind(self) -> Ask | None:
        series, want = self._pending.series, self._pending.want
        with series.changed:
            series.queued[want] = series.queued.get(want, 1) - 1
            self._page = series.plan.next_page(want)
        if self._page is None:
            return None
        to_us = None if self._page.seeks else self._page.to_us
        return candles_ask(series.market, series.timeframe, to_us, self._page.count)

    def done(self, ask: Ask | None, outcome: Reply | BackboneError) -> None:
        if self._page is not None:
            self._fetcher._arrived(self._pending, self._page, outcome)
        elif isinstance(outcome, BackboneError):  # its turn never came: a ban or a close ended the whole queue
            self._fetcher._ended(self._pending, outcome)


class CandleFetcher:
    """The coordinator's candle strategy: split by time."""

    def __init__(
        self, scheduler: Scheduler, store: CandleStore, venue: VenueClock, clock: Clock, settings: Settings
    ) -> None:
        self._scheduler = scheduler
        self._store = store
        self._venue = venue
        self._clock = clock
        self._settings = settings
        self._lock = threading.Lock()  # guards _series and _closed
        self._series: dict[tuple[str, str], _Series] = {}
        self._closed = False
        self.archive: Archive | None = None
        """Another source for whole closed months and days, where the user opened it."""

    # -- time ----------------------------------------------------------------------------------------------------

    def closed_before(self, timeframe: Timeframe) -> int:
        """Candles that open before this are closed: their end has passed on the venue's clock, plus the grace."""
        return timeframe.floor(self._venue.now_us() - int(self._settings.close_grace_s * 1e6))

    # -- what a request would do ---------------------------------------------------------------------------------

    def explain(self, market: str, timeframe: Timeframe, span: Span, rate: float) -> CandlePlan:
        """The plan for `span`, without asking the venue; `rate` is requests a second."""
        look = self._look(market, timeframe, span)
        with self._series_of(market, timeframe) as series:
            density = series.plan.density
        files = [] if self.archive is None else self.archive.files(market, timeframe, look.gaps, may_ask=False)
        pages = 3 * len(files)  # a checksum, the file, a page to compare it with
        pages += pages_needed(timeframe, look.gaps - SpanSet(file.span for file in files), PAGE, density)
        return CandlePlan(
            market, timeframe, span, look.have.spans, look.derived.spans, look.gaps.spans, pages, pages / rate
        )

    def _look(self, market: str, timeframe: Timeframe, span: Span) -> _Look:
        """What of `span` is held, what can be folded from stored minutes, and what is to be fetched."""
        whole = SpanSet([span]) if span.start < span.end else SpanSet()
        stored = self._store.read(market, timeframe, span)
        due = self._store.due(market, timeframe, span, self._venue.now_us()) if stored.covered else SpanSet()
        gaps = (whole - stored.covered) | due
        derived = self._foldable(market, timeframe, gaps)
        return _Look(stored, stored.covered - due, derived, gaps - derived)

    def _foldable(self, market: str, timeframe: Timeframe, gaps: SpanSet) -> SpanSet:
        """The whole candles inside `gaps` whose minutes are all stored."""
        day = TIMEFRAMES["1d"].step_us
        if timeframe.step_us <= _MINUTE.step_us or timeframe.step_us > day or not gaps:
            return SpanSet()
        found = []
        for gap in gaps:
            for held in self._store.coverage(market, _MINUTE, gap):
                start, end = timeframe.ceil(held.start), timeframe.floor(held.end)
                if start < end:
                    found.append(Span(start, end))
        return SpanSet(found)

    def fold_minutes(self, market: str, timeframe: Timeframe, span: Span) -> tuple[pa.Table, SpanSet]:
        """The candles of `span` that can be folded from stored minutes, and the spans that they are all of."""
        foldable = self._foldable(market, timeframe, SpanSet([span]))
        return self._folded(market, timeframe, foldable), foldable

    def _folded(self, market: str, timeframe: Timeframe, spans: SpanSet) -> pa.Table:
        parts = [fold(self._store.read(market, _MINUTE, span).table, timeframe) for span in spans]
        return pa.concat_tables([empty_candles(), *parts])

    # -- fetching ------------------------------------------------------------------------------------------------

    def begin(
        self,
        market: str,
        timeframe: Timeframe,
        span: Span,
        priority: Priority,
        *,
        ascending: bool = False,
        patient: bool = False,
        enough: int | None = None,
        on_done: Callable[[Pending], None] | None = None,
    ) -> Pending:
        """Start fetching what is unknown in `span`; returns at once.

        A `patient` fetch outlasts an outage; one with `enough` ends when that many rows have arrived.
        """
        with self._series_of(market, timeframe) as series:
            series.plan.look()
        try:
            look = self._look(market, timeframe, span)
            files = [] if self.archive is None else self.archive.files(market, timeframe, look.gaps)
        except BaseException:
            with series.changed:
                series.plan.looked()
            raise
        gaps, lost = self._within_retention(timeframe, look.gaps)
        there = look.gaps & SpanSet(file.span for file in files)
        gaps, lost = gaps | there, lost - there
        with self._series_of(market, timeframe) as series:
            gaps = gaps - series.plan.looked()
            want = series.plan.want(gaps, rank=priority.rank, ascending=ascending)
            pending = Pending(
                series,
                span,
                priority,
                want,
                look,
                gaps,
                patient=patient,
                enough=enough,
                on_done=on_done,
            )
            if lost:
                want.missing = want.missing | lost
                series.plan.give_up(want, _out_of_reach(span.start), lost)
            series.pending[want] = pending
            finished = want.is_done
        self._take_files(pending, files)
        if finished:
            self._finish(pending)
        else:
            self._top_up(series)
        return pending

    def _take_files(self, pending: Pending, files: Sequence[ArchiveFile]) -> None:
        """Ask the archive for `files`, unless somebody is at their spans."""
        for file in files:
            with pending.series.changed:
                claim = pending.series.plan.claim(file.span)
            if claim is not None and self.archive is not None:
                told = functools.partial(self._taken, pending, file, claim)
                self.archive.fetch(file, pending.priority, told)

    def _taken(self, pending: Pending, file: ArchiveFile, claim: Page, outcome: pa.Table | BackboneError) -> None:
        """A file of the archive: its candles into the store, its claim out of the plan; without it, pages are asked."""
        series, rows = pending.series, 0
        proof = pending.gaps.clip(file.span)
        if not isinstance(outcome, BackboneError):
            table = rows_inside(outcome, proof)
            rows = table.num_rows
            error = self._keep(series, table, proof, source="archive")
        finished: list[Pending] = []
        with series.changed:
            if isinstance(outcome, BackboneError):
                self._untake_locked(series, claim, outcome)
            else:
                series.archived = series.archived | proof
                pending.want.failed = pending.want.failed - proof
                series.plan.settle(claim, Verdict(proof), rows)
                pending.rows += rows
                pending.store_error = pending.store_error or error
            finished = [p for p in series.pending.values() if p.want.is_done]
            series.changed.notify_all()
        for done in finished:
            self._finish(done)
        if file.is_month and isinstance(outcome, RejectedError) and self.archive is not None:
            days = self.archive.files(series.market, series.timeframe, pending.want.missing.clip(file.span))
            self._take_files(pending, days)
        self._top_up(series)

    def _untake_locked(self, series: _Series, claim: Page, cause: BackboneError) -> None:
        """The file is not to be had: its span is asked of REST, as far as REST has it."""
        _, lost = self._within_retention(series.timeframe, SpanSet([claim.claim]))
        series.plan.retract(claim)
        for want in series.plan.wants:
            if isinstance(cause, ClosedError):
                series.plan.give_up(want, cause)
            elif lost:
                series.plan.give_up(want, _out_of_reach(claim.claim.start), lost)

    def _within_retention(self, timeframe: Timeframe, gaps: SpanSet) -> tuple[SpanSet, SpanSet]:
        kept = self._settings.venue.retention(timeframe.name)
        if kept is None or not self._venue.is_known:  # this machine's clock is no judge of that
            return gaps, SpanSet()
        kept_us = kept.days * DAY_US
        lost = gaps & SpanSet([Span(EARLIEST_US, max(1, timeframe.ceil(self._venue.now_us() - kept_us)))])
        return gaps - lost, lost

    def wait(self, pending: Pending, watch: Callable[[], None] | None = None, every_s: float = 0.2) -> None:
        """Block until `pending` has all it can have; `watch` is called now and then, on this thread."""
        changed = pending.series.changed
        try:
            while True:
                with changed:
                    if pending.is_done:
                        return
                    self._clock.wait(changed, every_s)
                if watch is not None:
                    watch()
        finally:
            self.release(pending)

    def release(self, pending: Pending) -> None:
        """Nobody waits for `pending` any more; pages in flight are still kept when they arrive."""
        series = pending.series
        with series.changed:
            series.plan.drop(pending.want)
            series.pending.pop(pending.want, None)
            series.queued.pop(pending.want, None)

    def abandon(self, pending: Pending, cause: BaseException) -> None:
        """Stop asking for `pending`: what it still misses is failed with `cause`."""
        with pending.series.changed:
            pending.series.plan.give_up(pending.want, cause)
            pending.series.changed.notify_all()
        self._finish(pending)

    def is_start_unknown(self, market: str, timeframe: Timeframe, start_us: int) -> bool:
        """Whether the store knows nothing of what is at or before `start_us`, and the venue may tell."""
        if self._settings.venue.retention(timeframe.name) is not None:
            return False  # its first candles are gone
        oldest = self._store.oldest(market, timeframe)
        return self._store.quiet_before(market, timeframe) <= start_us and (oldest is None or oldest > start_us)

    def is_held(self, market: str, timeframe: Timeframe) -> bool:
        """Whether any candle is stored that an answer could be made of: of this timeframe, or minutes to fold."""
        held = self._store.oldest(market, timeframe)
        return held is not None or self._store.oldest(market, _MINUTE) is not None

    def listed_from(self, market: str, timeframe: Timeframe) -> int | None:
        """Before this there was nothing, where the beginning of its history is proven."""
        proven = self._store.quiet_before(market, timeframe)
        if proven <= EARLIEST_US:
            return None
        oldest = self._store.oldest(market, timeframe)
        return proven if oldest is None else oldest

    def flush(self, markets: Sequence[str], timeframe: Timeframe) -> None:
        """Make what arrived durable."""
        for market in markets:
            self._store.flush(market, timeframe)
        if markets:
            _give_back()

    def answer(
        self, pending: Pending, span: Span | None = None, *, fetched: Sequence[Span] = (), pages: int = 0
    ) -> CandleAnswer:
        """What the store now has of `pending`'s span (or of `span`), as far as it is closed, and what it lacks.

        `fetched` and `pages` are what the same call fetched before.
        """
        series, span = pending.series, pending.span if span is None else span
        span = Span(span.start, max(span.start, min(span.end, pending.closed_us)))
        with series.changed:
            lost, causes = pending.want.failed | pending.want.missing, tuple(pending.want.causes)
            pages += pending.want.pages
            fresh = pending.fetched | SpanSet(fetched)
        if not pending.look.gaps and not pending.look.derived and span == pending.span:
            return self._told(series, span, pending.look.stored, SpanSet(), pages)
        stored = self._store.read(series.market, series.timeframe, span)
        lost = lost.clip(span) - stored.covered  # a second ask that failed takes nothing from what is held
        before = None if fetched else pending.look.stored.tiers
        return self._told(series, span, stored, lost, pages, pending.look.derived, fresh, causes, before)

    def recall(
        self, market: str, timeframe: Timeframe, span: Span, fetched: Sequence[Span] = (), pages: int = 0
    ) -> CandleAnswer:
        """What is held of `span`; asks nobody. `fetched` and `pages` are what it took to hold it.

        Where a damaged file is why it is not held, that is the cause.
        """
        look = self._look(market, timeframe, span)
        lost = look.gaps - look.stored.covered  # an overdue second ask is no hole
        with self._series_of(market, timeframe) as series:
            known = series
        causes = tuple(self._store.damages(market, timeframe, lost)) if lost else ()
        return self._told(known, span, look.stored, lost, pages, look.derived, SpanSet(fetched), causes)

    def _told(
        self,
        series: _Series,
        span: Span,
        stored: Stored,
        lost: SpanSet,
        pages: int,
        derived: SpanSet = _NOTHING,
        fetched: SpanSet = _NOTHING,
        causes: tuple[BaseException, ...] = (),
        before: dict[str, int] | None = None,
    ) -> CandleAnswer:
        """The answer for `span`: stored rows and folded ones, counted by where they came from."""
        timeframe, table = series.timeframe, stored.table
        fresh = count_inside(table, fetched)
        sources = _tiers(stored.tiers, fresh, before)
        if archived := count_inside(table, fetched & series.archived):
            sources = {**sources, "rest": sources.get("rest", 0) - archived, "archive": archived}
        if spans := derived.clip(span) - stored.covered:
            folded = self._folded(series.market, timeframe, spans)
            sources["derived:1m"] = folded.num_rows
            table = pa.concat_tables([table, folded]).sort_by("time")
        unknown = sum(timeframe.count(s) for s in lost)
        quiet = max(0, timeframe.count(span) - unknown - table.num_rows)
        found = {name: rows for name, rows in sources.items() if rows}
        return CandleAnswer(series.market, span, table, quiet, unknown, pages, found, tuple(lost), causes, fetched)

    def ledger(self, market: str, timeframe: Timeframe) -> list[Interval]:
        """What is vouched for, oldest first: runs of candles, quiet stretches, and the unknown between them."""
        listed = self._store.quiet_before(market, timeframe)
        found = [Interval(EARLIEST_US, listed, "quiet", 0)] if listed > EARLIEST_US else []
        now = timeframe.next(self.closed_before(timeframe), 1)
        bounds = self._store.coverage(market, timeframe, Span(listed, max(listed, now))).bounds
        if bounds is None:
            return found
        begin = listed if found else bounds.start
        for period in periods_in(timeframe, Span(begin, bounds.end)):  # one partition in memory at a time
            part = Span(max(begin, period.start), min(bounds.end, period.end))
            held = self._store.read(market, timeframe, part)
            for stretch in intervals(times_of(held.table), held.covered, part, timeframe):
                if found and found[-1].state == stretch.state and found[-1].start > EARLIEST_US:
                    last = found.pop()
                    stretch = Interval(last.start, stretch.end, last.state, last.slots + stretch.slots)
                found.append(stretch)
        return found

    def outages(self, markets: Sequence[str], timeframe: Timeframe, span: Span) -> list[Outage]:
        """Where none of `markets` traded, though as many of them as vouch for that time would have; asks nobody."""
        heard = []
        for market in markets:
            listed = self._store.quiet_before(market, timeframe)  # before its listing a market's silence says nothing
            part = Span(max(span.start, listed), max(span.end, listed))
            held = self._store.read(market, timeframe, part)
            heard.append((times_of(held.table), held.covered))
        return outages(heard, timeframe)

    # -- pages ---------------------------------------------------------------------------------------------------

    def _series_of(self, market: str, timeframe: Timeframe) -> _Locked:
        with self._lock:
            if self._closed:
                raise ClosedError("the client is closed; make a new one")
            key = (market, timeframe.name)
            series = self._series.get(key)
            if series is None:
                series = self._series[key] = _Series(market, timeframe, SeriesPlan(timeframe, PAGE))
        return _Locked(series)

    def _top_up(self, series: _Series) -> None:
        """Queue as many tickets as the open wants have pages left, within their windows."""
        fresh: list[Pending] = []
        with series.changed:
            for want, pending in series.pending.items():
                if want.is_done:
                    continue
                burst = _BURST if series.plan.has_learned else _FIRST_BURST
                window = _WINDOW.get(pending.priority, burst)
                queued = series.queued.get(want, 0)
                more = min(window, series.plan.pages_left(want)) - queued
                series.queued[want] = queued + max(0, more)
                fresh += [pending] * max(0, more)
        for pending in fresh:
            ticket = _Ticket(self, pending)
            self._scheduler.submit(GROUP, pending.priority, ticket.bind, ticket.done)

    def _arrived(self, pending: Pending, page: Page, outcome: Reply | BackboneError) -> None:
        """A page's outcome, on a worker: into the store, out of the plan, and whoever waits is woken."""
        series = pending.series
        rows, is_disbelieved = 0, False
        if not isinstance(outcome, BackboneError):
            try:
                rows = self._accept(series, pending, page, outcome.value)
            except BackboneError as exc:
                outcome, is_disbelieved = exc, isinstance(exc, PayloadError)
        finished: list[Pending] = []
        with series.changed:
            if isinstance(outcome, BackboneError):
                self._refuse_locked(series, pending, page, outcome, is_disbelieved)
            pending.rows += rows
            if pending.enough is not None and pending.rows >= pending.enough:
                series.plan.forget(pending.want, [Span(EARLIEST_US, FOREVER_US)])
            finished = [p for p in series.pending.values() if p.want.is_done]
            series.changed.notify_all()
        for done in finished:
            self._finish(done)
        self._top_up(series)

    def _ended(self, pending: Pending, cause: BackboneError) -> None:
        """The queue lost a ticket of `pending` before it asked anything: what is still missing will not be had."""
        series = pending.series
        with series.changed:
            series.queued[pending.want] = max(0, series.queued.get(pending.want, 0) - 1)
            series.plan.give_up(pending.want, cause)
            series.changed.notify_all()
        self._finish(pending)

    def _accept(self, series: _Series, pending: Pending, page: Page, reply: CandlePage) -> int:
        """Store what a reply proves and settle its page; how many of its rows `pending` had waited for.

        Raises `PayloadError` for a reply that contradicts what is held: nothing of it is believed.
        """
        timeframe = series.timeframe
        times = times_of(reply.table)
        with series.changed:
            verdict = series.plan.judge(page, reply.oldest_us, reply.rows)
            is_contradicted = series.plan.is_contradicted(page, int(times[-1]) if len(times) else None)
        self._believe(series, page, verdict, reply, is_contradicted)
        boundary = self.closed_before(timeframe)
        proof = verdict.proof - SpanSet([Span(boundary, FOREVER_US)])
        proof, lost = self._provable(timeframe, proof, reply.oldest_us)
        table = reply.table
        if page.to_us > boundary:
            table = table.slice(0, int(np.searchsorted(times, boundary)))
        beyond = self._unheld(series, page, proof, table)
        error = self._keep(series, table, proof)
        anchor = None if verdict.edge_us is None else self._first_after(series, verdict.edge_us)
        with series.changed:
            news = count_inside(table, (pending.want.missing | pending.want.failed) & proof)
            series.plan.settle(page, Verdict(proof, verdict.edge_us), table.num_rows, anchor_us=anchor)
            for one in {pending, *series.pending.values()}:  # also where it had been given up, and nobody waits
                one.want.failed = one.want.failed - proof
                one.beyond = one.beyond | beyond
            for want, waiting in series.pending.items():
                series.plan.forget(want, [Span(boundary, FOREVER_US)])
                if lost:
                    series.plan.give_up(want, _out_of_reach(lost.spans[0].start), lost)
                waiting.closed_us = min(waiting.closed_us, boundary)
                waiting.store_error = waiting.store_error or error
        return news

    def _unheld(self, series: _Series, page: Page, proof: SpanSet, table: pa.Table) -> SpanSet:
        """Where a reply brings rows outside what it was asked for that nobody held."""
        if not table.num_rows:
            return _NOTHING
        times = times_of(table)
        brought = Span(int(times[0]), int(times[-1]) + 1)
        beyond = proof.clip(brought) - SpanSet([page.claim])
        return beyond and beyond - self._store.coverage(series.market, series.timeframe, brought)

    def _keep(self, series: _Series, table: pa.Table, proof: SpanSet, *, source: str = "rest") -> StoreError | None:
        """Give the store what a reply proved; what has only just closed is to be asked once more.

        An error of the disk's is for whoever waits: the rows are kept in memory.
        """
        now = self._venue.now_us()
        settled = series.timeframe.ceil(now - int(self._settings.settle_s * 1e6) - series.timeframe.step_us)
        fresh = (proof & SpanSet([Span(settled, FOREVER_US)])).bounds
        due_us = now + int(self._settings.settle_after_s * 1e6)
        try:
            self._store.put(
                series.market,
                series.timeframe,
                table,
                proof,
                fresh=None if fresh is None else (fresh, due_us),
                source=source,
                now_us=now,
            )
        except StoreError as exc:
            return exc
        self._commit_soon(series)
        return None

    def _commit_soon(self, series: _Series) -> None:
        """See that a page reaches the disk although no other follows it: the venue may be silent for minutes."""
        with series.changed:
            if series.is_committing:
                return
            series.is_committing = True
        try:
            self._scheduler.call_later(self._settings.group_commit_s, lambda: self._commit(series))
        except ClosedError:  # whoever closes flushes
            _log.debug("commit.left_to_close market=%s timeframe=%s", series.market, series.timeframe)

    def _commit(self, series: _Series) -> None:
        with series.changed:
            series.is_committing = False
        try:
            self._store.flush(series.market, series.timeframe)
        except StoreError as exc:
            with series.changed:
                for waiting in series.pending.values():
                    waiting.store_error = waiting.store_error or exc
        _give_back()

    def _believe(self, series: _Series, page: Page, verdict: Verdict, reply: CandlePage, is_contradicted: bool) -> None:
        """Raise `PayloadError` for silence that cannot be: a known candle is missing in the reply, candles are held
        from before it, or there is not even a newest one."""
        is_silent = verdict.edge_us is not None or verdict.proof.holds(EARLIEST_US)
        edge = page.claim.end if verdict.edge_us is None else verdict.edge_us
        held = self._store.oldest(series.market, series.timeframe) if is_silent else None
        if is_contradicted:
            why = "its answer lacks a candle that is known to be there, or any candle at all"
        elif held is not None and held < edge:
            why = "it says there is nothing before a time from before which rows are stored"
        else:
            return
        raise PayloadError(
            f"{series.market} {series.timeframe}: the venue was not believed, {why}; the span stays unknown",
            market=series.market,
            sample=f"{reply.rows} rows for to={page.to_us}",
        )

    def _first_after(self, series: _Series, edge_us: int) -> int | None:
        """The open of the first candle held in the page of slots behind `edge_us`."""
        behind = Span(edge_us, series.timeframe.next(series.timeframe.ceil(edge_us), PAGE))
        times = times_of(self._store.read(series.market, series.timeframe, behind).table)
        return int(times[0]) if len(times) else None

    def _provable(self, timeframe: Timeframe, proof: SpanSet, oldest_us: int | None) -> tuple[SpanSet, SpanSet]:
        """What a reply's silence proves, and what it does not: there the venue may have forgotten its candles."""
        kept = self._settings.venue.retention(timeframe.name)
        if kept is None or not proof.holds(EARLIEST_US):
            return proof, _NOTHING
        sure_us = timeframe.ceil(self._venue.now_us() - kept.sure_days * DAY_US)
        lost = proof & SpanSet([Span(EARLIEST_US, sure_us if oldest_us is None else min(sure_us, oldest_us))])
        return proof - lost, lost

    def _refuse_locked(
        self, series: _Series, pending: Pending, page: Page, cause: BackboneError, is_disbelieved: bool
    ) -> None:
        fatal = isinstance(cause, RejectedError | ClosedError) or (isinstance(cause, RateLimitedError) and cause.banned)
        pending.failures += 1
        is_outage = pending.patient and isinstance(cause, UnreachableError) and pending.failures < _PATIENCE
        if is_outage or (is_disbelieved and pending.failures < _FAILURES):
            series.plan.retract(page)  # asked again, by whoever is next
            return
        series.plan.fail(page, cause)
        for want, waiting in series.pending.items():
            if fatal or (waiting is pending and waiting.failures >= _FAILURES):
                series.plan.give_up(want, cause)

    def _finish(self, pending: Pending) -> None:
        with pending.series.changed:
            callback, pending.on_done = pending.on_done, None
        if callback is not None:
            callback(pending)

    # -- the newest so many --------------------------------------------------------------------------------------

    def reach_back(self, market: str, timeframe: Timeframe, end_us: int, count: int) -> tuple[Span, Span | None]:
        """Where the newest `count` candles before `end_us` begin, as far as is known.

        Returns the span known without a hole before `end_us`, cut to hold at most `count` rows, and the span to fetch
        next (None when `count` rows are known or history ends).
        """
        listed = self._store.quiet_before(market, timeframe)
        window = max(1, count)
        while True:
            start = max(listed, timeframe.next(timeframe.floor(end_us), -window))
            look = self._look(market, timeframe, Span(start, end_us))
            spans = list(look.have | look.derived)
            known = spans[-1] if spans and spans[-1].end >= end_us else Span(end_us, end_us)
            with self._series_of(market, timeframe) as series:
                table = self._told(series, known, look.stored, SpanSet(), 0, look.derived).table
            times = times_of(table)
            times = times[np.searchsorted(times, known.start) :]
            if len(times) >= count:
                return Span(int(times[len(times) - count]), end_us), None
            if known.start > start:
                return known, self._before(market, timeframe, known.start, count - len(times), listed)
            if start <= listed:
                return known, None
            window *= 4

    def _before(self, market: str, timeframe: Timeframe, end_us: int, rows: int, listed: int) -> Span:
        """The span before `end_us` that should hold `rows` candles."""
        slots = self.slots_for(market, timeframe, rows)
        return Span(max(listed, timeframe.next(timeframe.floor(end_us), -slots)), end_us)

    def section_end(self, market: str, timeframe: Timeframe, span: Span, end_us: int) -> int:
        """Where a section of a long job that begins at `span`'s start should end: `end_us`, or the end of a file."""
        return end_us if self.archive is None else self.archive.section_end(market, timeframe, span, end_us)

    def slots_for(self, market: str, timeframe: Timeframe, rows: int) -> int:
        """How many slots should hold `rows` candles, going by the density seen so far."""
        with self._series_of(market, timeframe) as series:
            return max(1, int(rows / max(series.plan.density, 1e-4)))

    def close(self) -> None:
        """End every wait with `ClosedError`."""
        with self._lock:
            self._closed = True
            series = list(self._series.values())
        for one in series:
            with one.changed:
                waiting = list(one.pending.values())
                for pending in waiting:
                    one.plan.give_up(pending.want, ClosedError("the client was closed while this was being fetched"))
                one.changed.notify_all()
            for pending in waiting:
                self._finish(pending)


def _give_back() -> None:
    """Return to the system what this thread's commits took: 0.2 ms, after pages that took far longer.

    Arrow's allocator keeps for each thread what was freed in another, and many threads commit: a client that held
    30 MB had grown to 800 MB after ten minutes of mixed use, with this to a third of it.
    """
    pa.default_memory_pool().release_unused()


def _out_of_reach(start_us: int) -> InputError:
    start = f"{np.datetime64(start_us, 'us').astype('datetime64[s]')}Z"
    return InputError("start", start, "the venue keeps 1-second candles for the last three months only")


class _Locked:
    """``with``: a series with its condition held."""

    def __init__(self, series: _Series) -> None:
        self._series = series

    def __enter__(self) -> _Series:
        self._series.changed.acquire()
        return self._series

    def __exit__(self, *exc: object) -> None:
        self._series.changed.release()


def _tiers(now: dict[str, int], fresh: int, before: dict[str, int] | None) -> dict[str, int]:
    """Row counts by source: `fresh` rows came from the venue (and are read back from memory), the others from where
    they were `before` that, if it is known."""
    if before is not None and sum(now.values()) - fresh == sum(before.values()):
        return {**before, "rest": fresh}
    left = dict(now)
    rows = fresh
    for name in ("memory", "disk"):
        taken = min(rows, left.get(name, 0))
        left[name] = left.get(name, 0) - taken
        rows -= taken
    return {**left, "rest": fresh}


def incomplete(answers: Sequence[CandleAnswer], timeframe: Timeframe) -> IncompleteError | None:
    """The one error for what could not be had, or None. A single cause of the venue's is named first."""
    gaps = [gap for answer in answers for gap in answer.gaps]
    if not gaps:
        return None
    causes = [cause for answer in answers for cause in answer.causes]
    rows = sum(answer.table.num_rows for answer in answers)
    unknown = sum(answer.unknown for answer in answers)
    markets = ", ".join(a.market for a in answers if a.gaps)
    why = f": {causes[0]}" if causes else ": not held"
    return IncompleteError(
        f"{markets} {timeframe}: {unknown} candles in {len(gaps)} {'gap' if len(gaps) == 1 else 'gaps'} could not be "
        f"had{why}. The {rows} rows that "
        "arrived are stored and in .frame; the same call asks only for the gaps (.gaps).",
        gaps=gaps,
        causes=causes,
    )
