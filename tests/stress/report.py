"""What a form of the proof tried and what came of it: one shape for all of them, and the table that shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Verdict:
    """What a check of a whole store found; all but ``rows`` and ``leftovers`` must stay zero."""

    rows: int = 0
    lost: int = 0
    invented: int = 0
    uncovered: int = 0
    problems: list[str] = field(default_factory=list)
    leftovers: int = 0

    def add(self, part: Verdict) -> None:
        """Count `part` in."""
        self.rows += part.rows
        self.lost += part.lost
        self.invented += part.invented
        self.uncovered += part.uncovered
        self.leftovers += part.leftovers
        self.problems += part.problems


@dataclass
class Tally:
    """A form's counts; each form adds its own and says in `facts` and `faulty` what they mean.

    tried : how many kills, crowds, damages, faults or calls.
    """

    tried: Counter[str] = field(default_factory=Counter)
    verdict: Verdict = field(default_factory=Verdict)

    def facts(self) -> str:
        """What else is worth a line."""
        return f"{self.verdict.rows:,} rows checked"

    def faulty(self) -> Iterable[str]:
        """What is wrong although no row is lost or invented."""
        return ()

    def problems(self) -> list[str]:
        """Everything that is wrong besides lost and invented rows."""
        found = [*self.verdict.problems, *self.faulty()]
        if self.verdict.uncovered:
            found.append(f"{self.verdict.uncovered} rows outside what is covered")
        return found

    @property
    def is_clean(self) -> bool:
        return not (self.verdict.lost or self.verdict.invented or self.problems())

    def summary(self) -> str:
        """One line, for the message of a test that fails."""
        v = self.verdict
        return f"{_counted(self.tried)}; rows lost {v.lost}, invented {v.invented}; {self.facts()}; {self.problems()}"


_HEAD = ("form", "tried", "rows lost", "rows invented", "asked again, other facts", "seconds")
_WIDTHS = (12, 27, 9, 13, 92, 7)


def headline() -> str:
    return _line(*_HEAD)


def line(form: str, tally: Tally, seconds: float) -> str:
    """A form's row of the table."""
    v = tally.verdict
    return _line(form, _counted(tally.tried), f"{v.lost}", f"{v.invented}", tally.facts(), f"{seconds:.0f}")


def total(tallies: Iterable[Tally]) -> str:
    """The last line: everything that was tried, and the two counts that must be zero."""
    tried: Counter[str] = Counter()
    verdict = Verdict()
    for tally in tallies:
        tried += tally.tried
        verdict.add(tally.verdict)
    return f"{_counted(tried)} tried; rows lost {verdict.lost}, rows invented {verdict.invented}"


def _counted(tried: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind if count != 1 else kind.removesuffix('s')}" for kind, count in tried.items())


def _line(*cells: str) -> str:
    form, tried, lost, invented, facts, seconds = (
        cell.rjust(width) if at in (2, 3, 5) else cell.ljust(width)
        for at, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    )
    return "  ".join((form, tried, lost, invented, facts, seconds))
