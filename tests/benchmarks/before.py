"""Cold and stored reads of this checkout beside those of an earlier commit, alternating in one run.

Run: ``python -m tests.benchmarks.before COMMIT``. The commit is checked out in a temporary folder meanwhile. The
embedded exchange, this checkout's, is a process of its own, and so is each side; its clock is the machine's. Figures
are lower quartiles, which a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1000

_SERVE = f"""
import datetime, sys
from backbone.simulator import SimulatorServer
now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
with SimulatorServer(seed=7, now=now, limit={LIMIT}) as server:
    print(server.rest_url, flush=True)
    for line in sys.stdin:
        print(sum(1 for one in server.requests if one.group == "candles"), flush=True)
        server.reset_log()
"""

_SIDE = f"""
import json, sys, tempfile, time
from backbone import Backbone
from backbone.coordinator import coordinator
from backbone.coordinator.quota.ledger import MemoryLimiter
from backbone.coordinator.quota.rules import Rules
coordinator._open_limiter = lambda settings, clock: MemoryLimiter(clock, Rules(limit={LIMIT}))
url, folder = sys.argv[1:]
began = time.time() // 86400 * 86400
def day(back, minutes=0):
    return time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(began - 86400 * back + 60 * minutes))
def read(client, market, **words):
    began = time.perf_counter()
    rows = len(client.candles(market, "1m", progress=False, **words))
    return time.perf_counter() - began, rows
kept = Backbone(data_dir=folder + "/kept", rest_url=url)
kept.candles("KRW-BTC", "1m", day(35), day(4), progress=False)
print("ready", flush=True)
for number, line in enumerate(sys.stdin):  # no range is asked twice: what remembers results answers none
    what = line.strip()
    if what == "cold":
        with Backbone(data_dir=tempfile.mkdtemp(dir=folder), rest_url=url) as client:
            answer = read(client, "KRW-BTC", count=1000)
    elif what == "thin":
        with Backbone(data_dir=tempfile.mkdtemp(dir=folder), rest_url=url) as client:
            answer = read(client, "KRW-CELR", start=day(20), end=day(6))
    elif what == "stored":
        answer = read(kept, "KRW-BTC", start=day(10, number), end=day(10, number + 1000))
    else:
        answer = read(kept, "KRW-BTC", start=day(34, number), end=day(5, number))
    print(json.dumps(answer), flush=True)
"""


@contextmanager
def _talk(script: str, tree: Path, *arguments: str) -> Iterator[Callable[[str | None], str]]:
    """A Python process of `tree`; the function sends a line (None: nothing) and returns the line that it answers."""
    environ = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    process = subprocess.Popen(command, cwd=tree, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    asked, answers = process.stdin, process.stdout

    def talk(line: str | None) -> str:
        if line is not None:
            asked.write(line + "\n")
            asked.flush()
        return answers.readline().strip()

    try:
        yield talk
    finally:
        asked.close()
        process.wait(30)


@contextmanager
def _checkout(commit: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", str(tree), commit], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def compare(commit: str, rounds: int) -> dict[str, dict[str, Any]]:
    """For each kind of read the lower quartile of both sides, their ratio, and the candle requests."""
    kinds = ("cold", "thin", "stored", "month")
    seconds: dict[str, dict[str, list[float]]] = {kind: {"before": [], "now": []} for kind in kinds}
    requests: dict[str, dict[str, int]] = {kind: {} for kind in kinds}
    with (
        _checkout(commit) as old,
        tempfile.TemporaryDirectory() as first,
        tempfile.TemporaryDirectory() as second,
        _talk(_SERVE, ROOT) as server,
    ):
        url = server(None)
        with _talk(_SIDE, old, url, first) as before, _talk(_SIDE, ROOT, url, second) as now:
            sides = [("before", before), ("now", now)]
            for _, side in sides:
                assert side(None) == "ready"
            for number in range(rounds):
                for kind in kinds:
                    rows = set()
                    for name, side in sides[:: 1 if number % 2 else -1]:
                        server("count")
                        took, found = json.loads(side(kind))
                        requests[kind][name] = int(server("count"))
                        seconds[kind][name].append(took)
                        rows.add(found)
                    assert len(rows) == 1, f"{kind}: {rows}"
    found: dict[str, dict[str, Any]] = {}
    for kind, both in seconds.items():
        before_s, now_s = (statistics.quantiles(both[name], n=4)[0] for name in ("before", "now"))
        found[kind] = {
            "before_ms": 1000 * before_s,
            "now_ms": 1000 * now_s,
            "ratio": now_s / before_s,
            "requests": requests[kind],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    words = {
        "cold": "1,000 candles cold",
        "thin": "two weeks of a thin market cold",
        "stored": "1,000 stored candles",
        "month": "a stored month of minutes",
    }
    for kind, found in compare(options.commit, options.rounds).items():
        asked = found["requests"]
        print(
            f"{words[kind]}: {found['now_ms']:.1f} ms, before {found['before_ms']:.1f} ms: {found['ratio']:.2f} x; "
            f"requests {asked['now']}, before {asked['before']}"
        )


if __name__ == "__main__":
    main()
