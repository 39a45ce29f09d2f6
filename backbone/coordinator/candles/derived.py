"""Candles of lengths that the venue does not serve: which shorter ones to ask for, and what they are folded to.

A derived candle is whole or not there: its slot must be known in full, and closed. Pure: ranges and answers in, ranges
and answers out; who asks the venue or the store for the shorter candles is not known here.
"""

from __future__ import annotations

from msgspec.structs import replace

from backbone.candle_table import rows_inside
from backbone.coordinator.candles.ranges import Range
from backbone.coordinator.candles.reader import CandleAnswer
from backbone.model import Span
from backbone.storage.coverage import SpanSet
from backbone.storage.fold import fold
from backbone.timeframe import Timeframe

__all__ = ["base_range", "folded"]


def base_range(asked: Range, timeframe: Timeframe, closed_us: int) -> Range:
    """The range of `timeframe.base` candles that `asked` is folded from.

    `closed_us` is where the candles of `timeframe` that are closed end. A count of candles is at most so many times as
    many short ones, and as many more as may belong to a candle that is cut off at the far end.
    """
    base = timeframe.base
    assert base is not None, f"{timeframe} is the venue's own"
    ratio = timeframe.step_us // base.step_us
    end_us = asked.closed_end(timeframe, closed_us)
    start_us = None if asked.start_us is None else min(timeframe.ceil(asked.start_us), end_us)
    if asked.count is None:
        return Range(start_us, end_us, None)
    if asked.start_us is None:
        return Range(None, end_us, (asked.count + 1) * ratio - 1)
    return Range(start_us, None, asked.count * ratio)


def folded(answer: CandleAnswer, asked: Range, timeframe: Timeframe, closed_us: int) -> CandleAnswer:
    """The answer for `asked`, of an answer for its `base_range`."""
    base = timeframe.base
    assert base is not None, f"{timeframe} is the venue's own"
    end = min(closed_us, timeframe.floor(answer.span.end))
    start = timeframe.ceil(answer.span.start)
    span = Span(min(start, end), end)
    gaps = SpanSet(Span(timeframe.floor(gap.start), timeframe.ceil(gap.end)) for gap in answer.gaps).clip(span)
    table = fold(rows_inside(answer.table, SpanSet([span]) - gaps), timeframe)
    table, span = asked.cut(table, timeframe, span)
    gaps = gaps.clip(span)
    unknown = sum(timeframe.count(gap) for gap in gaps)
    quiet = max(0, timeframe.count(span) - unknown - table.num_rows)
    sources = {f"derived:{base}": table.num_rows} if table.num_rows else {}
    return replace(answer, span=span, table=table, quiet=quiet, unknown=unknown, sources=sources, gaps=tuple(gaps))
