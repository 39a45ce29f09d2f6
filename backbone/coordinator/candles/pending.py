"""A span of candles on its way: what was asked for, what is still missing, what has arrived, and how far that is.

The plan takes spans out of ``missing``, the fetcher counts what arrives; both hold the condition ``changed`` of the
series. `Progress` is the one record of how far anything is: a call, a section, a job.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import pyarrow as pa

from backbone.coordinator.candles.reader import Fetched, Held
from backbone.errors import StoreError
from backbone.model import Priority, Span, empty_candles
from backbone.storage.coverage import EVER, SpanSet
from backbone.timeframe import Timeframe

__all__ = ["Join", "Joins", "Pending", "Progress"]


class Join(NamedTuple):
    """The held candle beside a gap that a page has to show, and how many held ones there are up to it."""

    time_us: int
    rows: int


class Joins(msgspec.Struct):
    """Where gaps join held candles: by where a gap begins (``below``), and by where one ends (``above``).

    ``held`` has those candles, also where they are not stored but folded from minutes.
    """

    below: dict[int, Join] = msgspec.field(default_factory=dict)
    above: dict[int, Join] = msgspec.field(default_factory=dict)
    held: pa.Table = msgspec.field(default_factory=empty_candles)

    def shown(self, timeframe: Timeframe, claim: Span, proof: SpanSet, oldest_us: int) -> SpanSet:
        """What of `proof` may be stored. A reply has to show the held candle below its gap; one that ends just short of
        it leaves the gap's first slot open, so that one more page is asked, which reaches there."""
        for edge_us, join in self.below.items():
            first = Span(edge_us, timeframe.next(edge_us))
            if join.time_us < oldest_us and claim != first:
                proof = proof - SpanSet([first])
        return proof

    def rows_beside(self, span: Span) -> int:
        """How many rows more a page has that shows what is held on both sides of `span`."""
        return sum(join.rows for join in (self.below.get(span.start), self.above.get(span.end)) if join is not None)


class Progress(msgspec.Struct, frozen=True):
    """How far a fetch is.

    done_slots, total_slots : candle slots had, and in all. What was given up is not had; what is not closed on the
        venue's clock is not counted in all.
    pages, rows : pages asked (a job's search for the listing included), and rows received.
    reached_us : the time up to which all is stored; for a job, of every market that it has come to (of all its markets,
        once it ended).
    ascending : whether it runs from old to new.
    state, sections_done, elapsed_s : of a job, its state, how many sections are stored whole, and how long it has run.
    """

    done_slots: int
    total_slots: int
    pages: int
    rows: int
    reached_us: int
    ascending: bool = True
    state: str = "running"
    sections_done: int = 0
    elapsed_s: float = 0.0

    @property
    def share(self) -> float:
        """The part of the slots that is had, 0 to 1."""
        return self.done_slots / self.total_slots if self.total_slots else 1.0

    @property
    def pages_per_s(self) -> float:
        return self.pages / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to go; None before there is a rate."""
        if self.state != "running":
            return 0.0
        return self.elapsed_s * (1 - self.share) / self.share if self.share > 0 else None


class Pending(msgspec.Struct, eq=False):
    """Candles of `span` on their way, for one caller.

    What a caller says besides the span:

    ascending : oldest pages first.
    patient : outlasts an outage. ``enough``: ends when so many rows have arrived.
    refresh : all of the span is asked again, whatever is held.
    newest : its last page is asked without a bound, so that the candles that are not closed come with it (``forming``).
    on_done, on_page : called when it ends, and after each of its pages.

    How it stands, from where it is begun (`CandleFetcher.begin`):

    held : the store's part of it at the beginning.
    missing, failed : still to come, and given up; ``causes`` says why.
    gaps : what it was begun for; ``beyond`` is what its pages brought besides that was not held.
    pages : asked for it, whether or not the reply was still needed, and those of others that answered it.
    queued : its places in the queue that are not bound to a page yet.
    checked : what other clients had done when what they stored was looked at last; None: not yet.
    joins : the held candles that its pages have to show.
    generation : the market's when it began. ``is_compared``: a page of it was accepted, so its unit is what is held.
    again : what was asked once more because another unit was suspected.
    closed_us : candles that open at or after this turned out not to be closed on the venue's clock.
    """

    market: str
    timeframe: Timeframe
    span: Span
    priority: Priority
    missing: SpanSet = msgspec.field(default_factory=SpanSet)
    held: Held = msgspec.field(default_factory=Held)
    ascending: bool = False
    patient: bool = False
    enough: int | None = None
    refresh: bool = False
    newest: bool = False
    on_done: Callable[[Pending], None] | None = None
    on_page: Callable[[], None] | None = None
    changed: threading.Condition = msgspec.field(default_factory=threading.Condition)
    gaps: SpanSet = msgspec.field(default_factory=SpanSet)
    beyond: SpanSet = msgspec.field(default_factory=SpanSet)
    failed: SpanSet = msgspec.field(default_factory=SpanSet)
    causes: list[BaseException] = msgspec.field(default_factory=list)
    store_error: StoreError | None = None
    closed_us: int = EVER.end
    pages: int = 0
    queued: int = 0
    rows: int = 0
    failures: int = 0
    archived: SpanSet = msgspec.field(default_factory=SpanSet)
    forming: pa.Table | None = None
    checked: int | None = None
    joins: Joins = msgspec.field(default_factory=Joins)
    generation: int = 0
    is_compared: bool = False
    again: SpanSet = msgspec.field(default_factory=SpanSet)

    @property
    def is_done(self) -> bool:
        return not self.missing

    @property
    def is_shared(self) -> bool:
        """Whether what others fetch or have stored will do: not where the venue's own reply of now is wanted."""
        return not (self.refresh or self.newest)

    @property
    def fetched(self) -> Fetched:
        """What it brought that was not in the store when it was begun, and what that cost."""
        return Fetched(self.gaps | self.beyond, self.archived, self.pages)

    @property
    def closed_span(self) -> Span:
        """Its span, as far as that is closed on the venue's clock."""
        return Span(self.span.start, max(self.span.start, min(self.span.end, self.closed_us)))

    def finish(self) -> None:
        """Call ``on_done``, once."""
        with self.changed:
            callback, self.on_done = self.on_done, None
        if callback is not None:
            callback(self)

    def lacking(self) -> SpanSet:
        """What of the closed span is not had: still to come, or given up."""
        with self.changed:
            return self._lacking_locked()

    def _lacking_locked(self) -> SpanSet:
        owed = self.missing | self.failed
        held = SpanSet() if self.refresh else self.held.stored.covered
        return owed and (owed - held).clip(self.closed_span)

    def progress(self) -> Progress:
        """Where it stands now."""
        with self.changed:
            span, lacking, pages, rows = self.closed_span, self._lacking_locked(), self.pages, self.rows
        total = self.timeframe.count(span)
        left = sum(self.timeframe.count(s) for s in lacking)
        if self.ascending:
            reached = lacking.spans[0].start if lacking else span.end
        else:
            reached = lacking.spans[-1].end if lacking else span.start
        return Progress(total - left, total, pages, rows, reached, self.ascending)
