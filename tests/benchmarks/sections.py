"""When the sections of a long backfill are there: ``python -m tests.benchmarks.sections --days 27``.

The embedded exchange, 30 ms away, at the legal rate. Prints when the first section was there, the longest wait for a
next one as a part of the whole, and the pages a second (a queue that runs dry shows here).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import pairwise

import pandas as pd
import requests

from backbone import Backbone
from tests.benchmarks.peers import venue


def run(days: int) -> None:
    end = pd.Timestamp("2025-08-20", tz="UTC")
    with (
        venue(jitter_s=0.01) as (url, _),
        tempfile.TemporaryDirectory() as folder,
        Backbone(data_dir=folder, rest_url=url) as client,
    ):
        client.candles("KRW-ETH", "1m", count=1)  # imports
        at = f"{url}/v1/candles/months"  # a market's past is made as it is asked for: make it before
        requests.get(at, params={"market": "KRW-BTC", "count": "200"}, timeout=30).raise_for_status()
        begun = time.perf_counter()
        job = client.backfill("KRW-BTC", "1m", end - pd.Timedelta(days=days), end)
        times, rows = [], []
        for section in job.sections(ahead=1000):
            times.append(time.perf_counter() - begun)
            rows.append(len(section))
        pages = job.progress.pages
    waits = [later - earlier for earlier, later in pairwise([0.0, *times])]
    print(
        f"{days} days of minutes, {pages} pages in {times[-1]:.1f} s ({pages / times[-1]:.2f} a second): "
        f"{len(times)} sections of {min(rows)} to {max(rows)} rows, the first after {times[0]:.2f} s, "
        f"the longest wait {max(waits):.2f} s = {max(waits) / times[-1]:.1%} of the whole"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=27)
    run(parser.parse_args().days)


if __name__ == "__main__":
    main()
