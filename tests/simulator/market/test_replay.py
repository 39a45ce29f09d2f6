"""Recorded candles as if live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from backbone.errors import InputError
from backbone.model import CANDLE_COLUMNS, Span
from backbone.simulator.market.listing import UnknownMarketError
from backbone.simulator.market.replay import Replay
from backbone.timeframe import DAY_US, MINUTE_US, TIMEFRAMES
from tests.recordings import recordings

__all__ = ["recordings"]

START = 1_700_000_040_000_000  # 2023-11-14T22:14, on the minute


def _write(path: Path, rows: list[dict[str, Any]], drop: tuple[str, ...] = ()) -> Path:
    columns = {
        "market": [r.get("market", "KRW-BTC") for r in rows],
        "timeframe": [r.get("timeframe", "1m") for r in rows],
        "timestamp": pa.array([r["time"] // 1000 for r in rows], pa.timestamp("ms", tz="UTC")),
        **{name: pa.array([r.get(name) for r in rows], pa.float64()) for name in CANDLE_COLUMNS},
    }
    pq.write_table(pa.table({k: v for k, v in columns.items() if k not in drop}), path)
    return path


def _minute(n: int, **changes: Any) -> dict[str, Any]:
    base = 100.0 + n
    row = {
        "open": base,
        "high": base + 3,
        "low": base - 2,
        "close": base + 1,
        "volume": 0.1 * (n + 1),
        "value": 10.5 * base,
    }
    return {"time": START + n * MINUTE_US, **row, **changes}


def _bars(replay: Replay, timeframe: str, start: int = 0, end: int = 1 << 62) -> list[tuple[float, ...]]:
    bars = replay.bars(replay.market("KRW-BTC"), TIMEFRAMES[timeframe], start, end)
    columns = (bars.open, bars.high, bars.low, bars.close, bars.volume, bars.value)
    return [(int(t), *(float(c[i]) for c in columns)) for i, t in enumerate(bars.time_us)]


def test_rows_come_back_to_the_last_bit(tmp_path: Path) -> None:
    """Whatever float64 was recorded is what is served."""
    odd = [0.1 + 0.2, 1 / 3, 5.485e-05, 91_234_000.00000001]
    replay = Replay([_write(tmp_path / "a.parquet", [_minute(n, volume=v, value=v * 7) for n, v in enumerate(odd)])])
    rows = replay.candles("KRW-BTC", "1m", None, 200, replay.end_us)
    assert [r["candle_acc_trade_volume"] for r in rows] == odd[::-1]
    assert [r["candle_acc_trade_price"] for r in rows] == [v * 7 for v in odd][::-1]


def test_clock_should_start_just_after_the_last_row(tmp_path: Path) -> None:
    """So that everything recorded is closed."""
    replay = Replay([_write(tmp_path / "a.parquet", [_minute(0), _minute(9)])])
    assert START + 10 * MINUTE_US < replay.end_us < START + 11 * MINUTE_US


def test_missing_columns_are_filled_by_rule(tmp_path: Path) -> None:
    """Open and high are the close, the value is volume times close, the volume the least there is."""
    replay = Replay(
        [
            _write(
                tmp_path / "a.parquet",
                [_minute(0, value=None), _minute(1, open=None, high=None, volume=None, value=None)],
            )
        ]
    )
    first, second = _bars(replay, "1m")
    assert first[6] == first[5] * first[4]
    assert second[1:] == (102.0, 102.0, 99.0, 102.0, 1e-8, 1e-8 * 102.0)


def test_later_files_override_but_never_with_less(tmp_path: Path) -> None:
    """A row that misses columns does not replace one that misses fewer."""
    files = [
        _write(tmp_path / "1.parquet", [_minute(0), _minute(1)]),
        _write(tmp_path / "2.parquet", [_minute(0, close=77.0, low=70.0), _minute(1, close=1.0, value=None)]),
    ]
    first, second = _bars(Replay(files), "1m")
    assert first[4] == 77.0
    assert second[4] == 102.0


def test_timeframe_of_a_file_without_the_column_is_in_its_name(tmp_path: Path) -> None:
    """`1d_….parquet`; anything else is an error that says so."""
    day = [{"time": START // DAY_US * DAY_US + n * DAY_US, "close": 5.0 + n, "low": 4.0} for n in range(3)]
    named = _write(tmp_path / "1d_x.parquet", day, drop=("timeframe", "open", "high", "volume", "value"))
    assert [row[4] for row in _bars(Replay([named]), "1d")] == [5.0, 6.0, 7.0]
    with pytest.raises(InputError, match="timeframe column"):
        Replay([_write(tmp_path / "days.parquet", day, drop=("timeframe",))])


def test_unrecorded_timeframes_are_folded_from_the_finest(tmp_path: Path) -> None:
    """Five minutes from one; days that are recorded are not folded."""
    rows = [_minute(n) for n in range(10)] + [
        _minute(0, time=START // DAY_US * DAY_US, timeframe="1d", close=9.0, low=1.0)
    ]
    replay = Replay([_write(tmp_path / "a.parquet", rows)])
    fives = _bars(replay, "5m")
    assert fives[1][1:5] == (101.0, 108.0, 99.0, 106.0)
    assert fives[1][5] == pytest.approx(sum(0.1 * (n + 1) for n in range(1, 6)))
    assert [row[4] for row in _bars(replay, "1d")] == [9.0]
    assert [row[4] for row in _bars(replay, "1w")] == [9.0]
    assert _bars(replay, "1s") == []


def test_candle_in_the_middle_is_forming_and_ends_as_recorded(tmp_path: Path) -> None:
    """Of derived trades while it lasts; then the recorded row, to the last bit."""
    replay = Replay([_write(tmp_path / "a.parquet", [_minute(n) for n in range(5)])])
    states = [
        replay.candles("KRW-BTC", "1m", None, 1, START + 2 * MINUTE_US + s * 1_000_000)[0]
        for s in (20, 40, 59)
    ]  # fmt: skip
    assert {s["candle_date_time_utc"] for s in states} == {"2023-11-14T22:16:00"}
    volumes = [s["candle_acc_trade_volume"] for s in states]
    assert volumes == sorted(volumes)
    assert volumes[0] < 0.3
    closed = replay.candles("KRW-BTC", "1m", START + 3 * MINUTE_US, 1, START + 3 * MINUTE_US)[0]
    assert closed["candle_acc_trade_volume"] == 0.1 * 3


def test_derived_trades_stay_within_their_candle(tmp_path: Path) -> None:
    """Their extremes, ends and volume are the candle's."""
    replay = Replay([_write(tmp_path / "a.parquet", [_minute(n) for n in range(50)])])
    market = replay.market("KRW-BTC")
    for n in range(50):
        row = _minute(n)
        trades = replay.executions(market, row["time"], row["time"] + MINUTE_US)
        assert (trades.price[0], trades.price[-1]) == (row["open"], row["close"])
        assert (trades.price.max(), trades.price.min()) == (row["high"], row["low"])
        assert trades.volume.sum() == pytest.approx(row["volume"])
        assert (np.diff(trades.time_ms) > 0).all()


def test_ticker_trades_and_book_follow_the_candles(tmp_path: Path) -> None:
    """The last price is the last close."""
    replay = Replay([_write(tmp_path / "a.parquet", [_minute(n) for n in range(30)])])
    now = replay.end_us
    ticker = replay.ticker("KRW-BTC", now)
    assert ticker["trade_price"] == replay.trades("KRW-BTC", now, 1)[0]["trade_price"] == 130.0
    assert ticker["high_price"] == 132.0
    book = replay.orderbook("KRW-BTC", now)
    assert book is not None
    assert book["orderbook_units"][0]["bid_price"] in (129, 130)


def test_outage_can_be_scripted_over_a_record(tmp_path: Path) -> None:
    """Rows in it are gone, in every timeframe."""
    replay = Replay([_write(tmp_path / "a.parquet", [_minute(n) for n in range(10)])])
    replay.close_span(Span(START + MINUTE_US, START + 6 * MINUTE_US))
    assert len(_bars(replay, "1m")) == 5
    assert len(_bars(replay, "5m")) == 2


def test_only_the_files_markets_are_listed(tmp_path: Path) -> None:
    """With the catalogue's names where it knows them."""
    rows = [_minute(0), _minute(0, market="KRW-MED"), _minute(0, market="KRW-XYZ")]
    replay = Replay([_write(tmp_path / "a.parquet", rows)])
    names = {row["market"]: row["english_name"] for row in replay.markets(False)}
    assert names == {"KRW-BTC": "Bitcoin", "KRW-MED": "MediBloc", "KRW-XYZ": "XYZ"}
    with pytest.raises(UnknownMarketError):
        replay.candles("KRW-ETH", "1m", None, 1, replay.end_us)
    with pytest.raises(InputError, match="KRW-ETH"):
        Replay([tmp_path / "a.parquet"], markets=["KRW-ETH"])


@pytest.mark.parametrize("content", [None, b"", b"not parquet", "foreign"])
def test_unreadable_file_is_an_input_error_that_names_it(tmp_path: Path, content: bytes | str | None) -> None:
    """Missing, empty, foreign."""
    path = tmp_path / "1m_x.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(InputError, match="1m_x"):
        Replay([path])


@pytest.mark.parametrize(
    ("name", "market", "timeframe"),
    [("1m_majors_2021-05", "KRW-BTC", "1m"), ("1h_majors_2025-08_2026-01_with-value", "KRW-ETH", "1h"),
     ("1m_thin-51-markets_2026-04", "KRW-DRIFT", "1m"), ("4h_14-alts_2017_2021", "KRW-ADA", "4h")],
)  # fmt: skip
def test_recorded_history_is_served_page_by_page_as_recorded(
    recordings: Path, name: str, market: str, timeframe: str
) -> None:
    """Paged from the newest to the oldest, every recorded row comes back once, equal in every recorded
    column.
    """
    path = recordings / "candles" / f"{name}.parquet"
    replay = Replay([path])
    table = pq.read_table(path)
    table = table.filter(pc.and_(pc.equal(table["market"], market), pc.equal(table["timeframe"], timeframe)))
    served: list[dict[str, Any]] = []
    to: int | None = None
    while page := replay.candles(market, timeframe, to, 200, replay.end_us):
        served += page
        oldest = np.datetime64(page[-1]["candle_date_time_utc"], "us")
        to = int(oldest.astype(np.int64))
    served.reverse()
    stamps = np.asarray(table["timestamp"].cast(pa.timestamp("s", tz="UTC")).cast(pa.int64())).astype("datetime64[s]")
    assert [row["candle_date_time_utc"] for row in served] == np.datetime_as_string(stamps).tolist()
    names = {"open": "opening_price", "high": "high_price", "low": "low_price", "close": "trade_price"}
    names |= {"volume": "candle_acc_trade_volume", "value": "candle_acc_trade_price"}
    for column, wire in names.items():
        recorded = table[column].to_pylist()
        pairs = zip((row[wire] for row in served), recorded, strict=True)
        assert all(r is None or s == r for s, r in pairs)
