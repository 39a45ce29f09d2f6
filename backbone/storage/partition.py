"""One partition file as bytes: plain sorted Parquet, with coverage, revisions and a seal in its footer.

The footer's key-value entry ``backbone`` is one JSON text that begins with the seal: a CRC-32 over the whole
file, computed with eight zeros in its own place. Rows and their coverage are therefore one byte string
that is either whole or found out, wherever a bit flips. The seal's form is the one thing that every format
version shares, so that a file from a newer version is distinguished from a damaged one. Pure: bytes in, `Partition`
out, and back.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, TypeVar

import msgspec
import pyarrow as pa

from backbone.candle_table import times_of
from backbone.errors import CorruptPartitionError, StoreError
from backbone.model import CANDLE_COLUMNS, CANDLE_SCHEMA, Span, empty_candles
from backbone.storage.coverage import Coverage, SpanSet, union_each
from backbone.storage.layout import Series
from backbone.timeframe import period_name

__all__ = [
    "FORMAT",
    "REVISION_SCHEMA",
    "TAIL_BYTES",
    "Encoded",
    "Group",
    "Head",
    "Partition",
    "Unchecked",
    "decode_coverage",
    "decode_partition",
    "encode_coverage",
    "encode_partition",
    "peek_footer",
    "read_partition",
]

FORMAT = 1
_STAMP = pa.timestamp("us", tz="UTC")

REVISION_SCHEMA = pa.schema(
    [pa.field("time", _STAMP, nullable=False)]
    + [pa.field(f"old_{name}", pa.float64()) for name in CANDLE_COLUMNS]
    + [pa.field(f"new_{name}", pa.float64()) for name in CANDLE_COLUMNS]
    + [pa.field("seen", _STAMP, nullable=False), pa.field("source", pa.string(), nullable=False)]
)
"""What changed about a candle already stored. Null old values: it had none; null new values: it was withdrawn."""


@cache
def _no_revisions() -> pa.Table:
    """One for all: making one takes as long as decoding a small file."""
    return pa.Table.from_batches([], REVISION_SCHEMA)


class Group(NamedTuple):
    """A row group of a file: rows, bytes and CRC of the file up to its end, and pyarrow's metadata of it."""

    rows: int
    size: int
    crc: int
    metadata: Any


class Head(msgspec.Struct, frozen=True):
    """The first rows of a partition as they were encoded: the start of its file, in row groups.

    A later file that begins with the same rows begins with the same bytes, and only what follows is encoded.
    """

    data: bytes | memoryview = b""
    groups: tuple[Group, ...] = ()

    @property
    def rows(self) -> int:
        return self.groups[-1].rows if self.groups else 0

    def before(self, row: int) -> Head:
        """The groups that end at `row` or before it."""
        groups = tuple(group for group in self.groups if group.rows <= row)
        return Head(self.data, groups) if groups else Head()

    def to_grow_to(self, rows: int) -> Head:
        """The groups to begin a file of so many rows with: the others are encoded anew with the new rows.

        Each group has far more rows than the next one, so there are few, and a row is rarely encoded again.
        """
        groups = self.groups
        while groups and rows > groups[-1].rows:
            last = groups[-1].rows - (groups[-2].rows if len(groups) > 1 else 0)
            if last > _SHRINK * (rows - groups[-1].rows) and len(groups) < _MOST_GROUPS:
                break
            groups = groups[:-1]
        return Head(self.data, groups)


class Partition(msgspec.Struct, frozen=True):
    """The decoded state of one period: rows (sorted, unique), what they prove, what changed."""

    table: pa.Table
    coverage: Coverage
    revisions: pa.Table
    head: Head = Head()

    @classmethod
    def empty(cls, coverage: Coverage | None = None) -> Partition:
        return cls(empty_candles(), coverage or Coverage(), _no_revisions())

    @property
    def times(self) -> Any:
        """The opens as int64 microseconds, without a copy."""
        return times_of(self.table)

    @property
    def nbytes(self) -> int:
        return int(56 * self.table.num_rows + 160 * self.revisions.num_rows) + len(self.head.data) + 2048


class _Sealed(msgspec.Struct, kw_only=True):
    """The JSON text of a sidecar. ``seal`` must stay the first field, eight hex digits."""

    seal: str = "00000000"
    format: int = FORMAT
    exchange: str
    market: str
    timeframe: str
    covered: list[tuple[int, int]]
    provisional: list[tuple[int, int, int]] = []
    origins: dict[str, list[tuple[int, int]]] = {}

    @property
    def coverage(self) -> Coverage:
        origins = {source: SpanSet(spans) for source, spans in self.origins.items()}
        provisional = union_each({due_us: SpanSet([(start, end)])} for start, end, due_us in self.provisional)
        return Coverage(SpanSet(self.covered), provisional, origins)


class _Footer(_Sealed, kw_only=True):
    """The JSON text in a partition's footer. ``revisions`` must stay the last field."""

    period: str
    rows: int
    revisions: str = ""


class _Header(msgspec.Struct):
    format: int


_Text = TypeVar("_Text", bound=_Sealed)

_ENCODING = {"time": "DELTA_BINARY_PACKED"} | dict.fromkeys(CANDLE_COLUMNS, "BYTE_STREAM_SPLIT")
_HEAD_ROWS = 4096  # a shorter file is encoded whole
_MOST_GROUPS = 3  # of a file that grows; a period that is complete is encoded whole
_SHRINK = 3  # a group has more than so many times the rows of the next one
_MARK = b'{"seal":"'
_MAGIC = b"PAR1"
_ZEROS = b"00000000"
_MOST_FOOTER_BYTES = 64 << 10  # of Parquet's own part of a footer, and of its headers of pages
_BROKEN = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, msgspec.MsgspecError)


class Encoded(NamedTuple):
    """A partition's file, and the head that a later one may begin with."""

    data: memoryview
    head: Head


def encode_partition(partition: Partition, series: Series, period: Span) -> Encoded:
    """The file of one partition, sealed."""
    table = partition.table
    head = Head() if partition.coverage.covered.contains(period) else partition.head.to_grow_to(table.num_rows)
    about = _about(series, partition.coverage)
    footer = _Footer(
        period=period_name(series.timeframe, period), rows=table.num_rows, revisions=_pack(partition.revisions), **about
    )
    data, metadata = _write_parquet(table, head, {"backbone": msgspec.json.encode(footer)})
    start = _footer_start(data)
    size, crc = (head.groups[-1].size, head.groups[-1].crc) if head.groups else (0, 0)
    crc = zlib.crc32(data[size:start], crc)
    if start > size:
        group = Group(table.num_rows, start, crc, metadata)
        kept = data[:start] if head.groups else bytes(data[:start])  # of a whole file most of the room is empty
        head = Head(kept, (*head.groups, group))
    at = start + bytes(data[start:]).rfind(_MARK) + len(_MARK)
    data[at : at + 8] = b"%08x" % zlib.crc32(data[start:], crc)
    return Encoded(data, head if head.rows >= _HEAD_ROWS else Head())


def _write_parquet(table: pa.Table, head: Head, text: dict[str, bytes]) -> tuple[memoryview, Any]:
    """An unsealed file of `table` that begins with the groups of `head`, and the metadata of the group behind them."""
    before = memoryview(head.data)[: head.groups[-1].size if head.groups else 0]
    rows = table.slice(head.rows)
    room = pa.allocate_buffer(len(before) + 2 * rows.nbytes + len(text["backbone"]) + _MOST_FOOTER_BYTES)
    sink = pa.FixedSizeBufferWriter(room)
    with _writer(sink) as (writer, metadata):
        if head.groups:
            sink.write(before[len(_MAGIC) :])  # with which the writer has begun
        if rows.num_rows:
            writer.write_table(rows, row_group_size=rows.num_rows)
        if not head.groups:
            writer.add_key_value_metadata(text)
    data, end = memoryview(room).cast("B"), sink.tell()
    if not head.groups:
        return data[:end], metadata[0]
    footer = pa.BufferOutputStream()
    with _writer(pa.BufferOutputStream()) as (writer, joined):
        writer.add_key_value_metadata(text)
    for each in (*(group.metadata for group in head.groups), metadata[0]):
        joined[0].append_row_groups(each)
    joined[0].write_metadata_file(footer)
    found = memoryview(footer.getvalue()).cast("B")[len(_MAGIC) :]
    start = _footer_start(data[:end])
    data[start : start + len(found)] = found
    return data[: start + len(found)], metadata[0]


@contextmanager
def _writer(sink: Any) -> Iterator[tuple[Any, list[Any]]]:
    """A writer of candles, and where the metadata of what it wrote is once it is closed."""
    import pyarrow.parquet as pq

    metadata: list[Any] = []
    with pq.ParquetWriter(
        sink,
        CANDLE_SCHEMA,
        compression="lz4",
        use_dictionary=False,
        column_encoding=_ENCODING,
        store_schema=False,
        write_statistics=["time"],
        metadata_collector=metadata,
    ) as writer:
        yield writer, metadata


def _footer_start(data: bytes | memoryview) -> int:
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


class Unchecked(NamedTuple):
    """The rows and the footer's text of a file whose seal is right."""

    table: pa.Table
    text: bytes


def read_partition(data: bytes, path: str) -> Unchecked:
    """What a partition file says; raises `CorruptPartitionError` for bytes that are not as they were written."""
    _check_seal(data, path)
    try:
        return Unchecked(*_read_parquet(data))
    except _BROKEN as exc:
        raise _corrupt(path, f"unreadable although its seal is right ({exc})") from exc


def decode_partition(data: bytes, series: Series, period: Span, path: str, read: Unchecked | None = None) -> Partition:
    """The state that a partition file holds; `read` is what `read_partition` made of it, if that was done before.

    Raises `CorruptPartitionError` for bytes that are not exactly what was written for this series and period,
    and `StoreError` for a whole file that a newer version wrote.
    """
    table, text = read or read_partition(data, path)
    try:
        footer = _text_as(text, _Footer, series, path)
        partition = Partition(table, footer.coverage, _unpack(footer.revisions))
    except _BROKEN as exc:
        raise _corrupt(path, f"unreadable although its seal is right ({exc})") from exc
    if footer.period != period_name(series.timeframe, period):
        raise _corrupt(path, f"it belongs elsewhere: {footer.period}")
    if reason := _disorder(partition, footer.rows, period):
        raise _corrupt(path, reason)
    return partition


TAIL_BYTES = 64 << 10
"""Enough of a file's end for its footer, unless it holds very many revisions."""


def peek_footer(tail: bytes) -> tuple[int, Coverage] | None:
    """A partition's number of rows and its coverage, from its last bytes alone; its seal is not checked.

    None where those bytes are not enough: a long footer, damage, a newer version. The whole file has to be read then.
    """
    start = tail.rfind(_MARK)
    end = tail.find(b',"revisions":', max(0, start))
    if start < 0 or end < 0:
        return None
    try:
        footer = msgspec.json.decode(tail[start:end] + b"}", type=_Footer)
    except (ValueError, msgspec.MsgspecError):  # bytes that are no text, or no footer
        return None
    return (footer.rows, footer.coverage) if footer.format <= FORMAT else None


def _read_parquet(data: bytes) -> tuple[pa.Table, bytes]:
    file = _parquet_file()(pa.BufferReader(data), pre_buffer=False)  # of memory: there is nothing to close
    metadata = file.metadata
    text = (metadata.metadata or {})[b"backbone"]
    table = file.read(use_threads=False)
    if metadata.num_row_groups > 1:
        table = table.combine_chunks()
    if table.schema != CANDLE_SCHEMA:
        raise ValueError(f"columns are {table.schema.names}")
    return (table if table.num_rows else empty_candles()), text


@cache
def _parquet_file() -> Any:
    import pyarrow.parquet as pq

    class FlatFile(pq.ParquetFile):  # type: ignore[misc]
        """A file whose columns are all read: what finds nested ones by name is a sixth of reading a small file."""

        def _build_nested_paths(self) -> dict[str, list[int]]:
            return {}

    return FlatFile


def _disorder(partition: Partition, rows: int, period: Span) -> str:
    times = partition.times
    if len(times) != rows:
        return f"{len(times)} rows where {rows} were written"
    if rows and not (period.start <= times[0] and times[-1] < period.end):
        return "rows outside its period"
    if rows > 1 and not bool((times[1:] > times[:-1]).all()):
        return "rows out of order"
    return ""


def _check_seal(data: bytes, path: str) -> None:
    """Raise unless every byte is as it was written."""
    size = len(data)
    if size < 12 or data[:4] != _MAGIC or data[-4:] != _MAGIC:
        raise _corrupt(path, f"cut or foreign ({size} bytes)" if size else "empty file")
    at = data.rfind(_MARK, max(4, _footer_start(data)), size - 8)
    if at < 0:
        raise _corrupt(path, "carries no seal: damaged, or not written by backbone")
    at += len(_MARK)
    view = memoryview(data)
    crc = zlib.crc32(view[at + 8 :], zlib.crc32(_ZEROS, zlib.crc32(view[:at])))
    if bytes(view[at : at + 8]) != b"%08x" % crc:
        raise _corrupt(path, "its seal does not match: bytes were changed or lost")


def _text_as(text: bytes, kind: type[_Text], series: Series, path: str) -> _Text:
    """A footer's or sidecar's text; `StoreError` where a newer version wrote it, in this form or another.

    Raises `CorruptPartitionError` where it is of another series.
    """
    try:
        found = msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError:
        _check_format(msgspec.json.decode(text, type=_Header).format, path)
        raise
    _check_format(found.format, path)
    place = (found.exchange, found.market, found.timeframe)
    if place != (series.exchange, series.market, series.timeframe.directory):
        raise _corrupt(path, f"it belongs elsewhere: {' '.join(place)}")
    return found


def _check_format(version: int, path: str) -> None:
    if version > FORMAT:
        raise StoreError(
            f"{path} was written by a newer backbone (format {version}, this one reads {FORMAT}): upgrade",
            path=path,
        )


def _corrupt(path: str, reason: str) -> CorruptPartitionError:
    return CorruptPartitionError(f"{path} is damaged: {reason}", path=path, reason=reason)


def _about(series: Series, coverage: Coverage) -> dict[str, Any]:
    """The fields that every sealed text has."""
    return {
        "exchange": series.exchange,
        "market": series.market,
        "timeframe": series.timeframe.directory,
        "covered": coverage.covered.spans,
        "provisional": sorted((*span, due_us) for due_us, spans in coverage.provisional.items() for span in spans),
        "origins": {source: spans.spans for source, spans in coverage.origins.items()},
    }


def _pack(revisions: pa.Table) -> str:
    if not revisions.num_rows:
        return ""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, REVISION_SCHEMA, options=options) as writer:
        writer.write_table(revisions)
    return base64.b64encode(memoryview(sink.getvalue())).decode("ascii")


def _unpack(text: str) -> pa.Table:
    if not text:
        return _no_revisions()
    with pa.ipc.open_stream(base64.b64decode(text, validate=True)) as reader:
        table = reader.read_all()
    if table.schema != REVISION_SCHEMA:
        raise ValueError("revisions of another shape")
    return table


def encode_coverage(coverage: Coverage, series: Series) -> bytes:
    """The sidecar that covers periods without a candle, sealed like a partition."""
    text = msgspec.json.encode(_Sealed(**_about(series, coverage)))
    return _MARK + b"%08x" % zlib.crc32(text) + text[len(_MARK) + 8 :]


def decode_coverage(data: bytes, series: Series, path: str) -> Coverage:
    """The coverage of a sidecar; raises like `decode_partition`."""
    start = len(_MARK)
    zeroed = data[:start] + _ZEROS + data[start + 8 :]
    if data[:start] != _MARK or data[start : start + 8] != b"%08x" % zlib.crc32(zeroed):
        raise _corrupt(path, "its seal does not match: bytes were changed or lost")
    try:
        return _text_as(data, _Sealed, series, path).coverage
    except _BROKEN as exc:
        raise _corrupt(path, f"unreadable although its seal is right ({exc})") from exc
