"""What is held of a market's candles: stored rows, candles folded from stored minutes, and what is unknown.

Makes no request. Every answer is made here, also of what was just fetched: whatever arrived is in the store first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec.structs import replace

from backbone.candle_table import count_inside, rows_inside, show_time, times_of
from backbone.clock import VenueClock
from backbone.coordinator.candles.witness import EARLIEST_US
from backbone.coordinator.units import leaps_between
from backbone.errors import IncompleteError, InputError
from backbone.model import Span, empty_candles
from backbone.routing.wire import PAGE
from backbone.settings import Settings
from backbone.storage.continuity import Interval, Outage, intervals, outages
from backbone.storage.coverage import EVER, SpanSet
from backbone.storage.fold import fold
from backbone.storage.store import CandleStore
from backbone.storage.view import Stored
from backbone.timeframe import DAY_US, TIMEFRAMES, Timeframe, periods_in

__all__ = ["CandleAnswer", "CandleReader", "Fetched", "Held", "Reach", "incomplete", "out_of_reach", "with_cost"]

_MINUTE = TIMEFRAMES["1m"]
_NOTHING = SpanSet()
_AHEAD = 64  # markets whose files are read at once
_BESIDE, _FARTHEST = 8, 200_000  # slots within which the candle beside a gap is looked for


class Fetched(msgspec.Struct, frozen=True):
    """What a call brought that was not stored before: its spans, those from the archive, and the pages it took."""

    spans: SpanSet = _NOTHING
    archived: SpanSet = _NOTHING
    pages: int = 0

    def __add__(self, other: Fetched) -> Fetched:
        return Fetched(self.spans | other.spans, self.archived | other.archived, self.pages + other.pages)


_NO_PAGES = Fetched()


class CandleAnswer(msgspec.Struct, frozen=True):
    """One market's candles and where they came from. ``sources`` counts rows by source.

    ``fetched.pages`` counts the requests of this answer: each page that was asked for it, whether or not its reply was
    still needed, and each that somebody else had asked and that answered it. So answers that share a page both count
    it, and together they never count less than was sent. A page that the transport had to repeat counts once.
    ``forming`` has the candles that are not closed, where a page brought them. ``behind`` is the part of the range
    after `span` that is not held, of an answer from the store alone. ``unit`` is the market's generation just before it
    was read, of a job's section.
    """

    market: str
    span: Span
    table: pa.Table
    quiet: int
    unknown: int
    sources: dict[str, int]
    gaps: tuple[Span, ...] = ()
    causes: tuple[BaseException, ...] = ()
    fetched: Fetched = Fetched()
    forming: pa.Table | None = None
    behind: Span | None = None
    unit: int = 0

    @property
    def pages(self) -> int:
        return self.fetched.pages

    def after(self, earlier: CandleAnswer) -> CandleAnswer:
        """This answer with what an `earlier` one of the same range cost: what that fetched, this found in memory."""
        sources = dict(self.sources)
        new = earlier.fetched.spans - self.fetched.spans
        brought, archived = count_inside(self.table, new), count_inside(self.table, new & earlier.fetched.archived)
        read = earlier.sources.get("disk", 0) - sources.get("disk", 0)
        for name, rows in (("archive", archived), ("rest", brought - archived), ("disk", read)):
            taken = max(0, min(rows, sources.get("memory", 0)))
            sources["memory"] = sources.get("memory", 0) - taken
            sources[name] = sources.get(name, 0) + taken
        found = {name: rows for name, rows in sources.items() if rows}
        forming = earlier.forming if self.forming is None else self.forming
        return replace(self, sources=found, fetched=earlier.fetched + self.fetched, forming=forming)


def with_cost(answers: Sequence[CandleAnswer], earlier: Sequence[CandleAnswer]) -> list[CandleAnswer]:
    """Answers that were made anew, with what the `earlier` ones took. What those had read is gone, and so is what they
    saw forming: it may be of the unit of before."""
    if not earlier:
        return list(answers)
    return [now.after(replace(before, sources={}, forming=None)) for now, before in zip(answers, earlier, strict=True)]


class Held(msgspec.Struct, frozen=True):
    """A span as the store has it.

    stored : what was read.
    have, derived, gaps : how the span divides: held, to be folded from stored minutes, to be fetched.
    """

    stored: Stored = msgspec.field(default_factory=lambda: Stored(empty_candles(), SpanSet(), {}))
    have: SpanSet = _NOTHING
    derived: SpanSet = _NOTHING
    gaps: SpanSet = _NOTHING


class Reach(msgspec.Struct, frozen=True):
    """How far back the newest candles are known without a hole: `known` holds at most as many rows as were asked for.

    ``short`` is how many rows are wanted from before it; 0 where all are known, or history begins there.
    """

    known: Span
    short: int


class CandleReader:
    """Candles as the store has them, up to what is closed on the venue's clock."""

    def __init__(self, store: CandleStore, venue: VenueClock, settings: Settings) -> None:
        self._store = store
        self._venue = venue
        self._settings = settings

    def closed_before(self, timeframe: Timeframe) -> int:
        """Candles that open before this are closed: their end has passed on the venue's clock, plus the grace."""
        return timeframe.floor(self._venue.now_us() - int(self._settings.close_grace_s * 1e6))

    def forgotten(self, timeframe: Timeframe, spans: SpanSet) -> SpanSet:
        """What of `spans` the venue keeps no candles of any more."""
        kept = self._settings.venue.retention(timeframe.name)
        if kept is None or not self._venue.is_known:  # this machine's clock is no judge of that
            return _NOTHING
        kept_us = kept.days * DAY_US
        return spans.clip(Span(EARLIEST_US, max(1, timeframe.ceil(self._venue.now_us() - kept_us))))

    def provable(self, timeframe: Timeframe, proof: SpanSet, oldest_us: int | None) -> tuple[SpanSet, SpanSet]:
        """Split a proof: what holds, and the part of which the venue may have forgotten its candles."""
        kept = self._settings.venue.retention(timeframe.name)
        if kept is None or not proof.holds(EARLIEST_US):
            return proof, _NOTHING
        sure_us = timeframe.ceil(self._venue.now_us() - kept.sure_days * DAY_US)
        lost = proof & SpanSet([Span(EARLIEST_US, sure_us if oldest_us is None else min(sure_us, oldest_us))])
        return proof - lost, lost

    # -- a span --------------------------------------------------------------------------------------------------

    def read(self, market: str, timeframe: Timeframe, span: Span) -> Held:
        """How `span` divides: held, to be folded from stored minutes, to be fetched."""
        stored = self._store.read(market, timeframe, span)
        due = stored.due(self._venue.now_us()).clip(span) if stored.provisional else SpanSet()
        gaps = (SpanSet([span]) - stored.covered) | due
        derived = self._joining(market, timeframe, stored, self._foldable(market, timeframe, gaps))
        return Held(stored, stored.covered - due, derived, gaps - derived)

    def ahead(self, timeframe: Timeframe, wanted: Sequence[tuple[str, Span]]) -> Iterator[tuple[str, Span]]:
        """`wanted` itself, a market and a span each; many small files are read at once, just before their turn."""
        if len(wanted) == 1:
            yield wanted[0]
            return
        for at in range(0, len(wanted), _AHEAD):
            some = wanted[at : at + _AHEAD]
            with self._store.reading_ahead(timeframe, some):
                yield from some

    def recall(
        self,
        market: str,
        timeframe: Timeframe,
        span: Span,
        fetched: Fetched = _NO_PAGES,
        *,
        held: Held | None = None,
        causes: tuple[BaseException, ...] = (),
        before: dict[str, int] | None = None,
    ) -> CandleAnswer:
        """The answer for `span` as it is held: stored rows and folded ones, counted by where they came from.

        Parameters
        ----------
        fetched : what it took to hold it.
        held : what is held, where that was read already.
        causes : why something is not held; otherwise a damaged file is, where there is one.
        before : how many rows each tier had before anything was fetched, where that is known.
        """
        held = self.read(market, timeframe, span) if held is None else held
        lost = held.gaps - held.stored.covered  # an overdue second request is no hole
        if lost and not causes:
            causes = tuple(self._store.damages(market, timeframe, lost))
        stored, table = held.stored.table, self._rows(market, timeframe, span, held)
        sources = _tiers(held.stored.tiers, count_inside(stored, fetched.spans), before)
        if archived := count_inside(stored, fetched.spans & fetched.archived):
            sources = {**sources, "rest": sources.get("rest", 0) - archived, "archive": archived}
        sources["derived:1m"] = table.num_rows - stored.num_rows
        unknown = sum(timeframe.count(s) for s in lost)
        quiet = max(0, timeframe.count(span) - unknown - table.num_rows)
        found = {name: rows for name, rows in sources.items() if rows}
        return CandleAnswer(market, span, table, quiet, unknown, found, tuple(lost), causes, fetched)

    def _rows(self, market: str, timeframe: Timeframe, span: Span, held: Held) -> pa.Table:
        """All stored rows of what was read as `held`, with the folded ones of `span`."""
        table = held.stored.table
        if spans := held.derived.clip(span) - held.stored.covered:
            table = pa.concat_tables([table, self._folded(market, timeframe, spans)]).sort_by("time")
        return table

    def beside(self, market: str, timeframe: Timeframe, edge_us: int, *, is_below: bool) -> pa.Table:
        """The held candles nearest to the edge of a gap, as far as what is held joins it: none where that is unknown.

        A few at least, where there are; between them and the edge nobody traded.
        """
        slots = _BESIDE
        if not EVER.start < edge_us < EVER.end:
            return empty_candles()
        while slots < _FARTHEST:
            if is_below:
                span = Span(max(EVER.start, timeframe.next(timeframe.ceil(edge_us), -slots)), edge_us)
            else:
                span = Span(edge_us, timeframe.next(timeframe.ceil(edge_us), slots))
            held = self.read(market, timeframe, span) if span.start < span.end else Held()
            known = held.stored.covered | held.derived
            run = next((one for one in known if (one.end >= edge_us if is_below else one.start <= edge_us)), None)
            if run is None:
                return empty_candles()
            table = rows_inside(self._rows(market, timeframe, run, held), [run])
            if table.num_rows or run.length_us < span.length_us:
                return table
            slots *= 16
        return empty_candles()

    def first_after(self, market: str, timeframe: Timeframe, edge_us: int) -> int | None:
        """The open of the first candle held in the page of slots behind `edge_us`."""
        behind = Span(edge_us, timeframe.next(timeframe.ceil(edge_us), PAGE))
        times = times_of(self._store.read(market, timeframe, behind).table)
        return int(times[0]) if len(times) else None

    # -- longer candles from minutes -----------------------------------------------------------------------------

    def _foldable(self, market: str, timeframe: Timeframe, gaps: SpanSet) -> SpanSet:
        """The whole candles inside `gaps` whose minutes are all stored, where the venue's candles are sums of them."""
        day = TIMEFRAMES["1d"].step_us
        if timeframe.step_us <= _MINUTE.step_us or timeframe.step_us > day or not gaps:
            return SpanSet()
        found = []
        for gap in gaps - SpanSet([Span(EVER.start, self._settings.venue.sums_since_us)]):
            for held in self._store.coverage(market, _MINUTE, gap):
                start, end = timeframe.ceil(held.start), timeframe.floor(held.end)
                if start < end:
                    found.append(Span(start, end))
        return SpanSet(found)

    def _joining(self, market: str, timeframe: Timeframe, stored: Stored, derived: SpanSet) -> SpanSet:
        """`derived` without the candles whose stored neighbour has a price far off: minutes and longer candles may have
        been stored in different units, and a page that shows both says so."""
        if not derived or not stored.table.num_rows:
            return derived
        times = times_of(stored.table)
        for span in derived:
            first, last = Span(span.start, timeframe.next(span.start)), Span(timeframe.next(span.end, -1), span.end)
            at = int(np.searchsorted(times, span.start))
            if stored.covered.holds(span.start - 1) and at:
                folded = self._folded(market, timeframe, SpanSet([first]))
                if leaps_between(stored.table.slice(at - 1, 1), folded):
                    derived = derived - SpanSet([first])
            if stored.covered.holds(span.end) and at < len(times):
                folded = self._folded(market, timeframe, SpanSet([last]))
                if leaps_between(folded, stored.table.slice(at, 1)):
                    derived = derived - SpanSet([last])
        return derived

    def fold_minutes(self, market: str, timeframe: Timeframe, span: Span) -> tuple[pa.Table, SpanSet]:
        """The candles of `span` that can be folded from stored minutes, and the spans that they are all of."""
        foldable = self._foldable(market, timeframe, SpanSet([span]))
        return self._folded(market, timeframe, foldable), foldable

    def _folded(self, market: str, timeframe: Timeframe, spans: SpanSet) -> pa.Table:
        parts = [fold(self._store.read(market, _MINUTE, span).table, timeframe) for span in spans]
        return pa.concat_tables([empty_candles(), *parts])

    # -- the newest so many --------------------------------------------------------------------------------------

    def reach_back(self, market: str, timeframe: Timeframe, end_us: int, count: int) -> Reach:
        """How far back the newest `count` candles before `end_us` are known without a hole."""
        listed = self.quiet_before(market, timeframe)
        window = max(1, count)
        while True:
            start = max(listed, timeframe.next(timeframe.floor(end_us), -window))
            held = self.read(market, timeframe, Span(start, end_us))
            spans = list(held.have | held.derived)
            known = spans[-1] if spans and spans[-1].end >= end_us else Span(end_us, end_us)
            times = times_of(self._rows(market, timeframe, known, held))
            times = times[np.searchsorted(times, known.start) :]
            if len(times) >= count:
                return Reach(Span(int(times[len(times) - count]), end_us), 0)
            if known.start > start:
                return Reach(known, count - len(times))
            if start <= listed:
                return Reach(known, 0)
            window *= 4

    def held_until(self, market: str, timeframe: Timeframe, end_us: int) -> int:
        """The end of what is held before `end_us`; `end_us` where nothing is. Files far before that are not read."""
        may_fold = _MINUTE.step_us < timeframe.step_us <= TIMEFRAMES["1d"].step_us
        lengths = (timeframe, _MINUTE) if may_fold else (timeframe,)
        until = [self._store.held_until(market, each, end_us) for each in lengths]
        near, slots = max((time for time in until if time is not None), default=EVER.start), 2
        while near > EVER.start:
            span = Span(max(EVER.start, timeframe.next(timeframe.floor(near), -slots)), end_us)
            held = self._store.coverage(market, timeframe, span)
            held = held | self._foldable(market, timeframe, SpanSet([span]))
            if held:
                return held.spans[-1].end
            if span.start == EVER.start:
                break
            slots *= 16
        return end_us

    # -- what is known of a series -------------------------------------------------------------------------------

    def quiet_before(self, market: str, timeframe: Timeframe) -> int:
        """Before this there was nothing, as far as is proven; 0 where nothing is."""
        return self._store.quiet_before(market, timeframe)

    def is_start_unknown(self, market: str, timeframe: Timeframe, start_us: int) -> bool:
        """Whether the store knows nothing of what is at or before `start_us`, and the venue may know."""
        if self._settings.venue.retention(timeframe.name) is not None:
            return False  # its first candles are gone
        oldest = self._store.oldest(market, timeframe)
        return self.quiet_before(market, timeframe) <= start_us and (oldest is None or oldest > start_us)

    def is_held(self, market: str, timeframe: Timeframe) -> bool:
        """Whether any candle is stored that an answer could be made of: of this timeframe, or minutes to fold."""
        held = self._store.oldest(market, timeframe)
        return held is not None or self._store.oldest(market, _MINUTE) is not None

    def listed_from(self, market: str, timeframe: Timeframe) -> int | None:
        """Before this there was nothing, where the beginning of its history is proven."""
        proven = self.quiet_before(market, timeframe)
        if proven <= EVER.start:
            return None
        oldest = self._store.oldest(market, timeframe)
        return proven if oldest is None else oldest

    def intervals(self, market: str, timeframe: Timeframe) -> list[Interval]:
        """What is covered, oldest first: runs of candles, quiet intervals, and the unknown between them."""
        listed = self.quiet_before(market, timeframe)
        found = [Interval(EVER.start, listed, "quiet", 0)] if listed > EVER.start else []
        now = timeframe.next(self.closed_before(timeframe), 1)
        bounds = self._store.coverage(market, timeframe, Span(listed, max(listed, now))).bounds
        if bounds is None:
            return found
        begin = listed if found else bounds.start
        for period in periods_in(timeframe, Span(begin, bounds.end)):  # one partition in memory at a time
            part = Span(max(begin, period.start), min(bounds.end, period.end))
            held = self._store.read(market, timeframe, part)
            for one in intervals(times_of(held.table), held.covered, part, timeframe):
                if found and found[-1].state == one.state and found[-1].start > EVER.start:
                    last = found.pop()
                    one = Interval(last.start, one.end, last.state, last.slots + one.slots)
                found.append(one)
        return found

    def outages(self, markets: Sequence[str], timeframe: Timeframe, span: Span) -> list[Outage]:
        """Where none of `markets` traded, though as many of them as are covered at that time would have."""
        known: list[tuple[Any, SpanSet]] = []
        for market in markets:
            listed = self.quiet_before(market, timeframe)  # before its listing a market without trades says nothing
            part = Span(max(span.start, listed), max(span.end, listed))
            held = self._store.read(market, timeframe, part)
            known.append((times_of(held.table), held.covered))
        return outages(known, timeframe)


def _tiers(now: dict[str, int], fetched: int, before: dict[str, int] | None) -> dict[str, int]:
    """Row counts by source: `fetched` rows came from the venue (and are read back from memory), the others from where
    they were `before` that, if it is known."""
    if before is not None and sum(now.values()) - fetched == sum(before.values()):
        return {**before, "rest": fetched}
    left = dict(now)
    rows = fetched
    for name in ("memory", "disk"):
        taken = min(rows, left.get(name, 0))
        left[name] = left.get(name, 0) - taken
        rows -= taken
    return {**left, "rest": fetched}


def out_of_reach(start_us: int) -> InputError:
    """The cause for candles that the venue keeps no more."""
    return InputError("start", show_time(start_us), "the venue keeps 1-second candles for the last three months only")


def incomplete(answers: Sequence[CandleAnswer], timeframe: Timeframe) -> IncompleteError | None:
    """The one error for what could not be had, or None. A single cause of the venue's is named first."""
    gaps = [gap for answer in answers for gap in answer.gaps]
    if not gaps:
        return None
    causes = [cause for answer in answers for cause in answer.causes]
    rows = sum(answer.table.num_rows for answer in answers)
    unknown = sum(answer.unknown for answer in answers)
    lacking = [answer.market for answer in answers if answer.gaps]
    markets = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more markets," if len(lacking) > 5 else "")
    why = f": {causes[0]}" if causes else ": not held"
    is_over = causes and all(isinstance(cause, InputError) for cause in causes)
    kept = (
        "arrived are in .frame; the venue has the gaps (.gaps) no more."
        if is_over
        else "arrived are stored and in .frame; the same call asks only for the gaps (.gaps)."
    )
    return IncompleteError(
        f"{markets} {timeframe}: {unknown} candles in {len(gaps)} {'gap' if len(gaps) == 1 else 'gaps'} could not be "
        f"had{why}. The {rows} rows that {kept}",
        gaps=gaps,
        causes=causes,
    )
