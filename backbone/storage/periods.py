"""The periods of a series as the files have them, through bounded caches, with pending pages put on top.

A cached period is used only while its file is still in the version that it was read from. A damaged file is moved to
quarantine when it is met, and its span is unknown from then on; the *quiet* sidecar forgets the period first, since
what it says of it is older than the file. Writers of a series are serialised by `Files.exclusive`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from backbone.candle_table import times_of
from backbone.clock import Clock
from backbone.errors import CorruptPartitionError, StoreError
from backbone.model import Span
from backbone.storage.cache import MemoryCache, MemoryStats
from backbone.storage.coverage import EVER, Coverage, SpanSet
from backbone.storage.files import Blob, Files, Version
from backbone.storage.generations import Generations
from backbone.storage.incidents import Incidents
from backbone.storage.layout import (
    CANDLES,
    QUIET,
    Series,
    parse_period,
    parse_series,
    parse_sidecar_key,
)
from backbone.storage.listed import note, quarantine_period
from backbone.storage.merge import Page, merge_pages, with_pages
from backbone.storage.partition import (
    TAIL_BYTES,
    Partition,
    Unchecked,
    decode_coverage,
    decode_partition,
    encode_coverage,
    encode_partition,
    peek_footer,
    read_partition,
)
from backbone.timeframe import DAY_US, Timeframe, period_name, period_of, periods_in

__all__ = ["Held", "Periods", "row_periods", "series_in"]

_MANY_PERIODS = 4  # beyond this, one listing of the series folder is cheaper than asking for each period
_COVERAGE_BYTES = 16 << 20
_AHEAD_BYTES = 4 << 20  # of files that are read before they are asked for
_PERIOD_US = {"day": DAY_US, "month": 28 * DAY_US, "year": 365 * DAY_US, "all": 1 << 62}


class Held(msgspec.Struct, frozen=True):
    """One period: the file's version it was read from (None: there is no file) and the pages put on top of it.

    ``revisions`` is how many the file has; those of the pages follow.
    """

    version: Version | None
    applied: tuple[int, ...]
    partition: Partition
    is_changed: bool = False
    revisions: int = 0


class Periods:
    """Reads and writes the period files of one exchange. Thread-safe; touches no disk until used."""

    def __init__(
        self, files: Files, clock: Clock, incidents: Incidents, memory_bytes: int, generations: Generations
    ) -> None:
        self._files = files
        self._generations = generations
        self._clock = clock
        self._incidents = incidents
        self._memory: MemoryCache[Held] = MemoryCache(memory_bytes)
        self._coverages: MemoryCache[tuple[Version, Coverage]] = MemoryCache(_COVERAGE_BYTES)
        self._ahead: dict[str, tuple[Blob, Unchecked]] = {}  # what `reading_ahead` has read, until it is asked for
        self._bad: dict[str, Version] = {}  # damaged files that could not be moved
        self._listed: dict[Series, frozenset[str]] = {}  # the periods that are noted as written

    # -- reading

    def with_file(self, series: Series, span: Span) -> list[Span]:
        """The periods of `span` that have a file, oldest first; none while files are being moved away."""
        return list(self._versions(series, self.named(series, span)))

    def _versions(self, series: Series, periods: Iterable[Span]) -> dict[Span, Version]:
        """The version of the file of each of `periods` that has one."""
        found = ((period, self._version(series.key(period))) for period in periods)
        return {period: version for period, version in found if version is not None}

    def _version(self, key: str) -> Version | None:
        return self._ahead[key][0].version if key in self._ahead else self._files.stat(key)

    def named(self, series: Series, span: Span) -> Sequence[Span]:
        """The periods of `span` that may have a file, going by names alone: `with_file` and perhaps others."""
        return [] if self._generations.of(series.market).leaving else self._named(series, span)

    def left(self, series: Series, span: Span) -> list[Span]:
        """`with_file` for whoever has seen that no files are being moved away."""
        return list(self._versions(series, self._named(series, span)))

    def _named(self, series: Series, span: Span) -> Sequence[Span]:
        timeframe = series.timeframe
        span = Span(max(span.start, EVER.start), min(span.end, EVER.end))
        if (few := _few_periods(timeframe, span)) is not None:
            return few
        names = self._files.list(series.folder)
        found = (parse_period(timeframe, name.removeprefix("period=")) for name in names)
        return sorted(p for p in found if p is not None and p.start < span.end and span.start < p.end)

    def quiet(self, series: Series) -> Coverage:
        """The sidecar's coverage: of periods without any candle; none while files are being moved away."""
        key = series.quiet_key
        version = self._files.stat(key)
        if version is None or self._generations.of(series.market).leaving:
            return Coverage()
        known = self._coverages.get(key)
        if known is not None and known[0] == version:
            return known[1]
        while (blob := self._files.read(key)) is not None:
            try:
                coverage = decode_coverage(blob.data, series, self._files.address(key))
                self._coverages.put(key, (blob.version, coverage), _coverage_bytes(coverage))
                return coverage
            except CorruptPartitionError as exc:
                if not self._has_replacement(series, key, None, blob.version, exc):
                    break
        return Coverage()

    def coverage(self, series: Series, span: Span, *, is_left: bool = False) -> Coverage:
        """What the files say of `span`; rows are not read again for it. ``is_left``: as in `left`."""
        named = self._named if is_left else self.named
        return self._coverage(
            series, span, named, lambda period, quiet: self._load(series, period, quiet)[0].partition.coverage
        )

    def _coverage(
        self,
        series: Series,
        span: Span,
        named: Callable[[Series, Span], Sequence[Span]],
        read: Callable[[Span, Coverage], Coverage],
    ) -> Coverage:
        """What the sidecar and the files of `span` say; `read` has it of a file of which it is not known."""
        quiet = self.quiet(series)  # first: of a period whose first file is written meanwhile either of them knows
        files = self._versions(series, named(series, span))
        found = [quiet.without(SpanSet(files))]
        for period, version in files.items():
            known = self._coverages.get(series.key(period))
            found.append(known[1] if known is not None and known[0] == version else read(period, quiet))
        return Coverage.joined(found)

    def footer_coverage(self, series: Series, span: Span) -> Coverage:
        """What the files say of `span`, read from their last bytes and not proven."""
        return self._coverage(series, span, self.named, lambda period, _: self.footer(series, period)[1])

    def footer(self, series: Series, period: Span) -> tuple[int, Coverage]:
        """The rows and the coverage of a file, read from its last bytes and not proven, where those are enough."""
        tail = self._files.part(series.key(period), -TAIL_BYTES, TAIL_BYTES)
        found = None if tail is None else peek_footer(tail.data)
        if found is None:
            partition = self.load(series, period)
            found = partition.table.num_rows, partition.coverage
        return found

    def current(self, series: Series, period: Span, pages: Sequence[Page], quiet: Coverage) -> tuple[Held, str]:
        """A period as this process sees it, pending pages included, and the tier it came from."""
        key = series.key(period)
        mine = [page for page in pages if page.proof.touches(period)]
        ids = tuple(page.id for page in mine)
        held = self._memory.get(key)
        tier = "memory"
        if held is None or held.version != self._files.stat(key) or held.applied != ids[: len(held.applied)]:
            held, tier = self._load(series, period, quiet)
        if held.applied == ids:
            return held, tier
        merged = merge_pages(held.partition, mine[len(held.applied) :], period)
        is_changed = held.is_changed or merged is not held.partition
        held = Held(held.version, ids, merged, is_changed, held.revisions)
        if held.version is not None:  # without a file, what the sidecar says of it is part of it and may change
            self._memory.put(key, held, merged.nbytes)
        return held, tier

    def load(self, series: Series, period: Span) -> Partition:
        """A period as its file has it; an empty one where there is none, or it is damaged."""
        return self._load(series, period, Coverage())[0].partition

    def _load(self, series: Series, period: Span, quiet: Coverage) -> tuple[Held, str]:
        """A period as the files have it, and the tier. Where there is no file, what the sidecar says of it."""
        key = series.key(period)
        path = self._files.address(key)
        blob, read = self._ahead.pop(key, (None, None))
        if blob is not None and blob.version != self._files.stat(key):
            blob = read = None
        while (blob := blob or self._files.read(key)) is not None:
            try:
                partition = decode_partition(blob.data, series, period, path, read)
                return self._keep(key, blob.version, partition), "disk"
            except CorruptPartitionError as exc:
                if not self._has_replacement(series, key, period, blob.version, exc):
                    return Held(None, (), Partition.empty()), "disk"
                blob = read = None
        return Held(None, (), Partition.empty(quiet.clip(period))), "memory"

    @contextmanager
    def reading_ahead(self, wanted: Iterable[tuple[Series, Span]]) -> Iterator[None]:
        """Many small files at once, for whoever asks for them inside: one right after the other they are decoded in
        two thirds of the time. A file that is replaced meanwhile is read again.
        """
        blobs: dict[str, Blob] = {}
        size = 0
        for series, span in wanted:
            for period in _few_periods(series.timeframe, span) or ():
                key = series.key(period)
                if size < _AHEAD_BYTES and key not in self._memory and (blob := self._files.read(key)) is not None:
                    blobs[key] = blob
                    size += len(blob.data)
        for key, blob in blobs.items():
            try:
                self._ahead[key] = blob, read_partition(blob.data, self._files.address(key))
            except CorruptPartitionError:
                continue  # whoever asks for it meets the damage, and quarantines the file
        try:
            yield
        finally:
            for key in blobs:
                self._ahead.pop(key, None)

    def _keep(self, key: str, version: Version, partition: Partition) -> Held:
        held = Held(version, (), partition, revisions=partition.revisions.num_rows)
        self._memory.put(key, held, partition.nbytes)
        self._coverages.put(key, (version, partition.coverage), _coverage_bytes(partition.coverage))
        return held

    def memory_stats(self) -> MemoryStats:
        """Hits, misses and bytes of the decoded periods."""
        return self._memory.stats()

    # -- writing

    def write(self, series: Series, pages: Sequence[Page], revised: list[int]) -> int:
        """Put pages into files, and quiet spans where there is none into the sidecar. Repeatable at any point.

        Call it inside `exclusive`. Returns how many partition files were written; `revised` takes the opens of stored
        candles that are not what they were, also where a later file fails.
        """
        proof = pages[0].proof if len(pages) == 1 else SpanSet(span for page in pages for span in page.proof)
        periods = row_periods(series, pages)
        if proof.bounds is not None:
            others = (period for period in self.named(series, proof.bounds) if period not in periods)
            periods.update(
                [period for period in others if proof.touches(period) and self._version(series.key(period)) is not None]
            )
        quiet = self.quiet(series)
        written = [period for period in sorted(periods) if self._write_period(series, period, pages, quiet, revised)]
        if written and series.timeframe.period != "all":
            names = [period_name(series.timeframe, period) for period in written]
            self._listed[series] = note(self._files, series, names, self._listed.get(series, frozenset()))
        filed = SpanSet(periods)
        after = with_pages(quiet, [page for page in pages if page.proof - filed]).without(filed)
        if after != quiet:
            self._files.replace(series.quiet_key, encode_coverage(after, series))
        return len(written)

    def _write_period(
        self, series: Series, period: Span, pages: Sequence[Page], quiet: Coverage, revised: list[int]
    ) -> bool:
        key = series.key(period)
        self._bad.pop(key, None)  # a damaged file that could not be moved: try again
        held, _ = self.current(series, period, pages, quiet)
        if held.version is not None and not held.is_changed:
            return False
        if held.version is None and self._files.stat(key) is not None:  # writing would be deleting
            path = self._files.address(key)
            raise StoreError(f"{path} is damaged and cannot be moved to quarantine", path=path)
        data, head = encode_partition(held.partition, series, period)
        partition = msgspec.structs.replace(held.partition, head=head)

        # kept just before anybody can see the file, so that nobody has to read it
        self._files.replace(key, data, lambda version: self._keep(key, version, partition))
        if held.partition.revisions.num_rows > held.revisions:
            revised += times_of(held.partition.revisions.slice(held.revisions)).tolist()
        return True

    # -- damage

    def _has_replacement(
        self, series: Series, key: str, period: Span | None, version: Version, exc: CorruptPartitionError
    ) -> bool:
        """Quarantine a damaged file and report it; True where another process has replaced it meanwhile: read again."""
        if self._bad.get(key) == version:
            return False
        try:
            with self._files.exclusive(series.lock_key):
                if self._files.stat(key) != version:
                    return self._files.stat(key) is not None
                if period is None:
                    moved = self._files.quarantine(key, self._clock.now_us())
                else:
                    self._listed.pop(series, None)
                    moved = quarantine_period(self._files, series, period, self._clock.now_us())
        except StoreError as failure:
            self._bad[key] = version
            self._incidents.record("damaged", str(exc.path), f"{exc.reason}; it stays where it is ({failure})")
            return False
        self._incidents.record("quarantined", str(exc.path), f"{exc.reason}; moved to {moved}")
        return False


def _few_periods(timeframe: Timeframe, span: Span) -> tuple[Span, ...] | None:
    """The periods of a `span` that has few of them; None for a longer one."""
    is_short = span.length_us <= _MANY_PERIODS * _PERIOD_US[timeframe.period]
    return periods_in(timeframe, span) if is_short else None


def row_periods(series: Series, pages: Iterable[Page], span: Span = EVER) -> set[Span]:
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


def _coverage_bytes(coverage: Coverage) -> int:
    parts = [coverage.covered, *coverage.provisional.values(), *coverage.origins.values()]
    return 400 + 120 * sum(map(len, parts))


def series_in(files: Files, exchange: str) -> set[Series]:
    """The series that have a partition or a sidecar."""
    folders, keys = files.series_folders(f"{CANDLES}/exchange={exchange}"), files.walk(f"{QUIET}/exchange={exchange}")
    found = {parse_series(folder.split("/")[1:]) for folder in folders} | {parse_sidecar_key(key) for key in keys}
    return {series for series in found if series is not None}
