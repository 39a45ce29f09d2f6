"""The dashboard: which cards there are, how their numbers read, and that only changed ones are sent."""

from __future__ import annotations

import math
import re
import time
from typing import Any

import pytest

from backbone.api.notebook.dashboard import Dashboard, dashboard_cards
from backbone.coordinator.metrics import Metrics
from backbone.model import Priority


def snapshot(**changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "title": "upbit",
        "state": {"level": "ok", "text": "healthy"},
        "quota": {
            "candles": {"limit": 10, "used": 7, "free": 3, "stopped_s": 0.0, "refused": 0},
            "ticker": {"limit": 10, "used": 0, "free": 10, "stopped_s": 0.8, "refused": 2},
        },
        "queued": {"candles": {"critical": 0, "high": 0, "normal": 2, "low": 1400}},
        "in_flight": {"low": 3},
        "times": [
            {
                "kind": "waited",
                "group": "",
                "priority": "high",
                "count": 9,
                "p50_s": 0.004,
                "p95_s": 0.03,
                "p99_s": 2.0,
            },
            {"kind": "waited", "group": "candles", "priority": "high", "count": 9, "p50_s": 0.004},
            {"kind": "answered", "group": "", "priority": "low", "count": 0, "p50_s": math.nan},
        ],
        "caches": {"memory": {"hits": 90, "misses": 10, "bytes": 1_500_000, "limit_bytes": 256_000_000}, "disk": {}},
        "socket": {"state": "streaming", "age_s": 0.4, "markets": 290, "idle_s": None},
        "store": {"path": "data/candles", "bytes": 1_312_000_000, "files": 2411},
        "banned_s": 0.0,
        "last_error": "",
    }
    return {**known, **changes}


def pulled(known: dict[str, Any]) -> Dashboard:
    dashboard = Dashboard(lambda: known)
    dashboard.refresh()
    return dashboard


def test_every_part_has_its_card() -> None:
    """Budget, queue, latency, cache, socket and store are shown in that order."""
    titles = [title for title, _ in dashboard_cards(snapshot())]
    assert titles == ["Budget per group", "Queue", "Latency", "Cache", "Live socket", "Store"]


def test_parts_that_are_missing_have_no_card() -> None:
    """A client that never opened a socket shows no socket."""
    assert dashboard_cards({}) == []
    assert [title for title, _ in dashboard_cards({"store": {"bytes": 0}})] == ["Store"]


def test_text_reads_as_a_report() -> None:
    """Numbers have units, unknown ones a dash, totals of groups are left to metrics()."""
    text = pulled(snapshot()).text()
    for expected in ("healthy · upbit", "7/10", "stopped 1s", "1,400", "waited, high", "4.0 ms", "2.0 s", "90%",
                     "1.50 MB of 256 MB", "1.31 GB", "2,411", "data/candles"):  # fmt: skip
        assert expected in text
    assert "waited, high" in text
    assert text.count("waited") == 1
    assert "answered" not in text


def test_ban_is_the_first_thing_one_reads() -> None:
    """A block by the venue overrides every other state."""
    assert pulled(snapshot(banned_s=125.0)).text().startswith("blocked by the venue for 2m 05s")


def test_everything_foreign_is_escaped() -> None:
    """No text of a snapshot becomes markup, in the widget or the static page."""
    evil = "<img src=x onerror=alert(1)>"
    hostile = snapshot(
        title=evil, state={"level": evil, "text": evil}, last_error=evil,
        quota={evil: {"limit": 10, "used": 1}}, queued={evil: {}}, caches={evil: {}},
        socket={evil: evil}, store={"path": evil},
        times=[{"kind": evil, "priority": evil, "count": 1}],
    )  # fmt: skip
    dashboard = Dashboard(lambda: hostile)
    dashboard.refresh()
    widget = dashboard.widget
    assert "<img" not in dashboard.html()
    assert "<img" not in widget.state["html"]
    widget.close()


@pytest.fixture
def moving() -> dict[str, Any]:
    return snapshot()


def test_nothing_is_sent_where_nothing_changed(moving: dict[str, Any]) -> None:
    """A queue that grew changes the queue's card alone; nothing new sends nothing."""
    dashboard = Dashboard(lambda: moving)
    states = [cards(dashboard.widget)]
    dashboard.widget.observe(lambda change: states.append(cards(dashboard.widget)), "state")
    dashboard.refresh(force=True)
    assert len(states) == 1
    moving["in_flight"] = {"low": 4}
    dashboard.refresh(force=True)
    dashboard.on_message({"t": "seen", "v": "late"})
    assert len(states) == 2
    assert [name for name in states[0] if states[0][name] != states[1][name]] == ["Queue"]
    dashboard.close()
    assert [name for name in states[1] if states[1][name] != states[2][name]] == [""]
    dashboard.widget.close()


def cards(widget: Any) -> dict[str, str]:
    """The cards that the browser is sent, by title."""
    line, *found = re.split(r'<div class="bb-card"><b>', widget.state["html"])
    return {"": line} | {card.partition("<")[0]: card for card in found}


def test_card_that_appears_is_sent_with_the_whole(moving: dict[str, Any]) -> None:
    """When a socket opens, its card joins the others."""
    socket = moving.pop("socket")
    dashboard = Dashboard(lambda: moving)
    widget = dashboard.widget
    assert "Live socket" not in cards(widget)
    moving["socket"] = socket
    dashboard.refresh(force=True)
    assert "Live socket" in cards(widget)
    widget.close()


def test_dashboard_reads_the_coordinator_s_own_metrics() -> None:
    """The records of the coordinator's metrics are shown as they are."""
    metrics = Metrics()
    metrics.time("waited", 0.02, group="candles", priority=Priority.HIGH)
    assert "waited, high" in pulled({"times": metrics.snapshot()["times"]}).html()


def test_refresh_costs_less_than_two_milliseconds(moving: dict[str, Any]) -> None:
    """A refresh in which every card changed stays under 2 ms."""
    dashboard = Dashboard(lambda: moving)
    dashboard.widget.send = lambda message: None
    costs = []
    for n in range(20):
        moving["queued"] = {"candles": {"low": n}}
        moving["quota"] = {f"g{i}": {"limit": 10, "used": (i + n) % 10, "free": n} for i in range(5)}
        moving["socket"] = {"state": "streaming", "received": n}
        moving["store"] = {"bytes": n * 10**7}
        began = time.process_time()
        dashboard.refresh(force=True)
        costs.append(time.process_time() - began)
    dashboard.widget.close()
    assert min(costs) < 0.002


def test_repr_is_one_line() -> None:
    """The repr shows the state."""
    dashboard = Dashboard(snapshot)
    dashboard.refresh()
    assert repr(dashboard) == "Dashboard(healthy)"
