"""Proving a store from its files alone, and repairing it.

Nothing here trusts a cache or the state of a running store. The proof of a partition: its seal, its place,
its rows (sorted, unique, on the grid, inside the period and inside the file's coverage, prices that can
be). Around the partitions: nothing that does not belong there, no unfinished write of a process that is gone, and no
period that was written and has no file any more.
Repairing moves files to quarantine and never deletes one, save our own unfinished writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from backbone.candle_table import count_inside
from backbone.errors import CorruptPartitionError, StoreBusyError, StoreError
from backbone.model import Span
from backbone.storage.files import Files
from backbone.storage.layout import (
    CANDLES,
    GENERATIONS,
    LISTED,
    QUIET,
    TMP,
    Series,
    parse_partition_key,
    parse_period,
    parse_sidecar_key,
)
from backbone.storage.listed import forget, listed, quarantine_period
from backbone.storage.partition import Partition, decode_coverage, decode_partition
from backbone.timeframe import Timeframe, period_name

__all__ = ["Problem", "repair", "verify"]

_DESKTOP_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}
_FOREIGN = {CANDLES: "not a partition: other engines may take its rows for candles", QUIET: "not a sidecar"}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one file.

    ``kind``: ``damaged`` (not the bytes that were written), ``newer`` (from a newer backbone), ``unreadable``
    (the disk refuses), ``order``, ``grid``, ``prices``, ``uncovered`` (rows that break a rule), ``foreign``
    (does not belong there), ``leftover`` (an unfinished write, which no reader looks at) or ``missing`` (the file of a
    period that was written and that nobody here took away).
    """

    market: str
    timeframe: str
    path: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A problem with what repairing needs to know."""

    key: str
    series: Series | None
    period: Span | None
    kind: str
    detail: str

    def problem(self, files: Files, done: str = "") -> Problem:
        market = self.series.market if self.series else ""
        timeframe = self.series.timeframe.name if self.series else ""
        return Problem(market, timeframe, files.address(self.key), self.kind, self.detail + done)


def verify(files: Files, exchange: str, market: str | None = None, timeframe: Timeframe | None = None) -> list[Problem]:
    """The problems of one exchange's files, in path order."""
    return [found.problem(files) for found in _problems(files, exchange, market, timeframe)]


def repair(files: Files, exchange: str, now_us: int) -> list[Problem]:
    """Repair every problem that can be repaired, and report what was done about each; none of what is well by then."""
    done = (_repair(files, found, now_us) for found in list(_problems(files, exchange, None, None)))
    return [problem for problem in done if problem is not None]


def _problems(files: Files, exchange: str, market: str | None, timeframe: Timeframe | None) -> Iterator[_Found]:
    def is_wanted(series: Series) -> bool:
        return market in (None, series.market) and timeframe in (None, series.timeframe)

    is_whole = market is None and timeframe is None
    folder = f"exchange={exchange}" + (f"/market={market}" if market else "")
    for top, foreign in _FOREIGN.items():
        for key in files.walk(f"{top}/{folder}"):
            series, period = parse_partition_key(key) or (parse_sidecar_key(key), None)
            if series is not None and is_wanted(series):
                yield from _file_problems(files, key, series, period)
            elif series is None and is_whole and key.rsplit("/", 1)[-1] not in _DESKTOP_LITTER:
                yield _Found(key, None, None, "foreign", foreign)
    for key in files.walk(f"{LISTED}/{folder}"):
        series = parse_sidecar_key(key)
        if series is not None and is_wanted(series):
            yield from _missing(files, series)
    if is_whole:
        yield from _leftovers(files, exchange)


def _file_problems(files: Files, key: str, series: Series, period: Span | None) -> Iterator[_Found]:
    """What is wrong with a partition, or with a sidecar, which has no period."""
    try:
        blob = files.read(key)
    except StoreError as exc:
        yield _Found(key, series, period, "unreadable", str(exc))
        return
    if blob is None:
        return
    path, problems = files.address(key), list[tuple[str, str]]()
    try:
        if period is None:
            decode_coverage(blob.data, series, path)
        else:
            problems += _row_problems(decode_partition(blob.data, series, period, path), series.timeframe)
    except CorruptPartitionError as exc:
        problems.append(("damaged", exc.reason))
    except StoreError as exc:
        problems.append(("newer", str(exc)))
    for kind, detail in problems:
        yield _Found(key, series, period, kind, detail)


def _missing(files: Files, series: Series) -> list[_Found]:
    """The periods that are noted and have no file. Whoever moves a series away takes the note first, so that what is
    found counts while the note is the same; else it is looked for again."""
    while True:
        version, found = files.stat(series.listed_key), []
        for name in sorted(listed(files, series)):
            period = parse_period(series.timeframe, name)
            if period is not None and files.stat(series.key(period)) is None:
                detail = f"the candles of {name} were stored, and their file is gone"
                found.append(_Found(series.key(period), series, period, "missing", detail))
        if not found or files.stat(series.listed_key) == version:
            return found


def _row_problems(partition: Partition, timeframe: Timeframe) -> Iterator[tuple[str, str]]:
    """What is wrong with the rows of a file whose seal is right; decoding checked their order."""
    times = partition.times
    if not len(times):
        return
    if count := timeframe.count_off_grid(times):
        yield "grid", f"{count} rows do not open on the {timeframe.name} grid"
    covered = partition.coverage.covered
    inside = count_inside(partition.table, covered)
    if inside != len(times):
        yield "uncovered", f"{len(times) - inside} rows lie outside what the file covers"
    if count := int(_impossible(partition).sum()):
        yield "prices", f"{count} rows have impossible prices or volumes"


def _impossible(partition: Partition) -> Any:
    column = {name: partition.table.column(name).to_numpy() for name in partition.table.column_names[1:]}
    low, high, volume, value = column["low"], column["high"], column["volume"], column["value"]
    possible = (low > 0) & np.isfinite(high) & (volume >= 0) & np.isfinite(volume)
    for name in ("open", "close"):
        possible &= (low <= column[name]) & (column[name] <= high)
    return ~(possible & (np.isnan(value) | ((value >= 0) & np.isfinite(value))))


def _leftovers(files: Files, exchange: str) -> Iterator[_Found]:
    """Unfinished writes of series that are not being written."""
    for key in files.walk(TMP):
        series = _series_of_tmp(key)
        if series is None and (key.startswith(f"{TMP}/other/") or f"/{GENERATIONS}+" in key):
            continue  # no series': they have no reader, and a writer may be at it
        if series is None:
            yield _Found(key, None, None, "foreign", "not an unfinished write of ours")
        elif series.exchange == exchange and not _is_at_work(files, series, key):
            yield _Found(key, series, None, "leftover", "a write that its process did not finish")


def _series_of_tmp(key: str) -> Series | None:
    exchange, _, name = key.removeprefix(f"{TMP}/").partition("/")
    top, _, rest = name.rsplit(".", 1)[0].replace("+", "/").partition("/")
    target = f"{top}/{exchange}/{rest}"
    place = parse_partition_key(target)
    return place[0] if place is not None else parse_sidecar_key(target)


def _is_at_work(files: Files, series: Series, key: str) -> bool:
    """Whether a process is still at an unfinished write: its series is locked, or it is gone once we hold the lock."""
    try:
        with files.exclusive(series.lock_key, timeout_s=0.0):
            return files.stat(key) is None
    except StoreBusyError:
        return True
    except StoreError:  # a folder in which nothing can be locked has no writer either
        return False


def _repair(files: Files, found: _Found, now_us: int) -> Problem | None:
    """Repair a problem; None where it is none any more, since a file may be written or moved until we hold the lock."""
    if found.kind in ("newer", "unreadable"):
        return found.problem(files, "; left where it is")
    lock_key = found.series.lock_key if found.series is not None else f"{TMP}.lock"
    with files.exclusive(lock_key):
        if not _is_so_still(files, found):
            return None
        if found.kind == "missing" and found.series is not None and found.period is not None:
            forget(files, found.series, period_name(found.series.timeframe, found.period))
            return found.problem(files, "; their span is unknown and is requested again")
        if found.kind == "leftover":
            files.remove(found.key)
            return found.problem(files, "; removed")
        if found.series is not None and found.period is not None:
            moved = quarantine_period(files, found.series, found.period, now_us)
        else:
            moved = files.quarantine(found.key, now_us)
    return found.problem(files, f"; moved to {moved}")


def _is_so_still(files: Files, found: _Found) -> bool:
    if found.kind == "missing" and found.series is not None:
        return found in _missing(files, found.series)
    if found.kind in ("leftover", "foreign") or found.series is None:
        return files.stat(found.key) is not None
    return any(again.kind == found.kind for again in _file_problems(files, found.key, found.series, found.period))
