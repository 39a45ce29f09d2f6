"""Files that people already have: read in every spelling, checked, kept; or refused as what they are."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from backbone import Backbone, to_ohlc
from backbone.api.calls.adopt import read_candles
from backbone.candle_table import times_of
from backbone.errors import InputError
from backbone.simulator import SimulatorServer

LIMIT = 500  # the quota is not what is tested here
START, END = "2025-08-18T00:00Z", "2025-08-21T00:00Z"


@pytest.fixture
def mine(client: Backbone) -> pd.DataFrame:
    """Three days of hours as somebody may have them: fetched past the store."""
    client.markets()
    return client.candles("KRW-BTC", "1h", START, END, priority="critical")


def as_pyupbit(frame: pd.DataFrame, path: Path) -> Path:
    frame.tz_localize(None).rename_axis(None).to_csv(path)
    return path


def as_kst_excel(frame: pd.DataFrame, path: Path) -> Path:
    out = frame.tz_localize(None).reset_index()
    out.columns = ["일시", "시가", "고가", "저가", "종가", "거래량", "거래대금"]
    out["일시"] = out["일시"].dt.strftime("%Y.%m.%d %H:%M:%S")
    for name in ("시가", "고가", "저가", "종가"):
        out[name] = [f"{value:,.0f}" for value in out[name]]
    out.to_csv(path, sep=";", index=False, encoding="utf-8-sig")
    return path


def as_venue_json_table(frame: pd.DataFrame, path: Path) -> Path:
    out = frame.tz_convert("UTC").tz_localize(None).reset_index()
    names = ["candle_date_time_utc", "opening_price", "high_price", "low_price", "trade_price"]
    out.columns = [*names, "candle_acc_trade_volume", "candle_acc_trade_price"]
    out.to_parquet(path)
    return path


def as_ccxt(frame: pd.DataFrame, path: Path) -> Path:
    to_ohlc(frame, "ccxt").to_csv(path, header=False, index=False)
    return path


def as_freqtrade(frame: pd.DataFrame, path: Path) -> Path:
    to_ohlc(frame, "freqtrade").to_feather(path)
    return path


@pytest.mark.parametrize(
    ("write", "name", "has_value"),
    [
        (as_pyupbit, "pyupbit.csv", True),
        (as_kst_excel, "excel.CSV", True),
        (as_venue_json_table, "venue.parquet", True),
        (as_ccxt, "ccxt.csv", False),
        (as_freqtrade, "BTC_KRW-1h.feather", False),
    ],
)
def test_adopt_reads_the_spellings_that_people_have(
    client: Backbone, mine: pd.DataFrame, tmp_path: Path, write: Any, name: str, has_value: bool
) -> None:
    """Each is read as the same candles, kept, and answered without a request."""
    report = client.store.adopt(write(mine, tmp_path / name), "KRW-BTC", "1h")
    assert (report.rows, report.kept, report.differing, report.has_value) == (72, 72, 0, has_value)
    assert report.compared >= 72
    held = client.candles("KRW-BTC", "1h", START, END, offline=True)
    columns = list(held.columns) if has_value else ["open", "high", "low", "close", "volume"]
    pd.testing.assert_frame_equal(held[columns], mine[columns], check_flags=False, check_exact=True)
    assert held["value"].isna().all() != has_value
    assert client.store.verify().empty


@pytest.mark.parametrize("frame", ["pandas", "polars", "arrow"])
def test_adopt_takes_frames(client: Backbone, mine: pd.DataFrame, frame: str) -> None:
    """A frame is as good as a file."""
    source: Any = mine if frame == "pandas" else pl.from_pandas(mine.reset_index())
    source = source.to_arrow() if frame == "arrow" else source
    assert client.store.adopt(source, "KRW-BTC", "1h").kept == 72


@pytest.mark.parametrize("title", ["time", "date"])
def test_adopt_takes_a_frame_whose_index_numbers_its_rows(client: Backbone, mine: pd.DataFrame, title: str) -> None:
    """Rows that were chosen or sorted keep their numbers as an index, beside the column of times."""
    numbered = mine.reset_index().rename(columns={"time": title})
    chosen = numbered[numbered["close"] > numbered["close"].median()]
    assert client.store.adopt(chosen.sort_values("close"), "KRW-BTC", "1h").kept == len(chosen)


def test_adopt_of_a_frame_with_its_times_twice_takes_the_index(client: Backbone, mine: pd.DataFrame) -> None:
    """As `df.set_index("time", drop=False)` makes it."""
    assert client.store.adopt(mine.assign(time="?"), "KRW-BTC", "1h").kept == 72
    dated = mine.rename_axis("date").assign(date="?")
    assert client.store.adopt(dated, "KRW-BTC", "1h").compared == 72


def test_adopt_takes_a_frame_with_market_and_time_in_its_index(client: Backbone, mine: pd.DataFrame) -> None:
    """In either order."""
    frame = mine.assign(market="KRW-BTC").set_index("market", append=True)
    for source in (frame, frame.swaplevel()):
        assert client.store.adopt(source, "KRW-BTC", "1h").compared == 72


def test_adopt_of_a_frame_that_is_no_table_says_why(client: Backbone, mine: pd.DataFrame) -> None:
    """A column twice, or one of texts and numbers, is a wrong argument."""
    for frame in (pd.concat([mine, mine], axis=1), mine.assign(volume=["x", 1.0] * 36)):
        with pytest.raises(InputError, match="a name and a type a column"):
            client.store.adopt(frame, "KRW-BTC", "1h")


@pytest.mark.parametrize(("unit", "scale"), [("s", 10**6), ("ms", 10**3), ("us", 1), ("ns", None)])
def test_epochs_are_read_in_any_unit(mine: pd.DataFrame, unit: str, scale: int | None) -> None:
    """Seconds to nanoseconds since 1970 mean the same."""
    micros = mine.index.tz_convert("UTC").as_unit("us").asi8
    numbers = micros * 1000 if scale is None else micros // scale
    table, _ = read_candles(mine.reset_index(drop=True).assign(timestamp=numbers), "Asia/Seoul")
    assert times_of(table).tolist() == micros.tolist()


def test_adopt_takes_the_rows_of_its_market(client: Backbone, mine: pd.DataFrame) -> None:
    """Of a frame of several, such as `candles` gives, in any spelling; a name that is none of ours says nothing."""
    other = client.candles("KRW-ETH", "1h", START, END, priority="critical")
    both = pd.concat([mine.assign(market="KRW-BTC"), other.assign(market="KRW-ETH")])
    assert client.store.adopt(both, "KRW-BTC", "1h").kept == 72
    assert (
        client.store.adopt(
            both.rename(columns={"market": "symbol"}).replace("KRW-ETH", "ETH/KRW"), "KRW-ETH", "1h"
        ).kept
        == 72
    )
    assert client.store.adopt(mine.assign(symbol="BTCKRW"), "KRW-BTC", "1h").rows == 72


def test_adopt_proves_its_own_slots_only(client: Backbone, mine: pd.DataFrame, venue: SimulatorServer) -> None:
    """A slot that the file lacks is asked of the venue; one that is held already stays as it is."""
    client.store.adopt(mine.drop(mine.index[10:12]), "KRW-BTC", "1h")
    states = client.coverage("KRW-BTC", "1h")
    assert states["state"].tolist().count("unknown") == 1
    whole = client.candles("KRW-BTC", "1h", START, END)
    pd.testing.assert_frame_equal(whole, mine, check_flags=False, check_exact=True)
    assert whole.attrs["backbone"]["requests"] >= 1
    assert client.store.adopt(mine, "KRW-BTC", "1h").kept == 0


def shifted(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_axis(frame.index + pd.Timedelta("9h"))


def forming(frame: pd.DataFrame) -> pd.DataFrame:
    out = frame.copy()
    out.iloc[-1, out.columns.get_indexer(["volume", "value"])] = [0.001, 1.0]
    return out


def impossible(frame: pd.DataFrame) -> pd.DataFrame:
    out = frame.copy()
    out.iloc[5, out.columns.get_loc("low")] = out["high"].iloc[5] + 1
    return out


def doubled(frame: pd.DataFrame) -> pd.DataFrame:
    out = pd.concat([frame, frame.iloc[3:4] * 1.0])
    out.iloc[-1, 0] += 1000
    return out


@pytest.mark.parametrize(
    ("change", "words", "match"),
    [
        (shifted, {}, "hours"),
        (forming, {}, "forming"),
        (impossible, {}, "low ≤ open"),
        (doubled, {}, "twice"),
        (lambda f: f, {"timeframe": "1m"}, "1h candles"),
        (lambda f: f, {"timeframe": "4h"}, "1h candles"),
        (lambda f: f, {"market": "KRW-ETH"}, "another market|times the venue"),
        (lambda f: f.assign(**{c: f[c] / 10 for c in ("open", "high", "low", "close")}), {}, "0.1 times"),
        (lambda f: f.shift(freq="1h"), {}, "candles' ends"),
        (lambda f: f.tz_convert("America/New_York").tz_localize(None), {}, "13 hours early"),
        (lambda f: f.astype("float32"), {}, "they are rounded"),
        (lambda f: f.assign(market="KRW-ETH"), {}, "its column 'market' has KRW-ETH"),
        (lambda f: f.shift(freq="-1h"), {}, "predecessors"),
        (lambda f: f.assign(volume=f["value"]), {}, "volumes of KRW-BTC in its coin: they are turnovers"),
        (lambda f: f.assign(volume=f["volume"] * 2), {}, "volumes of KRW-BTC: the prices are"),
        (lambda f: f.assign(value=f["volume"]), {}, "turnovers .leave them out"),
        (lambda f: f.shift(freq="365D"), {}, "yet to come"),
        (lambda f: f.rename(columns={"close": "last"}), {}, "columns for close"),
        (lambda f: f.assign(volume="x"), {}, "volume"),
        (lambda f: f.assign(high=[np.nan, *f["high"].iloc[1:]]), {}, "row 1"),
        (lambda f: f.iloc[:0], {}, "at least one"),
    ],
)
def test_adopt_refuses_what_is_not_what_it_says(
    client: Backbone, mine: pd.DataFrame, change: Any, words: dict[str, str], match: str
) -> None:
    """Named as what it is, and nothing of it is kept."""
    with pytest.raises(InputError, match=match):
        client.store.adopt(change(mine), **{"market": "KRW-BTC", "timeframe": "1h"} | words)
    assert client.store.size()["files"] == 0


def test_adopt_of_days_in_another_zone_says_so(client: Backbone) -> None:
    """Day candles at 09:00 that are read as UTC lie off the grid by nine hours."""
    days = client.candles("KRW-BTC", "1d", "2025-08-01", "2025-08-20", priority="critical").tz_localize(None)
    assert client.store.adopt(days, "KRW-BTC", "1d").kept == len(days)
    with pytest.raises(InputError, match="moved by -9 hours"):
        client.store.adopt(days, "KRW-BTC", "1d", tz="UTC")


HEAD = "time,open,high,low,close,volume\n2025-08-18T00:00,1,1,1,1,1\n"


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("x.csv", b"", "empty"),
        ("x.csv", b"time,open\n1,2", "columns for high"),
        ("x.csv", b"not a table", "can be read"),
        ("x.csv", HEAD.encode() + b"2025-13-01,1,1,1,1,1", "column 'time'; row 2 has 2025-13-01"),
        ("x.csv", HEAD.encode() + b",1,1,1,1,1", "column 'time' of every row; row 2 has none"),
        ("x.csv", HEAD.encode() + b"2025-08-18T01:00,1,abc,1,1,1", "column 'high'; row 2 has abc"),
        ("x.csv", HEAD.encode() + b"2025-08-18T01:00,1,,1,1,1", "column 'high' of every row; row 2 has none"),
        ("x.csv", HEAD.encode() + b"2025-08-18T01:00,1,1", "Row #3"),
        ("x.csv.gz", b"junk", "can be read"),
        ("x.parquet", b"PAR1junkPAR1", "can be read"),
        ("x.feather", b"junk", "can be read"),
        ("x.docx", b"junk", "ends with"),
    ],
)
def test_adopt_of_a_file_that_cannot_be_read_says_why(
    client: Backbone, tmp_path: Path, name: str, data: bytes, match: str
) -> None:
    """An error that names the file, and its line or column where it has one; nothing is kept."""
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=match):
        client.store.adopt(path, "KRW-BTC", "1h")
    with pytest.raises(InputError, match="exists"):
        client.store.adopt(tmp_path / "none.csv", "KRW-BTC", "1h")
    assert client.store.size()["files"] == 0


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        ({"tz": "Mars/Base"}, "tz"),
        ({"timeframe": "2h"}, "timeframe"),
        ({"market": "KRW-NONE"}, "market"),
        ({"market": None}, "market"),
        ({"source": 42}, "source"),
        ({"source": None}, "source"),
    ],
)
def test_adopt_arguments_are_checked(
    client: Backbone, mine: pd.DataFrame, words: dict[str, Any], argument: str
) -> None:
    """Each wrong argument is named, with what is allowed."""
    asked: dict[str, Any] = {"source": mine.tz_localize(None), "market": "KRW-BTC", "timeframe": "1h"} | words
    with pytest.raises(InputError) as caught:
        client.store.adopt(**asked)
    assert caught.value.argument == argument


def test_adopt_reads_what_excel_saves_in_korea(client: Backbone, mine: pd.DataFrame, tmp_path: Path) -> None:
    """Its CSV is cp949, not UTF-8."""
    path = as_kst_excel(mine, tmp_path / "excel.csv")
    path.write_bytes(path.read_text(encoding="utf-8-sig").encode("cp949"))
    assert client.store.adopt(path, "KRW-BTC", "1h").kept == 72


@pytest.mark.parametrize(
    "written",
    [
        "2025-08-01 9:05", "2025. 8. 1 9:05", "2025. 8. 1. 9:05", "2025.8.1 9:05", "2025년 8월 1일 9:05",
        "2025/8/1 9:05", "2025-08-01 오전 9:05:00", "2025-08-01 오전 9:05", "2025-08-01 9:05:00 AM",
        202508010905, 20250801090500, 45870.37847222, "2025-08-01T00:05Z",
    ],
)  # fmt: skip
def test_times_are_read_as_spreadsheets_write_them(mine: pd.DataFrame, written: object) -> None:
    """With the day's half before or after the hour, Korean separators, or digits alone."""
    table, _ = read_candles(mine.head(1).reset_index(drop=True).assign(time=[written]), "Asia/Seoul")
    assert table.column("time")[0].as_py() == dt.datetime(2025, 8, 1, 0, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("written", "hour"), [("오전 12:05", 0), ("오전 1:05", 1), ("오후 12:05", 12), ("오후 11:05", 23), ("0:05", 0)]
)
def test_halves_of_the_day_begin_at_twelve(mine: pd.DataFrame, written: str, hour: int) -> None:
    """Twelve in the morning is midnight; a column may have both halves."""
    times = [f"2025-08-01 {written}", "2025-08-02 오후 3:00"]
    table, _ = read_candles(mine.head(2).reset_index(drop=True).assign(time=times), "UTC")
    assert [at.hour for at in table.column("time").to_pylist()] == [hour, 15]


def adopted_spans(client: Backbone) -> int:
    """How many slots are marked as adopted, as a new client on the same folder sees it."""
    days = client.store.condition("KRW-BTC", "1h")
    return int(days["source"].str.contains("adopted").sum())


def test_adopted_rows_stay_marked_until_the_venue_confirms_them(
    client: Backbone, mine: pd.DataFrame, venue: SimulatorServer
) -> None:
    """The mark is on disk; a fetch over other slots leaves it, `verify` against the venue takes it away."""
    client.store.adopt(mine.drop(mine.index[10:12]), "KRW-BTC", "1h")
    with Backbone(rest_url=venue.rest_url, data_dir=client.data_dir) as again:
        assert adopted_spans(again) == 3
    client.candles("KRW-BTC", "1h", START, END)
    assert adopted_spans(client) == 3
    assert client.store.verify("KRW-BTC", "1h", against="venue", start=mine.index[0], end=mine.index[48]).empty
    assert adopted_spans(client) == 1
    assert client.store.revisions().empty


def test_adopted_rows_that_differ_are_reported_and_become_revisions(client: Backbone, mine: pd.DataFrame) -> None:
    """One row of another volume is a problem once, a revision afterwards, and the venue's from then on."""
    wrong = mine.copy()
    wrong.iloc[30, wrong.columns.get_loc("volume")] += 1.0
    client.store.adopt(wrong, "KRW-BTC", "1h")
    words = {"against": "venue", "start": START, "end": END}
    found = client.store.verify("KRW-BTC", "1h", **words)
    assert found["kind"].tolist() == ["differs"]
    assert client.store.revisions()["old_volume"].tolist() == [wrong["volume"].iloc[30]]
    assert client.store.verify("KRW-BTC", "1h", **words).empty
    held = client.candles("KRW-BTC", "1h", START, END, offline=True)
    pd.testing.assert_frame_equal(held, mine, check_flags=False, check_exact=True)


def test_adopted_rows_without_turnovers_are_confirmed_with_the_venue_s(client: Backbone, mine: pd.DataFrame) -> None:
    """A turnover that the source did not have is no difference: the row is proven, with the venue's own."""
    client.store.adopt(mine.drop(columns="value"), "KRW-BTC", "1h")
    client.store.verify("KRW-BTC", "1h", against="venue", start=START, end=END)
    assert adopted_spans(client) == 0
    held = client.candles("KRW-BTC", "1h", START, END, offline=True)
    pd.testing.assert_frame_equal(held, mine, check_flags=False, check_exact=True)


def test_adopt_is_an_event(client: Backbone, mine: pd.DataFrame) -> None:
    """Where rows came from can be read later; an adoption that keeps nothing is none."""
    client.store.adopt(mine, "KRW-BTC", "1h")
    client.store.adopt(mine, "KRW-BTC", "1h")
    events = client.store.events("KRW-BTC")
    adopted = events[events["kind"] == "adopted"]
    assert len(adopted) == 1
    assert '"rows": 72' in adopted["detail"].iloc[0]
