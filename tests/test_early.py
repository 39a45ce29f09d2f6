"""pytest starts from any folder of the repository, and beside other people's packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_pytest_starts_in_a_folder_and_beside_a_foreign_package_of_this_name(tmp_path: Path) -> None:
    """The command `pytest` has not the current folder on its path; a foreign ``tests`` package may be there."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").touch()
    found = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", "test_layout.py"],
        cwd=Path(__file__).parent / "storage",
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "tests/storage/test_layout.py" in found.stdout.replace("\\", "/")
