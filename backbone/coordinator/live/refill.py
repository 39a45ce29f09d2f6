"""The trades of an outage, fetched by cursor, so that a reader of the live feed gets each of them once and in order.

`LatestRows` holds back what the stream brings of a market from the loss of the connection on; `TradeFill` fetches what
happened meanwhile, page by page over the scheduler, from the last trade that was delivered on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from backbone.coordinator.live.latest import NEVER, LatestRows, Slot
from backbone.coordinator.live.trades import TradeWalk
from backbone.coordinator.scheduler import Scheduler
from backbone.errors import BackboneError, ClosedError
from backbone.model import Priority, Trade
from backbone.routing.rest import Reply
from backbone.routing.wire import Ask
from backbone.timeframe import DAY_US

__all__ = ["Joins", "TradeFill"]

_LOOK_S = 1.0
"""Between two looks whether the stream has begun to send a market."""


class TradeFill:
    """Fetches all trades of one market from a time on; `on_done` gets them, oldest first, and the error if one ended
    it early. It runs on a worker of the scheduler.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        market: str,
        start_us: int,
        now_us: int,
        priority: Priority,
        on_done: Callable[[Sequence[Trade], BackboneError | None], None],
    ) -> None:
        self._scheduler = scheduler
        self._priority = priority
        self._on_done = on_done
        self._walk = TradeWalk(market, None, start_us, None, now_us // DAY_US)

    def begin(self) -> None:
        """Queue the next page."""
        ask = self._walk.next_ask()
        try:
            self._scheduler.submit(ask.group, self._priority, lambda: ask, self._took)
        except ClosedError:
            return

    def _took(self, _: Ask | None, outcome: Reply | BackboneError) -> None:
        error = outcome if isinstance(outcome, BackboneError) else None
        if not isinstance(outcome, BackboneError):
            try:
                self._walk.take(outcome.value, outcome.date_us)
            except BackboneError as exc:
                error = exc
        if error is None and not self._walk.is_done:
            self.begin()
        else:
            self._on_done(self._walk.rows, error)


class Joins:
    """Markets that joined a table while it was open: their trades from the listing on are fetched, then delivered.

    That is done once the stream has sent the first one: what was traded after it is sent, what was before is fetched.
    Until then nothing was traded, or the subscription is on its way. The lock guards which slots wait for that.

    Parameters
    ----------
    refill : fetches the trades of slots, each with its epoch and the time to fetch from.
    """

    def __init__(self, latest: LatestRows, refill: Callable[[Sequence[tuple[Slot, int, int]]], None]) -> None:
        self._latest = latest
        self._refill = refill
        self._lock = threading.Lock()
        self._waiting: list[tuple[Slot, int, int]] = []

    def expect(self, slots: Sequence[Slot], since_us: int) -> None:
        """`slots` were wanted just now; they are of markets that were not listed at `since_us`."""
        found = self._latest.expect(slots, since_us)
        with self._lock:
            self._waiting += [(slot, slot.epoch, slot.resume[0]) for slot in found]

    def run(self, now: float) -> float | None:
        """Fetch for those that the stream sends by now; says when to look again, None where none is left."""
        with self._lock:
            # of a slot in another epoch the connection was lost since, and its return fetches
            waiting = [one for one in self._waiting if one[0].wants and one[0].epoch == one[1]]
            begun = [one for one in waiting if one[0].stream_s > NEVER]
            self._waiting = [one for one in waiting if one not in begun]
            is_left = bool(self._waiting)
        if begun:
            self._refill(begun)
        return now + _LOOK_S if is_left else None
