"""Which periods of a series were written: a small note beside the candles, so that an audit sees that a file is gone.

The note is kept from the second period on, since nothing lies between the periods of a series that has one; it covers
nothing and no answer is made from it. It is written after the file, under the series' lock: a crash between the two
leaves a file that is not noted yet, which is no problem.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import msgspec

from backbone.errors import CorruptPartitionError
from backbone.model import Span
from backbone.storage.coverage import SpanSet
from backbone.storage.files import Files
from backbone.storage.layout import Series, parse_period
from backbone.storage.partition import decode_coverage, encode_coverage
from backbone.timeframe import period_name

__all__ = ["forget", "listed", "note", "quarantine_period"]


def listed(files: Files, series: Series) -> frozenset[str]:
    """The names of the periods that were written; none where the note is lost or damaged."""
    blob = files.read(series.listed_key)
    if blob is None:
        return frozenset()
    try:
        return msgspec.json.decode(blob.data, type=frozenset[str])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return frozenset()


def note(files: Files, series: Series, written: Iterable[str], known: frozenset[str]) -> frozenset[str]:
    """Note the periods `written`, of a series whose note was `known`; returns what is noted now.

    Call it inside `Files.exclusive`.
    """
    if known.issuperset(written) and (len(known) < 2 or files.stat(series.listed_key) is not None):
        return known  # and the series was not taken away meanwhile
    names = listed(files, series).union(written)
    for folder in files.list(series.folder):  # a file that was quarantined leaves its folder behind
        name = folder.removeprefix("period=")
        period = parse_period(series.timeframe, name)
        if name not in names and period is not None and files.stat(series.key(period)) is not None:
            names |= {name}
    if len(names) > 1:
        _put(files, series, names)
    return names


def forget(files: Files, series: Series, period: str) -> None:
    """The file of a period was taken away on purpose. Call it inside `Files.exclusive`."""
    names = listed(files, series)
    if period in names:
        _put(files, series, names - {period})


def quarantine_period(files: Files, series: Series, period: Span, now_us: int) -> str:
    """Move a period's file to quarantine. Call it inside `Files.exclusive`. Returns where it went.

    What the sidecar says of the period is older than the file, and is forgotten first: it must not come back to life.
    """
    blob = files.read(series.quiet_key)
    with suppress(CorruptPartitionError):  # a damaged sidecar is a problem of its own, and covers nothing
        if blob is not None:
            coverage = decode_coverage(blob.data, series, files.address(series.quiet_key))
            rest = coverage.without(SpanSet((period,)))
            if rest != coverage:
                files.replace(series.quiet_key, encode_coverage(rest, series))
    forget(files, series, period_name(series.timeframe, period))
    return files.quarantine(series.key(period), now_us)


def _put(files: Files, series: Series, names: Iterable[str]) -> None:
    files.replace(series.listed_key, msgspec.json.encode(sorted(names)))
