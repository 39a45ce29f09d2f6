"""A redenomination while candles are stored: whatever is asked next, no answer shows two units."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from backbone import Backbone
from backbone.coordinator import coordinator as fetch
from backbone.coordinator.candles import archive as archives
from backbone.coordinator.quota.ledger import MachineLimiter, MemoryLimiter
from backbone.coordinator.quota.rules import Rules
from backbone.errors import DataChangedWarning, IncompleteError
from backbone.simulator import SimulatorServer
from backbone.storage.lazy import FileScan
from tests.api.calls.test_candles import same, truth
from tests.api.calls.test_live import eventually
from tests.processes import CONTEXT, process

MARKET = "KRW-XRP"
NOW = "2025-08-22T09:00:00Z"
STORED = ("2025-08-20T18:00:00Z", "2025-08-21T12:00:00Z")
LATER = "2025-08-22T08:30:00Z"


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quota is another test's business."""
    monkeypatch.setattr(fetch, "MachineLimiter", lambda url, clock: MemoryLimiter(clock, Rules(limit=1000)))


@pytest.fixture
def venue() -> Iterator[SimulatorServer]:
    """An exchange that a test may change for good."""
    with SimulatorServer(seed=7, now=NOW, frozen=True, limit=1000) as server:
        server.clock.advance(20)
        yield server


def one_unit(frame: Any) -> bool:
    """Whether no two neighbouring rows are of different units."""
    closes, opens = frame["close"].to_numpy()[:-1], frame["open"].to_numpy()[1:]
    return bool((np.abs(np.log(opens / closes)) < np.log(1.5)).all())


def changed(venue: SimulatorServer, client: Backbone, factor: float = 10) -> None:
    """Every price of the market's history times a factor."""
    venue.faults.add("rescale", market=MARKET, factor=factor)


def test_redenomination_is_reported_and_nothing_is_lost(venue: SimulatorServer, tmp_path: Path) -> None:
    """F4: 120 days are stored, the venue multiplies its history by ten, further days are asked."""
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as client:
        old = client.candles(MARKET, "1d", "2025-04-01T00:00:00Z", "2025-07-30T00:00:00Z")
        client.candles(MARKET, "1m", *STORED)
        changed(venue, client)
        with pytest.warns(DataChangedWarning, match="KRW-XRP is in another unit .* by 10 ") as warned:
            frame = client.candles(MARKET, "1d", "2025-04-01T00:00:00Z", "2025-08-20T00:00:00Z")
        assert len([one for one in warned if one.category is DataChangedWarning]) == 1
        assert one_unit(frame)
        same(frame, truth(venue, MARKET, "1d", "2025-04-01T00:00:00Z", "2025-08-20T00:00:00Z"))
        assert client.store.revisions().empty
        events = client.store.events(MARKET)
        event = events[events["kind"] == "redenominated"].iloc[0]
        detail = json.loads(event["detail"])
        where = detail["where"]
        assert (detail["factor"], event["how"]) == (10.0, "overlap of pages")
        assert client.coverage(MARKET, "1m").empty, "each timeframe left"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = client.candles(MARKET, "1d", "2025-04-01T00:00:00Z", "2025-08-20T00:00:00Z")
        pd.testing.assert_frame_equal(again, frame, check_exact=True)
    with Backbone(data_dir=where, rest_url=venue.rest_url) as kept:
        pd.testing.assert_frame_equal(
            kept.candles(MARKET, "1d", "2025-04-01T00:00:00Z", "2025-07-30T00:00:00Z", offline=True),
            old,
            check_exact=True,
        )


def by_range(client: Backbone, venue: SimulatorServer) -> Any:
    return client.candles(MARKET, "1m", STORED[0], LATER)


def by_count(client: Backbone, venue: SimulatorServer) -> Any:
    return client.candles(MARKET, "1m", count=2300)


def by_first(client: Backbone, venue: SimulatorServer) -> Any:
    return client.candles(MARKET, "1m", "2025-08-21T10:00:00Z", count=300)


def by_critical(client: Backbone, venue: SimulatorServer) -> Any:
    return client.candles(MARKET, "1m", STORED[0], LATER, priority="critical")


def by_forming(client: Backbone, venue: SimulatorServer) -> Any:
    return client.candles(MARKET, "1m", STORED[0], include_forming=True)


def by_refresh(client: Backbone, venue: SimulatorServer) -> Any:
    return client.candles(MARKET, "1m", STORED[0], "2025-08-20T21:00:00Z", refresh=True)


def by_fold(client: Backbone, venue: SimulatorServer) -> Any:
    return client.candles(MARKET, "1h", STORED[0], "2025-08-22T08:00:00Z")


def by_derived(client: Backbone, venue: SimulatorServer) -> Any:
    return client.candles(MARKET, "2h", STORED[0], "2025-08-22T08:00:00Z")


def by_wide(client: Backbone, venue: SimulatorServer) -> Any:
    frame = client.candles([MARKET, "KRW-BTC"], "1m", STORED[0], LATER, wide="close")
    closes = frame[MARKET].dropna()
    return pd.DataFrame({"open": closes, "close": closes})


def by_backfill(client: Backbone, venue: SimulatorServer) -> Any:
    return client.backfill(MARKET, "1m", STORED[0], LATER, priority="high").result()


def by_sections(client: Backbone, venue: SimulatorServer) -> Any:
    """A job that had delivered stored sections says that the unit moved; the next one is all in the new unit."""
    job = client.backfill(MARKET, "1m", STORED[0], LATER, priority="high")
    try:
        found = list(job.sections())
    except IncompleteError:
        job = client.backfill(MARKET, "1m", STORED[0], LATER, priority="high")
        found = list(job.sections())
    assert all(one_unit(frame) for frame in found)
    return job.result()


def by_update(client: Backbone, venue: SimulatorServer) -> Any:
    client.store.update(MARKET).wait()
    return client.candles(MARKET, "1m", STORED[0], LATER)


def by_scan(client: Backbone, venue: SimulatorServer) -> Any:
    client.candles(MARKET, "1m", "2025-08-21T10:00:00Z", LATER)
    return client.scan(MARKET, "1m", partial=True).collect().to_pandas()


def by_kept_scan(client: Backbone, venue: SimulatorServer) -> Any:
    """A lazy frame of before the change, collected after it."""
    lazy = client.scan(MARKET, "1m", partial=True)
    client.candles(MARKET, "1m", "2025-08-21T10:00:00Z", LATER)
    return lazy.collect().to_pandas()


def by_chunk_before(client: Backbone, venue: SimulatorServer) -> Any:
    return client.candles(MARKET, "1m", "2025-08-20T06:00:00Z", "2025-08-21T00:00:00Z")


WAYS = [by_range, by_count, by_first, by_critical, by_forming, by_refresh, by_fold, by_derived, by_wide, by_backfill,
        by_sections, by_update, by_scan, by_kept_scan, by_chunk_before]  # fmt: skip


@pytest.mark.parametrize("ask", WAYS, ids=lambda ask: ask.__name__)
def test_no_answer_shows_two_units(
    venue: SimulatorServer, tmp_path: Path, ask: Callable[[Backbone, SimulatorServer], Any]
) -> None:
    """Minutes are stored, the unit changes, and more is asked, in each way that there is."""
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as client:
        client.candles(MARKET, "1m", *STORED)
        changed(venue, client)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataChangedWarning)
            frame = ask(client, venue)
            level = client.candles(MARKET, "1m", count=5)["close"].mean()
        assert one_unit(frame)
        assert len(frame) > 10
        assert 0.5 < frame["close"].iloc[-1] / level < 2, "it is the unit of now"
        assert client.store.revisions().empty
        assert client.store.verify().empty


def test_snapshot_of_before_is_unchanged(venue: SimulatorServer, tmp_path: Path) -> None:
    """A folder that never changes does not."""
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as client:
        before = client.candles(MARKET, "1m", *STORED)
        where = client.store.snapshot("paper")
        changed(venue, client)
        with pytest.warns(DataChangedWarning):
            client.candles(MARKET, "1m", STORED[0], LATER)
    with Backbone(data_dir=where, rest_url=venue.rest_url) as kept:
        pd.testing.assert_frame_equal(kept.candles(MARKET, "1m", *STORED, offline=True), before, check_exact=True)


@pytest.mark.parametrize("ask", [by_range, by_count, by_forming, by_fold, by_backfill, by_update, by_critical],
                         ids=lambda ask: ask.__name__)  # fmt: skip
def test_second_client_on_the_folder_shows_one_unit(
    venue: SimulatorServer, tmp_path: Path, ask: Callable[[Backbone, SimulatorServer], Any]
) -> None:
    """What it holds in memory is of before, and so are its pages that are not on disk; it is warned, too."""
    with (
        Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as one,
        Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as two,
    ):
        for client in (one, two):
            client.candles(MARKET, "1m", *STORED)
        two.candles(MARKET, "1h", "2025-08-15T00:00:00Z", "2025-08-16T00:00:00Z")
        changed(venue, one)
        with pytest.warns(DataChangedWarning):
            one.candles(MARKET, "1m", STORED[0], LATER)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            frame = ask(two, venue)
        assert [one.category for one in warned].count(DataChangedWarning) == 1
        assert one_unit(frame)
        for client in (one, two):
            hours = client.candles(MARKET, "1h", "2025-08-15T00:00:00Z", "2025-08-22T08:00:00Z")
            same(hours, truth(venue, MARKET, "1h", "2025-08-15T00:00:00Z", "2025-08-22T08:00:00Z"))
        assert len(one.store.events(MARKET).query("kind == 'redenominated'")) == 1


def answers(folder: str, rest_url: str, calls: Any) -> None:
    """Another process on the folder: asks in every way from the start that it is sent, again and again until it is sent
    something more; answers with what showed two units, and with the last prices."""

    def two_units(client: Backbone, start: str) -> list[str]:
        whole = (start, "2025-08-22T08:00:00Z")
        lazy = client.scan(MARKET, "1m", partial=True).collect().to_pandas()
        frames = {
            "scan of what is there": lazy,
            "range": client.candles(MARKET, "1m", *whole),
            "count": client.candles(MARKET, "1m", count=2300),
            "critical": client.candles(MARKET, "1m", *whole, priority="critical"),
            "forming": client.candles(MARKET, "1m", start, include_forming=True),
            "hours": client.candles(MARKET, "1h", *whole),
            "2h": client.candles(MARKET, "2h", *whole),
            "backfill": client.backfill(MARKET, "1m", *whole, priority="high").result(),
            "scan": client.scan(MARKET, "1m", partial=True).collect().to_pandas(),
        }
        if lazy.empty:  # the old unit has left, and of the new one nothing is held yet
            del frames["scan of what is there"]
        last.update({name: float(frame["close"].iloc[-1]) for name, frame in frames.items()})
        return [name for name, frame in frames.items() if not one_unit(frame)]

    last: dict[str, float] = {}
    warnings.simplefilter("ignore", DataChangedWarning)
    with Backbone(data_dir=folder, rest_url=rest_url) as client:
        client.candles(MARKET, "1m", *STORED)
        calls.send(([], last))
        while (start := calls.recv()) != "stop":
            wrong = []
            while not calls.poll():  # the unit changes while it asks
                wrong += two_units(client, start)
            calls.recv()
            wrong += two_units(client, start)  # a slow process comes upon the change only now, after its first scan
            calls.send((wrong + two_units(client, start), last))


def test_two_processes_on_one_folder_show_one_unit(
    venue: SimulatorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of them finds the change, and while the other asks: neither ever shows two units, both end in the new
    one, and each change is one event."""
    monkeypatch.setenv("BACKBONE_LEDGER_DIR", str(tmp_path / "ledger"))
    monkeypatch.setattr(fetch, "MachineLimiter", partial(MachineLimiter, rules=Rules(limit=1000)))
    ours, theirs = CONTEXT.Pipe()
    folder = tmp_path / "data"
    child = process(answers, str(folder), venue.rest_url, theirs, daemon=True)
    with Backbone(data_dir=folder, rest_url=venue.rest_url) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore", DataChangedWarning)
        client.candles(MARKET, "1m", *STORED)
        client.candles(MARKET, "1d", count=60)
        child.start()
        receive(ours)
        for number, (start, factor) in enumerate([(STORED[0], 10), ("2025-08-20T12:00:00Z", 0.001)]):
            ours.send(start)
            changed(venue, client, factor)
            if number == 0:  # else the other one comes upon it
                assert one_unit(client.candles(MARKET, "1m", STORED[0], refresh=True))
                assert one_unit(client.candles(MARKET, "1h", STORED[0]))
            ours.send("once more")
            wrong, last = receive(ours)
            assert wrong == []
            level = float(client.candles(MARKET, "1m", count=5)["close"].iloc[-1])
            assert last == pytest.approx(dict.fromkeys(last, level), rel=0.3)
            assert len(client.store.events(MARKET).query("kind == 'redenominated'")) == number + 1
            assert one_unit(client.candles(MARKET, "1d", count=60))
        ours.send("stop")
        child.join(30)
    assert child.exitcode == 0


KEPT: dict[str, Callable[[Backbone], pl.LazyFrame]] = {
    "one": lambda client: client.scan(MARKET, "1m", *STORED),
    "several": lambda client: client.scan(["KRW-BTC", MARKET], "1m", *STORED),
    "quote": lambda client: client.scan("KRW", "1m", partial=True),
    "derived": lambda client: client.scan(MARKET, "2h", *STORED),
    "folded": lambda client: client.scan(MARKET, "1h", *STORED),
    "grouped": lambda client: (
        client.scan("KRW", "1m", *STORED).group_by("market").agg(pl.col("open", "close").last()).sort("market")
    ),
}


@pytest.mark.parametrize("during", [False, True])
@pytest.mark.parametrize("make", KEPT.values(), ids=KEPT)
def test_kept_scan_is_of_one_state(
    venue: SimulatorServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Backbone], pl.LazyFrame],
    during: bool,
) -> None:
    """The market leaves and comes again in another unit before a lazy frame is collected, or just when Polars opens its
    files: it shows the new state. Where the market only left, a scan of a whole span says what is missing."""
    read = FileScan._batches
    engine: Any = "streaming" if during else "in-memory"  # `tests.storage.test_lazy` has both of each
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore", DataChangedWarning)
        client.candles(["KRW-BTC", MARKET], "1m", *STORED)
        lazy, before = make(client), make(client).collect(engine=engine)

        def change() -> None:
            changed(venue, client)
            client.candles(MARKET, "1m", *STORED, refresh=True)

        def late(self: FileScan, *words: Any) -> Any:
            monkeypatch.setattr(FileScan, "_batches", read)
            change()
            return read(self, *words)

        if during:
            monkeypatch.setattr(FileScan, "_batches", late)
        else:
            change()
        after = lazy.collect(engine=engine)
        assert after.equals(make(client).collect(engine=engine))
        assert after["close"].last() == pytest.approx(10 * before["close"].last(), rel=0.01)
        client.store.remove(MARKET)
        if make in (KEPT["quote"], KEPT["grouped"]):
            assert lazy.collect(engine=engine)["market"].unique().to_list() == ["KRW-BTC"]
        else:
            with pytest.raises(IncompleteError, match="KRW-XRP were never asked for"):
                lazy.collect(engine=engine)


def receive(calls: Any) -> Any:
    assert calls.poll(60), "the other process does not answer"
    return calls.recv()


def test_many_threads_see_one_unit(venue: SimulatorServer, tmp_path: Path) -> None:
    """Sixteen threads ask overlapping ranges while the unit changes: each frame is of one."""
    wrong: list[str] = []
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore", DataChangedWarning)
        client.candles(MARKET, "1m", *STORED)
        gate = threading.Barrier(17)

        def work(number: int) -> None:
            start = pd.Timestamp(STORED[0]) + pd.Timedelta(f"{number % 8}h")
            gate.wait(20)
            for step in range(3):
                end = pd.Timestamp(STORED[1]) + pd.Timedelta(f"{(number + step) % 5 * 3}h")
                frame = client.candles(MARKET, ("1m", "1h")[number % 2], start, end, progress=False)
                if not one_unit(frame):
                    wrong.append(f"{number}.{step}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        gate.wait(20)
        changed(venue, client)
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
        final = client.candles(MARKET, "1m", STORED[0], LATER, refresh=True)
        same(final, truth(venue, MARKET, "1m", STORED[0], LATER))


def test_live_candles_confirm_in_the_unit_of_now(venue: SimulatorServer, tmp_path: Path) -> None:
    """A live table confirms what closed beside stored minutes: the old unit leaves, and forming rows stand alone."""
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url, ws_url=venue.ws_url) as client:
        client.candles(MARKET, "1m", "2025-08-22T06:00:00Z")
        with client.live(MARKET, "candle.1m") as table, warnings.catch_warnings():
            warnings.simplefilter("ignore", DataChangedWarning)
            assert not table.frame().empty
            changed(venue, client)
            venue.clock.advance(10)
            frame = client.candles(MARKET, "1m", "2025-08-22T07:00:00Z", include_forming=True)
            assert one_unit(frame)
            venue.clock.advance(70)
            client.tickers("KRW-BTC", max_age=0)  # a reply brings the venue's time
            eventually(lambda: len(client.store.events(MARKET).query("kind == 'redenominated'")) == 1)
            frame = client.candles(MARKET, "1m", "2025-08-22T06:00:00Z", include_forming=True)
            assert one_unit(frame)
            assert len(frame) > 100


@pytest.mark.parametrize("priority", ["normal", "critical", "job"])
def test_hours_of_before_and_minutes_of_after(venue: SimulatorServer, tmp_path: Path, priority: str) -> None:
    """Hours are stored, minutes that come after the change join them, and hours folded of those are in the new unit:
    nothing is missing, and all the same nothing is put side by side."""
    early, late = ("2025-08-19T00:00:00Z", "2025-08-20T00:00:00Z"), ("2025-08-20T00:00:00Z", "2025-08-20T06:00:00Z")
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore", DataChangedWarning)
        client.candles(MARKET, "1h", *early)
        changed(venue, client)
        client.candles(MARKET, "1m", *late)
        whole = early[0], late[1]
        if priority == "job":
            frame = client.backfill(MARKET, "1h", *whole, priority="high").result()
        else:
            frame = client.candles(MARKET, "1h", *whole, priority=priority)
        assert one_unit(frame)
        same(frame, truth(venue, MARKET, "1h", *whole))


LENGTHS = {"1s": 600, "1m": 300, "15m": 150, "1h": 200, "1d": 60, "1w": 30, "1M": 12}


@pytest.mark.parametrize("way", ["plain", "critical", "forming", "backfill", "scan"])
def test_market_is_stored_in_one_timeframe_and_asked_in_another(
    venue: SimulatorServer, tmp_path: Path, way: str
) -> None:
    """Whatever is stored and whatever is asked for the first time: the store, its scans and its folds know one unit."""
    market, other = "KRW-SOL", "KRW-DOGE"  # listed in 2021: pages of months make all that was traded since
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore", DataChangedWarning)
        for stored, asked in [("1d", "1m"), ("1m", "1d"), ("1h", "15m"), ("1w", "1h"), ("1s", "1M"), ("1M", "1m")]:
            client.candles(market, stored, count=LENGTHS[stored])
            venue.faults.add("rescale", market=market, factor=10)
            before = len(client.store.events(market).query("kind == 'redenominated'"))
            if way == "backfill":
                start = client.candles(other, asked, count=LENGTHS[asked]).index[0]
                frame = client.backfill(market, asked, start, priority="high").result()
            elif way == "scan":
                client.candles(market, asked, count=LENGTHS[asked])
                frame = client.scan(market, asked, partial=True).collect().to_pandas()
            else:
                words: Any = {"plain": {}, "critical": {"priority": "critical"}, "forming": {"include_forming": True}}
                frame = client.candles(market, asked, count=LENGTHS[asked], **words[way])
            assert one_unit(frame), (stored, asked)
            if way == "critical":  # it stores nothing
                client.candles(market, asked, count=LENGTHS[asked])
            assert len(client.store.events(market).query("kind == 'redenominated'")) == before + 1, (stored, asked)
            left = client.scan(market, stored, partial=True).select("close").collect()["close"]
            if stored != "1s":  # a page that the count did not need may arrive as late as this: it is of the new unit
                assert left.is_empty(), (stored, asked)
            elif not left.is_empty():
                assert 0.5 < left.mean() / frame["close"].iloc[-1] < 2, (stored, asked)


@pytest.mark.parametrize("stored", [("2025-05-31T00:00:00Z", "2025-06-01T00:00:00Z"), ("2025-06-10T00:00:00Z",) * 2])
def test_files_of_the_archive_join_nothing_of_before(
    venue: SimulatorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: tuple[str, str]
) -> None:
    """A month of the archive in another unit than stored minutes beside or inside it: pages are asked, and show it."""
    monkeypatch.setattr(archives, "_shown", {"https://www.upbit.com/historical_data/main"})
    start, end = "2025-05-31T00:00:00Z", "2025-07-01T00:00:00Z"
    with Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as client:
        client.candles(MARKET, "1m", stored[0], count=1440)
    changed(venue, client)
    with (
        Backbone(data_dir=tmp_path, rest_url=venue.rest_url, ws_url=venue.ws_url, archive="accept-terms") as client,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", DataChangedWarning)
        frame = client.candles(MARKET, "1m", start, end)
        assert one_unit(frame)
        same(frame, truth(venue, MARKET, "1m", start, end))
        assert sum(request.group == "archive" for request in venue.requests) > 0
