"""Tickers, order books and trades: what is asked, how it is split, and what memory answers.

Tickers and books split by market (as many as the venue takes in one call), trades by count and cursor (`trades`). The
newest row of each market is in `LatestRows`, whatever channel brought it. It answers while it is known to be young
enough: a row that the stream covers is as old as the last sign of life on its connection, any other as old as its
arrival (`Feed.known_at`). One lock guards the instruments and quote currencies that are remembered; requests happen
outside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from backbone.clock import Clock
from backbone.coordinator.live.feed import Feed
from backbone.coordinator.live.latest import Held, LatestRows, Slot
from backbone.coordinator.live.trades import TradesAnswer, walk_trades
from backbone.coordinator.metrics import Metrics
from backbone.coordinator.steps import answered
from backbone.errors import BackboneError, IncompleteError, RejectedError, SourceError
from backbone.model import OrderBook, Priority, Ticker
from backbone.routing.rest import Reply
from backbone.routing.wire import (
    BOOK_DEPTHS,
    ORDERBOOK_DEPTH,
    Ask,
    Instrument,
    grouped,
    instruments_ask,
    markets_ask,
    orderbooks_ask,
    prices_ask,
    tickers_all_ask,
    tickers_ask,
)
from backbone.timeframe import DAY_US

__all__ = ["Answer", "Realtime", "VerbatimRows"]

R = TypeVar("R", Ticker, OrderBook)

_DEFAULT_AGE_S = {"ticker": 0.5}  # how old a row of REST's may be where the caller does not say
_BOOK_AGE_S = 0.1
_COVERED_S = 1.0  # the same for a streamed row: it covers all that happened until then, a REST answer does no more
_COVERED_CRITICAL_S = 0.25
_MARKETS_A_CALL = 900  # the venue answered all its 855 markets in one call
_LONG_LIST = 500  # characters of codes: a shorter list is not what a 400 refuses
_MEMBERS_S = 600.0  # how long an answer for a whole quote currency is taken to name all its markets


class Answer(msgspec.Struct, Generic[R]):
    """Rows in the order they were asked for, and how many requests they took.

    missing : markets that went away meanwhile, with the `causes`.
    unreadable : markets whose rows could not be read; they have none.
    """

    held: list[Held[R]] = msgspec.field(default_factory=list)
    requests: int = 0
    missing: list[str] = msgspec.field(default_factory=list)
    causes: list[BackboneError] = msgspec.field(default_factory=list)
    unreadable: list[str] = msgspec.field(default_factory=list)


class VerbatimRows(msgspec.Struct, frozen=True):
    """Rows as the venue spelled them, with the rate it reported (None: not at all)."""

    rows: list[dict[str, Any]]
    group: str | None
    remaining: int | None


def _verbatim(reply: Reply, before: Sequence[dict[str, Any]] = ()) -> VerbatimRows:
    """The rows of a reply, after those of the ones before it."""
    return VerbatimRows([*before, *msgspec.json.decode(reply.body)], reply.group, reply.remaining)


class Realtime:
    """The coordinator's strategies for what is true now.

    `request` puts one question; `listed` asks the venue anew which markets it lists: once, where that has those
    that another reply named.
    """

    def __init__(
        self,
        request: Callable[[Ask, Priority], Reply],
        clock: Clock,
        metrics: Metrics,
        listed: Callable[[Priority, Collection[str]], Collection[str]],
        latest: LatestRows,
        feed: Feed,
    ) -> None:
        self._request = request
        self._listed = listed
        self._clock = clock
        self._metrics = metrics
        self._lock = threading.Lock()
        self._latest = latest
        self.feed = feed
        self._chunk = _MARKETS_A_CALL  # less once an address was too long for a gate on the way
        self._instruments: dict[str, tuple[float, Instrument]] = {}  # when received, and what
        self._prices: dict[str, tuple[float, float]] = {}  # likewise, of the market's instrument
        self._members: dict[tuple[str, ...], tuple[float, tuple[str, ...]]] = {}  # quotes: when received, its markets

    # -- tickers -------------------------------------------------------------------------------------------------

    def tickers(self, markets: Sequence[str], priority: Priority, max_age_s: float | None) -> Answer[Ticker]:
        """The tickers of `markets`, each from memory where young enough."""
        return self._by_market("ticker", markets, priority, max_age_s, tickers_ask)

    def tickers_of_quote(
        self, quotes: Sequence[str], markets: Sequence[str], priority: Priority, max_age_s: float | None
    ) -> Answer[Ticker]:
        """The tickers of whole quote currencies, in one call; `markets` are those that may answer from memory.

        Once the venue has reported a quote currency whole, its members are those it reported. A reply that lacks a
        member, or the first one, is compared with the market list; what it lacks is asked for by name.
        """
        key = tuple(quotes)
        with self._lock:
            at_s, members = self._members.get(key, (float("-inf"), ()))
        if not members or self._clock.monotonic() - at_s >= _MEMBERS_S:
            members = tuple(markets)
        known: dict[str, Held[Ticker]] = self._young("ticker", members, priority, max_age_s)
        if members and len(known) == len(members):
            self._metrics.count("cache.realtime.hits", len(known))
            return Answer([known[market] for market in members])
        self._metrics.count("cache.realtime.misses", max(1, len(members)))
        found: Answer[Ticker] = Answer(requests=1)
        received_s = self._take("ticker", self._request(tickers_all_ask(key), priority), found)
        here = {held.row.market for held in found.held} | set(found.unreadable)
        if not members or not here.issuperset(members):  # gone from the list, or the reply is short
            listed = self._listed(priority, () if members else here)
            listed = [code for code in listed if code.partition("-")[0] in key]
            wanted = [*members, *sorted(set(listed).difference(members))]
            more = self._collect("ticker", [m for m in wanted if m not in here and m in listed], priority, tickers_ask)
            found.held += more.held
            found.requests += 1 + more.requests
            found.unreadable += more.unreadable
        with self._lock:
            self._members[key] = received_s, tuple(held.row.market for held in found.held)
        return found

    # -- books ---------------------------------------------------------------------------------------------------

    def orderbooks(
        self,
        markets: Sequence[str],
        level: float,
        priority: Priority,
        max_age_s: float | None,
        depth: int = ORDERBOOK_DEPTH,
    ) -> Answer[OrderBook]:
        """Books of `markets` grouped by `level` (0: not grouped), at least `depth` levels deep where there are so
        many."""

        def ask(codes: Sequence[str]) -> Ask:
            return orderbooks_ask(codes, level)

        return self._by_market(grouped(float(level)), markets, priority, max_age_s, ask, depth)

    def instruments(self, markets: Sequence[str], priority: Priority) -> tuple[dict[str, Instrument], int]:
        """Tick size and levels of `markets`, asked anew: ticks change with the price band; and how many requests."""
        tally: Answer[Any] = Answer()
        found: dict[str, Instrument] = {}
        for reply in self._replies(markets, priority, instruments_ask, tally):
            found |= reply.value
        self.note_instruments(found)
        return found, tally.requests

    def note_instruments(self, found: dict[str, Instrument]) -> None:
        """Remember what was received of some markets."""
        with self._lock:
            now_s = self._clock.monotonic()
            self._instruments.update({market: (now_s, instrument) for market, instrument in found.items()})

    def prices(self, markets: Sequence[str], max_age_s: float, priority: Priority) -> tuple[dict[str, float], int]:
        """The prices of `markets` that are at most so old, else asked anew, and how many requests that took; for the
        price steps that hold at them."""
        if self.has_prices(markets, max_age_s):
            requests = 0
        else:
            requests = 1
            self.note_prices(self._request(prices_ask(markets), priority))
        with self._lock:
            return {market: self._prices[market][1] for market in markets if market in self._prices}, requests

    def has_prices(self, markets: Iterable[str], max_age_s: float) -> bool:
        """Whether the price of each market was received so lately; makes no request."""
        with self._lock:
            since_s = self._clock.monotonic() - max_age_s
            return all(market in self._prices and self._prices[market][0] >= since_s for market in markets)

    def note_prices(self, reply: Reply) -> None:
        """Remember the prices of a reply of tickers."""
        with self._lock:
            self._prices.update({row.market: (reply.received_s, row.price) for row in reply.value})

    def known_instrument(self, market: str) -> Instrument | None:
        """What was last received of `market`; makes no request."""
        with self._lock:
            known = self._instruments.get(market)
        return None if known is None else known[1]

    def instrument_age_s(self, market: str) -> float:
        """How long ago `known_instrument` was received; infinite for one that never was."""
        with self._lock:
            known = self._instruments.get(market)
        return float("inf") if known is None else self._clock.monotonic() - known[0]

    def known_tick(self, market: str) -> float | None:
        """The tick size last received of `market`; makes no request."""
        known = self.known_instrument(market)
        return known.tick_size if known is not None else None

    # -- in the venue's own spelling --------------------------------------------------------------------------------

    def ticker_rows(self, markets: Sequence[str], priority: Priority) -> VerbatimRows:
        """The venue's ticker rows of `markets`, with every field it sends; never from memory."""
        return self._verbatim_rows(tickers_ask, list(markets), priority)

    def book_rows(self, markets: Sequence[str], priority: Priority) -> VerbatimRows:
        """The venue's order books of `markets`, ungrouped; never from memory."""
        return self._verbatim_rows(orderbooks_ask, list(markets), priority)

    def market_rows(self, priority: Priority, confirm: Callable[[Callable[[], Any]], Any]) -> VerbatimRows:
        """The venue's market list with its details; never from memory. `confirm` asks until a list is confirmed."""
        replies: list[Reply] = []

        def ask() -> Any:
            replies.append(self._request(markets_ask(), priority))
            return replies[-1].value

        confirm(ask)
        return _verbatim(replies[-1])

    def _verbatim_rows(
        self, ask: Callable[[Sequence[str]], Ask], markets: list[str], priority: Priority
    ) -> VerbatimRows:
        answer = VerbatimRows([], None, None)
        for reply in self._replies(markets, priority, ask, Answer()):
            answer = _verbatim(reply, answer.rows)
        return answer

    # -- what both share -----------------------------------------------------------------------------------------

    def parts(self, codes: Sequence[str]) -> list[list[str]]:
        """`codes` in as many lists as the venue, and the gates on the way to it, take in one address each."""
        return [list(codes[i : i + self._chunk]) for i in range(0, len(codes), self._chunk)]

    def is_too_long(self, error: BackboneError, codes: Sequence[str]) -> bool:
        """Whether a gate on the way (a proxy, a firewall) may have refused the length of the address of `codes`.

        If so, half as many are asked for at once from now on.
        """
        if len(codes) < 2 or not isinstance(error, RejectedError):
            return False
        is_so = error.status in (414, 431) or (error.status == 400 and len(",".join(codes)) > _LONG_LIST)
        if is_so:
            self._chunk = min(self._chunk, len(codes) // 2)
        return is_so

    def _young(
        self,
        kind: str,
        markets: Sequence[str],
        priority: Priority,
        max_age_s: float | None,
        depth: int = 0,
    ) -> dict[str, Held[Any]]:
        """The rows that may answer, each with the time at which it was last known to be the latest."""
        rest_s, last_received_s = _ages(kind, priority, max_age_s)
        now, received = self._clock.monotonic(), self.feed.last_received_s()
        found: dict[str, Held[Any]] = {}
        for market, slot in self._latest.known(kind, markets).items():
            at, is_covered = self.feed.known_at(slot, received)
            held = slot.held
            if depth and _is_cut(slot, depth):
                continue
            if held is not None and at > now - (last_received_s if is_covered else rest_s):
                found[market] = Held(held.row, "stream", at) if is_covered else held
        if max_age_s != 0:
            self.feed.asked(kind, markets)
        return found

    def _take(self, kind: str, reply: Reply, found: Answer[Any]) -> float:
        """Add the rows of a reply to what was found, and to the latest rows; when it was received."""
        self._latest.offer(kind, reply.value, reply.received_s)
        found.held += [Held(row, "rest", reply.received_s) for row in reply.value]
        found.unreadable += reply.value.unreadable
        if reply.value.unreadable:
            self._metrics.count("rows.unreadable", len(reply.value.unreadable))
        return reply.received_s

    def _by_market(
        self,
        kind: str,
        markets: Sequence[str],
        priority: Priority,
        max_age_s: float | None,
        ask: Callable[[Sequence[str]], Ask],
        depth: int = 0,
    ) -> Answer[Any]:
        known = self._young(kind, markets, priority, max_age_s, depth)
        self._metrics.count("cache.realtime.hits", len(known))
        self._metrics.count("cache.realtime.misses", len(markets) - len(known))
        wanted = [market for market in markets if market not in known]
        found = self._collect(kind, wanted, priority, ask)
        known.update((held.row.market, held) for held in found.held)
        found.held = [known[market] for market in markets if market in known]
        return found

    def _collect(
        self, kind: str, codes: list[str], priority: Priority, ask: Callable[[Sequence[str]], Ask]
    ) -> Answer[Any]:
        """The rows of `codes`, in as few requests as the venue and the way to it allow."""
        found: Answer[Any] = Answer()
        for reply in self._replies(codes, priority, ask, found, may_lack=True):
            self._take(kind, reply, found)
        return found

    def _replies(
        self,
        codes: Sequence[str],
        priority: Priority,
        ask: Callable[[Sequence[str]], Ask],
        found: Answer[Any],
        *,
        may_lack: bool = False,
    ) -> Iterator[Reply]:
        """The replies about `codes`, in as few requests as it takes, which `found` counts.

        A list whose address is too long for a gate on the way is halved. Where markets `may_lack`, one that the venue
        refuses for one of them goes on without the culprits (`_without_missing`).
        """
        for part in self.parts(codes):
            found.requests += 1
            try:
                reply = self._request(ask(tuple(part)), priority)
            except RejectedError as exc:
                if self.is_too_long(exc, part):
                    smaller = [part]
                elif may_lack and exc.status == 404:
                    smaller = self._without_missing(part, exc, priority, found)
                else:
                    raise
                for each in smaller:
                    yield from self._replies(each, priority, ask, found, may_lack=may_lack)
            else:
                yield reply

    def _without_missing(
        self, codes: list[str], cause: RejectedError, priority: Priority, found: Answer[Any]
    ) -> list[list[str]]:
        """What to ask instead of a list that was refused for one of its markets: those that the market list still has
        or, should it still list them all, halves. The others are `found` to be missing."""
        listed = self._listed(priority, ())
        left = [code for code in codes if code in listed]
        gone = codes if len(codes) == 1 else [code for code in codes if code not in listed]
        if gone:
            found.missing += gone
            found.causes.append(cause)
            return [left] if len(codes) > 1 else []
        middle = len(codes) // 2
        return [codes[:middle], codes[middle:]]

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
        if count is not None and start_us is None and end_us is None:
            oldest_s = self._clock.monotonic() - _ages("trade", priority, None)[1]
            tape = self.feed.trades(market, count, oldest_s)
            self.feed.asked("trade", [market])
            if tape is not None:
                return TradesAnswer(tuple(tape), 0)
        steps = walk_trades(market, count, start_us, end_us, today_us // DAY_US)
        answer = answered(steps, lambda ask: self._request(ask, priority))
        for cause in answer.causes:
            if not answer.rows or not isinstance(cause, SourceError):
                raise cause
        return answer


def _ages(kind: str, priority: Priority, max_age_s: float | None) -> tuple[float, float]:
    """How old a row may be, in seconds: one that came from REST, and one that the stream covers.

    Critical calls take what is there at once where the stream was received this instant, and ask otherwise.
    """
    if max_age_s is not None:
        return max_age_s, max_age_s
    if priority is Priority.CRITICAL:
        return 0.0, _COVERED_CRITICAL_S
    return _DEFAULT_AGE_S.get(kind, _BOOK_AGE_S), _COVERED_S


def _is_cut(slot: Slot, depth: int) -> bool:
    """Whether the book may end before `depth` because a live table wants no more of it. One whose length is none of
    those that a book is cut to is whole."""
    levels = len(slot.held.row.levels) if slot.held is not None else 0
    return slot.is_short and levels < depth and levels in BOOK_DEPTHS


def missing_error(answer: Answer[Any], kind: str) -> IncompleteError:
    """The error for markets that went away meanwhile; the others are in the frame."""
    names = ", ".join(answer.missing)
    return IncompleteError(
        f"{kind}: the venue no longer knows {names}; the other {len(answer.held)} markets are in .frame",
        gaps=answer.missing,
        causes=answer.causes,
    )
