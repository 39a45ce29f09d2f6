"""The exchange's own clock: it may be frozen, accelerated or set, and every answer is as of its time.

Rate windows and time-outs do not run on it: they are real, whatever the market's clock shows. The lock guards the
anchor. Listeners (the stream's feed) are called after every jump, outside the lock.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from backbone.clock import Clock, SystemClock
from backbone.errors import InputError

__all__ = ["ExchangeClock", "machine_s", "parse_instant", "window_s"]

_MACHINE = SystemClock()
_AHEAD_S = _MACHINE.now_us() / 1e6 - _MACHINE.monotonic()

machine_s = _MACHINE.monotonic
"""The real time, in seconds since some instant: what time-outs and delays go by."""


def window_s() -> float:
    """The real time that rate windows go by: their seconds are those of the machine's wall clock, and never step."""
    return machine_s() + _AHEAD_S


def parse_instant(value: object, argument: str = "now") -> int | None:
    """Microseconds of an int (microseconds), a datetime or an ISO text (UTC without a zone). None stays."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    except ValueError as exc:
        raise InputError(argument, value, "an ISO time such as 2025-08-22T09:00:00Z") from exc
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)


class ExchangeClock:
    """Microseconds UTC as the exchange sees them.

    Parameters
    ----------
    now : where it starts; None is the machine's time.
    frozen : it moves by `advance` and `set` only.
    speed : exchange seconds a real second.
    machine : the real time it runs on.
    """

    def __init__(
        self, now: object = None, *, frozen: bool = False, speed: float = 1.0, machine: Clock | None = None
    ) -> None:
        if not speed > 0:
            raise InputError("speed", speed, "a number above 0")
        self._machine = machine or _MACHINE
        self._lock = threading.Lock()
        self._frozen = frozen
        self._speed = speed
        self._listeners: list[Callable[[], None]] = []
        start = parse_instant(now)
        self._anchor_us = self._machine.now_us() if start is None else start
        self._anchor_s = self._machine.monotonic()

    def __repr__(self) -> str:
        stamp = datetime.fromtimestamp(self.now_us() / 1e6, UTC).isoformat(timespec="milliseconds")
        return f"ExchangeClock({stamp}, frozen={self.frozen}, speed={self.speed:g})"

    @property
    def frozen(self) -> bool:
        with self._lock:
            return self._frozen

    @property
    def speed(self) -> float:
        with self._lock:
            return self._speed

    def now_us(self) -> int:
        with self._lock:
            return self._now_locked()

    def _now_locked(self) -> int:
        if self._frozen:
            return self._anchor_us
        return self._anchor_us + int((self._machine.monotonic() - self._anchor_s) * 1e6 * self._speed)

    def set(self, now: object) -> None:
        """Jump to an instant (microseconds, datetime or ISO text)."""
        target = parse_instant(now)
        if target is None:
            raise InputError("now", now, "an instant")
        self._move(lambda _: target)

    def advance(self, seconds: float) -> None:
        """Jump ahead."""
        self._move(lambda now: now + round(seconds * 1e6))

    def freeze(self, frozen: bool = True) -> None:
        """Stop the clock where it stands, or let it run on from there."""
        with self._lock:
            self._anchor_us, self._anchor_s = self._now_locked(), self._machine.monotonic()
            self._frozen = frozen

    def _move(self, target: Callable[[int], int]) -> None:
        with self._lock:
            self._anchor_us, self._anchor_s = target(self._now_locked()), self._machine.monotonic()
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def on_jump(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every `set` and `advance`."""
        with self._lock:
            self._listeners.append(listener)


_TO = re.compile(
    r"(\d{4}-\d{2}-\d{2}[T ](?:[01]\d|2[0-3]):\d{2}:\d{2})(?:\.(\d{1,9}))?(?:Z|([+-])(\d{2}):?(\d{2}))?", re.ASCII
)


def parse_to(text: str) -> int | None:
    """A candle request's ``to`` in microseconds; None where the venue would not understand it. No zone is UTC."""
    match = _TO.fullmatch(text)
    if match is None:
        return None
    moment, fraction, sign, hours, minutes = match.groups()
    try:
        second = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    except ValueError:
        return None
    offset = 0 if sign is None else (int(hours) * 60 + int(minutes)) * (1 if sign == "+" else -1)
    return int(second.timestamp()) * 1_000_000 + int(f"{fraction or ''}000000"[:6]) - offset * 60_000_000
