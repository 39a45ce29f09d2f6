"""The log of what happened to the markets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from backbone.errors import StoreError
from backbone.storage.events import Event
from backbone.storage.store import CandleStore
from backbone.testing import ManualClock
from tests.processes import process
from tests.storage.helpers import MAY, open_store

LOG = "_events/exchange=upbit.jsonl"


def test_events_are_read_by_every_store_of_the_folder(tmp_path: Path) -> None:
    """What one process notes, another reads, oldest first and by market."""
    one, two = open_store(tmp_path), open_store(tmp_path)
    assert two.events.read() == []
    assert one.events.add("KRW-BTC", "listed", {"korean": "비트코인"}, how="market list")
    assert two.events.add("KRW-ETH", "redenominated", {"factor": 10}, how="overlap", at_us=7)
    expected = [
        Event(MAY, "KRW-BTC", "listed", {"korean": "비트코인"}, "market list"),
        Event(7, "KRW-ETH", "redenominated", {"factor": 10}, "overlap"),
    ]
    assert one.events.read() == two.events.read() == open_store(tmp_path).events.read() == expected
    assert one.events.read("KRW-ETH") == expected[1:]


def test_condition_that_is_known_is_not_written_again(tmp_path: Path) -> None:
    """Two processes that notice the same listing write it once; a market that leaves and returns is three events."""
    one, two = open_store(tmp_path), open_store(tmp_path)
    assert one.events.add("KRW-A", "listed", how="x")
    assert not two.events.add("KRW-A", "listed", how="x")
    assert two.events.add("KRW-A", "warned", {"is": True}, how="x")
    assert not one.events.add("KRW-A", "listed", how="x")
    assert one.events.add("KRW-A", "delisted", how="x")
    assert two.events.add("KRW-A", "listed", how="x")
    assert two.events.add("KRW-A", "warned", {"is": False}, how="x")
    assert one.events.add("KRW-A", "restated", how="x")
    assert one.events.add("KRW-A", "restated", how="x"), "happenings count each"
    kinds = [event.kind for event in one.events.read()]
    assert kinds == ["listed", "warned", "delisted", "listed", "warned", "restated", "restated"]


def test_condition_that_two_notice_at_once_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process writes the same event after the log was looked at and before it is locked."""
    one, two = open_store(tmp_path), open_store(tmp_path)
    look, renamed = one.events.table, {"from": "KRW-A", "to": "KRW-B"}

    def look_and_wait() -> Any:
        table = look()
        two.events.add("KRW-A", "renamed", renamed, how="x")
        return table

    monkeypatch.setattr(one.events, "table", look_and_wait)
    assert not one.events.add("KRW-A", "renamed", renamed, how="x")
    assert [event.kind for event in two.events.read()] == ["renamed"]


def test_line_that_a_crash_cut_is_skipped_and_harms_no_later_one(tmp_path: Path) -> None:
    """A reader passes over half a line; the next writer begins a line of its own."""
    store = open_store(tmp_path)
    store.events.add("KRW-A", "listed", how="x")
    whole = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).write_bytes(whole + whole[: len(whole) // 2])
    assert [event.market for event in store.events.read()] == ["KRW-A"]
    store.events.add("KRW-B", "listed", how="x")
    assert [event.market for event in open_store(tmp_path).events.read()] == ["KRW-A", "KRW-B"]


def test_events_that_cannot_be_written_are_kept_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that refuses is an incident, and loses nothing."""
    store = open_store(tmp_path)

    def refuse(*_: object) -> None:
        raise StoreError("the disk is full", path=LOG)

    with monkeypatch.context() as patched:
        patched.setattr(store._files, "append", refuse)
        store.events.add("KRW-A", "listed", how="x")
        assert [event.market for event in store.events.read()] == ["KRW-A"]
        assert [one.kind for one in store.incidents()] == ["event-not-written"]
        assert store.events.table() is store.events.table(), "read once, though it is not on disk"
    store.events.add("KRW-B", "listed", how="x")
    assert [event.market for event in open_store(tmp_path).events.read()] == ["KRW-A", "KRW-B"]


def write_many(folder: str, name: str) -> None:
    store = open_store(Path(folder), ManualClock(MAY))
    for number in range(100):
        store.events.add(f"KRW-{name}", "restated", {"number": number}, how="x")


@pytest.mark.skipif(os.name == "nt", reason="spawning is slow there")
def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    """Three processes that append at once lose no line, and each one's lines are in order."""
    writers = [process(write_many, str(tmp_path), name) for name in "ABC"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    events = open_store(tmp_path).events.read()
    for name in "ABC":
        assert [e.detail["number"] for e in events if e.market == f"KRW-{name}"] == list(range(100))


def test_long_log_is_read_whole_in_chunks_and_then_only_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is; lines that end in another chunk count too, and a log that was replaced is read anew."""
    monkeypatch.setattr("backbone.storage.events._CHUNK_BYTES", 1000)
    store, reader = open_store(tmp_path), open_store(tmp_path)
    for number in range(50):
        store.events.add("KRW-A", "restated", {"number": number}, how="x")
    assert [event.detail["number"] for event in reader.events.read()] == list(range(50))
    sizes = sizes_read(reader, monkeypatch)
    store.events.add("KRW-A", "restated", {"number": 50}, how="x")
    assert [event.detail["number"] for event in reader.events.read()] == list(range(51))
    assert 0 < sum(sizes) < 200
    log = tmp_path / LOG
    lines = log.read_bytes().splitlines(keepends=True)
    (tmp_path / "new").write_bytes(b"".join(lines[:3]) + lines[4][:20])
    (tmp_path / "new").replace(log)
    assert [event.detail["number"] for event in reader.events.read()] == [0, 1, 2]
    log.unlink()
    assert reader.events.read() == []


def sizes_read(store: CandleStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each read of a part of a file brings from now on."""
    sizes: list[int] = []
    part = store._files.part

    def counted(key: str, offset: int, most: int) -> Any:
        blob = part(key, offset, most)
        sizes.append(0 if blob is None else len(blob.data))
        return blob

    monkeypatch.setattr(store._files, "part", counted)
    return sizes


def filled(folder: Path, count: int) -> list[Event]:
    """A log of `count` lines."""
    events = [Event(MAY + at, f"KRW-{at % 9}", "restated", {"number": at}, "x") for at in range(count)]
    open_store(folder).events.add_all(events)
    return events


def test_next_process_reads_the_columns_of_a_long_log_and_little_of_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was added since is read too; the columns are kept again once that is much, not for each line."""
    monkeypatch.setattr("backbone.storage.events._MANY", 100)
    monkeypatch.setattr("backbone.storage.event_table._BLOCK_BYTES", 1000)
    events, kept = filled(tmp_path, 1000), tmp_path / LOG.replace("jsonl", "columns")
    first = open_store(tmp_path).events
    assert first.read() == events
    before = kept.stat().st_mtime_ns
    assert first.add("KRW-A", "listed", how="x")
    reader = open_store(tmp_path)
    sizes = sizes_read(reader, monkeypatch)
    table = reader.events.table()
    assert (table.event(999), len(table)) == (events[-1], 1001)
    assert sum(sizes) < 3000 < (tmp_path / LOG).stat().st_size
    assert reader.events.read()[:-1] == events
    assert kept.stat().st_mtime_ns == before
    reader.events.add_all([Event(MAY, "KRW-B", "restated", {"number": at}, "x") for at in range(100)])
    assert len(reader.events.read()) == 1101
    assert kept.stat().st_mtime_ns > before


def test_columns_are_a_cache_that_may_be_lost_damaged_or_not_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log alone says what happened, also after it was replaced by another one."""
    monkeypatch.setattr("backbone.storage.events._MANY", 100)
    events, kept = filled(tmp_path, 300), tmp_path / LOG.replace("jsonl", "columns")
    assert open_store(tmp_path).events.read() == events
    whole = kept.read_bytes()
    for data in (b"", whole[:-5], b"x" * 99):
        kept.write_bytes(data)
        assert open_store(tmp_path).events.read() == events
        assert kept.read_bytes() == whole
    (tmp_path / LOG).unlink()
    others = [Event(MAY, "KRW-Z", "restated", {"number": -at}, "y") for at in range(400)]
    open_store(tmp_path).events.add_all(others)
    assert open_store(tmp_path).events.read() == others
    kept.unlink()
    store = open_store(tmp_path)

    def refuse(*_: object) -> None:
        raise StoreError("the disk is full", path=LOG)

    monkeypatch.setattr(store._files, "replace", refuse)
    assert store.events.read() == others
    assert store.incidents() == []
