"""What the store costs, beside what bare Parquet costs, in one run: ``python -m tests.benchmarks.store``.

Each line is the median of many rounds in which both sides take turns, so that a noisy machine disturbs both
alike; trust the ratios before the milliseconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from backbone.clock import SystemClock
from backbone.model import CANDLE_COLUMNS, CANDLE_SCHEMA, Span
from backbone.storage.store import CandleStore
from backbone.timeframe import parse_timeframe

_MINUTE_US = 60_000_000
_START = 1_704_067_200_000_000  # 2024-01-01T00:00:00Z
_MINUTE = parse_timeframe("1m")
_AS_STORED: dict[str, Any] = {
    "compression": "lz4",
    "use_dictionary": False,
    "store_schema": False,
    "write_statistics": ["time"],
    "column_encoding": {"time": "DELTA_BINARY_PACKED"} | dict.fromkeys(CANDLE_COLUMNS, "BYTE_STREAM_SPLIT"),
}


def walk(first: int, count: int, seed: int = 7) -> pa.Table:
    """Minutes that look like KRW-BTC: prices on a 1,000 won grid, volumes with eight decimals."""
    rng = np.random.default_rng(seed + first)
    times = _START + np.arange(first, first + count, dtype=np.int64) * _MINUTE_US
    close = np.round(91_234_000 * np.exp(np.cumsum(rng.normal(0, 2e-4, count))), -3)
    opened = np.concatenate((close[:1], close[:-1]))
    high = np.maximum(opened, close) + rng.integers(0, 30, count) * 1000
    low = np.minimum(opened, close) - rng.integers(0, 30, count) * 1000
    volume = np.round(rng.lognormal(0, 1.2, count), 8)
    value = np.round(volume * (high + low) / 2, 8)
    columns = [pa.array(times).view(CANDLE_SCHEMA.field("time").type)]
    columns += [pa.array(column) for column in (opened, high, low, close, volume, value)]
    return pa.Table.from_arrays(columns, schema=CANDLE_SCHEMA)


def slots(first: int, count: int) -> Span:
    return Span(_START + first * _MINUTE_US, _START + (first + count) * _MINUTE_US)


def open_store(root: Path) -> CandleStore:
    return CandleStore(root, "upbit", clock=SystemClock())


def fill(root: Path, markets: int, minutes: int) -> None:
    """`markets` with the same minutes; the first is written, the others are written from it too."""
    store, table = open_store(root), walk(0, minutes)
    for n in range(markets):
        store.put(_name(n), _MINUTE, table, slots(0, minutes), now_us=_START)
        store.flush()


def _name(n: int) -> str:
    return "KRW-BTC" if n == 0 else f"KRW-C{n}"


def median_ms(rounds: int, *sides: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> list[float]:
    """The median time of each side, taking turns; `before` is called ahead of each round, untimed."""
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        before()
        for side, times in zip(sides, taken, strict=True):
            started_s = time.perf_counter()
            side()
            times.append((time.perf_counter() - started_s) * 1e3)
    return [statistics.median(times) for times in taken]


def line(what: str, ours_ms: float, bare_ms: float | None = None, goal: str = "") -> None:
    ratio = "" if bare_ms is None else f"{bare_ms:9.2f} ms {ours_ms / bare_ms:7.2f} ×"
    print(f"{what:<58} {ours_ms:9.2f} ms {ratio:>22}  {goal}")


def bench_commits(root: Path, rounds: int) -> None:
    """One page of 200 rows, synced, into a month that is new, half full, nearly full.

    The bare side has all rows at hand in one piece. It encodes them into memory as that file has them, which is
    faster than into a Python file, writes them at once, syncs, renames, and syncs the folder.
    """
    rounds = min(rounds, 33)  # the month is full then
    for label, held in (("a new month", 200), ("a half full month", 20_000), ("a full month", 38_000)):
        folder = root / f"commit-{held}"
        store = open_store(folder)
        store.put("KRW-BTC", _MINUTE, walk(0, held), slots(0, held), now_us=_START)
        store.flush()
        tables = [walk(0, held)]
        fd = os.open(folder, os.O_RDONLY)

        def grow(tables: list[pa.Table] = tables) -> None:
            whole = tables[0]
            page = walk(whole.num_rows, 200)
            tables[:] = [pa.concat_tables([whole, page]).combine_chunks(), page]

        def ours(store: CandleStore = store, tables: list[pa.Table] = tables) -> None:
            whole, page = tables
            store.put("KRW-BTC", _MINUTE, page, slots(whole.num_rows - 200, 200), now_us=_START)
            store.flush()

        def plain(
            tables: list[pa.Table] = tables,
            target: str = str(folder / "bare.parquet"),
            unfinished: str = str(folder / "bare.tmp"),
            folder_fd: int = fd,
        ) -> None:
            sink = pa.BufferOutputStream()
            pq.write_table(tables[0], sink, **_AS_STORED)
            with open(unfinished, "wb", buffering=0) as file:  # noqa: PTH123
                file.write(sink.getvalue())
                os.fsync(file.fileno())
            os.replace(unfinished, target)  # noqa: PTH105
            os.fsync(folder_fd)

        both = median_ms(rounds, ours, plain, before=grow)
        line(f"commit 200 rows with fsync into {label}", *both, "≤ 1.1 × in a full one")
        os.close(fd)


def bench_live(root: Path, rounds: int) -> None:
    """What a live market costs a minute: its candle, confirmed, into a month that is half full."""
    held = 20_000
    store = open_store(root / "live")
    store.put("KRW-BTC", _MINUTE, walk(0, held), slots(0, held), now_us=_START)
    store.flush()
    rows = [walk(held + n, 1) for n in range(rounds)]
    begun = time.process_time()
    for n, row in enumerate(rows):
        store.put("KRW-BTC", _MINUTE, row, slots(held + n, 1), now_us=_START)
        store.flush()
    line("a minute of a live market: its candle to disk, CPU", (time.process_time() - begun) / rounds * 1e3)


def bench_reads(root: Path, rounds: int) -> None:
    """Ninety days to pandas, and the newest thousand rows."""
    folder, days = root / "reads", 129_600
    fill(folder, 1, days)
    paths = [str(path) for path in open_store(folder).paths("KRW-BTC", _MINUTE, slots(0, days))]

    def to_pandas(store: CandleStore, span: Span) -> Any:
        return store.read("KRW-BTC", _MINUTE, span).table.to_pandas()

    def bare() -> Any:
        return pa.concat_tables([pq.read_table(path, partitioning=None) for path in paths]).to_pandas()

    warm = open_store(folder)
    to_pandas(warm, slots(0, days))
    first, second, plain = median_ms(
        rounds,
        lambda: to_pandas(open_store(folder), slots(0, days)),
        lambda: to_pandas(warm, slots(0, days)),
        bare,
    )
    line(f"read {days:,} rows to pandas, first time", first, plain, "≤ 1.5 × bare pyarrow")
    line(f"read {days:,} rows to pandas, second time", second, plain, "faster")
    last = slots(days - 1000, 1000)
    low = pa.scalar(last.start, pa.timestamp("us", tz="UTC"))
    first, second, plain = median_ms(
        rounds * 3,
        lambda: to_pandas(open_store(folder), last),
        lambda: to_pandas(warm, last),
        lambda: pq.read_table(paths[-1], partitioning=None, filters=[("time", ">=", low)]).to_pandas(),
    )
    line("read 1,000 rows to pandas, first time", first, plain)
    line("read 1,000 rows to pandas, second time", second, plain, "< 1 ms")
    size = sum(Path(path).stat().st_size for path in paths)
    print(f"{'bytes a candle on disk':<58} {size / days:9.1f}")


def bench_memo(root: Path, rounds: int) -> None:
    """A large frame from the memo, beside making it from a warm store."""
    from backbone.storage.memo import FrameMemo

    store, memo, span = open_store(root / "reads"), FrameMemo(root / "memo"), slots(0, 129_600)

    def make() -> Any:
        return store.read("KRW-BTC", _MINUTE, span).table.to_pandas()

    def memoised() -> Any:
        key = ("KRW-BTC", "1m", *span, store.version("KRW-BTC", _MINUTE, span))
        if (found := memo.find(key)) is None:
            memo.keep(key, found := make())
        return found

    memoised()
    line("129,600 rows to pandas from the memo (bare: warm store)", *median_ms(rounds, memoised, make))


def bench_audit(root: Path) -> None:
    """A year of minutes, proved from the files."""
    folder, minutes = root / "audit", 366 * 1440
    fill(folder, 1, minutes)
    (ours,) = median_ms(3, lambda: open_store(folder).verify())
    line(f"verify a year of minutes ({minutes:,} rows)", ours, None, "< 3,000 ms")


def bench_many(root: Path, markets: int, months: int, minutes: int) -> None:
    """The first row of a large store, and a scan of all of it."""
    import polars as pl

    folder = root / "many"
    fill(folder, 1, minutes)
    (source,) = open_store(folder).paths("KRW-BTC", _MINUTE, slots(0, minutes))
    for n in range(markets):
        for month in range(months):
            name = f"market={_name(n)}/timeframe=minute1/period=month-{2020 + month // 12}-{month % 12 + 1:02}"
            target = folder / "candles" / "exchange=upbit" / name / "candles.parquet"
            if not target.exists():
                target.parent.mkdir(parents=True)
                shutil.copyfile(source, target)
    span = slots(0, 200)
    first, plain = median_ms(
        20,
        lambda: open_store(folder).read("KRW-BTC", _MINUTE, span),
        lambda: pq.read_table(source, partitioning=None),
    )
    line(f"first rows of a store of {markets * months:,} files", first, plain, "< 5 ms")
    glob = f"{folder}/candles/**/*.parquet"

    def scan(source: Any) -> Any:
        frame = pl.scan_parquet(source, hive_partitioning=True)
        return frame.group_by("market").agg(pl.col("close").mean(), pl.len()).collect()

    def computed() -> Any:
        store, ever = open_store(folder), Span(0, 1 << 62)
        return scan([str(path) for market, tf in store.series() for path in store.paths(market, tf, ever)])

    line(
        "Polars scan of all of it (bare: scan_parquet of the glob)",
        *median_ms(9, computed, lambda: scan(glob)),
        "≤ 1.1 ×",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--markets", type=int, default=40)
    parser.add_argument("--months", type=int, default=12)
    parser.add_argument("--minutes", type=int, default=4320, help="rows a file of the store of many markets")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="backbone-bench-") as folder:
        root = Path(folder)
        walk(0, 10).to_pandas()  # imports
        print(f"{'':<58} {'ours':>12} {'bare':>12} {'ratio':>9}  goal")
        bench_commits(root, options.rounds)
        bench_live(root, options.rounds)
        bench_reads(root, options.rounds)
        bench_memo(root, options.rounds)
        bench_audit(root)
        bench_many(root, options.markets, options.months, options.minutes)


if __name__ == "__main__":
    main()
