"""A bot, a notebook and two backtests on one machine: ``python -m tests.stress.together --seconds 300``.

Four processes share the quota of the embedded exchange (30 ms away, 10 ms of jitter). Prints the bot's latencies beside
those of a bare session alone, what was refused (nothing may be), what each process got, and what `status()` says of it.

The bot looks at ticker, book and trades each second, and at candles every tenth; the person at the notebook goes on to
another chart and more history every ten seconds, which takes 0.4 candle requests a second. With ``--busy`` the bot asks
for candles in each round, twice a second, and the notebook goes on every second: both come before the backtests.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from backbone import Backbone
from backbone.errors import BackboneError
from tests.benchmarks.peers import spawn, venue


def _bot(url: str, seconds: float, every_s: float, rounds_to_candles: int) -> dict[str, Any]:
    """Questions at critical, the same in each round but for candles."""
    pause, took, errors = threading.Event(), [], 0
    with tempfile.TemporaryDirectory() as folder, Backbone(data_dir=folder, rest_url=url) as client:
        asks = (
            lambda: client.tickers("KRW-BTC", priority="critical", max_age=0),
            lambda: client.orderbooks("KRW-BTC", priority="critical", max_age=0),
            lambda: client.trades("KRW-BTC", 20, priority="critical"),
            lambda: client.candles("KRW-BTC", "1m", count=5, priority="critical"),
        )
        end, turn = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            turn += 1
            for ask in asks if turn % rounds_to_candles == 0 else asks[:-1]:
                begun = time.perf_counter()
                try:
                    ask()
                except BackboneError:
                    errors += 1
                took.append((time.perf_counter() - begun) * 1000)
            pause.wait(every_s)
        status = client.status()[["used", "left", "kept_for_critical", "refused"]].to_string()
    return {**_spread(took[8:]), "asked": len(took), "errors": errors, "status": status}


def _notebook(url: str, seconds: float, every_s: float) -> dict[str, Any]:
    """A person's calls: charts at normal, a screener at high, now and then more history."""
    pause, took, errors, hours = threading.Event(), [], 0, 0
    with tempfile.TemporaryDirectory() as folder, Backbone(data_dir=folder, rest_url=url) as client:
        codes = list(client.markets("KRW").index)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            hours += 6
            code = codes[hours % 40]
            for ask in (
                lambda code=code: client.candles(code, "1m", count=400),
                lambda: client.tickers("KRW"),
                lambda hours=hours: client.candles("KRW-XRP", "1m", f"{hours}h", progress=False),
            ):
                begun = time.perf_counter()
                try:
                    ask()
                except BackboneError:
                    errors += 1
                took.append((time.perf_counter() - begun) * 1000)
            pause.wait(every_s)
    return {**_spread(took), "asked": len(took), "errors": errors}


def _backtest(url: str, seconds: float, market: str) -> dict[str, Any]:
    """A long history, section by section."""
    with tempfile.TemporaryDirectory() as folder, Backbone(data_dir=folder, rest_url=url) as client:
        job = client.backfill(market, "1m", "2024-01-01")
        rows, end = 0, time.perf_counter() + seconds
        for section in job.sections():
            rows += len(section)
            if time.perf_counter() > end:
                break
        view = job.progress
        job.cancel()
    return {"rows": rows, "pages": view.pages, "pages_s": round(view.rate, 2)}


def _bare(url: str, seconds: float) -> dict[str, Any]:
    import requests

    took, pause = [], threading.Event()
    with requests.Session() as session:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            begun = time.perf_counter()
            session.get(f"{url}/v1/ticker", params={"markets": "KRW-BTC"}, timeout=10).json()
            took.append((time.perf_counter() - begun) * 1000)
            pause.wait(0.4)
    return _spread(took[2:])


def _spread(took: list[float]) -> dict[str, Any]:
    ordered = sorted(took)
    return {"p50_ms": round(statistics.median(ordered), 1), "p95_ms": round(ordered[int(len(ordered) * 0.95)], 1)}


def _run(pipe: Connection, work: Any, args: tuple[Any, ...]) -> None:
    pipe.send(work(*args))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--busy", action="store_true")
    options = parser.parse_args()
    seconds = options.seconds
    bot_every_s, rounds_to_candles, notebook_every_s = (0.4, 1, 1.0) if options.busy else (1.0, 10, 10.0)
    with venue(jitter_s=0.01) as (url, pipe_to_venue):
        print("alone, a bare session:", _bare(url, min(20.0, seconds)), flush=True)
        works = {
            "bot (critical)": (_bot, (url, seconds, bot_every_s, rounds_to_candles)),
            "notebook (normal, high)": (_notebook, (url, seconds, notebook_every_s)),
            "backtest 1 (low)": (_backtest, (url, seconds, "KRW-BTC")),
            "backtest 2 (low)": (_backtest, (url, seconds, "KRW-ETH")),
        }
        running = []
        for name, (work, args) in works.items():
            pipe, theirs = spawn.Pipe()
            process = spawn.Process(target=_run, args=(theirs, work, args))
            process.start()
            running.append((name, pipe, process))
        status = ""
        for name, pipe, process in running:
            found = pipe.recv()
            process.join()
            status = found.pop("status", status)
            print(f"{name}: {found}", flush=True)
        pipe_to_venue.send("count")
        asked, refused = pipe_to_venue.recv()
        print(f"candle requests {asked} = {asked / seconds:.2f} a second, refused {refused}")
        print(status)


if __name__ == "__main__":
    main()
