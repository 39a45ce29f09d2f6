"""A permit between its grant and the answer: the backstop, the stamp, and what the answer says about the quota.

`Permits._lock` guards the gates and the delays; the limiter is called without it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from backbone.clock import Clock
from backbone.coordinator.metrics import Metrics
from backbone.coordinator.quota import Limiter
from backbone.coordinator.quota.rules import Delay
from backbone.errors import RateLimitedError, RejectedError, SourceError
from backbone.model import Priority

if TYPE_CHECKING:
    from backbone.routing.rest import Reply

__all__ = ["Permits"]

log = logging.getLogger("backbone.quota")

_LATE_S = 0.001  # a permit used later than this is moved to the time of its use


class Permits:
    """What happens to a permit between its grant and what the answer says about the quota."""

    def __init__(self, limiter: Limiter, clock: Clock, metrics: Metrics, most: int) -> None:
        self._limiter = limiter
        self._clock = clock
        self._metrics = metrics
        self._lock = threading.Lock()
        self._delays: dict[str, Delay] = {}
        self._gates: dict[str, Callable[[], None]] = {}
        self.failures = 0  # questions given up since the venue answered last
        self._most = most

    def stamp(self, group: str, granted: float) -> float | None:
        """The moment of sending, with the permit moved to it; None when it may not be sent now."""
        if not self.pass_gate(group):
            return None
        now = self._clock.monotonic()
        if now - granted <= _LATE_S:
            return granted
        self._metrics.count("permits.moved")
        return now if self._limiter.move(group, granted, now) else None

    def pass_gate(self, group: str) -> bool:
        """The backstop: a plain count of what this process sends, which must never say no."""
        from ratelimit import RateLimitException, limits

        with self._lock:
            gate = self._gates.get(group)
            if gate is None:
                pace = limits(calls=self._most, period=1.0, clock=self._clock.monotonic)
                gate = self._gates[group] = pace(lambda: None)
        try:
            gate()
        except RateLimitException as exc:
            self._metrics.count("backstop.trips")
            log.error("quota.backstop group=%s: above the limit, held for %.3f s", group, exc.period_remaining)
            return False
        return True

    def learn(self, group: str, stamp: float, outcome: Reply | SourceError) -> None:
        """Report to the limiter what an answer says about the quota."""
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
        # what is left in another group says nothing about this one; a refusal's count is known already
        is_useful = facts.group in (None, group) and not isinstance(outcome, RateLimitedError)
        self._limiter.observe(group, facts.remaining if is_useful else None, stamp, counted, now)

    def count_answer(self, group: str, stamp: float, reply: Reply, since: float, priority: Priority) -> None:
        self._metrics.count("answered")
        self.failures = 0
        self.learn(group, stamp, reply)
        self._metrics.time("answered", self._clock.monotonic() - since, group=group, priority=priority)

    def count_failure(self, error: SourceError) -> None:
        """A question given up. That the venue rejected one is an answer: the question was wrong."""
        if isinstance(error, RejectedError):
            self._metrics.count("rejected")
            self.failures = 0
        else:
            self._metrics.count("failed")
            with self._lock:
                self.failures += 1

    def ban_error(self, left_s: float) -> RateLimitedError:
        end = datetime.fromtimestamp(self._clock.now_us() / 1e6 + left_s, tz=UTC).astimezone()
        return RateLimitedError(
            f"the venue blocks this address until {end:%Y-%m-%d %H:%M:%S %Z}; nothing is sent to it before",
            retry_after_s=left_s,
            banned=True,
        )
