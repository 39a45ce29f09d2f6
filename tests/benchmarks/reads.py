"""1,000 stored candles through the call, beside bare pyarrow on the same file: ``python -m tests.benchmarks.reads``.

Both take turns in one process. The first read is that of a client that has read nothing yet; the exchange is not asked.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from backbone import Backbone
from backbone.clock import SystemClock
from backbone.simulator import SimulatorServer

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    found = measure(parser.parse_args().rounds)
    for name, (best, median) in found.items():
        ratios = f"{best / found['bare'][0]:.2f} and {median / found['bare'][1]:.2f} x bare pyarrow"
        print(f"{name:6} {best:6.2f} ms best, {median:6.2f} ms median; {ratios}")


if __name__ == "__main__":
    main()
