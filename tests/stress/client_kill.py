"""Kill whole clients while they fill a store from an exchange, and hold what they leave against that exchange.

Runs the embedded exchange, starts crowds of real processes that backfill from it into one folder, ends each crowd
with SIGKILL at a random moment, opens the folder and checks: every row is the exchange's, no covered span lacks its
rows, and no page that was answered more than a second before the kill is asked again. In the end one client fetches
the rest, and everything is compared once more.
"""

from __future__ import annotations

import datetime as dt
import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbone import Backbone
from backbone.clock import SystemClock
from backbone.model import Span
from backbone.simulator import SimulatorServer
from backbone.simulator.server.http import Logged
from backbone.timeframe import TIMEFRAMES, Timeframe
from tests.processes import CONTEXT
from tests.stress.client_world import LIMIT, NOW, SERIES, check, fill_for_ever, open_store, opens_of, reach, unhurried
from tests.stress.report import Tally

_PATHS = {"/v1/candles/seconds": "1s", "/v1/candles/minutes/1": "1m", "/v1/candles/minutes/5": "5m"}
_PATHS |= {"/v1/candles/minutes/60": "1h", "/v1/candles/months": "1M"}


@dataclass
class ClientTally(Tally):
    """How many pages the exchange answered, and how old the oldest was that a kill lost."""

    pages: int = 0
    asked_again: int = 0
    oldest_asked_again_s: float = 0.0

    def facts(self) -> str:
        return (
            f"{self.asked_again} of {self.pages:,} pages asked again, the oldest "
            f"{self.oldest_asked_again_s:.2f} s old; {self.verdict.rows:,} rows checked"
        )

    def faulty(self) -> list[str]:
        if self.oldest_asked_again_s > 1.0:
            return [f"a page answered {self.oldest_asked_again_s:.2f} s before the kill is asked again"]
        return []


def run(seed: int, kills: int, *, crowd: int = 3, per_folder: int = 15) -> ClientTally:
    """Kill crowds until `kills` clients are dead; a fresh folder now and then."""
    chance, tally = random.Random(seed), ClientTally()
    markets = sorted({market for market, _ in SERIES})
    root = Path(tempfile.mkdtemp(prefix="backbone-client-kill-"))
    with SimulatorServer(seed=seed, now=NOW, frozen=True, limit=LIMIT, markets=markets) as venue:
        try:
            while tally.tried["kills"] < kills:
                folder = root / str(tally.tried["kills"])
                until = min(kills, tally.tried["kills"] + per_folder)
                while tally.tried["kills"] < until:
                    clients = min(chance.randint(1, crowd), until - tally.tried["kills"])
                    _one_crowd(CONTEXT, folder, venue, chance, clients, tally)
                    check(folder, venue, tally.verdict)
                _finish(folder, venue, tally)
        finally:
            shutil.rmtree(root)
    return tally


def _one_crowd(
    context: Any, folder: Path, venue: SimulatorServer, chance: random.Random, crowd: int, tally: ClientTally
) -> None:
    """Start `crowd` clients, let them work for a moment, kill them all, and see what they had is asked again."""
    venue.reset_log()
    started = []
    for _ in range(crowd):
        receiver, sender = context.Pipe(duplex=False)
        args = (os.fspath(folder), venue.rest_url, chance.getrandbits(32), sender)
        process = context.Process(target=fill_for_ever, args=args, daemon=True)
        process.start()
        sender.close()
        os.read(receiver.fileno(), 1)
        started.append((process, receiver))
    clock = SystemClock()
    began_s = clock.monotonic()
    while not venue.counts().get("candles") and clock.monotonic() < began_s + 20:
        time.sleep(0.005)
    time.sleep(chance.uniform(0.0, 1.0) if chance.random() < 0.6 else chance.uniform(1.0, 3.0))
    killed_s = clock.monotonic()
    for process, _ in started:
        process.kill()
    for process, receiver in started:
        process.join()
        if message := os.read(receiver.fileno(), 1 << 16):
            tally.verdict.problems.append(message.decode())
        receiver.close()
        tally.tried["kills"] += 1
    _asked_again(folder, venue, [one for one in venue.requests if one.status == 200], killed_s, tally)


def _asked_again(
    folder: Path, venue: SimulatorServer, log: Sequence[Logged], killed_s: float, tally: ClientTally
) -> None:
    """Count the answered pages that the store does not cover, and how old the oldest of them was at the kill.

    A page's age counts from its arrival at the exchange, so the answer itself was younger.
    """
    store = open_store(folder, venue)
    for one in log:
        timeframe = TIMEFRAMES.get(_PATHS.get(one.path, ""))
        if timeframe is None or "to" not in one.query:
            continue
        tally.pages += 1
        market = one.query["market"]
        proof = _proof(venue, market, timeframe, one.query["to"], int(one.query["count"]))
        if proof is not None and not store.coverage(market, timeframe, proof).contains(proof):
            tally.asked_again += 1
            tally.oldest_asked_again_s = max(tally.oldest_asked_again_s, killed_s - one.mono)


def _proof(venue: SimulatorServer, market: str, timeframe: Timeframe, to: str, count: int) -> Span | None:
    """What the page's answer proved: from its oldest row to its bound."""
    to_us = int(dt.datetime.fromisoformat(to).timestamp()) * 1_000_000
    now_us = venue.clock.now_us()
    closed = timeframe.floor(now_us - 3_000_000)
    window = count
    while window < count << 12:
        start = max(0, timeframe.next(timeframe.floor(to_us), -window))
        times = opens_of(venue.exchange.candle_table(market, timeframe.name, start, min(to_us, closed), now_us))
        if len(times) >= count:
            return Span(int(times[-count]), min(to_us, closed))
        window *= 4
    return None  # the beginning of history: proven by a second ask only


def _finish(folder: Path, venue: SimulatorServer, tally: Tally) -> None:
    """Repair, fetch the rest with one client that lives, and compare everything again."""
    unhurried()
    with Backbone(data_dir=folder, rest_url=venue.rest_url, tz="UTC") as client:
        client.store.repair()
        if not client.store.verify().empty:
            tally.verdict.problems.append("problems after repair")
        end = dt.datetime.fromisoformat(NOW)
        for market, timeframe in SERIES:
            start = end - reach(timeframe, 8000)
            client.backfill(market, timeframe, start, end, priority="normal").result()
        venue.reset_log()
        for market, timeframe in SERIES:
            start = end - reach(timeframe, 8000)
            client.candles(market, timeframe, start, end - reach(timeframe, 200))
        if again := venue.counts().get("candles"):
            tally.verdict.problems.append(f"what is held was asked again: {again}")
    check(folder, venue, tally.verdict)
