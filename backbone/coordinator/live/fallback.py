"""How live data is had at this moment, when to poll, and which markets are worth a subscription of their own.

The modes, best first: ``streaming``; ``connecting`` or ``reconnecting`` (the socket is expected back at once: whoever
asks is answered by REST, nothing is polled yet); ``polling`` (REST feeds the tables, at a tenth of the quota);
``rest only`` (polling fails too: tables grow old, calls say why). Each mode is left upwards by itself, as soon
as the socket or a poll brings something. ``idle``: nothing is wanted.

Pure: the time (monotonic seconds) is an argument. The feed's lock guards it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile

from backbone.coordinator.live.latest import LatestRows
from backbone.coordinator.live.recent import live_candles
from backbone.errors import BackboneError, ClosedError, RejectedError
from backbone.routing.rest import Reply
from backbone.routing.wire import (
    BOOK_DEPTHS,
    ORDERBOOK_DEPTH,
    Ask,
    LiveRecord,
    candles_ask,
    channel_of,
    orderbooks_ask,
    tickers_all_ask,
    tickers_ask,
    timeframe_of,
    trades_ask,
)

__all__ = ["GRACE_S", "POLLED_TRADES", "POLL_S", "Asked", "FallbackState", "Polls", "RoundRobin", "group_of"]

GRACE_S = 2.0
"""A socket that is back within this was never missed: no poll is worth its request before."""
POLL_S = 1.05
"""Between two polls of one wire group: a tenth of its ten requests a second."""
FAILING_S = 5.0
"""Between two polls while they fail."""
_FEW = 20
"""Up to so many tickers are polled by name; more by quote currency, which no delisting can break."""
_BOOKS = 30
_LISTS = ("ticker", "orderbook")  # wire groups that are asked for several markets at once
_OF_THE_LIST = (400, 404, 414, 431)  # refusals that another list may not meet
POLLED_TRADES = 100
_GROUPS = {"ticker": "ticker", "orderbook": "orderbook", "trade": "crix-trades"}

Pair = tuple[str, str]
"""Kind and market."""


def group_of(kind: str) -> str:
    """The wire group in which a kind is polled."""
    return _GROUPS.get(channel_of(kind)[0], "candles")


class FallbackState:
    """The mode, from what the socket and the polls are reported to do."""

    def __init__(self) -> None:
        self.end()

    def end(self) -> None:
        """Nothing is wanted any more."""
        self._lost_s: float | None = None
        self.is_streaming = False
        self._was_streaming = False
        self._failures = 0

    def begin(self, now: float) -> None:
        """Something is wanted, and there was nothing before."""
        self.end()
        self._lost_s = now

    def streaming(self) -> None:
        """The socket brings data."""
        self._lost_s, self._failures = None, 0
        self.is_streaming = self._was_streaming = True

    def lost(self, now: float) -> None:
        """The socket brings nothing; may be reported again and again."""
        self.is_streaming = False
        if self._lost_s is None:
            self._lost_s = now

    def polled(self, *, well: bool) -> None:
        """A poll ended."""
        self._failures = 0 if well else self._failures + 1

    def lost_for(self, now: float) -> float:
        """Seconds without the socket; 0 while it streams or nothing is wanted."""
        return 0.0 if self._lost_s is None else now - self._lost_s

    def mode(self, now: float) -> str:
        """The name of the mode."""
        if self.is_streaming:
            return "streaming"
        if self._lost_s is None:
            return "idle"
        if self._failures:
            return "rest only"
        if now - self._lost_s < GRACE_S:
            return "reconnecting" if self._was_streaming else "connecting"
        return "polling"

    def poll_from_s(self) -> float | None:
        """When polling begins or began; None while it is not needed."""
        return None if self._lost_s is None else self._lost_s + GRACE_S

    @property
    def pace_s(self) -> float:
        """Seconds between two polls of one group."""
        return FAILING_S if self._failures else POLL_S


@dataclass
class RoundRobin:
    """Whose turn it is in one wire group: one request at a time, all subjects in turn."""

    due_s: float = 0.0
    is_asking: bool = False
    _turn: int = 0

    def take(self, subjects: list[tuple[str, str]], most: int) -> list[tuple[str, str]]:
        """The next subjects (kind, market): at most `most` of one kind."""
        if not subjects:
            return []
        at = self._turn % len(subjects)
        kind = subjects[at][0]
        taken = list(takewhile(lambda subject: subject[0] == kind, subjects[at : at + most]))
        self._turn = at + len(taken)
        return taken


class Polls:
    """What is polled while the socket is down, one request a wire group at a time, and how the venue wants it asked."""

    def __init__(self) -> None:
        self.count = 0
        self.last_error: BackboneError | None = None
        self._turns: dict[str, RoundRobin] = {}
        self._by_name = True  # tickers are polled by name while that works
        self._book_chunk = _BOOKS

    def due(self, groups: Iterable[str], pace_s: float, now: float) -> tuple[list[str], float | None]:
        """Which of `groups` to poll now, and when to check again."""
        due, wake = [], None
        for group in groups:
            turn = self._turns.setdefault(group, RoundRobin())
            if not turn.is_asking and turn.due_s <= now:
                turn.is_asking, turn.due_s = True, now + pace_s
                due.append(group)
            wake = turn.due_s if wake is None else min(wake, turn.due_s)
        return sorted(due), wake

    def take(self, group: str, subjects: list[Pair]) -> list[Pair]:
        """The subjects of the next poll of `group`; none ends the turn."""
        turn = self._turns[group]
        turn.is_asking = bool(subjects)
        return turn.take(subjects, {"ticker": 1 << 30, "orderbook": self._book_chunk}.get(group, 1))

    def ask_of(self, asked: list[Pair], depth: int = ORDERBOOK_DEPTH) -> Ask:
        """The question for subjects of one kind; books of at least `depth` levels, in the steps of the stream."""
        (kind, level), markets = channel_of(asked[0][0]), [market for _, market in asked]
        if kind == "ticker":
            if self._by_name and len(markets) <= _FEW:
                return tickers_ask(markets)
            return tickers_all_ask(dict.fromkeys(market.partition("-")[0] for market in markets))
        if kind == "orderbook":
            return orderbooks_ask(markets, level, min(step for step in BOOK_DEPTHS if step >= depth))
        if kind == "trade":
            return trades_ask(markets[0], POLLED_TRADES)
        timeframe = timeframe_of(kind)
        assert timeframe is not None
        return candles_ask(markets[0], timeframe, None, 3)

    def news_in(self, asked: list[Pair], reply: Reply, latest: LatestRows) -> list[LiveRecord]:
        """The records of a poll, oldest first, without those that were not asked for or are known."""
        kind, market = asked[0]
        timeframe = timeframe_of(kind)
        if timeframe is not None:
            return [*live_candles(market, timeframe, reply.value.table, reply.value.stamps_us)]
        if kind == "trade":
            held = latest.slot(kind, market).held
            known = (held.row.time_us, held.row.sequential_id) if held is not None else (-1, -1)
            trades = sorted(reply.value, key=lambda trade: (trade.time_us, trade.sequential_id))
            news = [trade for trade in trades if (trade.time_us, trade.sequential_id) > known]
            return news or trades[-1:]
        markets = {market for _, market in asked}
        return [row for row in reply.value if row.market in markets]

    def ended(self, group: str, outcome: Reply | BackboneError, fallback: FallbackState, now: float) -> None:
        """A poll brought a reply or an error: when the next is due, and whether to ask otherwise."""
        turn = self._turns[group]
        turn.is_asking = False
        self.count += 1
        if not isinstance(outcome, BackboneError):
            self.last_error = None
            fallback.polled(well=True)
            turn.due_s = min(turn.due_s, now + fallback.pace_s)
            return
        self.last_error = outcome
        is_smaller = self._by_name if group == "ticker" else self._book_chunk > 1
        if isinstance(outcome, RejectedError) and outcome.status in _OF_THE_LIST and group in _LISTS and is_smaller:
            self._by_name = self._by_name and group != "ticker"
            if group == "orderbook":  # one unknown market refuses all; a list too long for a gate is halved
                self._book_chunk = 1 if outcome.status == 404 else self._book_chunk // 2
        elif not isinstance(outcome, ClosedError):
            fallback.polled(well=False)
            turn.due_s = now + fallback.pace_s


@dataclass
class Asked:
    """Which (kind, market) are asked for again and again, and so are worth a subscription.

    ``often`` asks within ``window_s`` seconds earn one; ``idle_s`` seconds without an ask end it; at most ``most``.
    """

    often: int = 5
    window_s: float = 10.0
    idle_s: float = 60.0
    most: int = 1000
    _times: dict[tuple[str, str], deque[float]] = field(default_factory=dict)
    _adopted: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def adopted(self) -> frozenset[tuple[str, str]]:
        return frozenset(self._adopted)

    def note(self, kind: str, markets: Iterable[str], now: float) -> list[tuple[str, str]]:
        """An ask for `markets`; those that have earned a subscription by it."""
        earned = []
        for market in markets:
            pair = (kind, market)
            if pair in self._adopted:
                self._adopted[pair] = now
                continue
            times = self._times.get(pair)
            if times is None:
                if len(self._times) >= 4 * self.most:
                    self._times.clear()  # a scan over everything is no interest in anything
                times = self._times[pair] = deque(maxlen=self.often)
            times.append(now)
            if len(times) == self.often and now - times[0] <= self.window_s and len(self._adopted) < self.most:
                self._adopted[pair] = now
                del self._times[pair]
                earned.append(pair)
        return earned

    def expire(self, now: float) -> list[tuple[str, str]]:
        """Subscriptions without a recent request; they are given up."""
        gone = [pair for pair, last in self._adopted.items() if now - last >= self.idle_s]
        for pair in gone:
            del self._adopted[pair]
        return gone

    def clear(self) -> list[tuple[str, str]]:
        """Give up all."""
        gone = list(self._adopted)
        self._adopted.clear()
        self._times.clear()
        return gone

    def due_s(self) -> float | None:
        """When the next subscription may expire."""
        return min(self._adopted.values()) + self.idle_s if self._adopted else None
