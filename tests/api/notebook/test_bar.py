"""How a job shows itself: one bar, kept true by the loop or by whoever waits, and full at the end."""

from __future__ import annotations

from functools import partialmethod
from typing import Any

import pytest
from tqdm import notebook, std

from backbone import Backbone
from backbone.api.calls.backfill import Job
from backbone.api.notebook import bar as progress


def start(client: Backbone) -> Job:
    job = client.backfill("KRW-BTC", "1h", "2025-08-01", "2025-08-11")
    assert isinstance(job, Job)
    return job


def test_job_shows_the_numbers_of_its_progress(client: Backbone) -> None:
    """The bar of a finished job is full, and says how much came and up to when."""
    job = start(client).wait(progress=False)
    assert "100% done" in job._repr_html_()
    assert "240 rows · reached 2025-08-11 00:00" in job.view().text()
    assert job.view() is job.view()


def test_job_in_a_notebook_is_its_static_bar_too(client: Backbone) -> None:
    """The bundle has HTML and text for pages without a kernel."""
    job = start(client)
    bundle = job._repr_mimebundle_()
    assert "<progress" in bundle["text/html"]
    assert bundle["text/plain"].startswith("KRW-BTC 1h ")
    job.wait(progress=False)


def test_job_waited_for_keeps_its_bar_true_and_shows_no_other(
    client: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`wait` refreshes the bar that is shown, to the end, and adds none of its own."""
    monkeypatch.setattr(progress, "is_watched", lambda: True)
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    job = start(client)
    view = job.view()
    job.wait()
    assert "100% done" in view.html(), "refreshed by the wait alone"
    assert view.is_closed
    assert capsys.readouterr().err == ""


def test_job_without_a_view_waits_with_a_bar(
    client: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a terminal the bar shows the reached time, the rows, the rate and what is left."""
    job = start(client)
    job.wait(progress=True)
    said = capsys.readouterr().err
    assert "KRW-BTC 1h:" in said
    assert "2025-08-11 00:00, 240 rows" in said
    assert "candles/s" in said


def test_job_line_shows_no_time_to_go_once_it_ended(client: Backbone) -> None:
    """`0:00 to go` of a finished job would be noise."""
    job = start(client).wait(progress=False)
    assert "to go" not in repr(job)
    assert "done, 100%" in repr(job)


@pytest.mark.parametrize("kind", [std, notebook])
def test_bar_that_is_switched_off_is_not_missed(
    client: Backbone, kind: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`$TQDM_DISABLE` makes bars of no output, a notebook's too; the job goes on without one."""
    monkeypatch.setattr(std.tqdm, "__init__", partialmethod(std.tqdm.__init__, disable=True))  # as the variable does
    monkeypatch.setattr("tqdm.auto.tqdm", kind.tqdm)
    assert start(client).wait(progress=True).progress.state == "done"
    assert capsys.readouterr() == ("", "")
