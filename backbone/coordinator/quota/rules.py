"""Who may send now: the rate decisions of one wire group, as functions of a few numbers and a given time.

The state of a group is a flat array of floats, so that the very same functions decide on memory, on a file that
all processes of a machine share, and on a value that several hosts share. Nothing here reads a clock, a file or
the environment.

Invariants, for any calls whose times do not step back:

- an exact sliding log: never more than `Rules.limit` stamps in any `Rules.window_s` seconds. A stamp is the
  latest time at which the venue may have counted the request: well after the grant (`Rules.unanswered_s`) until
  the answer shows a better one (`settle`), and later if the request left later (`move`);
- who waits with a better key goes first. A key is the time since when one waits plus an allowance by priority
  (`waiting_key`): urgent classes first, first come first served within one, and by age everybody's turn
  comes;
- low work is paced, never a burst, so that an urgent request soon finds a slot; once interactive work has
  overflowed the quota it is spread evenly too, which costs no throughput;
- while critical requests come, a share of the quota is left to critical alone; where they come regularly, only the
  permits of the next round are kept, and only from the time when it is expected;
- what the venue reports (`settle`, `refuse`, `ban`) only makes a group slower than its limit, never faster;
- a waiter that vanishes is forgotten at its expiry, a grant after its window: no clean-up is needed after a
  process that died.

A state that cannot be true (far futures, NaN) is cleared on sight.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from backbone.model import Priority

if TYPE_CHECKING:
    from array import array

State: TypeAlias = "array[float] | memoryview[float]"
"""The numbers of one group, in memory or in a file."""

__all__ = [
    "LONGEST_BAN_S",
    "Delay",
    "GroupState",
    "Rules",
    "State",
    "ban",
    "ban_until",
    "describe",
    "hold",
    "inherit",
    "is_held",
    "leave",
    "move",
    "next_paced",
    "refuse",
    "repair",
    "settle",
    "take",
    "undo",
    "waiting_key",
]

# The scalars at the start of the state. While the times of the first six are past, nothing but the log itself holds
# anybody back, and `take` has a short way.
_STOPPED_UNTIL: Final = 0  # nothing is granted before this time: a 429
_BANNED_UNTIL: Final = 1  # nor before this one: a 418
_EASED_UNTIL: Final = 2  # until when the pace is lowered
_SPREAD_UNTIL: Final = 3  # until when interactive work is paced too
_CRITICAL_UNTIL: Final = 4  # until when a share is kept for critical
_FOREIGN_UNTIL: Final = 5  # until when a share is left to other software on this address
_NEXT_PACED: Final = 6  # when the next paced grant is due
_WAITING: Final = 7  # used places of the waiting table
_LEVEL: Final = 8  # how far the pace is lowered, in steps of a fifth of the limit
_CRITICAL_PEAK: Final = 9  # most critical requests lately seen in one window
_CRITICAL_PEAK_AT: Final = 10
_FOREIGN: Final = 11  # most requests of other software lately seen in one window
_REFUSED: Final = 12  # for the record: 429s
_GRANTED: Final = 13  # for the record: grants by rank, four values
_CRITICAL_LATE: Final = 17  # how long the last critical request waited for its permit
_FIRST_STAMP: Final = 18  # the stamps of all but critical grants, then those of critical ones, then the waiting table

_CRITICAL: Final = Priority.CRITICAL.rank
_LOW: Final = Priority.LOW.rank
_ALLOWANCE: Final = (-1e9, 0.0, 2.0, 10.0)  # seconds, by rank
_WAITER: Final = struct.Struct("5d")  # a waiter: owner, rank, key, expiry, how many it has waiting
_WAITER_SIZE: Final = 5
_FAR_S: Final = 60.0  # only a ban or a lowered pace reaches further ahead, or the state is damaged
_AHEAD_S: Final = 5.0  # another thread's time may be a little ahead of one's own, no more
LONGEST_BAN_S: Final = 7 * 86400.0
_LOWEST_LEVEL: Final = 4
_MOST: Final = 1e15
_TOLERANCE: Final = 1.1  # a round that is so much later than the longest gap was left out
_CROWD: Final = 100  # a queue longer than this makes no difference to when those behind it come back


@dataclass(frozen=True)
class Rules:
    """The venue's limit and how it is kept. Processes share a state only if their rules agree on `limit`.

    ``window_s`` exceeds the venue's second by what may go unnoticed between grant and count; what is noticed
    moves the stamp instead.
    """

    limit: int = 10
    window_s: float = 1.005
    unanswered_s: float = 1.0
    """How much longer a slot is kept while no answer proves that its request was counted in time."""
    pace: float = 0.98
    """Paced grants are this part of an even share apart: a little under it, so that a late wake-up is made up for."""
    critical_s: float = 60.0
    """How long after a critical request a share is kept free for the next, while no habit is known."""
    burst_s: float = 0.15
    """Critical requests closer than this are one round of questions."""
    missed: float = 3.0
    """After so many of its longest gaps without a question, nothing is kept for critical any more (at least 2 s)."""
    late_s: float = 0.005
    """So much later than expected a critical request may find its permit."""
    soon_s: float = 0.2
    """The last free permit is left to critical unless another opens within this time. So a critical request that was
    not expected waits no longer than this, also behind a burst of others."""
    spread_s: float = 2.0
    """How long after an overflow interactive work stays evenly spread."""
    grace_s: float = 0.1
    """How late a waiter may wake and still find its turn kept."""
    slack_s: float = 0.1
    """Foreign requests are assumed only where our own, up to this long before the window, cannot explain the count."""
    stop_s: float = 1.05
    """A 429 stops the group for so long: into the venue's next second, however its clock stands to ours."""
    ease_s: float = 30.0
    """How long, for each level, the pace stays lowered after a 429."""
    foreign_s: float = 5.0
    """How long after other software was noticed on this address its share is left to it."""
    waiters: int = 32
    """Places in the waiting table: one for each process and priority that waits."""

    first_critical: int = field(init=False, repr=False)
    first_waiter: int = field(init=False, repr=False)
    size: int = field(init=False, repr=False)
    step_s: float = field(init=False, repr=False)
    unpack: Callable[..., tuple[float, ...]] = field(init=False, repr=False, compare=False)
    unpack_brief: Callable[..., tuple[float, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= 1000 or not 0 < self.window_s <= self.critical_s:
            raise ValueError(f"limit={self.limit}, window_s={self.window_s}: not a rate that can be kept")
        first_critical = _FIRST_STAMP + self.limit + 3  # a few more than the window holds: `settle` looks further back
        first_waiter = first_critical + self.limit
        keep = object.__setattr__
        keep(self, "first_critical", first_critical)
        keep(self, "first_waiter", first_waiter)
        keep(self, "size", first_waiter + _WAITER_SIZE * self.waiters)
        keep(self, "step_s", self.pace * self.window_s / self.limit)
        keep(self, "unpack", struct.Struct(f"{first_waiter}d").unpack_from)
        keep(self, "unpack_brief", struct.Struct(f"{first_critical}d").unpack_from)


@dataclass(frozen=True)
class GroupState:
    """One group as `status()` shows it. ``used`` and ``free`` count permits of the running window."""

    limit: int
    used: int
    free: int
    share: int
    """Permits kept free for critical; at rest the last one, unless another opens soon."""
    waiting: dict[str, int]
    """Processes that wait, by priority."""
    stopped_s: float
    banned_s: float
    level: int
    """0, or how far the pace is lowered after refusals."""
    granted: dict[str, int]
    """Permits granted so far, by priority, by all who share the state."""
    refused: int
    foreign: int
    """Requests a window of other software on this address, left to it for now."""


class Delay:
    """Estimates when the venue counted a request at the latest, from when it left and when the answer came.

    The way out and back takes at least the shortest time lately seen, so what exceeds it may have been spent before
    the count: a connection that had to be opened first, a lost packet, a busy machine. Two requests are then as far
    apart at the venue as the second's sending is from this, at least. Until there is some experience the whole time
    is taken for lateness. At most `CAP_S` of it counts: what takes longer is the venue's thinking.
    """

    CAP_S = 1.0
    EXPERIENCE = 16
    INTERVAL_S = 300.0

    def __init__(self) -> None:
        self._since = float("-inf")
        self._quick = self._quick_before = 0.0
        self._answers = 0

    def counted(self, sent: float, received: float) -> float:
        """The latest time at which the venue may have counted it, on the clock of `sent` and `received`."""
        took = max(0.0, received - sent)
        if received - self._since >= self.INTERVAL_S:  # a way that has become longer counts after two intervals
            self._quick_before = self._quick if self._answers >= self.EXPERIENCE else 0.0
            self._since, self._answers, self._quick = received, 0, took
        self._answers += 1
        self._quick = min(self._quick, took)
        quick = min(self._quick, self._quick_before) if self._quick_before else self._quick
        if not self._quick_before and self._answers < self.EXPERIENCE:
            quick = 0.0
        return sent + min(self.CAP_S, took - quick)


def waiting_key(rank: int, since: float) -> float:
    """The order in which waiters are served, lowest first.

    `since` is when the wait for *this* slot began: for work that queues, the last grant of its queue, so
    that a queue as a whole does not grow old and pass everybody who came later.
    """
    return since + _ALLOWANCE[rank]


def take(state: State, rules: Rules, owner: float, rank: int, key: float, now: float, depth: int = 1) -> float:
    """Take a permit: 0.0 when granted, otherwise when to ask again; the caller is then in the waiting table.

    The k-th waiter gets the time of the k-th slot, so there is no polling, and no worse key goes first.
    """
    if rank != _CRITICAL:
        values = rules.unpack_brief(state)
        if not values[_WAITING] and max(values[_STOPPED_UNTIL:_NEXT_PACED]) <= now:
            ring = values[_FIRST_STAMP:]
            ordered = sorted(ring)
            opens = max(ordered[-rules.limit], ordered[1 - rules.limit] - rules.soon_s) + rules.window_s
            if opens <= now and (rank != _LOW or values[_NEXT_PACED] <= now):
                state[_FIRST_STAMP + ring.index(ordered[0])] = now + rules.unanswered_s
                state[_GRANTED + rank] = values[_GRANTED + rank] + 1.0
                if rank == _LOW:
                    state[_NEXT_PACED] = _next_due(values[_NEXT_PACED], rules.step_s, now)
                return 0.0
    return _take_among(state, rules, owner, rank, key, now, depth)


def next_paced(state: State) -> float:
    """When the next paced grant is due."""
    return state[_NEXT_PACED]


def _take_among(state: State, rules: Rules, owner: float, rank: int, key: float, now: float, depth: int) -> float:
    """`take` where others wait, or something holds."""
    values = rules.unpack(state)
    hold = max(values[_STOPPED_UNTIL], values[_BANNED_UNTIL])
    if hold > now and _is_sane(values, rules, now):
        return hold
    waiters: list[tuple[float, ...]] = _waiters(state, rules, values[_WAITING]) if values[_WAITING] else []
    opens = _opening(values, rules, waiters, owner, rank, key, now)
    if opens <= now:
        _grant(state, rules, values, rank, key, now)
        if waiters:
            _remove_waiter(state, rules, waiters, owner, (rank,))
        return 0.0
    if not _is_sane(values, rules, now):
        _clear(state, rules)
        return _take_among(state, rules, owner, rank, key, now, depth)
    opens = min(opens, now + rules.window_s)  # whoever stands before it may leave: look again
    _add_waiter(state, rules, waiters, (owner, float(rank), key, opens + rules.grace_s, float(depth)), now)
    if _CRITICAL < rank < _LOW and _used(values, rules, now) >= _limit(values, rules, now) - 1:
        state[_SPREAD_UNTIL] = now + rules.spread_s
    return opens


def _limit(values: tuple[float, ...], rules: Rules, now: float) -> int:
    """The limit as it is now: lower after refusals, and by what other software on this address uses."""
    limit = rules.limit
    if values[_EASED_UNTIL] > now:
        limit -= int(_within(values[_LEVEL], _LOWEST_LEVEL)) * max(1, rules.limit // 5)
    if values[_FOREIGN_UNTIL] > now:
        limit = min(limit, rules.limit - 1 - int(_within(values[_FOREIGN], rules.limit)))
    return max(1, rules.limit // 5, limit)


def _within(value: float, most: float) -> float:
    return value if 0.0 <= value <= most else most


def _share(values: tuple[float, ...], rules: Rules, limit: int, now: float) -> int:
    """Permits of a window that are left to critical, while no habit is known: one more than it lately used."""
    if values[_CRITICAL_UNTIL] <= now:
        return 0
    return min(limit // 2, int(_within(values[_CRITICAL_PEAK], rules.limit)) + 1)


class _Habit(NamedTuple):
    """How critical requests lately came: in rounds of how many, and the gaps between those."""

    size: int
    missing: int
    """Requests that the running round still lacks."""
    end: float
    """When the running round ends."""
    last: float
    shortest: float
    longest: float

    def expected(self, now: float) -> tuple[float, float]:
        """From when until when the next round is expected; a round that was left out counts as held."""
        longest = self.longest * _TOLERANCE
        left_out = max(0, math.ceil((now - self.last) / longest) - 1)
        last = self.last + left_out * self.longest
        return last + self.shortest - (self.longest - self.shortest) / 4, last + longest


def _rounds(values: tuple[float, ...], rules: Rules, now: float) -> list[list[float]]:
    """The critical requests of the last minute that are still known, in rounds."""
    rounds: list[list[float]] = []
    for stamp in sorted(_likely(values[rules.first_critical : rules.first_waiter], rules, now)):
        if not now - rules.critical_s < stamp <= now:
            continue
        if rounds and stamp - rounds[-1][-1] < rules.burst_s:
            rounds[-1].append(stamp)
        else:
            rounds.append([stamp])
    return rounds


def _likely(stamps: Iterable[float], rules: Rules, now: float) -> list[float]:
    """The stamps as they will be when all answers are there."""
    return [stamp if stamp <= now else stamp - rules.unanswered_s for stamp in stamps]


def _habit(values: tuple[float, ...], rules: Rules, now: float) -> _Habit | None:
    """What is expected of critical, once three rounds are known."""
    rounds = _rounds(values, rules, now)
    gaps = [later[0] - earlier[0] for earlier, later in pairwise(rounds)]
    if len(gaps) < 2:
        return None
    size = max(map(len, rounds))
    late = _within(values[_CRITICAL_LATE], _AHEAD_S)
    return _Habit(
        size, size - len(rounds[-1]), rounds[-1][-1] + rules.burst_s, rounds[-1][0] - late, min(gaps), max(gaps)
    )


def _reserved(values: tuple[float, ...], rules: Rules, habit: _Habit, limit: int, ahead: int, now: float) -> float:
    """When a permit opens that the next round of critical requests will not need."""
    likely = sorted(_likely(values[_FIRST_STAMP : rules.first_waiter], rules, now))
    opens = now
    for count, due, end in ((habit.missing, now, habit.end), (habit.size, *habit.expected(now))):
        if count and now < end:
            free = _free_at(likely, max(1, limit - min(limit // 2, count)), ahead, rules)
            if free > due + rules.late_s:
                opens = max(opens, min(free, end))
    return opens


def _kept(values: tuple[float, ...], rules: Rules, limit: int, now: float) -> int:
    """Permits that are kept for critical now."""
    habit = _habit(values, rules, now) if values[_CRITICAL_UNTIL] > now else None
    return _share(values, rules, limit, now) if habit is None else min(limit // 2, habit.size)


def _used(values: tuple[float, ...], rules: Rules, now: float) -> int:
    edge = now - rules.window_s
    return sum(1 for stamp in values[_FIRST_STAMP : rules.first_waiter] if stamp > edge)


def _opening(
    values: tuple[float, ...],
    rules: Rules,
    waiters: Iterable[tuple[float, ...]],
    owner: float,
    rank: int,
    key: float,
    now: float,
) -> float:
    """When the slot opens that is due to this caller, given all that go first."""
    limit = _limit(values, rules, now)
    next_paced = values[_NEXT_PACED]
    is_spread = values[_SPREAD_UNTIL] > now
    is_paced = rank == _LOW or (is_spread and rank != _CRITICAL)
    ahead = ahead_other = ahead_paced = 0
    for row_owner, row_rank, row_key, expiry, depth in waiters:
        is_live = now <= expiry <= now + _FAR_S and not (row_owner == owner and row_rank == rank)
        if not is_live or not (row_key, row_owner) < (key, owner):
            continue
        row_paced = row_rank == _LOW or (is_spread and row_rank != _CRITICAL)
        if row_paced and not is_paced and next_paced > now:
            continue  # it could not use the slot now
        # all the work of a more urgent class goes first; of its own, one of each process in turn
        count = int(_within(depth, _CROWD)) if row_rank < rank else 1
        ahead += count
        if row_rank != _CRITICAL:
            ahead_other += count
        if row_paced:
            ahead_paced += count
    stamps = sorted(values[_FIRST_STAMP : rules.first_waiter])
    opens = _free_at(stamps, limit, ahead, rules)
    if rank == _CRITICAL:
        return opens
    if limit > 1:
        opens = max(opens, _free_at(stamps, limit - 1, ahead, rules) - rules.soon_s)
    if values[_CRITICAL_UNTIL] > now:
        habit = _habit(values, rules, now)
        if habit is not None:
            opens = max(opens, _reserved(values, rules, habit, limit, ahead, now))
        else:
            share = _share(values, rules, limit, now)
            others = sorted(values[_FIRST_STAMP : rules.first_critical])
            opens = max(opens, _free_at(others, limit - share, ahead_other, rules))
    if is_paced:
        opens = max(opens, next_paced + ahead_paced * rules.step_s * rules.limit / limit)
    return opens


def _free_at(stamps: list[float], limit: int, ahead: int, rules: Rules) -> float:
    """When fewer than `limit` of the sorted `stamps`, and of the `ahead` who go first, are in the window."""
    index = len(stamps) - limit + ahead
    if index < len(stamps):
        return stamps[index] + rules.window_s
    turns, place = divmod(index - len(stamps), limit)  # so many wait that slots not yet given must pass again
    return stamps[len(stamps) - limit + place] + (turns + 2) * rules.window_s


def _grant(state: State, rules: Rules, values: tuple[float, ...], rank: int, key: float, now: float) -> None:
    if rank == _CRITICAL:
        state[_CRITICAL_LATE] = max(0.0, now - key + _ALLOWANCE[_CRITICAL])
        start, ring = rules.first_critical, values[rules.first_critical : rules.first_waiter]
        edge = now - rules.window_s
        rounds = _rounds(values, rules, now)
        gaps = [later[0] - earlier[0] for earlier, later in pairwise([*rounds, [now]])]
        known = len([gap for gap in gaps if gap >= rules.burst_s]) > 1
        kept_s = max(2.0, rules.missed * max(gaps)) if known else rules.critical_s
        state[_CRITICAL_UNTIL] = now + min(kept_s, rules.critical_s)
        busy = 1 + sum(1 for stamp in ring if stamp > edge)
        if busy >= values[_CRITICAL_PEAK] or values[_CRITICAL_PEAK_AT] <= now - rules.critical_s:
            state[_CRITICAL_PEAK] = min(busy, rules.limit)
            state[_CRITICAL_PEAK_AT] = now
    else:
        start, ring = _FIRST_STAMP, values[_FIRST_STAMP : rules.first_critical]
        if rank == _LOW or values[_SPREAD_UNTIL] > now:
            step = rules.step_s * rules.limit / _limit(values, rules, now)
            state[_NEXT_PACED] = _next_due(values[_NEXT_PACED], step, now)
    state[start + ring.index(min(ring))] = now + rules.unanswered_s
    state[_GRANTED + rank] = values[_GRANTED + rank] + 1.0


def _next_due(due: float, step: float, now: float) -> float:
    """When the next paced grant is due, one step after this one was; up to half a step of lateness is made up for."""
    return (due if due > now - step / 2 else now - step / 2) + step


def _waiters(state: State, rules: Rules, count: float) -> list[tuple[float, ...]]:
    used = int(count) if 0 < count <= rules.waiters else 0
    table = memoryview(state)[rules.first_waiter : rules.first_waiter + _WAITER_SIZE * used]
    return list(_WAITER.iter_unpack(table))


def _add_waiter(
    state: State, rules: Rules, waiters: list[tuple[float, ...]], new: tuple[float, ...], now: float
) -> None:
    """Put `new` into the table: its own old place, else an expired one, else a new one, else the worst one's."""
    place = None
    for index, old in enumerate(waiters):
        if old[0] == new[0] and old[1] == new[1]:
            place = index
            break
        if place is None and not now <= old[3] <= now + _FAR_S:
            place = index
    if place is None and len(waiters) < rules.waiters:
        place = len(waiters)
    if place is None:
        worst = max(range(len(waiters)), key=lambda index: waiters[index][2])
        if waiters[worst][2] <= new[2]:
            return  # a crowd: not in the table, but given a time all the same
        place = worst
    at = rules.first_waiter + _WAITER_SIZE * place
    for offset, value in enumerate(new):
        state[at + offset] = value
    if place >= len(waiters):
        state[_WAITING] = float(place + 1)


def _remove_waiter(
    state: State, rules: Rules, waiters: list[tuple[float, ...]], owner: float, ranks: Collection[int]
) -> None:
    """Take the owner's entries of these ranks out of the table."""
    left = [row for row in waiters if row[0] != owner or row[1] not in ranks]
    if len(left) == len(waiters):
        return
    at = rules.first_waiter
    for row in left:
        for value in row:
            state[at] = value
            at += 1
    state[_WAITING] = float(len(left))


def _is_sane(values: tuple[float, ...], rules: Rules, now: float) -> bool:
    limits = (
        (_STOPPED_UNTIL, _FAR_S * 10),
        (_BANNED_UNTIL, LONGEST_BAN_S),
        (_EASED_UNTIL, LONGEST_BAN_S + _FAR_S * 10),
        (_NEXT_PACED, _FAR_S),
        (_SPREAD_UNTIL, _FAR_S),
        (_CRITICAL_UNTIL, _FAR_S + rules.critical_s),
        (_FOREIGN_UNTIL, _FAR_S),
        (_CRITICAL_PEAK_AT, _FAR_S),
    )
    stamps = values[_FIRST_STAMP : rules.first_waiter]
    return (
        all(0.0 <= values[index] <= now + far for index, far in limits)
        and 0.0 <= min(stamps) <= max(stamps) <= now + _AHEAD_S
        and not math.isnan(sum(stamps))  # which neither minimum nor maximum finds
        and 0.0 <= values[_LEVEL] <= _LOWEST_LEVEL
        and 0.0 <= values[_CRITICAL_PEAK] <= rules.limit
        and 0.0 <= values[_FOREIGN] <= rules.limit
        and 0.0 <= values[_WAITING] <= rules.waiters
    )


def repair(state: State, rules: Rules, now: float) -> None:
    """Clear state that cannot be true."""
    if not _is_sane(rules.unpack(state), rules, now):
        _clear(state, rules)


def _clear(state: State, rules: Rules) -> None:
    for index in range(rules.size):
        state[index] = 0.0


def leave(state: State, rules: Rules, owner: float, ranks: Collection[int]) -> None:
    """`owner` waits no longer at these ranks."""
    count = rules.unpack(state)[_WAITING]
    if count:
        _remove_waiter(state, rules, _waiters(state, rules, count), owner, ranks)


def _stamp_index(values: tuple[float, ...], rules: Rules, granted: float) -> int | None:
    try:
        return values.index(granted + rules.unanswered_s, _FIRST_STAMP, rules.first_waiter)
    except ValueError:
        return None


def undo(state: State, rules: Rules, granted: float) -> None:
    """Give back the permit granted at `granted`: nothing was sent with it."""
    index = _stamp_index(rules.unpack(state), rules, granted)
    if index is not None:
        state[index] = 0.0


def move(state: State, rules: Rules, granted: float, now: float) -> bool:
    """Before sending late: the permit granted at `granted` is used only `now`. False: it has lapsed, take another.

    While its stamp is in the window it is one of the limit's, so it may stand later in it as well.
    """
    if now <= granted:
        return True
    index = _stamp_index(rules.unpack(state), rules, granted)
    if index is None or now >= granted + rules.window_s:
        return False
    state[index] = now + rules.unanswered_s
    return True


def settle(state: State, rules: Rules, granted: float, counted: float, remaining: int | None, now: float) -> int:
    """Learn from a reply; how many requests of other software the venue must have counted with it.

    `granted` is the permit's stamp, `counted` when the venue counted the request at the latest, `remaining` what
    it says is left of its second. What the venue counted beyond all that we may have sent is other software's, and
    left to them for a while. More left than we counted changes nothing: others' grants may still be on their way.
    """
    values = rules.unpack(state)
    index = _stamp_index(values, rules, granted)
    counted = min(counted, now)
    if index is not None:
        state[index] = counted
    if remaining is None or not 0 <= remaining < rules.limit:
        return 0
    edge = granted - rules.window_s - rules.slack_s
    own = sum(1 for stamp in values[_FIRST_STAMP : rules.first_waiter] if stamp > edge)
    foreign = rules.limit - remaining - own
    if foreign <= 0:
        return 0
    if foreign >= values[_FOREIGN] or values[_FOREIGN_UNTIL] <= now:
        state[_FOREIGN] = float(foreign)
        state[_FOREIGN_UNTIL] = now + rules.foreign_s
    return foreign


def refuse(state: State, rules: Rules, now: float, retry_after_s: float | None) -> None:
    """A 429: stop until the venue's next second, then go slower for a while; refusals that repeat go slower for longer.

    The refusals of one burst arrive together and count as one.
    """
    values = rules.unpack(state)
    state[_REFUSED] = values[_REFUSED] + 1.0
    until = now + max(rules.stop_s, min(retry_after_s or 0.0, 5 * _FAR_S))
    if values[_STOPPED_UNTIL] > now:
        state[_STOPPED_UNTIL] = max(values[_STOPPED_UNTIL], until if retry_after_s else 0.0)
        return
    lately = values[_EASED_UNTIL] > now - 2 * rules.ease_s
    level = min(_LOWEST_LEVEL, (values[_LEVEL] if lately else 0.0) + 1.0)
    state[_STOPPED_UNTIL] = until
    state[_LEVEL] = level
    state[_EASED_UNTIL] = until + rules.ease_s * level


def ban(state: State, rules: Rules, until: float, now: float) -> None:
    """A 418: nothing before `until`, and slowly after it."""
    known = rules.unpack(state)[_BANNED_UNTIL]
    until = min(until, now + LONGEST_BAN_S)
    state[_BANNED_UNTIL] = max(until, known if known <= now + LONGEST_BAN_S else 0.0)
    state[_LEVEL] = float(_LOWEST_LEVEL // 2)
    state[_EASED_UNTIL] = state[_BANNED_UNTIL] + rules.ease_s * state[_LEVEL]


def hold(state: State, until: float) -> None:
    """Nothing is granted before `until`, for a reason that is not a refusal."""
    state[_STOPPED_UNTIL] = max(state[_STOPPED_UNTIL], until)


def is_held(state: State, now: float) -> bool:
    """Whether a refusal or a hold lasts."""
    return state[_STOPPED_UNTIL] > now


def inherit(state: State, common: State, rules: Rules, now: float) -> None:
    """A group that is new takes over what holds for the whole address, kept in `common`: a ban, a hold."""
    hold(state, common[_STOPPED_UNTIL])
    if until := ban_until(common, rules, now):
        ban(state, rules, until, now)


def ban_until(state: State, rules: Rules, now: float) -> float:
    """When the ban ends; 0.0 when there is none."""
    until = rules.unpack(state)[_BANNED_UNTIL]
    return until if now < until <= now + LONGEST_BAN_S else 0.0


def describe(state: State, rules: Rules, now: float) -> GroupState:
    """The state for `status()`."""
    values = rules.unpack(state)
    limit = _limit(values, rules, now)
    used = _used(values, rules, now)
    waiting = {priority.value: 0 for priority in Priority}
    names = list(waiting)
    for _, rank, _, expiry, _ in _waiters(state, rules, values[_WAITING]) if values[_WAITING] else ():
        if expiry >= now and 0 <= rank < len(names):
            waiting[names[int(rank)]] += 1
    return GroupState(
        limit=limit,
        used=used,
        free=max(0, limit - used),
        share=max(_kept(values, rules, limit, now), int(limit > 1)),
        waiting=waiting,
        stopped_s=max(0.0, values[_STOPPED_UNTIL] - now),
        banned_s=max(0.0, values[_BANNED_UNTIL] - now),
        level=int(_within(values[_LEVEL], _LOWEST_LEVEL)) if values[_EASED_UNTIL] > now else 0,
        granted={name: int(_within(values[_GRANTED + rank], _MOST)) for rank, name in enumerate(names)},
        refused=int(_within(values[_REFUSED], _MOST)),
        foreign=int(_within(values[_FOREIGN], rules.limit)) if values[_FOREIGN_UNTIL] > now else 0,
    )
