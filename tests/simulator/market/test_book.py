"""Order books: when they change, and what stands in them."""

from __future__ import annotations

from backbone.simulator import Exchange
from backbone.simulator.market.book import book_stamp_us, next_book_us
from tests.simulator.conftest import NOW_US


def test_book_changes_on_the_grid_it_announces(exchange: Exchange) -> None:
    """Between two changes the book is the same; at the change its stamp is that time."""
    market = exchange.market("KRW-ETH")
    change = next_book_us(market, NOW_US)
    assert change > NOW_US
    assert change % 100_000 == 0
    before, at = exchange.orderbook("KRW-ETH", change - 1), exchange.orderbook("KRW-ETH", change)
    assert before == exchange.orderbook("KRW-ETH", NOW_US) or book_stamp_us(market, NOW_US) != change
    assert at is not None
    assert at["timestamp"] == change // 1000
