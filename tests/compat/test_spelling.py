"""Our records with the venue's field names, against the venue's own frames and rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backbone.compat.spelling import candle_row, frame_of
from backbone.model import Level, LiveCandle, OrderBook
from backbone.routing.wire import parse_frame
from backbone.simulator import SimulatorServer

websocket = pytest.importorskip("websocket")


KINDS = ["ticker", "trade", "orderbook", "candle.1m", "candle.60m", "candle.240m"]
CODES = ["KRW-BTC", "KRW-NEO"]


@pytest.fixture(scope="module")
def frames(exchange: SimulatorServer) -> list[dict[str, Any]]:
    """The snapshots that the exchange's socket sends."""
    socket = websocket.create_connection(exchange.ws_url, timeout=10, suppress_origin=True)
    try:
        wanted = [{"type": kind, "codes": CODES, "is_only_snapshot": True} for kind in KINDS]
        socket.send(json.dumps([{"ticket": "t"}, *wanted]))
        return [json.loads(socket.recv()) for _ in KINDS for _ in CODES]
    finally:
        socket.close()


@pytest.mark.parametrize("kind", KINDS)
def test_frame_of_a_record_has_the_venues_words(frames: list[dict[str, Any]], kind: str) -> None:
    """What is spelled is spelled as on the socket, and means the same when it is read again."""
    of_kind = [frame for frame in frames if frame["type"] == kind]
    assert [frame["code"] for frame in of_kind] == CODES
    for theirs in of_kind:
        event = parse_frame(json.dumps(theirs).encode())
        ours = frame_of(event.record, event.is_snapshot)  # type: ignore[arg-type]
        assert list(ours) == list(theirs)
        assert ours == theirs
        assert frame_of(event.record) == theirs | {"stream_type": "REALTIME"}  # type: ignore[arg-type]
        again = parse_frame(json.dumps({**theirs, **ours}).encode())
        assert again.record == event.record


def test_frame_of_a_thin_book_is_padded_with_zeros() -> None:
    """As the venue pads it."""
    book = OrderBook("KRW-A", 1000, 0.0, (Level(2.0, 0.1, 1.0, 0.5), Level(3.0, 0.2, 0.0, 0.0)), 0.3, 0.5)
    frame = frame_of(book)
    assert frame["orderbook_units"][1] == {"ask_price": 3.0, "bid_price": 0.0, "ask_size": 0.2, "bid_size": 0.0}
    assert (frame["total_ask_size"], frame["total_bid_size"]) == (0.3, 0.5)


def test_candle_row_shows_both_clocks() -> None:
    """The opening in UTC and in Korea, nine hours on."""
    row = candle_row("KRW-A", 1_755_820_800_000_000, (1.0, 2.0, 0.5, 1.5, 10.0, 15.0))
    assert row["candle_date_time_utc"] == "2025-08-22T00:00:00"
    assert row["candle_date_time_kst"] == "2025-08-22T09:00:00"
    assert (row["trade_price"], row["candle_acc_trade_volume"], row["candle_acc_trade_price"]) == (1.5, 10.0, 15.0)
    assert frame_of(LiveCandle("KRW-A", "4h", 0, *[1.0] * 6, 0))["type"] == "candle.240m"
