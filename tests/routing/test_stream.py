"""The stream: one thread, one socket, and no outage that goes unnoticed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.clock import SystemClock
from backbone.errors import (
    BackboneError,
    ClosedError,
    InputError,
    RateLimitedError,
    RejectedError,
    StreamClosedError,
    UnreachableError,
)
from backbone.model import LiveCandle, Ticker, Trade
from backbone.routing import stream as stream_module
from backbone.routing.stream import Stream, StreamState, backoff_s
from backbone.routing.wire import LiveRecord
from tests.routing.socket_venue import Peer, SocketVenue, eventually, frame
from tests.routing.test_wire import BOOK_ROW, CANDLE_FRAME, TICKER_ROW, TRADE_ROW, frame_of


def ticker(market: str = "KRW-BTC", stream: str = "REALTIME", **changes: Any) -> dict[str, Any]:
    return frame_of("ticker", TICKER_ROW | {"market": market}, stream, **changes)


def send_snapshots(peer: Peer, asked: Any) -> None:
    """Answer a subscription with one snapshot per ticker code."""
    for part in asked:
        if part.get("type") == "ticker":
            peer.send(*(ticker(code, "SNAPSHOT") for code in part["codes"]))


class Shifted(SystemClock):
    """The machine's clock, movable."""

    ahead_s = 0.0

    def now_us(self) -> int:
        return super().now_us() + int(self.ahead_s * 1e6)

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


class Listener:
    """Keeps what a stream says."""

    def __init__(self, url: str, **options: Any) -> None:
        self.clock = Shifted()
        self.records: list[tuple[LiveRecord, float, bool]] = []
        self.states: list[StreamState] = []
        self.fault: BaseException | None = None
        self.stream = Stream(
            url, clock=self.clock, sink=self.take, on_state=self.states.append, jitter=lambda: 0.0, **options
        )

    def take(self, record: LiveRecord, received_s: float, is_snapshot: bool) -> None:
        if self.fault is not None:
            raise self.fault
        self.records.append((record, received_s, is_snapshot))

    def markets(self) -> list[str]:
        return [record.market for record, _, _ in self.records]

    def phases(self) -> list[str]:
        return [state.phase for state in self.states]

    def skip(self, seconds: float) -> None:
        """Let time pass, all at once, and have the thread look at the clock."""
        self.clock.ahead_s += seconds
        self.stream._wake()
        with self.stream._condition:
            self.stream._condition.notify_all()

    def until(self, phase: str) -> StreamState:
        state: StreamState = eventually(lambda: self.stream.state.phase == phase and self.stream.state)
        return state


@pytest.fixture
def venue() -> Iterator[SocketVenue]:
    server = SocketVenue()
    server.on_ask = send_snapshots
    yield server
    server.close()


@pytest.fixture
def listener(venue: SocketVenue, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.setattr(stream_module, "CONNECT_S", 0.05)
    made = Listener(venue.url)
    yield made
    made.stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "backbone-stream"]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


# --------------------------------------------------------------------------------------------- staying away


@given(st.integers(1, 10_000), st.floats(0, 0.999))
def test_backoff_keeps_its_bounds(failures: int, jitter: float) -> None:
    """Never longer than what notices a return in time; never shorter than the venue said."""
    assert 0.25 <= backoff_s(failures, UnreachableError("x"), jitter) <= stream_module.NEAR_S
    assert 0.25 <= backoff_s(failures, StreamClosedError("x"), jitter) <= stream_module.FAR_S
    limited = RateLimitedError("x", retry_after_s=77.0, banned=True)
    assert 77.0 <= backoff_s(failures, limited, jitter) <= 77.0 * 1.25


def test_backoff_grows_and_is_spread() -> None:
    """Each failure doubles it up to the bound, and jitter spreads it over half of it."""
    calm = [backoff_s(n, StreamClosedError("x"), 0.0) for n in range(1, 8)]
    assert calm == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert backoff_s(7, StreamClosedError("x"), 0.999) == pytest.approx(30, abs=0.1)
    assert backoff_s(9, RateLimitedError("x"), 0.0) == stream_module.FAR_S


# ---------------------------------------------------------------------------------------------- subscribing


def test_stream_unused_has_no_thread_and_no_connection(venue: SocketVenue, listener: Listener) -> None:
    """Making a stream touches nothing."""
    assert listener.stream.state.phase == "stopped"
    assert repr(listener.stream) == f"<Stream {venue.url} stopped, 0 subscriptions, 0 frames>"
    assert not venue.peers
    assert "backbone-stream" not in [thread.name for thread in threading.enumerate()]


def test_stream_asks_with_one_frame_and_without_origin(venue: SocketVenue, listener: Listener) -> None:
    """The handshake has no ``Origin``; kinds and codes of all keys go into one array."""
    listener.stream.subscribe("table", "ticker", ["krw-btc", "KRW-ETH", "KRW-BTC"])
    listener.stream.subscribe("chart", "candle.1h", ["KRW-BTC"])
    peer = eventually(lambda: venue.peers and venue.peers[0].asked and venue.peers[0])
    assert peer.head[0] == "GET /websocket/v1 HTTP/1.1"
    assert not [line for line in peer.head if line.lower().startswith("origin")]
    eventually(lambda: len(peer.asked[-1]) == 4)
    ticket, tickers, candles, fmt = peer.asked[-1]
    assert list(ticket) == ["ticket"]
    assert tickers == {"type": "ticker", "codes": ["KRW-BTC", "KRW-ETH"]}
    assert candles == {"type": "candle.60m", "codes": ["KRW-BTC"]}
    assert fmt == {"format": "DEFAULT"}
    assert listener.stream.subscriptions == {"ticker": ("KRW-BTC", "KRW-ETH"), "candle.60m": ("KRW-BTC",)}


def test_stream_hands_records_to_the_sink(venue: SocketVenue, listener: Listener) -> None:
    """Snapshots are marked, text frames pass as well as binary ones, every kind arrives."""
    before = time.monotonic()
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    eventually(lambda: listener.records)
    (peer,) = venue.peers
    trade = frame_of("trade", TRADE_ROW, trade_timestamp=1785397260652)
    peer.send_bytes(frame(json.dumps(trade).encode(), 1))
    peer.send(ticker(), ticker("KRW-ETH"), CANDLE_FRAME, {"status": "UP"})
    eventually(lambda: len(listener.records) == 5)
    kinds = [type(record) for record, _, _ in listener.records]
    assert kinds == [Ticker, Trade, Ticker, Ticker, LiveCandle]
    assert [is_snapshot for _, _, is_snapshot in listener.records] == [True, False, False, False, False]
    assert all(before <= received_s <= time.monotonic() for _, received_s, _ in listener.records)
    state = listener.until("streaming")
    assert (state.reconnects, state.garbage, state.last_error, state.gap) == (0, 0, None, None)
    assert eventually(lambda: listener.stream.state.frames == 6)


def test_subscriptions_of_all_keys_are_one_union(venue: SocketVenue, listener: Listener) -> None:
    """A key replaces its own wants only; what two want survives when one goes."""
    stream = listener.stream
    stream.subscribe("a", "ticker", ["KRW-BTC", "KRW-ETH"])
    stream.subscribe("b", "ticker", ["KRW-ETH", "KRW-XRP"])
    stream.subscribe("b", "trade", ["KRW-XRP"])
    stream.subscribe("a", "ticker", ["KRW-SOL"])
    assert stream.subscriptions == {"ticker": ("KRW-SOL", "KRW-ETH", "KRW-XRP"), "trade": ("KRW-XRP",)}
    stream.unsubscribe("b", "trade")
    stream.unsubscribe("a")
    assert stream.subscriptions == {"ticker": ("KRW-ETH", "KRW-XRP")}


def test_subscription_changes_are_gathered_within_the_message_limit(
    venue: SocketVenue, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty changes in a moment are a few frames, a second apart, and the last one has them all."""
    monkeypatch.setattr(stream_module, "MESSAGE_S", 0.3)
    for i in range(50):
        listener.stream.subscribe(i, "ticker", [f"KRW-{i:02d}"])
    eventually(lambda: len(set(listener.markets())) == 50)
    (peer,) = venue.peers
    assert len(peer.asked) <= 3
    gaps = [b - a for a, b in zip(peer.asked_at, peer.asked_at[1:], strict=False)]
    assert all(gap >= 0.25 for gap in gaps)
    assert len(peer.asked[-1][1]["codes"]) == 50


def test_subscription_that_changes_nothing_is_not_sent(venue: SocketVenue, listener: Listener) -> None:
    """A second table of the same markets costs no message."""
    listener.stream.subscribe("a", "ticker", ["KRW-BTC"])
    eventually(lambda: listener.records)
    listener.stream.subscribe("b", "ticker", ["KRW-BTC"])
    listener.skip(5)
    time.sleep(0.05)
    assert len(venue.peers[0].asked) == 1


def test_last_unsubscribe_ends_thread_and_connection_politely(venue: SocketVenue, listener: Listener) -> None:
    """Nobody wants anything: a close frame, no thread; the next subscription starts anew, without a gap."""
    listener.stream.subscribe("a", "ticker", ["KRW-BTC"])
    eventually(lambda: listener.records)
    listener.stream.unsubscribe("a")
    assert listener.stream.state.phase == "stopped"
    assert "backbone-stream" not in [thread.name for thread in threading.enumerate()]
    eventually(lambda: (8, b"\x03\xe8") in venue.peers[0].controls)
    listener.stream.subscribe("a", "ticker", ["KRW-ETH"])
    eventually(lambda: "KRW-ETH" in listener.markets())
    assert not [state for state in listener.states if state.gap]
    listener.stream.unsubscribe("nobody")


@pytest.mark.parametrize("wrong", [("tickers", ["KRW-BTC"]), ("ticker", []), ("candle.1d", ["KRW-BTC"])])
def test_subscription_to_the_unknown_is_an_input_error(listener: Listener, wrong: tuple[str, list[str]]) -> None:
    """Unknown kinds and empty lists are refused at once, before any thread starts."""
    with pytest.raises(InputError):
        listener.stream.subscribe("k", *wrong)
    assert listener.stream.state.phase == "stopped"


def test_closed_stream_stays_closed(venue: SocketVenue, listener: Listener) -> None:
    """Closing twice is fine; subscribing afterwards is an error."""
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    eventually(lambda: listener.records)
    listener.stream.close()
    listener.stream.close()
    assert listener.stream.state.phase == "stopped"
    with pytest.raises(ClosedError):
        listener.stream.subscribe("k", "ticker", ["KRW-BTC"])


def test_sink_may_close_the_stream(venue: SocketVenue) -> None:
    """A callback on the thread can end it without waiting for itself."""
    done = threading.Event()

    def sink(record: LiveRecord, received_s: float, is_snapshot: bool) -> None:
        stream.close()
        done.set()

    stream = Stream(venue.url, clock=SystemClock(), sink=sink)
    stream.subscribe("k", "ticker", ["KRW-BTC"])
    assert done.wait(5)
    eventually(lambda: stream.state.phase == "stopped")
    eventually(lambda: "backbone-stream" not in [thread.name for thread in threading.enumerate()])


@pytest.mark.parametrize("end", ["close", "unsubscribe"])
def test_end_waits_for_a_thread_that_is_quick_to_see_it(venue: SocketVenue, listener: Listener, end: str) -> None:
    """The thread may go before it is woken: its last report is out, and it is gone, when the call returns."""
    stream, may_end = listener.stream, threading.Event()
    stream.subscribe("k", "ticker", ["KRW-BTC"])
    eventually(lambda: listener.records)
    condition, mine = stream._condition, threading.get_ident()

    class Yielding:
        """Gives the thread its turn after each locked step of this one."""

        def __enter__(self) -> Any:
            return condition.__enter__()

        def __exit__(self, *error: object) -> None:
            condition.__exit__(*error)
            if threading.get_ident() == mine and not stream._wanted and not may_end.is_set():
                if stream._waker is not None:
                    stream._waker.send(b"!")
                eventually(lambda: stream._thread is None)
                threading.Timer(0.2, may_end.set).start()

        def __getattr__(self, name: str) -> Any:
            return getattr(condition, name)

    def report(state: StreamState) -> None:
        assert state.phase != "stopped" or may_end.wait(5)
        listener.states.append(state)

    stream._on_state = report
    stream._condition = Yielding()  # type: ignore[assignment]
    if end == "close":
        stream.close()
    else:
        stream.unsubscribe("k")
    assert "backbone-stream" not in [thread.name for thread in threading.enumerate()]
    assert listener.phases()[-1] == "stopped"


def test_close_during_a_stalled_handshake_does_not_wait_for_it(venue: SocketVenue, listener: Listener) -> None:
    """A venue that accepts and sends nothing does not hold up the end."""
    venue.is_stalled = True
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    eventually(lambda: venue.peers and venue.peers[0].head)
    started = time.monotonic()
    listener.stream.close()
    assert time.monotonic() - started < 4.0, "a handshake may take five seconds"


# -------------------------------------------------------------------------------------------------- outages


def test_pulled_plug_is_survived_with_the_same_subscription_and_a_gap(venue: SocketVenue, listener: Listener) -> None:
    """After an outage the whole list is asked for again, and the time without a feed is reported."""
    listener.stream.subscribe("a", "ticker", ["KRW-BTC", "KRW-ETH"])
    listener.stream.subscribe("b", "trade", ["KRW-XRP"])
    eventually(lambda: len(listener.records) >= 2)
    eventually(lambda: len(venue.peers[0].asked[-1]) == 4)
    lost_us = listener.clock.now_us()
    venue.pull_the_plug()
    state = listener.until("backing-off")
    assert isinstance(state.last_error, UnreachableError)
    time.sleep(0.6)
    listener.records.clear()
    venue.open()
    eventually(lambda: len(listener.records) >= 2)
    assert venue.peers[-1].asked[0][1:3] == [
        {"type": "ticker", "codes": ["KRW-BTC", "KRW-ETH"]},
        {"type": "trade", "codes": ["KRW-XRP"]},
    ]
    (reported,) = eventually(lambda: [state for state in listener.states if state.gap])
    assert reported.phase == "streaming"
    assert reported.gap is not None
    assert abs(reported.gap.start - lost_us) < 2_000_000
    assert reported.gap.end - reported.gap.start > 500_000
    assert abs(reported.gap.end - listener.clock.now_us()) < 20_000_000
    assert listener.stream.state.reconnects == 1
    assert listener.phases()[:3] == ["connecting", "streaming", "backing-off"]


def test_connects_are_a_second_apart(venue: SocketVenue) -> None:
    """A venue that hangs up at once is not hammered."""
    venue.on_ask = lambda peer, asked: peer.hang_up()
    listener = Listener(venue.url)
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    eventually(lambda: len(venue.peers) == 2)
    listener.stream.close()
    first, second = venue.peers
    assert second.at - first.at > stream_module.CONNECT_S - 0.1


def test_socket_without_frame_or_pong_is_dead_after_thirty_seconds(venue: SocketVenue, listener: Listener) -> None:
    """First it is called stalled, then dead; then a new connection takes over."""
    venue.answers_pings = False
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    listener.until("streaming")
    listener.skip(stream_module.STALL_S + 0.1)
    listener.until("stalled")
    listener.skip(stream_module.DEAD_S - stream_module.STALL_S)
    eventually(lambda: len(venue.peers) == 2)
    error = listener.stream.state.last_error
    assert isinstance(error, UnreachableError)
    assert "no frame and no pong for 30 s" in str(error)
    reported = eventually(lambda: [state.gap for state in listener.states if state.gap])
    assert reported[0].end - reported[0].start >= 30_000_000


def test_quiet_market_is_not_a_dead_socket(venue: SocketVenue, listener: Listener) -> None:
    """While pings are answered, minutes without a frame are just quiet."""
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    listener.until("streaming")
    (peer,) = venue.peers
    for _ in range(12):
        pings = len(peer.controls)
        listener.skip(stream_module.PING_S + 0.1)
        eventually(lambda pings=pings: len(peer.controls) > pings)
        eventually(lambda: listener.stream.state.last_frame_s > listener.clock.monotonic() - 5)
    assert len(venue.peers) == 1
    assert listener.stream.state.phase == "streaming"
    assert set(listener.phases()) == {"connecting", "streaming"}


def test_stalled_stream_that_sends_again_streams_again(venue: SocketVenue, listener: Listener) -> None:
    """Late is not lost: no gap, no new connection."""
    venue.answers_pings = False
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    listener.until("streaming")
    listener.skip(stream_module.STALL_S + 0.1)
    listener.until("stalled")
    venue.peers[0].send(ticker())
    state = listener.until("streaming")
    assert (state.reconnects, state.gap, len(venue.peers)) == (0, None, 1)


def test_subscription_without_any_data_streams_once_a_ping_was_answered(venue: SocketVenue, listener: Listener) -> None:
    """A connection that lives and has not been refused is streaming, however quiet its markets."""
    venue.on_ask = lambda peer, asked: None
    listener.stream.subscribe("k", "candle.1s", ["KRW-BTC"])
    peer = eventually(lambda: venue.peers and venue.peers[0].controls and venue.peers[0])
    assert peer.controls[0][0] == 9
    eventually(lambda: listener.stream.state.last_frame_s)
    assert listener.stream.state.phase == "connecting"
    listener.skip(stream_module.QUIET_START_S)
    assert listener.until("streaming").frames == 0


def test_ping_of_the_venue_is_answered(venue: SocketVenue, listener: Listener) -> None:
    """A server may ping too."""
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    eventually(lambda: listener.records)
    venue.peers[0].send_bytes(frame(b"there?", 9))
    eventually(lambda: (10, b"there?") in venue.peers[0].controls)


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["NO_CODES", "I'm a teapot"])
def test_error_frame_is_kept_in_the_venues_words(venue: SocketVenue, listener: Listener, name: str) -> None:
    """What the venue said against the subscription is the error, and it is tried again later."""
    words = {"error": {"message": "codes 필드가 존재하지 않습니다.", "name": name}}
    venue.on_ask = lambda peer, asked: peer.send(words) if len(venue.peers) == 1 else send_snapshots(peer, asked)
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    error = eventually(lambda: listener.stream.state.last_error)
    assert isinstance(error, StreamClosedError)
    assert error.reason == f"{name}: codes 필드가 존재하지 않습니다."
    eventually(lambda: listener.records)
    assert "streaming" not in listener.phases()[: listener.phases().index("backing-off")]


def test_close_frame_is_kept_with_its_code(venue: SocketVenue, listener: Listener) -> None:
    """The venue's close code and words are the reason."""
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    eventually(lambda: listener.records)
    venue.peers[0].send_bytes(frame(b"\x03\xe9going away", 8))
    error = eventually(lambda: listener.stream.state.last_error)
    assert isinstance(error, StreamClosedError)
    assert error.reason == "1001 going away"
    eventually(lambda: len(venue.peers) == 2)


@pytest.mark.parametrize(
    ("status", "body", "kind", "wait_s"),
    [
        (429, b"Too many API requests.", RateLimitedError, 2.0),
        (418, b"blocked for 40 seconds", RateLimitedError, 40.0),
        (503, b"<html>", UnreachableError, 0.5),
        (403, b"", RejectedError, 0.5),
        (302, b"", UnreachableError, 0.5),
    ],
)
def test_refused_handshake_is_an_error_of_the_tree_and_waited_out(
    venue: SocketVenue, listener: Listener, status: int, body: bytes, kind: type[BackboneError], wait_s: float
) -> None:
    """A block is kept to the second; nothing follows a redirect; then it is tried again."""
    location = venue.url.encode()
    head = b"HTTP/1.1 %d No\r\nLocation: %s\r\nContent-Length: %d\r\n\r\n" % (status, location, len(body))
    venue.refusal = head + body
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    state = eventually(lambda: [each for each in listener.states if each.phase == "backing-off"])[0]
    assert isinstance(state.last_error, kind)
    assert len(venue.peers) == 1
    venue.refusal = None
    listener.skip(wait_s - 0.5)
    time.sleep(0.05)
    assert len(venue.peers) == 1
    eventually(lambda: len(venue.peers) > 1)
    again = next(each for each in listener.states[listener.states.index(state) :] if each.phase == "connecting")
    assert wait_s * 0.98 <= (again.since_us - state.since_us) / 1e6 <= wait_s * 1.2 + 10
    eventually(lambda: listener.records)


def test_connection_that_was_good_resets_the_backoff(venue: SocketVenue, listener: Listener) -> None:
    """After some failures the waits are long; after a while of good service the next one is short again."""
    refused = frame(b"\x03\xf4try later", 8)
    venue.on_ask = lambda peer, asked: peer.send_bytes(refused)
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    while listener.phases().count("backing-off") < 4:
        listener.skip(0.5)
        time.sleep(0.005)
    venue.on_ask = send_snapshots
    while not listener.records:
        listener.skip(0.5)
        time.sleep(0.005)
    listener.skip(stream_module.STABLE_S)
    connects = len(venue.peers)
    venue.peers[-1].send_bytes(refused)
    eventually(lambda: listener.stream.state.phase == "backing-off" or len(venue.peers) > connects)
    started = time.monotonic()
    eventually(lambda: len(venue.peers) > connects)
    assert time.monotonic() - started < 4.0, "after so many failures it would be fifteen seconds"


def test_foreign_server_is_unreachable(listener: Listener, venue: SocketVenue) -> None:
    """What does not speak the protocol is an error, not a crash."""
    venue.refusal = b"hello\r\n\r\n"
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    assert isinstance(listener.until("backing-off").last_error, UnreachableError)


# --------------------------------------------------------------------- bad frames, bad codes, bad consumers


def test_garbage_is_counted_logged_once_and_harmless(
    venue: SocketVenue, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    """Nonsense between two frames loses neither."""
    caplog.set_level(logging.WARNING, logger="backbone.routing.stream")
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    eventually(lambda: listener.records)
    venue.peers[0].send({"type": "nope"}, "PONG", [1], ticker(trade_price=-5), ticker())
    eventually(lambda: len(listener.records) == 2)
    assert listener.stream.state.garbage == 4
    assert listener.stream.state.phase == "streaming"
    assert len([record for record in caplog.records if "stream.garbage" in record.message]) == 1


def test_protocol_breach_ends_the_connection_not_the_stream(venue: SocketVenue, listener: Listener) -> None:
    """A masked frame cannot be trusted: the connection is replaced."""
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    eventually(lambda: listener.records)
    venue.peers[0].send_bytes(b"\x82\x81\0\0\0\0x")
    eventually(lambda: len(venue.peers) == 2)
    assert isinstance(listener.stream.state.last_error, StreamClosedError)


def test_code_without_a_snapshot_is_reported_until_one_arrives(venue: SocketVenue, listener: Listener) -> None:
    """The venue ignores unknown codes without an error; after ten seconds the stream reports them."""
    venue.on_ask = lambda peer, asked: peer.send(ticker("KRW-BTC", "SNAPSHOT"))
    listener.stream.subscribe("k", "ticker", ["KRW-BTC", "KRW-NOPE", "KRW-LATE"])
    listener.until("streaming")
    assert listener.stream.state.silent == ()
    listener.skip(stream_module.SNAPSHOT_S)
    silent = eventually(lambda: listener.stream.state.silent)
    assert silent == (("ticker", "KRW-LATE"), ("ticker", "KRW-NOPE"))
    assert listener.states[-1].silent == silent
    venue.peers[0].send(ticker("KRW-LATE"))
    eventually(lambda: listener.stream.state.silent == (("ticker", "KRW-NOPE"),))
    listener.stream.subscribe("k", "ticker", ["KRW-BTC", "KRW-LATE"])
    eventually(lambda: listener.stream.state.silent == ())
    assert len(venue.peers) == 1


def test_code_that_sent_a_snapshot_is_not_reported_after_a_change(venue: SocketVenue, listener: Listener) -> None:
    """Adding a code does not make the venue repeat the others, and they need not."""
    venue.on_ask = lambda peer, asked: peer.send(ticker(asked[1]["codes"][-1], "SNAPSHOT"))
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    eventually(lambda: "KRW-BTC" in listener.markets())
    listener.skip(stream_module.MESSAGE_S)
    listener.stream.subscribe("k", "ticker", ["KRW-BTC", "KRW-ETH"])
    eventually(lambda: "KRW-ETH" in listener.markets())
    listener.stream.subscribe("k", "ticker", ["KRW-BTC", "KRW-NOPE", "KRW-ETH"])
    listener.skip(stream_module.MESSAGE_S)
    eventually(lambda: len(venue.peers[0].asked) == 3)
    listener.skip(stream_module.SNAPSHOT_S)
    assert eventually(lambda: listener.stream.state.silent) == (("ticker", "KRW-NOPE"),)


def test_subscription_that_nothing_answers_is_sent_again(venue: SocketVenue, listener: Listener) -> None:
    """If not one code is answered, the subscription itself may have been lost."""
    venue.on_ask = lambda peer, asked: send_snapshots(peer, asked) if len(peer.asked) == 2 else None
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    eventually(lambda: venue.peers and venue.peers[0].asked)
    listener.skip(stream_module.SNAPSHOT_S)
    eventually(lambda: listener.records)
    assert venue.peers[0].asked[0][1:] == venue.peers[0].asked[1][1:]


def test_failing_consumer_is_recorded_and_the_feed_comes_back(
    venue: SocketVenue, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in the sink does not end the stream unseen."""
    listener.fault = ZeroDivisionError("bug")
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    error = eventually(lambda: listener.stream.state.last_error)
    assert isinstance(error, StreamClosedError)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert "stream.fault" in caplog.text
    listener.fault = None
    eventually(lambda: listener.records)


def test_frames_cut_into_single_bytes_arrive(venue: SocketVenue, listener: Listener) -> None:
    """The network may cut anywhere."""
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    eventually(lambda: listener.records)
    for byte in frame(json.dumps(ticker("KRW-XRP")).encode()):
        venue.peers[0].send_bytes(bytes([byte]))
    eventually(lambda: "KRW-XRP" in listener.markets())


# ---------------------------------------------------------------------------------------------- the machine


def test_secure_stream_trusts_the_bundle_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket trusts what REST trusts, and nobody else."""
    trustme = pytest.importorskip("trustme", reason="trustme is not installed")
    authority: Any = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    venue = SocketVenue(context)
    venue.on_ask = send_snapshots
    stranger = Listener(venue.url)
    stranger.stream.subscribe("k", "ticker", ["KRW-BTC"])
    error = stranger.until("backing-off").last_error
    stranger.stream.close()
    assert "certificate verify failed" in str(error)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    friend = Listener(venue.url)
    friend.stream.subscribe("k", "ticker", [f"KRW-{i}" for i in range(200)])
    eventually(lambda: len(friend.records) == 200)
    friend.stream.close()
    venue.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_leaves_the_child_a_stopped_stream_that_can_start(venue: SocketVenue, listener: Listener) -> None:
    """The child has no thread and opens its own connection; the parent's goes on."""
    listener.stream.subscribe("k", "ticker", ["KRW-BTC"])
    eventually(lambda: listener.records)
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            listener.records.clear()
            assert listener.stream.state.phase == "stopped"
            listener.stream.subscribe("child", "ticker", ["KRW-ETH"])
            eventually(lambda: "KRW-ETH" in listener.markets())
            listener.stream.close()
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    venue.peers[0].send(ticker("KRW-XRP"))
    eventually(lambda: "KRW-XRP" in listener.markets())


def test_memory_stays_flat_over_many_messages(venue: SocketVenue, listener: Listener) -> None:
    """The stream keeps nothing of what it handed on."""
    import tracemalloc

    count = 0

    def sink(record: LiveRecord, received_s: float, is_snapshot: bool) -> None:
        nonlocal count
        count += 1

    stream = Stream(venue.url, clock=SystemClock(), sink=sink)
    stream.subscribe("k", "ticker", ["KRW-BTC"])
    eventually(lambda: count)
    batch = b"".join(frame(json.dumps(ticker()).encode()) for _ in range(1000))
    venue.peers[0].send_bytes(batch)
    eventually(lambda: count >= 1001)
    tracemalloc.start()
    venue.peers[0].send_bytes(batch)
    eventually(lambda: count >= 2001)
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(4):
        venue.peers[0].send_bytes(batch)
    eventually(lambda: count >= 6001)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    stream.close()
    assert after - before < 200_000


# ------------------------------------------------------------------------------------------ books, shorter or grouped


def asked(venue: SocketVenue) -> list[Any]:
    """The subscription frames of its one connection."""
    return venue.peers[0].asked if venue.peers else []


def orderbook_part(asked: Any) -> list[dict[str, Any]]:
    return [part for part in asked if part.get("type") == "orderbook"]


def test_books_are_asked_for_as_deep_as_the_deepest_wants_them(venue: SocketVenue, listener: Listener) -> None:
    """The venue sends 1, 5, 15 or 30 levels: the code says how many, and says it again when that changes."""
    stream = listener.stream
    stream.subscribe("bot", "orderbook", ["KRW-BTC", "KRW-ETH"], 4)
    (part,) = orderbook_part(eventually(lambda: asked(venue)[-1:])[0])
    assert part == {"type": "orderbook", "codes": ["KRW-BTC.5", "KRW-ETH.5"]}
    stream.subscribe("table", "orderbook", ["KRW-BTC"])
    (part,) = orderbook_part(eventually(lambda: asked(venue)[1:])[0])
    assert part["codes"] == ["KRW-BTC", "KRW-ETH.5"]
    stream.unsubscribe("table")
    (part,) = orderbook_part(eventually(lambda: asked(venue)[2:])[0])
    assert part["codes"] == ["KRW-BTC.5", "KRW-ETH.5"]


def test_grouped_books_are_a_kind_of_their_own(venue: SocketVenue, listener: Listener) -> None:
    """Each price grouping is its own part of the subscription, and its snapshot is known by its level."""
    row = BOOK_ROW | {"market": "KRW-BTC", "level": 1000}
    venue.on_ask = lambda peer, asked: peer.send(frame_of("orderbook", row, "SNAPSHOT"))
    listener.stream.subscribe("bot", "orderbook@1000", ["KRW-BTC"], 1)
    listener.stream.subscribe("bot", "orderbook", ["KRW-BTC"], 30)
    parts = eventually(lambda: asked(venue) and len(found := orderbook_part(asked(venue)[-1])) == 2 and found)
    assert {"type": "orderbook", "codes": ["KRW-BTC.1"], "level": 1000} in parts
    assert {"type": "orderbook", "codes": ["KRW-BTC"]} in parts
    eventually(lambda: listener.records)
    listener.skip(stream_module.SNAPSHOT_S + 1)
    eventually(lambda: listener.stream.state.silent == (("orderbook", "KRW-BTC"),))
