"""The candle chart: history from a frame, then the live candle; a widget, a static SVG, or a line of text.

What is decided here: which candles the browser is sent (the changed ones, or all of them where one was inserted or old
ones were dropped), in which zone times are shown, and how the static picture is drawn. The browser's half shows times
as they are sent, so they are sent shifted by the zone's offset at the newest candle.
"""

from __future__ import annotations

import base64
import bisect
import datetime as dt
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from html import escape
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from backbone.api.arguments import in_zone
from backbone.api.format import format_amount, format_price, price_digits, tick_size
from backbone.api.notebook.view import View, check_colours, make_widget, state_line
from backbone.clock import Clock
from backbone.errors import InputError
from backbone.model import LiveCandle
from backbone.timeframe import DAY_US, parse_timeframe

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CandleChart", "CandleRow", "ChartView", "rows_of"]

MAX_ROWS: Final = 5_000
"""Candles kept by a chart that runs on; twice what a screen can show."""


class CandleRow(NamedTuple):
    """One candle; ``time_us`` is its open."""

    time_us: int
    open: float
    high: float
    low: float
    close: float
    volume: float


Candle = CandleRow | LiveCandle


class ChartView(NamedTuple):
    """What a chart's source says: the candles that may have changed (more does no harm), the stream's mode, a note."""

    rows: Sequence[Candle] = ()
    state: str = ""
    note: str = ""


class CandleChart(View):
    """A candlestick chart with volume that follows the live candle.

    Parameters
    ----------
    frame : candles of one market as `Backbone.candles` returns them; may have zero rows.
    market, timeframe : for the title, the price's digits and the time axis.
    pull : asked at most ten times a second, on the kernel's side, for the newest candles; without it the chart stays as
        it is.
    colours : ``"korean"`` (rise red, fall blue) or ``"western"`` (rise green, fall red).
    height : in pixels.
    tick : the market's price step; without it the one that fits the last price.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        *,
        market: str,
        timeframe: str,
        pull: Callable[[], ChartView] | None = None,
        colours: str = "korean",
        height: int = 420,
        tick: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_colours(colours)
        if not 120 <= height <= 4000:
            raise InputError("height", height, "120 to 4000 pixels")
        super().__init__(clock)
        self.market = market
        self.timeframe = parse_timeframe(timeframe, derived=True)
        self._title = f"{market} · {self.timeframe}"
        self._source = pull
        self._colours = colours
        self._height = height
        self._tick = tick
        rows, self._zone = rows_of(frame)
        self._rows = rows[-MAX_ROWS:]
        self._changed: dict[int, CandleRow] = {}
        self._needs_whole = False
        self._given: deque[Callable[[], None]] = deque()  # changes by any thread that are not taken yet
        self._pulled = ChartView()

    def __repr__(self) -> str:
        state = self.problem or self._pulled.state or "still"
        return f"CandleChart({self.market} {self.timeframe}, {len(self._rows)} candles, {state})"

    @property
    def rows(self) -> tuple[CandleRow, ...]:
        """The candles held, oldest first."""
        return tuple(self._rows)

    def set(self, frame: pd.DataFrame) -> None:
        """Show these candles instead; given by another thread than the main one, at the next refresh."""
        self._give(partial(self._replace, *rows_of(frame)))

    def update(self, candle: Candle) -> None:
        """Take the newest state of one candle: the live one, the next one, or an older one that was missing."""
        self._give(partial(self._merge, [candle]))

    def _give(self, change: Callable[[], None]) -> None:
        self._given.append(change)
        if threading.current_thread() is threading.main_thread():
            self._take_given()
            self.show_problem()

    def _take_given(self) -> None:
        while self._given:
            self._given.popleft()()

    def _replace(self, rows: list[CandleRow], zone: dt.tzinfo) -> None:
        self._rows, self._zone, self._changed, self._needs_whole = rows[-MAX_ROWS:], zone, {}, True

    def text(self) -> str:
        """The last closes as a line, and the numbers that matter."""
        rows, tick = self._rows, self._tick_now()
        if not rows:
            return f"{self.market} {self.timeframe} · no candles"
        closes = [row.close for row in rows[-60:]]
        low, high = min(closes), max(closes)
        scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
        line = "".join(_BLOCKS[round((close - low) * scale)] for close in closes)
        first, last = rows[0], rows[-1]
        count = "1 candle" if len(rows) == 1 else f"{len(rows)} candles"
        change = last.close / first.open - 1 if first.open else math.nan
        spans = " – ".join(in_zone(row.time_us, self._zone).strftime("%Y-%m-%d %H:%M") for row in (first, last))
        return (
            f"{self.market} {self.timeframe} · {count} · {spans} {_zone_name(self._zone)}\n"
            f"{line}  {format_price(last.close, tick)} ({change:+.2%})\n"
            f"high {format_price(max(row.high for row in rows), tick)}"
            f" · low {format_price(min(row.low for row in rows), tick)}"
            f" · volume {format_amount(sum(row.volume for row in rows))}"
        )

    def svg(self) -> str:
        """The last candles as a self-contained SVG picture on a transparent ground, the same for the same candles."""
        rows, tick = self._rows[-120:], self._tick_now()
        is_daily = self.timeframe.step_us >= DAY_US
        up, down = ("#d24a3c", "#3a7bd5") if self._colours == "korean" else ("#0a8754", "#d24a3c")
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_W} {_H}" width="{_W}" height="{_H}" '
            f'font-family="system-ui,sans-serif" font-size="11" fill="{_GREY}">'
        )
        if not rows:
            return f'{head}<text x="{_LEFT}" y="20">{escape(self._title)} · no candles</text></svg>'
        last = rows[-1]
        low, high = min(row.low for row in rows), max(row.high for row in rows)
        margin = (high - low) * 0.04 or abs(high) * 0.01 or 1.0
        low, high = low - margin, high + margin
        floor = _H - _BOTTOM
        price_floor = floor - (floor - _TOP) * (_VOLUME_SHARE + 0.03)
        most = max(row.volume for row in rows) or 1.0
        slot = (_W - _LEFT - _RIGHT) / max(len(rows), 20)
        width = max(1.0, slot * 0.7)
        xs = [_LEFT + (i + 0.5) * slot for i in range(len(rows))]

        def price_y(price: float) -> float:
            return _TOP + (high - price) / (high - low) * (price_floor - _TOP)

        def box(x: float, y: float, height: float) -> str:
            return f"M{x - width / 2:.1f} {y:.1f}h{width:.1f}v{height:.1f}h-{width:.1f}z"

        parts = [
            head,
            f'<text x="{_LEFT}" y="20" font-size="13"><tspan font-weight="600">{escape(self._title)}</tspan>'
            f'<tspan dx="10" font-weight="600" fill="{up if last.close >= last.open else down}">'
            f"{format_price(last.close, tick)}</tspan></text>",
        ]
        for price in _round_steps(low, high, tick):
            y = price_y(price)
            parts.append(f'<path d="M{_LEFT} {y:.1f}H{_W - _RIGHT}" stroke="{_GREY}" stroke-opacity=".18"/>')
            parts.append(f'<text x="{_W - _RIGHT + 8}" y="{y + 4:.1f}">{format_price(price, tick)}</text>')
        parts += _time_labels(rows, xs, self._zone, is_daily)
        for colour, is_rising in ((up, True), (down, False)):
            bars = wicks = bodies = ""
            for x, row in zip(xs, rows, strict=True):
                if (row.close >= row.open) is is_rising:
                    top, bottom = price_y(max(row.open, row.close)), price_y(min(row.open, row.close))
                    tall = row.volume / most * (floor - _TOP) * _VOLUME_SHARE
                    bars += box(x, floor - tall, tall)
                    wicks += f"M{x:.1f} {price_y(row.high):.1f}V{price_y(row.low):.1f}"
                    bodies += box(x, top, max(bottom - top, 1.0))
            if bodies:
                parts.append(f'<path d="{bars}" fill="{colour}" fill-opacity=".4"/>')
                parts.append(f'<path d="{wicks}" stroke="{colour}" fill="none"/>')
                parts.append(f'<path d="{bodies}" fill="{colour}"/>')
        return "".join([*parts, "</svg>"])

    def html(self) -> str:
        """The SVG as an image, which passes every front end's sanitiser."""
        data = base64.b64encode(self.svg().encode()).decode()
        alt = escape(self.text(), quote=True)
        return f'<img alt="{alt}" src="data:image/svg+xml;base64,{data}" width="860">'

    def _tick_now(self) -> float:
        if self._tick is not None:
            return self._tick
        return tick_size(self.market, self._rows[-1].close) if self._rows else 1e-8

    def _merge(self, candles: Iterable[Candle]) -> None:
        """Take the newest state of candles: the live one, the next one, or an older one that was missing."""
        for candle in candles:
            row = CandleRow(candle.time_us, candle.open, candle.high, candle.low, candle.close, candle.volume)
            at = bisect.bisect_left(self._rows, row.time_us, key=attrgetter("time_us"))
            if at == len(self._rows):
                self._rows.append(row)
            elif self._rows[at].time_us != row.time_us:
                self._rows.insert(at, row)
                self._needs_whole = True
            elif self._rows[at] == row:
                continue
            else:
                self._rows[at] = row
            self._changed[row.time_us] = row
        if len(self._rows) > MAX_ROWS * 5 // 4:
            del self._rows[:-MAX_ROWS]
            self._needs_whole = True

    def _pull(self) -> None:
        self._take_given()
        if self._source is not None:
            self._pulled = self._source()
            self._merge(self._pulled.rows)

    def _show(self, *, whole: bool = False) -> None:
        self._widget.state = self._state()
        changed = [_sent(row, self._shift_us()) for row in sorted(self._changed.values())]
        if self._needs_whole or whole:
            self._widget.data = self._packed()  # which sends nothing where it is the same
        elif changed:
            self._widget.send({"t": "u", "rows": changed})
        self._changed = {}

    def _state(self) -> dict[str, Any]:
        tick = self._tick_now()
        state, level, note = state_line(self._pulled.state, self._pulled.note, self.problem)
        return {
            "title": self._title,
            "line": " · ".join(filter(None, (state, note, _zone_name(self._zone)))),
            "level": level,
            "tick": tick,
            "digits": price_digits(tick),
            "seconds": self.timeframe.step_us // 1_000_000,
            "height": self._height,
            "colours": self._colours,
        }

    def _packed(self) -> bytes:
        """All candles, as the browser takes them; it knows them from now on."""
        self._needs_whole, self._changed = False, {}
        shift = self._shift_us()
        return np.array([_sent(row, shift) for row in self._rows], "<f8").tobytes()

    def _shift_us(self) -> int:
        """The zone's offset at the newest candle."""
        offset = in_zone(self._rows[-1].time_us if self._rows else 0, self._zone).utcoffset()
        return (offset or dt.timedelta(0)) // dt.timedelta(microseconds=1)

    def _build(self) -> Any:
        files = "chart.js", "theme.css", "chart.css"
        return make_widget("CandleChart", *files, state=self._state(), data=self._packed())


def rows_of(frame: pd.DataFrame) -> tuple[list[CandleRow], dt.tzinfo]:
    """The candles of a frame and the zone of its index; `InputError` where it is no frame of one market's candles."""
    import pandas as pd

    columns = ["open", "high", "low", "close", "volume"]
    if not isinstance(frame, pd.DataFrame) or not isinstance(frame.index, pd.DatetimeIndex):
        raise InputError("frame", type(frame).__name__, "a candle frame indexed by time")
    if frame.index.tz is None or not set(columns) <= set(frame.columns):
        raise InputError("frame", list(frame.columns), "a candle frame: tz-aware index, " + " ".join(columns))
    if "market" in frame.columns and frame["market"].nunique() > 1:
        raise InputError("frame", sorted(set(frame["market"])), "the candles of one market")
    times = frame.index.tz_convert("UTC").as_unit("us").asi8.tolist()
    lists = [frame[name].tolist() for name in columns]
    return [CandleRow(*values) for values in zip(times, *lists, strict=True)], frame.index.tz


def _zone_name(zone: dt.tzinfo) -> str:
    name = str(zone)
    return "KST" if name == "Asia/Seoul" else name


def _sent(row: CandleRow, shift_us: int) -> list[float]:
    return [(row.time_us + shift_us) / 1e6, *row[1:]]


# the static faces

_W, _H = 860, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 10, 92, 34, 26
_VOLUME_SHARE = 0.2
_GREY = "#7d8590"  # readable on white and on black
_BLOCKS: Final = "▁▂▃▄▅▆▇█"


def _round_steps(low: float, high: float, tick: float) -> list[float]:
    """Four to nine round prices between two bounds, on the tick grid."""
    rough = (high - low) / 9
    scale = 10.0 ** math.floor(math.log10(rough))
    step = max(next(scale * k for k in (1, 2, 5, 10) if scale * k >= rough), tick)
    return [round(k * step, 8) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _time_labels(rows: Sequence[CandleRow], xs: Sequence[float], zone: dt.tzinfo, is_daily: bool) -> list[str]:
    every = max(1, math.ceil(len(rows) / 7))
    labels = []
    day: dt.date | None = None
    for i in range(every // 2, len(rows), every):
        at = in_zone(rows[i].time_us, zone)
        form = "%Y-%m-%d" if is_daily else "%H:%M" if at.date() == day else "%m-%d %H:%M"
        day = at.date()
        labels.append(f'<text x="{xs[i]:.1f}" y="{_H - 8}" text-anchor="middle">{at.strftime(form)}</text>')
    return labels
