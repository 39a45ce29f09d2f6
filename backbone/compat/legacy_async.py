"""`backbone.compat.legacy` as coroutines, for programs whose event loop must go on while an answer is awaited.

Same names, same answers; each call works in a thread of the loop's executor.
"""

from __future__ import annotations

import asyncio
from typing import Any

from backbone.api.client import Backbone
from backbone.compat import legacy

__all__ = [
    "MarketDataAdapter",
    "cleanup",
    "get_candles",
    "get_market_data_adapter",
    "get_orderbook",
    "get_performance_summary",
    "get_ticker",
    "initialize",
]


class MarketDataAdapter:
    """The calls of `legacy.MarketDataAdapter`, to be awaited."""

    def __init__(self, adapter: legacy.MarketDataAdapter) -> None:
        self._adapter = adapter

    def __repr__(self) -> str:
        return repr(self._adapter)

    async def initialize(self) -> dict[str, Any]:
        return await asyncio.to_thread(self._adapter.initialize)

    async def cleanup(self) -> dict[str, Any]:
        return await asyncio.to_thread(self._adapter.cleanup)

    async def get_ticker_data(self, symbols: legacy.Symbols, use_cache: bool = True) -> dict[str, Any]:
        return await asyncio.to_thread(self._adapter.get_ticker_data, symbols, use_cache)

    async def get_orderbook_data(self, symbols: legacy.Symbols, use_cache: bool = True) -> dict[str, Any]:
        return await asyncio.to_thread(self._adapter.get_orderbook_data, symbols, use_cache)

    async def get_candle_data(
        self, symbols: legacy.Symbols, interval: str = "1m", count: int = legacy._COUNT, use_cache: bool = True
    ) -> dict[str, Any]:
        return await asyncio.to_thread(self._adapter.get_candle_data, symbols, interval, count, use_cache)

    def get_performance_summary(self) -> dict[str, Any]:
        """Never awaited in its old home either; the answer may be."""
        return self._adapter.get_performance_summary()


_adapter = MarketDataAdapter(legacy.get_market_data_adapter())


def get_market_data_adapter(enable_smart_routing: bool = True) -> MarketDataAdapter:  # noqa: ARG001 - as it was
    """The one adapter; see `legacy.get_market_data_adapter`."""
    return _adapter


async def initialize(client: Backbone | None = None, **settings: Any) -> dict[str, Any]:
    """See `legacy.initialize`."""
    return await asyncio.to_thread(legacy.initialize, client, **settings)


async def cleanup() -> dict[str, Any]:
    """See `legacy.cleanup`."""
    return await _adapter.cleanup()


async def get_ticker(symbols: legacy.Symbols) -> dict[str, Any]:
    """See `legacy.get_ticker`."""
    return await _adapter.get_ticker_data(symbols)


async def get_candles(symbols: legacy.Symbols, interval: str = "1m", count: int = legacy._COUNT) -> dict[str, Any]:
    """See `legacy.get_candles`."""
    return await _adapter.get_candle_data(symbols, interval, count)


async def get_orderbook(symbols: legacy.Symbols) -> dict[str, Any]:
    """See `legacy.get_orderbook`."""
    return await _adapter.get_orderbook_data(symbols)


def get_performance_summary() -> dict[str, Any]:
    """See `legacy.get_performance_summary`."""
    return _adapter.get_performance_summary()
