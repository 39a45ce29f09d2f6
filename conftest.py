"""What every run needs before anything of ours is imported: bytecode that is kept, and a quick start of pytest.

Where the environment forbids bytecode, each worker, kernel and child process would compile the package and the tests
anew. nbval is loaded here, after a grammar that it needs nothing of has been put aside.
"""

from __future__ import annotations

import importlib.util
import os
import sys

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# With it jsonschema could check IRIs; loading it builds 38 parsers, two seconds in every process that reads a notebook.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

pytest_plugins = ["nbval.plugin"] if importlib.util.find_spec("nbval") else []
