"""One request to the embedded exchange: what the network, the rate windows and the faults make of its answer.

A venue `latency_s` away: half of it passes before a request is counted and answered, half before the answer is sent,
and a connection's first request pays one more round trip, because that is what connecting costs. Everything here runs
on the server's loop; long computations go to its one worker thread.
"""

from __future__ import annotations

import asyncio
import gzip
import math
import random
import socket
import struct
import zlib
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import msgspec

from backbone.clock import SystemClock
from backbone.simulator.market.venue import Row, Venue
from backbone.simulator.server.archive import Answer, ArchiveBranch, is_archive_path
from backbone.simulator.server.clock import ExchangeClock
from backbone.simulator.server.faults import ROW_FAULTS, Fault, Faults, corrupt
from backbone.simulator.server.limits import Limits, Verdict
from backbone.simulator.server.rest import NOT_FOUND, Refusal, Route, answer, error_body, find_route, spell
from backbone.simulator.server.sockets import Hub

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.web_protocol import RequestHandler

__all__ = ["WALL_S", "Gateway"]

Note = Callable[[float, str, str, dict[str, str], int], None]

_SERVER = "backbone-simulator"
_JSON = "application/json;charset=UTF-8"
_SOCKETS = ("/websocket/v1", "/websocket/v1/private", "/websocket/v1/info")
_MACHINE = SystemClock()
WALL_S = _MACHINE.now_us() / 1e6 - _MACHINE.monotonic()
"""Rate windows follow the machine's whole seconds, and never step."""


class Gateway:
    """Answers requests. See the module's docstring.

    Parameters
    ----------
    note : is called with each request's time, group, path, query and status.
    latency_s, jitter_s : the round trip, and how much it varies.
    gzip_on : whether replies are compressed for clients that ask.
    refusal : the body of a 429, ``"text"`` or ``"json"``.
    """

    def __init__(
        self,
        venue: Venue,
        clock: ExchangeClock,
        faults: Faults,
        limits: Limits,
        note: Note,
        *,
        seed: int,
        latency_s: float,
        jitter_s: float,
        gzip_on: bool,
        refusal: str,
    ) -> None:
        self._venue, self._clock, self._faults, self._limits, self._note = venue, clock, faults, limits, note
        self._archive = ArchiveBranch(venue)
        self._latency_s, self._jitter_s = latency_s, jitter_s
        self._random = random.Random(seed)
        self._gzip_on, self._refusal = gzip_on, refusal
        self._met: set[RequestHandler] = set()  # connections that already paid for connecting
        self._connections: Callable[[], Iterable[RequestHandler]] = tuple
        self._hub: Hub | None = None
        self._worker: ThreadPoolExecutor | None = None

    def open(self, hub: Hub, worker: ThreadPoolExecutor, connections: Callable[[], Iterable[RequestHandler]]) -> None:
        """The server's loop runs: what sockets, long computations and first requests need."""
        self._hub, self._worker, self._connections = hub, worker, connections

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        await self._travel(request)
        arrived = _MACHINE.monotonic()
        if request.path.startswith("/websocket/"):
            return await self._handle_socket(request, arrived)
        if is_archive_path(request.path):
            return await self._handle_archive(request, arrived)
        query = {name: ",".join(request.query.getall(name)) for name in request.query}  # pyupbit repeats a name
        route = find_route(request.path) if request.method == "GET" else None
        group = route.group if route is not None else ""
        try:
            reply = await self._reply(request, route, query)
        except _Cut as cut:
            self._note(arrived, group, request.path, query, 0)
            return await cut.carry_out(request)
        self._note(arrived, group, request.path, query, reply.status)
        await self._pause_for(self._half_trip())
        return reply

    async def _handle_archive(self, request: web.BaseRequest, arrived: float) -> web.StreamResponse:
        """The bulk archive: another host at the venue, without a quota."""
        faults = self._faults.take(request.path_qs)
        kinds = frozenset(fault.kind for fault in faults)
        query = {"prefix": request.query.get("prefix", "")}
        try:
            for fault in faults:
                await self._delay(fault)
            found = Answer(500, b"", "text/plain")
            if "500" not in kinds:
                words = (request.path, query["prefix"], self._clock.now_us(), kinds)
                found = await asyncio.get_running_loop().run_in_executor(self._worker, self._archive.answer, *words)
            body = b"<<" + found.body[:100] if "garbage" in kinds else b"[]" if "empty" in kinds else found.body
            cut = next((fault for fault in faults if fault.kind == "cut"), None)
            where = found.content_type
            reply = self._respond(request, found.status, body, None, content_type=where, zipped=False, cut=cut)
        except _Cut as cut:
            self._note(arrived, "archive", request.path, query, 0)
            return await cut.carry_out(request)
        self._note(arrived, "archive", request.path, query, reply.status)
        await self._pause_for(self._half_trip())
        return reply

    def _half_trip(self) -> float:
        return max(0.0, self._latency_s + self._random.uniform(-self._jitter_s, self._jitter_s)) / 2

    async def _travel(self, request: web.BaseRequest) -> None:
        delay = self._half_trip()
        if request.protocol not in self._met:
            self._met = {known for known in self._connections() if known in self._met} | {request.protocol}
            delay += self._latency_s
        await self._pause_for(delay)

    @staticmethod
    async def _pause_for(seconds: float) -> None:
        if seconds > 0:
            await asyncio.sleep(seconds)

    async def _reply(self, request: web.BaseRequest, route: Route | None, query: dict[str, str]) -> web.Response:
        faults = self._faults.take(request.path_qs)
        for fault in faults:
            await self._delay(fault)
        if route is None:
            return self._respond(request, 404, NOT_FOUND, None)
        verdict = self._limits.ask(route.group, _MACHINE.monotonic() + WALL_S, origin="Origin" in request.headers)
        refused = self._refused(request, verdict, faults)
        if refused is not None:
            return refused
        try:
            rows = await self._rows(route, query, faults)
        except Refusal as exc:
            return self._respond(request, exc.status, error_body(exc.status, exc.message), verdict)
        for fault in faults:
            if fault.kind in ROW_FAULTS:
                rows = corrupt(rows, fault)
        kinds = {fault.kind for fault in faults}
        body = spell(rows).encode() if "numbers" in kinds else msgspec.json.encode(rows)
        if "garbage" in kinds:
            body = b"<<" + body[: len(body) // 2]
        cut = next((fault for fault in faults if fault.kind == "cut"), None)
        return self._respond(request, 200, body, verdict, zipped="gzip-off" not in kinds, cut=cut)

    async def _rows(self, route: Route, query: dict[str, str], faults: Sequence[Fault]) -> list[Row]:
        now_us = self._clock.now_us()
        for fault in faults:
            if fault.kind == "late":
                now_us -= int(fault.number("seconds", 2.0) * 1e6)
        if not route.heavy:
            return answer(route, self._venue, query, now_us)
        return await asyncio.get_running_loop().run_in_executor(self._worker, answer, route, self._venue, query, now_us)

    async def _delay(self, fault: Fault) -> None:
        if fault.kind == "slow":
            await asyncio.sleep(fault.number("seconds", 1.0))
        elif fault.kind == "stall":
            await asyncio.sleep(fault.number("seconds", 30.0))
            raise _Cut(_close)
        elif fault.kind == "reset":
            raise _Cut(_reset)

    def _refused(self, request: web.BaseRequest, verdict: Verdict, faults: Iterable[Fault]) -> web.Response | None:
        """The refusal that a rate verdict or a fault asks for, if any."""
        for fault in faults:
            if fault.kind == "429":
                return self._too_many(request, verdict, fault.text("body", self._refusal))
            if fault.kind == "418":
                verdict = self._limits.block(_MACHINE.monotonic() + WALL_S, fault.number("seconds", 5.0))
            if fault.kind == "500":
                return self._respond(request, 500, error_body(500, "server error"), verdict)
            if fault.kind == "gate":
                page = b"<html><body><h1>Request-URI Too Long</h1></body></html>"
                return self._respond(request, int(fault.number("status", 414)), page, None, content_type="text/html")
            if fault.kind == "portal":
                page = b"<html><head><title>Welcome</title></head><body>Please sign in to this network</body></html>"
                return self._respond(request, 200, page, None, content_type="text/html")
            if fault.kind == "502-html":
                page = b"<html><head><title>502 Bad Gateway</title></head><body>502 Bad Gateway</body></html>"
                return self._respond(request, 502, page, None, content_type="text/html")
        if verdict.status == 418:
            seconds = max(1, math.ceil(verdict.block_s))
            message = f"Too many requests. Your IP is blocked for {seconds} seconds."
            return self._respond(request, 418, error_body(418, message), None)
        if verdict.status == 429:
            return self._too_many(request, verdict, self._refusal)
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
        cut: Fault | None = None,
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
            if self._gzip_on and zipped and len(body) > 256 and "gzip" in request.headers.get("Accept-Encoding", ""):
                body = gzip.compress(body, 1)
                headers["Content-Encoding"] = "gzip"
        if cut is not None:
            raise _Cut(_cutter(status, headers, body, cut.number("at", 0.5)))
        return web.Response(status=status, body=body, headers=headers)

    def _date(self) -> str:
        return format_datetime(datetime.fromtimestamp(self._clock.now_us() // 1_000_000, UTC), usegmt=True)

    async def _handle_socket(self, request: web.BaseRequest, arrived: float) -> web.StreamResponse:
        """Upgrade, unless the path, the connection limit or a fault forbids it."""
        if request.path not in _SOCKETS or request.headers.get("Upgrade", "").lower() != "websocket":
            self._note(arrived, "", request.path, {}, 404)
            return self._respond(request, 404, NOT_FOUND, None)
        verdict = self._limits.ask("websocket", arrived + WALL_S, origin="Origin" in request.headers)
        status = verdict.status
        for fault in self._faults.take(request.path_qs, websocket=True, only={"ws-refuse"}):
            status = int(fault.number("status", 429))
        self._note(arrived, "websocket", request.path, {}, 101 if status == 200 else status)
        if status == 200:
            assert self._hub is not None
            headers = {"Date": self._date(), "Server": _SERVER, "Remaining-Req": verdict.header}
            return await self._hub.serve(request, headers)
        refused = self._refused(request, replace(verdict, status=status), ())
        if refused is not None:
            return refused
        return self._respond(request, status, error_body(status, "unavailable"), None)


class _Cut(Exception):
    """The connection ends here, in the way `carry_out` knows."""

    def __init__(self, act: Callable[[web.BaseRequest], Coroutine[Any, Any, None]]) -> None:
        super().__init__()
        self._act = act

    async def carry_out(self, request: web.BaseRequest) -> web.StreamResponse:
        from aiohttp import web

        await self._act(request)
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)


async def _close(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.close()


async def _reset(request: web.BaseRequest) -> None:
    if request.transport is not None:
        raw = request.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _cutter(
    status: int, headers: dict[str, str], body: bytes, at: float
) -> Callable[[web.BaseRequest], Coroutine[Any, Any, None]]:
    """Send the head with the full length, then only the first part of the body."""

    async def act(request: web.BaseRequest) -> None:
        head = [
            f"HTTP/1.1 {status} OK",
            *(f"{k}: {v}" for k, v in headers.items()),
            f"Content-Length: {len(body)}",
        ]
        transport = request.transport
        if transport is not None:
            transport.write("\r\n".join(head).encode() + b"\r\n\r\n" + body[: int(len(body) * at)])
            await asyncio.sleep(0.02)  # let the part arrive before the connection goes

    return act
