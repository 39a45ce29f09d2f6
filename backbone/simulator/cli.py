"""The command line of the embedded exchange: ``backbone simulator …`` and ``python -m backbone.simulator …``.

Starts a server, says where it is and how to point clients at it, and runs until it is interrupted.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from backbone.errors import BackboneError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backbone.simulator.server.faults import Fault
    from backbone.simulator.server.http import SimulatorServer

__all__ = ["build_parser", "parse_fault", "run"]

_EPILOG = """
examples:
  backbone simulator                                   the machine's time, a free port
  backbone simulator --port 8700 --now 2025-08-22T09:00:00Z --frozen
  backbone simulator --limit 10 --window sliding --latency 30 --jitter 10
  backbone simulator --replay recorded/*.parquet       recorded candles as if live
  backbone simulator --fault 429:times=3 --fault stall:match=/v1/candles:seconds=5:after=10

Then, in the shell that runs the client:
  export BACKBONE_REST_URL=http://127.0.0.1:8700
  export BACKBONE_WS_URL=ws://127.0.0.1:8700/websocket/v1

It listens on this machine only. Same seed, same market: what it answers depends on seed, market and time alone.
"""


def build_parser() -> argparse.ArgumentParser:
    """The options; their help is the manual."""
    parser = argparse.ArgumentParser(
        prog="backbone simulator",
        description="Serve the embedded exchange: Upbit's REST and WebSocket dialect on loopback.",
        epilog=_EPILOG + _fault_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--port", type=int, default=0, metavar="N", help="port to listen on (default: a free one)")
    add("--seed", type=int, default=7, metavar="N", help="which market history (default: 7)")
    add("--now", metavar="T", help="what its clock shows at the start, ISO, UTC without a zone (default: now)")
    add("--frozen", action="store_true", help="its clock stands still")
    add("--speed", type=float, default=1.0, metavar="X", help="its clock runs this many times as fast (default: 1)")
    add("--limit", type=int, default=10, metavar="N", help="requests a second of each group (default: 10)")
    add("--window", choices=("fixed", "sliding"), default="fixed", help="how seconds are counted (default: fixed)")
    add("--latency", type=float, default=0.0, metavar="MS", help="round trip to the venue, milliseconds")
    add("--jitter", type=float, default=0.0, metavar="MS", help="how much the round trip varies, milliseconds")
    add("--replay", nargs="+", default=[], metavar="FILE", help="recorded candle Parquet to serve as if live")
    add("--markets", nargs="+", metavar="CODE", help="list only these markets")
    add("--fault", action="append", default=[], metavar="KIND[:k=v…]", help="script a fault; may be repeated")
    add("--quiet", action="store_true", help="print the REST address only")
    add("--log", action="store_true", help="log every request to standard error")
    return parser


def _fault_help() -> str:
    from backbone.simulator.server.faults import KINDS

    width = max(len(kind) for kind in KINDS)
    lines = [f"  {kind:<{width}}  {text}" for kind, text in KINDS.items()]
    common = "\nfaults (all take match=TEXT of path and query [/v1/candles], times=N or times=all, after=N):\n"
    return common + "\n".join(lines) + "\n"


def parse_fault(text: str) -> Fault:
    """A fault of ``KIND[:name=value…]``. Raises `InputError` for what is not one."""
    from backbone.simulator.server.faults import KINDS, Fault, default_match

    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise InputError("--fault", text, "one of " + " ".join(KINDS))
    options: dict[str, Any] = {}
    for pair in re.split(r":(?=[^:=]+=)", rest) if rest else ():  # times hold colons too
        name, equals, options[name] = pair.partition("=")
        if not equals or not name:
            raise InputError("--fault", text, "KIND:name=value:name=value")
    times = options.pop("times", "1")
    after = options.pop("after", "0")
    try:
        counts = (None if times == "all" else int(times)), int(after)
    except ValueError as exc:
        raise InputError("--fault", text, "whole numbers for times and after") from exc
    return Fault(kind, options.pop("match", default_match(kind)), counts[0], counts[1], options)


@contextmanager
def _stop_signals(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and a polite kill end the run; the handlers are put back afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, lambda *_: stop.set()) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _describe(server: SimulatorServer) -> str:
    return f"""{server!r}
  REST       {server.rest_url}
  WebSocket  {server.ws_url}

Point clients at it:
  export BACKBONE_REST_URL={server.rest_url}
  export BACKBONE_WS_URL={server.ws_url}
  python -c "from backbone import Backbone; print(Backbone().candles('KRW-BTC', '1m', count=3))"

Ctrl-C ends it."""


def run(argv: Sequence[str] | None = None, stop: threading.Event | None = None) -> int:
    """Serve until Ctrl-C (or `stop` is set); 0 for a clean end, 2 for a wrong argument."""
    from backbone.simulator.server.faults import Faults
    from backbone.simulator.server.http import SimulatorServer

    options = build_parser().parse_args(argv)
    stop = stop or threading.Event()
    if options.log:
        import logging

        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    try:
        server = SimulatorServer(
            seed=options.seed,
            now=options.now,
            port=options.port,
            limit=options.limit,
            window=options.window,
            latency_s=options.latency / 1000,
            jitter_s=options.jitter / 1000,
            replay=options.replay,
            faults=Faults(*(parse_fault(text) for text in options.fault)),
            frozen=options.frozen,
            speed=options.speed,
            markets=options.markets,
            log=options.log,
        ).start()
    except BackboneError as exc:
        print(f"backbone simulator: {exc}", file=sys.stderr)
        return 2
    with server, _stop_signals(stop):
        print(server.rest_url if options.quiet else _describe(server), flush=True)
        stop.wait()
    if not options.quiet:
        print(f"served {sum(sum(group.values()) for group in server.counts().values())} requests", flush=True)
    return 0
