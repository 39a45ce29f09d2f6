"""The transport of REST: warm connections that keep deadlines, and nothing of the venue.

Decides how long a request may take, how large a body may be, and which idle connection is too old to use. A total
deadline holds per request, however slowly bytes drip; a connection idle for `IDLE_S` is dropped before use, because a
request that dies on one costs a permit. No redirect is followed, nothing is sent twice, and the environment (proxies,
CA bundle) is read once. What cannot be had whole is an `UnreachableError`.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from backbone.clock import Clock, current_deadline
from backbone.errors import PayloadError, UnreachableError
from backbone.settings import ca_bundle, proxy_of

__all__ = ["BODY_BYTES", "IDLE_S", "Transport"]

BODY_BYTES = 64 << 20
"""Largest body accepted; the venue's largest (all books) is 2.3 MB."""
IDLE_S = 50.0
"""A connection unused for so long is not used again: servers commonly hang up after 60 s."""
_CHUNK = 1 << 18
_BUFFER = 1 << 16  # a page of candles in one read, where it is all there
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": "backbone (Python)"}


class Transport:
    """An adapter and what the environment said when it was made."""

    def __init__(self, base_url: str, clock: Clock, total_s: float, pool: int) -> None:
        import requests.adapters

        self._proxy = proxy_of(base_url)
        self._verify = ca_bundle() or True
        self._adapter: Any = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=pool, max_retries=0)
        self._timed_pools = _timed_pools(clock, total_s)
        self._pool: Any = None  # the venue's, with what every request carries
        self._is_absolute = False  # whether the request line names the host: to a proxy that reads it
        self._never: Any = None  # no retries

    def fetch(self, url: str, timeout_s: tuple[float, float]) -> tuple[int, Any, bytes]:
        """Status, headers and body of one GET; `UnreachableError` when they could not be had whole."""
        import requests
        import urllib3

        try:
            response = self._send(url, timeout_s)
            try:
                return response.status, response.headers, _read_body(response)
            finally:
                response.close()  # ends the connection, unless all of the body was read
                response.release_conn()
        except urllib3.exceptions.DecodeError as exc:
            raise PayloadError(f"the body is not what its encoding says: {exc}") from exc
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            raise UnreachableError(f"no answer from {url.partition('?')[0]}: {self._cause(exc)}") from exc

    def _send(self, url: str, timeout_s: tuple[float, float]) -> Any:
        """The response with its body unread.

        What a session does anew for each request (the pool, its TLS settings, the headers, cookies that nobody sets) is
        done once: it took as long as the request itself.
        """
        import requests
        import urllib3

        pool = self._open_pool(url)
        timeout = urllib3.Timeout(connect=timeout_s[0], read=timeout_s[1])
        path = url[url.index("/", url.index("//") + 2) :]
        if self._is_absolute:
            path = str(requests.Request("GET", url).prepare().url)
        return pool.urlopen(
            "GET", path, None, _HEADERS, self._never, False, False, timeout, preload_content=False, decode_content=False
        )

    def _open_pool(self, url: str) -> Any:
        import requests
        import urllib3

        if self._pool is None:
            prepared = requests.Request("GET", url).prepare()
            proxies = {"http": self._proxy, "https": self._proxy} if self._proxy else {}
            spelled: Any = requests.utils.prepend_scheme_if_needed  # as the adapter does it
            proxy = spelled(self._proxy, "http") if self._proxy else ""
            manager = self._adapter.proxy_manager_for(proxy) if proxy else self._adapter.poolmanager
            if not proxy.startswith("socks"):  # whose manager has connections of its own
                manager.pool_classes_by_scheme = self._timed_pools
            pool = self._adapter.get_connection_with_tls_context(prepared, self._verify, proxies=proxies)
            self._adapter.cert_verify(pool, url, self._verify, None)
            self._is_absolute = self._adapter.request_url(prepared, proxies) == prepared.url
            self._never = urllib3.Retry(0, read=False)
            self._pool = pool
        return self._pool

    @property
    def is_warm(self) -> bool:
        """Whether a connection is open and free, so that a request waits for nothing but its answer."""
        if self._pool is None or self._proxy:
            return False
        connections: list[Any] = list(self._pool.pool.queue)
        return any(connection is not None and connection.is_connected for connection in connections)

    def warm(self, url: str, timeout_s: float) -> None:
        import requests
        import urllib3

        if self._proxy:
            return
        try:
            pool = self._open_pool(url)
            connection: Any = pool._get_conn()  # noqa: SLF001 - no public way; drops one that is stale or idle for too long
            try:
                if connection.is_closed:
                    connection.timeout = timeout_s
                    connection.connect()
            finally:
                pool._put_conn(connection)  # noqa: SLF001
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            raise UnreachableError(f"cannot connect to {url}: {self._cause(exc)}") from exc

    def _cause(self, exc: BaseException) -> str:
        """Why it failed, without the credentials of the proxy's address."""
        why = _cause(exc)
        user = urlsplit(self._proxy or "").netloc.rpartition("@")[0]
        return why.replace(user, "***") if user else why

    def close(self) -> None:
        self._adapter.close()


def _cause(exc: BaseException) -> str:
    """The innermost reason: the errors around it are wrapping."""
    while True:
        nested = [each for each in (getattr(exc, "reason", None), *exc.args) if isinstance(each, BaseException)]
        if not nested:
            break
        exc = nested[-1]
    if isinstance(exc.__cause__, OSError):
        exc = exc.__cause__
    return str(exc) or type(exc).__name__


def _read_body(raw: Any) -> bytes:
    chunks: list[bytes] = []
    size = 0
    for chunk in raw.stream(_CHUNK, decode_content=True):
        size += len(chunk)
        if size > BODY_BYTES:
            raise PayloadError(f"the body is larger than {BODY_BYTES >> 20} MB")
        chunks.append(chunk)
    return b"".join(chunks)


def _timed_pools(clock: Clock, total_s: float) -> dict[str, Any]:
    """Pools by scheme whose connections keep the deadlines of `_Timed`."""
    import urllib3.connection
    import urllib3.connectionpool

    timing = {"clock": clock, "total_s": total_s}
    plain = type("Plain", (_Timed, urllib3.connection.HTTPConnection), timing)
    secure = type("Secure", (_Timed, urllib3.connection.HTTPSConnection), timing)
    return {
        "http": type("PlainPool", (urllib3.connectionpool.HTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("SecurePool", (urllib3.connectionpool.HTTPSConnectionPool,), {"ConnectionCls": secure}),
    }


class _Timed:
    """What a connection gains: a total deadline per request, and an age beyond which it counts as dropped."""

    clock: Clock
    total_s: float
    deadline_s = float("inf")
    used_s = 0.0
    sock: Any
    timeout: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.used_s = self.clock.monotonic()

    def request(self, *args: Any, **kwargs: Any) -> None:
        deadline = current_deadline()  # of the call that sends on its own thread
        left_s = self.total_s if deadline is None else min(self.total_s, deadline.left_s())
        self.deadline_s = self.clock.monotonic() + left_s
        super().request(*args, **kwargs)  # type: ignore[misc]
        self.used_s = self.clock.monotonic()

    def response_class(self, sock: socket.socket, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:
        """What http.client calls to read an answer, head and body: here each read minds the deadline."""
        response = http.client.HTTPResponse(sock, *args, **kwargs)
        raw = response.fp.detach()
        response.fp = io.BufferedReader(_DeadlineReader(raw, sock, self), _BUFFER)
        return response

    @property
    def is_connected(self) -> bool:
        """Asked before every reuse."""
        if self.sock is None or self.clock.monotonic() - self.used_s > IDLE_S:
            return False
        connected = bool(super().is_connected)  # type: ignore[misc]
        return connected or (isinstance(self.sock, ssl.SSLSocket) and _has_only_tickets(self.sock))


def _has_only_tickets(sock: ssl.SSLSocket) -> bool:
    """Whether an idle TLS connection is readable only for session tickets, which servers send unasked."""
    timeout = sock.gettimeout()
    sock.settimeout(0)
    try:
        sock.recv(1)
    except ssl.SSLWantReadError:
        return True
    except OSError:
        return False
    finally:
        sock.settimeout(timeout)
    return False


class _DeadlineReader(io.RawIOBase):
    """A socket's raw reader, each of whose reads ends at the connection's deadline at the latest."""

    def __init__(self, raw: Any, sock: Any, connection: _Timed) -> None:
        self._raw = raw
        self._sock = sock
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._connection.deadline_s - self._connection.clock.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"the answer took longer than {self._connection.total_s:g} s")
        timeout = self._connection.timeout
        if timeout is None or left_s < timeout or timeout != self._sock.gettimeout():
            self._sock.settimeout(left_s if timeout is None else min(left_s, timeout))
        count: int | None = self._raw.readinto(buffer)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
