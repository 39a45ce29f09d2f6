"""What is held of one series at a moment: its files, with the pages that are not on disk yet on top.

A `View` looks once at its market's generation: pages of another one do not count, and nothing is held while files are
being moved away. Files are looked at whenever it is asked. Where it is asked several times, a quarantine may come in
between: `CandleStore.put` then refuses what was fetched because of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import pyarrow as pa

from backbone.candle_table import bounds_of
from backbone.model import Span, empty_candles
from backbone.storage.coverage import Coverage, SpanSet, spans_due
from backbone.storage.generations import Generations
from backbone.storage.layout import Series
from backbone.storage.merge import Page, with_pages
from backbone.storage.periods import Periods, row_periods
from backbone.timeframe import Timeframe

__all__ = ["Stored", "View", "covered_part"]


class Stored(msgspec.Struct, frozen=True):
    """What a read found: the rows, the spans covered at that moment, row counts by tier, and what is provisional."""

    table: pa.Table
    covered: SpanSet
    tiers: dict[str, int]
    provisional: Mapping[int, SpanSet] = msgspec.field(default_factory=dict)

    def due(self, now_us: int) -> SpanSet:
        """The covered part that is to be requested again at `now_us`."""
        return spans_due(self.provisional, now_us) & self.covered


class View:
    """What is held of `series` now; `waiting` are its pages in memory, oldest first."""

    def __init__(self, periods: Periods, series: Series, waiting: Sequence[Page], generations: Generations) -> None:
        self._periods = periods
        self._series = series
        self.generation = generations.of(series.market)
        number = None if self.generation.leaving else self.generation.number
        self.pages = [page for page in waiting if page.generation == number]
        """The pages in memory that count."""

    def read(self, span: Span) -> Stored:
        """The rows whose open lies in `span`, oldest first, and what of it is covered."""
        whole = next((page for page in reversed(self.pages) if page.proof.touches(span)), None)
        if whole is not None and whole.proof.contains(span):  # the newest page covers all of it: no file is read
            page = whole.clip(span)
            return Stored(page.table, SpanSet([span]), {"memory": page.table.num_rows, "disk": 0}, page.provisional)
        if self.generation.leaving:
            return Stored(empty_candles(), SpanSet(), {})
        series, pages = self._series, [page for page in self.pages if page.proof.touches(span)]
        quiet = self._periods.quiet(series)
        tables: list[pa.Table] = []
        tiers = {"memory": 0, "disk": 0}
        periods = sorted({*self._periods.left(series, span), *row_periods(series, pages, span)})
        parts = [quiet.without(SpanSet(periods))]
        for period in periods:
            held, tier = self._periods.current(series, period, self.pages, quiet)
            parts.append(held.partition.coverage)
            low, high = bounds_of(held.partition.table, span)
            if low < high:
                tables.append(held.partition.table.slice(low, high - low))
                tiers[tier] += high - low
        coverage = with_pages(Coverage.joined(parts), pages)
        table = pa.concat_tables(tables) if tables else empty_candles()
        return Stored(table, covered_part(coverage, series.timeframe, span), tiers, coverage.provisional)

    def coverage(self, span: Span) -> Coverage:
        """What the files say of `span`, with the pages on top; rows are not read for it."""
        pages = [page for page in self.pages if page.proof.touches(span)]
        found = Coverage() if self.generation.leaving else self._periods.coverage(self._series, span, is_left=True)
        return with_pages(found, pages)

    def covered(self, span: Span) -> SpanSet:
        """The part of `span` that is covered, rows or quiet."""
        return covered_part(self.coverage(span), self._series.timeframe, span)


def covered_part(coverage: Coverage, timeframe: Timeframe, span: Span) -> SpanSet:
    """The covered part of `span`; its ragged ends, in which no candle opens, go with their neighbour."""
    first, last = timeframe.ceil(max(0, span.start)), timeframe.ceil(max(0, span.end))
    if first >= last:
        return SpanSet((span,))
    spans = list(coverage.covered.clip(Span(first, last)))
    if spans and spans[0].start == first:
        spans[0] = Span(span.start, spans[0].end)
    return SpanSet(spans).clip(span)
