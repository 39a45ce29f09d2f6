"""A notebook server and a browser for the tests here, which are skipped, with a reason, where there is
none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import Lab, Page, missing, open_browser

ARTEFACTS = Path(__file__).resolve().parents[2] / "artefacts" / "browser"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    mine = [item for item in items if here in Path(item.path).parents]
    reason = missing() if mine else ""
    for item in mine:
        item.add_marker(pytest.mark.timeout(300))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser's page, in which one notebook after the other opens: loading a lab costs more than all in it."""
    with open_browser(tmp_path_factory.mktemp("browser")) as context:
        yield context.new_page()


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Lab]]:
    """A server per theme, started when first asked for."""
    running: dict[str, Lab] = {}

    def lab(theme: str = "JupyterLab Light") -> Lab:
        if theme not in running:
            running[theme] = Lab(tmp_path_factory.mktemp("lab"), theme=theme).__enter__()
        return running[theme]

    yield lab
    for one in running.values():
        one.__exit__()


@pytest.fixture
def notebook(window: Any, labs: Callable[[str], Lab]) -> Iterator[Callable[..., Page]]:
    """Open a notebook (a path, or the sources of its cells) and get its page."""
    import nbformat

    pages = []

    def open_notebook(name: str, source: Path | list[str], *, theme: str = "JupyterLab Light") -> Page:
        lab = labs(theme)
        file = lab.root / f"{name}.ipynb"
        if isinstance(source, Path):
            book = nbformat.read(source, as_version=4)
            for cell in book.cells:
                if cell.cell_type == "code":
                    cell.outputs, cell.execution_count = [], None
        else:
            book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in source])
        book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, file)
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        page = Page(window, ARTEFACTS, f"{name}-{theme.rpartition(' ')[2].lower()}")
        pages.append(page)
        page.open(lab, file.name)
        return page

    yield open_notebook
    for page in pages:
        page.close()
