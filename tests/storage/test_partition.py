"""The file codec: what was written is what is read, and nothing else is."""

from __future__ import annotations

import datetime as dt
import io
import zlib
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbone.errors import CorruptPartitionError, StoreError
from backbone.model import CANDLE_SCHEMA, Span
from backbone.storage import partition as codec
from backbone.storage.coverage import Coverage, SpanSet
from backbone.storage.layout import Series
from backbone.storage.merge import Page, merge_pages
from backbone.storage.partition import (
    Partition,
    decode_coverage,
    decode_partition,
    encode_coverage,
    encode_partition,
)
from backbone.timeframe import period_of
from tests.storage.helpers import MAY, MINUTE, MINUTE_US, candles, minutes, span

SERIES = Series("upbit", "KRW-BTC", MINUTE)
PERIOD = period_of(MINUTE, MAY)


def decode(data: bytes, series: Series = SERIES, period: Span = PERIOD) -> Partition:
    return decode_partition(data, series, period, "somewhere/candles.parquet")


def partition_with_everything() -> Partition:
    """Rows, holes, provisional spans and revisions."""
    coverage = Coverage(SpanSet([span(0, 40), span(50, 60)]), {7: SpanSet([span(55, 60)])})
    held = Partition(minutes(0, 40, every=3), coverage, codec.REVISION_SCHEMA.empty_table())
    page = Page(1, minutes(3, 12, 5, every=2), SpanSet([span(3, 12)]), {}, "rest", MAY)
    return merge_pages(held, [page], PERIOD)


WHOLE = bytes(encode_partition(partition_with_everything(), SERIES, PERIOD).data)


def reseal(data: bytes) -> bytes:
    """`data` with the seal that its other bytes deserve."""
    at = data.rfind(b'{"seal":"') + 9
    zeroed = data[:at] + b"00000000" + data[at + 8 :]
    return data[:at] + b"%08x" % zlib.crc32(zeroed) + data[at + 8 :]


def test_partition_read_back_is_what_was_written() -> None:
    """Rows, coverage, provisional spans and revisions survive the round trip."""
    written = partition_with_everything()
    found = decode(WHOLE)
    assert found.table.equals(written.table)
    assert found.table.schema == CANDLE_SCHEMA
    assert found.coverage == written.coverage
    assert found.revisions.equals(written.revisions)
    assert found.revisions.num_rows == 6


minute = st.integers(0, 120)


@given(st.lists(st.tuples(minute, minute, st.integers(0, 1), st.booleans()), min_size=1, max_size=8))
def test_file_that_begins_as_an_earlier_one_holds_the_same_rows(steps: list[tuple[int, int, int, bool]]) -> None:
    """Whatever is put behind, into or before rows that are encoded already, the file says what the partition does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "_HEAD_ROWS", 8)
        held = merge_pages(
            Partition.empty(), [Page(0, minutes(0, 40), SpanSet([span(0, 40)]), {}, "rest", MAY)], PERIOD
        )
        for number, (first, last, salt, is_two) in enumerate(steps, 1):
            data, head = encode_partition(held, SERIES, PERIOD)
            found = decode(bytes(data))
            assert found.table.equals(held.table)
            assert (found.coverage, found.revisions) == (held.coverage, held.revisions)
            assert bytes(data[: len(head.data)]) == head.data
            assert head.rows == (held.table.num_rows if held.table.num_rows >= 8 else 0)
            held = msgspec.structs.replace(held, head=head)
            proof = SpanSet([span(first, last), *([span(last + 3, last + 5)] if is_two else [])])
            page = Page(number, minutes(first, last, salt), proof, {}, "rest", MAY)
            held = merge_pages(held, [page], PERIOD)


def grown(rows: int, more: int) -> tuple[memoryview, Partition]:
    """A file that takes over the first `rows` of an earlier one, and the partition that it holds."""
    proof = SpanSet([span(0, rows)])
    held = merge_pages(Partition.empty(), [Page(1, minutes(0, rows), proof, {}, "rest", MAY)], PERIOD)
    held = msgspec.structs.replace(held, head=encode_partition(held, SERIES, PERIOD).head)
    page = Page(2, minutes(rows, rows + more), SpanSet([span(rows, rows + more)]), {}, "rest", MAY)
    held = merge_pages(held, [page], PERIOD)
    data, head = encode_partition(held, SERIES, PERIOD)
    assert head.groups[:-1] == held.head.groups
    assert head.groups
    return data, held


def test_file_that_grows_is_encoded_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few groups, few rows encoded again; a changed candle costs its group and later ones; a complete month is one."""
    encoded: list[int] = []
    write = codec._write_parquet

    def counted(table: pa.Table, head: codec.Head, text: dict[str, bytes]) -> tuple[memoryview, object]:
        encoded.append(table.num_rows - head.rows)
        return write(table, head, text)

    monkeypatch.setattr(codec, "_write_parquet", counted)
    held = Partition.empty()

    def commit(first: int, last: int, salt: int = 0) -> None:
        nonlocal held
        page = Page(first, minutes(first, last, salt), SpanSet([span(first, last)]), {}, "rest", MAY)
        held = merge_pages(held, [page], PERIOD)
        data, head = encode_partition(held, SERIES, PERIOD)
        assert decode(bytes(data)).table.equals(held.table)
        held = msgspec.structs.replace(held, head=head)
        assert len(head.groups) <= 3

    for first in range(0, 40_000, 1000):
        commit(first, first + 1000)
    assert sum(encoded) < 6 * 40_000
    for minute in range(40_000, 40_200):
        commit(minute, minute + 1)
    assert sum(encoded[40:]) < 500 * 200
    ends = [group.rows for group in held.head.groups]
    commit(ends[-2], ends[-2] + 1, salt=1)
    assert encoded[-1] == 40_200 - ends[-2]
    commit(40_200, 44_640)
    assert (encoded[-1], len(held.head.groups)) == (44_640, 1)


def test_other_engines_read_a_file_that_begins_as_an_earlier_one(tmp_path: Path) -> None:
    """pyarrow, Polars and DuckDB see its rows, and find the newest ones by their statistics."""
    duckdb = pytest.importorskip("duckdb")
    data, held = grown(8000, 300)
    path = tmp_path / "candles.parquet"
    path.write_bytes(data)
    assert pq.read_metadata(path).num_row_groups == 2
    assert pq.read_table(path).equals(held.table)
    assert pl.read_parquet(path).equals(pl.DataFrame(held.table))
    newest = dt.datetime.fromtimestamp((MAY + 8250 * MINUTE_US) / 1e6, dt.UTC)
    assert pl.scan_parquet(path).filter(pl.col("time") >= newest).collect().height == 50
    assert duckdb.sql(f"select count(*) from '{path}' where time >= '{newest}'").fetchall() == [(50,)]


def test_flipped_bit_in_rows_that_were_taken_over_is_found() -> None:
    """The seal is of the whole file, whichever part of it was encoded when."""
    data = bytearray(grown(8000, 300)[0])
    for at in (100, len(data) // 2, len(data) - 600):
        data[at] ^= 1
        with pytest.raises(CorruptPartitionError):
            decode(bytes(data))
        data[at] ^= 1
    assert decode(bytes(data)).table.num_rows == 8300


def test_partition_without_rows_keeps_its_coverage() -> None:
    """A file of a quiet span covers it."""
    empty = Partition.empty(Coverage(SpanSet([span(0, 9)])))
    found = decode(bytes(encode_partition(empty, SERIES, PERIOD).data))
    assert found.table.num_rows == 0
    assert found.table.schema == CANDLE_SCHEMA
    assert found.coverage == empty.coverage


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=6, max_size=6))
def test_partition_keeps_every_float_to_the_bit(values: list[float]) -> None:
    """No number is rounded, whatever it is."""
    arrays = [pa.array([MAY]).view(CANDLE_SCHEMA.field("time").type), *(pa.array([v]) for v in values)]
    table = pa.Table.from_arrays(arrays, schema=CANDLE_SCHEMA)
    held = Partition(table, Coverage(SpanSet([span(0, 1)])), codec.REVISION_SCHEMA.empty_table())
    found = decode(bytes(encode_partition(held, SERIES, PERIOD).data)).table
    for name, value in zip(CANDLE_SCHEMA.names[1:], values, strict=True):
        assert found.column(name).to_numpy().tobytes() == np.float64(value).tobytes()


def test_partition_is_plain_parquet_for_others() -> None:
    """A reader that knows nothing of backbone sees sorted candles with the pinned types."""
    table = pq.read_table(io.BytesIO(WHOLE))
    assert table.schema.remove_metadata() == CANDLE_SCHEMA
    metadata = pq.ParquetFile(io.BytesIO(WHOLE)).metadata
    assert metadata.num_row_groups == 1
    assert {metadata.row_group(0).column(i).compression for i in range(7)} == {"LZ4"}


def test_partition_with_any_byte_changed_is_found_damaged() -> None:
    """There is no byte of a file that may be flipped unseen."""
    for at in range(len(WHOLE)):
        for bit in (0x01, 0x80):
            damaged = bytearray(WHOLE)
            damaged[at] ^= bit
            with pytest.raises(CorruptPartitionError):
                decode(damaged)


def test_partition_cut_anywhere_is_found_damaged() -> None:
    """There is no length to which a file may be cut, or grown, unseen."""
    for length in range(len(WHOLE)):
        with pytest.raises(CorruptPartitionError):
            decode(WHOLE[:length])
    for grown in (WHOLE + b"\0", WHOLE + WHOLE, b"\0" + WHOLE, WHOLE + b"PAR1"):
        with pytest.raises(CorruptPartitionError):
            decode(grown)


edits = st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(max_size=12), st.integers(0, 12)), max_size=4)


@settings(max_examples=300, deadline=None)
@given(edits)
def test_partition_edited_at_random_is_damaged_or_unchanged(edited: list[tuple[int, bytes, int]]) -> None:
    """Fuzzed bytes give the damage error or, where nothing changed, the very rows; nothing else."""
    data = WHOLE
    for at, put, drop in edited:
        data = data[:at] + put + data[at + drop :]
    try:
        found = decode(data)
    except CorruptPartitionError:
        assert data != WHOLE
    else:
        assert data == WHOLE
        assert found.table.num_rows == partition_with_everything().table.num_rows


footer_start = len(WHOLE) - 8 - int.from_bytes(WHOLE[-8:-4], "little")


@settings(max_examples=150, deadline=None)
@given(st.integers(footer_start, len(WHOLE) - 9), st.binary(min_size=1, max_size=3))
def test_partition_forged_under_a_right_seal_raises_only_the_damage_error(at: int, put: bytes) -> None:
    """Even a footer that somebody resealed is refused or read within the error tree."""
    forged = reseal(WHOLE[:at] + put + WHOLE[at + len(put) :])
    try:
        found = decode(forged)
    except StoreError:
        return
    assert len(set(found.times.tolist())) == found.table.num_rows


def test_partition_of_a_newer_version_asks_for_an_upgrade() -> None:
    """A whole file in a later format is no damage, and the message says what to do."""
    newer = reseal(WHOLE.replace(b'"format":1', b'"format":2'))
    with pytest.raises(StoreError, match="upgrade") as caught:
        decode(newer)
    assert not isinstance(caught.value, CorruptPartitionError)


def test_partition_newer_but_damaged_is_damaged() -> None:
    """The seal is checked before the version counts."""
    with pytest.raises(CorruptPartitionError):
        decode(WHOLE.replace(b'"format":1', b'"format":2'))


def test_foreign_parquet_is_damaged() -> None:
    """A file that another program wrote is not taken for ours."""
    sink = io.BytesIO()
    pq.write_table(minutes(0, 10), sink)
    with pytest.raises(CorruptPartitionError, match="not written by backbone"):
        decode(sink.getvalue())


@pytest.mark.parametrize(
    ("series", "period"),
    [
        (Series("upbit", "KRW-ETH", MINUTE), PERIOD),
        (Series("upbit-sg", "KRW-BTC", MINUTE), PERIOD),
        (SERIES, period_of(MINUTE, PERIOD.end)),
    ],
)
def test_partition_copied_to_another_place_is_damaged(series: Series, period: Span) -> None:
    """A file that belongs to another market, exchange or period does not pass for this one."""
    with pytest.raises(CorruptPartitionError, match="belongs elsewhere"):
        decode(WHOLE, series, period)


def sealed(table: pa.Table) -> bytes:
    coverage = Coverage(SpanSet([PERIOD]))
    return bytes(encode_partition(Partition(table, coverage, codec.REVISION_SCHEMA.empty_table()), SERIES, PERIOD).data)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (candles([MAY, MAY]), "out of order"),
        (candles([MAY + 60_000_000, MAY]), "out of order"),
        (candles([MAY - 60_000_000, MAY]), "outside its period"),
        (candles([MAY, PERIOD.end]), "outside its period"),
    ],
)
def test_partition_sealed_over_wrong_rows_is_damaged(table: pa.Table, reason: str) -> None:
    """Rows out of order, doubled or of another period are refused even under a right seal."""
    with pytest.raises(CorruptPartitionError, match=reason):
        decode(sealed(table))


def test_ledger_read_back_is_what_was_written() -> None:
    """The sidecar of quiet spans survives the round trip; one with a changed byte or a cut is refused."""
    coverage = Coverage(SpanSet([Span(0, MAY), span(5, 9)]), {3: SpanSet([span(5, 7)])})
    data = encode_coverage(coverage, SERIES)
    assert decode_coverage(data, SERIES, "p") == coverage
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 4
        with pytest.raises(CorruptPartitionError):
            decode_coverage(bytes(damaged), SERIES, "p")
        with pytest.raises(CorruptPartitionError):
            decode_coverage(data[:at], SERIES, "p")
    with pytest.raises(CorruptPartitionError, match="belongs elsewhere"):
        decode_coverage(data, Series("upbit", "KRW-ETH", MINUTE), "p")


def test_coverage_of_a_newer_version_asks_for_an_upgrade() -> None:
    """The sidecar's format is distinguished as the partition's is."""
    data = encode_coverage(Coverage(), SERIES).replace(b'"format":1', b'"format":9')
    with pytest.raises(StoreError, match="upgrade"):
        decode_coverage(reseal(data), SERIES, "p")
