"""What a forked child begins anew, and how threads take turns."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest

from backbone.locks import RunLock, renew_after_fork
from tests.storage.helpers import in_child, needs_fork


class Owner:
    def __init__(self) -> None:
        self.renewals = 0
        self.renew()
        renew_after_fork(self, Owner.renew)

    def renew(self) -> None:
        self.lock = threading.Lock()
        self.renewals += 1


@needs_fork
def test_lock_held_at_a_fork_is_free_in_the_child() -> None:
    """The child gets a new lock, the parent keeps its own."""
    owner = Owner()
    with owner.lock:
        assert in_child(lambda: owner.renewals == 2 and owner.lock.acquire(timeout=5))
        assert owner.renewals == 1


def test_registered_owner_is_not_kept_alive() -> None:
    """Registering is no reason to live on."""
    owner = Owner()
    seen = weakref.ref(owner)
    del owner
    gc.collect()
    assert seen() is None


DEADLINE_S = 20.0


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


class Turns:
    """Threads that are inside now, and the most there ever were."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = self.ended = 0

    def take(self, inside: Callable[[], object]) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        inside()
        with self.lock:
            self.now -= 1
            self.ended += 1


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> RunLock:
    """One whose turns are waited for as long as a test may take."""
    monkeypatch.setattr(RunLock, "PATIENCE_S", DEADLINE_S)
    return RunLock()


def test_turns_do_not_overlap(patient: RunLock) -> None:
    """However often the interpreter changes hands inside of one."""
    turns, pause = Turns(), threading.Event()

    def work() -> None:
        for _ in range(20):
            with patient.running():
                turns.take(lambda: pause.wait(0.0005))

    threads = [started(work) for _ in range(6)]
    for thread in threads:
        thread.join(DEADLINE_S)
    assert (turns.most, turns.ended) == (1, 120)


def test_who_waits_lets_the_next_run_and_takes_its_turn_again(patient: RunLock) -> None:
    """Around a wait; a thread without a turn waits as it is."""
    there, back = threading.Event(), threading.Event()

    def second() -> None:
        with patient.running():
            there.set()
            assert back.wait(DEADLINE_S)

    with patient.waiting():
        assert not patient.is_held
    with patient.running():
        thread = started(second)
        with patient.waiting():
            assert there.wait(DEADLINE_S)
            assert not patient.is_held
            back.set()
        assert patient.is_held
    thread.join(DEADLINE_S)
    assert not patient.is_held


def test_turn_within_a_turn_is_the_same_one(patient: RunLock) -> None:
    """The inner block ends nothing; an error ends the outer one."""

    def broken() -> None:
        with patient.running():
            with patient.running():
                pass
            assert patient.is_held
            raise ValueError

    with pytest.raises(ValueError):
        broken()
    with patient.running():
        assert patient.is_held


def test_nobody_waits_for_a_turn_that_does_not_end() -> None:
    """Without its turn a thread goes on as well, and takes nobody else's away."""
    lock, stuck, end = RunLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock.running():
            stuck.set()
            assert end.wait(DEADLINE_S)

    thread = started(hold)
    assert stuck.wait(DEADLINE_S)
    with lock.running():
        assert not lock.is_held
        with lock.waiting():
            pass
    end.set()
    thread.join(DEADLINE_S)
    with lock.running():
        assert lock.is_held


def test_turn_that_was_waited_for_in_vain_is_waited_for_by_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that works for seconds costs the others one wait, not one at every system call; the next turn counts."""
    lock, stuck, end = RunLock(), threading.Event(), threading.Event()

    def hold(until: threading.Event) -> None:
        with lock.running():
            stuck.set()
            assert until.wait(DEADLINE_S)

    def try_it() -> None:
        with lock.running():
            had_turn.append(lock.is_held)

    had_turn: list[bool] = []
    first = started(lambda: hold(end))
    assert stuck.wait(DEADLINE_S)
    try_it()
    monkeypatch.setattr(RunLock, "PATIENCE_S", DEADLINE_S)
    for _ in range(3):
        started(try_it).join(DEADLINE_S / 4)
    assert had_turn == [False] * 4
    end.set()
    first.join(DEADLINE_S)

    stuck.clear()
    second_end = threading.Event()
    second = started(lambda: hold(second_end))
    assert stuck.wait(DEADLINE_S)
    third = started(try_it)
    third.join(0.1)
    assert third.is_alive()
    second_end.set()
    second.join(DEADLINE_S)
    third.join(DEADLINE_S)
    assert had_turn[4:] == [True]


def test_who_waits_for_a_lock_lets_the_next_run(patient: RunLock) -> None:
    """Whoever has that lock may need a turn to be done with it."""
    lock, coming, has_both = threading.Lock(), threading.Event(), threading.Event()

    def second() -> None:
        with patient.running():
            coming.set()
            with patient.holding(lock):
                assert patient.is_held
                has_both.set()

    with patient.running(), patient.holding(lock):
        with patient.waiting():
            thread = started(second)
            assert coming.wait(DEADLINE_S)
        assert patient.is_held
        assert not has_both.is_set()
    assert has_both.wait(DEADLINE_S)
    thread.join(DEADLINE_S)
    assert not lock.locked()


@needs_fork
def test_turn_of_another_thread_at_a_fork_is_over_in_the_child(patient: RunLock) -> None:
    """The child has its turn at once."""
    stuck, end = threading.Event(), threading.Event()

    def hold() -> None:
        with patient.running():
            stuck.set()
            end.wait(DEADLINE_S)

    def takes_it() -> bool:
        with patient.running():
            return patient.is_held

    thread = started(hold)
    assert stuck.wait(DEADLINE_S)
    assert in_child(takes_it, timeout_s=5)
    end.set()
    thread.join(DEADLINE_S)
