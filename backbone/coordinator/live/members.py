"""Subscriptions that mean a whole quote currency follow the venue's market list as it changes.

The list is requested once a minute, at low priority, while such a subscription is open. A market that is new in it
joins at once. One that is missing leaves once a second list, a few seconds later, agrees (`Markets`). Both are
events. So is a ticker that says that its market is in another condition (a coming delisting, a suspension): the list is
then requested within seconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from backbone.clock import Clock, VenueClock
from backbone.coordinator.live.latest import NEVER
from backbone.coordinator.live.reconcile import Confirmer, LiveEvent
from backbone.coordinator.live.subscription import Subscription
from backbone.coordinator.scheduler import Scheduler
from backbone.coordinator.steps import submit
from backbone.errors import BackboneError
from backbone.model import MarketInfo, Priority, Ticker
from backbone.routing.rest import Reply
from backbone.routing.wire import markets_ask

__all__ = ["EVERY_S", "ListFollower"]

EVERY_S = 60.0
"""Between two requests for the market list."""
AGAIN_S = 3.0
"""Until the list is requested again that shall confirm a delisting."""
_MARGIN_US = 60_000_000
"""How much the venue's clock may be ahead of what is known of it; a market has no trades before its listing."""


class ListFollower:
    """Keeps subscriptions to whole quote currencies as the market list is. Its lock guards what it remembers.

    Parameters
    ----------
    change : gives a subscription other markets, with a time at which the new ones were not listed yet.
    on_list : takes the list of each reply; returns the list as it now counts, and whether that is confirmed.
    on_condition : gets each ticker of a market in another condition; says whether that is news.
    wake : has `run` called soon.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        confirmer: Confirmer,
        venue: VenueClock,
        clock: Clock,
        change: Callable[[Subscription, Sequence[str], int], None],
        on_list: Callable[[tuple[MarketInfo, ...]], tuple[tuple[MarketInfo, ...], bool]],
        on_condition: Callable[[Ticker], bool],
        wake: Callable[[], None],
    ) -> None:
        self._scheduler = scheduler
        self._confirmer = confirmer
        self._venue = venue
        self._clock = clock
        self._change = change
        self._on_list = on_list
        self._on_condition = on_condition
        self._wake = wake
        self._lock = threading.Lock()
        self._followed: list[Subscription] = []
        self._due_s = 0.0
        self._asked_s = NEVER
        self._known_us = 0  # when the request for the last list was sent
        self._sent_us = 0

    def follow(self, subscription: Subscription) -> None:
        """Keep `subscription` as its quote currency is listed, until it is closed."""
        with self._lock:
            if not self._followed:
                self._due_s = self._clock.monotonic() + EVERY_S
                self._known_us = self._venue.now_us() - _MARGIN_US
            self._followed.append(subscription)

    def note_condition(self, ticker: Ticker) -> None:
        """A ticker says that its market is in another condition: an event, and a sign to ask for the list soon."""
        if not self._on_condition(ticker):
            return
        self._confirmer.record(LiveEvent("state", self._venue.now_us(), ticker.market, detail=_condition_of(ticker)))
        with self._lock:
            if not self._followed:
                return
            self._due_s = min(self._due_s, max(self._clock.monotonic(), self._asked_s + AGAIN_S))
        self._wake()

    def run(self, now: float) -> float | None:
        """Request the list where it is due; says when it is due next, None where nothing follows it."""
        with self._lock:
            self._followed = [one for one in self._followed if not one.is_closed]
            if not self._followed:
                return None
            is_due, self._due_s = now >= self._due_s, now + EVERY_S if now >= self._due_s else self._due_s
            due_s = self._due_s
            if is_due:
                self._asked_s, self._sent_us = now, self._venue.now_us() - _MARGIN_US
        if is_due:
            submit(self._scheduler, Priority.LOW, markets_ask(), self._took)
        return due_s

    def _took(self, outcome: Reply | BackboneError) -> None:
        """A list, on a worker; after an error the next one is as good."""
        if isinstance(outcome, BackboneError):
            return
        listed, is_confirmed = self._on_list(outcome.value)
        codes = tuple(info.market for info in listed)
        with self._lock:
            followed = [one for one in self._followed if not one.is_closed]
            held = {market for one in followed for market in one.markets}
            gone = held.difference(codes) if is_confirmed else set()
            since_us, self._known_us = self._known_us, self._sent_us
            if not is_confirmed:
                self._due_s = self._clock.monotonic() + AGAIN_S
        new: dict[str, None] = {}
        for one in followed:
            members = [code for code in codes if code.startswith(f"{one.quote}-")]
            kept = [market for market in one.markets if market not in gone]
            joined = [code for code in members if code not in kept]
            new.update(dict.fromkeys(joined))
            if joined or len(kept) < len(one.markets):
                self._change(one, kept + joined, since_us)
        for kind, markets in (("listed", new), ("delisted", sorted(gone))):
            for market in markets:
                self._confirmer.record(LiveEvent(kind, self._venue.now_us(), market, detail=f"{market} was {kind}"))
        self._wake()


def _condition_of(ticker: Ticker) -> str:
    """How a market is, in words."""
    words = [f"{ticker.market} is {ticker.state or 'ACTIVE'}"]
    if ticker.delisting_day is not None:
        words.append(f"it is delisted on {ticker.delisting_day}")
    if ticker.is_suspended:
        words.append("trading is suspended")
    if ticker.warning not in (None, "NONE"):
        words.append(f"warning: {ticker.warning}")
    return ", ".join(words)
