"""Bigger than memory, measured: open, read of a year, scan and verify of a synthetic store, beside bare Polars.

    python -m tests.benchmarks.beyond                       100 million rows in a temporary folder
    python -m tests.benchmarks.beyond --rows 5_000_000      smaller
    python -m tests.benchmarks.beyond --folder /big/disk    keep the store, and use it again
    python -m tests.benchmarks.beyond --what archive        a year of minutes from the archive, 30 ms away
    python -m tests.benchmarks.beyond --what permits        a permit on Redis beside one on the machine's ledger

Each measurement runs in a process of its own, which reports its peak memory; times are wall clock, warm page cache.
Only ratios travel between machines.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from backbone.clock import SystemClock
from backbone.model import CANDLE_SCHEMA, Span
from backbone.storage.coverage import Coverage, SpanSet
from backbone.storage.files import LocalFiles
from backbone.storage.layout import Series
from backbone.storage.partition import REVISION_SCHEMA, Partition, encode_partition
from backbone.timeframe import parse_timeframe, periods_in

MINUTE = parse_timeframe("1m")
YEARS = ("2017-01-01", "2025-01-01")
MINUTE_US = 60_000_000


def build(folder: Path, rows: int) -> list[str]:
    """Fill `folder` with whole markets of minutes until there are `rows`; returns the markets."""
    first, last = (int(np.datetime64(day, "us").astype(np.int64)) for day in YEARS)
    files = LocalFiles(folder, SystemClock())
    markets: list[str] = []
    written = 0
    while written < rows:
        market = f"KRW-M{len(markets):03d}"
        markets.append(market)
        series = Series("upbit", market, MINUTE)
        price = np.random.default_rng(len(markets)).normal(0, 8e-4, (last - first) // MINUTE_US)
        path = 1000.0 * 10 ** (len(markets) % 5) * np.exp(np.cumsum(price))
        for period in periods_in(MINUTE, Span(first, last)):
            low, high = (period.start - first) // MINUTE_US, (period.end - first) // MINUTE_US
            table = _candles(period, path[low:high], seed=written)
            partition = Partition(table, Coverage(SpanSet([period])), REVISION_SCHEMA.empty_table())
            files.replace(series.key(period), encode_partition(partition, series, period).data)
            written += table.num_rows
            if written >= rows:
                break
    return markets


def _candles(period: Span, close: np.ndarray, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    tick = 10 ** (np.floor(np.log10(close)) - 4)
    close = np.round(close / tick) * tick
    opened = np.round(close * (1 + random.normal(0, 3e-4, len(close))) / tick) * tick
    high, low = np.maximum(opened, close) + tick, np.minimum(opened, close) - tick
    volume = np.round(random.exponential(3.0, len(close)), 8)
    times = np.arange(period.start, period.end, MINUTE_US)
    columns = [pa.array(times).view(CANDLE_SCHEMA.field("time").type)]
    columns += [pa.array(values) for values in (opened, high, low, close, volume, np.round(volume * close, 5))]
    return pa.Table.from_arrays(columns, schema=CANDLE_SCHEMA)


# -- what is measured, each in a process of its own


def _open(folder: str) -> int:
    from backbone import Backbone

    with Backbone(data_dir=folder) as client:
        return len(client.explain("KRW-M000", "1m", "2018-01-01T00:00Z", "2018-02-01T00:00Z").gaps)


def _year(folder: str) -> int:
    from backbone import Backbone

    with Backbone(data_dir=folder) as client:
        return len(client.candles("KRW-M000", "1m", "2018-01-01T00:00Z", "2019-01-01T00:00Z", offline=True))


def _year_polars(folder: str) -> int:
    import polars as pl

    lazy = pl.scan_parquet(f"{folder}/candles/exchange=upbit/market=KRW-M000/**/*.parquet")
    return lazy.filter(pl.col("time").dt.year() == 2018).collect().to_pandas().shape[0]


def _newest_day(folder: str) -> int:
    from backbone import Backbone

    with Backbone(data_dir=folder) as client:
        markets = sorted({market for market, _ in client.session.coordinator().store.series()})[:-1]  # whole ones
        day = client.candles(markets, "1m", "2024-01-01T00:00Z", "2024-01-02T00:00Z", offline=True, frames="polars")
        return day.height


def _newest_day_polars(folder: str) -> int:
    import datetime as dt

    import polars as pl

    lazy = pl.scan_parquet(f"{folder}/candles/**/period=month-2024-01/*.parquet", hive_partitioning=True)
    day = dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.datetime(2024, 1, 2, tzinfo=dt.UTC)
    return lazy.filter((pl.col("time") >= day[0]) & (pl.col("time") < day[1])).collect().height


def _daily(lazy: object) -> int:
    import polars as pl

    assert isinstance(lazy, pl.LazyFrame)
    day = pl.col("time").dt.truncate("1d")
    daily = lazy.group_by("market", day).agg(pl.col("high").max(), pl.col("low").min(), pl.col("volume").sum())
    return daily.collect(engine="streaming").height


def _scan(folder: str) -> int:
    from backbone import Backbone

    with Backbone(data_dir=folder, tz="UTC") as client:
        return _daily(client.scan("KRW", "1m"))


def _scan_polars(folder: str) -> int:
    import polars as pl

    return _daily(pl.scan_parquet(f"{folder}/candles/**/*.parquet", hive_partitioning=True))


def _verify(folder: str) -> int:
    from backbone import Backbone

    with Backbone(data_dir=folder) as client:
        return len(client.store.verify())


def _import(_: str) -> int:
    return 0


MEASURED: dict[str, Callable[[str], int]] = {
    "import alone": _import,
    "open and explain": _open,
    "read of a year": _year,
    "read of a year, bare Polars": _year_polars,
    "a day of every market": _newest_day,
    "a day of every market, bare Polars": _newest_day_polars,
    "daily over all, scan": _scan,
    "daily over all, bare Polars": _scan_polars,
    "verify": _verify,
}


def _measure(name: str, folder: str) -> None:
    import pandas  # noqa: F401 - loaded before the clock starts, as is Polars
    import polars  # noqa: F401

    import backbone.api.client
    import backbone.coordinator.coordinator  # noqa: F401

    began = time.perf_counter()
    result = MEASURED[name](folder)
    took = time.perf_counter() - began
    print(json.dumps([took, _peak_mb(), result]))


def _peak_mb() -> float:
    """This process's own peak; `getrusage` would count its parent's as well."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(folder: Path, name: str) -> tuple[float, float, int]:
    """Seconds, peak megabytes and result of one measurement, in a fresh process."""
    argv = [sys.executable, "-m", "tests.benchmarks.beyond", "--one", name, "--folder", str(folder)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    took, peak_mb, result = json.loads(done.stdout.splitlines()[-1])
    return float(took), float(peak_mb), int(result)


def run(folder: Path, rows: int) -> None:
    began = time.perf_counter()
    if not (folder / "candles").is_dir():
        markets = build(folder, rows)
        print(f"built {len(markets)} markets in {time.perf_counter() - began:.0f} s")
    files = list(folder.rglob("*.parquet"))
    size = sum(path.stat().st_size for path in files)
    print(f"{len(files)} files, {size / 1e9:.2f} GB, {size / max(1, rows):.1f} bytes a row")
    for name in MEASURED:
        took, peak_mb, result = measure(folder, name)
        print(f"{name:34} {took:8.2f} s   peak {peak_mb:7.0f} MB   result {result}")


def archive() -> None:
    """A year of minutes from the archive of an exchange 30 ms away; the second time its files are made already."""
    from backbone import Backbone
    from backbone.simulator import SimulatorServer

    span = ("2024-06-01T00:00Z", "2025-06-01T00:00Z")
    with SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True, latency_s=0.03) as server:
        for what in ("files made meanwhile", "files made before"):
            server.reset_log()
            with tempfile.TemporaryDirectory() as folder:
                urls = {"rest_url": server.rest_url, "ws_url": server.ws_url}
                with Backbone(data_dir=folder, archive="accept-terms", **urls) as client:
                    began = time.perf_counter()
                    rows = len(client.candles("KRW-BTC", "1m", *span, progress=False))
                    took = time.perf_counter() - began
            asked = len(server.requests)
            print(f"{what:22} {rows} rows, {asked} requests, {took:.1f} s: {263 / took:.0f} x the quota's 263 s")


def permits(count: int = 3000) -> None:
    """What one permit costs, taken and settled."""
    from backbone.coordinator.quota.ledger import FileLimiter
    from backbone.coordinator.quota.redis import RedisLimiter
    from backbone.coordinator.quota.rules import Rules
    from backbone.model import Priority
    from tests.coordinator.quota.test_redis import RedisServer

    clock, rules = SystemClock(), Rules()
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        venue = "http://127.0.0.1:1"
        for limiter in (
            FileLimiter(Path(folder) / "x.quota", clock, rules),
            RedisLimiter(server.url, venue, clock, rules=rules),
        ):
            limiter.take("candles", Priority.NORMAL, 0.0, clock.monotonic())
            began = time.perf_counter()
            for _ in range(count):
                now = clock.monotonic()
                limiter.take("candles", Priority.NORMAL, now, now)
            print(f"{type(limiter).__name__:14} {(time.perf_counter() - began) / count * 1e6:7.1f} us an ask")
            limiter.close()
        server.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=lambda text: int(text.replace("_", "")), default=100_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--what", choices=["size", "archive", "permits"], default="size")
    parser.add_argument("--one", choices=list(MEASURED), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        _measure(options.one, str(options.folder))
    elif options.what == "archive":
        archive()
    elif options.what == "permits":
        permits()
    elif options.folder is not None:
        run(options.folder, options.rows)
    else:
        with tempfile.TemporaryDirectory(prefix="backbone-size-") as folder:
            run(Path(folder), options.rows)


if __name__ == "__main__":
    main()
