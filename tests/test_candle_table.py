"""Candle tables as arithmetic: rows of spans, and how two tables differ."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from backbone.candle_table import bounds_of, compare, count_inside, differing_columns, is_same, rows_inside, times_of
from backbone.model import LiveCandle, empty_candles
from tests.storage.helpers import MAY, MINUTE_US, candles, minutes, span


def with_volume(table: pa.Table, factor: float) -> pa.Table:
    return table.set_column(5, table.schema.field(5), pa.array([v * factor for v in table["volume"].to_pylist()]))


def test_times_of_any_chunking() -> None:
    """One chunk, several, none: always the opens."""
    assert times_of(empty_candles()).tolist() == []
    two = pa.concat_tables([minutes(0, 2), minutes(2, 3)])
    assert times_of(two).tolist() == [MAY + i * MINUTE_US for i in range(3)]


minute = st.integers(-2, 32)


@given(st.lists(st.integers(0, 29), unique=True).map(sorted), st.lists(st.integers(0, 29)), minute, minute)
def test_bounds_of_a_span_are_the_same_in_any_chunking(rows: list[int], cuts: list[int], a: int, b: int) -> None:
    """Chunks of any length, empty ones too, are searched as one sorted column."""
    table, (first, last) = candles(MAY + i * MINUTE_US for i in rows), sorted((a, b))
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    cut = pa.chunked_array([table.column("time").chunk(0)[i:j] for i, j in pairwise(edges)], table.schema.types[0])
    found = bounds_of(pa.table([cut], names=["time"]), span(first, last))
    low, high = (sum(i < edge for i in rows) for edge in (first, last))
    assert found == (low, high)
    assert bounds_of(table, span(first, last)) == found


def test_rows_inside_are_those_of_the_spans() -> None:
    """Only rows that open in one of the spans, in order."""
    table = minutes(0, 10)
    spans = [span(2, 4), span(8, 20)]
    assert rows_inside(table, spans).equals(pa.concat_tables([minutes(2, 4), minutes(8, 10)]))
    assert count_inside(table, spans) == 4
    assert rows_inside(table, []).num_rows == 0 == count_inside(table, [])


def test_compare_names_each_kind_of_difference() -> None:
    """Missing rows on either side, and each column that differs, with the first place."""
    mine, theirs = minutes(0, 10), minutes(5, 15)
    assert not compare(mine, mine)
    found = compare(mine, theirs)
    lines = [line.split(",")[0] for line in found.describe("ours", "the venue's")]
    assert lines == ["5 candles are ours only", "5 candles are the venue's only"]
    assert found.common == 5
    assert found.times.tolist() == [MAY + i * MINUTE_US for i in (0, 1, 2, 3, 4, 10, 11, 12, 13, 14)]
    other = compare(mine, minutes(0, 10, salt=3))
    assert {line.split()[0] for line in other.describe("a", "b")} == {"open", "high", "low", "close", "value"}
    assert len(other.times) == 10


def test_compare_takes_sums_in_another_order_for_equal_where_asked() -> None:
    """`relative` is for volume and value alone, and 0 is bit for bit."""
    mine = minutes(0, 10)
    near = with_volume(mine, 1 + 1e-12)
    assert not compare(mine, near, relative=1e-9)
    assert list(compare(mine, near).changed) == ["volume"]
    assert not is_same(mine, near)
    closes = mine.set_column(4, mine.schema.field(4), pa.array(np.nextafter(mine["close"].to_numpy(), np.inf)))
    assert list(compare(mine, closes, relative=1e-9).changed) == ["close"]


def test_is_same_compares_values_that_are_no_numbers() -> None:
    """A table equals itself, whatever is in it."""
    odd = with_volume(minutes(0, 3), float("nan"))
    assert is_same(odd, odd)
    assert not is_same(odd, minutes(0, 3))
    assert not is_same(odd, odd.slice(1))


def test_differing_columns_of_two_records() -> None:
    """Each column whose values differ, in the columns' order."""
    names = LiveCandle.__struct_fields__
    facts = dict.fromkeys(names, 1)
    assert differing_columns(LiveCandle(**facts), LiveCandle(**facts)) == []
    assert differing_columns(LiveCandle(**facts), LiveCandle(**{**facts, "value": 2, "open": 3})) == ["open", "value"]
