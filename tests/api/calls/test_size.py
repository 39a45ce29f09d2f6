"""Sizing: rows, bytes, requests and hours before they are spent."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from backbone import Backbone
from backbone.api.calls.size import Sizing
from backbone.api.cli import main as cli
from backbone.errors import InputError
from backbone.simulator import SimulatorServer
from backbone.venues import Venue

LIMIT = 500  # the quota is not what is tested here

DAY = 1440


def test_size_without_a_store_says_what_is_assumed(client: Backbone) -> None:
    """With nothing to measure, every slot counts, at the constants measured on recordings, and that is said."""
    found = client.size(["KRW-BTC", "KRW-ETH"], "1m", "2025-01-01", "2025-01-31", addresses=[1, 2])
    assert found.rows == 2 * 30 * DAY
    assert found.requests == 2 * (math.ceil(30 * DAY / 200) + 1)
    assert found.gigabytes == pytest.approx(found.rows * 24 / 1e9)
    assert any("bytes a candle" in text for text in found.assumed)
    assert any("reach back" in text for text in found.assumed)


def test_size_measures_bytes_and_density_from_the_store(client: Backbone) -> None:
    """What the store holds of a market says how many bytes a candle takes and what share of slots trade."""
    frame = client.candles("KRW-BTC", "1m", "2025-08-01", "2025-08-08")
    found = client.size("KRW-BTC", "1m", "2025-08-01", "2025-08-08")
    held = sum(Path(path).stat().st_size for path in client.files("KRW-BTC", "1m"))
    assert found.rows == len(frame)
    share = len(frame) / client.coverage("KRW-BTC", "1m")["rows"].sum()  # pages reach back a little further
    assert found.gigabytes == pytest.approx(share * held / 1e9)
    assert not any("bytes a candle" in text for text in found.assumed)


def test_size_probe_finds_where_history_begins(client: Backbone, venue: SimulatorServer) -> None:
    """Asked to, it learns each market's beginning for one request or two, and counts from there."""
    markets = list(client.markets("KRW").index[-4:])
    before = client.size(markets, "1h", "2017")
    venue.reset_log()
    after = client.size(markets, "1h", "2017", probe=True)
    asked = {tuple(one.query.items()) for one in venue.requests if one.group == "candles"}  # late ones are repeated
    assert len(asked) <= 2 * len(markets)
    assert after.rows < before.rows
    assert not any("reach back" in text for text in after.assumed)
    hours = sum(len(client.candles(code, "1M", "2017")) for code in markets) * 24 * 31
    assert after.rows <= hours


def test_size_hours_fall_with_addresses_down_to_the_largest_market(client: Backbone) -> None:
    """A whole market goes to one address, so more addresses than markets help no further."""
    found = client.size(["KRW-BTC", "KRW-ETH"], "1m", "2024-12-01T00:00Z", "2025-03-01T00:00Z", addresses=[1, 2, 4])
    rest = {n: hours for source, n, _, hours in found.hours if source == "rest"}
    assert rest[1] == pytest.approx(found.requests / Venue.pace_per_s / 3600)
    assert rest[2] == pytest.approx(rest[1] / 2)
    assert rest[4] == rest[2]
    archive = {n: hours for source, n, _, hours in found.hours if source == "archive"}
    assert archive[1] < rest[1] / 10


def test_size_frame_and_words_agree(client: Backbone) -> None:
    """The frame has a row for each source and number of addresses, and the text names the figures."""
    found: Sizing = client.size("KRW-BTC", "1m", "2025-01", "2025-03")
    assert found.frame()["addresses"].tolist() == [1, 2, 4, 8] * 2
    assert f"{found.rows:,} candles" in repr(found)
    assert "archive" in repr(found)


def test_size_wrong_arguments_are_input_errors(client: Backbone) -> None:
    """A time in the future and no address at all are refused."""
    with pytest.raises(InputError, match="since"):
        client.size("KRW-BTC", "1m", "2031")
    with pytest.raises(InputError, match="addresses"):
        client.size("KRW-BTC", "1m", "2025", addresses=[0])


def test_size_command_prints_the_figures(
    venue: SimulatorServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`backbone size` asks for nothing but the market list of a quote currency, which a second reply confirms."""
    where = ["--data-dir", str(tmp_path), "--rest-url", venue.rest_url, "--ws-url", venue.ws_url]
    code = cli.main(["size", "--markets", "KRW", "--timeframe", "1m", "--since", "2017", *where])
    out = capsys.readouterr().out
    assert code == 0
    assert "GB" in out
    assert "8 addresses" in out
    assert [one.group for one in venue.requests] == ["market", "market"]
