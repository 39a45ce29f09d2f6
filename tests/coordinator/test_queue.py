"""The waiting queue, without threads or clocks: order, cancelling, raising, backing off."""

from __future__ import annotations

import pytest

from backbone.coordinator.queue import Ticket, TicketQueue, TicketState
from backbone.model import Priority

CRITICAL, HIGH, NORMAL, LOW = Priority


def key(rank: int, since: float) -> float:
    return since + 10 * rank


@pytest.fixture
def queue() -> TicketQueue:
    return TicketQueue(key)


def ticket(priority: Priority, since: float, group: str = "candles", *, is_permit: bool = False) -> Ticket:
    return Ticket(group, priority, since, lambda: None, lambda *_: None, is_permit=is_permit)


def drained(queue: TicketQueue) -> list[Ticket]:
    """All tickets in the order in which they get permits."""
    served = []
    while (turn := queue.next_turn(100.0, lambda _: True)[0]) is not None:
        found = queue.pop(turn.group, turn.priority, 0.0)
        assert found is not None
        served.append(found)
    return served


def test_urgent_goes_first_and_the_oldest_within_a_priority(queue: TicketQueue) -> None:
    """The order of submission does not matter."""
    tickets = [ticket(LOW, 1.0), ticket(HIGH, 3.0), ticket(NORMAL, 2.0), ticket(HIGH, 2.5), ticket(CRITICAL, 4.0)]
    for each in tickets:
        queue.push(each)
    assert drained(queue) == [tickets[index] for index in (4, 3, 1, 2, 0)]
    assert all(each.state is TicketState.SENT for each in tickets)


def test_ticket_behind_another_changes_nothing_for_who_is_next(queue: TicketQueue) -> None:
    """So the dispatcher is woken for the first of a queue alone; for one that is older than that, too."""
    first, behind, older = ticket(LOW, 1.0), ticket(LOW, 2.0), ticket(LOW, 0.5)
    assert [queue.push(each) for each in (first, behind, older)] == [True, False, True]
    assert queue.push(ticket(HIGH, 3.0)), "a queue of its own"
    for each in (first, behind, older):
        queue.drop(each)
    assert queue.push(ticket(LOW, 4.0)), "those before it wait no more"


def test_age_counts_from_the_last_grant_of_the_queue(queue: TicketQueue) -> None:
    """A long backlog does not pass a more urgent queue by the age of its oldest ticket."""
    for _ in range(3):
        queue.push(ticket(LOW, 0.0))
    queue.push(ticket(NORMAL, 12.0, "ticker"))
    turn, _ = queue.next_turn(12.0, lambda _: True)
    assert turn is not None and turn.priority is LOW, "older by more than the allowance"  # noqa: PT018
    queue.pop("candles", LOW, 12.0)
    turn, _ = queue.next_turn(12.0, lambda _: True)
    assert turn is not None and turn.priority is NORMAL, "and then as young as its last grant"  # noqa: PT018


def test_cancelled_ticket_gets_no_permit_and_is_counted_no_more(queue: TicketQueue) -> None:
    """Dropping works once, and frees the others to leave the quota's waiting table."""
    first, second = ticket(LOW, 0.0), ticket(LOW, 1.0)
    queue.push(first)
    queue.push(second)
    queue.wait_until("candles", LOW, 200.0)
    assert queue.drop(first)
    assert not queue.drop(first)
    assert len(queue) == 1
    assert queue.next_turn(100.0, lambda _: True) == (None, 200.0)
    assert queue.take_emptied() == []
    queue.drop(second)
    assert queue.take_emptied() == [("candles", LOW)]
    assert queue.take_emptied() == []


def test_cancelled_tickets_do_not_pile_up_behind_a_stopped_head(queue: TicketQueue) -> None:
    """Queueing and cancelling for ever, while nothing moves, takes no memory."""
    queue.push(ticket(LOW, 0.0))
    for index in range(3000):
        gone = ticket(LOW, 1.0 + index)
        queue.push(gone)
        queue.drop(gone)
    assert len(queue._queues["candles"][LOW.rank]._heap) < 100
    assert queue.depths()["candles"]["low"] == 1


def test_raised_ticket_keeps_its_age_and_is_there_once(queue: TicketQueue) -> None:
    """A priority rises only; the old entry is skipped."""
    low, high = ticket(LOW, 0.0), ticket(HIGH, 1.0)
    queue.push(low)
    queue.push(high)
    assert queue.raise_priority(low, HIGH)
    assert not queue.raise_priority(low, NORMAL)
    assert drained(queue) == [low, high]
    assert queue.depths() == {"candles": dict.fromkeys(("critical", "high", "normal", "low"), 0)}


def test_delayed_ticket_comes_back_and_counts_as_waiting(queue: TicketQueue) -> None:
    """Backing off is waiting: it is shown, it can be cancelled and raised, and it says when to look again."""
    one, two = ticket(LOW, 0.0), ticket(LOW, 0.0)
    queue.delay(one, 50.0)
    queue.delay(two, 60.0)
    assert queue.depths()["candles"]["low"] == 2
    assert queue.next_turn(10.0, lambda _: True) == (None, 50.0)
    queue.raise_priority(one, HIGH)
    queue.drop(two)
    queue.revive(55.0)
    turn, _ = queue.next_turn(55.0, lambda _: True)
    assert turn is not None
    assert (turn.priority, turn.depth) == (HIGH, 1)
    queue.revive(65.0)
    assert len(queue) == 1


def test_permit_granted_to_bulk_work_goes_to_the_most_urgent(queue: TicketQueue) -> None:
    """What came in while the permit was taken is served first; a permit of high never goes to low."""
    low, high = ticket(LOW, 0.0), ticket(HIGH, 5.0)
    queue.push(low)
    queue.push(high)
    assert queue.pop("candles", LOW, 6.0) is high
    assert queue.pop("candles", HIGH, 6.0) is None
    assert queue.pop("candles", LOW, 6.0) is low


def test_queue_without_room_for_its_answers_is_passed_over(queue: TicketQueue) -> None:
    """Only tickets that want the permit alone need no worker."""
    queue.push(ticket(LOW, 0.0))
    assert queue.next_turn(1.0, lambda _: False) == (None, None)
    queue.push(ticket(CRITICAL, 0.0, is_permit=True))
    turn, _ = queue.next_turn(1.0, lambda _: False)
    assert turn is not None
    assert turn.priority is CRITICAL
    assert queue.has_critical("candles")
    assert not queue.has_critical("ticker")
