"""Which spans of a series are being fetched at this moment, so that clients on one folder split the work.

A claim is a passing note in a small file beside the locks: a span, who fetches it at which priority, and until when
that counts. It lasts until what arrived is on disk, is ended by whoever made it, and counts for nothing once its
process is gone or its time is over; then the span is fetched by whoever wants it. Nothing depends on claims but how
often the venue is asked: where the file cannot be had, everybody fetches for himself.

A claim is respected at its own priority and at lower ones: nobody waits for work that is less urgent than his own.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from backbone.clock import Clock
from backbone.model import Span
from backbone.storage.coverage import SpanSet
from backbone.storage.files import Files
from backbone.storage.owner_lock import Owner, is_gone, owner_here

__all__ = ["CLAIM_S", "Claim", "Claims", "Others", "claimed_by_others"]

CLAIM_S = 3.0
"""How long a claim counts: a page in flight and its commit take a second at most, a retry may take longer."""


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """A span that `owner` fetches at a priority's `rank` (0: the most urgent), until a wall time."""

    owner: Owner
    rank: int
    start: int
    end: int
    until_us: int


class Others(NamedTuple):
    """What other clients do: their claims, and a number that is another one whenever one of them ended a claim."""

    claims: tuple[Claim, ...] = ()
    ended: int = 0


class _ClaimFile(msgspec.Struct, array_like=True):
    """The file: how often claims were ended, and those that are not."""

    ended: int = 0
    claims: list[Claim] = []


def claimed_by_others(claims: Iterable[Claim], rank: int) -> SpanSet:
    """The spans that somebody else fetches no less urgently than at `rank`."""
    return SpanSet((claim.start, claim.end) for claim in claims if claim.rank <= rank)


class Claims:
    """The claims of one series. Thread-safe; one instance a client."""

    def __init__(self, files: Files, key: str, clock: Clock) -> None:
        self._files = files
        self._key = key
        self._clock = clock
        self._me = owner_here(uuid.uuid4().hex)
        self._lock = threading.Lock()  # guards _ended
        self._ended = 0  # how often this client ended claims

    def take(self, rank: int, choose: Callable[[Others], Span | None]) -> None:
        """Claim the span that `choose` picks, seeing what others do; nothing if it picks none.

        `choose` is called exactly once, with all others shut out: quick, without waiting.
        """
        asked = False

        def change(file: _ClaimFile) -> bool:
            nonlocal asked
            asked = True
            span = choose(self._others(file))
            if span is None:
                return False
            until_us = self._clock.now_us() + int(CLAIM_S * 1e6)
            file.claims.append(Claim(self._me, rank, span.start, span.end, until_us))
            return True

        self._amend(change)
        if not asked:
            choose(Others())

    def release(self, spans: Iterable[Span]) -> None:
        """End this client's claims on `spans`."""
        ended = {tuple(span) for span in spans}

        def change(file: _ClaimFile) -> bool:
            kept = [one for one in file.claims if one.owner != self._me or (one.start, one.end) not in ended]
            file.claims, file.ended = kept, file.ended + 1
            with self._lock:
                self._ended += 1
            return True

        if ended:
            self._amend(change)

    def look(self) -> Others:
        """What others do now. Claims of processes that are gone are removed."""
        found = Others()

        def change(file: _ClaimFile) -> bool:
            nonlocal found
            owners = {claim.owner for claim in file.claims if claim.owner != self._me}
            gone = {owner for owner in owners if is_gone(owner)}
            file.claims = [claim for claim in file.claims if claim.owner not in gone]
            found = self._others(file)
            return bool(gone)

        self._amend(change)
        return found

    def _others(self, file: _ClaimFile) -> Others:
        with self._lock:
            ended = file.ended - self._ended
        return Others(tuple(claim for claim in file.claims if claim.owner != self._me), ended)

    def _amend(self, change: Callable[[_ClaimFile], bool]) -> None:
        """Change the file, if it can be had and `change` says that something did."""

        def amend(data: bytes) -> bytes:
            file = self._read(data)
            return msgspec.json.encode(file) if change(file) else data

        self._files.amend(self._key, amend)

    def _read(self, data: bytes) -> _ClaimFile:
        """The claims that still count; none of a file that was cut."""
        now = self._clock.now_us()
        try:
            file = _claim_files.decode(data) if data else _ClaimFile()
        except msgspec.MsgspecError:
            return _ClaimFile()
        file.claims = [claim for claim in file.claims if now < claim.until_us <= now + 2 * int(CLAIM_S * 1e6)]
        return file


_claim_files = msgspec.json.Decoder(_ClaimFile)
