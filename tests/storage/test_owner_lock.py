"""A lock made of a file, among real processes: one owner at a time, and a dead one blocks nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from backbone.clock import SystemClock
from backbone.storage.owner_lock import STALE_S, OwnerLock
from backbone.testing import ManualClock

ADD = """
import sys, time
from pathlib import Path
from backbone.clock import SystemClock
from backbone.storage.owner_lock import OwnerLock
folder, count = Path(sys.argv[1]), int(sys.argv[2])
lock = OwnerLock(str(folder / "lock"), SystemClock())
for _ in range(count):
    while not lock.try_acquire():
        time.sleep(0.001)
    number = int((folder / "number").read_text())
    assert lock.refresh()
    (folder / "number").write_text(str(number + 1))
    lock.release()
"""
HOLD = """
import sys, time
from backbone.clock import SystemClock
from backbone.storage.owner_lock import OwnerLock
assert OwnerLock(sys.argv[1], SystemClock()).try_acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_one_owner_at_a_time_among_processes(tmp_path: Path) -> None:
    """Three processes that count in one file lose no step."""
    (tmp_path / "number").write_text("0")
    started = [subprocess.Popen([sys.executable, "-c", ADD, str(tmp_path), "60"]) for _ in range(3)]
    assert [one.wait(60) for one in started] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "180"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["number"]


@pytest.mark.skipif(os.name == "nt", reason="no signals to kill with")
def test_killed_owner_is_taken_over_at_once_on_its_own_host(tmp_path: Path) -> None:
    """The process is gone, so its lock is free; while it lives, it is not."""
    path = str(tmp_path / "lock")
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        lock = OwnerLock(path, SystemClock())
        assert not lock.try_acquire()
        assert lock.holder().startswith(f"process {holder.pid} on ")
        holder.send_signal(signal.SIGKILL)
        holder.wait(20)
    assert lock.try_acquire()


def test_owner_on_another_host_is_dead_when_it_shows_no_sign(tmp_path: Path) -> None:
    """Only the waiter's own clock counts; each sign of life begins the time anew."""
    path = tmp_path / "lock"
    path.write_bytes(msgspec.json.encode({"host": "elsewhere", "pid": 1, "born": "2", "token": "3"}))
    clock = ManualClock()
    lock = OwnerLock(str(path), clock)
    assert not lock.try_acquire()
    clock.advance(STALE_S - 1)
    assert not lock.try_acquire()
    os.utime(path, ns=(1, 1))
    clock.advance(STALE_S - 1)
    assert not lock.try_acquire()
    clock.advance(STALE_S)
    assert lock.try_acquire()


def test_owner_that_was_taken_over_knows_it_before_it_writes(tmp_path: Path) -> None:
    """An owner that slept too long finds another's name in the file, and leaves that alone."""
    path = tmp_path / "lock"
    slept, other = OwnerLock(str(path), ManualClock()), OwnerLock(str(path), ManualClock())
    assert slept.try_acquire()
    path.unlink()
    assert other.try_acquire()
    assert not slept.refresh()
    slept.release()
    assert other.refresh()
    other.release()
    assert not path.exists()
    assert not other.refresh()


def test_lock_file_cut_by_a_crash_is_taken_over_in_time(tmp_path: Path) -> None:
    """A file without a readable owner is somebody's who died, or has only just begun."""
    path = tmp_path / "lock"
    path.write_bytes(b"{")
    clock = ManualClock()
    lock = OwnerLock(str(path), clock)
    assert not lock.try_acquire()
    clock.advance(STALE_S)
    assert lock.try_acquire()
