"""What people write for a market, and the one spelling the package uses: ``QUOTE-BASE`` in upper case."""

from __future__ import annotations

import re
from collections.abc import Iterable

from backbone.errors import InputError
from backbone.model import Priority

__all__ = ["HOME_QUOTES", "parse_market", "parse_markets", "parse_priority", "parse_quote"]

HOME_QUOTES = {"upbit": "KRW", "upbit-sg": "SGD", "upbit-id": "IDR", "upbit-th": "THB"}
"""The currency a bare ``"BTC"`` is priced in, by exchange."""

_CODE = re.compile(r"[A-Z0-9]{1,12}-[A-Z0-9._]{1,20}")
_ALLOWED = "a market such as KRW-BTC (krw-btc, BTC/KRW and BTC are read as that)"


def parse_market(value: object, home: str) -> str:
    """``"krw-btc"``, ``"BTC/KRW"``, ``"BTC"`` → ``"KRW-BTC"``. Only the spelling is checked, not the listing."""
    if not isinstance(value, str):
        raise InputError("market", value, _ALLOWED)
    text = value.strip().upper()
    if "/" in text:
        base, _, quote = text.partition("/")
        text = f"{quote}-{base}"
    elif "-" not in text:
        text = "" if text == home or "_" in text else f"{home}-{text}"
    if not _CODE.fullmatch(text) or text.endswith(".") or not text.rpartition("-")[2].strip("._"):
        raise InputError("market", value, _ALLOWED)
    return text


def parse_markets(value: str | Iterable[str], home: str) -> list[str]:
    """One market or several, in the order given, each once."""
    if isinstance(value, str):
        return [parse_market(value, home)]
    try:
        items = list(value)
    except TypeError as exc:
        raise InputError("market", value, _ALLOWED + ", or a list of them") from exc
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
