"""The trade tape: random access, exact folds, the same bits everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbone.model import Span
from backbone.simulator.market.catalogue import catalogue
from backbone.simulator.market.tape import (
    BOUGHT,
    CELL_US,
    CLOSE,
    HIGH,
    LOW,
    OPEN,
    STAMP,
    VALUE,
    VALUE_LOW,
    VOLUME,
    Tape,
    fold_trades,
    value_as_float,
)

KRW = [m for m in catalogue().values() if m.quote == "KRW"]
TAPE = Tape(7, KRW)
PINNED = [
    0,
    206155000,
    206394000,
    206155000,
    206226000,
    53441184,
    110222649,
    16709000,
    17160841,
    1755820846210,
]  # time … stamp of seed 7, KRW-BTC, 2025-08-22T00:00
PLACE = {m.code: i for i, m in enumerate(KRW)}
START = 1_755_820_800_000_000 // CELL_US  # 2025-08-22
CODES = ["KRW-BTC", "KRW-XRP", "KRW-PEPE", "KRW-KITE", "KRW-POND"]


@settings(max_examples=40, deadline=None)
@given(
    code=st.sampled_from(CODES), first=st.integers(-40_000, 0), length=st.integers(1, 3000), cells=st.integers(1, 96)
)
def test_fold_of_cells_equals_the_fold_of_their_trades(code: str, first: int, length: int, cells: int) -> None:
    """Closed forms of a cell are exactly what its single trades add up to, whatever the candle length."""
    found = TAPE.cells(START + first, START + first + length, [PLACE[code]])
    trades = TAPE.trades(found)
    span = cells * CELL_US
    left = TAPE.rows(found, found.cell * CELL_US // span)
    right = fold_trades(trades, trades.time_ms * 1000 // span)
    assert np.array_equal(left, right)


def test_fold_equals_a_plain_loop_over_trades() -> None:
    """Open first, close last, extremes, and integer sums: checked against Python's own arithmetic."""
    found = TAPE.cells(START, START + 8, [0])
    trades = TAPE.trades(found)
    rows = TAPE.rows(found, found.cell // 8)
    prices, volumes = trades.price.tolist(), trades.volume.tolist()
    assert rows[OPEN, 0] == prices[0]
    assert rows[CLOSE, 0] == prices[-1]
    assert (rows[HIGH, 0], rows[LOW, 0]) == (max(prices), min(prices))
    assert rows[VOLUME, 0] == sum(volumes)
    turnover = sum(p * v for p, v in zip(prices, volumes, strict=True))
    assert int(rows[VALUE, 0]) * 10**8 + int(rows[VALUE_LOW, 0]) == turnover
    assert rows[BOUGHT, 0] == sum(v for v, buy in zip(volumes, trades.is_buy, strict=True) if buy)
    assert rows[STAMP, 0] == trades.time_ms[-1]


@settings(max_examples=40, deadline=None)
@given(code=st.sampled_from(CODES), first=st.integers(-40_000, 0), cut=st.integers(0, 800))
def test_any_interval_gives_the_same_cells_as_a_longer_one(code: str, first: int, cut: int) -> None:
    """Random access: asking in two pieces is asking once."""
    a, b, c = START + first, START + first + cut, START + first + 800
    which = [PLACE[code]]
    whole = TAPE.cells(a, c, which)
    left, right = TAPE.cells(a, b, which), TAPE.cells(b, c, which)
    for name in ("cell", "hash", "count", "bid", "tick", "volume", "bought"):
        joined = np.concatenate([getattr(left, name), getattr(right, name)])
        assert np.array_equal(joined, getattr(whole, name))


def test_many_markets_at_once_equal_one_by_one() -> None:
    """A batch over the whole quote currency is the sum of its markets."""
    together = TAPE.cells(START, START + 240)
    rows = TAPE.rows(together, together.cell // 4)
    assert list(np.unique(together.market)) == sorted(set(together.market.tolist()))
    alone = [TAPE.cells(START, START + 240, [i]) for i in range(len(KRW))]
    singles = np.concatenate([TAPE.rows(c, c.cell // 4) for c in alone], axis=1)
    assert np.array_equal(rows, singles)


def test_trades_are_ordered_and_share_milliseconds() -> None:
    """Times never step back, several trades may share one, and each has its ordinal in it."""
    trades = TAPE.trades(TAPE.cells(START, START + 5760, [0]))
    assert (np.diff(trades.time_ms) >= 0).all()
    assert trades.ordinal.max() == 2
    pairs = set(zip(trades.time_ms.tolist(), trades.ordinal.tolist(), strict=True))
    assert len(pairs) == len(trades)
    assert (trades.volume >= 1).all()


def test_trades_hold_twins_that_differ_in_nothing_but_their_ordinal() -> None:
    """Same millisecond, same price, same size: only the id differs."""
    trades = TAPE.trades(TAPE.cells(START, START + 5760, [0]))
    keys = list(zip(trades.time_ms.tolist(), trades.price.tolist(), trades.volume.tolist(), strict=True))
    assert len(set(keys)) < len(keys)


def test_prices_lie_on_the_tick_grid() -> None:
    """Every trade price is a multiple of the tick of its band."""
    for code in ("KRW-BTC", "KRW-XRP", "KRW-PEPE"):
        cells = TAPE.cells(START, START + 2000, [PLACE[code]])
        assert (cells.bid % cells.tick == 0).all()


def test_seed_and_market_decide_the_tape_and_nothing_else() -> None:
    """Another seed is another history; the same seed is the same, bit by bit."""
    again, other = Tape(7, KRW), Tape(8, KRW)
    rows = [t.rows(c := t.cells(START, START + 400, [0]), c.cell) for t in (TAPE, again, other)]
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


def test_tape_is_pinned_to_the_last_bit() -> None:
    """The market of seed 7 is the same on every machine and in every release: notebooks print it."""
    cells = TAPE.cells(START, START + 4, [0])
    row = TAPE.rows(cells, np.zeros(len(cells), dtype=np.int64))[:, 0]
    assert row.tolist() == PINNED


def test_nothing_is_traded_before_listing_or_in_an_outage() -> None:
    """Both leave holes, outages in every market."""
    listed = KRW[0].listed_us // CELL_US
    assert len(TAPE.cells(listed - 100, listed, [0])) == 0
    assert len(TAPE.cells(listed, listed + 100, [0])) > 90
    down = Tape(7, KRW, [Span(START * CELL_US, (START + 240) * CELL_US)])
    assert len(down.cells(START, START + 240)) == 0
    assert np.array_equal(down.cells(START - 9, START, [0]).bid, TAPE.cells(START - 9, START, [0]).bid)


@pytest.mark.parametrize(("code", "share"), [("KRW-BTC", 1.0), ("KRW-BICO", 0.07), ("KRW-SLP", 1 / 60)])
def test_liquidity_is_as_the_catalogue_says(code: str, share: float) -> None:
    """The share of minutes with a trade, over thirty days."""
    cells = TAPE.cells(START - 30 * 5760, START, [PLACE[code]])
    found = len(np.unique(cells.cell // 4)) / (30 * 1440)
    assert found == pytest.approx(share, rel=0.15)


def test_turnover_is_rounded_once() -> None:
    """A turnover is the float64 nearest to its decimal, small or large."""
    rows = np.zeros((STAMP + 1, 2), np.int64)
    rows[VALUE], rows[VALUE_LOW] = [163_966_832, 16_803_209_252], [70_618_000, 21_234_567]
    assert value_as_float(rows[:, :1], 18).tolist() == [0.016396683270618]
    assert value_as_float(rows[:, 1:], 8).tolist() == [16803209252.21234567]
