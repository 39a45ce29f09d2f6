"""The form of the tutorials: what a reader can rely on in each. That they print what they show, nbval checks."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.rglob("[0-9]*.ipynb"))
LIVE = "application/vnd.jupyter.widget-view+json"

every = pytest.mark.parametrize(
    "book", NOTEBOOKS, ids=[path.relative_to(FOLDER).with_suffix("").as_posix() for path in NOTEBOOKS], indirect=True
)


@pytest.fixture
def book(request: pytest.FixtureRequest) -> Any:
    return nbformat.read(request.param, as_version=4)


def code(book: Any) -> list[Any]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def outputs(book: Any) -> str:
    """Everything a reader sees, pictures decoded."""
    found = []
    for cell in code(book):
        for output in cell.outputs:
            found.append(str(output.get("text", "")))
            data = output.get("data", {})
            found += [str(value) for kind, value in data.items() if kind.startswith("text/")]
    text = "\n".join(found)
    svgs = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", text)
    return text + "\n".join(base64.b64decode(svg).decode() for svg in svgs)


@pytest.mark.parametrize("folder", sorted({path.parent for path in NOTEBOOKS}), ids=lambda path: path.name)
def test_tutorials_are_numbered_without_a_hole(folder: Path) -> None:
    """They are read in order, in each language, from 01 on."""
    names = sorted(path.name[:3] for path in NOTEBOOKS if path.parent == folder)
    assert names == [f"{i:02d}_" for i in range(1, len(names) + 1)]


@every
def test_tutorial_opens_a_demo_and_closes_it(book: Any) -> None:
    """The first code cell makes the demo client with the live line beside it; the last one closes what was opened."""
    first, last = code(book)[0].source, code(book)[-1].source
    assert "client = Backbone.demo(" in first
    assert re.search(r"^# client = Backbone\(", first, re.M)
    assert "2025-08-22T09:00:00Z" in first
    assert "client.close()" in last


@every
def test_tutorial_says_what_to_look_at_before_each_cell(book: Any) -> None:
    """It begins with a title, and prose comes before every cell of code."""
    assert book.cells[0].cell_type == "markdown"
    assert book.cells[0].source.startswith("# ")
    for before, cell in zip(book.cells, book.cells[1:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown", cell.source


@every
def test_tutorial_is_read_in_five_minutes(book: Any) -> None:
    """At most 900 words of prose and fifteen cells of code."""
    words = sum(len(cell.source.split()) for cell in book.cells if cell.cell_type == "markdown")
    assert words <= 900
    assert len(code(book)) <= 15
    assert max(len(line) for cell in code(book) for line in cell.source.splitlines()) <= 102, "no line is cut off"


@every
def test_tutorial_waits_for_data_not_for_time(book: Any) -> None:
    """No sleep, no star import, no absolute path, no date relative to today, no machine's own names."""
    source = "\n".join(cell.source for cell in code(book))
    for wrong in ("sleep(", "import *", "today()", "now()", "/home/", "/root/", "/tmp/", "C:\\"):
        assert wrong not in source, wrong


@every
def test_tutorial_is_committed_as_it_ran(book: Any) -> None:
    """Every cell was run once, in order, without an error or a warning, and outputs name no machine."""
    cells = code(book)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output
    seen = outputs(book)
    for wrong in ("/home/", "/root/", "/tmp/", "Traceback"):
        assert wrong not in seen, wrong


@every
def test_tutorial_shows_without_a_kernel(book: Any) -> None:
    """What is kept of a widget is its static face, not a model that only a running kernel has."""
    for cell in code(book):
        assert set(cell.metadata) <= {"tags"}
        for output in cell.outputs:
            data = output.get("data", {})
            assert LIVE not in data
            if "text/html" not in data and "image/png" not in data:
                continue
            assert data.get("text/plain"), cell.source
    assert set(book.metadata) == {"kernelspec", "language_info"}


@every
def test_tutorial_ignores_an_output_only_where_it_is_measured(book: Any) -> None:
    """Only cells that show measured times are exempt from the comparison, and they say so."""
    for cell in code(book):
        tags = cell.metadata.get("tags", [])
        assert set(tags) <= {"nbval-ignore-output"}
        if tags:
            assert "measured" in cell.source or "measures" in cell.source, cell.source
