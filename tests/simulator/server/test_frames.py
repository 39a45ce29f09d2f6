"""The stream's messages: what they ask for, and how answers are spelled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.simulator import Exchange
from backbone.simulator.server.events import Feed
from backbone.simulator.server.frames import (
    STREAM_TIMEFRAMES,
    StreamError,
    Want,
    _decimal,
    _java,
    _plain,
    _rate,
    _turnover,
    parse_request,
    render,
    subscriptions,
)
from backbone.simulator.server.rest import padded
from tests.recordings import frames_of, recordings
from tests.simulator.conftest import NOW_US

__all__ = ["recordings"]
TICKER = {"type": "ticker", "codes": ["KRW-BTC"]}


def _request(*parts: dict[str, Any]) -> str:
    return json.dumps([{"ticket": "t"}, *parts])


@pytest.mark.parametrize(
    ("text", "frame"),
    [
        ("hello", '{"error":{"message":"Format 이 맞지 않습니다.","name":"WRONG_FORMAT"}}'),
        ('{"ticket":"t"}', '{"error":{"message":"Format 이 맞지 않습니다.","name":"WRONG_FORMAT"}}'),
        ("[1]", '{"error":{"message":"Format 이 맞지 않습니다.","name":"WRONG_FORMAT"}}'),
        (json.dumps([TICKER]), '{"error":{"name":"NO_TICKET","message":"티켓이 존재하지 않거나, 유효하지 않습니다."}}'),
        (_request(), '{"error":{"message":"type 필드가 존재하지 않습니다.","name":"NO_TYPE"}}'),
        (_request({"codes": ["KRW-BTC"]}), '{"error":{"message":"type 필드가 존재하지 않습니다.","name":"NO_TYPE"}}'),
        (_request({"type": "ticker"}), '{"error":{"message":"codes 필드가 존재하지 않습니다.","name":"NO_CODES"}}'),
        (
            _request({"type": "nope", "codes": ["KRW-BTC"]}),
            '{"error":{"message":"nope 은 지원하지 않는 타입입니다.","name":"INVALID_PARAM"}}',
        ),
        (
            _request({"type": "candle.1d", "codes": ["KRW-BTC"]}),
            '{"error":{"message":"candle.1d 은 지원하지 않는 타입입니다.","name":"INVALID_PARAM"}}',
        ),
    ],
)
def test_bad_messages_get_the_venues_error_frames(text: str, frame: str) -> None:
    """Names, words and even the order of the keys."""
    with pytest.raises(StreamError) as caught:
        parse_request(text)
    assert caught.value.frame().decode() == frame


def test_error_frames_equal_the_recorded_ones(recordings: Path) -> None:
    """The three that were captured, byte for byte."""
    frames = {
        frame.decode()
        for frame in frames_of(recordings / "raw/ws/single-frames_DEFAULT-and-SIMPLE_2023_2026.jsonl")
        if b'"error"' in frame
    }
    made = set()
    for text in ("x", json.dumps([TICKER]), _request({"type": "nope", "codes": ["KRW-BTC"]})):
        with pytest.raises(StreamError) as caught:
            parse_request(text)
        made.add(caught.value.frame().decode())
    assert made == frames


@pytest.mark.parametrize(
    ("flags", "snapshot", "realtime"),
    [
        ({}, True, True),
        ({"is_only_snapshot": True}, True, False),
        ({"isOnlySnapshot": True}, True, False),
        ({"is_only_realtime": True}, False, True),
        ({"isOnlyRealtime": True}, False, True),
        ({"is_only_realtime": False, "is_only_snapshot": False}, True, True),
    ],
)
def test_flags_choose_snapshot_and_realtime(flags: dict[str, bool], snapshot: bool, realtime: bool) -> None:
    """Both spellings; neither means both."""
    (want,) = parse_request(_request({**TICKER, **flags})).wants
    assert (want.snapshot, want.realtime) == (snapshot, realtime)


def test_depth_suffix_is_understood_for_books_only() -> None:
    """1, 5, 15 and 30; another number is 30; elsewhere it belongs to the (unknown) code."""
    codes = ["KRW-BTC.1", "KRW-BTC.15", "KRW-BTC.2", "KRW-BTC.x", "KRW-BTC"]
    (book,) = parse_request(_request({"type": "orderbook", "codes": codes})).wants
    assert [depth for _, depth in book.codes] == [1, 15, 30, 30, 30]
    (ticker,) = parse_request(_request({"type": "ticker", "codes": ["KRW-BTC.5"]})).wants
    assert ticker.codes == (("KRW-BTC.5", 30),)


def test_format_is_default_unless_said() -> None:
    """Four are known, anything else is refused."""
    assert parse_request(_request(TICKER)).format == "DEFAULT"
    for form in ("DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST"):
        assert parse_request(_request(TICKER, {"format": form})).format == form
    with pytest.raises(StreamError, match="XML"):
        parse_request(_request(TICKER, {"format": "XML"}))


def test_listing_names_the_subscriptions_in_both_formats() -> None:
    """Levels for books only."""
    wants = [Want("ticker", (("KRW-BTC", 30),)), Want("orderbook", (("KRW-ETH", 5),), 10.0)]
    assert json.loads(subscriptions(wants, "t", "DEFAULT")) == {
        "method": "LIST_SUBSCRIPTIONS",
        "result": [
            {"type": "ticker", "codes": ["KRW-BTC"]},
            {"type": "orderbook", "codes": ["KRW-ETH"], "level": 10},
        ],
        "ticket": "t",
    }
    assert json.loads(subscriptions(wants, "t", "SIMPLE"))["rslt"][1] == {
        "ty": "orderbook",
        "cds": ["KRW-ETH"],
        "lv": 10,
    }
    assert parse_request(_request({"method": "LIST_SUBSCRIPTIONS"}, {"format": "SIMPLE"})).listing


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_spelling_parses_back_to_the_same_float(value: float) -> None:
    """Padded, exponential or plain: the float64 is untouched."""
    for spelled in (padded, _java, _plain, _decimal, _rate, _turnover):
        assert float(json.loads(spelled(value))) == value


@pytest.mark.parametrize(
    ("spelled", "value", "text"),
    [(padded, 122_720_000.0, "122720000.00000000"), (padded, 0.0, "0E-8"), (padded, 0.00020372, "0.00020372"),
     (_java, 116_539_000.0, "1.16539E8"), (_java, 0.00079276, "7.9276E-4"), (_java, 0.0005, "5.0E-4"),
     (_java, 0.06288509, "0.06288509"), (_plain, 116_606_000.0, "116606000"),
     (_turnover, 19_699_800_600.25381, "19699800600.2538100000000000"),
     (_rate, 0.0, "0"), (_rate, 0.0000063211, "0.0000063211")],
)  # fmt: skip
def test_numbers_are_spelled_as_recorded(spelled: Any, value: float, text: str) -> None:
    """Each form as it was captured."""
    assert spelled(value) == text


@pytest.mark.parametrize("kind", ["ticker", "trade", "orderbook", "candle.1m"])
def test_simple_and_default_say_the_same(exchange: Exchange, kind: str) -> None:
    """Other names, other spellings, equal values."""
    row = Feed(exchange).snapshots((kind, 0.0), ["KRW-BTC"], NOW_US)["KRW-BTC"] | {"stream_type": "SNAPSHOT"}
    default, simple = (json.loads(render(row, form)) for form in ("DEFAULT", "SIMPLE"))
    assert len(default) == len(simple)
    if kind == "orderbook":
        units = default.pop("orderbook_units"), simple.pop("obu")
        assert [tuple(u.values()) for u in units[0]] == [tuple(u.values()) for u in units[1]]
    assert list(default.values()) == list(simple.values())


@pytest.mark.parametrize(
    ("kind", "form", "file", "index"),
    [("ticker", "DEFAULT", "single-frames_DEFAULT-and-SIMPLE_2023_2026", 8),
     ("trade", "DEFAULT", "maxt_trade_DEFAULT_2026-07-30", 0),
     ("orderbook", "DEFAULT", "single-frames_DEFAULT-and-SIMPLE_2023_2026", 1),
     ("orderbook", "SIMPLE", "single-frames_DEFAULT-and-SIMPLE_2023_2026", 3)],
)  # fmt: skip
def test_frames_have_the_recorded_fields_in_their_order(
    exchange: Exchange, recordings: Path, kind: str, form: str, file: str, index: int
) -> None:
    """Names, order and JSON types of captured frames."""
    recorded = json.loads(list(frames_of(recordings / f"raw/ws/{file}.jsonl"))[index])
    row = Feed(exchange).snapshots((kind, 0.0), ["KRW-BTC"], NOW_US)["KRW-BTC"]
    made = json.loads(render(row | {"stream_type": "SNAPSHOT"}, form))
    assert list(made) == list(recorded)
    for name, value in recorded.items():
        kinds = (int, float) if isinstance(value, int | float) else type(value)
        assert isinstance(made[name], kinds), name


def test_candle_types_are_those_of_the_stream() -> None:
    """Seconds to four hours; no days."""
    assert list(STREAM_TIMEFRAMES.values()) == ["1s", "1m", "3m", "5m", "10m", "15m", "30m", "1h", "4h"]
