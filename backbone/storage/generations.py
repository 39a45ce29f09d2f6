"""Which generation of a market's candles counts: a number that rises when all that is stored of it is quarantined.

A page belongs to the generation under which it was requested; a page of an older one is never stored, whichever process
has it. One small file a market holds the number, replaced in one step; a market without a file is at 0. While files
are being moved away the record says where to (``leaving``): until then nothing of the market is held, for every
reader, and whoever wants to write ends the move first. So a crash in the middle leaves files that are never read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from backbone.storage.files import Files, Version, retried
from backbone.storage.layout import GENERATIONS, LOCKS

__all__ = ["Generation", "Generations", "Note"]


class Note(msgspec.Struct, frozen=True):
    """An event that is due once the move has ended."""

    kind: str
    detail: dict[str, Any]
    how: str


class Generation(msgspec.Struct, frozen=True):
    """``leaving`` names the quarantine that files are being moved to; empty where none is."""

    number: int = 0
    leaving: str = ""
    notes: tuple[Note, ...] = ()


_FIRST = Generation()


class Generations:
    """The generations of one exchange's markets. Thread-safe; several processes may share them."""

    def __init__(self, files: Files, exchange: str) -> None:
        self._files = files
        self._folder = f"exchange={exchange}"
        self._known: dict[str, tuple[Version, Generation]] = {}

    def of(self, market: str) -> Generation:
        """A market's generation now; the first one where the file is lost or damaged."""
        key = self._key(market)
        version = self._files.stat(key)
        if version is None:
            return _FIRST
        known = self._known.get(key)
        if known is None or known[0] != version:
            blob = self._files.read(key)
            if blob is None:
                return _FIRST
            try:
                known = blob.version, msgspec.json.decode(blob.data, type=Generation)
            except msgspec.MsgspecError:
                known = blob.version, _FIRST
            self._known[key] = known
        return known[1]

    def refresh(self) -> None:
        """See that `of` says nothing that is older than this call."""
        self._files.refresh(f"{GENERATIONS}/{self._folder}")

    def begin(self, market: str, name: str, notes: tuple[Note, ...], after: int | None) -> bool:
        """Begin the next generation: files are to be moved to quarantine `name`.

        False where the market is not, or no longer, at generation `after`, or where a move has not ended.
        """

        def next_one(now: Generation) -> Generation | None:
            if now.leaving or after not in (None, now.number):
                return None
            return Generation(now.number + 1, name, notes)

        return self._changed(market, next_one)

    def end(self, market: str, number: int) -> bool:
        """The files of generation `number` are gone; False where somebody else has said so."""

        return self._changed(market, lambda now: Generation(number) if now.leaving and now.number == number else None)

    def _changed(self, market: str, change: Callable[[Generation], Generation | None]) -> bool:
        """Write what `change` makes of the generation as it is; False where it makes nothing of it."""

        def write() -> bool:
            generation = change(self.of(market))
            if generation is not None:
                self._files.replace(self._key(market), msgspec.json.encode(generation))
            return generation is not None

        return retried(self._files, f"{LOCKS}/{self._folder}/market={market}.lock", write)

    def markets(self) -> list[str]:
        """The markets that are no longer, or not only, at their first generation."""
        names = self._files.list(f"{GENERATIONS}/{self._folder}")
        return [name.removeprefix("market=").removesuffix(".json") for name in names if name.endswith(".json")]

    def leaving(self) -> list[str]:
        """The markets whose move has not ended."""
        return [market for market in self.markets() if self.of(market).leaving]

    def _key(self, market: str) -> str:
        return f"{GENERATIONS}/{self._folder}/market={market}.json"
