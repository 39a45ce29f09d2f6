"""Run the tutorials and keep their outputs, but for what says nothing to a reader: `python -m tests.refresh_notebooks`.

Names of notebooks may follow, all is the default. Live widgets exist only while a kernel runs: what is kept of them is
their static face, which GitHub, VS Code and a notebook that is opened without a kernel show.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
LIVE = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def refresh(path: Path) -> None:
    """Execute one notebook in place."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(FOLDER.parent), os.environ.get("PYTHONPATH"))))
    book = nbformat.read(path, as_version=4)
    NotebookClient(
        book, timeout=60, kernel_name="python3", record_timing=False, resources={"metadata": {"path": path.parent}}
    ).execute()
    clean(book)
    path.write_text(nbformat.writes(book, version=4) + "\n", encoding="utf-8")


def clean(book: Any) -> None:
    """Drop what a run leaves besides its outputs."""
    book.metadata = nbformat.from_dict(METADATA)
    for cell in book.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags"})
        cell.outputs = joined(cell.outputs)
        for output in cell.outputs:
            output.get("data", {}).pop(LIVE, None)
            if "metadata" in output:
                output["metadata"] = {}


def joined(outputs: list[Any]) -> list[Any]:
    """Outputs with what was printed in several pieces in one: where it was cut depends on the moment."""
    found: list[Any] = []
    for output in outputs:
        last = found[-1] if found else None
        if last is not None and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            found.append(output)
    return found


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("[0-9]*.ipynb")):
        refresh(FOLDER / name)
