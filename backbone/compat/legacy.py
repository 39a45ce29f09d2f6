"""The market data adapter of the system that backbone replaces: same names, same answers.

Every call answers a plain dict: ``success data timestamp source response_time_ms``, candles also ``candle_count``.
Where it failed, ``success`` is False, ``data`` None and ``error`` says why; nothing of the error tree is raised.
``data`` is in the venue's own field names, newest candle first, the forming one included, as it was; the data of a
single symbol is unwrapped from its list (candles are always a list). A candle's ``timestamp`` is its opening in
milliseconds. `use_cache` is accepted and has no effect: what is now is asked for, what is closed does not change.

The calls of the original were coroutines. Here the answer is ready when the call returns, and passes for a coroutine as
well: ``get_ticker("KRW-BTC")``, ``await get_ticker("KRW-BTC")`` and ``asyncio.run(get_ticker("KRW-BTC"))`` give the
same. A program whose event loop must go on meanwhile awaits ``asyncio.to_thread(get_ticker, "KRW-BTC")``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any

from backbone.api.arguments import in_zone, parse_count, parse_markets
from backbone.api.client import Backbone
from backbone.api.frames import attrs_of
from backbone.candle_table import times_of
from backbone.clock import SystemClock
from backbone.compat import default_client
from backbone.compat.spelling import KOREA, candle_row
from backbone.errors import BackboneError
from backbone.locks import renew_after_fork
from backbone.model import CANDLE_COLUMNS, Priority
from backbone.timeframe import DAY_US, MINUTE_US, Timeframe, parse_timeframe

__all__ = [
    "Answer",
    "MarketDataAdapter",
    "cleanup",
    "get_candles",
    "get_market_data_adapter",
    "get_orderbook",
    "get_performance_summary",
    "get_ticker",
    "initialize",
]

Symbols = str | Iterable[str]

_COUNT = 100


class Answer(dict[str, Any]):
    """A dict that also passes for a coroutine whose result is the dict: `await`, `asyncio.run` and tasks take it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)  # asyncio.gather keeps what it was given in a set

    def __await__(self) -> Generator[Any, Any, Answer]:
        yield from ()
        return self

    def send(self, value: Any) -> Any:
        """End at once, with the answer as the result."""
        raise StopIteration(self)

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        """Raise what was thrown in: the coroutine was cancelled before its first step."""
        raise kind if value is None else value

    def close(self) -> None:
        """Nothing is open."""


class MarketDataAdapter:
    """The calls, and how they went. Safe to share between threads; the lock guards the tallies."""

    def __init__(self) -> None:
        self._calls = 0
        self._failures = 0
        self._total_ms = 0.0
        self._last_error: str | None = None
        self._begin()
        renew_after_fork(self, MarketDataAdapter._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<MarketDataAdapter {self._calls} calls, {self._failures} failed>"

    def initialize(self) -> Answer:
        """Make the client behind this module, unless there is one."""
        try:
            default_client.get_client()
        except BackboneError as exc:
            return Answer(success=False, error=str(exc))
        return Answer(success=True)

    def cleanup(self) -> Answer:
        """End the client behind this module."""
        default_client.cleanup()
        return Answer(success=True)

    def get_ticker_data(self, symbols: Symbols, use_cache: bool = True) -> Answer:
        """The venue's ticker rows of `symbols`."""
        return self._answer(lambda client: _rows(client, symbols, client.session.coordinator().realtime.ticker_rows))

    def get_orderbook_data(self, symbols: Symbols, use_cache: bool = True) -> Answer:
        """The venue's order books of `symbols`."""
        return self._answer(lambda client: _rows(client, symbols, client.session.coordinator().realtime.book_rows))

    def get_candle_data(
        self, symbols: Symbols, interval: str = "1m", count: int = _COUNT, use_cache: bool = True
    ) -> Answer:
        """The newest `count` candles of each of `symbols`, one symbol after the other, newest first."""

        def ask(client: Backbone) -> tuple[Any, str]:
            timeframe, wanted = parse_timeframe(interval, derived=True), parse_count(count) or _COUNT
            rows: list[dict[str, Any]] = []
            sources = set()
            for code in parse_markets(symbols, client.session.home):
                table = client.candles(
                    code, timeframe.name, count=wanted, include_forming=True, frames="arrow", progress=False
                )
                rows += _candle_rows(code, timeframe, table.slice(max(0, table.num_rows - wanted)))
                sources.add(attrs_of(table)["source"])
            return rows, sources.pop() if len(sources) == 1 else "mixed"

        answer = self._answer(ask)
        if answer["success"]:
            answer["candle_count"] = len(answer["data"])
        return answer

    def get_performance_summary(self) -> Answer:
        """How the calls of this adapter went; ``success_rate`` from 0 to 1 (1 before the first call)."""
        with self._lock:
            calls, failures, total_ms, last = self._calls, self._failures, self._total_ms, self._last_error
        return Answer(
            smart_routing_enabled=True,
            adapter_initialized=True,
            total_requests=calls,
            successful_requests=calls - failures,
            failed_requests=failures,
            success_rate=(calls - failures) / calls if calls else 1.0,
            avg_response_time_ms=round(total_ms / calls, 3) if calls else 0.0,
            last_error=last,
        )

    def _answer(self, ask: Callable[[Backbone], tuple[Any, str]]) -> Answer:
        clock = SystemClock()
        began = clock.monotonic()
        answer = Answer(success=False, data=None)
        try:
            data, source = ask(default_client.get_client())
            answer.update(success=True, data=data, source=source)
        except BackboneError as exc:
            answer.update(source="none", error=str(exc), error_type=type(exc).__name__)
        elapsed_ms = (clock.monotonic() - began) * 1000
        answer["timestamp"] = in_zone(clock.now_us(), KOREA).isoformat()
        answer["response_time_ms"] = round(elapsed_ms, 3)
        with self._lock:
            self._calls += 1
            self._total_ms += elapsed_ms
            if not answer["success"]:
                self._failures += 1
                self._last_error = answer["error"]
        return answer


def _rows(client: Backbone, symbols: Symbols, rows_of: Callable[[list[str], Priority], Any]) -> tuple[Any, str]:
    """The venue's rows of `symbols`, a single one without its list, and where they are from."""
    codes = parse_markets(symbols, client.session.home)
    client.session.coordinator().markets.check_listed(codes, Priority.HIGH)
    rows = rows_of(codes, Priority.HIGH).rows
    return (rows[0] if len(rows) == 1 else rows), "rest"


def _candle_rows(code: str, timeframe: Timeframe, table: Any) -> list[dict[str, Any]]:
    """Candles as the venue spells them, newest first."""
    unit = {"unit": timeframe.step_us // MINUTE_US} if MINUTE_US <= timeframe.step_us < DAY_US else {}
    columns = [table.column(name).to_pylist() for name in CANDLE_COLUMNS]
    rows = zip(times_of(table).tolist(), *columns, strict=True)
    return [{**candle_row(code, time_us, tuple(values)), **unit} for time_us, *values in rows][::-1]


_adapter = MarketDataAdapter()


def get_market_data_adapter(enable_smart_routing: bool = True) -> MarketDataAdapter:  # noqa: ARG001 - as it was
    """The one adapter. `enable_smart_routing` is accepted and has no effect: there is nothing to fall back to."""
    return _adapter


def initialize(client: Backbone | None = None, **settings: Any) -> Answer:
    """Choose the client behind this module: yours, or a new one of `settings`; see `backbone.compat.initialize`."""
    default_client.initialize(client, **settings)
    return Answer(success=True)


cleanup = _adapter.cleanup
get_ticker = _adapter.get_ticker_data
get_candles = _adapter.get_candle_data
get_orderbook = _adapter.get_orderbook_data
get_performance_summary = _adapter.get_performance_summary
