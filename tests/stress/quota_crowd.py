"""Many processes and threads on one ledger, some killed in the middle.

Every process sends through a scheduler of its own as fast as it is let; the time of each sending is written to a file
before it happens. Counted in the end: the most in any second (never above the limit), the rate, each process's share.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import struct
import tempfile
import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path

from backbone.clock import SystemClock
from backbone.coordinator.metrics import Metrics
from backbone.coordinator.quota.ledger import MachineLimiter
from backbone.coordinator.scheduler import Scheduler
from backbone.errors import ClosedError
from backbone.model import Priority
from backbone.routing.rest import Reply
from backbone.routing.wire import Ask
from tests.processes import process
from tests.stress.report import Tally

LIMIT = 10
URL = "http://127.0.0.1:9"  # a name for the ledger; nothing is connected to


@dataclass(frozen=True)
class Outcome:
    """What was sent: by process, the monotonic times of sending."""

    stamps: dict[int, list[float]]
    killed: frozenset[int]

    @property
    def all_stamps(self) -> list[float]:
        return sorted(stamp for stamps in self.stamps.values() for stamp in stamps)

    @property
    def most_in_a_second(self) -> int:
        stamps = self.all_stamps
        return max((bisect_left(stamps, t + 1.0) - bisect_left(stamps, t) for t in stamps), default=0)

    @property
    def rate(self) -> float:
        """Sent a second, from the first to the last, the first windowful (which comes at once) left out."""
        stamps = self.all_stamps[LIMIT:]
        return (len(stamps) - 1) / (stamps[-1] - stamps[0]) if len(stamps) > 1 else 0.0

    def shares(self) -> list[int]:
        """Sent by each surviving process while all of them were at it."""
        alive = [stamps for process, stamps in self.stamps.items() if process not in self.killed]
        begin, end = max(stamps[0] for stamps in alive), min(stamps[-1] for stamps in alive)
        return [sum(begin <= stamp <= end for stamp in stamps) for stamps in alive]


def _send_all(folder: str, process: int, threads: int, seconds: float, priority: Priority) -> None:
    clock = SystemClock()
    chance = random.Random(process)
    journal = os.open(Path(folder) / f"{process}.stamps", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    network = threading.Condition()

    def send(ask: Ask) -> Reply:
        sent_s = clock.monotonic()
        os.write(journal, struct.pack("d", sent_s))
        with network:
            clock.wait(network, 0.02 + 0.02 * chance.random())
        return Reply(None, None, None, None, sent_s, clock.monotonic(), b"")

    limiter = MachineLimiter(URL, clock, folder=Path(folder))
    scheduler = Scheduler(limiter, send, clock=clock, metrics=Metrics())
    numbers = itertools.count()

    def work() -> None:
        try:
            while True:
                scheduler.request(Ask("candles", f"/{process}/{next(numbers)}", (), bytes), priority)
        except ClosedError:
            return

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    with network:
        network.wait_for(lambda: False, seconds)
    scheduler.close()
    for worker in workers:
        worker.join()


def run(
    *,
    processes: int = 4,
    threads: int = 3,
    seconds: float = 3.0,
    kills: int = 0,
    priorities: tuple[Priority, ...] = (Priority.LOW,),
) -> Outcome:
    """Let them all send for `seconds`; kill `kills` of them half-way."""
    with tempfile.TemporaryDirectory(prefix="backbone-quota-") as folder:
        running = []
        for number in range(processes):
            priority = priorities[number % len(priorities)]
            running.append(process(_send_all, folder, number, threads, seconds, priority, daemon=True))
            running[-1].start()
        for number in range(kills):
            running[number].join(seconds / 2 + 0.5 * processes / 4)
            os.kill(running[number].pid or 0, signal.SIGKILL)
        for each in running:
            each.join(seconds + 30)
        stamps = {
            number: [stamp for (stamp,) in struct.iter_unpack("d", path.read_bytes())]
            for number in range(processes)
            if (path := Path(folder) / f"{number}.stamps").exists()
        }
    return Outcome(stamps, frozenset(range(kills)))


@dataclass
class QuotaTally(Tally):
    """What the crowds were granted."""

    outcomes: list[Outcome] = field(default_factory=list)

    def facts(self) -> str:
        most = max((outcome.most_in_a_second for outcome in self.outcomes), default=0)
        slowest = min((outcome.rate for outcome in self.outcomes), default=0.0)
        sent = sum(len(outcome.all_stamps) for outcome in self.outcomes)
        return f"{sent:,} sent, at most {most} in any second (limit {LIMIT}), {slowest:.2f} a second"

    def faulty(self) -> list[str]:
        return [
            f"{outcome.most_in_a_second} were sent in one second"
            for outcome in self.outcomes
            if outcome.most_in_a_second > LIMIT
        ]


def prove(crowds: int, seconds: float) -> QuotaTally:
    """One crowd after another, one process of each killed half-way."""
    tally = QuotaTally()
    for _ in range(crowds):
        tally.outcomes.append(run(seconds=seconds, kills=1))
        tally.tried.update(crowds=1, kills=1)
    return tally
