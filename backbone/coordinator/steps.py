"""Questions that follow from each other's answers, written as one generator: waited for, or put into the queue.
Those that do not follow from each other are put there together (`queue_all`).

`Steps` yield a question, are sent its reply or have its error raised in them, and return what they found. So what is
asked, and in which order, is written once, whether a thread waits for the answers or none does.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias, TypeVar

from backbone.coordinator.scheduler import Scheduler
from backbone.errors import BackboneError, ClosedError
from backbone.model import Priority
from backbone.routing.rest import Reply
from backbone.routing.wire import Ask

__all__ = ["Steps", "Then", "answered", "queue_all", "queue_steps", "submit"]

T = TypeVar("T")
Steps: TypeAlias = Generator[Ask, Reply, T]
Then: TypeAlias = Callable[[Reply | BackboneError], None]


def submit(scheduler: Scheduler, priority: Priority, ask: Ask, then: Then) -> None:
    """Put a question into the queue; `then` gets the reply or the error, also that of a client which is closed."""
    try:
        scheduler.submit(ask.group, priority, lambda: ask, lambda _, outcome: then(outcome))
    except ClosedError as exc:
        then(exc)


def queue_steps(steps: Steps[T], put: Callable[[Ask, Then], None], done: Callable[[T | BackboneError], None]) -> None:
    """Have `put` ask one question of `steps` after the other; `done` gets what they found, or the error they raise."""

    def advance(step: Callable[[], Ask]) -> None:
        try:
            question = step()
        except StopIteration as end:
            done(end.value)
        except BackboneError as exc:
            done(exc)
        else:
            put(question, arrived)

    def arrived(outcome: Reply | BackboneError) -> None:
        advance(lambda: steps.throw(outcome) if isinstance(outcome, BackboneError) else steps.send(outcome))

    advance(lambda: next(steps))


def queue_all(
    asks: Sequence[Ask], put: Callable[[Ask, Then], None], done: Callable[[list[Reply | BackboneError]], None]
) -> None:
    """Have `put` ask all of them side by side; `done` gets the outcomes in their order, on the thread of the last."""
    outcomes: dict[int, Reply | BackboneError] = {}
    lock = threading.Lock()

    def arrived(number: int, outcome: Reply | BackboneError) -> None:
        with lock:
            outcomes[number] = outcome
            is_last = len(outcomes) == len(asks)
        if is_last:
            done([outcomes[each] for each in range(len(asks))])

    for number, question in enumerate(asks):
        put(question, functools.partial(arrived, number))
    if not asks:
        done([])


def answered(steps: Steps[T], ask: Callable[[Ask], Reply]) -> T:
    """What `steps` find, with `ask` waiting for each reply."""
    try:
        question = next(steps)
        while True:
            try:
                reply = ask(question)
            except BackboneError as exc:
                question = steps.throw(exc)
            else:
                question = steps.send(reply)
    except StopIteration as end:
        found: T = end.value
        return found
