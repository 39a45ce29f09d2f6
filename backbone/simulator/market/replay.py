"""Recorded candles served as if live: a `Venue` whose history is that of the files.

Rows go out exactly as recorded, to the last bit of each float64. What a file does not hold is filled by rule:
a missing open or high is the close, a missing volume the smallest there is (the venue has no candle without
any), a missing value volume times close. Later files
override earlier ones, but a row that misses columns never overrides one that misses fewer. A timeframe that
no file has for a market is folded: weeks, months and years from recorded days where there are any, the rest
from the finest recorded timeframe that divides it.

Trades, tickers and books are derived: each candle of the finest recorded timeframe becomes up to four trades,
at its open, its extremes and its close, which share its volume. A candle that the clock is in the middle of
is formed of those trades; when its time is over it is the recorded row.

Everything is loaded at the start and never changes but for scripted outages, which replace it as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from backbone.errors import InputError
from backbone.model import CANDLE_COLUMNS, Span
from backbone.simulator.market.catalogue import Market, catalogue, decimals_of, hash_text, tick_of
from backbone.simulator.market.tape import I64, mix
from backbone.simulator.market.venue import NO_BARS, Bars, Executions, Summary, Venue, fold_bars
from backbone.timeframe import DAY_US, TIMEFRAMES, Timeframe, parse_timeframe

__all__ = ["Replay"]


_NEEDED = ("market", "timestamp", "close")
_LEAST = 1e-8
_SHARES = np.array([0.4, 0.3, 0.2])  # of a candle's volume, for its first trades; the close takes the rest


class Replay(Venue):
    """A venue of recorded candles.

    Parameters
    ----------
    files : Parquet files with columns market, timestamp, close and any of timeframe, open, high, low, volume,
        value. Without a timeframe column the file's name must begin with one (``1d_….parquet``).
    seed : what the derived trades and books are drawn from.
    markets : codes to serve; default is all that the files have.

    ``end_us`` is just after the last recorded candle's end: where an exchange that replays it should start.
    """

    sums_since_us = 0  # recorded rows are served as they are

    def __init__(self, files: Iterable[str | Path], *, seed: int = 7, markets: Sequence[str] | None = None) -> None:
        self._recorded = _load([Path(f) for f in files])
        found = sorted({market for market, _ in self._recorded})
        if markets is not None:
            for code in markets:
                if code not in found:
                    raise InputError("markets", code, "a market of the replayed files")
            found = list(markets)
        super().__init__({code: self._describe(code) for code in found})
        self.seed = seed
        ends = [TIMEFRAMES[name].next(int(bars.time_us[-1])) for (_, name), bars in self._recorded.items()]
        self.end_us = max(ends) + 5_000_000  # clients give a candle some seconds before they call it closed
        self._open(())

    def __repr__(self) -> str:
        rows = sum(len(bars) for bars in self._recorded.values())
        return f"Replay(markets={len(self.listed())}, rows={rows})"

    def _describe(self, code: str) -> Market:
        """A market of the catalogue, or one made up from its candles."""
        step = TIMEFRAMES[self._finest(code)]
        finest = self._recorded[code, step.name]
        first = min(int(b.time_us[0]) for (market, _), b in self._recorded.items() if market == code)
        close = float(finest.close[-1])
        quote, _, base = code.partition("-")
        known = catalogue().get(code)
        span_us = int(finest.time_us[-1] - finest.time_us[0]) + step.step_us
        tick = tick_of(quote if quote in ("KRW", "BTC", "USDT") else "KRW", float(np.min(finest.close)))
        return Market(
            code=code,
            korean_name=known.korean_name if known else base,
            english_name=known.english_name if known else base,
            warning=known.warning if known else False,
            cautions=known.cautions if known else (),
            listed_us=first,
            price=close,
            drift=0.0,
            day_volatility=0.0,
            trades_per_minute=4 * len(finest) * 60e6 / span_us,
            trade_value=float(np.median(finest.value)) / 4 + 1e-9,
            price_decimals=decimals_of(tick),
            volume_decimals=8,
            history=code,
        )

    # -- what is recorded ------------------------------------------------------------------------------------

    def recorded(self, market: str) -> list[str]:
        """The timeframes that the files have for a market, shortest first."""
        names = {name for code, name in self._recorded if code == market}
        return [name for name in TIMEFRAMES if name in names]

    def _finest(self, code: str) -> str:
        return self.recorded(code)[0]

    def _source_of(self, code: str, timeframe: Timeframe) -> str | None:
        """The recorded timeframe that `timeframe` is answered from."""
        names = self.recorded(code)
        if timeframe.name in names:
            return timeframe.name
        if timeframe.name in ("1w", "1M", "1y"):
            return "1d" if "1d" in names else next((n for n in names if DAY_US % TIMEFRAMES[n].step_us == 0), None)
        return next((n for n in names if timeframe.step_us % TIMEFRAMES[n].step_us == 0), None)

    def _open(self, closed: tuple[Span, ...]) -> None:
        """Serve the record without the trades of the spans `closed`."""
        self._closed = closed
        self._all = lru_cache(maxsize=None)(partial(self._make, closed))

    def _make(self, closed: Sequence[Span], code: str, timeframe: Timeframe) -> Bars:
        """Every candle of a market and timeframe."""
        source = self._source_of(code, timeframe)
        if source is None:
            return NO_BARS
        bars = _without(self._recorded[code, source], closed)
        return bars if source == timeframe.name else fold_bars(bars, timeframe)

    def list_market(self, code: str, at_us: int) -> Market:
        if code not in {market for market, _ in self._recorded}:
            raise InputError("market", code, "a market of the replayed files")
        return self._add(self._describe(code))

    def rescale(self, code: str, factor: object) -> None:
        raise InputError("rescale", code, "a synthetic exchange: recorded rows are served as they were")

    def close_span(self, span: Span) -> None:
        self._open((*self._closed, span))

    # -- primitives ------------------------------------------------------------------------------------------

    def bars(self, market: Market, timeframe: Timeframe, start_us: int, end_us: int) -> Bars:
        return self._all(market.history, timeframe).between(start_us, max(start_us, end_us))

    def stride_us(self, market: Market, timeframe: Timeframe) -> int:
        return 1 << 62  # everything is at hand: one step reaches the beginning

    def forming(self, market: Market, timeframe: Timeframe, now_us: int) -> Bars:
        start = timeframe.floor(now_us)
        source = self._source_of(market.history, timeframe)
        if source is None:
            return NO_BARS
        parts = TIMEFRAMES[source]
        whole = self._all(market.history, parts).between(start, parts.floor(now_us))
        running = self._all(market.history, parts).between(parts.floor(now_us), now_us + 1)
        seen = self._trades_of(market, running, parts).between(0, now_us + 1)
        pieces = Bars.join([whole, _single(seen, start)])
        if not len(pieces):
            return pieces
        return replace(fold_bars(pieces, None), time_us=np.array([start]))

    def executions(self, market: Market, start_us: int, end_us: int) -> Executions:
        length = TIMEFRAMES[self._finest(market.history)]
        bars = self._all(market.history, length).between(length.floor(start_us), end_us)
        return self._trades_of(market, bars, length).between(start_us, end_us)

    def last_execution(self, market: Market, before_us: int) -> Executions:
        length = TIMEFRAMES[self._finest(market.history)]
        bars = self._all(market.history, length).between(0, before_us)
        return self._trades_of(market, bars.newest(2), length).between(0, before_us).newest(1)

    def _trades_of(self, market: Market, bars: Bars, length: Timeframe) -> Executions:
        """The trades that stand for candles: open, the two extremes (nearest to the open first), close."""
        count = len(bars)
        low_first = (bars.close >= bars.open)[:, None]
        extremes = np.stack([bars.low, bars.high], axis=1)
        prices = np.column_stack([bars.open, np.where(low_first, extremes, extremes[:, ::-1]), bars.close])
        volumes = np.empty((count, 4))
        volumes[:, :3] = np.round(bars.volume[:, None] * _SHARES[None, :], 8)
        volumes[:, 3] = np.maximum(bars.volume - volumes[:, :3].sum(axis=1), 0.0)
        key = np.uint64(hash_text(f"{self.seed} {market.history}"))
        counter: I64 = bars.time_us[:, None] * 4 + np.arange(4, dtype=np.int64)
        draw = mix(key, counter.astype(np.uint64))
        quarter = length.step_us // 4000
        offset = np.arange(4, dtype=np.int64)[None, :] * quarter + (draw % np.uint64(quarter)).astype(np.int64)
        time_ms = ((bars.time_us // 1000)[:, None] + offset).ravel()
        return Executions(
            time_ms,
            prices.ravel(),
            volumes.ravel(),
            (draw >> np.uint64(40)).astype(np.int64).ravel() % 2 == 1,
            time_ms * 10_000,
        )

    def summaries(self, markets: Sequence[Market], now_us: int) -> list[Summary]:
        found = (self._summary(market, now_us) for market in markets)
        return [summary for summary in found if summary is not None]

    def _summary(self, market: Market, now_us: int) -> Summary | None:
        last = self.last_execution(market, now_us + 1)
        if not len(last):
            return None
        day_us = now_us // DAY_US * DAY_US
        today = self._until(market, day_us, now_us)
        back = self._until(market, now_us // 60_000_000 * 60_000_000 - DAY_US, now_us)
        price = float(last.price[0])
        open_, high, low = price, price, price
        if len(today):
            open_, high, low = float(today.open[0]), float(today.high.max()), float(today.low.min())
        previous = self.last_price(market, day_us)
        volume = float(today.volume.sum())
        return Summary(
            market=market,
            last_ms=int(last.time_ms[0]),
            last_price=price,
            last_volume=float(last.volume[0]),
            last_is_buy=bool(last.is_buy[0]),
            open=open_,
            high=high,
            low=low,
            prev_close=open_ if previous is None else previous,
            volume=volume,
            value=float(today.value.sum()),
            bought=round(volume / 2, 8),
            volume_24h=float(back.volume.sum()),
            value_24h=float(back.value.sum()),
            year=_extremes(self._year(market, day_us)),
        )

    def _until(self, market: Market, start_us: int, now_us: int) -> Bars:
        """The finest candles from `start_us`, the running one as far as it is formed."""
        length = TIMEFRAMES[self._finest(market.history)]
        current = length.floor(now_us)
        parts = [self.bars(market, length, start_us, current)]
        if current >= start_us:
            parts.append(self.forming(market, length, now_us))
        return Bars.join(parts)

    def _year(self, market: Market, day_us: int) -> Bars:
        source = "1d" if "1d" in self.recorded(market.history) else self._finest(market.history)
        return self.bars(market, TIMEFRAMES[source], day_us - 364 * DAY_US, day_us)


def _without(bars: Bars, closed: Sequence[Span]) -> Bars:
    for span in closed:
        bars = bars.take((bars.time_us < span.start) | (bars.time_us >= span.end))
    return bars


def _extremes(bars: Bars) -> tuple[float, int, float, int]:
    """The highest and the lowest price of candles, each with its candle's time."""
    if not len(bars):
        return 0.0, 0, np.inf, 0
    top, bottom = int(np.argmax(bars.high)), int(np.argmin(bars.low))
    return float(bars.high[top]), int(bars.time_us[top]), float(bars.low[bottom]), int(bars.time_us[bottom])


def _single(trades: Executions, start_us: int) -> Bars:
    """All the given trades as one candle, or none."""
    if not len(trades):
        return NO_BARS
    values = trades.price * trades.volume
    columns = (
        trades.price[0], trades.price.max(), trades.price.min(), trades.price[-1], trades.volume.sum(), values.sum()
    )  # fmt: skip
    stamps = np.array([start_us]), trades.time_ms[-1:]
    return Bars(stamps[0], *(np.array([float(c)]) for c in columns), stamp_ms=stamps[1])  # type: ignore[misc]


# -- reading the files ---------------------------------------------------------------------------------------


def _load(files: Sequence[Path]) -> dict[tuple[str, str], Bars]:
    """Every file's rows by (market, timeframe).

    Of the rows of one time, the one that misses fewest columns is taken, of those the latest file's.
    """
    if not files:
        raise InputError("replay", [], "one or more Parquet files of recorded candles")
    rows = pd.concat([_read(path) for path in files], ignore_index=True)
    missing = rows[list(CANDLE_COLUMNS)].isna().sum(axis=1).sort_values(ascending=False, kind="stable")
    rows = rows.loc[missing.index].drop_duplicates(["market", "timeframe", "time"], keep="last").sort_values("time")
    found = {}
    for (market, name), group in rows.groupby(["market", "timeframe"], sort=False):
        found[str(market), str(name)] = _filled(TIMEFRAMES[str(name)], group)
    return found


def _read(path: Path) -> pd.DataFrame:
    """The rows of a file; NaN in the columns that it lacks."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as exc:
        raise InputError("replay", str(path), "a readable Parquet file of recorded candles") from exc
    missing = [name for name in _NEEDED if name not in table.column_names]
    if missing:
        raise InputError("replay", str(path), f"a candle file; it lacks the column {missing[0]}")
    time_us = np.asarray(table["timestamp"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()))
    rows = pd.DataFrame({"market": table["market"].to_pandas(), "timeframe": _timeframes(path, table), "time": time_us})
    for name in CANDLE_COLUMNS:
        rows[name] = table[name].cast(pa.float64()).to_numpy() if name in table.column_names else np.nan
    return rows


def _timeframes(path: Path, table: pa.Table) -> Any:
    """The timeframe of each row, or of the whole file."""
    if "timeframe" in table.column_names:
        names = table["timeframe"].to_pandas()
        return names.map({name: parse_timeframe(name).name for name in names.unique()})
    try:
        return parse_timeframe(path.name.partition("_")[0]).name
    except InputError as exc:
        allowed = "a timeframe column, or a name that begins with one such as 1d_"
        raise InputError("replay", str(path), allowed) from exc


def _filled(timeframe: Timeframe, rows: pd.DataFrame) -> Bars:
    """Candles whose missing numbers are filled by the rules of the module's docstring."""
    opens, high, low, close, volume, value = (rows[name].to_numpy() for name in CANDLE_COLUMNS)
    opens = np.where(np.isnan(opens), close, opens)
    high = np.where(np.isnan(high), np.maximum(opens, close), high)
    low = np.where(np.isnan(low), np.minimum(opens, close), low)
    volume = np.where(np.isnan(volume), _LEAST, volume)
    value = np.where(np.isnan(value), volume * close, value)
    time_us, end_ms = rows["time"].to_numpy(), timeframe.step_us // 1000
    stamp_ms = time_us // 1000 + end_ms - 1 - time_us // 1_000_000 % min(900, end_ms // 2)
    return Bars(time_us, opens, high, low, close, volume, value, stamp_ms)
