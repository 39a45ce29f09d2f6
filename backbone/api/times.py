"""What people write for a time, and the one place where a naive time gets its zone.

Accepted: ``str`` (ISO, ``"2024-03"``, ``"2024"``, ``"now"``, ``"3d"``/``"90m"``: that long ago), ``date``,
``datetime``, pandas and numpy timestamps. Naive values are in the client's zone; a month or day means its first instant
there. The result is microseconds since the epoch, UTC.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

from backbone.errors import InputError

__all__ = ["TimeLike", "in_zone", "parse_time"]

TimeLike: TypeAlias = "str | dt.date | dt.datetime | Any"

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)")
_AGO_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_PARTIAL = re.compile(r"(\d{4})(?:-(\d{2}))?")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_ALLOWED = "a date or time such as 2024-03-01, 2024-03, 2024-03-01T09:00:00Z, a datetime, or 3d / 12h (that long ago)"


def parse_time(argument: str, value: TimeLike, zone: str, now_us: Callable[[], int]) -> int:
    """Microseconds UTC of `value`; naive values are in `zone`; relative ones count back from `now_us()`."""
    moment = _moment(argument, value, now_us)
    if isinstance(moment, int):
        return moment
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(zone))
    try:
        return (moment - _EPOCH) // _MICROSECOND
    except OverflowError as exc:
        raise InputError(argument, value, _ALLOWED) from exc


def in_zone(time_us: int, zone: str) -> dt.datetime:
    """The aware datetime of `time_us`, shown in `zone`."""
    return (_EPOCH + dt.timedelta(microseconds=time_us)).astimezone(ZoneInfo(zone))


def _moment(argument: str, value: Any, now_us: Callable[[], int]) -> dt.datetime | int:
    if isinstance(value, str):
        return _from_text(argument, value, now_us)
    if hasattr(value, "to_pydatetime"):  # pandas.Timestamp, which is a datetime that knows nanoseconds
        if value != value:  # NaT
            raise InputError(argument, value, _ALLOWED)
        moment: dt.datetime = value.to_pydatetime(warn=False)
        return moment
    if isinstance(value, dt.datetime):
        return value
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day)  # noqa: DTZ001 - the zone is added by the caller
    if type(value).__module__ == "numpy" and type(value).__name__ == "datetime64":
        stamp = value.astype("datetime64[us]").item()
        if isinstance(stamp, dt.datetime):
            return stamp
    raise InputError(argument, value, _ALLOWED)


def _from_text(argument: str, text: str, now_us: Callable[[], int]) -> dt.datetime | int:
    text = text.strip()
    if text == "now":
        return now_us()
    try:
        if match := _AGO.fullmatch(text):
            return now_us() - int(float(match.group(1)) * _AGO_S[match.group(2)] * 1_000_000)
        if match := _PARTIAL.fullmatch(text):
            return dt.datetime(int(match.group(1)), int(match.group(2) or 1), 1)  # noqa: DTZ001 - see above
        return dt.datetime.fromisoformat(text)
    except (ValueError, OverflowError) as exc:
        raise InputError(argument, text, _ALLOWED) from exc
