"""Prices on a market's grid."""

from __future__ import annotations

import pytest

from backbone import Backbone, round_price
from backbone.errors import InputError


@pytest.mark.parametrize(
    ("price", "step", "buy", "sell"),
    [(91_234_567.0, 1000.0, 91_234_000.0, 91_235_000.0), (0.1 + 0.2, 0.1, 0.3, 0.4), (5.0, 5.0, 5.0, 5.0)],
)
def test_price_is_rounded_to_the_side_that_is_no_worse(price: float, step: float, buy: float, sell: float) -> None:
    """Decimal arithmetic; on the grid it stays."""
    assert (round_price(price, step, "buy"), round_price(price, step, "sell")) == (buy, sell)


def test_step_of_a_market_is_the_venues(client: Backbone) -> None:
    """Learned from the market list's price steps."""
    frame = client.markets("KRW")
    assert round_price(91_234_567, "KRW-BTC", "buy") % frame.loc["KRW-BTC", "tick_size"] == 0


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
