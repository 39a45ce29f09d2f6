"""Counters and distributions: right within their stated error, bounded, safe to share, plain when read."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.coordinator.metrics import Histogram, Metrics
from backbone.model import Priority


@given(values=st.lists(st.floats(2e-6, 3000.0), min_size=1, max_size=200), q=st.sampled_from([0.5, 0.95, 0.99]))
def test_quantile_is_right_to_five_percent(values, q):
    """Against the sorted list: the value that a share q stays at or below, whatever was recorded."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    assert histogram.quantile(q) == pytest.approx(exact, rel=0.05)


def test_histogram_holds_any_number_of_values_in_the_same_space():
    """A million durations take no more room than the buckets they fall in."""
    histogram = Histogram()
    for index in range(200_000):
        histogram.add(1e-9 * 1.0002**index)
    assert len(histogram._buckets) <= 256
    assert histogram.count == 200_000


def test_empty_and_extreme_values_have_answers():
    """Nothing recorded is NaN; zero, the tiny and the huge are counted, not refused."""
    histogram = Histogram()
    assert math.isnan(histogram.quantile(0.5))
    for value in (0.0, 1e-12, 1e9):
        histogram.add(value)
    assert histogram.quantile(0.5) == 0.0
    assert histogram.summary()["max_s"] == 1e9
    assert histogram.summary()["count"] == 3


def test_snapshot_merges_by_priority_and_by_group():
    """One record for each pair, each group and each priority, in plain values that JSON takes."""
    metrics = Metrics()
    metrics.time("waited", 0.1, group="candles", priority=Priority.LOW)
    metrics.time("waited", 0.2, group="ticker", priority=Priority.LOW)
    metrics.time("waited", 0.3, group="candles", priority=Priority.HIGH)
    metrics.count("requests", 3)
    metrics.count("requests")
    snapshot = metrics.snapshot()
    counts = {(each["group"], each["priority"]): each["count"] for each in snapshot["times"]}
    assert counts == {
        ("candles", "low"): 1,
        ("ticker", "low"): 1,
        ("candles", "high"): 1,
        ("candles", ""): 2,
        ("ticker", ""): 1,
        ("", "low"): 2,
        ("", "high"): 1,
    }
    assert snapshot["counters"] == {"requests": 4}
    assert metrics.counter("requests") == 4
    assert metrics.counter("never") == 0
    json.dumps(snapshot)


def test_names_are_bounded():
    """A name that varies without end, by mistake, does not fill the memory."""
    metrics = Metrics()
    for index in range(2000):
        metrics.count(f"name-{index}")
        metrics.time(f"kind-{index}", 0.1)
    snapshot = metrics.snapshot()
    assert len(snapshot["counters"]) <= 501
    assert sum(snapshot["counters"].values()) == 2000
    assert len(snapshot["times"]) <= 501


def test_threads_lose_no_count():
    """Counting from several threads at once adds up."""
    metrics = Metrics()

    def work() -> None:
        for _ in range(5000):
            metrics.count("n")
            metrics.time("t", 0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.counter("n") == 20_000
    assert metrics.snapshot()["times"][0]["count"] == 20_000


def fork() -> int:
    """`os.fork`, of which newer Pythons warn where there are threads: that is just what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


@pytest.mark.skipif(sys.platform == "win32", reason="fork is POSIX")
def test_forked_child_counts_from_zero():
    """What the parent did is not the child's doing, and its lock is free."""
    metrics = Metrics()
    metrics.count("n")
    with metrics._lock:  # as if another thread held it at the fork
        pid = fork()
        if not pid:
            code = 1
            try:
                metrics.count("n")
                code = 0 if metrics.counter("n") == 1 else 1
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "1 counters" in repr(metrics)
