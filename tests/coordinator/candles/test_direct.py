"""Candles past the store: the critical lane, the forming candle, what an audit compares with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backbone.coordinator.candles.direct import DirectCandles
from backbone.coordinator.candles.ranges import Range
from backbone.errors import InputError, PayloadError
from backbone.model import Priority, Span
from backbone.routing.wire import Ask
from tests.coordinator.candles.world import HOUR_US, MARKET, MINUTE, MINUTE_US, NOW, SECOND, World, empty, half
from tests.storage.helpers import opens

LAST = MINUTE.floor(NOW)


class Lane:
    """A world's venue, asked directly."""

    def __init__(self, folder: Path, **venue: Any) -> None:
        self.world = World(folder, **venue)
        self.world.estimate.observe(NOW // 1_000_000 * 1_000_000, 1000.0, 1000.0)
        self.open()

    def open(self) -> None:
        self.direct = DirectCandles(self.world.request, self.world.ranges, self.world.reader, lambda *_: None)

    def candles(self, start: int | None = None, end: int | None = None, count: int | None = None) -> Any:
        return self.direct.candles(MARKET, MINUTE, Range(start, end, count))


@pytest.fixture
def lane(tmp_path: Path) -> Lane:
    return Lane(tmp_path)


@pytest.mark.parametrize(
    ("asked", "rows", "requests"),
    [((LAST - 5 * HOUR_US, None, None), 300, 2), ((None, None, 300), 300, 2), ((LAST - 5 * HOUR_US, None, 7), 7, 1)],
)
def test_candles_are_the_venues_and_not_stored(lane: Lane, asked: Any, rows: int, requests: int) -> None:
    """A range, the newest so many, the first so many: full pages, only what is closed, nothing on disk."""
    answer = lane.candles(*asked)
    assert answer.table.num_rows == rows
    assert (answer.quiet, answer.gaps, answer.pages) == (0, (), requests)
    assert lane.world.truth(answer.table)
    assert lane.world.stored().table.num_rows == 0


@pytest.mark.parametrize("edit", [empty, half])
@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize(
    "asked", [(LAST - 5 * HOUR_US, LAST, None), (None, None, 300), (LAST - 5 * HOUR_US, None, 250)]
)
def test_short_reply_never_counts_as_no_trades(lane: Lane, edit: Any, after: int, times: int, asked: Any) -> None:
    """Short or empty replies by mistake: all candles, or an error; and all again afterwards."""
    whole = lane.candles(*asked).table
    lane.world.venue.edits.extend([lambda rows: rows] * after + [edit] * times)
    try:
        answer = lane.candles(*asked)
    except PayloadError:
        assert times > 1
    else:
        assert answer.table.equals(whole)
        assert answer.quiet == 0
    lane.world.venue.edits.clear()
    assert lane.candles(*asked).table.equals(whole)


@pytest.mark.parametrize("edit", [empty, half])
def test_audit_takes_no_short_reply_for_the_venues_word(lane: Lane, edit: Any) -> None:
    """What an audit compares with is whole, or the audit ends with an error."""
    span = Span(LAST - 5 * HOUR_US, LAST)
    lane.world.venue.edits.append(edit)
    assert lane.direct.unstored(MARKET, MINUTE, span, Priority.LOW).num_rows == 300
    lane.world.venue.edits.extend([edit] * 50)
    try:  # halves of pages, each with the known candle, are the whole in the end
        assert lane.direct.unstored(MARKET, MINUTE, span, Priority.LOW).num_rows == 300
    except PayloadError:
        assert edit is empty


def test_beginning_of_history_costs_one_request_more(tmp_path: Path) -> None:
    """A market listed an hour ago: its candles, quiet before, and one request that says so again."""
    lane = Lane(tmp_path, listed_us=LAST - HOUR_US)
    answer = lane.candles(LAST - 5 * HOUR_US, LAST)
    assert (answer.table.num_rows, answer.quiet, answer.pages) == (60, 240, 2)


def test_candles_that_are_held_cost_no_request(lane: Lane) -> None:
    """Memory and disk answer the critical lane as well."""
    lane.world.candles(LAST - HOUR_US, LAST)
    lane.world.asked()
    assert lane.candles(LAST - HOUR_US, LAST).table.num_rows == 60
    assert lane.world.asked() == 0


@pytest.mark.parametrize("asked", [(None, None, 300), (LAST - 5 * HOUR_US, None, None), (None, LAST + HOUR_US, 300)])
def test_candle_that_closes_between_two_pages_is_behind_the_answer(lane: Lane, asked: Any) -> None:
    """The first page shows it while it forms: the answer ends before it, and does not count it as quiet."""
    reply = lane.world.venue.answer

    def answer_late(ask: Ask) -> Any:
        lane.world.clock.advance(40 if len(lane.world.venue.asks) == 1 else 0)
        return reply(ask)

    lane.world.venue.answer = answer_late  # type: ignore[method-assign]
    answer = lane.candles(*asked)
    assert answer.pages == 2
    assert (answer.span.end, opens(answer.table)[-1], answer.quiet) == (LAST, LAST - MINUTE_US, 0)
    assert asked[1] is not None or opens(answer.forming) == [LAST]


def test_forming_is_what_is_not_closed(lane: Lane) -> None:
    """From the first candle that is not closed up to the bound, from REST where no stream has it."""
    table, source = lane.direct.forming(MARKET, MINUTE, LAST, None, Priority.HIGH)
    assert (opens(table), source) == ([LAST], "rest")
    assert lane.direct.forming(MARKET, MINUTE, LAST, LAST, Priority.HIGH)[0].num_rows == 0


def one(rows: list[Any]) -> list[Any]:
    """The newest row alone."""
    return rows[:1]


@pytest.mark.parametrize("edit", [empty, one])
def test_forming_takes_no_short_reply_for_no_trades(lane: Lane, edit: Any) -> None:
    """In the seconds of grace two candles are not closed: a reply that lacks one of them, or both, is asked again."""
    after = LAST - MINUTE_US
    whole = lane.direct.forming(MARKET, MINUTE, after, None, Priority.HIGH)[0]
    assert opens(whole) == [after, LAST]
    lane.world.asked()
    lane.direct.forming(MARKET, MINUTE, after, None, Priority.HIGH)
    assert lane.world.asked() == 1, "a full page needs no second reply"
    lane.world.venue.edits.append(edit)
    assert lane.direct.forming(MARKET, MINUTE, after, None, Priority.HIGH)[0].equals(whole)


def test_forming_takes_no_empty_reply_for_no_trades(lane: Lane) -> None:
    """Where one candle forms, the reply that finds it again is not its only witness: it is in the answer."""
    lane.world.venue.edits.append(empty)
    table, _ = lane.direct.forming(MARKET, MINUTE, LAST, None, Priority.HIGH)
    assert opens(table) == [LAST]
    assert lane.world.asked() == 3


@pytest.mark.parametrize("edit", [empty])
def test_critical_call_that_is_held_takes_no_short_page_for_the_forming_candles(lane: Lane, edit: Any) -> None:
    """What is held is answered; what a short page does not show is left open, not said to be nothing."""
    lane.world.candles(LAST - HOUR_US, LAST)
    lane.world.clock.advance(11)  # the venue's time is not of the last seconds
    lane.world.asked()
    whole = lane.candles(LAST - HOUR_US)
    assert (opens(whole.forming), lane.world.asked()) == ([LAST], 1)
    lane.world.clock.advance(11)
    lane.world.venue.edits.append(edit)
    answer = lane.candles(LAST - HOUR_US)
    assert answer.gaps == ()
    assert answer.forming is None


def test_unstored_is_the_whole_span(lane: Lane) -> None:
    """What an audit compares with begins and ends where it is asked to."""
    span = Span(LAST - 5 * HOUR_US, LAST - MINUTE_US)
    found = opens(lane.direct.unstored(MARKET, MINUTE, span, Priority.LOW))
    assert (found[0], found[-1], len(found)) == (span.start, span.end - MINUTE_US, 299)


@pytest.mark.parametrize("is_known", [True, False], ids=["clock known", "first reply"])
@pytest.mark.parametrize(
    ("asked", "rows", "unknown"),
    [((-60, 60, None), 60, 60), ((-600, -300, None), 0, 300), ((-60, None, 20), 20, 60), ((None, 60, 100), 60, 40)],
)
def test_seconds_that_the_venue_forgot_are_unknown_not_quiet(
    tmp_path: Path, asked: Any, rows: int, unknown: int, is_known: bool
) -> None:
    """A range, one that is all forgotten, the first and the newest so many: what is gone is a gap with its cause."""
    lane = Lane(tmp_path, listed_us=NOW - 24_000 * HOUR_US)
    if not is_known:
        lane.world.open()
        lane.open()
    lane.world.venue.kept_us = 92 * 24 * HOUR_US
    edge = SECOND.ceil(NOW - lane.world.venue.kept_us)
    start, end, count = asked
    times = [None if at is None else edge + at * 1_000_000 for at in (start, end)]
    answer = lane.direct.candles(MARKET, SECOND, Range(*times, count))
    assert answer.table.num_rows == rows
    assert answer.quiet == 0
    assert answer.gaps
    assert answer.gaps[-1].end <= edge or rows == 0
    assert answer.unknown == unknown
    assert "three months" in str(answer.causes[0])


def test_candles_that_the_venue_forgot_are_compared_with_nothing(tmp_path: Path) -> None:
    """An audit that got no rows because they are gone would report the stored ones."""
    lane = Lane(tmp_path)
    lane.world.venue.kept_us = 92 * 24 * HOUR_US
    edge = SECOND.ceil(NOW - lane.world.venue.kept_us)
    with pytest.raises(InputError, match="three months"):
        lane.direct.unstored(MARKET, SECOND, Span(edge - 60_000_000, edge), Priority.LOW)
