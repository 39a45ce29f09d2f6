"""A subscription to a quote currency follows the venue's market list."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from backbone.coordinator.live.members import AGAIN_S, EVERY_S
from backbone.errors import UnreachableError
from backbone.model import MarketInfo
from tests.coordinator.live_doubles import Rig, reply, ticker


@pytest.fixture
def rig() -> Rig:
    return Rig()


def listing(rig: Rig, *codes: str) -> int:
    """Answer the requests for the list that are queued; how many there were."""
    asked = [one for one in rig.scheduler.asks() if one[0].group == "market"]
    for ask, queued in asked:
        queued.done(ask, reply(tuple(MarketInfo(code, "", code, False) for code in codes), rig.clock))
    return len(asked)


def test_market_that_is_listed_joins_and_no_record_is_lost(rig: Rig) -> None:
    """It is subscribed to on the same connection, and readers that were there before get it too."""
    subscription = rig.feed.open(["ticker"], ["KRW-BTC"], "KRW")
    rig.stream.connect(ticker())
    records = subscription.queue(10)
    rig.scheduler.advance(EVERY_S - 1)
    assert listing(rig, "KRW-BTC") == 0
    rig.scheduler.advance(2)
    assert listing(rig, "KRW-BTC", "KRW-NEW", "BTC-NEW") == 1
    assert subscription.markets == ("KRW-BTC", "KRW-NEW")
    assert rig.stream.wanted[subscription] == {"ticker": ("KRW-BTC", "KRW-NEW")}
    rig.stream.say(ticker(price=101.0, stamp_s=1), ticker("KRW-NEW"))
    assert [records.get(0), records.get(0)] == [ticker(price=101.0, stamp_s=1), ticker("KRW-NEW")]
    assert [held.row.market for held in subscription.rows("ticker")] == ["KRW-BTC", "KRW-NEW"]
    assert (subscription.received, len(rig.streams)) == (3, 1)
    assert [(event.kind, event.market) for event in subscription.events()] == [("listed", "KRW-NEW")]


def test_market_that_is_delisted_leaves_once_two_lists_agree(rig: Rig) -> None:
    """One list without it may be short; the second is requested soon."""
    subscription = rig.feed.open(["ticker"], ["KRW-BTC", "KRW-OLD"], "KRW")
    rig.stream.connect(ticker(), ticker("KRW-OLD"))
    rig.scheduler.advance(EVERY_S + 1)
    assert listing(rig, "KRW-BTC") == 1
    assert subscription.markets == ("KRW-BTC", "KRW-OLD")
    rig.scheduler.advance(AGAIN_S + 1)
    assert listing(rig, "KRW-BTC") == 1
    assert subscription.markets == ("KRW-BTC",)
    assert rig.stream.wanted[subscription] == {"ticker": ("KRW-BTC",)}
    assert [(event.kind, event.market) for event in subscription.events()] == [("delisted", "KRW-OLD")]
    assert subscription.received == 2


def test_list_that_was_short_once_changes_nothing(rig: Rig) -> None:
    """Neither does an error; the list is requested again in a minute, and not at all without such a subscription."""
    subscription = rig.feed.open(["ticker"], ["KRW-BTC", "KRW-ETH"], "KRW")
    rig.stream.connect(ticker(), ticker("KRW-ETH"))
    rig.scheduler.advance(EVERY_S + 1)
    assert listing(rig, "KRW-BTC") == 1
    rig.scheduler.advance(AGAIN_S + 1)
    assert listing(rig, "KRW-BTC", "KRW-ETH") == 1
    assert (subscription.markets, subscription.events()) == (("KRW-BTC", "KRW-ETH"), [])
    rig.scheduler.advance(EVERY_S + 1)
    ((ask, queued),) = [one for one in rig.scheduler.asks() if one[0].group == "market"]
    queued.done(ask, UnreachableError("away"))
    assert subscription.markets == ("KRW-BTC", "KRW-ETH")
    subscription.close()
    rig.scheduler.advance(3 * EVERY_S)
    assert listing(rig) == 0


def test_named_markets_do_not_follow_the_list(rig: Rig) -> None:
    """A table of three markets stays one, and makes no request."""
    rig.feed.open(["ticker"], ["KRW-BTC"])
    rig.stream.connect(ticker())
    rig.scheduler.advance(3 * EVERY_S)
    assert listing(rig) == 0


def test_ticker_in_another_condition_has_the_list_requested_soon(rig: Rig) -> None:
    """It is no proof, only a sign: the list is requested within seconds, and an event says what the ticker said."""
    subscription = rig.feed.open(["ticker"], ["KRW-BTC"], "KRW")
    leaving = replace(ticker(), state="ACTIVE", delisting_day="2025-09-01")
    rig.stream.connect(ticker())
    rig.scheduler.advance(1)
    rig.news = True
    rig.stream.say(leaving)
    rig.scheduler.advance(0.2)
    assert listing(rig, "KRW-BTC") == 1
    (event,) = subscription.events()
    assert (event.kind, event.market, event.detail) == (
        "state", "KRW-BTC", "KRW-BTC is ACTIVE, it is delisted on 2025-09-01",
    )  # fmt: skip
    rig.stream.say(leaving, replace(leaving, is_suspended=True), replace(leaving, state="DELISTED", warning="CAUTION"))
    rig.scheduler.advance(AGAIN_S + 0.2)
    assert listing(rig, "KRW-BTC") == 1
    assert [event.detail.partition(", ")[0] for event in subscription.events()][1:] == [
        "KRW-BTC is ACTIVE", "KRW-BTC is DELISTED",
    ]  # fmt: skip
    assert [one.delisting_day for one in rig.conditions] == ["2025-09-01"] * 3


def test_ticker_that_is_no_news_has_nothing_requested(rig: Rig) -> None:
    """The condition that a market is in anyway, or that was reported before."""
    subscription = rig.feed.open(["ticker"], ["KRW-BTC"], "KRW")
    rig.stream.connect(replace(ticker(), state="ACTIVE"))
    rig.scheduler.advance(5)
    assert listing(rig) == 0
    assert subscription.events() == []
