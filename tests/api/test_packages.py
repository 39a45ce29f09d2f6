"""Without the packages of a notebook: everything that is no widget works, and a widget says what to install."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from backbone.api.notebook import view as module

BLOCKED = "ipywidgets anywidget traitlets matplotlib IPython ipykernel comm"

PROGRAM = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED.split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
from backbone import Backbone
from backbone.api.cli.main import main

span = ("2025-08-20", "2025-08-21")
with Backbone.demo() as client, client.live("KRW-BTC") as table:
    assert len(client.candles("KRW-BTC", "1h", *span, progress=True)) == 24
    assert client.candles(["KRW-BTC", "KRW-ETH"], "1h", *span, wide="close").shape == (24, 2)
    assert len(client.tickers("KRW")) and len(client.orderbooks("KRW-BTC")) and len(client.trades("KRW-BTC", 5))
    job = client.backfill("KRW-ETH", "1h", *span).wait()
    assert len(job.result()) == 24
    chart, dashboard = client.chart("KRW-BTC", "1h"), client.dashboard()
    for shown in (client, client.store, client.health(), job, table, chart, dashboard):
        assert shown._repr_html_()
    for shown in (job, table, chart, dashboard):
        assert {"text/html", "text/plain"} <= shown._repr_mimebundle_().keys()
    for view in (job.view(), table.view(), chart, dashboard):
        try:
            view.widget
        except ImportError as exc:
            assert "pip install ipywidgets anywidget" in str(exc), exc
        else:
            raise SystemExit(f"{view} made a widget of nothing")
    at = ["--rest-url", client.session.settings.rest_url, "--data-dir", str(client.data_dir)]
    for words in (["status"], ["store"], ["verify"], ["doctor"], ["coverage", "KRW-BTC", "1h"]):
        assert main([*words, *at]) == 0, words
print("all is well")
"""


def test_without_widgets_plots_and_notebook_everything_else_works() -> None:
    """In a program in which none of them can be imported."""
    text = f"BLOCKED = {BLOCKED!r}\n" + textwrap.dedent(PROGRAM)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "all is well" in done.stdout


def test_view_in_a_kernel_without_widgets_shows_its_static_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub whose kernel lacks the packages displays a table, not an error."""

    class Static(module.View):
        def _pull(self) -> None: ...
        def _resend(self) -> None: ...
        def html(self) -> str:
            return "<b>1</b>"

        def text(self) -> str:
            return "1"

        def _build(self) -> object:
            raise ModuleNotFoundError("No module named 'anywidget'")

    monkeypatch.setattr(module, "in_kernel", lambda: True)
    assert Static()._repr_mimebundle_() == {"text/html": "<b>1</b>", "text/plain": "1"}
