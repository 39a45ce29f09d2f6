"""The real ccxt and ccxt.pro, pointed at the embedded exchange."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from backbone.simulator import Exchange, SimulatorServer

from .conftest import NOW_US


@pytest.fixture(scope="module")
def ccxt() -> Any:
    """Loaded where it runs: each worker of a run collects this file."""
    return pytest.importorskip("ccxt", reason="ccxt is not installed")


@pytest.fixture
def upbit(server: SimulatorServer, ccxt: Any) -> Iterator[Any]:
    """ccxt's client with the venue's address replaced."""
    client = ccxt.upbit({"enableRateLimit": False})
    for kind in ("public", "private"):
        client.urls["api"][kind] = server.rest_url
    yield client
    client.session.close()


def test_markets(upbit: Any, exchange: Exchange) -> None:
    """Every listed one, in ccxt's spelling."""
    markets = upbit.load_markets()
    assert {m["id"] for m in markets.values()} == set(exchange.listed(NOW_US))
    assert markets["BTC/KRW"]["id"] == "KRW-BTC"


@pytest.mark.parametrize(
    ("timeframe", "ours"), [("1s", "1s"), ("1m", "1m"), ("1h", "1h"), ("1d", "1d"), ("1w", "1w"), ("1M", "1M")]
)
def test_candles(upbit: Any, exchange: Exchange, timeframe: str, ours: str) -> None:
    """Milliseconds, open, high, low, close, volume; oldest first."""
    rows = upbit.fetch_ohlcv("KITE/KRW", timeframe, limit=30)
    truth = exchange.candles("KRW-KITE", ours, None, 30, NOW_US)[::-1]
    names = ("opening_price", "high_price", "low_price", "trade_price", "candle_acc_trade_volume")
    assert [row[1:] for row in rows] == [[r[n] for n in names] for r in truth]


def test_candles_since(upbit: Any, exchange: Exchange) -> None:
    """ccxt computes `to` from since and limit, and always sends milliseconds and a zone."""
    since = NOW_US // 1000 // 86_400_000 * 86_400_000 - 86_400_000
    rows = upbit.fetch_ohlcv("ETH/KRW", "1m", since=since, limit=100)
    table = exchange.candle_table("KRW-ETH", "1m", since * 1000, since * 1000 + 100 * 60_000_000)
    assert [row[4] for row in rows] == table["close"].to_pylist()


def test_tickers_books_and_trades(upbit: Any, exchange: Exchange) -> None:
    """The other three calls."""
    ticker = upbit.fetch_ticker("BTC/KRW")
    truth = exchange.ticker("KRW-BTC", NOW_US)
    assert (ticker["last"], ticker["high"]) == (truth["trade_price"], truth["high_price"])
    assert ticker["previousClose"] == truth["prev_closing_price"]
    both = upbit.fetch_tickers(["BTC/KRW", "ETH/KRW"])
    assert both["ETH/KRW"]["last"] == exchange.ticker("KRW-ETH", NOW_US)["trade_price"]
    book = upbit.fetch_order_book("BTC/KRW")
    assert (len(book["asks"]), len(book["bids"])) == (30, 30)
    trades = upbit.fetch_trades("BTC/KRW", limit=50)
    rows = exchange.trades("KRW-BTC", NOW_US, 50)[::-1]
    assert [t["id"] for t in trades] == [str(r["sequential_id"]) for r in rows]
    assert {t["side"] for t in trades} == {"buy", "sell"}


def test_errors_are_recognised(upbit: Any, ccxt: Any, server: SimulatorServer) -> None:
    """A refusal for the rate and a server error map to ccxt's own."""
    server.faults.add("429", match="/v1/")
    with pytest.raises((ccxt.RateLimitExceeded, ccxt.DDoSProtection)):
        upbit.fetch_ticker("BTC/KRW")
    server.faults.add("500", match="/v1/")
    with pytest.raises(ccxt.ExchangeError):
        upbit.fetch_ticker("BTC/KRW")


def test_pro_streams() -> None:
    """Tickers, trades, books and one-second candles over the socket."""
    pro = pytest.importorskip("ccxt.pro", reason="ccxt.pro is not installed")

    async def watch(server: SimulatorServer) -> dict[str, Any]:
        client = pro.upbit({"enableRateLimit": False})
        client.urls["api"] |= {"public": server.rest_url, "private": server.rest_url, "ws": server.ws_url}
        try:
            found = {
                "ticker": await asyncio.wait_for(client.watch_ticker("BTC/KRW"), 30),
                "trades": await asyncio.wait_for(client.watch_trades("BTC/KRW"), 30),
                "book": await asyncio.wait_for(client.watch_order_book("BTC/KRW"), 30),
                "candles": await asyncio.wait_for(client.watch_ohlcv("BTC/KRW", "1s"), 30),
            }
        finally:
            await client.close()
            await asyncio.sleep(0.1)  # let aiohttp end its connector
        return found

    with SimulatorServer(seed=7, now="2025-08-22T09:00:30Z", speed=5, limit=1000) as server:
        found = asyncio.run(watch(server))
    assert found["ticker"]["symbol"] == "BTC/KRW"
    assert found["ticker"]["last"] > 0
    assert len(found["book"]["asks"]) in (15, 30)  # a first update may come between its snapshot and its reader
    assert found["trades"][0]["side"] in ("buy", "sell")
    assert found["candles"][4] > 0
