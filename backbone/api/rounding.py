"""Prices on the venue's grid, for a backtest: rounded to a market's price step, towards the side that still fills.

The steps are the venue's own, as its instruments said them when `Backbone.markets` was last called in this process. The
venue says the step of a market's present price only: at a price of the past, in another band or under an older table,
another one may have held; `round_price` takes that as a number. `_lock` guards what was learned.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from backbone.errors import InputError

__all__ = ["learn_ticks", "round_price"]

_lock = threading.Lock()
_ticks: dict[str, float] = {}


def learn_ticks(ticks: Mapping[str, float]) -> None:
    """Take the price steps of markets."""
    with _lock:
        _ticks.update({market: tick for market, tick in ticks.items() if tick > 0})


def round_price(price: float, market: str | float, side: str) -> float:
    """The nearest price of an order that is no worse than `price`: a buy's is rounded down, a sell's up.

    >>> round_price(91_234_567.0, 1000.0, "buy"), round_price(91_234_567.0, 1000.0, "sell")
    (91234000.0, 91235000.0)

    Parameters
    ----------
    price : in the quote currency, above 0.
    market : a code whose step `Backbone.markets` has shown (column ``tick_size``: that of its price at that time, which
        ``attrs["backbone"]["tick_sizes_at"]`` names), or the step itself, as for a price in another band.
    side : ``"buy"`` or ``"sell"``.

    Raises
    ------
    InputError  for a market whose step is not known, and for anything else that is none of these.
    """
    if side not in ("buy", "sell"):
        raise InputError("side", side, '"buy" or "sell"')
    if isinstance(price, bool) or not isinstance(price, int | float) or not (math.isfinite(price) and price > 0):
        raise InputError("price", price, "a number above 0")
    step = Decimal(repr(float(_tick(market))))
    steps = (Decimal(repr(float(price))) / step).to_integral_value(ROUND_FLOOR if side == "buy" else ROUND_CEILING)
    return float(steps * step)


def _tick(market: str | float) -> float:
    if isinstance(market, str):
        with _lock:
            known = _ticks.get(market.upper())
        if known is None:
            raise InputError("market", market, "a code that `client.markets()` has shown, or a price step")
        return known
    if isinstance(market, bool) or not isinstance(market, int | float) or not (math.isfinite(market) and market > 0):
        raise InputError("market", market, "a code or a price step above 0")
    return float(market)
