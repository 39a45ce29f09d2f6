"""The live ticker table: one snapshot, shown as a widget that updates cell by cell, as static HTML, or as text.

What is decided here: the columns, how a row's numbers read, and which rows changed since the last message to the
browser (`TableDelta`, pure). A row's age is sent when it jumps, not as it grows: the browser counts on by itself, so a
quiet market costs nothing and its age stays true even when the kernel hangs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, Final, NamedTuple

from backbone.api.format import format_amount, format_price
from backbone.api.notebook.view import View, aligned, cell_html, check_colours, make_widget, state_line
from backbone.clock import Clock

__all__ = [
    "STALE_S",
    "TableDelta",
    "TableRow",
    "TableView",
    "TickerTable",
    "age_text",
    "table_text",
]

STALE_S: Final = 30.0
"""A row older than this is greyed: the venue's own limit for a socket without frames."""


class TableRow(NamedTuple):
    """One market's latest. ``age_s``: seconds since the row was received. NaN where a number is not known."""

    market: str
    price: float
    tick: float
    change: float
    change_rate: float
    volume_24h: float
    value_24h: float
    source: str
    age_s: float
    name: str = ""


class TableView(NamedTuple):
    """What the table shows at an instant. ``state`` is the stream's mode ("streaming", "polling", …)."""

    rows: Sequence[TableRow]
    state: str = ""
    note: str = ""


_AGE_FIELD = TableRow._fields.index("age_s")
_AGE_JUMP_S = 0.5  # smaller steps than this do not show


def age_text(age_s: float) -> str:
    """How old, in one word: ``now``, ``12s``, ``3m``, ``2h``.

    >>> [age_text(age) for age in (0.2, 12.4, 200.0, 7200.0, float("nan"))]
    ['now', '12s', '3m', '2h', '–']
    """
    if not math.isfinite(age_s):
        return "–"
    if age_s < 1.5:
        return "now"
    if age_s < 99.5:
        return f"{age_s:.0f}s"
    return f"{age_s / 60:.0f}m" if age_s < 5970 else f"{age_s / 3600:.0f}h"


def _signed(number: float, tick: float) -> str:
    text = format_price(number, tick)
    return "+" + text if number > 0 else text


def _rate(rate: float, _: float) -> str:
    if not math.isfinite(rate):
        return "–"
    return f"{rate:+.2%}" if rate else "0.00%"


_DATA: Final[tuple[tuple[str, str, str, Callable[[Any, float], str]], ...]] = (
    ("market", "Market", "text", lambda text, _: text),
    ("price", "Price", "number", format_price),
    ("change", "Change", "number", _signed),
    ("change_rate", "Change %", "number", _rate),
    ("volume_24h", "Volume 24h", "number", lambda amount, _: format_amount(amount)),
    ("value_24h", "Value 24h", "number", lambda amount, _: format_amount(amount)),
    ("source", "Source", "text", lambda text, _: text),
)
"""The columns but for the age: field, title, kind, and how it reads (given the field and the tick)."""
_COLUMNS: Final = (*(column[:3] for column in _DATA), ("age", "Age", "number"))
_SHOWN: Final = tuple((TableRow._fields.index(key), kind, show) for key, _, kind, show in _DATA)


def _texts(row: TableRow) -> list[str]:
    """The row's cells but for the age."""
    return [show(row[field], row.tick) for field, _, show in _SHOWN]


def _numbers(row: TableRow) -> list[float | None]:
    """What the browser sorts these cells by; None for a text or a number that is not known."""
    return [_json(row[field]) if kind == "number" else None for field, kind, _ in _SHOWN]


def _json(number: Any) -> float | None:
    return number if math.isfinite(number) else None


class TableDelta:
    """What the browser knows, and the smallest message that brings it to the present. Pure but for that memory."""

    def __init__(self) -> None:
        self._rows: list[TableRow] = []
        self._cells: list[tuple[list[str], list[float | None]]] = []
        self._born_s: list[float] = []  # when each row was received, in the sender's monotonic seconds
        self._line: list[str] = []

    def whole(self, view: TableView, now_s: float, problem: str = "") -> dict[str, Any]:
        """The whole state, which the browser is taken to know from now on."""
        self._rows = list(view.rows)
        self._cells = [(_texts(row), _numbers(row)) for row in self._rows]
        self._born_s = [now_s - row.age_s for row in self._rows]
        self._line = state_line(view.state, view.note, problem)
        return {
            "columns": [list(column) for column in _COLUMNS],
            "rows": [texts for texts, _ in self._cells],
            "numbers": [numbers for _, numbers in self._cells],
            "ages": [_json(row.age_s) for row in self._rows],
            "names": [row.name for row in self._rows],
            "line": self._line,
        }

    def is_same_shape(self, view: TableView) -> bool:
        """Whether the rows are of the same markets in the same order; otherwise only `whole` will do."""
        return [(row.market, row.name) for row in self._rows] == [(row.market, row.name) for row in view.rows]

    def changes(self, view: TableView, now_s: float, problem: str = "") -> dict[str, Any] | None:
        """The changed rows, ages and state line since the last message; None for none. Needs the same shape."""
        rows: list[list[Any]] = []
        ages: list[list[Any]] = []
        for i, (old, row) in enumerate(zip(self._rows, view.rows, strict=True)):
            if row[:_AGE_FIELD] != old[:_AGE_FIELD]:
                cells = _texts(row), _numbers(row)
                if cells != self._cells[i]:
                    self._cells[i] = cells
                    rows.append([i, *cells])
            born, known = now_s - row.age_s, self._born_s[i]
            if abs(born - known) > _AGE_JUMP_S or math.isfinite(born) != math.isfinite(known):
                self._born_s[i] = born
                ages.append([i, round(row.age_s, 2) if math.isfinite(row.age_s) else None])
        self._rows = list(view.rows)
        line = state_line(view.state, view.note, problem)
        changed = {"r": rows, "a": ages, "s": line if line != self._line else None}
        self._line = line
        message = {key: part for key, part in changed.items() if part}
        return {"t": "d", **message} if message else None


class TickerTable(View):
    """The live table as a view on `snapshot`; it shows itself in a notebook.

    Parameters
    ----------
    snapshot : pulled at most ten times a second, on the kernel's side. Rows keep their order from call to call.
    colours : ``"korean"`` (rise red, fall blue) or ``"western"`` (rise green, fall red).
    height : of the scrolling part, in pixels.
    title : what the repr calls it.
    """

    def __init__(
        self,
        snapshot: Callable[[], TableView],
        *,
        colours: str = "korean",
        height: int = 440,
        title: str = "TickerTable",
        clock: Clock | None = None,
    ) -> None:
        check_colours(colours)
        super().__init__(clock)
        self._snapshot = snapshot
        self._colours = colours
        self._style = {"colours": colours, "height": f"{height}px", "stale": STALE_S}
        self._title = title
        self._view = TableView(())
        self._delta = TableDelta()
        self._is_stale_state = False  # whether deltas went out since the synced state was set

    def __repr__(self) -> str:
        state = self.problem or self._view.state or "not shown"
        return f"{self._title}({len(self._view.rows)} markets, {state})"

    def text(self) -> str:
        """The latest rows as aligned text."""
        return table_text(self._view, self.problem)

    def html(self) -> str:
        """The table as static HTML that reads with its styles stripped: arrows show the direction, not only colours."""
        rise, fall = ("#cf3a2b", "#1763c6") if self._colours == "korean" else ("#0a8754", "#cf3a2b")
        lines = ["".join(cell_html("th", label, kind, "font-weight:500;opacity:.7") for _, label, kind in _COLUMNS)]
        for row in self._view.rows:
            sign = (row.change > 0) - (row.change < 0)
            tone, arrow = (("", ""), (rise, "▲ "), (fall, "▼ "))[sign]
            cells = []
            for (key, _, kind), text in zip(_COLUMNS, [*_texts(row), age_text(row.age_s)], strict=True):
                style = "white-space:nowrap;" + ("opacity:.45;" if row.age_s > STALE_S else "")
                if key in ("market", "price"):
                    style += "font-weight:600;"
                if tone and key in ("price", "change", "change_rate"):
                    style += f"color:{tone}"
                cells.append(cell_html("td", (arrow if key == "change" else "") + escape(text), kind, style))
            lines.append("".join(cells))
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        return (
            '<div style="font-variant-numeric:tabular-nums;max-width:860px;max-height:480px;overflow:auto">'
            f'<table cellpadding="4" style="margin:0">{body}</table>'
            f'<div style="opacity:.7">{escape(_small_print(self._view, self.problem))}</div></div>'
        )

    def _pull(self) -> None:
        self._view = self._snapshot()

    def _show(self, *, whole: bool = False) -> None:
        if (whole and self._is_stale_state) or not self._delta.is_same_shape(self._view):
            self._is_stale_state = False
            self._widget.state = self._whole_state()
        elif (message := self._delta.changes(self._view, self._clock.monotonic(), self.problem)) is not None:
            self._is_stale_state = True
            self._widget.send(message)

    def _whole_state(self) -> dict[str, Any]:
        return {**self._style, **self._delta.whole(self._view, self._clock.monotonic(), self.problem)}

    def _build(self) -> Any:
        files = "presence.js", "table.js", "theme.css", "table.css"
        return make_widget("TickerTable", *files, state=self._whole_state())


def table_text(view: TableView, problem: str = "") -> str:
    """The table as aligned plain text, the state line last.

    >>> row = TableRow("KRW-BTC", 91234000.0, 1000.0, -66000.0, -0.00072, 1234.5, 1.1e11, "stream", 0.4)
    >>> print(table_text(TableView([row], "streaming")))
    Market        Price   Change  Change %  Volume 24h  Value 24h  Source  Age
    KRW-BTC  91,234,000  -66,000    -0.07%       1,234     110.0B  stream  now
    streaming · 1 market
    """
    cells = [[label for _, label, _ in _COLUMNS], *([*_texts(row), age_text(row.age_s)] for row in view.rows)]
    lines = aligned(cells, [kind == "number" for *_, kind in _COLUMNS])
    return "\n".join([*lines, *aligned([[_small_print(view, problem)]], [False])])


def _small_print(view: TableView, problem: str) -> str:
    state, _, note = state_line(view.state, view.note, problem)
    count = f"{len(view.rows)} market" + ("" if len(view.rows) == 1 else "s")
    return " · ".join(filter(None, (state, count, note)))
