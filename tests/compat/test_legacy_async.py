"""The older adapter's names as coroutines: the event loop goes on while they wait."""

from __future__ import annotations

import asyncio
from typing import Any

from backbone import Backbone
from backbone.compat import legacy, legacy_async
from backbone.simulator import SimulatorServer


def test_coroutines_leave_the_loop_free(opened: Backbone, exchange: SimulatorServer) -> None:
    """While a coroutine waits for the venue, the event loop goes on."""
    legacy.get_ticker("KRW-BTC")
    exchange.faults.add("slow", match="/v1/ticker", seconds=0.3)

    async def program() -> tuple[int, dict[str, Any]]:
        asked = asyncio.create_task(legacy_async.get_ticker("KRW-BTC"))
        turns = 0
        while not asked.done():
            await asyncio.sleep(0.005)
            turns += 1
        return turns, await asked

    turns, answer = asyncio.run(program())
    assert answer["success"]
    assert turns > 10


def test_coroutines_have_every_name(opened: Backbone) -> None:
    """The awaited module offers what the plain one does, with equal answers; it can be run directly."""
    assert set(legacy.__all__) - {"Answer"} == set(legacy_async.__all__)
    adapter = legacy_async.get_market_data_adapter()

    async def program() -> list[dict[str, Any]]:
        return [
            await legacy_async.initialize(opened),
            await adapter.initialize(),
            await adapter.get_ticker_data("KRW-BTC"),
            await adapter.get_candle_data("KRW-BTC", "1m", 2),
            await adapter.get_orderbook_data("KRW-BTC"),
            await legacy_async.get_orderbook("KRW-BTC"),
        ]

    assert all(answer["success"] for answer in asyncio.run(program()))
    assert asyncio.run(legacy_async.get_candles("KRW-BTC", "1m", 2))["candle_count"] == 2
    assert asyncio.run(legacy_async.get_ticker("KRW-BTC"))["success"]
    assert legacy_async.get_performance_summary()["total_requests"] > 0
    assert asyncio.run(legacy_async.cleanup())["success"]
