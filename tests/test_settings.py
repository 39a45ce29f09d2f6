"""A client's settings: checked before anything is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.errors import InputError
from backbone.settings import Settings, resolve
from backbone.simulator import SimulatorServer


def settings(**words: Any) -> Settings:
    known = {"data_dir": None, "rest_url": None, "ws_url": None, "tz": None, "frames": "pandas", "environ": {}}
    return resolve("upbit", **known | words)


@pytest.mark.parametrize("folder", ["rel", "./rel", "a/b", Path("rel")])
def test_relative_folder_stays_where_it_was_meant(folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made absolute at once: whoever changes the working folder later does not move the store."""
    monkeypatch.chdir(tmp_path)
    assert settings(data_dir=folder).data_dir == str(tmp_path / folder)
    assert settings(environ={"BACKBONE_DATA_DIR": str(folder)}).data_dir == str(tmp_path / folder)


def test_store_in_a_relative_folder_outlives_a_change_of_folder(
    venue: SimulatorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is not there yet is made, and found again from elsewhere."""
    monkeypatch.chdir(tmp_path)
    with Backbone(data_dir="here/below", rest_url=venue.rest_url) as client:
        first = client.candles("KRW-BTC", "1h", "2025-08-20", "2025-08-21")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        client.candles("KRW-ETH", "1h", "2025-08-20", "2025-08-21")
        assert client.candles("KRW-BTC", "1h", "2025-08-20", "2025-08-21").equals(first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "here"]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_folder_of_a_user_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``~`` is the user's folder, as in a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert settings(data_dir="~/market").data_dir == str(tmp_path / "market")


@pytest.mark.parametrize("folder", ["", 5, b"/tmp/x", 1.5, ["x"]])
def test_what_is_no_folder_is_refused(folder: Any) -> None:
    """At once, and by name."""
    with pytest.raises(InputError) as caught:
        settings(data_dir=folder)
    assert caught.value.argument == "data_dir"


@pytest.mark.parametrize("url", [5, "http://127.0.0.1:abc", "http://127.0.0.1:99999", "ftp://x", "http://", "x"])
def test_what_is_no_address_is_refused(url: Any) -> None:
    """Also one whose port is none."""
    with pytest.raises(InputError) as caught:
        settings(rest_url=url)
    assert caught.value.argument == "rest_url"


def test_close_grace_is_an_argument_then_the_environment_then_three_seconds() -> None:
    """How long a candle that ended is waited for; what is no such time names the argument."""
    words: dict[str, Any] = {"data_dir": "/tmp/x", "rest_url": None, "ws_url": None, "tz": None, "frames": "pandas"}
    assert resolve("upbit", **words, environ={}).close_grace_s == 3.0
    assert resolve("upbit", **words, environ={"BACKBONE_CLOSE_GRACE": "0.5"}).close_grace_s == 0.5
    assert resolve("upbit", **words, close_grace=0, environ={"BACKBONE_CLOSE_GRACE": "9"}).close_grace_s == 0.0
    for wrong in (-1, 61, "soon", float("nan"), True):
        with pytest.raises(InputError) as caught:
            resolve("upbit", **words, close_grace=wrong, environ={})
        assert caught.value.argument == "close_grace"
