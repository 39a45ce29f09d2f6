"""How fast the venue's bytes become tables and records. Run: ``python -m tests.benchmarks.wire``.

Every figure stands beside a bare msgspec decode of the same bytes in the same run, because the ratio survives a noisy
machine and the milliseconds do not. Synthetic bodies of the sizes that were measured on the live venue.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec

from backbone.routing import wire
from backbone.timeframe import TIMEFRAMES


def medians_ms(*works: Callable[[], Any], rounds: int = 200) -> list[float]:
    """The median time of each, measured in turns, so that what else the machine does falls on all of them."""
    times: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    for _ in range(rounds):
        for work, found in zip(works, times, strict=True):
            started = time.perf_counter()
            work()
            found.append(time.perf_counter() - started)
    return [statistics.median(found) * 1e3 for found in times]


def candle_page() -> bytes:
    start = datetime(2026, 8, 31, 23, 59, tzinfo=UTC)
    rows = []
    for i in range(wire.PAGE):
        opened = start - timedelta(minutes=i)
        rows.append(
            {
                "market": "KRW-BTC",
                "candle_date_time_utc": f"{opened:%Y-%m-%dT%H:%M:%S}",
                "candle_date_time_kst": f"{opened + timedelta(hours=9):%Y-%m-%dT%H:%M:%S}",
                "opening_price": 109753000.0 + i,
                "high_price": 109756000.0 + i,
                "low_price": 109667000.0 + i,
                "trade_price": 109714000.0 + i,
                "timestamp": 1788220799342 - 60_000 * i,
                "candle_acc_trade_price": 398651814.32878 + i,
                "candle_acc_trade_volume": 3.63363563 + i,
                "unit": 1,
            }
        )
    return json.dumps(rows).encode()


TICKER = {
    "trade_date": "20260730",
    "trade_time": "074100",
    "trade_date_kst": "20260730",
    "trade_time_kst": "164100",
    "trade_timestamp": 1785397260652,
    "opening_price": 91374000.0,
    "high_price": 92119000.0,
    "low_price": 90888000.0,
    "trade_price": 91200000.0,
    "prev_closing_price": 91424000.0,
    "change": "FALL",
    "change_price": 224000.0,
    "change_rate": 0.0024501225,
    "signed_change_price": -224000.0,
    "signed_change_rate": -0.0024501225,
    "trade_volume": 0.00016456,
    "acc_trade_price": 27800806282.39862,
    "acc_trade_price_24h": 74674126733.71954,
    "acc_trade_volume": 304.11940843,
    "acc_trade_volume_24h": 814.34496604,
    "highest_52_week_price": 179869000.0,
    "highest_52_week_date": "2025-10-09",
    "lowest_52_week_price": 88770000.0,
    "lowest_52_week_date": "2026-07-01",
    "timestamp": 1785397260707,
}
LEVEL = {"bid_price": 116538000, "bid_size": 0.08120946, "ask_price": 116539000, "ask_size": 0.02054761}


def book(market: str) -> dict[str, Any]:
    levels = [LEVEL | {"ask_price": 116539000 + 1000 * i, "bid_price": 116538000 - 1000 * i} for i in range(30)]
    return {"market": market, "timestamp": 1790134742106, "orderbook_units": levels, "level": 0}


def trade(i: int) -> dict[str, Any]:
    return {
        "market": "KRW-BTC",
        "trade_date_utc": "2026-07-30",
        "trade_time_utc": "07:41:00",
        "timestamp": 1785397260652 - i,
        "trade_price": 91200000.0,
        "trade_volume": 5.485e-05,
        "prev_closing_price": 91424000.0,
        "change_price": -224000.0,
        "ask_bid": "BID",
        "sequential_id": 17853972606520001 - i,
    }


def main() -> None:
    codes = [f"KRW-{i:04d}" for i in range(855)]
    cases: list[tuple[str, wire.Ask, bytes]] = [
        ("200 candles", wire.candles_ask("KRW-BTC", TIMEFRAMES["1m"], None, wire.PAGE), candle_page()),
        ("855 tickers", wire.tickers_all_ask(["KRW"]), _body({"market": c} | TICKER for c in codes)),
        ("855 order books", wire.orderbooks_ask(codes), _body(book(c) for c in codes)),
        ("500 trades", wire.trades_ask("KRW-BTC", 500), _body(trade(i) for i in range(500))),
    ]
    print(f"{'reply':<16}{'bytes':>10}{'parse ms':>10}{'untyped msgspec ms':>20}{'ratio':>8}")
    for name, ask, body in cases:
        rounds = 200 if len(body) < 1_000_000 else 20
        parsed, bare = medians_ms(partial(ask.parse, body), partial(msgspec.json.decode, body), rounds=rounds)
        print(f"{name:<16}{len(body):>10,}{parsed:>10.2f}{bare:>20.2f}{parsed / bare:>8.2f}")


def _body(rows: Any) -> bytes:
    return json.dumps(list(rows)).encode()


if __name__ == "__main__":
    main()
