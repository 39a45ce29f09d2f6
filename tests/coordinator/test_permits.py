"""What becomes of a permit: moved, refused by the backstop, settled by the answer."""

from __future__ import annotations

from typing import Any

import pytest

from backbone.coordinator.metrics import Metrics
from backbone.coordinator.permits import Permits
from backbone.coordinator.quota.ledger import MemoryLimiter
from backbone.errors import RateLimitedError, RejectedError
from backbone.model import Priority
from backbone.testing import ManualClock
from tests.coordinator.test_scheduler import Reply


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_755_853_200_000_000, waits=False)


@pytest.fixture
def limiter(clock: ManualClock) -> MemoryLimiter:
    return MemoryLimiter(clock)


@pytest.fixture
def permits(clock: ManualClock, limiter: MemoryLimiter) -> Permits:
    return Permits(limiter, clock, Metrics(), most=10)


def test_permit_used_at_once_keeps_its_stamp_and_a_late_one_is_moved(
    clock: ManualClock, limiter: MemoryLimiter, permits: Permits
) -> None:
    """Later than a millisecond is late; after a whole window the permit has lapsed."""
    assert not limiter.take("candles", Priority.NORMAL, 1000.0, 1000.0)
    assert permits.stamp("candles", 1000.0) == 1000.0
    clock.advance(1000.4 - clock.mono_s)
    assert permits.stamp("candles", 1000.0) == 1000.4
    clock.advance(1002.0 - clock.mono_s)
    assert permits.stamp("candles", 1000.4) is None


def test_backstop_counts_each_group_in_a_second(clock: ManualClock, permits: Permits) -> None:
    """The eleventh in a second is held, in its group only, until the second is over."""
    assert [permits.pass_gate("candles") for _ in range(11)] == [True] * 10 + [False]
    assert permits.pass_gate("ticker")
    clock.advance(1001.1 - clock.mono_s)
    assert permits.pass_gate("candles")


def test_answer_is_settled_and_another_groups_count_left_out(
    clock: ManualClock, limiter: MemoryLimiter, permits: Permits
) -> None:
    """`Remaining-Req` of the asked group shows other software on the address; that of another group does not."""
    for index, (group, foreign) in enumerate([("origin", 0), ("candles", 5)]):
        granted = 1000.0 + 20.0 * index
        clock.advance(granted - clock.mono_s)
        assert not limiter.take("candles", Priority.NORMAL, granted, granted)
        clock.advance(granted + 0.05 - clock.mono_s)
        permits.learn("candles", granted, Reply(None, group, 4, granted + 0.01, granted + 0.04))
        assert limiter.snapshot(clock.mono_s)["candles"].foreign == foreign


def test_refusal_and_ban_reach_the_limiter(clock: ManualClock, limiter: MemoryLimiter, permits: Permits) -> None:
    """A 429 stops its group, a 418 all; another error teaches nothing but the request's end."""
    permits.learn("candles", 1000.0, RejectedError("no", status=404))
    assert not limiter.take("candles", Priority.HIGH, 1000.0, 1000.0)
    permits.learn("candles", 1000.0, RateLimitedError("429"))
    assert limiter.take("candles", Priority.HIGH, 1000.0, 1000.0) > 1001.0
    banned: Any = RateLimitedError("418", retry_after_s=30.0, banned=True)
    permits.learn("ticker", 1000.0, banned)
    assert limiter.ban_left(1000.0) == pytest.approx(30.0, abs=0.01)
    assert "nothing is sent to it before" in str(permits.ban_error(30.0))
