"""Where the recorded venue data lies: a folder beside the checkout, never in it (most of it carries no
licence).

``BACKBONE_RECORDINGS`` names another place. A test that asks for the `recordings` fixture is skipped, with
the reason, where the folder is absent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["RECORDINGS", "frames_of", "recordings", "rows_of"]

RECORDINGS = Path(os.environ.get("BACKBONE_RECORDINGS") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def recordings() -> Path:
    """The folder that holds ``candles/``, ``trades/`` and ``raw/``."""
    if not (RECORDINGS / "raw").is_dir():
        pytest.skip(f"no recorded venue data in {RECORDINGS} (set BACKBONE_RECORDINGS)")
    return RECORDINGS


def frames_of(path: Path) -> Iterator[bytes]:
    """The socket frames of one recorded JSON-lines file, as bytes, each number spelled as it was received.

    Lines are either the frame itself or an object that holds it as ``frame``, followed by nothing else.
    """
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            _, is_wrapped, frame = line.partition('"frame":')
            yield (frame.rstrip()[:-1] if is_wrapped else line).encode()


def rows_of(path: Path) -> Any:
    """A recorded REST body with its numbers as text, exactly as on the wire."""
    return json.loads(path.read_bytes(), parse_float=str, parse_int=str)
