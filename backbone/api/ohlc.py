"""Candle frames as other tools and people like them: pure functions from frame to frame.

What is decided here: which column names, index and time zone each tool expects, what a Korean trading day is,
and how many digits of a price are shown. Nothing here reads a store, a clock or the network, the frame that
came in is never changed, and its ``attrs`` go out with the result. `pandas` is imported on first use only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from backbone.errors import InputError
from backbone.model import CANDLE_COLUMNS
from backbone.timeframe import TIMEFRAMES

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "OHLC_STYLES",
    "format_amount",
    "format_price",
    "naive",
    "price_digits",
    "resample_trading_day",
    "tick_size",
    "to_display",
    "to_ohlc",
]

OHLC_STYLES: Final = ("vectorbt", "backtesting", "mplfinance", "freqtrade", "ccxt")

_DAY_US: Final = 86_400_000_000
_ROWS_FOR_A_GUESS: Final = 4  # fewer candles of a quiet market may lie on a coarse grid by chance
_MOST_DIGITS: Final = 8  # the venue quotes no price finer than 1e-8
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
    out = groups.agg(
        {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum", "value": "sum"}
    )
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


def tick_size(market: str, price: float) -> float:
    """The price step of a market at a price, from the venue's published tables; 1e-8 where they say nothing.

    The venue's own answer (`tick_size` of ``orderbook/instruments``) beats this one wherever it is at hand:
    use this for display only, and never to reject a price, since older prices lie on older tables.

    >>> tick_size("KRW-BTC", 91_234_000), tick_size("KRW-XRP", 812.0), tick_size("USDT-BTC", 65_000.0)
    (1000.0, 1.0, 0.01)
    """
    quote = market.partition("-")[0]
    if not price > 0 or not math.isfinite(price):
        return 1e-8
    if quote == "KRW":
        for bound, tick in _KRW_TICKS:
            if price >= bound:
                return tick
        return _decade(price, finer=2)
    if quote == "USDT":
        return 0.01 if price >= 10 else _decade(price, finer=3)
    return 1e-8


_KRW_TICKS: Final = (
    (1_000_000, 1000.0),
    (500_000, 500.0),
    (100_000, 100.0),
    (50_000, 50.0),
    (10_000, 10.0),
    (5_000, 5.0),
    (100, 1.0),
)


def _decade(price: float, *, finer: int) -> float:
    exponent = Decimal(repr(price)).adjusted() - finer  # exact: log10(0.001) is not
    return float(f"1e{max(exponent, -_MOST_DIGITS)}")


@cache
def price_digits(tick: float) -> int:
    """How many digits after the point prices on a `tick` have: 0 for 1000 and 1, 1 for 0.5, 8 for 1e-8.

    >>> [price_digits(tick) for tick in (1000.0, 0.5, 0.01, 1e-08)]
    [0, 1, 2, 8]
    """
    if not tick > 0 or not math.isfinite(tick):
        return _MOST_DIGITS
    exponent = Decimal(repr(float(tick))).normalize().as_tuple().exponent
    return min(_MOST_DIGITS, max(0, -int(exponent)))


def format_price(price: float, tick: float) -> str:
    """A price with its market's digits and thousands separators; ``–`` where there is none.

    A price off the tick grid (older ones are) is shown with the digits it has: nothing the venue said is
    hidden.

    >>> format_price(91234000.0, 1000.0), format_price(0.5, 0.01), format_price(812.5, 1.0)
    ('91,234,000', '0.50', '812.5')
    """
    if not math.isfinite(price):
        return "–"
    digits = price_digits(tick)
    if round(price, digits) == price:
        return f"{price:,.{digits}f}"
    text = f"{price:,.{_MOST_DIGITS}f}".rstrip("0")
    return text + "0" * (digits - len(text.partition(".")[2]))


def format_amount(amount: float) -> str:
    """A volume or turnover short enough for a table: four digits or so and a unit (M B T); ``–`` for none.

    >>> [format_amount(x) for x in (0.0, 0.01234567, 12.3456, 1234.6, 98_765_432.1, 4.56e11, 7.8e12)]
    ['0', '0.01235', '12.35', '1,235', '98.77M', '456.0B', '7.800T']
    """
    if not math.isfinite(amount):
        return "–"
    size = abs(amount)
    for unit, name in _UNITS:
        if size >= unit:
            scaled = amount / unit
            digits = 3 if abs(scaled) < 9.9995 else 2 if abs(scaled) < 99.995 else 1
            return f"{scaled:,.{digits}f}{name}"
    if size >= 1000:
        return f"{amount:,.0f}"
    return f"{amount:.4g}" if size >= 1e-4 or size == 0 else f"{amount:.3e}"


_UNITS: Final = ((1e12, "T"), (1e9, "B"), (1e6, "M"))


def to_display(df: pd.DataFrame, tick: float | None = None) -> pd.DataFrame:
    """A frame of texts to look at: prices with the market's digits, amounts with thousands separators.

    For candle, ticker, order book and trade frames alike; not for computing with. `tick` is one price step
    for all rows; without it each price's own band of `tick_size` is used, for the market in the ``market``
    column, in an index of that name, or in ``attrs``; KRW bands are assumed where none is named. Times, flags
    and texts pass through.

    Examples
    --------
    >>> import pandas as pd
    >>> print(to_display(pd.DataFrame({"market": ["KRW-BTC"], "price": [91234000.0], "volume": [0.015]})))
        market       price volume
    0  KRW-BTC  91,234,000  0.015
    """
    out = df.copy()
    markets = _markets_of(df)
    for name in df.columns:
        if name in _PRICE_COLUMNS:
            beside = "price" if name == "change" and "price" in df.columns else name  # a change has the price's digits
            texts = _price_texts(df[name].tolist(), df[beside].tolist(), markets, tick)
        elif name in _AMOUNT_FORMATS and df[name].dtype.kind == "f":
            texts = [_AMOUNT_FORMATS[name](value) for value in df[name].tolist()]
        else:
            continue
        out[name] = texts
    return _with_attrs(out, df)


_PRICE_COLUMNS: Final = frozenset(
    ("open", "high", "low", "close", "price", "prev_close", "change", "ask_price", "bid_price")
)


def _full(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    text = f"{value:,.{_MOST_DIGITS}f}"
    return text.rstrip("0").rstrip(".")


def _rate(value: float) -> str:
    return f"{value:+.2%}" if math.isfinite(value) else "–"


def _whole(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "–"


_AMOUNT_FORMATS: Final[dict[str, Callable[[float], str]]] = {
    "volume": _full,
    "volume_24h": _full,
    "ask_size": _full,
    "bid_size": _full,
    "value": _whole,
    "value_24h": _whole,
    "change_rate": _rate,
    "age": lambda value: f"{value:.1f}",
}


def _price_texts(prices: list[float], by: list[float], markets: Sequence[str], tick: float | None) -> list[str]:
    """Prices as texts, on `tick` or in the band that the prices `by` lie in."""
    if tick is not None:
        return [format_price(price, tick) for price in prices]
    return [
        format_price(price, tick_size(market, abs(beside)))
        for price, beside, market in zip(prices, by, markets, strict=True)
    ]


def _markets_of(df: pd.DataFrame) -> Sequence[str]:
    if "market" in df.columns:
        return [str(market) for market in df["market"]]
    if df.index.name == "market":
        return [str(market) for market in df.index]
    known = df.attrs.get("backbone", {})
    return [str(known.get("market") or "KRW-")] * len(df)


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
