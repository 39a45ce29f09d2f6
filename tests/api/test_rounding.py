"""Prices on a market's grid."""

from __future__ import annotations

import numpy as np
import pytest

from backbone import Backbone, round_price
from backbone.api import rounding
from backbone.api.rounding import is_learned, learn_ticks
from backbone.errors import InputError
from backbone.simulator import SimulatorServer
from backbone.simulator.market.catalogue import tick_of


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests have learned is another exchange's."""
    monkeypatch.setattr(rounding, "_known", {})
    monkeypatch.setattr(rounding, "_asked", set())


@pytest.mark.parametrize(
    ("price", "step", "buy", "sell"),
    [(91_234_567.0, 1000.0, 91_234_000.0, 91_235_000.0), (0.1 + 0.2, 0.1, 0.3, 0.4), (5.0, 5.0, 5.0, 5.0)],
)
def test_price_is_rounded_to_the_side_that_is_no_worse(price: float, step: float, buy: float, sell: float) -> None:
    """Decimal arithmetic; on the grid it stays."""
    assert (round_price(price, step, "buy"), round_price(price, step, "sell")) == (buy, sell)


def test_step_of_a_market_is_the_venues_at_any_price(client: Backbone) -> None:
    """At its present price the step that the list shows; at each other one the exchange's, or an error that says so."""
    frame = client.markets("KRW")
    prices = client.tickers("KRW").price
    assert is_learned(frame.index)
    for market, tick in frame.tick_size.items():
        assert round_price(prices[market] + tick * 0.4, market, "buy") == pytest.approx(prices[market], abs=tick * 1e-6)
    answered, tried = 0, np.geomspace(prices.min(), prices.max() * 20, 1000)
    for price in tried.tolist():
        tick = tick_of("KRW", price)
        try:
            found = round_price(price, "KRW-BTC", "sell")
        except InputError:
            continue
        answered += 1
        assert 0 <= found - price < tick * (1 + 1e-9)
        assert found / tick == pytest.approx(round(found / tick), abs=1e-6)
    assert answered > 0.7 * len(tried)


def test_bands_are_read_from_all_markets_of_the_quote_currency() -> None:
    """Where the step changes, and where the markets leave that open: an error that names the nearest ones."""
    learn_ticks({"KRW-A": (3_000.0, 1.0), "KRW-B": (7_000.0, 5.0), "KRW-C": (60_000.0, 50.0), "BTC-X": (4_000.0, 3.0)})
    for price, buy in [(3_333.3, 3_333.0), (4_999.9, 4_999.0), (5_003.0, 5_000.0), (9_999.0, 9_995.0)]:
        assert {round_price(price, market, "buy") for market in ("KRW-A", "KRW-B", "KRW-C")} == {buy}
    assert round_price(123_456.0, "KRW-A", "buy") == 123_450.0  # above the highest price
    for price in (12_345.0, 1_999.0):  # a step of 10 may lie between, and others below
        with pytest.raises(InputError, match=r"\(3,000, step 1\).*give the step instead"):
            round_price(price, "KRW-A", "buy")


def test_market_with_steps_of_its_own_has_them_in_its_band_only() -> None:
    """The others go by the most of a band; that one is refused elsewhere, and so is one without a price."""
    known = {f"KRW-{n}": (5_500.0 + n, 5.0) for n in range(3)}
    learn_ticks({**known, "KRW-ODD": (7_500.0, 1.0), "KRW-A": (3_000.0, 1.0), "KRW-NEW": (float("nan"), 5.0)})
    assert round_price(7_501.5, "KRW-ODD", "buy") == 7_501.0
    assert round_price(7_501.5, "KRW-A", "buy") == 7_500.0
    for market in ("KRW-ODD", "KRW-NEW"):
        with pytest.raises(InputError, match="give the step instead"):
            round_price(3_333.3, market, "buy")


def test_prices_that_the_venue_does_not_say_are_asked_once(client: Backbone, venue: SimulatorServer) -> None:
    """Not with each list: the steps are shown, and rounding by a code says what it lacks."""
    venue.faults.add("garbage", match="/v1/ticker/all", times=None)
    assert client.markets("KRW").tick_size.notna().all()
    asked = len(venue.requests)
    client.markets("KRW")
    assert len(venue.requests) == asked
    with pytest.raises(InputError, match="give the step instead"):
        round_price(91_234_567, "KRW-BTC", "buy")


@pytest.mark.parametrize(
    ("price", "market", "side"),
    [
        (0, 1.0, "buy"),
        (float("nan"), 1.0, "buy"),
        (1, "KRW-NEVER", "buy"),
        (1, 0, "sell"),
        (1, 1.0, "bid"),
        (1, True, "buy"),
    ],
)
def test_what_is_none_is_an_input_error(price: float, market: str | float, side: str) -> None:
    """Each argument."""
    with pytest.raises(InputError):
        round_price(price, market, side)
