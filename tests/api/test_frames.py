"""Rows into frames: types that do not depend on the rows, facts that ride along, plain records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from backbone.api import frames as shaping
from backbone.model import CANDLE_COLUMNS, Level, MarketInfo, OrderBook, Ticker, Trade, empty_candles

AT = 1_785_397_260_660_000  # 2026-07-30T07:41:00.660Z
FACTS = {"request_id": "a1", "source": "rest"}

TICKER = Ticker("KRW-BTC", AT, *(float(i) for i in range(1, 12)), AT)
BOOK = OrderBook("KRW-BTC", AT, 0.0, (Level(101.0, 1.0, 100.0, 3.0), Level(102.0, 2.0, 0.0, 0.0)))
TRADES = [Trade("KRW-BTC", AT, 91_200_000.0, 0.1, "buy", 17_853_972_606_600_000 + i) for i in range(2)]
MARKET = MarketInfo("KRW-BTC", "비트코인", "Bitcoin", False, ("PRICE_FLUCTUATIONS", "GLOBAL_PRICE_DIFFERENCES"))

TABLES: dict[str, tuple[Any, Any, str | None]] = {
    "tickers": (lambda rows: shaping.tickers_table(rows, ["rest"] * len(rows), [0.5] * len(rows)), [TICKER], "market"),
    "orderbooks": (lambda rows: shaping.orderbooks_table(rows, 30), [BOOK], None),
    "trades": (shaping.trades_table, TRADES, "time"),
    "markets": (shaping.markets_table, [MARKET], "market"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_types_do_not_depend_on_the_rows(kind: str) -> None:
    """A frame of zero rows has the columns and types of a full one, in every frame type."""
    make, rows, index = TABLES[kind]
    full, empty = make(rows), make([])
    assert empty.num_rows == 0
    assert full.schema == empty.schema
    frames = [shaping.deliver(t, "pandas", index=index, zone="Asia/Seoul", attrs=FACTS) for t in (full, empty)]
    assert (frames[0].dtypes == frames[1].dtypes).all()
    assert frames[0].index.dtype == frames[1].index.dtype
    assert list(frames[0].columns) == list(frames[1].columns)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Seoul", "America/New_York"])
@pytest.mark.parametrize("frames", ["pandas", "polars", "arrow"])
def test_times_are_microseconds_in_the_zone(zone: str, frames: str) -> None:
    """One instant, shown in the client's zone, whatever the frame."""
    frame = shaping.deliver(shaping.trades_table(TRADES), frames, index="time", zone=zone, attrs=FACTS)
    if frames == "pandas":
        assert str(frame.index.dtype) == f"datetime64[us, {zone}]"
        shown = frame.index[0]
    elif frames == "polars":
        assert frame.schema["time"] == pl.Datetime("us", zone)
        shown = pd.Timestamp(frame["time"][0])
    else:
        assert frame.schema.field("time").type == pa.timestamp("us", tz=zone)
        shown = pd.Timestamp(frame.column("time")[0].as_py())
    assert shown == pd.Timestamp("2026-07-30T07:41:00.660Z")


@pytest.mark.parametrize("frames", ["pandas", "polars", "arrow"])
def test_facts_ride_along_in_every_frame(frames: str) -> None:
    """`attrs_of` finds them; a frame that is not ours has none."""
    frame = shaping.deliver(shaping.trades_table(TRADES), frames, index="time", zone="UTC", attrs=FACTS)
    assert shaping.attrs_of(frame) == FACTS
    for foreign in (pd.DataFrame(), pl.DataFrame(), pa.table({"a": [1]})):
        assert shaping.attrs_of(foreign) == {}


def test_orderbook_rows_pair_levels_and_pad_with_nan() -> None:
    """Level by level, best first; the thinner side is NaN from where it ends; depth cuts."""
    rows = shaping.orderbooks_table([BOOK, BOOK], 30).to_pylist()
    assert [(r["level"], r["ask_price"]) for r in rows] == [(1, 101.0), (2, 102.0)] * 2
    assert rows[1]["bid_price"] != rows[1]["bid_price"]
    assert rows[1]["bid_size"] != rows[1]["bid_size"]
    assert shaping.orderbooks_table([BOOK], 1).num_rows == 1
    assert shaping.orderbooks_table([OrderBook("KRW-X", AT, 0.0, ())], 5).num_rows == 0


@pytest.mark.parametrize("zone", ["UTC", "Asia/Seoul"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_shaped_tickers_are_the_frame_that_delivery_makes_of_their_table(zone: str, count: int) -> None:
    """The short way to pandas differs in nothing: values, types, index, names."""
    rows, sources, ages = [TICKER] * count, ["rest", "stream", "rest"][:count], [0.5] * count
    short = shaping.shape_tickers(rows, sources, ages, "pandas", zone)
    long = shaping.shape_tickers(rows, sources, ages, "arrow", zone)
    frames = [shaping.deliver(made, "pandas", index="market", zone=zone, attrs=FACTS) for made in (short, long)]
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    assert frames[0].attrs == frames[1].attrs == {"backbone": FACTS}


def test_shaped_tickers_share_nothing_that_a_user_can_change() -> None:
    """Labels are remembered between frames, but what is done to one frame does not show in the next."""
    first, second = (shaping.shape_tickers([TICKER], ["rest"], [0.5], "pandas", "UTC") for _ in range(2))
    first.index.name = "coin"
    first.loc["KRW-BTC", "source"] = "mine"
    first["price"] = 0.0
    third = shaping.shape_tickers([TICKER], ["rest"], [0.5], "pandas", "UTC")
    assert second.index.name == third.index.name == "market"
    assert second["source"].tolist() == third["source"].tolist() == ["rest"]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Seoul", "America/New_York"])
@pytest.mark.parametrize("count", [0, 1, 300])
@pytest.mark.parametrize("flag", [False, True])
def test_candle_frames_are_what_arrow_makes_of_their_table(zone: str, count: int, flag: bool) -> None:
    """Same values, types, index and column labels, of one chunk or of several, with and without a flag column."""
    opens = pa.array([AT + i * 60_000_000 for i in range(count)], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    columns: dict[str, Any] = {"time": opens}
    columns |= {name: pa.array([i + len(name) / 7 for i in range(count)], pa.float64()) for name in CANDLE_COLUMNS}
    if flag:
        columns["forming"] = pa.array([False] * count, pa.bool_())
    whole = pa.table(columns)
    shown = whole.set_column(0, "time", opens.cast(pa.timestamp("us", tz=zone))).to_pandas().set_index("time")
    for table in (whole, pa.concat_tables([whole.slice(0, count // 3), whole.slice(count // 3)])):
        frame = shaping.deliver(table, "pandas", index="time", zone=zone, attrs=FACTS)
        pd.testing.assert_frame_equal(frame, shown, check_column_type="exact", check_exact=True)


def test_candle_frames_share_nothing_that_a_user_can_change() -> None:
    """Neither the table's numbers nor the labels of other frames."""
    table = pa.table({"time": pa.array([AT]).cast(pa.timestamp("us", tz="UTC")), "open": [1.0], "close": [2.0]})
    frame = shaping.deliver(table, "pandas", index="time", zone="UTC", attrs=FACTS)
    frame.iloc[0, 0] = 9.0
    frame.columns.name = "mine"
    again = shaping.deliver(table, "pandas", index="time", zone="UTC", attrs=FACTS)
    assert again["open"].tolist() == [1.0] == table.column("open").to_pylist()
    assert again.columns.name is None


@pytest.mark.parametrize("is_enabled", [True, False])
def test_prepared_import_leaves_the_collector_as_it_was(is_enabled: bool) -> None:
    """Whether somebody turned it off or not; also where the import fails. Arrow needs nothing more."""
    code = f"""
        import gc, sys
        from backbone.api import frames
        {"" if is_enabled else "gc.disable()"}
        frames.prepare("arrow")
        assert "pandas" not in sys.modules
        frames.prepare("pandas")
        assert "pandas" in sys.modules
        assert gc.isenabled() is {is_enabled}
        try:
            frames.prepare("no_such_frames")
        except ModuleNotFoundError:
            assert gc.isenabled() is {is_enabled}
        else:
            raise AssertionError("it was found")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_trade_ids_never_pass_through_a_float() -> None:
    """Seventeen digits stay seventeen digits."""
    ids = [trade.sequential_id for trade in TRADES]
    for frames in ("pandas", "polars"):
        frame = shaping.deliver(shaping.trades_table(TRADES), frames, index="time", zone="UTC", attrs=FACTS)
        assert str(frame["sequential_id"].dtype).lower() == "int64"
        assert list(frame["sequential_id"]) == ids
    assert shaping.trades_table(TRADES).column("sequential_id").to_pylist() == ids


def test_candles_of_several_markets_are_one_long_table() -> None:
    """`market` comes first, also where a market has nothing."""
    table = shaping.candles_table([("KRW-BTC", empty_candles()), ("KRW-ETH", empty_candles())], many=True)
    assert table.schema.names == ["market", "time", *CANDLE_COLUMNS]
    assert table.schema.field("market").type == pa.string()
    assert shaping.candles_table([("KRW-BTC", empty_candles())], many=False).schema.names == ["time", *CANDLE_COLUMNS]


def test_records_are_plain_json() -> None:
    """Times as ISO text in the zone, NaN as None, integers as integers."""
    records = shaping.records(shaping.orderbooks_table([BOOK], 30), "Asia/Seoul")
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    assert records[1]["bid_price"] is None
    assert records[0]["time"] == "2026-07-30T16:41:00.660000+09:00"
    assert shaping.records(shaping.trades_table(TRADES), "UTC")[1]["sequential_id"] == 17_853_972_606_600_001


def test_markets_table_lists_raised_cautions() -> None:
    """The flags that are raised, by name."""
    (row,) = shaping.markets_table([MARKET]).to_pylist()
    assert row["cautions"] == "PRICE_FLUCTUATIONS,GLOBAL_PRICE_DIFFERENCES"
    assert row["korean_name"] == "비트코인"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_child_of_a_user_of_polars_makes_polars_frames(tmp_path: Path) -> None:
    """Polars' own threads do not live on in a child; frames are made without them."""
    code = """
        import os, polars as pl, signal, warnings
        from backbone import Backbone
        warnings.simplefilter("ignore")
        with Backbone.demo(frames="polars") as client:
            frame = client.candles("KRW-BTC", "1h", "2025-08-20", "2025-08-21")
            frame.filter(pl.col("close") > 0).sort("close")
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                again = client.candles("KRW-BTC", "1h", "2025-08-20", "2025-08-21", offline=True)
                os._exit(0 if again.shape == frame.shape else 1)
            assert os.waitpid(child, 0)[1] == 0
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=110, cwd=tmp_path)
