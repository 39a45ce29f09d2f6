"""A span of candles in three states, and where the whole exchange stood still. Pure.

The states are data, quiet (requested, no trades) and unknown (never requested, or lost). Not a part of `coverage`:
that module knows no rows and decides nothing, and how sure a common pause must be is a judgement that may change alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from backbone.model import Span
from backbone.storage.coverage import SpanSet, on_grid
from backbone.timeframe import Timeframe

__all__ = ["Interval", "Outage", "intervals", "outages", "runs"]

_SURE = 6.0  # one in a million: the chance that a slot without trades is an accident, as a power of ten
_MOST_SURE = 0.999  # share of traded slots above which a market weighs no more


class Outage(NamedTuple):
    """A run of slots in which no market traded though it would have; ``markets`` cover all of it."""

    start: int
    end: int
    slots: int
    markets: int


class Interval(NamedTuple):
    """A run of candle slots in one state; for data, ``slots`` is the number of rows."""

    start: int
    end: int
    state: str
    slots: int


def intervals(times: Any, covered: SpanSet, span: Span, timeframe: Timeframe) -> list[Interval]:
    """`span`, cut at the grid, as runs of ``"data"``, ``"quiet"`` and ``"unknown"``, in time order without a gap.

    `times` are the opens (int64, sorted) of the rows of `span`; a row is data whatever `covered` says.
    """
    whole = Span(timeframe.ceil(span.start), timeframe.ceil(span.end))
    if whole.start >= whole.end:
        return []
    data, covered = runs(times, timeframe), on_grid(covered, timeframe)
    quiet = covered.clip(whole) - data
    unknown = SpanSet((whole,)) - covered - data
    found = [
        Interval(*part, state, timeframe.count(part))
        for state, parts in (("data", data), ("quiet", quiet), ("unknown", unknown))
        for part in parts
    ]
    return sorted(found)


def outages(held: Iterable[tuple[Any, SpanSet]], timeframe: Timeframe) -> list[Outage]:
    """Where none of the markets has a candle, and that is no accident, in time order.

    `held` are each market's opens and coverage. A market that trades in a share `d` of its slots has no trade in
    one with chance ``1 - d``; a slot counts where the chances of all markets that cover it, multiplied, are
    below one in a million. Two busy markets with a day of minutes are enough for that, a hundred thin ones may not be.
    Shares are taken over the slots in which some market traded, so that a long outage does not make a market look thin.
    """
    markets = [_Market(on_grid(covered, timeframe), runs(times, timeframe), len(times)) for times, covered in held]
    still = SpanSet(span for span, _ in _still(markets, [0.0] * len(markets)))
    weights = []
    for market in markets:
        slots = sum(timeframe.count(span) for span in market.covered - still)
        share = (market.candles + 1) / (slots + 2)
        weights.append(-math.log10(1 - min(_MOST_SURE, share)) if market.candles else 0.0)
    found: list[Outage] = []
    for span, covering in _still(markets, weights, _SURE):
        if found and found[-1].end == span.start:
            last = found.pop()
            span, covering = Span(last.start, span.end), min(last.markets, covering)
        found.append(Outage(*span, timeframe.count(span), covering))
    return found


class _Market(NamedTuple):
    covered: SpanSet
    traded: SpanSet
    candles: int


def _still(markets: Sequence[_Market], weights: Sequence[float], least: float = 0.0) -> Iterator[tuple[Span, int]]:
    """Where no market trades and the weights of the markets that cover it add up to `least`, with their number."""
    edges: list[tuple[int, float, int, int]] = []  # time; the change of weight, of covering and of trading markets
    for market, weight in zip(markets, weights, strict=True):
        for start, end in market.covered:
            edges += [(start, weight, 1, 0), (end, -weight, -1, 0)]
        for start, end in market.traded:
            edges += [(start, 0.0, 0, 1), (end, 0.0, 0, -1)]
    edges.sort()
    total, covering, trading = 0.0, 0, 0
    for (time, weight, voices, candles), (until, *_) in pairwise(edges):
        total, covering, trading = total + weight, covering + voices, trading + candles
        if until > time and covering and not trading and total > least - 1e-9:
            yield Span(time, until), covering


def runs(times: Any, timeframe: Timeframe) -> SpanSet:
    """The candles of `times` as spans, neighbours joined."""
    if not len(times):
        return SpanSet()
    if timeframe.is_calendar:
        return SpanSet((int(time), timeframe.next(int(time))) for time in times)
    breaks = np.flatnonzero(np.diff(times) != timeframe.step_us)
    starts = times[np.concatenate(([0], breaks + 1))]
    ends = times[np.concatenate((breaks, [len(times) - 1]))] + timeframe.step_us
    return SpanSet(normal=tuple(map(Span, starts.tolist(), ends.tolist())))
