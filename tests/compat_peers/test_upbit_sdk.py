"""The venue's own official SDK, pointed at the embedded exchange."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from backbone.simulator import Exchange, SimulatorServer

from .conftest import NOW_US


@pytest.fixture(scope="module")
def sdk() -> Any:
    """Loaded where it runs: each worker of a run collects this file."""
    return pytest.importorskip("upbit", reason="upbit-sdk is not installed")


@pytest.fixture
def upbit(server: SimulatorServer, sdk: Any) -> Iterator[Any]:
    """The SDK's client at the loopback address."""
    with sdk.Upbit(base_url=server.rest_url, websocket_base_url=server.ws_url.removesuffix("/websocket/v1")) as client:
        yield client


def test_market_list(upbit: Any, exchange: Exchange) -> None:
    """With the event details."""
    rows = upbit.trading_pairs.list(is_details=True)
    assert [row.market for row in rows] == list(exchange.listed(NOW_US))
    assert rows[0].market_event is not None


def test_candles_of_every_kind(upbit: Any, exchange: Exchange) -> None:
    """Each endpoint, with the optional price conversion."""
    candles = upbit.candles
    replies = {
        "1s": candles.list_seconds(market="KRW-KITE", count=10),
        "5m": candles.list_minutes(unit=5, market="KRW-KITE", count=10),
        "1d": candles.list_days(market="KRW-KITE", count=10),
        "1w": candles.list_weeks(market="KRW-KITE", count=10),
        "1M": candles.list_months(market="KRW-KITE", count=10),
        "1y": candles.list_years(market="KRW-KITE", count=3),
    }
    for timeframe, rows in replies.items():
        truth = exchange.candles("KRW-KITE", timeframe, None, 10, NOW_US)
        assert [float(r.trade_price) for r in rows] == [r["trade_price"] for r in truth][: len(rows)]
        assert rows[0].candle_date_time_utc == truth[0]["candle_date_time_utc"]
    converted = candles.list_days(market="BTC-ETH", count=1, converting_price_unit="KRW")[0]
    assert float(converted.converted_trade_price) > 1e5


def test_tickers_books_instruments_and_trades(upbit: Any, exchange: Exchange) -> None:
    """The other endpoints, parsed by its models."""
    ticker = upbit.tickers.list_by_trading_pairs(markets="KRW-BTC")[0]
    assert float(ticker.trade_price) == exchange.ticker("KRW-BTC", NOW_US)["trade_price"]
    won = upbit.tickers.list_by_quote_currencies(quote_currencies="KRW")
    assert len(won) > 250
    book = upbit.orderbooks.list(markets="KRW-BTC", count=15)[0]
    assert len(book.orderbook_units) == 15
    assert upbit.orderbooks.list_instruments(markets="KRW-BTC")[0].tick_size == "1000"
    trades = upbit.trades.list(market="KRW-BTC", count=100)
    assert [t.sequential_id for t in trades] == [r["sequential_id"] for r in exchange.trades("KRW-BTC", NOW_US, 100)]


def test_errors_are_its_own(upbit: Any, sdk: Any, server: SimulatorServer) -> None:
    """404, 400 and, without its retries, 429 and 418."""
    with pytest.raises(sdk.NotFoundError):
        upbit.tickers.list_by_trading_pairs(markets="KRW-NOPE")
    with pytest.raises(sdk.BadRequestError):
        upbit.candles.list_minutes(unit=7, market="KRW-BTC")
    calm = upbit.with_options(max_retries=0)
    server.faults.add("429", match="/v1/")
    with pytest.raises(sdk.RateLimitError):
        calm.trading_pairs.list()
    server.faults.add("418", match="/v1/", seconds=30)
    with pytest.raises(sdk.APIStatusError) as caught:
        calm.trading_pairs.list()
    assert caught.value.status_code == 418
    server.reset_limits()


def test_public_socket(upbit: Any) -> None:
    """Its parser takes every type in both formats, and the list of subscriptions."""
    pytest.importorskip("websockets", reason="the SDK's socket needs websockets")
    wanted = [
        {"type": "ticker", "codes": ["KRW-BTC"], "is_only_snapshot": True},
        {"type": "trade", "codes": ["KRW-BTC"], "is_only_snapshot": True},
        {"type": "orderbook", "codes": ["KRW-BTC.15"], "is_only_snapshot": True},
        {"type": "candle.1m", "codes": ["KRW-BTC"], "is_only_snapshot": True},
    ]
    for form in ("DEFAULT", "SIMPLE"):
        with upbit.ws_public.connect_public() as connection:
            connection.send_raw(json.dumps([{"ticket": "sdk"}, *wanted, {"format": form}]))
            events = [connection.recv() for _ in wanted]
            names = [getattr(e, "type", None) or getattr(e, "ty", None) for e in events]
            assert names == ["ticker", "trade", "orderbook", "candle.1m"]
            connection.send_raw(json.dumps([{"ticket": "sdk"}, {"method": "LIST_SUBSCRIPTIONS"}, {"format": form}]))
            assert "LIST_SUBSCRIPTIONS" in str(connection.recv())
