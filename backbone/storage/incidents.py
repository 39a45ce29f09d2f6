"""What went wrong on disk and was survived: kept in memory, newest thousand, and logged. `_lock` guards the list."""

from __future__ import annotations

import logging
import threading
from collections import deque

import msgspec

from backbone.clock import Clock
from backbone.locks import renew_after_fork

__all__ = ["Incident", "Incidents"]

_log = logging.getLogger("backbone.storage.store")


class Incident(msgspec.Struct, frozen=True):
    """Something that went wrong on disk and was survived.

    ``kind``: ``"quarantined"`` (a damaged file was moved), ``"damaged"`` (it could not be), ``"flush-failed"``.
    """

    kind: str
    path: str
    detail: str
    at_us: int


class Incidents:
    """The newest incidents of one store. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._found: deque[Incident] = deque(maxlen=1000)
        self._renew()
        renew_after_fork(self, Incidents._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def record(self, kind: str, path: str, detail: str) -> None:
        """Keep and log one."""
        with self._lock:
            self._found.append(Incident(kind, path, detail, self._clock.now_us()))
        _log.warning("store.%s path=%s %s", kind.replace("-", "_"), path, detail)

    def list(self) -> list[Incident]:
        """All that are kept, oldest first."""
        with self._lock:
            return list(self._found)
