"""The Korean README says what the English one says: the same code, the same sections, the same figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, KOREAN = ROOT / "README.md", ROOT / "README.ko.md"


def text(path: Path) -> str:
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    return path.read_text(encoding="utf-8")


def code(path: Path) -> list[str]:
    """The blocks of code, without the comments beside it and without what is no code (the error tree)."""
    found = []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", text(path), re.S):
        lines = [re.sub(r"\s*(?<!\S)# (?!client =).*$", "", line).rstrip() for line in block.splitlines()]
        found.append("\n".join([language, *filter(None, lines)]))
    return found


def rows(path: Path) -> list[list[str]]:
    """The figures of each row of each table: numbers with their digits, and what stands in code."""
    lines = [line for line in text(path).splitlines() if line.startswith("|") and not line.startswith("|--")]
    return [re.findall(r"`[^`]+`", line) for line in lines]


def figures(path: Path) -> list[set[str]]:
    """The measured figures, row by row; single digits are often written out."""
    measured = re.search(r"^## (?:Measured|측정값)\n(.*?)^## ", text(path), re.S | re.M)
    assert measured is not None
    lines = [line for line in measured[1].splitlines() if line.startswith("|")]
    return [set(re.findall(r"\d[\d,.]*\d", re.sub(r"`[^`]+`", "", line))) for line in lines]


def test_korean_readme_has_the_same_code() -> None:
    """Every block of code is the same but for its comments."""
    assert code(KOREAN) == code(ENGLISH)


def test_korean_readme_has_the_same_sections_and_tables() -> None:
    """As many headings of each level, in the same order, and tables of the same shape naming the same calls."""
    levels = [
        re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text(path), flags=re.S), re.M) for path in (ENGLISH, KOREAN)
    ]
    assert levels[0] == levels[1]
    assert rows(KOREAN) == rows(ENGLISH)


def test_korean_readme_has_the_same_figures() -> None:
    """What was measured reads the same in both."""
    assert figures(KOREAN) == figures(ENGLISH)
