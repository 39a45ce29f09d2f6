"""Bytes of a connection become whole messages, however they are cut, and nothing that a server may not send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.errors import StreamClosedError
from backbone.routing import websocket
from backbone.routing.websocket import FrameSplitter
from tests.routing.socket_venue import frame


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
