"""Candle tables as arithmetic: the opens of their rows, the rows inside spans, and how two tables differ. Pure.

A candle table has `CANDLE_SCHEMA` and is sorted and unique by ``time``. Spans are half-open pairs of microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from backbone.model import CANDLE_COLUMNS, empty_candles

__all__ = [
    "Differences",
    "bounds_of",
    "compare",
    "count_inside",
    "differing_columns",
    "is_same",
    "rows_inside",
    "show_time",
    "times_of",
]

_SUMS = ("volume", "value")
_MANY = 64  # beyond so many spans one copy is cheaper than as many slices


def times_of(table: pa.Table) -> Any:
    """The opens of a table's candles, an int64 array of microseconds (no copy where the column is one chunk)."""
    if not table.num_rows:
        return np.empty(0, dtype=np.int64)
    column: Any = table.column(0)
    return _opens(column.chunk(0) if column.num_chunks == 1 else column.combine_chunks())


def _opens(chunk: Any) -> Any:
    return np.frombuffer(chunk.buffers()[1], np.int64, len(chunk), chunk.offset * 8)  # half the time of `to_numpy`


def bounds_of(table: pa.Table, span: tuple[int, int]) -> tuple[int, int]:
    """The first row of `table` inside `span`, and the first one after it.

    The newest chunks are searched first, since that is where most spans lie; no chunk is copied.
    """
    at, end = table.num_rows, 0
    for chunk in reversed(table.column(0).chunks):
        at -= len(chunk)
        low, high = _opens(chunk).searchsorted(span).tolist() if len(chunk) else (0, 0)
        if high and not end:
            end = at + high
        if low:
            return at + low, end
    return 0, end


def count_inside(table: pa.Table, spans: Iterable[tuple[int, int]]) -> int:
    """How many rows of `table` open inside `spans`."""
    if not table.num_rows or not (inside := [*spans]):
        return 0
    low, high = np.searchsorted(times_of(table), np.array(inside, np.int64).reshape(-1, 2)).sum(axis=0).tolist()
    return int(high - low)


def rows_inside(table: pa.Table, spans: Iterable[tuple[int, int]]) -> pa.Table:
    """The rows of `table` that open inside `spans` (sorted and disjoint)."""
    edges = np.searchsorted(times_of(table), np.array([*spans], np.int64).reshape(-1, 2))
    if len(edges) > _MANY:
        depth = np.zeros(table.num_rows + 1, np.int64)
        np.add.at(depth, edges[:, 0], 1)
        np.subtract.at(depth, edges[:, 1], 1)
        return table.filter(pa.array(np.cumsum(depth[:-1]) > 0))
    bounds = edges.tolist()
    if bounds == [[0, table.num_rows]]:
        return table
    return pa.concat_tables([empty_candles(), *(table.slice(low, high - low) for low, high in bounds if low < high)])


class Differences(msgspec.Struct, frozen=True):
    """How two candle tables differ. All arrays hold opens in microseconds, sorted.

    only_first, only_second : candles that one table alone has.
    changed : for each column that differs somewhere, the opens with the first table's values and the second's.
    common : how many candles both have.
    """

    only_first: Any
    only_second: Any
    changed: dict[str, tuple[Any, Any, Any]]
    common: int

    def __bool__(self) -> bool:
        return bool(len(self.only_first) or len(self.only_second) or self.changed)

    @property
    def times(self) -> Any:
        """The opens of all candles that differ in anything."""
        changed = [opens for opens, _, _ in self.changed.values()]
        return np.unique(np.concatenate([self.only_first, self.only_second, *changed]))

    def describe(self, first: str, second: str) -> list[str]:
        """A line for each kind of difference; `first` and `second` name the owners, such as ``"ours"``."""
        found = [
            f"{len(only)} candles are {name} only, the first at {show_time(only[0])}"
            for name, only in ((first, self.only_first), (second, self.only_second))
            if len(only)
        ]
        for column, (opens, mine, theirs) in self.changed.items():
            where = f"{column} of {len(opens)} candles, the first at {show_time(opens[0])}"
            found.append(f"{where}: {mine[0]} and {theirs[0]}")
        return found


def compare(first: pa.Table, second: pa.Table, *, relative: float = 0.0) -> Differences:
    """The differences of two candle tables: prices bit for bit, volume and value to `relative` (0: bit for bit too)."""
    a, b = times_of(first), times_of(second)
    both, left, right = np.intersect1d(a, b, assume_unique=True, return_indices=True)
    changed = {}
    for column in CANDLE_COLUMNS:
        x, y = _values(first, column)[left], _values(second, column)[right]
        off = x.view(np.int64) != y.view(np.int64)
        if relative and column in _SUMS:
            off &= ~np.isclose(x, y, rtol=relative, atol=0)
        if off.any():
            changed[column] = both[off], x[off], y[off]
    gone, came = np.setdiff1d(a, b, assume_unique=True), np.setdiff1d(b, a, assume_unique=True)
    return Differences(gone, came, changed, len(both))


def is_same(first: pa.Table, second: pa.Table) -> bool:
    """Whether two tables hold the same candles, bit for bit (so a value that is not a number equals itself)."""
    if first.num_rows != second.num_rows or not bool((times_of(first) == times_of(second)).all()):
        return False
    return all(
        bool((_values(first, name).view(np.int64) == _values(second, name).view(np.int64)).all())
        for name in CANDLE_COLUMNS
    )


def differing_columns(first: object, second: object) -> list[str]:
    """The candle columns in which two candle records differ."""
    return [name for name in CANDLE_COLUMNS if getattr(first, name) != getattr(second, name)]


def _values(table: pa.Table, column: str) -> Any:
    return table.column(column).combine_chunks().to_numpy(zero_copy_only=False)


def show_time(time_us: Any) -> str:
    """A time to the second, such as ``2025-03-01T09:00:00Z``."""
    return f"{np.datetime64(int(time_us), 'us').astype('datetime64[s]')}Z"
