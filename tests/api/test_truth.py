"""Truth over time, the whole path over loopback: clocks, corrections, times without trades, folding, delistings.

Faults that people met in the field, and the test that fails without the repair of each (each was taken out and tried):

=================================  ======================================================================
short and empty pages              coordinator/candles/test_witness.py, api/test_matrix.py
trades with a hole                 coordinator/live/test_trades.py, api/test_matrix.py
an audit that met a short page     api/test_matrix.py (``audit``)
a redenomination                   api/test_redenomination.py, coordinator/candles/test_redenomination.py
a rename, also with another unit   api/test_renames.py, coordinator/test_renames.py
a range to be asked again          coordinator/candles/test_redenomination.py, api/calls/test_candles.py
days before the listing            api/calls/test_candles.py ``test_candles_filled_begin_…``
the last digit of a fold           storage/test_fold.py
folds before the venue's sums      api/calls/test_candles.py ``test_candles_before_the_venues_sums_…``
odd rows                           api/calls/test_realtime.py ``…_with_an_odd_row_deliver_the_others``
listings while live                api/calls/test_live.py, api/test_market_life.py
two clocks that stood still        coordinator/candles/test_ranges.py ``test_frozen_clocks_…``
trades over a reconnect            api/calls/test_live.py ``test_live_trades_over_a_reconnect_…``
two forming days at nine           api/calls/test_candles.py ``test_candles_at_the_turn_of_the_day_…``
one error for one cause            api/test_unreachable.py
both ends in the future            api/calls/test_candles.py ``test_candles_of_the_future_are_refused``
weeks as days, digits, attrs       api/test_convert.py, api/test_format.py, api/calls/test_candles.py
a partial first day                compat/test_pyupbit.py ``test_daily_from_base_…``
the newest held, offline           api/test_offline.py ``test_newest_held_…``
=================================  ======================================================================
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from backbone import Backbone
from backbone.clock import SystemClock
from backbone.coordinator import coordinator as fetch
from backbone.coordinator.quota.ledger import MemoryLimiter
from backbone.coordinator.quota.rules import Rules
from backbone.errors import IncompleteError, PayloadError
from backbone.simulator import SimulatorServer
from tests.api.calls.test_candles import facts, same, truth

START, END, NOW = "2025-08-22T00:00:00Z", "2025-08-22T06:00:00Z", "2025-08-22T09:00:00Z"


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quota is another test's business."""
    monkeypatch.setattr(fetch, "MachineLimiter", lambda url, clock: MemoryLimiter(clock, Rules(limit=1000)))


@pytest.fixture
def own_venue() -> Iterator[SimulatorServer]:
    """An exchange that a test may change for good."""
    with SimulatorServer(seed=7, now=NOW, frozen=True, limit=1000) as server:
        yield server


class WrongClock(SystemClock):
    """A machine whose wall clock is off, and can be set."""

    def __init__(self, venue: SimulatorServer, hours: float) -> None:
        self.off_us = venue.clock.now_us() - super().now_us() + int(hours * 3.6e9)

    def now_us(self) -> int:
        return super().now_us() + self.off_us


@pytest.mark.parametrize("hours", [-30.0, -2.0, 0.0, 2.0, 30.0])
def test_truth_of_a_machine_whose_clock_is_off(own_venue: SimulatorServer, tmp_path: Path, hours: float) -> None:
    """The newest closed candles come, nothing forming is stored, and setting the clock back changes neither."""
    own_venue.clock.advance(20)  # some seconds into the minute
    with Backbone(data_dir=tmp_path, rest_url=own_venue.rest_url) as client:
        clock = client.session.clock = WrongClock(own_venue, hours)
        for _ in range(3):
            frame = client.candles("KRW-BTC", "1m", count=10)
            now = pd.Timestamp(own_venue.clock.now_us(), unit="us", tz="UTC")
            assert frame.index[-1] == now.floor("min") - pd.Timedelta("1min")
            clock.off_us -= 7_000_000_000
            own_venue.clock.advance(60)
        client.tickers("KRW-BTC", max_age=0)
        held = client.candles("KRW-BTC", "1m", "2025-08-22T08:00:00Z", "2025-08-22T09:03:00Z")
        assert client.store.revisions().empty, "a candle stored while forming would differ later"
        same(held, truth(own_venue, "KRW-BTC", "1m", "2025-08-22T08:00:00Z", "2025-08-22T09:03:00Z"))


def test_truth_restated_by_the_venue_becomes_a_revision(own_venue: SimulatorServer, tmp_path: Path) -> None:
    """The newest candles are asked once more; what changed is given, and recorded with what it was."""
    last = "2025-08-22T08:58:00Z"
    own_venue.clock.advance(20)
    with Backbone(data_dir=tmp_path, rest_url=own_venue.rest_url) as client:
        before = client.candles("KRW-BTC", "1m", "2025-08-22T08:00:00Z", "2025-08-22T09:00:00Z")
        own_venue.faults.add("restate", market="KRW-BTC", start=last, end="2025-08-22T09:00:00Z", shift=0.01)
        own_venue.clock.advance(900)
        client.tickers("KRW-BTC", max_age=0)  # a reply brings the venue's time
        own_venue.reset_log()
        after = client.candles("KRW-BTC", "1m", "2025-08-22T08:00:00Z", "2025-08-22T09:00:00Z")
        assert sum(own_venue.counts()["candles"].values()) == 1
        same(after, truth(own_venue, "KRW-BTC", "1m", "2025-08-22T08:00:00Z", "2025-08-22T09:00:00Z"))
        frame = client.store.revisions()
        assert len(frame) >= 1
        listed_changes = frame.set_index("time")
        changed = after.index[(after != before).any(axis=1)]
        assert listed_changes.index.tolist() == changed.tolist()
        assert (listed_changes["old_open"] == before.loc[changed, "open"]).all()
        assert (listed_changes["new_open"] == after.loc[changed, "open"]).all()
        (event,) = client.store.events("KRW-BTC").query("kind == 'restated'").to_dict("records")
        detail = json.loads(event["detail"])
        assert (detail["timeframe"], detail["candles"]) == ("1m", len(changed))
        assert [pd.Timestamp(detail[end]) for end in ("first", "last")] == [changed[0], changed[-1]]
        own_venue.reset_log()
        client.candles("KRW-BTC", "1m", "2025-08-22T08:00:00Z", "2025-08-22T09:00:00Z")
        assert own_venue.counts() == {}


def test_truth_late_trades_are_healed_by_the_second_ask(own_venue: SimulatorServer, tmp_path: Path) -> None:
    """A candle whose last trades were not counted yet when it was asked is whole after the second ask."""
    own_venue.clock.advance(4)  # just past the grace
    own_venue.faults.add("late", seconds=20)
    with Backbone(data_dir=tmp_path, rest_url=own_venue.rest_url) as client:
        client.candles("KRW-BTC", "1m", "2025-08-22T08:30:00Z", "2025-08-22T09:00:00Z")
        own_venue.clock.advance(900)
        client.tickers("KRW-BTC", max_age=0)
        healed = client.candles("KRW-BTC", "1m", "2025-08-22T08:30:00Z", "2025-08-22T09:00:00Z")
        same(healed, truth(own_venue, "KRW-BTC", "1m", "2025-08-22T08:30:00Z", "2025-08-22T09:00:00Z"))
        assert len(client.store.revisions()) == 1


@pytest.mark.parametrize("kind", ["empty", "short"])
@pytest.mark.parametrize("held", [False, True])
def test_truth_of_a_venue_that_sends_nothing_by_mistake(
    own_venue: SimulatorServer, tmp_path: Path, kind: str, held: bool
) -> None:
    """However often a reply is empty by mistake, no candle becomes quiet: an error now, the whole range later."""
    with Backbone(data_dir=tmp_path, rest_url=own_venue.rest_url) as client:
        if held:
            client.candles("KRW-BTC", "1m", "2025-08-22T08:00:00Z", "2025-08-22T09:00:00Z")
        own_venue.faults.add(kind, match="/v1/candles", times=None, rows=0)
        with pytest.raises((IncompleteError, PayloadError)) as caught:
            client.candles("KRW-BTC", "1m", START, END)
        if isinstance(caught.value, IncompleteError):  # else nothing at all arrived
            assert all(isinstance(cause, PayloadError) for cause in caught.value.causes)
            reported = facts(caught.value.frame)
            assert reported["unknown"] + len(caught.value.frame) == 360
            assert reported["quiet"] == 0
    own_venue.faults.clear()
    with Backbone(data_dir=tmp_path, rest_url=own_venue.rest_url) as client:  # nothing of the first is on its way
        same(client.candles("KRW-BTC", "1m", START, END), truth(own_venue, "KRW-BTC", "1m", START, END))


@pytest.mark.parametrize("kind", ["delist", "rename"])
def test_truth_of_a_market_that_went_away_stays_readable(own_venue: SimulatorServer, tmp_path: Path, kind: str) -> None:
    """A market that was delisted or renamed keeps what is stored, what can be folded from it, and its audit."""
    with Backbone(data_dir=tmp_path, rest_url=own_venue.rest_url) as client:
        held = client.candles("KRW-XRP", "1m", START, END)
        hours = client.candles("KRW-XRP", "1h", START, END)
        words = {"market": "KRW-XRP"} | ({"to": "KRW-RLUSDX"} if kind == "rename" else {})
        own_venue.faults.add(kind, **words)
        client.markets()
    with Backbone(data_dir=tmp_path, rest_url=own_venue.rest_url) as client:
        client.tickers("KRW-BTC")
        assert "KRW-XRP" not in client.markets().index
        for offline in (False, True):
            frame = client.candles("KRW-XRP", "1m", START, END, offline=offline)
            pd.testing.assert_frame_equal(frame, held, check_exact=True)
            folded = client.candles("KRW-XRP", "1h", START, END, offline=offline)
            pd.testing.assert_frame_equal(folded, hours, check_exact=True)
        assert client.coverage("KRW-XRP", "1m")["rows"].sum() >= len(held), "pages are full ones"
        assert client.store.verify().empty
        assert client.explain("KRW-XRP", "1m", START, END).pages == 0
        with pytest.raises(IncompleteError) as caught:
            client.candles("KRW-XRP", "1m", "2025-08-21T20:00:00Z", END)
        assert len(caught.value.frame) >= len(held)


def test_truth_hours_folded_from_recorded_minutes_equal_recorded_hours(recordings: Path, tmp_path: Path) -> None:
    """Real minutes of five weeks, folded, are the hours that the venue itself sent, to the last digit."""
    files = [recordings / "candles" / f"{name}.parquet" for name in _RECORDED]
    hours = pq.read_table(files[1]).to_pandas()
    hours = hours[hours["market"] == "KRW-BTC"].set_index("timestamp")
    start, end = "2025-09-01T00:00:00Z", "2025-10-04T01:00:00Z"
    expected = hours.loc[start:end].iloc[:-1]  # type: ignore[misc]
    with (
        SimulatorServer(replay=files, frozen=True, limit=1000) as venue,
        Backbone(data_dir=tmp_path, rest_url=venue.rest_url, tz="UTC") as client,
    ):
        minutes = client.candles("KRW-BTC", "1m", start, end)
        venue.reset_log()
        assert len(client.explain("KRW-BTC", "1h", start, end).derived) == 1
        folded = client.candles("KRW-BTC", "1h", start, end)
        assert venue.counts() == {}
        said = facts(folded)
        assert said["source"] == "derived:1m"
        assert said["sources"] == {"derived:1m": 793}
        assert len(minutes) == 47_578
        assert (folded.index == expected.index).all()
        for column in ("open", "high", "low", "close"):
            assert (folded[column].to_numpy() == expected[column].to_numpy()).all()
        np.testing.assert_allclose(folded["volume"], expected["volume"], rtol=1e-9)
        days = client.candles("KRW-BTC", "1d", start, "2025-10-04T00:00:00Z")
        by_day = expected.loc[:"2025-10-03T23:59"].groupby(pd.Grouper(freq="D"))  # type: ignore[misc]
        assert (days["high"].to_numpy() == by_day["high"].max().to_numpy()).all()
        assert (days["close"].to_numpy() == by_day["close"].last().to_numpy()).all()
        differing = client.store.verify("KRW-BTC", "1h", against="venue", start=start, end=end)
        assert differing["detail"].str.contains("value of").all(), "the recorded minutes came without a turnover"


_RECORDED = ("1m_majors_2025-09", "1h_majors_2025-08_2026-01_with-value")


def test_truth_recorded_outage_of_the_exchange_is_recognised(recordings: Path, tmp_path: Path) -> None:
    """The 38 minutes of May 2021 in which nobody traded differ from all other quiet minutes."""
    path = recordings / "candles" / "1m_majors_2021-05.parquet"
    recorded = pq.read_table(path, columns=["market", "timestamp"]).to_pandas()
    first, last = recorded["timestamp"].min(), recorded["timestamp"].max()
    with (
        SimulatorServer(replay=[path], frozen=True, limit=1000) as venue,
        Backbone(data_dir=tmp_path, rest_url=venue.rest_url, tz="UTC") as client,
    ):
        frame = client.candles(sorted(recorded["market"].unique()), "1m", first, last + pd.Timedelta("1min"))
        assert facts(frame)["quiet"] == 4 * 38
        assert facts(frame)["unknown"] == 0
        outages = client.store.outages()
        assert outages["slots"].tolist() == [14, 2, 22]
        assert outages["start"].dt.strftime("%d %H:%M").tolist() == ["10 18:01", "11 01:08", "11 01:27"]
        assert (outages["markets"] == 4).all()
        filled = client.candles("KRW-BTC", "1m", first, last, fill="ffill")
        assert filled.index[filled["synthetic"]].tolist() == [
            at for row in outages.itertuples() for at in pd.date_range(row.start, row.end, freq="min", inclusive="left")
        ]


def test_truth_recorded_thin_markets_have_no_outage(recordings: Path, tmp_path: Path) -> None:
    """Fifty small markets without trades for hours are no outage of the exchange."""
    path = recordings / "candles" / "1m_thin-51-markets_2026-04.parquet"
    recorded = pq.read_table(path, columns=["market", "timestamp"]).to_pandas()
    bounds = recorded.groupby("market")["timestamp"].agg(["min", "max"])
    with (
        SimulatorServer(replay=[path], frozen=True, limit=1000) as venue,
        Backbone(data_dir=tmp_path, rest_url=venue.rest_url, tz="UTC") as client,
    ):
        for market, row in bounds.head(12).iterrows():
            client.candles(market, "1m", row["min"], row["max"])
        assert client.store.outages().empty


def test_truth_from_a_hundred_threads_is_one_truth(own_venue: SimulatorServer, tmp_path: Path) -> None:
    """A hundred threads on one client, same ranges and different ones: all right, and no page is asked twice."""
    markets = ["KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE"]
    wrong: list[str] = []
    with Backbone(data_dir=tmp_path, rest_url=own_venue.rest_url) as client:
        gate = threading.Barrier(100)

        def ask(number: int) -> None:
            market = markets[number % 5]
            start = pd.Timestamp("2025-08-22T00:00:00Z") - pd.Timedelta(f"{number // 5 % 4}h")
            gate.wait(20)
            for _ in range(3):
                frame = client.candles(market, "1m", start, END, priority=("normal", "high", "low")[number % 3])
                expected = truth(own_venue, market, "1m", str(start), END)
                if not (frame["close"].to_numpy() == expected["close"].to_numpy()).all():
                    wrong.append(market)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []
        asked = [(r.query["market"], r.query["to"]) for r in own_venue.requests if r.group == "candles"]
        assert len(asked) == len(set(asked)), "identical pages are asked once"
        assert len(asked) <= 5 * 6
        assert client.store.verify().empty


def test_truth_of_a_section_that_is_incomplete_has_its_part(own_venue: SimulatorServer, tmp_path: Path) -> None:
    """A section that could not be had in full raises with what arrived and what is missing."""
    with Backbone(data_dir=tmp_path, rest_url=own_venue.rest_url) as client:
        client.candles("KRW-BTC", "1m", START, "2025-08-22T02:00:00Z")
        own_venue.faults.add("garbage", match="/v1/candles", times=None)
        sections = client.backfill("KRW-BTC", "1m", START, END).sections()
        with pytest.raises(IncompleteError) as caught:
            next(sections)
        assert len(caught.value.frame) == 120
        assert facts(caught.value.frame)["unknown"] == 240
        assert caught.value.gaps
