"""Where the quota's state lives: shared by processes, cleared when stale or damaged, given up for an even pace."""

from __future__ import annotations

import logging
import os
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import warnings
from pathlib import Path

import pytest

from backbone.clock import SystemClock
from backbone.coordinator.quota import ledger as ledgers
from backbone.coordinator.quota.ledger import FileLimiter, MachineLimiter, MemoryLimiter, ledger_path
from backbone.coordinator.quota.rules import Rules
from backbone.errors import ClosedError
from backbone.model import Priority
from backbone.testing import ManualClock

CRITICAL, HIGH, NORMAL, LOW = Priority
RULES = Rules(unanswered_s=0.0, soon_s=9.0)  # answers come at once, and the last permit is one like the others
WALL_US = 1_755_853_200_000_000
posix = pytest.mark.skipif(sys.platform == "win32", reason="permissions and fork are POSIX")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(WALL_US, waits=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "quota" / "host.quota"


def drain(limiter, group: str, now: float, priority: Priority = NORMAL) -> int:
    """Permits that are free right now."""
    count = 0
    while not limiter.take(group, priority, now, now):
        count += 1
    return count


@pytest.fixture(params=["memory", "file", "machine"])
def pair(request, clock, path):
    """Two limiters that share one quota, as two processes would."""
    if request.param == "memory":
        book: dict = {}
        limiters = [MemoryLimiter(clock, RULES, book=book) for _ in range(2)]
    elif request.param == "file":
        limiters = [FileLimiter(path, clock, RULES) for _ in range(2)]
    else:
        limiters = [MachineLimiter("http://127.0.0.1:8000", clock, folder=path.parent, rules=RULES) for _ in range(2)]
    yield limiters
    for limiter in limiters:
        limiter.close()


def test_quota_is_one_for_all_who_share_it(pair):
    """Ten permits a window in all, not each; groups are independent."""
    first, second = pair
    assert drain(first, "candles", 1000.0) == 10
    assert drain(second, "candles", 1000.5) == 0
    assert drain(second, "ticker", 1000.5) == 10
    assert second.snapshot(1000.0 + RULES.window_s)["candles"].free == 10


def test_priority_counts_across_processes(pair):
    """A low waiter of one process lets the high waiter of another go first."""
    low, high = pair
    for index in range(10):
        assert low.take("candles", NORMAL, 0.0, 1000.0 + index / 20) == 0.0
    low_at = low.take("candles", LOW, 1000.5, 1000.5)
    high_at = high.take("candles", HIGH, 1000.6, 1000.6)
    assert high_at < low_at + RULES.grace_s
    assert low.take("candles", LOW, 1000.5, 1000.0 + RULES.window_s) > 0.0
    assert high.take("candles", HIGH, 1000.6, 1000.001 + RULES.window_s) == 0.0


def test_leaving_lets_others_go_first(pair, clock):
    """A waiter that gave up is not waited for."""
    first, second = pair
    drain(first, "candles", 1000.0, HIGH)
    first.leave("candles", HIGH)
    assert second.take("candles", NORMAL, 1000.0, 1000.0 + RULES.window_s) == 0.0
    assert second.snapshot(1001.1)["candles"].waiting["high"] == 0


def test_ban_stops_all_groups_of_all_processes(pair, clock):
    """A 418 that one process received holds the other, in groups it never used too, until the stated time."""
    first, second = pair
    first.take("candles", NORMAL, 0.0, 1000.0)
    first.banned(WALL_US + 90_000_000, 1000.0)
    clock.advance(1010.0 - clock.mono_s)
    assert second.ban_left(1010.0) == pytest.approx(80.0)
    for group in ("candles", "ticker"):
        assert second.take(group, CRITICAL, 1010.0, 1010.0) == pytest.approx(1090.0)
    assert second.take("candles", CRITICAL, 1010.0, 1090.001) == 0.0
    assert second.ban_left(1090.001) == 0.0


def test_refusal_of_one_stops_the_group_for_all(pair):
    """A 429 of one process stops that group, and only it, for the other."""
    first, second = pair
    first.refused("candles", 1000.0, None)
    assert second.take("candles", HIGH, 1000.1, 1000.1) == pytest.approx(1000.0 + RULES.stop_s)
    assert second.take("ticker", HIGH, 1000.1, 1000.1) == 0.0


def test_remaining_of_the_venue_is_shared(pair):
    """Other software that one process notices is made room for by both."""
    first, second = pair
    first.take("candles", NORMAL, 0.0, 1000.0)
    first.observe("candles", 3, 1000.0, 1000.0, 1000.03)
    assert second.snapshot(1000.1)["candles"].limit == 3


def test_unused_and_late_permits_are_settled_in_the_shared_state(pair, clock):
    """`undo` and `move` of one process are seen by the other."""
    first, second = pair
    drain(first, "candles", 1000.0)
    clock.advance(1000.4 - clock.mono_s)
    first.undo("candles", 1000.0)
    first.leave("candles")
    assert second.take("candles", NORMAL, 1000.4, 1000.4) == 0.0
    assert first.move("candles", 1000.0, 1000.5)
    assert not first.move("candles", 123.0, 1000.5)
    state = second.snapshot(1000.0 + RULES.window_s)["candles"]
    assert state.free == 8, "one was moved to half past, one taken at 0.4"


# ------------------------------------------------------------------------------------------------- the file


def test_ledger_constructed_opens_nothing(clock, path):
    """Making a limiter touches no file; the first permit does."""
    limiter = FileLimiter(path, clock, RULES)
    assert not path.parent.exists()
    assert "idle" in repr(limiter)
    limiter.take("candles", NORMAL, 0.0, 1000.0)
    assert path.is_file()
    assert "open" in repr(limiter)
    limiter.close()
    assert "closed" in repr(limiter)


def test_closed_ledger_raises(clock, path):
    """After `close` there are no permits, and closing twice is fine."""
    limiter = FileLimiter(path, clock, RULES)
    limiter.take("candles", NORMAL, 0.0, 1000.0)
    limiter.close()
    limiter.close()
    with pytest.raises(ClosedError):
        limiter.take("candles", NORMAL, 0.0, 1000.0)


def test_closing_leaves_no_waiter_behind(clock, path):
    """A closed limiter's place in the queue is free at once."""
    first, second = FileLimiter(path, clock, RULES), FileLimiter(path, clock, RULES)
    drain(first, "candles", 1000.0, HIGH)
    first.close()
    assert second.take("candles", LOW, 1000.0, 1000.0 + RULES.window_s) == 0.0
    second.close()


@posix
def test_ledger_is_open_to_all_users_of_the_machine(clock, path):
    """Other users have the same address: folder and file are theirs too, whatever the umask."""
    before = os.umask(0o077)
    try:
        limiter = FileLimiter(path, clock, RULES)
        limiter.take("candles", NORMAL, 0.0, 1000.0)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o1777
    limiter.close()


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"garbage " * 8000, os.urandom(60_000)], ids=len)
def test_foreign_content_is_cleared(clock, path, content):
    """An empty, cut or foreign file becomes a fresh ledger."""
    path.parent.mkdir()
    path.write_bytes(content)
    limiter = FileLimiter(path, clock, RULES)
    assert drain(limiter, "candles", 1000.0) == 10
    limiter.close()


def test_ledger_of_another_boot_is_cleared_but_for_its_ban(clock, path, monkeypatch):
    """After a reboot stamps mean nothing, but a ban ends when the venue said."""
    limiter = FileLimiter(path, clock, RULES)
    drain(limiter, "candles", 1000.0)
    limiter.banned(WALL_US + 60_000_000, 1000.0)
    limiter.close()
    monkeypatch.setattr(ledgers, "_boot", lambda: b"another boot".ljust(36, b"\0"))
    clock.advance(1020.0 - clock.mono_s)
    rebooted = FileLimiter(path, clock, RULES)
    assert rebooted.ban_left(1020.0) == pytest.approx(40.0)
    assert rebooted.take("candles", HIGH, 1020.0, 1020.0) == pytest.approx(1060.0)
    rebooted.close()
    clock.advance(2000.0 - clock.mono_s)
    monkeypatch.setattr(ledgers, "_boot", lambda: b"a third boot".ljust(36, b"\0"))
    again = FileLimiter(path, clock, RULES)
    assert again.ban_left(2000.0) == 0.0
    assert drain(again, "candles", 2000.0) == 10
    again.close()


def test_file_removed_or_replaced_is_noticed(clock, path):
    """When the file was cleaned away, both processes meet again in the new one within seconds."""
    first, second = FileLimiter(path, clock, RULES), FileLimiter(path, clock, RULES)
    first.take("candles", NORMAL, 0.0, 1000.0)
    path.unlink()
    second.take("candles", NORMAL, 0.0, 1000.0)
    later = 1000.0 + 6.0
    clock.advance(later - clock.mono_s)
    assert drain(first, "candles", later) == 10
    assert drain(second, "candles", later) == 0
    first.close()
    second.close()


def test_damage_while_open_is_repaired_within_seconds(clock, path):
    """Garbage written into an open ledger blocks nobody beyond the next check."""
    limiter = FileLimiter(path, clock, RULES)
    limiter.take("candles", NORMAL, 0.0, 1000.0)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(struct.pack("<8d", 1e300, *[float("nan")] * 7) * 400)
    for now in (1000.1, 1001.0):
        limiter.take("candles", NORMAL, now, now)
    clock.advance(1006.0 - clock.mono_s)
    assert drain(limiter, "candles", 1006.0) == 10
    limiter.close()


def test_more_groups_than_places_share_a_quota(clock, path):
    """A venue with dozens of groups is served too: some groups count together, which is safe."""
    limiter = FileLimiter(path, clock, RULES)
    for index in range(40):
        assert drain(limiter, f"group-{index}-{'x' * 40}", 1000.0) <= 10
    assert len(limiter.snapshot(1000.0)) == 15
    limiter.close()


def test_stopped_holder_of_the_lock_does_not_hang_others(clock, path):
    """While somebody holds the file lock, `take` answers a time soon after now, and no permit is given."""
    limiter = FileLimiter(path, clock, RULES)
    limiter.take("candles", NORMAL, 0.0, 1000.0)
    with path.open("r+b") as other:
        assert ledgers._try_lock(other.fileno())
        assert 1000.0 < limiter.take("candles", NORMAL, 0.0, 1000.0) <= 1000.01
        assert limiter.snapshot(1000.0) == {}
        ledgers._unlock(other.fileno())
    assert limiter.take("candles", NORMAL, 0.0, 1000.0) == 0.0
    limiter.close()


def test_holder_that_stays_stopped_makes_the_ledger_unusable(clock, path, caplog):
    """A lock held for seconds is given up, with the warning of every other ledger that cannot be had."""
    limiter = MachineLimiter("http://127.0.0.1:1", clock, folder=path.parent, rules=RULES)
    limiter.take("candles", NORMAL, 0.0, 1000.0)
    with limiter.path.open("r+b") as other, caplog.at_level(logging.WARNING, "backbone.quota"):
        assert ledgers._try_lock(other.fileno())
        assert limiter.take("candles", NORMAL, 0.0, 1001.0) > 1001.0
        assert limiter.take("candles", NORMAL, 0.0, 1004.0) > 1004.0
        assert limiter.is_shared
        assert limiter.take("candles", NORMAL, 0.0, 1006.1) == 0.0
        ledgers._unlock(other.fileno())
    assert not limiter.is_shared
    assert len(caplog.records) == 1
    limiter.close()


def test_stale_ledgers_are_removed_by_whoever_closes_another(clock, path):
    """Ledgers of ports that are long gone do not pile up."""
    path.parent.mkdir()
    now = SystemClock().now_us() / 1e6
    ages_h = {"api.upbit.com.quota": 25, "sg-api.upbit.com.quota": 23, "127.0.0.1-9.quota": 2, "127.0.0.1-8.quota": 0}
    for name, age_h in ages_h.items():
        (path.parent / name).touch()
        os.utime(path.parent / name, (now - 3600 * age_h,) * 2)
    limiter = FileLimiter(path, clock, RULES)
    limiter.take("candles", NORMAL, 0.0, 1000.0)
    limiter.close()
    left = {file.name for file in path.parent.iterdir()}
    assert left == {"sg-api.upbit.com.quota", "127.0.0.1-8.quota", path.name}


def test_threads_of_one_process_share_the_limit(path):
    """Eight threads on two limiters of one file take ten permits in all."""
    clock = SystemClock()
    limiters = [FileLimiter(path, clock, RULES) for _ in range(2)]
    granted: list[float] = []

    def work(index: int) -> None:
        for _ in range(50):
            now = clock.monotonic()
            if not limiters[index % 2].take("candles", NORMAL, now, now):
                granted.append(now)

    begun = clock.monotonic()
    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if clock.monotonic() - begun < 1.0:
        assert len(granted) == 10
    for limiter in limiters:
        limiter.close()


def fork() -> int:
    """`os.fork`, of which newer Pythons warn where there are threads: that is just what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


@posix
def test_forked_child_opens_the_ledger_anew(path):
    """A child's lock is its own, so parent and child exclude each other and share the quota."""
    clock = SystemClock()
    limiter = FileLimiter(path, clock, RULES)
    now = clock.monotonic()
    assert limiter.take("candles", NORMAL, now, now) == 0.0
    inherited = limiter._place._fd
    read, write = os.pipe()
    pid = fork()
    if not pid:
        try:
            now = clock.monotonic()
            count = drain(limiter, "candles", now)
            fresh = os.fstat(limiter._place._fd).st_ino == path.stat().st_ino and limiter._place._map is not None
            os.write(write, bytes([count, fresh]))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert limiter._place._fd == inherited
    assert os.read(read, 2) == bytes([9, True])
    os.close(read)
    os.close(write)
    limiter.close()


@posix
def test_killed_process_holds_nothing(path):
    """A process killed while it waits, lock and all, delays others by its reservation at most."""
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from backbone.clock import SystemClock
        from backbone.coordinator.quota.ledger import FileLimiter, _try_lock
        from backbone.coordinator.quota.rules import Rules
        from backbone.model import Priority
        clock = SystemClock()
        limiter = FileLimiter(Path({str(path)!r}), clock, Rules(unanswered_s=0.0, soon_s=9.0))
        while True:
            now = clock.monotonic()
            if limiter.take("candles", Priority.HIGH, 0.0, now):
                break
        assert _try_lock(limiter._place._fd)
        print("waiting", flush=True)
        input()
        """
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "waiting\n"
    clock = SystemClock()
    limiter = FileLimiter(path, clock, RULES)
    with pytest.raises(OSError, match="does not move"):
        limiter.take("candles", NORMAL, 0.0, clock.monotonic())
    child.send_signal(signal.SIGKILL)
    child.communicate()
    now = clock.monotonic()
    assert limiter.take("candles", LOW, now, now) > now, "its permits of this second count"
    later = now + RULES.window_s + RULES.grace_s
    assert limiter.take("candles", LOW, now, later) == 0.0
    limiter.close()


# ------------------------------------------------------------------------------------------ the even pace


def paced(clock: ManualClock, folder: Path) -> MachineLimiter:
    """A limiter whose ledger cannot be had."""
    (folder / "a-file").touch()
    return MachineLimiter("https://api.upbit.com", clock, folder=folder / "a-file")


def test_unusable_ledger_falls_back_to_an_even_pace_with_one_warning(clock, tmp_path, caplog):
    """Where the file cannot be had, requests go one by one within the limit, and that is said once."""
    (tmp_path / "not-a-folder").touch()
    limiter = MachineLimiter("https://api.upbit.com", clock, folder=tmp_path / "not-a-folder")
    assert limiter.is_shared
    with caplog.at_level(logging.WARNING, "backbone.quota"):
        assert limiter.take("candles", NORMAL, 0.0, 1000.0) == 0.0
        again = limiter.take("candles", NORMAL, 0.0, 1000.0)
        limiter.observe("candles", 5, 1000.0, 1000.0, 1000.1)
    assert again == pytest.approx(1000.0 + RULES.window_s / 10)
    assert limiter.take("candles", NORMAL, 0.0, again + 1e-6) == 0.0
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "this process alone" in caplog.records[0].getMessage()
    assert not limiter.is_shared
    limiter.close()


@posix
@pytest.mark.skipif(hasattr(os, "getuid") and os.getuid() == 0, reason="root may write anywhere")
def test_read_only_folder_falls_back(clock, tmp_path):
    """A folder without the right to write is one more way in which the file cannot be had."""
    folder = tmp_path / "sealed"
    folder.mkdir(mode=0o500)
    limiter = MachineLimiter("https://api.upbit.com", clock, folder=folder)
    assert limiter.take("candles", NORMAL, 0.0, 1000.0) == 0.0
    assert not limiter.is_shared


@posix
def test_symlink_in_place_of_the_ledger_is_not_followed(clock, path, tmp_path):
    """Somebody's link to another file is refused, not written through."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.parent.mkdir()
    path.symlink_to(victim)
    with pytest.raises(OSError, match=r"."):
        FileLimiter(path, clock, RULES).take("candles", NORMAL, 0.0, 1000.0)
    assert victim.read_bytes() == b"precious"


def test_even_pace_keeps_the_limit_stops_and_slows(clock, tmp_path):
    """The fallback spaces requests, stops after a 429, then goes slower, and honours a ban."""
    limiter = paced(clock, tmp_path)
    granted, now = [], 1000.0
    while now < 1005.0:
        again = limiter.take("candles", LOW, now, now)
        if again:
            now = again
        else:
            granted.append(now)
    assert 46 <= len(granted) <= 50
    limiter.refused("candles", 1005.0, None)
    limiter.refused("candles", 1005.1, None)
    assert limiter.take("candles", HIGH, 1005.2, 1005.2) == pytest.approx(1005.0 + RULES.stop_s)
    assert limiter.take("candles", HIGH, 1005.2, 1006.1) == 0.0
    assert limiter.take("candles", HIGH, 1005.2, 1006.1) == pytest.approx(1006.1 + 1.5 * RULES.window_s / 10)
    state = limiter.snapshot(1006.1)["candles"]
    assert (state.level, state.refused) == (1, 2)
    limiter.banned(WALL_US + 60_000_000, 1010.0)
    assert limiter.ban_left(1011.0) == pytest.approx(59.0)
    assert limiter.take("ticker", CRITICAL, 1011.0, 1011.0) == pytest.approx(1070.0)


def test_even_pace_gives_unused_permits_back_and_refuses_stale_ones(clock, tmp_path):
    """A permit undone is free at once; one that is older than its period may not be sent with."""
    limiter = paced(clock, tmp_path)
    assert limiter.take("candles", NORMAL, 0.0, 1000.0) == 0.0
    limiter.undo("candles", 1000.0)
    assert limiter.take("candles", NORMAL, 0.0, 1000.0) == 0.0
    assert limiter.move("candles", 1000.0, 1000.05)
    assert not limiter.move("candles", 1000.0, 1000.2)
    limiter.observe("candles", 0, 1000.0, 1000.0, 1000.1)
    assert limiter.take("candles", LOW, 0.0, 1000.3) > 1001.0, "nothing is left of the venue's second"


# -------------------------------------------------------------------------------------------------- names


def test_ledger_path_is_one_for_a_host_whatever_the_path_of_the_url(tmp_path):
    """Processes that the venue counts together meet in one file; other hosts, ports and limits have their own."""
    base = ledger_path("https://api.upbit.com", tmp_path)
    assert base == ledger_path("https://API.upbit.com:443/v1", tmp_path)
    others = {
        ledger_path("http://api.upbit.com", tmp_path),
        ledger_path("https://sg-api.upbit.com", tmp_path),
        ledger_path("http://127.0.0.1:8000", tmp_path),
        ledger_path("http://127.0.0.1:8001", tmp_path),
        ledger_path("https://api.upbit.com", tmp_path, Rules(limit=5)),
    }
    assert len(others | {base}) == 6
    assert base.parent == tmp_path
    assert base.name.startswith("api.upbit.com-443-")


def test_ledger_folder_comes_from_the_environment(tmp_path, monkeypatch):
    """``$BACKBONE_LEDGER_DIR`` names the folder."""
    monkeypatch.setenv("BACKBONE_LEDGER_DIR", str(tmp_path / "mine"))
    assert ledger_path("https://api.upbit.com").parent == tmp_path / "mine"


@posix
def test_programs_with_different_temporary_folders_share_one_quota(tmp_path):
    """A service with a private ``$TMPDIR`` and a notebook on the same machine keep one ledger."""
    code = "from backbone.coordinator.quota.ledger import ledger_path; print(ledger_path('https://api.upbit.com'))"
    found = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        env = {k: v for k, v in os.environ.items() if k != "BACKBONE_LEDGER_DIR"} | {"TMPDIR": str(tmp_path / name)}
        done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
        found.add(done.stdout)
    assert len(found) == 1
    assert str(tmp_path) not in found.pop()


@posix
def test_ledger_folder_where_nothing_of_the_user_can_be_written(tmp_path, monkeypatch):
    """Without shared memory, runtime folder and a home that can be written, the temporary folder is left."""
    monkeypatch.delenv("BACKBONE_LEDGER_DIR")
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    assert ledger_path("https://api.upbit.com").parent == Path(tempfile.gettempdir()) / "backbone-quota"
