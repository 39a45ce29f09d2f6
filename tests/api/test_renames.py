"""A renamed market is one market, by every way of asking: its error names the new code, and it counts once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.errors import BackboneError, IncompleteError, InputError
from backbone.simulator import SimulatorServer
from tests.api.calls.test_live import eventually
from tests.processes import process

LIMIT = 1000
OLD, NEW = "KRW-XRP", "KRW-RLUSDX"
START, BEFORE, MIDDLE, END = "2025-07-01", "2025-07-05", "2025-08-21", "2025-08-22"
WORDS = rf"{OLD} is called {NEW} since 2025-08-22; ask for that"


@pytest.fixture
def world(tmp_path: Path, shared_venue: SimulatorServer) -> Iterator[tuple[SimulatorServer, Backbone]]:
    """An exchange of four markets of which one is renamed after some of it was stored, and a client of it."""
    codes = ["KRW-BTC", "KRW-ETH", OLD, "KRW-SOL"]
    with (
        SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True, limit=LIMIT, markets=codes) as server,
        Backbone(data_dir=tmp_path / "data", rest_url=server.rest_url, ws_url=server.ws_url, tz="UTC") as client,
    ):
        client.candles([OLD, "KRW-BTC"], "1h", MIDDLE, END)
        yield server, client


def rename(server: SimulatorServer, client: Backbone, *, seconds: float = 60) -> None:
    server.faults.add("rename", market=OLD, to=NEW)
    server.clock.advance(seconds)
    client.session.coordinator().markets.listed(fresh=True)


def open_client(client: Backbone) -> Backbone:
    settings = client.session.settings
    return Backbone(data_dir=client.data_dir, rest_url=settings.rest_url, ws_url=settings.ws_url, tz="UTC")


def sections(job: Any) -> None:
    try:
        for _ in job.sections():
            pass
    finally:
        job.cancel()
        job.wait(30, progress=False)


Ask = Callable[[Backbone], Any]
ASKS: dict[str, Ask] = {
    "range": lambda c: c.candles(OLD, "1h", START, BEFORE),
    "range that is stored in part": lambda c: c.candles(OLD, "1h", START, END),
    "count": lambda c: c.candles(OLD, "1m", count=10),
    "first so many": lambda c: c.candles(OLD, "1m", START, count=10),
    "critical": lambda c: c.candles(OLD, "1m", count=10, priority="critical"),
    "critical that is stored in part": lambda c: c.candles(OLD, "1h", START, END, priority="critical"),
    "forming": lambda c: c.candles(OLD, "1m", count=10, include_forming=True),
    "refresh": lambda c: c.candles(OLD, "1h", MIDDLE, END, refresh=True),
    "folded": lambda c: c.candles(OLD, "2h", START, BEFORE),
    "several": lambda c: c.candles([OLD, "KRW-BTC"], "1h", START, BEFORE),
    "offline": lambda c: c.candles(OLD, "1h", START, END, offline=True),
    "backfill": lambda c: c.backfill(OLD, "1h", START, BEFORE).result(),
    "sections": lambda c: sections(c.backfill(OLD, "1h", START, END)),
    "map": lambda c: list(c.map(len, OLD, "1h", START, BEFORE)),
    "scan": lambda c: c.scan(OLD, "1h", START, END),
    "ticker": lambda c: c.tickers(OLD),
    "books": lambda c: c.orderbooks(OLD),
    "trades": lambda c: c.trades(OLD, 10),
    "live": lambda c: c.live(OLD),
}


@pytest.mark.parametrize("is_listed_before", [True, False], ids=["seen going", "no list before"])
@pytest.mark.parametrize("way", ASKS)
def test_error_about_the_old_code_names_the_new_one(
    world: tuple[SimulatorServer, Backbone], way: str, is_listed_before: bool
) -> None:
    """Whether or not a list was recorded before, at the first ask, and from a process that never saw the old code."""
    server, client = world
    if is_listed_before:
        client.markets()
    rename(server, client)
    if way in ("scan", "offline"):  # these make no request: another call has to have noticed
        with pytest.raises(BackboneError, match=WORDS):
            client.tickers(OLD)
    with pytest.raises(BackboneError, match=WORDS):
        ASKS[way](client)
    client.close()
    with open_client(client) as other:
        other.markets()
        server.reset_log()
        with pytest.raises(BackboneError, match=WORDS):
            ASKS[way](other)
        assert not [r for r in server.requests if r.query.get("market") == NEW], "what is known is not asked again"


@pytest.mark.parametrize("priority", ["normal", "critical"])
def test_old_code_is_explained_where_all_but_the_forming_candle_is_held(
    world: tuple[SimulatorServer, Backbone], priority: str
) -> None:
    """The closed candles are held, and the venue refuses the one that forms."""
    server, client = world
    client.candles(OLD, "1h", count=5)
    rename(server, client, seconds=0)
    with pytest.raises(InputError, match=WORDS):
        client.candles(OLD, "1h", count=5, include_forming=True, priority=priority)


def renamed_events(client: Backbone) -> list[str]:
    events = client.store.events()
    return events[events["kind"] == "renamed"]["detail"].tolist()


def test_renamed_market_is_one_event_and_both_codes_stay_readable(world: tuple[SimulatorServer, Backbone]) -> None:
    """Noticed in the background once a list comes; what is stored is as it was, under either name."""
    server, client = world
    client.markets()
    held = client.candles(OLD, "1h", MIDDLE, END)
    rename(server, client)
    assert eventually(lambda: renamed_events(client)) == [f'{{"from": "{OLD}", "to": "{NEW}"}}']
    new = client.candles(NEW, "1h", MIDDLE, END)
    assert (new.to_numpy() == held.to_numpy()).all()
    client.close()
    with open_client(client) as other:
        assert (other.candles(OLD, "1h", MIDDLE, END).to_numpy() == held.to_numpy()).all()
        assert other.coverage(OLD, "1h")["rows"].sum() >= len(held)
        other.markets()
        assert len(renamed_events(other)) == 1


ONCE: dict[str, Callable[[Backbone], list[str]]] = {
    "scan": lambda c: c.scan("KRW", "1h", MIDDLE, END).collect()["market"].unique().sort().to_list(),
    "files": lambda c: sorted({f.split("market=")[1].split("/")[0] for f in c.files("KRW", "1h", MIDDLE, END)}),
    "wide": lambda c: sorted(c.candles("KRW", "1h", MIDDLE, END, wide="close").columns),
    "offline": lambda c: sorted(c.candles("KRW", "1h", MIDDLE, END, wide="close", offline=True).columns),
    "size": lambda c: ["KRW-"] * c.size("KRW", "1h", since=MIDDLE, until=END).markets,
    "explain": lambda c: sorted({plan.market for plan in c.explain("KRW", "1h", MIDDLE, END)}),
    "coverage": lambda c: sorted(c.coverage("KRW", "1h")["market"].unique()),
    "update": lambda c: sorted(c.store.update().result()["market"].unique()),
}


@pytest.mark.parametrize("is_known", [True, False], ids=["list at hand", "offline process"])
@pytest.mark.parametrize("way", ONCE)
def test_renamed_market_counts_once(world: tuple[SimulatorServer, Backbone], way: str, is_known: bool) -> None:
    """Under its new name, where both are stored; without a request where none is made anyway."""
    server, client = world
    rename(server, client)
    others = ["KRW-ETH", "KRW-SOL"] if way not in ("update",) else []
    client.candles([NEW, *others], "1h", MIDDLE, END)
    if not is_known:
        client.close()
        client = open_client(client)
    try:
        assert len(ONCE[way](client)) == len({*others, NEW, "KRW-BTC"})
        assert OLD not in ONCE[way](client)
    finally:
        client.close()


def test_rows_about_the_old_code_name_the_new_one(world: tuple[SimulatorServer, Backbone]) -> None:
    """An update and an audit go on with the other markets, and say in the row what this one is called."""
    server, client = world
    client.markets()
    server.faults.add("rename", market=OLD, to=NEW)
    for rows in (client.store.verify(OLD, "1h", against="venue"), client.store.update(OLD).result()):
        assert rows["detail"].str.contains(WORDS).all()
        assert len(rows) == 1


def test_scan_counts_once_where_nobody_ever_asked_for_the_list(world: tuple[SimulatorServer, Backbone]) -> None:
    """A market is fetched, renamed, fetched again, and nothing else."""
    server, client = world
    server.faults.add("rename", market=OLD, to=NEW)
    client.candles(NEW, "1h", MIDDLE, END)
    assert not [request for request in server.requests if request.path == "/v1/market/all"]
    assert ONCE["scan"](client) == ["KRW-BTC", NEW]
    with pytest.raises(BackboneError, match=WORDS):
        client.candles(OLD, "1h", START, BEFORE)


def test_outage_is_shown_by_markets_that_are_counted_once(world: tuple[SimulatorServer, Backbone]) -> None:
    """Two names of a market are no two witnesses of a pause."""
    server, client = world
    client.candles([OLD, "KRW-BTC", "KRW-ETH"], "1m", "2025-06-30T12:00Z", "2025-07-01T00:00Z")
    rename(server, client)
    client.candles(NEW, "1m", "2025-06-30T12:00Z", "2025-07-01T00:00Z")
    assert client.store.outages("1m")["markets"].tolist() == [3]


@pytest.mark.parametrize("factor", [10, 0.001])
@pytest.mark.parametrize("is_listed", [True, False], ids=["seen going", "no list before"])
def test_redenomination_with_a_rename_is_reported_as_both(
    world: tuple[SimulatorServer, Backbone], factor: float, is_listed: bool
) -> None:
    """Errors name the new code and the factor, each is an event, and the market counts once, in the new unit."""
    server, client = world
    if is_listed:
        client.markets()
    held = client.candles(OLD, "1h", MIDDLE, END)
    server.faults.add("rescale", market=OLD, factor=factor)
    rename(server, client)
    words = rf"{OLD} is called {NEW} since 2025-08-22, in another unit: its prices are multiplied by {factor:g}; ask"
    for _ in range(2):
        with pytest.raises(BackboneError, match=words):
            client.candles(OLD, "1h", START, BEFORE)
    new = client.candles(NEW, "1h", MIDDLE, END)
    assert new["close"].to_numpy() == pytest.approx(held["close"].to_numpy() * factor, rel=1e-6)
    events = client.store.events(NEW).query("kind in ('renamed', 'redenominated')")
    assert events["kind"].tolist() == ["renamed", "redenominated"]
    assert [json.loads(detail)["factor"] for detail in events["detail"]] == [factor, factor]
    rows = client.scan("KRW", "1h", MIDDLE, END).collect()
    assert sorted(rows["market"].unique()) == ["KRW-BTC", NEW]
    assert (client.candles(OLD, "1h", MIDDLE, END, offline=True).to_numpy() == held.to_numpy()).all()


def test_another_coin_that_comes_as_one_goes_is_another(world: tuple[SimulatorServer, Backbone]) -> None:
    """Also with the most similar name; and it is compared once by all processes."""
    server, client = world
    client.markets()
    server.faults.add("delist", market=OLD)
    server.faults.add("list", market="KRW-XRQ", at="2017-10-01T00:00:00Z")
    for _ in range(2):
        client.session.coordinator().markets.listed(fresh=True)
        server.reset_log()
        with pytest.raises(BackboneError) as caught:
            client.candles(OLD, "1h", START, BEFORE)
        assert "is called" not in str(caught.value)
        client.close()
        client = open_client(client)
        client.markets()
    assert not [r for r in server.requests if r.query.get("market") == "KRW-XRQ"]
    assert renamed_events(client) == []
    client.close()


def names_of(folder: str, rest_url: str) -> None:
    with Backbone(data_dir=folder, rest_url=rest_url, tz="UTC") as client:
        assert sorted(client.scan("KRW", "1h", MIDDLE, END).collect()["market"].unique()) == ["KRW-BTC", NEW]
        with pytest.raises(IncompleteError, match=f"is called {NEW}"):
            client.candles(OLD, "1h", START, END, offline=True)


def test_other_process_knows_it_too(world: tuple[SimulatorServer, Backbone]) -> None:
    """Beside the candles, and without a request."""
    server, client = world
    client.markets()
    rename(server, client)
    client.candles(NEW, "1h", MIDDLE, END)
    eventually(lambda: renamed_events(client))
    server.reset_log()
    child = process(names_of, str(client.data_dir), server.rest_url)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert server.requests == []
