"""A span of candles in three states: data, quiet (asked, nobody traded) and unknown (never asked, or lost).
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from backbone.model import Span
from backbone.storage.coverage import SpanSet, on_grid
from backbone.timeframe import Timeframe

__all__ = ["Stretch", "common_quiet", "quiet_spans", "stretches"]


class Stretch(NamedTuple):
    """A run of candle slots in one state; for data, ``slots`` is the number of rows."""

    start: int
    end: int
    state: str
    slots: int


def stretches(times: Any, covered: SpanSet, span: Span, timeframe: Timeframe) -> list[Stretch]:
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
        Stretch(*part, state, timeframe.count(part))
        for state, parts in (("data", runs), ("quiet", quiet), ("unknown", unknown))
        for part in parts
    ]
    return sorted(found)


def quiet_spans(times: Any, covered: SpanSet, timeframe: Timeframe) -> SpanSet:
    """Where silence is vouched for: `covered` without the candles that exist."""
    return on_grid(covered, timeframe) - _runs(times, timeframe)


def common_quiet(quiet: Iterable[SpanSet]) -> SpanSet:
    """Where every one of several markets is quiet: with enough markets, an outage of the exchange."""
    sets = list(quiet)
    if not sets:
        return SpanSet()
    common = sets[0]
    for other in sets[1:]:
        common = common & other
    return common


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
