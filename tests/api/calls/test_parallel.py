"""Many markets on joblib's workers: here, in processes, on a real Dask cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import joblib
import pytest

from backbone import Backbone
from backbone.errors import IncompleteError, InputError
from backbone.simulator import SimulatorServer

LIMIT = 500  # the quota is not what is tested here

START, END = "2025-08-20T00:00Z", "2025-08-21T00:00Z"
MARKETS = ["KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL"]
pytestmark = pytest.mark.filterwarnings("ignore")  # joblib's engines warn of their own forks and sockets


def mean_close(frame: Any) -> tuple[int, float, int]:
    return len(frame), float(frame["close"].mean()), os.getpid()


def die(frame: Any) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return len(frame)


def refuse_xrp(frame: Any) -> int:
    if frame["close"].iloc[0] < 10_000:
        raise RuntimeError("too cheap")
    return len(frame)


def expected(client: Backbone) -> dict[str, int]:
    return {market: len(client.candles(market, "1h", START, END)) for market in MARKETS}


def test_map_in_this_process_uses_this_client(client: Backbone) -> None:
    """With one job the function runs here, on this client's connections and store."""
    found = dict(client.map(mean_close, MARKETS, "1h", START, END, n_jobs=1))
    assert set(found) == set(MARKETS)
    assert {pid for _, _, pid in found.values()} == {os.getpid()}
    frame = client.candles("KRW-ETH", "1h", START, END, offline=True)
    assert found["KRW-ETH"][:2] == (len(frame), float(frame["close"].mean()))


def test_map_in_processes_gives_the_same(client: Backbone) -> None:
    """Worker processes, each with a client of its own, give what this process would, into the same store."""
    found = dict(client.map(mean_close, MARKETS, "1h", START, END, n_jobs=2))
    assert os.getpid() not in {pid for _, _, pid in found.values()}
    for market in MARKETS:
        frame = client.candles(market, "1h", START, END, offline=True)
        assert found[market][:2] == (len(frame), float(frame["close"].mean()))


def test_map_lost_worker_is_one_error_that_says_so(client: Backbone) -> None:
    """A function that kills its worker ends in one error, not in a hang; what was fetched is stored."""
    with pytest.raises(IncompleteError, match="a worker was lost"):
        dict(client.map(die, MARKETS[:2], "1h", START, END, n_jobs=2))
    assert len(client.candles(MARKETS[0], "1h", START, END)) == 24


def test_map_error_of_one_market_comes_after_the_others(client: Backbone) -> None:
    """What the function raises in one market is raised last, as it was, with a note; the others are handed out."""
    results = client.map(refuse_xrp, MARKETS, "1h", START, END, n_jobs=1)
    found = dict(next(results) for _ in range(3))
    with pytest.raises(RuntimeError, match="too cheap") as caught:
        next(results)
    assert set(found) == {"KRW-BTC", "KRW-ETH", "KRW-SOL"}
    assert "KRW-XRP" in caught.value.__notes__[0]


def test_map_quote_currency_means_its_listed_markets(client: Backbone) -> None:
    """A quote currency is every market that the venue lists for it."""
    listed = list(client.markets("USDT").index)
    found = client.map(len, "USDT-*", "1d", "2025-08-20T00:00Z", "2025-08-21T00:00Z", n_jobs=1)
    assert sorted(market for market, _ in found) == sorted(listed)


def test_map_wrong_arguments_are_errors_before_any_work(client: Backbone, venue: SimulatorServer) -> None:
    """A thing that is no function, an unknown market or priority, and no worker at all are refused at once."""
    for wrong in (
        {"fn": 3},
        {"markets": ["KRW-NONE"]},
        {"priority": "critical"},
        {"n_jobs": 0},
        {"timeframe": "7m"},
    ):
        words: dict[str, Any] = {"fn": len, "markets": MARKETS, "timeframe": "1h", "start": START, "end": END} | wrong
        with pytest.raises(InputError):
            client.map(**words)
    assert not [one for one in venue.requests if one.group == "candles"]


# -- a Dask cluster


@contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    """A scheduler and worker processes on loopback."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=2, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as made,
        distributed.Client(made) as client,
    ):
        client.wait_for_workers(workers)
        yield client


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with local_cluster(2) as client:
        yield client


def test_map_on_a_cluster(client: Backbone, cluster: Any) -> None:
    """Inside `parallel_config("dask")` the markets go to the cluster's processes."""
    with joblib.parallel_config("dask"):
        results = client.map(mean_close, MARKETS, "1h", START, END)
    found = dict(results)
    workers = set(cluster.run(os.getpid).values())
    assert {pid for _, _, pid in found.values()} <= workers
    assert {market: rows for market, (rows, _, _) in found.items()} == expected(client)
