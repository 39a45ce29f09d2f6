"""The layers, held by their imports; the public names; the tests' own completeness."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import backbone
from backbone import errors

PACKAGE = Path(backbone.__file__).parent
ROOT = PACKAGE.parent
LEAVES = {"errors", "model", "timeframe", "settings", "clock", "locks", "venues"}
ALLOWED = {
    "api": {"api", "coordinator", "storage", "routing"} | LEAVES,
    "coordinator": {"coordinator", "storage", "routing"} | LEAVES,
    "storage": {"storage"} | LEAVES,
    "routing": {"routing"} | LEAVES,
    "simulator": {"simulator"} | LEAVES,
    "compat": {"compat", "api", "coordinator"} | LEAVES,
}
# The two places that open the embedded exchange for a person: the demo client, and the command line.
DOORS_TO_THE_SIMULATOR = {"api/demo.py", "api/cli/main.py", "api/bench.py"}
# The bench plays a crowd of callers; it is no part of a client.
MAY_START_THREADS = {
    "coordinator/scheduler.py",
    "routing/stream.py",
    "api/calls/live.py",
    "api/calls/prometheus.py",
    "api/bench.py",
}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__main__.py")


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _home(name: str) -> str:
    """Where a name of the package itself comes from."""
    return backbone._HOMES.get(name, f"backbone.{name}")


def imported(path: Path) -> set[str]:
    """The parts of backbone that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "backbone" else [_home(a.name) for a in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("backbone.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=place)
def test_imports_point_downwards_only(path: Path) -> None:
    """api → coordinator → {storage, routing}; leaves import leaves; nothing but its doors knows the simulator."""
    where = place(path)
    part = where.split("/")[0].removesuffix(".py")
    if part in ("__init__", "testing"):
        return
    wrong = imported(path) - ALLOWED.get(part, LEAVES)
    if where in DOORS_TO_THE_SIMULATOR:
        wrong -= {"simulator"}
    assert not wrong, f"{where} imports {sorted(wrong)}"


@pytest.mark.parametrize("path", modules(), ids=place)
def test_threads_live_where_they_are_known(path: Path) -> None:
    """Threads are made in the scheduler, the stream and the callback dispatcher (the simulator's server aside)."""
    where = place(path)
    if where in MAY_START_THREADS or where.startswith("simulator/"):
        return
    text = path.read_text(encoding="utf-8")
    assert "threading.Thread(" not in text, where
    assert "ThreadPoolExecutor" not in text, where


@pytest.mark.parametrize("path", modules(), ids=place)
def test_every_module_says_what_it_decides(path: Path) -> None:
    """A module docstring answers in a paragraph what decision lives there."""
    assert (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").strip(), place(path)


def test_public_names_are_the_contract() -> None:
    """`dir(backbone)` shows the public names only, and each of them resolves."""
    assert dir(backbone) == sorted(backbone.__all__)
    for name in backbone.__all__:
        assert getattr(backbone, name) is not None
    promised = {"Backbone", "Priority", "DataType", "errors", "BackboneRequest", "BackboneResponse"}
    assert promised <= set(backbone.__all__)


def test_error_tree_is_as_printed() -> None:
    """The tree in the docstring is the tree of the classes."""
    for name in errors.__all__:
        assert name in (errors.__doc__ or "")
        assert issubclass(getattr(errors, name), errors.BackboneError)
    assert issubclass(errors.InputError, ValueError)
    assert issubclass(errors.RateLimitedError, errors.SourceError)
    assert issubclass(errors.CorruptPartitionError, errors.StoreError)


def test_import_is_light_and_starts_nothing() -> None:
    """`import backbone` loads no heavy package and starts no thread."""
    code = (
        "import sys, threading, backbone\n"
        "heavy = {'pandas', 'polars', 'pyarrow', 'requests', 'ipywidgets', 'joblib', 'numpy', 'aiohttp'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert threading.active_count() == 1\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT, timeout=60)


def test_client_import_leaves_frames_and_widgets_alone() -> None:
    """Making a client loads neither pandas, Polars, widgets nor the embedded exchange's server."""
    code = (
        "import sys, backbone\n"
        "backbone.Backbone().close()\n"
        "heavy = {'pandas', 'polars', 'ipywidgets', 'anywidget', 'joblib', 'aiohttp', 'tqdm', 'websocket'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT, timeout=60)
