"""Keys, and the names that may become part of one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.errors import InputError
from backbone.storage.layout import Series, parse_partition_key, parse_period, parse_sidecar_key
from backbone.timeframe import TIMEFRAMES, period_name, period_of
from tests.storage.helpers import MAY, MINUTE

BAD_MARKETS = [
    "", "KRW", "KRW-", "-BTC", "krw-btc", "KRW-..", "KRW-.", "KRW-BTC/..", "../KRW-BTC", "KRW-BTC\0",
    "KRW-BTC\n", "KRW-B TC", "KRW-BTC.", "KRW-A\\B", "KRW-%2e", "KRW-비트", "KRW:BTC-X", "/etc-PASSWD",
    "KRW-" + "A" * 65,
]  # fmt: skip


@pytest.mark.parametrize("market", BAD_MARKETS)
def test_market_that_could_leave_the_folder_is_refused(market: str) -> None:
    """Only upper-case pairs become folder names."""
    with pytest.raises(InputError) as caught:
        Series("upbit", market, MINUTE)
    assert caught.value.argument == "market"


@pytest.mark.parametrize("exchange", ["", "..", "Upbit", "a/b", ".hidden", "x.", "a:b"])
def test_exchange_that_could_leave_the_folder_is_refused(exchange: str) -> None:
    """An exchange partition is a plain lower-case name."""
    with pytest.raises(InputError):
        Series(exchange, "KRW-BTC", MINUTE)


@given(st.text(max_size=20))
def test_accepted_market_never_contains_a_separator(market: str) -> None:
    """Whatever text comes as a market, an accepted one is one harmless folder name."""
    try:
        series = Series("upbit", market, MINUTE)
    except InputError:
        return
    assert series.folder == f"candles/exchange=upbit/market={market}/timeframe=minute1"
    assert not set(market) & set("/\\\0: \n")


@pytest.mark.parametrize("timeframe", TIMEFRAMES.values(), ids=str)
def test_key_of_a_period_is_parsed_back_to_it(timeframe: object) -> None:
    """Every timeframe's partition and sidecar keys name their series and period."""
    series = Series("upbit", "USDT-1INCH.X", timeframe)  # type: ignore[arg-type]
    period = period_of(series.timeframe, MAY)
    assert parse_partition_key(series.key(period)) == (series, period)
    assert parse_sidecar_key(series.quiet_key) == series
    assert parse_period(series.timeframe, period_name(series.timeframe, period)) == period


@pytest.mark.parametrize(
    "name", ["month-2024-13", "month-2024", "day-2024-05-01", "all", "month-2024-05-01", "month-24-05", ""]
)
def test_period_name_of_another_timeframe_is_none(name: str) -> None:
    """Only a month names a month."""
    assert parse_period(MINUTE, name) is None


@pytest.mark.parametrize(
    "key",
    [
        "candles/exchange=upbit/market=KRW-BTC/timeframe=minute1/period=month-2024-05/other.parquet",
        "candles/exchange=upbit/market=krw-btc/timeframe=minute1/period=month-2024-05/candles.parquet",
        "candles/exchange=upbit/market=KRW-BTC/timeframe=minute2/period=month-2024-05/candles.parquet",
        "candles/exchange=upbit/market=KRW-BTC/timeframe=minute1/candles.parquet",
        "candles/market=KRW-BTC/exchange=upbit/timeframe=minute1/period=month-2024-05/candles.parquet",
        "_quiet/exchange=upbit/market=KRW-BTC/timeframe=minute1/period=month-2024-05/candles.parquet",
    ],
)
def test_foreign_key_is_no_partition(key: str) -> None:
    """A file at any other place is not taken for a partition."""
    assert parse_partition_key(key) is None
    assert parse_sidecar_key(key) is None
