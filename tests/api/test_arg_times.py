"""What people write for a time."""

from __future__ import annotations

import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.api.arguments import in_zone, parse_time
from backbone.errors import InputError

NOW = 1_755_853_200_000_000  # 2025-08-22T09:00:00Z
SEOUL = "Asia/Seoul"
HOUR = 3_600_000_000
MARCH = 1_709_218_800_000_000  # 2024-03-01T00:00:00+09:00


def parsed(value: Any, zone: str = SEOUL) -> int:
    return parse_time("start", value, zone, lambda: NOW)


@pytest.mark.parametrize(
    "value",
    [
        "2024-03",
        "2024-03-01",
        "2024-03-01T00:00",
        "2024-03-01 00:00:00",
        "20240301",
        "2024-02-29T15:00:00Z",
        "2024-02-29T15:00:00+00:00",
        " 2024-03-01T00:00:00+09:00 ",
        "2024-02-29T10:00:00-05:00",
        dt.date(2024, 3, 1),
        dt.datetime(2024, 2, 29, 15, tzinfo=dt.UTC),
        dt.datetime(2024, 3, 1, tzinfo=ZoneInfo(SEOUL)),
        pd.Timestamp("2024-03-01"),
        pd.Timestamp("2024-02-29T15:00", tz="UTC"),
        pd.Timestamp("2024-03-01T00:00:00.000000999", tz=SEOUL),
        np.datetime64("2024-03-01"),
        np.datetime64("2024-03-01T00:00:00", "ns"),
    ],
)
def test_spellings_of_one_instant_are_one_instant(value: Any) -> None:
    """Naive means the client's zone, a month its first instant, nanoseconds are dropped."""
    assert parsed(value) == MARCH


@pytest.mark.parametrize(
    ("value", "ago_us"),
    [("3d", 72 * HOUR), ("3h", 3 * HOUR), ("90m", 90 * 60_000_000), ("90min", 90 * 60_000_000), ("1.5h", HOUR * 3 // 2),
     ("45 s", 45_000_000), ("2w", 14 * 24 * HOUR), ("now", 0)],
)  # fmt: skip
def test_relative_times_count_back_from_now(value: str, ago_us: int) -> None:
    """That long ago, on the venue's clock."""
    assert parsed(value) == NOW - ago_us


def test_only_relative_times_ask_for_now() -> None:
    """An absolute time needs no clock, and so no request to the venue."""

    def nobody() -> int:
        raise AssertionError("asked")

    assert parse_time("start", "2024-03-01", SEOUL, nobody) == MARCH


@pytest.mark.parametrize(
    "value",
    ["", "yesterday", "2024-13", "2024-02-30", "24:00", "3x", "-3d", "9" * 400 + "d", "2024-03-01T25:00", None, 5,
     1.7e9, True, dt.time(3), dt.timedelta(1), pd.NaT, np.datetime64("NaT", "us"), np.datetime64(2**62, "us"),
     [], b"2024-03-01"],
)  # fmt: skip
def test_what_is_no_time_is_refused(value: Any) -> None:
    """With the argument's name and what would do; numbers are refused: seconds or milliseconds, nobody knows."""
    with pytest.raises(InputError) as caught:
        parsed(value)
    assert caught.value.argument == "start"
    assert "2024-03-01" in caught.value.allowed


@pytest.mark.parametrize(
    "value", [pd.Timestamp.min, pd.Timestamp.max, dt.datetime(9999, 12, 31, 23, tzinfo=dt.UTC), dt.date(1, 1, 1)]
)
def test_times_at_the_ends_of_their_type_are_times(value: Any) -> None:
    """Nothing overflows."""
    assert isinstance(parsed(value), int)


@given(
    time_us=st.integers(0, 4_000_000_000_000_000),
    zone=st.sampled_from(["UTC", SEOUL, "America/New_York", "Europe/London", "Asia/Kathmandu", "Australia/Lord_Howe"]),
)
def test_shown_times_round_trip_in_every_zone(time_us: int, zone: str) -> None:
    """What is shown may be given back: exactly the same instant, as a datetime, a Timestamp or text."""
    shown = in_zone(time_us, zone)
    for value in (shown, pd.Timestamp(shown), shown.isoformat()):
        assert parsed(value, zone) == time_us
    assert shown.tzinfo == ZoneInfo(zone)
