"""One embedded exchange for the real client libraries of others, skipped with a reason where they are absent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backbone.simulator import Exchange, SimulatorServer

NOW = "2025-08-22T09:00:30Z"
NOW_US = 1_755_853_230_000_000


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatorServer]:
    """Its clock stands still; the limit does not get in the way of a quick test."""
    with SimulatorServer(seed=7, now=NOW, frozen=True, limit=1000) as made:
        yield made


@pytest.fixture(scope="session")
def exchange() -> Exchange:
    """The truth behind the server."""
    return Exchange(7)
