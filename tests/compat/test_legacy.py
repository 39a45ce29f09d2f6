"""`compat.legacy`, the older adapter: its answers, awaited or not, and its failures."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from backbone import Backbone
from backbone.compat import legacy
from backbone.simulator import SimulatorServer

LIMIT = 500  # the quota is not what is tested here

KEYS = {"success", "data", "timestamp", "source", "response_time_ms"}


def answered(exchange: SimulatorServer, path: str, **query: Any) -> Any:
    """What the exchange itself says."""
    import requests

    return requests.get(f"{exchange.rest_url}/v1/{path}", params=query, timeout=10).json()


def test_ticker_of_one_symbol_is_unwrapped(opened: Backbone, exchange: SimulatorServer) -> None:
    """One symbol's ticker is the venue's own row, with every field."""
    answer = legacy.get_ticker("KRW-BTC")
    assert set(answer) == KEYS
    assert answer["success"] is True
    assert answer["data"] == answered(exchange, "ticker", markets="KRW-BTC")[0]
    assert answer["source"] == "rest"
    assert answer["response_time_ms"] > 0


def test_ticker_of_several_symbols_is_a_list(opened: Backbone, exchange: SimulatorServer) -> None:
    """Several symbols keep their list, in the order asked for."""
    answer = legacy.get_market_data_adapter().get_ticker_data(["KRW-ETH", "KRW-BTC"], use_cache=False)
    assert [row["market"] for row in answer["data"]] == ["KRW-ETH", "KRW-BTC"]


def test_orderbook_is_the_venues(opened: Backbone, exchange: SimulatorServer) -> None:
    """Books are the venue's rows, one unwrapped."""
    assert legacy.get_orderbook("KRW-BTC")["data"] == answered(exchange, "orderbook", markets="KRW-BTC")[0]
    assert len(legacy.get_market_data_adapter().get_orderbook_data(["KRW-ETH", "KRW-BTC"])["data"]) == 2


@pytest.mark.parametrize(
    ("interval", "path"),
    [("1m", "minutes/1"), ("5m", "minutes/5"), ("1h", "minutes/60"), ("1d", "days"), ("1w", "weeks")],
)
def test_candles_are_the_venues_newest_first(
    opened: Backbone, exchange: SimulatorServer, interval: str, path: str
) -> None:
    """Candles come in the venue's names and order, the forming one first; their stamp is their opening."""
    answer = legacy.get_candles("KRW-BTC", interval, 4)
    assert set(answer) == {*KEYS, "candle_count"}
    assert answer["candle_count"] == 4
    for ours, theirs in zip(
        answer["data"], answered(exchange, f"candles/{path}", market="KRW-BTC", count=4), strict=True
    ):
        shared = ours.keys() & theirs.keys() - {"timestamp"}
        assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
        assert len(shared) >= 9
        assert ours["timestamp"] <= theirs["timestamp"]


def test_candles_of_several_symbols_follow_each_other(opened: Backbone) -> None:
    """Each symbol's candles are together, and all are counted."""
    answer = legacy.get_market_data_adapter().get_candle_data(["KRW-BTC", "KRW-ETH"], "1m", 3)
    assert answer["candle_count"] == 6
    assert [row["market"] for row in answer["data"]] == ["KRW-BTC"] * 3 + ["KRW-ETH"] * 3


@pytest.mark.parametrize(
    "call",
    [
        lambda: legacy.get_ticker("KRW-NOPE"),
        lambda: legacy.get_candles("KRW-BTC", "7m"),
        lambda: legacy.get_candles("KRW-BTC", "1m", -1),
        lambda: legacy.get_orderbook([]),
    ],
)
def test_wrong_arguments_are_a_failed_answer(opened: Backbone, call: Any) -> None:
    """Nothing is raised: the answer says that it failed, and why."""
    answer = call()
    assert answer["success"] is False
    assert answer["data"] is None
    assert answer["error_type"] == "InputError"
    assert "is not valid" in answer["error"]


def test_failure_of_the_venue_is_a_failed_answer(opened: Backbone, exchange: SimulatorServer) -> None:
    """A body that is none makes an answer without data, never an exception."""
    legacy.get_ticker("KRW-BTC")
    exchange.faults.add("garbage", match="/v1/ticker", times=None)
    answer = legacy.get_ticker("KRW-BTC")
    assert (answer["success"], answer["data"]) == (False, None)
    assert answer["error_type"] == "PayloadError"


def test_answer_is_plain_json(opened: Backbone) -> None:
    """An answer is a dict in every respect."""
    answer = legacy.get_candles("KRW-BTC", "1d", 2)
    assert isinstance(answer, dict)
    assert json.loads(json.dumps(answer)) == answer


def test_answer_may_be_awaited(opened: Backbone) -> None:
    """The same name with and without `await` gives the same answer, as `gather` does."""

    async def old_program() -> list[dict[str, Any]]:
        assert await legacy.initialize(opened)
        assert await legacy.get_market_data_adapter().initialize()
        one = await legacy.get_ticker("KRW-BTC")
        two, three = await asyncio.gather(
            legacy.get_candles("KRW-BTC", "1m", 2), legacy.get_market_data_adapter().get_orderbook_data("KRW-BTC")
        )
        assert await legacy.get_performance_summary()
        return [one, two, three]

    assert all(answer["success"] for answer in asyncio.run(old_program()))
    assert legacy.get_ticker("KRW-BTC")["data"]["market"] == "KRW-BTC"


def test_answer_passes_for_a_coroutine(opened: Backbone) -> None:
    """`asyncio.run`, tasks, `gather`, `wait_for` and threads take it; a task may be cancelled."""
    assert asyncio.run(legacy.get_ticker("KRW-BTC"))["data"]["market"] == "KRW-BTC"

    async def old_program() -> None:
        task = asyncio.create_task(legacy.get_candles("KRW-BTC", "1m", 2))
        assert (await task)["candle_count"] == 2
        answers = await asyncio.gather(legacy.get_ticker("KRW-BTC"), legacy.get_ticker("KRW-ETH"))
        assert [answer["data"]["market"] for answer in answers] == ["KRW-BTC", "KRW-ETH"]
        assert (await asyncio.wait_for(legacy.get_orderbook("KRW-BTC"), 30))["success"]
        assert (await legacy.get_market_data_adapter().get_ticker_data("KRW-BTC"))["success"]
        cancelled = asyncio.create_task(legacy.get_ticker("KRW-BTC"))
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    asyncio.run(old_program())


def test_performance_summary_counts_calls(opened: Backbone) -> None:
    """Calls and failures are counted, across threads."""
    before = legacy.get_performance_summary()
    threads = [threading.Thread(target=legacy.get_ticker, args=(code,)) for code in ("KRW-BTC", "KRW-NOPE")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = legacy.get_performance_summary()
    assert after["total_requests"] - before["total_requests"] == 2
    assert after["failed_requests"] - before["failed_requests"] == 1
    assert "KRW-NOPE" in after["last_error"]
    assert 0 < after["success_rate"] < 1
