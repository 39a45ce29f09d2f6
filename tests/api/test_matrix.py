"""Every fault of the embedded exchange against every public way of asking, at the first, a middle and the last page.

The only outcomes that are allowed: the answer of the call without the fault, or an error of the tree and then, without
the fault, that answer. `tests.matrix` has the table, and says which cells cannot be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.coordinator import scheduler
from backbone.coordinator.candles import fetcher
from backbone.errors import BackboneError
from backbone.simulator import SimulatorServer
from tests.matrix import FAULTS, IMPOSSIBLE, WAYS, options, same

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


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in WAYS for kind in FAULTS])
def test_fault_ends_in_the_right_answer_or_an_error(
    venue: SimulatorServer,
    truth: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: str,
) -> None:
    """At each page, once."""
    if reason := IMPOSSIBLE.get((name, kind)):
        pytest.skip(reason)
    way = WAYS[name]
    if name not in truth:
        with _client(venue, tmp_path / "truth") as client:
            way.prepare(client)
            truth[name] = way.ask(client)
    for page in way.at[-1:] if kind == "429" else way.at:  # a 429 costs the rest of a second each time
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
