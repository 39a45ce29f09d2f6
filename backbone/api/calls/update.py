"""Bring what is stored up to date: one job over all series, each from its newest candle to now.

Every series is a backfill of its own, so that one that fails does not stop the others, and two updates at once share
what is on its way. `UpdateJob` only adds them up; it has no thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from backbone.api import frames as shaping
from backbone.api.arguments import parse_priority
from backbone.api.calls.backfill import Job
from backbone.api.calls.candles import incomplete_error
from backbone.api.frames import TEXT, TIME, WHOLE
from backbone.api.notebook.bar import Bar
from backbone.api.notebook.progress import JobView, job_view
from backbone.api.session import Session
from backbone.coordinator.candles.jobs import CandleJob
from backbone.coordinator.candles.pending import Progress
from backbone.errors import BackboneError, ClosedError, IncompleteError, InputError
from backbone.model import Priority, Span
from backbone.routing.wire import PAGE
from backbone.storage.coverage import EVER, SpanSet
from backbone.timeframe import Timeframe, parse_timeframe

__all__ = ["UpdateJob", "update"]

_RESULT = {"market": TEXT, "timeframe": TEXT, "start": TIME, "end": TIME}
_RESULT |= {"added": WHOLE, "revised": WHOLE, "state": TEXT, "detail": TEXT}
_RECENT = 2000  # slots: a hole that begins so shortly before the newest was left by an update that failed


@dataclass(frozen=True)
class _Series:
    """One stored series, and the job that brings it up to date.

    ``asked`` is what its pages may show: they are full ones, and overlap what is held; ``known`` is how many revisions
    there were of it before.
    """

    market: str
    timeframe: Timeframe
    begin_us: int
    held: int  # candles from there on
    end_us: int
    asked: Span
    known: int
    job: CandleJob


class UpdateJob:
    """Stored series on their way to now. Made by ``client.store.update()``; safe to share between threads."""

    def __init__(self, session: Session, series: Sequence[_Series], priority: Priority, frames: str) -> None:
        self._session = session
        self._series = list(series)
        self._priority = priority
        self._frames = frames

    @property
    def state(self) -> str:
        """``running``, ``done`` (all are up to date), ``incomplete`` (some are not) or ``cancelled``."""
        states = {one.job.state for one in self._series}
        for state in ("running", "cancelled"):
            if state in states:
                return state
        return "incomplete" if states - {"done"} else "done"

    @property
    def progress(self) -> JobView:
        """Where it stands now, all series together; ``reached`` is the time up to which each of them is stored."""
        return job_view(self._read(), self._session.tz)

    def sections(self) -> Iterator[Any]:
        """The new candles of each series as a frame, when it is up to date, in the order of `result`.

        A series that could not be had whole is left out here and named in `result`.
        """
        for one in self._series:
            job = Job(self._session, one.job, many=False, frames=self._frames)
            if job.wait(progress=False).state == "done":
                yield job.result()

    def wait(self, timeout: float | None = None, *, progress: bool | None = None) -> UpdateJob:
        """Block until every series ended, with a bar where somebody can see it; returns the job.

        A `timeout` in seconds that runs out raises `TimeoutError`; the job goes on.
        """
        session = self._session
        deadline = None if timeout is None else session.clock.monotonic() + timeout
        label = f"{len(self._series)} series"
        with Bar(progress, label=label, zone=session.tz, clock=session.clock, read=self._read) as bar:
            for one in self._series:
                left = None if deadline is None else max(0.0, deadline - session.clock.monotonic())
                if not one.job.wait(bar.update, left):
                    raise TimeoutError(f"{self!r} has not ended after {timeout} s; it goes on")
        return self

    def cancel(self) -> None:
        """Ask for nothing more; what arrived is kept."""
        for one in self._series:
            one.job.cancel()

    def result(self, timeout: float | None = None) -> Any:
        """What became of each series; waits for the end.

        Returns
        -------
        Frame, a row a series: ``market timeframe start end`` (where it ended before, where it ends now; the client's
        zone), ``added`` (new candles), ``revised`` (stored candles that the venue restated), ``state`` (``"done"``,
        ``"incomplete"``, ``"failed"`` or ``"cancelled"``) and ``detail`` (the error's words where it is not done).
        """
        self.wait(timeout)
        table = shaping.table_of(_RESULT, [self._row(one) for one in self._series])
        now = self._read()
        attrs = shaping.facts(
            sources={"rest": pc.sum(table["added"]).as_py() or 0},
            elapsed_ms=now.elapsed_s * 1000,
            rows=table.num_rows,
            priority=self._priority,
            requests=now.pages,
        )
        return shaping.deliver(table, self._frames, index=None, zone=self._session.tz, attrs=attrs)

    def _row(self, one: _Series) -> tuple[Any, ...]:
        """What became of a series, as `_RESULT` has it."""
        core = self._session.coordinator()
        store = core.store
        end_us = max(one.end_us, one.job.progress.reached_us)
        added = store.read(one.market, one.timeframe, Span(one.begin_us, end_us)).table.num_rows - one.held
        state, detail = one.job.state, ""
        if state != "done":
            try:
                error = incomplete_error(core, one.job.answers(), one.timeframe, self._priority)
                causes = error.causes if isinstance(error, IncompleteError) else (error,) if error is not None else ()
            except BackboneError as exc:
                causes = (exc,)
            detail = str(causes[0]) if causes else "part of it could not be had"
            if (rename := core.markets.renamed(one.market, None)) is not None:
                detail = str(rename)
        revised = max(0, store.revisions(one.market, one.timeframe, one.asked).num_rows - one.known)
        return one.market, one.timeframe.name, one.end_us, end_us, added, revised, state, detail

    def _read(self) -> Progress:
        each = [one.job.progress for one in self._series]
        return Progress(
            sum(now.done_slots for now in each),
            sum(now.total_slots for now in each),
            sum(now.pages for now in each),
            sum(now.rows for now in each),
            min((now.reached_us for now in each), default=0),
            state=self.state,
            elapsed_s=max((now.elapsed_s for now in each), default=0.0),
        )

    def __repr__(self) -> str:
        return f"<UpdateJob {len(self._series)} series: {self.progress}>"

    def __dir__(self) -> list[str]:
        return ["cancel", "progress", "result", "sections", "state", "wait"]


def update(
    session: Session,
    markets: str | Iterable[str] | None = None,
    timeframe: str | None = None,
    *,
    priority: str | Priority = "low",
    frames: str | None = None,
) -> UpdateJob:
    """See `StoreView.update`."""
    lane, wanted = parse_priority(priority), session.frames(frames)
    if lane is Priority.CRITICAL:
        raise InputError("priority", lane.value, "low, normal or high: an update is no critical request")
    core = session.coordinator()
    tf = None if timeframe is None else parse_timeframe(timeframe)
    codes = None if markets is None else set(session.markets_of(markets, may_ask=False))
    chosen = [
        (market, each)
        for market, each in sorted(core.store.series(), key=lambda pair: (pair[0], pair[1].step_us))
        if (codes is None or market in codes) and tf in (None, each)
    ]
    if not chosen and (codes is not None or tf is not None):
        held = ", ".join(sorted({f"{market} {each}" for market, each in core.store.series()})[:8])
        raise InputError("markets", markets or timeframe, f"series that are stored: {held or 'so far none'}")
    if markets is None:
        present = set(core.renames.once({market for market, _ in chosen}))
        chosen = [(market, each) for market, each in chosen if market in present]
    core.store.upkeep.refuse_snapshot("update")
    core.sync_clock()
    series = [_begin(session, market, each, lane) for market, each in chosen]
    return UpdateJob(session, [one for one in series if one is not None], lane, wanted)


def _begin(session: Session, market: str, timeframe: Timeframe, priority: Priority) -> _Series | None:
    """The job of one series, from its newest covered slot on; None where it covers nothing.

    Where an update that failed between two pages left a hole shortly before that slot, the job begins at the hole.
    """
    core = session.coordinator()
    if core.is_closed:
        raise ClosedError("the client is closed; make a new one")
    covered = core.store.footer_coverage(market, timeframe, EVER)
    bounds = covered.bounds
    if bounds is None:
        return None
    newest_us = timeframe.floor(max(0, bounds.end - 1))  # asked again: what was provisional is asked once more
    recent = SpanSet([Span(max(bounds.start, timeframe.next(newest_us, -_RECENT)), bounds.end)])
    holes = [hole for hole in recent - covered if hole.start > recent.spans[0].start]
    begin_us = min((hole.start for hole in holes), default=newest_us)
    held = core.store.read(market, timeframe, Span(begin_us, bounds.end)).table.num_rows
    asked = Span(max(EVER.start, timeframe.next(begin_us, -PAGE)), EVER.end)
    known = core.store.revisions(market, timeframe, asked).num_rows
    job = core.jobs.start([market], timeframe, begin_us, None, priority)
    return _Series(market, timeframe, begin_us, held, bounds.end, asked, known, job)
