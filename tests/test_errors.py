"""The error tree: as its docstring prints it, with facts as attributes, through pickles too."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from backbone import errors
from backbone.errors import (
    BackboneError,
    CorruptPartitionError,
    IncompleteError,
    InputError,
    PayloadError,
    RateLimitedError,
    RejectedError,
    StoreBusyError,
    StreamClosedError,
    UnreachableError,
)
from backbone.model import Span

MADE: list[BackboneError] = [
    InputError("count", 0, "a whole number from 1"),
    UnreachableError("no route", url="http://x", attempts=5),
    RateLimitedError("slow down", group="candles", retry_after_s=1.5),
    RejectedError("no", status=404, code="not_found"),
    PayloadError("odd", sample=b"<html>"),
    IncompleteError("part", gaps=[Span(0, 60)], causes=[UnreachableError("no route")]),
    CorruptPartitionError("bad", path="a/b", reason="seal"),
    StoreBusyError("busy", path="a", holder="pid 1"),
    StreamClosedError("over", reason="closed"),
]


def test_error_tree_is_as_printed() -> None:
    """The tree in the docstring is the tree of the classes."""
    for name in errors.__all__:
        assert name in (errors.__doc__ or "")
        assert issubclass(getattr(errors, name), (errors.BackboneError, Warning))
    assert issubclass(errors.InputError, ValueError)
    assert issubclass(errors.RateLimitedError, errors.SourceError)
    assert issubclass(errors.CorruptPartitionError, errors.StoreError)


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_error_passes_through_a_pickle(error: BackboneError) -> None:
    """A worker's error arrives with its message and every fact."""
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is type(error)
    assert str(twin) == str(error)

    def plain(one: BackboneError) -> dict[str, Any]:
        return {name: repr(value) for name, value in vars(one).items()}

    assert plain(twin) == plain(error)


def test_input_error_names_argument_value_and_what_is_allowed() -> None:
    """Its message is enough to correct the call."""
    assert str(MADE[0]) == "count=0 is not valid: a whole number from 1"
