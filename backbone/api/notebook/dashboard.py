"""The dashboard: what a client is doing at this moment, in six cards that update in place.

What is decided here: which numbers matter and how they read. The source is one dict snapshot; every part of
it is optional, and a card whose part is missing is not shown::

    title      text                                     state     {"level": "ok" | "warn" | "bad", "text": …}
    quota      {group: {limit used free share stopped_s level refused foreign}}
    queued     {group: {priority: tickets}}             in_flight {priority: requests}
    times      [{kind group priority count p50_s p95_s p99_s}], kinds "waited" and "answered"
    caches     {tier: {hits misses bytes limit_bytes}}  socket    {state age_s markets received reconnects …}
    store      {path bytes files …}                     banned_s  seconds        last_error  text

The static page and the widget are one HTML, in which all text is escaped. The browser is sent the whole when a card
changed, and redraws those that did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from html import escape
from typing import Any, Final

from backbone.api.notebook.progress import duration_text
from backbone.api.notebook.table import age_text
from backbone.api.notebook.view import View, aligned, cell_html, make_widget
from backbone.clock import Clock
from backbone.model import Priority

__all__ = ["Dashboard", "dashboard_cards"]

_PRIORITIES: Final = tuple(priority.value for priority in Priority)
Cell = str | tuple[str, str]
"""A text; with a class where it is not its column's: ``"bb-warn"``, ``"number bb-bad"``, or ``"bar"`` (a share)."""
Card = tuple[str, list[list[Cell]]]
"""A title and rows of cells; the first row is the head. The first column has texts, the others have numbers."""


def bytes_text(count: float) -> str:
    """A size to be read at a glance.

    >>> [bytes_text(n) for n in (0, 999, 123_456, 1_300_000_000)]
    ['0 B', '999 B', '123 kB', '1.30 GB']
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            scaled = count / unit
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f} {name}"
    return f"{count:.0f} B"


def time_text(seconds: float) -> str:
    """A latency to be read at a glance.

    >>> [time_text(s) for s in (0.00042, 0.0312, 2.5, float("nan"))]
    ['0.4 ms', '31 ms', '2.5 s', '–']
    """
    if not math.isfinite(seconds):
        return "–"
    if seconds < 0.01:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def dashboard_cards(snapshot: Mapping[str, Any]) -> list[Card]:
    """The cards of a snapshot, in order, those left out that it has nothing for."""
    cards = [
        ("Budget per group", _quota(snapshot.get("quota") or {})),
        ("Queue", _queue(snapshot.get("queued") or {}, snapshot.get("in_flight") or {})),
        ("Latency", _latency(snapshot.get("times") or ())),
        ("Cache", _caches(snapshot.get("caches") or {})),
        ("Live socket", _facts(snapshot.get("socket") or {})),
        ("Store", _facts(snapshot.get("store") or {})),
    ]
    return [(title, rows) for title, rows in cards if len(rows) > 1]


def _n(value: float) -> str:
    return f"{value:,.0f}"


def _quota(groups: Mapping[str, Mapping[str, Any]]) -> list[list[Cell]]:
    rows: list[list[Cell]] = [["group", ("", ""), "used", "free", "refused"]]
    for name, group in groups.items():
        limit, used = group.get("limit", 0), group.get("used", 0)
        share = f"{min(1.0, used / limit) if limit else 0:.0%}", "bar"
        if group.get("stopped_s", 0) > 0:
            share = f"stopped {duration_text(group['stopped_s'])}", "bb-warn"
        refused = group.get("refused", 0)
        refusals: Cell = (_n(refused), "number bb-bad") if refused else _n(refused)
        rows.append([name, share, f"{used:.0f}/{limit:.0f}", _n(group.get("free", 0)), refusals])
    return rows


def _queue(queued: Mapping[str, Mapping[str, int]], in_flight: Mapping[str, int]) -> list[list[Cell]]:
    if not queued and not in_flight:
        return []
    rows: list[list[Cell]] = [["", *_PRIORITIES]]
    for name, depths in [*queued.items(), ("in flight", in_flight)]:
        rows.append([name, *(_n(depths.get(priority, 0)) for priority in _PRIORITIES)])
    return rows


def _latency(times: Iterable[Mapping[str, Any]]) -> list[list[Cell]]:
    rows: list[list[Cell]] = [["", "p50", "p95", "p99", "count"]]
    for record in times:
        if record.get("group") or not record.get("priority") or not record.get("count"):
            continue  # one line for each kind and priority is what fits; the rest is in metrics()
        spent = (time_text(record.get(f"p{q}_s", math.nan)) for q in (50, 95, 99))
        rows.append([f"{record['kind']}, {record['priority']}", *spent, _n(record["count"])])
    return rows


def _caches(tiers: Mapping[str, Mapping[str, Any]]) -> list[list[Cell]]:
    rows: list[list[Cell]] = [["tier", "hit rate", "hits", "misses", "size"]]
    for name, tier in tiers.items():
        hits, misses = tier.get("hits", 0), tier.get("misses", 0)
        rate = f"{hits / (hits + misses):.0%}" if hits + misses else "–"
        size = bytes_text(tier["bytes"]) if "bytes" in tier else "–"
        if tier.get("limit_bytes"):
            size += f" of {bytes_text(tier['limit_bytes'])}"
        rows.append([name, rate, _n(hits), _n(misses), size])
    return rows


def _facts(facts: Mapping[str, Any]) -> list[list[Cell]]:
    """Names and values, without a head; sizes and ages read as such."""
    rows: list[list[Cell]] = [[]]
    for name, value in facts.items():
        if name.endswith("_s") or name == "age":
            label, text = name.removesuffix("_s"), age_text(math.nan if value is None else float(value))
        elif name == "bytes" or name.endswith("_bytes"):
            label, text = name.replace("bytes", "size"), bytes_text(float(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            label, text = name, f"{value:,}"
        else:
            label, text = name, str(value)
        rows.append([label.replace("_", " "), text])
    return rows


def _line(snapshot: Mapping[str, Any], problem: str) -> tuple[str, str, str]:
    """The state line: level, what it says, the small print."""
    title = str(snapshot.get("title", ""))
    if problem:
        return ("off" if problem in ("stopped", "closed") else "bad"), problem, title
    state: Mapping[str, Any] = snapshot.get("state") or {}
    banned = float(snapshot.get("banned_s") or 0)
    if banned > 0:
        return "bad", f"blocked by the venue for {duration_text(banned)}", title
    error = str(snapshot.get("last_error") or "")
    note = " · ".join(filter(None, (title, f"last error: {error}" if error else "")))
    return str(state.get("level", "ok")), str(state.get("text", "")) or "running", note


class Dashboard(View):
    """The dashboard as a view on `snapshot`; it shows itself in a notebook and updates in place."""

    period_s = 0.5

    def __init__(self, snapshot: Callable[[], Mapping[str, Any]], *, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self._snapshot = snapshot
        self._data: Mapping[str, Any] = {}

    def __repr__(self) -> str:
        return f"Dashboard({_line(self._data, self.problem)[1]})"

    def text(self) -> str:
        """Every card as aligned text."""
        _, says, note = _line(self._data, self.problem)
        lines = aligned([[" · ".join(filter(None, (says, note)))]], [False])
        for title, rows in dashboard_cards(self._data):
            cells = [[cell if isinstance(cell, str) else cell[0] for cell in row] for row in rows if row]
            table = aligned(cells, [False, *[True] * (len(cells[0]) - 1)])
            lines += ["", title, *(f"  {line}" for line in table)]
        return "\n".join(lines)

    def html(self) -> str:
        """Every card as a static table."""
        return f'<div style="{_STATIC}">{self._parts_html()}</div>'

    def _parts_html(self) -> str:
        """The state line and a table a card, which read with their styles stripped."""
        level, says, note = _line(self._data, self.problem)
        line = (
            f'<div class="bb-line" style="width:100%"><span class="bb-dot" data-level="{escape(level)}"></span> '
            f'<b class="bb-state">{escape(says)}</b> <span class="bb-note">{escape(note)}</span></div>'
        )
        return line + "".join(_card_html(title, rows) for title, rows in dashboard_cards(self._data))

    def _pull(self) -> None:
        self._data = self._snapshot()

    def _show(self, *, whole: bool = False) -> None:
        self._widget.state = {"html": self._parts_html()}  # which sends nothing where it is the same

    def _build(self) -> Any:
        files = "presence.js", "dashboard.js", "theme.css", "dashboard.css"
        return make_widget("Dashboard", *files, state={"html": self._parts_html()})


_STATIC: Final = "display:flex;flex-wrap:wrap;gap:12px 20px;font-variant-numeric:tabular-nums"


def _card_html(title: str, rows: list[list[Cell]]) -> str:
    lines = [
        "".join(_cell_html("td" if i else "th", cell, "number" if at else "") for at, cell in enumerate(row))
        for i, row in enumerate(rows)
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines if line)
    return f'<div class="bb-card"><b>{escape(title)}</b><table cellpadding="4" style="margin:0">{body}</table></div>'


def _cell_html(tag: str, cell: Cell, kind: str) -> str:
    text, kind = (cell, kind) if isinstance(cell, str) else cell
    text = escape(text)
    is_bar = kind == "bar"
    return cell_html(tag, f'<div class="bb-bar"><div style="width:{text}">{text}</div></div>' if is_bar else text, kind)
