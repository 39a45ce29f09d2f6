"""Both channels against the embedded exchange, which shares no parsing with them: what it sends is understood."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from backbone.clock import SystemClock
from backbone.errors import RateLimitedError, RejectedError
from backbone.model import LiveCandle, OrderBook, Ticker, Trade
from backbone.routing import wire
from backbone.routing.rest import RestClient
from backbone.routing.stream import Stream
from backbone.simulator import SimulatorServer
from backbone.timeframe import TIMEFRAMES
from tests.routing.socket_venue import eventually

NOW_US = 1_755_853_200_000_000  # 2025-08-22T09:00:00Z

SOCKET_ONLY = {
    *("ask_volume", "bid_volume", "state", "side", "delisting_day", "is_suspended", "warning"),
    *("best_ask_price", "best_ask_size", "best_bid_price", "best_bid_size", "sent_us"),
}


@pytest.fixture(scope="module")
def exchange() -> Iterator[SimulatorServer]:
    with SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True, limit=1000) as server:
        yield server


@pytest.fixture
def client(exchange: SimulatorServer) -> Iterator[RestClient]:
    made = RestClient(exchange.rest_url, clock=SystemClock())
    yield made
    made.close()


@pytest.mark.parametrize("name", [name for name in TIMEFRAMES if name != "1y"])  # years take seconds to invent
def test_candles_of_every_timeframe_page_backwards_without_overlap(client: RestClient, name: str) -> None:
    """The oldest row of one page is the bound of the next: newest page first, no row twice."""
    timeframe = TIMEFRAMES[name]
    newest = client.send(wire.candles_ask("KRW-BTC", timeframe, None, 5)).value
    older = client.send(wire.candles_ask("KRW-BTC", timeframe, newest.oldest_us, 5)).value
    opens = [*older.table.column("time").to_pylist(), *newest.table.column("time").to_pylist()]
    assert len(opens) == older.rows + newest.rows > 5
    assert all(a < b for a, b in pairwise(opens))


def test_every_quotation_endpoint_is_understood(client: RestClient) -> None:
    """Markets, tickers, books, instruments and trades come out as records."""
    markets = client.send(wire.markets_ask()).value
    codes = [market.market for market in markets if market.market.startswith("KRW-")][:3]
    answer = client.send(wire.tickers_all_ask(["KRW"]))
    assert {ticker.market for ticker in answer.value} == {m.market for m in markets if m.market.startswith("KRW-")}
    assert (answer.group, answer.date_us) == ("ticker", NOW_US)
    assert [t.market for t in client.send(wire.tickers_ask(codes)).value] == codes
    assert [b.market for b in client.send(wire.orderbooks_ask(codes, count=5)).value] == codes
    instruments = client.send(wire.instruments_ask(codes)).value
    level = instruments[codes[0]].levels[1]
    (grouped,) = client.send(wire.orderbooks_ask(codes[:1], level)).value
    assert grouped.level == level
    trades = client.send(wire.trades_ask(codes[0], 50)).value
    older = client.send(wire.trades_ask(codes[0], 50, cursor=trades[-1].sequential_id)).value
    assert not {t.sequential_id for t in trades} & {t.sequential_id for t in older}


def test_refusals_of_the_exchange_are_errors_of_the_tree(exchange: SimulatorServer, client: RestClient) -> None:
    """An unknown market is rejected with the venue's message; a spent budget is a rate limit of its group."""
    with pytest.raises(RejectedError, match="Code not found"):
        client.send(wire.tickers_ask(["KRW-NOPE"]))
    with SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True, limit=2, window="sliding") as strict:
        hasty = RestClient(strict.rest_url, clock=SystemClock())
        ask = wire.candles_ask("KRW-BTC", TIMEFRAMES["1m"], None, 1)
        assert [hasty.send(ask).remaining for _ in range(2)] == [1, 0]
        with pytest.raises(RateLimitedError) as caught:
            hasty.send(ask)
        hasty.close()
    assert caught.value.group == "candles"


def test_socket_and_rest_send_the_same_rows(exchange: SimulatorServer, client: RestClient) -> None:
    """On a frozen exchange each snapshot equals its REST row, field by field."""
    found: dict[tuple[str, str], Any] = {}
    codes = ["KRW-BTC", "KRW-ETH"]
    kinds = ("ticker", "trade", "orderbook", "candle.1m")
    stream = Stream(
        exchange.ws_url,
        clock=SystemClock(),
        sink=lambda record, at, snap: found.__setitem__((wire.kind_of(record), record.market), record),
    )
    for kind in kinds:
        stream.subscribe("test", kind, codes)
    eventually(lambda: len(found) == len(codes) * len(kinds), 10)
    stream.close()
    for code in codes:
        (ticker,) = client.send(wire.tickers_ask([code])).value
        (book,) = client.send(wire.orderbooks_ask([code])).value
        (trade,) = client.send(wire.trades_ask(code, 1)).value
        page = client.send(wire.candles_ask(code, TIMEFRAMES["1m"], None, 1)).value
        live_ticker, live_trade = found["ticker", code], found["trade", code]
        live_book, candle = found["orderbook", code], found["candle.1m", code]
        assert isinstance(live_ticker, Ticker)
        _assert_equal_where_rest_knows(live_ticker, ticker)
        assert isinstance(live_trade, Trade)
        _assert_equal_where_rest_knows(live_trade, trade)
        assert isinstance(live_book, OrderBook)
        assert live_book == book
        assert isinstance(candle, LiveCandle)
        (row,) = page.table.to_pylist()
        assert (candle.open, candle.high, candle.low, candle.close, candle.volume, candle.value) == (
            row["open"],
            row["high"],
            row["low"],
            row["close"],
            row["volume"],
            row["value"],
        )
        assert candle.time_us == page.oldest_us


def _assert_equal_where_rest_knows(live: Ticker | Trade, row: Ticker | Trade) -> None:
    """REST leaves out what only the socket carries (see `Ticker`, `Trade`); the rest is the same on both."""
    known = [name for name in row.__struct_fields__ if getattr(row, name) is not None and name != "stamp_us"]
    assert {name: getattr(live, name) for name in known} == {name: getattr(row, name) for name in known}
    assert set(row.__struct_fields__) - set(known) <= {"stamp_us", *SOCKET_ONLY}


def test_stream_outlives_a_pause_of_the_exchange() -> None:
    """The plug is pulled and put back: the feed is there again, with the same subscription and a reported gap."""
    states: list[Any] = []
    received = threading.Event()
    with SimulatorServer(seed=7, now="2025-08-22T09:00:00Z") as server:
        stream = Stream(
            server.ws_url,
            clock=SystemClock(),
            sink=lambda record, at, snap: received.set(),
            on_state=states.append,
        )
        stream.subscribe("test", "ticker", ["KRW-BTC"])
        assert received.wait(10)
        server.pause()
        eventually(lambda: stream.state.phase == "backing-off")
        received.clear()
        server.resume()
        assert received.wait(10)
        stream.close()
    assert [state.gap is not None for state in states].count(True) == 1
