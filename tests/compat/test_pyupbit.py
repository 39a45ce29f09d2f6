"""The pyupbit module against pyupbit itself, answer by answer, and where ours is right instead."""

from __future__ import annotations

import datetime as dt
import inspect
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from backbone import Backbone
from backbone.compat import DifferenceWarning, initialize
from backbone.compat import pyupbit as compat
from backbone.errors import InputError, PayloadError, UnreachableError
from backbone.simulator import SimulatorServer

LIMIT = 500  # the quota is not what is tested here

INTERVALS = ["day", "days", "week", "month", "minute1", "minutes3", "minute5", "minute10"]
INTERVALS += ["minute15", "minute30", "minute60", "minutes60", "minute240"]
NINE_HOURS = pd.Timedelta(hours=9)


REQUESTS = [
    ("get_ohlcv", ("KRW-BTC", "day", 2), {"candles": 1}),
    ("get_ohlcv", ("KRW-BTC", "day", 200), {"candles": 1}),
    ("get_current_price", ("KRW-BTC",), {"ticker": 1}),
    ("get_orderbook", ("KRW-BTC",), {"orderbook": 1}),
    ("get_tickers", (), {"market": 2}),  # what a first list lacks takes a second one
]


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("market", ["KRW-BTC", "KRW-NEO"])
def test_ohlcv_every_interval_equals_pyupbit(opened: Backbone, real: Any, interval: str, market: str) -> None:
    """Columns, dtypes, index and every number are pyupbit's, the forming candle counted as one."""
    theirs = real.get_ohlcv(market, interval, count=7)
    pd.testing.assert_frame_equal(compat.get_ohlcv(market, interval, count=7), theirs, check_exact=True)
    assert len(theirs) == 7


@pytest.mark.parametrize("count", [1, 0, 200, 201, 433])
def test_ohlcv_any_count_equals_pyupbit(opened: Backbone, real: Any, count: int) -> None:
    """A count is the newest that many, across pages; nought and less are one."""
    theirs = real.get_ohlcv("KRW-ETH", "minute1", count=count, period=0)
    ours = compat.get_ohlcv("KRW-ETH", "minute1", count=count, period=0)
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert len(ours) == max(1, count)


@pytest.mark.parametrize("count", [95, 96, 97, 98, 200])
def test_ohlcv_of_a_short_history_ends_with_the_forming_candle(opened: Backbone, real: Any, count: int) -> None:
    """A history of fewer candles than are asked for, such as a new coin's: 96 months, the last of which forms."""
    theirs = real.get_ohlcv("KRW-BTC", "month", count=count, period=0)
    pd.testing.assert_frame_equal(compat.get_ohlcv("KRW-BTC", "month", count=count), theirs, check_exact=True)
    assert (len(theirs), theirs.index[-1]) == (min(96, count), pd.Timestamp("2025-08-01 09:00"))


def test_ohlcv_defaults_equal_pyupbit(opened: Backbone, real: Any) -> None:
    """Called with nothing, both answer 200 days of bitcoin."""
    pd.testing.assert_frame_equal(compat.get_ohlcv(), real.get_ohlcv(), check_exact=True)


def test_tickers_of_a_short_list_are_asked_again(opened: Backbone, exchange: SimulatorServer, real: Any) -> None:
    """Rows with the venue's field names come from a list that a second one confirmed."""
    whole = real.get_tickers("KRW", verbose=True)
    exchange.faults.add("short", match="/v1/market/all")
    assert compat.get_tickers("KRW", verbose=True) == whole


def test_ohlcv_signature_is_pyupbits(real: Any) -> None:
    """Arguments have pyupbit's names, order and defaults."""
    for name in ("get_ohlcv", "get_ohlcv_from", "get_daily_ohlcv_from_base"):
        ours, theirs = (inspect.signature(getattr(each, name)) for each in (compat, real))
        assert [(p.name, p.default) for p in ours.parameters.values()] == [
            (p.name, p.default) for p in theirs.parameters.values()
        ]
    for name in ("get_tickers", "get_current_price", "get_orderbook", "WebSocketManager"):
        ours, theirs = (inspect.signature(getattr(each, name)) for each in (compat, real))
        assert list(ours.parameters) == list(theirs.parameters)


@pytest.mark.parametrize(
    "to",
    ["2025-08-01 00:00:00", "20250801", "2025/08/01 10:30", dt.date(2025, 8, 1), pd.Timestamp("2025-08-01")],
)
def test_ohlcv_with_naive_to_is_korean_time(opened: Backbone, real: Any, ignore_differences: None, to: Any) -> None:
    """A naive `to` in any of pyupbit's forms means Korean time; pyupbit answers the same for it nine hours earlier."""
    theirs = real.get_ohlcv("KRW-BTC", "minute30", count=5, to=pd.Timestamp(to) - NINE_HOURS)
    ours = compat.get_ohlcv("KRW-BTC", "minute30", count=5, to=to)
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert ours.index[-1] < pd.Timestamp(to)


def test_ohlcv_with_aware_to_is_that_instant(opened: Backbone, ignore_differences: None) -> None:
    """An aware `to` keeps its zone, which pyupbit drops."""
    naive = compat.get_ohlcv("KRW-BTC", "minute1", count=3, to="2025-08-01 09:00")
    aware = compat.get_ohlcv("KRW-BTC", "minute1", count=3, to="2025-08-01T00:00:00Z")
    pd.testing.assert_frame_equal(naive, aware, check_exact=True)


def test_ohlcv_with_to_from_its_own_index_goes_on_where_it_began(
    opened: Backbone, real: Any, ignore_differences: None
) -> None:
    """``to=df.index[0]`` answers the candles right before `df`; pyupbit jumps nine hours."""
    newer = compat.get_ohlcv("KRW-BTC", "minute1", count=30)
    older = compat.get_ohlcv("KRW-BTC", "minute1", count=30, to=newer.index[0])
    whole = compat.get_ohlcv("KRW-BTC", "minute1", count=60)
    pd.testing.assert_frame_equal(pd.concat([older, newer]), whole, check_exact=True)
    theirs = real.get_ohlcv("KRW-BTC", "minute1", count=30, to=newer.index[0])
    assert theirs.index[-1] > newer.index[0]


def test_ohlcv_with_unknown_interval_is_refused_not_days(opened: Backbone, real: Any) -> None:
    """pyupbit answers days for an interval that does not exist; the compat module says what there is."""
    assert real.get_ohlcv("KRW-BTC", "minute7", count=2).index.equals(real.get_ohlcv("KRW-BTC", count=2).index)
    with pytest.raises(InputError, match=r"minute240.*pyupbit would have answered days") as caught:
        compat.get_ohlcv("KRW-BTC", "minute7")
    assert caught.value.argument == "interval"


@pytest.mark.parametrize("call", ["get_ohlcv", "get_current_price", "get_orderbook", "get_ohlcv_from"])
def test_unknown_market_is_refused_by_name(opened: Backbone, call: str) -> None:
    """An unknown ticker raises, naming the nearest ones."""
    with pytest.raises(InputError, match=r"KRW-BTX.*the nearest: .*KRW-BT"):
        getattr(compat, call)("KRW-BTX")


def test_failure_of_the_venue_raises_where_pyupbit_answers_none(
    opened: Backbone, exchange: SimulatorServer, real: Any
) -> None:
    """A refused question is an error, never None."""
    exchange.faults.add("garbage", match="/v1/candles/days", times=None)
    assert real.get_ohlcv("KRW-BTC") is None
    with pytest.raises((PayloadError, UnreachableError)) as caught:
        _raise_cause(lambda: compat.get_ohlcv("KRW-BTC", count=3))
    assert caught.value.market == "KRW-BTC"


def _raise_cause(call: Any) -> None:
    """An incomplete answer has its reasons in `causes`."""
    from backbone.errors import IncompleteError

    try:
        call()
    except IncompleteError as exc:
        raise exc.causes[0] from exc


def test_ohlcv_before_listing_is_empty_not_none(opened: Backbone, real: Any, ignore_differences: None) -> None:
    """A market that had no candle yet has an empty frame of the usual form."""
    ours = compat.get_ohlcv("KRW-BTC", "day", to="2015-01-01")
    assert real.get_ohlcv("KRW-BTC", "day", to="2015-01-01") is None
    assert len(ours) == 0
    assert list(ours.columns) == ["open", "high", "low", "close", "volume", "value"]
    assert set(map(str, ours.dtypes)) == {"float64"}
    assert ours.index.tz is None


def test_ohlcv_from_answers_the_hours_asked_for(opened: Backbone, real: Any, ignore_differences: None) -> None:
    """Both ends are Korean time, the start included, the end not; pyupbit answers nine hours too many."""
    start, end = "2025-08-20 10:00:00", "2025-08-20 15:00:00"
    ours = compat.get_ohlcv_from("KRW-BTC", "minute60", start, end)
    assert ours.index[0] == pd.Timestamp(start)
    assert ours.index[-1] == pd.Timestamp(end) - pd.Timedelta(hours=1)
    exact = real.get_ohlcv("KRW-BTC", "minute60", count=5, to=pd.Timestamp(end) - NINE_HOURS)
    pd.testing.assert_frame_equal(ours, exact, check_exact=True)
    theirs = real.get_ohlcv_from("KRW-BTC", "minute60", start, end, period=0)
    assert theirs.index[-1] == ours.index[-1] + NINE_HOURS


def test_ohlcv_from_without_end_includes_the_forming_candle(
    opened: Backbone, real: Any, ignore_differences: None
) -> None:
    """Up to now means up to now."""
    ours = compat.get_ohlcv_from("KRW-BTC", "minute60", "2025-08-22 09:00")
    pd.testing.assert_frame_equal(ours, real.get_ohlcv("KRW-BTC", "minute60", count=10), check_exact=True)


def test_ohlcv_from_without_start_begins_with_the_listing(opened: Backbone) -> None:
    """With neither start nor end, every month there is."""
    months = compat.get_ohlcv_from("KRW-BTC", "month")
    assert months.index[0] == pd.Timestamp("2017-09-01 09:00")
    assert months.index[-1] == pd.Timestamp("2025-08-01 09:00")


@pytest.mark.parametrize("base", [0, 9, 15])
def test_daily_from_base_folds_whole_korean_days(opened: Backbone, ignore_differences: None, base: int) -> None:
    """Days begin at the given hour, the first one whole; at nine they are the venue's own days."""
    days = compat.get_daily_ohlcv_from_base("KRW-BTC", base)
    assert list(days.columns) == ["open", "high", "low", "close", "volume"]
    assert (days.index.hour == base).all()
    first = compat.get_ohlcv_from("KRW-BTC", "minute60", days.index[0], days.index[1])
    assert len(first) == 24
    assert days["open"].iloc[0] == first["open"].iloc[0]
    assert days["high"].iloc[0] == first["high"].max()
    if base == 9:
        own = compat.get_ohlcv("KRW-BTC", "day", count=len(days))[list(days.columns)]
        pd.testing.assert_frame_equal(days, own, check_freq=False)


def test_tickers_equal_pyupbit(opened: Backbone, real: Any) -> None:
    """Lists of codes, with names, with details, by currency, in the venue's order."""
    assert compat.get_tickers() == real.get_tickers()
    for fiat in ("KRW", "BTC", "USDT", "EUR"):
        assert compat.get_tickers(fiat) == real.get_tickers(fiat)
    assert compat.get_tickers("KRW", verbose=True) == real.get_tickers("KRW", verbose=True)
    details = [dict(row) for row in compat.get_tickers("KRW", is_details=True)]
    assert {row.pop("market_warning") for row in details} <= {"NONE", "CAUTION"}  # which the venue no longer sends
    assert details == real.get_tickers("KRW", is_details=True)


@pytest.mark.parametrize("ticker", ["KRW-BTC", ["KRW-BTC"], ["KRW-ETH", "KRW-BTC", "BTC-ETH"]])
def test_current_price_equals_pyupbit(opened: Backbone, real: Any, ticker: Any) -> None:
    """A price for one, a dict for several, the venue's rows with `verbose`."""
    assert compat.get_current_price(ticker) == real.get_current_price(ticker)
    assert compat.get_current_price(ticker, verbose=True) == real.get_current_price(ticker, verbose=True)


@pytest.mark.parametrize("ticker", ["KRW-BTC", ["KRW-BTC"], ["KRW-ETH", "KRW-BTC", "BTC-ETH"]])
def test_orderbook_equals_pyupbit(opened: Backbone, real: Any, ticker: Any) -> None:
    """A book for one, a list for several, zero padding and all."""
    assert compat.get_orderbook(ticker) == real.get_orderbook(ticker)


def test_current_price_of_every_market_equals_pyupbit(opened: Backbone, real: Any) -> None:
    """More markets than pyupbit asks for at a time."""
    codes = real.get_tickers()
    assert len(codes) > 200
    assert compat.get_current_price(codes) == real.get_current_price(codes)


def test_limit_info_has_pyupbits_form(opened: Backbone, real: Any) -> None:
    """With `limit_info` each answer is a pair: the answer, and what the venue says of the rate."""
    for call, arguments in (("get_tickers", ("KRW",)), ("get_current_price", ("KRW-BTC",)), ("get_orderbook", ())):
        ours, limits = getattr(compat, call)(*arguments, limit_info=True)
        theirs, expected = getattr(real, call)(*arguments, limit_info=True)
        assert ours == theirs
        assert limits["group"] == expected["group"]
        assert limits.keys() == expected.keys()
        assert isinstance(limits["sec"], int)


def test_second_call_is_served_from_the_store(opened: Backbone, exchange: SimulatorServer) -> None:
    """Candles that are closed are asked for once; only the forming one is asked for again."""
    first = compat.get_ohlcv("KRW-BTC", "minute60", count=300)
    exchange.reset_log()
    again = compat.get_ohlcv("KRW-BTC", "minute60", count=300)
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert exchange.counts()["candles"] == {200: 1}


@pytest.mark.parametrize(("call", "words", "requests"), REQUESTS, ids=lambda value: str(value))
def test_first_call_asks_no_more_than_pyupbit(
    opened: Backbone,
    exchange: SimulatorServer,
    ignore_differences: None,
    call: str,
    words: Any,
    requests: dict[str, int],
) -> None:
    """A page has the candles and the forming one; prices and books do not wait for the market list."""
    getattr(compat, call)(*words)
    found = {group: sum(counts.values()) for group, counts in exchange.counts().items()}
    assert found == requests


def test_every_scale_asks_one_page(opened: Backbone, exchange: SimulatorServer) -> None:
    """Also where longer candles can be folded from minutes that are held: they end before the forming one."""
    for interval in ("minute1", "minute5", "minute60", "minute240", "day", "week", "month"):
        compat.get_ohlcv("KRW-BTC", interval, 50)
    assert exchange.counts()["candles"] == {200: 7}


def test_count_is_a_count_where_nothing_forms(opened: Backbone, exchange: SimulatorServer, tmp_path: Path) -> None:
    """A market that has not traded in this minute: as many rows as asked for, and no second page for them."""
    thin = next(
        code
        for code in compat.get_tickers("BTC")
        if not opened.candles(code, "1m", count=1, include_forming=True)["forming"].any()
    )
    with Backbone(data_dir=tmp_path / "other", rest_url=exchange.rest_url, ws_url=exchange.ws_url) as other:
        initialize(other)
        exchange.reset_log()
        assert len(compat.get_ohlcv(thin, "minute1", 120)) == 120
        assert exchange.counts()["candles"] == {200: 1}


def test_differences_are_said_once(opened: Backbone, unsaid: None, recwarn: pytest.WarningsRecorder) -> None:
    """Each difference from pyupbit is a warning at the caller's line, the first time only."""
    for _ in range(2):
        compat.get_ohlcv("KRW-BTC", "minute60", count=2, to="2025-08-01")
        compat.get_ohlcv_from("KRW-BTC", "minute60", "2025-08-01", "2025-08-01 03:00")
        compat.get_daily_ohlcv_from_base("KRW-BTC", 9)
    said = [w for w in recwarn if issubclass(w.category, DifferenceWarning)]
    assert [w.filename for w in said] == [__file__] * 3
    assert ["`to`" in str(said[0].message), "get_ohlcv_from" in str(said[1].message)] == [True, True]


def test_plain_call_says_nothing(opened: Backbone, unsaid: None) -> None:
    """Where both do the same, no warning is given."""
    compat.get_ohlcv("KRW-BTC", count=2)
    compat.get_current_price("KRW-BTC")
    compat.get_tickers()


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: compat.get_ohlcv("KRW-BTC", count="7"), "count"),
        (lambda: compat.get_ohlcv("KRW-BTC", count=True), "count"),
        (lambda: compat.get_ohlcv("KRW-BTC", to="yesterday-ish"), "to"),
        (lambda: compat.get_ohlcv("KRW-BTC", to=3.5), "to"),
        (lambda: compat.get_ohlcv(["KRW-BTC"]), "market"),
        (lambda: compat.get_ohlcv("KRW-BTC", interval=5), "interval"),
        (lambda: compat.get_daily_ohlcv_from_base("KRW-BTC", base="9"), "base"),
        (lambda: compat.get_daily_ohlcv_from_base("KRW-BTC", base=float("nan")), "base"),
        (lambda: compat.get_current_price([]), "market"),
    ],
)
def test_wrong_arguments_are_refused(opened: Backbone, ignore_differences: None, call: Any, argument: str) -> None:
    """What pyupbit answers with None is an `InputError` that names the argument."""
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.argument == argument


def test_what_is_no_market_data_needs_pyupbit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pyupbit is not installed the error says what to install, also from a `from … import`."""
    monkeypatch.setitem(sys.modules, "pyupbit", None)
    with pytest.raises(ImportError, match="pip install pyupbit"):
        compat.Upbit("access", "secret")
    with pytest.raises(ImportError, match="pip install pyupbit"):
        from backbone.compat.pyupbit import get_tick_size  # noqa: F401
    with pytest.raises(ImportError, match="errors is not market data but pyupbit's own: pip install pyupbit"):
        from backbone.compat.pyupbit import errors  # noqa: F401
    with pytest.raises(ImportError, match="pip install pyupbit"):
        from backbone.compat.pyupbit import UnderMinTotalBid  # noqa: F401
    with pytest.raises(AttributeError, match="pip install pyupbit"):
        compat.get_nonsense()
    assert not hasattr(compat, "get_nonsense")


def test_name_that_neither_has_is_an_attribute_error(real: Any) -> None:
    """With both modules named."""
    with pytest.raises(AttributeError, match="nor pyupbit has"):
        compat.get_nonsense()


def test_details_have_the_warning_that_programs_read(opened: Backbone) -> None:
    """`market_warning` is in each row, as pyupbit's own test wants it, beside the venue's newer fields."""
    rows = compat.get_tickers(fiat="KRW", is_details=True)
    assert {row["market_warning"] for row in rows} <= {"NONE", "CAUTION"}
    assert all({"market", "korean_name", "english_name", "market_event"} <= row.keys() for row in rows)
    warned = {row["market"] for row in rows if row["market_warning"] == "CAUTION"}
    assert warned == {row["market"] for row in rows if row["market_event"]["warning"]}
