"""The synthetic market: every timeframe is a fold of one tape, whatever the order of asking."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbone.model import Span
from backbone.simulator import Exchange
from backbone.simulator.market import exchange as module
from backbone.simulator.market.venue import Bars, Executions, fold_bars
from backbone.timeframe import DAY_US, MINUTE_US, TIMEFRAMES, Timeframe
from tests.simulator.conftest import DAY, NOW_US

SHORT = ["1s", "1m", "3m", "5m", "10m", "15m", "30m", "1h", "4h", "1d"]


def _fold(trades: Executions, timeframe: Timeframe) -> dict[int, tuple[float, ...]]:
    """Candles by open, by a plain loop."""
    found: dict[int, list[tuple[float, float]]] = {}
    for ms, price, volume in zip(trades.time_ms.tolist(), trades.price, trades.volume, strict=True):
        found.setdefault(timeframe.floor(ms * 1000), []).append((float(price), float(volume)))
    return {
        at: (
            p[0][0],
            max(x for x, _ in p),
            min(x for x, _ in p),
            p[-1][0],
            sum(v for _, v in p),
            sum(x * v for x, v in p),
        )
        for at, p in found.items()
    }


def _by_open(bars: Bars) -> dict[int, tuple[float, ...]]:
    columns = (bars.open, bars.high, bars.low, bars.close, bars.volume, bars.value)
    return {int(t): tuple(float(c[i]) for c in columns) for i, t in enumerate(bars.time_us)}


def _assert_same(left: dict[int, tuple[float, ...]], right: dict[int, tuple[float, ...]]) -> None:
    assert left.keys() == right.keys()
    for at, row in left.items():
        assert row[:4] == right[at][:4]
        assert row[4:] == pytest.approx(right[at][4:], rel=1e-11)


@settings(max_examples=25, deadline=None)
@given(
    timeframe=st.sampled_from(SHORT),
    code=st.sampled_from(["KRW-BTC", "KRW-KITE", "KRW-POND", "BTC-ETH"]),
    back=st.integers(1, 300),
)
def test_candles_are_the_fold_of_the_trades(timeframe: str, code: str, back: int) -> None:
    """Open, high, low, close exactly; volume and value to the rounding of a float sum."""
    exchange = Exchange(7)
    length, market = TIMEFRAMES[timeframe], exchange.market(code)
    end = length.floor(DAY - back * 5 * MINUTE_US)
    start = end - max(length.step_us, 30 * MINUTE_US) // length.step_us * length.step_us
    trades = exchange.executions(market, start, end)
    _assert_same(_by_open(exchange.bars(market, length, start, end)), _fold(trades, length))


@pytest.mark.parametrize("timeframe", ["5m", "1h", "4h", "1d", "1w", "1M"])
def test_long_candles_are_the_fold_of_the_minutes(exchange: Exchange, timeframe: str) -> None:
    """A thin market over two months, where blocks, chunks and calendars meet."""
    length, market = TIMEFRAMES[timeframe], exchange.market("KRW-BICO")
    start = length.ceil(DAY - 75 * DAY_US)
    end = length.floor(DAY)
    folded = fold_bars(exchange.bars(market, TIMEFRAMES["1m"], start, end), length)
    _assert_same(_by_open(exchange.bars(market, length, start, end)), _by_open(folded))


@pytest.mark.parametrize("timeframe", ["1m", "5m", "1h", "1d", "1w"])
def test_forming_candle_is_the_fold_of_the_trades_so_far(exchange: Exchange, timeframe: str) -> None:
    """Up to and including now, to the millisecond."""
    length, market = TIMEFRAMES[timeframe], exchange.market("KRW-ETH")
    start = length.floor(NOW_US)
    trades = exchange.executions(market, start, NOW_US + 1)
    _assert_same(_by_open(exchange.forming(market, length, NOW_US)), _fold(trades, length))


def test_forming_candle_of_a_quiet_interval_does_not_exist(exchange: Exchange) -> None:
    """The newest row is then an older one."""
    market = exchange.market("KRW-SLP")
    quiet = next(
        at
        for at in range(DAY, DAY + 600 * MINUTE_US, MINUTE_US)
        if not len(exchange.executions(market, at, at + MINUTE_US))
    )
    assert len(exchange.forming(market, TIMEFRAMES["1m"], quiet + 30_000_000)) == 0
    newest = exchange.newest_bars(market, TIMEFRAMES["1m"], None, 1, quiet + 30_000_000)
    assert int(newest.time_us[0]) < quiet


def test_forming_candle_goes_on_from_what_was_folded(exchange: Exchange) -> None:
    """The clock runs and is set back, an outage changes what was traded: as an exchange has it that was not asked."""
    market, length = exchange.market("KRW-BTC"), TIMEFRAMES["1d"]
    asked = Exchange(7)
    for later in (0, 7_000_000, 16_000_000, 3_600_000_000, 30_000_000):
        found = asked.forming(market, length, NOW_US + later)
        _assert_same(_by_open(found), _by_open(Exchange(7).forming(market, length, NOW_US + later)))
    asked.close_span(Span(NOW_US - 3_600_000_000, NOW_US))
    shorter = asked.forming(market, length, NOW_US + 30_000_000)
    assert shorter.volume[0] < found.volume[0]


def test_order_of_asking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches warm or cold, wide or narrow: one answer."""
    warm, cold = Exchange(7), Exchange(7)
    for back in (0, 5, 3, 9, 1):
        warm.candle_table("KRW-XRP", "1m", DAY - back * DAY_US, DAY - back * DAY_US + 3 * DAY_US)
    wide = warm.candle_table("KRW-XRP", "1m", DAY - 9 * DAY_US, DAY)
    monkeypatch.setattr(module, "_BLOCKS", _blocks(2**20))
    parts = [cold.candle_table("KRW-XRP", "1m", DAY - n * DAY_US, DAY - (n - 1) * DAY_US) for n in range(9, 0, -1)]
    assert wide.num_rows == sum(p.num_rows for p in parts)
    assert wide["value"].to_pylist() == [v for p in parts for v in p["value"].to_pylist()]


def test_executions_are_half_open_and_last_execution_is_before(exchange: Exchange) -> None:
    """The trade at the end belongs to what follows."""
    market = exchange.market("KRW-BTC")
    trades = exchange.executions(market, DAY, DAY + MINUTE_US)
    at = int(trades.time_ms[5]) * 1000
    left, right = exchange.executions(market, DAY, at), exchange.executions(market, at, DAY + MINUTE_US)
    assert len(left) + len(right) == len(trades)
    assert (left.time_ms < trades.time_ms[5]).all()
    last = exchange.last_execution(market, at)
    assert last.sequential_id[0] == left.sequential_id[-1]
    assert len(exchange.last_execution(market, market.listed_us)) == 0


def _blocks(most: int) -> module._Cache[Bars]:
    return module._Cache(most, module._BLOCKS._size_of)


def test_cache_of_blocks_stays_within_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old blocks make room."""
    blocks = _blocks(400_000)
    monkeypatch.setattr(module, "_BLOCKS", blocks)
    exchange = Exchange(7)
    for day in range(12):
        exchange.candles("KRW-BTC", "1m", DAY - day * DAY_US, 200, NOW_US)
    assert 0 < sum(len(b) for b in blocks._kept.values()) * 64 <= 400_000
    kept = exchange.candles("KRW-BTC", "1m", DAY, 200, NOW_US)
    monkeypatch.setattr(module, "_BLOCKS", _blocks(400_000))
    assert kept == Exchange(7).candles("KRW-BTC", "1m", DAY, 200, NOW_US)


def test_exchanges_share_what_was_computed_from_the_same_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second exchange of the seed computes nothing again; another seed, or an outage, is another market."""
    monkeypatch.setattr(module, "_BLOCKS", _blocks(2**24))
    made: list[int] = []
    monkeypatch.setattr(module, "_bars_of", lambda *args, of=module._bars_of: made.append(1) or of(*args))
    first = Exchange(7).candles("KRW-BTC", "1m", DAY, 200, NOW_US)
    once = len(made)
    assert Exchange(7, markets=["KRW-BTC"]).candles("KRW-BTC", "1m", DAY, 200, NOW_US) == first
    assert len(made) == once > 0
    assert Exchange(8).candles("KRW-BTC", "1m", DAY, 200, NOW_US) != first
    closed = Exchange(7)
    closed.close_span(Span(DAY - 60 * MINUTE_US, DAY))
    assert closed.candles("KRW-BTC", "1m", DAY, 1, NOW_US) != first[:1]
    assert Exchange(7).candles("KRW-BTC", "1m", DAY, 200, NOW_US) == first


def test_exchanges_share_the_sums_of_tickers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One set of sums for exchanges of a seed, whatever they list; another outage, and another seed, has its own."""
    monkeypatch.setattr(module, "_RUNNING_SUMS", module._Cache(6, lambda _: 1))
    filled: list[int] = []
    fill = module._RunningSums._fill_locked
    monkeypatch.setattr(module._RunningSums, "_fill_locked", lambda self, *of: filled.append(1) or fill(self, *of))
    first = Exchange(7).ticker("KRW-BTC", NOW_US)
    assert Exchange(7, markets=["KRW-BTC"]).ticker("KRW-BTC", NOW_US) == first
    assert len(filled) == 1
    closed = Exchange(7)
    closed.close_span(Span(NOW_US - 60 * MINUTE_US, NOW_US))
    assert closed.ticker("KRW-BTC", NOW_US)["acc_trade_volume"] < first["acc_trade_volume"]
    assert Exchange(8).ticker("KRW-BTC", NOW_US) != first
    assert Exchange(7).ticker("KRW-BTC", NOW_US) == first


def test_seeds_differ_and_prices_stay_in_reach() -> None:
    """Another seed is another market at plausible prices."""
    closes = [Exchange(seed).ticker("KRW-BTC", NOW_US)["trade_price"] for seed in range(1, 9)]
    assert len(set(closes)) == 8
    assert all(20e6 < close < 1.5e9 for close in closes)
    assert np.median(closes) == pytest.approx(160e6, rel=0.7)
