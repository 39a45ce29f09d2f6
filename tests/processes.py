"""Other processes of a test, forked from one that has imported: before it does anything, an interpreter of its own has
taken a second of a processor.

The first that is wanted starts the process from which it and all others of this run's worker are forked.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

__all__ = ["CONTEXT", "process"]

CONTEXT = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
CONTEXT.set_forkserver_preload([
    "backbone.api.client", "backbone.api.demo", "pandas", "polars", "pyarrow.parquet", "pytest", "requests",
    "tests.stress.store_world", "tests.processes",
])  # fmt: skip


def process(target: Callable[..., Any], *args: Any, daemon: bool = False) -> BaseProcess:
    """A process that is not started yet. It will have this one's environment, as a program that is started has."""
    return CONTEXT.Process(target=_run, args=(dict(os.environ), target, args), daemon=daemon)


def _run(environment: dict[str, str], target: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*args)
