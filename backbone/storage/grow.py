"""A Parquet file with further row groups, without encoding the rest anew: old bytes, new bytes, one new footer.

Encoding a whole month for the sake of 200 candles costs ten times what the candles cost. A row group's place in the
file does not matter, only its place in the footer, so new rows may come before the old ones as well as after them.
pyarrow joins footers but cannot write behind existing bytes, so the new groups are written as a file of their own, and
the positions in its footer are moved: the one thing that is done by hand here, in the little of Thrift's compact
protocol that it takes. Whether the pyarrow at hand goes along is tried once. Pure: bytes in, bytes out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pyarrow as pa

__all__ = ["grow"]

_MAGIC = b"PAR1"
_MOST_GROUPS = 16  # each costs a reader some 0.1 ms; then the file is written anew, as one group


def grow(
    base: bytes | bytearray, rows: pa.Table, *, is_before: bool, encode: Callable[[pa.Table], memoryview]
) -> bytearray | None:
    """The file `base` with `rows` before or after its own, and the key-value metadata that `encode` writes.

    `encode` makes a file of a table: in one row group, without any where there are no rows. None where it cannot be
    done, for too many row groups or a file of another kind; it has to be written anew then.
    """
    return _joined(base, rows, is_before, encode) if _is_possible() else None


def _joined(
    base: bytes | bytearray, rows: pa.Table, is_before: bool, encode: Callable[[pa.Table], memoryview]
) -> bytearray | None:
    try:
        old = _footer(base)
        if old.num_row_groups >= _MOST_GROUPS:
            return None
        fresh = encode(rows)
        body, added = memoryview(base)[: _end(base)], fresh[len(_MAGIC) : _end(fresh)]
        new = _footer(_framed(_moved(bytes(fresh[_end(fresh) : -8]), len(body) - len(_MAGIC))))
        whole = new if is_before or not rows.num_rows else _footer(encode(rows.slice(0, 0)))
        whole.append_row_groups(old)
        if whole is not new:
            whole.append_row_groups(new)
    except (pa.ArrowException, OSError, ValueError, IndexError, RuntimeError):  # RuntimeError: another schema
        return None
    sink = pa.BufferOutputStream()
    whole.write_metadata_file(sink)
    return bytearray().join((body, added, memoryview(sink.getvalue())[len(_MAGIC) :]))


@cache
def _is_possible() -> bool:
    """Whether this pyarrow reads what is made here of what it writes: tried once, on a small file."""
    import pyarrow.parquet as pq

    def encode(table: pa.Table) -> memoryview:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        return memoryview(sink.getvalue())

    table = pa.table({"time": range(6), "close": [0.5] * 6})
    data: bytearray | None = bytearray(encode(table.slice(2, 2)))
    for rows, is_before in ((table.slice(4), False), (table.slice(0, 2), True)):
        data = None if data is None else _joined(data, rows, is_before, encode)
    try:
        return data is not None and bool(pq.read_table(pa.BufferReader(pa.py_buffer(data))).equals(table))
    except (pa.ArrowException, OSError):
        return False


def _end(data: bytes | bytearray | memoryview) -> int:
    """Where the row groups of a file end and its footer begins."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def _framed(footer: bytes | bytearray) -> bytes:
    """A footer as a file without row groups, which is how pyarrow reads one."""
    return b"".join((_MAGIC, footer, len(footer).to_bytes(4, "little"), _MAGIC))


def _footer(data: bytes | bytearray | memoryview) -> Any:
    import pyarrow.parquet as pq

    return pq.read_metadata(pa.BufferReader(pa.py_buffer(data)))


_ROW_GROUPS = 4
_POSITIONS = {  # field numbers from the footer down, as parquet.thrift has them
    (_ROW_GROUPS, 5),  # RowGroup.file_offset
    (_ROW_GROUPS, 1, 2),  # ColumnChunk.file_offset
    (_ROW_GROUPS, 1, 3, 9),  # ColumnMetaData.data_page_offset
    (_ROW_GROUPS, 1, 3, 10),  # .index_page_offset
    (_ROW_GROUPS, 1, 3, 11),  # .dictionary_page_offset
    (_ROW_GROUPS, 1, 3, 14),  # .bloom_filter_offset
    (_ROW_GROUPS, 1, 4),  # ColumnChunk.offset_index_offset
    (_ROW_GROUPS, 1, 6),  # ColumnChunk.column_index_offset
}


def _moved(footer: bytes, by: int) -> bytearray:
    """The footer with every position that it names moved `by` bytes; zero stands for "none" and stays."""
    mover = _Mover(footer, by)
    mover.struct(())
    return mover.out


class _Mover:
    """Copies a value of Thrift's compact protocol, changing the numbers at `_POSITIONS`."""

    def __init__(self, data: bytes, by: int) -> None:
        self._data, self._by, self._at = data, by, 0
        self.out = bytearray()

    def struct(self, path: tuple[int, ...]) -> None:
        field = 0
        while True:
            (head,) = self._copy(1)
            if head == 0:
                return
            field = field + (head >> 4) if head >> 4 else _signed(self._put(self._number()))
            kind = head & 15
            if kind > 2:  # 1 and 2 are a boolean, which has no bytes of its own
                self._value(kind, (*path, field))

    def _value(self, kind: int, path: tuple[int, ...]) -> None:
        if kind == 3:  # byte, and a boolean in a list
            self._copy(1)
        elif kind in (4, 5, 6):  # integers
            number = self._number()
            is_moved = path in _POSITIONS and number > 0
            self._put(number + 2 * self._by if is_moved else number)  # twice: the lowest bit is the sign
        elif kind == 7:  # double
            self._copy(8)
        elif kind == 8:  # binary
            self._copy(self._put(self._number()))
        elif kind == 9:  # list
            (head,) = self._copy(1)
            size = head >> 4 if head >> 4 < 15 else self._put(self._number())
            for _ in range(size):
                self._value(max(3, head & 15), path)
        elif kind == 12:
            self.struct(path)
        else:
            raise ValueError(f"a Parquet footer with a value of kind {kind}")

    def _copy(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) < size:
            raise ValueError("a Parquet footer that ends too early")
        self._at += size
        self.out += taken
        return taken

    def _number(self) -> int:
        number = shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    def _put(self, number: int) -> int:
        left = number
        while left > 127:
            self.out.append(left & 127 | 128)
            left >>= 7
        self.out.append(left)
        return number


def _signed(number: int) -> int:
    return (number >> 1) ^ -(number & 1)
