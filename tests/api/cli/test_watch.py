"""A live table in a terminal: redrawn in place, within the window, and the terminal left as it was found."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import re
from pathlib import Path
from typing import Any, TypeVar

import pytest

from backbone import Backbone
from backbone.api.calls.live import LiveTable
from backbone.api.cli import watch as terminal
from backbone.api.cli.watch import Screen, watch
from backbone.api.notebook.table import TableRow, TableView
from backbone.clock import SystemClock
from backbone.simulator import SimulatorServer

NOW = "2025-08-22T09:00:00Z"
Output = TypeVar("Output", bound=io.StringIO)


def row(market: str, price: float = 100.0, change: float = 1.0) -> TableRow:
    return TableRow(market, price, 1.0, change, change / 100, 10.0, 1000.0, "stream", 0.1)


class OnTerminal(io.StringIO):
    """The text as it was written."""

    def isatty(self) -> bool:
        return True


class Terminal(io.StringIO):
    """What a terminal would show of the text written to it: cursor up, erase line, colours left out."""

    def __init__(self, *, height: int = 24) -> None:
        super().__init__()
        self.height = height
        self.lines: list[str] = [""]
        self.at = 0
        self.is_cursor_shown = True

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for part in re.findall(r"\x1b\[[?0-9]*[A-Za-z]|\n|[^\x1b\n]+", text):
            if part == "\n":
                self.at += 1
                self.lines += [""] * (self.at + 1 - len(self.lines))
            elif part.endswith("A") and part.startswith("\x1b"):
                self.at -= int(part[2:-1])
                assert self.at >= 0, "went above the first line"
            elif part == "\x1b[2K":
                self.lines[self.at] = ""
            elif part in ("\x1b[?25l", "\x1b[?25h"):
                self.is_cursor_shown = part.endswith("h")
            elif not part.startswith("\x1b"):
                self.lines[self.at] += part
        return len(text)

    @property
    def shown(self) -> list[str]:
        return [line for line in self.lines if line]


def watched(table: LiveTable, out: type[Output], **words: Any) -> Output:
    """What a second's watching wrote; on a busy machine the first second in which prices changed."""
    for _ in range(30):
        written, before = out(), table.received
        watch(table, written, clock=SystemClock(), zone="Asia/Seoul", seconds=1.0, **words)
        if table.received > before + 1:
            break
    return written


def screen(height: int = 24, columns: int = 120, *, coloured: bool = True) -> Screen:
    return Screen(lambda: (columns, height), coloured=coloured)


def test_screen_draws_again_where_it_drew_before() -> None:
    """The second drawing replaces the first one, line by line."""
    seen, shown = Terminal(), screen()
    seen.write(shown.draw(TableView([row("KRW-BTC", 100.0)], "streaming")))
    seen.write(shown.draw(TableView([row("KRW-BTC", 200.0)], "streaming")))
    assert len(seen.shown) == 3
    assert "200" in seen.shown[1]
    assert seen.shown[2].startswith("streaming")


def test_screen_with_fewer_rows_leaves_none_of_the_old() -> None:
    """Lines that are no longer needed are erased, and the next drawing begins at the right line."""
    seen, shown = Terminal(), screen()
    seen.write(shown.draw(TableView([row("KRW-A"), row("KRW-B"), row("KRW-C")], "streaming")))
    seen.write(shown.draw(TableView([row("KRW-A")], "streaming")))
    assert [line.split()[0] for line in seen.shown] == ["Market", "KRW-A", "streaming"]
    seen.write(shown.draw(TableView([row("KRW-A"), row("KRW-B")], "streaming")))
    assert [line.split()[0] for line in seen.shown] == ["Market", "KRW-A", "KRW-B", "streaming"]


def test_screen_stays_within_the_window() -> None:
    """More rows than the window has lines are left out and counted; longer lines are cut: either would scroll."""
    seen, shown = Terminal(), screen(height=10, columns=40, coloured=False)
    seen.write(shown.draw(TableView([row(f"KRW-{i:03}") for i in range(50)], "streaming")))
    assert len(seen.shown) == 8
    assert max(map(len, seen.shown)) <= 40
    wide = screen(height=10)
    assert "44 more below" in wide.draw(TableView([row(f"KRW-{i:03}") for i in range(50)], "streaming"))


def test_screen_colours_rise_and_fall() -> None:
    """Rising rows are red, falling ones blue, unmoved ones plain; all plain on request."""
    view = TableView([row("KRW-A", change=1.0), row("KRW-B", change=-1.0), row("KRW-C", change=0.0)], "streaming")
    drawn = screen().draw(view)
    assert "\x1b[31mKRW-A" in drawn
    assert "\x1b[34mKRW-B" in drawn
    assert "\x1b[2KKRW-C" in drawn
    assert "\x1b[3" not in screen(coloured=False).draw(view)


def test_watch_on_a_terminal_moves_in_place(tmp_path: Path, patient: None) -> None:
    """The table is redrawn as prices change, and the cursor is back at the end."""
    with (
        SimulatorServer(seed=7, now=NOW, speed=30) as venue,
        Backbone.demo(server=venue, data_dir=tmp_path) as client,
        client.live(["KRW-BTC", "KRW-ETH"]) as table,
    ):
        seen = watched(table, Terminal, size=lambda: (120, 24))
        assert table.received > 2
    assert [line.split()[0] for line in seen.shown] == ["Market", "KRW-BTC", "KRW-ETH", "streaming"]
    assert seen.is_cursor_shown


def test_watch_interrupted_gives_the_cursor_back(client: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between two drawings leaves no hidden cursor."""
    seen = Terminal()

    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    with client.live("KRW-BTC") as table, monkeypatch.context() as patch:
        draw = Screen.draw
        drawn: list[int] = []

        def once(self: Screen, view: TableView) -> str:
            drawn.append(1)
            return draw(self, view) if len(drawn) == 1 else interrupt()

        patch.setattr(terminal.Screen, "draw", once)
        with pytest.raises(KeyboardInterrupt):
            watch(table, seen, clock=SystemClock(), zone="Asia/Seoul", seconds=5.0, size=lambda: (120, 24))
    assert seen.is_cursor_shown


def test_watch_elsewhere_writes_a_line_a_change(tmp_path: Path, patient: None) -> None:
    """In a pipe each change is one plain line, without any escape sequence."""
    with (
        SimulatorServer(seed=7, now=NOW, speed=30) as venue,
        Backbone.demo(server=venue, data_dir=tmp_path) as client,
        client.live("KRW-BTC") as table,
    ):
        out = watched(table, io.StringIO)
    lines = out.getvalue().splitlines()
    assert lines
    assert all(re.fullmatch(r"2025-08-22 18:[\d:]{5}  KRW-BTC  [\d,]+  [+-][\d.]+%  stream", line) for line in lines)


@pytest.mark.parametrize("form", ["csv", "json"])
def test_watch_in_a_programs_form_is_a_row_a_change(form: str, tmp_path: Path) -> None:
    """Exact numbers and times with their offset, also where the output is a terminal."""
    with (
        SimulatorServer(seed=7, now=NOW, speed=30) as venue,
        Backbone.demo(server=venue, data_dir=tmp_path) as client,
        client.live("KRW-BTC") as table,
    ):
        out = watched(table, OnTerminal, form=form)
    text = out.getvalue()
    rows = list(csv.DictReader(text.splitlines())) if form == "csv" else [json.loads(x) for x in text.splitlines()]
    assert rows
    assert all(list(row) == ["time", "market", "price", "change_rate", "source"] for row in rows)
    assert all(dt.datetime.fromisoformat(row["time"]).utcoffset() == dt.timedelta(hours=9) for row in rows)
    assert all(float(row["price"]) > 0 and row["market"] == "KRW-BTC" for row in rows)
