"""The main job on real history: recorded Upbit candles through the whole path, back to the last digit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from backbone import Backbone
from backbone.coordinator import coordinator as fetch
from backbone.coordinator.quota.ledger import MemoryLimiter
from backbone.coordinator.quota.rules import Rules
from backbone.simulator import SimulatorServer
from backbone.timeframe import parse_timeframe

QUICK = [
    "1m_majors_2021-05",  # two exchange outages
    "1m_thin-51-markets_2026-04",  # markets with hours without trades
    "5m_majors_2026-01",
    "15m_majors_2026-01",
    "1h_majors_2025-08_2026-01_with-value",
    "4h_14-alts_2017_2021",
    "1d_merged",
    "1d_btc_close-and-low_2017_2026",
]
LONG = ["1m_majors_2025-09", "1m_btc_2018-01", "15m_eth_2024", "1m_btc_200-minute-blocks_2024-08_2025-08"]


@pytest.fixture
def unhurried_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quota is another test's business: here a hundred times the rows a second."""
    monkeypatch.setattr(fetch, "MachineLimiter", lambda url, clock: MemoryLimiter(clock, Rules(limit=1000)))


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in LONG)])
def test_replay_gives_every_recorded_row_back(
    name: str, recordings: Path, tmp_path: Path, unhurried_quota: None
) -> None:
    """Fetched, stored and read again, each recorded value is the same float64; minutes without trades are quiet."""
    path = recordings / "candles" / f"{name}.parquet"
    recorded = pq.read_table(path).to_pandas()
    if "timeframe" not in recorded:
        recorded = recorded.assign(market="KRW-BTC", timeframe="1d")
    with (
        SimulatorServer(replay=[path], frozen=True, limit=1000) as venue,
        Backbone(data_dir=tmp_path, rest_url=venue.rest_url, tz="UTC") as client,
    ):
        for (market, timeframe), rows in recorded.groupby(["market", "timeframe"], sort=False):
            rows = rows.set_index("timestamp")
            step = parse_timeframe(timeframe)
            first, last = rows.index[0], rows.index[-1]
            end = pd.Timestamp(step.next(_us(last)), unit="us", tz="UTC")
            frame = client.candles(market, timeframe, first, end)
            _assert_same(frame, rows)
            said = frame.attrs["backbone"]
            slots = round((end - first) / pd.Timedelta(step.step_us, unit="us"))
            assert said["quiet"] == slots - len(rows)
            assert said["unknown"] == 0
            again = client.candles(market, timeframe, first, end)
            assert again.attrs["backbone"]["requests"] == 0
            _assert_same(again, rows)
        assert client.store.verify().empty


def _us(stamp: pd.Timestamp) -> int:
    return int(stamp.to_datetime64().astype("datetime64[us]").astype(np.int64))


def _assert_same(frame: pd.DataFrame, rows: pd.DataFrame) -> None:
    assert (frame.index == rows.index).all()
    for column in ("open", "high", "low", "close", "volume", "value"):
        if column in rows:
            known = rows[column].notna().to_numpy()
            assert (frame[column].to_numpy()[known] == rows[column].to_numpy()[known]).all(), column
