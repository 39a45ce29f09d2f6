"""The records that travel between layers, and the one candle schema.

Time is an ``int``: microseconds since the epoch, UTC. A `Span` is half-open. Candles travel as a `pyarrow.Table` with
`CANDLE_SCHEMA`, sorted and unique by ``time``; single events travel as the frozen records below, whose fields are the
same whatever channel brought them.
"""

from __future__ import annotations

import enum
from functools import cache
from typing import Annotated, NamedTuple

import msgspec
import pyarrow as pa

__all__ = [
    "CANDLE_COLUMNS",
    "CANDLE_SCHEMA",
    "DataType",
    "Level",
    "LiveCandle",
    "MarketInfo",
    "OrderBook",
    "Priority",
    "Span",
    "Ticker",
    "Trade",
    "empty_candles",
]

_Amount = Annotated[float, msgspec.Meta(ge=0)]

CANDLE_COLUMNS = ("open", "high", "low", "close", "volume", "value")
"""Prices and ``value`` (turnover) in the quote currency, ``volume`` in base units."""

CANDLE_SCHEMA = pa.schema(
    [pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False)]
    + [pa.field(name, pa.float64(), nullable=False) for name in CANDLE_COLUMNS]
)
"""``time`` is the candle's open. No nulls: Parquet readers are a fifth faster without them."""


@cache
def empty_candles() -> pa.Table:
    """The candle table of zero rows, all columns typed; one for all, since a table never changes."""
    return pa.Table.from_batches([], CANDLE_SCHEMA)  # `empty_table` would import pandas


class Span(NamedTuple):
    """A half-open interval of time ``[start, end)`` in microseconds UTC."""

    start: int
    end: int

    @property
    def length_us(self) -> int:
        return self.end - self.start


class Priority(enum.Enum):
    """Who goes first. Names are accepted as strings wherever a priority is asked for."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    def __init__(self, name: str) -> None:
        self.rank = len(type(self).__members__)
        """0 is the most urgent. An attribute, because every permit asks for it."""


class DataType(enum.Enum):
    """What an envelope request asks for. Names are accepted as strings in any case, also in the plural."""

    CANDLE = "candle"
    TICKER = "ticker"
    ORDERBOOK = "orderbook"
    TRADE = "trade"


class MarketInfo(msgspec.Struct, frozen=True):
    """One tradable market. ``korean_name`` is empty on regional venues; ``cautions`` holds the raised flags' names."""

    market: str
    korean_name: str
    english_name: str
    warning: bool
    cautions: tuple[str, ...] = ()


Condition = tuple[str | None, str | None, bool | None, str | None]


class Ticker(msgspec.Struct, frozen=True):
    """The latest summary of one market. ``change`` and ``change_rate`` are signed; volumes since 00:00 UTC.

    ``time_us`` is the last trade's time; ``stamp_us`` is when the venue made the row, which orders two rows of one
    market and differs by channel. What follows it is None where the venue did not send it: REST leaves out the volumes
    by side and the market's state. ``side`` and ``last_volume`` are the last trade's, ``ask_volume`` and ``bid_volume``
    what takers sold and bought since 00:00 UTC; ``state`` is ``"PREVIEW"``, ``"ACTIVE"`` or ``"DELISTED"``; days are
    ISO dates.
    """

    market: str
    time_us: int
    price: float
    open: float
    high: float
    low: float
    prev_close: float
    change: float
    change_rate: float
    volume: float
    value: float
    volume_24h: float
    value_24h: float
    stamp_us: int
    ask_volume: float | None = None
    bid_volume: float | None = None
    high_52w: float | None = None
    low_52w: float | None = None
    state: str | None = None
    side: str | None = None
    last_volume: float | None = None
    high_52w_day: str | None = None
    low_52w_day: str | None = None
    delisting_day: str | None = None
    is_suspended: bool | None = None
    warning: str | None = None

    @property
    def condition(self) -> Condition:
        """What it says of its market: state, delisting day, whether it is suspended, warning."""
        return self.state, self.delisting_day, self.is_suspended, self.warning

    def completed(self, other: Ticker) -> Ticker:
        """This row with what `other` knows beyond it, where both are of the same last trade; else as it is."""
        if (self.time_us, self.price, self.volume) != (other.time_us, other.price, other.volume):
            return self
        lacking = [name for name in _STREAM_FIELDS if getattr(self, name) is None]
        more = {name: value for name in lacking if (value := getattr(other, name)) is not None}
        return msgspec.structs.replace(self, **more) if more else self


_STREAM_FIELDS = Ticker.__struct_fields__[Ticker.__struct_fields__.index("stamp_us") + 1 :]


class Level(msgspec.Struct, frozen=True, gc=False):
    """One row of a book as the venue pairs them. On the thinner side, prices and sizes are zero from where it ends."""

    ask_price: _Amount
    ask_size: _Amount
    bid_price: _Amount
    bid_size: _Amount


class OrderBook(msgspec.Struct, frozen=True):
    """One book, best first, with the total sizes that the venue gave. `asks` and `bids` are made anew at each look,
    without the padding.

    Most books of a busy stream are replaced before anybody looks; making both sides at once was half of their cost.
    """

    market: str
    time_us: int
    level: float
    levels: tuple[Level, ...]
    total_ask_size: float | None = None
    total_bid_size: float | None = None

    def cut(self, depth: int) -> OrderBook:
        """The best `depth` levels of it."""
        return self if len(self.levels) <= depth else msgspec.structs.replace(self, levels=self.levels[:depth])

    @property
    def asks(self) -> tuple[tuple[float, float], ...]:
        """(price, size), ascending."""
        return tuple([(row.ask_price, row.ask_size) for row in self.levels if row.ask_price])

    @property
    def bids(self) -> tuple[tuple[float, float], ...]:
        """(price, size), descending."""
        return tuple([(row.bid_price, row.bid_size) for row in self.levels if row.bid_price])

    @property
    def stamp_us(self) -> int:
        return self.time_us


class Trade(msgspec.Struct, frozen=True):
    """One execution. ``side`` is the taker's: ``"buy"`` or ``"sell"``. ``sequential_id`` is unique in its market.

    The rest is None where the venue did not send it: the best prices and sizes right after it and ``sent_us``, when the
    frame was sent, come on the socket alone.
    """

    market: str
    time_us: int
    price: float
    volume: float
    side: str
    sequential_id: int
    best_bid_price: float | None = None
    best_bid_size: float | None = None
    best_ask_price: float | None = None
    best_ask_size: float | None = None
    prev_close: float | None = None
    sent_us: int | None = None

    @property
    def stamp_us(self) -> int:
        return self.time_us


class LiveCandle(msgspec.Struct, frozen=True):
    """The state of one candle as a stream sent it; forming until a later one or the clock says otherwise."""

    market: str
    timeframe: str
    time_us: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    value: float
    stamp_us: int
