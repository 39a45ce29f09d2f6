"""What a scripted fault does to an answer's rows: pure, rows in, rows out.

The rows handed in may be shared with other answers, so they are never changed in place.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from backbone.simulator.market.venue import Row
from backbone.simulator.server.faults import Fault

__all__ = ["ROW_FAULTS", "corrupt"]

_TIMES = ("candle_date_time_utc", "candle_date_time_kst")


def corrupt(rows: list[Row], fault: Fault) -> list[Row]:
    """The rows as the fault would have them."""
    return ROW_FAULTS[fault.kind](rows, fault)


def _short(rows: list[Row], fault: Fault) -> list[Row]:
    keep = int(fault.number("rows", len(rows) // 2))
    return rows[:keep]


def _duplicate(rows: list[Row], _: Fault) -> list[Row]:
    at = len(rows) // 2
    return [*rows[: at + 1], *rows[at:]] if rows else rows


def _disorder(rows: list[Row], _: Fault) -> list[Row]:
    return rows[::-1] if len(rows) < 3 else [rows[1], rows[0], *rows[2:]]


def _wrong_market(rows: list[Row], fault: Fault) -> list[Row]:
    name = fault.text("market", "KRW-WRONG")
    return [{**row, "market": name} if "market" in row else row for row in rows]


def _shifted(row: Row, seconds: float) -> Row:
    moved = dict(row)
    for name in _TIMES:
        if name in row:
            moved[name] = (datetime.fromisoformat(row[name]) + timedelta(seconds=seconds)).isoformat()
    return moved


def _off_grid(rows: list[Row], _: Fault) -> list[Row]:
    at = len(rows) // 2
    return [_shifted(row, -7) if i == at else row for i, row in enumerate(rows)]


def _beyond(rows: list[Row], fault: Fault) -> list[Row]:
    return [_shifted(rows[0], fault.number("seconds", 86_400.0)), *rows[1:]] if rows else rows


def _bad_ohlc(rows: list[Row], _: Fault) -> list[Row]:
    at = len(rows) // 2
    return [
        {**row, "high_price": row["low_price"] * 0.99} if i == at and "low_price" in row else row
        for i, row in enumerate(rows)
    ]


ROW_FAULTS: dict[str, Callable[[list[Row], Fault], list[Row]]] = {
    "empty": lambda _rows, _fault: [],
    "short": _short,
    "duplicate": _duplicate,
    "disorder": _disorder,
    "wrong-market": _wrong_market,
    "off-grid": _off_grid,
    "beyond": _beyond,
    "bad-ohlc": _bad_ohlc,
}
