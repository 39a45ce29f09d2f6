"""Candle frames as other tools and people like them: pure functions from frame to frame.

What is decided here: which column names, index and time zone each tool expects, and what a Korean trading day is.
Nothing here reads a store, a clock or the network, the frame that
came in is never changed, and its ``attrs`` go out with the result. `pandas` is imported on first use only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from backbone.errors import InputError
from backbone.model import CANDLE_COLUMNS
from backbone.timeframe import TIMEFRAMES

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "OHLC_STYLES",
    "naive",
    "resample_trading_day",
    "to_ohlc",
]

OHLC_STYLES: Final = ("vectorbt", "backtesting", "mplfinance", "freqtrade", "ccxt")

_DAY_US: Final = 86_400_000_000
_ROWS_FOR_A_GUESS: Final = 4  # fewer candles of a quiet market may lie on a coarse grid by chance
_TITLES: Final = {"open": "Open", "high": "High", "low": "Low", "close": "Close", "volume": "Volume"}
_FLAGS: Final = ("forming", "synthetic")


def to_ohlc(df: pd.DataFrame, style: str = "vectorbt") -> pd.DataFrame:
    """A candle frame with the column names, index and time zone that another tool expects.

    * ``vectorbt``: ``Open High Low Close Volume``, index ``Date``, tz-aware as it came
    * ``backtesting``, ``mplfinance``: the same columns, index ``Date`` tz-naive in the shown zone
    * ``freqtrade``: ``date open high low close volume``, ``date`` in UTC milliseconds; rows numbered from 0
    * ``ccxt``: ``timestamp open high low close volume``, ``timestamp`` int64 milliseconds; rows numbered from
    0

    Parameters
    ----------
    df : the candle frame of one market, as `Backbone.candles` returns it. A ``market`` column is accepted as
    long as
        it holds one market. Every row goes through, a forming or synthetic one too: leave them out beforehand
        with ``df[~df["forming"]]``.
    style : who will read it.

    Returns
    -------
    DataFrame of as many rows, float64 columns, ``attrs`` kept. ``to_ohlc(df, "ccxt").to_numpy().tolist()`` is
    the list of lists that ccxt's ``fetch_ohlcv`` returns.

    Raises
    ------
    InputError  an unknown style, a frame that is no candle frame, or one of several markets.

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
    index = _candle_index(df, one_market=True)
    out = df[[*_TITLES]].copy()
    if style in ("freqtrade", "ccxt"):
        utc = index.tz_convert("UTC").as_unit("ms")
        out = out.reset_index(drop=True)
        if style == "freqtrade":
            out.insert(0, "date", utc)
        else:
            out.insert(0, "timestamp", utc.asi8)
    else:
        out = out.rename(columns=_TITLES)
        out.index = (index if style == "vectorbt" else index.tz_localize(None)).rename("Date")
    return _with_attrs(out, df)


def naive(df: pd.DataFrame) -> pd.DataFrame:
    """The same frame with every time tz-naive, showing what the clock on the wall showed in the frame's own
    zone.

    Excel refuses zoned times: ``naive(df).to_excel("candles.xlsx")``. Both the index and columns are
    converted; what holds no zoned time passes unchanged. The way back is ``df.tz_localize("Asia/Seoul")``.

    Examples
    --------
    >>> import pandas as pd
    >>> index = pd.date_range("2024-01-01 09:00", periods=1, tz="Asia/Seoul", name="time")
    >>> naive(pd.DataFrame({"close": [1.0]}, index)).index[0]
    Timestamp('2024-01-01 09:00:00')
    """
    import pandas as pd

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

    A day's ``open`` is its first candle's, ``close`` its last one's, ``high`` and ``low`` the extremes,
    ``volume`` and ``value`` the sums. A day in which nobody traded has no row.

    Only days that the frame knows wholly are returned: the first and the last day are left out where the
    frame begins later or ends earlier than they do, and so is a day with a forming candle. What the frame
    covers is taken from its first and last candle, which is too strict for a market that trades seldom: say
    `start` and `end` as they were asked for, and silence at the edges counts as known. ``keep_partial=True``
    keeps all days and adds a bool column ``partial``.

    Parameters
    ----------
    df : the candle frame of one market or several (with a ``market`` column); candles no longer than a day.
    rule : ``"1D"`` or ``"1W"``.
    open_hour : 0 to 23, in `tz`.
    start, end : the range the frame was asked for, `end` excluded; naive values are in the frame's zone.

    Returns
    -------
    DataFrame indexed by ``time``, the instant the day opens, in the frame's own zone; same price columns.

    Raises
    ------
    InputError  an unknown rule or hour, or candles that lie across the day's boundary (4h candles and
    midnight).
    """
    import pandas as pd

    if rule not in ("1D", "1W"):
        raise InputError("rule", rule, "'1D' or '1W'")
    if not isinstance(open_hour, int) or not 0 <= open_hour <= 23:
        raise InputError("open_hour", open_hour, "a whole hour, 0 to 23")
    index = _candle_index(df, one_market=False)
    if "market" in df.columns:
        if not len(df):
            return _with_attrs(_without_flags(df, keep_partial), df)
        parts = []
        for market, part in df.groupby("market", sort=False):
            days = resample_trading_day(
                part.drop(columns="market"), rule, open_hour=open_hour, tz=tz, start=start, end=end,
                keep_partial=keep_partial,
            )  # fmt: skip
            days.insert(0, "market", market)
            parts.append(days)
        return _with_attrs(pd.concat(parts), df)
    if not len(df):
        return _with_attrs(_without_flags(df, keep_partial), df)

    length = pd.Timedelta(1, "D") if rule == "1D" else pd.Timedelta(7, "D")
    step = _step(df, index)
    opened = pd.Timedelta(open_hour, "h")
    shifted = index.tz_convert(ZoneInfo(tz)).tz_localize(None) - opened
    day = shifted.floor("D")
    if rule == "1W":
        day -= pd.to_timedelta(day.day_of_week, unit="D")
    if len(index) >= _ROWS_FOR_A_GUESS and ((shifted - day) + step > length).any():
        allowed = f"candles that do not lie across {open_hour:02d}:00 {tz}; take a shorter timeframe"
        raise InputError("df", f"candles of {step}", allowed)

    groups = df.groupby((day + opened).rename("time"))
    out = groups.agg({"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum", "value": "sum"})
    opens = pd.DatetimeIndex(out.index).tz_localize(ZoneInfo(tz))
    closes = (pd.DatetimeIndex(out.index) + length).tz_localize(ZoneInfo(tz))
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


def _candle_index(df: pd.DataFrame, *, one_market: bool) -> pd.DatetimeIndex:
    """The frame's index, once it is certain that the frame is one of candles."""
    import pandas as pd

    if not isinstance(df, pd.DataFrame):
        raise InputError("df", type(df).__name__, "a pandas DataFrame of candles")
    missing = [name for name in CANDLE_COLUMNS if name not in df.columns]
    if missing:
        raise InputError("df", list(df.columns), "a candle frame; it lacks " + " ".join(missing))
    if not isinstance(df.index, pd.DatetimeIndex) or df.index.tz is None:
        raise InputError("df", df.index.dtype, "a candle frame, indexed by tz-aware time")
    if one_market and "market" in df.columns and df["market"].nunique() > 1:
        raise InputError("df", sorted(set(df["market"])), "one market: df[df['market'] == 'KRW-BTC']")
    return df.index


def _step(df: pd.DataFrame, index: pd.DatetimeIndex) -> pd.Timedelta:
    """The candles' length: what the frame says of itself, else the coarsest grid that all its opens lie on.

    The grid is a guess from above, good from a few rows on; nothing is guessed of one row.
    """
    import numpy as np
    import pandas as pd

    said = df.attrs.get("backbone", {}).get("timeframe")
    if said in TIMEFRAMES:
        return pd.Timedelta(TIMEFRAMES[said].step_us, "us")
    if len(index) < 2:
        return pd.Timedelta(0)
    opens = index.tz_convert("UTC").as_unit("us").asi8
    return pd.Timedelta(int(np.gcd(np.gcd.reduce(opens), _DAY_US)), "us")


def _instant(value: Any, tz: Any) -> pd.Timestamp:
    import pandas as pd

    stamp = pd.Timestamp(value)
    return stamp.tz_localize(tz) if stamp.tzinfo is None else stamp.tz_convert(tz)


def _without_flags(df: pd.DataFrame, keep_partial: bool) -> pd.DataFrame:
    out = df.drop(columns=[name for name in _FLAGS if name in df.columns])
    if keep_partial:
        out["partial"] = False
    return out


def _with_attrs(out: pd.DataFrame, source: pd.DataFrame) -> pd.DataFrame:
    """`out` with a copy of the source's attrs: not every pandas operation carries them over."""
    out.attrs = {**source.attrs}
    return out
