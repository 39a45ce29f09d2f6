"""Several processes read and write the same partitions at once.

Writers put overlapping pages into one folder while readers read it, and one more process dies holding the lock
of each series. Checked: no reader ever sees a row that is not the venue's or a covered span without its rows, every
page of every writer is there in the end, no row twice, and no process waits for a dead one.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbone.model import Span
from backbone.storage.coverage import SpanSet
from backbone.storage.layout import Series
from tests.processes import CONTEXT
from tests.stress.report import Tally, Verdict
from tests.stress.store_world import MARKETS, TIMEFRAMES, Reply, any_reply, check, check_read, open_store

_DEADLINE_S = 120.0


def write(root: str, seed: int, pages: int, out: Any) -> None:
    """Put pages, most of them where other writers put theirs too; say which."""
    chance = random.Random(seed)
    store = open_store(Path(root), group_commit_s=0.02)
    reported = []
    for _ in range(pages):
        reply = any_reply(chance, slots=20_000)
        reply.put(store)
        reported.append((reply.market, reply.timeframe.name, *reply.span))
        if chance.random() < 0.1:
            store.flush()
    store.close()
    out.send((reported, [str(incident) for incident in store.incidents()]))


def read(root: str, seed: int, done: Any, out: Any) -> None:
    """Read until the writers are done; every answer must be the truth at some moment."""
    chance = random.Random(seed)
    store = open_store(Path(root), memory_bytes=chance.choice([0, 1 << 20, 256 << 20]))
    verdict, reads = Verdict(), 0
    while not done.is_set() or reads < 10:
        reply = any_reply(chance, slots=20_000)
        check_read(store, Reply(reply.market, reply.timeframe, Span(0, reply.span.end)), verdict)
        reads += 1
    verdict.problems += [str(incident) for incident in store.incidents()]
    out.send((reads, verdict))


def die_holding_every_lock(root: str, held: Any) -> None:
    """Take the lock of every series, say so, and never give them back."""
    from contextlib import ExitStack

    store = open_store(Path(root))
    with ExitStack() as stack:
        for market in MARKETS:
            for timeframe in TIMEFRAMES:
                stack.enter_context(store._files.exclusive(Series("upbit", market, timeframe).lock_key))
        held.send(True)
        multiprocessing.Event().wait()


@dataclass
class CrowdTally(Tally):
    """What the crowds did."""

    pages: int = 0
    reads: int = 0
    lock_holders_killed: int = 0

    def facts(self) -> str:
        return (
            f"{self.pages:,} pages put, {self.reads:,} reads at once, {self.verdict.rows:,} rows checked; "
            f"{self.lock_holders_killed} died holding the locks"
        )


def run(seed: int, crowds: int = 1, *, writers: int = 4, readers: int = 2, pages: int = 200) -> CrowdTally:
    """One crowd after another, each on a folder of its own."""
    chance, tally = random.Random(seed), CrowdTally()
    for _ in range(crowds):
        _one_crowd(CONTEXT, chance, tally, writers, readers, pages)
        tally.tried["crowds"] += 1
    return tally


def _one_crowd(context: Any, chance: random.Random, tally: CrowdTally, writers: int, readers: int, pages: int) -> None:
    root = tempfile.mkdtemp(prefix="backbone-crowd-")
    done = context.Event()
    try:
        _kill_a_lock_holder(context, root, tally)
        writing = [_start(context, write, root, chance.getrandbits(32), pages) for _ in range(writers)]
        reading = [_start(context, read, root, chance.getrandbits(32), done) for _ in range(readers)]
        proofs: dict[Any, SpanSet] = {}
        for reported, incidents in (_result(*started) for started in writing):
            tally.pages += len(reported)
            tally.verdict.problems += incidents
            for market, name, start, end in reported:
                place = market, next(t for t in TIMEFRAMES if t.name == name)
                proofs[place] = proofs.get(place, SpanSet()) | SpanSet([(start, end)])
        done.set()
        for reads, verdict in (_result(*started) for started in reading):
            tally.reads += reads
            tally.verdict.add(verdict)
        check(Path(root), tally.verdict, proofs=proofs)
    finally:
        done.set()
        shutil.rmtree(root)


def _start(context: Any, target: Any, *args: Any) -> tuple[Any, Any]:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*args, sender), daemon=True)
    process.start()
    sender.close()
    return process, receiver


def _result(process: Any, receiver: Any) -> Any:
    """What a process sent; one that sends nothing in time is stuck."""
    if not receiver.poll(_DEADLINE_S):
        process.kill()
        raise AssertionError(f"process {process.pid} is stuck")
    found = receiver.recv()
    process.join(10)
    receiver.close()
    return found


def _kill_a_lock_holder(context: Any, root: str, tally: CrowdTally) -> None:
    process, receiver = _start(context, die_holding_every_lock, root)
    if not receiver.poll(_DEADLINE_S):
        raise AssertionError("the lock holder is stuck")
    process.kill()
    process.join()
    receiver.close()
    tally.lock_holders_killed += 1
