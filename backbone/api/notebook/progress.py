"""A job's progress: how far, how fast, until when; as a bar with a button to cancel, as HTML, or as one line.

What is decided here: how the numbers read and when the view is at its end. A finished job is shown once more
as it ended, and never pulled again. While the job runs its view is kept alive, seen or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any, Final

from backbone.api.arguments import in_zone
from backbone.api.notebook.view import View
from backbone.clock import Clock
from backbone.coordinator.candles.pending import Progress

__all__ = ["JobProgress", "JobView", "duration_text", "job_view"]

_ENDS: Final = {"done": "success", "incomplete": "warning", "failed": "danger", "cancelled": "warning"}
_WIDTH = 28  # of the text's bar


@dataclass(frozen=True)
class JobView:
    """How far a job is, for people.

    state : ``"running"``, ``"done"``, ``"incomplete"``, ``"failed"`` or ``"cancelled"``.
    pages, rows : what was requested, and what was new in the replies.
    fraction : the part of the candle slots that is had, 0 to 1.
    reached : the time up to which all is stored (client's zone), of the markets that the job has come to, and of all
        its markets once it ended.
    rate, eta_s : pages a second, and seconds to go (None before there is a rate).
    """

    state: str
    pages: int
    rows: int
    fraction: float
    reached: datetime
    rate: float
    eta_s: float | None
    elapsed_s: float

    @property
    def is_over(self) -> bool:
        """Whether it will change no more."""
        return self.state in _ENDS

    def __str__(self) -> str:
        return ", ".join([self.state, f"{self.fraction:.0%}", *_facts(self)])


def job_view(now: Progress, zone: str) -> JobView:
    """A job's progress for people in `zone`."""
    reached = in_zone(now.reached_us, zone)
    return JobView(now.state, now.pages, now.rows, now.share, reached, now.pages_per_s, now.eta_s, now.elapsed_s)


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


def _facts(view: JobView) -> list[str]:
    facts = [f"{view.pages:,} pages", f"{view.rows:,} rows", f"reached {view.reached:%Y-%m-%d %H:%M}"]
    if not view.is_over:
        facts.append(f"{view.rate:.1f} pages/s")
        if view.eta_s is not None:
            facts.append(f"{duration_text(view.eta_s)} to go")
    return facts


class JobProgress(View):
    """A job's progress as a view on `snapshot`; it shows itself in a notebook, with a button that calls `cancel`.

    A job's ``wait`` calls `refresh` between its waits, since a cell that waits keeps the kernel's loop from doing it.
    """

    def __init__(
        self,
        label: str,
        snapshot: Callable[[], JobView],
        cancel: Callable[[], object],
        *,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(clock)
        self._label = label
        self._snapshot = snapshot
        self._cancel = cancel
        self._view = snapshot()
        self._parts: dict[str, Any] = {}

    def __repr__(self) -> str:
        view = self._view
        return f"JobProgress({self._label}, {view.state}, {math.floor(view.fraction * 100)}%, {view.rows:,} rows)"

    def is_watched(self) -> bool:
        """Until the job ends, shown or not."""
        return True

    def text(self) -> str:
        """The job as one line.

        >>> view = JobView("cancelled", 12, 2_400, 0.25, datetime(2025, 8, 22, 9), 9.6, None, 1.3)
        >>> JobProgress("KRW-BTC 1m", lambda: view, print).text()
        'KRW-BTC 1m ███████                       25% cancelled · 12 pages · 2,400 rows · reached 2025-08-22 09:00'
        """
        view = self._view
        filled = round(view.fraction * _WIDTH)
        bar = "█" * filled + " " * (_WIDTH - filled)
        return f"{self._label} {bar} {math.floor(view.fraction * 100):3d}% " + " · ".join([view.state, *_facts(view)])

    def html(self) -> str:
        """The job as a static bar."""
        view = self._view
        return (
            f"<div><b>{escape(self._label)}</b> "
            f'<progress value="{view.fraction:.4f}" max="1" style="width:240px;vertical-align:middle"></progress> '
            f"{math.floor(view.fraction * 100)}% {escape(view.state)}<br>"
            f'<small style="opacity:.75">{escape(" · ".join(_facts(view)))}</small></div>'
        )

    def _pull(self) -> None:
        self._view = self._snapshot()
        if self._view.is_over:
            self._closed = True

    def _show(self, *, whole: bool = False) -> None:
        """Bring the widgets to the present. A trait that is set to what it was sends nothing."""
        view, parts = self._view, self._parts
        parts["bar"].value = round(view.fraction, 4)
        parts["bar"].bar_style = "danger" if self.problem else _ENDS.get(view.state, "")
        parts["percent"].value = f"<span>{math.floor(view.fraction * 100)}%</span>"
        parts["label"].value = f'<b>{escape(self._label)}</b> <span style="opacity:.75">{escape(view.state)}</span>'
        facts = [self.problem, *_facts(view)] if self.problem else _facts(view)
        parts["facts"].value = f'<span style="opacity:.75">{escape(" · ".join(facts))}</span>'
        if view.is_over or self._closed:
            parts["cancel"].layout.display = "none"

    def _build(self) -> Any:
        import ipywidgets as w

        tooltip = "Stop; what arrived is kept"
        button = w.Button(description="Cancel", icon="stop", layout=w.Layout(width="90px"), tooltip=tooltip)
        button.on_click(self._on_cancel)
        line = {
            "label": w.HTML(),
            "bar": w.FloatProgress(min=0.0, max=1.0, layout=w.Layout(width="320px", height="18px")),
            "percent": w.HTML(layout=w.Layout(width="44px")),
            "cancel": button,
        }
        self._parts = line | {"facts": w.HTML()}
        self._show()
        box = w.HBox([*line.values()], layout=w.Layout(align_items="center", grid_gap="8px"))
        return w.VBox([box, self._parts["facts"]])

    def _on_cancel(self, button: Any) -> None:
        button.disabled = True
        self._cancel()
        self.refresh(force=True)
