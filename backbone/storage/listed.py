"""Which periods of a series were written: a small note beside the candles, so that an audit misses a file that is gone.

The note is kept from the second period on, since nothing lies between the periods of a series that has one; it covers
nothing and no answer is made from it. It is written after the file, under the series' lock: a crash between the two
leaves a file that is not noted yet, which is no problem.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from backbone.storage.files import Files
from backbone.storage.layout import Series, parse_period

__all__ = ["forget", "listed", "note"]


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


def _put(files: Files, series: Series, names: Iterable[str]) -> None:
    files.replace(series.listed_key, msgspec.json.encode(sorted(names)))
