"""The bulk archive as a source: what is taken, what is checked before it is accepted, and how REST steps in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from backbone import Backbone
from backbone.coordinator.candles import archive as archives
from backbone.errors import IncompleteError, InputError, RejectedError
from backbone.settings import resolve
from backbone.simulator import SimulatorServer

LIMIT = 500  # the quota is not what is tested here

YEAR = ("2024-06-01T00:00Z", "2025-06-01T00:00Z")
_TERMS = "https://www.upbit.com/historical_data/main"
WEEKS = ("2025-06-01T00:00Z", "2025-07-15T00:00Z")  # a whole month and the half of one


@pytest.fixture(autouse=True)
def terms_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_shown", {_TERMS})


def opened(venue: SimulatorServer, folder: Path, **words: str | None) -> Backbone:
    urls = {"rest_url": venue.rest_url, "ws_url": venue.ws_url}
    return Backbone(data_dir=folder, **{"archive": "accept-terms", **urls, **words})  # type: ignore[arg-type]


@pytest.fixture
def client(venue: SimulatorServer, tmp_path: Path) -> Iterator[Backbone]:
    with opened(venue, tmp_path / "data") as made:
        yield made


def rest_only(venue: SimulatorServer, market: str, timeframe: str, start: str, end: str):  # type: ignore[no-untyped-def]
    """The truth, from the exchange itself."""
    import polars as pl

    bounds = [int(np.datetime64(time.removesuffix("Z"), "us").astype(np.int64)) for time in (start, end)]
    return pl.from_arrow(venue.exchange.candle_table(market, timeframe, *bounds))


def requests_of(venue: SimulatorServer, group: str) -> int:
    return sum(1 for one in venue.requests if one.group == group)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "backbone.archive" and "unused" in r.getMessage()]


def test_archive_is_never_used_unasked(venue: SimulatorServer, tmp_path: Path) -> None:
    """Without the user's word no request goes to the archive."""
    with opened(venue, tmp_path, archive=None) as client:
        client.candles("KRW-BTC", "1m", "2025-08-10T00:00Z", "2025-08-12T00:00Z")
    assert requests_of(venue, "archive") == 0


def test_archive_terms_are_shown_once(
    venue: SimulatorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """The address of the terms is said at the first use in a process, where everybody sees it, and not again."""
    monkeypatch.setattr(archives, "_shown", set())
    for name in "ab":
        with opened(venue, tmp_path / name) as client:
            client.candles("KRW-BTC", "1d", count=3)
    (shown,) = (str(one.message) for one in recwarn if "archive" in str(one.message))
    assert "https://www.upbit.com/historical_data/main" in shown


def test_archive_answers_whole_months_and_days_rest_the_tail(client: Backbone, venue: SimulatorServer) -> None:
    """One frame from both sources, equal to the exchange's own candles to the last bit, with the sources counted."""
    start, end = "2025-06-01T00:00Z", "2025-08-22T08:00Z"
    frame = client.candles("KRW-BTC", "1m", start, end, frames="polars")
    truth = rest_only(venue, "KRW-BTC", "1m", start, end)
    assert frame.with_columns(time=frame["time"].dt.convert_time_zone("UTC")).equals(truth)
    sources = frame.attrs["backbone"]["sources"]
    assert sources["archive"] + sources["rest"] == frame.height
    assert 0 < sources["rest"] <= 480, "the day that is not over"
    names = [one.path for one in venue.requests if one.group == "archive" and one.path.endswith(".zip")]
    assert sum("monthly" in name for name in names) == 2
    assert sum("daily" in name for name in names) == 21
    venue.reset_log()
    assert client.candles("KRW-BTC", "1m", start, end, frames="polars").equals(frame)
    assert venue.requests == []
    assert len(client.store.verify()) == 0


def test_archive_year_is_ten_times_faster_than_the_quota(venue: SimulatorServer, tmp_path: Path) -> None:
    """A year of minutes from an exchange 30 ms away takes less than a tenth of what its quota would: 263 s."""
    from backbone.clock import SystemClock

    clock = SystemClock()
    with (
        SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True, latency_s=0.03, limit=LIMIT) as far,
        opened(far, tmp_path) as client,
    ):
        began, worked = clock.monotonic(), time.process_time()
        rows = len(client.candles("KRW-BTC", "1m", *YEAR, progress=False))
        took = clock.monotonic() - began
        alone = time.process_time() - worked + 0.03 * len(far.requests)  # what others have of the machine left out
        assert rows > 520_000
        assert requests_of(far, "candles") <= 13
    assert min(took, alone) < 26.3


def test_archive_serves_a_job_by_its_months(client: Backbone, venue: SimulatorServer) -> None:
    """A backfill is cut where the files are, so that it too takes whole months."""
    job = client.backfill("KRW-ETH", "1m", *WEEKS)
    rows = sum(len(section) for section in job.sections())
    truth = rest_only(venue, "KRW-ETH", "1m", *WEEKS)
    assert rows == truth.height
    assert requests_of(venue, "candles") <= 20
    sources = job.result().attrs["backbone"]["sources"]
    assert sources == {"archive": rows}


def test_archive_leaves_short_and_unpublished_spans_to_rest(client: Backbone, venue: SimulatorServer) -> None:
    """A span that costs fewer pages than a file, and a day that cannot be published yet, are asked of REST."""
    venue.clock.set("2025-08-22T00:59:00Z")  # before 10:00 KST
    client.candles("KRW-BTC", "1m", "2025-08-10T00:00Z", "2025-08-10T06:00Z")
    client.candles("KRW-XRP", "1m", "2025-08-21T00:00Z", "2025-08-22T00:00Z")
    assert requests_of(venue, "archive") == 0


def test_archive_is_tried_from_ten_and_its_absence_is_no_fault_before_two(
    venue: SimulatorServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is not there yet costs one listing and no warning, and is taken as soon as it is there."""
    day = ("2025-08-21T00:00Z", "2025-08-22T00:00Z")
    venue.clock.set("2025-08-22T03:00:00Z")  # noon in Korea; this exchange publishes at two
    with opened(venue, tmp_path / "early") as client:
        for market in ("KRW-XRP", "KRW-XRP", "KRW-ADA"):
            frame = client.candles(market, "1m", *day)
            assert frame.attrs["backbone"]["sources"].get("archive") is None
            client.store.remove(market, "1m")
        assert requests_of(venue, "archive") == 2, "a listing a market"
        assert not warnings_of(caplog)
        assert client.session.coordinator().archive.fallbacks == 0  # type: ignore[union-attr]
    venue.clock.set("2025-08-22T05:00:00Z")
    with opened(venue, tmp_path / "late") as client:
        assert client.candles("KRW-XRP", "1m", *day).attrs["backbone"]["sources"].get("archive")


def test_archive_month_that_is_late_is_taken_by_its_days(
    client: Backbone, venue: SimulatorServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A month whose file is not listed although it should be is taken from the files of its days."""
    venue.faults.add("empty", match="monthly", times=1)
    frame = client.candles("KRW-ADA", "1m", "2025-07-01T00:00Z", "2025-07-04T00:00Z")
    assert frame.attrs["backbone"]["sources"] == {"archive": len(frame)}
    assert "no such file" in warnings_of(caplog)[0]


def test_archive_explain_counts_files(client: Backbone) -> None:
    """The plan of a range counts three requests for a file and none of its pages."""
    plan = client.explain("KRW-BTC", "1m", "2025-05-01T00:00Z", "2025-06-01T00:00Z")
    assert plan.pages == 3


@pytest.mark.parametrize(
    ("fault", "match", "said"),
    [
        ("archive-missing", ".checksum", "refuses a checksum"),
        ("archive-checksum", ".checksum", "does not agree"),
        ("archive-columns", ".zip", "not as known"),
        ("archive-values", ".zip", "differs from REST"),
        ("archive-layout", "/listing", "listing is not as known"),
        ("garbage", "/listing", "listing is not as known"),
        ("garbage", ".zip", "not as known"),
    ],
)
def test_archive_that_is_not_as_known_falls_back_to_rest(
    client: Backbone, venue: SimulatorServer, caplog: pytest.LogCaptureFixture, fault: str, match: str, said: str
) -> None:
    """Whatever is wrong with the archive costs one warning and no candle: REST is asked."""
    venue.faults.add(fault, match=match, times=None)
    start, end = "2025-08-19T00:00Z", "2025-08-21T00:00Z"
    frame = client.candles("KRW-BTC", "1m", start, end, frames="polars")
    assert frame.attrs["backbone"]["sources"] == {"rest": frame.height}
    assert frame.height == rest_only(venue, "KRW-BTC", "1m", start, end).height
    warned = warnings_of(caplog)
    assert len(warned) == 1
    assert said in warned[0]
    assert "asked of REST instead" in warned[0]


@pytest.mark.parametrize(("fault", "options"), [("short", {"rows": 3}), ("empty", {})])
def test_archive_sample_that_is_short_is_asked_again(
    client: Backbone, venue: SimulatorServer, caplog: pytest.LogCaptureFixture, fault: str, options: dict[str, int]
) -> None:
    """A short page of REST says nothing against a file: what it does not show is asked once more."""
    client.markets("KRW")  # the clock is known: the next page is the sample
    venue.faults.add(fault, match="/v1/candles", **options)
    span = ("2025-08-19T00:00Z", "2025-08-20T00:00Z")
    frame = client.candles("KRW-ADA", "1m", *span, frames="polars")
    assert venue.faults.log
    assert frame.attrs["backbone"]["sources"] == {"archive": frame.height}
    assert not warnings_of(caplog)
    assert frame.height == rest_only(venue, "KRW-ADA", "1m", *span).height


def test_archive_that_does_not_answer_is_left_alone_for_a_while(
    venue: SimulatorServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A host that is not there costs some retries once; the calls after it go to REST at once."""
    nobody = "http://127.0.0.1:9"
    with opened(venue, tmp_path, archive_url=nobody) as client:
        first = client.candles("KRW-BTC", "1m", "2025-08-19T00:00Z", "2025-08-20T00:00Z")
        second = client.candles("KRW-BTC", "1m", "2025-08-20T00:00Z", "2025-08-21T00:00Z")
        assert client.session.coordinator().archive.fallbacks == 1  # type: ignore[union-attr]
        assert "instead of 1 file of the archive" in " ".join(client.health().reasons)
    assert first.attrs["backbone"]["sources"] == {"rest": len(first)}
    assert second.attrs["backbone"]["sources"] == {"rest": len(second)}
    assert len(warnings_of(caplog)) == 1


def test_archive_file_issued_again_goes_through_revisions(client: Backbone, venue: SimulatorServer) -> None:
    """A restated file is found by its checksum, checked, stored, and what it changed is on record."""
    span = ("2025-06-01T00:00Z", "2025-07-01T00:00Z")
    market = "KRW-SOL"
    before = client.candles(market, "1m", *span, frames="polars")
    assert client.store.recheck()["state"].tolist() == ["same"]
    venue.faults.add("restate", market=market, start="2025-06-10T00:00:00Z", end="2025-06-10T02:00:00Z", shift=0.001)
    found = client.store.recheck()
    assert found["state"].tolist() == ["changed"]
    assert "candles revised" in found["detail"][0]
    after = client.candles(market, "1m", *span, frames="polars")
    moved = int((before["open"] != after["open"]).sum())
    assert moved > 0
    revisions = client.store.revisions()
    assert len(revisions) == moved
    assert set(revisions["source"]) == {"archive"}
    assert client.store.recheck()["state"].tolist() == ["same"]
    assert after.with_columns(time=after["time"].dt.convert_time_zone("UTC")).equals(
        rest_only(venue, market, "1m", *span)
    )


def test_archive_recheck_accepts_no_wrong_file(client: Backbone, venue: SimulatorServer) -> None:
    """A file that was issued again with prices that REST does not confirm changes nothing."""
    span = ("2025-06-01T00:00Z", "2025-07-01T00:00Z")
    before = client.candles("KRW-DOGE", "1m", *span)
    venue.faults.add("archive-values", match="/candle/", times=None)
    assert client.store.recheck("KRW-DOGE")["state"].tolist() == ["refused"]
    assert client.candles("KRW-DOGE", "1m", *span).equals(before)
    assert len(client.store.revisions()) == 0


@pytest.mark.slow
def test_archive_reaches_seconds_that_rest_no_longer_has(client: Backbone, venue: SimulatorServer) -> None:
    """Seconds older than the venue's three months come from the archive, compared with REST's minutes."""
    span = ("2025-01-10T00:00Z", "2025-01-11T00:00Z")
    frame = client.candles("KRW-BTC", "1s", *span, frames="polars")
    assert frame.attrs["backbone"]["sources"] == {"archive": frame.height}
    assert frame.height == rest_only(venue, "KRW-BTC", "1s", *span).height


def test_archive_outage_of_the_store_of_many_markets(client: Backbone, venue: SimulatorServer) -> None:
    """Several markets at once share the queue, and a market without files is fetched all the same."""
    frame = client.candles(["KRW-BTC", "KRW-ETH"], "1m", "2025-07-01T00:00Z", "2025-08-01T00:00Z")
    assert frame.attrs["backbone"]["sources"] == {"archive": len(frame)}
    assert requests_of(venue, "candles") == 2


def test_archive_argument_is_checked_before_anything_is_asked() -> None:
    """Another value, and an exchange without an archive, are refused with the address of the terms."""
    words = {"data_dir": "x", "rest_url": None, "ws_url": None, "tz": None, "frames": "pandas"}
    with pytest.raises(InputError, match=r"accept-terms.*https://www\.upbit\.com/historical_data"):
        resolve("upbit", **words, archive="yes", environ={})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="only the Korean exchange"):
        resolve("upbit-sg", **words, archive="accept-terms", environ={})  # type: ignore[arg-type]
    own = resolve("upbit", **words, archive="accept-terms", environ={}).archive  # type: ignore[arg-type]
    assert (own.file_url, own.list_url) == ("https://crix-data.upbit.com", "https://crix-data-api.upbit.com")  # type: ignore[union-attr]
    other = resolve("upbit", **words | {"rest_url": "http://127.0.0.1:1"}, archive="accept-terms", environ={})  # type: ignore[arg-type]
    assert other.archive.file_url == "http://127.0.0.1:1", "the venue's own data never mixes with another host's"  # type: ignore[union-attr]


def test_archive_on_the_command_line(
    venue: SimulatorServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--archive accept-terms` opens it there too; another value is a wrong argument."""
    from backbone.api.cli import main as cli

    argv = ["fetch", "KRW-ETH", "1m", "--start", "2025-07-01T00:00Z", "--end", "2025-07-03T00:00Z"]
    argv += ["--data-dir", str(tmp_path), "--rest-url", venue.rest_url, "--ws-url", venue.ws_url]
    assert cli.main([*argv, "--archive", "yes"]) == cli.EXIT_INPUT
    assert cli.main([*argv, "--archive", "accept-terms"]) == 0
    assert "from archive" in capsys.readouterr().err


def test_old_trades_come_from_the_archive_and_join_those_of_rest(client: Backbone, venue: SimulatorServer) -> None:
    """A range over the boundary of seven days is one frame, each trade once, equal to the exchange's own; a
    first-so-many and a newest-so-many before an old end are parts of it."""
    start, end = "2025-08-14T12:00Z", "2025-08-15T06:00Z"  # today is 08-22: REST has all from 08-15 on
    frame = client.trades("KRW-BTC", start=start, end=end)
    bounds = [int(np.datetime64(time.removesuffix("Z"), "us").astype(np.int64)) for time in (start, end)]
    truth = venue.exchange.executions(venue.exchange.market("KRW-BTC"), *bounds)
    assert frame["sequential_id"].tolist() == truth.sequential_id.tolist()
    assert frame["price"].tolist() == truth.price.tolist()
    assert set(frame.attrs["backbone"]["sources"]) == {"archive", "rest"}
    first = client.trades("KRW-BTC", 50, start=start)
    last = client.trades("KRW-BTC", 50, end="2025-08-14T18:00Z")
    assert first.equals(frame.head(50))
    assert last.equals(frame[frame.index < pd.Timestamp("2025-08-14T18:00Z")].tail(50))


def test_trades_count_reaches_into_the_archive(client: Backbone, venue: SimulatorServer) -> None:
    """The newest so many before a recent end are more than seven days have: the archive has the others."""
    start, end = "2025-08-14T12:00Z", "2025-08-15T00:10Z"
    whole = client.trades("KRW-BTC", start=start, end=end)
    asked = client.trades("KRW-BTC", len(whole) - 5, end=end)
    assert asked.equals(whole.tail(len(whole) - 5))
    assert set(asked.attrs["backbone"]["sources"]) == {"archive", "rest"}
    with opened(venue, Path(client.data_dir) / "b", archive=None) as plain:
        assert len(plain.trades("KRW-BTC", len(whole) - 5, end=end)) < len(asked), "REST has seven days"


def test_trades_in_sections_are_the_range_hour_by_hour(client: Backbone, venue: SimulatorServer) -> None:
    """Together exactly the frame, each within its hour; a day that fails is an error when it is reached."""
    start, end = "2025-08-14T20:30Z", "2025-08-15T03:00Z"
    whole = client.trades("KRW-BTC", start=start, end=end)
    parts = list(client.trades("KRW-BTC", start=start, end=end, sections="1h"))
    assert pd.concat(parts).equals(whole)
    assert [part.index[0].floor("h") for part in parts if len(part)] == sorted({*whole.index.floor("h")})
    assert len(parts) == 7, "20:30 to 03:00 touches seven hours"
    assert parts[0].attrs["backbone"]["data_count"] == len(parts[0])
    venue.faults.add("archive-missing", match="KRW-BTC_trade-20250802", times=None)
    days = client.trades("KRW-BTC", start="2025-08-01T12:00Z", end="2025-08-03T00:00Z", sections="12h", frames="polars")
    assert next(days).height
    with pytest.raises(RejectedError, match="NoSuchKey"):  # nothing of that day arrived: its cause alone
        next(days)


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        ({"sections": "7m", "start": "2025-08-14"}, "timeframe"),
        ({"sections": "1w", "start": "2025-08-14"}, "sections"),
        ({"sections": "1h"}, "start"),
        ({"sections": "1h", "start": "2025-08-14", "count": 5}, "count"),
        ({"sections": "1h", "start": "2025-08-14", "end": "2025-08-13"}, "start"),
        ({"sections": "1h", "start": "2025-08-14", "frames": "excel"}, "frames"),
    ],
)
def test_trades_sections_arguments_are_checked_at_the_call(
    client: Backbone, words: dict[str, str], argument: str
) -> None:
    """Not at the first section."""
    with pytest.raises(InputError) as caught:
        client.trades("KRW-BTC", **words)
    assert caught.value.argument == argument


def test_old_trades_that_differ_from_the_days_candle_are_an_error(client: Backbone, venue: SimulatorServer) -> None:
    """A missing file names its day; what else was asked for is in the error's frame."""
    venue.faults.add("archive-missing", match="KRW-BTC_trade-20250801", times=None)
    with pytest.raises(IncompleteError) as caught:
        client.trades("KRW-BTC", start="2025-08-01T00:00Z", end="2025-08-03T00:00Z")
    (gap,) = caught.value.gaps
    assert str(np.datetime64(gap.start, "us")).startswith("2025-08-01")
    assert caught.value.frame.index[0] >= pd.Timestamp("2025-08-02T00:00Z")


def test_old_trades_need_the_archive(venue: SimulatorServer, client: Backbone, tmp_path: Path) -> None:
    """Without it the error says how; with it nothing from before 2022-05 is had."""
    with opened(venue, tmp_path / "b", archive=None) as plain, pytest.raises(InputError, match="accept-terms"):
        plain.trades("KRW-BTC", start="2025-08-01", end="2025-08-02")
    with pytest.raises(InputError, match="2022-05-01"):
        client.trades("KRW-BTC", start="2022-04-01", end="2022-06-02")
