"""The stream's sessions: subscriptions, keep-alive, limits, error frames and idle cut-off.

Everything here runs on the server's loop; nothing is locked. `Hub` owns the sessions and follows the
exchange's clock: it asks the `Feed` what was published since it last looked and hands each event to whoever
subscribed. A session sends through its own task, so a slow reader delays no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backbone.simulator.market.venue import Row, Venue
from backbone.simulator.server.clock import ExchangeClock, machine_s, window_s
from backbone.simulator.server.events import Channel, Event, Feed
from backbone.simulator.server.faults import Fault, Faults, odd_row
from backbone.simulator.server.frames import StreamError, Want, parse_request, render, subscriptions
from backbone.simulator.server.limits import Window

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["Hub", "Session"]

_TICK_S = 0.02
_UP_S = 10.0
_CLOSE_AFTER_S = 0.15
_MAX_BUFFER = 64 * 2**20
_LIVE_FAULTS = frozenset({"ws-drop", "ws-stall", "ws-garbage", "ws-slow"})
_JUMP_US = 3_600_000_000  # after a longer jump, only the last hour is published
_UP = b'{"status":"UP"}'
_DROP = b"drop"  # queued instead of a frame: the socket ends here


@dataclass(eq=False)
class Session:
    """One socket: what it subscribed to, and what is waiting to be sent on it."""

    hub: Hub
    socket: web.WebSocketResponse
    transport: asyncio.Transport
    target: str
    form: str = "DEFAULT"
    wants: tuple[Want, ...] = ()
    since_us: int = 0
    active_s: float = field(default_factory=machine_s)
    stalled_until_s: float = 0.0
    _queue: asyncio.Queue[tuple[float, bytes]] = field(default_factory=asyncio.Queue)
    _up: asyncio.Task[None] | None = None
    _is_dropped: bool = False

    def __post_init__(self) -> None:
        self._second, self._minute = Window(5, 1.0, False), Window(100, 60.0, False)

    # -- sending ---------------------------------------------------------------------------------------------

    def send(self, payload: bytes, delay_s: float = 0.0) -> None:
        """Queue one frame."""
        self._queue.put_nowait((machine_s() + self.hub.one_way_s + delay_s, payload))

    def publish(self, rows: list[str]) -> None:
        """Queue data frames (of a LIST format one with all the rows), unless scripted faults have other plans."""
        for text in ["[" + ",".join(rows) + "]"] if rows and self.form.endswith("LIST") else rows:
            delay_s = 0.0
            for fault in self.hub.faults.take(self.target, websocket=True, only=_LIVE_FAULTS):
                delay_s += self._apply(fault)
            if machine_s() >= self.stalled_until_s and not self._is_dropped:
                self.send(text.encode(), delay_s)

    def _apply(self, fault: Fault) -> float:
        if fault.kind == "ws-drop":
            self.send(_DROP, fault.number("seconds", 0.0))
            self._is_dropped = True
        elif fault.kind == "ws-stall":
            self.stalled_until_s = machine_s() + fault.number("seconds", 60.0)
        elif fault.kind == "ws-garbage":
            self.send(b'{"type":"ticker","code":')
        else:
            return fault.number("seconds", 1.0)
        return 0.0

    async def write(self) -> None:
        """Send what is queued, each frame when it is due, until the socket is gone."""
        while True:
            due_s, payload = await self._queue.get()
            wait_s = due_s - machine_s()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            if payload is _DROP:
                self.transport.abort()
                return
            try:
                await self.socket.send_bytes(payload)
            except (ConnectionError, RuntimeError):  # the socket is gone
                return
            self.active_s = machine_s()

    # -- receiving -------------------------------------------------------------------------------------------

    async def read(self) -> None:
        """Follow the client's messages until the socket is gone."""
        from aiohttp import WSMsgType

        while True:
            message = await self.socket.receive()
            if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR):
                return
            if machine_s() < self.stalled_until_s:
                continue
            self.active_s = machine_s()
            if message.type == WSMsgType.PING:
                await self.socket.pong(message.data)
            elif message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                try:
                    self._handle(message.data)
                except StreamError as exc:
                    await self.reject(exc)
                    return

    async def reject(self, error: StreamError) -> None:
        """The error frame, and the close a moment later."""
        self.hub.replace(self, (), self.form)
        self.send(error.frame())
        await asyncio.sleep(self.hub.one_way_s + _CLOSE_AFTER_S)
        await self.socket.close(code=1000)

    def _handle(self, data: str | bytes) -> None:
        text = data if isinstance(data, str) else data.decode("utf-8", "replace")
        now_s = window_s()
        if not (self._second.take(now_s) and self._minute.take(now_s)):
            raise StreamError("Too Many Requests", "요청 수 제한을 초과했습니다.")
        if text.strip() == "PING":
            if self._up is None:
                self._up = asyncio.get_running_loop().create_task(self._say_up(immediately=not self.wants))
            return
        request = parse_request(text)
        if request.listing:
            self.form = request.format  # it switches the live stream's format too
            self.send(subscriptions(self.wants, request.ticket, request.format))
        else:
            self.hub.replace(self, request.wants, request.format)

    async def _say_up(self, *, immediately: bool) -> None:
        if immediately:
            self.send(_UP)
        while True:
            await asyncio.sleep(_UP_S)
            self.send(_UP)

    def end(self) -> None:
        if self._up is not None:
            self._up.cancel()


@dataclass(kw_only=True)
class Hub:
    """All sessions of one server, and the clock-driven publishing to them.

    Parameters
    ----------
    idle_s : seconds without a frame after which a socket is cut off.
    one_way_s : how long a frame is on its way.
    """

    venue: Venue
    clock: ExchangeClock
    faults: Faults
    idle_s: float
    one_way_s: float

    def __post_init__(self) -> None:
        self.feed = Feed(self.venue)
        self._sessions: set[Session] = set()
        self._routes: dict[tuple[Channel, str], list[tuple[Session, int]]] = {}
        self._wanted: dict[str, frozenset[Channel]] = {}
        self._at_us = 0
        self._jumped = asyncio.Event()

    def wake(self) -> None:
        """The clock was moved."""
        self._jumped.set()

    # -- sessions --------------------------------------------------------------------------------------------

    async def serve(self, request: web.BaseRequest, headers: dict[str, str]) -> web.WebSocketResponse:
        """Upgrade a request and serve it until it ends."""
        from aiohttp import web

        socket = web.WebSocketResponse(autoping=False, compress=True, max_msg_size=2**20)
        socket.headers.update(headers)
        await socket.prepare(request)
        assert request.transport is not None
        session = Session(self, socket, request.transport, request.path_qs)
        self._sessions.add(session)
        writer = asyncio.get_running_loop().create_task(session.write())
        try:
            if request.path != "/websocket/v1":  # the private sockets want a token, and there are none here
                await session.reject(StreamError("INVALID_AUTH", "인증 정보가 올바르지 않습니다."))
            else:
                await session.read()
        finally:
            self._sessions.discard(session)
            self._rebuild()
            session.end()
            writer.cancel()
        return socket

    def replace(self, session: Session, wants: Sequence[Want], form: str) -> None:
        """The session's whole subscription is now this one."""
        self.publish()  # what happened up to now belongs to the old one
        session.wants, session.form = tuple(wants), form
        now_us = self.clock.now_us()
        if not self._wanted:
            self._at_us = now_us
        session.since_us = self._at_us
        self._rebuild()
        listed = self.venue.listed(now_us)
        for want in wants:
            if want.snapshot:
                self._send_snapshots(session, want, [c for c in want.codes if c[0] in listed], now_us)

    def _send_snapshots(self, session: Session, want: Want, codes: Sequence[tuple[str, int]], now_us: int) -> None:
        rows = self.feed.snapshots((want.type, want.level), [code for code, _ in codes], now_us)
        session.publish(
            [
                render({**self._row(rows[code]), "stream_type": "SNAPSHOT"}, session.form, depth)
                for code, depth in codes
                if code in rows
            ]
        )

    def _row(self, row: Row) -> Row:
        """The row that goes out, unless a fault has another."""
        target = f"/websocket/v1?type={row['type']}&code={row['code']}"
        for fault in self.faults.take(target, websocket=True, only={"ws-odd"}):
            row = odd_row(row, fault)
        return row

    def _rebuild(self) -> None:
        """Who gets what, after any change of subscriptions."""
        routes: dict[tuple[Channel, str], list[tuple[Session, int]]] = {}
        wanted: dict[str, set[Channel]] = {}
        for session in self._sessions:
            for want in session.wants:
                if not want.realtime:
                    continue
                channel = (want.type, want.level)
                for code, depth in want.codes:
                    routes.setdefault((channel, code), []).append((session, depth))
                    wanted.setdefault(code, set()).add(channel)
        self._routes = routes
        self._wanted = {code: frozenset(channels) for code, channels in wanted.items()}
        self.feed.touch(self._wanted)

    # -- publishing ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Publish and cut off the idle, for as long as the server lives."""
        self._jumped = asyncio.Event()  # of this run's loop
        while True:
            self.publish()
            self._cut_idle()
            with contextlib.suppress(TimeoutError):  # not wait_for: that of 3.11 can swallow a cancellation
                async with asyncio.timeout(0.25 if self.clock.frozen or not self._sessions else _TICK_S):
                    await self._jumped.wait()
            self._jumped.clear()

    def publish(self) -> None:
        """Hand out what was published since the last time."""
        now_us = self.clock.now_us()
        after_us = max(self._at_us, now_us - _JUMP_US)
        if now_us < self._at_us:  # the clock was set back: start over from there
            self.feed.forget()
            for session in self._sessions:
                session.since_us = 0
        self._at_us = now_us
        if not self._wanted or now_us <= after_us:
            return
        rows: dict[tuple[Session, str], list[str]] = {}
        for event in self.feed.events(self._wanted, after_us, now_us):
            self._hand_out(event, rows)
        for (session, _), texts in rows.items():
            session.publish(texts)

    def _hand_out(self, event: Event, rows: dict[tuple[Session, str], list[str]]) -> None:
        """Add an event to the `rows` of each session that wants it; those of a LIST format are kept apart by type."""
        rendered: dict[tuple[str, int], str] = {}
        row = {**self._row(event.row), "stream_type": "REALTIME"}
        for session, depth in self._routes.get((event.channel, event.code), ()):
            if event.time_us <= session.since_us:
                continue
            key = (session.form.removesuffix("_LIST"), depth)
            if key not in rendered:
                rendered[key] = render(row, *key)
            kind = event.channel[0] if session.form.endswith("LIST") else ""
            rows.setdefault((session, kind), []).append(rendered[key])

    def _cut_idle(self) -> None:
        now_s = machine_s()
        for session in list(self._sessions):
            is_idle = now_s - session.active_s > self.idle_s and now_s >= session.stalled_until_s
            if is_idle or session.transport.get_write_buffer_size() > _MAX_BUFFER:
                session.transport.abort()
