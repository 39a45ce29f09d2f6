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
        "2024.03.01",
        "2024/03/01",
        "2024.3.1",
        "2024/3/1 00:00",
        "2024.03",
        "2024/03",
        "2024.03.01 00:00:00",
        "2024-3-1T00:00:00+09:00",
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
     ("45 s", 45_000_000), ("2w", 14 * 24 * HOUR), ("now", 0), ("3H", 3 * HOUR), ("3D", 72 * HOUR),
     (dt.timedelta(hours=3), 3 * HOUR), (pd.Timedelta("3h"), 3 * HOUR), (np.timedelta64(90, "m"), 90 * 60_000_000),
     (dt.timedelta(0), 0)],
)  # fmt: skip
def test_relative_times_count_back_from_now(value: Any, ago_us: int) -> None:
    """That long ago, on the venue's clock."""
    assert parsed(value) == NOW - ago_us


@pytest.mark.parametrize(
    ("value", "now", "then"),
    [
        ("today", "2025-08-22T18:00+09:00", "2025-08-22T00:00+09:00"),
        ("yesterday", "2025-08-22T18:00+09:00", "2025-08-21T00:00+09:00"),
        ("Today", "2025-08-22T16:00Z", "2025-08-23T00:00+09:00"),  # by then it is the 23rd in Seoul
        ("1y", "2025-08-22T18:00+09:00", "2024-08-22T18:00+09:00"),
        ("3mo", "2025-08-22T18:00+09:00", "2025-05-22T18:00+09:00"),
        ("1mo", "2025-03-31T12:00+09:00", "2025-02-28T12:00+09:00"),
        ("1y", "2024-02-29T12:00+09:00", "2023-02-28T12:00+09:00"),
        ("12mo", "2025-01-15T00:00+09:00", "2024-01-15T00:00+09:00"),
        ("13mo", "2025-01-15T00:00+09:00", "2023-12-15T00:00+09:00"),
    ],
)
def test_calendar_words_go_by_the_clients_zone(value: str, now: str, then: str) -> None:
    """A day begins at the zone's midnight; a month ago is the same day, or the month's last."""
    now_us = int(pd.Timestamp(now).value // 1000)
    assert pd.Timestamp(parse_time("start", value, SEOUL, lambda: now_us), unit="us", tz="UTC") == pd.Timestamp(then)


def test_calendar_words_keep_the_wall_clock_over_a_clock_change() -> None:
    """A month ago at noon is noon, in a zone that set its clocks in between."""
    now_us = int(pd.Timestamp("2024-03-20 12:00", tz="America/New_York").value // 1000)
    found = parse_time("start", "1mo", "America/New_York", lambda: now_us)
    assert in_zone(found, "America/New_York").isoformat() == "2024-02-20T12:00:00-05:00"


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1754006400000, 'pd.Timestamp(1754006400000, unit="ms", tz="UTC")'),
        (float("nan"), "a number may mean several units"),
        (np.float64("nan"), "a number may mean several units"),
        (1754006400, 'pd.Timestamp(1754006400, unit="s", tz="UTC")'),
        (1754006400.5, 'pd.Timestamp(1754006400.5, unit="s", tz="UTC")'),
        (np.int64(1754006400000000), 'pd.Timestamp(1754006400000000, unit="us", tz="UTC")'),
        ("1754006400000", 'pd.Timestamp(1754006400000, unit="ms", tz="UTC")'),
        ("3M", "3mo for months, 3m for minutes"),
    ],
)
def test_error_shows_how_it_is_written(value: Any, hint: str) -> None:
    """A number with the unit that its size suggests; a letter that means months or minutes with both."""
    with pytest.raises(InputError) as caught:
        parsed(value)
    assert hint in str(caught.value)
    if hint.startswith("pd."):
        assert eval(hint, {"pd": pd}) == pd.Timestamp("2025-08-01", tz="UTC") + pd.Timedelta(seconds=float(value) % 1)


def test_only_relative_times_ask_for_now() -> None:
    """An absolute time needs no clock, and so no request to the venue."""

    def nobody() -> int:
        raise AssertionError("asked")

    assert parse_time("start", "2024-03-01", SEOUL, nobody) == MARCH


@pytest.mark.parametrize(
    "value",
    ["", "tomorrow", "2024-13", "2024-02-30", "24:00", "3x", "-3d", "1.5mo", "2024.03-01",
     "2024.13.01", "01/03/2024", "2024 09:00", "20240", "9999y",
     "9" * 400 + "d", "2024-03-01T25:00", None, 5,
     1.7e9, True, dt.time(3), dt.timedelta(-1), pd.NaT, np.timedelta64("NaT", "s"),
     np.datetime64("NaT", "us"), np.datetime64(2**62, "us"),
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


def test_refused_time_is_shown_as_it_was_written() -> None:
    """The error names what the caller wrote, not what was made of it on the way."""
    with pytest.raises(InputError) as caught:
        parse_time("start", "2025.08.01 09:00 KST", "Asia/Seoul", lambda: 0)
    assert caught.value.value == "2025.08.01 09:00 KST"
