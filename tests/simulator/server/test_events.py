"""What the stream publishes, and when."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from backbone.simulator import Exchange
from backbone.simulator.market.replay import Replay
from backbone.simulator.server.events import Channel, Event, Feed
from backbone.timeframe import MINUTE_US, TIMEFRAMES
from tests.simulator.conftest import DAY, NOW_US
from tests.simulator.market.test_replay import START, _minute, _write

TRADE, TICKER, BOOK = ("trade", 0.0), ("ticker", 0.0), ("orderbook", 0.0)
MINUTE, SECOND, THREE = ("candle.1m", 0.0), ("candle.1s", 0.0), ("candle.3m", 0.0)


def _collect(feed: Feed, wanted: dict[str, frozenset[Channel]], start: int, end: int, step: int) -> list[Event]:
    found: list[Event] = []
    for at in range(start, end, step):
        found += feed.events(wanted, at, min(end, at + step))
    return found


def _keys(events: list[Event]) -> list[tuple[Any, ...]]:
    return sorted((e.time_us, e.channel, e.code, str(e.row)) for e in events)


@pytest.mark.parametrize("step", [20_000, 333_333, 1_000_000, 7_777_777])
def test_events_do_not_depend_on_how_the_clock_went_through(exchange: Exchange, step: int) -> None:
    """Trades, books and candles of an interval are the same in any steps."""
    wanted = {code: frozenset({TRADE, BOOK, MINUTE, SECOND}) for code in ("KRW-BTC", "KRW-XRP", "KRW-POND")}
    whole = Feed(exchange).events(wanted, NOW_US, NOW_US + 20_000_000)
    assert _keys(_collect(Feed(exchange), wanted, NOW_US, NOW_US + 20_000_000, step)) == _keys(whole)
    assert [e.time_us for e in whole] == sorted(e.time_us for e in whole)


def test_every_trade_is_published_once_shortly_after_it_happened(exchange: Exchange) -> None:
    """Ids, prices and sizes are the endpoint's; `change_price` is absolute here."""
    start, end = NOW_US, NOW_US + 60_000_000
    events = _collect(Feed(exchange), {"KRW-BTC": frozenset({TRADE})}, start, end, 500_000)
    rows = [r for r in exchange.trades("KRW-BTC", end, 200) if r["timestamp"] * 1000 > start - 60_000]
    by_id = {r["sequential_id"]: r for r in rows}
    assert len({e.row["sequential_id"] for e in events}) == len(events)
    assert {
        r["sequential_id"] for r in rows if r["timestamp"] * 1000 <= end - 60_000 and r["timestamp"] * 1000 > start
    } <= {e.row["sequential_id"] for e in events}
    for event in events:
        rest = by_id[event.row["sequential_id"]]
        assert event.row["trade_price"] == rest["trade_price"]
        assert event.row["trade_volume"] == rest["trade_volume"]
        assert event.row["change_price"] == abs(rest["change_price"])
        assert 0 < event.time_us - rest["timestamp"] * 1000 < 60_000
        assert event.row["timestamp"] * 1000 == event.time_us


def test_ticker_event_equals_the_rest_row_of_that_instant(exchange: Exchange) -> None:
    """Field by field, but for those only the stream has."""
    feed, at = Feed(exchange), NOW_US
    seen = 0
    for _ in range(400):
        events = feed.events({"KRW-ETH": frozenset({TICKER})}, at, at + 50_000)
        at += 50_000
        for event in events:
            rest = exchange.ticker("KRW-ETH", at)
            assert {name: event.row[name] for name in rest if name != "market"} == {
                name: value for name, value in rest.items() if name != "market"
            }
            assert event.row["acc_ask_volume"] + event.row["acc_bid_volume"] == pytest.approx(rest["acc_trade_volume"])
            seen += 1
    assert seen > 5


def test_candle_is_published_once_a_second_and_only_when_changed(exchange: Exchange) -> None:
    """At whole seconds, for the seconds with trades; the last state of a minute is the closed candle."""
    start = DAY + 9 * 3_600_000_000
    events = _collect(Feed(exchange), {"KRW-ETH": frozenset({MINUTE})}, start, start + 3 * MINUTE_US, 20_000)
    market = exchange.market("KRW-ETH")
    trades = exchange.executions(market, start, start + 3 * MINUTE_US)
    assert [e.time_us for e in events] == sorted({(int(ms) // 1000 + 1) * 1_000_000 for ms in trades.time_ms})
    last = {e.row["candle_date_time_utc"]: e.row for e in events}
    for row in exchange.candles("KRW-ETH", "1m", start + 3 * MINUTE_US, 3, start + 10 * MINUTE_US):
        stream = last[row["candle_date_time_utc"]]
        for name in ("opening_price", "high_price", "low_price", "trade_price", "candle_acc_trade_volume"):
            assert stream[name] == row[name]
    assert all("unit" not in e.row for e in events)


def test_first_trade_of_a_longer_candle_creates_it_under_its_own_open(exchange: Exchange) -> None:
    """A three-minute bar opens at its boundary, and appears at the second after its first trade."""
    market = exchange.market("KRW-LA")
    bar = next(
        at
        for at in range(DAY, DAY + 600 * MINUTE_US, 3 * MINUTE_US)
        if len(t := exchange.executions(market, at, at + 3 * MINUTE_US)) and t.time_ms[0] * 1000 > at + 90_000_000
    )
    first = int(exchange.executions(market, bar, bar + 3 * MINUTE_US).time_ms[0])
    events = _collect(Feed(exchange), {"KRW-LA": frozenset({THREE})}, bar, bar + 3 * MINUTE_US, 1_000_000)
    assert events[0].time_us == (first // 1000 + 1) * 1_000_000
    opened = datetime.fromisoformat(events[0].row["candle_date_time_utc"] + "+00:00").timestamp() * 1e6
    assert opened == bar


def test_long_jump_sends_every_candle_once_and_the_last_book(exchange: Exchange) -> None:
    """Ten minutes at once: ten final states, one book, every trade."""
    start = DAY + 9 * 3_600_000_000
    wanted = {"KRW-BTC": frozenset({MINUTE, BOOK, TRADE, TICKER})}
    events = Feed(exchange).events(wanted, start, start + 10 * MINUTE_US)
    count = {kind: sum(e.channel == kind for e in events) for kind in (MINUTE, BOOK, TICKER)}
    assert count[MINUTE] == 10
    assert count[BOOK] == 1
    assert count[TICKER] <= 1
    assert sum(e.channel == TRADE for e in events) > 400
    final = [e.row["candle_acc_trade_volume"] for e in events if e.channel == MINUTE]
    table = exchange.candle_table("KRW-BTC", "1m", start, start + 10 * MINUTE_US)
    assert final == table["volume"].to_pylist()


def test_quiet_market_sends_nothing_and_its_snapshot_is_old(exchange: Exchange) -> None:
    """Nothing for minutes; the snapshot is the newest existing bar and trade."""
    market = exchange.market("KRW-SLP")
    last = exchange.last_execution(market, NOW_US)
    after = exchange.executions(market, NOW_US, NOW_US + 3_600_000_000)
    end = min(int(after.time_ms[0]) * 1000 if len(after) else NOW_US + 60_000_000, NOW_US + 60_000_000)
    feed = Feed(exchange)
    assert feed.events({"KRW-SLP": frozenset({TRADE, TICKER, MINUTE})}, NOW_US, end) == []
    trade = feed.snapshots(TRADE, ["KRW-SLP"], NOW_US)["KRW-SLP"]
    assert trade["trade_timestamp"] == last.time_ms[0]
    candle = feed.snapshots(MINUTE, ["KRW-SLP"], NOW_US)["KRW-SLP"]
    assert candle["timestamp"] == last.time_ms[0]


def test_changed_market_is_read_afresh() -> None:
    """What was read ahead before an outage was scripted is forgotten; a delisted market says nothing."""
    exchange = Exchange(7)
    feed, wanted = Feed(exchange), {"KRW-BTC": frozenset({TRADE}), "KRW-ETH": frozenset({TRADE})}
    assert feed.events(wanted, NOW_US, NOW_US + 1_000_000) is not None
    exchange.delist("KRW-BTC")
    feed.forget()
    assert {e.code for e in feed.events(wanted, NOW_US, NOW_US + 30_000_000)} == {"KRW-ETH"}


def test_lower_case_code_is_no_code() -> None:
    """The stream knows codes as they are listed: another spelling brings nothing, and doubles nothing."""
    exchange = Exchange(7)
    channels = frozenset({TRADE, TICKER, BOOK, MINUTE})
    assert Feed(exchange).events({"krw-btc": channels}, NOW_US, NOW_US + 10_000_000) == []
    alone = Feed(exchange).events({"KRW-BTC": channels}, NOW_US, NOW_US + 10_000_000)
    both = Feed(exchange).events({"KRW-BTC": channels, "krw-btc": channels}, NOW_US, NOW_US + 10_000_000)
    assert alone
    assert _keys(both) == _keys(alone)


def test_replayed_record_streams_too(tmp_path: Any) -> None:
    """Derived trades, and candles that end as recorded up to the derived volume's rounding."""
    replay = Replay([_write(tmp_path / "a.parquet", [_minute(n) for n in range(5)])])
    events = _collect(
        Feed(replay), {"KRW-BTC": frozenset({MINUTE, TICKER, BOOK})}, START, START + 5 * MINUTE_US, 1_000_000
    )
    closes = [
        e.row["trade_price"] for e in events if e.channel == MINUTE and e.row["timestamp"] % 60_000 >= 45_000 - 40_000
    ]
    assert {e.channel for e in events} == {MINUTE, TICKER, BOOK}
    assert closes[-1] == 105.0
    assert TIMEFRAMES["1m"].step_us == MINUTE_US


def test_market_that_is_delisted_within_a_jump_is_published_until_then() -> None:
    """However far the clock jumps: its trades up to the delisting, none after, and then nothing for ever."""
    exchange = Exchange(7, markets=["KRW-BTC", "KRW-ETH"])
    start, gone = NOW_US, NOW_US + 30_000_000
    exchange.delist("KRW-ETH", gone)
    wanted = {code: frozenset({TRADE}) for code in ("KRW-BTC", "KRW-ETH")}
    feed = Feed(exchange)
    events = [event for event in feed.events(wanted, start, start + 60_000_000) if event.code == "KRW-ETH"]
    in_steps = [
        e for e in _collect(Feed(exchange), wanted, start, start + 60_000_000, 1_000_000) if e.code == "KRW-ETH"
    ]
    assert events
    assert _keys(events) == _keys(in_steps)
    assert max(event.time_us for event in events) < gone
    assert {event.code for event in feed.events(wanted, start + 60_000_000, start + 90_000_000)} == {"KRW-BTC"}
