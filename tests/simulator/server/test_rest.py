"""Paths, queries and refusals, without a socket."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.simulator import Exchange
from backbone.simulator.server.rest import (
    BAD_UNIT,
    INVALID,
    MISMATCH,
    MISSING,
    UNKNOWN,
    answer,
    error_body,
    find_route,
    spell,
)
from tests.simulator.conftest import NOW_US


def _reply(exchange: Exchange, path: str, **query: str) -> tuple[int, bytes]:
    route = find_route(path)
    assert route is not None
    return answer(route, exchange, query, NOW_US)


def _ask(exchange: Exchange, path: str, **query: str) -> Any:
    status, body = _reply(exchange, path, **query)
    assert status == 200
    return json.loads(body)


@pytest.mark.parametrize(
    ("path", "group"),
    [("/v1/market/all", "market"), ("/v1/candles/minutes/1", "candles"), ("/v1/candles/seconds", "candles"),
     ("/v1/candles/years", "candles"), ("/v1/trades/ticks", "crix-trades"), ("/v1/ticker", "ticker"),
     ("/v1/ticker/all", "ticker"), ("/v1/orderbook", "orderbook"), ("/v1/orderbook/instruments", "orderbook"),
     ("/v1/orderbook/supported_levels", "orderbook"), ("/v1/candles/minutes/7", "candles")],
)  # fmt: skip
def test_groups_are_named_as_on_the_wire(path: str, group: str) -> None:
    """`candles` and `crix-trades`, whatever the documentation calls them."""
    route = find_route(path)
    assert route is not None
    assert route.group == group


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v1/nope", "/v2/ticker", "/v1/candles", "/v1/candles/minutes/", "/v1/candles/minutes/1/2"],
)
def test_unrouted_path_has_no_route(path: str) -> None:
    """The gateway answers those."""
    assert find_route(path) is None


@pytest.mark.parametrize(
    ("path", "query", "status", "message"),
    [
        ("/v1/candles/minutes/1", {}, 400, MISSING),
        ("/v1/candles/minutes/1", {"market": ""}, 400, MISSING),
        ("/v1/candles/minutes/1", {"market": "KRW-NOPE"}, 404, UNKNOWN),
        ("/v1/candles/minutes/7", {"market": "KRW-BTC"}, 400, BAD_UNIT),
        ("/v1/candles/minutes/120", {"market": "KRW-BTC"}, 400, BAD_UNIT),
        ("/v1/candles/minutes/x", {"market": "KRW-BTC"}, 400, MISMATCH),
        ("/v1/candles/days", {"market": "KRW-BTC", "count": "abc"}, 400, MISMATCH),
        ("/v1/candles/days", {"market": "KRW-BTC", "count": "0"}, 400, INVALID),
        ("/v1/candles/days", {"market": "KRW-BTC", "count": "-5"}, 400, INVALID),
        ("/v1/candles/days", {"market": "KRW-BTC", "to": "yesterday"}, 400, INVALID),
        ("/v1/candles/days", {"market": "KRW-BTC", "to": "2025-08-22T00:00:00 09:00"}, 400, INVALID),
        ("/v1/trades/ticks", {}, 400, MISSING),
        ("/v1/trades/ticks", {"market": "KRW-BTC", "days_ago": "8"}, 400, INVALID),
        ("/v1/trades/ticks", {"market": "KRW-BTC", "to": "25:00:00"}, 400, INVALID),
        ("/v1/trades/ticks", {"market": "KRW-BTC", "cursor": "last"}, 400, MISMATCH),
        ("/v1/ticker", {}, 400, MISSING),
        ("/v1/ticker", {"markets": "KRW-BTC,KRW-NOPE"}, 404, UNKNOWN),
        ("/v1/ticker/all", {}, 400, MISSING),
        ("/v1/orderbook", {"markets": "KRW-BTC,KRW-NOPE"}, 404, UNKNOWN),
        ("/v1/orderbook", {"markets": "KRW-BTC", "count": "abc"}, 400, MISMATCH),
        ("/v1/orderbook", {"markets": "KRW-BTC", "level": "high"}, 400, MISMATCH),
        ("/v1/market/all", {"is_details": "maybe"}, 400, MISMATCH),
    ],
)
def test_bad_requests_get_the_venues_own_words(
    exchange: Exchange, path: str, query: dict[str, str], status: int, message: str
) -> None:
    """Status and message as documented and measured."""
    assert _reply(exchange, path, **query) == (status, error_body(status, message))


def test_error_body_is_spelled_as_on_the_wire() -> None:
    """No blanks, `name` an integer."""
    assert error_body(404, UNKNOWN) == b'{"error":{"name":404,"message":"Code not found"}}'


def test_counts_above_the_maximum_are_cut_without_an_error(exchange: Exchange) -> None:
    """200 candles, 500 trades, 30 levels; the defaults are 1, 1 and 30."""
    assert len(_ask(exchange, "/v1/candles/minutes/1", market="KRW-BTC", count="1000")) == 200
    assert len(_ask(exchange, "/v1/candles/minutes/1", market="KRW-BTC")) == 1
    assert len(_ask(exchange, "/v1/trades/ticks", market="KRW-BTC", count="501")) == 500
    assert len(_ask(exchange, "/v1/trades/ticks", market="KRW-BTC")) == 1
    for count, depth in (("50", 30), ("31", 30), ("5", 5)):
        book = _ask(exchange, "/v1/orderbook", markets="KRW-BTC", count=count)[0]
        assert len(book["orderbook_units"]) == depth


def test_lower_case_codes_and_old_spellings_are_accepted(exchange: Exchange) -> None:
    """`krw-btc`, `isDetails`, `daysAgo`."""
    assert _ask(exchange, "/v1/ticker", markets="krw-btc")[0]["market"] == "KRW-BTC"
    assert "market_event" in _ask(exchange, "/v1/market/all", isDetails="true")[0]
    assert _ask(exchange, "/v1/trades/ticks", market="KRW-BTC", daysAgo="1")[0]["trade_date_utc"] == "2025-08-21"


def test_market_list_has_details_only_when_asked(exchange: Exchange) -> None:
    """Names always; the event flags, five cautions of them, on request."""
    plain = _ask(exchange, "/v1/market/all", is_details="false")
    detailed = _ask(exchange, "/v1/market/all", is_details="true")
    assert set(plain[0]) == {"market", "korean_name", "english_name"}
    assert plain[0]["market"] == "KRW-BTC"
    assert {len(row["market_event"]["caution"]) for row in detailed} == {5}
    assert any(row["market_event"]["warning"] for row in detailed)
    assert any(any(row["market_event"]["caution"].values()) for row in detailed)


def test_ticker_all_takes_quote_currencies(exchange: Exchange) -> None:
    """One or several; an unknown one has no rows."""
    everything = _ask(exchange, "/v1/ticker/all", quote_currencies="KRW,BTC,USDT")
    won = _ask(exchange, "/v1/ticker/all", quote_currencies="KRW")
    assert {row["market"].partition("-")[0] for row in everything} == {"KRW", "BTC", "USDT"}
    assert 250 < len(won) < len(everything)
    assert _ask(exchange, "/v1/ticker/all", quote_currencies="EUR") == []


def test_level_outside_krw_is_an_empty_list(exchange: Exchange) -> None:
    """HTTP 200, nothing in it."""
    assert _ask(exchange, "/v1/orderbook", markets="BTC-ETH", level="100") == []
    assert _ask(exchange, "/v1/orderbook", markets="KRW-BTC", level="100000.0")[0]["level"] == 100_000


def test_deprecated_levels_endpoint_gives_numbers(exchange: Exchange) -> None:
    """Where `instruments` gives text."""
    row = _ask(exchange, "/v1/orderbook/supported_levels", markets="KRW-BTC")[0]
    assert row["supported_levels"][:2] == [0, 10_000]


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]))
)
NAMES = st.text("abcdefgh_", max_size=5)


@given(st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner), max_leaves=20))
def test_every_spelling_of_numbers_parses_back_to_the_same_value(value: Any) -> None:
    """Exponents, padding, 0E-8: other text, same float64."""
    assert json.loads(spell(value)) == json.loads(msgspec.json.encode(value))


def test_spelling_uses_the_venues_other_forms() -> None:
    """What a strict parser trips over."""
    text = spell([{"a": 116_539_000.0, "b": 116_538_000.0, "c": 5.485e-05, "d": 0.0, "e": 0.5}])
    assert "1.16539E8" in text
    assert "116538000.00000000" in text
    assert "5.485E-5" in text
    assert "0E-8" in text
