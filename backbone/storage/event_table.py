"""The lines of an event log as columns, so that a question about years of it looks at numbers, not at objects.

A line is an `Event` as JSON. Of each line time, market and kind are decoded; the whole event is decoded when somebody
looks at it. The columns can be kept beside the log, so that the next process does not need all of its text. Pure.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

__all__ = ["Event", "EventTable", "Text", "encode_events"]

_BLOCK_BYTES = 1 << 18
_TAIL_BYTES = 256
_CHECK_BYTES = 4


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


class _Head(msgspec.Struct, gc=False):
    """What the columns have of an event; the other fields are checked when it is looked at."""

    at_us: int
    market: str
    kind: str


_decode = msgspec.json.Decoder(Event).decode
_decode_head = msgspec.json.Decoder(_Head).decode


def encode_events(events: Iterable[Event]) -> bytes:
    """The lines of events."""
    return b"".join(msgspec.json.encode(event) + b"\n" for event in events)


class Text:
    """The first ``size`` bytes of a log, read as far as they are looked at.

    Parameters
    ----------
    read : the bytes from an offset on, at most so many; fewer where the log has no more.
    """

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._read = read
        self._blocks: dict[int, bytes] = {}

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        first, last = part.start // _BLOCK_BYTES, max(part.start, part.stop - 1) // _BLOCK_BYTES
        data = b"".join([self._block(number) for number in range(first, last + 1)])  # one block is not copied
        return data[part.start - first * _BLOCK_BYTES : part.stop - first * _BLOCK_BYTES]

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            self._blocks[number] = self._read(number * _BLOCK_BYTES, _BLOCK_BYTES)
        return self._blocks[number]


class _Saved(msgspec.Struct, array_like=True):
    """Columns as they are kept: ``size`` bytes of a log, which end with ``tail``."""

    size: int
    tail: bytes
    markets: list[str]
    kinds: list[str]
    at_us: bytes
    market: bytes
    kind: bytes
    start: bytes
    end: bytes


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
        self._pieces: tuple[bytes | Text, ...] = ()
        self._piece, self._start, self._end = np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.at_us)

    def saved(self) -> bytes:
        """The columns, for `loaded`."""
        bases = np.cumsum([0, *map(len, self._pieces)])[self._piece]
        last = self._pieces[-1] if self._pieces else b""
        columns = self.at_us, self.market, self.kind, self._start + bases, self._end + bases
        little = [column.astype(column.dtype.newbyteorder("<"), copy=False).tobytes() for column in columns]
        tail = last[max(0, len(last) - _TAIL_BYTES) : len(last)]
        data = msgspec.msgpack.encode(_Saved(self.size, tail, list(self.markets), list(self.kinds), *little))
        return zlib.adler32(data).to_bytes(_CHECK_BYTES, "little") + data

    @classmethod
    def loaded(cls, data: bytes, read: Callable[[int, int], bytes]) -> EventTable | None:
        """The table that was `saved`; `read` gives the log's text, as for `Text`.

        None where what was saved is damaged, or of another log.
        """
        if zlib.adler32(memoryview(data)[_CHECK_BYTES:]) != int.from_bytes(data[:_CHECK_BYTES], "little"):
            return None
        try:
            found = msgspec.msgpack.decode(memoryview(data)[_CHECK_BYTES:], type=_Saved)
        except msgspec.MsgspecError:
            return None
        if read(found.size - len(found.tail), len(found.tail)) != found.tail:
            return None
        table = cls()
        table.size, table._pieces = found.size, (Text(found.size, read),)
        table.markets = {market: place for place, market in enumerate(found.markets)}
        table.kinds = {kind: place for place, kind in enumerate(found.kinds)}
        table.at_us = np.frombuffer(found.at_us, "<i8")
        table.market, table.kind = np.frombuffer(found.market, "<i4"), np.frombuffer(found.kind, "<i4")
        table._start, table._end = np.frombuffer(found.start, "<i8"), np.frombuffer(found.end, "<i8")
        table._piece = np.zeros(len(table), np.int32)
        return table

    def extended(self, data: bytes) -> EventTable:
        """With the lines of `data`, which follows; each ends, and lines that a crash cut short are left out."""
        table = EventTable()
        table.size, table._pieces = self.size + len(data), (*self._pieces, data)
        table.markets, table.kinds = dict(self.markets), dict(self.kinds)
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
        starts = np.concatenate([[0], ends + 1])[:-1]
        columns: list[Any] = [
            *table._read(data, len(ends)),
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

    def _read(self, data: bytes, count: int) -> tuple[Any, Any, Any]:
        """Time, market and kind of each line; kind -1 for one that is no event."""
        at_us, market, kind = [0] * count, [0] * count, [-1] * count
        for row, line in enumerate(data.split(b"\n", count)[:count]):
            try:
                head = _decode_head(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            at_us[row] = head.at_us
            market[row] = self.markets.setdefault(head.market, len(self.markets))
            kind[row] = self.kinds.setdefault(head.kind, len(self.kinds))
        return np.array(at_us, np.int64), np.array(market, np.int32), np.array(kind, np.int32)

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
        """The event of a line; None for one that a crash cut short, or that the log has no more."""
        event = _event(self._pieces[self._piece[row]][self._start[row] : self._end[row]])
        return event if event is not None and event.at_us == self.at_us[row] else None

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
