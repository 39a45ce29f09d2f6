"""Pages in memory: when they are due, and to which thread."""

from __future__ import annotations

import pytest

from backbone.errors import ClosedError
from backbone.storage.coverage import EVER, SpanSet
from backbone.storage.layout import Series
from backbone.storage.merge import Page
from backbone.storage.pending import PendingPages
from backbone.testing import ManualClock
from tests.storage.helpers import DAY, MAY, MINUTE, minutes, span

BTC, ETH = Series("upbit", "KRW-BTC", MINUTE), Series("upbit", "KRW-ETH", MINUTE)


def page(first: int, last: int) -> Page:
    return Page(first, minutes(first, last), SpanSet([span(first, last)]), {}, "rest", MAY)


def test_page_is_due_after_the_group_commit_time_or_with_many_rows() -> None:
    """A series is named when its first page has waited long enough, or when many rows wait."""
    clock = ManualClock(MAY)
    pending = PendingPages(clock, 0.5)
    with pending.added(BTC, page(0, 9)) as due:
        assert due == []
    clock.advance(0.5)
    with pending.added(ETH, page(0, 9)) as due:
        assert due == [BTC]
        with pending.added(BTC, page(9, 12)) as again:
            assert again == []  # it is being written by somebody
        pending.written(BTC, 1, clock.monotonic())
    assert [one.id for one in pending.of(BTC, EVER)] == [9]
    with pending.added(ETH, page(9, 20_009)) as due:
        assert due == [ETH]


def test_failed_write_is_not_tried_by_every_page() -> None:
    """After a failure no page names a series until the group-commit time has passed again."""
    clock = ManualClock(MAY)
    pending = PendingPages(clock, 0.5)
    with pending.added(BTC, page(0, 9)):
        assert pending.failed(BTC) == 9
    clock.advance(0.4)
    with pending.added(BTC, page(9, 20_010)) as due:
        assert due == []
    clock.advance(0.2)
    with pending.added(BTC, page(20_010, 20_011)) as due:
        assert due == [BTC]


def test_pages_are_chosen_by_span_market_and_timeframe() -> None:
    """Only pages that say something about a span are given; discarded ones are gone."""
    pending = PendingPages(ManualClock(MAY), 0.5)
    for first in (0, 100):
        with pending.added(BTC, page(first, first + 9)):
            pass
    assert [one.id for one in pending.of(BTC, span(50, 105))] == [100]
    assert (pending.series(timeframe=DAY), pending.series("KRW-BTC"), pending.rows()) == ([], [BTC], 18)
    pending.discard([BTC, ETH])
    assert (pending.rows(), pending.of(BTC, EVER)) == (0, [])
    pending.close()
    with pytest.raises(ClosedError), pending.added(BTC, page(0, 1)):
        pass
