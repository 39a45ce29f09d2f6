"""1,000 stored candles through the call, beside bare pyarrow on the same file: ``python -m tests.benchmarks.reads``.

Both take turns in one process. The first read is that of a client that has read nothing yet; the exchange is not asked.
Then a new client's newest 1,000 of eight years of minutes, beside the read of all that is stored.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from backbone import Backbone
from backbone.clock import SystemClock
from backbone.model import Span
from backbone.simulator import SimulatorServer
from backbone.storage.store import CandleStore
from backbone.timeframe import DAY_US, parse_timeframe
from tests.storage.helpers import candles

START, END = "2025-08-04T00:00:00Z", "2025-08-04T16:40:00Z"
ROWS = 1000


def _ms(work: Callable[[], Any]) -> float:
    now = SystemClock().monotonic
    begun = now()
    assert len(work()) == ROWS
    return (now() - begun) * 1e3


def measure(rounds: int) -> dict[str, tuple[float, float]]:
    """Milliseconds, best and median, of: bare pyarrow, the first read, each further one."""
    taken: dict[str, list[float]] = {"bare": [], "first": [], "again": []}
    with (
        SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True, limit=1000) as venue,
        tempfile.TemporaryDirectory() as folder,
    ):

        def opened() -> Backbone:
            return Backbone(data_dir=folder, rest_url=venue.rest_url, ws_url=venue.ws_url)

        with opened() as client:
            client.candles("KRW-BTC", "1m", "2025-08-02T00:00:00Z", "2025-08-21T00:00:00Z")
        (file,) = Path(folder).rglob("*.parquet")
        low, high = (pa.scalar(pd.Timestamp(at)) for at in (START, END))

        def bare() -> pd.DataFrame:
            found = pq.read_table(file, partitioning=None, filters=[("time", ">=", low), ("time", "<", high)])
            return found.to_pandas()

        for _ in range(rounds):
            with opened() as client:
                client.session.coordinator()

                def ours(client: Backbone = client) -> Any:
                    return client.candles("KRW-BTC", "1m", START, END)

                for name, work in (("first", ours), ("bare", bare), ("again", ours), ("bare", bare), ("again", ours)):
                    taken[name].append(_ms(work))
    return {name: (min(times), statistics.median(times)) for name, times in taken.items()}


def measure_long(rounds: int = 5, years: int = 8) -> tuple[float, float]:
    """Median milliseconds of a new client: the newest 1,000 of that many stored years, and all of them as Arrow."""
    minute, end_us = parse_timeframe("1m"), int(pd.Timestamp(END).value // 1000)
    newest, whole = list[float](), list[float]()
    with (
        SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True) as venue,
        tempfile.TemporaryDirectory() as folder,
    ):
        with Backbone(data_dir=folder, rest_url=venue.rest_url) as client:
            exchange = client.session.settings.store_exchange
        store = CandleStore(Path(folder), exchange, clock=SystemClock())
        for year in range(years):
            last_us = end_us - year * 365 * DAY_US
            table = candles(range(last_us - 365 * DAY_US, last_us, minute.step_us))
            store.put("KRW-BTC", minute, table, Span(last_us - 365 * DAY_US, last_us), now_us=end_us)
        store.close()
        for _ in range(rounds):
            for taken, words in ((newest, {"count": ROWS}), (whole, {"start": "2018", "frames": "arrow"})):
                with Backbone(data_dir=folder, rest_url=venue.rest_url, ws_url=venue.ws_url) as client:
                    client.session.coordinator()
                    begun = time.perf_counter()
                    found = client.candles("KRW-BTC", "1m", end=END, offline=True, **words)
                    taken.append((time.perf_counter() - begun) * 1e3)
                    assert len(found) >= ROWS
    return statistics.median(newest), statistics.median(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    found = measure(parser.parse_args().rounds)
    for name, (best, median) in found.items():
        ratios = f"{best / found['bare'][0]:.2f} and {median / found['bare'][1]:.2f} x bare pyarrow"
        print(f"{name:6} {best:6.2f} ms best, {median:6.2f} ms median; {ratios}")
    newest, whole = measure_long()
    print(f"newest 1,000 of eight years of minutes, a new client: {newest:.0f} ms; all of them: {whole:.0f} ms")


if __name__ == "__main__":
    main()
