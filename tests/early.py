"""What every run needs before anything of ours is imported: bytecode that is kept, folders in memory, a quick start.

Where the environment forbids bytecode, each worker, kernel and child process would compile the package and the tests
anew. nbval is loaded here, after a grammar that it needs nothing of has been put aside. Both `conftest.py` import this
before all else.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Tests speak on loopback, and those of proxies and consoles say which; only what builds packages goes outside.
_OUTSIDE = {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "pythonioencoding"}
_found = {name.lower(): os.environ.pop(name) for name in list(os.environ) if name.lower() in _OUTSIDE}
if _proxy := _found.get("https_proxy") or _found.get("http_proxy"):
    os.environ.setdefault("PIP_PROXY", _proxy)

# Every page that is stored is synced; two milliseconds each on a disk, nothing in memory. Bare containers have 64 MB.
_MEMORY = Path("/dev/shm")
if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 4 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

# With it jsonschema could check IRIs; loading it builds 38 parsers, two seconds in every process that reads a notebook.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

gc.disable()  # nothing that collecting the tests makes is garbage, and looking for it was a sixth of its time


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Each `conftest.py` has this hook; whichever pytest reads first loads nbval while there can still be options."""
    if importlib.util.find_spec("nbval"):
        pluginmanager.import_plugin("nbval.plugin")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """The collector wakes, and looks at what the tests make, not at the tests."""
    gc.freeze()
    gc.enable()
