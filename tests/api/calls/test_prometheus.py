"""Metrics as Prometheus reads them, on loopback."""

from __future__ import annotations

import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from backbone.api.calls.prometheus import MetricsServer, serve_metrics
from backbone.errors import ClosedError, InputError

pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")

NAN = float("nan")


def record(kind: str, group: str, priority: str, count: int, mean_s: float, *quantiles: float) -> dict[str, Any]:
    """A distribution as `Metrics.snapshot` has it."""
    values = dict(zip(("p50_s", "p95_s", "p99_s"), (*quantiles, NAN, NAN, NAN), strict=False))
    return {"kind": kind, "group": group, "priority": priority, "count": count, "mean_s": mean_s, **values}


SNAPSHOT: dict[str, Any] = {
    "counters": {"pages.fetched": 12, "cache.memory": 3, "cache-memory": 1, "sent_total": 5},
    "times": [
        record("waited", "candles", "low", 4, 0.5, 0.4, 0.9),
        record("waited", "candles", "", 4, 0.5, 0.4),
        record("waited", "", "low", 4, 0.5, 0.4),
        record("answered", "ticker", "high", 0, NAN),
        record("other", "", "", 2, 0.25),
    ],
}


def scrape(server: MetricsServer) -> dict[str, float]:
    """The samples of one scrape, by name and labels."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(server.url, timeout=5) as reply:
        text = reply.read().decode()
    return {
        sample.name + "".join(f",{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    with serve_metrics(0, lambda: SNAPSHOT) as running:
        yield running


def test_scrape_has_counters_and_times(server: MetricsServer) -> None:
    """Every number of the snapshot is there once, under a name and labels that Prometheus accepts."""
    found = scrape(server)
    assert found["backbone_up"] == 1
    assert found["backbone_pages_fetched_total"] == 12
    assert found["backbone_cache_memory_total"] == 4
    assert found["backbone_sent_total"] == 5
    assert found["backbone_waited_seconds_count,candles,low"] == 4
    assert found["backbone_waited_seconds_sum,candles,low"] == 2.0
    assert found["backbone_waited_seconds_quantile,candles,low,0.95"] == 0.9
    assert found["backbone_answered_seconds_sum,ticker,high"] == 0.0
    assert "backbone_waited_seconds_count,candles," not in found
    assert "backbone_waited_seconds_count,,low" not in found
    assert found["backbone_other_seconds_sum,,"] == 0.5


def test_scrape_asks_for_a_snapshot_each_time() -> None:
    """Nothing is sampled between two scrapes, and each of them sees the present."""
    asked: list[int] = []

    def snapshot() -> Mapping[str, Any]:
        asked.append(1)
        return {"counters": {"asked": len(asked)}, "times": []}

    with serve_metrics(0, snapshot) as server:
        assert asked == []
        assert scrape(server)["backbone_asked_total"] == 1
        assert scrape(server)["backbone_asked_total"] == 2


def test_scrape_of_a_closed_client_says_down() -> None:
    """A client that was closed is reported as down, not as an error of the endpoint."""

    def snapshot() -> Mapping[str, Any]:
        raise ClosedError("closed")

    with serve_metrics(0, snapshot) as server:
        assert scrape(server) == {"backbone_up": 0}


def test_server_listens_on_loopback_only(server: MetricsServer) -> None:
    """The endpoint is bound to 127.0.0.1 and shows its address in its repr."""
    assert server._server.server_address[0] == "127.0.0.1"
    assert repr(server) == f"MetricsServer(http://127.0.0.1:{server.port}/metrics)"


def test_close_frees_the_port_and_joins_the_thread() -> None:
    """After close there is no thread and no listener; closing again does nothing."""
    server = serve_metrics(0, dict)
    names = {thread.name for thread in threading.enumerate()}
    assert "backbone-metrics" in names
    server.close()
    server.close()
    assert "backbone-metrics" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(server.url, timeout=1)
    assert repr(server) == "MetricsServer(closed)"


@pytest.mark.parametrize("port", [-1, 65536, "9100", 9100.0, True])
def test_a_port_that_is_none_is_an_input_error(port: Any) -> None:
    """Only whole numbers within the range of ports are taken."""
    with pytest.raises(InputError):
        serve_metrics(port, dict)


def test_a_taken_port_is_an_input_error() -> None:
    """A port that somebody listens on is refused by name."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="free port"):
            serve_metrics(taken.getsockname()[1], dict)


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without prometheus-client the error says what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"backbone\[metrics\]"):
        serve_metrics(0, dict)
