"""What a forked child does with the locks and half-done state it inherits.

A lock that another thread of the parent held at the fork would stay locked in the child for ever, and work that is the
parent's would be done twice. Whoever owns a lock or unfinished work registers how to begin anew; nothing is kept alive
by that.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["renew_after_fork"]

T = TypeVar("T")

_owners: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def renew_after_fork(owner: T, renew: Callable[[T], None]) -> None:
    """Call ``renew(owner)`` in every forked child in which `owner` still lives. It must only replace attributes."""
    _owners[owner] = renew


def _renew_all() -> None:
    for owner, renew in list(_owners.items()):
        renew(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
