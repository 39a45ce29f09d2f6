"""Closed candles of live markets: asked of REST before they count, compared with what the stream sent, gaps filled.

A live series (market and timeframe) has a moving edge: everything before it is confirmed, which means fetched over the
same queue as any other candle, and stored. When a candle closed on the venue's clock, the interval from the edge is
fetched; after an outage that interval is simply longer, so what was missed is fetched with it. A difference between the
two channels is an event, never hidden; the REST row is the one that is stored.

`Confirmer._lock` guards the series, the gaps and the events; fetching, reading and comparing happen outside it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow as pa

from backbone.candle_table import differing_columns
from backbone.clock import Clock, VenueClock
from backbone.coordinator.candles.fetcher import CandleFetcher
from backbone.coordinator.candles.pending import Pending
from backbone.coordinator.live.latest import LatestRows, Slot
from backbone.coordinator.live.recent import live_candles
from backbone.errors import BackboneError, ClosedError
from backbone.model import LiveCandle, Priority, Span
from backbone.routing.wire import parse_kind, timeframe_of
from backbone.timeframe import TIMEFRAMES, Timeframe

__all__ = ["Confirmer", "LiveEvent"]

MANY = 10
"""Series above which confirmations are bulk work: less often, and behind everybody else's requests."""
_EVERY_US = (10_000_000, 300_000_000)  # least time between two confirmations of a series: few series, many
_RETRY_S = 5.0
_LAST_FRAME_US = 1_500_000  # a candle's last frame may come this long after its end: changes are sent once a second
_SIGN_US = 12_000_000  # how long a sign of life is waited for, so that the streamed row on a candle is its last
_AT_ONCE = 20
_EVENTS = 1000

log = logging.getLogger("backbone.live")


@dataclass(frozen=True)
class LiveEvent:
    """Something about the feed that a reader should know.

    kind : ``"gap"`` (nothing was received in `span`; `filled` once its candles are stored
    and its trades delivered; `detail` says what cannot be had back), ``"difference"`` (stream
    and REST disagree on a closed candle: `streamed`, `confirmed`, one of them None where a channel has no such candle),
    ``"silent"`` (subscribed, but the venue sends nothing), ``"failed"`` (a confirmation could not be had or stored; it
    is tried again), ``"listed"``, ``"delisted"``, ``"state"`` (what a ticker says of its market: its state, a coming
    delisting, suspension, warning).
    """

    kind: str
    at_us: int
    market: str = ""
    timeframe: str = ""
    span: Span | None = None
    filled: bool = False
    detail: str = ""
    streamed: LiveCandle | None = None
    confirmed: LiveCandle | None = None
    number: int = 0


@dataclass(eq=False)
class _Series:
    market: str
    timeframe: Timeframe
    edge_us: int  # confirmed before this
    wants: int = 0
    until_us: int = 0  # a gap needs it confirmed up to here
    is_asking: bool = False
    has_failed: bool = False
    retry_s: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        return self.market, self.timeframe.name

    @property
    def is_urgent(self) -> bool:
        return self.edge_us < self.until_us


@dataclass
class _Gap:
    number: int
    span: Span
    markets: tuple[str, ...]
    waiting: set[tuple[str, str]] = field(default_factory=set)
    trades: set[str] = field(default_factory=set)  # markets whose trades are being fetched
    lost: list[str] = field(default_factory=list)  # what could not be had back


class Confirmer:
    """Confirms the closed candles of live series by REST, and fills the gaps of outages."""

    def __init__(
        self,
        latest: LatestRows,
        candles: CandleFetcher,
        holds: Callable[[str, Timeframe], bool],
        venue: VenueClock,
        clock: Clock,
        grace_us: int,
        wake: Callable[[], None],
        received: Callable[[], float],
    ) -> None:
        self._latest = latest
        self._candles = candles
        self._holds = holds
        self._venue = venue
        self._clock = clock
        self._grace_us = grace_us
        self._wake = wake
        self._last_sign = received  # when anything was last received on the stream, monotonic seconds
        self._lock = threading.Lock()
        self._series: dict[tuple[str, str], _Series] = {}
        self._gaps: list[_Gap] = []
        self._new_gaps: list[_Gap] = []
        self._events: deque[LiveEvent] = deque(maxlen=_EVENTS)
        self._number = 0

    # -- events --------------------------------------------------------------------------------------------------

    def record(self, event: LiveEvent) -> None:
        """Keep an event."""
        with self._lock:
            self._record_locked(event)
        log.info("live.%s market=%s %s", event.kind, event.market, event.detail)

    def _record_locked(self, event: LiveEvent) -> int:
        self._number += 1
        self._events.append(replace(event, number=self._number))
        return self._number

    def events(self, after: int = 0) -> list[LiveEvent]:
        """The newest events, oldest first, from number `after` on."""
        with self._lock:
            return [event for event in self._events if event.number > after]

    @property
    def last_number(self) -> int:
        with self._lock:
            return self._number

    # -- what is live --------------------------------------------------------------------------------------------

    def track(self, slots: Iterable[Slot]) -> None:
        """Confirm the candles of those `slots` that have any, from the one that is forming now on."""
        now_us = self._venue.now_us()
        with self._lock:
            for slot in slots:
                timeframe = timeframe_of(slot.kind)
                if timeframe is not None:
                    series = _Series(slot.market, timeframe, timeframe.floor(now_us))
                    self._series.setdefault(series.key, series).wants += 1

    def untrack(self, slots: Iterable[Slot]) -> None:
        """One reader less; what a gap still needs is fetched nevertheless."""
        with self._lock:
            for slot in slots:
                series = self._series.get((slot.market, str(timeframe_of(slot.kind))))
                if series is not None:
                    series.wants -= 1
                    self._drop_idle_locked(series)

    def _drop_idle_locked(self, series: _Series) -> None:
        if series.wants <= 0 and not series.is_urgent and not series.is_asking:
            self._series.pop(series.key, None)

    def missed(self, span: Span, markets: Iterable[str], trades: Iterable[str] = (), detail: str = "") -> None:
        """Nothing was received in `span` while `markets` were live; the `trades` of some are being fetched.

        Quick: the work is `run`'s. `trades_done` says how the fetching ended.
        """
        with self._lock:
            number = self._record_locked(LiveEvent("gap", self._venue.now_us(), span=span, detail=detail))
            self._new_gaps.append(_Gap(number, span, tuple(markets), trades=set(trades)))
        log.warning("live.gap of %.1f s", span.length_us / 1e6)

    def trades_done(self, market: str, error: BackboneError | None) -> None:
        """The trades of the outages of `market` were fetched, or could not be."""
        with self._lock:
            for gap in [*self._gaps, *self._new_gaps]:
                if market in gap.trades:
                    gap.trades.discard(market)
                    gap.lost += [] if error is None else [f"trades of {market} could not be had back: {error}"]
            self._close_gaps_locked()

    # -- the work ------------------------------------------------------------------------------------------------

    def run(self, now: float) -> float | None:
        """Start what is due; says when to call again (monotonic seconds), None where nothing is to be done."""
        self._open_gaps()
        received_us = self._received_until_us()
        with self._lock:
            due, wake = self._due_locked(now, received_us)
            is_bulk = len(self._series) > MANY
            for series, _ in due:
                series.is_asking = True
        for series, span in due:
            lane = Priority.LOW if is_bulk else Priority.HIGH if series.is_urgent else Priority.NORMAL
            self._ask(series, span, lane)
        return wake

    def _open_gaps(self) -> None:
        """Turn gaps into spans to fetch: of live series, and of live markets whose minutes are kept."""
        with self._lock:
            new, self._new_gaps = self._new_gaps, []
        minute = TIMEFRAMES["1m"]
        for gap in new:
            kept = [market for market in gap.markets if self._holds(market, minute)]
            with self._lock:
                for market in kept:
                    edge = minute.floor(gap.span.start)
                    self._series.setdefault((market, minute.name), _Series(market, minute, edge))
                for key, series in self._series.items():
                    until = series.timeframe.floor(gap.span.end)
                    if series.edge_us < until:
                        series.until_us = max(series.until_us, until)
                        gap.waiting.add(key)
                self._gaps.append(gap)
                for series in list(self._series.values()):
                    self._drop_idle_locked(series)
                self._close_gaps_locked()

    def _close_gaps_locked(self) -> None:
        for gap in list(self._gaps):
            gap.waiting = {key for key in gap.waiting if key in self._series and self._series[key].is_urgent}
            if gap.waiting or gap.trades:
                continue
            self._gaps.remove(gap)
            for i, event in enumerate(self._events):
                if event.number == gap.number:
                    detail = "; ".join(filter(None, [event.detail, *gap.lost]))
                    self._events[i] = replace(event, filled=not gap.lost, detail=detail)

    def _received_until_us(self) -> float:
        """Up to when, on the venue's clock, the stream has sent everything."""
        return self._venue.now_us() - (self._clock.monotonic() - self._last_sign()) * 1e6

    def _due_locked(self, now: float, received_us: float) -> tuple[list[tuple[_Series, Span]], float | None]:
        venue_now = self._venue.now_us()
        every = _EVERY_US[len(self._series) > MANY]
        asking = sum(series.is_asking for series in self._series.values())
        due: list[tuple[_Series, Span]] = []
        wake: float | None = None
        for series in self._series.values():
            if series.is_asking:
                continue
            step = series.timeframe
            end = step.floor(venue_now - self._grace_us)
            next_us = step.next(series.edge_us)
            if not series.is_urgent:
                next_us = max(next_us, step.ceil(series.edge_us + every))
            at = max(series.retry_s, now + (next_us + self._grace_us - venue_now) / 1e6)
            if end >= next_us and at <= now:
                if not series.is_urgent and received_us < end + _LAST_FRAME_US and venue_now < next_us + _SIGN_US:
                    at = now + 1.0
                else:
                    if asking + len(due) < _AT_ONCE:
                        due.append((series, Span(series.edge_us, end)))
                    continue
            wake = at if wake is None else min(wake, at)
        return due, wake

    def _ask(self, series: _Series, span: Span, lane: Priority) -> None:
        done = partial(self._done, series, span)
        pending = Pending(series.market, series.timeframe, span, lane, ascending=True, patient=True, on_done=done)
        try:
            self._candles.begin(pending)
        except ClosedError:
            return
        except BackboneError as error:
            self._retry(series, error)

    def _done(self, series: _Series, span: Span, pending: Pending) -> None:
        """A fetch ended (on a worker): compare, move the edge, or try again later."""
        self._candles.release(pending)
        try:
            answer = self._candles.answer(pending)
            self._candles.flush([series.market], series.timeframe)
            if pending.store_error is not None:
                raise pending.store_error
            if self._candles.units.is_outdated(pending):
                raise BackboneError("what was stored of it was quarantined meanwhile")
        except BackboneError as error:
            self._retry(series, error)
            return
        if answer.gaps:
            causes = [cause for cause in pending.causes if isinstance(cause, BackboneError)]
            if not any(isinstance(cause, ClosedError) for cause in causes):
                self._retry(series, causes[0] if causes else None)
            return
        found = self._compare(series, span, answer.table)
        with self._lock:
            series.edge_us = max(series.edge_us, span.end)
            series.is_asking = False
            series.has_failed = False
            for event in found:
                self._record_locked(event)
            self._close_gaps_locked()
            self._drop_idle_locked(series)
        for event in found:
            log.warning("live.difference market=%s timeframe=%s %s", event.market, event.timeframe, event.detail)
        self._wake()

    def _retry(self, series: _Series, error: BackboneError | None) -> None:
        with self._lock:
            series.is_asking = False
            series.retry_s = self._clock.monotonic() + _RETRY_S
            if not series.has_failed:  # once an outage, not once a try
                series.has_failed = True
                self._record_locked(LiveEvent("failed", self._venue.now_us(), *series.key, detail=str(error)))
        log.warning("live.unconfirmed market=%s timeframe=%s why=%s", series.market, series.timeframe, error)
        self._wake()

    def _compare(self, series: _Series, span: Span, table: pa.Table) -> list[LiveEvent]:
        """The differences between the streamed row and REST's; the table shows REST's."""
        slot = self._latest.slot(parse_kind(f"candle.{series.timeframe}"), series.market)
        ends = (series.timeframe.next(opens) for opens in table.column("time").cast(pa.int64()).to_pylist())
        rows = {candle.time_us: candle for candle in live_candles(series.market, series.timeframe, table, ends)}
        over_us = self._received_until_us() - _LAST_FRAME_US
        with self._latest.lock:
            track = slot.track
            if track is None:
                return []
            streamed = {
                opens: state
                for opens, state in track.finals(span).items()
                if series.timeframe.next(opens) <= over_us or opens < track.newest_us
            }
            expected = {t for t in rows if series.timeframe.next(t) <= over_us and track.was_whole(t)}
            track.forget_before(span.end)
        if slot.held is not None and slot.held.row.time_us in rows:
            self._latest.confirm(slot, rows[slot.held.row.time_us])
        found = []
        for opens in sorted(streamed.keys() | expected):
            ours, theirs = streamed.get(opens), rows.get(opens)
            if ours is None or theirs is None or differing_columns(ours, theirs):
                found.append(self._difference(series, opens, ours, theirs))
        return found

    def _difference(self, series: _Series, opens: int, ours: LiveCandle | None, theirs: LiveCandle | None) -> LiveEvent:
        if ours is None or theirs is None:
            detail = f"only {'REST' if ours is None else 'the stream'} has it"
        else:
            names = differing_columns(ours, theirs)
            detail = ", ".join(f"{name} {getattr(ours, name)!r} became {getattr(theirs, name)!r}" for name in names)
        span = Span(opens, series.timeframe.next(opens))
        return LiveEvent("difference", self._venue.now_us(), *series.key, span, True, detail, ours, theirs)
