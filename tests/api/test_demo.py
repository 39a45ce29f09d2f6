"""The demo client: the same everywhere, on its own exchange or on one that the caller scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from backbone import Backbone
from backbone.errors import InputError
from backbone.simulator import SimulatorServer

NOW = "2025-08-22T09:00:00Z"


def test_demo_is_the_same_twice_and_another_with_another_seed() -> None:
    """Seed and clock decide everything; the default clock is the tutorials'."""
    frames = []
    for words in ({"seed": 7, "now": NOW}, {}, {"seed": 8}):
        with Backbone.demo(**words) as client:  # type: ignore[arg-type]
            frames.append(client.candles("KRW-BTC", "1m", count=5))
    assert frames[0].equals(frames[1])
    assert not frames[0].equals(frames[2])
    assert str(frames[0].index[-1]) == "2025-08-22 17:58:00+09:00"


def test_demo_leaves_nothing_behind() -> None:
    """Its exchange ends with it, and its temporary store is removed."""
    client = Backbone.demo()
    folder = Path(client.data_dir)
    client.candles("KRW-BTC", "1m", count=5)
    assert folder.is_dir()
    client.close()
    assert not folder.exists()


def test_demo_on_a_server_of_ones_own_follows_its_script_and_clock() -> None:
    """The server is started, its faults and clock are the caller's, and it is left running."""
    server = SimulatorServer(seed=7, now=NOW, frozen=True)
    with Backbone.demo(server=server) as client:
        assert str(client.candles("KRW-BTC", "1m", count=1).index[-1]) == "2025-08-22 17:58:00+09:00"
        server.clock.advance(600)
        assert str(client.candles("KRW-BTC", "1m", count=1).index[-1]) == "2025-08-22 18:08:00+09:00"
        assert client.health(), "its clock is not this machine's, and should not be"
    before = len(server.requests)
    with Backbone.demo(server=server) as another:
        another.markets()
    assert len(server.requests) == before + 4, "the list, its second witness, its price steps, and the prices"
    server.close()


def test_demo_with_a_server_and_a_seed_is_refused() -> None:
    """A server of one's own has a seed and a clock already."""
    with SimulatorServer(frozen=True) as server, pytest.raises(InputError, match="server"):
        Backbone.demo(seed=8, server=server)
    with pytest.raises(InputError, match="server"):
        Backbone.demo(server="http://127.0.0.1:1")


def test_demo_keeps_a_folder_that_was_named(tmp_path: Path) -> None:
    """Only a temporary store is removed."""
    with Backbone.demo(data_dir=tmp_path) as client:
        client.candles("KRW-BTC", "1m", count=5)
    assert list(tmp_path.rglob("*.parquet"))
