"""The venue's clock, estimated from `Date` headers: never ahead of what they prove, whatever this machine's shows."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbone.clock import Deadline, SystemClock, VenueClock, current_deadline, within
from backbone.testing import ManualClock

WALL_US = 1_755_853_200_000_000


def test_without_a_reply_the_machines_clock_is_used() -> None:
    """And said to be no estimate."""
    estimate = VenueClock(clock := ManualClock(WALL_US))
    assert (estimate.now_us(), estimate.offset_s(), estimate.is_known) == (clock.wall_us, None, False)


@settings(max_examples=60, deadline=None)
@given(
    ahead_s=st.floats(-500, 500),
    replies=st.lists(st.tuples(st.floats(0.01, 30), st.floats(0.001, 1), st.floats(0.001, 1)), min_size=1, max_size=20),
)
def test_estimate_is_never_ahead_of_the_venue_and_comes_near(
    ahead_s: float, replies: list[tuple[float, float, float]]
) -> None:
    """However wrong this machine's clock is: at most a second and the way back behind, never before its time."""
    clock = ManualClock(WALL_US)
    estimate = VenueClock(clock)
    for pause, out, back in replies:
        clock.advance(pause)
        sent = clock.mono_s
        clock.advance(out)
        date_us = (clock.wall_us + int(ahead_s * 1e6)) // 1_000_000 * 1_000_000
        clock.advance(back)
        estimate.observe(date_us, sent, clock.mono_s)
        true_us = clock.wall_us + int(ahead_s * 1e6)
        assert true_us - (1.0 + back) * 1e6 - 10 <= estimate.now_us() <= true_us + 10
    assert estimate.is_known


def test_venue_whose_clock_was_set_is_followed_at_once() -> None:
    """A header far outside the interval starts the estimate anew."""
    clock = ManualClock(WALL_US)
    estimate = VenueClock(clock)
    estimate.observe(WALL_US, clock.mono_s, clock.mono_s)
    estimate.observe(WALL_US + 3600_000_000, clock.mono_s, clock.mono_s)
    assert estimate.offset_s() == pytest.approx(3600.0)


def test_machine_that_slept_knows_the_venues_time_no_more() -> None:
    """Its wall clock went on and its monotonic one did not."""
    clock = ManualClock(WALL_US)
    estimate = VenueClock(clock)
    estimate.observe(WALL_US, clock.mono_s, clock.mono_s)
    clock.advance(10.0)
    assert estimate.is_known
    clock.wall_us += 60_000_000
    assert not estimate.is_known


def test_system_clock_waits_as_long_as_it_was_asked_to() -> None:
    """A wait that runs out says so; its monotonic clock does not step back."""
    clock, condition = SystemClock(), threading.Condition()
    begun = clock.monotonic()
    with condition:
        assert not clock.wait(condition, 0.01)
    assert clock.monotonic() - begun >= 0.01


def test_deadline_of_a_block_ends_with_it_and_is_this_threads_alone() -> None:
    """Inside there is one, afterwards none, and another thread never has it."""
    clock = ManualClock(WALL_US)
    elsewhere: list[Deadline | None] = []
    with within(Deadline(clock, 5.0)):
        clock.advance(3.0)
        now = current_deadline()
        assert now is not None
        assert now.left_s() == 2.0
        thread = threading.Thread(target=lambda: elsewhere.append(current_deadline()))
        thread.start()
        thread.join()
    assert current_deadline() is None
    assert elsewhere == [None]
