"""REST over loopback: headers, limits, latency, faults and the plug."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
from pathlib import Path

import pytest
import requests

from backbone.errors import InputError
from backbone.simulator import Faults, SimulatorServer
from tests.recordings import recordings
from tests.simulator.conftest import NOW, burst

__all__ = ["recordings"]
CANDLES = "/v1/candles/minutes/1"


def test_only_loopback_is_listened_on() -> None:
    """Anything else is refused before a socket is opened."""
    for host in ("0.0.0.0", "192.168.0.1", ""):
        with pytest.raises(InputError, match="loopback"):
            SimulatorServer(host=host)


def test_taken_port_is_an_input_error(clean: SimulatorServer) -> None:
    """It names the argument; no thread stays behind."""
    with pytest.raises(InputError) as caught:
        SimulatorServer(port=clean.port).start()
    assert caught.value.argument == "port"
    alive = [t for t in threading.enumerate() if t.name == "backbone-simulator"]
    assert len(alive) == 1


def test_server_starts_and_closes_twice_without_harm() -> None:
    """Closing joins its threads, and the port is free for a second life."""
    server = SimulatorServer(now=NOW, frozen=True)
    with server:
        port = server.start().port
    server.close()
    assert "stopped" in repr(server)
    with SimulatorServer(port=port, now=NOW, frozen=True) as again:
        assert again.port == port


def test_market_changes_while_it_runs() -> None:
    """Delisting, renaming, outage and restatement, live."""
    with SimulatorServer(now=NOW, frozen=True) as server, requests.Session() as session:
        session.trust_env = False

        def candles(market: str, count: int = 3) -> requests.Response:
            return session.get(server.rest_url + CANDLES, params={"market": market, "count": count}, timeout=5)

        server.faults.add("delist", market="KRW-ETH")
        assert candles("KRW-ETH").status_code == 404
        server.faults.add("rename", market="KRW-XRP", to="KRW-XRPL")
        assert (candles("KRW-XRP").status_code, candles("KRW-XRPL").status_code) == (404, 200)
        before = candles("KRW-BTC", 30).json()
        server.faults.add(
            "restate", market="KRW-BTC", start="2025-08-22T08:30:00Z", end="2025-08-22T09:00:00Z", shift=0.001
        )
        assert candles("KRW-BTC", 30).json() != before
        server.faults.add("outage", start="2025-08-22T08:58:00Z", end="2025-08-22T09:00:00Z")
        labels = [row["candle_date_time_utc"][11:16] for row in candles("KRW-BTC").json()]
        assert labels == ["09:00", "08:57", "08:56"]


def test_script_may_be_given_before_the_start() -> None:
    """Faults that change the market are carried out when there is one."""
    faults = Faults()
    faults.add("delist", market="KRW-BTC")
    with SimulatorServer(now=NOW, frozen=True, faults=faults) as server:
        assert requests.get(server.rest_url + CANDLES, params={"market": "KRW-BTC"}, timeout=5).status_code == 404


def test_pulled_plug_refuses_and_comes_back_on_the_same_port(clean: SimulatorServer) -> None:
    """Connections drop at once; the same address answers afterwards."""
    with requests.Session() as session:
        session.trust_env = False
        url = clean.rest_url + "/v1/market/all"
        assert session.get(url, timeout=5).status_code == 200
        clean.pause()
        with pytest.raises(requests.ConnectionError):
            session.get(url, timeout=5)
        clean.resume()
        assert session.get(url, timeout=5).status_code == 200


def test_pulled_plug_ends_what_was_accepted_meanwhile(clean: SimulatorServer) -> None:
    """A connection made in the very moment is closed like the others, and none is left to the collector.

    The knocking waits where many were not accepted yet: beyond a full queue the system connects a client that the
    server never sees, and that never gets the end.
    """
    ended, begun = threading.Event(), threading.Event()
    held: list[socket.socket] = []

    def knock() -> None:
        while not ended.is_set():
            if len(held) >= 10:
                begun.set()
            if len(held) - len(clean._web.connections) > 50:
                ended.wait(0.001)
                continue
            with contextlib.suppress(OSError):
                made = socket.create_connection(("127.0.0.1", clean.port), timeout=5)
                if made.getsockname()[1] == clean.port:  # to itself, by the port that it knocks at
                    made.close()
                else:
                    held.append(made)

    for _ in range(4):
        ended.clear()
        begun.clear()
        threads = [threading.Thread(target=knock) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert begun.wait(30)
        clean.pause()
        ended.set()
        for thread in threads:
            thread.join()
        while held:
            with held.pop() as connection, contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""
        gc.collect()
        clean.resume()


def test_many_connections_at_once_wait_for_a_busy_exchange(clean: SimulatorServer) -> None:
    """While it computes, hundreds are connected at once: none is turned away to try again a second later."""
    loop, busy = clean._loop, threading.Event()
    assert loop is not None
    with contextlib.ExitStack() as held:
        held.callback(busy.set)
        loop.call_soon_threadsafe(busy.wait)
        for _ in range(300):
            held.enter_context(socket.create_connection(("127.0.0.1", clean.port), timeout=0.5))


def test_log_can_be_reset_and_is_safe_while_requests_run(clean: SimulatorServer) -> None:
    """Read from any thread."""
    threads = [threading.Thread(target=burst, args=(clean.rest_url, 20)) for _ in range(4)]
    for thread in threads:
        thread.start()
    while waited := [thread for thread in threads if thread.is_alive()]:
        assert clean.counts().get("candles", {}).get(200, 0) <= 80
        waited[0].join(0.002)
    assert len(clean.requests) == 80
    assert clean.requests[0].query == {"market": "KRW-BTC"}
    clean.reset_log()
    assert clean.requests == []


def test_replay_starts_at_the_end_of_its_record(recordings: Path) -> None:
    """Recorded candles over HTTP, equal to the file's last rows."""
    path = recordings / "candles/1m_majors_2021-05.parquet"
    with SimulatorServer(replay=[path], frozen=True) as server:
        rows = requests.get(server.rest_url + CANDLES, params={"market": "KRW-DOGE", "count": 2}, timeout=5).json()
        assert rows[0]["candle_date_time_utc"] == "2021-05-11T09:58:00"
        assert requests.get(server.rest_url + CANDLES, params={"market": "KRW-ADA"}, timeout=5).status_code == 404


def test_close_right_after_a_jump_of_the_clock_ends_at_once() -> None:
    """The stream's task is cancelled just as it is woken; neither gets lost."""
    for _ in range(20):
        server = SimulatorServer(now=NOW, frozen=True).start()
        server.clock.advance(1)
        server.close()
