"""Socket sessions over loopback: subscriptions, keep-alive, limits, errors and scripted trouble."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import requests
import websocket

from backbone.simulator import SimulatorServer
from tests.benchmarks.flood import flooded
from tests.simulator.conftest import NOW, Connect

ABNORMAL = (ConnectionError, websocket.WebSocketConnectionClosedException)


def _subscribe(socket: websocket.WebSocket, *wants: dict[str, Any], form: str | None = None) -> None:
    parts: list[dict[str, Any]] = [{"ticket": "test"}, *wants]
    socket.send(json.dumps(parts if form is None else [*parts, {"format": form}]))


def _want(kind: str, *codes: str, **options: Any) -> dict[str, Any]:
    return {"type": kind, "codes": list(codes), **options}


def _next(socket: websocket.WebSocket) -> Any:
    opcode, data = socket.recv_data()
    assert opcode == websocket.ABNF.OPCODE_BINARY
    return json.loads(data)


def _sends_nothing(socket: websocket.WebSocket, seconds: float = 0.3) -> bool:
    socket.settimeout(seconds)
    try:
        socket.recv()
    except websocket.WebSocketTimeoutException:
        return True
    finally:
        socket.settimeout(5)
    return False


def test_upgrade_reply_has_the_connection_budget(connect: Connect) -> None:
    """`group=websocket; min=300`, counted down from four."""
    headers = connect().headers
    assert headers["remaining-req"] == "group=websocket; min=300; sec=4"
    assert headers["date"] == "Fri, 22 Aug 2025 09:00:30 GMT"


def test_snapshot_comes_first_then_realtime(connect: Connect, clean: SimulatorServer) -> None:
    """Binary frames, no acknowledgement, no frame for unknown and lower-case codes."""
    socket = connect()
    _subscribe(socket, _want("trade", "KRW-BTC", "krw-eth", "KRW-NOPE"))
    first = _next(socket)
    assert (first["type"], first["code"], first["stream_type"]) == ("trade", "KRW-BTC", "SNAPSHOT")
    assert _sends_nothing(socket)
    clean.clock.advance(5)
    frames = [_next(socket) for _ in range(3)]
    assert {f["stream_type"] for f in frames} == {"REALTIME"}
    assert first["sequential_id"] < frames[0]["sequential_id"] < frames[1]["sequential_id"]


def test_flags_leave_out_snapshot_or_realtime(connect: Connect, clean: SimulatorServer) -> None:
    """Each on its own."""
    only_snapshot, only_realtime = connect(), connect()
    _subscribe(only_snapshot, _want("ticker", "KRW-BTC", is_only_snapshot=True))
    _subscribe(only_realtime, _want("ticker", "KRW-BTC", isOnlyRealtime=True))
    assert _next(only_snapshot)["stream_type"] == "SNAPSHOT"
    assert _sends_nothing(only_realtime)
    clean.clock.advance(5)
    assert _next(only_realtime)["stream_type"] == "REALTIME"
    assert _sends_nothing(only_snapshot)


def test_new_subscription_replaces_the_old(connect: Connect, clean: SimulatorServer) -> None:
    """Whole, not added."""
    socket = connect()
    _subscribe(socket, _want("trade", "KRW-BTC"), _want("orderbook", "KRW-BTC"))
    assert {_next(socket)["type"] for _ in range(2)} == {"trade", "orderbook"}
    _subscribe(socket, _want("trade", "KRW-ETH"))
    assert _next(socket)["code"] == "KRW-ETH"
    clean.clock.advance(30)
    assert {_next(socket)["code"] for _ in range(5)} == {"KRW-ETH"}


def test_books_are_whole_cut_to_depth_and_grouped(connect: Connect, clean: SimulatorServer) -> None:
    """`.5` cuts, `level` groups; on a BTC market a level is ignored without an error."""
    socket = connect()
    _subscribe(
        socket,
        _want("orderbook", "KRW-BTC.5"),
        _want("orderbook", "KRW-BTC", "BTC-ETH", level=1_000_000),
        form="SIMPLE",
    )
    small, grouped = _next(socket), _next(socket)
    assert (len(small["obu"]), small["lv"], small["cd"]) == (5, 0, "KRW-BTC")
    assert (len(grouped["obu"]), grouped["lv"]) == (30, 1_000_000)
    assert _sends_nothing(socket)
    clean.clock.advance(1)
    assert len(_next(socket)["obu"]) in (5, 30)


def test_list_formats_wrap_frames_in_arrays(connect: Connect, clean: SimulatorServer) -> None:
    """One or more objects a frame."""
    socket = connect()
    _subscribe(socket, _want("ticker", "KRW-BTC", "KRW-ETH"), form="JSON_LIST")
    assert [one["code"] for one in _next(socket)] == ["KRW-BTC", "KRW-ETH"]
    _subscribe(socket, _want("ticker", "KRW-BTC"), form="SIMPLE_LIST")
    assert _next(socket)[0]["cd"] == "KRW-BTC"
    clean.clock.advance(5)
    assert _next(socket)[0]["st"] == "REALTIME"


def test_listing_answers_and_switches_the_format(connect: Connect, clean: SimulatorServer) -> None:
    """LIST_SUBSCRIPTIONS with another format changes the live stream's too."""
    socket = connect()
    _subscribe(socket, _want("trade", "KRW-BTC", is_only_realtime=True))
    _subscribe(socket, {"method": "LIST_SUBSCRIPTIONS"}, form="SIMPLE")
    assert _next(socket)["rslt"] == [{"ty": "trade", "cds": ["KRW-BTC"]}]
    clean.clock.advance(5)
    assert _next(socket)["ty"] == "trade"


def test_error_frame_is_followed_by_a_normal_close(connect: Connect) -> None:
    """Code 1000, a moment later."""
    socket = connect()
    begin = time.monotonic()
    _subscribe(socket, _want("nope", "KRW-BTC"))
    assert _next(socket)["error"]["name"] == "INVALID_PARAM"
    opcode, data = socket.recv_data()
    assert (opcode, data[:2]) == (websocket.ABNF.OPCODE_CLOSE, (1000).to_bytes(2))
    assert time.monotonic() - begin >= 0.15


def test_private_sockets_want_a_token(connect: Connect) -> None:
    """INVALID_AUTH, then the close."""
    assert _next(connect("/private"))["error"]["name"] == "INVALID_AUTH"


def test_text_ping_starts_the_status_and_protocol_ping_gets_its_pong(connect: Connect) -> None:
    """`PING` → `{"status":"UP"}`; ping → pong with the same payload."""
    socket = connect()
    socket.send("PING")
    assert _next(socket) == {"status": "UP"}
    socket.ping(b"beat")
    assert socket.recv_data(control_frame=True) == (websocket.ABNF.OPCODE_PONG, b"beat")


def test_idle_socket_is_cut_without_a_close_frame() -> None:
    """Seen as 1006; a ping in time keeps it."""
    with SimulatorServer(now=NOW, frozen=True, idle_s=0.4) as server:
        idle, kept = (websocket.create_connection(server.ws_url, timeout=5, suppress_origin=True) for _ in range(2))
        begin = time.monotonic()
        while time.monotonic() - begin < 0.6:
            kept.ping()
            kept.recv_data(control_frame=True)
        with pytest.raises(ABNORMAL):
            idle.recv()
        kept.ping()
        assert kept.recv_data(control_frame=True)[0] == websocket.ABNF.OPCODE_PONG
        idle.shutdown()
        kept.shutdown()


def test_messages_are_limited_to_five_a_second() -> None:
    """The sixth is an error frame and the end."""
    with SimulatorServer(now=NOW, frozen=True) as server:
        socket = websocket.create_connection(server.ws_url, timeout=5, suppress_origin=True)
        for _ in range(12):  # two seconds may meet in the middle
            socket.send(json.dumps([{"ticket": "t"}, {"method": "LIST_SUBSCRIPTIONS"}]))
        answers = [_next(socket)]
        while "error" not in answers[-1]:
            answers.append(_next(socket))
        assert answers[-1]["error"]["name"] == "Too Many Requests"
        assert 6 <= len(answers) <= 11
        socket.shutdown()


def test_connections_are_limited_to_five_a_second() -> None:
    """The sixth upgrade within a second is a 429."""
    with SimulatorServer(now=NOW, frozen=True, window="sliding") as server:
        sockets = [websocket.create_connection(server.ws_url, timeout=5, suppress_origin=True) for _ in range(5)]
        with pytest.raises(websocket.WebSocketBadStatusException) as caught:
            websocket.create_connection(server.ws_url, timeout=5, suppress_origin=True)
        assert caught.value.status_code == 429
        assert server.counts()["websocket"] == {101: 5, 429: 1}
        for socket in sockets:
            socket.shutdown()


def test_origin_header_draws_on_its_own_bucket(connect: Connect) -> None:
    """What a library sends by default: one connection in ten seconds."""
    first = connect(suppress_origin=False)
    assert first.headers["remaining-req"] == "group=origin; min=6; sec=0"
    with pytest.raises(websocket.WebSocketBadStatusException):
        connect(suppress_origin=False)


def test_plain_request_to_the_socket_path_is_unrouted(clean: SimulatorServer) -> None:
    """And so is an unknown socket path."""
    assert requests.get(clean.rest_url + "/websocket/v1", timeout=5).status_code == 404
    assert requests.get(clean.rest_url + "/websocket/v9", timeout=5).status_code == 404


def test_scripted_drop_stall_garbage_and_refusal(connect: Connect, clean: SimulatorServer) -> None:
    """Each once, then all is well again."""
    clean.faults.add("ws-refuse", status=503)
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        connect()
    assert caught.value.status_code == 503
    socket = connect()
    clean.faults.add("ws-garbage")
    _subscribe(socket, _want("ticker", "KRW-BTC"))
    with pytest.raises(json.JSONDecodeError):
        _next(socket)
    assert _next(socket)["type"] == "ticker"
    clean.faults.add("ws-slow", seconds=0.3)
    begin = time.monotonic()
    _subscribe(socket, _want("ticker", "KRW-BTC"))
    assert _next(socket)["type"] == "ticker"
    assert time.monotonic() - begin >= 0.3
    clean.faults.add("ws-stall", seconds=0.5)
    _subscribe(socket, _want("ticker", "KRW-BTC"))
    socket.ping()
    assert _sends_nothing(socket)
    clean.faults.add("ws-drop", after=1)
    other = connect()
    _subscribe(other, _want("ticker", "KRW-BTC", "KRW-ETH"))
    assert _next(other)["code"] == "KRW-BTC"
    with pytest.raises(ABNORMAL):
        _next(other)


def test_pulled_plug_drops_sockets_and_lets_them_back(connect: Connect, clean: SimulatorServer) -> None:
    """As the venue going away and coming back."""
    socket = connect()
    _subscribe(socket, _want("ticker", "KRW-BTC"))
    assert _next(socket)
    clean.pause()
    with pytest.raises(ABNORMAL):
        socket.recv()
    with pytest.raises(OSError):
        connect()
    clean.resume()
    again = connect()
    _subscribe(again, _want("ticker", "KRW-BTC"))
    assert _next(again)["stream_type"] == "SNAPSHOT"


def test_clock_set_back_does_not_stop_the_stream(connect: Connect, clean: SimulatorServer) -> None:
    """It starts over from there."""
    socket = connect()
    _subscribe(socket, _want("trade", "KRW-BTC"))
    late = _next(socket)
    clean.clock.advance(5)
    clean.clock.set("2025-08-22T08:00:00Z")
    hub, deadline = clean._hub, time.monotonic() + 30
    while hub is not None and hub._at_us > clean.clock.now_us():
        assert time.monotonic() < deadline, "it was not noticed"
        time.sleep(0.002)
    clean.clock.advance(5)
    while (frame := _next(socket))["trade_date"] == late["trade_date"] and frame["trade_time"] > "08:30":
        pass
    assert frame["trade_time"].startswith("08:00:0")


def test_running_clock_streams_by_itself() -> None:
    """Accelerated sixty times, a minute's candle states arrive within seconds."""
    with SimulatorServer(now=NOW, speed=60) as server:
        socket = websocket.create_connection(server.ws_url, timeout=5, suppress_origin=True)
        _subscribe(socket, _want("candle.1m", "KRW-BTC", is_only_realtime=True))
        labels = {_next(socket)["candle_date_time_utc"] for _ in range(80)}
        assert len(labels) >= 2
        socket.shutdown()


def test_flood_sends_stamped_frames_at_the_rate_asked_for(connect: Connect, clean: SimulatorServer) -> None:
    """Well-formed, of the subscribed types, until it is ended."""
    socket = connect()
    _subscribe(socket, _want("ticker", "KRW-BTC", "KRW-ETH"), _want("orderbook", "KRW-BTC"))
    for _ in range(3):
        _next(socket)
    with flooded(clean, 2000, kinds=("ticker",)) as sent:
        frames = [_next(socket) for _ in range(400)]
    assert {f["type"] for f in frames} == {"ticker"}
    assert {f["code"] for f in frames} == {"KRW-BTC", "KRW-ETH"}
    assert {f["timestamp"] for f in frames} == {clean.clock.now_us() // 1000}
    assert sent[0] >= 400


def test_stream_sends_states_and_coming_delistings_and_odd_frames() -> None:
    """`market_state` and `delisting_date` on each ticker; a scripted field that is null, in one frame only."""
    with SimulatorServer(now=NOW, frozen=True, markets=["KRW-BTC", "KRW-ETH"]) as server:
        server.faults.add("describe", market="KRW-BTC", state="PREVIEW")
        server.faults.add("delist", market="KRW-ETH", at="2025-08-25T03:00:00Z")
        server.faults.add("ws-odd", match="KRW-BTC", field="opening_price")
        socket = websocket.create_connection(server.ws_url, timeout=5, suppress_origin=True)
        _subscribe(socket, _want("ticker", "KRW-BTC", "KRW-ETH", is_only_snapshot=True))
        rows = {row["code"]: row for row in (_next(socket), _next(socket))}
        assert (rows["KRW-BTC"]["market_state"], rows["KRW-BTC"]["delisting_date"]) == ("PREVIEW", None)
        assert (rows["KRW-ETH"]["market_state"], rows["KRW-ETH"]["delisting_date"]) == ("ACTIVE", "2025-08-25")
        assert rows["KRW-BTC"]["opening_price"] is None
        _subscribe(socket, _want("ticker", "KRW-BTC", is_only_snapshot=True))
        assert _next(socket)["opening_price"] > 0
        socket.shutdown()
