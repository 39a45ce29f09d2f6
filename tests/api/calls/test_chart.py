"""`Backbone.chart`: history first, then the live candle of any timeframe, for as long as somebody looks."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator

import pytest

from backbone import Backbone
from backbone.api.calls import chart as chart_module
from backbone.api.calls.chart import LiveChart
from backbone.clock import SystemClock
from backbone.errors import InputError, StreamClosedError
from backbone.simulator import SimulatorServer

LIMIT = 500  # the quota is not what is tested here

NOW = "2025-08-22T09:00:00Z"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a notebook showed what is made here."""
    monkeypatch.setattr(chart_module, "in_kernel", lambda: True)


@pytest.fixture
def moving() -> Iterator[tuple[Backbone, SimulatorServer]]:
    """A client of an exchange whose clock is moved by hand."""
    with SimulatorServer(seed=7, now=NOW, frozen=True) as server, Backbone.demo(server=server) as client:
        yield client, server


def pull_until(chart: LiveChart, condition: Callable[[], bool]) -> None:
    """Refresh as the kernel's loop would, until something is seen."""
    clock, pause = SystemClock(), threading.Condition()
    until = clock.monotonic() + 20
    while not condition():
        assert clock.monotonic() < until, f"never seen: {chart!r} {chart.rows[-2:]}"
        chart.refresh(force=True)
        with pause:
            clock.wait(pause, 0.02)


def stream_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "stream" in thread.name]


def test_chart_has_the_range_of_candles_and_the_forming_one(client: Backbone) -> None:
    """The rows are those of `candles`, with the candle that is still forming at the end."""
    chart = client.chart("btc", "1h", count=48)
    frame = client.candles("KRW-BTC", "1h", count=48, include_forming=True)
    assert [row.close for row in chart.rows] == frame["close"].tolist()
    assert repr(chart) == "CandleChart(KRW-BTC 1h, 49 candles, still)"
    assert chart.text().startswith("KRW-BTC 1h · 49 candles")
    assert chart.html().startswith("<img ")


def test_chart_with_an_end_is_history_and_does_not_follow(client: Backbone, shown: None) -> None:
    """A chart of a range that has ended has closed candles only, and opens no socket."""
    chart = client.chart("KRW-BTC", "1h", "2025-08-20", "2025-08-21")
    chart.refresh(force=True)
    assert len(chart.rows) == 24
    assert stream_threads() == []
    with pytest.raises(InputError, match="live"):
        client.chart("KRW-BTC", "1h", "2025-08-20", "2025-08-21", live=True)


def test_chart_outside_a_notebook_opens_no_socket(client: Backbone) -> None:
    """In a script a chart is a picture of now: nothing follows."""
    chart = client.chart("KRW-BTC", "1m", count=10)
    chart.refresh(force=True)
    assert len(chart.svg()) > 1000
    assert stream_threads() == []


@pytest.mark.parametrize("words", [{"timeframe": "7m"}, {"colours": "pastel"}, {"height": 5}, {"market": "KRW-NOPE"}])
def test_chart_with_a_wrong_argument_says_which(client: Backbone, words: dict[str, object]) -> None:
    """Unknown markets, timeframes and styles are input errors."""
    with pytest.raises(InputError):
        client.chart(**{"market": "KRW-BTC", "timeframe": "1m", **words})


@pytest.mark.parametrize("timeframe", ["1m", "45m", "1d", "1w", "1M", "1y"])
def test_chart_follows_its_candle(moving: tuple[Backbone, SimulatorServer], shown: None, timeframe: str) -> None:
    """The last candle is what the venue itself would answer: streamed up to hours, from the ticker for a day, folded
    of days beyond, and of shorter ones where the venue has no such length."""
    client, server = moving
    chart = client.chart("KRW-BTC", timeframe, count=5)
    chart.refresh(force=True)
    first = chart.rows[-1]
    server.clock.advance(50)
    pull_until(chart, lambda: chart.rows[-1] != first)
    server.clock.advance(600)
    truth = client.candles("KRW-BTC", timeframe, count=2, include_forming=True).iloc[-1]
    pull_until(chart, lambda: chart.rows[-1].close == truth.close)
    last = chart.rows[-1]
    assert (last.open, last.high, last.low) == (truth.open, truth.high, truth.low)
    assert last.volume == pytest.approx(truth.volume, rel=1e-9)
    assert [row.time_us for row in chart.rows] == sorted({row.time_us for row in chart.rows})
    chart.close()


def test_chart_has_the_candles_of_an_outage(moving: tuple[Backbone, SimulatorServer], shown: None) -> None:
    """Candles that were missed while the connection was down are drawn once they were fetched."""
    client, server = moving
    chart = client.chart("KRW-BTC", "1m", count=5)
    chart.refresh(force=True)
    server.pause()
    server.clock.advance(300)
    server.resume()
    pull_until(chart, lambda: len(chart.rows) >= 10)
    closed = client.candles("KRW-BTC", "1m", count=9)
    wanted = {int(time.value // 1000): close for time, close in closed["close"].items()}
    pull_until(chart, lambda: wanted.items() <= {row.time_us: row.close for row in chart.rows}.items())
    chart.close()


def test_chart_closed_stops_its_table(moving: tuple[Backbone, SimulatorServer], shown: None) -> None:
    """`close` ends the subscription with the chart; what is shown stays, and says so."""
    client, _ = moving
    chart = client.chart("KRW-BTC", "1m", count=5)
    chart.refresh(force=True)
    assert stream_threads()
    chart.close()
    assert stream_threads() == []
    assert repr(chart) == "CandleChart(KRW-BTC 1m, 6 candles, stopped)"
    assert not chart.refresh(force=True)


def test_chart_of_a_closed_client_says_stopped(shown: None) -> None:
    """The next refresh after the client's end shows that the view is over."""
    with Backbone.demo() as client:
        chart = client.chart("KRW-BTC", "1m", count=5)
        chart.refresh(force=True)
    with pytest.raises(StreamClosedError, match="stopped"):
        chart.refresh(force=True)


def test_chart_that_nobody_holds_is_not_fed(moving: tuple[Backbone, SimulatorServer], shown: None) -> None:
    """Once it is collected, the loop stops its table: a chart that was looked at and forgotten costs nothing."""
    client, _ = moving

    async def look_and_forget() -> None:
        chart = client.chart("KRW-BTC", "1m", count=5)
        chart.refresh(force=True)
        assert stream_threads()
        del chart
        gc.collect()
        for _ in range(200):
            await asyncio.sleep(0.01)
            if not stream_threads():
                return

    asyncio.run(look_and_forget())
    assert stream_threads() == []
