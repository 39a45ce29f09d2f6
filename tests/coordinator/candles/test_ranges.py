"""Ranges of candles: whose clock says what is closed, and where an answer came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from backbone.coordinator.candles.ranges import Range
from backbone.errors import (
    BackboneError,
)
from backbone.routing.rest import Reply
from backbone.routing.wire import Ask
from tests.coordinator.candles.world import (
    HOUR_US,
    MINUTE,
    MINUTE_US,
    NOW,
    Venue,
    World,
)
from tests.storage.helpers import MAY, opens


@pytest.mark.parametrize("ahead_h", [-26, -3, 0, 3, 26, 24 * 400])
@pytest.mark.parametrize("asked", [Range(None, None, 5), Range(NOW - HOUR_US, None, None)])
def test_candles_machine_clock_hours_off_stores_nothing_forming(tmp_path: Path, ahead_h: int, asked: Range) -> None:
    """The newest closed candles come, and only closed ones are kept, however the machine's clock stands."""
    world = World(tmp_path, ahead=ahead_h * 3600)
    answer = world.candles(asked.start_us, asked.end_us, asked.count)
    assert opens(answer.table)[-1] == MINUTE.floor(NOW) - MINUTE_US
    assert not answer.gaps
    assert world.truth(world.stored().table)
    assert world.stored().covered.spans[-1].end <= MINUTE.floor(NOW)


def test_candles_machine_clock_that_steps_back_changes_nothing(tmp_path: Path) -> None:
    """A wall clock set back by hours between two calls neither hides new candles nor stores a forming one."""
    world = World(tmp_path)
    world.candles(count=5)
    world.clock.advance(180)
    world.clock.wall_us -= 5 * HOUR_US
    answer = world.candles(count=5)
    assert opens(answer.table)[-1] == MINUTE.floor(NOW) + 2 * MINUTE_US
    assert world.truth(world.stored().table)


@pytest.mark.parametrize("asleep_s", [7200.0, 86_400.0])
def test_candles_after_a_night_asleep_are_the_newest(tmp_path: Path, asleep_s: float) -> None:
    """A machine that slept counts fewer seconds than passed: the clock is synchronised before "now" counts."""
    world = World(tmp_path)
    world.candles(count=5)
    world.clock.wall_us += int(asleep_s * 1e6)  # while monotonic time stood still
    world.venue._began = (world.clock.mono_s, NOW + int(asleep_s * 1e6))
    answer = world.candles(count=5)
    assert opens(answer.table)[-1] == MINUTE.floor(world.venue.now_us()) - MINUTE_US
    assert world.truth(world.stored().table)


def test_candles_all_held_on_a_slow_clock_are_not_taken_for_the_newest(tmp_path: Path) -> None:
    """A new client whose clock is behind holds all up to its own now: it asks what time it is before it says so."""
    world = World(tmp_path)
    world.candles(NOW - 10 * MINUTE_US, NOW - 5 * MINUTE_US)
    world.store.flush()
    world.clock.wall_us = NOW - 5 * MINUTE_US + 4_000_000
    world.open()
    world.asked()
    answer = world.candles(NOW - 10 * MINUTE_US)
    assert world.hearings == 1
    assert opens(answer.table)[-1] == MINUTE.floor(NOW) - MINUTE_US


def test_candles_just_closed_wait_for_the_grace(tmp_path: Path) -> None:
    """A candle counts as closed some seconds after its end, not at once."""
    world = World(tmp_path, now_us=MINUTE.floor(NOW) + 2_000_000)
    assert opens(world.candles(count=3).table)[-1] == MINUTE.floor(NOW) - 2 * MINUTE_US
    world.clock.advance(3)
    assert opens(world.candles(count=3).table)[-1] == MINUTE.floor(NOW) - MINUTE_US


def test_answer_that_fails_late_counts_what_it_took_before(tmp_path: Path) -> None:
    """The newest so many of a thin market take several looks: when the last one fails, the earlier ones count too."""
    world = World(tmp_path)
    world.venue.every = 7
    asked = 0

    def fail_later(ask: Ask) -> Reply | BackboneError:
        nonlocal asked
        asked += 1
        world.venue.down = asked > 1
        return Venue.answer(world.venue, ask)

    world.venue.answer = fail_later  # type: ignore[method-assign]
    answer = world.candles(None, MINUTE.floor(NOW), 400)
    assert answer.gaps
    assert answer.pages == world.asked() > 1
    assert answer.sources == {"rest": answer.table.num_rows}


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("ahead_h", [-26, -1, 0, 1, 26])
@pytest.mark.parametrize(
    "asked", [Range(None, None, 3), Range(NOW - 5 * HOUR_US, None, None), Range(NOW - 5 * HOUR_US, None, 9)]
)
def test_sources_of_a_first_call_are_the_venue(tmp_path: Path, ahead_h: int, every: int, asked: Range) -> None:
    """What a call on an empty store brings was fetched by it, whatever the clock, and however often it looked."""
    world = World(tmp_path, ahead=ahead_h * 3600, listed_us=MAY - 100 * 24 * HOUR_US)
    world.venue.every = every
    answer = world.candles(asked.start_us, asked.end_us, asked.count)
    assert answer.table.num_rows > 0
    assert answer.sources == {"rest": answer.table.num_rows}
    assert answer.pages == world.asked()


@pytest.mark.parametrize("ahead_h", [-1, 0, 1])
def test_sources_tell_what_was_held_before(tmp_path: Path, ahead_h: int) -> None:
    """Rows of an earlier client come from disk, and only the new ones from the venue, whatever the clock."""
    world = World(tmp_path, ahead=ahead_h * 3600)
    world.candles(NOW - 5 * HOUR_US, MINUTE.floor(NOW) - 100 * MINUTE_US)
    world.store.close()
    world.open()
    answer = world.candles(NOW - 3 * HOUR_US)
    rows = answer.table.num_rows
    assert answer.sources == {"disk": rows - 100, "rest": 100}
