"""Frames as other tools like them: spellings, zones, trading days, digits."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbone.api.convert import OHLC_STYLES, export, naive, resample_trading_day, to_ohlc
from backbone.api.format import to_display
from backbone.errors import InputError, StoreError

LIMIT = 500  # the quota is not what is tested here

ATTRS = {"backbone": {"request_id": "r1", "source": "store", "quiet": [["2024-01-01T00:00:00Z", 3]], "pages": 2}}


def candles(start: str = "2024-01-01", count: int = 3, freq: str = "1min", tz: str = "Asia/Seoul") -> pd.DataFrame:
    index = pd.date_range(start, periods=count, freq=freq, tz=tz, name="time").as_unit("us")
    n = np.arange(count, dtype="float64")
    frame = pd.DataFrame(
        {
            "open": 100 + n,
            "high": 110 + n,
            "low": 90 - n,
            "close": 105 + n,
            "volume": 1 + n,
            "value": 1000 * (1 + n),
        },
        index=index,
    )
    frame.attrs = ATTRS
    return frame


@pytest.mark.parametrize("style", OHLC_STYLES)
def test_to_ohlc_every_style_keeps_rows_floats_and_attrs(style: str) -> None:
    """Every style has all rows, float64 prices, and the attrs of the frame it came from, which is left as it
    was."""
    frame = candles()
    before = frame.copy()
    out = to_ohlc(frame, style)
    assert len(out) == 3
    assert out.attrs == ATTRS
    prices = [name for name in out.columns if name.lower() in ("open", "close", "volume")]
    assert {str(out[name].dtype) for name in prices} == {"float64"}
    pd.testing.assert_frame_equal(frame, before, check_exact=True)


def test_to_ohlc_ccxt_is_the_list_of_lists_that_ccxt_returns() -> None:
    """The ccxt style is integer milliseconds, then open, high, low, close and volume."""
    out = to_ohlc(candles(count=1), "ccxt")
    assert out["timestamp"].dtype == np.int64
    assert out.to_numpy().tolist() == [[1704034800000, 100.0, 110.0, 90.0, 105.0, 1.0]]
    assert list(out.columns) == ["timestamp", "open", "high", "low", "close", "volume"]


def test_to_ohlc_freqtrade_has_utc_dates_and_a_plain_index() -> None:
    """The freqtrade style has a `date` column in UTC milliseconds and rows numbered from 0."""
    out = to_ohlc(candles(), "freqtrade")
    assert str(out["date"].dtype) == "datetime64[ms, UTC]"
    assert out["date"].iloc[0] == pd.Timestamp("2023-12-31 15:00", tz="UTC")
    assert list(out.index) == [0, 1, 2]
    assert list(out.columns) == ["date", "open", "high", "low", "close", "volume"]


@pytest.mark.parametrize("style", ["backtesting", "mplfinance"])
def test_to_ohlc_of_the_plotting_tools_shows_the_wall_clock(style: str) -> None:
    """The tools that take naive times get what the clock in the frame's zone showed."""
    out = to_ohlc(candles("2024-01-01 09:00"), style)
    assert out.index[0] == pd.Timestamp("2024-01-01 09:00")
    assert out.index.name == "Date"
    assert list(out.columns) == ["Open", "High", "Low", "Close", "Volume"]


def test_to_ohlc_vectorbt_keeps_the_zone() -> None:
    """The vectorbt style keeps the zoned index."""
    assert to_ohlc(candles(), "vectorbt").index.equals(candles().index)


def test_to_ohlc_of_no_rows_keeps_columns_and_types() -> None:
    """A range in which nobody traded converts to no rows of the same types."""
    for style in OHLC_STYLES:
        full, none = to_ohlc(candles(), style), to_ohlc(candles().iloc[:0], style)
        assert list(none.dtypes) == list(full.dtypes)
        assert len(none) == 0


def test_to_ohlc_of_several_markets_is_a_frame_a_market() -> None:
    """One market in its column is taken as one frame; several are a dict of frames, by market."""
    frame = candles()
    frame.insert(0, "market", "KRW-BTC")
    assert list(to_ohlc(frame).columns) == ["Open", "High", "Low", "Close", "Volume"]
    frame.iloc[1, 0] = "KRW-ETH"
    found = to_ohlc(frame)
    assert {market: len(part) for market, part in found.items()} == {"KRW-BTC": 2, "KRW-ETH": 1}


def test_to_ohlc_of_a_wide_frame_keeps_its_markets_and_has_the_index() -> None:
    """As engines take several markets at once: a column each, and the step that their figures need."""
    wide = pd.concat({"KRW-BTC": candles(count=5)["close"], "KRW-ETH": candles(count=5)["close"] * 2}, axis=1)
    for style, aware in (("vectorbt", True), ("backtesting", False)):
        found = to_ohlc(wide, style)
        assert found.to_dict("list") == wide.to_dict("list")
        assert (found.index.freqstr, found.index.name) == ("min", "Date")
        assert (found.index.tz is not None) is aware
    with pytest.raises(InputError, match="candle frame"):
        to_ohlc(wide, "freqtrade")
    assert to_ohlc(wide.drop(wide.index[2])).index.freq is None


@pytest.mark.parametrize(
    ("freq", "tz", "shown"),
    [("1min", "Asia/Seoul", "min"), ("1h", "UTC", "h"), ("1D", "Asia/Seoul", "D"), ("45min", "UTC", "45min")],
)
def test_to_ohlc_of_a_whole_grid_has_its_freq(freq: str, tz: str, shown: str) -> None:
    """An index without a hole says its step; one with a hole says none."""
    frame = candles(count=5, freq=freq, tz=tz)
    for style in ("vectorbt", "backtesting"):
        assert to_ohlc(frame, style).index.freqstr == shown
        assert to_ohlc(frame.drop(frame.index[2]), style).index.freq is None


def test_to_ohlc_of_days_over_a_clock_change_has_days_of_one_length() -> None:
    """Days of 24 hours in a zone that set its clocks are no calendar's days: their step is in hours."""
    frame = candles("2024-03-09", count=4, freq="24h", tz="UTC").tz_convert("America/New_York")
    assert to_ohlc(frame).index.freqstr == "24h"


@pytest.mark.parametrize("style", ["backtesting", "mplfinance"])
def test_to_ohlc_in_a_zone_that_set_its_clocks_back_is_refused(style: str) -> None:
    """An hour that comes twice needs its zone: the error names zones that have no such hour; UTC is accepted."""
    frame = candles("2024-11-03 04:00", count=5, freq="1h", tz="UTC").tz_convert("America/New_York")
    with pytest.raises(InputError, match="UTC"):
        to_ohlc(frame, style)
    found = to_ohlc(frame.tz_convert("UTC"), style).index
    assert found.is_unique
    assert found.is_monotonic_increasing


def test_export_writes_what_freqtrade_reads(tmp_path: Path) -> None:
    """A feather file a market, named BASE_QUOTE-timeframe, dates in UTC; forming rows are left out."""
    frame = candles(count=4)
    frame["forming"] = [False, False, False, True]
    frame.attrs = {"backbone": {"market": "KRW-BTC", "timeframe": "1m"}}
    (path,) = export(frame, "freqtrade", tmp_path / "upbit")
    assert path.name == "BTC_KRW-1m.feather"
    found = pd.read_feather(path)
    assert list(found.columns) == ["date", "open", "high", "low", "close", "volume"]
    assert str(found["date"].dt.tz) == "UTC"
    assert found["date"].tolist() == frame.index[:3].tolist()
    assert found["close"].tolist() == frame["close"].tolist()[:3]
    frame.insert(0, "market", ["KRW-BTC", "KRW-BTC", "KRW-ETH", "KRW-ETH"])
    assert [one.name for one in export(frame, path=tmp_path)] == ["BTC_KRW-1m.feather", "ETH_KRW-1m.feather"]


def test_export_of_a_frame_that_does_not_say_what_it_is_is_refused(tmp_path: Path) -> None:
    """Without a timeframe or a market no file could be named; a folder that cannot be is an error of the disk."""
    frame = candles()
    frame.attrs = {}
    with pytest.raises(InputError, match="timeframe"):
        export(frame, path=tmp_path)
    frame.attrs = {"backbone": {"timeframe": "1m"}}
    with pytest.raises(InputError, match="market"):
        export(frame, path=tmp_path)
    with pytest.raises(InputError, match="freqtrade"):
        export(frame, "excel", tmp_path)
    (tmp_path / "file").touch()
    frame.attrs = {"backbone": {"timeframe": "1m", "market": "KRW-BTC"}}
    with pytest.raises(StoreError):
        export(frame, path=tmp_path / "file")


@pytest.mark.parametrize(
    ("frame", "style"),
    [
        (candles(), "excel"),
        (candles().drop(columns="value"), "ccxt"),
        (candles().reset_index(), "ccxt"),
        (candles().tz_localize(None), "ccxt"),
        ([[1, 2, 3, 4, 5, 6]], "ccxt"),
    ],
)
def test_to_ohlc_of_what_is_no_candle_frame_is_an_input_error(frame: object, style: str) -> None:
    """What is no candle frame, or no known style, is refused with what would be accepted."""
    with pytest.raises(InputError):
        to_ohlc(frame, style)  # type: ignore[arg-type]


def test_naive_shows_the_zone_s_wall_clock_in_index_and_columns() -> None:
    """Times lose their zone, not their reading, in the index and in columns."""
    frame = candles("2024-01-01 09:00").assign(seen=lambda f: f.index.tz_convert("UTC"))
    out = naive(frame)
    assert out.index[0] == pd.Timestamp("2024-01-01 09:00")
    assert out["seen"].iloc[0] == pd.Timestamp("2024-01-01 00:00")
    assert out.attrs == ATTRS
    assert frame.index.tz is not None


def test_naive_frames_can_be_written_to_excel() -> None:
    """Excel's writer, which refuses zoned times, takes the naive frame."""
    pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    with pytest.raises(ValueError, match="timezone"):
        candles().to_excel(io.BytesIO())
    naive(candles()).to_excel(io.BytesIO())


def test_naive_passes_a_frame_without_times() -> None:
    """A frame that has no zoned time is returned equal."""
    frame = pd.DataFrame({"price": [1.0]}, index=["KRW-BTC"])
    pd.testing.assert_frame_equal(naive(frame), frame, check_exact=True)


def test_attrs_survive_a_parquet_file(tmp_path) -> None:
    """What a frame says about itself is still there after to_parquet and read_parquet."""
    path = tmp_path / "candles.parquet"
    candles().to_parquet(path)
    back = pd.read_parquet(path)
    assert back.attrs == ATTRS
    assert json.loads(json.dumps(back.attrs)) == ATTRS
    pd.testing.assert_frame_equal(back, candles(), check_freq=False, check_exact=True)


def test_attrs_survive_conversion_and_then_a_parquet_file(tmp_path) -> None:
    """The converted frames keep their attrs on disk too."""
    for frame in (to_ohlc(candles(), "freqtrade"), naive(candles()), to_display(candles())):
        frame.to_parquet(tmp_path / "x.parquet")
        assert pd.read_parquet(tmp_path / "x.parquet").attrs == ATTRS


def test_trading_day_begins_at_nine_in_seoul() -> None:
    """48 hours from 09:00 KST are two trading days with the extremes and sums of their hours."""
    frame = candles("2024-01-01 09:00", 48, "1h")
    out = resample_trading_day(frame)
    assert list(out.index) == [pd.Timestamp(f"2024-01-0{day} 09:00", tz="Asia/Seoul") for day in (1, 2)]
    first = out.iloc[0]
    hours = frame.iloc[:24]
    assert (first["open"], first["close"]) == (hours["open"].iloc[0], hours["close"].iloc[-1])
    assert (first["high"], first["low"]) == (hours["high"].max(), hours["low"].min())
    assert (first["volume"], first["value"]) == (hours["volume"].sum(), hours["value"].sum())
    assert out.attrs == ATTRS
    assert str(out.index.dtype) == "datetime64[us, Asia/Seoul]"


def test_trading_day_the_frame_does_not_know_wholly_is_left_out() -> None:
    """Days that begin before the frame or end after it are dropped, or marked on request."""
    frame = candles("2024-01-01 12:00", 48, "1h")
    assert list(resample_trading_day(frame).index) == [pd.Timestamp("2024-01-02 09:00", tz="Asia/Seoul")]
    kept = resample_trading_day(frame, keep_partial=True)
    assert kept["partial"].tolist() == [True, False, True]


def test_trading_day_of_a_quiet_market_counts_when_the_asked_range_is_said() -> None:
    """Edges without candles count as known once the asked range is given."""
    frame = candles("2024-01-01 10:00", 3, "4h")
    assert len(resample_trading_day(frame)) == 0
    out = resample_trading_day(frame, start="2024-01-01 09:00", end="2024-01-02 09:00")
    assert len(out) == 1
    assert out["volume"].iloc[0] == frame["volume"].sum()


def test_trading_day_with_a_forming_candle_is_partial() -> None:
    """A day that holds a forming candle is not complete, even where its range is."""
    frame = candles("2024-01-01 09:00", 24, "1h")
    frame["forming"] = False
    assert len(resample_trading_day(frame)) == 1
    frame.iloc[-1, frame.columns.get_loc("forming")] = True
    assert len(resample_trading_day(frame)) == 0


def test_trading_day_in_which_nobody_traded_has_no_row() -> None:
    """A day without trades between two others is no row, as everywhere in the package."""
    frame = pd.concat([candles("2024-01-01 09:00", 24, "1h"), candles("2024-01-03 09:00", 24, "1h")])
    assert [stamp.day for stamp in resample_trading_day(frame).index] == [1, 3]


def test_trading_day_of_candles_across_the_boundary_is_refused() -> None:
    """4-hour candles open at 09:00 KST; a day from midnight would cut them, so it is refused."""
    frame = candles("2024-01-01 09:00", 12, "4h")
    assert len(resample_trading_day(frame)) == 2
    with pytest.raises(InputError, match="shorter timeframe"):
        resample_trading_day(frame, open_hour=0)


def test_trading_day_of_a_few_sparse_candles_is_not_taken_for_coarse_ones() -> None:
    """Three minutes of a quiet market that lie on a 4-hour grid by chance are still minutes."""
    frame = candles("2024-01-01 09:00", 3, "4h")
    assert len(resample_trading_day(frame, open_hour=11, keep_partial=True)) == 2


def test_trading_day_relabels_what_the_frame_says_of_itself() -> None:
    """A frame that names its timeframe names the new one afterwards."""
    frame = candles("2024-01-01 09:00", 24, "1h")
    frame.attrs = {"backbone": {"timeframe": "1h"}}
    assert resample_trading_day(frame).attrs["backbone"]["timeframe"] == "1d"
    assert frame.attrs["backbone"]["timeframe"] == "1h"


def test_trading_day_of_the_venue_s_day_candles_is_the_same_candles() -> None:
    """The venue's day candle is the KST trading day from 09:00."""
    frame = candles("2024-01-01 09:00", 4, "1D")
    out = resample_trading_day(frame)
    pd.testing.assert_frame_equal(out, frame, check_freq=False, check_exact=True)


def test_trading_week_begins_on_monday_at_nine() -> None:
    """Weeks begin on Monday at the opening hour."""
    out = resample_trading_day(candles("2024-01-01 09:00", 14, "1D"), "1W")
    assert list(out.index) == [pd.Timestamp(f"2024-01-{day:02d} 09:00", tz="Asia/Seoul") for day in (1, 8)]


def test_trading_day_of_several_markets_never_mixes_them() -> None:
    """A long frame gives each market its own days, market first."""
    one, two = candles("2024-01-01 09:00", 24, "1h"), candles("2024-01-01 09:00", 24, "1h") * 2
    one.insert(0, "market", "KRW-BTC")
    two.insert(0, "market", "KRW-ETH")
    out = resample_trading_day(pd.concat([one, two]))
    assert out["market"].tolist() == ["KRW-BTC", "KRW-ETH"]
    assert out["volume"].tolist() == [one["volume"].sum(), two["volume"].sum()]


def test_trading_day_of_no_rows_is_no_rows() -> None:
    """No candles make no days, with the same columns."""
    out = resample_trading_day(candles().iloc[:0])
    assert list(out.columns) == ["open", "high", "low", "close", "volume", "value"]
    assert len(out) == 0
    assert resample_trading_day(candles().iloc[:0], keep_partial=True)["partial"].dtype == bool


@pytest.mark.parametrize("arguments", [{"rule": "1h"}, {"open_hour": 24}, {"open_hour": 9.5}])
def test_trading_day_refuses_other_rules_and_hours(arguments: dict) -> None:
    """Only days, weeks and whole hours are known."""
    with pytest.raises(InputError):
        resample_trading_day(candles(), **arguments)


@settings(deadline=None)
@given(
    start=st.integers(0, 40_000),
    gaps=st.lists(st.integers(1, 500), min_size=1, max_size=60),
    hour=st.integers(0, 23),
)
def test_trading_day_equals_a_day_by_day_loop(start: int, gaps: list[int], hour: int) -> None:
    """Any minutes with any gaps give the same days as a loop over the rows would."""
    minutes = start + np.cumsum(gaps)
    index = pd.DatetimeIndex((minutes * 60_000_000).view("datetime64[us]"), tz="UTC", name="time")
    frame = pd.DataFrame({name: minutes.astype("float64") for name in ("open", "high", "low", "close")}, index=index)
    frame["volume"], frame["value"] = 1.0, 2.0
    frame.attrs = {"backbone": {"timeframe": "1m"}}
    days: dict[int, int] = {}
    for minute in minutes.tolist():
        day = (minute + 9 * 60 - hour * 60) // 1440
        days[day] = days.get(day, 0) + 1
    out = resample_trading_day(frame, open_hour=hour, keep_partial=True)
    assert out["volume"].tolist() == [float(count) for count in days.values()]
    opens = [(day * 1440 + hour * 60 - 9 * 60) * 60_000_000 for day in days]
    assert out.index.tz_convert("UTC").tz_localize(None).as_unit("us").asi8.tolist() == opens


@pytest.mark.parametrize(
    ("day", "open_hour", "tz", "hours"),
    [
        ("2024-03-10", 2, "America/New_York", 23),
        ("2024-11-03", 1, "America/New_York", 25),
        ("2024-03-31", 1, "Europe/London", 23),
        ("2024-10-27", 1, "Europe/London", 25),
        ("2024-03-10", 0, "America/New_York", 23),
    ],
)
def test_trading_day_over_a_clock_change_has_its_own_length(day: str, open_hour: int, tz: str, hours: int) -> None:
    """Days of 23 and 25 hours where a zone sets its clocks at the hour of opening, and no volume is lost."""
    start = pd.Timestamp(day, tz=tz) - pd.Timedelta("3D")
    frame = candles(str(start.tz_convert("UTC").tz_localize(None)), count=24 * 7, freq="1h", tz="UTC").tz_convert(tz)
    days = resample_trading_day(frame, open_hour=open_hour, tz=tz, keep_partial=True)
    lengths = (days.index[1:] - days.index[:-1]) / pd.Timedelta("1h")
    assert hours in lengths.tolist()
    assert set(lengths.tolist()) <= {24.0, float(hours), 24.0 + (24 - hours)}
    assert days["volume"].sum() == pytest.approx(frame["volume"].sum(), rel=1e-12)
    assert days.index.is_unique


def test_trading_day_of_weeks_is_refused() -> None:
    """Weeks are no days, whether the frame says so or its rows show it."""
    weeks = candles(count=8, freq="7D")
    weeks.attrs = {}
    with pytest.raises(InputError, match="no longer than a day"):
        resample_trading_day(weeks)
    weeks = candles(count=2, freq="7D")
    weeks.attrs = {"backbone": {"timeframe": "1w"}}
    with pytest.raises(InputError, match="no longer than a day"):
        resample_trading_day(weeks)


def test_trading_day_sums_decimals() -> None:
    """Volumes are summed as the decimals they are, rounded once: ten times 0.1 is 1."""
    frame = candles("2024-01-01 09:00", count=48, freq="1h").assign(volume=0.1)
    assert resample_trading_day(frame)["volume"].tolist() == [2.4, 2.4]
