"""Longer candles made of one-minute ones, exactly as the venue makes them.

A longer candle opens on the UTC grid of its timeframe with the first minute's open, closes with the last
one's close, spans their extremes and sums volume and value; minutes without a trade add nothing, and a
stretch without any trade has no candle. Sums are carried at extended precision and rounded once. Pure,
vectorised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from backbone.candle_table import times_of
from backbone.model import CANDLE_SCHEMA, empty_candles
from backbone.timeframe import Timeframe

__all__ = ["fold"]


def fold(table: pa.Table, timeframe: Timeframe) -> pa.Table:
    """The `timeframe` candles of a sorted table of shorter ones.

    A candle is only as whole as the minutes given: leave out the ones whose minutes are not all known.
    """
    if not table.num_rows:
        return empty_candles()
    table = table.combine_chunks()
    opens = timeframe.floor_array(times_of(table))
    first = np.flatnonzero(np.concatenate(([True], opens[1:] != opens[:-1])))
    last = np.append(first[1:], len(opens)) - 1
    column = {name: table.column(name).to_numpy() for name in table.column_names[1:]}
    columns = [
        pa.array(opens[first]).view(CANDLE_SCHEMA.field("time").type),
        pa.array(column["open"][first]),
        pa.array(np.maximum.reduceat(column["high"], first)),
        pa.array(np.minimum.reduceat(column["low"], first)),
        pa.array(column["close"][last]),
        pa.array(_sums(column["volume"], first)),
        pa.array(_sums(column["value"], first)),
    ]
    return pa.Table.from_arrays(columns, schema=CANDLE_SCHEMA)


def _sums(values: Any, first: Any) -> Any:
    return np.add.reduceat(values.astype(np.longdouble), first).astype(np.float64)
