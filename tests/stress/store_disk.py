"""Disks that are full, fail at any step, forbid writing or vanish, under a store that is being filled.

Makes single system calls of a write fail at
random, fills a small memory-backed file system (where this process may mount one), forbids writing, and takes
the folder away. Checked after each fault: one clear error with a path, every durable row is still there and
right, what was put stays readable in memory, and goes to disk once the fault is over.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from backbone.errors import StoreError
from backbone.model import Span
from backbone.storage.coverage import EVER, SpanSet
from backbone.storage.store import CandleStore
from tests.stress.report import Tally
from tests.stress.store_world import START, TIMEFRAMES, Reply, any_reply, check, check_read, open_store

_CALLS = ("open", "fsync", "utime", "replace", "mkdir", "fstat")
_CODES = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT)


@dataclass
class DiskTally(Tally):
    """What was made to fail, and how many errors reported of it."""

    kinds: Counter[str] = field(default_factory=Counter)
    errors: int = 0

    def count(self, kind: str) -> None:
        self.tried["faults"] += 1
        self.kinds[kind] += 1

    def facts(self) -> str:
        named = ("full", "read-only", "vanished")
        whole = ", ".join(f"{kind} {self.kinds[kind]}" for kind in named if self.kinds[kind])
        calls = sum(count for kind, count in self.kinds.items() if kind not in named)
        rows = f"{self.verdict.rows:,} rows checked"
        return f"{self.errors} clear errors; failed calls {calls}{', ' * bool(whole)}{whole}; {rows}"


def run(seed: int, faults: int) -> DiskTally:
    """Every kind of fault, the injected ones `faults` times."""
    chance, tally = random.Random(seed), DiskTally()
    with tempfile.TemporaryDirectory(prefix="backbone-disk-") as folder:
        _inject(Path(folder) / "injected", chance, faults, tally)
        _vanish(Path(folder) / "vanishing", chance, tally)
        _forbid(Path(folder) / "forbidden", chance, tally)
        _fill_up(Path(folder) / "full", chance, tally)
    return tally


class _Filler:
    """Puts pages and remembers all of them: none may be lost by a fault, whether on disk yet or not."""

    def __init__(self, root: Path, chance: random.Random, tally: DiskTally) -> None:
        self.store: CandleStore = open_store(root, group_commit_s=3600.0)
        self.root, self._chance, self._tally = root, chance, tally
        self.proofs: dict[Any, SpanSet] = {}

    def put(self, count: int) -> None:
        for _ in range(count):
            reply = any_reply(self._chance, slots=30_000)
            reply.put(self.store)
            place = reply.market, reply.timeframe
            self.proofs[place] = self.proofs.get(place, SpanSet()) | SpanSet([reply.span])

    def flush(self, *, may_fail: bool = True) -> bool:
        """Whether it worked; a failure is a clear error with a path, or a problem."""
        try:
            self.store.flush()
            return True
        except StoreError as exc:
            self._tally.errors += 1
            if not may_fail or exc.path is None or "stay in memory" not in str(exc):
                self._tally.verdict.problems.append(f"unclear or unexpected: {exc!r}")
            return False

    def check_memory(self) -> None:
        """Everything put so far is readable from this store, whatever the disk does."""
        for (market, timeframe), proof in self.proofs.items():
            check_read(self.store, Reply(market, timeframe, EVER), self._tally.verdict)
            if missing := proof - self.store.coverage(market, timeframe, EVER):
                self._tally.verdict.problems.append(f"{market} {timeframe}: {missing} was put and is unknown")

    def check_disk(self, *, is_complete: bool) -> None:
        check(self.root, self._tally.verdict, proofs=self.proofs if is_complete else None)


def _inject(root: Path, chance: random.Random, faults: int, tally: DiskTally) -> None:
    """One system call of a flush fails; the folder is then looked at, and the flush repeated."""
    filler = _Filler(root, chance, tally)
    filler.put(3)
    filler.flush(may_fail=False)
    while tally.tried["faults"] < faults:
        filler.put(chance.randint(1, 4))
        call, code = chance.choice(_CALLS), chance.choice(_CODES)
        with _failing(call, code, after=chance.choice([0, 1, 2, 5, 9])) as failed:
            filler.flush()
        if not failed:
            continue
        tally.count(call)
        filler.check_memory()
        filler.check_disk(is_complete=False)
        if chance.random() < 0.3:
            filler.flush(may_fail=False)
            filler.check_disk(is_complete=True)
    filler.flush(may_fail=False)
    filler.check_disk(is_complete=True)


@contextmanager
def _failing(call: str, code: int, after: int) -> Iterator[list[int]]:
    """Let a system call fail once, after so many that work. Yields a list that has an entry once it did."""
    works, failed = getattr(os, call), list[int]()
    seen = 0

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == after + 1:
            failed.append(code)
            raise OSError(code, os.strerror(code))
        return works(*args, **kwargs)

    with mock.patch.object(os, call, sometimes):
        yield failed


def _vanish(root: Path, chance: random.Random, tally: DiskTally) -> None:
    """The folder is taken away and brought back."""
    filler = _Filler(root, chance, tally)
    filler.put(5)
    filler.flush(may_fail=False)
    filler.put(5)
    root.rename(root.with_name("elsewhere"))
    if filler.flush() or root.exists():
        tally.verdict.problems.append("a vanished folder was made anew")
    tally.count("vanished")
    root.with_name("elsewhere").rename(root)
    filler.flush(may_fail=False)
    filler.check_memory()
    filler.check_disk(is_complete=True)


def _forbid(root: Path, chance: random.Random, tally: DiskTally) -> None:
    """The folder becomes read-only: nothing is written, all stays readable from memory, and is written afterwards."""
    filler = _Filler(root, chance, tally)
    filler.put(5)
    filler.flush(may_fail=False)
    filler.put(5)
    with read_only(root) as is_forbidden:
        if not is_forbidden:
            return
        tally.count("read-only")
        before = sorted(root.rglob("*"))
        filler.flush()
        if sorted(root.rglob("*")) != before:
            tally.verdict.problems.append("a read-only folder was written to")
        filler.check_memory()
        filler.check_disk(is_complete=False)
    filler.flush(may_fail=False)
    filler.check_disk(is_complete=True)


@contextmanager
def read_only(root: Path) -> Iterator[bool]:
    """`root` without the right to write: by its mode, or for a user whom modes do not bind, by a mount."""
    if getattr(os, "geteuid", lambda: 1)() == 0:
        is_mounted = mounts("mount", "--bind", root, root) and mounts("mount", "-o", "remount,bind,ro", root)
        try:
            yield is_mounted
        finally:
            mounts("umount", root)
        return
    folders = [path for path in (root, *root.rglob("*")) if path.is_dir()]
    for path in folders:
        path.chmod(0o500)
    try:
        yield True
    finally:
        for path in folders:
            path.chmod(0o700)


def _fill_up(root: Path, chance: random.Random, tally: DiskTally) -> None:
    """A file system of four megabytes is filled until it is full, then made larger."""
    root.mkdir()
    if not mounts("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", root):
        return
    try:
        filler = _Filler(root, chance, tally)
        span = Span(START, START + 9 * 86_400_000_000)
        for timeframe in TIMEFRAMES[:1]:
            Reply("KRW-BTC", timeframe, span).put(filler.store)
        filler.flush(may_fail=False)
        ballast = root / "ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        filler.put(30)
        for _ in range(3):
            if filler.flush():
                tally.verdict.problems.append("a full disk took more")
            tally.count("full")
            filler.check_memory()
            filler.check_disk(is_complete=False)
        ballast.unlink()
        mounts("mount", "-o", "remount,size=64m", root)
        filler.flush(may_fail=False)
        filler.check_disk(is_complete=True)
    finally:
        mounts("umount", root)


def mounts(*command: object) -> bool:
    """Whether a mount command worked; most users may not."""
    try:
        return subprocess.run(list(map(str, command)), capture_output=True, check=False).returncode == 0
    except OSError:
        return False
