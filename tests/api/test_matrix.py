"""Every fault of the embedded exchange against every public way of asking, at the first, a middle and the last page.

The only outcomes that are allowed: the answer of the call without the fault, or an error of the tree and then, without
the fault, that answer. `tests.matrix` has the table, and says which cells cannot be.
"""

from __future__ import annotations

import functools
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from backbone import Backbone
from backbone.coordinator import scheduler
from backbone.coordinator.candles import fetcher
from backbone.errors import BackboneError, DataChangedWarning
from backbone.simulator import SimulatorServer
from tests.matrix import (
    BEGIN,
    CANDLES,
    END,
    FAULTS,
    IMPOSSIBLE,
    LISTED,
    NOW,
    SEVERAL,
    START,
    WAYS,
    options,
    same,
)

LIMIT = 1000


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries at once."""
    monkeypatch.setattr(scheduler, "_BACKOFF_S", (0.001, 0.01))
    monkeypatch.setattr(fetcher, "_PATIENCE", 2)


def _client(venue: SimulatorServer, folder: Path) -> Backbone:
    return Backbone(data_dir=folder, rest_url=venue.rest_url, ws_url=venue.ws_url)


@pytest.fixture(scope="module")
def before(
    shared_venue: SimulatorServer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Any]]:
    """Of a way: a folder with what it needs stored, copied for each page, and its answer without a fault."""

    @functools.cache
    def made(name: str) -> tuple[Path, Any]:
        folder, used = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("truth")
        with _client(shared_venue, folder) as client:
            WAYS[name].prepare(client)
        shutil.copytree(folder, used, dirs_exist_ok=True)
        with _client(shared_venue, used) as client:
            return folder, WAYS[name].ask(client)

    return made


CELLS = [
    pytest.param(name, kind, pages, id=f"{name}-{kind}-{part}", marks=marks)
    for name, way in WAYS.items()
    for kind in FAULTS
    for part, pages, marks in (
        ("ends", (*way.at[:1], *way.at[1:][-1:]), ()),
        ("middle", way.at[1:-1], pytest.mark.slow),
    )
    if pages
]
"""The first and the last page; those between are the long form."""


@pytest.mark.parametrize(("name", "kind", "pages"), CELLS)
def test_fault_ends_in_the_right_answer_or_an_error(
    venue: SimulatorServer,
    before: Callable[[str], tuple[Path, Any]],
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
    stored, right = before(name)
    for page in pages:
        venue.reset_limits()
        monkeypatch.setenv("BACKBONE_LEDGER_DIR", str(tmp_path / f"ledger {page}"))  # a ban is of this page's alone
        shutil.copytree(stored, tmp_path / str(page))
        with _client(venue, tmp_path / str(page)) as client:
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
        same(found, right)


ONE_UNIT = [
    "range", "count", "first-so-many", "critical", "forming", "refresh", "several", "wide", "derived", "backfill",
    "sections", "update", "audit",
]  # fmt: skip
"""Ways that show candles. What renamed markets answer on each way, `tests.api.test_renames` has."""

NO_UNIT = {
    "quote": "whole currencies at once: each market is one of `several`",
    "quote-list": "the list has no prices",
    "markets": "the list has no prices",
    "live": "`tests.api.test_redenomination` has live candles; other rows are the venue's of now, none beside another",
    "books": "each is the venue's of now, none is put beside another",
    "tickers": "each is the venue's of now, none is put beside another",
    "tickers-quote": "each is the venue's of now, none is put beside another",
    "trades": "a trade is what was agreed at its time; nobody trades while the unit changes",
    "trades-range": "a trade is what was agreed at its time; nobody trades while the unit changes",
}
"""Ways that cannot show two units, and why."""


def test_each_way_is_in_one_of_the_tables() -> None:
    """No way of asking is without a row about units."""
    assert {*ONE_UNIT, *NO_UNIT} == {*WAYS}
    assert not {*ONE_UNIT} & {*NO_UNIT}


@pytest.fixture(scope="module")
def changing(shared_venue: SimulatorServer) -> Iterator[SimulatorServer]:
    """An exchange of its own: a redenomination stays."""
    with SimulatorServer(seed=7, now=NOW, frozen=True, limit=LIMIT, markets=LISTED) as server:
        server.clock.advance(20)
        yield server


def _change(changing: SimulatorServer, **when: Any) -> list[Any]:
    """Both markets become ten times as dear, or go back."""
    factor = 10 if changing.exchange.market("KRW-BTC").factor <= 1 else 0.1
    return [changing.faults.add("rescale", market=market, factor=factor, **when) for market in SEVERAL]


def _is_one_unit_each(found: pd.DataFrame, right: pd.DataFrame) -> bool:
    """Whether each market is of one unit: of the two, its pages came before the change or after it."""
    columns = [found[name] / right[name] for name in right.columns if name in SEVERAL]  # a wide frame
    if not columns:
        ratio = found["close"] / right["close"]
        columns = [ratio[found["market"] == name] for name in SEVERAL]
    return all(column.max() < 1.001 * column.min() for column in columns)


def _ends_in_one_unit(changing: SimulatorServer, client: Backbone, folder: Path, name: str) -> None:
    """The way's answer is that of a client that stored nothing; or an error, and then that answer."""
    way = WAYS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataChangedWarning)
        try:
            found = way.ask(client)
        except BackboneError:
            found = None
        changing.faults.clear()
        with _client(changing, folder) as other:
            way.prepare(other)
            right = way.ask(other)
        if found is None or name == "audit":  # which says that all of it differs, or could not be compared
            client.candles("KRW-BTC", "1m", BEGIN, END, refresh=True)
            assert found is None or len(found) in (0, 5)
            found = way.ask(client)
        if name in ("several", "wide"):
            assert _is_one_unit_each(found, right)
            for market in SEVERAL:  # nothing that was asked since says that the first one changed
                client.candles(market, "1m", BEGIN, END, refresh=True)
            found = way.ask(client)
        same(found, right)


@pytest.mark.parametrize("name", ONE_UNIT)
def test_redenomination_while_a_part_is_stored_ends_in_one_unit(
    changing: SimulatorServer, tmp_path: Path, name: str
) -> None:
    """The older half is stored, the unit moves, the whole is asked: as a client that stored nothing has it."""
    with _client(changing, tmp_path / "stored") as client:
        for market in SEVERAL:
            client.candles(market, "1m", BEGIN, START)
            client.candles(market, "1h", "2025-08-01", START)
        _change(changing)
        _ends_in_one_unit(changing, client, tmp_path / "fresh", name)


@pytest.mark.parametrize("part", ["second", "last"])
@pytest.mark.parametrize("name", ONE_UNIT)
def test_redenomination_between_the_pages_of_a_call_ends_in_one_unit(
    changing: SimulatorServer, tmp_path: Path, name: str, part: str
) -> None:
    """Nothing is stored but what the way needs; some pages of the call are of the old unit, and some of the new one."""
    with _client(changing, tmp_path / "stored") as client:
        WAYS[name].prepare(client)
        after = WAYS[name].at[1 if part == "second" else -1]
        faults = _change(changing, match=CANDLES, after=after)
        _ends_in_one_unit(changing, client, tmp_path / "fresh", name)
        assert all(fault.used for fault in faults), f"there is no page {after}"
