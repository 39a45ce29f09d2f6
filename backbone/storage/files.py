"""Bytes on a local disk: whole reads, atomic replacement, one writer a series, and failures reported in one way.

A key is a path below the root, with ``/``. `replace` writes a temporary file beside the data (never inside
it, where other readers look), syncs it, renames it over the old one and syncs the folder, so a reader sees
the old bytes or the new ones and a crash leaves at most an unfinished file that is never read. `exclusive`
holds the series' lock (`backbone.storage.series_locks`). A version identifies one state of one file; it never repeats
for a key.

Where a disk cannot sync folders, files are replaced all the same, and a warning says once that a promise is weaker
there. A folder that cannot be written is read without a lock.

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
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from backbone.clock import Clock
from backbone.errors import StoreError
from backbone.locks import renew_after_fork
from backbone.storage.layout import DAMAGED, LOCKS, QUARANTINE, SNAPSHOTS, tmp_key
from backbone.storage.owner_lock import create_file
from backbone.storage.series_locks import OvertakenError, SeriesLocks, pause

__all__ = [
    "Blob",
    "Files",
    "LocalFiles",
    "ReadOnlyError",
    "Version",
    "rename_over",
    "retried",
    "snapshot_error",
    "why_no_folder_sync",
    "why_no_sync",
]

_log = logging.getLogger(__name__)

T = TypeVar("T")

Version = tuple[int | str, int, int]
"""(inode, modification time in ns, size), whose time rises with every replacement; of an object (etag, 0, size)."""

_IS_WINDOWS = os.name == "nt"
_SHARING_S = 2.0  # how long a replacement waits for a reader on systems that lock open files
_NOTE_BYTES = 1 << 20
_ATTEMPTS = 100  # how often a write that others overtake is done again
_KEPT = ".kept"  # ending of the partition files of snapshots and quarantines
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_FOLDER_SYNC = _NOT_SUPPORTED | {errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR}
_NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG)
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


class Blob(NamedTuple):
    """A file's bytes and the version they are."""

    data: bytes
    version: Version


class ReadOnlyError(StoreError):
    """The folder cannot be written: a mount for reading, no permission, or a snapshot."""


class Files(ABC):
    """Any kind of disk under a store, and what all kinds do in the same way."""

    def __init__(self, clock: Clock, lock_timeout_s: float, *, is_snapshot: bool) -> None:
        self.clock = clock
        self._lock_timeout_s = lock_timeout_s
        self._is_snapshot = is_snapshot

    @abstractmethod
    def address(self, key: str) -> str:
        """Where `key` lies, as text that other engines read."""

    def path(self, key: str) -> Path | str:
        """Where `key` lies: a path on a local disk, else its address."""
        return self.address(key)

    @abstractmethod
    def stat(self, key: str) -> Version | None:
        """The version of a file; None where there is none."""

    @abstractmethod
    def read(self, key: str) -> Blob | None:
        """A file's whole bytes with the version they belong to; None where there is none."""

    @abstractmethod
    def part(self, key: str, offset: int, most: int) -> Blob | None:
        """At most `most` bytes from `offset` on, with the version they belong to; None where there is no file.

        A negative offset counts from the end; of a shorter file it is the start.
        """

    @abstractmethod
    def replace(
        self, key: str, data: bytes | memoryview, on_version: Callable[[Version], object] | None = None
    ) -> Version:
        """Make `data` the file's content, durably and in one step. Call it inside `exclusive`.

        `on_version` is called with the new version. Raises `StoreError` and leaves what was there untouched.
        """

    @abstractmethod
    def exclusive(self, lock_key: str, timeout_s: float | None = None) -> AbstractContextManager[None]:
        """Be the one writer of a series; raises `StoreBusyError` after the deadline.

        The thread that holds it may take it again.
        """

    @abstractmethod
    def list(self, folder: str) -> Sequence[str]:
        """Names in a folder, sorted; empty where there is none. For audits and for spans of very many periods."""

    def refresh(self, folder: str = "") -> None:  # noqa: B027
        """See that what is said of the files below a folder from now on is no older than this call."""

    def blanks(self, keys: Iterable[str]) -> Sequence[str]:
        """Those of `keys` that were moved away and whose place is taken, so that other engines do not miss them."""
        return ()

    @abstractmethod
    def walk(self, folder: str) -> Iterator[str]:
        """Keys of all files below a folder, sorted."""

    @abstractmethod
    def series_folders(self, folder: str) -> Iterator[str]:
        """The folders of series below an exchange's, sorted."""

    @abstractmethod
    def append(self, key: str, data: bytes) -> None:
        """Add `data` to the end of a file. Call it inside `exclusive`."""

    @abstractmethod
    def move(self, key: str, target: str) -> None:
        """Move a file to another key, which must be free. Call it inside `exclusive`."""

    @abstractmethod
    def link(self, key: str, target: str) -> None:
        """Let `target` be the same bytes as `key`, which stays."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Delete a file that is not part of the data."""

    def amend(self, key: str, change: Callable[[bytes], bytes]) -> Version | None:
        """Change a small file of passing notes, with all others shut out for microseconds; neither synced nor needed.

        Returns its version then. None, and `change` was not called, where it cannot be had at once: no kernel locks, a
        folder for reading only, a holder that is stopped, an object store.
        """
        return None

    def make_room(self, key: str) -> None:  # noqa: B027
        """Make the folder of `key` ahead of its first write, where there are folders."""

    def prune(self, folder: str) -> None:  # noqa: B027
        """Remove the empty folders at and below `folder`, where there are folders."""

    def size(self, key: str) -> int:
        """Bytes of a file, 0 where there is none."""
        version = self.stat(key)
        return 0 if version is None else version[2]

    def quarantine(self, key: str, now_us: int) -> str:
        """Move a damaged or foreign file to quarantine. Call it inside `exclusive`. Returns where it went."""
        target = f"{QUARANTINE}/{DAMAGED}/{key}.{now_us}"
        while self.stat(target) is not None:
            target += "x"
        self.move(key, target)
        return self.address(target)

    def _refuse_snapshot(self, verb: str, key: str) -> None:
        if self._is_snapshot:
            raise snapshot_error(verb, self.address(key))


def snapshot_error(verb: str, path: str) -> ReadOnlyError:
    """The error of a write to a snapshot."""
    return ReadOnlyError(f"cannot {verb} {path}: a snapshot never changes; use another data_dir", path=path)


def why_no_sync(fd: int, tolerated: Collection[int] = _NOT_SUPPORTED) -> str | None:
    """Sync an open file; returns why the disk cannot, where such disks cannot, and None once it is synced."""
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno not in tolerated:
            raise
        return exc.strerror or str(exc)
    return None


def why_no_folder_sync(folder: str) -> str | None:
    """The same of a folder, for a rename in it to last; None on systems that sync no folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return None
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        if exc.errno not in _NO_FOLDER_SYNC:
            raise
        return exc.strerror or str(exc)
    try:
        return why_no_sync(fd, _NO_FOLDER_SYNC)
    finally:
        os.close(fd)


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
        pause(clock, 0.01)


def retried(files: Files, lock_key: str, change: Callable[[], T]) -> T:
    """Call `change` inside `exclusive`; again where another writer was faster, as only S3 and owner locks report."""
    for attempt in itertools.count(1):
        try:
            with files.exclusive(lock_key):
                return change()
        except OvertakenError:  # another writer got on, so this ends; what was written before stays and is right
            if attempt >= _ATTEMPTS:
                raise
            pause(files.clock, random.uniform(0, min(0.5, 0.01 * 2**attempt)))
    raise AssertionError("unreachable")


class LocalFiles(Files):
    """Files below one root. Constructing touches nothing; the first write makes the folders.

    One class because every method shares the root and how its failures are said.

    A root that was there and is gone (an unplugged disk) is not made anew: that would fill the disk underneath.
    `_making` is held while folders are made: whoever finds one that is being made waits for its sync.
    """

    def __init__(self, root: Path, clock: Clock, *, lock_timeout_s: float = 10.0) -> None:
        self._root = os.fspath(root.absolute())
        parent = Path(os.path.realpath(root)).parent.name  # a link to a snapshot leads to a snapshot
        super().__init__(clock, lock_timeout_s, is_snapshot=parent == SNAPSHOTS)
        self._ending = _KEPT if parent in (SNAPSHOTS, QUARANTINE) else ""
        self._counter = itertools.count()
        self._seen_root = False
        self._known_folders: set[str] = set()
        self._has_warned = False
        self._locks = SeriesLocks(f"{self._root}/{LOCKS}", clock, self._create)
        self._renew()
        renew_after_fork(self, LocalFiles._renew)

    def _renew(self) -> None:
        self._making = threading.Lock()

    def path(self, key: str) -> Path:
        return Path(self.address(key))

    def address(self, key: str) -> str:
        is_kept = self._ending or key.startswith((f"{SNAPSHOTS}/", f"{QUARANTINE}/"))
        return f"{self._root}/{key}{_KEPT}" if is_kept and key.endswith(".parquet") else f"{self._root}/{key}"

    def stat(self, key: str) -> Version | None:
        try:
            found = os.stat(self.address(key))
        except OSError as exc:
            if exc.errno in _NOT_THERE:
                return None
            raise self._failed("look at", key, exc) from exc
        self._seen_root = True
        return _version_of(found)

    def read(self, key: str) -> Blob | None:
        return self._read(key, 0, -1)

    def part(self, key: str, offset: int, most: int) -> Blob | None:
        return self._read(key, offset, most)

    def _read(self, key: str, offset: int, most: int) -> Blob | None:
        """A part of a file; all of it from `offset` on where `most` is negative."""
        try:
            with open(self.address(key), "rb", buffering=0 if most < 0 else -1) as file:
                found = os.fstat(file.fileno())
                if offset:
                    file.seek(offset if offset > 0 else max(0, found.st_size + offset))
                data = file.read(most)
        except OSError as exc:
            if exc.errno in _NOT_THERE:
                return None
            raise self._failed("read", key, exc) from exc
        self._seen_root = True
        return Blob(data or b"", _version_of(found))

    def replace(
        self, key: str, data: bytes | memoryview, on_version: Callable[[Version], object] | None = None
    ) -> Version:
        """As `Files.replace`; `on_version` is called just before anybody can see the file."""
        self._refuse_snapshot("write", key)
        target = self.address(key)
        folder = os.path.dirname(target)
        tmp = f"{self._root}/{tmp_key(key)}.{os.getpid()}-{next(self._counter)}"
        with self._translated("write", key):
            if folder not in self._known_folders:
                self._make_folder(folder)
            before = self.stat(key)
            version = self._write(tmp, data, before)
            try:
                self._locks.check(target)
                if on_version is not None:
                    on_version(version)
                try:
                    rename_over(tmp, target, self.clock)
                except FileNotFoundError:  # somebody removed the folder
                    self._make_folder(folder)
                    rename_over(tmp, target, self.clock)
            except (OSError, OvertakenError):
                _remove(tmp)
                raise
            self._sync_folder(folder)
        return version

    def _write(self, tmp: str, data: bytes | memoryview, before: Version | None) -> Version:
        stamp_ns = self.clock.now_us() * 1000
        if before is not None:
            stamp_ns = max(stamp_ns, before[1] + 1000)
        fd = self._create(tmp, os.O_WRONLY | os.O_EXCL)
        try:
            with open(fd, "wb", buffering=0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                os.utime(file.fileno() if os.utime in os.supports_fd else tmp, ns=(stamp_ns, stamp_ns))
                self._warn_of_no_sync(why_no_sync(file.fileno()))
                found = os.fstat(file.fileno())
        except BaseException:
            _remove(tmp)
            raise
        return _version_of(found)

    def _create(self, path: str, flags: int) -> int:
        """Open a file, which is made where there is none, and its folder as well."""
        try:
            return create_file(path, flags)
        except FileNotFoundError:
            self._make_folder(os.path.dirname(path), is_durable=False)
            return create_file(path, flags)

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
        """Make the folder of `key` ahead of its first write; if that fails, the write says why."""
        if not self._is_snapshot:
            with suppress(OSError):
                self._make_folder(os.path.dirname(self.address(key)))

    @contextmanager
    def exclusive(self, lock_key: str, timeout_s: float | None = None) -> Iterator[None]:
        """As `Files.exclusive`, among threads and processes."""
        self._refuse_snapshot("lock", lock_key)
        timeout_s = self._lock_timeout_s if timeout_s is None else timeout_s
        with self._translated("lock", lock_key):
            release = self._locks.acquire(self.address(lock_key), timeout_s)
        try:
            yield
        finally:
            release()

    def list(self, folder: str) -> list[str]:
        try:
            return sorted(name.removesuffix(_KEPT) for name in os.listdir(self.address(folder)))
        except OSError as exc:
            if exc.errno in _NOT_THERE:
                return []
            raise self._failed("list", folder, exc) from exc

    def walk(self, folder: str) -> Iterator[str]:
        def refused(exc: OSError) -> None:
            if exc.errno not in _NOT_THERE:  # gone meanwhile, or never there
                raise self._failed("list", folder, exc) from exc

        for parent, folders, names in os.walk(self.address(folder), onerror=refused):
            folders.sort()
            for name in sorted(names):
                key = os.path.relpath(os.path.join(parent, name), self._root).replace(os.sep, "/")
                yield key.removesuffix(_KEPT)

    def series_folders(self, folder: str) -> Iterator[str]:
        """The folders of series below an exchange's; no file is looked at."""
        for market in self.list(folder):
            yield from (f"{folder}/{market}/{timeframe}" for timeframe in self.list(f"{folder}/{market}"))

    def append(self, key: str, data: bytes) -> None:
        """Add `data` to the end of a file in one write, after whatever a crash left unfinished there; not synced."""
        self._refuse_snapshot("write", key)
        path = self.address(key)
        with self._translated("write", key), open(self._create(path, os.O_RDWR | os.O_APPEND), "r+b", 0) as file:
            size = os.fstat(file.fileno()).st_size
            if size:
                file.seek(size - 1)
                data = data if file.read(1) == b"\n" else b"\n" + data
            file.write(data)

    def amend(self, key: str, change: Callable[[bytes], bytes]) -> Version | None:
        if self._is_snapshot:
            return None
        path = self.address(key)
        fd = version = None
        try:
            fd = self._locks.seize(path)
            if fd is not None:
                before = os.read(fd, _NOTE_BYTES)
                after = change(before)
                if after != before:
                    os.pwrite(fd, after, 0)
                    if len(after) < len(before):
                        os.ftruncate(fd, len(after))
                version = _version_of(os.fstat(fd))
        except OSError as exc:  # a full disk: notes of this kind are not needed
            _log.debug("store.no_notes path=%s (%s)", path, exc.strerror)
        finally:
            if fd is not None:
                self._locks.unlock(fd)
        return version

    def move(self, key: str, target: str) -> None:
        self._refuse_snapshot("move", key)
        source, path = self.address(key), self.address(target)
        with self._translated("move", key):
            self._make_folder(os.path.dirname(path))
            self._locks.check(source)
            if os.path.exists(path):
                raise FileExistsError(errno.EEXIST, "the target exists", path)
            rename_over(source, path, self.clock)
            self._sync_folder(os.path.dirname(path))
            self._sync_folder(os.path.dirname(source))

    def link(self, key: str, target: str) -> None:
        """Let `target` be the same bytes as `key`, which stays: a hard link where the disk has them, else a copy."""
        source, path = self.address(key), self.address(target)
        with self._translated("link", key):
            self._make_folder(os.path.dirname(path), is_durable=False)
            try:
                os.link(source, path)
            except OSError as exc:
                if exc.errno in (errno.ENOENT, errno.EEXIST, errno.ENOSPC, errno.EROFS):
                    raise
                shutil.copy2(source, path)

    def remove(self, key: str) -> None:
        with self._translated("remove", key), suppress(FileNotFoundError):
            os.unlink(self.address(key))

    def prune(self, folder: str) -> None:
        for parent, _, _ in os.walk(self.address(folder), topdown=False):
            with suppress(OSError):  # not empty
                os.rmdir(parent)
        self._known_folders.clear()

    def _sync_folder(self, folder: str) -> None:
        """Make a rename durable, where folders can be synced."""
        self._warn_of_no_sync(why_no_folder_sync(folder))

    def _warn_of_no_sync(self, why: str | None) -> None:
        if why is not None and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "store.no_sync folder=%s (%s): what was written last may be lost in a power cut", self._root, why
            )

    @contextmanager
    def _translated(self, verb: str, key: str) -> Iterator[None]:
        """A block whose failures are a `StoreError`: cannot `verb` it."""
        try:
            yield
        except OSError as exc:
            raise self._failed(verb, key, exc) from exc

    def _failed(self, verb: str, key: str, exc: OSError) -> StoreError:
        path = self.address(key)
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


def _version_of(found: os.stat_result) -> Version:
    return found.st_ino, found.st_mtime_ns, found.st_size


def _remove(path: str) -> None:
    """Take away our own unfinished file; one that will not go is found by the audit."""
    with suppress(OSError):
        os.unlink(path)
