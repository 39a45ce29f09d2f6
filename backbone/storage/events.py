"""What happened to the markets: a small append-only log beside the candles, shared by processes.

One file an exchange, one JSON object a line, oldest first. A line is appended with one write, so the lines of several
processes do not mix, and a line cut by a crash is skipped by readers and ended by the next writer. It is not synced: a
power cut may lose the newest lines, never an older one. An object store replaces the whole file by compare-and-swap.

A condition of a market (listed, warned, renamed …) that is already the last one known is not written again, so that
processes that notice the same thing do not double it. Reading takes the whole log, in chunks, and after that only what
was added. Of a long log the columns are kept in a file beside it, a cache: the next process reads them, and of the text
what it looks at and what was added since. `_lock` guards what was read.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from backbone.clock import Clock
from backbone.errors import StoreError
from backbone.locks import renew_after_fork
from backbone.storage.event_table import Event, EventTable, encode_events
from backbone.storage.files import Files, Version, retried
from backbone.storage.incidents import Incidents
from backbone.storage.layout import EVENTS, LOCKS

__all__ = ["Event", "Events"]

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 64 << 20
_MANY = 1000  # after so many new lines the columns are kept again
_FAMILIES = {"listed": 0, "delisted": 0, "renamed": 1, "warned": 2, "cautioned": 3, "state": 4}
"""Kinds that state a condition, by what they are a condition of; all others are happenings, each of which counts."""


class Events:
    """The log of one exchange. Thread-safe; several processes may share it. Touches no disk until used."""

    def __init__(self, files: Files, exchange: str, clock: Clock, incidents: Incidents) -> None:
        self._files = files
        self._clock = clock
        self._incidents = incidents
        self._key = f"{EVENTS}/exchange={exchange}.jsonl"
        self._columns_key = f"{EVENTS}/exchange={exchange}.columns"
        self._lock_key = f"{LOCKS}/exchange={exchange}/events.lock"
        self._renew()
        renew_after_fork(self, Events._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._version: Version | None = None
        self._table = EventTable()
        self._kept = 0  # lines of which the columns are
        self._unwritten: list[Event] = []
        self._whole: tuple[EventTable, tuple[Event, ...], EventTable] | None = None  # with what is not written

    def add(
        self, market: str, kind: str, detail: dict[str, Any] | None = None, *, how: str, at_us: int | None = None
    ) -> bool:
        """Append one event; False where it states a condition that is already the last one known of the market.

        A log that cannot be written is an incident, not an error: the event is kept in memory and written with the
        next one.
        """
        event = Event(self._clock.now_us() if at_us is None else at_us, market, kind, detail or {}, how)
        return bool(self.add_all([event]))

    def add_all(self, events: list[Event]) -> int:
        """Append several events in one write, as `add`. Returns how many were new."""
        if not self._new_of(events):
            return 0
        new: list[Event] = []
        waiting: list[Event] = []

        def write() -> None:
            nonlocal new, waiting
            new = self._new_of(events)  # others may have added the same ones meanwhile
            with self._lock:
                waiting = list(self._unwritten)
            if waiting or new:
                self._files.append(self._key, encode_events([*waiting, *new]))

        try:
            retried(self._files, self._lock_key, write)
        except StoreError as exc:
            self._incidents.record("event-not-written", self._files.address(self._key), str(exc))
            new = self._new_of(events)
            with self._lock:
                self._unwritten += new
        else:
            with self._lock:
                self._unwritten = self._unwritten[len(waiting) :]
        return len(new)

    def _new_of(self, events: list[Event]) -> list[Event]:
        """Those of `events` that say something new of their markets."""
        known = self.table()
        newest = known.newest(_FAMILIES)
        last: dict[tuple[str, int], Event | None] = {}
        new: list[Event] = []
        for event in events:
            family = _FAMILIES.get(event.kind)
            if family is not None:
                key = event.market, family
                if key not in last:
                    row = newest[known.markets[event.market], family] if event.market in known.markets else -1
                    last[key] = None if row < 0 else known.event(row)
                before = last[key]
                if before is not None and (before.kind, before.detail) == (event.kind, event.detail):
                    continue
                last[key] = event
            new.append(event)
        return new

    def read(self, market: str | None = None) -> list[Event]:
        """The events (of one market), oldest first, those that could not be written included."""
        return self.table().events(market)

    def table(self) -> EventTable:
        """The whole log, what could not be written included; the same object while nothing is added."""
        table = self._refreshed()
        with self._lock:
            unwritten = tuple(self._unwritten)
            if not unwritten:
                return table
            if self._whole is None or self._whole[:2] != (table, unwritten):
                self._whole = table, unwritten, table.extended(encode_events(unwritten))
            return self._whole[2]

    def _refreshed(self) -> EventTable:
        """What was read, with what was added to the file since."""
        version = self._files.stat(self._key)
        with self._lock:
            table, kept = self._table, self._kept
            if version == self._version:
                return table
            is_same_file = version is not None and self._version is not None and _is_grown(self._version, version)
        if not is_same_file:
            table = self._loaded() if version is not None and version[2] else EventTable()
            kept = len(table)
        while version is not None:
            blob = self._files.part(self._key, table.size, _CHUNK_BYTES)
            if blob is None:
                table, version = EventTable(), None
                break
            is_last = len(blob.data) < _CHUNK_BYTES
            end = blob.data.rfind(b"\n") + 1
            if end or not is_last:  # a last line without an end is left for the next time
                table = table.extended(blob.data[:end] if end else blob.data)
            if is_last:
                version = blob.version
                break
        is_long = len(table) - kept >= _MANY
        with self._lock:
            self._table, self._version, self._kept = table, version, len(table) if is_long else kept
        if is_long:
            self._keep(table)
        return table

    def _loaded(self) -> EventTable:
        """The log as far as its columns are kept; empty where they are not, or are of another log."""
        blob = self._files.read(self._columns_key)
        return (None if blob is None else EventTable.loaded(blob.data, self._text)) or EventTable()

    def _text(self, offset: int, most: int) -> bytes:
        blob = self._files.part(self._key, offset, most)
        return b"" if blob is None else blob.data

    def _keep(self, table: EventTable) -> None:
        try:
            with self._files.exclusive(self._lock_key, timeout_s=0.0):
                self._files.replace(self._columns_key, table.saved())
        except StoreError as exc:  # a folder for reading only, or a full disk: the log itself says all
            _log.info("events.columns_not_kept %s", exc)

    def __repr__(self) -> str:
        return f"Events({self._files.address(self._key)!r})"


def _is_grown(before: Version, after: Version) -> bool:
    """Whether a file may be an earlier one with lines added: a log is never cut, only replaced by another."""
    return after[0] == before[0] and after[2] >= before[2]
