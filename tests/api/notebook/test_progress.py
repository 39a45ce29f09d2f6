"""A job's progress: how it reads, how it ends, who may cancel."""

from __future__ import annotations

import math
from typing import Any

import pytest

from backbone.api.notebook.progress import JobProgress, ProgressView, progress_html, progress_text


def view(**changes: Any) -> ProgressView:
    known = ProgressView("KRW-BTC 1m", "running", 50.0, 200.0, 12, 48, 2400, 1_755_820_800_000_000, 9.6, 3.75)
    return known._replace(**changes)


class Job:
    """A job that the test moves on."""

    def __init__(self) -> None:
        self.view = view()
        self.pulls = 0
        self.cancelled = 0

    def __call__(self) -> ProgressView:
        self.pulls += 1
        return self.view

    def cancel(self) -> None:
        self.cancelled += 1
        self.view = view(state="cancelled")


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({}, 0.25),
        ({"total": 0.0}, 0.0),
        ({"done": 900.0}, 1.0),
        ({"done": -1.0}, 0.0),
        ({"state": "done", "done": 0.0, "total": 0.0}, 1.0),
    ],
)
def test_share_is_between_nothing_and_all(changes: dict[str, Any], share: float) -> None:
    """The bar is never beyond its ends, and full once the job is done, even one that had nothing to do."""
    assert view(**changes).share == share


def test_text_tells_time_reached_rate_and_eta() -> None:
    """One line says how far, in the reader's zone, how fast and how long still."""
    text = progress_text(view())
    assert " 25% running · 12/48 pages · 2,400 rows · reached 2025-08-22 09:00 · 9.6 pages/s · 4s to go" in text
    assert "\n" not in text


def test_text_leaves_out_what_is_not_known_or_over() -> None:
    """Unknown rates are not shown as numbers, and a finished job promises nothing."""
    unknown = progress_text(view(rate=math.nan, eta_s=math.inf, pages_total=0, reached_us=None))
    assert unknown.endswith("running · 12 pages · 2,400 rows")
    assert "to go" not in progress_text(view(state="done"))


def test_a_share_is_rounded_down() -> None:
    """A job that is almost done does not claim 100 %."""
    assert " 99% " in progress_text(view(done=199.9))


def test_html_escapes_labels_and_notes() -> None:
    """Foreign text ends as text."""
    html = progress_html(view(label="<b>x", note="<script>", state="<i>"))
    assert "<script" not in html
    assert "<b>x" not in html
    assert "<i>" not in html


def test_finished_job_is_shown_as_it_ended_and_pulled_no_more() -> None:
    """The last state stays, the button goes, nothing is asked again."""
    job = Job()
    progress = JobProgress(job, cancel=job.cancel, period_s=0.0)
    box = progress.widget
    bar = progress._parts["bar"]
    assert (bar.value, bar.bar_style) == (0.25, "")
    job.view = view(state="done", done=200.0)
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
    progress = JobProgress(job, cancel=job.cancel, period_s=0.0)
    box = progress.widget
    progress._parts["cancel"].click()
    assert job.cancelled == 1
    assert progress._parts["cancel"].disabled
    assert progress._parts["bar"].bar_style == "warning"
    assert progress.is_closed
    box.close()


def test_progress_without_cancel_has_no_button() -> None:
    """A job that cannot be cancelled offers no button."""
    progress = JobProgress(Job(), period_s=0.0)
    box = progress.widget
    assert progress._parts["cancel"].layout.display == "none"
    box.close()


def test_failed_job_keeps_where_it_stopped() -> None:
    """A failure is red, with its words, at the share it reached."""
    job = Job()
    job.view = view(state="failed", note="StoreError: disk is full")
    progress = JobProgress(job, period_s=0.0)
    box = progress.widget
    assert (progress._parts["bar"].value, progress._parts["bar"].bar_style) == (0.25, "danger")
    assert "disk is full" in progress._parts["facts"].value
    box.close()


@pytest.mark.parametrize("state", ["done", "incomplete", "failed", "cancelled"])
def test_every_end_of_a_job_is_an_end(state: str) -> None:
    """Whatever way a job ended, nothing more is pulled."""
    job = Job()
    job.view = view(state=state)
    progress = JobProgress(job)
    progress.refresh()
    assert progress.is_closed


def test_running_job_is_kept_alive_seen_or_not() -> None:
    """A job's view is refreshed to its end, whoever looks."""
    assert JobProgress(Job()).is_watched(10**9)
