"""Calls that promise no request make none, also with times like "3d", also when the venue is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.errors import IncompleteError, InputError, UnreachableError
from backbone.simulator import SimulatorServer

LIMIT = 500  # the quota is not what is tested here


@pytest.fixture
def left(tmp_path: Path) -> Any:
    """A store with a day of hours, filled up to now by an exchange that has gone away."""
    with SimulatorServer(seed=7) as venue, Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as client:
        client.candles("KRW-BTC", "1h", "2d")
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as alone:
        yield alone


def test_relative_times_make_no_request_where_none_is_allowed(left: Backbone) -> None:
    """They count back from this machine's clock while the venue's clock is unknown."""
    assert len(left.candles("KRW-BTC", "1h", "1d", "2h", offline=True)) in (21, 22, 23)
    assert left.explain("KRW-BTC", "1h", "1d", "2h").pages == 0
    assert left.scan("KRW-BTC", "1h", "1d", "2h").collect().height in (21, 22, 23)
    assert left.store.outages("1h", "1d").empty


def test_unknown_market_is_an_input_error_where_the_list_is_at_hand(client: Backbone) -> None:
    """Calls that make no request still know the markets of the last list."""
    client.markets()
    for call in (
        lambda: client.explain("KRW-NOPE", "1m", "2025-08-01"),
        lambda: client.coverage("KRW-NOPE"),
        lambda: client.candles("KRW-NOPE", "1m", count=3, offline=True),
        lambda: client.scan("KRW-NOPE", "1h"),
        lambda: client.size("KRW-NOPE"),
        lambda: client.store.verify("KRW-NOPE"),
        lambda: client.store.revisions("KRW-NOPE"),
    ):
        with pytest.raises(InputError, match="KRW-NOPE"):
            call()


def test_market_without_stored_rows_has_no_revisions_and_no_proof(client: Backbone) -> None:
    """Nothing was restated, which is an answer; but to prove nothing would be to say that all is well."""
    assert client.store.revisions("KRW-BTC").empty
    with pytest.raises(InputError, match="something is stored"):
        client.store.verify("KRW-BTC")


def test_newest_held_are_answered_minutes_later(client: Backbone, venue: SimulatorServer) -> None:
    """A count ends with what is held, and the frame says what lies behind it."""
    held = client.candles("KRW-BTC", "1m", count=50)
    venue.clock.advance(180)
    client.tickers("KRW-BTC", max_age=0)  # a reply brings the venue's time
    later = client.candles("KRW-BTC", "1m", count=50, offline=True)
    assert later.index.tolist() == held.index.tolist()
    assert len(later.attrs["backbone"]["missing"]) == 1, "from the last candle to now"


def test_quote_alone_is_no_market(client: Backbone) -> None:
    """``["KRW"]`` is a list of one market, and KRW is none."""
    for wrong in (["KRW"], "KRW_BTC"):
        with pytest.raises(InputError, match="KRW"):
            client.tickers(wrong)


def test_scan_of_a_market_that_was_never_fetched_says_so(client: Backbone) -> None:
    """Also where start and end are left open, and beside a market that was."""
    client.candles("KRW-BTC", "1h", "2025-08-20", "2025-08-21")
    for markets in ("KRW-XRP", ["KRW-BTC", "KRW-XRP"]):
        with pytest.raises(IncompleteError, match="KRW-XRP"):
            client.scan(markets, "1h")
    held = client.coverage("KRW-BTC", "1h")["rows"].sum()
    assert client.scan(["KRW-BTC", "KRW-XRP"], "1h", partial=True).collect().height == held >= 24


def test_start_after_the_venues_now_is_an_input_error(client: Backbone) -> None:
    """On its clock, which may be behind this machine's."""
    client.markets()
    with pytest.raises(InputError, match="start"):
        client.candles("KRW-BTC", "1m", "2026-01-01")


def test_every_frame_carries_its_facts(client: Backbone) -> None:
    """Also those about the client and its store."""
    for frame in (client.status(), client.metrics(), client.store.verify(), client.store.revisions(), client.markets()):
        assert {"request_id", "source", "data_count", "requests", "sources"} <= set(frame.attrs["backbone"])
        assert frame.attrs["backbone"]["data_count"] == len(frame)


def test_failing_venue_is_down_and_a_wrong_question_is_not_its_fault(client: Backbone, venue: SimulatorServer) -> None:
    """The verdict goes by what was given up, not by how often it was tried."""
    with pytest.raises(InputError):
        client.candles("KRW-NOPE", "1m", count=3)
    assert "given up" not in repr(client.health())
    venue.faults.add("500", match="/v1/", times=None)
    with pytest.raises(UnreachableError):
        client.candles("KRW-BTC", "1m", "2025-08-20", "2025-08-21", progress=False)
    assert client.health().verdict == "down"
    assert "does not answer" in " ".join(client.health().reasons)
    venue.faults.clear()
    client.tickers("KRW")
    assert client.health().verdict == "degraded"
