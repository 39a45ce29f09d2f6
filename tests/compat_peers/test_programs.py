"""Programs written for pyupbit run unchanged through the compat module, with equal answers.

Run as a script, this module measures how long each program takes with pyupbit and with the compat module.
"""

from __future__ import annotations

import builtins
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from backbone import Backbone
from backbone.compat import cleanup, initialize
from backbone.compat import pyupbit as ours
from backbone.simulator import SimulatorServer
from tests.compat_peers.programs import PROGRAMS, REST, excel, midnight_days, paging_by_index, volume_power

NOW = "2025-08-22T09:00:30Z"
theirs = pytest.importorskip("pyupbit", reason="pyupbit is not installed")


def redirect(server: SimulatorServer, replace: Callable[[Any, str, Any], None]) -> None:
    """Send pyupbit to the embedded exchange, by what `replace(object, name, value)` sets."""
    from pyupbit import request_api, websocket_api

    get, connect = request_api.requests.get, websocket_api.websockets.connect
    replace(
        request_api.requests, "get", lambda url, **o: get(url.replace("https://api.upbit.com", server.rest_url), **o)
    )
    replace(websocket_api.websockets, "connect", lambda uri, **options: connect(server.ws_url, **options))


@pytest.fixture
def venue(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimulatorServer]:
    """An exchange for both; its clock stands still but for the program that waits for trades."""
    moving = {"speed": 20} if request.param is volume_power else {"frozen": True}
    with SimulatorServer(seed=7, now=NOW, limit=10_000, **moving) as server:
        redirect(server, monkeypatch.setattr)
        with Backbone(data_dir=tmp_path, rest_url=server.rest_url, ws_url=server.ws_url) as client:
            initialize(client)
            yield server
            cleanup()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore::backbone.compat.DifferenceWarning")
@pytest.mark.parametrize(
    ("venue", "program"), [(program, program) for program in PROGRAMS], indirect=["venue"], ids=lambda p: p.__name__
)
def test_program_answers_the_same(venue: SimulatorServer, program: Callable[[ModuleType], Any]) -> None:
    """The program does not know which module it was given; where pyupbit fails, whole days are what is right."""
    if program is excel:
        pytest.importorskip("openpyxl", reason="pandas needs it for sheets")
    answer = program(ours)
    if program is midnight_days:
        assert theirs.get_daily_ohlcv_from_base("KRW-BTC") is None  # pandas dropped the argument that it uses
        hours = theirs.get_ohlcv("KRW-BTC", interval="minute60", count=400)
        days = hours.resample("24h").agg({"open": "first", "high": "max", "low": "min", "close": "last"})
        known = [(day.isoformat(), *row) for day, *row in days.itertuples()]
        assert answer
        assert set(answer) <= set(known)
        return
    assert answer == program(theirs)


@pytest.mark.filterwarnings("ignore::backbone.compat.DifferenceWarning")
@pytest.mark.parametrize("venue", [paging_by_index], indirect=True)
def test_pages_by_the_index_are_those_that_their_author_meant(venue: SimulatorServer) -> None:
    """pyupbit reads the index's Korean time as UTC and answers the newest page again and again; the compat module goes
    on where a page began, and has what pyupbit answers to one call for all of it.
    """
    assert not paging_by_index(theirs).index.is_unique
    meant = theirs.get_ohlcv("KRW-XRP", interval="minute1", count=600, period=0)
    pd.testing.assert_frame_equal(paging_by_index(ours), meant, check_freq=False, check_exact=True)


def test_every_name_that_is_pyupbits_own_is_known_without_it() -> None:
    """So that an import of one of them says what to install, wherever pyupbit is missing."""
    own = {name for name in dir(theirs) if not name.startswith("_") and not hasattr(builtins, name)}
    made = {name for name in own if getattr(getattr(theirs, name), "__module__", "").startswith("pyupbit")}
    rooms = {name for name in own if getattr(getattr(theirs, name), "__package__", "") == "pyupbit"}
    assert made | rooms <= ours._PYUPBITS | set(ours.__all__)


def test_names_that_are_no_market_data_are_pyupbits() -> None:
    """A bot that also orders keeps its one import."""
    assert ours.Upbit is theirs.Upbit
    assert ours.get_tick_size is theirs.get_tick_size
    assert ours.WebSocketClient is theirs.WebSocketClient
    assert ours.get_ohlcv is not theirs.get_ohlcv
    from backbone.compat.pyupbit import Upbit

    assert Upbit("access", "secret").access == "access"


def test_every_name_of_pyupbit_is_there() -> None:
    """Functions and classes alike, ours or its own."""
    names = [name for name in dir(theirs) if not name.startswith("_")]
    assert len(names) > 20
    assert [name for name in names if not hasattr(ours, name)] == []


def measure() -> dict[str, tuple[float, float]]:
    """Seconds of each program with pyupbit and with ours, 30 ms away, at the venue's own rate."""
    warnings.simplefilter("ignore")
    REST["seconds"] = 0.1
    found = {}
    for program in PROGRAMS:
        if program is midnight_days:
            continue  # pyupbit's answers None
        moving = {"speed": 20} if program is volume_power else {"frozen": True}
        with (
            SimulatorServer(seed=7, now=NOW, latency_s=0.03, **moving) as server,
            tempfile.TemporaryDirectory() as folder,
        ):
            kept: list[tuple[Any, str, Any]] = []

            def replace(owner: Any, name: str, value: Any, kept: list[tuple[Any, str, Any]] = kept) -> None:
                kept.append((owner, name, getattr(owner, name)))
                setattr(owner, name, value)

            redirect(server, replace)
            began = time.perf_counter()
            program(theirs)
            their_s = time.perf_counter() - began
            time.sleep(1.1)  # the exchange counts the last second's requests
            with Backbone(data_dir=folder, rest_url=server.rest_url, ws_url=server.ws_url) as client:
                initialize(client)
                began = time.perf_counter()
                program(ours)
                found[program.__name__] = (their_s, time.perf_counter() - began)
                cleanup()
            for owner, name, value in kept:
                setattr(owner, name, value)
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(), indent=2) + "\n")
