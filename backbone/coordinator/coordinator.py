"""The composition root: one `Coordinator` makes the store, the ways to the venue and what stands between them.

It is the layer's only face for the API: each part is an attribute, `close()` ends all of them. A forked child must make
its own (`Backbone` sees to that): threads do not cross a fork. ``critical`` requests go past queue and pool: a permit
of their own class, a connection kept warm for them, sent on the calling thread.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from backbone.clock import Clock, VenueClock, current_deadline
from backbone.coordinator.candles.direct import DirectCandles
from backbone.coordinator.candles.fetcher import CandleFetcher
from backbone.coordinator.candles.jobs import Jobs
from backbone.coordinator.candles.ranges import CandleRanges, Range
from backbone.coordinator.candles.reader import CandleAnswer, CandleReader
from backbone.coordinator.market_log import MarketLog
from backbone.coordinator.markets import Markets
from backbone.coordinator.metrics import Metrics
from backbone.coordinator.quota.ledger import MachineLimiter
from backbone.coordinator.renames import Renames
from backbone.coordinator.scheduler import Scheduler
from backbone.errors import BackboneError, ClosedError, UnreachableError
from backbone.model import MarketInfo, Priority, Span
from backbone.routing.rest import Reply, RestClient
from backbone.routing.wire import Ask, instruments_ask, prices_ask
from backbone.settings import Settings, memo_folder
from backbone.storage.memo import FrameMemo
from backbone.storage.store import CandleStore
from backbone.timeframe import TIMEFRAMES, Timeframe

if TYPE_CHECKING:
    from backbone.coordinator.candles.archive import Archive
    from backbone.coordinator.live.feed import Feed
    from backbone.coordinator.live.latest import LatestRows
    from backbone.coordinator.live.old_trades import OldTrades
    from backbone.coordinator.live.realtime import Realtime
    from backbone.coordinator.quota.redis import RedisLimiter
    from backbone.routing.archive import ArchiveClient
    from backbone.storage.files import Files

__all__ = ["Coordinator"]

_log = logging.getLogger("backbone.fetch")

_WARM_EVERY_S = 20.0  # well within the time after which an idle connection is not trusted
_ATTENTION_S = 600.0  # how long after a critical request the next one finds a warm connection


def _memo_of(core: Coordinator) -> FrameMemo | None:
    folder = None if core.settings.is_remote else memo_folder(core.settings.data_dir)
    return None if folder is None else FrameMemo(folder, source_bytes=lambda: core.store.size()["bytes"])


class Coordinator:
    """What the API layer talks to."""

    memo = functools.cached_property(_memo_of)
    """The results that are kept, None where none are: looked for when somebody first asks for candles."""

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
        self.rest = RestClient(settings.rest_url, clock=clock)
        self._critical = RestClient(settings.rest_url, clock=clock, pool=4)  # connections that no bulk request holds
        self.limiter = _open_limiter(settings, clock)
        self.scheduler = Scheduler(self.limiter, self._send, clock=clock, metrics=self.metrics)
        self.market_log = MarketLog(self.store.events, self.venue.now_us, self._in_background)
        self.markets = Markets(
            self.request,
            clock,
            fresh_s=settings.markets_fresh_s,
            stored=self._stored_markets,
            recorded=self.market_log.newest,
            record=self._note_list,
            renamed=lambda market, priority: self.renames.find(market, priority),
        )
        self.renames = Renames(
            self.market_log,
            self.store,
            clock,
            request=self.request,
            listed=lambda: self.markets.confirmed,
            ask_list=self.markets.listed,
            later=self._in_background,
        )
        self.reader = CandleReader(self.store, self.venue, settings)
        self._archive_client, self.archive = self._open_archive()
        self.candles = CandleFetcher(self.scheduler, self.store, self.reader, self.venue, clock, settings, self.archive)
        self.ranges = CandleRanges(self.candles, self.venue, self.request)
        self.direct = DirectCandles(self.request, self.ranges, self.reader, self._streamed)
        self.jobs = Jobs(self.candles, clock)
        self._live_lock = threading.Lock()
        self._realtime: Realtime | None = None
        self._warm_lock = threading.Lock()
        self._warm_until_s: float | None = None  # None: the critical connection is not kept warm
        self._closed = False

    # -- what is live, made on first use: its modules take a tenth of the time of a first candle call ---------------

    @property
    def realtime(self) -> Realtime:
        with self._live_lock:
            if self._realtime is None:
                self._realtime = self._make_live()
            return self._realtime

    @property
    def feed(self) -> Feed:
        return self.realtime.feed

    @property
    def latest(self) -> LatestRows:
        return self.feed.latest

    def _make_live(self) -> Realtime:
        from backbone.coordinator.live.feed import Feed
        from backbone.coordinator.live.latest import LatestRows
        from backbone.coordinator.live.realtime import Realtime

        latest = LatestRows(self.clock)
        feed = Feed(
            self.settings.ws_url,
            latest=latest,
            scheduler=self.scheduler,
            candles=self.candles,
            holds=lambda market, timeframe: self.store.oldest(market, timeframe) is not None,
            venue=self.venue,
            clock=self.clock,
            metrics=self.metrics,
            grace_s=self.settings.close_grace_s,
            on_list=self.markets.note,
            on_condition=self.market_log.note_state,
        )
        if self._closed:
            feed.close()
        return Realtime(self.request, self.clock, self.metrics, self._fresh_codes, latest, feed)

    # -- the archive ---------------------------------------------------------------------------------------------

    def _open_archive(self) -> tuple[ArchiveClient | None, Archive | None]:
        """Where the user accepted its terms, the venue's bulk archive is one more source of candles."""
        where = self.settings.archive
        if where is None:
            return None, None
        from backbone.coordinator.candles.archive import Archive, show_terms
        from backbone.routing.archive import ArchiveClient

        show_terms(where.terms_url)
        archive = Archive(
            self.scheduler,
            self.store,
            self.venue,
            self.clock,
            sync_clock=self.sync_clock,
            retention=self.settings.venue.retention,
        )
        return ArchiveClient(where.file_url, where.list_url, clock=self.clock), archive

    def old_trades(self, priority: Priority) -> OldTrades | None:
        """Trades older than the venue keeps them, where its archive was opened."""
        if self._archive_client is None:
            return None
        from backbone.coordinator.live.old_trades import OldTrades

        lane = Priority.HIGH if priority is Priority.CRITICAL else priority  # the critical way leads to REST only

        def days(market: str, span: Span) -> CandleAnswer:
            return self.ranges.collect([market], TIMEFRAMES["1d"], Range(span.start, span.end, None), lane)[0]

        return OldTrades(lambda ask: self.request(ask, lane).value, days, self.settings.venue.sums_since_us)

    def _in_background(self, job: Callable[[], None]) -> None:
        with contextlib.suppress(ClosedError):  # `close` does what is left
            self.scheduler.call_later(0.0, job)

    def first_candles(self) -> Callable[[str], int | None]:
        """What says when the oldest stored candle of a market opened, whatever its length: folders are listed once."""
        series = functools.cache(self.store.series)

        def first_us(market: str) -> int | None:
            found = (self.store.oldest(each, timeframe) for each, timeframe in series() if each == market)
            return min((first for first in found if first is not None), default=None)

        return first_us

    def _stored_markets(self) -> set[str]:
        return {market for market, _ in self.store.series()}

    def _note_list(self, listed: tuple[MarketInfo, ...]) -> None:
        self.market_log.note(listed)
        self.renames.note(listed)

    def _fresh_codes(self, priority: Priority, until: Collection[str] = ()) -> frozenset[str]:
        return self.markets.all_codes(fresh=True, priority=priority, until=until)

    def _streamed(self, market: str, timeframe: Timeframe, after_us: int, priority: Priority) -> pa.Table | None:
        """The candles that open at or after `after_us`, where the live stream has them all."""
        from backbone.coordinator.live.recent import candle_rows

        rows = self.feed.forming(market, timeframe, after_us, priority)
        return None if rows is None else candle_rows(rows)

    # -- the ways to the venue -----------------------------------------------------------------------------------

    def _send(self, ask: Ask) -> Reply:
        if self._archive_client is not None and ask.group == self._archive_client.group:
            return self._archive_client.send(ask)  # different host: neither its clock nor its refusals are the venue's
        return self._observed(self.rest.send(ask))

    def _send_critical(self, ask: Ask) -> Reply:
        return self._observed(self._critical.send(ask))

    def _observed(self, reply: Reply) -> Reply:
        if reply.date_us is not None:
            self.venue.observe(reply.date_us, reply.sent_s, reply.received_s)
        return reply

    def request(self, ask: Ask, priority: Priority) -> Reply:
        """One request in its lane; identical ones in flight are shared. Raises the error tree.

        It is waited for until the deadline of the block that the thread is in (`within`). A critical request is sent on
        the calling thread; with a deadline only where its connection is open, since names and handshakes have none:
        else it goes through the queue, before all others, and its thread waits.
        """
        if self._closed:
            raise ClosedError("the client is closed; make a new one")
        deadline = current_deadline()
        if priority is not Priority.CRITICAL:
            return self.scheduler.request(ask, priority, deadline)
        is_direct = deadline is None or self._critical.is_warm
        try:
            if not is_direct:
                return self.scheduler.request(ask, priority, deadline)
            return self.scheduler.direct(ask, self._send_critical, deadline)
        except UnreachableError as exc:
            if is_direct and deadline is not None and deadline.left_s() <= 0:
                raise deadline.error(ask.path) from exc
            raise
        finally:
            self._expect_more(0.0 if not is_direct else _WARM_EVERY_S)

    def _expect_more(self, first_s: float) -> None:
        """After a critical request: keep its connection warm for the next, as long as they keep coming."""
        with self._warm_lock:
            idle, self._warm_until_s = self._warm_until_s is None, self.clock.monotonic() + _ATTENTION_S
        if idle:
            with contextlib.suppress(ClosedError):
                self.scheduler.call_later(first_s, self._keep_warm)

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

    # -- what is known of the venue ------------------------------------------------------------------------------

    def learn_ticks(self, markets: Sequence[str]) -> None:
        """Ask for the unknown price steps of `markets`, without waiting: they only adorn a table."""
        self.begin_ticks([one for one in markets if self.realtime.known_tick(one) is None], Priority.NORMAL)

    def begin_ticks(self, markets: Sequence[str], priority: Priority = Priority.HIGH) -> int:
        """Ask for the price steps of `markets`, without waiting; how many requests. Whoever asks meanwhile shares."""
        parts = self.realtime.parts(sorted(markets))
        for part in parts:
            self.scheduler.begin(instruments_ask(part), priority, functools.partial(self._took_ticks, part, priority))
        return len(parts)

    def _took_ticks(self, markets: list[str], priority: Priority, outcome: Reply | BackboneError) -> None:
        if not isinstance(outcome, BackboneError):
            self.realtime.note_instruments(outcome.value)
        elif self.realtime.is_too_long(outcome, markets):
            with contextlib.suppress(ClosedError):
                self.begin_ticks(markets, priority)
        else:  # whoever wants them asks again
            _log.info("ticks.unknown why=%s", outcome)

    def begin_prices(self, markets: Sequence[str], max_age_s: float) -> int:
        """Ask for the prices at which the steps of `markets` hold, likewise, unless they are so young."""
        if self.realtime.has_prices(markets, max_age_s):
            return 0
        self.scheduler.begin(prices_ask(markets), Priority.HIGH, self._took_prices)
        return 1

    def _took_prices(self, outcome: Reply | BackboneError) -> None:
        if not isinstance(outcome, BackboneError):
            self.realtime.note_prices(outcome)

    def stream_facts(self) -> dict[str, Any]:
        """Where the live stream stands; empty while there is none."""
        live = self._realtime
        return {} if live is None else live.feed.status()

    def sync_clock(self) -> None:
        """Make sure that the venue's clock is known: the market list is the most useful reply to learn it from."""
        if not self.venue.is_known:
            self.markets.request()

    # -- the end -------------------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End waits, join threads, write what is pending. May be called twice."""
        if self._closed:
            return
        self._closed = True
        with self._live_lock:
            live = self._realtime
        if live is not None:
            live.feed.close()
        self.jobs.close()
        self.candles.close()
        self.scheduler.close()
        try:
            self.market_log.flush()
            self.store.close()
        finally:
            self._critical.close()
            self.rest.close()
            if self._archive_client is not None:
                self._archive_client.close()
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
