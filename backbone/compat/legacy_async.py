"""`backbone.compat.legacy` as coroutines that work in a thread, for programs whose event loop must go on meanwhile.

Same names, same answers. Each call runs in the loop's default executor.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

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


_P = ParamSpec("_P")


def _in_thread(call: Callable[_P, legacy.Answer]) -> Callable[_P, Coroutine[Any, Any, legacy.Answer]]:
    @functools.wraps(call)
    async def asked(*args: _P.args, **kwargs: _P.kwargs) -> legacy.Answer:
        return await asyncio.to_thread(call, *args, **kwargs)

    return asked


class MarketDataAdapter:
    """The calls of `legacy.MarketDataAdapter`, to be awaited; the summary is ready at once and may be awaited."""

    def __init__(self, adapter: legacy.MarketDataAdapter) -> None:
        self._adapter = adapter
        self.initialize = _in_thread(adapter.initialize)
        self.cleanup = _in_thread(adapter.cleanup)
        self.get_ticker_data = _in_thread(adapter.get_ticker_data)
        self.get_orderbook_data = _in_thread(adapter.get_orderbook_data)
        self.get_candle_data = _in_thread(adapter.get_candle_data)
        self.get_performance_summary = adapter.get_performance_summary

    def __repr__(self) -> str:
        return repr(self._adapter)


_adapter = MarketDataAdapter(legacy.get_market_data_adapter())


def get_market_data_adapter(enable_smart_routing: bool = True) -> MarketDataAdapter:  # noqa: ARG001 - as it was
    """The one adapter; see `legacy.get_market_data_adapter`."""
    return _adapter


initialize = _in_thread(legacy.initialize)
cleanup = _in_thread(legacy.cleanup)
get_ticker = _in_thread(legacy.get_ticker)
get_candles = _in_thread(legacy.get_candles)
get_orderbook = _in_thread(legacy.get_orderbook)
get_performance_summary = legacy.get_performance_summary
