"""A whole client at an embedded exchange, and the comparison of its store with that exchange."""

from __future__ import annotations

import datetime as dt
import logging
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from backbone import Backbone
from backbone.clock import SystemClock
from backbone.errors import BackboneError
from backbone.model import CANDLE_SCHEMA
from backbone.settings import resolve
from backbone.simulator import SimulatorServer
from backbone.storage.coverage import EVER
from backbone.storage.store import CandleStore
from backbone.timeframe import TIMEFRAMES
from tests.stress.report import Verdict

NOW = "2025-08-22T09:00:00Z"
LIMIT = 1000  # requests a second: the quota is another command's business
SERIES = [("KRW-BTC", "1m"), ("KRW-THETA", "1m"), ("KRW-ETH", "1h"), ("BTC-ETH", "5m"), ("KRW-XRP", "1s")]


def unhurried() -> None:
    """Give this process's clients a quota that does not hold them."""
    from backbone.coordinator import coordinator as fetch
    from backbone.coordinator.quota.ledger import MemoryLimiter
    from backbone.coordinator.quota.rules import Rules

    class Unhurried(MemoryLimiter):
        is_shared = True

    fetch.MachineLimiter = lambda url, clock: Unhurried(clock, Rules(limit=LIMIT))  # type: ignore[assignment,misc]


def reach(timeframe: str, slots: float) -> dt.timedelta:
    """The length of so many candles."""
    return dt.timedelta(seconds=slots * TIMEFRAMES[timeframe].step_us / 1e6)


def fill_for_ever(root: str, rest_url: str, seed: int, sender: Any) -> None:
    """A client that backfills one random range after another and reads in between; `sender` gets its failures."""
    unhurried()
    logging.disable()
    chance, end = random.Random(seed), dt.datetime.fromisoformat(NOW)
    with Backbone(data_dir=root, rest_url=rest_url, tz="UTC") as client:
        os.write(sender.fileno(), b"r")
        while True:
            market, timeframe = chance.choice(SERIES)
            last = end - reach(timeframe, 3000 * chance.random())
            first = last - reach(timeframe, 2000 * chance.choice([0.1, 1, 1, 2]))
            try:
                if chance.random() < 0.3:
                    client.candles(market, timeframe, first, last, progress=False)
                else:
                    client.backfill(market, timeframe, first, last).wait(progress=False)
            except BackboneError as exc:
                os.write(sender.fileno(), f"{exc!r}\n".encode())
                return


def open_store(folder: Path, venue: SimulatorServer) -> CandleStore:
    """The folder's store as a client of `venue` would open it."""
    settings = resolve("upbit", data_dir=folder, rest_url=venue.rest_url, ws_url=None, tz=None, frames="pandas")
    return CandleStore(folder, settings.store_exchange, clock=SystemClock())


def opens_of(table: pa.Table) -> Any:
    return table.column("time").cast(pa.int64()).to_numpy()


def check(folder: Path, venue: SimulatorServer, verdict: Verdict) -> None:
    """Open the store and compare its rows and coverage with the exchange."""
    store = open_store(folder, venue)
    for problem in store.verify():
        if problem.kind == "leftover":
            verdict.leftovers += 1
        else:
            verdict.problems.append(f"{problem.kind} {problem.path} {problem.detail}")
    now_us = venue.clock.now_us()
    for market, timeframe in store.series():
        found = store.read(market, timeframe, EVER)
        parts = [
            venue.exchange.candle_table(market, timeframe.name, max(span.start, 0), min(span.end, now_us), now_us)
            for span in found.covered
        ]
        compare(found.table, pa.concat_tables([CANDLE_SCHEMA.empty_table(), *parts]), verdict)
        verdict.uncovered += sum(not found.covered.holds(int(t)) for t in opens_of(found.table))
        if len(store.revisions(market, timeframe)):
            verdict.problems.append(f"{market} {timeframe}: revisions of a market that restated nothing")
    verdict.problems += [f"{incident.kind} {incident.path}" for incident in store.incidents()]


def compare(held: pa.Table, known: pa.Table, verdict: Verdict) -> None:
    verdict.rows += held.num_rows
    both, i, j = np.intersect1d(opens_of(held), opens_of(known), assume_unique=True, return_indices=True)
    wrong = np.zeros(len(both), dtype=bool)
    for name in CANDLE_SCHEMA.names[1:]:
        wrong |= held.column(name).to_numpy()[i] != known.column(name).to_numpy()[j]
    verdict.lost += known.num_rows - len(both)
    verdict.invented += int(wrong.sum()) + held.num_rows - len(both)
