"""Rows of the quotation endpoints, whatever their prices come from."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise

import pyarrow as pa
import pytest

from backbone.errors import InputError
from backbone.model import CANDLE_SCHEMA, Span
from backbone.simulator import Exchange
from backbone.simulator.market import exchange as module
from backbone.simulator.market.listing import UnknownMarketError
from backbone.timeframe import DAY_US, MINUTE_US, TIMEFRAMES
from tests.simulator.conftest import DAY, NOW_US


def _opens(rows: list[dict[str, object]]) -> list[str]:
    return [str(row["candle_date_time_utc"]) for row in rows]


def test_candles_are_newest_first_and_open_before_to(exchange: Exchange) -> None:
    """`to` is exclusive on the open, aligned or not."""
    aligned = exchange.candles("KRW-BTC", "1m", DAY, 3, NOW_US)
    assert _opens(aligned) == ["2025-08-21T23:59:00", "2025-08-21T23:58:00", "2025-08-21T23:57:00"]
    between = exchange.candles("KRW-BTC", "1m", DAY + 1_000_000, 1, NOW_US)
    assert _opens(between) == ["2025-08-22T00:00:00"]


def test_paging_by_the_oldest_open_needs_no_deduplication(exchange: Exchange) -> None:
    """Pages of any size join to the same history."""
    whole = exchange.candles("KRW-XRP", "1m", DAY, 200, NOW_US)
    to, paged = DAY, []
    while len(paged) < 200:
        page = exchange.candles("KRW-XRP", "1m", to, 33, NOW_US)
        paged += page
        to = int(datetime.fromisoformat(page[-1]["candle_date_time_utc"] + "+00:00").timestamp()) * 1_000_000
    assert paged[:200] == whole


def test_forming_candle_comes_first_and_grows(exchange: Exchange) -> None:
    """Same label, later state, of the trades so far."""
    early = exchange.candles("KRW-BTC", "1m", None, 1, DAY + 20 * 1_000_000)[0]
    late = exchange.candles("KRW-BTC", "1m", None, 1, DAY + 55 * 1_000_000)[0]
    done = exchange.candles("KRW-BTC", "1m", None, 2, DAY + 65 * 1_000_000)[1]
    assert _opens([early, late, done]) == ["2025-08-22T00:00:00"] * 3
    assert early["candle_acc_trade_volume"] < late["candle_acc_trade_volume"] <= done["candle_acc_trade_volume"]
    assert early["opening_price"] == done["opening_price"]
    assert early["timestamp"] <= (DAY + 20 * 1_000_000) // 1000


def test_to_in_the_future_or_absent_is_now(exchange: Exchange) -> None:
    """No answer holds anything of the future."""
    now = exchange.candles("KRW-BTC", "5m", None, 5, NOW_US)
    assert exchange.candles("KRW-BTC", "5m", NOW_US + 400 * DAY_US, 5, NOW_US) == now


def test_candle_of_a_minute_without_trades_does_not_exist(exchange: Exchange) -> None:
    """A thin market's 200 candles reach back for days, and none is empty."""
    rows = exchange.candles("KRW-SLP", "1m", None, 200, NOW_US)
    assert len(rows) == 200
    assert _opens(rows)[-1] < "2025-08-20"
    assert all(row["candle_acc_trade_volume"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("timeframe", "open_", "extra"),
    [("1m", "2025-08-22T09:00:00", {"unit": 1}), ("1h", "2025-08-22T09:00:00", {"unit": 60}),
     ("4h", "2025-08-22T08:00:00", {"unit": 240}), ("1w", "2025-08-18T00:00:00", {"first_day_of_period": "2025-08-18"}),
     ("1M", "2025-08-01T00:00:00", {"first_day_of_period": "2025-08-01"}),
     ("1y", "2025-01-01T00:00:00", {"first_day_of_period": "2025-01-01"}), ("1s", "2025-08-22T09:00:29", {})],
)  # fmt: skip
def test_rows_have_the_fields_of_their_timeframe(
    exchange: Exchange, timeframe: str, open_: str, extra: dict[str, object]
) -> None:
    """UTC boundaries, weeks from Monday, and what only one kind has."""
    row = exchange.candles("KRW-ETH", timeframe, None, 1, NOW_US + 900_000)[0]
    common = {
        "market", "candle_date_time_utc", "candle_date_time_kst", "opening_price", "high_price", "low_price",
        "trade_price", "timestamp", "candle_acc_trade_price", "candle_acc_trade_volume",
    }  # fmt: skip
    assert set(row) - common == set(extra)
    assert row["candle_date_time_utc"] == open_
    kst = datetime.fromisoformat(open_) + timedelta(hours=9)
    assert row["candle_date_time_kst"] == kst.isoformat()
    assert extra.items() <= row.items()


def test_day_rows_have_the_signed_change_from_the_day_before(exchange: Exchange) -> None:
    """`prev_closing_price` is the close of the row below; the first day's is its open."""
    rows = exchange.candles("KRW-BTC", "1d", None, 30, NOW_US)
    for newer, older in pairwise(rows):
        assert newer["prev_closing_price"] == older["trade_price"]
        assert newer["change_price"] == newer["trade_price"] - older["trade_price"]
        assert newer["change_rate"] == pytest.approx(newer["change_price"] / older["trade_price"], abs=1e-9)
    assert any(row["change_price"] < 0 for row in rows)
    first = exchange.candles("KRW-BTC", "1d", None, 200, exchange.market("KRW-BTC").listed_us + 3 * DAY_US)[-1]
    assert first["candle_date_time_utc"] == "2017-09-25T00:00:00"
    assert first["prev_closing_price"] == first["opening_price"]


def test_seconds_reach_back_three_months_and_never_before_they_existed(exchange: Exchange) -> None:
    """Older is an empty list, not an error."""
    assert exchange.candles("KRW-BTC", "1s", NOW_US - 80 * DAY_US, 5, NOW_US)
    assert exchange.candles("KRW-BTC", "1s", NOW_US - 95 * DAY_US, 5, NOW_US) == []
    early = 1_730_246_400_000_000
    assert exchange.candles("KRW-BTC", "1s", early, 5, early + DAY_US) == []


def test_before_listing_is_an_empty_list_and_unlisted_is_unknown(exchange: Exchange) -> None:
    """The two differ, as on the venue."""
    assert exchange.candles("KRW-BTC", "1d", 1_400_000_000_000_000, 10, NOW_US) == []
    for code in ("KRW-NOPE", "BTC-KRW", ""):
        with pytest.raises(UnknownMarketError):
            exchange.candles(code, "1d", None, 1, NOW_US)


@pytest.mark.parametrize("name", ["1d", "1w", "1M", "1y"])
def test_first_candle_of_every_market_is_the_period_of_its_listing(exchange: Exchange, name: str) -> None:
    """Also where that period begins long before the listing."""
    length = TIMEFRAMES[name]
    for code, market in exchange.listed(NOW_US).items():
        opens = length.floor(market.listed_us)
        assert len(exchange.candles(code, name, length.next(opens), 5, max(NOW_US, market.listed_us))) == 1, code


def test_market_is_unknown_until_it_is_listed(exchange: Exchange) -> None:
    """The list grows with the exchange's clock."""
    late = max(exchange.listed().values(), key=lambda m: m.listed_us)
    assert late.code not in exchange.listed(NOW_US)
    assert late.code in exchange.listed(late.listed_us)
    with pytest.raises(UnknownMarketError):
        exchange.candles(late.code, "1m", None, 1, NOW_US)


def test_a_few_closed_candles_are_stamped_after_their_end(exchange: Exchange) -> None:
    """About 2 % carry a timestamp up to 54 ms past the bar, the rest one inside it."""
    late = total = 0
    for page in range(10):
        for row in exchange.candles("KRW-BTC", "1h", DAY - page * 200 * 60 * MINUTE_US, 200, NOW_US):
            open_ = datetime.fromisoformat(row["candle_date_time_utc"] + "+00:00").timestamp()
            past = row["timestamp"] - (open_ + 3600) * 1000
            assert past <= 54
            late += past >= 0
            total += 1
    assert 0.005 < late / total < 0.05


def test_converted_price_is_in_won(exchange: Exchange) -> None:
    """A BTC market's close times the bitcoin close of that day."""
    row = exchange.candles("BTC-ETH", "1d", DAY, 1, NOW_US, converting=True)[0]
    bitcoin = exchange.candles("KRW-BTC", "1d", DAY, 1, NOW_US)[0]
    assert row["converted_trade_price"] == pytest.approx(row["trade_price"] * bitcoin["trade_price"])


def test_candle_table_is_exactly_what_the_endpoint_says(exchange: Exchange) -> None:
    """The truth in bulk: the same float64s, oldest first, closed candles only."""
    for timeframe in ("1m", "1h", "1d"):
        length = TIMEFRAMES[timeframe]
        rows = exchange.candles("KRW-DOGE", timeframe, None, 200, NOW_US)[1:][::-1]
        start = int(datetime.fromisoformat(rows[0]["candle_date_time_utc"] + "+00:00").timestamp()) * 1_000_000
        table = exchange.candle_table("KRW-DOGE", timeframe, start, NOW_US, NOW_US)
        assert table.schema == CANDLE_SCHEMA
        names = (
            "opening_price",
            "high_price",
            "low_price",
            "trade_price",
            "candle_acc_trade_volume",
            "candle_acc_trade_price",
        )
        columns = [table[c].to_pylist() for c in ("open", "high", "low", "close", "volume", "value")]
        assert [tuple(row[n] for n in names) for row in rows] == list(zip(*columns, strict=True))
        assert table["time"][-1].as_py().timestamp() * 1e6 < length.floor(NOW_US)


def test_candle_table_spans_are_half_open_and_may_be_empty(exchange: Exchange) -> None:
    """[start, end) on the open."""
    table = exchange.candle_table("KRW-BTC", "1m", DAY + 1, DAY + 3 * MINUTE_US)
    assert [t.minute for t in table["time"].to_pylist()] == [1, 2]
    assert exchange.candle_table("KRW-BTC", "1m", DAY, DAY).num_rows == 0
    assert isinstance(exchange.candle_table("KRW-BTC", "1m", 0, 1), pa.Table)


def test_trades_page_by_cursor_without_loss_or_doubles(exchange: Exchange) -> None:
    """Any page size gives the same trades; each id once."""
    whole = exchange.trades("KRW-BTC", NOW_US, 500)
    paged = exchange.trades("KRW-BTC", NOW_US, 70)
    while len(paged) < 500:
        paged += exchange.trades("KRW-BTC", NOW_US, 70, cursor=paged[-1]["sequential_id"])
    assert paged[:500] == whole
    assert len({t["sequential_id"] for t in whole}) == 500
    assert all(t["sequential_id"] > 2**53 and len(str(t["sequential_id"])) == 17 for t in whole)


def test_trades_share_milliseconds_and_signed_change(exchange: Exchange) -> None:
    """Several in one millisecond; `change_price` is signed against yesterday's close."""
    rows = exchange.trades("KRW-BTC", NOW_US, 500)
    assert len({r["timestamp"] for r in rows}) < len(rows)
    yesterday = exchange.candles("KRW-BTC", "1d", DAY, 1, NOW_US)[0]["trade_price"]
    assert all(r["prev_closing_price"] == yesterday for r in rows)
    assert all(r["change_price"] == r["trade_price"] - yesterday for r in rows)
    assert {r["ask_bid"] for r in rows} == {"ASK", "BID"}


def test_trades_of_a_day_are_those_of_its_candles(exchange: Exchange) -> None:
    """Every trade of a thin market's day, paged, adds up to its day candle."""
    rows: list[dict[str, object]] = []
    cursor = None
    while page := exchange.trades("KRW-POND", NOW_US, 20, days_ago=1, cursor=cursor):
        rows += page
        cursor = page[-1]["sequential_id"]
    day = exchange.candles("KRW-POND", "1d", DAY, 1, NOW_US)[0]
    assert {r["trade_date_utc"] for r in rows} == {"2025-08-21"}
    assert sum(r["trade_volume"] for r in rows) == pytest.approx(day["candle_acc_trade_volume"])  # type: ignore[misc]
    assert rows[0]["trade_price"] == day["trade_price"]


def test_trades_end_before_the_second_asked_for(exchange: Exchange) -> None:
    """`to` is a second of the day, excluded."""
    rows = exchange.trades("KRW-BTC", NOW_US, 50, to=3600)
    assert all(r["trade_time_utc"] < "01:00:00" for r in rows)
    assert rows[0]["trade_time_utc"] > "00:59:00"


@pytest.mark.parametrize("code", ["KRW-BTC", "KRW-PEPE", "KRW-SLP", "BTC-ETH", "USDT-XRP"])
def test_ticker_agrees_with_the_candles(exchange: Exchange, code: str) -> None:
    """Day open, high, low, sums and last price are the forming day candle's; 24 hours are the minutes'."""
    ticker = exchange.ticker(code, NOW_US)
    day, before = exchange.candles(code, "1d", None, 2, NOW_US)
    assert ticker["opening_price"] == day["opening_price"]
    assert (ticker["high_price"], ticker["low_price"]) == (day["high_price"], day["low_price"])
    assert ticker["trade_price"] == day["trade_price"]
    assert ticker["acc_trade_volume"] == pytest.approx(day["candle_acc_trade_volume"], rel=1e-12)
    assert ticker["acc_trade_price"] == pytest.approx(day["candle_acc_trade_price"], rel=1e-12)
    assert ticker["prev_closing_price"] == before["trade_price"]
    minutes = exchange.candle_table(code, "1m", NOW_US // MINUTE_US * MINUTE_US - DAY_US, NOW_US)
    running = exchange.candles(code, "1m", None, 1, NOW_US)[0]
    live = running["candle_acc_trade_volume"] if running["candle_date_time_utc"] == "2025-08-22T09:00:00" else 0.0
    volume = sum(minutes["volume"].to_pylist()) - _forming_volume(exchange, code) + live
    assert ticker["acc_trade_volume_24h"] == pytest.approx(volume, rel=1e-9)
    trade = exchange.trades(code, NOW_US, 1)
    assert not trade or (trade[0]["timestamp"], trade[0]["trade_price"]) == (
        ticker["trade_timestamp"],
        ticker["trade_price"],
    )
    assert abs(ticker["signed_change_price"]) == ticker["change_price"]
    assert (
        ticker["lowest_52_week_price"] <= ticker["low_price"] <= ticker["high_price"] <= ticker["highest_52_week_price"]
    )


def _forming_volume(exchange: Exchange, code: str) -> float:
    """The running minute's whole volume, which the table (which takes no time) includes."""
    minute = NOW_US // MINUTE_US * MINUTE_US
    return float(sum(exchange.candle_table(code, "1m", minute, NOW_US)["volume"].to_pylist()))


def test_tickers_do_not_depend_on_what_was_asked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums carried from minute to minute are the sums made afresh, by an exchange that shares none."""
    carried = Exchange(7)
    codes = ["KRW-BTC", "KRW-ETH", "KRW-SLP", "KRW-BICO", "BTC-ETH"]
    for step in (0, 20, 61, 62, 900, 40_000, 40_001, 200_000, 3):
        now = DAY + DAY_US - 1_000_000 + step * 1_000_000
        monkeypatch.setattr(module, "_RUNNING_SUMS", module._Cache(6, lambda _: 1))
        assert carried.tickers(codes, now) == Exchange(7).tickers(codes, now)


def test_books_are_ordered_and_best_prices_are_one_tick_apart(exchange: Exchange) -> None:
    """Asks ascend, bids descend, thirty levels, totals add up."""
    book = exchange.orderbook("KRW-BTC", NOW_US)
    assert book is not None
    units = book["orderbook_units"]
    asks, bids = [u["ask_price"] for u in units], [u["bid_price"] for u in units]
    assert asks == sorted(asks)
    assert bids == sorted(bids, reverse=True)
    assert len(units) == 30
    assert asks[0] - bids[0] == 1000
    assert sum(u["ask_size"] for u in units) == pytest.approx(book["total_ask_size"])
    assert book["timestamp"] % 100 == 0
    assert book["timestamp"] * 1000 <= NOW_US


def test_thin_side_is_padded_with_zeros(exchange: Exchange) -> None:
    """Price and size zero, beyond the orders there are."""
    padded = [exchange.orderbook(code, NOW_US) for code, m in exchange.listed(NOW_US).items() if m.quote == "BTC"]
    lasts = [book["orderbook_units"][-1] for book in padded if book is not None]
    assert any(u["ask_price"] == u["ask_size"] == 0 for u in lasts)
    assert any(u["bid_price"] == u["bid_size"] == 0 for u in lasts)


def test_level_groups_krw_books_and_empties_others(exchange: Exchange) -> None:
    """Prices are multiples of the level; a level where there is none gives no book."""
    book = exchange.orderbook("KRW-BTC", NOW_US, level=100_000)
    assert book is not None
    assert book["level"] == 100_000
    assert all(u["ask_price"] % 100_000 == u["bid_price"] % 100_000 == 0 for u in book["orderbook_units"])
    assert exchange.orderbook("KRW-BTC", NOW_US, level=7) is None
    assert exchange.orderbook("BTC-ETH", NOW_US, level=100) is None


def test_instruments_are_text_and_follow_the_price_band(exchange: Exchange) -> None:
    """Tick sizes and levels as strings; only level 0 outside KRW."""
    bitcoin, ether = exchange.instruments(["KRW-BTC", "BTC-ETH"], NOW_US)
    assert bitcoin["tick_size"] == "1000"
    assert bitcoin["supported_levels"][:3] == ["0", "10000", "100000"]
    assert (ether["tick_size"], ether["supported_levels"]) == ("0.00000001", ["0"])


def test_outage_leaves_a_hole_in_every_market() -> None:
    """No trades in it; before and after are unchanged."""
    exchange = Exchange(7)
    hole = Span(DAY + 2 * 3_600_000_000, DAY + 3 * 3_600_000_000)
    before = exchange.candle_table("KRW-BTC", "1m", DAY, hole.start)
    exchange.close_span(hole)
    for code in ("KRW-BTC", "KRW-ETH", "BTC-ETH"):
        assert exchange.candle_table(code, "1m", *hole).num_rows == 0
    assert exchange.candle_table("KRW-BTC", "1m", DAY, hole.start).equals(before)
    assert exchange.candle_table("KRW-BTC", "1m", hole.end, hole.end + 10 * MINUTE_US).num_rows == 10


def test_real_outages_are_part_of_history(exchange: Exchange) -> None:
    """2025-06-30 18–22 UTC: no candle anywhere."""
    start = int(datetime.fromisoformat("2025-06-30T18:00+00:00").timestamp()) * 1_000_000
    assert exchange.candle_table("KRW-BTC", "1h", start, start + 4 * 3_600_000_000).num_rows == 0


def test_exchange_of_unlisted_codes_is_an_input_error() -> None:
    """It names the code."""
    with pytest.raises(InputError, match="KRW-NOPE"):
        Exchange(7, markets=["KRW-NOPE"])


@pytest.mark.parametrize(("start", "apart"), [("2022-09-20", True), ("2022-10-02", False)])
def test_longer_candles_are_sums_from_the_venues_date_on(exchange: Exchange, start: str, apart: bool) -> None:
    """Before it they differ by some millionths, in volume and turnover only, and by the same each time."""
    first = int(datetime.fromisoformat(start + "T00:00+00:00").timestamp()) * 1_000_000
    minutes = exchange.candle_table("KRW-XRP", "1m", first, first + DAY_US).to_pandas()
    hours = exchange.candle_table("KRW-XRP", "1h", first, first + DAY_US).to_pandas()
    folded = minutes.groupby(minutes["time"].dt.floor("1h")).agg({"close": "last", "volume": "sum", "value": "sum"})
    assert (folded["close"].to_numpy() == hours["close"].to_numpy()).all()
    for name in ("volume", "value"):
        gap = (hours[name].to_numpy() / folded[name].to_numpy() - 1).__abs__()
        assert gap.max() < 1e-5
        assert (gap > 5e-7).sum() > 12 if apart else gap.max() < 1e-12
    rows = exchange.candles("KRW-XRP", "1h", first + DAY_US, 24, NOW_US)
    assert [row["candle_acc_trade_volume"] for row in rows[::-1]] == hours["volume"].tolist()
