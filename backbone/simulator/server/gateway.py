"""One request to the embedded exchange: what the network, the rate windows and the faults make of its answer.

A venue `latency_s` away: half of it passes before a request is counted and answered, half before the answer is sent
(computing it included), and a connection's first request pays one more round trip, because that is what connecting
costs. Everything here runs on the server's loop; long computations go to its one worker thread.
"""

from __future__ import annotations

import asyncio
import gzip
import math
import random
import socket
import struct
import weakref
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING

from backbone.simulator.market.venue import Venue
from backbone.simulator.server.archive import ArchiveBranch, is_archive_path
from backbone.simulator.server.clock import ExchangeClock, machine_s, window_s
from backbone.simulator.server.faults import Fault, Faults
from backbone.simulator.server.limits import Limits, Verdict
from backbone.simulator.server.rest import NOT_FOUND, Route, answer, error_body, find_route
from backbone.simulator.server.sockets import Hub

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["Gateway"]

_SERVER = "backbone-simulator"
_JSON = "application/json;charset=UTF-8"
_SOCKETS = ("/websocket/v1", "/websocket/v1/private", "/websocket/v1/info")

_PAGES = {
    "gate": (414, b"<html><body><h1>Request-URI Too Long</h1></body></html>"),
    "portal": (200, b"<html><head><title>Welcome</title></head><body>Please sign in to this network</body></html>"),
    "502-html": (502, b"<html><head><title>502 Bad Gateway</title></head><body>502 Bad Gateway</body></html>"),
}
"""The status and the page of the faults that answer with one."""


@dataclass(kw_only=True)
class Gateway:
    """Answers requests. See the module's docstring.

    Parameters
    ----------
    note : is called with each request's time, group, path, query and status.
    latency_s, jitter_s : the round trip, and how much it varies.
    draw : the generator that the jitter is drawn from.
    gzip_on : whether replies are compressed for clients that ask.
    refusal : the body of a 429, ``"text"`` or ``"json"``.
    worker : what computes heavy answers, while the server runs.
    """

    venue: Venue
    clock: ExchangeClock
    faults: Faults
    limits: Limits
    hub: Hub
    note: Callable[[float, str, str, dict[str, str], int], None]
    latency_s: float
    jitter_s: float
    draw: random.Random
    gzip_on: bool
    refusal: str
    worker: ThreadPoolExecutor | None = None
    _met: weakref.WeakSet[asyncio.BaseTransport] = field(default_factory=weakref.WeakSet)

    def __post_init__(self) -> None:
        self._archive = ArchiveBranch(self.venue)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to one request."""
        due = await self._travel(request)
        arrived = machine_s()
        if request.path.startswith("/websocket/"):
            return await self._handle_socket(request, arrived)
        query = {name: ",".join(request.query.getall(name)) for name in request.query}  # pyupbit repeats a name
        route = find_route(request.path) if request.method == "GET" else None
        is_archived = is_archive_path(request.path)
        group = "archive" if is_archived else route.group if route is not None else ""
        try:
            faults = self.faults.take(request.path_qs)
            for fault in faults:
                await self._delay(fault)
            if is_archived:
                reply = await self._reply_of_archive(request, query.get("prefix", ""), faults)
            else:
                reply = await self._reply(request, route, query, faults)
        except _Cut as cut:
            self.note(arrived, group, request.path, query, 0)
            return await cut.carry_out(request)
        self.note(arrived, group, request.path, query, reply.status)
        await self._pause_for(due + self._half_trip() - machine_s())
        return reply

    async def _reply_of_archive(self, request: web.BaseRequest, prefix: str, faults: Sequence[Fault]) -> web.Response:
        """The bulk archive: another host at the venue, without a quota."""
        kinds = frozenset(fault.kind for fault in faults)
        if "500" in kinds:
            return self._respond(request, 500, b"", None, content_type="text/plain", zipped=False)
        words = request.path, prefix, self.clock.now_us(), kinds
        found = await asyncio.get_running_loop().run_in_executor(self.worker, self._archive.answer, *words)
        body = b"<<" + found.body[:100] if "garbage" in kinds else b"[]" if "empty" in kinds else found.body
        return self._respond(
            request, found.status, body, None, content_type=found.content_type, zipped=False, faults=faults
        )

    def _half_trip(self) -> float:
        return max(0.0, self.latency_s + self.draw.uniform(-self.jitter_s, self.jitter_s)) / 2

    async def _travel(self, request: web.BaseRequest) -> float:
        """The way to the exchange; when it ends, which others that are answered then do not change."""
        trip_s = self._half_trip()
        if request.transport is not None and request.transport not in self._met:  # connecting costs a round trip more
            self._met.add(request.transport)
            trip_s += self.latency_s
        due = machine_s() + trip_s
        await self._pause_for(trip_s)
        return due

    @staticmethod
    async def _pause_for(seconds: float) -> None:
        if seconds > 0:
            await asyncio.sleep(seconds)

    async def _reply(
        self, request: web.BaseRequest, route: Route | None, query: dict[str, str], faults: Sequence[Fault]
    ) -> web.Response:
        if route is None:
            return self._respond(request, 404, NOT_FOUND, None)
        verdict = self.limits.ask(route.group, window_s(), origin="Origin" in request.headers)
        refused = self._refused(request, verdict, faults)
        if refused is not None:
            return refused
        words = route, self.venue, query, self.clock.now_us(), faults
        if route.heavy:
            status, body = await asyncio.get_running_loop().run_in_executor(self.worker, answer, *words)
        else:
            status, body = answer(*words)
        if status != 200:
            return self._respond(request, status, body, verdict)
        is_zipped = all(fault.kind != "gzip-off" for fault in faults)
        return self._respond(request, status, body, verdict, zipped=is_zipped, faults=faults)

    async def _delay(self, fault: Fault) -> None:
        if fault.kind == "slow":
            await asyncio.sleep(fault.number("seconds", 1.0))
        elif fault.kind == "stall":
            await asyncio.sleep(fault.number("seconds", 30.0))
            raise _Cut
        elif fault.kind == "reset":
            raise _Cut(is_reset=True)

    def _refused(self, request: web.BaseRequest, verdict: Verdict, faults: Iterable[Fault]) -> web.Response | None:
        """The refusal that a rate verdict or a fault asks for, if any."""
        for fault in faults:
            if fault.kind == "429":
                return self._too_many(request, verdict, fault.text("body", self.refusal))
            if fault.kind == "418":
                verdict = self.limits.block(window_s(), fault.number("seconds", 5.0))
            if fault.kind == "500":
                return self._respond(request, 500, error_body(500, "server error"), verdict)
            if fault.kind in _PAGES:
                status, page = _PAGES[fault.kind]
                status = int(fault.number("status", status))
                return self._respond(request, status, page, None, content_type="text/html")
        if verdict.status == 418:
            seconds = max(1, math.ceil(verdict.block_s))
            message = f"Too many requests. Your IP is blocked for {seconds} seconds."
            return self._respond(request, 418, error_body(418, message), None)
        if verdict.status == 429:
            return self._too_many(request, verdict, self.refusal)
        return None

    def _too_many(self, request: web.BaseRequest, verdict: Verdict, body: str) -> web.Response:
        if body == "json":
            return self._respond(request, 429, error_body(429, "Too many API requests."), verdict)
        return self._respond(request, 429, b"Too many API requests.", verdict, content_type="text/plain;charset=UTF-8")

    def _respond(
        self,
        request: web.BaseRequest,
        status: int,
        body: bytes,
        verdict: Verdict | None,
        *,
        content_type: str = _JSON,
        zipped: bool = True,
        faults: Iterable[Fault] = (),
    ) -> web.Response:
        from aiohttp import web

        headers = {"Date": self._date(), "Content-Type": content_type, "Server": _SERVER}
        if verdict is not None and verdict.header:
            headers["Remaining-Req"] = verdict.header
            headers["Limit-By-Ip"] = "Yes"
        if status == 200:
            headers["ETag"] = f'W/"0{zlib.crc32(body):08x}{len(body):x}"'
            headers["Cache-Control"] = "no-cache, no-store, max-age=0, must-revalidate"
            headers["Pragma"], headers["Expires"] = "no-cache", "0"
            headers["Vary"] = "origin,access-control-request-method,access-control-request-headers,accept-encoding"
            if self.gzip_on and zipped and len(body) > 256 and "gzip" in request.headers.get("Accept-Encoding", ""):
                body = gzip.compress(body, 1)
                headers["Content-Encoding"] = "gzip"
        for fault in faults:
            if fault.kind == "cut":
                raise _Cut(_first_part(status, headers, body, fault.number("at", 0.5)))
        return web.Response(status=status, body=body, headers=headers)

    def _date(self) -> str:
        return format_datetime(datetime.fromtimestamp(self.clock.now_us() // 1_000_000, UTC), usegmt=True)

    async def _handle_socket(self, request: web.BaseRequest, arrived: float) -> web.StreamResponse:
        """Upgrade, unless the path, the connection limit or a fault forbids it."""
        if request.path not in _SOCKETS or request.headers.get("Upgrade", "").lower() != "websocket":
            self.note(arrived, "", request.path, {}, 404)
            return self._respond(request, 404, NOT_FOUND, None)
        verdict = self.limits.ask("websocket", window_s(), origin="Origin" in request.headers)
        status = verdict.status
        for fault in self.faults.take(request.path_qs, websocket=True, only={"ws-refuse"}):
            status = int(fault.number("status", 429))
        self.note(arrived, "websocket", request.path, {}, 101 if status == 200 else status)
        if status == 200:
            headers = {"Date": self._date(), "Server": _SERVER, "Remaining-Req": verdict.header}
            return await self.hub.serve(request, headers)
        refused = self._refused(request, replace(verdict, status=status), ())
        if refused is not None:
            return refused
        return self._respond(request, status, error_body(status, "unavailable"), None)


class _Cut(Exception):
    """The connection ends here, after the bytes `sent`; with `is_reset` the other side gets a reset."""

    def __init__(self, sent: bytes = b"", *, is_reset: bool = False) -> None:
        super().__init__()
        self._sent, self._is_reset = sent, is_reset

    async def carry_out(self, request: web.BaseRequest) -> web.StreamResponse:
        from aiohttp import web

        transport = request.transport
        if transport is not None:
            if self._sent:
                transport.write(self._sent)
                await asyncio.sleep(0.02)  # let them arrive before the connection goes
            if self._is_reset:
                raw = transport.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        return web.Response(status=500)


def _first_part(status: int, headers: dict[str, str], body: bytes, at: float) -> bytes:
    """A reply's head, which states the full length, and the first part of its body."""
    lines = [f"HTTP/1.1 {status} OK", *(f"{k}: {v}" for k, v in headers.items()), f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body[: int(len(body) * at)]
