"""The join of the layers: one `Coordinator` owns the store, the ways to the venue and the queue between them.

Everything is made on first use and ended by `close()`. A forked child must make its own (`Backbone` sees to that):
threads do not cross a fork. ``critical`` requests take the lane past queue and pool: a permit of their own class, a
connection kept warm for them, sent on the calling thread.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from backbone.candle_table import times_of
from backbone.clock import Clock, VenueClock
from backbone.coordinator.candles.fetcher import CandleAnswer, CandleFetcher
from backbone.coordinator.candles.jobs import Jobs
from backbone.coordinator.candles.ranges import CandleRanges, Range
from backbone.coordinator.live.feed import Feed
from backbone.coordinator.live.latest import LatestRows
from backbone.coordinator.live.realtime import Realtime
from backbone.coordinator.live.recent import candle_rows
from backbone.coordinator.metrics import Metrics
from backbone.coordinator.quota.ledger import MachineLimiter
from backbone.coordinator.scheduler import Scheduler
from backbone.errors import BackboneError, ClosedError, InputError, UnreachableError
from backbone.model import MarketInfo, Priority, Span, empty_candles
from backbone.routing.archive import ARCHIVE_GROUP, ArchiveClient
from backbone.routing.rest import Reply, RestClient
from backbone.routing.wire import PAGE, Ask, CandlePage, candles_ask, instruments_ask, markets_ask
from backbone.settings import Settings
from backbone.storage.memo import FrameMemo
from backbone.storage.store import CandleStore
from backbone.timeframe import Timeframe

if TYPE_CHECKING:
    from backbone.coordinator.quota.redis import RedisLimiter
    from backbone.storage.files import Files

__all__ = ["Coordinator"]

_log = logging.getLogger("backbone.fetch")

_WARM_EVERY_S = 20.0  # well within the time after which an idle connection is not trusted
_ATTENTION_S = 600.0  # how long after a critical request the next one finds a warm connection

_LACKS_S = 10.0  # a market may have been listed since: after this, an unknown code is worth one request


class Coordinator:
    """What the API layer talks to."""

    def __init__(self, settings: Settings, clock: Clock, venue: VenueClock | None = None) -> None:
        self.settings = settings
        self.clock = clock
        self.metrics = Metrics()
        self.venue = venue or VenueClock(clock)
        self.store = CandleStore(
            _open_root(settings, clock),
            settings.store_exchange,
            clock=clock,
            memory_bytes=settings.memory_bytes,
            group_commit_s=settings.group_commit_s,
        )
        self.memo = None if settings.is_remote else FrameMemo(Path(settings.data_dir) / "memo")
        self.rest = RestClient(settings.rest_url, clock=clock)
        self._critical = self.rest.critical()
        self.limiter = _open_limiter(settings, clock)
        self.scheduler = Scheduler(self.limiter, self._send, clock=clock, metrics=self.metrics)
        self.candles = CandleFetcher(self.scheduler, self.store, self.venue, clock, settings)
        self._archive_line: ArchiveClient | None = None
        self._open_archive()
        self.ranges = CandleRanges(self.candles, self.venue, self.sync_clock)
        self.jobs = Jobs(self.candles, clock)
        self.board = LatestRows(clock)
        self.feed = Feed(
            settings.ws_url,
            board=self.board,
            scheduler=self.scheduler,
            candles=self.candles,
            holds=lambda market, timeframe: self.store.oldest(market, timeframe) is not None,
            venue=self.venue,
            clock=clock,
            metrics=self.metrics,
            grace_s=settings.close_grace_s,
        )
        self.realtime = Realtime(self.request, clock, self.metrics, self._codes_anew, self.board, self.feed)
        self._warm_lock = threading.Lock()
        self._warm_until_s: float | None = None  # None: nobody keeps the critical connection warm
        self._markets_lock = threading.Lock()
        self._markets: tuple[MarketInfo, ...] | None = None
        self._markets_at_s = 0.0
        self._codes = _Codes(())
        self._closed = False

    def _open_archive(self) -> None:
        """Where the user accepted its terms, the venue's bulk archive is one more source of candles."""
        where = self.settings.archive
        if where is None:
            return
        from backbone.coordinator.candles.archive import Archive, show_terms

        show_terms(where.terms_url)
        self._archive_line = ArchiveClient(where.file_url, where.list_url, clock=self.clock)
        self.candles.archive = Archive(
            self.scheduler,
            self.store,
            self.venue,
            self.clock,
            hear=self.sync_clock,
            retention=self.settings.venue.retention,
        )

    # -- the ways to the venue -----------------------------------------------------------------------------------

    def _send(self, ask: Ask) -> Reply:
        if self._archive_line is not None and ask.group == ARCHIVE_GROUP:
            return self._archive_line.send(ask)  # another host: its clock and its refusals are no word of the venue's
        return self._heard(self.rest.send(ask))

    def _send_critical(self, ask: Ask) -> Reply:
        return self._heard(self._critical.send(ask))

    def _heard(self, reply: Reply) -> Reply:
        if reply.date_us is not None:
            self.venue.observe(reply.date_us, reply.sent_s, reply.received_s)
        return reply

    def request(self, ask: Ask, priority: Priority) -> Reply:
        """One request in its lane; identical ones in flight are shared. Raises the error tree."""
        if self._closed:
            raise ClosedError("the client is closed; make a new one")
        if priority is not Priority.CRITICAL:
            return self.scheduler.request(ask, priority)
        try:
            return self.scheduler.direct(ask, self._send_critical)
        finally:
            self._expect_more()

    def _expect_more(self) -> None:
        """After a critical request: keep its connection warm for the next, as long as they keep coming."""
        with self._warm_lock:
            idle, self._warm_until_s = self._warm_until_s is None, self.clock.monotonic() + _ATTENTION_S
        if idle:
            with contextlib.suppress(ClosedError):
                self.scheduler.call_later(_WARM_EVERY_S, self._keep_warm)

    def _keep_warm(self) -> None:
        with self._warm_lock:
            if self._warm_until_s is None or self.clock.monotonic() > self._warm_until_s:
                self._warm_until_s = None
                return
        try:
            self._critical.warm()
        except UnreachableError as exc:
            _log.info("critical.cold why=%s", exc)
        with contextlib.suppress(ClosedError):
            self.scheduler.call_later(_WARM_EVERY_S, self._keep_warm)

    # -- candles that storage has no part in ---------------------------------------------------------------------

    def direct_candles(self, market: str, timeframe: Timeframe, asked: Range) -> CandleAnswer:
        """The critical lane: what memory and disk hold in full, else straight from the venue, not stored."""
        held = self.ranges.recall([market], timeframe, asked)[0]
        if not held.gaps:
            return held
        tables: list[pa.Table] = []
        to_us, rows, pages = asked.end_us, 0, 0
        while True:
            page: CandlePage = self.request(candles_ask(market, timeframe, to_us, PAGE), Priority.CRITICAL).value
            closed = self.candles.closed_before(timeframe)
            table = page.table.slice(0, int(np.searchsorted(times_of(page.table), closed)))
            tables.append(table)
            pages, rows = pages + 1, rows + table.num_rows
            begun = page.rows < PAGE
            reached = page.oldest_us is None or (asked.start_us is not None and page.oldest_us <= asked.start_us)
            if begun or reached or (asked.start_us is None and asked.count is not None and rows >= asked.count):
                break
            to_us = page.oldest_us
        return self._direct_answer(market, timeframe, asked, pa.concat_tables(tables[::-1]), pages)

    def _direct_answer(
        self, market: str, timeframe: Timeframe, asked: Range, table: pa.Table, pages: int
    ) -> CandleAnswer:
        times = times_of(table)
        start = 0 if asked.start_us is None else int(np.searchsorted(times, asked.start_us))
        table = table.slice(start)
        if asked.count is not None:
            table = (
                table.slice(0, asked.count)
                if asked.start_us is not None
                else table.slice(max(0, table.num_rows - asked.count))
            )
        times = times_of(table)
        closed = self.candles.closed_before(timeframe)
        end = closed if asked.end_us is None else min(closed, timeframe.ceil(asked.end_us))
        if asked.start_us is not None:
            span = Span(min(timeframe.ceil(asked.start_us), end), end)
            if asked.count is not None and len(times) == asked.count:
                span = Span(span.start, timeframe.next(int(times[-1])))
        else:
            span = Span(int(times[0]) if len(times) else end, end)
        quiet = max(0, timeframe.count(span) - len(times))
        return CandleAnswer(market, span, table, quiet, 0, pages, {"rest": len(times)} if len(times) else {})

    def forming_candles(
        self, market: str, timeframe: Timeframe, after_us: int, before_us: int | None, priority: Priority
    ) -> tuple[pa.Table, str]:
        """The candles that open at or after `after_us` and are not closed yet, and where from; never stored.

        The stream answers where it told them all and was just heard, otherwise REST.
        """
        told = self.feed.forming(market, timeframe, after_us, priority)
        if told is not None:
            return candle_rows([one for one in told if before_us is None or one.time_us < before_us]), "stream"
        grace_slots = int(self.settings.close_grace_s * 1e6) // timeframe.step_us
        page: CandlePage = self.request(candles_ask(market, timeframe, None, 3 + grace_slots), priority).value
        times = times_of(page.table)
        first = int(np.searchsorted(times, after_us))
        last = len(times) if before_us is None else int(np.searchsorted(times, before_us))
        return page.table.slice(first, max(0, last - first)), "rest"

    def fetch_unstored(self, market: str, timeframe: Timeframe, span: Span, priority: Priority) -> pa.Table:
        """The venue's own candles of `span`, past the store: what an audit compares with."""
        tables: list[pa.Table] = []
        to_us = span.end
        while to_us > span.start:
            ask = candles_ask(market, timeframe, to_us, min(PAGE, timeframe.count(Span(span.start, to_us))))
            page: CandlePage = self.request(ask, priority).value
            tables.append(page.table)
            if page.oldest_us is None or page.rows < page.asked_count:
                break
            to_us = page.oldest_us
        table = pa.concat_tables([empty_candles(), *tables[::-1]])
        return table.slice(int(np.searchsorted(times_of(table), span.start)))

    def learn_ticks(self, markets: Sequence[str]) -> None:
        """Ask for the price steps of `markets` that were never heard of, without waiting: they only adorn a table."""
        unknown = [market for market in markets if self.realtime.known_tick(market) is None]
        if not unknown:
            return

        def done(_: Ask | None, outcome: Reply | BackboneError) -> None:
            if isinstance(outcome, BackboneError):
                _log.info("ticks.unknown why=%s", outcome)
            else:
                self.realtime.note_instruments(outcome.value)

        self.scheduler.submit("orderbook", Priority.NORMAL, lambda: instruments_ask(unknown), done)

    def stream_facts(self) -> dict[str, Any]:
        """Where the live stream stands; empty while there is none."""
        return self.feed.status()

    # -- markets -------------------------------------------------------------------------------------------------

    def markets(self, *, fresh: bool = False, priority: Priority = Priority.HIGH) -> tuple[MarketInfo, ...]:
        """The venue's market list, from memory while it is fresh enough."""
        now = self.clock.monotonic()
        with self._markets_lock:
            known, age = self._markets, now - self._markets_at_s
        if known is not None and not fresh and age < self.settings.markets_fresh_s:
            return known
        listed: tuple[MarketInfo, ...] = self.request(markets_ask(), priority).value
        with self._markets_lock:
            self._markets, self._markets_at_s = listed, self.clock.monotonic()
        return listed

    def sync_clock(self) -> None:
        """Make sure that the venue's clock is known: the market list is the most useful reply to learn it from."""
        if not self.venue.is_known:
            self.markets(fresh=True)

    def known_markets(self) -> tuple[MarketInfo, ...] | None:
        """The market list if it was ever asked for; asks nothing."""
        with self._markets_lock:
            return self._markets

    def _known_codes_locked(self) -> _Codes:
        """The codes of the list at hand; ordered once a list, because nearly every call asks."""
        listed = self._markets or ()
        if self._codes.listed is not listed:
            self._codes = _Codes(listed)
        return self._codes

    def known_codes(self, quote: str) -> tuple[str, ...]:
        """The markets priced in `quote`, in the venue's order, of the list if it was ever asked for."""
        with self._markets_lock:
            return self._known_codes_locked().by_quote.get(quote, ())

    def _codes_anew(self, priority: Priority) -> frozenset[str]:
        self.markets(fresh=True, priority=priority)
        with self._markets_lock:
            return self._known_codes_locked().all

    def check_listed(self, markets: Sequence[str], priority: Priority = Priority.HIGH) -> None:
        """Raise `InputError`, naming the nearest ones, for a market that the venue does not list.

        A list at hand is believed for what it has (a delisting shows as a refusal), and for what it lacks only while
        it is very young.
        """
        with self._markets_lock:
            is_known, age_s = self._markets is not None, self.clock.monotonic() - self._markets_at_s
            codes = self._known_codes_locked().all
        if codes.issuperset(markets):
            return
        if not is_known or age_s > _LACKS_S:
            codes = self._codes_anew(priority)
        for market in markets:
            if market not in codes:
                raise unknown_market(market, codes)

    def check_known(self, markets: Sequence[str]) -> None:
        """Raise `InputError` for a market that the list at hand lacks and nothing is stored of. Asks nobody: without a
        list every market passes."""
        with self._markets_lock:
            is_known, codes = self._markets is not None, self._known_codes_locked().all
        if not is_known or codes.issuperset(markets):
            return
        stored = {market for market, _ in self.store.series()}
        for market in markets:
            if market not in codes and market not in stored:
                raise unknown_market(market, codes)

    # -- the end -------------------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End waits, join threads, write what is pending. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self.feed.close()
        self.jobs.close()
        self.candles.close()
        self.scheduler.close()
        try:
            self.store.close()
        finally:
            self._critical.close()
            self.rest.close()
            if self._archive_line is not None:
                self._archive_line.close()
            self.limiter.close()


def _open_root(settings: Settings, clock: Clock) -> Path | Files:
    """The data folder, or the object store, which is looked for before work starts."""
    if not settings.is_remote:
        return Path(settings.data_dir)
    from backbone.storage.s3 import open_files

    return open_files(settings.data_dir, clock, cache_bytes=settings.object_cache_bytes)


def _open_limiter(settings: Settings, clock: Clock) -> MachineLimiter | RedisLimiter:
    """The machine's quota, or the one it shares with other hosts; that one is looked for before work starts."""
    if settings.quota is None:
        return MachineLimiter(settings.rest_url, clock)
    from backbone.coordinator.quota.redis import RedisLimiter

    limiter = RedisLimiter(settings.quota, settings.rest_url, clock)
    try:
        limiter.open()
    except BackboneError:
        limiter.close()
        raise
    return limiter


class _Codes:
    """What a market list holds: all its codes, and those of each quote currency in the venue's order."""

    def __init__(self, listed: tuple[MarketInfo, ...]) -> None:
        self.listed = listed
        self.all = frozenset(info.market for info in listed)
        by_quote: dict[str, list[str]] = {}
        for info in listed:
            by_quote.setdefault(info.market.partition("-")[0], []).append(info.market)
        self.by_quote = {quote: tuple(codes) for quote, codes in by_quote.items()}


def unknown_market(market: str, codes: Collection[str]) -> InputError:
    """The `InputError` for a market that is not listed."""
    close = difflib.get_close_matches(market, sorted(codes), n=8, cutoff=0.5)
    nearest = sorted(close, key=lambda code: not code.startswith(market[:-1]))[:3]  # the last letter is soonest wrong
    base = market.partition("-")[2]
    same_base = sorted(code for code in codes if code.partition("-")[2] == base)
    hints = list(dict.fromkeys(same_base[:3] + nearest))[:4]
    allowed = "a market the venue lists" + (f"; the nearest: {', '.join(hints)}" if hints else "")
    return InputError("market", market, allowed)
