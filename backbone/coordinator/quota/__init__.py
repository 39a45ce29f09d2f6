"""The request quota: what may be sent, and when. `Limiter` is what the scheduler needs of it."""

from __future__ import annotations

from typing import Protocol

from backbone.coordinator.quota.rules import GroupState, Rules
from backbone.model import Priority

__all__ = ["Limiter"]


class Limiter(Protocol):
    """Gives permits to send. Times are monotonic seconds; no call waits.

    Forms: the machine's ledger, this process's own memory (`quota.ledger`), a Redis that hosts share (`quota.redis`).
    """

    @property
    def rules(self) -> Rules: ...

    def take(self, group: str, priority: Priority, since: float, now: float, depth: int = 1) -> float:
        """0.0: granted, with the stamp `now`. Otherwise when to ask again.

        Until then this process counts as waiting, with `depth` requests, for a slot since `since`.
        """
        ...

    def next_low(self, group: str) -> float:
        """When low work, which was granted a permit here, can have the next one at the earliest; 0.0 where unknown."""
        ...

    def leave(self, group: str, priority: Priority | None = None) -> None:
        """This process waits no longer in the group (at this priority)."""
        ...

    def undo(self, group: str, granted: float) -> None:
        """Give back an unused permit."""
        ...

    def move(self, group: str, granted: float, now: float) -> bool:
        """The permit is used only now; False when it has lapsed."""
        ...

    def observe(self, group: str, remaining: int | None, granted: float, counted: float, now: float) -> None:
        """A reply came: when it was counted at the latest, and how many requests the venue says are left."""
        ...

    def refused(self, group: str, now: float, retry_after_s: float | None) -> None:
        """The venue answered 429."""
        ...

    def banned(self, until_wall_us: int, now: float) -> None:
        """The venue answered 418."""
        ...

    def ban_left(self, now: float) -> float:
        """Seconds until a ban ends; 0.0 without one."""
        ...

    def snapshot(self, now: float) -> dict[str, GroupState]: ...

    def close(self) -> None: ...
