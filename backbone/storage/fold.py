"""Longer candles made of shorter ones, exactly as the venue makes them.

A longer candle opens on the UTC grid of its timeframe with the first short one's open, closes with the last one's
close, spans their extremes and sums volume and value; slots without a trade add nothing, and an interval without any
trade has no candle. Pure, vectorised.

The venue sums decimals and rounds once; a sum of float64 is off in the last digit in one hour of twenty. So each addend
is turned back into the decimal that it came from (the shortest one that is nearest to it, up to sixteen places), the
digits are added as integers, and the sum is rounded once, to the nearest float64. Where an addend has more digits than
a float64 holds (large turnovers of markets with fine price steps), the nearest decimal of as many places as the other
addends have stands for it: nothing better can be known there.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from backbone.candle_table import times_of
from backbone.model import CANDLE_SCHEMA, empty_candles
from backbone.timeframe import Timeframe

__all__ = ["decimal_sums", "fold"]

_PLACES = 8  # of the venue's volumes
_UNIT = 10**_PLACES
_SMALL = 1e6  # a float64 below this holds the venue's eight places and more: its own shortest decimal is the best guess
_MANY_DIGITS = 60
_SURE = float(1 << 51)  # below this, a float64 times a power of ten is the right integer once rounded
_SAFE_ADDENDS = 1 << 12  # so many of the largest integers do not overflow
_EXACT = 1 << 53  # integers up to here are float64, and their quotient by a power of ten is rounded once


def fold(table: pa.Table, timeframe: Timeframe) -> pa.Table:
    """The `timeframe` candles of a sorted table of shorter ones.

    A candle is only as whole as the short ones given: leave out those that are not all known.
    """
    if not table.num_rows:
        return empty_candles()
    table = table.combine_chunks()
    opens = timeframe.floor_array(times_of(table))
    first = np.flatnonzero(np.concatenate(([True], opens[1:] != opens[:-1])))
    last = np.append(first[1:], len(opens)) - 1
    column = {name: table.column(name).to_numpy() for name in table.column_names[1:]}
    columns = [
        pa.array(opens[first]).view(CANDLE_SCHEMA.field("time").type),
        pa.array(column["open"][first]),
        pa.array(np.maximum.reduceat(column["high"], first)),
        pa.array(np.minimum.reduceat(column["low"], first)),
        pa.array(column["close"][last]),
        pa.array(decimal_sums(column["volume"], first)),
        pa.array(decimal_sums(column["value"], first)),
    ]
    return pa.Table.from_arrays(columns, schema=CANDLE_SCHEMA)


def decimal_sums(values: Any, first: Any) -> Any:
    """The float64 nearest to the sum of the decimals of each group of `values`; groups begin at the indices `first`.

    `values` are zero or more; a group with one that is not a number (a turnover that was not kept) sums to none.
    """
    if np.isnan(values).any():
        lacks = np.logical_or.reduceat(np.isnan(values), first)
        return np.where(lacks, np.nan, decimal_sums(np.nan_to_num(values), first))
    scaled = _at_one_scale(values)
    if scaled is not None and np.diff(first, append=len(values)).max() < _SAFE_ADDENDS:
        numbers, scale = scaled
        sums = np.add.reduceat(numbers, first)
        if sums.max() < _EXACT:
            return sums / scale
        return np.array([number / scale for number in sums.tolist()])  # Python's quotient of integers is rounded once
    found = _digits(values)
    if found is None:
        return _sums_by_text(values, first)
    summed = [np.add.reduceat(digits, first).tolist() for digits in found]
    totals = [(w * _UNIT + u) * _UNIT + r for w, u, r in zip(*summed, strict=True)]
    return np.array([total / _UNIT**2 for total in totals])


def _at_one_scale(values: Any) -> tuple[Any, int] | None:
    """`values` as integers of one power of ten, where that is sure for all of them: the common case, in one pass."""
    places = min(_PLACES, int(math.log10(_SURE / max(float(values.max()), 1.0))))
    scale = 10 ** max(places, 0)
    number = np.rint(values * float(scale))
    return (number.astype(np.int64), scale) if (number / scale == values).all() else None


def _sums_by_text(values: Any, first: Any) -> Any:
    """The same for addends of any number of places, one by one."""
    decimals = [Decimal(repr(value)) for value in values.tolist()]
    bounds = [*first.tolist(), len(decimals)]
    with localcontext(prec=_MANY_DIGITS):
        return np.array([float(sum(decimals[start:end])) for start, end in pairwise(bounds)])


def _digits(values: Any) -> tuple[Any, Any, Any] | None:
    """The decimals of `values` as integers: the whole part, its next eight places, and the eight behind.

    None where a small addend has more than sixteen places, as turnovers of markets that are priced in bitcoin do.
    """
    whole = np.floor(values)
    scaled = np.rint(values * float(_UNIT))
    is_known = (scaled < _SURE) & (scaled / _UNIT == values)
    units = np.where(is_known, scaled - whole * _UNIT, 0.0)
    whole, units = whole.astype(np.int64), units.astype(np.int64)
    rest = np.zeros(len(values), np.int64)
    left = np.flatnonzero(~is_known)
    for places in (7, 6, 5, 4, 3, 2, 1, *range(_PLACES + 1, 2 * _PLACES + 1)):
        if not len(left):
            break
        scale = 10**places
        number = np.rint(values[left] * float(scale))
        is_known = (number < _SURE) & (number / scale == values[left])
        at, digits = left[is_known], number[is_known].astype(np.int64)
        whole[at] = digits // scale
        below = digits % scale
        if places <= _PLACES:
            units[at] = below * 10 ** (_PLACES - places)
        else:
            finer = 10 ** (places - _PLACES)
            units[at], rest[at] = below // finer, below % finer * 10 ** (2 * _PLACES - places)
        left = left[~is_known]
    if len(left) and values[left].min() < _SMALL:
        return None
    if len(left):  # more digits than a float64 is sure to hold: the nearest decimal, of as many places as the others
        known = np.delete(units, left)
        finest = next((places for places in range(_PLACES) if not (known % 10 ** (_PLACES - places)).any()), _PLACES)
        step = 10 ** (_PLACES - finest) if len(known) else 1
        fraction = values[left] - np.floor(values[left])
        units[left] = np.rint(fraction * (_UNIT // step)).astype(np.int64) * step
    return whole, units, rest
