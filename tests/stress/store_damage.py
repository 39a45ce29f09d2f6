"""Damage files of a filled store in every way, and hold what is read then against the truth.

Flips bytes, cuts, empties, grows, swaps, replaces by foreign or newer files, and deletes; then reads. Checked: no
wrong row is ever given and no covered span lacks its rows, all damage is found by the first read and said once, the
files are kept, and what was lost can be put again.
"""

from __future__ import annotations

import io
import random
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from backbone.errors import CorruptPartitionError, StoreError
from backbone.model import Span
from backbone.storage.coverage import EVER
from tests.stress.report import Tally
from tests.stress.store_world import MARKETS, START, TIMEFRAMES, Reply, check_read, open_store, truth


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 1, 50])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def cut(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def empty(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def grow(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randint(1, 5000)))


def blank(path: Path, chance: random.Random) -> None:
    """A hole of zeros, as a lost disk block leaves it."""
    data = bytearray(path.read_bytes())
    at = chance.randrange(len(data))
    end = min(len(data), at + 4096)
    data[at:end] = bytes(end - at) if any(data[at:end]) else b"\1" * (end - at)
    path.write_bytes(data)


def foreign(path: Path, chance: random.Random) -> None:
    """Well-formed candles by another program."""
    sink = io.BytesIO()
    pq.write_table(truth("KRW-BTC", TIMEFRAMES[0], Span(START, START + 10**10)), sink)
    path.write_bytes(chance.choice([sink.getvalue(), b"PK\x03\x04", b"<html>", chance.randbytes(5000)]))


def swap(path: Path, chance: random.Random) -> None:
    """A whole and sealed file of another market."""
    root = next(parent for parent in path.parents if parent.name in ("candles", "_quiet"))
    others = [other for other in root.rglob(f"*{path.suffix}") if other != path]
    if others:
        path.write_bytes(chance.choice(others).read_bytes())
    else:
        empty(path, chance)


def newer(path: Path, chance: random.Random) -> None:
    """A whole file in a format that this version does not know."""
    data = path.read_bytes().replace(b'"format":1', b'"format":2')
    at = data.rfind(b'{"seal":"') + 9
    zeroed = data[:at] + b"00000000" + data[at + 8 :]
    path.write_bytes(data[:at] + b"%08x" % zlib.crc32(zeroed) + data[at + 8 :])


def delete(path: Path, chance: random.Random) -> None:
    path.unlink()


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    flip, flip, cut, empty, grow, blank, foreign, swap, newer, delete,
)  # fmt: skip


@dataclass
class DamageTally(Tally):
    """What was done to the files, and how much of it was found."""

    kinds: Counter[str] = field(default_factory=Counter)
    found: int = 0
    unseen: int = 0

    def facts(self) -> str:
        rows = f"{self.verdict.rows:,} rows checked"
        return f"{self.found} found, {self.unseen} unseen, of {len(self.kinds)} kinds; {rows}"


def run(seed: int, rounds: int, slots: int = 50_000) -> DamageTally:
    """Damage one or two files a round, read, repair, fill again."""
    chance, tally = random.Random(seed), DamageTally()
    root = Path(tempfile.mkdtemp(prefix="backbone-damage-"))
    try:
        while tally.tried["damages"] < rounds:
            _fill(root, slots)
            files = sorted(path for top in ("candles", "_quiet") for path in (root / top).rglob("*") if path.is_file())
            for path in chance.sample(files, chance.randint(1, 2)):
                _round(root, path, chance, tally)
            shutil.rmtree(root / "_quarantine", ignore_errors=True)
    finally:
        shutil.rmtree(root)
    return tally


def _fill(root: Path, slots: int) -> None:
    """Everything of the first slots of every series; what is there already is not written again."""
    store = open_store(root)
    for market in MARKETS:
        for timeframe in TIMEFRAMES[:2]:
            Reply(market, timeframe, Span(0, START)).put(store)
            Reply(market, timeframe, Span(START, START + slots * timeframe.step_us)).put(store)
    store.close()


def _round(root: Path, path: Path, chance: random.Random, tally: DamageTally) -> None:
    before = path.read_bytes()
    damage = chance.choice(DAMAGES)
    damage(path, chance)
    tally.tried["damages"] += 1
    tally.kinds[damage.__name__] += 1
    is_kept = damage is not newer
    is_found = is_kept and damage is delete  # a file that is not there is nothing to find
    store = open_store(root, memory_bytes=chance.choice([0, 256 << 20]))
    expected = path.exists() and path.read_bytes() != before
    is_verified = any(problem.path == str(path) for problem in store.verify())
    for market in MARKETS:
        for timeframe in TIMEFRAMES[:2]:
            try:
                check_read(store, Reply(market, timeframe, EVER), tally.verdict)
                check_read(store, Reply(market, timeframe, EVER), tally.verdict)
            except CorruptPartitionError as exc:
                tally.verdict.problems.append(f"damage was raised instead of survived: {exc}")
            except StoreError as exc:
                is_found = is_found or (damage is newer and "upgrade" in str(exc))
    reported = [incident for incident in store.incidents() if incident.path == str(path)]
    is_found = is_found or (len(reported) == 1 and not path.exists())
    tally.found += is_found
    if expected and not (is_found and is_verified):
        tally.unseen += 1
        tally.verdict.problems.append(f"{damage.__name__} of {path} went unseen ({reported}, verify {is_verified})")
    if damage is newer:
        path.write_bytes(before)
