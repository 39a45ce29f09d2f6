"""Bytes on a local disk: whole reads, atomic replacement, one writer a series, and failures reported in one way.

A key is a path below the root, with ``/``. `replace` writes a temporary file beside the data (never inside
it, where other readers look), syncs it, renames it over the old one and syncs the folder, so a reader sees
the old bytes or the new ones and a crash leaves at most an unfinished file that is never read. `exclusive`
holds a kernel lock, which dies with its holder. A version identifies one state of one file; it never repeats
for a key.

Where a disk cannot sync folders or has no kernel locks (network drives), files are replaced all the same and an
`OwnerLock` stands in; a warning says once that a promise is weaker there. A folder that cannot be written is read
without a lock.

Below ``_snapshots/`` and ``_quarantine/`` partition files carry one more ending, so that engines pointed at the data
folder do not take them for candles; a store opened there sees their usual names. A snapshot is never written.

This is the seam for another kind of disk: an object store implements the same methods with conditional puts.
"""

# Paths are plain strings here: building a Path costs more than the stat it asks for.
# ruff: noqa: PTH102, PTH105, PTH106, PTH108, PTH110, PTH112, PTH116, PTH118, PTH120, PTH123, PTH208

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from backbone.clock import Clock
from backbone.errors import StoreBusyError, StoreError
from backbone.locks import renew_after_fork
from backbone.storage.layout import DAMAGED, LOCKS, QUARANTINE, SNAPSHOTS, tmp_key
from backbone.storage.owner_lock import OwnerLock

if TYPE_CHECKING:
    import filelock  # imported where it is used, on Windows alone

try:
    import fcntl
except ImportError:  # Windows: filelock has another way there
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "Blob",
    "Files",
    "LocalFiles",
    "OvertakenError",
    "ReadOnlyError",
    "Version",
    "rename_over",
    "retried",
    "snapshot_error",
    "why_no_locks",
    "why_no_sync",
]

_log = logging.getLogger(__name__)

T = TypeVar("T")

Version = tuple[int, int, int]
"""(inode, modification time in ns, size). The time is set to rise with every replacement."""

_IS_WINDOWS = os.name == "nt"
_POLL_S = 0.001
_SHARING_S = 2.0  # how long a replacement waits for a reader on systems that lock open files
_SEIZE_TRIES = 40  # the later half a millisecond apart
_NOTE_BYTES = 1 << 20
_ATTEMPTS = 100  # how often a write that others overtake is done again
_KEPT = ".kept"  # ending of the partition files of snapshots and quarantines
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_FOLDER_SYNC = _NOT_SUPPORTED | {errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR}
_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}
_NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG)
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


class Blob(NamedTuple):
    """A file's bytes and the version they are."""

    data: bytes
    version: Version


class OvertakenError(StoreBusyError):
    """Another writer changed the file between this one's look and its write; nothing was changed: look again.

    Only where nothing can be locked; it stays inside the store."""


class ReadOnlyError(StoreError):
    """The folder cannot be written: a mount for reading, no permission, or a snapshot."""


class Files(Protocol):
    """Any kind of disk under a store; `LocalFiles` says what each method promises."""

    def path(self, key: str) -> Path | str: ...
    def address(self, key: str) -> str: ...
    def stat(self, key: str) -> Version | None: ...
    def read(self, key: str) -> Blob | None: ...
    def tail(self, key: str, size: int) -> bytes | None: ...
    def read_from(self, key: str, offset: int, most: int) -> Blob | None: ...
    def replace(
        self, key: str, data: bytes | memoryview, on_version: Callable[[Version], object] | None = None
    ) -> Version: ...
    def make_room(self, key: str) -> None: ...
    def exclusive(self, lock_key: str, timeout_s: float | None = None) -> AbstractContextManager[None]: ...
    def pause(self, seconds: float) -> None: ...
    def list(self, folder: str) -> Sequence[str]: ...
    def walk(self, folder: str) -> Iterator[str]: ...
    def series_folders(self, folder: str) -> Iterator[str]: ...
    def append(self, key: str, data: bytes) -> None: ...
    def amend(self, key: str, change: Callable[[bytes], bytes]) -> bool: ...
    def move(self, key: str, target: str) -> None: ...
    def link(self, key: str, target: str) -> None: ...
    def quarantine(self, key: str, now_us: int) -> Path | str: ...
    def remove(self, key: str) -> None: ...
    def prune(self, folder: str) -> None: ...
    def size(self, key: str) -> int: ...


def snapshot_error(verb: str, path: str) -> ReadOnlyError:
    """What a change of a snapshot is answered with."""
    return ReadOnlyError(f"cannot {verb} {path}: a snapshot never changes; use another data_dir", path=path)


def why_no_locks(path: str) -> str | None:
    """Why the kernel locks no files where `path`, a new file's, lies; None where it does, or is not asked."""
    if fcntl is not None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno not in _NO_LOCKS:
                raise
            return exc.strerror or str(exc)
        finally:
            os.close(fd)
            _remove(path)
    return None


def why_no_sync(fd: int, tolerated: Collection[int] = _NOT_SUPPORTED) -> str | None:
    """Why an open file is not synced, where that is the disk's way and no fault; None where it is."""
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno not in tolerated:
            raise
        return exc.strerror or str(exc)
    return None


def rename_over(source: str, target: str, clock: Clock) -> None:
    """`os.replace`, patient with systems where an open reader (a virus scanner, a spreadsheet) is in the way."""
    deadline = clock.monotonic() + _SHARING_S
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if not _IS_WINDOWS or clock.monotonic() >= deadline:
                raise
        _pause(clock, 0.01)


def _pause(clock: Clock, seconds: float) -> None:
    condition = threading.Condition()
    with condition:
        clock.wait(condition, seconds)


def retried(files: Files, lock_key: str, change: Callable[[], T]) -> T:
    """Call `change` inside `exclusive`, again while other writers overtake it, which only lock-free disks report."""
    for attempt in itertools.count(1):
        try:
            with files.exclusive(lock_key):
                return change()
        except OvertakenError:  # another writer got on, so this ends; what was written before stays and is right
            if attempt >= _ATTEMPTS:
                raise
            files.pause(random.uniform(0, min(0.5, 0.01 * 2**attempt)))
    raise AssertionError("unreachable")


class _SeriesLock:
    """A series lock's state in this process; ``depth`` and ``owner`` belong to the thread that holds ``threads``."""

    __slots__ = ("depth", "owner", "threads")

    def __init__(self) -> None:
        self.threads = threading.RLock()
        self.depth = 0
        self.owner: OwnerLock | None = None


class _KernelLock:
    """An open lock file. A forked child closes it too, which does not end its parent's lock."""

    __slots__ = ("_opened", "fd")

    def __init__(self, fd: int, opened: set[int]) -> None:
        self.fd = fd
        self._opened = opened

    def release(self) -> None:
        if self.fd in self._opened:
            self._opened.discard(self.fd)
            fcntl.flock(self.fd, fcntl.LOCK_UN)  # a child that was forked meanwhile may still have it open
            os.close(self.fd)


class LocalFiles:
    """Files below one root. Constructing touches nothing; the first write makes the folders. One class because every
    method shares the root, its locks and how its failures are said.

    A root that was there and is gone (an unplugged disk) is not made anew: that would fill the disk
    underneath. `_lock` guards the table of series locks; those serialise this process's threads before the kernel
    lock is asked. `_making` is held while folders are made: whoever finds one that is being made waits for its sync.
    """

    def __init__(self, root: Path, clock: Clock, *, lock_timeout_s: float = 10.0) -> None:
        self._root = os.fspath(root.absolute())
        parent = Path(os.path.realpath(root)).parent.name  # a link to a snapshot leads to a snapshot
        self._is_snapshot = parent == SNAPSHOTS
        self._ending = _KEPT if parent in (SNAPSHOTS, QUARANTINE) else ""
        self._clock = clock
        self._lock_timeout_s = lock_timeout_s
        self._counter = itertools.count()
        self._seen_root = False
        self._known_folders: set[str] = set()
        self._warned: set[str] = set()
        self._has_flock: bool | None = None
        self._locked: set[int] = set()
        self._renew()
        renew_after_fork(self, LocalFiles._renew)

    def _renew(self) -> None:
        for fd in self._locked:  # inherited by a fork: open here, it would keep the parent's lock alive
            with suppress(OSError):
                os.close(fd)
        self._locked = set()
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._series_locks: dict[str, _SeriesLock] = {}
        self._held = threading.local()

    def path(self, key: str) -> Path:
        """Where `key` lies."""
        return Path(self._full(key))

    def address(self, key: str) -> str:
        """Where `key` lies, as text."""
        return self._full(key)

    def _full(self, key: str) -> str:
        is_kept = self._ending or key.startswith((f"{SNAPSHOTS}/", f"{QUARANTINE}/"))
        return f"{self._root}/{key}{_KEPT}" if is_kept and key.endswith(".parquet") else f"{self._root}/{key}"

    def pause(self, seconds: float) -> None:
        """Wait a moment, on the store's clock."""
        _pause(self._clock, seconds)

    def _warn_once(self, what: str, words: str, *details: object) -> None:
        if what not in self._warned:
            self._warned.add(what)
            _log.warning(words, *details)

    def stat(self, key: str) -> Version | None:
        """The version of a file; None where there is none."""
        try:
            found = os.stat(self._full(key))
        except OSError as exc:
            if exc.errno in _NOT_THERE:
                return None
            raise self._failed("look at", key, exc) from exc
        self._seen_root = True
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self, key: str) -> Blob | None:
        """A file's whole bytes with the version they belong to; None where there is none."""
        try:
            with open(self._full(key), "rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                data = file.readall()
        except OSError as exc:
            if exc.errno in _NOT_THERE:
                return None
            raise self._failed("read", key, exc) from exc
        self._seen_root = True
        return Blob(data or b"", (found.st_ino, found.st_mtime_ns, found.st_size))

    def tail(self, key: str, size: int) -> bytes | None:
        """The last `size` bytes of a file (all of a shorter one); None where there is none."""
        try:
            with open(self._full(key), "rb", buffering=0) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                data = file.readall()
        except OSError as exc:
            if exc.errno in _NOT_THERE:
                return None
            raise self._failed("read", key, exc) from exc
        return data or b""

    def read_from(self, key: str, offset: int, most: int) -> Blob | None:
        """At most `most` bytes from `offset` on, with the version they belong to; None where there is no file."""
        try:
            with open(self._full(key), "rb") as file:
                found = os.fstat(file.fileno())
                file.seek(offset)
                data = file.read(most)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise self._failed("read", key, exc) from exc
        return Blob(data, (found.st_ino, found.st_mtime_ns, found.st_size))

    def replace(
        self, key: str, data: bytes | memoryview, on_version: Callable[[Version], object] | None = None
    ) -> Version:
        """Make `data` the file's content, durably and in one step. Call it inside `exclusive`.

        `on_version` is called with the new version just before anybody can see it. Raises `StoreError` and leaves what
        was there untouched."""
        self._refuse_snapshot("write", key)
        target = self._full(key)
        folder = os.path.dirname(target)
        tmp = f"{self._root}/{tmp_key(key)}.{os.getpid()}-{next(self._counter)}"
        try:
            if folder not in self._known_folders:
                self._make_folder(folder)
            before = self.stat(key)
            version = self._write(tmp, data, before)
            try:
                self._check_owner(key)
                if on_version is not None:
                    on_version(version)
                try:
                    rename_over(tmp, target, self._clock)
                except FileNotFoundError:  # somebody removed the folder
                    self._make_folder(folder)
                    rename_over(tmp, target, self._clock)
            except (OSError, OvertakenError):
                _remove(tmp)
                raise
            self._sync_folder(folder)
        except OSError as exc:
            raise self._failed("write", key, exc) from exc
        return version

    def _write(self, tmp: str, data: bytes | memoryview, before: Version | None) -> Version:
        stamp_ns = self._clock.now_us() * 1000
        if before is not None:
            stamp_ns = max(stamp_ns, before[1] + 1000)
        fd = self._create(tmp, os.O_WRONLY | os.O_EXCL)
        try:
            with open(fd, "wb", buffering=0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.utime(file.fileno() if os.utime in os.supports_fd else tmp, ns=(stamp_ns, stamp_ns))
                self._sync(file.fileno(), _NOT_SUPPORTED)
                found = os.fstat(file.fileno())
        except BaseException:
            _remove(tmp)
            raise
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _create(self, path: str, flags: int) -> int:
        """Open a file, which is made where there is none, and its folder as well."""
        flags |= os.O_CREAT | getattr(os, "O_BINARY", 0)
        try:
            return os.open(path, flags, 0o666)
        except FileNotFoundError:
            self._make_folder(os.path.dirname(path), is_durable=False)
            return os.open(path, flags, 0o666)

    def _make_folder(self, folder: str, *, is_durable: bool = True) -> None:
        """Make a folder and those above it, each synced into its parent where what it will hold must last."""
        if folder in self._known_folders and os.path.isdir(folder):
            return
        with self._making if is_durable else nullcontext():  # a note waits for no sync
            if self._seen_root and not os.path.isdir(self._root):
                raise FileNotFoundError(errno.ENOENT, "the data folder has vanished", self._root)
            missing = []
            path = folder
            while not os.path.isdir(path):
                missing.append(path)
                path = os.path.dirname(path)
            for path in reversed(missing):
                with suppress(FileExistsError):
                    os.mkdir(path)
                if is_durable:
                    self._sync_folder(os.path.dirname(path))
            self._seen_root = True
            if is_durable:
                self._known_folders.add(folder)

    def make_room(self, key: str) -> None:
        """Make the folder of `key` ahead of its first write, where that can be had; the write says what cannot."""
        if not self._is_snapshot:
            with suppress(OSError):
                self._make_folder(os.path.dirname(self._full(key)))

    @contextmanager
    def exclusive(self, lock_key: str, timeout_s: float | None = None) -> Iterator[None]:
        """Be the one writer of a series, among threads and processes; raises `StoreBusyError` after the deadline.

        The thread that holds it may take it again."""
        timeout_s = self._lock_timeout_s if timeout_s is None else timeout_s
        path = self._full(lock_key)
        with self._lock:
            mine = self._series_locks.setdefault(lock_key, _SeriesLock())
        if not mine.threads.acquire(timeout=timeout_s):
            raise StoreBusyError(f"{path} is held by another thread", path=path, holder=f"process {os.getpid()}")
        try:
            held = self._lock_file(lock_key, path, timeout_s) if mine.depth == 0 else None
            owner = held if isinstance(held, OwnerLock) else None
            if owner is not None:
                self._owners().append(owner)
            mine.depth += 1
            try:
                yield
            finally:
                mine.depth -= 1
                if owner is not None:
                    self._owners().remove(owner)
                if held is not None:
                    held.release()
        finally:
            mine.threads.release()

    def _owners(self) -> list[OwnerLock]:
        """The owner locks that the calling thread holds."""
        owners: list[OwnerLock] | None = getattr(self._held, "owners", None)
        if owners is None:
            owners = self._held.owners = []
        return owners

    def _check_owner(self, key: str) -> None:
        """Raise `OvertakenError` where a lock of the calling thread was taken over, because it seemed dead."""
        for owner in self._owners():
            if not owner.refresh():
                path = self._full(key)
                raise OvertakenError(
                    f"the lock of {path} was taken over by {owner.holder()}", path=path, holder=owner.holder()
                )

    def _lock_file(self, lock_key: str, path: str, timeout_s: float) -> _KernelLock | filelock.BaseFileLock | OwnerLock:
        self._refuse_snapshot("lock", lock_key)
        try:
            if self._can_flock() and not _IS_WINDOWS:
                return self._kernel_lock(path, timeout_s)
            self._make_folder(os.path.dirname(path), is_durable=False)
            if not self._can_flock():
                return self._own(f"{path}.owner", timeout_s)
            import filelock

            lock = filelock.FileLock(path, timeout_s, thread_local=False)
            lock.acquire(poll_interval=_POLL_S)
            return lock
        except (TimeoutError, BlockingIOError) as exc:
            raise StoreBusyError(
                f"{path} has been held by another process for {timeout_s:g} s",
                path=path,
                holder=_holder(path),
            ) from exc
        except OSError as exc:
            raise self._failed("lock", lock_key, exc) from exc

    def _kernel_lock(self, path: str, timeout_s: float) -> _KernelLock:
        """The lock of a file, signed; raises `BlockingIOError` after `timeout_s`."""
        deadline_s = self._clock.monotonic() + timeout_s
        lock = self._opened(path)
        try:
            while True:
                try:
                    fcntl.flock(lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if self._clock.monotonic() >= deadline_s:
                        raise
                self.pause(_POLL_S)
            with suppress(OSError):  # only for the message of whoever waits in vain
                name = b"process %-12d" % os.getpid()
                if os.pread(lock.fd, len(name), 0) != name:
                    os.pwrite(lock.fd, name, 0)
        except BaseException:
            lock.release()
            raise
        return lock

    def _opened(self, path: str) -> _KernelLock:
        fd = self._create(path, os.O_RDWR)
        self._locked.add(fd)
        return _KernelLock(fd, self._locked)

    def _can_flock(self) -> bool:
        """Whether the kernel locks files of this folder; tried once, on a file of its own."""
        if self._has_flock is None:
            path = f"{self._root}/{LOCKS}/probe.{os.getpid()}-{next(self._counter)}"
            self._make_folder(os.path.dirname(path), is_durable=False)
            why = why_no_locks(path)
            self._has_flock = why is None
            if why is not None:
                words = "store.no_kernel_locks folder=%s (%s): lock files with their owner's name serve instead"
                self._warn_once("lock", words, self._root, why)
        return self._has_flock

    def _own(self, path: str, timeout_s: float) -> OwnerLock:
        lock = OwnerLock(path, self._clock)
        deadline = self._clock.monotonic() + timeout_s
        while not lock.try_acquire():
            if self._clock.monotonic() >= deadline:
                holder = lock.holder()
                raise StoreBusyError(f"{path} has been held by {holder} for {timeout_s:g} s", path=path, holder=holder)
            self.pause(min(0.02, max(_POLL_S, timeout_s)))
        return lock

    def list(self, folder: str) -> list[str]:
        """Names in a folder, sorted; empty where there is none. For audits and for spans of very many periods."""
        try:
            return sorted(name.removesuffix(_KEPT) for name in os.listdir(self._full(folder)))
        except OSError as exc:
            if exc.errno in _NOT_THERE:
                return []
            raise self._failed("list", folder, exc) from exc

    def walk(self, folder: str) -> Iterator[str]:
        """Keys of all files below a folder, sorted."""

        def refused(exc: OSError) -> None:
            if exc.errno not in _NOT_THERE:  # gone meanwhile, or never there
                raise self._failed("list", folder, exc) from exc

        for parent, folders, names in os.walk(self._full(folder), onerror=refused):
            folders.sort()
            for name in sorted(names):
                key = os.path.relpath(os.path.join(parent, name), self._root).replace(os.sep, "/")
                yield key.removesuffix(_KEPT)

    def series_folders(self, folder: str) -> Iterator[str]:
        """The folders of series below an exchange's, sorted; no file is looked at."""
        for market in self.list(folder):
            yield from (f"{folder}/{market}/{timeframe}" for timeframe in self.list(f"{folder}/{market}"))

    def append(self, key: str, data: bytes) -> None:
        """Add `data` to the end of a file in one write, after whatever a crash left unfinished there; not synced."""
        self._refuse_snapshot("write", key)
        path = self._full(key)
        try:
            fd = self._create(path, os.O_RDWR | os.O_APPEND)
            with open(fd, "r+b", buffering=0) as file:
                size = os.fstat(fd).st_size
                if size:
                    file.seek(size - 1)
                    data = data if file.read(1) == b"\n" else b"\n" + data
                file.write(data)
        except OSError as exc:
            raise self._failed("write", key, exc) from exc

    def amend(self, key: str, change: Callable[[bytes], bytes]) -> bool:
        """Change a small file of passing notes, with all others shut out for microseconds; neither synced nor needed.

        False, and `change` was not called, where that cannot be had at once: no kernel locks, a folder for reading
        only, a holder that is stopped."""
        if fcntl is None or self._is_snapshot:
            return False
        path = self._full(key)
        try:
            if not self._can_flock():
                return False
            lock = self._opened(path)
        except OSError as exc:
            _log.debug("store.no_notes path=%s (%s)", path, exc.strerror)
            return False
        try:
            if not any(self._is_seized(lock.fd, attempt) for attempt in range(_SEIZE_TRIES)):
                return False
            before = os.read(lock.fd, _NOTE_BYTES)
            after = change(before)
            if after != before:
                os.pwrite(lock.fd, after, 0)
                os.ftruncate(lock.fd, len(after))
        except OSError as exc:  # a full disk: notes of this kind are not needed
            _log.debug("store.no_notes path=%s (%s)", path, exc.strerror)
        finally:
            lock.release()
        return True

    def _is_seized(self, fd: int, attempt: int) -> bool:
        if attempt > _SEIZE_TRIES // 2:
            self.pause(_POLL_S)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def move(self, key: str, target: str) -> None:
        """Move a file to another key, which must be free. Call it inside `exclusive`."""
        self._refuse_snapshot("move", key)
        try:
            self._make_folder(os.path.dirname(self._full(target)))
            self._check_owner(key)
            if os.path.exists(self._full(target)):
                raise FileExistsError(errno.EEXIST, "the target exists", self._full(target))
            rename_over(self._full(key), self._full(target), self._clock)
            self._sync_folder(os.path.dirname(self._full(target)))
            self._sync_folder(os.path.dirname(self._full(key)))
        except OSError as exc:
            raise self._failed("move", key, exc) from exc

    def link(self, key: str, target: str) -> None:
        """Let `target` be the same bytes as `key`, which stays: a hard link where the disk has them, else a copy."""
        source, path = self._full(key), self._full(target)
        try:
            self._make_folder(os.path.dirname(path), is_durable=False)
            try:
                os.link(source, path)
            except OSError as exc:
                if exc.errno in (errno.ENOENT, errno.EEXIST, errno.ENOSPC, errno.EROFS):
                    raise
                shutil.copy2(source, path)
        except OSError as exc:
            raise self._failed("link", key, exc) from exc

    def quarantine(self, key: str, now_us: int) -> Path:
        """Move a damaged or foreign file to quarantine. Call it inside `exclusive`. Returns where it went."""
        target = f"{QUARANTINE}/{DAMAGED}/{key}.{now_us}"
        while self.stat(target) is not None:
            target += "x"
        self.move(key, target)
        return self.path(target)

    def remove(self, key: str) -> None:
        """Delete one of our own unfinished files."""
        try:
            os.unlink(self._full(key))
        except FileNotFoundError:
            return
        except OSError as exc:
            raise self._failed("remove", key, exc) from exc

    def prune(self, folder: str) -> None:
        """Remove the empty folders at and below `folder`."""
        for parent, _, _ in os.walk(self._full(folder), topdown=False):
            with suppress(OSError):  # not empty
                os.rmdir(parent)
        self._known_folders.clear()

    def _refuse_snapshot(self, verb: str, key: str) -> None:
        if self._is_snapshot:
            raise snapshot_error(verb, self._full(key))

    def _sync_folder(self, folder: str) -> None:
        """Make a rename durable, where folders can be synced."""
        if not hasattr(os, "O_DIRECTORY"):
            return
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as exc:
            if exc.errno not in _NO_FOLDER_SYNC:
                raise
            return
        try:
            self._sync(fd, _NO_FOLDER_SYNC)
        finally:
            os.close(fd)

    def _sync(self, fd: int, tolerated: set[int]) -> None:
        why = why_no_sync(fd, tolerated)
        if why is not None:
            words = "store.no_sync folder=%s (%s): what was written last may be lost in a power cut"
            self._warn_once("sync", words, self._root, why)

    def size(self, key: str) -> int:
        """Bytes of a file, 0 where there is none."""
        version = self.stat(key)
        return 0 if version is None else version[2]

    def _failed(self, verb: str, key: str, exc: OSError) -> StoreError:
        path = self._full(key)
        reason = exc.strerror or str(exc)
        if exc.errno == errno.ENOSPC:
            reason = "the disk is full"
        elif exc.errno in _NOT_ALLOWED:
            reason = f"not allowed ({reason})"
            if verb in ("write", "lock", "move"):
                return ReadOnlyError(f"cannot {verb} {path}: {reason}", path=path)
        return StoreError(f"cannot {verb} {path}: {reason}", path=path)

    def __repr__(self) -> str:
        return f"LocalFiles({self._root!r})"


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
