"""Words in: markets, quote currencies, priorities, times, counts, each read once, here.

Markets become ``QUOTE-BASE`` in upper case. Times are accepted as ``str`` (ISO, ``"2024-03"``, ``"2024"``, ``"now"``,
``"3d"``/``"90m"``: that long ago), ``date``, ``datetime``, pandas and numpy timestamps. Naive values are in the
client's zone; a month or day means its first instant there. The result is microseconds since the epoch, UTC. What
cannot be read is an `InputError` that names the argument and what is allowed; no request is made.
"""

from __future__ import annotations

import calendar
import datetime as dt
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias
from zoneinfo import ZoneInfo

import numpy as np

from backbone.errors import InputError
from backbone.model import Priority

__all__ = [
    "DEFAULT_COUNT",
    "TimeLike",
    "as_python",
    "in_zone",
    "parse_age",
    "parse_count",
    "parse_integer",
    "parse_market",
    "parse_markets",
    "parse_priority",
    "parse_quote",
    "parse_time",
    "parse_timeout",
    "parse_whole",
]

DEFAULT_COUNT = 200
"""Rows of a call that names neither a start nor a count."""

_CODE = re.compile(r"[A-Z0-9]{1,12}-[A-Z0-9._]{1,20}")
_MARKETS = "a market such as KRW-BTC (krw-btc, BTC/KRW and BTC are read as that)"


def parse_market(value: object, home: str) -> str:
    """``"krw-btc"``, ``"BTC/KRW"``, ``"BTC"`` → ``"KRW-BTC"``. Only the spelling is checked, not the listing."""
    if not isinstance(value, str):
        raise InputError("market", value, _MARKETS)
    text = value.strip().upper()
    if "/" in text:
        base, _, quote = text.partition("/")
        text = f"{quote}-{base}"
    elif "-" not in text:
        text = "" if text == home or "_" in text else f"{home}-{text}"
    if not _CODE.fullmatch(text) or text.endswith(".") or not text.rpartition("-")[2].strip("._"):
        raise InputError("market", value, _MARKETS)
    return text


def parse_markets(value: str | Iterable[str], home: str) -> list[str]:
    """One market or several, in the order given, each once."""
    if isinstance(value, str):
        return [parse_market(value, home)]
    try:
        items = list(value)
    except TypeError as exc:
        raise InputError("market", value, _MARKETS + ", or a list of them") from exc
    if not items:
        raise InputError("market", value, "at least one market")
    return list(dict.fromkeys(parse_market(item, home) for item in items))


def parse_quote(value: object, home: str) -> str | None:
    """The quote currency that ``"KRW"``, ``"krw"`` or ``"BTC-*"`` means; None where a market is meant.

    A bare code is a quote currency only where it is the exchange's own (``"KRW"``): ``"BTC"`` is a market everywhere.
    """
    if not isinstance(value, str):
        return None
    text = value.strip().upper()
    if text == home:
        return home
    if text.endswith("-*") and text[:-2].isalnum():
        return text[:-2]
    return None


def parse_priority(value: object) -> Priority:
    """A `Priority`, or its name."""
    if isinstance(value, Priority):
        return value
    if isinstance(value, str) and value.lower() in Priority._value2member_map_:
        return Priority(value.lower())
    raise InputError("priority", value, "one of " + ", ".join(p.value for p in Priority))


TimeLike: TypeAlias = "str | dt.date | dt.datetime | Any"

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]+)")
_AGO_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800, "H": 3600, "D": 86400, "W": 604800}
_AGO_MONTHS = {"mo": 1, "y": 12, "Y": 12}
_DAYS = {"today": 0, "yesterday": 1}
_DATE = re.compile(r"(\d{4})(?:([-./])(\d{1,2})(?:\2(\d{1,2}))?)?(?:[T ]+(.+))?")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_TIMES = (
    "a date or time such as 2024-03-01, 2024.03.01, 2024-03, 2024-03-01T09:00:00Z, a datetime, today, yesterday, or"
    " 3d / 12h / 3mo / 1y or a timedelta (that long ago)"
)


def parse_time(argument: str, value: TimeLike, zone: str, now_us: Callable[[], int]) -> int:
    """Microseconds UTC of `value`; naive values are in `zone`; relative ones count back from `now_us()`.

    Days, months and years have their length in `zone`: ``"1mo"`` on 31 March is the last of February, ``"yesterday"``
    its midnight, whatever the clocks did in between.

    Parameters
    ----------
    argument : the name of the argument, for the error.
    value : text, a date, a datetime, a `pandas.Timestamp`, a ``datetime64``, or a length of time (that long ago).
    zone : the zone of naive values and of calendar days.
    now_us : asked only for relative values.

    Raises
    ------
    InputError  for anything else. A number is refused, since it may be seconds or milliseconds; the error shows how it
    is written.
    """
    moment = _moment(argument, value, zone, now_us)
    if isinstance(moment, int):
        return moment
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(zone))
    try:
        return (moment - _EPOCH) // _MICROSECOND
    except OverflowError as exc:
        raise InputError(argument, value, _TIMES) from exc


def in_zone(time_us: int, zone: str | dt.tzinfo) -> dt.datetime:
    """The aware datetime of `time_us`, shown in `zone`."""
    moment = _EPOCH + dt.timedelta(microseconds=time_us)
    return moment.astimezone(ZoneInfo(zone) if isinstance(zone, str) else zone)


def _moment(argument: str, value: Any, zone: str, now_us: Callable[[], int]) -> dt.datetime | int:
    if isinstance(value, str):
        return _from_text(argument, value, zone, now_us)
    if isinstance(value, int | float | np.number) and not isinstance(value, bool | np.timedelta64):
        raise InputError(argument, value, f"{_TIMES}; {_hint(value)}")
    if isinstance(value, np.timedelta64 | dt.timedelta):
        return _ago(argument, value, now_us)
    moment = as_python(value)
    if moment is None:
        raise InputError(argument, value, _TIMES)
    if isinstance(moment, dt.datetime):
        return moment
    return dt.datetime(moment.year, moment.month, moment.day)  # noqa: DTZ001 - the zone is added by the caller


def as_python(value: Any) -> dt.date | None:
    """A date or time of Python's, for one of Python, pandas or numpy (nanoseconds dropped); None for anything else."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if not isinstance(value, dt.date) or value != value:  # NaT differs from itself
        return None
    moment: dt.date = value.to_pydatetime(warn=False) if hasattr(value, "to_pydatetime") else value
    return moment


def _hint(number: Any) -> str:
    """How a number of seconds, milliseconds, … since 1970 is written, judged by its size."""
    size = abs(float(number))
    unit = next((unit for unit, limit in (("s", 1e11), ("ms", 1e14), ("us", 1e17)) if size <= limit), "ns")
    return f'a number may mean several units: write pd.Timestamp({number}, unit="{unit}", tz="UTC")'


def _ago(argument: str, value: dt.timedelta | np.timedelta64, now_us: Callable[[], int]) -> int:
    ago_us = -1 if value != value else int(np.timedelta64(value, "us").astype(np.int64))  # NaT differs from itself
    if ago_us < 0:
        raise InputError(argument, value, _TIMES)
    return now_us() - ago_us


def _from_text(argument: str, text: str, zone: str, now_us: Callable[[], int]) -> dt.datetime | int:
    text = text.strip()
    if text == "now":
        return now_us()
    if text.isdecimal() and len(text) not in (4, 8):
        raise InputError(argument, text, f"{_TIMES}; {_hint(int(text))}" if len(text) < 20 else _TIMES)
    try:
        if text.lower() in _DAYS:
            day = in_zone(now_us(), zone).date() - dt.timedelta(days=_DAYS[text.lower()])
            return dt.datetime(day.year, day.month, day.day)  # noqa: DTZ001 - the zone is added by the caller
        if match := _AGO.fullmatch(text):
            return _long_ago(argument, text, match, zone, now_us)
        if (match := _DATE.fullmatch(text)) and (match[2] or not match[5]):
            day = dt.date(int(match[1]), int(match[3] or 1), int(match[4] or 1))
            if not match[5]:
                return dt.datetime(day.year, day.month, day.day)  # noqa: DTZ001 - see above
            if match[4]:
                return dt.datetime.fromisoformat(f"{day}T{match[5]}")
        return dt.datetime.fromisoformat(text)
    except InputError:
        raise
    except (ValueError, OverflowError) as exc:
        raise InputError(argument, text, _TIMES) from exc


def _long_ago(
    argument: str, text: str, match: re.Match[str], zone: str, now_us: Callable[[], int]
) -> dt.datetime | int:
    """The time that a length such as ``3d``, ``3mo`` or ``1y`` lies back."""
    number, unit = match[1], match[2]
    if unit in _AGO_S:
        return now_us() - int(float(number) * _AGO_S[unit] * 1_000_000)
    if unit == "M":
        raise InputError(argument, text, f"{number}mo for months, {number}m for minutes")
    if unit not in _AGO_MONTHS or "." in number:
        raise InputError(argument, text, _TIMES)
    now = in_zone(now_us(), zone)
    months = now.year * 12 + now.month - 1 - int(number) * _AGO_MONTHS[unit]
    year, month = divmod(months, 12)
    last = calendar.monthrange(year, month + 1)[1] if 1 <= year <= 9999 else 0
    return now.replace(year=year, month=month + 1, day=min(now.day, last))


def parse_count(value: object) -> int | None:
    """A positive whole number, or None."""
    return None if value is None else parse_whole("count", value)


def parse_whole(argument: str, value: object, most: int | None = None) -> int:
    """A whole number from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= (most or value):
        raise InputError(argument, value, "a whole number" + (", 1 or more" if most is None else f" from 1 to {most}"))
    return int(value)


def parse_integer(argument: str, value: Any) -> int:
    """Any whole number, of whatever type."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputError(argument, value, "a whole number")
    return int(value)


def parse_timeout(value: object) -> float | None:
    """Seconds that a call may take, more than zero; None where it may wait as long as the venue's limits say."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise InputError("timeout", value, "seconds, more than zero, or None")
    return float(value)


def parse_age(value: object) -> float | None:
    """Seconds that an answer may be old, zero or more; None where it does not matter."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise InputError("max_age", value, "seconds, zero or more, or None")
    return float(value)
