"""Scans of the stored candles, and other engines on the same files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from backbone import Backbone
from backbone.errors import IncompleteError, InputError
from backbone.model import Span, empty_candles
from backbone.simulator import SimulatorServer
from backbone.storage.partition import TAIL_BYTES, peek_footer
from backbone.storage.store import CandleStore
from backbone.timeframe import Timeframe, parse_timeframe

LIMIT = 500  # the quota is not what is tested here

START, END = "2025-07-30", "2025-08-02"  # over a month's end, so that there are two files a market
MARKETS = ["KRW-BTC", "KRW-ETH"]


@pytest.fixture(scope="module")
def filled(shared_venue: SimulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A client whose store holds two markets' minutes."""
    folder = tmp_path_factory.mktemp("store")
    with Backbone(data_dir=folder, rest_url=shared_venue.rest_url, ws_url=shared_venue.ws_url) as client:
        client.candles(MARKETS, "1m", START, END)
        yield client


def test_scan_equals_candles(filled: Backbone) -> None:
    """A scan holds exactly the rows, columns and zone of the same `candles` call."""
    asked = filled.candles(MARKETS, "1m", START, END, frames="polars")
    found = filled.scan(MARKETS, "1m", START, END).collect()
    assert found.columns == ["market", "time", "open", "high", "low", "close", "volume", "value"]
    assert found.equals(asked.select(found.columns))


def test_scan_quote_means_the_stored_markets(filled: Backbone) -> None:
    """A quote currency is the markets of it that the store holds; left-out ends go as far as the store does."""
    found = filled.scan("KRW").select("market", "time").collect()
    assert sorted(found["market"].unique()) == MARKETS
    assert (
        found.height == filled.coverage("KRW-BTC", "1m")["rows"].sum() + filled.coverage("KRW-ETH", "1m")["rows"].sum()
    )
    inside = filled.scan("KRW", "1m", START, END).collect()
    assert inside.height == filled.candles(MARKETS, "1m", START, END).shape[0]
    assert filled.scan("BTC-*").collect().height == 0


def test_scan_opens_only_the_files_of_the_span(filled: Backbone) -> None:
    """A narrower span, and a filter on the market, read fewer files."""
    assert len(filled.files(MARKETS, "1m", START, END)) == 4
    august = filled.files("KRW-BTC", "1m", "2025-08-01T12:00", END)
    assert [Path(path).parent.name for path in august] == ["period=month-2025-08"]
    plan = filled.scan(MARKETS, "1m", START, END).filter(pl.col("market") == "KRW-ETH").explain()
    assert "market" in plan.split("SELECTION")[1]


def test_scan_runs_in_the_streaming_engine(filled: Backbone) -> None:
    """The lazy frame collects in streaming form to the same answer."""
    lazy = filled.scan(MARKETS, "1m", START, END).group_by("market").agg(pl.col("value").sum(), pl.len()).sort("market")
    assert_frame_equal(lazy.collect(engine="streaming"), lazy.collect())  # sums but for the order of adding


def test_scan_unknown_span_raises_before_reading(filled: Backbone) -> None:
    """A span that was never fetched is an error that names its gaps; `partial` takes what is held."""
    with pytest.raises(IncompleteError, match="never asked for") as caught:
        filled.scan(MARKETS, "1m", "2025-07-29", END)
    assert len(caught.value.gaps) == 2
    held = caught.value.frame.collect()
    assert held.equals(filled.scan(MARKETS, "1m", "2025-07-29", END, partial=True).collect())
    begin, end = (pl.lit(day).str.to_datetime(time_zone="Asia/Seoul") for day in ("2025-07-29 00:00", f"{END} 00:00"))
    inside = filled.scan("KRW", "1m").filter(pl.col("time").is_between(begin, end, closed="left"))
    assert held.height == inside.collect().height  # whatever else another test has stored


def test_scan_includes_pages_that_are_not_flushed(venue: SimulatorServer, tmp_path: Path) -> None:
    """What this process has taken but not written yet is written before the scan."""
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url, ws_url=venue.ws_url) as client:
        core = client.session.coordinator()
        client.candles("KRW-BTC", "1h", START, END)
        page = core.store.read("KRW-BTC", *_hours(client))
        tf, span = _hours(client)
        core.store.put("KRW-ETH", tf, page.table, span, now_us=0)
        assert core.store.pending_rows() > 0
        assert client.scan("KRW-ETH", "1h", START, END).collect().height == page.table.num_rows


def _hours(client: Backbone) -> tuple[Timeframe, Span]:
    return parse_timeframe("1h"), Span(client.session.time("start", START), client.session.time("end", END))


def test_scan_quiet_span_is_empty_with_all_columns(filled: Backbone) -> None:
    """A span that is known to be quiet gives zero rows, typed, and no error."""
    core = filled.session.coordinator()
    tf, span = _hours(filled)
    core.store.put("KRW-XRP", tf, empty_candles(), span, now_us=0)
    found = filled.scan("KRW-XRP", "1h", START, END)
    assert found.collect().height == 0
    assert found.collect_schema()["close"] == pl.Float64


def test_scan_coverage_equals_the_proven_one(filled: Backbone) -> None:
    """Coverage from the files' ends equals that of the whole files, and a damaged end covers nothing."""
    core = filled.session.coordinator()
    tf, span = parse_timeframe("1m"), Span(0, 1 << 60)
    proven = core.store.coverage("KRW-BTC", tf, span)
    fresh = CandleStore(Path(filled.data_dir), filled.session.settings.store_exchange, clock=filled.session.clock)
    assert fresh.footer_coverage("KRW-BTC", tf, span) == proven
    data = Path(filled.files("KRW-BTC")[0]).read_bytes()
    assert peek_footer(data[-TAIL_BYTES:]) is not None
    assert peek_footer(data[-20:]) is None
    assert peek_footer(data.replace(b'"covered"', b'"c0vered"')) is None
    assert peek_footer(data.replace(b'"format":1', b'"format":9')) is None


def test_scan_wrong_arguments_are_input_errors(filled: Backbone) -> None:
    """A reversed span and an unknown timeframe name the argument."""
    with pytest.raises(InputError, match="start"):
        filled.scan("KRW", "1m", END, START)
    with pytest.raises(InputError, match="timeframe"):
        filled.scan("KRW", "7m")
    with pytest.raises(InputError, match="market"):
        filled.scan(None)  # type: ignore[arg-type]


def test_scan_takes_markets_from_a_generator(filled: Backbone) -> None:
    """Which gives them once, while the frame may be selected again and again."""
    kept = filled.scan((market for market in MARKETS), "1m", START, END)
    again = filled.scan(MARKETS, "1m", START, END).collect()
    away = [(Path(path), Path(f"{path}.away")) for path in filled.files(MARKETS, "1m", START, END)]
    for path, other in away:
        path.rename(other)
    with pytest.raises(IncompleteError, match="KRW-BTC, KRW-ETH"):
        kept.collect()
    for path, other in away:
        other.rename(path)
    assert kept.collect().equals(again)


def test_duckdb_reads_the_files(filled: Backbone) -> None:
    """DuckDB reads the same rows, market as text."""
    duckdb = pytest.importorskip("duckdb")
    paths = filled.files(MARKETS, "1m", START, END)
    asked = "SELECT market, count(*), sum(close) FROM read_parquet(?, hive_partitioning=true) GROUP BY 1 ORDER BY 1"
    with duckdb.connect() as connection:
        rows = connection.execute(asked, [paths]).fetchall()
    assert rows == _summary(filled, paths)


def test_pandas_and_arrow_read_the_files(filled: Backbone) -> None:
    """Arrow's dataset reads the same rows through the hive folders."""
    import pyarrow.dataset as ds

    paths = filled.files(MARKETS, "1m", START, END)
    table = ds.dataset(paths, format="parquet", partitioning="hive").to_table()
    found = pl.from_arrow(table).group_by("market").agg(pl.len(), pl.col("close").sum()).sort("market")
    assert found.rows() == _summary(filled, paths)


@pytest.mark.filterwarnings("ignore")
def test_dask_reads_the_files(filled: Backbone) -> None:
    """Dask reads the same rows as partitions, one a file."""
    dd = pytest.importorskip("dask.dataframe")
    paths = filled.files(MARKETS, "1m", START, END)
    frame = dd.read_parquet(paths)
    assert frame.npartitions >= 1
    with __import__("dask").config.set(scheduler="synchronous"):
        total = float(frame["close"].sum().compute())
    assert total == pytest.approx(sum(row[2] for row in _summary(filled, paths)))


@pytest.mark.slow
@pytest.mark.skipif("BACKBONE_LONG" not in os.environ, reason="takes a minute: set BACKBONE_LONG=1")
@pytest.mark.filterwarnings("ignore")
def test_spark_reads_the_files(filled: Backbone) -> None:
    """Spark reads the same rows, markets and timeframes as text."""
    sql = pytest.importorskip("pyspark.sql")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    paths = filled.files(MARKETS, "1m", START, END)
    build = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    spark = build.config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1").getOrCreate()
    try:
        frame = spark.read.option("basePath", f"{filled.data_dir}/candles").parquet(*paths)
        assert dict(frame.dtypes)["timeframe"] == "string"
        rows = {row["market"]: row["count"] for row in frame.groupBy("market").count().collect()}
    finally:
        spark.stop()
    assert rows == {market: count for market, count, _ in _summary(filled, paths)}


def _summary(client: Backbone, paths: list[str]) -> list[tuple[str, int, float]]:
    lazy = client.scan(MARKETS, "1m")  # the files hold whole pages, a little more than was asked for
    return lazy.group_by("market").agg(pl.len(), pl.col("close").sum()).sort("market").collect().rows()


def test_scan_of_a_derived_timeframe_has_whole_candles_only(filled: Backbone) -> None:
    """The candles of that length, equal to the same `candles` call; what is cut off at an end of the store is not."""
    found = filled.scan(MARKETS, "2m", START, END).collect()
    asked = filled.candles(MARKETS, "2m", START, END, frames="polars")
    assert found.equals(asked.select(found.columns))
    held = filled.coverage("KRW-BTC", "1m").iloc[0]
    core, minute = filled.session.coordinator(), parse_timeframe("1m")
    rows = filled.candles("KRW-BTC", "1m", held["start"], count=8, frames="arrow")
    first = int(rows.column("time").cast("int64")[0].as_py())
    span = Span(first + minute.step_us, first + 8 * minute.step_us)  # seven minutes, from an odd one on
    core.store.put("KRW-ADA", minute, rows.slice(1).cast(empty_candles().schema), span, now_us=0)
    cut = filled.scan("KRW-ADA", "2m").collect()
    assert cut["time"].dt.epoch("us").to_list() == [first + i * 2 * minute.step_us for i in (1, 2, 3)]
    lazy = filled.scan(MARKETS, "2m", START, END).filter(pl.col("close") < 0).select("market", "volume")
    assert lazy.collect().columns == ["market", "volume"]


def test_files_are_of_the_venues_timeframes(filled: Backbone) -> None:
    """No file holds a derived timeframe."""
    with pytest.raises(InputError, match="timeframe"):
        filled.files(MARKETS, "45m", START, END)


def test_scan_is_collected_from_the_files_as_they_are_then(shared_venue: SimulatorServer, tmp_path: Path) -> None:
    """A lazy frame is kept while the store goes on: it has the new rows, also through what was made of it before."""
    with Backbone(data_dir=tmp_path, rest_url=shared_venue.rest_url, ws_url=shared_venue.ws_url) as client:
        client.candles("KRW-BTC", "1m", "2025-08-10T00:00Z", "2025-08-10T03:00Z")
        lazy = client.scan("KRW-BTC", "1m", partial=True)
        before = lazy.collect()
        late = lazy.filter(pl.col("time") >= before["time"][-1])
        assert late.collect().height == 1
        client.candles("KRW-BTC", "1m", "2025-08-10T00:00Z", "2025-08-11T00:00Z")
        after = client.scan("KRW-BTC", "1m", partial=True).collect()
        assert lazy.collect().equals(after)
        assert late.collect().height == after.filter(pl.col("time") >= before["time"][-1]).height > 1000
