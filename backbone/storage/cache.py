"""A byte-bounded, least-recently-used cache. Keys and values are opaque.

The lock guards the map, the byte count and the counters; no caller's code runs under it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import msgspec

from backbone.locks import renew_after_fork

__all__ = ["MemoryCache", "MemoryStats"]

V = TypeVar("V")


class MemoryStats(msgspec.Struct, frozen=True):
    """Counters since the start, and what is held now."""

    hits: int
    misses: int
    evictions: int
    entries: int
    bytes: int
    limit_bytes: int


class MemoryCache(Generic[V]):
    """Holds at most `limit_bytes` of values; the least recently used go first. Thread-safe; empty after a fork."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._renew()
        renew_after_fork(self, MemoryCache._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self._bytes = self._hits = self._misses = self._evictions = 0

    def get(self, key: Hashable) -> V | None:
        """The value, or None where there is none."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self._misses += 1
                return None
            self._hits += 1
            self._entries.move_to_end(key)
            return entry[0]

    def __contains__(self, key: Hashable) -> bool:
        """Whether `key` is held; no use of it, and neither hit nor miss."""
        with self._lock:
            return key in self._entries

    def put(self, key: Hashable, value: V, nbytes: int) -> None:
        """Keep `value`, which weighs `nbytes`. One larger than the cache is not kept."""
        with self._lock:
            self._drop_locked(key)
            if nbytes > self._limit:
                return
            self._entries[key] = (value, nbytes)
            self._bytes += nbytes
            while self._bytes > self._limit:
                self._drop_locked(next(iter(self._entries)))
                self._evictions += 1

    def _drop_locked(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry[1]

    def stats(self) -> MemoryStats:
        with self._lock:
            return MemoryStats(self._hits, self._misses, self._evictions, len(self._entries), self._bytes, self._limit)

    def __repr__(self) -> str:
        now = self.stats()
        used, limit = now.bytes / 2**20, now.limit_bytes / 2**20
        return f"MemoryCache({now.entries} entries, {used:.1f} of {limit:.0f} MiB)"
