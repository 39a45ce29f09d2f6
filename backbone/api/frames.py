"""Rows into DataFrames: column order, pinned dtypes, the index, and the empty frame of each kind.

Every call makes an Arrow table first and turns it into what was asked for: pandas (indexed), Polars or Arrow (the index
is the first column). dtypes never depend on the content: a frame of zero rows has the columns and types of a full one.
Facts about the answer ride in ``attrs["backbone"]`` (pandas and Polars; a Polars operation drops them) or in the
schema metadata under ``b"backbone"`` (Arrow); `attrs_of` finds them in each.
"""

from __future__ import annotations

import importlib
import json
import sys
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from backbone.api.format import plain
from backbone.candle_table import times_of
from backbone.imports import undisturbed
from backbone.model import CANDLE_SCHEMA, Level, MarketInfo, OrderBook, Priority, Ticker, Trade

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

__all__ = [
    "added_up",
    "attrs_of",
    "candles_table",
    "deliver",
    "facts",
    "local_facts",
    "markets_table",
    "new_request_id",
    "only_source",
    "orderbooks_table",
    "prepare",
    "records",
    "shape_tickers",
    "table_of",
    "tickers_table",
    "trades_table",
    "with_best",
]

TICKER_NUMBERS = (
    "price", "open", "high", "low", "prev_close", "change", "change_rate", "volume", "value", "volume_24h", "value_24h",
)  # fmt: skip
"""The float columns of a ticker frame, in order."""
_OPTIONAL_NUMBERS = ("ask_volume", "bid_volume", "high_52w", "low_52w")
_BEST = ("best_bid_price", "best_bid_size", "best_ask_price", "best_ask_size")
_numbers_of_ticker = attrgetter(*TICKER_NUMBERS)
_numbers_of_level = attrgetter(*Level.__struct_fields__)
TEXT, WHOLE, REAL, FLAG, TIME = pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us", tz="UTC")
"""What a column holds; times are given in microseconds."""
_MANY = 50_000  # rows from which waking Arrow's threads costs less than it saves
_CHUNK = 1 << 24  # rows of text a chunk: Arrow counts their bytes in 31 bits


def new_request_id() -> str:
    """A new identity for one answer."""
    return uuid.uuid4().hex


def facts(
    *,
    sources: dict[str, int],
    elapsed_ms: float,
    priority: Priority,
    requests: int = 0,
    rows: int | None = None,
    quiet: int = 0,
    unknown: int = 0,
) -> dict[str, Any]:
    """The content of ``attrs["backbone"]``, JSON-safe. `rows` is the sum of `sources`, if nothing else is given."""
    return {
        "request_id": new_request_id(),
        "source": only_source(sources),
        "cache_hit": requests == 0,
        "elapsed_ms": round(elapsed_ms, 3),
        "data_count": sum(sources.values()) if rows is None else rows,
        "priority": priority.value,
        "requests": requests,
        "pages": requests,
        "quiet": quiet,
        "unknown": unknown,
        "sources": sources,
    }


def only_source(sources: Mapping[str, int]) -> str:
    """The one source of all rows, or ``"mixed"``, or ``"none"`` where there are no rows."""
    names = [name for name, number in sources.items() if number]
    return names[0] if len(names) == 1 else ("mixed" if names else "none")


def added_up(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Rows by source, of several answers."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def local_facts(rows: int, source: str = "memory") -> dict[str, Any]:
    """The facts of a frame that needed no request: a status, the store's own tables."""
    return facts(sources={source: rows}, elapsed_ms=0.0, priority=Priority.NORMAL)


def table_of(columns: Mapping[str, pa.DataType], rows: Iterable[Sequence[Any]]) -> pa.Table:
    """A table of rows as sequences; its `columns` have their types also where there is no row."""
    values = list(zip(*rows, strict=True)) or [()] * len(columns)
    arrays = [pa.array(column, kind) for column, kind in zip(values, columns.values(), strict=True)]
    return pa.Table.from_arrays(arrays, names=list(columns))


def deliver(table: pa.Table | pd.DataFrame, frames: str, *, index: str | None, zone: str, attrs: dict[str, Any]) -> Any:
    """`table` as pandas, Polars or Arrow, times shown in `zone`, with `attrs` attached.

    A pandas frame (of `shape_tickers`) is that already; only `attrs` are attached.
    """
    if not isinstance(table, pa.Table):
        table.attrs["backbone"] = attrs
        return table
    if frames == "pandas":
        return _to_pandas(table, index, zone, attrs)
    if frames == "polars":
        table = table.combine_chunks()  # before the zone: one column is cast, not one a market
    table = _in_zone(table, zone)
    if frames == "arrow":
        metadata = {**(table.schema.metadata or {}), b"backbone": json.dumps(attrs).encode()}
        return table.replace_schema_metadata(metadata)
    polars_frame = _to_polars(table)
    polars_frame.attrs = {"backbone": attrs}  # type: ignore[attr-defined]
    return polars_frame


def prepare(frames: str) -> None:
    """Import what `deliver` will need; called while a request is on its way, because that takes longer than a reply."""
    if frames != "arrow" and frames not in sys.modules:
        with undisturbed():
            importlib.import_module(frames)


def attrs_of(frame: Any) -> dict[str, Any]:
    """What backbone said about an answer, whatever its frame type (empty for a frame that is not ours)."""
    if isinstance(frame, pa.Table):
        return dict(json.loads((frame.schema.metadata or {}).get(b"backbone", b"{}")))
    return dict(getattr(frame, "attrs", {}).get("backbone", {}))


def _in_zone(table: pa.Table, zone: str) -> pa.Table:
    if zone == "UTC":
        return table
    shown = pa.timestamp("us", tz=zone)
    for i, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            table = table.set_column(i, field.with_type(shown), table.column(i).cast(shown))
    return table


def _to_polars(table: pa.Table) -> pl.DataFrame:
    """Column by column: `from_arrow` wakes Polars' own threads, which a forked child of its user does not have."""
    import polars as pl

    columns = ((name, table.column(name)) for name in table.column_names)
    return pl.DataFrame(
        [pl.Series(name, c.chunk(0) if c.num_chunks == 1 else c.combine_chunks()) for name, c in columns]
    )


def _to_pandas(table: pa.Table, index: str | None, zone: str, attrs: dict[str, Any]) -> pd.DataFrame:
    """The index from bare numbers, and floats into one block: a third of the time that Arrow takes for 1,000 rows."""
    import pandas as pd

    columns = table if index is None else table.drop_columns([index])
    is_small = table.num_rows <= _MANY
    if index is None:
        frame: pd.DataFrame = _in_zone(columns, zone).to_pandas(split_blocks=False, use_threads=not is_small)
    else:
        shown = _index(table.column(index), index, zone)
        forming = columns.column("forming").to_numpy() if "forming" in columns.column_names[-1:] else None
        floats = columns if forming is None else columns.drop_columns(["forming"])
        if is_small and all(pa.types.is_float64(c.type) and not c.null_count for c in floats.columns):
            block = np.empty((floats.num_columns, floats.num_rows))
            for row, column in zip(block, floats.columns, strict=True):
                at = 0
                for chunk in column.chunks:
                    row[at : at + len(chunk)] = chunk
                    at += len(chunk)
            names = _texts(tuple(floats.column_names)).view()  # a name that is given to it is this frame's own
            frame = pd.DataFrame(block.T, index=shown, columns=names, copy=False)
            if forming is not None:
                frame["forming"] = forming
        else:
            frame = _in_zone(columns, zone).to_pandas(split_blocks=False, use_threads=not is_small)
            frame.index = shown
    frame.attrs["backbone"] = attrs
    return frame


def _index(column: pa.ChunkedArray, name: str, zone: str) -> Any:
    import pandas as pd

    if not pa.types.is_timestamp(column.type):
        return pd.Index(column.to_pandas(), name=name)
    times = np.array(column.cast(pa.timestamp("us")).cast(pa.int64()), np.int64).view("datetime64[us]")
    return pd.DatetimeIndex(times, name=name).tz_localize("UTC").tz_convert(zone)


@lru_cache(maxsize=64)
def _texts(values: tuple[str | None, ...]) -> Any:
    """A pandas index of texts; the frames of a call have the same columns, markets and sources each time."""
    import pandas as pd

    return pd.Index(pa.array(values, TEXT).to_pandas())


def candles_table(parts: Sequence[tuple[str, pa.Table]], *, many: bool) -> pa.Table:
    """One long candle table; `many` puts a ``market`` column first."""
    if not many:
        return parts[0][1]
    table = pa.concat_tables([rows for _, rows in parts])
    which = np.repeat(np.arange(len(parts), dtype=np.int32), [rows.num_rows for _, rows in parts])
    markets = pa.array([market for market, _ in parts], pa.string())
    chunks = [
        pa.DictionaryArray.from_arrays(pa.array(which[at : at + _CHUNK]), markets).cast(pa.string())
        for at in range(0, max(1, len(which)), _CHUNK)
    ]
    return table.add_column(0, "market", pa.chunked_array(chunks))


def wide_table(parts: Sequence[tuple[str, pa.Table]], column: str) -> pa.Table:
    """One column of many markets: ``time``, then a float64 column a market; NaN where a market has no candle."""
    opens = [times_of(table) for _, table in parts]
    grid = np.unique(np.concatenate(opens))
    columns = [pa.array(grid).cast(CANDLE_SCHEMA.field("time").type)]
    for (_, table), times in zip(parts, opens, strict=True):
        if len(times) == len(grid):
            columns.append(table.column(column).combine_chunks())
            continue
        values = np.full(len(grid), np.nan)
        values[np.searchsorted(grid, times)] = table.column(column).to_numpy()
        columns.append(pa.array(values))
    return pa.table(columns, names=["time", *(market for market, _ in parts)])


def _optional(rows: Sequence[Any], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of what the venue does not send everywhere: NaN where it did not."""
    return {name: np.array([getattr(row, name) for row in rows], np.float64) for name in names}


def tickers_table(rows: Sequence[Ticker], sources: Sequence[str], ages_s: Sequence[float] | np.ndarray) -> pa.Table:
    """The ticker frame's columns; ``source`` and ``age`` (seconds since the row was received) per row.

    What the venue did not send of a row is NaN, its ``state`` None.
    """
    return pa.table(
        {
            "market": pa.array([row.market for row in rows], TEXT),
            "time": pa.array([row.time_us for row in rows], TIME),
            **_ticker_numbers(rows),
            "source": pa.array(list(sources), TEXT),
            "age": np.array(ages_s, np.float64),
            **_optional(rows, _OPTIONAL_NUMBERS),
            "state": pa.array([row.state for row in rows], TEXT),
        }
    )


def shape_tickers(
    rows: Sequence[Ticker], sources: Sequence[str], ages_s: Sequence[float] | np.ndarray, frames: str, zone: str
) -> pa.Table | pd.DataFrame:
    """A ticker frame for `deliver`: for pandas the frame itself, made in half the time that the table would take."""
    if frames != "pandas":
        return tickers_table(rows, sources, ages_s)
    import pandas as pd

    times = np.array([row.time_us for row in rows], np.int64).view("datetime64[us]")
    columns: dict[str, Any] = {
        "time": pd.DatetimeIndex(times).tz_localize("UTC").tz_convert(zone),
        **_ticker_numbers(rows),
        "source": _texts(tuple(sources)).array.copy(),
        "age": np.array(ages_s, np.float64),
        **_optional(rows, _OPTIONAL_NUMBERS),
        "state": _texts(tuple([row.state for row in rows])).array.copy(),
    }
    index = _texts(tuple([row.market for row in rows])).rename("market")  # of its own: others may rename theirs
    return pd.DataFrame(columns, index=index, copy=False)


def _ticker_numbers(rows: Sequence[Ticker]) -> dict[str, np.ndarray]:
    """The float columns, each one contiguous."""
    flat = chain.from_iterable(map(_numbers_of_ticker, rows))
    numbers = np.fromiter(flat, np.float64, len(rows) * len(TICKER_NUMBERS)).reshape(-1, len(TICKER_NUMBERS))
    return dict(zip(TICKER_NUMBERS, np.ascontiguousarray(numbers.T), strict=True))


def orderbooks_table(books: Sequence[OrderBook], depth: int) -> pa.Table:
    """One row a level, best first; a side with fewer orders is NaN there."""
    levels = [book.levels[:depth] for book in books]
    counts = np.array([len(rows) for rows in levels], np.int64)
    of_book = np.repeat(np.arange(len(books)), counts)
    flat = chain.from_iterable(map(_numbers_of_level, chain.from_iterable(levels)))
    sides = np.fromiter(flat, np.float64, 4 * len(of_book)).reshape(-1, 2)
    sides[sides[:, 0] == 0] = np.nan  # the venue's padding
    ask_price, ask_size, bid_price, bid_size = sides.reshape(-1, 4).T.copy()
    first = np.cumsum(counts) - counts
    return pa.table(
        {
            "market": pa.array([book.market for book in books], TEXT).take(of_book),
            "time": pa.array([book.time_us for book in books], TIME).take(of_book),
            "level": np.arange(1, len(of_book) + 1) - first[of_book],
            "ask_price": ask_price,
            "ask_size": ask_size,
            "bid_price": bid_price,
            "bid_size": bid_size,
        }
    )


def trades_table(rows: Sequence[Trade]) -> pa.Table:
    """Oldest first; ``time`` keeps the venue's milliseconds; ids stay integers throughout.

    The best prices and sizes right after a trade are NaN where the venue did not send them.
    """
    return pa.table(
        {
            "time": pa.array([row.time_us for row in rows], TIME),
            "market": pa.array([row.market for row in rows], TEXT),
            "price": pa.array([row.price for row in rows], REAL),
            "volume": pa.array([row.volume for row in rows], REAL),
            "side": pa.array([row.side for row in rows], TEXT),
            "sequential_id": pa.array([row.sequential_id for row in rows], WHOLE),
            **_optional(rows, _BEST),
        }
    )


def with_best(trades: pa.Table) -> pa.Table:
    """Trades of the archive with the columns that it does not have."""
    for name in _BEST:
        trades = trades.append_column(name, pa.array(np.full(trades.num_rows, np.nan)))
    return trades


def markets_table(rows: Sequence[MarketInfo]) -> pa.Table:
    """One row a market, in the venue's order; ``cautions`` is a comma list of the raised flags."""
    return table_of(
        {"market": TEXT, "korean_name": TEXT, "english_name": TEXT, "warning": FLAG, "cautions": TEXT},
        [(row.market, row.korean_name, row.english_name, row.warning, ",".join(row.cautions)) for row in rows],
    )


def records(table: pa.Table, zone: str) -> list[dict[str, Any]]:
    """Plain JSON-safe records: times as ISO text in `zone`, NaN as None."""
    rows: list[dict[str, Any]] = _in_zone(table, zone).to_pylist()
    return [{key: plain(value) for key, value in row.items()} for row in rows]
