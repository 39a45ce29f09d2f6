"""Which spans of a series are being fetched at this moment, so that clients on one folder split the work.

A claim is a passing note in a small file beside the locks: a span, who fetches it at which priority, and until when
that counts. It may be of several pages, which are then asked without another look at the file. It lasts until what
arrived is on disk, is ended by whoever made it, and counts for nothing once its process is gone or its time is over;
then the span is fetched by whoever wants it. Nothing depends on claims but how often the venue is asked: where the file
cannot be had, everybody fetches for himself.

A claim is respected at its own priority and at lower ones: nobody waits for work that is less urgent than his own.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from backbone.clock import Clock
from backbone.errors import StoreError
from backbone.model import Span
from backbone.storage.coverage import SpanSet
from backbone.storage.files import Files, Version
from backbone.storage.owner_lock import Owner, is_gone, owner_here

__all__ = ["CLAIM_S", "Claim", "Claims", "Others", "spans_claimed"]

_log = logging.getLogger(__name__)

CLAIM_S = 3.0
"""How long a claim counts: a page in flight and its commit take a second at most, a retry may take longer."""
_LEAST_S = 2.0  # of a claim that is relied on without a look at the file: a page's second, and a retry


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


def spans_claimed(claims: Iterable[Claim], rank: int) -> SpanSet:
    """The spans that are claimed at `rank` or a more urgent one."""
    return SpanSet((claim.start, claim.end) for claim in claims if claim.rank <= rank)


class Claims:
    """The claims of one series. Thread-safe; one instance a client."""

    def __init__(self, files: Files, key: str, clock: Clock) -> None:
        self._files = files
        self._key = key
        self._clock = clock
        self._me = owner_here(uuid.uuid4().hex)
        self._seen = Others()  # what others did when that was asked for last; for whoever has the file
        self._lock = threading.Lock()  # guards what follows
        self._ended = 0  # how often this client ended claims
        self._mine: list[Claim] = []
        self._version: Version | None = None  # the file's, as this client left it; None where there is more to see

    def take(self, rank: int, choose: Callable[[Others], Span | None]) -> None:
        """Claim the span that `choose` picks, seeing what others do; nothing if it picks none.

        `choose` is called exactly once, with all others shut out: quick, without waiting.
        """
        asked = False

        def change(file: _ClaimFile) -> bool:
            nonlocal asked
            asked = True
            span = choose(self._see(file))
            if span is None:
                return False
            claim = Claim(self._me, rank, span.start, span.end, self._clock.now_us() + int(CLAIM_S * 1e6))
            file.claims.append(claim)
            with self._lock:
                self._mine = [*self._counting(self._mine), claim]
            return True

        self._amend(change)
        if not asked:
            choose(Others())

    def has(self, span: Span, rank: int) -> bool:
        """Whether this client has claimed all of `span`, for long enough and at `rank` or a more urgent one."""
        with self._lock:
            return spans_claimed(self._counting(self._mine, _LEAST_S), rank).contains(span)

    def is_unchanged(self) -> bool:
        """Whether nobody else has changed the file since this client did. It looks at the file."""
        with self._lock:
            version = self._version
        return version is not None and self._stat() == version

    def _stat(self) -> Version | None:
        """The file's version; None where it cannot be looked at, as `take` does without a file that cannot be had."""
        try:
            return self._files.stat(self._key)
        except StoreError as exc:
            _log.debug("store.no_notes path=%s (%s)", exc.path, exc)
            return None

    def release(self, spans: Iterable[Span]) -> None:
        """End this client's claims on `spans`."""
        ended = SpanSet(spans)

        def change(file: _ClaimFile) -> bool:
            kept = [rest for one in file.claims for rest in (_without(one, ended) if one.owner == self._me else [one])]
            file.claims, file.ended = kept, file.ended + 1
            with self._lock:
                self._ended += 1
            return True

        if ended:
            with self._lock:
                self._mine = [rest for one in self._mine for rest in _without(one, ended)]
            self._amend(change)

    def keep(self, needed: Callable[[], SpanSet]) -> None:
        """End this client's claims outside what is `needed`. That is asked second: of claims that are made meanwhile
        nothing ends."""
        with self._lock:
            mine = self._counting(self._mine)
        if mine:
            self.release(SpanSet((one.start, one.end) for one in mine) - needed())

    def look(self) -> Others:
        """What others do now. Claims of processes that are gone are removed."""
        found = Others()

        def change(file: _ClaimFile) -> bool:
            nonlocal found
            owners = {claim.owner for claim in file.claims if claim.owner != self._me}
            gone = {owner for owner in owners if is_gone(owner)}
            file.claims = [claim for claim in file.claims if claim.owner not in gone]
            found = self._see(file)
            return bool(gone)

        self._amend(change)
        return found

    def _others(self, file: _ClaimFile) -> Others:
        with self._lock:
            ended = file.ended - self._ended
        return Others(tuple(claim for claim in file.claims if claim.owner != self._me), ended)

    def _see(self, file: _ClaimFile) -> Others:
        """What others do, for whoever asks for it."""
        self._seen = self._others(file)
        return self._seen

    def _amend(self, change: Callable[[_ClaimFile], bool]) -> None:
        """Change the file, if it can be had and `change` says that something did."""
        is_seen = False

        def amend(data: bytes) -> bytes:
            nonlocal is_seen
            file = self._read(data)
            is_changed = change(file)
            is_seen = self._others(file) == self._seen
            return msgspec.json.encode(file) if is_changed else data

        version = self._files.amend(self._key, amend)
        with self._lock:
            self._version = version if is_seen else None

    def _read(self, data: bytes) -> _ClaimFile:
        """The claims that still count; none of a file that was cut."""
        try:
            file = _claim_files.decode(data) if data else _ClaimFile()
        except msgspec.MsgspecError:
            return _ClaimFile()
        file.claims = self._counting(file.claims)
        return file

    def _counting(self, claims: list[Claim], least_s: float = 0.0) -> list[Claim]:
        """Those that count, for `least_s` seconds more."""
        now = self._clock.now_us()
        first, last = now + int(least_s * 1e6), now + 2 * int(CLAIM_S * 1e6)
        return [claim for claim in claims if first < claim.until_us <= last]


def _without(claim: Claim, spans: SpanSet) -> list[Claim]:
    """What is left of a claim whose `spans` are done."""
    if not spans.touches((claim.start, claim.end)):
        return [claim]
    left = SpanSet([(claim.start, claim.end)]) - spans
    return [msgspec.structs.replace(claim, start=span.start, end=span.end) for span in left]


_claim_files = msgspec.json.Decoder(_ClaimFile)
