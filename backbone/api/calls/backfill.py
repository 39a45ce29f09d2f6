"""`Job`: a long fetch in the background, with its progress, its finished sections and its end.

In a notebook a job shows itself as a bar that fills by itself. While a cell waits the kernel's own loop stands still,
so `Job.wait` refreshes that bar between its waits, and shows no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from msgspec.structs import replace

from backbone.api import frames as shaping
from backbone.api.arguments import TimeLike, parse_priority, parse_whole
from backbone.api.calls.candles import candle_facts, incomplete_error, unlisted_error
from backbone.api.notebook.bar import Bar
from backbone.api.notebook.progress import JobProgress, JobView, job_view
from backbone.api.session import Session
from backbone.candle_table import rows_inside
from backbone.coordinator.candles.derived import base_range, folded
from backbone.coordinator.candles.jobs import CandleJob
from backbone.coordinator.candles.ranges import Range
from backbone.coordinator.candles.reader import CandleAnswer
from backbone.errors import IncompleteError, InputError, RejectedError
from backbone.model import Priority, Span
from backbone.storage.coverage import SpanSet
from backbone.timeframe import Timeframe, parse_timeframe

__all__ = ["Job", "backfill", "parse_long"]

SECTIONS_AHEAD = 8


class Job:
    """Candles on their way into the store. Made by `Backbone.backfill`; safe to share between threads.

    The job goes on whether or not anybody waits for it, as long as it or its client is referred to; each finished page
    is kept whatever happens.
    """

    def __init__(
        self, session: Session, job: CandleJob, *, many: bool, frames: str, timeframe: Timeframe | None = None
    ) -> None:
        self._session = session
        self._job = job
        self._timeframe = timeframe or job.timeframe  # a derived one is folded from the job's
        self._many = many
        self._frames = frames
        self._view: JobProgress | None = None

    @property
    def state(self) -> str:
        """``running``, ``done``, ``incomplete``, ``failed`` or ``cancelled``."""
        return self._job.state

    @property
    def progress(self) -> JobView:
        """Where it stands now."""
        return job_view(self._job.progress, self._session.tz)

    def sections(self, *, ahead: int = SECTIONS_AHEAD) -> Iterator[Any]:
        """Finished sections as frames, oldest first, market by market, while later ones still download.

        Together they are exactly the whole. The job runs at most `ahead` sections (at most ten thousand candles each)
        before the one taken last, so a slow consumer holds it back; leaving the loop lets it run on. Raises
        `IncompleteError` at a section that could not be had (the venue's own error where nothing arrived before), and
        where the venue moved its unit after sections were delivered: no job shows two.
        """
        return self._sections(parse_whole("ahead", ahead))

    def _sections(self, ahead: int) -> Iterator[Any]:
        rows = 0
        units: dict[str, int] = {}  # of what was delivered
        for answer in self._whole_sections(ahead):
            frame = self._frame([answer])
            self._check([answer], frame, arrived=rows)
            if units.setdefault(answer.market, answer.unit) != answer.unit:
                raise IncompleteError(
                    f"{answer.market} {self._timeframe}: the venue moved its unit meanwhile; the sections that were "
                    "delivered are in the old one. Drop them and begin the job again: it is all in the new one.",
                    gaps=[answer.span],
                    frame=frame,
                )
            yield frame
            rows += answer.table.num_rows

    def _check(self, answers: Sequence[CandleAnswer], frame: Any, *, arrived: int = 0) -> None:
        """Raise the error for what could not be had."""
        core, lane = self._session.coordinator(), self._job.priority
        error = incomplete_error(core, answers, self._timeframe, lane, arrived=arrived)
        if isinstance(error, IncompleteError):
            error.frame = frame
        if isinstance(error, RejectedError):  # nothing arrived
            error = unlisted_error(core, answers, lane) or error
        if error is not None:
            raise error

    def _whole_sections(self, ahead: int) -> Iterator[CandleAnswer]:
        """The job's sections; of a derived timeframe, each with the candles that became whole with it."""
        if self._timeframe.base is None:
            yield from self._job.sections(ahead)
            return
        rest: CandleAnswer | None = None  # short candles of a longer one that is not whole yet
        for answer in self._job.sections(ahead):
            if rest is not None and rest.market == answer.market:
                table = pa.concat_tables([rest.table, answer.table])
                answer = replace(answer, table=table, span=Span(rest.span.start, answer.span.end))
            cut = self._timeframe.floor(answer.span.end)
            rest = None
            if cut < answer.span.end:
                left = Span(max(cut, answer.span.start), answer.span.end)
                rest = replace(answer, table=rows_inside(answer.table, SpanSet([left])), span=left)
            yield self._folded(answer)

    def _folded(self, answer: CandleAnswer) -> CandleAnswer:
        if self._timeframe.base is None:
            return answer
        return folded(answer, Range(answer.span.start, answer.span.end, None), self._timeframe, answer.span.end)

    def wait(self, timeout: float | None = None, *, on_interrupt: str = "keep", progress: bool | None = None) -> Job:
        """Block until it ended, with a bar where somebody can see it; returns the job.

        `on_interrupt`: what Ctrl-C (or interrupting the cell) does to the job: ``"keep"`` it going, or ``"cancel"``.
        A `timeout` in seconds that runs out raises `TimeoutError`; the job goes on.
        """
        if on_interrupt not in ("keep", "cancel"):
            raise InputError("on_interrupt", on_interrupt, '"keep" or "cancel"')
        view, session = self._view, self._session
        show = False if progress is None and view is not None else progress
        bar = Bar(show, label=self._label, zone=session.tz, clock=session.clock, read=lambda: self._job.progress)

        def watch() -> None:
            bar.update()
            if view is not None:
                view.refresh()

        try:
            with bar:
                ended = self._job.wait(watch, timeout)
        except KeyboardInterrupt:
            if on_interrupt == "cancel":
                self.cancel()
            raise
        if ended and view is not None:
            view.refresh(force=True)
        if not ended:
            raise TimeoutError(f"{self!r} has not ended after {timeout} s; it goes on")
        return self

    def cancel(self) -> None:
        """Ask for nothing more. What arrived is kept; the same backfill later asks for the rest only.

        Nothing happens to a job that is over.
        """
        self._job.cancel()

    def result(self, timeout: float | None = None, *, on_interrupt: str = "keep") -> Any:
        """The whole, as `Backbone.candles` would answer it; waits for the end.

        Raises `IncompleteError` (``.frame``, ``.gaps``, ``.causes``) where part of it could not be had, and where
        nothing arrived the venue's own error, such as `UnreachableError`, or `InputError` for a market that is not
        listed.
        """
        self.wait(timeout, on_interrupt=on_interrupt)
        answers = [self._folded(answer) for answer in self._job.answers()]
        frame = self._frame(answers)
        self._check(answers, frame)
        return frame

    def _frame(self, answers: list[CandleAnswer]) -> Any:
        table = shaping.candles_table([(a.market, a.table) for a in answers], many=self._many)
        elapsed_ms = self._job.progress.elapsed_s * 1000
        attrs = candle_facts(answers, self._timeframe, table.num_rows, elapsed_ms, self._job.priority)
        return shaping.deliver(table, self._frames, index="time", zone=self._session.tz, attrs=attrs)

    @property
    def _label(self) -> str:
        names = ", ".join(self._job.markets[:3]) + ("…" if len(self._job.markets) > 3 else "")
        return f"{names} {self._timeframe}"

    def __repr__(self) -> str:
        return f"<Job {self._label}: {self.progress}>"

    def view(self) -> JobProgress:
        """The bar as a widget, with a button that cancels; the same one every time."""
        if self._view is None:
            self._view = JobProgress(self._label, lambda: self.progress, self.cancel, clock=self._session.clock)
        return self._view

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **more: Any) -> Any:
        return self.view()._repr_mimebundle_(include, exclude, **more)

    def _repr_html_(self) -> str:
        view = self.view()
        view.refresh(force=True)
        return view.html()

    def __dir__(self) -> list[str]:
        return ["cancel", "progress", "result", "sections", "state", "view", "wait"]


def backfill(
    session: Session,
    markets: str | Iterable[str],
    timeframe: str,
    start: TimeLike,
    end: TimeLike | None = None,
    *,
    priority: str | Priority = "low",
    frames: str | None = None,
) -> Job:
    """See `Backbone.backfill`."""
    wanted = session.frames(frames)
    codes, shown, start_us, end_us, lane = parse_long(
        session, markets, timeframe, start, end, priority, "a backfill is"
    )
    core, part = session.coordinator(), shown.base or shown
    core.markets.check_at_hand([code for code in codes if core.store.oldest(code, part) is None], lane)
    job = core.jobs.start(codes, part, start_us, end_us, lane)
    many = not isinstance(markets, str) or len(codes) > 1
    return Job(session, job, many=many, frames=wanted, timeframe=shown)


def parse_long(
    session: Session,
    markets: str | Iterable[str],
    timeframe: str,
    start: TimeLike,
    end: TimeLike | None,
    priority: str | Priority,
    what: str,
) -> tuple[list[str], Timeframe, int, int | None, Priority]:
    """The words of a call that may take hours, checked: markets, timeframe, from when to when its candles (or those
    that it is folded from) are asked for, and how urgently. `what` it is, for the error of one that is to be critical.
    """
    lane, shown = parse_priority(priority), parse_timeframe(timeframe, derived=True)
    if lane is Priority.CRITICAL:
        raise InputError("priority", lane.value, f"low, normal or high: {what} no critical request")
    asked = session.range(start, end, None)
    if asked.start_us is None:
        raise InputError("start", start, "a time to begin with, such as 2024-01")
    core, codes = session.coordinator(), session.markets_of(markets)
    core.sync_clock()  # the venue's clock, not this machine's, says what is closed
    if shown.base is not None:
        asked = base_range(asked, shown, core.reader.closed_before(shown))
    assert asked.start_us is not None
    return codes, shown, asked.start_us, asked.end_us, lane
