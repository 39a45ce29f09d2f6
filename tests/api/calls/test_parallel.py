"""Many markets on joblib's workers: here, in processes, on a real Dask cluster, with workers killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import pytest

from backbone import Backbone
from backbone.api.calls.backfill import Job
from backbone.api.calls.parallel import SpreadJob
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


def die_once(frame: Any, marker: str) -> int:
    """Kill the worker the first time it is called, of all."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return len(frame)
    os.kill(os.getpid(), signal.SIGKILL)
    return -1


class DieOnce:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __call__(self, frame: Any) -> int:
        return die_once(frame, self.marker)


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


def test_map_redoes_the_markets_of_a_killed_process(client: Backbone, tmp_path: Path) -> None:
    """A worker process that is killed loses nothing: its markets are done again."""
    found = dict(client.map(DieOnce(tmp_path / "died"), MARKETS, "1h", START, END, n_jobs=2))
    assert (tmp_path / "died").exists()
    assert found == expected(client)


def test_map_gives_up_a_market_that_kills_every_worker(client: Backbone) -> None:
    """A function that always kills its worker ends in one error that says so, not in a hang."""
    with pytest.raises(IncompleteError, match="lost with their workers"):
        dict(client.map(die, MARKETS[:2], "1h", START, END, n_jobs=2))


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


def test_map_wrong_words_are_errors_before_any_work(client: Backbone, venue: SimulatorServer) -> None:
    """A thing that is no function, an unknown market or priority, and no worker at all are refused at once."""
    for wrong in (
        {"fn": 3},
        {"markets": ["KRW-NONE"]},
        {"priority": "critical"},
        {"n_jobs": 0},
        {"timeframe": "2m"},
    ):
        words: dict[str, Any] = {"fn": len, "markets": MARKETS, "timeframe": "1h", "start": START, "end": END} | wrong
        with pytest.raises(InputError):
            client.map(**words)
    assert not [one for one in venue.requests if one.group == "candles"]


def test_backfill_of_many_markets_runs_on_the_configured_workers(client: Backbone) -> None:
    """Inside `parallel_config` a backfill of several markets is spread; outside, or of one market, it is not."""
    assert isinstance(client.backfill(MARKETS[:2], "1d", START, END), Job)
    with joblib.parallel_config("loky", n_jobs=2):
        assert isinstance(client.backfill(MARKETS[0], "1d", START, END), Job)
        job = client.backfill(MARKETS, "1h", START, END)
    assert isinstance(job, SpreadJob)
    assert job.state == "running"
    frames = list(job.sections())
    assert sorted(frame["market"].iloc[0] for frame in frames) == sorted(MARKETS)
    assert job.state == "done"
    assert job.progress.markets_done == 4
    assert job.progress.rows == sum(expected(client).values())
    job.cancel()
    assert job.state == "done", "a job that is over is not cancelled any more"
    whole = job.result()
    assert whole.equals(client.candles(MARKETS, "1h", START, END))


def test_backfill_cancelled_keeps_what_arrived(client: Backbone) -> None:
    """A cancelled spread job starts nothing more and says so."""
    with joblib.parallel_config("loky", n_jobs=2):
        job = client.backfill(MARKETS, "1h", START, END)
    job.cancel()
    assert job.wait().state == "cancelled"
    assert len(client.candles(MARKETS, "1h", START, END)) == sum(expected(client).values())


def test_backfill_names_the_market_that_could_not_be_had(client: Backbone, venue: SimulatorServer) -> None:
    """A market that could not be had is an error after the others; their rows are in the frame."""
    venue.faults.add("garbage", match="KRW-SOL", times=None)
    with joblib.parallel_config("loky", n_jobs=2):
        job = client.backfill(MARKETS, "1h", START, END)
    with pytest.raises(IncompleteError) as caught:
        job.result()
    job.cancel()
    assert job.state == "incomplete"
    now = job.progress
    assert (now.markets_done, now.fraction) == (3, 0.75)
    assert now.pages > 3, "what was asked for the fourth is counted too"
    assert set(caught.value.frame["market"]) == set(MARKETS) - {"KRW-SOL"}


# -- a Dask cluster


@contextmanager
def local_cluster(workers: int, failures: int = 3) -> Iterator[Any]:
    """A scheduler and worker processes on loopback, each restarted when it dies."""
    distributed = pytest.importorskip("distributed")
    with (
        __import__("dask").config.set({"distributed.scheduler.allowed-failures": failures}),
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


def test_map_on_a_cluster_redoes_the_markets_of_a_killed_worker(client: Backbone, cluster: Any, tmp_path: Path) -> None:
    """One of two workers killed midway: the other does its markets again."""
    with joblib.parallel_config("dask"):
        found = dict(client.map(DieOnce(tmp_path / "died"), MARKETS, "1h", START, END))
    assert (tmp_path / "died").exists()
    assert found == expected(client)
    cluster.wait_for_workers(2)


def test_cluster_without_the_package_is_one_error_before_work(client: Backbone, cluster: Any) -> None:
    """Workers that cannot import backbone are found before any task is sent."""
    import sys

    def forget() -> None:
        sys.modules["backbone"] = None  # type: ignore[assignment]

    def remember() -> None:
        sys.modules.pop("backbone", None)

    cluster.run(forget)
    try:
        with joblib.parallel_config("dask"), pytest.raises(InputError, match="have not"):
            client.map(len, MARKETS, "1h", START, END)
    finally:
        cluster.run(remember)


def test_map_on_a_cluster_gives_up_a_market_that_kills_every_worker(client: Backbone) -> None:
    """What joblib does not pass on, a task given up with its workers, is an error and not a hang."""
    with (
        local_cluster(1, failures=0),
        joblib.parallel_config("dask"),
        pytest.raises(IncompleteError, match="lost with their workers"),
    ):
        dict(client.map(die, MARKETS[:1], "1h", START, END))
