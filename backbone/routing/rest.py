"""One question over HTTP: warm connections, hard deadlines, and every failure translated once into the
error tree.

What is decided here: how an `Ask` travels, what counts as no answer, and which error a refusal becomes.
Never here: retries, permits and order (each attempt needs a new permit, which only the scheduler can give).
Invariants: no ``Origin`` header, no redirect followed, no request outlives its total deadline however
slowly bytes drip, no body grows past a bound, the environment (proxies, CA bundle) is read once.

One session per client, made on first use and made anew in a forked child; `RestClient._lock` guards its
making and nothing else. Connections idle for long are dropped before use, because a request that dies on
one costs a permit.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

from backbone.clock import Clock
from backbone.errors import ClosedError, PayloadError, SourceError, UnreachableError
from backbone.locks import renew_after_fork
from backbone.routing.refusals import parse_date, parse_remaining, refusal
from backbone.routing.wire import Ask

if TYPE_CHECKING:
    import requests

__all__ = ["Reply", "ReplyFacts", "RestClient"]

BODY_BYTES = 64 << 20
"""Largest body believed; the venue's largest (all books) is 2.3 MB."""
IDLE_S = 50.0
"""A connection unused for so long is not used again: servers commonly hang up after 60 s."""
TOTAL_S = 20.0
"""Seconds from the first byte sent to the last byte received, at most."""
_CHUNK = 1 << 18


class ReplyFacts(NamedTuple):
    """What the transport saw of one exchange, refused or not; the scheduler learns the quota from it.

    ``group`` and ``remaining`` are the reply's own words on the rate (None: silent), ``date_us`` its
    ``Date``; ``sent_s`` and ``received_s`` are monotonic.
    """

    group: str | None
    remaining: int | None
    date_us: int | None
    sent_s: float
    received_s: float


@dataclass(frozen=True)
class Reply:
    """A parsed answer with its `ReplyFacts`; ``size`` is the body's in bytes, decompressed."""

    value: Any
    group: str | None
    remaining: int | None
    date_us: int | None
    sent_s: float
    received_s: float
    size: int


class RestClient:
    """Sends questions to one venue. Safe to share between threads; opens nothing before the first `send`.

    Parameters
    ----------
    base_url : without the version, e.g. ``"https://api.upbit.com"``.
    timeout_s : to connect, and between two reads; `TOTAL_S` bounds the whole besides.
    pool : connections kept, at least the number of threads that send.
    """

    def __init__(
        self,
        base_url: str,
        *,
        clock: Clock,
        timeout_s: tuple[float, float] = (3.05, 10.0),
        total_s: float = TOTAL_S,
        pool: int = 16,
        user_agent: str = "backbone (Python)",
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._clock = clock
        self._timeout_s = timeout_s
        self._total_s = total_s
        self._pool = pool
        self._user_agent = user_agent
        self._critical: RestClient | None = None
        self._is_closed = False
        self._line: _Line | None = None
        self._lock = threading.Lock()
        renew_after_fork(self, RestClient._forget_session)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "idle" if self._line is None else "open"
        return f"<RestClient {self._base_url} {state}>"

    @property
    def base_url(self) -> str:
        return self._base_url

    def send(self, ask: Ask) -> Reply:
        """Put one question once and parse the answer.

        Raises `UnreachableError`, `RateLimitedError`, `RejectedError` or `PayloadError`, each with ``url``,
        ``market`` and ``reply_facts``; `ClosedError` after `close`.
        """
        line = self._open_line()
        url = self._url(ask)
        sent_s = self._clock.monotonic()
        try:
            status, headers, body = line.fetch(url, self._timeout_s)
        except SourceError as error:
            facts = ReplyFacts(None, None, None, sent_s, self._clock.monotonic())
            raise _with_facts(error, ask, url, facts) from error.__cause__
        group, remaining = parse_remaining(headers.get("Remaining-Req"))
        date_us = parse_date(headers.get("Date"))
        facts = ReplyFacts(group, remaining, date_us, sent_s, self._clock.monotonic())
        if status != 200:
            now_us = self._clock.now_us() if date_us is None else date_us
            wait, target = headers.get("Retry-After"), headers.get("Location", "")
            refused = refusal(status, body, group or ask.group, now_us, retry_after=wait, location=target)
            raise _with_facts(refused, ask, url, facts)
        try:
            value = ask.parse(body)
        except PayloadError as error:
            raise _with_facts(error, ask, url, facts) from error.__cause__
        return Reply(value, *facts, size=len(body))

    def critical(self) -> RestClient:
        """A sibling with connections of its own, that no bulk request can hold; closed with this one."""
        with self._lock:
            if self._critical is None:
                self._critical = RestClient(
                    self._base_url,
                    clock=self._clock,
                    timeout_s=self._timeout_s,
                    total_s=self._total_s,
                    pool=4,
                    user_agent=self._user_agent,
                )
                self._critical._is_closed = self._is_closed
            return self._critical

    def warm(self) -> None:
        """Have one connection open and young (TCP and TLS), without spending a request.

        Cheap when it is; call it more often than every `IDLE_S`. Raises `UnreachableError`. Through a proxy
        it does nothing: there the first request opens the connection.
        """
        self._open_line().warm(self._base_url, self._timeout_s[0])

    def close(self) -> None:
        """Close all connections; requests under way end first. Calling it twice is fine."""
        with self._lock:
            self._is_closed = True
            line, self._line = self._line, None
            critical = self._critical
        if line is not None:
            line.close()
        if critical is not None:
            critical.close()

    def _url(self, ask: Ask) -> str:
        query = urlencode(ask.query, safe=",", quote_via=quote)  # commas stay: 855 codes make a long line
        return f"{self._base_url}/v1{ask.path}" + (f"?{query}" if query else "")

    def _open_line(self) -> _Line:
        with self._lock:
            if self._is_closed:
                raise ClosedError("this client is closed; make a new one")
            if self._line is None:
                self._line = _Line(
                    self._base_url, self._clock, self._total_s, self._pool, {"User-Agent": self._user_agent}
                )
            return self._line

    def _forget_session(self) -> None:
        """Start over in a forked child: the sockets are its parent's, and who held the lock is gone."""
        self._lock = threading.Lock()
        self._line = None


# ---------------------------------------------------------------------------------------------- translation


def _with_facts(error: SourceError, ask: Ask, url: str, facts: ReplyFacts) -> SourceError:
    error.url = url
    error.market = error.market or ask.market
    error.reply_facts = facts
    return error


# ------------------------------------------------------------------------------------------------ transport


class _Line:
    """A session with its adapter and what the environment said when it was made."""

    def __init__(self, base_url: str, clock: Clock, total_s: float, pool: int, headers: dict[str, str]) -> None:
        import requests

        self._session = requests.Session()
        self._route = self._session.merge_environment_settings(base_url, {}, None, None, None)
        self._session.trust_env = False  # the environment was asked once, above
        self._session.headers.clear()
        self._session.headers.update({"Accept": "application/json", "Accept-Encoding": "gzip", **headers})
        self._adapter = _adapter(clock, total_s, pool)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, self._adapter)

    def _prepare(self, url: str) -> requests.PreparedRequest:
        import requests

        return self._session.prepare_request(requests.Request("GET", url))

    def fetch(self, url: str, timeout_s: tuple[float, float]) -> tuple[int, Any, bytes]:
        """Status, headers and body of one GET; `UnreachableError` when they could not be had whole."""
        import requests
        import urllib3

        try:
            route = self._route | {"stream": True}
            response = self._adapter.send(self._prepare(url), timeout=timeout_s, **route)
            try:
                return response.status_code, response.headers, _read_body(response.raw)
            finally:
                response.close()
        except urllib3.exceptions.DecodeError as exc:
            raise PayloadError(f"the body is not what its encoding says: {exc}") from exc
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            raise UnreachableError(f"no answer from {url.partition('?')[0]}: {_cause(exc)}") from exc

    def warm(self, url: str, timeout_s: float) -> None:
        import requests
        import urllib3

        if requests.utils.select_proxy(url, self._route["proxies"]):
            return
        verify, cert = self._route["verify"], self._route["cert"]
        try:
            pool = self._adapter.get_connection_with_tls_context(self._prepare(url), verify, cert=cert)
            self._adapter.cert_verify(pool, url, verify, cert)
            connection: Any = pool._get_conn()  # drops one that is stale or idle for too long
            try:
                if connection.is_closed:
                    connection.timeout = timeout_s
                    connection.connect()
            finally:
                pool._put_conn(connection)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            raise UnreachableError(f"cannot connect to {url}: {_cause(exc)}") from exc

    def close(self) -> None:
        self._session.close()


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


def _adapter(clock: Clock, total_s: float, pool: int) -> Any:
    """A requests adapter whose connections keep the deadlines of `_Timed`, and which never retries."""
    import requests.adapters
    import urllib3.connection
    import urllib3.connectionpool

    class Plain(_Timed, urllib3.connection.HTTPConnection):  # type: ignore[misc]
        pass

    class Secure(_Timed, urllib3.connection.HTTPSConnection):  # type: ignore[misc]
        pass

    class PlainPool(urllib3.connectionpool.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.connectionpool.HTTPSConnectionPool):
        ConnectionCls = Secure

    class Adapter(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}

        def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
            manager = super().proxy_manager_for(*args, **kwargs)
            if not str(args[0]).lower().startswith("socks"):
                manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
            return manager

    _Timed.configure(Plain, clock, total_s)
    _Timed.configure(Secure, clock, total_s)
    return Adapter(pool_connections=4, pool_maxsize=pool, max_retries=0, pool_block=False)


class _Timed:
    """What a connection gains: a total deadline per request, and an age beyond which it counts as dropped."""

    clock: Clock
    total_s: float
    deadline_s = float("inf")
    used_s = 0.0
    sock: Any
    timeout: Any

    @staticmethod
    def configure(connection_type: Any, clock: Clock, total_s: float) -> None:
        connection_type.clock = clock
        connection_type.total_s = total_s

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.used_s = self.clock.monotonic()

    def request(self, *args: Any, **kwargs: Any) -> None:
        self.deadline_s = self.clock.monotonic() + self.total_s
        super().request(*args, **kwargs)  # type: ignore[misc]
        self.used_s = self.clock.monotonic()

    def response_class(self, sock: socket.socket, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:
        """What http.client calls to read an answer, head and body: here each read minds the deadline."""
        response = http.client.HTTPResponse(sock, *args, **kwargs)
        raw = response.fp.detach()
        response.fp = io.BufferedReader(_DeadlineReader(raw, sock, self))
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
        self._sock.settimeout(left_s if timeout is None else min(left_s, timeout))
        count: int | None = self._raw.readinto(buffer)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
