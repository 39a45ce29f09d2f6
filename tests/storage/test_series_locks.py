"""One writer a series: kernel locks that die with their holder, and what serves where there are none."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from backbone.errors import StoreBusyError, StoreError
from backbone.storage import series_locks
from backbone.storage.files import LocalFiles
from backbone.storage.series_locks import OvertakenError
from backbone.testing import ManualClock
from tests.storage.helpers import in_child, needs_fork
from tests.storage.test_files import KEY, LOCK, local


def test_lock_is_taken_again_by_its_own_thread_and_by_no_other(tmp_path: Path) -> None:
    """The holder may nest; another thread waits until the deadline and gets an error."""
    files = local(tmp_path, lock_timeout_s=0.05)
    refused: list[StoreBusyError] = []

    def other() -> None:
        try:
            with files.exclusive(LOCK):
                pass
        except StoreBusyError as exc:
            refused.append(exc)

    with files.exclusive(LOCK):
        with files.exclusive(LOCK):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert [str(exc.path) for exc in refused] == [str(tmp_path / LOCK)]
    assert refused[0].holder
    refused.clear()
    other()
    assert refused == []


def test_lock_held_by_another_process_times_out_and_is_free_once_that_dies(tmp_path: Path) -> None:
    """A live holder is a busy error with what is known of it; a killed one holds nothing."""
    code = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from backbone.clock import SystemClock\n"
        "from backbone.storage.files import LocalFiles\n"
        f"with LocalFiles(Path(sys.argv[1]), SystemClock()).exclusive({LOCK!r}):\n"
        "    print('held', flush=True)\n"
        "    threading.Event().wait(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(StoreBusyError, match="another process") as caught, local(tmp_path).exclusive(LOCK, 0.05):
            pass
        assert caught.value.holder in (f"process {process.pid}", "another process")  # as the lock library allows
        process.kill()
        process.wait()
    with local(tmp_path).exclusive(LOCK, 1.0):
        pass


def test_lock_in_a_folder_that_refuses_is_a_store_error(tmp_path: Path) -> None:
    """Where no lock can be made, the error names the lock's path."""
    (tmp_path / "_locks").write_text("in the way")
    with pytest.raises(StoreError, match="cannot lock"), local(tmp_path).exclusive(LOCK):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_folder_without_kernel_locks_has_one_writer_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """Lock files with an owner stand in for them, with one warning; who loses the lock does not write."""
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    mine, other = LocalFiles(tmp_path, ManualClock()), LocalFiles(tmp_path, ManualClock())
    with mine.exclusive(LOCK):
        mine.replace(KEY, b"one")
        with pytest.raises(StoreBusyError), other.exclusive(LOCK, timeout_s=0.0):
            pass
        (tmp_path / f"{LOCK}.owner").unlink()
        with pytest.raises(OvertakenError):
            mine.replace(KEY, b"two")
    with other.exclusive(LOCK):
        other.replace(KEY, b"three")
    assert (mine.read(KEY) or (b"",))[0] == b"three"
    assert caplog.text.count("store.no_kernel_locks") == 2  # once an instance


@needs_fork
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not say which files are open")
def test_forked_child_does_not_keep_its_parents_lock(tmp_path: Path) -> None:
    """A child forked while a lock is held does not have it open: it ends with its parent, not before."""
    files = LocalFiles(tmp_path, ManualClock())

    def is_open() -> bool:
        return str(tmp_path / LOCK) in map(os.path.realpath, Path("/proc/self/fd").iterdir())

    with files.exclusive(LOCK):
        assert is_open()
        assert in_child(lambda: not is_open())
        with pytest.raises(StoreBusyError), LocalFiles(tmp_path, ManualClock()).exclusive(LOCK, timeout_s=0):
            pass
    with LocalFiles(tmp_path, ManualClock()).exclusive(LOCK, timeout_s=0):
        assert is_open()


def test_vanished_root_is_not_made_anew_for_a_lock_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`filelock` makes the folders above its file; those of an unplugged disk are not made underneath it."""
    monkeypatch.setattr(series_locks, "_IS_WINDOWS", True)
    files = local(tmp_path / "data")
    with files.exclusive(LOCK):
        files.replace(KEY, b"rows")
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(StoreError, match="vanished"), files.exclusive(LOCK):
        pytest.fail("a lock was taken on a disk that is not there")
    assert not (tmp_path / "data").exists()
