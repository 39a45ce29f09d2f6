"""Bytes on a local disk: whole reads, atomic replacement, one writer a series, and failures reported in one way.

A key is a path below the root, with ``/``. `replace` writes a temporary file beside the data (never inside
it, where other readers look), syncs it, renames it over the old one and syncs the folder, so a reader sees
the old bytes or the new ones and a crash leaves at most an unfinished file that nobody reads. `exclusive`
holds a kernel lock, which dies with its holder. A version identifies one state of one file; it never repeats
for a key.

This is the seam for another kind of disk: an object store implements the same methods with conditional puts.
"""

# Paths are plain strings here: building a Path costs more than the stat it asks for.
# ruff: noqa: PTH102, PTH105, PTH108, PTH110, PTH112, PTH116, PTH118, PTH120, PTH123, PTH208

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

import filelock

from backbone.clock import Clock
from backbone.errors import StoreBusyError, StoreError
from backbone.locks import renew_after_fork
from backbone.storage.layout import QUARANTINE, TMP

__all__ = ["Blob", "Files", "LocalFiles", "OvertakenError", "Version"]

Version = tuple[int, int, int]
"""(inode, modification time in ns, size). The time is set to rise with every replacement."""

_IS_WINDOWS = os.name == "nt"
_POLL_S = 0.001
_SHARING_S = 2.0  # how long a replacement waits for a reader on systems that lock open files


class Blob(NamedTuple):
    """A file's bytes and the version they are."""

    data: bytes
    version: Version


class OvertakenError(StoreBusyError):
    """Another writer changed the file between this one's look and its write; nothing was changed: look again.

    Only where nothing can be locked; it stays inside the store.
    """


class Files(Protocol):
    """Any kind of disk under a store; `LocalFiles` says what each method promises."""

    def path(self, key: str) -> Path | str: ...
    def stat(self, key: str) -> Version | None: ...
    def read(self, key: str) -> Blob | None: ...
    def tail(self, key: str, size: int) -> bytes | None: ...
    def replace(self, key: str, data: bytes | bytearray) -> Version: ...
    def exclusive(self, lock_key: str, timeout_s: float | None = None) -> AbstractContextManager[None]: ...
    def list(self, folder: str) -> Sequence[str]: ...
    def walk(self, folder: str) -> Iterator[str]: ...
    def quarantine(self, key: str, now_us: int) -> Path | str: ...
    def remove(self, key: str) -> None: ...
    def size(self, key: str) -> int: ...


class _SeriesLock:
    """A series lock's state in this process; ``depth`` belongs to the thread that holds ``threads``."""

    __slots__ = ("depth", "threads")

    def __init__(self) -> None:
        self.threads = threading.RLock()
        self.depth = 0


class LocalFiles:
    """Files below one root. Constructing touches nothing; the first write makes the folders.

    A root that was there and is gone (an unplugged disk) is not made anew: that would fill the disk
    underneath. `_lock` guards the table of series locks; those serialise this process's threads before the
    kernel lock is asked.
    """

    def __init__(self, root: Path, clock: Clock, *, lock_timeout_s: float = 10.0) -> None:
        self._root = os.fspath(root.absolute())
        self._clock = clock
        self._lock_timeout_s = lock_timeout_s
        self._counter = itertools.count()
        self._seen_root = False
        self._known_folders: set[str] = set()
        self._renew()
        renew_after_fork(self, LocalFiles._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._series_locks: dict[str, _SeriesLock] = {}
        self._pause = threading.Condition()

    def path(self, key: str) -> Path:
        """Where `key` lies."""
        return Path(self._full(key))

    def _full(self, key: str) -> str:
        return f"{self._root}/{key}"

    def stat(self, key: str) -> Version | None:
        """The version of a file; None where there is none."""
        try:
            found = os.stat(self._full(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise self._failed("look at", key, exc) from exc
        self._seen_root = True
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self, key: str) -> Blob | None:
        """A file's whole bytes with the version they belong to; None where there is none."""
        try:
            with open(self._full(key), "rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                data = file.readall()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise self._failed("read", key, exc) from exc
        self._seen_root = True
        return Blob(data or b"", (found.st_ino, found.st_mtime_ns, found.st_size))

    def tail(self, key: str, size: int) -> bytes | None:
        """The last `size` bytes of a file (all of a shorter one); None where there is none."""
        try:
            with open(self._full(key), "rb", buffering=0) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                data = file.readall()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise self._failed("read", key, exc) from exc
        return data or b""

    def replace(self, key: str, data: bytes | bytearray) -> Version:
        """Make `data` the file's content, durably and in one step. Call it inside `exclusive`.

        Raises `StoreError` and leaves what was there untouched.
        """
        target = self._full(key)
        tmp = f"{self._root}/{TMP}/{key.replace('/', '+')}.{os.getpid()}-{next(self._counter)}"
        try:
            self._make_folder(os.path.dirname(target))
            self._make_folder(os.path.dirname(tmp), is_durable=False)
            before = self.stat(key)
            version = self._write(tmp, data, before)
            try:
                self._rename(tmp, target)
            except OSError:
                _remove(tmp)
                raise
            _sync_folder(os.path.dirname(target))
        except OSError as exc:
            raise self._failed("write", key, exc) from exc
        return version

    def _write(self, tmp: str, data: bytes | bytearray, before: Version | None) -> Version:
        stamp_ns = self._clock.now_us() * 1000
        if before is not None:
            stamp_ns = max(stamp_ns, before[1] + 1000)
        fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with open(fd, "wb", buffering=0, closefd=True) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.utime(tmp, ns=(stamp_ns, stamp_ns))
                os.fsync(file.fileno())
                found = os.fstat(file.fileno())
        except BaseException:
            _remove(tmp)
            raise
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _rename(self, source: str, target: str) -> None:
        """`os.replace`, patient with systems where an open reader is in the way."""
        deadline = self._clock.monotonic() + _SHARING_S
        while True:
            try:
                os.replace(source, target)
                return
            except PermissionError:
                if not _IS_WINDOWS or self._clock.monotonic() >= deadline:
                    raise
            with self._pause:
                self._clock.wait(self._pause, 0.01)

    def _make_folder(self, folder: str, *, is_durable: bool = True) -> None:
        """Make a folder and those above it, each synced into its parent where what it will hold must last."""
        if folder in self._known_folders and os.path.isdir(folder):
            return
        if self._seen_root and not os.path.isdir(self._root):
            raise FileNotFoundError(errno.ENOENT, "the data folder has vanished", self._root)
        missing = []
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for path in reversed(missing):
            with suppress(FileExistsError):
                os.mkdir(path)
            if is_durable:
                _sync_folder(os.path.dirname(path))
        self._seen_root = True
        self._known_folders.update(missing)

    @contextmanager
    def exclusive(self, lock_key: str, timeout_s: float | None = None) -> Iterator[None]:
        """Be the one writer of a series, among threads and processes; raises `StoreBusyError` after the
        deadline.

        The thread that holds it may take it again.
        """
        timeout_s = self._lock_timeout_s if timeout_s is None else timeout_s
        path = self._full(lock_key)
        with self._lock:
            mine = self._series_locks.setdefault(lock_key, _SeriesLock())
        if not mine.threads.acquire(timeout=timeout_s):
            raise StoreBusyError(f"{path} is held by another thread", path=path, holder=f"process {os.getpid()}")
        try:
            held = self._lock_file(lock_key, path, timeout_s) if mine.depth == 0 else None
            mine.depth += 1
            try:
                yield
            finally:
                mine.depth -= 1
                if held is not None:
                    held.release()
        finally:
            mine.threads.release()

    def _lock_file(self, lock_key: str, path: str, timeout_s: float) -> filelock.BaseFileLock:
        lock = filelock.FileLock(path, timeout_s, thread_local=False)
        try:
            self._make_folder(os.path.dirname(path), is_durable=False)
            lock.acquire(poll_interval=_POLL_S)
            _sign(path)
            return lock
        except filelock.Timeout as exc:
            raise StoreBusyError(
                f"{path} has been held by another process for {timeout_s:g} s",
                path=path,
                holder=_holder(path),
            ) from exc
        except OSError as exc:
            raise self._failed("lock", lock_key, exc) from exc

    def list(self, folder: str) -> list[str]:
        """Names in a folder, sorted; empty where there is none. For audits and for spans of very many
        periods.
        """
        try:
            return sorted(os.listdir(self._full(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as exc:
            raise self._failed("list", folder, exc) from exc

    def walk(self, folder: str) -> Iterator[str]:
        """Keys of all files below a folder, sorted."""

        def refused(exc: OSError) -> None:
            if not isinstance(exc, FileNotFoundError):  # gone meanwhile, or never there
                raise self._failed("list", folder, exc) from exc

        for parent, folders, names in os.walk(self._full(folder), onerror=refused):
            folders.sort()
            for name in sorted(names):
                yield os.path.relpath(os.path.join(parent, name), self._root).replace(os.sep, "/")

    def quarantine(self, key: str, now_us: int) -> Path:
        """Move a file to quarantine. Call it inside `exclusive`. Returns where it went."""
        where = f"{self._root}/{QUARANTINE}/{key}.{now_us}"
        try:
            self._make_folder(os.path.dirname(where))
            while os.path.exists(where):
                where += "x"
            os.replace(self._full(key), where)
            _sync_folder(os.path.dirname(self._full(key)))
        except OSError as exc:
            raise self._failed("quarantine", key, exc) from exc
        return Path(where)

    def remove(self, key: str) -> None:
        """Delete one of our own unfinished files."""
        try:
            os.unlink(self._full(key))
        except FileNotFoundError:
            return
        except OSError as exc:
            raise self._failed("remove", key, exc) from exc

    def size(self, key: str) -> int:
        """Bytes of a file, 0 where there is none."""
        version = self.stat(key)
        return 0 if version is None else version[2]

    def _failed(self, verb: str, key: str, exc: OSError) -> StoreError:
        path = self._full(key)
        reason = exc.strerror or str(exc)
        if exc.errno == errno.ENOSPC:
            reason = "the disk is full"
        elif exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            reason = f"not allowed ({reason})"
        return StoreError(f"cannot {verb} {path}: {reason}", path=path)

    def __repr__(self) -> str:
        return f"LocalFiles({self._root!r})"


def _sign(path: str) -> None:
    """Say in the lock file who holds it; only for the message of whoever waits in vain."""
    with suppress(OSError), open(path, "r+b", buffering=0) as file:
        file.write(b"process %-12d" % os.getpid())


def _holder(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(64).decode("ascii", "replace").strip() or "another process"
    except OSError:  # some systems lock the bytes as well
        return "another process"


def _remove(path: str) -> None:
    """Take away our own unfinished file; one that will not go is found by the audit."""
    with suppress(OSError):
        os.unlink(path)


def _sync_folder(folder: str) -> None:
    """Make a rename durable, where folders can be synced."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
