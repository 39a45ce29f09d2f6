"""A hundred threads on one client."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pandas as pd
import pytest

from backbone import Backbone
from backbone.coordinator import coordinator as fetch
from backbone.coordinator.quota.ledger import MemoryLimiter
from backbone.coordinator.quota.rules import Rules
from backbone.errors import BackboneError
from backbone.simulator import SimulatorServer


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_open_limiter", lambda settings, clock: MemoryLimiter(clock, Rules(limit=500)))


def test_hundred_threads_ask_once_and_a_close_in_the_storm_ends_them(tmp_path: Path, unhurried: None) -> None:
    """The same ranges are asked once, all get the same frame, and closing ends whoever still waits."""
    with contextlib.ExitStack() as stack:
        venue = stack.enter_context(SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True, limit=500))
        client = stack.enter_context(Backbone(data_dir=tmp_path, rest_url=venue.rest_url))
        frames: dict[int, list[pd.DataFrame]] = {hour: [] for hour in range(4)}

        def same(number: int) -> None:
            hour = number % 4
            frames[hour].append(client.candles("KRW-BTC", "1m", f"2025-08-1{hour}T00:00Z", f"2025-08-1{hour}T08:00Z"))

        _run([threading.Thread(target=same, args=(n,)) for n in range(100)])
        for found in frames.values():
            assert len(found) == 25
            assert all(frame.equals(found[0]) for frame in found)
        assert sum(venue.counts()["candles"].values()) <= 12  # three pages for each of four ranges, and no more

        ended: list[bool] = []

        def different(number: int) -> None:
            with contextlib.suppress(BackboneError):
                client.candles("KRW-ETH", "1m", f"2025-0{1 + number % 6}-01", f"2025-0{1 + number % 6}-20")
            ended.append(True)

        storm = [threading.Thread(target=different, args=(n,)) for n in range(100)]
        for thread in storm:
            thread.start()
        client.close()
        for thread in storm:
            thread.join(20)
        assert len(ended) == 100


def _run(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
