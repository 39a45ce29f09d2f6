"""Who is sent next, and what becomes of the answer: the threads, the dispatch, the retries.

Work waits in the queue (`backbone.coordinator.queue`). One thread takes permits from the limiter for the ticket whose
turn it is and binds it as late as possible: only when a permit has opened is it asked what to request. Workers send,
and hand the answer to the ticket's `done`. Retries live here and nowhere else, because each needs a new permit.

Invariants: nothing is sent without a permit whose stamp is the time it was sent; a ticket ends exactly once, with an
answer, an error or its cancellation, also when the scheduler is closed; `bind`, `done`, the limiter and the venue are
never called under the lock; identical questions of `request` are in flight once.

`Scheduler._lock` guards the queue, the requests in flight, the jobs for the workers and the counts of threads;
`_wake` (for the dispatcher), `_Workers.has_job` and `_InFlight.complete` are conditions on it.
Threads are daemons, started by the first ticket, joined by `close`; a forked child starts with an empty queue and none.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import logging
import random
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from backbone.clock import Clock, Deadline
from backbone.coordinator.metrics import Metrics
from backbone.coordinator.permits import Permits
from backbone.coordinator.queue import Ticket, TicketQueue, TicketState, Turn
from backbone.coordinator.quota import Limiter
from backbone.coordinator.quota.rules import waiting_key
from backbone.errors import (
    BackboneError,
    ClosedError,
    PayloadError,
    RateLimitedError,
    SourceError,
    UnreachableError,
)
from backbone.locks import RUN_LOCK, renew_after_fork
from backbone.model import Priority
from backbone.routing.refusals import is_dropped

if TYPE_CHECKING:
    from backbone.routing.rest import Reply
    from backbone.routing.wire import Ask

__all__ = ["Scheduler"]

log = logging.getLogger("backbone.scheduler")

_SLICE_S = 0.5  # waits are cut into slices, so that an interrupt is seen on every system
_MOST_REFUSALS = 8  # 429s one ticket lives through
_MOST_ATTEMPTS = 5  # how often a question is put before its `UnreachableError` is final
_PAYLOAD_TRIES = 2
_DIRECT_TRIES = 2
_BACKOFF_S = (0.25, 8.0)  # first and longest
_LATELY_S = 30.0  # longer than any wait between two attempts
_LONG_S = 1.5  # a wait for a permit longer than this has a reason: look for a ban
_RANKS = tuple(Priority)
_WORKERS = 12  # threads that send
_SPARE_WORKERS = 4  # threads above those, for critical work and for what needs no permit
_RESERVED = (-_SPARE_WORKERS, 0, 2, 4)  # workers that a priority leaves to more urgent ones, by rank


class _InFlight(msgspec.Struct, eq=False):
    """A ticket and all who wait for its outcome: a reply or, of one that is a permit's, the time of the grant."""

    ticket: Ticket
    complete: threading.Condition  # its own, so that an outcome wakes only those who wait for it
    waiters: int = 0
    outcome: Any = None


class _Workers:
    """Threads that run jobs, started as they are needed. Methods that end in ``_locked`` are called under `lock`."""

    def __init__(
        self, lock: threading.Lock, clock: Clock, most: int, failed: Callable[[Ticket | None, Exception], None]
    ):
        self.has_job = threading.Condition(lock)
        self.threads: list[threading.Thread] = []
        self._lock = lock
        self._clock = clock
        self._most = most
        self._failed = failed
        self._jobs: deque[tuple[Ticket | None, Callable[[], None]]] = deque()
        self._idle = 0
        self._is_ending = False

    def start_locked(self, name: str, loop: Callable[[], None]) -> None:
        thread = threading.Thread(target=loop, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self.threads:
                raise
            return  # the interpreter is ending: what runs does the work, and `join` what is left
        self.threads.append(thread)

    def add_locked(self, ticket: Ticket | None, job: Callable[[], None]) -> None:
        self._jobs.append((ticket, job))
        if self._idle >= len(self._jobs):
            self.has_job.notify()
        elif len(self.threads) < 1 + self._most:  # the dispatcher is one of them
            self.start_locked(f"backbone-worker-{len(self.threads)}", self._loop)

    def end_locked(self) -> None:
        """The last job was added: the threads end when all are done."""
        self._is_ending = True
        self.has_job.notify_all()

    def _loop(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
                while not self._jobs and not self._is_ending:
                    self._clock.wait(self.has_job, None)
                self._idle -= 1
                if not self._jobs:
                    return
                ticket, job = self._jobs.popleft()
            try:
                job()
            except Exception as exc:  # noqa: BLE001 - the thread must live, and the ticket must end
                self._failed(ticket, exc)

    def join(self) -> None:
        """Wait for the threads to end; the dispatcher's end, which is first, also ends the starting of others."""
        joined = 0
        while True:
            with self._lock:
                threads = self.threads[joined:]
            if not threads:
                break
            for thread in threads:
                if thread is not threading.current_thread():
                    thread.join()
            joined += len(threads)
        with self._lock:
            self.end_locked()
        self._loop()  # what is left where no thread could be started


class Scheduler:
    """The queue in front of one venue. Safe to share between threads.

    Parameters
    ----------
    limiter : where permits come from; closed with the scheduler.
    send : puts one question once; raises the error tree, with ``reply_facts`` where the venue answered.
    """

    def __init__(
        self,
        limiter: Limiter,
        send: Callable[[Ask], Reply],
        *,
        clock: Clock,
        metrics: Metrics,
        seed: int | None = None,
    ) -> None:
        self._limiter = limiter
        self._send = send
        self._clock = clock
        self._metrics = metrics
        self._random = random.Random(seed)
        self._most_a_second = limiter.rules.limit  # a limiter that falls back later is slower, never faster
        self._is_closed = False
        self.used_s = 0.0
        """When a ticket last got a permit, monotonic."""
        self._begin()
        renew_after_fork(self, Scheduler._begin)

    def _begin(self) -> None:
        """An empty queue without threads: at the start, and in a forked child."""
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._queue = TicketQueue(waiting_key)
        self._timers: list[tuple[float, int, Callable[[], None]]] = []  # work without a permit, by when it is due
        self._numbers = itertools.count()
        self._requests: dict[Ask, _InFlight] = {}
        self._workers = _Workers(self._lock, self._clock, _WORKERS + _SPARE_WORKERS, self._after_mistake)
        self._permits = Permits(self._limiter, self._clock, self._metrics, self._most_a_second)
        self._in_flight = [0] * len(_RANKS)
        self._binding: Ticket | None = None  # the dispatcher's own: whose `bind` runs
        self._failures: dict[str, tuple[float, SourceError]] = {}  # by group, since one was answered
        self._last_error: BaseException | None = None

    def __repr__(self) -> str:
        with self._lock:
            state = "closed" if self._is_closed else "running" if self._workers.threads else "idle"
            return f"<Scheduler {len(self._queue)} queued, {sum(self._in_flight)} in flight, {state}>"

    # ---------------------------------------------------------------------------------------- what callers do

    def submit(
        self,
        group: str,
        priority: Priority,
        bind: Callable[[], Ask | None],
        done: Callable[[Ask | None, Reply | BackboneError], None],
    ) -> None:
        """Queue a question that is decided when its turn comes.

        `bind` runs on the dispatcher when a permit has opened: quick, without waiting. None from it means that there
        is nothing left to ask: the ticket vanishes, `done` is not called, the permit goes to the next. `done` runs
        once, on a worker, with None for a question never decided; if it raises, once more with that error.
        """
        ticket = Ticket(group, priority, self._clock.monotonic(), bind, done)
        with self._lock:
            self._push_locked(ticket)

    def call_later(self, delay_s: float, job: Callable[[], None], *, starts: bool = True) -> None:
        """Run `job` on a worker in `delay_s` seconds, without a permit; never if the scheduler is closed first.

        Where no thread runs and it `starts` none, it waits until one does.
        """
        with self._lock:
            if self._is_closed:
                raise _closed()
            heapq.heappush(self._timers, (self._clock.monotonic() + delay_s, next(self._numbers), job))
            if starts or self._workers.threads:
                self._wake_locked()

    def request(self, ask: Ask, priority: Priority, deadline: Deadline | None = None) -> Reply:
        """Put a question and wait for its answer; raises the error tree.

        The same question asked by several threads is put once, at the priority of the most urgent. Whoever has a
        `deadline` waits no longer than that.
        """
        with self._lock:
            if self._is_closed:
                raise _closed()
            shared = self._requests.get(ask)
            if shared is None:
                shared = self._request_locked(ask, priority)
            else:
                if self._queue.raise_priority(shared.ticket, priority):
                    self._wake.notify()
                self._metrics.count("single_flight.hits")
            reply: Reply = self._wait_locked(shared, ask, deadline)
        return reply

    def _wait_locked(self, shared: _InFlight, ask: Ask, deadline: Deadline | None) -> Any:
        """The outcome of what is in flight, raised where it is an error."""
        shared.waiters += 1
        try:
            while shared.outcome is None and not self._is_closed:
                left_s = _SLICE_S if deadline is None else min(_SLICE_S, deadline.left_s())
                if deadline is not None and left_s <= 0:
                    raise deadline.error(ask.path, self._failure_locked(ask.group))
                self._clock.wait(shared.complete, left_s)
        finally:
            shared.waiters -= 1
            if shared.outcome is None and not shared.waiters and self._queue.drop(shared.ticket):
                self._wake.notify()  # the last waiter is gone; of what is sent already, the reply is discarded
                if self._requests.get(ask) is shared:
                    del self._requests[ask]
        outcome = _closed() if shared.outcome is None else shared.outcome
        if isinstance(outcome, BackboneError):  # a copy: in each thread its traceback is a part of it
            raise copy.copy(outcome) from outcome.__cause__
        return outcome

    def begin(self, ask: Ask, priority: Priority, done: Callable[[Reply | BackboneError], None]) -> None:
        """Put a question that somebody will ask soon, without waiting: `request` shares it. Nothing where it is in
        flight. `done` gets the outcome on a worker, before whoever waits."""
        with self._lock:
            if self._is_closed:
                raise _closed()
            if ask not in self._requests:
                self._request_locked(ask, priority, done)

    def _request_locked(
        self, ask: Ask, priority: Priority, first: Callable[[Reply | BackboneError], None] | None = None
    ) -> _InFlight:
        def done(_: Ask | None, outcome: Reply | BackboneError) -> None:
            if first is not None:
                first(outcome)
            with self._lock:
                shared.outcome = outcome
                if self._requests.get(ask) is shared:
                    del self._requests[ask]
                shared.complete.notify_all()

        ticket = Ticket(ask.group, priority, self._clock.monotonic(), lambda: ask, done)
        shared = self._requests[ask] = _InFlight(ticket, threading.Condition(self._lock))
        self._push_locked(ticket)
        return shared

    def direct(self, ask: Ask, send: Callable[[Ask], Reply], deadline: Deadline | None = None) -> Reply:
        """The critical lane: a permit kept free for it, and `send` on the calling thread.

        Tried again when a kept connection turned out to be dropped before anything arrived, and after a 429. The
        permit is waited for until `deadline` at most; that `send` ends by then is its caller's to see to.
        """
        begun = since = self._clock.monotonic()
        attempts = 0
        while True:
            attempts += 1
            granted = self._critical_permit(ask, since, deadline)
            self._metrics.time("waited", granted - since, group=ask.group, priority=Priority.CRITICAL)
            try:
                reply = send(ask)
            except SourceError as error:
                self._permits.learn(ask.group, granted, error)
                error.attempts = attempts
                if attempts >= _DIRECT_TRIES or not (is_dropped(error) or _is_refusal(error)):
                    self._permits.count_failure(error)
                    raise
                self._metrics.count("retries")
                since = self._clock.monotonic()
                continue
            self._permits.count_answer(ask.group, granted, reply, begun, Priority.CRITICAL)
            return reply

    def failure(self, group: str) -> SourceError | None:
        """Why the last attempt at a question of `group` failed; None where one was answered since, or after a while."""
        with self._lock:
            return self._failure_locked(group)

    def _failure_locked(self, group: str) -> SourceError | None:
        at_s, error = self._failures.get(group, (0.0, None))
        return error if self._clock.monotonic() - at_s <= _LATELY_S else None

    def depths(self) -> dict[str, dict[str, int]]:
        """Tickets that wait, by group and priority."""
        with self._lock:
            return self._queue.depths()

    def status(self) -> dict[str, Any]:
        """What is going on, in plain values: ``queued in_flight threads last_error failures banned_s quota``."""
        now = self._clock.monotonic()
        with self._lock:
            in_flight = dict(zip((p.value for p in _RANKS), self._in_flight, strict=True))
            threads = len(self._workers.threads)
            last_error = self._last_error
        is_closed = self._is_closed
        return {
            "queued": self.depths(),
            "in_flight": in_flight,
            "threads": threads,
            "last_error": repr(last_error) if last_error else "",
            "failures": self._permits.failures,
            "banned_s": 0.0 if is_closed else self._limiter.ban_left(now),
            "quota": {} if is_closed else {g: vars(s) for g, s in self._limiter.snapshot(now).items()},
        }

    def close(self) -> None:
        """End everything: whoever waits gets a `ClosedError`, what is in flight ends first.

        Calling it twice is fine.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._fail_locked(list(self._queue.tickets()), _closed())
            for shared in self._requests.values():
                shared.complete.notify_all()
            self._requests = {}
            self._wake.notify_all()
        self._workers.join()
        self._limiter.close()

    # ---------------------------------------------------------------------------------------------- the queue

    def _push_locked(self, ticket: Ticket) -> None:
        if self._is_closed:
            raise _closed()
        if self._queue.push(ticket) or not self._workers.threads:
            self._wake_locked()

    def _wake_locked(self) -> None:
        if not self._workers.threads:
            self._workers.start_locked("backbone-dispatch", self._dispatch_loop)
        self._wake.notify()

    def _fail_locked(self, tickets: list[Ticket], error: BackboneError) -> None:
        """End tickets that wait (others are left alone)."""
        for ticket in tickets:
            if self._queue.drop(ticket):
                self._workers.add_locked(ticket, partial(_finish, ticket, error))

    def _fail_urgent(self, error: BackboneError) -> None:
        """A ban: low work waits for its end, all that is more urgent ends at once."""
        with self._lock:
            urgent = [ticket for ticket in self._queue.tickets() if ticket.priority is not Priority.LOW]
            self._fail_locked(urgent, error)

    # ----------------------------------------------------------------------------------------- the dispatcher

    def _dispatch_loop(self) -> None:
        while True:
            try:
                if not self._dispatch_one():
                    break
            except Exception as exc:  # noqa: BLE001 - the thread must live: it alone hands out work
                self._after_mistake(self._binding, exc)
                self._binding = None
        with self._lock:
            self._workers.end_locked()

    def _after_mistake(self, ticket: Ticket | None, exc: Exception) -> None:
        """`bind`, `done` or a job raised what it should not: the ticket ends, also where `done` raised."""
        log.error("scheduler.error %r", exc, exc_info=exc)
        with self._lock:
            self._last_error = exc
            if ticket is not None and not ticket.is_broken:
                is_unbound = ticket is self._binding
                ticket.is_broken = not is_unbound  # `done` was not called yet where `bind` raised
                error = exc if is_unbound and isinstance(exc, BackboneError) else _internal(exc)
                self._workers.add_locked(ticket, partial(_finish, ticket, error))

    def _dispatch_one(self) -> bool:
        """Wait until some queue may try for a permit, and try. False once closed."""
        with self._lock:
            while True:
                if self._is_closed:
                    return False
                now = self._clock.monotonic()
                self._queue.revive(now)
                while self._timers and self._timers[0][0] <= now:
                    self._workers.add_locked(None, heapq.heappop(self._timers)[2])
                turn, wake = self._queue.next_turn(now, self._has_room_locked)
                emptied = [] if turn else self._queue.take_emptied()
                if turn or emptied:
                    break
                if self._timers:
                    wake = self._timers[0][0] if wake is None else min(wake, self._timers[0][0])
                self._clock.wait(self._wake, None if wake is None else max(0.0, wake - now))
        for group, priority in emptied:
            self._limiter.leave(group, priority)
        if turn is not None:
            with RUN_LOCK.running():
                again = self._limiter.take(*turn[:3], now, turn.depth)
                if not again:
                    self._use_permit(turn, now)
            if not again:
                if turn.priority is Priority.LOW:  # paced: to ask before that would be in vain
                    with self._lock:
                        self._queue.wait_until(turn.group, turn.priority, self._limiter.next_low(turn.group))
                return True
            with self._lock:
                self._queue.wait_until(turn.group, turn.priority, again)
            ban_left_s = self._limiter.ban_left(now) if again - now > _LONG_S else 0.0
            if ban_left_s:
                self._fail_urgent(self._permits.ban_error(ban_left_s))
        return True

    def _has_room_locked(self, priority: Priority) -> bool:
        """Slow answers to bulk work must not hold every worker: urgent work finds one."""
        return sum(self._in_flight) < _WORKERS - _RESERVED[priority.rank]

    def _use_permit(self, turn: Turn, granted: float) -> None:
        """Bind the most urgent ticket that may use this permit, and give it to a worker."""
        while True:
            with self._lock:
                ticket = self._queue.pop(turn.group, turn.priority, granted)
            if ticket is None:
                self._limiter.undo(turn.group, granted)
                return
            if ticket.is_permit:
                ticket.done(None, granted)
                return
            if ticket.ask is None:
                self._binding = ticket
                ticket.ask = ticket.bind()
                self._binding = None
            if ticket.ask is not None:
                break
            ticket.state = TicketState.ENDED
        with self._lock:
            self.used_s = granted
            rank = ticket.priority.rank
            self._in_flight[rank] += 1
            self._workers.add_locked(ticket, partial(self._serve, ticket, rank, granted))

    # --------------------------------------------------------------------------------- sending, and its outcome

    def _serve(self, ticket: Ticket, rank: int, granted: float) -> None:
        """Send a ticket that was counted in flight at `rank`, on a worker."""
        with RUN_LOCK.running():
            try:
                outcome = self._attempt(ticket, granted)
            finally:
                with self._lock:
                    was_full = not self._has_room_locked(Priority.LOW)  # else nobody waits for room
                    self._in_flight[rank] -= 1
                    if was_full:
                        self._wake.notify()
            if outcome is not None:
                _finish(ticket, outcome)

    def _attempt(self, ticket: Ticket, granted: float) -> Reply | BackboneError | None:
        """Send a ticket's question; its outcome, or None when it was queued again."""
        ask = ticket.ask
        stamp = self._permits.stamp(ask.group, granted)
        if stamp is None:
            return self._requeue(ticket, 0.0)
        if not ticket.attempts and not ticket.refusals:
            self._metrics.time("waited", stamp - ticket.since, group=ask.group, priority=ticket.priority)
        try:
            reply = self._send(ask)
        except SourceError as error:
            self._permits.learn(ask.group, stamp, error)
            return self._after_error(ticket, error)
        except BackboneError as error:
            return error
        self._permits.count_answer(ask.group, stamp, reply, ticket.since, ticket.priority)
        if self._failures:
            with self._lock:
                self._failures.pop(ask.group, None)
        return reply

    def _requeue(self, ticket: Ticket, delay_s: float) -> ClosedError | None:
        """Queue a ticket again, with its question and its age; the error that ends it if that is too late."""
        with self._lock:
            if self._is_closed:
                return _closed()
            if delay_s:
                self._queue.delay(ticket, self._clock.monotonic() + delay_s)
            else:
                self._queue.push(ticket)
            self._wake.notify()
            return None

    def _after_error(self, ticket: Ticket, error: SourceError) -> BackboneError | None:
        """What becomes of a ticket whose question failed: None when it is asked again."""
        with self._lock:
            self._failures[ticket.group] = self._clock.monotonic(), error
        delay_s = 0.0
        if isinstance(error, RateLimitedError):
            if error.banned:  # low work waits for the end; all that is more urgent ends at once
                until = self._permits.ban_error(error.retry_after_s)
                until.__cause__ = error
                self._fail_urgent(until)
                return until if ticket.priority is not Priority.LOW else self._requeue(ticket, 0.0)
            ticket.refusals += 1
            final = ticket.refusals > _MOST_REFUSALS
        elif isinstance(error, UnreachableError):
            ticket.attempts += 1
            final = ticket.attempts >= _MOST_ATTEMPTS
            first_s, longest_s = _BACKOFF_S
            delay_s = min(longest_s, first_s * 2.0 ** (ticket.attempts - 1)) * self._random.uniform(0.5, 1.5)
        elif isinstance(error, PayloadError):
            ticket.attempts += 1
            ticket.payload_errors += 1
            final = ticket.payload_errors >= _PAYLOAD_TRIES or ticket.attempts >= _MOST_ATTEMPTS
        else:
            ticket.attempts += 1
            final = True
        error.attempts = ticket.attempts + ticket.refusals
        if final:
            self._permits.count_failure(error)
            return error
        self._metrics.count("retries")
        log.info("page.retry group=%s attempt=%d after %s", ticket.group, error.attempts, error)
        return self._requeue(ticket, delay_s)

    # -------------------------------------------------------------------------------------- the critical lane

    def _critical_permit(self, ask: Ask, since: float, deadline: Deadline | None) -> float:
        """The time of a critical permit, taken at once where one is free, otherwise in the queue's order."""
        group = ask.group
        with self._lock:
            if self._is_closed:
                raise _closed()
            is_first = not self._queue.has_critical(group)
        if is_first:
            now = self._clock.monotonic()
            again = self._limiter.take(group, Priority.CRITICAL, since, now)
            if not again and self._permits.pass_gate(group):
                return now
            ban_left_s = self._limiter.ban_left(now) if again else 0.0
            if ban_left_s:
                raise self._permits.ban_error(ban_left_s)
        while True:
            stamp = self._permits.stamp(group, self._queued_permit(ask, since, deadline))
            if stamp is not None:
                return stamp

    def _queued_permit(self, ask: Ask, since: float, deadline: Deadline | None) -> float:
        """The time of a permit that was waited for; one that comes too late is given back."""
        group = ask.group

        def done(_: Ask | None, outcome: Any) -> None:
            with self._lock:
                if shared.waiters:
                    shared.outcome = outcome
                    shared.complete.notify_all()
                    return
            if not isinstance(outcome, BackboneError):
                self._limiter.undo(group, outcome)

        ticket = Ticket(group, Priority.CRITICAL, since, lambda: None, done, is_permit=True)
        shared = _InFlight(ticket, threading.Condition(self._lock))
        try:
            with self._lock:
                self._push_locked(ticket)
                granted: float = self._wait_locked(shared, ask, deadline)
        except BaseException:
            if isinstance(shared.outcome, float):  # interrupted in the moment of the grant
                self._limiter.undo(group, shared.outcome)
            raise
        return granted


def _finish(ticket: Ticket, outcome: Reply | BackboneError) -> None:
    ticket.state = TicketState.ENDED
    ticket.done(ticket.ask, outcome)


def _closed() -> ClosedError:
    return ClosedError("this client is closed; make a new one")


def _internal(exc: BaseException) -> BackboneError:
    error = BackboneError(f"an error inside backbone: {exc!r}")
    error.__cause__ = exc
    return error


def _is_refusal(error: SourceError) -> bool:
    return isinstance(error, RateLimitedError) and not error.banned
