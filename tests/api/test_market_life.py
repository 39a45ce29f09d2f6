"""A day of a whole market, live: markets are listed and delisted meanwhile, and no update is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.api.calls.live import LiveTable
from backbone.coordinator.live import feed, members
from backbone.model import Trade
from backbone.simulator import SimulatorServer
from tests.api.calls.test_live import eventually

HOUR_US = 3_600_000_000
OLD = ["KRW-LRC", "KRW-RIF", "KRW-PHA", "KRW-SNX", "KRW-DIA", "KRW-CELR", "KRW-HIGH", "KRW-OGN"]
NEW = ["KRW-AUDIO", "KRW-BICO", "KRW-COTI", "KRW-RAD", "KRW-NKN"]
GONE = OLD[1::2] + NEW[:1]


@pytest.fixture
def venue() -> Iterator[SimulatorServer]:
    """An exchange of quiet markets whose clock is moved."""
    with SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True, limit=500, markets=OLD) as server:
        yield server


@pytest.fixture
def client(venue: SimulatorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backbone]:
    """A client whose minute between two market lists is short, as the exchange's day is."""
    monkeypatch.setattr(members, "EVERY_S", 0.2)
    monkeypatch.setattr(members, "AGAIN_S", 0.1)
    monkeypatch.setattr(feed, "_JOIN_S", 0.05)
    with Backbone(data_dir=tmp_path / "data", rest_url=venue.rest_url, ws_url=venue.ws_url) as made:
        yield made


class Truth:
    """The trades of each market while it was listed, as the exchange has them."""

    def __init__(self, venue: SimulatorServer) -> None:
        self.venue = venue
        self.start_us = venue.clock.now_us()
        self.ends: dict[str, int] = {}

    def of(self, code: str, market: Any, end_us: int) -> list[int]:
        trades = self.venue.exchange.executions(market, max(self.start_us, market.listed_us), end_us)
        return [int(number) for number in trades.sequential_id]


def test_day_with_listings_and_delistings_loses_no_update(client: Backbone, venue: SimulatorServer) -> None:
    """24 hours, five markets listed and five delisted: each trade came once, also those before a market
    joined; each change is an event; the table shows exactly the markets that are listed."""
    truth = Truth(venue)
    seen: dict[str, Any] = dict(venue.exchange.listed())
    with client.live("KRW", ("ticker", "trade")) as table:
        records = table.records(100_000)
        for turn in range(5):
            venue.faults.add("list", market=NEW[turn])
            seen.update(venue.exchange.listed())
            pass_hours(venue, 0.6)  # it trades before the table knows of it
            eventually(lambda turn=turn: NEW[turn] in table.markets)  # type: ignore[misc]
            pass_hours(venue, 2)
            gone_us = venue.clock.now_us() + HOUR_US + 1_000_000
            venue.faults.add("delist", market=GONE[turn], at=gone_us)
            seen.update(venue.exchange.listed())
            pass_hours(venue, 1)
            for last in truth.of(GONE[turn], seen[GONE[turn]], gone_us)[-1:]:  # is here before a list lacks its market
                eventually(lambda turn=turn, last=last: last_trade(table, GONE[turn]) == last)  # type: ignore[misc]
            pass_hours(venue, 1.2)
            eventually(lambda turn=turn: GONE[turn] not in table.markets)  # type: ignore[misc]
        end_us = venue.clock.now_us()
        assert end_us - truth.start_us == 24 * HOUR_US
        venue.clock.advance(1)
        expected = {
            code: truth.of(code, market, min(end_us, market.delisted_us or end_us)) for code, market in seen.items()
        }
        wanted = sum(map(len, expected.values()))
        found = collect(records, truth.start_us, end_us, wanted)
        listed = [code for code in venue.exchange.listed(venue.clock.now_us()) if code.startswith("KRW-")]
        assert sorted(table.markets) == sorted(listed)
        assert sorted(table.frame().index) == sorted(listed)
        changes = [(event.kind, event.market) for event in table.events if event.kind in ("listed", "delisted")]
        announced = [event.market for event in table.events if event.kind == "state"]
    assert changes == [
        change for new, old in zip(NEW, GONE, strict=True) for change in (("listed", new), ("delisted", old))
    ]
    assert announced == GONE
    lost = {code: sorted(set(numbers) - set(found.get(code, ()))) for code, numbers in expected.items()}
    assert not any(lost.values()), lost
    assert {code: sorted(numbers) for code, numbers in found.items()} == expected, "each came once"
    assert wanted > 500
    assert all(expected[code] for code in NEW)
    assert records.dropped == 0
    assert table.missed == 0
    assert set(client.store.events()["kind"]) >= {"listed", "delisted", "state"}


def last_trade(table: LiveTable, market: str) -> int | None:
    """The id of the last trade that the table has of a market; None before the first one came."""
    row = table.latest(market, "trade")
    return row.sequential_id if isinstance(row, Trade) else None


def pass_hours(venue: SimulatorServer, hours: float) -> None:
    """Let the exchange's time pass, twelve minutes at a time, each published before the next."""
    hub = venue._hub
    assert hub is not None
    for _ in range(round(hours * 5)):
        venue.clock.advance(720)
        while hub._at_us < venue.clock.now_us():
            time.sleep(0.0005)


def collect(records: Any, start_us: int, end_us: int, count: int) -> dict[str, list[int]]:
    """The ids of the trades that came, by market, in the order of their coming."""
    found: dict[str, list[int]] = {}
    arrived = 0
    while arrived < count and (record := records.get(10.0)) is not None:
        if isinstance(record, Trade) and start_us <= record.time_us < end_us:
            found.setdefault(record.market, []).append(record.sequential_id)
            arrived += 1
    while (record := records.get(0)) is not None:
        if isinstance(record, Trade) and start_us <= record.time_us < end_us:
            found.setdefault(record.market, []).append(record.sequential_id)
    return found
