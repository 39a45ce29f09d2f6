"""Messages a second through the stream, against a bare loop. Run: ``python -m tests.benchmarks.stream``.

A process on loopback sends prepared frames as fast as they are taken. The bare loop is what a user would write with
the same libraries (``websocket-client`` and a typed msgspec decoder); it builds nothing and checks nothing. Then the
time from sending to the sink at 2,000 messages a second, and the memory over a million messages.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import multiprocessing
import re
import resource
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from backbone.clock import SystemClock
from backbone.model import Ticker
from backbone.routing.stream import Stream
from backbone.routing.wire import LiveRecord
from tests.benchmarks.wire import TICKER, book, trade

TRADE_TIME = {"trade_timestamp": TICKER["trade_timestamp"]}
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Level(msgspec.Struct, gc=False):
    ask_price: float
    ask_size: float
    bid_price: float
    bid_size: float


class TickerFrame(msgspec.Struct, tag_field="type", tag="ticker", gc=False):
    code: str
    trade_timestamp: int
    trade_price: float
    opening_price: float
    high_price: float
    low_price: float
    prev_closing_price: float
    signed_change_price: float
    signed_change_rate: float
    acc_trade_volume: float
    acc_trade_price: float
    acc_trade_volume_24h: float
    acc_trade_price_24h: float
    timestamp: int


class BookFrame(msgspec.Struct, tag_field="type", tag="orderbook", gc=False):
    code: str
    timestamp: int
    orderbook_units: list[Level]


class TradeFrame(msgspec.Struct, tag_field="type", tag="trade", gc=False):
    code: str
    trade_timestamp: int
    trade_price: float
    trade_volume: float
    ask_bid: str
    sequential_id: int


Frame = TickerFrame | BookFrame | TradeFrame


def frames(kind: str) -> list[bytes]:
    """A hundred frames of one kind, each of another market."""
    made = []
    for i in range(100):
        row: dict[str, Any] = {"ticker": TICKER, "orderbook": book(""), "trade": trade(i) | TRADE_TIME}[kind]
        content = {"type": kind, "code": f"KRW-{i:04d}"} | row | {"stream_type": "REALTIME"}
        content.pop("market", None)
        payload = json.dumps(content, separators=(",", ":")).encode()
        made.append(b"\x82\x7e" + struct.pack(">H", len(payload)) + payload)
    return made


def serve(pipe: Any) -> None:
    """Send what the pipe orders, (kind, count, messages a second or 0 for a flood), once per connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    pipe.send(listener.getsockname()[1])
    while order := pipe.recv():
        kind, count, rate = order
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(4096)
        (key,) = (line[19:] for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: "))
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        sock.recv(4096)
        _send(sock, frames(kind), count, rate)
        pipe.send("sent")
        sock.recv(4096)
        sock.close()


def _renumbered(made: list[bytes], turn: int) -> bytes:
    """The frames of one turn; trades with numbers of their own, since a trade that comes twice is one."""
    number = re.compile(rb'"sequential_id":(\d+)')
    return b"".join(number.sub(lambda found: b'"sequential_id":%d' % (int(found[1]) + turn * 1000), f) for f in made)


def _send(sock: socket.socket, made: list[bytes], count: int, rate: float) -> None:
    if not rate:
        for blob in [_renumbered(made, turn) for turn in range(count // len(made))]:
            sock.sendall(blob)
        return
    started = time.monotonic()
    for i in range(count):
        due = started + i / rate
        while (left_s := due - time.monotonic()) > 0:
            time.sleep(left_s)
        stamp = b'"trade_timestamp":%d' % (time.monotonic_ns() // 1000)  # the instant of sending
        frame = made[i % len(made)].replace(b'"trade_timestamp":1785397260652', stamp)
        frame = b"\x82\x7e" + struct.pack(">H", len(frame) - 4) + frame[4:]
        sock.sendall(frame)


class Speed(NamedTuple):
    """Messages a second by the clock, and by this process's own CPU time (which other load does not disturb)."""

    by_clock: float
    by_cpu: float


def bare(port: int, count: int, kind: str) -> Speed:
    """The loop that a user would write."""
    import websocket

    connection = websocket.create_connection(f"ws://127.0.0.1:{port}", suppress_origin=True, skip_utf8_validation=True)
    decode = msgspec.json.Decoder(Frame).decode
    latest = {}
    connection.send("[]")
    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        record = decode(connection.recv())
        latest[record.code] = record
    speed = Speed(count / (time.perf_counter() - started), count / (time.process_time() - cpu))
    connection.close()
    return speed


def bare_latency_ms(port: int, count: int) -> list[float]:
    """From just before the send until the loop has the record, per message: what the machine itself takes."""
    import websocket

    connection = websocket.create_connection(f"ws://127.0.0.1:{port}", suppress_origin=True, skip_utf8_validation=True)
    decode = msgspec.json.Decoder(Frame).decode
    connection.send("[]")
    delays = []
    for _ in range(count):
        record = decode(connection.recv())
        delays.append(time.monotonic_ns() / 1e6 - record.trade_timestamp / 1e3)
    connection.close()
    return sorted(delays)


def ours(port: int, count: int, kind: str) -> Speed:
    """The stream into a dict of the latest."""
    latest: dict[str, LiveRecord] = {}
    seen = 0
    started = cpu = 0.0
    done = threading.Event()

    def sink(record: LiveRecord, received_s: float, is_snapshot: bool) -> None:
        nonlocal seen, started, cpu
        if not seen:
            started, cpu = time.perf_counter(), time.process_time()
        seen += 1
        latest[record.market] = record
        if seen == count:
            done.set()

    stream = Stream(f"ws://127.0.0.1:{port}", clock=SystemClock(), sink=sink)
    stream.subscribe("benchmark", kind, [f"KRW-{i:04d}" for i in range(100)])
    done.wait(300)
    speed = Speed(count / (time.perf_counter() - started), count / (time.process_time() - cpu))
    stream.close()
    return speed


def latency_ms(port: int, count: int) -> list[float]:
    """From just before the send to the sink, per message."""
    delays: list[float] = []
    done = threading.Event()

    def sink(record: LiveRecord, received_s: float, is_snapshot: bool) -> None:
        assert isinstance(record, Ticker)
        delays.append((time.monotonic_ns() - record.time_us) / 1e6)
        if len(delays) == count:
            done.set()

    stream = Stream(f"ws://127.0.0.1:{port}", clock=SystemClock(), sink=sink)
    stream.subscribe("benchmark", "ticker", ["KRW-0000"])
    done.wait(300)
    stream.close()
    return sorted(delays)


def compare_speed(
    pipe: Any, port: int, kind: str, run: Callable[[int, int, str], Speed], messages: int, rounds: int
) -> None:
    """The bare loop and `run` in turns on the same flood. A ratio is taken within a turn: load changes between them."""
    rates: dict[str, list[Speed]] = {"bare": [], "ours": []}
    for _ in range(rounds):
        for name, each in (("bare", bare), ("ours", run)):
            pipe.send((kind, messages, 0))
            rates[name].append(each(port, messages, kind))
            pipe.recv()
    for i, how in enumerate(("clock", "CPU")):
        theirs, mine = ([speed[i] for speed in rates[name]] for name in ("bare", "ours"))
        ratios = sorted(own / their for own, their in zip(mine, theirs, strict=True))
        print(
            f"{kind:<10} by {how:<6} bare loop {statistics.median(theirs):>9,.0f}/s   "
            f"ours {statistics.median(mine):>9,.0f}/s   {statistics.median(ratios):.0%} "
            f"({ratios[0]:.0%} to {ratios[-1]:.0%}; 90 % required)"
        )


def compare_latency(
    pipe: Any, port: int, runs: dict[str, Callable[[int, int], list[float]]], messages: int, rounds: int
) -> None:
    """The bare loop and `runs` in turns at 2,000 messages a second: what is above the bare loop's is ours."""
    runs = {"bare": bare_latency_ms, **runs}
    delays: dict[str, list[list[float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            pipe.send(("ticker", messages, 2000))
            delays[name].append(run(port, messages))
            pipe.recv()
    for name, turns in delays.items():
        p50, p99, p999 = ([turn[int(messages * share)] for turn in turns] for share in (0.5, 0.99, 0.999))
        print(
            f"latency at 2,000/s, {name}: p50 {statistics.median(p50):.2f} ms   p99 {statistics.median(p99):.2f} ms "
            f"({min(p99):.2f} to {max(p99):.2f}; 5 ms allowed)   p99.9 {statistics.median(p999):.2f} ms"
        )


@contextmanager
def flood() -> Iterator[tuple[Any, int]]:
    """The sending process: the pipe that orders, and its port."""
    near, far = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(far,), daemon=True)
    server.start()
    yield near, near.recv()
    near.send(None)
    server.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--million", action="store_true", help="also a million messages, watching the memory")
    options = parser.parse_args()
    with flood() as (pipe, port):
        for kind in ("ticker", "orderbook"):
            compare_speed(pipe, port, kind, ours, options.messages, options.rounds)
        compare_latency(pipe, port, {"ours": latency_ms}, 6_000, 5)
        if options.million:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            pipe.send(("ticker", 1_000_000, 0))
            ours(port, 1_000_000, "ticker")
            pipe.recv()
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(f"memory over a million messages: peak {before / 1024:.1f} MB before, {after / 1024:.1f} MB after")


if __name__ == "__main__":
    main()
