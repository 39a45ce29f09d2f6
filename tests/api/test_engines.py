"""Backtest engines as people install them, on our frames as they come."""

from __future__ import annotations

import pandas as pd
import pytest

from backbone import Backbone, to_ohlc

# the engines' own calls, not ours
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

LIMIT = 500  # the quota is not what is tested here
START, END = "2025-07-01", "2025-08-01"


def test_backtesting_runs_on_a_frame(client: Backbone) -> None:
    """A strategy that buys once holds what the frame says: bought at the second open, valued at the last close."""
    backtesting = pytest.importorskip("backtesting")

    class Once(backtesting.Strategy):  # type: ignore[misc, name-defined]
        def init(self) -> None:
            pass

        def next(self) -> None:
            if not self.position:
                self.buy(size=1)

    frame = to_ohlc(client.candles("KRW-XRP", "1h", START, END), "backtesting")
    stats = backtesting.Backtest(frame, Once, cash=1e9, finalize_trades=True).run()
    assert stats["Start"] == frame.index[0]
    (trade,) = stats["_trades"].to_dict("records")
    assert trade["EntryPrice"] == frame["Open"].iloc[2], "the engine calls the strategy from the second candle on"
    assert trade["ExitPrice"] in (frame["Close"].iloc[-1], frame["Open"].iloc[-1])


def test_vectorbt_runs_on_a_wide_frame(client: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wide="close"` is what it takes: a portfolio held from first to last returns the ratio of the closes, a market a
    column; a single market's frame has the frequency that its figures need."""
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # its compiling takes half a minute and is not what is tested
    vectorbt = pytest.importorskip("vectorbt")
    close = client.candles(["KRW-BTC", "KRW-ETH"], "1d", START, END, wide="close")
    found = vectorbt.Portfolio.from_holding(to_ohlc(close))
    assert found.wrapper.freq == pd.Timedelta("1D")
    found = found.total_return()
    pd.testing.assert_series_equal(
        found, close.iloc[-1] / close.iloc[0] - 1, check_names=False, check_index_type=False, rtol=1e-9
    )
    one = to_ohlc(client.candles("KRW-BTC", "1d", START, END))
    assert one.index.freq is not None
    assert vectorbt.Portfolio.from_holding(one["Close"]).stats()["Total Return [%]"] == pytest.approx(
        100 * (one["Close"].iloc[-1] / one["Close"].iloc[0] - 1)
    )
