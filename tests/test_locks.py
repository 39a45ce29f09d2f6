"""What a forked child begins anew."""

from __future__ import annotations

import gc
import threading
import weakref

from backbone.locks import renew_after_fork
from tests.storage.helpers import in_child, needs_fork


class Owner:
    def __init__(self) -> None:
        self.renewals = 0
        self.renew()
        renew_after_fork(self, Owner.renew)

    def renew(self) -> None:
        self.lock = threading.Lock()
        self.renewals += 1


@needs_fork
def test_lock_held_at_a_fork_is_free_in_the_child() -> None:
    """The child gets a new lock, the parent keeps its own."""
    owner = Owner()
    with owner.lock:
        assert in_child(lambda: owner.renewals == 2 and owner.lock.acquire(timeout=5))
        assert owner.renewals == 1


def test_registered_owner_is_not_kept_alive() -> None:
    """Registering is no reason to live on."""
    owner = Owner()
    seen = weakref.ref(owner)
    del owner
    gc.collect()
    assert seen() is None
