"""The stream's dialect: what a subscription means, and how a row is spelled in each format.

Pure. The venue spells numbers differently by format and field: padded decimals and exponents in DEFAULT,
plain ones in SIMPLE; every spelling parses back to the same float64 as the REST row of the same instant.
Shares no parsing with the package's client side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from backbone.simulator.market.book import BOOK_DEPTH
from backbone.simulator.market.venue import Row
from backbone.simulator.server.rest import exponential, padded

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
    """What a client's message asks for. Raises `StreamError` with the venue's message."""
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


def _java(value: float) -> str:
    """A double as Java prints it: an exponent from ten million up and below a thousandth."""
    if value == 0:
        return "0.0"
    if 1e-3 <= abs(value) < 1e7:
        return repr(float(value))
    return exponential(value)


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


_turnover = partial(padded, places=16)
_json = partial(json.dumps, ensure_ascii=False)


def _object(row: Row, kind: str, simple: bool) -> str:
    """A row as a JSON object of the fields of `kind`."""
    parts = []
    for name, (short, default, plain) in _FIELDS[kind].items():
        if name in row:
            value = row[name]
            text = "null" if value is None else (plain if simple else default)(value)
            parts.append(f'"{short if simple else name}":{text}')
    return "{" + ",".join(parts) + "}"


def _levels(levels: Sequence[Row], simple: bool) -> str:
    return "[" + ",".join(_object(level, "level", simple) for level in levels) + "]"


_Spelling = tuple[str, Callable[[Any], str], Callable[[Any], str]]
"""A field's short name, how it is spelled in DEFAULT, and how in SIMPLE."""


def _spelled(default: Callable[[Any], str], simple: Callable[[Any], str], **names: str) -> dict[str, _Spelling]:
    return {name: (short, default, simple) for name, short in names.items()}


_SPELLINGS: dict[str, _Spelling] = {
    **_spelled(
        _json, _json, type="ty", code="cd", timestamp="tms", stream_type="st", change="c", ask_bid="ab",
        trade_date="tdt", trade_time="ttm", trade_timestamp="ttms", sequential_id="sid", highest_52_week_date="h52wdt",
        lowest_52_week_date="l52wdt", market_state="ms", is_trading_suspended="its", delisting_date="dd",
        market_warning="mw", candle_date_time_utc="cdttmu", candle_date_time_kst="cdttmk",
    ),
    **_spelled(
        padded, _decimal, opening_price="op", high_price="hp", low_price="lp", trade_price="tp",
        prev_closing_price="pcp", change_price="cp", signed_change_price="scp", highest_52_week_price="h52wp",
        lowest_52_week_price="l52wp", acc_trade_price_24h="atp24h", candle_acc_trade_price="catp",
    ),
    **_spelled(
        padded, _java, trade_volume="tv", acc_trade_volume="atv", acc_ask_volume="aav", acc_bid_volume="abv",
        acc_trade_volume_24h="atv24h", best_ask_size="bas", best_bid_size="bbs", total_ask_size="tas",
        total_bid_size="tbs", candle_acc_trade_volume="catv", ask_size="as", bid_size="bs",
    ),
    **_spelled(_turnover, _decimal, acc_trade_price="atp"),
    **_spelled(_rate, _rate, change_rate="cr", signed_change_rate="scr"),
    **_spelled(_plain, _plain, best_ask_price="bap", best_bid_price="bbp", level="lv"),
    **_spelled(_java, _plain, ask_price="ap", bid_price="bp"),
    **_spelled(partial(_levels, simple=False), partial(_levels, simple=True), orderbook_units="obu"),
}  # fmt: skip

_ORDER = {
    "ticker": """
        type code opening_price high_price low_price trade_price prev_closing_price acc_trade_price change change_price
        signed_change_price change_rate signed_change_rate ask_bid trade_volume acc_trade_volume trade_date trade_time
        trade_timestamp acc_ask_volume acc_bid_volume highest_52_week_price highest_52_week_date lowest_52_week_price
        lowest_52_week_date market_state is_trading_suspended delisting_date market_warning timestamp
        acc_trade_price_24h acc_trade_volume_24h stream_type""",
    "trade": """
        type code timestamp trade_date trade_time trade_timestamp trade_price trade_volume ask_bid prev_closing_price
        change change_price sequential_id best_ask_price best_ask_size best_bid_price best_bid_size stream_type""",
    "orderbook": "type code timestamp total_ask_size total_bid_size orderbook_units stream_type level",
    "candle": """
        type code candle_date_time_utc candle_date_time_kst opening_price high_price low_price trade_price
        candle_acc_trade_volume candle_acc_trade_price timestamp stream_type""",
    "level": "ask_price bid_price ask_size bid_size",
}
_FIELDS = {kind: {name: _SPELLINGS[name] for name in order.split()} for kind, order in _ORDER.items()}
"""The fields of each kind of frame, and of a level of a book, in the order of the wire."""
_FIELDS["trade"]["trade_date"] = ("td", _json, _json)


def render(row: Row, form: str, depth: int = BOOK_DEPTH) -> str:
    """A row as the JSON object of a format; a book is cut to `depth`."""
    if "orderbook_units" in row:
        row = {**row, "orderbook_units": row["orderbook_units"][:depth]}
    return _object(row, row["type"].partition(".")[0], form.startswith("SIMPLE"))
