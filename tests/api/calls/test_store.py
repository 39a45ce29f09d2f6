"""`client.store`: proof, mending, what was restated, and comparing with the venue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from backbone import Backbone
from backbone.coordinator import coordinator as fetch
from backbone.coordinator.quota.ledger import MemoryLimiter
from backbone.coordinator.quota.rules import Rules
from backbone.errors import IncompleteError, InputError
from backbone.simulator import SimulatorServer

LIMIT = 500  # the quota is not what is tested here

START, END = "2025-08-22T00:00:00Z", "2025-08-22T06:00:00Z"
PROBLEM = ["market", "timeframe", "path", "kind", "detail"]


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quota is another test's business."""

    class Unhurried(MemoryLimiter):
        is_shared = True

    monkeypatch.setattr(fetch, "MachineLimiter", lambda url, clock: Unhurried(clock, Rules(limit=1000)))


@pytest.fixture
def stocked(unhurried: None, tmp_path: Path) -> Iterator[tuple[Backbone, SimulatorServer]]:
    """A client that holds six hours of minutes of two markets."""
    with (
        SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True, limit=1000) as venue,
        Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as client,
    ):
        client.candles(["KRW-BTC", "KRW-ETH"], "1m", START, END)
        yield client, venue


def partition(client: Backbone, market: str, directory: str = "minute1") -> Path:
    (path,) = client.data_dir.glob(f"candles/*/market={market}/timeframe={directory}/*/candles.parquet")
    return path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_store_that_is_well_has_no_problem(stocked: tuple[Backbone, SimulatorServer]) -> None:
    """An empty frame with all columns: nothing is wrong."""
    client, _ = stocked
    frame = client.store.verify()
    assert list(frame.columns) == PROBLEM
    assert frame.empty
    assert client.store.repair().empty
    assert client.store.incidents().empty
    assert client.store.size()["markets"] == 2
    assert "Store" in repr(client.store)


@pytest.mark.parametrize(("frames", "kind"), [("pandas", pd.DataFrame), ("polars", pl.DataFrame), ("arrow", pa.Table)])
def test_store_frames_are_of_the_type_asked_for(
    stocked: tuple[Backbone, SimulatorServer], frames: str, kind: type
) -> None:
    """Every call of the store takes ``frames``."""
    store = stocked[0].store
    calls = (store.verify, store.repair, store.revisions, store.incidents, store.outages)
    assert all(isinstance(call(frames=frames), kind) for call in calls)


def test_store_damage_is_found_quarantined_and_fetched_again(stocked: tuple[Backbone, SimulatorServer]) -> None:
    """verify names the file, repair moves it, the span is unknown, and the next call fetches it."""
    client, venue = stocked
    before = client.candles("KRW-BTC", "1m", START, END)
    path = partition(client, "KRW-BTC")
    flip(path)
    (problem,) = client.store.verify().to_dict("records")
    assert (problem["market"], problem["kind"], problem["path"]) == ("KRW-BTC", "damaged", str(path))
    assert path.exists(), "proving changes nothing"
    (repaired,) = client.store.repair().to_dict("records")
    assert "moved to" in repaired["detail"]
    assert not path.exists()
    assert client.store.verify().empty
    assert client.coverage("KRW-BTC", "1m").empty
    with pytest.raises(IncompleteError):
        client.candles("KRW-BTC", "1m", START, END, offline=True)
    venue.reset_log()
    pd.testing.assert_frame_equal(client.candles("KRW-BTC", "1m", START, END), before, check_exact=True)
    assert sum(venue.counts()["candles"].values()) == 2
    (kept,) = (client.data_dir / "_quarantine").rglob("candles.parquet*")
    assert kept.is_file()


def test_store_damage_read_is_reported_once_with_its_path(
    stocked: tuple[Backbone, SimulatorServer], caplog: pytest.LogCaptureFixture
) -> None:
    """A read that meets damage survives it, says so once, and health has the path."""
    client, _ = stocked
    before = client.candles("KRW-ETH", "1m", START, END)
    path = partition(client, "KRW-ETH")
    flip(path)
    for _ in range(3):
        pd.testing.assert_frame_equal(client.candles("KRW-ETH", "1m", START, END), before, check_exact=True)
    (incident,) = client.store.incidents().to_dict("records")
    assert (incident["kind"], incident["path"]) == ("quarantined", str(path))
    assert caplog.text.count(str(path)) == 1
    assert any(str(path) in reason for reason in client.health().reasons)


def test_store_agrees_with_the_venue(stocked: tuple[Backbone, SimulatorServer]) -> None:
    """Stored minutes and the hours folded from them equal the venue's own candles."""
    client, venue = stocked
    venue.reset_log()
    assert client.store.verify(against="venue").empty
    asked = {(r.path, r.query["market"]) for r in venue.requests}
    assert asked == {(f"/v1/candles/minutes/{n}", m) for n in (1, 60) for m in ("KRW-BTC", "KRW-ETH")}
    assert client.store.verify("KRW-BTC", "5m", against="venue", start=START, end=END).empty


def test_store_that_differs_from_the_venue_says_where(stocked: tuple[Backbone, SimulatorServer]) -> None:
    """A restated open is found in the stored minutes and in what is folded from them."""
    client, venue = stocked
    venue.faults.add("restate", market="KRW-BTC", start="2025-08-22T03:00:00Z", end="2025-08-22T04:00:00Z")
    frame = client.store.verify(against="venue", start=START, end=END)
    assert set(frame["kind"]) == {"differs"}
    assert set(frame["market"]) == {"KRW-BTC"}
    assert set(frame["timeframe"]) == {"1m", "1h"}
    assert frame["detail"].str.startswith(("stored: open of ", "folded from 1m: open of 1 candles")).all()
    assert frame["detail"].str.contains("2025-08-22T03:00:00Z").all()


def test_store_against_the_venue_passes_over_what_is_not_held(stocked: tuple[Backbone, SimulatorServer]) -> None:
    """A hole in what is stored is no difference."""
    client, _ = stocked
    client.candles("KRW-BTC", "1m", "2025-08-21T20:00:00Z", "2025-08-21T21:00:00Z")
    assert client.store.verify("KRW-BTC", "1m", against="venue", start="2025-08-21T19:00:00Z", end=END).empty


def test_store_arguments_are_checked(client: Backbone) -> None:
    """Wrong arguments are an `InputError` before anything is read."""
    store = client.store
    wrong: list[tuple[Any, dict[str, Any]]] = [
        (store.verify, {"against": "yesterday"}),
        (store.verify, {"timeframe": "7m"}),
        (store.verify, {"market": "a/../b"}),
        (store.revisions, {"market": "../KRW-BTC"}),
        (store.outages, {"timeframe": "7m"}),
        (store.outages, {"markets": []}),
        (store.outages, {"start": "someday"}),
        (store.incidents, {"frames": "dask"}),
    ]
    for call, words in wrong:
        with pytest.raises(InputError):
            call(**words)
    assert store.verify().empty
    assert store.outages().empty
    assert store.revisions().empty
    assert store.size() == {"files": 0, "bytes": 0, "markets": 0, "pending_rows": 0, "memo_bytes": 0}


def test_store_reports_an_outage_of_the_exchange(stocked: tuple[Backbone, SimulatorServer]) -> None:
    """Minutes in which nobody could trade are kept apart from minutes in which one market did not."""
    client, venue = stocked
    venue.faults.add("outage", start="2025-08-21T10:00:00Z", end="2025-08-21T10:20:00Z")
    busy = ["KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL"]
    client.candles(busy, "1m", "2025-08-21T00:00:00Z", "2025-08-22T00:00:00Z")
    frame = client.store.outages()
    assert list(frame.columns) == ["start", "end", "slots", "markets"]
    (outage,) = frame.to_dict("records")
    assert (outage["slots"], outage["markets"]) == (20, 4)
    assert outage["start"] == pd.Timestamp("2025-08-21T10:00:00Z")
    assert str(frame["start"].dt.tz) == "Asia/Seoul"
    assert client.store.outages(markets=["BTC"]).empty, "one market alone is no evidence"
    assert client.store.outages("1m", "2025-08-21T11:00:00Z").empty


@pytest.mark.parametrize("market", ["KRW-BTC", None])
def test_verify_of_a_timeframe_that_is_not_stored_is_refused(
    stocked: tuple[Backbone, SimulatorServer], market: str | None
) -> None:
    """A proof of nothing would say that all is well; folded from stored minutes it can be compared with the venue."""
    client, _ = stocked
    with pytest.raises(InputError, match=r"stored.*: 1m") as caught:
        client.store.verify(market, "1h")
    assert (caught.value.argument, caught.value.value) == ("timeframe", "1h")
    assert client.store.verify(market, "1m").empty
    assert client.store.verify("KRW-BTC", "1h", against="venue").empty
    client.store.remove("KRW-BTC")
    with pytest.raises(InputError, match="so far none"):
        client.store.verify("KRW-BTC", "1h", against="venue")


def test_store_names_its_exchange_at_once(client: Backbone) -> None:
    """What a call has just fetched is there, though its page may not be on the disk yet."""
    client.candles("KRW-BTC", "1h", count=2)
    (name,) = client.store.exchanges()
    assert name.startswith("upbit-at-127.0.0.1-")


def test_store_says_what_it_holds_and_takes_it_away(stocked: tuple[Backbone, SimulatorServer], tmp_path: Path) -> None:
    """inventory, events, snapshot, condition, remove and clear, as a person meets them."""
    client, venue = stocked
    before = client.candles("KRW-BTC", "1m", START, END)
    venue.reset_log()
    (btc, eth) = client.store.inventory().to_dict("records")
    assert (btc["market"], btc["timeframe"], btc["holes"]) == ("KRW-BTC", "1m", 0)
    held = client.candles("KRW-BTC", "1m", btc["from"], btc["to"], offline=True)  # pages are full ones
    assert (len(held), held.index[0], held.index[-1] + pd.Timedelta("1min")) == (btc["rows"], btc["from"], btc["to"])
    assert eth["bytes"] == partition(client, "KRW-ETH").stat().st_size
    path = client.store.snapshot("paper-1")
    gone = client.store.remove("BTC")
    assert client.store.inventory()["market"].tolist() == ["KRW-ETH"]
    (event,) = client.store.events("KRW-BTC").to_dict("records")
    assert (event["kind"], event["how"]) == ("quarantined", "user")
    for folder in (path, gone):
        with Backbone(data_dir=folder, rest_url=venue.rest_url) as other:
            pd.testing.assert_frame_equal(
                other.candles("KRW-BTC", "1m", START, END, offline=True), before, check_exact=True
            )
    condition = client.store.condition("KRW-ETH", "1m")
    assert (condition["rows"].sum(), condition["unknown"].sum()) == (eth["rows"], 0)
    assert client.store.clear()["files"] >= 1
    assert client.store.snapshots()["name"].tolist() == ["paper-1"]
    assert not venue.requests


def test_condition_says_where_each_day_came_from(client: Backbone, venue: SimulatorServer) -> None:
    """Stored minutes, somebody's file, the venue; a page that reaches over adopted rows confirms them."""
    client.candles("KRW-BTC", "1m", "2025-08-19T00:00Z", "2025-08-20T12:00Z")
    mine = client.candles("KRW-BTC", "1h", "2025-08-20T11:00Z", "2025-08-21T06:00Z", priority="critical")
    client.store.adopt(mine, "KRW-BTC", "1h")
    venue.reset_log()
    days = client.store.condition("KRW-BTC", "1h")
    assert list(days.columns) == ["start", "rows", "quiet", "unknown", "provisional", "revisions", "source"]
    assert days["source"].tolist() == ["derived", "adopted+derived", "adopted"]
    assert days["rows"].tolist() == [24, 24, 6]
    for market in ("KRW-BTC", "KRW-ETH"):
        with pytest.raises(InputError, match="something that is stored: KRW-BTC"):
            client.store.condition(market, "1w")
    assert not venue.requests
    client.candles("KRW-BTC", "1h", "2025-08-21T06:00Z", "2025-08-21T12:00Z")  # a full page
    assert set(client.store.condition("KRW-BTC", "1h")["source"]) == {"venue"}


@pytest.mark.parametrize("kind", ["short", "empty"])
@pytest.mark.parametrize("times", [1, None])
def test_verify_takes_no_short_reply_for_a_difference(
    client: Backbone, venue: SimulatorServer, kind: str, times: int | None
) -> None:
    """A fault during the comparison is no finding, or says that it could not be compared."""
    span = {"start": "2025-08-20T00:00:00Z", "end": "2025-08-20T03:00:00Z"}
    client.candles("KRW-BTC", "1m", **span)
    venue.faults.add(kind, times=times)
    frame = client.store.verify("KRW-BTC", "1m", against="venue", **span)
    assert set(frame["kind"]) <= ({"uncompared"} if times is None else set())


def test_verify_of_seconds_that_the_venue_forgot_is_no_difference(client: Backbone, venue: SimulatorServer) -> None:
    """Stored seconds outlive the venue's three months: they cannot be compared any more, and are no wrong rows."""
    span = {"start": "2025-08-22T08:00:00Z", "end": "2025-08-22T08:02:00Z"}
    held = client.candles("KRW-BTC", "1s", **span)
    venue.clock.set("2025-12-01T00:00:00Z")
    client.tickers("KRW-BTC", max_age=0)
    frame = client.store.verify("KRW-BTC", "1s", against="venue", **span)
    assert frame["kind"].tolist() == ["uncompared"]
    assert "three months" in frame["detail"].iloc[0]
    assert len(client.candles("KRW-BTC", "1s", **span, priority="critical")) == len(held), "what is held is held"
    with pytest.raises(IncompleteError, match=r"three months.*the venue has the gaps"):
        client.candles("KRW-BTC", "1s", "2025-08-22T07:50:00Z", "2025-08-22T07:55:00Z", priority="critical")
