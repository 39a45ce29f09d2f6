"""A job's progress: how it reads, how it ends, who may cancel."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest

from backbone.api.notebook.progress import JobProgress, JobView, job_view
from backbone.coordinator.candles.pending import Progress


def view(**changes: Any) -> JobView:
    reached = datetime(2025, 8, 22, 9, tzinfo=ZoneInfo("Asia/Seoul"))
    return replace(JobView("running", 12, 2400, 0.25, reached, 9.6, 3.75, 1.25), **changes)


def shown(label: str, view: JobView) -> JobProgress:
    return JobProgress(label, lambda: view, lambda: None)


class Job:
    """A job that the test moves on."""

    def __init__(self) -> None:
        self.view = view()
        self.pulls = 0
        self.cancelled = 0

    def __call__(self) -> JobView:
        self.pulls += 1
        return self.view

    def cancel(self) -> None:
        self.cancelled += 1
        self.view = view(state="cancelled")


def test_job_view_shows_the_job_s_own_progress() -> None:
    """The time reached is in the reader's zone; a job that had nothing to do is wholly done."""
    now = Progress(50, 200, 12, 2400, 1_755_820_800_000_000, elapsed_s=1.25)
    assert job_view(now, "Asia/Seoul") == view()
    assert job_view(msgspec.structs.replace(now, total_slots=0), "UTC").fraction == 1.0


def test_text_shows_time_reached_rate_and_eta() -> None:
    """One line says how far, in the reader's zone, how fast and how long still."""
    text = shown("KRW-BTC 1m", view()).text()
    assert " 25% running · 12 pages · 2,400 rows · reached 2025-08-22 09:00 · 9.6 pages/s · 4s to go" in text
    assert "\n" not in text
    assert str(view()) == "running, 25%, 12 pages, 2,400 rows, reached 2025-08-22 09:00, 9.6 pages/s, 4s to go"


def test_text_leaves_out_what_is_not_known_or_over() -> None:
    """Before there is a rate nothing is foretold, and a finished job promises nothing."""
    assert "to go" not in shown("KRW-BTC 1m", view(eta_s=None)).text()
    assert shown("KRW-BTC 1m", view(state="done")).text().endswith("2,400 rows · reached 2025-08-22 09:00")


def test_a_share_is_rounded_down() -> None:
    """A job that is almost done does not show 100 %."""
    assert " 99% " in shown("KRW-BTC 1m", view(fraction=0.9995)).text()


def test_html_escapes_foreign_text() -> None:
    """Foreign text ends as text."""
    html = shown("<b>x", view(state="<i>")).html()
    assert "<b>x" not in html
    assert "<i>" not in html


def test_finished_job_is_shown_as_it_ended_and_pulled_no_more() -> None:
    """The last state stays, the button goes, nothing is asked again."""
    job = Job()
    progress = JobProgress("KRW-BTC 1m", job, job.cancel)
    box = progress.widget
    bar = progress._parts["bar"]
    assert (bar.value, bar.bar_style) == (0.25, "")
    job.view = view(state="done", fraction=1.0)
    progress.refresh(force=True)
    pulls = job.pulls
    assert not progress.refresh(force=True)
    assert job.pulls == pulls
    assert (bar.value, bar.bar_style) == (1.0, "success")
    assert progress._parts["cancel"].layout.display == "none"
    assert progress.is_closed
    assert repr(progress) == "JobProgress(KRW-BTC 1m, done, 100%, 2,400 rows)"
    box.close()


def test_cancel_button_calls_the_job_once_and_shows_its_end() -> None:
    """The button cancels, is disabled, and the view says that it was."""
    job = Job()
    progress = JobProgress("KRW-BTC 1m", job, job.cancel)
    box = progress.widget
    progress._parts["cancel"].click()
    assert job.cancelled == 1
    assert progress._parts["cancel"].disabled
    assert progress._parts["bar"].bar_style == "warning"
    assert progress.is_closed
    box.close()


def test_failed_job_keeps_where_it_stopped() -> None:
    """A failure is red, at the share it reached."""
    job = Job()
    job.view = view(state="failed")
    progress = JobProgress("KRW-BTC 1m", job, job.cancel)
    box = progress.widget
    assert (progress._parts["bar"].value, progress._parts["bar"].bar_style) == (0.25, "danger")
    box.close()


@pytest.mark.parametrize("state", ["done", "incomplete", "failed", "cancelled"])
def test_every_end_of_a_job_is_an_end(state: str) -> None:
    """Whatever way a job ended, nothing more is pulled."""
    job = Job()
    job.view = view(state=state)
    progress = JobProgress("KRW-BTC 1m", job, job.cancel)
    progress.refresh()
    assert progress.is_closed


def test_running_job_is_kept_alive_seen_or_not() -> None:
    """A job's view is refreshed to its end, whoever looks."""
    job = Job()
    progress = JobProgress("KRW-BTC 1m", job, job.cancel)
    progress._ticks = 10**9
    assert progress.is_watched()
