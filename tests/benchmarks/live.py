"""What a live table must reach. Run: ``python -m tests.benchmarks.live`` (``--outages`` adds two minutes).

Messages a second from a flood on loopback into a table, against the bare loop of `tests.benchmarks.stream`; the time
from sending to the table at 2,000 messages a second; memory over a million messages; a frame of 290 markets, still and
under the flood. With ``--outages``: how soon a dead socket is noticed, how soon a table is fed again after the venue's
return, and a minute without the venue, after which no candle may be missing.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from backbone import Backbone
from backbone.api.calls.live import LiveTable
from backbone.coordinator.live.feed import Subscription
from backbone.coordinator.live.latest import ConflatedChanges
from backbone.model import Ticker
from backbone.routing.stream import Stream
from backbone.simulator import SimulatorServer
from tests.benchmarks.stream import Speed, compare_latency, compare_speed, flood

CODES = [f"KRW-{i:04d}" for i in range(290)]


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@contextlib.contextmanager
def away_from_rest(ws_url: str) -> Iterator[Backbone]:
    """A client of a socket, where nothing answers REST."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Backbone(data_dir=folder, rest_url="http://127.0.0.1:9", ws_url=ws_url) as client,
    ):
        yield client


def open_table(client: Backbone, kind: str) -> Subscription:
    """A table of the flood's markets, without asking whether they are listed."""
    return client.session.coordinator().feed.open([kind], CODES[:100])


def ours(port: int, count: int, kind: str, watch: Callable[[], None] | None = None) -> Speed:
    """The flood into a table."""
    with away_from_rest(f"ws://127.0.0.1:{port}") as client:
        latest = client.session.coordinator().latest
        slots = [latest.slot(kind, code) for code in CODES[:100]]
        changes = ConflatedChanges(latest, slots)  # before the first can come
        table = open_table(client, kind)
        changes.wait_for(1, 30)
        first, started, cpu = changes.arrived, time.perf_counter(), time.process_time()
        if watch is not None:
            while changes.arrived < count:
                watch()
        assert changes.wait_for(count, 600)
        took, used = time.perf_counter() - started, time.process_time() - cpu
        changes.end()
        assert table.received == count
        return Speed((count - first) / took, (count - first) / used)


def latency_ms(port: int, count: int, *, is_read: bool = False) -> list[float]:
    """From just before the send until the row is in the table, per message; read: while somebody takes frames of it."""
    delays: list[float] = []
    done = threading.Event()
    with away_from_rest(f"ws://127.0.0.1:{port}") as client:
        feed = client.session.coordinator().feed

        def timed(url: str, *, sink: Callable[..., None], **options: Any) -> Stream:
            def note(record: Any, received_s: float, is_snapshot: bool) -> None:
                sink(record, received_s, is_snapshot)
                delays.append((time.monotonic_ns() - record.time_us) / 1e6)
                if len(delays) == count:
                    done.set()

            return Stream(url, sink=note, **options)

        feed._source_of = timed
        table = LiveTable(client.session, client.session.coordinator(), open_table(client, "ticker"))
        while not done.wait(0.05 if is_read else 300):
            table.frame()
    return sorted(delays)


def read_latency_ms(port: int, count: int) -> list[float]:
    """The same while a reader takes twenty frames a second."""
    return latency_ms(port, count, is_read=True)


def frame_ms(rounds: int) -> tuple[float, float]:
    """Best and median time of a pandas frame of 290 markets."""
    with away_from_rest("ws://127.0.0.1:9") as client:
        core = client.session.coordinator()
        table = LiveTable(client.session, core, core.feed.open(["ticker"], CODES))
        for i, code in enumerate(CODES):
            row = Ticker(code, 1_755_853_200_000_000 + i, *(float(i + j + 1) for j in range(11)), 1_755_853_200_000_000)
            core.latest.take(row, core.clock.monotonic(), True)
        table.frame()
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            assert len(table.frame()) == 290
            times.append((time.perf_counter() - started) * 1e3)
        return min(times), statistics.median(times)


def until(holds: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until `holds`."""
    started = time.monotonic()
    while not holds():
        if time.monotonic() - started > timeout_s:
            raise SystemExit(f"not within {timeout_s:g} s")
        time.sleep(0.01)
    return time.monotonic() - started


def outages() -> None:
    """A socket that dies without a close frame, and a venue that is away for a minute."""
    markets = ["KRW-BTC", "KRW-ETH", "KRW-XRP"]
    with (
        SimulatorServer(seed=7, markets=markets) as server,
        tempfile.TemporaryDirectory() as folder,
        Backbone(data_dir=folder, rest_url=server.rest_url, ws_url=server.ws_url) as client,
    ):
        client.candles(markets, "1m", count=5)
        with client.live(markets, ("ticker", "candle.1m")) as table:
            table.wait(10)
            reconnects = client.status().attrs["backbone"]["stream"]["reconnects"]
            server.faults.add("ws-stall", seconds=120)
            until(lambda: table.state != "streaming", 60)
            noticed = until(lambda: client.status().attrs["backbone"]["stream"]["reconnects"] > reconnects, 60)
            print(f"dead socket: not relied on any more, and replaced {noticed:.1f} s later (35 s allowed in all)")
            until(lambda: table.state == "streaming", 60)
            table.wait(10)
            server.pause()
            states = [table.state]
            away = time.monotonic() + 60
            while time.monotonic() < away:
                if table.state != states[-1]:
                    states.append(table.state)
                time.sleep(0.05)
            server.resume()
            back = until(lambda: table.state == "streaming", 60)
            print(f"a minute without the venue: {' → '.join(states)}")
            print(f"fed again {back:.2f} s after its return (5 s allowed)")
            until(lambda: [e.filled for e in table.events if e.kind == "gap"][-1], 90)
            gap = [e for e in table.events if e.kind == "gap"][-1]
            for market in markets:
                start, end = (stamp.replace(second=0, microsecond=0) for stamp in (gap.gap_start, gap.gap_end))
                frame = client.candles(market, "1m", start, end, offline=True)
                facts = frame.attrs["backbone"]
                print(f"  {market}: {len(frame)} candles of the gap stored, {facts['unknown']} missing")
            for event in table.events:
                print("  ", event.kind, event.market, event.gap_start, event.gap_end, event.filled, event.detail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--million", action="store_true", help="also a million messages, watching the memory")
    parser.add_argument("--outages", action="store_true", help="also a dead socket and a minute without the venue")
    options = parser.parse_args()
    best, median = frame_ms(300)
    print(f"frame() of 290 markets: best {best:.2f} ms, median {median:.2f} ms (2 ms allowed)")
    with flood() as (pipe, port):
        for kind in ("ticker", "orderbook", "trade"):
            compare_speed(pipe, port, kind, ours, options.messages, options.rounds)
        compare_latency(pipe, port, {"ours": latency_ms, "read": read_latency_ms}, 6_000, 5)
        if options.million:
            sizes: list[float] = []

            def watch() -> None:
                sizes.append(resident_mb())
                time.sleep(0.2)

            pipe.send(("ticker", 1_000_000, 0))
            ours(port, 1_000_000, "ticker", watch)
            pipe.recv()
            print(f"memory over a million messages: {sizes[1]:.1f} MB at the start, {sizes[-1]:.1f} MB at the end")
    if options.outages:
        outages()


if __name__ == "__main__":
    main()
