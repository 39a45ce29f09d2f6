"""What happened so far, in bounded memory: counters, and distributions of times by group and priority.

A distribution is a histogram of logarithmic buckets (an eighth of an octave, so a percentile is right to 5
%) whose size does not depend on how much was recorded. `Metrics._lock` guards everything and is held for a
few additions only; frames are made of the snapshots elsewhere.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, Self

from backbone.locks import renew_after_fork
from backbone.model import Priority

__all__ = ["Histogram", "Metrics"]

_SMALLEST_S = 1e-6
_PER_OCTAVE = 8
_BUCKETS = 32 * _PER_OCTAVE  # up to 4,000 s
_MOST_NAMES = 500  # counters and distributions that are kept apart; a bug must not grow memory without bound
_REST = "other"


class Histogram:
    """A distribution of durations. Not thread-safe."""

    __slots__ = ("_buckets", "count", "max_s", "total_s")

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.total_s = 0.0
        self.max_s = 0.0

    def add(self, seconds: float) -> None:
        index = 0
        if seconds > _SMALLEST_S:
            index = min(_BUCKETS - 1, 1 + int(math.log2(seconds / _SMALLEST_S) * _PER_OCTAVE))
        self._buckets[index] += 1
        self.count += 1
        self.total_s += seconds
        if seconds > self.max_s:
            self.max_s = seconds

    def merge(self, other: Histogram) -> Self:
        """Add what `other` has; returns itself."""
        self._buckets.update(other._buckets)
        self.count += other.count
        self.total_s += other.total_s
        self.max_s = max(self.max_s, other.max_s)
        return self

    def quantile(self, q: float) -> float:
        """The duration that a share `q` of all stayed at or below, to within 5 %; NaN while empty."""
        if not self.count:
            return math.nan
        left = q * self.count
        for index in sorted(self._buckets):
            left -= self._buckets[index]
            if left <= 0:
                return min(self.max_s, _SMALLEST_S * 2 ** ((index - 0.5) / _PER_OCTAVE)) if index else 0.0
        return self.max_s

    def summary(self) -> dict[str, float | int]:
        """``count mean_s p50_s p95_s p99_s max_s``."""
        return {
            "count": self.count,
            "mean_s": self.total_s / self.count if self.count else math.nan,
            "p50_s": self.quantile(0.5),
            "p95_s": self.quantile(0.95),
            "p99_s": self.quantile(0.99),
            "max_s": self.max_s,
        }


class Metrics:
    """The counters and distributions of one client. Safe to share between threads; a forked child starts at zero."""

    def __init__(self) -> None:
        self._begin()
        renew_after_fork(self, Metrics._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._times: dict[tuple[str, str, str], Histogram] = {}

    def __repr__(self) -> str:
        return f"<Metrics {len(self._counts)} counters, {len(self._times)} distributions>"

    def count(self, name: str, n: int = 1) -> None:
        """Add `n` to a counter, e.g. ``single_flight.hits``, ``cache.memory``."""
        with self._lock:
            if name not in self._counts and len(self._counts) >= _MOST_NAMES:
                name = _REST
            self._counts[name] += n

    def time(self, kind: str, seconds: float, *, group: str = "", priority: Priority | None = None) -> None:
        """Add a duration to the distribution of `kind` (``"waited"``, ``"answered"``, …)."""
        key = (kind, group, priority.value if priority else "")
        with self._lock:
            histogram = self._times.get(key)
            if histogram is None:
                if len(self._times) >= _MOST_NAMES:
                    key = (_REST, "", "")
                histogram = self._times.setdefault(key, Histogram())
            histogram.add(seconds)

    def counter(self, name: str) -> int:
        """The value of one counter; 0 where nothing was counted."""
        with self._lock:
            return self._counts[name]

    def snapshot(self) -> dict[str, Any]:
        """Plain values: ``counters`` by name, ``times`` as one record for each kind and group, each kind and priority,
        and each kind with both."""
        with self._lock:
            counters = dict(sorted(self._counts.items()))
            times = [(key, Histogram().merge(histogram)) for key, histogram in self._times.items()]
        return {"counters": counters, "times": list(_records(times))}


def _records(times: list[tuple[tuple[str, str, str], Histogram]]) -> Iterable[dict[str, Any]]:
    merged: defaultdict[tuple[str, str, str], Histogram] = defaultdict(Histogram)
    for (kind, group, priority), histogram in times:
        for key in {(kind, group, priority), (kind, group, ""), (kind, "", priority)}:
            merged[key].merge(histogram)
    for kind, group, priority in sorted(merged):
        yield {"kind": kind, "group": group, "priority": priority, **merged[kind, group, priority].summary()}
