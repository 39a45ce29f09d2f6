"""What reaches the disk, and what a failure leaves. The rest is proven through the store."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from backbone.errors import StoreError
from backbone.locks import RUN_LOCK, RunLock
from backbone.storage.coverage import EVER
from tests.storage.helpers import MAY, MINUTE, minutes, open_store, span


def test_every_series_is_tried_and_the_first_failure_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One series whose file refuses does not keep the others from the disk; its own pages stay."""
    store = open_store(tmp_path)
    for market in ("KRW-A", "KRW-B", "KRW-C"):
        store.put(market, MINUTE, minutes(0, 3), span(0, 3), now_us=MAY)
    replace = store._files.replace

    def refuse(key: str, data: Any, *more: Any) -> Any:
        if "KRW-B" in key:
            raise StoreError("the disk is full", path=key)
        return replace(key, data, *more)

    with monkeypatch.context() as patched:
        patched.setattr(store._files, "replace", refuse)
        with pytest.raises(StoreError, match=r"disk is full\. 3 rows of KRW-B 1m stay in memory"):
            store.flush()
    assert (store.commits, store.pending_rows()) == (2, 3)
    assert [market for market, _ in open_store(tmp_path).series()] == ["KRW-A", "KRW-C"]
    store.flush()
    assert open_store(tmp_path).read("KRW-B", MINUTE, EVER).table.num_rows == 3


def test_folder_that_cannot_be_written_keeps_no_answer_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows are served from memory, and one warning names the folder and the variable; closing is no error either."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", refuse)
    store = open_store(tmp_path / "read only", group_commit_s=0.0)
    for first in (0, 9):
        store.put("KRW-BTC", MINUTE, minutes(first, first + 9), span(first, first + 9), now_us=MAY)
    assert store.read("KRW-BTC", MINUTE, EVER).table.equals(minutes(0, 18))
    store.close()
    (incident,) = store.incidents()
    assert incident.kind == "not-stored"
    assert "read only" in incident.detail
    assert "$BACKBONE_DATA_DIR" in incident.detail
    assert caplog.text.count("store.not_stored") == 1
    monkeypatch.setattr("backbone.storage.commit._MOST_ROWS", 10)
    with pytest.raises(StoreError, match="18 rows of KRW-BTC 1m stay in memory"):
        store.flush()


def test_reader_beside_a_commit_reads_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at a file that was just replaced, before its folder is synced, finds it in memory."""
    store = open_store(tmp_path)
    store.put("KRW-BTC", MINUTE, minutes(0, 9), span(0, 9), now_us=MAY)
    store.flush()
    sync, read, found = store._files._sync_folder, list[str](), list[object]()  # type: ignore[attr-defined]
    files_read = store._files.read

    def look(path: str) -> None:
        monkeypatch.setattr(store._files, "read", lambda key: read.append(key) or files_read(key))
        found.append(store.coverage("KRW-BTC", MINUTE, span(0, 18)))
        sync(path)

    monkeypatch.setattr(store._files, "_sync_folder", look)
    store.put("KRW-BTC", MINUTE, minutes(9, 18), span(9, 18), now_us=MAY)
    store.flush()
    assert found
    assert [key for key in read if key.endswith(".parquet")] == []
    assert store.read("KRW-BTC", MINUTE, EVER).table.equals(minutes(0, 18))


def test_commit_that_changes_stored_candles_is_one_event(tmp_path: Path) -> None:
    """Which series, how many candles, from where to where: one event a commit, over months; nothing new, none."""
    store, june = open_store(tmp_path), 31 * 1440
    store.put("KRW-BTC", MINUTE, minutes(0, june + 9), span(0, june + 9), now_us=MAY)
    store.flush()
    store.put("KRW-BTC", MINUTE, minutes(june + 9, june + 12), span(june + 9, june + 12), now_us=MAY)  # only new ones
    store.put("KRW-BTC", MINUTE, minutes(0, 5), span(0, 5), now_us=MAY)  # the same ones
    store.flush()
    assert store.events.read() == []
    for first, last in ((june - 3, june), (june, june + 2)):
        store.put("KRW-BTC", MINUTE, minutes(first, last, 7), span(first, last), now_us=MAY)
    store.put("KRW-BTC", MINUTE, minutes(20, 22), span(20, 23), now_us=MAY)  # one is withdrawn
    store.flush()
    (event,) = open_store(tmp_path).events.read()
    assert (event.market, event.kind, event.how) == ("KRW-BTC", "restated", "candles asked again")
    last = "2024-06-01T00:01:00Z"
    assert event.detail == {"timeframe": "1m", "candles": 6, "first": "2024-05-01T00:22:00Z", "last": last}
    store.flush()
    assert len(store.events.read()) == 1


def test_restated_candles_are_reported_although_a_later_file_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The month that was written is an event of its own; the other one follows when it can be written."""
    store, june = open_store(tmp_path), 31 * 1440
    store.put("KRW-BTC", MINUTE, minutes(june - 3, june + 3), span(june - 3, june + 3), now_us=MAY)
    store.flush()
    replace = store._files.replace

    def refuse(key: str, data: Any, *more: Any) -> Any:
        if "2024-06" in key:
            raise StoreError("the disk is full", path=key)
        return replace(key, data, *more)

    store.put("KRW-BTC", MINUTE, minutes(june - 3, june + 3, 7), span(june - 3, june + 3), now_us=MAY)
    with monkeypatch.context() as patched:
        patched.setattr(store._files, "replace", refuse)
        with pytest.raises(StoreError, match="disk is full"):
            store.flush()
    assert [event.detail["candles"] for event in store.events.read()] == [3]
    store.flush()
    assert [event.detail["candles"] for event in store.events.read()] == [3, 3]


def test_others_have_their_turn_while_a_page_goes_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may take long; who writes waits for it."""
    monkeypatch.setattr(RunLock, "PATIENCE_S", 20.0)
    store, had_turn = open_store(tmp_path), list[bool]()
    replace = store._files.replace

    def another() -> None:
        with RUN_LOCK.running():
            had_turn.append(RUN_LOCK.is_held)

    def watched(key: str, data: Any, *more: Any) -> Any:
        thread = threading.Thread(target=another)
        thread.start()
        thread.join(5)
        return replace(key, data, *more)

    monkeypatch.setattr(store._files, "replace", watched)
    with RUN_LOCK.running():
        store.put("KRW-BTC", MINUTE, minutes(0, 3), span(0, 3), now_us=MAY)
        store.flush()
        assert RUN_LOCK.is_held
    assert had_turn == [True]
