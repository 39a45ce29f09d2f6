"""Where each exchange answers, and what is a fact of each."""

from __future__ import annotations

import ast
import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import pytest

import backbone
from backbone.errors import InputError
from backbone.timeframe import TIMEFRAMES
from backbone.venues import VENUES, Venue, parse_exchange

PACKAGE = Path(backbone.__file__).parent
SHOWS_NAMES = {"venues.py", "api/client.py"}  # the records, and the signature with its default


def test_each_exchange_has_its_own_addresses() -> None:
    """Four exchanges, each with a REST and a socket address on one host over TLS."""
    assert list(VENUES) == ["upbit", "upbit-sg", "upbit-id", "upbit-th"]
    assert VENUES["upbit"].rest_url == "https://api.upbit.com"
    assert VENUES["upbit-id"].ws_url == "wss://id-api.upbit.com/websocket/v1"
    assert [venue.has_levels for venue in VENUES.values()] == [True, False, False, False]
    assert [venue.home for venue in VENUES.values()] == ["KRW", "SGD", "IDR", "THB"]


def test_exchange_unknown_is_an_input_error_that_names_the_known() -> None:
    """A wrong name is refused with all right ones."""
    assert parse_exchange(" Upbit ") is VENUES["upbit"]
    for wrong in ("bithumb", "", None):
        with pytest.raises(InputError, match="upbit upbit-sg upbit-id upbit-th"):
            parse_exchange(wrong)


def test_facts_of_a_venue_are_those_of_the_package() -> None:
    """The lengths are the package's, sums begin with a day, seconds are kept three months, days for ever."""
    venue = VENUES["upbit"]
    assert venue.timeframes == tuple(TIMEFRAMES)
    assert set(venue.streamed) < set(venue.timeframes)
    assert datetime.fromtimestamp(venue.sums_since_us / 1e6, UTC) == datetime(2022, 10, 1, tzinfo=UTC)
    seconds = venue.retention("1s")
    assert seconds is not None
    assert seconds.sure_days < seconds.days
    assert venue.retention("1d") is None
    assert venue.pace_per_s < venue.requests_per_s


def test_record_is_frozen_and_hashable() -> None:
    """Settings hold it, so it can be neither changed nor the reason that they cannot be a key."""
    assert hash(VENUES["upbit"]) != hash(VENUES["upbit-sg"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        VENUES["upbit"].home = "USD"  # type: ignore[misc]
    assert Venue.candle_page == VENUES["upbit"].candle_page


def test_no_other_module_asks_for_a_venues_name() -> None:
    """What differs between venues is read from the record: nothing else spells an exchange as a value."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        where = path.relative_to(PACKAGE).as_posix()
        if where in SHOWS_NAMES or where.startswith("simulator/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare | ast.Dict | ast.Subscript):
                names = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
                found += [f"{where}:{node.lineno}"] if names & set(VENUES) else []
    assert not found
