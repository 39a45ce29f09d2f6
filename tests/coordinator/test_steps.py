"""Questions that follow from each other's answers: the same ones, waited for or queued."""

from __future__ import annotations

from typing import Any

import pytest

from backbone.coordinator.steps import Steps, Then, answered, queue_all, queue_steps, submit
from backbone.errors import BackboneError, ClosedError, UnreachableError
from backbone.model import Priority
from backbone.routing.rest import Reply
from backbone.routing.wire import Ask


def question(number: int) -> Ask:
    return Ask("candles", f"/{number}", (), lambda body: body)


def reply(value: Any) -> Reply:
    return Reply(value, None, None, None, 0.0, 0.0, b"")


def counting(last: int) -> Steps[list[int]]:
    """Asks for each number up to `last`; an error ends it early with what came."""
    found: list[int] = []
    for number in range(last):
        try:
            found.append((yield question(number)).value)
        except UnreachableError:
            break
    return found


def ask(one: Ask) -> Reply:
    number = int(one.path[1:])
    if number == 3:
        raise UnreachableError("no answer")
    if number == 5:
        raise ClosedError("closed")
    return reply(number * 10)


@pytest.mark.parametrize(("last", "found"), [(0, []), (2, [0, 10]), (5, [0, 10, 20])])
def test_steps_find_the_same_waited_for_or_queued(last: int, found: list[int]) -> None:
    """Each reply leads to the next question, an error is raised in the steps; no question is no wait."""
    outcomes: list[Any] = []

    def put(one: Ask, then: Then) -> None:
        try:
            then(ask(one))
        except UnreachableError as exc:
            then(exc)

    queue_steps(counting(last), put, outcomes.append)
    assert answered(counting(last), ask) == found
    assert outcomes == [found]


def test_steps_that_raise_end_with_that_error() -> None:
    """An error that the steps do not take goes to whoever waits."""

    def steps() -> Steps[int]:
        yield question(5)
        return 1

    outcomes: list[int | BackboneError] = []
    queue_steps(steps(), lambda _, then: then(ClosedError("closed")), outcomes.append)
    assert isinstance(outcomes[0], ClosedError)
    with pytest.raises(ClosedError):
        answered(steps(), ask)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_questions_that_are_independent_are_put_side_by_side(order: tuple[int, ...]) -> None:
    """All are asked before any is answered; their outcomes come once, in the order asked, errors among them."""
    waiting: list[Then] = []
    outcomes: list[list[Any]] = []
    queue_all([question(number) for number in range(3)], lambda _, then: waiting.append(then), outcomes.append)
    assert len(waiting) == 3
    failed = UnreachableError("no answer")
    for number in order:
        assert outcomes == []
        waiting[number](failed if number == 1 else reply(number))
    ((first, second, third),) = outcomes
    assert (first.value, second, third.value) == (0, failed, 2)


def test_no_questions_are_no_wait() -> None:
    """Done at once, with nothing."""
    outcomes: list[list[Any]] = []
    queue_all([], lambda _, then: then(reply(0)), outcomes.append)
    assert outcomes == [[]]


def test_question_to_a_closed_queue_is_answered_with_that() -> None:
    """A client that was closed meanwhile is one more error, not one that is raised."""

    class Closed:
        def submit(self, *_: object) -> None:
            raise ClosedError("closed")

    outcomes: list[Any] = []
    closed: Any = Closed()
    submit(closed, Priority.LOW, question(0), outcomes.append)
    assert isinstance(outcomes[0], ClosedError)
