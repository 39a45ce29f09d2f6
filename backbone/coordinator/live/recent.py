"""What is remembered of a stream beyond the newest row: trades without a hole, and the states of unconfirmed candles.

A stream has no sequence numbers, so what it sent is whole only from one connection's first frame on: a snapshot
restarts a history unless it repeats what is known, and `lost` interrupts it. Pure; the lock of `LatestRows` guards
each one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import pyarrow as pa

from backbone.model import CANDLE_COLUMNS, CANDLE_SCHEMA, LiveCandle, Span, Trade
from backbone.timeframe import Timeframe

__all__ = [
    "CANDLES",
    "TAPE",
    "CandleTrack",
    "History",
    "TradeTape",
    "candle_rows",
    "history_of",
    "live_candles",
]

TAPE = 500
"""Trades kept of a market that is followed: as many as one REST reply has."""
CANDLES = 600
"""Candle states kept of a series: those that wait for their confirmation, and ten minutes of 1-second ones."""


class History(Protocol):
    """What a slot remembers. `source` is ``"stream"`` or ``"rest"``; only the streamed row has an order."""

    def note(self, record: Any, is_snapshot: bool, source: str) -> None: ...

    def lost(self) -> None:
        """From here on records may be missing, until the stream speaks again."""
        ...


def history_of(kind: str) -> History | None:
    """A new history for a kind of live data; None where the newest row is all there is to know."""
    if kind == "trade":
        return TradeTape()
    return CandleTrack() if kind.startswith("candle.") else None


class TradeTape:
    """The newest trades of one market, without a hole between them."""

    def __init__(self, size: int = TAPE) -> None:
        self._size = size
        self._trades: dict[int, Trade] = {}  # by number, in the order of arrival
        self._is_broken = True

    def note(self, record: Trade, is_snapshot: bool, source: str) -> None:
        if source != "stream":
            return
        if is_snapshot or self._is_broken:  # a snapshot is the venue's last trade
            if self._trades and next(reversed(self._trades)) == record.sequential_id:
                self._is_broken = False  # nothing was missed
                return
            self._trades.clear()
        elif record.sequential_id in self._trades:
            return  # happened while the snapshot was made, so that both bring it
        self._is_broken = False
        self._trades[record.sequential_id] = record
        if len(self._trades) > self._size:
            del self._trades[next(iter(self._trades))]

    def lost(self) -> None:
        self._is_broken = True

    def newest(self, count: int) -> list[Trade] | None:
        """The newest `count` trades, oldest first; None where fewer are known without a hole."""
        if self._is_broken or len(self._trades) < count:
            return None
        return sorted(self._trades.values(), key=lambda trade: (trade.time_us, trade.sequential_id))[-count:]


class CandleTrack:
    """The last state that the stream sent of each candle of one series, until it is confirmed.

    No frame says "closed", and every frame holds the whole state: a candle's last frame is the truth unless the
    connection was lost while it was forming and brought no frame of it after.
    """

    def __init__(self) -> None:
        self._states: dict[int, LiveCandle] = {}
        self.newest_us = -1
        self._since_us: int | None = None
        self._cut_us: set[int] = set()

    def note(self, record: LiveCandle, is_snapshot: bool, source: str) -> None:
        if source != "stream":
            return
        opens = record.time_us
        if self._since_us is None:
            self._since_us = opens
        self.newest_us = max(self.newest_us, opens)
        self._cut_us.discard(opens)
        self._states[opens] = record
        while len(self._states) > CANDLES:
            self._forget(next(iter(self._states)))

    def lost(self) -> None:
        self._since_us = None
        if self.newest_us in self._states:
            self._cut_us.add(self.newest_us)

    def _forget(self, opens: int) -> None:
        del self._states[opens]
        self._cut_us.discard(opens)

    def forget_before(self, time_us: int) -> None:
        """Candles that open before this are confirmed."""
        for opens in [opens for opens in self._states if opens < time_us and opens != self.newest_us]:
            self._forget(opens)

    def finals(self, span: Span) -> dict[int, LiveCandle]:
        """The final states of the candles that open in `span`, as far as the stream followed them to their end."""
        return {t: c for t, c in self._states.items() if span.start <= t < span.end and t not in self._cut_us}

    def was_whole(self, opens: int) -> bool:
        """Whether the stream would have sent a candle that opens then."""
        return self._since_us is not None and opens >= self._since_us

    def since(self, time_us: int) -> list[LiveCandle] | None:
        """All candles that open at or after `time_us`, oldest first; None where one may have been missed."""
        if self._since_us is None or time_us < self._since_us:
            return None
        return [self._states[t] for t in sorted(self._states) if t >= time_us]


def candle_rows(candles: Sequence[LiveCandle]) -> pa.Table:
    """Live candles of one series as a candle table."""
    columns = [pa.array([c.time_us for c in candles], pa.int64()).cast(CANDLE_SCHEMA.field("time").type)]
    columns += [pa.array([getattr(c, name) for c in candles], pa.float64()) for name in CANDLE_COLUMNS]
    return pa.Table.from_arrays(columns, schema=CANDLE_SCHEMA)


def live_candles(market: str, timeframe: Timeframe, table: pa.Table, stamps_us: Iterable[int]) -> list[LiveCandle]:
    """A candle table as records; `stamps_us` orders them against the stream's."""
    columns = (table.column(name).to_pylist() for name in CANDLE_COLUMNS)
    times = table.column("time").cast(pa.int64()).to_pylist()
    return [
        LiveCandle(market, timeframe.name, opens, *numbers, int(stamp))  # type: ignore[call-arg]
        for opens, stamp, *numbers in zip(times, stamps_us, *columns, strict=True)
    ]
