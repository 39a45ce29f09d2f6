"""What every test runs under: no network but loopback, no thread left behind."""

from __future__ import annotations

from tests.early import pytest_addoption as pytest_addoption
from tests.early import pytest_runtestloop as pytest_runtestloop

# isort: split
import contextlib
import importlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from backbone import Backbone
from backbone.api.calls import live
from backbone.clock import SystemClock
from backbone.coordinator import coordinator
from backbone.coordinator.live import fallback
from backbone.coordinator.quota.ledger import MachineLimiter
from backbone.coordinator.quota.rules import Rules
from backbone.simulator import SimulatorServer
from backbone.simulator.server.limits import Limits
from tests import days
from tests.recordings import recordings as recordings

hypothesis.settings.register_profile("backbone", deadline=None)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("backbone")

NOW = "2025-08-22T09:00:00Z"
_LOOPBACK = ("127.", "::1", "localhost")


_LONGEST = (
    "tests/api/test_matrix.py",
    "tests/browser/",
    "notebooks/",
    "tests/stress/",
    "tests/api/calls/test_parallel.py",
    "tests/test_replay.py",
    "tests/test_package.py",
    "tests/storage/test_store.py",
    "tests/storage/test_s3.py",
)


def pytest_collection(session: pytest.Session) -> None:
    """Of several workers each begins to import elsewhere: in a fresh clone one compiles a module, and the others find
    its bytecode."""
    config = session.config
    if not hasattr(config, "workerinput") or [Path(arg).name for arg in config.args] != config.getini("testpaths"):
        return
    names = [
        ".".join(path.relative_to(config.rootpath).with_suffix("").parts)
        for path in sorted(Path(__file__).parent.rglob("test_*.py"))
    ]
    number, count = int(config.workerinput["workerid"].removeprefix("gw")), config.workerinput["workercount"]
    begin = len(names) * number // count
    for name in names[begin:] + names[:begin]:
        with contextlib.suppress(Exception, pytest.skip.Exception):  # it is met again when the tests are collected
            importlib.import_module(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that several workers end at the same time."""
    items.sort(
        key=lambda item: next((i for i, name in enumerate(_LONGEST) if item.nodeid.startswith(name)), len(_LONGEST))
    )


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """A test that reaches for another machine fails at once."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(_LOOPBACK):
            raise AssertionError(f"a test reached for the network: {address}")
        return connect(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded)
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def days_made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of several workers, one makes a day of the embedded exchange."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    with days.shared(tmp_path_factory.getbasetemp().parent / "days"):
        yield


@pytest.fixture(autouse=True, scope="module")
def own_ledgers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An exchange of an earlier module may have had the same port; its quota, or its ban, is none of this one's. (And
    whoever closes a ledger looks at those beside it.)"""
    patch = pytest.MonkeyPatch()
    patch.setenv("BACKBONE_LEDGER_DIR", str(tmp_path_factory.mktemp("quota")))
    patch.setenv("BACKBONE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def _assert_ended(threads: set[threading.Thread]) -> None:
    clock = SystemClock()
    deadline = clock.monotonic() + 30
    for thread in threads:
        while thread.is_alive() is False and thread.ident is None and clock.monotonic() < deadline:
            time.sleep(0.001)  # `threading` lists it, and it is just being started
        thread.join(max(0.0, deadline - clock.monotonic()))
        assert not thread.is_alive(), f"{thread.name} was left running\n{_where(thread)}"


def _where(thread: threading.Thread) -> str:
    """What a thread is doing."""
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame else "it has no frame"


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """Whatever a test starts, it ends. (An exchange may serve a whole module; it is looked at in the end.)"""
    before = set(threading.enumerate())
    yield
    ours = {t for t in threading.enumerate() if t.name.startswith("backbone-")}
    _assert_ended({t for t in ours - before if not t.name.startswith("backbone-simulator")})


@pytest.fixture(autouse=True, scope="session")
def no_exchange_left_behind() -> Iterator[None]:
    """In the end no thread of ours is left at all."""
    yield
    _assert_ended({t for t in threading.enumerate() if t.name.startswith("backbone-")})


@pytest.fixture(scope="module")
def shared_venue(request: pytest.FixtureRequest) -> Iterator[SimulatorServer]:
    """An embedded exchange for the whole module, its clock standing still; tests clear its faults and log.

    A module whose tests are about something else than the quota names a larger one, ``LIMIT`` requests a second,
    which the exchange then grants and its clients use; one that asks for whole quote currencies may say with
    ``LISTED`` which few markets there are.
    """
    limit = getattr(request.module, "LIMIT", 10)
    listed = getattr(request.module, "LISTED", None)
    with (
        pytest.MonkeyPatch.context() as patch,
        SimulatorServer(seed=7, now=NOW, frozen=True, limit=limit, markets=listed) as server,
    ):
        if limit != 10:
            patch.setattr(coordinator, "MachineLimiter", partial(MachineLimiter, rules=Rules(limit=limit)))
            patch.setattr(Limits, "CONNECTS", limit)
        yield server


@pytest.fixture
def venue(shared_venue: SimulatorServer) -> Iterator[SimulatorServer]:
    """The module's exchange, with no fault, no log, and its clock put back."""
    start = shared_venue.clock.now_us()
    shared_venue.faults.clear()
    shared_venue.reset_log()
    yield shared_venue
    shared_venue.faults.clear()
    shared_venue.clock.set(start)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a busy machine takes to connect a socket, no poll is quicker: a table that was just opened has the
    stream's rows."""
    monkeypatch.setattr(fallback, "GRACE_S", 60.0)
    monkeypatch.setattr(live, "_FIRST_S", 60.0)


@pytest.fixture
def client(venue: SimulatorServer, tmp_path: Path, patient: None) -> Iterator[Backbone]:
    """A client of `venue` with a store of its own."""
    with Backbone(data_dir=tmp_path / "data", rest_url=venue.rest_url, ws_url=venue.ws_url) as made:
        yield made
