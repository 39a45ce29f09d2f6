"""A call's own timeout: it ends in time, names the cause, and keeps what arrived."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.errors import IncompleteError, InputError, SourceError, UnreachableError
from backbone.simulator import SimulatorServer

Pair = tuple[Backbone, SimulatorServer]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """A client that knows the market list, and its venue."""
    with (
        SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True) as venue,
        Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as client,
    ):
        client.tickers("KRW-BTC", priority="critical", max_age=0)
        yield client, venue


CALLS: dict[str, Callable[..., Any]] = {
    "tickers": lambda client, **words: client.tickers("KRW-BTC", max_age=0, **words),
    "orderbooks": lambda client, **words: client.orderbooks("KRW-BTC", max_age=0, **words),
    "trades": lambda client, **words: client.trades("KRW-BTC", 20, **words),
    "candles": lambda client, **words: client.candles("KRW-BTC", "1m", count=5, **words),
}


@pytest.mark.parametrize("priority", ["critical", "normal"])
@pytest.mark.parametrize("name", CALLS)
def test_call_to_a_stalled_venue_ends_within_its_timeout(pair: Pair, name: str, priority: str) -> None:
    """Half a second is half a second, at least once in five tries; the error says what was waited for."""
    client, venue = pair
    venue.faults.add("stall", match="/v1/", times=None, seconds=2)
    took: list[float] = []
    within_s = 0.55 if priority == "critical" else 1.0
    while not took or (took[-1] >= within_s and len(took) < 5):
        begun = time.perf_counter()
        with pytest.raises((SourceError, IncompleteError)) as caught:
            CALLS[name](client, priority=priority, timeout=0.5)
        took.append(time.perf_counter() - begun)
        causes = caught.value.causes if isinstance(caught.value, IncompleteError) else (caught.value,)
        assert isinstance(causes[0], UnreachableError)
    assert min(took) < within_s


@pytest.mark.parametrize("priority", ["critical", "high", "low"])
@pytest.mark.parametrize("name", CALLS)
def test_timeout_says_why_the_attempts_before_it_failed(
    pair: Pair, name: str, priority: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A venue that cuts every connection until the end: the last attempt's own error is in the text, and the cause."""
    monkeypatch.setattr("backbone.coordinator.scheduler._BACKOFF_S", (0.25, 8.0))
    client, venue = pair
    venue.faults.add("reset", match="/v1/", times=None)
    with pytest.raises((SourceError, IncompleteError), match="no answer from http") as caught:
        CALLS[name](client, priority=priority, timeout=0.5)
    if priority != "critical":  # which has no time for another attempt, and raises that error itself
        error = caught.value
        last = error.causes[0] if isinstance(error, IncompleteError) else error
        assert str(last).partition(";")[0].endswith("timeout of 0.5 s")
        assert isinstance(last.__cause__, UnreachableError)


def test_failure_before_an_answer_is_not_the_cause_of_a_timeout(pair: Pair) -> None:
    """The venue answered after it, and stalls now."""
    client, venue = pair
    venue.faults.add("reset", match="/v1/ticker")
    client.tickers("KRW-BTC", priority="normal", max_age=0)
    venue.faults.add("stall", match="/v1/", times=None, seconds=2)
    with pytest.raises(UnreachableError, match=r"timeout of 0\.5 s$"):
        client.tickers("KRW-BTC", priority="normal", max_age=0, timeout=0.5)


def test_timeout_holds_for_the_list_and_the_clock_that_a_call_asks_first(tmp_path: Path) -> None:
    """A new client that wants all markets, or a time that counts back from now, waits no longer for that."""
    calls: list[Callable[[Backbone], Any]] = [
        lambda client: client.candles("KRW", "1d", count=2, timeout=0.5),
        lambda client: client.candles("KRW-BTC", "1m", "3h", timeout=0.5),
    ]
    with SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True) as venue:
        for number, call in enumerate(calls):
            with Backbone(data_dir=tmp_path / str(number), rest_url=venue.rest_url) as client:
                venue.faults.add("stall", match="/v1/", times=None, seconds=3)
                begun = time.perf_counter()
                with pytest.raises(UnreachableError, match="timeout of 0"):
                    call(client)
                assert time.perf_counter() - begun < 2.5
                venue.faults.clear()


def test_long_range_keeps_what_came_in_time(pair: Pair) -> None:
    """Some pages arrive: they are stored and in the error's frame, and the next call asks for the rest only."""
    client, venue = pair
    span = ("KRW-BTC", "1m", "2025-08-10", "2025-08-20")
    with pytest.raises(IncompleteError, match=r"timeout of 1\.5 s") as caught:
        client.candles(*span, timeout=1.5, progress=False)
    arrived = len(caught.value.frame)
    assert 0 < arrived < 14_400
    venue.reset_log()
    assert len(client.candles(*span, progress=False)) > arrived
    assert len(venue.requests) <= 73 - arrived // 200 + 3


@pytest.mark.parametrize("wrong", [0, -1.0, float("inf"), float("nan"), True, "5"])
def test_timeout_that_is_none_is_refused_before_anything_is_asked(pair: Pair, wrong: object) -> None:
    """Zero, infinity and text are no seconds."""
    client, venue = pair
    venue.reset_log()
    for call in CALLS.values():
        with pytest.raises(InputError, match="timeout"):
            call(client, timeout=wrong)
    assert not venue.requests
