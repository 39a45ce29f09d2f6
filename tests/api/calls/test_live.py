"""Live tables, the whole path over loopback: frames, callbacks, freshness, outages, faces."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from backbone import Backbone, Priority
from backbone.api import frames as shaping
from backbone.api.calls.live import LiveUpdate
from backbone.api.frames import attrs_of
from backbone.clock import SystemClock
from backbone.coordinator.live.reconcile import LiveEvent
from backbone.errors import ClosedError, InputError, StreamClosedError
from backbone.model import LiveCandle, OrderBook, Ticker, Trade
from backbone.routing import stream as stream_module
from backbone.routing.wire import parse_frame
from backbone.simulator import SimulatorServer
from tests.benchmarks.flood import flooded

LIMIT = 500  # the quota is not what is tested here

MARKETS = ["KRW-BTC", "KRW-ETH", "KRW-XRP"]
TICKER_COLUMNS = [
    *("time", "price", "open", "high", "low", "prev_close", "change", "change_rate"),
    *("volume", "value", "volume_24h", "value_24h", "source", "age"),
    *("ask_volume", "bid_volume", "high_52w", "low_52w", "state"),
]
SOCKET_ALONE = ["ask_volume", "bid_volume", "state"]
BEST = ["best_bid_price", "best_bid_size", "best_ask_price", "best_ask_size"]


def eventually(holds: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """Wait until `holds`."""
    clock, condition = SystemClock(), threading.Condition()
    deadline = clock.monotonic() + timeout_s
    while not (found := holds()):
        assert clock.monotonic() < deadline, "it did not come true in time"
        with condition:
            condition.wait(0.02)
    return found


def rest_requests(venue: SimulatorServer) -> int:
    return sum(sum(n for n in statuses.values()) for group, statuses in venue.counts().items() if group != "websocket")


@pytest.fixture
def moving() -> Iterator[SimulatorServer]:
    """An exchange whose clock runs."""
    with SimulatorServer(seed=7, markets=MARKETS) as server:
        yield server


@pytest.fixture
def trader(moving: SimulatorServer, tmp_path: Path) -> Iterator[Backbone]:
    with Backbone(data_dir=tmp_path / "data", rest_url=moving.rest_url, ws_url=moving.ws_url) as made:
        yield made


# -- frames ------------------------------------------------------------------------------------------------------


def test_live_ticker_frame_has_the_promised_shape(client: Backbone) -> None:
    """A live ticker frame is a ticker frame: same columns, same types, markets in the order asked."""
    with client.live(MARKETS) as table:
        frame = table.frame()
    assert frame.index.name == "market"
    assert frame.index.tolist() == MARKETS
    assert frame.columns.tolist() == TICKER_COLUMNS
    assert str(frame["time"].dtype) == "datetime64[us, Asia/Seoul]"
    assert (frame["source"] == "stream").all()
    assert (frame["age"] >= 0).all()
    assert attrs_of(frame)["sources"] == {"stream": 3}
    assert attrs_of(frame)["state"] == "streaming"


def test_live_rows_are_those_of_rest(client: Backbone) -> None:
    """A row from the socket and a row from REST of the same instant are equal field by field, for every kind."""
    same = {"check_names": True}
    with client.live(MARKETS, ("ticker", "orderbook", "trade")) as table:
        for kind, asked in (
            ("ticker", client.tickers(MARKETS, max_age=0)),
            ("orderbook", client.orderbooks(MARKETS, max_age=0)),
        ):
            live = table.frame(kind)
            own = ["source", "age", *SOCKET_ALONE]
            both = [frame.drop(columns=own, errors="ignore") for frame in (live, asked)]
            pd.testing.assert_frame_equal(*both, **same, check_exact=True)
        trades = table.frame("trade")
        asked = pd.concat(client.trades(market, 1) for market in MARKETS)
        pd.testing.assert_frame_equal(trades.drop(columns=["source", "age"]), asked, check_exact=True)


def test_tickers_carry_what_the_channel_sent(client: Backbone, venue: SimulatorServer) -> None:
    """From the socket: volumes by side, extremes of 52 weeks, the state. REST has the extremes alone; so says the
    frame, with the same types."""
    with client.live(MARKETS) as table:
        live, asked = table.frame(), client.tickers(MARKETS, max_age=0)
        shown = table.frame()
    rows = venue.exchange.tickers(MARKETS, venue.clock.now_us())
    assert live["high_52w"].tolist() == [row["highest_52_week_price"] for row in rows]
    assert live["low_52w"].tolist() == [row["lowest_52_week_price"] for row in rows]
    assert (live["ask_volume"] + live["bid_volume"]).tolist() == pytest.approx(live["volume"].tolist())
    assert live["state"].tolist() == ["ACTIVE"] * 3
    assert asked[SOCKET_ALONE].isna().all(axis=None)
    pd.testing.assert_series_equal(asked["high_52w"], live["high_52w"], check_exact=True)
    assert asked.dtypes.equals(live.dtypes)
    # nothing was traded since: the row of REST is shown with what the socket said of the same trade
    pd.testing.assert_frame_equal(shown[SOCKET_ALONE], live[SOCKET_ALONE], check_exact=True)


def test_live_trades_carry_the_best_prices_after_them(client: Backbone, venue: SimulatorServer) -> None:
    """The best bid and ask come with each streamed trade; their columns are the last."""
    with client.live("KRW-BTC", "trade") as table:
        venue.clock.advance(20)
        assert table.wait(1)
        frame = table.frame()
    assert frame.columns.tolist()[-6:] == ["source", "age", *BEST]
    assert (frame["best_bid_price"] < frame["best_ask_price"]).all()
    assert (frame[["best_bid_size", "best_ask_size"]] > 0).all(axis=None)


def test_live_trade_of_rest_is_no_update_for_what_it_lacks(client: Backbone, venue: SimulatorServer) -> None:
    """A trade that came with its best prices stays as it is when REST sends it without them: no second update."""
    with client.live("KRW-BTC", "trade") as table:
        records = table.records()
        before = table.latest("KRW-BTC")
        assert isinstance(before, Trade)
        core = client.session.coordinator()
        core.feed.latest.offer(
            "trade",
            core.realtime.trades(
                "KRW-BTC", 1, Priority.HIGH, start_us=None, end_us=core.venue.now_us(), today_us=core.venue.now_us()
            ).rows,
            core.clock.monotonic(),
        )
        assert len(records) == 0
        assert table.latest("KRW-BTC") == before
        assert before.best_bid_price is not None


def test_live_ticker_frame_is_the_one_of_the_slow_way(client: Backbone) -> None:
    """The fast way to a pandas frame yields what the common one does, to the last dtype."""
    with client.live("KRW") as table:
        fast = table.frame()
        slow = shaping.deliver(table.frame(frames="arrow"), "pandas", index="market", zone=client.tz, attrs={})
    assert len(fast) > 200
    pd.testing.assert_frame_equal(fast.drop(columns="age"), slow.drop(columns="age"), check_exact=True)
    fast.loc["KRW-BTC", "price"] = 1.0
    fast.loc["KRW-BTC", "source"] = "mine"
    assert table.frame().loc["KRW-BTC", "source"] == "stream"


def test_live_candle_frame_says_what_is_forming(client: Backbone, venue: SimulatorServer) -> None:
    """Live candles come with their market and whether they are still forming, on the venue's clock."""
    venue.clock.advance(30)
    with client.live(MARKETS, "candle.1m") as table:
        frame = table.frame()
        client.candles("KRW-BTC", "1m", count=1)  # what is closed is held: only the one that forms is asked for below
        expected = client.candles("KRW-BTC", "1m", count=1, include_forming=True)
    assert frame.index.name == "time"
    columns = ["market", "open", "high", "low", "close", "volume", "value", "forming", "source", "age"]
    assert frame.columns.tolist() == columns
    assert frame["market"].tolist() == MARKETS
    btc = frame[frame["market"] == "KRW-BTC"].iloc[0]
    assert bool(btc["forming"])
    assert btc["close"] == expected["close"].iloc[-1]
    assert attrs_of(expected)["sources"].get("stream") == 1


@pytest.mark.parametrize("frames", ["polars", "arrow"])
def test_live_other_frames_hold_the_same(client: Backbone, frames: str) -> None:
    """Polars and Arrow frames have the same columns and rows."""
    with client.live(MARKETS) as table:
        other = table.frame(frames=frames)
        names = other.columns if frames == "polars" else other.column_names
        assert list(names) == ["market", *TICKER_COLUMNS]
        assert list(other["market"].to_list() if frames == "polars" else other["market"].to_pylist()) == MARKETS


def test_live_of_a_quote_currency_has_all_its_markets(client: Backbone) -> None:
    """`live("KRW")` is every KRW market."""
    with client.live("krw") as table:
        assert table.markets == tuple(client.markets("KRW").index)
        assert len(table.frame()) == len(table.markets)


def test_live_latest_is_the_record_itself(client: Backbone) -> None:
    """The newest record of a market is there without a frame round it, held once."""
    with client.live(MARKETS, ("ticker", "trade", "orderbook", "candle.1m")) as table:
        kinds = {"ticker": Ticker, "trade": Trade, "orderbook": OrderBook, "candle.1m": LiveCandle}
        for kind, record in kinds.items():
            assert isinstance(table.latest("btc", kind), record)
        assert table.latest("KRW-BTC") is table.latest("KRW-BTC")
        with pytest.raises(InputError, match="market"):
            table.latest("KRW-DOGE")
        with pytest.raises(InputError, match="kind"):
            table.frame("candle.5m")


# -- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", ["tickers", "candle", "candle.1d", "candle.2m", (), ("ticker", "x"), 7, None])
def test_live_unknown_kind_is_refused_before_any_request(client: Backbone, venue: SimulatorServer, kinds: Any) -> None:
    """A kind that the venue does not stream is an `InputError` that names what there is; nothing is asked."""
    with pytest.raises(InputError, match=r"candle\.1m"):
        client.live("KRW-BTC", kinds)
    assert venue.counts() == {}


@pytest.mark.parametrize("markets", [["KRW-BTC", "KRW-NOPE"], "KRW-BTCC", [], [7], "???", "XYZ-*"])
def test_live_unknown_market_is_refused_at_once(client: Backbone, venue: SimulatorServer, markets: Any) -> None:
    """A code that is not listed is an `InputError`, and nothing stays subscribed, which the venue would ignore."""
    with pytest.raises(InputError):
        client.live(markets)
    assert client.session.coordinator().feed.mode == "idle"
    assert "backbone-stream" not in {thread.name for thread in threading.enumerate()}
    opened = venue.counts().get("websocket")
    client.markets()
    with pytest.raises(InputError):
        client.live(markets)
    assert venue.counts().get("websocket") == opened  # with a list at hand none is opened


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "1"])
def test_live_waits_and_queues_want_whole_numbers(client: Backbone, bad: Any) -> None:
    """Counts are whole numbers from one."""
    with client.live("KRW-BTC") as table:
        with pytest.raises(InputError):
            table.wait(bad)
        with pytest.raises(InputError):
            table.records(bad)
        with pytest.raises(InputError):
            table.on_update("not a function")  # type: ignore[arg-type]


# -- books, shorter or grouped -----------------------------------------------------------------------------------


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The frames of books that came over the socket."""
    frames: list[bytes] = []

    def note(payload: bytes) -> Any:
        if b'"orderbook"' in payload[:30]:
            frames.append(payload)
        return parse_frame(payload)

    monkeypatch.setattr(stream_module, "parse_frame", note)
    return frames


@pytest.mark.parametrize(("depth", "units"), [(1, 1), (5, 5), (7, 15), (15, 15), (30, 30)])
def test_live_books_are_no_deeper_on_the_wire_than_wanted(
    client: Backbone, venue: SimulatorServer, sent: list[bytes], depth: int, units: int
) -> None:
    """The venue sends the next depth that it has; frames, records and updates have the one asked for."""
    with client.live(["KRW-BTC", "KRW-ETH"], "orderbook", depth=depth) as table:
        queue = table.records()
        venue.clock.advance(5)
        assert table.wait(2)
        record = queue.get(5)
        frame = table.frame()
        latest = table.latest("KRW-BTC")
    assert frame.groupby("market").size().tolist() == [depth, depth]
    assert frame["level"].max() == depth
    assert isinstance(record, OrderBook)
    assert isinstance(latest, OrderBook)
    assert len(record.levels) == len(latest.levels) == depth
    assert sent
    assert {payload.count(b'"ask_price"') for payload in sent} == {units}
    assert max(map(len, sent)) < 250 + 110 * units


def test_depth_is_that_of_the_books_alone(client: Backbone, venue: SimulatorServer) -> None:
    """Tickers and trades of the same table arrive too; for a code with a book's suffix the venue would send none."""
    with client.live(["KRW-BTC", "KRW-ETH"], ("ticker", "orderbook", "trade"), depth=5) as table:
        venue.clock.advance(5)
        eventually(lambda: all(len(table.frame(kind)) for kind in ("ticker", "orderbook", "trade")), 5)
        assert table.frame("orderbook")["level"].max() == 5
        assert set(table.frame("ticker").index) == {"KRW-BTC", "KRW-ETH"}


def test_live_books_of_two_depths_each_have_their_own(
    client: Backbone, venue: SimulatorServer, sent: list[bytes]
) -> None:
    """Two tables of one market share its books; each shows no more than it wants, and the shorter one goes on alone."""
    with client.live("KRW-BTC", "orderbook", depth=5) as short:
        with client.live("KRW-BTC", "orderbook") as whole:
            venue.clock.advance(5)
            eventually(lambda: len(whole.frame()) == 30)
            assert len(short.frame()) == 5
        before = len(sent)
        venue.clock.advance(5)
        eventually(lambda: any(payload.count(b'"ask_price"') == 5 for payload in sent[before:]))
        assert len(short.frame()) == 5


def test_live_short_books_answer_no_deeper_question(client: Backbone, venue: SimulatorServer) -> None:
    """A call that wants more levels than the stream sends asks the venue; one that does not is answered from it."""
    with client.live("KRW-BTC", "orderbook", depth=5):
        best = client.orderbooks("KRW-BTC", depth=5, max_age=15.0)
        assert attrs_of(best)["sources"] == {"stream": 5}
        whole = client.orderbooks("KRW-BTC", max_age=15.0)
        assert attrs_of(whole)["sources"] == {"rest": 30}
        pd.testing.assert_frame_equal(whole.head(5), best, check_exact=True)


def test_live_grouped_books_are_those_of_rest(client: Backbone, venue: SimulatorServer, sent: list[bytes]) -> None:
    """A table of grouped books shows what REST groups so, beside one that is not grouped."""
    whole = client.orderbooks("KRW-BTC")
    grouped = client.orderbooks("KRW-BTC", level=10_000)
    with client.live("KRW-BTC", "orderbook", level=10_000) as table, client.live("KRW-BTC", "orderbook") as plain:
        for shown, expected in ((table, grouped), (plain, whole)):
            frame = shown.frame()
            assert set(frame["source"]) == {"stream"}
            pd.testing.assert_frame_equal(frame[expected.columns.tolist()], expected, check_exact=True)
        assert table.kinds == ("orderbook",)
        assert table.frame("orderbook").equals(table.frame()) or len(table.frame("orderbook")) == 30
    assert any(b'"level":10000' in payload for payload in sent)


def test_live_grouped_books_are_polled_with_their_depth_and_level(trader: Backbone, moving: SimulatorServer) -> None:
    """Where the venue takes no socket, REST feeds the same books: grouped, and no more levels than are needed."""
    moving.faults.add("ws-refuse", times=1000)
    with trader.live("KRW-BTC", "orderbook", depth=4, level=10_000) as table:
        eventually(lambda: table.state == "polling" and len(table.frame()) == 4)
        book = table.latest("KRW-BTC")
    assert isinstance(book, OrderBook)
    assert book.level == 10_000
    assert set(table.frame()["source"]) == {"rest"}


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ({"level": 7}, "one of 0, 10000, 100000"),
        ({"level": -1}, "price groupings"),
        ({"level": "10000"}, "price groupings"),
        ({"depth": 0}, "from 1 to 30"),
        ({"depth": 31}, "from 1 to 30"),
        ({"depth": True}, "from 1 to 30"),
    ],
)
def test_live_level_or_depth_that_is_not_had_is_refused(
    client: Backbone, venue: SimulatorServer, words: dict[str, Any], allowed: str
) -> None:
    """A depth or level that the venue would leave unanswered is an `InputError`; no socket is opened."""
    with pytest.raises(InputError, match=allowed):
        client.live("KRW-BTC", "orderbook", **words)
    assert "websocket" not in venue.counts()


def test_live_level_must_be_offered_by_every_market(client: Backbone, venue: SimulatorServer) -> None:
    """One market that is not grouped so is named with its own groupings."""
    with pytest.raises(InputError, match=r"one of 0.* for BTC-ETH"):
        client.live(["KRW-BTC", "BTC-ETH"], "orderbook", level=10_000)
    with pytest.raises(InputError, match="order books"):
        client.live("KRW-BTC", "ticker", depth=5)


def test_grouped_books_asked_for_again_and_again_are_subscribed(trader: Backbone, moving: SimulatorServer) -> None:
    """As other kinds: their asks get a subscription in the background."""
    for _ in range(6):
        trader.orderbooks("KRW-BTC", level=10_000, max_age=0.001)
    eventually(lambda: attrs_of(trader.orderbooks("KRW-BTC", level=10_000))["sources"] == {"stream": 30})


# -- updates and callbacks ---------------------------------------------------------------------------------------


def test_live_callbacks_run_on_their_own_thread(client: Backbone, venue: SimulatorServer) -> None:
    """A callback never runs on the socket's thread, and gets what changed."""
    seen: list[tuple[str, LiveUpdate]] = []
    with client.live(MARKETS) as table:

        @table.on_update
        def note(update: LiveUpdate) -> None:
            seen.append((threading.current_thread().name, update))

        venue.clock.advance(60)
        assert table.wait(1)
        eventually(lambda: seen)
        name, update = seen[0]
        assert name == "backbone-callbacks"
        assert set(update.markets) <= set(MARKETS)
        assert all(isinstance(row, Ticker) for row in update)
        assert update.frame().index.tolist() == [row.market for row in update]
        assert callable(note)


def test_live_slow_callback_sees_the_latest_and_misses_are_counted(client: Backbone, venue: SimulatorServer) -> None:
    """While a callback dawdles, changes gather; it then gets the newest of each market, and the rest is counted."""
    release, entered = threading.Event(), threading.Event()
    seen: list[LiveUpdate] = []

    def slow(update: LiveUpdate) -> None:
        seen.append(update)
        entered.set()
        release.wait(10)

    with client.live("KRW-BTC") as table:
        table.on_update(slow)
        venue.clock.advance(5)
        assert entered.wait(10)
        before = table.received
        for _ in range(20):
            venue.clock.advance(5)
            table.wait(1, 1.0)
        gathered = table.received - before
        release.set()
        eventually(lambda: len(seen) >= 2)
        assert len(seen[1]) == 1
        eventually(lambda: table.missed == sum(update.missed for update in seen))
        assert table.missed >= gathered - 1 > 0


def test_live_callback_that_raises_ends_nothing(client: Backbone, venue: SimulatorServer) -> None:
    """An error that a callback raises is logged and recorded as an event; the table and other callbacks go on."""
    good: list[LiveUpdate] = []

    def bad(update: LiveUpdate) -> None:
        raise RuntimeError("mine")

    with client.live("KRW-BTC") as table:
        table.on_update(bad)
        table.on_update(good.append)
        for n in range(3):
            venue.clock.advance(10)
            eventually(lambda n=n: len(good) > n)  # type: ignore[misc]
        assert table.callback_errors == 3 == len(good)
        assert isinstance(table.last_error, RuntimeError)
        assert [event.kind for event in table.events] == ["callback"]


def test_live_callback_may_stop_its_own_table(client: Backbone, venue: SimulatorServer) -> None:
    """Stopping from within a callback does not lock up."""
    with client.live("KRW-BTC") as table:
        stopped = threading.Event()

        def stop(update: LiveUpdate) -> None:
            table.stop()
            stopped.set()

        table.on_update(stop)
        venue.clock.advance(10)
        assert stopped.wait(10)
        assert table.state == "stopped"


def test_live_wait_ends_with_the_last_record_or_in_time(client: Backbone, venue: SimulatorServer) -> None:
    """`wait` needs no sleep: it ends when so many records came, and says when they did not."""
    with client.live("KRW-BTC") as table:
        assert not table.wait(1, timeout_s=0.05)
        for _ in range(3):
            mover = threading.Timer(0.05, lambda: venue.clock.advance(20))
            mover.start()
            assert table.wait(1, timeout_s=10)
            mover.join()


def test_live_updates_can_be_looped_over(client: Backbone, venue: SimulatorServer) -> None:
    """A loop over updates gets changes as they come, and ends in time or with the table."""
    with client.live(MARKETS) as table:
        mover = threading.Timer(0.1, lambda: venue.clock.advance(20))
        mover.start()
        update = next(table.updates(timeout_s=30.0))
        mover.join()
        assert update
        assert set(update.markets) <= set(MARKETS)
        assert all(set(update.markets) <= set(MARKETS) for update in table.updates(timeout_s=0.3))
        stopper = threading.Timer(0.1, table.stop)
        stopper.start()
        assert list(table.updates()) == []
        stopper.join()


def test_live_records_are_queued_whole_and_bounded(client: Backbone, venue: SimulatorServer) -> None:
    """Every record is there, in order, up to the bound."""
    with client.live("KRW-BTC", "trade") as table:
        queue = table.records(1000)
        venue.clock.advance(30)
        eventually(lambda: len(queue) >= 3)
        first = queue.get(1)
        assert isinstance(first, Trade)
        ids = {first.sequential_id}
        while (record := queue.get(0.2)) is not None:
            assert isinstance(record, Trade)
            assert record.sequential_id not in ids
            ids.add(record.sequential_id)
        assert queue.dropped == 0
        queue.end()


# -- the end -----------------------------------------------------------------------------------------------------


def socket_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name in ("backbone-stream", "backbone-callbacks")]


def test_live_tables_share_one_socket_and_the_last_one_ends_it(client: Backbone, venue: SimulatorServer) -> None:
    """Several tables need one connection and one thread, which end with the last table."""
    first, second = client.live("KRW-BTC"), client.live(MARKETS, ("ticker", "trade"))
    assert socket_threads() == ["backbone-stream"]
    assert venue.counts()["websocket"] == {101: 1}
    first.stop()
    assert socket_threads() == ["backbone-stream"]
    venue.clock.advance(30)
    assert second.wait(1)
    second.stop()
    second.stop()
    assert socket_threads() == []
    third = client.live("KRW-BTC")
    assert third.frame().index.tolist() == ["KRW-BTC"]
    third.stop()


def test_live_stopped_table_shows_its_last_rows_and_says_so(client: Backbone) -> None:
    """What is shown stays; what needs a live table raises."""
    table = client.live(MARKETS)
    received = table.received
    table.stop()
    assert table.frame().index.tolist() == MARKETS
    assert table.received == received >= 3
    assert table.state == "stopped"
    assert attrs_of(table.frame())["state"] == "stopped"
    for call in (table.wait, lambda: next(table.updates()), table.records, lambda: table.on_update(print)):
        with pytest.raises(StreamClosedError):
            call()


def test_live_client_closed_stops_its_tables(venue: SimulatorServer, tmp_path: Path) -> None:
    """Closing the client ends its tables, their callbacks and the socket."""
    client = Backbone(data_dir=tmp_path, rest_url=venue.rest_url, ws_url=venue.ws_url)
    table = client.live("KRW-BTC")
    table.on_update(lambda update: None)
    client.close()
    assert table.state == "stopped"
    assert socket_threads() == []
    with pytest.raises(ClosedError):
        client.live("KRW-BTC")


# -- freshness ---------------------------------------------------------------------------------------------------


def test_tickers_young_enough_come_from_the_table(client: Backbone, venue: SimulatorServer) -> None:
    """While a table is live, tickers need no request, and the frame says so; `max_age=0` still asks the venue."""
    with client.live(MARKETS):
        venue.reset_log()
        frame = client.tickers(MARKETS, max_age=15.0)
        assert rest_requests(venue) == 0
        assert (frame["source"] == "stream").all()
        assert (frame["age"] <= 15.0).all()
        assert attrs_of(frame)["sources"] == {"stream": 3}
        assert attrs_of(frame)["requests"] == 0
        asked = client.tickers(MARKETS, max_age=0)
        assert (asked["source"] == "rest").all()
        assert rest_requests(venue) == 1


def test_tickers_of_a_quote_come_from_a_table_of_all(client: Backbone, venue: SimulatorServer) -> None:
    """A screener over a whole quote currency is answered by a table that holds it."""
    with client.live("KRW"):
        venue.reset_log()
        frame = client.tickers("KRW", max_age=15.0)
        assert set(frame["source"]) == {"stream"}
        # The table watches the market list on its own; no ticker was asked.
        assert [asked.path for asked in venue.requests if asked.group != "market"] == []


def test_critical_takes_the_stream_while_a_frame_just_arrived(trader: Backbone, moving: SimulatorServer) -> None:
    """On a busy socket a critical call needs no request; without one it asks the venue."""
    assert set(trader.tickers(MARKETS, priority=Priority.CRITICAL)["source"]) == {"rest"}
    with trader.live(MARKETS) as table:

        def answered() -> bool:
            table.wait(1, 2.0)
            return set(trader.tickers(MARKETS, priority="critical")["source"]) == {"stream"}

        eventually(answered)


def test_orderbooks_and_trades_come_from_the_table(client: Backbone, venue: SimulatorServer) -> None:
    """Books and the newest trades are answered from the stream, row by row what REST says."""
    books, trades = client.orderbooks(MARKETS), client.trades("KRW-BTC", 1)
    with client.live(MARKETS, ("orderbook", "trade")):
        venue.reset_log()
        streamed = client.orderbooks(MARKETS, max_age=15.0)
        assert attrs_of(streamed)["sources"] == {"stream": 90}
        newest = client.trades("KRW-BTC", 1)
        assert attrs_of(newest)["sources"] == {"stream": 1}
        assert rest_requests(venue) == 0
    pd.testing.assert_frame_equal(streamed, books, check_exact=True)
    pd.testing.assert_frame_equal(newest.drop(columns=BEST), trades.drop(columns=BEST), check_exact=True)
    assert newest[BEST].notna().all(axis=None)
    assert trades[BEST].isna().all(axis=None)


def test_trades_beyond_what_the_stream_sent_are_requested(client: Backbone, venue: SimulatorServer) -> None:
    """Only trades that the stream sent without a hole are answered from it."""
    with client.live("KRW-BTC", "trade"):
        frame = client.trades("KRW-BTC", 100)
        assert attrs_of(frame)["sources"] == {"rest": 100}
        venue.clock.advance(20)


def test_market_asked_for_again_and_again_is_subscribed(trader: Backbone, moving: SimulatorServer) -> None:
    """Asks that go on get a subscription in the background, and then cost no request."""
    for _ in range(6):
        trader.tickers("KRW-BTC", max_age=0.001)
    assert "backbone-stream" in socket_threads()
    eventually(lambda: trader.tickers("KRW-BTC")["source"].tolist() == ["stream"])
    assert trader.status().attrs["backbone"]["stream"]["asked_for"] == 1


# -- what tickers say of their markets ----------------------------------------------------------------------------


def test_live_tickers_that_say_something_new_are_kept_as_events(
    trader: Backbone, moving: SimulatorServer, patient: None
) -> None:
    """A coming delisting, a suspension and a warning are events of the table and, later, of the store."""
    with trader.live("KRW") as table:
        threads: set[str] = set()
        log = trader.session.coordinator().market_log
        flush = log.flush
        log.flush = lambda: threads.add(threading.current_thread().name) or flush()  # type: ignore[method-assign]
        moving.faults.add("delist", market="KRW-XRP", at="2099-01-01T00:00:00Z")
        eventually(lambda: [event for event in table.events if event.kind == "state"])
        moving.faults.add("describe", market="KRW-ETH", suspended=True)
        eventually(lambda: len([event for event in table.events if event.kind == "state"]) == 2)
        first, second = (event for event in table.events if event.kind == "state")
        assert (first.market, "delisted on 2099-01-01" in first.detail) == ("KRW-XRP", True)
        assert (second.market, "suspended" in second.detail) == ("KRW-ETH", True)
        eventually(lambda: threads)
    assert not threads & {"backbone-stream", "MainThread"}
    events = trader.store.events()
    states = events[events["kind"] == "state"]
    assert states["market"].tolist() == ["KRW-XRP", "KRW-ETH"]
    assert json.loads(states["detail"].iloc[0])["delisting_date"] == "2099-01-01"
    assert json.loads(states["detail"].iloc[1])["is_trading_suspended"] is True


def test_live_ticker_of_a_delisting_has_the_list_asked_at_once(
    trader: Backbone, moving: SimulatorServer, patient: None
) -> None:
    """The list is asked for within seconds, not at the next minute."""
    with trader.live("KRW") as table:
        moving.reset_log()
        moving.faults.add("describe", market="KRW-XRP", state="DELISTED")
        eventually(lambda: "market" in moving.counts())
        assert [event.kind for event in table.events] == ["state"]


# -- outages -----------------------------------------------------------------------------------------------------


def test_live_plug_pulled_and_put_back_needs_no_user_code(trader: Backbone, moving: SimulatorServer) -> None:
    """The table falls back and recovers by itself, with its subscriptions, and says how long it was without data."""
    with trader.live(MARKETS, ("ticker", "candle.1s")) as table:
        table.wait(3)
        states = {table.state}
        moving.pause()
        eventually(lambda: states.add(table.state) or "polling" in states)
        shown = table.frame()
        assert shown.index.tolist() == MARKETS
        moving.resume()
        eventually(lambda: table.state == "streaming")
        assert states >= {"streaming", "reconnecting", "polling"}
        before = table.received
        assert table.wait(3, 15)
        assert table.received >= before + 3
        (gap,) = eventually(lambda: [e for e in table.events if e.kind == "gap" and e.filled])
        assert gap.gap_start < gap.gap_end
        assert str(gap.gap_start.tzinfo) == "Asia/Seoul"
    closed = gap.gap_end.replace(microsecond=0)  # the second in which it ended is confirmed with those after it
    seconds = trader.candles("KRW-BTC", "1s", gap.gap_start, closed, offline=True)
    assert attrs_of(seconds)["unknown"] == 0


def test_live_without_a_socket_is_fed_by_polls(trader: Backbone, moving: SimulatorServer) -> None:
    """Where the venue takes no socket, REST feeds the table at a tenth of the quota, and the table says so."""
    moving.faults.add("ws-refuse", times=1000)
    with trader.live(MARKETS) as table:
        eventually(lambda: table.state == "polling" and len(table.frame()) == 3)
        assert set(table.frame()["source"]) == {"rest"}
        moving.reset_log()
        table.wait(2, 4.0)
        assert moving.peak("ticker") <= 2
        assert not trader.health()
        moving.faults.clear()
        eventually(lambda: table.state == "streaming", 40)


# -- faces -------------------------------------------------------------------------------------------------------


def test_live_repr_is_one_line(client: Backbone) -> None:
    """The repr says what it is, how it is fed, and how much came."""
    with client.live(MARKETS, ("ticker", "trade")) as table:
        assert repr(table) == f"<LiveTable ticker trade of 3 markets, streaming, {table.received} received>"
    assert "stopped" in repr(table)


@pytest.mark.parametrize("kind", ["ticker", "trade", "orderbook", "candle.1m"])
def test_live_table_has_a_text_and_a_page_without_widgets(client: Backbone, kind: str) -> None:
    """Outside a notebook every kind shows itself as text and static HTML."""
    with client.live(MARKETS, kind) as table:
        bundle = table._repr_mimebundle_()
        assert set(bundle) == {"text/html", "text/plain"}
        for market in MARKETS:
            assert market in bundle["text/plain"]
            assert market in bundle["text/html"]
        assert "streaming" in bundle["text/plain"]
    assert "KRW-BTC" in table._repr_html_()


def test_live_table_shows_prices_with_their_markets_digits(client: Backbone) -> None:
    """The price steps are asked for when the table is shown, without holding it up."""
    with client.live("KRW-BTC") as table:
        table._repr_html_()
        eventually(lambda: table._core.realtime.known_tick("KRW-BTC"))
        (row,) = table.snapshot().rows
        assert row.tick == 1000.0
        assert row.name


def test_live_tables_line_says_what_happened_to_markets_of_late(trader: Backbone, moving: SimulatorServer) -> None:
    """The newest two of ten minutes, the newest first."""
    with trader.live("KRW") as table:
        core = trader.session.coordinator()
        now_us = core.venue.now_us()
        for kind, market, age_us in (
            ("listed", "KRW-A", 601_000_000),
            ("listed", "KRW-B", 3),
            ("delisted", "KRW-C", 2),
        ):
            core.feed.confirmer.record(LiveEvent(kind, now_us - age_us, market, detail=f"{market} was {kind}"))
        assert table.snapshot().note.endswith(" updates · KRW-C was delisted · KRW-B was listed")
        core.feed.confirmer.record(LiveEvent("state", now_us, "KRW-XRP", detail="KRW-XRP is DELISTED"))
        assert table.snapshot().note.endswith(" updates · KRW-XRP is DELISTED · KRW-C was delisted")


def test_live_status_names_the_stream(client: Backbone) -> None:
    """`status()` says where the stream stands, and health is content with it."""
    assert client.status().attrs["backbone"]["stream"] == {}
    with client.live(MARKETS):
        facts = client.status().attrs["backbone"]["stream"]
        assert (facts["state"], facts["tables"], facts["markets"]) == ("streaming", 1, 3)
    assert client.status().attrs["backbone"]["stream"]["state"] == "idle"


def test_live_table_is_a_context_that_ends_on_errors(client: Backbone) -> None:
    """Whatever leaves the `with`, the table is stopped."""
    table = client.live("KRW-BTC")
    with pytest.raises(RuntimeError), table:
        raise RuntimeError
    assert table.state == "stopped"


def test_live_crowd_opening_and_stopping_tables_leaves_nothing(trader: Backbone, moving: SimulatorServer) -> None:
    """Threads that open, read and stop tables at once, over a busy socket and an outage, leave one table as it was."""
    clock = SystemClock()
    failures: list[BaseException] = []
    with trader.live(MARKETS, ("ticker", "trade")) as kept, flooded(moving, 1000):
        end = clock.monotonic() + 3

        def crowd(number: int) -> None:
            kinds = ("ticker", "orderbook", "candle.1s", "trade")[number % 4]
            try:
                while clock.monotonic() < end:
                    with trader.live(MARKETS[: 1 + number % 3], kinds) as table:
                        table.on_update(lambda update: update.frame())
                        table.wait(5, 0.2)
                        table.frame()
                        trader.tickers(MARKETS)
            except BaseException as exc:
                failures.append(exc)
                raise

        threads = [threading.Thread(target=crowd, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        moving.pause()
        moving.resume()
        for thread in threads:
            thread.join(30)
        assert failures == []
        eventually(lambda: kept.state == "streaming")
        assert kept.wait(10)
        latest = trader.session.coordinator().latest
        assert all(slot.followers == () for slots in latest._slots.values() for slot in slots.values())
        wanted = {kind for kind, slots in latest._slots.items() for slot in slots.values() if slot.wants}
        assert wanted == {"ticker", "trade"}
    assert socket_threads() == []


def test_live_trades_over_a_reconnect_are_all_there_once_and_in_order(
    trader: Backbone, moving: SimulatorServer
) -> None:
    """Records of an outage are those of the exchange, without a hole and without a double."""
    with trader.live(["KRW-BTC"], ["trade"]) as table:
        records = table.records()
        first = records.get(30)
        assert isinstance(first, Trade)
        moving.pause()
        eventually(lambda: table.state == "polling")
        moving.resume()
        eventually(lambda: any(event.kind == "gap" and event.filled for event in table.events))
        last = records.get(10)
        found = [first]
        while isinstance(last, Trade):
            found.append(last)
            last = records.get(0) if len(records) else None
        truth = moving.exchange.trades("KRW-BTC", moving.clock.now_us(), 500)
        ids = sorted(row["sequential_id"] for row in truth)
        expected = [one for one in ids if found[0].sequential_id <= one <= found[-1].sequential_id]
        assert [trade.sequential_id for trade in found] == expected
        assert table.missed == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_live_table_in_a_forked_child_has_stopped(trader: Backbone) -> None:
    """The child sees that the rows no longer change, and can open a table of its own."""
    with trader.live(MARKETS) as table:
        table.on_update(lambda update: None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
            child = os.fork()
        if child == 0:
            code = 1
            try:
                assert table.state == "stopped"
                for use in (table.frame, table.wait, lambda: table.latest(MARKETS[0])):
                    with pytest.raises(StreamClosedError, match="parent"):
                        use()
                table.stop()
                with trader.live(MARKETS) as own:
                    assert own.wait(1, 10)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert table.state == "streaming"
        assert len(table.frame()) == len(MARKETS)
