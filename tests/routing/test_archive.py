"""The archive's files: their names, what is read of them, and what is refused."""

from __future__ import annotations

import hashlib
import io
import zipfile

import pytest

from backbone.clock import SystemClock
from backbone.errors import PayloadError
from backbone.model import CANDLE_SCHEMA, Span
from backbone.routing.archive import (
    TRADE_SCHEMA,
    ArchiveClient,
    ArchiveFile,
    TradeFile,
    checksum_ask,
    file_ask,
    files_of,
    listing_ask,
)
from backbone.timeframe import TIMEFRAMES, parse_timeframe

MINUTE, HOUR = parse_timeframe("1m"), parse_timeframe("1h")
MAY = 1_714_521_600_000_000  # 2024-05-01T00:00:00Z
DAY_US = 86_400_000_000
DAY = ArchiveFile("KRW-BTC", Span(MAY, MAY + DAY_US), MINUTE, is_month=False)
HEADER = "date_time_utc,open,high,low,close,acc_trade_price,acc_trade_volume"
ROWS = ["2024-05-01T00:00:00,100,120,90,110.5,2200.25,2E1", "2024-05-01T00:02:00,110.5,111,110,110,5.485e-05,5e-07"]


def packed(lines: list[str], name: str = "x.csv", files: int = 1) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(files):
            archive.writestr(f"{index}{name}", "\n".join(lines) + "\n")
    return sink.getvalue()


def test_file_names_are_those_of_the_tree() -> None:
    """Folder, file and interval are spelled as users of the archive reported them."""
    (month,) = files_of("KRW-BTC", MINUTE, Span(MAY, MAY + DAY_US), months=True)
    assert month.key == "candle/KRW-BTC/monthly/1m/2024/KRW-BTC_candle-1m_202405.zip"
    assert month.span == Span(MAY, MAY + 31 * DAY_US)
    assert DAY.key == "candle/KRW-BTC/daily/1m/2024/KRW-BTC_candle-1m_20240501.zip"
    (hours,) = files_of("BTC-ETH", HOUR, Span(MAY, MAY + 1), months=True)
    assert hours.key == "candle/BTC-ETH/monthly/60m/2024/BTC-ETH_candle-60m_202405.zip"
    assert [f.span.start for f in files_of("KRW-BTC", MINUTE, Span(MAY - 1, MAY + DAY_US + 1), months=False)] == [
        MAY - DAY_US, MAY, MAY + DAY_US
    ]  # fmt: skip


def test_files_begin_with_the_archive() -> None:
    """Nothing is asked for from before the first file, nor of a timeframe that has none."""
    ever = Span(0, MAY)
    assert files_of("KRW-BTC", MINUTE, ever, months=True)[0].key.endswith("_201710.zip")
    assert files_of("KRW-BTC", parse_timeframe("1s"), ever, months=True)[0].key.endswith("_202307.zip")
    for name in ("1d", "1w", "1M", "1y"):
        assert files_of("KRW-BTC", TIMEFRAMES[name], ever, months=True) == []


def test_file_is_looked_for_from_ten_and_due_at_two_the_next_day() -> None:
    """In Korean time, which is nine hours ahead."""
    ten, two = (DAY.span.end + hours * 3_600_000_000 for hours in (1, 5))
    assert [DAY.may_be_there(at) for at in (ten - 1, ten)] == [False, True]
    assert [DAY.is_due(at) for at in (two - 1, two)] == [False, True]


def test_file_is_read_to_the_last_bit() -> None:
    """Every spelling becomes the nearest float64; volume and turnover are not exchanged; a quiet minute has no row."""
    body = packed([HEADER, *ROWS])
    found = file_ask(DAY).parse(body)
    assert found.sha256 == hashlib.sha256(body).hexdigest()
    assert found.table.schema == CANDLE_SCHEMA
    assert found.table.column("volume").to_pylist() == [20.0, 5e-07]
    assert found.table.column("value").to_pylist() == [2200.25, 5.485e-05]
    assert found.table.column("close").to_pylist() == [110.5, 110.0]


def test_file_newest_first_or_with_columns_in_another_order_is_read_the_same() -> None:
    """The order of rows and of the known columns says nothing."""
    straight = file_ask(DAY).parse(packed([HEADER, *ROWS])).table
    assert file_ask(DAY).parse(packed([HEADER, *ROWS[::-1]])).table.equals(straight)
    names = HEADER.split(",")
    turned = [",".join(line.split(",")[i] for i in (6, 0, 4, 3, 2, 1, 5)) for line in (HEADER, *ROWS)]
    assert sorted(turned[0].split(",")) == sorted(names)
    assert file_ask(DAY).parse(packed(turned)).table.equals(straight)


def test_file_without_rows_is_a_quiet_period() -> None:
    """A header alone is a period in which nobody traded."""
    assert file_ask(DAY).parse(packed([HEADER])).table.num_rows == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        packed([HEADER, *ROWS])[:-30],
        packed([HEADER, *ROWS], files=2),
        packed([HEADER, *ROWS], name=".txt"),
        packed(["time,o,h,l,c,v,a", *ROWS]),
        packed([HEADER + ",more", *(row + ",1" for row in ROWS)]),
        packed([HEADER, ROWS[0], ROWS[0]]),
        packed([HEADER, ROWS[0].replace("00:00:00", "00:00:30")]),
        packed([HEADER, ROWS[0].replace("2024-05-01", "2024-05-02")]),
        packed([HEADER, ROWS[0].replace("120", "80")]),
        packed([HEADER, ROWS[0].replace("2E1", "0")]),
        packed([HEADER, ROWS[0].replace("2E1", "")]),
        packed([HEADER, ROWS[0].replace("2E1", "many")]),
        packed([HEADER, ROWS[0].replace("90", "nan")]),
    ],
    ids=[
        "nothing",
        "html",
        "cut",
        "two files",
        "no csv",
        "other columns",
        "more columns",
        "doubled",
        "off the grid",
        "another day",
        "impossible",
        "filled",
        "empty cell",
        "words",
        "nan",
    ],
)
def test_file_of_another_shape_is_refused_whole(body: bytes) -> None:
    """Whatever differs from what is known is a `PayloadError`: no row of it is used."""
    with pytest.raises(PayloadError, match="not laid out as known"):
        file_ask(DAY).parse(body)


def test_checksum_is_a_sha256_with_or_without_a_name() -> None:
    """The digest alone, and the form of ``sha256sum``, are read; anything else is refused."""
    digest = "ab" * 32
    for body in (digest, f"{digest}  KRW-BTC.zip\n", f" {digest.upper()}\n"):
        assert checksum_ask(DAY).parse(body.encode()) == digest
    for wrong in (b"", b"d41d8cd98f00b204e9800998ecf8427e", b"<Error/>", digest.encode() + b"f"):
        with pytest.raises(PayloadError):
            checksum_ask(DAY).parse(wrong)


def test_listing_has_the_keys_of_files() -> None:
    """Directories are left out; a listing of another shape is refused."""
    rows = b'[{"key":"a/2024","size":0,"lastModified":null,"type":"DIRECTORY"},{"key":"a/b.zip","type":"FILE"}]'
    assert listing_ask("a").parse(rows) == frozenset({"a/b.zip"})
    for wrong in (b"{}", b"[1]", b"<ListBucketResult/>", b'[{"name":"x"}]'):
        with pytest.raises(PayloadError):
            listing_ask("a").parse(wrong)


def test_client_asks_the_host_that_has_it() -> None:
    """Listings and files are on two hosts, and there is no version in their paths."""
    with_client = ArchiveClient("https://files.example", "https://lists.example", clock=SystemClock())
    assert with_client._url(file_ask(DAY)) == f"https://files.example/{DAY.key}"
    assert with_client._url(checksum_ask(DAY)) == f"https://files.example/{DAY.key}.checksum"
    listed = "https://lists.example/api/v1/market-data/listing?prefix=candle/KRW-BTC/daily/1m/2024"
    assert with_client._url(listing_ask(DAY.folder)) == listed
    with_client.close()


TRADES = TradeFile("KRW-BTC", Span(MAY, MAY + DAY_US))
MS = MAY // 1000


@pytest.mark.parametrize(
    "lines",
    [
        ["seq,timestamp,volume,price,ask_bid", f"12,{MS + 5},0.5,101,BID", f"11,{MS},2E-05,100,ASK"],
        ["trade_id,timestamp,price,volume,ask_bid", f"11,{MS},100,0.00002,ASK", f"12,{MS + 5},101,0.5,BID"],
    ],
)
def test_trades_are_read_by_their_header(lines: list[str]) -> None:
    """Both known layouts, in any order of rows, are one table, oldest first."""
    table = file_ask(TRADES).parse(packed(lines)).table
    assert table.schema == TRADE_SCHEMA
    assert table.column("sequential_id").to_pylist() == [11, 12]
    assert table.column("volume").to_pylist() == [2e-05, 0.5]
    assert table.column("side").to_pylist() == ["sell", "buy"]
    assert TRADES.key == "trade/KRW-BTC/daily/2024/KRW-BTC_trade-20240501.zip"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["seq,timestamp,amount,price,ask_bid"], "columns"),
        (["seq,timestamp,volume,price,ask_bid", f"1,{MS},1,1,BID", f"1,{MS},1,1,BID"], "doubled"),
        (["seq,timestamp,volume,price,ask_bid", f"1,{MS - 1},1,1,BID"], "outside"),
        (["seq,timestamp,volume,price,ask_bid", f"1,{MS},0,1,BID"], "not a trade"),
        (["seq,timestamp,volume,price,ask_bid", f"1,{MS},1,1,bid"], "not a trade"),
        (["seq,timestamp,volume,price,ask_bid", f"x,{MS},1,1,BID"], "not laid out"),
    ],
)
def test_trades_that_cannot_be_are_refused(lines: list[str], reason: str) -> None:
    with pytest.raises(PayloadError, match=reason):
        file_ask(TRADES).parse(packed(lines))
