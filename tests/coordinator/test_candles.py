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
from backbone.coordinator.candles import CandleAnswer, CandleFetcher
from backbone.coordinator.ranges import CandleRanges, Range
from backbone.errors import BackboneError, PayloadError, RateLimitedError, StoreError, UnreachableError
from backbone.model import Priority, Span
from backbone.routing.rest import Reply
from backbone.routing.wire import Ask
from backbone.settings import resolve
from backbone.storage.candles import CandleStore
from backbone.storage.coverage import EVER
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
        at = step.floor(end - 1)
        while at >= first and len(rows) < count:
            rows.append(self._row(step, at, now))
            at -= step.step_us
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
    """A scheduler that answers every ticket at once, on the caller's thread."""

    def __init__(self, venue: Venue, estimate: VenueClock) -> None:
        self._venue, self._estimate = venue, estimate
        self._tickets: deque[tuple[Any, Any]] = deque()
        self._busy = False
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.bans: BackboneError | None = None

    def submit(self, group: str, priority: Priority, bind: Any, done: Any) -> None:
        if self.bans is not None:
            done(None, self.bans)
            return
        self._tickets.append((bind, done))
        if self._busy:
            return
        self._busy = True
        try:
            while self._tickets:
                bind, done = self._tickets.popleft()
                ask = bind()
                if ask is not None:
                    outcome = self._venue.answer(ask)
                    if isinstance(outcome, Reply) and outcome.date_us is not None:
                        self._estimate.observe(outcome.date_us, outcome.sent_s, outcome.received_s)
                    done(ask, outcome)
        finally:
            self._busy = False


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
