"""What is asked for rows of now, how it is split, and what memory answers; against a venue of a few lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.coordinator.live.latest import NEVER, LatestRows, Slot
from backbone.coordinator.live.realtime import Realtime, missing_error
from backbone.coordinator.metrics import Metrics
from backbone.errors import PayloadError, RejectedError, UnreachableError
from backbone.model import Level, OrderBook, Priority, Ticker, Trade
from backbone.routing.rest import Reply
from backbone.routing.wire import Ask, Instrument, Rows
from backbone.testing import ManualClock

AT = 1_755_853_200_000_000


class NothingLive:
    """A feed without a stream."""

    def last_received_s(self) -> float:
        return NEVER

    def known_at(self, slot: Slot, last_received_s: float) -> tuple[float, bool]:
        return (NEVER if slot.held is None else slot.held.received_s), False

    def trades(self, market: str, count: int, oldest_s: float) -> list[Trade] | None:
        return None

    def asked(self, kind: str, markets: Iterable[str]) -> None:
        assert kind


class Venue:
    """Answers for what it lists; one unknown code refuses the whole call. `names` is what its list says."""

    def __init__(self, *codes: str) -> None:
        self.clock = ManualClock(AT)
        self.codes = set(codes)
        self.names = set(codes)
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.lists = 0
        self.price = 100.0
        self.realtime = Realtime(
            self.request, self.clock, Metrics(), self.listed, LatestRows(self.clock), NothingLive()
        )

    def listed(self, priority: Priority, until: Any = ()) -> set[str]:
        self.lists += 1
        return self.names

    def request(self, ask: Ask, priority: Priority) -> Reply:
        query = dict(ask.query)
        codes = tuple(query.get("markets", query.get("market", "")).split(","))
        if "quote_currencies" in query:
            codes = tuple(c for c in sorted(self.codes) if c.startswith(query["quote_currencies"] + "-"))
        self.asked.append((ask.path, codes))
        if not set(codes) <= self.codes:
            raise RejectedError("the venue refused (404): Code not found", status=404, code="404")
        self.clock.advance(0.03)
        value = self.rows(ask.path, codes, query)
        return Reply(value, ask.group, 9, AT, self.clock.mono_s - 0.03, self.clock.mono_s, b"")

    def rows(self, path: str, codes: tuple[str, ...], query: dict[str, str]) -> Any:
        stamp = self.clock.now_us()
        if path.startswith("/ticker"):
            return Rows(Ticker(c, stamp, self.price, *[1.0] * 10, stamp) for c in codes)
        if path == "/orderbook/instruments":
            return {c: Instrument(1000.0, (0.0, 10_000.0)) for c in codes}
        return Rows(OrderBook(c, stamp, float(query.get("level", 0)), (Level(101.0, 1.0, 100.0, 1.0),)) for c in codes)


CODES = [f"KRW-C{i}" for i in range(40)]


def test_rows_of_a_list_are_one_request_in_its_order() -> None:
    """As many markets as the venue takes go in one call."""
    venue = Venue(*CODES)
    answer = venue.realtime.tickers(CODES[::-1], Priority.HIGH, 0)
    assert [held.row.market for held in answer.held] == CODES[::-1]
    assert (answer.requests, answer.missing) == (1, [])
    assert venue.asked == [("/ticker", tuple(CODES[::-1]))]


def test_rows_of_very_many_markets_are_as_few_requests_as_it_takes() -> None:
    """Past what one call can hold, the list is cut."""
    codes = [f"KRW-C{i}" for i in range(1801)]
    venue = Venue(*codes)
    answer = venue.realtime.orderbooks(codes, 0, Priority.NORMAL, 0)
    assert [held.row.market for held in answer.held] == codes
    assert [len(asked) for _, asked in venue.asked] == [900, 900, 1]


@given(
    listed=st.sets(st.integers(0, 39), min_size=1),
    asked=st.lists(st.integers(0, 39), min_size=1, unique=True),
    known=st.booleans(),
)
def test_rows_of_markets_that_went_away_do_not_sink_the_others(listed: set[int], asked: list[int], known: bool) -> None:
    """Whichever are gone are named, all others answered; the list finds them at once, halves if the list is behind."""
    venue = Venue(*(CODES[i] for i in listed))
    if not known:
        venue.names = set(CODES)
    answer = venue.realtime.tickers([CODES[i] for i in asked], Priority.HIGH, 0)
    assert [held.row.market for held in answer.held] == [CODES[i] for i in asked if i in listed]
    assert set(answer.missing) == {CODES[i] for i in asked if i not in listed}
    assert answer.requests == len(venue.asked)
    if known:
        assert answer.requests <= 2
    else:
        gone = len(set(asked) - listed)
        assert answer.requests <= 1 + 2 * gone * (1 + math.ceil(math.log2(len(asked) + 1)))
    if answer.missing:
        error = missing_error(answer, "tickers")
        assert set(error.gaps) == set(answer.missing)
        assert error.causes
        assert all(code in str(error) for code in answer.missing)


@pytest.mark.parametrize("error", [UnreachableError("away"), PayloadError("odd"), RejectedError("no", status=400)])
def test_rows_refused_for_another_reason_are_not_asked_again(error: Exception) -> None:
    """Only an unknown code is looked for; any other failure is the answer."""
    venue = Venue(*CODES)

    def fail(ask: Ask, priority: Priority) -> Reply:
        venue.asked.append((ask.path, ()))
        raise error

    realtime = Realtime(fail, venue.clock, Metrics(), venue.listed, LatestRows(venue.clock), NothingLive())
    with pytest.raises(type(error)):
        realtime.tickers(CODES, Priority.HIGH, 0)
    assert len(venue.asked) == 1
    assert venue.lists == 0


@pytest.mark.parametrize(
    ("kind", "priority", "age_s", "is_memory"),
    [
        ("tickers", Priority.HIGH, 0.4, True),
        ("tickers", Priority.HIGH, 0.6, False),
        ("tickers", Priority.CRITICAL, 0.1, False),
        ("orderbooks", Priority.NORMAL, 0.05, True),
        ("orderbooks", Priority.NORMAL, 0.15, False),
    ],
)
def test_rows_answer_from_memory_for_their_kinds_time(
    kind: str, priority: Priority, age_s: float, is_memory: bool
) -> None:
    """Where the caller does not say, a ticker lives half a second, a book a tenth, and nothing for critical."""
    venue = Venue(*CODES)

    def ask() -> Any:
        if kind == "tickers":
            return venue.realtime.tickers(CODES[:3], priority, None)
        return venue.realtime.orderbooks(CODES[:3], 0, priority, None)

    ask()
    venue.clock.advance(age_s)
    assert (ask().requests == 0) == is_memory


def test_rows_are_held_once_and_the_newest_stays() -> None:
    """A late answer does not replace what is newer; whoever asks from memory gets the newer row."""
    venue = Venue("KRW-A")
    venue.price = 2.0
    venue.realtime.tickers(["KRW-A"], Priority.HIGH, 0)
    newer = venue.realtime.tickers(["KRW-A"], Priority.HIGH, 60).held[0].row
    venue.price = 1.0
    late = venue.rows("/ticker", ("KRW-A",), {})[0]
    late = msgspec.structs.replace(late, stamp_us=newer.stamp_us - 1)
    venue.realtime._latest.offer("ticker", [late], venue.clock.mono_s)
    held = venue.realtime.tickers(["KRW-A"], Priority.HIGH, 60).held[0]
    assert held.row is newer


def test_quote_currency_is_answered_from_memory_after_a_whole_answer() -> None:
    """Its members are those of its last whole answer, for ten minutes; one that is no longer reported is not missed."""
    venue = Venue("KRW-A", "KRW-B", "BTC-A")
    first = venue.realtime.tickers_of_quote(["KRW"], [], Priority.HIGH, 0)
    assert [held.row.market for held in first.held] == ["KRW-A", "KRW-B"]
    again = venue.realtime.tickers_of_quote(["KRW"], ["KRW-A", "KRW-B", "KRW-GONE"], Priority.HIGH, 5)
    assert (again.requests, len(again.held)) == (0, 2)
    venue.clock.advance(6)
    assert venue.realtime.tickers_of_quote(["KRW"], [], Priority.HIGH, 5).requests == 1
    venue.codes.add("KRW-C")
    venue.clock.advance(601)
    assert len(venue.realtime.tickers_of_quote(["KRW"], [], Priority.HIGH, 1e9).held) == 3


def test_quote_currency_that_other_calls_filled_is_answered_from_memory() -> None:
    """The market list says who belongs, where no whole answer did; it is asked again about one that is lacking."""
    venue = Venue("KRW-A", "KRW-B")
    venue.realtime.tickers(["KRW-A", "KRW-B"], Priority.HIGH, 0)
    assert venue.realtime.tickers_of_quote(["KRW"], ["KRW-A", "KRW-B"], Priority.HIGH, 5).requests == 0
    assert venue.realtime.tickers_of_quote(["KRW"], ["KRW-A", "KRW-B", "KRW-C"], Priority.HIGH, 5).requests == 2


def test_books_of_different_levels_are_different_rows() -> None:
    """A grouped book never answers for a whole one."""
    venue = Venue("KRW-A")
    venue.realtime.orderbooks(["KRW-A"], 10_000, Priority.NORMAL, 60)
    assert venue.realtime.orderbooks(["KRW-A"], 0, Priority.NORMAL, 60).requests == 1
    assert venue.realtime.orderbooks(["KRW-A"], 10_000, Priority.NORMAL, 60).requests == 0


def test_instruments_are_remembered_for_those_who_ask_nothing() -> None:
    """Tick sizes that were received are known without a request."""
    venue = Venue("KRW-A")
    assert venue.realtime.known_tick("KRW-A") is None
    venue.realtime.instruments(["KRW-A"], Priority.NORMAL)
    assert venue.realtime.known_tick("KRW-A") == 1000.0
    assert len(venue.asked) == 1


def test_rows_in_the_venues_fields_are_checked() -> None:
    """The rows come as they were sent, after the same validation."""
    body = json.dumps([{"market": "KRW-A"}]).encode()

    def request(ask: Ask, priority: Priority) -> Reply:
        return Reply(ask.parse(body), "ticker", 7, None, 0.0, 0.0, body)

    clock = ManualClock(AT)
    realtime = Realtime(request, clock, Metrics(), lambda priority, until: set(), LatestRows(clock), NothingLive())
    with pytest.raises(PayloadError):
        realtime.ticker_rows(["KRW-A"], Priority.HIGH)
    body = b"[]"
    with pytest.raises(PayloadError):
        realtime.book_rows(["KRW-A"], Priority.HIGH)
    body = b'[{"market":"KRW-A","korean_name":"A","english_name":"A","colour":"red"}]'
    stated = realtime.market_rows(Priority.HIGH, lambda ask: ask())
    assert stated.rows == json.loads(body)
    assert (stated.group, stated.remaining) == ("ticker", 7)


def test_trades_that_break_off_keep_what_arrived() -> None:
    """The newest pages with the gap and its cause; a venue that fails at once raises."""
    clock = ManualClock(AT)
    left = [1]

    def request(ask: Ask, priority: Priority) -> Reply:
        if not left[0]:
            raise UnreachableError("away")
        left[0] -= 1
        page = tuple(Trade("KRW-A", AT - i * 1000, 1.0, 1.0, "buy", 10_000 - i) for i in range(500))
        return Reply(page, "crix-trades", 9, AT, 0.0, 0.0, b"")

    realtime = Realtime(request, clock, Metrics(), lambda priority, until: set(), LatestRows(clock), NothingLive())
    answer = realtime.trades("KRW-A", 900, Priority.NORMAL, start_us=None, end_us=None, today_us=AT)
    assert len(answer.rows) == 500
    assert answer.gaps[0].end == answer.rows[0].time_us
    assert isinstance(answer.causes[0], UnreachableError)
    with pytest.raises(UnreachableError):
        realtime.trades("KRW-A", 900, Priority.NORMAL, start_us=None, end_us=None, today_us=AT)


def test_short_books_of_a_live_table_answer_only_what_they_hold() -> None:
    """Of a book that a table wants five deep, five levels answer for five; another length is the whole of it."""
    venue = Venue("KRW-A")
    latest = LatestRows(venue.clock)
    realtime = Realtime(venue.request, venue.clock, Metrics(), venue.listed, latest, NothingLive())
    latest.want([latest.slot("orderbook", "KRW-A")], 5)

    def requests(levels: int, depth: int) -> int:
        rows = tuple(Level(101.0 + i, 1.0, 100.0 - i, 1.0) for i in range(levels))
        stamp = venue.clock.now_us()
        latest.offer("orderbook", [OrderBook("KRW-A", stamp, 0.0, rows)], venue.clock.monotonic())
        return realtime.orderbooks(["KRW-A"], 0, Priority.NORMAL, 60, depth).requests

    assert [requests(5, 5), requests(5, 6), requests(5, 30), requests(3, 30), requests(30, 30)] == [0, 1, 1, 0, 0]
