"""The venue's bulk archive of candles and trades: which file holds what, how one is asked for, and what is checked.

Monthly and daily zip files, one CSV each, with a SHA-256 beside it, in the trees ``candle/{market}/{monthly|daily}/
{interval}/{year}/`` and ``trade/{market}/{monthly|daily}/{year}/``, and a listing of them as JSON. None of this is
promised by the venue's documentation; it is what several users reported in 2026, so whatever differs from it is a
`PayloadError`, and nothing of that file is used. Files are cut at UTC midnights; a candle without trades has no row; a
period is published the next day, between 10:00 and 14:00 KST; files may be replaced without notice; delisted markets
are absent.

The archive has hosts of its own. Its refusals say nothing about the quota of the venue's REST interface, so they are
reported as failures of this source alone.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import numpy as np
import pyarrow as pa

from backbone.clock import Clock
from backbone.errors import PayloadError, RateLimitedError, UnreachableError
from backbone.model import CANDLE_SCHEMA, Span
from backbone.routing.refusals import sample_of
from backbone.routing.rest import Reply, RestClient
from backbone.routing.wire import Ask
from backbone.timeframe import TIMEFRAMES, Timeframe

__all__ = [
    "ARCHIVE_GROUP",
    "TRADES_SINCE_US",
    "TRADE_SCHEMA",
    "ArchiveClient",
    "ArchiveFile",
    "Download",
    "TradeFile",
    "checksum_ask",
    "file_ask",
    "files_of",
    "listing_ask",
]

ARCHIVE_GROUP = "archive"
"""The queue's name for requests to the archive; the venue has no such group."""

_INTERVALS = {name: name for name in ("1s", "1m", "3m", "5m", "10m", "15m", "30m")} | {"1h": "60m", "4h": "240m"}
_FIRST_US = {"1s": 1_688_169_600_000_000}  # 2023-07-01
_FIRST_EVER_US = 1_508_803_200_000_000  # 2017-10-24
_SEEN_US = 3_600_000_000  # 10:00 KST of the next day
_DUE_US = 5 * 3_600_000_000  # 14:00 KST
_DAY, _MONTH = TIMEFRAMES["1d"], TIMEFRAMES["1M"]
_CANDLE_COLUMNS = {"date_time_utc": pa.timestamp("us")} | dict.fromkeys(
    ("open", "high", "low", "close", "acc_trade_price", "acc_trade_volume"), pa.float64()
)
TRADES_SINCE_US = 1_651_363_200_000_000
"""2022-05-01 UTC: the first day whose trades the archive has."""

TRADE_SCHEMA = pa.schema(
    [
        ("time", pa.timestamp("us", tz="UTC")),
        ("market", pa.string()),
        ("price", pa.float64()),
        ("volume", pa.float64()),
        ("side", pa.string()),
        ("sequential_id", pa.int64()),
    ]
)
_TRADE_COLUMNS = {"timestamp": pa.int64(), "price": pa.float64(), "volume": pa.float64(), "ask_bid": pa.string()}
_TRADE_IDS = ("seq", "trade_id")  # two sources name the id differently
_SIDES = {"BID": "buy", "ASK": "sell"}
_LARGEST = 512 << 20  # of a CSV, unpacked; a month of seconds has some 200 MB
_FILE_S = 120.0


@dataclass(frozen=True)
class _File:
    """One file of one market, by the period that it holds."""

    market: str
    span: Span

    folder_form = "trade/{market}/{kind}/{year}"
    name_form = "{market}_trade-{stamp}.zip"
    interval = ""
    is_month = False

    @property
    def folder(self) -> str:
        """The prefix that the listing is asked for."""
        return self._spelled(self.folder_form)

    @property
    def key(self) -> str:
        return f"{self.folder}/{self}"

    def __str__(self) -> str:
        return self._spelled(self.name_form)

    def _spelled(self, form: str) -> str:
        day = str(np.datetime64(self.span.start, "us").astype("datetime64[D]"))
        stamp = (day[:7] if self.is_month else day).replace("-", "")
        kind = "monthly" if self.is_month else "daily"
        return form.format(market=self.market, kind=kind, interval=self.interval, year=stamp[:4], stamp=stamp)


@dataclass(frozen=True)
class TradeFile(_File):
    """The trades of one market and UTC day."""


@dataclass(frozen=True)
class ArchiveFile(_File):
    """A month's or a day's candles of one market and timeframe."""

    timeframe: Timeframe
    is_month: bool

    folder_form = "candle/{market}/{kind}/{interval}/{year}"
    name_form = "{market}_candle-{interval}_{stamp}.zip"

    @property
    def interval(self) -> str:  # type: ignore[override]
        return _INTERVALS[self.timeframe.name]

    def may_be_there(self, now_us: int) -> bool:
        """Whether it is worth looking for by now."""
        return now_us >= self.span.end + _SEEN_US

    def is_due(self, now_us: int) -> bool:
        """Whether it has to be there by now."""
        return now_us >= self.span.end + _DUE_US


def files_of(market: str, timeframe: Timeframe, span: Span, *, months: bool) -> list[ArchiveFile]:
    """The files of the whole months (days) that `span` touches, oldest first; none before the archive begins."""
    if timeframe.name not in _INTERVALS:
        return []
    unit = _MONTH if months else _DAY
    first = max(span.start, _FIRST_US.get(timeframe.name, _FIRST_EVER_US))
    at = unit.floor(first)
    found = []
    while at < span.end:
        after = unit.next(at)
        found.append(ArchiveFile(market, Span(at, after), timeframe, months))
        at = after
    return found


@dataclass(frozen=True)
class Download:
    """A file's rows, and the SHA-256 of its bytes."""

    table: pa.Table
    sha256: str


# -- questions -------------------------------------------------------------------------------------------------------


def listing_ask(folder: str) -> Ask:
    """Which files a folder has: a frozenset of keys."""
    return Ask(ARCHIVE_GROUP, "/api/v1/market-data/listing", (("prefix", folder),), _reading(_read_listing))


def checksum_ask(file: ArchiveFile | TradeFile) -> Ask:
    """The SHA-256 that the archive states for a file."""
    return Ask(ARCHIVE_GROUP, f"/{file.key}.checksum", (), _reading(_read_checksum), file.market)


def file_ask(file: ArchiveFile | TradeFile) -> Ask:
    """The file itself: a `Download` of candles, or of trades in `TRADE_SCHEMA`, oldest first."""

    def read(body: bytes) -> Download:
        text = _unpacked(body)
        table = _read_trades(text, file) if isinstance(file, TradeFile) else _read_candles(text, file)
        return Download(table, hashlib.sha256(body).hexdigest())

    return Ask(ARCHIVE_GROUP, f"/{file.key}", (), _reading(read), file.market)


class ArchiveClient(RestClient):
    """Asks the archive's two hosts: the one that lists, and the one that has the files."""

    group = ARCHIVE_GROUP

    def __init__(self, file_url: str, list_url: str, *, clock: Clock) -> None:
        super().__init__(file_url, clock=clock, timeout_s=(3.05, 30.0), total_s=_FILE_S, pool=16)
        self._list_url = list_url.rstrip("/")

    def _url(self, ask: Ask) -> str:
        if ask.query:
            return f"{self._list_url}{ask.path}?{urlencode(ask.query, safe='/', quote_via=quote)}"
        return f"{self.base_url}{ask.path}"

    def send(self, ask: Ask) -> Reply:
        """As `RestClient.send`; a refusal for the rate is this host's own and says nothing about the venue's quota."""
        try:
            return super().send(ask)
        except RateLimitedError as exc:
            raise UnreachableError(f"the archive refuses for the rate: {exc}", market=ask.market, url=exc.url) from exc


# -- answers ---------------------------------------------------------------------------------------------------------


class _Entry(msgspec.Struct):
    key: str
    type: str


_BROKEN = (
    ValueError,
    KeyError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    pa.ArrowException,
    msgspec.MsgspecError,
)


def _reading(read: Any) -> Any:
    def parse(body: bytes) -> Any:
        try:
            return read(body)
        except _BROKEN as exc:
            raise PayloadError(f"the archive is not laid out as known: {exc}", sample=sample_of(body)) from exc

    return parse


def _read_listing(body: bytes) -> frozenset[str]:
    return frozenset(entry.key for entry in msgspec.json.decode(body, type=list[_Entry]) if entry.type == "FILE")


def _read_checksum(body: bytes) -> str:
    found = re.match(rb"\s*([0-9a-fA-F]{64})(\s|$)", body)
    if found is None:
        raise ValueError("the checksum is no SHA-256")
    return found.group(1).decode().lower()


def _unpacked(body: bytes) -> bytes:
    """The one CSV of a zip file."""
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        names = [info for info in archive.infolist() if info.filename.endswith(".csv")]
        if len(names) != 1:
            raise ValueError(f"{len(names)} CSV files in one archive")
        if names[0].file_size > _LARGEST:
            raise ValueError("a CSV that is too large")
        return archive.read(names[0])


def _rows_of(text: bytes, header: list[str], types: dict[str, pa.DataType]) -> pa.Table:
    """The rows of a CSV with exactly the columns of `types`, in any order; else `ValueError`."""
    from pyarrow import csv

    if sorted(header) != sorted(types):
        raise ValueError(f"the columns are {header}")
    options = csv.ConvertOptions(column_types=types, strings_can_be_null=False, null_values=[])
    return csv.read_csv(pa.BufferReader(text), convert_options=options).combine_chunks()


def _header_of(text: bytes) -> list[str]:
    return text[: text.find(b"\n") + 1 or len(text)].decode("utf-8-sig").strip().split(",")


def _read_candles(text: bytes, file: ArchiveFile) -> pa.Table:
    rows = _rows_of(text, _header_of(text), _CANDLE_COLUMNS)
    time = rows.column("date_time_utc").to_numpy().astype("datetime64[us]").astype(np.int64)
    if len(time) > 1 and time[0] > time[-1]:
        rows, time = rows.take(np.arange(len(time))[::-1]), time[::-1]
    columns = [pa.array(time).view(CANDLE_SCHEMA.field("time").type)]
    for name in ("open", "high", "low", "close", "acc_trade_volume", "acc_trade_price"):
        columns.append(rows.column(name).combine_chunks())
    table = pa.Table.from_arrays(columns, schema=CANDLE_SCHEMA)
    _check_rows(table, time, file)
    return table


def _check_rows(table: pa.Table, time: Any, file: ArchiveFile) -> None:
    """Each candle possible, once, in order, on the grid and inside the file's period; else `ValueError`."""
    if not len(time):
        return
    if not bool((time[1:] > time[:-1]).all()):
        raise ValueError("rows are out of order, or doubled")
    if time[0] < file.span.start or time[-1] >= file.span.end:
        raise ValueError("rows are outside the file's period")
    if bool((file.timeframe.floor_array(time) != time).any()):
        raise ValueError("rows do not open on the timeframe's grid")
    opened, high, low, close, volume, value = (table.column(i).to_numpy() for i in range(1, 7))
    possible = (low > 0) & (low <= opened) & (opened <= high) & (low <= close) & (close <= high) & np.isfinite(high)
    possible &= (volume > 0) & np.isfinite(volume) & (value > 0) & np.isfinite(value)
    if not bool(possible.all()):
        at = int(np.flatnonzero(~possible)[0])
        raise ValueError(f"row {at + 1} is not a candle that was traded in")


def _read_trades(text: bytes, file: TradeFile) -> pa.Table:
    """The trades of a CSV whose header says in which order its columns stand; else `ValueError`."""
    header = _header_of(text)
    ids_of = next((name for name in _TRADE_IDS if name in header), _TRADE_IDS[0])
    rows = _rows_of(text, header, {**_TRADE_COLUMNS, ids_of: pa.int64()})
    time = rows.column("timestamp").to_numpy() * 1000
    order = np.lexsort((rows.column(ids_of).to_numpy(), time))
    rows, time = rows.take(order), time[order]
    ids, price, volume = (rows.column(name).to_numpy() for name in (ids_of, "price", "volume"))
    sides = rows.column("ask_bid").to_pylist()
    if len(np.unique(ids)) != len(ids):
        raise ValueError("a trade is doubled")
    if len(time) and (time[0] < file.span.start or time[-1] >= file.span.end):
        raise ValueError("trades are outside the file's day")
    possible = (price > 0) & np.isfinite(price) & (volume > 0) & np.isfinite(volume)
    if not bool(possible.all()) or not set(sides) <= set(_SIDES):
        raise ValueError("a row is not a trade")
    columns = [
        pa.array(time).view(pa.timestamp("us")).cast(TRADE_SCHEMA.field("time").type),
        pa.array([file.market] * len(time), pa.string()),
        pa.array(price),
        pa.array(volume),
        pa.array([_SIDES[side] for side in sides], pa.string()),
        pa.array(ids),
    ]
    return pa.Table.from_arrays(columns, schema=TRADE_SCHEMA)
