"""Whole markets, measured beside bare Polars on the same files: ``python -m tests.benchmarks.markets``.

    python -m tests.benchmarks.markets                 long and wide frames, a snapshot, three million rows adopted
    python -m tests.benchmarks.markets --what fetch    289 markets × 365 days from the embedded exchange, 30 ms away

Each line is the median of several rounds in which both sides take turns: wall clock, and in brackets the CPU of this
process with all its threads. Trust the ratios before the milliseconds, and on a busy machine the CPU before the wall.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from backbone import Backbone
from backbone.api.calls import adopt
from backbone.candle_table import times_of
from backbone.clock import SystemClock
from backbone.model import CANDLE_SCHEMA, Span
from backbone.simulator import SimulatorServer
from backbone.storage.coverage import Coverage, SpanSet
from backbone.storage.files import LocalFiles
from backbone.storage.layout import Series
from backbone.storage.partition import REVISION_SCHEMA, Partition, encode_partition
from backbone.timeframe import Timeframe, parse_timeframe, periods_in

YEAR = "2024-01-01T00:00Z", "2025-01-01T00:00Z"
ROUNDS = 7


def build(folder: Path, markets: int, timeframe: str, start: str, end: str) -> list[str]:
    """Fill `folder` with made-up candles of as many markets; returns them."""
    tf = parse_timeframe(timeframe)
    span = Span(*(int(np.datetime64(day.removesuffix("Z"), "us").astype(np.int64)) for day in (start, end)))
    files, names = LocalFiles(folder, SystemClock()), [f"KRW-M{n:03d}" for n in range(markets)]
    for n, market in enumerate(names):
        series = Series("upbit", market, tf)
        table = walk(tf, span, seed=n)
        times = times_of(table)
        for period in periods_in(tf, span):
            low, high = np.searchsorted(times, period)
            part = table.slice(int(low), int(high - low))
            covered = SpanSet([Span(max(period.start, span.start), min(period.end, span.end))])
            whole = Partition(part.combine_chunks(), Coverage(covered), REVISION_SCHEMA.empty_table())
            files.replace(series.key(period), encode_partition(whole, series, period).data)
    return names


def walk(timeframe: Timeframe, span: Span, seed: int) -> pa.Table:
    """A random walk of candles in every slot of `span`."""
    random = np.random.default_rng(seed)
    times = np.arange(span.start, span.end, timeframe.step_us)
    close = np.round(1000.0 * np.exp(np.cumsum(random.normal(0, 2e-3, len(times)))), 1)
    opened = np.concatenate((close[:1], close[:-1]))
    high, low = np.maximum(opened, close) + 0.5, np.minimum(opened, close) - 0.5
    volume = np.round(random.exponential(3.0, len(times)) + 1e-8, 8)
    columns = [pa.array(times).view(CANDLE_SCHEMA.field("time").type)]
    columns += [pa.array(values) for values in (opened, high, low, close, volume, np.round(volume * close, 5))]
    return pa.Table.from_arrays(columns, schema=CANDLE_SCHEMA)


def sides(rounds: int, **asked: Callable[[], Any]) -> dict[str, tuple[float, float]]:
    """Wall and CPU of each side in milliseconds, taking turns."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in asked}
    for _ in range(rounds):
        for name, side in asked.items():
            wall, cpu = time.perf_counter(), time.process_time()
            side()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: tuple(statistics.median(one) * 1e3 for one in zip(*all_, strict=True)) for name, all_ in taken.items()
    }  # type: ignore[misc]


def line(what: str, ours: tuple[float, float], floor: tuple[float, float] | None = None, goal: str = "") -> None:
    ratio = "" if floor is None else f"{ours[0] / floor[0]:5.2f} × ({ours[1] / floor[1]:.2f} ×)"
    print(f"{what:<46} {ours[0]:9.1f} ms ({ours[1]:8.1f} ms CPU) {ratio:>18}  {goal}")


def bare(folder: Path, directory: str) -> Any:
    """What Polars reads of the same files, as one frame with its market column."""
    import polars as pl

    lazy = pl.scan_parquet(f"{folder}/candles/**/timeframe={directory}/**/*.parquet", hive_partitioning=True)
    return lazy.select("market", "time", "open", "high", "low", "close", "volume", "value").collect()


def frames(rounds: int) -> None:
    """Long and wide frames from the store, the first time and again."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        names = build(folder, 300, "1d", *YEAR)
        hours = build(folder, 50, "1h", *YEAR)
        words: dict[str, Any] = {"start": YEAR[0], "end": YEAR[1], "offline": True}

        def asked(markets: list[str], timeframe: str, **more: Any) -> Callable[[], Any]:
            def ask() -> Any:
                with Backbone(data_dir=folder) as client:
                    return client.candles(markets, timeframe, **words, **more)

            return ask

        some = names[:289]
        assert asked(some, "1d", frames="polars")().height == 289 * 366
        with Backbone(data_dir=folder) as warm:
            warm.candles(some, "1d", **words, frames="polars")
            found = sides(
                rounds,
                new=asked(some, "1d", frames="polars"),
                again=lambda: warm.candles(some, "1d", **words, frames="polars"),
                bare=lambda: bare(folder, "day"),
                pandas=asked(some, "1d"),
                wide=asked(names, "1d", wide="close"),
                hours=asked(hours, "1h", wide="close"),
            )
            line("289 markets × 365 days, bare Polars", found["bare"])
            line("  a long frame, a new client", found["new"], found["bare"], "≤ 1.5 ×")
            line("  the same client again", found["again"], found["bare"], "≤ 1.5 ×")
            line("  as pandas, a new client", found["pandas"], found["bare"])
            line("wide, 300 markets × 1 year of days", found["wide"], goal="≤ 300 ms")
            line("wide, 50 markets × 1 year of hours", found["hours"], goal="≤ 1,000 ms")


def snapshots(rounds: int) -> None:
    """A snapshot of 300 markets × 1 year of days."""
    with tempfile.TemporaryDirectory() as text, Backbone(data_dir=text) as client:
        build(Path(text), 300, "1d", *YEAR)
        numbers = iter(range(rounds))
        found = sides(rounds, taken=lambda: client.store.snapshot(f"s{next(numbers)}"))
        line("snapshot, 300 markets × 1 year", found["taken"], goal="< 2,000 ms")


def adopted() -> None:
    """Three million minutes adopted from a Parquet file and from a CSV, without the requests of the sample."""

    tf = parse_timeframe("1m")
    end = int(np.datetime64("2024-06-01", "us").astype(np.int64))
    table = walk(tf, Span(end - 3_000_000 * tf.step_us, end), seed=1)
    adopt._compare = lambda *_: (500, 0)  # type: ignore[assignment]  # its requests are not what is measured
    with tempfile.TemporaryDirectory() as text, SimulatorServer(seed=7, now="2025-08-22T09:00:00Z") as venue:
        paths = [Path(text) / name for name in ("minutes.parquet", "minutes.csv")]
        pyarrow.parquet.write_table(table, paths[0])
        pyarrow.csv.write_csv(table, paths[1])
        thin = table.filter(pa.array(np.random.default_rng(3).random(table.num_rows) < 0.5))
        for name, source in (("Parquet", paths[0]), ("CSV", paths[1]), ("half the minutes", thin)):
            with Backbone(data_dir=Path(text) / name, rest_url=venue.rest_url, ws_url=venue.ws_url) as client:
                client.markets()
                found = sides(1, taken=lambda: client.store.adopt(source, "KRW-BTC", "1m"))  # noqa: B023
                rows = client.store.inventory()["rows"].sum()
            line(f"adopt, {rows:,} rows of {name}", found["taken"], goal="≤ 10,000 ms")


def fetched(markets: int) -> None:
    """Days of a year of many markets, at the legal rate; one bar shows it."""
    from tests.benchmarks.peers import venue

    seen: list[Any] = []
    with (
        venue(jitter_s=0.01) as (url, pipe),
        tempfile.TemporaryDirectory() as folder,
        Backbone(data_dir=folder, rest_url=url) as client,
    ):
        names = client.markets("KRW").index.tolist()[:markets]
        pipe.send(names)  # the exchange makes their days before the race
        assert pipe.recv() == len(names)
        client.candles(names[0], "1d", count=1)
        pipe.send("queries")
        before = len(pipe.recv())
        began = time.perf_counter()
        frame = client.candles(names, "1d", "2024-08-20T00:00Z", "2025-08-20T00:00Z", progress=seen.append)
        taken = time.perf_counter() - began
        pipe.send("queries")
        queries = pipe.recv()[before:]
    facts = frame.attrs["backbone"]
    print(
        f"{len(names)} markets × 365 days: {len(frame):,} rows, {facts['requests']} requests for "
        f"{2 * len(names)} pages in {taken:.1f} s = {facts['requests'] / taken:.2f} a second; "
        f"{len(seen)} updates of one bar"
    )
    kinds = Counter(_kind(query, frame) for query in queries)
    print("  " + " + ".join(f"{number} {kind}" for kind, number in kinds.most_common()) + f" = {kinds.total()}")


def _kind(query: dict[str, str], frame: Any) -> str:
    """What a request was for: no short page is accepted alone, so a beginning of history takes a second reply."""
    if "to" not in query:
        return "for the newest candle of a market without any in the range"
    rows = frame[frame["market"] == query["market"]]
    to = pd.Timestamp(query["to"])
    if not len(rows) or to == rows.index[0] + pd.Timedelta(days=1):
        return "second replies that confirm a beginning"
    return "pages before a beginning, asked before it was known" if to <= rows.index[0] else "pages of rows"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["store", "fetch"], default="store")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--markets", type=int, default=289)
    asked = parser.parse_args()
    if asked.what == "fetch":
        fetched(asked.markets)
        return
    frames(asked.rounds)
    snapshots(asked.rounds)
    adopted()


if __name__ == "__main__":
    main()
