"""Status, health and metrics at a glance: the dashboard, and the endpoint for Prometheus."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from backbone import Backbone
from backbone.clock import SystemClock
from backbone.errors import ClosedError, InputError
from backbone.simulator import SimulatorServer

LIMIT = 500  # the quota is not what is tested here


def test_dashboard_shows_what_the_client_did(client: Backbone) -> None:
    """Budget, latency, cache tiers and the store are there after some calls; the title names the exchange."""
    client.candles("KRW-BTC", "1h", "2025-08-20", "2025-08-21")
    client.candles("KRW-BTC", "1h", "2025-08-20", "2025-08-21")
    client.tickers("KRW")
    text = client.dashboard().text()
    for expected in (" · upbit at http://127", "candles", "answered, normal", "candle files", "realtime"):
        assert expected in text
    assert "markets             1" in text
    assert "Live socket" not in text


def test_dashboard_shows_the_live_socket(client: Backbone) -> None:
    """While something is live its card says how the socket stands."""
    board = client.dashboard()
    with client.live("KRW-BTC"):
        board.refresh(force=True)
        assert "Live socket" in board.text()
        assert "streaming" in board.html()


def test_dashboard_gives_the_verdict_and_its_reasons(client: Backbone, venue: SimulatorServer) -> None:
    """A client that is unwell says so on the state line."""
    venue.faults.add("500", match="/v1/candles", times=None)
    with pytest.raises(Exception, match="500"):
        client.candles("KRW-BTC", "1h", "2025-08-20", "2025-08-21", progress=False)
    board = client.dashboard()
    assert repr(board).startswith("Dashboard(d")
    assert "given up" in board.text()


def test_dashboard_costs_little(client: Backbone) -> None:
    """One refresh takes less than two milliseconds of processor time, the store's walk aside."""
    import time

    client.candles("KRW-BTC", "1h", "2025-08-20", "2025-08-21")
    client.tickers("KRW")
    client.orderbooks("KRW-BTC")
    client.trades("KRW-BTC")
    board = client.dashboard()
    board.refresh(force=True)
    took = []
    for _ in range(50):
        began = time.thread_time()
        board.refresh(force=True)
        took.append(time.thread_time() - began)
    assert min(took) < 0.002


def test_dashboard_of_a_closed_client_is_over(venue: SimulatorServer, tmp_path: Path) -> None:
    """Refreshing it raises `ClosedError`, which its view shows as its end."""
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as made:
        board = made.dashboard()
    with pytest.raises(ClosedError):
        board.refresh(force=True)


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:
        text: str = reply.read().decode()
    return text


def test_serve_metrics_offers_what_metrics_has(client: Backbone) -> None:
    """A scrape has the counters and the times by group and priority."""
    pytest.importorskip("prometheus_client")
    client.candles("KRW-BTC", "1h", "2025-08-20", "2025-08-21")
    with client.serve_metrics(0) as server:
        text = scrape(server.url)
        assert "backbone_up 1.0" in text
        assert 'backbone_answered_seconds_count{group="candles",priority="normal"} 1.0' in text


def test_serve_metrics_ends_with_the_client(venue: SimulatorServer, tmp_path: Path) -> None:
    """`close` of the client frees the port and joins the thread; a closed client serves nothing."""
    pytest.importorskip("prometheus_client")
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as made:
        server = made.serve_metrics()
        assert "backbone_up 1.0" in scrape(server.url)
    with pytest.raises(urllib.error.URLError):
        scrape(server.url)
    with pytest.raises(ClosedError):
        made.serve_metrics()


def test_serve_metrics_on_a_taken_port_is_an_input_error(client: Backbone) -> None:
    """The message names the port."""
    pytest.importorskip("prometheus_client")
    with client.serve_metrics() as server, pytest.raises(InputError, match=str(server.port)):
        client.serve_metrics(server.port)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child_leaves_what_ends_with_the_parent(client: Backbone) -> None:
    """A child that closes its copy of the client neither hangs on the parent's endpoint nor ends it."""
    pytest.importorskip("prometheus_client")
    import warnings

    server = client.serve_metrics()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        child = os.fork()
    if child == 0:
        try:
            client.close()
        finally:
            os._exit(0)
    clock = SystemClock()
    until = clock.monotonic() + 20
    done = 0
    pause = threading.Condition()
    while not done and clock.monotonic() < until:
        done, _ = os.waitpid(child, os.WNOHANG)
        with pause:
            clock.wait(pause, 0.01)
    assert done == child, "the child hangs"
    assert "backbone_up 1.0" in scrape(server.url)


def test_completion_shows_public_names_only(client: Backbone) -> None:
    """What a person holds for long lists what it is for, and nothing of how it does it."""
    with client.live("KRW-BTC") as table:
        chart = client.chart("KRW-BTC", "1m", count=5, live=False)
        held = [client, client.store, table, chart, client.dashboard()]
        held.append(client.backfill("KRW-BTC", "1h", "2025-08-20", "2025-08-21").wait(progress=False))
        for one in held:
            assert dir(one), one
            assert not [name for name in dir(one) if name.startswith("_")], one
