"""How far a job is, also when it does not end well."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from backbone.coordinator.candles.jobs import CandleJob, Jobs
from backbone.errors import BackboneError, ClosedError, StoreError
from backbone.model import Priority, Span
from tests.coordinator.candles.world import (
    HOUR_US,
    MARKET,
    MINUTE,
    NOW,
    World,
)
from tests.storage.helpers import MAY

MONTH = Span(MAY - 9 * 24 * HOUR_US, MAY)


def job_of(world: World, span: Span = MONTH) -> CandleJob:
    return CandleJob(world.fetcher, world.clock, [MARKET], MINUTE, span, Priority.LOW)


def says_the_truth(world: World, job: CandleJob) -> None:
    """Its slots are those that the store covers, and up to its reached time there is no hole."""
    now = job.progress
    held = world.store.coverage(MARKET, MINUTE, job.span)
    assert now.done_slots == sum(MINUTE.count(span) for span in held)
    first = held.spans[0] if held else Span(job.span.start, job.span.start)
    assert now.reached_us == (first.end if first.start == job.span.start else job.span.start)
    assert now.rows == world.stored().table.num_rows


def test_job_of_garbage_alone_got_nowhere(tmp_path: Path) -> None:
    """A job whose every reply was refused has done nothing, reached nothing, and says what it asked."""
    world = World(tmp_path)
    world.venue.edits.extend([lambda rows: [{"no": "candle"}]] * 1000)
    job = job_of(world)
    job.advance()
    now = job.progress
    assert (now.state, now.done_slots, now.sections_done, now.rows) == ("incomplete", 0, 0, 0)
    assert now.reached_us == MONTH.start
    assert now.pages == world.asked() > 0
    says_the_truth(world, job)


@pytest.mark.parametrize("answered", [0, 1, 7, 30])
def test_job_cancelled_says_what_it_had(tmp_path: Path, answered: int) -> None:
    """After a cancel, slots and reached time are what is stored, also when pages in flight have arrived."""
    world = World(tmp_path)
    world.desk.at_once, world.desk.most = 3, answered
    job = job_of(world)
    job.advance()
    world.desk.run()
    job.cancel()
    assert job.state == "cancelled"
    says_the_truth(world, job)
    world.desk.most = None
    world.desk.run()
    says_the_truth(world, job)
    assert job.progress.pages == world.asked() == answered + 3
    assert job.progress.done_slots > 199 * answered, "a section's last page is a shorter one"


def test_job_of_a_closed_client_says_what_it_had(tmp_path: Path) -> None:
    """A close in the middle leaves a failed job at what was had."""
    world = World(tmp_path)
    world.desk.at_once, world.desk.most = 3, 10
    jobs = Jobs(world.fetcher, world.clock)
    job = jobs.start([MARKET], MINUTE, MONTH.start, MONTH.end, Priority.LOW)
    world.desk.run()
    jobs.close()
    world.fetcher.close()
    assert job.progress.state == "failed"
    assert job.progress.done_slots == 2000
    says_the_truth(world, job)


def test_job_with_a_hole_reached_its_beginning(tmp_path: Path) -> None:
    """A page that could not be had ends the reached time there, though what lies behind it was stored."""
    world = World(tmp_path)
    rows: list[list[Any]] = []

    def refuse(page: list[Any]) -> list[Any]:
        rows.append(page)
        return [{"no": "candle"}] if 10 <= len(rows) <= 12 else page

    world.venue.edits.extend([refuse] * 1000)
    job = job_of(world)
    job.advance()
    assert job.state == "incomplete"
    assert 0 < job.progress.done_slots < job.progress.total_slots
    says_the_truth(world, job)


def test_job_on_a_fast_clock_reached_the_venues_now(tmp_path: Path) -> None:
    """What is not closed on the venue's clock is neither had nor to be had."""
    world = World(tmp_path, ahead=2 * 3600)
    jobs = Jobs(world.fetcher, world.clock)
    job = jobs.start([MARKET], MINUTE, MINUTE.floor(NOW) - 10 * HOUR_US, None, Priority.LOW)
    now = job.progress
    assert now.state == "done"
    assert now.done_slots == now.total_slots == 600
    assert now.reached_us == MINUTE.floor(NOW)


def test_job_whose_disk_refused_reached_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that the disk did not take are not stored: the job failed, and counts none of them."""
    world = World(tmp_path)

    def refuse(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(world.store, "flush", refuse)
    job = job_of(world, Span(NOW - 5 * HOUR_US, NOW - HOUR_US))
    job.advance()
    now = job.progress
    assert (now.state, now.done_slots, now.sections_done, now.reached_us) == ("failed", 0, 0, job.span.start)


def test_job_that_is_over_is_not_cancelled_any_more(tmp_path: Path) -> None:
    """`cancel` on a job that ended, however it ended, changes nothing."""
    world = World(tmp_path)
    done = job_of(world, Span(NOW - 5 * HOUR_US, NOW - 3 * HOUR_US))
    done.advance()
    world.venue.edits.extend([lambda rows: [{"no": "candle"}]] * 1000)
    lost = job_of(world, Span(NOW - 15 * HOUR_US, NOW - 13 * HOUR_US))
    lost.advance()
    for job, state in ((done, "done"), (lost, "incomplete")):
        before = job.progress
        job.cancel()
        assert job.state == state
        assert job.progress.done_slots == before.done_slots


def test_job_cancelled_while_it_looks_for_the_listing_ends(tmp_path: Path) -> None:
    """The search for a market's beginning is cancelled like any page, and its request is counted."""
    world = World(tmp_path)
    world.desk.at_once, world.desk.most, world.venue.down = 2, 0, True
    job = job_of(world, Span(MAY - 300 * 24 * HOUR_US, MAY))
    job.advance()
    world.desk.run()
    asked = world.asked()
    assert asked > 0
    job.cancel()
    now = job.progress
    assert (now.state, now.done_slots, now.reached_us, now.pages) == ("cancelled", 0, job.span.start, asked)


def test_job_of_several_markets_reached_what_all_have(tmp_path: Path) -> None:
    """While it runs, the markets it came to count; once it ended, every market."""
    world = World(tmp_path)
    span = Span(NOW - 5 * HOUR_US, NOW - 3 * HOUR_US)
    job = CandleJob(world.fetcher, world.clock, [MARKET, "KRW-ETH"], MINUTE, span, Priority.LOW)
    job.advance()
    assert job.state == "incomplete", "the venue answers with another market's candles"
    assert job.progress.reached_us == span.start
    assert job.progress.done_slots == 120


def test_sections_come_soon_in_time_order_and_pages_are_always_on_their_way(tmp_path: Path) -> None:
    """The first is there after a few pages, none takes more than a tenth of all, and the queue never runs dry."""
    world = World(tmp_path)
    world.desk.at_once = 3
    job = job_of(world)
    ended: list[tuple[int, int]] = []
    under_way: list[int] = []
    finished, send = job._finished, world.desk._send

    def note_end(section: Any, pending: Any) -> None:
        ended.append((world.asked(), section.span.start))
        finished(section, pending)

    def note_sent() -> bool:
        sent = send()
        under_way.append(len(world.desk._sent))
        return sent

    job._finished, world.desk._send = note_end, note_sent  # type: ignore[method-assign]
    job.advance()
    world.desk.run()
    assert job.state == "done"
    asked, starts = [pages for pages, _ in ended], [start for _, start in ended]
    assert starts == sorted(starts)
    assert asked[0] <= 10, "a second at the legal rate"
    assert max(later - earlier for earlier, later in pairwise(asked)) <= world.asked() / 10 + 1
    assert set(under_way[:-4]) == {3}


def test_section_is_a_large_one_once_the_reader_is_behind(tmp_path: Path) -> None:
    """Many small frames are dear to a reader that has work waiting."""
    world = World(tmp_path)
    world.desk.at_once, world.desk.most = 3, 30
    job = job_of(world)
    job.advance()
    world.desk.run()
    reader = job.sections(ahead=100)
    lengths = [next(reader).table.num_rows]
    world.desk.most = None
    world.desk.run()
    lengths += [answer.table.num_rows for answer in reader]
    assert sum(lengths) == MINUTE.count(MONTH)
    assert lengths[0] <= 1_000
    assert max(lengths) > MINUTE.count(MONTH) / 6


def test_section_is_of_the_unit_under_which_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever joins sections can see it, also where all is quarantined between the reading of one and its delivery."""
    world = World(tmp_path)
    job = job_of(world, Span(MAY - HOUR_US, MAY))
    read = world.fetcher.answer

    def aside(*words: Any) -> Any:
        found = read(*words)
        world.store.upkeep.quarantine(MARKET)
        return found

    monkeypatch.setattr(world.fetcher, "answer", aside)
    job.advance()
    world.desk.run()
    first = next(job.sections(1))
    assert (first.table.num_rows, first.unit, world.store.generation(MARKET)) == (60, 0, 1)


def test_job_broken_off_by_an_error_of_the_machine_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends the cutting of sections fails the job, with its cause; it is never done with the rest not asked."""
    world = World(tmp_path)
    world.desk.at_once = 2
    job = job_of(world)
    job.advance()
    cut = world.fetcher.slots_for

    def slots_for(*_: Any) -> int:
        monkeypatch.setattr(world.fetcher, "slots_for", cut)
        raise MemoryError("no room")

    monkeypatch.setattr(world.fetcher, "slots_for", slots_for)
    with pytest.raises(MemoryError):
        world.desk.run()
    world.desk.run()
    assert job.state == "failed"
    with pytest.raises(BackboneError, match="no room"):
        job.wait(timeout_s=1)


def test_job_whose_last_section_is_in_runs_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waited for that section may close the client before the thread that brought it has noted the end."""
    world = World(tmp_path)
    world.desk.at_once, world.desk.most = 3, 0
    jobs = Jobs(world.fetcher, world.clock)
    job = job_of(world, Span(NOW - 5 * HOUR_US, NOW - 3 * HOUR_US))
    jobs._jobs["it",] = job
    job.advance()
    assert jobs.running() == [job]
    advance, seen = job.advance, []

    def late() -> None:
        if not seen and all(section.is_done for section in job._sections):
            seen.append(jobs.running())
            jobs.close()
        advance()

    monkeypatch.setattr(job, "advance", late)
    world.desk.most = None
    world.desk.run()
    assert seen == [[]]
    assert job.state == "done"


def test_job_that_its_reader_holds_back_ends_with_the_client(tmp_path: Path) -> None:
    """Between two sections nothing is under way; whoever waits for the job learns of the end all the same."""
    world = World(tmp_path)
    jobs = Jobs(world.fetcher, world.clock)
    job = job_of(world)
    jobs._jobs["it",] = job
    reader = job.sections(1)
    job._ahead = 1  # as the reader sets it before it begins
    job.advance()
    next(reader)
    assert job.state == "running"
    jobs.close()
    assert job.state == "failed"
    with pytest.raises(ClosedError):
        job.wait(timeout_s=1)
