"""Whether stored candles and received ones are in one unit: the rule about redenominations. Pure.

A redenomination moves a market's whole history: every price by one factor, every volume by its inverse, no turnover.
The candles that both sides know decide: where those that differ all do so by one factor, a wider sample of what is
stored is asked again, and decides. A price that really fell leaves the candles from before as they were, and a venue
that corrects some candles does not correct them all by one factor.

Where both sides know no candle in common, two things make it worth a request to see one. Shorter candles lie between
the low and the high of the longer one that spans them (`fit_together`): only a factor smaller than what the price moved
in that time goes unseen. Where nothing spans anything, there is the next candle's price (`leaps_between`): a factor of
less than 1.5 goes unseen there until a page shows candles of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from backbone.candle_table import times_of
from backbone.timeframe import Timeframe

__all__ = ["LEAP", "Comparison", "compare_units", "factor_of", "fit_together", "is_leap", "leaps_between"]

LEAP = 1.5
"""Two neighbouring candles whose prices are further apart than this share no request: one that shows both is asked."""
_EXACT = 1e-9  # relative; what float64 makes of a decimal
_TURNOVER = 1e-6
_MOST_DECIMALS, _VOLUME_DECIMALS = 12, 8
_PRICES = ("open", "high", "low", "close")


class Comparison(msgspec.Struct, frozen=True):
    """Candles that two tables have in common: how many, how many of them differ, and the one factor in price (the
    second table's by the first one's) by which all of those do; None where there is none."""

    common: int
    differing: int
    factor: float | None = None


def compare_units(held: pa.Table, received: pa.Table) -> Comparison:
    """Compare the candles that both tables have."""
    if not held.num_rows:
        return Comparison(0, 0)
    both, left, right = np.intersect1d(times_of(held), times_of(received), assume_unique=True, return_indices=True)
    if not len(both):
        return Comparison(0, 0)
    names = (*_PRICES, "volume", "value")
    old = {name: held.column(name).to_numpy()[left] for name in names}
    new = {name: received.column(name).to_numpy()[right] for name in names}
    differs = np.zeros(len(both), bool)
    for name in names:
        if not np.array_equal(old[name], new[name]):
            differs |= ~np.isclose(old[name], new[name], rtol=_EXACT, atol=0, equal_nan=True)
    if not differs.any():
        return Comparison(len(both), 0)
    old, new = ({name: column[differs] for name, column in side.items()} for side in (old, new))
    return Comparison(len(both), int(differs.sum()), _one_factor(old, new))


def _one_factor(old: dict[str, Any], new: dict[str, Any]) -> float | None:
    before, after = (np.concatenate([side[name] for name in _PRICES]) for side in (old, new))
    if not before.sum() > 0 or not after.sum() > 0:
        return None
    if not np.isclose(old["value"], new["value"], rtol=_TURNOVER, atol=0, equal_nan=True).all():
        return None
    mean = float(after.sum() / before.sum())
    for factor in (*_round_factors(mean), mean):
        if _fits(before, after, factor) and _fits(old["volume"], new["volume"], 1 / factor, _VOLUME_DECIMALS):
            return None if _fits(before, after, 1.0) else factor
    return None


def _round_factors(mean: float) -> list[float]:
    """Factors near `mean` with few digits, or with few digits as a divisor, the roundest first."""
    found = []
    for digits in range(1, 7):
        found += [float(f"{mean:.{digits}g}"), 1 / float(f"{1 / mean:.{digits}g}")]
    return found


def _fits(before: Any, after: Any, factor: float, least: int = 0) -> bool:
    """Whether `after` is `before` times `factor`, rounded to the decimals that it has (`least` at least)."""
    half = 0.505 * 10.0 ** -max(least, _decimals(after))
    return bool((np.abs(after - factor * before) <= half + _EXACT * np.abs(after)).all())


def _decimals(values: Any) -> int:
    """How many places behind the point the values have."""
    for places in range(_MOST_DECIMALS):
        scaled = values * 10.0**places
        if np.isclose(scaled, np.round(scaled), rtol=_EXACT, atol=0).all():
            return places
    return _MOST_DECIMALS


def factor_of(overlap: Comparison, samples: Sequence[Comparison]) -> float | None:
    """The factor of a redenomination that an `overlap` and the wider `samples` of what is stored agree on, or None.

    Each sample has to be of the old unit or of the new one as a whole, and one of the old: what was stored since may be
    of the new one. Where nothing else is stored, the overlap is all there is.
    """
    compared = [sample for sample in samples if sample.common]
    if overlap.factor is None or not all(_is_whole(sample, overlap.factor) for sample in compared):
        return None
    return overlap.factor if not compared or any(sample.differing for sample in compared) else None


def _is_whole(sample: Comparison, factor: float) -> bool:
    if not sample.differing:
        return True
    is_close = sample.factor is not None and bool(np.isclose(sample.factor, factor, rtol=1e-3))
    return is_close and sample.differing == sample.common


def is_leap(before: float, after: float) -> bool:
    """Whether two neighbouring prices are so far apart that a change of unit between them is possible."""
    return not 1 / LEAP <= after / before <= LEAP


def leaps_between(before: pa.Table, after: pa.Table) -> bool:
    """Whether the prices between the last row of one table and the first of the next are far apart."""
    if not before.num_rows or not after.num_rows:
        return False
    return is_leap(before.column("close")[-1].as_py(), after.column("open")[0].as_py())


def fit_together(shorter: pa.Table, longer: pa.Table, timeframe: Timeframe) -> bool | None:
    """Whether most of the `timeframe` candles `longer` span the prices of the `shorter` ones that open in them; None
    where none of them has any."""
    opens = timeframe.floor_array(times_of(shorter))
    first = np.flatnonzero(np.diff(opens, prepend=-1))
    both, left, right = np.intersect1d(opens[first], times_of(longer), assume_unique=True, return_indices=True)
    if not len(both):
        return None
    lowest = np.minimum.reduceat(shorter.column("low").to_numpy(), first)[left]
    highest = np.maximum.reduceat(shorter.column("high").to_numpy(), first)[left]
    low, high = (longer.column(name).to_numpy()[right] for name in ("low", "high"))
    fits = (lowest >= low * (1 - _EXACT)) & (highest <= high * (1 + _EXACT))
    return bool(2 * fits.sum() > len(both))
