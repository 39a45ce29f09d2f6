"""The rule about redenominations, by property: what is one, and what only looks like one."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.coordinator.units import Comparison, compare_units, factor_of, is_leap
from backbone.model import CANDLE_SCHEMA
from backbone.simulator.market.exchange import Exchange

FACTORS = ["10", "100", "1000", "0.1", "0.01", "0.001", "4", "0.25", "2", "0.5", "8"]


def table(rows: list[tuple[int, ...]], price_places: int, volume_places: int, factor: Fraction = Fraction(1)) -> Any:
    """Candles from integer rows (open, high, low, close, volume), as decimals, redenominated by `factor`, rounded to
    eight places; a turnover of its own."""
    columns: list[Any] = [pa.array(np.arange(len(rows)) * 60_000_000).view(CANDLE_SCHEMA.field("time").type)]
    for at in range(5):
        places, share = (volume_places, 1 / factor) if at == 4 else (price_places, factor)
        columns.append(pa.array([float(round(Fraction(row[at], 10**places) * share, 8)) for row in rows]))
    columns.append(pa.array([float(Fraction(row[0] * row[4], 10 ** (price_places + volume_places))) for row in rows]))
    return pa.Table.from_arrays(columns, schema=CANDLE_SCHEMA)


prices = st.integers(1_000, 10**9)
candle_rows = st.lists(st.tuples(prices, prices, prices, prices, st.integers(10**6, 10**12)), min_size=1, max_size=40)


@given(candle_rows, st.integers(0, 4), st.sampled_from(FACTORS))
def test_one_factor_in_all_is_found(rows: Any, places: int, factor: str) -> None:
    """Whatever the decimals, the factor that was applied is the one that is reported, to the last digit."""
    share = Fraction(factor)
    found = compare_units(table(rows, places, 8), table(rows, places, 8, share))
    assert (found.common, found.differing) == (len(rows), len(rows))
    assert found.factor == pytest.approx(float(share), rel=1e-12)


@given(candle_rows, st.integers(0, 4))
def test_the_same_candles_do_not_differ(rows: Any, places: int) -> None:
    """Not even where a sum of float64 is off in its last digit."""
    held = table(rows, places, 8)
    off = held.set_column(5, "volume", pa.array(held.column("volume").to_numpy() * (1 + 2e-16)))
    assert compare_units(held, off) == Comparison(len(rows), 0)


@given(candle_rows.filter(lambda rows: len(rows) > 2), st.sampled_from(FACTORS), st.data())
def test_one_candle_that_moved_otherwise_is_no_constant_factor(rows: Any, factor: str, data: Any) -> None:
    """A corrected candle among the redenominated, or a turnover that changed, is no constant factor."""
    share = Fraction(factor)
    at = data.draw(st.integers(0, len(rows) - 1))
    received = table(rows, 2, 8, share)
    for name in data.draw(st.sampled_from([("open", "high"), ("volume",), ("value",)])):
        column = received.column(name).to_numpy().copy()
        column[at] *= 1.3
        received = received.set_column(received.schema.get_field_index(name), name, pa.array(column))
    assert compare_units(table(rows, 2, 8), received).factor is None


@given(candle_rows, st.sampled_from([1.0005, 0.9, 1.3]))
def test_price_alone_is_no_unit(rows: Any, shift: float) -> None:
    """Prices that moved while volumes did not are corrections, be they moved by one factor."""
    held = table(rows, 2, 8)
    moved = [pa.array(held.column(name).to_numpy() * shift) for name in ("open", "high", "low", "close")]
    received = pa.Table.from_arrays(
        [held.column("time"), *moved, held.column("volume"), held.column("value")], schema=CANDLE_SCHEMA
    )
    assert compare_units(held, received).factor is None


@pytest.mark.parametrize("market", ["KRW-BTC", "KRW-SHIB", "BTC-ETH", "USDT-XRP", "KRW-XRP"])
@pytest.mark.parametrize("factor", ["10", "0.1", "4", "1000"])
def test_markets_of_every_size(market: str, factor: str) -> None:
    """Prices of eight decimals and prices of nine figures: what the embedded exchange rescales is recognised."""
    time_us = 1_755_820_800_000_000
    exchange = Exchange(7)
    before, again = shown(exchange, market, time_us), shown(exchange, market, time_us)
    exchange.rescale(market, factor)
    assert compare_units(before, again) == Comparison(60, 0)
    found = compare_units(before, shown(exchange, market, time_us))
    assert found == Comparison(60, 60, float(factor))


def shown(exchange: Exchange, market: str, time_us: int) -> Any:
    """The newest hours of an exchange, as a table."""
    rows = exchange.candles(market, "1h", to_us=time_us, count=60, now_us=time_us)[::-1]
    times = pa.array(np.arange(len(rows)) * 3_600_000_000).view(CANDLE_SCHEMA.field("time").type)
    names = ("opening_price", "high_price", "low_price", "trade_price", "candle_acc_trade_volume")
    columns = [pa.array([float(row[name]) for row in rows]) for name in (*names, "candle_acc_trade_price")]
    return pa.Table.from_arrays([times, *columns], schema=CANDLE_SCHEMA)


HALF, TENFOLD = Comparison(5, 2, 10.0), Comparison(200, 200, 10.0)
SAME, NONE, MIXED = Comparison(200, 0), Comparison(0, 0), Comparison(200, 3, 10.0)


@pytest.mark.parametrize(
    ("overlap", "samples", "expected"),
    [
        (Comparison(1, 1, 10.0), [TENFOLD], 10.0),
        (Comparison(1, 1, 10.0), [], 10.0),
        (Comparison(1, 1, 10.0), [NONE], 10.0),
        (Comparison(1, 1, 10.0), [SAME], None),
        (Comparison(1, 1, 10.0), [MIXED], None),
        (Comparison(1, 1, 10.0), [TENFOLD, MIXED], None),
        (Comparison(1, 1, 10.0), [TENFOLD, Comparison(200, 200, 100.0)], None),
        (Comparison(1, 1, 10.0), [TENFOLD, Comparison(200, 200)], None),
        (HALF, [TENFOLD, SAME], 10.0),
        (Comparison(3, 3), [TENFOLD], None),
        (Comparison(3, 0), [], None),
    ],
)
def test_wider_sample_decides(overlap: Comparison, samples: list[Comparison], expected: float | None) -> None:
    """The factor has to hold where it was not looked for; what was stored since may be of the new unit."""
    assert factor_of(overlap, samples) == expected


@pytest.mark.parametrize(("before", "after", "expected"), [(100, 149, False), (100, 67, False), (100, 151, True),
                                                           (100, 10, True), (1, 1, False)])  # fmt: skip
def test_leap_is_asked_about(before: float, after: float, expected: bool) -> None:
    """Both ways."""
    assert is_leap(before, after) is expected
