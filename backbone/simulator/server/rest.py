"""The venue's REST dialect: which path belongs to which group, what a query means, how a bad one is refused.

Pure: a path, a decoded query, a `Venue` and the exchange's time in, a status and a body out. Messages and statuses are
the venue's, byte for byte. Shares no parsing with the package's client side.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec

from backbone.simulator.market.book import BOOK_DEPTH
from backbone.simulator.market.listing import UnknownMarketError
from backbone.simulator.market.venue import MINUTE_UNITS, Row, Venue
from backbone.simulator.server.clock import parse_to
from backbone.simulator.server.faults import ROW_FAULTS, Fault, corrupt

__all__ = ["NOT_FOUND", "Refusal", "Route", "answer", "error_body", "find_route", "spell"]

Query = Mapping[str, str]

MISSING = "Missing request parameter error. Check the required parameters!"
MISMATCH = "Type mismatch error. Check the parameters type!"
INVALID = "Invalid parameter. Check the given value!"
BAD_UNIT = "specified unit is not valid."
UNKNOWN = "Code not found"
NOT_FOUND = b'{"error":{"name":"not_found","message":"no Route matched with those values"}}'

_PERIODS = {"seconds": "1s", "days": "1d", "weeks": "1w", "months": "1M", "years": "1y"}
_TIME_OF_DAY = re.compile(r"(\d{2}):?(\d{2}):?(\d{2})", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_PAGE = 200
_TRADES = 500


class Refusal(Exception):
    """The venue says no: a status and its message. Never leaves the module."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def error_body(status: int, message: str) -> bytes:
    """The quotation endpoints' error body; `name` is the status, an integer."""
    return f'{{"error":{{"name":{status},"message":"{message}"}}}}'.encode()


@dataclass(frozen=True)
class Route:
    """Where a path leads: its wire group, and what answers. ``heavy`` answers may take long to compute."""

    group: str
    answer: Callable[[Venue, Query, int], list[Row]]
    heavy: bool = False


def find_route(path: str) -> Route | None:
    """The route of a path under ``/v1``; None where the gateway knows none."""
    known = _ROUTES.get(path)
    if known is not None:
        return known
    unit = path.removeprefix("/v1/candles/minutes/")
    if unit != path and "/" not in unit and unit:
        return Route("candles", partial(_minutes, unit=unit), unit == "240")
    return None


def _required(query: Query, name: str) -> str:
    value = query.get(name)
    if not value:
        raise Refusal(400, MISSING)
    return value


def _integer(query: Query, name: str, default: int, *, low: int = 1, high: int | None = None) -> int:
    text = query.get(name)
    if text is None or text == "":
        return default
    if not _INTEGER.fullmatch(text):
        raise Refusal(400, MISMATCH)
    value = int(text)
    if value < low:
        raise Refusal(400, INVALID)
    return value if high is None else min(value, high)


def _markets(query: Query) -> list[str]:
    codes = [code.strip().upper() for code in _required(query, "markets").split(",")]
    return [code for code in codes if code]


def _flag(query: Query, *names: str) -> bool:
    for name in names:
        if name in query:
            text = query[name].lower()
            if text not in ("true", "false", "1", "0", "yes", "no", "on", "off", ""):
                raise Refusal(400, MISMATCH)
            return text in ("true", "1", "yes", "on")
    return False


def _candles(venue: Venue, query: Query, now_us: int, timeframe: str) -> list[Row]:
    market = _required(query, "market")
    count = _integer(query, "count", 1, high=_PAGE)
    to_us: int | None = None
    if query.get("to"):
        to_us = parse_to(query["to"])
        if to_us is None:
            raise Refusal(400, INVALID)
    converting = query.get("converting_price_unit", query.get("convertingPriceUnit", ""))
    if timeframe == "1d" and converting not in ("", "KRW"):
        raise Refusal(400, INVALID)
    return venue.candles(market, timeframe, to_us, count, now_us, converting=bool(converting))


def _minutes(venue: Venue, query: Query, now_us: int, unit: str) -> list[Row]:
    if not _INTEGER.fullmatch(unit):
        raise Refusal(400, MISMATCH)
    timeframe = MINUTE_UNITS.get(int(unit))
    if timeframe is None:
        raise Refusal(400, BAD_UNIT)
    return _candles(venue, query, now_us, timeframe)


def _trades(venue: Venue, query: Query, now_us: int) -> list[Row]:
    market = _required(query, "market")
    count = _integer(query, "count", 1, high=_TRADES)
    name = "days_ago" if "days_ago" in query else "daysAgo"
    days_ago = _integer(query, name, 0)
    if days_ago > 7:
        raise Refusal(400, INVALID)
    to: int | None = None
    if query.get("to"):
        match = _TIME_OF_DAY.fullmatch(query["to"])
        if match is None:
            raise Refusal(400, INVALID)
        hours, minutes, seconds = (int(part) for part in match.groups())
        if hours > 23 or minutes > 59 or seconds > 59:
            raise Refusal(400, INVALID)
        to = hours * 3600 + minutes * 60 + seconds
    cursor = _integer(query, "cursor", 0) or None
    return venue.trades(market, now_us, count, days_ago=days_ago, to=to, cursor=cursor)


def _ticker_all(venue: Venue, query: Query, now_us: int) -> list[Row]:
    name = "quote_currencies" if "quote_currencies" in query else "quoteCurrencies"
    quotes = {quote.strip().upper() for quote in _required(query, name).split(",")}
    return venue.tickers([code for code, m in venue.listed(now_us).items() if m.quote in quotes], now_us)


def _orderbook(venue: Venue, query: Query, now_us: int) -> list[Row]:
    markets = _markets(query)
    depth = _integer(query, "count", BOOK_DEPTH, high=BOOK_DEPTH)
    text = query.get("level", "") or "0"
    if not _NUMBER.fullmatch(text):
        raise Refusal(400, MISMATCH)
    level = float(text)
    if level < 0:
        raise Refusal(400, INVALID)
    for code in markets:  # one unknown code refuses the whole call
        venue.market(code, now_us)
    books = [venue.orderbook(code, now_us, level, depth) for code in markets]
    return [book for book in books if book is not None]


def _supported_levels(venue: Venue, query: Query, now_us: int) -> list[Row]:
    """The levels of the instruments, as numbers."""
    return [
        {"market": row["market"], "supported_levels": [json.loads(text) for text in row["supported_levels"]]}
        for row in venue.instruments(_markets(query), now_us)
    ]


_ROUTES: dict[str, Route] = {
    "/v1/market/all": Route(
        "market", lambda venue, query, now_us: venue.markets(_flag(query, "is_details", "isDetails"), now_us)
    ),
    **{
        f"/v1/candles/{name}": Route("candles", partial(_candles, timeframe=timeframe), timeframe != "1s")
        for name, timeframe in _PERIODS.items()
    },
    "/v1/trades/ticks": Route("crix-trades", _trades),
    "/v1/ticker": Route("ticker", lambda venue, query, now_us: venue.tickers(_markets(query), now_us), True),
    "/v1/ticker/all": Route("ticker", _ticker_all, True),
    "/v1/orderbook": Route("orderbook", _orderbook),
    "/v1/orderbook/instruments": Route(
        "orderbook", lambda venue, query, now_us: venue.instruments(_markets(query), now_us)
    ),
    "/v1/orderbook/supported_levels": Route("orderbook", _supported_levels),
}


def answer(route: Route, venue: Venue, query: Query, now_us: int, faults: Sequence[Fault] = ()) -> tuple[int, bytes]:
    """The status and the body of a reply, with the faults that change its instant, rows, spelling or body."""
    for fault in faults:
        if fault.kind == "late":
            now_us -= int(fault.number("seconds", 2.0) * 1e6)
    try:
        rows = route.answer(venue, query, now_us)
    except UnknownMarketError:
        return 404, error_body(404, UNKNOWN)
    except Refusal as exc:
        return exc.status, error_body(exc.status, exc.message)
    for fault in faults:
        if fault.kind in ROW_FAULTS:
            rows = corrupt(rows, fault)
    kinds = {fault.kind for fault in faults}
    body = spell(rows).encode() if "numbers" in kinds else msgspec.json.encode(rows)
    return 200, b"<<" + body[: len(body) // 2] if "garbage" in kinds else body


def spell(value: Any, turn: int = 0) -> str:
    """JSON with the venue's other spellings of numbers: exponents, padded decimals, ``0E-8`` for nothing.

    Every spelling parses back to the same float64.
    """
    if isinstance(value, dict):
        return "{" + ",".join(f'"{k}":{spell(v, i)}' for i, (k, v) in enumerate(value.items())) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(spell(v, turn) for v in value) + "]"
    if not isinstance(value, float):
        return json.dumps(value, ensure_ascii=False)
    if value == 0:
        return ("0E-8", "0.0", "0")[turn % 3]
    return padded(value) if turn % 2 else exponential(value)


def padded(value: float, places: int = 8) -> str:
    """A decimal with at least `places` digits after the point, as Java's BigDecimal prints it."""
    if value == 0:
        return f"0E-{places}"
    whole, _, fraction = format(Decimal(repr(value)), "f").partition(".")
    fraction = "" if fraction == "0" else fraction
    return f"{whole}.{fraction:0<{places}}"


def exponential(value: float) -> str:
    """A number other than 0 with one digit before the point and an exponent."""
    exact = Decimal(repr(float(value)))
    digits = "".join(map(str, exact.as_tuple().digits)).rstrip("0")
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[0]}.{digits[1:] or '0'}E{exact.adjusted()}"
