"""`Backbone.chart`: history out of the store, then the live candle, in one picture.

What is decided here: where the candles of a timeframe come from while they form. The venue streams candles up to four
hours; a day is what the ticker reports since 00:00 UTC, and weeks, months and years are folded of days. A chart follows
only where a notebook shows it: its live table is opened with its first refresh there, and stopped by `close`, by the
session, or once the chart is no longer held. `_Follower` is pulled by one refresh at a time (`View` sees to that).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import weakref
from typing import TYPE_CHECKING, Any

from backbone.api.arguments import TimeLike, in_zone, parse_market
from backbone.api.calls.candles import candles
from backbone.api.calls.live import LiveTable, start_live
from backbone.api.notebook.chart import Candle, CandleChart, CandleRow, ChartView, rows_of
from backbone.api.notebook.view import in_kernel
from backbone.coordinator.live.feed import KINDS, timeframe_of
from backbone.errors import IncompleteError, InputError, StreamClosedError
from backbone.model import LiveCandle, Ticker
from backbone.timeframe import TIMEFRAMES, Timeframe, parse_timeframe

if TYPE_CHECKING:
    import pandas as pd

    from backbone.api.session import Session
    from backbone.coordinator.live.latest import RecordQueue

__all__ = ["LiveChart", "open_chart"]

_AHEAD = 20_000  # records kept for a chart that is not looked at: hours of a busy minute candle
_REREAD = 1000
_DAY = TIMEFRAMES["1d"]


class LiveChart(CandleChart):
    """A candle chart that follows its market; made by `Backbone.chart`. `close` ends the following."""

    def __init__(self, frame: pd.DataFrame, follower: _Follower | None, **style: Any) -> None:
        self._follower = follower
        super().__init__(frame, pull=follower, **style)

    def close(self, reason: str = "stopped") -> None:
        """Stop following. What is shown stays, marked with the reason."""
        super().close(reason)
        if self._follower is not None:
            self._follower.stop()


def open_chart(
    session: Session,
    market: str,
    timeframe: str,
    start: TimeLike | None,
    end: TimeLike | None,
    count: int | None,
    live: bool | None,
    style: dict[str, Any],
) -> LiveChart:
    """See `Backbone.chart`."""
    tf = parse_timeframe(timeframe, derived=True)
    if live and end is not None:
        raise InputError("live", live, "False or None for a chart with an end")
    follows = end is None if live is None else live
    code = parse_market(market, session.home)
    frame = candles(session, code, tf.name, start, end, count=count, include_forming=end is None, frames="pandas")
    core = session.coordinator()
    follower = _Follower(session, code, tf) if follows else None
    tick = core.realtime.known_tick(code)
    return LiveChart(frame, follower, market=code, timeframe=tf.name, tick=tick, clock=core.clock, **style)


class _Follower:
    """The source that a chart pulls: the candles that changed since the last pull."""

    def __init__(self, session: Session, market: str, timeframe: Timeframe) -> None:
        self._session = session
        self._market = market
        self._timeframe = timeframe
        is_long = timeframe.step_us > _DAY.step_us
        self._part = timeframe.base or (_DAY if is_long else timeframe)  # what is followed, to make the candles of
        self._kind = next((kind for kind in KINDS if timeframe_of(kind) == self._part), "ticker")
        self._table: LiveTable | None = None
        self._records: RecordQueue | None = None
        self._lost = 0  # records dropped and gaps filled so far
        self._parts: dict[int, Candle] = {}  # of the candle that forms
        self._is_stopped = False

    def __call__(self) -> ChartView:
        first: list[object] = []
        if self._table is None:
            if self._is_stopped or not in_kernel():
                return ChartView()
            first = self._open()
        table, records = self._table, self._records
        assert table is not None
        assert records is not None
        arrived = iter(lambda: records.get(0.0), None)
        rows = [row for record in [*first, *arrived] for row in self._rows_of(record)]
        lost = records.dropped + sum(event.kind == "gap" and event.filled for event in table.events)
        if lost != self._lost:
            self._lost = lost
            rows = [*self._stored(), *rows]
        if records.is_ended:
            raise StreamClosedError("stopped", reason="stopped")
        return ChartView(rows, table.state, f"{table.received:,} updates")

    def stop(self) -> None:
        """End the live table, if one was opened."""
        self._is_stopped = True
        if self._table is not None:
            self._table.stop()

    def _open(self) -> list[object]:
        """Start following; the newest record so far, if there is one."""
        table = start_live(self._session, self._market, self._kind)
        try:
            self._records = table.records(_AHEAD)
            if self._part != self._timeframe:
                self._read_parts()
        except BaseException:
            table.stop()
            raise
        self._table = table
        _stop_with(self, table)
        return [table.latest(self._market)]

    def _rows_of(self, record: object) -> list[Candle]:
        row: Candle
        if isinstance(record, LiveCandle):
            row = record
        elif isinstance(record, Ticker):
            opens_us = _DAY.floor(record.time_us)
            row = CandleRow(opens_us, record.open, record.high, record.low, record.price, record.volume)
        else:
            return []
        return [row if self._part == self._timeframe else self._longer(row)]

    def _longer(self, part: Candle) -> CandleRow:
        """The candle that `part` is in, of the parts known of it."""
        opens_us = self._timeframe.floor(part.time_us)
        self._parts = {us: row for us, row in self._parts.items() if us >= opens_us} | {part.time_us: part}
        parts = [self._parts[us] for us in sorted(self._parts)]
        return CandleRow(
            opens_us,
            parts[0].open,
            max(row.high for row in parts),
            min(row.low for row in parts),
            parts[-1].close,
            math.fsum(row.volume for row in parts),
        )

    def _read_parts(self) -> None:
        now_us = self._session.now_us()
        opens_us = self._timeframe.floor(now_us)
        if self._part.floor(now_us) > opens_us:
            start = in_zone(opens_us, "UTC")
            parts = candles(self._session, self._market, self._part.name, start, frames="pandas")
            self._parts = {row.time_us: row for row in rows_of(parts)[0]}

    def _stored(self) -> list[CandleRow]:
        """The newest candles on disk, as far as they are known without a hole: what was missed has been fetched."""
        try:
            frame = candles(
                self._session, self._market, self._timeframe.name, count=_REREAD, offline=True, frames="pandas"
            )
        except IncompleteError as error:
            frame = error.frame
        return rows_of(frame)[0]


def _stop_with(follower: _Follower, table: LiveTable) -> None:
    """Have `table` stopped when its chart is collected. Without a loop (a thread shows it) the client ends it."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return

    def stop() -> None:
        """On the loop, since a collection may happen in any thread, at any lock."""
        with contextlib.suppress(RuntimeError):  # the loop was closed: its process is ending
            loop.call_soon_threadsafe(table.stop)

    weakref.finalize(follower, stop).atexit = False
