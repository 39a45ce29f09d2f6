"""All of it together: two hosts fill one bucket through a Dask cluster under one quota, and one of them is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.clock import SystemClock
from backbone.simulator import SimulatorServer
from tests.coordinator.quota.test_redis import RedisServer, own  # noqa: F401
from tests.storage.s3 import S3Server, place, s3_server  # noqa: F401

# ruff: noqa: F811 - fixtures
pytestmark = [
    pytest.mark.skipif(find_spec("redis") is None, reason="redis is not installed"),
    pytest.mark.skipif(find_spec("distributed") is None, reason="distributed is not installed"),
    pytest.mark.filterwarnings("ignore"),  # the engines warn of their own forks and sockets
]

START, END = "2025-08-20T00:00Z", "2025-08-22T00:00Z"
MARKETS = ["KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE", "KRW-ADA"]


class Host:
    """A loopback "host": a Dask worker process of its own name, with its own caches."""

    def __init__(self, name: str, scheduler: str, folder: Path) -> None:
        where = {
            "BACKBONE_HOST": name,
            "BACKBONE_CACHE_DIR": str(folder / name),
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        argv = ["-m", "distributed.cli.dask_worker", scheduler, "--nthreads", "2", "--no-nanny", "--no-dashboard"]
        argv += ["--host", "127.0.0.1", "--name", name, "--local-directory", str(folder)]
        self.process = subprocess.Popen(
            [sys.executable, *argv], env={**os.environ, **where}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def hosts(tmp_path: Path, place: str) -> Iterator[tuple[Any, list[Host]]]:
    """A scheduler and two hosts that know the bucket from their environment alone."""
    import distributed

    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1") as cluster,
        distributed.Client(cluster) as client,
    ):
        made = [Host(f"{tmp_path.name}-{name}", cluster.scheduler_address, tmp_path) for name in "ab"]
        try:
            client.wait_for_workers(2, timeout=60)
            yield client, made
        finally:
            for host in made:
                host.kill()


def wait_for(count: int, venue: SimulatorServer) -> None:
    clock, pause = SystemClock(), threading.Condition()
    deadline = clock.monotonic() + 60
    while len([one for one in venue.requests if one.group == "candles"]) < count:
        assert clock.monotonic() < deadline
        with pause:
            clock.wait(pause, 0.02)


@pytest.mark.slow
def test_two_hosts_fill_one_bucket_and_one_is_killed(
    venue: SimulatorServer, hosts: tuple[Any, list[Host]], place: str, own: RedisServer
) -> None:
    """The other host does the killed one's markets; the store is complete and sound; the quota was never exceeded."""
    from joblib import parallel_config

    _, workers = hosts
    urls = {"rest_url": venue.rest_url, "ws_url": venue.ws_url}
    with Backbone(data_dir=place, quota=own.url, **urls) as client:
        with parallel_config("dask"):
            results = client.map(len, MARKETS, "1m", START, END)
        wait_for(20, venue)
        workers[0].kill()
        assert set(dict(results)) == set(MARKETS)
        assert venue.counts()["candles"].get(429, 0) == 0
        assert venue.peak("candles") <= 10
        asked = len(venue.requests)
        frame = client.candles(MARKETS, "1m", START, END)
        assert len(venue.requests) == asked
        assert len(client.store.verify()) == 0
        span = client.session.time("start", START), client.session.time("end", END)
        for market in MARKETS:
            truth = venue.exchange.candle_table(market, "1m", *span)
            mine = frame[frame["market"] == market]
            assert mine["close"].to_list() == truth.column("close").to_pylist()
            assert mine["value"].to_list() == truth.column("value").to_pylist()
