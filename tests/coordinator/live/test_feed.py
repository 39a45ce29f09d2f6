"""The feed: rows from the stream, from polls while it is away, and how fresh each is known to be."""

from __future__ import annotations

import itertools

import pytest

from backbone.coordinator.live.feed import Subscription, timeframe_of
from backbone.coordinator.live.latest import RecordQueue
from backbone.errors import ClosedError, RejectedError, UnreachableError
from backbone.model import Priority, Span
from backbone.timeframe import TIMEFRAMES
from tests.coordinator.live_doubles import MINUTE_US, START_US, Rig, book, candle, reply, ticker, trade

BTC, ETH = "KRW-BTC", "KRW-ETH"


@pytest.fixture
def rig() -> Rig:
    return Rig()


def streaming(rig: Rig, kind: str = "ticker", *records: object) -> Subscription:
    table = rig.feed.open([kind], [BTC, ETH])
    rig.stream.connect(*(records or (ticker(), ticker(ETH))))
    rig.scheduler.run()
    return table


# -- subscriptions -----------------------------------------------------------------------------------------------


def test_feed_opens_no_stream_before_something_is_live(rig: Rig) -> None:
    """A client that never goes live has no socket."""
    assert rig.streams == []
    assert rig.feed.mode == "idle"
    assert rig.feed.status() == {}


def test_feed_tables_share_one_stream_and_the_last_one_ends_it(rig: Rig) -> None:
    """Two tables are two wants of one stream; nothing is wanted once both are closed."""
    first = rig.feed.open(["ticker"], [BTC])
    second = rig.feed.open(["ticker", "trade"], [BTC, ETH])
    assert len(rig.streams) == 1
    assert rig.stream.wanted == {first: {"ticker": (BTC,)}, second: {"ticker": (BTC, ETH), "trade": (BTC, ETH)}}
    first.close()
    first.close()
    assert list(rig.stream.wanted) == [second]
    second.close()
    assert rig.stream.wanted == {}
    assert rig.feed.mode == "idle"
    assert first.mode == "stopped"


def test_feed_table_opened_on_a_stream_that_never_stopped_knows_it(rig: Rig) -> None:
    """Where one table follows the last so closely that the socket stays, the new one is streaming at once."""
    first = streaming(rig)
    unsubscribe, rig.stream.unsubscribe = rig.stream.unsubscribe, lambda *_: None  # type: ignore[method-assign]
    first.close()
    second = rig.feed.open(["ticker"], [BTC])
    unsubscribe(first)
    assert second.mode == "streaming"


def test_feed_counts_what_each_table_received(rig: Rig) -> None:
    """A table counts the records that came since it was opened, and keeps the count when it is closed."""
    first = streaming(rig)
    rig.stream.say(ticker(price=101.0))
    second = rig.feed.open(["ticker"], [BTC])
    rig.stream.say(ticker(price=102.0), ticker(ETH, 50.0))
    assert (first.received, second.received) == (5, 1)
    second.close()
    rig.stream.say(ticker(price=103.0))
    assert (first.received, second.received) == (6, 1)


def test_feed_queue_of_whoever_opens_misses_no_record(rig: Rig) -> None:
    """`opened` is called before anything is subscribed; when it fails, nothing stays live."""
    streaming(rig)
    before: list[bool] = []
    records: list[RecordQueue] = []

    def opened(subscription: Subscription) -> None:
        before.append(subscription in rig.stream.wanted)
        records.append(subscription.queue(10))

    table = rig.feed.open(["ticker"], [BTC], opened=opened)
    assert (before, table in rig.stream.wanted) == ([False], True)
    rig.stream.say(ticker(price=102.0))
    assert records[0].get(0) == ticker(price=102.0)
    wanted = dict(rig.stream.wanted)
    with pytest.raises(ZeroDivisionError):
        rig.feed.open(["ticker"], [ETH], opened=lambda _: 1 / 0)
    assert rig.stream.wanted == wanted


def test_feed_closed_refuses_and_closes_its_tables(rig: Rig) -> None:
    """A closed client ends what is live, and opens nothing any more."""
    table = streaming(rig)
    rig.feed.close()
    rig.feed.close()
    assert table.is_closed
    assert rig.stream.is_closed
    with pytest.raises(ClosedError):
        rig.feed.open(["ticker"], [BTC])


def test_timeframe_of_kinds() -> None:
    """A candle kind has a timeframe, the others have none."""
    assert timeframe_of("candle.60m") is TIMEFRAMES["1h"]
    assert timeframe_of("candle.1s") is TIMEFRAMES["1s"]
    assert timeframe_of("ticker") is None


# -- how fresh a row is known to be ------------------------------------------------------------------------------


def test_feed_quiet_market_on_a_live_socket_is_current(rig: Rig) -> None:
    """A row that the stream sent stays the latest for as long as frames arrive, of whichever market."""
    streaming(rig)
    rig.clock.advance(20)
    rig.stream.say(ticker(ETH, 55.0))
    slot = rig.latest.slot("ticker", BTC)
    assert rig.feed.known_at(slot, rig.feed.last_received_s()) == (rig.clock.mono_s, True)
    rig.clock.advance(3)
    assert rig.feed.known_at(slot, rig.feed.last_received_s()) == (rig.clock.mono_s - 3, True)
    rig.stream.pong()
    assert rig.feed.known_at(slot, rig.feed.last_received_s()) == (rig.clock.mono_s, True)


def test_feed_covers_no_row_while_the_socket_is_away(rig: Rig) -> None:
    """Off the stream, a row is as old as its arrival; back on it, only markets sent anew are covered."""
    streaming(rig)
    sent_s = rig.clock.mono_s
    rig.clock.advance(5)
    rig.stream.enter("backing-off")
    btc, eth = rig.latest.slot("ticker", BTC), rig.latest.slot("ticker", ETH)
    assert rig.feed.known_at(btc, rig.feed.last_received_s()) == (sent_s, False)
    rig.stream.connect(ticker(ETH))
    assert rig.feed.known_at(btc, rig.feed.last_received_s()) == (sent_s, False)
    assert rig.feed.known_at(eth, rig.feed.last_received_s()) == (rig.clock.mono_s, True)


def test_feed_covers_no_row_that_nobody_subscribes_to(rig: Rig) -> None:
    """The last row of a closed table ages, though another table keeps the socket busy."""
    table = rig.feed.open(["ticker"], [BTC])
    streaming(rig, "trade", ticker(), trade(1))
    sent_s = rig.clock.mono_s
    table.close()
    rig.clock.advance(9)
    rig.stream.say(trade(2))
    assert rig.feed.known_at(rig.latest.slot("ticker", BTC), rig.feed.last_received_s()) == (sent_s, False)


def test_feed_answers_trades_it_has_without_a_hole(rig: Rig) -> None:
    """The newest trades are answered where the stream sent them all and was just received."""
    streaming(rig, "trade", trade(1), trade(1, ETH))
    rig.stream.say(trade(2), trade(3))
    assert rig.feed.trades(BTC, 3, rig.clock.mono_s - 1) == [trade(1), trade(2), trade(3)]
    assert rig.feed.trades(BTC, 4, rig.clock.mono_s - 1) is None
    rig.clock.advance(2)
    assert rig.feed.trades(BTC, 3, rig.clock.mono_s - 1) is None


def test_feed_answers_the_forming_candle_it_received(rig: Rig) -> None:
    """The forming candle comes from the stream while it was just received, otherwise not at all."""
    streaming(rig, "candle.1m", candle(0), candle(0, market=ETH))
    assert rig.feed.forming(BTC, TIMEFRAMES["1m"], START_US, Priority.NORMAL) == [candle(0)]
    assert rig.feed.forming(BTC, TIMEFRAMES["1m"], START_US - MINUTE_US, Priority.NORMAL) is None
    assert rig.feed.forming(BTC, TIMEFRAMES["1d"], START_US, Priority.NORMAL) is None
    rig.clock.advance(5)
    assert rig.feed.forming(BTC, TIMEFRAMES["1m"], START_US, Priority.NORMAL) is None


# -- the fallback --------------------------------------------------------------------------------------------------


def test_feed_polls_into_the_same_table_while_the_socket_is_away(rig: Rig) -> None:
    """After a moment without the socket, REST feeds the table, and stops when the socket is back."""
    table = streaming(rig)
    rig.stream.enter("backing-off")
    rig.scheduler.advance(1.0)
    assert (table.mode, rig.scheduler.queued) == ("reconnecting", [])
    rig.scheduler.advance(1.2)
    assert table.mode == "polling"
    ((ask, poll),) = rig.scheduler.asks()
    assert (poll.group, dict(ask.query)) == ("ticker", {"markets": f"{BTC},{ETH}"})
    poll.done(ask, reply((ticker(price=123.0, stamp_s=9), ticker(ETH)), rig.clock))
    assert next((h.row.price, h.source) for h in table.rows("ticker")) == (123.0, "rest")
    rig.stream.connect(ticker(price=124.0, stamp_s=10), ticker(ETH, stamp_s=10))
    rig.scheduler.advance(5.0)
    assert rig.scheduler.asks() == []
    assert table.mode == "streaming"
    assert table.rows("ticker")[0].source == "stream"


def test_feed_polls_keep_to_a_tenth_of_the_quota(rig: Rig) -> None:
    """However many tables and markets, a wire group is polled at most once a second."""
    for _ in range(3):
        rig.feed.open(["ticker", "orderbook", "trade", "candle.1m", "candle.1s"], [BTC, ETH])
    rig.stream.enter("backing-off")
    counts: dict[str, int] = {}
    for _ in range(240):
        rig.scheduler.advance(0.25)
        for ask, poll in rig.scheduler.asks():
            counts[poll.group] = counts.get(poll.group, 0) + 1
            poll.done(ask, UnreachableError("nobody there") if poll.group == "none" else _empty(rig, poll.group))
    assert set(counts) == {"ticker", "orderbook", "crix-trades", "candles"}
    assert all(40 <= count <= 60 for count in counts.values()), counts


def _empty(rig: Rig, group: str):  # type: ignore[no-untyped-def]
    import numpy as np

    from backbone.model import empty_candles
    from backbone.routing.wire import CandlePage

    page = CandlePage(empty_candles(), None, np.empty(0, np.int64))
    return reply(page if group == "candles" else (), rig.clock)


def test_feed_failing_polls_lead_to_rest_only_and_back(rig: Rig) -> None:
    """Where polls fail too, that is said, they become rare, and the first that succeeds ends it."""
    table = streaming(rig)
    rig.stream.enter("backing-off")
    rig.scheduler.advance(2.2)
    ((ask, poll),) = rig.scheduler.asks()
    poll.done(ask, UnreachableError("nobody there"))
    assert table.mode == "rest only"
    assert "nobody there" in rig.feed.status()["last_error"]
    rig.scheduler.advance(4.0)
    assert rig.scheduler.asks() == []
    rig.scheduler.advance(1.2)
    ((ask, poll),) = rig.scheduler.asks()
    poll.done(ask, reply((ticker(), ticker(ETH)), rig.clock))
    assert table.mode == "polling"
    rig.scheduler.advance(1.2)
    assert len(rig.scheduler.asks()) == 1


def test_feed_delisted_market_does_not_end_the_poll(rig: Rig) -> None:
    """When the venue refuses a list of names, whole quote currencies are polled."""
    streaming(rig)
    rig.stream.enter("backing-off")
    rig.scheduler.advance(2.2)
    ((ask, poll),) = rig.scheduler.asks()
    poll.done(ask, RejectedError("not found", status=404))
    assert rig.feed.mode == "polling"
    rig.scheduler.advance(1.2)
    ((ask, poll),) = rig.scheduler.asks()
    assert (ask.path, dict(ask.query)) == ("/ticker/all", {"quote_currencies": "KRW"})
    poll.done(ask, reply((ticker(), ticker("KRW-XRP")), rig.clock))
    assert rig.latest.known("ticker", ["KRW-XRP"]) == {}


def test_feed_polls_books_as_deep_and_grouped_as_they_are_wanted(rig: Rig) -> None:
    """The fallback asks for no more levels than the deepest table shows, and for its price grouping."""
    table = rig.feed.open(["orderbook@1000"], [BTC, ETH], depth=4)
    rig.stream.connect(book(level=1000.0), book(ETH, level=1000.0))
    rig.scheduler.run()
    assert rig.stream.depths == {(table, "orderbook@1000"): 4}
    rig.stream.enter("backing-off")
    rig.scheduler.advance(2.2)
    ((ask, poll),) = rig.scheduler.asks()
    assert poll.group == "orderbook"
    assert dict(ask.query) == {"markets": f"{BTC},{ETH}", "count": "5", "level": "1000"}
    newer = book(stamp_s=9, level=1000.0)
    poll.done(ask, reply((newer,), rig.clock))
    assert table.row("orderbook@1000", BTC) == newer


def test_feed_polls_books_for_the_deepest_table(rig: Rig) -> None:
    """Two tables of one kind are one poll, as deep as the deeper one wants it."""
    tables = [rig.feed.open(["orderbook"], [BTC], depth=depth) for depth in (5, 15)]
    rig.stream.connect(book())
    rig.scheduler.run()
    rig.stream.enter("backing-off")
    rig.scheduler.advance(2.2)
    ((ask, _),) = rig.scheduler.asks()
    assert dict(ask.query) == {"markets": BTC, "count": "15"}
    assert [table.depth for table in tables] == [5, 15]


def test_feed_polled_trades_are_each_delivered_once(rig: Rig) -> None:
    """Polls of trades overlap; a follower gets each trade once, oldest first."""
    table = streaming(rig, "trade", trade(1), trade(1, ETH))
    records = table.queue(100)
    rig.stream.enter("backing-off")
    rig.scheduler.advance(2.2)
    ((ask, poll),) = rig.scheduler.asks()
    poll.done(ask, reply((trade(3), trade(2), trade(1)), rig.clock))
    assert [records.get(0), records.get(0), records.get(0)] == [trade(2), trade(3), None]


def test_feed_polled_candles_grow_in_the_table(rig: Rig) -> None:
    """A poll of candles brings the forming one with the stamp that orders it against the stream's."""
    import numpy as np

    from backbone.coordinator.live.recent import candle_rows
    from backbone.routing.wire import CandlePage

    table = streaming(rig, "candle.1m", candle(0), candle(0, market=ETH))
    rig.stream.enter("backing-off")
    rig.scheduler.advance(2.2)
    ((ask, poll),) = rig.scheduler.asks()
    assert ask.path == "/candles/minutes/1"
    grown = [candle(0, 107.0, stamp_s=30), candle(1, 108.0)]
    page = CandlePage(candle_rows(grown), START_US, np.array([c.stamp_us for c in grown]))
    poll.done(ask, reply(page, rig.clock))
    assert table.rows("candle.1m")[0].row == candle(1, 108.0)


# -- outages -----------------------------------------------------------------------------------------------------


def test_feed_outage_ends_with_an_event_and_its_candles(rig: Rig) -> None:
    """After ten minutes without the socket the missing candles are fetched, and the event says when they are there."""
    table = streaming(rig, "candle.1m", candle(0), candle(0, market=ETH))
    rig.stream.enter("backing-off")
    rig.fetcher.failing = UnreachableError("nobody there")
    for _ in range(200):
        rig.scheduler.advance(3.0, 1.0)
        rig.fetcher.finish()
    rig.fetcher.failing = None
    gap = Span(START_US, rig.clock.now_us())
    rig.stream.connect(candle(10), candle(10, market=ETH), gap=gap)
    (event,) = [e for e in table.events() if e.kind == "gap"]
    assert (event.span, event.filled) == (gap, False)
    fetched = []
    for _ in range(4):
        rig.scheduler.advance(3.0)
        fetched += rig.fetcher.finish()
    for market in (BTC, ETH):
        spans = [one.span for one in fetched if one.market == market]
        assert spans[0].start == START_US
        assert spans[-1].end == START_US + 10 * MINUTE_US
        assert all(before.end == after.start for before, after in itertools.pairwise(spans))
    assert {one.priority for one in fetched} <= {Priority.HIGH, Priority.NORMAL}
    assert [e.filled for e in table.events() if e.kind == "gap"] == [True]
    assert sum(e.kind == "failed" for e in table.events()) == 2  # once an outage and series, not once a try


def test_feed_outage_refetches_the_stored_minutes_of_live_markets() -> None:
    """A market that is live without candles has its minutes fetched if the store keeps any of them."""
    rig = Rig(held=[BTC])
    table = streaming(rig)
    rig.clock.advance(150)
    rig.stream.connect(ticker(), ticker(ETH), gap=Span(START_US + 30_000_000, rig.clock.now_us()))
    rig.scheduler.advance(5.0)
    ((market, span),) = [(one.market, one.span) for one in rig.fetcher.asked]
    assert (market, span.start) == (BTC, START_US)
    assert span.end >= START_US + 2 * MINUTE_US
    rig.fetcher.finish()
    assert [e.filled for e in table.events() if e.kind == "gap"] == [True]
    rig.scheduler.advance(200.0)
    assert rig.fetcher.asked == []


def test_feed_gap_without_candles_is_over_at_once(rig: Rig) -> None:
    """Where no candle could be missed, the event says so."""
    table = streaming(rig)
    rig.stream.connect(ticker(), gap=Span(START_US + 1, START_US + 2))
    rig.scheduler.run()
    assert [e.filled for e in table.events() if e.kind == "gap"] == [True]


def test_feed_market_without_data_is_an_event_of_its_table_only(rig: Rig) -> None:
    """The venue ignores an unknown code without an error; the table that wanted it has an event."""
    table = streaming(rig)
    other = rig.feed.open(["ticker"], ["KRW-XRP"])
    rig.stream.enter("streaming", silent=(("ticker", ETH),))
    rig.stream.enter("streaming", silent=(("ticker", ETH),))
    assert [(e.kind, e.market) for e in table.events()] == [("silent", ETH)]
    assert other.events() == []


# -- asked for again and again -----------------------------------------------------------------------------------


def test_feed_market_asked_for_often_is_subscribed_and_dropped_again(rig: Rig) -> None:
    """Five asks start the socket for it; a minute without any ends that."""
    for _ in range(5):
        rig.feed.asked("ticker", [BTC])
    assert rig.stream.wanted == {"asked": {"ticker": (BTC,)}}
    rig.stream.connect(ticker())
    assert rig.feed.known_at(rig.latest.slot("ticker", BTC), rig.feed.last_received_s())[1]
    rig.scheduler.advance(30.0, 1.0)
    rig.feed.asked("ticker", [BTC])
    rig.scheduler.advance(59.0, 1.0)
    assert rig.stream.wanted
    rig.scheduler.advance(2.0, 1.0)
    assert rig.stream.wanted == {}
    assert rig.latest.slot("ticker", BTC).wants == 0


def test_feed_market_of_a_table_needs_no_subscription_of_its_own(rig: Rig) -> None:
    """What a table has live already is not subscribed to again."""
    streaming(rig)
    for _ in range(9):
        rig.feed.asked("ticker", [BTC, ETH])
    assert "asked" not in rig.stream.wanted


def test_feed_asks_earn_nothing_where_no_socket_works(rig: Rig) -> None:
    """A socket that cannot be had is given up, and not tried again for minutes."""
    for _ in range(5):
        rig.feed.asked("ticker", [BTC])
    rig.stream.enter("connecting")
    rig.stream.enter("backing-off")
    rig.scheduler.advance(25.0, 1.0)
    rig.feed.asked("ticker", [BTC])
    rig.stream.enter("backing-off")
    rig.scheduler.advance(1.0)
    assert rig.stream.wanted == {}
    for _ in range(9):
        rig.feed.asked("ticker", [BTC])
    assert rig.stream.wanted == {}
    rig.clock.advance(400)
    for _ in range(5):
        rig.feed.asked("ticker", [BTC])
    assert rig.stream.wanted


def test_feed_asked_for_alone_is_not_polled(rig: Rig) -> None:
    """Polls feed tables; what is only asked for is answered by REST when it is asked for."""
    for _ in range(5):
        rig.feed.asked("orderbook", [BTC])
    rig.stream.connect(book())
    rig.stream.enter("backing-off")
    rig.scheduler.advance(10.0)
    assert rig.scheduler.asks() == []


def test_feed_status_says_where_it_stands(rig: Rig) -> None:
    """The state of the socket, its age, and what is live, in plain values."""
    streaming(rig)
    rig.clock.advance(2)
    status = rig.feed.status()
    assert (status["state"], status["age_s"], status["tables"], status["markets"]) == ("streaming", 2.0, 1, 2)
