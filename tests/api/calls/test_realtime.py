"""Tickers, order books, trades and markets, the whole path over loopback: rows, words, faults, memory."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from backbone import Backbone
from backbone.api.frames import attrs_of
from backbone.errors import IncompleteError, InputError, PayloadError, RejectedError, SourceError, UnreachableError
from backbone.model import Priority, Span
from backbone.simulator import SimulatorServer
from tests.conftest import NOW
from tests.routing.socket_venue import eventually

LIMIT = 500  # the quota is not what is tested here

TICKER_COLUMNS = ["time", "price", "open", "high", "low", "prev_close", "change", "change_rate", "volume", "value"]
TICKER_COLUMNS += ["volume_24h", "value_24h", "source", "age"]
TICKER_COLUMNS += ["ask_volume", "bid_volume", "high_52w", "low_52w", "state"]
BOOK_COLUMNS = ["market", "time", "level", "ask_price", "ask_size", "bid_price", "bid_size"]
TRADE_COLUMNS = ["market", "price", "volume", "side", "sequential_id"]
TRADE_COLUMNS += ["best_bid_price", "best_bid_size", "best_ask_price", "best_ask_size"]
DAY_US = 86_400_000_000


def facts(frame: Any) -> dict[str, Any]:
    return attrs_of(frame)


def asked(venue: SimulatorServer, group: str) -> int:
    """Requests of one wire group since the log was reset."""
    return sum(venue.counts().get(group, {}).values())


@pytest.fixture
def own_venue() -> Iterator[SimulatorServer]:
    """An exchange that a test may change for good."""
    with SimulatorServer(seed=7, now=NOW, frozen=True, limit=1000) as server:
        yield server


@pytest.fixture
def own_client(own_venue: SimulatorServer, tmp_path: Path) -> Iterator[Backbone]:
    with Backbone(data_dir=tmp_path, rest_url=own_venue.rest_url, ws_url=own_venue.ws_url) as made:
        yield made


@pytest.mark.parametrize(
    ("path", "kind", "requests"),
    [
        ("/v1/market/all", "short", 3),
        ("/v1/market/all", "empty", 3),
        ("/v1/ticker/all", "short", 3),
        ("/v1/ticker/all", "empty", 4),  # it says nothing of the list, which another one confirms
    ],
)
def test_first_tickers_and_first_list_are_each_others_witness(
    own_client: Backbone, own_venue: SimulatorServer, path: str, kind: str, requests: int
) -> None:
    """Whichever of the two first replies of a folder lacks markets, all are there."""
    own_venue.faults.add(kind, times=1, match=path)
    frame = own_client.tickers("KRW")
    listed = own_venue.exchange.listed(own_venue.clock.now_us())
    assert set(frame.index) == {code for code in listed if code.startswith("KRW-")}
    assert len(own_venue.requests) == requests


# -- tickers -----------------------------------------------------------------------------------------------------


def test_tickers_of_a_quote_currency_are_one_request(client: Backbone, venue: SimulatorServer) -> None:
    """All KRW markets, in the venue's order, every number as the exchange has it, in a single call.

    The first reply and the market list are compared: each is the other's witness.
    """
    frame = client.tickers("KRW", max_age=0)
    assert [r.path for r in venue.requests] == ["/v1/ticker/all", "/v1/market/all"]
    venue.reset_log()
    frame = client.tickers("KRW", max_age=0)
    assert [r.path for r in venue.requests] == ["/v1/ticker/all"]
    truth = venue.exchange.tickers(list(frame.index), venue.clock.now_us())
    listed = [code for code in venue.exchange.listed(venue.clock.now_us()) if code.startswith("KRW-")]
    assert list(frame.index) == listed
    assert list(frame.columns) == TICKER_COLUMNS
    names = {
        "price": "trade_price",
        "open": "opening_price",
        "high": "high_price",
        "low": "low_price",
        "prev_close": "prev_closing_price",
        "change": "signed_change_price",
        "change_rate": "signed_change_rate",
        "volume": "acc_trade_volume",
        "value": "acc_trade_price",
        "volume_24h": "acc_trade_volume_24h",
        "value_24h": "acc_trade_price_24h",
    }
    for ours, theirs in names.items():
        assert frame[ours].tolist() == [row[theirs] for row in truth], ours
    assert (frame["change"] < 0).any()
    at_us = frame["time"].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().astype("datetime64[us]").astype(np.int64)
    assert at_us.tolist() == [row["trade_timestamp"] * 1000 for row in truth]


def test_tickers_of_a_list_are_one_request_in_its_order(client: Backbone, venue: SimulatorServer) -> None:
    """Any list, however it is spelled, is asked for at once and comes back in its own order, each market once."""
    client.markets()
    venue.reset_log()
    frame = client.tickers(["krw-eth", "BTC", "BTC/KRW", "BTC-ETH", "KRW-ETH"], max_age=0)
    assert list(frame.index) == ["KRW-ETH", "KRW-BTC", "BTC-ETH"]
    assert venue.counts() == {"ticker": {200: 1}}


def test_tickers_types_do_not_depend_on_the_frames(client: Backbone) -> None:
    """pandas, Polars and Arrow have the same columns, the same types and the same facts."""
    pandas_frame = client.tickers(["KRW-BTC", "KRW-ETH"])
    assert str(pandas_frame["time"].dtype) == "datetime64[us, Asia/Seoul]"
    numbers = set(TICKER_COLUMNS) - {"time", "source", "state"}
    assert {str(pandas_frame[name].dtype) for name in numbers} == {"float64"}
    polars_frame = client.tickers(["KRW-BTC", "KRW-ETH"], frames="polars")
    assert isinstance(polars_frame, pl.DataFrame)
    assert polars_frame.columns == ["market", *TICKER_COLUMNS]
    arrow = client.tickers(["KRW-BTC", "KRW-ETH"], frames="arrow")
    assert isinstance(arrow, pa.Table)
    assert arrow.schema.field("time").type == pa.timestamp("us", tz="Asia/Seoul")
    assert facts(arrow).keys() == facts(polars_frame).keys() == facts(pandas_frame).keys()
    assert json.loads(json.dumps(facts(arrow)))["data_count"] == 2


def test_tickers_young_enough_come_from_memory(client: Backbone, venue: SimulatorServer) -> None:
    """`max_age` decides: the same rows without a request, named so; nought asks the venue."""
    first = client.tickers("KRW", max_age=0)
    venue.reset_log()
    again = client.tickers("KRW", max_age=60)
    assert venue.counts() == {}
    assert facts(again)["source"] == "memory"
    assert facts(again)["cache_hit"] is True
    assert facts(again)["sources"] == {"memory": len(first)}
    assert (again["age"] > first["age"]).all()
    pd.testing.assert_frame_equal(first.drop(columns="age"), again.drop(columns="age"), check_exact=True)
    one = client.tickers("KRW-BTC", max_age=60)
    assert asked(venue, "ticker") == 0
    assert one.loc["KRW-BTC", "price"] == first.loc["KRW-BTC", "price"]
    assert facts(client.tickers("KRW-BTC", max_age=0))["requests"] == 1
    assert asked(venue, "ticker") == 1


def test_tickers_partly_in_memory_ask_for_the_rest(client: Backbone, venue: SimulatorServer) -> None:
    """Only what is not at hand is asked for, and the facts say which rows came from where."""
    client.tickers("KRW-ETH", max_age=0)
    venue.reset_log()
    frame = client.tickers(["KRW-BTC", "KRW-ETH", "KRW-XRP"], max_age=60)
    assert [r.query for r in venue.requests] == [{"markets": "KRW-BTC,KRW-XRP"}]
    assert facts(frame)["sources"] == {"rest": 2, "memory": 1}
    assert facts(frame)["source"] == "mixed"
    assert list(frame.index) == ["KRW-BTC", "KRW-ETH", "KRW-XRP"]


def test_tickers_asked_by_critical_are_never_from_memory(client: Backbone, venue: SimulatorServer) -> None:
    """At critical, a call without `max_age` is answered by the venue."""
    client.tickers("KRW-BTC", max_age=0)
    venue.reset_log()
    assert facts(client.tickers("KRW-BTC", priority="critical"))["priority"] == "critical"
    assert venue.counts() == {"ticker": {200: 1}}


def test_tickers_asked_at_once_by_many_threads_are_one_request(client: Backbone, venue: SimulatorServer) -> None:
    """Identical asks in flight are shared."""
    client.markets()
    venue.reset_log()
    venue.faults.add("slow", match="/v1/ticker", seconds=1.5)
    gate = threading.Barrier(8)
    prices: list[float] = []

    def ask() -> None:
        gate.wait()
        prices.append(client.tickers(["KRW-BTC", "KRW-ETH"], max_age=0).loc["KRW-BTC", "price"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(prices) == 8
    assert len(set(prices)) == 1
    assert asked(venue, "ticker") == 1


def test_tickers_delisted_meanwhile_is_named_and_the_others_answered(
    own_client: Backbone, own_venue: SimulatorServer
) -> None:
    """One market that went away does not sink the list: the others are in the frame, in three requests."""
    codes = ["KRW-BTC", "KRW-NEO", "KRW-ETH", *own_client.markets("KRW").index[5:60]]
    codes = list(dict.fromkeys(codes))
    own_venue.faults.add("delist", market="KRW-NEO")
    own_venue.reset_log()
    with pytest.raises(IncompleteError, match="KRW-NEO") as caught:
        own_client.tickers(codes, max_age=0)
    assert caught.value.gaps == ("KRW-NEO",)
    assert list(caught.value.frame.index) == [code for code in codes if code != "KRW-NEO"]
    assert facts(caught.value.frame)["unknown"] == 1
    assert own_venue.counts() == {"ticker": {404: 1, 200: 1}, "market": {200: 2}}
    own_venue.reset_log()
    with pytest.raises(InputError, match="KRW-NEO"):
        own_client.tickers(codes, max_age=0)
    assert own_venue.counts() == {}


def test_tickers_of_one_delisted_market_is_an_input_error(own_client: Backbone, own_venue: SimulatorServer) -> None:
    """Where no market is left to answer for, the argument is wrong."""
    own_client.markets()
    own_venue.faults.add("delist", market="KRW-NEO")
    for ask in (own_client.tickers, own_client.orderbooks, own_client.trades):
        with pytest.raises(InputError, match="KRW-NEO"):
            ask("KRW-NEO")


def test_tickers_of_a_market_listed_since_are_answered(own_client: Backbone, own_venue: SimulatorServer) -> None:
    """A list that is no longer young is asked for again before a code is refused."""
    own_venue.faults.add("rename", market="KRW-NEO", to="KRW-NEW")
    own_client.markets()
    held = own_client.session.coordinator().markets
    without = tuple(info for info in held._list.markets if info.market != "KRW-NEW")
    held._list = dataclasses.replace(held._list, markets=without)
    held._at_s -= 11
    assert list(own_client.tickers("KRW-NEW").index) == ["KRW-NEW"]


def test_tickers_unknown_market_is_refused_before_any_ticker_is_asked(client: Backbone, venue: SimulatorServer) -> None:
    """One unknown code in a list is an `InputError` that names the nearest ones; nothing is asked while the list is
    young.
    """
    client.markets()
    venue.reset_log()
    with pytest.raises(InputError, match=r"KRW-BTCC.*nearest: KRW-BTC") as caught:
        client.tickers(["KRW-ETH", "KRW-BTCC"])
    assert caught.value.value == "KRW-BTCC"
    assert venue.counts() == {}


def test_tickers_of_an_unknown_quote_currency_are_refused(client: Backbone, venue: SimulatorServer) -> None:
    """A currency without markets is wrong input, not an empty frame."""
    with pytest.raises(InputError, match="quote currency"):
        client.tickers("EUR-*")
    assert asked(venue, "ticker") == 0
    assert len(client.tickers("BTC-*")) > 10


# -- order books -------------------------------------------------------------------------------------------------


def test_orderbooks_are_one_request_best_first(client: Backbone, venue: SimulatorServer) -> None:
    """A row a level of each market in the order asked for, in one call, as the exchange has them."""
    client.markets()
    venue.reset_log()
    frame = client.orderbooks(["KRW-ETH", "KRW-BTC"])
    assert venue.counts() == {"orderbook": {200: 1}}
    assert list(frame.columns) == BOOK_COLUMNS
    assert list(dict.fromkeys(frame["market"])) == ["KRW-ETH", "KRW-BTC"]
    for market, book in frame.groupby("market"):
        truth = venue.exchange.orderbook(market, venue.clock.now_us())
        assert truth is not None
        assert book["level"].tolist() == list(range(1, 31))
        for name in ("ask_price", "ask_size", "bid_price", "bid_size"):
            assert book[name].tolist() == [float(unit[name]) for unit in truth["orderbook_units"]]
        assert book["ask_price"].is_monotonic_increasing
        assert book["bid_price"].is_monotonic_decreasing
        assert book["ask_price"].iloc[0] > book["bid_price"].iloc[0]
    assert str(frame["time"].dtype) == "datetime64[us, Asia/Seoul]"
    assert str(frame["level"].dtype) == "int64"


def test_orderbooks_padded_side_is_nan(client: Backbone, venue: SimulatorServer) -> None:
    """A side with fewer orders is NaN from there on, never a zero price; the longer side is whole."""
    now = venue.clock.now_us()
    thin = next(
        code
        for code in venue.exchange.listed(now)
        if any(
            u["ask_price"] == 0 or u["bid_price"] == 0 for u in venue.exchange.orderbook(code, now)["orderbook_units"]
        )
    )
    frame = client.orderbooks(thin)
    asks, bids = frame["ask_price"].count(), frame["bid_price"].count()
    assert asks != bids
    assert max(asks, bids) == len(frame)
    assert not (frame[["ask_price", "ask_size", "bid_price", "bid_size"]] == 0).any().any()
    for side in ("ask", "bid"):
        assert (frame[f"{side}_price"].isna() == frame[f"{side}_size"].isna()).all()
    assert client.orderbooks(thin, frames="arrow").column("ask_price").null_count == 0


@pytest.mark.parametrize("depth", [1, 7, 30])
def test_orderbooks_depth_is_levels_a_side(client: Backbone, depth: int) -> None:
    """As many levels as asked for."""
    assert len(client.orderbooks("KRW-BTC", depth=depth)) == depth


def test_orderbooks_level_groups_prices(client: Backbone, venue: SimulatorServer) -> None:
    """Prices are grouped by one of the market's own levels, which are asked for once."""
    frame = client.orderbooks("KRW-BTC", level=100_000, max_age=0)
    assert (frame["ask_price"] % 100_000 == 0).all()
    assert (frame["bid_price"] % 100_000 == 0).all()
    client.orderbooks("KRW-BTC", level=100_000, max_age=0)
    assert [r.path.rpartition("/")[2] for r in venue.requests].count("instruments") == 1
    fine = client.orderbooks("KRW-BTC", max_age=60)
    assert (fine["ask_price"] % 100_000 != 0).any()


def test_orderbooks_in_memory_are_kept_by_level(client: Backbone, venue: SimulatorServer) -> None:
    """A grouped book never answers for a whole one."""
    grouped = client.orderbooks("KRW-BTC", level=100_000, max_age=60)
    whole = client.orderbooks("KRW-BTC", max_age=60)
    venue.reset_log()
    pd.testing.assert_frame_equal(client.orderbooks("KRW-BTC", level=100_000, max_age=60), grouped, check_exact=True)
    pd.testing.assert_frame_equal(client.orderbooks("KRW-BTC", max_age=60), whole, check_exact=True)
    assert venue.counts() == {}


@pytest.mark.parametrize(
    ("market", "level", "offered"), [("KRW-BTC", 12_345, "100000000"), ("BTC-ETH", 1, "one of 0 for BTC-ETH")]
)
def test_orderbooks_level_that_is_not_offered_is_refused(
    client: Backbone, venue: SimulatorServer, market: str, level: float, offered: str
) -> None:
    """The venue answers such a level with an empty list; here it is an `InputError` with what the market offers."""
    with pytest.raises(InputError, match=offered.replace("100000000", "1e\\+08")):
        client.orderbooks(market, level=level)
    assert [r.path for r in venue.requests if r.path.endswith("/orderbook")] == []


# -- trades ------------------------------------------------------------------------------------------------------


def truth_of_trades(venue: SimulatorServer, market: str, days_ago: int = 0, count: int = 500) -> list[dict[str, Any]]:
    return venue.exchange.trades(market, venue.clock.now_us(), count, days_ago=days_ago)


def test_trades_past_a_page_are_the_exchanges_own(client: Backbone, venue: SimulatorServer) -> None:
    """1,200 trades in three pages: oldest first, none lost or doubled, ids exact."""
    frame = client.trades("KRW-BTC", 1200)
    truth = venue.exchange.trades("KRW-BTC", venue.clock.now_us(), 1200)
    assert list(frame.columns) == TRADE_COLUMNS
    assert str(frame["sequential_id"].dtype) == "int64"
    assert frame["sequential_id"].is_unique
    assert sorted(frame["sequential_id"]) == sorted(row["sequential_id"] for row in truth)
    assert frame["sequential_id"].max() > 2**53
    assert frame.index.is_monotonic_increasing
    by_id = {row["sequential_id"]: row for row in truth}
    for at, row in zip(frame.index[:50], frame.iloc[:50].itertuples(), strict=True):
        one = by_id[row.sequential_id]
        assert (row.price, row.volume) == (one["trade_price"], one["trade_volume"])
        assert row.side == {"BID": "buy", "ASK": "sell"}[one["ask_bid"]]
        assert at == pd.Timestamp(one["timestamp"], unit="ms", tz="UTC")
    assert facts(frame)["pages"] == 3
    assert asked(venue, "crix-trades") == 3


def test_trades_that_share_a_millisecond_are_all_there(client: Backbone, venue: SimulatorServer) -> None:
    """Trades of one instant differ only in their id, and each is there once, also where a page ends among them."""
    frame = client.trades("KRW-BTC", 2000)
    shared = frame.groupby(frame.index).size()
    assert shared.max() > 1
    truth = venue.exchange.trades("KRW-BTC", venue.clock.now_us(), 2000)
    assert sorted(frame["sequential_id"]) == sorted(row["sequential_id"] for row in truth)


def test_trades_go_across_days(client: Backbone, venue: SimulatorServer) -> None:
    """A quiet market's count reaches back over the venue's days, one after the other."""
    market = "KRW-NEO"
    today = truth_of_trades(venue, market)
    assert len(today) < 500, "the market is busier than this test thinks"
    count = len(today) + 40
    frame = client.trades(market, count)
    expected = today + truth_of_trades(venue, market, 1)[: count - len(today)]
    assert sorted(frame["sequential_id"]) == sorted(row["sequential_id"] for row in expected)
    assert frame.index[0].tz_convert("UTC").date() < frame.index[-1].tz_convert("UTC").date()
    assert {r.query.get("days_ago") for r in venue.requests if r.group == "crix-trades"} == {None, "1"}


def test_trades_of_a_range_are_half_open(client: Backbone, venue: SimulatorServer) -> None:
    """From the start, included, to the end, not included; across midnight UTC."""
    start, end = "2025-08-21T23:40:00Z", "2025-08-22T00:20:00Z"
    frame = client.trades("KRW-BTC", start=start, end=end)
    first_us, last_us = (int(pd.Timestamp(t).timestamp()) * 1_000_000 for t in (start, end))
    truth = venue.exchange.executions(venue.exchange.market("KRW-BTC"), first_us, last_us)
    assert sorted(frame["sequential_id"]) == sorted(truth.sequential_id.tolist())
    assert len(frame) > 500
    first = frame.index[0]
    again = client.trades("KRW-BTC", 5, end=first)
    assert (again.index < first).all()


def test_trades_from_a_start_by_count_are_the_first_ones(client: Backbone) -> None:
    """A start and a count: the first that many from there."""
    start = "2025-08-22T08:55:00Z"
    pd.testing.assert_frame_equal(
        client.trades("KRW-BTC", 5, start=start), client.trades("KRW-BTC", start=start)[:5], check_exact=True
    )


def test_trades_default_to_two_hundred(client: Backbone) -> None:
    """Asked for nothing in particular, the newest 200."""
    frame = client.trades("KRW-BTC")
    assert len(frame) == 200
    pd.testing.assert_frame_equal(frame, client.trades("KRW-BTC", 300).iloc[100:], check_exact=True)


def test_trades_of_a_quiet_range_are_an_empty_frame(client: Backbone) -> None:
    """Nobody traded: no rows, the usual columns and types."""
    full, empty = (
        client.trades("KRW-BTC", start="2025-08-22T08:00:00Z", end=f"2025-08-22T08:00:{s}Z") for s in ("30", "00.001")
    )
    assert len(empty) == 0
    assert (empty.dtypes == full.dtypes).all()
    assert empty.index.dtype == full.index.dtype


def test_trades_of_a_venue_that_fails_midway_keep_what_arrived(client: Backbone, venue: SimulatorServer) -> None:
    """The newest pages are in the error's frame; the error holds the gap and its cause."""
    whole = client.trades("KRW-BTC", 1400)
    venue.faults.add("garbage", match="/v1/trades", after=2, times=None)
    with pytest.raises(IncompleteError, match="only the newest 1000") as caught:
        client.trades("KRW-BTC", 1400)
    pd.testing.assert_frame_equal(caught.value.frame, whole.iloc[400:], check_exact=True)
    (gap,) = caught.value.gaps
    assert isinstance(gap, Span)
    assert gap.end == int(caught.value.frame.index[0].timestamp() * 1_000_000)
    assert isinstance(caught.value.causes[0], PayloadError)
    assert facts(caught.value.frame)["unknown"] == 1


# -- markets -----------------------------------------------------------------------------------------------------


def test_markets_are_the_venues_list(client: Backbone, venue: SimulatorServer) -> None:
    """Codes, names and warnings, in the venue's order; the list is asked for once."""
    frame = client.markets()
    truth = venue.exchange.markets(True, venue.clock.now_us())
    assert list(frame.index) == [row["market"] for row in truth]
    assert frame["korean_name"].tolist() == [row["korean_name"] for row in truth]
    assert frame["english_name"].tolist() == [row["english_name"] for row in truth]
    assert frame["warning"].tolist() == [row["market_event"]["warning"] for row in truth]
    raised = [",".join(n for n, on in row["market_event"]["caution"].items() if on) for row in truth]
    assert frame["cautions"].tolist() == raised
    assert any(raised)
    instruments = venue.exchange.instruments(list(frame.index), venue.clock.now_us())
    assert frame["tick_size"].tolist() == [float(row["tick_size"]) for row in instruments]
    assert facts(frame)["requests"] == 3  # the list, the price steps, the prices at which they hold
    assert facts(client.markets())["requests"] == 0
    assert venue.counts() == {"market": {200: 2}, "orderbook": {200: 1}, "ticker": {200: 1}}


@pytest.mark.parametrize("quote", ["KRW", "krw", "KRW-*"])
def test_markets_of_a_quote_currency(client: Backbone, quote: str) -> None:
    """One quote currency's markets."""
    codes = list(client.markets(quote).index)
    assert codes == [code for code in client.markets().index if code.startswith("KRW-")]


# -- wrong arguments, wrong bodies --------------------------------------------------------------------------------


WRONG: list[tuple[str, Callable[[Backbone], Any]]] = [
    ("market", lambda c: c.tickers([])),
    ("market", lambda c: c.tickers(5)),
    ("market", lambda c: c.tickers(["KRW-BTC", None])),
    ("market", lambda c: c.tickers("KRW BTC")),
    ("max_age", lambda c: c.tickers("KRW", max_age=-1)),
    ("max_age", lambda c: c.tickers("KRW", max_age="1")),
    ("max_age", lambda c: c.tickers("KRW", max_age=float("nan"))),
    ("priority", lambda c: c.tickers("KRW", priority="urgent")),
    ("frames", lambda c: c.tickers("KRW", frames="numpy")),
    ("level", lambda c: c.orderbooks("KRW-BTC", level=-1)),
    ("level", lambda c: c.orderbooks("KRW-BTC", level="10000")),
    ("level", lambda c: c.orderbooks("KRW-BTC", level=float("nan"))),
    ("depth", lambda c: c.orderbooks("KRW-BTC", depth=0)),
    ("depth", lambda c: c.orderbooks("KRW-BTC", depth=31)),
    ("depth", lambda c: c.orderbooks("KRW-BTC", depth=2.5)),
    ("count", lambda c: c.trades("KRW-BTC", -1)),
    ("count", lambda c: c.trades("KRW-BTC", 0)),
    ("count", lambda c: c.trades("KRW-BTC", True)),
    ("count", lambda c: c.trades("KRW-BTC", 1.5)),
    ("market", lambda c: c.trades(["KRW-BTC"])),
    ("start", lambda c: c.trades("KRW-BTC", start="last week")),
]


@pytest.mark.parametrize(("argument", "call"), WRONG)
def test_wrong_arguments_are_refused_before_any_request(
    client: Backbone, venue: SimulatorServer, argument: str, call: Callable[[Backbone], Any]
) -> None:
    """Every wrong argument is an `InputError` that names it, and nothing is sent."""
    with pytest.raises(InputError) as caught:
        call(client)
    assert caught.value.argument == argument
    assert isinstance(caught.value, ValueError)
    assert venue.counts() == {}


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("start", {"start": "9d"}),
        ("end", {"end": "8d"}),
        ("start", {"start": "2025-08-22T09:30:00Z"}),
        ("start", {"start": "2025-08-22T08:00:00Z", "end": "2025-08-22T07:00:00Z"}),
        ("count", {"start": "3h", "end": "2h", "count": 5}),
    ],
)
def test_trades_ranges_that_cannot_be_are_refused(
    client: Backbone, venue: SimulatorServer, argument: str, words: dict[str, Any]
) -> None:
    """Older than the venue keeps, in the future, upside down, too much said: no page is asked."""
    with pytest.raises(InputError) as caught:
        client.trades("KRW-BTC", **words)
    assert caught.value.argument == argument
    assert asked(venue, "crix-trades") == 0


@pytest.mark.parametrize("fault", ["garbage", "empty", "duplicate"])
@pytest.mark.parametrize("call", ["tickers", "orderbooks"])
def test_bodies_that_are_not_what_they_should_be_are_payload_errors(
    client: Backbone, venue: SimulatorServer, fault: str, call: str
) -> None:
    """No JSON, no rows, one row twice: a `PayloadError` with a sample, and nothing of it is kept."""
    client.markets()
    venue.faults.add(fault, match=f"/v1/{call[:-1]}", times=None)
    with pytest.raises(PayloadError) as caught:
        getattr(client, call)(["KRW-BTC", "KRW-ETH"], max_age=0)
    assert caught.value.sample
    assert caught.value.url is not None
    venue.faults.clear()
    frame = getattr(client, call)(["KRW-BTC", "KRW-ETH"], max_age=60)
    assert facts(frame)["requests"] == 1


@pytest.mark.parametrize("call", ["tickers", "orderbooks", "trades"])
def test_number_spellings_do_not_matter(client: Backbone, venue: SimulatorServer, call: str) -> None:
    """Exponents and padding are the same float64."""
    words: dict[str, Any] = {} if call == "trades" else {"max_age": 0}
    plain = getattr(client, call)("KRW-BTC", **words)
    venue.faults.add("numbers", match="/v1/", times=None)
    spelled = getattr(client, call)("KRW-BTC", **words)
    venue.faults.clear()
    pd.testing.assert_frame_equal(
        plain.drop(columns="age", errors="ignore"), spelled.drop(columns="age", errors="ignore"), check_exact=True
    )


@pytest.mark.parametrize("fault", ["500", "502-html", "reset", "cut"])
def test_a_passing_failure_is_tried_again(client: Backbone, venue: SimulatorServer, fault: str) -> None:
    """One failure of the venue is nobody's concern."""
    client.markets()
    venue.faults.add(fault, match="/v1/ticker")
    assert len(client.tickers(["KRW-BTC"], max_age=0)) == 1


def test_a_venue_that_is_away_is_an_error_never_an_empty_frame(own_venue: SimulatorServer, tmp_path: Path) -> None:
    """No connection at all: a source error from each call."""
    with Backbone(data_dir=tmp_path, rest_url=own_venue.rest_url, ws_url=own_venue.ws_url) as client:
        client.tickers("KRW-BTC")
        own_venue.pause()
        with pytest.raises(SourceError) as caught:
            client.tickers("KRW", max_age=0)
        assert isinstance(caught.value, UnreachableError)
        assert caught.value.attempts > 1


def test_realtime_rows_are_never_written(client: Backbone) -> None:
    """Tickers, books and trades leave nothing in the store."""
    client.tickers("KRW")
    client.orderbooks("KRW-BTC")
    client.trades("KRW-BTC", 600)
    assert not list(Path(client.data_dir).rglob("*.parquet"))


# -- replies that cannot be relied on ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["short", "empty"])
@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize(
    "words",
    [
        {"count": 700},
        {"start": "2025-08-22T08:30:00Z"},
        {"start": "2025-08-21T23:40:00Z", "end": "2025-08-22T00:20:00Z"},
        {"count": 300, "priority": "critical"},
    ],
    ids=["count", "range", "over midnight", "critical"],
)
def test_trades_with_a_short_page_are_the_same_or_an_error(
    own_client: Backbone, own_venue: SimulatorServer, kind: str, after: int, words: dict[str, Any]
) -> None:
    """A page that is shorter than asked, at any place: the very ids of the call without the fault, or an error."""
    expected = own_client.trades("KRW-BTC", **words)
    own_venue.faults.add(kind, match="/v1/trades", after=after, rows=49)
    try:
        found = own_client.trades("KRW-BTC", **words)
    except (PayloadError, IncompleteError):
        own_venue.faults.clear()
        found = own_client.trades("KRW-BTC", **words)
    assert found["sequential_id"].tolist() == expected["sequential_id"].tolist()


@pytest.mark.parametrize("value", ["null", "0", "missing"])
def test_tickers_with_an_odd_row_deliver_the_others(
    own_client: Backbone, own_venue: SimulatorServer, value: str
) -> None:
    """One row of all that cannot be read is left out and named; a table and the named form do the same."""
    whole = own_client.tickers("KRW", max_age=0)
    own_venue.faults.add("odd", field="opening_price", value=value, market="KRW-ETH", times=2)
    frame = own_client.tickers("KRW", max_age=0)
    assert list(frame.index) == [code for code in whole.index if code != "KRW-ETH"]
    assert facts(frame)["unreadable"] == ["KRW-ETH"]
    named = own_client.tickers(["KRW-BTC", "KRW-ETH", "KRW-XRP"], max_age=0)
    assert list(named.index) == ["KRW-BTC", "KRW-XRP"]
    assert facts(named)["unreadable"] == ["KRW-ETH"]
    assert own_client.session.coordinator().metrics.counter("rows.unreadable") == 2
    own_venue.faults.add("odd", field="opening_price", value=value, market="KRW-ETH", times=None)
    with pytest.raises(PayloadError):
        own_client.tickers("KRW-ETH", max_age=0)


def test_ticker_that_cannot_be_is_left_out_and_named(own_client: Backbone, own_venue: SimulatorServer) -> None:
    """A high below the low: of a list the others are delivered, alone it is an error."""
    codes = ["KRW-BTC", "KRW-ETH", "KRW-XRP"]
    own_venue.faults.add("bad-ohlc", match="/v1/ticker", times=None)
    frame = own_client.tickers(codes, max_age=0)
    assert list(frame.index) == ["KRW-BTC", "KRW-XRP"]
    assert facts(frame)["unreadable"] == ["KRW-ETH"]
    assert own_client.session.coordinator().metrics.counter("rows.unreadable") == 1
    with pytest.raises(PayloadError, match="low and high"):
        own_client.tickers("KRW-ETH", max_age=0)


def test_first_tickers_of_a_quote_currency_may_come_short(own_client: Backbone, own_venue: SimulatorServer) -> None:
    """The first reply of all has none before it: the market list says what it lacks."""
    own_venue.faults.add("short", match="/v1/ticker/all")
    frame = own_client.tickers("KRW", max_age=0)
    assert sorted(frame.index) == sorted(own_client.markets("KRW").index)


def test_orderbooks_with_an_odd_row_deliver_the_others(own_client: Backbone, own_venue: SimulatorServer) -> None:
    """A book without a time is left out and named."""
    own_venue.faults.add("odd", match="/v1/orderbook", field="timestamp", value="null", market="KRW-ETH")
    frame = own_client.orderbooks(["KRW-BTC", "KRW-ETH"], max_age=0)
    assert frame["market"].unique().tolist() == ["KRW-BTC"]
    assert facts(frame)["unreadable"] == ["KRW-ETH"]


def test_short_reply_about_a_quote_currency_is_completed(own_client: Backbone, own_venue: SimulatorServer) -> None:
    """Markets that are listed and lack in the reply are asked for by name."""
    whole = own_client.tickers("KRW", max_age=0)
    own_venue.faults.add("short", match="/v1/ticker/all", rows=5)
    frame = own_client.tickers("KRW", max_age=0)
    assert sorted(frame.index) == sorted(whole.index)


GATED: dict[str, tuple[str, Callable[[Backbone, list[str]], Any]]] = {
    "tickers": ("/v1/ticker", lambda client, codes: client.tickers(codes, max_age=0).index.tolist()),
    "critical": ("/v1/ticker", lambda client, codes: client.tickers(codes, priority="critical").index.tolist()),
    "books": ("/v1/orderbook", lambda client, codes: list(dict.fromkeys(client.orderbooks(codes, max_age=0).market))),
    "book groups": (
        "/v1/orderbook",
        lambda client, codes: list(client.session.coordinator().realtime.instruments(codes, Priority.NORMAL)[0]),
    ),
    "verbatim": (
        "/v1/ticker",
        lambda client, codes: [
            row["market"] for row in client.session.coordinator().realtime.ticker_rows(codes, Priority.HIGH).rows
        ],
    ),
}


@pytest.mark.parametrize("status", [414, 431, 400])
@pytest.mark.parametrize("call", GATED)
def test_address_too_long_for_a_gate_is_halved_and_the_size_remembered(
    client: Backbone, venue: SimulatorServer, call: str, status: int
) -> None:
    """A proxy that refuses long addresses costs a few requests once, and none later."""
    path, ask = GATED[call]
    codes = list(client.markets().index)[:120]
    venue.faults.add("gate", match=path, limit=500, status=status, times=None)
    venue.reset_log()
    assert ask(client, codes) == codes
    assert any(r.status == status for r in venue.requests)
    venue.reset_log()
    assert ask(client, codes) == codes
    assert [r.status for r in venue.requests] == [200] * len(venue.requests)
    assert 3 <= len(venue.requests) <= 8


def test_short_address_that_is_refused_is_an_error(client: Backbone, venue: SimulatorServer) -> None:
    """A 400 for a few markets is no gate's."""
    codes = list(client.markets("KRW").index)[:3]
    venue.faults.add("gate", match="/v1/ticker", limit=10, status=400, times=None)
    with pytest.raises(RejectedError):
        client.tickers(codes, max_age=0)


@pytest.mark.parametrize("status", [414, 431, 400])
def test_price_steps_come_through_a_gate(client: Backbone, venue: SimulatorServer, status: int) -> None:
    """The list of markets has them all, and a table's are learned in the background."""
    venue.faults.add("gate", match="/v1/orderbook", limit=600, status=status, times=None)
    assert client.markets("KRW").tick_size.notna().all()
    core = client.session.coordinator()
    codes = client.markets("BTC").index.tolist()
    core.realtime._instruments.clear()
    core.realtime._chunk = 900
    core.learn_ticks(codes)
    eventually(lambda: all(core.realtime.known_tick(code) for code in codes))
