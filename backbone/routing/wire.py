"""The venue's dialect, both ways; the only module that knows its paths, field names, groups and page sizes.

A question is an `Ask`: what to send and how to read the answer. Its ``parse`` turns the body into one candle page or
into records of `backbone.model`, or raises `PayloadError`: every answer is validated. The socket's frames go through
the same builders as the rows of REST (`records`), so that a row of one instant is the same record whichever channel
brought it. Pure: no clock, no I/O, no state.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import reduce
from itertools import chain
from operator import attrgetter, or_
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from backbone.errors import InputError, PayloadError
from backbone.model import CANDLE_SCHEMA, MarketInfo, Trade, empty_candles
from backbone.routing.records import (
    EPOCH,
    FRAMES,
    KINDS,
    MICROSECOND,
    Amount,
    BookRow,
    InvalidRow,
    LiveRecord,
    Millis,
    Price,
    TickerRow,
    TradeRow,
    build_orderbook,
    build_ticker,
    build_trade,
    channel_of,
    grouped,
    kind_of,
    list_of,
    parse_kind,
    timeframe_of,
)
from backbone.routing.refusals import sample_of
from backbone.timeframe import Timeframe
from backbone.venues import Venue

__all__ = [
    "BOOK_DEPTHS",
    "GROUPS",
    "KINDS",
    "ORDERBOOK_DEPTH",
    "PAGE",
    "TRADES_PAGE",
    "Ask",
    "CandlePage",
    "Instrument",
    "LiveRecord",
    "Rows",
    "Status",
    "StreamError",
    "candles_ask",
    "channel_of",
    "grouped",
    "instruments_ask",
    "kind_of",
    "markets_ask",
    "orderbooks_ask",
    "parse_frame",
    "parse_kind",
    "prices_ask",
    "subscribe_frame",
    "tickers_all_ask",
    "tickers_ask",
    "timeframe_of",
    "trades_ask",
]

PAGE = Venue.candle_page  # all venues speak one dialect
"""Most candles of one reply; the venue cuts a larger count without an error."""
TRADES_PAGE = Venue.trades_page
"""Most trades of one reply."""
ORDERBOOK_DEPTH = Venue.book_levels
"""Most levels of a book."""
BOOK_DEPTHS = Venue.book_depths
"""How deep a book can be had over the socket."""
GROUPS = Venue.groups
"""Rate groups as the wire names them (the venue's documentation has other names)."""

_LAST_SECOND_US = 253_402_300_799_000_000  # 9999-12-31T23:59:59Z, the last instant a four-digit year can name

_BROKEN = (ValueError, RecursionError)  # all that decoding hostile bytes can raise


@dataclass(frozen=True)
class Ask:
    """One question to the venue. Equal asks have equal answers: it is the key of what is in flight.

    ``path`` is without the version, ``query`` not yet percent-encoded. ``parse`` takes the body of a 200.
    """

    group: str
    path: str
    query: tuple[tuple[str, str], ...]
    parse: Callable[[bytes], Any] = field(compare=False, repr=False)
    market: str | None = field(default=None, compare=False)


class CandlePage(msgspec.Struct, frozen=True):
    """What one candle reply said: all candles from ``oldest_us`` up to the bound asked for, oldest first.

    A page with fewer rows than were asked for proves that there is nothing before its oldest row either.
    ``stamps_us`` holds each row's last-trade time.
    """

    table: pa.Table
    oldest_us: int | None
    stamps_us: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def rows(self) -> int:
        return int(self.table.num_rows)


class Instrument(msgspec.Struct, frozen=True):
    """A market's price step at its current price, and the levels its book can be grouped by."""

    tick_size: float
    levels: tuple[float, ...]


class Status(msgspec.Struct, frozen=True):
    """A frame about the connection itself: ``"UP"``, or the name of the method it answers."""

    text: str


class StreamError(msgspec.Struct, frozen=True):
    """An error frame; the venue closes the socket right after it."""

    name: str
    message: str


# ---------------------------------------------------------------------------------- checks and number forms


def _reading(read: Callable[[bytes], Any], what: str, market: str | None = None) -> Callable[[bytes], Any]:
    """`read` with everything that a wrong body can cause translated into `PayloadError`."""

    def parse(body: bytes) -> Any:
        try:
            return read(body)
        except _BROKEN as exc:
            subject = f"{what} of {market}" if market else what
            raise PayloadError(f"{subject}: {exc}", sample=sample_of(body), market=market) from exc

    return parse


def _plain(number: float) -> str:
    """A number as the venue takes it in a query: no exponent, no trailing zeros."""
    text = format(Decimal(repr(number)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _check_count(count: int, most: int) -> int:
    if not 1 <= count <= most:
        raise InputError("count", count, f"an integer from 1 to {most}")
    return count


def _check_codes(argument: str, codes: Iterable[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(codes))
    if not found or not all(found):
        raise InputError(argument, found, "at least one code, none of them empty")
    return found


class Rows(tuple[Any, ...]):
    """Records of a reply about many markets; ``unreadable`` names the markets whose rows could not be read."""

    unreadable: tuple[str, ...] = ()

    @classmethod
    def of(cls, records: Iterable[Any], unreadable: Sequence[str]) -> Rows:
        rows = cls(records)
        rows.unreadable = tuple(unreadable)
        return rows


def _read_rows(body: bytes, decoder: Any, build: Callable[[Any], Any]) -> Rows:
    """The records of a list of rows, and the markets whose rows cannot be read.

    Row by row only where the list as a whole is refused. Raises where no row can be read, or one names no market.
    """
    try:
        return Rows([build(row) for row in decoder.decode(body)])
    except _BROKEN as exc:
        why = exc
    records: list[Any] = []
    unreadable: list[str] = []
    for row in msgspec.json.decode(body, type=list[msgspec.Raw]):
        try:
            records += [build(one) for one in decoder.decode(b"[" + bytes(row) + b"]")]
        except _BROKEN:
            unreadable.append(msgspec.json.decode(row, type=_Named).market)
    if not records:
        raise why
    return Rows.of(records, unreadable)


class _Named(msgspec.Struct):
    market: Annotated[str, msgspec.Meta(min_length=1)]


def _by_market(rows: Rows, asked: tuple[str, ...]) -> Rows:
    """`rows` in the order of `asked`: one for each market asked for that could be read, and no other."""
    found = {record.market: record for record in rows}
    answered = found.keys() | set(rows.unreadable)
    if len(answered) != len(rows) + len(rows.unreadable):
        raise InvalidRow("a market comes twice")
    if missing := [market for market in asked if market not in answered]:
        raise InvalidRow(f"{', '.join(missing[:5])} is missing")
    if others := answered - set(asked):
        raise InvalidRow(f"{next(iter(others))} was not asked for")
    return Rows.of([found[market] for market in asked if market in found], rows.unreadable)


# -------------------------------------------------------------------------------------------------- candles


class _CandleRow(msgspec.Struct, gc=False):
    market: str
    candle_date_time_utc: str
    opening_price: Price
    high_price: Price
    low_price: Price
    trade_price: Price
    candle_acc_trade_volume: Amount
    candle_acc_trade_price: Amount  # the venue rounds the turnover of a tiny trade to zero
    timestamp: Millis


_candle_rows = msgspec.json.Decoder(list[_CandleRow])
_candle_values = attrgetter(*_CandleRow.__struct_fields__[2:8])  # in the order of CANDLE_COLUMNS
_STAMP_FORM = np.frombuffer(b"0000-00-00T00:00:00", dtype=np.uint8)
_IS_DIGIT = np.equal(_STAMP_FORM, ord("0"))


def _open_times(texts: list[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """`_open_us` of a whole column."""
    if set(map(len, texts)) != {19}:
        raise InvalidRow(f"{next(text for text in texts if len(text) != 19)!r} is not a time")
    letters = np.frombuffer("".join(texts).encode("ascii"), dtype=np.uint8).reshape(-1, 19)
    expected = np.where(_IS_DIGIT, (letters >= 48) & (letters <= 57), letters == _STAMP_FORM)
    if not expected.all():
        raise InvalidRow(f"{texts[int(np.argmin(expected.all(axis=1)))]!r} is not a time")
    return np.array(texts, dtype="datetime64[us]").view(np.int64)


def _check_times(times: np.ndarray[Any, np.dtype[np.int64]], timeframe: Timeframe, to_us: int | None) -> None:
    if (times[1:] >= times[:-1]).any():
        raise InvalidRow("rows are not newest first")
    if (timeframe.floor_array(times) != times).any():
        raise InvalidRow(f"a time is not where a {timeframe} candle opens")
    if to_us is not None and times[0] >= to_us:
        raise InvalidRow("a row is not before the time asked for")


def _check_prices(columns: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    """`columns` are rows of open, high, low, close, volume, value."""
    low, high = columns[2], columns[1]
    if (columns[:4] < low).any() or (columns[:4] > high).any():
        raise InvalidRow("a price is outside its candle's low and high")


def _read_candles(body: bytes, market: str, timeframe: Timeframe, to_us: int | None, count: int) -> CandlePage:
    rows = _candle_rows.decode(body)
    if len(rows) > count:
        raise InvalidRow(f"{len(rows)} rows where {count} were asked for")
    if not rows:
        return CandlePage(empty_candles(), None, np.empty(0, dtype=np.int64))
    if others := {row.market for row in rows} - {market}:
        raise InvalidRow(f"a row is of {others.pop()}")
    times = _open_times([row.candle_date_time_utc for row in rows])
    values = chain.from_iterable(map(_candle_values, reversed(rows)))
    columns = np.fromiter(values, np.float64, 6 * len(rows)).reshape(-1, 6).T.copy()
    _check_times(times, timeframe, to_us)
    _check_prices(columns)
    opens = times[::-1].copy()
    stamps = np.array([row.timestamp for row in reversed(rows)], dtype=np.int64) * 1000
    if to_us is None and opens[-1] > stamps[-1]:  # where no bound was asked for, this is what a row of the future shows
        raise InvalidRow("the newest row opens after its last trade")
    buffers = map(pa.py_buffer, (opens, *columns))  # half the time of `pa.array`, which looks at each value
    pairs = zip(CANDLE_SCHEMA.types, buffers, strict=True)
    arrays = [pa.Array.from_buffers(kind, len(rows), [None, buffer]) for kind, buffer in pairs]
    table = pa.Table.from_arrays(arrays, schema=CANDLE_SCHEMA)
    return CandlePage(table, int(opens[0]), stamps)


_CANDLE_PATHS = {"1s": "seconds", "1d": "days", "1w": "weeks", "1M": "months", "1y": "years"}


def _candle_path(timeframe: Timeframe) -> str:
    name = _CANDLE_PATHS.get(timeframe.name) or f"minutes/{timeframe.step_us // 60_000_000}"
    return f"/candles/{name}"


def candles_ask(market: str, timeframe: Timeframe, to_us: int | None, count: int) -> Ask:
    """The newest `count` candles that open before `to_us` (None: of all, the forming one included).

    The bound is sent in whole seconds, rounded up; as candles open on whole seconds, that changes nothing.
    """
    _check_count(count, PAGE)
    query: tuple[tuple[str, str], ...] = (("market", market), ("count", str(count)))
    if to_us is not None:
        to_us = min(-(-to_us // 1_000_000) * 1_000_000, _LAST_SECOND_US)
        bound = EPOCH + to_us * MICROSECOND
        query += (("to", f"{bound:%Y-%m-%dT%H:%M:%S}Z".rjust(20, "0")),)

    def read(body: bytes) -> CandlePage:
        return _read_candles(body, market, timeframe, to_us, count)

    parse = _reading(read, f"{timeframe} candles", market)
    return Ask("candles", _candle_path(timeframe), query, parse, market)


# -------------------------------------------------------------------------------------------------- markets


class _MarketEvent(msgspec.Struct, gc=False):
    warning: bool
    caution: dict[str, bool] = {}


class _MarketRow(msgspec.Struct, gc=False):
    market: str
    english_name: str
    korean_name: str = ""
    market_event: _MarketEvent | None = None  # Korea
    market_warning: str = "NONE"  # the regional venues


_market_rows = msgspec.json.Decoder(list[_MarketRow])
_MARKET_CODE = re.compile(r"[^\s\-,/]+-[^\s\-,/]+")


def _read_markets(body: bytes) -> tuple[MarketInfo, ...]:
    markets = {}
    for row in _market_rows.decode(body):
        if not _MARKET_CODE.fullmatch(row.market):
            raise InvalidRow(f"{row.market!r} is not a market code")
        event = row.market_event
        warning = row.market_warning == "CAUTION" if event is None else event.warning
        cautions = tuple(name for name, is_raised in event.caution.items() if is_raised) if event else ()
        markets[row.market] = MarketInfo(row.market, row.korean_name, row.english_name, warning, cautions)
    if not markets:  # accepted, an empty list would make every market unknown
        raise InvalidRow("no market at all")
    return tuple(markets.values())


def markets_ask() -> Ask:
    """Every market the venue trades; parses to a tuple of `MarketInfo`."""
    return Ask("market", "/market/all", (("is_details", "true"),), _reading(_read_markets, "markets"))


# ----------------------------------------------------------------------------- tickers, order books, trades

_ticker_rows = msgspec.json.Decoder(list_of(TickerRow))
_book_rows = msgspec.json.Decoder(list_of(BookRow))
_trade_rows = msgspec.json.Decoder(list_of(TradeRow))


def tickers_ask(markets: Iterable[str]) -> Ask:
    """The ticker of each of `markets`; parses to `Rows` of `Ticker` in that order. One unknown fails all."""
    asked = _check_codes("markets", markets)

    def read(body: bytes) -> Rows:
        return _by_market(_read_rows(body, _ticker_rows, build_ticker), asked)

    return Ask("ticker", "/ticker", (("markets", ",".join(asked)),), _reading(read, "tickers"))


def tickers_all_ask(quotes: Iterable[str]) -> Ask:
    """The ticker of every market priced in one of `quotes`; parses to `Rows` of `Ticker`."""
    asked = _check_codes("quotes", quotes)

    def read(body: bytes) -> Rows:
        tickers = _read_rows(body, _ticker_rows, build_ticker)
        markets = (*(ticker.market for ticker in tickers), *tickers.unreadable)
        return _by_market(tickers, tuple(market for market in markets if market.partition("-")[0] in asked))

    return Ask("ticker", "/ticker/all", (("quote_currencies", ",".join(asked)),), _reading(read, "tickers"))


def prices_ask(markets: Iterable[str]) -> Ask:
    """The tickers of all that is priced in the quote currencies of `markets`."""
    return tickers_all_ask(sorted({market.partition("-")[0] for market in markets}))


def orderbooks_ask(markets: Iterable[str], level: float = 0, count: int = ORDERBOOK_DEPTH) -> Ask:
    """The book of each of `markets`, `count` levels deep, prices grouped by `level` (0: not grouped).

    Parses to `Rows` of `OrderBook` in the order asked.
    """
    asked = _check_codes("markets", markets)
    _check_count(count, ORDERBOOK_DEPTH)
    query: tuple[tuple[str, str], ...] = (("markets", ",".join(asked)),)
    if count != ORDERBOOK_DEPTH:
        query += (("count", str(count)),)
    if level:  # the regional venues refuse the parameter
        query += (("level", _plain(level)),)

    def read(body: bytes) -> Rows:
        books = _read_rows(body, _book_rows, build_orderbook)
        for book in books:
            if book.level != level:
                raise InvalidRow(f"{book.market} is grouped by {book.level:g}, not {level:g}")
            if len(book.levels) > count:
                raise InvalidRow(f"{book.market} is deeper than the {count} levels asked for")
        return _by_market(books, asked)

    return Ask("orderbook", "/orderbook", query, _reading(read, "order books"))


class _InstrumentRow(msgspec.Struct, gc=False):
    market: str
    tick_size: str | float
    supported_levels: tuple[str | float, ...] = ("0",)  # absent on some regional venues


_instrument_rows = msgspec.json.Decoder(list[_InstrumentRow])


def _read_instruments(body: bytes, asked: tuple[str, ...]) -> dict[str, Instrument]:
    found = {}
    for row in _by_market(Rows(_instrument_rows.decode(body)), asked):
        instrument = Instrument(float(row.tick_size), tuple(float(level) for level in row.supported_levels))
        if not 0 < instrument.tick_size < float("inf"):
            raise InvalidRow(f"the tick size of {row.market} is {row.tick_size!r}")
        if not all(0 <= level < float("inf") for level in instrument.levels):
            raise InvalidRow(f"a level of {row.market} is not a number")
        found[row.market] = instrument
    return found


def instruments_ask(markets: Iterable[str]) -> Ask:
    """Price steps and book levels of `markets`; parses to a dict of market to `Instrument`."""
    asked = _check_codes("markets", markets)
    parse = _reading(lambda body: _read_instruments(body, asked), "instruments")
    return Ask("orderbook", "/orderbook/instruments", (("markets", ",".join(asked)),), parse)


def trades_ask(
    market: str, count: int, *, cursor: int | None = None, days_ago: int | None = None, to: str | None = None
) -> Ask:
    """The newest `count` trades of one UTC day of `market`, newest first; parses to a tuple of `Trade`.

    cursor : only trades older than the one with this ``sequential_id``. The way to page, losing nothing.
    days_ago : 1 to 7; None is today.
    to : time of that day, ``HH:MM:SS``; trades of that second are left out.
    """
    _check_count(count, TRADES_PAGE)
    if days_ago is not None and not 1 <= days_ago <= 7:
        raise InputError("days_ago", days_ago, "an integer from 1 to 7, or None for today")
    given = (("cursor", cursor), ("days_ago", days_ago), ("to", to))
    query: tuple[tuple[str, str], ...] = (("market", market), ("count", str(count)))
    query += tuple((name, str(value)) for name, value in given if value is not None)

    def read(body: bytes) -> tuple[Trade, ...]:
        trades = tuple(build_trade(row) for row in _trade_rows.decode(body))
        if len(trades) > count:
            raise InvalidRow(f"{len(trades)} rows where {count} were asked for")
        for trade in trades:
            if trade.market != market:
                raise InvalidRow(f"a row is of {trade.market}")
        return trades

    return Ask("crix-trades", "/trades/ticks", query, _reading(read, "trades", market), market)


# ----------------------------------------------------------------------------------------------- the socket


def subscribe_frame(ticket: str, subscriptions: Mapping[str, Iterable[str]]) -> bytes:
    """The one frame that replaces whatever the socket was subscribed to: kind to market codes.

    A code's suffix is the depth of its book (``"KRW-BTC.5"``), a kind's the price grouping (``"orderbook@1000"``). The
    venue ignores unknown codes and groupings without an error, so they must have been checked before.
    """
    frame: list[dict[str, Any]] = [{"ticket": ticket}]
    for kind, codes in subscriptions.items():
        name, level = channel_of(kind)
        part: dict[str, Any] = {"type": name, "codes": list(_check_codes("markets", codes))}
        if level:
            part["level"] = int(level) if level.is_integer() else level
        frame.append(part)
    if len(frame) == 1:
        raise InputError("subscriptions", dict(subscriptions), "at least one kind with its markets")
    frame.append({"format": "DEFAULT"})
    return json.dumps(frame, separators=(",", ":"), ensure_ascii=False).encode()


class Event(NamedTuple):
    """What a frame brought, and whether it is a state (the first frame of a subscription) or a change."""

    record: LiveRecord | Status | StreamError
    is_snapshot: bool = False


_any_frame: Any = reduce(or_, FRAMES)
_frames = msgspec.json.Decoder(_any_frame)


def parse_frame(data: bytes) -> Event:
    """What one frame says. Raises `PayloadError` for anything that is no frame of the venue."""
    try:
        return _event(_frames.decode(data))
    except _BROKEN as exc:
        return _parse_odd_frame(data, exc)


def _event(row: Any) -> Event:
    return Event(FRAMES[type(row)](row), row.stream == "SNAPSHOT")


def _parse_odd_frame(data: bytes, why: Exception) -> Event:
    """The rare frames: errors, status, answers to a method, and data whose keys come in another order."""
    try:
        return _odd_event(msgspec.json.decode(data))
    except _BROKEN as exc:
        why = exc if isinstance(exc, InvalidRow) else why
        raise PayloadError(f"a frame that is none of the venue's: {why}", sample=sample_of(data)) from exc


def _odd_event(part: Any) -> Event:
    if not isinstance(part, dict):
        raise ValueError("no object")
    error = part.get("error")
    if isinstance(error, dict):
        return Event(StreamError(str(error.get("name", "")), str(error.get("message", ""))))
    for key in ("status", "method"):
        if isinstance(part.get(key), str):
            return Event(Status(part[key]))
    return _event(msgspec.convert(part, _any_frame))
