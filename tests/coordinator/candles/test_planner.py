"""The planner against a brute-force model of the venue."""

from __future__ import annotations

import random
from bisect import bisect_left

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from backbone.coordinator.candles.pending import Pending
from backbone.coordinator.candles.planner import SeriesPlan, pages_needed
from backbone.coordinator.candles.witness import EARLIEST_US, Page, check, judge
from backbone.errors import PayloadError, UnreachableError
from backbone.model import Priority, Span
from backbone.storage.coverage import SpanSet
from backbone.timeframe import TIMEFRAMES

MINUTE = TIMEFRAMES["1m"]
STEP = MINUTE.step_us
BASE = MINUTE.floor(1_700_000_000_000_000)


def at(slot: int) -> int:
    return BASE + slot * STEP


def want_of(plan: SeriesPlan, missing: SpanSet, *, ascending: bool = False) -> Pending:
    """A caller that waits for all of `missing`."""
    span = missing.bounds or Span(BASE, BASE)
    pending = Pending("KRW-BTC", MINUTE, span, Priority.NORMAL, missing, ascending=ascending)
    plan.add(pending)
    return pending


class Venue:
    """The rule of the wire, nothing else: the newest `count` candles that opened before `to`."""

    def __init__(self, slots: set[int]) -> None:
        self.opens = sorted(at(s) for s in slots)
        self.asked = 0

    def answer(self, page: Page) -> list[int]:
        self.asked += 1
        end = bisect_left(self.opens, page.to_us)
        return self.opens[max(0, end - page.count) : end]


def run(plan: SeriesPlan, wants: list[Pending], venue: Venue, rng: random.Random, flight: int) -> list[SpanSet]:
    """Answer pages in random order, `flight` at a time; returns every proof that was settled."""
    flying: list[Page] = []
    proofs: list[SpanSet] = []
    held: set[int] = set()
    for _ in range(10_000):
        open_wants = [w for w in wants if not w.is_done]
        if not open_wants and not flying:
            return proofs
        while open_wants and len(flying) < (flight if plan.has_learned else min(flight, 5)):
            page = plan.next_page(rng.choice(open_wants))
            if page is None:
                break
            flying.append(page)
        page = flying.pop(rng.randrange(len(flying)))
        proofs.append(take(plan, page, venue.answer(page), held))
    raise AssertionError("the plan never ended")


def take(plan: SeriesPlan, page: Page, opens: list[int], held: set[int]) -> SpanSet:
    """Settle one reply as its owner does, who holds the candles that came; returns what was proven."""
    verdict = judge(page, opens[0] if opens else None, len(opens))
    try:
        check(page, verdict, opens[-1] if opens else None, None, "KRW-BTC 1m")
    except PayloadError as exc:
        plan.fail(page, exc)
        return SpanSet()
    held.update(opens)
    edge = verdict.edge_us
    anchor = None if edge is None else min((t for t in held if edge <= t < edge + 200 * STEP), default=None)
    plan.settle(page, verdict, len(opens), anchor_us=anchor)
    return verdict.proof


@settings(max_examples=100, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.target])
@given(st.data())
def test_plan_any_wants_any_order_ends_with_everything_proven(data: st.DataObject) -> None:
    """Whatever is wanted, in whatever order replies come, every want ends whole and no proof hides a candle."""
    slots = data.draw(st.sets(st.integers(0, 400), min_size=1, max_size=120))
    spans = data.draw(
        st.lists(st.tuples(st.integers(-50, 420), st.integers(1, 300), st.booleans()), min_size=1, max_size=4)
    )
    rng = random.Random(data.draw(st.integers(0, 1 << 30)))
    venue, plan = Venue(slots), SeriesPlan(MINUTE, page_size=data.draw(st.integers(1, 20)))
    wanted = [SpanSet([Span(at(a), at(a + n))]) for a, n, _ in spans]
    wants = [want_of(plan, w, ascending=asc) for w, (_, _, asc) in zip(wanted, spans, strict=True)]
    proofs = run(plan, wants, venue, rng, flight=rng.randint(1, 5))
    proven = SpanSet([s for proof in proofs for s in proof])
    for want in wanted:
        assert not want - proven
    for want in wants:
        plan.drop(want)
    assert not plan.waiting
    assert not plan._claims


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 30), st.floats(0.03, 1.0))
def test_plan_thin_market_asks_at_most_two_and_a_half_times_the_rows(seed: int, density: float) -> None:
    """A market that seldom trades costs requests by its rows, not by the minutes without trades."""
    rng = random.Random(seed)
    slots = {s for s in range(-60_000, 44_640) if rng.random() < density}
    rows = sum(s >= 0 for s in slots)
    venue, plan = Venue(slots), SeriesPlan(MINUTE, page_size=200)
    want = want_of(plan, SpanSet([Span(at(0), at(44_640))]))
    run(plan, [want], venue, rng, flight=10)
    assert venue.asked <= 2.5 * rows / 200 + 1


def test_plan_dense_span_asks_exactly_its_pages() -> None:
    """1,000 candles are five requests, planned at once."""
    plan = SeriesPlan(MINUTE, page_size=200)
    want = want_of(plan, SpanSet([Span(at(0), at(1000))]))
    pages = [plan.next_page(want) for _ in range(6)]
    assert pages[5] is None
    assert [p.to_us for p in pages if p] == [at(1000), at(800), at(600), at(400), at(200)]
    assert {p.count for p in pages if p} == {200}


def test_plan_ascending_want_starts_at_its_oldest_page() -> None:
    """A backtest gets its first section first."""
    plan = SeriesPlan(MINUTE, page_size=200)
    want = want_of(plan, SpanSet([Span(at(0), at(1000))]), ascending=True)
    page = plan.next_page(want)
    assert page is not None
    assert page.claim == Span(at(0), at(200))


def test_plan_page_in_flight_is_not_asked_again_for_another_want() -> None:
    """Two who want the same span share its pages; the second takes what the first has not asked yet."""
    plan = SeriesPlan(MINUTE, page_size=200)
    slow = want_of(plan, SpanSet([Span(at(0), at(400))]))
    first = plan.next_page(slow)
    quick = want_of(plan, SpanSet([Span(at(0), at(400))]))
    second = plan.next_page(quick)
    assert first is not None
    assert second is not None
    assert first.claim == Span(at(200), at(400))
    assert second.claim == Span(at(0), at(200))
    assert plan.next_page(slow) is None
    plan.settle(first, judge(first, at(200), 200), 200)
    plan.settle(second, judge(second, at(0), 200), 200)
    assert slow.is_done
    assert quick.is_done


def short_of_history(plan: SeriesPlan, want: Pending) -> Page:
    """A page of 200 that came with 50 rows, the oldest held; the next page asked."""
    page = plan.next_page(want)
    assert page is not None
    verdict = judge(page, at(150), 50)
    assert verdict.proof == SpanSet([Span(at(150), at(200))])
    plan.settle(page, verdict, 50, anchor_us=at(150))
    again = plan.next_page(want)
    assert again is not None
    return again


def test_plan_short_reply_is_not_accepted_before_its_second_ask() -> None:
    """A short reply becomes the beginning of history only when a second request confirms it."""
    plan = SeriesPlan(MINUTE, page_size=200)
    want = want_of(plan, SpanSet([Span(at(0), at(200))]))
    again = short_of_history(plan, want)
    assert again.confirms
    assert (again.to_us, again.anchor_us) == (at(151), at(150)), "the second ask includes a candle that is known"
    verdict = judge(again, at(150), 1)
    assert verdict.proof == SpanSet([Span(EARLIEST_US, at(151))])
    plan.settle(again, verdict, 1)
    assert want.is_done


def test_plan_second_ask_that_lacks_the_known_candle_is_contradicted() -> None:
    """An empty body by mistake, twice, is not taken for the beginning of history."""
    plan = SeriesPlan(MINUTE, page_size=200)
    want = want_of(plan, SpanSet([Span(at(0), at(200))]))
    again = short_of_history(plan, want)
    for newest in (None, at(149)):
        with pytest.raises(PayloadError, match="known to be there"):
            check(again, judge(again, newest, 0), newest, None, "KRW-BTC 1m")
    check(again, judge(again, at(150), 1), at(150), None, "KRW-BTC 1m")
    plan.retract(again)
    assert plan.next_page(want) == again


def test_plan_short_reply_that_was_a_fault_is_healed_by_the_second_ask() -> None:
    """Rows that a faulty reply left out are found, not taken for minutes without trades."""
    plan, held = SeriesPlan(MINUTE, page_size=200), set[int]()
    venue = Venue(set(range(250)))
    want = want_of(plan, SpanSet([Span(at(0), at(200))]))
    page = plan.next_page(want)
    assert page is not None
    take(plan, page, [], held)  # an empty body, by mistake
    seeking = plan.next_page(want)
    assert seeking is not None
    assert seeking.seeks, "is there any candle at all?"
    assert plan.next_page(want) is None, "while that is not known, nothing else is asked"
    take(plan, seeking, venue.answer(seeking), held)
    again = plan.next_page(want)
    assert again is not None
    assert again.confirms
    take(plan, again, venue.answer(again), held)
    assert want.is_done
    assert not want.failed


def test_plan_before_listing_is_proven_to_the_beginning() -> None:
    """Before listing there is nothing, and once confirmed that holds for all time before."""
    plan, venue = SeriesPlan(MINUTE, page_size=200), Venue({200_000})
    want = want_of(plan, SpanSet([Span(at(0), at(100_000))]))
    proofs = run(plan, [want], venue, random.Random(0), flight=1)
    assert venue.asked == 3
    assert proofs[-1] == SpanSet([Span(EARLIEST_US, at(100_000))])


def test_plan_series_without_any_candle_is_never_accepted() -> None:
    """A venue that has nothing at all of a market may be at fault: nothing is proven, the want fails."""
    plan, venue = SeriesPlan(MINUTE, page_size=200), Venue(set())
    want = want_of(plan, SpanSet([Span(at(0), at(100_000))]))
    assert not any(run(plan, [want], venue, random.Random(0), flight=1))
    assert want.failed == SpanSet([Span(at(0), at(100_000))])


def test_plan_failed_page_leaves_its_span_failed_for_all_who_waited() -> None:
    """What could not be had reaches everyone who wanted it, with the cause."""
    plan = SeriesPlan(MINUTE, page_size=200)
    wants = [want_of(plan, SpanSet([Span(at(0), at(200))])) for _ in range(2)]
    page = plan.next_page(wants[0])
    assert page is not None
    cause = UnreachableError("down")
    plan.fail(page, cause)
    for want in wants:
        assert want.is_done
        assert want.failed == SpanSet([Span(at(0), at(200))])
        assert want.causes == [cause]


def test_plan_dropped_want_gets_no_page() -> None:
    """A caller who went away costs no further request."""
    plan = SeriesPlan(MINUTE, page_size=200)
    want = want_of(plan, SpanSet([Span(at(0), at(200))]))
    plan.drop(want)
    assert plan.next_page(want) is None
    assert not plan.waiting
    assert not plan._claims


def test_plan_gives_each_reader_what_was_proven_meanwhile() -> None:
    """Nothing is forgotten while a read is under way, and everything after."""
    plan = SeriesPlan(MINUTE, page_size=200)
    want = want_of(plan, SpanSet([Span(at(0), at(400))]))
    plan.begin_read()
    newest, oldest = plan.next_page(want), plan.next_page(want)
    assert newest is not None
    assert oldest is not None
    plan.settle(newest, judge(newest, at(200), 200), 200)
    plan.begin_read()
    assert plan.end_read() == SpanSet([Span(at(200), at(400))])
    plan.settle(oldest, judge(oldest, at(0), 200), 200)
    assert plan.end_read() == SpanSet([Span(at(0), at(400))])
    plan.begin_read()
    assert plan.end_read() == SpanSet()


def test_plan_forgotten_span_is_no_longer_missing() -> None:
    """What is not closed yet on the venue's clock is neither missing nor failed."""
    plan = SeriesPlan(MINUTE, page_size=200)
    want = want_of(plan, SpanSet([Span(at(0), at(200))]))
    plan.forget(want, [Span(at(0), at(200))])
    assert want.is_done
    assert not want.failed


@pytest.mark.parametrize(("slots", "density", "pages"), [(1000, 1.0, 5), (1001, 1.0, 6), (44_640, 0.07, 19)])
def test_pages_needed_counts_by_density(slots: int, density: float, pages: int) -> None:
    """The estimate behind `explain`: full pages on a busy market, few on a thin one."""
    assert pages_needed(MINUTE, SpanSet([Span(at(0), at(slots))]), 200, density) == pages
