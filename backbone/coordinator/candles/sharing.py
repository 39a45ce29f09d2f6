"""Which page is asked next where other clients on the same folder fetch the same candles: the work is split.

Clients see which pages are on their way (`backbone.storage.claims`) and ask for others. Before a page is asked, and
while all that is missing is being asked by others, it is read again what they have stored.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable

import msgspec

from backbone.clock import VenueClock
from backbone.coordinator.candles.pending import Pending
from backbone.coordinator.candles.planner import SeriesPlan
from backbone.coordinator.candles.witness import Page
from backbone.coordinator.scheduler import Scheduler
from backbone.errors import BackboneError, ClosedError
from backbone.model import Span
from backbone.storage.claims import Claims, Others, spans_claimed
from backbone.storage.coverage import SpanSet
from backbone.storage.store import CandleStore
from backbone.timeframe import Timeframe

__all__ = ["Series", "Sharing"]

_log = logging.getLogger("backbone.candles")

_REFRESH_S = 0.03  # how often what others have stored is read by whoever waits for it
_AHEAD = 4  # pages that are claimed with one: together half a second at the legal rate
_NOTHING = SpanSet()


class Series(msgspec.Struct, eq=False):
    """One market's candles of one timeframe while they are fetched; ``changed`` guards everything but the claims.

    others, ended : what other clients do, as seen last, and what they fetched until lately: stored, or given up.
    unwritten : this client's claims whose pages have arrived and are not on disk yet.
    commit_due_s : when what arrived is to be written, monotonic; infinity where nothing waits, minus infinity while it
    is being written. ``has_more``: something arrived since that was arranged.
    is_refreshing : whether what others have stored is about to be read again.
    generation : the market's, as seen last. ``is_sampling``: whether a page is of another unit is being found out, and
    nothing is asked until then; ``parked`` replies are taken after it. ``keeping`` is held while a page is compared and
    kept: of two neighbours one sees the other.
    """

    market: str
    timeframe: Timeframe
    plan: SeriesPlan
    claims: Claims
    changed: threading.Condition = msgspec.field(default_factory=threading.Condition)
    others: Others = msgspec.field(default_factory=Others)
    ended: list[Span] = msgspec.field(default_factory=list)
    unwritten: list[Span] = msgspec.field(default_factory=list)
    commit_due_s: float = math.inf
    has_more: bool = False
    is_refreshing: bool = False
    generation: int = 0
    is_sampling: bool = False
    parked: list[Callable[[BackboneError | None], None]] = msgspec.field(default_factory=list)
    keeping: threading.Lock = msgspec.field(default_factory=threading.Lock)

    def others_of(self, pending: Pending) -> SpanSet:
        """What `pending` leaves to other clients."""
        claims = self.others.claims
        return spans_claimed(claims, pending.priority.rank) if claims and pending.is_shared else _NOTHING

    def see_locked(self, others: Others) -> None:
        """Take note of what other clients do now."""
        if self.others.claims:
            spans = {Span(claim.start, claim.end) for claim in others.claims}
            self.ended += {Span(claim.start, claim.end) for claim in self.others.claims} - spans
        self.others = others

    def end_done(self) -> None:
        """Wake and end whoever has all."""
        with self.changed:
            finished = [one for one in self.plan.waiting if one.is_done]
            if finished:  # nobody waits for a single page
                self.changed.notify_all()
        for done in finished:
            done.finish()


class Sharing:
    """Chooses pages together with the other clients on the folder; `go_on` plans anew where they left something."""

    def __init__(
        self, scheduler: Scheduler, store: CandleStore, venue: VenueClock, go_on: Callable[[Series], None]
    ) -> None:
        self._scheduler = scheduler
        self._store = store
        self._venue = venue
        self._go_on = go_on

    def next_page(self, series: Series, pending: Pending) -> Page | None:
        """The page to ask now for `pending`: one that nobody else is asking, and that nobody has stored meanwhile."""
        page: Page | None = None
        claim: Span | None = None
        rank = pending.priority.rank

        def choose(others: Others) -> Span | None:
            nonlocal page, claim
            with series.changed:
                series.see_locked(others)
                theirs = series.others_of(pending)
                page = None if series.is_sampling else series.plan.next_page(pending, theirs)
                claim = None if page is None else series.plan.ahead(page, pending, theirs, _AHEAD)
            return claim

        is_unchanged = series.claims.is_unchanged()
        with series.changed:
            pending.queued -= 1
            page = None if series.is_sampling else series.plan.upcoming(pending, series.others_of(pending))
            is_claimed = is_unchanged and page is not None and series.claims.has(page.claim, rank)
            if page is not None and is_claimed:
                series.plan.ask(page, pending)
        while not is_claimed:
            series.claims.take(rank, choose)
            if page is None or claim is None or page.confirms or page.seeks or not pending.is_shared:
                break
            if pending.checked == series.others.ended:
                break
            pending.checked = series.others.ended
            found = self._stored(series, pending.missing)
            with series.changed:
                series.plan.found(found)
                is_stored = found.touches(page.claim)
                if is_stored:
                    series.plan.withdraw(page)
            if found:
                self.later(series, 0.0, series.end_done)
            if not is_stored:
                break
            series.claims.release([claim])
        self.look_later(series)
        return page

    def end_claims(self, series: Series) -> None:
        """End this client's claims on what nobody here waits for any more, and what is on disk or will not be had."""

        def needed() -> SpanSet:
            with series.changed:
                return series.plan.needed | SpanSet(series.unwritten)

        series.claims.keep(needed)

    def _stored(self, series: Series, missing: SpanSet) -> SpanSet:
        """What of `missing` is held by now and need not be asked again."""
        market, timeframe, whole = series.market, series.timeframe, missing.bounds
        held = _NOTHING if whole is None else missing & self._store.coverage(market, timeframe, whole)
        if not held or whole is None:
            return _NOTHING
        return held - self._store.due(market, timeframe, whole, self._venue.now_us())

    def later(self, series: Series, delay_s: float, job: Callable[[], None]) -> None:
        """Run `job` in a while; never once the client is closed: every wait was ended, and whoever closes flushes."""
        try:
            self._scheduler.call_later(delay_s, job)
        except ClosedError:
            _log.debug("candles.left_to_close market=%s timeframe=%s", series.market, series.timeframe)

    def look_later(self, series: Series) -> None:
        """Have what others have stored read again, where somebody waits for it."""
        with series.changed:
            if not (series.others.claims or series.ended) or series.is_refreshing:
                return
            if not series.ended and not any(one.missing & series.others_of(one) for one in series.plan.waiting):
                return
            series.is_refreshing = True
        self.later(series, _REFRESH_S, lambda: self._refresh(series))

    def _refresh(self, series: Series) -> None:
        """Take what others have stored since, and ask for what they gave up."""
        others = series.claims.look()
        with series.changed:
            series.is_refreshing = False
            series.see_locked(others)
            ended, series.ended = series.ended, []
            missing = SpanSet(span for one in series.plan.waiting for span in one.missing)
        if ended:
            found = self._stored(series, missing & SpanSet(ended))
            with series.changed:
                series.plan.found(found)
            series.end_done()
            self._go_on(series)
        for one in list(series.plan.waiting):
            if one.on_page is not None:  # a job may begin another section meanwhile
                one.on_page()
        self.look_later(series)
