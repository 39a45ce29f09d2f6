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

import threading
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from backbone.clock import Clock
from backbone.errors import ClosedError, PayloadError, SourceError
from backbone.locks import renew_after_fork
from backbone.routing.http import Transport
from backbone.routing.refusals import SIGN_IN, is_web_page, parse_date, parse_remaining, refusal, sample_of
from backbone.routing.wire import Ask

__all__ = ["Reply", "ReplyFacts", "RestClient"]

TOTAL_S = 20.0
"""Seconds from the first byte sent to the last byte received, at most."""


class ReplyFacts(NamedTuple):
    """What the transport saw of one exchange, refused or not; the scheduler learns the quota from it.

    ``group`` and ``remaining`` are what the reply says of the rate (None: nothing), ``date_us`` its
    ``Date``; ``sent_s`` and ``received_s`` are monotonic.
    """

    group: str | None
    remaining: int | None
    date_us: int | None
    sent_s: float
    received_s: float


class Reply(msgspec.Struct, frozen=True):
    """A parsed answer with its `ReplyFacts`; ``body`` is what was parsed, decompressed."""

    value: Any
    group: str | None
    remaining: int | None
    date_us: int | None
    sent_s: float
    received_s: float
    body: bytes


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
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._clock = clock
        self._timeout_s = timeout_s
        self._total_s = total_s
        self._pool = pool
        self._is_closed = False
        self._transport: Transport | None = None
        self._lock = threading.Lock()
        renew_after_fork(self, RestClient._forget_session)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "idle" if self._transport is None else "open"
        return f"<RestClient {self._base_url} {state}>"

    @property
    def base_url(self) -> str:
        return self._base_url

    def send(self, ask: Ask) -> Reply:
        """Put one question once and parse the answer.

        Raises `UnreachableError`, `RateLimitedError`, `RejectedError` or `PayloadError`, each with ``url``,
        ``market`` and ``reply_facts``; `ClosedError` after `close`.
        """
        transport = self._open_transport()
        url = self._url(ask)
        sent_s = self._clock.monotonic()
        facts: ReplyFacts | None = None
        try:
            status, headers, body = transport.fetch(url)
            group, remaining = parse_remaining(headers.get("remaining-req"))
            date_us = parse_date(headers.get("date"))
            facts = ReplyFacts(group, remaining, date_us, sent_s, self._clock.monotonic())
            if status != 200:
                now_us = self._clock.now_us() if date_us is None else date_us
                wait, target = headers.get("retry-after"), headers.get("location", "")
                raise refusal(status, body, group or ask.group, now_us, retry_after=wait, location=target)
            if is_web_page(body):
                what = f"{url.partition('?')[0]} answered with a web page: {SIGN_IN}"
                raise PayloadError(what, sample=sample_of(body))
            value = ask.parse(body)
        except SourceError as error:
            error.url, error.market = url, error.market or ask.market
            error.reply_facts = facts or ReplyFacts(None, None, None, sent_s, self._clock.monotonic())
            raise
        return Reply(value, *facts, body)

    @property
    def is_warm(self) -> bool:
        """Whether a connection is open and free; never through a proxy."""
        transport = self._transport
        return transport is not None and transport.is_warm

    def warm(self) -> None:
        """Have one connection open and young (TCP and TLS), without spending a request.

        Cheap when it is; call it more often than every `IDLE_S`. Raises `UnreachableError`. Through a proxy
        it does nothing: there the first request opens the connection.
        """
        self._open_transport().warm(self._base_url)

    def close(self) -> None:
        """Close all connections; requests under way end first. Calling it twice is fine."""
        with self._lock:
            self._is_closed = True
            transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def _url(self, ask: Ask) -> str:
        query = "&".join(f"{name}={quote(value, safe=',')}" for name, value in ask.query)  # 855 codes make a long line
        return f"{self._base_url}/v1{ask.path}" + (f"?{query}" if query else "")

    def _open_transport(self) -> Transport:
        with self._lock:
            if self._is_closed:
                raise ClosedError("this client is closed; make a new one")
            if self._transport is None:
                self._transport = Transport(self._base_url, self._clock, self._timeout_s, self._total_s, self._pool)
            return self._transport

    def _forget_session(self) -> None:
        """Start over in a forked child: the sockets are its parent's, and who held the lock is gone."""
        self._lock = threading.Lock()
        self._transport = None
