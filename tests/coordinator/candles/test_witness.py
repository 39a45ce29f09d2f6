"""The one rule about replies with fewer candles than were asked for."""

from __future__ import annotations

import pytest

from backbone.coordinator.candles.witness import EARLIEST_US, FOREVER_US, Page, check, judge, second_request
from backbone.errors import PayloadError
from backbone.model import Span
from backbone.storage.coverage import SpanSet
from tests.storage.helpers import MAY, MINUTE, MINUTE_US

END = MAY + 200 * MINUTE_US
PAGE = Page(END, 200, Span(MAY, END))


def test_full_page_proves_what_it_holds_and_needs_no_second() -> None:
    """From its oldest row up to its bound, and nothing is in doubt."""
    verdict = judge(PAGE, MAY, 200)
    assert verdict.proof == SpanSet([Span(MAY, END)])
    assert not verdict.has_beginning


@pytest.mark.parametrize(
    ("oldest", "rows", "edge"), [(MAY + 60 * MINUTE_US, 140, MAY + 60 * MINUTE_US), (None, 0, END)]
)
def test_short_page_leaves_what_is_older_in_doubt(oldest: int | None, rows: int, edge: int) -> None:
    """Its rows count, what lies before them does not; the second request must show the oldest known one."""
    verdict = judge(PAGE, oldest, rows)
    assert verdict.edge_us == edge
    assert not verdict.proof.holds(MAY)
    second = second_request(MINUTE, edge, oldest, is_sought=False, count=200)
    if oldest is None:
        assert second.seeks
        assert second.bound_us is None
        with pytest.raises(PayloadError, match="any candle at all"):
            check(second, judge(second, None, 0), None, None, "KRW-BTC 1m")
        second = second_request(MINUTE, edge, None, is_sought=True, count=200)
    assert second.to_us == (END if oldest is None else MINUTE.next(oldest))
    agreed = judge(second, oldest, min(rows, 1))
    check(second, agreed, oldest, oldest, "KRW-BTC 1m")
    assert agreed.proof.holds(EARLIEST_US)


def test_page_without_a_known_older_candle_is_not_valid() -> None:
    """An older candle is known: then a reply that has nothing before its oldest row is a mistake."""
    with pytest.raises(PayloadError, match="from before which candles are known"):
        check(PAGE, judge(PAGE, MAY + MINUTE_US, 3), MAY + 5 * MINUTE_US, MAY, "KRW-BTC 1m")
    check(PAGE, judge(PAGE, MAY, 200), END - MINUTE_US, MAY - MINUTE_US, "KRW-BTC 1m")


def test_page_of_the_newest_has_no_bound() -> None:
    """The newest candles are asked without `to`."""
    assert Page(FOREVER_US, 200, Span(MAY, FOREVER_US)).bound_us is None
