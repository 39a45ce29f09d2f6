"""The venue's socket: one thread keeps the wanted subscriptions alive and hands every record to a sink.

Decided here: when to connect, what to send, when a connection counts as dead, and how long to stay away.

Invariants: There is one connection at most. Connects are at least a second apart. The whole subscription goes out in
one frame, because the venue replaces the old one with it. Changes are gathered, so that the message limits hold. No
``Origin`` header is sent. A socket that brings neither frame nor pong for `DEAD_S` is dead; a quiet market answers
pings and is not. However a connection ends, the thread reconnects for as long as something is wanted, and reports for
how long nothing could be received.

`Stream._condition` guards what is wanted, the thread and the state; everything in `Connection` belongs to the thread.
The sink and the state callback run on the thread, outside the lock, and must be quick.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from backbone.clock import Clock
from backbone.errors import (
    BackboneError,
    ClosedError,
    InputError,
    PayloadError,
    RateLimitedError,
    StreamClosedError,
    UnreachableError,
)
from backbone.locks import renew_after_fork
from backbone.model import Span
from backbone.routing.websocket import BINARY, MESSAGE_S, NAP_S, PING, PING_S, PONG, Connection, Message
from backbone.routing.wire import (
    BOOK_DEPTHS,
    ORDERBOOK_DEPTH,
    LiveRecord,
    Status,
    StreamError,
    channel_of,
    grouped,
    kind_of,
    parse_frame,
    subscribe_frame,
)

__all__ = ["Phase", "Stream", "StreamState", "backoff_s"]

Phase = Literal["stopped", "connecting", "streaming", "stalled", "backing-off"]
Sink = Callable[[LiveRecord, float, bool], None]

STALL_S = 15.0
"""A ping has gone unanswered: not dead yet, but nothing to rely on."""
DEAD_S = 30.0
CONNECT_S = 1.0
"""Between two connects: the address may make five a second, and other processes share it."""
QUIET_START_S = 1.0
"""An answered ping proves a subscription that brought neither data nor an error for this long."""
SNAPSHOT_S = 10.0
"""A code without a snapshot for this long is reported: the venue ignores what it does not know."""
STABLE_S = 10.0
"""A connection that lived for so long was good: the next back-off starts small."""
NEAR_S, FAR_S = 4.0, 30.0
"""Longest back-off: while the venue is unreachable (its return must be noticed within 5 s), and after a refusal."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamState:
    """How the stream is doing.

    ``since_us`` is when `phase` began (wall time), ``last_frame_s`` the monotonic instant of the last frame or pong.
    ``silent`` holds the (kind, market) pairs that were asked for and have sent no snapshot. ``gap`` is the wall time
    without reception; only the state that announces the return after an outage has one.
    """

    phase: Phase
    since_us: int
    last_frame_s: float | None = None
    reconnects: int = 0
    frames: int = 0
    garbage: int = 0
    last_error: BackboneError | None = None
    silent: tuple[tuple[str, str], ...] = ()
    gap: Span | None = None


def backoff_s(failures: int, error: BackboneError, jitter: float) -> float:
    """How long to stay away after the `failures`-th failure in a row; `jitter` in [0, 1) spreads clients."""
    grown_s = 0.5 * 2.0 ** min(failures, 10)
    if isinstance(error, RateLimitedError):
        return max(error.retry_after_s, min(FAR_S, 2 * grown_s)) * (1 + jitter / 4)
    longest_s = NEAR_S if isinstance(error, UnreachableError) else FAR_S
    return min(longest_s, grown_s) * (0.5 + jitter / 2)


class Stream:
    """Live records of everything that is subscribed to, on one socket, which the first `subscribe` opens.

    Parameters
    ----------
    url : e.g. ``"wss://api.upbit.com/websocket/v1"``.
    sink : gets each record, the monotonic instant at which it arrived, and whether it is a snapshot.
    on_state : gets a `StreamState` whenever the phase or the set of silent codes changes.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        sink: Sink,
        on_state: Callable[[StreamState], object] = lambda _: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._url = url
        self._clock = clock
        self._sink = sink
        self._on_state = on_state
        self._jitter = jitter
        self._wanted: dict[object, dict[str, dict[str, int]]] = {}
        self._version = 0
        self._is_closed = False
        self._frames = 0
        self._opened = 0
        self._begin()
        renew_after_fork(self, Stream._begin)

    def _begin(self) -> None:
        """Without a thread: at first, and in a forked child."""
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._waker: socket.socket | None = None
        self._connection: Connection | None = None
        self._state = StreamState("stopped", self._clock.now_us())
        self._received_s: float | None = None
        self._lost_us: int | None = None
        self._connect_after_s = 0.0

    def __repr__(self) -> str:
        state = self.state
        with self._condition:
            count = sum(len(markets) for markets in self._union_locked().values())
        return f"<Stream {self._url} {state.phase}, {count} subscriptions, {state.frames} frames>"

    # ---- for any thread

    def subscribe(self, key: object, kind: str, markets: Iterable[str], depth: int = ORDERBOOK_DEPTH) -> None:
        """Subscribe `key` to `kind` of `markets`, in place of what `key` had of that kind before.

        Returns at once. The markets must exist: the venue ignores others without an error. A book comes as deep as the
        deepest subscription to it asks, in the venue's steps. Raises `InputError` for an unknown kind and `ClosedError`
        after `close`.
        """
        kind = _kind(kind)
        depth = depth if channel_of(kind)[0] == "orderbook" else ORDERBOOK_DEPTH  # a suffix is of books alone
        codes = dict.fromkeys((market.upper() for market in markets), depth)
        if not codes:
            raise InputError("markets", markets, "at least one market")
        with self._condition:
            if self._is_closed:
                raise ClosedError("this stream is closed; make a new one")
            before = self._union_locked()
            self._wanted.setdefault(key, {})[kind] = codes
            if self._union_locked() != before:
                self._version += 1
            if self._thread is None:
                self._start_locked()
        self._wake()

    def unsubscribe(self, key: object, kind: str | None = None) -> None:
        """End `key`'s subscription to one kind, or to all. The last one ends the thread.

        The thread's end is waited for, so hold no lock here that the sink or the state callback takes.
        """
        with self._condition:
            kinds = self._wanted.get(key, {})
            for each in [_kind(kind)] if kind is not None else list(kinds):
                kinds.pop(each, None)
            if not kinds:
                self._wanted.pop(key, None)
            ending = self._change_locked()
        self._end(*ending)

    @property
    def state(self) -> StreamState:
        with self._condition:
            return self._state_locked()

    @property
    def subscriptions(self) -> dict[str, tuple[str, ...]]:
        """Kind to market codes, over all keys."""
        with self._condition:
            return {kind: tuple(codes) for kind, codes in self._union_locked().items()}

    def close(self) -> None:
        """End the thread and the connection, for good. Calling it twice, or from a callback, is fine."""
        with self._condition:
            self._is_closed = True
            self._wanted.clear()
            ending = self._change_locked()
        self._end(*ending)

    def _change_locked(self) -> tuple[threading.Thread | None, Connection | None]:
        """Let the thread see what is wanted now; the thread, if that is nothing, and its connection."""
        self._version += 1
        self._condition.notify_all()
        return None if self._wanted else self._thread, self._connection

    def _end(self, thread: threading.Thread | None, connection: Connection | None) -> None:
        """Wake the thread, and wait for its end where there is one to wait for."""
        if thread is not None and connection is not None and not connection.opened_s:
            connection.abort()  # it may be stuck in the handshake; once open, it is woken and says goodbye
        self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _start_locked(self) -> None:
        woken, self._waker = socket.socketpair()
        woken.setblocking(False)
        self._waker.setblocking(False)
        self._thread = threading.Thread(
            target=self._run, args=(woken, self._waker), name="backbone-stream", daemon=True
        )
        self._thread.start()

    def _wake(self) -> None:
        with self._condition:
            waker = self._waker
        if waker is not None:
            with contextlib.suppress(OSError):  # full: a wake-up is under way; closed: no thread sleeps
                waker.send(b"!")

    def _union_locked(self) -> dict[str, dict[str, int]]:
        """What is wanted by anybody: kind to codes with their depth, in the order in which they were first wanted."""
        union: dict[str, dict[str, int]] = {}
        for kinds in self._wanted.values():
            for kind, codes in kinds.items():
                known = union.setdefault(kind, {})
                known.update((code, max(depth, known.get(code, 0))) for code, depth in codes.items())
        return union

    def _state_locked(self) -> StreamState:
        reconnects = max(0, self._opened - 1)
        return replace(self._state, last_frame_s=self._received_s, frames=self._frames, reconnects=reconnects)

    # ---- the thread

    def _run(self, woken: socket.socket, waker: socket.socket) -> None:
        failures = 0
        with woken, waker:
            while self._is_wanted():
                connection = Connection(self._url, self._clock, woken)
                error = self._run_connection(connection)
                if error is None:
                    continue
                is_stable = connection.is_answered and self._clock.monotonic() - connection.opened_s >= STABLE_S
                failures = 1 if is_stable else failures + 1
                self._enter("backing-off", error=error)
                self._pause(backoff_s(failures, error, self._jitter()))

    def _is_wanted(self) -> bool:
        """Whether to go on. If not, the thread is given up here, so that the next subscription starts another."""
        with self._condition:
            if self._wanted and not self._is_closed:
                return True
            self._thread = self._waker = self._lost_us = None
            self._state = replace(self._state, phase="stopped", since_us=self._clock.now_us(), silent=())
            state = self._state_locked()
        self._on_state(state)
        return False

    def _run_connection(self, connection: Connection) -> BackboneError | None:
        """One connection from its opening to its end; None when nothing was wanted any more."""
        self._pause(self._connect_after_s - self._clock.monotonic())
        with self._condition:
            if self._is_closed or not self._wanted:
                return None
            self._connection = connection
        self._enter("connecting")
        self._connect_after_s = self._clock.monotonic() + CONNECT_S
        try:
            connection.open()
            with self._condition:
                self._opened += 1
            log.info("stream.open url=%s", self._url)
            self._serve(connection)
            return None
        except BackboneError as error:
            return error if self._wanted else None
        except Exception as exc:  # the top of the thread: a faulty sink must not end the feed unseen
            log.exception("stream.fault url=%s", self._url)
            fault = StreamClosedError(f"the stream's consumer failed: {exc!r}", reason=repr(exc))
            fault.__cause__ = exc
            return fault
        finally:
            self._note_loss(connection)
            with self._condition:
                self._connection = None
            connection.close()

    def _note_loss(self, connection: Connection) -> None:
        """Remember since when nothing was received, for the gap that is announced on return."""
        with self._condition:
            if self._state.phase in ("streaming", "stalled") and self._lost_us is None:
                idle_s = self._clock.monotonic() - connection.received_s
                self._lost_us = self._clock.now_us() - int(idle_s * 1e6)

    def _serve(self, connection: Connection) -> None:
        """Until nothing is wanted; raises when the connection ends otherwise."""
        while True:
            now = self._clock.monotonic()
            if connection.version != self._version and not self._resubscribe(connection, now):
                return
            wait_s = self._keep_alive(connection, now)
            messages = connection.receive(wait_s)
            if messages:
                self._take(connection, messages)

    def _resubscribe(self, connection: Connection, now: float) -> bool:
        """Send the whole subscription, if the message limit allows it yet. False when nothing is wanted."""
        with self._condition:
            version, union = self._version, self._union_locked()
        if not union:
            return False
        if now < connection.asked_s + MESSAGE_S:
            return True
        spelled = {kind: [_suffixed(code, depth) for code, depth in codes.items()] for kind, codes in union.items()}
        connection.send(subscribe_frame(uuid.uuid4().hex, spelled))
        pairs = {(kind, market) for kind, codes in union.items() for market in codes}
        connection.missing = pairs - (connection.asked - connection.missing)
        connection.version, connection.asked_s, connection.asked, connection.is_reported = version, now, pairs, False
        if self._state.silent:
            self._set_silent(connection.missing.intersection(self._state.silent))
        return True

    def _keep_alive(self, connection: Connection, now: float) -> float:
        """Ping, judge, report; how long the thread may sleep then."""
        idle_s = now - connection.received_s
        if idle_s >= DEAD_S:
            raise UnreachableError(f"no frame and no pong for {idle_s:.0f} s", url=self._url)
        if now - connection.pinged_s >= PING_S and connection.version >= 0:
            connection.pinged_s = now
            connection.send(b"", PING)
        if self._state.phase == "streaming" and idle_s >= STALL_S:
            self._enter("stalled")
        if self._state.phase == "connecting" and connection.is_answered and now - connection.asked_s >= QUIET_START_S:
            self._enter("streaming")
        if connection.missing and not connection.is_reported and now - connection.asked_s >= SNAPSHOT_S:
            self._report_missing(connection)
        if connection.version != self._version:
            return min(NAP_S, max(0.0, connection.asked_s + MESSAGE_S - now))
        return NAP_S

    def _report_missing(self, connection: Connection) -> None:
        connection.is_reported = True
        self._set_silent(connection.missing)
        log.warning("stream.silent url=%s codes=%s", self._url, sorted(connection.missing)[:20])
        if not connection.has_data and connection.retries < 3:  # not one answer: the subscription itself may be lost
            connection.retries += 1
            connection.version = -1

    def _take(self, connection: Connection, messages: list[Message]) -> None:
        """Hand the records of `messages` to the sink."""
        now = connection.received_s = self._clock.monotonic()
        sink, missing = self._sink, connection.missing
        self._received_s = now
        for opcode, payload in messages:
            if opcode > BINARY:
                self._control(connection, opcode, payload)
                continue
            self._frames += 1
            try:
                record, is_snapshot = parse_frame(payload)
            except PayloadError as error:
                self._note_garbage(error)
                continue
            if isinstance(record, StreamError):
                reason = f"{record.name}: {record.message}"
                raise StreamClosedError(f"the venue ended the stream: {reason}", reason=reason)
            if isinstance(record, Status):
                continue
            if missing:
                missing.discard((kind_of(record), record.market))
            if not connection.has_data:
                connection.has_data = connection.is_answered = True
                if self._state.phase != "streaming":
                    self._enter("streaming")
            sink(record, now, is_snapshot)
        if self._state.phase == "stalled":
            self._enter("streaming")
        if connection.is_reported and len(missing) < len(self._state.silent):
            self._set_silent(missing)

    def _control(self, connection: Connection, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            connection.send(payload, PONG)
        elif opcode == PONG:
            connection.is_answered = True
        else:
            code, words = int.from_bytes(payload[:2], "big"), payload[2:].decode("utf-8", "replace")
            reason = f"{code} {words}".strip()
            raise StreamClosedError(f"the venue closed the stream ({reason})", reason=reason)

    def _note_garbage(self, error: PayloadError) -> None:
        is_first = not self._state.garbage
        self._state = replace(self._state, garbage=self._state.garbage + 1)
        level = logging.WARNING if is_first else logging.DEBUG
        log.log(level, "stream.garbage url=%s sample=%r", self._url, error.sample)

    def _set_silent(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._change(silent=tuple(sorted(pairs)))

    def _enter(self, phase: Phase, *, error: BackboneError | None = None) -> None:
        """Change the phase and report it. The report of the return after an outage carries the gap."""
        gap = None
        now_us = self._clock.now_us()
        if phase == "streaming" and self._lost_us is not None:
            gap = Span(self._lost_us, now_us)
            self._lost_us = None
        if error is not None:
            log.warning("stream.lost url=%s why=%s", self._url, error)
        self._change(gap, phase=phase, since_us=now_us, last_error=error or self._state.last_error)

    def _change(self, gap: Span | None = None, **changes: Any) -> None:
        """Change the state, and report it; `gap` is part of this report only."""
        with self._condition:
            self._state = replace(self._state, **changes)
            state = replace(self._state_locked(), gap=gap)
        self._on_state(state)

    def _pause(self, seconds: float) -> None:
        """Wait, unless the end comes first."""
        deadline = self._clock.monotonic() + seconds
        with self._condition:
            while self._wanted and not self._is_closed:
                left_s = deadline - self._clock.monotonic()
                if left_s <= 0:
                    return
                self._clock.wait(self._condition, left_s)


def _kind(kind: str) -> str:
    """A kind as the records of it are named, see `kind_of`."""
    name, level = channel_of(kind)
    return grouped(level) if level else name


def _suffixed(code: str, depth: int) -> str:
    """The code with the depth of its book, where that is not the whole of it."""
    sent = min(step for step in BOOK_DEPTHS if step >= depth)
    return code if sent == ORDERBOOK_DEPTH else f"{code}.{sent}"
