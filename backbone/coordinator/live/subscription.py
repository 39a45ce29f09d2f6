"""A subscription: some kinds of some markets, live until it is closed."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from backbone.coordinator.live.latest import NEVER, ConflatedChanges, Held, LatestRows, RecordQueue, Slot, cut
from backbone.coordinator.live.reconcile import Confirmer, LiveEvent
from backbone.errors import StreamClosedError
from backbone.locks import renew_after_fork
from backbone.routing.wire import ORDERBOOK_DEPTH

__all__ = ["Subscription"]

F = TypeVar("F", ConflatedChanges, RecordQueue)


class Subscription:
    """Some kinds of some markets, live until `close`. The rows are those of `LatestRows`; nothing is copied.

    `mode` says how it is fed; `on_close` gets it once, at the end. Its lock guards the followers and the end.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        markets: Sequence[str],
        latest: LatestRows,
        confirmer: Confirmer,
        mode: Callable[[], str],
        on_close: Callable[[Subscription], None],
        quote: str | None = None,
        depth: int = ORDERBOOK_DEPTH,
    ) -> None:
        self.kinds = tuple(kinds)
        self.markets = tuple(markets)
        self._latest = latest
        self._confirmer = confirmer
        self._mode = mode
        self._on_close = on_close
        self.quote = quote  # stands for all markets that are listed in it
        self.depth = depth  # of its books
        self.slots = {kind: [latest.slot(kind, market) for market in markets] for kind in kinds}
        self.all_slots = [slot for slots in self.slots.values() for slot in slots]
        self.opened_s = latest.clock.monotonic()
        self._counted = sum(slot.count for slot in self.all_slots)
        self._first_event = confirmer.last_number
        self._received = 0
        self._lost_before = sum(slot.lost for slot in self.all_slots)
        self._lock = threading.Lock()
        self._followers: weakref.WeakSet[ConflatedChanges | RecordQueue] = weakref.WeakSet()
        self.is_closed = False
        self.is_orphan = False
        renew_after_fork(self, Subscription._orphan)

    def __repr__(self) -> str:
        return f"<Subscription {' '.join(self.kinds)} of {len(self.markets)} markets, {self.mode}>"

    def _orphan(self) -> None:
        """In a forked child it has ended: the socket is the parent's."""
        self._lock = threading.Lock()
        self._followers = weakref.WeakSet()
        self.is_closed = self.is_orphan = True

    def check_process(self) -> None:
        """Raise `StreamClosedError` in a forked child: its rows stay as they were at the fork."""
        if self.is_orphan:
            raise StreamClosedError("the table belongs to the parent process; open another", reason="forked")

    @property
    def mode(self) -> str:
        """How the feed is supplied; ``"stopped"`` after `close`."""
        return "stopped" if self.is_closed else self._mode()

    @property
    def received(self) -> int:
        """Records that came since it was opened."""
        if not self.is_closed:
            self._received = sum(slot.count for slot in self.all_slots) - self._counted
        return self._received

    @property
    def lost(self) -> int:
        """Outages since it was opened whose trades could not be had back, counted by market."""
        return sum(slot.lost for slot in self.all_slots) - self._lost_before

    @property
    def is_complete(self) -> bool:
        """Whether every market had a record since it was opened."""
        return all(
            slot.held is not None and (slot.held.received_s >= self.opened_s or slot.stream_s > NEVER)
            for slot in self.all_slots
        )

    def rows(self, kind: str) -> list[Held[Any]]:
        """The newest rows of one of its kinds at one instant, in the order of its markets."""
        return cut(self._latest.snapshot(self.slots[kind]), self.depth)

    def row(self, kind: str, market: str) -> Any:
        """The newest row of one of its markets, None before the first. Raises `KeyError` for another market."""
        slot = next((slot for slot in self.slots[kind] if slot.market == market), None)
        if slot is None:
            raise KeyError(market)
        held = slot.held
        return None if held is None else cut([held], self.depth)[0].row

    def events(self) -> list[LiveEvent]:
        """What happened to it since it was opened, oldest first."""
        markets = {"", *self.markets}  # no market: of all
        events = self._confirmer.events(self._first_event)
        return [one for one in events if one.market in markets or one.market.partition("-")[0] == self.quote]

    def change(self, markets: Sequence[str]) -> tuple[list[Slot], list[Slot]]:
        """Other markets from now on; the slots that came, and those that went. Its followers follow."""
        with self._lock:
            received, lost = self.received, self.lost
            before = dict.fromkeys(self.all_slots)
            self.markets = tuple(markets)
            self.slots = {kind: [self._latest.slot(kind, market) for market in markets] for kind in self.kinds}
            after = dict.fromkeys(slot for slots in self.slots.values() for slot in slots)
            self.all_slots[:] = after  # the followers hold this very list
            self._counted = sum(slot.count for slot in after) - received
            self._lost_before = sum(slot.lost for slot in after) - lost
            came = [slot for slot in after if slot not in before]
            gone = [slot for slot in before if slot not in after]
            for follower in list(self._followers):
                self._latest.refollow(follower, came, gone)
        return came, gone

    def follow(self) -> ConflatedChanges:
        """Collect its changes from now on, conflated; `end` it. It ends with the subscription at the latest."""
        return self._keep(ConflatedChanges(self._latest, self.all_slots, self.depth))

    def queue(self, size: int, *, shows_start: bool = False) -> RecordQueue:
        """Queue its records from now on, the newest `size`; `end` it. It ends with the subscription at the latest.

        With `shows_start` the first of each slot is how it stood (`RecordQueue`).
        """
        return self._keep(RecordQueue(self._latest, self.all_slots, size, self.depth, shows_start=shows_start))

    def _keep(self, follower: F) -> F:
        with self._lock:
            self._followers.add(follower)
            is_late = self.is_closed
        if is_late:
            follower.end()
        return follower

    def close(self) -> None:
        """Stop. With the last one the stream's thread ends. May be called twice."""
        with self._lock:
            if self.is_closed:
                return
            self._received = self.received
            self.is_closed = True
            followers = list(self._followers)
        for follower in followers:
            follower.end()
        self._on_close(self)
