"""Who is sent next, and what becomes of the answer: the queue, the threads, the retries.

Work waits as *tickets*, by wire group and priority; a page of a long job is one ticket, so nothing urgent
waits for a whole job. One thread takes permits from the limiter for the ticket whose turn it is and binds it
as late as possible: only when a permit has opened is it asked what to request. Workers send, and hand the
answer to the ticket's `done`. Retries live here and nowhere else, because each needs a new permit.

Invariants: nothing is sent without a permit whose stamp is the time it was sent; a ticket ends exactly once,
with an answer, an error or its cancellation, also when the scheduler is closed; `bind`, `done`, the limiter
and the venue are never called under the lock; identical questions of `request` are in flight once.

`Scheduler._lock` guards the queues, the flights, the jobs for the workers and the counts of threads; `_wake`
(for the dispatcher), `_has_job` (for the workers) and `_landed` (for those who wait for a permit) are
conditions on it. Threads are daemons, started by the first ticket, joined by `close`; a forked child starts
with an empty queue and none.
"""

from __future__ import annotations

import copy
import heapq
import http.client
import itertools
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from backbone.clock import Clock
from backbone.coordinator.metrics import Metrics
from backbone.coordinator.quota.rules import Delay, GroupState, Rules, waiting_key
from backbone.errors import (
    BackboneError,
    ClosedError,
    PayloadError,
    RateLimitedError,
    RejectedError,
    SourceError,
    UnreachableError,
)
from backbone.locks import renew_after_fork
from backbone.model import Priority

if TYPE_CHECKING:
    from backbone.routing.rest import Reply
    from backbone.routing.wire import Ask

__all__ = ["Limiter", "Scheduler", "Ticket"]

log = logging.getLogger("backbone.scheduler")

_LATE_S = 0.001  # a permit used later than this is moved to the time of its use
_SLICE_S = 0.5  # waits are cut into slices, so that an interrupt is seen on every system
_MOST_REFUSALS = 8  # 429s one ticket lives through
_PAYLOAD_TRIES = 2
_DIRECT_TRIES = 2
_BACKOFF_S = (0.25, 8.0)  # first and longest
_LONG_S = 1.5  # a wait for a permit longer than this has a reason: look for a ban
_RANKS = tuple(Priority)
_CRITICAL, _LOW = Priority.CRITICAL.rank, Priority.LOW.rank


class Limiter(Protocol):
    """Gives permits to send. Times are monotonic seconds; no call waits.

    Forms: the machine's ledger and this process's own memory (`backbone.coordinator.quota.ledger`).
    """

    @property
    def rules(self) -> Rules: ...

    def take(self, group: str, priority: Priority, since: float, now: float, depth: int = 1) -> float:
        """0.0: granted, with the stamp `now`. Else when to ask again.

        Until then this process is put down as waiting, with `depth` requests, for a slot since `since`.
        """
        ...

    def leave(self, group: str, priority: Priority | None = None) -> None:
        """This process waits no longer in the group (at this priority)."""
        ...

    def undo(self, group: str, granted: float) -> None:
        """Give back an unused permit."""
        ...

    def move(self, group: str, granted: float, now: float) -> bool:
        """The permit is used only now; False when it has lapsed."""
        ...

    def observe(self, group: str, remaining: int | None, granted: float, counted: float, now: float) -> None:
        """A reply came: when it was counted at the latest, and how many requests the venue says are left."""
        ...

    def refused(self, group: str, now: float, retry_after_s: float | None) -> None:
        """The venue answered 429."""
        ...

    def banned(self, until_wall_us: int, now: float) -> None:
        """The venue answered 418."""
        ...

    def ban_left(self, now: float) -> float:
        """Seconds until a ban ends; 0.0 without one."""
        ...

    def snapshot(self, now: float) -> dict[str, GroupState]: ...

    def close(self) -> None: ...


class _State(Enum):
    QUEUED = auto()
    SENT = auto()
    ENDED = auto()


class Ticket:
    """One place in the queue. What it asks is decided when its turn comes."""

    __slots__ = (
        "_number",
        "ask",
        "attempts",
        "bind",
        "done",
        "group",
        "is_broken",
        "is_delayed",
        "is_permit",
        "lies",
        "priority",
        "refusals",
        "since",
        "state",
    )

    def __init__(
        self,
        group: str,
        priority: Priority,
        since: float,
        bind: Callable[[], Ask | None],
        done: Callable[[Ask | None, Reply | BackboneError], None],
        *,
        is_permit: bool = False,
    ) -> None:
        self.group = group
        self.priority = priority
        self.since = since
        self.bind = bind
        self.done = done
        self.is_permit = is_permit  # wants the permit alone: it is sent by the thread that waits for it
        self.is_delayed = False  # backs off, outside the rows
        self.is_broken = False  # an error inside ended it, and was told to `done`
        self.ask: Ask | None = None
        self.attempts = 0
        self.refusals = 0
        self.lies = 0
        self.state = _State.QUEUED
        self._number = next(_numbers)

    def __repr__(self) -> str:
        return f"<Ticket {self.group} {self.priority.value} {self.state.name.lower()}>"


_numbers = itertools.count()


class _Row:
    """The tickets of one group and priority, first come first served. Cancelled and lifted ones are skipped."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Ticket]] = []
        self.depth = 0
        self.last_grant = float("-inf")
        self.try_at = 0.0

    def push(self, ticket: Ticket) -> None:
        if not self.depth or ticket.since < self._heap[0][0]:
            self.try_at = 0.0
        heapq.heappush(self._heap, (ticket.since, ticket._number, ticket))
        self.depth += 1
        if len(self._heap) > 2 * self.depth + 64:  # what was cancelled or lifted behind the head
            self._heap = [entry for entry in self._heap if self._is_here(entry[2], ticket.priority)]
            heapq.heapify(self._heap)

    @staticmethod
    def _is_here(ticket: Ticket, priority: Priority) -> bool:
        return ticket.state is _State.QUEUED and ticket.priority is priority

    def head(self, priority: Priority) -> Ticket | None:
        heap = self._heap
        while heap and not self._is_here(heap[0][2], priority):
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def pop(self, priority: Priority) -> Ticket | None:
        ticket = self.head(priority)
        if ticket is not None:
            heapq.heappop(self._heap)  # at once: a ticket that is queued again must not be there twice
            self.depth -= 1
        return ticket

    def since(self, ticket: Ticket) -> float:
        """Since when the row waits for its next turn: as a row it is as young as its last grant."""
        return max(ticket.since, self.last_grant)

    def tickets(self, priority: Priority) -> Iterator[Ticket]:
        return (ticket for _, _, ticket in self._heap if self._is_here(ticket, priority))


class _Flight:
    """One question of `request` and all who wait for its answer."""

    __slots__ = ("askers", "landed", "outcome", "ticket")

    def __init__(self, lock: threading.Lock) -> None:
        self.landed = threading.Condition(lock)  # its own, so that a landing wakes only those who wait for it
        self.askers = 0
        self.outcome: Reply | BackboneError | None = None
        self.ticket: Ticket | None = None


class Scheduler:
    """The queue in front of one venue. Safe to share between threads.

    Parameters
    ----------
    limiter : where permits come from; closed with the scheduler.
    send : puts one question once; raises the error tree, with ``reply_facts`` where the venue answered.
    workers : threads that send; urgent work may always use some that bulk work may not.
    max_attempts : how often a question is put before its `UnreachableError` is final.
    """

    def __init__(
        self,
        limiter: Limiter,
        send: Callable[[Ask], Reply],
        *,
        clock: Clock,
        metrics: Metrics,
        workers: int = 12,
        max_attempts: int = 5,
        seed: int | None = None,
    ) -> None:
        self._limiter = limiter
        self._send = send
        self._clock = clock
        self._metrics = metrics
        self._workers = workers
        self._max_attempts = max_attempts
        self._random = random.Random(seed)
        self._is_closed = False
        self._begin()
        renew_after_fork(self, Scheduler._begin)

    def _begin(self) -> None:
        """An empty queue without threads: at the start, and in a forked child."""
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._has_job = threading.Condition(self._lock)
        self._landed = threading.Condition(self._lock)
        self._rows: dict[str, tuple[_Row, ...]] = {}
        self._delayed: list[tuple[float, int, Ticket]] = []  # tickets that back off, by when they come back
        self._timers: list[tuple[float, int, Callable[[], None]]] = []  # work without a permit, by when it is due
        self._flights: dict[Ask, _Flight] = {}
        self._jobs: deque[tuple[Ticket | None, Callable[[], None]]] = deque()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._is_dispatched = False  # closed, and the dispatcher has handed out its last job
        self._in_flight = [0] * len(_RANKS)
        self._delays: dict[str, Delay] = {}
        self._gates: dict[str, Callable[[], None]] = {}
        self._binding: Ticket | None = None  # the dispatcher's own: whose `bind` runs
        self._last_error: BaseException | None = None
        self._failures = 0  # questions given up since the venue answered last

    def __repr__(self) -> str:
        with self._lock:
            queued = sum(row.depth for rows in self._rows.values() for row in rows) + len(self._delayed)
            state = "closed" if self._is_closed else "running" if self._threads else "idle"
            return f"<Scheduler {queued} queued, {sum(self._in_flight)} in flight, {state}>"

    # ---------------------------------------------------------------------------------------- what callers do

    def submit(
        self,
        group: str,
        priority: Priority,
        bind: Callable[[], Ask | None],
        done: Callable[[Ask | None, Reply | BackboneError], None],
    ) -> Ticket:
        """Queue a question that is decided when its turn comes.

        `bind` runs on the dispatcher when a permit has opened: quick, without waiting. None from it means that there
        is nothing left to ask: the ticket vanishes, `done` is not called, the permit goes to the next. `done` runs
        once, on a worker, with None for a question never decided; if it raises, once more with that error.
        """
        ticket = Ticket(group, priority, self._clock.monotonic(), bind, done)
        with self._lock:
            self._check_open_locked()
            self._queue_locked(ticket)
        return ticket

    def call_later(self, delay_s: float, job: Callable[[], None]) -> None:
        """Run `job` on a worker in `delay_s` seconds, without a permit; never if the scheduler is closed first."""
        with self._lock:
            self._check_open_locked()
            heapq.heappush(self._timers, (self._clock.monotonic() + delay_s, next(_numbers), job))
            self._start_dispatcher_locked()
            self._wake.notify()

    def lift(self, ticket: Ticket, priority: Priority) -> None:
        """Give a waiting ticket a more urgent priority; it keeps its age. Never lowers one."""
        with self._lock:
            self._lift_locked(ticket, priority)

    def cancel(self, ticket: Ticket) -> bool:
        """Take a ticket out of the queue; False when it is too late (sent or ended), and `done` has the last word."""
        with self._lock:
            if ticket.state is not _State.QUEUED:
                return False
            self._drop_locked(ticket)
            self._wake.notify()
            return True

    def request(self, ask: Ask, priority: Priority) -> Reply:
        """Put a question and wait for its answer; raises the error tree.

        The same question asked by several threads is put once, at the priority of the most urgent.
        """
        with self._lock:
            self._check_open_locked()
            flight = self._flights.get(ask)
            if flight is None:
                flight = self._launch_locked(ask, priority)
            else:
                assert flight.ticket is not None
                self._lift_locked(flight.ticket, priority)
                self._metrics.count("single_flight.hits")
            flight.askers += 1
            try:
                while flight.outcome is None:
                    self._clock.wait(flight.landed, _SLICE_S)
            finally:
                flight.askers -= 1
                if flight.outcome is None and not flight.askers:
                    self._abandon_locked(ask, flight)
        if isinstance(flight.outcome, BackboneError):
            _raise(flight.outcome)
        return flight.outcome

    def direct(self, ask: Ask, send: Callable[[Ask], Reply]) -> Reply:
        """The critical lane: a permit kept free for it, and `send` on the calling thread.

        Tried again when a kept connection turned out to be dropped before anything arrived, and after a 429.
        """
        begun = since = self._clock.monotonic()
        attempts = 0
        while True:
            attempts += 1
            granted = self._critical_permit(ask.group, since)
            self._metrics.time("waited", granted - since, group=ask.group, priority=Priority.CRITICAL)
            try:
                reply = send(ask)
            except SourceError as error:
                self._learn(ask.group, granted, error)
                error.attempts = attempts
                if attempts >= _DIRECT_TRIES or not (_is_dropped(error) or _is_refusal(error)):
                    self._count_failure(error)
                    raise
                self._metrics.count("retries")
                since = self._clock.monotonic()
                continue
            self._count_answer()
            self._learn(ask.group, granted, reply)
            answered = self._clock.monotonic() - begun
            self._metrics.time("answered", answered, group=ask.group, priority=Priority.CRITICAL)
            return reply

    def depths(self) -> dict[str, dict[str, int]]:
        """Tickets that wait, by group and priority."""
        with self._lock:
            depths = {
                group: {priority.value: row.depth for priority, row in zip(_RANKS, rows, strict=True)}
                for group, rows in self._rows.items()
            }
            for _, _, ticket in self._delayed:
                if ticket.state is _State.QUEUED:
                    depths[ticket.group][ticket.priority.value] += 1
            return depths

    def status(self) -> dict[str, Any]:
        """What is going on, in plain values: ``queued in_flight threads last_error failures banned_s quota``."""
        now = self._clock.monotonic()
        with self._lock:
            in_flight = dict(zip((p.value for p in _RANKS), self._in_flight, strict=True))
            threads = len(self._threads)
            last_error = self._last_error
        is_closed = self._is_closed
        return {
            "queued": self.depths(),
            "in_flight": in_flight,
            "threads": threads,
            "last_error": repr(last_error) if last_error else "",
            "failures": self._failures,
            "banned_s": 0.0 if is_closed else self._limiter.ban_left(now),
            "quota": {} if is_closed else {g: vars(s) for g, s in self._limiter.snapshot(now).items()},
        }

    def close(self, *, wait: bool = True) -> None:
        """End everything: whoever waits gets a `ClosedError`, what is in flight ends first (unless `wait` is False).

        Calling it twice is fine.
        """
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            for ticket in self._all_tickets_locked():
                self._drop_locked(ticket)
                self._job_locked(ticket, _finishing(ticket, _closed()))
            for flight in self._flights.values():
                flight.outcome = _closed()
                flight.landed.notify_all()
            self._flights = {}
            self._wake.notify_all()
            self._landed.notify_all()
        if wait:
            self._join()
        self._limiter.close()

    def _join(self) -> None:
        """Wait for the threads to end; the dispatcher's end, which is first, also ends the starting of others."""
        joined = 0
        while True:
            with self._lock:
                threads = self._threads[joined:]
            if not threads:
                return
            for thread in threads:
                if thread is not threading.current_thread():
                    thread.join()
            joined += len(threads)

    # ---------------------------------------------------------------------------------------------- the queue

    def _check_open_locked(self) -> None:
        if self._is_closed:
            raise _closed()

    def _row_locked(self, group: str, priority: Priority) -> _Row:
        rows = self._rows.get(group)
        if rows is None:
            rows = self._rows[group] = tuple(_Row() for _ in _RANKS)
        return rows[priority.rank]

    def _queue_locked(self, ticket: Ticket) -> None:
        self._row_locked(ticket.group, ticket.priority).push(ticket)
        self._start_dispatcher_locked()
        self._wake.notify()

    def _delay_locked(self, ticket: Ticket, until: float) -> None:
        ticket.is_delayed = True
        heapq.heappush(self._delayed, (until, ticket._number, ticket))
        self._wake.notify()

    def _drop_locked(self, ticket: Ticket) -> None:
        """End a queued ticket. Its heap entry is skipped later."""
        ticket.state = _State.ENDED
        if not ticket.is_delayed:
            self._row_locked(ticket.group, ticket.priority).depth -= 1

    def _lift_locked(self, ticket: Ticket, priority: Priority) -> None:
        if priority.rank >= ticket.priority.rank:
            return
        is_queued = ticket.state is _State.QUEUED and not ticket.is_delayed
        if is_queued:
            self._row_locked(ticket.group, ticket.priority).depth -= 1
        ticket.priority = priority
        if is_queued:
            self._queue_locked(ticket)

    def _all_tickets_locked(self) -> list[Ticket]:
        queued = [
            ticket
            for rows in self._rows.values()
            for priority, row in zip(_RANKS, rows, strict=True)
            for ticket in row.tickets(priority)
        ]
        return queued + [ticket for _, _, ticket in self._delayed if ticket.state is _State.QUEUED]

    def _launch_locked(self, ask: Ask, priority: Priority) -> _Flight:
        flight = self._flights[ask] = _Flight(self._lock)

        def land(_: Ask | None, outcome: Reply | BackboneError) -> None:
            with self._lock:
                if flight.outcome is None:
                    flight.outcome = outcome
                if self._flights.get(ask) is flight:
                    del self._flights[ask]
                flight.landed.notify_all()

        flight.ticket = Ticket(ask.group, priority, self._clock.monotonic(), lambda: ask, land)
        self._queue_locked(flight.ticket)
        return flight

    def _abandon_locked(self, ask: Ask, flight: _Flight) -> None:
        """The last asker was interrupted: what is still queued is not asked; what is sent lands unheard."""
        if flight.ticket is not None and flight.ticket.state is _State.QUEUED:
            self._drop_locked(flight.ticket)
            if self._flights.get(ask) is flight:
                del self._flights[ask]

    # ----------------------------------------------------------------------------------------- the dispatcher

    def _start_dispatcher_locked(self) -> None:
        if not self._threads:
            self._start_locked("backbone-dispatch", self._dispatch_loop)

    def _start_locked(self, name: str, loop: Callable[[], None]) -> None:
        thread = threading.Thread(target=loop, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _dispatch_loop(self) -> None:
        while True:
            try:
                if not self._dispatch_one():
                    break
            except Exception as exc:  # noqa: BLE001 - the thread must live: it alone hands out work
                self._record(exc)
                ticket, self._binding = self._binding, None
                if ticket is not None:
                    self._fail([ticket], exc if isinstance(exc, BackboneError) else _internal(exc))
        with self._lock:
            self._is_dispatched = True
            self._has_job.notify_all()

    def _record(self, exc: BaseException) -> None:
        with self._lock:
            self._last_error = exc
        log.error("scheduler.error %r", exc, exc_info=exc)

    def _dispatch_one(self) -> bool:
        """Wait until some row may try for a permit, and try. False once closed."""
        with self._lock:
            while True:
                if self._is_closed:
                    return False
                now = self._clock.monotonic()
                self._revive_locked(now)
                turn, wake = self._next_turn_locked(now)
                if turn is not None:
                    break
                idle_rows = self._emptied_locked()
                if idle_rows:
                    break
                self._clock.wait(self._wake, None if wake is None else max(0.0, wake - now))
        if turn is None:
            for group, priority in idle_rows:
                self._limiter.leave(group, priority)
            return True
        group, priority, since, depth = turn
        again = self._limiter.take(group, priority, since, now, depth)
        if again:
            self._await_permit(group, priority, again, now)
        else:
            self._use_permit(group, priority, now)
        return True

    def _revive_locked(self, now: float) -> None:
        while self._delayed and (self._delayed[0][0] <= now or self._delayed[0][2].state is not _State.QUEUED):
            ticket = heapq.heappop(self._delayed)[2]
            ticket.is_delayed = False
            if ticket.state is _State.QUEUED:
                self._row_locked(ticket.group, ticket.priority).push(ticket)
        while self._timers and self._timers[0][0] <= now:
            self._job_locked(None, heapq.heappop(self._timers)[2])

    def _next_turn_locked(self, now: float) -> tuple[tuple[str, Priority, float, int] | None, float | None]:
        """The row that tries for a permit now, best key first; and when to look again if there is none."""
        best: tuple[float, str, Priority, float, int] | None = None
        wake = min((heap[0][0] for heap in (self._delayed, self._timers) if heap), default=None)
        for group, rows in self._rows.items():
            for priority, row in zip(_RANKS, rows, strict=True):
                ticket = row.head(priority) if row.depth else None
                if ticket is None or not (ticket.is_permit or self._has_room_locked(priority)):
                    continue
                if row.try_at > now:
                    wake = row.try_at if wake is None else min(wake, row.try_at)
                    continue
                since = row.since(ticket)
                key = waiting_key(priority.rank, since)
                if best is None or key < best[0]:
                    best = (key, group, priority, since, row.depth)
        return (None if best is None else best[1:]), wake

    def _emptied_locked(self) -> list[tuple[str, Priority]]:
        """Rows that were told a time and have nobody left to use it: others need not wait for them."""
        emptied = []
        for group, rows in self._rows.items():
            for priority, row in zip(_RANKS, rows, strict=True):
                if not row.depth and row.try_at:
                    row.try_at = 0.0
                    emptied.append((group, priority))
        return emptied

    def _has_room_locked(self, priority: Priority) -> bool:
        """Slow answers to bulk work must not hold every worker: urgent work finds one."""
        limit = max(1, self._workers - (-4, 0, 2, 4)[priority.rank])
        return sum(self._in_flight) < limit

    def _await_permit(self, group: str, priority: Priority, again: float, now: float) -> None:
        ban_left_s = self._limiter.ban_left(now) if again - now > _LONG_S else 0.0
        with self._lock:
            row = self._row_locked(group, priority)
            row.try_at = again
            failed = self._urgent_locked() if ban_left_s else []
            for ticket in failed:
                self._drop_locked(ticket)
        if failed:
            self._fail(failed, self._ban_error(ban_left_s))

    def _urgent_locked(self) -> list[Ticket]:
        return [ticket for ticket in self._all_tickets_locked() if ticket.priority is not Priority.LOW]

    def _fail(self, tickets: list[Ticket], error: BackboneError) -> None:
        with self._lock:
            for ticket in tickets:
                self._job_locked(ticket, _finishing(ticket, error))

    def _use_permit(self, group: str, priority: Priority, granted: float) -> None:
        """Bind the most urgent ticket that may use this permit, and give it to a worker."""
        while True:
            with self._lock:
                ticket = self._pop_locked(group, priority, granted)
                if ticket is not None and ticket.is_permit:
                    ticket.since = granted  # read by the thread that waits for it
                    self._landed.notify_all()
                    return
            if ticket is None:
                self._limiter.undo(group, granted)
                return
            if self._bind(ticket):
                break
        with self._lock:
            self._in_flight[ticket.priority.rank] += 1
            self._job_locked(ticket, self._sending(ticket, granted))

    def _pop_locked(self, group: str, priority: Priority, now: float) -> Ticket | None:
        for urgent in _RANKS[: priority.rank + 1]:
            row = self._row_locked(group, urgent)
            ticket = row.pop(urgent)
            if ticket is not None:
                ticket.state = _State.SENT
                row.last_grant = now
                self._row_locked(group, priority).try_at = 0.0
                return ticket
        return None

    def _bind(self, ticket: Ticket) -> bool:
        """Ask a ticket what it requests; False when that ends it."""
        if ticket.ask is not None:
            return True
        self._binding = ticket
        ticket.ask = ticket.bind()
        self._binding = None
        if ticket.ask is None:
            ticket.state = _State.ENDED
        return ticket.ask is not None

    # -------------------------------------------------------------------------------------------- the workers

    def _job_locked(self, ticket: Ticket | None, job: Callable[[], None]) -> None:
        self._jobs.append((ticket, job))
        if self._idle >= len(self._jobs):
            self._has_job.notify()
        elif len(self._threads) < 1 + self._workers + 4:
            self._start_locked(f"backbone-worker-{len(self._threads)}", self._work_loop)

    def _work_loop(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
                while not self._jobs and not self._is_dispatched:
                    self._clock.wait(self._has_job, None)
                self._idle -= 1
                if not self._jobs:
                    return
                ticket, job = self._jobs.popleft()
            try:
                job()
            except Exception as exc:  # noqa: BLE001 - the thread must live, and the ticket must end
                self._record(exc)
                if ticket is not None and not ticket.is_broken:  # also where `done` raised: somebody waits for it
                    ticket.is_broken = True
                    self._fail([ticket], _internal(exc))

    def _sending(self, ticket: Ticket, granted: float) -> Callable[[], None]:
        rank = ticket.priority.rank

        def job() -> None:
            try:
                outcome = self._attempt(ticket, granted)
            finally:
                with self._lock:
                    self._in_flight[rank] -= 1
                    self._wake.notify()
            if outcome is not None:
                _finishing(ticket, outcome)()

        return job

    def _attempt(self, ticket: Ticket, granted: float) -> Reply | BackboneError | None:
        """Send a ticket's question; its outcome, or None when it was queued again."""
        ask = ticket.ask
        assert ask is not None
        stamp = self._stamp(ask.group, granted)
        if stamp is None:
            self._requeue(ticket, 0.0)
            return None
        if not ticket.attempts and not ticket.refusals:
            self._metrics.time("waited", stamp - ticket.since, group=ask.group, priority=ticket.priority)
        try:
            reply = self._send(ask)
        except SourceError as error:
            self._learn(ask.group, stamp, error)
            return self._after_error(ticket, error)
        except BackboneError as error:
            return error
        self._count_answer()
        self._learn(ask.group, stamp, reply)
        answered = self._clock.monotonic() - ticket.since
        self._metrics.time("answered", answered, group=ask.group, priority=ticket.priority)
        return reply

    def _stamp(self, group: str, granted: float) -> float | None:
        """The moment of sending, with the permit moved to it; None when it may not be sent now."""
        if not self._pass_gate(group):
            return None
        now = self._clock.monotonic()
        if now - granted <= _LATE_S:
            return granted
        self._metrics.count("permits.moved")
        return now if self._limiter.move(group, granted, now) else None

    def _pass_gate(self, group: str) -> bool:
        """The backstop: a plain count of what this process sends, which must never say no."""
        from ratelimit import RateLimitException, limits

        with self._lock:
            gate = self._gates.get(group)
            if gate is None:
                pace = limits(calls=self._limiter.rules.limit, period=1.0, clock=self._clock.monotonic)
                gate = self._gates[group] = pace(lambda: None)
        try:
            gate()
        except RateLimitException as exc:
            self._metrics.count("backstop.trips")
            log.error("scheduler.backstop group=%s: above the limit, held for %.3f s", group, exc.period_remaining)
            return False
        return True

    def _count_answer(self) -> None:
        self._metrics.count("answered")
        self._failures = 0

    def _count_failure(self, error: SourceError) -> None:
        """A question given up. That the venue rejected one is an answer: the question was wrong."""
        if isinstance(error, RejectedError):
            self._metrics.count("rejected")
            self._failures = 0
        else:
            self._metrics.count("failed")
            with self._lock:
                self._failures += 1

    def _requeue(self, ticket: Ticket, delay_s: float) -> None:
        """Queue a ticket again, with its question and its age; it ends if that is no longer possible."""
        with self._lock:
            if not self._is_closed:
                ticket.state = _State.QUEUED
                if delay_s:
                    self._delay_locked(ticket, self._clock.monotonic() + delay_s)
                else:
                    self._queue_locked(ticket)
                return
        _finishing(ticket, _closed())()

    def _after_error(self, ticket: Ticket, error: SourceError) -> SourceError | None:
        """What becomes of a ticket whose question failed: None when it is asked again."""
        delay_s = 0.0
        if isinstance(error, RateLimitedError):
            if error.banned:
                return self._after_ban(ticket, error)
            ticket.refusals += 1
            final = ticket.refusals > _MOST_REFUSALS
        elif isinstance(error, UnreachableError):
            ticket.attempts += 1
            final = ticket.attempts >= self._max_attempts
            delay_s = self._backoff_s(ticket.attempts)
        elif isinstance(error, PayloadError):
            ticket.attempts += 1
            ticket.lies += 1
            final = ticket.lies >= _PAYLOAD_TRIES or ticket.attempts >= self._max_attempts
        else:
            ticket.attempts += 1
            final = True
        error.attempts = ticket.attempts + ticket.refusals
        if final:
            self._count_failure(error)
            return error
        self._metrics.count("retries")
        log.info("page.retry group=%s attempt=%d after %s", ticket.group, error.attempts, error)
        self._requeue(ticket, delay_s)
        return None

    def _backoff_s(self, attempts: int) -> float:
        first, longest = _BACKOFF_S
        with self._lock:
            jitter = self._random.uniform(0.5, 1.5)
        return min(longest, first * 2.0 ** (attempts - 1)) * jitter

    def _after_ban(self, ticket: Ticket, error: RateLimitedError) -> RateLimitedError | None:
        """Low work waits for the end; all that is more urgent is told at once, and nothing is sent before."""
        told = self._ban_error(error.retry_after_s)
        told.__cause__ = error
        with self._lock:
            failed = self._urgent_locked()
            for other in failed:
                self._drop_locked(other)
        self._fail(failed, told)
        if ticket.priority is not Priority.LOW:
            return told
        self._requeue(ticket, 0.0)
        return None

    def _ban_error(self, left_s: float) -> RateLimitedError:
        end = datetime.fromtimestamp(self._clock.now_us() / 1e6 + left_s, tz=UTC).astimezone()
        return RateLimitedError(
            f"the venue blocks this address until {end:%Y-%m-%d %H:%M:%S %Z}; nothing is sent to it before",
            retry_after_s=left_s,
            banned=True,
        )

    def _learn(self, group: str, stamp: float, outcome: Reply | SourceError) -> None:
        """Tell the limiter what an answer says about the quota."""
        now = self._clock.monotonic()
        self._metrics.count("requests")
        facts: Any = getattr(outcome, "reply_facts", None) if isinstance(outcome, SourceError) else outcome
        if isinstance(outcome, RateLimitedError):
            self._metrics.count("banned" if outcome.banned else "refused")
            if outcome.banned:
                log.warning("quota.banned for %.1f s", outcome.retry_after_s)
                self._limiter.banned(self._clock.now_us() + int(outcome.retry_after_s * 1e6), now)
            else:
                log.warning("quota.refused group=%s", group)
                self._limiter.refused(group, now, outcome.retry_after_s)
        if facts is None or not stamp <= facts.sent_s <= facts.received_s <= now:
            return
        with self._lock:
            delay = self._delays.setdefault(group, Delay())
            counted = delay.counted(facts.sent_s, facts.received_s)
        # another group's word says nothing about this one; a refusal's is known already
        is_told = facts.group in (None, group) and not isinstance(outcome, RateLimitedError)
        self._limiter.observe(group, facts.remaining if is_told else None, stamp, counted, now)

    # -------------------------------------------------------------------------------------- the critical lane

    def _critical_permit(self, group: str, since: float) -> float:
        """The time of a critical permit, taken at once where one is free, else in the queue's order."""
        with self._lock:
            self._check_open_locked()
            rows = self._rows.get(group)
            is_first = rows is None or not rows[_CRITICAL].depth
        if is_first:
            now = self._clock.monotonic()
            again = self._limiter.take(group, Priority.CRITICAL, since, now)
            if not again and self._pass_gate(group):
                return now
            ban_left_s = self._limiter.ban_left(now) if again else 0.0
            if ban_left_s:
                raise self._ban_error(ban_left_s)
        return self._queue_for_permit(group, since)

    def _queue_for_permit(self, group: str, since: float) -> float:
        failure: list[BackboneError] = []

        def refuse(_: Ask | None, outcome: Reply | BackboneError) -> None:
            if isinstance(outcome, BackboneError):
                failure.append(outcome)
            with self._lock:
                self._landed.notify_all()

        ticket = Ticket(group, Priority.CRITICAL, since, lambda: None, refuse, is_permit=True)
        granted: float | None = None
        try:
            with self._lock:
                self._check_open_locked()
                self._queue_locked(ticket)
                while ticket.state is not _State.SENT and not failure and not self._is_closed:
                    self._clock.wait(self._landed, _SLICE_S)
                if ticket.state is _State.SENT:
                    granted = ticket.since
        finally:
            if granted is None and not self.cancel(ticket) and ticket.state is _State.SENT:
                self._limiter.undo(group, ticket.since)  # interrupted in the moment of the grant
        if granted is None:
            _raise(failure[0] if failure else _closed())
        stamp = self._stamp(group, granted)
        return self._queue_for_permit(group, since) if stamp is None else stamp


def _finishing(ticket: Ticket, outcome: Reply | BackboneError) -> Callable[[], None]:
    def job() -> None:
        ticket.state = _State.ENDED
        ticket.done(ticket.ask, outcome)

    return job


def _closed() -> ClosedError:
    return ClosedError("this client is closed; make a new one")


def _internal(exc: BaseException) -> BackboneError:
    error = BackboneError(f"an error inside backbone: {exc!r}")
    error.__cause__ = exc
    return error


def _raise(error: BackboneError) -> NoReturn:
    """Raise a copy: one error may be raised in several threads, and a traceback is a part of it."""
    raise copy.copy(error) from error.__cause__


def _is_refusal(error: SourceError) -> bool:
    return isinstance(error, RateLimitedError) and not error.banned


def _is_dropped(error: SourceError) -> bool:
    """Whether the connection was gone before anything came back: normal for one kept open, and safe to repeat."""
    causes: list[Any] = [error.__cause__]
    while causes and isinstance(error, UnreachableError):
        cause = causes.pop()
        if isinstance(cause, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
            return True
        if isinstance(cause, BaseException):
            causes += [getattr(cause, "reason", None), *cause.args]
    return False
