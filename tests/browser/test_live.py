"""The client's own views in a real JupyterLab, on the embedded exchange with its clock running."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.browser.lab import Page

OPEN = """
from backbone import Backbone
from backbone.simulator import SimulatorServer
import tempfile

server = SimulatorServer(seed=7, now=1_755_853_200_000_000).start()
client = Backbone(data_dir=tempfile.mkdtemp(), rest_url=server.rest_url, ws_url=server.ws_url)
"""
LIVE = """
table = client.live(["KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE"])
table
"""


@pytest.mark.slow
def test_live_table_shows_itself_and_changes(notebook: Callable[..., Page]) -> None:
    """`client.live(...)` as a cell's last line is a table whose prices move, and that stands still once stopped."""
    page = notebook("live", [OPEN, LIVE])
    page.run_all()
    page.page.wait_for_selector(".bb-table tbody tr", timeout=30_000)
    page.wait_for_change(".bb-table tbody td.bb-price, .bb-table tbody td.bb-volume_24h", timeout_s=30.0)
    page.screenshot("table", ".bb-table")
    page.ask("table.stop()")
    page.page.wait_for_selector(".bb-table .bb-dot[data-level='off']")
    assert page.texts(".bb-table td.bb-price")
    left = "import threading; client.close(); server.close()\n"
    left += "print([t.name for t in threading.enumerate() if t.name.startswith('backbone-')])"
    assert page.ask(left) == "[]"
    assert page.failures() == []


WHOLE = """
from backbone import Backbone
from backbone.coordinator.live import members
from backbone.simulator import SimulatorServer
import tempfile

members.EVERY_S, members.AGAIN_S = 0.5, 0.3  # the minute between two market lists
codes = ["KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE"]
server = SimulatorServer(seed=7, now=1_755_853_200_000_000, markets=codes).start()
client = Backbone(data_dir=tempfile.mkdtemp(), rest_url=server.rest_url, ws_url=server.ws_url)
"""
EVERYTHING = """
table = client.live("KRW")
table
"""


@pytest.mark.slow
def test_live_table_shows_a_market_that_joins_and_drops_one_that_leaves(notebook: Callable[..., Page]) -> None:
    """While the table is open: the new row comes with its name and price, the old one goes, and the line says both."""
    page = notebook("life", [WHOLE, EVERYTHING])
    page.run_all()
    page.page.wait_for_selector(".bb-table tbody tr:nth-child(5)", timeout=30_000)
    page.ask("server.faults.add('list', market='KRW-ADA')")
    page.page.wait_for_selector(".bb-table tbody tr:nth-child(6)", timeout=30_000)
    page.page.wait_for_selector(".bb-table :text('KRW-ADA was listed')")
    page.screenshot("market-joined", ".bb-table")
    assert "KRW-ADA" in " ".join(page.texts(".bb-table tbody tr:nth-child(6)"))
    page.ask("server.faults.add('delist', market='KRW-XRP')")
    page.page.wait_for_selector(".bb-table :text('KRW-XRP was delisted')", timeout=30_000)
    page.page.wait_for_selector(".bb-table tbody tr:nth-child(6)", state="detached")
    page.screenshot("market-left", ".bb-table")
    markets = " ".join(page.texts(".bb-table tbody tr"))
    assert "KRW-XRP" not in markets
    assert all(code in markets for code in ("KRW-BTC", "KRW-ETH", "KRW-SOL", "KRW-DOGE", "KRW-ADA"))
    page.wait_for_change(".bb-table tbody tr:nth-child(5) td.bb-volume_24h", timeout_s=30.0)
    page.ask("client.close(); server.close()")
    assert page.failures() == []
