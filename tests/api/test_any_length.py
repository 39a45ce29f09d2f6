"""Any length that divides a day, by every public call that takes a timeframe: the same candles, exactly folded.

The truth is the exchange's own minutes, summed here as decimals of what it writes; only the minutes are stored.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from backbone import Backbone, BackboneRequest, DataType
from backbone.api.cli.main import main
from backbone.compat import DifferenceWarning, initialize, legacy
from backbone.compat import pyupbit as compat
from backbone.errors import IncompleteError, InputError
from backbone.simulator import SimulatorServer

LIMIT = 500  # the quota is not what is tested here
LENGTHS = ["2m", "20m", "45m", "2h", "6h", "12h"]
START, END = "2025-08-19T00:00Z", "2025-08-21T00:00Z"
KOREAN = "2025-08-19T09:00", "2025-08-21T09:00"
MARKETS = ["KRW-BTC", "KRW-SLP"]  # one that trades every minute, one that hardly does
COLUMNS = ["open", "high", "low", "close", "volume", "value"]


@pytest.fixture(scope="module")
def filled(shared_venue: SimulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backbone]:
    """A client whose store has the minutes of two markets and nothing longer."""
    folder = tmp_path_factory.mktemp("minutes")
    with Backbone(data_dir=folder, rest_url=shared_venue.rest_url, ws_url=shared_venue.ws_url) as made:
        made.candles(MARKETS, "1m", START, END, progress=False)
        yield made


@pytest.fixture(scope="module")
def truth(shared_venue: SimulatorServer) -> Callable[[str, str], pd.DataFrame]:
    """What a length is: the venue's minutes, grouped on the UTC grid, sums of decimals rounded once."""

    def made(market: str, length: str) -> pd.DataFrame:
        bounds = [int(np.datetime64(time.removesuffix("Z"), "us").astype(np.int64)) for time in (START, END)]
        minutes = shared_venue.exchange.candle_table(market, "1m", *bounds).to_pandas()
        group = minutes.groupby(minutes["time"].dt.floor(pd.Timedelta(length.replace("m", "min"))))

        def total(values: pd.Series) -> float:
            return float(sum(Decimal(repr(value)) for value in values.tolist()))

        found = group.agg({"open": "first", "high": "max", "low": "min", "close": "last"})
        return found.assign(volume=group["volume"].agg(total), value=group["value"].agg(total))

    return made


def _request(client: Backbone, market: str, length: str) -> Any:
    asked = BackboneRequest(DataType.CANDLE, market, length, START, END)
    response = client.request(asked)
    if not response.success:
        raise InputError("timeframe", length, str(response.error))
    frame = pd.DataFrame(response.data)
    return frame.set_index(pd.DatetimeIndex(frame["time"]))


def _scan(client: Backbone, market: str, length: str) -> Any:
    return client.scan(market, length, START, END).collect().to_pandas().set_index("time")


def _mapped(client: Backbone, market: str, length: str) -> Any:
    ((name, frame),) = client.map(lambda f: f, market, length, START, END, n_jobs=1)
    assert name == market
    return frame


def _compat_pyupbit(client: Backbone, market: str, length: str) -> Any:
    initialize(client)
    spelling = f"minute{pd.Timedelta(length.replace('m', 'min')) // pd.Timedelta('1min')}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DifferenceWarning)
        return compat.get_ohlcv_from(market, spelling, *KOREAN)


def _legacy(client: Backbone, market: str, length: str) -> Any:
    legacy.initialize(client)
    count = len(client.candles(market, length, START))
    rows = legacy.get_market_data_adapter().get_candle_data(market, length, count + 1)["data"]
    frame = pd.DataFrame(rows[::-1])
    frame.index = pd.DatetimeIndex(frame["candle_date_time_utc"]).tz_localize("UTC")
    names = ["opening_price", "high_price", "low_price", "trade_price"]
    names += ["candle_acc_trade_volume", "candle_acc_trade_price"]
    return frame[names].set_axis(COLUMNS, axis=1)


def _chart(client: Backbone, market: str, length: str) -> Any:
    rows = client.chart(market, length, START, END, live=False).rows
    index = pd.DatetimeIndex([row.time_us * 1000 for row in rows]).tz_localize("UTC")
    return pd.DataFrame([[getattr(row, name) for name in COLUMNS[:5]] for row in rows], index, COLUMNS[:5])


CALLS: dict[str, Callable[[Backbone, str, str], Any]] = {
    "candles": lambda c, m, t: c.candles(m, t, START, END),
    "candles offline": lambda c, m, t: c.candles(m, t, START, END, offline=True),
    "candles critical": lambda c, m, t: c.candles(m, t, START, END, priority="critical"),
    "candles of several": lambda c, m, t: c.candles([m], t, START, END).drop(columns="market"),
    "backfill": lambda c, m, t: c.backfill(m, t, START, END).result(),
    "backfill in sections": lambda c, m, t: pd.concat(c.backfill(m, t, START, END).sections()),
    "scan": _scan,
    "map": _mapped,
    "request": _request,
    "pyupbit": _compat_pyupbit,
    "older adapter": _legacy,
    "chart": _chart,
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", CALLS)
def test_every_call_reads_any_length_exactly(
    filled: Backbone, truth: Callable[[str, str], pd.DataFrame], name: str, length: str
) -> None:
    """To the last digit, in every column that the call has (turnovers as far as a float64 goes)."""
    for market in MARKETS:
        found = CALLS[name](filled, market, length)
        index = found.index if found.index.tz is not None else found.index.tz_localize("Asia/Seoul")
        found = found.set_axis(index.tz_convert("UTC").as_unit("us"))
        found = found[(found.index >= pd.Timestamp(START)) & (found.index < pd.Timestamp(END))]
        columns = [column for column in COLUMNS if column in found.columns]
        expected = truth(market, length)[columns]
        if "value" in columns:  # a turnover of ten digits and five decimals fits no float64, nor does a sum of sums
            assert found["value"].to_numpy() == pytest.approx(expected["value"].to_numpy(), rel=1e-14)
            columns.remove("value")
        pd.testing.assert_frame_equal(
            found[columns], expected[columns], check_freq=False, check_names=False, check_exact=True
        )


@pytest.mark.parametrize("length", LENGTHS)
def test_what_only_looks_takes_any_length(filled: Backbone, length: str) -> None:
    """Plan, coverage, size and wide frames say the length that was asked for."""
    assert filled.explain("KRW-BTC", length, START, END).pages == 0
    assert (filled.coverage("KRW-BTC", length)["state"] == "data").any()
    sized = filled.size(MARKETS, length, START, END)
    assert sized.timeframe.startswith(length)
    assert sized.rows >= filled.size(MARKETS, sized.timeframe.split(" (of ")[-1].rstrip(")"), START, END).rows
    wide = filled.candles(MARKETS, length, START, END, wide="close")
    assert wide["KRW-BTC"].dropna().tolist() == filled.candles("KRW-BTC", length, START, END)["close"].tolist()


def test_whole_market_of_any_length_is_backfilled(filled: Backbone) -> None:
    """A quote currency as everywhere: each listed market in the result."""
    frame = filled.backfill("USDT-*", "12h", START, END).result()
    assert set(frame["market"]) == set(filled.markets("USDT").index)


def test_command_line_takes_any_length(filled: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    """`fetch` prints the same candles."""
    argv = ["--data-dir", str(filled.data_dir), "--rest-url", filled.session.settings.rest_url]
    argv = ["fetch", "KRW-BTC", "45m", "--start", START, "--end", END, "--out", "-", "--format", "csv", *argv]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(filled.candles("KRW-BTC", "45m", START, END))


def test_last_candle_of_any_length_is_there_once_closed(venue: SimulatorServer, tmp_path: Path) -> None:
    """At 09:00 UTC the one of 08:15 to 09:00 is closed, of 06:00 to 12:00 none is."""
    words = {"rest_url": venue.rest_url, "ws_url": venue.ws_url, "tz": "UTC"}

    def newest(length: str) -> str:
        with Backbone(data_dir=tmp_path, **words) as client:
            return str(client.candles("KRW-BTC", length, count=1).index[0])

    assert newest("45m") == "2025-08-22 07:30:00+00:00"
    venue.clock.advance(10)
    assert newest("45m") == "2025-08-22 08:15:00+00:00"
    assert newest("6h") == "2025-08-22 00:00:00+00:00"


def test_scan_of_a_length_with_a_hole_is_an_error(filled: Backbone) -> None:
    """Complete or an error, also where the rows would be folded from minutes."""
    with pytest.raises(IncompleteError):
        filled.scan(MARKETS, "45m", "2025-08-18", END)
    held = filled.scan(MARKETS, "45m", "2025-08-18", END, partial=True).collect()
    assert held.height > 0


@pytest.mark.parametrize("length", ["7m", "2d", "5h", "0m", "1.5h"])
def test_length_that_does_not_divide_a_day_is_refused_by_every_call(filled: Backbone, length: str) -> None:
    """Before any request, with what is allowed."""
    for name, call in CALLS.items():
        if name in ("pyupbit", "older adapter"):
            continue  # their own words are tested with them
        with pytest.raises(InputError):
            call(filled, "KRW-BTC", length)
