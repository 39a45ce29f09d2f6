"""Many markets on many workers: one task a market on `joblib.Parallel`, which also decides where the workers are.

Each worker process has one session of its own, made from this client's settings and kept for the next market, so each
host asks from its own address, within its own quota and into the store that the settings name: a folder of its own, or
one ``s3://`` store for all. Credentials do not travel: each host reads its own environment. An error of one market
comes back as a value and is raised here, after the others are done.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from backbone.api.arguments import TimeLike
from backbone.api.calls.backfill import Job, parse_long
from backbone.api.session import Session
from backbone.errors import IncompleteError, InputError
from backbone.model import Priority
from backbone.settings import Settings
from backbone.timeframe import parse_timeframe

__all__ = ["map_markets"]

T = TypeVar("T")


@dataclass(frozen=True)
class _Task:
    """One market's work, as it travels. ``home`` names the session that asked, for a worker in its own process."""

    settings: Settings
    home: str
    market: str
    timeframe: str
    start_us: int
    end_us: int
    priority: str


def map_markets(
    session: Session,
    fn: Callable[[Any], T],
    markets: str | Iterable[str],
    timeframe: str,
    start: TimeLike,
    end: TimeLike | None,
    *,
    priority: str | Priority,
    n_jobs: int | None,
) -> Iterator[tuple[str, T]]:
    """See `Backbone.map`."""
    import joblib

    if not callable(fn):
        raise InputError("fn", fn, "a function of one candle frame")
    if n_jobs is not None and (isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or n_jobs == 0):
        raise InputError("n_jobs", n_jobs, "a number of workers, -1 for one a core, or None")
    # all words are checked here, so that a wrong one is an error before any work starts; the end is the same for all
    codes, shown, start_us, end_us, lane = parse_long(
        session, markets, timeframe, start, end, priority, "many markets are"
    )
    core, part = session.coordinator(), shown.base or shown
    core.markets.check_listed([code for code in codes if core.store.oldest(code, part) is None])
    end_us = core.reader.closed_before(part) if end_us is None else end_us
    core.store.flush()
    home = f"{os.getpid()}-{id(session)}"
    _homes[home] = session
    tasks = [_Task(session.settings, home, code, shown.name, start_us, end_us, lane.value) for code in codes]
    if n_jobs is None and joblib.parallel.get_active_backend()[1] in (None, 1):
        n_jobs = min(joblib.cpu_count(), len(tasks))  # nothing is configured: a process a core
    parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)
    return _values(parallel(joblib.delayed(_run)(task, fn) for task in tasks))


def _values(outcomes: Iterator[tuple[str, Any, BaseException | None]]) -> Iterator[tuple[str, Any]]:
    failed: list[tuple[str, BaseException]] = []
    try:
        for market, value, error in outcomes:
            if error is None:
                yield market, value
            else:
                failed.append((market, error))
    except (OSError, RuntimeError) as exc:  # loky's and Dask's own errors for workers that died
        lost = "a worker was lost. What was fetched is stored, and the same call goes on from there"
        raise IncompleteError(f"{lost}: {exc}", causes=[exc]) from exc
    if failed:
        market, error = failed[0]
        error.add_note(f"in {market}; every market that succeeded was handed out before")
        if len(failed) > 1:
            error.add_note(f"{len(failed) - 1} more markets failed: {', '.join(name for name, _ in failed[1:11])}")
        raise error


# -- in the workers --------------------------------------------------------------------------------------------------

_homes: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()
_sessions: dict[Settings, Session] = {}
_lock = threading.Lock()  # guards _sessions


def _session_of(task: _Task) -> Session:
    """This process's session for a task's settings: the one that asked, or one that is kept for the next market."""
    home = _homes.get(task.home)
    if home is not None and task.home.startswith(f"{os.getpid()}-"):
        return home
    with _lock:
        session = _sessions.get(task.settings)
        if session is None:
            session = _sessions[task.settings] = Session(task.settings)  # which ends with its process
        return session


def _run(task: _Task, fn: Callable[[Any], T]) -> tuple[str, T | None, BaseException | None]:
    """Fetch one market and call `fn` with its frame, here."""
    try:
        session = _session_of(task)
        shown = parse_timeframe(task.timeframe, derived=True)
        job = session.coordinator().jobs.start(
            [task.market], shown.base or shown, task.start_us, task.end_us, Priority(task.priority)
        )
        whole = Job(session, job, many=False, frames=session.settings.frames, timeframe=shown).wait(progress=False)
        frame = whole.result()
        return task.market, fn(frame), None
    except Exception as exc:  # noqa: BLE001 - the user's function may raise anything; it is raised where it was called
        return task.market, None, exc
