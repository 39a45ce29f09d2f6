"""Bytes of a connection become whole messages, however they are cut, and nothing that a server may not send."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.clock import SystemClock
from backbone.errors import StreamClosedError, UnreachableError
from backbone.routing import websocket
from backbone.routing.websocket import Connection, FrameSplitter
from tests.routing.socket_venue import Peer, frame


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 8, 9, 10]), st.binary(max_size=300)), max_size=12),
    st.lists(st.integers(1, 400), max_size=40),
)
def test_splitter_gives_every_message_however_the_bytes_are_cut(
    messages: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    """Cutting a connection's bytes anywhere changes nothing."""
    messages = [(opcode, data[:125] if opcode > 2 else data) for opcode, data in messages]
    data = b"".join(frame(payload, opcode) for opcode, payload in messages)
    splitter = FrameSplitter()
    found = []
    for cut in cuts:
        found += splitter.split(data[:cut])
        data = data[cut:]
    assert found + splitter.split(data) == messages


def test_splitter_joins_fragments_around_control_frames() -> None:
    """A message may come in parts, with a ping between them."""
    data = frame(b"one ", 2, last=False) + frame(b"!", 9) + frame(b"two ", 0, last=False) + frame(b"three", 0)
    splitter = FrameSplitter()
    found = [message for byte in data for message in splitter.split(bytes([byte]))]
    assert found == [(9, b"!"), (2, b"one two three")]
    assert splitter.split(frame(b"next")) == [(2, b"next")]


def test_splitter_takes_a_message_of_megabytes() -> None:
    """A frame with a 64-bit length is a frame."""
    data = frame(b"x" * (2 << 20))
    splitter = FrameSplitter()
    assert splitter.split(data[:1_000_000]) == []
    assert splitter.split(data[1_000_000:]) == [(2, b"x" * (2 << 20))]


@pytest.mark.parametrize(
    "data",
    [
        b"\x82\x81\0\0\0\0x",
        b"\xc2\x01x",
        b"\x83\x01x",
        b"\x8b\x01x",
        b"\x80\x01x",
        frame(b"a", 2, last=False) + frame(b"b", 1, last=False),
        b"\x82\x7f\x00\x00\x00\x00\x7f\xff\xff\xff",
        b"\x02\x7f\x00\x00\x00\x00\x7f\xff\xff\xff",
    ],
)
def test_splitter_refuses_what_no_server_may_send(data: bytes) -> None:
    """Masked, compressed, unknown, disordered and huge frames end the connection."""
    with pytest.raises(StreamClosedError):
        FrameSplitter().split(data)


def test_splitter_bounds_a_message_in_fragments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endless fragments do not fill the memory."""
    monkeypatch.setattr(websocket, "MESSAGE_BYTES", 1000)
    splitter = FrameSplitter()
    splitter.split(frame(b"x" * 900, 2, last=False))
    with pytest.raises(StreamClosedError):
        splitter.split(frame(b"x" * 900, 0, last=False))


@pytest.mark.parametrize("url", ["ws://127.0.0.1:8080/x", "ws://localhost:1/x", "ws://[::1]:1/x"])
def test_socket_to_this_machine_goes_past_every_proxy(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Whatever the environment says."""
    for proxy in ("http://127.0.0.1:1", "socks5://127.0.0.1:1"):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        assert websocket._socks_options(url) == {}
        assert websocket.proxy_of(url) is None


def test_socket_to_the_venue_goes_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CONNECT names the venue and carries the credentials; a refusal of the proxy shows none of them."""
    heads: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with listener, listener.accept()[0] as peer:
            heads.append(peer.recv(4096))
            peer.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    monkeypatch.setenv("HTTPS_PROXY", f"http://kim:s3%20cret@127.0.0.1:{listener.getsockname()[1]}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection("wss://venue.invalid/websocket/v1", SystemClock(), theirs)
        with pytest.raises(UnreachableError) as caught:
            connection.open()
    thread.join(5)
    assert heads[0].startswith(b"CONNECT venue.invalid:443 HTTP/1.")
    assert base64.b64encode(b"kim:s3 cret") in heads[0]
    assert "s3" not in f"{caught.value} {caught.value.__cause__}"
    monkeypatch.setenv("NO_PROXY", "venue.invalid")
    assert websocket.proxy_of("wss://venue.invalid/websocket/v1") is None


@pytest.mark.parametrize("url", ["ws://a host/x", "wss://a host/x"])
def test_socket_to_what_is_no_host_is_an_error_of_the_tree(url: str) -> None:
    """An address that cannot be dialled is one that is not reached."""
    with socket.socket() as waker:
        connection = Connection(url, SystemClock(), waker)
        with pytest.raises(UnreachableError, match="cannot open"):
            connection.open()


@pytest.mark.parametrize("end", ["abort", "hang_up"])
def test_connection_that_is_ended_elsewhere_stays_within_tls(end: str, tmp_path: Path) -> None:
    """Whoever still reads gets what was sent, or the end; never ciphertext taken for frames, and nothing in clear."""
    trustme = pytest.importorskip("trustme", reason="trustme is not installed")
    authority: Any = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    near, far = socket.socketpair()
    with ThreadPoolExecutor() as pool:
        wrapping = pool.submit(server.wrap_socket, far, server_side=True)
        mine = client.wrap_socket(near, server_hostname="localhost")
    theirs = wrapping.result()
    with mine, theirs, socket.socket() as waker:
        sent = frame(b"{}" * 40)
        sender, reader = (theirs, mine) if end == "abort" else (mine, theirs)
        sender.sendall(sent)
        if end == "abort":
            connection = Connection("wss://localhost/websocket/v1", SystemClock(), waker)
            connection._socket = SimpleNamespace(sock=mine)
            connection.abort()
        else:
            Peer(theirs).hang_up()
        reader.settimeout(2)
        assert reader.recv(100) == sent
        with pytest.raises(OSError):
            reader.sendall(b"GET / HTTP/1.1")
