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
