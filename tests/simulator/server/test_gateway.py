"""What becomes of a request: headers, compression, refusals, faults, time on the way."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
import requests

from backbone.simulator import Exchange, SimulatorServer
from backbone.simulator.server.gateway import Gateway
from tests.recordings import recordings
from tests.simulator.conftest import NOW, NOW_US, Get, burst

__all__ = ["recordings"]
CANDLES = "/v1/candles/minutes/1"


def test_answer_is_the_exchanges_as_bare_json(get: Get, exchange: Exchange) -> None:
    """The rows of `Exchange.candles`, nothing round them."""
    reply = get(CANDLES, market="KRW-BTC", count=200)
    assert reply.status_code == 200
    assert reply.json() == exchange.candles("KRW-BTC", "1m", None, 200, NOW_US)


def test_headers_are_the_venues(get: Get) -> None:
    """Date of the exchange's own clock, Remaining-Req, weak ETag, no caching."""
    headers = get(CANDLES, market="KRW-BTC").headers
    assert headers["Date"] == "Fri, 22 Aug 2025 09:00:30 GMT"
    assert headers["Content-Type"] == "application/json;charset=UTF-8"
    assert headers["Remaining-Req"].startswith("group=candles; min=")
    assert headers["Limit-By-Ip"] == "Yes"
    assert headers["ETag"].startswith('W/"')
    assert headers["Cache-Control"] == "no-cache, no-store, max-age=0, must-revalidate"
    assert headers["Pragma"] == "no-cache"
    assert headers["Expires"] == "0"


def test_compression_happens_when_asked_for(get: Get) -> None:
    """Same body either way."""
    query = {"market": "KRW-BTC", "count": 200}
    zipped = get(CANDLES, headers={"Accept-Encoding": "gzip"}, **query)
    plain = get(CANDLES, headers={"Accept-Encoding": "identity"}, **query)
    assert zipped.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.headers
    assert zipped.content == plain.content
    assert int(zipped.headers["Content-Length"]) < len(plain.content) / 4


def test_unrouted_path_is_the_gateways_404(get: Get) -> None:
    """A string `name`, and no Remaining-Req."""
    reply = get("/v1/nope")
    assert reply.status_code == 404
    assert reply.text == '{"error":{"name":"not_found","message":"no Route matched with those values"}}'
    assert "Remaining-Req" not in reply.headers


def test_recorded_refusals_are_repeated_byte_for_byte(get: Get, recordings: Path) -> None:
    """The seven requests that were recorded at the venue, status and body."""
    recorded = json.loads((recordings / "raw/rest/nemanull_errors_2026-09-23.json").read_text())
    assert len(recorded) == 7
    for one in recorded:
        reply = get(one["request"].removeprefix("GET "))
        assert (reply.status_code, reply.text) == (one["status"], one["body"])
        assert ("Remaining-Req" in reply.headers) == ("/nope" not in one["request"])


@pytest.mark.parametrize(
    ("file", "path", "query"),
    [("maxt_ticker_KRW-BTC_2026-07-30", "/v1/ticker", {"markets": "KRW-BTC"}),
     ("maxt_trades_ticks_KRW-BTC_2026-07-30", "/v1/trades/ticks", {"market": "KRW-BTC"}),
     ("maxt_candles_years_KRW-BTC_2026-08", "/v1/candles/years", {"market": "KRW-BTC"}),
     ("ericsj1998_candles_days_KRW-BTC_2026-08-03", "/v1/candles/days", {"market": "KRW-BTC"}),
     ("ericsj1998_candles_minutes5_KRW-BTC_2026-08-03", "/v1/candles/minutes/5", {"market": "KRW-BTC"}),
     ("ericsj1998_orderbook_KRW-BTC_2026-08-06", "/v1/orderbook", {"markets": "KRW-BTC"}),
     ("maxt_market_all_details_4-markets_2026-07-30", "/v1/market/all", {"is_details": "true"})],
)  # fmt: skip
def test_rows_have_the_recorded_fields_in_their_order(
    get: Get, recordings: Path, file: str, path: str, query: dict[str, str]
) -> None:
    """Names, order and JSON types of each endpoint are the venue's."""
    recorded = json.loads((recordings / f"raw/rest/{file}.json").read_text())[0]
    row = get(path, **query).json()[0]
    assert list(row) == list(recorded)
    numbers = (int, float)
    for name, value in recorded.items():
        assert isinstance(row[name], numbers if isinstance(value, numbers) else type(value)), name
    if path == "/v1/orderbook":
        assert list(row["orderbook_units"][0]) == list(recorded["orderbook_units"][0])
        assert isinstance(row["orderbook_units"][0]["bid_price"], int)


def test_eleventh_request_of_a_second_is_refused_in_plain_text() -> None:
    """Ten pass, the next is 429 with a body that is not JSON, until the second is over."""
    with SimulatorServer(now=NOW, frozen=True, window="sliding", limit=10) as server:
        replies = burst(server.rest_url, 11)
        assert [r.status_code for r in replies] == [200] * 10 + [429]
        assert replies[-1].text == "Too many API requests."
        assert replies[-1].headers["Remaining-Req"] == "group=candles; min=600; sec=0"
        assert server.counts() == {"candles": {200: 10, 429: 1}}
        assert server.peak("candles") == 11
        assert [one.status for one in server.requests][-1] == 429


def test_refusal_can_be_json_and_ends_in_a_block_that_states_its_time() -> None:
    """429 as JSON; twenty of them are a 418 for every group, with the seconds in the text."""
    with SimulatorServer(
        now=NOW, frozen=True, window="sliding", limit=1, refusal="json", ban_after=3, ban_s=30
    ) as server:
        replies = burst(server.rest_url, 5)
        assert [r.status_code for r in replies] == [200, 429, 429, 418, 418]
        assert replies[1].json() == {"error": {"name": 429, "message": "Too many API requests."}}
        assert "30 seconds" in replies[3].json()["error"]["message"]
        assert requests.get(server.rest_url + "/v1/market/all", timeout=5).status_code == 418
        server.reset_limits()
        assert requests.get(server.rest_url + "/v1/market/all", timeout=5).status_code == 200


def test_origin_header_costs_the_origin_bucket(get: Get) -> None:
    """One in ten seconds, whatever the group; without the header nothing happens."""
    origin = {"Origin": "https://example.com"}
    first = get("/v1/ticker", headers=origin, markets="KRW-BTC")
    assert first.headers["Remaining-Req"] == "group=origin; min=6; sec=0"
    assert get(CANDLES, headers=origin, market="KRW-BTC").status_code == 429
    assert get(CANDLES, market="KRW-BTC").status_code == 200


def test_cold_connection_costs_two_round_trips_and_a_warm_one_costs_one() -> None:
    """As a venue that far away would; the clock is real, so only lower bounds are sure."""
    with SimulatorServer(now=NOW, frozen=True, latency_s=0.08) as server, requests.Session() as session:
        session.trust_env = False
        took: list[float] = []
        while len(took) < 2 or (took[-1] >= 0.16 and len(took) < 20):  # a warm one, undisturbed
            begin = time.monotonic()
            session.get(server.rest_url + CANDLES, params={"market": "KRW-BTC"}, timeout=5)
            took.append(time.monotonic() - begin)
    assert took[0] >= 0.16
    assert min(took[1:]) >= 0.08
    assert took[-1] < 0.16


def test_computing_an_answer_is_a_part_of_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a trip there (a whole one more to connect); what is left of the other half once the answer is computed."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    def slow(*args: object, **options: object) -> list[object]:
        time.sleep(0.05)
        return []

    monkeypatch.setattr(Gateway, "_pause_for", staticmethod(pause))
    with SimulatorServer(now=NOW, frozen=True, latency_s=2.0) as server:
        monkeypatch.setattr(server.exchange, "candles", slow)
        requests.get(server.rest_url + CANDLES, params={"market": "KRW-BTC"}, timeout=5)
    there, back = pauses
    assert there == pytest.approx(3.0)
    assert 1.0 < back <= 4.0 - 0.05  # counted from when it was due, however early it was taken up


def test_faults_of_the_transport(get: Get, clean: SimulatorServer) -> None:
    """Reset, cut and stall are what they are called, and the next request is answered."""
    query = {"market": "KRW-BTC", "count": 200}
    clean.faults.add("reset")
    with pytest.raises(requests.ConnectionError, match="reset"):
        get(CANDLES, **query)
    clean.faults.add("cut", at=0.3)
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
        get(CANDLES, **query)
    clean.faults.add("stall", seconds=0.2)
    begin = time.monotonic()
    with pytest.raises(requests.ConnectionError):
        get(CANDLES, **query)
    assert time.monotonic() - begin >= 0.2
    clean.faults.add("slow", seconds=0.2)
    begin = time.monotonic()
    assert get(CANDLES, **query).status_code == 200
    assert time.monotonic() - begin >= 0.2


def test_faults_of_the_answer(get: Get, clean: SimulatorServer, exchange: Exchange) -> None:
    """Statuses, bodies and spellings, each once."""
    query = {"market": "KRW-BTC", "count": 50}
    good = exchange.candles("KRW-BTC", "1m", None, 50, NOW_US)
    clean.faults.add("500")
    assert get(CANDLES, **query).status_code == 500
    clean.faults.add("502-html")
    bad_gateway = get(CANDLES, **query)
    assert (bad_gateway.status_code, bad_gateway.headers["Content-Type"]) == (502, "text/html")
    clean.faults.add("429", body="json")
    assert get(CANDLES, **query).json()["error"]["name"] == 429
    clean.faults.add("garbage")
    with pytest.raises(requests.JSONDecodeError):
        get(CANDLES, **query).json()
    clean.faults.add("numbers")
    other = get(CANDLES, **query)
    assert "E8" in other.text
    assert other.json() == good
    clean.faults.add("gzip-off")
    assert "Content-Encoding" not in get(CANDLES, **query).headers
    clean.faults.add("short", rows=7)
    assert get(CANDLES, **query).json() == good[:7]
    clean.faults.add("418", seconds=30)
    assert "30 seconds" in get(CANDLES, **query).text
    clean.reset_limits()
    assert get(CANDLES, **query).json() == good
    assert [kind for kind, _ in clean.faults.log][-1] == "418"


def test_late_fault_hides_the_newest_trades(get: Get, clean: SimulatorServer) -> None:
    """Just after the minute its candle still lacks its end; asked again, it is whole."""
    clean.clock.set("2025-08-22T09:01:00.500Z")
    clean.faults.add("late", seconds=20)
    early, whole = (get(CANDLES, market="KRW-BTC", count=3, to="2025-08-22T09:01:00Z").json()[0] for _ in range(2))
    assert early["candle_date_time_utc"] == whole["candle_date_time_utc"] == "2025-08-22T09:00:00"
    assert early["candle_acc_trade_volume"] < whole["candle_acc_trade_volume"]


def test_slow_computation_does_not_hold_up_other_requests() -> None:
    """Years of candles are folded on the worker while a light question is answered."""
    with SimulatorServer(now=NOW, frozen=True) as server:
        heavy = threading.Thread(
            target=lambda: requests.get(
                server.rest_url + "/v1/candles/weeks", params={"market": "KRW-BTC", "count": 100}, timeout=30
            )
        )
        heavy.start()
        assert requests.get(server.rest_url + "/v1/market/all", timeout=5).status_code == 200
        heavy.join()
        assert [one.group for one in server.requests] == ["market", "candles"]


@pytest.mark.parametrize("status", [414, 431, 400])
def test_gate_refuses_long_addresses_as_a_proxy_does(get: Get, clean: SimulatorServer, status: int) -> None:
    """With a page, not with JSON; a shorter address passes."""
    clean.faults.add("gate", limit=100, status=status, times=None)
    long = get("/v1/ticker", markets=",".join(["KRW-BTC"] * 20))
    assert (long.status_code, long.headers["Content-Type"]) == (status, "text/html")
    assert get("/v1/ticker", markets="KRW-BTC").status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/market/all", "/v1/ticker/all", "/v1/orderbook", "/v1/trades/ticks", "/v1/candles/days"]
)
@pytest.mark.parametrize(("kind", "rows"), [("empty", 0), ("short", 1)])
def test_any_list_can_be_short_or_empty(get: Get, clean: SimulatorServer, path: str, kind: str, rows: int) -> None:
    """Status 200, fewer rows."""
    query = {"market": "KRW-BTC", "markets": "KRW-BTC,KRW-ETH", "quote_currencies": "KRW", "count": 9}
    clean.faults.add(kind, match=path, rows=1)
    answer = get(path, **query)
    assert (answer.status_code, len(answer.json())) == (200, rows)
    assert len(get(path, **query).json()) > 1
