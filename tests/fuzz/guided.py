"""One target under atheris: ``python -m tests.fuzz.guided wire -max_total_time=60``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris


def main() -> None:
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["backbone"]):
        from tests.fuzz.targets import SEEDS, TARGETS
    target = TARGETS[name]
    corpus = Path(tempfile.mkdtemp(prefix=f"backbone-corpus-{name}-"))
    for number, seed in enumerate(SEEDS[name]):
        (corpus / str(number)).write_bytes(seed)

    def one(data: bytes) -> None:
        target(data)

    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
