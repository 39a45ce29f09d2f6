"""Ranges of candles: whose clock says what is closed, and where an answer came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backbone.clock import Deadline, within
from backbone.coordinator.candles.ranges import Range
from backbone.errors import (
    BackboneError,
)
from backbone.model import Priority, Span
from backbone.routing.rest import Reply
from backbone.routing.wire import Ask
from backbone.storage.coverage import SpanSet
from tests.coordinator.candles.world import (
    HOUR_US,
    MARKET,
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
    assert world.direct_requests == 1
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
def test_sources_show_what_was_held_before(tmp_path: Path, ahead_h: int) -> None:
    """Rows of an earlier client come from disk, and only the new ones from the venue, whatever the clock."""
    world = World(tmp_path, ahead=ahead_h * 3600)
    world.candles(NOW - 5 * HOUR_US, MINUTE.floor(NOW) - 100 * MINUTE_US)
    world.store.close()
    world.open()
    answer = world.candles(NOW - 3 * HOUR_US)
    rows = answer.table.num_rows
    assert answer.sources == {"disk": rows - 100, "rest": 100}


# -- an answer that ends now -----------------------------------------------------------------------------------------


def test_frozen_clocks_do_not_hide_the_newest(tmp_path: Path) -> None:
    """Both clocks of the machine stood still and the venue's went on ten minutes: one small request, then all of it."""
    world = World(tmp_path)
    world.candles(NOW - HOUR_US)
    world.clock.advance(4)  # the machine woke up four seconds ago
    world.venue._began = (world.clock.mono_s, NOW + 10 * MINUTE_US)
    world.asked()
    answer = world.candles(NOW - HOUR_US)
    assert opens(answer.table)[-1] == MINUTE.floor(NOW) + 9 * MINUTE_US
    assert world.truth(answer.table)
    assert world.asked() == answer.pages


def test_second_call_within_the_last_seconds_makes_no_request(tmp_path: Path) -> None:
    """A clock of a moment ago needs no other; a range that ends in the past needs none at all."""
    world = World(tmp_path)
    world.candles(NOW - HOUR_US)
    world.asked()
    world.candles(NOW - HOUR_US)
    world.clock.advance(9)
    world.candles(NOW - HOUR_US, MINUTE.floor(NOW) - MINUTE_US)
    assert world.asked() == 0


def test_forming_candle_comes_in_the_page_that_is_asked(tmp_path: Path) -> None:
    """One request for the newest closed candles and the one that forms."""
    world = World(tmp_path)
    (answer,) = world.ranges.collect([MARKET], MINUTE, Range(None, None, 50), Priority.NORMAL, forming=True)
    assert world.asked() == 1
    assert answer.table.num_rows == 50
    assert opens(answer.forming) == [MINUTE.floor(NOW)]
    assert world.stored().covered.spans[-1].end == MINUTE.floor(NOW)


def test_forming_candle_comes_with_the_page_that_reaches_to_it(tmp_path: Path) -> None:
    """Where only older candles are missing, the page is asked up to now: it has the forming one, and no other is."""
    newest = World(tmp_path / "other").candles(NOW - HOUR_US)
    world = World(tmp_path / "folder")
    world.store.put(MARKET, MINUTE, newest.table, SpanSet([newest.span]), now_us=NOW)
    (answer,) = world.ranges.collect([MARKET], MINUTE, Range(None, None, 150), Priority.NORMAL, forming=True)
    assert world.asked() == 1
    assert answer.table.num_rows == 150
    assert opens(answer.forming) == [MINUTE.floor(NOW)]
    assert world.truth(answer.table)


def test_forming_candle_is_kept_when_the_venue_says_another_time(tmp_path: Path) -> None:
    """A machine whose clock is a year ahead: the page that corrects it has the forming candle already."""
    world = World(tmp_path, ahead=365 * 24 * 3600)
    (answer,) = world.ranges.collect([MARKET], MINUTE, Range(None, None, 50), Priority.NORMAL, forming=True)
    assert world.asked() == 1
    assert answer.table.num_rows == 50
    assert len(opens(answer.forming)) == 1


@pytest.mark.parametrize("asked", [Range(None, None, 50), Range(NOW - HOUR_US, None, None)])
def test_candle_that_closes_while_the_newest_page_is_asked_is_in_the_answer(tmp_path: Path, asked: Range) -> None:
    """Between what was closed at the beginning and what forms on the page there is no hole."""
    world = World(tmp_path)
    world.estimate.observe(NOW // 1_000_000 * 1_000_000, world.clock.mono_s, world.clock.mono_s)
    reply = world.venue.answer

    def answer_late(ask: Ask) -> Any:
        world.clock.advance(40)
        return reply(ask)

    world.venue.answer = answer_late  # type: ignore[method-assign]
    (answer,) = world.ranges.collect([MARKET], MINUTE, asked, Priority.NORMAL, forming=True)
    assert world.asked() == 1
    assert answer.span.end == MINUTE.floor(NOW)
    assert opens(answer.forming) == [MINUTE.floor(NOW), MINUTE.floor(NOW) + MINUTE_US]


def test_refresh_asks_for_everything_again_and_records_what_differs(tmp_path: Path) -> None:
    """What the venue restated becomes a revision; what a call has just fetched is not asked twice."""
    world = World(tmp_path)
    span = (NOW - 5 * HOUR_US, MINUTE.floor(NOW))
    before = world.candles(*span)
    at = opens(before.table)[20]
    world.venue.shift[at] = 0.5
    world.clock.advance(900)
    world.candles(*span)
    assert opens(world.store.revisions(MARKET, MINUTE)) == []
    world.asked()
    (answer,) = world.ranges.collect([MARKET], MINUTE, Range(*span, None), Priority.NORMAL, refresh=True)
    assert world.asked() == 2
    assert opens(world.store.revisions(MARKET, MINUTE)) == [at]
    assert world.truth(answer.table)
    earlier = (span[0] - HOUR_US * 10, span[0] - HOUR_US * 8)
    world.ranges.collect([MARKET], MINUTE, Range(*earlier, None), Priority.NORMAL, refresh=True)
    assert world.asked() == 1


def test_refresh_that_fails_is_a_gap(tmp_path: Path) -> None:
    """The store's rows are no answer to a question about the venue's."""
    world = World(tmp_path)
    span = (NOW - HOUR_US, MINUTE.floor(NOW))
    world.candles(*span)
    world.venue.down = True
    (answer,) = world.ranges.collect([MARKET], MINUTE, Range(*span, None), Priority.NORMAL, refresh=True)
    assert SpanSet(answer.gaps) == SpanSet([Span(MINUTE.ceil(span[0]), span[1])])
    assert answer.causes


def test_newest_held_end_with_what_is_held(tmp_path: Path) -> None:
    """From the store alone, minutes later: the newest so many that are held, and what lies behind them."""
    world = World(tmp_path)
    world.candles(NOW - HOUR_US, MINUTE.floor(NOW))
    world.clock.advance(120)
    (answer,) = world.ranges.recall([MARKET], MINUTE, Range(None, None, 50), newest_held=True)
    assert (answer.table.num_rows, answer.gaps) == (50, ())
    assert answer.behind == Span(MINUTE.floor(NOW), MINUTE.floor(NOW) + 2 * MINUTE_US)
    assert world.ranges.recall([MARKET], MINUTE, Range(None, None, 50))[0].gaps


def test_deadline_gives_up_what_has_not_come_and_keeps_what_comes_later(tmp_path: Path) -> None:
    """The call ends at its deadline with the cause; a page in flight is stored when it arrives."""
    world = World(tmp_path)
    world.desk.most = 0  # sent, and not answered
    span = Range(NOW - HOUR_US, MINUTE.floor(NOW), None)
    began = world.clock.mono_s
    deadline = Deadline(world.clock, 0.5)
    with within(deadline):
        (answer,) = world.ranges.collect([MARKET], MINUTE, span, Priority.NORMAL)
    assert world.clock.mono_s - began <= 0.55
    assert answer.gaps
    assert "timeout of 0.5 s" in str(answer.causes[0])
    world.desk.most = None
    world.desk.run()
    assert world.stored().table.num_rows == 200
