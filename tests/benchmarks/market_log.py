"""What the list of a day costs over five years of a busy log: ``python -m tests.benchmarks.market_log``.

Three hundred markets, fifty changes a day. *whole* reads and parses the whole log, as once in its life; *cold* reads
the columns that were kept then, as the first call of every later process does; *known* finds the log unchanged; *added*
finds one event more; *decoded* is what it takes to decode each line, to compare with. The last lines are whole calls
of fresh processes, after ``import backbone`` and a client. Milliseconds of the process's own time, which a busy machine
does not lengthen as much.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from backbone.clock import SystemClock
from backbone.coordinator.market_log import MarketLog
from backbone.storage.events import Event, Events
from backbone.storage.store import CandleStore
from backbone.timeframe import DAY_US

START = 1_577_836_800_000_000  # 2020-01-01
DAYS = 5 * 365


def busy_log(events: Events, *, days: int = DAYS, markets: int = 300, a_day: int = 50) -> None:
    """Fill a log: all markets are listed on the first day, and then some change every day."""
    rng, codes = random.Random(1), [f"KRW-{n}" for n in range(markets)]
    found = [Event(START, "", "list", {"markets": markets}, "market list")]
    found += [
        Event(START, code, "listed", {"korean_name": code, "english_name": code}, "market list") for code in codes
    ]
    for day in range(1, days):
        for code in rng.sample(codes, a_day):
            said = {"cautions": [rng.choice("ABC")] if rng.random() < 0.5 else [], "n": day}
            found.append(Event(START + day * DAY_US, code, "cautioned", said, "market list"))
    events.add_all(found)


def measure(root: Path, *, days: int = DAYS, rounds: int = 5) -> dict[str, float]:
    """The median milliseconds of each kind of look."""
    clock = SystemClock()
    busy_log(CandleStore(root, "upbit", clock=clock).events, days=days)
    taken: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[[], object]) -> None:
        began = time.process_time()
        call()
        taken.setdefault(name, []).append((time.process_time() - began) * 1000)

    for number in range(rounds):
        events = CandleStore(root, "upbit", clock=clock).events
        at_us = START + (number * days // rounds) * DAY_US
        timed("decoded", lambda: events.read())  # noqa: B023
        (root / "_events" / "exchange=upbit.columns").unlink(missing_ok=True)
        events = CandleStore(root, "upbit", clock=clock).events
        log = MarketLog(events, clock.now_us, lambda job: job())
        timed("whole", lambda: log.at(at_us))  # noqa: B023 (called at once)
        events = CandleStore(root, "upbit", clock=clock).events
        log = MarketLog(events, clock.now_us, lambda job: job())
        timed("cold", lambda: log.at(at_us))  # noqa: B023 (called at once)
        timed("known", lambda: log.at(at_us))  # noqa: B023
        events.add("KRW-1", "warned", {"warning": number % 2 == 0}, how="market list")
        timed("added", lambda: log.at(at_us))  # noqa: B023
    return {name: statistics.median(found) for name, found in taken.items()}


FRESH = """
import sys, time
import backbone, pandas
with backbone.Backbone(data_dir=sys.argv[1], rest_url="http://127.0.0.1:9") as client:
    for name in ("first", "again", "again"):
        began = time.process_time()
        client.markets(at="2023-06-01")
        print(f"markets(at=) {name:5} {(time.process_time() - began) * 1000:8.1f} ms")
"""


def main() -> None:
    """Print the log's own cost, and that of the whole call."""
    with tempfile.TemporaryDirectory() as folder:
        for name, ms in measure(Path(folder) / "log").items():
            print(f"{name:8} {ms:8.1f} ms")
        busy_log(CandleStore(Path(folder) / "data", "upbit-at-127.0.0.1-9", clock=SystemClock()).events)
        for _ in range(3):
            subprocess.run([sys.executable, "-c", FRESH, f"{folder}/data"], check=True)


if __name__ == "__main__":
    main()
