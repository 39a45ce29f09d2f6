"""Short forms of the store's stress commands: the same checks, a few seconds each."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator

import pytest

from tests.stress import store_crowd, store_damage, store_disk, store_kill

needs_forkserver = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="this system cannot kill forked writers"
)


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    """The harnesses cause thousands of warnings on purpose."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@needs_forkserver
def test_store_killed_ten_times_loses_and_invents_nothing() -> None:
    """After SIGKILL at a random moment every row is the venue's and no covered span lacks its rows; and, where others
    leave a commit its second, at least once in three runs, nothing older than that is asked again."""
    for seed in (7, 8, 9):
        tally = store_kill.run(seed=seed, kills=10)
        assert tally.tried["kills"] == 10
        assert tally.pages > 10
        oldest_s, tally.oldest_asked_again_s = tally.oldest_asked_again_s, 0.0
        assert tally.is_clean, tally.summary()
        if oldest_s <= 1.0:
            return
    pytest.fail(f"a page put {oldest_s:.2f} s before the kill is asked again")


@needs_forkserver
def test_store_shared_by_a_crowd_loses_no_update() -> None:
    """Writers and readers of one folder agree with the venue, though one died holding every lock."""
    tally = store_crowd.run(seed=7, writers=3, readers=1, pages=15)
    assert tally.pages == 45
    assert tally.reads >= 10
    assert tally.is_clean, tally.summary()


def test_store_damaged_in_every_way_gives_no_wrong_row() -> None:
    """Damage is found by the first read, said once, and costs a refetch."""
    tally = store_damage.run(seed=7, rounds=12, slots=3000)
    assert tally.found >= 12
    assert tally.is_clean, tally.summary()


def test_store_on_failing_disks_keeps_what_was_put() -> None:
    """Full, forbidden, vanished or failing at any step: one clear error, nothing lost."""
    tally = store_disk.run(seed=7, faults=12)
    assert tally.errors >= 8, "a folder that cannot be written is a warning, every other fault an error"
    assert tally.is_clean, tally.summary()
