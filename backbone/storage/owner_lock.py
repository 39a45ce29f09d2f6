"""A lock for disks that have none (network drives): a file that is created exclusively, with its owner's name in it.

The owner touches the file while it works (`refresh`), and asks before it writes whether the lock is still its own. A
waiter takes over from an owner that is dead: on the same host, a process that is gone; on another, a file that did not
change for `STALE_S` seconds of the waiter's own clock, since the clocks of hosts differ.
"""

# ruff: noqa: PTH104, PTH108, PTH123

from __future__ import annotations

import itertools
import os
import platform
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import msgspec

from backbone.clock import Clock

__all__ = ["STALE_S", "Owner", "OwnerLock", "create_file", "is_gone", "owner_here"]

STALE_S = 8.0

_numbers = itertools.count()


class Owner(msgspec.Struct, frozen=True):
    """A process by name; ``token`` tells its locks apart."""

    host: str
    pid: int
    born: str  # when the process began, so that a number used again is no sign of life
    token: str


def create_file(path: str, flags: int) -> int:
    """Open a file, which is made where there is none; returns its descriptor."""
    return os.open(path, flags | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)


class OwnerLock:
    """The lock at one path. One instance serves one thread at a time."""

    def __init__(self, path: str, clock: Clock, create: Callable[[str, int], int] = create_file) -> None:
        self._path = path
        self._clock = clock
        self._create = create
        self._mine = b""
        self._seen: tuple[bytes, int] = b"", 0  # the owner's bytes and the time of its last sign, as a waiter sees them
        self._seen_s = 0.0

    def try_acquire(self) -> bool:
        """Take the lock if it is free or its owner is dead. Raises `OSError` where the folder cannot be written."""
        token = f"{uuid.uuid4().hex}-{next(_numbers)}"
        mine = msgspec.json.encode(owner_here(token))
        if self._is_dead():
            self._take_away()
        try:
            fd = self._create(self._path, os.O_WRONLY | os.O_EXCL)
        except FileExistsError:
            return False
        with open(fd, "wb", buffering=0) as file:
            file.write(mine)
        self._mine = mine
        return True

    def refresh(self) -> bool:
        """Show that the owner lives; False where the lock was taken over: what it guards must not be written then."""
        if not self._mine or self._read()[0] != self._mine:
            return False
        with suppress(OSError):
            os.utime(self._path)
        return True

    def release(self) -> None:
        """Give the lock back, if it is still the caller's."""
        if self._mine and self._read()[0] == self._mine:
            with suppress(OSError):  # a lock that stays is taken over: its process no longer refreshes it
                os.unlink(self._path)
        self._mine = b""

    def holder(self) -> str:
        """Who holds the lock, in words."""
        owner = _parsed(self._read()[0])
        return "another process" if owner is None else f"process {owner.pid} on {owner.host}"

    def _read(self) -> tuple[bytes, int]:
        try:
            with open(self._path, "rb", buffering=0) as file:
                return file.read() or b"", os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return b"", 0

    def _is_dead(self) -> bool:
        seen = self._read()
        if seen == (b"", 0):
            return False
        owner = _parsed(seen[0])
        if owner is not None and owner.host == platform.node():
            return is_gone(owner)
        now_s = self._clock.monotonic()
        if seen != self._seen:
            self._seen, self._seen_s = seen, now_s
        return now_s - self._seen_s >= STALE_S

    def _take_away(self) -> None:
        """Remove the dead owner's file. If another waiter was faster, what was removed is its file: put it back."""
        dead, aside = self._read()[0], f"{self._path}.{uuid.uuid4().hex}"
        with suppress(OSError):
            os.rename(self._path, aside)
            if Path(aside).read_bytes() != dead:
                with suppress(OSError):
                    os.link(aside, self._path)
            os.unlink(aside)


def _parsed(data: bytes) -> Owner | None:
    try:
        return msgspec.json.decode(data, type=Owner)
    except msgspec.MsgspecError:  # its owner has only just created it, or died before it wrote
        return None


def owner_here(token: str) -> Owner:
    """This process, as the owner of something."""
    return Owner(platform.node(), os.getpid(), _my_birth(os.getpid()), token)


def is_gone(owner: Owner) -> bool:
    """Whether an owner's process is known to have ended; of another host nothing is known."""
    if owner.host != platform.node() or not hasattr(os, "kill") or os.name == "nt":
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return _born(owner.pid) != owner.born


@cache
def _my_birth(pid: int) -> str:
    """When this process began, read once; a forked child has another `pid`."""
    return _born(pid)


def _born(pid: int) -> str:
    """When a process began, in its system's own ticks; nothing where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]
