"""The pyupbit programs, with pyupbit and with the compat module: ``python -m tests.benchmarks.programs --rounds 5``.

The exchange runs in a process of its own, 30 ms away, at the venue's own rate. Each program runs in a fresh process
with a fresh store, by turns with one module and the other; its time is what a user waits for: from the first import to
the answer. The best of the rounds counts. Bytecode is compiled before, as an installed package's is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from tests.benchmarks.peers import spawn

__all__ = ["compiled", "measure"]

MODULES = ("pyupbit", "backbone.compat.pyupbit")
_LATENCY_S = 0.03
_PAUSE_S = 1.1  # the exchange counts the last second's requests


def _serve(pipe: Connection, speed: float) -> None:
    from backbone.simulator import SimulatorServer

    with SimulatorServer(seed=7, latency_s=_LATENCY_S, speed=speed) as server:
        pipe.send((server.rest_url, server.ws_url))
        pipe.recv()


@contextmanager
def _venue(speed: float) -> Iterator[tuple[str, str]]:
    pipe, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, speed), daemon=True)
    process.start()
    try:
        yield pipe.recv()
    finally:
        pipe.send("end")
        process.join()


def _run(module: str, name: str, rest_url: str, ws_url: str) -> None:
    """In a process of its own: the program, and the seconds from the first import to its answer."""
    begun = time.perf_counter()
    if module == "pyupbit":
        from pyupbit import request_api, websocket_api  # type: ignore[import-not-found,import-untyped,unused-ignore]

        get, connect = request_api.requests.get, websocket_api.websockets.connect
        request_api.requests.get = lambda url, **o: get(url.replace("https://api.upbit.com", rest_url), **o)
        websocket_api.websockets.connect = lambda uri, **o: connect(ws_url, **o)
    import importlib

    given = importlib.import_module(module)
    from tests.compat_peers import programs

    programs.REST["seconds"] = 0.1
    getattr(programs, name)(given)
    sys.stdout.write(json.dumps(time.perf_counter() - begun))


@contextmanager
def compiled() -> Iterator[dict[str, str]]:
    """The environment of a child that finds its bytecode once another child has run."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        yield environment


def measure(rounds: int, names: list[str]) -> dict[str, tuple[float, float]]:
    """The best seconds of each program: with pyupbit, with the compat module."""
    found: dict[str, tuple[float, float]] = {}
    with compiled() as environment:
        for name in names:
            with _venue(20.0 if name == "volume_power" else 1.0) as (rest_url, ws_url):
                best = dict.fromkeys(MODULES, float("inf"))
                for number in range(rounds + 1):  # the first one warms up: bytecode, and the market's history
                    for module in MODULES:
                        with tempfile.TemporaryDirectory() as folder:
                            where = {
                                "BACKBONE_DATA_DIR": f"{folder}/data",
                                "BACKBONE_CACHE_DIR": f"{folder}/cache",
                                "BACKBONE_REST_URL": rest_url,
                                "BACKBONE_WS_URL": ws_url,
                            }
                            command = [sys.executable, "-m", __spec__.name, "--run", module, name, rest_url, ws_url]
                            ran = subprocess.run(command, env=environment | where, stdout=subprocess.PIPE, check=True)
                        if number:
                            best[module] = min(best[module], float(json.loads(ran.stdout)))
                        time.sleep(_PAUSE_S)
                found[name] = (best[MODULES[0]], best[MODULES[1]])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each runs (5)")
    parser.add_argument("--only", nargs="+", metavar="PROGRAM", help="these programs alone")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        _run(*options.run)
        return
    from tests.compat_peers.programs import PROGRAMS, midnight_days

    # pyupbit answers None for days from midnight, so there is nothing to race
    names = options.only or [program.__name__ for program in PROGRAMS if program is not midnight_days]
    print("program, first import to answer: pyupbit, ours, pyupbit's time / ours")
    for name in names:
        theirs, ours = measure(options.rounds, [name])[name]
        print(f"  {name:18} {theirs * 1000:6.0f} ms {ours * 1000:6.0f} ms {theirs / ours:5.2f}", flush=True)


if __name__ == "__main__":
    main()
