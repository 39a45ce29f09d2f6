"""Whole series moved, listed and thrown away: what is held, quarantine, removal. Nothing here is on an answer's way.

A quarantine has a name and is a data folder of its own, ``_quarantine/<name>/``: clients open it with ``data_dir=``.
The sidecar goes first, then file by file, each in one step under the series lock: a crash leaves the rest where it was,
and nothing covered without its rows. Other processes notice, because a file that is gone is no longer in the version
that they read. A market as a whole leaves in one step for every reader: see `backbone.storage.generations`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from backbone.candle_table import times_of
from backbone.clock import Clock
from backbone.errors import CorruptPartitionError, InputError, StoreError
from backbone.model import Span
from backbone.storage.coverage import EVER, VENUE, SpanSet
from backbone.storage.events import Events
from backbone.storage.files import Files, retried, snapshot_error
from backbone.storage.generations import Generation, Generations, Note
from backbone.storage.layout import CANDLES, DAMAGED, EVENTS, QUARANTINE, QUIET, SNAPSHOTS, Series, parse_partition_key
from backbone.storage.partition import decode_partition
from backbone.storage.pending import PendingPages
from backbone.storage.periods import Periods, series_in
from backbone.timeframe import DAY_US, TIMEFRAMES, Timeframe

if TYPE_CHECKING:
    from backbone.storage.audit import Problem

__all__ = ["Condition", "Holding", "Snapshot", "Upkeep"]

_MARK = "_snapshot.json"
_NO_TIMES = np.empty(0, np.int64)

_NAME = re.compile(r"[\w][\w .@+-]{0,99}")
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{device}{n}" for device in ("COM", "LPT") for n in range(1, 10))}


class Holding(NamedTuple):
    """What is on disk of one series.

    ``end_us`` is the end of the last candle; ``holes`` counts unknown spans between the first candle and the last.
    """

    market: str
    timeframe: Timeframe
    start_us: int | None
    end_us: int | None
    rows: int
    holes: int
    bytes: int


class Snapshot(NamedTuple):
    """One finished snapshot; ``content`` is a hash of its rows."""

    name: str
    at_us: int
    path: str
    rows: int
    content: str


class Condition(NamedTuple):
    """One day (month) of a series, in candle slots.

    rows : candles held.
    quiet : slots without trades.
    unknown : slots that were never received.
    provisional : slots that are to be confirmed.
    revisions : candles that were revised.
    source : where the held slots came from, the most frequent first.
    """

    start_us: int
    rows: int
    quiet: int
    unknown: int
    provisional: int
    revisions: int
    source: str


class _Mark(msgspec.Struct, frozen=True, kw_only=True):
    at_us: int
    rows: int
    content: str = ""


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
        generations: Generations,
        flush: Callable[[], None],
    ) -> None:
        self._files = files
        self._exchange = exchange
        self._clock = clock
        self._pending = pending
        self._periods = periods
        self._events = events
        self._generations = generations
        self._flush = flush

    def inventory(self) -> list[Holding]:
        """What is on disk, a line a series, by market and timeframe, going by the files' footers."""
        self._flush()
        found = sorted(series_in(self._files, self._exchange), key=lambda s: (s.market, s.timeframe.step_us))
        return [self._holding(series) for series in found]

    def _holding(self, series: Series) -> Holding:
        periods = self._periods.with_file(series, EVER)
        rows = size = 0
        for period in periods:
            size += self._files.size(series.key(period))
            rows += self._periods.footer(series, period)[0]
        start = self._end_open(series, periods, 0)
        newest = self._end_open(series, periods[::-1], -1)
        if start is None or newest is None:
            return Holding(series.market, series.timeframe, None, None, rows, 0, size)
        end = series.timeframe.next(newest)
        covered = self._periods.footer_coverage(series, EVER).covered.clip((start, end))
        return Holding(series.market, series.timeframe, start, end, rows, max(0, len(covered) - 1), size)

    def _end_open(self, series: Series, periods: Iterable[Span], at: int) -> int | None:
        """The open at index `at` of the first of `periods` that has candles."""
        every = (self._periods.load(series, period).times for period in periods)
        return next((int(times[at]) for times in every if len(times)), None)

    def quarantine(
        self, market: str, timeframe: Timeframe | None = None, *, name: str | None = None, how: str = "user"
    ) -> str:
        """Move a market (one timeframe of it) out of the data, as it is. Nothing of it is held afterwards.

        Pages of it that are not on disk yet are written first, and go along; of a whole market, pages that are still
        on their way, in any process, are not stored when they arrive. Returns the address of the folder that holds it
        now, which any client opens with ``data_dir=``.
        """
        if timeframe is None:
            return self.quarantine_market(market, name=name, how=how)
        chosen = self._of(market, timeframe)
        self._flush()
        name = self._free(market) if name is None else _checked(name, self._files.list(QUARANTINE))
        for series in chosen:
            retried(self._files, series.lock_key, lambda: self._move(series, name))  # noqa: B023
        detail = {"name": name, "timeframes": [series.timeframe.name for series in chosen]}
        self._events.add(market, "quarantined", detail, how=how)
        return self.quarantine_path(name)

    def quarantine_path(self, name: str) -> str:
        """The address of a quarantine's folder."""
        return self._files.address(f"{QUARANTINE}/{name}")

    def quarantine_market(
        self, market: str, *, name: str | None = None, how: str, note: Note | None = None, after: int | None = None
    ) -> str:
        """Quarantine all of a market, and note what else happened to it.

        after : the generation that is meant; where another process was faster, nothing is done.

        Returns the address, empty where nothing was done.
        """
        self.end_move(market)
        if after not in (None, self._generations.of(market).number):
            return ""
        chosen = self._of(market, None)
        self._flush()
        name = self._free(market) if name is None else _checked(name, self._files.list(QUARANTINE))
        where = self.quarantine_path(name)
        detail = {"name": name, "timeframes": [series.timeframe.name for series in chosen]}
        notes = [Note("quarantined", detail, how)]
        if note is not None:
            notes.insert(0, Note(note.kind, {**note.detail, "name": name, "where": where}, note.how))
        is_mine = self._generations.begin(market, name, tuple(notes), after)
        self.end_move(market)
        return where if is_mine else ""

    def end_move(self, market: str) -> int:
        """See that the files of a market that is being quarantined, here or elsewhere, are all in their quarantine.

        Returns the number of its generation then.
        """
        while (now := self._generations.of(market)).leaving:
            for timeframe in TIMEFRAMES.values():  # each: whoever is about to write a new one has to be waited for
                series = Series(self._exchange, market, timeframe)
                retried(self._files, series.lock_key, lambda: self._move_on(series, now))  # noqa: B023
            known = {(event.kind, str(event.detail)) for event in self._events.read(market)}
            for note in now.notes:
                if (note.kind, str(note.detail)) not in known:
                    self._events.add(market, note.kind, note.detail, how=note.how)
            self._generations.end(market, now.number)
        return now.number

    def end_moves(self) -> None:
        """See that no market is on its way to quarantine."""
        for market in self._generations.leaving():
            self.end_move(market)

    def _move_on(self, series: Series, generation: Generation) -> None:
        if self._generations.of(series.market) == generation:
            self._move(series, generation.leaving)

    def _free(self, market: str) -> str:
        """A name for a quarantine that no other has."""
        taken, number = set(self._files.list(QUARANTINE)), self._clock.now_us()
        while f"{market}-{number}" in taken:
            number += 1
        return f"{market}-{number}"

    def _move(self, series: Series, name: str) -> None:
        self._pending.discard([series])  # what came since the flush is of the old state too
        for key in [*series.sidecar_keys, *self._files.walk(series.folder)]:
            if self._files.stat(key) is not None:
                self._files.move(key, f"{QUARANTINE}/{name}/{key}")
        self._files.prune(series.folder)

    # -- snapshots

    def snapshot(self, name: str) -> Path | str:
        """Link every file of every exchange, under its series' lock, into ``_snapshots/<name>/``; returns where.

        Each market is of one generation there, in all its timeframes. The last file is the snapshot's mark: one that a
        crash cut short has none and does not count.
        """
        self._flush()
        self.end_moves()
        folder = f"{SNAPSHOTS}/{_checked(name, [one for one, _ in self._marks()])}"
        for key in list(self._files.walk(folder)):  # what a crash left of another try
            self._files.remove(key)
        rows = 0
        for exchange in self.exchanges():
            generations = Generations(self._files, exchange)
            by_market: dict[str, list[Series]] = {}
            for series in sorted(series_in(self._files, exchange), key=lambda s: s.name):
                by_market.setdefault(series.market, []).append(series)
            for market, chosen in by_market.items():
                rows += self._link_market(generations, market, chosen, folder)
            for key in (f"{EVENTS}/exchange={exchange}.jsonl", f"{EVENTS}/exchange={exchange}.columns"):
                events = self._files.read(key)
                if events is not None:  # is appended to in place, so it is copied
                    self._files.replace(f"{folder}/{key}", events.data)
        mark = _Mark(at_us=self._clock.now_us(), rows=rows)
        self._files.replace(f"{folder}/{_MARK}", msgspec.json.encode(mark))
        return self._files.path(folder)

    def _link_market(self, generations: Generations, market: str, chosen: Sequence[Series], folder: str) -> int:
        """Link all of a market; from the start where it was quarantined meanwhile, and nothing while it is."""
        while True:
            generations.refresh()
            before, linked = generations.of(market), list[str]()
            if before.leaving:
                return 0
            rows = 0
            for series in chosen:
                with self._files.exclusive(series.lock_key):
                    rows += self._link(series, folder, linked)
            generations.refresh()
            if generations.of(market) == before:
                return rows
            for key in linked:
                self._files.remove(key)

    def _link(self, series: Series, folder: str, linked: list[str]) -> int:
        rows = 0
        keys = [key for key in series.sidecar_keys if self._files.stat(key) is not None]
        for period in self._periods.left(series, EVER):
            keys.append(series.key(period))
            rows += self._periods.footer(series, period)[0]
        for key in keys:
            linked.append(f"{folder}/{key}")
            self._files.link(key, linked[-1])
        return rows

    def snapshots(self) -> list[Snapshot]:
        """The finished snapshots, oldest first. Those whose content was not hashed yet are read for it."""
        found = []
        for name, mark in self._marks():
            folder = f"{SNAPSHOTS}/{name}"
            if not mark.content:
                try:
                    mark = msgspec.structs.replace(mark, content=self._content(f"{folder}/"))
                    self._files.replace(f"{folder}/{_MARK}", msgspec.json.encode(mark))
                except CorruptPartitionError:
                    mark = msgspec.structs.replace(mark, content=DAMAGED)  # `changed_snapshots` says what
            found.append(Snapshot(name, mark.at_us, self._files.address(folder), mark.rows, mark.content))
        return sorted(found, key=lambda one: (one.at_us, one.name))

    def refuse_snapshot(self, verb: str) -> None:
        """Raise `ReadOnlyError` where this folder is a snapshot, for what would have no effect on it."""
        if self._files.stat(_MARK) is not None:
            raise snapshot_error(verb, self._files.address(""))

    def changed_snapshots(self) -> list[Problem]:
        """A problem for each snapshot, this folder among them if it is one, whose rows are not those that it was made
        of: a hard link shares its bytes, so what another program changes in a file's place changes it there as well.

        Those whose content was never looked at have nothing to be compared with. Reads all their rows.
        """
        from backbone.storage.audit import Problem

        found = []
        own = self._files.read(_MARK)
        marks = [(f"{SNAPSHOTS}/{name}/", mark) for name, mark in self._marks()]
        if own is not None:
            marks.append(("", msgspec.json.decode(own.data, type=_Mark)))
        for folder, mark in marks:
            try:
                why = "" if self._content(folder) == mark.content or not mark.content else "other rows"
            except StoreError as exc:
                why = str(exc)
            if why:
                detail = f"its rows are not those that it was made of: {why}"
                found.append(Problem("", "", str(self._files.address(folder)).rstrip("/"), "changed", detail))
        return found

    def _marks(self) -> list[tuple[str, _Mark]]:
        found = []
        for name in self._files.list(SNAPSHOTS):
            blob = self._files.read(f"{SNAPSHOTS}/{name}/{_MARK}")
            if blob is not None:
                found.append((name, msgspec.json.decode(blob.data, type=_Mark)))
        return found

    def _content(self, folder: str) -> str:
        """A hash of all rows below `folder`, by series in order of name, column by column, whatever the files' form."""
        whole = hashlib.blake2b(digest_size=16)
        columns: dict[str, list[Any]] = {}
        for key in self._files.walk(f"{folder}{CANDLES}"):
            inner = key.removeprefix(folder)
            place, blob = parse_partition_key(inner), self._files.read(key)
            if place is None or blob is None:
                continue
            series, period = place
            table = decode_partition(blob.data, series, period, self._files.address(key)).table
            hashes = columns.setdefault(series.name, [hashlib.blake2b(digest_size=16) for _ in table.columns])
            hashes[0].update(times_of(table))
            for one, column in zip(hashes[1:], table.columns[1:], strict=True):
                one.update(column.to_numpy())
        for series_name in sorted(columns):
            whole.update(series_name.encode() + b"".join(one.digest() for one in columns[series_name]))
        return whole.hexdigest()

    def condition(
        self, market: str, timeframe: Timeframe, derived: tuple[Any, SpanSet] = (_NO_TIMES, SpanSet())
    ) -> list[Condition]:
        """The state of each day of UTC (month, from days on) from the first candle to the last.

        `derived` are the opens of candles that stored shorter ones are folded to, and the spans that they are all of.
        """
        self._flush()
        found, spans = derived
        if not spans:
            self._of(market, timeframe)  # which raises where nothing is held
        series = Series(self._exchange, market, timeframe)
        partitions = [self._periods.load(series, period) for period in self._periods.with_file(series, EVER)]
        times = np.sort(np.concatenate([found, *(partition.times for partition in partitions)]))
        if not len(times):
            return []
        revised = np.sort(np.concatenate([_NO_TIMES, *(_int64(one.revisions.column("time")) for one in partitions)]))
        coverage = self._periods.coverage(series, EVER)
        covered = coverage.covered | spans
        parts = {"venue": coverage.of_source(VENUE), **coverage.origins, "derived": spans}
        provisional = coverage.due(EVER.end)
        unit = TIMEFRAMES["1d"] if timeframe.step_us < DAY_US else TIMEFRAMES["1M"]
        start, end, days = unit.floor(int(times[0])), int(times[-1]) + 1, []
        while start < end:
            day = Span(start, unit.next(start))
            part = Span(max(day.start, int(times[0])), min(day.end, timeframe.next(int(times[-1]))))
            rows, revisions = (int(np.diff(np.searchsorted(a, day))[0]) for a in (times, revised))
            known, waiting = (sum(map(timeframe.count, held.clip(part))) for held in (covered, provisional))
            sources = {name: sum(map(timeframe.count, held.clip(part))) for name, held in parts.items()}
            source = "+".join(sorted((name for name, slots in sources.items() if slots), key=lambda n: -sources[n]))
            quiet, unknown = known - rows, timeframe.count(part) - known
            days.append(Condition(start, rows, quiet, unknown, waiting, revisions, source))
            start = day.end
        return days

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
        held = {*series_in(self._files, self._exchange), *self._pending.series()}
        chosen = [s for s in held if s.market == market and timeframe in (None, s.timeframe)]
        if not chosen:
            stored = sorted({s.market if s.market != market else f"{market} {s.timeframe.name}" for s in held})
            shown = ", ".join(stored[:8]) + ("…" if len(stored) > 8 else "")
            what = market if timeframe is None else f"{market} {timeframe.name}"
            raise InputError("market", what, f"something that is stored: {shown or 'so far nothing'}")
        return sorted(chosen, key=lambda s: s.timeframe.step_us)

    def exchanges(self) -> list[str]:
        """The exchanges of which the folder holds something."""
        names = [*self._files.list(CANDLES), *self._files.list(QUIET)]
        return sorted({name.removeprefix("exchange=") for name in names if name.startswith("exchange=")})

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


def _int64(column: pa.ChunkedArray) -> Any:
    return column.cast(pa.int64()).to_numpy()
