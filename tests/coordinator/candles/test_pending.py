"""How far a span on its way is, and the one record that says so."""

from __future__ import annotations

import pytest

from backbone.coordinator.candles.pending import Pending, Progress
from backbone.model import Priority, Span
from backbone.storage.coverage import SpanSet
from tests.storage.helpers import MAY, MINUTE, MINUTE_US


def minutes(first: int, last: int) -> Span:
    return Span(MAY + first * MINUTE_US, MAY + last * MINUTE_US)


def pending_of(missing: SpanSet, *, ascending: bool = False) -> Pending:
    return Pending("KRW-BTC", MINUTE, minutes(0, 100), Priority.LOW, missing, ascending=ascending)


@pytest.mark.parametrize(("ascending", "reached"), [(True, 40), (False, 70)])
def test_progress_counts_what_is_lacking(ascending: bool, reached: int) -> None:
    """Missing and failed slots are not had; the time reached is seen from the side that it runs from."""
    pending = pending_of(SpanSet([minutes(40, 60)]), ascending=ascending)
    pending.failed = SpanSet([minutes(60, 70)])
    now = pending.progress()
    assert (now.done_slots, now.total_slots) == (70, 100)
    assert now.reached_us == MAY + reached * MINUTE_US


def test_progress_ends_with_what_is_closed() -> None:
    """What turned out not to be closed is neither had nor missing."""
    pending = pending_of(SpanSet([minutes(90, 100)]))
    pending.closed_us = MAY + 90 * MINUTE_US
    assert pending.lacking() == SpanSet()
    assert pending.progress().total_slots == 90


def test_progress_of_a_job_has_its_rate_and_time_to_go() -> None:
    """No rate before anything is had; nothing to go once it ended."""
    assert Progress(0, 100, 0, 0, MAY, elapsed_s=2.0).eta_s is None
    half = Progress(50, 100, 10, 50, MAY, elapsed_s=2.0)
    assert (half.pages_per_s, half.eta_s, half.share) == (5.0, 2.0, 0.5)
    assert Progress(50, 100, 10, 50, MAY, state="cancelled", elapsed_s=2.0).eta_s == 0.0
    assert Progress(0, 0, 0, 0, MAY).share == 1.0
