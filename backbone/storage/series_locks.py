"""One writer a series on a local disk: among the threads of this process first, then among processes.

A kernel lock dies with its holder. Where the kernel locks no files (network drives), an `OwnerLock` serves instead; it
may be taken over from an owner that seems dead, so whoever writes calls `check` first. `_lock` guards the table of
series.
"""

# ruff: noqa: PTH123

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from backbone.clock import Clock
from backbone.errors import StoreBusyError
from backbone.locks import renew_after_fork
from backbone.storage.owner_lock import OwnerLock, create_file

try:
    import fcntl
except ImportError:  # Windows: filelock has another way there
    fcntl = None  # type: ignore[assignment]

__all__ = ["OvertakenError", "SeriesLocks", "pause", "why_no_locks"]

_log = logging.getLogger(__name__)

_IS_WINDOWS = os.name == "nt"
_POLL_S = 0.001
_SEIZE_TRIES = 40  # the later half a millisecond apart
_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}


class OvertakenError(StoreBusyError):
    """Another writer changed the file between this one's read and its write; nothing was changed: read again.

    Only where nothing can be locked; it stays inside the store.
    """


def why_no_locks(path: str, create: Callable[[str, int], int] = create_file) -> str | None:
    """Try a kernel lock on a new file at `path`, which is removed again.

    Returns why the kernel locks no files there; None where it does, and on Windows, which has other locks.
    """
    if fcntl is not None:
        fd = create(path, os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno not in _NO_LOCKS:
                raise
            return exc.strerror or str(exc)
        finally:
            os.close(fd)
            with suppress(OSError):
                os.unlink(path)  # noqa: PTH108
    return None


def pause(clock: Clock, seconds: float) -> None:
    """Wait a moment that nobody cuts short."""
    condition = threading.Condition()
    with condition:
        clock.wait(condition, seconds)


class _Series:
    """A series' lock in this process. ``depth`` and ``release`` belong to the thread that holds ``threads``."""

    __slots__ = ("depth", "release", "threads")

    def __init__(self) -> None:
        self.threads = threading.RLock()
        self.depth = 0
        self.release: Callable[[], object] | None = None


class _Held(threading.local):
    """The owner locks that a thread holds."""

    def __init__(self) -> None:
        self.owners: list[OwnerLock] = []


class SeriesLocks:
    """The locks below one folder. `create` opens their files, and makes the folders that those need."""

    def __init__(self, folder: str, clock: Clock, create: Callable[[str, int], int]) -> None:
        self._folder = folder
        self._clock = clock
        self._create = create
        self._counter = itertools.count()
        self._has_kernel_locks: bool | None = None
        self._locked: set[int] = set()
        self._renew()
        renew_after_fork(self, SeriesLocks._renew)

    def _renew(self) -> None:
        for fd in self._locked:  # inherited by a fork: open here, it would keep the parent's lock alive
            with suppress(OSError):
                os.close(fd)
        self._locked = set()
        self._lock = threading.Lock()
        self._series: dict[str, _Series] = {}
        self._held = _Held()

    def acquire(self, path: str, timeout_s: float) -> Callable[[], None]:
        """Become the one writer of what the file at `path` stands for; returns what ends that.

        The thread that holds a lock may acquire it again. Raises `StoreBusyError` after the deadline, and `OSError`
        where the folder cannot be written.
        """
        with self._lock:
            mine = self._series.setdefault(path, _Series())
        if not mine.threads.acquire(timeout=timeout_s):
            raise StoreBusyError(f"{path} is held by another thread", path=path, holder=f"process {os.getpid()}")
        try:
            if mine.depth == 0:
                mine.release = self._acquired(path, timeout_s)
        except BaseException:
            mine.threads.release()
            raise
        mine.depth += 1
        return partial(self._release, mine)

    def _release(self, mine: _Series) -> None:
        mine.depth -= 1
        try:
            if mine.depth == 0 and mine.release is not None:
                mine.release()
        finally:
            mine.threads.release()

    def _acquired(self, path: str, timeout_s: float) -> Callable[[], object]:
        if not self.has_kernel_locks():
            return self._owned(f"{path}.owner", timeout_s)
        try:
            if not _IS_WINDOWS:
                return self._kernel_locked(path, timeout_s)
            import filelock

            os.close(self._create(path, os.O_RDWR))  # filelock would make any folder above it, a vanished root as well
            lock = filelock.FileLock(path, timeout_s, thread_local=False)
            lock.acquire(poll_interval=_POLL_S)
            return lock.release
        except (TimeoutError, BlockingIOError) as exc:
            words = f"{path} has been held by another process for {timeout_s:g} s"
            raise StoreBusyError(words, path=path, holder=_holder(path)) from exc

    def _kernel_locked(self, path: str, timeout_s: float) -> Callable[[], object]:
        """Lock a file and sign it; raises `BlockingIOError` after `timeout_s`."""
        deadline_s = self._clock.monotonic() + timeout_s
        fd = self._opened(path)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if self._clock.monotonic() >= deadline_s:
                        raise
                pause(self._clock, _POLL_S)
            with suppress(OSError):  # only for the message of whoever waits in vain
                name = b"process %-12d" % os.getpid()
                if os.pread(fd, len(name), 0) != name:
                    os.pwrite(fd, name, 0)
        except BaseException:
            self.unlock(fd)
            raise
        return partial(self.unlock, fd)

    def _opened(self, path: str) -> int:
        fd = self._create(path, os.O_RDWR)
        self._locked.add(fd)
        return fd

    def unlock(self, fd: int) -> None:
        """Close a locked file. A forked child has closed it, which does not end its parent's lock."""
        if fd in self._locked:
            self._locked.discard(fd)
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child that was forked meanwhile may still have it open
            os.close(fd)

    def seize(self, path: str) -> int | None:
        """A file, opened and locked, for microseconds: `unlock` it then. None where that cannot be had at once.

        Raises `OSError` where the folder cannot be written.
        """
        if fcntl is None or not self.has_kernel_locks():
            return None
        fd = self._opened(path)
        try:
            for attempt in range(_SEIZE_TRIES):
                if attempt > _SEIZE_TRIES // 2:
                    pause(self._clock, _POLL_S)
                with suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return fd
        except BaseException:
            self.unlock(fd)
            raise
        self.unlock(fd)
        return None

    def has_kernel_locks(self) -> bool:
        """Whether the kernel locks files of this folder; tried once, on a file of its own."""
        if self._has_kernel_locks is None:
            path = f"{self._folder}/probe.{os.getpid()}-{next(self._counter)}"
            why = why_no_locks(path, self._create)
            self._has_kernel_locks = why is None
            if why is not None:
                words = "store.no_kernel_locks folder=%s (%s): lock files with their owner's name serve instead"
                _log.warning(words, self._folder, why)
        return self._has_kernel_locks

    def _owned(self, path: str, timeout_s: float) -> Callable[[], object]:
        lock = OwnerLock(path, self._clock, self._create)
        deadline = self._clock.monotonic() + timeout_s
        while not lock.try_acquire():
            if self._clock.monotonic() >= deadline:
                holder = lock.holder()
                raise StoreBusyError(f"{path} has been held by {holder} for {timeout_s:g} s", path=path, holder=holder)
            pause(self._clock, min(0.02, max(_POLL_S, timeout_s)))
        owners = self._held.owners
        owners.append(lock)

        def release() -> None:
            owners.remove(lock)
            lock.release()

        return release

    def check(self, path: str) -> None:
        """Raise `OvertakenError` where a lock of the calling thread was taken over; `path` is what it would write."""
        for owner in self._held.owners:
            if not owner.refresh():
                holder = owner.holder()
                raise OvertakenError(f"the lock of {path} was taken over by {holder}", path=path, holder=holder)


def _holder(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(64).decode("ascii", "replace").strip() or "another process"
    except OSError:  # some systems lock the bytes as well
        return "another process"
