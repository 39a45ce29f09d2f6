"""A client whose store is a bucket: the same answers, nothing fetched twice by two hosts, scans, copies, refusals."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from backbone import Backbone
from backbone.api.cli import main as cli
from backbone.errors import IncompleteError, InputError, StoreError
from backbone.simulator import SimulatorServer
from backbone.storage import lazy
from backbone.storage.lazy import FileScan, Selected
from tests.storage.s3 import BUCKET, place, s3_server  # noqa: F401

LIMIT = 500  # the quota is not what is tested here

# ruff: noqa: F811 - fixtures

SPAN = ("2025-08-20T00:00Z", "2025-08-21T00:00Z")
START, END = "2025-07-30T00:00Z", "2025-08-02T00:00Z"
MARKETS = ["KRW-BTC", "KRW-ETH"]


def client_of(venue: SimulatorServer, where: str | Path) -> Backbone:
    return Backbone(data_dir=where, rest_url=venue.rest_url, ws_url=venue.ws_url)


def test_candles_in_a_bucket_are_fetched_once_for_all_hosts(venue: SimulatorServer, place: str) -> None:
    """What one client fetched, another with the same bucket reads without a request, equal to the last bit."""
    with client_of(venue, place) as one:
        first = one.candles(MARKETS, "1m", START, END)
        assert one.data_dir == place
        assert place in repr(one)
    venue.reset_log()
    with client_of(venue, place) as two:
        assert two.candles(MARKETS, "1m", START, END).equals(first)
        assert len(two.store.verify()) == 0
    assert venue.requests == []


def test_scan_of_a_bucket_reads_it_in_place(venue: SimulatorServer, place: str) -> None:
    """Polars scans the bucket itself; the files are addresses that other engines take."""
    with client_of(venue, place) as client:
        asked = client.candles(MARKETS, "1m", START, END, frames="polars")
        found = client.scan(MARKETS, "1m", START, END).collect()
        assert found.equals(asked.select(found.columns))
        assert client.scan("KRW", "1m").select("market").unique().collect().height == 2
        assert all(path.startswith(f"{place}/candles/exchange=") for path in client.files(MARKETS, "1m", START, END))


def test_kept_scan_of_a_bucket_says_what_left(venue: SimulatorServer, place: str) -> None:
    """Another host takes a market out of the bucket; a scan of before has what is left, or says what is missing."""
    with client_of(venue, place) as client, client_of(venue, place) as elsewhere:
        client.candles(MARKETS, "1m", START, END)
        whole = client.scan(MARKETS, "1m", START, END)
        held = client.scan("KRW", "1m", partial=True).select("market").unique()
        assert held.collect().height == 2
        elsewhere.store.remove("KRW-ETH")
        assert held.collect()["market"].to_list() == ["KRW-BTC"]
        with pytest.raises(IncompleteError, match="KRW-ETH were never asked for"):
            whole.collect()


@pytest.mark.parametrize("at_check", [0, 1, 2])
def test_scan_of_a_bucket_misses_a_timeframe_that_was_removed(
    venue: SimulatorServer, place: str, monkeypatch: pytest.MonkeyPatch, at_check: int
) -> None:
    """Before the collect, before the objects are opened, and after: no generation changes, and objects without rows
    take the place of those that left."""
    check, checks = FileScan._check, []
    with client_of(venue, place) as client, client_of(venue, place) as elsewhere:
        client.candles(MARKETS, "1h", START, END)
        whole, held = client.scan(MARKETS, "1h", START, END), client.scan("KRW", "1h", partial=True)
        left = held.filter(pl.col("market") == "KRW-BTC").collect()

        def interfere(self: FileScan, selected: Selected) -> None:
            check(self, selected)
            checks.append(1)
            if len(checks) == at_check:
                elsewhere.store.remove("KRW-ETH", "1h")

        monkeypatch.setattr(FileScan, "_check", interfere)
        if at_check == 0:
            elsewhere.store.remove("KRW-ETH", "1h")
        assert held.collect().equals(left)
        with pytest.raises(IncompleteError, match="KRW-ETH were never asked for"):
            whole.collect()


def test_timeframe_that_is_removed_from_a_bucket_after_rows_were_handed_on_is_an_error_of_ours(
    venue: SimulatorServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what to do, and doing that gives what is left."""
    monkeypatch.setattr(lazy, "_BATCH_ROWS", 50)
    with client_of(venue, place) as client, client_of(venue, place) as elsewhere:
        client.candles(MARKETS, "1h", START, END)
        scan = client.scan(MARKETS, "1h", partial=True)
        left = scan.filter(pl.col("market") == "KRW-BTC").collect()
        batches = FileScan._batches

        def late(*words: Any) -> Iterator[pl.DataFrame]:
            monkeypatch.setattr(FileScan, "_batches", batches)
            yield from batches(*words)
            elsewhere.store.remove("KRW-ETH", "1h")

        monkeypatch.setattr(FileScan, "_batches", late)
        with pytest.raises(StoreError, match=r"market=KRW-ETH.* was moved away .*collect it again"):
            scan.collect()
        assert scan.collect().equals(left)


def test_store_moves_between_a_folder_and_a_bucket(venue: SimulatorServer, place: str, tmp_path: Path) -> None:
    """A store copied to the bucket and back answers the same, with no request."""
    with client_of(venue, tmp_path / "here") as client:
        asked = client.candles("KRW-BTC", "1h", START, END)
        done = client.store.copy_to(place)
        assert (done.files, done.problems) == (1, ())
    venue.reset_log()
    with client_of(venue, place) as client:
        assert client.candles("KRW-BTC", "1h", START, END).equals(asked)
        assert client.store.copy_to(tmp_path / "back").files == 1
    with client_of(venue, tmp_path / "back") as client:
        assert client.candles("KRW-BTC", "1h", START, END).equals(asked)
    assert venue.requests == []


def test_client_of_a_bucket_pickles_without_credentials(venue: SimulatorServer, place: str) -> None:
    """A pickled client has the address and no secret, and works where the environment has them."""
    with client_of(venue, place) as client:
        client.candles("KRW-BTC", "1d", START, END)
        data = pickle.dumps(client)
    assert b"very-secret" not in data
    with pickle.loads(data) as other:
        assert len(other.candles("KRW-BTC", "1d", START, END, offline=True)) == 3


def test_bucket_that_is_not_there_is_one_error_before_any_request(
    venue: SimulatorServer, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing bucket ends a call, and a command, before the venue is asked."""
    with client_of(venue, "s3://not-there-at-all/x") as client, pytest.raises(StoreError, match="does not exist"):
        client.candles("KRW-BTC", "1h", START, END)
    argv = ["fetch", "KRW-BTC", "1h", "--data-dir", "s3://not-there-at-all/x", "--rest-url", venue.rest_url]
    assert cli.main(argv) == cli.EXIT_STORE
    assert "does not exist" in capsys.readouterr().err
    assert venue.requests == []


def test_address_of_another_kind_is_an_input_error(venue: SimulatorServer) -> None:
    """Only a folder or an s3 address is taken; a Path of an address is not taken for a folder."""
    for wrong in ("ftp://x/y", Path("s3://bucket/x"), f"s3://user:word@{BUCKET}"):
        with pytest.raises(InputError, match="data_dir"):
            client_of(venue, wrong)


def test_upkeep_of_a_bucket_is_that_of_a_folder(venue: SimulatorServer, place: str) -> None:
    """Quarantine, snapshot, events, condition, removal and clearing: what a folder does, a bucket does."""
    with client_of(venue, place) as client:
        frame = client.candles("KRW-BTC", "1h", *SPAN)
        other = client.candles("KRW-ETH", "1h", *SPAN)
        client.store.update("KRW-BTC", "1h").wait()
        assert client.store.inventory().market.tolist() == ["KRW-BTC", "KRW-ETH"]
        snapshot = client.store.snapshot("paper-1")
        (content,) = client.store.snapshots().content
        where = client.store.remove("KRW-BTC")
        assert client.store.inventory().market.tolist() == ["KRW-ETH"]
        assert client.store.verify().empty
        assert "quarantined" in client.store.events("KRW-BTC").kind.tolist()
        with pytest.raises(IncompleteError):
            client.candles("KRW-BTC", "1h", *SPAN, offline=True)
        assert client.candles("KRW-BTC", "1h", *SPAN).equals(frame)
        assert client.store.condition("KRW-BTC", "1h").rows.sum() >= len(frame)
    with client_of(venue, place) as later:
        assert later.store.events("KRW-BTC").kind.tolist().count("quarantined") == 1
        for kept, market, rows in (
            (where, "KRW-BTC", frame),
            (snapshot, "KRW-BTC", frame),
            (snapshot, "KRW-ETH", other),
        ):
            with client_of(venue, str(kept)) as reader:
                assert reader.candles(market, "1h", *SPAN, offline=True).equals(rows)
                assert reader.store.verify().empty
        assert later.store.remove("KRW-ETH", "1h", for_good=True) is None
        assert later.store.clear()["files"] > 0
        assert later.store.snapshots().content.tolist() == [content]
        assert later.store.inventory().market.tolist() == ["KRW-BTC"]


def test_snapshot_in_a_bucket_never_changes(venue: SimulatorServer, place: str) -> None:
    """What a client fetches in it is delivered and not kept; what is asked to change it is refused."""
    with client_of(venue, place) as client:
        client.candles("KRW-BTC", "1h", *SPAN)
        snapshot = str(client.store.snapshot("paper-1"))
        before = client.store.snapshots().content.tolist()
        with client_of(venue, snapshot) as reader:
            assert len(reader.candles("KRW-ETH", "1h", *SPAN)) == 24
            with pytest.raises(StoreError, match="snapshot"):
                reader.store.remove("KRW-BTC")
        with client_of(venue, snapshot) as reader:
            assert reader.store.inventory().market.tolist() == ["KRW-BTC"]
        assert client.store.snapshots().content.tolist() == before
