"""Which candle frames are kept ready on disk, and under which key.

Large closed ranges for pandas: turning a year of minutes into a frame, or folding it, is dearer than mapping a file.
The key holds every argument that shapes the frame and a digest of the files that it is made from, so a changed
partition is never served stale. What is provisional, or not on disk yet, is not kept. Neither is a frame that is asked
for the first time: most are asked for once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from backbone.api.session import Session
from backbone.coordinator.candles.ranges import Range
from backbone.model import Priority, Span
from backbone.timeframe import TIMEFRAMES, Timeframe

__all__ = ["CandleWords", "Remembered"]

_MINUTE, _DAY = TIMEFRAMES["1m"], TIMEFRAMES["1d"]


class CandleWords(msgspec.Struct, frozen=True):
    """The checked words of one call of `Backbone.candles`.

    ``many`` says that the answer names its markets, be it one; ``is_whole`` that they are those of a quote currency.
    """

    session: Session
    markets: list[str]
    timeframe: Timeframe
    asked: Range
    priority: Priority
    include_forming: bool
    fill: str | None
    wide: str | None
    refresh: bool
    frames: str
    progress: bool | Callable[[Any], None] | None
    offline: bool
    many: bool
    is_whole: bool


class Remembered:
    """The kept frame of one call, where there may be one."""

    def __init__(self, call: CandleWords) -> None:
        self._call = call
        self._core = call.session.coordinator()
        self._span = None if self._core.memo is None else self._closed_span()
        self._key = None if self._span is None else self._make_key(self._span)

    def find(self) -> Any:
        """The frame as it was made, or None."""
        frame = None if self._core.memo is None or self._key is None else self._core.memo.find(self._key)
        if frame is not None:
            self._core.metrics.count("memo_hits")
        return frame

    def keep(self, frame: Any) -> None:
        """Keep `frame`, made of held candles alone, if it was asked for before and its files have not changed since."""
        memo, span, key = self._core.memo, self._span, self._key
        if memo is None or span is None or key is None:
            return
        is_folded = "derived:1m" in frame.attrs["backbone"]["sources"]
        is_dear = is_folded or len(frame) >= self._core.settings.memo_rows
        if not is_dear or not memo.is_wanted(key):
            return
        is_settled = all(self._core.store.is_settled(*one, span) for one in self._sources())
        if is_settled and self._make_key(span) == key and memo.has_room(frame):
            memo.keep(key, frame)

    def _closed_span(self) -> Span | None:
        """The range, where a frame of it may be kept."""
        call, asked = self._call, self._call.asked
        is_plain = call.frames == "pandas" and not call.include_forming and call.fill != "ffill"
        is_plain = is_plain and call.timeframe.base is None
        if not is_plain or call.priority is Priority.CRITICAL or asked.start_us is None or asked.end_us is None:
            return None
        start, end = call.timeframe.ceil(asked.start_us), call.timeframe.ceil(asked.end_us)
        is_foldable = _MINUTE.step_us < call.timeframe.step_us <= _DAY.step_us
        finest = _MINUTE if is_foldable else call.timeframe
        is_large = finest.count(Span(start, end)) * len(call.markets) >= self._core.settings.memo_rows
        is_over = end <= self._core.reader.closed_before(call.timeframe)
        return Span(start, end) if is_large and is_over else None

    def _sources(self) -> list[tuple[str, Timeframe]]:
        timeframes = {self._call.timeframe, _MINUTE}
        return [(market, tf) for market in self._call.markets for tf in sorted(timeframes, key=lambda tf: tf.step_us)]

    def _make_key(self, span: Span) -> tuple[str | int, ...]:
        call, store = self._call, self._core.store
        versions = [store.version(*one, span) for one in self._sources()]
        words = [call.timeframe.name, call.fill or "", call.wide or "long", call.session.tz, str(call.many)]
        return (self._core.settings.store_exchange, *call.markets, *words, *span, *versions)
