"""The queue: order, late binding, shared requests, retries, refusals, bans, the critical lane, the end."""

from __future__ import annotations

import http.client
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from backbone.clock import Deadline
from backbone.coordinator.metrics import Metrics
from backbone.coordinator.quota.ledger import MemoryLimiter
from backbone.coordinator.quota.rules import Rules
from backbone.coordinator.scheduler import Scheduler
from backbone.errors import (
    BackboneError,
    ClosedError,
    PayloadError,
    RateLimitedError,
    RejectedError,
    UnreachableError,
)
from backbone.locks import RUN_LOCK, RunLock
from backbone.model import Priority

CRITICAL, HIGH, NORMAL, LOW = Priority
DEADLINE_S = 20.0


class FastClock:
    """A clock that runs fifty times as fast as the machine's, so that waits cost nothing."""

    speed = 50.0

    def monotonic(self) -> float:
        return 1e6 + time.monotonic() * self.speed

    def now_us(self) -> int:
        return 1_755_853_200_000_000 + int(time.monotonic() * self.speed * 1e6)

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> bool:
        return condition.wait(None if timeout_s is None else timeout_s / self.speed)


@dataclass(frozen=True)
class Ask:
    path: str
    group: str = "candles"


@dataclass(frozen=True)
class Reply:
    value: Any
    group: str | None
    remaining: int | None
    sent_s: float
    received_s: float


class ScriptedLimiter:
    """Permits are given when the test says so; every call is recorded."""

    rules = Rules(limit=1000)

    def __init__(self, clock: FastClock, permits: int = 0) -> None:
        self.clock = clock
        self.permits = permits
        self.calls: list[tuple[Any, ...]] = []
        self.ban_until = 0.0
        self.may_move = True
        self.is_closed = False

    def take(self, group: str, priority: Priority, since: float, now: float, depth: int = 1) -> float:
        if self.ban_until > now:
            return self.ban_until
        if not self.permits:
            self.calls.append(("wait", group, priority))
            return now + 0.05
        self.permits -= 1
        self.calls.append(("take", group, priority))
        return 0.0

    def next_low(self, group: str) -> float:
        return 0.0

    def leave(self, group: str, priority: Priority | None = None) -> None:
        self.calls.append(("leave", group, priority))

    def undo(self, group: str, granted: float) -> None:
        self.permits += 1
        self.calls.append(("undo", group))

    def move(self, group: str, granted: float, now: float) -> bool:
        return self.may_move

    def observe(self, group: str, remaining: int | None, granted: float, counted: float, now: float) -> None:
        self.calls.append(("observe", group, remaining))

    def refused(self, group: str, now: float, retry_after_s: float | None) -> None:
        self.calls.append(("refused", group))

    def banned(self, until_wall_us: int, now: float) -> None:
        self.ban_until = now + (until_wall_us - self.clock.now_us()) / 1e6
        self.calls.append(("banned",))

    def ban_left(self, now: float) -> float:
        return max(0.0, self.ban_until - now)

    def snapshot(self, now: float) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        self.is_closed = True

    def count(self, what: str) -> int:
        return sum(1 for each in self.calls if each[0] == what)


@dataclass
class Venue:
    """Answers by script: for each path a list of what to do, then the path itself. `gate` holds all answers back."""

    clock: FastClock
    script: dict[str, list[Any]] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)
    remaining: int | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        self.gate.set()

    def send(self, ask: Ask) -> Reply:
        sent_s = self.clock.monotonic()
        self.sent.append(ask.path)
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(DEADLINE_S)
        steps = self.script.get(ask.path, [])
        step = steps.pop(0) if steps else ask.path
        if isinstance(step, BaseException):
            raise step
        return Reply(step, self.group, self.remaining, sent_s, self.clock.monotonic())


@dataclass
class Bench:
    """A scheduler with everything around it in hand."""

    clock: FastClock
    limiter: ScriptedLimiter
    venue: Venue
    metrics: Metrics
    scheduler: Scheduler
    ended: list[tuple[str, Any]] = field(default_factory=list)

    def submit(self, path: str, priority: Priority, group: str = "candles") -> Any:
        ask = Ask(path, group)
        return self.scheduler.submit(
            group, priority, lambda: ask, lambda _, outcome: self.ended.append((path, outcome))
        )

    def permit(self, count: int = 1) -> None:
        """Give permits one by one, each used (or given back) before the next."""
        for _ in range(count):
            taken = self.limiter.count("take")
            self.limiter.permits += 1
            wait_for(lambda taken=taken: self.limiter.count("take") > taken)

    def outcome(self, path: str) -> Any:
        wait_for(lambda: any(each == path for each, _ in self.ended))
        return next(outcome for each, outcome in self.ended if each == path)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    turn = threading.Condition()
    with turn:
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            turn.wait(0.001)


@pytest.fixture
def bench() -> Iterator[Bench]:
    clock = FastClock()
    limiter, venue, metrics = ScriptedLimiter(clock), Venue(clock), Metrics()
    scheduler = Scheduler(limiter, venue.send, clock=clock, metrics=metrics, seed=1)
    yield Bench(clock, limiter, venue, metrics, scheduler)
    venue.gate.set()
    scheduler.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("backbone-")]


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Results, or the errors raised, of `count` threads."""
    results: list[Any] = [None] * count

    def run(index: int) -> None:
        try:
            results[index] = work(index)
        except BackboneError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "somebody was left waiting"
    return results


# ------------------------------------------------------------------------------------------------- order


def test_scheduler_unused_starts_no_thread(bench):
    """Threads come with the first ticket."""
    assert threading.active_count() == 1 or not [t for t in threading.enumerate() if t.name.startswith("backbone-")]
    assert "idle" in repr(bench.scheduler)


def test_tickets_are_sent_by_priority_then_age(bench):
    """Whatever the order of submission, urgent goes first, and first come first served within a class."""
    for path, priority in [("l1", LOW), ("n1", NORMAL), ("l2", LOW), ("h1", HIGH), ("n2", NORMAL), ("h2", HIGH)]:
        bench.submit(path, priority)
    for _ in range(6):
        bench.permit()
        wait_for(lambda: len(bench.venue.sent) == bench.limiter.count("take"))
    assert bench.venue.sent == ["h1", "h2", "n1", "n2", "l1", "l2"]
    assert all(name.startswith("backbone-worker") for name in bench.venue.threads)


def test_groups_do_not_wait_for_each_other(bench):
    """A group without permits holds no other group back."""
    clock = bench.clock
    limiter = MemoryLimiter(clock)
    limiter.banned  # noqa: B018 - the real limiter has the whole protocol
    scheduler = Scheduler(limiter, bench.venue.send, clock=clock, metrics=Metrics())
    for index in range(15):
        scheduler.submit("candles", LOW, lambda index=index: Ask(f"c{index}"), lambda *_: None)
    assert scheduler.request(Ask("t", "ticker"), LOW).value == "t"
    assert len([path for path in bench.venue.sent if path.startswith("c")]) < 15
    scheduler.close()


def test_question_is_decided_when_the_permit_opens(bench):
    """`bind` is not called before a permit has opened, and an urgent late-comer takes that permit."""
    bound: list[str] = []

    def binding(path: str) -> Callable[[], Ask]:
        def bind() -> Ask:
            bound.append(path)
            return Ask(path)

        return bind

    bench.scheduler.submit("candles", LOW, binding("page"), lambda *_: None)
    bench.scheduler.submit("candles", HIGH, binding("now"), lambda *_: None)
    assert bound == []
    bench.permit()
    wait_for(lambda: bench.venue.sent == ["now"])
    assert bound == ["now"]


def test_ticket_with_nothing_left_to_ask_vanishes(bench):
    """None from `bind`: no `done`, and the permit goes to the next ticket, or back."""
    ended: list[Any] = []
    bench.scheduler.submit("candles", HIGH, lambda: None, lambda *args: ended.append(args))
    bench.submit("next", NORMAL)
    bench.permit()
    assert bench.outcome("next").value == "next"
    bench.scheduler.submit("candles", HIGH, lambda: None, lambda *args: ended.append(args))
    bench.limiter.permits = 1
    wait_for(lambda: bench.limiter.count("undo") == 1)
    assert bench.limiter.permits == 1
    assert ended == []


def test_question_that_nobody_waits_for_any_more_is_never_sent(bench):
    """It leaves the queue with its last waiter, and the empty waiting queue holds nobody else up."""

    class OnceTried(Deadline):
        """Passes when a permit was asked for."""

        def left_s(self) -> float:
            return 0.0 if ("wait", "candles", LOW) in bench.limiter.calls else 0.05

    bench.submit("kept", NORMAL)
    with pytest.raises(UnreachableError, match="timeout"):
        bench.scheduler.request(Ask("gone"), LOW, OnceTried(bench.clock, 0.2))
    wait_for(lambda: ("leave", "candles", LOW) in bench.limiter.calls)
    bench.permit()
    assert bench.outcome("kept").value == "kept"
    assert bench.venue.sent == ["kept"]


def test_slow_answers_to_bulk_work_leave_workers_for_urgent_work(bench):
    """Bulk work never holds every worker: a high request is sent while all low ones hang."""
    bench.venue.gate.clear()
    for index in range(30):
        bench.submit(f"low{index}", LOW)
    bench.limiter.permits = 1000
    wait_for(lambda: len(bench.venue.sent) == 8)
    bench.submit("urgent", HIGH)
    wait_for(lambda: "urgent" in bench.venue.sent)
    assert bench.scheduler.status()["in_flight"]["low"] == 8
    bench.venue.gate.set()
    wait_for(lambda: len(bench.ended) == 31)


def test_answers_that_come_together_are_taken_one_after_the_other(bench, monkeypatch):
    """Workers that run beside each other hand the interpreter to and fro; one that waits for the network does not."""
    monkeypatch.setattr(RunLock, "PATIENCE_S", DEADLINE_S)
    send, lock, pause = bench.venue.send, threading.Lock(), threading.Event()
    now, most, ended = 0, 0, 0

    def wait_and_send(ask: Ask) -> Any:
        with RUN_LOCK.waiting():
            return send(ask)

    def done(*_: Any) -> None:
        nonlocal now, most, ended
        with lock:
            now += 1
            most = max(most, now)
        pause.wait(0.005)  # the interpreter is free, as around every system call
        with lock:
            now, ended = now - 1, ended + 1

    bench.scheduler._send = wait_and_send
    bench.venue.gate.clear()
    for index in range(8):
        bench.scheduler.submit("candles", NORMAL, lambda path=str(index): Ask(path), done)
    bench.limiter.permits = 8
    wait_for(lambda: len(bench.venue.sent) == 8)  # all of them wait for their answers
    bench.venue.gate.set()
    wait_for(lambda: ended == 8)
    assert most == 1


# ------------------------------------------------------------------------------------------------ requests


def test_same_question_of_many_threads_is_asked_once(bench):
    """Twenty threads, one question: one request, one answer for all; the hits are counted."""
    bench.venue.gate.clear()
    bench.limiter.permits = 100

    def work(index: int) -> Any:
        if index == 19:
            wait_for(lambda: bench.metrics.counter("single_flight.hits") == 18)
            bench.venue.gate.set()
        return bench.scheduler.request(Ask("same"), NORMAL)

    replies = in_threads(20, work)
    assert {reply.value for reply in replies} == {"same"}
    assert bench.venue.sent.count("same") <= 2, "the last may come after the reply"
    assert bench.metrics.counter("single_flight.hits") >= 18


def test_question_that_was_begun_is_shared_by_whoever_asks_it(bench):
    """It is put once; the outcome is noted before whoever waits for it goes on."""
    bench.venue.gate.clear()
    bench.limiter.permits = 100
    noted: list[Any] = []
    for _ in range(2):
        bench.scheduler.begin(Ask("soon"), HIGH, noted.append)

    def work(index: int) -> Any:
        if index == 1:
            wait_for(lambda: bench.metrics.counter("single_flight.hits") == 1)
            bench.venue.gate.set()
            return None
        return bench.scheduler.request(Ask("soon"), HIGH), list(noted)

    (reply, before), _ = in_threads(2, work)
    assert bench.venue.sent.count("soon") == 1
    assert noted == before == [reply]


def test_shared_request_takes_the_priority_of_its_most_urgent_waiter(bench):
    """A high waiter raises the queued request of a low one past what is queued at normal."""
    bench.submit("n", NORMAL)

    def work(index: int) -> Any:
        if index == 1:
            wait_for(lambda: bench.scheduler.depths()["candles"]["low"] == 1)
            return bench.scheduler.request(Ask("shared"), HIGH)
        if index == 2:
            wait_for(lambda: bench.scheduler.depths().get("candles", {}).get("high") == 1)
            bench.permit()
            wait_for(lambda: len(bench.venue.sent) == 1)
            bench.permit()
            return None
        return bench.scheduler.request(Ask("shared"), LOW)

    results = in_threads(3, work)
    assert results[0] is results[1]
    assert bench.venue.sent[0] == "shared"


def test_error_reaches_every_waiter_with_its_cause(bench):
    """A final error is raised in each thread that asked, as a copy of its own, chained to the cause."""
    cause = OSError("cable")
    error = RejectedError("no", status=404)
    error.__cause__ = cause
    bench.venue.script["bad"] = [error] * 4
    bench.limiter.permits = 100
    results = in_threads(4, lambda _: bench.scheduler.request(Ask("bad"), HIGH))
    assert all(isinstance(each, RejectedError) and each.status == 404 for each in results)
    assert all(each.__cause__ is cause for each in results)
    assert len({id(each) for each in results}) == 4


class InterruptedClock(FastClock):
    """Ctrl-C arrives in the main thread's first wait."""

    def __init__(self, at: int) -> None:
        self.waits = 0
        self.at = at

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> bool:
        if threading.current_thread() is threading.main_thread():
            self.waits += 1
            if self.waits == self.at:
                raise KeyboardInterrupt
        return super().wait(condition, timeout_s)


@pytest.mark.parametrize("lane", ["request", "direct"])
def test_interrupted_request_takes_its_question_out_of_the_queue(lane):
    """Ctrl-C while waiting ends the wait at once, and what nobody waits for is not asked."""
    clock = InterruptedClock(at=2)
    limiter, venue = ScriptedLimiter(clock), Venue(clock)
    scheduler = Scheduler(limiter, venue.send, clock=clock, metrics=Metrics())
    calls = {
        "request": lambda: scheduler.request(Ask("a"), HIGH),
        "direct": lambda: scheduler.direct(Ask("a"), venue.send),
    }
    with pytest.raises(KeyboardInterrupt):
        calls[lane]()
    assert sum(scheduler.depths()["candles"].values()) == 0
    limiter.permits = 1
    assert scheduler.request(Ask("b"), LOW).value == "b"
    assert venue.sent == ["b"]
    scheduler.close()


# ------------------------------------------------------------------------------------------------- retries


def test_unreachable_venue_is_asked_again_each_time_with_a_permit(bench):
    """After five attempts, each with a permit of its own and backing off, the error is final."""
    bench.venue.script["down"] = [UnreachableError("no route") for _ in range(9)]
    bench.limiter.permits = 100
    begun = bench.clock.monotonic()
    bench.submit("down", NORMAL)
    error = bench.outcome("down")
    assert isinstance(error, UnreachableError)
    assert error.attempts == 5
    assert len(bench.venue.sent) == bench.limiter.count("take") == 5
    assert bench.clock.monotonic() - begun > 0.5 * (0.25 + 0.5 + 1 + 2)
    assert bench.metrics.counter("retries") == 4
    assert bench.metrics.counter("failed") == 1


def test_venue_that_recovers_gives_the_answer(bench):
    """A failure that passes is never seen by the caller."""
    bench.venue.script["flaky"] = [UnreachableError("reset"), PayloadError("cut"), "fine"]
    bench.limiter.permits = 100
    assert bench.scheduler.request(Ask("flaky"), NORMAL).value == "fine"


def test_invalid_payload_is_asked_for_once_more(bench):
    """An invalid reply is asked for a second time; then the error is final."""
    bench.venue.script["odd"] = [PayloadError("odd") for _ in range(5)]
    bench.limiter.permits = 100
    with pytest.raises(PayloadError) as caught:
        bench.scheduler.request(Ask("odd"), NORMAL)
    assert caught.value.attempts == len(bench.venue.sent) == 2


def test_rejected_question_is_not_asked_again(bench):
    """The venue understood and said no."""
    bench.venue.script["no"] = [RejectedError("Code not found", status=404)]
    bench.limiter.permits = 100
    with pytest.raises(RejectedError):
        bench.scheduler.request(Ask("no"), NORMAL)
    assert len(bench.venue.sent) == 1


def test_waiting_retry_holds_nobody_else_up(bench):
    """While one ticket backs off, others are sent."""
    bench.venue.script["slow"] = [UnreachableError("x"), UnreachableError("x"), UnreachableError("x")]
    bench.limiter.permits = 100
    bench.submit("slow", HIGH)
    wait_for(lambda: "slow" in bench.venue.sent)
    assert bench.scheduler.request(Ask("other"), LOW).value == "other"
    assert bench.outcome("slow").value == "slow"


def test_refusal_is_reported_to_the_limiter_and_costs_no_attempt(bench):
    """429s stop the group through the limiter; the ticket is sent again, up to a bound."""
    bench.venue.script["busy"] = [RateLimitedError("429") for _ in range(6)]
    bench.limiter.permits = 100
    assert bench.scheduler.request(Ask("busy"), NORMAL).value == "busy"
    assert bench.limiter.count("refused") == 6
    bench.venue.script["never"] = [RateLimitedError("429") for _ in range(50)]
    with pytest.raises(RateLimitedError):
        bench.scheduler.request(Ask("never"), NORMAL)
    assert bench.venue.sent.count("never") == 9


# ---------------------------------------------------------------------------------------------------- bans


def test_ban_fails_urgent_work_at_once_and_holds_low_work(bench):
    """After a 418 everything queued but low fails with one message that names the end; low waits, then goes."""
    bench.venue.script["first"] = [RateLimitedError("418", retry_after_s=30.0, banned=True)]
    bench.submit("first", HIGH)
    for path, priority in [("h", HIGH), ("n", NORMAL), ("l", LOW)]:
        bench.submit(path, priority)
    banned_at = bench.clock.monotonic()
    bench.permit()
    errors = [bench.outcome(path) for path in ("first", "h", "n")]
    assert all(isinstance(error, RateLimitedError) and error.banned for error in errors)
    assert len({str(error) for error in errors}) == 1
    assert "blocks this address until 2" in str(errors[0])
    bench.limiter.permits = 100
    assert bench.outcome("l").value == "l"
    assert bench.clock.monotonic() >= banned_at + 30.0
    assert bench.venue.sent == ["first", "l"]


def test_low_request_that_drew_the_ban_is_repeated_after_it(bench):
    """The low ticket that was answered 418 waits for the end as well."""
    bench.venue.script["page"] = [RateLimitedError("418", retry_after_s=5.0, banned=True)]
    bench.limiter.permits = 10
    bench.submit("page", LOW)
    assert bench.outcome("page").value == "page"
    assert bench.limiter.count("banned") == 1


def test_ban_drawn_by_another_process_fails_urgent_work_at_once(bench):
    """A ban read from the ledger is found out when the permit is refused, and nothing is sent."""
    bench.limiter.ban_until = bench.clock.monotonic() + 60.0
    begun = time.monotonic()
    for call in (
        lambda: bench.scheduler.request(Ask("a"), HIGH),
        lambda: bench.scheduler.direct(Ask("a"), bench.venue.send),
    ):
        with pytest.raises(RateLimitedError, match="until") as caught:
            call()
        assert caught.value.banned
        assert 0 < caught.value.retry_after_s <= 60
    assert time.monotonic() - begun < 20
    assert bench.venue.sent == []


# ---------------------------------------------------------------------------------------- the critical lane


def test_direct_is_sent_by_the_calling_thread_past_the_queue(bench):
    """A critical request needs no other thread and no queue."""
    for index in range(20):
        bench.submit(f"low{index}", LOW)
    assert bench.scheduler.depths()["candles"]["low"] == 20
    bench.limiter.permits = 21  # one more than the queue can use meanwhile
    reply = bench.scheduler.direct(Ask("now"), bench.venue.send)
    assert reply.value == "now"
    assert threading.current_thread().name in bench.venue.threads


def test_direct_without_a_free_permit_waits_in_the_queue_first_in_line(bench):
    """Where no permit is free, the critical request gets the next one, before all that is queued."""
    bench.submit("high", HIGH)
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(bench.scheduler.direct(Ask("now"), bench.venue.send)))
    thread.start()
    wait_for(lambda: bench.scheduler.depths()["candles"]["critical"] == 1)
    bench.permit()
    thread.join(DEADLINE_S)
    assert done[0].value == "now"
    assert bench.venue.sent == ["now"]
    bench.permit()
    assert bench.outcome("high").value == "high"


def test_direct_leaves_the_queue_for_a_permit_at_its_deadline(bench):
    """No permit comes: the error names the timeout, nothing is sent, and nothing stays in the queue."""
    begun = bench.clock.monotonic()
    with pytest.raises(UnreachableError, match=r"timeout of 0\.2 s"):
        bench.scheduler.direct(Ask("now"), bench.venue.send, Deadline(bench.clock, 0.2))
    assert bench.clock.monotonic() - begun < 20
    assert bench.scheduler.depths()["candles"]["critical"] == 0
    assert bench.venue.sent == []


def dropped() -> UnreachableError:
    """What a kept connection that the server closed looks like."""
    error = UnreachableError("no answer")
    error.__cause__ = OSError("Connection aborted.", http.client.RemoteDisconnected("closed"))
    return error


def test_direct_repeats_once_after_a_dropped_connection_with_a_new_permit(bench):
    """A stale connection is nobody's failure: one more try; a second drop is."""
    bench.limiter.permits = 10
    bench.venue.script["a"] = [dropped()]
    assert bench.scheduler.direct(Ask("a"), bench.venue.send).value == "a"
    assert bench.limiter.count("take") == 2
    bench.venue.script["b"] = [dropped(), dropped(), dropped()]
    with pytest.raises(UnreachableError) as caught:
        bench.scheduler.direct(Ask("b"), bench.venue.send)
    assert caught.value.attempts == 2


def test_direct_raises_other_failures_at_once(bench):
    """A bot decides itself what to do about a 500 or a time-out; it is not kept waiting."""
    bench.limiter.permits = 10
    for error in (UnreachableError("500"), RejectedError("no", status=400), PayloadError("odd")):
        bench.venue.script["x"] = [error]
        with pytest.raises(type(error)):
            bench.scheduler.direct(Ask("x"), bench.venue.send)
    assert len(bench.venue.sent) == 3


def test_direct_waits_out_a_refusal(bench):
    """A 429 is reported to the limiter, and the request is sent once more."""
    bench.limiter.permits = 10
    bench.venue.script["x"] = [RateLimitedError("429")]
    assert bench.scheduler.direct(Ask("x"), bench.venue.send).value == "x"
    assert bench.limiter.count("refused") == 1


# ------------------------------------------------------------------------------------------------ feedback


def test_answer_reports_to_the_limiter_what_is_left(bench):
    """`remaining` of the right group reaches the limiter, that of an error too; another group's does not."""
    bench.limiter.permits = 10
    bench.venue.remaining = 4
    bench.scheduler.request(Ask("a"), NORMAL)
    bench.venue.group = "origin"
    bench.scheduler.request(Ask("b"), NORMAL)
    error = RejectedError("no", status=404)
    now = bench.clock.monotonic()
    error.reply_facts = Reply(None, "candles", 2, now + 1, now + 2)
    bench.venue.script["c"] = [error]
    with pytest.raises(RejectedError):
        bench.scheduler.request(Ask("c"), NORMAL)
    observed = [each[2] for each in bench.limiter.calls if each[0] == "observe"]
    assert observed[:2] == [4, None]


def test_permit_that_lapsed_before_sending_is_taken_anew(bench):
    """A worker that wakes too late does not send with an old permit."""
    bench.limiter.may_move = False
    bench.submit("late", NORMAL)
    bench.limiter.permits = 1
    wait_for(lambda: bench.limiter.count("take") == 1)
    bench.limiter.may_move = True
    bench.limiter.permits = 5
    assert bench.outcome("late").value == "late"
    assert bench.venue.sent == ["late"]


def test_backstop_holds_what_a_broken_limiter_lets_through(caplog):
    """Were the limiter ever wrong, the plain count round the send holds the request and says so."""
    clock = FastClock()
    limiter, venue, metrics = ScriptedLimiter(clock, permits=10_000), Venue(clock), Metrics()
    limiter.rules = Rules(limit=2)
    scheduler = Scheduler(limiter, venue.send, clock=clock, metrics=metrics)
    stamps: list[float] = []

    def send(ask: Ask) -> Reply:
        stamps.append(clock.monotonic())
        return venue.send(ask)

    scheduler._send = send
    with caplog.at_level(logging.CRITICAL, "backbone.scheduler"):
        in_threads(6, lambda index: scheduler.request(Ask(f"{index}"), HIGH))
    scheduler.close()
    assert len(venue.sent) == 6
    assert max(stamps) - min(stamps) > 1.0, "six at two a second"
    assert metrics.counter("backstop.trips") > 0


def test_times_and_counts_are_kept_by_priority_and_group(bench):
    """Each answered request leaves the time it waited and the time it took."""
    bench.limiter.permits = 10
    bench.scheduler.request(Ask("a"), NORMAL)
    bench.scheduler.direct(Ask("b", "ticker"), bench.venue.send)
    times = {(t["kind"], t["group"], t["priority"]): t["count"] for t in bench.metrics.snapshot()["times"]}
    for kind in ("waited", "answered"):
        assert times[kind, "candles", "normal"] == 1
        assert times[kind, "ticker", "critical"] == 1
        assert times[kind, "", "critical"] == 1
    assert bench.metrics.counter("requests") == 2


# ------------------------------------------------------------------------------------------ mishaps, the end


def test_mistake_in_a_callback_is_recorded_and_ends_only_its_ticket(bench, caplog):
    """`bind`, `done` and `send` that raise what they should not: the ticket ends, the threads live."""
    bench.limiter.permits = 100
    with caplog.at_level(logging.CRITICAL, "backbone.scheduler"):

        def broken(*_: Any) -> Any:
            raise ZeroDivisionError("mine")

        bench.scheduler.submit("candles", HIGH, broken, lambda _, o: bench.ended.append(("bind", o)))
        assert isinstance(bench.outcome("bind").__cause__, ZeroDivisionError)
        bench.scheduler.submit("candles", HIGH, lambda: Ask("a"), broken)
        outcomes: list[Any] = []
        is_called_twice = threading.Event()

        def falls(_: Any, outcome: Any) -> None:
            outcomes.append(outcome)
            if len(outcomes) == 2:
                is_called_twice.set()
            raise ZeroDivisionError("while an answer is taken in")

        bench.scheduler.submit("candles", HIGH, lambda: Ask("d"), falls)
        bench.venue.script["b"] = [ZeroDivisionError("send")]
        with pytest.raises(BackboneError, match="inside backbone"):
            bench.scheduler.request(Ask("b"), HIGH)
        assert bench.scheduler.request(Ask("c"), HIGH).value == "c"
        assert is_called_twice.wait(10)
    assert outcomes[0].value == "d"
    assert isinstance(outcomes[1], BackboneError), "whoever waits for the answer must not wait for ever"
    assert len(outcomes) == 2
    assert "ZeroDivisionError" in bench.scheduler.status()["last_error"]
    bench.scheduler.close()  # the last of them may still be at it
    assert bench.scheduler.status()["in_flight"] == dict.fromkeys(("critical", "high", "normal", "low"), 0)


def test_close_in_a_storm_ends_every_waiter(bench):
    """Fifty threads waiting, some sent: all end with `ClosedError` at once, and the threads are gone."""
    bench.limiter.permits = 3
    bench.venue.gate.clear()

    def work(index: int) -> Any:
        if index == 50:
            wait_for(lambda: sum(bench.scheduler.depths().get("candles", {}).values()) == 47)
            threading.Timer(0.05, bench.venue.gate.set).start()
            bench.scheduler.close()
            return "closed"
        if index % 10 == 9:
            return bench.scheduler.direct(Ask(f"d{index}"), bench.venue.send)
        return bench.scheduler.request(Ask(f"r{index}"), [HIGH, NORMAL, LOW][index % 3])

    results = in_threads(51, work)
    assert results[50] == "closed"
    assert sum(isinstance(each, ClosedError) for each in results) >= 47
    assert bench.limiter.is_closed
    for call in (
        lambda: bench.scheduler.request(Ask("x"), HIGH),
        lambda: bench.scheduler.direct(Ask("x"), bench.venue.send),
        lambda: bench.submit("x", LOW),
        lambda: bench.scheduler.call_later(1.0, lambda: None),
    ):
        with pytest.raises(ClosedError):
            call()
    bench.scheduler.close()


def test_close_ends_queued_tickets_and_lets_sent_ones_complete(bench):
    """What is in flight at `close` ends with its answer, what is queued with `ClosedError`; each once."""
    bench.venue.gate.clear()
    bench.submit("sent", LOW)
    bench.permit()
    wait_for(lambda: bench.venue.sent == ["sent"])
    bench.submit("queued", LOW)
    bench.venue.script["sent"] = ["completed"]
    closing = threading.Thread(target=bench.scheduler.close)
    closing.start()
    assert isinstance(bench.outcome("queued"), ClosedError)
    bench.venue.gate.set()
    closing.join(DEADLINE_S)
    assert bench.outcome("sent").value == "completed"
    assert len(bench.ended) == 2


def test_close_at_any_moment_ends_every_ticket_once():
    """However the end falls between submitting, dispatching and sending: each ticket ends once, no thread is left."""
    clock = FastClock()
    for turn in range(60):
        venue, ended = Venue(clock), []
        scheduler = Scheduler(ScriptedLimiter(clock, permits=30), venue.send, clock=clock, metrics=Metrics())
        closing = threading.Thread(target=scheduler.close)
        submitted = 0
        for index in range(20):
            if index == turn % 20:
                closing.start()
            try:
                scheduler.submit(
                    "candles", NORMAL, lambda i=index: Ask(f"{i}"), lambda *a, ended=ended: ended.append(a)
                )
            except ClosedError:
                break
            submitted += 1
        closing.join(DEADLINE_S)
        scheduler.close()
        assert len(ended) == submitted
        assert not [t for t in threading.enumerate() if t.name.startswith("backbone-")]


def test_close_at_the_interpreters_end_ends_every_ticket(bench, monkeypatch):
    """No thread can be started any more: those that run do the work, or else the one that closes."""
    bench.limiter.permits = 0
    tickets = [f"t{n}" for n in range(5)]
    for name in tickets:
        bench.submit(name, LOW)
    wait_for(lambda: sum(bench.scheduler.depths().get("candles", {}).values()) == 5)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    bench.scheduler.close()
    monkeypatch.undo()
    for name in tickets:
        assert isinstance(bench.outcome(name), ClosedError)


def test_failing_request_in_flight_at_close_is_not_retried(bench):
    """After `close` a failure is final."""
    bench.venue.gate.clear()
    bench.venue.script["sent"] = [UnreachableError("x"), UnreachableError("x")]
    bench.submit("sent", LOW)
    bench.permit()
    wait_for(lambda: bench.venue.sent == ["sent"])
    closing = threading.Thread(target=bench.scheduler.close)
    closing.start()
    wait_for(lambda: bench.scheduler._is_closed)
    bench.venue.gate.set()
    closing.join(DEADLINE_S)
    assert isinstance(bench.outcome("sent"), ClosedError)
    assert bench.venue.sent == ["sent"]


def test_callback_may_close_the_scheduler(bench):
    """`done` runs on a worker and may close everything without waiting for itself."""
    bench.limiter.permits = 1
    bench.scheduler.submit("candles", HIGH, lambda: Ask("a"), lambda *_: bench.scheduler.close())
    wait_for(lambda: bench.limiter.is_closed)


def test_job_called_later_runs_when_due_and_not_after_close(bench):
    """Timers need no permit, run on a worker, and end with the scheduler."""
    ran: list[tuple[float, str]] = []
    due = bench.clock.monotonic() + 2.0
    note = lambda: ran.append((bench.clock.monotonic(), threading.current_thread().name))  # noqa: E731
    bench.scheduler.call_later(2.0, note)
    bench.scheduler.call_later(1e6, note)
    wait_for(lambda: len(ran) == 1)
    assert ran[0][0] >= due
    assert ran[0][1].startswith("backbone-worker")
    bench.scheduler.close()
    assert len(ran) == 1


def fork() -> int:
    """`os.fork`, of which newer Pythons warn where there are threads: that is just what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


@pytest.mark.skipif(sys.platform == "win32", reason="fork is POSIX")
def test_forked_child_starts_with_an_empty_queue_and_works(bench):
    """The parent's tickets are the parent's; the child has its own threads and asks its own questions."""
    bench.submit("parent", LOW)
    wait_for(lambda: bench.scheduler.depths()["candles"]["low"] == 1)
    read, write = os.pipe()
    pid = fork()
    if not pid:
        try:
            empty = bench.scheduler.depths() == {}
            bench.limiter.permits = 1
            value = bench.scheduler.request(Ask("child"), NORMAL).value
            bench.scheduler.close()
            os.write(write, b"ok" if empty and value == "child" and bench.venue.sent == ["child"] else b"no")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 2) == b"ok"
    os.close(read)
    os.close(write)
    assert bench.scheduler.depths()["candles"]["low"] == 1


def test_real_limiter_and_many_threads_lose_nothing():
    """A hundred threads with overlapping questions at every priority: all answered, each question asked once or so."""
    clock = FastClock()
    venue, metrics = Venue(clock), Metrics()
    scheduler = Scheduler(MemoryLimiter(clock, Rules(limit=50)), venue.send, clock=clock, metrics=metrics)
    lanes = [HIGH, NORMAL, LOW]
    results = in_threads(100, lambda i: scheduler.request(Ask(f"q{i % 40}"), lanes[i % 3]).value)
    assert results == [f"q{index % 40}" for index in range(100)]
    assert 40 <= len(venue.sent) <= 100
    assert scheduler.status()["quota"]["candles"]["refused"] == 0
    scheduler.close()
