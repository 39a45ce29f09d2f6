"""The doors, opened on an embedded exchange that does not mind how often it is asked."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.compat import default_client as door
from backbone.simulator import SimulatorServer

NOW = "2025-08-22T09:00:30Z"  # candles of every length are forming


@pytest.fixture(scope="module")
def exchange() -> Iterator[SimulatorServer]:
    """An exchange whose clock stands still, for whoever asks."""
    with SimulatorServer(seed=7, now=NOW, frozen=True, limit=100_000) as server:
        yield server


@pytest.fixture
def opened(exchange: SimulatorServer, tmp_path: Path) -> Iterator[Backbone]:
    """One client behind the doors."""
    exchange.faults.clear()
    exchange.reset_log()
    with Backbone(data_dir=tmp_path, rest_url=exchange.rest_url, ws_url=exchange.ws_url) as client:
        door.initialize(client)
        yield client
        door.cleanup()
    exchange.faults.clear()


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was said yet."""
    monkeypatch.setattr(door._default, "warned", set())


@pytest.fixture
def silent() -> Iterator[None]:
    """What the doors say is not what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", door.DifferenceWarning)
        yield


@pytest.fixture
def real(exchange: SimulatorServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """pyupbit itself, sent to the exchange."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pyupbit = pytest.importorskip("pyupbit", reason="pyupbit is not installed (the `peers` extra)")
    import requests

    def get(url: str, **options: Any) -> Any:
        return requests.get(url.replace("https://api.upbit.com", exchange.rest_url), timeout=10, **options)

    monkeypatch.setattr("pyupbit.request_api.requests", types.SimpleNamespace(get=get))
    return pyupbit
