"""The one client behind these modules, and which differences were warned about already.

Invariant: at most one client is made here at a time, on first use, and whoever made it ends it: a client that was
handed in stays open. The lock guards the client and the warnings given; clients are closed outside it.
"""

from __future__ import annotations

import atexit
import threading
import warnings
from typing import Any

from backbone.api.client import Backbone
from backbone.errors import InputError
from backbone.locks import renew_after_fork

__all__ = ["DifferenceWarning", "cleanup", "get_client", "initialize", "say_once"]


class DifferenceWarning(UserWarning):
    """A compat module does the right thing where the original does not; given once a process for each such thing."""


class _Default:
    def __init__(self) -> None:
        self._client: Backbone | None = None
        self._is_own = False
        self._is_watching_exit = False
        self._warned: set[str] = set()
        self._begin()
        renew_after_fork(self, _Default._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    def client(self) -> Backbone:
        with self._lock:
            if self._client is None:
                self._keep_locked(Backbone(), is_own=True)
            assert self._client is not None
            return self._client

    def replace(self, client: Backbone | None, *, is_own: bool) -> None:
        with self._lock:
            before = self._client if self._is_own else None
            self._keep_locked(client, is_own=is_own)
        if before is not None and before is not client:
            before.close()

    def _keep_locked(self, client: Backbone | None, *, is_own: bool) -> None:
        self._client, self._is_own = client, is_own
        if is_own and not self._is_watching_exit:
            self._is_watching_exit = True
            atexit.register(cleanup)

    def is_new(self, subject: str) -> bool:
        with self._lock:
            is_new = subject not in self._warned
            self._warned.add(subject)
        return is_new


_default = _Default()


def get_client() -> Backbone:
    """The client behind these modules; made from the environment on first use."""
    return _default.client()


def initialize(client: Backbone | None = None, **settings: Any) -> Backbone:
    """Choose the client behind these modules: yours, which you close yourself, or a new one of `settings`.

    The one before is closed if it was made here.
    """
    if client is not None and settings:
        raise InputError("settings", sorted(settings), "nothing besides a client")
    if client is not None and not isinstance(client, Backbone):
        raise InputError("client", client, "a Backbone")
    _default.replace(Backbone(**settings) if client is None else client, is_own=client is None)
    return _default.client()


def cleanup() -> None:
    """End the client behind these modules; the next call makes a new one. May be called twice."""
    _default.replace(None, is_own=False)


def say_once(subject: str, message: str) -> None:
    """Warn the caller of the calling function, once a process for each `subject`."""
    if _default.is_new(subject):
        warnings.warn(message, DifferenceWarning, stacklevel=3)
