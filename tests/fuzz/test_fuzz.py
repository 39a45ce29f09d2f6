"""Short forms of the fuzz command."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backbone import Backbone
from backbone.coordinator import scheduler
from backbone.coordinator.candles import fetcher
from backbone.errors import BackboneError
from backbone.simulator import SimulatorServer
from tests.fuzz.__main__ import mutated
from tests.fuzz.targets import SEEDS, TARGETS
from tests.matrix import FAULTS, WAYS, options, same

LIMIT = 1000


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
def test_plan_survives_any_session_of_true_and_corrupted_replies(data: bytes) -> None:
    """The plan ends, its pages are sound, and what true replies proved holds no candle that was not sent."""
    TARGETS["planner"](data)


@pytest.mark.parametrize("seed", range(3))
def test_calls_survive_several_faults_at_once(
    venue: SimulatorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Ways and faults drawn from the matrix: two or three faults in one call end in the answer or an error of the tree,
    and then in the answer."""
    monkeypatch.setattr(scheduler, "_BACKOFF_S", (0.001, 0.01))
    monkeypatch.setattr(fetcher, "_PATIENCE", 2)
    chance = random.Random(seed)
    for number in range(8):
        way = WAYS[chance.choice([name for name in WAYS if name not in ("quote", "quote-list", "live")])]
        with Backbone(data_dir=tmp_path / f"{number} right", rest_url=venue.rest_url) as client:
            way.prepare(client)
            right = way.ask(client)
        with Backbone(data_dir=tmp_path / str(number), rest_url=venue.rest_url) as client:
            way.prepare(client)
            kinds = chance.sample([kind for kind in FAULTS if kind not in ("429", "418", "disorder")], 3)
            for kind in kinds:
                words = options(way, kind)
                venue.faults.add(
                    kind, match=way.match, after=chance.randrange(3), times=chance.randrange(1, 3), **words
                )
            try:
                found = way.ask(client)
            except BackboneError:
                found = None
        venue.faults.clear()
        if found is None:
            with Backbone(data_dir=tmp_path / str(number), rest_url=venue.rest_url) as client:
                found = way.ask(client)
        same(found, right)
