"""The tutorials in a real JupyterLab: each runs to its end, what it shows draws and moves, and nothing fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.browser.lab import Page

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
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
