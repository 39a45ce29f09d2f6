"""Imports without the garbage collector, and what they leave of it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from backbone.imports import undisturbed


class _Circle:
    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    """A test of the collector begins with it on and with nothing that the run froze."""
    gc.unfreeze()
    gc.enable()
    yield
    gc.freeze()


def test_collector_rests_and_wakes() -> None:
    """It is off inside, on afterwards, also where the import fails; one that the program switched off stays off."""
    with undisturbed():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), undisturbed():
        import backbone.nothing_of_that_name  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()
    gc.disable()
    with undisturbed():
        pass
    assert not gc.isenabled()
    gc.enable()


def test_what_was_made_counts_as_old_and_is_still_collected() -> None:
    """The next short look has nothing of it to look at; garbage is found by the next full one; nothing stays frozen."""
    frozen = gc.get_freeze_count()  # some by Python 3.12 itself: then nothing is moved
    with undisturbed():
        made = [_Circle() for _ in range(5000)]
    assert frozen or not any(one is made[0] for one in gc.get_objects(generation=0))
    assert gc.get_freeze_count() == frozen
    gone = weakref.ref(made.pop())
    gc.collect()
    assert gone() is None


def test_what_the_program_froze_stays_frozen() -> None:
    """A server that forks has frozen what its children share."""
    mine = _Circle()
    gc.freeze()
    try:
        with undisturbed():
            pass
        assert not any(one is mine for one in gc.get_objects()), "the collector sees what is not frozen"
    finally:
        gc.unfreeze()
    assert any(one is mine for one in gc.get_objects())
