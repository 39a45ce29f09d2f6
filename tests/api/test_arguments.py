"""What people write for markets, quote currencies and priorities."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.api.arguments import parse_market, parse_markets, parse_priority, parse_quote
from backbone.errors import InputError
from backbone.model import Priority
from backbone.venues import VENUES


@pytest.mark.parametrize(
    ("written", "market"),
    [
        ("KRW-BTC", "KRW-BTC"),
        ("krw-btc", "KRW-BTC"),
        (" KRW-BTC ", "KRW-BTC"),
        ("BTC/KRW", "KRW-BTC"),
        ("btc/krw", "KRW-BTC"),
        ("ETH/BTC", "BTC-ETH"),
        ("BTC", "KRW-BTC"),
        ("1INCH", "KRW-1INCH"),
        ("USDT-BTC", "USDT-BTC"),
    ],
)
def test_market_spellings_mean_one_code(written: str, market: str) -> None:
    """Every spelling of the contract is one code."""
    assert parse_market(written, "KRW") == market


@pytest.mark.parametrize(
    ("exchange", "market"), [("upbit-sg", "SGD-BTC"), ("upbit-id", "IDR-BTC"), ("upbit-th", "THB-BTC")]
)
def test_bare_code_is_priced_in_the_exchanges_currency(exchange: str, market: str) -> None:
    """``"BTC"`` is the market that the exchange's country trades."""
    assert parse_market("BTC", VENUES[exchange].home) == market


@pytest.mark.parametrize(
    "written",
    ["", " ", "-", "KRW-", "-BTC", "KRW-BTC-X", "/", "BTC/", "/KRW", "A/B/C", "KRW-BTC,KRW-ETH", "KRW-%2e",
     "ＫＲＷ-ＢＴＣ", "..", "KRW-..", "KRW-B TC", "KRW-BTC\x00", "../KRW", "KRW-" + "A" * 21, b"KRW-BTC", None, 3,
     True, 1.5],
)  # fmt: skip
def test_what_is_no_market_is_refused(written: Any) -> None:
    """Nothing else gets through: codes become paths and queries."""
    with pytest.raises(InputError) as caught:
        parse_market(written, "KRW")
    assert caught.value.argument == "market"


@given(st.text(max_size=30))
def test_any_text_is_a_plain_code_or_refused(text: str) -> None:
    """Whatever is written, the result is upper-case ASCII of one form, and reads as itself."""
    try:
        market = parse_market(text, "KRW")
    except InputError:
        return
    assert market.isascii()
    assert market == market.upper()
    assert market.count("-") == 1
    assert not {"/", "\\", "%", " ", ","} & set(market)
    assert parse_market(market, "IDR") == market


@pytest.mark.parametrize(
    "written",
    [
        ["krw-btc", "ETH/KRW", "KRW-BTC"],
        ("BTC", "ETH"),
        iter(["BTC", "ETH"]),
        pd.Index(["BTC", "ETH"]),
        {"BTC": 1, "ETH": 2},
    ],
)
def test_several_markets_keep_their_order_each_once(written: Any) -> None:
    """Any iterable of spellings."""
    assert parse_markets(written, "KRW") == ["KRW-BTC", "KRW-ETH"]


@pytest.mark.parametrize("written", [[], (), None, 5, ["KRW-BTC", None], [["KRW-BTC"]]])
def test_no_market_at_all_is_refused(written: Any) -> None:
    """An empty list is a mistake, not a question."""
    with pytest.raises(InputError):
        parse_markets(written, "KRW")


@pytest.mark.parametrize(
    ("written", "quote"),
    [("KRW", "KRW"), ("krw", "KRW"), ("BTC-*", "BTC"), ("usdt-*", "USDT"), ("BTC", None), ("KRW-BTC", None),
     ("-*", None), (["KRW"], None)],
)  # fmt: skip
def test_quote_currency_is_the_exchanges_own_or_has_a_star(written: Any, quote: str | None) -> None:
    """``"BTC"`` is a market everywhere; ``"BTC-*"`` is all that is priced in it."""
    assert parse_quote(written, "KRW") == quote


@pytest.mark.parametrize("written", ["high", "HIGH", "High", Priority.HIGH])
def test_priority_is_itself_or_its_name(written: Any) -> None:
    """Names are accepted wherever a priority is."""
    assert parse_priority(written) is Priority.HIGH


@pytest.mark.parametrize("written", ["urgent", "", None, 1])
def test_priority_unknown_is_refused(written: Any) -> None:
    """With the names there are."""
    with pytest.raises(InputError, match="critical, high, normal, low"):
        parse_priority(written)
