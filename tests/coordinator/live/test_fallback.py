"""The fallback from the socket down to REST alone and back, turns, and asks that earn a subscription."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.coordinator.live.fallback import FAILING_S, GRACE_S, POLL_S, Asked, FallbackState, Polls, RoundRobin
from backbone.errors import RejectedError


def test_fallback_goes_down_step_by_step_and_climbs_back_by_itself() -> None:
    """Every mode is passed in order, and the socket's return leads straight to the top."""
    fallback = FallbackState()
    assert fallback.mode(0) == "idle"
    fallback.begin(100)
    assert fallback.mode(100) == "connecting"
    fallback.streaming()
    assert fallback.mode(101) == "streaming"
    fallback.lost(200)
    assert fallback.mode(200 + GRACE_S / 2) == "reconnecting"
    assert fallback.mode(200 + GRACE_S) == "polling"
    fallback.polled(well=False)
    assert fallback.mode(205) == "rest only"
    fallback.polled(well=True)
    assert fallback.mode(206) == "polling"
    fallback.polled(well=False)
    fallback.streaming()
    assert fallback.mode(207) == "streaming"
    fallback.lost(300)
    assert fallback.mode(300) == "reconnecting"
    fallback.end()
    assert fallback.mode(301) == "idle"


def test_fallback_polls_only_while_the_socket_is_away() -> None:
    """Polling begins a moment after the loss, whatever is reported of the loss later, and ends with the return."""
    fallback = FallbackState()
    assert fallback.poll_from_s() is None
    fallback.begin(10)
    fallback.lost(11)
    fallback.lost(12)
    assert fallback.poll_from_s() == 10 + GRACE_S
    assert fallback.lost_for(15) == 5
    fallback.streaming()
    assert fallback.poll_from_s() is None
    assert fallback.lost_for(16) == 0


def test_fallback_polls_at_most_a_tenth_of_the_quota() -> None:
    """One request a second of ten a second and group, and fewer while they fail."""
    fallback = FallbackState()
    assert fallback.pace_s == POLL_S >= 1.0
    fallback.polled(well=False)
    assert fallback.pace_s == FAILING_S > POLL_S


@given(st.integers(1, 40), st.integers(1, 12))
def test_round_robin_asks_for_every_market_once(markets: int, most: int) -> None:
    """In a round of turns every market is asked for exactly once, and one turn asks for one kind only."""
    subjects = [(kind, str(n)) for kind in ("a", "b") for n in range(markets)]
    turns, asked = RoundRobin(), []
    while len(asked) < len(subjects):
        turn = turns.take(subjects, most)
        assert 1 <= len(turn) <= most
        assert len({kind for kind, _ in turn}) == 1
        asked += turn
    assert sorted(asked) == sorted(subjects)
    assert turns.take([], most) == []


def test_asked_often_earns_a_subscription_that_ends_without_asks() -> None:
    """Five asks in ten seconds earn one; a minute without an ask loses it."""
    asked = Asked()
    for second in range(4):
        assert asked.note("ticker", ["KRW-BTC"], second) == []
    assert asked.note("ticker", ["KRW-BTC"], 4.0) == [("ticker", "KRW-BTC")]
    assert asked.note("ticker", ["KRW-BTC"], 30.0) == []
    assert asked.due_s() == 90.0
    assert asked.expire(89.0) == []
    assert asked.expire(90.0) == [("ticker", "KRW-BTC")]
    assert asked.due_s() is None


def test_asked_now_and_then_earns_nothing() -> None:
    """Asks that are far apart are answered one by one."""
    asked = Asked()
    assert not any(asked.note("ticker", ["KRW-BTC"], 3.0 * n) for n in range(100))


def test_asked_is_bounded() -> None:
    """A scan over more markets than there are neither fills memory nor subscribes to everything."""
    asked = Asked(most=10)
    for n in range(1000):
        asked.note("ticker", [f"KRW-{n}"], 0.0)
    assert len(asked._times) <= 40
    for n in range(50):
        for _ in range(5):
            asked.note("trade", [f"KRW-{n}"], 1.0)
    assert len(asked.adopted) == 10
    assert len(asked.clear()) == 10
    assert not asked.adopted


@pytest.mark.parametrize("status", [400, 414, 431])
def test_polls_whose_address_is_too_long_for_a_gate_ask_for_fewer(status: int) -> None:
    """Books are polled half as many at a time, at last one by one; tickers by their quote currency."""
    polls, fallback = Polls(), FallbackState()
    fallback.begin(0)
    refused = RejectedError("too long", status=status)
    books = [("orderbook", f"KRW-{n}") for n in range(30)]
    lengths = []
    for now in range(4):
        polls.due(["orderbook"], 1.0, float(now * 10))
        lengths.append(len(polls.take("orderbook", books)))
        polls.ended("orderbook", refused, fallback, now)
    assert lengths == [30, 15, 7, 3]
    assert len(polls.take("orderbook", books)) == 1
    assert fallback.pace_s == POLL_S, "a list that was too long is no failing venue"
    polls.ended("orderbook", refused, fallback, 60)
    assert fallback.pace_s == FAILING_S, "one market alone is"
    tickers = [("ticker", f"KRW-{n}") for n in range(9)]
    polls.due(["ticker"], 1.0, 0.0)
    assert polls.ask_of(polls.take("ticker", tickers)).path == "/ticker"
    polls.ended("ticker", refused, fallback, 61)
    assert polls.ask_of(tickers).path == "/ticker/all"
