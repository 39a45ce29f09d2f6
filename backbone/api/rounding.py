"""Prices on the venue's grid, for a backtest: rounded to a market's price step, towards the side that still fills.

The venue says the step of each market at its present price. All its markets together say more: which steps hold at
which prices. So a price of another year is rounded by what the venue's instruments say of that price now. Bands of
price begin at 1, 2 or 5 times a power of ten; where the markets leave open where one begins, a price in between is
refused, not guessed. What held under an older table is not known: `round_price` takes a step as a number too. `_lock`
guards what was learned.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from backbone.errors import InputError

__all__ = ["is_learned", "learn_ticks", "round_price"]

_lock = threading.Lock()
_asked: set[str] = set()
_known: dict[str, tuple[float, float]] = {}  # of each market: its price, and the step there


def learn_ticks(known: Mapping[str, tuple[float, float]]) -> None:
    """Take the price of each market (NaN where it is not known) and its price step there."""
    with _lock:
        _asked.update(known)
        _known.update({market: found for market, found in known.items() if found[1] > 0})


def is_learned(markets: Iterable[str]) -> bool:
    """Whether `learn_ticks` had each market, be it that the venue does not say its price or step."""
    with _lock:
        return _asked.issuperset(markets)


def round_price(price: float, market: str | float, side: str) -> float:
    """The nearest price of an order that is no worse than `price`: a buy's is rounded down, a sell's up.

    >>> round_price(91_234_567.0, 1000.0, "buy"), round_price(91_234_567.0, 1000.0, "sell")
    (91234000.0, 91235000.0)

    Parameters
    ----------
    price : in the quote currency, above 0.
    market : a code that `Backbone.markets` has shown in this process, or the step itself. The step of a code at `price`
        is the one that the venue's markets of that quote currency have at such prices (as of
        ``attrs["backbone"]["tick_sizes_at"]``); above the highest of them, the highest one's.
    side : ``"buy"`` or ``"sell"``.

    Raises
    ------
    InputError  for a market that is not known, a price at which the venue's markets do not say which step holds (it
        names the nearest ones), and for anything else that is none of these.
    """
    if side not in ("buy", "sell"):
        raise InputError("side", side, '"buy" or "sell"')
    if isinstance(price, bool) or not isinstance(price, int | float) or not (math.isfinite(price) and price > 0):
        raise InputError("price", price, "a number above 0")
    step = Decimal(repr(_tick(market, float(price))))
    steps = (Decimal(repr(float(price))) / step).to_integral_value(ROUND_FLOOR if side == "buy" else ROUND_CEILING)
    return float(steps * step)


def _tick(market: str | float, price: float) -> float:
    if isinstance(market, str):
        return _step_of(market.upper(), price)
    if isinstance(market, bool) or not isinstance(market, int | float) or not (math.isfinite(market) and market > 0):
        raise InputError("market", market, "a code or a price step above 0")
    return float(market)


def _step_of(market: str, price: float) -> float:
    quote = market.partition("-")[0] + "-"
    with _lock:
        own = _known.get(market)
        found = [pair for code, pair in _known.items() if code.startswith(quote) and pair[0] > 0]
    if own is None:
        raise InputError("market", market, "a code that `client.markets()` has shown, or a price step")
    wanted, at = _band(price), _band(own[0]) if own[0] > 0 else None
    if wanted == at:
        return own[1]
    steps = _steps(found)
    near = [max((band for band in steps if band <= wanted), default=None)]
    near.append(min((band for band in steps if band >= wanted), default=near[0]))
    said = [(steps[band], _begin(band)) for band in near if band is not None]
    if at is not None and steps.get(at) == own[1] and len(said) == 2 and said[0][0] == said[1][0]:
        return said[0][0]
    known = ", ".join(f"{step:g} from {begin:,g}" for step, begin in dict.fromkeys(said))
    allowed = f"near its own price ({own[0]:,g}, step {own[1]:g}) or where the venue's markets agree (nearest: {known})"
    raise InputError("price", price, f"for {market} a price {allowed}; give the step instead of the market")


def _steps(found: Iterable[tuple[float, float]]) -> dict[int, float]:
    """The step that most markets of each band have."""
    by_band: dict[int, Counter[float]] = {}
    for price, tick in found:
        by_band.setdefault(_band(price), Counter())[tick] += 1
    most = {band: ticks.most_common(2) for band, ticks in by_band.items()}
    return {band: first[0] for band, (first, *rest) in most.items() if not rest or rest[0][1] < first[1]}


def _band(price: float) -> int:
    """The number of the band from 1, 2 or 5 times a power of ten that a price is in."""
    digits, _, power = f"{price:.15e}".partition("e")
    return 3 * int(power) + (digits >= "2") + (digits >= "5")


def _begin(band: int) -> float:
    return float(f"{(1, 2, 5)[band % 3]}e{band // 3}")
