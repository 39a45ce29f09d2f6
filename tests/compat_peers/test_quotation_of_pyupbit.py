"""What pyupbit's own quotation tests ask of it (0.2.33, Apache 2.0), asked of it and of the compat module.

Written anew from what they check: the same calls with the same arguments. One of them holds pyupbit to its wrong hours;
it is named below, with what is right.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from backbone import Backbone
from backbone.compat import default_client
from backbone.compat import pyupbit as compat
from backbone.compat.default_client import DifferenceWarning
from backbone.simulator import SimulatorServer

FIVE_MINUTES = ("KRW-BTC", "minute1", "2022-01-26 14:00:00", "2022-01-26 14:05:00")

real = pytest.importorskip("pyupbit", reason="pyupbit is not installed")


@pytest.fixture
def real_module(server: SimulatorServer, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The real one, its requests sent to the embedded exchange."""
    from pyupbit import request_api

    get = request_api.requests.get

    def redirected(url: str, **options: Any) -> Any:
        return get(url.replace("https://api.upbit.com", server.rest_url), **options)

    monkeypatch.setattr(request_api.requests, "get", redirected)
    return real


@pytest.fixture
def compat_module(server: SimulatorServer, tmp_path: Path) -> Iterator[ModuleType]:
    """Ours, on the embedded exchange."""
    with Backbone.demo(server=server, data_dir=tmp_path) as client:
        default_client.initialize(client)
        yield compat
        default_client.cleanup()


@pytest.fixture(params=["real", "compat"])
def pyupbit(request: pytest.FixtureRequest) -> ModuleType:
    """Either of them."""
    return request.getfixturevalue(f"{request.param}_module")  # type: ignore[no-any-return]


def test_tickers_are_listed(pyupbit: ModuleType) -> None:
    """Without arguments: codes of every currency, KRW-BTC among them."""
    tickers = pyupbit.get_tickers()
    assert "KRW-BTC" in tickers
    assert all(isinstance(ticker, str) for ticker in tickers)


@pytest.mark.parametrize("fiat", ["KRW", "BTC", "USDT"])
def test_tickers_of_a_currency(pyupbit: ModuleType, fiat: str) -> None:
    """Given as a plain first argument."""
    tickers = pyupbit.get_tickers(fiat)
    assert tickers
    assert all(ticker.startswith(fiat) for ticker in tickers)


def test_tickers_with_the_limit(pyupbit: ModuleType) -> None:
    """A pair: the list, and a dict of what is left."""
    tickers, limit = pyupbit.get_tickers(limit_info=True)
    assert isinstance(tickers, list)
    assert isinstance(limit, dict)
    assert {"group", "min", "sec"} <= limit.keys()


def test_tickers_with_details_have_a_warning(compat_module: ModuleType) -> None:
    """One of the two words that the venue once sent; the real one passes on what it sends today, where none is."""
    rows = compat_module.get_tickers(is_details=True)
    assert rows
    assert {row["market_warning"] for row in rows} <= {"NONE", "CAUTION"}


def test_candles_of_five_minutes_are_five(compat_module: ModuleType) -> None:
    """From 14:00 to 14:05, the end left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DifferenceWarning)  # given once a process, here or in another test
        frame = compat_module.get_ohlcv_from(*FIVE_MINUTES)
    assert frame.index.tolist() == pd.date_range("2022-01-26 14:00", periods=5, freq="min").tolist()


def test_candles_of_five_minutes_are_at_other_hours_with_the_real_one(real_module: ModuleType) -> None:
    """The wrong hours that a test of theirs pins: the end is sent as UTC, the beginning is cut in Korean time.

    0.2.34 answers the 200 minutes before 23:05 Korean time.
    """
    frame = real_module.get_ohlcv_from(*FIVE_MINUTES)
    assert frame.index[-1] == pd.Timestamp("2022-01-26 23:04")
    assert len(frame) == 200


def test_candles_by_default(pyupbit: ModuleType) -> None:
    """No argument at all: 200 days of KRW-BTC as a frame."""
    frame = pyupbit.get_ohlcv()
    assert isinstance(frame, pd.DataFrame)
    assert frame.columns.tolist() == ["open", "high", "low", "close", "volume", "value"]


def test_price_of_one_ticker_is_a_number(pyupbit: ModuleType) -> None:
    """A float, no dict."""
    assert isinstance(pyupbit.get_current_price("KRW-BTC"), float)


def test_prices_of_several_tickers_are_a_dict(pyupbit: ModuleType) -> None:
    """By ticker."""
    prices = pyupbit.get_current_price(["KRW-BTC", "KRW-XRP"])
    assert isinstance(prices, dict)
    assert set(prices) == {"KRW-BTC", "KRW-XRP"}


def test_both_give_the_same(real_module: ModuleType, compat_module: ModuleType) -> None:
    """Value by value, wherever both answer."""
    calls: list[Callable[[ModuleType], Any]] = [
        lambda module: module.get_tickers(),
        lambda module: module.get_tickers("USDT"),
        lambda module: module.get_current_price("KRW-BTC"),
        lambda module: module.get_current_price(["KRW-BTC", "KRW-XRP"]),
    ]
    for call in calls:
        assert call(compat_module) == call(real_module)
    pd.testing.assert_frame_equal(
        compat_module.get_ohlcv(),
        real_module.get_ohlcv(),
        check_index_type=False,
        check_freq=False,
        check_names=False,
        check_exact=True,
    )
