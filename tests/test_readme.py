"""The front pages: short, true, and the same facts in both languages. Each language has an order of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.simulator import SimulatorServer

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, KOREAN = ROOT / "README.md", ROOT / "README.ko.md"
PAGES = [ENGLISH, KOREAN, ROOT / "CHANGELOG.md", *sorted((ROOT / "notebooks").rglob("*.md"))]
BREAKOUT = "target ="
WORDS = ("호환 모듈", "집계", "무거래", "미확인", "격리", "요청·응답 객체", "시험 종류", "요청 한도", "한국 시간")
"""The field's Korean words."""
OTHERS = (
    "한국 시각",
    "요청 제한",
    "컬럼",
    "빗장",
    "접다",
    "접어서",
    "지키세요",
    "맨 끝",
    "맨 앞",
    "프로그레스",
    "진행 막대",
)
"""Second words for the same things, and metaphors taken literally."""


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path) -> list[tuple[str, str]]:
    return re.findall(r"```(\w+)\n(.*?)```", text(path), re.S)


def code(path: Path) -> list[str]:
    """The blocks of code, without the comments beside it, in a fixed order."""
    found = []
    for language, block in blocks(path):
        lines = [re.sub(r"\s*(?<!\S)# (?!client =).*$", "", line).rstrip() for line in block.splitlines()]
        found.append("\n".join([language, *filter(None, lines)]))
    return sorted(found)


def figures(path: Path) -> list[str]:
    """The numbers with a point or several digits that stand in tables and prose, in a fixed order."""
    prose = re.sub(r"```.*?```|\(.*?\)|`[^`]+`", "", text(path), flags=re.S)
    rows = [line for line in prose.splitlines() if line.startswith("|")]
    return sorted(number for row in rows for number in re.findall(r"\d[\d,.:+-]*\d", row))


@pytest.mark.parametrize("path", [ENGLISH, KOREAN], ids=lambda path: path.name)
def test_readme_is_a_screen_and_a_half(path: Path) -> None:
    """What does not fit in 130 lines has a page of its own."""
    assert len(text(path).splitlines()) <= 130


def test_readmes_show_the_same_code() -> None:
    """Every block of the English one is in the Korean one, which adds the breakout for those who come from pyupbit."""
    assert [block for block in code(KOREAN) if BREAKOUT not in block] == code(ENGLISH)


def test_readmes_give_the_same_figures() -> None:
    """Numbers in the tables read the same in both."""
    assert figures(KOREAN) == figures(ENGLISH)
    assert figures(ENGLISH)


def test_korean_has_one_word_for_one_thing() -> None:
    """Page and tutorials say the same words; the page has those of the field."""
    assert [word for word in WORDS if word not in text(KOREAN)] == []
    for path in (KOREAN, *sorted((ROOT / "notebooks/ko").glob("*.ipynb"))):
        assert [word for word in OTHERS if word in text(path)] == [], path.name


def test_korean_breakout_is_eight_lines_that_run(
    shared_venue: SimulatorServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader copies it and gets a return and a drawdown."""
    (block,) = [block for _, block in blocks(KOREAN) if BREAKOUT in block]
    assert len([line for line in block.splitlines() if line]) <= 8
    with Backbone.demo(server=shared_venue) as client:
        monkeypatch.setattr(Backbone, "demo", lambda **_: client)
        exec(compile(block, KOREAN.name, "exec"), {})
    assert re.fullmatch(r"수익률 [+-]\d+\.\d%, MDD \d+\.\d%\n", capsys.readouterr().out)


@pytest.mark.filterwarnings("ignore::backbone.errors.UnfinishedWarning")  # the last block leaves a job to its bar
@pytest.mark.parametrize("path", [ENGLISH, KOREAN], ids=lambda path: path.name)
def test_code_runs_from_top_to_bottom(
    path: Path, shared_venue: SimulatorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader copies each block into the next cell: nothing in it is missing or closed. Long ranges are a day here."""
    monkeypatch.setenv("BACKBONE_REST_URL", shared_venue.rest_url)
    monkeypatch.setenv("BACKBONE_WS_URL", shared_venue.ws_url)
    monkeypatch.setenv("BACKBONE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(Backbone, "demo", lambda **_: Backbone())
    cells: dict[str, Any] = {}
    for language, block in blocks(path):
        if language == "python":
            before = cells.get("client")
            short = re.sub(r'"20\d\d-03", "20\d\d-04"|"20\d\d"', '"1d"', block)
            exec(compile(short, path.name, "exec"), cells)
            if before is not None and before is not cells["client"]:
                before.close()
    cells["client"].close()


def test_first_cell_prints_what_the_readme_shows(shared_venue: SimulatorServer) -> None:
    """The table under the first cell is its answer."""
    with Backbone.demo(server=shared_venue) as client:
        frame = client.candles("KRW-BTC", "1m", count=3)
    shown = [line.strip("| ").split(" | ") for line in text(ENGLISH).splitlines() if line.startswith("| 2025-")]
    assert [[row[0], *map(float, row[1:])] for row in shown] == [
        [str(time), *(round(value, 8) if name != "value" else round(value, 4) for name, value in row.items())]
        for time, row in frame.iterrows()
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    """Every link to a file of the checkout names one that is there."""
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text(path)):
        assert (path.parent / target).exists(), target
