"""The stream's dialect: what a subscription means, and how a row is spelled in each format.

Pure. The venue spells numbers differently by format and field: padded decimals and exponents in DEFAULT,
plain ones in SIMPLE; every spelling parses back to the same float64 as the REST row of the same instant.
Shares no parsing with the package's client side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from backbone.simulator.market.book import BOOK_DEPTH
from backbone.simulator.market.venue import Row

__all__ = ["STREAM_TIMEFRAMES", "Request", "StreamError", "Want", "parse_request", "render", "subscriptions"]

STREAM_TIMEFRAMES = {
    "candle.1s": "1s", "candle.1m": "1m", "candle.3m": "3m", "candle.5m": "5m", "candle.10m": "10m",
    "candle.15m": "15m", "candle.30m": "30m", "candle.60m": "1h", "candle.240m": "4h",
}  # fmt: skip
_FORMATS = ("DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST")
_DEPTHS = (1, 5, 15, 30)


class StreamError(Exception):
    """The venue's error frame; the socket is closed after it. Never leaves the simulator."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message

    def frame(self) -> bytes:
        """The frame as measured, where even the order of the keys depends on the error."""
        pair = [("name", self.name), ("message", self.message)]
        if self.name != "NO_TICKET":
            pair.reverse()
        return json.dumps({"error": dict(pair)}, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Want:
    """One type of a subscription. ``codes`` are (market, depth) pairs as sent, valid or not."""

    type: str
    codes: tuple[tuple[str, int], ...]
    level: float = 0.0
    snapshot: bool = True
    realtime: bool = True


@dataclass(frozen=True)
class Request:
    """A parsed message. ``listing`` asks for the current subscriptions instead of replacing them."""

    ticket: str
    wants: tuple[Want, ...]
    format: str
    listing: bool = False


def parse_request(text: str) -> Request:
    """What a client's message asks for. Raises `StreamError` with the venue's words."""
    try:
        parts = json.loads(text)
    except ValueError as exc:
        raise StreamError("WRONG_FORMAT", "Format 이 맞지 않습니다.") from exc
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise StreamError("WRONG_FORMAT", "Format 이 맞지 않습니다.")
    ticket = next((part["ticket"] for part in parts if "ticket" in part), None)
    if not isinstance(ticket, str | int) or ticket == "":
        raise StreamError("NO_TICKET", "티켓이 존재하지 않거나, 유효하지 않습니다.")
    form = next((part["format"] for part in parts if "format" in part), "DEFAULT")
    if form not in _FORMATS:
        raise StreamError("INVALID_PARAM", f"{form} 은 지원하지 않는 포맷입니다.")
    rest = [part for part in parts if "ticket" not in part and "format" not in part]
    if any(part.get("method") == "LIST_SUBSCRIPTIONS" for part in rest):
        return Request(str(ticket), (), form, listing=True)
    if not rest:
        raise StreamError("NO_TYPE", "type 필드가 존재하지 않습니다.")
    return Request(str(ticket), tuple(_parse_want(part) for part in rest), form)


def _parse_want(part: dict[str, Any]) -> Want:
    kind = part.get("type")
    if not isinstance(kind, str) or not kind:
        raise StreamError("NO_TYPE", "type 필드가 존재하지 않습니다.")
    if kind not in ("ticker", "trade", "orderbook") and kind not in STREAM_TIMEFRAMES:
        raise StreamError("INVALID_PARAM", f"{kind} 은 지원하지 않는 타입입니다.")
    codes = part.get("codes")
    if not isinstance(codes, list) or not codes:
        raise StreamError("NO_CODES", "codes 필드가 존재하지 않습니다.")
    only_snapshot = bool(part.get("is_only_snapshot", part.get("isOnlySnapshot", False)))
    only_realtime = bool(part.get("is_only_realtime", part.get("isOnlyRealtime", False)))
    level = part.get("level", 0)
    return Want(
        kind,
        tuple(_parse_code(str(code), kind) for code in codes),
        float(level) if isinstance(level, int | float) else 0.0,
        snapshot=not only_realtime or only_snapshot,
        realtime=not only_snapshot or only_realtime,
    )


def _parse_code(code: str, kind: str) -> tuple[str, int]:
    market, dot, depth = code.partition(".")
    if kind != "orderbook" or not dot:
        return code, BOOK_DEPTH
    return market, int(depth) if depth.isdigit() and int(depth) in _DEPTHS else BOOK_DEPTH


def subscriptions(wants: Sequence[Want], ticket: str, form: str) -> bytes:
    """The answer to LIST_SUBSCRIPTIONS."""
    simple = form.startswith("SIMPLE")
    rows = []
    for want in wants:
        row: Row = {"ty" if simple else "type": want.type, "cds" if simple else "codes": [c for c, _ in want.codes]}
        if want.type == "orderbook":
            row["lv" if simple else "level"] = int(want.level) if want.level.is_integer() else want.level
        rows.append(row)
    names = ("mthd", "rslt", "tckt") if simple else ("method", "result", "ticket")
    answer = dict(zip(names, ("LIST_SUBSCRIPTIONS", rows, ticket), strict=True))
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()


# -- spelling ------------------------------------------------------------------------------------------------


def _padded(value: float, places: int = 8) -> str:
    """A decimal with at least `places` digits after the point, as Java's BigDecimal prints it."""
    if value == 0:
        return f"0E-{places}"
    whole, _, fraction = format(Decimal(repr(value)), "f").partition(".")
    fraction = "" if fraction == "0" else fraction
    return f"{whole}.{fraction:0<{places}}"


def _java(value: float) -> str:
    """A double as Java prints it: an exponent from ten million up and below a thousandth."""
    if value == 0:
        return "0.0"
    if 1e-3 <= abs(value) < 1e7:
        return repr(float(value))
    exact = Decimal(repr(float(value)))
    digits = "".join(str(d) for d in exact.as_tuple().digits).rstrip("0")
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[0]}.{digits[1:] or '0'}E{exact.adjusted()}"


def _plain(value: float) -> str:
    """Whole numbers without a point, the rest as Java prints them."""
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else _java(number)


def _decimal(value: float) -> str:
    """A double with a point and never an exponent."""
    text = format(Decimal(repr(float(value))), "f")
    return text if "." in text else text + ".0"


def _rate(value: float) -> str:
    return "0" if value == 0 else format(Decimal(repr(value)), "f")


def _turnover(value: float) -> str:
    return _padded(value, 16)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# field, its short name, its spelling in DEFAULT, its spelling in SIMPLE
_Field = tuple[str, str, Any, Any]

_PRICE = (_padded, _decimal)
_SIZE = (_padded, _java)
_TEXT = (_json, _json)
_HEAD: tuple[_Field, ...] = (("type", "ty", *_TEXT), ("code", "cd", *_TEXT))

_FIELDS: dict[str, tuple[_Field, ...]] = {
    "ticker": (
        *_HEAD,
        ("opening_price", "op", *_PRICE),
        ("high_price", "hp", *_PRICE),
        ("low_price", "lp", *_PRICE),
        ("trade_price", "tp", *_PRICE),
        ("prev_closing_price", "pcp", *_PRICE),
        ("acc_trade_price", "atp", _turnover, _decimal),
        ("change", "c", *_TEXT),
        ("change_price", "cp", *_PRICE),
        ("signed_change_price", "scp", *_PRICE),
        ("change_rate", "cr", _rate, _rate),
        ("signed_change_rate", "scr", _rate, _rate),
        ("ask_bid", "ab", *_TEXT),
        ("trade_volume", "tv", *_SIZE),
        ("acc_trade_volume", "atv", *_SIZE),
        ("trade_date", "tdt", *_TEXT),
        ("trade_time", "ttm", *_TEXT),
        ("trade_timestamp", "ttms", *_TEXT),
        ("acc_ask_volume", "aav", *_SIZE),
        ("acc_bid_volume", "abv", *_SIZE),
        ("highest_52_week_price", "h52wp", *_PRICE),
        ("highest_52_week_date", "h52wdt", *_TEXT),
        ("lowest_52_week_price", "l52wp", *_PRICE),
        ("lowest_52_week_date", "l52wdt", *_TEXT),
        ("market_state", "ms", *_TEXT),
        ("is_trading_suspended", "its", *_TEXT),
        ("delisting_date", "dd", *_TEXT),
        ("market_warning", "mw", *_TEXT),
        ("timestamp", "tms", *_TEXT),
        ("acc_trade_price_24h", "atp24h", *_PRICE),
        ("acc_trade_volume_24h", "atv24h", *_SIZE),
        ("stream_type", "st", *_TEXT),
    ),
    "trade": (
        *_HEAD,
        ("timestamp", "tms", *_TEXT),
        ("trade_date", "td", *_TEXT),
        ("trade_time", "ttm", *_TEXT),
        ("trade_timestamp", "ttms", *_TEXT),
        ("trade_price", "tp", *_PRICE),
        ("trade_volume", "tv", *_SIZE),
        ("ask_bid", "ab", *_TEXT),
        ("prev_closing_price", "pcp", *_PRICE),
        ("change", "c", *_TEXT),
        ("change_price", "cp", *_PRICE),
        ("sequential_id", "sid", *_TEXT),
        ("best_ask_price", "bap", _plain, _plain),
        ("best_ask_size", "bas", *_SIZE),
        ("best_bid_price", "bbp", _plain, _plain),
        ("best_bid_size", "bbs", *_SIZE),
        ("stream_type", "st", *_TEXT),
    ),
    "orderbook": (
        *_HEAD,
        ("timestamp", "tms", *_TEXT),
        ("total_ask_size", "tas", *_SIZE),
        ("total_bid_size", "tbs", *_SIZE),
        ("orderbook_units", "obu", None, None),
        ("stream_type", "st", *_TEXT),
        ("level", "lv", _plain, _plain),
    ),
    "candle": (
        *_HEAD,
        ("candle_date_time_utc", "cdttmu", *_TEXT),
        ("candle_date_time_kst", "cdttmk", *_TEXT),
        ("opening_price", "op", *_PRICE),
        ("high_price", "hp", *_PRICE),
        ("low_price", "lp", *_PRICE),
        ("trade_price", "tp", *_PRICE),
        ("candle_acc_trade_volume", "catv", *_SIZE),
        ("candle_acc_trade_price", "catp", *_PRICE),
        ("timestamp", "tms", *_TEXT),
        ("stream_type", "st", *_TEXT),
    ),
}
_UNIT: tuple[_Field, ...] = (
    ("ask_price", "ap", _java, _plain),
    ("bid_price", "bp", _java, _plain),
    ("ask_size", "as", _padded, _java),
    ("bid_size", "bs", _padded, _java),
)


def render(row: Row, form: str, depth: int = BOOK_DEPTH) -> str:
    """A row as the JSON object of a format; a book is cut to `depth`."""
    simple = form.startswith("SIMPLE")
    fields = _FIELDS["candle" if row["type"].startswith("candle.") else row["type"]]
    parts = []
    for name, short, default, plain in fields:
        label = short if simple else name
        if default is None:
            parts.append(f'"{label}":[{",".join(_unit(u, simple) for u in row[name][:depth])}]')
        elif name in row:
            value = row[name]
            parts.append(f'"{label}":{"null" if value is None else (plain if simple else default)(value)}')
    return "{" + ",".join(parts) + "}"


def _unit(unit: Row, simple: bool) -> str:
    pairs = (
        f'"{short if simple else name}":{(plain if simple else default)(float(unit[name]))}'
        for name, short, default, plain in _UNIT
    )
    return "{" + ",".join(pairs) + "}"
