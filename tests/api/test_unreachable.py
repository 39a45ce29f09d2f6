"""One error for one cause: every way of asking a venue that cannot be reached says so, and so does the exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.api.cli.main import EXIT_CODES, EXIT_SOURCE, main
from backbone.coordinator import scheduler
from backbone.coordinator.candles import fetcher
from backbone.errors import IncompleteError, SourceError, UnreachableError
from backbone.simulator import SimulatorServer

LIMIT = 1000
START, END = "2025-08-22T06:00:00Z", "2025-08-22T08:40:00Z"
BOOKED = "2025-08-22T08:20:00Z"


WAYS: dict[str, Callable[[Backbone], Any]] = {
    **{
        f"candles-{priority}": lambda c, priority=priority: c.candles("KRW-BTC", "1m", START, END, priority=priority)
        for priority in ("critical", "high", "normal", "low")
    },
    "candles-count": lambda c: c.candles("KRW-BTC", "1m", count=5),
    "candles-first": lambda c: c.candles("KRW-BTC", "1m", START, count=5),
    "candles-forming": lambda c: c.candles("KRW-BTC", "1m", count=5, include_forming=True),
    "candles-refresh": lambda c: c.candles("KRW-BTC", "1m", START, END, refresh=True),
    "candles-several": lambda c: c.candles(["KRW-BTC", "KRW-ETH"], "1m", START, END),
    "candles-quote": lambda c: c.candles("USDT", "1h", START, END),
    "candles-wide": lambda c: c.candles(["KRW-BTC", "KRW-ETH"], "1m", START, END, wide="close"),
    "candles-derived": lambda c: c.candles("KRW-BTC", "2h", count=3),
    "tickers": lambda c: c.tickers("KRW-BTC", max_age=0),
    "tickers-quote": lambda c: c.tickers("KRW", max_age=0),
    "books": lambda c: c.orderbooks("KRW-BTC", max_age=0),
    "trades": lambda c: c.trades("KRW-BTC", 5),
    "trades-range": lambda c: c.trades("KRW-BTC", start=BOOKED, end=END),
    "job-result": lambda c: c.backfill("KRW-BTC", "1m", START, END).result(30),
    "job-wait": lambda c: c.backfill("KRW-BTC", "1m", START, END).wait(30).result(),
    "job-sections": lambda c: list(c.backfill("KRW-BTC", "1m", START, END).sections()),
    "job-derived": lambda c: c.backfill("KRW-BTC", "2h", START, END).result(30),
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries at once, and jobs that do not wait a quarter of an hour for the venue."""
    monkeypatch.setattr(scheduler, "_BACKOFF_S", (0.001, 0.002))
    monkeypatch.setattr(fetcher, "_PATIENCE", 2)


@pytest.mark.parametrize("is_known", [False, True], ids=["from-the-start", "later"])
@pytest.mark.parametrize("name", WAYS)
def test_unreachable_is_one_error(venue: SimulatorServer, client: Backbone, name: str, is_known: bool) -> None:
    """Whether the venue was never reached, or was lost after its clock and list were known."""
    if is_known:
        client.markets()
    venue.faults.add("reset", match="/v1/", times=None)
    with pytest.raises(UnreachableError):
        WAYS[name](client)


@pytest.mark.parametrize(
    "words",
    [
        ["fetch", "KRW-BTC", "1m", "--start", START, "--end", END],
        ["fetch", "KRW-BTC", "1m", "--count", "5", "--priority", "critical"],
        ["fetch", "KRW", "1d", "--start", START],
        ["backfill", "KRW-BTC", "1m", "--start", START, "--end", END],
        ["update"],
        ["markets"],
        ["watch", "KRW-BTC", "--once"],
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_unreachable_is_one_exit_code(
    venue: SimulatorServer, client: Backbone, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command ends with the code of the venue that cannot be reached, and says why on standard error."""
    client.candles("KRW-BTC", "1m", "2025-08-22T05:00:00Z", START)  # `update` has something to do
    client.close()
    venue.faults.add("reset", match="/v1/", times=None)
    places = ["--data-dir", str(tmp_path / "data"), "--rest-url", venue.rest_url, "--ws-url", venue.ws_url]
    assert main([*words, *places]) == EXIT_SOURCE, EXIT_CODES
    assert "no answer" in capsys.readouterr().err


def test_part_that_arrived_is_incomplete_on_every_way(venue: SimulatorServer, client: Backbone) -> None:
    """One row is enough: the error has what arrived, whoever asked."""
    held = client.candles("KRW-BTC", "1m", START, "2025-08-22T07:00:00Z")
    venue.faults.add("reset", match="/v1/candles", times=None)
    for way in (
        lambda: client.candles("KRW-BTC", "1m", START, END),
        lambda: client.backfill("KRW-BTC", "1m", START, END).result(30),
        lambda: list(client.backfill("KRW-BTC", "1m", START, END).sections()),
    ):
        with pytest.raises(IncompleteError) as caught:
            way()
        assert len(caught.value.frame) == len(held)
        assert all(isinstance(cause, SourceError) for cause in caught.value.causes)


def test_audit_that_cannot_ask_says_so(venue: SimulatorServer, client: Backbone) -> None:
    """A process that has no clock of the venue's compares the newest that are held, not the newest there should be."""
    client.candles("KRW-BTC", "1m", START, END)
    client.close()
    venue.faults.add("reset", match="/v1/", times=None)
    with Backbone(data_dir=client.data_dir, rest_url=venue.rest_url) as again:
        assert again.store.verify(against="venue")["kind"].tolist() == ["uncompared", "uncompared"]
