"""The doubles that the package offers for tests."""

from __future__ import annotations

import json
import threading

import pytest

from backbone.clock import Clock
from backbone.errors import InputError
from backbone.testing import ManualClock, MemoryVenue
from tests.conftest import NOW


def test_manual_clock_moves_by_hand_and_by_waits() -> None:
    """Both clocks move together; each may be set alone; a wait costs its timeout at once."""
    clock: Clock = ManualClock(NOW)
    moved = ManualClock(NOW)
    moved.advance(2.5)
    assert (moved.now_us() - clock.now_us(), moved.monotonic() - clock.monotonic()) == (2_500_000, 2.5)
    with (condition := threading.Condition()):
        assert not moved.wait(condition, 3.0)
    assert moved.monotonic() == 1005.5
    moved.wall_us -= 60_000_000
    assert (moved.now_us() - clock.now_us(), moved.monotonic()) == (-54_500_000, 1005.5)


def test_manual_clock_refuses_a_wait_where_none_is_allowed_and_a_time_that_is_none() -> None:
    """A hidden wait is a failing test."""
    with pytest.raises(AssertionError, match="wait"):
        ManualClock(waits=False).wait(threading.Condition(), 1.0)
    for wrong in (None, "yesterday"):
        with pytest.raises(InputError):
            ManualClock(wrong)


def test_memory_venue_answers_as_the_server_does_without_a_socket() -> None:
    """Rows, refusals and unknown paths, with the venue's messages."""
    venue = MemoryVenue(now=NOW)
    status, body = venue.get("/v1/candles/minutes/1", {"market": "KRW-BTC", "count": "3"})
    rows = json.loads(body)
    assert status == 200
    assert rows == venue.exchange.candles("KRW-BTC", "1m", None, 3, venue.clock.now_us())
    assert venue.get("/v1/ticker", {"markets": "KRW-NOPE"})[0] == 404
    assert venue.get("/v2/nothing") == (
        404,
        b'{"error":{"name":"not_found","message":"no Route matched with those values"}}',
    )
    assert venue.requests[0] == ("/v1/candles/minutes/1", {"market": "KRW-BTC", "count": "3"})


@pytest.mark.parametrize(
    ("kind", "status", "rows"), [("short", 200, 2), ("empty", 200, 0), ("429", 429, None), ("500", 500, None)]
)
def test_memory_venue_plays_its_script_of_faults(kind: str, status: int, rows: int | None) -> None:
    """Once, and then the right answer."""
    venue = MemoryVenue(now=NOW)
    venue.faults.add(kind, match="minutes")
    query = {"market": "KRW-BTC", "count": "4"}
    got, body = venue.get("/v1/candles/minutes/1", query)
    assert got == status
    assert rows is None or len(json.loads(body)) == rows
    assert len(json.loads(venue.get("/v1/candles/minutes/1", query)[1])) == 4
    venue.faults.add("garbage", match="minutes")
    assert venue.get("/v1/candles/minutes/1", query)[1].startswith(b"<<")
    venue.faults.add("numbers", match="minutes")
    assert json.loads(venue.get("/v1/candles/minutes/1", query)[1]) == json.loads(
        venue.get("/v1/candles/minutes/1", query)[1]
    )
