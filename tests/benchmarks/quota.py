"""What the quota and its queue cost and hold, in one run: ``python -m tests.benchmarks.quota [part …]``.

Parts: ``permit`` (a permit of the machine's ledger beside the lock it rests on), ``critical`` (a bot's request beside
a bare `requests.Session`, while three processes backfill and fifty threads ask), ``rate`` (four processes together for
a minute, for both kinds of window). The venue is the embedded exchange in a process of its own, 30 ms away with 10 ms
of jitter; every client is a process of its own too.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from backbone.clock import SystemClock
from backbone.coordinator.metrics import Metrics
from backbone.coordinator.quota import ledger as ledgers
from backbone.coordinator.quota.ledger import FileLimiter, MachineLimiter
from backbone.coordinator.scheduler import Scheduler
from backbone.errors import BackboneError, ClosedError
from backbone.model import Priority
from backbone.routing.rest import RestClient
from backbone.routing.wire import Ask, candles_ask
from backbone.timeframe import parse_timeframe

NOW = "2025-08-22T09:00:00Z"
NOW_US = 1_755_853_200_000_000
LATENCY_S, JITTER_S = 0.03, 0.01
_MINUTE = parse_timeframe("1m")
_spawn = multiprocessing.get_context("spawn")
_pages = itertools.count()


def page() -> Ask:
    """A page that no other thread asks for at the moment; all from a few hours, so that the venue need not think."""
    return candles_ask("KRW-BTC", _MINUTE, NOW_US - next(_pages) % 600 * 60_000_000, 20)


# ------------------------------------------------------------------------------------------------ the venue


def _serve(pipe: Connection, window: str) -> None:
    from backbone.simulator import SimulatorServer

    with SimulatorServer(seed=7, now=NOW, latency_s=LATENCY_S, jitter_s=JITTER_S, window=window) as server:
        pipe.send(server.rest_url)
        while True:
            word = pipe.recv()
            if word == "end":
                return
            if word == "forget":
                server.reset_log()
                continue
            log = server.requests
            pipe.send(([(each.mono, each.group, each.status) for each in log], server.peak("candles")))


class Venue:
    """The embedded exchange in another process."""

    def __init__(self, window: str) -> None:
        self._pipe, other = _spawn.Pipe()
        self._process = _spawn.Process(target=_serve, args=(other, window), daemon=True)
        self._process.start()
        self.url: str = self._pipe.recv()
        rest = RestClient(self.url, clock=SystemClock())
        pause = threading.Event()
        for _ in range(10):  # its market is made as it is asked for
            rest.send(page())
            next(itertools.islice(_pages, 59, None))
            pause.wait(0.3)
        rest.close()
        pause.wait(1.0)
        self._pipe.send("forget")

    def log(self) -> tuple[list[tuple[float, str, int]], int]:
        """Every request (monotonic time, group, status), and the most of group candles in any second."""
        self._pipe.send("log")
        found: tuple[list[tuple[float, str, int]], int] = self._pipe.recv()
        return found

    def close(self) -> None:
        self._pipe.send("end")
        self._process.join()


@contextmanager
def venue(window: str) -> Iterator[Venue]:
    opened = Venue(window)
    try:
        yield opened
    finally:
        opened.close()


# ---------------------------------------------------------------------------------------------- the clients


def _client(url: str, folder: str) -> tuple[RestClient, Scheduler]:
    clock = SystemClock()
    rest = RestClient(url, clock=clock)
    limiter = MachineLimiter(url, clock, folder=Path(folder))
    return rest, Scheduler(limiter, rest.send, clock=clock, metrics=Metrics())  # type: ignore[arg-type]


def _backfill(url: str, folder: str, pipe: Connection) -> None:
    """Ask for pages at low until the pipe has a message."""
    rest, scheduler = _client(url, folder)
    pipe.send("ready")

    def work() -> None:
        try:
            while True:
                scheduler.request(page(), Priority.LOW)
        except ClosedError:
            return

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    pipe.recv()
    scheduler.close()
    for thread in threads:
        thread.join()
    rest.close()


@contextmanager
def backfills(url: str, folder: str, count: int) -> Iterator[None]:
    running = []
    for _ in range(count):
        pipe, other = _spawn.Pipe()
        running.append((_spawn.Process(target=_backfill, args=(url, folder, other), daemon=True), pipe))
        running[-1][0].start()
    for _, pipe in running:
        pipe.recv()
    try:
        yield
    finally:
        for _, pipe in running:
            pipe.send("end")
        for process, _ in running:
            process.join()


# ------------------------------------------------------------------------------------------------- the parts


def _best_us(work: Callable[[], Any], times: int = 50, rounds: int = 1500) -> list[float]:
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(times):
            work()
        found.append((time.perf_counter() - begun) / times * 1e6)
    return found


def permit() -> None:
    """A free permit, as an idle machine's client takes it, and what of it is the kernel's file lock."""
    with tempfile.TemporaryDirectory() as folder:
        limiter = FileLimiter(Path(folder) / "host.quota", SystemClock())
        now = [1e6]

        groups = itertools.cycle(["candles", "crix-trades", "ticker", "orderbook", "market"])

        def take(priority: Priority) -> Callable[[], None]:
            def one() -> None:
                now[0] += 0.06  # a busy client: some sixteen permits a second
                limiter.take(next(groups), priority, now[0], now[0])

            return one

        limiter.take("candles", Priority.LOW, 0.0, now[0])
        fd = limiter._fd
        rows = {"the file lock alone": _best_us(lambda: (ledgers._try_lock(fd), ledgers._unlock(fd)))}
        for priority in (Priority.LOW, Priority.NORMAL, Priority.CRITICAL):
            rows[f"permit, {priority.value}"] = _best_us(take(priority))
        print("permit of the machine's ledger                 best     median")
        for name, found in rows.items():
            print(f"  {name:40s} {min(found):6.2f} us {statistics.median(found):6.2f} us")
        limiter.close()


def _timed(work: Callable[[], Any], times: int, pause_s: float) -> list[float]:
    found = []
    pause = threading.Event()
    for _ in range(times):
        begun = time.perf_counter()
        work()
        found.append((time.perf_counter() - begun) * 1e3)
        pause.wait(pause_s)
    return sorted(found)


def _print(name: str, found: list[float]) -> None:
    p50, p95 = found[len(found) // 2], found[int(len(found) * 0.95)]
    print(f"  {name:40s} p50 {p50:6.1f} ms   p95 {p95:6.1f} ms   max {found[-1]:6.1f} ms")


def critical(seconds: float = 30.0) -> None:
    """A bot's request every 400 ms, bare and alone, then through us while everybody else works."""
    import requests

    times = int(seconds / 0.45)
    with venue("fixed") as opened, tempfile.TemporaryDirectory() as folder:
        rest, scheduler = _client(opened.url, folder)
        session = requests.Session()
        url = f"{opened.url}/v1/candles/minutes/1?market=KRW-BTC&count=20"
        session.get(url)
        bare = _timed(lambda: session.get(url).json(), times, 0.4)
        ask = candles_ask("KRW-BTC", _MINUTE, None, 20)
        lane = RestClient(opened.url, clock=SystemClock(), pool=4)
        end = threading.Event()

        def normal() -> None:
            while not end.is_set():
                try:
                    scheduler.request(page(), Priority.NORMAL)
                except BackboneError:
                    return

        with backfills(opened.url, folder, 3):
            threads = [threading.Thread(target=normal) for _ in range(50)]
            for thread in threads:
                thread.start()
            lane.warm()
            scheduler.direct(ask, lane.send)  # type: ignore[arg-type]
            end.wait(2.0)
            ours = _timed(lambda: scheduler.direct(ask, lane.send), times, 0.4)  # type: ignore[arg-type]
            end.set()
            quota = scheduler.status()["quota"]["candles"]
            scheduler.close()
            for thread in threads:
                thread.join()
        log, peak = opened.log()
        print("critical, group candles, venue 30 ms away, beside 3 backfills and 50 threads at normal")
        _print("bare requests.Session, alone", bare)
        _print("backbone at critical, under load", ours)
        print(f"  p95 {ours[int(times * 0.95)] - bare[int(times * 0.95)]:+.1f} ms (must be at most +10)")
        refused = sum(1 for _, _, status in log if status != 200)
        print(f"  refused {refused}, most in a second {peak}, granted {quota['granted']}")
        rest.close()


def rate(seconds: float = 60.0) -> None:
    """Four processes with endless low work for a minute, for each kind of window."""
    for window in ("fixed", "sliding"):
        with venue(window) as opened, tempfile.TemporaryDirectory() as folder:
            with backfills(opened.url, folder, 4):
                wait = threading.Event()
                wait.wait(seconds + 2.0)
                log, peak = opened.log()
            times = [mono for mono, _, _ in log]
            times = [mono for mono in times if times[0] + 2.0 <= mono < times[0] + 2.0 + seconds]
            refused = sum(1 for _, _, status in log if status != 200)
            share = len(times) / (10 * seconds)
            print(
                f"four processes, {window} seconds: {len(times)} in {seconds:g} s = {share:.1%} of the legal rate "
                f"(must be 95 %), refused {refused}, most in any second {peak}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["permit", "critical", "rate"])
    parser.add_argument("--seconds", type=float, default=None)
    args = parser.parse_args()
    for part in args.parts:
        if part == "permit":
            permit()
        elif part == "critical":
            critical(args.seconds or 30.0)
        elif part == "rate":
            rate(args.seconds or 60.0)
        else:
            parser.error(f"unknown part {part}")


if __name__ == "__main__":
    main()
