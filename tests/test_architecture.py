"""The floor plan, held by tests: which way imports point, where threads and the environment are allowed, how long a
file may be; then the public names, and what an import costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import backbone
from backbone.venues import VENUES

PACKAGE = Path(backbone.__file__).parent
ROOT = PACKAGE.parent
TESTS = ROOT / "tests"
LEAVES = {"errors", "imports", "model", "timeframe", "settings", "clock", "locks", "venues", "candle_table"}
ALLOWED = {
    "api": {"api", "coordinator", "storage", "routing"} | LEAVES,
    "coordinator": {"coordinator", "storage", "routing"} | LEAVES,
    "storage": {"storage"} | LEAVES,
    "routing": {"routing"} | LEAVES,
    "simulator": {"simulator"} | LEAVES,
    "compat": {"compat", "api", "coordinator"} | LEAVES,
    "testing": {"simulator", "api"} | LEAVES,
}
# The places that open the embedded exchange for a person: the demo client, and the command line.
OPENS_THE_SIMULATOR = {"api/demo.py", "api/cli/main.py"}
# Inside a layer, a room imports its own and those before it in this order.
ORDER = {
    "api": ["format convert rounding", "arguments frames", "session", "notebook", "calls", "demo", "client", "cli"],
    "coordinator": [
        "quota queue metrics units",
        "permits",
        "scheduler",
        "steps",
        "market_log markets renames",
        "candles",
        "live",
        "coordinator",
    ],
}
QUOTA_KNOWS = {"quota"} | LEAVES
QUEUE_KNOWS = {"queue"} | LEAVES
MAY_START_THREADS = {
    "coordinator/scheduler.py",
    "routing/stream.py",
    "api/calls/live.py",
    "api/calls/prometheus.py",
    "api/session.py",  # closes a session that was collected, where no lock is held
}
LONGEST_FILE = 700
MOST_METHODS = 30
# What a docstring says of a file or class that is longer than that: "One file because …", "One class because …".
REASON = " because "


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__main__.py")


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in modules()}


def every(check: Callable[[Path], None]) -> Callable[[], None]:
    """One test of a rule that each module keeps; it names all that do not."""

    def test() -> None:
        broken = []
        for path in modules():
            try:
                check(path)
            except AssertionError as error:
                broken.append(str(error))
        assert not broken, "\n".join(broken)

    test.__name__, test.__doc__ = check.__name__, check.__doc__
    return test


@cache
def imported(path: Path) -> frozenset[str]:
    """The modules of backbone that a module imports: anywhere in it, lazily or for a type checker's eyes too."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{place(path)}: a relative import"
            for name in (alias.name for alias in node.names):
                full = f"{node.module}.{name}"
                public = backbone._HOMES.get(name) if node.module == "backbone" else None
                found.add(full if full in MODULES else public or str(node.module))
    return frozenset(name for name in found if name in MODULES)


def circles() -> Iterator[set[str]]:
    """The groups of modules that import each other, by whatever detour."""

    def reached(name: str) -> set[str]:
        found: set[str] = set()
        ahead = [name]
        while ahead:
            for other in imported(MODULES[ahead.pop()]) - found:
                found.add(other)
                ahead.append(other)
        return found

    reach = {name: reached(name) for name in MODULES}
    seen: set[str] = set()
    for name in MODULES:
        if name in reach[name] and name not in seen:
            group = {other for other in reach[name] if name in reach[other]}
            seen |= group
            yield group


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Whoever reads one module needs those below it, never the one that he came from."""
    found = list(circles())
    assert not found, "\n".join(" ".join(sorted(group)) for group in found)


@every
def test_imports_point_downwards_only(path: Path) -> None:
    """api → coordinator → {storage, routing}; leaves import leaves; nothing but the demo and the command line knows
    the simulator."""
    where = place(path)
    part = where.split("/")[0].removesuffix(".py")
    if part == "__init__":
        return
    wrong = {name.split(".")[1] for name in imported(path) if "." in name} - ALLOWED.get(part, LEAVES)
    if where in OPENS_THE_SIMULATOR:
        wrong -= {"simulator"}
    assert not wrong, f"{where} imports {sorted(wrong)}"


def room(name: str) -> tuple[str, int]:
    """The layer of a module, and how high in it its room stands."""
    layer, _, rest = name.removeprefix("backbone.").partition(".")
    first = rest.split(".")[0]
    height = next((i for i, rooms in enumerate(ORDER[layer]) if first in rooms.split()), -1)
    assert height >= 0, f"{name} stands in no room of house.md: give it a height in ORDER"
    return layer, height


@every
def test_imports_point_downwards_inside_a_layer(path: Path) -> None:
    """Inside api and coordinator a room imports its own and lower ones; see ORDER."""
    name, where = dotted(path), place(path)
    layer = where.split("/")[0]
    if layer not in ORDER or name.count(".") < 2:
        return
    _, height = room(name)
    inside = {other for other in imported(path) if other.startswith(f"backbone.{layer}.")}
    wrong = {other for other in inside if room(other)[1] > height}
    assert not wrong, f"{where} imports {sorted(wrong)}"


@every
def test_quota_and_queue_know_types_only(path: Path) -> None:
    """The rate rules and the waiting queue know neither storage nor routing."""
    where = place(path)
    knows = {"coordinator/quota/": QUOTA_KNOWS, "coordinator/queue.py": QUEUE_KNOWS}
    for prefix, allowed in knows.items():
        if where.startswith(prefix):
            names = {name.removeprefix("backbone.coordinator.").removeprefix("backbone.") for name in imported(path)}
            assert {name.split(".")[0] for name in names} <= allowed, where


@every
def test_threads_live_where_they_are_known(path: Path) -> None:
    """Threads are made where MAY_START_THREADS says (the simulator's server aside)."""
    where = place(path)
    if where in MAY_START_THREADS or where.startswith("simulator/"):
        return
    text = path.read_text(encoding="utf-8")
    for maker in ("Thread(", "Timer(", "ThreadPoolExecutor", "start_new_thread"):
        assert maker not in text, f"{where}: {maker}"


@every
def test_only_settings_reads_the_environment(path: Path) -> None:
    """What an environment variable means is decided in settings.py."""
    where = place(path)
    if where == "settings.py":
        return
    readers = {"environ", "environb", "getenv", "getenvb"}
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            assert not {alias.name for alias in node.names} & readers, f"{where}:{node.lineno} reads the environment"
        if isinstance(node, ast.Attribute):
            assert node.attr not in readers, f"{where}:{node.lineno} reads the environment"


@every
def test_no_module_asks_for_a_venue_by_name(path: Path) -> None:
    """What differs between venues is a fact of its record in venues.py: nobody compares names or keeps a table."""
    where = place(path)
    if where == "venues.py":
        return
    for node in nodes(path):
        if isinstance(node, ast.Compare):
            words = [leaf for part in (node.left, *node.comparators) for leaf in ast.walk(part)]
        elif isinstance(node, ast.Dict):
            words = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.MatchValue):
            words = [node.value]
        else:
            continue
        named = {word.value for word in words if isinstance(word, ast.Constant)} & set(VENUES)
        assert not named, f"{where}:{getattr(node, 'lineno', 0)} asks for {sorted(named)}"


@every
def test_no_file_is_longer_than_a_reader_can_hold(path: Path) -> None:
    """A file over 700 lines says in its docstring why it is one file."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    has_reason = f"One file{REASON}" in " ".join((ast.get_docstring(tree(path)) or "").split())
    assert lines <= LONGEST_FILE or has_reason, f"{place(path)} has {lines} lines"


@every
def test_no_class_has_more_methods_than_a_reader_can_hold(path: Path) -> None:
    """A class over 30 methods says in its docstring why it is one class."""
    for node in nodes(path):
        if not isinstance(node, ast.ClassDef):
            continue
        count = sum(isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) for part in node.body)
        has_reason = f"One class{REASON}" in " ".join((ast.get_docstring(node) or "").split())
        assert count <= MOST_METHODS or has_reason, f"{place(path)}: {node.name} has {count} methods"


@every
def test_module_has_a_test_module_of_its_own(path: Path) -> None:
    """tests/ mirrors the package: backbone/api/calls/scan.py is tested in tests/api/calls/test_scan.py."""
    where = Path(place(path))
    if where.name == "__init__.py":
        return
    mirror = TESTS / where.with_name(f"test_{where.name}")
    assert mirror.is_file(), f"{where} has no {mirror.relative_to(ROOT)}"
    has_tests = re.search(r"^ *def test_", mirror.read_text(encoding="utf-8"), re.M)
    assert has_tests, f"{mirror.relative_to(ROOT)} tests nothing"


@every
def test_every_module_says_what_it_decides(path: Path) -> None:
    """A module docstring answers in a paragraph what decision lives there."""
    assert (ast.get_docstring(tree(path)) or "").strip(), place(path)


def test_public_names_are_the_contract() -> None:
    """`dir(backbone)` shows the public names only, and each of them resolves."""
    assert dir(backbone) == sorted(backbone.__all__)
    for name in backbone.__all__:
        assert getattr(backbone, name) is not None
    promised = {"Backbone", "Priority", "DataType", "errors", "BackboneRequest", "BackboneResponse"}
    assert promised <= set(backbone.__all__)


def test_import_is_light_and_starts_nothing() -> None:
    """`import backbone` loads no heavy package and starts no thread."""
    code = (
        "import sys, threading, backbone\n"
        "heavy = {'pandas', 'polars', 'pyarrow', 'requests', 'ipywidgets', 'joblib', 'numpy', 'aiohttp'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert threading.active_count() == 1\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT, timeout=110)


def test_client_import_leaves_frames_and_widgets_alone() -> None:
    """Making a client loads neither pandas, Polars, widgets nor the embedded exchange's server."""
    code = (
        "import sys, backbone\n"
        "backbone.Backbone().close()\n"
        "heavy = {'pandas', 'polars', 'ipywidgets', 'anywidget', 'joblib', 'aiohttp', 'tqdm', 'websocket'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT, timeout=110)
