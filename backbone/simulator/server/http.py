"""The embedded exchange on loopback: REST under ``/v1`` and the WebSocket on one port, in one thread.

Decides what the network does to an answer: latency, rate refusals, headers, compression, scripted faults. The
thread ``backbone-simulator`` runs one event loop that owns every connection, the rate windows and the stream
sessions; long computations go to one worker thread ``backbone-simulator-work``. Public methods may be called
from any thread: they hand work to the loop, or touch the log under its lock.

A venue `latency_s` away: half of it passes before a request is counted and answered, half before the answer
is sent, and a connection's first request pays one more round trip, because that is what connecting costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import math
import random
import socket
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgspec

from backbone.clock import SystemClock
from backbone.errors import InputError
from backbone.model import Span
from backbone.simulator.market.exchange import Exchange
from backbone.simulator.market.venue import Row, Venue
from backbone.simulator.server.archive import Answer, ArchiveBranch, is_archive_path
from backbone.simulator.server.clock import ExchangeClock, parse_instant
from backbone.simulator.server.faults import ROW_FAULTS, Fault, Faults, corrupt
from backbone.simulator.server.limits import Limits, Verdict
from backbone.simulator.server.rest import NOT_FOUND, Refusal, Route, answer, error_body, find_route, spell
from backbone.simulator.server.sockets import Hub

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.web_protocol import RequestHandler

__all__ = ["Logged", "SimulatorServer"]

_logger = logging.getLogger("backbone.simulator")
_SERVER = "backbone-simulator"
_JSON = "application/json;charset=UTF-8"
_LOG_SIZE = 50_000
_START_TIMEOUT_S = 20.0


class Logged(NamedTuple):
    """One request: when it arrived (monotonic seconds), its wire group, path, query and the status it got."""

    mono: float
    group: str
    path: str
    query: dict[str, str]
    status: int


class SimulatorServer:
    """An Upbit-speaking exchange on loopback.

    >>> with SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True) as server:
    ...     server.rest_url.startswith("http://127.0.0.1:")
    True

    Parameters
    ----------
    seed : which market history.
    now : what the exchange's clock shows at start; None is the machine's time (with `replay`: the end of the
    record).
    port : 0 picks a free one.
    limit, window : requests a second of each wire group, counted in ``"fixed"`` or ``"sliding"`` seconds.
    latency_s, jitter_s : the round trip to the venue, and how much it varies; see the module's docstring.
    replay : recorded candle files (Parquet) to serve instead of the synthetic market.
    faults : a script; more can be added while it runs, through `faults`.
    frozen, speed : the exchange's clock stands still, or runs this many times as fast.
    markets : codes to list; None is all.
    gzip_on : whether replies are compressed for clients that ask.
    idle_s : seconds of silence after which a socket is cut off (measured 60; documented 120).
    ban_after, ban_s : refusals in ten seconds that lead to a block, and the first block's length.
    refusal : the body of a 429, ``"text"`` or ``"json"``.

    Raises
    ------
    InputError  for anything but a loopback host, and for what no exchange could be made of.
    """

    def __init__(
        self,
        *,
        seed: int = 7,
        now: object = None,
        port: int = 0,
        limit: int = 10,
        window: str = "fixed",
        latency_s: float = 0.0,
        jitter_s: float = 0.0,
        replay: Sequence[Any] = (),
        faults: Faults | None = None,
        frozen: bool = False,
        speed: float = 1.0,
        markets: Sequence[str] | None = None,
        host: str = "127.0.0.1",
        log: bool = False,
        gzip_on: bool = True,
        idle_s: float = 60.0,
        ban_after: int = 20,
        ban_s: float = 5.0,
        refusal: str = "text",
    ) -> None:
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise InputError("host", host, "a loopback address: 127.0.0.1, ::1 or localhost")
        if refusal not in ("text", "json"):
            raise InputError("refusal", refusal, '"text" or "json"')
        self.exchange: Venue = _open_venue(seed, markets, replay)
        self._archive = ArchiveBranch(self.exchange)
        start = parse_instant(now)
        if start is None:
            start = getattr(self.exchange, "end_us", None)
        self.clock = ExchangeClock(start, frozen=frozen, speed=speed)
        self.faults = faults if faults is not None else Faults()
        self._host, self._port = host, port
        self._limits = Limits(limit, window, ban_after=ban_after, ban_s=ban_s)
        self._latency_s, self._jitter_s = latency_s, jitter_s
        self._random = random.Random(seed)
        self._gzip_on, self._refusal, self._verbose = gzip_on, refusal, log
        self.idle_s = idle_s
        self._log_lock = threading.Lock()
        self._log: deque[Logged] = deque(maxlen=_LOG_SIZE)
        self._met: set[RequestHandler] = set()  # connections that already paid for connecting
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._web: Any = None
        self._sites: list[Any] = []
        self._runner: Any = None
        self._worker: ThreadPoolExecutor | None = None
        self._hub: Hub | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.clock.on_jump(self._wake_hub)

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listen. Starting twice does nothing."""
        if self._thread is not None:
            return self
        self.faults.bind(self._change_market)
        ready: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="backbone-simulator", daemon=True)
        self._thread.start()
        try:
            self._port = ready.result(_START_TIMEOUT_S)
        except BaseException:
            self._thread.join()
            self._thread = None
            raise
        return self

    def close(self) -> None:
        """Stop listening, drop every connection, end the threads. Closing twice does nothing."""
        thread, loop, stop = self._thread, self._loop, self._stop
        if thread is None:
            return
        if loop is not None and stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended by itself
                loop.call_soon_threadsafe(stop.set)
        thread.join()
        self._thread = self._loop = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "listening" if self._thread is not None else "stopped"
        return f"SimulatorServer({self.rest_url}, {state}, {self.exchange!r}, {self.clock!r})"

    @property
    def port(self) -> int:
        return self._port

    @property
    def rest_url(self) -> str:
        return f"http://{self._netloc}"

    @property
    def ws_url(self) -> str:
        return f"ws://{self._netloc}/websocket/v1"

    @property
    def _netloc(self) -> str:
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    def pause(self) -> None:
        """Pull the plug: stop listening and drop every connection, until `resume`."""
        self._call(self._unplug())

    def resume(self) -> None:
        """Listen again on the same port."""
        self._call(self._plug())

    def _wake_hub(self) -> None:
        """The clock was moved: let the stream publish at once."""
        loop, hub = self._loop, self._hub
        if loop is not None and hub is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
                loop.call_soon_threadsafe(hub.wake)

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        if self._loop is None:
            work.close()
            raise InputError("server", self, "a started server")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_TIMEOUT_S)

    # -- what was asked --------------------------------------------------------------------------------------

    @property
    def requests(self) -> list[Logged]:
        """The requests so far (the newest 50,000), oldest first; a copy."""
        with self._log_lock:
            return list(self._log)

    def counts(self) -> dict[str, dict[int, int]]:
        """How many requests by group and status."""
        counts: dict[str, dict[int, int]] = {}
        for one in self.requests:
            group = counts.setdefault(one.group, {})
            group[one.status] = group.get(one.status, 0) + 1
        return counts

    def reset_log(self) -> None:
        with self._log_lock:
            self._log.clear()

    def reset_limits(self) -> None:
        """Forget what was asked: full budgets, no block."""
        self._call(self._reset_limits())

    async def _reset_limits(self) -> None:
        self._limits.reset()

    def peak(self, group: str, window_s: float = 1.0) -> int:
        """The most requests of `group` that arrived in any `window_s` seconds."""
        times = sorted(one.mono for one in self.requests if one.group == group)
        best = left = 0
        for right, at in enumerate(times):
            while times[left] <= at - window_s:
                left += 1
            best = max(best, right - left + 1)
        return best

    def _note(self, mono: float, group: str, path: str, query: dict[str, str], status: int) -> None:
        with self._log_lock:
            self._log.append(Logged(mono, group, path, query, status))
        if self._verbose:
            _logger.info("request.answered group=%s status=%d path=%s query=%s", group, status, path, query)

    # -- the loop --------------------------------------------------------------------------------------------

    def _run(self, ready: Future[int]) -> None:
        asyncio.run(self._serve(ready))

    async def _serve(self, ready: Future[int]) -> None:
        from aiohttp import web

        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="backbone-simulator-work")
        try:
            self._web = web.Server(self._handle, keepalive_timeout=75.0, access_log=None)
            self._runner = web.ServerRunner(self._web, shutdown_timeout=1.0)
            await self._runner.setup()
            await self._plug()
            self._hub = Hub(
                self.exchange,
                self.clock,
                self.faults,
                idle_s=self.idle_s,
                one_way_s=self._latency_s / 2,
                wall=_WALL,
            )
            self._tasks = [self._loop.create_task(self._hub.run())]
        except OSError as exc:
            await self._end()
            ready.set_exception(InputError("port", self._port, f"a free port of this machine ({exc.strerror})"))
            return
        ready.set_result(self._port)
        await self._stop.wait()
        await self._end()

    async def _end(self) -> None:
        await self._unplug()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)

    async def _plug(self) -> None:
        from aiohttp import web

        if self._sites:
            return
        site = web.TCPSite(self._runner, self._host, self._port, reuse_address=True)
        await site.start()
        self._sites.append(site)
        self._port = self._runner.addresses[0][1]

    async def _unplug(self) -> None:
        for site in self._sites:
            await site.stop()
        self._sites.clear()
        if self._web is not None:
            for connection in list(self._web.connections):
                if connection.transport is not None:
                    connection.transport.abort()

    # -- one request -----------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
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
        assert self._loop is not None
        faults = self.faults.take(request.path_qs)
        kinds = frozenset(fault.kind for fault in faults)
        query = {"prefix": request.query.get("prefix", "")}
        try:
            for fault in faults:
                await self._delay(fault)
            found = Answer(500, b"", "text/plain")
            if "500" not in kinds:
                words = (request.path, query["prefix"], self.clock.now_us(), kinds)
                found = await self._loop.run_in_executor(self._worker, self._archive.answer, *words)
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
            self._met = {known for known in self._web.connections if known in self._met} | {request.protocol}
            delay += self._latency_s
        await self._pause_for(delay)

    @staticmethod
    async def _pause_for(seconds: float) -> None:
        if seconds > 0:
            await asyncio.sleep(seconds)

    async def _reply(self, request: web.BaseRequest, route: Route | None, query: dict[str, str]) -> web.Response:
        faults = self.faults.take(request.path_qs)
        for fault in faults:
            await self._delay(fault)
        if route is None:
            return self._respond(request, 404, NOT_FOUND, None)
        verdict = self._limits.ask(route.group, _MACHINE.monotonic() + _WALL, origin="Origin" in request.headers)
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
        now_us = self.clock.now_us()
        for fault in faults:
            if fault.kind == "late":
                now_us -= int(fault.number("seconds", 2.0) * 1e6)
        if not route.heavy:
            return answer(route, self.exchange, query, now_us)
        assert self._loop is not None
        return await self._loop.run_in_executor(self._worker, answer, route, self.exchange, query, now_us)

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
                verdict = self._limits.block(_MACHINE.monotonic() + _WALL, fault.number("seconds", 5.0))
            if fault.kind == "500":
                return self._respond(request, 500, error_body(500, "server error"), verdict)
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
        return format_datetime(datetime.fromtimestamp(self.clock.now_us() // 1_000_000, UTC), usegmt=True)

    async def _handle_socket(self, request: web.BaseRequest, arrived: float) -> web.StreamResponse:
        """Upgrade, unless the path, the connection limit or a fault forbids it."""
        if request.path not in _SOCKETS or request.headers.get("Upgrade", "").lower() != "websocket":
            self._note(arrived, "", request.path, {}, 404)
            return self._respond(request, 404, NOT_FOUND, None)
        verdict = self._limits.ask("websocket", arrived + _WALL, origin="Origin" in request.headers)
        status = verdict.status
        for fault in self.faults.take(request.path_qs, websocket=True, only={"ws-refuse"}):
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

    # -- changes to the market -------------------------------------------------------------------------------

    def _change_market(self, fault: Fault) -> None:
        """Carry out a fault that changes the market itself."""
        venue, options = self.exchange, fault.options
        if fault.kind == "delist":
            venue.delist(_required(fault, "market"))
        elif fault.kind == "rename":
            venue.rename(_required(fault, "market"), _required(fault, "to"))
        else:
            now_us = self.clock.now_us()
            start = parse_instant(options.get("start"), "start")
            end = parse_instant(options.get("end"), "end")
            span = Span(now_us if start is None else start, (1 << 60) if end is None else end)
            if fault.kind == "outage":
                venue.close_span(span)
            else:
                venue.restate(_required(fault, "market"), span, fault.number("shift", 0.0005))
        if self._hub is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._hub.forget)


_SOCKETS = ("/websocket/v1", "/websocket/v1/private", "/websocket/v1/info")
_MACHINE = SystemClock()
_WALL = (
    _MACHINE.now_us() / 1e6 - _MACHINE.monotonic()
)  # rate windows follow the machine's whole seconds, and never step


def _required(fault: Fault, name: str) -> str:
    value = fault.options.get(name)
    if not isinstance(value, str):
        raise InputError(f"{fault.kind}:{name}", value, "a market code")
    return value


def _open_venue(seed: int, markets: Sequence[str] | None, replay: Sequence[Any]) -> Venue:
    if replay:
        from backbone.simulator.market.replay import Replay

        replayed: Venue = Replay(replay, seed=seed, markets=markets)
        return replayed
    return Exchange(seed, markets=markets)


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
