"""What is remembered of streamed candles beyond the newest row: the states of those that are not confirmed yet.

A stream has no sequence numbers, so what it sent is whole only from one connection's first frame on, and `lost`
interrupts it. Pure; the lock of `LatestRows` guards each one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from backbone.model import CANDLE_COLUMNS, CANDLE_SCHEMA, LiveCandle, Span
from backbone.timeframe import Timeframe

__all__ = ["CANDLES", "CandleTrack", "candle_rows", "live_candles"]

CANDLES = 600
"""Candle states kept of a series: those that wait for their confirmation, and ten minutes of 1-second ones."""


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

    def note(self, record: LiveCandle) -> None:
        """The stream sent a state."""
        opens = record.time_us
        if self._since_us is None:
            self._since_us = opens
        self.newest_us = max(self.newest_us, opens)
        self._cut_us.discard(opens)
        self._states[opens] = record
        while len(self._states) > CANDLES:
            self._forget(next(iter(self._states)))

    def lost(self) -> None:
        """From here on states may be missing, until the stream sends frames again."""
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
