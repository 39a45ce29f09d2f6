"""Every example in a docstring is run: what the help shows is what happens."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import types
from collections.abc import Iterator
from typing import Any

import pytest

import backbone
from backbone import Backbone
from backbone.simulator import SimulatorServer

LIMIT = 500  # the quota is not what is tested here


def examples() -> Iterator[doctest.DocTest]:
    """The docstrings with examples, of every module that has some: only its source is read of the others, since every
    worker looks."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for info in pkgutil.walk_packages(backbone.__path__, "backbone."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        if ">>>" in inspect.getsource(module):
            yield from (test for test in finder.find(module) if test.examples)
    yield from (test for test in finder.find(backbone) if test.examples)


EXAMPLES = list(examples())


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.name for example in EXAMPLES])
def test_docstring_example_shows_what_happens(example: doctest.DocTest, shared_venue: SimulatorServer) -> None:
    """It is run as printed, with what a reader has at hand: a client, the public names, pandas and Polars."""
    import pandas as pd
    import polars as pl

    with Backbone.demo(server=shared_venue) as client:
        public: dict[str, Any] = {name: getattr(backbone, name) for name in backbone.__all__}
        example.globs = {**public, **example.globs, "client": client, "pd": pd, "pl": pl}
        report: list[str] = []
        failed, _ = doctest.DocTestRunner(verbose=False).run(example, out=report.append, clear_globs=False)
        assert not failed, "".join(report)


def public_calls() -> Iterator[tuple[str, Any]]:
    for name, member in vars(Backbone).items():
        if not name.startswith("_") and isinstance(member, types.FunctionType):
            yield name, member


@pytest.mark.parametrize(("name", "call"), list(public_calls()), ids=[name for name, _ in public_calls()])
def test_public_call_explains_itself(name: str, call: Any) -> None:
    """`help` is enough to use any call of the client: it has a docstring, and says what raises or returns in prose."""
    assert len((call.__doc__ or "").split()) >= 6, name


@pytest.mark.parametrize("name", ["candles", "tickers", "orderbooks", "trades", "live", "chart", "backfill", "scan"])
def test_data_call_has_an_example(name: str) -> None:
    """The calls that people begin with show a line to copy."""
    assert re.search(r"^\s*>>> ", getattr(Backbone, name).__doc__ or "", re.M)  # 3.13 strips the indentation
