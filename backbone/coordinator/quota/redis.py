"""One quota for hosts behind one address: the ledger on a Redis server that they share.

The state of a group is the same row of cells as in `ratelimit`, kept under one key; one script, run inside Redis, makes
the same decisions on it, so that a permit is reserved in one round trip and two hosts can never both take the last one.
The script is a translation of `ratelimit`, held to it by a test that runs both side by side. Time is the Redis server's
alone: hosts send ages and get back waits, so their clocks need not agree on anything.

A lost Redis is survived: after one window of silence each host goes on with its fair share (the limit divided by the
hosts lately seen), kept in its own machine ledger, and says so once in a warning. It asks Redis again every second,
not on the way of a critical request. Whoever comes back makes everybody wait for the time in which others may still
send on their share.

`_lock` guards the stamps of permits in use, the waiting set and the form the limiter is in; no call to Redis is made
while it is held.
"""

from __future__ import annotations

import logging
import secrets
import socket
import tempfile
import threading
from array import array
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from backbone.clock import Clock
from backbone.coordinator.quota import rules as rates
from backbone.coordinator.quota.ledger import MachineLimiter
from backbone.coordinator.quota.rules import GroupState, Rules
from backbone.errors import ClosedError, InputError, UnreachableError
from backbone.locks import renew_after_fork
from backbone.model import Priority
from backbone.settings import from_environment

__all__ = ["RedisLimiter"]

log = logging.getLogger("backbone.quota")

_TIMEOUT_S = 1.0  # a Redis that takes longer is as good as lost
_RETRY_S = 1.0  # between two looks for a lost Redis; ten times what the last one took, if that is more
_SEEN_S = 60.0  # a host that asked for nothing for so long has no share
_STAMPS = 4096  # permits in use whose server time is remembered
_KEPT_S = int(rates.LONGEST_BAN_S) + 86400
_RULES = (
    "limit", "window_s", "unheard_s", "pace", "attention_s", "soon_s", "spread_s", "grace_s", "slack_s", "stop_s",
    "ease_s", "heed_s", "waiters", "first_critical", "first_row", "size",
)  # fmt: skip
_CONSTANTS = (
    "_STOP", "_BAN", "_EASE", "_SPACED", "_ATTEND", "_HEED", "_CHAIN", "_WAITING", "_LEVEL", "_PEAK", "_PEAK_AT",
    "_FOREIGN", "_REFUSED", "_GRANTED", "_HEAD", "_CRITICAL", "_LOW", "_ROW_CELLS", "_FAR_S", "_AHEAD_S",
    "LONGEST_BAN_S", "_LOWEST_LEVEL", "_CROWD",
)  # fmt: skip


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
        self._folder = folder or (Path(tempfile.gettempdir()) / "backbone-quota" / named if named else None)
        self._prefix = _prefix(rest_url, self.rules)
        self._client: Any = None
        self._script: Any = None
        self._is_closed = False
        self._hosts = 1
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
        self._told_s = float("-inf")
        self._ban_until_s = 0.0

    def __repr__(self) -> str:
        share = self._share
        state = "closed" if self._is_closed else "shared" if share is None else f"lost, on its share: {share!r}"
        return f"<RedisLimiter {self.rules.limit} per {self.rules.window_s:g} s at {self.url}, {state}>"

    @property
    def is_shared(self) -> bool:
        """Whether other hosts are seen."""
        return self._share is None

    @property
    def hosts(self) -> int:
        """Hosts that lately asked, this one included."""
        return self._hosts

    # -- Redis ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """See that Redis is there, before work starts.

        Raises `InputError` without the package or with refused credentials, `UnreachableError` without an answer.
        """
        redis = _redis()
        try:
            self._connect().ping()
            self._connect().script_load(_SCRIPT)
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as exc:
            raise InputError(
                "quota", self.url, f"credentials that this Redis accepts, in $BACKBONE_QUOTA_PASSWORD ({exc})"
            ) from exc
        except redis.ResponseError as exc:
            refused = "NOAUTH" in str(exc) or "WRONGPASS" in str(exc)
            what = "credentials in $BACKBONE_QUOTA_PASSWORD" if refused else "a Redis server that runs scripts"
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
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                retry=Retry(NoBackoff(), 1),  # a connection that the server dropped while idle is opened again
                retry_on_timeout=False,
            )
            self._script = self._client.register_script(_SCRIPT)
        return self._client

    def _run(
        self, op: str, group: str, *args: float | str, returned: bool = False, at: float | None = None
    ) -> list[bytes]:
        """One decision inside Redis. `at` replaces the server's time, for tests."""
        self._connect()
        keys = [f"{self._prefix}:{name}" for name in (f"g:{group}", "host", "groups", "hosts")]
        rules = [repr(float(getattr(self.rules, name))) for name in _RULES]
        now = "" if at is None else repr(at)
        common = [op, now, self._host, repr(self._owner), "1" if returned else "", self._prefix, group]
        texts = [value if isinstance(value, str) else repr(float(value)) for value in args]
        answer: list[bytes] = self._script(keys, [*rules, *common, *texts])
        return answer

    def _ask(self, op: str, group: str, *args: float | str, probe: bool = True) -> list[bytes] | None:
        """One decision, or None while Redis is lost (and this is not the time to look for it again)."""
        redis = _redis()
        now = self._clock.monotonic()
        with self._lock:
            returned = self._share is not None
            if returned:
                if not probe or now < self._retry_s:
                    return None
                self._retry_s = now + 10 * _TIMEOUT_S  # one look at a time; it says below when the next may be
        try:
            answer = self._run(op, group, *args, returned=returned)
        except (redis.RedisError, OSError) as exc:
            self._lose(exc, self._clock.monotonic() - now)
            return None
        if returned:
            self._find()
        return answer

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
        is_told = now - self._told_s < 1.0
        seen = "" if is_told else "1"
        probe = priority is not Priority.CRITICAL
        answer = self._ask("take", group, rank, max(0.0, now - since), depth, seen, probe=probe)
        if answer is None:
            return self._take_share(group, priority, since, now, depth)
        wait_s, stamp, hosts, ban_left_s = (float(value) for value in answer)
        received = self._clock.monotonic()
        with self._lock:
            if seen:
                self._told_s, self._hosts = now, max(1, int(hosts))
            self._ban_until_s = received + ban_left_s if ban_left_s > 0 else 0.0
            if wait_s > 0:
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

    def leave(self, group: str, priority: Priority | None = None) -> None:
        with self._lock:
            share = self._share
            ranks = [each.rank for each in Priority if priority in (None, each)]
            known = [rank for rank in ranks if (group, rank) in self._waiting]
            self._waiting.difference_update((group, rank) for rank in known)
        if share is not None:
            share.leave(group, priority)
            return
        for rank in known:
            self._ask("leave", group, rank, probe=False)

    def undo(self, group: str, granted: float) -> None:
        with self._lock:
            stamp, share = self._stamps.pop((group, granted), None), self._share
        if stamp is not None:
            self._ask("undo", group, stamp, probe=False)
        elif share is not None:
            share.undo(group, granted)

    def move(self, group: str, granted: float, now: float) -> bool:
        with self._lock:
            stamp, share = self._stamps.get((group, granted)), self._share
        if stamp is None:
            return share.move(group, granted, now) if share is not None else now <= granted
        answer = self._ask("move", group, stamp, probe=False)
        if answer is None or not float(answer[0]):
            return False
        with self._lock:
            self._stamps.pop((group, granted), None)
            self._stamps[group, now] = float(answer[1])
        return True

    def observe(self, group: str, remaining: int | None, granted: float, counted: float, now: float) -> None:
        with self._lock:
            stamp, share = self._stamps.pop((group, granted), None), self._share
        if stamp is None:
            if share is not None:
                share.observe(group, remaining, granted, counted, now)
            return
        left = -1 if remaining is None else remaining
        self._ask("observe", group, stamp, max(0.0, counted - granted), left, probe=False)

    def refused(self, group: str, now: float, retry_after_s: float | None) -> None:
        if self._ask("refused", group, -1.0 if retry_after_s is None else retry_after_s) is None:
            share = self._share
            if share is not None:
                share.refused(group, now, retry_after_s)

    def banned(self, until_wall_us: int, now: float) -> None:
        left_s = max(0.0, (until_wall_us - self._clock.now_us()) / 1e6)
        with self._lock:
            self._ban_until_s = max(self._ban_until_s, now + left_s)
        if self._ask("banned", "", left_s) is None:
            share = self._share
            if share is not None:
                share.banned(until_wall_us, now)

    def ban_left(self, now: float) -> float:
        answer = self._ask("ban_left", "", probe=False)
        if answer is not None:
            return float(answer[0])
        share = self._share
        return max(0.0, self._ban_until_s - now) if share is None else share.ban_left(now)

    def snapshot(self, now: float) -> dict[str, GroupState]:
        answer = self._ask("snapshot", "", probe=False)
        if answer is None:
            share = self._share
            return {} if share is None else share.snapshot(now)
        at, *pairs = answer
        names, rows = pairs[::2], pairs[1::2]
        states = {}
        for name, raw in zip(names, rows, strict=True):
            cells = array("d", raw.ljust(8 * self.rules.size, b"\0")[: 8 * self.rules.size])
            states[name.decode("utf-8", "replace")] = rates.describe(cells, self.rules, float(at))
        return states

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


def _redis() -> Any:
    try:
        import redis
    except ImportError as exc:
        raise InputError("quota", "redis", "available only with the extra: pip install 'backbone[redis]'") from exc
    return redis


def _prefix(rest_url: str, rules: Rules) -> str:
    """The keys of one venue and limit; the braces keep them on one node of a cluster."""
    parts = urlsplit(rest_url)
    host = (parts.hostname or "").lower()
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"backbone:quota:{{{host}:{port}}}:{rules.limit}:{rules.size}"


def _fair_rules(rules: Rules, hosts: int) -> Rules:
    """A host's part of the quota; of more hosts than permits, each gets one in a longer window."""
    hosts = max(1, hosts)
    if hosts <= rules.limit:
        return replace(rules, limit=rules.limit // hosts)
    window_s = rules.window_s * hosts / rules.limit
    return replace(rules, limit=1, window_s=window_s, attention_s=max(rules.attention_s, window_s))


_LUA = r"""
local rule = {}
for i, name in ipairs(RULE_NAMES) do rule[name] = tonumber(ARGV[i]) end
local n = #RULE_NAMES
local op, at, host, owner, returned, prefix, group =
    ARGV[n + 1], ARGV[n + 2], ARGV[n + 3], tonumber(ARGV[n + 4]), ARGV[n + 5], ARGV[n + 6], ARGV[n + 7]
local function arg(i) return tonumber(ARGV[n + 7 + i]) end
local limit, window = rule.limit, rule.window_s
local first_critical, first_row, size = rule.first_critical, rule.first_row, rule.size
local now
if at ~= '' then now = tonumber(at) else
    local time = redis.call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1e6
end
local layout = '<' .. string.rep('d', size)
local c  -- the cells of the group in hand, from 0

local function text(x) return string.format('%.17g', x) end

local function load(key)
    local raw = redis.call('GET', key)
    local cells = {}
    if raw and #raw == 8 * size then
        local values = {struct.unpack(layout, raw)}
        for i = 0, size - 1 do cells[i] = values[i + 1] end
        return cells, true
    end
    for i = 0, size - 1 do cells[i] = 0 end
    return cells, false
end

local function save(key, cells)
    local values = {}
    for i = 0, size - 1 do values[i + 1] = cells[i] end
    redis.call('SET', key, struct.pack(layout, unpack(values)), 'EX', KEPT_S)
end

local function slice(from, to)
    local part = {}
    for i = from, to - 1 do part[#part + 1] = c[i] end
    return part
end

local function sorted(from, to)
    local part = slice(from, to)
    table.sort(part)
    return part
end

local function index_of(from, to, value)
    for i = from, to - 1 do if c[i] == value then return i end end
    return nil
end

local function oldest(from, to)
    local best = from
    for i = from + 1, to - 1 do if c[i] < c[best] then best = i end end
    return best
end

local function within(value, most)
    if value >= 0 and value <= most then return value end
    return most
end

local function current_limit()
    local most = limit
    if c[EASE] > now then
        most = most - math.floor(within(c[LEVEL], LOWEST_LEVEL)) * math.max(1, math.floor(limit / 5))
    end
    if c[HEED] > now then most = math.min(most, limit - 1 - math.floor(within(c[FOREIGN], limit))) end
    return math.max(1, math.floor(limit / 5), most)
end

local function share(most)
    if c[ATTEND] <= now then return 0 end
    return math.min(math.floor(most / 2), math.floor(within(c[PEAK], limit)) + 1)
end

local function used()
    local count = 0
    for i = HEAD, first_row - 1 do if c[i] > now - window then count = count + 1 end end
    return count
end

local function is_sane()
    local function upto(i, far) return c[i] >= 0 and c[i] <= now + far end
    if not (upto(STOP, FAR_S * 10) and upto(BAN, LONGEST_BAN_S) and upto(EASE, LONGEST_BAN_S + FAR_S * 10)
        and upto(CHAIN, FAR_S) and upto(SPACED, FAR_S) and upto(ATTEND, FAR_S + rule.attention_s)
        and upto(HEED, FAR_S) and upto(PEAK_AT, FAR_S)) then return false end
    for i = HEAD, first_row - 1 do if not upto(i, AHEAD_S) then return false end end
    return c[LEVEL] >= 0 and c[LEVEL] <= LOWEST_LEVEL and c[PEAK] >= 0 and c[PEAK] <= limit
        and c[FOREIGN] >= 0 and c[FOREIGN] <= limit and c[WAITING] >= 0 and c[WAITING] <= rule.waiters
end

local function clear() for i = 1, size - 1 do c[i] = 0 end end

local function rows()
    local found = {}
    local count = c[WAITING]
    if not (count > 0 and count <= rule.waiters) then return found end
    for place = 0, math.floor(count) - 1 do
        local a = first_row + ROW_CELLS * place
        found[#found + 1] = {c[a], c[a + 1], c[a + 2], c[a + 3], c[a + 4]}
    end
    return found
end

local function strike(table_rows, who, rank)
    local a, left = first_row, 0
    for _, row in ipairs(table_rows) do
        if row[1] ~= who or (rank and row[2] ~= rank) then
            for k = 1, ROW_CELLS do c[a + k - 1] = row[k] end
            a, left = a + ROW_CELLS, left + 1
        end
    end
    if left < #table_rows then c[WAITING] = left end
end

local function enlist(table_rows, row)
    local place
    for i, old in ipairs(table_rows) do
        if old[1] == row[1] and old[2] == row[2] then place = i; break end
        if not place and not (now <= old[4] and old[4] <= now + FAR_S) then place = i end
    end
    if not place and #table_rows < rule.waiters then place = #table_rows + 1 end
    if not place then
        local worst = 1
        for i, old in ipairs(table_rows) do if old[3] > table_rows[worst][3] then worst = i end end
        if table_rows[worst][3] <= row[3] then return end
        place = worst
    end
    local a = first_row + ROW_CELLS * (place - 1)
    for k = 1, ROW_CELLS do c[a + k - 1] = row[k] end
    if place > #table_rows then c[WAITING] = place end
end

local function free_at(stamps, most, ahead)
    local index = #stamps - most + ahead
    if index < #stamps then return stamps[index + 1] + window end
    local over = index - #stamps
    local turns, place = math.floor(over / most), over % most
    return stamps[#stamps - most + place + 1] + (turns + 2) * window
end

local function opening(table_rows, who, rank, key)
    local most, chain = current_limit(), c[CHAIN]
    local spaced = c[SPACED] > now
    local is_paced = rank == LOW or (spaced and rank ~= CRITICAL)
    local ahead, ahead_other, ahead_paced = 0, 0, 0
    for _, row in ipairs(table_rows) do
        local row_who, row_rank, row_key, expiry, depth = row[1], row[2], row[3], row[4], row[5]
        local is_live = now <= expiry and expiry <= now + FAR_S and not (row_who == who and row_rank == rank)
        if is_live and (row_key < key or (row_key == key and row_who < who)) then
            local row_paced = row_rank == LOW or (spaced and row_rank ~= CRITICAL)
            if not (row_paced and not is_paced and chain > now) then
                local count = 1
                if row_rank < rank then count = math.floor(within(depth, CROWD)) end
                ahead = ahead + count
                if row_rank ~= CRITICAL then ahead_other = ahead_other + count end
                if row_paced then ahead_paced = ahead_paced + count end
            end
        end
    end
    local stamps = sorted(HEAD, first_row)
    local opens = free_at(stamps, most, ahead)
    if rank == CRITICAL then return opens end
    if most > 1 then opens = math.max(opens, free_at(stamps, most - 1, ahead) - rule.soon_s) end
    local kept = share(most)
    if kept > 0 then opens = math.max(opens, free_at(sorted(HEAD, first_critical), most - kept, ahead_other)) end
    if is_paced then opens = math.max(opens, chain + ahead_paced * rule.pace * window / most) end
    return opens
end

local function grant(rank)
    local from, to = HEAD, first_critical
    if rank == CRITICAL then
        from, to = first_critical, first_row
        c[ATTEND] = now + rule.attention_s
        local busy = 1
        for i = from, to - 1 do if c[i] > now - window then busy = busy + 1 end end
        if busy >= c[PEAK] or c[PEAK_AT] <= now - rule.attention_s then
            c[PEAK] = math.min(busy, limit)
            c[PEAK_AT] = now
        end
    elseif rank == LOW or c[SPACED] > now then
        local step = rule.pace * window / current_limit()
        c[CHAIN] = math.max(c[CHAIN], now - step / 2) + step
    end
    c[oldest(from, to)] = now + rule.unheard_s
    c[GRANTED + rank] = c[GRANTED + rank] + 1
end

local function take_among(who, rank, key, depth)
    local hold = math.max(c[STOP], c[BAN])
    if hold > now and is_sane() then return hold end
    local table_rows = rows()
    local opens = opening(table_rows, who, rank, key)
    if opens <= now then
        grant(rank)
        strike(table_rows, who, rank)
        return 0
    end
    if not is_sane() then
        clear()
        return take_among(who, rank, key, depth)
    end
    opens = math.min(opens, now + window)
    enlist(table_rows, {who, rank, key, opens + rule.grace_s, depth})
    if CRITICAL < rank and rank < LOW and used() >= current_limit() - 1 then c[SPACED] = now + rule.spread_s end
    return opens
end

local function take(who, rank, key, depth)
    if rank ~= CRITICAL and c[WAITING] == 0
        and math.max(c[STOP], c[BAN], c[EASE], c[SPACED], c[ATTEND], c[HEED]) <= now then
        local ordered = sorted(HEAD, first_critical)
        local last = ordered[math.min(#ordered, #ordered - limit + 2)]
        local opens = math.max(ordered[#ordered - limit + 1], last - rule.soon_s) + window
        if opens <= now and (rank ~= LOW or c[CHAIN] <= now) then
            c[oldest(HEAD, first_critical)] = now + rule.unheard_s
            c[GRANTED + rank] = c[GRANTED + rank] + 1
            if rank == LOW then
                local step = rule.pace * window / limit
                c[CHAIN] = math.max(c[CHAIN], now - step / 2) + step
            end
            return 0
        end
    end
    return take_among(who, rank, key, depth)
end

local function move(granted)
    if now <= granted then return granted end
    local index = index_of(HEAD, first_row, granted + rule.unheard_s)
    if not index or now >= granted + window then return nil end
    c[index] = now + rule.unheard_s
    return now
end

local function settle(granted, counted, remaining)
    local index = index_of(HEAD, first_row, granted + rule.unheard_s)
    counted = math.min(counted, now)
    if index then c[index] = counted end
    if not (remaining >= 0 and remaining < limit) then return end
    local edge, own = granted - window - rule.slack_s, 0
    for i = HEAD, first_row - 1 do if c[i] > edge then own = own + 1 end end
    local foreign = limit - remaining - own
    if foreign > 0 and (foreign >= c[FOREIGN] or c[HEED] <= now) then
        c[FOREIGN] = foreign
        c[HEED] = now + rule.heed_s
    end
end

local function refuse(retry_after)
    c[REFUSED] = c[REFUSED] + 1
    local wait = math.max(0, retry_after)
    local until_ = now + math.max(rule.stop_s, math.min(wait, 5 * FAR_S))
    if c[STOP] > now then
        if wait > 0 then c[STOP] = math.max(c[STOP], until_) end
        return
    end
    local level = 0
    if c[EASE] > now - 2 * rule.ease_s then level = c[LEVEL] end
    level = math.min(LOWEST_LEVEL, level + 1)
    c[STOP], c[LEVEL], c[EASE] = until_, level, until_ + rule.ease_s * level
end

local function ban(until_)
    local known = c[BAN]
    if known > now + LONGEST_BAN_S then known = 0 end
    c[BAN] = math.max(math.min(until_, now + LONGEST_BAN_S), known)
    c[LEVEL] = math.floor(LOWEST_LEVEL / 2)
    c[EASE] = c[BAN] + rule.ease_s * c[LEVEL]
end

local function ban_until(cells)
    local until_ = cells[BAN]
    if now < until_ and until_ <= now + LONGEST_BAN_S then return until_ end
    return 0
end

-- A group that is new here takes over what holds for the whole address: a ban, or the wait for hosts that come back.
local function open_group(name)
    local key = prefix .. ':g:' .. name
    local known
    c, known = load(key)
    if not known then
        redis.call('SADD', KEYS[3], name)
        redis.call('EXPIRE', KEYS[3], KEPT_S)
        local common = load(KEYS[2])
        c[STOP] = common[STOP]
        if ban_until(common) > 0 then ban(ban_until(common)) end
    end
    return key
end

local function every(change)
    c = load(KEYS[2])
    change()
    save(KEYS[2], c)
    for _, name in ipairs(redis.call('SMEMBERS', KEYS[3])) do
        local key = open_group(name)
        change()
        save(key, c)
    end
end

if returned ~= '' then  -- others may still send on their share: everybody waits until they too have come back
    local common = load(KEYS[2])
    if common[SPACED] <= now then
        local until_ = now + 2 * window
        every(function() c[STOP] = math.max(c[STOP], until_) end)
        common = load(KEYS[2])
        common[SPACED] = now + 5 * window
        save(KEYS[2], common)
    end
end

if op == 'take' then
    local key = open_group(group)
    local rank = arg(1)
    local again = take(owner, rank, now - arg(2) + ALLOWANCE[rank + 1], arg(3))
    save(key, c)
    local hosts = 0
    if ARGV[n + 7 + 4] ~= '' then
        redis.call('ZADD', KEYS[4], text(now), host)
        redis.call('EXPIRE', KEYS[4], KEPT_S)
        redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', text(now - 1440 * SEEN_S))
        hosts = redis.call('ZCOUNT', KEYS[4], text(now - SEEN_S), '+inf')
    end
    local wait = 0
    if again > 0 then wait = math.max(1e-4, again - now) end
    return {text(wait), text(now), text(hosts), text(math.max(0, ban_until(c) - now))}
elseif op == 'leave' then
    local key = open_group(group)
    if c[WAITING] > 0 then
        strike(rows(), owner, arg(1))
        save(key, c)
    end
    return {'1'}
elseif op == 'undo' then
    local key = open_group(group)
    local index = index_of(HEAD, first_row, arg(1) + rule.unheard_s)
    if index then
        c[index] = 0
        save(key, c)
    end
    return {'1'}
elseif op == 'move' then
    local key = open_group(group)
    local stamp = move(arg(1))
    if not stamp then return {'0', '0'} end
    save(key, c)
    return {'1', text(stamp)}
elseif op == 'observe' then
    local key = open_group(group)
    settle(arg(1), arg(1) + arg(2), arg(3))
    save(key, c)
    return {'1'}
elseif op == 'refused' then
    local key = open_group(group)
    refuse(arg(1))
    save(key, c)
    return {'1'}
elseif op == 'banned' then
    local until_ = now + arg(1)
    every(function() ban(until_) end)
    return {'1'}
elseif op == 'ban_left' then
    return {text(math.max(0, ban_until((load(KEYS[2]))) - now))}
elseif op == 'snapshot' then
    local told = {text(now)}
    for _, name in ipairs(redis.call('SMEMBERS', KEYS[3])) do
        open_group(name)
        local values = {}
        for i = 0, size - 1 do values[i + 1] = c[i] end
        told[#told + 1] = name
        told[#told + 1] = struct.pack(layout, unpack(values))
    end
    return told
end
return redis.error_reply('backbone: unknown operation ' .. op)
"""


def _script() -> str:
    """The script, with the cell numbers and constants of `ratelimit` put before it."""
    lines = [f"local {name.lstrip('_')} = {float(getattr(rates, name))!r}" for name in _CONSTANTS]
    lines.append(f"local KEPT_S, SEEN_S = {_KEPT_S}, {_SEEN_S!r}")
    lines.append("local ALLOWANCE = {" + ", ".join(repr(value) for value in rates._ALLOWANCE) + "}")
    lines.append("local RULE_NAMES = {" + ", ".join(f"'{name}'" for name in _RULES) + "}")
    return "\n".join(lines) + _LUA


_SCRIPT = _script()
