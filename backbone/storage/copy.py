"""A whole store copied to another place, a folder or an object store, and proven there.

Nothing is overwritten: a file that is already at the target must be the same to the byte, and if one is not, nothing at
all is copied. Files are copied as they are, so every promise of the store goes with them. The proof reads the target
back: each file equal to its source, and each sound by its own seal. Files that change at the source meanwhile are
copied again, and those that leave it are taken back, until a pass finds none, in which no market was quarantined: so
each market is of one generation. Where the target holds files that the source had before a redenomination, the copy is
refused: two units would stand in one series. Of the log of events the target gets the lines that it lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from backbone.errors import StoreError
from backbone.storage import audit
from backbone.storage.audit import Problem
from backbone.storage.event_table import EventTable
from backbone.storage.files import Files
from backbone.storage.generations import Generations
from backbone.storage.layout import (
    CANDLES,
    EVENTS,
    GENERATIONS,
    LOCKS,
    QUARANTINE,
    SIDECARS,
    Series,
    parse_partition_key,
    parse_sidecar_key,
)

__all__ = ["Copied", "copy_store"]

_PASSES = 5  # over a source that is being written to


@dataclass(frozen=True)
class Copied:
    """What a copy did: ``files`` and ``bytes`` written, ``same`` that were there already, ``problems`` of the proof."""

    files: int
    bytes: int
    same: int
    problems: tuple[Problem, ...]


def copy_store(source: Files, target: Files) -> Copied:
    """Copy every candle, all coverage and the events of `source` to `target`, then prove the target.

    Raises `StoreError` where the target holds something else under one of the names or candles from before a
    redenomination (before anything is copied), or where the source does not stop changing.
    """
    differing = [key for key in _keys(source) if _differs(source, target, key)]
    if differing:
        shown = ", ".join(differing[:3]) + ("…" if len(differing) > 3 else "")
        raise StoreError(
            f"{target!r} holds other candles in {len(differing)} files ({shown}): nothing was copied. Copy into an "
            "empty place, or fetch there and let the store merge",
            path=target.address(differing[0]),
        )
    _check_units(source, target)
    written: dict[str, int] = {}  # bytes
    same: set[str] = set()
    for _ in range(_PASSES):
        before, is_equal = _generations(source), True
        for key in _keys(source):
            size = _copy(source, target, key, is_ours=key in written or key in same)
            if size is None:
                same.update([key] if key not in written else [])
            else:
                same.discard(key)
                written[key], is_equal = written.get(key, 0) + size, False
        for key in source.walk(EVENTS):
            if key.endswith(".jsonl") and (size := _copy_events(source, target, key)):
                written[key], is_equal = written.get(key, 0) + size, False
        for key in [key for key in written if source.stat(key) is None]:  # it left the source meanwhile
            target.remove(key)
            del written[key]
            is_equal = False
        if is_equal and before is not None and before == _generations(source):
            _check_units(source, target)  # one may have been noticed meanwhile
            # every file equals its source, as this pass found; the seals show damage that both sides share
            names = [folder.removeprefix("exchange=") for folder in target.list(CANDLES)]
            problems = tuple(problem for name in names for problem in audit.verify(target, name))
            return Copied(len(written), sum(written.values()), len(same), problems)
    raise StoreError(f"{source!r} is being written to faster than it can be copied; copy it when it rests")


def _generations(files: Files) -> dict[str, int] | None:
    """The generation of each market that ever had a second one; None while files of any are being moved away."""
    found: dict[str, int] = {}
    files.refresh(GENERATIONS)
    for exchange in files.list(GENERATIONS):
        generations = Generations(files, exchange.removeprefix("exchange="))
        if generations.leaving():
            return None
        found |= {f"{exchange}/{market}": generations.of(market).number for market in generations.markets()}
    return found


def _check_units(source: Files, target: Files) -> None:
    """Raise `StoreError` where the target has files that left the source in a redenomination, of the old unit."""
    moved: list[str] = []
    for log in source.walk(EVENTS):
        blob = source.read(log) if log.endswith(".jsonl") else None
        lines = [] if blob is None else blob.data.splitlines(keepends=True)
        known = EventTable().extended(b"".join(line for line in lines if b'"redenominated"' in line)).events()
        moved += (f"{QUARANTINE}/{event.detail['name']}/" for event in known if event.kind == "redenominated")
    held = set(_keys(source)) if moved else ()
    old = [
        name
        for folder in moved
        for key in source.walk(folder.removesuffix("/"))
        if parse_partition_key(name := key.removeprefix(folder)) is not None
        and name not in held
        and target.stat(name) is not None
        and not _differs(source, target, key, name)
    ]
    if old:
        shown = ", ".join(old[:3]) + ("…" if len(old) > 3 else "")
        raise StoreError(
            f"{target!r} holds candles from before a redenomination in {len(old)} files ({shown}): beside what is "
            "copied they would be of another unit. Remove their market there, or copy into an empty place",
            path=target.address(old[0]),
        )


def _keys(files: Files) -> Iterator[str]:
    for folder in (CANDLES, *SIDECARS):
        yield from (key for key in files.walk(folder) if _series_of(key) is not None)


def _series_of(key: str) -> Series | None:
    place = parse_partition_key(key)
    return parse_sidecar_key(key) if place is None else place[0]


def _differs(source: Files, target: Files, key: str, name: str | None = None) -> bool:
    """Whether the target holds something else under a key, or under `name`."""
    name = key if name is None else name
    if target.stat(name) is None:
        return False
    mine, theirs = source.read(key), target.read(name)
    return mine is not None and theirs is not None and mine.data != theirs.data


def _copy(source: Files, target: Files, key: str, *, is_ours: bool) -> int | None:
    """Bytes written; None where the target has them already."""
    series = _series_of(key)
    assert series is not None
    blob = source.read(key)
    if blob is None:
        return None
    with target.exclusive(series.lock_key):
        held = target.read(key)
        if held is not None and held.data == blob.data:
            return None
        if held is not None and not is_ours:
            path = target.address(key)
            raise StoreError(f"{path} was written by another process during the copy", path=path)
        target.replace(key, blob.data)
    return len(blob.data)


def _copy_events(source: Files, target: Files, key: str) -> int:
    """Bytes written: of two logs of one exchange each line is true, in whichever order they stand."""
    blob, exchange = source.read(key), key.removeprefix(f"{EVENTS}/").removesuffix(".jsonl")
    lines = [] if blob is None else blob.data[: blob.data.rfind(b"\n") + 1].splitlines(keepends=True)
    with target.exclusive(f"{LOCKS}/{exchange}/events.lock"):
        held = target.read(key)
        known = set() if held is None else set(held.data.splitlines(keepends=True))
        data = b"".join(line for line in lines if line not in known)
        if data:
            target.append(key, data)
    return len(data)
