"""The chart: which candles the browser gets, in which zone, and the picture for pages without scripts."""

from __future__ import annotations

import base64
import re
import struct
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbone.api.notebook import chart as chart_module
from backbone.api.notebook.chart import Candle, CandleChart, CandleRow, ChartView
from backbone.errors import InputError
from backbone.model import LiveCandle

START = 1_755_820_800_000_000  # 2025-08-22 00:00 UTC, 09:00 KST
MINUTE = 60_000_000


def candle(i: int, close: float = 105.0, volume: float = 1.0) -> CandleRow:
    return CandleRow(START + i * MINUTE, 100.0, max(110.0, close), min(95.0, close), close, volume)


def frame(count: int = 5, tz: str = "Asia/Seoul") -> pd.DataFrame:
    rows = [candle(i) for i in range(count)]
    index = pd.DatetimeIndex(pd.to_datetime([r.time_us for r in rows], unit="us", utc=True), name="time").tz_convert(tz)
    return pd.DataFrame([r[1:] for r in rows], index=index, columns=["open", "high", "low", "close", "volume"])


def unpacked(data: bytes) -> list[tuple[float, ...]]:
    return [struct.unpack_from("<6d", data, i * 48) for i in range(len(data) // 48)]


class FedChart(CandleChart):
    """A chart whose source has what the test gives it."""

    def __init__(self, held: pd.DataFrame) -> None:
        self.fed = ChartView()
        super().__init__(held, market="KRW-BTC", timeframe="1m", pull=lambda: self.fed)

    def feed(self, *candles: Candle) -> None:
        self.fed = ChartView(candles)
        self.refresh(force=True)


@pytest.fixture
def shown() -> Iterator[tuple[FedChart, list[Any]]]:
    """A chart with its widget made, and the messages it sends."""
    chart = FedChart(frame())
    messages: list[Any] = []
    chart.widget.send = messages.append
    yield chart, messages
    chart.widget.close()


def test_chart_shows_the_wall_clock_of_the_frame_s_zone(shown: tuple[FedChart, list[Any]]) -> None:
    """The browser gets times shifted to the frame's zone: 09:00 in Seoul reads 09:00."""
    chart, _ = shown
    first = unpacked(chart.widget.data)[0]
    assert first == ((START + 9 * 3600 * 1_000_000) / 1e6, 100.0, 110.0, 95.0, 105.0, 1.0)
    assert chart.widget.state["line"].endswith("KST")


def test_chart_update_of_the_forming_candle_sends_one_row(shown: tuple[FedChart, list[Any]]) -> None:
    """The live candle costs one row; an equal one costs nothing."""
    chart, messages = shown
    chart.feed(candle(4, 107.0))
    chart.feed(candle(4, 107.0))
    assert len(messages) == 1
    assert messages[0]["rows"][0][4] == 107.0
    chart.feed(candle(5))
    assert messages[1]["rows"][0][0] - messages[0]["rows"][0][0] == 60


def test_chart_takes_the_live_candle_of_a_stream(shown: tuple[FedChart, list[Any]]) -> None:
    """The stream's own record is taken as it is."""
    chart, messages = shown
    chart.feed(LiveCandle("KRW-BTC", "1m", START + 5 * MINUTE, 1.0, 2.0, 0.5, 1.5, 3.0, 4.0, 0))
    assert messages[0]["rows"][0][1:] == [1.0, 2.0, 0.5, 1.5, 3.0]


def test_chart_with_an_inserted_candle_is_sent_whole() -> None:
    """A gap that was filled afterwards cannot be appended: everything is sent once."""
    chart, messages = FedChart(frame().drop(frame().index[2])), []
    chart.widget.send = messages.append
    assert len(unpacked(chart.widget.data)) == 4
    chart.feed(candle(2))
    assert messages == []
    assert [row[0] for row in unpacked(chart.widget.data)] == sorted(row[0] for row in unpacked(chart.widget.data))
    assert len(unpacked(chart.widget.data)) == 5
    chart.widget.close()


def test_chart_gives_a_late_browser_view_the_present_state(shown: tuple[FedChart, list[Any]]) -> None:
    """A view that appears after updates went out is brought to the present by the synced data."""
    chart, _ = shown
    chart.feed(candle(5))
    assert len(unpacked(chart.widget.data)) == 5
    chart.on_message({"t": "seen", "v": "b"})
    assert len(unpacked(chart.widget.data)) == 6


def test_chart_pulls_the_newest_candles_and_the_state() -> None:
    """A source that always gives the last candles costs only what changed."""
    said = ChartView([candle(3), candle(4, 108.0)], "streaming", "age 0.2 s")
    chart = CandleChart(frame(), market="KRW-BTC", timeframe="1m", pull=lambda: said)
    messages: list[Any] = []
    chart.widget.send = messages.append
    assert unpacked(chart.widget.data)[-1][4] == 108.0
    chart.refresh(force=True)
    assert messages == []
    assert chart.widget.state["level"] == "ok"
    assert repr(chart) == "CandleChart(KRW-BTC 1m, 5 candles, streaming)"
    chart.close("stopped")
    assert chart.widget.state["level"] == "off"
    chart.widget.close()


def test_chart_that_runs_on_lets_old_candles_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: beyond a quarter more than its limit a chart keeps the newest ones."""
    monkeypatch.setattr(chart_module, "MAX_ROWS", 8)
    chart = FedChart(frame())
    for i in range(40):
        chart.feed(candle(i))
        assert len(chart.rows) <= 10
    assert chart.rows[-1] == candle(39)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 3)), max_size=40))
def test_chart_deltas_and_wholes_add_up_to_the_last_state_of_every_candle(fed: list[tuple[int, int]]) -> None:
    """Whatever order candles arrive in, the browser ends with the last state of each, in order of time."""
    chart = FedChart(frame(0))
    shown: dict[float, Any] = {}
    chart._widget = Browser(shown)
    last: dict[int, CandleRow] = {}
    for i, volume in fed:
        last[i] = candle(i, volume=float(volume))
        chart.feed(last[i])
    assert [row[5] for _, row in sorted(shown.items())] == [last[i].volume for i in sorted(last)]
    assert list(chart.rows) == [last[i] for i in sorted(last)]


class Browser:
    """Stands for the browser's half: keeps the rows by time, and refuses what the drawing library would."""

    def __init__(self, rows: dict[float, Any]) -> None:
        self.rows = rows
        self.state: dict[str, Any] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            self.rows.clear()
            self.rows.update({row[0]: row for row in unpacked(value)})
        else:
            object.__setattr__(self, name, value)

    def send(self, message: Any) -> None:
        for row in message["rows"]:
            assert row[0] in self.rows or row[0] > max(self.rows, default=0), "an old candle cannot be appended"
            self.rows[row[0]] = row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frame": [1, 2]}, "candle frame"),
        ({"frame": frame().drop(columns="volume")}, "candle frame"),
        ({"frame": frame().tz_localize(None)}, "candle frame"),
        ({"frame": frame().assign(market=list("aabbb"))}, "one market"),
        ({"colours": "pink"}, "korean"),
        ({"height": 10}, "pixels"),
        ({"timeframe": "7m"}, "resample"),
    ],
)
def test_chart_of_wrong_arguments_is_an_input_error(arguments: dict[str, Any], message: str) -> None:
    """What cannot be drawn is refused, naming what would be."""
    known = {"frame": frame(), "market": "KRW-BTC", "timeframe": "1m", **arguments}
    with pytest.raises(InputError, match=message):
        CandleChart(known.pop("frame"), **known)


def test_chart_of_no_candles_shows_that() -> None:
    """Nothing traded is a chart without candles, in every face."""
    chart = FedChart(frame(0))
    assert chart.text() == "KRW-BTC 1m · no candles"
    assert "no candles" in chart.svg()
    chart.feed(candle(0))
    assert "1 candle ·" in chart.text()


def test_static_picture_is_well_formed_and_the_same_each_time() -> None:
    """The SVG is XML with one body per candle, and depends on the candles alone."""
    chart = CandleChart(frame(60), market="KRW-BTC", timeframe="1m")
    ET.fromstring(chart.svg())
    assert chart.svg() == CandleChart(frame(60), market="KRW-BTC", timeframe="1m").svg()
    bodies = [path for path in re.findall(r'd="([^"]*)" fill="#[0-9a-f]{6}"/', chart.svg()) if path.endswith("z")]
    assert sum(path.count("z") for path in bodies) == 60


def test_static_picture_is_an_image_with_its_text_beside_it() -> None:
    """The HTML holds the picture as data and the text as its alternative, so that it passes sanitisers."""
    chart = CandleChart(frame(), market="KRW-BTC", timeframe="1m")
    html = chart.html()
    data = re.search(r"base64,([^\"]+)", html)
    assert data is not None
    assert base64.b64decode(data.group(1)).decode() == chart.svg()
    assert 'alt="KRW-BTC 1m · 5 candles · 2025-08-22 09:00' in html


def test_static_picture_escapes_the_market() -> None:
    """A market's name cannot become markup."""
    chart = CandleChart(frame(), market='<x"y>', timeframe="1m")
    assert "<x" not in chart.svg()
    assert "<x" not in chart.html()


@pytest.mark.parametrize("prices", [(1.0, 1.0), (0.0, 0.0), (1e-8, 2e-8), (9e7, 9.5e7), (1.0, 1e9)])
def test_static_picture_survives_flat_tiny_and_huge_prices(prices: tuple[float, float]) -> None:
    """Any range of prices makes a finite picture with at least one labelled price."""
    low, high = prices
    held = frame(3).assign(open=low, high=high, low=low, close=high, volume=0.0)
    svg = CandleChart(held, market="KRW-BTC", timeframe="1m", tick=1e-8).svg()
    ET.fromstring(svg)
    assert "nan" not in svg
    assert "inf" not in svg


def test_bundled_script_is_self_contained_and_names_its_licence() -> None:
    """The shipped chart needs no network, keeps the attribution on, and its licence lies beside it."""
    static = Path(chart_module.__file__).parent / "static"
    script = (static / "chart.js").read_text(encoding="utf-8")
    assert not re.search(r"\bimport\s*[{\"']", script)
    assert "attributionLogo:!0" in script
    assert "Copyright (c) 2026 TradingView" in script
    assert "TradingView" in (static / "NOTICE").read_text(encoding="utf-8")
    assert (static / "LICENSE-lightweight-charts.txt").stat().st_size > 5_000
    assert len(script) < 200_000


def test_chart_takes_candles_that_it_is_given(shown: tuple[FedChart, list[Any]]) -> None:
    """One that changed costs a row, an equal one nothing; a frame, or one inserted between, is sent whole."""
    chart, messages = shown
    chart.update(candle(4, 107.0))
    chart.update(candle(4, 107.0))
    assert [message["rows"][0][4] for message in messages] == [107.0]
    chart.set(frame().drop(frame().index[2]))
    assert len(unpacked(chart.widget.data)) == 4
    chart.update(candle(2))
    assert len(messages) == 1
    assert [row.time_us for row in chart.rows] == [START + i * MINUTE for i in range(5)]


def test_chart_shows_what_another_thread_gave_at_the_next_refresh(shown: tuple[FedChart, list[Any]]) -> None:
    """A widget is changed on the kernel's thread alone."""
    chart, messages = shown
    thread = threading.Thread(target=chart.update, args=(candle(5),))
    thread.start()
    thread.join()
    assert (len(chart.rows), messages) == (5, [])
    assert chart.refresh(force=True)
    assert (len(chart.rows), len(messages)) == (6, 1)
