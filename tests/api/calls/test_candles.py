"""The candle call, the whole path over loopback: words, exactness, the second call, faults, time."""

from __future__ import annotations

import datetime as dt
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from backbone import Backbone, BackboneRequest
from backbone.api.frames import attrs_of
from backbone.errors import (
    CorruptPartitionError,
    IncompleteError,
    InputError,
    RateLimitedError,
    SourceError,
    UnreachableError,
)
from backbone.simulator import SimulatorServer
from backbone.timeframe import TIMEFRAMES

LIMIT = 500  # the quota is not what is tested here
START, END = "2025-08-22T00:00:00Z", "2025-08-22T08:30:00Z"
COLUMNS = ["open", "high", "low", "close", "volume", "value"]


def facts(frame: Any) -> dict[str, Any]:
    return attrs_of(frame)


def truth(venue: SimulatorServer, market: str, timeframe: str, start: str, end: str) -> pd.DataFrame:
    """The exchange's own candles, asked of the market itself, not through its dialect."""
    first, last = (int(pd.Timestamp(t).value // 1000) for t in (start, end))
    table = venue.exchange.candle_table(market, TIMEFRAMES[timeframe], first, last, venue.clock.now_us())
    return table.to_pandas().set_index("time")


def same(frame: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert (frame.index.tz_convert("UTC") == expected.index).all()
    for column in COLUMNS:
        assert (frame[column].to_numpy() == expected[column].to_numpy()).all(), column


@pytest.mark.parametrize("timeframe", [name for name in TIMEFRAMES if name not in ("1s",)])
def test_candles_every_timeframe_equals_the_exchange(client: Backbone, venue: SimulatorServer, timeframe: str) -> None:
    """Every timeframe comes back exactly as the exchange has it, and from the store the second time."""
    frame = client.candles("KRW-BTC", timeframe, count=30)
    step = TIMEFRAMES[timeframe]
    start = step.floor(int(frame.index[0].value // 1000) if frame.index.unit == "ns" else _us(frame.index[0]))
    end = venue.clock.now_us()
    expected = venue.exchange.candle_table("KRW-BTC", step, start, end, end).to_pandas().set_index("time")
    expected = expected[expected.index < pd.Timestamp(step.floor(end - 3_000_000), unit="us", tz="UTC")]
    same(frame, expected)
    again = client.candles("KRW-BTC", timeframe, count=30)
    pd.testing.assert_frame_equal(frame, again, check_exact=True)
    assert facts(again)["requests"] == 0


def _us(stamp: pd.Timestamp) -> int:
    return int(stamp.tz_convert("UTC").to_datetime64().astype("datetime64[us]").astype(np.int64))


def test_candles_frame_has_the_promised_shape(client: Backbone) -> None:
    """Index, dtypes, order and facts are what the contract says."""
    frame = client.candles("KRW-BTC", "1m", START, END)
    assert frame.index.name == "time"
    assert str(frame.index.dtype) == "datetime64[us, Asia/Seoul]"
    assert frame.index.is_unique
    assert frame.index.is_monotonic_increasing
    assert list(frame.columns) == COLUMNS
    assert (frame.dtypes == "float64").all()
    said = facts(frame)
    assert {"request_id", "source", "cache_hit", "elapsed_ms", "data_count", "priority"} <= set(said)
    assert said["requests"] == said["pages"] == 3
    assert said["quiet"] + said["data_count"] == 510
    assert said["unknown"] == 0
    assert said["sources"] == {"rest": len(frame)}


def test_candles_empty_frame_is_typed(client: Backbone) -> None:
    """Before listing there is nothing, in the same columns and types."""
    frame = client.candles("KRW-BTC", "1m", "2010-01-01", "2010-01-02")
    assert len(frame) == 0
    assert list(frame.columns) == COLUMNS
    assert (frame.dtypes == "float64").all()
    assert str(frame.index.dtype) == "datetime64[us, Asia/Seoul]"
    again = client.candles("KRW-BTC", "1m", "2009-01-01", "2009-02-01")
    assert facts(again)["requests"] == 0


def test_candles_second_call_makes_no_request(client: Backbone, venue: SimulatorServer) -> None:
    """What is held is not asked again, in this client or the next one."""
    first = client.candles("KRW-BTC", "1m", START, END)
    client.close()
    venue.reset_log()
    with Backbone(data_dir=client.data_dir, rest_url=venue.rest_url) as later:
        second = later.candles("KRW-BTC", "1m", START, END)
        pd.testing.assert_frame_equal(first, second, check_exact=True)
        assert facts(second)["sources"] == {"disk": len(second)}
    assert venue.counts() == {}


def test_candles_only_gaps_are_asked(client: Backbone, venue: SimulatorServer) -> None:
    """Both ends and an inner hole: only what is unknown costs a request."""
    client.candles("KRW-BTC", "1m", "2025-08-21T12:00:00Z", "2025-08-21T13:00:00Z")  # its page begins at 09:40
    client.candles("KRW-BTC", "1m", "2025-08-21T19:00:00Z", "2025-08-21T19:20:00Z")  # and this one's at 16:00
    venue.reset_log()
    whole = client.candles("KRW-BTC", "1m", "2025-08-21T08:00:00Z", "2025-08-21T22:00:00Z")
    assert facts(whole)["requests"] == 3
    same(whole, truth(venue, "KRW-BTC", "1m", "2025-08-21T08:00:00Z", "2025-08-21T22:00:00Z"))


def test_candles_thousand_are_five_requests(client: Backbone) -> None:
    """1,000 candles of a busy market are split in 5 requests, where the machine's clock is about right."""
    client.markets()  # here it is not: the exchange's clock stands still in another year
    frame = client.candles("KRW-BTC", "1m", count=1000)
    assert len(frame) == 1000
    assert facts(frame)["requests"] in (5, 6)  # the sixth where a minute was quiet


@pytest.mark.parametrize("count", [1, 7, 200, 201, 450])
def test_candles_count_is_the_newest_existing_ones(client: Backbone, venue: SimulatorServer, count: int) -> None:
    """`count` counts candles that exist, on a market where most minutes are quiet."""
    market = thin_market(venue)
    end = "2025-08-20T00:00:00Z"
    frame = client.candles(market, "1m", end=end, count=count)
    expected = truth(venue, market, "1m", "2025-08-01T00:00:00Z", end).iloc[-count:]
    same(frame, expected)


def thin_market(venue: SimulatorServer) -> str:
    """A market that trades in some 7 % of its minutes."""
    now = venue.clock.now_us()
    day = 86_400_000_000
    for info in venue.exchange.markets(now):
        code = info["market"] if isinstance(info, dict) else info.market
        if code.startswith("KRW-"):
            rows = venue.exchange.candle_table(code, TIMEFRAMES["1m"], now - day, now, now).num_rows
            if 70 <= rows <= 140:
                return str(code)
    raise AssertionError("the exchange has no thin market")


def test_candles_thin_market_costs_requests_by_its_rows(client: Backbone, venue: SimulatorServer) -> None:
    """A month of a market where 7 % of minutes trade is not one request per 200 minutes."""
    market = thin_market(venue)
    frame = client.candles(market, "1m", "2025-08-01T00:00:00Z", "2025-08-16T00:00:00Z")
    same(frame, truth(venue, market, "1m", "2025-08-01T00:00:00Z", "2025-08-16T00:00:00Z"))
    assert facts(frame)["requests"] <= 2.5 * len(frame) / 200 + 1


def test_candles_report_every_request_that_was_sent(client: Backbone, venue: SimulatorServer) -> None:
    """Pages that were under way when the first reply proved all count too, in the frame and in the envelope."""
    market = thin_market(venue)
    reply = client.request(BackboneRequest("candles", market, "1m", "2025-08-15T00:00Z", "2025-08-22T00:00Z"))
    reported = reply.metadata.split_info["requests"]
    deadline = threading.Event()
    for _ in range(300):
        if sum(venue.counts()["candles"].values()) >= reported:
            break
        deadline.wait(0.1)  # what is under way still arrives there
    client.close()
    assert sum(venue.counts()["candles"].values()) == reported > 1


def test_candles_start_and_count_are_the_first_ones(client: Backbone, venue: SimulatorServer) -> None:
    """With a start and no end, `count` means the first that many."""
    frame = client.candles("KRW-BTC", "1m", START, count=250)
    same(frame, truth(venue, "KRW-BTC", "1m", START, "2025-08-22T08:00:00Z").iloc[:250])


@pytest.mark.parametrize("zone", ["Asia/Seoul", "UTC", "America/New_York"])
def test_candles_index_round_trips_as_start(venue: SimulatorServer, tmp_path: Path, zone: str) -> None:
    """`start=df.index[0]` asks for exactly that candle, in every zone; naive input is in the client's zone."""
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url, tz=zone) as client:
        frame = client.candles("KRW-BTC", "1m", "2025-08-22T01:00:00Z", "2025-08-22T02:00:00Z")
        again = client.candles("KRW-BTC", "1m", frame.index[0], frame.index[-1] + pd.Timedelta("1min"))
        pd.testing.assert_frame_equal(frame, again, check_exact=True)
        naive = client.candles("KRW-BTC", "1m", frame.index[0].tz_localize(None), frame.index[-1].tz_localize(None))
        assert naive.index[0] == frame.index[0]


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (dt.date(2025, 8, 20), dt.date(2025, 8, 21)),
        (dt.datetime(2025, 8, 20), dt.datetime(2025, 8, 21)),
        (pd.Timestamp("2025-08-20", tz="Asia/Seoul"), np.datetime64("2025-08-21")),
        ("2025-08-20", "2025-08-21T00:00:00+09:00"),
    ],
)
def test_candles_any_spelling_of_time_means_the_same(client: Backbone, start: object, end: object) -> None:
    """Dates, datetimes, timestamps and texts are read alike, naive ones in the client's zone."""
    frame = client.candles("KRW-BTC", "1h", start, end)
    assert [str(frame.index[0]), str(frame.index[-1])] == ["2025-08-20 00:00:00+09:00", "2025-08-20 23:00:00+09:00"]


def test_candles_relative_start_counts_back_on_the_venues_clock(venue: SimulatorServer, tmp_path: Path) -> None:
    """ "3h" is three hours before the venue's now, however this machine's clock stands."""
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as client:
        frame = client.candles("KRW-BTC", "1m", "3h")
    three_hours_before = pd.Timestamp("2025-08-22T06:00:00Z")
    assert three_hours_before <= frame.index[0] <= three_hours_before + pd.Timedelta("1min")


@pytest.mark.parametrize("frames", ["polars", "arrow"])
def test_candles_other_frames_hold_the_same(client: Backbone, frames: str) -> None:
    """Polars and Arrow frames have the same columns, rows and facts."""
    pandas = client.candles("KRW-BTC", "1m", START, END)
    other = client.candles("KRW-BTC", "1m", START, END, frames=frames)
    assert isinstance(other, pl.DataFrame if frames == "polars" else pa.Table)
    table = other.to_arrow() if frames == "polars" else other
    assert table.column_names == ["time", *COLUMNS]
    assert table.column("close").to_pylist() == pandas["close"].tolist()
    assert facts(other)["data_count"] == len(pandas)


def test_candles_many_markets_are_one_long_frame(client: Backbone) -> None:
    """Several markets come in one frame with `market` first."""
    frame = client.candles(["KRW-BTC", "eth"], "1h", "2025-08-21", "2025-08-22")
    assert list(frame.columns) == ["market", *COLUMNS]
    assert frame.groupby("market", sort=False).size().to_dict() == {"KRW-BTC": 24, "KRW-ETH": 24}


def test_candles_forming_one_is_marked_and_never_stored(client: Backbone, venue: SimulatorServer) -> None:
    """The forming candle is shown on request, and asked again as long as it is not closed."""
    venue.clock.set(venue.clock.now_us() + 30_000_000)
    frame = client.candles("KRW-BTC", "1m", count=5, include_forming=True)
    assert frame["forming"].tolist()[:5] == [False] * 5
    assert frame["forming"].iloc[-1]
    assert str(frame.index[-1].tz_convert("UTC")) == "2025-08-22 09:00:00+00:00"
    held = client.candles("KRW-BTC", "1m", "2025-08-22T08:50:00Z", offline=False)
    assert held.index[-1] < frame.index[-1]


def test_candles_newly_closed_ones_are_fetched_as_time_goes_on(client: Backbone, venue: SimulatorServer) -> None:
    """A minute becomes part of the answer a few seconds after its end on the venue's clock."""
    before = client.candles("KRW-BTC", "1m", "2025-08-22T08:50:00Z")
    venue.clock.set(venue.clock.now_us() + 61_000_000)
    with Backbone(data_dir=client.data_dir, rest_url=venue.rest_url) as later:
        after = later.candles("KRW-BTC", "1m", "2025-08-22T08:50:00Z")
    assert len(after) == len(before) + 1  # 08:59 has closed; 09:00 has not, by the grace
    same(after, truth(venue, "KRW-BTC", "1m", "2025-08-22T08:50:00Z", "2025-08-22T09:00:00Z"))


def test_candles_fill_marks_quiet_slots(client: Backbone, venue: SimulatorServer) -> None:
    """Quiet slots are filled on request, marked, with the last close and no volume."""
    market = thin_market(venue)
    plain = client.candles(market, "1m", "2025-08-20T00:00:00Z", "2025-08-20T06:00:00Z")
    filled = client.candles(market, "1m", "2025-08-20T00:00:00Z", "2025-08-20T06:00:00Z", fill="ffill")
    assert len(filled) == 360
    assert filled["synthetic"].sum() == 360 - len(plain)
    pd.testing.assert_frame_equal(filled.loc[~filled["synthetic"], COLUMNS], plain, check_freq=False, check_exact=True)
    made = filled[filled["synthetic"]]
    assert (made["volume"] == 0).all()
    assert made[["open", "high", "low"]].eq(made["close"], axis=0).all(axis=None)
    assert not filled["close"].isna().any()
    nan = client.candles(market, "1m", "2025-08-20T00:00:00Z", "2025-08-20T06:00:00Z", fill="nan")
    assert nan.loc[nan["synthetic"], "close"].isna().all()


def test_candles_hours_are_folded_from_stored_minutes(client: Backbone, venue: SimulatorServer) -> None:
    """With the minutes stored, longer candles of the span need no request and equal the exchange's own."""
    client.candles("KRW-BTC", "1m", "2025-08-21T00:00:00Z", "2025-08-22T00:00:00Z")
    venue.reset_log()
    for timeframe in ("3m", "5m", "15m", "1h", "4h", "1d"):
        frame = client.candles("KRW-BTC", timeframe, "2025-08-21T00:00:00Z", "2025-08-22T00:00:00Z")
        expected = truth(venue, "KRW-BTC", timeframe, "2025-08-21T00:00:00Z", "2025-08-22T00:00:00Z")
        for column in ("open", "high", "low", "close"):
            assert (frame[column].to_numpy() == expected[column].to_numpy()).all()
        for column in ("volume", "value"):
            np.testing.assert_allclose(frame[column], expected[column], rtol=1e-9)
        assert facts(frame)["sources"] == {"derived:1m": len(frame)}
    assert venue.counts() == {}
    assert client.store.verify("KRW-BTC", "1h", against="venue", start="2025-08-21T00:00:00Z", end=START).empty


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        ({"market": "data/../etc"}, "market"),
        ({"market": ["KRW-BTC", ""]}, "market"),
        ({"market": []}, "market"),
        ({"market": 5}, "market"),
        ({"timeframe": "7m"}, "timeframe"),
        ({"timeframe": None}, "timeframe"),
        ({"count": 0}, "count"),
        ({"count": -3}, "count"),
        ({"count": 2.5}, "count"),
        ({"count": True}, "count"),
        ({"start": "2025-08-02", "end": "2025-08-01"}, "start"),
        ({"start": "2025-08-01", "end": "2025-08-02", "count": 3}, "count"),
        ({"start": "the other day"}, "start"),
        ({"start": "2025-13"}, "start"),
        ({"start": 1.5}, "start"),
        ({"start": pd.NaT}, "start"),
        ({"priority": "urgent"}, "priority"),
        ({"fill": "zero"}, "fill"),
        ({"frames": "dask"}, "frames"),
        ({"progress": "yes"}, "progress"),
    ],
)
def test_candles_wrong_argument_is_refused_before_any_request(
    client: Backbone, venue: SimulatorServer, words: dict[str, Any], argument: str
) -> None:
    """Every wrong argument is an `InputError` that names it, before anything is sent."""
    with pytest.raises(InputError) as caught:
        client.candles(**{"market": "KRW-BTC", "timeframe": "1m", **words})
    assert caught.value.argument == argument
    assert caught.value.allowed
    assert isinstance(caught.value, ValueError)
    assert venue.counts() == {}


def test_candles_unknown_market_names_the_nearest(client: Backbone) -> None:
    """A market that does not exist is an `InputError` with the nearest ones, first contact or not."""
    for _ in range(2):
        with pytest.raises(InputError, match="KRW-BTC") as caught:
            client.candles("KRW-BTCC", "1m", count=3)
        assert caught.value.argument == "market"


def test_candles_future_start_is_refused(client: Backbone) -> None:
    """A range that begins after now is a mistake, not an empty frame."""
    with pytest.raises(InputError) as caught:
        client.candles("KRW-BTC", "1m", "2031-01-01")
    assert caught.value.argument == "start"


@pytest.mark.parametrize("kind", ["429", "500", "502-html", "reset", "cut", "garbage", "empty", "short"])
def test_candles_passing_fault_is_asked_again(client: Backbone, venue: SimulatorServer, kind: str) -> None:
    """A venue that stumbles once costs time, never a row."""
    venue.faults.add(kind, match="/v1/candles", times=1)
    frame = client.candles("KRW-BTC", "1m", START, END)
    same(frame, truth(venue, "KRW-BTC", "1m", START, END))
    assert client.store.verify().empty


@pytest.mark.parametrize("kind", ["duplicate", "disorder", "wrong-market", "off-grid", "bad-ohlc", "beyond", "garbage"])
def test_candles_invalid_reply_is_refused_and_its_span_stays_unknown(
    client: Backbone, venue: SimulatorServer, kind: str
) -> None:
    """An impossible reply is rejected: nothing arrived, so its error is the call's; the span is fetched later."""
    venue.faults.add(kind, match="/v1/candles", times=2)
    with pytest.raises(SourceError):
        client.candles("KRW-BTC", "1m", "2025-08-22T00:00:00Z", "2025-08-22T03:20:00Z")
    frame = client.candles("KRW-BTC", "1m", "2025-08-22T00:00:00Z", "2025-08-22T03:20:00Z")
    same(frame, truth(venue, "KRW-BTC", "1m", "2025-08-22T00:00:00Z", "2025-08-22T03:20:00Z"))


def test_candles_ban_is_one_clear_error_and_nothing_is_sent_before_its_end(tmp_path: Path) -> None:
    """A 418 names the time it ends, and no request goes out before."""
    with (
        SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True) as venue,  # a ban outlives the test
        Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as client,
    ):
        ban(client, venue)


def ban(client: Backbone, venue: SimulatorServer) -> None:
    venue.faults.add("418", match="/v1/candles", times=1, seconds=600)
    with pytest.raises(RateLimitedError) as caught:
        client.candles("KRW-BTC", "1m", count=3)
    assert 500 <= caught.value.retry_after_s <= 601
    sent = len(venue.requests)
    with pytest.raises(RateLimitedError):
        client.tickers("KRW-BTC", max_age=0)
    assert len(venue.requests) == sent
    assert client.health().verdict == "down"


def test_candles_unreachable_venue_is_one_error_at_every_priority(tmp_path: Path) -> None:
    """No venue at all and nothing arrived: the venue's error, in seconds; from the store alone, what is missing."""
    with Backbone(data_dir=tmp_path, rest_url="http://127.0.0.1:9") as client:
        for priority in ("critical", "high", "normal", "low"):
            with pytest.raises(UnreachableError):
                client.candles("KRW-BTC", "1m", "2025-08-22T00:00:00Z", "2025-08-22T01:00:00Z", priority=priority)
        with pytest.raises(IncompleteError):
            client.candles("KRW-BTC", "1m", "2025-08-22T00:00:00Z", "2025-08-22T01:00:00Z", offline=True)


def test_candles_offline_answers_from_the_store_alone(client: Backbone, venue: SimulatorServer) -> None:
    """`offline` makes no request: stored candles come back, an unknown part is an error that holds the rest."""
    held = client.candles("KRW-BTC", "1m", START, END)
    venue.reset_log()
    pd.testing.assert_frame_equal(client.candles("KRW-BTC", "1m", START, END, offline=True), held, check_exact=True)
    with pytest.raises(IncompleteError) as caught:
        client.candles("KRW-BTC", "1m", "2025-08-20T23:00:00Z", END, offline=True)
    assert len(held) <= len(caught.value.frame) < len(held) + 200
    assert caught.value.causes == ()
    assert "not held" in str(caught.value)
    assert venue.counts() == {}


def test_candles_offline_names_the_damaged_file(client: Backbone, venue: SimulatorServer) -> None:
    """Where a file was damaged, that is the cause of what is missing, not that nobody asked."""
    client.candles("KRW-BTC", "1m", START, END)
    client.close()
    (path,) = client.data_dir.glob("candles/**/*.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    with Backbone(data_dir=client.data_dir, rest_url=venue.rest_url) as later:
        with pytest.raises(IncompleteError, match="was damaged") as caught:
            later.candles("KRW-BTC", "1m", START, END, offline=True)
        (cause,) = caught.value.causes
        assert isinstance(cause, CorruptPartitionError)
        assert cause.path == str(path)
        assert caught.value.__cause__ is cause


def test_candles_delisted_market_keeps_its_history(client: Backbone, venue: SimulatorServer) -> None:
    """A market that vanished stays readable, online for what is held and offline."""
    held = client.candles("KRW-XRP", "1m", START, END)
    venue.faults.add("delist", market="KRW-XRP")
    client.markets()
    pd.testing.assert_frame_equal(client.candles("KRW-XRP", "1m", START, END), held, check_exact=True)
    pd.testing.assert_frame_equal(client.candles("KRW-XRP", "1m", START, END, offline=True), held, check_exact=True)
    with pytest.raises(IncompleteError):
        client.candles("KRW-XRP", "1m", "2025-08-21T00:00:00Z", END)


def test_candles_same_ask_from_many_threads_is_one_ask(client: Backbone, venue: SimulatorServer) -> None:
    """Identical requests in flight are shared, across threads."""
    frames: list[pd.DataFrame] = []

    def ask() -> None:
        frames.append(client.candles("KRW-BTC", "1m", START, END))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(frames) == 20
    for frame in frames:
        pd.testing.assert_frame_equal(frame, frames[0], check_exact=True)
    assert sum(venue.counts()["candles"].values()) == 3


def test_candles_critical_goes_past_the_store(client: Backbone, venue: SimulatorServer) -> None:
    """A critical ask is answered by the venue directly, exact, and leaves nothing half-known in the store."""
    frame = client.candles("KRW-BTC", "1m", count=300, priority="critical")
    same(frame, truth(venue, "KRW-BTC", "1m", "2025-08-22T00:00:00Z", "2025-08-22T08:59:00Z").iloc[-300:])
    assert client.coverage("KRW-BTC", "1m").empty


def test_candles_progress_function_gets_every_step(client: Backbone) -> None:
    """A function given as `progress` is called with the progress so far, up to the end."""
    seen: list[Any] = []
    client.candles("KRW-BTC", "1m", START, END, progress=seen.append)
    assert seen
    assert seen[-1].done_slots == seen[-1].total_slots


def test_explain_asks_nothing_and_counts_pages(client: Backbone, venue: SimulatorServer) -> None:
    """The plan of a range has held, foldable, gaps, pages and time, without a request."""
    plan = client.explain("KRW-BTC", "1m", START, END)
    assert (plan.pages, len(plan.gaps), len(plan.cached)) == (3, 1, 0)
    assert venue.counts() == {}
    client.candles("KRW-BTC", "1m", START, END)
    plan = client.explain("KRW-BTC", "1m", START, END)
    assert (plan.pages, len(plan.gaps), len(plan.cached)) == (0, 0, 1)
    assert len(client.explain("KRW-BTC", "1h", START, "2025-08-22T08:00:00Z").derived) == 1


def test_explain_of_a_whole_market_before_a_list_says_how_to_get_one(client: Backbone, venue: SimulatorServer) -> None:
    """It makes no request, so it does not know yet what is listed, and says so; with a list it is a plan a market."""
    for ask in (client.explain, client.coverage):
        with pytest.raises(InputError, match=r"markets\(\) asks for it") as caught:
            ask("KRW", "1d")
        assert (caught.value.argument, caught.value.value) == ("market", "KRW")
    assert venue.counts() == {}
    assert len(client.markets("KRW")) == len(client.explain("KRW", "1d", "2024", "2025")) > 100


def test_coverage_has_data_quiet_and_unknown(client: Backbone, venue: SimulatorServer) -> None:
    """The coverage frame has the three states, and its rows add up."""
    market = thin_market(venue)
    first = client.candles(market, "1m", "2025-08-20T00:00:00Z", "2025-08-20T01:00:00Z")
    second = client.candles(market, "1m", "2025-08-20T05:00:00Z", "2025-08-20T06:00:00Z")
    frame = client.coverage(market, "1m")
    assert list(frame.columns) == ["start", "end", "state", "rows"]
    assert set(frame["state"]) <= {"data", "quiet", "unknown"}
    assert (frame["start"].iloc[1:].to_numpy() == frame["end"].iloc[:-1].to_numpy()).all()
    assert frame["rows"].sum() >= len(first) + len(second)


@pytest.mark.parametrize("timeframe", ["2h", "45m", "12h", "2m"])
@pytest.mark.parametrize(
    "words",
    [
        {"start": "2025-08-20T01:07:00Z", "end": "2025-08-21T13:00:00Z"},
        {"count": 7},
        {"start": "2025-08-18", "count": 5},
        {"count": 5, "priority": "critical"},
    ],
)
def test_candles_of_any_length_that_divides_a_day_are_folded(
    client: Backbone, timeframe: str, words: dict[str, Any]
) -> None:
    """Any way of asking gives whole candles on the UTC grid, equal to the sums of the venue's own shorter ones."""
    found = client.candles("KRW-BTC", timeframe, **words)
    length = pd.Timedelta(timeframe.replace("m", "min"))
    assert found.attrs["backbone"]["timeframe"] == timeframe
    assert len(found) == words.get("count", len(found)) > 0
    assert (found.index.tz_convert("UTC").floor(length) == found.index).all()
    shorter = client.candles("KRW-BTC", "1m", found.index[0], found.index[-1] + length)
    groups = shorter.groupby(shorter.index.tz_convert("UTC").floor(length))
    assert groups["high"].max().tolist() == found["high"].tolist()
    assert groups["close"].last().tolist() == found["close"].tolist()
    assert groups["volume"].sum().to_numpy() == pytest.approx(found["volume"].to_numpy(), rel=1e-12)
    assert client.candles("KRW-BTC", timeframe, **words, offline="priority" not in words).equals(found)


def test_candles_of_a_derived_length_form_from_what_is_there(client: Backbone) -> None:
    """The last row is the one that forms, made of the short candles so far; all before it are closed."""
    found = client.candles("KRW-BTC", "2h", count=3, include_forming=True)
    assert found["forming"].tolist() == [False, False, False, True]
    assert str(found.index[-1].tz_convert("UTC")) == "2025-08-22 08:00:00+00:00"
    ticker = client.tickers("KRW-BTC")
    assert found["close"].iloc[-1] == ticker["price"].iloc[0]


@pytest.mark.parametrize("timeframe", ["7m", "2d", "5h"])
def test_candles_of_a_length_that_does_not_divide_a_day_are_refused(client: Backbone, timeframe: str) -> None:
    """The error names the resampling to use; no request is made."""
    with pytest.raises(InputError, match="resample"):
        client.candles("KRW-BTC", timeframe)


def test_candles_of_a_quote_currency_are_those_of_its_markets(client: Backbone) -> None:
    """One long frame, market by market, of all that the venue lists; explain, coverage and backfill take the same."""
    listed = client.markets("USDT").index.tolist()
    plans = client.explain("USDT-*", "1d", "2025-08-18", "2025-08-21")
    assert [plan.market for plan in plans] == listed
    assert plans.pages == len(listed)
    found = client.candles("USDT-*", "1d", "2025-08-18", "2025-08-21")
    assert found.attrs["backbone"]["requests"] == len(listed)
    assert found["market"].drop_duplicates().tolist() == [m for m in listed if m in set(found["market"])]
    assert client.explain(listed, "1d", "2025-08-18", "2025-08-21").pages == 0
    held = client.coverage("USDT-*", "1d")
    assert set(held["market"]) == set(listed)
    job = client.backfill("USDT-*", "1d", "2025-08-18", "2025-08-21").wait()
    assert job.result().equals(found)
    assert client.candles("USDT-*", "1d", "2025-08-18", "2025-08-21", offline=True).equals(found)
    with pytest.raises(InputError, match="quote currency"):
        client.candles("NOPE-*", "1d", "2025-08-18", "2025-08-21")


def test_candles_of_a_quote_currency_name_the_market_that_failed(client: Backbone, venue: SimulatorServer) -> None:
    """A market that cannot be had is in the error; the others are in its frame, and asked no more."""
    listed = client.markets("USDT").index.tolist()
    venue.faults.add("garbage", match=listed[1], times=None)
    with pytest.raises(IncompleteError, match=listed[1]) as caught:
        client.candles("USDT-*", "1d", "2025-08-18", "2025-08-21")
    assert listed[1] not in set(caught.value.frame["market"])
    venue.faults.clear()
    again = client.candles("USDT-*", "1d", "2025-08-18", "2025-08-21")
    assert again.attrs["backbone"]["requests"] == 1


@pytest.mark.parametrize("frames", ["pandas", "polars", "arrow"])
def test_candles_wide_is_a_column_a_market(client: Backbone, frames: str) -> None:
    """Time by market, float64, NaN where a market has no candle; the same numbers as in the long frame."""
    markets = ["KRW-BTC", "KRW-ETH", "USDT-XRP"]
    words: dict[str, Any] = {"start": "2025-08-20T00:00Z", "end": "2025-08-20T02:00Z"}
    wide = client.candles(markets, "1m", **words, wide="close", frames=frames)
    long = client.candles(markets, "1m", **words)
    wanted = long.pivot(columns="market", values="close")[markets]
    if frames == "pandas":
        assert wide.index.name == "time"
        assert wide.dtypes.tolist() == [np.float64] * 3
    else:
        table = wide if frames == "arrow" else wide.to_arrow()
        assert table.column_names == ["time", *markets]
        wide = table.to_pandas().set_index("time")
    assert wide.columns.tolist() == markets
    assert wide.index.equals(wanted.index)
    assert np.array_equal(wide.to_numpy(), wanted.to_numpy(), equal_nan=True)


def test_candles_wide_shows_candle_columns_only(client: Backbone) -> None:
    """Another column is refused with those there are."""
    with pytest.raises(InputError, match="open, high"):
        client.candles("KRW-BTC", "1m", count=3, wide="turnover")


@pytest.mark.parametrize("fill", ["ffill", "nan"])
@pytest.mark.parametrize("wide", [None, "close"])
def test_candles_filled_begin_with_the_markets_first_candle(
    client: Backbone, venue: SimulatorServer, fill: str, wide: str | None
) -> None:
    """No day is invented before a market was listed, however early the range begins."""
    late = max(venue.exchange.listed(venue.clock.now_us()), key=lambda code: venue.exchange.market(code).listed_us)
    first = client.candles(late, "1d", "2017").index[0]
    found = client.candles([late, "KRW-BTC"], "1d", "2017", fill=fill, wide=wide)
    days = found[late].dropna() if wide else found[found["market"] == late]
    assert days.index[0] == first
    assert len(found) > len(days)


def test_candles_before_the_venues_sums_are_asked_not_folded(client: Backbone, venue: SimulatorServer) -> None:
    """Before the venue's longer candles were sums of its shorter ones, the same call gives the same answer, whatever
    else is stored."""
    span = ("2022-06-01T00:00Z", "2022-06-02T00:00Z")
    minutes = client.candles("KRW-BTC", "1m", *span)
    hours = client.candles("KRW-BTC", "1h", *span)
    assert hours.attrs["backbone"]["sources"] == {"rest": len(hours)}
    sums = minutes["volume"].groupby(minutes.index.floor("h")).sum()
    assert not np.allclose(sums.to_numpy(), hours["volume"].to_numpy(), rtol=1e-12, atol=0), "the exchange is as it was"
    start, end = (client.session.time("start", text) for text in span)
    truth = venue.exchange.candle_table("KRW-BTC", "1h", start, end)
    assert hours["volume"].tolist() == truth.column("volume").to_pylist()


def test_candles_of_the_future_are_refused(client: Backbone) -> None:
    """A range with both ends ahead of the venue's now is a mistake, as one with a start ahead of it is."""
    client.markets()
    with pytest.raises(InputError, match="before"):
        client.candles("KRW-BTC", "1m", "2025-08-23", "2025-08-24")


def test_candles_refreshed_offline_are_refused(client: Backbone) -> None:
    """Asking the venue again and asking nobody exclude each other."""
    with pytest.raises(InputError) as caught:
        client.candles("KRW-BTC", "1m", count=3, refresh=True, offline=True)
    assert caught.value.argument in ("refresh", "offline")


def test_candles_at_the_turn_of_the_day_have_one_forming(client: Backbone, venue: SimulatorServer) -> None:
    """Two seconds after nine in Seoul: one closed day and the one that forms, and no third."""
    venue.clock.set("2025-08-22T00:00:02Z")
    client.markets()
    found = client.candles("KRW-BTC", "1d", count=1, include_forming=True)
    assert len(found) <= 2
    assert found["forming"].tolist().count(True) == 1
    assert bool(found["forming"].iloc[-1])


@pytest.mark.parametrize(("grace", "closed"), [(0.0, "08:59"), (3.0, "08:58"), (30.0, "08:58")])
def test_close_grace_is_when_a_candle_counts_as_closed(
    venue: SimulatorServer, tmp_path: Path, grace: float, closed: str
) -> None:
    """Two seconds into a minute: the minute before is closed without a grace, and forming candles are one in each."""
    venue.clock.set("2025-08-22T09:00:02Z")
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url, tz="UTC", close_grace=grace) as client:
        assert f"{client.candles('KRW-BTC', '1m', count=3).index[-1]:%H:%M}" == closed
        found = client.candles("KRW-BTC", "1m", count=3, include_forming=True)
        assert (f"{found.index[-1]:%H:%M}", found["forming"].tolist()) == ("09:00", [False, False, False, True])


@pytest.mark.parametrize("priority", ["normal", "critical"])
@pytest.mark.parametrize("seconds", [64, 200])
def test_candle_that_closes_during_a_long_call_is_shown_as_the_one_that_forms(
    client: Backbone, venue: SimulatorServer, monkeypatch: pytest.MonkeyPatch, priority: str, seconds: int
) -> None:
    """What the newest page showed before the minute ended is not what the minute became."""
    client.tickers("KRW-BTC")
    venue.clock.set("2025-08-22T09:00:30Z")
    client.tickers("KRW-BTC", max_age=0)
    core = client.session.coordinator()
    owner, name = (core.ranges, "collect") if priority == "normal" else (core.direct, "candles")
    ask = getattr(owner, name)

    def ask_long(*words: Any, **named: Any) -> Any:
        answer = ask(*words, **named)
        venue.clock.advance(seconds)
        client.tickers("KRW-BTC", max_age=0)
        return answer

    monkeypatch.setattr(owner, name, ask_long)
    found = client.candles("KRW-BTC", "1m", count=5, include_forming=True, priority=priority)
    assert f"{found.index[-1]:%H:%M}" == "18:00"
    assert found["forming"].tolist() == [False] * 5 + [True]


@pytest.mark.parametrize("words", [{}, {"include_forming": True}, {"priority": "critical"}])
@pytest.mark.parametrize("market", ["KRW-BTX", ["KRW-BTC", "KRW-BTX"]])
def test_market_that_the_venue_does_not_know_is_named_at_every_priority(
    client: Backbone, words: dict[str, Any], market: str | list[str]
) -> None:
    """Also past the store, where no list was requested before."""
    with pytest.raises(InputError, match=r"KRW-BTX.*nearest: KRW-BTC"):
        client.candles(market, "1m", count=5, **words)


@pytest.mark.parametrize("priority", ["normal", "critical"])
@pytest.mark.parametrize(
    ("seconds", "count", "minutes", "forms"),
    [(30, 8, 8, False), (30, 9, 9, False), (30, 10, 11, True), (1, 9, 9, False), (1, 10, 11, True), (1, 12, 11, True)],
)
def test_first_so_many_with_the_forming_one_are_at_most_one_more(
    client: Backbone, venue: SimulatorServer, priority: str, seconds: int, count: int, minutes: int, forms: bool
) -> None:
    """From 08:50 on: the forming candle is shown where it is the next one, and no closed one beyond the count."""
    venue.clock.set(f"2025-08-22T09:00:{seconds:02}Z")
    client.markets()
    found = client.candles("KRW-BTC", "1m", "2025-08-22T08:50Z", count=count, include_forming=True, priority=priority)
    assert found["forming"].tolist() == [False] * (minutes - forms) + [True] * forms
    assert f"{found.index[0]:%M} {found.index[-1]:%M}" == f"50 {(49 + minutes) % 60:02}"


@pytest.mark.parametrize("priority", ["normal", "critical"])
@pytest.mark.parametrize("timeframe", ["1h", "2h", "1d", "1w", "1M", "1y"])
def test_forming_candle_that_opens_before_the_start_is_not_in_the_range(
    client: Backbone, venue: SimulatorServer, timeframe: str, priority: str
) -> None:
    """A range is of opens: the candle that the start lies in is none of it, whether it is closed or forms."""
    venue.clock.set("2025-08-22T09:30:00Z")
    client.markets()
    words: dict[str, Any] = {"include_forming": True, "priority": priority}
    assert client.candles("KRW-BTC", timeframe, "2025-08-22T09:10Z", **words).empty
    assert client.candles("KRW-BTC", timeframe, "2025-08-22T09:10Z", "2025-08-22T09:20Z", **words).empty
    opens = client.candles("KRW-BTC", timeframe, count=1, **words).index[-1]
    assert client.candles("KRW-BTC", timeframe, opens, **words)["forming"].tolist() == [True]
