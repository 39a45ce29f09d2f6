"""The embedded exchange on loopback: REST under ``/v1`` and the WebSocket on one port, in one thread.

The thread ``backbone-simulator`` runs one event loop that owns every connection, the rate windows and the stream
sessions; long computations go to one worker thread ``backbone-simulator-work``. Public methods may be called from any
thread: they hand work to the loop, or touch the log under its lock. What becomes of a request is the gateway's part.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

from backbone.errors import InputError
from backbone.model import Span
from backbone.simulator.market.exchange import Exchange
from backbone.simulator.market.venue import Venue
from backbone.simulator.server.clock import ExchangeClock, parse_instant
from backbone.simulator.server.faults import Fault, Faults
from backbone.simulator.server.gateway import Gateway
from backbone.simulator.server.limits import Limits
from backbone.simulator.server.sockets import Hub

__all__ = ["Logged", "SimulatorServer"]

_logger = logging.getLogger("backbone.simulator")
_LOG_SIZE = 50_000
_START_TIMEOUT_S = 20.0
_BACKLOG = 1024
"""How many connections wait to be accepted: one that finds no place tries again after a second, as at no venue."""


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
    latency_s, jitter_s : the round trip to the venue, and how much it varies; see `backbone.simulator.server.gateway`.
    replay : recorded candle files (Parquet) to serve instead of the synthetic market.
    faults : a script; more can be added while it runs, through `faults`.
    frozen, speed : the exchange's clock stands still, or runs this many times as fast.
    markets : codes to list; None is all.
    gzip_on : whether replies are compressed for clients that ask.
    idle_s : seconds without a frame after which a socket is cut off (measured 60; documented 120).
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
        self.exchange: Venue
        if replay:
            from backbone.simulator.market.replay import Replay

            self.exchange = Replay(replay, seed=seed, markets=markets)
        else:
            self.exchange = Exchange(seed, markets=markets)
        start = parse_instant(now)
        if start is None:
            start = getattr(self.exchange, "end_us", None)
        self.clock = ExchangeClock(start, frozen=frozen, speed=speed)
        self.faults = faults if faults is not None else Faults()
        self._host, self._port = host, port
        self._limits = Limits(limit, window, ban_after=ban_after, ban_s=ban_s)
        self._verbose = log
        self._hub = Hub(
            venue=self.exchange,
            clock=self.clock,
            faults=self.faults,
            idle_s=idle_s,
            one_way_s=latency_s / 2,
        )
        self._gateway = Gateway(
            venue=self.exchange,
            clock=self.clock,
            faults=self.faults,
            limits=self._limits,
            hub=self._hub,
            note=self._note,
            latency_s=latency_s,
            jitter_s=jitter_s,
            draw=random.Random(seed),
            gzip_on=gzip_on,
            refusal=refusal,
        )
        self._log_lock = threading.Lock()
        self._log: deque[Logged] = deque(maxlen=_LOG_SIZE)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._web: Any = None
        self._listener: asyncio.Server | None = None
        self.clock.on_jump(lambda: self._do_soon(self._hub.wake))

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listen. Starting twice does nothing."""
        if self._thread is not None:
            return self
        self.faults.bind(self._change_market)
        ready: Future[int] = Future()
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._serve(ready),), name="backbone-simulator", daemon=True
        )
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
        if self._thread is None:
            return
        self._do_soon(lambda: self._stop.set())
        self._thread.join()
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

    def _do_soon(self, act: Callable[[], None]) -> None:
        """Let the loop do this, if it runs."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
                loop.call_soon_threadsafe(act)

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
        counts: dict[str, Counter[int]] = {}
        for one in self.requests:
            counts.setdefault(one.group, Counter())[one.status] += 1
        return {group: dict(statuses) for group, statuses in counts.items()}

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

    async def _serve(self, ready: Future[int]) -> None:
        from aiohttp import web

        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._web = web.Server(self._gateway.handle, keepalive_timeout=75.0, access_log=None)
        # Not the loop's own: with that, its end starts a thread, which Python 3.12 refuses while the interpreter ends.
        self._gateway.worker = worker = ThreadPoolExecutor(1, thread_name_prefix="backbone-simulator-work")
        try:
            try:
                await self._plug()
            except OSError as exc:
                ready.set_exception(InputError("port", self._port, f"a free port of this machine ({exc.strerror})"))
                return
            publishing = self._loop.create_task(self._hub.run())
            ready.set_result(self._port)
            await self._stop.wait()
            await self._unplug()
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
            await self._web.shutdown(1.0)
        finally:
            worker.shutdown(wait=True, cancel_futures=True)

    async def _plug(self) -> None:
        if self._listener is None:
            listener = await asyncio.get_running_loop().create_server(
                self._web, self._host, self._port, reuse_address=True, backlog=_BACKLOG
            )
            self._listener, self._port = listener, listener.sockets[0].getsockname()[1]

    async def _unplug(self) -> None:
        if self._listener is not None:
            for listening in self._listener.sockets:
                asyncio.get_running_loop().remove_reader(listening.fileno())
            await _turns(2)  # what was accepted meanwhile becomes a connection; a closed listener would lose its socket
            self._listener.close()
            self._listener = None
        for connection in list(self._web.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await _turns(1)  # now they are closed

    # -- changes to the market -------------------------------------------------------------------------------

    def _change_market(self, fault: Fault) -> None:
        """Carry out a fault that changes the market itself."""
        venue, kind, now_us = self.exchange, fault.kind, self.clock.now_us()
        at_us, start, end = (parse_instant(fault.options.get(name), name) for name in ("at", "start", "end"))
        span = Span(now_us if start is None else start, (1 << 60) if end is None else end)
        if kind == "outage":
            venue.close_span(span)
        elif kind == "list":
            venue.list_market(_required(fault, "market"), now_us if at_us is None else at_us)
        elif kind == "delist":
            venue.delist(_required(fault, "market"), at_us)
        elif kind == "rescale":
            venue.rescale(_required(fault, "market"), fault.options.get("factor"))
        elif kind == "describe":
            venue.describe(_required(fault, "market"), **_description(fault.options))
        elif kind == "rename":
            venue.rename(_required(fault, "market"), _required(fault, "to"))
        else:
            venue.restate(_required(fault, "market"), span, fault.number("shift", 0.0005))
        self._do_soon(self._hub.feed.forget)


async def _turns(number: int) -> None:
    """Let the loop run what is due, `number` times."""
    for _ in range(number):
        await asyncio.sleep(0)


def _required(fault: Fault, name: str) -> str:
    value = fault.options.get(name)
    if not isinstance(value, str):
        raise InputError(f"{fault.kind}:{name}", value, "a market code")
    return value


def _description(options: Mapping[str, Any]) -> dict[str, Any]:
    """The names, warnings and state of a market, from a program's values or a command line's words."""
    stated = {name: value for name, value in options.items() if name != "market"}
    for name in ("warning", "suspended"):
        if name in stated:
            stated[name] = str(stated[name]).lower() in ("true", "1", "yes")
    if isinstance(cautions := stated.get("cautions"), str):
        stated["cautions"] = tuple(name for name in cautions.split(",") if name)
    return stated
