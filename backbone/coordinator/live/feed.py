"""Live subscriptions: one WebSocket stream per client, REST polling while it is down, and how fresh each row is.

`Feed` owns the stream: made on first use, stopped with the last subscription. Rows go to the `LatestRows`, on the
stream's thread; all else (polls, confirmations, giving up what is no longer asked for) is decided in `_run_due`, a job
that the scheduler runs when something is due, so that no thread of its own is needed. The fallback mode is visible in
`mode`, on every subscription and in `status`.

How old a row is: a streamed row is known to be the latest for as long as the stream is received. Its age counts from
the last frame or pong of the connection on which it came, not from when it last changed; one that came from REST ages
from its arrival. So the row of a quiet market stays young on a healthy socket, and ages on a dead one.

`Feed._lock` guards the subscriptions, the fallback, the turns and the timer. The stream (but for a look at its state),
the scheduler, the latest rows and the store are called outside it; `_asked_lock` alone is held while the stream gets
the subscriptions that the asks have earned.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from backbone.clock import Clock, VenueClock
from backbone.coordinator.candles.fetcher import CandleFetcher
from backbone.coordinator.live.fallback import POLLED_TRADES, Asked, FallbackState, Polls, group_of
from backbone.coordinator.live.latest import NEVER, LatestRows, Slot
from backbone.coordinator.live.members import ListFollower
from backbone.coordinator.live.reconcile import MANY, Confirmer, LiveEvent
from backbone.coordinator.live.subscription import Subscription
from backbone.coordinator.live.trades import TradesAnswer, walk_trades
from backbone.coordinator.metrics import Metrics
from backbone.coordinator.scheduler import Scheduler
from backbone.coordinator.steps import queue_steps, submit
from backbone.errors import BackboneError, ClosedError
from backbone.model import LiveCandle, MarketInfo, Priority, Span, Ticker, Trade
from backbone.routing.rest import Reply
from backbone.routing.stream import Stream, StreamState
from backbone.routing.wire import KINDS, ORDERBOOK_DEPTH, Ask, channel_of, parse_kind, timeframe_of
from backbone.timeframe import DAY_US, Timeframe
from backbone.venues import Venue

__all__ = ["KINDS", "Feed", "Subscription", "parse_kind", "timeframe_of"]

_ASKED = "asked"
_OFF_S = 300.0
"""After a socket that did not work, asks earn no subscription for so long."""
_HOPELESS_S = 20.0
_REFRESH_S = 1.0
"""How often at least what is due is decided anew while candles are live: clocks may be set."""
_JOIN_S = 1.0
"""The same while markets join."""
_SOONEST_S = 0.1
_STATES = {"ticker": "tickers", "orderbook": "order books"}
_CANDLE_COVERED_S = 1.5
"""The venue sends a candle's changes once a second."""

log = logging.getLogger("backbone.live")
Pair = tuple[str, str]


class Feed:
    """The live half of a client."""

    def __init__(
        self,
        url: str,
        *,
        latest: LatestRows,
        scheduler: Scheduler,
        candles: CandleFetcher,
        holds: Callable[[str, Timeframe], bool],
        venue: VenueClock,
        clock: Clock,
        metrics: Metrics,
        grace_s: float,
        on_list: Callable[[tuple[MarketInfo, ...]], tuple[tuple[MarketInfo, ...], bool]],
        on_condition: Callable[[Ticker], bool] = lambda _: False,
        source: Callable[..., Stream] = Stream,
    ) -> None:
        self.latest = latest
        self.clock = clock
        self._url = url
        self._scheduler = scheduler
        self._venue = venue
        self._metrics = metrics
        self._source_of = source
        self.confirmer = Confirmer(
            latest, candles, holds, venue, clock, int(grace_s * 1e6), self._wake, self.last_sign_s
        )
        self._lock = threading.Lock()
        self._asked_lock = threading.Lock()
        self._source: Stream | None = None
        self._state: StreamState | None = None
        self._subscriptions: list[Subscription] = []
        self._fallback = FallbackState()
        self._polls = Polls()
        self._asked = Asked()
        self._asked_kinds: set[str] = set()  # what is subscribed for them; the asked lock's
        self._asked_off_s = NEVER  # asks earn nothing before this
        self._timer_s = float("inf")
        self._is_closed = False
        self._members = ListFollower(
            scheduler, self.confirmer, venue, clock, self._change, on_list, on_condition, self._wake
        )
        latest.on_condition = self._members.note_condition

    def __repr__(self) -> str:
        return f"<Feed {self._url} {self.mode}, {len(self._subscriptions)} subscriptions>"

    # -- subscriptions -------------------------------------------------------------------------------------------

    def open(
        self,
        kinds: Sequence[str],
        markets: Sequence[str],
        quote: str | None = None,
        depth: int = ORDERBOOK_DEPTH,
        opened: Callable[[Subscription], None] | None = None,
    ) -> Subscription:
        """Have `kinds` (as the venue names them; grouped books as `grouped` does) of `markets` (listed ones) live.

        Parameters
        ----------
        quote : the markets are all of this quote currency, and change with the venue's list.
        depth : how many levels of a book are wanted.
        opened : gets the subscription before anything is subscribed: what follows it then misses no record.
        """
        subscription = Subscription(
            kinds, markets, self.latest, self.confirmer, lambda: self.mode, self._closed, quote, depth
        )
        self.latest.want(subscription.all_slots, depth)
        self.confirmer.track(subscription.all_slots)
        try:
            if opened is not None:
                opened(subscription)
            source = self._begin(subscription)
            for kind in kinds:
                source.subscribe(subscription, kind, markets, depth)
            self._join_in(source)
        except BaseException:
            subscription.close()
            raise
        if quote is not None:
            self._members.follow(subscription)
        self._wake()
        return subscription

    def _change(self, subscription: Subscription, markets: Sequence[str], since_us: int) -> None:
        """Give a subscription other markets; the connection stays. New ones were listed after `since_us`."""
        with self._lock:
            source = self._source
        if source is None or subscription.is_closed:
            return
        came, gone = subscription.change(markets)
        self.latest.want(came, subscription.depth)
        self.latest.expect(came, since_us)
        self.confirmer.track(came)
        self.confirmer.untrack(gone)
        for kind in subscription.kinds:
            source.subscribe(subscription, kind, subscription.markets, subscription.depth)
        self.latest.unwant(gone)

    def _begin(self, subscription: Subscription | None) -> Stream:
        """The stream, made on first use; the fallback starts where nothing was wanted before."""
        with self._lock:
            if self._is_closed:
                raise ClosedError("the client is closed; make a new one")
            if self._source is None:
                self._source = self._source_of(
                    self._url, clock=self.clock, sink=self.latest.take, on_state=self._on_state
                )
            if not self._is_wanted_locked():
                self._fallback.begin(self.clock.monotonic())
            if subscription is not None:
                self._subscriptions.append(subscription)
            return self._source

    def _join_in(self, source: Stream) -> None:
        """A stream that went on while nothing was wanted for a moment has nothing new to say of itself."""
        with self._lock:
            was_streaming = self._state is not None and self._state.phase == "streaming"
            if was_streaming and source.state.phase == "streaming":
                self._fallback.streaming()

    def _closed(self, subscription: Subscription) -> None:
        """See `Subscription.close`."""
        with self._lock:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
            source = self._source
        if source is not None:
            source.unsubscribe(subscription)
        self.confirmer.untrack(subscription.all_slots)
        self.latest.unwant(subscription.all_slots)
        self._end_if_idle()

    def _is_wanted_locked(self) -> bool:
        return bool(self._subscriptions or self._asked.adopted)

    def _end_if_idle(self) -> None:
        with self._lock:
            if not self._is_wanted_locked():
                self._fallback.end()

    def close(self) -> None:
        """End everything. May be called twice."""
        with self._lock:
            self._is_closed = True
            source, self._source = self._source, None
            open_ones = list(self._subscriptions)
        for subscription in open_ones:
            subscription.close()
        if source is not None:
            source.close()
        with self._lock:
            self._fallback.end()

    # -- what the stream says ------------------------------------------------------------------------------------

    def _on_state(self, state: StreamState) -> None:
        """On the stream's thread: quick."""
        now = self.clock.monotonic()
        with self._lock:
            before = self._state
            self._state = state
            if state.phase == "streaming":
                self._fallback.streaming()
            elif self._is_wanted_locked():
                self._fallback.lost(now)
            markets = tuple(dict.fromkeys(m for s in self._subscriptions for m in s.markets))
            kinds = {channel_of(kind)[0] for one in self._subscriptions for kind in one.kinds}
        if state.phase == "connecting":
            self.latest.disconnected()
        if state.gap is not None and markets:
            ahead_us = self._venue.now_us() - self.clock.now_us()
            span = Span(state.gap.start + ahead_us, state.gap.end + ahead_us)
            states = [name for kind, name in _STATES.items() if kind in kinds]
            detail = f"the {' and '.join(states)} of that time cannot be had back" if states else ""
            interrupted = self.latest.interrupted()
            self.confirmer.missed(span, markets, [slot.market for slot, _, _ in interrupted], detail)
            self._refill(interrupted)
        elif state.phase == "streaming":
            for slot, epoch, _ in self.latest.interrupted():
                self.latest.resume(slot, epoch, ())
        for kind, market in sorted(set(state.silent) - set(before.silent if before else ())):
            what = f"{kind}: subscribed, but the venue sent nothing"
            self.confirmer.record(LiveEvent("silent", self._venue.now_us(), market, detail=what))
        self._wake()

    def _refill(self, interrupted: Sequence[tuple[Slot, int, int]]) -> None:
        """Fetch the trades of an outage; what the stream brings meanwhile waits for them."""
        lane = Priority.LOW if len(interrupted) > MANY else Priority.HIGH
        now_us = self._venue.now_us()
        for slot, epoch, start_us in interrupted:
            steps = walk_trades(slot.market, None, start_us, None, now_us // DAY_US)
            queue_steps(steps, partial(submit, self._scheduler, lane), partial(self._refilled, slot, epoch))

    def _refilled(self, slot: Slot, epoch: int, found: TradesAnswer | BackboneError) -> None:
        trades, causes = ((), (found,)) if isinstance(found, BackboneError) else (found.rows, found.causes)
        error = causes[0] if causes else None
        self.latest.resume(slot, epoch, trades, is_whole=error is None)
        self.confirmer.trades_done(slot.market, error)
        self._wake()

    # -- where it stands -----------------------------------------------------------------------------------------

    @property
    def mode(self) -> str:
        """``streaming``, ``connecting``, ``reconnecting``, ``polling``, ``rest only`` or ``idle``."""
        with self._lock:
            return self._fallback.mode(self.clock.monotonic())

    def status(self) -> dict[str, Any]:
        """Where it stands, in plain values; empty before anything was live."""
        now = self.clock.monotonic()
        with self._lock:
            source, subscriptions, polls = self._source, list(self._subscriptions), self._polls.count
            mode, asked = self._fallback.mode(now), len(self._asked.adopted)
            error = self._polls.last_error
        if source is None:
            return {}
        state = source.state
        error = error or state.last_error
        return {
            "state": mode,
            "age_s": None if state.last_frame_s is None else max(0.0, now - state.last_frame_s),
            "tables": len(subscriptions),
            "markets": len({market for one in subscriptions for market in one.markets}),
            "asked_for": asked,
            "received": state.frames,
            "garbage": state.garbage,
            "reconnects": state.reconnects,
            "silent": [f"{kind} {market}" for kind, market in state.silent],
            "polls": polls,
            "last_error": str(error) if error is not None else "",
        }

    # -- coverage -----------------------------------------------------------------------------------------------

    def last_received_s(self) -> float:
        """Up to when (monotonic seconds) the stream has sent everything; minus infinity while it sends nothing."""
        with self._lock:
            is_streaming = self._fallback.is_streaming
        return self.last_sign_s() if is_streaming else NEVER

    def last_sign_s(self) -> float:
        """When anything was last received on the stream, also where it has been lost since."""
        with self._lock:
            source = self._source
        received = source.state.last_frame_s if source is not None else None
        return NEVER if received is None else received

    def known_at(self, slot: Slot, last_received_s: float) -> tuple[float, bool]:
        """When the slot's row was last known to be the latest, and whether the stream covers it."""
        held = slot.held
        if held is None:
            return NEVER, False
        if slot.wants and slot.stream_s > NEVER and last_received_s > NEVER:
            return max(last_received_s, held.received_s), True
        return held.received_s, False

    def trades(self, market: str, count: int, oldest_s: float) -> list[Trade] | None:
        """The newest `count` trades, oldest first, where the stream was received after `oldest_s` and sent them all."""
        slot = self._covered("trade", market, oldest_s)
        if slot is None:
            return None
        with self.latest.lock:
            return slot.newest_locked(count)

    def forming(self, market: str, timeframe: Timeframe, after_us: int, priority: Priority) -> list[LiveCandle] | None:
        """The candles that open at or after `after_us`, oldest first, where the stream sent them all just now."""
        if timeframe.name not in Venue.streamed:
            return None
        kind = parse_kind(f"candle.{timeframe}")
        self.asked(kind, [market])
        limit_s = 0.25 if priority is Priority.CRITICAL else _CANDLE_COVERED_S
        slot = self._covered(kind, market, self.clock.monotonic() - limit_s)
        if slot is None:
            return None
        with self.latest.lock:
            return None if slot.track is None else slot.track.since(after_us)

    def _covered(self, kind: str, market: str, oldest_s: float) -> Slot | None:
        slot = self.latest.known(kind, [market]).get(market)
        if slot is None:
            return None
        at, is_streamed = self.known_at(slot, self.last_received_s())
        return slot if is_streamed and at >= oldest_s else None

    # -- what is asked for again and again -----------------------------------------------------------------------

    def asked(self, kind: str, markets: Iterable[str]) -> None:
        """Somebody asked for `markets`: those that are asked for often are subscribed to in the background."""
        now = self.clock.monotonic()
        live = self.latest.wanted(kind)
        with self._lock:
            adopted = self._asked.adopted
            if self._is_closed or now < self._asked_off_s:
                return
            wanted = [market for market in markets if market not in live or (kind, market) in adopted]
            was_wanted = self._is_wanted_locked()
            earned = self._asked.note(kind, wanted, now)
            if earned and not was_wanted:
                self._fallback.begin(now)
        if earned:
            self.latest.want([self.latest.slot(kind, market) for kind, market in earned])
            log.info("live.adopted kind=%s markets=%d", kind, len(earned))
            self._subscribe_asked()

    def _subscribe_asked(self) -> None:
        """Subscribe to exactly what the asks have earned."""
        with self._asked_lock:
            with self._lock:
                wanted: dict[str, list[str]] = {}
                for kind, market in sorted(self._asked.adopted):
                    wanted.setdefault(kind, []).append(market)
            try:
                source = self._begin(None)
                for kind, markets in wanted.items():
                    source.subscribe(_ASKED, kind, markets)
                for kind in self._asked_kinds - wanted.keys():
                    source.unsubscribe(_ASKED, kind)
                self._asked_kinds = set(wanted)
                self._join_in(source)
            except ClosedError:
                return
        self._end_if_idle()
        self._wake()

    # -- what is due ---------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._arm(self.clock.monotonic())

    def _arm(self, due_s: float) -> None:
        """Have `_run_due` run at `due_s`, or sooner if that was planned already."""
        with self._lock:
            if self._is_closed or due_s >= self._timer_s:
                return
            self._timer_s = due_s
        with contextlib.suppress(ClosedError):
            self._scheduler.call_later(max(0.0, due_s - self.clock.monotonic()), partial(self._run, due_s))

    def _run(self, planned_s: float) -> None:
        with self._lock:
            if self._is_closed or planned_s != self._timer_s:
                return  # another timer took its place
            self._timer_s = float("inf")
        due_s: float | None = self.clock.monotonic() + _REFRESH_S  # should it fail, it is tried again
        try:
            due_s = self._run_due(self.clock.monotonic())
        finally:
            if due_s is not None:
                self._arm(max(due_s, self.clock.monotonic() + _SOONEST_S))

    def _run_due(self, now: float) -> float | None:
        """Do what is due; says when the next thing is, None where nothing is wanted."""
        with self._lock:
            polls, next_poll_s = self._due_polls_locked(now)
            if not self._subscriptions and self._asked.adopted and self._fallback.lost_for(now) > _HOPELESS_S:
                self._asked_off_s = now + _OFF_S
                gone = self._asked.clear()
            else:
                gone = self._asked.expire(now)
            expires_s = self._asked.due_s()
            is_idle = not self._subscriptions
        for group in polls:
            self._poll(group)
        if gone:
            self.latest.unwant([self.latest.slot(kind, market) for kind, market in gone])
            self._subscribe_asked()
        confirm_s = self.confirmer.run(now)
        list_s = self._members.run(now)
        joined, is_left = self.latest.joined()
        self._refill(joined)
        join_s = now + _JOIN_S if is_left else None
        if confirm_s is not None and not is_idle:
            confirm_s = min(confirm_s, now + _REFRESH_S)
        return min((at for at in (next_poll_s, expires_s, confirm_s, list_s, join_s) if at is not None), default=None)

    # -- polls ---------------------------------------------------------------------------------------------------

    def _due_polls_locked(self, now: float) -> tuple[list[str], float | None]:
        """The wire groups to poll now, and when to check again."""
        begins = self._fallback.poll_from_s()
        if begins is None or not self._subscriptions:
            return [], None
        if now < begins:
            return [], begins
        groups = {group_of(kind) for one in self._subscriptions for kind in one.kinds}
        return self._polls.due(groups, self._fallback.pace_s, now)

    def _poll(self, group: str) -> None:
        """Queue one poll; what it asks is decided when its turn comes."""
        asked: list[Pair] = []

        def bind() -> Ask | None:
            with self._lock:
                is_needed = not self._fallback.is_streaming  # it may have come back meanwhile
                asked[:] = self._polls.take(group, _subjects(self._subscriptions, group) if is_needed else [])
                return self._polls.ask_of(asked, _depth(self._subscriptions, asked[0][0])) if asked else None

        def done(_: Ask | None, outcome: Reply | BackboneError) -> None:
            self._polled(group, asked, outcome)

        with contextlib.suppress(ClosedError):
            self._scheduler.submit(group, Priority.NORMAL, bind, done)

    def _polled(self, group: str, asked: list[Pair], outcome: Reply | BackboneError) -> None:
        """A poll's outcome, on a worker."""
        if not isinstance(outcome, BackboneError):
            kind, market = asked[0]
            news = self._polls.news_in(asked, outcome, self.latest)
            slot = self.latest.slot(kind, market)
            if kind == "trade" and slot.waiting is not None and len(news) == POLLED_TRADES:
                self._refill([(slot, slot.epoch, slot.resume[0])])  # the page does not reach back to what is known
            else:
                self.latest.offer(kind, news, outcome.received_s)
            self._metrics.count("live.polls")
        with self._lock:
            self._polls.ended(group, outcome, self._fallback, self.clock.monotonic())
        self._wake()


def _depth(subscriptions: Sequence[Subscription], kind: str) -> int:
    """The deepest that any subscription wants its books of `kind`."""
    return max((one.depth for one in subscriptions if kind in one.kinds), default=ORDERBOOK_DEPTH)


def _subjects(subscriptions: Sequence[Subscription], group: str) -> list[Pair]:
    """What is subscribed to in a wire group, each kind and market once."""
    subscribed = [(kind, one.markets) for one in subscriptions for kind in one.kinds if group_of(kind) == group]
    return list(dict.fromkeys((kind, market) for kind, markets in subscribed for market in markets))
