"""The venue's request windows, at given times."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbone.errors import InputError
from backbone.simulator.server.limits import Limits


def _statuses(limits: Limits, times: list[float], group: str = "candles") -> list[int]:
    return [limits.ask(group, at).status for at in times]


def test_fixed_window_starts_afresh_at_every_whole_second() -> None:
    """Ten at the end of a second and ten at the start of the next are all allowed."""
    limits = Limits(10, "fixed")
    assert _statuses(limits, [100.9] * 10 + [101.0] * 10) == [200] * 20
    assert limits.ask("candles", 101.99).status == 429


def test_sliding_window_allows_ten_in_any_second() -> None:
    """The eleventh within a second is refused wherever the second begins."""
    limits = Limits(10, "sliding")
    assert _statuses(limits, [100.9] * 10 + [101.0]) == [200] * 10 + [429]
    assert limits.ask("candles", 101.901).status == 200


@settings(max_examples=60)
@given(gaps=st.lists(st.floats(0, 0.4), min_size=1, max_size=60), sliding=st.booleans())
def test_no_window_ever_holds_more_than_the_limit(gaps: list[float], sliding: bool) -> None:
    """Brute force over every window of the allowed requests."""
    limits = Limits(3, "sliding" if sliding else "fixed", ban_after=10_000)
    now, allowed = 100.0, []
    for gap in gaps:
        now += gap
        if limits.ask("g", now).status == 200:
            allowed.append(now)
    for at in allowed:
        inside = [t for t in allowed if at - 1 < t <= at] if sliding else [t for t in allowed if t // 1 == at // 1]
        assert len(inside) <= 3


def test_groups_have_budgets_of_their_own() -> None:
    """Candles exhausted, tickers untouched."""
    limits = Limits(2)
    assert _statuses(limits, [5.0] * 3) == [200, 200, 429]
    assert limits.ask("ticker", 5.0).status == 200


def test_header_counts_down_from_nine() -> None:
    """`sec` is what is left after this request; `min` is constant."""
    limits = Limits(10)
    assert limits.ask("crix-trades", 1.0).header == "group=crix-trades; min=600; sec=9"
    assert limits.ask("crix-trades", 1.1).header == "group=crix-trades; min=600; sec=8"
    assert limits.ask("websocket", 1.1).header == "group=websocket; min=300; sec=4"


def test_origin_draws_on_one_in_ten_seconds() -> None:
    """A browser's header costs everything: one request, then nothing for ten seconds, whatever the group."""
    limits = Limits(10)
    first = limits.ask("candles", 50.0, origin=True)
    assert (first.status, first.header) == (200, "group=origin; min=6; sec=0")
    assert limits.ask("ticker", 59.0, origin=True).status == 429
    assert limits.ask("ticker", 60.1, origin=True).status == 200


def test_refusals_that_pile_up_block_the_address_longer_each_time() -> None:
    """429s escalate to 418 for every group; the next block is twice as long."""
    limits = Limits(1, ban_after=3, ban_s=4.0)
    assert _statuses(limits, [10.0] * 4) == [200, 429, 429, 418]
    blocked = limits.ask("ticker", 11.0)
    assert (blocked.status, blocked.block_s) == (418, pytest.approx(3.0))
    assert limits.ask("ticker", 14.1).status == 200
    assert _statuses(limits, [20.0] * 4) == [200, 429, 429, 418]
    assert limits.ask("ticker", 20.5).block_s == pytest.approx(7.5)


def test_block_is_never_longer_than_five_minutes() -> None:
    """However often it happened."""
    limits = Limits(1, ban_after=1, ban_s=60.0)
    at, lengths = 0.0, []
    for _ in range(5):
        limits.ask("candles", at)
        lengths.append(limits.ask("candles", at).block_s)
        at += 1000
    assert lengths == [60, 120, 240, 300, 300]


def test_refusals_apart_in_time_do_not_block() -> None:
    """Only those of the last ten seconds count."""
    limits = Limits(1, ban_after=3)
    for second in range(0, 60, 6):
        assert _statuses(limits, [float(second)] * 2) == [200, 429]


@pytest.mark.parametrize(("limit", "window"), [(0, "fixed"), (10, "rolling")])
def test_limits_of_nonsense_are_an_input_error(limit: int, window: str) -> None:
    """The argument is named."""
    with pytest.raises(InputError):
        Limits(limit, window)
