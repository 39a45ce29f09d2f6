"""One quota for several hosts: the script decides as `ratelimit` does; a lost Redis is survived on fair shares."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from array import array
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from backbone.clock import SystemClock
from backbone.coordinator.quota import rules as rates
from backbone.coordinator.quota.redis import RedisLimiter, _fair_rules
from backbone.coordinator.quota.rules import Rules
from backbone.errors import InputError, UnreachableError
from backbone.locks import RUN_LOCK
from backbone.model import Priority
from backbone.testing import ManualClock

pytestmark = pytest.mark.skipif(find_spec("redis") is None, reason="redis is not installed")  # loaded where it runs
CRITICAL, HIGH, NORMAL, LOW = Priority
VENUE = "http://127.0.0.1:8000"
RULES = Rules()


class RedisServer:
    """A real server process on loopback that can be killed and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("no redis-server here (Debian package redis-server)")
        argv = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen([*argv, *self._options], stdout=subprocess.DEVNULL)
        clock = SystemClock()
        deadline = clock.monotonic() + 30
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert clock.monotonic() < deadline, "redis-server did not start"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    made = RedisServer(tmp_path_factory.mktemp("redis"))
    yield made
    made.kill()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """A server for one test, which may kill it."""
    made = RedisServer(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def fresh(server: RedisServer) -> RedisServer:
    """The module's server, emptied."""
    from redis import Redis

    with Redis.from_url(server.url) as client:
        client.flushall()
    return server


def limiter(server: RedisServer, host: str = "a", clock: object = None, folder: Path | None = None) -> RedisLimiter:
    return RedisLimiter(server.url, VENUE, clock or SystemClock(), host=host, folder=folder)  # type: ignore[arg-type]


def test_decision_that_another_host_overtakes_is_made_again(fresh: RedisServer) -> None:
    """Between reading and writing another host takes nine permits: the first decision is thrown away, not written."""
    one, other = limiter(fresh, "a"), limiter(fresh, "b")
    seen: list[int] = []

    def decide(shared: object, at: float) -> float:
        seen.append(rates.describe(shared.state("g"), RULES, at).used)  # type: ignore[attr-defined]
        if len(seen) == 1:
            now = SystemClock().monotonic()
            assert sum(not other.take("g", NORMAL, now, now) for _ in range(12)) == 9
        return rates.take(shared.state("g"), RULES, one._owner, NORMAL.rank, at, at)  # type: ignore[attr-defined]

    assert one._decide(decide) > 0.0, "the tenth is left to critical"
    assert seen == [0, 9]
    one.close()
    other.close()


def test_others_have_their_turn_while_redis_answers(fresh: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost one takes a second to be noticed."""
    one = limiter(fresh)
    seen, decide = list[bool](), one._decide

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(RUN_LOCK.is_held)
        return decide(*args, **options)

    monkeypatch.setattr(one, "_decide", watched)
    with RUN_LOCK.running():
        assert one.take("candles", HIGH, 0.0, one._clock.monotonic()) == 0.0
        assert RUN_LOCK.is_held
    assert seen == [False]
    one.close()


def test_state_that_cannot_be_true_is_cleared(fresh: RedisServer) -> None:
    """Stamps from a far future (a server whose clock was set back) and foreign bytes cost a reset, not a wait."""
    from redis import Redis

    one = limiter(fresh)
    now = SystemClock().monotonic()
    state = array("d", bytes(8 * RULES.size))
    for _ in range(10):
        rates.take(state, RULES, 1.0, NORMAL.rank, 0.0, 9e9)
    with Redis.from_url(fresh.url) as client:
        for bad in (state.tobytes(), b"garbage" * 50, b""):
            client.hset(one._key, "g:g", bad)
            assert not one.take("g", NORMAL, now, now)
    one.close()


def test_quota_is_one_for_all_hosts(fresh: RedisServer) -> None:
    """Two hosts get ten permits a window between them, and each group has its own."""
    clock = SystemClock()
    first, second = limiter(fresh, "a"), limiter(fresh, "b")
    now = clock.monotonic()
    granted = sum(not one.take("candles", NORMAL, now, now) for one in [first, second] * 8)
    assert granted == 9
    assert not second.take("candles", CRITICAL, now, now), "the last one is left to critical"
    assert not second.take("ticker", NORMAL, now, now)
    assert first.snapshot(now)["candles"].used == 10
    assert first.snapshot(now)["candles"].limit == 10
    first.close()
    second.close()


def test_priorities_count_across_hosts(fresh: RedisServer) -> None:
    """A low waiter of one host gets a later time than a high one that comes after it on another."""
    now = SystemClock().monotonic()
    low, high = limiter(fresh, "a"), limiter(fresh, "b")
    while not low.take("candles", NORMAL, now, now):
        pass
    low.leave("candles", NORMAL)
    low.take("candles", LOW, now, now)
    high_at = high.take("candles", HIGH, now, now)
    assert low.take("candles", LOW, now, now) > high_at
    assert high.snapshot(now)["candles"].waiting == {"critical": 0, "high": 1, "normal": 0, "low": 1}
    high.close()
    assert low.snapshot(now)["candles"].waiting["high"] == 0
    low.close()


def test_ban_and_refusal_of_one_host_hold_all(fresh: RedisServer) -> None:
    """A 418 that one host received holds every group of the other, new ones too; a 429 its own group."""
    clock = SystemClock()
    now = clock.monotonic()
    first, second = limiter(fresh, "a"), limiter(fresh, "b")
    first.refused("candles", now, None)
    assert second.take("candles", HIGH, now, now) >= now + 1.0
    assert not second.take("ticker", HIGH, now, now)
    first.banned(clock.now_us() + 30_000_000, now)
    for group in ("ticker", "trades"):
        assert second.take(group, CRITICAL, now, now) == pytest.approx(now + 30, abs=0.5)
    assert second.ban_left(now) == pytest.approx(30, abs=0.5)
    first.close()
    second.close()


def test_late_and_unused_permits_are_settled_by_the_servers_time(fresh: RedisServer) -> None:
    """An unused permit is free again, a late one is moved, a lapsed one refused."""
    clock = ManualClock(waits=False)
    one = limiter(fresh, clock=clock)
    now = clock.monotonic()
    assert not one.take("g", NORMAL, now, now)
    assert one.move("g", now, now + 0.01)
    assert not one.move("g", now, now + 0.02), "the first stamp is no more"
    one.undo("g", now + 0.01)
    assert one.snapshot(now)["g"].used == 0
    assert not one.take("g", NORMAL, now, now)
    one.observe("g", 4, now, now, now)
    assert one.snapshot(now)["g"].foreign == 5
    one.close()


def test_permits_of_many_processes_never_exceed_the_limit(fresh: RedisServer) -> None:
    """Four processes that take as fast as they can stay within ten a second, by the server's stamps."""
    code = (
        "import sys\n"
        "from backbone.clock import SystemClock\n"
        "from backbone.coordinator.quota.redis import RedisLimiter\n"
        "from backbone.model import Priority\n"
        "import threading\n"
        "clock = SystemClock(); one = RedisLimiter(sys.argv[1], 'http://127.0.0.1:8000', clock, host=sys.argv[2])\n"
        "end = clock.monotonic() + 3; pause = threading.Condition()\n"
        "while (now := clock.monotonic()) < end:\n"
        "    again = one.take('g', Priority.NORMAL, now, now)\n"
        "    if again:\n"
        "        with pause: clock.wait(pause, max(0.0, again - clock.monotonic()))\n"
        "    else:\n"
        "        print(repr(one._stamps['g', now]))\n"
        "        one.observe('g', None, now, now, now)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, fresh.url, f"h{i}"], stdout=subprocess.PIPE, text=True)
        for i in range(4)
    ]
    stamps = sorted(float(line) for process in running for line in process.communicate()[0].split())
    assert len(stamps) > 10
    assert all(later - stamp >= RULES.window_s for stamp, later in zip(stamps, stamps[10:], strict=False))


def test_lost_redis_leaves_each_host_its_fair_share(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, own: RedisServer
) -> None:
    """Killed, Redis costs one warning and a window's pause; then two hosts have five a second each; it returns."""
    clock = ManualClock(waits=False)
    hosts = [limiter(own, name, clock, tmp_path / name) for name in "ab"]
    for one in [*hosts, *hosts]:
        now = clock.monotonic()
        assert not one.take("g", NORMAL, now, now)
        clock.advance(1.5)  # hosts are counted once a second
    assert [one._hosts for one in hosts] == [2, 2]
    own.kill()
    for one in hosts:
        now = clock.monotonic()
        assert one.take("g", NORMAL, now, now) == now + RULES.window_s
        assert not one.is_shared
    assert sum("quota.lost" in record.message for record in caplog.records) == 2
    clock.advance(RULES.window_s + 0.01)
    for one in hosts:
        now = clock.monotonic()
        assert sum(not one.take("g", NORMAL, now, now) for _ in range(8)) == 4
        assert not one.take("g", CRITICAL, now, now), "the last one is left to critical"
    own.start()
    clock.advance(RULES.window_s + RULES.unanswered_s + 0.1)
    now = clock.monotonic()
    assert not hosts[0].take("g", CRITICAL, now, now), "a critical request does not look for Redis"
    assert not hosts[0].is_shared
    wait = hosts[0].take("g", NORMAL, now, now)
    assert hosts[0].is_shared
    assert wait > now + RULES.window_s, "others may still send on their share"
    for one in hosts:
        one.close()


def test_lost_redis_keeps_a_ban(tmp_path: Path, own: RedisServer) -> None:
    """A ban outlives the Redis that knew of it."""
    clock = ManualClock(waits=False)
    one = limiter(own, "a", clock, tmp_path)
    now = clock.monotonic()
    one.banned(clock.now_us() + 60_000_000, now)
    own.kill()
    clock.advance(5)
    one.take("g", NORMAL, now, clock.monotonic())
    clock.advance(5)
    assert one.ban_left(clock.monotonic()) == pytest.approx(50, abs=0.1)
    assert one.take("g", CRITICAL, clock.monotonic(), clock.monotonic()) == pytest.approx(now + 60, abs=0.1)
    one.close()


@pytest.mark.parametrize(("hosts", "limit", "rate"), [(1, 10, 10), (3, 3, 3), (10, 1, 1), (25, 1, 0.4)])
def test_fair_share_is_never_more_than_the_limit_in_sum(hosts: int, limit: int, rate: float) -> None:
    """A host's share times the hosts is at most the limit, also for more hosts than permits."""
    rules = _fair_rules(RULES, hosts)
    assert rules.limit == limit
    assert rules.limit / rules.window_s * hosts <= RULES.limit / RULES.window_s + 1e-9
    assert rules.limit / rules.window_s == pytest.approx(rate / RULES.window_s)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that asks for a password."""
    made = RedisServer(tmp_path, "--requirepass", "sesame")
    yield made
    made.kill()


def test_open_wrong_password_is_one_clear_error(locked: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused credentials are an `InputError` that names where to put them and shows none."""
    with pytest.raises(InputError, match="BACKBONE_QUOTA_PASSWORD"):
        limiter(locked).open()
    monkeypatch.setenv("BACKBONE_QUOTA_PASSWORD", "wr0ng")
    one = limiter(locked)
    with pytest.raises(InputError, match="BACKBONE_QUOTA_PASSWORD") as caught:
        one.open()
    assert "wr0ng" not in str(caught.value) + repr(one)
    monkeypatch.setenv("BACKBONE_QUOTA_PASSWORD", "sesame")
    two = limiter(locked)
    two.open()
    assert "sesame" not in repr(two) + repr(vars(two))
    two.close()


def test_open_without_a_server_is_one_clear_error(own: RedisServer) -> None:
    """A server that is not there when work starts is an `UnreachableError`, not a share of an unknown number."""
    own.kill()
    with pytest.raises(UnreachableError, match="does not answer"):
        limiter(own).open()
