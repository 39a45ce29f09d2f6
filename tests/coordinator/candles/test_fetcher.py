"""Candles on their way, without sockets: what is asked twice, and when a span without candles is quiet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from backbone.coordinator.candles.pending import Pending
from backbone.coordinator.candles.ranges import Range
from backbone.errors import (
    PayloadError,
    RateLimitedError,
    StoreError,
)
from backbone.locks import RUN_LOCK, RunLock
from backbone.model import Priority, Span
from tests.coordinator.candles.world import (
    DAY,
    HOUR_US,
    MARKET,
    MINUTE,
    MINUTE_US,
    NOW,
    SECOND,
    World,
    empty,
    half,
)
from tests.storage.helpers import MAY, opens


def test_candles_newest_are_asked_once_more_and_never_again(tmp_path: Path) -> None:
    """What had only just closed is asked a second time ten minutes later; what was settled is not."""
    world = World(tmp_path)
    start, end = NOW - HOUR_US, MINUTE.floor(NOW)
    world.candles(start, end)
    assert world.asked() == 1
    world.clock.advance(590)
    world.candles(start, end)
    assert world.asked() == 0
    world.clock.advance(20)
    world.candles(start, end)
    (again,) = world.venue.asks
    assert dict(again.query)["count"] == "200", "a page costs one permit whatever its length"
    assert world.asked() == 1
    for _ in range(3):
        world.clock.advance(3600)
        world.candles(start, end)
    assert world.asked() == 0
    assert len(world.store.revisions(MARKET)) == 0


@pytest.mark.parametrize("counts", [[20, 365], [20, 50, 100, 200, 365]])
def test_candles_of_growing_ranges_take_a_page_for_two_hundred(tmp_path: Path, counts: list[int]) -> None:
    """A page costs one permit whatever its length: a year of days takes two, whatever was asked before."""
    world = World(tmp_path, listed_us=MAY - 1000 * 24 * HOUR_US)
    for count in counts:
        assert world.candles(count=count, timeframe=DAY).table.num_rows == count
    assert world.asked() == 2


def test_candles_second_ask_outlives_the_client(tmp_path: Path) -> None:
    """That a candle is to be asked again is on disk with it."""
    world = World(tmp_path)
    world.candles(NOW - HOUR_US, MINUTE.floor(NOW))
    world.store.close()
    world.clock.advance(3600)
    world.open()
    world.asked()
    world.candles(NOW - HOUR_US, MINUTE.floor(NOW))
    assert world.asked() == 1
    world.store.close()
    world.open()
    world.candles(NOW - HOUR_US, MINUTE.floor(NOW))
    assert world.asked() == 0


def test_candles_late_correction_is_a_revision_and_the_newest_is_given(tmp_path: Path) -> None:
    """A difference at the second request is kept as a revision; nothing is overwritten without a trace."""
    world = World(tmp_path)
    last = MINUTE.floor(NOW) - MINUTE_US
    old = world.candles(NOW - HOUR_US, MINUTE.floor(NOW)).table.column("open")[-1].as_py()
    world.venue.shift[last] = 0.25
    world.clock.advance(700)
    answer = world.candles(NOW - HOUR_US, MINUTE.floor(NOW))
    assert answer.table.column("open")[-1].as_py() == old + 0.25
    (revision,) = world.store.revisions(MARKET, MINUTE).to_pylist()
    assert (revision["old_open"], revision["new_open"]) == (old, old + 0.25)
    assert int(revision["time"].timestamp() * 1e6) == last
    assert revision["source"] == "rest"
    assert world.truth(world.stored().table)


@pytest.mark.parametrize("asked", [Range(NOW - HOUR_US, MINUTE.floor(NOW), None), Range(None, MINUTE.floor(NOW), 200)])
def test_candles_second_ask_that_fails_takes_nothing_away(tmp_path: Path, asked: Range) -> None:
    """While the venue is down, what is held is the answer, whole, and the second ask stays due."""
    world = World(tmp_path)
    words = (asked.start_us, asked.end_us, asked.count)
    before = world.candles(*words)
    world.clock.advance(700)
    world.venue.down = True
    during = world.candles(*words)
    assert during.table.equals(before.table)
    assert not during.gaps
    world.venue.down = False
    world.asked()
    world.candles(*words)
    assert world.asked() == 1


@pytest.mark.parametrize("edit", [empty, half])
@pytest.mark.parametrize("times", [1, 2, 3, 5])
@pytest.mark.parametrize("held", [False, True])
def test_candles_left_out_by_mistake_never_become_quiet(
    tmp_path: Path, edit: Callable[[Any], Any], times: int, held: bool
) -> None:
    """Replies cut short by mistake, several in a row, cost an error at most: no candle is taken for quiet."""
    world = World(tmp_path)
    if held:
        world.candles(NOW - HOUR_US, MINUTE.floor(NOW))
    world.venue.edits.extend([edit] * times)
    start, end = NOW - 10 * HOUR_US, NOW - 4 * HOUR_US
    first = world.candles(start, end)
    assert first.table.num_rows + first.unknown == 360
    assert bool(first.causes) == bool(first.gaps)
    world.venue.edits.clear()
    second = world.candles(start, end)
    assert (second.table.num_rows, second.quiet, second.unknown) == (360, 0, 0)
    assert world.store.quiet_before(MARKET, MINUTE) == 0


@pytest.mark.parametrize("edit", [empty, half])
def test_candles_short_reply_against_held_rows_is_rejected(tmp_path: Path, edit: Callable[[Any], Any]) -> None:
    """Rows from before are held, so a reply that ends history after them is an error."""
    world = World(tmp_path)
    world.candles(NOW - 10 * HOUR_US, NOW - 9 * HOUR_US)
    world.venue.edits.extend([edit] * 50)
    answer = world.candles(NOW - 8 * HOUR_US, NOW - 7 * HOUR_US)
    assert answer.gaps
    assert all(isinstance(cause, PayloadError) for cause in answer.causes)
    world.venue.edits.clear()
    assert world.candles(NOW - 10 * HOUR_US, NOW - 7 * HOUR_US).table.num_rows == 180


def test_candles_beginning_of_history_is_learned_once(tmp_path: Path) -> None:
    """Before its listing a market is quiet for all time, and that is not asked again by any client."""
    listed = MINUTE.ceil(NOW - 3 * HOUR_US)
    world = World(tmp_path, listed_us=listed)
    answer = world.candles(NOW - 6 * HOUR_US, MINUTE.floor(NOW))
    assert opens(answer.table)[0] == listed
    assert (answer.unknown, answer.quiet) == (0, 180)
    assert world.store.quiet_before(MARKET, MINUTE) == listed
    world.store.close()
    world.open()
    world.asked()
    assert world.candles(MAY - 3000 * 24 * HOUR_US, MINUTE.floor(NOW)).table.equals(answer.table)
    assert world.asked() == 0


def test_candles_before_listing_on_an_empty_store_are_nothing(tmp_path: Path) -> None:
    """With no row held, a candle of the market is sought before an empty reply is accepted."""
    world = World(tmp_path)
    answer = world.candles(MAY - 3000 * 24 * HOUR_US, MAY - 2990 * 24 * HOUR_US)
    assert (answer.table.num_rows, answer.unknown) == (0, 0)
    assert world.asked() == 3
    world.candles(MAY - 3000 * 24 * HOUR_US, MAY - 2990 * 24 * HOUR_US)
    assert world.asked() == 0


def test_candles_of_a_market_listed_today_has_no_day_yet(tmp_path: Path) -> None:
    """A candle that is still forming shows that the venue answers: nothing was traded before it."""
    world = World(tmp_path, listed_us=NOW - HOUR_US)
    answer = world.candles(count=5, timeframe=DAY)
    assert (answer.table.num_rows, answer.unknown, answer.gaps) == (0, 0, ())
    assert world.stored(DAY).table.num_rows == 0


def test_candles_of_a_market_without_any_candle_are_an_error(tmp_path: Path) -> None:
    """An empty history of a market that the venue lists is not stored."""
    world = World(tmp_path, listed_us=NOW + HOUR_US)
    answer = world.candles(count=5)
    assert answer.gaps
    assert isinstance(answer.causes[0], PayloadError)
    assert not world.stored().covered


def test_seconds_that_the_venue_forgot_are_unknown_not_quiet(tmp_path: Path) -> None:
    """1-second candles end after about three months because the venue forgets them, not because nothing was traded."""
    day = 24 * HOUR_US
    world = World(tmp_path, listed_us=MAY - 1000 * day)
    world.venue.kept_us = 90 * day
    edge = NOW - 90 * day
    answer = world.candles(edge - 60_000_000, edge + 60_000_000, timeframe=SECOND)
    assert opens(answer.table)[0] == SECOND.ceil(edge)
    assert answer.unknown == 60
    assert answer.quiet == 0
    assert "three months" in str(answer.causes[0])
    assert not world.stored(SECOND).covered.touches(Span(0, SECOND.ceil(edge)))


def test_candles_page_reaches_the_disk_though_none_follows(tmp_path: Path) -> None:
    """A page is written 0.8 s after it came, also while the venue says nothing more."""
    world = World(tmp_path)
    pending = world.fetcher.begin(Pending(MARKET, MINUTE, Span(NOW - HOUR_US, MINUTE.floor(NOW)), Priority.LOW))
    assert pending.is_done
    assert world.store.pending_rows() == 200
    ((delay_s, job),) = world.desk.later
    assert delay_s == 0.8, "nobody else waits for it"
    job()
    assert world.store.pending_rows() == 0
    assert world.store.commits == 1


def test_candles_folder_is_made_when_the_first_page_has_come(tmp_path: Path) -> None:
    """Not in the write that the caller waits for; a market that has no candles gets none."""
    world, made = World(tmp_path), list[bool]()
    folder = tmp_path / "candles" / "exchange=upbit" / f"market={MARKET}"
    span = Span(NOW - HOUR_US, MINUTE.floor(NOW))
    world.venue.down = True
    world.fetcher.begin(Pending(MARKET, MINUTE, span, Priority.LOW))
    assert not folder.exists()
    world.venue.down = False
    pending = Pending(MARKET, MINUTE, span, Priority.LOW)
    pending.on_page = lambda: made.append(any(folder.rglob("period=*")))
    world.fetcher.begin(pending)
    assert made == [True]
    assert world.store.commits == 0


def test_candles_commit_gives_its_memory_back_and_what_is_held_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a commit Arrow's allocator is asked to return what it keeps for the thread; a warm call does not ask it."""
    world, returned = World(tmp_path), []

    class Pool:
        def release_unused(self) -> None:
            returned.append(world.store.pending_rows())

    monkeypatch.setattr(pa, "default_memory_pool", Pool)
    world.candles(count=60)
    assert returned == [0]
    world.candles(count=60)
    assert returned == [0]


def test_candles_disk_that_cannot_be_read_is_an_error_not_a_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails while a reply is taken in, whoever waits gets the error."""
    world = World(tmp_path, listed_us=NOW - 2 * HOUR_US)

    def refuse(*_: object) -> int:
        raise StoreError("cannot read")

    monkeypatch.setattr(world.store, "oldest", refuse)
    answer = world.candles(NOW - 6 * HOUR_US, MINUTE.floor(NOW))
    assert answer.gaps
    assert any(isinstance(cause, StoreError) for cause in answer.causes)


def test_seconds_are_not_given_up_because_of_a_wrong_clock(tmp_path: Path) -> None:
    """Before the venue's clock is known, no 1-second candle counts as too old to be had."""
    world = World(tmp_path, ahead=200 * 86_400)
    answer = world.candles(NOW - 60_000_000, NOW - 30_000_000, timeframe=SECOND)
    assert (answer.table.num_rows, answer.gaps) == (30, ())


def test_candles_ban_by_another_request_ends_the_wait(tmp_path: Path) -> None:
    """Whose pages were still queued when the venue blocked the address gets the error, and does not wait for ever."""
    world = World(tmp_path)
    world.desk.bans = RateLimitedError("blocked", banned=True)
    ended: list[Any] = []
    pending = world.fetcher.begin(
        Pending(
            MARKET, MINUTE, Span(MINUTE.floor(NOW) - HOUR_US, MINUTE.floor(NOW)), Priority.NORMAL, on_done=ended.append
        )
    )
    assert pending.is_done
    assert ended == [pending]
    answer = world.fetcher.answer(pending)
    assert answer.unknown == 60
    assert answer.causes == (world.desk.bans,)


def test_candles_whose_asking_is_interrupted_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was queued before the interrupt asks nothing, and nobody keeps others from it."""
    world = World(tmp_path)
    world.candles(NOW - HOUR_US, MINUTE.floor(NOW))
    world.desk.at_once, world.desk.most = 2, 0
    world.asked()
    submit = world.desk.submit

    def interrupted(*args: Any) -> None:
        monkeypatch.setattr(world.desk, "submit", submit)
        world.desk.submit(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(world.desk, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        world.fetcher.begin(Pending(MARKET, MINUTE, Span(NOW - 50 * HOUR_US, NOW - HOUR_US), Priority.NORMAL))
    world.desk.most = None
    world.desk.run()
    assert world.asked() == 0


def test_candles_that_arrive_while_one_looks_are_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and asking, another caller's pages may arrive: they are in the answer, and asked once."""
    world = World(tmp_path)
    start, end = NOW - 3 * HOUR_US, NOW - HOUR_US
    read = world.store.read
    overtakers = [lambda: world.candles(start, end)]

    def slowly(*args: Any) -> Any:
        stored = read(*args)
        if overtakers:
            overtakers.pop()()
        return stored

    monkeypatch.setattr(world.store, "read", slowly)
    answer = world.candles(start, end)
    assert world.asked() == 1
    assert answer.table.num_rows == 120
    assert not answer.gaps
    assert world.truth(answer.table)


# -- what an answer cost, and where it came from ----------------------------------------------------------------------


def test_answer_counts_every_page_that_was_sent_for_it(tmp_path: Path) -> None:
    """On a thin market the first reply proves the span while four more are under way: they were sent, and count."""
    world = World(tmp_path, listed_us=MAY - 400 * 24 * HOUR_US)
    world.venue.every = 60
    world.desk.at_once = 5
    span = Span(MINUTE.floor(NOW) - 7 * 24 * HOUR_US, MINUTE.floor(NOW))
    pending = world.fetcher.begin(Pending(MARKET, MINUTE, span, Priority.NORMAL))
    world.desk.most = 1
    world.desk.run()
    assert pending.is_done, "by one reply"
    answer = world.fetcher.answer(pending)
    assert (answer.table.num_rows, answer.unknown) == (7 * 24, 0)
    assert answer.pages == world.asked() == 5


def test_answers_that_share_pages_never_count_less_than_was_sent(tmp_path: Path) -> None:
    """A page that answers two calls counts for both; a failed one counts for whom it was asked."""
    world = World(tmp_path)
    world.desk.at_once = 3
    span = Span(MINUTE.floor(NOW) - 20 * HOUR_US, MINUTE.floor(NOW))
    pendings = [world.fetcher.begin(Pending(MARKET, MINUTE, span, lane)) for lane in (Priority.LOW, Priority.NORMAL)]
    world.venue.edits.append(lambda rows: [{"no": "candle"}])
    world.desk.run()
    counts = [world.fetcher.answer(pending).pages for pending in pendings]
    sent = world.asked()
    assert sent == 6
    assert all(0 < count <= sent for count in counts)
    assert sum(counts) >= sent


class Watched:
    """A lock that says when somebody begins to wait for it."""

    def __init__(self) -> None:
        self.lock, self.is_waited_for = threading.Lock(), threading.Event()

    def acquire(self, blocking: bool = True) -> bool:
        if blocking and self.lock.locked():
            self.is_waited_for.set()
        return self.lock.acquire(blocking)

    def release(self) -> None:
        self.lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def test_others_have_their_turn_while_a_page_waits_for_its_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The neighbour is on its way to a slow disk, and another market's page has nothing to do with either."""
    monkeypatch.setattr(RunLock, "PATIENCE_S", 5.0)
    world, keeping = World(tmp_path), Watched()
    world.candles(NOW - 3 * HOUR_US, NOW - 2 * HOUR_US)
    (series,) = world.fetcher._series.values()
    monkeypatch.setattr(series, "keeping", keeping)

    def fetch() -> None:
        with RUN_LOCK.running():
            rows.append(world.candles(NOW - 9 * HOUR_US, NOW - 8 * HOUR_US).table.num_rows)

    rows: list[int] = []
    thread = threading.Thread(target=fetch, daemon=True)
    with keeping:
        thread.start()
        assert keeping.is_waited_for.wait(20)
        with RUN_LOCK.running():
            assert RUN_LOCK.is_held
    thread.join(20)
    assert rows == [60]


def test_neighbours_do_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would hold a worker: on a slow disk none would be left for an urgent request."""
    world = World(tmp_path)
    world.candles(NOW - 3 * HOUR_US, NOW - 2 * HOUR_US)
    (series,) = world.fetcher._series.values()
    write, seen = world.store._committer.write, list[tuple[bool, int]]()

    def watched(chosen: list[Any]) -> None:
        if chosen:
            seen.append((series.keeping.locked(), world.stored().table.num_rows))
        write(chosen)

    monkeypatch.setattr(world.store._committer, "write", watched)
    monkeypatch.setattr(world.store._pending, "_group_commit_s", 0.0)
    world.candles(NOW - 9 * HOUR_US, NOW - 8 * HOUR_US)
    assert seen == [(False, 400)]


def test_commits_of_a_series_do_not_queue_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives while a slow disk writes is written after that: no worker waits for it meanwhile."""
    world, arranged = World(tmp_path), list[int]()
    world.candles(NOW - 3 * HOUR_US, NOW - 2 * HOUR_US)
    flush = world.store.flush

    def slow(*series: Any) -> None:
        monkeypatch.setattr(world.store, "flush", flush)
        world.desk.later.clear()
        world.candles(NOW - 9 * HOUR_US, NOW - 8 * HOUR_US)
        arranged.append(len(world.desk.later))
        flush(*series)

    ((_, commit),) = world.desk.later
    monkeypatch.setattr(world.store, "flush", slow)
    commit()
    assert (arranged, len(world.desk.later)) == ([0], 1)
    ((_, commit),) = world.desk.later
    world.desk.later.clear()
    commit()
    assert not world.desk.later
