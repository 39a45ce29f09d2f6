"""The store on a real S3 server: conditional writes, racing and killed writers, the local cache, refusals."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backbone.clock import SystemClock
from backbone.errors import InputError, StoreError
from backbone.locks import RUN_LOCK
from backbone.model import Span
from backbone.settings import parse_place, resolve
from backbone.storage import copy as copying
from backbone.storage import s3 as module
from backbone.storage.coverage import EVER, SpanSet
from backbone.storage.events import Event
from backbone.storage.layout import Series
from backbone.storage.s3 import LocalCache, ObjectFiles, open_files, scan_options
from backbone.storage.series_locks import OvertakenError
from backbone.storage.store import CandleStore
from backbone.testing import ManualClock
from tests.storage.helpers import MAY, MINUTE, in_child, minutes, needs_fork, opens, rows_of, span
from tests.storage.s3 import BUCKET, S3Server, objects, place, s3_server  # noqa: F401

# ruff: noqa: F811 - fixtures

SERIES = Series("upbit", "KRW-BTC", MINUTE)
KEY = SERIES.key(Span(MAY, MAY + 31 * 86_400_000_000))
LOCK = SERIES.lock_key
MONTH = 31 * 1440  # minutes


def open_store(place: str, cache: Path, name: str = "a") -> CandleStore:
    return CandleStore(objects(place, cache / name), "upbit", clock=SystemClock())


def put(store: CandleStore, first: int, last: int, salt: int = 0) -> None:
    store.put("KRW-BTC", MINUTE, minutes(first, last, salt), span(first, last), now_us=MAY)


def test_replace_creates_only_what_is_absent(place: str, tmp_path: Path) -> None:
    """Two writers that both saw nothing: one creates, the other is overtaken and has changed nothing."""
    first, second = objects(place, tmp_path / "a"), objects(place, tmp_path / "b")
    with first.exclusive(LOCK), second.exclusive(LOCK):
        assert first.stat(KEY) is None
        assert second.stat(KEY) is None
        first.replace(KEY, b"one")
        with pytest.raises(OvertakenError):
            second.replace(KEY, b"two")
    assert second.read(KEY).data == b"one"  # type: ignore[union-attr]


def test_replace_puts_only_over_the_pinned_version(place: str, tmp_path: Path) -> None:
    """A writer whose transaction began before another's write is overtaken; a new one succeeds."""
    first, second = objects(place, tmp_path / "a"), objects(place, tmp_path / "b")
    with first.exclusive(LOCK):
        first.replace(KEY, b"one")
    with second.exclusive(LOCK):
        assert second.read(KEY).data == b"one"  # type: ignore[union-attr]
        with first.exclusive(LOCK):
            first.replace(KEY, b"two")
        with pytest.raises(OvertakenError):
            second.replace(KEY, b"three")
    with second.exclusive(LOCK):
        second.replace(KEY, second.read(KEY).data + b"+three")  # type: ignore[union-attr]
    with first.exclusive(LOCK):
        assert first.read(KEY).data == b"two+three"  # type: ignore[union-attr]


def test_transaction_is_pinned(place: str, tmp_path: Path) -> None:
    """Within a transaction a version stays what it was first seen as, so that no write is based on two states."""
    first, second = objects(place, tmp_path / "a"), objects(place, tmp_path / "b")
    with first.exclusive(LOCK):
        before = first.replace(KEY, b"one")
    with second.exclusive(LOCK):
        assert second.stat(KEY) == before
        with first.exclusive(LOCK):
            first.replace(KEY, b"two")
        with second.exclusive(LOCK):
            assert second.stat(KEY) == before


def test_store_reads_back_what_another_process_wrote(place: str, tmp_path: Path) -> None:
    """Rows, coverage and revisions cross from one host to another."""
    one, two = open_store(place, tmp_path, "a"), open_store(place, tmp_path, "b")
    put(one, 0, 100)
    one.flush()
    put(one, 50, 60, salt=1)
    one.flush()
    found = two.read("KRW-BTC", MINUTE, span(0, 200))
    assert opens(found.table) == opens(minutes(0, 100))
    assert found.covered == SpanSet([span(0, 100)])
    assert two.revisions().num_rows == 10
    assert two.series() == [("KRW-BTC", MINUTE)]
    assert two.verify() == []
    assert two.paths("KRW-BTC", MINUTE, span(0, 1)) == [f"{place}/{KEY}"]
    assert two.size()["files"] == 1


def test_store_quiet_spans_cross_too(place: str, tmp_path: Path) -> None:
    """A span without trades is known on the other host, and no partition is made for it."""
    one, two = open_store(place, tmp_path, "a"), open_store(place, tmp_path, "b")
    one.put("KRW-BTC", MINUTE, minutes(0, 0), span(0, 5000), now_us=MAY)
    one.flush()
    assert two.coverage("KRW-BTC", MINUTE, span(0, 5000)) == SpanSet([span(0, 5000)])
    assert two.paths("KRW-BTC", MINUTE, span(0, 5000)) == []


def test_writers_with_old_versions_merge(place: str, tmp_path: Path) -> None:
    """Two stores that write the same period in turns lose nothing of each other's."""
    one, two = open_store(place, tmp_path, "a"), open_store(place, tmp_path, "b")
    for turn in range(6):
        put(one if turn % 2 else two, 100 * turn, 100 * turn + 100)
        (one if turn % 2 else two).flush()
    fresh = open_store(place, tmp_path, "c")
    assert opens(fresh.read("KRW-BTC", MINUTE, span(0, 600)).table) == opens(minutes(0, 600))
    assert fresh.coverage("KRW-BTC", MINUTE, span(0, 600)) == SpanSet([span(0, 600)])


def test_damaged_object_is_quarantined_and_its_span_unknown(place: str, tmp_path: Path) -> None:
    """Damage is kept beside the data, an object that covers nothing takes its place, and the store verifies."""
    one = open_store(place, tmp_path, "a")
    put(one, 0, 100)
    one.flush()
    files = objects(place, tmp_path / "x")
    with files.exclusive(LOCK):
        data = bytearray(files.read(KEY).data)  # type: ignore[union-attr]
        data[200] ^= 1
        files.replace(KEY, data)
    two = open_store(place, tmp_path, "b")
    assert [problem.kind for problem in two.verify()] == ["damaged"]
    found = two.read("KRW-BTC", MINUTE, span(0, 100))
    assert (found.table.num_rows, len(found.covered)) == (0, 0)
    assert [incident.kind for incident in two.incidents()] == ["quarantined"]
    assert two.verify() == []
    assert len(list(files.walk("_quarantine"))) == 1
    put(two, 0, 100)
    two.flush()
    assert opens(open_store(place, tmp_path, "c").read("KRW-BTC", MINUTE, span(0, 100)).table) == opens(minutes(0, 100))


@pytest.mark.parametrize("few", [8, 1])
def test_blanks_are_seen_at_once(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """Whatever another process moves away, in one listing a series or one of all; what is in use is none."""
    monkeypatch.setattr(module, "_FEW_FOLDERS", few)
    mine, other = open_store(place, tmp_path, "a"), open_store(place, tmp_path, "b")
    markets = ("KRW-BTC", "KRW-ETH", "KRW-XRP")
    for market in markets:
        mine.put(market, MINUTE, minutes(0, 2), span(0, 2), now_us=MAY)
    mine.flush()
    files = objects(place, tmp_path / "c")
    keys = [str(mine.paths(market, MINUTE, span(0, 2))[0]).removeprefix(f"{place}/") for market in markets]
    assert list(files.blanks(keys)) == []
    other.upkeep.quarantine("KRW-ETH", MINUTE)
    assert list(files.blanks(keys)) == [keys[1]]


def test_repair_leaves_a_store_that_verifies(place: str, tmp_path: Path) -> None:
    """`repair` finds damage of the same kind before any read does."""
    one = open_store(place, tmp_path, "a")
    put(one, 0, 100)
    one.flush()
    files = objects(place, tmp_path / "x")
    with files.exclusive(LOCK):
        files.replace(KEY, files.read(KEY).data[:-40])  # type: ignore[union-attr]
    two = open_store(place, tmp_path, "b")
    assert len(two.repair()) == 1
    assert two.verify() == []
    assert not two.coverage("KRW-BTC", MINUTE, span(0, 100))


def test_cache_answers_reads_and_is_bounded(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second read of an object makes no request for its bytes; the cache stays under its limit."""
    files = objects(place, tmp_path / "a", limit=4000)
    keys = [KEY.replace("KRW-BTC", f"KRW-M{i}") for i in range(12)]
    for key in keys:
        with files.exclusive(key):
            files.replace(key, bytes(1000))
    assert sum(path.stat().st_size for path in (tmp_path / "a").iterdir()) <= 4000 + 1004
    with monkeypatch.context() as patched:
        patched.setattr("obstore.store.S3Store.get", lambda *_: pytest.fail("a request for bytes that are here"))
        assert files.read(keys[-1]).data == bytes(1000)  # type: ignore[union-attr]
    assert files.read(keys[0]).data == bytes(1000)  # type: ignore[union-attr]


def test_cache_that_was_damaged_is_not_used(tmp_path: Path) -> None:
    """A flipped bit on the local disk is a miss, so that no good object is quarantined for it."""
    cache = LocalCache(tmp_path, 1 << 20)
    cache.put("k", ("e", 0, 5), b"hello")
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"hello", b"hellO"))
    assert cache.get("k", ("e", 0, 5)) is None
    assert cache.get("k", ("other", 0, 5)) is None
    cache.put("k", ("e", 0, 5), b"hello")
    assert cache.get("k", ("e", 0, 5)) == b"hello"


_WRITER = """
import sys
from pathlib import Path
from backbone.clock import SystemClock
from backbone.storage.store import CandleStore
from tests.storage.helpers import MAY, MINUTE, minutes, span
from tests.storage.s3 import objects
place, cache, who, writers, pages = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
store = CandleStore(objects(place, cache), "upbit", clock=SystemClock())
for page in range(who, pages, writers):
    store.put("KRW-BTC", MINUTE, minutes(50 * page, 50 * page + 50), span(50 * page, 50 * page + 50), now_us=MAY)
    store.flush()
    print(page, flush=True)
"""


def _writer(place: str, cache: Path, who: int, writers: int, pages: int) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", _WRITER, place, str(cache / str(who)), str(who), str(writers), str(pages)]
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root})


def test_writers_racing_and_killed_lose_nothing_they_reported(place: str, tmp_path: Path) -> None:
    """Three processes write one series, two are killed at random moments: what was reported is there, and sound."""
    dice = random.Random(5)
    running = [_writer(place, tmp_path, who, 3, 36) for who in range(3)]
    reported: set[int] = set()
    for process in running[:2]:
        for _ in range(dice.randint(2, 5)):
            reported.add(int(process.stdout.readline()))  # type: ignore[union-attr]
        process.send_signal(signal.SIGKILL)
    for process in running:
        out, _ = process.communicate(timeout=110)
        reported.update(int(line) for line in out.split() if line)
    assert running[2].returncode == 0
    store = open_store(place, tmp_path, "reader")
    assert store.verify() == []
    found = store.read("KRW-BTC", MINUTE, span(0, 5000))
    for page in reported:
        assert found.covered.contains(span(50 * page, 50 * page + 50))
    known = rows_of(minutes(0, 5000))
    rows = rows_of(found.table)
    assert all(known[time] == row for time, row in rows.items())
    assert len(rows) == sum(part.length_us // 60_000_000 for part in found.covered), "no cover without rows"
    assert len(reported) >= 12 + 4


def test_copy_there_and_back_is_proven(place: str, tmp_path: Path) -> None:
    """A local store copied to the bucket and back is the same to the byte; a second copy writes nothing."""
    local = CandleStore(tmp_path / "local", "upbit", clock=SystemClock())
    put(local, 0, 300)
    local.put("KRW-ETH", MINUTE, minutes(0, 0), span(0, 9000), now_us=MAY)
    there = objects(place, tmp_path / "cache")
    done = local.copy_to(there)
    assert (done.files, done.same, done.problems) == (2, 0, ())
    assert local.copy_to(objects(place, tmp_path / "other")).files == 0
    remote = open_store(place, tmp_path, "b")
    assert opens(remote.read("KRW-BTC", MINUTE, span(0, 300)).table) == opens(minutes(0, 300))
    back = open_files(str(tmp_path / "back"), SystemClock())
    assert remote.copy_to(back).files == 2
    for path in (tmp_path / "local" / "candles").rglob("*.parquet"):
        assert (tmp_path / "back" / path.relative_to(tmp_path / "local")).read_bytes() == path.read_bytes()


def _of_two_months(place: str, tmp_path: Path) -> tuple[CandleStore, CandleStore]:
    """A store of two objects, whose clock stands: a listing never grows old for it. And another host's of the same."""
    two = open_store(place, tmp_path, "two")
    put(two, MONTH - 9, MONTH + 9, salt=2)
    two.upkeep.quarantine("KRW-BTC")
    put(two, MONTH - 9, MONTH + 9)
    two.flush()
    clock = ManualClock(MAY)
    one = CandleStore(ObjectFiles(place, clock, LocalCache(tmp_path / "one", 1 << 30)), "upbit", clock=clock)
    assert one.generation("KRW-BTC") == 1
    return one, two


def _other_unit(store: CandleStore) -> None:
    store.upkeep.quarantine("KRW-BTC")
    put(store, MONTH, MONTH + 9, salt=1)
    store.flush()


def test_copy_of_a_bucket_has_one_generation_of_a_market(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host moves a market away and stores it in another unit, when one of its two objects was copied."""
    one, two = _of_two_months(place, tmp_path)
    copy = copying._copy

    def late(*words: Any, **more: Any) -> int | None:
        size = copy(*words, **more)
        monkeypatch.setattr(copying, "_copy", copy)
        _other_unit(two)
        return size

    monkeypatch.setattr(copying, "_copy", late)
    assert one.copy_to(open_files(str(tmp_path / "there"), SystemClock())).problems == ()
    there = CandleStore(tmp_path / "there", "upbit", clock=SystemClock())
    assert there.read("KRW-BTC", MINUTE, EVER).table.equals(minutes(MONTH, MONTH + 9, 1))
    assert there.verify() == []


def test_snapshot_of_a_bucket_has_one_generation_of_a_market(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same while one of its two objects is linked."""
    one, two = _of_two_months(place, tmp_path)
    link = ObjectFiles.link

    def late(self: ObjectFiles, key: str, target: str) -> None:
        link(self, key, target)
        if key.endswith(".parquet"):
            monkeypatch.setattr(ObjectFiles, "link", link)
            _other_unit(two)

    monkeypatch.setattr(ObjectFiles, "link", late)
    kept = open_store(str(one.upkeep.snapshot("kept")), tmp_path, "kept")
    assert kept.read("KRW-BTC", MINUTE, EVER).table.equals(minutes(MONTH, MONTH + 9, 1))
    assert kept.verify() == []


def test_copy_onto_other_candles_copies_nothing(place: str, tmp_path: Path) -> None:
    """A target that holds something else under one name is refused whole."""
    one = CandleStore(tmp_path / "one", "upbit", clock=SystemClock())
    put(one, 0, 100)
    put(one, 60 * 24 * 40, 60 * 24 * 40 + 10)
    other = open_store(place, tmp_path, "x")
    put(other, 0, 100, salt=3)
    other.flush()
    before = list(objects(place, tmp_path / "y").walk("candles"))
    with pytest.raises(StoreError, match="nothing was copied"):
        one.copy_to(objects(place, tmp_path / "z"))
    assert list(objects(place, tmp_path / "y").walk("candles")) == before


def test_bucket_that_is_not_there_is_one_error(place: str) -> None:
    """A missing bucket is named before any work."""
    with pytest.raises(StoreError, match="the bucket does not exist"):
        open_files("s3://no-such-bucket-here/x", SystemClock())


def test_endpoint_that_does_not_answer_is_one_error(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server at the endpoint is one error within seconds."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="does not answer"):
        open_files(f"s3://{BUCKET}/x", SystemClock())


def test_address_with_credentials_is_refused_and_not_shown() -> None:
    """Credentials belong into the environment; an address that holds some is refused without being shown."""
    for wrong in ("s3://key:secret@bucket/x", "s3://bucket/x?secret=1"):
        with pytest.raises(InputError) as caught:
            parse_place(wrong)
        assert "secret" not in str(caught.value)
    for wrong in (Path("s3://bucket/x"), "gs://bucket/x", "s3:///x"):
        with pytest.raises(InputError, match="s3://bucket/prefix"):
            parse_place(str(wrong))
    assert parse_place("/data/x") == "/data/x"
    assert parse_place("C:/data").endswith("C:/data")  # a drive where there are drives, else a folder below this one


def test_credentials_are_in_no_repr_and_no_pickle(place: str, tmp_path: Path) -> None:
    """Neither the files, nor the store, nor the settings that travel hold the secret."""
    files = objects(place, tmp_path)
    files.check()
    settings = resolve("upbit", data_dir=place, rest_url=None, ws_url=None, tz=None, frames="pandas")
    shown = repr(files) + repr(files._store) + repr(settings) + str(pickle.dumps(settings)) + str(scan_options(place))
    assert "very-secret" not in shown
    assert settings.is_remote


@needs_fork
def test_forked_child_gets_an_error_since_connections_do_not_cross(place: str, tmp_path: Path) -> None:
    """A child that inherits an open store gets an error, not a hang; one that makes its own works."""
    files = objects(place, tmp_path / "a")
    files.check()

    def is_refused() -> bool:
        try:
            files.check()
        except StoreError as exc:
            return "fork" in str(exc)
        return False

    assert in_child(is_refused)


def test_copy_takes_the_notes_of_archive_files_along(place: str, tmp_path: Path) -> None:
    """Which files of the archive were accepted is known at the target too."""
    local = CandleStore(tmp_path / "local", "upbit", clock=SystemClock())
    put(local, 0, 10)
    local.upkeep.note_files("KRW-BTC", MINUTE, {"a.zip": "00"})
    local.upkeep.note_files("KRW-BTC", MINUTE, {"b.zip": "11"})
    local.copy_to(objects(place, tmp_path / "cache"))
    remote = open_store(place, tmp_path, "b")
    assert remote.upkeep.noted_files("KRW-BTC", MINUTE) == {"a.zip": "00", "b.zip": "11"}
    remote.upkeep.note_files("KRW-BTC", MINUTE, {"a.zip": "22"})
    assert remote.upkeep.noted_files("KRW-BTC", MINUTE) == {"a.zip": "22", "b.zip": "11"}
    assert remote.verify() == []


def test_events_of_a_long_log_are_the_same_from_its_columns(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each addition replaces the log as a whole; the columns that were kept of it before are of it still."""
    monkeypatch.setattr("backbone.storage.events._MANY", 20)
    events = [Event(MAY + at, f"KRW-{at % 3}", "restated", {"number": at}, "x") for at in range(70)]
    writer = open_store(place, tmp_path, "writer").events
    for at in range(0, 70, 10):
        writer.add_all(events[at : at + 10])
    assert open_store(place, tmp_path, "b").events.read() == events
    assert open_store(place, tmp_path, "c").events.add("KRW-9", "listed", how="x")
    assert open_store(place, tmp_path, "d").events.read()[:-1] == events
    assert objects(place, tmp_path / "e").read("_events/exchange=upbit.columns") is not None


def test_others_have_their_turn_while_the_service_answers(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be far away."""
    files = objects(place, tmp_path / "a")
    seen: list[bool] = []

    class Watched:
        def __init__(self, store: Any) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            seen.append(RUN_LOCK.is_held)
            return getattr(self._store, name)

    connected = Watched(files._connected())
    monkeypatch.setattr(files, "_connected", lambda: connected)
    with RUN_LOCK.running():
        files.stat(KEY)
        assert RUN_LOCK.is_held
    assert seen == [False]
