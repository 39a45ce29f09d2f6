"""A row of one instant is one record, whichever channel and dialect brought it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backbone.errors import PayloadError
from backbone.model import LiveCandle, Ticker, Trade
from backbone.routing import wire
from tests.recordings import frames_of
from tests.routing.test_wire import CANDLE_FRAME, PAIRS, differing, in_default


def test_trade_recorded_on_both_channels_is_one_record(recordings: Path) -> None:
    """One execution, recorded from REST and from the socket, is equal field by field."""
    path = recordings / "raw/rest/maxt_trades_ticks_same-trade-as-ws_KRW-BTC_2026-07-30.json"
    (rest,) = wire.trades_ask("KRW-BTC", 500).parse(path.read_bytes())
    (frame,) = frames_of(recordings / "raw/ws/maxt_trade_DEFAULT_2026-07-30.jsonl")
    live, _ = wire.parse_frame(frame)
    assert differing(live, rest) == []
    assert isinstance(live, Trade)
    assert isinstance(rest, Trade)
    assert (live.prev_close, rest.best_bid_price, rest.sent_us) == (rest.prev_close, None, None)


@pytest.mark.parametrize("kind", PAIRS)
def test_rows_of_one_instant_are_equal_whatever_the_channel(kind: str) -> None:
    """A REST row and a frame make the same record."""
    rest, frame = PAIRS[kind]
    record, is_snapshot = wire.parse_frame(json.dumps(frame, separators=(",", ":")).encode())
    assert differing(record, rest) == []
    assert not is_snapshot
    if kind == "orderbook":
        assert record == rest


def test_frames_say_what_rest_does_not() -> None:
    """The socket's own fields are in the record, None in that of a REST row."""
    frames = PAIRS["ticker"][1], PAIRS["trade"][1]
    ticker, trade = (wire.parse_frame(json.dumps(frame).encode()).record for frame in frames)
    assert isinstance(ticker, Ticker)
    assert isinstance(trade, Trade)
    assert (ticker.ask_volume, ticker.bid_volume, ticker.state, ticker.side) == (200.0, 104.11940843, "ACTIVE", "sell")
    assert (ticker.delisting_day, ticker.is_suspended, ticker.warning) == ("2026-08-03", False, "CAUTION")
    assert (trade.best_bid_price, trade.best_bid_size) == (91200000.0, 0.25)
    assert (trade.best_ask_price, trade.best_ask_size) == (91201000.0, 0.5)
    assert trade.sent_us == 1785397260700000
    rest = PAIRS["ticker"][0]
    assert (rest.ask_volume, rest.bid_volume, rest.state, rest.delisting_day) == (None, None, None, None)
    assert (rest.high_52w, rest.low_52w) == (ticker.high_52w, ticker.low_52w) == (179869000.0, 88770000.0)


def test_ticker_takes_from_another_only_what_is_of_the_same_trade() -> None:
    """What REST leaves out is still so where nothing was traded since, and unknown once something was."""
    rest = PAIRS["ticker"][0]
    streamed = wire.parse_frame(json.dumps(PAIRS["ticker"][1]).encode()).record
    assert isinstance(streamed, Ticker)
    assert differing(rest.completed(streamed), streamed) == []
    assert rest.completed(streamed).ask_volume == 200.0
    traded = msgspec.structs.replace(rest, volume=rest.volume + 1)
    assert traded.completed(streamed) is traded
    assert streamed.completed(rest) is streamed


def test_recorded_tickers_say_their_state_and_volumes(recordings: Path) -> None:
    """In the recordings of 2021 and 2025 the volumes by side add up to the whole, and every state is stated."""
    for name in ("ghd9201_ticker_SIMPLE_2021-04-28.jsonl", "sml1323_ticker_DEFAULT_2025-07-14.jsonl"):
        seen = 0
        for frame in frames_of(recordings / "raw/ws" / name):
            ticker, _ = wire.parse_frame(in_default(frame))
            assert isinstance(ticker, Ticker)
            assert ticker.ask_volume is not None
            assert ticker.bid_volume is not None
            assert ticker.ask_volume + ticker.bid_volume == pytest.approx(ticker.volume, rel=1e-12)
            assert ticker.high_52w is not None
            assert ticker.high_52w >= ticker.high
            assert (ticker.state, ticker.is_suspended, ticker.warning) == ("ACTIVE", False, "NONE")
            assert ticker.delisting_day is None
            seen += 1
        assert seen


def test_orderbook_frame_in_exponents_equals_the_plain_row() -> None:
    """``1.16539E8`` and ``116539000`` are one price."""
    text = json.dumps(PAIRS["orderbook"][1]).replace("116539000", "1.16539E8").replace("0.0007772", "7.772E-4")
    assert wire.parse_frame(text.encode()).record == PAIRS["orderbook"][0]


def test_candle_frame_parses() -> None:
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
    assert wire.parse_frame(json.dumps(CANDLE_FRAME).encode()) == (expected, False)
    hour = CANDLE_FRAME | {"type": "candle.60m", "candle_date_time_utc": "2026-07-30T07:00:00"}
    record = wire.parse_frame(json.dumps(hour).encode()).record
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
def test_candle_frame_that_is_invalid_is_a_payload_error(changes: dict[str, Any]) -> None:
    """The socket's rows pass the same validation as REST's."""
    with pytest.raises(PayloadError):
        wire.parse_frame(json.dumps(CANDLE_FRAME | changes).encode())
