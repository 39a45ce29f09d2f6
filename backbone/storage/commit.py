"""Bringing pending pages to disk: under the series lock, again where another writer was faster, and what a failure
leaves. Everything that failed stays in memory and is tried again at the next write. Pages of a generation that was
quarantined are forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from backbone.clock import Clock
from backbone.errors import StoreBusyError, StoreError
from backbone.locks import RUN_LOCK
from backbone.storage.coverage import EVER
from backbone.storage.files import Files, ReadOnlyError, retried
from backbone.storage.generations import Generations
from backbone.storage.incidents import Incidents
from backbone.storage.layout import Series
from backbone.storage.pending import PendingPages
from backbone.storage.periods import Periods

__all__ = ["Committer"]

_MOST_ROWS = 2_000_000  # held in memory for a folder that cannot be written; more is an error


class Committer:
    """Writes the pending pages of one store. Thread-safe.

    ``restated`` is called after a commit that changed candles already stored, with the opens of those.
    """

    def __init__(
        self,
        files: Files,
        clock: Clock,
        pending: PendingPages,
        periods: Periods,
        incidents: Incidents,
        generations: Generations,
        end_move: Callable[[str], object],
        restated: Callable[[Series, list[int]], None],
    ) -> None:
        self._files = files
        self._clock = clock
        self._pending = pending
        self._periods = periods
        self._incidents = incidents
        self._generations = generations
        self._end_move = end_move
        self._restated = restated
        self._is_warned = False
        self.files_written = 0

    def write(self, chosen: Iterable[Series]) -> None:
        """Bring all pages of some series to disk; every one is tried, then the first failure is raised."""
        failure: StoreError | None = None
        for series in chosen:
            revised: list[int] = []
            try:
                with RUN_LOCK.waiting():
                    while not retried(self._files, series.lock_key, lambda: self._write(series, revised)):  # noqa: B023
                        self._end_move(series.market)
            except ReadOnlyError as exc:
                if self._pending.rows() > _MOST_ROWS:
                    failure = failure or self._failed(series, exc)
                else:
                    self._stay_in_memory(series, exc)
            except StoreError as exc:
                failure = failure or self._failed(series, exc)
            if revised:
                self._restated(series, revised)
        if failure is not None:
            raise failure

    def _write(self, series: Series, revised: list[int]) -> bool:
        """Write what waits; False where files of the series are still to be moved away first."""
        began_s = self._clock.monotonic()
        pages = self._pending.of(series, EVER)
        if pages:
            now = self._generations.of(series.market)
            if now.leaving:
                return False
            counting = [page for page in pages if page.generation == now.number]
            self.files_written += self._periods.write(series, counting, revised)
            self._pending.written(series, len(pages), began_s)
        return True

    def _stay_in_memory(self, series: Series, exc: ReadOnlyError) -> None:
        """Go on with a folder that is read-only: rows are served from memory, and that is reported once."""
        self._pending.failed(series)
        if not self._is_warned:
            self._is_warned = True
            words = f"{exc}; candles are kept in memory only. Choose a folder with data_dir= or $BACKBONE_DATA_DIR"
            self._incidents.record("not-stored", str(exc.path), words)

    def _failed(self, series: Series, exc: StoreError) -> StoreError:
        kept = self._pending.failed(series)
        self._incidents.record("flush-failed", str(exc.path), str(exc))
        message = f"{exc}. {kept} rows of {series} stay in memory and are tried again at the next write"
        if isinstance(exc, StoreBusyError):
            failure: StoreError = StoreBusyError(message, path=exc.path, holder=exc.holder)
        else:
            failure = StoreError(message, path=exc.path)
        failure.__cause__ = exc
        return failure
