"""What a forked child does with the locks and half-done state it inherits, and how threads take turns.

A lock that another thread of the parent held at the fork would stay locked in the child for ever, and work that is the
parent's would be done twice. Whoever owns a lock or unfinished work registers how to begin anew; nothing is kept alive
by that.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

__all__ = ["RUN_LOCK", "RunLock", "renew_after_fork"]

T = TypeVar("T")

_owners: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def renew_after_fork(owner: T, renew: Callable[[T], None]) -> None:
    """Call ``renew(owner)`` in every forked child in which `owner` still lives. It must only replace attributes."""
    _owners[owner] = renew


def _renew_all() -> None:
    for owner, renew in list(_owners.items()):
        renew(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


class RunLock:
    """Threads that take it run one after the other; while one waits for the network or the disk, the next may run.

    It protects nothing, it saves time. The interpreter is free for a moment at every system call, and a thread that
    woke meanwhile takes it. Ten threads with an answer each pass it on some thirty times a page, at half of the page's
    CPU time.

    Whoever has waited for `PATIENCE_S` goes ahead without it. A turn that lasted so long already is waited for by
    nobody: whoever has it works for long, or waits where it did not say so.
    """

    PATIENCE_S = 0.02

    def __init__(self) -> None:
        self._begin()
        renew_after_fork(self, RunLock._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._own = threading.local()
        self._number = 0  # of the turn that began last
        self._overdue = -1  # the last one that was waited for in vain

    @property
    def is_held(self) -> bool:
        """Whether this thread holds it."""
        return getattr(self._own, "is_held", False)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, this thread has its turn. Within another such block it does nothing."""
        if self.is_held:
            yield
            return
        self._take()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, others may run; then this thread waits for its turn again. Does nothing for one that has none."""
        if not self.is_held:
            yield
            return
        self._leave()
        try:
            yield
        finally:
            self._take()

    @contextmanager
    def holding(self, lock: threading.Lock) -> Iterator[None]:
        """Inside, this thread has `lock` as well; while it waits for that, others may run."""
        if not lock.acquire(blocking=False):
            with self.waiting():
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _take(self) -> None:
        number = self._number
        is_held = self._lock.acquire(timeout=0 if number == self._overdue else self.PATIENCE_S)
        if is_held:
            self._number += 1
        elif number == self._number:
            self._overdue = number
        self._own.is_held = is_held

    def _leave(self) -> None:
        if self.is_held:
            self._own.is_held = False
            self._lock.release()


RUN_LOCK: Final = RunLock()
"""The one of this process: of all workers of all clients."""
