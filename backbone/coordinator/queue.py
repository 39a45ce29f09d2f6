"""Which ticket is next: work that waits for a permit, by wire group and priority, oldest first.

A page of a long job is one ticket, so nothing urgent waits for a whole job. Nothing here takes a lock, starts a
thread or reads a clock: the scheduler calls it under its own lock and passes the time.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Any, NamedTuple

import msgspec

from backbone.model import Priority

__all__ = ["Ticket", "TicketQueue", "TicketState", "Turn"]

_RANKS = tuple(Priority)


class TicketState(Enum):
    QUEUED = auto()
    DELAYED = auto()  # backs off, outside the waiting queues
    SENT = auto()
    ENDED = auto()


class Ticket(msgspec.Struct, eq=False):
    """One place in the queue. What it requests is decided by `bind` when its turn comes; `done` gets the outcome.

    is_permit : it wants the permit alone: `done` gets the time of the grant, and the thread that waits for it sends.
    is_broken : an internal error ended it, and was passed to `done`.
    """

    group: str
    priority: Priority
    since: float
    bind: Callable[[], Any]
    done: Callable[[Any, Any], None]
    is_permit: bool = False
    is_broken: bool = False
    ask: Any = None
    attempts: int = 0
    refusals: int = 0
    payload_errors: int = 0
    state: TicketState = TicketState.QUEUED
    number: int = msgspec.field(default_factory=itertools.count().__next__)

    def __repr__(self) -> str:
        return f"<Ticket {self.group} {self.priority.value} {self.state.name.lower()}>"


class Turn(NamedTuple):
    """The waiting queue that tries for a permit now."""

    group: str
    priority: Priority
    since: float
    depth: int


class _WaitingQueue:
    """The tickets of one group and priority, first come first served. Cancelled and raised ones are skipped."""

    def __init__(self, group: str, priority: Priority) -> None:
        self.group = group
        self.priority = priority
        self._heap: list[tuple[float, int, Ticket]] = []
        self.depth = 0
        self.last_grant = float("-inf")
        self.try_at = 0.0

    def _is_here(self, ticket: Ticket) -> bool:
        return ticket.state is TicketState.QUEUED and ticket.priority is self.priority

    def push(self, ticket: Ticket) -> bool:
        is_first = not self.depth or ticket.since < self._heap[0][0]
        if is_first:
            self.try_at = 0.0
        heapq.heappush(self._heap, (ticket.since, ticket.number, ticket))
        self.depth += 1
        if len(self._heap) > 2 * self.depth + 64:  # cancelled or raised tickets behind the head
            self._heap = [entry for entry in self._heap if self._is_here(entry[2])]
            heapq.heapify(self._heap)
        return is_first

    def head(self) -> Ticket | None:
        heap = self._heap
        while heap and not self._is_here(heap[0][2]):
            heapq.heappop(heap)
        return heap[0][2] if heap else None

    def pop(self) -> Ticket | None:
        ticket = self.head()
        if ticket is not None:
            heapq.heappop(self._heap)  # at once: a ticket that is queued again must not be there twice
            self.depth -= 1
        return ticket

    def since(self, ticket: Ticket) -> float:
        """Waiting time for fairness: counted from the queue's last grant, not from the ticket's age."""
        return max(ticket.since, self.last_grant)

    def tickets(self) -> Iterator[Ticket]:
        return (ticket for _, _, ticket in self._heap if self._is_here(ticket))


class TicketQueue:
    """All tickets that wait, and those that back off. Not thread-safe.

    Parameters
    ----------
    key : the order of service, lowest first, from a priority's rank and the time since when it waits.
    """

    def __init__(self, key: Callable[[int, float], float]) -> None:
        self._key = key
        self._queues: dict[str, tuple[_WaitingQueue, ...]] = {}
        self._delayed: list[tuple[float, int, Ticket]] = []  # tickets that back off, by when they come back

    def __len__(self) -> int:
        return sum(1 for _ in self.tickets())

    def _queue(self, group: str, priority: Priority) -> _WaitingQueue:
        queues = self._queues.get(group)
        if queues is None:
            queues = self._queues[group] = tuple(_WaitingQueue(group, each) for each in _RANKS)
        return queues[priority.rank]

    def _all(self) -> Iterator[_WaitingQueue]:
        return itertools.chain.from_iterable(self._queues.values())

    def push(self, ticket: Ticket) -> bool:
        """Queue a ticket; False where it waits behind another, which changes nothing for who is next."""
        ticket.state = TicketState.QUEUED
        return self._queue(ticket.group, ticket.priority).push(ticket)

    def delay(self, ticket: Ticket, until: float) -> None:
        """Hold a ticket back until it may be tried again; it counts as waiting."""
        ticket.state = TicketState.DELAYED
        self._queue(ticket.group, ticket.priority)  # so that its group is shown
        heapq.heappush(self._delayed, (until, ticket.number, ticket))

    def revive(self, now: float) -> None:
        """Queue the tickets whose delay is over."""
        while self._delayed and (self._delayed[0][0] <= now or self._delayed[0][2].state is not TicketState.DELAYED):
            ticket = heapq.heappop(self._delayed)[2]
            if ticket.state is TicketState.DELAYED:
                self.push(ticket)

    def drop(self, ticket: Ticket) -> bool:
        """End a ticket that waits; False when it does not wait any more. Its heap entry is skipped later."""
        if ticket.state is TicketState.QUEUED:
            self._queue(ticket.group, ticket.priority).depth -= 1
        elif ticket.state is not TicketState.DELAYED:
            return False
        ticket.state = TicketState.ENDED
        return True

    def raise_priority(self, ticket: Ticket, priority: Priority) -> bool:
        """Give a ticket a more urgent priority, with its age kept. Never lowers one; False where nothing changed."""
        if priority.rank >= ticket.priority.rank:
            return False
        is_here = ticket.state is TicketState.QUEUED
        if is_here:
            self._queue(ticket.group, ticket.priority).depth -= 1
        ticket.priority = priority
        if is_here:
            self.push(ticket)
        return is_here

    def pop(self, group: str, priority: Priority, now: float) -> Ticket | None:
        """The most urgent ticket that may use a permit granted to `priority`."""
        for urgent in _RANKS[: priority.rank + 1]:
            queue = self._queue(group, urgent)
            ticket = queue.pop()
            if ticket is not None:
                ticket.state = TicketState.SENT
                queue.last_grant = now
                self._queue(group, priority).try_at = 0.0
                return ticket
        return None

    def wait_until(self, group: str, priority: Priority, again: float) -> None:
        """No permit before `again`: the queue is not tried before."""
        self._queue(group, priority).try_at = again

    def next_turn(self, now: float, has_room: Callable[[Priority], bool]) -> tuple[Turn | None, float | None]:
        """The queue that tries for a permit now, best key first; and when to look again if there is none."""
        best: tuple[float, Turn] | None = None
        wake = self._delayed[0][0] if self._delayed else None
        for queue in self._all():
            ticket = queue.head() if queue.depth else None
            if ticket is None or not (ticket.is_permit or has_room(queue.priority)):
                continue
            if queue.try_at > now:
                wake = queue.try_at if wake is None else min(wake, queue.try_at)
                continue
            since = queue.since(ticket)
            key = self._key(queue.priority.rank, since)
            if best is None or key < best[0]:
                best = (key, Turn(queue.group, queue.priority, since, queue.depth))
        return (None if best is None else best[1]), wake

    def take_emptied(self) -> list[tuple[str, Priority]]:
        """Queues that were given a time and have no ticket left to use it: others need not wait for them."""
        emptied = []
        for queue in self._all():
            if not queue.depth and queue.try_at:
                queue.try_at = 0.0
                emptied.append((queue.group, queue.priority))
        return emptied

    def has_critical(self, group: str) -> bool:
        """Whether a critical ticket of the group waits."""
        return group in self._queues and self._queue(group, Priority.CRITICAL).depth > 0

    def tickets(self) -> Iterator[Ticket]:
        """All tickets that wait or back off."""
        for queue in self._all():
            yield from queue.tickets()
        yield from (ticket for _, _, ticket in self._delayed if ticket.state is TicketState.DELAYED)

    def depths(self) -> dict[str, dict[str, int]]:
        """Tickets that wait or back off, by group and priority."""
        depths = {group: {priority.value: 0 for priority in _RANKS} for group in self._queues}
        for ticket in self.tickets():
            depths[ticket.group][ticket.priority.value] += 1
        return depths
