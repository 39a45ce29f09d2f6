"""Candles for the quiet slots, where somebody asks for them: marked, never stored, never mistaken for real ones.

Only slots known to be quiet are filled; a slot that was never asked about stays out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from backbone.candle_table import times_of
from backbone.errors import InputError
from backbone.model import CANDLE_COLUMNS, CANDLE_SCHEMA, Span
from backbone.timeframe import Timeframe

__all__ = ["fill_quiet", "parse_fill"]


def parse_fill(value: object) -> str | None:
    """``None``, ``"ffill"`` or ``"nan"``."""
    if value is None or value in ("ffill", "nan"):
        return value
    raise InputError("fill", value, '"ffill" (the last close, no volume), "nan", or None')


def fill_quiet(
    table: pa.Table, timeframe: Timeframe, span: Span, gaps: Sequence[Span], how: str, before: float | None
) -> pa.Table:
    """`table` with a row for every slot of `span` outside `gaps`, and a bool column ``synthetic``.

    ``ffill``: prices are the last close (`before` is the one before the span, None where there is none), volume and
    value zero; after a gap the last close is unknown, so prices are NaN until the next candle. ``nan``: prices NaN,
    volume and value zero.
    """
    grid = _grid(timeframe, span, gaps)
    times = times_of(table)
    real = np.isin(grid, times, assume_unique=True)
    columns: dict[str, np.ndarray] = {}
    for name in CANDLE_COLUMNS:
        column = np.full(len(grid), 0.0 if name in ("volume", "value") else np.nan)
        column[real] = table.column(name).to_numpy()
        columns[name] = column
    if how == "ffill":
        _carry_close(columns, real, before, np.searchsorted(grid, [gap.end for gap in gaps]))
    arrays = [pa.array(grid).cast(CANDLE_SCHEMA.field("time").type)]
    arrays += [pa.array(columns[name]) for name in CANDLE_COLUMNS]
    filled = pa.Table.from_arrays(arrays, schema=CANDLE_SCHEMA)
    return filled.append_column("synthetic", pa.array(~real))


def _grid(timeframe: Timeframe, span: Span, gaps: Sequence[Span]) -> np.ndarray:
    first, last = timeframe.ceil(span.start), timeframe.ceil(span.end)
    if timeframe.is_calendar:
        grid = np.array([timeframe.next(first, i) for i in range(timeframe.count(span))], dtype=np.int64)
    else:
        grid = np.arange(first, last, timeframe.step_us, dtype=np.int64)
    for gap in gaps:
        grid = grid[(grid < gap.start) | (grid >= gap.end)]
    return grid


def _carry_close(columns: dict[str, np.ndarray], real: np.ndarray, before: float | None, broken: np.ndarray) -> None:
    """Fill prices with the last close; at the places `broken` it is not known any more."""
    places = np.arange(len(real))
    last = np.where(real, places, -1)
    np.maximum.accumulate(last, out=last)
    close = columns["close"]
    carried = np.where(last >= 0, close[np.maximum(last, 0)], np.nan if before is None else before)
    since = np.full(len(real), -1)
    since[broken[broken < len(real)]] = broken[broken < len(real)]
    np.maximum.accumulate(since, out=since)
    carried[last < since] = np.nan
    for name in ("open", "high", "low", "close"):
        columns[name] = np.where(real, columns[name], carried)
