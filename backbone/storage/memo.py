"""Results that are dearer to make than to load, kept on disk by `joblib.Memory`.

The key says everything a result was made from, a digest of the files it was read from included, so a changed
partition is never served stale: its old results are merely never asked for again, and age away. The folder never
holds more than 256 MiB, nor more than the files that the results were made from: the results not used for longest go
first, and one that is larger by itself is not kept. Loading maps
the file copy-on-write: the caller may write into the frame and the cache stays as it was. Loading unpickles,
so the folder is the user's alone; one that somebody else could write to is not used at all.

A cache that cannot be kept (full disk, shared folder) costs time, never an answer.
"""

from __future__ import annotations

import logging
import os
import pickle
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from backbone.storage.cache import MemoryCache

__all__ = ["FrameMemo"]

_log = logging.getLogger(__name__)

_LATELY = 512  # asks remembered
_OVERHEAD_BYTES = 4096  # of one result, beside its own bytes: joblib's notes and the pickle's frame


class FrameMemo:
    """Memoised frames and other results. Thread-safe; processes may share the folder. Touches no disk until used."""

    def __init__(
        self, folder: Path, *, bytes_limit: int = 256 << 20, source_bytes: Callable[[], int] | None = None
    ) -> None:
        self._folder = folder
        self._bytes_limit = bytes_limit
        self._source_bytes = source_bytes  # of the files that results are made from
        self._memory: Any = None
        self._remember: Any = None
        self._asked: MemoryCache[bool] = MemoryCache(_LATELY)
        self.hits = 0

    def find(self, key: tuple[str | int, ...]) -> Any:
        """The result kept for `key`, or None. A folder that is not there is not made, and nothing heavy loaded."""
        if not self._folder.exists() or not self._open():
            return None

        def gone() -> Any:
            raise LookupError(key)

        full = (*_versions(), *key)
        try:
            if not self._remember.check_call_in_cache(full, gone):
                return None
            found = self._remember(full, gone)
        except (OSError, LookupError, ValueError, EOFError, pickle.PickleError) as exc:  # damaged, or trimmed meanwhile
            _log.info("memo.not_found folder=%s %s", self._folder, exc)
            return None
        self.hits += 1
        return found

    def has_room(self, result: object) -> bool:
        """Whether `result` alone is within what the folder may hold."""
        return _weigh(result) + _OVERHEAD_BYTES <= self._room()

    def _room(self) -> int:
        return self._bytes_limit if self._source_bytes is None else min(self._bytes_limit, self._source_bytes())

    def is_wanted(self, key: tuple[str | int, ...]) -> bool:
        """Whether `key` was asked before in this process: what is asked once only is not worth keeping."""
        is_known = key in self._asked
        self._asked.put(key, True, 1)
        return is_known

    def keep(self, key: tuple[str | int, ...], result: object) -> None:
        """Keep the result for `key`, which says everything that it was made from."""
        if not self._open():
            return
        from joblib.memory import CacheWarning

        try:
            self._remember((*_versions(), *key), lambda: result)
        except (OSError, KeyError, ValueError, EOFError, pickle.PickleError, CacheWarning) as exc:
            _log.warning("memo.not_kept folder=%s %s", self._folder, exc)
        else:
            self.trim()

    def _open(self) -> bool:
        """Ready the folder, once; False where it cannot be trusted or made."""
        if self._memory is not None:
            return True
        import joblib

        try:
            _make_private(self._folder)
        except OSError as exc:
            _log.warning("memo.not_used folder=%s %s", self._folder, exc)
            return False
        logging.getLogger("joblib").addHandler(logging.NullHandler())  # its warnings go to the log, not into cells
        self._memory = joblib.Memory(self._folder, mmap_mode="c", compress=False, verbose=0)
        self._remember = self._memory.cache(_remember, ignore=["make"])
        return True

    def trim(self) -> None:
        """Forget the results that were not used for longest, as many as are over the limit."""
        room = self._room()
        if self.size() <= room or not self._open():
            return
        try:
            self._memory.reduce_size(bytes_limit=max(0, room - _OVERHEAD_BYTES))
        except OSError as exc:  # another process trims the same folder
            _log.info("memo.not_trimmed folder=%s %s", self._folder, exc)

    def size(self) -> int:
        """Bytes on disk."""
        return sum(_bytes_of(path) for path in self._folder.rglob("*"))

    def clear(self) -> None:
        """Forget every result."""
        if self._open():
            self._memory.clear(warn=False)

    def __repr__(self) -> str:
        return f"FrameMemo({str(self._folder)!r}, {self.hits} hits)"


def _remember(key: tuple[str | int, ...], make: Callable[[], Any]) -> Any:  # noqa: ARG001
    """What `joblib` memoises; `make` is no part of the key."""
    return make()


@cache
def _versions() -> tuple[str, str]:
    """A frame pickled by another pandas or numpy may not load, or not as it was."""
    from importlib.metadata import version

    return version("pandas"), version("numpy")


def _weigh(result: object) -> int:
    usage = getattr(result, "memory_usage", None)
    return int(usage(index=True).sum()) if callable(usage) else 1 << 20


def _bytes_of(path: Path) -> int:
    try:
        found = path.lstat()
    except OSError:  # trimmed meanwhile
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _make_private(folder: Path) -> None:
    """Make `folder`, readable and writable by this user alone; raise `PermissionError` if others could write to it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"{folder} is not a folder")
    if not hasattr(os, "geteuid"):
        return
    if found.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to another user; results are unpickled from it")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
