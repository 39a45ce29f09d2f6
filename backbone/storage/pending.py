"""Pages that are not on disk yet, and when they are due to be written. `_lock` guards all of it; no I/O here.

A series is written 0.8 s after its first waiting page, or sooner when many rows wait. One thread at a time
writes a series for a `put`: a page that comes meanwhile waits for the next write instead of holding its thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec

from backbone.clock import Clock
from backbone.errors import ClosedError
from backbone.locks import renew_after_fork
from backbone.model import Span
from backbone.storage.layout import Series
from backbone.storage.merge import Page
from backbone.timeframe import Timeframe

__all__ = ["PendingPages"]

_MAX_ROWS = 20_000  # of one series; more are written at once


class _Waiting(msgspec.Struct):
    """The pages of one series, oldest first, and since when the first of them waits."""

    pages: list[Page] = msgspec.field(default_factory=list)
    rows: int = 0
    since_s: float = 0.0


class PendingPages:
    """The pages of one store that are in memory only. Thread-safe.

    A forked child starts without any: the parent's are the parent's to write.
    """

    def __init__(self, clock: Clock, group_commit_s: float) -> None:
        self._clock = clock
        self._group_commit_s = group_commit_s
        self._closed = False
        self._renew()
        renew_after_fork(self, PendingPages._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[Series, _Waiting] = {}
        self._committing: set[Series] = set()
        self._retry_s = 0.0

    @contextmanager
    def added(self, series: Series, page: Page) -> Iterator[list[Series]]:
        """Add a page; yields the series that the caller must write now, which are its own until the block ends."""
        now_s = self._clock.monotonic()
        with self._lock:
            if self._closed:
                raise ClosedError("the store is closed")
            waiting = self._waiting.setdefault(series, _Waiting(since_s=now_s))
            waiting.pages.append(page)
            waiting.rows += page.table.num_rows
            due = self._due_locked(now_s)
            self._committing.update(due)
        try:
            yield due
        finally:
            with self._lock:
                self._committing.difference_update(due)

    def _due_locked(self, now_s: float) -> list[Series]:
        if now_s < self._retry_s:
            return []
        return [
            series
            for series, waiting in self._waiting.items()
            if series not in self._committing
            if waiting.rows >= _MAX_ROWS or now_s - waiting.since_s >= self._group_commit_s
        ]

    def of(self, series: Series, span: Span) -> list[Page]:
        """The pages of a series that say something about `span`, oldest first."""
        with self._lock:
            waiting = self._waiting.get(series)
            pages = list(waiting.pages) if waiting else []
        return [page for page in pages if page.proof.touches(span)]

    def series(self, market: str | None = None, timeframe: Timeframe | None = None) -> list[Series]:
        """The series that have pages here (of one market, of one timeframe)."""
        with self._lock:
            held = list(self._waiting)
        return [one for one in held if market in (None, one.market) and timeframe in (None, one.timeframe)]

    def written(self, series: Series, count: int, began_s: float) -> None:
        """Forget the oldest `count` pages, on disk since a write that began at `began_s`: later ones wait from then.

        For the holder of the series lock.
        """
        with self._lock:
            waiting = self._waiting[series]
            waiting.pages = waiting.pages[count:]
            waiting.rows = sum(page.table.num_rows for page in waiting.pages)
            waiting.since_s = began_s
            if not waiting.pages:
                del self._waiting[series]

    def failed(self, series: Series) -> int:
        """A write failed: no `added` names a series for a while. Returns the rows of `series` that are kept."""
        with self._lock:
            self._retry_s = self._clock.monotonic() + self._group_commit_s
            waiting = self._waiting.get(series)
            return waiting.rows if waiting else 0

    def discard(self, chosen: Iterable[Series]) -> None:
        """Forget all pages of some series, unwritten."""
        with self._lock:
            for series in chosen:
                self._waiting.pop(series, None)

    def rows(self) -> int:
        """Rows that are in memory only."""
        with self._lock:
            return sum(waiting.rows for waiting in self._waiting.values())

    def close(self) -> None:
        """Take no more."""
        with self._lock:
            self._closed = True
