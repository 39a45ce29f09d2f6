"""Data, quiet, unknown."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from backbone.model import Span
from backbone.storage.continuity import Outage, intervals, outages
from backbone.storage.coverage import SpanSet
from backbone.timeframe import parse_timeframe
from tests.storage.helpers import MAY, MINUTE, MINUTE_US, span

slots = st.sets(st.integers(0, 25))


@given(slots, slots, st.tuples(st.integers(0, 25), st.integers(0, 25)), st.integers(0, 59))
def test_intervals_give_every_slot_its_state(
    traded: set[int], quiet: set[int], edges: tuple[int, int], off: int
) -> None:
    """Each candle slot of the span is in exactly one interval, of the right state, and states alternate."""
    window = Span(*sorted(MAY + n * MINUTE_US - off for n in edges))
    inside = [n for n in range(-1, 26) if window.start <= MAY + n * MINUTE_US < window.end]
    times = np.array([MAY + n * MINUTE_US for n in sorted(traded) if n in inside], dtype=np.int64)
    covered = SpanSet(span(n, n + 1) for n in traded | quiet).clip(window)
    found = intervals(times, covered, window, MINUTE)
    states = {}
    for part in found:
        for t in range(part.start, part.end, MINUTE_US):
            states[(t - MAY) // MINUTE_US] = part.state
        assert part.slots == (part.end - part.start) // MINUTE_US > 0
    assert states == {n: "data" if n in traded else "quiet" if n in quiet else "unknown" for n in inside}
    assert all(a.end == b.start and a.state != b.state for a, b in pairwise(found))


def test_intervals_of_months_follow_the_calendar() -> None:
    """Months differ in length, and neighbours still join."""
    month = parse_timeframe("1M")
    opens = [month.next(MAY, n) for n in range(6)]
    times = np.array([opens[0], opens[1], opens[3]], dtype=np.int64)
    found = intervals(times, SpanSet([(opens[0], opens[4])]), Span(opens[0], opens[5]), month)
    assert [(part.state, part.slots) for part in found] == [("data", 2), ("quiet", 1), ("data", 1), ("unknown", 1)]


def market(holes: set[int], first: int = 0, last: int = 1000) -> tuple[Any, SpanSet]:
    """A market that trades every minute but in its holes, asked from `first` to `last`."""
    times = [MAY + n * MINUTE_US for n in range(first, last) if n not in holes]
    return np.array(times, dtype=np.int64), SpanSet([span(first, last)])


def test_outage_is_where_busy_markets_are_quiet_together() -> None:
    """Minutes in which no busy market trades are an outage of the exchange; those of one market are not."""
    outage = set(range(40, 55))
    found = outages([market(outage | {3}), market(outage), market(outage | {70})], MINUTE)
    assert found == [Outage(*span(40, 55), 15, 3)]
    assert outages([market(outage)], MINUTE) == []
    assert outages([], MINUTE) == []


def thin_market(chance: random.Random, holes: set[int]) -> tuple[Any, SpanSet]:
    """A market that trades in one minute of twenty."""
    return market(holes | {n for n in range(1000) if chance.random() > 0.05})


def test_outage_of_thin_markets_needs_many_of_them() -> None:
    """A few markets that seldom trade are quiet together by chance; hundreds are not."""
    chance, outage = random.Random(7), set(range(300, 400))
    assert outages([thin_market(chance, outage) for _ in range(20)], MINUTE) == []
    assert outages([thin_market(chance, outage) for _ in range(400)], MINUTE) == [Outage(*span(300, 400), 100, 400)]


def test_outage_of_half_the_day_is_not_taken_for_thinness() -> None:
    """Shares of traded slots are counted where anybody traded."""
    outage = set(range(300, 800))
    assert outages([market(outage | {n}) for n in range(4)], MINUTE) == [Outage(*span(300, 800), 500, 4)]


def test_outage_counts_only_markets_that_were_asked() -> None:
    """Where too few markets cover the pause, it is not called an outage."""
    outage = set(range(1490, 1510))
    received = [market(outage, 0, 1500), market(outage, 0, 3000)]
    assert outages(received, MINUTE) == [Outage(*span(1490, 1500), 10, 2)]


@given(st.lists(st.tuples(slots, slots), max_size=8))
def test_outages_agree_with_a_slot_by_slot_count(worlds: list[tuple[set[int], set[int]]]) -> None:
    """Each slot is in an outage exactly if no market trades and the chance of that is below one in a million."""
    anybody = {n for traded, _ in worlds for n in traded}
    received, evidence = [], [0.0] * 26
    for traded, quiet in worlds:
        times = np.array([MAY + n * MINUTE_US for n in sorted(traded)], dtype=np.int64)
        received.append((times, SpanSet(span(n, n + 1) for n in traded | quiet)))
        share = (len(traded) + 1) / (len((traded | quiet) & anybody) + 2)
        for n in traded | quiet if traded else ():
            evidence[n] -= math.log10(1 - min(0.999, share))
    found = outages(received, MINUTE)
    expected = {n for n in range(26) if evidence[n] > 6 - 1e-9 and n not in anybody}
    assert {(t - MAY) // MINUTE_US for one in found for t in range(one.start, one.end, MINUTE_US)} == expected
    assert all(a.end < b.start for a, b in pairwise(found))
    assert all(one.slots == (one.end - one.start) // MINUTE_US for one in found)
