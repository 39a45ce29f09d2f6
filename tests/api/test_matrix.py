"""Every fault of the embedded exchange against every public way of asking, at the first, a middle and the last page.

The only outcomes that are allowed: the answer of the call without the fault, or an error of the tree and then, without
the fault, that answer. `tests.matrix` has the table, and says which cells cannot be.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.coordinator import scheduler
from backbone.coordinator.candles import fetcher
from backbone.errors import BackboneError, DataChangedWarning
from backbone.simulator import SimulatorServer
from tests.matrix import BEGIN, FAULTS, IMPOSSIBLE, NOW, SEVERAL, START, WAYS, options, same

LIMIT = 1000


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries at once."""
    monkeypatch.setattr(scheduler, "_BACKOFF_S", (0.001, 0.01))
    monkeypatch.setattr(fetcher, "_PATIENCE", 2)


@pytest.fixture(scope="module")
def truth(shared_venue: SimulatorServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each way's answer without a fault, as far as it was asked for."""
    return {}


def _client(venue: SimulatorServer, folder: Path) -> Backbone:
    return Backbone(data_dir=folder, rest_url=venue.rest_url, ws_url=venue.ws_url)


CELLS = [
    pytest.param(name, kind, pages, id=f"{name}-{kind}-{part}", marks=marks)
    for name, way in WAYS.items()
    for kind in FAULTS
    for part, pages, marks in (
        ("ends", (*way.at[:1], *way.at[1:][-1:]), ()),
        ("middle", way.at[1:-1], pytest.mark.slow),
    )
    if pages and not (part == "middle" and kind == "429")
]
"""The first and the last page; those between are the long form."""


@pytest.mark.parametrize(("name", "kind", "pages"), CELLS)
def test_fault_ends_in_the_right_answer_or_an_error(
    venue: SimulatorServer,
    truth: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: str,
    pages: tuple[int, ...],
) -> None:
    """At each page, once."""
    if reason := IMPOSSIBLE.get((name, kind)):
        pytest.skip(reason)
    way = WAYS[name]
    if name not in truth:
        with _client(venue, tmp_path / "truth") as client:
            way.prepare(client)
            truth[name] = way.ask(client)
    for page in pages[-1:] if kind == "429" else pages:  # a 429 costs the rest of a second each time
        venue.reset_limits()
        monkeypatch.setenv("BACKBONE_LEDGER_DIR", str(tmp_path / f"ledger {page}"))  # a ban is of this page's alone
        with _client(venue, tmp_path / str(page)) as client:
            way.prepare(client)
            fault = venue.faults.add(kind, match=way.match, after=page, **options(way, kind))
            try:
                found = way.ask(client)
            except BackboneError:
                found = None
            assert fault.used, f"there is no page {page}"
        venue.faults.clear()
        if found is None:
            venue.reset_limits()
            monkeypatch.setenv("BACKBONE_LEDGER_DIR", str(tmp_path / f"ledger {page} after"))
            with _client(venue, tmp_path / str(page)) as client:
                found = way.ask(client)
        same(found, truth[name])


ONE_UNIT = [
    "range", "count", "first-so-many", "critical", "forming", "refresh", "several", "wide", "derived", "backfill",
    "sections",
]  # fmt: skip
"""Ways that may join stored candles with new ones. An audit compares what is stored and says that it differs; an update
asks only for what lies behind. What renamed markets answer on each way, `tests.api.test_renames` has."""


@pytest.fixture(scope="module")
def changing(shared_venue: SimulatorServer) -> Iterator[SimulatorServer]:
    """An exchange of its own: a redenomination stays."""
    with SimulatorServer(seed=7, now=NOW, frozen=True, limit=LIMIT) as server:
        server.clock.advance(20)
        yield server


@pytest.mark.parametrize("name", ONE_UNIT)
def test_redenomination_while_a_part_is_stored_ends_in_one_unit(
    changing: SimulatorServer, tmp_path: Path, name: str
) -> None:
    """The older half is stored, the unit moves, the whole is asked: as a client that stored nothing has it."""
    way = WAYS[name]
    with _client(changing, tmp_path / "stored") as client:
        for market in SEVERAL:
            client.candles(market, "1m", BEGIN, START)
            client.candles(market, "1h", "2025-08-01", START)
        for market in SEVERAL:
            changing.faults.add("rescale", market=market, factor=10 if ONE_UNIT.index(name) % 2 == 0 else 0.1)
        with _client(changing, tmp_path / "fresh") as other:
            right = way.ask(other)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataChangedWarning)
            try:
                found = way.ask(client)
            except BackboneError:
                found = way.ask(client)
        same(found, right)
