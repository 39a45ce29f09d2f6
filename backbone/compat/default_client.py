"""The one client behind these modules, and which differences were warned about already.

Invariant: at most one client is made here at a time, on first use, and whoever made it ends it: a client that was
handed in stays open. The lock guards the client and the warnings given; clients are closed outside it.
"""

from __future__ import annotations

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
    """The client, whether it was made here, and the differences that were warned about."""

    def __init__(self) -> None:
        self.client: Backbone | None = None
        self.is_own = False
        self.warned: set[str] = set()
        self.begin()
        renew_after_fork(self, _Default.begin)

    def begin(self) -> None:
        self.lock = threading.Lock()


_default = _Default()


def get_client() -> Backbone:
    """The client behind these modules; made from the environment on first use."""
    with _default.lock:
        if _default.client is None:
            _default.client, _default.is_own = Backbone(), True
        return _default.client


def initialize(client: Backbone | None = None, **settings: Any) -> Backbone:
    """Choose the client behind these modules: yours, which you close yourself, or a new one of `settings`.

    The one before is closed if it was made here.
    """
    if client is not None and settings:
        raise InputError("settings", sorted(settings), "nothing besides a client")
    if client is not None and not isinstance(client, Backbone):
        raise InputError("client", client, "a Backbone")
    chosen = Backbone(**settings) if client is None else client
    _replace(chosen, is_own=client is None)
    return chosen


def cleanup() -> None:
    """End the client behind these modules; the next call makes a new one. May be called twice."""
    _replace(None, is_own=False)


def _replace(client: Backbone | None, *, is_own: bool) -> None:
    with _default.lock:
        before = _default.client if _default.is_own else None
        _default.client, _default.is_own = client, is_own
    if before is not None and before is not client:
        before.close()


def say_once(subject: str, message: str) -> None:
    """Warn the caller of the calling function, once a process for each `subject`."""
    with _default.lock:
        is_new = subject not in _default.warned
        _default.warned.add(subject)
    if is_new:
        warnings.warn(message, DifferenceWarning, stacklevel=3)
