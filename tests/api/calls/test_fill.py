"""Candles for quiet slots against a slot-by-slot model."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.api.calls.fill import fill_quiet, parse_fill
from backbone.errors import InputError
from backbone.model import CANDLE_COLUMNS, CANDLE_SCHEMA, Span
from backbone.timeframe import parse_timeframe

MINUTE = parse_timeframe("1m")
STEP = MINUTE.step_us
START = 1_755_820_800_000_000


def table_of(slots: list[int], timeframe: str = "1m") -> pa.Table:
    tf = parse_timeframe(timeframe)
    first = tf.floor(START)
    columns = [[100.0 + 10 * i + j for i in slots] for j in range(len(CANDLE_COLUMNS))]
    times = pa.array([tf.next(first, i) for i in slots], pa.int64()).cast(CANDLE_SCHEMA.field("time").type)
    return pa.Table.from_arrays([times, *(pa.array(c, pa.float64()) for c in columns)], schema=CANDLE_SCHEMA)


slots = st.sets(st.integers(0, 19))


@given(real=slots, lost=st.sets(st.integers(0, 19), max_size=8), before=st.one_of(st.none(), st.just(55.0)))
def test_ffill_equals_a_walk_over_the_slots(real: set[int], lost: set[int], before: float | None) -> None:
    """A quiet slot has the last close that is known without a gap in between; a gap has no row."""
    real -= lost
    gaps = [Span(START + i * STEP, START + (i + 1) * STEP) for i in sorted(lost)]
    filled = fill_quiet(table_of(sorted(real)), MINUTE, Span(START, START + 20 * STEP), gaps, "ffill", before)
    expected: list[tuple[int, float, bool]] = []
    known = math.nan if before is None else before
    for i in range(20):
        if i in lost:
            known = math.nan
            continue
        if i in real:
            known = 100.0 + 10 * i + 3
        expected.append((i, known, i not in real))
    rows = filled.to_pylist()
    assert [r["synthetic"] for r in rows] == [e[2] for e in expected]
    for row, (i, close, synthetic) in zip(rows, expected, strict=True):
        assert row["time"].timestamp() * 1e6 == START + i * STEP
        assert row["close"] == close or (math.isnan(row["close"]) and math.isnan(close))
        if synthetic:
            assert (row["volume"], row["value"]) == (0.0, 0.0)
            assert str(row["open"]) == str(row["high"]) == str(row["low"]) == str(row["close"])
        else:
            assert row["open"] == 100.0 + 10 * i


@given(real=slots)
def test_nan_fill_has_no_price(real: set[int]) -> None:
    """With ``nan`` a quiet slot has no price, and nobody traded."""
    filled = fill_quiet(table_of(sorted(real)), MINUTE, Span(START, START + 20 * STEP), [], "nan", None)
    assert filled.num_rows == 20
    for i, row in enumerate(filled.to_pylist()):
        assert row["synthetic"] == (i not in real)
        assert math.isnan(row["close"]) == (i not in real)
        assert (row["volume"] == 0) == (i not in real)


@pytest.mark.parametrize("timeframe", ["1M", "1y", "1w"])
def test_fill_of_calendar_candles_steps_by_the_calendar(timeframe: str) -> None:
    """Months and years are as long as they are."""
    tf = parse_timeframe(timeframe)
    first = tf.floor(START)
    filled = fill_quiet(table_of([0, 3], timeframe), tf, Span(first, tf.next(first, 5)), [], "ffill", None)
    times = filled.column("time").cast(pa.int64()).to_pylist()
    assert times == [tf.next(first, i) for i in range(5)]
    assert filled.column("synthetic").to_pylist() == [False, True, True, False, True]


def test_fill_keeps_the_candle_schema() -> None:
    """The columns and types of candles, and a bool besides, for zero rows as well."""
    for span in (Span(START, START + STEP), Span(START, START)):
        filled = fill_quiet(table_of([]), MINUTE, span, [], "ffill", None)
        assert filled.schema.names == [*CANDLE_SCHEMA.names, "synthetic"]
        assert filled.schema.field("synthetic").type == pa.bool_()


@pytest.mark.parametrize("value", ["zero", True, 0, "FFILL", ["ffill"]])
def test_fill_word_unknown_is_refused(value: object) -> None:
    """Only what there is."""
    with pytest.raises(InputError):
        parse_fill(value)
    assert [parse_fill(each) for each in (None, "ffill", "nan")] == [None, "ffill", "nan"]
