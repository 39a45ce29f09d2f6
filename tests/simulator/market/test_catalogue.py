"""The embedded exchange's markets."""

from __future__ import annotations

import pytest

from backbone.simulator.market.catalogue import catalogue, hash_text, tick_of


def test_catalogue_lists_about_as_many_markets_as_the_venue() -> None:
    """Some 290 KRW markets, thirty BTC and twenty USDT ones, each once, with names in both languages."""
    quotes = [market.quote for market in catalogue().values()]
    assert 285 <= quotes.count("KRW") <= 300
    assert (quotes.count("BTC"), quotes.count("USDT")) == (30, 20)
    assert all(m.korean_name and m.english_name for m in catalogue().values())
    assert all("_" not in m.english_name for m in catalogue().values())


def test_catalogue_spreads_liquidity_from_every_second_to_once_an_hour() -> None:
    """The first market trades once a second, the tail in 7 % of minutes, the last once an hour."""
    rates = [m.trades_per_minute for m in catalogue().values() if m.quote == "KRW"]
    assert rates[0] == 60
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(1 / 60)
    assert rates.count(0.0726) == 24


def test_catalogue_spreads_listing_times() -> None:
    """Bitcoin since 2017-09-25T03:00Z, new markets in every later year."""
    listed = {code: m.listed_us for code, m in catalogue().items()}
    assert listed["KRW-BTC"] == 1_506_308_400_000_000
    years = {1970 + us // 31_556_952_000_000 for us in listed.values()}
    assert years >= set(range(2018, 2027))


def test_integers_of_a_market_leave_room_for_its_sums() -> None:
    """Prices and volumes have at least eight decimals together, which the turnover's two halves rely on."""
    for market in catalogue().values():
        assert market.price_decimals + market.volume_decimals >= 8
        assert tick_of(market.quote, market.price) >= 10.0**-market.price_decimals


@pytest.mark.parametrize(
    ("price", "tick"),
    [(160e6, 1000), (1e6, 1000), (999_999, 500), (150_000, 100), (60_000, 50), (10_000, 10), (9_990, 5),
     (4_000, 1), (150, 1), (50, 0.1), (5, 0.01), (0.5, 0.001), (0.00091, 1e-6)],
)  # fmt: skip
def test_krw_tick_follows_the_band_of_the_price(price: float, tick: float) -> None:
    """The tick table of 2025-07-31."""
    assert tick_of("KRW", price) == tick


def test_hash_of_a_text_is_the_same_in_every_process() -> None:
    """Unlike `hash`, which Python salts."""
    assert hash_text("KRW-BTC") == hash_text("KRW-BTC")
    assert hash_text("") == 5711608995589865383
