"""When a view is refreshed, by whom, and how long it lives."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import sys
import threading
import weakref
from typing import Any

import pytest

from backbone.api.notebook import view as view_module
from backbone.api.notebook.view import View, in_kernel
from backbone.errors import StreamClosedError, UnreachableError
from backbone.testing import ManualClock


class FakeWidget:
    """Stands for the browser's half."""

    def __init__(self) -> None:
        self.closed = False
        self.handler: Any = None

    def on_msg(self, handler: Any) -> None:
        self.handler = handler

    def close(self) -> None:
        self.closed = True

    def _repr_mimebundle_(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"application/vnd.jupyter.widget-view+json": {"model_id": "m"}, "text/plain": "widget"}, {}

    def sync_clock(self, what: str, who: str = "a") -> None:
        self.handler(self, {"t": what, "v": who}, [])


class Counter(View):
    """A view that counts its pulls."""

    def __init__(self, clock: ManualClock, period_s: float = 0.1) -> None:
        super().__init__(clock)
        self.period_s = period_s
        self.pulls = 0
        self.whole = 0
        self.problems: list[str] = []
        self.error: Exception | None = None

    def _pull(self) -> None:
        self.pulls += 1
        if self.error is not None:
            raise self.error

    def _show(self, *, whole: bool = False) -> None:
        self.whole += whole

    def show_problem(self) -> None:
        self.problems.append(self.problem)

    def _build(self) -> Any:
        return FakeWidget()

    def text(self) -> str:
        return "text"

    def html(self) -> str:
        return "<b>html</b>"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(waits=False)


def run(coroutine: Any) -> Any:
    """`coroutine` on a loop of its own, as a kernel would run it."""
    return asyncio.run(coroutine)


async def ticks(count: int) -> None:
    """Let that many timers of a view with period 0 fire."""
    for _ in range(count):
        await asyncio.sleep(0.001)


def test_refresh_more_often_than_its_period_does_nothing(clock: ManualClock) -> None:
    """A view pulls at most once a period, unless it is forced to."""
    view = Counter(clock)
    assert view.refresh()
    clock.advance(0.05)
    assert not view.refresh()
    assert view.refresh(force=True)
    clock.advance(0.1)
    assert view.refresh()
    assert view.pulls == 3


def test_refresh_by_hand_raises_the_source_s_error(clock: ManualClock) -> None:
    """Whoever refreshes in the foreground gets the failure."""
    view = Counter(clock)
    view.error = UnreachableError("down")
    with pytest.raises(UnreachableError):
        view.refresh()
    view.error = None
    assert view.refresh(force=True)


def test_refresh_of_a_closed_view_does_nothing(clock: ManualClock) -> None:
    """A closed view never pulls again, and says why it stands still."""
    view = Counter(clock)
    view.close("stopped")
    view.close("again")
    assert not view.refresh(force=True)
    assert view.problems == ["stopped"]
    assert view.pulls == 0


def test_refresh_while_another_one_runs_does_nothing(clock: ManualClock) -> None:
    """Two refreshes never overlap: the second one is skipped, it does not wait."""
    view = Counter(clock)
    inside: list[bool] = []
    view._pull = lambda: inside.append(view.refresh(force=True))  # type: ignore[method-assign]
    assert view.refresh()
    assert inside == [False]


def test_view_without_a_running_loop_does_not_refresh_itself(clock: ManualClock) -> None:
    """In a script there is no loop: the view is refreshed by hand, and no thread is started."""
    before = threading.active_count()
    view = Counter(clock, period_s=0.0)
    assert view.widget is not None
    assert threading.active_count() == before

    async def main() -> None:
        await ticks(5)
        assert view.pulls == 1

    run(main())


def test_view_on_a_loop_refreshes_by_itself(clock: ManualClock) -> None:
    """Where a loop runs, showing the view is enough to keep it fresh, on the loop's own thread."""
    where: set[int] = set()

    async def main() -> int:
        view = Counter(clock, period_s=0.0)
        pull = view._pull
        view._pull = lambda: (where.add(threading.get_ident()), pull())[1]  # type: ignore[method-assign]
        view._repr_mimebundle_()
        assert view.widget is not None
        await ticks(10)
        view.close()
        return view.pulls

    assert run(main()) > 2
    assert where == {threading.get_ident()}


def test_view_of_a_closed_view_stops(clock: ManualClock) -> None:
    """Closing a view ends its chain of timers."""

    async def main() -> None:
        view = Counter(clock, period_s=0.0)
        assert view.widget is not None
        await ticks(3)
        view.close()
        seen = view.pulls
        await ticks(5)
        assert view.pulls == seen
        assert view.tick() is None

    run(main())


def test_view_that_a_view_outlives_the_loop_of_leaves_nothing_pending(clock: ManualClock) -> None:
    """The end of the kernel's loop needs no farewell: there is no task to be destroyed."""

    async def main() -> Counter:
        view = Counter(clock, period_s=0.0)
        assert view.widget is not None
        await ticks(2)
        return view

    view = run(main())
    pulls = view.pulls
    gc.collect()
    assert view.pulls == pulls


def test_view_never_spends_more_than_a_twentieth_of_a_core(clock: ManualClock) -> None:
    """A pull that takes 20 ms is repeated after 400 ms, whatever the period says."""
    view = Counter(clock)

    def slow() -> None:
        clock.advance(0.02)

    view._pull = slow  # type: ignore[method-assign]
    assert view.tick() == pytest.approx(0.4)


def test_view_shows_a_failure_and_goes_on(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """A failing source is shown on the view, logged once, asked less often, and shown again when it recovers."""
    view = Counter(clock)
    view.error = UnreachableError("venue is down")
    delays: list[float] = []
    with caplog.at_level(logging.WARNING):
        for _ in range(9):
            clock.advance(10)
            delays.append(view.tick() or math.nan)
    assert len(caplog.records) == 1
    assert view.problems[0] == "UnreachableError: venue is down"
    assert delays[0] < delays[1] < delays[4]
    assert max(delays) <= 6.4
    view.error = None
    clock.advance(10)
    assert view.tick() == pytest.approx(0.1)
    assert view.problem == ""


def test_view_ends_with_the_stream(clock: ManualClock) -> None:
    """A stream that was closed closes the view; its words stay on it."""
    view = Counter(clock)
    view.error = StreamClosedError("the venue said goodbye")
    assert view.tick() is None
    assert view.is_closed
    assert view.problem == "the venue said goodbye"


def test_view_that_nobody_sees_is_not_refreshed(clock: ManualClock) -> None:
    """After the last browser view went, nothing is pulled until another one appears."""
    view = Counter(clock)
    widget = view.widget
    view._ticks = view_module._GRACE_TICKS
    widget.sync_clock("seen")
    clock.advance(1)
    view.tick()
    pulls = view.pulls
    assert view.is_watched()
    widget.sync_clock("gone")
    clock.advance(1)
    view.tick()
    assert view.pulls == pulls
    assert not view.is_watched()
    widget.sync_clock("seen", "b")
    clock.advance(1)
    view.tick()
    assert view.pulls == pulls + 1


def test_view_whose_browser_sends_nothing_counts_as_unseen(clock: ManualClock) -> None:
    """A browser that was closed without a farewell is forgotten after some minutes of ticks."""
    view = Counter(clock)
    view.widget.sync_clock("seen")
    view._ticks = view_module._UNSEEN_TICKS
    assert view.is_watched()
    view._ticks += 1
    assert not view.is_watched()


def test_view_sends_the_whole_state_to_each_new_browser_view_once(clock: ManualClock) -> None:
    """A view that appears gets everything; the heartbeat of a known one does not send it again."""
    view = Counter(clock)
    for who in ("a", "a", "b", "a"):
        view.widget.sync_clock("seen", who)
    assert view.whole == 2


def test_view_ignores_what_is_no_message(clock: ManualClock) -> None:
    """Whatever a browser sends, the kernel's side takes no harm."""
    view = Counter(clock)
    for content in (None, 7, {}, {"t": "seen"}, {"t": "gone", "v": None}, {"t": "x" * 10_000, "v": []}):
        view.widget.handler(view.widget, content, [])
    assert view.pulls == 1


def test_view_that_is_watched_is_kept_alive_and_dropped_afterwards(clock: ManualClock) -> None:
    """A shown view lives while somebody sees it, even if no name holds it; then it is collected and its
    widget closed."""

    async def main() -> None:
        view = Counter(clock, period_s=0.0)
        widget = view.widget
        view._ticks = view_module._GRACE_TICKS
        widget.sync_clock("seen")
        await ticks(3)
        ghost = weakref.ref(view)
        del view
        gc.collect()
        await ticks(3)
        assert ghost() is not None
        widget.sync_clock("gone")
        await ticks(3)
        gc.collect()
        await ticks(3)
        assert ghost() is None
        assert widget.closed

    run(main())


def test_bundle_outside_a_kernel_has_no_widget(clock: ManualClock) -> None:
    """In a script or a terminal no widget is made: text and static HTML are."""
    view = Counter(clock)
    assert view._repr_mimebundle_() == {"text/html": "<b>html</b>", "text/plain": "text"}
    assert view._repr_html_() == "<b>html</b>"
    assert view._widget is None
    assert view.pulls == 1


def test_bundle_in_a_kernel_has_every_face(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook the widget comes with its static faces, for the pages that cannot run it."""
    monkeypatch.setattr(view_module, "in_kernel", lambda: True)
    bundle = Counter(clock)._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"}
    assert bundle["text/plain"] == "text"


def test_a_script_is_no_kernel() -> None:
    """Without a kernel behind IPython nobody listens."""
    assert not in_kernel()


def test_importing_the_views_imports_no_widget_library() -> None:
    """ipywidgets, anywidget and IPython are imported when a view is shown, not before."""
    import subprocess

    code = (
        "import sys, backbone.api.notebook.table, backbone.api.notebook.chart, backbone.api.notebook.progress,"
        " backbone.api.notebook.dashboard, backbone.api.calls.prometheus\n"
        "heavy = {'ipywidgets', 'anywidget', 'IPython', 'pandas', 'polars', 'prometheus_client', 'asyncio.tasks'}\n"
        "print(sorted(heavy & set(sys.modules) - {'asyncio.tasks'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
