"""Data, quiet, unknown."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from backbone.model import Span
from backbone.storage.continuity import common_quiet, quiet_spans, stretches
from backbone.storage.coverage import SpanSet
from backbone.timeframe import parse_timeframe
from tests.storage.helpers import MAY, MINUTE, MINUTE_US, span

slots = st.sets(st.integers(0, 25))


@given(slots, slots, st.tuples(st.integers(0, 25), st.integers(0, 25)), st.integers(0, 59))
def test_stretches_give_every_slot_its_state(
    traded: set[int], silent: set[int], edges: tuple[int, int], off: int
) -> None:
    """Each candle slot of the span is in exactly one stretch, of the right state, and states alternate."""
    window = Span(*sorted(MAY + n * MINUTE_US - off for n in edges))
    inside = [n for n in range(-1, 26) if window.start <= MAY + n * MINUTE_US < window.end]
    times = np.array([MAY + n * MINUTE_US for n in sorted(traded) if n in inside], dtype=np.int64)
    covered = SpanSet(span(n, n + 1) for n in traded | silent).clip(window)
    found = stretches(times, covered, window, MINUTE)
    states = {}
    for part in found:
        for t in range(part.start, part.end, MINUTE_US):
            states[(t - MAY) // MINUTE_US] = part.state
        assert part.slots == (part.end - part.start) // MINUTE_US > 0
    assert states == {n: "data" if n in traded else "quiet" if n in silent else "unknown" for n in inside}
    assert all(a.end == b.start and a.state != b.state for a, b in pairwise(found))


def test_stretches_of_months_follow_the_calendar() -> None:
    """Months differ in length, and neighbours still join."""
    month = parse_timeframe("1M")
    opens = [month.next(MAY, n) for n in range(6)]
    times = np.array([opens[0], opens[1], opens[3]], dtype=np.int64)
    found = stretches(times, SpanSet([(opens[0], opens[4])]), Span(opens[0], opens[5]), month)
    assert [(part.state, part.slots) for part in found] == [("data", 2), ("quiet", 1), ("data", 1), ("unknown", 1)]


def test_outage_is_where_every_market_is_quiet() -> None:
    """Silence common to all markets is the exchange's; that of one alone is not."""
    covered = SpanSet([span(0, 100)])

    def quiet(holes: set[int]) -> SpanSet:
        times = np.array([MAY + n * MINUTE_US for n in range(100) if n not in holes], dtype=np.int64)
        return quiet_spans(times, covered, MINUTE)

    outage = set(range(40, 55))
    assert common_quiet([quiet(outage | {3}), quiet(outage), quiet(outage | {70})]) == SpanSet([span(40, 55)])
    assert common_quiet([]) == SpanSet()
    assert quiet(set()) == SpanSet()
