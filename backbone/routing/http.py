"""The transport of REST: warm connections that keep deadlines, and nothing of the venue.

Decides how long a request may take, how large a body may be, and which idle connection is too old to use. A total
deadline holds per request, however slowly bytes drip; a connection idle for `IDLE_S` is dropped before use, because a
request that dies on one costs a permit. No redirect is followed, nothing is sent twice, and the environment (proxies,
CA bundle) is read once. What cannot be had whole is an `UnreachableError`.

Connections, their pool, TLS and proxies are urllib3's; answers are parsed by httptools, at a fraction of what
http.client takes for the headers alone.
"""

from __future__ import annotations

import http.client
import queue
import ssl
import threading
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httptools

from backbone.clock import Clock, current_deadline
from backbone.errors import PayloadError, UnreachableError
from backbone.locks import RUN_LOCK
from backbone.settings import ca_bundle, proxy_of

__all__ = ["BODY_BYTES", "IDLE_S", "Transport"]

BODY_BYTES = 64 << 20
"""Largest body accepted; the venue's largest (all books) is 2.3 MB."""
IDLE_S = 50.0
"""A connection unused for so long is not used again: servers commonly hang up after 60 s."""
_HEAD_BYTES = 64 << 10
_BUFFER = 1 << 16  # a page of candles in one read, where it is all there
_GZIP = 16 + zlib.MAX_WBITS
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": "backbone (Python)"}


class Transport:
    """An adapter and what the environment said when it was made; `timeout_s` to connect, and between two reads."""

    def __init__(self, base_url: str, clock: Clock, timeout_s: tuple[float, float], total_s: float, pool: int) -> None:
        import requests.adapters
        import urllib3

        self._proxy = proxy_of(base_url)
        self._verify = ca_bundle() or True
        self._adapter: Any = requests.adapters.HTTPAdapter(pool_connections=4, pool_maxsize=pool, max_retries=0)
        self._timing = {"clock": clock, "total_s": total_s, "read_s": timeout_s[1]}
        self._opening = threading.Lock()  # held while the pool is made
        self._pool: Any = None  # the venue's, with what every request carries
        self._is_absolute = False  # whether the request line names the host: to a proxy that reads it
        self._timeout = urllib3.Timeout(connect=timeout_s[0])
        self._connect_s = timeout_s[0]
        self._never = urllib3.Retry(0, read=False)

    def fetch(self, url: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case) and body of one GET; `UnreachableError` when they could not be had."""
        import requests
        import urllib3

        try:
            answer = self._send(url)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            raise UnreachableError(f"no answer from {url.partition('?')[0]}: {self._cause(exc)}") from exc
        return answer.status, answer.headers, answer.body()

    def _send(self, url: str) -> Any:
        """The answer, read to its end.

        What a session does anew for each request (the pool, its TLS settings, the headers, cookies that nobody sets) is
        done once: it took as long as the request itself.
        """
        import requests

        pool = self._open_pool(url)
        path = url[url.index("/", url.index("//") + 2) :]
        if self._is_absolute:
            path = str(requests.Request("GET", url).prepare().url)
        return pool.urlopen("GET", path, None, _HEADERS, self._never, False, False, self._timeout, release_conn=True)

    def _open_pool(self, url: str) -> Any:
        if self._pool is None:
            with self._opening:
                self._pool = self._pool or self._make_pool(url)
        return self._pool

    def _make_pool(self, url: str) -> Any:
        import requests

        prepared = requests.Request("GET", url).prepare()
        proxies = {"http": self._proxy, "https": self._proxy} if self._proxy else {}
        spelled: Any = requests.utils.prepend_scheme_if_needed  # as the adapter does it
        proxy = spelled(self._proxy, "http") if self._proxy else ""
        manager = self._adapter.proxy_manager_for(proxy) if proxy else self._adapter.poolmanager
        timing = self._timing | {"netloc": _host_of(str(prepared.url))}
        classes = manager.pool_classes_by_scheme
        manager.pool_classes_by_scheme = {scheme: _timed(pool, timing) for scheme, pool in classes.items()}
        pool = self._adapter.get_connection_with_tls_context(prepared, self._verify, proxies=proxies)
        self._adapter.cert_verify(pool, url, self._verify, None)
        self._is_absolute = self._adapter.request_url(prepared, proxies) == prepared.url
        return pool

    @property
    def is_warm(self) -> bool:
        """Whether a connection is open and free, so that a request waits for nothing but its answer."""
        idle = None if self._pool is None or self._proxy else self._pool.pool  # None where the pool was closed
        if idle is None:
            return False
        try:
            connection: Any = idle.get_nowait()  # the one that the next request takes
        except queue.Empty:
            return False
        try:
            return connection is not None and connection.is_connected
        finally:
            self._pool._put_conn(connection)  # noqa: SLF001 - to look may be to read: nobody else had it meanwhile

    def warm(self, url: str) -> None:
        import requests
        import urllib3

        if self._proxy:
            return
        try:
            pool = self._open_pool(url)
            connection: Any = pool._get_conn()  # noqa: SLF001 - no public way; drops one that is stale or idle for too long
            try:
                if connection.is_closed:
                    connection.timeout = self._connect_s
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
        if self._pool is not None:
            self._pool.close()
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


def _host_of(url: str) -> str:
    """What a request's ``Host`` header says: the name as it is sent, and no port that goes without saying."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2].removesuffix({"http": ":80", "https": ":443"}.get(parts.scheme, ""))


def _timed(pool: Any, timing: dict[str, Any]) -> Any:
    """A class of pools whose connections keep the deadlines of `_Timed`; one that is such a class as it is."""
    if issubclass(pool.ConnectionCls, _Timed):  # an attempt before this one failed
        return pool
    connection = type("Timed", (_Timed, pool.ConnectionCls), timing)
    return type("TimedPool", (pool,), {"ConnectionCls": connection})


class _Answer:
    """One answer, as it is parsed. The callbacks are httptools', the last three attributes urllib3's."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_complete = False
        self.must_close = False
        self._size = 0
        self._has_head = False
        self._parts: list[bytes] = []
        self._parser: Any = httptools.HttpResponseParser(self)  # until all is there: the two hold each other
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True)
        self.version_string = "HTTP/1.1"
        self.length_remaining = 0
        self.retries: Any = None

    def feed(self, data: bytes) -> None:
        """Raises `http.client.HTTPException` for what is no HTTP or cut, and `PayloadError` for too much."""
        if not data:
            self._end()
            return
        self._size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self.must_close = True
            if not self.is_complete:
                raise http.client.HTTPException(f"the answer is no HTTP ({exc})") from exc
        if self._size > BODY_BYTES:
            raise _too_large()
        if self._size > _HEAD_BYTES and not self._has_head:
            raise http.client.HTTPException(f"the headers are larger than {_HEAD_BYTES >> 10} KB")

    def _end(self) -> None:
        """The connection was closed: the end of a body whose length nothing says, and of every other a cut."""
        if not self._size:
            raise http.client.RemoteDisconnected("the connection was closed without an answer")
        if not self._has_head or {"content-length", "transfer-encoding"} & self.headers.keys():
            raise http.client.IncompleteRead(b"".join(self._parts))
        self.is_complete = self.must_close = True

    def body(self) -> bytes:
        """What was sent, decompressed; `PayloadError` where that cannot be done."""
        data, encoding = b"".join(self._parts), self.headers.get("content-encoding", "").lower()
        if encoding in ("", "identity") or not data:
            return data
        found = b""
        while data:  # what is packed may come in several parts
            unpacker = zlib.decompressobj(_GZIP)
            try:
                found += unpacker.decompress(data, BODY_BYTES - len(found) + 1)
            except zlib.error as exc:
                raise PayloadError(f"the body is not what its encoding says: {exc}") from exc
            if len(found) > BODY_BYTES:
                raise _too_large()
            if not unpacker.eof:
                raise PayloadError(f"the body is not what its encoding says: the end of {encoding} is missing")
            data = unpacker.unused_data
        return found

    def on_message_begin(self) -> None:
        if self.is_complete:
            self.must_close = True  # more than was asked for
        else:
            self.headers.clear()  # of what only announced it

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.is_complete:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self.is_complete:
            return
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= 200
        self.must_close = not self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        if not self.is_complete:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        self.is_complete = self._has_head

    def release(self) -> None:
        """Nothing more is fed."""
        self._parser = None


def _too_large() -> PayloadError:
    return PayloadError(f"the body is larger than {BODY_BYTES >> 20} MB")


class _Timed:
    """What a connection gains: a total deadline per request, and an age beyond which it counts as dropped."""

    clock: Clock
    total_s: float
    read_s: float
    netloc: str
    deadline_s = float("inf")
    used_s = 0.0
    sock: Any

    def connect(self) -> None:
        with RUN_LOCK.waiting():
            super().connect()  # type: ignore[misc]
        self.used_s = self.clock.monotonic()

    def request(self, method: str, url: str, *, headers: Mapping[str, str], **_: Any) -> None:
        """Send a request without a body."""
        if self.sock is None:
            self.connect()
        deadline = current_deadline()  # of the call that sends on its own thread
        left_s = self.total_s if deadline is None else min(self.total_s, deadline.left_s())
        self.deadline_s = self.clock.monotonic() + left_s
        self._set_timeout()
        lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": self.netloc, **headers}.items())
        self.sock.sendall(f"{method} {url} HTTP/1.1\r\n{lines}\r\n".encode("ascii"))
        self.used_s = self.clock.monotonic()

    def getresponse(self) -> _Answer:
        """The whole answer; each read minds the deadline."""
        answer = _Answer()
        try:
            while not answer.is_complete:
                self._set_timeout()
                with RUN_LOCK.waiting():
                    data = self.sock.recv(_BUFFER)
                answer.feed(data)
        finally:
            answer.release()
        if answer.must_close:
            self.close()  # type: ignore[attr-defined]
        return answer

    def _set_timeout(self) -> None:
        left_s = self.deadline_s - self.clock.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"the answer took longer than {self.total_s:g} s")
        timeout = min(left_s, self.read_s)
        if timeout != self.sock.gettimeout():
            self.sock.settimeout(timeout)

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
