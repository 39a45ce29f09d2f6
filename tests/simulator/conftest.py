"""A frozen exchange with a generous limit for the module, and a bare HTTP client of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import websocket

from backbone.simulator import Exchange, SimulatorServer
from backbone.timeframe import DAY_US

NOW = "2025-08-22T09:00:30Z"
NOW_US = 1_755_853_230_000_000
DAY = NOW_US // DAY_US * DAY_US

Get = Callable[..., requests.Response]
Connect = Callable[..., websocket.WebSocket]


@pytest.fixture(scope="session")
def exchange() -> Exchange:
    """The market of seed 7, without sockets."""
    return Exchange(7)


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatorServer]:
    """The exchange on loopback, its clock standing still, with no practical limit."""
    with SimulatorServer(seed=7, now=NOW, frozen=True, limit=100_000) as made:
        yield made


@pytest.fixture
def clean(server: SimulatorServer) -> Iterator[SimulatorServer]:
    """The module's exchange with no fault, an empty log and its first clock."""
    server.faults.clear()
    server.reset_log()
    server.reset_limits()
    yield server
    server.faults.clear()
    server.clock.set(NOW)
    server.resume()  # a test that failed while the plug was pulled fails alone


@pytest.fixture
def get(clean: SimulatorServer) -> Iterator[Get]:
    """``get(path, **query)``: one GET on a warm connection."""
    with requests.Session() as session:
        session.trust_env = False

        def ask(path: str, headers: dict[str, str] | None = None, **query: Any) -> requests.Response:
            return session.get(clean.rest_url + path, params=query, headers=headers, timeout=10)

        yield ask


@pytest.fixture
def connect(clean: SimulatorServer) -> Iterator[Connect]:
    """``connect()``: a socket to the stream, closed in the end."""
    opened: list[websocket.WebSocket] = []

    def dial(path: str = "", **options: Any) -> websocket.WebSocket:
        options = {"suppress_origin": True, "timeout": 5, "skip_utf8_validation": True} | options
        opened.append(websocket.create_connection(clean.ws_url + path, **options))
        return opened[-1]

    yield dial
    for one in opened:
        one.shutdown()
    hub, deadline = clean._hub, time.monotonic() + 30
    while hub is not None and hub._sessions:  # else the clock's way back is published to them, an hour's trades
        assert time.monotonic() < deadline
        time.sleep(0.002)


def burst(url: str, count: int) -> list[requests.Response]:
    """So many requests for candles, as fast as one connection goes."""
    with requests.Session() as session:
        session.trust_env = False
        return [
            session.get(url + "/v1/candles/minutes/1", params={"market": "KRW-BTC"}, timeout=10) for _ in range(count)
        ]
