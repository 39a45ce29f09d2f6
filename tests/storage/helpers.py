"""Candles that are a pure function of their open, and small helpers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from backbone.model import CANDLE_COLUMNS, CANDLE_SCHEMA, Span
from backbone.storage.store import CandleStore
from backbone.testing import ManualClock
from backbone.timeframe import parse_timeframe

MINUTE_US = 60_000_000
MAY = 1_714_521_600_000_000  # 2024-05-01T00:00:00Z
MINUTE, SECOND, DAY = parse_timeframe("1m"), parse_timeframe("1s"), parse_timeframe("1d")


def candles(times: Iterable[int], salt: int = 0) -> pa.Table:
    """Candles that open at `times`; another `salt` gives other prices."""
    opens = np.fromiter(times, dtype=np.int64)
    base = 1000.0 + (opens // 1_000_000 * 2_654_435_761 + salt * 97) % 100_003
    volume = (opens // 1_000_000 % 991 + 1) / 7
    columns = [base, base + 20, base - 10, base + 5, volume, volume * base]
    arrays = [pa.array(opens).view(CANDLE_SCHEMA.field("time").type), *map(pa.array, columns)]
    return pa.Table.from_arrays(arrays, schema=CANDLE_SCHEMA)


def minutes(first: int, last: int, salt: int = 0, *, every: int = 1) -> pa.Table:
    """Candles of every minute (every so many) from `first` to before `last`, counted from `MAY`."""
    return candles((MAY + i * MINUTE_US for i in range(first, last, every)), salt)


def span(first: int, last: int) -> Span:
    """From minute `first` to minute `last`, counted from `MAY`."""
    return Span(MAY + first * MINUTE_US, MAY + last * MINUTE_US)


def open_store(root: Path, clock: ManualClock | None = None, **options: object) -> CandleStore:
    return CandleStore(root, "upbit", clock=clock or ManualClock(MAY), **options)  # type: ignore[arg-type]


def opens(table: pa.Table) -> list[int]:
    """The opens of `table`, in microseconds."""
    return table.column("time").cast(pa.int64()).to_pylist()


def rows_of(table: pa.Table) -> dict[int, tuple[float, ...]]:
    """`table` as open → the six numbers."""
    columns = [table.column(name).to_pylist() for name in CANDLE_COLUMNS]
    return dict(zip(opens(table), zip(*columns, strict=True), strict=True))


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def in_child(holds: Callable[[], object], *, timeout_s: int = 20) -> bool:
    """Whether `holds` is true in a forked child; a child that hangs is ended."""
    import signal

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child does nothing that a thread could hold
        child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(timeout_s)
            code = 0 if holds() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
