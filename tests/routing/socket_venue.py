"""A scripted venue for the socket: it sends exactly what a test scripts, on a real loopback connection.

It shares nothing with the client's side but the protocol, so that a misreading there shows here.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The first true value of `condition`; fails when none came in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)
    return value


def frame(payload: bytes, opcode: int = 2, *, last: bool = True) -> bytes:
    """One unmasked frame, as a server sends it."""
    size = len(payload)
    head = bytes([(0x80 if last else 0) | opcode])
    if size < 126:
        return head + bytes([size]) + payload
    if size < 1 << 16:
        return head + b"\x7e" + struct.pack(">H", size) + payload
    return head + b"\x7f" + struct.pack(">Q", size) + payload


class Peer:
    """The venue's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.at = time.monotonic()
        self.head: list[str] = []
        self.asked: list[Any] = []  # subscription frames, decoded
        self.asked_at: list[float] = []
        self.controls: list[tuple[int, bytes]] = []

    def send(self, *contents: Any) -> None:
        """Each content as one binary JSON frame."""
        self.send_bytes(b"".join(frame(json.dumps(content).encode()) for content in contents))

    def send_bytes(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self.sock.sendall(data)

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):  # an SSLSocket's own drops its TLS and reads on
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


class SocketVenue:
    """Accepts connections; `on_ask` is called with the peer and each subscription frame."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.peers: list[Peer] = []
        self.on_ask: Callable[[Peer, Any], None] = lambda peer, asked: None
        self.answers_pings = True
        self.refusal: bytes | None = None  # sent in place of the upgrade
        self.is_stalled = False  # sends nothing at all, not even in the handshake
        self._tls = tls
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self.port = 0
        self.open()

    @property
    def url(self) -> str:
        return f"ws{'s' if self._tls else ''}://localhost:{self.port}/websocket/v1"

    def open(self) -> None:
        """Listen (again, on the same port)."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept, self._listener)

    def pull_the_plug(self) -> None:
        """Stop listening and drop every connection."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for peer in list(self.peers):
            peer.hang_up()

    def close(self) -> None:
        self.pull_the_plug()
        for thread in list(self._threads):
            thread.join(5)

    def _spawn(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            self._spawn(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), sock:
            sock.settimeout(10)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            with sock:
                peer = Peer(sock)
                self.peers.append(peer)
                if self._shake_hands(peer):
                    self._listen(peer, sock.makefile("rb"))

    def _shake_hands(self, peer: Peer) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            part = peer.sock.recv(4096)
            if not part:
                return False
            data += part
        peer.head = data.decode().split("\r\n")
        if self.is_stalled:
            peer.sock.recv(1)
            return False
        if self.refusal is not None:
            peer.sock.sendall(self.refusal)
            return False
        (key,) = (line[19:] for line in peer.head if line.startswith("Sec-WebSocket-Key: "))
        accept = base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Accept: {accept}", "remaining-req: group=websocket; min=300; sec=3", "", ""]
        peer.sock.sendall("\r\n".join(lines).encode())
        return True

    def _listen(self, peer: Peer, stream: Any) -> None:
        while len(head := stream.read(2)) == 2:
            opcode, size = head[0] & 15, head[1] & 127
            assert head[1] & 128, "a client must mask"
            if size == 126:
                (size,) = struct.unpack(">H", stream.read(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", stream.read(8))
            mask, masked = stream.read(4), stream.read(size)
            payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(masked))
            if opcode == 1:
                peer.asked.append(json.loads(payload))
                peer.asked_at.append(time.monotonic())
                self.on_ask(peer, peer.asked[-1])
            else:
                peer.controls.append((opcode, payload))
            if opcode == 9 and self.answers_pings:
                peer.send_bytes(frame(payload, 10))
            if opcode == 8:
                return
