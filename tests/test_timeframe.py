"""What people write for a candle's length, and where candles of each length open."""

from __future__ import annotations

import numpy as np
import pytest

from backbone.errors import InputError
from backbone.model import Span
from backbone.timeframe import DAY_US, HOUR_US, MINUTE_US, TIMEFRAMES, parse_timeframe


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("1m", "1m"), ("1M", "1M"), ("60m", "1h"), ("240m", "4h"), ("minute1", "1m"), ("minutes/5", "5m"),
        ("minute60", "1h"), ("day", "1d"), ("days", "1d"), ("1D", "1d"), ("week", "1w"), ("1W", "1w"), ("month", "1M"),
        ("1mo", "1M"), ("year", "1y"), ("1Y", "1y"), ("1H", "1h"), ("1min", "1m"), ("60", "1h"),
        ("5", "5m"), ("15min", "15m"), ("4H", "4h"), ("1440m", "1d"), ("24h", "1d"), ("7d", "1w"), ("second", "1s"),
        ("60s", "1m"), ("seconds/1", "1s"),
    ],
)  # fmt: skip
def test_timeframe_spellings_mean_one_thing(spelling: object, name: str) -> None:
    """Each spelling that people use is read as one of the venue's lengths; a month is never a minute."""
    assert parse_timeframe(spelling) is TIMEFRAMES[name]


@pytest.mark.parametrize(
    ("spelling", "name", "base"),
    [
        ("2h", "2h", "1h"), ("120m", "2h", "1h"), ("6h", "6h", "1h"), ("8h", "8h", "4h"), ("12h", "12h", "4h"),
        ("45m", "45m", "15m"), ("2m", "2m", "1m"), ("20m", "20m", "10m"), ("90m", "90m", "30m"), ("3h", "3h", "1h"),
        ("30s", "30s", "1s"), ("12H", "12h", "4h"),
    ],
)  # fmt: skip
def test_timeframe_that_divides_a_day_is_made_of_the_longest_that_divides_it(
    spelling: str, name: str, base: str
) -> None:
    """A derived length opens on the grid of the UTC day and says what it is folded from."""
    found = parse_timeframe(spelling, derived=True)
    assert (found.name, found.base) == (name, TIMEFRAMES[base])
    assert found.floor(DAY_US + found.step_us + 1) == DAY_US + found.step_us
    assert found.count(Span(0, DAY_US)) == DAY_US // found.step_us
    with pytest.raises(InputError):
        parse_timeframe(spelling)


@pytest.mark.parametrize("spelling", ["7m", "2d", "5h", "3w", "2M", "11s", "2y", "7"])
def test_timeframe_that_does_not_divide_a_day_names_the_resampling(spelling: str) -> None:
    """Nothing says where such candles begin, so the error shows how to make them."""
    with pytest.raises(InputError, match="resample"):
        parse_timeframe(spelling, derived=True)


@pytest.mark.parametrize("spelling", ["", "0m", "m", "1x", "minute", None, 1.5, True, 60, "1 m m", "-1m", "1mM"])
def test_timeframe_that_is_none_is_refused_with_what_is_allowed(spelling: object) -> None:
    """What is no length is an error that lists the lengths; the bare word ``minute`` is one."""
    if spelling == "minute":
        assert parse_timeframe(spelling).name == "1m"
        return
    with pytest.raises(InputError, match="1m"):
        parse_timeframe(spelling, derived=True)


def test_timeframes_of_the_venue_have_no_base() -> None:
    """What the venue serves is asked for."""
    assert all(timeframe.base is None for timeframe in TIMEFRAMES.values())
    assert HOUR_US == 60 * MINUTE_US


def test_folded_length_where_stored_ones_are_meant_names_what_is_stored() -> None:
    """Adopting, updating and proving are of files; a length that has none says from which it comes."""
    with pytest.raises(InputError, match="2h is folded from 1h, which is what is stored"):
        parse_timeframe("2h")


@pytest.mark.parametrize("name", TIMEFRAMES)
def test_times_off_the_grid_are_those_that_their_floor_changes(name: str) -> None:
    """Opens of any length are on their grid, a second or a day later they mostly are not."""
    timeframe = TIMEFRAMES[name]
    first = timeframe.floor(1_709_251_199 * 1_000_000)  # a second before March of a leap year
    opens = np.array([timeframe.next(first, n) for n in range(20)])
    assert timeframe.count_off_grid(opens) == 0
    for shift in (1, 1_000_000, DAY_US):
        assert timeframe.count_off_grid(opens + shift) == sum(timeframe.floor(t) != t for t in (opens + shift).tolist())
