"""What is held, without a request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePath

import pytest

from backbone.coordinator.candles.ranges import Range
from backbone.coordinator.candles.reader import incomplete
from backbone.errors import CorruptPartitionError
from backbone.model import Span, empty_candles
from backbone.storage.files import LocalFiles
from backbone.timeframe import TIMEFRAMES, period_name, period_of
from tests.coordinator.candles.world import HOUR_US, MARKET, MINUTE, MINUTE_US, NOW, SECOND, World
from tests.storage.helpers import MAY, candles, minutes, span

HOUR = TIMEFRAMES["1h"]


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


def test_newest_and_oldest_of_a_long_history_read_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two years of months are held; what is asked of one end reads none of the months between."""
    world = World(tmp_path)
    days = [(-43_200 * month - 1440, -43_200 * month) for month in range(24)]  # in minutes before May
    for first, last in reversed(days):
        world.store.put(MARKET, MINUTE, minutes(first, last), span(first, last), now_us=NOW)
    listed = span(*days[-1]).start
    world.store.put(MARKET, MINUTE, empty_candles(), Span(0, listed), now_us=NOW)
    world.store.close()
    reads: list[str] = []
    read = LocalFiles.read
    monkeypatch.setattr(LocalFiles, "read", lambda files, key: reads.append(key) or read(files, key))

    def parts_read(asked: Callable[[World], object]) -> list[str]:
        world.open()
        reads.clear()
        asked(world)
        return sorted({PurePath(key).parent.name for key in reads if key.endswith(".parquet")})

    newest, oldest = (period_of(MINUTE, span(*days[at]).start) for at in (0, -1))
    edges = sorted(f"period={period_name(MINUTE, period)}" for period in (newest, oldest))
    count, hours = Range(None, None, 50), Range(None, None, 5)
    assert parts_read(lambda world: world.ranges.recall([MARKET], MINUTE, count, newest_held=True)) == edges
    assert parts_read(lambda world: world.ranges.recall([MARKET], HOUR, hours, newest_held=True)) == edges[1:]
    assert parts_read(lambda world: world.store.quiet_before(MARKET, MINUTE)) == edges[:1]
    assert parts_read(lambda world: world.store.newest(MARKET, MINUTE)) == edges[1:]
    assert world.store.quiet_before(MARKET, MINUTE) == listed
    assert world.reader.held_until(MARKET, MINUTE, NOW) == MAY
    seconds = Span(span(*days[9]).start, span(*days[9]).start + MINUTE_US)
    opens = range(seconds.start, seconds.end, 1_000_000)
    world.store.put(MARKET, SECOND, candles(opens), seconds, now_us=NOW)
    assert world.reader.held_until(MARKET, SECOND, NOW) == seconds.end, "however far the minutes go"
    assert world.reader.held_until(MARKET, MINUTE, span(*days[3]).start) == span(*days[4]).end
    assert world.reader.held_until("KRW-ETH", MINUTE, NOW) == NOW
