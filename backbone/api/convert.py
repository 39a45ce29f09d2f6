"""Candle frames as other tools and people like them: from frame to frame, and from frame to another tool's files.

What is decided here: which column names, index and time zone each tool expects, and what a trading day is. Nothing here
reads a store, a clock or the network. The frame that came in is never changed, and its ``attrs`` go out with the
result. This module alone imports pandas at once: it is loaded with the first of its functions, which take its frames.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa

from backbone.clock import SystemClock
from backbone.errors import InputError, StoreError
from backbone.model import CANDLE_COLUMNS
from backbone.storage.files import rename_over
from backbone.storage.fold import decimal_sums
from backbone.timeframe import DAY_US, HOUR_US, TIMEFRAMES

__all__ = ["OHLC_STYLES", "export", "naive", "resample_trading_day", "to_ohlc"]

OHLC_STYLES: Final = ("vectorbt", "backtesting", "mplfinance", "freqtrade", "ccxt")
EXPORT_STYLES: Final = ("freqtrade",)

_ROWS_FOR_A_GUESS: Final = 4  # fewer candles of a quiet market may lie on a coarse grid by chance
_TITLES: Final = {"open": "Open", "high": "High", "low": "Low", "close": "Close", "volume": "Volume"}
_FLAGS: Final = ("forming", "synthetic")


def to_ohlc(df: pd.DataFrame, style: str = "vectorbt") -> Any:
    """A candle frame with the column names, index and time zone that another tool expects.

    * ``vectorbt``: ``Open High Low Close Volume``, index ``Date``, tz-aware as it came
    * ``backtesting``, ``mplfinance``: the same columns, index ``Date`` tz-naive in the shown zone
    * ``freqtrade``: ``date open high low close volume``, ``date`` in UTC milliseconds; rows numbered from 0
    * ``ccxt``: ``timestamp open high low close volume``, ``timestamp`` int64 milliseconds; rows numbered from 0

    Parameters
    ----------
    df : a candle frame as `Backbone.candles` returns it, of one market or several. Every row goes through, a forming or
        synthetic one too: leave them out beforehand with ``df[~df["forming"]]``. Or a wide frame, ``candles(wide=…)``.
    style : who will read it.

    Returns
    -------
    DataFrame of as many rows, float64 columns, ``attrs`` kept; the index has a ``freq`` where its grid has no hole.
    ``to_ohlc(df, "ccxt").to_numpy().tolist()`` is the list of lists that ccxt's ``fetch_ohlcv`` returns.
    Several markets (a ``market`` column with more than one): a dict of such frames, by market. A wide frame keeps its
    columns, a market each, and gets the index.

    Raises
    ------
    InputError  an unknown style, a frame that is no candle frame, or a tz-naive style in a zone that set its clocks
        back inside the frame: two instants would bear one time.

    Examples
    --------
    >>> import pandas as pd
    >>> index = pd.date_range("2024-01-01", periods=2, freq="min", tz="Asia/Seoul", unit="us", name="time")
    >>> columns = ("open", "high", "low", "close", "volume", "value")
    >>> df = pd.DataFrame(dict.fromkeys(columns, [1.0, 2.0]), index)
    >>> list(to_ohlc(df, "backtesting"))
    ['Open', 'High', 'Low', 'Close', 'Volume']
    >>> to_ohlc(df, "ccxt")["timestamp"].tolist()
    [1704034800000, 1704034860000]
    """
    if style not in OHLC_STYLES:
        raise InputError("style", style, "one of " + " ".join(OHLC_STYLES))
    is_wide = style not in ("freqtrade", "ccxt") and _is_wide(df)
    index = _time_index(df) if is_wide else _candle_index(df)
    if not is_wide and "market" in df.columns and df["market"].nunique() > 1:
        return {market: to_ohlc(part, style) for market, part in df.groupby("market", sort=False)}
    out = df.copy() if is_wide else df[[*_TITLES]].copy()
    if style in ("freqtrade", "ccxt"):
        utc = index.tz_convert("UTC").as_unit("ms")
        out = out.reset_index(drop=True)
        if style == "freqtrade":
            out.insert(0, "date", utc)
        else:
            out.insert(0, "timestamp", utc.asi8)
    else:
        out = out.rename(columns=_TITLES)
        out.index = _with_freq(index if style == "vectorbt" else _wall_clock(index, style)).rename("Date")
    return _with_attrs(out, df)


def export(df: pd.DataFrame, style: str = "freqtrade", path: str | os.PathLike[str] = ".") -> list[Path]:
    """Write candles as the files that another tool looks for, one a market; returns their paths.

    ``freqtrade``: ``BTC_KRW-1m.feather`` with ``date open high low close volume``, for freqtrade's data folder
    (``user_data/data/upbit``).

    Parameters
    ----------
    df : a candle frame as `Backbone.candles` returns it, of one market or several; its ``attrs`` name market and
        timeframe. Forming and synthetic rows are left out.
    style : ``"freqtrade"``.
    path : a folder; it is made where it does not exist. Files of the same name are replaced.

    Raises
    ------
    InputError  an unknown style, a frame that is no candle frame, or one that does not say what it is.
    StoreError  the folder cannot be written.
    """
    import pyarrow.feather as feather

    if style not in EXPORT_STYLES:
        raise InputError("style", style, "one of " + " ".join(EXPORT_STYLES))
    _candle_index(df)
    known = df.attrs.get("backbone", {})
    timeframe = known.get("timeframe")
    if timeframe is None:
        raise InputError("df", "no timeframe in attrs", "a frame of Backbone.candles, whose attrs say its timeframe")
    for flag in _FLAGS:
        if flag in df.columns:
            df = df[~df[flag]]
    if "market" in df.columns:
        parts = [(str(market), part) for market, part in df.groupby("market", sort=False)]
    elif isinstance(known.get("market"), str):
        parts = [(known["market"], df)]
    else:
        raise InputError("df", "no market in attrs", "a frame of Backbone.candles, whose attrs say its market")
    folder, written = Path(path), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for market, part in parts:
            quote, _, base = market.partition("-")
            target = folder / f"{base}_{quote}-{timeframe}.feather"
            half = target.with_suffix(".part")
            feather.write_feather(pa.Table.from_pandas(pd.DataFrame(to_ohlc(part, style))), str(half))
            rename_over(str(half), str(target), SystemClock())
            written.append(target)
    except OSError as exc:
        raise StoreError(f"cannot write {folder}: {exc.strerror or exc}", path=folder) from exc
    return written


def naive(df: pd.DataFrame) -> pd.DataFrame:
    """The same frame with every time tz-naive, as the clock on the wall of the frame's own zone showed it.

    Excel refuses zoned times: ``naive(df).to_excel("candles.xlsx")``. Both the index and columns are
    converted; what holds no zoned time passes unchanged. The way back is ``df.tz_localize("Asia/Seoul")``.

    Examples
    --------
    >>> import pandas as pd
    >>> index = pd.date_range("2024-01-01 09:00", periods=1, tz="Asia/Seoul", name="time")
    >>> naive(pd.DataFrame({"close": [1.0]}, index)).index[0]
    Timestamp('2024-01-01 09:00:00')
    """
    out = df.copy()
    if isinstance(out.index, pd.DatetimeIndex):
        out.index = out.index.tz_localize(None)
    for name in out.columns:
        if isinstance(out[name].dtype, pd.DatetimeTZDtype):
            out[name] = out[name].dt.tz_localize(None)
    return _with_attrs(out, df)


def resample_trading_day(
    df: pd.DataFrame,
    rule: str = "1D",
    *,
    open_hour: int = 9,
    tz: str = "Asia/Seoul",
    start: Any = None,
    end: Any = None,
    keep_partial: bool = False,
) -> pd.DataFrame:
    """Candles of whole trading days (or weeks from Monday) that begin at `open_hour` in `tz`: 09:00 in Seoul.

    A day's ``open`` is its first candle's, ``close`` its last one's, ``high`` and ``low`` the extremes, ``volume`` and
    ``value`` the sums of the decimals. A day without trades has no row. Where a zone sets its clocks, a day has
    23 or 25 hours: an hour that does not exist begins when the clocks are set, one that comes twice at its first time.

    Only days that the frame knows wholly are returned: the first and the last day are left out where the frame begins
    later or ends earlier than they do, and so is a day with a forming candle. What the frame covers is taken from its
    first and last candle, which is too strict for a market that trades seldom: say `start` and `end` as they were asked
    for, and no trades at the edges count as known. ``keep_partial=True`` keeps all days and adds a bool column
    ``partial``.

    Parameters
    ----------
    df : the candle frame of one market or several (with a ``market`` column); candles no longer than a day.
    rule : ``"1D"`` or ``"1W"``.
    open_hour : 0 to 23, in `tz`.
    tz : the zone whose days these are.
    start : where the range begins that the frame was asked for; naive values are in the frame's zone.
    end : where that range ends, excluded.
    keep_partial : keep days that the frame knows in part.

    Returns
    -------
    DataFrame indexed by ``time``, the instant the day opens, in the frame's own zone; same price columns.

    Raises
    ------
    InputError  an unknown rule or hour, candles that are longer than a day, or candles that lie across the day's
        boundary (4h candles and midnight).
    """
    if rule not in ("1D", "1W"):
        raise InputError("rule", rule, "'1D' or '1W'")
    if not isinstance(open_hour, int) or not 0 <= open_hour <= 23:
        raise InputError("open_hour", open_hour, "a whole hour, 0 to 23")
    index = _candle_index(df)
    if not len(df):
        out = df.drop(columns=[name for name in _FLAGS if name in df.columns])
        return _with_attrs(out.assign(partial=False) if keep_partial else out, df)
    if "market" in df.columns:
        parts = []
        for market, part in df.groupby("market", sort=False):
            days = resample_trading_day(
                part.drop(columns="market"), rule, open_hour=open_hour, tz=tz, start=start, end=end,
                keep_partial=keep_partial,
            )  # fmt: skip
            days.insert(0, "market", market)
            parts.append(days)
        return _with_attrs(pd.concat(parts), df)

    step = _step(df, index)
    if step > pd.Timedelta(DAY_US, "us"):
        raise InputError("df", f"candles of {step}", "candles no longer than a day")
    bounds = _day_opens(index, rule, open_hour, tz)
    at = bounds.searchsorted(index, side="right") - 1
    if len(index) >= _ROWS_FOR_A_GUESS and (index + step > bounds[at + 1]).any():
        allowed = f"candles that do not lie across {open_hour:02d}:00 {tz}; take a shorter timeframe"
        raise InputError("df", f"candles of {step}", allowed)

    first = np.flatnonzero(np.concatenate(([True], at[1:] != at[:-1])))
    groups = df.groupby(at)
    out = groups.agg({"open": "first", "high": "max", "low": "min", "close": "last"})
    for name in ("volume", "value"):
        out[name] = decimal_sums(np.nan_to_num(df[name].to_numpy()), first)
    opens, closes = bounds[at[first]], bounds[at[first] + 1]
    known_from = index[0] if start is None else _instant(start, index.tz)
    known_to = index[-1] + step if end is None else _instant(end, index.tz)
    partial = (opens < known_from) | (closes > known_to)
    if "forming" in df.columns:
        partial |= groups["forming"].any().to_numpy()
    out.index = opens.tz_convert(index.tz).as_unit("us").rename("time")
    if keep_partial:
        out["partial"] = partial
    else:
        out = out[~partial]
    out = _with_attrs(out, df)
    known = out.attrs.get("backbone", {})
    if "timeframe" in known:
        out.attrs["backbone"] = {**known, "timeframe": "1d" if rule == "1D" else "1w"}
    return out


def _day_opens(index: pd.DatetimeIndex, rule: str, open_hour: int, tz: str) -> pd.DatetimeIndex:
    """The instants at which the trading days (or weeks) around `index` open, from the one before its first row to the
    one behind its last."""
    local = index[[0, -1]].tz_convert(ZoneInfo(tz)).tz_localize(None).floor("D")
    dates = pd.date_range(local[0] - pd.Timedelta(8, "D"), local[-1] + pd.Timedelta(8, "D"), freq="D")
    if rule == "1W":
        dates = dates[dates.day_of_week == 0]
    walls = dates + pd.Timedelta(open_hour, "h")
    first_of_two = np.ones(len(walls), bool)  # of an hour that comes twice
    zoned = walls.tz_localize(ZoneInfo(tz), nonexistent="shift_forward", ambiguous=first_of_two)
    return pd.DatetimeIndex(zoned.tz_convert("UTC").as_unit("us"))


def _candle_index(df: pd.DataFrame) -> pd.DatetimeIndex:
    """The frame's index, once it is certain that the frame is one of candles."""
    if not isinstance(df, pd.DataFrame):
        raise InputError("df", type(df).__name__, "a pandas DataFrame of candles")
    missing = [name for name in CANDLE_COLUMNS if name not in df.columns]
    if missing:
        raise InputError("df", list(df.columns), "a candle frame; it lacks " + " ".join(missing))
    return _time_index(df)


def _time_index(df: pd.DataFrame) -> pd.DatetimeIndex:
    if not isinstance(df.index, pd.DatetimeIndex) or df.index.tz is None:
        raise InputError("df", df.index.dtype, "a candle frame, indexed by tz-aware time")
    return df.index


def _is_wide(df: pd.DataFrame) -> bool:
    """Whether each column is a market, as `candles` answers with `wide`."""
    return hasattr(df, "columns") and len(df.columns) > 0 and all("-" in str(name) for name in df.columns)


def _wall_clock(index: pd.DatetimeIndex, style: str) -> pd.DatetimeIndex:
    """`index` tz-naive in its own zone, where that names each instant once and in order."""
    walls = index.tz_localize(None)
    if not (walls.is_unique and walls.is_monotonic_increasing):
        allowed = f"a zone whose clocks were not set back in this range, such as df.tz_convert('UTC'), for {style!r}"
        raise InputError("df", str(index.tz), allowed)
    return walls


def _with_freq(index: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """`index` with its ``freq``, where its rows follow each other without a hole."""
    step = _even_step(index)
    if step is None:
        return index
    freq: pd.offsets.BaseOffset = pd.tseries.frequencies.to_offset(pd.Timedelta(step, "us"))
    if step % DAY_US == 0:  # days of one length whose clocks were set are no calendar's days
        is_calendar = _even_step(index.tz_localize(None)) == step
        freq = pd.offsets.Day(step // DAY_US) if is_calendar else pd.offsets.Hour(step // HOUR_US)
    return pd.DatetimeIndex(index, freq=freq)


def _even_step(index: pd.DatetimeIndex) -> int | None:
    """The one step between neighbours in microseconds, or None where there are several or too few rows."""
    times = index.as_unit("us").asi8
    steps = times[1:] - times[:-1]
    return int(steps[0]) if len(steps) and steps[0] > 0 and steps.min() == steps.max() else None


def _step(df: pd.DataFrame, index: pd.DatetimeIndex) -> pd.Timedelta:
    """The candles' length: what the frame says of itself, else the coarsest grid that all its opens lie on.

    The grid is a guess from above, good from a few rows on; nothing is guessed of one row.
    """
    said = df.attrs.get("backbone", {}).get("timeframe")
    if said in TIMEFRAMES:
        return pd.Timedelta(TIMEFRAMES[said].step_us, "us")
    if len(index) < 2:
        return pd.Timedelta(0)
    opens = index.tz_convert("UTC").as_unit("us").asi8
    between = int(np.gcd.reduce(np.diff(opens)))
    if len(index) >= _ROWS_FOR_A_GUESS and between > DAY_US:
        return pd.Timedelta(between, "us")
    return pd.Timedelta(int(np.gcd(np.gcd.reduce(opens), DAY_US)), "us")


def _instant(value: Any, tz: Any) -> pd.Timestamp:
    stamp = pd.Timestamp(value)
    return stamp.tz_localize(tz) if stamp.tzinfo is None else stamp.tz_convert(tz)


def _with_attrs(out: pd.DataFrame, source: pd.DataFrame) -> pd.DataFrame:
    """`out` with a copy of the source's attrs: not every pandas operation carries them over."""
    out.attrs = {**source.attrs}
    return out
