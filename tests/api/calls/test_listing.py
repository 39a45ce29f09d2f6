"""Who was listed when, and the universe of a day, against an exchange whose list changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from backbone import Backbone
from backbone.api.cli import main as cli
from backbone.errors import InputError
from backbone.simulator import SimulatorServer

LIMIT = 1000
CODES = ["KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL"]


@pytest.fixture
def world(tmp_path: Path, shared_venue: SimulatorServer) -> Iterator[tuple[SimulatorServer, Backbone]]:
    """An exchange of four markets that a test changes, and a client of it."""
    with (
        SimulatorServer(seed=7, now="2025-06-01T00:00:30Z", frozen=True, limit=LIMIT, markets=CODES) as server,
        Backbone(data_dir=tmp_path / "data", rest_url=server.rest_url, ws_url=server.ws_url) as client,
    ):
        yield server, client


def anew(client: Backbone) -> None:
    """Ask for the list, however young the known one is."""
    client.session.coordinator().markets.listed(fresh=True)


def test_markets_at_is_the_list_as_it_was(world: tuple[SimulatorServer, Backbone]) -> None:
    """A listing, a delisting, a warning; the day's end counts; nothing is asked; other clients know it too."""
    server, client = world
    client.markets()
    server.clock.set("2025-07-01T00:00:30Z")
    server.faults.add("list", market="KRW-DOGE")
    server.faults.add("delist", market="KRW-SOL")
    server.faults.add("describe", market="KRW-XRP", warning=True, cautions=("TRADING_VOLUME_SOARING",))
    anew(client)
    server.clock.set("2025-08-01T00:00:30Z")
    anew(client)
    server.reset_log()
    assert set(client.markets(at="2025-06-15").index) == set(CODES)
    later = client.markets("KRW", at="2025-07-01")
    assert set(later.index) == {"KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-DOGE"}
    assert later.loc["KRW-XRP", "warning"]
    assert later.loc["KRW-XRP", "cautions"] == "TRADING_VOLUME_SOARING"
    assert server.requests == []
    events = client.store.events()
    assert set(events[events["market"] == "KRW-SOL"]["kind"]) == {"listed", "delisted"}
    assert list(client.store.events("KRW-XRP")["kind"]) == ["listed", "warned", "cautioned"]
    with Backbone(data_dir=client.data_dir, rest_url=server.rest_url, ws_url=server.ws_url) as other:
        pd.testing.assert_frame_equal(other.markets(at="2025-06-15"), client.markets(at="2025-06-15"), check_exact=True)


def test_list_of_the_past_makes_no_request_in_a_fresh_client(
    world: tuple[SimulatorServer, Backbone], tmp_path: Path
) -> None:
    """What was recorded later proves that a day is past; a later day needs the venue's time, or else this machine's."""
    server, client = world
    client.markets()
    server.clock.set("2025-07-01T00:00:30Z")
    server.faults.add("list", market="KRW-DOGE")
    anew(client)
    client.store.events()
    server.reset_log()

    def fresh() -> Backbone:
        return Backbone(data_dir=client.data_dir, rest_url=server.rest_url, ws_url=server.ws_url)

    with fresh() as other:
        assert set(other.markets(at="2025-06-15").index) == set(CODES)
        assert server.requests == []
        with pytest.raises(InputError, match="future"):
            other.markets(at="2025-08-01")
        assert {one.path for one in server.requests} == {"/v1/market/all"}
    server.faults.add("reset", match="", times=None)
    with fresh() as other:
        assert len(other.markets(at="2025-08-01")) == len(other.markets(at="today")) == len(CODES) + 1
        with pytest.raises(InputError, match="future"):
            other.markets(at="2100-01-01")


def test_markets_at_says_since_when_and_refuses_the_future(world: tuple[SimulatorServer, Backbone]) -> None:
    """Bad input names what is allowed."""
    _, client = world
    client.markets()
    with pytest.raises(InputError, match="2025-06-01"):
        client.markets(at="2024-01-01")
    with pytest.raises(InputError, match="future"):
        client.markets(at="2026-01-01")
    with pytest.raises(InputError, match="quote"):
        client.markets("EUR", at="2025-06-01")
    with pytest.raises(InputError, match="KRW-SOL"):
        client.store.events("KRW-SOLE")


def test_lists_that_somebody_kept_make_their_days_answerable(
    world: tuple[SimulatorServer, Backbone], tmp_path: Path, recordings: Path
) -> None:
    """The list of April 2021, a folder, and what is no list."""
    _, client = world
    client.markets()
    kept = recordings / "raw" / "rest" / "market_all_2021-04-17.json"
    report = client.store.adopt(kept)
    assert report["lists"] == 1
    codes = {row["market"] for row in json.loads(kept.read_bytes())}
    assert set(client.markets(at="2021-04-17").index) == set(client.markets(at="2023-01-01").index) == codes
    assert set(client.markets(at="2025-06-01").index) == set(CODES)
    assert client.store.adopt(kept)["events"] == 0
    folder = tmp_path / "lists"
    folder.mkdir()
    for day, rows in (("2022-01-01", CODES[:1]), ("2022-02-01", CODES[:2])):
        body = [{"market": code, "korean_name": code, "english_name": code} for code in rows]
        (folder / f"market_all_{day}.json").write_text(json.dumps(body))
    assert client.store.adopt(folder)["lists"] == 2
    assert list(client.markets(at="2022-01-15").index) == CODES[:1]
    wrong = {
        "x.json": "[]",
        "2020-01-01.json": "{}",
        "2020-01-02.json": "[]",
        "2099-01-01.json": kept.read_text("utf-8"),
    }
    for name, text in wrong.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError):
            client.store.adopt(tmp_path / name)
    with pytest.raises(InputError, match="for candles, say whose"):
        client.store.adopt(tmp_path / "none.csv")
    with pytest.raises(InputError, match="tz"):
        client.store.adopt(kept, tz="UTC")
    with pytest.raises(InputError, match="at="):
        client.store.adopt(kept, "KRW-BTC", "1h", at="2022-01-01")


def test_folder_of_lists_as_people_keep_them(world: tuple[SimulatorServer, Backbone], tmp_path: Path) -> None:
    """Several a day, with the time in the name; days without hyphens; a byte order mark; what a system hides there."""
    _, client = world
    folder = tmp_path / "lists"
    folder.mkdir()

    def keep(name: str, codes: list[str]) -> None:
        body = [{"market": code, "korean_name": code, "english_name": code} for code in codes]
        (folder / name).write_text(json.dumps(body), "utf-8-sig")

    keep("2022-01-01T09-00.json", CODES[:1])
    keep("2022-01-01T21-00-07.json", CODES[:2])
    keep("market_all_20220201.json", CODES[:3])
    keep("20220301_2359.json", CODES)
    (folder / "._2022-01-01.json").write_bytes(b"Mac OS X")
    assert client.store.adopt(folder)["lists"] == 4
    for at, number in (("2022-01-01 09:01", 1), ("2022-01-01", 2), ("2022-02-01 00:00", 3), ("2022-03-01 23:00", 3)):
        assert len(client.markets(at=at)) == number, at
    assert len(client.markets(at="2022-03-01")) == 4
    keep("2022-13-01.json", CODES)
    with pytest.raises(InputError, match="2022-13-01"):
        client.store.adopt(folder)
    with pytest.raises(InputError, match="at='2099-01-01'"):
        client.store.adopt(folder / "20220301_2359.json", at="2099-01-01")


def test_market_log_grows_with_what_changes_and_is_shared(world: tuple[SimulatorServer, Backbone]) -> None:
    """The same list again, by whichever client, adds nothing; a change adds its own lines and no more."""
    server, client = world
    client.markets()
    client.store.events()
    (log,) = (client.data_dir).rglob("exchange=*.jsonl")
    with Backbone(data_dir=client.data_dir, rest_url=server.rest_url, ws_url=server.ws_url) as other:
        lines = log.read_bytes().count(b"\n")
        assert lines == len(CODES) + 1
        for one in (client, other, client, other):
            anew(one)
            one.store.events()
        assert log.read_bytes().count(b"\n") == lines
        server.faults.add("list", market="KRW-DOGE")
        anew(other)
        assert list(other.store.events("KRW-DOGE")["kind"]) == ["listed"]
        anew(client)
        pd.testing.assert_frame_equal(client.store.events(), other.store.events(), check_exact=True)
    assert log.read_bytes().count(b"\n") <= lines + 2


def test_market_that_traded_before_it_was_first_seen_was_listed_then(world: tuple[SimulatorServer, Backbone]) -> None:
    """The first list of all lacked it, its stored candles are older: from them, it was listed."""
    server, client = world
    client.markets()
    server.clock.set("2025-07-01T00:00:30Z")
    server.faults.add("list", market="KRW-DOGE", at="2025-05-01T00:00:00Z")
    server.faults.add("list", market="KRW-ADA", at="2025-06-25T00:00:00Z")
    anew(client)
    for market in ("KRW-DOGE", "KRW-ADA"):
        client.candles(market, "1d", "2025-05-20", "2025-07-01")
    assert set(client.markets(at="2025-06-10").index) == {*CODES, "KRW-DOGE"}
    assert set(client.markets(at="2025-06-28").index) == {*CODES, "KRW-DOGE", "KRW-ADA"}


def test_kept_lists_answer_2021_and_say_since_when(
    world: tuple[SimulatorServer, Backbone], tmp_path: Path, recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One body, or a folder of them, by the call and by the command; a day before them is refused with their first."""
    server, _ = world
    kept = recordings / "raw" / "rest" / "market_all_2021-04-17.json"
    codes = {row["market"] for row in json.loads(kept.read_bytes())}
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / kept.name).write_bytes(kept.read_bytes())
    (folder / "market_all_2022-01.json").write_text(
        json.dumps([{"market": code, "korean_name": code, "english_name": code} for code in CODES])
    )
    for words in ([str(kept)], [str(folder)]):
        place = tmp_path / f"data-{len(words[0])}"
        at = ["--rest-url", server.rest_url, "--ws-url", server.ws_url, "--data-dir", str(place)]
        assert cli.main(["adopt", *words, *at]) == 0
        capsys.readouterr()
        assert cli.main(["markets", "--at", "2021-05-01", "--format", "json", *at]) == 0
        assert {row["market"] for row in json.loads(capsys.readouterr().out)} == codes
        assert cli.main(["markets", "--at", "2021-04-16", *at]) == 2
        assert "2021-04-17" in capsys.readouterr().err
        with Backbone(data_dir=place, rest_url=server.rest_url, ws_url=server.ws_url) as one:
            assert set(one.markets("KRW", at="2021-05-01").index) == {code for code in codes if code[:4] == "KRW-"}
            with pytest.raises(InputError, match="2021-04-17 00:00:00 Asia/Seoul or later"):
                one.markets(at="2021-04-16")
    assert set(CODES) == set(gone_by(tmp_path / f"data-{len(str(folder))}", server, "2022-06-01"))


def gone_by(place: Path, server: SimulatorServer, day: str) -> list[str]:
    with Backbone(data_dir=place, rest_url=server.rest_url, ws_url=server.ws_url) as one:
        return list(one.markets(at=day).index)


def test_events_say_what_happened_when_and_how_it_is_known(world: tuple[SimulatorServer, Backbone]) -> None:
    """One frame of all markets, oldest first; of one market, its own."""
    server, client = world
    client.markets()
    server.clock.set("2025-07-01T00:00:30Z")
    server.faults.add("list", market="KRW-DOGE")
    server.faults.add("delist", market="KRW-SOL")
    server.faults.add("describe", market="KRW-XRP", warning=True, cautions=("TRADING_VOLUME_SOARING",))
    server.faults.add("describe", market="KRW-ETH", korean_name="이더", suspended=True)
    anew(client)
    with client.live(["KRW-ETH", "KRW-BTC"]):
        pass
    events = client.store.events()
    assert events["at"].is_monotonic_increasing
    assert str(events["at"].dt.tz) == client.tz
    later = events[events["at"] > "2025-06-02"]
    found = {(row.market, row.kind, row.how) for row in later.itertuples()}
    assert found == {
        ("KRW-DOGE", "listed", "market list"),
        ("KRW-SOL", "delisted", "market list"),
        ("KRW-XRP", "warned", "market list"),
        ("KRW-XRP", "cautioned", "market list"),
        ("KRW-ETH", "named", "market list"),
        ("KRW-ETH", "state", "ticker"),
    }
    pd.testing.assert_frame_equal(
        client.store.events("KRW-XRP"), events[events["market"] == "KRW-XRP"].reset_index(drop=True), check_exact=True
    )


def test_market_list_has_the_price_steps_of_a_stated_time(
    world: tuple[SimulatorServer, Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests more the first time (steps, and the prices at which they hold), and again when they are as old as a
    list that is asked again."""
    server, client = world
    frame = client.markets()
    assert frame["tick_size"].to_dict() == {"KRW-BTC": 1000.0, "KRW-ETH": 1000.0, "KRW-XRP": 1.0, "KRW-SOL": 100.0}
    asked = len(server.requests)
    again = client.markets("KRW")
    assert len(server.requests) == asked
    for one in (frame, again):
        assert one.attrs["backbone"]["tick_sizes_at"][:16] == "2025-06-01T09:00"
    realtime = client.session.coordinator().realtime
    old = {market: (at_s - 600.0, instrument) for market, (at_s, instrument) in realtime._instruments.items()}
    monkeypatch.setattr(realtime, "_instruments", dict(old))
    client.markets("KRW")
    assert len(server.requests) == asked + 1, "the prices are young"
    monkeypatch.setattr(realtime, "_instruments", dict(old))
    monkeypatch.setattr(realtime, "_prices", {})
    client.markets("KRW")
    assert len(server.requests) == asked + 3


def test_price_steps_are_asked_beside_the_list(world: tuple[SimulatorServer, Backbone]) -> None:
    """Where a list was recorded, all requests are under way at once: the first `markets()` waits for one round trip.
    What the recorded list lacks, or has too many, is asked again."""
    server, client = world
    first = client.markets()

    def opened() -> pd.DataFrame:
        server.reset_log()
        with Backbone(data_dir=client.data_dir, rest_url=server.rest_url, ws_url=server.ws_url) as other:
            return other.markets()

    server.faults.add("slow", match="/v1/", seconds=1.5, times=10)
    frame = opened()
    server.faults.clear()
    pd.testing.assert_frame_equal(frame, first, check_exact=True)
    paths = ["/v1/market/all", "/v1/orderbook/instruments", "/v1/ticker/all"]
    assert sorted(request.path for request in server.requests) == paths
    sent = [request.mono for request in server.requests]
    assert max(sent) - min(sent) < 1.4
    assert frame.attrs["backbone"]["requests"] == 3
    server.faults.add("list", market="KRW-DOGE")
    assert opened()["tick_size"].notna().all()
    server.faults.add("delist", market="KRW-DOGE")
    frame = opened()
    assert frame["tick_size"].notna().all()
    assert list(frame.index) == CODES


def test_universe_ranks_who_was_listed_by_what_was_traded_before(world: tuple[SimulatorServer, Backbone]) -> None:
    """A later listing is not in it; one that is gone is, by what is stored, or is named as without data."""
    server, client = world
    client.markets()
    client.candles("KRW-SOL", "1d", "2025-05-01", "2025-06-01")
    server.clock.set("2025-07-20T00:00:30Z")
    server.faults.add("list", market="KRW-DOGE", at="2025-07-02T00:00:00Z")
    server.faults.add("delist", market="KRW-SOL")
    server.faults.add("delist", market="KRW-XRP")
    anew(client)
    server.clock.advance(300)
    anew(client)
    early = client.universe("KRW", at="2025-06-01T09:02", window="30d")
    truth = {
        code: server.exchange.candle_table(code, "1d", 1_746_144_000_000_000, 1_748_736_000_000_000)["value"]
        for code in ("KRW-BTC", "KRW-ETH")
    }
    sums = {code: sum(values.to_pylist()) for code, values in truth.items()}
    assert set(early.index) == {"KRW-BTC", "KRW-ETH", "KRW-SOL"}
    for code, total in sums.items():
        assert early.loc[code, "value"] == pytest.approx(total, rel=1e-12)
    assert early["value"].is_monotonic_decreasing
    assert early["rank"].tolist() == [1, 2, 3]
    facts = early.attrs["backbone"]
    assert (facts["listed"], facts["without_data"]) == (4, ["KRW-XRP"])
    assert (facts["requests"], facts["pages"], facts["cache_hit"]) == (2, 2, False), "of each of two a page"
    assert facts["sources"] == {"rest": 60, "disk": 30}
    again = client.universe("KRW", at="2025-06-01T09:02", window="30d").attrs["backbone"]
    assert (again["requests"], again["cache_hit"], "rest" in again["sources"]) == (0, True, False)
    late = client.universe("KRW", at="2025-07-20T09:02", top=2, by="volume", window="2w")
    assert len(late) == 2
    assert "KRW-SOL" not in client.universe("KRW", at="2025-07-20T09:02").index
    assert "KRW-DOGE" in client.universe("KRW", at="2025-07-20T09:02").index


@pytest.mark.parametrize(
    "wrong",
    [
        {"by": "price"},
        {"top": 0},
        {"window": "-3d"},
        {"window": "0d"},
        {"window": "soon"},
        {"window": "99999d"},
        {"at": "2030-01-01"},
    ],
)
def test_universe_refuses_what_it_cannot_be_asked(
    world: tuple[SimulatorServer, Backbone], wrong: dict[str, object]
) -> None:
    """An unknown column, a window that is no time before `at`, a future."""
    _, client = world
    client.markets()
    with pytest.raises(InputError, match=f"^{next(iter(wrong))}="):
        client.universe("KRW", **({"at": "2025-06-01T09:00:30"} | wrong))


def test_universe_shows_a_bar_where_it_fetches_for_long(
    world: tuple[SimulatorServer, Backbone], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole quote currency takes half a minute the first time."""
    _, client = world
    client.markets()
    monkeypatch.setattr("backbone.api.notebook.bar.is_watched", lambda: True)
    monkeypatch.setattr("backbone.api.notebook.bar.QUIET_S", 0.0)
    client.universe("KRW", at="2025-06-01T09:00:30", top=2)
    assert "1d" in capsys.readouterr().err


def test_universe_finds_a_renamed_coin_under_its_data(world: tuple[SimulatorServer, Backbone]) -> None:
    """Once, by what it is called now, with the code of that day beside it; also when it changed its name twice."""
    server, client = world
    client.markets()
    server.clock.advance(300)
    anew(client)
    before = client.universe("KRW", at="2025-06-01T09:02")
    server.clock.set("2025-07-20T00:00:30Z")
    for code, to in (("KRW-XRP", "KRW-RLUSDX"), ("KRW-RLUSDX", "KRW-RX")):
        server.faults.add("rename", market=code, to=to)
        anew(client)
        client.candles(to, "1d", "2025-04-01", "2025-07-01")
        server.clock.advance(86_400)
    with Backbone(data_dir=client.data_dir, rest_url=server.rest_url, ws_url=server.ws_url) as other:
        after = other.universe("KRW", at="2025-06-01T09:02")
        assert after["listed_as"].tolist() == before.index.tolist()
        assert after.index.tolist() == [{"KRW-XRP": "KRW-RX"}.get(code, code) for code in before.index]
        assert after["value"].tolist() == before["value"].tolist()
        assert (after.attrs["backbone"]["listed"], after.attrs["backbone"]["without_data"]) == (4, [])
        assert set(other.markets("KRW", at="2025-06-01").index) == set(before.index), "one market is listed once"
