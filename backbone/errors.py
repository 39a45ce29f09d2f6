"""Every error the package raises, sorted by what the caller can do next.

::

    BackboneError
    ├── InputError (also ValueError)   fix the call         .argument .value .allowed
    ├── SourceError                    the venue's side      .market .url .attempts
    │   ├── UnreachableError           try later
    │   ├── RateLimitedError           wait                  .group .retry_after_s
    │   ├── RejectedError              do not retry as is    .status .code
    │   └── PayloadError               it changed its shape  .sample
    ├── IncompleteError                keep the part         .gaps .causes (and .frame, added by the API layer)
    ├── StoreError                     look at the disk      .path
    │   ├── CorruptPartitionError      a damaged file        .path .reason
    │   └── StoreBusyError             another writer        .holder
    ├── ClosedError                    make a new client
    └── StreamClosedError              resubscribe           .reason

    UnfinishedWarning                  a backfill was cut off: wait() for it
    DataChangedWarning                 what was stored is of another unit: read it where it is now

Errors are translated at the edge, once, with ``raise … from exc``; inner layers see only this tree. Every error
survives pickling, so that it can cross a process boundary.
"""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

if TYPE_CHECKING:
    from backbone.model import Span

__all__ = [
    "BackboneError",
    "ClosedError",
    "CorruptPartitionError",
    "DataChangedWarning",
    "IncompleteError",
    "InputError",
    "PayloadError",
    "RateLimitedError",
    "RejectedError",
    "SourceError",
    "StoreBusyError",
    "StoreError",
    "StreamClosedError",
    "UnfinishedWarning",
    "UnreachableError",
]


class BackboneError(Exception):
    """Base of every error that backbone raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # without `__init__`, which takes other arguments than these
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class InputError(BackboneError, ValueError):
    """A wrong argument: fix the call. Raised before any request is sent.

    Attributes: ``argument`` (its name), ``value`` (what was given), ``allowed`` (what would be accepted).
    """

    def __init__(self, argument: str, value: object, allowed: str) -> None:
        super().__init__(f"{argument}={value!r} is not valid: {allowed}")
        self.argument = argument
        self.value = value
        self.allowed = allowed


class _Where(TypedDict, total=False):
    """What every `SourceError` may know."""

    market: str | None
    url: str | None
    attempts: int


class SourceError(BackboneError):
    """The venue's side failed.

    Attributes: ``market`` and ``url`` where known, ``attempts`` (how often it was tried), ``reply_facts`` (what the
    transport saw, set by routing).
    """

    def __init__(self, message: str, *, market: str | None = None, url: str | None = None, attempts: int = 1) -> None:
        super().__init__(message)
        self.market = market
        self.url = url
        self.attempts = attempts
        self.reply_facts: Any = None


class UnreachableError(SourceError):
    """No usable answer arrived (no connection, time-out, cut body, 5xx): try later."""


class RateLimitedError(SourceError):
    """The venue refused for the rate (429) or blocks this address (418): wait.

    Attributes: ``group`` (wire group, or ``None`` for all), ``retry_after_s``, ``banned`` (True for a 418).
    """

    def __init__(
        self,
        message: str,
        *,
        group: str | None = None,
        retry_after_s: float = 1.0,
        banned: bool = False,
        **where: Unpack[_Where],
    ) -> None:
        super().__init__(message, **where)
        self.group = group
        self.retry_after_s = retry_after_s
        self.banned = banned


class RejectedError(SourceError):
    """The venue understood and said no (4xx): do not retry as is.

    Attributes: ``status`` (HTTP), ``code`` (the venue's ``error.name`` as text), ``reason`` (the venue's message).
    """

    def __init__(self, message: str, *, status: int, code: str = "", reason: str = "", **where: Unpack[_Where]) -> None:
        super().__init__(message, **where)
        self.status = status
        self.code = code
        self.reason = reason


class PayloadError(SourceError):
    """The venue's answer is not what it should be; nothing of it was used.

    Attributes: ``sample`` (the start of the offending body).
    """

    def __init__(self, message: str, *, sample: str = "", **where: Unpack[_Where]) -> None:
        super().__init__(message, **where)
        self.sample = sample


class IncompleteError(BackboneError):
    """Part of what was asked could not be had; what arrived is kept (and, for candles, stored).

    Attributes: ``gaps`` (what is missing: for candles `Span`s, half-open, in microseconds since the epoch in UTC, as
    everywhere behind the API, where `Plan.gaps` and coverage have datetimes in the client's zone; market codes for
    tickers and books), ``causes`` (the errors behind it; none where no request was made and no file was damaged),
    ``frame`` (what arrived, in the caller's frame type; set by the API layer).
    """

    def __init__(
        self,
        message: str,
        *,
        gaps: Sequence[Span] | Sequence[str] = (),
        causes: Sequence[BaseException] = (),
        frame: Any = None,
    ) -> None:
        super().__init__(message)
        self.gaps = tuple(gaps)
        self.causes = tuple(causes)
        self.frame = frame


class StoreError(BackboneError):
    """The disk's side failed: full, read-only, vanished. What was stored stays readable.

    Attributes: ``path`` (the file or folder).
    """

    def __init__(self, message: str, *, path: PurePath | str | None = None) -> None:
        super().__init__(message)
        self.path = path


class CorruptPartitionError(StoreError):
    """A stored file is not what was written. It is quarantined, never deleted.

    Attributes: ``path``, ``reason``.
    """

    def __init__(self, message: str, *, path: PurePath | str | None = None, reason: str = "") -> None:
        super().__init__(message, path=path)
        self.reason = reason


class StoreBusyError(StoreError):
    """Another process holds a partition for longer than a write can take.

    Attributes: ``path``, ``holder`` (what is known of it).
    """

    def __init__(self, message: str, *, path: PurePath | str | None = None, holder: str = "") -> None:
        super().__init__(message, path=path)
        self.holder = holder


class ClosedError(BackboneError):
    """The client was closed; make a new one."""


class DataChangedWarning(UserWarning):
    """Stored data proved to be of a state that is over, such as before a redenomination.

    It is quarantined, and the answer is made of what was fetched anew.
    """


class StreamClosedError(BackboneError):
    """The live stream ended: subscribe again.

    Attributes: ``reason`` (the venue's message, or ours).
    """

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class UnfinishedWarning(UserWarning):
    """A client ended while its backfill was running: what arrived is stored, the rest was not asked for."""
