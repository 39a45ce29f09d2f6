"""What is held, without a request."""

from __future__ import annotations

from pathlib import Path

from backbone.coordinator.candles.ranges import Range
from backbone.coordinator.candles.reader import incomplete
from backbone.errors import (
    CorruptPartitionError,
)
from backbone.model import Span
from tests.coordinator.candles.world import (
    HOUR_US,
    MARKET,
    MINUTE,
    NOW,
    World,
)


def test_damaged_file_is_named_where_nobody_was_asked(tmp_path: Path) -> None:
    """What a damaged file held is missing because of that, and the error says so; the rest was simply not held."""
    world = World(tmp_path)
    start, end = NOW - 5 * HOUR_US, MINUTE.floor(NOW)
    world.candles(start, end)
    world.store.close()
    (path,) = world.store.paths(MARKET, MINUTE, Span(start, end))
    Path(path).write_bytes(b"no parquet")
    world.open()
    (answer,) = world.ranges.recall([MARKET], MINUTE, Range(start, end, None))
    error = incomplete([answer], MINUTE)
    assert error is not None
    (cause,) = error.causes
    assert isinstance(cause, CorruptPartitionError)
    assert cause.path == str(path)
    assert "was damaged" in str(error)
    (other,) = world.ranges.recall([MARKET], MINUTE, Range(start - 90 * 24 * HOUR_US, end - 80 * 24 * HOUR_US, None))
    error = incomplete([other], MINUTE)
    assert error is not None
    assert error.causes == ()
    assert "not held" in str(error)
