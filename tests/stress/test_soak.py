"""Short form of the soak: some seconds of mixed use while everything goes wrong now and then."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.stress import soak


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    """The soak causes hundreds of warnings on purpose."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
def test_soak_of_some_seconds_gives_nothing_but_right_answers_and_honest_errors() -> None:
    """Under refusals, resets, bad pages, stalls and drops no row is wrong, no call is stuck, nothing is left behind."""
    tally = soak.run(seed=7, seconds=8.0, fault_every_s=0.25)
    assert tally.tried["calls"] > 20, tally.detailed()
    assert tally.tried["faults"] > 10, tally.detailed()
    assert tally.right > 0.3 * tally.tried["calls"], tally.detailed()
    assert tally.availability >= 0.999, tally.wrong
    assert tally.is_clean, tally.summary()
