"""Stored candles against what the venue sends now: which held candle a page has to show, and what follows from it.

`units` has the rule. Here is what it is applied to: the candles beside a gap, the candles that a page has in common
with the store, the nearest ones of any timeframe where it has none in common, a wider sample that is asked for where
those differ by one factor; and the end of an old unit, when all that is stored of the market is quarantined. Nothing
here waits for a reply.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from backbone.candle_table import rows_inside, times_of
from backbone.clock import VenueClock
from backbone.coordinator.candles.pending import Join, Joins, Pending
from backbone.coordinator.candles.reader import CandleReader
from backbone.coordinator.scheduler import Scheduler
from backbone.coordinator.steps import queue_all, submit
from backbone.coordinator.units import Comparison, compare_units, factor_of, fit_together, leaps_between
from backbone.errors import BackboneError, DataChangedWarning
from backbone.model import Priority, Span, empty_candles
from backbone.routing.rest import Reply
from backbone.routing.wire import PAGE, CandlePage, candles_ask
from backbone.settings import Settings
from backbone.storage.coverage import SpanSet
from backbone.storage.generations import Note
from backbone.storage.store import CandleStore
from backbone.storage.view import View
from backbone.timeframe import TIMEFRAMES, Timeframe

__all__ = ["OtherUnitError", "OutdatedError", "Redenominations"]

HOW = "overlap of pages"
_MOST_BESIDE = 100  # rows of a page that overlap what is held, at most
_FEW = 4  # covered parts that are read one by one
_NOTHING = SpanSet()


class OutdatedError(BackboneError):
    """What is stored of the market was quarantined since the page was asked; it stays in this package."""


class OtherUnitError(BackboneError):
    """All candles of a page that are held and differ do so by one factor; or the `nearest` ones, which it does not
    show, do not go with it. It stays in this package."""

    def __init__(self, overlap: Comparison, table: pa.Table, nearest: Sequence[Sample] = ()) -> None:
        super().__init__("a page and what is held differ by one factor, or may")
        self.overlap = overlap
        self.table = table
        self.nearest = nearest


class Sample(msgspec.Struct, frozen=True):
    """Held candles that are to be asked again, a page of them at most; with the one at `until_us`, if that is later."""

    timeframe: Timeframe
    held: pa.Table
    until_us: int = 0

    @property
    def ask_end_us(self) -> int:
        return self.timeframe.next(max(self.until_us, int(times_of(self.held)[-1])))


class Redenominations:
    """Finds out whether the venue changed a market's unit, and quarantines the old one. Thread-safe."""

    def __init__(
        self, store: CandleStore, reader: CandleReader, scheduler: Scheduler, venue: VenueClock, settings: Settings
    ) -> None:
        self._store = store
        self._reader = reader
        self._scheduler = scheduler
        self._venue = venue
        self._settle_us = int(settings.settle_s * 1e6)
        self._kept_s: dict[str, float] = {}  # market → when candles of it were stored last
        self._warned: dict[str, int] = {}  # market → the generation up to which its changes were warned of

    def settled_us(self, timeframe: Timeframe) -> int:
        """Candles that open before this are not expected to change any more."""
        return timeframe.ceil(self._venue.now_us() - self._settle_us - timeframe.step_us)

    # -- the candles beside gaps ---------------------------------------------------------------------------------

    def joins(self, market: str, timeframe: Timeframe, gaps: SpanSet) -> Joins:
        """The held candles beside `gaps`: on each side the nearest settled one, and those up to it."""
        below, above, tables = {}, {}, [empty_candles()]
        for gap in gaps:
            before = self._below(market, timeframe, gap.start)
            if before.num_rows:
                below[gap.start] = Join(int(times_of(before)[0]), before.num_rows)
                tables.append(before)
            after = self._reader.beside(market, timeframe, gap.end, is_below=False).slice(0, 1)
            if after.num_rows:
                above[gap.end] = Join(int(times_of(after)[0]), 1)
                tables.append(after)
        return Joins(below, above, pa.concat_tables(tables))

    def _below(self, market: str, timeframe: Timeframe, edge_us: int) -> pa.Table:
        held = self._reader.beside(market, timeframe, edge_us, is_below=True)
        settled = int(np.searchsorted(times_of(held), self.settled_us(timeframe)))
        first = max(settled - 1, 0) if settled else held.num_rows - 1
        return held.slice(max(first, held.num_rows - _MOST_BESIDE, 0))

    # -- what a page has in common with the store ----------------------------------------------------------------

    def _compare(
        self, view: View, timeframe: Timeframe, table: pa.Table, beside: pa.Table, covered: SpanSet
    ) -> Comparison:
        """The candles of a page against those that are held of them, `beside` included; settled ones, if there are.

        `covered` is what is covered around them.
        """
        times = times_of(table)
        if not len(times):
            return Comparison(0, 0)
        span = Span(int(times[0]), int(times[-1]) + 1)
        held = _held(view, span, covered.clip(span))
        if beside.num_rows:
            held = _joined(held, rows_inside(beside, [span]))
        if not held.num_rows:
            return Comparison(0, 0)
        settled = held.slice(0, int(np.searchsorted(times_of(held), self.settled_us(timeframe))))
        found = compare_units(settled, table)
        return found if found.common else compare_units(held, table)

    def check(
        self,
        market: str,
        timeframe: Timeframe,
        table: pa.Table,
        proof: SpanSet,
        beside: pa.Table,
        *,
        is_first: bool,
    ) -> None:
        """Raise `OtherUnitError` for a page that may be of another unit than what is held.

        That is a page which differs by one factor from the held candles that it shows, or whose price is
        far off a held neighbour's that it does not show, or which is the first of a fetch, shows no held candle and
        does not fit the nearest ones. `proof` is what is to be stored of it.
        """
        view = self._store.view(market, timeframe)
        covered = _around(view, timeframe, table, proof)
        overlap = self._compare(view, timeframe, table, beside, covered)
        if overlap.factor is not None:
            raise OtherUnitError(overlap, table)
        nearest = _leaps(view, timeframe, table, proof, covered)
        if is_first and not overlap.common and not nearest and table.num_rows:
            nearest = self._strange_beside(market, timeframe, table, beside)
        if nearest:
            raise OtherUnitError(overlap, table, nearest)

    def _strange_beside(self, market: str, timeframe: Timeframe, table: pa.Table, beside: pa.Table) -> list[Sample]:
        """The nearest held candles of a page that shows no held candle, if they do not fit it; else nothing.

        Nearest are longer or shorter candles of the page's own time, of any timeframe; without those, the next ones
        before or after it. Where the page's gap joins held candles, those `beside` it are the only ones compared.
        """
        times = times_of(table)
        span = Span(int(times[0]), timeframe.next(int(times[-1])))
        found: list[tuple[int, bool, Sample]] = []
        for each in [timeframe] if beside.num_rows else self._store.lengths(market):
            held = beside if beside.num_rows else self._store.near(market, each, span)
            times = times_of(held)
            before, until, settled = np.searchsorted(times, (span.start, span.end, self.settled_us(each))).tolist()
            before, until = min(before, settled), min(until, settled)
            if each != timeframe:
                pair = [(each, held.slice(0, settled)), (timeframe, table)]
                (_, shorter), (length, longer) = sorted(pair, key=lambda one: one[0].step_us)
                does_fit = fit_together(shorter, longer, length)
                if does_fit is not None:
                    return [] if does_fit else [Sample(each, held.slice(max(0, until - PAGE), min(until, PAGE)))]
            below = held.slice(max(0, before - PAGE), min(before, PAGE))
            above = held.slice(until, min(settled - until, PAGE))
            if below.num_rows:
                gap_us = span.start - each.next(int(times[before - 1]))
                found.append((gap_us, leaps_between(below, table), Sample(each, below)))
            if above.num_rows:
                found.append((int(times[until]) - span.end, leaps_between(table, above), Sample(each, above)))
        return [sample for _, is_strange, sample in sorted(found, key=lambda one: one[0])[:1] if is_strange]

    def note_kept(self, market: str, at_s: float) -> None:
        """Candles of the market were stored, at a monotonic time."""
        self._kept_s[market] = at_s

    def was_overtaken(self, pending: Pending, claim: Span, sent_s: float) -> bool:
        """Whether a page of another unit is to be asked again, once: candles of the market were stored while it was on
        its way, so it may be the page that is outdated."""
        with pending.changed:
            is_doubted = sent_s < self._kept_s.get(pending.market, 0.0) and not pending.again.touches(claim)
            pending.again = pending.again | SpanSet([claim] if is_doubted else [])
        return is_doubted

    # -- a wider sample ------------------------------------------------------------------------------------------

    def decide(
        self,
        market: str,
        timeframe: Timeframe,
        found: OtherUnitError,
        generation: int,
        priority: Priority,
        done: Callable[[int | BackboneError], None],
    ) -> int:
        """Find out what a page that differs by one factor means: ask for stored candles that it does not have.

        They are asked side by side. A redenomination quarantines all that is stored of the market. `done` gets the
        generation that the page is of, or what went wrong: on a worker or, where nothing else is stored, at once.
        Returns how many pages it takes.
        """
        samples = found.nearest or self._samples(market, timeframe, found.table)

        def arrived(outcomes: Sequence[Reply | BackboneError]) -> None:
            try:
                decided: int | BackboneError = self._decided(market, timeframe, found, samples, outcomes, generation)
            except BackboneError as exc:
                decided = exc
            done(decided)

        asks = [candles_ask(market, sample.timeframe, sample.ask_end_us, PAGE) for sample in samples]
        queue_all(asks, functools.partial(submit, self._scheduler, priority), arrived)
        return len(samples)

    def _decided(
        self,
        market: str,
        timeframe: Timeframe,
        found: OtherUnitError,
        samples: Sequence[Sample],
        outcomes: Sequence[Reply | BackboneError],
        generation: int,
    ) -> int:
        """See `decide`: the generation that the page is of. In the order of the samples, the first error or
        page of before ends it."""
        compared: list[Comparison] = []
        for sample, outcome in zip(samples, outcomes, strict=True):
            if isinstance(outcome, BackboneError):
                raise outcome
            page: CandlePage = outcome.value
            if sample.timeframe == timeframe and compare_units(found.table, page.table).factor is not None:
                raise found  # its page is of before: it was overtaken by others
            compared.append(compare_units(sample.held, page.table))
        overlap = found.overlap
        if found.nearest:  # the page shows nothing of the neighbours: their own comparison counts
            overlap = next((one for one in compared if one.factor is not None), overlap)
        factor = factor_of(overlap, compared)
        if factor is None:
            return generation
        note = Note("redenominated", {"factor": factor, "generation": generation + 1}, HOW)
        self._store.upkeep.quarantine_market(market, how=HOW, note=note, after=generation)
        return generation + 1

    def _samples(self, market: str, timeframe: Timeframe, table: pa.Table) -> list[Sample]:
        """Stored candles that `table` does not have: the page on each side of it, which is of the old unit if any is,
        and the oldest; of another timeframe, where there are no others."""
        seen = times_of(table)
        around = Span(int(seen[0]), timeframe.next(int(seen[-1])))
        others = [each for each in TIMEFRAMES.values() if each != timeframe and each.base is None]
        for each in (timeframe, *others):
            oldest = self._store.oldest(market, each)
            if oldest is None:
                continue
            before = Span(timeframe.next(around.start, -PAGE), around.start)
            after = Span(around.end, timeframe.next(around.end, PAGE))
            spans = [*((before, after) if each == timeframe else ()), Span(oldest, each.next(oldest, PAGE))]
            found: list[Sample] = []
            for span in spans:
                rest = SpanSet([span]) - SpanSet([around] if each == timeframe else [])
                held = rows_inside(self._store.read(market, each, span).table, rest)
                held = held.slice(0, int(np.searchsorted(times_of(held), self.settled_us(each))))
                if held.num_rows and not any(np.isin(times_of(held)[-1], times_of(one.held)) for one in found):
                    found.append(Sample(each, held))
            if found:
                return found
        return []

    # -- what is held now ----------------------------------------------------------------------------------------

    def generation(self, market: str) -> int:
        """A number that rises when all that is stored of a market is quarantined: rows from before are not to be shown
        beside rows from after."""
        return self._store.generation(market)

    def is_outdated(self, pending: Pending) -> bool:
        """Whether what is stored of its market was quarantined since `pending` began."""
        return pending.generation != self.generation(pending.market)

    def is_other_unit(self, market: str, timeframe: Timeframe, table: pa.Table) -> bool:
        """Whether candles that were just received differ from those held by one factor. A fetch of their span that has
        `refresh` finds out what that means."""
        view = self._store.view(market, timeframe)
        covered = _around(view, timeframe, table)
        return self._compare(view, timeframe, table, empty_candles(), covered).factor is not None

    def warn(self, markets: Iterable[str]) -> list[int]:
        """Warn of redenominations of `markets`, once each; what is known when a market is first named is no news.

        Returns their generations at this moment.
        """
        found = []
        for market in markets:
            now, warned = self.generation(market), self._warned.get(market)
            found.append(now)
            self._warned[market] = now
            if warned is None or warned == now:
                continue
            for event in self._store.events.read(market):
                if event.kind == "redenominated" and event.detail.get("generation", 0) > warned:
                    warnings.warn(_changed(market, event.detail), DataChangedWarning, stacklevel=2)
        return found


def _changed(market: str, detail: dict[str, Any]) -> str:
    return (
        f"{market} is in another unit since it was stored: the venue multiplied its prices by {detail['factor']:g} and "
        f"divided its volumes. What was stored is kept as it was in {detail['where']}, which Backbone(data_dir=...) "
        f"opens; candles are fetched again in the new unit. store.events({market!r}) has the record"
    )


def _around(view: View, timeframe: Timeframe, table: pa.Table, proof: SpanSet = _NOTHING) -> SpanSet:
    """What is covered of a page and of as many slots on both sides: asked once for `_compare` and `_leaps`."""
    times = times_of(table)
    if not len(times):
        return _NOTHING
    bounds = proof.bounds or Span(int(times[0]), int(times[-1]) + 1)
    start = timeframe.ceil(min(bounds.start, int(times[0])))
    end = timeframe.ceil(max(bounds.end, int(times[-1]) + 1))
    return view.covered(Span(timeframe.next(start, -PAGE), timeframe.next(end, PAGE)))


def _leaps(view: View, timeframe: Timeframe, table: pa.Table, proof: SpanSet, covered: SpanSet) -> list[Sample]:
    """Held neighbours of a page's candles that the page itself does not show, and whose price is far off.

    Each sample is to be asked in one page that also has the page's own candle beside it. `covered` is what of the
    time around the page is held (`_around`).
    """
    found = list[Sample]()
    for span in proof:
        rows = rows_inside(table, [span])
        if not rows.num_rows:
            continue
        near = Span(timeframe.next(timeframe.ceil(span.start), -PAGE), span.start)
        before = _held(view, near, _part_with(covered.clip(near), span.start - 1))
        if leaps_between(before, rows):
            held = before.slice(max(0, before.num_rows - PAGE + 1))
            found.append(Sample(timeframe, held, int(times_of(rows)[0])))
        near = Span(span.end, timeframe.next(timeframe.ceil(span.end), PAGE))
        after = _held(view, near, _part_with(covered.clip(near), span.end))
        if leaps_between(rows, after):
            found.append(Sample(timeframe, after.slice(0, PAGE // 2)))
    return found


def _held(view: View, span: Span, covered: SpanSet) -> pa.Table:
    """The held candles of what is `covered` of `span`.

    Only that is read: what is held around a page is mostly pages in memory, and of one of those no file is merged.
    """
    if not covered:
        return empty_candles()
    parts = list(covered) if len(covered) <= _FEW else [span]
    tables = [view.read(part).table for part in parts]
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables)  # which lets other threads in


def _joined(first: pa.Table, second: pa.Table) -> pa.Table:
    """The rows of both; where both have one, the first one's."""
    new = second.filter(pa.array(~np.isin(times_of(second), times_of(first))))
    return pa.concat_tables([first, new]).sort_by("time").combine_chunks() if new.num_rows else first


def _part_with(covered: SpanSet, time_us: int) -> SpanSet:
    return SpanSet(part for part in covered if part.start <= time_us < part.end)
