"""``python -m backbone.simulator``: the same as ``backbone simulator``."""

from __future__ import annotations

import io
import sys

from backbone.simulator.cli import run

if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a console lacks
    sys.exit(run())
