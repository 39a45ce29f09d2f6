"""The whole proof in one command: ``python -m tests.stress [FORM ...] [--seed S] [--kills N] [--minutes M] [--quick]``.

Runs every form (or the named ones) one after another and prints a row of counts for each, then their sum. Exits with 1
when a row was lost or invented, or anything else was found. Each form's module says what it does and checks.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.stress import (
    client_kill,
    quota_crowd,
    report,
    soak,
    store_crowd,
    store_damage,
    store_disk,
    store_kill,
    storm,
)
from tests.stress.report import Tally

FORMS: dict[str, Callable[[argparse.Namespace], Tally]] = {
    "store_kill": lambda o: store_kill.run(o.seed, o.kills),
    "client_kill": lambda o: client_kill.run(o.seed, o.client_kills),
    "store_crowd": lambda o: store_crowd.run(o.seed, o.crowds, pages=o.pages),
    "store_damage": lambda o: store_damage.run(o.seed, o.damages),
    "store_disk": lambda o: store_disk.run(o.seed, o.faults),
    "quota_crowd": lambda o: quota_crowd.prove(1, o.seconds),
    "storm": lambda o: storm.run(o.seed, o.calls),
    "soak": lambda o: soak.run(o.seed, o.minutes * 60),
}

AMOUNTS: dict[str, tuple[float, float, str]] = {
    "kills": (150, 24, "writers of a store ended with SIGKILL"),
    "client_kills": (50, 5, "whole clients ended with SIGKILL"),
    "crowds": (3, 1, "crowds of four writers and two readers on one folder"),
    "pages": (150, 40, "pages that each of those writers puts"),
    "damages": (120, 15, "files damaged"),
    "faults": (120, 15, "system calls of a write that fail, besides full, read-only and vanished disks"),
    "seconds": (10, 3, "of four processes on one quota"),
    "calls": (5000, 150, "random calls for candles, each compared with the exchange"),
    "minutes": (1, 0.15, "of mixed use under a script of faults"),
}
"""How much of each: usually, with ``--quick``, and of what."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    logging.disable()  # what is survived is counted, not logged one by one
    print(report.headline())
    tallies: dict[str, Tally] = {}
    for form in options.forms:
        started_s = time.monotonic()
        tallies[form] = _run(form, options)
        print(report.line(form, tallies[form], time.monotonic() - started_s), flush=True)
    print(report.total(tallies.values()))
    for form, tally in tallies.items():
        for problem in tally.problems()[:20]:
            print(f"  {form}: {problem}")
        if options.verbose and isinstance(tally, soak.SoakTally):
            print(f"  {form}: {tally.detailed()}", *tally.wrong, sep="\n    ")
    return 0 if all(tally.is_clean for tally in tallies.values()) else 1


def _run(form: str, options: argparse.Namespace) -> Tally:
    """A form that cannot end is a finding too, and the others are still run."""
    try:
        return FORMS[form](options)
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is reported and counts
        failed = Tally()
        failed.verdict.problems.append(f"ended early: {exc!r}")
        return failed


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("forms", nargs="*", metavar="FORM", help=f"all of them if none is named: {', '.join(FORMS)}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="less of each: under a minute")
    parser.add_argument("--verbose", action="store_true", help="all that the soak counted")
    for name, (usual, quick, what) in AMOUNTS.items():
        kind: Any = int if isinstance(quick, int) else float
        text = f"{what} (default {usual}, quick {quick})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    options = parser.parse_args(argv)
    if unknown := set(options.forms) - set(FORMS):
        parser.error(f"no such form: {', '.join(sorted(unknown))}")
    options.forms = options.forms or list(FORMS)
    for name, (usual, quick, _) in AMOUNTS.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else usual)
    return options


if __name__ == "__main__":
    sys.exit(main())
