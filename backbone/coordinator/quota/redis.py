"""One quota for hosts behind one address: the ledger on a Redis server that they share.

The state of every group is a field of one hash, the same numbers as in `quota.ledger`. A decision reads the hash,
decides with `quota.rules` in Python and writes what changed, provided that no other host has written meanwhile
(``WATCH``); otherwise it tries again, so two hosts can never both take the last permit. Time is the Redis server's
alone, read after ``WATCH``: committed decisions are in its order, and the clocks of the hosts need not agree.

A lost Redis is survived: after a pause of one window each host goes on with its fair share (the limit divided by the
hosts lately seen), kept in its own machine ledger, and logs that once as a warning. It tries Redis again every second,
not on the way of a critical request. The first host that comes back makes all wait for the time in which others may
still send on their share.

`_lock` guards the stamps of permits in use, the waiting set and the form the limiter is in; no call to Redis is made
while it is held.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from backbone.clock import Clock
from backbone.coordinator.quota import rules as rates
from backbone.coordinator.quota.ledger import MachineLimiter, address_of
from backbone.coordinator.quota.rules import GroupState, Rules, State
from backbone.errors import ClosedError, InputError, UnreachableError
from backbone.locks import RUN_LOCK, renew_after_fork
from backbone.model import Priority
from backbone.settings import from_environment, ledger_folder

__all__ = ["RedisLimiter"]

log = logging.getLogger("backbone.quota")

_TIMEOUT_S = 1.0  # a Redis that takes longer is as good as lost
_RETRY_S = 1.0  # between two looks for a lost Redis; ten times what the last one took, if that is more
_SEEN_S = 60.0  # a host that asked for nothing for so long has no share
_STAMPS = 4096  # permits in use whose server time is remembered
_KEPT_S = int(rates.LONGEST_BAN_S) + 86400
_GROUP, _HOSTS, _COMMON, _RETURNED = b"g:", b"hosts", b"common", b"returned"  # fields of the hash
_TRIES = 1000  # another host's write comes between so often only if Redis is not usable

T = TypeVar("T")


class RedisLimiter:
    """The `Limiter` of a host that shares its address with others. Opens nothing before `open` or the first use.

    Parameters
    ----------
    url : ``redis://host:port/db``, ``rediss://`` or ``unix://``, without a password: that is read from
        ``$BACKBONE_QUOTA_PASSWORD`` (the user from ``$BACKBONE_QUOTA_USER``) when connecting, and kept nowhere.
    rest_url : the venue; hosts that ask another one have another quota.
    host : who this is; processes of one host are one share. Default ``$BACKBONE_HOST``, else the machine's name.
    """

    def __init__(
        self,
        url: str,
        rest_url: str,
        clock: Clock,
        *,
        host: str | None = None,
        rules: Rules | None = None,
        folder: Path | None = None,
    ) -> None:
        self.rules = rules or Rules()
        self.url = url
        self._rest_url = rest_url
        self._clock = clock
        named = host or from_environment("BACKBONE_HOST") or ""
        self._host = named or socket.gethostname()
        self._folder = folder or (ledger_folder() / named if named else None)
        self._key = _key(rest_url, self.rules)
        self._client: Any = None
        self._is_closed = False
        self._hosts = 1  # that lately asked, this one included
        self._renew()
        renew_after_fork(self, RedisLimiter._renew)

    def _renew(self) -> None:
        """Begin anew, in a forked child too: another owner, nothing waiting, connections of its own."""
        self._owner = float(secrets.randbits(52) + 1)
        self._lock = threading.Lock()
        self._stamps: OrderedDict[tuple[str, float], float] = OrderedDict()
        self._waiting: set[tuple[str, int]] = set()
        self._share: MachineLimiter | None = None  # the form while Redis is lost
        self._lost_s = 0.0
        self._retry_s = 0.0
        self._counted_s = float("-inf")
        self._ban_until_s = 0.0

    def __repr__(self) -> str:
        share = self._share
        state = "closed" if self._is_closed else "shared" if share is None else f"lost, on its share: {share!r}"
        return f"<RedisLimiter {self.rules.limit} per {self.rules.window_s:g} s at {self.url}, {state}>"

    @property
    def is_shared(self) -> bool:
        """Whether other hosts are seen."""
        return self._share is None

    # -- Redis ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """See that Redis is there, before work starts.

        Raises `InputError` without the package or with refused credentials, `UnreachableError` without an answer.
        """
        redis = _redis()
        try:
            self._connect().ping()
            self._decide(lambda _, now: now)
        except (redis.AuthenticationError, redis.ResponseError) as exc:
            is_able = isinstance(exc, redis.ResponseError) and not isinstance(exc, redis.exceptions.NoPermissionError)
            what = "credentials that this Redis accepts, in $BACKBONE_QUOTA_PASSWORD"
            if is_able and "NOAUTH" not in str(exc) and "WRONGPASS" not in str(exc):
                what = "a Redis server that lets this user read and write"
            raise InputError("quota", self.url, f"{what} ({exc})") from exc
        except (redis.RedisError, OSError) as exc:
            raise UnreachableError(f"the quota ledger {self.url} does not answer: {exc}", url=self.url) from exc

    def _connect(self) -> Any:
        if self._is_closed:
            raise ClosedError("this client is closed; make a new one")
        if self._client is None:
            redis = _redis()
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            self._client = redis.Redis.from_url(
                self.url,
                username=from_environment("BACKBONE_QUOTA_USER"),
                password=from_environment("BACKBONE_QUOTA_PASSWORD"),
                protocol=2,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                retry=Retry(NoBackoff(), 1),  # a connection that the server dropped while idle is opened again
                retry_on_timeout=False,
            )
        return self._client

    def _decide(self, decide: Callable[[_Shared, float], T], *, returned: bool = False) -> T:
        """Read what the hosts share, `decide` on it at the server's time, and write it unless another host has."""
        pool = self._connect().connection_pool
        connection = pool.get_connection()
        try:
            for _ in range(_TRIES):
                _, (seconds, micros), pairs = _talk(connection, ("WATCH", self._key), ("TIME",), ("HGETALL", self._key))
                now = int(seconds) + int(micros) / 1e6
                shared = _Shared(dict(zip(pairs[::2], pairs[1::2], strict=True)), self.rules, now)
                if returned:
                    shared.wait_for_others()
                found = decide(shared, now)
                changed = [part for pair in shared.changed().items() for part in pair]
                if not changed:
                    _talk(connection, ("UNWATCH",))
                    return found
                write = ("HSET", self._key, *changed), ("EXPIRE", self._key, _KEPT_S)
                if _talk(connection, ("MULTI",), *write, ("EXEC",))[-1] is not None:
                    return found
        except BaseException:
            connection.disconnect()  # answers may be left unread
            raise
        finally:
            pool.release(connection)
        raise _redis().WatchError("other hosts write without a pause")

    def _ask(self, decide: Callable[[_Shared, float], T], *, probe: bool = False) -> T | None:
        """One decision, or None while Redis is lost (and this is not the time to try it again)."""
        redis = _redis()
        now = self._clock.monotonic()
        with self._lock:
            returned = self._share is not None
            if returned:
                if not probe or now < self._retry_s:
                    return None
                self._retry_s = now + 10 * _TIMEOUT_S  # one look at a time; it says below when the next may be
        try:
            with RUN_LOCK.waiting():
                found = self._decide(decide, returned=returned)
        except (redis.RedisError, OSError) as exc:
            self._lose(exc, self._clock.monotonic() - now)
            return None
        if returned:
            self._find()
        return found

    def _lose(self, cause: BaseException, took_s: float) -> None:
        now = self._clock.monotonic()
        rules = _fair_rules(self.rules, self._hosts)
        fresh = MachineLimiter(self._rest_url, self._clock, folder=self._folder, rules=rules)
        with self._lock:
            self._retry_s = now + max(_RETRY_S, 10 * took_s)
            if self._share is not None:
                return
            self._share, self._lost_s = fresh, now
            self._waiting.clear()
            ban_left_s = self._ban_until_s - now
        if ban_left_s > 0:
            fresh.banned(self._clock.now_us() + int(ban_left_s * 1e6), now)
        log.warning(
            "quota.lost url=%s cause=%s: until it is back this host keeps to its share, one part in %d of the quota",
            self.url, cause, self._hosts,
        )  # fmt: skip

    def _find(self) -> None:
        with self._lock:
            share, self._share = self._share, None
        if share is not None:
            share.close()
            log.warning("quota.found url=%s: the quota is shared again", self.url)

    # -- the Limiter ---------------------------------------------------------------------------------------------

    def take(self, group: str, priority: Priority, since: float, now: float, depth: int = 1) -> float:
        rank = priority.rank
        is_counted = now - self._counted_s < 1.0

        def decide(shared: _Shared, at: float) -> tuple[float, float, int, float]:
            key = rates.waiting_key(rank, at - max(0.0, now - since))
            again = rates.take(shared.state(group), self.rules, self._owner, rank, key, at, depth)
            hosts = self._hosts if is_counted else shared.count_hosts(self._host)
            ban_left_s = rates.ban_until(shared.state(group), self.rules, at) - at
            return max(1e-4, again - at) if again else 0.0, at, hosts, ban_left_s

        answer = self._ask(decide, probe=priority is not Priority.CRITICAL)
        if answer is None:
            return self._take_share(group, priority, since, now, depth)
        wait_s, stamp, hosts, ban_left_s = answer
        received = self._clock.monotonic()
        with self._lock:
            if not is_counted:
                self._counted_s, self._hosts = now, hosts
            self._ban_until_s = received + ban_left_s if ban_left_s > 0 else 0.0
            if wait_s:
                self._waiting.add((group, rank))
                return received + wait_s
            self._waiting.discard((group, rank))
            self._stamps[group, now] = stamp
            if len(self._stamps) > _STAMPS:
                self._stamps.popitem(last=False)
        return 0.0

    def _take_share(self, group: str, priority: Priority, since: float, now: float, depth: int) -> float:
        with self._lock:
            share, lost = self._share, self._lost_s
        if share is None:  # found again by another thread
            return now + 1e-3
        if now < lost + self.rules.window_s:  # what Redis granted last may still be in the venue's window
            return lost + self.rules.window_s
        return share.take(group, priority, since, now, depth)

    def next_low(self, group: str) -> float:
        return 0.0  # its times are the server's

    def leave(self, group: str, priority: Priority | None = None) -> None:
        with self._lock:
            share = self._share
            ranks = [each.rank for each in Priority if priority in (None, each) and (group, each.rank) in self._waiting]
            self._waiting.difference_update((group, rank) for rank in ranks)
        if share is not None:
            share.leave(group, priority)
        elif ranks:
            self._ask(lambda shared, _: rates.leave(shared.state(group), self.rules, self._owner, ranks))

    def undo(self, group: str, granted: float) -> None:
        with self._lock:
            stamp, share = self._stamps.pop((group, granted), None), self._share
        if stamp is not None:
            self._ask(lambda shared, _: rates.undo(shared.state(group), self.rules, stamp))
        elif share is not None:
            share.undo(group, granted)

    def move(self, group: str, granted: float, now: float) -> bool:
        with self._lock:
            stamp, share = self._stamps.get((group, granted)), self._share
        if stamp is None:
            return share.move(group, granted, now) if share is not None else now <= granted
        moved = self._ask(lambda shared, at: at if rates.move(shared.state(group), self.rules, stamp, at) else None)
        if moved is None:
            return False
        with self._lock:
            self._stamps.pop((group, granted), None)
            self._stamps[group, now] = max(moved, stamp)
        return True

    def observe(self, group: str, remaining: int | None, granted: float, counted: float, now: float) -> None:
        with self._lock:
            stamp, share = self._stamps.pop((group, granted), None), self._share
        if stamp is None:
            if share is not None:
                share.observe(group, remaining, granted, counted, now)
            return
        counted = stamp + max(0.0, counted - granted)
        self._ask(lambda shared, at: rates.settle(shared.state(group), self.rules, stamp, counted, remaining, at))

    def refused(self, group: str, now: float, retry_after_s: float | None) -> None:

        def decide(shared: _Shared, at: float) -> bool:
            rates.refuse(shared.state(group), self.rules, at, retry_after_s)
            return True

        if not self._ask(decide, probe=True) and (share := self._share) is not None:
            share.refused(group, now, retry_after_s)

    def banned(self, until_wall_us: int, now: float) -> None:
        left_s = max(0.0, (until_wall_us - self._clock.now_us()) / 1e6)
        with self._lock:
            self._ban_until_s = max(self._ban_until_s, now + left_s)

        def decide(shared: _Shared, at: float) -> bool:
            for state in shared.all_states():
                rates.ban(state, self.rules, at + left_s, at)
            return True

        if not self._ask(decide, probe=True) and (share := self._share) is not None:
            share.banned(until_wall_us, now)

    def ban_left(self, now: float) -> float:
        left_s = self._ask(lambda shared, at: max(0.0, rates.ban_until(shared.common, self.rules, at) - at))
        if left_s is not None:
            return left_s
        share = self._share
        return max(0.0, self._ban_until_s - now) if share is None else share.ban_left(now)

    def snapshot(self, now: float) -> dict[str, GroupState]:
        states = self._ask(
            lambda shared, at: {g: rates.describe(shared.state(g), self.rules, at) for g in shared.groups()}
        )
        if states is not None:
            return states
        share = self._share
        return {} if share is None else share.snapshot(now)

    def close(self) -> None:
        """Give up the places in the queue, and the connections."""
        with self._lock:
            waiting = [] if self._is_closed else list(self._waiting)
            share, client = self._share, self._client
        for group, rank in waiting:
            self.leave(group, list(Priority)[rank])
        with self._lock:
            self._is_closed = True
            self._client = None
        if share is not None:
            share.close()
        if client is not None:
            client.close()


class _Shared:
    """What the hosts share, as read at `now`: the state of each group, what is common to all, when each host asked."""

    def __init__(self, fields: dict[bytes, bytes], rules: Rules, now: float) -> None:
        self._fields = fields
        self._rules = rules
        self._now = now
        self._notes: dict[bytes, bytes] = {}
        self._states: dict[bytes, array[float]] = {}
        self.common = self._load(_COMMON)

    def _load(self, field: bytes) -> array[float]:
        size = 8 * self._rules.size
        found = self._states[field] = array("d", self._fields.get(field, b"").ljust(size, b"\0")[:size])
        rates.repair(found, self._rules, self._now)
        return found

    def state(self, group: str) -> State:
        """A group's state; a new group takes over what is common to all."""
        field = _GROUP + group.encode()
        if field in self._states:
            return self._states[field]
        found = self._load(field)
        if field not in self._fields:
            rates.inherit(found, self.common, self._rules, self._now)
        return found

    def groups(self) -> list[str]:
        fields = self._fields.keys() | self._states.keys()
        return sorted(field.removeprefix(_GROUP).decode("utf-8", "replace") for field in fields if field[:2] == _GROUP)

    def all_states(self) -> list[State]:
        return [self.common, *(self.state(group) for group in self.groups())]

    def count_hosts(self, host: str) -> int:
        """Note that `host` asks, and count those that lately did."""
        seen: dict[str, float] = json.loads(self._fields.get(_HOSTS, b"{}"))
        lately = {name: at for name, at in seen.items() if at > self._now - _SEEN_S} | {host: self._now}
        self._notes[_HOSTS] = json.dumps(lately).encode()
        return len(lately)

    def wait_for_others(self) -> None:
        """A host is back from its share while others may still send on theirs: all wait until they are back too.

        The note of it keeps hosts that come back a little later from making all wait once more.
        """
        since = float(self._fields.get(_RETURNED, b"-inf"))
        if since > self._now - 5 * self._rules.window_s:
            return
        self._notes[_RETURNED] = repr(self._now).encode()
        for state in self.all_states():
            rates.hold(state, self._now + 2 * self._rules.window_s)

    def changed(self) -> dict[bytes, bytes]:
        """The fields that differ from what was read."""
        raw = {field: state.tobytes() for field, state in self._states.items()}
        return {field: value for field, value in {**raw, **self._notes}.items() if self._fields.get(field) != value}


def _redis() -> Any:
    try:
        import redis
    except ImportError as exc:
        raise InputError("quota", "redis", "available only with the extra: pip install 'backbone[redis]'") from exc
    return redis


def _talk(connection: Any, *commands: tuple[Any, ...]) -> list[Any]:
    """Send `commands` in one packet and read their answers: one round trip."""
    connection.send_packed_command(connection.pack_commands(commands))
    return [connection.read_response() for _ in commands]


def _key(rest_url: str, rules: Rules) -> str:
    """The hash of one venue and limit."""
    host, port = address_of(rest_url)
    return f"backbone:quota:{host}:{port}:{rules.limit}:{rules.size}"


def _fair_rules(rules: Rules, hosts: int) -> Rules:
    """A host's part of the quota; of more hosts than permits, each gets one in a longer window."""
    hosts = max(1, hosts)
    if hosts <= rules.limit:
        return replace(rules, limit=rules.limit // hosts)
    window_s = rules.window_s * hosts / rules.limit
    return replace(rules, limit=1, window_s=window_s, critical_s=max(rules.critical_s, window_s))
