"""The tutorials in a real JupyterLab: each runs to its end, what it shows draws and moves, and nothing fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import Page

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))

SHOWING = ("04",)  # a live table and a chart; the others show what is compared without a browser


def tutorials() -> list[Any]:
    """Each tutorial; those with nothing that moves only in the long form."""
    marks = {path: () if path.name.startswith(SHOWING) else pytest.mark.slow for path in NOTEBOOKS}
    return [pytest.param(path, id=path.stem, marks=mark) for path, mark in marks.items()]


@pytest.mark.parametrize("path", tutorials())
def test_tutorial_runs_and_what_it_shows_is_there(notebook: Callable[..., Page], path: Path) -> None:
    """Every cell ends without an error; tables have rows, charts are painted, bars of finished jobs are full."""
    page = notebook(path.stem, path)
    page.run_all(timeout_s=120.0)
    page.page.wait_for_timeout(500)
    for what in ("bb-table", "bb-chart", "bb-dash"):
        if page.page.locator(f".{what}").count():
            page.screenshot(what, f".{what}")
    if page.page.locator(".bb-table").count():
        assert page.texts(".bb-table tbody tr")
    if page.page.locator(".bb-chart").count():
        assert page.painted(".bb-chart .bb-stage") > 5_000
    bars = page.page.locator(".widget-hprogress .progress-bar")
    for i in range(bars.count()):
        assert "progress-bar-danger" not in (bars.nth(i).get_attribute("class") or "")
    page.screenshot("page")
    assert page.failures() == []


def first_cells(number: str, count: int) -> list[str]:
    """The first code cells of a tutorial."""
    import nbformat

    (path,) = (path for path in NOTEBOOKS if path.name.startswith(number))
    book = nbformat.read(path, as_version=4)
    return [cell.source for cell in book.cells if cell.cell_type == "code"][:count]


@pytest.mark.slow
def test_live_tutorial_moves_by_itself(notebook: Callable[..., Page]) -> None:
    """With no cell running, the prices of the live table change, and the last candle of the chart does."""
    page = notebook("04_in_motion", first_cells("04", 4))
    page.run_all(timeout_s=120.0)
    page.wait_for_change(".bb-table tbody td.bb-price", timeout_s=30.0)
    page.screenshot("table", ".bb-table")
    page.wait_for_change(".bb-chart", timeout_s=30.0)
    assert page.painted(".bb-chart .bb-stage") > 5_000
    page.screenshot("chart", ".bb-chart")
    left = "import threading; client.close(); exchange.close()\n"
    left += "print([t.name for t in threading.enumerate() if t.name.startswith('backbone-')])"
    assert page.ask(left) == "[]"
    page.page.wait_for_selector(".bb-table .bb-dot[data-level='off']")
    page.page.wait_for_selector(".bb-chart .bb-dot[data-level='off']")
    assert page.failures() == []


def test_bar_of_a_job_fills_by_itself(notebook: Callable[..., Page]) -> None:
    """The bar of the backtest's job fills with no cell running, and ends full and green."""
    page = notebook("02_in_motion", first_cells("02", 4))
    page.run_all(timeout_s=120.0)
    page.page.wait_for_selector(".widget-hprogress .progress-bar-success", timeout=60_000)
    bar = page.page.locator(".widget-hprogress .progress-bar").first
    assert "100%" in (bar.get_attribute("style") or "")
    page.screenshot("bar", ".widget-vbox")
    page.ask("client.close()")
    assert page.failures() == []
