"""Words in: markets, quote currencies, priorities, times, counts, each read once, here.

Markets become ``QUOTE-BASE`` in upper case. Times are accepted as ``str`` (ISO, ``"2024-03"``, ``"2024"``, ``"now"``,
``"3d"``/``"90m"``: that long ago), ``date``, ``datetime``, pandas and numpy timestamps. Naive values are in the
client's zone; a month or day means its first instant there. The result is microseconds since the epoch, UTC. What
cannot be read is an `InputError` that names the argument and what is allowed; no request is made.
"""

from __future__ import annotations

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
    "in_zone",
    "parse_age",
    "parse_count",
    "parse_market",
    "parse_markets",
    "parse_priority",
    "parse_quote",
    "parse_time",
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

_AGO = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)")
_AGO_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_PARTIAL = re.compile(r"(\d{4})(?:-(\d{2}))?")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_TIMES = "a date or time such as 2024-03-01, 2024-03, 2024-03-01T09:00:00Z, a datetime, or 3d / 12h (that long ago)"


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
        raise InputError(argument, value, _TIMES) from exc


def in_zone(time_us: int, zone: str) -> dt.datetime:
    """The aware datetime of `time_us`, shown in `zone`."""
    return (_EPOCH + dt.timedelta(microseconds=time_us)).astimezone(ZoneInfo(zone))


def _moment(argument: str, value: Any, now_us: Callable[[], int]) -> dt.datetime | int:
    if isinstance(value, str):
        return _from_text(argument, value, now_us)
    if hasattr(value, "to_pydatetime"):  # pandas.Timestamp, which is a datetime that knows nanoseconds
        if value != value:  # NaT
            raise InputError(argument, value, _TIMES)
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
    raise InputError(argument, value, _TIMES)


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
        raise InputError(argument, text, _TIMES) from exc


def parse_count(value: object, argument: str = "count") -> int | None:
    """A positive whole number, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(argument, value, "a whole number, 1 or more")
    return int(value)


def parse_age(value: object) -> float | None:
    """Seconds that an answer may be old, zero or more; None where it does not matter."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise InputError("max_age", value, "seconds, zero or more, or None")
    return float(value)
