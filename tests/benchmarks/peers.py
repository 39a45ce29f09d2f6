"""Our figures beside a bare session, pyupbit and ccxt, in one run: ``python -m tests.benchmarks.peers --seconds 20``.

The exchange runs in a process of its own, 30 ms away; every contestant runs in a fresh process with a fresh store. What
is not installed is left out of the table. Everything stays on loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

from backbone.errors import BackboneError, ClosedError, IncompleteError

__all__ = ["CONTESTANTS", "run", "spawn", "venue"]

NOW = "2025-08-22T09:00:00Z"
START = "2025-07-22T00:00:00Z"
LATENCY_S = 0.03
JITTER_S = 0.01
CONTESTANTS = ("backbone", "pyupbit", "ccxt")
spawn = multiprocessing.get_context("spawn")
_Task = Callable[[str, float], dict[str, float]]


# -- the venue -----------------------------------------------------------------------------------------------------


def _serve(pipe: Connection, window: str, jitter_s: float) -> None:
    from backbone.simulator import SimulatorServer

    with SimulatorServer(seed=7, now=NOW, frozen=True, latency_s=LATENCY_S, jitter_s=jitter_s, window=window) as server:
        span = 31 * 1440
        for back in range(0, span, 7200):  # the market's history is made as it is asked for: make it before the race
            server.exchange.candles(
                "KRW-BTC", "1m", server.clock.now_us() - back * 60_000_000, 200, server.clock.now_us()
            )
        server.exchange.candles("KRW-BTC", "1M", server.clock.now_us(), 200, server.clock.now_us())
        pipe.send(server.rest_url)
        while (asked := pipe.recv()) != "end":
            if isinstance(asked, list):  # markets whose days of two years are to be made
                for market, back in itertools.product(asked, (0, 200, 400)):
                    end = server.clock.now_us() - back * 86_400_000_000
                    server.exchange.candles(market, "1d", end, 200, server.clock.now_us())
                pipe.send(len(asked))
                continue
            if asked == "queries":
                pipe.send([dict(one.query) for one in server.requests if one.group == "candles"])
                continue
            counts = server.counts().get("candles", {})
            pipe.send((sum(counts.values()), counts.get(429, 0) + counts.get(418, 0)))
            server.reset_log()


@contextlib.contextmanager
def venue(window: str = "fixed", jitter_s: float = 0.0) -> Iterator[tuple[str, Connection]]:
    pipe, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, window, jitter_s), daemon=True)
    process.start()
    try:
        yield pipe.recv(), pipe
    finally:
        pipe.send("end")
        process.join()


def _race(pipe: Connection, task: _Task, url: str, seconds: float) -> None:
    try:
        pipe.send(task(url, seconds))
    except Exception as exc:  # noqa: BLE001 - another client's failure is a result, shown in the table
        pipe.send(f"{type(exc).__name__}: {exc}"[:80])


def _apart(task: _Task, url: str, seconds: float = 0.0) -> dict[str, float] | str:
    """`task` in a process of its own."""
    pipe, theirs = spawn.Pipe()
    process = spawn.Process(target=_race, args=(theirs, task, url, seconds), daemon=False)
    process.start()
    found: dict[str, float] | str = pipe.recv()
    process.join()
    return found


# -- the contestants -------------------------------------------------------------------------------------------------


def _rested(work: Callable[[], Any], times: int = 5) -> dict[str, float]:
    """The median time of `work` (what it says itself, or its duration), each run with the venue's seconds all free."""
    rest, found = threading.Event(), []
    for _ in range(times):
        rest.wait(1.3)
        begun = time.perf_counter()
        said = work()
        found.append(said if isinstance(said, float) else time.perf_counter() - begun)
    return {"ms": statistics.median(found) * 1000}


def _thousand_backbone(url: str, _: float) -> dict[str, float]:
    from backbone import Backbone

    def work() -> float:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            with Backbone(data_dir=folder, rest_url=url) as client:
                frame = client.candles("KRW-BTC", "1m", end="2025-08-22T08:00:00Z", count=1000)
                took = time.perf_counter() - begun
                assert len(frame) == 1000
        return took

    work()  # imports
    return _rested(work)


def _thousand_pyupbit(url: str, _: float) -> dict[str, float]:
    pyupbit = _pyupbit(url)
    return _rested(lambda: pyupbit.get_ohlcv("KRW-BTC", "minute1", count=1000, to="2025-08-22 08:00:00"))


def _thousand_ccxt(url: str, _: float) -> dict[str, float]:
    client = _ccxt(url)
    client.load_markets()

    def work() -> None:
        since = client.parse8601("2025-08-22T08:00:00Z") - 1000 * 60_000
        rows: list[Any] = []
        while len(rows) < 1000:
            rows += client.fetch_ohlcv("BTC/KRW", "1m", since=since + len(rows) * 60_000, limit=200)

    return _rested(work)


def _bare_trips(url: str, _: float) -> dict[str, float]:
    """Two round trips: a connection and a request of one page."""
    import requests

    def work() -> None:
        with requests.Session() as session:
            session.get(f"{url}/v1/candles/minutes/1", params={"market": "KRW-BTC", "count": "200"}, timeout=10).json()

    return _rested(work)


def _backfill_backbone(url: str, seconds: float) -> dict[str, float]:
    from backbone import Backbone
    from backbone.api.calls.backfill import Job

    with tempfile.TemporaryDirectory() as folder, Backbone(data_dir=folder, rest_url=url) as client:
        client.candles("KRW-ETH", "1m", count=1)  # imports
        cpu, begun = time.process_time(), time.perf_counter()
        job = client.backfill("KRW-BTC", "1m", START)
        assert isinstance(job, Job)
        with contextlib.suppress(TimeoutError):
            job.wait(seconds, progress=False)
        pages, took = job.progress.pages, time.perf_counter() - begun
        spent = time.process_time() - cpu
        job.cancel()
    return {"pages_s": pages / took, "cpu_ms": spent * 1000 / pages}


def _backfill_pyupbit(url: str, seconds: float) -> dict[str, float]:
    pyupbit = _pyupbit(url)
    begun, pages = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:  # its own pacing: a tenth of a second between pages
        pyupbit.get_ohlcv("KRW-BTC", "minute1", count=2000, to="2025-08-22 08:00:00")
        pages += 10
    return {"pages_s": pages / (time.perf_counter() - begun)}


def _backfill_ccxt(url: str, seconds: float) -> dict[str, float]:
    client = _ccxt(url)
    client.load_markets()
    since = client.parse8601(START)
    begun, pages = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        client.fetch_ohlcv("BTC/KRW", "1m", since=since + pages * 12_000_000, limit=200)
        pages += 1
    return {"pages_s": pages / (time.perf_counter() - begun)}


def _pyupbit(url: str) -> Any:
    import pyupbit  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from pyupbit import request_api

    real = request_api.requests.get
    request_api.requests.get = lambda at, **words: real(at.replace("https://api.upbit.com", url), **words)
    return pyupbit


def _ccxt(url: str) -> Any:
    import ccxt  # type: ignore[import-not-found,import-untyped,unused-ignore]

    client = ccxt.upbit({"enableRateLimit": True})
    for kind in ("public", "private"):
        client.urls["api"][kind] = url
    return client


# -- the bot ---------------------------------------------------------------------------------------------------------


def _bot_bare(url: str, seconds: float) -> dict[str, float]:
    import requests

    with requests.Session() as session:
        at = f"{url}/v1/ticker"
        return _paced(lambda: session.get(at, params={"markets": "KRW-BTC"}, timeout=10).json(), seconds)


def _bot_backbone(url: str, seconds: float) -> dict[str, float]:
    """A bot's tickers at critical, while fifty threads of the same client ask at normal."""
    from backbone import Backbone

    with tempfile.TemporaryDirectory() as folder, Backbone(data_dir=folder, rest_url=url) as client:
        codes = list(client.markets("KRW").index)
        done = threading.Event()

        def crowd(number: int) -> None:
            while not done.is_set():
                try:
                    client.tickers(codes[number], priority="normal", max_age=0)
                except (ClosedError, IncompleteError):
                    return

        threads = [threading.Thread(target=crowd, args=(n,), daemon=True) for n in range(50)]
        for thread in threads:
            thread.start()
        found = _paced(lambda: client.tickers("KRW-BTC", priority="critical", max_age=0), seconds)
        done.set()
        client.close()
        for thread in threads:
            thread.join()
    return found


def _paced(work: Callable[[], Any], seconds: float) -> dict[str, float]:
    """The spread of `work`'s time, asked about twice a second; the first two asks are the warming up."""
    pause = threading.Event()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 6:
        begun = time.perf_counter()
        work()
        found.append((time.perf_counter() - begun) * 1000)
        pause.wait(0.45)
    found = sorted(found[2:])
    return {"p50": statistics.median(found), "p95": found[min(len(found) - 1, int(len(found) * 0.95))]}


def _low(url: str, stop: Any) -> None:
    from backbone import Backbone

    with tempfile.TemporaryDirectory() as folder, Backbone(data_dir=folder, rest_url=url) as client:
        with contextlib.suppress(BackboneError):
            client.backfill("KRW-BTC", "1m", START)
            client.backfill("KRW-ETH", "1m", START)
        stop.wait()


# -- the table -------------------------------------------------------------------------------------------------------


def run(seconds: float, say: Callable[[str], None]) -> None:
    """Run all parts, `seconds` each where a part lasts as long as asked, and `say` each line of the table."""
    peers = [name for name in CONTESTANTS[1:] if find_spec(name)]
    missing = [name for name in CONTESTANTS[1:] if name not in peers]
    say(f"the venue: embedded, {LATENCY_S * 1000:.0f} ms away, 10 requests a second and group; each figure in one run")
    if missing:
        say(f"not installed, left out: {', '.join(missing)}")
    _thousand(peers, say)
    _rates(peers, seconds, say)
    _bot(seconds, say)


def _thousand(peers: list[str], say: Callable[[str], None]) -> None:
    tasks: dict[str, _Task] = {"backbone": _thousand_backbone, "pyupbit": _thousand_pyupbit, "ccxt": _thousand_ccxt}
    say("\n1,000 candles, cold (median of 5)")
    with venue() as (url, _):
        bare = _apart(_bare_trips, url)
        say(f"  {'two round trips, bare session':34} {_figure(bare, 'ms', ' ms')}")
        for name in ["backbone", *peers]:
            say(f"  {name:34} {_figure(_apart(tasks[name], url), 'ms', ' ms')}")


def _rates(peers: list[str], seconds: float, say: Callable[[str], None]) -> None:
    tasks: dict[str, _Task] = {"backbone": _backfill_backbone, "pyupbit": _backfill_pyupbit, "ccxt": _backfill_ccxt}
    for window in ("fixed", "sliding"):
        say(f"\nbackfill for {seconds:.0f} s, {JITTER_S * 1000:.0f} ms of jitter, the venue counts {window} seconds")
        for name in ["backbone", *peers]:
            with venue(window, JITTER_S) as (url, pipe):
                found = _apart(tasks[name], url, seconds)
                pipe.send("count")
                _, refused = pipe.recv()
            rate = found["pages_s"] if isinstance(found, dict) else 0.0
            cpu = f", {found['cpu_ms']:.1f} ms of CPU a page" if isinstance(found, dict) and "cpu_ms" in found else ""
            failed = "" if isinstance(found, dict) else f", stopped: {found}"
            say(
                f"  {name:34} {rate:5.2f} pages/s = {rate * 10:.0f} % of the legal rate, {refused} refused{cpu}{failed}"
            )


def _bot(seconds: float, say: Callable[[str], None]) -> None:
    say("\na bot's ticker, while 3 processes backfill at low and 50 threads ask at normal")
    with venue() as (url, _):
        bare = _apart(_bot_bare, url, seconds)
        say(f"  {'bare requests.Session, alone':34} {_spread(bare)}")
        stop = spawn.Event()
        others = [spawn.Process(target=_low, args=(url, stop), daemon=True) for _ in range(3)]
        for process in others:
            process.start()
        threading.Event().wait(3.0)  # until they are at work
        ours = _apart(_bot_backbone, url, seconds)
        stop.set()
        for process in others:
            process.join()
        say(f"  {'backbone at critical, in the crowd':34} {_spread(ours)}")
        if isinstance(bare, dict) and isinstance(ours, dict):
            say(f"  p95 {ours['p95'] - bare['p95']:+.1f} ms (the promise: at most +10)")


def _figure(found: dict[str, float] | str, name: str, unit: str) -> str:
    return f"{found[name]:.1f}{unit}" if isinstance(found, dict) else f"failed: {found}"


def _spread(found: dict[str, float] | str) -> str:
    return f"{_figure(found, 'p50', ' ms p50')}, {_figure(found, 'p95', ' ms p95')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each timed part runs (20)")
    run(max(3.0, parser.parse_args().seconds), lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
