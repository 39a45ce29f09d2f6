"""One WebSocket connection: opening, sending, receiving, and bytes cut into whole messages.

Knows nothing of subscriptions beyond the notes that `Stream` keeps on it. No ``Origin`` header is sent: with one the
venue allows one connect in ten seconds. Failures are errors of the tree.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import selectors
import socket
from typing import Any
from urllib.parse import unquote, urlsplit

from backbone.clock import Clock
from backbone.errors import StreamClosedError, UnreachableError
from backbone.routing.refusals import SIGN_IN, is_web_page, refusal
from backbone.settings import ca_bundle, proxy_of

__all__ = ["BINARY", "MESSAGE_S", "NAP_S", "PING", "PING_S", "PONG", "Connection", "FrameSplitter", "Message"]

PING_S = 10.0
"""The venue hangs up after 60 s without a message (120 s by its documentation)."""
MESSAGE_S = 1.0
"""Between two subscription frames: 60 a minute where 100 are allowed."""
CONNECT_TIMEOUT_S = 3.05
MESSAGE_BYTES = 16 << 20
NAP_S = 1.0
"""Longest single wait for bytes."""
_RECEIVE_BYTES = 1 << 16
_PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
Message = tuple[int, bytes]


class FrameSplitter:
    """Bytes of a WebSocket connection in, whole messages out, however they were cut. No I/O.

    The library's own reader asks the kernel three times a message; here one read may bring hundreds.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._parts: list[bytes] = []

    def split(self, data: bytes) -> list[Message]:
        """The messages that `data` completes, as (opcode, payload), control messages among them in order.

        Raises `StreamClosedError` for bytes that no server may send.
        """
        if self._rest:
            data = self._rest + data
        messages: list[Message] = []
        at, end = 0, len(data)
        while end - at >= 2:
            size = data[at + 1]
            start = at + 2
            if size > 125:
                if size > 127:
                    raise StreamClosedError("the stream is not one of a server", reason="masked frame")
                start += 2 if size == 126 else 8
                if start > end:
                    break
                size = int.from_bytes(data[at + 2 : start], "big")
                if size > MESSAGE_BYTES:
                    raise StreamClosedError("a frame is too large", reason=f"{size} bytes")
            stop = start + size
            if stop > end:
                break
            head = data[at]
            if head == 0x82 or head == 0x81:  # a whole message: nearly always
                messages.append((head & 15, data[start:stop]))
            else:
                self._take(head, data[start:stop], messages)
            at = stop
        self._rest = data[at:]
        return messages

    def _take(self, head: int, payload: bytes, messages: list[Message]) -> None:
        """A control frame, or a fragment of a message."""
        is_last, opcode = head & 0x80, head & 15
        if head & 0x70 or opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise StreamClosedError("a frame breaks the protocol", reason=f"head {head:#x}")
        if opcode >= CLOSE:
            messages.append((opcode, payload))
            return
        if (opcode == CONTINUATION) != bool(self._parts):
            raise StreamClosedError("a frame breaks the protocol", reason="fragments out of order")
        self._parts.append(payload)
        if sum(map(len, self._parts)) > MESSAGE_BYTES:
            raise StreamClosedError("a message is too large", reason="in fragments")
        if is_last:
            messages.append((BINARY, b"".join(self._parts)))
            self._parts = []


class Connection:
    """One connection from open to close, and the stream's notes on it.

    Used by the stream's thread only; `abort` alone may be called from elsewhere.
    """

    def __init__(self, url: str, clock: Clock, waker: socket.socket) -> None:
        import websocket

        self._url = url
        self._clock = clock
        self._waker = waker
        self._tls = _tls_options(url)
        self._socket: Any = websocket.WebSocket(skip_utf8_validation=True, sslopt=self._tls)
        self._selector: selectors.BaseSelector | None = None
        self._splitter = FrameSplitter()
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._is_aborted = False
        self.opened_s = self.received_s = self.pinged_s = 0.0
        self.asked_s = -MESSAGE_S  # when the last subscription was sent
        self.version = -1  # of the subscription that was sent
        self.retries = 0
        self.has_data = False
        self.is_answered = False  # data, or an answered ping
        self.asked: set[tuple[str, str]] = set()  # (kind, market)
        self.missing: set[tuple[str, str]] = set()  # those that have sent nothing yet
        self.is_reported = False

    def open(self) -> None:
        """Connect and shake hands. Raises an error of the tree, with the venue's message if it had any."""
        import websocket

        try:
            self._socket.connect(
                self._url,
                timeout=CONNECT_TIMEOUT_S,
                suppress_origin=True,  # with it the venue allows one connect in ten seconds
                redirect_limit=0,
                header={"User-Agent": "backbone (Python)"},
                **(_socks_options(self._url) or {"socket": self._dial()}),
            )
        except websocket.WebSocketBadStatusException as exc:
            retry_after = (exc.resp_headers or {}).get("retry-after")
            body = exc.resp_body or b""
            now_us = self._clock.now_us()
            if exc.status_code < 300 and is_web_page(body):
                words = f"answered with a web page: {SIGN_IN}"
                raise UnreachableError(f"cannot open {self._url}: {words}", url=self._url) from exc
            raise refusal(exc.status_code, body, "websocket", now_us, retry_after=retry_after) from exc
        except (websocket.WebSocketException, http.client.HTTPException, OSError, ValueError) as exc:
            self._refuse_redirect(exc)
            raise UnreachableError(f"cannot open {self._url}: {exc}", url=self._url) from exc
        self._refuse_redirect(None)
        self._socket.settimeout(NAP_S)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket.sock, selectors.EVENT_READ)
        self._selector.register(self._waker, selectors.EVENT_READ)
        self.opened_s = self.received_s = self._clock.monotonic()
        self.pinged_s = self.opened_s - PING_S  # the first ping follows the subscription at once

    def _refuse_redirect(self, exc: Exception | None) -> None:
        """Some versions of the library take a redirect that they do not follow for a connection."""
        answer = self._socket.handshake_response
        if answer is not None and answer.status != 101:
            location = (answer.headers or {}).get("location", "")
            words = f"redirected ({answer.status}) to {location!r}, which is not followed: {SIGN_IN}"
            raise UnreachableError(f"cannot open {self._url}: {words}", url=self._url) from exc

    def _dial(self) -> socket.socket:
        """A socket to the host, through the proxy that the environment names; TLS begun where the address says so.

        Each address of the host, or of the proxy, is tried. The library gives up at the first of a kind that this
        machine cannot use, such as IPv6 in a container.
        """
        target, proxy = urlsplit(self._url), proxy_of(self._url)
        first = target if proxy is None else urlsplit(proxy)
        host, port = first.hostname or "", first.port or _PORTS.get(first.scheme, 80)
        way: http.client.HTTPConnection
        if self._tls:
            way = http.client.HTTPSConnection(host, port, timeout=CONNECT_TIMEOUT_S, context=self._tls["context"])
        else:
            way = http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_S)
        if proxy is not None:
            words = {}
            if first.username is not None:
                user = f"{unquote(first.username)}:{unquote(first.password or '')}"
                words["Proxy-Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
            way.set_tunnel(target.hostname or "", target.port or _PORTS[target.scheme], words)
        try:
            way.connect()
        except BaseException as exc:
            way.close()
            if isinstance(exc, http.client.HTTPException):
                raise OSError(f"the proxy's answer cannot be read: {exc!r}") from exc
            raise
        sock: socket.socket = way.sock
        return sock

    def send(self, payload: bytes, opcode: int = TEXT) -> None:
        import websocket

        try:
            self._socket.send(payload, opcode)
        except (websocket.WebSocketException, OSError) as exc:
            raise UnreachableError(f"cannot send to {self._url}: {exc}", url=self._url) from exc

    def receive(self, timeout_s: float) -> list[Message]:
        """What arrived, waiting at most `timeout_s` for something; nothing when woken or out of time."""
        assert self._selector is not None
        sock = self._socket.sock
        if self._is_aborted or sock is None:
            raise StreamClosedError("the stream was closed", reason="aborted")
        try:
            pending = getattr(sock, "pending", None)
            if not (pending and pending()):
                ready = [key.fileobj for key, _ in self._selector.select(timeout_s)]
                if self._waker in ready:
                    self._waker.recv(4096)
                if sock not in ready:
                    return []
            count = sock.recv_into(self._buffer)
        except (TimeoutError, BlockingIOError):
            return []
        except OSError as exc:
            raise UnreachableError(f"{self._url} was lost: {exc}", url=self._url) from exc
        if not count:
            raise UnreachableError(f"{self._url} hung up", url=self._url)
        return self._splitter.split(bytes(memoryview(self._buffer)[:count]))

    def abort(self) -> None:
        """End whatever the thread is waiting for on this connection."""
        self._is_aborted = True
        sock = self._socket.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                # An SSLSocket's own `shutdown` drops its TLS first: the thread would go on in clear, both ways.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        import websocket

        if self._selector is not None:
            self._selector.close()
        with contextlib.suppress(websocket.WebSocketException, OSError):
            if self._socket.connected and not self._is_aborted:
                self._socket.send_close()
        self._socket.shutdown()


def _tls_options(url: str) -> dict[str, Any]:
    """Trust what the REST half trusts: the system's authorities, the bundled ones, those of the environment."""
    if not url.startswith("wss:"):
        return {}
    import ssl

    import requests

    context = ssl.create_default_context()
    context.load_verify_locations(ca_bundle() or requests.utils.DEFAULT_CA_BUNDLE_PATH)
    return {"context": context}


def _socks_options(url: str) -> dict[str, Any]:
    """The way through the SOCKS proxy that the environment names; empty where it names none for this address."""
    proxy = proxy_of(url)
    if proxy is None or not proxy.startswith("socks"):
        return {}
    parts = urlsplit(proxy)
    options: dict[str, Any] = {"http_proxy_host": parts.hostname, "proxy_type": parts.scheme}
    options["http_proxy_port"] = parts.port or 1080
    options["http_no_proxy"] = ["no host is excluded here"]
    if parts.username is not None:
        options["http_proxy_auth"] = (unquote(parts.username), unquote(parts.password or ""))
    return options
