"""All that is stored, brought up to date by one job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from backbone import Backbone
from backbone.errors import InputError, StoreError
from backbone.simulator import SimulatorServer
from backbone.storage.files import LocalFiles

LIMIT = 500  # the quota is not what is tested here


@pytest.fixture
def own_venue() -> Iterator[SimulatorServer]:
    """An exchange whose clock the test moves."""
    with SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True, limit=LIMIT) as server:
        yield server


@pytest.fixture
def filled(own_venue: SimulatorServer, tmp_path: Path) -> Backbone:
    """A client with three series that end an hour before the exchange's now."""
    client = Backbone(data_dir=tmp_path / "data", rest_url=own_venue.rest_url, ws_url=own_venue.ws_url)
    client.candles("KRW-BTC", "1m", "2025-08-22T05:00Z", "2025-08-22T08:00Z")
    client.candles("KRW-ETH", "1m", "2025-08-22T05:00Z", "2025-08-22T08:00Z")
    client.candles("KRW-BTC", "1d", "2025-08-01", "2025-08-20")
    return client


def test_update_brings_every_series_to_now(filled: Backbone, own_venue: SimulatorServer) -> None:
    """A row a series, with what came; afterwards everything up to now is held, and another update adds nothing."""
    with filled as client:
        job = client.store.update()
        found = job.result().set_index(["market", "timeframe"])
        assert (job.state, job.progress.fraction) == ("done", 1.0)
        assert found.index.tolist() == [("KRW-BTC", "1m"), ("KRW-BTC", "1d"), ("KRW-ETH", "1m")]
        assert found["state"].unique().tolist() == ["done"]
        now = client.candles("KRW-BTC", "1m", "2025-08-22T05:00Z", offline=True)
        assert found.loc[("KRW-BTC", "1m"), "added"] == (now.index >= pd.Timestamp("2025-08-22T08:00Z")).sum() > 50
        assert found.loc[("KRW-BTC", "1d"), "added"] == 2
        again = client.store.update().result()
        assert again["added"].tolist() == [0, 0, 0]
        own_venue.clock.advance(600)
        client.tickers("KRW-BTC", max_age=0)
        later = client.store.update("KRW-ETH", "1m").result()
        assert later["market"].tolist() == ["KRW-ETH"]
        assert later["added"].iloc[0] > 0


def test_update_of_a_failing_series_does_not_stop_the_others(filled: Backbone, own_venue: SimulatorServer) -> None:
    """The series that could not be had says why; the others are up to date."""
    with filled as client:
        own_venue.faults.add("garbage", match="KRW-ETH", times=None)
        job = client.store.update()
        found = job.result().set_index("market")
        assert job.state == "incomplete"
        assert found.loc["KRW-BTC", "state"].tolist() == ["done", "done"]
        assert found.loc["KRW-ETH", "state"] == "incomplete"
        assert found.loc["KRW-ETH", "detail"]


def test_update_twice_at_once_shares_the_work(filled: Backbone, own_venue: SimulatorServer) -> None:
    """Two jobs for the same series ask the venue once."""
    with filled as client:
        before = len(own_venue.requests)
        first, second = client.store.update(), client.store.update()
        first.wait(), second.wait()
        alone = 3
        assert len([one for one in own_venue.requests[before:] if one.group == "candles"]) <= alone + 1


def test_update_of_what_is_not_stored_is_refused(filled: Backbone) -> None:
    """The error says what is stored."""
    with filled as client:
        with pytest.raises(InputError, match="KRW-BTC 1m"):
            client.store.update("KRW-XRP")
        with pytest.raises(InputError, match="critical"):
            client.store.update(priority="critical")


def test_update_fills_the_hole_that_a_failed_one_left(filled: Backbone, own_venue: SimulatorServer) -> None:
    """A page that failed while later ones arrived is asked again; what lies far back is somebody's own choice."""
    with filled as client:
        client.candles("KRW-BTC", "1m", "2025-08-20T00:00Z", "2025-08-20T01:00Z")
        client.candles("KRW-BTC", "1m", "2025-08-21T20:00Z", "2025-08-21T21:00Z")
        found = client.store.update("KRW-BTC", "1m").result()
        whole = client.candles("KRW-BTC", "1m", "2025-08-21T21:00Z", "2025-08-22T09:00Z", offline=True)
        assert len(whole) == 12 * 60 - 1, "the last minute is not closed"
        assert found["added"].tolist() == [len(whole) - 200]  # the page that ends at 08:00 was held
        plan = client.explain("KRW-BTC", "1m", "2025-08-20T01:00Z", "2025-08-21T17:00Z")
        assert plan.pages > 10, "that was not asked"


def test_update_of_a_snapshot_is_refused(filled: Backbone, own_venue: SimulatorServer) -> None:
    """What it would bring could not be kept; before any request."""
    with filled as client:
        where = client.store.snapshot("paper-1")
        own_venue.reset_log()
        with Backbone(data_dir=where, rest_url=own_venue.rest_url, ws_url=own_venue.ws_url) as kept:
            with pytest.raises(StoreError, match=r"cannot update .*: a snapshot never changes"):
                kept.store.update()
            assert kept.store.verify().empty
    assert own_venue.requests == []


def test_update_of_a_long_history_reads_its_end(
    filled: Backbone, own_venue: SimulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Months that nothing is asked of are not read, whatever they hold."""
    with filled as client:
        for month in range(2, 8):
            day = f"2025-0{month}-05T0"
            client.candles("KRW-BTC", "1m", f"{day}0:00Z", f"{day}1:00Z")
        folder = client.data_dir
    read, seen = LocalFiles.read, set[str]()
    monkeypatch.setattr(LocalFiles, "read", lambda files, key: seen.add(key) or read(files, key))
    with Backbone(data_dir=folder, rest_url=own_venue.rest_url, ws_url=own_venue.ws_url) as client:
        found = client.store.update("KRW-BTC", "1m").result()
    assert found["added"].tolist() > [50]
    months = {key.rpartition("period=")[2][:13] for key in seen if "timeframe=minute1" in key and "period" in key}
    assert months <= {"month-2025-07", "month-2025-08"}, months
