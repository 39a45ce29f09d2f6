"""How live data is had at this moment, when to poll, and which markets are worth a subscription of their own.

The rungs, best first: ``streaming``; ``connecting`` or ``reconnecting`` (the socket is expected back at once: whoever
asks is answered by REST, nothing is polled yet); ``polling`` (REST feeds the tables, at a tenth of the quota);
``rest only`` (polling fails too: tables grow old, whoever asks hears why). Each rung is left upwards by itself, as soon
as the socket or a poll brings something. ``idle``: nothing is wanted.

Pure: told the time (monotonic seconds), never asks it. The feed's lock guards it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["GRACE_S", "POLL_S", "Asked", "FallbackState", "RoundRobin"]

GRACE_S = 2.0
"""A socket that is back within this was never missed: no poll is worth its request before."""
POLL_S = 1.05
"""Between two polls of one wire group: a tenth of its ten requests a second."""
FAILING_S = 5.0
"""Between two polls while they fail."""


class FallbackState:
    """The rung. Told what the socket and the polls do."""

    def __init__(self) -> None:
        self.end()

    def end(self) -> None:
        """Nothing is wanted any more."""
        self._lost_s: float | None = None
        self._is_streaming = False
        self._was_streaming = False
        self._failures = 0

    def begin(self, now: float) -> None:
        """Something is wanted, and there was nothing before."""
        self.end()
        self._lost_s = now

    def streaming(self) -> None:
        """The socket brings data."""
        self._lost_s, self._failures = None, 0
        self._is_streaming = self._was_streaming = True

    def lost(self, now: float) -> None:
        """The socket brings nothing. Told as often as one likes."""
        self._is_streaming = False
        if self._lost_s is None:
            self._lost_s = now

    def polled(self, *, well: bool) -> None:
        """A poll ended."""
        self._failures = 0 if well else self._failures + 1

    @property
    def is_streaming(self) -> bool:
        return self._is_streaming

    def lost_for(self, now: float) -> float:
        """Seconds without the socket; 0 while it streams or nothing is wanted."""
        return 0.0 if self._lost_s is None else now - self._lost_s

    def rung(self, now: float) -> str:
        """The name of the rung."""
        if self._is_streaming:
            return "streaming"
        if self._lost_s is None:
            return "idle"
        if self._failures:
            return "rest only"
        if now - self._lost_s < GRACE_S:
            return "reconnecting" if self._was_streaming else "connecting"
        return "polling"

    def poll_from_s(self) -> float | None:
        """When polling begins or began; None while it is not needed."""
        return None if self._lost_s is None else self._lost_s + GRACE_S

    @property
    def pace_s(self) -> float:
        """Seconds between two polls of one group."""
        return FAILING_S if self._failures else POLL_S


@dataclass
class RoundRobin:
    """Whose turn it is in one wire group: one request at a time, all subjects in turn."""

    due_s: float = 0.0
    is_asking: bool = False
    _turn: int = 0

    def take(self, subjects: list[tuple[str, str]], most: int) -> list[tuple[str, str]]:
        """The next subjects (kind, market): at most `most` of one kind."""
        if not subjects:
            return []
        at = self._turn % len(subjects)
        kind = subjects[at][0]
        taken: list[tuple[str, str]] = []
        while len(taken) < min(most, len(subjects)) and at < len(subjects) and subjects[at][0] == kind:
            taken.append(subjects[at])
            at += 1
        self._turn = at
        return taken


@dataclass
class Asked:
    """Which (kind, market) are asked for again and again, and so are worth a subscription.

    ``often`` asks within ``window_s`` seconds earn one; ``idle_s`` seconds without an ask end it; at most ``most``.
    """

    often: int = 5
    window_s: float = 10.0
    idle_s: float = 60.0
    most: int = 1000
    _times: dict[tuple[str, str], deque[float]] = field(default_factory=dict)
    _adopted: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def adopted(self) -> frozenset[tuple[str, str]]:
        return frozenset(self._adopted)

    def note(self, kind: str, markets: Iterable[str], now: float) -> list[tuple[str, str]]:
        """An ask for `markets`; those that have earned a subscription by it."""
        earned = []
        for market in markets:
            pair = (kind, market)
            if pair in self._adopted:
                self._adopted[pair] = now
                continue
            times = self._times.get(pair)
            if times is None:
                if len(self._times) >= 4 * self.most:
                    self._times.clear()  # a scan over everything is no interest in anything
                times = self._times[pair] = deque(maxlen=self.often)
            times.append(now)
            if len(times) == self.often and now - times[0] <= self.window_s and len(self._adopted) < self.most:
                self._adopted[pair] = now
                del self._times[pair]
                earned.append(pair)
        return earned

    def expire(self, now: float) -> list[tuple[str, str]]:
        """Subscriptions that nobody asked for any more; they are given up."""
        gone = [pair for pair, last in self._adopted.items() if now - last >= self.idle_s]
        for pair in gone:
            del self._adopted[pair]
        return gone

    def clear(self) -> list[tuple[str, str]]:
        """Give up all."""
        gone = list(self._adopted)
        self._adopted.clear()
        self._times.clear()
        return gone

    def due_s(self) -> float | None:
        """When the next subscription may expire."""
        return min(self._adopted.values()) + self.idle_s if self._adopted else None
