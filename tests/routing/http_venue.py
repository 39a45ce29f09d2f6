"""A server of a few lines that answers as a test scripts it, and clients of it."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable

import pytest

from backbone.clock import SystemClock
from backbone.errors import SourceError
from backbone.routing.rest import RestClient
from backbone.routing.wire import Ask

ASK = Ask("candles", "/x", (), json.loads, "KRW-BTC")


class Shifted(SystemClock):
    """The machine's clock, movable."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


def reply(status: int = 200, body: bytes = b"[1]", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Because", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Venue:
    """A server that answers each request with what `script` makes of it: bytes, or a function of the socket.

    The connection stays open unless the function closes it. `requests` holds (connection number, head).
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.script: Callable[[str], bytes | Callable[[socket.socket], None]] = lambda head: reply()
        self.requests: list[tuple[int, str]] = []
        self.connections = 0
        self._tls = tls
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://localhost:{self.port}"
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(sock, self.connections))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            self._open.append(sock)
            head = b""
            while part := sock.recv(65536):
                head += part
                while b"\r\n\r\n" in head:
                    one, _, head = head.partition(b"\r\n\r\n")
                    self.requests.append((number, one.decode()))
                    answer = self.script(one.decode())
                    if callable(answer):
                        answer(sock)
                    else:
                        sock.sendall(answer)
        sock.close()

    def await_connections(self, count: int) -> int:
        """How many connections were accepted, once `count` were (or twenty seconds passed)."""
        deadline = time.monotonic() + 20
        while self.connections < count and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.connections

    def hang_up(self) -> None:
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(5)
        self.hang_up()
        for thread in self._threads:
            thread.join(5)


def failure(client: RestClient, ask: Ask = ASK) -> SourceError:
    with pytest.raises(SourceError) as caught:
        client.send(ask)
    return caught.value
