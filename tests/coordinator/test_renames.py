"""Two names of one market: what their candles prove, who is compared with whom, and how often is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from backbone.coordinator.market_log import MarketLog
from backbone.coordinator.renames import Renames, unit_of
from backbone.errors import UnreachableError
from backbone.model import CANDLE_SCHEMA, MarketInfo, Priority, Span
from backbone.routing.wire import Ask, CandlePage
from backbone.testing import ManualClock
from backbone.timeframe import DAY_US, TIMEFRAMES
from tests.storage.helpers import open_store

DAY = TIMEFRAMES["1d"]
START = 1_735_689_600_000_000  # 2025-01-01


def days(count: int, seed: int = 1, *, first: int = 0, factor: float = 1.0, volume: float | None = None) -> pa.Table:
    """Daily candles of a coin; the same seed is the same coin."""
    rng = np.random.default_rng(seed)
    close = rng.integers(100, 900, 99)[first : first + count] * factor
    traded = rng.integers(1, 9999, 99)[first : first + count] / 8 / factor
    if volume is not None:
        close, traded = np.full(count, 100.0 * factor), np.full(count, volume)
    times = START + np.arange(first, first + count) * DAY_US
    columns = [close, close + factor, close - factor, close, traded, close * traded]
    return pa.Table.from_arrays([pa.array(times), *map(pa.array, columns)], names=CANDLE_SCHEMA.names).cast(
        CANDLE_SCHEMA
    )


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (days(60), days(60), 1),
        (days(19), days(19), None),
        (days(60), days(60, seed=2), 0),
        (days(60), days(60, factor=10.0), 10),
        (days(19), days(19, factor=10.0), None),
        (days(60, volume=3.0), days(60, volume=3.0, factor=10.0), 0),
        (days(60), pa.concat_tables([days(59, factor=10.0), days(1, seed=2, first=59)]), 0),
        (days(60, volume=0.0), days(60, volume=0.0), None),
        (days(60, volume=3.0), days(60, volume=3.0), None),
        (days(60), pa.concat_tables([days(59), days(1, seed=2, first=59)]), 1),
        (days(60), days(50), None),
        (days(0), days(0), None),
    ],
    ids=[
        "same",
        "few",
        "another",
        "redenominated",
        "few redenominated",
        "redenominated, one trade each",
        "redenominated and restated",
        "quiet",
        "one trade each",
        "restated once",
        "short",
        "empty",
    ],
)
def test_identical_history_with_trades_is_one_market(first: pa.Table, second: pa.Table, verdict: float | None) -> None:
    """Too few candles, or candles without trades, prove nothing; one factor in all of them is another unit."""
    assert unit_of(first, second) == verdict
    assert unit_of(second, first) == (1 / verdict if verdict else verdict)


class World:
    """A store with a log, and a venue whose daily candles a test sets."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock(START + 100 * DAY_US)
        self.store = open_store(folder, self.clock)
        self.jobs: list[Callable[[], None]] = []
        self.venue: dict[str, pa.Table] = {}
        self.asked: list[str] = []
        self.listed: tuple[MarketInfo, ...] | None = None
        self.present: tuple[str, ...] = ()
        self.open()

    def open(self) -> None:
        """As a process of its own does."""
        self.log = MarketLog(self.store.events, self.clock.now_us, lambda job: job())
        request: Any = self.request
        self.renames = Renames(
            self.log,
            self.store,
            self.clock,
            request=request,
            listed=lambda: self.listed,
            ask_list=lambda: self.list(*self.present),
            later=self.jobs.append,
        )

    def request(self, ask: Ask, _: Priority) -> Any:
        query = dict(ask.query)
        self.asked.append(query["market"])
        found = self.venue[query["market"]]
        if found is None:
            raise UnreachableError("the venue is down")
        if "to" in query:
            end = pa.scalar(pd.Timestamp(query["to"]), CANDLE_SCHEMA.field("time").type)
            found = found.filter(pc.less(found.column("time"), end))
        table = found.slice(max(0, found.num_rows - int(query["count"]))).combine_chunks()
        oldest = table.column("time")[0].cast(pa.int64()).as_py() if table.num_rows else None

        class Reply:
            value = CandlePage(table, oldest, np.empty(0, np.int64))

        return Reply

    def keep(self, market: str, table: pa.Table) -> None:
        proof = Span(START, START + 60 * DAY_US)
        self.store.put(market, DAY, table, proof, now_us=self.clock.now_us())

    def list(self, *codes: str) -> None:
        self.listed = tuple(MarketInfo(code, code, code, False, ()) for code in codes)
        self.log.note(self.listed)
        self.renames.note(self.listed)
        self.clock.advance(86_400)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.list("KRW-A", "KRW-B", "BTC-A")
    made.keep("KRW-A", days(60))
    made.venue = {"KRW-C": days(60), "KRW-D": days(60, seed=4), "BTC-C": days(60)}
    return made


def test_code_that_is_new_when_another_went_is_compared_in_the_background(world: World) -> None:
    """One request, of the same quote currency; what is found is an event, which every process knows."""
    world.list("KRW-B", "KRW-C", "BTC-A", "BTC-C")
    assert world.asked == []
    for job in world.jobs:
        job()
    found = world.renames.find("KRW-A")
    assert found is not None
    assert (found.old, found.new, world.asked) == ("KRW-A", "KRW-C", ["KRW-C"])
    assert str(found).startswith("KRW-A is called KRW-C since 2025-04-12; ask for that")
    world.open()
    assert world.renames.find("KRW-A", Priority.HIGH) == found
    assert world.asked == ["KRW-C"]
    events = [event for event in world.log.events("KRW-C") if event.kind == "renamed"]
    assert [(event.market, event.detail, event.how) for event in events] == [
        ("KRW-A", {"from": "KRW-A", "to": "KRW-C"}, "identical candles")
    ]
    assert world.log.events("KRW-A")[-1] == events[0]


def test_code_that_came_within_the_second_of_the_first_list_is_new_too(tmp_path: Path) -> None:
    """The order of the lists counts, not their times alone."""
    world = World(tmp_path)
    world.keep("KRW-A", days(60))
    world.venue = {"KRW-C": days(60)}
    world.list("KRW-A", "KRW-B")
    world.clock.advance(-86_400)
    world.list("KRW-B", "KRW-C")
    found = world.renames.find("KRW-A", Priority.HIGH)
    assert found is not None
    assert found.new == "KRW-C"


def test_candles_that_differed_are_not_asked_for_again(world: World) -> None:
    """A difference is remembered beside the candles, as no event; no name is found."""
    world.list("KRW-B", "KRW-D")
    assert world.renames.find("KRW-A", Priority.NORMAL) is None
    world.open()
    assert world.renames.find("KRW-A", Priority.NORMAL) is None
    assert world.asked == ["KRW-D"]
    assert {event.kind for event in world.log.events()} == {"listed", "delisted"}


@pytest.mark.parametrize("answer", [days(0), None], ids=["empty", "down"])
def test_empty_reply_is_no_difference(world: World, answer: pa.Table | None) -> None:
    """An empty reply is not accepted, nor asked again at once; a venue that is down is no error here."""
    world.venue["KRW-C"] = answer
    world.list("KRW-B", "KRW-C")
    world.clock.advance(-3600)
    assert world.renames.find("KRW-A", Priority.HIGH) is None
    world.renames.find("KRW-A", Priority.HIGH)
    assert len(world.asked) == (1 if answer is not None else 2)
    world.venue["KRW-C"] = days(60)
    world.clock.advance(3601)
    assert world.renames.find("KRW-A", Priority.HIGH) is not None


def test_stored_candles_are_compared_though_a_reply_was_empty(world: World) -> None:
    """An empty reply keeps the venue from being asked for an hour, and hides nothing of what is stored by then."""
    world.venue["KRW-C"] = days(0)
    world.list("KRW-B", "KRW-C")
    world.clock.advance(-3600)
    assert world.renames.find("KRW-A", Priority.LOW) is None
    world.keep("KRW-C", days(60))
    assert world.renames.once(["KRW-A", "KRW-C"]) == ["KRW-C"]
    assert world.asked == ["KRW-C"]


def test_many_that_came_at_once_are_asked_a_few_at_a_time(world: World) -> None:
    """What showed too little makes room for the others."""
    codes = [f"KRW-{letter}" for letter in "CDEFGHI"]
    world.venue = dict.fromkeys(codes, days(0))
    world.list("KRW-B", *codes)
    world.clock.advance(-3600)
    assert world.renames.find("KRW-A", Priority.LOW) is None
    assert len(world.asked) == 5
    assert world.renames.find("KRW-A", Priority.LOW) is None
    assert sorted(world.asked) == codes
    assert world.renames.find("KRW-A", Priority.LOW) is None
    assert len(world.asked) == 7


@pytest.mark.parametrize("brought", [0, 7], ids=["none before it came", "few"])
def test_short_history_that_a_second_reply_confirms_is_another_market(world: World, brought: int) -> None:
    """Not on the day of its listing, nor where there is not even a newest candle; then once, for all processes."""
    later = days(9, seed=5, first=80)
    world.venue["KRW-C"] = pa.concat_tables([days(brought, seed=5, first=60 - brought), later])
    world.list("KRW-B", "KRW-C")
    for _ in range(2):
        world.open()
        assert world.renames.find("KRW-A", Priority.HIGH) is None
    assert world.asked == ["KRW-C"] * 3


def test_stored_candles_are_compared_without_a_request(world: World) -> None:
    """Also where no list with the old name was ever recorded, and however many are stored."""
    for number in range(9):
        world.keep(f"KRW-X{number}", days(60, seed=10 + number))
    world.keep("KRW-OTHER", days(60, seed=3))
    world.keep("KRW-GONE", days(60, seed=3))
    world.list("KRW-A", "KRW-B", "KRW-OTHER", *(f"KRW-X{number}" for number in range(9)))
    found = world.renames.find("KRW-GONE")
    assert found is not None
    assert (found.new, world.asked) == ("KRW-OTHER", [])
    assert world.renames.once(["KRW-A", "KRW-GONE", "KRW-OTHER"]) == ["KRW-A", "KRW-OTHER"]
    assert world.renames.once(["KRW-A", "KRW-GONE"]) == ["KRW-A", "KRW-GONE"], "its candles are all there are"


def test_names_are_followed_and_a_code_that_comes_back_has_its_own(world: World) -> None:
    """A to C to E is one market; once A is listed again, it is another."""
    world.list("KRW-B", "KRW-C")
    assert world.renames.find("KRW-A", Priority.LOW) is not None
    world.keep("KRW-C", days(60))
    world.venue["KRW-E"] = days(60)
    world.list("KRW-B", "KRW-E")
    assert world.renames.find("KRW-C", Priority.LOW) is not None
    found = world.renames.find("KRW-A")
    assert found is not None
    assert found.new == "KRW-E"
    world.list("KRW-A", "KRW-B", "KRW-E")
    world.list("KRW-B", "KRW-E")
    world.log.flush()
    assert world.log.renamed(["KRW-A"]) == {}


def test_few_are_asked_where_nothing_says_when_the_name_changed(world: World) -> None:
    """A store that is older than its log: the most similar codes."""
    world.keep("KRW-OLD", days(60, seed=9))
    codes = [f"KRW-{letter}Z" for letter in "ABCDEFGHIJ"] + ["KRW-OLDER"]
    world.venue = dict.fromkeys(codes, days(60, seed=8)) | {"KRW-OLDER": days(60, seed=9)}
    world.listed = tuple(MarketInfo(code, code, code, False, ()) for code in codes)
    found = world.renames.find("KRW-OLD", Priority.LOW)
    assert found is not None
    assert (found.new, world.asked) == ("KRW-OLDER", ["KRW-OLDER"])
    world.keep("KRW-LOST", days(60, seed=7))
    assert world.renames.find("KRW-LOST", Priority.LOW) is None
    assert len(world.asked) == 1 + 5


def test_two_names_are_seen_where_no_list_ever_came(tmp_path: Path) -> None:
    """By the stored candles alone; a list is asked for only where two are the same, and says which is present."""
    world = World(tmp_path)
    world.keep("KRW-Z", days(60))
    world.keep("KRW-B", days(60, seed=2))
    world.present = ("KRW-A", "KRW-B")
    assert world.renames.once(["KRW-B", "KRW-Z"], may_ask=True) == ["KRW-B", "KRW-Z"]
    assert world.listed is None
    world.keep("KRW-A", days(60))
    assert len(world.renames.once(["KRW-A", "KRW-B", "KRW-Z"])) == 2
    assert world.listed is None
    assert world.renames.once(["KRW-A", "KRW-B", "KRW-Z"], may_ask=True) == ["KRW-A", "KRW-B"]
    found = world.renames.find("KRW-Z")
    assert found is not None
    assert (found.new, world.asked) == ("KRW-A", [])


def test_many_markets_are_counted_with_one_look_at_the_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan of a whole quote currency reads the log and the list once, not once a market."""
    codes = [f"KRW-{number}" for number in range(300)]
    world.list(*codes)
    looks: list[str] = []
    read = world.store.events.read
    monkeypatch.setattr(world.store.events, "read", lambda *words: looks.append("read") or read(*words))
    assert len(world.renames.once(codes)) == 300
    assert len(looks) <= 2
