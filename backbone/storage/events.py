"""What happened to the markets: a small append-only log beside the candles, shared by processes.

One file an exchange, one JSON object a line, oldest first. A line is appended with one write, so the lines of several
processes do not mix, and a line cut by a crash is skipped by readers and ended by the next writer. It is not synced: a
power cut may lose the newest lines, never an older one. An object store replaces the whole file by compare-and-swap.

A condition of a market (listed, warned, renamed …) that is already the last one known is not written again, so that
processes that notice the same thing do not double it. Reading takes the whole log, in chunks, and after that only what
was added. `_lock` guards what was parsed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from backbone.clock import Clock
from backbone.errors import StoreError
from backbone.locks import renew_after_fork
from backbone.storage.files import Files, Version, retried
from backbone.storage.incidents import Incidents
from backbone.storage.layout import EVENTS, LOCKS

__all__ = ["Event", "Events"]

_CHUNK_BYTES = 4 << 20
_FAMILIES = {
    "listed": "listing", "delisted": "listing", "renamed": "name", "warned": "warning", "cautioned": "caution",
    "state": "state",
}  # fmt: skip
"""Kinds that state a condition, by what they are a condition of; all others are happenings, each of which counts."""


class Event(msgspec.Struct, frozen=True):
    """One thing that happened to a market.

    at_us : when it was noticed, microseconds UTC.
    kind : listed, delisted, renamed, warned, cautioned, redenominated, restated, adopted, quarantined, removed …
    detail : JSON-safe facts.
    how : how it is known, such as ``"market list"`` or ``"overlap of pages"``.
    """

    at_us: int
    market: str
    kind: str
    detail: dict[str, Any]
    how: str


class Events:
    """The log of one exchange. Thread-safe; several processes may share it. Touches no disk until used."""

    def __init__(self, files: Files, exchange: str, clock: Clock, incidents: Incidents) -> None:
        self._files = files
        self._clock = clock
        self._incidents = incidents
        self._key = f"{EVENTS}/exchange={exchange}.jsonl"
        self._lock_key = f"{LOCKS}/exchange={exchange}/events.lock"
        self._renew()
        renew_after_fork(self, Events._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._version: Version | None = None
        self._parsed = _Parsed()
        self._unwritten: list[Event] = []

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
        parsed = self._refreshed()
        with self._lock:
            last = dict(parsed.last)
            last.update(_conditions(self._unwritten))
        new: list[Event] = []
        for event in events:
            family = _FAMILIES.get(event.kind)
            known = None if family is None else last.get((event.market, family))
            if known is not None and (known.kind, known.detail) == (event.kind, event.detail):
                continue
            if family is not None:
                last[event.market, family] = event
            new.append(event)
        if new:
            self._append(new)
        return len(new)

    def _append(self, new: list[Event]) -> None:
        with self._lock:
            self._unwritten += new
            waiting = list(self._unwritten)
        data = b"".join(msgspec.json.encode(event) + b"\n" for event in waiting)
        try:
            retried(self._files, self._lock_key, lambda: self._files.append(self._key, data))
        except StoreError as exc:
            self._incidents.record("event-not-written", str(self._files.path(self._key)), str(exc))
            return
        with self._lock:
            self._unwritten = self._unwritten[len(waiting) :]

    def read(self, market: str | None = None) -> list[Event]:
        """The events (of one market), oldest first, those that could not be written included."""
        parsed = self._refreshed()
        with self._lock:
            events = [*parsed.events, *self._unwritten]
        return events if market is None else [event for event in events if event.market == market]

    def _refreshed(self) -> _Parsed:
        """What was parsed, with what was added to the file since."""
        version = self._files.stat(self._key)
        with self._lock:
            parsed = self._parsed
            if version == self._version:
                return parsed
            is_same_file = version is not None and self._version is not None and _is_grown(self._version, version)
        if not is_same_file:
            parsed = _Parsed()
        while version is not None:
            blob = self._files.read_from(self._key, parsed.size, _CHUNK_BYTES)
            if blob is None:
                parsed, version = _Parsed(), None
                break
            parsed = parsed.extended(blob.data)
            if len(blob.data) < _CHUNK_BYTES:
                version = blob.version
                break
        with self._lock:
            self._parsed, self._version = parsed, version
        return parsed

    def __repr__(self) -> str:
        return f"Events({str(self._files.path(self._key))!r})"


class _Parsed(msgspec.Struct, frozen=True):
    """The events of a file's first `size` bytes, and the last condition known of each market."""

    events: tuple[Event, ...] = ()
    size: int = 0
    last: Mapping[tuple[str, str], Event] = msgspec.field(default_factory=dict)

    def extended(self, data: bytes) -> _Parsed:
        """With the whole lines of `data`, which follows; a last line without an end is left for the next time."""
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) < _CHUNK_BYTES:
            return self
        whole = data[: end or len(data)]
        new = tuple(event for line in whole.split(b"\n") if line and (event := _parse(line)) is not None)
        return _Parsed(self.events + new, self.size + len(whole), {**self.last, **_conditions(new)})


def _conditions(events: Iterable[Event]) -> dict[tuple[str, str], Event]:
    return {(event.market, _FAMILIES[event.kind]): event for event in events if event.kind in _FAMILIES}


def _is_grown(before: Version, after: Version) -> bool:
    """Whether a file may be an earlier one with lines added: a log is never cut, only replaced by another."""
    return after[0] == before[0] and after[2] >= before[2]


def _parse(line: bytes) -> Event | None:
    """The event of a line; None for one that a crash cut short."""
    try:
        return msgspec.json.decode(line, type=Event)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
