"""The client of the compat modules: made once, from the environment or settings, and ended by whoever made it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.compat import cleanup, get_client, initialize
from backbone.compat import pyupbit as pyupbit
from backbone.errors import ClosedError, InputError
from backbone.simulator import SimulatorServer


@pytest.fixture
def from_environment(exchange: SimulatorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a program finds when it only changed its import."""
    cleanup()
    monkeypatch.setenv("BACKBONE_REST_URL", exchange.rest_url)
    monkeypatch.setenv("BACKBONE_WS_URL", exchange.ws_url)
    monkeypatch.setenv("BACKBONE_DATA_DIR", str(tmp_path / "elsewhere"))
    yield
    cleanup()


def test_client_is_made_from_the_environment_on_first_use(
    from_environment: None, exchange: SimulatorServer, tmp_path: Path
) -> None:
    """The environment says where the venue and the store are; there is one client, whoever asks first."""
    assert pyupbit.get_current_price("KRW-BTC") > 0
    client = get_client()
    assert client.data_dir == tmp_path / "elsewhere"
    assert exchange.rest_url in repr(client)
    found: list[Backbone] = []
    threads = [threading.Thread(target=lambda: found.append(get_client())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(each is client for each in found)


def test_cleanup_ends_its_client_and_the_next_call_makes_another(from_environment: None) -> None:
    """After the end there is a beginning; ending twice is fine."""
    client = get_client()
    cleanup()
    cleanup()
    with pytest.raises(ClosedError):
        client.markets()
    assert get_client() is not client


def test_given_client_stays_open(opened: Backbone) -> None:
    """Whoever hands a client in closes it."""
    assert initialize(opened) is opened
    cleanup()
    assert len(opened.markets()) > 0


def test_initialize_with_settings_replaces_the_client(from_environment: None, tmp_path: Path) -> None:
    """A new client of the settings takes the place of the one before, which is closed."""
    before = get_client()
    after = initialize(tz="UTC", data_dir=tmp_path / "third")
    assert after.tz == "UTC"
    assert get_client() is after
    with pytest.raises(ClosedError):
        before.markets()


def test_initialize_with_nonsense_is_refused(opened: Backbone) -> None:
    """Not both a client and settings, and nothing but a client; what was there stays."""
    with pytest.raises(InputError, match="nothing besides a client"):
        initialize(opened, tz="UTC")
    with pytest.raises(InputError, match="a Backbone"):
        initialize("upbit")  # type: ignore[arg-type]
    assert get_client() is opened
