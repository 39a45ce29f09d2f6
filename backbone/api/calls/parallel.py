"""Many markets on many workers, on `joblib.Parallel`: processes here, or hosts through ``parallel_config("dask")``.

A whole market goes to one worker. Each worker process has one client of its own, made from this client's settings and
kept for the next market, so each host asks from its own address, within its own quota and into the store that the
settings name: a folder of its own, or one ``s3://`` store for all. Credentials do not travel: each host reads its own
environment. Results come as they finish. A worker that is lost costs nothing but time: what it had fetched is stored,
and its market is done again by another; a market that takes every worker with it is given up with an error.

The functions at the end run in the workers; what they return crosses processes, so an error comes back as a value and
is raised here, after the other markets are done.
"""

from __future__ import annotations

import atexit
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from backbone.api.arguments import TimeLike, parse_markets, parse_priority, parse_quote
from backbone.api.session import Session
from backbone.coordinator.candles.ranges import Range
from backbone.errors import BackboneError, ClosedError, IncompleteError, InputError
from backbone.model import Priority
from backbone.settings import Settings, from_environment
from backbone.timeframe import Timeframe, parse_timeframe

__all__ = ["SpreadJob", "SpreadView", "is_spread", "map_markets", "spread_backfill"]

T = TypeVar("T")

_ROUNDS = 3  # a lost market is tried in so many rounds
_DASK_ROUNDS = 2  # Dask itself gives a lost market to three more workers before it tells


@dataclass(frozen=True)
class _Task:
    """One market's work, as it travels."""

    settings: Settings
    home: str
    """Names the client that asked, so that a worker in its own process uses it instead of another."""
    market: str
    timeframe: str
    start_us: int
    end_us: int
    priority: str


@dataclass(frozen=True)
class _Outcome:
    """What came of one market: a value or an error, and where it was done."""

    market: str
    value: Any
    error: BaseException | None
    where: str
    rows: int
    pages: int


# -- map -------------------------------------------------------------------------------------------------------------


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
    if not callable(fn):
        raise InputError("fn", fn, "a function of one candle frame")
    tasks = _tasks(session, markets, timeframe, start, end, priority)
    spread: _Spread[T] = _Spread(session, [(_map_one, (task, fn)) for task in tasks], n_jobs)
    return _values(spread)


def _values(spread: _Spread[T]) -> Iterator[tuple[str, T]]:
    failed: list[_Outcome] = []
    for outcome in spread:
        if outcome.error is None:
            yield outcome.market, outcome.value
        else:
            failed.append(outcome)
    if failed:
        raise _first_error(failed)


def _first_error(failed: Sequence[_Outcome]) -> BaseException:
    error = failed[0].error
    assert error is not None
    error.add_note(f"in {failed[0].market}, on {failed[0].where}; every market that succeeded was handed out before")
    if len(failed) > 1:
        error.add_note(f"{len(failed) - 1} more markets failed: {', '.join(o.market for o in failed[1:11])}")
    return error


# -- backfill --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpreadView:
    """How far a spread backfill is. Markets are counted when they are done; ``where`` counts them by host.

    ``rows`` and ``pages`` are also those of markets that could not be had whole.
    """

    state: str
    markets_done: int
    markets: int
    rows: int
    pages: int
    fraction: float
    elapsed_s: float
    where: dict[str, int]

    def __str__(self) -> str:
        hosts = ", ".join(f"{host} {count}" for host, count in sorted(self.where.items()))
        return (
            f"{self.state}, {self.markets_done} of {self.markets} markets, {self.rows} rows, {self.pages} pages, "
            f"{self.elapsed_s:.0f} s{', ' + hosts if hosts else ''}"
        )


class SpreadJob:
    """A backfill of many markets on several workers. Made by `Backbone.backfill` inside ``joblib.parallel_config``.

    The workers go on by themselves; whoever waits (`wait`, `sections`, `result`) also has lost markets done again.
    """

    def __init__(self, session: Session, tasks: Sequence[_Task], frames: str) -> None:
        self._session = session
        self._tasks = {task.market: task for task in tasks}
        self._frames = frames
        self._began_s = session.clock.monotonic()
        self._ended_s: float | None = None
        self._cancelled = False
        self._failed: list[_Outcome] = []
        self._done: list[_Outcome] = []
        self._spread: _Spread[None] = _Spread(session, [(_fill_one, (task,)) for task in tasks], None)
        self._lock = threading.Lock()  # one taker of outcomes at a time

    @property
    def state(self) -> str:
        """``running``, ``done``, ``incomplete`` or ``cancelled``."""
        if self._cancelled:
            return "cancelled"
        if self._ended_s is None:
            return "running"
        return "incomplete" if self._failed else "done"

    @property
    def progress(self) -> SpreadView:
        """Where it stands, as far as outcomes were taken in."""
        done, failed = list(self._done), list(self._failed)
        now = self._ended_s or self._session.clock.monotonic()
        where: dict[str, int] = {}
        for outcome in done:
            where[outcome.where] = where.get(outcome.where, 0) + 1
        total = len(self._tasks)
        return SpreadView(
            self.state,
            len(done),
            total,
            sum(o.rows for o in (*done, *failed)),
            sum(o.pages for o in (*done, *failed)),
            len(done) / total if total else 1.0,
            now - self._began_s,
            where,
        )

    def _outcomes(self) -> Iterator[_Outcome]:
        """Take in what finishes; ends with the last market or a cancel."""
        while True:
            with self._lock:
                outcome = None if self._cancelled else next(self._spread, None)
                if outcome is None:
                    if self._ended_s is None:
                        self._ended_s = self._session.clock.monotonic()
                    return
                (self._done if outcome.error is None else self._failed).append(outcome)
            yield outcome

    def wait(self) -> SpreadJob:
        """Block until every market ended; returns the job. Its `state` says whether all of it could be had."""
        for _ in self._outcomes():
            pass
        return self

    def sections(self) -> Iterator[Any]:
        """Each market's frame when it is done, in the order in which they finish, read from this client's store.

        Raises `IncompleteError`, after the others, where a market could not be had.
        """
        for outcome in self._outcomes():
            if outcome.error is None:
                yield self._read([outcome.market])
        if self._failed:
            raise _first_error(self._failed)

    def result(self) -> Any:
        """The whole as one long frame, read from this client's store; waits for the end.

        Raises `IncompleteError` where some could not be had, or lies in the store of another host.
        """
        self.wait()
        if self._cancelled:
            raise ClosedError("the job was cancelled; what arrived is stored")
        if self._failed:
            error = _first_error(self._failed)
            if isinstance(error, IncompleteError):
                error.frame = self._read([o.market for o in self._done]) if self._done else None
            raise error
        return self._read(list(self._tasks))

    def _read(self, markets: list[str]) -> Any:
        task = self._tasks[markets[0]]
        asked = Range(task.start_us, task.end_us, None)
        from backbone.api.calls.candles import CandleCall

        call = CandleCall(
            session=self._session,
            markets=markets,
            timeframe=parse_timeframe(task.timeframe),
            asked=asked,
            priority=Priority.LOW,
            include_forming=False,
            fill=None,
            frames=self._frames,
            progress=False,
            offline=True,
        )
        return call.run(many=True)

    def cancel(self) -> None:
        """Start no further market. What the workers have fetched is stored. Nothing happens to a job that is over."""
        if self._ended_s is not None or len(self._done) + len(self._failed) == len(self._tasks):
            return
        self._cancelled = True
        self._spread.close()

    def __repr__(self) -> str:
        return f"<SpreadJob {self.progress}>"

    def __dir__(self) -> list[str]:
        return ["cancel", "progress", "result", "sections", "state", "wait"]


def is_spread(markets: Sequence[str]) -> bool:
    """Whether a backfill of `markets` runs on joblib's workers: it does inside ``parallel_config`` with several."""
    if len(markets) < 2:
        return False
    from joblib.parallel import get_active_backend

    backend, n_jobs = get_active_backend()
    return n_jobs not in (None, 1) or _is_dask(backend)


def spread_backfill(
    session: Session,
    markets: list[str],
    timeframe: str,
    start: TimeLike,
    end: TimeLike | None,
    priority: Priority,
    *,
    frames: str,
) -> SpreadJob:
    """See `Backbone.backfill`."""
    return SpreadJob(session, _tasks(session, markets, timeframe, start, end, priority), frames)


# -- the engine ------------------------------------------------------------------------------------------------------


def _tasks(
    session: Session,
    markets: str | Iterable[str],
    timeframe: str,
    start: TimeLike,
    end: TimeLike | None,
    priority: str | Priority,
) -> list[_Task]:
    """Checked here, so that a wrong word is an error before any work starts; the end is the same for all."""
    tf = parse_timeframe(timeframe)
    lane = parse_priority(priority)
    if lane is Priority.CRITICAL:
        raise InputError("priority", lane.value, "low, normal or high: many markets are no critical request")
    asked = session.range(start, end, None)
    if asked.start_us is None:
        raise InputError("start", start, "a time to begin with, such as 2024-01")
    core = session.coordinator()
    quote = parse_quote(markets, session.home)
    if quote is not None:
        codes = list(core.markets.codes(quote))
    else:
        codes = parse_markets(markets, session.home)
        unheld = [code for code in codes if core.store.oldest(code, tf) is None]
        if unheld:
            core.markets.check_listed(unheld)
    end_us = _end(session, tf, asked.end_us)
    core.store.flush()
    return [
        _Task(session.settings, _homestead(session), code, tf.name, asked.start_us, end_us, lane.value)
        for code in codes
    ]


def _end(session: Session, timeframe: Timeframe, end_us: int | None) -> int:
    if end_us is not None:
        return end_us
    session.now_us()  # the venue's clock, not this machine's, says what is closed
    return session.coordinator().reader.closed_before(timeframe)


class _Spread(Generic[T]):
    """Outcomes of jobs as they finish, in rounds: what a round loses with its workers, the next one does again."""

    def __init__(
        self, session: Session, jobs: Sequence[tuple[Callable[..., _Outcome], tuple[Any, ...]]], n_jobs: int | None
    ) -> None:
        self._session = session
        self._jobs = {job[1][0].market: job for job in jobs}
        self._backend, self._n_jobs = _engine(n_jobs, len(jobs))
        self._round = 0
        self._cause: BaseException | None = None
        self._running: Iterator[_Outcome] | None = None
        self._start()

    def _start(self) -> None:
        import joblib

        self._round += 1
        parallel = joblib.Parallel(
            n_jobs=self._n_jobs,
            backend=self._backend,
            return_as="generator_unordered",
            batch_size=1,
            pre_dispatch="all" if _is_dask(self._backend) else "2*n_jobs",
        )
        self._running = parallel(joblib.delayed(job)(*args) for job, args in list(self._jobs.values()))

    def __iter__(self) -> Iterator[_Outcome]:
        return self

    def __next__(self) -> _Outcome:
        while self._jobs:
            assert self._running is not None
            try:
                outcome = next(self._running)
            except StopIteration:
                self._cause = self._cause or RuntimeError("the workers ended without an outcome")
                self._again()
                continue
            except BackboneError:
                raise
            except Exception as exc:  # noqa: BLE001 - what an engine raises when it loses a worker is its own
                self._cause = exc
                self._again()
                continue
            if self._jobs.pop(outcome.market, None) is not None:
                return outcome
        raise StopIteration

    def _again(self) -> None:
        """Do what is left once more, or give it up."""
        self.close()
        if self._round >= (_DASK_ROUNDS if _is_dask(self._backend) else _ROUNDS):
            left, self._jobs = sorted(self._jobs), {}
            raise IncompleteError(
                f"{len(left)} markets were lost with their workers {self._round} times ({self._cause!r}): "
                f"{', '.join(left[:5])}{'…' if len(left) > 5 else ''}. What was fetched of them is stored.",
                causes=[self._cause] if self._cause is not None else [],
            ) from self._cause
        self._start()

    def close(self) -> None:
        running, self._running = self._running, None
        close = getattr(running, "close", None)
        if close is not None:
            close()


def _engine(n_jobs: int | None, jobs: int) -> tuple[Any, int]:
    """The backend and number of workers: what `joblib.parallel_config` says, else a process for each core."""
    import joblib
    from joblib.parallel import get_active_backend

    if n_jobs is not None and (isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or n_jobs == 0):
        raise InputError("n_jobs", n_jobs, "a number of workers, -1 for one a core, or None")
    backend, active = get_active_backend()
    if _is_dask(backend):
        _check_cluster(backend)
        _tell_losses(backend)
        return backend, -1
    if n_jobs is None:
        n_jobs = active or min(joblib.cpu_count(), max(1, jobs))
    return backend, n_jobs


def _is_dask(backend: Any) -> bool:
    return type(backend).__name__ == "DaskDistributedBackend"


def _check_cluster(backend: Any) -> None:
    """A cluster whose workers cannot import backbone is an error now, not a loss of every market later."""
    import pkgutil

    import backbone

    answers = backend.client.run(pkgutil.resolve_name, "backbone:__version__", on_error="return")
    if not answers:
        raise InputError("backend", "dask", "a cluster with at least one worker")
    wrong = {where: answer for where, answer in answers.items() if answer != backbone.__version__}
    if wrong:
        where, answer = next(iter(wrong.items()))
        allowed = f"workers with backbone {backbone.__version__} installed; {len(wrong)} have not"
        raise InputError("backend", "dask", f"{allowed}: {where} says {answer!r}")


def _tell_losses(backend: Any) -> None:
    """joblib's Dask backend does not pass on that a task was given up with its workers; pass it on."""
    if getattr(backend.submit, "tells_losses", False):
        return
    submit = backend.submit

    def telling(func: Any, callback: Any = None) -> Any:
        future = submit(func, callback)

        def told(done: Any) -> None:
            error = done.exception()
            if error is not None and callback is not None:
                callback(_lost(error))

        future.add_done_callback(told)
        return future

    telling.tells_losses = True  # type: ignore[attr-defined]
    backend.submit = telling


def _lost(error: BaseException) -> Any:
    from joblib.externals.loky.process_executor import _ExceptionWithTraceback

    return _ExceptionWithTraceback(error)


# -- in the workers --------------------------------------------------------------------------------------------------

_homes: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()
_clients: dict[Settings, Session] = {}
_clients_lock = threading.Lock()


def _homestead(session: Session) -> str:
    """The name under which this process finds `client` again; in another process it finds nothing."""
    name = f"{os.getpid()}-{id(session)}"
    _homes[name] = session
    return name


def _session_of(task: _Task) -> Session:
    """This process's client for a task's settings: the one that asked, or one that is kept for the next market."""
    home = _homes.get(task.home)
    if home is not None and task.home.startswith(f"{os.getpid()}-"):
        return home

    with _clients_lock:
        if not _clients:
            atexit.register(_close_clients)
        session = _clients.get(task.settings)
        if session is None:
            session = _clients[task.settings] = Session(task.settings)
        return session


def _close_clients() -> None:
    with _clients_lock:
        clients = list(_clients.values())
        _clients.clear()
    for session in clients:
        session.close()


def _where() -> str:
    return from_environment("BACKBONE_HOST") or socket.gethostname()


def _fetched(task: _Task) -> Any:
    """The job of one market, ended."""
    from backbone.api.calls.backfill import Job

    session = _session_of(task)
    core = session.coordinator()
    job = core.jobs.start(
        [task.market], parse_timeframe(task.timeframe), task.start_us, task.end_us, Priority(task.priority)
    )
    view = Job(session, job, many=False, frames=session.settings.frames)
    return view.wait(progress=False)


def _fill_one(task: _Task) -> _Outcome:
    """Fetch and store one market; only counts travel back."""
    from backbone.coordinator.candles.reader import incomplete

    try:
        job = _fetched(task)._job
        now = job.progress
        error = incomplete(job.answers(), job.timeframe) if job.state != "done" else None
    except BackboneError as exc:
        return _Outcome(task.market, None, exc, _where(), 0, 0)
    return _Outcome(task.market, None, error, _where(), now.rows, now.pages)


def _map_one(task: _Task, fn: Callable[[Any], T]) -> _Outcome:
    """Fetch one market and call `fn` with its frame, here."""
    try:
        job = _fetched(task)
        frame = job.result()
        now = job._job.progress
        value = fn(frame)
    except Exception as exc:  # noqa: BLE001 - the user's function may raise anything; it is raised at home
        return _Outcome(task.market, None, exc, _where(), 0, 0)
    return _Outcome(task.market, value, None, _where(), now.rows, now.pages)
