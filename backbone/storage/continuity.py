"""A span of candles in three states: data, quiet (asked, nobody traded) and unknown (never asked, or lost); and where
the whole exchange stood still. Pure.
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

__all__ = ["Interval", "Outage", "intervals", "outages"]

_SURE = 6.0  # one in a million: the chance that the silence of a slot is an accident, as a power of ten
_MOST_SURE = 0.999  # share of traded slots above which a market's word weighs no more


class Outage(NamedTuple):
    """A run of slots in which no market traded though it would have; ``markets`` vouch for all of it."""

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
    """`span`, cut at the grid, as runs of ``"data"``, ``"quiet"`` and ``"unknown"``, in time order without a
    gap.

    `times` are the opens (int64, sorted) of the rows of `span`; a row is data whatever `covered` says.
    """
    whole = Span(timeframe.ceil(span.start), timeframe.ceil(span.end))
    if whole.start >= whole.end:
        return []
    runs, covered = _runs(times, timeframe), on_grid(covered, timeframe)
    quiet = covered.clip(whole) - runs
    unknown = SpanSet((whole,)) - covered - runs
    found = [
        Interval(*part, state, timeframe.count(part))
        for state, parts in (("data", runs), ("quiet", quiet), ("unknown", unknown))
        for part in parts
    ]
    return sorted(found)


def outages(heard: Iterable[tuple[Any, SpanSet]], timeframe: Timeframe) -> list[Outage]:
    """Where none of the markets has a candle, and that is no accident, in time order.

    `heard` are each market's opens and what is vouched for. A market that trades in a share `d` of its slots is silent
    in one with chance ``1 - d``; a slot counts where the chances of all markets that vouch for it, multiplied, are
    below one in a million. Two busy markets with a day of minutes are enough for that, a hundred thin ones may not be.
    Shares are taken over the slots in which anybody traded, so that a long outage does not make a market look thin.
    """
    markets = [_Market(on_grid(covered, timeframe), _runs(times, timeframe), len(times)) for times, covered in heard]
    silence = SpanSet(span for span, _ in _still(markets, [0.0] * len(markets)))
    weights = []
    for market in markets:
        slots = sum(timeframe.count(span) for span in market.covered - silence)
        share = (market.candles + 1) / (slots + 2)
        weights.append(-math.log10(1 - min(_MOST_SURE, share)) if market.candles else 0.0)
    found: list[Outage] = []
    for span, vouching in _still(markets, weights, _SURE):
        if found and found[-1].end == span.start:
            last = found.pop()
            span, vouching = Span(last.start, span.end), min(last.markets, vouching)
        found.append(Outage(*span, timeframe.count(span), vouching))
    return found


class _Market(NamedTuple):
    covered: SpanSet
    traded: SpanSet
    candles: int


def _still(markets: Sequence[_Market], weights: Sequence[float], least: float = 0.0) -> Iterator[tuple[Span, int]]:
    """Where nobody trades and the weights of the markets that vouch add up to `least`, with their number."""
    edges: list[tuple[int, float, int, int]] = []  # time; the change of weight, of vouching and of trading markets
    for market, weight in zip(markets, weights, strict=True):
        for start, end in market.covered:
            edges += [(start, weight, 1, 0), (end, -weight, -1, 0)]
        for start, end in market.traded:
            edges += [(start, 0.0, 0, 1), (end, 0.0, 0, -1)]
    edges.sort()
    total, vouching, trading = 0.0, 0, 0
    for (time, weight, voices, candles), (until, *_) in pairwise(edges):
        total, vouching, trading = total + weight, vouching + voices, trading + candles
        if until > time and vouching and not trading and total > least - 1e-9:
            yield Span(time, until), vouching


def _runs(times: Any, timeframe: Timeframe) -> SpanSet:
    """The candles of `times` as spans, neighbours joined."""
    if not len(times):
        return SpanSet()
    if timeframe.is_calendar:
        return SpanSet((int(time), timeframe.next(int(time))) for time in times)
    breaks = np.flatnonzero(np.diff(times) != timeframe.step_us)
    starts = times[np.concatenate(([0], breaks + 1))]
    ends = times[np.concatenate((breaks, [len(times) - 1]))] + timeframe.step_us
    return SpanSet(zip(starts.tolist(), ends.tolist(), strict=True))
