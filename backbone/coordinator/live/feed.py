"""Live subscriptions: one WebSocket stream per client, REST polling while it is down, and how fresh each row is.

`Feed` owns the stream: made on first use, stopped with the last subscription. Rows go to the `LatestRows`, on the
stream's thread; all else (polls, confirmations, giving up what nobody asks for) is decided in `_tick`, a job that the
scheduler runs when something is due, so that no thread of its own is needed. The fallback mode is visible in `rung`,
on every subscription and in `status`.

How old a row is: a row that the stream told is known to be the latest for as long as the stream is heard. Its age
counts from the last frame or pong of the connection on which it was told, not from when it last changed; one that came
from REST ages from its arrival. So a quiet market on a healthy socket stays fresh, and one on a silent socket does not.

`Feed._lock` guards the subscriptions, the ladder, the rotas and the timer. The stream (but for a look at its state),
the scheduler, the board and the store are called outside it; `_asked_lock` alone is held while the stream is told what
the asks have earned.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from backbone.clock import Clock, VenueClock
from backbone.coordinator.candles.fetcher import CandleFetcher
from backbone.coordinator.live.fallback import Asked, FallbackState, RoundRobin
from backbone.coordinator.live.latest import NEVER, ConflatedChanges, Held, LatestRows, RecordQueue, Slot
from backbone.coordinator.live.recent import CandleTrack, TradeTape, live_candles
from backbone.coordinator.live.reconcile import Confirmer, LiveEvent
from backbone.coordinator.metrics import Metrics
from backbone.coordinator.scheduler import Scheduler
from backbone.errors import BackboneError, ClosedError, RejectedError
from backbone.model import LiveCandle, Priority, Span, Trade
from backbone.routing.rest import Reply
from backbone.routing.stream import Stream, StreamState
from backbone.routing.wire import (
    KINDS,
    Ask,
    LiveRecord,
    candles_ask,
    orderbooks_ask,
    parse_kind,
    tickers_all_ask,
    tickers_ask,
    trades_ask,
)
from backbone.timeframe import TIMEFRAMES, Timeframe
from backbone.venues import Venue

__all__ = ["KINDS", "Feed", "Subscription", "parse_kind", "timeframe_of"]

_ASKED = "asked"
_OFF_S = 300.0
"""After a socket that did not work, asks earn no subscription for so long."""
_HOPELESS_S = 20.0
_LOOK_S = 1.0
"""The longest look-away while candles are live: clocks may be set."""
_SOONEST_S = 0.1
_FEW = 20
"""Up to so many tickers are polled by name; more by quote currency, which no delisting can spoil."""
_BOOKS = 30
_POLLED_TRADES = 100
_CANDLE_HEARD_S = 1.5
"""The venue tells a candle's changes once a second."""
_CANDLE_KINDS = frozenset(f"candle.{name}" for name in Venue.streamed)
_GROUPS = {"ticker": "ticker", "orderbook": "orderbook", "trade": "crix-trades"}

log = logging.getLogger("backbone.live")
Pair = tuple[str, str]


class Source(Protocol):
    """What the feed needs of a stream."""

    def subscribe(self, key: object, kind: str, markets: Iterable[str]) -> None: ...
    def unsubscribe(self, key: object, kind: str | None = None) -> None: ...
    def close(self) -> None: ...
    @property
    def state(self) -> StreamState: ...


def timeframe_of(kind: str) -> Timeframe | None:
    """The timeframe of a candle kind, None for the other kinds."""
    head, _, length = kind.partition(".")
    return TIMEFRAMES[{"60m": "1h", "240m": "4h"}.get(length, length)] if head == "candle" else None


class Subscription:
    """Some kinds of some markets, live until `close`. The rows are the board's; nothing is copied."""

    def __init__(self, feed: Feed, kinds: Sequence[str], markets: Sequence[str]) -> None:
        self.kinds = tuple(kinds)
        self.markets = tuple(markets)
        self._feed = feed
        self._board = feed.board
        self._cells = {kind: [feed.board.cell(kind, market) for market in markets] for kind in kinds}
        self.all_cells = [cell for cells in self._cells.values() for cell in cells]
        self.opened_s = feed.clock.monotonic()
        self._counted = sum(cell.count for cell in self.all_cells)
        self._first_event = feed.confirmer.last_number
        self._last_received = 0
        self._followers: weakref.WeakSet[ConflatedChanges | RecordQueue] = (
            weakref.WeakSet()
        )  # the feed's lock guards it
        self.is_closed = False

    def __repr__(self) -> str:
        return f"<Subscription {' '.join(self.kinds)} of {len(self.markets)} markets, {self.rung}>"

    @property
    def rung(self) -> str:
        """Where the feed stands; ``"stopped"`` after `close`."""
        return "stopped" if self.is_closed else self._feed.rung

    @property
    def received(self) -> int:
        """Records that came since it was opened."""
        if not self.is_closed:
            self._last_received = sum(cell.count for cell in self.all_cells) - self._counted
        return self._last_received

    @property
    def is_complete(self) -> bool:
        """Whether every market was told of since it was opened."""
        return all(
            cell.held is not None and (cell.held.received_s >= self.opened_s or cell.stream_s > NEVER)
            for cell in self.all_cells
        )

    def rows(self, kind: str) -> list[Held[Any]]:
        """The newest rows of one of its kinds at one instant, in the order of its markets."""
        return self._board.snapshot(self._cells[kind])

    def cell(self, kind: str, market: str) -> Slot | None:
        """The cell of one of its markets."""
        return next((cell for cell in self._cells[kind] if cell.market == market), None)

    def events(self) -> list[LiveEvent]:
        """What happened to it since it was opened, oldest first."""
        events = self._feed.confirmer.events(self._first_event)
        markets = set(self.markets)
        return [event for event in events if not event.market or event.market in markets]

    def follow(self) -> ConflatedChanges:
        """Collect its changes from now on, conflated; `end` it. It ends with the subscription at the latest."""
        changes = self._board.follow(self.all_cells)
        self._keep(changes)
        return changes

    def tap(self, size: int) -> RecordQueue:
        """Queue its records from now on, the newest `size`; `end` it. It ends with the subscription at the latest."""
        tap = self._board.tap(self.all_cells, size)
        self._keep(tap)
        return tap

    def _keep(self, follower: ConflatedChanges | RecordQueue) -> None:
        with self._feed._lock:
            self._followers.add(follower)
            is_late = self.is_closed
        if is_late:
            follower.end()

    def close(self) -> None:
        """Stop. With the last one the stream's thread ends. May be called twice."""
        self._feed.close_subscription(self)


class Feed:
    """The live half of a client."""

    def __init__(
        self,
        url: str,
        *,
        board: LatestRows,
        scheduler: Scheduler,
        candles: CandleFetcher,
        holds: Callable[[str, Timeframe], bool],
        venue: VenueClock,
        clock: Clock,
        metrics: Metrics,
        grace_s: float,
        source: Callable[..., Source] = Stream,
    ) -> None:
        self.board = board
        self.clock = clock
        self._url = url
        self._scheduler = scheduler
        self._venue = venue
        self._metrics = metrics
        self._source_of = source
        self.confirmer = Confirmer(board, candles, holds, venue, clock, int(grace_s * 1e6), self._wake, self._alive_s)
        self._lock = threading.Lock()
        self._asked_lock = threading.Lock()
        self._source: Source | None = None
        self._state: StreamState | None = None
        self._subscriptions: list[Subscription] = []
        self._ladder = FallbackState()
        self._rotas: dict[str, RoundRobin] = {}
        self._asked = Asked()
        self._asked_kinds: set[str] = set()  # what the stream tells for them; the asked lock's
        self._asked_off_s = NEVER  # asks earn nothing before this
        self._by_name = True  # tickers are polled by name while that works
        self._book_chunk = _BOOKS
        self._timer_s = float("inf")
        self._last_error: BackboneError | None = None
        self._polls = 0
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Feed {self._url} {self.rung}, {len(self._subscriptions)} subscriptions>"

    # -- subscriptions -------------------------------------------------------------------------------------------

    def open(self, kinds: Sequence[str], markets: Sequence[str]) -> Subscription:
        """Have `kinds` (as the venue names them) of `markets` (which must be listed) live."""
        subscription = Subscription(self, kinds, markets)
        self.board.want(subscription.all_cells)
        for kind in kinds:
            timeframe = timeframe_of(kind)
            if timeframe is not None:
                self.confirmer.track(subscription._cells[kind], timeframe)
        try:
            source = self._begin(subscription)
            for kind in kinds:
                source.subscribe(subscription, kind, markets)
            self._join_in(source)
        except BaseException:
            self.close_subscription(subscription)
            raise
        self._wake()
        return subscription

    def _begin(self, subscription: Subscription | None) -> Source:
        """The stream, made on first use; the ladder starts where nothing was wanted before."""
        with self._lock:
            if self._is_closed:
                raise ClosedError("the client is closed; make a new one")
            if self._source is None:
                self._source = self._source_of(
                    self._url, clock=self.clock, sink=self.board.take, on_state=self._on_state
                )
            if not self._subscriptions and not self._asked.adopted:
                self._ladder.begin(self.clock.monotonic())
            if subscription is not None:
                self._subscriptions.append(subscription)
            return self._source

    def _join_in(self, source: Source) -> None:
        """A stream that went on while nothing was wanted for a moment has nothing new to say of itself."""
        with self._lock:
            was_told = self._state is not None and self._state.phase == "streaming"
            if was_told and source.state.phase == "streaming":
                self._ladder.streaming()

    def close_subscription(self, subscription: Subscription) -> None:
        """See `Subscription.close`."""
        received = subscription.received
        with self._lock:
            if subscription.is_closed:
                return
            subscription._last_received = received
            subscription.is_closed = True
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
            source = self._source
            followers = list(subscription._followers)
        for follower in followers:
            follower.end()
        if source is not None:
            source.unsubscribe(subscription)
        for kind, cells in subscription._cells.items():
            timeframe = timeframe_of(kind)
            if timeframe is not None:
                self.confirmer.untrack(cells, timeframe)
        self.board.unwant(subscription.all_cells)
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        with self._lock:
            if not self._subscriptions and not self._asked.adopted:
                self._ladder.end()

    def close(self) -> None:
        """End everything. May be called twice."""
        with self._lock:
            self._is_closed = True
            source, self._source = self._source, None
            open_ones = list(self._subscriptions)
        for subscription in open_ones:
            self.close_subscription(subscription)
        if source is not None:
            source.close()
        with self._lock:
            self._ladder.end()

    # -- what the stream says ------------------------------------------------------------------------------------

    def _on_state(self, state: StreamState) -> None:
        """On the stream's thread: quick."""
        now = self.clock.monotonic()
        with self._lock:
            before = self._state
            self._state = state
            if state.phase == "streaming":
                self._ladder.streaming()
            elif self._subscriptions or self._asked.adopted:
                self._ladder.lost(now)
            markets = tuple(dict.fromkeys(m for s in self._subscriptions for m in s.markets))
        if state.phase == "connecting":
            self.board.torn()
        if state.gap is not None and markets:
            ahead_us = self._venue.now_us() - self.clock.now_us()
            self.confirmer.missed(Span(state.gap.start + ahead_us, state.gap.end + ahead_us), markets)
        for kind, market in sorted(set(state.silent) - set(before.silent if before else ())):
            what = f"{kind}: subscribed, but the venue told nothing"
            self.confirmer.record(LiveEvent("silent", self._venue.now_us(), market, detail=what))
        self._wake()

    # -- where it stands -----------------------------------------------------------------------------------------

    @property
    def rung(self) -> str:
        """``streaming``, ``connecting``, ``reconnecting``, ``polling``, ``rest only`` or ``idle``."""
        with self._lock:
            return self._ladder.rung(self.clock.monotonic())

    def status(self) -> dict[str, Any]:
        """Where it stands, in plain values; empty before anything was live."""
        now = self.clock.monotonic()
        with self._lock:
            source, subscriptions, polls = self._source, list(self._subscriptions), self._polls
            rung, asked = self._ladder.rung(now), len(self._asked.adopted)
            error = self._last_error
        if source is None:
            return {}
        state = source.state
        error = error or state.last_error
        return {
            "state": rung,
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

    # -- its word ------------------------------------------------------------------------------------------------

    def heard_s(self) -> float:
        """Up to when (monotonic seconds) the stream has told everything; minus infinity while it tells nothing."""
        with self._lock:
            source = self._source if self._ladder.is_streaming else None
        heard = source.state.last_frame_s if source is not None else None
        return NEVER if heard is None else heard

    def _alive_s(self) -> float:
        """When anything was last heard on the stream, also where it has been lost since."""
        with self._lock:
            source = self._source
        heard = source.state.last_frame_s if source is not None else None
        return NEVER if heard is None else heard

    def known_at(self, cell: Slot, heard_s: float) -> tuple[float, bool]:
        """When the cell's row was last known to be the latest, and whether that is the stream's word."""
        held = cell.held
        if held is None:
            return NEVER, False
        if cell.wants and cell.stream_s > NEVER and heard_s > NEVER:
            return max(heard_s, held.received_s), True
        return held.received_s, False

    def trades(self, market: str, count: int, oldest_s: float) -> list[Trade] | None:
        """The newest `count` trades, oldest first, where the stream was heard after `oldest_s` and told them all."""
        cell = self._told("trade", market, oldest_s)
        if cell is None:
            return None
        with self.board.lock:
            return cell.history.newest(count) if isinstance(cell.history, TradeTape) else None

    def forming(self, market: str, timeframe: Timeframe, after_us: int, priority: Priority) -> list[LiveCandle] | None:
        """The candles that open at or after `after_us`, oldest first, where the stream told them all just now."""
        if f"candle.{timeframe}" not in _CANDLE_KINDS:
            return None
        kind = parse_kind(f"candle.{timeframe}")
        self.asked(kind, [market])
        limit_s = 0.25 if priority is Priority.CRITICAL else _CANDLE_HEARD_S
        cell = self._told(kind, market, self.clock.monotonic() - limit_s)
        if cell is None:
            return None
        with self.board.lock:
            return cell.history.since(after_us) if isinstance(cell.history, CandleTrack) else None

    def _told(self, kind: str, market: str, oldest_s: float) -> Slot | None:
        cell = self.board.known(kind, [market]).get(market)
        if cell is None:
            return None
        at, is_streamed = self.known_at(cell, self.heard_s())
        return cell if is_streamed and at >= oldest_s else None

    # -- what is asked for again and again -----------------------------------------------------------------------

    def asked(self, kind: str, markets: Iterable[str]) -> None:
        """Somebody asked for `markets`: those that are asked for often are subscribed to in the background."""
        now = self.clock.monotonic()
        live = self.board.wanted(kind)
        with self._lock:
            adopted = self._asked.adopted
            if self._is_closed or now < self._asked_off_s:
                return
            wanted = [market for market in markets if market not in live or (kind, market) in adopted]
            is_first = not self._subscriptions and not adopted
            earned = self._asked.note(kind, wanted, now)
            if earned and is_first:
                self._ladder.begin(now)
        if earned:
            self.board.want([self.board.cell(kind, market) for kind, market in earned])
            log.info("live.adopted kind=%s markets=%d", kind, len(earned))
            self._tell_asked()

    def _tell_asked(self) -> None:
        """Have the stream tell exactly what the asks have earned."""
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

    # -- the tick ------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._arm(self.clock.monotonic())

    def _arm(self, due_s: float) -> None:
        """Have `_tick` run at `due_s`, or sooner if that was planned already."""
        with self._lock:
            if self._is_closed or due_s >= self._timer_s:
                return
            self._timer_s = due_s
        try:
            self._scheduler.call_later(max(0.0, due_s - self.clock.monotonic()), partial(self._run, due_s))
        except ClosedError:
            return

    def _run(self, planned_s: float) -> None:
        with self._lock:
            if self._is_closed or planned_s != self._timer_s:
                return  # another timer took its place
            self._timer_s = float("inf")
        due_s: float | None = self.clock.monotonic() + _LOOK_S  # should the tick fail, it is tried again
        try:
            due_s = self._tick(self.clock.monotonic())
        finally:
            if due_s is not None:
                self._arm(max(due_s, self.clock.monotonic() + _SOONEST_S))

    def _tick(self, now: float) -> float | None:
        """Do what is due; says when the next thing is, None where nothing is wanted."""
        with self._lock:
            polls, next_poll_s = self._polls_locked(now)
            gone = self._given_up_locked(now)
            expires_s = self._asked.due_s()
            is_idle = not self._subscriptions
        for group in polls:
            self._poll(group)
        if gone:
            self.board.unwant([self.board.cell(kind, market) for kind, market in gone])
            self._tell_asked()
        confirm_s = self.confirmer.run(now)
        if confirm_s is not None and not is_idle:
            confirm_s = min(confirm_s, now + _LOOK_S)
        return min((at for at in (next_poll_s, expires_s, confirm_s) if at is not None), default=None)

    def _given_up_locked(self, now: float) -> list[Pair]:
        """What is asked for no longer; all of it where the socket does not work."""
        if not self._subscriptions and self._ladder.lost_for(now) > _HOPELESS_S and self._asked.adopted:
            self._asked_off_s = now + _OFF_S
            return self._asked.clear()
        return self._asked.expire(now)

    # -- polls ---------------------------------------------------------------------------------------------------

    def _polls_locked(self, now: float) -> tuple[list[str], float | None]:
        """The wire groups to poll now, and when to look again."""
        begins = self._ladder.poll_from_s()
        if begins is None or not self._subscriptions:
            return [], None
        if now < begins:
            return [], begins
        due, wake = [], None
        for group in {_group_of(kind) for one in self._subscriptions for kind in one.kinds}:
            rota = self._rotas.setdefault(group, RoundRobin())
            if not rota.is_asking and rota.due_s <= now:
                rota.is_asking, rota.due_s = True, now + self._ladder.pace_s
                due.append(group)
            wake = rota.due_s if wake is None else min(wake, rota.due_s)
        return sorted(due), wake

    def _poll(self, group: str) -> None:
        """Queue one poll; what it asks is decided when its turn comes."""
        asked: list[Pair] = []

        def bind() -> Ask | None:
            with self._lock:
                asked[:] = self._turn_locked(group)
                if not asked:
                    self._rotas[group].is_asking = False
                    return None
                return self._ask_of(asked)

        def done(_: Ask | None, outcome: Reply | BackboneError) -> None:
            self._polled(group, asked, outcome)

        try:
            self._scheduler.submit(group, Priority.NORMAL, bind, done)
        except ClosedError:
            return

    def _turn_locked(self, group: str) -> list[Pair]:
        if self._ladder.is_streaming:
            return []  # it came back meanwhile
        subjects = dict.fromkeys(
            (kind, market)
            for one in self._subscriptions
            for kind in one.kinds
            if _group_of(kind) == group
            for market in one.markets
        )
        most = {"ticker": 1 << 30, "orderbook": self._book_chunk}.get(group, 1)
        return self._rotas[group].take(list(subjects), most)

    def _ask_of(self, asked: list[Pair]) -> Ask:
        kind, markets = asked[0][0], [market for _, market in asked]
        if kind == "ticker":
            if self._by_name and len(markets) <= _FEW:
                return tickers_ask(markets)
            return tickers_all_ask(dict.fromkeys(market.partition("-")[0] for market in markets))
        if kind == "orderbook":
            return orderbooks_ask(markets)
        if kind == "trade":
            return trades_ask(markets[0], _POLLED_TRADES)
        timeframe = timeframe_of(kind)
        assert timeframe is not None
        return candles_ask(markets[0], timeframe, None, 3)

    def _polled(self, group: str, asked: list[Pair], outcome: Reply | BackboneError) -> None:
        """A poll's outcome, on a worker."""
        if not isinstance(outcome, BackboneError):
            self.board.offer(asked[0][0], self._news_in(asked, outcome), outcome.received_s)
            self._metrics.count("live.polls")
        with self._lock:
            rota = self._rotas[group]
            rota.is_asking = False
            self._polls += 1
            if isinstance(outcome, BackboneError):
                self._last_error = outcome
                self._note_refusal_locked(group, outcome)
            else:
                self._last_error = None
                self._ladder.polled(well=True)
                rota.due_s = min(rota.due_s, self.clock.monotonic() + self._ladder.pace_s)
        self._wake()

    def _note_refusal_locked(self, group: str, error: BackboneError) -> None:
        if isinstance(error, RejectedError) and error.status == 404 and group in ("ticker", "orderbook"):
            self._by_name = self._by_name and group != "ticker"
            self._book_chunk = 1 if group == "orderbook" else self._book_chunk
        elif not isinstance(error, ClosedError):
            self._ladder.polled(well=False)
            self._rotas[group].due_s = self.clock.monotonic() + self._ladder.pace_s

    def _news_in(self, asked: list[Pair], reply: Reply) -> list[LiveRecord]:
        """The records of a poll, oldest first, without those that were not asked for or are known."""
        kind, market = asked[0]
        timeframe = timeframe_of(kind)
        if timeframe is not None:
            return [*live_candles(market, timeframe, reply.value.table, reply.value.stamps_us)]
        if kind == "trade":
            held = self.board.cell(kind, market).held
            known = (held.row.time_us, held.row.sequential_id) if held is not None else (-1, -1)
            trades = sorted(reply.value, key=lambda trade: (trade.time_us, trade.sequential_id))
            news = [trade for trade in trades if (trade.time_us, trade.sequential_id) > known]
            return news or trades[-1:]
        markets = {market for _, market in asked}
        return [row for row in reply.value if row.market in markets]


def _group_of(kind: str) -> str:
    return _GROUPS.get(kind, "candles")
