"""Where each exchange answers."""

from __future__ import annotations

import pytest

from backbone.errors import InputError
from backbone.venues import VENUES, parse_exchange


def test_each_exchange_has_its_own_addresses() -> None:
    """Four exchanges, each with a REST and a socket address on one host over TLS."""
    assert list(VENUES) == ["upbit", "upbit-sg", "upbit-id", "upbit-th"]
    assert VENUES["upbit"].rest_url == "https://api.upbit.com"
    assert VENUES["upbit-id"].ws_url == "wss://id-api.upbit.com/websocket/v1"
    assert [venue.has_levels for venue in VENUES.values()] == [True, False, False, False]


def test_exchange_unknown_is_an_input_error_that_names_the_known() -> None:
    """A wrong name is refused with all right ones."""
    assert parse_exchange(" Upbit ") is VENUES["upbit"]
    for wrong in ("bithumb", "", None):
        with pytest.raises(InputError, match="upbit upbit-sg upbit-id upbit-th"):
            parse_exchange(wrong)
