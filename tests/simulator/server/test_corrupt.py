"""What faults do to rows."""

from __future__ import annotations

from typing import Any

import pytest

from backbone.simulator.server.corrupt import ROW_FAULTS, corrupt
from backbone.simulator.server.faults import KINDS, Fault

ROWS: list[dict[str, Any]] = [
    {"market": "KRW-BTC", "candle_date_time_utc": f"2025-08-22T00:0{m}:00", "low_price": 1.0, "high_price": 2.0}
    for m in (4, 3, 2, 1)
]
TIMES = [row["candle_date_time_utc"] for row in ROWS]


def _times(kind: str, **options: Any) -> list[str]:
    return [row["candle_date_time_utc"] for row in corrupt(ROWS, Fault(kind, options=options))]


def test_every_row_fault_is_listed_and_leaves_the_rows_it_was_given_alone() -> None:
    """Rows may be shared with other answers."""
    before = [dict(row) for row in ROWS]
    for kind in ROW_FAULTS:
        assert kind in KINDS
        assert corrupt(ROWS, Fault(kind)) != ROWS
        assert before == ROWS


def test_row_faults_do_what_they_say() -> None:
    """Each spoils one thing."""
    assert _times("empty") == []
    assert _times("short") == TIMES[:2]
    assert _times("short", rows=3) == TIMES[:3]
    assert _times("duplicate") == [*TIMES[:3], *TIMES[2:]]
    assert sorted(_times("disorder")) == sorted(TIMES) != _times("disorder")
    assert "2025-08-22T00:01:53" in _times("off-grid")
    assert _times("beyond", seconds=60)[0] == "2025-08-22T00:05:00"
    assert {r["market"] for r in corrupt(ROWS, Fault("wrong-market"))} == {"KRW-WRONG"}
    assert sum(r["high_price"] < r["low_price"] for r in corrupt(ROWS, Fault("bad-ohlc"))) == 1


@pytest.mark.parametrize("kind", sorted(ROW_FAULTS))
def test_row_faults_survive_an_empty_answer(kind: str) -> None:
    """There is nothing to corrupt."""
    assert corrupt([], Fault(kind)) == []
