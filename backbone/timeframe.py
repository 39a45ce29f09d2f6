"""Candle lengths: parsing their spellings, and calendar arithmetic on their opens, in UTC.

The venue serves thirteen lengths (`TIMEFRAMES`). Any other that divides a day is derived: folded from the longest of
those that divides it, its `base`, on a grid that begins at 00:00 UTC (09:00 in Korea).

A `Timeframe` knows where candles begin (`floor`), where the next one begins (`next`), how many slots a span has
(`count`), the directory it is stored under and the length of its storage period. Weeks open on Monday, months on the
1st, years on 1 January, all at 00:00 UTC, as the venue has it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Literal

import msgspec
import numpy as np

from backbone.errors import InputError
from backbone.model import Span

__all__ = ["TIMEFRAMES", "Timeframe", "parse_timeframe", "period_name", "period_of", "periods_in"]

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
WEEK_US = 7 * DAY_US
_MONDAY_US = 4 * DAY_US  # 1970-01-05, the first Monday

_CALENDAR: dict[str, Literal["M", "Y"]] = {"1M": "M", "1y": "Y"}  # numpy datetime64 units


class Timeframe(msgspec.Struct, frozen=True):
    """One candle length.

    ``step_us`` is exact for all but months and years, where it is the longest possible length (31, 366 days).
    ``directory`` never parses as a number, so no engine reads it as one. ``period`` is the storage partition's length:
    ``"day"``, ``"month"``, ``"year"`` or ``"all"``, so that a partition holds some ten thousand rows.
    """

    name: str
    step_us: int
    directory: str
    period: str

    def __str__(self) -> str:
        return self.name

    @property
    def base(self) -> Timeframe | None:
        """The venue's timeframe that this one is folded from; None for the venue's own."""
        if self.name in TIMEFRAMES:
            return None
        return max((t for t in _DAILY if self.step_us % t.step_us == 0), key=lambda t: t.step_us)

    @property
    def is_calendar(self) -> bool:
        """Whether its candles differ in length (months, years)."""
        return self.name in _CALENDAR

    def floor(self, time_us: int) -> int:
        """Open of the candle that contains `time_us`."""
        if self.name in _CALENDAR:
            return int(self.floor_array(np.array([time_us], dtype=np.int64))[0])
        anchor = _MONDAY_US if self.name == "1w" else 0
        return (time_us - anchor) // self.step_us * self.step_us + anchor

    def floor_array(self, times_us: Any) -> Any:
        """`floor` of an int64 array."""
        if self.name in _CALENDAR:
            stamps = times_us.astype("datetime64[us]").astype(f"datetime64[{_CALENDAR[self.name]}]")
            return stamps.astype("datetime64[us]").astype(np.int64)
        anchor = _MONDAY_US if self.name == "1w" else 0
        return (times_us - anchor) // self.step_us * self.step_us + anchor

    def count_off_grid(self, times_us: Any) -> int:
        """How many of an int64 array are no candle's open."""
        if self.name in _CALENDAR or self.name == "1w":
            return int(np.count_nonzero(self.floor_array(times_us) != times_us))
        return int(np.count_nonzero(times_us % self.step_us))

    def ceil(self, time_us: int) -> int:
        """The first candle open at or after `time_us`."""
        floor = self.floor(time_us)
        return floor if floor == time_us else self.next(floor)

    def next(self, open_us: int, n: int = 1) -> int:
        """Open of the candle `n` after the one that opens at `open_us` (`n` may be negative)."""
        unit = _CALENDAR.get(self.name)
        if unit is None:
            return open_us + n * self.step_us
        stamp = np.datetime64(open_us, "us").astype(f"datetime64[{unit}]") + np.timedelta64(n, unit)
        return int(stamp.astype("datetime64[us]").astype(np.int64))

    def count(self, span: Span) -> int:
        """How many candle opens lie in `span`."""
        first, last = self.ceil(span.start), self.ceil(span.end)
        unit = _CALENDAR.get(self.name)
        if unit is None:
            return max(0, (last - first) // self.step_us)
        a, b = (np.datetime64(t, "us").astype(f"datetime64[{unit}]").astype(np.int64) for t in (first, last))
        return max(0, int(b - a))


TIMEFRAMES: dict[str, Timeframe] = {
    t.name: t
    for t in (
        Timeframe("1s", SECOND_US, "second", "day"),
        Timeframe("1m", MINUTE_US, "minute1", "month"),
        Timeframe("3m", 3 * MINUTE_US, "minute3", "month"),
        Timeframe("5m", 5 * MINUTE_US, "minute5", "month"),
        Timeframe("10m", 10 * MINUTE_US, "minute10", "year"),
        Timeframe("15m", 15 * MINUTE_US, "minute15", "year"),
        Timeframe("30m", 30 * MINUTE_US, "minute30", "year"),
        Timeframe("1h", HOUR_US, "minute60", "year"),
        Timeframe("4h", 4 * HOUR_US, "minute240", "all"),
        Timeframe("1d", DAY_US, "day", "all"),
        Timeframe("1w", WEEK_US, "week", "all"),
        Timeframe("1M", 31 * DAY_US, "month", "all"),
        Timeframe("1y", 366 * DAY_US, "year", "all"),
    )
}

_DAILY = tuple(t for t in TIMEFRAMES.values() if t.step_us < DAY_US)  # what a derived length can be made of

_WORDS = {
    "second": "1s", "seconds": "1s", "minute": "1m", "minutes": "1m", "hour": "1h", "hours": "1h", "day": "1d",
    "days": "1d", "week": "1w", "weeks": "1w", "month": "1M", "months": "1M", "year": "1y", "years": "1y",
}  # fmt: skip
_UNITS = {
    "s": "s", "sec": "s", "second": "s", "seconds": "s", "S": "s",
    "m": "m", "min": "m", "minute": "m", "minutes": "m", "T": "m",
    "h": "h", "H": "h", "hour": "h", "hours": "h",
    "d": "d", "D": "d", "day": "d", "days": "d",
    "w": "w", "W": "w", "week": "w", "weeks": "w",
    "M": "M", "mo": "M", "month": "M", "months": "M",
    "y": "y", "Y": "y", "year": "y", "years": "y",
}  # fmt: skip
_UNIT_US = {"s": SECOND_US, "m": MINUTE_US, "h": HOUR_US, "d": DAY_US, "w": WEEK_US}
_SPELLINGS = "60m 240m 1min 1H minute1 minutes/1 60 day week month year"


def parse_timeframe(value: object, *, derived: bool = False) -> Timeframe:
    """The timeframe a spelling means: ``"1m"``, ``"60m"``, ``"1min"``, ``"minute1"``, ``"minutes/1"``, ``"60"``, ….

    Case matters where it must: ``"1M"`` is a month, ``"1m"`` a minute; a bare number is minutes, as in the venue's
    paths.

    Parameters
    ----------
    value : a spelling, or a `Timeframe`.
    derived : also take any other length that divides a day, such as ``"2h"`` or ``"45m"``.

    Raises
    ------
    InputError  for anything else; a length that does not divide a day names the resampling to use.

    Examples
    --------
    >>> parse_timeframe("240m").name, parse_timeframe("1H").name, parse_timeframe("2h", derived=True).base.name
    ('4h', '1h', '1h')
    """
    if isinstance(value, Timeframe):
        found: Timeframe | None = value
    else:
        found = _read_timeframe(value)
    if found is None or (found.name not in TIMEFRAMES and not derived):
        allowed = "one of " + " ".join(TIMEFRAMES) + f" (also spelled {_SPELLINGS})"
        if derived:
            allowed += ", or another length that divides a day, such as 2h or 45m"
        elif found is not None:
            allowed += f"; {found} is folded from {found.base}, which is what is stored"
        raise InputError("timeframe", value, allowed)
    return found


def _read_timeframe(value: object) -> Timeframe | None:
    """What a spelling means; None for what is none. Raises `InputError` for a length that cannot be folded."""
    if not isinstance(value, str):
        return None
    text = value.strip()
    text = _WORDS.get(text, text)
    if match := re.fullmatch(r"(second|minute|hour|day|week|month)s?/?(\d+)", text):
        text = match.group(2) + _UNITS[match.group(1)]
    match = re.fullmatch(r"(\d{1,5})\s*([A-Za-z]*)", text)
    if match is None or int(match.group(1)) == 0:
        return None
    number, unit = int(match.group(1)), _UNITS.get(match.group(2) or "m")
    if unit is None:
        return None
    if unit in "My":
        return TIMEFRAMES.get(f"{number}{unit}") or _not_a_day(value, number, unit)
    step_us = number * _UNIT_US[unit]
    for own in TIMEFRAMES.values():
        if own.step_us == step_us and not own.is_calendar:
            return own
    if DAY_US % step_us:
        return _not_a_day(value, number, unit)
    seconds = step_us // SECOND_US
    name = f"{seconds // 3600}h" if seconds % 3600 == 0 else f"{seconds // 60}m" if seconds % 60 == 0 else f"{seconds}s"
    return Timeframe(name, step_us, f"derived-{name}", "none")


def _not_a_day(value: object, number: int, unit: str) -> Timeframe:
    """A length that does not divide a day: nothing says where its candles would begin."""
    base = {"s": "1s", "m": "1m", "h": "1h", "w": "1w", "M": "1M", "y": "1y"}.get(unit, "1d")
    rule = {"m": "min", "M": "MS", "y": "YS", "w": "W-MON"}.get(unit, unit if unit != "d" else "D")
    how = f'df.resample("{number}{rule}").agg({{"open": "first", "high": "max", "low": "min", "close": "last", …}})'
    raise InputError("timeframe", value, f"a length that divides a day; or ask for {base} and resample: {how}")


_PERIOD_UNITS: dict[str, Literal["D", "M", "Y"]] = {"day": "D", "month": "M", "year": "Y"}


def period_of(timeframe: Timeframe, time_us: int) -> Span:
    """The storage period that `time_us` falls in. For ``"all"`` it is everything the epoch can hold."""
    return Span(0, 1 << 62) if timeframe.period == "all" else _period_of(timeframe.period, time_us // DAY_US)


@lru_cache(maxsize=4096)  # the same days are looked at over and over
def _period_of(name: str, day: int) -> Span:
    unit = _PERIOD_UNITS[name]
    stamp = np.datetime64(day, "D").astype(f"datetime64[{unit}]")
    after = stamp + np.timedelta64(1, unit)
    start, end = (int(s.astype("datetime64[us]").astype(np.int64)) for s in (stamp, after))
    return Span(start, end)


@lru_cache(maxsize=4096)  # the same few hundred periods are named over and over
def period_name(timeframe: Timeframe, period: Span) -> str:
    """A period's directory value: ``day-2024-05-01``, ``month-2024-05``, ``year-2024`` or ``all``.

    Never a bare number or date, so that no engine infers another type than text.
    """
    if timeframe.period == "all":
        return "all"
    stamp = np.datetime64(period.start, "us").astype(f"datetime64[{_PERIOD_UNITS[timeframe.period]}]")
    return f"{timeframe.period}-{stamp}"


@lru_cache(maxsize=256)  # all markets of a call are asked for the same span
def periods_in(timeframe: Timeframe, span: Span) -> tuple[Span, ...]:
    """The storage periods that `span` touches, in time order (none for an empty span)."""
    found: list[Span] = []
    at = span.start
    while at < span.end:
        period = period_of(timeframe, at)
        found.append(period)
        at = period.end
    return tuple(found)
