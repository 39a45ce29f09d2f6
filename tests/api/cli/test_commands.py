"""What each command prints and writes, in each form."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from backbone import Backbone
from backbone.api.cli import commands
from backbone.api.cli import main as cli
from backbone.errors import InputError
from backbone.simulator import SimulatorServer

LISTED = ("KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE", "KRW-USDT", "BTC-ETH", "USDT-BTC")
DAY = ["--start", "2025-08-20", "--end", "2025-08-21"]


@pytest.fixture
def at(venue: SimulatorServer, tmp_path: Path) -> list[str]:
    """The options that lead to the embedded exchange and a store of the test's own."""
    return ["--rest-url", venue.rest_url, "--ws-url", venue.ws_url, "--data-dir", str(tmp_path / "data")]


@pytest.fixture
def client(venue: SimulatorServer, tmp_path: Path) -> Any:
    """The client of the same store."""
    with Backbone(data_dir=tmp_path / "data", rest_url=venue.rest_url, ws_url=venue.ws_url) as opened:
        yield opened


def read_csv(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text))


# -- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "markets", "timeframe"),
    [
        (["KRW-BTC"], ["KRW-BTC"], "1m"),
        (["KRW-BTC", "1h"], ["KRW-BTC"], "1h"),
        (["KRW-BTC", "KRW-ETH", "1d"], ["KRW-BTC", "KRW-ETH"], "1d"),
        (["KRW-BTC", "KRW-ETH"], ["KRW-BTC", "KRW-ETH"], "1m"),
        (["KRW", "day"], ["KRW"], "1d"),
        (["KRW-1INCH", "1INCH"], ["KRW-1INCH", "1INCH"], "1m"),
        (["BTC", "0G"], ["BTC", "0G"], "1m"),
    ],
)
def test_last_word_is_the_timeframe_where_it_is_one(words: list[str], markets: list[str], timeframe: str) -> None:
    """Markets, then a length; a coin whose name begins with a digit is a market."""
    assert commands._split(words) == (markets, timeframe)


def test_length_that_does_not_exist_is_named_as_one() -> None:
    """A wrong length is no unknown market."""
    with pytest.raises(InputError) as caught:
        commands._split(["KRW-BTC", "7m"])
    assert caught.value.argument == "timeframe"


# -- candles -----------------------------------------------------------------------------------------------------


def test_fetch_prints_data_on_one_stream_and_words_on_the_other(
    at: list[str], client: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    """The CSV on standard output is the frame; what happened is on standard error."""
    assert cli.main(["fetch", "KRW-BTC", "1h", *DAY, "--format", "csv", *at]) == 0
    said = capsys.readouterr()
    expected = client.candles("KRW-BTC", "1h", "2025-08-20", "2025-08-21")
    found = pd.read_csv(io.StringIO(said.out), index_col="time", parse_dates=["time"])
    assert found.to_dict("list") == expected.to_dict("list")
    assert list(found.index) == list(expected.index)
    assert "24 candles" in said.err
    assert "kept in" in said.err


@pytest.mark.parametrize("name", ["X.CSV", "x.Parquet", "x.json", "x.feather"])
def test_fetch_writes_by_the_files_ending_in_any_case(
    name: str, at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four forms, one content."""
    path = tmp_path / name
    assert cli.main(["fetch", "KRW-BTC", "1h", *DAY, "--out", str(path), *at]) == 0
    read = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".json": pd.read_json, ".feather": pd.read_feather}
    frame = read[path.suffix.lower()](path)
    assert len(frame) == 24
    assert frame["close"].notna().all()
    said = capsys.readouterr()
    assert said.out == ""
    assert f"wrote 24 rows to {path}" in said.err


@pytest.mark.parametrize("name", ["x.xlsx", "x", "missing/x.csv"])
def test_fetch_refuses_a_target_before_it_asks(
    name: str, at: list[str], venue: SimulatorServer, tmp_path: Path
) -> None:
    """An ending or a folder that is not there costs no request."""
    before = len(venue.requests)
    assert cli.main(["fetch", "KRW-BTC", "1h", *DAY, "--out", str(tmp_path / name), *at]) == cli.EXIT_INPUT
    assert len(venue.requests) == before


def test_fetch_to_a_pipe_is_csv_or_what_is_asked(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`--out -` is CSV; `--format json` has a record a candle, its time with the zone's offset."""
    assert cli.main(["fetch", "KRW-BTC", "1h", *DAY, "--out", "-", *at]) == 0
    assert len(read_csv(capsys.readouterr().out)) == 24
    assert cli.main(["fetch", "KRW-BTC", "1h", *DAY, "--out", "-", "--format", "json", *at]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["time"] == "2025-08-20T00:00:00+09:00"
    assert list(rows[0]) == ["time", "open", "high", "low", "close", "volume", "value"]


def test_fetch_shows_the_ends_of_a_long_table(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Without a form it is for eyes: ten rows and how many there are."""
    assert cli.main(["fetch", "KRW-BTC", "1h", *DAY, *at]) == 0
    assert "..." in capsys.readouterr().out


def test_backfill_fetches_several_markets(at: list[str], client: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    """A job for both, waited for; the store has them afterwards."""
    assert cli.main(["backfill", "KRW-BTC", "KRW-ETH", "1h", *DAY, *at]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "48 candles" in said.err
    for code in ("KRW-BTC", "KRW-ETH"):
        assert client.explain(code, "1h", "2025-08-20", "2025-08-21").pages == 0
    assert cli.main(["backfill", "KRW-BTC", *at]) == cli.EXIT_INPUT


def test_explain_of_several_is_a_row_each(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The pages of each market, and their sum in words."""
    assert cli.main(["explain", "KRW-BTC", "KRW-ETH", "1h", *DAY, "--format", "csv", *at]) == 0
    said = capsys.readouterr()
    found = read_csv(said.out)
    assert list(found["market"]) == ["KRW-BTC", "KRW-ETH"]
    assert list(found["pages"]) == [1, 1]
    assert said.err.startswith("2 pages, about")


def test_explain_of_a_quote_currency_is_a_row_a_market(
    at: list[str], client: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    """KRW means every market that the venue lists in it."""
    assert cli.main(["explain", "KRW", "1d", *DAY, "--format", "json", *at]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["market"] for row in rows] == list(client.markets("KRW").index)


def test_coverage_of_several_names_the_market(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """One market has its spans, several a market column; nothing held is said in words."""
    assert cli.main(["coverage", "KRW-BTC", "1h", *at]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "nothing is held of it yet\n")
    cli.main(["backfill", "KRW-BTC", "KRW-ETH", "1h", *DAY, *at])
    capsys.readouterr()
    assert cli.main(["coverage", "KRW-BTC", "KRW-ETH", "1h", "--format", "csv", *at]) == 0
    found = read_csv(capsys.readouterr().out)
    assert set(found["market"]) == {"KRW-BTC", "KRW-ETH"}
    assert (found.loc[found["state"] == "data"].groupby("market")["rows"].sum() >= 24).all()
    assert cli.main(["coverage", "KRW-BTC", "1h", "--format", "json", *at]) == 0
    assert {"start", "end", "state", "rows"} <= set(json.loads(capsys.readouterr().out)[0])


def test_update_brings_what_is_stored_up_to_now(
    at: list[str], client: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row a series; an empty store is said in words."""
    assert cli.main(["update", *at]) == 0
    assert capsys.readouterr().err == "nothing is stored yet\n"
    cli.main(["backfill", "KRW-BTC", "KRW-ETH", "1h", *DAY, *at])
    capsys.readouterr()
    assert cli.main(["update", "--format", "csv", *at]) == 0
    found = read_csv(capsys.readouterr().out)
    assert list(found["market"]) == ["KRW-BTC", "KRW-ETH"]
    assert set(found["state"]) == {"done"}
    assert client.explain("KRW-BTC", "1h", "2025-08-20", "2025-08-22T17:00").pages == 0


def test_update_quiet_prints_only_what_failed(
    at: list[str], venue: SimulatorServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """For cron: nothing at all where all is well, the failing series and a code where not."""
    assert cli.main(["update", "--quiet", *at]) == 0
    cli.main(["backfill", "KRW-BTC", "KRW-ETH", "1h", *DAY, *at])
    capsys.readouterr()
    venue.faults.add("garbage", match="KRW-ETH", times=None)
    assert cli.main(["update", "--quiet", "--format", "csv", *at]) == 3
    out, err = capsys.readouterr()
    assert list(read_csv(out)["market"]) == ["KRW-ETH"]
    assert "1 of 2 series" in err
    venue.faults.clear()
    assert cli.main(["update", "--quiet", *at]) == 0
    assert capsys.readouterr() == ("", "")


def test_fetch_of_a_quote_currency_to_a_pipe_has_every_market(
    at: list[str], client: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    """`fetch KRW 1d --out - --format csv` is one long table with the market first."""
    assert cli.main(["fetch", "KRW", "1d", "--start", "2025-08-18", "--out", "-", "--format", "csv", *at]) == 0
    found = read_csv(capsys.readouterr().out)
    assert set(found["market"]) == set(client.markets("KRW").index)
    assert {"time", "market", "close"} <= set(found)


CANDLES = "time market open high low close volume value"
FORMS = {
    "fetch KRW-BTC KRW-ETH 1h --start 2025-08-20": CANDLES,
    "fetch KRW 1h --count 3": CANDLES,
    "explain KRW-BTC 1h --start 3d": "market timeframe start end cached derived gaps pages seconds",
    "coverage KRW-BTC 1h": "start end state rows",
    "coverage KRW 1h": "market start end state rows",
    "markets": "market korean_name english_name warning cautions tick_size",
    "markets KRW --at 2025-08-22": "market korean_name english_name warning cautions",
    "update KRW": "market timeframe start end added revised state detail",
    "verify": "market timeframe path kind detail",
    "repair": "market timeframe path kind detail",
    "store": "market timeframe from to rows holes bytes",
    "snapshot": "name at path rows content",
    "events": "at market kind detail how",
}
"""Commands that print a table, and its columns: programs read them, so they stay."""


def test_every_table_has_a_programs_forms(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """CSV and JSON have the same columns, whatever is in them; nothing but the table is on standard output."""
    cli.main(["snapshot", "kept", *at])
    for words, columns in FORMS.items():
        capsys.readouterr()
        assert cli.main([*words.split(), "--format", "csv", *at]) == 0, words
        out = capsys.readouterr().out
        table = read_csv(out)
        assert list(table.columns) == columns.split(), words
        assert out.count("\n") == len(table) + 1
        assert cli.main([*words.split(), "--format", "json", *at]) == 0, words
        rows = json.loads(capsys.readouterr().out)
        assert [list(row) for row in rows] == [columns.split()] * len(rows), words
        assert not len(table) or len(rows) == len(table)


@pytest.mark.parametrize("length", ["1m", "1min", "60", "1H", "minute60", "1D", "day"])
def test_fetch_takes_several_markets_and_lengths_as_people_write_them(
    length: str, at: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Markets, then a length in any of its spellings."""
    assert cli.main(["fetch", "KRW-BTC", "krw-eth", length, "--count", "2", "--out", "-", *at]) == 0
    found = read_csv(capsys.readouterr().out)
    assert list(found["market"]) == ["KRW-BTC"] * 2 + ["KRW-ETH"] * 2
    step = pd.to_datetime(found["time"]).diff().iloc[1]
    minutes = {"1m": 1, "1min": 1, "60": 60, "1H": 60, "minute60": 60, "1D": 1440, "day": 1440}
    assert step == pd.Timedelta(minutes=minutes[length])


def test_backfill_and_coverage_of_a_quote_currency(
    at: list[str], client: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    """KRW is every market of it."""
    assert cli.main(["backfill", "KRW", "1d", *DAY, *at]) == 0
    capsys.readouterr()
    assert cli.main(["coverage", "KRW", "1d", "--format", "csv", *at]) == 0
    assert set(read_csv(capsys.readouterr().out)["market"]) == set(client.markets("KRW").index)


# -- now ---------------------------------------------------------------------------------------------------------


def test_markets_in_each_form(at: list[str], client: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    """The same markets as a table, as CSV and as JSON."""
    codes = list(client.markets("KRW").index)
    assert cli.main(["markets", "krw", "--format", "csv", *at]) == 0
    assert list(read_csv(capsys.readouterr().out)["market"]) == codes
    assert cli.main(["markets", "KRW", "--format", "json", *at]) == 0
    assert [row["market"] for row in json.loads(capsys.readouterr().out)] == codes
    assert cli.main(["markets", "KRW", *at]) == 0
    assert codes[0] in capsys.readouterr().out


def test_watch_once_in_a_programs_form(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`watch --once --format csv` is the table's frame."""
    assert cli.main(["watch", "KRW-BTC", "KRW-ETH", "--once", "--format", "csv", *at]) == 0
    found = read_csv(capsys.readouterr().out)
    assert list(found["market"]) == ["KRW-BTC", "KRW-ETH"]
    assert (found["price"] > 0).all()


def test_status_in_each_form(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` is `--format json`; CSV has a row a group."""
    assert cli.main(["status", "--format", "json", *at]) == 0
    assert json.loads(capsys.readouterr().out)["exchange"] == "upbit"
    assert cli.main(["status", "--format", "csv", *at]) == 0
    assert len(read_csv(capsys.readouterr().out)) >= 5


def test_copy_takes_the_store_elsewhere(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The copy is read like the original."""
    assert cli.main(["fetch", "KRW-BTC", "1h", *DAY, *at]) == 0
    capsys.readouterr()
    assert cli.main(["copy", str(tmp_path / "second"), "--format", "json", *at]) == 0
    assert json.loads(capsys.readouterr().out)
    there = [*at[:4], "--data-dir", str(tmp_path / "second")]
    assert cli.main(["fetch", "KRW-BTC", "1h", *DAY, "--offline", "--format", "csv", *there]) == 0
    assert len(read_csv(capsys.readouterr().out)) == 24


def test_what_is_no_frame_reads_as_words_or_as_fields(
    at: list[str], client: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No representation of Python on a screen; times of a report have their offset."""
    frame = client.candles("KRW-BTC", "1h", "2025-08-20", "2025-08-21")
    frame.to_csv(tmp_path / "mine.csv")
    assert cli.main(["copy", str(tmp_path / "second"), *at]) == 0
    assert re.fullmatch(r"files \d+  bytes \d+  same 0  problems 0\n", capsys.readouterr().out)
    assert cli.main(["copy", str(tmp_path / "second"), "--format", "csv", *at]) == 0
    assert capsys.readouterr().out.endswith(",0\n")
    assert cli.main(["clear", *at]) == 0
    assert re.fullmatch(r"files \d+  bytes \d+\n", capsys.readouterr().out)
    assert cli.main(["adopt", str(tmp_path / "mine.csv"), "KRW-BTC", "1h", "--format", "json", *at]) == 0
    report = json.loads(capsys.readouterr().out)
    assert pd.Timestamp(report["start"]) == frame.index[0]
    assert pd.Timestamp(report["end"]) == frame.index[-1]


@pytest.mark.parametrize("words", ["snapshot", "store", "coverage KRW-BTC", "update"])
def test_empty_table_is_no_data(words: str, at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What there is not is said in words, beside the data."""
    assert cli.main([*words.split(), *at]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "yet" in said.err


def test_fetch_takes_a_quote_currency_among_markets(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As `backfill`, `explain` and `coverage` do; each market once."""
    assert cli.main(["fetch", "btc-eth", "KRW", "KRW-BTC", "1d", "--count", "1", "--format", "csv", *at]) == 0
    found = list(read_csv(capsys.readouterr().out)["market"])
    assert sorted(found) == sorted(code for code in LISTED if code.startswith(("KRW", "BTC-ETH")))


def test_form_that_the_ending_contradicts_is_refused(
    at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is requested; the form that the ending names may be said again."""
    words = ["fetch", "KRW-BTC", "1h", "--count", "2", "--out"]
    assert cli.main([*words, str(tmp_path / "a.csv"), "--format", "json", *at]) == cli.EXIT_INPUT
    assert "ending" in capsys.readouterr().err
    assert not (tmp_path / "a.csv").exists()
    assert cli.main([*words, str(tmp_path / "a.CSV"), "--format", "csv", *at]) == 0


@pytest.mark.parametrize("day", ["today", "2025.8.22", "20250822"])
def test_markets_of_a_day_are_those_of_its_end(
    day: str, at: list[str], client: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    """However the day is written: a list that was recorded in the course of it is found."""
    client.markets()
    assert cli.main(["markets", "KRW", "--at", day, "--format", "csv", *at]) == 0
    assert "KRW-BTC" in list(read_csv(capsys.readouterr().out)["market"])


def test_size_and_verify_in_a_programs_form(at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers of `size`; the problems of `verify`, an empty table where there are none."""
    assert cli.main(["size", "--markets", "KRW-BTC", "--timeframe", "1d", "--format", "json", *at]) == 0
    assert json.loads(capsys.readouterr().out)["markets"] == 1
    assert cli.main(["size", "--markets", "KRW-BTC", "--timeframe", "1d", "--format", "csv", *at]) == 0
    assert {"source", "hours"} <= set(read_csv(capsys.readouterr().out))
    assert cli.main(["fetch", "KRW-BTC", "1h", *DAY, *at]) == 0
    capsys.readouterr()
    assert cli.main(["verify", "--format", "json", *at]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_demo_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The whole path on the embedded exchange; a number of days that is none is refused."""
    assert cli.main(["demo", "--days", "1"]) == 0
    assert "equal to the last digit" in capsys.readouterr().out
    assert cli.main(["demo", "--days", "0"]) == cli.EXIT_INPUT


# -- the store ---------------------------------------------------------------------------------------------------


def test_store_lists_what_is_held_and_remove_takes_it_away(
    at: list[str], client: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row a series; what is removed is in quarantine, or gone for good."""
    assert cli.main(["store", *at]) == 0
    assert capsys.readouterr().err == "nothing is stored yet\n"
    cli.main(["backfill", "KRW-BTC", "KRW-ETH", "1h", *DAY, *at])
    capsys.readouterr()
    assert cli.main(["store", "--format", "csv", *at]) == 0
    found = read_csv(capsys.readouterr().out)
    assert sorted(found["market"]) == ["KRW-BTC", "KRW-ETH"]
    assert (found["rows"] >= 24).all()
    assert cli.main(["remove", "KRW-BTC", "1h", *at]) == 0
    assert Path(capsys.readouterr().out.strip()).exists()
    assert cli.main(["remove", "KRW-ETH", "--for-good", *at]) == 0
    assert capsys.readouterr().out == ""
    assert cli.main(["store", *at]) == 0
    assert capsys.readouterr().err == "nothing is stored yet\n"
    assert cli.main(["clear", "--format", "json", *at]) == 0
    assert json.loads(capsys.readouterr().out)


def test_snapshot_is_a_folder_that_is_read_like_the_store(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Its path on standard output; without a name the list."""
    cli.main(["backfill", "KRW-BTC", "1h", *DAY, *at])
    capsys.readouterr()
    assert cli.main(["snapshot", "august", *at]) == 0
    place = capsys.readouterr().out.strip()
    assert cli.main(["fetch", "KRW-BTC", "1h", *DAY, "--offline", "--out", "-", *at[:4], "--data-dir", place]) == 0
    assert len(read_csv(capsys.readouterr().out)) == 24
    assert cli.main(["snapshot", "--format", "csv", *at]) == 0
    assert "august" in capsys.readouterr().out


def test_events_are_a_table(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """None in a new store, in words; an empty list for programs."""
    assert cli.main(["events", "--format", "json", *at]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)


def test_adopt_takes_in_a_file_that_is_right(
    at: list[str], client: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of the venue's own candles is taken; one of another market is refused."""
    frame = client.candles("KRW-BTC", "1h", "2025-07-01", "2025-07-03")
    frame.to_csv(tmp_path / "mine.csv")
    there = [*at[:4], "--data-dir", str(tmp_path / "other")]
    assert cli.main(["adopt", str(tmp_path / "mine.csv"), "KRW-BTC", "1h", *there]) == 0
    assert capsys.readouterr().out
    assert cli.main(["store", "--format", "csv", *there]) == 0
    held = read_csv(capsys.readouterr().out)
    assert list(held["market"]) == ["KRW-BTC"]
    assert 40 <= held["rows"].iloc[0] <= len(frame)
    assert cli.main(["adopt", str(tmp_path / "mine.csv"), "KRW-ETH", "1h", *there]) != 0


# -- for eyes ----------------------------------------------------------------------------------------------------


def test_watch_once_prints_the_table(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`watch --once` is the table as text, in the order asked for."""
    assert cli.main(["watch", "KRW-ETH", "btc", "--once", *at]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["Market", "Price"]
    assert [line.split()[0] for line in lines[1:3]] == ["KRW-ETH", "KRW-BTC"]
    assert lines[3].startswith("streaming · 2 markets")


def test_watch_for_seconds_ends_by_itself(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`--seconds` ends it, and a length that is none is refused."""
    assert cli.main(["watch", "KRW-BTC", "--seconds", "0.2", *at]) == 0
    assert cli.main(["watch", "KRW-BTC", "--seconds", "0", *at]) == cli.EXIT_INPUT
    assert "--seconds" in capsys.readouterr().err


def test_status_shows_quota_store_and_verdict(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`status` makes no request; it shows what other processes used of the quota, and the store."""
    assert cli.main(["fetch", "KRW-BTC", "1h", "--start", "2025-08-20", "--end", "2025-08-21", *at]) == 0
    capsys.readouterr()
    assert cli.main(["status", *at]) == 0
    text = capsys.readouterr().out
    assert text.startswith("ok · upbit at http://127.0.0.1")
    assert re.search(r"candles +\d+% +\d+/10", text)
    assert re.search(r"markets +1\n", text)
    assert "data in" in text


def test_status_as_json_is_for_scripts(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`status --json` is one JSON object with the same facts."""
    assert cli.main(["status", "--json", *at]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["exchange"] == "upbit"
    assert facts["store"]["files"] == 0
    assert {"quota", "queued", "banned_s", "last_error"} <= facts.keys()


def test_verify_and_repair_find_and_repair_a_damaged_file(
    at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` exits with 0 where all is well and with 1, naming the file, where a byte was lost; `repair` repairs."""
    assert cli.main(["fetch", "KRW-BTC", "1h", "--start", "2025-08-20", "--end", "2025-08-21", *at]) == 0
    assert cli.main(["verify", *at]) == 0
    assert "all is well: 1 files of 1 markets" in capsys.readouterr().err
    (path,) = (tmp_path / "data").rglob("*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert cli.main(["verify", *at]) == cli.EXIT_PROBLEMS
    said = capsys.readouterr()
    assert "damaged: KRW-BTC 1h" in said.out
    assert str(path) in said.out
    assert "backbone repair" in said.err
    assert cli.main(["repair", *at]) == 0
    assert "1 repaired" in capsys.readouterr().err
    assert cli.main(["verify", *at]) == 0
    assert cli.main(["repair", *at]) == 0
    assert "nothing to repair" in capsys.readouterr().err


def test_verify_against_the_venue_compares_to_the_last_digit(
    at: list[str], venue: SimulatorServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A candle that the venue restated since is a problem of kind `differs`."""
    span = ["--start", "2025-08-10", "--end", "2025-08-11"]
    assert cli.main(["fetch", "KRW-XRP", "1h", *span, *at]) == 0
    assert cli.main(["verify", "KRW-XRP", "1h", "--against-venue", *span, *at]) == 0
    start, end = "2025-08-10T02:00:00Z", "2025-08-10T03:00:00Z"
    venue.faults.add("restate", market="KRW-XRP", start=start, end=end, shift=0.01)
    capsys.readouterr()
    assert cli.main(["verify", "KRW-XRP", "1h", "--against-venue", *span, *at]) == cli.EXIT_PROBLEMS
    assert "differs: KRW-XRP 1h" in capsys.readouterr().out


def test_explain_prints_the_plan(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`explain` names what is held, what is to fetch, and what that takes."""
    assert cli.main(["fetch", "KRW-BTC", "1h", "--start", "2025-08-20", "--end", "2025-08-21", *at]) == 0
    capsys.readouterr()
    assert cli.main(["explain", "KRW-BTC", "1h", "--start", "2025-08-10", "--end", "2025-08-21", *at]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "KRW-BTC 1h, 2025-08-10 00:00 to 2025-08-21 00:00 KST"
    assert lines[1].split() == ["held", "2025-08-12", "16:00", "to", "2025-08-21", "00:00"], "a page is 200 candles"
    assert lines[2].split() == ["to", "fetch", "2025-08-10", "00:00", "to", "2025-08-12", "16:00"]
    assert lines[3] == "  1 page, about 0.1 s at the legal rate"


def test_verify_of_a_folder_without_candles_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt folder, or another exchange's, ends with 1 and says what the folder does hold (U5)."""
    (tmp_path / "candles" / "exchange=upbit-sg").mkdir(parents=True)
    assert cli.main(["verify", "--data-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "nothing was verified" in said
    assert "upbit-sg" in said
