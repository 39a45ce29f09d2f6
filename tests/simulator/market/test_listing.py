"""Who is listed, and what scripts change about it."""

from __future__ import annotations

import pytest

from backbone.model import Span
from backbone.simulator import Exchange
from backbone.simulator.market.listing import UnknownMarketError
from backbone.timeframe import DAY_US
from tests.simulator.conftest import DAY, NOW_US


def test_delisted_market_vanishes_and_renamed_one_keeps_its_history() -> None:
    """Old codes are unknown; the new code has the old candles, to the last digit."""
    exchange = Exchange(7)
    before = exchange.candles("KRW-XRP", "1h", None, 50, NOW_US)
    exchange.rename("KRW-XRP", "KRW-XRP2")
    exchange.delist("KRW-ETH")
    after = exchange.candles("KRW-XRP2", "1h", None, 50, NOW_US)
    assert [{**row, "market": "KRW-XRP"} for row in after] == before
    for code in ("KRW-XRP", "KRW-ETH"):
        with pytest.raises(UnknownMarketError):
            exchange.ticker(code, NOW_US)
    assert "KRW-ETH" not in {row["market"] for row in exchange.markets()}


def test_restated_opens_move_within_the_candle_and_nothing_else_does() -> None:
    """As the venue did with the opens of 2022 to 2024."""
    exchange = Exchange(7)
    before = exchange.candle_table("KRW-BTC", "1h", DAY - DAY_US, DAY).to_pandas()
    exchange.restate("KRW-BTC", Span(DAY - DAY_US, DAY - DAY_US // 2), shift=0.0005)
    after = exchange.candle_table("KRW-BTC", "1h", DAY - DAY_US, DAY).to_pandas()
    assert (after.open != before.open).sum() > 6
    assert (after.open[12:] == before.open[12:]).all()
    assert ((after.low <= after.open) & (after.open <= after.high)).all()
    assert after.drop(columns="open").equals(before.drop(columns="open"))
