"""Two clients on one folder, without sockets: who asks what, and what is found where it was not asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from backbone.coordinator.candles import sharing
from backbone.coordinator.candles.pending import Pending
from backbone.coordinator.candles.planner import SeriesPlan
from backbone.coordinator.candles.sharing import Series
from backbone.model import Priority, Span
from backbone.storage.claims import CLAIM_S, Others
from backbone.storage.files import LocalFiles, Version
from tests.coordinator.candles.world import MARKET, MINUTE, MINUTE_US, NOW, World
from tests.storage.helpers import candles

END = MINUTE.floor(NOW) - 300 * MINUTE_US
PAGES = 8
BLOCK = 1 + sharing._AHEAD  # pages that are claimed at once
SPAN = Span(END - PAGES * 200 * MINUTE_US, END)


class Pair:
    """Two clients; the first has two pages in flight and stands still."""

    def __init__(self, folder: Path) -> None:
        self.first, self.second = World(folder), World(folder)
        self.second.clock = self.second.venue.clock = self.first.clock
        self.second.open()
        for one in (self.first, self.second):
            one.candles(NOW - 60 * MINUTE_US, MINUTE.floor(NOW))  # the venue's clock is known
            one.asked()
        self.first.desk.at_once, self.first.desk.most = 2, 0

    def begin(self, world: World, priority: Priority = Priority.NORMAL, **options: bool) -> Pending:
        pending = world.fetcher.begin(Pending(MARKET, MINUTE, SPAN, priority, **options))
        world.desk.run()
        return pending

    def due(self, world: World) -> None:
        """Run what is to be done later."""
        jobs, world.desk.later = world.desk.later, []
        for _, job in jobs:
            job()
        world.desk.run()


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def test_each_page_is_asked_by_one_of_two(pair: Pair) -> None:
    """The second asks what the first has not claimed; then each finds the other's on disk."""
    mine = pair.begin(pair.first)
    theirs = pair.begin(pair.second)
    assert (pair.first.asked(), pair.second.asked()) == (2, PAGES - BLOCK)
    assert not theirs.is_done
    pair.first.desk.most = None
    pair.first.desk.run()
    pair.due(pair.second)
    assert not theirs.is_done, "what has arrived is not on disk yet"
    pair.due(pair.first)
    pair.due(pair.second)
    assert theirs.is_done
    assert pair.second.truth(pair.second.fetcher.answer(theirs).table)
    pair.due(pair.first)
    assert mine.is_done
    assert pair.first.fetcher.answer(mine).table.equals(pair.second.fetcher.answer(theirs).table)
    assert (pair.first.asked(), pair.second.asked()) == (BLOCK - 2, 0)
    assert (mine.pages, theirs.pages) == (BLOCK, PAGES - BLOCK)
    assert pair.second.fetcher.answer(theirs).sources == {"rest": 200 * (PAGES - BLOCK), "memory": 200 * BLOCK}


def test_pages_are_claimed_several_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is changed once for five pages while nobody else comes, and once when they are on disk."""
    world = World(tmp_path)
    amended: list[str] = []
    amend = LocalFiles.amend

    def counted(self: LocalFiles, key: str, change: Callable[[bytes], bytes]) -> Version | None:
        amended.append(key)
        return amend(self, key, change)

    world.candles(NOW - 60 * MINUTE_US, MINUTE.floor(NOW))
    stat = LocalFiles.stat

    def unlocked(self: LocalFiles, key: str) -> Version | None:
        if key.endswith(".claims"):
            assert not world.fetcher._series[MARKET, MINUTE.name].changed._is_owned(), "nobody waits for a disk"
        return stat(self, key)

    monkeypatch.setattr(LocalFiles, "stat", unlocked)
    monkeypatch.setattr(LocalFiles, "amend", counted)
    world.asked()
    pending = world.fetcher.begin(Pending(MARKET, MINUTE, Span(END - 3 * BLOCK * 200 * MINUTE_US, END), Priority.LOW))
    world.desk.run()
    pages = world.asked()
    assert pending.is_done
    assert pages == 3 * BLOCK
    world.fetcher.flush([MARKET], MINUTE)
    assert len(amended) == 3 + 1


def test_pages_that_others_wait_for_are_written_sooner(pair: Pair) -> None:
    """A page waits 0.8 s for the next ones, a tenth from when somebody else fetches the same candles; what was
    written then is not written again."""
    pair.first.desk.most = 1
    pair.begin(pair.first)
    pair.begin(pair.second)
    pair.first.desk.most = 2
    pair.first.desk.run()
    first, second = ((delay_s, job) for delay_s, job in pair.first.desk.later if delay_s >= 0.1)
    assert (first[0], second[0]) == (0.8, 0.1)
    second[1]()
    assert pair.first.store.pending_rows() == 0
    pair.first.store.put(MARKET, MINUTE, candles([END]), Span(END, END + MINUTE_US), now_us=NOW)
    first[1]()
    assert pair.first.store.pending_rows() == 1, "it has a commit of its own"


def test_pages_that_fail_elsewhere_are_asked_here(pair: Pair) -> None:
    """A client that gives a page up gives its claim up, and what it had claimed ahead."""
    mine = pair.begin(pair.first)
    theirs = pair.begin(pair.second)
    pair.second.asked()
    pair.first.fetcher.abandon(mine, TimeoutError())
    pair.first.venue.down = True
    pair.first.desk.at_once = 1
    pair.first.desk._sent = type(pair.first.desk._sent)(
        (done, ask, pair.first.venue.answer(ask)) for done, ask, _ in pair.first.desk._sent
    )
    pair.first.desk.most = None
    pair.first.desk.run()
    pair.due(pair.second)
    assert theirs.is_done
    assert pair.second.asked() == BLOCK


def test_pages_of_a_client_that_stands_still_are_asked_in_the_end(pair: Pair) -> None:
    """Its claims count for some seconds."""
    pair.begin(pair.first)
    theirs = pair.begin(pair.second)
    pair.second.asked()
    pair.due(pair.second)
    assert pair.second.asked() == 0
    pair.first.clock.advance(CLAIM_S)
    pair.due(pair.second)
    assert pair.second.asked() == BLOCK
    assert theirs.is_done


def test_fetch_of_what_is_known_to_be_claimed_looks_again(pair: Pair) -> None:
    """Nothing is queued for it, so nothing but another look could wake it."""
    pair.begin(pair.first)
    theirs = pair.begin(pair.second)
    pair.second.fetcher.release(theirs)
    pair.due(pair.second)
    assert not pair.second.desk.later
    again = pair.second.fetcher.begin(Pending(MARKET, MINUTE, Span(END - 200 * MINUTE_US, END), Priority.NORMAL))
    assert pair.second.desk.later
    assert not again.is_done


def test_claims_that_ended_are_remembered_until_somebody_looked(pair: Pair) -> None:
    """Also those whose end was seen when another page was chosen: who waits for them has nothing in the queue."""
    claims = pair.first.store.claims(MARKET, MINUTE)
    series = Series(MARKET, MINUTE, SeriesPlan(MINUTE, 200), claims)
    claims.take(0, lambda _: SPAN)
    others = pair.second.store.claims(MARKET, MINUTE).look()
    series.see_locked(others)
    series.see_locked(Others())
    series.see_locked(Others())
    assert (series.others.claims, series.ended) == ((), [SPAN])


@pytest.mark.parametrize(
    ("priority", "options", "asked"),
    [
        (Priority.LOW, {}, PAGES - BLOCK),
        (Priority.HIGH, {}, PAGES),
        (Priority.CRITICAL, {}, PAGES),
        (Priority.LOW, {"refresh": True}, PAGES),
    ],
)
def test_urgent_work_and_second_requests_wait_for_nobody(
    pair: Pair, priority: Priority, options: dict[str, bool], asked: int
) -> None:
    """The first fetches at normal priority."""
    pair.begin(pair.first)
    pending = pair.begin(pair.second, priority, **options)
    assert pair.second.asked() == asked
    assert pending.is_done is (asked == PAGES)


def test_what_others_stored_meanwhile_is_not_asked(pair: Pair) -> None:
    """Rows that came to the folder after the fetch began are looked for before each page."""
    pair.second.desk.most = 0
    theirs = pair.begin(pair.second)
    pair.first.desk.at_once, pair.first.desk.most = 1, None
    mine = pair.begin(pair.first, Priority.HIGH)
    assert mine.is_done
    pair.first.fetcher.flush([MARKET], MINUTE)
    pair.second.desk.most = None
    pair.second.desk.run()
    pair.due(pair.second)
    assert theirs.is_done
    assert pair.second.asked() == 1, "the one that was on its way"
    assert pair.second.truth(pair.second.fetcher.answer(theirs).table)
