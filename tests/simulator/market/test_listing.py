"""Who is listed, and what scripts change about it."""

from __future__ import annotations

from functools import cache

import pytest

from backbone.errors import InputError
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


def test_market_is_listed_at_its_time_and_trades_from_then_on() -> None:
    """Unknown before; any code of a known quote currency, of the catalogue or not; listed ones are refused."""
    exchange = Exchange(7, markets=["KRW-BTC"])
    for code in ("KRW-ETH", "KRW-BRANDNEW", "USDT-BRANDNEW"):
        at = DAY + 3_600_000_000
        exchange.list_market(code, at)
        with pytest.raises(UnknownMarketError):
            exchange.candles(code, "1m", None, 5, at - 1)
        rows = exchange.candles(code, "1h", None, 200, at + 5 * 3_600_000_000)
        assert rows[-1]["candle_date_time_utc"] >= "2025-08-22T01:00:00"
        assert code in {row["market"] for row in exchange.markets(now_us=at)}
        assert code not in {row["market"] for row in exchange.markets(now_us=at - 1)}
        assert exchange.tickers([code], at + 24 * 3_600_000_000)
    for code in ("KRW-BTC", "KRW-ETH", "EUR-BTC", "KRW", "krw-x"):
        with pytest.raises(InputError):
            exchange.list_market(code, DAY)


def test_listing_leaves_what_other_markets_traded_alone() -> None:
    """A new market changes no other's history."""
    exchange, other = Exchange(7), Exchange(7)
    exchange.list_market("KRW-BRANDNEW", DAY)
    for code in ("KRW-BTC", "KRW-XRP", "BTC-ETH"):
        assert exchange.candles(code, "5m", None, 200, NOW_US) == other.candles(code, "5m", None, 200, NOW_US)
    assert exchange.tickers(["KRW-BTC"], NOW_US) == other.tickers(["KRW-BTC"], NOW_US)


def test_delisting_is_announced_and_comes_at_its_time() -> None:
    """Until then all is as before."""
    exchange = Exchange(7)
    exchange.delist("KRW-XRP", at_us=DAY + DAY_US)
    assert exchange.ticker("KRW-XRP", NOW_US)
    assert "KRW-XRP" in exchange.listed(DAY + DAY_US - 1)
    assert "KRW-XRP" not in exchange.listed(DAY + DAY_US)
    with pytest.raises(UnknownMarketError):
        exchange.ticker("KRW-XRP", DAY + DAY_US)


@cache
def _unchanged() -> Exchange:
    return Exchange(7)


@pytest.mark.parametrize("factor", [10, 0.001, 4, 1000])
@pytest.mark.parametrize("code", ["KRW-XRP", "KRW-BTC", "BTC-ETH"])
def test_redenomination_moves_the_whole_history_by_one_factor(code: str, factor: float) -> None:
    """Prices times it, volumes divided by it, turnovers as they were: on every endpoint, in decimals."""
    exchange, before = Exchange(7), _unchanged()
    exchange.candles(code, "1m", None, 200, NOW_US)
    exchange.rescale(code, factor)
    for timeframe, count in (("1m", 200), ("1h", 200), ("1d", 30), ("1M", 2)):
        new = exchange.candles(code, timeframe, None, count, NOW_US)
        old = before.candles(code, timeframe, None, count, NOW_US)
        assert [r["candle_date_time_utc"] for r in new] == [r["candle_date_time_utc"] for r in old]
        for n, o in zip(new, old, strict=True):
            for name in ("opening_price", "high_price", "low_price", "trade_price"):
                assert n[name] == pytest.approx(o[name] * factor, rel=1e-12)
            assert n["candle_acc_trade_volume"] * factor == pytest.approx(o["candle_acc_trade_volume"], rel=1e-9)
            assert n["candle_acc_trade_price"] == o["candle_acc_trade_price"]
    new_trade, old_trade = (e.trades(code, NOW_US, 5) for e in (exchange, before))
    assert [t["sequential_id"] for t in new_trade] == [t["sequential_id"] for t in old_trade]
    assert new_trade[0]["trade_price"] == pytest.approx(old_trade[0]["trade_price"] * factor, rel=1e-12)
    ticker, was = exchange.ticker(code, NOW_US), before.ticker(code, NOW_US)
    for name in ("trade_price", "opening_price", "prev_closing_price", "highest_52_week_price"):
        assert ticker[name] == pytest.approx(was[name] * factor, rel=1e-12)
    assert ticker["acc_trade_volume"] * factor == pytest.approx(was["acc_trade_volume"], rel=1e-12)
    book = exchange.orderbook(code, NOW_US)
    assert book is not None
    best = book["orderbook_units"][0]
    assert best["bid_price"] < best["ask_price"]
    exchange.rescale(code, 1 / 4 if factor == 4 else f"{1 / factor:g}")
    assert exchange.candles(code, "1m", None, 9, NOW_US) == before.candles(code, "1m", None, 9, NOW_US)


@pytest.mark.parametrize("factor", [0, -1, 3, "x", None])
def test_redenomination_by_no_decimal_factor_is_refused(factor: object) -> None:
    """A factor whose inverse has no end cannot be exact."""
    with pytest.raises(InputError, match="factor"):
        Exchange(7).rescale("KRW-BTC", factor)


def test_what_is_said_of_a_market_can_be_scripted() -> None:
    """Names, warning and cautions in the list; the state on the stream; nothing else."""
    exchange = Exchange(7)
    exchange.describe(
        "KRW-BTC", warning=True, cautions=("TRADING_VOLUME_SOARING",), english_name="Bit", state="PREVIEW"
    )
    row = next(row for row in exchange.markets() if row["market"] == "KRW-BTC")
    assert row["english_name"] == "Bit"
    assert row["market_event"]["warning"] is True
    assert [name for name, up in row["market_event"]["caution"].items() if up] == ["TRADING_VOLUME_SOARING"]
    assert exchange.market("KRW-BTC").state == "PREVIEW"
    for wrong in ({"price": 1.0}, {"cautions": ("BAD",)}):
        with pytest.raises(InputError):
            exchange.describe("KRW-BTC", **wrong)
