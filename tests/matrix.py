"""The one table of public ways of asking, and of what goes wrong on the way: for matrix, fuzzing and storm.

A `Way` is a call of a client on the embedded exchange at `NOW`, with the requests that a fault may meet. What a call
answers is compared with what it answers without the fault (`same`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from backbone import Backbone
from backbone.errors import IncompleteError

__all__ = [
    "BEGIN",
    "CANDLES",
    "END",
    "FAULTS",
    "IMPOSSIBLE",
    "LISTED",
    "NOW",
    "ODD_FIELDS",
    "SEVERAL",
    "START",
    "WAYS",
    "Way",
    "options",
    "same",
]

NOW = "2025-08-22T09:00:00Z"
BEGIN, START, END = "2025-08-21T23:20:00Z", "2025-08-22T06:00:00Z", "2025-08-22T08:40:00Z"  # three pages of minutes
TRADES_START = "2025-08-22T08:20:00Z"
CANDLES = "/v1/candles"
SEVERAL = ["KRW-BTC", "KRW-ETH"]
LISTED = [*SEVERAL, "KRW-XRP", "KRW-SOL", "USDT-BTC", "USDT-ETH", "USDT-XRP"]
"""The markets of the exchange: as few as a quote currency needs to have a first page, one in the middle, and a last."""


@dataclass(frozen=True)
class Way:
    """A way of asking.

    ask : the call; its answer is a frame or a list.
    match : in the address of the requests that a fault meets.
    at : which of them: the first, one in the middle and the last, where there are several.
    prepare : what is stored before, without a fault.
    """

    ask: Callable[[Backbone], Any]
    match: str = CANDLES
    at: tuple[int, ...] = (0, 1, 2)
    prepare: Callable[[Backbone], Any] = lambda client: None


def _range(client: Backbone, **words: Any) -> Any:
    return client.candles("KRW-BTC", "1m", BEGIN, END, **words)


def _quote(client: Backbone) -> Any:
    return client.candles("USDT-*", "1d", "2025-08-20", "2025-08-22")


def _sections(client: Backbone) -> Any:
    job = client.backfill("KRW-BTC", "1m", BEGIN, END)
    try:
        return pd.concat(list(job.sections()))
    finally:
        job.cancel()


def _update(client: Backbone) -> Any:
    client.store.update(timeframe="1m").wait(30, progress=False)
    return client.candles("KRW-BTC", "1m", BEGIN, END, offline=True)


def _audit(client: Backbone) -> Any:
    found = client.store.verify("KRW-BTC", "1m", against="venue", start=BEGIN, end=END)
    if "uncompared" in set(found["kind"]):
        raise IncompleteError(found["detail"].iloc[0])
    return found[["market", "timeframe", "kind", "detail"]]


def _live(client: Backbone) -> list[str]:
    with client.live("USDT-*") as table:
        return sorted(table.markets)


WAYS: dict[str, Way] = {
    "range": Way(_range),
    "count": Way(lambda c: c.candles("KRW-BTC", "1m", end=END, count=500)),
    "first-so-many": Way(lambda c: c.candles("KRW-BTC", "1m", BEGIN, count=500)),
    "critical": Way(lambda c: c.candles("KRW-BTC", "1m", end=END, count=500, priority="critical")),
    "forming": Way(lambda c: c.candles("KRW-BTC", "1m", count=450, include_forming=True)),
    "refresh": Way(lambda c: _range(c, refresh=True), prepare=_range),
    "several": Way(lambda c: c.candles(SEVERAL, "1m", START, END), at=(0, 1)),
    "wide": Way(lambda c: c.candles(SEVERAL, "1m", BEGIN, END, wide="close"), at=(0, 3, 5)),
    "quote": Way(_quote),
    "quote-list": Way(_quote, "/v1/market/all", at=(0,)),
    "derived": Way(lambda c: c.candles("KRW-BTC", "2h", count=250)),
    "backfill": Way(lambda c: c.backfill("KRW-BTC", "1m", BEGIN, END).wait(30, progress=False).result()),
    "sections": Way(_sections),
    "update": Way(_update, prepare=lambda c: c.candles("KRW-BTC", "1m", BEGIN, "2025-08-22T00:00:00Z")),
    "audit": Way(_audit, prepare=_range),
    "trades": Way(lambda c: c.trades("KRW-BTC", 1200), "/v1/trades/ticks"),
    "trades-range": Way(lambda c: c.trades("KRW-BTC", start=TRADES_START, end=END), "/v1/trades/ticks"),
    "books": Way(lambda c: c.orderbooks(SEVERAL), "/v1/orderbook?", (0,)),
    "tickers": Way(lambda c: c.tickers(SEVERAL), "/v1/ticker", (0,)),
    "tickers-quote": Way(lambda c: c.tickers("KRW").sort_index(), "/v1/ticker/all", (0,)),
    "markets": Way(lambda c: c.markets("KRW"), "/v1/market/all", (0, 1)),
    "live": Way(_live, "/v1/market/all", (0, 1)),
}

FAULTS: dict[str, dict[str, Any]] = {
    "429": {},
    "418": {"seconds": 0.05},
    "500": {},
    "502-html": {},
    "portal": {},
    "gate": {"limit": 1},
    "reset": {},
    "cut": {},
    "stall": {"seconds": 0.01},
    "slow": {"seconds": 0.01},
    "numbers": {},
    "gzip-off": {},
    "garbage": {},
    "empty": {},
    "short": {},
    "duplicate": {},
    "disorder": {},
    "wrong-market": {},
    "off-grid": {},
    "beyond": {},
    "bad-ohlc": {},
    "odd": {},
}
"""The kinds of faults that a reply may have, with their options. ``odd`` loses the field that `ODD_FIELDS` names."""

ODD_FIELDS = {
    CANDLES: "opening_price", "/v1/trades/ticks": "trade_price", "/v1/orderbook?": "timestamp",
    "/v1/ticker": "opening_price", "/v1/ticker/all": "opening_price", "/v1/market/all": "english_name",
}  # fmt: skip

_UNORDERED = "the reply has no order of its own"
_SAME_REQUEST = "the same request as `markets`: here only what changes the list"
IMPOSSIBLE = {
    ("markets", "disorder"): "the list has no order of its own: it is delivered in the venue's",
    ("live", "disorder"): _UNORDERED,
    **{("quote-list", kind): _SAME_REQUEST for kind in FAULTS if kind not in ("empty", "short", "wrong-market", "odd")},
}
"""Cells that cannot be, and why."""


def options(way: Way, kind: str) -> dict[str, Any]:
    """A fault's options on a way."""
    return FAULTS[kind] | ({"field": ODD_FIELDS[way.match]} if kind == "odd" else {})


def same(found: Any, right: Any) -> None:
    """Equal but for what says when and whence; a row that could not be read is named instead."""
    if not isinstance(right, pd.DataFrame):
        assert found == right
        return
    drop = ["age", "source"]
    frames = [frame.drop(columns=drop, errors="ignore") for frame in (found, right)]
    if named := found.attrs.get("backbone", {}).get("unreadable"):
        is_index = frames[1].index.name == "market"
        markets = frames[1].index if is_index else frames[1]["market"]
        frames[1] = frames[1][~markets.isin(named)]
        assert not frames[1].empty
        frames = [frame if is_index else frame.reset_index(drop=True) for frame in frames]
    pd.testing.assert_frame_equal(*frames, check_exact=True)
