"""How numbers are shown: prices, amounts, whole frames as texts."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbone.api.format import format_amount, format_price, plain, price_digits, tick_size, to_display
from tests.api.test_convert import candles


@pytest.mark.parametrize(
    ("market", "price", "tick"),
    [
        ("KRW-BTC", 91_234_000, 1000),
        ("KRW-BTC", 999_500, 500),
        ("KRW-X", 100_000, 100),
        ("KRW-X", 50_000, 50),
        ("KRW-X", 10_000, 10),
        ("KRW-X", 5_000, 5),
        ("KRW-X", 4_999, 1),
        ("KRW-X", 100, 1),
        ("KRW-X", 99.9, 0.1),
        ("KRW-X", 1.0, 0.01),
        ("KRW-X", 0.001, 0.00001),
        ("KRW-X", 0.00001, 1e-7),
        ("KRW-X", 0.000009, 1e-8),
        ("BTC-ETH", 0.05, 1e-8),
        ("USDT-BTC", 65_000, 0.01),
        ("USDT-XRP", 1.0, 0.001),
        ("USDT-X", 0.5, 0.0001),
        ("SGD-BTC", 90_000, 1e-8),
        ("KRW-X", 0.0, 1e-8),
        ("KRW-X", float("nan"), 1e-8),
    ],
)
def test_tick_size_follows_the_venue_s_tables(market: str, price: float, tick: float) -> None:
    """The price step of each published band, and the finest one where nothing is published."""
    assert tick_size(market, price) == tick


@settings(deadline=None)
@given(st.integers(1, 10**15), st.sampled_from([1000.0, 1.0, 0.5, 0.1, 0.01, 0.001, 1e-8]))
def test_format_price_never_hides_a_digit(hundred_millionths: int, tick: float) -> None:
    """Whatever the tick, the text reads back as the very price the venue said."""
    price = hundred_millionths / 1e8
    text = format_price(price, tick)
    assert float(text.replace(",", "")) == price
    assert len(text.partition(".")[2]) >= price_digits(tick)


def test_format_price_of_nothing_is_a_dash() -> None:
    """A missing price is shown as missing, not as zero."""
    assert format_price(float("nan"), 1.0) == format_price(float("inf"), 1.0) == "–"


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (9_999_999_999, "10.00B"),
        (999_999.0, "999,999"),
        (99_999.4, "99,999"),
        (-2.5e6, "-2.500M"),
        (0.00001, "1.000e-05"),
    ],
)
def test_format_amount_keeps_about_four_digits(amount: float, text: str) -> None:
    """Amounts are short whatever their size."""
    assert format_amount(amount) == text


def test_to_display_uses_each_market_s_own_digits() -> None:
    """One frame of many markets shows each price with the digits of its own band."""
    frame = pd.DataFrame(
        {"price": [91234000.0, 0.00123], "change_rate": [0.0123, -0.05], "value_24h": [1.5e12, float("nan")]},
        index=pd.Index(["KRW-BTC", "KRW-SHIB"], name="market"),
    )
    out = to_display(frame)
    assert out["price"].tolist() == ["91,234,000", "0.00123"]
    assert out["change_rate"].tolist() == ["+1.23%", "-5.00%"]
    assert out["value_24h"].tolist() == ["1,500,000,000,000", "–"]
    assert to_display(candles(), tick=0.5)["open"].tolist()[0] == "100.0"


@pytest.mark.parametrize(
    ("market", "value", "text"),
    [("BTC-ETH", 0.2122, "0.2122"), ("USDT-BTC", 1234.5, "1,234.50"), ("KRW-BTC", 1234567.8, "1,234,568")],
)
def test_to_display_turnover_has_the_digits_of_its_quote_currency(market: str, value: float, text: str) -> None:
    """A turnover of a fifth of a bitcoin is not shown as nothing."""
    assert to_display(pd.DataFrame({"market": [market], "value": [value]}))["value"][0] == text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(1.5), 1.5),
        (np.int64(3), 3),
        (pd.NaT, None),
        (float("inf"), None),
        (pd.Timedelta("90s"), 90.0),
        (dt.date(2025, 1, 2), "2025-01-02"),
        (Path("a"), "a"),
        ({"a": (1, None, pd.Timestamp("2025-01-01", tz="UTC"))}, {"a": [1, None, "2025-01-01T00:00:00+00:00"]}),
        (True, True),
        (np.bool_(True), True),
    ],
)
def test_value_is_plain(value: object, expected: object) -> None:
    """What JSON cannot say is said in what it can."""
    assert plain(value) == expected
    json.dumps(plain(value))
