"""A row of one instant is one record, whichever channel and dialect brought it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backbone.errors import PayloadError
from backbone.model import LiveCandle
from backbone.routing import wire
from tests.recordings import frames_of
from tests.routing.test_wire import CANDLE_FRAME, PAIRS, simple


def test_trade_recorded_on_both_channels_is_one_record(recordings: Path) -> None:
    """One execution, recorded from REST and from the socket, is equal field by field."""
    path = recordings / "raw/rest/maxt_trades_ticks_same-trade-as-ws_KRW-BTC_2026-07-30.json"
    (rest,) = wire.trades_ask("KRW-BTC", 500).parse(path.read_bytes())
    (frame,) = frames_of(recordings / "raw/ws/maxt_trade_DEFAULT_2026-07-30.jsonl")
    ((live, _),) = wire.parse_frame(frame)
    assert live == rest


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("dialect", ["DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST"])
def test_rows_of_one_instant_are_equal_whatever_the_channel(kind: str, dialect: str) -> None:
    """A REST row and a frame of each format make the same record."""
    rest, frame = PAIRS[kind]
    content: Any = simple(frame) if dialect.startswith("SIMPLE") else frame
    if dialect.endswith("LIST"):
        content = [content]
    assert wire.parse_frame(json.dumps(content, separators=(",", ":")).encode()) == ((rest, False),)


def test_orderbook_frame_in_exponents_equals_the_plain_row() -> None:
    """``1.16539E8`` and ``116539000`` are one price."""
    text = json.dumps(PAIRS["orderbook"][1]).replace("116539000", "1.16539E8").replace("0.0007772", "7.772E-4")
    assert wire.parse_frame(text.encode())[0].record == PAIRS["orderbook"][0]


def test_candle_frame_parses_in_both_formats() -> None:
    """A live candle names its timeframe as the package does and its open as an instant."""
    expected = LiveCandle(
        "KRW-BTC",
        "1m",
        1785397560000000,
        91157000.0,
        91157000.0,
        91133000.0,
        91157000.0,
        0.8004467,
        72957159.34596,
        1785397618309000,
    )
    for frame in (CANDLE_FRAME, simple(CANDLE_FRAME)):
        assert wire.parse_frame(json.dumps(frame).encode()) == ((expected, False),)
    hour = CANDLE_FRAME | {"type": "candle.60m", "candle_date_time_utc": "2026-07-30T07:00:00"}
    record = wire.parse_frame(json.dumps(hour).encode())[0].record
    assert isinstance(record, LiveCandle)
    assert record.timeframe == "1h"


@pytest.mark.parametrize(
    "changes",
    [
        {"candle_date_time_utc": "2026-07-30T07:46:01"},
        {"candle_date_time_utc": "2026-07-30T07:46"},
        {"candle_date_time_utc": "2026-07-30T07:46:00Z"},
        {"low_price": 91158000.0},
        {"low_price": 0},
        {"high_price": 1},
        {"candle_acc_trade_volume": -1},
        {"type": "candle.2m"},
        {"type": "kimchi"},
        {"code": 7},
    ],
)
def test_candle_frame_that_lies_is_a_payload_error(changes: dict[str, Any]) -> None:
    """The socket's rows pass the same door as REST's."""
    with pytest.raises(PayloadError):
        wire.parse_frame(json.dumps(CANDLE_FRAME | changes).encode())
