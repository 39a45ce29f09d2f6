"""What is worth taking from the archive, and where a long job is cut for it. Taking it is tested over loopback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from backbone.clock import SystemClock
from backbone.coordinator.candles.archive import Archive
from backbone.errors import BackboneError, UnreachableError
from backbone.model import Priority, Span
from backbone.routing.archive import files_of
from backbone.routing.rest import Reply
from backbone.storage.coverage import SpanSet
from backbone.timeframe import parse_timeframe
from backbone.venues import VENUES

MINUTE = parse_timeframe("1m")
DAY_US = 86_400_000_000
MAY = 1_714_521_600_000_000  # 2024-05-01T00:00:00Z, a month of 31 days; June has 30
JUNE, JULY = MAY + 31 * DAY_US, MAY + 61 * DAY_US


class Venue:
    """A clock of the venue that a test sets."""

    def __init__(self, now_us: int) -> None:
        self._now_us = now_us

    def now_us(self) -> int:
        return self._now_us


def archive(now_us: int = JULY + 10 * DAY_US, sync_clock: Any = lambda: None) -> Archive:
    nothing: Any = None
    venue: Any = Venue(now_us)
    return Archive(nothing, nothing, venue, SystemClock(), sync_clock=sync_clock, retention=VENUES["upbit"].retention)


def names(found: Archive, *gaps: tuple[int, int], timeframe: str = "1m") -> list[str]:
    spans = SpanSet(Span(*gap) for gap in gaps)
    files = found.files("KRW-BTC", parse_timeframe(timeframe), spans)
    return [str(file).removeprefix("KRW-BTC_candle-").removesuffix(".zip") for file in files]


def test_files_are_months_where_they_lie_whole_or_mostly_in_a_gap() -> None:
    """Two months in one gap are two files; a month of which enough is missing is taken for that part."""
    assert names(archive(), (MAY, JULY)) == ["1m_202405", "1m_202406"]
    assert names(archive(), (MAY + 9 * DAY_US, JULY)) == ["1m_202405", "1m_202406"]
    assert names(archive(), (MAY, MAY + DAY_US), (MAY + 5 * DAY_US, MAY + 6 * DAY_US)) == ["1m_202405"]


def test_files_are_days_where_the_month_is_not_over() -> None:
    """The running month is taken by the days that may be there: from 10:00 Korean time of the next day on."""
    now = JULY + 3 * DAY_US + 3_600_000_000 - 1
    assert names(archive(now + 1), (JULY, now))[-1] == "1m_20240703"
    assert names(archive(now), (JULY, now)) == ["1m_20240701", "1m_20240702"]
    assert names(archive(now), (JUNE, now)) == ["1m_202406", "1m_20240701", "1m_20240702"]


def test_files_that_cost_more_than_pages_are_left() -> None:
    """Some hundred candles, and timeframes whose month is a few pages, are not worth a file."""
    assert names(archive(), (MAY, MAY + 799 * 60_000_000)) == []
    assert names(archive(), (MAY, MAY + 800 * 60_000_000)) == ["1m_202405"]
    assert names(archive(), (MAY, JULY), timeframe="1h") == []
    assert names(archive(), (MAY, JULY), timeframe="1d") == []


def test_files_need_the_venues_clock() -> None:
    """Where the venue cannot be reached, nothing is taken; a plan makes no request and goes by the clock it has."""

    def unreachable() -> None:
        raise UnreachableError("unreachable")

    assert names(archive(sync_clock=unreachable), (MAY, JULY)) == []
    gaps = SpanSet([Span(MAY, JULY)])
    assert len(archive(sync_clock=unreachable).files("KRW-BTC", MINUTE, gaps, may_ask=False)) == 2


@pytest.mark.parametrize(
    ("start", "end"),
    [(MAY, JUNE), (MAY + 9 * DAY_US, JUNE), (JULY, JULY + DAY_US), (JUNE - 60_000_000, JUNE)],
)
def test_section_ends_with_its_file(start: int, end: int) -> None:
    """A section of a job ends where the file that it begins in ends, or where the next one begins."""
    found = archive().section_end("KRW-BTC", MINUTE, Span(start, JULY + 9 * DAY_US), start + 10_000 * 60_000_000)
    assert found == end


def test_section_without_a_file_is_left_as_it_was() -> None:
    """Where the archive has nothing, the job cuts as it always does."""
    assert archive().section_end("KRW-BTC", parse_timeframe("1d"), Span(MAY, JULY), JUNE) == JUNE


def test_fault_in_what_takes_an_answer_gives_every_file_back_to_rest() -> None:
    """Files share the answer that they wait for. Where taking it breaks down, the queue calls again with that error."""
    arrived: list[Callable[[Any, Any], None]] = []

    class Queue:
        def submit(self, _group: str, _priority: Priority, _bind: Any, done: Any) -> None:
            arrived.append(done)

    queue, nothing = Queue(), None
    venue: Any = Venue(JULY + 10 * DAY_US)
    parts: Any = queue, nothing
    found = Archive(*parts, venue, SystemClock(), sync_clock=lambda: None, retention=VENUES["upbit"].retention)
    outcomes: list[Any] = []
    for file in files_of("KRW-BTC", MINUTE, Span(MAY, JULY), months=True):
        found.fetch(file, Priority.LOW, outcomes.append)
    (done,) = arrived

    class Broken:
        def __contains__(self, _: object) -> bool:
            raise MemoryError("no room")

    with pytest.raises(MemoryError):
        done(None, Reply(Broken(), None, None, None, 0.0, 0.0, 0))
    done(None, BackboneError("an error inside backbone"))
    assert [type(outcome) for outcome in outcomes] == [BackboneError, BackboneError]
