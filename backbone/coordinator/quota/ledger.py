"""Where the quota's state lives: one small file for all processes of the machine, or the memory of one process.

The venue counts per address, so every process here that talks to the same host shares one *ledger*: a file
mapped into memory whose content `quota.rules` decides on, guarded by a lock that the kernel releases when its
holder dies. Times in it are the machine's monotonic clock, which all processes of one boot share; another
boot's file is cleared, save for a ban, whose end is kept in wall time as well.

Invariants: a permit is decided and written within one hold of the file lock, which is never held across a
wait; a lock that cannot be had at once (its holder is stopped) makes the caller come back, never hang; what is
in the file counts only as far as `quota.rules` finds it possible, so garbage costs a reset and not a wrong
permit for long; a process that dies holds nothing.

`StateLimiter._lock` guards the state against threads of this process, the file lock against other processes;
a forked child opens the file anew, since an inherited lock would be its parent's too.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import os
import secrets
import stat
import struct
import sys
import threading
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from backbone.clock import Clock
from backbone.coordinator.quota import rules as rates
from backbone.coordinator.quota.rules import GroupState, Rules, State
from backbone.errors import ClosedError
from backbone.locks import renew_after_fork
from backbone.model import Priority
from backbone.settings import ledger_folder

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["FileLimiter", "MachineLimiter", "MemoryLimiter", "StateLimiter", "address_of", "ledger_path"]

T = TypeVar("T")

log = logging.getLogger("backbone.quota")

_MAGIC = b"bbquota1"
_HEADER = struct.Struct("<8sI36sq")  # magic, values of a state, boot, end of the ban in wall microseconds
_NAMES_AT = 512
_NAME_BYTES = 32
_STATES_AT = 4096
_GROUPS = 16  # the venue has five wire groups, and `origin`
_HOST = ""  # the name of the state that holds what concerns every group: the ban
_BUSY_S = 0.001  # when to come back where the file lock is held
_SPINS = 60
_STUCK_S = 5.0  # it is held for microseconds: a holder of so long is stopped, and may stay so
_CHECK_S = 5.0  # how often to see whether the file is still the one that others open
_STALE_S = 86400.0  # a ledger unused for so long is removed by whoever opens another
_STALE_LOCAL_S = 3600.0  # one of a port of this machine, which another exchange may get


class StateLimiter:
    """A `Limiter` over the state at one *place*: memory, or the machine's file. Safe to share between threads.

    A place that fails with an `OSError` is replaced by what `_fall_back` says, and the decision is made there.
    """

    def __init__(self, place: _Memory | _File, clock: Clock, rules: Rules | None) -> None:
        self.rules = rules or Rules()
        self._place = place
        self._clock = clock
        self._renew()
        renew_after_fork(self, StateLimiter._renew)

    def _renew(self) -> None:
        """Begin anew, in a forked child too: another owner, nothing waiting, a lock that no thread holds."""
        self._owner = float(secrets.randbits(52) + 1)  # a name that no other limiter has, and that a float holds
        self._lock = threading.Lock()
        self._waiting: set[tuple[str, int]] = set()
        self._next_paced: dict[str, float] = {}  # as of this limiter's last grant
        self._place.renew()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.rules.limit} per {self.rules.window_s:g} s, {self._place!r}>"

    @property
    def is_shared(self) -> bool:
        """Whether other processes are seen."""
        return isinstance(self._place, _File)

    def _fall_back(self, cause: OSError) -> None:
        """Go on at another place than the one that failed."""
        raise cause

    def _decide(self, group: str, decide: Callable[[State, Rules], T], default: T, now: float, tries: int = 1) -> T:
        """`decide` on the state of `group`, with all others shut out; `default` where that cannot be had at once."""
        with self._lock:
            while True:
                place = self._place
                try:
                    if not any(place.seize(now) for _ in range(tries)):
                        return default
                    try:
                        return decide(place.state(group, now), self.rules)
                    finally:
                        place.release()
                except OSError as exc:
                    self._fall_back(exc)

    def take(self, group: str, priority: Priority, since: float, now: float, depth: int = 1) -> float:
        rank = priority.rank
        key = rates.waiting_key(rank, since)

        def decide(state: State, rules: Rules) -> float:
            again = rates.take(state, rules, self._owner, rank, key, now, depth)
            if not again:
                self._next_paced[group] = rates.next_paced(state)
            return again

        again = self._decide(group, decide, now + _BUSY_S, now)
        if again:
            self._waiting.add((group, rank))
        else:
            self._waiting.discard((group, rank))
        return again

    def next_low(self, group: str) -> float:
        return self._next_paced.get(group, 0.0)

    def leave(self, group: str, priority: Priority | None = None) -> None:
        ranks = [each.rank for each in Priority if priority in (None, each) and (group, each.rank) in self._waiting]
        if ranks:  # an entry that cannot be removed now expires by itself
            self._waiting.difference_update((group, rank) for rank in ranks)
            self._change(group, lambda state, rules: rates.leave(state, rules, self._owner, ranks))

    def _change(self, group: str, change: Callable[[State, Rules], object], tries: int = 1) -> None:
        self._decide(group, change, None, self._clock.monotonic(), tries)

    def undo(self, group: str, granted: float) -> None:
        self._change(group, lambda state, rules: rates.undo(state, rules, granted))

    def move(self, group: str, granted: float, now: float) -> bool:
        return self._decide(group, lambda state, rules: rates.move(state, rules, granted, now), False, now)

    def observe(self, group: str, remaining: int | None, granted: float, counted: float, now: float) -> None:
        found = self._decide(
            group, lambda state, rules: rates.settle(state, rules, granted, counted, remaining, now), 0, now
        )
        if found:
            log.debug("quota.foreign group=%s requests=%d", group, found)

    def refused(self, group: str, now: float, retry_after_s: float | None) -> None:
        self._change(group, lambda state, rules: rates.refuse(state, rules, now, retry_after_s), tries=100)

    def banned(self, until_wall_us: int, now: float) -> None:
        until = now + max(0.0, (until_wall_us - self._clock.now_us()) / 1e6)

        def ban_all(_: State, rules: Rules) -> None:
            self._place.note_ban(until_wall_us)
            for group in (_HOST, *self._place.groups()):
                rates.ban(self._place.state(group, now), rules, until, now)

        self._change(_HOST, ban_all, tries=100)

    def ban_left(self, now: float) -> float:
        return max(0.0, self._decide(_HOST, lambda state, rules: rates.ban_until(state, rules, now), 0.0, now) - now)

    def snapshot(self, now: float) -> dict[str, GroupState]:
        def describe_all(_: State, rules: Rules) -> dict[str, GroupState]:
            place = self._place
            return {group: rates.describe(place.state(group, now), rules, now) for group in place.groups()}

        nothing: dict[str, GroupState] = {}
        return self._decide(_HOST, describe_all, nothing, now, 10)

    def close(self) -> None:
        with contextlib.suppress(OSError, ClosedError):
            for group, rank in list(self._waiting):
                self.leave(group, list(Priority)[rank])
        with self._lock:
            self._place.close()


class MemoryLimiter(StateLimiter):
    """The quota of one process. Several may share a `book`, as if they were the processes of one machine."""

    def __init__(
        self, clock: Clock, rules: Rules | None = None, *, book: dict[str, array[float]] | None = None
    ) -> None:
        rules = rules or Rules()
        super().__init__(_Memory(rules, book), clock, rules)


class FileLimiter(StateLimiter):
    """The quota of the machine, in the ledger at `path`. Opens at the first use; raises `OSError` where it cannot."""

    def __init__(self, path: Path, clock: Clock, rules: Rules | None = None) -> None:
        rules = rules or Rules()
        super().__init__(_File(path, rules, clock), clock, rules)


class MachineLimiter(FileLimiter):
    """The limiter of a client: the machine's ledger or, where it cannot be used, an even pace for this process alone.

    Which of the two is found out at the first use and logged once as a warning. It never goes back, so that the
    pace does not depend on the moment. At the even pace each group has one permit in a tenth of the window (for a
    limit of ten): other processes are not seen, so there are no bursts. A refusal makes the pace slower.
    """

    def __init__(self, rest_url: str, clock: Clock, *, folder: Path | None = None, rules: Rules | None = None) -> None:
        rules = rules or Rules()
        self.path = ledger_path(rest_url, folder, rules)
        super().__init__(self.path, clock, rules)

    def _fall_back(self, cause: OSError) -> None:
        if not self.is_shared:
            raise cause
        log.warning(
            "quota.unshared path=%s cause=%s: the request quota is kept for this process alone, at an even pace; "
            "other processes on this machine are not seen",
            self.path,
            cause,
        )
        self._place.close()
        self._slow_down(self.rules.window_s / self.rules.limit)
        self._place = _Memory(self.rules)

    def _slow_down(self, period_s: float) -> None:
        """One permit in `period_s`. No answer is waited for: the period is the whole distance."""
        self.rules = replace(
            self.rules, limit=1, window_s=min(period_s, self.rules.critical_s), unanswered_s=0.0, pace=1.0
        )

    def observe(self, group: str, remaining: int | None, granted: float, counted: float, now: float) -> None:
        if self.is_shared:
            super().observe(group, remaining, granted, counted, now)
        elif remaining == 0:  # others use the quota up: let the second pass
            self._change(group, lambda state, _: rates.hold(state, now + 1.0))

    def refused(self, group: str, now: float, retry_after_s: float | None) -> None:
        was_held = self._decide(group, lambda state, _: rates.is_held(state, now), False, now)
        super().refused(group, now, retry_after_s)
        if not self.is_shared and not was_held:
            self._slow_down(1.5 * self.rules.window_s)


class _Memory:
    """The state of each group in the memory of this process."""

    def __init__(self, rules: Rules, book: dict[str, array[float]] | None = None) -> None:
        self._rules = rules
        self._book: dict[str, array[float]] = {} if book is None else book

    def __repr__(self) -> str:
        return "this process only"

    def renew(self) -> None:
        """Nothing is shared with a parent process."""

    def seize(self, now: float) -> bool:
        return True

    def release(self) -> None:
        """No other process to let in."""

    def state(self, group: str, now: float) -> State:
        found = self._book.get(group)
        if found is None:
            found = self._book[group] = array("d", bytes(8 * self._rules.size))
            if group != _HOST:
                rates.inherit(found, self.state(_HOST, now), self._rules, now)
        return found

    def groups(self) -> list[str]:
        return [group for group in self._book if group != _HOST]

    def note_ban(self, until_wall_us: int) -> None:
        """A reboot ends this process: nothing to keep."""

    def close(self) -> None:
        """Nothing is held."""


class _File:
    """The state of each group in the ledger at `path`. Opened at the first use; raises `OSError` where it cannot be."""

    def __init__(self, path: Path, rules: Rules, clock: Clock) -> None:
        self._rules = rules
        self._clock = clock
        self._path = path
        self._fd = -1
        self._map: mmap.mmap | None = None
        self._table: memoryview[float] | None = None
        self._views: dict[str, memoryview[float]] = {}
        self._check_at = 0.0
        self._busy_since: float | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open" if self._map is not None else "idle"
        return f"{self._path} {state}"

    def renew(self) -> None:
        """In a forked child: the descriptor is the parent's as well, and so would be its lock."""
        self._unmap()

    # -- the file

    def seize(self, now: float) -> bool:
        if now >= self._check_at:
            self._check(now)
        if _try_lock(self._fd) or any(_try_lock(self._fd) for _ in range(_SPINS)):
            self._busy_since = None
            return True
        if self._busy_since is None:
            self._busy_since = now
        elif now - self._busy_since > _STUCK_S:
            raise OSError(f"the ledger {self._path} is held by a process that does not move")
        return False

    def release(self) -> None:
        _unlock(self._fd)

    def _check(self, now: float) -> None:
        """See that the file is there, is the one that others would open, and has its size; else open it (anew)."""
        if self._is_closed:
            raise ClosedError("this client is closed; make a new one")
        self._check_at = now + _CHECK_S
        if self._map is not None:
            with contextlib.suppress(FileNotFoundError):
                named, held = self._path.stat(), os.fstat(self._fd)
                if os.path.samestat(named, held) and held.st_size >= self._size():
                    os.utime(self._fd if os.utime in os.supports_fd else self._path)
                    self._views = {}  # to be located again, which looks for damage
                    return
            self._unmap()
        self._open(now)

    def _size(self) -> int:
        return _STATES_AT + _GROUPS * 8 * self._rules.size

    def _open(self, now: float) -> None:
        _make_folder(self._path.parent)
        self._fd = _open_file(self._path)
        if not any(_try_lock(self._fd) for _ in range(100 * _SPINS)):
            self._unmap()
            raise OSError(f"the ledger {self._path} is held by a process that does not move")
        try:
            if os.fstat(self._fd).st_size < self._size():
                os.ftruncate(self._fd, self._size())
            self._map = mmap.mmap(self._fd, self._size())
            self._table = memoryview(self._map)[_STATES_AT:].cast("d")
            self._check_header(now)
        finally:
            _unlock(self._fd)

    def _unmap(self) -> None:
        for view in self._views.values():
            view.release()
        self._views = {}
        if self._table is not None:
            self._table.release()
        self._table = None
        if self._map is not None:
            with contextlib.suppress(BufferError):  # a fork in the middle of a decision: the map goes with its views
                self._map.close()
        self._map = None
        self._check_at = 0.0
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
        self._fd = -1

    def _check_header(self, now: float) -> None:
        """Clear a file that is new, damaged, of another version or of another boot; of the last, keep its ban."""
        assert self._map is not None
        magic, size, boot, ban_wall_us = _HEADER.unpack_from(self._map)
        is_ours = magic == _MAGIC and size == self._rules.size
        if is_ours and boot == _boot():
            return
        self._map[:] = bytes(len(self._map))
        left_s = (ban_wall_us - self._clock.now_us()) / 1e6
        if not is_ours or not 0 < left_s < rates.LONGEST_BAN_S:
            ban_wall_us = left_s = 0
        _HEADER.pack_into(self._map, 0, _MAGIC, self._rules.size, _boot(), ban_wall_us)
        common = self.state(_HOST, now)  # the first place is the host's
        if left_s:
            rates.ban(common, self._rules, now + left_s, now)

    def note_ban(self, until_wall_us: int) -> None:
        assert self._map is not None
        _HEADER.pack_into(self._map, 0, _MAGIC, self._rules.size, _boot(), until_wall_us)

    # -- its groups

    def state(self, group: str, now: float) -> State:
        """A group's state. The caller holds the locks."""
        found = self._views.get(group)
        if found is None:
            found = self._views[group] = self._locate(group, now)
        return found

    def _locate(self, group: str, now: float) -> memoryview[float]:
        """Find a group's state by its name, or give it a place; more groups than any venue has share places, which is
        safe."""
        assert self._map is not None
        assert self._table is not None
        name, names = _name(group), self._names()
        is_new = name not in names and b"" in names
        if is_new:
            place = names.index(b"")
            at = _NAMES_AT + place * _NAME_BYTES
            self._map[at : at + _NAME_BYTES] = name.ljust(_NAME_BYTES, b"\0")
        else:
            place = names.index(name) if name in names else 1 + sum(name) % (_GROUPS - 1)
        found = self._table[place * self._rules.size : (place + 1) * self._rules.size]
        rates.repair(found, self._rules, now)
        if is_new and group != _HOST:
            rates.inherit(found, self.state(_HOST, now), self._rules, now)
        return found

    def _names(self) -> list[bytes]:
        assert self._map is not None
        raw = self._map[_NAMES_AT : _NAMES_AT + _GROUPS * _NAME_BYTES]
        return [raw[at : at + _NAME_BYTES].rstrip(b"\0") for at in range(0, len(raw), _NAME_BYTES)]

    def groups(self) -> list[str]:
        names = (name.decode("utf-8", "replace") for name in self._names() if name)
        return [name for name in names if name != _name(_HOST).decode()]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._map is not None:
                _remove_stale(self._path)  # now, not while a caller waits for a first permit
        self._is_closed = True
        self._unmap()


def address_of(rest_url: str) -> tuple[str, int]:
    """The host and port of a venue, which are what it counts requests at."""
    parts = urlsplit(rest_url)
    return (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def ledger_path(rest_url: str, folder: Path | None = None, rules: Rules | None = None) -> Path:
    """The ledger of the host behind `rest_url`: the same for every process that would be counted together.

    `folder` defaults to ``$BACKBONE_LEDGER_DIR``, else to one in the system's temporary folder that all users of the
    machine share.
    """
    host, port = address_of(rest_url)
    rules = rules or Rules()
    kin = f"{host}:{port} {rules.limit} {rules.size} {_time_namespace()}"
    readable = "".join(c if c.isalnum() or c in ".-" else "-" for c in host)[:60]
    digest = hashlib.blake2b(kin.encode(), digest_size=6).hexdigest()
    if folder is None:
        folder = ledger_folder()
    return folder / f"{readable}-{port}-{digest}.quota"


# ------------------------------------------------------------------------------------------------ the system


def _make_folder(folder: Path) -> None:
    """Make the folder, open to all users like the temporary folder around it; refuse one that another user controls."""
    try:
        folder.mkdir(parents=True)
        folder.chmod(0o1777)
    except FileExistsError:
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(f"{folder} is not a folder") from None
        if sys.platform == "win32" or found.st_uid in (0, os.getuid()) or found.st_mode & stat.S_ISVTX:
            return
        raise PermissionError(f"{folder} belongs to another user who could exchange the files in it") from None


def _open_file(path: Path) -> int:
    """Open the ledger, making it if need be. Made exclusively, opened without: see ``fs.protected_regular``."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    for _ in range(3):
        try:
            fd = os.open(path, flags)
            break
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                if hasattr(os, "fchmod"):
                    os.fchmod(fd, 0o666)  # whatever the umask: other users of this address must count too
                break
    else:
        raise FileNotFoundError(f"{path} comes and goes")
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(fd)
        raise PermissionError(f"{path} is not a plain file of its own")
    return fd


def _remove_stale(path: Path) -> None:
    """Remove ledgers that were unused for long. A process that still has one open notices before using it again."""
    newest = path.stat().st_mtime
    with os.scandir(path.parent) as found:
        for other in found:
            if not other.name.endswith(".quota") or other.name == path.name:
                continue
            kept_s = _STALE_LOCAL_S if other.name.startswith("127.") else _STALE_S
            with contextlib.suppress(OSError):
                if other.stat().st_mtime < newest - kept_s:
                    Path(other).unlink()


def _boot() -> bytes:
    """Which boot of the machine this is; empty where unknown (stale times are then found impossible)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()[:36].ljust(36, b"\0")
    except OSError:
        return bytes(36)


def _time_namespace() -> str:
    """Containers with their own monotonic clock must not share stamps with the rest."""
    try:
        return str(Path("/proc/self/ns/time").readlink())
    except OSError:
        return ""


def _name(group: str) -> bytes:
    raw = (group or "*").encode()
    return raw if len(raw) <= _NAME_BYTES else hashlib.blake2b(raw, digest_size=12).hexdigest().encode()


if sys.platform == "win32":

    def _try_lock(fd: int) -> bool:
        os.lseek(fd, 1 << 20, os.SEEK_SET)  # beyond the end: a lock there hinders no reader
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(fd: int) -> None:
        os.lseek(fd, 1 << 20, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)
