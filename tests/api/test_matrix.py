"""Every fault of the embedded exchange against every public way of asking, at the first, a middle and the last page.

The only outcomes that are allowed: the answer of the call without the fault, or an error of the tree and then, without
the fault, that answer. `IMPOSSIBLE` names the cells that cannot be, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from backbone import Backbone
from backbone.coordinator import scheduler
from backbone.errors import BackboneError
from backbone.simulator import SimulatorServer

LIMIT = 1000
START, END = "2025-08-22T06:00:00Z", "2025-08-22T08:40:00Z"
TRADES_START = "2025-08-22T08:20:00Z"

WAYS: dict[str, tuple[str, int, Callable[[Backbone], Any]]] = {
    "range": ("/v1/candles", 3, lambda c: c.candles("KRW-BTC", "1m", "2025-08-21T22:00:00Z", END)),
    "count": ("/v1/candles", 3, lambda c: c.candles("KRW-BTC", "1m", end=END, count=500)),
    "first-so-many": ("/v1/candles", 3, lambda c: c.candles("KRW-BTC", "1m", "2025-08-21T22:00:00Z", count=500)),
    "critical": ("/v1/candles", 3, lambda c: c.candles("KRW-BTC", "1m", end=END, count=500, priority="critical")),
    "forming": ("/v1/candles", 3, lambda c: c.candles("KRW-BTC", "1m", count=450, include_forming=True)),
    "backfill": ("/v1/candles", 3, lambda c: c.backfill("KRW-BTC", "1m", START, END).wait(30).result()),
    "trades": ("/v1/trades/ticks", 3, lambda c: c.trades("KRW-BTC", 1200)),
    "trades-range": ("/v1/trades/ticks", 3, lambda c: c.trades("KRW-BTC", start=TRADES_START, end=END)),
    "books": ("/v1/orderbook?", 1, lambda c: c.orderbooks(["KRW-BTC", "KRW-ETH"])),
    "tickers": ("/v1/ticker", 1, lambda c: c.tickers(["KRW-BTC", "KRW-ETH"])),
    "markets": ("/v1/market/all", 1, lambda c: c.markets("KRW")),
}
KINDS = (
    "429", "500", "502-html", "reset", "cut", "slow", "numbers", "gzip-off", "garbage",
    "empty", "short", "duplicate", "disorder", "wrong-market", "off-grid", "beyond", "bad-ohlc",
)  # fmt: skip
IMPOSSIBLE = {
    ("markets", "disorder"): "the list has no order of its own: it is delivered in the venue's",
}
@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries at once."""
    monkeypatch.setattr(scheduler, "_BACKOFF_S", (0.01, 0.05))


@pytest.fixture(scope="module")
def truth(shared_venue: SimulatorServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each way's answer without a fault."""
    answers = {}
    for name, (_, _, way) in WAYS.items():
        with _client(shared_venue, tmp_path_factory.mktemp(name)) as client:
            answers[name] = way(client)
    return answers


def _client(venue: SimulatorServer, folder: Path) -> Backbone:
    return Backbone(data_dir=folder, rest_url=venue.rest_url, ws_url=venue.ws_url)


def _same(found: Any, right: Any) -> None:
    """Equal but for what says when and whence; a row that could not be read is named instead."""
    drop = ["age", "source"]
    frames = [frame.drop(columns=[name for name in drop if name in frame.columns]) for frame in (found, right)]
    if named := found.attrs["backbone"].get("unreadable"):
        frames[1] = frames[1].drop(index=named)
        assert not frames[1].empty
    pd.testing.assert_frame_equal(*frames)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in WAYS for kind in KINDS])
def test_fault_ends_in_the_right_answer_or_an_error(
    venue: SimulatorServer, truth: dict[str, Any], tmp_path: Path, name: str, kind: str
) -> None:
    """At each page, once."""
    if reason := IMPOSSIBLE.get((name, kind)):
        pytest.skip(reason)
    match, pages, way = WAYS[name]
    for page in range(pages):
        venue.faults.clear()
        venue.reset_limits()
        options = {"seconds": 0.05} if kind == "slow" else {}
        venue.faults.add(kind, match=match, after=page, **options)
        with _client(venue, tmp_path / str(page)) as client:
            try:
                found = way(client)
            except BackboneError:
                venue.faults.clear()
                found = way(client)
            _same(found, truth[name])
