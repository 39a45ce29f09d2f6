"""Bytes on disk: atomic, exclusive, and honest about failure."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from backbone.errors import StoreError
from backbone.storage import files as module
from backbone.storage.files import LocalFiles
from backbone.testing import ManualClock

KEY = "candles/a/b.parquet"
LOCK = "_locks/a.lock"


def local(root: Path, **options: float) -> LocalFiles:
    return LocalFiles(root, ManualClock(), **options)


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_replaced_file_reads_back_with_a_new_version(tmp_path: Path) -> None:
    """Every replacement has a version of its own, even when clock, size and inode repeat."""
    files = local(tmp_path)
    assert files.read(KEY) is None
    assert files.stat(KEY) is None
    versions = set()
    for n in range(50):
        versions.add(files.replace(KEY, b"%04d" % n))
        blob = files.read(KEY)
        assert blob is not None
        assert blob.data == b"%04d" % n
        assert blob.version == files.stat(KEY)
        assert blob.version in versions
    assert len(versions) == 50
    assert len({stamp for _, stamp, _ in versions}) == 50
    assert names(tmp_path) == [KEY]


def test_room_made_before_leaves_one_folder_to_sync_to_the_first_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new folder is synced into its parent ahead; only the file's own is left."""
    synced, sync = list[str](), LocalFiles._sync_folder

    def note(self: LocalFiles, folder: str) -> None:
        synced.append(folder)
        sync(self, folder)

    monkeypatch.setattr(LocalFiles, "_sync_folder", note)
    files = local(tmp_path)
    files.make_room(KEY)
    assert synced == [str(tmp_path / parent) for parent in reversed(Path(KEY).parent.parents)]
    synced.clear()
    files.replace(KEY, b"data")
    assert synced == [str(tmp_path / Path(KEY).parent)]


def test_folder_that_another_thread_is_making_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write does not end before the folders above it last, whoever made them."""
    files, order = local(tmp_path), list[str]()
    is_syncing, may_go_on = threading.Event(), threading.Event()
    sync = LocalFiles._sync_folder

    def slow(self: LocalFiles, folder: str) -> None:
        if threading.current_thread() is maker:
            is_syncing.set()
            assert may_go_on.wait(10)
            order.append("made")
        sync(self, folder)

    def write() -> None:
        files.replace(KEY, b"data")
        order.append("written")

    monkeypatch.setattr(LocalFiles, "_sync_folder", slow)
    maker = threading.Thread(target=files.make_room, args=[KEY])
    maker.start()
    assert is_syncing.wait(10)
    writer = threading.Thread(target=write)
    writer.start()
    writer.join(0.05)
    may_go_on.set()
    maker.join()
    writer.join()
    assert order[-1] == "written"
    assert order.count("made") == len(Path(KEY).parent.parts)


def test_replace_never_shows_a_reader_a_part(tmp_path: Path) -> None:
    """A reader finds the old content or the new, whole."""
    files = local(tmp_path)
    whole = (b"a" * 100_000, b"b" * 100_000)
    files.replace(KEY, whole[0])
    torn: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            blob = files.read(KEY)
            if blob is None or bytes(blob.data) not in whole:
                torn.append(1)

    thread = threading.Thread(target=read)
    thread.start()
    for n in range(100):
        files.replace(KEY, whole[n % 2])
    done.set()
    thread.join()
    assert torn == []


STEPS = ["open", "write", "utime", "fsync", "replace", "mkdir"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("step", STEPS)
def test_write_that_fails_at_any_step_is_one_error_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    """Wherever a write fails, the old content stays, nothing unfinished remains, and the path is named."""
    files = local(tmp_path)
    files.replace(KEY, b"old")
    target = "candles/new/c.parquet" if step == "mkdir" else KEY

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        if step == "write":
            patched.setattr(module, "memoryview", fail, raising=False)
        else:
            patched.setattr(module.os, step, fail)
        with pytest.raises(StoreError, match="cannot write") as caught:
            files.replace(target, b"new")
    assert str(caught.value.path) == str(tmp_path / target)
    assert isinstance(caught.value.__cause__, OSError)
    if code == errno.ENOSPC:
        assert "the disk is full" in str(caught.value)
    assert names(tmp_path) == [KEY]
    assert (tmp_path / KEY).read_bytes() == b"old"
    files.replace(target, b"new")
    assert (tmp_path / target).read_bytes() == b"new"


@pytest.mark.parametrize("call", ["stat", "read", "list", "remove", "quarantine"])
def test_failure_of_any_call_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A disk that refuses is reported in the error tree, with the path."""
    files = local(tmp_path)
    files.replace(KEY, b"x")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    patched = {"stat": "stat", "read": "fstat", "list": "listdir", "remove": "unlink", "quarantine": "replace"}[call]
    with monkeypatch.context() as patch:
        patch.setattr(module.os, patched, fail)
        with pytest.raises(StoreError, match="Input/output error") as caught:
            getattr(files, call)(KEY, *([7] if call == "quarantine" else []))
    assert str(caught.value.path) == str(tmp_path / KEY)


def test_folder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit that may not look into a folder says so; a folder that is not there has nothing to say."""
    files = local(tmp_path)
    assert list(files.walk("candles")) == []
    files.replace(KEY, b"x")
    assert list(files.walk("candles")) == [KEY]
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("/a"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(path)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "scandir", refuse)
        with pytest.raises(StoreError, match="cannot list"):
            list(files.walk("candles"))


def test_vanished_root_is_not_made_anew(tmp_path: Path) -> None:
    """A folder that was there and is gone is an error, not an invitation to fill what lies below its mount."""
    root = tmp_path / "disk"
    files = local(root)
    files.replace(KEY, b"x")
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="vanished"):
        files.replace(KEY, b"y")
    with pytest.raises(StoreError, match="vanished"), files.exclusive(LOCK):
        pass
    assert not root.exists()
    assert files.read(KEY) is None
    root.mkdir()
    files.replace(KEY, b"z")
    assert (root / KEY).read_bytes() == b"z"


def test_folder_below_the_root_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    """Deleting one market to make room does not stop the store."""
    import shutil

    files = local(tmp_path)
    files.replace(KEY, b"x")
    shutil.rmtree(tmp_path / "candles")
    files.replace(KEY, b"y")
    assert (tmp_path / KEY).read_bytes() == b"y"


def test_quarantine_keeps_every_file_it_moves(tmp_path: Path) -> None:
    """Two files quarantined from one place in one instant are both kept."""
    files = local(tmp_path)
    for content in (b"one", b"two"):
        files.replace(KEY, content)
        files.quarantine(KEY, 7)
    assert sorted(path.read_bytes() for path in (tmp_path / "_quarantine").rglob("b.parquet*")) == [b"one", b"two"]
    assert files.stat(KEY) is None


def test_rename_waits_for_a_reader_where_open_files_are_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On systems that refuse to replace an open file, the rename is tried again until a deadline."""
    files = local(tmp_path)
    files.replace(KEY, b"old")
    refusals = iter([True, True, False])
    rename = os.replace

    def replace(source: str, target: str) -> None:
        if next(refusals):
            raise PermissionError(errno.EACCES, "in use")
        rename(source, target)

    monkeypatch.setattr(module, "_IS_WINDOWS", True)
    monkeypatch.setattr(module.os, "replace", replace)
    files.replace(KEY, b"new")
    assert (tmp_path / KEY).read_bytes() == b"new"
    monkeypatch.setattr(module.os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "in use")))
    with pytest.raises(StoreError, match="not allowed"):
        files.replace(KEY, b"newer")
    assert (tmp_path / KEY).read_bytes() == b"new"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_folder_that_cannot_be_synced_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """Network drives refuse to sync folders: stored, with one warning; a real I/O error is still one."""
    sync, failing = os.fsync, [number]

    def refuse(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(failing[0], os.strerror(failing[0]))
        sync(fd)

    monkeypatch.setattr(os, "fsync", refuse)
    files = LocalFiles(tmp_path / "a", ManualClock())
    for data in (b"one", b"two"):
        files.replace(KEY, data)
    assert (files.read(KEY) or (b"",))[0] == b"two"
    assert caplog.text.count("store.no_sync") == 1
    failing[0] = errno.EIO
    with pytest.raises(StoreError):
        files.replace(KEY, b"three")
