"""What tickers, books and trades cost: ``python -m tests.benchmarks.realtime``.

The venue is the embedded exchange in a process of its own, 30 ms away, with all its markets listed. Each figure stands
beside what it is measured against: a bare `requests.Session` with a bare JSON decode in the same run, or the target. A
cold call is that of a client just made, connection and all, in a process whose modules are loaded.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import requests

from backbone import Backbone
from backbone.api.frames import attrs_of, tickers_table
from backbone.routing.wire import tickers_ask
from tests.benchmarks.wire import TICKER, medians_ms

NOW = "2026-11-01T09:00:00Z"
LATENCY_S = 0.03
_spawn = multiprocessing.get_context("spawn")


def _serve(pipe: Connection) -> None:
    from backbone.simulator import SimulatorServer

    with SimulatorServer(seed=7, now=NOW, frozen=True, latency_s=LATENCY_S) as server:
        pipe.send((server.rest_url, server.ws_url))
        while pipe.recv() == "counts":
            counts = server.counts()
            first = [r.mono for r in server.requests if r.group == "crix-trades"]
            pipe.send((counts, (first[-1] - first[0]) if first else 0.0))
            server.reset_log()


@contextmanager
def venue() -> Iterator[tuple[str, str, Connection]]:
    """The exchange, its market already computed, and a pipe that asks what it was asked."""
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    rest_url, ws_url = ours.recv()
    requests.get(f"{rest_url}/v1/ticker/all?quote_currencies=KRW", timeout=60).raise_for_status()
    requests.get(f"{rest_url}/v1/trades/ticks?market=KRW-BTC&count=500", timeout=60).raise_for_status()
    yield rest_url, ws_url, ours
    ours.send("stop")
    process.join(10)


@contextmanager
def client_of(rest_url: str, ws_url: str) -> Iterator[Backbone]:
    with tempfile.TemporaryDirectory() as folder, Backbone(data_dir=folder, rest_url=rest_url, ws_url=ws_url) as client:
        yield client


def timed_ms(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


def show(what: str, ours: str, beside: str, target: str, *, is_met: bool) -> None:
    print(f"{what:<44} {ours:>16} {beside:>30} {target:>30}  {'ok' if is_met else 'MISSED'}")


def cold(rest_url: str, ws_url: str) -> None:
    """All KRW tickers, by a client just made."""
    url = f"{rest_url}/v1/ticker/all?quote_currencies=KRW"
    ours, bare, rows = [], [], 0
    for _ in range(9):
        with client_of(rest_url, ws_url) as client:
            ours.append(timed_ms(lambda: client.tickers("KRW")))
            rows = len(client.tickers("KRW", max_age=60))
        with requests.Session() as session:
            bare.append(timed_ms(lambda: session.get(url, timeout=10).json()))
        time.sleep(0.25)
    mine, theirs = statistics.median(ours), statistics.median(bare)
    limit = 2 * LATENCY_S * 1e3 + 100
    show(
        f"tickers('KRW') cold, {rows} markets",
        f"{mine:.0f} ms",
        f"bare session {theirs:.0f} ms",
        f"< {limit:.0f} ms",
        is_met=mine < limit,
    )


def cached(rest_url: str, ws_url: str) -> None:
    """The same from memory."""
    with client_of(rest_url, ws_url) as client:
        client.tickers("KRW")
        for name, call in (
            ("tickers('KRW') from memory", lambda: client.tickers("KRW", max_age=600)),
            ("the same as Polars", lambda: client.tickers("KRW", max_age=600, frames="polars")),
            ("tickers('KRW-BTC') from memory", lambda: client.tickers("KRW-BTC", max_age=600)),
        ):
            frame = call()
            assert attrs_of(frame)["cache_hit"]
            table = client.tickers("KRW", max_age=600, frames="arrow")
            mine, bare = medians_ms(call, table.to_pandas)
            show(name, f"{mine:.2f} ms", f"bare Arrow to pandas {bare:.2f} ms", "< 2 ms", is_met=mine < 2)


def parsing() -> None:
    """A ticker reply of every market of the venue."""
    codes = [f"KRW-M{i:03d}" for i in range(855)]
    body = json.dumps([{"market": code, **TICKER} for code in codes]).encode()
    parse = tickers_ask(codes).parse
    rows = parse(body)
    mine, bare, table = medians_ms(
        lambda: parse(body),
        lambda: msgspec.json.decode(body),
        lambda: tickers_table(rows, ["rest"] * 855, [0.0] * 855),
        rounds=40,
    )
    show(
        f"parse 855 tickers, {len(body) >> 10} KB",
        f"{mine:.2f} ms",
        f"bare decode {bare:.2f} ms",
        "< 10 ms",
        is_met=mine < 10,
    )
    show("855 ticker records into a table", f"{table:.2f} ms", "", "< 10 ms", is_met=table < 10)


def trades(rest_url: str, ws_url: str, pipe: Connection) -> None:
    """Trades by cursor: each page needs the one before, so a page costs a round trip; the quota allows ten a second."""
    with client_of(rest_url, ws_url) as client:
        client.trades("KRW-BTC", 1)
        for count in (5_000, 20_000):
            time.sleep(1.1)
            pipe.send("counts")
            pipe.recv()
            took_s = timed_ms(lambda: client.trades("KRW-BTC", count)) / 1e3  # noqa: B023 - called at once
            pipe.send("counts")
            counts, span_s = pipe.recv()
            pages, refused = sum(counts["crix-trades"].values()), counts["crix-trades"].get(429, 0)
            rate = (pages - 1) / span_s
            show(
                f"{count} trades, {pages} pages, {refused} refused",
                f"{took_s:.2f} s",
                f"{rate:.1f} a second (legal 10)",
                ">= 9.5 a second, none refused",
                is_met=rate >= 9.5 and not refused,
            )


def main() -> None:
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'':<44} {'backbone':>16} {'beside':>30} {'target':>30}")
    parsing()
    with venue() as (rest_url, ws_url, pipe):
        cold(rest_url, ws_url)
        cached(rest_url, ws_url)
        trades(rest_url, ws_url, pipe)


if __name__ == "__main__":
    main()
