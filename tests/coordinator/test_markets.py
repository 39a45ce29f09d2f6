"""The market list: asked when needed, used while it is young, and what an unknown code is."""

from __future__ import annotations

from typing import Any

import pytest

from backbone.coordinator.markets import Markets, unknown_market
from backbone.errors import InputError
from backbone.model import MarketInfo
from backbone.testing import ManualClock


class Listing:
    """A venue's market list that a test changes."""

    def __init__(self, *codes: str) -> None:
        self.codes = list(codes)
        self.requests = 0
        self.clock = ManualClock()
        self.stored: set[str] = set()
        ask: Any = self._request
        self.markets = Markets(ask, self.clock, fresh_s=60.0, stored=lambda: self.stored)

    def _request(self, *_: object) -> Any:
        self.requests += 1

        class Reply:
            value = tuple(MarketInfo(code, None, code, False, ()) for code in self.codes)

        return Reply


def test_list_is_kept_while_it_is_young() -> None:
    """One request for many questions; another once it is old, or where a fresh one is asked for."""
    venue = Listing("KRW-BTC", "KRW-ETH", "USDT-BTC")
    assert venue.markets.known is None
    assert venue.markets.known_codes("KRW") == ()
    assert venue.markets.codes("KRW") == ("KRW-BTC", "KRW-ETH")
    assert venue.markets.codes("USDT") == ("USDT-BTC",)
    assert venue.markets.codes("EUR") == ()
    assert venue.requests == 1
    venue.clock.advance(61)
    venue.markets.listed()
    venue.markets.listed(fresh=True)
    assert venue.requests == 3


def test_check_listed_asks_again_for_an_unknown_code_unless_the_list_is_very_young() -> None:
    """A market may have been listed since; a code that is listed costs nothing."""
    venue = Listing("KRW-BTC")
    venue.markets.check_listed(["KRW-BTC"])
    with pytest.raises(InputError, match="KRW-NEW"):
        venue.markets.check_listed(["KRW-NEW"])
    assert venue.requests == 1
    venue.codes.append("KRW-NEW")
    venue.clock.advance(11)
    venue.markets.check_listed(["KRW-NEW"])
    assert venue.requests == 2


def test_check_known_makes_no_request_and_passes_what_is_stored() -> None:
    """Without a list every market passes; with one, what is listed or stored."""
    venue = Listing("KRW-BTC")
    venue.markets.check_known(["KRW-OLD"])
    venue.markets.listed()
    venue.stored.add("KRW-OLD")
    venue.markets.check_known(["KRW-OLD", "KRW-BTC"])
    with pytest.raises(InputError):
        venue.markets.check_known(["KRW-GONE"])
    assert venue.requests == 1


def test_unknown_market_names_the_same_coin_and_the_nearest() -> None:
    """The other quote currencies of the coin come first."""
    error = unknown_market("EUR-BTC", ["KRW-BTC", "USDT-BTC", "KRW-BTT"])
    assert "KRW-BTC, USDT-BTC" in str(error)
