"""The envelope: the same answers as plain records, failures as facts, JSON both ways."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections import UserDict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import backbone
from backbone import Backbone, BackboneMetadata, BackboneRequest, BackboneResponse, DataType, Priority
from backbone.api.frames import attrs_of
from backbone.errors import InputError
from backbone.simulator import SimulatorServer

LIMIT = 500  # the quota is not what is tested here


def answer(client: Backbone, *words: Any, **more: Any) -> BackboneResponse:
    """One call, whose request and response survive their JSON."""
    request = BackboneRequest(*words, **more)
    assert BackboneRequest.from_json(request.to_json()) == request
    response = client.request(request)
    assert BackboneResponse.from_json(response.to_json()) == response
    assert response.request_id == request.request_id
    assert response.metadata.data_count == len(response.data)
    return response


def test_candles_are_the_frames_rows(client: Backbone) -> None:
    """Each record is a row of the frame of the same call, with its market and its time as text."""
    response = answer(client, "candles", "KRW-BTC", "1h", "2025-08-21", "2025-08-22")
    frame = client.candles("KRW-BTC", "1h", "2025-08-21", "2025-08-22")
    assert (response.success, response.error) == (True, None)
    assert list(response.data[0]) == ["market", "time", "open", "high", "low", "close", "volume", "value"]
    back = pd.DataFrame(response.data)
    assert [pd.Timestamp(text) for text in back["time"]] == list(frame.index)
    for name in frame.columns:
        assert back[name].tolist() == frame[name].tolist()
    assert back["time"].iloc[0] == "2025-08-21T00:00:00+09:00"
    assert response.metadata.split_info == {
        "markets": 1,
        "requests": 1,
        "pages": 1,
        "quiet": 0,
        "unknown": 0,
        "sources": {"rest": 24},
    }


def test_metadata_says_what_the_attrs_say(client: Backbone) -> None:
    """Where it came from, whether anybody was asked, at what priority."""
    client.markets()  # brings the venue's time, which is not this machine's
    first, again = (answer(client, "candles", "KRW-BTC", "1d", count=3, priority="low").metadata for _ in range(2))
    facts = attrs_of(client.candles("KRW-BTC", "1d", count=3, priority="low"))
    assert (first.source_layer, first.cache_hit, first.priority_used) == ("rest", False, "low")
    assert again.cache_hit is facts["cache_hit"] is True
    assert again.source_layer == facts["source"]
    assert again.processing_time_ms > 0


def test_several_markets_answer_in_one_list(client: Backbone) -> None:
    """Candles and trades of several markets, each with its market, `count` of each."""
    client.markets()
    for kind, rows in (("candles", 4), ("trades", 4)):
        response = answer(client, kind, ["KRW-BTC", "KRW-ETH"], count=2)
        assert [row["market"] for row in response.data] == ["KRW-BTC"] * 2 + ["KRW-ETH"] * 2
        assert response.metadata.data_count == rows
        assert response.metadata.split_info["requests"] == 2


def test_tickers_of_a_quote_currency(client: Backbone, venue: SimulatorServer) -> None:
    """One symbol may be a quote currency; times are text, numbers numbers."""
    response = answer(client, DataType.TICKER, "KRW", priority=Priority.HIGH)
    assert len(response.data) > 200
    assert {row["market"][:4] for row in response.data} == {"KRW-"}
    assert isinstance(response.data[0]["price"], float)
    assert dt.datetime.fromisoformat(response.data[0]["time"]).utcoffset() == dt.timedelta(hours=9)
    assert venue.counts() == {"ticker": {200: 1}, "market": {200: 1}}


def test_orderbooks_count_is_levels_and_padding_is_null(client: Backbone, venue: SimulatorServer) -> None:
    """Levels a side; a padded side is null in JSON, as NaN is not JSON."""
    response = answer(client, "orderbooks", ["KRW-BTC", "KRW-ETH"], count=5)
    assert len(response.data) == 10
    now = venue.clock.now_us()
    thin = next(
        code
        for code in venue.exchange.listed(now)
        if any(
            u["ask_price"] == 0 or u["bid_price"] == 0 for u in venue.exchange.orderbook(code, now)["orderbook_units"]
        )
    )
    padded = answer(client, "orderbooks", thin)
    assert any(row["ask_price"] is None or row["bid_price"] is None for row in padded.data)
    assert "NaN" not in padded.to_json()


def test_trade_ids_survive_json(client: Backbone) -> None:
    """Seventeen digits there and back."""
    response = answer(client, "trades", "KRW-BTC", count=3)
    ids = client.trades("KRW-BTC", 3)["sequential_id"].tolist()
    assert [row["sequential_id"] for row in BackboneResponse.from_json(response.to_json()).data] == ids
    assert min(ids) > 2**53


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        ({"data_type": "candles", "symbols": "KRW-NOPE"}, "market"),
        ({"data_type": "candles", "symbols": "KRW-BTC", "timeframe": "7m"}, "timeframe"),
        ({"data_type": "candles", "symbols": "KRW-BTC", "count": -1}, "count"),
        ({"data_type": "candles", "symbols": "KRW-BTC", "start_time": "soon"}, "start"),
        ({"data_type": "tickers", "symbols": "KRW-BTC", "count": 3}, "count"),
        ({"data_type": "tickers", "symbols": "KRW-BTC", "timeframe": "1m"}, "timeframe"),
        ({"data_type": "orderbooks", "symbols": "KRW-BTC", "start_time": "1h"}, "start_time"),
        ({"data_type": "orderbooks", "symbols": "KRW-BTC", "count": 31}, "depth"),
        ({"data_type": "trades", "symbols": "KRW-BTC", "timeframe": "1m"}, "timeframe"),
        ({"data_type": "trades", "symbols": ["KRW-NOPE", "KRW-BTC"]}, "market"),
    ],
)
def test_wrong_arguments_are_a_failed_response(client: Backbone, words: dict[str, Any], argument: str) -> None:
    """Nothing is raised: the error's facts say which argument is wrong and what is allowed."""
    client.markets()
    response = answer(client, **words)
    assert (response.success, response.data) == (False, [])
    assert response.error is not None
    assert response.error["type"] == "InputError"
    assert response.error["argument"] == argument
    assert response.error["allowed"] in response.error["message"]
    assert (response.metadata.source_layer, response.metadata.cache_hit) == ("none", False)


def test_failure_of_the_venue_keeps_what_arrived(client: Backbone, venue: SimulatorServer) -> None:
    """A range that could be had in part: the part is in `data`, the gaps and causes in `error`."""
    client.candles("KRW-BTC", "1m", "2025-08-22T08:00:00Z", "2025-08-22T08:30:00Z")
    venue.faults.add("garbage", match="/v1/candles", times=None)
    response = answer(client, "candles", "KRW-BTC", "1m", "2025-08-22T08:00:00Z", "2025-08-22T08:45:00Z")
    assert response.success is False
    assert len(response.data) == 30
    error = response.error
    assert error is not None
    assert error["type"] == "IncompleteError"
    assert error["gaps"] == [["2025-08-22T17:30:00+09:00", "2025-08-22T17:45:00+09:00"]]
    assert error["causes"][0]["type"] == "PayloadError"
    assert error["causes"][0]["sample"]
    assert response.metadata.split_info["unknown"] == 15


def test_failure_of_one_of_several_trades_keeps_the_others(client: Backbone, venue: SimulatorServer) -> None:
    """The markets that were answered stay; the rest is named."""
    client.markets()
    venue.faults.add("garbage", match="market=KRW-ETH", times=None)
    response = answer(client, "trades", ["KRW-BTC", "KRW-ETH", "KRW-XRP"], count=2)
    assert [row["market"] for row in response.data] == ["KRW-BTC"] * 2
    assert response.error is not None
    assert response.error["gaps"] == ["KRW-ETH", "KRW-XRP"]


def test_failure_of_all_is_a_failed_response(client: Backbone, venue: SimulatorServer) -> None:
    """A venue that only says nonsense is no exception either."""
    client.markets()
    venue.faults.add("garbage", match="/v1/ticker", times=None)
    response = answer(client, "tickers", ["KRW-BTC"])
    assert response.error is not None
    assert response.error["type"] == "PayloadError"
    assert response.error["url"].endswith("/v1/ticker?markets=KRW-BTC")
    assert response.error["attempts"] >= 1


def test_closed_client_is_a_failed_response(venue: SimulatorServer, tmp_path: Path) -> None:
    """Even this is a response."""
    client = Backbone(data_dir=tmp_path, rest_url=venue.rest_url)
    client.close()
    assert answer(client, "tickers", "KRW-BTC").error == {
        "type": "ClosedError",
        "message": "the client is closed; make a new one",
    }


@pytest.mark.parametrize("request_", [None, {"data_type": "candles"}, "candles"])
def test_what_is_no_request_is_refused(client: Backbone, request_: Any) -> None:
    """Only here something is raised: there is nothing to answer."""
    with pytest.raises(InputError):
        client.request(request_)


# -- the forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        (dt.datetime(2025, 8, 21, 3, tzinfo=dt.UTC), "2025-08-21T03:00:00+00:00"),
        (dt.date(2025, 8, 21), "2025-08-21"),
        (pd.Timestamp("2025-08-21T03:00:00.000001999", tz="UTC"), "2025-08-21T03:00:00.000001+00:00"),
        (np.datetime64("2025-08-21T03:00"), "2025-08-21T03:00:00"),
        ("3d", "3d"),
        (None, None),
    ],
)
def test_times_are_kept_as_text(given_: Any, text: str | None) -> None:
    """Whatever spells a time becomes text that means the same."""
    request = BackboneRequest("candles", "KRW-BTC", start_time=given_, end_time=given_)
    assert (request.start_time, request.end_time) == (text, text)


@pytest.mark.parametrize(
    "words",
    [
        {"data_type": "news", "symbols": "KRW-BTC"},
        {"data_type": None, "symbols": "KRW-BTC"},
        {"data_type": "candles", "symbols": []},
        {"data_type": "candles", "symbols": None},
        {"data_type": "candles", "symbols": ["KRW-BTC", 5]},
        {"data_type": "candles", "symbols": "KRW-BTC", "priority": "urgent"},
        {"data_type": "candles", "symbols": "KRW-BTC", "count": 1.5},
        {"data_type": "candles", "symbols": "KRW-BTC", "count": True},
        {"data_type": "candles", "symbols": "KRW-BTC", "timeframe": 5},
        {"data_type": "candles", "symbols": "KRW-BTC", "start_time": 5},
        {"data_type": "candles", "symbols": "KRW-BTC", "start_time": pd.NaT},
    ],
)
def test_request_without_a_plain_form_is_refused(words: dict[str, Any]) -> None:
    """A request that exists has a JSON form."""
    with pytest.raises(InputError):
        BackboneRequest(**words)


@pytest.mark.parametrize("name", ["candles", "CANDLES", "candle", "Candle", " CANDLE ", DataType.CANDLE])
def test_data_type_is_itself_or_its_name(name: Any) -> None:
    """Names are accepted in any case, and in the singular."""
    assert BackboneRequest(name, "KRW-BTC").data_type is DataType.CANDLE


@given(
    symbols=st.lists(st.text(max_size=12), min_size=1, max_size=4),
    kind=st.sampled_from(DataType),
    count=st.one_of(st.none(), st.integers(-(2**70), 2**70)),
    text=st.one_of(st.none(), st.text(max_size=20)),
    priority=st.sampled_from(Priority),
)
def test_any_request_survives_json(
    symbols: list[str], kind: DataType, count: int | None, text: str | None, priority: Priority
) -> None:
    """There and back is the same request, whatever the words mean."""
    request = BackboneRequest(kind, symbols, text, text, text, count, priority)
    assert BackboneRequest.from_json(request.to_json()) == request
    assert BackboneRequest.from_dict(request.to_dict()) == request
    assert BackboneRequest.from_json(request.to_json().encode()) == request
    assert hash(BackboneRequest.from_dict(request.to_dict())) == hash(request)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "5", '{"symbols": ["KRW-BTC"]}', '{"data_type": "candles", "symbols": ["A"], "market": "B"}',
     b"\xff\xfe", "[" * 100_000, None],
)  # fmt: skip
def test_text_that_is_no_request_is_refused(text: Any) -> None:
    """A wrong name is refused too: it would be a question that was not asked."""
    with pytest.raises(InputError):
        BackboneRequest.from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"success": true}',
        json.dumps({"success": True, "data": [], "metadata": [], "error": None, "request_id": "a"}),
    ],
)
def test_text_that_is_no_response_is_refused(text: str) -> None:
    """Something is missing."""
    with pytest.raises(InputError):
        BackboneResponse.from_json(text)


def test_response_with_further_names_is_read() -> None:
    """A newer sender may say more."""
    response = BackboneResponse(True, [], BackboneMetadata("rest", False, 1.0, 0, "high"), None, "a1")
    more = {**response.to_dict(), "trace": 5, "metadata": {**response.to_dict()["metadata"], "host": "x"}}
    assert BackboneResponse.from_dict(more) == response
    assert BackboneResponse.from_dict(UserDict(more)) == response  # any mapping is one


@pytest.mark.parametrize("data", [None, 5, [1], "text"])
def test_what_is_no_mapping_is_no_response(data: Any) -> None:
    """The error says what a response is made of."""
    with pytest.raises(InputError, match="to_dict"):
        BackboneResponse.from_dict(data)


def test_forms_are_frozen_and_have_the_protocols_fields() -> None:
    """The fields of the original protocol, in its order; nothing can be changed afterwards."""

    def names(cls: Any) -> str:
        return " ".join(each.name for each in dataclasses.fields(cls))

    assert names(BackboneRequest) == "data_type symbols timeframe start_time end_time count priority request_id"
    assert names(BackboneResponse) == "success data metadata error request_id"
    assert names(BackboneMetadata) == "source_layer cache_hit processing_time_ms data_count priority_used split_info"
    request = BackboneRequest("candles", "KRW-BTC", request_id="a1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.count = 5  # type: ignore[misc]
    changed = dataclasses.replace(request, count=5)
    assert (changed.count, changed.request_id) == (5, "a1")
    assert BackboneRequest("candles", "KRW-BTC") != BackboneRequest("candles", "KRW-BTC")  # ids differ
    assert {"BackboneRequest", "BackboneResponse", "BackboneMetadata"} <= set(backbone.__all__)
