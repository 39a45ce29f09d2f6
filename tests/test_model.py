"""The records that travel between layers."""

from __future__ import annotations

import msgspec
import pytest

from backbone.model import CANDLE_COLUMNS, CANDLE_SCHEMA, Level, OrderBook, Priority, Span, Trade, empty_candles


def test_empty_candles_have_every_column_typed() -> None:
    """No rows, the one schema: time, then six numbers without nulls."""
    table = empty_candles()
    assert table.num_rows == 0
    assert table.schema.equals(CANDLE_SCHEMA)
    assert table.column_names == ["time", *CANDLE_COLUMNS]
    assert not any(field.nullable for field in table.schema)


def test_priorities_are_ranked_as_they_stand() -> None:
    """Critical is the most urgent, low the least."""
    assert [priority.rank for priority in Priority] == [0, 1, 2, 3]
    assert [priority.name for priority in Priority] == ["CRITICAL", "HIGH", "NORMAL", "LOW"]


def test_span_is_as_long_as_from_start_to_end() -> None:
    """Half-open: its end is not in it."""
    assert Span(60, 180).length_us == 120


def test_book_leaves_out_its_padding() -> None:
    """A side that is shorter than the other has no made-up price."""
    book = OrderBook("KRW-BTC", 5, 0.0, (Level(101.0, 1.0, 100.0, 2.0), Level(0.0, 0.0, 99.0, 3.0)))
    assert book.asks == ((101.0, 1.0),)
    assert book.bids == ((100.0, 2.0), (99.0, 3.0))
    assert book.stamp_us == 5


def test_records_cannot_be_changed() -> None:
    """What one reader holds, no other alters."""
    trade = Trade("KRW-BTC", 5, 100.0, 1.0, "buy", 7)
    with pytest.raises(AttributeError):
        trade.price = 1.0  # type: ignore[misc]
    assert msgspec.json.decode(msgspec.json.encode(trade), type=Trade) == trade
