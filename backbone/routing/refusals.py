"""What the venue says besides data: its refusals, the quota left, its time, and how long a block lasts.

Decided here: which error an answer other than success becomes. Most forms of a refusal (plain text, JSON, a gateway's
page) are documented nowhere. Each is read as far as it can be, and none of them can raise anything. Pure.
"""

from __future__ import annotations

import http.client
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

import msgspec

from backbone.errors import PayloadError, RateLimitedError, RejectedError, SourceError, UnreachableError
from backbone.routing.records import EPOCH, MICROSECOND

__all__ = [
    "BLOCK_S",
    "SIGN_IN",
    "is_dropped",
    "is_web_page",
    "parse_block_s",
    "parse_date",
    "parse_error",
    "parse_remaining",
    "refusal",
    "sample_of",
]


def sample_of(body: bytes) -> str:
    """The start of a body, as text for an error."""
    return body[:200].decode("utf-8", "replace")


def parse_error(body: bytes) -> tuple[str, str]:
    """The name and message of an error body; a body in another shape is all message."""
    try:
        error = msgspec.json.decode(body)["error"]
        return str(error["name"]), str(error["message"])
    except (ValueError, RecursionError, KeyError, TypeError, IndexError):
        return "", sample_of(body).strip()


def parse_remaining(header: str | None) -> tuple[str | None, int | None]:
    """Group and requests left in this second, of a ``Remaining-Req`` header; None for what it lacks."""
    stated = dict(part.strip().split("=", 1) for part in (header or "").split(";") if "=" in part)
    left = stated.get("sec", "")
    return stated.get("group") or None, int(left) if left.isascii() and left.isdigit() else None


@lru_cache(maxsize=16)  # the replies of a second have the same
def parse_date(header: str | None) -> int | None:
    """The instant of an HTTP date, or None."""
    try:
        moment = parsedate_to_datetime(header or "")
    except (ValueError, OverflowError):
        return None
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - EPOCH) // MICROSECOND


BLOCK_S = 60.0
"""How long a block is taken to last when the venue does not say."""
_LONGEST_BLOCK_S = 86_400.0
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.\d+)?\s?(Z|UTC|KST|[+-]\d\d:?\d\d)?")
_AN_EPOCH = re.compile(r"(?<![\d.])(1\d{9})(\d{3})?(?![\d.])")
_UNITS = r"milli\w*|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|h|밀리초|초|분|시간"
_LENGTH = re.compile(rf"(?<![\d.])(\d+(?:\.\d+)?)\s?({_UNITS})(?![A-Za-z])", re.IGNORECASE)
_KEYED = re.compile(
    r'"([\w-]*(?:after|block|second|sec|minute|remain|wait|ban|time|period|expire)[\w-]*)"\s*:\s*"?(\d+(?:\.\d+)?)',
    re.IGNORECASE,
)


def _unit_s(word: str) -> float:
    """Seconds of a unit, from a word or from a field's name that contains one."""
    word = word.lower()
    if word == "ms" or "milli" in word or word.endswith("_ms") or "밀리" in word:
        return 0.001
    if word in ("h", "시간") or "hour" in word:
        return 3600.0
    return 60.0 if word in ("m", "분") or "min" in word else 1.0


def _until_s(moment: re.Match[str], now_us: int) -> float:
    """Seconds from now to a time in a text; without a zone in UTC, or Korean where UTC were hours away."""
    zone: str | None = {"Z": "+00:00", "UTC": "+00:00", "KST": "+09:00"}.get(moment[2] or "", moment[2])
    try:
        at = datetime.fromisoformat(moment[1] + (zone or "+00:00"))
    except ValueError:
        return 0.0
    left_s = ((at - EPOCH) // MICROSECOND - now_us) / 1e6
    return left_s - 9 * 3600 if not zone and left_s > 8 * 3600 else left_s


def parse_block_s(body: bytes, retry_after: str | None, now_us: int) -> float:
    """How long this address is blocked, in seconds, as far as the venue said so; `BLOCK_S` where it did not.

    The form of the statement is not documented, so every likely one is read: ``Retry-After`` (seconds or a
    date), a length with its unit in a sentence, a field named like one, a time, an epoch. The longest counts.
    """
    header = (retry_after or "").strip()
    found: list[float] = []
    if re.fullmatch(r"\d{1,9}(\.\d+)?", header):
        found.append(float(header))
    elif (until_us := parse_date(header)) is not None:
        found.append((until_us - now_us) / 1e6)
    text = body[:4096].decode("utf-8", "replace")
    found += [_until_s(moment, now_us) for moment in _MOMENT.finditer(text)]
    found += [int(epoch[1]) - now_us / 1e6 for epoch in _AN_EPOCH.finditer(text)]
    found += [float(length[1]) * _unit_s(length[2]) for length in _LENGTH.finditer(text)]
    found += [float(pair[2]) * _unit_s(pair[1]) for pair in _KEYED.finditer(text) if len(pair[2]) < 10]
    stated = [seconds for seconds in found if seconds > 0]
    return min(max(stated), _LONGEST_BLOCK_S) if stated else BLOCK_S


def is_web_page(body: bytes) -> bool:
    """Whether a body is a page for people: what hotels, offices and trains answer with before somebody signs in."""
    return body[:64].lstrip()[:1] == b"<"


def refusal(
    status: int, body: bytes, group: str, now_us: int, *, retry_after: str | None = None, location: str = ""
) -> SourceError:
    """The error that an answer other than success means, which came at `now_us` and counted for `group`."""
    code, reason = parse_error(body)
    words = f": {reason}" if reason else ""
    if status == 429:
        wait_s = float(retry_after) if retry_after and re.fullmatch("[0-9]{1,6}", retry_after) else 1.0
        message = f"too many requests of group {group}{words}"
        return RateLimitedError(message, group=group, retry_after_s=wait_s)
    if status == 418:
        wait_s = parse_block_s(body, retry_after, now_us)
        message = f"the venue blocks this address for {wait_s:g} s{words}"
        return RateLimitedError(message, retry_after_s=wait_s, banned=True)
    if status >= 500 or status == 408:
        return UnreachableError(f"the venue answered {status}{words}")
    if status >= 400:
        return RejectedError(f"the venue refused ({status}){words}", status=status, code=code, reason=reason)
    if status >= 300:
        message = f"redirected ({status}) to {location!r}, which is not followed: {SIGN_IN}"
        return RejectedError(message, status=status, code="redirect", reason=location)
    return PayloadError(f"the venue answered {status} where 200 was expected", sample=sample_of(body))


SIGN_IN = "this network may ask to sign in first"


def is_dropped(error: SourceError) -> bool:
    """Whether the connection was gone before anything came back: normal for one kept open, and safe to repeat."""
    causes: list[Any] = [error.__cause__]
    while causes and isinstance(error, UnreachableError):
        cause = causes.pop()
        if isinstance(cause, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
            return True
        if isinstance(cause, BaseException):
            causes += [getattr(cause, "reason", None), *cause.args]
    return False
