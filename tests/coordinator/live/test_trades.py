"""Paging trades against a venue of a few lines that keeps the documented rules, whatever shares a time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbone.coordinator.live import trades as paging
from backbone.coordinator.live.trades import DAYS_KEPT, TradesAnswer, walk_trades
from backbone.errors import PayloadError, UnreachableError
from backbone.model import CANDLE_SCHEMA, Span, Trade
from backbone.routing.wire import Ask, CandlePage
from backbone.timeframe import DAY_US

TODAY = 20_322  # 2025-08-22
SECOND_US = 1_000_000


def trade(time_us: int, number: int) -> Trade:
    return Trade("KRW-BTC", time_us, 1000.0 + number, 1.0, "buy", time_us // 1000 * 10_000 + number)


class Venue:
    """Days back from its own today, newest first, `to` by whole seconds, `cursor` by place in the order."""

    def __init__(self, trades: list[Trade], now_us: int) -> None:
        self.trades = sorted(trades, key=lambda t: (t.time_us, t.sequential_id), reverse=True)
        self.now_us = now_us

    def answer(self, ask: Ask) -> list[Trade] | CandlePage:
        query = dict(ask.query)
        if ask.group == "candles":
            bound = datetime.fromisoformat(query["to"]).timestamp() * SECOND_US if "to" in query else self.now_us + 1
            opens = [t.time_us // SECOND_US * SECOND_US for t in self.trades if t.time_us <= self.now_us]
            newest = next((o for o in opens if o < bound), None)
            return CandlePage(CANDLE_SCHEMA.empty_table(), newest, np.empty(0, np.int64))
        day = self.now_us // DAY_US - int(query.get("days_ago", 0))
        rows = [t for t in self.trades if t.time_us // DAY_US == day and t.time_us <= self.now_us]
        if "to" in query:
            to = query["to"]
            end_s = int(to[:2]) * 3600 + int(to[2:4]) * 60 + int(to[4:])
            rows = [t for t in rows if t.time_us % DAY_US < end_s * SECOND_US]
        if "cursor" in query:
            rows = [t for t in rows if t.sequential_id < int(query["cursor"])]
        return rows[: int(query["count"])]

    def wanted(self, count: int | None, start_us: int | None, end_us: int | None) -> tuple[Trade, ...]:
        first = (self.now_us // DAY_US - DAYS_KEPT) * DAY_US
        rows = [
            t
            for t in self.trades
            if first <= t.time_us <= self.now_us
            and (start_us is None or t.time_us >= start_us)
            and (end_us is None or t.time_us < end_us)
        ]
        return tuple(rows[:count][::-1])


class TradeWalk:
    """A walk, one request after the other; what ends it is raised."""

    def __init__(self, *wanted: Any) -> None:
        self._steps = walk_trades(*wanted)
        self._answer: TradesAnswer | None = None
        self.requests = 0
        self._advance(lambda: next(self._steps))

    def _advance(self, step: Callable[[], Ask]) -> None:
        try:
            self._ask = step()
        except StopIteration as end:
            self._answer = end.value

    @property
    def is_done(self) -> bool:
        return self._answer is not None

    @property
    def rows(self) -> tuple[Trade, ...]:
        assert self._answer is not None
        return self._answer.rows

    def next_ask(self) -> Ask:
        return self._ask

    def take(self, reply: Any, date_us: int | None) -> None:
        self.requests += 1
        self._advance(lambda: self._steps.send(SimpleNamespace(value=reply, date_us=date_us)))  # type: ignore[arg-type]
        if self._answer is not None:
            assert self._answer.requests == self.requests
            for cause in self._answer.causes:
                raise cause

    def missing(self) -> tuple[Span, ...]:
        """What it did not reach, broken off here."""
        self._advance(lambda: self._steps.throw(UnreachableError("no answer")))
        assert self._answer is not None
        return self._answer.gaps


def walked(walk: TradeWalk, venue: Venue, turn: tuple[int, int] | None = None) -> tuple[Trade, ...]:
    """Walk to the end; `turn` sets the venue's clock after so many requests."""
    while not walk.is_done:
        assert walk.requests < 500, "the walk does not end"
        if turn is not None and walk.requests == turn[0]:
            venue.now_us = turn[1]
        walk.take(venue.answer(walk.next_ask()), venue.now_us // SECOND_US * SECOND_US)
    return walk.rows


@pytest.fixture
def pages_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few trades are many pages."""
    monkeypatch.setattr(paging, "TRADES_PAGE", 3)


now_us = TODAY * DAY_US + 40_000 * SECOND_US
moments = st.one_of(
    st.integers((TODAY - 9) * DAY_US // 1000, now_us // 1000).map(lambda ms: ms * 1000),
    st.sampled_from([now_us, now_us - 1000, TODAY * DAY_US, TODAY * DAY_US - 1000, TODAY * DAY_US + 5 * SECOND_US]),
)
executions = st.lists(moments, max_size=40).map(lambda times: [trade(t, i) for i, t in enumerate(times)])
ends = st.one_of(st.none(), moments)


@given(trades=executions, count=st.one_of(st.none(), st.integers(1, 50)), start_us=ends, end_us=ends)
@settings(deadline=None, max_examples=120)
def test_walk_any_range_equals_the_whole_list(
    trades: list[Trade], count: int | None, start_us: int | None, end_us: int | None
) -> None:
    """Whatever shares a second or a millisecond, wherever days end: nothing lost, nothing doubled, oldest first."""
    if count is None and start_us is None:
        start_us = now_us - DAY_US
    if count is not None:
        start_us = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paging, "TRADES_PAGE", 3)
        venue = Venue(trades, now_us)
        found = walked(TradeWalk("KRW-BTC", count, start_us, end_us, TODAY), venue)
    assert found == venue.wanted(count, start_us, end_us)


@given(
    trades=executions,
    later=st.lists(st.integers(0, 20), max_size=10),
    count=st.one_of(st.none(), st.integers(1, 30)),
    after=st.integers(0, 12),
)
@settings(deadline=None, max_examples=120)
def test_walk_over_a_turning_day_loses_nothing(
    trades: list[Trade], later: list[int], count: int | None, after: int
) -> None:
    """The venue's day turns between any two pages: the answer is what the venue had before, or what it had after."""
    tomorrow = (TODAY + 1) * DAY_US
    trades = trades + [trade(tomorrow + s * SECOND_US, 100 + i) for i, s in enumerate(later)]
    start_us = None if count is not None else TODAY * DAY_US - 3 * 3600 * SECOND_US
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paging, "TRADES_PAGE", 3)
        before, venue = Venue(trades, tomorrow - 1000), Venue(trades, tomorrow - 1000)
        walk = TradeWalk("KRW-BTC", count, start_us, None, TODAY)
        found = walked(walk, venue, (after, tomorrow + 20 * SECOND_US))
    expected = venue if walk.requests > after else before
    assert found == expected.wanted(count, start_us, None)


def test_walk_that_thought_of_yesterday_begins_anew(pages_of_three: None) -> None:
    """A client whose clock is a day behind asks again as soon as the venue says what day it is."""
    trades = [trade(now_us - i * SECOND_US, i) for i in range(7)]
    walk = TradeWalk("KRW-BTC", None, now_us - 3600 * SECOND_US, None, TODAY - 1)
    assert len(walked(walk, Venue(trades, now_us))) == 7


def test_walk_without_a_date_goes_by_the_trades(pages_of_three: None) -> None:
    """Where no reply carries a date, a trade of tomorrow shows the day."""
    trades = [trade(now_us - i * SECOND_US, i) for i in range(7)]
    venue = Venue(trades, now_us)
    walk = TradeWalk("KRW-BTC", None, now_us - 3600 * SECOND_US, None, TODAY - 1)
    while not walk.is_done:
        walk.take(venue.answer(walk.next_ask()), None)
    assert len(walk.rows) == 7


def test_walk_asks_for_no_more_than_it_needs() -> None:
    """A count is asked for in as few rows as it takes."""
    trades = [trade(now_us - i * SECOND_US, i) for i in range(700)]
    venue, walk, asked = Venue(trades, now_us), TradeWalk("KRW-BTC", 620, None, None, TODAY), []
    while not walk.is_done:
        asked.append(dict(walk.next_ask().query)["count"])
        walk.take(venue.answer(walk.next_ask()), now_us)
    assert asked == ["500", "120"]


def test_walk_of_more_than_there_is_ends_after_the_days_kept(pages_of_three: None) -> None:
    """A count larger than seven days hold is all of them; a quiet day costs a page and a candle."""
    walk = TradeWalk("KRW-BTC", 100, None, None, TODAY)
    assert walked(walk, Venue([], now_us)) == ()
    assert walk.requests == 2 * (DAYS_KEPT + 1)


def test_walk_skips_the_quiet_days_that_a_candle_shows(pages_of_three: None) -> None:
    """Between a trade now and one five days ago, the days without trades cost one page and one candle together."""
    trades = [trade(now_us, 1), trade(now_us - 5 * DAY_US, 2)]
    walk = TradeWalk("KRW-BTC", 2, None, None, TODAY)
    assert len(walked(walk, Venue(trades, now_us))) == 2
    assert walk.requests == 5  # today, its confirmation, yesterday, the candle, the day of the other trade


@pytest.mark.parametrize("keep", [0, 1, 2])
@pytest.mark.parametrize("at", range(8))
@pytest.mark.parametrize("count", [25, None])
def test_walk_with_a_short_reply_anywhere_is_whole_or_an_error(
    pages_of_three: None, at: int, keep: int, count: int | None
) -> None:
    """One reply that is shorter than it should be, at any place of the walk: the very same trades, or an error."""
    trades = [trade(now_us - i * 4 * 3600 * SECOND_US, i) for i in range(30)]
    venue, start_us = Venue(trades, now_us), None if count else now_us - 4 * DAY_US
    expected = venue.wanted(count, start_us, None)
    walk = TradeWalk("KRW-BTC", count, start_us, None, TODAY)
    try:
        while not walk.is_done:
            reply = venue.answer(walk.next_ask())
            if walk.requests == at and not isinstance(reply, CandlePage):
                reply = reply[:keep]
            walk.take(reply, now_us)
    except PayloadError:
        return
    assert walk.rows == expected


def test_walk_of_days_that_are_always_empty_is_an_error_where_candles_are(pages_of_three: None) -> None:
    """A candle in the day of an empty page is a second witness: the page is asked again, and then refused."""
    venue = Venue([trade(now_us - SECOND_US, 1)], now_us)
    walk = TradeWalk("KRW-BTC", 5, None, None, TODAY)
    for _ in range(3):  # the page, the candle, the page again
        reply = venue.answer(walk.next_ask())
        walk.take(reply if isinstance(reply, CandlePage) else [], now_us)
    reply = venue.answer(walk.next_ask())
    with pytest.raises(PayloadError, match="a page is empty though its day has a candle"):
        walk.take(reply, now_us)


def test_walk_of_a_venue_that_ignores_the_cursor_is_a_payload_error(pages_of_three: None) -> None:
    """The same page again and again is an error, not a loop."""
    page = [trade(now_us - i * SECOND_US, i) for i in range(3)]
    walk = TradeWalk("KRW-BTC", 10, None, None, TODAY)
    walk.next_ask()
    walk.take(page, now_us)
    walk.next_ask()
    with pytest.raises(PayloadError, match=r"the page before 1\d+ ends with that trade itself"):
        walk.take(page, now_us)


@pytest.mark.parametrize(
    ("start_us", "end_us", "expected"),
    [
        (None, None, Span((TODAY - DAYS_KEPT) * DAY_US, now_us - 2 * SECOND_US)),
        (now_us - 3600 * SECOND_US, None, Span(now_us - 3600 * SECOND_US, now_us - 2 * SECOND_US)),
    ],
)
def test_missing_of_a_broken_walk_is_what_lies_before(
    pages_of_three: None, start_us: int | None, end_us: int | None, expected: Span
) -> None:
    """What a walk did not reach lies between the start and the oldest trade it has."""
    walk = TradeWalk("KRW-BTC", None if start_us else 10, start_us, end_us, TODAY)
    walk.next_ask()
    walk.take([trade(now_us - i * SECOND_US, i) for i in range(3)], now_us)
    assert not walk.is_done
    assert walk.missing() == (expected,)


def test_walk_before_the_days_kept_asks_nothing() -> None:
    """An end older than what the venue keeps is an empty answer at once."""
    walk = TradeWalk("KRW-BTC", 5, None, (TODAY - DAYS_KEPT) * DAY_US, TODAY)
    assert walk.is_done
    assert walk.rows == ()


@pytest.mark.parametrize(
    ("end", "to", "days_ago"),
    [
        (TODAY * DAY_US + 61 * SECOND_US, "000102", None),
        (TODAY * DAY_US + 61 * SECOND_US + 1, "000103", None),
        (TODAY * DAY_US, None, "1"),
        ((TODAY + 1) * DAY_US - 1, None, None),
        ((TODAY - 2) * DAY_US + 3600 * SECOND_US, "010001", "2"),
    ],
)
def test_walk_begins_just_after_its_end(end: int, to: str | None, days_ago: str | None) -> None:
    """The venue takes whole seconds and leaves that second out, so the next one is asked for."""
    query: dict[str, Any] = dict(TradeWalk("KRW-BTC", 5, None, end, TODAY).next_ask().query)
    assert (query.get("to"), query.get("days_ago")) == (to, days_ago)


def test_walk_asks_no_day_before_its_start() -> None:
    """A range inside today costs no request for yesterday."""
    walk = TradeWalk("KRW-BTC", None, now_us - 3600 * SECOND_US, None, TODAY)
    walked(walk, Venue([trade(now_us - i * SECOND_US, i) for i in range(7)], now_us))
    assert walk.requests == 2  # the page, and what confirms that it has all
