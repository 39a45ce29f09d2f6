"""``python -m tests.fuzz --seconds 60``: every target in turn, with atheris where it is installed.

Without it (it has no wheels for some systems) true inputs are mutated at random. Exits with 1 when a target broke its
promise, and says by which bytes.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence

from tests.fuzz.targets import SEEDS, TARGETS

__all__ = ["main", "mutated"]


def mutated(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """A true input after a few random edits, or noise."""
    data = bytearray(chance.choice(seeds) if chance.random() < 0.9 else chance.randbytes(chance.randrange(200)))
    for _ in range(chance.choice([1, 1, 2, 3, 10])):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(5)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at:at] = chance.choice([b"null", b"-1", b"1e999", b'"', b"[", b"{}", b"9" * 30, chance.randbytes(3)])
        elif kind == 2:
            del data[at : at + chance.randrange(1, 20)]
        elif kind == 3:
            data[at : at + 4] = chance.randbytes(4)
        else:
            data += data[at : at + chance.randrange(1, 50)]
    return bytes(data)


def by_chance(name: str, seconds: float, seed: int) -> tuple[int, bytes | None]:
    """How many inputs were tried, and the one that broke the promise, if any."""
    chance, target, tried = random.Random(f"{seed} {name}"), TARGETS[name], 0
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        data = mutated(SEEDS[name], chance)
        tried += 1
        try:
            target(data)
        except Exception:  # noqa: BLE001 - anything that comes out is what is looked for
            traceback.print_exc()
            return tried, data
    return tried, None


def by_atheris(name: str, seconds: float, seed: int) -> tuple[int, bytes | None]:
    """The same with coverage as a guide, in a process of its own: atheris never returns."""
    argv = [sys.executable, "-m", "tests.fuzz.guided", name, f"-max_total_time={max(1, round(seconds))}"]
    argv += [f"-seed={seed}", "-print_final_stats=1", "-artifact_prefix=/tmp/backbone-fuzz-"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    units = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    if done.returncode != 0:
        print(done.stderr[-3000:])
        return int(units[1]) if units else 0, b"see above"
    return int(units[1]) if units else 0, None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="in all")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append")
    parser.add_argument("--by-chance", action="store_true", help="do not use atheris")
    options = parser.parse_args(argv)
    names = options.target or list(TARGETS)
    is_guided = not options.by_chance and importlib.util.find_spec("atheris") is not None
    run = by_atheris if is_guided else by_chance
    tried, broken = {}, {}
    for name in names:
        tried[name], culprit = run(name, options.seconds / len(names), options.seed)
        if culprit is not None:
            broken[name] = culprit
    counts = " ".join(f"{name} {number}" for name, number in tried.items())
    how = "guided by coverage" if is_guided else "by chance"
    print(f"fuzz {how}: inputs {sum(tried.values())} ({counts}) · promises broken {len(broken)}")
    for name, culprit in broken.items():
        print(f"  {name}: {culprit!r}")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
