"""The venue's dialect: what is asked, what is accepted, and that both channels give the same records."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backbone.errors import InputError, PayloadError
from backbone.model import CANDLE_COLUMNS, CANDLE_SCHEMA, Level, OrderBook, Ticker, Trade
from backbone.routing import wire
from backbone.timeframe import TIMEFRAMES, Timeframe
from tests.recordings import frames_of, rows_of

MINUTE = TIMEFRAMES["1m"]
T0 = 1_582_197_540_000_000  # 2020-02-20T11:19:00Z
TO = T0 + MINUTE.step_us


def row(time: str = "2020-02-20T11:19:00", **changes: Any) -> dict[str, Any]:
    return {
        "market": "KRW-BTC",
        "candle_date_time_utc": time,
        "candle_date_time_kst": "2020-02-20T20:19:00",
        "opening_price": 11509000.0,
        "high_price": 11511000.0,
        "low_price": 11489000.0,
        "trade_price": 11498000.0,
        "timestamp": 1582197598691,
        "candle_acc_trade_price": 30279009.54681,
        "candle_acc_trade_volume": 2.63267824,
        "unit": 1,
    } | changes


def body(*rows: Any) -> bytes:
    return json.dumps(rows).encode()


def candle_page(
    data: bytes, to_us: int | None = TO, count: int = 200, timeframe: Timeframe = MINUTE
) -> wire.CandlePage:
    page = wire.candles_ask("KRW-BTC", timeframe, to_us, count).parse(data)
    assert isinstance(page, wire.CandlePage)
    return page


# ------------------------------------------------------------------------------------ candles: the question


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("1s", "/candles/seconds"),
        ("1m", "/candles/minutes/1"),
        ("3m", "/candles/minutes/3"),
        ("5m", "/candles/minutes/5"),
        ("10m", "/candles/minutes/10"),
        ("15m", "/candles/minutes/15"),
        ("30m", "/candles/minutes/30"),
        ("1h", "/candles/minutes/60"),
        ("4h", "/candles/minutes/240"),
        ("1d", "/candles/days"),
        ("1w", "/candles/weeks"),
        ("1M", "/candles/months"),
        ("1y", "/candles/years"),
    ],
)
def test_candles_ask_of_each_timeframe_goes_to_its_path(name: str, path: str) -> None:
    """Every timeframe has the path that the venue gives it, and all share one rate group."""
    ask = wire.candles_ask("KRW-BTC", TIMEFRAMES[name], None, 200)
    assert (ask.path, ask.group, ask.market) == (path, "candles", "KRW-BTC")
    assert ask.query == (("market", "KRW-BTC"), ("count", "200"))


def test_candles_ask_bound_is_sent_in_whole_seconds_of_utc_rounded_up() -> None:
    """A bound inside a second is sent as the next one, so that no candle before it is left out."""
    for to_us in (TO, TO - 1, TO - 999_999):
        assert wire.candles_ask("KRW-BTC", MINUTE, to_us, 1).query[-1] == ("to", "2020-02-20T11:20:00Z")
    assert wire.candles_ask("KRW-BTC", MINUTE, TO + 1, 1).query[-1] == ("to", "2020-02-20T11:20:01Z")


def test_candles_ask_bound_far_away_stays_a_time_that_four_digits_can_name() -> None:
    """A bound beyond the year 9999 or before 1000 is still well formed."""
    assert wire.candles_ask("KRW-BTC", MINUTE, 1 << 62, 1).query[-1] == ("to", "9999-12-31T23:59:59Z")
    early = wire.candles_ask("KRW-BTC", MINUTE, -50_000_000_000 * 1_000_000, 1).query[-1]
    assert early == ("to", "0385-07-25T07:06:40Z")


def test_asks_for_the_same_are_equal_and_hash_alike() -> None:
    """Two equal questions are one key, which is what lets requests in flight be shared."""
    one, two = (wire.candles_ask("KRW-BTC", MINUTE, TO, 200) for _ in range(2))
    assert one == two
    assert len({one, two, wire.candles_ask("KRW-BTC", MINUTE, TO, 199)}) == 2


@pytest.mark.parametrize("count", [0, -1, 201])
def test_candles_ask_count_out_of_range_is_an_input_error(count: int) -> None:
    """A count that the venue would cut without an error is refused before it is sent."""
    with pytest.raises(InputError, match="count"):
        wire.candles_ask("KRW-BTC", MINUTE, None, count)


# -------------------------------------------------------------------------------------- candles: the answer


def test_candle_page_is_ascending_in_the_candle_schema() -> None:
    """The venue sends newest first; the table is oldest first, typed and without nulls."""
    page = candle_page(body(row(), row("2020-02-20T11:17:00", timestamp=1582197479999)))
    assert page.table.schema == CANDLE_SCHEMA
    assert page.table.column("time").cast(pa.int64()).to_pylist() == [T0 - 120_000_000, T0]
    assert page.table.to_pylist()[1] == {
        "time": page.table.to_pylist()[1]["time"],
        "open": 11509000.0,
        "high": 11511000.0,
        "low": 11489000.0,
        "close": 11498000.0,
        "volume": 2.63267824,
        "value": 30279009.54681,
    }
    assert (page.rows, page.oldest_us) == (2, T0 - 120_000_000)
    assert page.stamps_us.tolist() == [1582197479999000, 1582197598691000]
    page.table.validate(full=True)


def test_candle_page_empty_is_no_rows_not_an_error() -> None:
    """The venue's empty list means that there is nothing before the bound."""
    page = candle_page(b"[]")
    assert (page.rows, page.oldest_us, page.table.num_rows) == (0, None, 0)
    assert page.table.schema == CANDLE_SCHEMA


def test_candle_page_unknown_fields_are_ignored() -> None:
    """A field that the venue adds tomorrow breaks nothing today."""
    assert candle_page(body(row(settlement={"a": [1, None]}, note="x"))).rows == 1


@pytest.mark.parametrize(
    ("why", "rows"),
    [
        ("another market", [row(market="KRW-ETH")]),
        ("off the grid", [row("2020-02-20T11:19:30")]),
        ("ascending", [row("2020-02-20T11:18:00"), row()]),
        ("twice", [row(), row()]),
        ("at the bound", [row("2020-02-20T11:20:00")]),
        ("after the bound", [row("2020-02-20T11:21:00"), row()]),
        ("low above open", [row(low_price=11510000.0)]),
        ("close above high", [row(trade_price=11512000.0)]),
        ("open above high", [row(opening_price=11512000.0)]),
        ("high below low", [row(high_price=1.0)]),
        ("low zero", [row(low_price=0)]),
        ("low negative", [row(low_price=-1.0)]),
        ("volume negative", [row(candle_acc_trade_volume=-0.1)]),
        ("value negative", [row(candle_acc_trade_price=-0.1)]),
        ("price null", [row(trade_price=None)]),
        ("price text", [row(trade_price="11498000.0")]),
        ("price bool", [row(trade_price=True)]),
        ("stamp fractional", [row(timestamp=1.5)]),
        ("stamp negative", [row(timestamp=-1)]),
        ("stamp huge", [row(timestamp=10**19)]),
        ("field missing", [{k: v for k, v in row().items() if k != "low_price"}]),
        ("time with zone", [row("2020-02-20T11:19:00Z")]),
        ("time with a short zone", [row("2020-02-20T11:19+01")]),
        ("time with a space", [row("2020-02-20 11:19:00")]),
        ("time impossible", [row("2020-02-30T11:19:00")]),
        ("time impossible clock", [row("2020-02-20T24:19:00")]),
        ("time not ascii", [row("2020-02-20T11:1９:00")]),
        ("time word", [row("NaT")]),
        ("row is a list", [[1]]),
        ("row is null", [None]),
    ],
)
def test_invalid_candle_page_is_a_payload_error(why: str, rows: list[Any]) -> None:
    """One wrong row, and nothing of the page is accepted."""
    with pytest.raises(PayloadError) as caught:
        candle_page(body(*rows))
    assert caught.value.market == "KRW-BTC"
    assert caught.value.sample == body(*rows).decode()[:200]
    assert "1m candles of KRW-BTC" in str(caught.value)


def test_candle_page_longer_than_asked_is_a_payload_error() -> None:
    """More rows than asked for is an answer to another question."""
    with pytest.raises(PayloadError, match="2 rows where 1"):
        candle_page(body(row(), row("2020-02-20T11:18:00")), count=1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"{}",
        b"[",
        body(row())[:-30],
        b"<html>busy</html>",
        b"\xff\xfe",
        body(row()).replace(b"11498000.0", b"NaN"),
        body(row()).replace(b"11498000.0", b"1e999"),
        body(row()).replace(b"11498000.0", b"+1"),
        body(row(x=1)).replace(b'"x": 1', b'"x": ' + b"[" * 100_000),
        body(row(market="KRW-BTC")).replace(b"KRW-BTC", b"KRW-\xff\xff"),
    ],
)
def test_candle_page_that_is_no_page_is_a_payload_error(data: bytes) -> None:
    """Cut, foreign and hostile bodies all end in the one error."""
    with pytest.raises(PayloadError):
        candle_page(data)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("1w", "2026-08-31T00:00:00", "2026-08-30T00:00:00"),
        ("1M", "2026-08-01T00:00:00", "2026-08-31T00:00:00"),
        ("1y", "2026-01-01T00:00:00", "2026-08-01T00:00:00"),
        ("4h", "2026-08-31T20:00:00", "2026-08-31T15:00:00"),
        ("1d", "2026-08-31T00:00:00", "2026-08-31T09:00:00"),
    ],
)
def test_candle_page_calendar_opens_are_checked_in_utc(name: str, good: str, bad: str) -> None:
    """A week opens on Monday, a month on the 1st, a day at midnight UTC; Korean labels do not pass."""
    later = 1_790_000_000_000
    assert candle_page(body(row(good, timestamp=later)), None, timeframe=TIMEFRAMES[name]).rows == 1
    with pytest.raises(PayloadError):
        candle_page(body(row(bad, timestamp=later)), None, timeframe=TIMEFRAMES[name])


def test_candle_page_without_a_bound_has_no_row_of_the_future() -> None:
    """Where the newest were asked for, a row that opens after its own last trade is none."""
    early = 1582197539999  # before its minute
    assert candle_page(body(row(timestamp=early))).rows == 1
    with pytest.raises(PayloadError, match="after its last trade"):
        candle_page(body(row(timestamp=early)), None)


digits = st.from_regex(r"(0|[1-9][0-9]{0,18})", fullmatch=True)
fraction = st.from_regex(r"(\.[0-9]{1,24})?", fullmatch=True)
exponent = st.from_regex(r"([eE][+-]?[0-9]{1,2})?", fullmatch=True)


@given(st.tuples(digits, fraction, exponent).map("".join))
@example("1.16539E8")
@example("5.485e-05")
@example("91234000.00000000")
@example("19699800600.2538100000000000")
@example("0E-8")
@example("116233000")
@example("9007199254740993")
@example("2.2250738585072011e-308")
def test_numbers_in_every_spelling_become_the_nearest_float(spelling: str) -> None:
    """Whatever form a number takes, the float64 is the one nearest to its decimal value."""
    data = body(row(candle_acc_trade_volume="@")).replace(b'"@"', spelling.encode())
    got = candle_page(data).table.column("volume")[0].as_py()
    assert got == float(Decimal(spelling))


CANDLE_FILES = {
    "smtm_upbit_1m_20200220_170000-20200220_202000.json": ("1m", 200),
    "smtm_upbit_1m_20200220_202000-20200220_210000.json": ("1m", 40),
    "smtm_upbit_3m_20200220_000000-20200220_100000.json": ("3m", 200),
    "smtm_upbit_3m_20200220_100000-20200220_120000.json": ("3m", 40),
    "smtm_upbit_3m_20200220_170000-20200220_200000.json": ("3m", 60),
    "ericsj1998_candles_minutes5_KRW-BTC_2026-08-03.json": ("5m", 4),
    "ericsj1998_candles_days_KRW-BTC_2026-08-03.json": ("1d", 2),
    "maxt_candles_years_KRW-BTC_2026-08.json": ("1y", 1),
}
WIRE_COLUMNS = (
    "opening_price",
    "high_price",
    "low_price",
    "trade_price",
    "candle_acc_trade_volume",
    "candle_acc_trade_price",
)


@pytest.mark.parametrize("name", CANDLE_FILES)
def test_recorded_candles_come_out_as_the_nearest_floats(name: str, recordings: Path) -> None:
    """Every recorded row is in the table, at its time, to the last digit."""
    timeframe, rows = CANDLE_FILES[name]
    path = recordings / "raw/rest" / name
    page = candle_page(path.read_bytes(), None, timeframe=TIMEFRAMES[timeframe])
    assert page.rows == rows
    recorded = rows_of(path)[::-1]
    times = [f"{t:%Y-%m-%dT%H:%M:%S}" for t in page.table.column("time").to_pylist()]
    assert times == [each["candle_date_time_utc"] for each in recorded]
    for column, spelling in zip(CANDLE_COLUMNS, WIRE_COLUMNS, strict=True):
        assert page.table.column(column).to_pylist() == [float(Decimal(each[spelling])) for each in recorded]
    assert page.stamps_us.tolist() == [int(each["timestamp"]) * 1000 for each in recorded]


def test_recorded_page_asked_as_if_of_another_bound_is_refused(recordings: Path) -> None:
    """A page of later candles than asked for does not pass as the answer."""
    data = (recordings / "raw/rest/smtm_upbit_1m_20200220_170000-20200220_202000.json").read_bytes()
    assert candle_page(data, TO).rows == 200
    with pytest.raises(PayloadError, match="before the time"):
        candle_page(data, TO - MINUTE.step_us)


# -------------------------------------------------------------------------------------------------- markets


def test_markets_of_korea_carry_warning_and_raised_cautions() -> None:
    """A designated market is a warning; the names of its raised flags are kept, the others are not."""
    event = {"warning": True, "caution": {"PRICE_FLUCTUATIONS": False, "GLOBAL_PRICE_DIFFERENCES": True}}
    data = body({"market": "KRW-A", "korean_name": "가", "english_name": "A", "market_event": event})
    (market,) = wire.markets_ask().parse(data)
    assert (market.market, market.korean_name, market.english_name) == ("KRW-A", "가", "A")
    assert (market.warning, market.cautions) == (True, ("GLOBAL_PRICE_DIFFERENCES",))


def test_markets_recorded_in_all_shapes_parse(recordings: Path) -> None:
    """The short shape of 2021, the detailed one of 2025 and the regional one are one record."""
    parse = wire.markets_ask().parse
    rest = recordings / "raw/rest"
    assert len(parse((rest / "market_all_2021-04-17.json").read_bytes())) == 294
    detailed = parse((rest / "market_all_details_2025-07.json").read_bytes())
    assert (len(detailed), sum(market.warning for market in detailed)) == (536, 5)
    four = parse((rest / "maxt_market_all_details_4-markets_2026-07-30.json").read_bytes())
    assert {market.market: (market.warning, bool(market.cautions)) for market in four}["KRW-ZIL"] == (
        True,
        True,
    )
    regional = parse((rest / "maxt_market_all_details_upbit-indonesia_2-markets_2026-07-30.json").read_bytes())
    assert [(m.market, m.korean_name, m.warning) for m in regional] == [
        ("BTC-ZIL", "", True),
        ("BTC-SIGN", "", False),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        body({"market": "KRWBTC", "english_name": "x"}),
        body({"market": "", "english_name": "x"}),
        body({"market": "KRW-BTC"}),
        body({"market": "KRW-../..", "english_name": "x"}),
    ],
)
def test_markets_that_are_none_are_a_payload_error(data: bytes) -> None:
    """An empty or malformed list is rejected: it would make every market unknown."""
    with pytest.raises(PayloadError):
        wire.markets_ask().parse(data)


# -------------------------------------------------------------------------------------------------- tickers

TICKER_ROW: dict[str, Any] = {
    "market": "KRW-BTC",
    "trade_date": "20260730",
    "trade_time": "074100",
    "trade_date_kst": "20260730",
    "trade_time_kst": "164100",
    "trade_timestamp": 1785397260652,
    "opening_price": 91374000.0,
    "high_price": 92119000.0,
    "low_price": 90888000.0,
    "trade_price": 91200000.0,
    "prev_closing_price": 91424000.0,
    "change": "FALL",
    "change_price": 224000.0,
    "change_rate": 0.0024501225,
    "signed_change_price": -224000.0,
    "signed_change_rate": -0.0024501225,
    "trade_volume": 0.00016456,
    "acc_trade_price": 27800806282.39862,
    "acc_trade_price_24h": 74674126733.71954,
    "acc_trade_volume": 304.11940843,
    "acc_trade_volume_24h": 814.34496604,
    "highest_52_week_price": 179869000.0,
    "highest_52_week_date": "2025-10-09",
    "lowest_52_week_price": 88770000.0,
    "lowest_52_week_date": "2026-07-01",
    "timestamp": 1785397260707,
}
TICKER = Ticker(
    "KRW-BTC",
    1785397260652000,
    91200000.0,
    91374000.0,
    92119000.0,
    90888000.0,
    91424000.0,
    -224000.0,
    -0.0024501225,
    304.11940843,
    27800806282.39862,
    814.34496604,
    74674126733.71954,
    1785397260707000,
    high_52w=179869000.0,
    low_52w=88770000.0,
    last_volume=0.00016456,
    high_52w_day="2025-10-09",
    low_52w_day="2026-07-01",
)


def test_tickers_parse_with_signed_change() -> None:
    """A falling market has a negative change, though the venue's ``change_price`` has no sign."""
    assert wire.tickers_ask(["KRW-BTC"]).parse(body(TICKER_ROW)) == (TICKER,)


def test_tickers_come_in_the_order_asked_without_double_questions() -> None:
    """Each market is asked for once and answered where it was asked."""
    ask = wire.tickers_ask(["KRW-ETH", "KRW-BTC", "KRW-ETH"])
    assert (ask.group, ask.path, ask.query) == ("ticker", "/ticker", (("markets", "KRW-ETH,KRW-BTC"),))
    recorded = ask.parse(body(TICKER_ROW, TICKER_ROW | {"market": "KRW-ETH"}))
    assert [ticker.market for ticker in recorded] == ["KRW-ETH", "KRW-BTC"]


def test_tickers_recorded_parse(recordings: Path) -> None:
    """The recorded REST tickers of 2026 parse, every number the nearest float."""
    for name in ("maxt_ticker_KRW-BTC_2026-07-30.json", "ericsj1998_ticker_KRW-BTC_2026-08-03.json"):
        path = recordings / "raw/rest" / name
        (ticker,) = wire.tickers_ask(["KRW-BTC"]).parse(path.read_bytes())
        (recorded,) = rows_of(path)
        assert ticker.price == float(Decimal(recorded["trade_price"]))
        assert ticker.value_24h == float(Decimal(recorded["acc_trade_price_24h"]))
        assert ticker.change == float(Decimal(recorded["signed_change_price"])) < 0
        assert ticker.time_us == int(recorded["trade_timestamp"]) * 1000


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [TICKER_ROW | {"market": "KRW-ETH"}],
        [TICKER_ROW, TICKER_ROW],
        [TICKER_ROW, TICKER_ROW | {"market": "KRW-ETH"}],
        [TICKER_ROW | {"trade_price": 0}],
        [TICKER_ROW | {"low_price": -1}],
        [TICKER_ROW | {"opening_price": None}],
        [TICKER_ROW | {"acc_trade_volume": -1}],
        [{k: v for k, v in TICKER_ROW.items() if k != "signed_change_rate"}],
    ],
)
def test_invalid_tickers_are_a_payload_error(rows: list[Any]) -> None:
    """One missing, foreign, doubled or impossible ticker, and nothing of the reply is accepted."""
    with pytest.raises(PayloadError):
        wire.tickers_ask(["KRW-BTC"]).parse(body(*rows))


def test_tickers_of_a_quote_are_all_its_markets_and_no_other() -> None:
    """``ticker/all`` may have any market of the quotes asked for, each once."""
    ask = wire.tickers_all_ask(["KRW", "USDT"])
    assert (ask.path, ask.query) == ("/ticker/all", (("quote_currencies", "KRW,USDT"),))
    recorded = ask.parse(body(TICKER_ROW, TICKER_ROW | {"market": "USDT-BTC"}))
    assert [ticker.market for ticker in recorded] == ["KRW-BTC", "USDT-BTC"]
    assert ask.parse(b"[]") == ()
    for rows in ([TICKER_ROW | {"market": "BTC-ETH"}], [TICKER_ROW, TICKER_ROW]):
        with pytest.raises(PayloadError):
            ask.parse(body(*rows))


@pytest.mark.parametrize("markets", [[], [""]])
def test_tickers_of_nothing_are_an_input_error(markets: list[str]) -> None:
    """A question about no market is not sent."""
    with pytest.raises(InputError, match="markets"):
        wire.tickers_ask(markets)


# ---------------------------------------------------------------------------------------------- order books

BOOK_ROW: dict[str, Any] = {
    "market": "BTC-ETH",
    "timestamp": 1790134742106,
    "total_ask_size": 2.51469375,
    "total_bid_size": 1.63815297,
    "orderbook_units": [
        {"bid_price": 116538000, "bid_size": 0.08120946, "ask_price": 116539000, "ask_size": 0.02054761},
        {"bid_price": 0, "bid_size": 0.0, "ask_price": 116542000, "ask_size": 0.0007772},
    ],
    "level": 0,
}


def units(*rows: tuple[float, float, float, float]) -> dict[str, Any]:
    names = ("ask_price", "ask_size", "bid_price", "bid_size")
    return {"orderbook_units": [dict(zip(names, each, strict=True)) for each in rows]}


def test_orderbook_padding_of_the_thin_side_is_left_out() -> None:
    """A padded level is no price: the side just ends earlier."""
    (book,) = wire.orderbooks_ask(["BTC-ETH"]).parse(body(BOOK_ROW))
    assert book == OrderBook(
        "BTC-ETH",
        1790134742106000,
        0.0,
        (Level(116539000.0, 0.02054761, 116538000.0, 0.08120946), Level(116542000.0, 0.0007772, 0.0, 0.0)),
        2.51469375,
        1.63815297,
    )
    assert book.asks == ((116539000.0, 0.02054761), (116542000.0, 0.0007772))
    assert book.bids == ((116538000.0, 0.08120946),)


def test_orderbook_without_a_level_field_is_not_grouped() -> None:
    """Regional venues have no level; neither is it asked of them."""
    ask = wire.orderbooks_ask(["BTC-ETH"])
    assert ask.query == (("markets", "BTC-ETH"),)
    (book,) = ask.parse(body({k: v for k, v in BOOK_ROW.items() if k != "level"}))
    assert book.level == 0.0


@pytest.mark.parametrize(
    ("level", "spelling"), [(10_000, "10000"), (1e8, "100000000"), (0.1, "0.1"), (1e-8, "0.00000001")]
)
def test_orderbook_level_is_sent_without_exponent(level: float, spelling: str) -> None:
    """The venue takes plain numbers."""
    ask = wire.orderbooks_ask(["KRW-BTC"], level, 5)
    assert ask.query == (("markets", "KRW-BTC"), ("count", "5"), ("level", spelling))


@pytest.mark.parametrize(
    "changes",
    [
        {"level": 10000},
        {"market": "BTC-XRP"},
        units((2.0, 1.0, 1.0, 1.0), (2.0, 1.0, 0.5, 1.0)),
        units((2.0, 1.0, 1.0, 1.0), (3.0, 1.0, 1.0, 1.0)),
        units((2.0, -1.0, 1.0, 1.0)),
        units((2.0, 1.0, -1.0, 1.0)),
        units((0.0, 1.0, 1.0, 1.0)),
        units((2.0, 1.0, 0.0, 1.0)),
        units((2.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0), (3.0, 1.0, 0.4, 1.0)),
        units((2.0, 1.0, 1.0, 1.0), (3.0, 1.0, 0.0, 0.0), (4.0, 1.0, 0.4, 1.0)),
        units(*((float(i + 40), 1.0, float(40 - i), 1.0) for i in range(31))),
        {"orderbook_units": None},
        {"timestamp": None},
    ],
)
def test_invalid_orderbook_is_a_payload_error(changes: dict[str, Any]) -> None:
    """Wrong level, order, sign, depth or market: the book is rejected."""
    with pytest.raises(PayloadError):
        wire.orderbooks_ask(["BTC-ETH"]).parse(body(BOOK_ROW | changes))


def test_orderbook_recorded_has_thirty_levels_that_add_up(recordings: Path) -> None:
    """The recorded book's sizes add up to its own totals."""
    path = recordings / "raw/rest/ericsj1998_orderbook_KRW-BTC_2026-08-06.json"
    (book,) = wire.orderbooks_ask(["KRW-BTC"]).parse(path.read_bytes())
    (recorded,) = rows_of(path)
    assert (len(book.asks), len(book.bids)) == (30, 30)
    assert sum(size for _, size in book.asks) == pytest.approx(float(recorded["total_ask_size"]))
    assert sum(size for _, size in book.bids) == pytest.approx(float(recorded["total_bid_size"]))


def test_instruments_numbers_arrive_as_text() -> None:
    """Steps and levels are strings on the wire and numbers in the record; without levels there is only 0."""
    ask = wire.instruments_ask(["KRW-BTC", "BTC-ETH"])
    assert (ask.group, ask.path) == ("orderbook", "/orderbook/instruments")
    recorded = ask.parse(
        body(
            {
                "market": "KRW-BTC",
                "quote_currency": "KRW",
                "tick_size": "1000",
                "supported_levels": ["0", "10000"],
            },
            {"market": "BTC-ETH", "quote_currency": "BTC", "tick_size": "0.00000001"},
        )
    )
    assert recorded == {
        "KRW-BTC": wire.Instrument(1000.0, (0.0, 10000.0)),
        "BTC-ETH": wire.Instrument(1e-8, (0.0,)),
    }


@pytest.mark.parametrize(
    "changes", [{"tick_size": "0"}, {"tick_size": "nan"}, {"tick_size": "x"}, {"supported_levels": ["inf"]}]
)
def test_invalid_instruments_are_a_payload_error(changes: dict[str, Any]) -> None:
    """A step that is no positive number is rejected."""
    good = {"market": "KRW-BTC", "tick_size": "1000", "supported_levels": ["0"]}
    with pytest.raises(PayloadError):
        wire.instruments_ask(["KRW-BTC"]).parse(body(good | changes))


# --------------------------------------------------------------------------------------------------- trades

TRADE_ROW: dict[str, Any] = {
    "market": "KRW-BTC",
    "trade_date_utc": "2026-07-30",
    "trade_time_utc": "07:41:00",
    "timestamp": 1785397260652,
    "trade_price": 91200000.0,
    "trade_volume": 5.485e-05,
    "prev_closing_price": 91424000.0,
    "change_price": -224000.0,
    "ask_bid": "BID",
    "sequential_id": 17853972606520001,
}


def test_trades_ask_sends_only_what_was_given() -> None:
    """Cursor, day and time are optional and sent as they are."""
    assert wire.trades_ask("KRW-BTC", 500).query == (("market", "KRW-BTC"), ("count", "500"))
    ask = wire.trades_ask("KRW-BTC", 2, cursor=17853972606520001, days_ago=7, to="07:41:00")
    assert (ask.group, ask.path) == ("crix-trades", "/trades/ticks")
    assert ask.query[2:] == (("cursor", "17853972606520001"), ("days_ago", "7"), ("to", "07:41:00"))


@pytest.mark.parametrize("wrong", [{"count": 501}, {"count": 0}, {"days_ago": 0}, {"days_ago": 8}])
def test_trades_ask_out_of_range_is_an_input_error(wrong: dict[str, Any]) -> None:
    """What the venue would refuse or cut is not sent."""
    with pytest.raises(InputError):
        wire.trades_ask("KRW-BTC", **({"count": 1} | wrong))


def test_trades_keep_their_whole_id() -> None:
    """An id above 2**53 keeps its last digit, and the taker's side is named."""
    assert wire.trades_ask("KRW-BTC", 500).parse(body(TRADE_ROW, TRADE_ROW | {"ask_bid": "ASK"})) == (
        Trade("KRW-BTC", 1785397260652000, 91200000.0, 5.485e-05, "buy", 17853972606520001, prev_close=91424000.0),
        Trade("KRW-BTC", 1785397260652000, 91200000.0, 5.485e-05, "sell", 17853972606520001, prev_close=91424000.0),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"market": "KRW-ETH"},
        {"ask_bid": "buy"},
        {"ask_bid": None},
        {"trade_price": 0},
        {"trade_volume": 0},
        {"sequential_id": 1.785e16},
        {"sequential_id": 2**63},
        {"sequential_id": -1},
        {"sequential_id": "17853972606520001"},
    ],
)
def test_invalid_trades_are_a_payload_error(changes: dict[str, Any]) -> None:
    """A trade without side, price, volume or an integer id is rejected."""
    with pytest.raises(PayloadError):
        wire.trades_ask("KRW-BTC", 500).parse(body(TRADE_ROW | changes))


def test_trades_more_than_asked_are_a_payload_error() -> None:
    """A page longer than asked for is an answer to another question."""
    with pytest.raises(PayloadError):
        wire.trades_ask("KRW-BTC", 1).parse(body(TRADE_ROW, TRADE_ROW))


def test_trades_recorded_twins_stay_two(recordings: Path) -> None:
    """Two trades equal in all but their id are two trades."""
    rest = recordings / "raw/rest"
    for path in sorted(rest.glob("maxt_trades_ticks_*.json")):
        trades = wire.trades_ask("KRW-BTC", 500).parse(path.read_bytes())
        recorded = rows_of(path)
        assert [trade.sequential_id for trade in trades] == [int(each["sequential_id"]) for each in recorded]
        assert len(set(trades)) == len(recorded)


# --------------------------------------------------------------------------------------- frames: recordings


DEFAULT_NAMES = {
    "ty": "type", "cd": "code", "tms": "timestamp", "st": "stream_type", "op": "opening_price",
    "hp": "high_price", "lp": "low_price", "tp": "trade_price", "pcp": "prev_closing_price",
    "atp": "acc_trade_price", "atp24h": "acc_trade_price_24h", "atv": "acc_trade_volume",
    "atv24h": "acc_trade_volume_24h", "c": "change", "cp": "change_price",
    "scp": "signed_change_price", "cr": "change_rate", "scr": "signed_change_rate", "ab": "ask_bid",
    "tv": "trade_volume", "ttms": "trade_timestamp", "sid": "sequential_id",
    "tas": "total_ask_size", "tbs": "total_bid_size", "obu": "orderbook_units", "lv": "level",
    "ap": "ask_price", "bp": "bid_price", "as": "ask_size", "bs": "bid_size",
    "cdttmu": "candle_date_time_utc", "catv": "candle_acc_trade_volume",
    "catp": "candle_acc_trade_price", "ms": "market_state", "aav": "acc_ask_volume",
    "abv": "acc_bid_volume", "h52wp": "highest_52_week_price", "h52wdt": "highest_52_week_date",
    "l52wp": "lowest_52_week_price", "l52wdt": "lowest_52_week_date", "its": "is_trading_suspended",
    "dd": "delisting_date", "mw": "market_warning", "bap": "best_ask_price", "bas": "best_ask_size",
    "bbp": "best_bid_price", "bbs": "best_bid_size",
}  # fmt: skip
"""The venue's field table: what a field of the SIMPLE format, which most recordings have, is called in DEFAULT."""


def in_default(frame: bytes) -> bytes:
    """A recorded frame of SIMPLE under DEFAULT's names, each value as it was spelled."""
    return re.sub(rb'"(\w+)":', lambda m: b'"%b":' % DEFAULT_NAMES.get(m[1].decode(), m[1].decode()).encode(), frame)


def test_frames_recorded_in_simple_all_parse_to_the_last_digit(recordings: Path) -> None:
    """All 449 frames of 2021 come out as the nearest floats, ids whole, market by market."""
    kinds = {"trade": 0, "orderbook": 0}
    for frame in frames_of(recordings / "raw/ws/cryptofeed_SIMPLE_2021-04-17.jsonl"):
        recorded = json.loads(frame, parse_float=Decimal)
        record, is_snapshot = wire.parse_frame(in_default(frame))
        kinds[recorded["ty"]] += 1
        assert not is_snapshot
        if isinstance(record, Trade):
            assert (record.market, record.sequential_id) == (recorded["cd"], recorded["sid"])
            assert (record.price, record.volume) == (float(recorded["tp"]), float(recorded["tv"]))
            assert record.side == {"BID": "buy", "ASK": "sell"}[recorded["ab"]]
            assert record.time_us == recorded["ttms"] * 1000
        else:
            assert isinstance(record, OrderBook)
            assert record.asks == tuple((float(u["ap"]), float(u["as"])) for u in recorded["obu"] if u["ap"])
            assert record.bids == tuple((float(u["bp"]), float(u["bs"])) for u in recorded["obu"] if u["bp"])
    assert kinds == {"trade": 304, "orderbook": 145}


def test_frames_recorded_in_default_all_parse(recordings: Path) -> None:
    """All 456 ticker frames of 2025 parse, signed and to the last digit."""
    markets = set()
    for frame in frames_of(recordings / "raw/ws/sml1323_ticker_DEFAULT_2025-07-14.jsonl"):
        recorded = json.loads(frame, parse_float=Decimal)
        record, _ = wire.parse_frame(frame)
        assert isinstance(record, Ticker)
        assert record.price == float(recorded["trade_price"])
        assert record.change == float(recorded["signed_change_price"])
        assert record.value_24h == float(recorded["acc_trade_price_24h"])
        markets.add(record.market)
    assert len(markets) == 124


def test_frames_recorded_singly_parse(recordings: Path) -> None:
    """Exponent prices, 0E-8, 17-digit ids, a status and three errors: each is what it says."""
    frames = list(frames_of(recordings / "raw/ws/single-frames_DEFAULT-and-SIMPLE_2023_2026.jsonl"))
    events = [wire.parse_frame(in_default(frame)) for frame in frames]
    assert len(events) == 14
    kinds = [type(event.record).__name__ for event in events]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "Ticker": 3,
        "Trade": 3,
        "OrderBook": 4,
        "Status": 1,
        "StreamError": 3,
    }
    names = [event.record.name for event in events if isinstance(event.record, wire.StreamError)]
    assert sorted(names) == ["INVALID_PARAM", "NO_TICKET", "WRONG_FORMAT"]
    assert sum(event.is_snapshot for event in events) == 7
    books = [event.record for event in events if isinstance(event.record, OrderBook)]
    assert books[0].asks[0] == (116539000.0, 0.02054761)
    flat = [event.record for event in events if isinstance(event.record, Ticker)][-1]
    assert (flat.change, flat.change_rate) == (0.0, 0.0)


def test_frames_recorded_of_tickers_in_simple_parse(recordings: Path) -> None:
    """The tickers of 2021 parse; they lack fields that came later."""
    frames = list(frames_of(recordings / "raw/ws/ghd9201_ticker_SIMPLE_2021-04-28.jsonl"))
    assert [type(wire.parse_frame(in_default(frame)).record) for frame in frames] == [Ticker] * 6


# -------------------------------------------------------------------------------------- frames: the unifier


def frame_of(kind: str, rest_row: dict[str, Any], stream: str = "REALTIME", **changes: Any) -> dict[str, Any]:
    """The socket's DEFAULT frame of the instant that a REST row has."""
    rest = {key: value for key, value in rest_row.items() if key != "market"}
    return {"type": kind, "code": rest_row["market"], **rest, "stream_type": stream, **changes}


SOCKET_ALONE: dict[str, dict[str, Any]] = {
    "ticker": {
        "ask_bid": "ASK",
        "acc_ask_volume": 200.0,
        "acc_bid_volume": 104.11940843,
        "market_state": "ACTIVE",
        "is_trading_suspended": False,
        "delisting_date": {"year": 2026, "month": 8, "day": 3},
        "market_warning": "CAUTION",
    },
    "trade": {
        "timestamp": 1785397260700,
        "best_ask_price": 91201000.0,
        "best_ask_size": 0.5,
        "best_bid_price": 91200000.0,
        "best_bid_size": 0.25,
    },
    "orderbook": {},
}
"""What a frame says that a REST row of the same instant does not, by kind."""


def differing(one: Any, other: Any) -> list[str]:
    """The fields of two records that both know and in which they differ."""
    assert type(one) is type(other)
    values = [(name, getattr(one, name), getattr(other, name)) for name in one.__struct_fields__]
    return [name for name, first, second in values if None not in (first, second) and first != second]


PAIRS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ticker": (
        wire.tickers_ask(["KRW-BTC"]).parse(body(TICKER_ROW))[0],
        frame_of("ticker", TICKER_ROW, **SOCKET_ALONE["ticker"]),
    ),
    "trade": (
        wire.trades_ask("KRW-BTC", 1).parse(body(TRADE_ROW))[0],
        # the socket's own timestamp is the time of sending, and its change has no sign
        frame_of("trade", TRADE_ROW, trade_timestamp=1785397260652, change_price=224000.0, **SOCKET_ALONE["trade"]),
    ),
    "orderbook": (
        wire.orderbooks_ask(["BTC-ETH"]).parse(body(BOOK_ROW))[0],
        frame_of("orderbook", BOOK_ROW),
    ),
}


def test_frame_with_keys_in_any_order_and_spaces_parses() -> None:
    """The type need not come first."""
    frame = PAIRS["ticker"][1]
    turned = dict(reversed(frame.items()))
    expected = wire.parse_frame(json.dumps(frame, separators=(",", ":")).encode())
    assert wire.parse_frame(json.dumps(turned, indent=1).encode()) == expected


def test_frame_says_whether_it_is_a_snapshot() -> None:
    """The first frame of a subscription is a state, not news."""
    frame = frame_of("ticker", TICKER_ROW, "SNAPSHOT")
    assert wire.parse_frame(json.dumps(frame).encode()).is_snapshot


CANDLE_FRAME: dict[str, Any] = {
    "type": "candle.1m",
    "code": "KRW-BTC",
    "candle_date_time_utc": "2026-07-30T07:46:00",
    "candle_date_time_kst": "2026-07-30T16:46:00",
    "opening_price": 91157000.0,
    "high_price": 91157000.0,
    "low_price": 91133000.0,
    "trade_price": 91157000.0,
    "candle_acc_trade_volume": 0.8004467,
    "candle_acc_trade_price": 72957159.34596,
    "timestamp": 1785397618309,
    "stream_type": "REALTIME",
}


@pytest.mark.parametrize(
    ("data", "record"),
    [
        (b'{"status":"UP"}', wire.Status("UP")),
        (b'{"method":"LIST_SUBSCRIPTIONS","result":[],"ticket":"t"}', wire.Status("LIST_SUBSCRIPTIONS")),
        (b'{"error":{"message":"m","name":"NO_TYPE"}}', wire.StreamError("NO_TYPE", "m")),
        (b'{"error":{}}', wire.StreamError("", "")),
    ],
)
def test_frames_about_the_connection_are_distinguished(data: bytes, record: Any) -> None:
    """Status, answers and errors are records of their own."""
    assert wire.parse_frame(data) == (record, False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PONG",
        b"null",
        b"7",
        b"{}",
        b'{"type":"ticker"}',
        b'{"type":"trade","code":1}',
        b"[]",
        b"[7]",
        b'[{"type":"x"}]',
        b"\xff",
    ],
)
def test_frames_that_are_garbage_are_a_payload_error(data: bytes) -> None:
    """What is no frame of the venue is an error with a sample, never a record."""
    with pytest.raises(PayloadError) as caught:
        wire.parse_frame(data)
    assert caught.value.sample == data.decode("utf-8", "replace")


# -------------------------------------------------------------------------------------------------- fuzzing

ASKS = [
    wire.candles_ask("KRW-BTC", MINUTE, TO, 200),
    wire.markets_ask(),
    wire.tickers_ask(["KRW-BTC"]),
    wire.tickers_all_ask(["KRW"]),
    wire.orderbooks_ask(["BTC-ETH"]),
    wire.instruments_ask(["KRW-BTC"]),
    wire.trades_ask("KRW-BTC", 500),
]
SEEDS = [
    body(row()),
    body(TICKER_ROW),
    body(BOOK_ROW),
    body(TRADE_ROW),
    json.dumps(CANDLE_FRAME).encode(),
    json.dumps(PAIRS["ticker"][1]).encode(),
    json.dumps(PAIRS["trade"][1]).encode(),
    json.dumps(PAIRS["orderbook"][1]).encode(),
    b'{"error":{"name":"NO_TYPE","message":"m"}}',
]


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A true body with a part replaced by something else."""
    seed = draw(st.sampled_from(SEEDS))
    start = draw(st.integers(0, len(seed)))
    end = draw(st.integers(start, min(len(seed), start + 40)))
    word = st.sampled_from([b"", b"null", b"-1", b"1e999", b'"', b"[", b"}", b"NaN", b"\xff", b"9" * 30, b"{}"])
    return seed[:start] + draw(word | st.binary(max_size=8)) + seed[end:]


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*DEFAULT_NAMES.values(), "market", "error", "status", "method"]), inner, max_size=5
        )
    ),
    max_leaves=12,
).map(lambda content: json.dumps(content).encode())


@settings(max_examples=300)
@given(st.binary(max_size=64) | mangled() | json_like)
def test_anything_is_a_record_or_a_payload_error(data: bytes) -> None:
    """No bytes make a parser raise anything else than `PayloadError`."""
    samples = []
    for parse in [wire.parse_frame, *(ask.parse for ask in ASKS)]:
        try:
            parse(data)
        except PayloadError as error:
            samples.append(error.sample)
    assert all(len(sample) <= 200 for sample in samples)


# ---------------------------------------------------------------------------------------------- subscribing


def test_subscribe_frame_is_one_array_with_ticket_types_and_format() -> None:
    """The frame is what the venue's documentation shows."""
    frame = wire.subscribe_frame("t-1", {"ticker": ["KRW-BTC", "KRW-ETH"], "candle.1h": ["KRW-BTC"]})
    assert json.loads(frame) == [
        {"ticket": "t-1"},
        {"type": "ticker", "codes": ["KRW-BTC", "KRW-ETH"]},
        {"type": "candle.60m", "codes": ["KRW-BTC"]},
        {"format": "DEFAULT"},
    ]


def test_subscribe_frame_says_the_depth_and_the_grouping_of_books() -> None:
    """The code's suffix is the depth, the part's level the grouping, a whole number where it is one."""
    frame = wire.subscribe_frame("t", {"orderbook@1e+08": ["KRW-BTC.5"], "orderbook@0.1": ["KRW-XRP"]})
    assert json.loads(frame)[1:3] == [
        {"type": "orderbook", "codes": ["KRW-BTC.5"], "level": 100_000_000},
        {"type": "orderbook", "codes": ["KRW-XRP"], "level": 0.1},
    ]
    assert b'"level":100000000}' in frame


@pytest.mark.parametrize("level", [0.0, 1e-8, 0.1, 1.0, 1000.0, 1e8])
def test_grouped_books_are_named_by_their_level(level: float) -> None:
    """The name says the grouping, and a book is known by its own."""
    assert wire.channel_of(wire.grouped(level)) == ("orderbook", level)
    event = wire.parse_frame(json.dumps(frame_of("orderbook", BOOK_ROW | {"level": level})).encode())
    assert wire.kind_of(event.record) == wire.grouped(level)


def test_subscribe_frame_of_the_whole_venue_stays_small() -> None:
    """855 codes fit a frame of the size that was seen to be served."""
    codes = [f"KRW-{i:05d}" for i in range(855)]
    assert len(wire.subscribe_frame("t", {"ticker": codes})) < 12_000


@pytest.mark.parametrize(
    "wrong", [{"nope": ["KRW-BTC"]}, {"candle.1d": ["KRW-BTC"]}, {"ticker": []}, {"ticker": [""]}, {}]
)
def test_subscribe_frame_of_nothing_or_the_unknown_is_an_input_error(wrong: dict[str, list[str]]) -> None:
    """Kinds that the venue lacks and empty lists are refused before anything is sent."""
    with pytest.raises(InputError):
        wire.subscribe_frame("t", wrong)


def test_kinds_are_accepted_in_the_spelling_of_the_package() -> None:
    """``candle.1h`` and ``candle.60m`` are one kind."""
    assert [wire.parse_kind(kind) for kind in ("candle.1h", "candle.240m", "candle.4h", " trade ")] == [
        "candle.60m",
        "candle.240m",
        "candle.240m",
        "trade",
    ]
    for wrong in ("candle", "candle.60", "tickers", "", None, 7):
        with pytest.raises(InputError, match="kinds"):
            wire.parse_kind(wrong)


def test_records_survive_a_round_trip_through_json() -> None:
    """Records are plain data: they encode and decode to themselves."""
    for record, _ in PAIRS.values():
        assert msgspec.json.decode(msgspec.json.encode(record), type=type(record)) == record


def test_candle_page_arrays_are_owned_and_typed() -> None:
    """Nothing of a page refers to the body it came from."""
    page = candle_page(body(row()))
    assert page.stamps_us.dtype == np.int64
    assert page.table.column("open").type == pa.float64()
