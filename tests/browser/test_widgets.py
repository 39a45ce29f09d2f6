"""Views and tutorials in a real JupyterLab: they draw, they change by themselves, nothing fails.

One module, so that one server and one browser serve all of it. The views show made-up data.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import Page

TABLE = """
import itertools, random
from backbone.api.format import tick_size
from backbone.api.notebook.table import TableRow, TableView, TickerTable

random.seed(7)
names = dict(BTC="비트코인", ETH="이더리움", XRP="리플", DOGE="도지코인", SHIB="시바이누", SOL="솔라나", ADA="에이다",
             TRX="트론", LINK="체인링크", AVAX="아발란체", DOT="폴카닷", USDT="테더", PEPE="페페")
prices = (91_234_000, 3_412_000, 812, 243.0, 0.01812, 205_300, 541, 412, 19_870, 32_140, 5_620, 1_391, 0.0123)
start = dict(zip(names, prices))
price = dict(start)
tick = {name: tick_size("KRW-" + name, value) for name, value in price.items()}
seen = dict.fromkeys(names, 0.0)
pulls = itertools.count()

def snapshot():
    at = next(pulls)
    for name in random.sample(list(names)[:-1], 4):
        price[name] = round(price[name] * (1 + random.gauss(0, 8e-4)) / tick[name]) * tick[name]
        seen[name] = at / 10
    rows = [
        TableRow("KRW-" + name, price[name], tick[name], price[name] - start[name], price[name] / start[name]
        - 1,
                 1e9 / start[name] + at, 1e12 / (i + 1) + at * 1e7, "stream" if i % 5 else "rest",
                 at / 10 - seen[name] + (0 if name != "PEPE" else 95), names[name])
        for i, name in enumerate(names)
    ]
    return TableView(rows, "streaming", f"{len(rows)} markets · 1 socket · REST 212 ms")
table = TickerTable(snapshot)
table
"""

CHART = """
import math, random
import pandas as pd
from backbone.api.notebook.chart import CandleChart, CandleRow, ChartView

random.seed(3)
closes = [91_000_000.0]
for _ in range(400):
    closes.append(round(closes[-1] * (1 + random.gauss(0, 6e-4)) / 1000) * 1000)
frame = pd.DataFrame(
    {"open": closes[:-1], "close": closes[1:]},
    index=pd.date_range("2025-08-22 09:00", periods=400, freq="min", tz="Asia/Seoul", unit="us", name="time"),
)
frame["high"] = frame[["open", "close"]].max(axis=1) + 9000
frame["low"] = frame[["open", "close"]].min(axis=1) - 7000
frame["volume"] = [abs(random.gauss(3, 2)) for _ in range(400)]
frame["value"] = frame["close"] * frame["volume"]
last = closes[-1]
forming = dict(time_us=1_755_820_800_000_000 + 400 * 60_000_000, o=last, h=last, l=last, c=last, v=0.0)

def newest():
    f = forming
    f["c"] = round(f["c"] * (1 + random.gauss(0, 2e-4)) / 1000) * 1000
    f["h"], f["l"], f["v"] = max(f["h"], f["c"]), min(f["l"], f["c"]), f["v"] + 0.05
    if f["v"] > 1.5:
        f.update(time_us=f["time_us"] + 60_000_000, o=f["c"], h=f["c"], l=f["c"], v=0.0)
    return ChartView([CandleRow(f["time_us"], f["o"], f["h"], f["l"], f["c"], f["v"])], "streaming")
chart = CandleChart(frame, market="KRW-BTC", timeframe="1m", pull=newest)
chart
"""

PROGRESS = """
import itertools
from datetime import datetime, timedelta
from backbone.api.notebook.progress import JobProgress, JobView

steps = itertools.count()
def job():
    n = min(next(steps) * 2, 60)
    state = "done" if n == 60 else "running"
    reached = datetime(2025, 8, 22, 18) + n * timedelta(minutes=200)
    return JobView(state, n, n * 198, n / 60, reached, 9.7, (60 - n) / 9.7, n / 9.7)
progress = JobProgress("KRW-BTC 1m", job, lambda: None)
progress
"""

DASHBOARD = """
import itertools
from backbone.api.notebook.dashboard import Dashboard

turns = itertools.count()
def status():
    n = next(turns)
    used = n % 10
    groups = ("candles", "crix-trades", "ticker", "orderbook", "market")
    return {
        "title": "upbit · demo", "state": {"level": "ok", "text": "healthy"},
        "quota": {
            group: {"limit": 10, "used": used if i == 0 else i, "free": 10 - (used if i == 0 else i),
                    "stopped_s": 0.8 if i == 3 else 0, "refused": 1 if i == 3 else 0}
            for i, group in enumerate(groups)
        },
        "queued": {"candles": {"critical": 0, "high": 0, "normal": 2, "low": 140 + n}, "ticker": {"high": 1}},
        "in_flight": {"critical": 0, "high": 1, "normal": 0, "low": 3},
        "times": [
            {"kind": kind, "group": "", "priority": p, "count": 120 + n, "p50_s": s, "p95_s": s * 2.2,
            "p99_s": s * 4} for kind in ("waited", "answered") for p, s in (("critical", 0.004), ("high",
            0.021), ("normal", 0.08), ("low", 1.4))
        ],
        "caches": {"memory": {"hits": 812 + n, "misses": 31, "bytes": 48_300_000, "limit_bytes": 256_000_000},
                   "table": {"hits": 93, "misses": 7, "bytes": 130_000}},
        "socket": {"state": "streaming", "age_s": 0.4, "markets": 290, "received": 120_311 + 17 * n,
        "reconnects": 0}, "store": {"path": "data/candles", "bytes": 1_312_000_000, "files": 2_411},
    }
dashboard = Dashboard(status)
dashboard
"""

WHOLE_MARKET = """
import random
from backbone.api.notebook.table import TableRow, TableView, TickerTable

rows = [
    TableRow(f"KRW-C{i:03}", 1e6 + 1000 * i, 1000.0, 0.0, 0.0, 1e4 + i, 1e11 / (i + 1), "stream", 0.1)
    for i in range(290)
]
source = random.Random(5)
pulls = 0
def snapshot():
    global pulls
    pulls += 1
    for i in source.sample(range(290), 97):
        row = rows[i]
        move = source.randrange(-2, 3) * 1000.0
        rows[i] = row._replace(
            price=row.price + move, change=row.change + move, change_rate=(row.change + move) / row.price,
            volume_24h=row.volume_24h + 0.1, value_24h=row.value_24h + 1e6,
        )
    return TableView(list(rows), "streaming", "290 markets")
table = TickerTable(snapshot)
table
"""

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))

SHOWING = ("04",)  # a live table and a chart; the others show what is compared without a browser

THEMES = ["JupyterLab Light", pytest.param("JupyterLab Dark", marks=pytest.mark.slow)]


FLASH = """() => document.querySelector(".bb-table").getAnimations({subtree: true}).some(
    (flash) => getComputedStyle(flash.effect.target).backgroundColor !== "rgba(0, 0, 0, 0)")"""
"""Whether a price that changed is lit up in its colour."""


@pytest.mark.parametrize("theme", THEMES)
def test_every_view_draws_and_changes_by_itself(notebook: Callable[..., Page], theme: str) -> None:
    """Table cells, the chart's last price and the dashboard change without a click; the bar reaches its
    end."""
    page = notebook("views", [TABLE, CHART, PROGRESS, DASHBOARD], theme=theme)
    page.run_all()
    page.page.wait_for_selector(".bb-table tbody tr")
    page.wait_for_change(".bb-table td.bb-price")
    page.page.wait_for_function(FLASH)
    page.wait_for_change(".bb-chart .bb-last")
    page.wait_for_change(".bb-dash .bb-card")
    assert page.painted(".bb-chart .bb-stage") > 5_000
    page.page.wait_for_selector(".widget-hprogress .progress-bar-success")
    page.screenshot("table", ".bb-table")
    page.screenshot("chart", ".bb-chart")
    page.screenshot("dashboard", ".bb-dash")
    page.screenshot("progress", ".jp-OutputArea-output:has(.widget-hprogress)")
    page.screenshot("page")
    assert page.failures() == []


def test_table_nobody_sees_is_not_refreshed_and_comes_back(notebook: Callable[..., Page]) -> None:
    """With its output cleared a table asks for nothing; shown again, it is at the present."""
    page = notebook("lifetime", [TABLE])
    page.run_all()
    page.wait_for_change(".bb-table td.bb-price")
    page.command("editmenu:clear-all")
    page.page.wait_for_selector(".bb-table", state="detached")
    page.ask("table._ticks = 10_000")  # the half minute that a browser has to announce itself
    page.page.wait_for_timeout(500)
    before = page.ask("print(next(pulls))")
    page.page.wait_for_timeout(1_500)
    assert int(page.ask("print(next(pulls))")) == int(before) + 1
    page.run_all()
    page.wait_for_change(".bb-table td.bb-price")
    assert page.failures() == []


@pytest.mark.slow
def test_table_shown_twice_and_after_a_reload_is_at_the_present(notebook: Callable[..., Page]) -> None:
    """A second display and a reloaded page show the same, changing rows."""
    page = notebook("reload", [TABLE, "table"])
    page.run_all()
    page.page.wait_for_function("document.querySelectorAll('.bb-table').length === 2")
    page.wait_for_change(".bb-table td.bb-price")
    page.command("docmanager:save")
    page.page.wait_for_timeout(500)
    page.reload()
    page.page.wait_for_selector(".bb-table tbody tr", timeout=30_000)
    page.wait_for_change(".bb-table td.bb-price")
    assert page.failures() == []


def test_table_sorts_and_filters(notebook: Callable[..., Page]) -> None:
    """A click on a head sorts by the number behind the text; the filter knows market and Korean names."""
    page = notebook("sort", [TABLE])
    page.run_all()
    page.page.click(".bb-table th:has-text('Price') button")
    prices = [float(text.replace(",", "")) for text in page.texts(".bb-table td.bb-price")]
    assert prices == sorted(prices, reverse=True)
    page.page.fill(".bb-table .bb-filter", "도지")
    shown = page.page.locator(".bb-table tbody tr:visible")
    assert shown.count() == 1
    assert "KRW-DOGE" in shown.first.text_content()
    assert page.failures() == []


def test_table_of_the_whole_market_costs_the_kernel_little(notebook: Callable[..., Page]) -> None:
    """290 rows of which a third change ten times a second cost the kernel under a tenth of a core, all in
    all."""
    page = notebook("cost", [WHOLE_MARKET])
    page.run_all()
    page.wait_for_change(".bb-table td.bb-price")
    page.screenshot("table", ".bb-table")
    measure = "import time; print(time.process_time(), time.monotonic(), pulls)"
    before = [float(number) for number in page.ask(measure).split()]
    page.page.wait_for_timeout(2_000)
    after = [float(number) for number in page.ask(measure).split()]
    cpu, wall, pulls = (now - then for now, then in zip(after, before, strict=True))
    print(f"{100 * cpu / wall:.1f} % of a core at {pulls / wall:.1f} refreshes a second")
    assert pulls > 4
    assert cpu / pulls < 0.010
    assert page.failures() == []


def tutorials() -> list[Any]:
    """Each tutorial; those with nothing that moves only in the long form."""
    marks = {path: () if path.name.startswith(SHOWING) else pytest.mark.slow for path in NOTEBOOKS}
    return [pytest.param(path, id=path.stem, marks=mark) for path, mark in marks.items()]


@pytest.mark.parametrize("path", tutorials())
def test_tutorial_runs_and_what_it_shows_is_there(notebook: Callable[..., Page], path: Path) -> None:
    """Every cell ends without an error; tables have rows, charts are painted, bars of finished jobs are full."""
    page = notebook(path.stem, path)
    page.run_all(timeout_s=120.0)
    page.page.wait_for_timeout(500)
    for what in ("bb-table", "bb-chart", "bb-dash"):
        if page.page.locator(f".{what}").count():
            page.screenshot(what, f".{what}")
    if page.page.locator(".bb-table").count():
        assert page.texts(".bb-table tbody tr")
    if page.page.locator(".bb-chart").count():
        assert page.painted(".bb-chart .bb-stage") > 5_000
    bars = page.page.locator(".widget-hprogress .progress-bar")
    for i in range(bars.count()):
        assert "progress-bar-danger" not in (bars.nth(i).get_attribute("class") or "")
    page.screenshot("page")
    assert page.failures() == []


def first_cells(number: str, count: int) -> list[str]:
    """The first code cells of a tutorial."""
    import nbformat

    (path,) = (path for path in NOTEBOOKS if path.name.startswith(number))
    book = nbformat.read(path, as_version=4)
    return [cell.source for cell in book.cells if cell.cell_type == "code"][:count]


@pytest.mark.slow
def test_live_tutorial_moves_by_itself(notebook: Callable[..., Page]) -> None:
    """With no cell running, the prices of the live table change, and the last candle of the chart does."""
    page = notebook("04_in_motion", first_cells("04", 4))
    page.run_all(timeout_s=120.0)
    page.wait_for_change(".bb-table tbody td.bb-price", timeout_s=30.0)
    page.screenshot("table", ".bb-table")
    page.wait_for_change(".bb-chart", timeout_s=30.0)
    assert page.painted(".bb-chart .bb-stage") > 5_000
    page.screenshot("chart", ".bb-chart")
    left = "import threading; client.close(); exchange.close()\n"
    left += "print([t.name for t in threading.enumerate() if t.name.startswith('backbone-')])"
    assert page.ask(left) == "[]"
    page.page.wait_for_selector(".bb-table .bb-dot[data-level='off']")
    page.page.wait_for_selector(".bb-chart .bb-dot[data-level='off']")
    assert page.failures() == []


def test_bar_of_a_job_fills_by_itself(notebook: Callable[..., Page]) -> None:
    """The bar of the backtest's job fills with no cell running, and ends full and green."""
    page = notebook("02_in_motion", first_cells("02", 4))
    page.run_all(timeout_s=120.0)
    page.page.wait_for_selector(".widget-hprogress .progress-bar-success", timeout=60_000)
    bar = page.page.locator(".widget-hprogress .progress-bar").first
    assert "100%" in (bar.get_attribute("style") or "")
    page.screenshot("bar", ".widget-vbox")
    page.ask("client.close()")
    assert page.failures() == []
