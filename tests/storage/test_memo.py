"""Memoised results: right, private, and never in the way."""

from __future__ import annotations

import logging
import os
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from backbone.storage import memo as module
from backbone.storage.memo import FrameMemo

KEY = ("KRW-BTC", "1m", 1, 2, "abc")


def frame(seed: int = 1, rows: int = 1000) -> pd.DataFrame:
    values = np.random.default_rng(seed).random((rows, 2))
    index = pd.date_range("2024-05-01", periods=rows, freq="min", tz="Asia/Seoul", unit="us", name="time")
    return pd.DataFrame(values, index=index, columns=["open", "close"])


def never() -> Any:
    raise AssertionError("made again")


def asked(memo: FrameMemo, key: tuple[str | int, ...], make: Callable[[], pd.DataFrame]) -> tuple[pd.DataFrame, bool]:
    """The result for `key`, made and kept where it is not found, and whether it was."""
    if (found := memo.find(key)) is not None:
        return found, True
    made = make()
    memo.keep(key, made)
    return made, False


def test_memo_gives_the_same_frame_without_making_it(tmp_path: Path) -> None:
    """A second ask, also of another process's memo on the folder, loads an equal frame, index type included."""
    first, is_loaded = asked(FrameMemo(tmp_path / "memo"), KEY, frame)
    assert not is_loaded
    again = FrameMemo(tmp_path / "memo")
    for _ in range(2):
        found, is_loaded = asked(again, KEY, never)
        assert is_loaded
        pd.testing.assert_frame_equal(found, frame(), check_freq=False)
    pd.testing.assert_frame_equal(first, frame(), check_freq=False)
    assert again.hits == 2


def test_memo_of_another_version_is_another_result(tmp_path: Path) -> None:
    """Every part of the key counts, so a changed partition is never served stale."""
    memo = FrameMemo(tmp_path / "memo")
    asked(memo, KEY, frame)
    for position in range(len(KEY)):
        other = (*KEY[:position], "other", *KEY[position + 1 :])
        found, is_loaded = asked(memo, other, lambda: frame(2))
        assert not is_loaded
        pd.testing.assert_frame_equal(found, frame(2), check_freq=False)


def test_memo_result_may_be_written_to_and_the_cache_stays(tmp_path: Path) -> None:
    """A loaded frame is the caller's own."""
    memo = FrameMemo(tmp_path / "memo")
    for _ in range(3):
        found, _ = asked(memo, KEY, frame)
        assert found.iloc[0, 0] == frame().iloc[0, 0]
        found.iloc[0, 0] = 7.0
        assert found.iloc[0, 0] == 7.0


def test_memo_touches_no_disk_until_used(tmp_path: Path) -> None:
    """Constructing makes no folder."""
    assert "0 hits" in repr(FrameMemo(tmp_path / "memo"))
    assert not (tmp_path / "memo").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners or modes here")
@pytest.mark.parametrize("mode", [0o777, 0o755, 0o700])
def test_memo_folder_is_private_to_the_user(tmp_path: Path, mode: int) -> None:
    """What is unpickled is in a folder that no other user can write to or look into."""
    folder = tmp_path / "memo"
    folder.mkdir()
    folder.chmod(mode)
    asked(FrameMemo(folder), KEY, frame)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_memo_folder_that_is_a_link_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A link could lead to a folder that somebody else fills."""
    (tmp_path / "target").mkdir()
    (tmp_path / "memo").symlink_to(tmp_path / "target")
    memo = FrameMemo(tmp_path / "memo")
    with caplog.at_level(logging.WARNING):
        assert [asked(memo, KEY, frame)[1] for _ in range(2)] == [False, False]
    assert list((tmp_path / "target").iterdir()) == []
    assert "memo.not_used" in caplog.text


def test_memo_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is unpickled from a folder that is not ours."""
    folder = tmp_path / "memo"
    asked(FrameMemo(folder), KEY, frame)
    monkeypatch.setattr(module.os, "geteuid", lambda: 12345)
    found, is_loaded = asked(FrameMemo(folder), KEY, lambda: frame(3))
    assert not is_loaded
    assert found.iloc[0, 0] == frame(3).iloc[0, 0]


def test_memo_that_cannot_write_keeps_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk costs the memo, not the answer."""
    from joblib import numpy_pickle

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    memo = FrameMemo(tmp_path / "memo")
    memo.keep(("ready",), frame())
    monkeypatch.setattr(numpy_pickle, "dump", full)
    for action in ("error", "ignore"):
        with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
            warnings.simplefilter(action)  # type: ignore[arg-type]
            memo.keep((*KEY, action), frame())
        assert memo.find((*KEY, action)) is None
    assert "memo.not_kept" in caplog.text


def test_memo_damaged_entry_is_made_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A cut result file is replaced, and nothing is printed into the notebook."""
    memo = FrameMemo(tmp_path / "memo")
    asked(memo, KEY, frame)
    (entry,) = (tmp_path / "memo").rglob("output.pkl")
    entry.write_bytes(entry.read_bytes()[:100])
    found, is_loaded = asked(memo, KEY, lambda: frame(4))
    assert not is_loaded
    pd.testing.assert_frame_equal(found, frame(4), check_freq=False)
    assert asked(memo, KEY, never)[1]
    assert capfd.readouterr() == ("", "")


def test_memo_folder_holds_at_most_256_mebibytes(tmp_path: Path) -> None:
    """However much the results were made from."""
    memo = FrameMemo(tmp_path / "memo", source_bytes=lambda: 1 << 40)
    for mebibytes, fits in ((255, True), (257, False)):
        column = np.broadcast_to(0.0, (mebibytes << 17, 1))  # takes no memory
        assert memo.has_room(pd.DataFrame(column, copy=False)) is fits


def test_memo_folder_stays_within_its_bytes(tmp_path: Path) -> None:
    """Old results go when the limit is passed: its own, or the size of what the results are made from."""
    sources = 10**9
    memo = FrameMemo(tmp_path / "memo", bytes_limit=400_000, source_bytes=lambda: sources)
    for n in range(60):
        asked(memo, ("KRW-BTC", n), lambda n=n: frame(n))  # type: ignore[misc]
        assert memo.size() <= 400_000
    assert asked(memo, ("KRW-BTC", 59), never)[1], "the newest stays"
    assert memo.size() > 300_000
    sources = 100_000
    memo.trim()
    assert 50_000 < memo.size() <= 100_000
    assert memo.has_room(frame(rows=3000))
    assert not memo.has_room(frame(rows=5000))
    asked(memo, ("KRW-BTC", 60), lambda: frame(60, rows=5000))
    assert memo.size() <= 100_000, "one that is larger by itself is not kept"
    memo.clear()
    assert asked(memo, ("KRW-BTC", 59), frame)[1] is False
    sources = 0
    FrameMemo(tmp_path / "memo", source_bytes=lambda: sources).trim()
    assert not list((tmp_path / "memo").rglob("output.pkl"))


def test_memo_finds_only_what_was_kept(tmp_path: Path) -> None:
    """Looking makes nothing, not even the folder; what was kept is found by every memo on the folder."""
    memo = FrameMemo(tmp_path / "memo")
    assert memo.find(KEY) is None
    assert not (tmp_path / "memo").exists()
    asked(memo, KEY, frame)
    again = FrameMemo(tmp_path / "memo")
    pd.testing.assert_frame_equal(again.find(KEY), frame(), check_freq=False)
    assert again.find((*KEY, "other")) is None
    assert again.hits == 1
    (entry,) = (tmp_path / "memo").rglob("output.pkl")
    entry.write_bytes(b"")
    assert again.find(KEY) is None


def test_memo_wants_what_is_asked_again(tmp_path: Path) -> None:
    """The first ask is not worth keeping; of very many asks the oldest are forgotten."""
    memo = FrameMemo(tmp_path / "memo")
    assert [memo.is_wanted(KEY) for _ in range(3)] == [False, True, True]
    for number in range(1000):
        memo.is_wanted((*KEY, number))
    assert not memo.is_wanted(KEY)
