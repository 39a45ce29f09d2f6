"""What a page of candles costs the client, how many pages a thin market takes, and what an import costs.

Run: ``python -m tests.benchmarks.candles``. The exchange runs in a process of its own, so that CPU time is the client's
alone; a bare `requests` session that decodes the same pages takes turns with it. A page costs both of them more at the
venue's ten a second than at full speed: between two pages others have the processor and its caches. One full look of
Python's collector, which comes some seconds after the imports, is made before.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from tests.benchmarks import peers

NOW = "2025-08-22T09:00:00Z"
LIMIT = 500  # requests a second, so that a figure takes seconds
PAGES = 150
THIN = "KRW-CELR"  # trades about once in fourteen minutes
_spawn = multiprocessing.get_context("spawn")


def _serve(pipe: Connection) -> None:
    from backbone.simulator import SimulatorServer

    with SimulatorServer(seed=7, now=NOW, frozen=True, limit=LIMIT) as server:
        for back in range(0, PAGES * 200, 7200):  # history is made as it is asked for: make it before
            at = server.clock.now_us() - back * 60_000_000
            server.exchange.candles("KRW-BTC", "1m", at, 200, server.clock.now_us())
        pipe.send(server.rest_url)
        pipe.recv()


@contextlib.contextmanager
def venue() -> Iterator[str]:
    """The address of an exchange in another process."""
    pipe, theirs = _spawn.Pipe()
    process = _spawn.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield pipe.recv()
    finally:
        pipe.send("end")
        process.join()


def use_the_whole_limit() -> None:
    """Let clients of this process ask as often as this exchange allows."""
    from backbone.coordinator import coordinator as fetch
    from backbone.coordinator.quota.ledger import MemoryLimiter
    from backbone.coordinator.quota.rules import Rules

    fetch._open_limiter = lambda settings, clock: MemoryLimiter(clock, Rules(limit=LIMIT))  # type: ignore[assignment]


def cpu_of_pages(url: str, rounds: int) -> tuple[float, float]:
    """CPU milliseconds a page: the whole client with its store, and a bare session that decodes JSON."""
    from backbone import Backbone

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder, Backbone(data_dir=folder, rest_url=url) as client:
            client.candles("KRW-BTC", "1m", "2025-08-21", "2025-08-21T01:00Z")  # the connections, the market list
            begun = time.process_time()
            frame = client.candles("KRW-BTC", "1m", end="2025-08-20", count=PAGES * 200)
            took = time.process_time() - begun
        rest.wait(1.1)
        return took / frame.attrs["backbone"]["requests"]

    def bare() -> float:
        took = _bare_cpu(url, PAGES, 0.0)
        rest.wait(1.1)
        return took

    rest = threading.Event()  # neither runs into what the other used of the exchange's second
    ours()
    return _medians([(ours(), bare()) for _ in range(rounds)])


def _medians(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    ours, bare = zip(*pairs, strict=True)
    return statistics.median(ours) * 1e3, statistics.median(bare) * 1e3


def _bare_cpu(url: str, pages: int, every_s: float) -> float:
    """CPU seconds a page of a session that decodes JSON, with a pause of `every_s` seconds before each."""
    import requests

    pause = threading.Event()
    with requests.Session() as session:
        at = {"market": "KRW-BTC", "count": "200", "to": "2025-08-20T00:00:00Z"}
        session.get(f"{url}/v1/candles/minutes/1", params=at, timeout=10).json()
        gc.collect()
        begun = time.process_time()
        for _ in range(pages):
            pause.wait(every_s)
            rows = session.get(f"{url}/v1/candles/minutes/1", params=at, timeout=10).json()
            at["to"] = f"{rows[-1]['candle_date_time_utc']}Z"
        return (time.process_time() - begun) / pages


def cpu_at_the_legal_rate(rounds: int, seconds: float = 20.0) -> tuple[float, float]:
    """The same at ten pages a second: a backfill, and a bare session that asks a little slower.

    A backfill begins with small sections, each of which is brought to disk: what it costs is seen after some seconds.
    """
    from backbone import Backbone

    def ours(url: str) -> float:
        with tempfile.TemporaryDirectory() as folder, Backbone(data_dir=folder, rest_url=url) as client:
            client.candles("KRW-BTC", "1m", "2025-08-21", "2025-08-21T01:00Z")
            rest.wait(1.1)
            gc.collect()
            begun = time.process_time()
            job: Any = client.backfill("KRW-BTC", "1m", "2025-07-01")
            with contextlib.suppress(TimeoutError):
                job.wait(seconds, progress=False)
            took = (time.process_time() - begun) / job.progress.pages
            job.cancel()
        rest.wait(1.1)
        return took

    rest = threading.Event()
    with peers.venue() as (url, _):
        return _medians([(ours(url), _bare_cpu(url, int(seconds * 8), 0.1)) for _ in range(rounds)])


def pages_of_a_thin_month(url: str, market: str) -> tuple[float, float]:
    """The share of minutes that trade, and requests as a multiple of rows / 200."""
    from backbone import Backbone

    with tempfile.TemporaryDirectory() as folder, Backbone(data_dir=folder, rest_url=url) as client:
        frame = client.candles(market, "1m", "2025-07", "2025-08")
        facts: Any = frame.attrs["backbone"]
        return len(frame) / (31 * 1440), facts["requests"] / (len(frame) / 200)


def seconds_to_import(package: str) -> float:
    """A fresh interpreter that imports `package`, less one that imports nothing."""
    times = {}
    for code in ("pass", f"import {package}"):
        runs = []
        for _ in range(5):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            runs.append(time.perf_counter() - begun)
        times[code] = min(runs)
    return times[f"import {package}"] - times["pass"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ours, bare = cpu_at_the_legal_rate(min(options.rounds, 3))
    print(f"CPU a page at ten a second: {ours:.2f} ms; a bare session {bare:.2f} ms; {ours / bare:.2f} x (<= 1.32 x)")
    use_the_whole_limit()
    with venue() as url:
        ours, bare = cpu_of_pages(url, options.rounds)
        print(f"CPU a page at full speed: {ours:.2f} ms; a bare session {bare:.2f} ms; {ours / bare:.2f} x (<= 1.32 x)")
        density, multiple = pages_of_a_thin_month(url, THIN)
        print(f"a month in which {density:.0%} of minutes trade: {multiple:.2f} x rows / 200 requests (<= 2.5 x)")
    backbone_s, pandas_s = seconds_to_import("backbone"), seconds_to_import("pandas")
    print(f"import backbone: {backbone_s:.3f} s; import pandas {pandas_s:.3f} s (< 0.3 s)")


if __name__ == "__main__":
    main()
