"""Where the quota's state lives: one small file for all processes of the machine, or the memory of one process.

The venue counts per address, so every process here that talks to the same host shares one *ledger*: a file
mapped into memory whose cells `ratelimit` decides on, guarded by a lock that the kernel releases when its
holder dies. Times in it are the machine's monotonic clock, which all processes of one boot share; another
boot's file is cleared, save for a ban, whose end is kept in wall time as well.

Invariants: a permit is decided and written within one hold of the file lock, which is never held across a
wait; a lock that cannot be had at once (its holder is stopped) makes the asker come back, never hang; what is
in the file is believed only as far as `ratelimit` finds it possible, so garbage costs a reset and not a wrong
permit for long; a process that dies holds nothing.

`_CellLimiter._lock` guards the cells against threads of this process, the file lock against other processes;
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
import tempfile
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from backbone.clock import Clock
from backbone.coordinator.quota import rules as rates
from backbone.coordinator.quota.rules import GroupState, Rules
from backbone.errors import ClosedError
from backbone.locks import renew_after_fork
from backbone.model import Priority
from backbone.settings import from_environment

if TYPE_CHECKING:
    from backbone.coordinator.quota.rules import Cells

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["FileLimiter", "MachineLimiter", "MemoryLimiter", "PacedLimiter", "ledger_path"]

log = logging.getLogger("backbone.quota")

_MAGIC = b"bbquota1"
_HEADER = struct.Struct("<8sI36sq")  # magic, cells of a group, boot, end of the ban in wall microseconds
_NAMES_AT = 512
_NAME_BYTES = 32
_CELLS_AT = 4096
_GROUPS = 16  # the venue has five wire groups, and `origin`
_HOST = ""  # the name of the cells that hold what concerns every group: the ban
_BUSY_S = 0.001  # when to come back where the file lock is held
_SPINS = 60
_STUCK_S = 5.0  # it is held for microseconds: a holder of so long is stopped, and may stay so
_CHECK_S = 5.0  # how often to see whether the file is still the one that others open
_STALE_S = 86400.0  # a ledger unused for so long is removed by whoever opens another
_STALE_LOCAL_S = 3600.0  # one of a port of this machine, which another exchange may get


def _owner() -> float:
    """A name that no other limiter has, and that a float holds exactly."""
    return float(secrets.randbits(52) + 1)


class _CellLimiter:
    """The `Limiter` over cells. Subclasses say where a group's cells are and how other processes are shut out."""

    def __init__(self, clock: Clock, rules: Rules | None) -> None:
        self.rules = rules or Rules()
        self._clock = clock
        self._renew()

    def _renew(self) -> None:
        """Begin anew, in a forked child too: another owner, nothing waiting, a lock that nobody holds."""
        self._owner = _owner()
        self._lock = threading.Lock()
        self._waiting: set[tuple[str, int]] = set()

    def _cells(self, group: str) -> Cells:
        """A group's cells. The caller holds the locks."""
        raise NotImplementedError

    def _groups(self) -> list[str]:
        raise NotImplementedError

    def _seize(self, now: float) -> bool:
        """Shut out the other processes; False when that cannot be had at once."""
        return True

    def _release(self) -> None:
        """Let them in again."""

    def _note_ban(self, until_wall_us: int) -> None:
        """Keep the end of a ban for the time after a reboot."""

    @contextlib.contextmanager
    def _held(self, now: float, tries: int = 1) -> Iterator[bool]:
        with self._lock:
            held = any(self._seize(now) for _ in range(tries))
            try:
                yield held
            finally:
                if held:
                    self._release()

    def take(self, group: str, priority: Priority, since: float, now: float, depth: int = 1) -> float:
        rank = priority.rank
        key = rates.waiting_key(rank, since)
        with self._lock:
            if not self._seize(now):
                return now + _BUSY_S
            try:
                again = rates.take(self._cells(group), self.rules, self._owner, rank, key, now, depth)
            finally:
                self._release()
            if again:
                self._waiting.add((group, rank))
            elif self._waiting:
                self._waiting.discard((group, rank))
        return again

    def leave(self, group: str, priority: Priority | None = None) -> None:
        ranks = [each.rank for each in Priority if priority in (None, each)]
        with self._lock:
            known = [rank for rank in ranks if (group, rank) in self._waiting]
            if not known or not self._seize(self._clock.monotonic()):
                return  # a row that stays expires by itself
            try:
                for rank in known:
                    rates.leave(self._cells(group), self.rules, self._owner, rank)
                    self._waiting.discard((group, rank))
            finally:
                self._release()

    def undo(self, group: str, granted: float) -> None:
        with self._held(self._clock.monotonic()) as held:
            if held:
                rates.undo(self._cells(group), self.rules, granted)

    def move(self, group: str, granted: float, now: float) -> bool:
        with self._held(now) as held:
            return held and rates.move(self._cells(group), self.rules, granted, now)

    def observe(self, group: str, remaining: int | None, granted: float, counted: float, now: float) -> None:
        with self._held(now) as held:
            found = rates.settle(self._cells(group), self.rules, granted, counted, remaining, now) if held else 0
        if found:
            log.debug("quota.foreign group=%s requests=%d", group, found)

    def refused(self, group: str, now: float, retry_after_s: float | None) -> None:
        with self._held(now, tries=100) as held:
            if held:
                rates.refuse(self._cells(group), self.rules, now, retry_after_s)

    def banned(self, until_wall_us: int, now: float) -> None:
        until = now + max(0.0, (until_wall_us - self._clock.now_us()) / 1e6)
        with self._held(now, tries=100) as held:
            if held:
                self._note_ban(until_wall_us)
                for group in (_HOST, *self._groups()):
                    rates.ban(self._cells(group), self.rules, until, now)

    def ban_left(self, now: float) -> float:
        with self._held(now) as held:
            until = rates.ban_until(self._cells(_HOST), self.rules, now) if held else 0.0
        return max(0.0, until - now)

    def snapshot(self, now: float) -> dict[str, GroupState]:
        with self._held(now, tries=10) as held:
            groups = self._groups() if held else []
            return {group: rates.describe(self._cells(group), self.rules, now) for group in groups}

    def close(self) -> None:
        for group, rank in list(self._waiting):
            self.leave(group, list(Priority)[rank])


class MemoryLimiter(_CellLimiter):
    """The quota of one process. Several may share a `book`, as if they were the processes of one machine."""

    def __init__(
        self, clock: Clock, rules: Rules | None = None, *, book: dict[str, array[float]] | None = None
    ) -> None:
        super().__init__(clock, rules)
        self._book: dict[str, array[float]] = {} if book is None else book
        renew_after_fork(self, MemoryLimiter._renew)

    def __repr__(self) -> str:
        return f"<MemoryLimiter {self.rules.limit} per {self.rules.window_s:g} s, this process only>"

    def _cells(self, group: str) -> Cells:
        cells = self._book.get(group)
        if cells is None:
            cells = self._book[group] = array("d", bytes(8 * self.rules.size))
            now = self._clock.monotonic()
            if group != _HOST and (until := rates.ban_until(self._cells(_HOST), self.rules, now)):
                rates.ban(cells, self.rules, until, now)
        return cells

    def _groups(self) -> list[str]:
        return [group for group in self._book if group != _HOST]


class FileLimiter(_CellLimiter):
    """The quota of the machine, in the ledger at `path`. Opens at the first use; raises `OSError` where it cannot."""

    def __init__(self, path: Path, clock: Clock, rules: Rules | None = None) -> None:
        self._path = path
        self._fd = -1
        self._map: mmap.mmap | None = None
        self._table: memoryview[float] | None = None
        self._views: dict[str, tuple[float, memoryview[float]]] = {}
        self._check_at = 0.0
        self._busy_since: float | None = None
        self._is_closed = False
        super().__init__(clock, rules)
        renew_after_fork(self, FileLimiter._forget)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open" if self._map is not None else "idle"
        return f"<FileLimiter {self.rules.limit} per {self.rules.window_s:g} s, {self._path} {state}>"

    def _forget(self) -> None:
        """In a forked child: the descriptor is the parent's as well, and so would be its lock."""
        self._unmap()
        self._renew()

    # -- the file

    def _seize(self, now: float) -> bool:
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

    def _release(self) -> None:
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
        return _CELLS_AT + _GROUPS * 8 * self.rules.size

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
            self._table = memoryview(self._map)[_CELLS_AT:].cast("d")
            self._check_header(now)
        finally:
            _unlock(self._fd)

    def _unmap(self) -> None:
        for _, view in self._views.values():
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
        is_ours = magic == _MAGIC and size == self.rules.size
        if is_ours and boot == _boot():
            return
        self._map[:] = bytes(len(self._map))
        left_s = (ban_wall_us - self._clock.now_us()) / 1e6
        if not is_ours or not 0 < left_s < rates.LONGEST_BAN_S:
            ban_wall_us = left_s = 0
        _HEADER.pack_into(self._map, 0, _MAGIC, self.rules.size, _boot(), ban_wall_us)
        self._cells(_HOST)  # the first place is the host's
        if left_s:
            rates.ban(self._cells(_HOST), self.rules, now + left_s, now)

    def _note_ban(self, until_wall_us: int) -> None:
        assert self._map is not None
        _HEADER.pack_into(self._map, 0, _MAGIC, self.rules.size, _boot(), until_wall_us)

    # -- its groups

    def _cells(self, group: str) -> Cells:
        known = self._views.get(group)
        if known is not None and known[1][0] == known[0]:
            return known[1]
        return self._locate(group)

    def _locate(self, group: str) -> Cells:
        """Find a group's cells by name, or give it some; cells without the group's mark are not its own: cleared."""
        assert self._table is not None
        place = self._place(_name(group))
        owner = hashlib.blake2b(self._names()[place], digest_size=6).digest()
        mark = float(int.from_bytes(owner, "big") + 1)
        cells = self._table[place * self.rules.size : (place + 1) * self.rules.size]
        now = self._clock.monotonic()
        rates.mend(cells, self.rules, now)
        if cells[0] != mark:
            for index in range(self.rules.size):
                cells[index] = 0.0
            cells[0] = mark
            if group != _HOST and (until := rates.ban_until(self._cells(_HOST), self.rules, now)):
                rates.ban(cells, self.rules, until, now)
        self._views[group] = (mark, cells)
        return cells

    def _place(self, name: bytes) -> int:
        assert self._map is not None
        names = self._names()
        if name in names:
            return names.index(name)
        if b"" not in names:
            return 1 + sum(name) % (_GROUPS - 1)  # more groups than any venue has: two share one quota, which is safe
        place = names.index(b"")
        at = _NAMES_AT + place * _NAME_BYTES
        self._map[at : at + _NAME_BYTES] = name.ljust(_NAME_BYTES, b"\0")
        return place

    def _names(self) -> list[bytes]:
        assert self._map is not None
        raw = self._map[_NAMES_AT : _NAMES_AT + _GROUPS * _NAME_BYTES]
        return [raw[at : at + _NAME_BYTES].rstrip(b"\0") for at in range(0, len(raw), _NAME_BYTES)]

    def _groups(self) -> list[str]:
        names = (name.decode("utf-8", "replace") for name in self._names() if name)
        return [name for name in names if name != _name(_HOST).decode()]

    def close(self) -> None:
        with contextlib.suppress(OSError, ClosedError):
            if self._map is not None:
                super().close()
                _remove_stale(self._path)  # now, not while somebody waits for a first permit
        with self._lock:
            self._is_closed = True
            self._unmap()


class PacedLimiter:
    """One process's quota where no ledger can be had: one request a period and group, whatever its priority.

    Other processes are not seen, so there are no bursts at all; the order is the scheduler's alone.
    """

    def __init__(self, clock: Clock, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self._clock = clock
        self._gates: dict[str, Callable[[], None]] = {}
        self._slowed: dict[str, int] = {}
        self._stopped: dict[str, float] = {}
        self._refusals: dict[str, int] = {}
        self._granted: dict[str, dict[str, int]] = {}
        self._ban_until = 0.0
        self._now = 0.0
        self._lock = threading.Lock()
        renew_after_fork(self, PacedLimiter._renew)

    def __repr__(self) -> str:
        return f"<PacedLimiter one per {self._period('') * 1e3:.0f} ms, this process only>"

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def _period(self, group: str) -> float:
        return self.rules.window_s / self.rules.limit * 1.5 ** self._slowed.get(group, 0)

    def _gate(self, group: str) -> Callable[[], None]:
        gate = self._gates.get(group)
        if gate is None:
            from ratelimit import limits

            pace = limits(calls=1, period=self._period(group), clock=lambda: self._now)
            gate = self._gates[group] = pace(lambda: None)
        return gate

    def take(self, group: str, priority: Priority, since: float, now: float, depth: int = 1) -> float:
        from ratelimit import RateLimitException

        with self._lock:
            self._now = now
            held = max(self._ban_until, self._stopped.get(group, 0.0))
            if held > now:
                return held
            try:
                self._gate(group)()
            except RateLimitException as exc:
                return now + max(1e-4, float(exc.period_remaining))
            counts = self._granted.setdefault(group, {each.value: 0 for each in Priority})
            counts[priority.value] += 1
            return 0.0

    def leave(self, group: str, priority: Priority | None = None) -> None:
        """Nobody is put down as waiting here."""

    def undo(self, group: str, granted: float) -> None:
        with self._lock:
            self._gates.pop(group, None)

    def move(self, group: str, granted: float, now: float) -> bool:
        return now - granted < self._period(group)

    def observe(self, group: str, remaining: int | None, granted: float, counted: float, now: float) -> None:
        if remaining == 0:  # others use the quota up: let the second pass
            with self._lock:
                self._stopped[group] = max(self._stopped.get(group, 0.0), now + self.rules.window_s)

    def refused(self, group: str, now: float, retry_after_s: float | None) -> None:
        with self._lock:
            self._refusals[group] = self._refusals.get(group, 0) + 1
            if self._stopped.get(group, 0.0) > now:
                return
            self._stopped[group] = now + max(self.rules.stop_s, retry_after_s or 0.0)
            self._slowed[group] = min(6, self._slowed.get(group, 0) + 1)
            self._gates.pop(group, None)

    def banned(self, until_wall_us: int, now: float) -> None:
        with self._lock:
            left_s = (until_wall_us - self._clock.now_us()) / 1e6
            self._ban_until = max(self._ban_until, now + min(left_s, rates.LONGEST_BAN_S))

    def ban_left(self, now: float) -> float:
        return max(0.0, self._ban_until - now)

    def snapshot(self, now: float) -> dict[str, GroupState]:
        with self._lock:
            return {group: self._describe(group, now) for group in self._granted}

    def _describe(self, group: str, now: float) -> GroupState:
        return GroupState(
            limit=max(1, int(self.rules.window_s / self._period(group))),
            used=0,
            free=0,
            share=0,
            waiting={priority.value: 0 for priority in Priority},
            stopped_s=max(0.0, self._stopped.get(group, 0.0) - now),
            banned_s=max(0.0, self._ban_until - now),
            level=self._slowed.get(group, 0),
            granted=dict(self._granted[group]),
            refused=self._refusals.get(group, 0),
            foreign=0,
        )

    def close(self) -> None:
        """Nothing is held."""


class MachineLimiter:
    """The limiter of a client: the machine's ledger, or, where it cannot be used, this process's own pace.

    Which of the two is found out at the first use and told once as a warning; it never goes back, so that the
    pace does not depend on the moment.
    """

    def __init__(self, rest_url: str, clock: Clock, *, folder: Path | None = None, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.path = ledger_path(rest_url, folder, self.rules)
        self._clock = clock
        self._form: FileLimiter | PacedLimiter = FileLimiter(self.path, clock, self.rules)

    def __repr__(self) -> str:
        return f"<MachineLimiter {self._form!r}>"

    @property
    def is_shared(self) -> bool:
        """Whether other processes are seen."""
        return isinstance(self._form, FileLimiter)

    def _degrade(self, cause: OSError) -> None:
        failed = self._form
        if isinstance(failed, FileLimiter):
            self._form = PacedLimiter(self._clock, self.rules)
            log.warning(
                "quota.unshared path=%s cause=%s: the request quota is kept for this process alone, at an even pace; "
                "other processes on this machine are not seen",
                self.path,
                cause,
            )
            failed.close()

    def _ask(self, name: str, *args: Any) -> Any:
        try:
            return getattr(self._form, name)(*args)
        except OSError as exc:
            self._degrade(exc)
            return getattr(self._form, name)(*args)

    def take(self, group: str, priority: Priority, since: float, now: float, depth: int = 1) -> float:
        try:
            return self._form.take(group, priority, since, now, depth)
        except OSError as exc:
            self._degrade(exc)
            return self._form.take(group, priority, since, now, depth)

    def leave(self, group: str, priority: Priority | None = None) -> None:
        self._ask("leave", group, priority)

    def undo(self, group: str, granted: float) -> None:
        self._ask("undo", group, granted)

    def move(self, group: str, granted: float, now: float) -> bool:
        return bool(self._ask("move", group, granted, now))

    def observe(self, group: str, remaining: int | None, granted: float, counted: float, now: float) -> None:
        self._ask("observe", group, remaining, granted, counted, now)

    def refused(self, group: str, now: float, retry_after_s: float | None) -> None:
        self._ask("refused", group, now, retry_after_s)

    def banned(self, until_wall_us: int, now: float) -> None:
        self._ask("banned", until_wall_us, now)

    def ban_left(self, now: float) -> float:
        return float(self._ask("ban_left", now))

    def snapshot(self, now: float) -> dict[str, GroupState]:
        states: dict[str, GroupState] = self._ask("snapshot", now)
        return states

    def close(self) -> None:
        self._form.close()


def ledger_path(rest_url: str, folder: Path | None = None, rules: Rules | None = None) -> Path:
    """The ledger of the host behind `rest_url`: the same for every process that would be counted together.

    `folder` defaults to ``$BACKBONE_LEDGER_DIR``, else to one in the system's temporary folder that all users of the
    machine share.
    """
    parts = urlsplit(rest_url)
    host = (parts.hostname or "").lower()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    rules = rules or Rules()
    kin = f"{host}:{port} {rules.limit} {rules.size} {_time_namespace()}"
    readable = "".join(c if c.isalnum() or c in ".-" else "-" for c in host)[:60]
    digest = hashlib.blake2b(kin.encode(), digest_size=6).hexdigest()
    if folder is None:
        folder = Path(from_environment("BACKBONE_LEDGER_DIR") or Path(tempfile.gettempdir()) / "backbone-quota")
    return folder / f"{readable}-{port}-{digest}.quota"


# ------------------------------------------------------------------------------------------------ the system


def _make_folder(folder: Path) -> None:
    """Make the folder, open to all users like the temporary folder around it; refuse one that another user rules."""
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
    """Remove ledgers nobody used for long. Whoever still has one open notices before using it again."""
    newest = path.stat().st_mtime
    for other in path.parent.glob("*.quota"):
        kept_s = _STALE_LOCAL_S if other.name.startswith("127.") else _STALE_S
        with contextlib.suppress(OSError):
            if other != path and other.stat().st_mtime < newest - kept_s:
                other.unlink()


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
        os.lseek(fd, 1 << 20, os.SEEK_SET)  # beyond the end: a lock there bars nobody's reading
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
