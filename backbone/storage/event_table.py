"""The lines of an event log as columns, so that a question about years of it looks at numbers, not at objects.

A line is what `Event` is as JSON, its fields in order; ``at_us`` has sixteen digits from 2001 on. Time, market and kind
of each line are cut out by Arrow without decoding it; a line that looks otherwise is decoded. An event is decoded when
somebody looks at it. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

__all__ = ["Event", "EventTable", "encode_events"]

_TIME = (len('{"at_us":'), len('{"at_us":') + 16)
_NAMES = (_TIME[1], _TIME[1] + 48)
_FEW = 500  # so many lines are decoded sooner than Arrow's functions are imported
_NAMES_FORM = re.compile(rb',"market":"([^"\\]*)","kind":"([^"\\]*)"')


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


_decode = msgspec.json.Decoder(Event).decode


def encode_events(events: Iterable[Event]) -> bytes:
    """The lines of events."""
    return b"".join(msgspec.json.encode(event) + b"\n" for event in events)


class EventTable:
    """The events of a log's first ``size`` bytes, in its order. It never changes.

    Attributes
    ----------
    at_us, market, kind : a number a line: the time, and places in ``markets`` and ``kinds``.
    """

    def __init__(self) -> None:
        self.size = 0
        self.markets: dict[str, int] = {}
        self.kinds: dict[str, int] = {}
        self.at_us, self.market, self.kind = np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int32)
        self._pieces: tuple[bytes, ...] = ()
        self._piece, self._start, self._end = np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.at_us)

    def extended(self, data: bytes) -> EventTable:
        """With the lines of `data`, which follows; each ends, and lines that a crash cut short are left out."""
        table = EventTable()
        table.size, table._pieces = self.size + len(data), (*self._pieces, data)
        table.markets, table.kinds = dict(self.markets), dict(self.kinds)
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        starts = np.concatenate([[0], ends + 1])[:-1]
        columns: list[Any] = [
            *table._read(data, starts, ends),
            np.full(len(ends), len(self._pieces), np.int32),
            starts,
            ends,
        ]
        if (is_none := columns[2] < 0).any():
            columns = [column[~is_none] for column in columns]
        mine: tuple[Any, ...] = (self.at_us, self.market, self.kind, self._piece, self._start, self._end)
        joined = [np.concatenate(pair) for pair in zip(mine, columns, strict=True)]
        table.at_us, table.market, table.kind, table._piece, table._start, table._end = joined
        return table

    def _read(self, data: bytes, starts: Any, ends: Any) -> tuple[Any, Any, Any]:
        """Time, market and kind of each line; kind -1 for one that is no event."""
        count = len(ends)
        at_us, market, kind = np.zeros(count, np.int64), np.zeros(count, np.int32), np.full(count, -1, np.int32)
        usual = (ends - starts > _NAMES[1]) & (np.frombuffer(data, np.uint8)[ends - 1] == ord("}"))
        if np.count_nonzero(usual) > _FEW:
            import pyarrow.compute as pc

            offsets = pa.py_buffer(np.append(starts, len(data)).astype(np.int32))
            lines = pa.BinaryArray.from_buffers(pa.binary(), count, [None, offsets, pa.py_buffer(data)])
            lines = lines if usual.all() else lines.filter(pa.array(usual))
            names = pc.binary_slice(lines, *_NAMES).dictionary_encode()
            found = [self._places_in(text) for text in names.dictionary.to_pylist()]
            market[usual], kind[usual] = np.array(found, np.int32)[names.indices.to_numpy()].T
            try:
                at_us[usual] = pc.binary_slice(lines, *_TIME).cast(pa.string()).cast(pa.int64()).to_numpy()
            except pa.ArrowInvalid:
                kind[usual] = -1
        for row in np.flatnonzero(kind < 0).tolist():
            event = _event(data[starts[row] : ends[row]])
            if event is not None:
                at_us[row] = event.at_us
                market[row], kind[row] = self._places(event.market, event.kind)
        return at_us, market, kind

    def _places_in(self, text: bytes) -> tuple[int, int]:
        found = _NAMES_FORM.match(text)
        return (-1, -1) if found is None else self._places(*(str(name, "utf-8", "replace") for name in found.groups()))

    def _places(self, market: str, kind: str) -> tuple[int, int]:
        return self.markets.setdefault(market, len(self.markets)), self.kinds.setdefault(kind, len(self.kinds))

    def newest(self, classes: Mapping[str, int], rows: Any = None) -> Any:
        """The last line of each market and class of kinds, a row a market; -1 where there is none.

        Parameters
        ----------
        classes : the class of each kind that counts, from 0 on.
        rows : the lines that count, in the order that counts; default: all.
        """
        found = np.full((len(self.markets), max(classes.values()) + 1), -1, np.int64)
        of_kind = np.array([classes.get(kind, -1) for kind in self.kinds] or [-1], np.int32)
        rows = np.arange(len(self)) if rows is None else rows
        chosen = of_kind[self.kind[rows]]
        rows, chosen = rows[chosen >= 0], chosen[chosen >= 0]
        found[self.market[rows], chosen] = rows  # of several the last one stays
        return found

    def event(self, row: int) -> Event | None:
        """The event of a line; None for one that a crash cut short."""
        return _event(self._pieces[self._piece[row]][self._start[row] : self._end[row]])

    def events(self, market: str | None = None) -> list[Event]:
        """The events (of one market), in the log's order."""
        rows: Sequence[int] = range(len(self))
        if market is not None:
            rows = np.flatnonzero(self.market == self.markets.get(market, -1)).tolist()
        return [event for row in rows if (event := self.event(row)) is not None]


def _event(line: bytes) -> Event | None:
    try:
        return _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
