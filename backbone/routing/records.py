"""How the venue spells a row, and the builders that make a record of it, for REST and for the socket.

One table a kind says how a REST row and a frame (of the DEFAULT format, the only one that is asked for) spell each
field; both become the same record of `backbone.model`. Only ``Ticker.stamp_us``, the time at which the row was made,
differs between the channels; what one of them does not send is None there.
The other half of the dialect, questions and frames, is `wire`: together they were one file of more than 700 lines.

Numbers become the float64 nearest to the decimal on the wire, whatever its spelling; ids and times are read as
integers and never pass through a float; unknown fields are ignored. Pure: no clock, no I/O, no state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec

from backbone.errors import InputError
from backbone.model import Level, LiveCandle, OrderBook, Ticker, Trade
from backbone.timeframe import TIMEFRAMES, Timeframe
from backbone.venues import Venue

__all__ = [
    "EPOCH",
    "FRAMES",
    "KINDS",
    "MICROSECOND",
    "Amount",
    "BookRow",
    "InvalidRow",
    "LiveRecord",
    "Millis",
    "Price",
    "TickerRow",
    "TradeRow",
    "build_orderbook",
    "build_ticker",
    "build_trade",
    "channel_of",
    "grouped",
    "kind_of",
    "list_of",
    "parse_kind",
    "timeframe_of",
]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
_INFINITY = float("inf")

Millis = Annotated[int, msgspec.Meta(ge=0, le=9_000_000_000_000_000)]  # its microseconds fit in 64 bits
Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Price = Annotated[float, msgspec.Meta(gt=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]  # an infinite number is no JSON
_Side = Literal["BID", "ASK"]
_TAKERS = {"BID": "buy", "ASK": "sell"}

LiveRecord = Ticker | Trade | OrderBook | LiveCandle


class InvalidRow(ValueError):
    """A row that cannot be true; becomes a `PayloadError` where the body is known."""


_REST, _FRAME = 0, 1
"""In the tables below: how a REST row and how a frame spell a field, where they spell it differently."""


class _Day(msgspec.Struct, gc=False):
    """A day as the venue's own client declares it; the wire also has it as text."""

    year: int
    month: int
    day: int


_FLAG = ("stream", str, "stream_type", "REALTIME")

_TICKER: tuple[tuple[Any, ...], ...] = (
    ("market", str, ("market", "code")),
    ("time", Millis, "trade_timestamp"),
    ("price", Price, "trade_price"),
    ("open", Price, "opening_price"),
    ("high", Price, "high_price"),
    ("low", Price, "low_price"),
    ("prev_close", Price, "prev_closing_price"),
    ("change", float, "signed_change_price"),
    ("change_rate", float, "signed_change_rate"),
    ("volume", Amount, "acc_trade_volume"),
    ("value", Amount, "acc_trade_price"),
    ("volume_24h", Amount, "acc_trade_volume_24h"),
    ("value_24h", Amount, "acc_trade_price_24h"),
    ("stamp", Millis, "timestamp"),
    ("ask_volume", Amount | None, "acc_ask_volume", None),
    ("bid_volume", Amount | None, "acc_bid_volume", None),
    ("high_52w", Amount | None, "highest_52_week_price", None),
    ("low_52w", Amount | None, "lowest_52_week_price", None),
    ("state", str | None, "market_state", None),
    ("side", _Side | None, "ask_bid", None),
    ("last_volume", Amount | None, "trade_volume", None),
    ("high_52w_day", str | None, "highest_52_week_date", None),
    ("low_52w_day", str | None, "lowest_52_week_date", None),
    ("delisting", str | _Day | None, "delisting_date", None),
    ("is_suspended", bool | None, "is_trading_suspended", None),
    ("warning", str | None, "market_warning", None),
    _FLAG,
)

_TRADE: tuple[tuple[Any, ...], ...] = (
    ("market", str, ("market", "code")),
    ("time", Millis, ("timestamp", "trade_timestamp")),  # a frame's timestamp is when it was sent
    ("price", Price, "trade_price"),
    ("volume", Price, "trade_volume"),
    ("side", _Side, "ask_bid"),
    ("id", Id, "sequential_id"),
    ("bid_price", Amount | None, "best_bid_price", None),
    ("bid_size", Amount | None, "best_bid_size", None),
    ("ask_price", Amount | None, "best_ask_price", None),
    ("ask_size", Amount | None, "best_ask_size", None),
    ("prev_close", Amount | None, "prev_closing_price", None),
    ("sent", Millis | None, ("sent_timestamp", "timestamp"), None),  # REST has no such field
    _FLAG,
)

_BOOK: tuple[tuple[Any, ...], ...] = (
    ("market", str, ("market", "code")),
    ("time", Millis, "timestamp"),
    ("levels", tuple[Level, ...], "orderbook_units"),
    ("level", float, "level", 0.0),  # absent on regional venues and in older frames
    ("total_ask", Amount | None, "total_ask_size", None),
    ("total_bid", Amount | None, "total_bid_size", None),
    _FLAG,
)

_LIVE_CANDLE: tuple[tuple[Any, ...], ...] = (
    ("market", str, ("market", "code")),
    ("time", str, "candle_date_time_utc"),
    ("open", Price, "opening_price"),
    ("high", Price, "high_price"),
    ("low", Price, "low_price"),
    ("close", Price, "trade_price"),
    ("volume", Amount, "candle_acc_trade_volume"),
    ("value", Amount, "candle_acc_trade_price"),
    ("stamp", Millis, "timestamp"),
    _FLAG,
)


def _struct(name: str, table: Iterable[tuple[Any, ...]], column: int, tag: str | None = None) -> Any:
    """The msgspec type of a table's rows or frames; with `tag`, a member of the union of frames."""
    fields: list[Any] = []
    for attribute, kind, spelling, *default in table:
        spelled = spelling if isinstance(spelling, str) else spelling[column]
        fields.append((attribute, kind, msgspec.field(name=spelled, **({"default": default[0]} if default else {}))))
    return msgspec.defstruct(name, fields, gc=False, tag_field=tag and "type", tag=tag)


def list_of(kind: Any) -> Any:
    return list[kind]


_STREAM_FRAMES = {"1h": "60m", "4h": "240m"}
_TIMEFRAMES_BY_KIND = {f"candle.{_STREAM_FRAMES.get(name, name)}": TIMEFRAMES[name] for name in Venue.streamed}
KINDS = ("ticker", "trade", "orderbook", *_TIMEFRAMES_BY_KIND)
"""What the socket can be asked for."""
_KINDS_BY_TIMEFRAME = {timeframe.name: kind for kind, timeframe in _TIMEFRAMES_BY_KIND.items()}
_KINDS_BY_TYPE: dict[type, str] = {Ticker: "ticker", Trade: "trade"}


# ------------------------------------------------------------------------- builders: a row becomes a record


def build_ticker(row: Any) -> Ticker:
    if not (row.low <= row.price <= row.high and row.low <= row.open <= row.high):
        raise InvalidRow(f"a price of {row.market} is outside its day's low and high")
    return Ticker(
        row.market,
        row.time * 1000,
        row.price,
        row.open,
        row.high,
        row.low,
        row.prev_close,
        row.change,
        row.change_rate,
        row.volume,
        row.value,
        row.volume_24h,
        row.value_24h,
        row.stamp * 1000,
        row.ask_volume,
        row.bid_volume,
        row.high_52w,
        row.low_52w,
        row.state,
        None if row.side is None else _TAKERS[row.side],
        row.last_volume,
        row.high_52w_day,
        row.low_52w_day,
        None if row.delisting is None else _iso_day(row.delisting),
        row.is_suspended,
        row.warning,
    )


def _iso_day(day: str | _Day) -> str:
    return day if isinstance(day, str) else f"{day.year:04}-{day.month:02}-{day.day:02}"


def build_trade(row: Any) -> Trade:
    return Trade(
        row.market,
        row.time * 1000,
        row.price,
        row.volume,
        _TAKERS[row.side],
        row.id,
        row.bid_price,
        row.bid_size,
        row.ask_price,
        row.ask_size,
        row.prev_close,
        None if row.sent is None else row.sent * 1000,
    )


def build_orderbook(row: Any) -> OrderBook:
    last_ask, last_bid = 0.0, _INFINITY
    for level in row.levels:
        ask, bid = level.ask_price, level.bid_price
        if not (last_ask < ask and 0.0 < bid < last_bid):  # rarely
            return OrderBook(row.market, row.time * 1000, row.level, _padded_levels(row), row.total_ask, row.total_bid)
        last_ask, last_bid = ask, bid
    return OrderBook(row.market, row.time * 1000, row.level, row.levels, row.total_ask, row.total_bid)


def _padded_levels(row: Any) -> tuple[Level, ...]:
    """The venue pads the thinner side with zero price and size. A level that is all padding is left out."""
    last_ask, last_bid = 0.0, _INFINITY
    for level in row.levels:
        ask, bid = level.ask_price, level.bid_price
        if not (last_ask < ask or ask == level.ask_size == 0):
            raise InvalidRow(f"the asks of {row.market} do not ascend")
        if not (0 < bid < last_bid or bid == level.bid_size == 0):
            raise InvalidRow(f"the bids of {row.market} do not descend")
        last_ask, last_bid = ask or _INFINITY, bid
    return tuple(level for level in row.levels if level.ask_price or level.bid_price)


def _open_us(text: str) -> int:
    """A candle's open; the wire gives ``YYYY-MM-DDTHH:MM:SS`` in UTC without a zone."""
    moment = datetime.fromisoformat(text)
    if len(text) != 19 or moment.tzinfo is not None:
        raise InvalidRow(f"{text!r} is not a time")
    return (moment.replace(tzinfo=UTC) - EPOCH) // MICROSECOND


def _live_candle(row: Any, timeframe: Timeframe) -> LiveCandle:
    time_us = _open_us(row.time)
    if timeframe.floor(time_us) != time_us:
        raise InvalidRow(f"{row.time} is not where a {timeframe} candle opens")
    if not row.low <= min(row.open, row.close) <= max(row.open, row.close) <= row.high:
        raise InvalidRow(f"the prices of the candle {row.time} of {row.market} contradict each other")
    return LiveCandle(
        row.market,
        timeframe.name,
        time_us,
        row.open,
        row.high,
        row.low,
        row.close,
        row.volume,
        row.value,
        row.stamp * 1000,
    )


def parse_kind(value: object) -> str:
    """The venue's name of a kind of live data; our ``candle.1h`` and ``candle.4h`` are accepted as well."""
    kind = value.strip() if isinstance(value, str) else ""
    head, dot, length = kind.partition(".")
    kind = head + dot + _STREAM_FRAMES.get(length, length)
    if kind not in KINDS:
        raise InputError("kinds", value, "one of " + " ".join(KINDS))
    return kind


def grouped(level: float) -> str:
    """The kind under which books grouped by `level` are had and held; 0: not grouped."""
    return f"orderbook@{level:g}" if level else "orderbook"


def channel_of(kind: str) -> tuple[str, float]:
    """The venue's name of a kind and the price grouping of its books: ``"orderbook@1000"`` is grouped by 1000."""
    name, _, level = kind.partition("@")
    return parse_kind(name), float(level or 0)


def timeframe_of(kind: str) -> Timeframe | None:
    """The timeframe of a candle kind, None for the other kinds."""
    return _TIMEFRAMES_BY_KIND[parse_kind(kind)] if kind.startswith("candle.") else None


def kind_of(record: LiveRecord) -> str:
    """The kind of live data that a record is: as the venue names it, a grouped book as `grouped` does."""
    if isinstance(record, LiveCandle):
        return _KINDS_BY_TIMEFRAME[record.timeframe]
    if isinstance(record, OrderBook):
        return grouped(record.level)
    return _KINDS_BY_TYPE[type(record)]


def _frame_types() -> dict[Any, Callable[[Any], LiveRecord]]:
    """Each type of frame with its builder."""
    types: dict[Any, Callable[[Any], LiveRecord]] = {
        _struct("TickerFrame", _TICKER, _FRAME, "ticker"): build_ticker,
        _struct("TradeFrame", _TRADE, _FRAME, "trade"): build_trade,
        _struct("BookFrame", _BOOK, _FRAME, "orderbook"): build_orderbook,
    }
    for kind, timeframe in _TIMEFRAMES_BY_KIND.items():
        frame = _struct(f"Frame_{kind.replace('.', '_')}", _LIVE_CANDLE, _FRAME, kind)
        types[frame] = lambda row, timeframe=timeframe: _live_candle(row, timeframe)  # type: ignore[misc]
    return types


TickerRow = _struct("TickerRow", _TICKER, _REST)
BookRow = _struct("BookRow", _BOOK, _REST)
TradeRow = _struct("TradeRow", _TRADE, _REST)
FRAMES = _frame_types()
