"""The archive as a source of candles: what is worth taking from it, and what is checked before it is used.

A file is taken for a whole closed month, or day, where it saves more requests than it costs. It is used only when
the folder lists it, its checksum agrees, every row is a candle of its period, and a sample of rows is what the venue's
REST interface says of them. Anything else (a host that does not answer, a layout that is not known, a file that is
missing or wrong) gives the span back to REST, with one warning a reason.

Each step of a file is a ticket in the scheduler's queue, at the priority of whoever wants the candles; nothing here
waits. The checksum of each file that was used is noted in the store, so that `recheck` finds the files that were
issued again since; what those change goes through revisions like any other correction.

`_lock` guards what is known of folders and files; tickets are submitted and callbacks called outside it.
"""

from __future__ import annotations

import logging
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from backbone.candle_table import compare, rows_inside, times_of
from backbone.clock import Clock, VenueClock
from backbone.coordinator.candles.witness import Page, check, judge, second_request
from backbone.coordinator.scheduler import Scheduler
from backbone.errors import BackboneError, ClosedError, PayloadError, RejectedError, UnreachableError
from backbone.model import Priority, Span
from backbone.routing.archive import (
    ArchiveFile,
    Download,
    checksum_ask,
    file_ask,
    files_of,
    listing_ask,
)
from backbone.routing.wire import PAGE, Ask, CandlePage, candles_ask
from backbone.storage.coverage import SpanSet
from backbone.storage.fold import fold
from backbone.storage.store import CandleStore
from backbone.timeframe import TIMEFRAMES, Timeframe
from backbone.venues import Retention

__all__ = ["Archive", "Recheck", "show_terms"]

log = logging.getLogger("backbone.archive")

_WORTH = 4 * PAGE  # missing candles in a period from which on its file is cheaper than its pages
_OFF_S = 300.0  # after it failed as a whole, the archive is not asked for so long
_LISTED_S = 600.0  # a folder's listing is used for so long
_RELATIVE = 1e-9  # volume and value may be sums in another order
_DAY_US = TIMEFRAMES["1d"].step_us
_MINUTE = TIMEFRAMES["1m"]

Done = Callable[["pa.Table | BackboneError"], None]


@dataclass(frozen=True)
class Recheck:
    """What became of a file that was used: ``same``, ``changed``, or ``refused`` with the reason."""

    file: str
    market: str
    timeframe: str
    state: str
    detail: str


class _Folder:
    """What is known of one folder: its keys, or who waits for them."""

    def __init__(self) -> None:
        self.keys: frozenset[str] | None = None
        self.at_s = 0.0
        self.waiting: list[Callable[[frozenset[str] | BackboneError], None]] = []


_shown: set[str] = set()


def show_terms(url: str) -> None:
    """Say once, where it is seen, under which terms (at `url`) the archive's data may be used."""
    if url not in _shown:
        _shown.add(url)
        said = f"data of the archive is for personal, non-commercial use, not for redistribution: {url}"
        warnings.warn(said, UserWarning, stacklevel=2)


class Archive:
    """Files of the archive for the candle fetcher. Safe to share between threads."""

    def __init__(
        self,
        scheduler: Scheduler,
        store: CandleStore,
        venue: VenueClock,
        clock: Clock,
        *,
        sync_clock: Callable[[], object],
        retention: Callable[[str], Retention | None],
    ) -> None:
        self._scheduler = scheduler
        self._store = store
        self._venue = venue
        self._clock = clock
        self._sync_clock = sync_clock
        self._retention = retention
        self._lock = threading.Lock()
        self._folders: dict[str, _Folder] = {}
        self._refused: set[str] = set()
        self._absent_until_s: dict[str, float] = {}
        self._warned: set[str] = set()
        self._off_until_s = float("-inf")
        self.fallbacks = 0
        """Files that were given back to REST."""

    # -- what to take --------------------------------------------------------------------------------------------

    def files(self, market: str, timeframe: Timeframe, gaps: SpanSet, *, may_ask: bool = True) -> list[ArchiveFile]:
        """The files worth taking for `gaps`, oldest first: months, and days where there is no month's file yet.

        What is published is a matter of the venue's clock, so a small request is made where that is unknown.
        """
        if self._clock.monotonic() < self._off_until_s or sum(timeframe.count(gap) for gap in gaps) < _WORTH:
            return []
        if may_ask:
            try:
                self._sync_clock()
            except BackboneError as exc:
                log.info("archive.left market=%s %s", market, exc)
                return []
        now = self._venue.now_us()
        found: list[ArchiveFile] = []
        for gap in gaps:
            for month in files_of(market, timeframe, gap, months=True):
                if found and found[-1].span.end > month.span.start:
                    continue  # the gap before this one took it
                if self._is_worth(month, gaps, now):
                    found.append(month)
                    continue
                part = Span(max(gap.start, month.span.start), min(gap.end, month.span.end))
                days = files_of(market, timeframe, part, months=False)
                found += [d for d in days if d not in found[-1:] and self._is_worth(d, gaps, now)]
        return found

    def _is_worth(self, file: ArchiveFile, gaps: SpanSet, now_us: int) -> bool:
        if not file.may_be_there(now_us) or file.key in self._refused:
            return False
        if self._clock.monotonic() < self._absent_until_s.get(file.key, 0.0):
            return False
        return sum(file.timeframe.count(gap) for gap in gaps.clip(file.span)) >= _WORTH

    def section_end(self, market: str, timeframe: Timeframe, span: Span, end_us: int) -> int:
        """Where a section of a long job that begins at `span`'s start should end: with the file that it can take."""
        for file in self.files(market, timeframe, SpanSet([span]))[:1]:
            if file.span.start <= span.start:
                return min(span.end, file.span.end)
            return min(end_us, file.span.start)
        return end_us

    # -- taking it -----------------------------------------------------------------------------------------------

    def fetch(self, file: ArchiveFile, priority: Priority, done: Done) -> None:
        """Take a file; `done` is called once, with its candles or with why REST is to be asked instead."""
        _Taking(self, file, priority, done).start()

    def submit(self, ask: Ask, priority: Priority, then: Callable[[Any], None]) -> None:
        """Put one question through the queue; `then` gets its value or the error."""

        def landed(_: Ask | None, outcome: Any) -> None:
            then(outcome if isinstance(outcome, BackboneError) else outcome.value)

        try:
            self._scheduler.submit(ask.group, priority, lambda: ask, landed)
        except ClosedError as exc:
            then(exc)

    def list_folder(self, file: ArchiveFile, priority: Priority, then: Callable[[Any], None]) -> None:
        """The keys of the file's folder, asked for once by all who want them at a time."""
        now = self._clock.monotonic()
        with self._lock:
            folder = self._folders.setdefault(file.folder, _Folder())
            keys = folder.keys if now - folder.at_s < _LISTED_S else None
            is_first = keys is None and not folder.waiting
            if keys is None:
                folder.waiting.append(then)
        if keys is not None:
            then(keys)
        elif is_first:
            self.submit(listing_ask(file.folder), priority, lambda found: self._listed(folder, found))

    def _listed(self, folder: _Folder, found: frozenset[str] | BackboneError) -> None:
        with self._lock:
            waiting, folder.waiting = folder.waiting, []
            if not isinstance(found, BackboneError):
                folder.keys, folder.at_s = found, self._clock.monotonic()
        for then in waiting:
            then(found)

    def refuse(self, file: ArchiveFile, reason: str, error: BackboneError | None = None) -> BackboneError:
        """REST is to be asked for this file's span; each reason is logged once."""
        with self._lock:
            self.fallbacks += 1
            if isinstance(error, UnreachableError):
                self._off_until_s = self._clock.monotonic() + _OFF_S
            elif not isinstance(error, ClosedError):
                self._refused.add(file.key)
            is_news = reason not in self._warned and not isinstance(error, ClosedError)
            self._warned.add(reason)
        if is_news:
            detail = f" ({error})" if error else ""
            log.warning("archive.unused file=%s %s: asked of REST instead%s", file, reason, detail)
        return error or PayloadError(f"{file}: {reason}", market=file.market)

    def is_early(self, file: ArchiveFile) -> bool:
        """Whether a missing file is not due yet: it is looked for again with the next listing."""
        if file.is_due(self._venue.now_us()):
            return False
        with self._lock:
            self._absent_until_s[file.key] = self._clock.monotonic() + _LISTED_S
        return True

    def note(self, file: ArchiveFile, download: Download) -> None:
        """Note the checksum of what is being stored."""
        self._store.upkeep.note_files(file.market, file.timeframe, {file.key: download.sha256})

    def sample(self, file: ArchiveFile, table: pa.Table) -> _Sample:
        """What to ask of REST before `table` is used."""
        kept = self._retention(file.timeframe.name)
        is_old = kept is not None and file.span.start < self._venue.now_us() - kept.days * _DAY_US
        return _Sample(file, table, _MINUTE if is_old else file.timeframe)

    # -- later ---------------------------------------------------------------------------------------------------

    def recheck(self, market: str, timeframe: Timeframe, span: Span, ask: Callable[[Ask], Any]) -> Iterator[Recheck]:
        """Compare the files that were used with what the archive now says of them; store what was issued again.

        `ask` puts one question and waits for its value; raises the error tree.
        """
        noted = self._store.upkeep.noted_files(market, timeframe)
        candidates = files_of(market, timeframe, span, months=True) + files_of(market, timeframe, span, months=False)
        for file in candidates:
            known = noted.get(file.key)
            if known is None:
                continue
            try:
                stated: str = ask(checksum_ask(file))
                detail = "" if stated == known else self._replace(file, stated, ask)
                state = "same" if stated == known else "changed"
            except BackboneError as exc:
                state, detail = "refused", str(exc)
            yield Recheck(file.key, market, timeframe.name, state, detail)

    def _replace(self, file: ArchiveFile, stated: str, ask: Callable[[Ask], Any]) -> str:
        generation = self._store.generation(file.market)
        download: Download = ask(file_ask(file))
        if download.sha256 != stated:
            raise PayloadError(f"{file}: its checksum does not agree", market=file.market)
        sample = self.sample(file, download.table)
        while sample.ask is not None:
            sample.take(ask(sample.ask))
        if (difference := sample.difference()) is not None:
            raise PayloadError(f"{file}: it differs from REST ({difference})", market=file.market)
        held = self._store.coverage(file.market, file.timeframe, file.span)
        before = self._store.revisions(file.market, file.timeframe, file.span).num_rows
        table = rows_inside(download.table, held)
        now = self._venue.now_us()
        series = file.market, file.timeframe
        if not self._store.put(*series, table, held, source="archive", now_us=now, generation=generation):
            raise PayloadError(f"{file}: what is stored of {file.market} was quarantined meanwhile", market=file.market)
        self._store.flush(file.market, file.timeframe)
        self.note(file, download)
        return f"{self._store.revisions(file.market, file.timeframe, file.span).num_rows - before} candles revised"


class _Taking:
    """One file on its way: listing → checksum → file → sample → done. A checksum that disagrees is asked once more."""

    def __init__(self, archive: Archive, file: ArchiveFile, priority: Priority, done: Done) -> None:
        self._archive = archive
        self._file = file
        self._priority = priority
        self._done: Done | None = done
        self._stated = ""
        self._tries = 0
        self._download: Download | None = None
        self._sample: _Sample | None = None

    def start(self) -> None:
        self._archive.list_folder(self._file, self._priority, self._listed)

    def _finish(self, outcome: pa.Table | BackboneError) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(outcome)

    def _refuse(self, reason: str, error: BackboneError | None = None) -> None:
        self._finish(self._archive.refuse(self._file, reason, error))

    def _failed(self, what: str, error: BackboneError) -> None:
        if isinstance(error, UnreachableError):
            self._refuse("the archive does not answer", error)
        elif isinstance(error, RejectedError):
            self._refuse(f"the archive refuses {what}", error)
        else:
            self._refuse(f"{what} is not as known", error)

    def _listed(self, found: frozenset[str] | BackboneError) -> None:
        if isinstance(found, BackboneError):
            self._failed("its listing", found)
        elif self._file.key not in found:
            missing = RejectedError(f"{self._file} is not there", status=404, market=self._file.market)
            if self._archive.is_early(self._file):
                self._finish(missing)
            else:
                self._refuse("the archive has no such file", missing)
        else:
            self._ask_checksum()

    def _ask_checksum(self) -> None:
        self._tries += 1
        self._archive.submit(checksum_ask(self._file), self._priority, self._summed)

    def _summed(self, found: str | BackboneError) -> None:
        if isinstance(found, BackboneError):
            self._failed("a checksum", found)
            return
        self._stated = found
        self._archive.submit(file_ask(self._file), self._priority, self._arrived)

    def _arrived(self, found: Download | BackboneError) -> None:
        if isinstance(found, BackboneError):
            self._failed("a file", found)
        elif found.sha256 != self._stated:
            if self._tries < 2:  # issued again between the two
                self._ask_checksum()
            else:
                self._refuse("a checksum does not agree with its file")
        else:
            self._download = found
            self._sample = self._archive.sample(self._file, found.table)
            self._ask_sample(self._sample)

    def _ask_sample(self, sample: _Sample) -> None:
        if sample.ask is not None:
            self._archive.submit(sample.ask, self._priority, self._sampled)

    def _sampled(self, page: CandlePage | BackboneError) -> None:
        assert self._download is not None
        assert self._sample is not None
        error = page if isinstance(page, BackboneError) else None
        if not isinstance(page, BackboneError):
            try:
                self._sample.take(page)
            except PayloadError as exc:
                error = exc
        if error is not None:
            self._finish(self._archive.refuse(self._file, "a sample could not be had", error))
            return
        if self._sample.ask is not None:
            self._ask_sample(self._sample)
            return
        difference = self._sample.difference()
        if difference is not None:
            self._refuse("a file differs from REST", PayloadError(difference, market=self._file.market))
            return
        try:
            self._archive.note(self._file, self._download)
        except BackboneError as exc:  # the disk's refusal: the rows themselves will be refused too, with an error
            log.warning("archive.not_noted file=%s %s", self._file, exc)
        self._finish(self._download.table)


class _Sample:
    """A page of REST candles somewhere in a file, chosen by the file's name, and the comparison with them.

    Seconds that REST no longer has are compared as minutes. ``ask`` is the next request, None once all is had: a page
    that is shorter than asked needs a second one, as everywhere (`witness`).
    """

    def __init__(self, file: ArchiveFile, table: pa.Table, timeframe: Timeframe) -> None:
        self._file = file
        self._timeframe = timeframe
        self._table = table if timeframe == file.timeframe else fold(table, timeframe)
        self._times = times_of(self._table)
        to_us = file.span.end
        rows = len(self._times)
        if rows:
            at = max(zlib.crc32(file.key.encode()) % rows, min(rows, PAGE) - 1)
            to_us = timeframe.next(int(self._times[at]))
        self._theirs: list[pa.Table] = []
        self._proven = SpanSet()
        self._oldest_us: int | None = None
        self._next(Page(to_us, PAGE, Span(min(file.span.start, to_us), to_us)))

    def _next(self, page: Page) -> None:
        self._page = page
        self.ask: Ask | None = candles_ask(self._file.market, self._timeframe, page.bound_us, page.count)

    def take(self, reply: CandlePage) -> None:
        """What `ask` brought. Raises `PayloadError` for silence that cannot be."""
        page, times = self._page, times_of(reply.table)
        verdict = judge(page, reply.oldest_us, reply.rows)
        check(page, verdict, int(times[-1]) if len(times) else None, self._oldest_us, str(self._file))
        edge = page.claim.end if page.seeks else verdict.edge_us
        if not page.seeks:
            self._theirs.insert(0, rows_inside(reply.table, verdict.proof - self._proven))
            self._proven = self._proven | verdict.proof
            self._oldest_us = int(times[0]) if len(times) else self._oldest_us
        if edge is None or edge <= self._file.span.start:
            self.ask = None
        else:
            self._next(second_request(self._timeframe, edge, self._oldest_us, is_sought=page.seeks, count=PAGE))

    def difference(self) -> str | None:
        """What differs between the file and REST where both speak; None where nothing does."""
        spoken = self._proven.clip(self._file.span)
        mine, theirs = (rows_inside(table, spoken) for table in (self._table, pa.concat_tables(self._theirs)))
        return "; ".join(compare(mine, theirs, relative=_RELATIVE).describe("the file's", "REST's")) or None
