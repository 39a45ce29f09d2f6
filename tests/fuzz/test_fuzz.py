"""Short forms of the fuzz command."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.__main__ import mutated
from tests.fuzz.targets import SEEDS, TARGETS


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    """Damage is reported on purpose, thousands of times."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", TARGETS)
def test_target_keeps_its_promise_for_true_inputs(name: str) -> None:
    """The inputs that are mutated are themselves well-formed."""
    for seed in SEEDS[name]:
        TARGETS[name](seed)


@pytest.mark.parametrize(("name", "rounds"), [(n, 60 if n == "store" else 300) for n in TARGETS])
def test_target_keeps_its_promise_for_mutated_inputs(name: str, rounds: int) -> None:
    """No exception outside the error tree, and no wrong row."""
    chance = random.Random(f"7 {name}")
    for _ in range(rounds):
        TARGETS[name](mutated(SEEDS[name], chance))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_plan_survives_any_session_of_true_and_lying_replies(data: bytes) -> None:
    """The plan ends, its pages are sound, and what true replies proved holds no candle that was not sent."""
    TARGETS["planner"](data)
