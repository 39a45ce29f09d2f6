"""Four backfills beside a bot that asks for candles at critical: ``python -m tests.stress.bot --seconds 30``.

Real processes, on the embedded exchange 30 ms away with 10 ms of jitter, for both kinds of window. Prints the pages a
second of all together and of the backfills alone, the bot's latencies beside a bare session's alone in the same run,
what was refused (nothing may be), and the rate again from five seconds after the bot's last question is older than its
habit.

The venue may have counted a request at any moment of what its answer took longer than the quickest one. Who must not
be refused adds that to the second, and 5 ms for what goes unnoticed: with 10 ms of jitter (9.5 ms longer than the
quickest, on average) all together can have 9.86 a second, with none 9.95. A bot that waits a second between two
questions takes 0.97 of them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from tests.benchmarks.peers import spawn, venue

_MARKETS = ("KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL")
_EVERY_S = 1.0


def _backfill(url: str, market: str, at_work: Any, stop: Any) -> None:
    from backbone import Backbone

    with tempfile.TemporaryDirectory() as folder, Backbone(data_dir=folder, rest_url=url) as client:
        job = client.backfill(market, "1m", "2025-05-01")
        while job.progress.pages < 5:
            stop.wait(0.1)
        at_work.release()
        stop.wait()
        job.cancel()


def _bot(pipe: Connection, url: str, seconds: float) -> None:
    from backbone import Backbone

    with tempfile.TemporaryDirectory() as folder, Backbone(data_dir=folder, rest_url=url) as client:

        def ask() -> None:
            client.candles("KRW-ADA", "1m", count=1, priority="critical")

        _ask(ask, 8.0)  # its habit is known
        pipe.send("at work")
        begun = time.perf_counter()
        took = _ask(ask, seconds)
        pipe.send((took, (len(took) + 3) / (time.perf_counter() - begun)))


def _bare(url: str, seconds: float) -> list[float]:
    import requests

    at, words = f"{url}/v1/candles/minutes/1", {"market": "KRW-ADA", "count": "1"}
    with requests.Session() as session:
        return _ask(lambda: session.get(at, params=words, timeout=10).json(), seconds)


def _ask(work: Any, seconds: float) -> list[float]:
    """How long each question took, in milliseconds, once a second; the first three are the warming up."""
    took, pause, end = list[float](), threading.Event(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        work()
        took.append((time.perf_counter() - begun) * 1000)
        pause.wait(_EVERY_S)
    return took[3:]


def _spread(took: list[float]) -> dict[str, float]:
    ordered = sorted(took)
    return {"p50_ms": round(statistics.median(ordered), 1), "p95_ms": round(ordered[int(len(ordered) * 0.95)], 1)}


def run(window: str, seconds: float, jitter_s: float) -> dict[str, Any]:
    """One run on a venue that counts `window` seconds."""
    pause = threading.Event()

    def count(pipe: Connection, wait_s: float) -> tuple[float, int]:
        """Requests a second and refusals of the next `wait_s`."""
        pipe.send("count")
        pipe.recv()
        begun = time.perf_counter()
        pause.wait(wait_s)
        pipe.send("count")
        asked, refused = pipe.recv()
        return asked / (time.perf_counter() - begun), refused

    with venue(window, jitter_s) as (url, pipe):
        bare = _bare(url, seconds)
        stop, at_work = spawn.Event(), spawn.Semaphore(0)
        others = [
            spawn.Process(target=_backfill, args=(url, market, at_work, stop), daemon=True) for market in _MARKETS
        ]
        for process in others:
            process.start()
        for _ in others:
            at_work.acquire()
        alone, refused_alone = count(pipe, seconds / 2)
        answers, theirs = spawn.Pipe()
        bot = spawn.Process(target=_bot, args=(theirs, url, seconds), daemon=True)
        bot.start()
        answers.recv()
        beside, refused = count(pipe, seconds - 2.0)
        took, bots = answers.recv()
        bot.join()
        pause.wait(_EVERY_S + 5.0)
        after, refused_after = count(pipe, seconds / 2)
        stop.set()
        for process in others:
            process.join()
    return {
        "window": window,
        "alone": round(alone, 2),
        "together": round(beside, 2),
        "beside": round(beside - bots, 2),
        "after": round(after, 2),
        "refused": refused_alone + refused + refused_after,
        "bare": _spread(bare),
        "bot": _spread(took),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--jitter", type=float, default=10.0, help="how much the round trip varies, milliseconds")
    options = parser.parse_args()
    for window in ("fixed", "sliding"):
        found = run(window, max(10.0, options.seconds), options.jitter / 1000)
        print(
            f"{window} seconds: {found['alone']} pages a second without the bot, {found['together']} together with it, "
            f"{found['beside']} of them the backfills', {found['after']} after it; {found['refused']} refused; "
            f"bot {found['bot']}, bare alone {found['bare']}: "
            f"p95 {found['bot']['p95_ms'] - found['bare']['p95_ms']:+.1f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
