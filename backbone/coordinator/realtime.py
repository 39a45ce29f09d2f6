"""Tickers, order books and trades: what is asked, how it is split, and what memory answers.

Tickers and books split by market (as many as the venue takes in one call), trades by count and cursor. The latest row
of each market is held once, in memory only, bounded by the number of markets; `max_age` decides whether it may answer.
A row never replaces a newer one. One lock guards the tables; requests happen outside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from backbone.clock import Clock
from backbone.coordinator.metrics import Metrics
from backbone.errors import BackboneError, IncompleteError, RejectedError
from backbone.model import OrderBook, Priority, Ticker, Trade
from backbone.routing.rest import Reply
from backbone.routing.wire import (
    TRADES_PAGE,
    Ask,
    Instrument,
    instruments_ask,
    orderbooks_ask,
    tickers_all_ask,
    tickers_ask,
    trades_ask,
)

__all__ = ["Answer", "Held", "Latest", "Realtime"]

R = TypeVar("R", Ticker, OrderBook)

_DEFAULT_AGE_S = {"ticker": 0.5, "orderbook": 0.1}  # how old a row may be where the caller does not say
_MARKETS_A_CALL = 900  # the venue answered all its 855 markets in one call
_DAYS_BACK = 7


@dataclass(frozen=True)
class Held(Generic[R]):
    """A row with where it came from and when (monotonic seconds)."""

    row: R
    source: str
    received_s: float


@dataclass(frozen=True)
class Answer(Generic[R]):
    """Rows in the order they were asked for, and what it took."""

    held: tuple[Held[R], ...]
    requests: int
    from_memory: int
    missing: tuple[str, ...] = ()
    causes: tuple[BackboneError, ...] = ()


@dataclass
class Latest(Generic[R]):
    """The newest row of each key. Its owner holds a lock around each call."""

    rows: dict[Any, Held[R]] = field(default_factory=dict)

    def offer(self, key: Any, held: Held[R]) -> bool:
        """Take `held` unless a newer row is there; says whether it was taken."""
        known = self.rows.get(key)
        if known is not None and known.row.stamp_us > held.row.stamp_us:
            return False
        self.rows[key] = held
        return True


class Realtime:
    """The coordinator's strategies for what is true now."""

    def __init__(self, request: Callable[[Ask, Priority], Reply], clock: Clock, metrics: Metrics) -> None:
        self._request = request
        self._clock = clock
        self._metrics = metrics
        self._lock = threading.Lock()
        self._tickers: Latest[Ticker] = Latest()
        self._books: Latest[OrderBook] = Latest()
        self._instruments: dict[str, Instrument] = {}

    # -- rows from a stream --------------------------------------------------------------------------------------

    def offer_ticker(self, row: Ticker, source: str, received_s: float) -> bool:
        """A ticker that another channel brought; says whether it was news."""
        with self._lock:
            return self._tickers.offer(row.market, Held(row, source, received_s))

    def offer_book(self, row: OrderBook, source: str, received_s: float) -> bool:
        """A book that another channel brought; says whether it was news."""
        with self._lock:
            return self._books.offer((row.market, row.level), Held(row, source, received_s))

    # -- tickers -------------------------------------------------------------------------------------------------

    def tickers(self, markets: Sequence[str], priority: Priority, max_age_s: float | None) -> Answer[Ticker]:
        """The tickers of `markets`, each from memory where young enough."""
        return self._by_market(markets, priority, self._age("ticker", priority, max_age_s), self._tickers, tickers_ask)

    def tickers_of_quote(
        self, quotes: Sequence[str], markets: Sequence[str], priority: Priority, max_age_s: float | None
    ) -> Answer[Ticker]:
        """The tickers of whole quote currencies, in one call; `markets` are those it should hold."""
        age = self._age("ticker", priority, max_age_s)
        known = self._young(self._tickers, markets, age)
        if markets and len(known) == len(markets):
            return Answer(tuple(known[m] for m in markets), 0, len(markets))
        reply = self._request(tickers_all_ask(tuple(quotes)), priority)
        rows = self._take(self._tickers, ((row.market, row) for row in reply.value), reply.received_s)
        return Answer(tuple(rows), 1, 0)

    # -- books ---------------------------------------------------------------------------------------------------

    def orderbooks(
        self, markets: Sequence[str], level: float, priority: Priority, max_age_s: float | None
    ) -> Answer[OrderBook]:
        """Whole books (30 levels) of `markets` grouped by `level` (0: not grouped)."""
        keys = [(market, float(level)) for market in markets]
        age = self._age("orderbook", priority, max_age_s)

        def ask(codes: Sequence[str]) -> Ask:
            return orderbooks_ask(codes, level, 30)

        return self._by_market(keys, priority, age, self._books, ask, lambda key: str(key[0]), lambda r: (r.market, float(level)))

    def instruments(self, markets: Sequence[str], priority: Priority) -> dict[str, Instrument]:
        """Tick size and levels of `markets`. Ticks change with the price band: asked anew each time."""
        found: dict[str, Instrument] = {}
        for codes in _chunks(list(markets), _MARKETS_A_CALL):
            found.update(self._request(instruments_ask(codes), priority).value)
        with self._lock:
            self._instruments.update(found)
        return found

    def known_tick(self, market: str) -> float | None:
        """The tick size last heard of `market`; asks nothing."""
        with self._lock:
            known = self._instruments.get(market)
        return known.tick_size if known is not None else None

    # -- what both share -----------------------------------------------------------------------------------------

    def _age(self, kind: str, priority: Priority, max_age_s: float | None) -> float:
        if max_age_s is not None:
            return max_age_s
        return 0.0 if priority is Priority.CRITICAL else _DEFAULT_AGE_S[kind]

    def _young(self, table: Latest[R], keys: Iterable[Any], age_s: float) -> dict[Any, Held[R]]:
        oldest = self._clock.monotonic() - age_s
        with self._lock:
            found = {key: table.rows.get(key) for key in keys}
        return {key: held for key, held in found.items() if held is not None and held.received_s > oldest}

    def _take(self, table: Latest[R], rows: Iterable[tuple[Any, R]], received_s: float) -> list[Held[R]]:
        fresh = [(key, Held(row, "rest", received_s)) for key, row in rows]
        with self._lock:
            for key, held in fresh:
                table.offer(key, held)
        return [held for _, held in fresh]

    def _by_market(
        self,
        keys: Sequence[Any],
        priority: Priority,
        age_s: float,
        table: Latest[R],
        ask: Callable[[Sequence[str]], Ask],
        code_of: Callable[[Any], str] = str,
        key_of: Callable[[R], Any] = lambda row: row.market,
    ) -> Answer[R]:
        known = self._young(table, keys, age_s)
        self._metrics.count("cache.realtime.hits", len(known))
        self._metrics.count("cache.realtime.misses", len(keys) - len(known))
        wanted = [key for key in keys if key not in known]
        requests, lost, causes = 0, [], []
        for part in _chunks(wanted, _MARKETS_A_CALL):
            found, asked, gone, why = self._ask_some([code_of(key) for key in part], priority, ask)
            requests += asked
            lost += gone
            causes += why
            for held in self._take(table, ((key_of(row), row) for row in found[0]), found[1]):
                known[key_of(held.row)] = held
        return Answer(
            tuple(known[key] for key in keys if key in known), requests, len(keys) - len(wanted), tuple(lost), tuple(causes)
        )

    def _ask_some(
        self, codes: list[str], priority: Priority, ask: Callable[[Sequence[str]], Ask]
    ) -> tuple[tuple[list[Any], float], int, list[str], list[BackboneError]]:
        """One call for `codes`; where the venue refuses the list for one of them, halves find it."""
        try:
            reply = self._request(ask(tuple(codes)), priority)
        except RejectedError as exc:
            if exc.status != 404:
                raise
            if len(codes) == 1:
                return ([], self._clock.monotonic()), 1, codes, [exc]
            middle = len(codes) // 2
            first, second = (self._ask_some(half, priority, ask) for half in (codes[:middle], codes[middle:]))
            rows = (first[0][0] + second[0][0], max(first[0][1], second[0][1]))
            return rows, 1 + first[1] + second[1], first[2] + second[2], first[3] + second[3]
        return (list(reply.value), reply.received_s), 1, [], []

    # -- trades --------------------------------------------------------------------------------------------------

    def trades(
        self,
        market: str,
        count: int | None,
        priority: Priority,
        *,
        start_us: int | None,
        end_us: int | None,
        today_us: int,
    ) -> tuple[list[Trade], int]:
        """The newest `count` trades before `end_us` (or all from `start_us`), oldest first, and the requests it took.

        Pages go by cursor, never by time, so that trades which share a second or a millisecond are neither lost nor
        doubled; days go back by ``days_ago``.
        """
        day_us = 86_400_000_000
        newest_day = today_us // day_us
        last_day = newest_day if end_us is None else min(newest_day, (end_us - 1) // day_us)
        found: dict[int, Trade] = {}
        requests = 0
        for days_ago in range(newest_day - last_day, _DAYS_BACK + 1):
            cursor: int | None = None
            while True:
                need = TRADES_PAGE if count is None or end_us is not None else min(TRADES_PAGE, count - len(found))
                reply = self._request(
                    trades_ask(market, need, cursor=cursor, days_ago=days_ago or None, to=_day_end(end_us, days_ago, newest_day) if cursor is None else None),
                    priority,
                )
                requests += 1
                page: tuple[Trade, ...] = reply.value
                for trade in page:
                    if (end_us is None or trade.time_us < end_us) and (start_us is None or trade.time_us >= start_us):
                        found[trade.sequential_id] = trade
                if count is not None and len(found) >= count:
                    return _oldest_first(found.values())[-count:], requests
                if len(page) < need:
                    break  # the day is told to its beginning
                oldest = page[-1]  # newest first; ids are unique but not promised to be ordered
                if start_us is not None and oldest.time_us < start_us:
                    return _oldest_first(found.values()), requests
                cursor = oldest.sequential_id
            day_start = (newest_day - days_ago) * day_us
            if start_us is not None and day_start <= start_us:
                break
        return _oldest_first(found.values()), requests


def _day_end(end_us: int | None, days_ago: int, newest_day: int) -> str | None:
    """The time of day to start from, where `end_us` falls inside the day: the venue's ``to`` takes whole seconds."""
    day_us = 86_400_000_000
    if end_us is None or end_us // day_us != newest_day - days_ago:
        return None
    seconds = -(-(end_us % day_us) // 1_000_000) + 1
    if seconds >= 86_400:
        return None
    return f"{seconds // 3600:02d}{seconds // 60 % 60:02d}{seconds % 60:02d}"


def _oldest_first(trades: Iterable[Trade]) -> list[Trade]:
    return sorted(trades, key=lambda t: (t.time_us, t.sequential_id))


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def missing_error(answer: Answer[Any], kind: str) -> IncompleteError:
    """The error for markets that went away meanwhile; the others are in the frame."""
    names = ", ".join(answer.missing)
    return IncompleteError(
        f"{kind}: the venue no longer knows {names}; the other {len(answer.held)} markets are in .frame",
        gaps=answer.missing,
        causes=answer.causes,
    )
