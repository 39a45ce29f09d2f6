"""A job's progress: how far, how fast, until when; as a bar with a button to cancel, as HTML, or as one line.

What is decided here: how the numbers read and when the view is at its end. A finished job is shown once more
as it ended, and never pulled again. While the job runs its view is kept alive, seen or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any, Final, NamedTuple

from backbone.api.arguments import in_zone
from backbone.api.notebook.view import PERIOD_S, View
from backbone.clock import Clock

__all__ = ["JobProgress", "ProgressView", "duration_text", "progress_html", "progress_text"]

_ENDS: Final = {"done": "success", "incomplete": "warning", "failed": "danger", "cancelled": "warning"}
_WIDTH = 28  # of the text's bar


class ProgressView(NamedTuple):
    """A job at an instant.

    ``done`` of ``total`` is what the bar shows, in any one unit; ``total`` 0 means that it is not known yet.
    ``state``: ``"queued"``, ``"running"``, ``"done"``, ``"incomplete"``, ``"failed"`` or ``"cancelled"``.
    ``rate``: pages a second; ``eta_s``: seconds to go. NaN where a number is not known.
    """

    label: str
    state: str
    done: float
    total: float
    pages: int = 0
    pages_total: int = 0
    rows: int = 0
    reached_us: int | None = None
    rate: float = math.nan
    eta_s: float = math.nan
    note: str = ""

    @property
    def share(self) -> float:
        """0 to 1."""
        if self.state == "done":
            return 1.0
        return min(1.0, max(0.0, self.done / self.total)) if self.total > 0 else 0.0

    @property
    def is_over(self) -> bool:
        """Whether it will change no more."""
        return self.state in _ENDS


def duration_text(seconds: float) -> str:
    """A duration to be read at a glance.

    >>> [duration_text(s) for s in (0.4, 42.0, 125.0, 7500.0, float("nan"))]
    ['0s', '42s', '2m 05s', '2h 05m', '–']
    """
    if not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def _facts(view: ProgressView, zone: str) -> list[str]:
    of = f"/{view.pages_total:,}" if view.pages_total else ""
    facts = [f"{view.pages:,}{of} pages", f"{view.rows:,} rows"]
    if view.reached_us is not None:
        facts.append(f"reached {in_zone(view.reached_us, zone):%Y-%m-%d %H:%M}")
    if not view.is_over:
        if math.isfinite(view.rate):
            facts.append(f"{view.rate:.1f} pages/s")
        if math.isfinite(view.eta_s):
            facts.append(f"{duration_text(view.eta_s)} to go")
    if view.note:
        facts.append(view.note)
    return facts


def progress_text(view: ProgressView, zone: str = "Asia/Seoul") -> str:
    """The job as one line.

    >>> progress_text(ProgressView("KRW-BTC 1m", "running", 50, 200, 12, 48, 2_400, None, 9.6, 3.8))
    'KRW-BTC 1m ███████                       25% running · 12/48 pages · 2,400 rows · 9.6 pages/s · 4s to go'
    """
    filled = round(view.share * _WIDTH)
    bar = "█" * filled + " " * (_WIDTH - filled)
    return f"{view.label} {bar} {math.floor(view.share * 100):3d}% " + " · ".join([view.state, *_facts(view, zone)])


def progress_html(view: ProgressView, zone: str = "Asia/Seoul") -> str:
    """The job as a static bar."""
    return (
        f"<div><b>{escape(view.label)}</b> "
        f'<progress value="{view.share:.4f}" max="1" style="width:240px;vertical-align:middle"></progress> '
        f"{math.floor(view.share * 100)}% {escape(view.state)}<br>"
        f'<small style="opacity:.75">{escape(" · ".join(_facts(view, zone)))}</small></div>'
    )


class JobProgress(View):
    """A job's progress as a view on `snapshot`; it shows itself in a notebook, with a button that calls
    `cancel`.

    A job's ``wait`` calls `refresh` between its waits, since a cell that waits keeps the kernel's loop from
    doing it.
    """

    def __init__(
        self,
        snapshot: Callable[[], ProgressView],
        *,
        cancel: Callable[[], object] | None = None,
        zone: str = "Asia/Seoul",
        clock: Clock | None = None,
        period_s: float = PERIOD_S,
    ) -> None:
        super().__init__(clock=clock, period_s=period_s)
        self._snapshot = snapshot
        self._cancel = cancel
        self._zone = zone
        self._view = ProgressView("", "queued", 0, 0)
        self._parts: dict[str, Any] = {}

    def __repr__(self) -> str:
        view = self._view
        return f"JobProgress({view.label}, {view.state}, {math.floor(view.share * 100)}%, {view.rows:,} rows)"

    def is_watched(self, ticks: int) -> bool:
        """Until its end, whoever looks."""
        return True

    def text(self) -> str:
        """The job as one line."""
        return progress_text(self._view, self._zone)

    def html(self) -> str:
        """The job as a static bar."""
        return progress_html(self._view, self._zone)

    def _pull(self) -> None:
        self._view = self._snapshot()
        if self._view.is_over:
            self._closed = True
            if self._refresher is not None:
                self._refresher.stop()

    def _show(self, *, whole: bool = False) -> None:
        """Bring the widgets to the present. A trait that is set to what it was sends nothing."""
        view, parts = self._view, self._parts
        parts["bar"].value = round(view.share, 4)
        parts["bar"].bar_style = "danger" if self.problem else _ENDS.get(view.state, "")
        parts["percent"].value = f"<span>{math.floor(view.share * 100)}%</span>"
        parts["label"].value = _label_html(view)
        facts = [self.problem, *_facts(view, self._zone)] if self.problem else _facts(view, self._zone)
        parts["facts"].value = f'<span style="opacity:.75">{escape(" · ".join(facts))}</span>'
        if view.is_over or self._closed:
            parts["cancel"].layout.display = "none"

    def _build(self) -> Any:
        import ipywidgets as w

        tabular = w.Layout(width="44px")
        button = w.Button(
            description="Cancel",
            icon="stop",
            layout=w.Layout(width="90px"),
            tooltip="Stop; what arrived is kept",
        )
        button.on_click(self._on_cancel)
        if self._cancel is None:
            button.layout.display = "none"
        self._parts = {
            "label": w.HTML(),
            "bar": w.FloatProgress(min=0.0, max=1.0, layout=w.Layout(width="320px", height="18px")),
            "percent": w.HTML(layout=tabular),
            "cancel": button,
            "facts": w.HTML(),
        }
        self._show()
        parts = self._parts
        line = w.HBox(
            [parts["label"], parts["bar"], parts["percent"], button],
            layout=w.Layout(align_items="center", grid_gap="8px"),
        )
        return w.VBox([line, parts["facts"]])

    def _on_cancel(self, button: Any) -> None:
        button.disabled = True
        if self._cancel is not None:
            self._cancel()
        self.refresh(force=True)


def _label_html(view: ProgressView) -> str:
    return f'<b>{escape(view.label)}</b> <span style="opacity:.75">{escape(view.state)}</span>'
