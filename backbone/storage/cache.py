"""A byte-bounded, least-recently-used cache with optional expiry. Keys and values are opaque.

The lock guards the map, the byte count and the counters; no caller's code runs under it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import msgspec

from backbone.clock import Clock
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
    """Holds at most `limit_bytes` of values; the least recently used go first. Thread-safe; empty after a
    fork.
    """

    def __init__(self, limit_bytes: int, clock: Clock) -> None:
        self._limit = limit_bytes
        self._clock = clock
        self._renew()
        renew_after_fork(self, MemoryCache._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, tuple[V, int, float | None]] = OrderedDict()
        self._bytes = self._hits = self._misses = self._evictions = 0

    def get(self, key: Hashable) -> V | None:
        """The value, or None where there is none or it has expired."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry[2] is not None and entry[2] <= self._clock.monotonic():
                self._drop_locked(key)
                entry = None
            if entry is None:
                self._misses += 1
                return None
            self._hits += 1
            self._entries.move_to_end(key)
            return entry[0]

    def __contains__(self, key: Hashable) -> bool:
        """Whether `key` is held, expired or not; no use of it, and neither hit nor miss."""
        with self._lock:
            return key in self._entries

    def put(self, key: Hashable, value: V, nbytes: int, ttl_s: float | None = None) -> None:
        """Keep `value`, which weighs `nbytes`, for `ttl_s` seconds at most. One larger than the cache is not
        kept.
        """
        with self._lock:
            self._drop_locked(key)
            if nbytes > self._limit:
                return
            deadline = None if ttl_s is None else self._clock.monotonic() + ttl_s
            self._entries[key] = (value, nbytes, deadline)
            self._bytes += nbytes
            while self._bytes > self._limit:
                self._drop_locked(next(iter(self._entries)))
                self._evictions += 1

    def discard(self, key: Hashable) -> None:
        """Forget `key`, if it is held."""
        with self._lock:
            self._drop_locked(key)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._bytes = 0

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
