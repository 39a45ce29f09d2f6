"""Tickers, order books and trades: what is asked, how it is split, and what memory answers.

Tickers and books split by market (as many as the venue takes in one call), trades by count and cursor (`trades`). The
latest row of each market is held once, in memory only, bounded by the number of markets; `max_age` decides whether it
may answer. A row never replaces a newer one. One lock guards the tables; requests happen outside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from backbone.clock import Clock
from backbone.coordinator.metrics import Metrics
from backbone.coordinator.trades import DAY_US, TradesAnswer, TradeWalk
from backbone.errors import BackboneError, IncompleteError, RejectedError, SourceError
from backbone.model import OrderBook, Priority, Ticker
from backbone.routing.rest import Reply
from backbone.routing.wire import (
    Ask,
    Instrument,
    instruments_ask,
    markets_ask,
    orderbooks_ask,
    tickers_all_ask,
    tickers_ask,
)

__all__ = ["Answer", "Held", "Latest", "Realtime", "Told"]

R = TypeVar("R", Ticker, OrderBook)

_DEFAULT_AGE_S = {"ticker": 0.5, "orderbook": 0.1}  # how old a row may be where the caller does not say
_MARKETS_A_CALL = 900  # the venue answered all its 855 markets in one call
_MEMBERS_S = 600.0  # how long a whole answer for a quote currency is believed to name all its markets


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


@dataclass(frozen=True)
class Told:
    """Rows as the venue spelled them, with its words on the rate (None: silent)."""

    rows: list[dict[str, Any]]
    group: str | None
    remaining: int | None


@dataclass(frozen=True)
class _Verbatim(Ask):
    """A question whose answer is wanted in the venue's own words; in flight it is not shared with the parsed one."""


def _verbatim(ask: Ask) -> _Verbatim:
    def parse(body: bytes) -> Any:
        ask.parse(body)  # checked at the door like any other
        return msgspec.json.decode(body)

    return _Verbatim(ask.group, ask.path, ask.query, parse, ask.market)


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
    """The coordinator's strategies for what is true now.

    `request` puts one question; `listed` asks the venue anew which markets it lists.
    """

    def __init__(
        self,
        request: Callable[[Ask, Priority], Reply],
        clock: Clock,
        metrics: Metrics,
        listed: Callable[[Priority], Collection[str]],
    ) -> None:
        self._request = request
        self._listed = listed
        self._clock = clock
        self._metrics = metrics
        self._lock = threading.Lock()
        self._tickers: Latest[Ticker] = Latest()
        self._books: Latest[OrderBook] = Latest()
        self._instruments: dict[str, Instrument] = {}
        self._members: dict[tuple[str, ...], tuple[float, tuple[str, ...]]] = {}  # quotes: when told, its markets

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
        """The tickers of whole quote currencies, in one call; `markets` are those that may answer from memory.

        Once the venue has told a quote currency whole, its members are those it told.
        """
        key = tuple(quotes)
        members = self._members_of(key) or tuple(markets)
        known = self._young(self._tickers, members, self._age("ticker", priority, max_age_s))
        if members and len(known) == len(members):
            self._metrics.count("cache.realtime.hits", len(known))
            return Answer(tuple(known[m] for m in members), 0, len(members))
        self._metrics.count("cache.realtime.misses", max(1, len(members)))
        reply = self._request(tickers_all_ask(key), priority)
        rows = self._take(self._tickers, ((row.market, row) for row in reply.value), reply.received_s)
        with self._lock:
            self._members[key] = reply.received_s, tuple(held.row.market for held in rows)
        return Answer(tuple(rows), 1, 0)

    def _members_of(self, quotes: tuple[str, ...]) -> tuple[str, ...]:
        with self._lock:
            told_s, members = self._members.get(quotes, (0.0, ()))
        return members if self._clock.monotonic() - told_s < _MEMBERS_S else ()

    # -- books ---------------------------------------------------------------------------------------------------

    def orderbooks(
        self, markets: Sequence[str], level: float, priority: Priority, max_age_s: float | None
    ) -> Answer[OrderBook]:
        """Whole books (30 levels) of `markets` grouped by `level` (0: not grouped)."""
        keys = [(market, float(level)) for market in markets]
        age = self._age("orderbook", priority, max_age_s)

        def ask(codes: Sequence[str]) -> Ask:
            return orderbooks_ask(codes, level, 30)

        return self._by_market(
            keys, priority, age, self._books, ask, lambda key: str(key[0]), lambda r: (r.market, float(level))
        )

    def instruments(self, markets: Sequence[str], priority: Priority) -> dict[str, Instrument]:
        """Tick size and levels of `markets`, asked anew: ticks change with the price band."""
        found: dict[str, Instrument] = {}
        for codes in _chunks(list(markets), _MARKETS_A_CALL):
            found.update(self._request(instruments_ask(codes), priority).value)
        with self._lock:
            self._instruments.update(found)
        return found

    def known_instrument(self, market: str) -> Instrument | None:
        """What was last heard of `market`; asks nothing."""
        with self._lock:
            return self._instruments.get(market)

    def known_tick(self, market: str) -> float | None:
        """The tick size last heard of `market`; asks nothing."""
        known = self.known_instrument(market)
        return known.tick_size if known is not None else None

    # -- in the venue's own words --------------------------------------------------------------------------------

    def ticker_rows(self, markets: Sequence[str], priority: Priority) -> Told:
        """The venue's ticker rows of `markets`, with every field it sends; never from memory."""
        return self._told([tickers_ask(part) for part in _chunks(list(markets), _MARKETS_A_CALL)], priority)

    def book_rows(self, markets: Sequence[str], priority: Priority) -> Told:
        """The venue's order books of `markets`, ungrouped; never from memory."""
        parts = _chunks(list(markets), _MARKETS_A_CALL)
        return self._told([orderbooks_ask(part, 0.0, 30) for part in parts], priority)

    def market_rows(self, priority: Priority) -> Told:
        """The venue's market list with its details; never from memory."""
        return self._told([markets_ask()], priority)

    def _told(self, asks: Sequence[Ask], priority: Priority) -> Told:
        rows: list[dict[str, Any]] = []
        for ask in asks:
            reply = self._request(_verbatim(ask), priority)
            rows += reply.value
        return Told(rows, reply.group, reply.remaining)

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
            tuple(known[key] for key in keys if key in known),
            requests,
            len(keys) - len(wanted),
            tuple(lost),
            tuple(causes),
        )

    def _ask_some(
        self, codes: list[str], priority: Priority, ask: Callable[[Sequence[str]], Ask]
    ) -> tuple[tuple[list[Any], float], int, list[str], list[BackboneError]]:
        """One call for `codes`. Where the venue refuses the list for one of them, its market list names the culprits;
        should it still list them all, halves find it.
        """
        try:
            reply = self._request(ask(tuple(codes)), priority)
        except RejectedError as exc:
            if exc.status != 404:
                raise
            listed = self._listed(priority)
            gone = [code for code in codes if code not in listed]
            left = [code for code in codes if code in listed]
            if len(codes) == 1 or not left:
                return ([], self._clock.monotonic()), 1, codes, [exc]
            middle = len(codes) // 2
            parts = [left] if gone else [codes[:middle], codes[middle:]]
            rows: list[Any] = []
            causes: list[BackboneError] = [exc] if gone else []
            received_s, requests = 0.0, 1
            for part in parts:
                found, asked, lost, why = self._ask_some(part, priority, ask)
                rows += found[0]
                received_s = max(received_s, found[1])
                requests += asked
                gone += lost
                causes += why
            return (rows, received_s), requests, gone, causes
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
    ) -> TradesAnswer:
        """The newest `count` trades before `end_us`, or all from `start_us`, as far as they could be had.

        A venue that fails before anything arrived raises its error.
        """
        walk = TradeWalk(market, count, start_us, end_us, today_us // DAY_US)
        while not walk.is_done:
            try:
                reply = self._request(walk.next_ask(), priority)
                walk.take(reply.value, reply.date_us)
            except SourceError as exc:
                if not walk.rows:
                    raise
                return TradesAnswer(walk.rows, walk.requests, (walk.missing,), (exc,))
        return TradesAnswer(walk.rows, walk.requests)


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
