"""For tests of programs that use this package: time that a test moves, and a venue without sockets.

`ManualClock` is a `backbone.clock.Clock` that stands still. `MemoryVenue` is the embedded exchange in the caller's
thread: paths and queries in, statuses and JSON bodies out, with the same market, dialect and fault scripts as
`backbone.simulator.SimulatorServer`, which serves them on loopback. `Faults` is the script of what goes wrong.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from backbone.errors import InputError
from backbone.simulator.market.exchange import Exchange
from backbone.simulator.server.clock import parse_instant
from backbone.simulator.server.faults import Faults
from backbone.simulator.server.rest import NOT_FOUND, answer, error_body, find_route

__all__ = ["Faults", "ManualClock", "MemoryVenue"]

NOW = "2025-08-22T09:00:00Z"


class ManualClock:
    """A clock that moves when a test says so, and by the timeout of every wait.

    >>> clock = ManualClock("2025-08-22T09:00:00Z")
    >>> clock.advance(1.5)
    >>> clock.monotonic(), clock.now_us()
    (1001.5, 1755853201500000)

    Parameters
    ----------
    now : the wall time at the start: microseconds, a datetime or ISO text, UTC without a zone.
    waits : whether a wait is allowed; where it is not, one raises AssertionError.

    ``wall_us`` and ``mono_s`` may be set, each alone: a wall clock that somebody corrects, a machine that slept.
    """

    def __init__(self, now: object = NOW, *, waits: bool = True) -> None:
        start = parse_instant(now)
        if start is None:
            raise InputError("now", now, "an instant")
        self.wall_us = start
        self.mono_s = 1000.0
        self._waits = waits

    def __repr__(self) -> str:
        return f"ManualClock(wall_us={self.wall_us}, mono_s={self.mono_s})"

    def now_us(self) -> int:
        return self.wall_us

    def monotonic(self) -> float:
        return self.mono_s

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> bool:
        """Let the timeout pass at once. Returns False: the time ran out."""
        if not self._waits:
            raise AssertionError("a wait where none is allowed")
        self.advance(timeout_s or 0.0)
        return False

    def advance(self, seconds: float) -> None:
        """Move both clocks ahead."""
        self.wall_us += round(seconds * 1e6)
        self.mono_s += seconds


class MemoryVenue:
    """The embedded exchange without sockets, in the caller's thread.

    >>> venue = MemoryVenue(seed=7, now="2025-08-22T09:00:00Z")
    >>> status, body = venue.get("/v1/candles/minutes/1", {"market": "KRW-BTC", "count": "2"})
    >>> status, body[:19]
    (200, b'[{"market":"KRW-BTC')
    >>> _ = venue.faults.add("empty", match="/v1/candles")
    >>> venue.get("/v1/candles/minutes/1", {"market": "KRW-BTC"})
    (200, b'[]')

    Parameters
    ----------
    seed : which market history.
    now : the exchange's time, or a clock that has `now_us`.
    markets : codes to list; None is all.
    faults : a script. Faults of the rows, of the spelling and of the status apply; those of a connection have none.

    ``requests`` holds each path with its query.
    """

    def __init__(
        self,
        *,
        seed: int = 7,
        now: object = NOW,
        markets: Sequence[str] | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.exchange = Exchange(seed, markets=markets)
        self.clock = now if hasattr(now, "now_us") else ManualClock(now)
        self.faults = faults or Faults()
        self.requests: list[tuple[str, dict[str, str]]] = []

    def get(self, path: str, query: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """The status and the body of one request."""
        words = dict(query or {})
        self.requests.append((path, words))
        target = path + "?" + "&".join(f"{name}={value}" for name, value in words.items())
        faults = self.faults.take(target)
        kinds = {fault.kind for fault in faults}
        for kind, status, text in (("429", 429, "Too many API requests."), ("500", 500, "server error")):
            if kind in kinds:
                return status, error_body(status, text)
        route = find_route(path)
        if route is None:
            return 404, NOT_FOUND
        return answer(route, self.exchange, words, self.clock.now_us(), faults)
