"""A venue that is a pure function of time, and the comparison of a store with that venue."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from backbone.clock import SystemClock
from backbone.model import CANDLE_SCHEMA, Span
from backbone.storage.coverage import EVER, SpanSet
from backbone.storage.store import CandleStore
from backbone.timeframe import Timeframe, parse_timeframe
from tests.stress.report import Verdict

START = 1_714_521_600_000_000  # 2024-05-01T00:00:00Z

MARKETS = {"KRW-BTC": 100, "KRW-THIN": 7, "BTC-RARE.X": 1}
"""Percent of the slots of each market in which somebody trades."""

TIMEFRAMES = [parse_timeframe(name) for name in ("1m", "1s", "1h")]


def truth(market: str, timeframe: Timeframe, span: Span) -> pa.Table:
    """Every candle of the venue that opens in `span`."""
    first, last = timeframe.ceil(span.start), timeframe.ceil(span.end)
    times = np.arange(first, max(first, last), timeframe.step_us, dtype=np.int64)
    chance = _mixed(times, zlib.crc32(f"{market} {timeframe.name}".encode()))
    traded = chance % 100 < MARKETS[market]
    times, chance = times[traded], chance[traded]
    base = 1000.0 + chance % 90_001
    volume = (chance >> 20) % 100_000 / 700
    values = [base, base + 30, base - 20, base + 7, volume, volume * base]
    columns = [pa.array(times).view(CANDLE_SCHEMA.field("time").type), *map(pa.array, values)]
    return pa.Table.from_arrays(columns, schema=CANDLE_SCHEMA)


def _known(market: str, timeframe: Timeframe, span: Span) -> pa.Table:
    """The candles of a span; the venue has none before `START`."""
    return truth(market, timeframe, Span(max(span.start, START), span.end))


def _mixed(times: Any, salt: int) -> Any:
    """A well-mixed 63-bit number for each instant."""
    with np.errstate(over="ignore"):
        x = times.astype(np.uint64) + np.uint64(salt) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((x ^ (x >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)


@dataclass(frozen=True)
class Reply:
    """One page as the venue would answer it: rows, and what they prove."""

    market: str
    timeframe: Timeframe
    span: Span

    def put(self, store: CandleStore) -> None:
        rows = _known(self.market, self.timeframe, self.span)
        store.put(self.market, self.timeframe, rows, self.span, now_us=self.span.end)


def any_reply(chance: random.Random, slots: int = 60_000) -> Reply:
    """A page at a random place in the first `slots` candles; now and then a long quiet span up to there."""
    market, timeframe = chance.choice(list(MARKETS)), chance.choice(TIMEFRAMES)
    reach = slots if timeframe.name != "1h" else 5_000
    first = chance.randrange(reach)
    length = chance.choice([1, 7, 200, 200, 200, 1000])
    return Reply(market, timeframe, Span(*(START + n * timeframe.step_us for n in (first, first + length))))


def open_store(root: Path, **options: Any) -> CandleStore:
    return CandleStore(root, "upbit", clock=SystemClock(), **options)


def check(root: Path, verdict: Verdict, *, proofs: dict[tuple[str, Timeframe], SpanSet] | None = None) -> None:
    """Open the store and compare its rows and coverage with the venue.

    A covered candle without its row is lost, a row that differs or is not the venue's is invented, a row outside
    the coverage is uncovered. `proofs` must be covered.
    """
    store = open_store(root)
    for problem in store.verify():
        if problem.kind == "leftover":
            verdict.leftovers += 1
        else:
            verdict.problems.append(f"{problem.kind} {problem.path} {problem.detail}")
    for market in MARKETS:
        for timeframe in TIMEFRAMES:
            found = store.read(market, timeframe, EVER)
            _compare(found.table, found.covered, market, timeframe, verdict)
            missing = (proofs or {}).get((market, timeframe), SpanSet()) - found.covered
            if missing:
                verdict.problems.append(f"{market} {timeframe}: {missing} was reported stored and is unknown")
    verdict.problems += [f"{incident.kind} {incident.path}" for incident in store.incidents()]


def check_read(store: CandleStore, reply: Reply, verdict: Verdict) -> None:
    """Hold one answer of a store against the venue: its rows, and what it says is covered, at that moment."""
    found = store.read(reply.market, reply.timeframe, reply.span)
    _compare(found.table, found.covered, reply.market, reply.timeframe, verdict)


def _compare(table: pa.Table, covered: SpanSet, market: str, timeframe: Timeframe, verdict: Verdict) -> None:
    wanted = pa.concat_tables([CANDLE_SCHEMA.empty_table(), *(_known(market, timeframe, s) for s in covered)])
    held, known = _columns(table), _columns(wanted)
    verdict.rows += len(held[0])
    both, i, j = np.intersect1d(held[0], known[0], assume_unique=False, return_indices=True)
    wrong = np.zeros(len(both), dtype=bool)
    for a, b in zip(held[1:], known[1:], strict=True):
        wrong |= a[i] != b[j]
    verdict.lost += len(known[0]) - len(both)
    outside = sum(not covered.holds(int(t)) for t in np.setdiff1d(held[0], known[0]))
    verdict.uncovered += outside
    verdict.invented += int(wrong.sum()) + len(held[0]) - len(both) - outside


def _columns(table: pa.Table) -> list[Any]:
    return [table.column(0).cast(pa.int64()).to_numpy(), *(column.to_numpy() for column in table.columns[1:])]
