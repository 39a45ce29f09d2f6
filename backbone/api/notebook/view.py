"""What every view shares: who refreshes it, how often, and how long it lives.

A view pulls: `refresh` asks its source for plain data and sends the browser what changed. It is called by the
kernel's own event loop (`tick`, by a chain of timers, no thread) or by whoever waits in the foreground,
never by the thread that owns the socket or a worker. Ten refreshes a second are the most, and never more than
a twentieth of a core.

Lifetime: the browser's half says when it appears and disappears. A view is kept alive while a page shows it;
one that no page shows is not refreshed, and one without a reference either is dropped, together with what it
shows. The widget is made on first display.

The lock guards one refresh against another; everything else happens on the kernel's side.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from backbone.clock import Clock, SystemClock
from backbone.errors import ClosedError, InputError, StreamClosedError

__all__ = ["View", "aligned", "cell_html", "check_colours", "in_kernel", "make_widget", "state_line"]

_log = logging.getLogger(__name__)
_STATIC = Path(__file__).parent / "static"
_GRACE_TICKS = 300  # half a minute for the browser to say that it shows the view
_UNSEEN_TICKS = 3000  # a browser that said nothing for five minutes of a running loop is gone
_SHARE = 0.05  # of one core, at most
_SLOWEST_S = 5.0


class View:
    """Base of the views. A subclass says how to `_pull`, `_show` and `_build`, and renders `text` and `html`."""

    period_s = 0.1
    """Seconds between two refreshes, at least."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.problem = ""
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._last_s = float("-inf")
        self._closed = False
        self._widget: Any = None
        self._seen: dict[str, int] = {}  # the browser's views, and the tick of each one's last message
        self._is_ticking = False
        self._ticks = 0
        self._failures = 0
        self._costs: deque[float] = deque(maxlen=5)  # the least of them: a busy machine makes any one look dear

    # what a subclass says

    def _pull(self) -> None:
        """Ask the source."""
        raise NotImplementedError

    def _show(self, *, whole: bool = False) -> None:
        """Send the widget what changed. `whole`: a browser view has just appeared and has seen no change so far."""
        raise NotImplementedError

    def _build(self) -> Any:
        """Make the widget, with the whole state in it."""
        raise NotImplementedError

    def text(self) -> str:
        """The view as plain text of several lines."""
        raise NotImplementedError

    def html(self) -> str:
        """The view as static HTML, all foreign text escaped."""
        raise NotImplementedError

    # what everybody uses

    @property
    def is_closed(self) -> bool:
        """Whether it will never change again."""
        return self._closed

    @property
    def widget(self) -> Any:
        """The ipywidgets half, to be put into a layout: ``VBox([table.widget, chart.widget])``. Made on first use.

        Raises ImportError where ipywidgets or anywidget is missing; the static faces need neither.
        """
        if self._widget is None:
            self.refresh(force=True)
            try:
                self._widget = self._build()
            except ImportError as exc:
                raise ImportError(f"widgets need two packages: pip install ipywidgets anywidget ({exc})") from exc
            self._listen(self._widget)
            self._start()
        return self._widget

    def refresh(self, *, force: bool = False) -> bool:
        """Pull now and send what changed; False where the last time was too short ago, or the view is closed.

        Errors of the source are raised to the caller.
        """
        if self._closed or not self._lock.acquire(blocking=False):
            return False
        try:
            now = self._clock.monotonic()
            if not force and now - self._last_s < 0.9 * self.period_s:
                return False
            self._last_s = now
            self._pull()
            self.problem = ""
            self.show_problem()
        finally:
            self._lock.release()
        return True

    def close(self, reason: str = "stopped") -> None:
        """Stop refreshing. What is shown stays, marked with the reason."""
        if self._closed:
            return
        self._closed = True
        self.problem = reason
        self.show_problem()

    def show_problem(self) -> None:
        """Bring the widget, if there is one, to the present: what was pulled last, and `problem` on the state line."""
        if self._widget is not None:
            self._show()

    def _listen(self, widget: Any) -> None:
        me = weakref.ref(self)

        def on_message(_: Any, content: Any, __: Any) -> None:
            view = me()
            if view is not None and isinstance(content, Mapping):
                view.on_message(content)

        widget.on_msg(on_message)

    def on_message(self, content: Mapping[str, Any]) -> None:
        """Note what a browser reported: that it shows the view, or no longer does."""
        who = str(content.get("v", ""))[:64]
        if content.get("t") == "gone":
            self._seen.pop(who, None)
        elif content.get("t") == "seen":
            is_new = who not in self._seen
            self._seen[who] = self._ticks
            if is_new and self._widget is not None:
                self._show(whole=True)

    def is_watched(self) -> bool:
        """Whether a browser shows it, or may not have had the time to say so."""
        self._seen = {who: at for who, at in self._seen.items() if self._ticks - at <= _UNSEEN_TICKS}
        return bool(self._seen) or self._ticks < _GRACE_TICKS

    # who refreshes it

    def _start(self) -> None:
        """Refresh from the running loop from now on; where there is none, whoever shows the view refreshes it."""
        if self._is_ticking or self._closed:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._is_ticking = True
        loop.call_later(self.period_s, _run, loop, weakref.ref(self), self._widget, self)

    def tick(self) -> float | None:
        """Refresh if somebody looks; the seconds until the next tick, None after the last one.

        This is the top of the loop: whatever fails is shown on the view, logged once, and tried again.
        """
        self._ticks += 1
        began = self._clock.monotonic()
        try:
            if self.is_watched():
                self.refresh()
                self._failures = 0
        except ClosedError:
            self.close("closed")
        except StreamClosedError as error:
            self.close(str(error) or "stopped")
        except Exception as error:  # noqa: BLE001
            self.problem = f"{type(error).__name__}: {error}"
            self.show_problem()
            if not self._failures:
                _log.warning("view.refresh_failed view=%s", type(self).__name__, exc_info=error)
            self._failures = min(self._failures + 1, 6)
        if self._closed:
            return None
        self._costs.append(self._clock.monotonic() - began)
        return min(max(self.period_s * 2.0**self._failures, min(self._costs) / _SHARE), _SLOWEST_S)

    # how it shows itself

    def __dir__(self) -> list[str]:
        return sorted(name for name in object.__dir__(self) if not name.startswith("_"))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **_: Any) -> Any:
        """Every face at once: the front end takes the best one it can show."""
        live: dict[str, Any] = {}
        if in_kernel():
            try:
                bundle = self.widget._repr_mimebundle_()
            except ImportError as exc:  # a kernel that has no widgets: the static faces are left
                _log.warning("view.no_widgets view=%s %s", type(self).__name__, exc)
            else:
                live = dict(bundle[0] if isinstance(bundle, tuple) else bundle or {})
                self._start()  # where the widget was made off the loop and is shown on it
        if self._widget is None:
            self.refresh()
        return {**live, "text/html": self.html(), "text/plain": self.text()}

    def _repr_html_(self) -> str:
        return self.html()


def _run(loop: asyncio.AbstractEventLoop, known: weakref.ref[View], widget: Any, _held: View | None) -> None:
    """One tick of a chain of timers. A timer holds its view only while that is watched, so that a view without a page
    or a reference can be collected; then its widget is closed, on the loop.
    """
    view = known()
    if view is None:
        widget.close()
    elif not view.is_closed and (delay := view.tick()) is not None:
        loop.call_later(delay, _run, loop, known, widget, view if view.is_watched() else None)


@cache
def _widget_class(name: str, files: tuple[str, ...]) -> Any:
    """One anywidget class a view: anywidget tells style sheets apart by the class's name."""
    import anywidget
    import traitlets

    def joined(ending: str) -> str:
        return "\n".join((_STATIC / file).read_text(encoding="utf-8") for file in files if file.endswith(ending))

    return type(
        name,
        (anywidget.AnyWidget,),
        {
            "__module__": __name__,
            "_esm": joined(".js"),
            "_css": joined(".css"),
            "state": traitlets.Dict().tag(sync=True),
            "data": traitlets.Bytes().tag(sync=True),
        },
    )


def make_widget(name: str, *files: str, **traits: Any) -> Any:
    """An anywidget of the given static files, with two synced traits: ``state`` (a dict) and ``data`` (bytes)."""
    return _widget_class(name, files)(**traits)


def aligned(lines: Sequence[Sequence[str]], is_right: Sequence[bool]) -> list[str]:
    """Rows of cells as lines of text whose columns stand below each other; without control characters, which a terminal
    would obey."""
    rows = [["".join(c if c.isprintable() else "?" for c in cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_right, strict=True)
        ).rstrip()
        for row in rows
    ]


def cell_html(tag: str, html: str, kind: str = "", style: str = "") -> str:
    """A cell of a table that reads with its styles stripped. `kind` is its class; a number stands on the right."""
    side = "right" if kind.startswith("number") else "left"
    return f'<{tag} class="{kind}" align="{side}" style="text-align:{side};{style}">{html}</{tag}>'


def state_line(state: str, note: str, problem: str) -> list[str]:
    """A live view's state line: what it says, how it is coloured (``"ok"``, ``"warn"``, ``"bad"``, or ``"off"`` where
    nothing will change), and the small print.
    """
    if problem in ("stopped", "closed"):
        return [problem, "off", note]
    known = {"streaming": "ok", "live": "ok", "": "off", "closed": "off", "stopped": "off"}
    level = known.get(state.partition(" ")[0], "warn")
    if problem:
        is_over = state in ("stopped", "closed")
        return [state or "stopped", "off" if is_over else "bad", " · ".join(filter(None, (problem, note)))]
    return [state, level, note]


def check_colours(colours: str) -> None:
    """Raise `InputError` for colours that no view has."""
    if colours not in ("korean", "western"):
        raise InputError("colours", colours, "'korean' (rise red, fall blue) or 'western' (rise green, fall red)")


def in_kernel() -> bool:
    """Whether a notebook front end may be listening: only then is a widget made."""
    if "IPython" not in sys.modules:
        return False
    get_ipython: Callable[[], Any] = sys.modules["IPython"].get_ipython
    return getattr(get_ipython(), "kernel", None) is not None
