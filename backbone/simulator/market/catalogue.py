"""The markets of the embedded exchange: their names, listing times, price grids and how busy they are.

The KRW markets stand in `markets.csv`, ordered by turnover, busiest first: code, names and today's price.

Nothing here depends on the seed: the same markets are listed on every embedded exchange, only their prices
differ. A market's liquidity follows its rank: the first trades about once a second, the long tail in 7 % of
its minutes, the last six once an hour. Volumes and prices are integers in units of the market's own decimals,
so that every sum is exact.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backbone.errors import InputError

__all__ = ["CAUTIONS", "TICKS", "Market", "catalogue", "decimals_of", "hash_text", "new_market", "rescaled", "tick_of"]

CAUTIONS = (
    "PRICE_FLUCTUATIONS",
    "TRADING_VOLUME_SOARING",
    "DEPOSIT_AMOUNT_SOARING",
    "GLOBAL_PRICE_DIFFERENCES",
    "CONCENTRATION_OF_SMALL_ACCOUNTS",
)

_DAY_US = 86_400_000_000
_FIRST_LISTING_US = 1_506_308_400_000_000  # 2017-09-25T03:00Z
_LAST_LISTING_US = 1_790_000_000_000_000  # 2026-09-21

_KRW = Path(__file__).with_name("markets.csv")
_BTC = (
    "ETH XRP SOL DOGE ADA TRX LINK DOT BCH XLM NEAR AAVE UNI APT SUI AVAX ATOM ALGO "
    "SIGN ZIL AERGO ARK STORJ CVC GLM LSK DGB RVN BAT MANA"
)
_USDT = "BTC ETH XRP SOL DOGE ADA TRX LINK SUI AVAX PEPE BONK ONDO ENA SHIB NEAR APT ARB SEI POL"

_MAJORS = ("BTC", "ETH", "XRP", "SOL", "DOGE")

_LISTED_US = {  # where history is known to begin
    "KRW-BTC": _FIRST_LISTING_US,
    "KRW-ETH": _FIRST_LISTING_US,
    "KRW-XRP": _FIRST_LISTING_US,
    "KRW-USDT": 1_717_725_600_000_000,  # 2024-06-07T02:00Z
    "KRW-SOL": 1_634_266_800_000_000,  # 2021-10-15T03:00Z
    "KRW-DOGE": 1_614_222_000_000_000,  # 2021-02-25T03:00Z
    "KRW-ADA": 1_506_384_000_000_000,  # 2017-09-26
}

# floor of a price band, its tick; per quote currency, ascending
TICKS: dict[str, tuple[tuple[float, float], ...]] = {
    "KRW": (
        (0.0, 1e-8), (1e-5, 1e-7), (1e-4, 1e-6), (1e-3, 1e-5), (1e-2, 1e-4), (1e-1, 1e-3), (1.0, 1e-2),
        (10.0, 1e-1), (100.0, 1.0), (1e3, 1.0), (5e3, 5.0), (1e4, 10.0), (5e4, 50.0), (1e5, 100.0),
        (5e5, 500.0), (1e6, 1000.0),
    ),
    "BTC": ((0.0, 1e-8),),
    "USDT": (
        (0.0, 1e-8), (1e-4, 1e-7), (1e-3, 1e-6), (1e-2, 1e-5), (1e-1, 1e-4), (1.0, 1e-3), (10.0, 1e-2),
    ),
}  # fmt: skip

_VALUE_DECIMALS = {"KRW": 8, "BTC": 16, "USDT": 10}
_TURNOVER = {"KRW": 600_000.0, "BTC": 0.004, "USDT": 300.0}  # of an average trade, quote units
_QUOTE_KRW = {"KRW": 1.0, "BTC": 160_000_000.0, "USDT": 1390.0}


@dataclass(frozen=True)
class Market:
    """One market, as the tape sees it.

    ``trades_per_minute`` is its long-run mean; ``price`` the level it hovers around; ``drift`` the yearly
    growth of it in powers of two; ``day_volatility`` in powers of two; ``price_decimals`` and
    ``volume_decimals`` the integer units of the tape. ``history`` names the tape that it follows, which a rename keeps.
    ``factor`` is how many of today's price units one of the tape's is (a redenomination changes it). It is unknown from
    ``delisted_us`` on; ``state`` and ``suspended`` are what the stream says of it.
    """

    code: str
    korean_name: str
    english_name: str
    warning: bool
    cautions: tuple[str, ...]
    listed_us: int
    price: float
    drift: float
    day_volatility: float
    trades_per_minute: float
    trade_value: float
    price_decimals: int
    volume_decimals: int
    history: str
    factor: Fraction = Fraction(1)
    delisted_us: int | None = None
    state: str = "ACTIVE"
    suspended: bool = False

    @property
    def quote(self) -> str:
        return self.code.partition("-")[0]

    @property
    def base(self) -> str:
        return self.code.partition("-")[2]

    @property
    def shown_decimals(self) -> int:
        """Digits after the point of its prices on the wire."""
        return max(0, self.price_decimals + _digits(self.factor))

    @property
    def shown_volume_decimals(self) -> int:
        """Digits after the point of its volumes on the wire."""
        return max(0, self.volume_decimals + _digits(1 / self.factor))

    def prices(self, units: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The tape's integer prices as the wire has them: the float64 nearest to each decimal."""
        return _decimals_of(units, self.factor, self.price_decimals)

    def volumes(self, units: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The tape's integer volumes as the wire has them."""
        return _decimals_of(units, 1 / self.factor, self.volume_decimals)


def _digits(factor: Fraction) -> int:
    """The decimal places that a finite decimal factor adds (below 0: removes)."""
    exponent = (Decimal(factor.numerator) / factor.denominator).normalize().as_tuple().exponent
    assert isinstance(exponent, int)  # no factor is infinite
    return -exponent


def _decimals_of(units: npt.NDArray[np.int64], factor: Fraction, decimals: int) -> npt.NDArray[np.float64]:
    if factor == 1:
        return np.true_divide(units, 10.0**decimals)
    places = _digits(factor)
    whole = units * int(factor * Fraction(10) ** places)
    decimals += places
    if decimals < 0:
        whole, decimals = whole * 10**-decimals, 0
    shown: npt.NDArray[np.float64] = np.true_divide(whole, 10.0**decimals)
    return shown


@functools.lru_cache(maxsize=8192)  # each new exchange of a process asks a thousand, of the same markets
def hash_text(text: str) -> int:
    """FNV-1a of a text, 64 bits: the same on every machine, unlike `hash`."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    value ^= value >> 29
    value = (value * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 32)


def tick_of(quote: str, price: float) -> float:
    """The price step at `price` in a market quoted in `quote`."""
    return next(tick for floor, tick in reversed(TICKS[quote]) if price >= floor or floor == 0)


def decimals_of(step: float) -> int:
    return max(0, -int(f"{step:.0e}".partition("e")[2]))


def _rate(rank: int, total: int) -> float:
    """Trades a minute by rank: about a power law, then the thin tail, then the very thin."""
    if rank >= total - 6:
        return 1 / 60
    if rank >= total - 30:
        return 0.0726  # trades in 7 % of minutes
    return float(round(max(0.35, 60.0 / (1 + rank) ** 1.05), 4))


def _listed_us(code: str, salt: int, rank: int) -> int:
    if code in _LISTED_US:
        return _LISTED_US[code]
    fraction = ((salt >> 20) % 10_000) / 10_000
    skew = fraction * 0.4 if rank < 60 else 0.15 + 0.85 * fraction  # busy markets are the old ones
    day = int(_FIRST_LISTING_US + skew * (_LAST_LISTING_US - _FIRST_LISTING_US)) // _DAY_US * _DAY_US
    return day + ((salt >> 40) % 10) * 3_600_000_000


def _build(code: str, english: str, korean: str, price: float, rank: int, total: int, scale: float) -> Market:
    quote = code.partition("-")[0]
    salt = hash_text(code)
    majors = rank < 6 and quote == "KRW"
    base = code.partition("-")[2]
    moves = hash_text(base)  # a coin moves alike in every quote currency
    drift = 0.45 if base == "BTC" else (((moves >> 8) % 400) / 1000 - 0.2)
    stable = base in ("USDT", "USDC")
    volatility = 0.004 if stable else 0.035 + ((moves >> 16) % 40) / 1000 + (0.0 if base in _MAJORS else 0.02)
    drift = 0.0 if stable else drift
    low = price / 2 ** (8 * max(drift, 0.0) + 60 * volatility)  # how far the price can fall within a decade
    price_decimals = decimals_of(tick_of(quote, low))
    raised = tuple(name for name in CAUTIONS if hash_text(code + name) % 23 == 0)
    return Market(
        code=code,
        korean_name=korean,
        english_name=english,
        warning=not majors and (salt >> 30) % 60 == 0,
        cautions=() if majors else raised,
        listed_us=_listed_us(code, salt, rank),
        price=price,
        drift=drift,
        day_volatility=volatility,
        trades_per_minute=_rate(rank, total) * scale,
        trade_value=_TURNOVER[quote] * (6.0 if code == "KRW-BTC" else 1.0),
        price_decimals=price_decimals,
        volume_decimals=max(0, min(8, _VALUE_DECIMALS[quote] - price_decimals)),
        history=code,
    )


def new_market(code: str, listed_us: int) -> Market:
    """A market of the catalogue, or one made up for a code that it lacks, listed at a time of the caller's choice."""
    known = catalogue().get(code)
    if known is not None:
        return replace(known, listed_us=listed_us)
    quote, dash, base = code.partition("-")
    if quote not in TICKS or not dash or not base or code != code.upper():
        raise InputError("market", code, "a code such as KRW-NEW, in KRW, BTC or USDT")
    return replace(_build(code, base, base, 1000.0 / _QUOTE_KRW[quote], 40, 200, 1.0), listed_us=listed_us)


def rescaled(market: Market, factor: object) -> Market:
    """The market after a redenomination: prices times `factor`, volumes divided by it, turnovers as they were."""
    try:
        share = Fraction(str(factor))
    except (ValueError, ZeroDivisionError) as exc:
        raise InputError("factor", factor, "a number above 0") from exc
    total = market.factor * share
    if share <= 0 or not all((one * 10**8).denominator == 1 for one in (total, 1 / total)):
        raise InputError("factor", factor, "a decimal above 0 whose inverse is one too, such as 10, 0.001 or 4")
    return replace(market, factor=total)


@functools.cache
def catalogue() -> dict[str, Market]:
    """Every market by code: KRW first, busiest first, then BTC and USDT."""
    with _KRW.open(encoding="utf-8", newline="") as file:
        names = {row[0]: (row[1], row[2], float(row[3])) for row in list(csv.reader(file))[1:]}
    markets = [_build(f"KRW-{base}", *said, rank, len(names), 1.0) for rank, (base, said) in enumerate(names.items())]
    for quote, listing, scale in (("BTC", _BTC, 0.02), ("USDT", _USDT, 0.1)):
        bases = listing.split()
        for rank, base in enumerate(bases):
            english, korean, krw = names.get(base, (base, base, 1000.0))
            price = krw / _QUOTE_KRW[quote]
            markets.append(_build(f"{quote}-{base}", english, korean, price, rank, len(bases) + 40, scale))
    return {market.code: market for market in markets}
