"""A file that grew is, to every reader, the file that was written at once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.model import CANDLE_SCHEMA, empty_candles
from backbone.storage import partition as codec
from backbone.storage.coverage import Coverage, SpanSet
from backbone.storage.grow import grow
from backbone.storage.partition import Partition, encode_partition
from tests.storage.helpers import MINUTE, minutes, open_store, span
from tests.storage.test_partition import NAME, SERIES, decode


def encode(table: pa.Table, text: str = "words") -> memoryview:
    return codec._write_parquet(table, text=text)


@pytest.fixture(autouse=True)
def small_files_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large ones do."""
    monkeypatch.setattr(codec, "_FEW", 1)


def held(first: int, last: int) -> Partition:
    table = minutes(first, last)
    ledger = Coverage(SpanSet([span(first, last)]))
    return Partition(table, ledger, codec.REVISION_SCHEMA.empty_table(), (0, table.num_rows))


def row_groups(data: bytes | bytearray) -> int:
    return pq.read_metadata(pa.BufferReader(bytes(data))).num_row_groups


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60)), min_size=1, max_size=8))
def test_grown_file_reads_like_one_written_at_once(steps: list[tuple[bool, int]]) -> None:
    """Whatever came before and after, in whatever order, pyarrow finds all rows in order, and the newest words."""
    first, last = 500, 520
    data: bytes | None = bytes(encode(minutes(first, last)))
    for is_before, count in steps:
        rows = minutes(first - count, first) if is_before else minutes(last, last + count)
        first, last = (first - count, last) if is_before else (first, last + count)
        assert data is not None
        data = grow(data, rows, is_before=is_before, encode=partial(encode, text=f"{count} more"))
    assert data is not None
    whole = pq.read_table(pa.BufferReader(data), partitioning=None)
    assert whole.cast(CANDLE_SCHEMA).equals(minutes(first, last))
    assert pq.read_metadata(pa.BufferReader(data)).metadata == {b"backbone": f"{steps[-1][1]} more".encode()}


def test_other_engines_read_a_grown_file(tmp_path: Path) -> None:
    """Polars and DuckDB have readers of their own to find the moved groups with; statistics prune the right ones."""
    data = grow(bytes(encode(minutes(100, 200))), minutes(0, 100), is_before=True, encode=encode)
    assert data is not None
    data = grow(data, minutes(200, 300), is_before=False, encode=encode)
    assert data is not None
    assert row_groups(data) == 3
    path = tmp_path / "grown.parquet"
    path.write_bytes(data)
    expected = minutes(0, 300)
    assert pl.read_parquet(path).equals(pl.DataFrame(pl.from_arrow(expected)))
    assert pd.read_parquet(path)["close"].tolist() == expected.column("close").to_pylist()
    edge = expected.column("time")[250].as_py()
    newest = pl.scan_parquet(path).filter(pl.col("time") >= edge).collect()
    assert newest["close"].to_list() == expected.column("close").to_pylist()[250:]
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed")
    ((total, rows),) = duckdb.sql(f"select sum(close), count(*) from '{path}'").fetchall()
    assert (total, rows) == (sum(expected.column("close").to_pylist()), 300)


def test_partition_takes_over_what_its_file_holds() -> None:
    """Only the new rows are encoded: the bytes of the old ones are in the new file as they were."""
    base = encode_partition(held(0, 400), SERIES, NAME)
    more = replace(held(0, 450), kept=(0, 400))
    grown = encode_partition(more, SERIES, NAME, base)
    old_rows = bytes(base[: len(base) - 8 - int.from_bytes(base[-8:-4], "little")])
    assert grown.startswith(old_rows)
    assert decode(grown).table.equals(more.table)
    assert decode(grown).ledger == more.ledger
    assert decode(grown).table.column("time").num_chunks == 1


def test_partition_that_only_claims_more_keeps_its_rows() -> None:
    """A second ask that changes nothing writes a footer and encodes no row."""
    base = encode_partition(held(0, 400), SERIES, NAME)
    wider = replace(held(0, 400), ledger=Coverage(SpanSet([span(0, 500)])))
    grown = encode_partition(wider, SERIES, NAME, base)
    assert row_groups(grown) == 1
    assert decode(grown).table.equals(wider.table)
    assert decode(grown).ledger == wider.ledger


@pytest.mark.parametrize(
    "kept", [None, (0, 0), (10, 410)], ids=["rows were changed", "there were none", "rows came on both sides"]
)
def test_partition_is_written_anew_where_it_cannot_grow(kept: tuple[int, int] | None) -> None:
    """One row group with every row, whatever the file before was like."""
    base = encode_partition(held(10, 410), SERIES, NAME)
    data = encode_partition(replace(held(0, 450), kept=kept), SERIES, NAME, base)
    assert row_groups(data) == 1
    assert decode(data).table.equals(minutes(0, 450))


def test_damage_in_the_file_before_is_not_taken_over() -> None:
    """Old bytes are believed only under their seal: a flipped one would be sealed in for ever."""
    base = encode_partition(held(0, 400), SERIES, NAME)
    base[100] ^= 1
    data = encode_partition(replace(held(0, 450), kept=(0, 400)), SERIES, NAME, base)
    assert decode(data).table.equals(minutes(0, 450))


@given(st.binary(max_size=200), st.integers(0, 60))
def test_bytes_that_are_no_parquet_do_not_grow(noise: bytes, cut: int) -> None:
    """There is nothing to append to; the caller writes the whole file."""
    base = bytes(encode(minutes(0, 50)))
    assert grow(noise, minutes(50, 60), is_before=False, encode=encode) is None
    assert grow(base[: len(base) - 8 - cut] + noise, minutes(50, 60), is_before=False, encode=encode) is None


def test_grown_file_is_written_anew_in_time() -> None:
    """Many small row groups are slow to read: after some the file is one again."""
    data: Any = encode_partition(held(0, 10), SERIES, NAME)
    seen = []
    for n in range(2, 40):
        data = encode_partition(replace(held(0, 10 * n), kept=(0, 10 * n - 10)), SERIES, NAME, data)
        seen.append(row_groups(data))
    assert max(seen) == 16
    assert seen.count(1) == 2
    assert decode(data).table.equals(minutes(0, 390))


def test_store_grows_its_files_and_reads_them_back(tmp_path: Path) -> None:
    """Pages that follow each other are appended; a fresh store finds them, and a correction among them."""
    store = open_store(tmp_path)
    for n in range(6):
        store.put("KRW-BTC", MINUTE, minutes(200 * n, 200 * n + 200), span(200 * n, 200 * n + 200), now_us=1)
        store.flush()
    (path,) = store.paths("KRW-BTC", MINUTE, span(0, 1200))
    assert pq.read_metadata(path).num_row_groups == 6
    fresh = open_store(tmp_path)
    assert fresh.read("KRW-BTC", MINUTE, span(0, 1200)).table.equals(minutes(0, 1200))
    assert fresh.verify() == []
    fresh.put("KRW-BTC", MINUTE, minutes(300, 301, 5), span(300, 301), now_us=2)
    fresh.flush()
    assert pq.read_metadata(path).num_row_groups == 1
    table = open_store(tmp_path).read("KRW-BTC", MINUTE, span(0, 1200)).table
    assert table.slice(300, 1).equals(minutes(300, 301, 5))
    assert table.slice(301).equals(minutes(301, 1200))
    assert np.all(table.slice(0, 300)["close"].to_numpy() == minutes(0, 300)["close"].to_numpy())
    assert empty_candles().schema == table.schema
