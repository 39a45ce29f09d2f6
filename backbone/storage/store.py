"""The candle store: what is held of every market, what is covered, and how it gets to disk.

Invariants. Rows, coverage and revisions of a period are one file, replaced in one step, so no coverage exists without
its rows. A period that has a file is described by that file alone; the *quiet* sidecar of a series covers only periods
that have none. New pages are visible to this process at once and are on disk 0.8 s later, or at the next
`flush`: a crash loses them whole, coverage and rows together.

Writers of a series are serialised by `Files.exclusive`. Readers take no file lock.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from backbone.candle_table import count_inside
from backbone.clock import Clock
from backbone.errors import CorruptPartitionError, StoreError
from backbone.locks import RUN_LOCK
from backbone.model import CANDLE_SCHEMA, Span, empty_candles
from backbone.storage.cache import MemoryStats
from backbone.storage.claims import Claims
from backbone.storage.commit import Committer
from backbone.storage.coverage import EVER, VENUE, Coverage, SpanSet, on_grid
from backbone.storage.events import Events
from backbone.storage.files import Files, LocalFiles
from backbone.storage.generations import Generation, Generations
from backbone.storage.incidents import Incident, Incidents
from backbone.storage.layout import CANDLES, Series, parse_period, series_of
from backbone.storage.merge import Page
from backbone.storage.partition import REVISION_SCHEMA, Partition
from backbone.storage.pending import PendingPages
from backbone.storage.periods import Periods, row_periods, series_in
from backbone.storage.upkeep import Upkeep
from backbone.storage.view import Stored, View, covered_part
from backbone.timeframe import TIMEFRAMES, Timeframe, period_of

if TYPE_CHECKING:
    import polars as pl

    from backbone.storage.audit import Problem
    from backbone.storage.copy import Copied
    from backbone.storage.lazy import Selected

__all__ = ["CandleStore"]


REVISIONS_OF_MARKETS = pa.schema(
    [pa.field("market", pa.string()), pa.field("timeframe", pa.string()), *REVISION_SCHEMA]
)


class CandleStore:
    """Candles of one exchange in a data folder. Thread-safe; several processes may share the folder.

    Constructing touches no disk. Every call that reads may find a damaged file: it is quarantined, reported once, and
    its span is unknown from then on. Every call that writes may raise `StoreError`; nothing that was durable is
    harmed.

    One class because it is the only face of the storage layer: most methods forward to one part of it.
    """

    def __init__(
        self,
        root: Path | Files,
        exchange: str,
        *,
        clock: Clock,
        memory_bytes: int = 256 << 20,
        group_commit_s: float = 0.8,
    ) -> None:
        self._exchange = exchange
        self._clock = clock
        self._files: Files = LocalFiles(root, clock) if isinstance(root, Path) else root
        self._incidents = Incidents(clock)
        self._generations = Generations(self._files, exchange)
        self._periods = Periods(self._files, clock, self._incidents, memory_bytes, self._generations)
        self._pending = PendingPages(clock, group_commit_s)
        self._committer = Committer(
            self._files,
            clock,
            self._pending,
            self._periods,
            self._incidents,
            self._generations,
            lambda market: self.upkeep.end_move(market),
            self._note_restated,
        )
        self._ids = itertools.count(1)
        self._roomy: set[str] = set()  # the files whose folders were made, or tried
        self.events = Events(self._files, exchange, clock, self._incidents)
        """What happened to the markets."""
        self.upkeep = Upkeep(
            self._files,
            exchange,
            clock,
            pending=self._pending,
            periods=self._periods,
            events=self.events,
            generations=self._generations,
            flush=self.flush,
        )
        """Series as wholes: inventory, quarantine, removal."""

    def claims(self, market: str, timeframe: Timeframe) -> Claims:
        """Which spans of a series are being fetched, by this store's client and by others on the folder."""
        return Claims(self._files, self._series(market, timeframe).claims_key, self._clock)

    def _series(self, market: str, timeframe: Timeframe) -> Series:
        return series_of(self._exchange, market, timeframe)

    def generation(self, market: str) -> int:
        """A number that rises when all that is stored of a market is quarantined, by any process."""
        return self._generations.of(market).number

    def state(self, market: str) -> Generation:
        """The same, and whether files are being moved away: what is read between two equal ones is of one state."""
        return self._generations.of(market)

    def view(self, market: str, timeframe: Timeframe) -> View:
        """What is held of a series, by one look at its market's generation: for questions that belong together."""
        series = self._series(market, timeframe)
        return self._view(series, EVER)

    def _view(self, series: Series, span: Span) -> View:
        return View(self._periods, series, self._pending.of(series, span), self._generations)

    def _pages(self, series: Series, span: Span) -> Sequence[Page]:
        """The pages in memory that say something about `span` and are of the generation that counts."""
        return self._view(series, span).pages

    # -- writing

    def put(
        self,
        market: str,
        timeframe: Timeframe,
        table: pa.Table,
        proof: SpanSet | Span,
        *,
        provisional: tuple[Span, int] | None = None,
        source: str = VENUE,
        now_us: int,
        generation: int | None = None,
        readable: Callable[[], object] | None = None,
    ) -> bool:
        """Take rows that are everything the venue has in `proof`; a proved span without rows is quiet.

        Inside `proof` they replace what was held; a difference becomes a revision. ``provisional`` names a span that is
        to be requested again at a time (`due`). Readable at once; on disk within the group-commit time of further
        puts, or at `flush`. ``generation`` is the market's when they were asked: where it has risen since, nothing is
        taken and the answer is False. ``readable`` is called once the rows are, before anything goes to disk.

        Raises `StoreError` for rows outside `proof`, unsorted, doubled or off the grid (nothing is kept), or when a due
        write failed (everything is kept in memory and tried again).
        """
        series = self._series(market, timeframe)
        now = self.upkeep.end_move(market)
        if generation not in (None, now):
            return False
        page = self._page(series, table, on_grid(SpanSet.of(proof), timeframe), provisional, source, now_us, now)
        if page.proof:
            with self._pending.added(series, page) as due:
                if readable is not None:
                    readable()
                self._committer.write(due)
        return self.generation(market) == now

    def make_room(self, market: str, timeframe: Timeframe, time_us: int) -> None:
        """Make the folder of the period of `time_us` ahead of its first file, half of whose time that takes.

        For a background thread.
        """
        series = self._series(market, timeframe)
        key = series.key(period_of(timeframe, time_us))
        if key not in self._roomy:
            self._roomy.add(key)
            with RUN_LOCK.waiting():
                self._files.make_room(key)

    def _page(
        self,
        series: Series,
        table: pa.Table,
        proof: SpanSet,
        provisional: tuple[Span, int] | None,
        source: str,
        now_us: int,
        generation: int,
    ) -> Page:
        if table.schema != CANDLE_SCHEMA:
            raise StoreError(
                f"{series}: a candle table has the columns {CANDLE_SCHEMA.names}, not {table.schema.names}"
            )
        table = table if table.num_rows else empty_candles()
        again = {} if provisional is None else {provisional[1]: proof.clip(provisional[0])}
        page = Page(next(self._ids), table, proof, again, source, now_us, generation)
        times = page.times
        if len(times):
            if not bool((times[1:] > times[:-1]).all()):
                raise StoreError(f"{series}: rows are not in order, or doubled")
            if not proof.contains((int(times[0]), int(times[-1]) + 1)):  # one span of all of them: the usual case
                outside = len(times) - count_inside(table, proof)
                if outside:
                    raise StoreError(f"{series}: {outside} rows lie outside the span they are said to prove")
            if series.timeframe.count_off_grid(times):
                raise StoreError(f"{series}: rows do not open on the {series.timeframe.name} grid")
        return page

    def _note_restated(self, series: Series, opens: list[int]) -> None:
        """One event a commit; which candles, and their values, is in the files (`revisions`)."""
        ends = (dt.datetime.fromtimestamp(at // 1_000_000, dt.UTC) for at in (min(opens), max(opens)))
        first, last = (f"{end:%Y-%m-%dT%H:%M:%SZ}" for end in ends)
        detail = {"timeframe": series.timeframe.name, "candles": len(set(opens)), "first": first, "last": last}
        self.events.add(series.market, "restated", detail, how="candles asked again")

    def flush(self, market: str | None = None, timeframe: Timeframe | None = None) -> None:
        """Bring every page taken so far (of one market, of one timeframe) to disk. Raises `StoreError`."""
        self._committer.write(self._pending.series(market, timeframe))

    # -- reading

    def read(self, market: str, timeframe: Timeframe, span: Span) -> Stored:
        """The stored rows whose open lies in `span`, oldest first, and what of it is covered.

        Raises `StoreError` where a file cannot be read or is from a newer version; damage is no error here.
        """
        series = self._series(market, timeframe)
        while True:
            view = self._view(series, EVER)
            found = view.read(span)
            if self._generations.of(market) == view.generation:
                return found

    def reading_ahead(self, timeframe: Timeframe, wanted: Iterable[tuple[str, Span]]) -> AbstractContextManager[None]:
        """Inside, `read` of these markets and spans finds small files read and decoded, all at once."""
        return self._periods.reading_ahead((self._series(market, timeframe), span) for market, span in wanted)

    def coverage(self, market: str, timeframe: Timeframe, span: Span) -> SpanSet:
        """The part of `span` that is covered, rows or quiet. The rest was never requested, or got lost."""
        return self._view(self._series(market, timeframe), span).covered(span)

    def footer_coverage(self, market: str, timeframe: Timeframe, span: Span) -> SpanSet:
        """The part of `span` that the files say they cover, read from their last bytes and not proven.

        For spans of very many files that another engine is about to read. What is not flushed is in none.
        """
        series = self._series(market, timeframe)
        return covered_part(self._periods.footer_coverage(series, span), timeframe, span)

    def weigh(self, market: str, timeframe: Timeframe, most: int) -> tuple[int, int, int]:
        """Rows, bytes and covered candle slots of the newest `most` files of a series, going by their footers."""
        series = self._series(market, timeframe)
        rows = size = slots = 0
        for period in self._periods.with_file(series, EVER)[-most:]:
            count, coverage = self._periods.footer(series, period)
            rows, size = rows + count, size + self._files.size(series.key(period))
            slots += sum(timeframe.count(span) for span in coverage.covered)
        return rows, size, slots

    def due(self, market: str, timeframe: Timeframe, span: Span, now_us: int) -> SpanSet:
        """The part of `span` that is held provisionally and is to be requested again at `now_us`."""
        return self._view(self._series(market, timeframe), span).coverage(span).due(now_us).clip(span)

    def from_source(self, market: str, timeframe: Timeframe, span: Span, source: str) -> SpanSet:
        """The part of `span` whose rows or quiet came from `source`, such as ``adopted``."""
        return self._view(self._series(market, timeframe), span).coverage(span).of_source(source).clip(span)

    def is_settled(self, market: str, timeframe: Timeframe, span: Span) -> bool:
        """Whether what is held of `span` is on disk and none of it is provisional."""
        view = self._view(self._series(market, timeframe), span)
        return not view.pages and not view.coverage(span).due(EVER.end).touches(span)

    def oldest(self, market: str, timeframe: Timeframe) -> int | None:
        """Open of the oldest candle held; None where none is."""
        held = self._partitions(self._series(market, timeframe))
        return next((int(partition.times[0]) for partition in held if len(partition.times)), None)

    def newest(self, market: str, timeframe: Timeframe) -> int | None:
        """Open of the newest candle held; None where none is."""
        held = self._partitions(self._series(market, timeframe), newest_first=True)
        return next((int(partition.times[-1]) for partition in held if len(partition.times)), None)

    def held_until(self, market: str, timeframe: Timeframe, before_us: int) -> int | None:
        """The end of what is covered before a time; None where nothing is."""
        series, span = self._series(market, timeframe), Span(EVER.start, before_us)
        periods = self._periods.named(series, span)
        held = self._periods.quiet(series).without(SpanSet(periods)).covered.clip(span)
        held = held | SpanSet(part for page in self._pages(series, span) for part in page.proof).clip(span)
        for period in reversed(periods):
            if held and held.spans[-1].end >= min(period.end, before_us):
                break
            if part := self._periods.coverage(series, period).covered.clip(period).clip(span):
                held = held | part
                break
        return held.spans[-1].end if held else None

    def near(self, market: str, timeframe: Timeframe, span: Span) -> pa.Table:
        """The rows held in the newest period that touches `span`; in the nearest on each side, where none does."""
        series = self._series(market, timeframe)
        pages = self._pages(series, EVER)
        periods = sorted({*self._periods.with_file(series, EVER), *row_periods(series, pages)})
        below = bisect_left(periods, span.end, key=lambda period: period.start)
        chosen = periods[max(0, below - 1) : below + (0 if below and periods[below - 1].end > span.start else 1)]
        quiet = self._periods.quiet(series) if chosen else Coverage()
        found = (self._periods.current(series, period, pages, quiet)[0].partition for period in chosen)
        return pa.concat_tables([empty_candles(), *(partition.table for partition in found)])

    def _partitions(self, series: Series, span: Span = EVER, *, newest_first: bool = False) -> Iterable[Partition]:
        pages = self._pages(series, EVER)
        periods = sorted({*self._periods.named(series, span), *row_periods(series, pages, span)})
        quiet = self._periods.quiet(series)
        for period in reversed(periods) if newest_first else periods:
            yield self._periods.current(series, period, pages, quiet)[0].partition

    def quiet_before(self, market: str, timeframe: Timeframe) -> int:
        """The time before which all is known to be quiet: the listing, once known; else 0."""
        oldest = self.oldest(market, timeframe)
        until = EVER if oldest is None else Span(EVER.start, oldest)  # later files say nothing of it
        first = next(iter(self.coverage(market, timeframe, until)), Span(0, 0))
        return first.end if first.start == 0 else 0

    def incidents(self) -> list[Incident]:
        """What went wrong on disk since this store was opened, oldest first: damaged files, writes that failed."""
        return self._incidents.list()

    def damages(self, market: str, timeframe: Timeframe, spans: SpanSet) -> list[CorruptPartitionError]:
        """The damaged files of `spans` that this store came upon, as errors: why those are unknown, while they are."""
        series, found = self._series(market, timeframe), []
        for incident in self.incidents():
            period = parse_period(timeframe, PurePath(incident.path).parent.name.removeprefix("period="))
            if period is None or incident.kind not in ("quarantined", "damaged"):
                continue
            if self._files.address(series.key(period)) == incident.path and spans.touches(period):
                words = f"{incident.path} was damaged: {incident.detail}"
                found.append(CorruptPartitionError(words, path=incident.path, reason=incident.detail))
        return found

    # -- about the store

    def paths(self, market: str, timeframe: Timeframe, span: Span) -> list[Path | str]:
        """The partition files that hold `span`, oldest first. What is not flushed is in none."""
        series = self._series(market, timeframe)
        return [self._files.path(series.key(period)) for period in self._periods.with_file(series, span)]

    def lazy_frame(self, selected: Selected, again: Callable[[], Selected]) -> pl.LazyFrame:
        """The rows of partition files, as Polars reads them when the frame is collected; see `backbone.storage.lazy`.

        Where they are gone by then, those of what `again` selects.
        """
        from backbone.storage.lazy import FileScan

        return FileScan(selected, self._files, self._exchange, again).frame()

    def version(self, market: str, timeframe: Timeframe, span: Span) -> str:
        """A digest of everything an answer for `span` is made from: another one means another answer is possible."""
        series = self._series(market, timeframe)
        ids = [page.id for page in self._pages(series, span)]
        keys = [series.quiet_key, *map(series.key, self._periods.with_file(series, span))]
        state = [(key, self._files.stat(key)) for key in keys]
        mine = (os.getpid(), id(self), ids) if ids else ()
        return hashlib.blake2b(repr((state, mine)).encode(), digest_size=16).hexdigest()

    def series(self) -> list[tuple[str, Timeframe]]:
        """Every market and timeframe in the folder, or waiting to get there. For audits: it lists folders."""
        found = {*self._pending.series(), *series_in(self._files, self._exchange)}
        gone = set(self._generations.leaving())
        held = ((s.market, s.timeframe) for s in found if s.market not in gone)
        return sorted(held, key=lambda pair: (pair[0], pair[1].step_us))

    def lengths(self, market: str) -> list[Timeframe]:
        """The timeframes of which anything of a market is stored, or waiting to get there."""
        folder = f"{CANDLES}/exchange={self._exchange}/market={market}"
        names = {name.removeprefix("timeframe=") for name in self._files.list(folder)}
        waiting = {series.timeframe for series in self._pending.series(market)}
        return [each for each in TIMEFRAMES.values() if each.directory in names or each in waiting]

    def _chosen(self, market: str | None, timeframe: Timeframe | None) -> list[Series]:
        if market is not None and timeframe is not None:
            return [self._series(market, timeframe)]
        wanted = (pair for pair in self.series() if market in (None, pair[0]) and timeframe in (None, pair[1]))
        return [self._series(*pair) for pair in wanted]

    def revisions(self, market: str | None = None, timeframe: Timeframe | None = None, span: Span = EVER) -> pa.Table:
        """What changed about candles that were already stored, oldest candle first; of the files that touch `span`.

        Columns ``market timeframe time old_open … old_value new_open … new_value seen source``; null old values mean
        that the candle came late, null new ones that the venue withdrew it.
        """
        tables = [REVISIONS_OF_MARKETS.empty_table()]
        for series in self._chosen(market, timeframe):
            for partition in self._partitions(series, span):
                found = partition.revisions
                names = [[value] * found.num_rows for value in (series.market, series.timeframe.name)]
                columns: list[Any] = [pa.array(values, pa.string()) for values in names]
                columns += found.columns
                tables.append(pa.Table.from_arrays(columns, schema=REVISIONS_OF_MARKETS))
        return pa.concat_tables(tables).combine_chunks()

    def verify(self, market: str | None = None, timeframe: Timeframe | None = None) -> list[Problem]:
        """Prove the files from themselves: what is wrong with them, nothing where all is well. Changes nothing.

        Damage, rows out of order, doubled, off the grid, outside their period or their coverage, impossible prices,
        files that do not belong there, unfinished writes of processes that are gone, and periods whose file is gone.
        """
        from backbone.storage import audit

        return audit.verify(self._files, self._exchange, market, timeframe)

    def repair(self) -> list[Problem]:
        """Repair what `verify` finds, and say what was done: a damaged or foreign file is quarantined, an unfinished
        write removed. What a quarantined file covered is unknown afterwards, and so is requested again.
        """
        from backbone.storage import audit

        self.flush()
        done = audit.repair(self._files, self._exchange, self._clock.now_us())
        for problem in done:
            if problem.kind != "leftover":
                self._incidents.record("quarantined", problem.path, problem.detail)
        return done

    def copy_to(self, target: Files) -> Copied:
        """Copy everything of every exchange to `target` and prove it there; see `backbone.storage.copy`."""
        from backbone.storage.copy import copy_store

        self.flush()
        self.upkeep.end_moves()
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
        return self._pending.rows()

    def memory_stats(self) -> MemoryStats:
        """Hits, misses and bytes of the decoded partitions."""
        return self._periods.memory_stats()

    @property
    def commits(self) -> int:
        """How many partition files this store has written."""
        return self._committer.files_written

    def close(self) -> None:
        """Bring everything to disk and take no more. Reading still works. Raises `StoreError`; may be repeated."""
        self._pending.close()
        self.flush()

    def __repr__(self) -> str:
        waiting = self.pending_rows()
        return f"CandleStore({self._files.address(CANDLES)!r}, {self._exchange}, {waiting} rows pending)"
