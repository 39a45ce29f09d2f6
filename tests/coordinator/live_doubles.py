"""Doubles for the feed: a stream that sends what a test gives it, and a scheduler that runs when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from backbone.clock import VenueClock
from backbone.coordinator.candles.pending import Pending
from backbone.coordinator.live.feed import Feed
from backbone.coordinator.live.latest import LatestRows
from backbone.coordinator.live.recent import candle_rows
from backbone.coordinator.markets import Markets
from backbone.coordinator.metrics import Metrics
from backbone.errors import BackboneError
from backbone.model import Level, LiveCandle, OrderBook, Priority, Span, Ticker, Trade
from backbone.routing.rest import Reply
from backbone.routing.stream import StreamState
from backbone.routing.wire import Ask
from backbone.testing import ManualClock
from backbone.timeframe import Timeframe

START_US = 1_755_853_200_000_000  # 2025-08-22T09:00:00Z
MINUTE_US = 60_000_000
GRACE_S = 3.0


def ticker(market: str = "KRW-BTC", price: float = 100.0, stamp_s: float = 0.0) -> Ticker:
    stamp = START_US + int(stamp_s * 1e6)
    change = price - 95.0
    return Ticker(market, stamp, price, 90.0, 110.0, 80.0, 95.0, change, change / 95, 1.0, 2.0, 3.0, 4.0, stamp)


def trade(number: int, market: str = "KRW-BTC", stamp_s: float | None = None) -> Trade:
    at = START_US + int((number if stamp_s is None else stamp_s) * 1e6)
    return Trade(market, at, 100.0 + number, 1.0, "buy", 10_000 + number)


def book(market: str = "KRW-BTC", stamp_s: float = 0.0, level: float = 0.0) -> OrderBook:
    return OrderBook(market, START_US + int(stamp_s * 1e6), level, (Level(101.0, 1.0, 100.0, 2.0),))


def candle(minute: int, close: float = 100.0, market: str = "KRW-BTC", stamp_s: float | None = None) -> LiveCandle:
    """The 1-minute candle `minute` minutes after the start."""
    opens = START_US + minute * MINUTE_US
    stamp = opens + 1_000_000 if stamp_s is None else START_US + int(stamp_s * 1e6)
    return LiveCandle(market, "1m", opens, 100.0, max(close, 110.0), min(close, 90.0), close, 1.0, 2.0, stamp)


def reply(value: Any, clock: ManualClock) -> Reply:
    return Reply(value, None, None, None, clock.monotonic(), clock.monotonic(), b"")


class SaidStream:
    """A stream that does what a test says."""

    def __init__(self, url: str, *, clock: ManualClock, sink: Any, on_state: Callable[[StreamState], None]) -> None:
        self.clock = clock
        self.sink = sink
        self.on_state = on_state
        self.wanted: dict[object, dict[str, tuple[str, ...]]] = {}
        self.depths: dict[tuple[object, str], int] = {}
        self.is_closed = False
        self.state = StreamState("stopped", 0, None, 0, 0, 0, None)

    def subscribe(self, key: object, kind: str, markets: Iterable[str], depth: int = 30) -> None:
        self.depths[key, kind] = depth
        self.wanted.setdefault(key, {})[kind] = tuple(markets)

    def unsubscribe(self, key: object, kind: str | None = None) -> None:
        if kind is None:
            self.wanted.pop(key, None)
            return
        self.wanted.get(key, {}).pop(kind, None)
        if not self.wanted.get(key):
            self.wanted.pop(key, None)

    def close(self) -> None:
        self.is_closed = True

    def enter(self, phase: Any, *, gap: Span | None = None, silent: tuple[tuple[str, str], ...] = ()) -> None:
        received = self.clock.monotonic() if phase == "streaming" else self.state.last_frame_s
        self.state = replace(self.state, phase=phase, last_frame_s=received, silent=silent)
        self.on_state(replace(self.state, gap=gap))

    def connect(self, *records: Any, gap: Span | None = None) -> None:
        """Connect and deliver a snapshot of each record."""
        self.enter("connecting")
        self.enter("streaming", gap=gap)
        for record in records:
            self.sink(record, self.clock.monotonic(), True)

    def say(self, *records: Any) -> None:
        """ConflatedChanges."""
        self.state = replace(self.state, last_frame_s=self.clock.monotonic())
        for record in records:
            self.sink(record, self.clock.monotonic(), False)

    def pong(self) -> None:
        self.state = replace(self.state, last_frame_s=self.clock.monotonic())


@dataclass
class Queued:
    group: str
    priority: Priority
    bind: Callable[[], Ask | None]
    done: Callable[[Ask | None, Any], None]


class HandScheduler:
    """Runs timers when their time has come and a test says so; keeps what was submitted."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.queued: list[Queued] = []

    def call_later(self, delay_s: float, job: Callable[[], None]) -> None:
        self.timers.append((self.clock.monotonic() + delay_s, job))

    def submit(self, group: str, priority: Priority, bind: Any, done: Any) -> None:
        self.queued.append(Queued(group, priority, bind, done))

    def run(self) -> None:
        """Everything that is due, until nothing is."""
        while True:
            due = [timer for timer in self.timers if timer[0] <= self.clock.monotonic() + 1e-9]
            if not due:
                return
            self.timers = [timer for timer in self.timers if timer not in due]
            for _, job in due:
                job()

    def advance(self, seconds: float, step_s: float = 0.05) -> None:
        """Let time pass, running what becomes due."""
        end = self.clock.mono_s + seconds
        while self.clock.mono_s < end - 1e-9:
            self.clock.advance(min(step_s, end - self.clock.mono_s))
            self.run()

    def asks(self) -> list[tuple[Ask, Queued]]:
        """Bind what is queued; what has nothing to ask is dropped."""
        taken, self.queued = self.queued, []
        return [(ask, one) for one in taken if (ask := one.bind()) is not None]


@dataclass
class FakeAnswer:
    table: pa.Table
    gaps: tuple[Span, ...] = ()


class HandFetcher:
    """Candle fetches that end when a test says so; `rows` is what REST has."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], LiveCandle] = {}
        self.asked: list[Pending] = []
        self.failing: BackboneError | None = None
        self.flushed = 0
        self.units = self
        self.is_set_aside = False

    def is_outdated(self, pending: Any) -> bool:
        return self.is_set_aside

    def has(self, *candles: LiveCandle) -> None:
        self.rows.update({(one.market, one.time_us): one for one in candles})

    def begin(self, pending: Pending) -> Pending:
        self.asked.append(pending)
        return pending

    def release(self, pending: Any) -> None:
        """Nothing is kept."""

    def flush(self, markets: Any, timeframe: Timeframe) -> None:
        self.flushed += 1

    def answer(self, pending: Pending) -> FakeAnswer:
        market, span = pending.market, pending.span
        rows = [c for (m, t), c in sorted(self.rows.items()) if m == market and span.start <= t < span.end]
        return FakeAnswer(candle_rows(rows), (span,) if self.failing else ())

    def finish(self) -> list[Pending]:
        """End all that is being fetched."""
        ended, self.asked = self.asked, []
        for pending in ended:
            if self.failing:
                pending.causes.append(self.failing)
            pending.finish()
        return ended


class Rig:
    """A feed with doubles all round."""

    def __init__(self, held: Iterable[str] = ()) -> None:
        self.clock = ManualClock(START_US)
        self.scheduler = HandScheduler(self.clock)
        self.fetcher = HandFetcher()
        self.latest = LatestRows(self.clock)
        self.streams: list[SaidStream] = []
        self.conditions: list[Ticker] = []
        self.news = False  # whether what tickers say of their markets is
        nothing: Any = None
        self.markets = Markets(nothing, self.clock, fresh_s=60.0, stored=set)
        kept = set(held)
        self.feed = Feed(
            "ws://nowhere",
            latest=self.latest,
            scheduler=self.scheduler,  # type: ignore[arg-type]
            candles=self.fetcher,  # type: ignore[arg-type]
            holds=lambda market, _: market in kept,
            venue=VenueClock(self.clock),
            clock=self.clock,
            metrics=Metrics(),
            grace_s=GRACE_S,
            on_list=self.markets.note,
            on_condition=self._note_condition,
            source=self._source,
        )

    def _note_condition(self, said: Ticker) -> bool:
        self.conditions.append(said)
        return self.news

    def _source(self, url: str, **options: Any) -> SaidStream:
        self.streams.append(SaidStream(url, **options))
        return self.streams[-1]

    @property
    def stream(self) -> SaidStream:
        return self.streams[-1]
