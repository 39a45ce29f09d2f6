"""The trades of an outage: fetched by cursor, delivered once and in order, or reported as lost."""

from __future__ import annotations

from typing import Any

import pytest

from backbone.coordinator.live.members import EVERY_S
from backbone.coordinator.live.subscription import Subscription
from backbone.errors import UnreachableError
from backbone.model import MarketInfo, Span, Trade
from tests.coordinator.live_doubles import START_US, Rig, reply, trade


@pytest.fixture
def rig() -> Rig:
    return Rig()


def numbers(records: Any) -> list[int]:
    found = []
    while len(records):
        record = records.get(0)
        assert isinstance(record, Trade)
        found.append(record.sequential_id - 10_000)
    return found


def interrupted(rig: Rig, subscription: Subscription) -> Any:
    """Trades 1 and 2 arrived, the connection was lost, and came back with trade 9 as its snapshot."""
    records = subscription.queue(100)
    rig.stream.connect(trade(1))
    rig.stream.say(trade(2))
    rig.stream.enter("backing-off")
    rig.clock.advance(1)
    rig.stream.connect(trade(9), gap=Span(START_US, START_US + 10_000_000))
    rig.stream.say(trade(10))
    return records


def answer(rig: Rig, *pages: Any) -> None:
    """Answer the requests for trades, one after the other."""
    for page in pages:
        ((ask, queued),) = [one for one in rig.scheduler.asks() if one[0].path == "/trades/ticks"]
        queued.done(ask, page if isinstance(page, Exception) else reply(page, rig.clock))


def test_trades_of_an_outage_come_once_and_in_order(rig: Rig) -> None:
    """What the stream brings meanwhile waits for them; the event says that nothing is missing."""
    subscription = rig.feed.open(["trade"], ["KRW-BTC"])
    records = interrupted(rig, subscription)
    assert numbers(records) == [1, 2]
    answer(rig, tuple(trade(n) for n in range(9, 0, -1)))
    assert numbers(records) == [3, 4, 5, 6, 7, 8, 9, 10]
    rig.stream.say(trade(11))
    assert numbers(records) == [11]
    rig.scheduler.run()
    (gap,) = [event for event in subscription.events() if event.kind == "gap"]
    assert (gap.filled, gap.detail, subscription.received, subscription.lost) == (True, "", 11, 0)


def test_trades_of_an_outage_that_cannot_be_had_are_reported(rig: Rig) -> None:
    """The stream's own trades are delivered, the outage counts as lost, and the event is not filled."""
    subscription = rig.feed.open(["trade"], ["KRW-BTC"])
    records = interrupted(rig, subscription)
    answer(rig, UnreachableError("away"))
    assert numbers(records) == [1, 2, 9, 10]
    rig.scheduler.run()
    (gap,) = [event for event in subscription.events() if event.kind == "gap"]
    assert (gap.filled, subscription.lost) == (False, 1)
    assert "trades of KRW-BTC could not be had back: away" in gap.detail


def test_connection_lost_again_while_the_trades_are_fetched_loses_none(rig: Rig) -> None:
    """The first fetch is too old by then; the second begins where the first did."""
    subscription = rig.feed.open(["trade"], ["KRW-BTC"])
    records = interrupted(rig, subscription)
    first = rig.scheduler.asks()
    rig.stream.enter("backing-off")
    rig.stream.connect(trade(14), gap=Span(START_US + 11_000_000, START_US + 13_000_000))
    for ask, queued in first:
        if ask.path == "/trades/ticks":
            queued.done(ask, reply(tuple(trade(n) for n in range(10, 0, -1)), rig.clock))
    assert numbers(records) == [1, 2]
    for _ in range(3):
        for ask, queued in rig.scheduler.asks():
            if ask.path == "/trades/ticks":
                cursor = int(dict(ask.query).get("cursor", 99_999))
                page = tuple(trade(n) for n in range(14, 0, -1) if trade(n).sequential_id < cursor)
                queued.done(ask, reply(page, rig.clock))
    assert numbers(records) == list(range(3, 15))


def test_first_connection_holds_nothing_back(rig: Rig) -> None:
    """There is no outage before the first frame, though REST brought a trade earlier."""
    rig.latest.offer("trade", [trade(1)], 1.0)
    subscription = rig.feed.open(["trade"], ["KRW-BTC"])
    records = subscription.queue(100)
    rig.stream.connect(trade(4))
    rig.stream.say(trade(5))
    assert numbers(records) == [4, 5]
    assert [ask.path for ask, _ in rig.scheduler.asks()] == []


def test_gap_says_that_tickers_and_books_cannot_be_had_back(rig: Rig) -> None:
    """They are states: what they were meanwhile is known to nobody."""
    subscription = rig.feed.open(["ticker", "orderbook"], ["KRW-BTC"])
    rig.stream.connect(gap=Span(START_US, START_US + 10_000_000))
    (gap,) = [event for event in subscription.events() if event.kind == "gap"]
    assert gap.detail == "the tickers and order books of that time cannot be had back"


def joined(rig: Rig, *listed: str) -> None:
    """Have the market list say so, a minute on."""
    rig.scheduler.advance(EVERY_S + 0.2)
    ((ask, queued),) = [one for one in rig.scheduler.asks() if one[0].group == "market"]
    queued.done(ask, reply(tuple(MarketInfo(code, "", code, False) for code in listed), rig.clock))


def test_trades_of_a_market_that_joins_are_had_since_its_listing(rig: Rig) -> None:
    """What it traded before the stream sent it is fetched once the stream does, and comes first, each once."""
    subscription = rig.feed.open(["trade"], ["KRW-BTC"], "KRW")
    records = subscription.queue(100)
    rig.stream.connect(trade(1))
    joined(rig, "KRW-BTC", "KRW-NEW")
    rig.scheduler.advance(5)
    assert "/trades/ticks" not in [ask.path for ask, _ in rig.scheduler.asks()]  # nothing came: nobody traded
    rig.stream.sink(trade(64, "KRW-NEW"), rig.clock.monotonic(), True)
    rig.stream.say(trade(65, "KRW-NEW"))
    assert numbers(records) == [1]
    rig.scheduler.advance(1.2)
    answer(rig, (trade(64, "KRW-NEW"), trade(63, "KRW-NEW"), trade(62, "KRW-NEW")), ())
    assert numbers(records) == [62, 63, 64, 65]
    rig.stream.say(trade(66, "KRW-NEW"))
    assert numbers(records) == [66]
    assert [event.kind for event in subscription.events()] == ["listed"]


def test_market_that_joins_and_leaves_again_is_not_waited_for(rig: Rig) -> None:
    """Nothing is fetched for a market that nobody wants any more."""
    subscription = rig.feed.open(["trade"], ["KRW-BTC"], "KRW")
    rig.stream.connect(trade(1))
    joined(rig, "KRW-BTC", "KRW-NEW")
    subscription.close()
    rig.scheduler.advance(5)
    assert rig.scheduler.asks() == []


def test_market_that_joins_while_the_connection_is_lost_is_fetched_on_return(rig: Rig) -> None:
    """The return fetches what happened since the listing, once."""
    subscription = rig.feed.open(["trade"], ["KRW-BTC"], "KRW")
    records = subscription.queue(100)
    rig.stream.connect(trade(1))
    joined(rig, "KRW-BTC", "KRW-NEW")
    rig.stream.enter("backing-off")
    now_us = START_US + int(rig.clock.monotonic() * 1e6)
    rig.stream.connect(trade(1), trade(64, "KRW-NEW"), gap=Span(now_us, now_us + 1))
    rig.scheduler.advance(1.2)
    asked = [(dict(ask.query)["market"], queued) for ask, queued in rig.scheduler.asks()]
    assert sorted(market for market, _ in asked) == ["KRW-BTC", "KRW-NEW"]
    assert numbers(records) == [1]
