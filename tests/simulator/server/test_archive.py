"""The embedded exchange's archive: what is listed, when, and that its files are REST's candles."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import urllib.request
import zipfile

import pytest

from backbone.model import Span
from backbone.simulator.market.exchange import Exchange
from backbone.simulator.server.archive import ArchiveBranch

NOW = 1_755_853_200_000_000  # 2025-08-22T09:00:00Z
DAY_US = 86_400_000_000
KEY = "candle/KRW-BTC/daily/1h/2025/KRW-BTC_candle-1h_20250820.zip"
FILE = "candle/KRW-BTC/daily/60m/2025/KRW-BTC_candle-60m_20250820.zip"


@pytest.fixture(scope="module")
def exchange() -> Exchange:
    return Exchange(7, markets=["KRW-BTC", "KRW-ETH"])


@pytest.fixture
def branch(exchange: Exchange) -> ArchiveBranch:
    return ArchiveBranch(exchange)


def listed(branch: ArchiveBranch, prefix: str, now_us: int = NOW) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(branch.answer("/api/v1/market-data/listing", prefix, now_us).body)
    return rows


def test_listing_goes_down_the_tree(branch: ArchiveBranch) -> None:
    """Markets, kinds, intervals, years, files: each level lists the next."""
    assert [row["key"] for row in listed(branch, "candle")] == ["candle/KRW-BTC", "candle/KRW-ETH"]
    below = [row["key"] for row in listed(branch, "candle/KRW-BTC")]
    assert below == ["candle/KRW-BTC/daily", "candle/KRW-BTC/monthly"]
    assert {"candle/KRW-BTC/daily/1s", "candle/KRW-BTC/daily/day"} <= {
        row["key"] for row in listed(branch, "candle/KRW-BTC/daily")
    }
    years = listed(branch, "candle/KRW-BTC/monthly/1m")
    assert years[-1] == {"key": "candle/KRW-BTC/monthly/1m/2025", "size": 0, "lastModified": None, "type": "DIRECTORY"}
    files = listed(branch, "candle/KRW-BTC/monthly/1m/2025")
    assert files[-1]["key"] == "candle/KRW-BTC/monthly/1m/2025/KRW-BTC_candle-1m_202507.zip"
    assert {row["type"] for row in files} == {"FILE"}
    assert listed(branch, "candle/KRW-NONE/daily/1m/2025") == []


def test_day_is_listed_from_the_next_one_on(branch: ArchiveBranch) -> None:
    """The 21st appears at 05:00 UTC of the 22nd."""
    day = NOW - NOW % DAY_US
    folder = "candle/KRW-BTC/daily/1m/2025"
    before, after = (listed(branch, folder, day + int(hours * 3_600_000_000))[-1]["key"] for hours in (4.9, 5))
    assert str(before).endswith("20250820.zip")
    assert str(after).endswith("20250821.zip")


def test_file_has_the_candles_of_rest(branch: ArchiveBranch, exchange: Exchange) -> None:
    """Every row is REST's of that hour, in the archive's columns, in UTC, oldest first."""
    body = branch.answer(f"/{FILE}", "", NOW).body
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        (name,) = archive.namelist()
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open(name))))
    assert name == "KRW-BTC_candle-60m_20250820.csv"
    theirs = exchange.candles("KRW-BTC", "1h", to_us=1_755_734_400_000_000, count=24, now_us=NOW)[::-1]
    assert [row["date_time_utc"] for row in rows] == [row["candle_date_time_utc"] for row in theirs]
    for mine, their in zip(rows, theirs, strict=True):
        assert float(mine["open"]) == their["opening_price"]
        assert float(mine["close"]) == their["trade_price"]
        assert float(mine["acc_trade_price"]) == their["candle_acc_trade_price"]
        assert float(mine["acc_trade_volume"]) == their["candle_acc_trade_volume"]


def test_file_is_the_same_to_the_byte_until_it_is_restated(branch: ArchiveBranch) -> None:
    """Its checksum agrees, in another process too; a restatement issues it again."""
    own = Exchange(7, markets=["KRW-BTC", "KRW-ETH"])
    other = ArchiveBranch(own)
    body = branch.answer(f"/{FILE}", "", NOW).body
    assert other.answer(f"/{FILE}", "", NOW).body == body
    assert other.answer(f"/{FILE}.checksum", "", NOW).body.decode() == hashlib.sha256(body).hexdigest()
    own.restate("KRW-BTC", Span(1_755_648_000_000_000, 1_755_734_400_000_000), 0.001)
    again = other.answer(f"/{FILE}", "", NOW).body
    assert again != body
    assert other.answer(f"/{FILE}.checksum", "", NOW).body.decode() == hashlib.sha256(again).hexdigest()


def test_what_is_not_there_is_not_found(branch: ArchiveBranch) -> None:
    """A future day, an unknown market, a wrong name: 404, as the venue's file host says it."""
    for path in (
        FILE.replace("20250820", "20250822"),
        FILE.replace("KRW-BTC", "KRW-NONE"),
        "candle/x",
        KEY,
        FILE + ".md5",
    ):
        assert branch.answer(f"/{path}", "", NOW).status == 404


def test_server_serves_it_beside_rest(venue) -> None:  # type: ignore[no-untyped-def]
    """On the exchange's own port, logged in a group of its own, without a quota."""
    with urllib.request.urlopen(f"{venue.rest_url}/{FILE}.checksum") as answer:
        assert len(answer.read()) == 64
        assert answer.headers.get("Remaining-Req") is None
    assert [one.group for one in venue.requests] == ["archive"]


TRADES = "trade/KRW-ETH/daily/2025/KRW-ETH_trade-20250820.zip"


def test_trades_are_listed_and_their_files_hold_every_trade(branch: ArchiveBranch, exchange: Exchange) -> None:
    """A tree of its own, from May 2022 on; ids, times, sides and numbers as the tape has them."""
    assert [row["key"] for row in listed(branch, "")] == ["candle", "trade"]
    assert [row["key"] for row in listed(branch, "trade/KRW-ETH")] == ["trade/KRW-ETH/daily", "trade/KRW-ETH/monthly"]
    years = [str(row["key"])[-4:] for row in listed(branch, "trade/KRW-ETH/monthly")]
    assert years == ["2022", "2023", "2024", "2025"]
    first = listed(branch, "trade/KRW-ETH/monthly/2022")[0]["key"]
    assert first == "trade/KRW-ETH/monthly/2022/KRW-ETH_trade-202205.zip"
    assert listed(branch, "trade/KRW-ETH/daily/2025")[-1]["key"] == TRADES.replace("0820", "0821")
    body = branch.answer(f"/{TRADES}", "", NOW).body
    digest = branch.answer(f"/{TRADES}.checksum", "", NOW).body
    assert hashlib.sha256(body).hexdigest().encode() == digest
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read(archive.namelist()[0]).decode())))
    day = NOW - NOW % DAY_US - 2 * DAY_US
    truth = exchange.executions(exchange.market("KRW-ETH"), day, day + DAY_US)
    assert [int(row["seq"]) for row in rows] == truth.sequential_id.tolist()
    assert [int(row["timestamp"]) for row in rows] == truth.time_ms.tolist()
    assert [float(row["price"]) for row in rows] == truth.price.tolist()
    assert [float(row["volume"]) for row in rows] == truth.volume.tolist()
    assert {row["ask_bid"] for row in rows} == {"ASK", "BID"}


def test_trades_of_the_other_source_have_other_names_in_another_order(branch: ArchiveBranch) -> None:
    """So a reader must go by the header; and what was never published is not there."""
    body = branch.answer(f"/{TRADES}", "", NOW, frozenset({"archive-columns"})).body
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        header = archive.read(archive.namelist()[0]).decode().splitlines()[0]
    assert header == "trade_id,timestamp,price,volume,ask_bid"
    for key in (TRADES.replace("0820", "0822"), TRADES.replace("2025", "2021"), TRADES.replace("ETH", "NONE")):
        assert branch.answer(f"/{key}", "", NOW).status == 404
