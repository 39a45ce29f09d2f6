"""The trades of an outage, fetched by cursor, so that a reader of the live feed gets each of them once and in order.

`LatestRows` holds back what the stream brings of a market from the loss of the connection on; `TradeFill` fetches what
happened meanwhile, page by page over the scheduler, from the last trade that was delivered on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backbone.coordinator.live.trades import TradeWalk
from backbone.coordinator.scheduler import Scheduler
from backbone.errors import BackboneError, ClosedError
from backbone.model import Priority, Trade
from backbone.routing.rest import Reply
from backbone.routing.wire import Ask
from backbone.timeframe import DAY_US

__all__ = ["TradeFill"]


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
