"""The package as it is installed: its wheel and its sdist, their size, licence, metadata, and that they run."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the package")
ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 700_000


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the sdist of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True, timeout=100)
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as file:
        return file.namelist()


def test_wheel_is_small_and_holds_the_package_only(built: dict[str, Path]) -> None:
    """At most 700 kB; no tests, no sources of bundled scripts, no data."""
    assert built["wheel"].stat().st_size <= MOST_BYTES
    for page in ("README.md", "README.ko.md"):
        assert f"{MOST_BYTES // 1000} kB" in (ROOT / page).read_text(encoding="utf-8").splitlines()[-1]
    tops = {name.split("/")[0] for name in names(built["wheel"])}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"backbone"}
    assert not [name for name in names(built["wheel"]) if "/src/" in name or "node_modules" in name]
    assert "backbone/py.typed" in names(built["wheel"])


def test_licences_are_in_the_wheel(built: dict[str, Path]) -> None:
    """Our own, and that of the chart library whose code is in it."""
    found = [name for name in names(built["wheel"]) if "licenses/" in name]
    assert {Path(name).name for name in found} == {"LICENSE", "LICENSE-lightweight-charts.txt"}


def test_metadata_says_what_it_is(built: dict[str, Path]) -> None:
    """Licence, Pythons, keywords, links, and a description that index pages render."""
    with zipfile.ZipFile(built["wheel"]) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        facts = Parser().parsestr(file.read(name).decode())
    assert facts["License-Expression"] == "MIT AND Apache-2.0"
    assert facts["Requires-Python"] == ">=3.11"
    assert facts["Description-Content-Type"] == "text/markdown"
    assert "upbit" in facts["Keywords"]
    assert facts.get_all("Project-URL")
    classifiers = facts.get_all("Classifier") or []
    for version in ("3.11", "3.12", "3.13"):
        assert f"Programming Language :: Python :: {version}" in classifiers
    assert "Natural Language :: Korean" in classifiers


def test_sdist_holds_what_the_tests_need(built: dict[str, Path]) -> None:
    """Package, tests, notebooks, licence, changelog."""
    with tarfile.open(built["sdist"]) as file:
        found = {name.partition("/")[2] for name in file.getnames()}
    assert {
        "LICENSE",
        "CHANGELOG.md",
        "README.md",
        "README.ko.md",
        "backbone/__init__.py",
        "tests/conftest.py",
    } <= found


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installed_package_runs(kind: str, built: dict[str, Path], tmp_path: Path) -> None:
    """`pip install` into an empty folder; the command works from there, with its static files."""
    there = tmp_path / "site"
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(there)]
    subprocess.run([sys.executable, *install, str(built[kind])], check=True, timeout=100, capture_output=True)
    code = (
        "import backbone, pathlib\n"
        "from backbone.api.notebook import chart\n"
        "home = pathlib.Path(backbone.__file__).parent\n"
        "assert (home / 'api/notebook/static/chart.js').is_file()\n"
        "with backbone.Backbone.demo() as client:\n"
        "    print(home, len(client.candles('KRW-BTC', '1h', count=3)))\n"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("BACKBONE_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env | {"PYTHONPATH": str(there)},
        check=True,
        timeout=110,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(there / "backbone"), "3"]
