"""The candle store: what we hold of every market, what we vouch for, and how it gets to disk.

Invariants. Rows, coverage and revisions of a period are one file, replaced in one step, so no claim exists
without its rows. A period that has a file is spoken for by that file alone; the *quiet* sidecar of a series
vouches only for periods that have none. New pages are visible to this process at once and are on disk half a
second later, or at the next `flush`: a crash loses them whole, claim and rows together.

`_lock` guards the pages that are not on disk yet and the incident list. Writers of a series are serialised by
`LocalFiles.exclusive`, which is taken before `_lock` and never while it is held. Readers take no file lock.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import random
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import msgspec
import pyarrow as pa

from backbone.clock import Clock
from backbone.errors import ClosedError, CorruptPartitionError, StoreBusyError, StoreError
from backbone.locks import renew_after_fork
from backbone.model import CANDLE_SCHEMA, Span, empty_candles
from backbone.storage import audit
from backbone.storage.audit import Problem
from backbone.storage.cache import MemoryCache, MemoryStats
from backbone.storage.copy import Copied, copy_store
from backbone.storage.coverage import EVER, Coverage, Provisional, SpanSet, on_grid
from backbone.storage.files import Files, LocalFiles, OvertakenError, Version
from backbone.storage.layout import CANDLES, Series, parse_period
from backbone.storage.merge import Page, merge_pages
from backbone.storage.partition import (
    REVISION_SCHEMA,
    TAIL_BYTES,
    Partition,
    decode_ledger,
    decode_partition,
    encode_ledger,
    encode_partition,
    peek_footer,
)
from backbone.timeframe import DAY_US, Timeframe, period_name, period_of, periods_in

__all__ = ["CandleStore", "Incident", "Stored"]

_log = logging.getLogger(__name__)

_MAX_PENDING_ROWS = 20_000
_MANY_PERIODS = 64  # beyond this, one listing of the series folder is cheaper than asking for each period
_LEDGER_BYTES = 16 << 20
_LOOKS = 100  # how often a write that others overtake is done again
_PERIOD_US = {"day": DAY_US, "month": 28 * DAY_US, "year": 365 * DAY_US, "all": 1 << 62}


REVISIONS_OF_MARKETS = pa.schema(
    [pa.field("market", pa.string()), pa.field("timeframe", pa.string()), *REVISION_SCHEMA]
)


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that went wrong on disk and was survived. ``kind``: ``"set-aside"``, ``"damaged"``,
    ``"flush-failed"``.
    """

    kind: str
    path: str
    detail: str
    at_us: int


@dataclass(frozen=True, slots=True)
class Stored:
    """What a read found: the rows, the spans vouched for at that moment, row counts by tier."""

    table: pa.Table
    covered: SpanSet
    tiers: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A cached partition: the file's version it was read from, and the pending pages already put on top."""

    version: Version | None
    applied: tuple[int, ...]
    partition: Partition
    is_changed: bool = False


@dataclass
class _Pending:
    """Pages of one series that are not on disk."""

    pages: list[Page] = field(default_factory=list)
    rows: int = 0
    since_s: float = 0.0


class CandleStore:
    """Candles of one exchange in a data folder. Thread-safe; several processes may share the folder.

    Constructing touches no disk. Every call that reads may find a damaged file: it is set aside, told once,
    and its span is unknown from then on. Every call that writes may raise `StoreError`; nothing that was
    durable is harmed.
    """

    def __init__(
        self,
        root: Path | Files,
        exchange: str,
        *,
        clock: Clock,
        memory_bytes: int = 256 << 20,
        group_commit_s: float = 0.5,
    ) -> None:
        self._exchange = exchange
        self._clock = clock
        self._group_commit_s = group_commit_s
        self._files: Files = LocalFiles(root, clock) if isinstance(root, Path) else root
        self._memory: MemoryCache[_Entry] = MemoryCache(memory_bytes, clock)
        self._ledgers: MemoryCache[tuple[Version, Coverage]] = MemoryCache(_LEDGER_BYTES, clock)
        self._ids = itertools.count(1)
        self._incidents: deque[Incident] = deque(maxlen=1000)
        self._bad: dict[str, Version] = {}
        self._commits = 0
        self._closed = False
        self._renew()
        renew_after_fork(self, CandleStore._renew)

    def _renew(self) -> None:
        """A forked child starts without the parent's unfinished pages: they are the parent's to write."""
        self._lock = threading.Lock()
        self._pending: dict[Series, _Pending] = {}
        self._committing: set[Series] = set()
        self._overtaken = threading.Condition()
        self._retry_s = 0.0

    def _series(self, market: str, timeframe: Timeframe) -> Series:
        return Series(self._exchange, market, timeframe)

    # -- writing

    def put(
        self,
        market: str,
        timeframe: Timeframe,
        table: pa.Table,
        proof: SpanSet | Span,
        *,
        fresh: tuple[Span, int] | None = None,
        source: str = "rest",
        now_us: int,
    ) -> None:
        """Take rows that are everything the venue has in `proof`; a proved span without rows is quiet.

        Inside `proof` they replace what was held; a difference becomes a revision. ``fresh`` names a span to
        be asked again at a time (`due`). Readable at once; on disk within the group-commit time of further
        puts, or at `flush`.

        Raises `StoreError` for rows outside `proof`, unsorted, doubled or off the grid (nothing is kept), or
        when a due write failed (everything is kept in memory and tried again).
        """
        series = self._series(market, timeframe)
        page = self._page(series, table, on_grid(SpanSet.of(proof), timeframe), fresh, source, now_us)
        if not page.proof:
            return
        now_s = self._clock.monotonic()
        with self._lock:
            if self._closed:
                raise ClosedError("the store is closed")
            pending = self._pending.setdefault(series, _Pending(since_s=now_s))
            if not pending.pages:
                pending.since_s = now_s
            pending.pages.append(page)
            pending.rows += page.table.num_rows
            due = self._due_locked(now_s)
            self._committing.update(due)
        try:
            self._flush_all(due)
        finally:
            with self._lock:
                self._committing.difference_update(due)

    def _page(
        self,
        series: Series,
        table: pa.Table,
        proof: SpanSet,
        fresh: tuple[Span, int] | None,
        source: str,
        now_us: int,
    ) -> Page:
        if table.schema != CANDLE_SCHEMA:
            raise StoreError(
                f"{series}: a candle table has the columns {CANDLE_SCHEMA.names}, not {table.schema.names}"
            )
        table = table.combine_chunks() if table.num_rows else empty_candles()
        provisional: tuple[Provisional, ...] = ()
        if fresh is not None:
            (start, end), due_us = fresh
            provisional = tuple(Provisional(a, b, due_us) for a, b in proof.clip((start, end)))
        page = Page(next(self._ids), table, proof, provisional, source, now_us)
        times = page.times
        if len(times):
            inside = sum(rows.stop - rows.start for rows in map(page.rows_in, proof))
            if inside != len(times):
                raise StoreError(f"{series}: {len(times) - inside} rows lie outside the span they are said to prove")
            if not bool((times[1:] > times[:-1]).all()):
                raise StoreError(f"{series}: rows are not in order, or doubled")
            if not bool((series.timeframe.floor_array(times) == times).all()):
                raise StoreError(f"{series}: rows do not open on the {series.timeframe.name} grid")
        return page

    def _due_locked(self, now_s: float) -> list[Series]:
        """The series whose pages have waited long enough, and that nobody is committing: a page that comes meanwhile
        waits for the next commit instead of holding its thread."""
        if now_s < self._retry_s:
            return []
        return [
            series
            for series, pending in self._pending.items()
            if series not in self._committing
            if pending.rows >= _MAX_PENDING_ROWS or now_s - pending.since_s >= self._group_commit_s
        ]

    def flush(self, market: str | None = None, timeframe: Timeframe | None = None) -> None:
        """Bring every page taken so far (of one market, of one timeframe) to disk. Raises `StoreError`."""
        with self._lock:
            chosen = [
                series
                for series in self._pending
                if market in (None, series.market) and timeframe in (None, series.timeframe)
            ]
        self._flush_all(chosen)

    def _flush_all(self, chosen: Iterable[Series]) -> None:
        failure: StoreError | None = None
        for series in chosen:
            try:
                self._flush(series)
            except StoreError as exc:
                failure = failure or exc
        if failure is not None:
            raise failure

    def _flush(self, series: Series) -> None:
        try:
            self._flush_pages(series)
        except StoreError as exc:
            with self._lock:
                kept = self._pending.get(series, _Pending()).rows
                self._retry_s = self._clock.monotonic() + self._group_commit_s
            self._record("flush-failed", str(exc.path), str(exc))
            message = f"{exc}. {kept} rows of {series} stay in memory and are tried again at the next write"
            if isinstance(exc, StoreBusyError):
                raise StoreBusyError(message, path=exc.path, holder=exc.holder) from exc
            raise StoreError(message, path=exc.path) from exc

    def _flush_pages(self, series: Series) -> None:
        for attempt in itertools.count(1):
            try:
                with self._files.exclusive(series.lock_key):
                    began_s = self._clock.monotonic()
                    pages = self._pages(series, EVER)
                    if pages:
                        self._write(series, pages)
                        self._drop(series, len(pages), began_s)
                return
            except OvertakenError:  # somebody else got on, so this ends; what was written before stays and is right
                if attempt >= _LOOKS:
                    raise
                with self._overtaken:
                    self._clock.wait(self._overtaken, random.uniform(0, min(0.5, 0.01 * 2**attempt)))

    def _drop(self, series: Series, count: int, began_s: float) -> None:
        """Forget the oldest `count` pages, which are on disk since a commit that began at `began_s`; those that came
        while it went on wait from then. For the holder of the series lock.
        """
        with self._lock:
            pending = self._pending[series]
            pending.pages = pending.pages[count:]
            pending.rows = sum(page.table.num_rows for page in pending.pages)
            pending.since_s = began_s
            if not pending.pages:
                del self._pending[series]

    def _write(self, series: Series, pages: Sequence[Page]) -> None:
        """Put pages into files, and silence where there is none into the sidecar. Repeatable at any point."""
        proof = SpanSet(span for page in pages for span in page.proof)
        periods = _row_periods(series, pages)
        for span in proof:
            periods.update(self._file_periods(series, span))
        quiet = self._quiet(series)
        for period in sorted(periods):
            self._write_partition(series, period, pages, quiet)
        silence = quiet
        for page in pages:
            silence = silence.proved(page.proof, page.fresh)
        silence = silence.without(SpanSet(periods))
        if silence != quiet:
            self._files.replace(series.quiet_key, encode_ledger(silence, series))

    def _write_partition(self, series: Series, period: Span, pages: Sequence[Page], quiet: Coverage) -> None:
        key = series.key(period)
        self._bad.pop(key, None)  # a damaged file that could not be moved: try again
        entry, _ = self._current(series, period, pages, quiet)
        if entry.version is not None and not entry.is_changed:
            return
        partition = entry.partition
        if entry.version is None and self._files.stat(key) is not None:  # writing would be deleting
            path = self._files.path(key)
            raise StoreError(f"{path} is damaged and cannot be set aside", path=path)
        data = encode_partition(partition, series, period_name(series.timeframe, period))
        version = self._files.replace(key, data)
        self._commits += 1
        self._keep(key, version, partition)

    # -- reading

    def read(self, market: str, timeframe: Timeframe, span: Span) -> Stored:
        """The stored rows whose open lies in `span`, oldest first, and what of it is vouched for.

        Raises `StoreError` where a file cannot be read or is from a newer version; damage is no error here.
        """
        series = self._series(market, timeframe)
        pages = self._pages(series, span)
        quiet = self._quiet(series)
        tables: list[pa.Table] = []
        tiers = {"memory": 0, "disk": 0}
        periods = sorted({*self._file_periods(series, span), *_row_periods(series, pages, span)})
        ledgers = [quiet.without(SpanSet(periods))]
        for period in periods:
            entry, tier = self._current(series, period, pages, quiet)
            ledgers.append(entry.partition.ledger)
            table = _rows_in(entry.partition, span)
            if table.num_rows:
                tables.append(table)
                tiers[tier] += table.num_rows
        covered = _vouched(Coverage.joined(ledgers), pages, timeframe, span)
        return Stored(pa.concat_tables(tables) if tables else empty_candles(), covered, tiers)

    def coverage(self, market: str, timeframe: Timeframe, span: Span) -> SpanSet:
        """The part of `span` that is vouched for: rows or silence. What is not in it was never asked, or got
        lost.
        """
        series = self._series(market, timeframe)
        pages = self._pages(series, span)
        return _vouched(self._ledger(series, span), pages, timeframe, span)

    def claims(self, market: str, timeframe: Timeframe, span: Span) -> SpanSet:
        """The part of `span` that the files say they vouch for, read from their last bytes and not proven:
        for spans of very many files, which another engine is about to read. What is not flushed is in none.
        """
        series = self._series(market, timeframe)
        quiet = self._quiet(series)
        periods = self._file_periods(series, span)
        ledgers = [quiet.without(SpanSet(periods))]
        for period in periods:
            key = series.key(period)
            known = self._ledgers.get(key)
            if known is not None and known[0] == self._files.stat(key):
                ledgers.append(known[1])
            else:
                claimed = peek_footer(self._files.tail(key, TAIL_BYTES) or b"")
                ledgers.append(self._file_ledger(series, period, quiet) if claimed is None else claimed[1])
        return _vouched(Coverage.joined(ledgers), [], timeframe, span)

    def weigh(self, market: str, timeframe: Timeframe, most: int) -> tuple[int, int, int]:
        """Rows, bytes and candle slots vouched for of the newest `most` files of a series, by what their ends
        say.
        """
        series = self._series(market, timeframe)
        rows = size = slots = 0
        for period in self._file_periods(series, EVER)[-most:]:
            key = series.key(period)
            found = peek_footer(self._files.tail(key, TAIL_BYTES) or b"")
            if found is not None:
                rows, size = rows + found[0], size + self._files.size(key)
                slots += sum(timeframe.count(span) for span in found[1].covered)
        return rows, size, slots

    def due(self, market: str, timeframe: Timeframe, span: Span, now_us: int) -> SpanSet:
        """The part of `span` that is held provisionally and whose second ask is due at `now_us`."""
        series = self._series(market, timeframe)
        pages = self._pages(series, span)
        ledger = self._ledger(series, span)
        for page in pages:
            ledger = ledger.proved(page.proof, page.fresh)
        return ledger.due(now_us).clip(span)

    def is_settled(self, market: str, timeframe: Timeframe, span: Span) -> bool:
        """Whether what is held of `span` is on disk and none of it is provisional."""
        series = self._series(market, timeframe)
        return not self._pages(series, span) and not self._ledger(series, span).due(EVER.end).touches(span)

    def oldest(self, market: str, timeframe: Timeframe) -> int | None:
        """Open of the oldest candle held; None where none is."""
        series = self._series(market, timeframe)
        pages = self._pages(series, EVER)
        quiet = self._quiet(series)
        for period in sorted({*self._file_periods(series, EVER), *_row_periods(series, pages)}):
            times = self._current(series, period, pages, quiet)[0].partition.times
            if len(times):
                return int(times[0])
        return None

    def quiet_before(self, market: str, timeframe: Timeframe) -> int:
        """The time before which silence is vouched for since the beginning of time: the listing, once known;
        else 0.
        """
        silent = next(iter(self.coverage(market, timeframe, EVER)), Span(0, 0))
        oldest = self.oldest(market, timeframe)
        end = silent.end if silent.start == 0 else 0
        return end if oldest is None else min(end, oldest)

    def _pages(self, series: Series, span: Span) -> list[Page]:
        with self._lock:
            pending = self._pending.get(series)
            pages = list(pending.pages) if pending else []
        return [page for page in pages if page.proof.touches(span)]

    def _ledger(self, series: Series, span: Span) -> Coverage:
        """What the files say of `span`; their rows are not read again for it."""
        quiet = self._quiet(series)
        periods = self._file_periods(series, span)
        inside = [self._file_ledger(series, period, quiet) for period in periods]
        return Coverage.joined([quiet.without(SpanSet(periods)), *inside])

    def _file_ledger(self, series: Series, period: Span, quiet: Coverage) -> Coverage:
        key = series.key(period)
        version = self._files.stat(key)
        known = self._ledgers.get(key)
        if known is not None and known[0] == version:
            return known[1]
        return self._held(series, period, quiet)[0].partition.ledger

    def _file_periods(self, series: Series, span: Span) -> list[Span]:
        """The periods of `span` that have a file."""
        timeframe = series.timeframe
        span = Span(max(span.start, EVER.start), min(span.end, EVER.end))
        if span.length_us <= _MANY_PERIODS * _PERIOD_US[timeframe.period]:
            periods: Iterable[Span] = periods_in(timeframe, span)
            return [period for period in periods if self._files.stat(series.key(period)) is not None]
        names = self._files.list(series.folder)
        found = (parse_period(timeframe, name.removeprefix("period=")) for name in names)
        touched = sorted(p for p in found if p is not None and p.start < span.end and span.start < p.end)
        return [period for period in touched if self._files.stat(series.key(period)) is not None]

    def _current(self, series: Series, period: Span, pages: Sequence[Page], quiet: Coverage) -> tuple[_Entry, str]:
        """A period as this process sees it, pending pages included, and the tier it came from."""
        key = series.key(period)
        mine = [page for page in pages if page.proof.touches(period)]
        ids = tuple(page.id for page in mine)
        entry = self._memory.get(key)
        tier = "memory"
        if entry is None or entry.version != self._files.stat(key) or entry.applied != ids[: len(entry.applied)]:
            entry, tier = self._held(series, period, quiet)
        if entry.applied == ids:
            return entry, tier
        merged = merge_pages(entry.partition, mine[len(entry.applied) :], period)
        is_changed = entry.is_changed or merged is not entry.partition
        entry = _Entry(entry.version, ids, merged, is_changed)
        if entry.version is not None:  # without a file, the sidecar's word is part of it and may change
            self._memory.put(key, entry, merged.nbytes)
        return entry, tier

    def _held(self, series: Series, period: Span, quiet: Coverage) -> tuple[_Entry, str]:
        """A period as the files have it, and the tier. Where there is no file, the sidecar's word of it."""
        key = series.key(period)
        name, path = period_name(series.timeframe, period), str(self._files.path(key))
        while (blob := self._files.read(key)) is not None:
            try:
                partition = decode_partition(blob.data, series, period, name, path)
                return self._keep(key, blob.version, partition), "disk"
            except CorruptPartitionError as exc:
                if not self._has_replacement(series, key, period, blob.version, exc):
                    return _Entry(None, (), Partition.empty()), "disk"
        return _Entry(None, (), Partition.empty(quiet.clip(period))), "memory"

    def _keep(self, key: str, version: Version, partition: Partition) -> _Entry:
        entry = _Entry(version, (), partition)
        self._memory.put(key, entry, partition.nbytes)
        self._ledgers.put(key, (version, partition.ledger), _ledger_bytes(partition.ledger))
        return entry

    def _quiet(self, series: Series) -> Coverage:
        """The sidecar's ledger."""
        key = series.quiet_key
        version = self._files.stat(key)
        if version is None:
            return Coverage()
        known = self._ledgers.get(key)
        if known is not None and known[0] == version:
            return known[1]
        while (blob := self._files.read(key)) is not None:
            try:
                ledger = decode_ledger(blob.data, series, str(self._files.path(key)))
                self._ledgers.put(key, (blob.version, ledger), _ledger_bytes(ledger))
                return ledger
            except CorruptPartitionError as exc:
                if not self._has_replacement(series, key, None, blob.version, exc):
                    return Coverage()
        return Coverage()

    # -- damage

    def _has_replacement(
        self, series: Series, key: str, period: Span | None, version: Version, exc: CorruptPartitionError
    ) -> bool:
        """Set a damaged file aside and say so; True where another process has replaced it meanwhile: look
        again.

        The sidecar forgets the period first: what it says of it is older than the file.
        """
        if self._bad.get(key) == version:
            return False
        try:
            with self._files.exclusive(series.lock_key):
                if self._files.stat(key) != version:
                    return self._files.stat(key) is not None
                if period is not None:
                    quiet = self._quiet(series)
                    rest = quiet.without(SpanSet((period,)))
                    if rest != quiet:
                        self._files.replace(series.quiet_key, encode_ledger(rest, series))
                moved = self._files.set_aside(key, self._clock.now_us())
        except StoreError as failure:
            self._bad[key] = version
            self._record("damaged", str(exc.path), f"{exc.reason}; it stays where it is ({failure})")
            return False
        self._record("set-aside", str(exc.path), f"{exc.reason}; moved to {moved}")
        return False

    def _record(self, kind: str, path: str, detail: str) -> None:
        incident = Incident(kind, path, detail, self._clock.now_us())
        with self._lock:
            self._incidents.append(incident)
        _log.warning("store.%s path=%s %s", kind.replace("-", "_"), path, detail)

    def incidents(self) -> list[Incident]:
        """What went wrong on disk since this store was opened, oldest first: files set aside, writes that
        failed.
        """
        with self._lock:
            return list(self._incidents)

    def damages(self, market: str, timeframe: Timeframe, spans: SpanSet) -> list[CorruptPartitionError]:
        """The damaged files of `spans` that this store came upon, as errors: why those are unknown, while they are."""
        series, found = self._series(market, timeframe), []
        for incident in self.incidents():
            period = parse_period(timeframe, PurePath(incident.path).parent.name.removeprefix("period="))
            if period is None or incident.kind not in ("set-aside", "damaged"):
                continue
            if str(self._files.path(series.key(period))) == incident.path and spans.touches(period):
                words = f"{incident.path} was damaged: {incident.detail}"
                found.append(CorruptPartitionError(words, path=incident.path, reason=incident.detail))
        return found

    # -- about the store

    def paths(self, market: str, timeframe: Timeframe, span: Span) -> list[Path | str]:
        """The partition files that hold `span`, oldest first. What is not flushed is in none."""
        series = self._series(market, timeframe)
        return [self._files.path(series.key(period)) for period in self._file_periods(series, span)]

    def version(self, market: str, timeframe: Timeframe, span: Span) -> str:
        """A digest of everything an answer for `span` is made from: another one means another answer is
        possible.
        """
        series = self._series(market, timeframe)
        ids = [page.id for page in self._pages(series, span)]
        keys = [series.quiet_key, *map(series.key, self._file_periods(series, span))]
        state = [(key, self._files.stat(key)) for key in keys]
        mine = (os.getpid(), id(self), ids) if ids else ()
        return hashlib.blake2b(repr((state, mine)).encode(), digest_size=16).hexdigest()

    def series(self) -> list[tuple[str, Timeframe]]:
        """Every market and timeframe in the folder, or waiting to get there. For audits: it lists folders."""
        with self._lock:
            found = set(self._pending)
        found.update(audit.series_in(self._files, self._exchange))
        return sorted(((s.market, s.timeframe) for s in found), key=lambda pair: (pair[0], pair[1].step_us))

    def _chosen(self, market: str | None, timeframe: Timeframe | None) -> list[Series]:
        if market is not None and timeframe is not None:
            return [self._series(market, timeframe)]
        wanted = (pair for pair in self.series() if market in (None, pair[0]) and timeframe in (None, pair[1]))
        return [self._series(*pair) for pair in wanted]

    def revisions(self, market: str | None = None, timeframe: Timeframe | None = None) -> pa.Table:
        """What changed about candles that were already stored, oldest candle first.

        Columns ``market timeframe time old_open … old_value new_open … new_value seen source``; null old
        values mean that the candle came late, null new ones that the venue withdrew it.
        """
        tables = [REVISIONS_OF_MARKETS.empty_table()]
        for series in self._chosen(market, timeframe):
            pages, quiet = self._pages(series, EVER), self._quiet(series)
            for period in sorted({*self._file_periods(series, EVER), *_row_periods(series, pages)}):
                found = self._current(series, period, pages, quiet)[0].partition.revisions
                names = [[value] * found.num_rows for value in (series.market, series.timeframe.name)]
                columns: list[Any] = [pa.array(values, pa.string()) for values in names]
                columns += found.columns
                tables.append(pa.Table.from_arrays(columns, schema=REVISIONS_OF_MARKETS))
        return pa.concat_tables(tables).combine_chunks()

    def verify(self, market: str | None = None, timeframe: Timeframe | None = None) -> list[Problem]:
        """Prove the files from themselves; what is wrong with them, nothing where all is well. Changes
        nothing.

        Damage, rows out of order, doubled, off the grid, outside their period or their coverage, impossible
        prices, files that do not belong there, and unfinished writes that nobody is working on.
        """
        return audit.verify(self._files, self._exchange, market, timeframe)

    def repair(self) -> list[Problem]:
        """Mend what `verify` finds, and say what was done: a damaged or foreign file is set aside, an
        unfinished write removed. What a file set aside had vouched for is unknown afterwards, and so is asked
        for again.
        """
        self.flush()
        done = audit.repair(self._files, self._exchange, self._clock.now_us())
        for problem in done:
            if problem.kind != "leftover":
                self._record("set-aside", problem.path, problem.detail)
        return done

    def note_files(self, market: str, timeframe: Timeframe, taken: dict[str, str]) -> None:
        """Note the files of a bulk archive whose candles were put, with their checksums. A note vouches for nothing."""
        series = self._series(market, timeframe)
        for attempt in itertools.count(1):
            try:
                with self._files.exclusive(series.lock_key):
                    noted = self.noted_files(market, timeframe) | taken
                    self._files.replace(series.taken_key, msgspec.json.encode(noted))
                return
            except OvertakenError:
                if attempt >= _LOOKS:
                    raise

    def noted_files(self, market: str, timeframe: Timeframe) -> dict[str, str]:
        """The noted files and their checksums; none where the note is lost or damaged."""
        blob = self._files.read(self._series(market, timeframe).taken_key)
        if blob is None:
            return {}
        try:
            return msgspec.json.decode(blob.data, type=dict[str, str])
        except msgspec.MsgspecError:
            return {}

    def copy_to(self, target: Files) -> Copied:
        """Copy everything of every exchange to `target` and prove it there; see `backbone.storage.copy`."""
        self.flush()
        return copy_store(self._files, target)

    def size(self) -> dict[str, int]:
        """Files, bytes and markets of this exchange on disk, and rows in memory only. It walks the folder."""
        sizes = [self._files.size(key) for key in self._files.walk(f"{CANDLES}/exchange={self._exchange}")]
        markets = len({market for market, _ in self.series()})
        return {
            "files": len(sizes),
            "bytes": sum(sizes),
            "markets": markets,
            "pending_rows": self.pending_rows(),
        }

    def pending_rows(self) -> int:
        """Rows that are in memory only."""
        with self._lock:
            return sum(pending.rows for pending in self._pending.values())

    def memory_stats(self) -> MemoryStats:
        """Hits, misses and bytes of the decoded partitions."""
        return self._memory.stats()

    @property
    def commits(self) -> int:
        """How many partition files this store has written."""
        return self._commits

    def close(self) -> None:
        """Bring everything to disk and take no more. Reading still works. Raises `StoreError`, and may be
        repeated.
        """
        with self._lock:
            self._closed = True
        self.flush()

    def __repr__(self) -> str:
        waiting = self.pending_rows()
        return f"CandleStore({str(self._files.path(CANDLES))!r}, {self._exchange}, {waiting} rows pending)"


def _vouched(ledger: Coverage, pages: Iterable[Page], timeframe: Timeframe, span: Span) -> SpanSet:
    """The covered part of `span`; its ragged ends, in which no candle opens, go with their neighbour."""
    first, last = timeframe.ceil(max(0, span.start)), timeframe.ceil(max(0, span.end))
    if first >= last:
        return SpanSet((span,))
    proofs = SpanSet(part for page in pages for part in page.proof)
    spans = list((ledger.covered | proofs).clip(Span(first, last)))
    if spans and spans[0].start == first:
        spans[0] = Span(span.start, spans[0].end)
    return SpanSet(spans).clip(span)


def _row_periods(series: Series, pages: Iterable[Page], span: Span = EVER) -> set[Span]:
    """The periods of `span` that rows of `pages` fall in."""
    found: set[Span] = set()
    for page in pages:
        at, times = 0, page.times
        while at < len(times):
            period = period_of(series.timeframe, int(times[at]))
            if period.start < span.end and span.start < period.end:
                found.add(period)
            at = int(times.searchsorted(period.end))
    return found


def _rows_in(partition: Partition, span: Span) -> pa.Table:
    times = partition.times
    low, high = (int(i) for i in times.searchsorted(span))
    if low == 0 and high == len(times):
        return partition.table
    return partition.table.slice(low, high - low)


def _ledger_bytes(ledger: Coverage) -> int:
    return 400 + 120 * (len(ledger.covered) + len(ledger.fresh))
