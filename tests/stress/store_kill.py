"""Kill writers at random moments, and hold what they leave against the truth.

Starts crowds of real processes that fill one folder, ends each crowd with SIGKILL at a random moment, opens the
folder and checks: every row is the venue's, no covered span lacks its rows, what a writer reported as flushed is
there, and nothing older than a second is asked again.
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from backbone.errors import StoreBusyError
from backbone.model import Span
from backbone.storage.coverage import SpanSet
from backbone.timeframe import Timeframe
from tests.processes import CONTEXT
from tests.stress.report import Tally
from tests.stress.store_world import MARKETS, TIMEFRAMES, any_reply, check, open_store

_RECORD = struct.Struct("<cBBqqd")  # kind, market, timeframe, start, end, monotonic seconds
_READY, _PUT, _DONE, _BUSY, _FLUSHED = b"r", b"p", b"d", b"b", b"f"


def write_for_ever(root: str, seed: int, out: int) -> None:
    """A writer: pages at random places, group commits and flushes, every step reported to the parent."""
    chance = random.Random(seed)
    group_commit_s = chance.choice([0.01, 0.1, 0.5])
    store = open_store(Path(root), group_commit_s=group_commit_s)
    markets = list(MARKETS)

    def report(kind: bytes, *place: int) -> None:
        os.write(out, _RECORD.pack(kind, *(place or (0, 0, 0, 0)), time.monotonic()))

    report(_READY, 0, 0, int(group_commit_s * 1e6), 0)
    while True:
        reply = any_reply(chance)
        report(_PUT, markets.index(reply.market), TIMEFRAMES.index(reply.timeframe), *reply.span)
        try:
            reply.put(store)
            report(_DONE)
            if chance.random() < 0.05:
                store.flush()
                report(_FLUSHED)
        except StoreBusyError:  # the crowd is large; the pages are kept and go with a later write
            report(_BUSY)


@dataclass
class KillTally(Tally):
    """How many pages were put, and how old the oldest was that a kill lost."""

    pages: int = 0
    promised: int = 0
    oldest_asked_again_s: float = 0.0

    def facts(self) -> str:
        v = self.verdict
        return (
            f"oldest page asked again {self.oldest_asked_again_s:.2f} s; {v.rows:,} rows checked, "
            f"{self.pages:,} pages put, {v.leftovers} unfinished"
        )

    def faulty(self) -> list[str]:
        if self.oldest_asked_again_s > 1.0:
            return [f"a page put {self.oldest_asked_again_s:.2f} s before the kill is asked again"]
        return []


Place = tuple[str, Timeframe]
Proofs = dict[Place, SpanSet]


@dataclass
class _Page:
    """A page as its writer reported of it."""

    place: Place
    span: Span
    put_s: float
    done_s: float | None = None
    is_promised: bool = False


def run(seed: int, kills: int, *, writers: int = 3, per_folder: int = 20) -> KillTally:
    """Kill crowds until `kills` processes are dead; a fresh folder now and then."""
    chance, tally = random.Random(seed), KillTally()
    folder = Path(tempfile.mkdtemp(prefix="backbone-kill-"))
    proofs: Proofs = {}
    try:
        while tally.tried["kills"] < kills:
            before = tally.tried["kills"] // per_folder
            crowd = min(chance.randint(1, writers), kills - tally.tried["kills"])
            _one_crowd(CONTEXT, folder, chance, crowd, proofs, tally)
            check(folder, tally.verdict, proofs=proofs)
            open_store(folder).repair()
            if remaining := open_store(folder).verify():
                tally.verdict.problems.append(f"after repair: {remaining}")
            if tally.verdict.problems or tally.tried["kills"] // per_folder != before:
                shutil.rmtree(folder)
                folder.mkdir()
                proofs = {}
    finally:
        shutil.rmtree(folder)
    return tally


def _one_crowd(
    context: BaseContext, folder: Path, chance: random.Random, crowd: int, proofs: Proofs, tally: KillTally
) -> None:
    """Start `crowd` writers, let them work for a moment, kill them all, and note what they had promised."""
    started: list[tuple[Any, Any]] = []
    for _ in range(crowd):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_writer, args=(os.fspath(folder), chance.getrandbits(32), sender), daemon=True)
        process.start()
        sender.close()
        started.append((process, receiver))
    reported = [bytearray(os.read(receiver.fileno(), _RECORD.size)) for _, receiver in started]  # all are at work
    _listen(started, reported, chance.uniform(0.0, 0.25) if chance.random() < 0.8 else chance.uniform(0.5, 1.5))
    for process, _ in started:
        process.kill()
    killed_s = time.monotonic()
    for process, _ in started:
        process.join()
        tally.tried["kills"] += 1
    _listen(started, reported, None)
    store = open_store(folder)
    for (_, receiver), received in zip(started, reported, strict=True):
        receiver.close()
        for page in _pages(bytes(received)):
            tally.pages += 1
            tally.promised += page.is_promised
            if page.is_promised:
                proofs[page.place] = proofs.get(page.place, SpanSet()) | SpanSet([page.span])
            elif page.done_s is not None and not store.coverage(*page.place, page.span).contains(page.span):
                tally.oldest_asked_again_s = max(tally.oldest_asked_again_s, killed_s - page.put_s)


def _writer(root: str, seed: int, sender: Any) -> None:
    write_for_ever(root, seed, sender.fileno())


def _listen(started: list[tuple[Any, Any]], reported: list[bytearray], seconds: float | None) -> None:
    """Take what the writers say, for a while, or (None) until their pipes are empty."""
    from multiprocessing.connection import wait

    deadline = None if seconds is None else time.monotonic() + seconds
    waiting = {receiver: received for (_, receiver), received in zip(started, reported, strict=True)}
    while waiting:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return
        for receiver in wait(list(waiting), left):
            data = os.read(receiver.fileno(), 1 << 16)  # type: ignore[union-attr]
            waiting[receiver].extend(data)
            if not data:
                del waiting[receiver]


def _pages(received: bytes) -> list[_Page]:
    """A dead writer's pages, and which of them the store had promised to have on disk."""
    markets = list(MARKETS)
    pages: list[_Page] = []
    group_commit_s = 0.0
    for at in range(0, len(received) // _RECORD.size * _RECORD.size, _RECORD.size):
        kind, market, timeframe, start, end, reported_s = _RECORD.unpack_from(received, at)
        if kind == _READY:
            group_commit_s = start / 1e6
        elif kind == _PUT:
            pages.append(_Page((markets[market], TIMEFRAMES[timeframe]), Span(start, end), reported_s))
        elif kind == _DONE:
            pages[-1].done_s = reported_s
            for page in pages[:-1]:
                is_due = page.done_s is not None and page.done_s + group_commit_s <= pages[-1].put_s
                page.is_promised = page.is_promised or is_due
        elif kind == _FLUSHED:
            for page in pages:
                page.is_promised = True
        elif kind == _BUSY:  # the next try is a group-commit time away
            for page in pages:
                page.done_s = reported_s
    return pages
