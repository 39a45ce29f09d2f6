"""pyupbit's live queue, on the live table of the compat modules' client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.compat import default_client
from backbone.compat.pyupbit import WebSocketManager
from backbone.errors import InputError, StreamClosedError
from backbone.simulator import SimulatorServer

LIMIT = 500  # the quota is not what is tested here


@pytest.fixture(scope="module")
def running() -> Iterator[SimulatorServer]:
    """An exchange whose clock runs, so that something happens."""
    with SimulatorServer(seed=7, now="2025-08-22T09:00:30Z", speed=20.0, limit=1000) as server:
        yield server


@pytest.fixture
def live(running: SimulatorServer, tmp_path: Path) -> Iterator[Backbone]:
    with Backbone(data_dir=tmp_path, rest_url=running.rest_url, ws_url=running.ws_url) as client:
        default_client.initialize(client)
        yield client
        default_client.cleanup()


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("ticker", "signed_change_rate"),
        ("trade", "sequential_id"),
        ("orderbook", "orderbook_units"),
        ("candle.1m", "high_price"),
    ],
)
def test_get_answers_message_after_message(live: Backbone, kind: str, field: str) -> None:
    """The first `get` subscribes; each answers the next message, with the venue's field names."""
    manager = WebSocketManager(kind, ["KRW-BTC", "KRW-ETH"])
    assert not manager.alive
    messages: list[dict[str, Any]] = [manager.get() for _ in range(5)]
    for code in {message["code"] for message in messages}:
        streams = [message["stream_type"] for message in messages if message["code"] == code]
        assert streams[0] == "SNAPSHOT"
        assert streams == sorted(streams, reverse=True), "then what is new, as the venue marks it"
    assert "REALTIME" in {message["stream_type"] for message in messages}
    assert manager.alive
    manager.terminate()
    assert not manager.alive
    assert {message["type"] for message in messages} == {kind}
    assert {message["code"] for message in messages} <= {"KRW-BTC", "KRW-ETH"}
    assert all(field in message for message in messages)
    if kind == "trade":
        assert len({message["sequential_id"] for message in messages}) == 5


@pytest.mark.parametrize("kind", ["ticker", "trade", "orderbook", "candle.1m"])
def test_second_manager_begins_with_how_its_market_stands(kind: str, tmp_path: Path) -> None:
    """The market is live already and nothing happens: the first message is its last state, as a snapshot."""
    with (
        SimulatorServer(seed=7, now="2025-08-22T09:00:30Z", frozen=True, limit=1000) as still,
        Backbone(data_dir=tmp_path, rest_url=still.rest_url, ws_url=still.ws_url) as client,
    ):
        default_client.initialize(client)
        first, second = (WebSocketManager(kind, ["KRW-BTC"]) for _ in range(2))
        assert first.get() == second.get()
        still.clock.advance(30)
        later = second.get()
        default_client.cleanup()
    assert later["stream_type"] == "REALTIME"


def test_terminate_wakes_whoever_waits(live: Backbone) -> None:
    """A thread that waits in `get` gets the end as an error."""
    manager = WebSocketManager("trade", ["KRW-BTC"])
    manager.start()
    ended: list[Exception] = []

    def wait() -> None:
        try:
            while True:
                manager.get()
        except StreamClosedError as exc:
            ended.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    manager.terminate()
    manager.terminate()
    thread.join(5)
    assert not thread.is_alive()
    assert ended
    with pytest.raises(StreamClosedError, match="terminated"):
        manager.get()


def test_end_of_the_client_wakes_whoever_waits(live: Backbone) -> None:
    """Closing the compat modules' client ends the queue as well."""
    manager = WebSocketManager("trade", ["KRW-BTC"])
    manager.start()
    ended: list[Exception] = []

    def wait() -> None:
        try:
            while True:
                manager.get()
        except StreamClosedError as exc:
            ended.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    live.close()
    thread.join(5)
    assert not thread.is_alive()
    assert ended


def test_slow_consumer_keeps_the_newest(live: Backbone) -> None:
    """A full queue drops its oldest messages instead of stopping the socket."""
    manager = WebSocketManager("orderbook", ["KRW-BTC"], qsize=2)
    first = manager.get()
    assert manager._table is not None
    assert manager._table.wait(6, timeout_s=20)
    later = [manager.get() for _ in range(2)]
    assert later[0]["timestamp"] > first["timestamp"]
    assert manager._records is not None
    assert manager._records.dropped > 0
    manager.terminate()


@pytest.mark.parametrize(("kind", "codes"), [("news", ["KRW-BTC"]), ("ticker", ["KRW-NOPE"]), ("ticker", [])])
def test_unknown_arguments_are_refused_at_the_start(live: Backbone, kind: str, codes: list[str]) -> None:
    """Where pyupbit would wait for ever, the first `get` says what is wrong."""
    with pytest.raises(InputError):
        WebSocketManager(kind, codes).get()


def test_queue_size_that_is_none_is_refused() -> None:
    """At once."""
    with pytest.raises(InputError, match="qsize"):
        WebSocketManager("ticker", ["KRW-BTC"], qsize=0)


def test_manager_never_started_may_be_terminated() -> None:
    """Nothing to end."""
    WebSocketManager("ticker", ["KRW-BTC"]).terminate()
