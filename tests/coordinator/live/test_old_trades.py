"""Days of trades from an archive of a few lines: what is used, what is refused, and how far a count reaches."""

from __future__ import annotations

import hashlib
import io
import zipfile
from typing import Any

import pyarrow as pa
import pytest

from backbone.coordinator.candles.reader import CandleAnswer
from backbone.coordinator.live.old_trades import OldTrades
from backbone.errors import PayloadError, RejectedError, UnreachableError
from backbone.model import CANDLE_SCHEMA, Span
from backbone.routing.wire import Ask

DAY_US = 86_400_000_000
MAY = 1_714_521_600_000_000  # 2024-05-01T00:00:00Z
MARKET = "KRW-BTC"


class Archive:
    """Three days of four trades each, and the day candles that REST has of them; the second day has no trades."""

    def __init__(self) -> None:
        self.texts: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.volume = {MAY: 10.0, MAY + 2 * DAY_US: 10.0}
        for stamp, day in (("20240501", MAY), ("20240503", MAY + 2 * DAY_US)):
            rows = [f"{day // 1000 + i},{(day + i * DAY_US // 4) // 1000},{i}.0,{100 + i},BID" for i in range(1, 4)]
            rows.append(f"{day // 1000},{day // 1000},4.0,100,ASK")
            self.texts[stamp] = zipped("\n".join(["seq,timestamp,volume,price,ask_bid", *rows]) + "\n")

    def request(self, ask: Ask) -> Any:
        self.asked.append(ask.path)
        stamp = ask.path.rpartition("-")[2][:8]
        if stamp in self.fails:
            raise self.fails[stamp]
        body = self.texts[stamp]
        return ask.parse(hashlib.sha256(body).hexdigest().encode() if ask.path.endswith(".checksum") else body)

    def days(self, market: str, span: Span) -> CandleAnswer:
        opens = [day for day in self.volume if span.start <= day < span.end]
        count = len(opens)
        columns = [opens, *([price] * count for price in (100.0, 103.0, 100.0, 103.0)), [*map(self.volume.get, opens)]]
        table = pa.table([*columns, [1.0] * count], names=CANDLE_SCHEMA.names).cast(CANDLE_SCHEMA)
        return CandleAnswer(market, span, table, 1, 0, {})

    def read(self, start: int, end: int, **words: int) -> Any:
        return OldTrades(self.request, self.days, MAY).read(MARKET, Span(start, end), **words)


def zipped(text: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("trades.csv", text)
    return sink.getvalue()


ALL = Span(MAY, MAY + 3 * DAY_US)


def prices(answer: Any) -> list[float]:
    return answer.table.column("price").to_pylist()  # type: ignore[no-any-return]


def test_days_are_joined_oldest_first_and_a_day_without_trades_is_not_asked_for() -> None:
    """Two files, two requests each; a file's order is by time, whatever order its rows have."""
    archive = Archive()
    answer = archive.read(*ALL)
    assert prices(answer) == [100, 101, 102, 103] * 2
    assert (answer.requests, answer.gaps) == (4, ())
    assert not any("20240502" in path for path in archive.asked)


def test_the_range_is_half_open_inside_a_day() -> None:
    quarter = DAY_US // 4
    assert prices(Archive().read(MAY + quarter, MAY + 3 * quarter)) == [101, 102]


@pytest.mark.parametrize(
    ("words", "found", "files"),
    [({"first": 3}, [100, 101, 102], 1), ({"last": 2}, [102, 103], 1), ({"last": 5}, [103, 100, 101, 102, 103], 2)],
)
def test_a_count_reads_no_more_days_than_it_needs(words: dict[str, int], found: list[int], files: int) -> None:
    archive = Archive()
    assert prices(archive.read(*ALL, **words)) == found
    assert len(archive.asked) == 2 * files


def test_a_day_that_its_candle_contradicts_is_a_gap_and_the_others_are_there() -> None:
    """The cause says what differs, with both numbers."""
    archive = Archive()
    archive.volume[MAY] = 10.1
    answer = archive.read(*ALL)
    assert prices(answer) == [100, 101, 102, 103]
    assert answer.gaps == (Span(MAY, MAY + DAY_US),)
    with pytest.raises(PayloadError, match=r"20240501.*volume is 10, that of the day's candle 10\.1"):
        raise answer.causes[0]


def test_before_candles_were_sums_a_volume_may_differ_a_little() -> None:
    archive = Archive()
    archive.volume[MAY] = 10.001
    assert archive.read(*ALL).gaps
    old = OldTrades(archive.request, archive.days, MAY + DAY_US).read(MARKET, ALL)
    assert not old.gaps


def test_a_checksum_that_disagrees_is_asked_once_more() -> None:
    archive = Archive()
    body = archive.texts["20240501"]

    def request(ask: Ask) -> Any:
        archive.asked.append(ask.path)
        return ask.parse(b"0" * 64 if ask.path.endswith(".checksum") else body)

    answer = OldTrades(request, archive.days, MAY).read(MARKET, Span(MAY, MAY + DAY_US))
    assert "checksum" in str(answer.causes[0])
    assert (answer.requests, answer.table.num_rows) == (4, 0)


def test_an_archive_that_is_away_is_not_asked_for_each_day() -> None:
    """All days from there on are gaps; a single file that is missing is one."""
    archive = Archive()
    archive.fails["20240501"] = UnreachableError("away")
    answer = archive.read(*ALL)
    assert answer.gaps == (Span(MAY, MAY + DAY_US), Span(MAY + 2 * DAY_US, MAY + 3 * DAY_US))
    archive.fails["20240501"] = RejectedError("not there", status=404)
    answer = archive.read(*ALL)
    assert answer.gaps == (Span(MAY, MAY + DAY_US),)
    assert prices(answer) == [100, 101, 102, 103]


def test_a_count_ends_at_a_gap() -> None:
    """The last five are neighbours: none from behind a day that could not be had."""
    archive = Archive()
    archive.fails["20240501"] = RejectedError("not there", status=404)
    answer = archive.read(*ALL, last=5)
    assert prices(answer) == [100, 101, 102, 103]
    assert answer.gaps == (Span(MAY, MAY + DAY_US),)


def test_the_newest_so_many_ask_for_the_newest_day_candles_only() -> None:
    """Years of day candles are not fetched for a count that a few days have."""
    archive, asked = Archive(), list[Span]()

    def days(market: str, span: Span) -> CandleAnswer:
        asked.append(span)
        return archive.days(market, span)

    found = OldTrades(archive.request, days, MAY).read(MARKET, Span(MAY - 900 * DAY_US, ALL.end), last=3)
    assert found.table.num_rows == 3
    assert asked == [Span(ALL.end - 200 * DAY_US, ALL.end)]
