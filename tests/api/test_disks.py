"""Where a data folder may lie: names and lengths that people have, links, disks that are full or for reading only."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from backbone import Backbone
from backbone.api.cli.main import main
from backbone.api.frames import attrs_of
from backbone.errors import StoreError
from backbone.settings import parse_place
from backbone.simulator import SimulatorServer
from backbone.storage import files as module
from backbone.storage.layout import Series, tmp_key
from backbone.timeframe import parse_timeframe, period_of
from tests.stress.store_disk import mounts, read_only

LIMIT = 500  # the quota is not what is tested here
SPAN = ("2025-08-20T00:00Z", "2025-08-21T00:00Z")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKBONE_CACHE_DIR", str(tmp_path / "cache"))


def opened(folder: Path | str, venue: SimulatorServer) -> Backbone:
    return Backbone(data_dir=folder, rest_url=venue.rest_url, ws_url=venue.ws_url)


def round_trip(folder: Path, venue: SimulatorServer) -> pd.DataFrame:
    """Fetch, read again in another client without the venue, prove, list, take a snapshot, by call and command."""
    with opened(folder, venue) as client:
        frame = client.candles("KRW-BTC", "1h", *SPAN)
        assert len(frame) == 24
        before = len(venue.requests)
        snapshot = client.store.snapshot("하나 1")
    for where in (folder, Path(snapshot)):
        with opened(where, venue) as later:
            again = later.candles("KRW-BTC", "1h", *SPAN, offline=True)
            assert again.equals(frame)
            assert later.store.verify().empty
            assert later.store.inventory().market.tolist() == ["KRW-BTC"]
            assert str(where) in repr(later)
    assert len(venue.requests) == before
    assert main(["verify", "--data-dir", str(folder), "--rest-url", venue.rest_url]) == 0
    return frame


def deep(root: Path, length: int) -> Path:
    """A folder whose path has `length` bytes."""
    while length - len(bytes(root)) > 210:
        root = root / ("가" * 66)
    return root / ("x" * (length - len(bytes(root)) - 1))


@pytest.mark.parametrize(
    "name", ["시세 자료/업비트 캔들", "my data  (2) #1%20/'it'", "C:", "-x", "_snapshots x", "deep"]
)
def test_folder_of_any_name_holds_candles(venue: SimulatorServer, tmp_path: Path, name: str) -> None:
    """Korean, spaces, quotes, signs that addresses know, three thousand bytes."""
    folder = deep(tmp_path, 3000) if name == "deep" else tmp_path / name
    round_trip(folder, venue)
    assert list(folder.rglob("candles.parquet"))


@pytest.mark.parametrize("which", ["folder", "parent", "relative"])
def test_folder_that_is_a_link_is_the_folder_it_leads_to(
    venue: SimulatorServer, tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data folder, or one above it, may be a link; two names of one folder are one store."""
    real = tmp_path / "other disk" / "data"
    real.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(real if which == "folder" else real.parent)
    folder = link if which == "folder" else link / "data"
    if which == "relative":
        monkeypatch.chdir(tmp_path)
        folder = Path("link") / "data"
    with opened(folder, venue) as through, opened(real, venue) as straight:
        frame = through.candles("KRW-BTC", "1h", *SPAN)
        assert straight.candles("KRW-BTC", "1h", *SPAN, offline=True).equals(frame)
    round_trip(folder.absolute(), venue)


def test_snapshot_behind_a_link_is_a_snapshot(venue: SimulatorServer, tmp_path: Path) -> None:
    """It is read as one, and never written to."""
    with opened(tmp_path / "data", venue) as client:
        frame = client.candles("KRW-BTC", "1h", *SPAN)
        snapshot = Path(client.store.snapshot("paper-1"))
    (tmp_path / "paper").symlink_to(snapshot)
    held = sorted(snapshot.rglob("*"))
    with opened(tmp_path / "paper", venue) as client:
        assert client.candles("KRW-BTC", "1h", *SPAN, offline=True).equals(frame)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is not kept
            assert len(client.candles("KRW-ETH", "1h", *SPAN)) == 24
    assert sorted(snapshot.rglob("*")) == held


@pytest.mark.parametrize("where", ["too long", "below a file"])
def test_folder_that_cannot_be_made_keeps_no_answer(
    venue: SimulatorServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """One warning names the way out; what arrived is in memory, and is answered from there."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with opened(deep(tmp_path, 4090) if where == "too long" else tmp_path / "file" / "data", venue) as client:
        assert len(client.candles("KRW-BTC", "1h", *SPAN)) == 24
        before = len(venue.requests)
        assert len(client.candles("KRW-BTC", "1h", *SPAN)) == 24
        assert len(venue.requests) == before
        assert client.health().verdict == "degraded"
        client.candles("KRW-ETH", "1h", *SPAN)
    assert caplog.text.count("BACKBONE_DATA_DIR") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if not mounts("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder):
        pytest.skip("this user may not mount a small disk")
    yield folder
    mounts("umount", folder)


def test_full_disk_is_one_error_and_nothing_that_was_there_is_lost(venue: SimulatorServer, small_disk: Path) -> None:
    """The error says that it is full and where; once there is space, what arrived is written without a request."""
    with opened(small_disk / "data", venue) as client:
        frame = client.candles("KRW-BTC", "1h", *SPAN)
        client.store.size()
        client.session.coordinator().store.flush()
        with suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1024))
        with pytest.raises(StoreError, match="the disk is full") as caught:  # noqa: PT012  or in the background
            client.candles("KRW-ETH", "1m", *SPAN)
            client.session.coordinator().store.flush()
        assert str(small_disk) in str(caught.value.path)
        before = len(venue.requests)
        assert len(client.candles("KRW-ETH", "1m", *SPAN)) > 1000
        assert len(venue.requests) == before
        with opened(small_disk / "data", venue) as other:
            assert other.candles("KRW-BTC", "1h", *SPAN, offline=True).equals(frame)
        (small_disk / "ballast").unlink()
        client.session.coordinator().store.flush()
        with opened(small_disk / "data", venue) as other:
            assert len(other.candles("KRW-ETH", "1m", *SPAN, offline=True)) > 1000


def test_folder_for_reading_only_is_read(
    venue: SimulatorServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that one machine fills and others read: no lock, no write; what is fetched is answered, and said once."""
    folder = tmp_path / "shared"
    with opened(folder, venue) as client:
        frame = client.candles("KRW-BTC", "1h", *SPAN)
    held = sorted(folder.rglob("*"))
    with read_only(folder) as is_so:
        if not is_so:
            pytest.skip("this user may not mount a folder for reading only")
        with opened(folder, venue) as reader, warnings.catch_warnings():
            warnings.simplefilter("error")
            assert reader.candles("KRW-BTC", "1h", *SPAN).equals(frame)
            assert reader.store.verify().empty
            assert reader.store.inventory().market.tolist() == ["KRW-BTC"]
            assert reader.health().verdict == "ok"
        assert main(["verify", "--data-dir", str(folder), "--rest-url", venue.rest_url]) == 0
        with opened(folder, venue) as reader:
            assert len(reader.candles("KRW-ETH", "1h", *SPAN)) == 24
            assert len(reader.candles("KRW-XRP", "1h", *SPAN)) == 24
            assert caplog.text.count("BACKBONE_DATA_DIR") == 1
            before = len(venue.requests)
            assert len(reader.candles("KRW-ETH", "1h", *SPAN)) == 24
            assert len(venue.requests) == before
            assert reader.health().verdict == "degraded"
            with pytest.raises(StoreError, match="not allowed"):
                reader.store.remove("KRW-BTC")
            with pytest.raises(StoreError, match="not allowed"):
                reader.store.snapshot("x")
    assert sorted(folder.rglob("*")) == held


def test_home_that_cannot_be_written_costs_no_answer(
    venue: SimulatorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the memo's folder nor the ledger's can be made: frames are made anew, the quota is this process's."""
    (tmp_path / "home").write_text("", encoding="utf-8")
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "BACKBONE_LEDGER_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    monkeypatch.delenv("BACKBONE_CACHE_DIR")
    with opened(tmp_path / "data", venue) as client:
        for _ in range(3):
            frame = client.candles("KRW-BTC", "1m", "2025-08-01T00:00Z", "2025-08-16T00:00Z")
            assert "memo" not in attrs_of(frame)["sources"]
        assert client.store.size()["memo_bytes"] == 0
        assert any("process alone" in reason for reason in client.health().reasons)
        assert client.store.clear() == {"files": 0, "bytes": 0}


# ---------------------------------------------------------------------------------------------- what Windows does

_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{device}{n}" for device in ("COM", "LPT") for n in range(1, 10))}


@pytest.mark.parametrize("market", ["KRW-CON", "CON-AUX", "AUX-NUL", "KRW-COM1", "NUL-BTC"])
def test_no_file_of_a_market_has_a_devices_name(market: str) -> None:
    """Windows keeps some names for devices, whatever their ending; none of ours is one, in any part of its path."""
    timeframe = parse_timeframe("1m")
    series = Series("upbit", market, timeframe)
    key = series.key(period_of(timeframe, 0))
    for each in (key, series.lock_key, tmp_key(key), *series.sidecar_keys):
        for part in each.split("/"):
            assert part.partition(".")[0].upper() not in _DEVICES
            assert not set(part) & set('<>:"\\|?*'), part
            assert not part.endswith((" ", "."))


@pytest.mark.parametrize("place", ["C:\\시세 자료", "d:/data", "\\\\server\\share\\data"])
def test_drive_letter_is_a_folder_not_an_address(place: str) -> None:
    """One letter before the colon is a drive; a share is a folder too."""
    assert parse_place(place).endswith(place)


def test_reader_in_the_way_is_waited_for_wherever_files_are_replaced(
    venue: SimulatorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candles, sidecars, quarantine, exports: each replacement is refused twice, as by a virus scanner, then works."""
    refused: dict[str, int] = {}
    replace = os.replace

    def busy(source: str | Path, target: str | Path) -> None:
        count = refused[str(target)] = refused.get(str(target), 0) + 1
        if count <= 2:
            raise PermissionError(errno.EACCES, "in use by another process")
        replace(source, target)

    monkeypatch.setattr(module, "_IS_WINDOWS", True)
    monkeypatch.setattr(module.os, "replace", busy)
    with opened(tmp_path / "data", venue) as client:
        frame = client.candles("KRW-BTC", "1h", *SPAN)
        client.candles("KRW-BTC", "1h", "2012", "2013")  # before its listing: the sidecar
        client.session.coordinator().store.flush()
        client.store.remove("KRW-BTC", "1h")
    import backbone

    (written,) = backbone.export(frame, "freqtrade", path=tmp_path / "out")
    assert written.is_file()
    assert not list((tmp_path / "out").glob("*.part"))
    seen = " ".join(refused)
    for part in ("candles.parquet", "_quiet", "_quarantine", ".feather"):
        assert part in seen
    assert min(refused.values()) == 3
