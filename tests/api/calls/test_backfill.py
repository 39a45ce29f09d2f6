"""Backfills in the background: progress, sections, joining, cancelling, outages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from backbone import Backbone
from backbone.coordinator import coordinator as fetch
from backbone.coordinator.quota.ledger import MemoryLimiter
from backbone.coordinator.quota.rules import Rules
from backbone.errors import ClosedError, IncompleteError, InputError, PayloadError, UnfinishedWarning
from backbone.simulator import SimulatorServer

START, END = "2025-08-13T00:00:00Z", "2025-08-20T00:00:00Z"  # a week: 10,080 minutes in 51 pages
LONG_AGO = "2025-07-20T00:00:00Z"  # so long that a job is not over before a test has done something to it
WEEKS = "2025-08-04T00:00:00Z"  # the same, of a job that is then waited for: 116 pages


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Backbone, SimulatorServer]]:
    """A client with fifty times the quota, at an exchange that grants it."""
    monkeypatch.setattr(fetch, "MachineLimiter", lambda url, clock: MemoryLimiter(clock, Rules(limit=500)))
    with (
        SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True, limit=500) as venue,
        Backbone(data_dir=tmp_path, rest_url=venue.rest_url) as client,
    ):
        yield client, venue


def test_job_sections_are_the_whole_in_time_order(quick: tuple[Backbone, SimulatorServer]) -> None:
    """Sections come oldest first while later ones download, and together are exactly the range."""
    client, _ = quick
    job = client.backfill("KRW-BTC", "1m", START, END)
    sections = list(job.sections())
    assert len(sections) > 2
    whole = pd.concat(sections)
    assert whole.index.is_monotonic_increasing
    assert whole.index.is_unique
    pd.testing.assert_frame_equal(
        whole, client.candles("KRW-BTC", "1m", START, END), check_freq=False, check_exact=True
    )
    assert job.state == "done"
    pd.testing.assert_frame_equal(job.result(), whole, check_freq=False, check_exact=True)
    assert job.result().attrs["backbone"]["unknown"] == 0


def test_job_first_section_is_there_before_the_last_page(quick: tuple[Backbone, SimulatorServer]) -> None:
    """A simulation starts on the first finished section; a slow consumer holds the download back."""
    client, venue = quick
    job = client.backfill("KRW-BTC", "1m", WEEKS, END)
    sections = job.sections(ahead=1)
    first = next(sections)
    assert 0 < len(first) <= 1_000, "small, so that it is soon there"
    assert job.progress.fraction < 1
    held = threading.Event()
    _let_arrive(venue)
    asked = len(venue.requests)
    held.wait(0.3)
    assert job.state == "running"
    assert len(venue.requests) == asked  # nothing more is asked while nobody takes the next section
    sections.close()  # leaving the loop lets the job run on
    assert job.wait(30, progress=False).state == "done"


def test_job_progress_adds_up(quick: tuple[Backbone, SimulatorServer]) -> None:
    """Pages, rows, reached time and rate describe what happened, and the repr is one line."""
    client, _ = quick
    job = client.backfill("KRW-BTC", "1m", START, END).wait(progress=False)
    now = job.progress
    assert now.state == "done"
    assert now.fraction == 1
    assert now.rows >= 10_000
    assert now.pages >= 50
    assert str(now.reached) == "2025-08-20 09:00:00+09:00"
    assert now.rate > 0
    assert now.eta_s == 0
    assert "\n" not in repr(job)
    assert "KRW-BTC 1m" in job._repr_html_()


def test_job_asked_again_while_running_is_joined(quick: tuple[Backbone, SimulatorServer]) -> None:
    """The same backfill twice is one download, and a foreground call takes the pages it needs at once."""
    client, venue = quick
    first = client.backfill("KRW-BTC", "1m", WEEKS, END)
    second = client.backfill("KRW-BTC", "1m", WEEKS, END)
    frame = client.candles("KRW-BTC", "1m", "2025-08-19T00:00:00Z", END)
    assert first.state == "running"  # the call did not wait for the job
    assert len(frame) >= 1400
    first.wait(progress=False)
    second.wait(progress=False)
    assert sum(venue.counts()["candles"].values()) <= 122
    assert client.backfill("KRW-BTC", "1m", WEEKS, END).wait(progress=False).progress.pages == 0


def test_job_cancelled_keeps_what_arrived(quick: tuple[Backbone, SimulatorServer]) -> None:
    """Cancelling asks for nothing more, keeps every page, and says what is missing."""
    client, _ = quick
    job = client.backfill("KRW-BTC", "1m", LONG_AGO, END)
    next(job.sections())
    job.cancel()
    job.wait(progress=False)
    assert job.state == "cancelled"
    with pytest.raises(IncompleteError) as caught:
        job.result()
    assert len(caught.value.frame) >= 1_000
    assert client.store.verify().empty


def test_job_of_garbage_alone_got_nowhere(quick: tuple[Backbone, SimulatorServer]) -> None:
    """A venue that talks nonsense leaves a job incomplete at nothing, and the error says why."""
    client, venue = quick
    venue.faults.add("garbage", match="candles", times=None)
    job = client.backfill("KRW-BTC", "1m", "2025-08-10T00:00:00Z", END).wait(progress=False)
    now = job.progress
    assert (now.state, now.fraction, now.rows) == ("incomplete", 0, 0)
    assert now.reached == pd.Timestamp("2025-08-10T00:00:00Z")
    assert now.pages > 0
    with pytest.raises(PayloadError):  # as `candles` says it
        job.result()


def test_job_cancelled_or_closed_says_what_is_stored(quick: tuple[Backbone, SimulatorServer]) -> None:
    """However it ended early, its rows, fraction and reached time are what the folder has."""
    client, venue = quick
    for market in ("KRW-BTC", "KRW-ETH"):
        job = client.backfill(market, "1m", LONG_AGO, END)
        next(job.sections())
        if market == "KRW-BTC":
            job.cancel()
            _let_arrive(venue)
        else:
            with pytest.warns(UnfinishedWarning, match=r"wait\(\)"):
                client.close()
        now = job.progress
        assert now.state == ("cancelled" if market == "KRW-BTC" else "failed")
        assert 0 < now.fraction < 1
        with Backbone(data_dir=client.data_dir, rest_url=venue.rest_url) as later:
            held = later.explain(market, "1m", LONG_AGO, END).cached
            assert held[0][0] == pd.Timestamp(LONG_AGO)
            assert held[0][1] == now.reached
            slots = sum((end - start) / pd.Timedelta("1min") for start, end in held)
            assert round(now.fraction * 44_640) == slots


def _let_arrive(venue: SimulatorServer) -> None:
    """Let what is under way arrive, and reach the disk."""
    pause, before = threading.Event(), -1
    while before != len(venue.requests):
        before = len(venue.requests)
        pause.wait(0.8)


def test_job_that_is_over_is_not_cancelled(quick: tuple[Backbone, SimulatorServer]) -> None:
    """`cancel` on a finished job leaves it done, and its result whole."""
    client, _ = quick
    job = client.backfill("KRW-BTC", "1h", START, END).wait(progress=False)
    job.cancel()
    assert job.state == job.progress.state == "done"
    assert len(job.result()) == 168


def test_job_of_a_late_listing_does_not_walk_the_years_before(quick: tuple[Backbone, SimulatorServer]) -> None:
    """A start long before listing costs a few requests, not one per 200 minutes of nothing."""
    client, venue = quick
    day = 86_400_000_000
    now = venue.clock.now_us()
    code, since = next(
        (code, market.listed_us)
        for code, market in sorted(venue.exchange.listed(now).items())
        if code.startswith("KRW-") and 10 * day <= now - market.listed_us <= 60 * day
    )
    venue.reset_log()
    frame = client.backfill(code, "1m", "2018-01-01", END).result()
    assert frame.index[0] >= pd.Timestamp(since, unit="us", tz="UTC").floor("min")
    assert sum(venue.counts()["candles"].values()) <= len(frame) / 200 * 2.5 + 20
    pd.testing.assert_frame_equal(frame, client.candles(code, "1m", "2018-01-01", END), check_exact=True)


def test_job_of_years_before_a_known_listing_costs_a_few_requests(quick: tuple[Backbone, SimulatorServer]) -> None:
    """Where the months that are held show when a market was listed, years before that are not walked either."""
    client, venue = quick
    assert client.candles("KRW-ETH", "1M").index[0].year == 2017
    venue.reset_log()
    job = client.backfill("KRW-ETH", "1m", "2010", "2011")
    assert job.result().empty
    assert job.result().attrs["backbone"]["quiet"] == 365 * 1440
    assert sum(venue.counts()["candles"].values()) <= 6


def test_job_of_an_unknown_market_names_the_nearest(quick: tuple[Backbone, SimulatorServer]) -> None:
    """Also where no market list was received before: the venue's refusal is looked up in one."""
    client, _ = quick
    client.candles("KRW-BTC", "1d", count=3)
    job = client.backfill("KRW-BTCC", "1h", "2025-08")
    for ask in (job.result, lambda: list(job.sections())):
        with pytest.raises(InputError, match="KRW-BTC") as caught:
            ask()
        assert (caught.value.argument, caught.value.value) == ("market", "KRW-BTCC")


def test_job_outlasts_an_outage(quick: tuple[Backbone, SimulatorServer]) -> None:
    """The plug is pulled and put back: the job goes on by itself and nothing is missing."""
    client, venue = quick
    job = client.backfill("KRW-BTC", "1m", WEEKS, END)
    next(iter(job.sections()))
    venue.pause()
    with pytest.raises(TimeoutError):
        job.wait(1.5, progress=False)
    venue.resume()
    assert len(job.result(60)) >= 23_000


def test_job_many_markets_are_one_long_frame(quick: tuple[Backbone, SimulatorServer]) -> None:
    """Several markets in one job: one frame with `market` first, each complete."""
    client, _ = quick
    frame = client.backfill(["KRW-BTC", "KRW-ETH"], "1h", "2025-08-01", "2025-08-11").result()
    assert frame.columns[0] == "market"
    assert frame.groupby("market").size().to_dict() == {"KRW-BTC": 240, "KRW-ETH": 240}


def test_job_of_a_closed_client_ends_with_an_error(quick: tuple[Backbone, SimulatorServer]) -> None:
    """`close()` during a backfill ends the wait, and what arrived is on disk."""
    client, venue = quick
    job = client.backfill("KRW-BTC", "1m", LONG_AGO, END)
    next(job.sections())
    with pytest.warns(UnfinishedWarning, match="KRW-BTC 1m"):
        client.close()
    with pytest.raises((ClosedError, IncompleteError)):
        job.result()
    with Backbone(data_dir=client.data_dir, rest_url=venue.rest_url) as later:
        assert later.coverage("KRW-BTC", "1m")["rows"].sum() >= 1_000


@pytest.mark.parametrize(
    ("words", "argument"),
    [
        ({"markets": "KRW-NOPE"}, "market"),
        ({"timeframe": "7m"}, "timeframe"),
        ({"start": None}, "start"),
        ({"start": "2025-08-21", "end": "2025-08-20"}, "start"),
        ({"priority": "critical"}, "priority"),
    ],
)
def test_job_wrong_argument_is_refused(
    quick: tuple[Backbone, SimulatorServer], words: dict[str, object], argument: str
) -> None:
    """A wrong argument is an `InputError` that names it, before a page is asked."""
    client, venue = quick
    with pytest.raises(InputError) as caught:
        client.backfill(**{"markets": "KRW-BTC", "timeframe": "1m", "start": START, "end": END, **words})  # type: ignore[arg-type]
    assert caught.value.argument == argument
    assert "candles" not in venue.counts()


def test_job_up_to_a_time_that_had_not_come_ends_where_the_venue_is(quick: tuple[Backbone, SimulatorServer]) -> None:
    """Candles that turn out not to be closed on the venue's clock are no gap of the job's."""
    client, venue = quick
    core = client.session.coordinator()
    mono_s = core.clock.monotonic()
    core.venue.observe(venue.clock.now_us() + 300_000_000, mono_s, mono_s)  # a guess that its first reply corrects
    frame = client.backfill("KRW-BTC", "1m", "2025-08-22T07:00Z").result()
    assert len(frame) == 119
    assert frame.attrs["backbone"]["unknown"] == 0


@pytest.mark.parametrize("timeframe", ["2m", "45m", "12h"])
def test_job_of_a_derived_timeframe_is_the_folded_whole(
    quick: tuple[Backbone, SimulatorServer], timeframe: str
) -> None:
    """Result and sections are the candles of that length, whole ones only, however the sections are cut."""
    client, _ = quick
    job = client.backfill("KRW-BTC", timeframe, START, "2025-08-16T05:00Z")
    whole = pd.concat(job.sections())
    assert whole.index.is_unique
    pd.testing.assert_frame_equal(job.result(), whole, check_freq=False, check_exact=True)
    asked = client.candles("KRW-BTC", timeframe, START, "2025-08-16T05:00Z")
    pd.testing.assert_frame_equal(whole, asked, check_freq=False, check_exact=True)
    assert job.result().attrs["backbone"]["timeframe"] == timeframe
    assert timeframe in repr(job)
