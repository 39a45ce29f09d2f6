"""Numbers for eyes: prices with their market's digits, amounts, and whole frames as texts; values as JSON has them.

Pure functions: nothing here reads a store, a clock or the network. The digits of a price are decided here.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["format_amount", "format_price", "plain", "price_digits", "tick_size", "to_display"]

_MOST_DIGITS: Final = 8  # the venue quotes no price finer than 1e-8


def tick_size(market: str, price: float) -> float:
    """The price step of a market at a price, from the venue's published tables; 1e-8 where they say nothing.

    The venue's own answer (`tick_size` of ``orderbook/instruments``) goes before this one wherever it is at hand. Use
    this one for display only, and never to reject a price: older prices have the steps of older tables.

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

    A price off the tick grid (older ones are) is shown with the digits it has: nothing the venue reported is hidden.

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

    For candle, ticker, order book and trade frames alike; not for computing with. `tick` is one price step for all
    rows; without it each price's own band of `tick_size` is used, for the market in the ``market`` column, in an index
    of that name, or in ``attrs``; KRW bands are assumed where none is named. Times, flags and texts pass through.

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
            out[name] = [
                format_price(price, tick_size(market, abs(near)) if tick is None else tick)
                for price, near, market in zip(df[name].tolist(), df[beside].tolist(), markets, strict=True)
            ]
        elif name in _AMOUNT_FORMATS and df[name].dtype.kind == "f":
            show = _AMOUNT_FORMATS[name]
            out[name] = [show(value, market) for value, market in zip(df[name].tolist(), markets, strict=True)]
    out.attrs = {**df.attrs}
    return out


_PRICE_COLUMNS: Final = frozenset(
    ("open", "high", "low", "close", "price", "prev_close", "change", "ask_price", "bid_price")
)


def _full(value: float, _: str) -> str:
    if not math.isfinite(value):
        return "–"
    text = f"{value:,.{_MOST_DIGITS}f}"
    return text.rstrip("0").rstrip(".")


def _rate(value: float, _: str) -> str:
    return f"{value:+.2%}" if math.isfinite(value) else "–"


def _turnover(value: float, market: str) -> str:
    """A turnover with the digits of its quote currency: whole won, cents of a dollar, all of a bitcoin's."""
    if not math.isfinite(value):
        return "–"
    quote = market.partition("-")[0]
    if quote == "BTC":
        return _full(value, market)
    return f"{value:,.2f}" if quote in ("USDT", "USDC", "SGD") else f"{value:,.0f}"


_AMOUNT_FORMATS: Final[dict[str, Callable[[float, str], str]]] = {
    "volume": _full,
    "volume_24h": _full,
    "ask_size": _full,
    "bid_size": _full,
    "change_rate": _rate,
    "value": _turnover,
    "value_24h": _turnover,
    "age": lambda value, _: f"{value:.1f}",
}


def _markets_of(df: pd.DataFrame) -> Sequence[str]:
    if "market" in df.columns:
        return [str(market) for market in df["market"]]
    if df.index.name == "market":
        return [str(market) for market in df.index]
    known = df.attrs.get("backbone", {})
    return [str(known.get("market") or "KRW-")] * len(df)


def plain(value: Any) -> Any:
    """`value` as JSON has it: times as ISO text with their offset, what is not there as null."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or value != value:  # NaN and NaT differ from themselves
        return None
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, dt.date | dt.datetime):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)
