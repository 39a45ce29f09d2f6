"""The market list: asked when needed, used while it is young, and what an unknown code is."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import pytest

from backbone.coordinator.markets import Markets, unknown_market
from backbone.errors import InputError, PayloadError
from backbone.model import MarketInfo, Priority
from backbone.testing import ManualClock


class Listing:
    """A venue's market list that a test changes."""

    def __init__(self, *codes: str) -> None:
        self.codes = list(codes)
        self.requests = 0
        self.replies: list[list[str]] = []  # the next ones, where they are not `codes`
        self.recorded: list[tuple[MarketInfo, ...]] = []
        self.clock = ManualClock()
        self.stored: set[str] = set()
        ask: Any = self._request
        self.markets = Markets(ask, self.clock, fresh_s=60.0, stored=lambda: self.stored, record=self.recorded.append)

    def _request(self, *_: object) -> Any:
        self.requests += 1

        class Reply:
            value = infos(self.replies.pop(0) if self.replies else self.codes)

        return Reply


def infos(codes: Iterable[str]) -> tuple[MarketInfo, ...]:
    return tuple(MarketInfo(code, None, code, False, ()) for code in codes)


def test_list_is_kept_while_it_is_young() -> None:
    """One request for many questions, and one that confirms the first list; another once it is old, or on demand."""
    venue = Listing("KRW-BTC", "KRW-ETH", "USDT-BTC")
    assert venue.markets.known is None
    assert venue.markets.known_codes("KRW") == ()
    assert venue.markets.codes("KRW") == ("KRW-BTC", "KRW-ETH")
    assert venue.markets.codes("USDT") == ("USDT-BTC",)
    assert venue.markets.codes("EUR") == ()
    assert venue.requests == 2
    venue.clock.advance(61)
    venue.markets.listed()
    venue.markets.listed(fresh=True)
    assert venue.requests == 4


def test_check_listed_asks_again_for_an_unknown_code_unless_the_list_is_very_young() -> None:
    """A market may have been listed since; a code that is listed costs nothing."""
    venue = Listing("KRW-BTC")
    venue.markets.check_listed(["KRW-BTC"])
    assert venue.requests == 1, "that a market is there needs no second list"
    with pytest.raises(InputError, match="KRW-NEW"):
        venue.markets.check_listed(["KRW-NEW"])
    assert venue.requests == 2
    venue.codes.append("KRW-NEW")
    venue.clock.advance(11)
    venue.markets.check_listed(["KRW-NEW"])
    assert venue.requests == 3


def test_check_known_makes_no_request_and_passes_what_is_stored() -> None:
    """Without a list every market passes; with one, what is listed or stored."""
    venue = Listing("KRW-BTC")
    venue.markets.check_known(["KRW-OLD"])
    venue.markets.listed()
    venue.stored.add("KRW-OLD")
    venue.markets.check_known(["KRW-OLD", "KRW-BTC"])
    with pytest.raises(InputError):
        venue.markets.check_known(["KRW-GONE"])
    assert venue.requests == 2


ALL = ["KRW-BTC", "KRW-ETH", "KRW-XRP"]


@pytest.mark.parametrize(
    ("replies", "requests"),
    [
        ([ALL, ALL], 2),
        ([["KRW-ETH"], ALL], 2),
        ([ALL, ["KRW-ETH"], ALL], 3),
        ([["KRW-WRONG"], ALL, ALL], 3),
        ([ALL, ["KRW-WRONG"], ALL, ALL], 4),
    ],
)
def test_first_list_is_confirmed_by_a_second_one(replies: list[list[str]], requests: int) -> None:
    """Whichever of the first replies is short, or of another venue, what is returned and recorded is the whole list."""
    venue = Listing(*ALL)
    venue.replies = list(replies)
    assert venue.markets.codes("KRW") == tuple(ALL)
    assert venue.requests == requests
    assert [sorted(info.market for info in listed) for listed in venue.recorded] == [ALL]


def test_short_list_needs_a_second_one_before_markets_are_gone() -> None:
    """A reply that lacks a market is asked for again; two that lack it are a delisting. Nothing else costs more."""
    venue = Listing(*ALL)
    venue.markets.listed()
    venue.replies = [["KRW-BTC"]]
    assert {info.market for info in venue.markets.listed(fresh=True)} == set(ALL)
    assert venue.requests == 4
    venue.codes.remove("KRW-XRP")
    assert {info.market for info in venue.markets.listed(fresh=True)} == {"KRW-BTC", "KRW-ETH"}
    assert venue.requests == 6
    venue.codes.append("KRW-NEW")
    venue.markets.listed(fresh=True)
    assert venue.requests == 7
    assert not any(len(listed) < 2 for listed in venue.recorded), "a list in doubt was recorded"


def test_what_was_recorded_confirms_the_first_list() -> None:
    """With a list of an earlier day one request is enough, and a short one is noticed."""
    venue = Listing(*ALL)
    ask: Any = venue._request
    for replies, requests in (([], 1), ([["KRW-BTC"]], 2)):
        venue.requests, venue.replies = 0, list(replies)
        known = Markets(ask, venue.clock, fresh_s=60, stored=lambda: set(), recorded=lambda: infos(ALL))
        assert known.codes("KRW") == tuple(ALL)
        assert venue.requests == requests


def test_one_reply_that_two_asked_for_counts_once() -> None:
    """Callers share a request that is in flight: that is one witness, not two."""
    venue = Listing(*ALL)
    venue.markets.listed()
    short = infos(["KRW-BTC"])
    for _ in range(2):
        known, is_confirmed = venue.markets.note(short)
        assert not is_confirmed
        assert {info.market for info in known} == set(ALL)


def test_lists_that_never_agree_are_an_error() -> None:
    """Each reply lacks other markets: nothing is concluded."""
    venue = Listing(*ALL)
    venue.replies = [["KRW-A"], ["KRW-B"], ["KRW-C"], ["KRW-D"]]
    with pytest.raises(PayloadError, match="market list"):
        venue.markets.listed()
    assert venue.markets.known_codes("KRW") == ()


def test_unknown_market_names_the_same_coin_and_the_nearest() -> None:
    """The other quote currencies of the coin come first."""
    error = unknown_market("EUR-BTC", ["KRW-BTC", "USDT-BTC", "KRW-BTT"])
    assert "KRW-BTC, USDT-BTC" in str(error)


def test_old_list_is_not_young_while_a_reply_is_taken() -> None:
    """Readers take no lock: who asks in that moment gets no list of before for one of now."""
    venue = Listing("KRW-BTC")
    venue.markets.listed()
    venue.clock.advance(61)
    venue.codes.append("KRW-NEW")
    seen: list[frozenset[str]] = []

    class Slow(tuple[MarketInfo, ...]):
        def __iter__(self) -> Any:
            if not seen:
                seen.append(frozenset())
                venue.markets._lock = threading.Lock()  # the other thread's reply is taken first
                seen.append(venue.markets.recent_codes(Priority.HIGH))
            return super().__iter__()

    venue.markets.note(Slow(infos(["KRW-BTC", "KRW-NEW"])))
    assert seen[1] == {"KRW-BTC", "KRW-NEW"}
