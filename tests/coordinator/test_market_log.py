"""The market list that remembers: states at times, lists of the past, and what is written at all."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from backbone.coordinator.market_log import MarketLog
from backbone.errors import InputError
from backbone.model import MarketInfo
from backbone.storage.event_table import Event, EventTable, encode_events
from backbone.testing import ManualClock
from backbone.timeframe import DAY_US
from tests.benchmarks.market_log import measure
from tests.coordinator.live_doubles import ticker

DAY_0 = 1_755_820_800_000_000


def info(code: str, name: str = "", warning: bool = False, *cautions: str) -> MarketInfo:
    return MarketInfo(code, name or code, name or code, warning, cautions)


class Log:
    """Events in memory."""

    def __init__(self) -> None:
        self.known = EventTable()
        self.reads = 0

    @property
    def events(self) -> list[Event]:
        return self.known.events()

    def add_all(self, events: list[Event]) -> int:
        self.known = self.known.extended(encode_events(events))
        return len(events)

    def table(self) -> EventTable:
        self.reads += 1
        return self.known


class World:
    def __init__(self) -> None:
        self.clock = ManualClock(DAY_0)
        self.log = Log()
        self.jobs: list[Callable[[], None]] = []
        self.memory = MarketLog(self.log, self.clock.now_us, self.jobs.append)

    def list(self, *listed: MarketInfo, days: float = 1.0) -> None:
        self.memory.note(listed)
        self.clock.advance(days * 86_400)

    def at(self, days: float) -> dict[str, MarketInfo]:
        return {one.market: one for one in self.memory.at(DAY_0 + int(days * DAY_US)).markets}


A, B, C = info("KRW-A"), info("KRW-B"), info("KRW-C")


def test_list_is_known_as_it_was_at_any_time() -> None:
    """Listings, delistings, names, warnings and cautions, each from when it was seen until it changed."""
    world = World()
    world.list(A, B)
    world.list(A, B)
    world.list(A, info("KRW-B", "Bee", True, "X"), C)
    world.list(C, A)
    world.list(A, B, C)
    assert world.at(0) == world.at(1.5) == {"KRW-A": A, "KRW-B": B}
    assert world.at(2) == {"KRW-A": A, "KRW-B": info("KRW-B", "Bee", True, "X"), "KRW-C": C}
    assert world.at(3.9) == {"KRW-A": A, "KRW-C": C}
    assert world.at(4) == {"KRW-A": A, "KRW-B": B, "KRW-C": C}
    kinds = [event.kind for event in world.memory.events("KRW-B")]
    assert kinds == ["listed", "named", "warned", "cautioned", "warned", "cautioned", "delisted", "listed"]


def test_day_before_anything_was_recorded_is_an_input_error_that_says_since_when() -> None:
    """And so is any day while nothing is recorded."""
    world = World()
    with pytest.raises(InputError, match="nothing is recorded yet"):
        world.at(0)
    world.list(A)
    with pytest.raises(InputError, match="2025-08-22"):
        world.at(-1)


def test_same_list_costs_a_comparison_and_writes_nothing() -> None:
    """Nothing is read or written on the way to an answer; another process's list is not written again."""
    world = World()
    world.list(A, B)
    assert (world.log.reads, len(world.jobs)) == (0, 1)
    world.jobs.pop()()
    written = list(world.log.events)
    world.list(A, B)
    assert world.jobs == []
    other = MarketLog(world.log, world.clock.now_us, lambda job: job())
    other.note((A, B))
    assert world.log.events == written


def test_reader_waits_for_what_another_thread_is_writing() -> None:
    """A list that came is known, although it is just being written in the background."""
    world = World()
    world.list(A)
    world.memory.flush()
    world.list(A, B)
    add_all, begun, go_on = world.log.add_all, threading.Event(), threading.Event()

    def slowly(events: list[Event]) -> int:
        begun.set()
        assert go_on.wait(30)
        return add_all(events)

    world.log.add_all = slowly  # type: ignore[method-assign]
    writer = threading.Thread(target=world.memory.flush)
    writer.start()
    assert begun.wait(30)
    found: list[set[str]] = []
    reader = threading.Thread(target=lambda: found.append(set(world.at(1))))
    reader.start()
    reader.join(0.05)
    go_on.set()
    for thread in (writer, reader):
        thread.join(30)
    assert found == [{"KRW-A", "KRW-B"}]


def test_lists_of_the_past_change_nothing_that_was_recorded_later() -> None:
    """In any order and twice; what a later list lacks was delisted by then."""
    rng = random.Random(3)
    for _ in range(30):
        world = World()
        moments = sorted(rng.sample(range(100), 6))
        lists = [(day, tuple(rng.sample([A, B, C, info("KRW-B", "Bee"), info("KRW-D")], 3))) for day in moments]
        lists = [(day, tuple({one.market: one for one in listed}.values())) for day, listed in lists]
        first, rest = lists[2], lists[:2] + lists[3:]
        world.clock.advance(first[0] * 86_400)
        world.list(*first[1])
        rng.shuffle(rest)
        for day, listed in [*rest, *rest]:
            world.memory.take([(DAY_0 + day * DAY_US, f"{day}.json", listed)])
        for day, listed in lists:
            assert world.at(day) == world.at(day + 0.5) == {one.market: one for one in listed}
        size = len(world.log.events)
        assert world.memory.take([(DAY_0 + day * DAY_US, f"{day}.json", listed) for day, listed in lists]) == 0
        assert len(world.log.events) == size


def test_market_first_seen_later_was_listed_when_it_already_traded() -> None:
    """Its first stored candle says so."""
    world = World()
    world.list(A)
    world.list(A, B)
    found = world.memory.at(DAY_0 + 1, lambda market: DAY_0 - DAY_US)
    assert [one.market for one in found.markets] == ["KRW-A", "KRW-B"]
    assert [one.market for one in world.memory.at(DAY_0 + 1, lambda market: DAY_0 + 5).markets] == ["KRW-A"]


def reported(
    world: World, *said: tuple[str | None, str | None, bool | None, str | None], market: str = "KRW-A"
) -> list[bool]:
    """Take tickers of a market with these conditions; which of them were news."""
    names = ("state", "delisting_day", "is_suspended", "warning")
    tickers = [msgspec.structs.replace(ticker(market), **dict(zip(names, each, strict=True))) for each in said]
    return [world.memory.note_state(each) for each in tickers]


def test_conditions_of_tickers_are_events_when_they_are_new() -> None:
    """An ordinary one is none; a coming delisting, a suspension and their end are one each."""
    world = World()
    usual, leaving = ("ACTIVE", None, False, "NONE"), ("ACTIVE", "2025-09-01", False, "NONE")
    halted = ("ACTIVE", "2025-09-01", True, "CAUTION")
    assert reported(world, usual, usual, leaving, leaving, halted, usual) == [False, False, True, False, True, True]
    details = [event.detail for event in world.memory.events("KRW-A") if event.kind == "state"]
    assert [one["delisting_date"] for one in details] == ["2025-09-01", "2025-09-01", None]
    assert [one["is_trading_suspended"] for one in details] == [False, True, False]
    assert [one["market_warning"] for one in details] == ["NONE", "CAUTION", "NONE"]
    assert {one["market_state"] for one in details} == {"ACTIVE"}


def test_conditions_are_written_in_the_background_in_one_go() -> None:
    """The first tickers of a market each queue nothing but one job, and the disk sees nothing of the ordinary."""
    world = World()
    for code in ("KRW-A", "KRW-B", "KRW-C"):
        reported(world, ("ACTIVE", None, None, None), market=code)
    assert (len(world.jobs), world.log.reads) == (1, 0)
    world.jobs.pop()()
    assert world.log.events == []
    reported(world, ("ACTIVE", "2025-09-01", None, None), ("ACTIVE", "2025-09-02", None, None))
    assert len(world.jobs) == 1


def test_condition_that_ended_while_nobody_looked_is_an_event() -> None:
    """Another process, or the next start, knows what was recorded last."""
    world = World()
    reported(world, ("ACTIVE", None, True, "NONE"))
    world.memory.flush()
    later = MarketLog(world.log, world.clock.now_us, world.jobs.append)
    world.memory = later
    assert reported(world, ("ACTIVE", None, False, "NONE")) == [False]
    assert [event.detail["is_trading_suspended"] for event in later.events("KRW-A")] == [True, False]


def test_condition_of_a_rest_ticker_that_says_less_takes_nothing_back() -> None:
    """Where REST has a warning alone, the state that the stream said stays."""
    world = World()
    leaving = ("ACTIVE", "2025-09-01", False, "NONE")
    assert reported(world, leaving, (None, None, None, "NONE"), leaving) == [True, False, False]
    assert reported(world, (None, None, None, "CAUTION")) == [True]
    last = [event for event in world.memory.events("KRW-A") if event.kind == "state"][-1]
    assert (last.detail["delisting_date"], last.detail["market_warning"]) == ("2025-09-01", "CAUTION")


def test_five_busy_years_are_searched_within_20_ms(tmp_path: Path) -> None:
    """Fifty changes a day of three hundred markets: 20 ms of this process's time once read, also after one more event;
    the first look costs a fraction of decoding each line."""
    taken = measure(tmp_path, rounds=3)
    assert taken["known"] < min(20.0, taken["decoded"] / 10)
    assert taken["added"] < min(20.0, taken["decoded"] / 5)
    assert taken["cold"] < taken["decoded"] / 2
