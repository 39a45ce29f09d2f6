"""Candles on their way: what is missing is planned, asked page by page, checked, stored, and only then answered.

One `SeriesPlan` a market and timeframe is shared by everyone who waits for it, so identical requests are one, and a
foreground call takes the page that a backfill had queued. Pages arrive on the scheduler's workers; each is checked, put
into the store with what it proves, and only then taken out of the plan, so whoever is woken finds its rows.

Which pages other clients on the folder ask for meanwhile is `sharing`'s to say.

A series' condition guards its plan and the counters beside it; storage, scheduling and callbacks happen outside it.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec.structs import replace

from backbone.candle_table import count_inside, rows_inside, times_of
from backbone.clock import Clock, Deadline, VenueClock
from backbone.coordinator.candles.pending import Pending
from backbone.coordinator.candles.planner import SeriesPlan, pages_needed
from backbone.coordinator.candles.reader import CandleAnswer, CandleReader, Fetched, Held, out_of_reach
from backbone.coordinator.candles.redenomination import OtherUnitError, OutdatedError, Redenominations
from backbone.coordinator.candles.sharing import Series, Sharing
from backbone.coordinator.candles.witness import EARLIEST_US, FOREVER_US, Page, Verdict, check, judge, shows_since
from backbone.coordinator.scheduler import Scheduler
from backbone.errors import (
    BackboneError,
    ClosedError,
    PayloadError,
    RateLimitedError,
    RejectedError,
    StoreError,
    UnreachableError,
)
from backbone.locks import RUN_LOCK
from backbone.model import Priority, Span
from backbone.routing.rest import Reply
from backbone.routing.wire import PAGE, Ask, CandlePage, candles_ask
from backbone.settings import Settings
from backbone.storage.coverage import SpanSet
from backbone.storage.store import CandleStore
from backbone.timeframe import Timeframe

if TYPE_CHECKING:
    from backbone.coordinator.candles.archive import Archive
    from backbone.routing.archive import ArchiveFile

__all__ = ["CandleFetcher", "CandlePlan"]

GROUP = "candles"
_WINDOW = {Priority.LOW: 3}  # places of one fetch in the queue; low work is paced one by one anyway
_BURST = 10
_FIRST_BURST = 5  # before the first reply the density is a guess: enough for 1,000 candles, little lost if it is thin
_FAILURES = 3  # final failures after which a fetch stops asking: the venue is down, not a page
_PATIENCE = 200  # the same for a job: the scheduler tries each for some seconds, so a quarter of an hour's outage
_SHARED_COMMIT_S = 0.1  # others wait for what arrived
_NOTHING = SpanSet()

Again = Callable[[Any, int, bool], None]  # the reply, the generation that it is of, whether its unit is known


class CandlePlan(msgspec.Struct, frozen=True):
    """What a range would take: spans held, spans that can be folded from minutes, gaps, pages and seconds."""

    market: str
    timeframe: Timeframe
    span: Span
    cached: tuple[Span, ...]
    derived: tuple[Span, ...]
    gaps: tuple[Span, ...]
    pages: int
    seconds: float


class CandleFetcher:
    """The coordinator's candle strategy: split by time.

    archive : another source for whole closed months and days, where the user opened it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        store: CandleStore,
        reader: CandleReader,
        venue: VenueClock,
        clock: Clock,
        settings: Settings,
        archive: Archive | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._store = store
        self._venue = venue
        self._clock = clock
        self._settings = settings
        self._lock = threading.Lock()  # guards _series and _closed
        self._series: dict[tuple[str, str], Series] = {}
        self._closed = False
        self._sharing = Sharing(scheduler, store, venue, self._top_up)
        self.reader = reader
        self.archive = archive
        self.units = Redenominations(store, reader, scheduler, venue, settings)

    # -- what a request would do ---------------------------------------------------------------------------------

    def explain(self, market: str, timeframe: Timeframe, span: Span, rate: float) -> CandlePlan:
        """The plan for `span`, without asking the venue; `rate` is requests a second."""
        held = self.reader.read(market, timeframe, span)
        with self._series_of(market, timeframe) as series:
            density = series.plan.density
        files = [] if self.archive is None else self.archive.files(market, timeframe, held.gaps, may_ask=False)
        pages = 3 * len(files)  # a checksum, the file, a page to compare it with
        asked = held.gaps - SpanSet(file.span for file in files)
        beside = self.units.joins(market, timeframe, asked).rows_beside
        pages += pages_needed(timeframe, asked, PAGE, density, beside)
        cached, derived, gaps = held.have.spans, held.derived.spans, held.gaps.spans
        return CandlePlan(market, timeframe, span, cached, derived, gaps, pages, pages / rate)

    def section_end(self, market: str, timeframe: Timeframe, span: Span, end_us: int) -> int:
        """Where a section of a long job that begins at `span`'s start should end: `end_us`, or the end of a file."""
        return end_us if self.archive is None else self.archive.section_end(market, timeframe, span, end_us)

    def slots_for(self, market: str, timeframe: Timeframe, rows: int) -> int:
        """How many slots should hold `rows` candles, going by the density seen so far."""
        with self._series_of(market, timeframe) as series:
            return max(1, int(rows / max(series.plan.density, 1e-4)))

    def pages_left(self, pending: Pending) -> int:
        """How many more pages are to be asked for `pending`, going by the density seen so far."""
        series = self._series[pending.market, pending.timeframe.name]
        with series.changed:
            return series.plan.pages_left(pending, series.others_of(pending))

    # -- fetching ------------------------------------------------------------------------------------------------

    def begin(self, pending: Pending) -> Pending:
        """Start fetching what is unknown in the span of `pending`; returns it at once."""
        market, timeframe, span = pending.market, pending.timeframe, pending.span
        with self._series_of(market, timeframe) as series:
            series.plan.begin_read()
        try:
            pending.generation = self.units.generation(market)
            held = self.reader.read(market, timeframe, span)
            if pending.newest:
                held = _with_newest(held, timeframe, span)
            if pending.refresh:
                held = replace(held, derived=_NOTHING, gaps=SpanSet([span]))
            files = [] if self.archive is None or pending.refresh else self.archive.files(market, timeframe, held.gaps)
            pending.joins = self.units.joins(market, timeframe, held.gaps)
        except BaseException:
            with series.changed:
                series.plan.end_read()
            raise
        lost = self.reader.forgotten(timeframe, held.gaps) - SpanSet(file.span for file in files)
        pending.held, pending.changed = held, series.changed
        with self._series_of(market, timeframe) as series:
            meanwhile = series.plan.end_read()
            series.generation = max(series.generation, pending.generation)
            pending.gaps = held.gaps - lost if pending.refresh else held.gaps - lost - meanwhile
            pending.missing = pending.gaps | lost
            if lost:
                series.plan.give_up(pending, out_of_reach(span.start), lost)
            series.plan.add(pending)
            is_finished = pending.is_done
        try:
            self._take_files(series, pending, files)
            if is_finished:
                pending.finish()
            else:
                self._top_up(series)
        except BaseException:  # an interrupt: nobody will wait for it
            self.release(pending)
            raise
        return pending

    def wait(
        self,
        pending: Pending,
        watch: Callable[[], None] | None = None,
        every_s: float = 0.2,
        deadline: Deadline | None = None,
    ) -> None:
        """Block until `pending` has all it can have, or `deadline`: then what it misses is given up.

        Pages in flight are kept when they arrive. `watch` is called now and then, on this thread.
        """
        try:
            while True:
                with pending.changed:
                    if pending.is_done:
                        return
                    left_s = every_s if deadline is None else min(every_s, deadline.left_s())
                    if left_s > 0:
                        self._clock.wait(pending.changed, left_s)
                if deadline is not None and deadline.left_s() <= 0:
                    cause = self._scheduler.failure(GROUP)
                    self.abandon(pending, deadline.error(f"{pending.market} {pending.timeframe}", cause))
                    return
                if watch is not None:
                    watch()
        finally:
            self.release(pending)

    def release(self, pending: Pending) -> None:
        """`pending` is not waited for any more; pages in flight are still kept when they arrive."""
        series = self._series[pending.market, pending.timeframe.name]
        with series.changed:
            series.plan.drop(pending)
        self._sharing.end_claims(series)

    def abandon(self, pending: Pending, cause: BaseException) -> None:
        """Stop asking for `pending`: what it still misses is failed with `cause`."""
        series = self._series[pending.market, pending.timeframe.name]
        with series.changed:
            series.plan.give_up(pending, cause)
            series.changed.notify_all()
        self._sharing.end_claims(series)
        pending.finish()

    def flush(self, markets: Sequence[str], timeframe: Timeframe) -> None:
        """Make what arrived durable."""
        for market in markets:
            self._write(self._series[market, timeframe.name])
        if markets:
            _give_back()

    def answer(
        self,
        pending: Pending,
        span: Span | None = None,
        fetched: Fetched = Fetched(),  # noqa: B008 (frozen)
    ) -> CandleAnswer:
        """What the store now has of `pending`'s span (or of `span`), as far as it is closed, and what it lacks.

        `fetched` is what the same call fetched before.
        """
        span = pending.span if span is None else span
        span = Span(span.start, max(span.start, min(span.end, pending.closed_us)))
        with pending.changed:
            causes, brought = tuple(pending.causes), fetched + pending.fetched
        is_as_begun = not pending.held.gaps and span == pending.span and not self.units.is_outdated(pending)
        found = self.reader.recall(
            pending.market,
            pending.timeframe,
            span,
            brought,
            held=pending.held if is_as_begun else None,
            causes=causes,
            before=None if fetched.spans else pending.held.stored.tiers,
        )
        return replace(found, forming=pending.forming)

    # -- files of the archive ------------------------------------------------------------------------------------

    def _take_files(self, series: Series, pending: Pending, files: Sequence[ArchiveFile]) -> None:
        """Ask the archive for `files`, unless their spans are being asked for."""
        for file in files:
            with series.changed:
                claim, generation = series.plan.claim(file.span), series.generation
            if claim is not None and self.archive is not None:
                taken = functools.partial(self._taken, series, pending, file, claim, generation=generation)
                self.archive.fetch(file, pending.priority, taken)

    def _taken(
        self,
        series: Series,
        pending: Pending,
        file: ArchiveFile,
        claim: Page,
        outcome: pa.Table | BackboneError,
        generation: int,
        is_compared: bool = False,
    ) -> None:
        """A file of the archive: its candles into the store, its claim out of the plan; without it, pages are asked."""
        rows = 0
        proof = pending.gaps.clip(file.span)
        if not isinstance(outcome, BackboneError):
            try:
                with ExitStack() as keeping:
                    keeping.enter_context(RUN_LOCK.holding(series.keeping))
                    beside = pending.joins.held if pending.generation == generation else outcome.slice(0, 0)
                    if not is_compared:
                        is_first = not pending.is_compared
                        self.units.check(series.market, series.timeframe, outcome, proof, beside, is_first=is_first)
                    table = rows_inside(outcome, proof)
                    rows = table.num_rows
                    error = self._keep(series, table, proof, generation, keeping, source="archive")
                    pending.is_compared = True
            except OutdatedError as exc:  # it was asked before the unit changed: pages are asked
                outcome = exc
            except OtherUnitError as exc:
                again = functools.partial(self._taken, series, pending, file, claim)
                self._decide(series, pending, outcome, generation, exc, again)
                return
        with series.changed:
            if isinstance(outcome, BackboneError):
                self._untake_locked(series, claim, outcome)
            else:
                for one in {pending, *series.plan.waiting}:
                    one.archived = one.archived | proof
                pending.failed = pending.failed - proof
                series.plan.settle(claim, Verdict(proof), rows)
                pending.rows += rows
                pending.store_error = pending.store_error or error
        series.end_done()
        if file.is_month and isinstance(outcome, RejectedError) and self.archive is not None:
            days = self.archive.files(series.market, series.timeframe, pending.missing.clip(file.span))
            self._take_files(series, pending, days)
        self._top_up(series)

    def _untake_locked(self, series: Series, claim: Page, cause: BackboneError) -> None:
        """The file is not to be had: its span is asked of REST, as far as REST has it."""
        lost = self.reader.forgotten(series.timeframe, SpanSet([claim.claim]))
        series.plan.retract(claim)
        for one in series.plan.waiting:
            if isinstance(cause, ClosedError):
                series.plan.give_up(one, cause)
            elif lost:
                series.plan.give_up(one, out_of_reach(claim.claim.start), lost)

    # -- pages ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _series_of(self, market: str, timeframe: Timeframe) -> Iterator[Series]:
        """A series with its condition held."""
        with self._lock:
            if self._closed:
                raise ClosedError("the client is closed; make a new one")
            key = (market, timeframe.name)
            series = self._series.get(key)
            if series is None:
                claims = self._store.claims(market, timeframe)
                series = self._series[key] = Series(market, timeframe, SeriesPlan(timeframe, PAGE), claims)
        with series.changed:
            yield series

    def _top_up(self, series: Series) -> None:
        """Queue as many places as the fetches under way have pages left, within their windows."""
        fresh: list[Pending] = []
        with series.changed:
            for pending in series.plan.waiting if not series.is_sampling else []:
                if pending.is_done:
                    continue
                burst = _BURST if series.plan.has_learned else _FIRST_BURST
                window = _WINDOW.get(pending.priority, burst)
                left = series.plan.pages_left(pending, series.others_of(pending))
                more = max(0, min(window, left) - pending.queued)
                pending.queued += more
                fresh += [pending] * more
        for pending in fresh:
            self._enqueue(series, pending)
        self._sharing.look_later(series)

    def _enqueue(self, series: Series, pending: Pending) -> None:
        """One place in the queue for `pending`; what it asks is decided when its permit opens."""
        page: Page | None = None
        generation = 0

        def bind() -> Ask | None:
            nonlocal page, generation
            page, generation = self._sharing.next_page(series, pending), series.generation
            if page is None:
                return None
            return candles_ask(series.market, series.timeframe, page.bound_us, page.count)

        def done(_: Ask | None, outcome: Reply | BackboneError) -> None:
            if page is not None:
                self._arrived(series, pending, page, outcome, generation)
            elif isinstance(outcome, BackboneError):  # its turn never came: a ban or a close ended the whole queue
                self._ended(series, pending, outcome)

        self._scheduler.submit(GROUP, pending.priority, bind, done)

    def _arrived(
        self,
        series: Series,
        pending: Pending,
        page: Page,
        outcome: Reply | BackboneError,
        generation: int,
        is_compared: bool = False,
    ) -> None:
        """A page's outcome, on a worker: into the store, out of the plan, and whoever waits is woken.

        `generation` is the one under which it was asked; `is_compared`: its unit is known."""
        rows, is_invalid = 0, False
        if not isinstance(outcome, BackboneError):
            try:
                rows = self._accept(series, pending, page, outcome.value, generation, is_compared)
            except OtherUnitError as exc:
                if not self.units.was_overtaken(pending, page.claim, outcome.sent_s):
                    again = functools.partial(self._arrived, series, pending, page)
                    self._decide(series, pending, outcome, generation, exc, again)
                    return
                outcome = exc
            except BackboneError as exc:
                outcome, is_invalid = exc, isinstance(exc, PayloadError)
        with series.changed:
            if isinstance(outcome, BackboneError):
                self._refuse_locked(series, pending, page, outcome, is_invalid)
            pending.rows += rows
            if pending.enough is not None and pending.rows >= pending.enough:
                series.plan.forget(pending, [Span(EARLIEST_US, FOREVER_US)])
        if isinstance(outcome, BackboneError):
            series.claims.release([page.claim])
        series.end_done()
        self._top_up(series)
        if rows and not isinstance(outcome, BackboneError):
            self._store.make_room(series.market, series.timeframe, int(times_of(outcome.value.table)[0]))
        if pending.on_page is not None:
            pending.on_page()

    def _ended(self, series: Series, pending: Pending, cause: BackboneError) -> None:
        """The queue lost a place of `pending` before it asked anything: what is still missing will not be had."""
        with series.changed:
            pending.queued = max(0, pending.queued - 1)
            series.plan.give_up(pending, cause)
            series.changed.notify_all()
        pending.finish()

    def _decide(
        self, series: Series, pending: Pending, reply: Any, generation: int, found: OtherUnitError, again: Again
    ) -> None:
        """Find out the unit of a reply and take it `again` then; where another one's is being found out, after that."""
        with series.changed:
            if series.is_sampling:
                series.parked.append(lambda failed: again(found if failed else reply, generation, False))
                return
            series.is_sampling = True

        def done(decided: int | BackboneError) -> None:
            failed, now = (decided, generation) if isinstance(decided, BackboneError) else (None, decided)
            with series.changed:
                series.is_sampling = False
                series.generation = max(series.generation, now)
                parked, series.parked = series.parked, []
            again(failed or reply, now, True)
            for each in parked:
                each(failed)

        pages = self.units.decide(series.market, series.timeframe, found, generation, pending.priority, done)
        with series.changed:
            pending.pages += pages

    def _accept(
        self, series: Series, pending: Pending, page: Page, reply: CandlePage, generation: int, is_compared: bool
    ) -> int:
        """Store what a reply proves and settle its page; how many of its rows `pending` had waited for.

        Raises `PayloadError` for a reply that contradicts what is held, `OtherUnitError` for one that does so by one
        factor: nothing of it is kept.
        """
        timeframe = series.timeframe
        times = times_of(reply.table)
        verdict = judge(page, reply.oldest_us, reply.rows)
        known = self._store.oldest(series.market, timeframe) if verdict.has_beginning else None
        check(page, verdict, int(times[-1]) if len(times) else None, known, f"{series.market} {timeframe}")
        boundary = self.reader.closed_before(timeframe)
        proof = verdict.proof - SpanSet([Span(boundary, FOREVER_US)])
        proof, lost = self.reader.provable(timeframe, proof, reply.oldest_us)
        table = reply.table
        if page.to_us > boundary:
            table = table.slice(0, int(np.searchsorted(times, boundary)))
        with ExitStack() as keeping:
            keeping.enter_context(RUN_LOCK.holding(series.keeping))
            if not is_compared:
                beside = pending.joins.held if pending.generation == generation else table.slice(0, 0)
                is_first = not pending.is_compared
                self.units.check(series.market, timeframe, table, proof, beside, is_first=is_first)
                if reply.rows >= page.count and reply.oldest_us is not None:
                    proof = pending.joins.shown(timeframe, page.claim, proof, reply.oldest_us)
                    table = rows_inside(table, proof)
            beyond = self._unheld(series, page, proof, table)
            error = self._keep(series, table, proof, generation, keeping, claim=page.claim)
            pending.is_compared = pending.is_compared or table.num_rows > 0
        anchor = None if verdict.edge_us is None else self.reader.first_after(series.market, timeframe, verdict.edge_us)
        with series.changed:
            news = count_inside(table, (pending.missing | pending.failed) & proof)
            series.plan.settle(page, Verdict(proof, verdict.edge_us), table.num_rows, anchor_us=anchor)
            for one in {pending, *series.plan.waiting}:  # also where it had been given up and is not waited for
                one.failed = one.failed - proof
                since_us = min(boundary, one.span.end)  # what closed after its range was fixed is in no answer else
                if one.newest and page.bound_us is None and shows_since(since_us, reply.oldest_us) and not page.seeks:
                    one.forming = rows_inside(reply.table, [Span(since_us, FOREVER_US)])
                one.beyond = one.beyond | beyond
            for one in series.plan.waiting:
                series.plan.forget(one, [Span(boundary, FOREVER_US)])
                if lost:
                    series.plan.give_up(one, out_of_reach(lost.spans[0].start), lost)
                one.closed_us = min(one.closed_us, boundary)
                one.store_error = one.store_error or error
        return news

    def _unheld(self, series: Series, page: Page, proof: SpanSet, table: pa.Table) -> SpanSet:
        """Where a reply brings rows outside what it was asked for that were not held."""
        if not table.num_rows:
            return _NOTHING
        times = times_of(table)
        brought = Span(int(times[0]), int(times[-1]) + 1)
        beyond = proof.clip(brought) - SpanSet([page.claim])
        return beyond and beyond - self._store.coverage(series.market, series.timeframe, brought)

    def _keep(
        self,
        series: Series,
        table: pa.Table,
        proof: SpanSet,
        generation: int,
        keeping: ExitStack,
        *,
        source: str = "rest",
        claim: Span | None = None,
    ) -> StoreError | None:
        """Give the store what a reply proved; what has only just closed is to be asked once more.

        `keeping` is ended once its rows are readable: while something goes to disk, pages that come meanwhile would
        hold a worker each. Its `claim` ends when it is on disk, where others can see it.
        An error of the disk's is for whoever waits: the rows are kept in memory. Raises `OutdatedError` where the
        market's rows were quarantined since it was asked.
        """

        def readable() -> None:
            self.units.note_kept(series.market, self._clock.monotonic())
            keeping.close()

        now = self._venue.now_us()
        settled = self.units.settled_us(series.timeframe)
        provisional = (proof & SpanSet([Span(settled, FOREVER_US)])).bounds
        due_us = now + int(self._settings.settle_after_s * 1e6)
        try:
            is_kept = self._store.put(
                series.market,
                series.timeframe,
                table,
                proof,
                provisional=None if provisional is None else (provisional, due_us),
                source=source,
                now_us=now,
                generation=generation,
                readable=readable,
            )
        except StoreError as exc:
            return exc
        if not is_kept:
            with series.changed:
                series.generation = max(series.generation, self.units.generation(series.market))
            raise OutdatedError(f"{series.market} was quarantined meanwhile")
        if claim is not None:
            with series.changed:
                series.unwritten.append(claim)
        self._commit_soon(series)
        return None

    def _commit_soon(self, series: Series) -> None:
        """See that a page reaches the disk although no other follows it: the venue may have nothing for minutes."""
        delay_s = self._settings.group_commit_s
        with series.changed:
            if series.others.claims:
                delay_s = min(_SHARED_COMMIT_S, delay_s)
            due_s = self._clock.monotonic() + delay_s
            if series.commit_due_s <= due_s:
                series.has_more = True
                return
            series.commit_due_s = due_s
        self._sharing.later(series, delay_s, lambda: self._commit(series, due_s))

    def _commit(self, series: Series, due_s: float) -> None:
        with series.changed:
            if series.commit_due_s != due_s:  # another one was sooner
                return
            series.commit_due_s, series.has_more = -math.inf, False
        try:
            self._write(series)
        except StoreError as exc:
            with series.changed:
                for one in series.plan.waiting:
                    one.store_error = one.store_error or exc
        finally:
            with series.changed:
                series.commit_due_s, has_more = math.inf, series.has_more
        if has_more:  # on a slow disk the next commit would hold a worker until this one ended
            self._commit_soon(series)
        _give_back()

    def _write(self, series: Series) -> None:
        """Bring what arrived to disk; the claims on it end, also where that fails: others must not wait for it."""
        with series.changed:
            series.unwritten = []
        try:
            self._store.flush(series.market, series.timeframe)
        finally:
            self._sharing.end_claims(series)

    def _refuse_locked(
        self, series: Series, pending: Pending, page: Page, cause: BackboneError, is_invalid: bool
    ) -> None:
        if isinstance(cause, OutdatedError | OtherUnitError):  # it waited for what did not come
            series.plan.retract(page)
            return
        fatal = isinstance(cause, RejectedError | ClosedError) or (isinstance(cause, RateLimitedError) and cause.banned)
        pending.failures += 1
        is_outage = pending.patient and isinstance(cause, UnreachableError) and pending.failures < _PATIENCE
        if is_outage or (is_invalid and pending.failures < _FAILURES):
            series.plan.retract(page)  # asked again, by whoever is next
            return
        series.plan.fail(page, cause)
        for one in series.plan.waiting:
            if fatal or (one is pending and one.failures >= _FAILURES):
                series.plan.give_up(one, cause)

    def close(self) -> None:
        """End every wait with `ClosedError`."""
        with self._lock:
            self._closed = True
            series = list(self._series.values())
        for one in series:
            with one.changed:
                waiting = list(one.plan.waiting)
                for pending in waiting:
                    one.plan.give_up(pending, ClosedError("the client was closed while this was being fetched"))
                one.changed.notify_all()
            for pending in waiting:
                pending.finish()


def _with_newest(held: Held, timeframe: Timeframe, span: Span) -> Held:
    """`held` with its gaps up to the end of `span`, where one page reaches so far: that page has what forms as well."""
    first_us = min((gap.start for gap in held.gaps), default=span.end)
    to_end = Span(first_us, span.end)
    return replace(held, gaps=SpanSet([to_end])) if 0 < timeframe.count(to_end) < PAGE else held


def _give_back() -> None:
    """Return to the system what this thread's commits took: 0.2 ms, after pages that took far longer.

    Arrow's allocator keeps for each thread what was freed in another, and many threads commit: a client that held
    30 MB had grown to 800 MB after ten minutes of mixed use, with this to a third of it.
    """
    pa.default_memory_pool().release_unused()
