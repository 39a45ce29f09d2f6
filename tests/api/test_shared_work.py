"""Processes on one folder that want the same candles: each page is asked once, whoever is killed, and all have all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from backbone import Backbone
from backbone.clock import SystemClock
from backbone.coordinator import coordinator
from backbone.coordinator.quota.ledger import MachineLimiter
from backbone.coordinator.quota.rules import Rules
from backbone.simulator import SimulatorServer
from tests.processes import CONTEXT, process

LIMIT = 40  # pages a second, so that ten days take two seconds
PAGES = 72
SPAN = ("2025-08-01T00:00Z", "2025-08-11T00:00Z")
NEWEST = ("2025-08-12T10:00Z", "2025-08-22T09:00Z")

Found = tuple[int, float, float]
"""Rows, the sum of their closes, and the seconds it took."""


def _fetch(url: str, folder: Path, how: str, line: Connection) -> None:
    """In a process of its own: get ready, wait for the start, fetch, and send what was found."""
    coordinator.MachineLimiter = partial(MachineLimiter, rules=Rules(limit=LIMIT))  # type: ignore[assignment, misc]
    clock = SystemClock()
    with Backbone(data_dir=folder, rest_url=url) as client:
        client.markets("KRW")
        line.send("ready")
        line.recv()
        begun = clock.monotonic()
        if how == "job":
            client.backfill("KRW-BTC", "1m", *SPAN).wait()
        elif how == "update":
            client.store.update("KRW-BTC", "1m").wait()
        else:
            client.candles("KRW-BTC", "1m", *SPAN)
        seconds = clock.monotonic() - begun
        frame = client.candles("KRW-BTC", "1m", *(NEWEST if how == "update" else SPAN), offline=True)
        line.send((len(frame), float(frame["close"].sum()), seconds))


class _Process:
    """A client in a process of its own that waits for `go`."""

    def __init__(self, venue: SimulatorServer, folder: Path, how: str) -> None:
        self._line, far = CONTEXT.Pipe()
        self.process = process(_fetch, venue.rest_url, folder, how, far, daemon=True)
        self.process.start()
        far.close()

    def ready(self) -> None:
        assert self._line.poll(120)
        assert self._line.recv() == "ready"

    def go(self) -> None:
        self._line.send("go")

    def found(self) -> Found:
        assert self._line.poll(120)
        found: Found = self._line.recv()
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.join(20)


@pytest.fixture(scope="module")
def venue() -> Iterator[SimulatorServer]:
    with SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True, limit=LIMIT) as server:
        yield server


@contextlib.contextmanager
def _processes(venue: SimulatorServer, folder: Path, *hows: str) -> Iterator[list[_Process]]:
    """Processes that are ready."""
    started = [_Process(venue, folder, how) for how in hows]
    try:
        for one in started:
            one.ready()
        yield started
    finally:
        for one in started:
            one.kill()


def _pages(venue: SimulatorServer) -> int:
    return len([one for one in venue.requests if one.group == "candles"])


@pytest.fixture(scope="module")
def alone(venue: SimulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What one process finds, and how long it takes."""
    before = _pages(venue)
    with _processes(venue, tmp_path_factory.mktemp("alone"), "call") as (one,):
        one.go()
        found = one.found()
    assert _pages(venue) - before <= PAGES + 2
    return found


@pytest.mark.parametrize("how", ["call", "job"])
def test_three_processes_share_the_pages_of_one_range(
    venue: SimulatorServer, alone: Found, tmp_path: Path, how: str
) -> None:
    """Three at once take about one's requests and one's time, and each has every row."""
    before = _pages(venue)
    with _processes(venue, tmp_path, how, how, how) as three:
        for one in three:
            one.go()
        found = [one.found() for one in three]
    assert [each[:2] for each in found] == [alone[:2]] * 3
    assert _pages(venue) - before <= 80
    assert max(each[2] for each in found) <= 2 * alone[2] + 1.0  # one after the other: three times


def test_updates_in_three_processes_share_the_work(venue: SimulatorServer, tmp_path: Path) -> None:
    """A series that ends ten days ago is brought up to now once."""
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as client:
        client.candles("KRW-BTC", "1m", "2025-08-12T09:00Z", NEWEST[0])
    with _processes(venue, tmp_path, "update", "update", "update") as three:
        before = _pages(venue)
        for one in three:
            one.go()
        found = [one.found() for one in three]
    assert len({each[:2] for each in found}) == 1
    assert found[0][0] >= (9 * 24 + 23) * 60 - 2  # the last minute has only just ended
    assert _pages(venue) - before <= 80


def test_pages_of_a_killed_process_are_asked_by_the_others(
    venue: SimulatorServer, alone: Found, tmp_path: Path
) -> None:
    """What a process had in flight when it was killed is asked again at once, and nothing else is."""
    before = _pages(venue)
    with _processes(venue, tmp_path, "call", "call", "call") as (first, second, third):
        begun = SystemClock().monotonic()
        for one in (first, second, third):
            one.go()
        while _pages(venue) - before < PAGES // 3 and SystemClock().monotonic() - begun < 20:
            os.sched_yield()
        first.kill()
        found = [one.found() for one in (second, third)]
    assert [each[:2] for each in found] == [alone[:2]] * 2
    assert _pages(venue) - before <= PAGES + 37  # 0.8 s of the killed one's pages was not on disk
