"""Who may ask how often: the venue's request windows, as pure arithmetic on a given time.

Budgets are per address and wire group: `limit` requests in each whole second of the real clock (``fixed``) or
in any second (``sliding``). A request with an ``Origin`` header draws on a bucket of one in ten seconds
instead. Refusals that pile up end in a block of the address, which grows each time. Not safe to share between
threads: the server's loop owns it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from backbone.errors import InputError

__all__ = ["Limits", "Verdict", "Window"]


@dataclass(frozen=True)
class Verdict:
    """``status`` is 200, 429 or 418, ``header`` the text of Remaining-Req, ``block_s`` what is left of a block."""

    status: int
    header: str
    block_s: float = 0.0


class Window:
    """A budget of `limit` in each `length_s` seconds, aligned to the clock or sliding."""

    def __init__(self, limit: int, length_s: float, sliding: bool) -> None:
        self.limit = limit
        self._length_s = length_s
        self._sliding = sliding
        self._taken: deque[float] = deque()

    def take(self, now_s: float) -> bool:
        taken = self._taken
        edge = now_s - self._length_s if self._sliding else now_s // self._length_s * self._length_s
        while taken and (taken[0] <= edge if self._sliding else taken[0] < edge):
            taken.popleft()
        if len(taken) >= self.limit:
            return False
        taken.append(now_s)
        return True

    @property
    def left(self) -> int:
        return self.limit - len(self._taken)


class Limits:
    """The venue's book of who asked what.

    Parameters
    ----------
    limit : requests a second of each group.
    window : ``"fixed"`` (aligned to the whole second) or ``"sliding"``.
    ban_after : refusals within ten seconds after which the address is blocked.
    ban_s : length of the first block; each further one doubles it, up to five minutes.
    """

    CONNECTS = 5

    def __init__(self, limit: int = 10, window: str = "fixed", *, ban_after: int = 20, ban_s: float = 5.0) -> None:
        if window not in ("fixed", "sliding"):
            raise InputError("window", window, '"fixed" or "sliding"')
        if limit < 1:
            raise InputError("limit", limit, "1 or more requests a second")
        self.limit = limit
        self._sliding = window == "sliding"
        self._ban_after = ban_after
        self._ban_s = ban_s
        self._windows: dict[str, Window] = {}
        self._refused: deque[float] = deque()
        self._blocked_until_s = 0.0
        self._blocks = 0

    def reset(self) -> None:
        """Forget every request, refusal and block."""
        self._windows.clear()
        self._refused.clear()
        self._blocked_until_s, self._blocks = 0.0, 0

    def ask(self, group: str, now_s: float, *, origin: bool = False) -> Verdict:
        """Count one request of `group` at the real time `now_s`."""
        name = "origin" if origin else group
        if now_s < self._blocked_until_s:
            return Verdict(418, "", self._blocked_until_s - now_s)
        if name not in self._windows:
            self._windows[name] = self._open(name)
        window = self._windows[name]
        allowed = window.take(now_s)
        per_minute = 6 if name == "origin" else window.limit * 60
        header = f"group={name}; min={per_minute}; sec={window.left}"
        return Verdict(200, header) if allowed else self._refuse(header, now_s)

    def _open(self, name: str) -> Window:
        if name == "origin":
            return Window(1, 10.0, True)
        return Window(self.CONNECTS if name == "websocket" else self.limit, 1.0, self._sliding)

    def _refuse(self, header: str, now_s: float) -> Verdict:
        refused = self._refused
        refused.append(now_s)
        while refused[0] < now_s - 10.0:
            refused.popleft()
        if len(refused) < self._ban_after:
            return Verdict(429, header)
        refused.clear()
        return self.block(now_s, min(300.0, self._ban_s * 2**self._blocks))

    def block(self, now_s: float, seconds: float) -> Verdict:
        """Block the address from now on."""
        self._blocks += 1
        self._blocked_until_s = now_s + seconds
        return Verdict(418, "", seconds)
