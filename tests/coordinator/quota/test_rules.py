"""The rate decisions, in simulated time: never above the limit, urgent first, nobody for ever, no slot wasted."""

from __future__ import annotations

import heapq
import math
import random
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbone.coordinator.quota import rules as rates
from backbone.coordinator.quota.rules import Delay, Rules
from backbone.model import Priority

RULES = Rules(unanswered_s=0.0, soon_s=9.0)  # answers come at once and no permit is kept, save where a test says so
START = 1000.0  # simulated time begins in a machine that has been up for a while
CRITICAL, HIGH, NORMAL, LOW = (priority.rank for priority in Priority)


def new_state(rules: Rules = RULES) -> array[float]:
    return array("d", bytes(8 * rules.size))


@dataclass
class Grant:
    time: float
    process: int
    rank: int
    asked: float

    @property
    def at(self) -> float:
        """Seconds since the simulation began."""
        return self.time - START

    @property
    def wait(self) -> float:
        return self.time - self.asked


@dataclass
class Process:
    """One process with its rows of waiting work, as the scheduler keeps them."""

    name: int
    dies_at: float = math.inf
    rows: list[list[float]] = field(default_factory=lambda: [[], [], [], []])
    last: list[float] = field(default_factory=lambda: [-math.inf] * 4)
    try_at: list[float] = field(default_factory=lambda: [0.0] * 4)


class Machine:
    """Processes that share one group's state, in simulated time. Each wakes a little late, by turns."""

    def __init__(self, processes: int, *, lateness: float = 0.0005, rules: Rules = RULES) -> None:
        self.rules = rules
        self.state = new_state(rules)
        self.processes = [Process(name) for name in range(processes)]
        self.lateness = lateness
        self.grants: list[Grant] = []
        self.asks = 0
        self._events: list[tuple[float, int, int, int]] = []  # time, number, process, rank of an arrival or -1
        self._number = 0

    def _at(self, time: float, process: int, rank: int) -> None:
        self._number += 1
        heapq.heappush(self._events, (time, self._number, process, rank))

    def arrive(self, time: float, process: int, rank: int, count: int = 1) -> None:
        for _ in range(count):
            self._at(START + time, process, rank)

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= START + until:
            now, _, name, rank = heapq.heappop(self._events)
            process = self.processes[name]
            if now >= START + process.dies_at:
                continue
            if rank >= 0:
                if not process.rows[rank]:
                    process.try_at[rank] = 0.0
                process.rows[rank].append(now)
            self._step(process, now)

    def _step(self, process: Process, now: float) -> None:
        while True:
            best = None
            for rank, row in enumerate(process.rows):
                if row and process.try_at[rank] <= now:
                    key = rates.waiting_key(rank, max(row[0], process.last[rank]))
                    best = min(best or (math.inf, 0), (key, rank))
            if best is None:
                return
            key, rank = best
            self.asks += 1
            owner, depth = float(process.name + 1), len(process.rows[rank])
            again = rates.take(self.state, self.rules, owner, rank, key, now, depth)
            if again:
                process.try_at[rank] = again
                self._at(again + self.lateness * (1 + (self._number * 7) % 5), process.name, -1)
            else:
                self.grants.append(Grant(now, process.name, rank, process.rows[rank].pop(0)))
                process.last[rank] = now
                process.try_at[rank] = 0.0

    def counts(self, start: float = 0.0, end: float = math.inf) -> list[int]:
        """Grants of each process from `start` to before `end`."""
        found = [0] * len(self.processes)
        for grant in self.grants:
            if start <= grant.at < end:
                found[grant.process] += 1
        return found

    def waits(self, rank: int) -> list[float]:
        return [grant.wait for grant in self.grants if grant.rank == rank]


def most_in_window(times: list[float], window: float) -> int:
    """Brute force: the most stamps in any half-open interval of `window` seconds."""
    ordered = sorted(times)
    return max((bisect_left(ordered, t + window) - bisect_left(ordered, t) for t in ordered), default=0)


arrivals = st.lists(
    st.tuples(st.floats(0, 8, allow_nan=False), st.integers(0, 2), st.integers(0, 3), st.integers(1, 12)),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(arrivals=arrivals, lateness=st.sampled_from([0.0, 0.0005, 0.02]), limit=st.sampled_from([1, 3, 10]))
def test_limit_under_random_arrivals_is_never_exceeded(arrivals, lateness, limit):
    """Whatever arrives when and where, no interval of a window's length holds more than the limit."""
    machine = Machine(3, lateness=lateness, rules=Rules(limit=limit, unanswered_s=0.0))
    for time, process, rank, count in arrivals:
        machine.arrive(time, process, rank, count)
    machine.run(10_000)
    assert most_in_window([grant.time for grant in machine.grants], machine.rules.window_s) <= limit
    assert len(machine.grants) == sum(count for *_, count in arrivals), "all that waited was served"


@settings(max_examples=60, deadline=None)
@given(arrivals=arrivals, urgent=st.floats(0, 8))
def test_high_request_among_anything_waits_for_its_betters_only(arrivals, urgent):
    """A high request is passed only by the turns that age gives to others, and waits for no slot beyond theirs."""
    machine = Machine(3)
    for time, process, rank, count in arrivals:
        machine.arrive(time, process, rank, count)
    machine.arrive(urgent, 0, HIGH)
    machine.run(10_000)
    asked = START + urgent
    mine = next(grant for grant in machine.grants if grant.rank == HIGH and grant.asked == asked)
    before = [grant for grant in machine.grants if asked < grant.time < mine.time]
    behind = [g for g in before if g.rank > HIGH]
    turns_by_age = 3 * (2 + mine.wait / 2 + mine.wait / 10)
    assert len(behind) <= turns_by_age
    share = RULES.limit // 2  # what critical may keep for itself
    assert mine.wait <= (len(before) // (RULES.limit - share) + 2) * RULES.window_s


@settings(max_examples=40, deadline=None)
@given(arrivals=arrivals)
def test_same_class_of_one_process_is_served_in_order(arrivals):
    """Within one process and priority it is first come, first served."""
    machine = Machine(3)
    for time, process, rank, count in arrivals:
        machine.arrive(time, process, rank, count)
    machine.run(10_000)
    for process in range(3):
        for rank in range(4):
            asked = [g.asked for g in machine.grants if (g.process, g.rank) == (process, rank)]
            assert asked == sorted(asked)


def test_bulk_work_alone_reaches_the_legal_rate():
    """A minute of low work, woken up to 2.5 ms late, uses at least 95 % of ten a second, and never in a burst."""
    machine = Machine(1)
    machine.arrive(0.0, 0, LOW, 700)
    machine.run(60.0)
    assert len(machine.grants) >= 0.95 * 600
    gaps = [b.time - a.time for a, b in pairwise(machine.grants)]
    assert min(gaps) > 0.045, "paced, so that an urgent request soon finds a slot"


def test_bulk_work_of_four_processes_shares_the_legal_rate():
    """Four processes with endless low work get equal parts of at least 95 % of the rate, without polling."""
    machine = Machine(4)
    for process in range(4):
        machine.arrive(0.1 * process, process, LOW, 300)
    machine.run(60.0)
    counts = machine.counts(5.0)
    assert sum(counts) >= 0.95 * 550
    assert max(counts) - min(counts) <= 3
    assert machine.asks <= 5 * len(machine.grants)


def test_late_process_with_a_short_queue_is_not_behind_the_backlog_of_another():
    """Fairness is by process and slot, not by the age of a backlog: a second job gets half from the start."""
    machine = Machine(2)
    machine.arrive(0.0, 0, LOW, 600)
    machine.arrive(20.0, 1, LOW, 100)
    machine.run(40.0)
    first, second = machine.counts(21.0, 40.0)
    assert abs(first - second) <= 2


def test_interactive_burst_into_a_free_quota_is_granted_at_once():
    """Ten pages of a chart need no pacing while nobody else asks."""
    machine = Machine(1)
    machine.arrive(5.0, 0, NORMAL, 10)
    machine.run(5.0)
    assert [grant.at for grant in machine.grants] == [5.0] * 10


@pytest.mark.parametrize("rank", [HIGH, NORMAL, LOW])
def test_last_permit_is_left_to_critical_that_comes_out_of_the_blue(rank):
    """Behind a burst of others, a critical request that nobody expected waits for a fifth of a second at most."""
    machine = Machine(2, rules=Rules(unanswered_s=0.0))
    machine.arrive(0.0, 0, NORMAL, 9)
    machine.arrive(0.01, 0, rank, 30)
    for tenth in range(1, 10):
        lone = Machine(2, rules=Rules(unanswered_s=0.0))
        lone.arrive(0.0, 0, NORMAL, 9)
        lone.arrive(0.01, 0, rank, 30)
        lone.arrive(tenth / 10, 1, CRITICAL)
        lone.run(3.0)
        (waited,) = lone.waits(CRITICAL)
        assert waited <= 0.2 + 0.01, tenth
    machine.run(10.0)
    assert len(machine.grants) == 39, "and all the others are served"


def test_last_permit_left_to_critical_costs_bulk_work_nothing():
    """Evenly paced, another permit always opens soon: low work still runs at the full legal rate."""
    machine = Machine(4, rules=Rules(unanswered_s=0.0))
    for process in range(4):
        machine.arrive(0.0, process, LOW, 300)
    machine.run(30.0)
    assert len(machine.grants) >= 0.96 * 300


def test_interactive_overflow_is_spread_evenly():
    """After a burst has overflowed the quota, a later urgent request waits a tenth of the window, not all of it."""
    machine = Machine(1)
    machine.arrive(0.0, 0, NORMAL, 200)
    machine.run(4.0)
    machine.arrive(4.05, 0, HIGH)
    machine.run(6.0)
    assert machine.waits(HIGH) == [pytest.approx(0.05, abs=0.1)]
    assert len([grant for grant in machine.grants if grant.at < 4.0]) >= 39, "at no cost in throughput"


@pytest.mark.parametrize("process", [0, 1])
def test_high_request_amid_bulk_work_waits_one_slot(process):
    """A new high request, of the same process or another, gets the very next slot of a saturated quota."""
    machine = Machine(2)
    machine.arrive(0.0, 0, LOW, 500)
    for second in range(5, 25):
        machine.arrive(second + 0.037 * (second - 5), process, HIGH)
    machine.run(30.0)
    assert len(machine.waits(HIGH)) == 20
    assert max(machine.waits(HIGH)) < 0.12


def test_low_work_under_endless_urgent_work_still_moves():
    """While another process keeps high work waiting for ever, low gets a turn about every ten seconds."""
    machine = Machine(2)
    machine.arrive(0.0, 0, HIGH, 1000)
    machine.arrive(0.0, 1, LOW, 50)
    machine.run(90.0)
    low = [grant.at for grant in machine.grants if grant.rank == LOW]
    assert len(low) >= 7
    assert max(b - a for a, b in pairwise(low)) < 11.5
    assert len(low) < 12, "slowly: the urgent work has the rest"


def test_normal_work_under_endless_high_work_moves_faster_than_low():
    """The allowance of normal is two seconds, that of low ten."""
    machine = Machine(1)
    machine.arrive(0.0, 0, HIGH, 1000)
    machine.arrive(0.0, 0, NORMAL, 100)
    machine.arrive(0.0, 0, LOW, 100)
    machine.run(60.0)
    assert 24 <= len(machine.waits(NORMAL)) <= 31
    assert 4 <= len(machine.waits(LOW)) <= 7


def test_critical_after_the_first_never_waits_behind_bulk_work():
    """Once somebody asks at critical, a share is kept: later critical requests find a free slot at once."""
    machine = Machine(3)
    for process in range(2):
        machine.arrive(0.0, process, LOW, 500)
        machine.arrive(0.0, process, NORMAL, 300)
    times = [3.0 + 0.61 * index for index in range(40)]
    for time in times:
        machine.arrive(time, 2, CRITICAL)
    machine.run(28.0)
    waits = machine.waits(CRITICAL)
    assert len(waits) == 40
    assert waits[0] < 0.3
    assert max(waits[2:]) <= RULES.late_s


def test_critical_share_follows_the_demand_and_ends_a_minute_after():
    """The share is one more than the recent peak; without critical requests bulk has the whole quota again."""
    machine = Machine(1)
    machine.arrive(0.0, 0, CRITICAL, 3)
    machine.run(0.5)
    assert rates.describe(machine.state, RULES, START + 0.5).share == 4
    machine.arrive(1.5, 0, LOW, 2000)
    machine.run(55.0)
    assert len(machine.counts(5.0, 55.0)) == 1
    assert machine.counts(5.0, 55.0)[0] == pytest.approx(50 * 6 / RULES.window_s, rel=0.02)
    machine.run(130.0)
    assert rates.describe(machine.state, RULES, START + 130.0).share == 1
    assert machine.counts(70.0, 130.0)[0] >= 0.95 * 600


def beside_a_bot(period: float, jitter: float, size: int = 1) -> tuple[Machine, float, list[float]]:
    """Four processes at low for 40 s while a bot asks at critical: all grants a second, and the bot's waits."""
    machine, dice, now = Machine(5, rules=Rules(unanswered_s=0.0)), random.Random(7), 5.0
    for process in range(4):
        machine.arrive(0.01 * process, process, LOW, 400)
    while now < 40.0:
        for index in range(size):
            machine.arrive(now + 0.035 * index, 4, CRITICAL)
        now += period + dice.uniform(-jitter, jitter)
    machine.run(60.0)
    waits = [grant.wait for grant in machine.grants if grant.rank == CRITICAL and grant.at > 12.0]
    return machine, sum(machine.counts(12.0, 40.0)) / 28.0, waits


@pytest.mark.parametrize("period", [0.25, 0.5, 0.9, 1.0, 1.03, 2.0, 5.0])
@pytest.mark.parametrize("jitter", [0.0, 0.004, 0.02, 0.1])
def test_permits_kept_for_a_bot_are_kept_for_its_next_question_only(period: float, jitter: float) -> None:
    """Bulk work uses what the bot's habit leaves: nine a second in all, and the bot waits for no more than a moment."""
    machine, rate, waits = beside_a_bot(period, jitter)
    assert rate >= 9.0
    assert sorted(waits)[int(0.95 * len(waits))] <= 0.010
    assert most_in_window([grant.time for grant in machine.grants], 1.0) <= 10


def test_bot_once_a_second_leaves_the_rest_to_bulk_work() -> None:
    """A question a second plus its way: one permit of ten is the bot's, nearly nine are the others'."""
    _, rate, waits = beside_a_bot(1.03, 0.01)
    assert rate >= 9.7
    assert max(waits) <= 0.005


@pytest.mark.parametrize("size", [2, 3])
def test_round_of_questions_finds_all_its_permits(size: int) -> None:
    """A bot that asks several questions one after the other is kept a permit for each."""
    _, rate, waits = beside_a_bot(1.1, 0.01, size)
    assert rate >= 8.8
    assert sorted(waits)[int(0.95 * len(waits))] <= 0.010


@pytest.mark.parametrize("period", [0.5, 1.03, 2.0])
def test_bulk_work_has_the_whole_quota_soon_after_a_bot_stopped(period: float) -> None:
    """Five seconds after the last question is older than the habit, it is as if there had been no bot."""
    machine, _, _ = beside_a_bot(period, 0.01)
    assert sum(machine.counts(40.0 + period + 5.0, 59.0)) >= 0.98 * 10 * (14.0 - period)


def test_critical_burst_may_use_the_whole_quota():
    """The share is a floor, not a cap: ten critical requests at once are granted at once."""
    machine = Machine(1)
    machine.arrive(1.0, 0, CRITICAL, 11)
    machine.run(1.0)
    assert len(machine.grants) == 10


def test_dead_process_holds_nothing():
    """What a killed process was granted or waited for delays nobody for longer than its reservation."""
    machine = Machine(3)
    for process in range(3):
        machine.arrive(0.0, process, LOW, 400)
        machine.arrive(0.0, process, HIGH, 10)
    machine.processes[2].dies_at = 10.0
    machine.run(40.0)
    assert sum(machine.counts(11.5, 40.0)) >= 0.95 * 10 * 28.5
    assert machine.counts(10.0, 40.0)[2] == 0


def test_waiter_of_a_dead_process_yields_its_turn_at_its_expiry():
    """A better-keyed waiter that never comes is passed over once its time and the grace are over."""
    state = new_state()
    for index in range(10):
        assert rates.take(state, RULES, 1.0, NORMAL, 0.0, 5.0 + index / 100) == 0.0
    first_at = rates.take(state, RULES, 1.0, HIGH, 5.2, 5.2)  # owner 1 waits for the first slot, and dies
    assert first_at == 5.0 + RULES.window_s
    again = rates.take(state, RULES, 2.0, HIGH, 5.3, 5.3)
    assert again == pytest.approx(first_at + 0.01)
    assert rates.take(state, RULES, 2.0, HIGH, 5.3, first_at) > first_at, "its turn is kept for it"
    assert rates.take(state, RULES, 2.0, HIGH, 5.3, first_at + 0.005) > first_at
    state[RULES.first_critical - 4 : RULES.first_critical - 3] = array("d", [first_at])  # a slot fewer: one opens
    assert rates.take(state, RULES, 2.0, HIGH, 5.3, first_at + RULES.grace_s + 0.001) == 0.0


def test_waiters_get_the_time_of_their_own_slot():
    """The k-th waiter gets the time at which the k-th slot opens, so nobody wakes in vain."""
    state = new_state()
    for index in range(10):
        assert rates.take(state, RULES, 1.0, HIGH, 0.0, 100 + 0.05 * index) == 0.0
    times = [rates.take(state, RULES, owner, HIGH, 100 + owner, 100.9) for owner in (2.0, 3.0, 4.0)]
    assert times == pytest.approx([100 + 0.05 * index + RULES.window_s for index in range(3)])


def test_leaving_waiter_makes_room_for_the_next():
    """A waiter that leaves is not waited for."""
    state = new_state()
    for _ in range(10):
        rates.take(state, RULES, 1.0, NORMAL, 0.0, 5.0)
    rates.take(state, RULES, 1.0, HIGH, 5.0, 5.0)
    rates.leave(state, RULES, 1.0, range(4))
    assert rates.take(state, RULES, 2.0, NORMAL, 6.0, 5.5) == 5.0 + RULES.window_s
    assert rates.describe(state, RULES, 5.5).waiting == {"critical": 0, "high": 0, "normal": 1, "low": 0}


def test_crowd_larger_than_the_table_is_still_served():
    """More waiters than the table has rows: nobody is lost, the limit holds."""
    machine = Machine(60, rules=Rules(waiters=8, unanswered_s=0.0))
    for process in range(60):
        machine.arrive(0.01 * process, process, NORMAL, 2)
    machine.run(60.0)
    assert len(machine.grants) == 120
    assert most_in_window([grant.time for grant in machine.grants], RULES.window_s) <= 10
    assert max(machine.waits(NORMAL)) < 20


# ---------------------------------------------------------------------------------------------- late sending


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.floats(0.0, 0.4), st.floats(0.0, 1.3), st.integers(0, 3)), max_size=80))
def test_late_sending_is_counted_at_the_time_of_sending(steps):
    """However late permits are used: as long as they are moved first, no window sends more than the limit."""
    state, now, sent, held = new_state(), 100.0, [], []
    for pause, late, rank in steps:
        now += pause
        while held and held[0][0] <= now:
            when, granted = heapq.heappop(held)
            if rates.move(state, RULES, granted, when):
                sent.append(when)
        if rates.take(state, RULES, 1.0, rank, now, now) == 0.0:
            heapq.heappush(held, (now + late, now))
    assert most_in_window(sent, RULES.window_s) <= RULES.limit


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.floats(0.0, 0.4), st.floats(0.0, 1.0), st.floats(0.0, 1.5), st.integers(0, 3)),
        max_size=80,
    )
)
def test_requests_late_on_their_way_never_exceed_the_limit_where_they_are_counted(steps):
    """With any delay of up to a second before the venue counts, and answers whenever: ten a window there."""
    rules, now, counted = Rules(), START, []
    state = new_state(rules)
    answers: list[tuple[float, float, float]] = []
    for pause, out, back, rank in steps:
        now += pause
        while answers and answers[0][0] <= now:
            answered, granted, count = heapq.heappop(answers)
            rates.settle(state, rules, granted, count, None, answered)
        if rates.take(state, rules, 1.0, rank, now, now) == 0.0:
            counted.append(now + out)
            heapq.heappush(answers, (now + out + back, now, now + out))
    assert most_in_window(counted, rules.window_s) <= rules.limit


def test_unanswered_request_keeps_its_slot_for_longer():
    """Until the answer is there, the request may still be counted; the answer frees the slot in time."""
    rules = Rules(soon_s=9.0)
    state = new_state(rules)
    for index in range(10):
        assert rates.take(state, rules, 1.0, NORMAL, 0.0, START + index / 100) == 0.0
    in_time = START + rules.window_s
    assert rates.take(state, rules, 1.0, CRITICAL, START, in_time) > in_time
    rates.settle(state, rules, START, START + 0.001, None, START + 0.9)
    assert rates.take(state, rules, 1.0, CRITICAL, START, in_time + 0.002) == 0.0
    late = START + 0.01 + rules.window_s + rules.unanswered_s
    assert rates.take(state, rules, 1.0, CRITICAL, START, late) == 0.0, "and not for ever"


def test_permit_that_left_the_window_cannot_be_moved():
    """A permit unused for a whole window has lapsed: its place may have been given to another."""
    state = new_state()
    rates.take(state, RULES, 1.0, NORMAL, 0.0, 5.0)
    assert not rates.move(state, RULES, 5.0, 5.0 + RULES.window_s)
    assert not rates.move(state, RULES, 4.0, 5.5), "nor one that was never given"


def test_unused_permit_given_back_is_free_again():
    """`undo` frees the slot at once."""
    state = new_state()
    for _ in range(10):
        rates.take(state, RULES, 1.0, NORMAL, 0.0, 5.0)
    rates.undo(state, RULES, 5.0)
    assert rates.take(state, RULES, 1.0, NORMAL, 0.0, 5.1) == 0.0
    assert rates.take(state, RULES, 1.0, NORMAL, 0.0, 5.1) > 0.0


def test_delay_allows_for_lateness_on_the_way_up_to_its_cap():
    """What an answer took longer than the quickest may have passed before the count; beyond the cap it was thought."""
    delay = Delay()
    for index in range(16):
        late = 0.03 if index < 15 else 0.0  # without experience all of it might be lateness
        assert delay.counted(START + index, START + index + 0.03) == pytest.approx(START + index + late)
    assert delay.counted(START + 31, START + 31.05) == pytest.approx(START + 31.02)
    assert delay.counted(START + 32, START + 35) == pytest.approx(START + 32 + Delay.CAP_S)
    assert delay.counted(START + 33, START + 33.01) == START + 33, "a new quickest"


def test_delay_forgets_the_quickest_answer_when_the_way_has_become_longer():
    """After some ten minutes on a longer way, its usual time is no lateness any more."""
    delay = Delay()
    for index in range(20):
        delay.counted(START + index, START + index + 0.01)
    assert delay.counted(START + 30, START + 30.05) == pytest.approx(START + 30.04)
    for second in range(40, 1000, 2):
        delay.counted(START + second, START + second + 0.05)
    assert delay.counted(START + 1000, START + 1000.05) == pytest.approx(START + 1000)


@settings(max_examples=60, deadline=None)
@given(ways=st.lists(st.tuples(st.floats(0.0, 0.4), st.floats(0.005, 0.3), st.floats(0.005, 0.3)), max_size=80))
def test_requests_late_by_any_way_never_exceed_the_limit_at_the_venue(ways):
    """With any way out and back, of which only the round trip is known, the venue counts at most ten in a second."""
    rules, delay, now, counted = Rules(soon_s=9.0), Delay(), START, []
    state = new_state(rules)
    answers: list[tuple[float, float]] = []
    for pause, out, back in [*[(0.3, 0.005, 0.005)] * 3, *ways, *ways]:
        now += pause
        while answers and answers[0][0] <= now:
            came, granted = heapq.heappop(answers)
            rates.settle(state, rules, granted, delay.counted(granted, came), None, came)
        for _ in range(3):
            if rates.take(state, rules, 1.0, CRITICAL, now, now) == 0.0:
                counted.append(now + out)
                heapq.heappush(answers, (now + out + back, now))
                now += 1e-4
    assert most_in_window(counted, 1.0) <= rules.limit


def test_late_request_keeps_its_slot_for_longer():
    """A request that the venue may have counted 80 ms late blocks its slot 80 ms longer."""
    state = new_state()
    for _ in range(10):
        rates.take(state, RULES, 1.0, NORMAL, 0.0, 5.0)
    for _ in range(10):
        rates.settle(state, RULES, 5.0, 5.08, None, 5.2)
    assert rates.take(state, RULES, 1.0, NORMAL, 6.0, 5.5) == pytest.approx(5.08 + RULES.window_s)


# ------------------------------------------------------------------------------------------- Remaining-Req


def test_remaining_lower_than_expected_leaves_a_share_to_others():
    """`sec=3` after our first request: six others asked, so we leave them six a window and one to spare."""
    state = new_state()
    rates.take(state, RULES, 1.0, NORMAL, 0.0, 5.0)
    assert rates.settle(state, RULES, 5.0, 5.0, 3, 5.03) == 6
    found = rates.describe(state, RULES, 5.03)
    assert (found.limit, found.used, found.free, found.foreign) == (3, 1, 2, 6)
    assert rates.settle(state, RULES, 5.0, 5.0, 3, 5.04) == 6
    assert rates.describe(state, RULES, 5.04).limit == 3, "the same word twice is one"
    assert rates.describe(state, RULES, 5.04 + RULES.foreign_s).free == 10


def test_remaining_higher_than_expected_changes_nothing():
    """The venue's new second may say `sec=9`; our window still holds what it holds."""
    state = new_state()
    for _ in range(8):
        rates.take(state, RULES, 1.0, NORMAL, 0.0, 5.0)
    before = state.tobytes()
    assert rates.settle(state, RULES, 5.0, 5.0, 9, 5.03) == 0
    assert state.tobytes() == before


@settings(max_examples=60, deadline=None)
@given(gaps=st.lists(st.floats(0.0, 0.3), min_size=1, max_size=60), window=st.sampled_from(["fixed", "sliding"]))
def test_remaining_of_our_own_requests_never_invents_others(gaps, window):
    """A venue that counts only us, in fixed or sliding seconds, never makes us count requests of somebody else."""
    state, now, counted = new_state(), 50.0, []
    for gap in gaps:
        now += gap
        if rates.take(state, RULES, 1.0, NORMAL, now, now):
            continue
        arrived = now + 0.015
        counted.append(arrived)
        start = math.floor(arrived) if window == "fixed" else arrived - 1.0
        used = sum(1 for time in counted if time > start or (window == "fixed" and time >= start))
        assert rates.settle(state, RULES, now, now, RULES.limit - used, now + 0.03) == 0


def test_other_software_on_the_address_is_made_room_for():
    """With four foreign requests a second, seen only in `Remaining-Req`, the venue never has to refuse."""
    state, now, counted, refusals, sent = new_state(), 50.0, [], 0, 0
    for step in range(20_000):
        now = 50.0 + step * 0.001
        if step % 250 == 0:
            counted.append(now)
        if rates.take(state, RULES, 1.0, LOW, now, now) == 0.0:
            counted = [time for time in counted if time > now - 1.0]
            if len(counted) >= 10:
                refusals += 1
                continue
            counted.append(now)
            sent += 1
            rates.settle(state, RULES, now, now, 10 - len(counted), now)
    assert refusals == 0
    assert sent >= 4.5 * 20, "and what they leave is used"


def test_refusal_stops_the_group_until_the_next_second_and_slows_it():
    """After a 429 nothing is granted for a second, then less for half a minute, then all again."""
    state = new_state()
    rates.take(state, RULES, 1.0, NORMAL, 0.0, 5.0)
    rates.refuse(state, RULES, 5.1, None)
    rates.refuse(state, RULES, 5.2, None)  # of the same burst
    assert rates.take(state, RULES, 1.0, CRITICAL, 5.0, 5.3) == 5.1 + RULES.stop_s
    found = rates.describe(state, RULES, 7.0)
    assert (found.limit, found.level, found.refused) == (8, 1, 2)
    assert rates.describe(state, RULES, 37.0).limit == 10


def test_repeated_refusals_slow_the_group_further():
    """Refusals that come again within the recovery lower the pace step by step, and longer."""
    state = new_state()
    limits = []
    for now in (10.0, 20.0, 30.0, 40.0, 50.0, 60.0):
        rates.refuse(state, RULES, now, None)
        limits.append(rates.describe(state, RULES, now + 2).limit)
    assert limits == [8, 6, 4, 2, 2, 2]
    assert rates.describe(state, RULES, 60 + RULES.stop_s + 4 * RULES.ease_s + 1).limit == 10


def test_slowed_group_keeps_its_lower_limit():
    """While the pace is lowered, bulk and bursts alike stay under the lower limit."""
    machine = Machine(2)
    rates.refuse(machine.state, RULES, START, None)
    machine.arrive(0.0, 0, NORMAL, 100)
    machine.arrive(0.0, 1, LOW, 100)
    machine.run(25.0)
    assert most_in_window([grant.time for grant in machine.grants], RULES.window_s) <= 8


def test_ban_stops_everybody_until_its_end():
    """Nothing is granted before the stated time, not even critical."""
    state = new_state()
    rates.ban(state, RULES, 65.0, 5.0)
    rates.ban(state, RULES, 30.0, 5.0)  # a shorter one does not shorten it
    for rank in (CRITICAL, HIGH, NORMAL, LOW):
        assert rates.take(state, RULES, 1.0, rank, 0.0, 64.9) == 65.0
    assert rates.ban_until(state, RULES, 10.0) == 65.0
    assert rates.ban_until(state, RULES, 65.0) == 0.0
    assert rates.take(state, RULES, 1.0, LOW, 0.0, 65.0) == 0.0


# ------------------------------------------------------------------------------------------------- damage


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.02, 0.3, 1.0]), first=st.integers(0, 3))
def test_garbage_state_never_raises_nor_blocks_for_long(seed, share, first):
    """Impossible values in the ledger cost a reset: permits are given again, and within the limit."""
    chance = random.Random(seed)
    invalid = [math.nan, math.inf, -math.inf, -2.0, 0.5, 999.9, 1001.0, 1e6, 1e300, 7.0]
    state = new_state()
    for index in range(RULES.size):
        if chance.random() < share:
            state[index] = chance.choice(invalid)
    now, granted = START, []
    rates.repair(state, RULES, now)
    for rank in [first, *[NORMAL] * 40, *[LOW] * 10]:
        for _ in range(400):
            again = rates.take(state, RULES, 1.0, rank, now, now)
            if not again:
                granted.append(now)
                break
            assert again > now
            now = max(min(again, now + 0.5), now + 1e-3)
        else:
            pytest.fail("blocked for long")
    rates.describe(state, RULES, now)
    assert most_in_window(granted, RULES.window_s) <= RULES.limit


def test_stamps_of_another_boot_are_cleared():
    """Stamps of a clock that ran longer than ours are in the far future and do not count."""
    state = new_state()
    for _ in range(10):
        rates.take(state, RULES, 1.0, NORMAL, 0.0, 900_000.0)
    assert rates.take(state, RULES, 1.0, NORMAL, 5.0, 5.0) == 0.0


def test_rules_that_cannot_be_kept_are_refused():
    """A limit of nothing, or a window without length, is a mistake."""
    for bad in ({"limit": 0}, {"window_s": 0.0}, {"limit": 2000}):
        with pytest.raises(ValueError, match="not a rate"):
            Rules(**bad)


def test_waiting_keys_order_priority_before_age_within_the_allowance():
    """high beats normal asked two seconds earlier at most, low ten; critical beats all."""
    assert rates.waiting_key(HIGH, 10.0) < rates.waiting_key(NORMAL, 8.1)
    assert rates.waiting_key(HIGH, 10.0) > rates.waiting_key(NORMAL, 7.9)
    assert rates.waiting_key(HIGH, 10.0) < rates.waiting_key(LOW, 0.1)
    assert rates.waiting_key(CRITICAL, 1e6) < rates.waiting_key(HIGH, 0.0)


def test_most_in_window_model_is_itself_right():
    """The brute-force count of these tests counts half-open windows."""
    assert most_in_window([0.0, 0.5, 1.0], 1.0) == 2
    assert bisect_right([0.0, 1.0], 1.0) == 2
