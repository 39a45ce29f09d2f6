"""A venue without sockets, a queue that answers at once, and the candle classes between them."""

from __future__ import annotations

import datetime as dt
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backbone.clock import VenueClock
from backbone.coordinator.candles.fetcher import CandleFetcher
from backbone.coordinator.candles.ranges import CandleRanges, Range
from backbone.coordinator.candles.reader import CandleAnswer, CandleReader
from backbone.errors import (
    BackboneError,
    PayloadError,
    UnreachableError,
)
from backbone.model import Priority
from backbone.routing.rest import Reply
from backbone.routing.wire import Ask
from backbone.settings import resolve
from backbone.storage.coverage import EVER
from backbone.storage.store import CandleStore
from backbone.testing import ManualClock
from backbone.timeframe import TIMEFRAMES, Timeframe
from tests.storage.helpers import MAY, opens

MARKET, MINUTE, SECOND, DAY = "KRW-BTC", TIMEFRAMES["1m"], TIMEFRAMES["1s"], TIMEFRAMES["1d"]
NOW = MAY + 12 * 3600 * 1_000_000 + 30_000_000  # noon, and half a minute
HOUR_US, MINUTE_US = 3_600_000_000, 60_000_000


class Venue:
    """One market that trades in every slot from `listed_us` on; what it shows of the forming one changes."""

    def __init__(self, clock: ManualClock, now_us: int = NOW, listed_us: int = MAY - 10 * 24 * HOUR_US) -> None:
        self.clock = clock
        self.ahead_us = now_us - clock.wall_us  # of the machine's clock, at the start
        self._began = clock.mono_s, now_us
        self.listed_us = listed_us
        self.shift: dict[int, float] = {}
        self.asks: list[Ask] = []
        self.edits: deque[Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = deque()
        self.down = False
        self.kept_us = 1 << 62
        self.every = 1  # only each so many-th slot trades
        self.factor = 1.0  # of every price, and the inverse of every volume: of `scaled`
        self.scaled = EVER

    def now_us(self) -> int:
        began_s, now_us = self._began
        return now_us + int((self.clock.mono_s - began_s) * 1e6)

    def answer(self, ask: Ask) -> Reply | BackboneError:
        self.asks.append(ask)
        if self.down:
            return UnreachableError("down")
        query = dict(ask.query)
        rows = self._rows(ask, int(query["count"]), query.get("to"))
        if self.edits:
            rows = self.edits.popleft()(rows)
        date_us = self.now_us() // 1_000_000 * 1_000_000
        body = json.dumps(rows).encode()
        mono = self.clock.mono_s
        try:
            return Reply(ask.parse(body), "candles", 9, date_us, mono, mono, body)
        except PayloadError as exc:
            return exc

    def _rows(self, ask: Ask, count: int, to: str | None) -> list[dict[str, Any]]:
        step = {"seconds": SECOND, "days": DAY, "1": MINUTE}[ask.path.rsplit("/", 1)[-1]]
        now = self.now_us()
        end = now if to is None else min(now, int(dt.datetime.fromisoformat(to).timestamp()) * 1_000_000)
        first = max(step.floor(self.listed_us), step.ceil(now - self.kept_us))
        rows = []
        stride = step.step_us * self.every
        at = (end - 1) // stride * stride
        while at >= first and len(rows) < count:
            rows.append(self._row(step, at, now))
            at -= stride
        return rows

    def _row(self, step: Timeframe, at: int, now: int) -> dict[str, Any]:
        price = 1000.0 + at // step.step_us % 97 + self.shift.get(at, 0.0)
        if at + step.step_us > now:
            price += 500 + (now - at) // 1_000_000  # forming: not what it will be
        stamp = dt.datetime.fromtimestamp(at / 1e6, dt.UTC)
        spread = 200 if step is DAY else 5  # a day spans its minutes
        factor = self.factor if self.scaled.start <= at < self.scaled.end else 1.0
        return {
            "market": MARKET,
            "candle_date_time_utc": f"{stamp:%Y-%m-%dT%H:%M:%S}",
            "opening_price": price * factor,
            "high_price": (price + spread) * factor,
            "low_price": (price - spread) * factor,
            "trade_price": (price + 1) * factor,
            "candle_acc_trade_volume": 2.0 / factor,
            "candle_acc_trade_price": price * 2,
            "timestamp": at // 1000 + 500,
        }


class Desk:
    """A scheduler that answers every ticket at once, on the caller's thread.

    `at_once` pages are sent before the first of them is answered; after `most` answers it stands still, until `run`.
    """

    def __init__(self, venue: Venue, estimate: VenueClock) -> None:
        self._venue, self._estimate = venue, estimate
        self._tickets: deque[tuple[Any, Any]] = deque()
        self._sent: deque[tuple[Any, Any, Any]] = deque()
        self._busy = False
        self.at_once = 1
        self.most: int | None = None
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.bans: BackboneError | None = None

    def submit(self, group: str, priority: Priority, bind: Any, done: Any) -> None:
        if self.bans is not None:
            done(None, self.bans)
            return
        self._tickets.append((bind, done))
        if not self._busy and self.at_once == 1:
            self.run()

    def run(self) -> None:
        """Send and answer what is queued."""
        self._busy = True
        try:
            while self._send() or self._sent:
                if self.most == 0:
                    return
                self.most = None if self.most is None else self.most - 1
                done, ask, outcome = self._sent.popleft()
                if isinstance(outcome, Reply) and outcome.date_us is not None:
                    self._estimate.observe(outcome.date_us, outcome.sent_s, outcome.received_s)
                done(ask, outcome)
        finally:
            self._busy = False

    def _send(self) -> bool:
        while self._tickets and len(self._sent) < self.at_once:
            bind, done = self._tickets.popleft()
            ask = bind()
            if ask is not None:
                self._sent.append((done, ask, self._venue.answer(ask)))
        return bool(self._sent)

    def failure(self, group: str) -> BackboneError | None:
        return None

    def call_later(self, delay_s: float, job: Callable[[], None]) -> None:
        self.later.append((delay_s, job))


class World:
    """A venue, and a machine whose wall clock is `ahead` of the venue's."""

    def __init__(self, folder: Path, *, ahead: float = 0.0, **venue: Any) -> None:
        self.clock = ManualClock(NOW + int(ahead * 1e6))
        self.venue = Venue(self.clock, **venue)
        self.folder = folder
        self.direct_requests = 0
        self.open()

    def open(self) -> None:
        """A new client on the folder, without a reply so far."""
        settings = resolve("upbit", data_dir=self.folder, rest_url=None, ws_url=None, tz=None, frames="pandas")
        self.estimate = VenueClock(self.clock)
        self.store = CandleStore(self.folder, "upbit", clock=self.clock)
        self.desk = Desk(self.venue, self.estimate)
        desk: Any = self.desk
        self.reader = CandleReader(self.store, self.estimate, settings)
        self.fetcher = CandleFetcher(desk, self.store, self.reader, self.estimate, self.clock, settings)
        self.ranges = CandleRanges(self.fetcher, self.estimate, self.request)

    def request(self, ask: Ask, _: Priority) -> Reply:
        """One request past the queue."""
        self.direct_requests += 1
        outcome = self.venue.answer(ask)
        if isinstance(outcome, BackboneError):
            raise outcome
        assert outcome.date_us is not None
        self.estimate.observe(outcome.date_us, outcome.sent_s, outcome.received_s)
        return outcome

    def candles(
        self, start: int | None = None, end: int | None = None, count: int | None = None, timeframe: Timeframe = MINUTE
    ) -> CandleAnswer:
        (answer,) = self.ranges.collect([MARKET], timeframe, Range(start, end, count), Priority.NORMAL)
        return answer

    def asked(self) -> int:
        """How many requests since it was looked at last."""
        number = len(self.venue.asks)
        self.venue.asks.clear()
        return number

    def truth(self, table: Any, timeframe: Timeframe = MINUTE) -> bool:
        """Whether every row is the closed candle that the venue has there."""
        rows = [self.venue._row(timeframe, at, 1 << 62) for at in opens(table)]
        return table.column("open").to_pylist() == [row["opening_price"] for row in rows]

    def stored(self, timeframe: Timeframe = MINUTE) -> Any:
        return self.store.read(MARKET, timeframe, EVER)


def empty(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return []


def half(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows[: len(rows) // 2]
