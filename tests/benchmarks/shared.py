"""Three processes that want the same ten days of minutes, beside one: ``python -m tests.benchmarks.shared``.

One folder, the embedded exchange 30 ms away, at the legal rate. Prints the requests and the longest time of each.
"""

from __future__ import annotations

import tempfile
import threading
import time
from multiprocessing.connection import Connection

from tests.benchmarks.peers import spawn, venue

_SPAN = ("2025-08-01T00:00Z", "2025-08-11T00:00Z")
_ROWS = 14_400


def _fetch(url: str, folder: str, pipe: Connection) -> None:
    from backbone import Backbone

    with Backbone(data_dir=folder, rest_url=url) as client:
        client.markets("KRW")
        pipe.send("ready")
        pipe.recv()
        begun = time.perf_counter()
        frame = client.candles("KRW-BTC", "1m", *_SPAN, progress=False)
        assert len(frame) == _ROWS
        pipe.send(time.perf_counter() - begun)


def run(processes: int) -> tuple[int, float]:
    """Requests of all, and seconds of the slowest."""
    rest = threading.Event()
    with venue() as (url, line), tempfile.TemporaryDirectory() as folder:
        pipes = []
        for _ in range(processes):
            ours, theirs = spawn.Pipe()
            spawn.Process(target=_fetch, args=(url, folder, theirs), daemon=True).start()
            pipes.append(ours)
        for pipe in pipes:
            pipe.recv()
        rest.wait(1.5)  # the venue's seconds are all free
        line.send("count")
        line.recv()
        for pipe in pipes:
            pipe.send("begin")
        slowest = max(pipe.recv() for pipe in pipes)
        line.send("count")
        return line.recv()[0], slowest


def main() -> None:
    for processes in (1, 3):
        requests, slowest = run(processes)
        print(f"{processes} at once: {requests} requests, {slowest:.1f} s")


if __name__ == "__main__":
    main()
