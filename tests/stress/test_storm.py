"""The storm's short form, and that it would find what is wrong."""

from __future__ import annotations

import pandas as pd
import pytest

from backbone.simulator import SimulatorServer
from backbone.timeframe import TIMEFRAMES
from tests.matrix import NOW
from tests.stress.storm import Call, Storm, run


@pytest.mark.timeout(400)  # forty seconds beside others that want the machine, two minutes beside many
def test_storm_of_150_calls_finds_every_answer_right() -> None:
    """A live table and a second process beside, faults, restarts, a clock that moves."""
    tally = run(7, 150)
    assert tally.wrong == []
    assert tally.verdict.rows > 5_000
    assert tally.rows["frame"] > 80


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_storm_of_many_calls(seed: int) -> None:
    """The long form."""
    assert run(seed, 2_500).wrong == []


@pytest.mark.parametrize("harm", ["lost", "another", "early", "invented"])
def test_storm_finds_an_answer_that_is_not_right(harm: str) -> None:
    """A row lacks, a value differs in its last digit, a candle is not closed, a row is not there."""
    with SimulatorServer(seed=7, now=NOW, frozen=True) as server:
        storm, now_us = Storm(server, 1), server.clock.now_us()
        step = storm.truth("KRW-BTC", TIMEFRAMES["1m"], now_us - 3_600_000_000, now_us + 1, now_us)
        right = step[step.index < pd.Timestamp(now_us - 63_000_000, unit="us", tz="UTC").floor("min")]
        call = Call("KRW-BTC", "1m", {"start": right.index[0], "end": right.index[-1] + pd.Timedelta("1min")})
        assert storm.check(call, ("frame", right), now_us, is_exact=True) == (len(right), "")
        wrong = {
            "lost": right.drop(right.index[20]),
            "another": right.assign(volume=right["volume"] * (1 + 1e-15)),
            "early": step,
            "invented": pd.concat([right, right.iloc[-1:].rename(lambda time: time + pd.Timedelta("7s"))]),
        }[harm]
        assert storm.check(call, ("frame", wrong), now_us, is_exact=True)[1]
