"""The real pyupbit, pointed at the embedded exchange."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from backbone import Backbone
from backbone.compat import default_client
from backbone.compat.pyupbit import WebSocketManager as OurManager
from backbone.simulator import Exchange, SimulatorServer

from .conftest import NOW_US

peer = pytest.importorskip("pyupbit", reason="pyupbit is not installed")


@pytest.fixture
def pyupbit(server: SimulatorServer, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """pyupbit with the venue's address replaced where it sends."""
    from pyupbit import request_api

    real = request_api.requests.get

    def redirected(url: str, **options: Any) -> Any:
        return real(url.replace("https://api.upbit.com", server.rest_url), **options)

    monkeypatch.setattr(request_api.requests, "get", redirected)
    return peer


def test_market_codes(pyupbit: ModuleType, exchange: Exchange) -> None:
    """All of them, and by quote currency."""
    assert set(pyupbit.get_tickers()) == set(exchange.listed(NOW_US))
    assert all(code.startswith("KRW-") for code in pyupbit.get_tickers(fiat="KRW"))


@pytest.mark.parametrize(
    ("interval", "timeframe"),
    [("minute1", "1m"), ("minute60", "1h"), ("minute240", "4h"), ("day", "1d"), ("week", "1w"), ("month", "1M")],
)
def test_candles(pyupbit: ModuleType, exchange: Exchange, interval: str, timeframe: str) -> None:
    """Prices, volumes and values as the exchange has them, labelled in KST."""
    frame = pyupbit.get_ohlcv("KRW-KITE", interval=interval, count=20)
    rows = exchange.candles("KRW-KITE", timeframe, None, 20, NOW_US)[::-1]
    assert frame["open"].tolist() == [r["opening_price"] for r in rows]
    assert frame["close"].tolist() == [r["trade_price"] for r in rows]
    assert frame["volume"].tolist() == [r["candle_acc_trade_volume"] for r in rows]
    assert frame["value"].tolist() == [r["candle_acc_trade_price"] for r in rows]
    assert [t.isoformat() for t in frame.index] == [r["candle_date_time_kst"] for r in rows]


def test_candles_over_several_pages(pyupbit: ModuleType, exchange: Exchange) -> None:
    """More than 200, given an end in UTC."""
    frame = pyupbit.get_ohlcv("KRW-XRP", interval="minute1", count=450, to="2025-08-22 06:00:00", period=0.01)
    table = exchange.candle_table("KRW-XRP", "1m", NOW_US - 40 * 3_600_000_000, 1_755_842_400_000_000)
    assert frame["close"].tolist() == table["close"].to_pylist()[-450:]


def test_current_prices_and_books(pyupbit: ModuleType, exchange: Exchange) -> None:
    """One price, many, and the order book."""
    assert pyupbit.get_current_price("KRW-BTC") == exchange.ticker("KRW-BTC", NOW_US)["trade_price"]
    prices = pyupbit.get_current_price(["KRW-BTC", "KRW-ETH"])
    assert prices["KRW-ETH"] == exchange.ticker("KRW-ETH", NOW_US)["trade_price"]
    assert pyupbit.get_orderbook("KRW-BTC") == exchange.orderbook("KRW-BTC", NOW_US)


def test_plain_text_refusal_breaks_its_decoder(pyupbit: ModuleType, server: SimulatorServer) -> None:
    """A known defect of its own: it reads JSON before it compares the text. Candles are then simply None."""
    server.faults.add("429", match="/v1/")
    with pytest.raises(ValueError, match="Expecting value"):
        pyupbit.get_current_price("KRW-BTC")
    server.faults.add("429", match="/v1/")
    assert pyupbit.get_ohlcv("KRW-BTC", interval="minute1", count=1) is None


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatorServer]:
    """A running exchange, and pyupbit's socket pointed at it."""
    from pyupbit import websocket_api

    with SimulatorServer(seed=7, now="2025-08-22T09:00:30Z", speed=20) as server:
        real = websocket_api.websockets.connect
        monkeypatch.setattr(websocket_api.websockets, "connect", lambda uri, **options: real(server.ws_url, **options))
        yield server


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_websocket_manager(live: SimulatorServer) -> None:
    """Realtime tickers through its child process."""
    manager = peer.WebSocketManager("ticker", ["KRW-BTC", "KRW-ETH"])
    try:
        frames = [manager.get() for _ in range(3)]
    finally:
        manager.terminate()
        manager.join(5)
    assert {f["type"] for f in frames} == {"ticker"}
    assert all(f["stream_type"] == "REALTIME" and f["trade_price"] > 0 for f in frames)


def key_of(message: dict[str, Any]) -> tuple[Any, ...]:
    """What says that two messages are one: the trade, or the instant of the state."""
    return message["code"], message.get("sequential_id") or message["timestamp"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "codes"),
    [
        ("ticker", ["KRW-BTC", "KRW-ETH"]),
        ("trade", ["KRW-BTC", "KRW-ETH"]),
        ("orderbook", ["KRW-BTC"]),
        ("orderbook", ["KRW-BTC.5"]),
        ("candle.1m", ["KRW-BTC"]),
    ],
)
def test_websocket_messages_are_ours_field_by_field(
    live: SimulatorServer, kind: str, codes: list[str], tmp_path: Path
) -> None:
    """The same messages from both, with the same fields and values: a program sees no difference."""
    with Backbone(data_dir=tmp_path, rest_url=live.rest_url, ws_url=live.ws_url) as client:
        default_client.initialize(client)
        ours, theirs = OurManager(kind, codes, 10_000), peer.WebSocketManager(kind, codes)
        try:
            ours.start()
            frames = [theirs.get() for _ in range(6)]
            wanted = {key_of(frame) for frame in frames}
            messages: dict[tuple[Any, ...], dict[str, Any]] = {}
            while not wanted <= messages.keys():
                message = ours.get()
                messages[key_of(message)] = message
        finally:
            theirs.terminate()
            theirs.join(5)
            ours.terminate()
            default_client.cleanup()
    for frame in frames:
        assert messages[key_of(frame)] == frame
        assert list(messages[key_of(frame)]) == list(frame)
