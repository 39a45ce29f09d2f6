"""The compat modules on an embedded exchange whose rate limits are out of the way."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.compat import default_client
from backbone.simulator import SimulatorServer

NOW = "2025-08-22T09:00:30Z"  # candles of every length are forming


@pytest.fixture(scope="module")
def exchange() -> Iterator[SimulatorServer]:
    """An exchange whose clock stands still, for whoever asks."""
    with SimulatorServer(seed=7, now=NOW, frozen=True, limit=100_000) as server:
        yield server


@pytest.fixture
def opened(exchange: SimulatorServer, tmp_path: Path) -> Iterator[Backbone]:
    """The one client that the compat modules use."""
    exchange.faults.clear()
    exchange.reset_log()
    with Backbone(data_dir=tmp_path, rest_url=exchange.rest_url, ws_url=exchange.ws_url) as client:
        default_client.initialize(client)
        yield client
        default_client.cleanup()
    exchange.faults.clear()


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """No difference was warned of yet in this process."""
    monkeypatch.setattr(default_client._default, "warned", set())


@pytest.fixture
def ignore_differences() -> Iterator[None]:
    """Difference warnings are not what these tests check."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", default_client.DifferenceWarning)
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
