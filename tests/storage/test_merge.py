"""Pages on top of a partition, against a dictionary that does the same one candle at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backbone.model import CANDLE_COLUMNS, Span
from backbone.storage.coverage import VENUE, Coverage, SpanSet
from backbone.storage.merge import Page, merge_pages, with_pages
from backbone.storage.partition import Partition
from tests.storage.helpers import MAY, MINUTE_US, candles, rows_of, span

PERIOD = span(0, 30)
minute = st.integers(0, 40)


@st.composite
def pages(draw: st.DrawFn) -> Page:
    """A page: some minutes of one or two proved spans, with one of two sets of prices."""
    edges = draw(st.lists(st.tuples(minute, minute), min_size=1, max_size=2))
    proof = SpanSet(span(*sorted(edge)) for edge in edges)
    slots = [t for a, b in proof for t in range(a, b, MINUTE_US)]
    times = sorted(draw(st.sets(st.sampled_from(slots)))) if slots else []
    due = draw(st.integers(1, 3))
    fresh = {due: proof.clip(span(10, 20))} if draw(st.booleans()) else {}
    source = draw(st.sampled_from(["rest", "stream"]))
    return Page(draw(st.integers(1, 999)), candles(times, draw(st.integers(0, 1))), proof, fresh, source, due)


Row = tuple[float, ...] | None


def replay(reported: list[Page]) -> tuple[dict[int, Row], list[tuple[int, Row, Row, str]]]:
    """What the same pages leave in a dictionary of open → row (None for a quiet minute), and the revisions."""
    held: dict[int, Row] = {}
    revised = []
    for page in reported:
        rows = rows_of(page.table)
        for a, b in page.proof.clip(PERIOD):
            for open_us in range(a, b, MINUTE_US):
                new = rows.get(open_us)
                if open_us in held and held[open_us] != new:
                    revised.append((open_us, held[open_us], new, page.source))
                held[open_us] = new
    return held, revised


def revisions_of(partition: Partition) -> list[tuple[int, Row, Row, str]]:
    found = []
    for record in partition.revisions.to_pylist():
        old, new = (tuple(record[f"{side}_{name}"] for name in CANDLE_COLUMNS) for side in ("old", "new"))
        open_us = int(record["time"].timestamp()) * 1_000_000
        found.append((open_us, None if old[0] is None else old, None if new[0] is None else new, record["source"]))
    return found


@given(st.lists(pages(), max_size=6))
def test_merged_pages_agree_with_one_candle_at_a_time(reported: list[Page]) -> None:
    """Rows, coverage and revisions are those of a plain dictionary, however pages overlap."""
    held, revised = replay(reported)
    found = merge_pages(Partition.empty(), reported, PERIOD)
    assert rows_of(found.table) == {time: row for time, row in held.items() if row is not None}
    assert list(rows_of(found.table)) == sorted(rows_of(found.table))
    assert found.coverage.covered == SpanSet((time, time + MINUTE_US) for time in held)
    assert sorted(revisions_of(found), key=repr) == sorted(revised, key=repr)
    assert all(found.table.column(i).num_chunks <= 8 for i in range(7))


@given(st.lists(pages(), max_size=6))
def test_merged_pages_one_by_one_are_those_merged_at_once(reported: list[Page]) -> None:
    """Batching neighbours is an optimisation and nothing else."""
    at_once = merge_pages(Partition.empty(), reported, PERIOD)
    one_by_one = Partition.empty()
    for page in reported:
        one_by_one = merge_pages(one_by_one, [page], PERIOD)
    assert at_once.table.equals(one_by_one.table)
    assert at_once.coverage == one_by_one.coverage
    assert sorted(revisions_of(at_once), key=repr) == sorted(revisions_of(one_by_one), key=repr)


@given(st.lists(pages(), min_size=1, max_size=4))
def test_page_merged_again_changes_nothing(reported: list[Page]) -> None:
    """Repeating the newest page, as a retried write does, gives the same object back."""
    found = merge_pages(Partition.empty(), reported, PERIOD)
    assert merge_pages(found, [reported[-1]], PERIOD) is found


def test_page_of_another_period_changes_nothing() -> None:
    """Rows and proofs outside the period are not this partition's."""
    empty = Partition.empty()
    page = Page(1, candles([MAY + 35 * MINUTE_US]), SpanSet([span(31, 40)]), {}, "rest", 1)
    assert merge_pages(empty, [page], PERIOD) is empty
    assert page.clip(Span(0, 1)).table.num_rows == 0


def test_candle_that_differs_only_in_a_nan_or_a_last_bit_is_compared_by_bits() -> None:
    """A value that is not a number equals itself; a last-bit difference is a revision."""
    table = candles([MAY])
    blank = table.set_column(6, table.schema.field("value"), [[float("nan")]])
    nudged = table.set_column(4, table.schema.field("close"), [[table["close"][0].as_py() * (1 + 2**-52)]])

    def page(rows: object) -> Page:
        return Page(1, rows, SpanSet([span(0, 1)]), {}, "rest", 1)  # type: ignore[arg-type]

    held = merge_pages(Partition.empty(), [page(blank)], PERIOD)
    assert merge_pages(held, [page(blank)], PERIOD) is held
    assert merge_pages(held, [page(nudged)], PERIOD).revisions.num_rows == 1


@given(st.lists(pages(), max_size=6), st.booleans())
def test_coverage_after_pages_is_that_after_each_of_them(many: list[Page], are_plain: bool) -> None:
    """Pages that only prove something are put on top at once; others go the way of each."""
    if are_plain:
        many = [Page(n, page.table, page.proof, {}, VENUE, MAY) for n, page in enumerate(many)]
    coverage = one_by_one = Coverage(SpanSet([span(5, 15)]))
    for page in many:
        one_by_one = one_by_one.proved(page.proof, page.provisional, source=page.source)
    assert with_pages(coverage, many) == one_by_one
