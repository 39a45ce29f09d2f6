"""Time as a dependency: the only module that calls `time`, so that every other one can be tested without waiting.

`VenueClock` is the estimate of the venue's clock. The venue has no time endpoint, only the ``Date`` header with whole
seconds: a reply proves that the venue's clock showed at least that second when it answered and less than the next
second when the answer came back, so each reply narrows an interval of possible offsets. The conservative end of it
decides what counts as closed, so a laptop that is minutes off stores nothing wrong.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from backbone.errors import BackboneError, UnreachableError

__all__ = ["Clock", "Deadline", "SystemClock", "VenueClock", "current_deadline", "within"]


class Clock(Protocol):
    """What the package needs of time."""

    def now_us(self) -> int:
        """Wall time of this machine, microseconds UTC. May be wrong, may step."""
        ...

    def monotonic(self) -> float:
        """Seconds that never step back, shared by the processes of one boot."""
        ...

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> bool:
        """Wait on a held `condition`; False when the time ran out."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> bool:
        return condition.wait(timeout_s)


class Deadline:
    """The moment at which a call stops waiting: `timeout_s` seconds from when this was made."""

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self._clock = clock
        self._end_s = clock.monotonic() + timeout_s
        self.timeout_s = timeout_s

    def left_s(self) -> float:
        """Seconds to go; negative once it has passed."""
        return self._end_s - self._clock.monotonic()

    def error(self, what: str, cause: BackboneError | None = None) -> UnreachableError:
        """The error of a call that waited for `what` until now; `cause` is why the last attempt failed, if it did."""
        error = UnreachableError(f"{what}: no answer within the call's timeout of {self.timeout_s:g} s")
        if cause is not None:
            error = UnreachableError(f"{error}; the last attempt failed: {cause}")
            error.__cause__ = cause
        return error


_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextmanager
def within(deadline: Deadline | None) -> Iterator[None]:
    """Inside, what this thread asks for is waited for until this deadline."""
    token = _current.set(deadline)
    try:
        yield
    finally:
        _current.reset(token)


def current_deadline() -> Deadline | None:
    """The deadline of the block that this thread is in (`within`), or None."""
    return _current.get()


class VenueClock:
    """The venue's wall clock, estimated from ``Date`` headers; falls back to the machine's until one was seen.

    `now_us` never runs ahead of what the headers prove. A machine that slept counted fewer monotonic seconds than
    passed; its two clocks then disagree about the time since the last reply, and the offset counts as unknown. The
    lock guards the offset interval.
    """

    DRIFT = 200e-6  # crystal drift of a bad laptop: the interval widens so that it can follow
    STEP_US = 2_000_000  # a header this far outside the interval means that a clock was set: start over

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._low_us: float | None = None  # bounds of (venue wall time - monotonic time)
        self._high_us = 0.0
        self._seen_s = 0.0
        self._apart_us = 0.0  # (this machine's wall time - monotonic time) at the last reply

    def observe(self, date_us: int, sent_s: float, received_s: float) -> None:
        """Take a reply's ``Date`` header with the monotonic times at which it was asked for and received."""
        low = date_us - received_s * 1e6
        high = date_us + 1_000_000 - sent_s * 1e6
        apart = self._apart_now_us()
        with self._lock:
            self._apart_us = apart
            if self._low_us is None:
                self._low_us, self._high_us, self._seen_s = low, high, received_s
                return
            drift = self.DRIFT * 1e6 * max(0.0, received_s - self._seen_s)
            old_low, old_high = self._low_us - drift, self._high_us + drift
            self._seen_s = received_s
            if low > old_high + self.STEP_US or high < old_low - self.STEP_US:
                self._low_us, self._high_us = low, high
                return
            new_low, new_high = max(low, old_low), min(high, old_high)
            if new_low > new_high:  # a small contradiction: the newer reply counts
                new_low, new_high = low, high
            self._low_us, self._high_us = new_low, new_high

    def _apart_now_us(self) -> float:
        return self._clock.now_us() - self._clock.monotonic() * 1e6

    @property
    def is_known(self) -> bool:
        """Whether a reply came since this machine last slept or had its clock set."""
        apart = self._apart_now_us()
        with self._lock:
            return self._low_us is not None and abs(apart - self._apart_us) <= self.STEP_US

    @property
    def age_s(self) -> float:
        """Seconds since the last reply of the venue; infinite where its clock is not known."""
        if not self.is_known:
            return float("inf")
        with self._lock:
            return self._clock.monotonic() - self._seen_s

    def now_us(self) -> int:
        """A time the venue's clock has certainly reached (the machine's own time before the first reply)."""
        with self._lock:
            low = self._low_us
        if low is None:
            return self._clock.now_us()
        return int(low + self._clock.monotonic() * 1e6)

    def offset_s(self) -> float | None:
        """How far the venue is ahead of this machine's wall clock, seconds; None before the first reply."""
        with self._lock:
            is_known = self._low_us is not None
        return (self.now_us() - self._clock.now_us()) / 1e6 if is_known else None
