"""The archive as a source of candles: what is worth taking from it, and what is checked before it is used.

A file is taken for a whole closed month, or day, where it saves more requests than it costs. It is used only when
the folder lists it, its checksum agrees, every row is a candle of its period, and a sample of rows is what the venue's
REST interface says of them. Anything else (a host that does not answer, a layout that is not known, a file that is
missing or wrong) gives the span back to REST, with one warning a reason.

What is asked of a file, and in which order, is written as `steps`. `fetch` puts each question as a ticket into the
scheduler's queue, at the priority of whoever wants the candles, and waits for none; `recheck` waits for each. The
checksum of each file that was used is noted in the store, so that `recheck` finds the files that were issued again
since; what those change goes through revisions like any other correction.

`_lock` guards what is in flight and why files were refused; tickets are submitted and callbacks called outside it. What
a folder lists and which files are absent is replaced whole, by whoever asked.
"""

from __future__ import annotations

import functools
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
from backbone.coordinator.steps import Steps, Then, answered, queue_steps, submit
from backbone.errors import BackboneError, ClosedError, PayloadError, RejectedError, UnreachableError
from backbone.model import Priority, Span
from backbone.routing.archive import ArchiveFile, Download, checksum_ask, file_ask, files_of, listing_ask
from backbone.routing.rest import Reply
from backbone.routing.wire import PAGE, Ask, CandlePage, candles_ask
from backbone.storage.coverage import SpanSet
from backbone.storage.fold import fold
from backbone.storage.store import CandleStore
from backbone.timeframe import DAY_US, TIMEFRAMES, Timeframe
from backbone.venues import Retention

__all__ = ["Archive", "Recheck", "show_terms"]

log = logging.getLogger("backbone.archive")

_WORTH = 4 * PAGE  # missing candles in a period from which on its file is cheaper than its pages
_OFF_S = 300.0  # after it failed as a whole, the archive is not asked for so long
_LISTED_S = 600.0  # a folder's listing is used for so long
_RELATIVE = 1e-9  # volume and value may be sums in another order
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
        self._asked: dict[Ask, list[Then]] = {}  # in flight → who waits for the answer
        self._listings: dict[str, tuple[float, frozenset[str]]] = {}  # folder → when it was listed, its keys
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
        queue_steps(self._take(file), functools.partial(self._share, priority), done)

    def _share(self, priority: Priority, ask: Ask, then: Then) -> None:
        """Put one question through the queue; one that is in flight is shared."""
        with self._lock:
            waiting = self._asked.setdefault(ask, [])
            waiting.append(then)
            is_first = len(waiting) == 1

        def arrived(outcome: Reply | BackboneError) -> None:
            with self._lock:
                if self._asked.get(ask) is waiting:
                    del self._asked[ask]
            while waiting:  # where one raises, the queue calls again with that error, for it and for the others
                waiting[0](outcome)
                del waiting[0]

        if is_first:
            submit(self._scheduler, priority, ask, arrived)

    def _take(self, file: ArchiveFile) -> Steps[pa.Table]:
        """Listing → checksum → file → sample → its candles. A checksum that disagrees is asked once more."""
        listed_s, keys = self._listings.get(file.folder, (float("-inf"), frozenset()))
        if self._clock.monotonic() - listed_s >= _LISTED_S:
            keys = yield from self._ask(file, "its listing", listing_ask(file.folder))
            self._listings[file.folder] = self._clock.monotonic(), keys
        if file.key not in keys:
            missing = RejectedError(f"{file} is not there", status=404, market=file.market)
            raise missing if self._is_early(file) else self._refuse(file, "the archive has no such file", missing)
        for _ in range(2):  # it may be issued again between the two questions
            stated = yield from self._ask(file, "a checksum", checksum_ask(file))
            download: Download = yield from self._ask(file, "a file", file_ask(file))
            if download.sha256 == stated:
                break
        else:
            raise self._refuse(file, "a checksum does not agree with its file")
        try:
            difference = yield from self._difference(file, download.table)
        except BackboneError as exc:
            self._refuse(file, "a sample could not be had", exc)
            raise
        if difference is not None:
            raise self._refuse(file, "a file differs from REST", PayloadError(difference, market=file.market))
        try:
            self._store.upkeep.note_files(file.market, file.timeframe, {file.key: stated})
        except BackboneError as exc:  # the disk's refusal: the rows themselves will be refused too, with an error
            log.warning("archive.not_noted file=%s %s", file, exc)
        return download.table

    def _ask(self, file: ArchiveFile, what: str, ask: Ask) -> Steps[Any]:
        """One question about a file; without its answer the file is refused."""
        try:
            return (yield ask).value
        except UnreachableError as exc:
            self._refuse(file, "the archive does not answer", exc)
            raise
        except RejectedError as exc:
            self._refuse(file, f"the archive refuses {what}", exc)
            raise
        except BackboneError as exc:
            self._refuse(file, f"{what} is not as known", exc)
            raise

    def _difference(self, file: ArchiveFile, table: pa.Table) -> Steps[str | None]:
        """What differs between a file and a page of REST candles somewhere in it, chosen by its name; None for nothing.

        Seconds that REST no longer has are compared as minutes. A page that is shorter than asked needs a second one,
        as everywhere (`witness`). Raises `PayloadError` for a page that lacks what must be there.
        """
        kept = self._retention(file.timeframe.name)
        is_old = kept is not None and file.span.start < self._venue.now_us() - kept.days * DAY_US
        timeframe = _MINUTE if is_old else file.timeframe
        mine = table if timeframe == file.timeframe else fold(table, timeframe)
        opens, to_us = times_of(mine), file.span.end
        if len(opens):
            at = max(zlib.crc32(file.key.encode()) % len(opens), min(len(opens), PAGE) - 1)
            to_us = timeframe.next(int(opens[at]))
        page = Page(to_us, PAGE, Span(min(file.span.start, to_us), to_us))
        theirs: list[pa.Table] = []
        proven, oldest_us = SpanSet(), None
        while True:
            found: CandlePage = (yield candles_ask(file.market, timeframe, page.bound_us, page.count)).value
            times = times_of(found.table)
            verdict = judge(page, found.oldest_us, found.rows)
            check(page, verdict, int(times[-1]) if len(times) else None, oldest_us, str(file))
            edge = page.claim.end if page.seeks else verdict.edge_us
            if not page.seeks:
                theirs.insert(0, rows_inside(found.table, verdict.proof - proven))
                proven = proven | verdict.proof
                oldest_us = int(times[0]) if len(times) else oldest_us
            if edge is None or edge <= file.span.start:
                break
            page = second_request(timeframe, edge, oldest_us, is_sought=page.seeks, count=PAGE)
        compared = proven.clip(file.span)
        both = (rows_inside(part, compared) for part in (mine, pa.concat_tables(theirs)))
        return "; ".join(compare(*both, relative=_RELATIVE).describe("the file's", "REST's")) or None

    def _refuse(self, file: ArchiveFile, reason: str, error: BackboneError | None = None) -> BackboneError:
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

    def _is_early(self, file: ArchiveFile) -> bool:
        """Whether a missing file is not due yet: it is asked for again with the next listing."""
        if file.is_due(self._venue.now_us()):
            return False
        self._absent_until_s[file.key] = self._clock.monotonic() + _LISTED_S
        return True

    # -- later ---------------------------------------------------------------------------------------------------

    def recheck(self, market: str, timeframe: Timeframe, span: Span, ask: Callable[[Ask], Reply]) -> Iterator[Recheck]:
        """Compare the files that were used with what the archive now says of them; store what was issued again.

        `ask` puts one question and waits for its reply; raises the error tree.
        """
        noted = self._store.upkeep.noted_files(market, timeframe)
        candidates = files_of(market, timeframe, span, months=True) + files_of(market, timeframe, span, months=False)
        for file in candidates:
            known = noted.get(file.key)
            if known is None:
                continue
            try:
                stated: str = ask(checksum_ask(file)).value
                detail = "" if stated == known else self._replace(file, stated, ask)
                state = "same" if stated == known else "changed"
            except BackboneError as exc:
                state, detail = "refused", str(exc)
            yield Recheck(file.key, market, timeframe.name, state, detail)

    def _replace(self, file: ArchiveFile, stated: str, ask: Callable[[Ask], Reply]) -> str:
        generation = self._store.generation(file.market)
        download: Download = ask(file_ask(file)).value
        if download.sha256 != stated:
            raise PayloadError(f"{file}: its checksum does not agree", market=file.market)
        difference = answered(self._difference(file, download.table), ask)
        if difference is not None:
            raise PayloadError(f"{file}: it differs from REST ({difference})", market=file.market)
        held = self._store.coverage(file.market, file.timeframe, file.span)
        before = self._store.revisions(file.market, file.timeframe, file.span).num_rows
        table = rows_inside(download.table, held)
        now = self._venue.now_us()
        series = file.market, file.timeframe
        if not self._store.put(*series, table, held, source="archive", now_us=now, generation=generation):
            raise PayloadError(f"{file}: what is stored of {file.market} was quarantined meanwhile", market=file.market)
        self._store.flush(file.market, file.timeframe)
        self._store.upkeep.note_files(*series, {file.key: stated})
        return f"{self._store.revisions(file.market, file.timeframe, file.span).num_rows - before} candles revised"
