"""What a terminal shows of a live table: the table redrawn in place, or a line a change elsewhere.

Decided here: what is drawn when, in how many lines and columns, and that the terminal is left as it was found, however
the watching ends. `Screen` only makes text; `watch` is the loop. Nothing is drawn from another thread.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Callable
from typing import Final, TextIO

from backbone.api.arguments import in_zone
from backbone.api.calls.live import LiveTable, LiveUpdate
from backbone.api.cli.output import writing
from backbone.api.format import format_price
from backbone.api.notebook.table import TableRow, TableView, table_text
from backbone.clock import Clock
from backbone.model import Ticker

__all__ = ["Screen", "update_lines", "watch"]

_FRAME_S: Final = 0.1
_REDRAW_S: Final = 1.0  # without an update too, since the ages grow
_HIDE, _SHOW, _RESET = "\x1b[?25l", "\x1b[?25h", "\x1b[0m"
_RISE, _FALL = "\x1b[31m", "\x1b[34m"
CHANGE: Final = ("time", "market", "price", "change_rate", "source")
"""The fields of a change in a program's form."""
Size = Callable[[], tuple[int, int]]


class Screen:
    """The text that redraws some lines in place. Knows how many it drew last."""

    def __init__(self, size: Size, *, coloured: bool = True) -> None:
        self._size = size
        self._coloured = coloured
        self._drawn = 0

    def draw(self, view: TableView) -> str:
        """What to write so that the table stands where it stood."""
        columns, height = self._size()
        head, *rows, foot = table_text(view).splitlines()
        room = max(1, height - 4)
        hidden = len(rows) - room
        if hidden > 0:
            rows = rows[:room]
            foot += f" · {hidden} more below: make the window taller"
        shown = [self._tinted(text[:columns], row) for text, row in zip(rows, view.rows, strict=False)]
        lines = [head[:columns], *shown, foot[:columns]]
        up = f"\x1b[{self._drawn}A" if self._drawn else _HIDE
        gone = max(0, self._drawn - len(lines))
        self._drawn = len(lines)
        cleared = "".join("\x1b[2K\n" for _ in range(gone)) + (f"\x1b[{gone}A" if gone else "")
        return up + "".join(f"\x1b[2K{line}\n" for line in lines) + cleared

    def _tinted(self, text: str, row: TableRow) -> str:
        if not self._coloured or not math.isfinite(row.change) or not row.change:
            return text
        return f"{_RISE if row.change > 0 else _FALL}{text}{_RESET}"


def update_lines(update: LiveUpdate, view: TableView, zone: str, form: str = "table") -> list[str]:
    """One line for each market that changed: its time, price, change and where it came from; as a CSV row or a JSON
    object with exact numbers where `form` says so.
    """
    rows = {row.market: row for row in view.rows}
    lines = []
    for record in update:
        row = rows.get(record.market)
        if row is None or not isinstance(record, Ticker):
            continue
        at = in_zone(record.time_us, zone)
        if form != "table":
            stamp = at.isoformat(timespec="milliseconds")
            fields = (stamp, record.market, record.price, record.change_rate, row.source)
            named = json.dumps(dict(zip(CHANGE, fields, strict=True)))
            lines.append(named if form == "json" else ",".join(map(str, fields)))
            continue
        price = format_price(record.price, row.tick)
        lines.append(f"{at:%Y-%m-%d %H:%M:%S}  {record.market}  {price}  {record.change_rate:+.2%}  {row.source}")
    return lines


def watch(
    table: LiveTable,
    out: TextIO,
    *,
    clock: Clock,
    zone: str,
    seconds: float | None = None,
    coloured: bool = True,
    size: Size | None = None,
    form: str = "table",
) -> None:
    """Show `table` on `out` for `seconds` (None: until it is stopped, or Ctrl-C).

    On a terminal the table is redrawn in place, at most ten times a second; elsewhere, and in the form of a program
    (``csv`` with a head, ``json``: an object a line), each change is a line.
    """
    in_place = out.isatty() and form == "table"
    screen = Screen(size or shutil.get_terminal_size, coloured=coloured)
    pause = threading.Condition()
    until = math.inf if seconds is None else clock.monotonic() + seconds
    try:
        if in_place:
            _write(out, screen.draw(table.snapshot()))
        elif form == "csv":
            _write(out, ",".join(CHANGE) + "\n")
        while clock.monotonic() < until and table.state != "stopped":
            for update in table.updates(timeout_s=max(0.01, min(_REDRAW_S, until - clock.monotonic()))):
                if in_place:
                    _write(out, screen.draw(table.snapshot()))
                    with pause:
                        clock.wait(pause, _FRAME_S)
                else:
                    _write(out, "".join(f"{line}\n" for line in update_lines(update, table.snapshot(), zone, form)))
                if clock.monotonic() >= until:
                    break
            if in_place:
                _write(out, screen.draw(table.snapshot()))
    finally:
        if in_place:
            _write(out, _SHOW)  # the cursor is back, the last table stays


def _write(out: TextIO, text: str) -> None:
    with writing():
        out.write(text)
        out.flush()
