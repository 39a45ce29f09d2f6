"""Whole series moved, listed and thrown away: what is held, quarantine, removal. Nothing here is on an answer's way.

A quarantine has a name and is a data folder of its own, ``_quarantine/<name>/``: clients open it with ``data_dir=``.
The sidecar goes first, then file by file, each in one step under the series lock: a crash leaves the rest where it was,
and nothing covered without its rows. Other processes notice, because a file that is gone is no longer in the version
that they read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import NamedTuple

import msgspec

from backbone.clock import Clock
from backbone.errors import InputError
from backbone.storage import audit
from backbone.storage.coverage import EVER
from backbone.storage.events import Events
from backbone.storage.files import Files, retried
from backbone.storage.layout import QUARANTINE, Series
from backbone.storage.partition import TAIL_BYTES, peek_footer
from backbone.storage.pending import PendingPages
from backbone.storage.periods import Periods
from backbone.timeframe import Timeframe

__all__ = ["Holding", "Upkeep"]

_NAME = re.compile(r"[\w][\w .@+-]{0,99}")
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{device}{n}" for device in ("COM", "LPT") for n in range(1, 10))}


class Holding(NamedTuple):
    """What is on disk of one series. ``end_us`` is the end of the last candle; ``holes`` counts unknown spans between
    the first candle and the last."""

    market: str
    timeframe: Timeframe
    start_us: int | None
    end_us: int | None
    rows: int
    holes: int
    bytes: int


class Upkeep:
    """Series of one exchange as wholes. Thread-safe; it lists folders."""

    def __init__(
        self,
        files: Files,
        exchange: str,
        clock: Clock,
        *,
        pending: PendingPages,
        periods: Periods,
        events: Events,
        flush: Callable[[], None],
    ) -> None:
        self._files = files
        self._exchange = exchange
        self._clock = clock
        self._pending = pending
        self._periods = periods
        self._events = events
        self._flush = flush

    def inventory(self) -> list[Holding]:
        """What is on disk, a line a series, by market and timeframe, going by the files' footers."""
        self._flush()
        found = sorted(audit.series_in(self._files, self._exchange), key=lambda s: (s.market, s.timeframe.step_us))
        return [self._holding(series) for series in found]

    def _holding(self, series: Series) -> Holding:
        periods = self._periods.with_file(series, EVER)
        rows = size = 0
        for period in periods:
            key = series.key(period)
            size += self._files.size(key)
            footer = peek_footer(self._files.tail(key, TAIL_BYTES) or b"")
            rows += footer[0] if footer else self._periods.load(series, period).table.num_rows
        bounds = self._bounds(series)
        holes = 0
        if bounds is not None:
            covered = self._periods.footer_coverage(series, EVER).covered.clip(bounds)
            holes = max(0, len(covered) - 1)
        start, end = bounds or (None, None)
        return Holding(series.market, series.timeframe, start, end, rows, holes, size)

    def _bounds(self, series: Series) -> tuple[int, int] | None:
        """From the first candle's open to the last one's end."""
        periods = self._periods.with_file(series, EVER)
        first = last = None
        for period in periods:
            times = self._periods.load(series, period).times
            if len(times):
                first = int(times[0])
                break
        for period in reversed(periods):
            times = self._periods.load(series, period).times
            if len(times):
                last = series.timeframe.next(int(times[-1]))
                break
        return None if first is None or last is None else (first, last)

    def quarantine(
        self, market: str, timeframe: Timeframe | None = None, *, name: str | None = None, how: str = "user"
    ) -> str:
        """Move a market (one timeframe of it) out of the data, as it is. Nothing of it is held afterwards.

        Pages of it that are not on disk yet are written first, and go along. Returns the address of the folder that
        holds it now, which any client opens with ``data_dir=``.
        """
        chosen = self._of(market, timeframe)
        self._flush()
        name = self._free(market) if name is None else _checked(name, self._files.list(QUARANTINE))
        for series in chosen:
            retried(self._files, series.lock_key, lambda: self._move(series, f"{QUARANTINE}/{name}"))  # noqa: B023
        where = str(self._files.path(f"{QUARANTINE}/{name}"))
        detail = {"name": name, "timeframes": [series.timeframe.name for series in chosen]}
        self._events.add(market, "quarantined", detail, how=how)
        return where

    def _free(self, market: str) -> str:
        """A name for a quarantine that no other has."""
        taken, number = set(self._files.list(QUARANTINE)), self._clock.now_us()
        while f"{market}-{number}" in taken:
            number += 1
        return f"{market}-{number}"

    def _move(self, series: Series, target: str) -> None:
        self._pending.discard([series])  # what came since the flush is of the old state too
        keys = [series.quiet_key, series.taken_key]
        keys += [series.key(period) for period in self._periods.with_file(series, EVER)]
        for key in keys:
            if self._files.stat(key) is not None:
                self._files.move(key, f"{target}/{key}")
        self._files.prune(series.folder)

    def remove(self, market: str, timeframe: Timeframe | None = None, *, for_good: bool = False) -> str | None:
        """Take a market (one timeframe of it) away: into quarantine, or for good. Returns where it went."""
        where = self.quarantine(market, timeframe)
        if not for_good:
            return where
        self._delete(f"{QUARANTINE}/{where.rsplit('/', 1)[-1]}")
        return None

    def clear(self) -> tuple[int, int]:
        """Delete the whole quarantine, of every exchange. Returns files and bytes."""
        return self._delete(QUARANTINE)

    def _delete(self, folder: str) -> tuple[int, int]:
        count = size = 0
        for key in list(self._files.walk(folder)):
            count, size = count + 1, size + self._files.size(key)
            self._files.remove(key)
        self._files.prune(folder)
        return count, size

    def quarantined(self) -> list[tuple[str, int, int]]:
        """Name, files and bytes of each quarantine."""
        found = []
        for name in self._files.list(QUARANTINE):
            sizes = [self._files.size(key) for key in self._files.walk(f"{QUARANTINE}/{name}")]
            if sizes:
                found.append((name, len(sizes), sum(sizes)))
        return found

    def _of(self, market: str, timeframe: Timeframe | None) -> list[Series]:
        held = {*audit.series_in(self._files, self._exchange), *self._pending.series()}
        chosen = [s for s in held if s.market == market and timeframe in (None, s.timeframe)]
        if not chosen:
            stored = sorted({s.market if s.market != market else f"{market} {s.timeframe.name}" for s in held})
            shown = ", ".join(stored[:8]) + ("…" if len(stored) > 8 else "")
            what = market if timeframe is None else f"{market} {timeframe.name}"
            raise InputError("market", what, f"something that is stored: {shown or 'so far nothing'}")
        return sorted(chosen, key=lambda s: s.timeframe.step_us)

    def other_exchanges(self) -> list[str]:
        """The other exchanges of which the folder holds candles."""
        names = {key.removeprefix("exchange=") for key in self._files.list("candles")}
        return sorted(names - {self._exchange})

    # -- what was read of a bulk archive

    def note_files(self, market: str, timeframe: Timeframe, taken: dict[str, str]) -> None:
        """Note the files of a bulk archive whose candles were put, with their checksums. A note covers nothing."""
        series = Series(self._exchange, market, timeframe)

        def write() -> None:
            noted = self.noted_files(market, timeframe) | taken
            self._files.replace(series.taken_key, msgspec.json.encode(noted))

        retried(self._files, series.lock_key, write)

    def noted_files(self, market: str, timeframe: Timeframe) -> dict[str, str]:
        """The noted files and their checksums; none where the note is lost or damaged."""
        blob = self._files.read(Series(self._exchange, market, timeframe).taken_key)
        if blob is None:
            return {}
        try:
            return msgspec.json.decode(blob.data, type=dict[str, str])
        except msgspec.MsgspecError:
            return {}


def _checked(name: str, taken: Collection[str]) -> str:
    """A name that is a folder's on every system, and that no other has."""
    is_good = isinstance(name, str) and _NAME.fullmatch(name) is not None and not name.endswith((" ", "."))
    if not is_good or name.partition(".")[0].upper() in _RESERVED:
        raise InputError("name", name, "letters, digits, spaces and . _ @ + -, at most 100, such as paper-1")
    if name in taken or name == DAMAGED:
        raise InputError("name", name, f"a new name; there are {', '.join(sorted(taken))}")
    return name
