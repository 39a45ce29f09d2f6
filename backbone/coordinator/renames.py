"""A renamed market is one market: which codes are two names of one, found by their candles.

A market that is stored and no longer listed is compared with the few markets that may be it: the same quote currency,
first seen when it was last seen. Where both are stored no request is made; else one page is asked, which is not stored.
The same history, trade for trade, is one market under two names (`unit_of`), also where every price differs by one
factor: a redenomination came with the new name. Both are events of the log, so all processes know. Markets that differ
are recorded too. Where the candles were too few to decide, the venue is asked again after an hour. Where no list ever
came, stored markets are compared with each other.

`_lock` guards the comparisons that were not decided, and the list last seen; comparing happens outside it.
"""

from __future__ import annotations

import difflib
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
from msgspec.structs import replace

from backbone.candle_table import compare, is_same, rows_inside, times_of
from backbone.clock import Clock
from backbone.coordinator.market_log import MarketLog, Rename
from backbone.coordinator.units import compare_units
from backbone.errors import BackboneError
from backbone.locks import renew_after_fork
from backbone.model import MarketInfo, Priority, Span, empty_candles
from backbone.routing.rest import Reply
from backbone.routing.wire import PAGE, Ask, CandlePage, candles_ask
from backbone.storage.coverage import SpanSet
from backbone.storage.store import CandleStore
from backbone.storage.view import Stored
from backbone.timeframe import DAY_US, Timeframe

__all__ = ["Renames", "unit_of"]

_log = logging.getLogger("backbone.fetch")

_LEAST = 20  # candles with trades that both must have
_SAME = 0.95  # share of all candles that must be the same: the venue restates one now and then
_NEAR_DAYS = 31  # between the last list with the old name and the first with the new one
_SEVERAL = 30  # stored markets that are compared with each other where no list is known
_MOST = 5  # candidates that are asked for
_AGAIN_S = 3600.0


def unit_of(first: pa.Table, second: pa.Table) -> float | None:
    """Whether two candle tables of the same span are of the same trades, and in which unit.

    Same trades means that 95 % of all candles that either table has are equal in every price, volume and turnover, or
    that all of those differ by the one factor of a redenomination; and that at least 20 of them have trades, with at
    least 10 different volumes.

    Returns
    -------
    The factor in price from the first table's unit to the second's (1: the same unit); 0 for other trades; None where
    the candles are too few to decide.
    """
    differences = compare(first, second, relative=1e-9)
    every = np.union1d(times_of(first), times_of(second))
    same = rows_inside(first, ((int(time), int(time) + 1) for time in np.setdiff1d(every, differences.times)))
    if _has_enough_trades(same) and same.num_rows >= _SAME * len(every):
        return 1.0
    units = compare_units(first, second)
    if units.factor is not None and units.differing >= _SAME * len(every) and _has_enough_trades(first):
        return units.factor
    return 0.0 if len(differences.times) >= _LEAST else None


def _has_enough_trades(table: pa.Table) -> bool:
    traded = table.column("volume").to_numpy()
    traded = traded[traded > 0]
    return len(traded) >= _LEAST and len(np.unique(traded)) >= _LEAST // 2


class Renames:
    """Which markets have another name by now. Thread-safe.

    Parameters
    ----------
    log : the market list that remembers, where what is found is recorded.
    request : sends one request and waits for its reply.
    listed : the newest list, where one came; `ask_list` asks for one.
    later : runs a job in the background.
    """

    def __init__(
        self,
        log: MarketLog,
        store: CandleStore,
        clock: Clock,
        *,
        request: Callable[[Ask, Priority], Reply],
        listed: Callable[[], tuple[MarketInfo, ...] | None],
        ask_list: Callable[[], object],
        later: Callable[[Callable[[], None]], None],
    ) -> None:
        self._log = log
        self._store = store
        self._clock = clock
        self._request = request
        self._listed = listed
        self._ask_list = ask_list
        self._later = later
        self._renew()
        renew_after_fork(self, Renames._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._codes: frozenset[str] = frozenset()
        self._unclear: dict[tuple[str, str], float] = {}
        self._apart: set[tuple[str, str]] = set()

    def note(self, listed: Sequence[MarketInfo]) -> None:
        """A list came: for stored markets that are not in it, other names are searched in the background."""
        codes = frozenset(info.market for info in listed)
        with self._lock:
            is_new, self._codes = codes != self._codes, codes
        if is_new:
            self._later(self._refresh)

    def _refresh(self) -> None:
        codes = self._now()
        for market in sorted({market for market, _ in self._store.series()} - codes):
            was_seen = self._log.delisted_us(market) is not None  # else any market may be it: too many to ask for
            self.find(market, Priority.LOW if was_seen else None)

    def find(self, market: str, priority: Priority | None = None) -> Rename | None:
        """What a market that is not listed any more is called now, or None. Without a `priority` no request is made:
        what is recorded, and what the stored candles say."""
        known = self._log.renamed([market]).get(market)
        codes = self._now()
        if known is not None or market in codes:
            return known
        try:
            return self._search(market, codes, priority)
        except BackboneError as exc:  # it only adds a name to an answer, or to an error
            _log.info("renames.unknown market=%s why=%s", market, exc)
            return None

    def once(self, markets: Iterable[str], *, may_ask: bool = False) -> list[str]:
        """Stored `markets` without those that are there under their present name too.

        Makes no request, but one with `may_ask`: where two have the same history and no list ever came that says which
        code is the present one.
        """
        every = sorted(markets)
        codes = self._now()
        if not codes:
            twins = self._twins(every) if len(every) <= _SEVERAL else {}
            if twins and may_ask:
                try:
                    self._ask_list()
                except BackboneError as exc:
                    _log.info("renames.unknown why=%s", exc)
            codes = self._now()
            if not codes:
                return [market for market in every if market not in twins]
        names = set(every)
        found = self._log.renamed(every)
        gone = (market for market in every if market not in found and market not in codes)
        found |= {market: rename for market in gone if (rename := self.find(market)) is not None}
        return [market for market in every if market not in found or found[market].new not in names]

    def _twins(self, markets: Sequence[str]) -> dict[str, str]:
        """Of stored markets with the same history, those whose candles end earlier, with the one that goes on."""
        series = self._store.series()
        found: dict[str, str] = {}
        for market, other in itertools.combinations(markets, 2):
            is_apart = market.partition("-")[0] != other.partition("-")[0] or (market, other) in self._apart
            for timeframe in () if is_apart else self._lengths(series, market):
                mine = self._newest(market, timeframe)
                if mine.table.num_rows < _LEAST or (other, timeframe) not in series:
                    continue
                verdict = self._stored(other, timeframe, mine)
                if verdict:
                    is_older = times_of(mine.table)[-1] < times_of(self._newest(other, timeframe).table)[-1]
                    found |= {market: other} if is_older else {other: market}
                elif verdict is not None:
                    self._apart.add((market, other))
                if verdict is not None:
                    break
        return found

    def _lengths(self, series: Iterable[tuple[str, Timeframe]], market: str) -> list[Timeframe]:
        return sorted((each for code, each in series if code == market), key=lambda each: -each.step_us)

    def _now(self) -> frozenset[str]:
        listed = self._listed()
        return self._log.codes() if listed is None else frozenset(info.market for info in listed)

    def _search(self, market: str, codes: frozenset[str], priority: Priority | None) -> Rename | None:
        candidates = self._candidates(market, codes)
        series = self._store.series() if candidates else []
        lengths = self._lengths(series, market)
        mine = {each: held for each in lengths if (held := self._newest(market, each)).table.num_rows >= _LEAST}
        may_ask = self._may_ask(market, candidates) if priority is not None else set()
        requests, differing = 0, []
        for code in candidates if mine else ():
            verdict = None
            for timeframe, held in mine.items():
                if verdict is None and (code, timeframe) in series:
                    verdict = self._stored(code, timeframe, held)
            if verdict is None and priority is not None and code in may_ask and requests < _MOST:
                requests += 1
                verdict = self._asked(code, *next(iter(mine.items())), priority)
                if verdict is None:
                    with self._lock:
                        self._unclear[market, code] = self._clock.monotonic()
            if verdict:
                return self._log.rename(market, code, verdict)
            if verdict is not None:
                differing.append(code)
        if differing:
            self._log.note_distinct(market, differing)
        return None

    def _may_ask(self, market: str, candidates: Sequence[str]) -> set[str]:
        """The candidates that the venue may be asked for: not those of which too few candles came within the last hour
        and, where it is not known when the market went, the likeliest only."""
        now_s = self._clock.monotonic()
        with self._lock:
            unclear = {new for (old, new), at_s in self._unclear.items() if old == market and now_s - at_s < _AGAIN_S}
        likeliest = candidates if self._log.delisted_us(market) is not None else candidates[:_MOST]
        return {*likeliest} - unclear

    def _candidates(self, market: str, codes: frozenset[str]) -> list[str]:
        """The listed markets that may be it and were not compared yet, the likeliest first."""
        quote = market.partition("-")[0] + "-"
        others = {code for code in codes if code.startswith(quote)} - self._log.known_distinct(market)
        alike = {code: difflib.SequenceMatcher(None, market, code).ratio() for code in others}
        gone_us = self._log.delisted_us(market)
        if gone_us is None:
            return sorted(others, key=lambda code: (-alike[code], code))
        days = {code: abs(seen - gone_us) // DAY_US for code in others if (seen := self._log.listed_us(code))}
        near = [code for code in days if days[code] <= _NEAR_DAYS]
        return sorted(near, key=lambda code: (days[code], -alike[code], code))

    def _stored(self, code: str, timeframe: Timeframe, mine: Stored) -> float | None:
        """Whether stored candles are those of `code` (see `unit_of`), as far as both are stored."""
        theirs = self._store.read(code, timeframe, _extent(mine, timeframe))
        both = theirs.covered & mine.covered
        return unit_of(rows_inside(mine.table, both), rows_inside(theirs.table, both))

    def _asked(self, code: str, timeframe: Timeframe, mine: Stored, priority: Priority) -> float | None:
        """Whether stored candles are those of `code`, by one page of the venue's (`unit_of`). A short page counts if a
        second one agrees, but never of a market listed within a day, whose history may still be on its way."""
        span = _extent(mine, timeframe)
        lane = Priority.HIGH if priority is Priority.CRITICAL else priority

        def ask(to_us: int | None, count: int) -> CandlePage:
            page: CandlePage = self._request(candles_ask(code, timeframe, to_us, count), lane).value
            return page

        page = ask(span.end, mine.table.num_rows)
        if page.rows < mine.table.num_rows:
            is_doubtful = self._log.is_new(code) or ask(None, 1).rows == 0
            if is_doubtful or not is_same(ask(span.end, mine.table.num_rows).table, page.table):
                return None
        elif page.oldest_us is not None:
            span = Span(max(span.start, page.oldest_us), span.end)
        both = mine.covered.clip(span)
        return unit_of(rows_inside(mine.table, both), rows_inside(page.table, both))

    def _newest(self, market: str, timeframe: Timeframe) -> Stored:
        """The newest stored candles, a page at most."""
        oldest, newest = self._store.oldest(market, timeframe), self._store.newest(market, timeframe)
        if oldest is None or newest is None:
            return Stored(empty_candles(), SpanSet(), {})
        end, slots = timeframe.next(newest), PAGE
        while True:
            start = max(oldest, timeframe.next(end, -slots))
            held = self._store.read(market, timeframe, Span(start, max(start, end)))
            if held.table.num_rows >= PAGE or start <= oldest or slots > 64 * PAGE:
                return replace(held, table=held.table.slice(max(0, held.table.num_rows - PAGE)))
            slots *= 4


def _extent(held: Stored, timeframe: Timeframe) -> Span:
    times = times_of(held.table)
    return Span(int(times[0]), timeframe.next(int(times[-1])))
