"""Pages merged into a partition, and the revisions that record what they changed.

Inside its proof the newest page is the whole truth: stored rows there are replaced, missing ones removed. A
difference from what was already covered becomes a revision. Merging the same page twice changes nothing the second
time, so a failed write can be repeated. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from backbone.candle_table import bounds_of, compare, is_same, rows_inside, times_of
from backbone.model import CANDLE_COLUMNS, CANDLE_SCHEMA, Span
from backbone.storage.coverage import EVER, VENUE, Coverage, SpanSet, change_each, union_each
from backbone.storage.partition import REVISION_SCHEMA, Partition

__all__ = ["Page", "merge_pages", "with_pages"]

_MOST_CHUNKS = 8  # of a column; copying a month for every page put on top would be a twentieth of its commit


class Page(msgspec.Struct, frozen=True, dict=True):
    """Rows that are all there is in the spans of ``proof``.

    ``seen_us`` is when they arrived; ``generation`` is the market's when they were requested.
    """

    id: int
    table: pa.Table
    proof: SpanSet
    provisional: Mapping[int, SpanSet]
    source: str
    seen_us: int
    generation: int = 0

    @cached_property
    def times(self) -> Any:
        return times_of(self.table)

    @property
    def is_plain(self) -> bool:
        """Whether it says nothing but what it proves."""
        return not self.provisional and self.source == VENUE

    def clip(self, span: Span) -> Page:
        """The part inside `span`."""
        proof = self.proof.clip(span)
        if proof is self.proof:
            return self
        low, high = bounds_of(self.table, span)
        provisional = change_each(self.provisional, lambda spans: spans.clip(span))
        return Page(self.id, self.table.slice(low, high - low), proof, provisional, self.source, self.seen_us)


def with_pages(coverage: Coverage, pages: Iterable[Page]) -> Coverage:
    """The coverage after `pages`, oldest first."""
    pages = list(pages)
    if not (coverage.provisional or coverage.origins) and all(page.is_plain for page in pages):  # mostly
        return Coverage(SpanSet([*coverage.covered, *(span for page in pages for span in page.proof)]))
    for page in pages:
        coverage = coverage.proved(page.proof, page.provisional, source=page.source)
    return coverage


def merge_pages(partition: Partition, pages: Sequence[Page], period: Span) -> Partition:
    """The partition after `pages`, oldest first; the same object where they change nothing."""
    for page in _batches([page.clip(period) for page in pages]):
        partition = _merge(partition, page)
    return partition


def _batches(pages: Sequence[Page]) -> Iterator[Page]:
    """Neighbouring pages about different spans, as one: the cost of a merge is the partition, not the page."""
    batch: list[Page] = []
    proved = SpanSet()
    for page in pages:
        if batch and (page.source != batch[0].source or page.proof & proved):
            yield _joined(batch, proved)
            batch, proved = [], SpanSet()
        batch.append(page)
        proved = proved | page.proof
    if batch:
        yield _joined(batch, proved)


def _joined(batch: list[Page], proof: SpanSet) -> Page:
    if len(batch) == 1:
        return batch[0]
    filled = sorted((page for page in batch if len(page.times)), key=lambda page: int(page.times[0]))
    table = _sorted(pa.concat_tables([page.table for page in filled] or [batch[0].table]).combine_chunks())
    provisional = union_each([page.provisional for page in batch])
    return Page(batch[-1].id, table, proof, provisional, batch[0].source, max(page.seen_us for page in batch))


def _sorted(table: pa.Table) -> pa.Table:
    times = times_of(table)
    is_sorted = len(times) < 2 or bool((times[1:] > times[:-1]).all())
    return table if is_sorted else table.take(np.argsort(times, kind="stable"))


def _merge(partition: Partition, page: Page) -> Partition:
    coverage = with_pages(partition.coverage, [page])
    whole, new = partition.table, page.table
    low, high = bounds_of(whole, page.proof.bounds or EVER)
    if len(page.proof) == 1 or low == high:  # slices, which copy nothing
        old = whole.slice(low, high - low)
        before = whole if low == whole.num_rows else whole.slice(0, low)
        parts = [before, new, whole.slice(high)]
        table = pa.concat_tables([part for part in parts if part.num_rows] or [new])
        if table.column(0).num_chunks > _MOST_CHUNKS:
            table = _with_fewer_chunks(table)
    else:
        old = rows_inside(whole, page.proof)
        stays = np.ones(whole.num_rows, dtype=bool)
        stays[np.searchsorted(times_of(whole), times_of(old))] = False
        table = _sorted(pa.concat_tables([whole.filter(pa.array(stays)), new]).combine_chunks())
    if is_same(old, new):
        if coverage == partition.coverage:
            return partition
        return Partition(whole, coverage, partition.revisions, partition.head)
    revisions = partition.revisions
    if known := partition.coverage.covered & page.proof:
        found = _difference(rows_inside(old, known), rows_inside(new, known), page)
        revisions = pa.concat_tables([revisions, found]).combine_chunks() if found.num_rows else revisions
    return Partition(table, coverage, revisions, partition.head.before(low))


def _with_fewer_chunks(table: pa.Table) -> pa.Table:
    """The same rows; a first chunk that holds most of them, such as the month that was read, is not copied."""
    first = len(table.column(0).chunk(0))
    if first * 2 < table.num_rows:
        return table.combine_chunks()
    return pa.concat_tables([table.slice(0, first), table.slice(first).combine_chunks()])


def _difference(old: pa.Table, new: pa.Table, page: Page) -> pa.Table:
    """One record for each candle that changed, appeared or vanished."""
    before, after = times_of(old), times_of(new)
    times = compare(old, new).times
    columns = [pa.array(times).view(CANDLE_SCHEMA.field("time").type)]
    for table, held in ((old, before), (new, after)):
        where = np.searchsorted(held, times)
        found = np.zeros(len(times), dtype=bool) if not len(held) else held[np.minimum(where, len(held) - 1)] == times
        index: Any = pa.array(where, mask=~found)
        rows = table.take(index)
        columns += [rows.column(name).combine_chunks() for name in CANDLE_COLUMNS]
    columns.append(pa.array(np.full(len(times), page.seen_us)).view(REVISION_SCHEMA.field("seen").type))
    columns.append(pa.array([page.source] * len(times), pa.string()))
    return pa.Table.from_arrays(columns, schema=REVISION_SCHEMA)
