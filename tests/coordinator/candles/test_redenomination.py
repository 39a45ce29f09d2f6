"""Pages against what is held, without sockets: what is overlapped, what that costs, and what is decided from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backbone.coordinator.candles.pending import Pending
from backbone.coordinator.candles.ranges import Range
from backbone.errors import ClosedError, DataChangedWarning
from backbone.model import Priority, Span
from backbone.routing.wire import Ask
from backbone.storage.coverage import EVER, SpanSet
from backbone.storage.store import CandleStore
from tests.coordinator.candles.world import DAY, HOUR_US, MARKET, MINUTE, MINUTE_US, NOW, World
from tests.storage.helpers import opens

START = NOW - 60 * HOUR_US - 30_000_000


def minute(number: int) -> int:
    """The open of a minute, counted from some days ago."""
    return START + number * MINUTE_US


def ask(world: World, first: int, last: int) -> Any:
    """The candles of some minutes, in the unit of now, and how many requests they took."""
    answer = world.candles(minute(first), minute(last))
    assert world.truth(answer.table)
    assert (answer.table.num_rows, answer.unknown) == (last - first, 0)
    return world.asked()


def kinds(world: World) -> list[str]:
    return [event.kind for event in world.store.events.read(MARKET)]


def test_requests_of_plans_that_join_nothing_are_as_ever(tmp_path: Path) -> None:
    """A thousand candles are five requests, and none the second time."""
    world = World(tmp_path)
    world.candles(count=1000)
    assert world.asked() == 5
    world.candles(count=1000)
    assert world.asked() == 0


@pytest.mark.parametrize(("gap", "pages"), [(1, 1), (199, 1), (200, 2), (399, 2), (400, 3), (1000, 6)])
@pytest.mark.parametrize("is_above", [False, True])
def test_overlap_costs_a_request_only_where_the_plan_was_full(
    tmp_path: Path, gap: int, pages: int, is_above: bool
) -> None:
    """A page that has room shows the held candle beside it; a plan that was full to the last row takes one more."""
    world = World(tmp_path)
    ask(world, 0 if not is_above else gap, 200 if not is_above else gap + 200)
    first, last = (200, 200 + gap) if not is_above else (0, gap)
    plan = world.fetcher.explain(MARKET, MINUTE, Span(minute(first), minute(last)), 10.0)
    assert ask(world, first, last) == plan.pages == pages
    assert world.store.revisions(MARKET).num_rows == 0


@pytest.mark.parametrize("gap", [1, 150, 199, 200, 1000])
@pytest.mark.parametrize("side", ["below", "above", "both"])
def test_redenomination_is_found_at_the_seam(tmp_path: Path, gap: int, side: str) -> None:
    """Wherever the gap joins held candles and however long it is: quarantined, warned of, fetched anew."""
    world = World(tmp_path)
    if side != "above":
        ask(world, 0, 300)
    if side != "below":
        ask(world, 300 + gap, 700 + gap)
    held = world.stored().table
    world.venue.factor = 0.001
    with pytest.warns(DataChangedWarning, match=r"by 0\.001 ") as warned:
        ask(world, 300, 300 + gap)
    assert len(warned) == 1
    assert kinds(world) == ["redenominated", "quarantined"]
    detail = world.store.events.read(MARKET)[0].detail
    assert detail["factor"] == 0.001
    kept = CandleStore(Path(detail["where"]), "upbit", clock=world.clock)
    assert set(opens(held)) <= set(opens(kept.read(MARKET, MINUTE, EVER).table))
    assert world.truth(world.stored().table)
    assert ask(world, 0, 700 + gap) > 0
    assert ask(world, 0, 700 + gap) == 0


@pytest.mark.parametrize("factor", [1.25, 0.8])
def test_factor_too_small_for_a_leap_is_found_by_the_overlap(tmp_path: Path, factor: float) -> None:
    """A price may move so far by itself; the candle that both sides know may not."""
    world = World(tmp_path)
    ask(world, 0, 300)
    world.venue.factor = factor
    with pytest.warns(DataChangedWarning, match=f"by {factor:g} "):
        ask(world, 300, 400)
    assert kinds(world) == ["redenominated", "quarantined"]


def test_small_factor_between_two_pages_of_one_call_is_found_by_the_next_overlap(tmp_path: Path) -> None:
    """Why it is not seen at once: pages of one plan show no candle twice, which would cost a request in each call, and
    a price may move by a quarter from one candle to the next. Whatever shows the candles again says so."""
    world = World(tmp_path)

    def later(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        world.venue.factor = 1.25
        return rows

    world.venue.edits.append(later)
    assert not world.truth(world.candles(minute(0), minute(1000)).table)
    assert kinds(world) == []
    span = Range(minute(0), minute(1000), None)
    (answer,) = world.ranges.collect([MARKET], MINUTE, span, Priority.NORMAL, refresh=True)
    assert world.truth(answer.table)
    assert set(kinds(world)) == {"restated"}, "what is stored is no more of one unit than it was of the other"


def test_crash_is_none(tmp_path: Path) -> None:
    """A price that fell by 90 % in a minute leaves the candles before it as they were."""
    world = World(tmp_path)
    ask(world, 0, 300)
    world.venue.shift.update({minute(number): -900.0 for number in range(300, 4000)})
    ask(world, 300, 700)
    ask(world, 700, 900)
    assert kinds(world) == []
    assert world.store.generation(MARKET) == 0


def test_crash_at_the_seam_of_two_pages_is_asked_about_once(tmp_path: Path) -> None:
    """Prices far apart where one page ends and the next begins: a page that shows both settles it."""
    world = World(tmp_path)
    world.venue.shift.update({minute(number): -900.0 for number in range(200, 4000)})
    assert ask(world, 0, 400) == 3
    assert ask(world, 0, 400) == 0
    assert world.fetcher.units.generation(MARKET) == 0


def test_few_that_differ_are_revisions(tmp_path: Path) -> None:
    """Candles that the venue corrected are revised, not quarantined."""
    world = World(tmp_path)
    ask(world, 0, 300)
    world.venue.shift.update({minute(299): 2.5, minute(250): 1.5})
    ask(world, 300, 400)
    assert sorted(opens(world.store.revisions(MARKET))) == [minute(250), minute(299)]
    world.store.flush()
    assert kinds(world) == ["restated"]


def test_factor_on_the_overlap_alone_is_a_revision(tmp_path: Path) -> None:
    """The venue changed one interval by one factor, and the rest stayed: the wider sample shows it."""
    world = World(tmp_path)
    ask(world, 0, 3000)
    world.venue.scaled = Span(minute(2900), minute(3000))
    world.venue.factor = 10.0
    answer = world.candles(minute(3000), minute(3100))
    assert answer.table.num_rows == 100
    assert set(kinds(world)) == {"restated"}
    revised = opens(world.store.revisions(MARKET))
    assert revised == [minute(number) for number in range(2900, 3000)]
    assert answer.pages == 3, "the page, and two of the sample"


def test_unit_that_changes_between_two_pages_of_one_call(tmp_path: Path) -> None:
    """Pages of one plan do not overlap: prices far off where they meet are looked at again."""
    world = World(tmp_path)
    left = [2]

    def later(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        left[0] -= 1
        world.venue.factor = 1.0 if left[0] else 10.0
        return rows

    world.venue.edits.extend([later] * 2)
    with pytest.warns(DataChangedWarning):
        ask(world, 0, 1000)
    assert kinds(world) == ["redenominated", "quarantined"]


def test_part_far_from_what_is_stored_is_compared_with_it(tmp_path: Path) -> None:
    """What joins nothing is compared with the nearest candles that are held: no store has two units with a gap."""
    world = World(tmp_path)
    ask(world, 0, 300)
    world.venue.factor = 10.0
    with pytest.warns(DataChangedWarning, match="by 10 "):
        assert ask(world, 2000, 2300) == 3, "two pages, and one of the sample"
    assert kinds(world) == ["redenominated", "quarantined"]
    assert opens(world.stored().table)[0] > minute(300), "what is held is of one unit"
    assert world.truth(world.stored().table)


DAYS = [DAY.floor(NOW) - number * 24 * HOUR_US for number in (9, 7, 4, 2, 0)]


def days_are_true(world: World, first: int, last: int) -> bool:
    """Days in the unit of now, two or so."""
    table = world.candles(first, last, timeframe=DAY).table
    return table.num_rows >= 2 and world.truth(table, DAY)


@pytest.mark.parametrize("is_inside", [True, False], ids=["inside the days", "behind the days"])
def test_minutes_are_compared_with_stored_days(tmp_path: Path, is_inside: bool) -> None:
    """Days are stored, minutes are asked for the first time: of a day that is held, or of later ones."""
    world = World(tmp_path)
    assert days_are_true(world, DAYS[2], DAYS[4] if is_inside else DAYS[3])
    world.asked()
    assert ask(world, 0, 150) == 1, "nothing suggests a change"
    world.store.upkeep.remove(MARKET, MINUTE)
    world.venue.factor = 0.01
    with pytest.warns(DataChangedWarning, match=r"by 0\.01 "):
        assert ask(world, 0, 500) == 4, "three pages, and one of the sample"
    assert "redenominated" in kinds(world)
    assert not world.stored(DAY).covered
    assert days_are_true(world, DAYS[1], DAYS[4])


@pytest.mark.parametrize("is_around", [True, False], ids=["around the minutes", "before the minutes"])
def test_days_are_compared_with_stored_minutes(tmp_path: Path, is_around: bool) -> None:
    """Minutes are stored, days are asked for the first time."""
    world = World(tmp_path)
    ask(world, 0, 300)
    days = (DAYS[2], DAYS[4]) if is_around else (DAYS[0], DAYS[1])
    assert days_are_true(world, *days)
    assert world.asked() == 1, "nothing suggests a change"
    world.store.upkeep.remove(MARKET, DAY)
    world.venue.factor = 100.0
    with pytest.warns(DataChangedWarning, match="by 100 "):
        assert days_are_true(world, *days)
    assert world.asked() == 2, "a page, and one of the sample"
    assert not world.stored().covered


def test_candles_far_off_that_the_venue_still_has_are_kept(tmp_path: Path) -> None:
    """A price that is ten times as high is asked about once, and changes nothing; the pages that arrived meanwhile wait
    for the answer, and none is asked again."""
    world = World(tmp_path)
    ask(world, 0, 300)
    world.venue.shift.update({minute(number): 9000.0 for number in range(1500, 4000)})
    world.desk.at_once = 5
    pending = world.fetcher.begin(Pending(MARKET, MINUTE, Span(minute(2000), minute(2900)), Priority.NORMAL))
    world.desk.run()
    assert pending.is_done
    assert world.asked() == pending.pages == 6, "five pages, and one of the sample"
    assert world.truth(world.fetcher.answer(pending).table)
    assert kinds(world) == []


def of_before(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A reply as it was in the unit of a tenth of the present one."""
    prices = ("opening_price", "high_price", "low_price", "trade_price")
    volume = "candle_acc_trade_volume"
    return [{**row, **{name: row[name] / 10 for name in prices}, volume: row[volume] * 10} for row in rows]


@pytest.mark.parametrize("late", [1, 2])
def test_page_that_was_overtaken_while_the_unit_changed_is_asked_again(tmp_path: Path, late: int) -> None:
    """Pages of the new unit came before one of the old: a page with both shows which, and nothing is quarantined."""
    world = World(tmp_path)
    world.venue.factor = 10.0
    world.desk.at_once = 3
    world.venue.edits.extend([lambda rows: rows] * late + [of_before])
    pending = world.fetcher.begin(Pending(MARKET, MINUTE, Span(minute(0), minute(600)), Priority.NORMAL))
    world.desk.run()
    assert pending.is_done
    assert world.truth(world.fetcher.answer(pending).table)
    assert world.asked() == 5, "three pages, one that shows both, and the one of before again"
    assert kinds(world) == []


def test_page_of_another_length_that_was_overtaken_is_asked_again(tmp_path: Path) -> None:
    """Days of the new unit came before minutes of the old, which were asked for before those were stored."""
    world = World(tmp_path)
    world.venue.factor = 10.0
    world.desk.at_once, world.desk.most = 2, 0
    world.venue.edits.extend([lambda rows: rows, of_before])
    days = world.fetcher.begin(Pending(MARKET, DAY, Span(DAYS[2], DAYS[4]), Priority.NORMAL))
    minutes = world.fetcher.begin(Pending(MARKET, MINUTE, Span(minute(0), minute(150)), Priority.NORMAL))
    world.desk.run()  # both are sent
    world.clock.advance(1.0)
    world.desk.most = None
    world.desk.run()
    assert days.is_done
    assert minutes.is_done
    assert world.truth(world.fetcher.answer(minutes).table)
    assert world.asked() == 3
    assert kinds(world) == []


def test_sample_of_another_length_that_fails_decides_nothing(tmp_path: Path) -> None:
    """The call ends in an error and stores no minute; the next one finds out."""
    world = World(tmp_path)
    assert days_are_true(world, DAYS[2], DAYS[4])
    world.venue.factor = 10.0

    def down(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        world.venue.down = True
        return rows

    world.venue.edits.append(down)
    answer = world.candles(minute(0), minute(300))
    assert answer.gaps
    assert not world.stored().covered
    world.venue.down = False
    with pytest.warns(DataChangedWarning):
        ask(world, 0, 300)


def test_other_timeframes_leave_as_well_and_serve_as_sample(tmp_path: Path) -> None:
    """Two days are stored, and minutes: the days' overlap is compared further with minutes."""
    world = World(tmp_path)
    ask(world, 0, 300)
    days = [DAY.floor(NOW) - number * 24 * HOUR_US for number in (4, 2, 0)]
    world.candles(days[0], days[1], timeframe=DAY)
    world.venue.factor = 100.0
    with pytest.warns(DataChangedWarning):
        answer = world.candles(days[0], days[2], timeframe=DAY)
    assert answer.table.column("open").to_pylist() == [world.venue._row(DAY, at, 1 << 62)["opening_price"]
                                                       for at in opens(answer.table)]  # fmt: skip
    assert not world.stored().covered


def test_page_of_before_is_asked_again(tmp_path: Path) -> None:
    """A reply in flight while another process quarantined the series is not stored: the page is asked again."""
    world = World(tmp_path)
    ask(world, 0, 300)
    other = CandleStore(tmp_path, "upbit", clock=world.clock)

    def aside(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        other.upkeep.quarantine(MARKET)
        world.venue.factor = 10.0
        return rows

    world.venue.edits.append(aside)
    ask(world, 300, 500)
    ask(world, 0, 500)


def test_deadline_and_outage_of_the_sample_keep_nothing(tmp_path: Path) -> None:
    """Without the wider sample nothing is decided: the page is an error, what is stored stays."""
    world = World(tmp_path)
    ask(world, 0, 1000)
    held = world.stored().table
    world.venue.factor = 10.0

    def down(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        world.venue.down = True
        return rows

    world.venue.edits.append(down)
    answer = world.candles(minute(1000), minute(1100))
    assert answer.gaps
    assert world.stored().table.equals(held)
    world.venue.down = False
    with pytest.warns(DataChangedWarning):
        ask(world, 900, 1100)


def test_samples_are_asked_side_by_side(tmp_path: Path) -> None:
    """None follows from another's reply: the page before, the one after and the oldest are on their way at once."""
    world = World(tmp_path)
    ask(world, 0, 900)
    ask(world, 1000, 1400)
    world.venue.factor = 10.0
    world.desk.at_once = 5
    beside: list[int] = []
    answer = world.venue.answer

    def noted(question: Ask) -> Any:
        beside.append(len(world.desk._sent))
        return answer(question)

    world.venue.answer = noted  # type: ignore[method-assign]
    world.fetcher.begin(Pending(MARKET, MINUTE, Span(minute(900), minute(1000)), Priority.NORMAL))
    world.desk.run()
    assert beside[:4] == [0, 0, 1, 2]
    assert kinds(world) == ["redenominated", "quarantined"]
    assert world.truth(world.stored().table)


def test_one_sample_that_fails_decides_nothing(tmp_path: Path) -> None:
    """Though the others agree: what is stored stays, and the next call finds out."""
    world = World(tmp_path)
    ask(world, 0, 900)
    ask(world, 1000, 1400)
    held = world.stored().table
    world.venue.factor = 10.0

    def down(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        world.venue.down = True
        return rows

    world.venue.edits += [lambda rows: rows, lambda rows: rows, down]
    answer = world.candles(minute(900), minute(1000))
    assert answer.gaps
    assert not world.venue.edits
    assert world.stored().table.equals(held)
    world.venue.down = False
    with pytest.warns(DataChangedWarning):
        ask(world, 900, 1000)


def test_offline_is_as_stored(tmp_path: Path) -> None:
    """Without a request nothing is compared."""
    world = World(tmp_path)
    before = world.candles(minute(0), minute(300)).table
    world.asked()
    world.venue.factor = 10.0
    answer = world.ranges.recall([MARKET], MINUTE, Range(minute(0), minute(300), None))[0]
    assert answer.table.equals(before)
    assert world.asked() == 0


def test_refresh_finds_it(tmp_path: Path) -> None:
    """A range that is asked again is in the new unit as a whole."""
    world = World(tmp_path)
    ask(world, 0, 1000)
    world.venue.factor = 10.0
    with pytest.warns(DataChangedWarning):
        (answer,) = world.ranges.collect(
            [MARKET], MINUTE, Range(minute(0), minute(600), None), Priority.NORMAL, refresh=True
        )
    assert world.truth(answer.table)
    assert answer.table.num_rows == 600
    assert world.stored().covered.contains(Span(minute(0), minute(600)))
    assert world.store.revisions(MARKET).num_rows == 0


def test_thin_market_reaches_the_held_candle_by_itself(tmp_path: Path) -> None:
    """Where every seventh minute trades, the overlap takes no request of its own."""
    world = World(tmp_path)
    world.venue.every = 7
    world.candles(minute(0), minute(1000))
    world.asked()
    answer = world.candles(minute(1000), minute(3000))
    assert world.asked() <= 1.6 * answer.table.num_rows / 200 + 1
    assert SpanSet([Span(minute(0), minute(3000))]) - world.stored().covered == SpanSet()
    world.venue.factor = 10.0
    with pytest.warns(DataChangedWarning):
        world.candles(minute(3000), minute(3200))


def test_answer_that_was_made_anew_says_what_it_took(tmp_path: Path) -> None:
    """The page that showed the change, the sample, and what was fetched again."""
    world = World(tmp_path)
    ask(world, 0, 1000)
    world.venue.factor = 10.0
    with pytest.warns(DataChangedWarning):
        answer = world.candles(minute(900), minute(1100))
    assert answer.pages == world.asked() == 3
    assert answer.sources == {"rest": 200}


def test_sample_is_of_what_was_stored_before(tmp_path: Path) -> None:
    """Pages of the same call that arrived before are of the new unit, and are no sample of what was stored."""
    world = World(tmp_path)
    ask(world, 1500, 2000)
    world.venue.factor = 10.0
    with pytest.warns(DataChangedWarning):
        ask(world, 0, 3500)
    assert kinds(world) == ["redenominated", "quarantined"]


def test_client_that_is_closed_before_the_sample_is_asked(tmp_path: Path) -> None:
    """The page that arrived is an error, as its wait is."""
    world = World(tmp_path)
    ask(world, 0, 300)
    world.venue.factor = 10.0

    def closed(*ticket: Any) -> None:
        raise ClosedError("this client is closed")

    def close(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        world.desk.submit = closed  # type: ignore[method-assign]
        return rows

    world.venue.edits.append(close)
    pending = world.fetcher.begin(Pending(MARKET, MINUTE, Span(minute(300), minute(400)), Priority.NORMAL))
    assert pending.is_done
    assert any(isinstance(cause, ClosedError) for cause in pending.causes)
