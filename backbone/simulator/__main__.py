"""``python -m backbone.simulator``: the same as ``backbone simulator``."""

from __future__ import annotations

import sys

from backbone.simulator.cli import run

if __name__ == "__main__":
    sys.exit(run())
