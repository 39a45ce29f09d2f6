"""Candles over time, without sockets: whose clock counts, what is asked twice, and what silence is believed."""

from __future__ import annotations

import datetime as dt
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from backbone.clock import VenueClock
from backbone.coordinator.candles.fetcher import CandleAnswer, CandleFetcher, incomplete
from backbone.coordinator.candles.jobs import CandleJob, Jobs
from backbone.coordinator.candles.ranges import CandleRanges, Range
from backbone.errors import (
    BackboneError,
    CorruptPartitionError,
    PayloadError,
    RateLimitedError,
    StoreError,
    UnreachableError,
)
from backbone.model import Priority, Span
from backbone.routing.rest import Reply
from backbone.routing.wire import Ask
from backbone.settings import resolve
from backbone.storage.coverage import EVER
from backbone.storage.store import CandleStore
from backbone.timeframe import TIMEFRAMES, Timeframe
from tests.storage.helpers import MAY, StillClock, opens

MARKET, MINUTE, SECOND, DAY = "KRW-BTC", TIMEFRAMES["1m"], TIMEFRAMES["1s"], TIMEFRAMES["1d"]
NOW = MAY + 12 * 3600 * 1_000_000 + 30_000_000  # noon, and half a minute
HOUR_US, MINUTE_US = 3_600_000_000, 60_000_000


class Venue:
    """One market that trades in every slot from `listed_us` on; what it shows of the forming one changes."""

    def __init__(self, clock: StillClock, now_us: int = NOW, listed_us: int = MAY - 10 * 24 * HOUR_US) -> None:
        self.clock = clock
        self.ahead_us = now_us - clock.wall_us  # of the machine's clock, at the start
        self._began = clock.mono_s, now_us
        self.listed_us = listed_us
        self.shift: dict[int, float] = {}
        self.asks: list[Ask] = []
        self.lies: deque[Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = deque()
        self.down = False
        self.kept_us = 1 << 62
        self.every = 1  # only each so many-th slot trades

    def now_us(self) -> int:
        began_s, now_us = self._began
        return now_us + int((self.clock.mono_s - began_s) * 1e6)

    def answer(self, ask: Ask) -> Reply | BackboneError:
        self.asks.append(ask)
        if self.down:
            return UnreachableError("down")
        query = dict(ask.query)
        rows = self._rows(ask, int(query["count"]), query.get("to"))
        if self.lies:
            rows = self.lies.popleft()(rows)
        date_us = self.now_us() // 1_000_000 * 1_000_000
        body = json.dumps(rows).encode()
        mono = self.clock.mono_s
        try:
            return Reply(ask.parse(body), "candles", 9, date_us, mono, mono, len(body))
        except PayloadError as exc:
            return exc

    def _rows(self, ask: Ask, count: int, to: str | None) -> list[dict[str, Any]]:
        step = {"seconds": SECOND, "days": DAY, "1": MINUTE}[ask.path.rsplit("/", 1)[-1]]
        now = self.now_us()
        end = now if to is None else min(now, int(dt.datetime.fromisoformat(to).timestamp()) * 1_000_000)
        first = max(step.floor(self.listed_us), step.ceil(now - self.kept_us))
        rows = []
        stride = step.step_us * self.every
        at = (end - 1) // stride * stride
        while at >= first and len(rows) < count:
            rows.append(self._row(step, at, now))
            at -= stride
        return rows

    def _row(self, step: Timeframe, at: int, now: int) -> dict[str, Any]:
        price = 1000.0 + at // step.step_us % 97 + self.shift.get(at, 0.0)
        if at + step.step_us > now:
            price += 500 + (now - at) // 1_000_000  # forming: not what it will be
        stamp = dt.datetime.fromtimestamp(at / 1e6, dt.UTC)
        return {
            "market": MARKET,
            "candle_date_time_utc": f"{stamp:%Y-%m-%dT%H:%M:%S}",
            "opening_price": price,
            "high_price": price + 5,
            "low_price": price - 5,
            "trade_price": price + 1,
            "candle_acc_trade_volume": 2.0,
            "candle_acc_trade_price": price * 2,
            "timestamp": at // 1000 + 500,
        }


class Desk:
    """A scheduler that answers every ticket at once, on the caller's thread.

    `at_once` pages are sent before the first of them is answered; after `most` answers it stands still, until `run`.
    """

    def __init__(self, venue: Venue, estimate: VenueClock) -> None:
        self._venue, self._estimate = venue, estimate
        self._tickets: deque[tuple[Any, Any]] = deque()
        self._sent: deque[tuple[Any, Any, Any]] = deque()
        self._busy = False
        self.at_once = 1
        self.most: int | None = None
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.bans: BackboneError | None = None

    def submit(self, group: str, priority: Priority, bind: Any, done: Any) -> None:
        if self.bans is not None:
            done(None, self.bans)
            return
        self._tickets.append((bind, done))
        if not self._busy and self.at_once == 1:
            self.run()

    def run(self) -> None:
        """Send and answer what is queued."""
        self._busy = True
        try:
            while self._send() or self._sent:
                if self.most == 0:
                    return
                self.most = None if self.most is None else self.most - 1
                done, ask, outcome = self._sent.popleft()
                if isinstance(outcome, Reply) and outcome.date_us is not None:
                    self._estimate.observe(outcome.date_us, outcome.sent_s, outcome.received_s)
                done(ask, outcome)
        finally:
            self._busy = False

    def _send(self) -> bool:
        while self._tickets and len(self._sent) < self.at_once:
            bind, done = self._tickets.popleft()
            ask = bind()
            if ask is not None:
                self._sent.append((done, ask, self._venue.answer(ask)))
        return bool(self._sent)

    def call_later(self, delay_s: float, job: Callable[[], None]) -> None:
        self.later.append((delay_s, job))


class World:
    """A venue, and a machine whose wall clock is `ahead` of the venue's."""

    def __init__(self, folder: Path, *, ahead: float = 0.0, **venue: Any) -> None:
        self.clock = StillClock(NOW + int(ahead * 1e6))
        self.venue = Venue(self.clock, **venue)
        self.folder = folder
        self.hearings = 0
        self.open()

    def open(self) -> None:
        """A new client on the folder, which never heard the venue."""
        settings = resolve("upbit", data_dir=self.folder, rest_url=None, ws_url=None, tz=None, frames="pandas")
        self.estimate = VenueClock(self.clock)
        self.store = CandleStore(self.folder, "upbit", clock=self.clock)
        self.desk = Desk(self.venue, self.estimate)
        desk: Any = self.desk
        self.fetcher = CandleFetcher(desk, self.store, self.estimate, self.clock, settings)
        self.ranges = CandleRanges(self.fetcher, self.estimate, self._hear)

    def _hear(self) -> None:
        self.hearings += 1
        self.estimate.observe(self.venue.now_us() // 1_000_000 * 1_000_000, self.clock.mono_s, self.clock.mono_s)

    def candles(
        self, start: int | None = None, end: int | None = None, count: int | None = None, timeframe: Timeframe = MINUTE
    ) -> CandleAnswer:
        (answer,) = self.ranges.collect([MARKET], timeframe, Range(start, end, count), Priority.NORMAL)
        return answer

    def asked(self) -> int:
        """How many requests since it was looked at last."""
        number = len(self.venue.asks)
        self.venue.asks.clear()
        return number

    def truth(self, table: Any, timeframe: Timeframe = MINUTE) -> bool:
        """Whether every row is the closed candle that the venue has there."""
        rows = [self.venue._row(timeframe, at, 1 << 62) for at in opens(table)]
        return table.column("open").to_pylist() == [row["opening_price"] for row in rows]

    def stored(self, timeframe: Timeframe = MINUTE) -> Any:
        return self.store.read(MARKET, timeframe, EVER)


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
    """A machine that slept counts fewer seconds than passed: the venue is heard again before "now" is believed."""
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
    assert dict(again.query)["count"] == "2", "only the candles of the last two minutes"
    assert world.asked() == 1
    for _ in range(3):
        world.clock.advance(3600)
        world.candles(start, end)
    assert world.asked() == 0
    assert len(world.store.revisions(MARKET)) == 0


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
    """A difference at the second ask is told, not mixed in silently."""
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


def empty(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return []


def half(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows[: len(rows) // 2]


@pytest.mark.parametrize("lie", [empty, half])
@pytest.mark.parametrize("times", [1, 2, 3, 5])
@pytest.mark.parametrize("held", [False, True])
def test_candles_silence_by_mistake_never_becomes_history(
    tmp_path: Path, lie: Callable[[Any], Any], times: int, held: bool
) -> None:
    """Replies cut short by mistake, several in a row, cost an error at most: no candle is taken for quiet."""
    world = World(tmp_path)
    if held:
        world.candles(NOW - HOUR_US, MINUTE.floor(NOW))
    world.venue.lies.extend([lie] * times)
    start, end = NOW - 10 * HOUR_US, NOW - 4 * HOUR_US
    first = world.candles(start, end)
    assert first.table.num_rows + first.unknown == 360
    assert bool(first.causes) == bool(first.gaps)
    world.venue.lies.clear()
    second = world.candles(start, end)
    assert (second.table.num_rows, second.quiet, second.unknown) == (360, 0, 0)
    assert world.store.quiet_before(MARKET, MINUTE) == 0


@pytest.mark.parametrize("lie", [empty, half])
def test_candles_short_reply_against_held_rows_is_not_believed(tmp_path: Path, lie: Callable[[Any], Any]) -> None:
    """Rows from before are held, so a reply that ends history after them is a mistake, and told as one."""
    world = World(tmp_path)
    world.candles(NOW - 10 * HOUR_US, NOW - 9 * HOUR_US)
    world.venue.lies.extend([lie] * 50)
    answer = world.candles(NOW - 8 * HOUR_US, NOW - 7 * HOUR_US)
    assert answer.gaps
    assert all(isinstance(cause, PayloadError) for cause in answer.causes)
    world.venue.lies.clear()
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
    """With no row held, a candle is sought before silence is believed."""
    world = World(tmp_path)
    answer = world.candles(MAY - 3000 * 24 * HOUR_US, MAY - 2990 * 24 * HOUR_US)
    assert (answer.table.num_rows, answer.unknown) == (0, 0)
    assert world.asked() == 3
    world.candles(MAY - 3000 * 24 * HOUR_US, MAY - 2990 * 24 * HOUR_US)
    assert world.asked() == 0


def test_candles_of_a_market_listed_today_has_no_day_yet(tmp_path: Path) -> None:
    """A candle that is still forming shows that the venue answers: silence before it is true."""
    world = World(tmp_path, listed_us=NOW - HOUR_US)
    answer = world.candles(count=5, timeframe=DAY)
    assert (answer.table.num_rows, answer.unknown, answer.gaps) == (0, 0, ())
    assert world.stored(DAY).table.num_rows == 0


def test_candles_of_a_market_without_any_candle_are_an_error(tmp_path: Path) -> None:
    """A venue that says there never was a candle of a market that it lists is not believed for good."""
    world = World(tmp_path, listed_us=NOW + HOUR_US)
    answer = world.candles(count=5)
    assert answer.gaps
    assert isinstance(answer.causes[0], PayloadError)
    assert not world.stored().covered


def test_seconds_that_the_venue_forgot_are_unknown_not_quiet(tmp_path: Path) -> None:
    """1-second candles end after about three months because the venue forgets them: that is no silence."""
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
    """A page is written half a second after it came, also while the venue says nothing more."""
    world = World(tmp_path)
    pending = world.fetcher.begin(MARKET, MINUTE, Span(NOW - HOUR_US, MINUTE.floor(NOW)), Priority.LOW)
    assert pending.is_done
    assert world.store.pending_rows() == 60
    ((delay_s, job),) = world.desk.later
    assert delay_s <= 0.5
    job()
    assert world.store.pending_rows() == 0
    assert world.store.commits == 1


def test_candles_commit_gives_its_memory_back_and_what_is_held_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a commit Arrow's allocator is told to return what it keeps for the thread; a warm call does not ask it."""
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
    """Whatever fails while a reply is taken in, whoever waits is told."""
    world = World(tmp_path, listed_us=NOW - 2 * HOUR_US)

    def refuse(*_: object) -> int:
        raise StoreError("cannot read")

    monkeypatch.setattr(world.store, "oldest", refuse)
    answer = world.candles(NOW - 6 * HOUR_US, MINUTE.floor(NOW))
    assert answer.gaps
    assert any(isinstance(cause, StoreError) for cause in answer.causes)


def test_seconds_are_not_given_up_on_the_word_of_a_wrong_clock(tmp_path: Path) -> None:
    """Before the venue was heard, nobody says that its 1-second candles are too old to be had."""
    world = World(tmp_path, ahead=200 * 86_400)
    answer = world.candles(NOW - 60_000_000, NOW - 30_000_000, timeframe=SECOND)
    assert (answer.table.num_rows, answer.gaps) == (30, ())


def test_candles_ban_by_another_request_ends_the_wait(tmp_path: Path) -> None:
    """Whose pages were still queued when the venue blocked the address is told, and does not wait for ever."""
    world = World(tmp_path)
    world.desk.bans = RateLimitedError("blocked", banned=True)
    ended: list[Any] = []
    pending = world.fetcher.begin(
        MARKET, MINUTE, Span(MINUTE.floor(NOW) - HOUR_US, MINUTE.floor(NOW)), Priority.NORMAL, on_done=ended.append
    )
    assert pending.is_done
    assert ended == [pending]
    answer = world.fetcher.answer(pending)
    assert answer.unknown == 60
    assert answer.causes == (world.desk.bans,)


def test_candles_that_arrive_while_one_looks_are_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and asking, another caller's pages may land: they are in the answer, and asked once."""
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
    pending = world.fetcher.begin(MARKET, MINUTE, span, Priority.NORMAL)
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
    pendings = [world.fetcher.begin(MARKET, MINUTE, span, lane) for lane in (Priority.LOW, Priority.NORMAL)]
    world.venue.lies.append(lambda rows: [{"no": "candle"}])
    world.desk.run()
    counts = [world.fetcher.answer(pending).pages for pending in pendings]
    sent = world.asked()
    assert sent == 6
    assert all(0 < count <= sent for count in counts)
    assert sum(counts) >= sent


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


def test_damaged_file_is_named_where_nobody_was_asked(tmp_path: Path) -> None:
    """What a damaged file held is missing because of that, and the error says so; the rest was simply not held."""
    world = World(tmp_path)
    start, end = NOW - 5 * HOUR_US, MINUTE.floor(NOW)
    world.candles(start, end)
    world.store.close()
    (path,) = world.store.paths(MARKET, MINUTE, Span(start, end))
    Path(path).write_bytes(b"no parquet")
    world.open()
    (answer,) = world.ranges.recall([MARKET], MINUTE, Range(start, end, None))
    error = incomplete([answer], MINUTE)
    assert error is not None
    (cause,) = error.causes
    assert isinstance(cause, CorruptPartitionError)
    assert cause.path == str(path)
    assert "was damaged" in str(error)
    (other,) = world.ranges.recall([MARKET], MINUTE, Range(start - 90 * 24 * HOUR_US, end - 80 * 24 * HOUR_US, None))
    error = incomplete([other], MINUTE)
    assert error is not None
    assert error.causes == ()
    assert "not held" in str(error)


# -- how far a job is, when it does not end well ----------------------------------------------------------------------

MONTH = Span(MAY - 9 * 24 * HOUR_US, MAY)


def job_of(world: World, span: Span = MONTH) -> CandleJob:
    return CandleJob(world.fetcher, world.clock, [MARKET], MINUTE, span, Priority.LOW)


def says_the_truth(world: World, job: CandleJob) -> None:
    """Its slots are those that the store vouches for, and up to its reached time there is no hole."""
    now = job.progress
    held = world.store.coverage(MARKET, MINUTE, job.span)
    assert now.done_slots == sum(MINUTE.count(span) for span in held)
    first = held.spans[0] if held else Span(job.span.start, job.span.start)
    assert now.reached_us == (first.end if first.start == job.span.start else job.span.start)
    assert now.rows == world.stored().table.num_rows


def test_job_of_garbage_alone_got_nowhere(tmp_path: Path) -> None:
    """A job whose every reply was refused has done nothing, reached nothing, and says what it asked."""
    world = World(tmp_path)
    world.venue.lies.extend([lambda rows: [{"no": "candle"}]] * 1000)
    job = job_of(world)
    job.advance()
    now = job.progress
    assert (now.state, now.done_slots, now.sections_done, now.rows) == ("incomplete", 0, 0, 0)
    assert now.reached_us == MONTH.start
    assert now.pages == world.asked() > 0
    says_the_truth(world, job)


@pytest.mark.parametrize("answered", [0, 1, 7, 30])
def test_job_cancelled_says_what_it_had(tmp_path: Path, answered: int) -> None:
    """After a cancel, slots and reached time are what is stored, also when pages in flight have landed."""
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

    world.venue.lies.extend([refuse] * 1000)
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
    """Rows that the disk did not take are not stored: the job failed, and claims none of them."""
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
    world.venue.lies.extend([lambda rows: [{"no": "candle"}]] * 1000)
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
