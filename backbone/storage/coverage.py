"""What a store covers, as arithmetic on time: sets of half-open spans, and the coverage built from them.

A `SpanSet` is immutable, sorted, and holds no empty, overlapping or touching spans, so two sets that mean the same
are equal. A `Coverage` adds to the covered spans the *provisional* ones (covered, but to be asked once more when due,
since the venue may still correct its newest candles) and which came from elsewhere. Pure: no clock, no disk.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from backbone.model import Span
from backbone.timeframe import Timeframe

__all__ = ["EVER", "VENUE", "Coverage", "SpanSet", "change_each", "on_grid", "spans_due", "union_each"]


EVER = Span(0, 1 << 62)
"""All the time that coverage can hold."""


class SpanSet:
    """An immutable set of instants, as sorted, disjoint, non-touching half-open spans."""

    __slots__ = ("_spans",)

    def __init__(self, spans: Iterable[tuple[int, int]] = (), *, normal: tuple[Span, ...] | None = None) -> None:
        """The set of `spans`; ``normal`` are spans that are known to be sorted, disjoint and not touching."""
        self._spans = _normal(spans) if normal is None else normal

    @classmethod
    def of(cls, value: SpanSet | Span) -> SpanSet:
        """`value` as a set: a single span becomes a set of one (of none, if it is empty)."""
        return value if isinstance(value, SpanSet) else cls((value,))

    @property
    def spans(self) -> tuple[Span, ...]:
        """The spans, oldest first."""
        return self._spans

    @property
    def bounds(self) -> Span | None:
        """From the first instant to the last; None for the empty set."""
        return Span(self._spans[0].start, self._spans[-1].end) if self._spans else None

    def holds(self, time_us: int) -> bool:
        """Whether the instant is in the set."""
        at = bisect_right(self._spans, (time_us, _FAR)) - 1
        return at >= 0 and time_us < self._spans[at].end

    def contains(self, span: tuple[int, int]) -> bool:
        """Whether every instant of `span` is in the set (an empty span always is)."""
        start, end = span
        if start >= end:
            return True
        at = bisect_right(self._spans, (start, _FAR)) - 1
        return at >= 0 and end <= self._spans[at].end

    def touches(self, span: tuple[int, int]) -> bool:
        """Whether any instant of `span` is in the set."""
        start, end = span
        if start >= end:
            return False
        at = bisect_right(self._spans, (start, _FAR)) - 1
        if at >= 0 and start < self._spans[at].end:
            return True
        return at + 1 < len(self._spans) and self._spans[at + 1].start < end

    def clip(self, span: tuple[int, int]) -> SpanSet:
        """The part inside `span`."""
        start, end = span
        if not self._spans or start >= end:
            return _EMPTY
        if start <= self._spans[0].start and self._spans[-1].end <= end:
            return self
        first = max(0, bisect_right(self._spans, (start, _FAR)) - 1)
        kept: list[Span] = []
        for held in self._spans[first:]:
            if held.start >= end:
                break
            low, high = max(held.start, start), min(held.end, end)
            if low < high:
                kept.append(Span(low, high))
        return SpanSet(normal=tuple(kept))

    def __or__(self, other: SpanSet) -> SpanSet:
        if not other._spans:
            return self
        if not self._spans:
            return other
        if len(other._spans) == 1 and self.contains(other._spans[0]):
            return self
        return SpanSet(self._spans + other._spans)

    def __and__(self, other: SpanSet) -> SpanSet:
        if len(other._spans) == 1:
            return self.clip(other._spans[0])
        mine, theirs, kept, i, j = self._spans, other._spans, list[Span](), 0, 0
        while i < len(mine) and j < len(theirs):
            low, high = max(mine[i].start, theirs[j].start), min(mine[i].end, theirs[j].end)
            if low < high:
                kept.append(Span(low, high))
            if mine[i].end <= theirs[j].end:
                i += 1
            else:
                j += 1
        return SpanSet(normal=tuple(kept))

    def __sub__(self, other: SpanSet) -> SpanSet:
        if not self._spans or not other._spans:
            return self
        if other._spans[-1].end <= self._spans[0].start or self._spans[-1].end <= other._spans[0].start:
            return self
        theirs, kept, j = other._spans, list[Span](), 0
        for start, end in self._spans:
            while j < len(theirs) and theirs[j].end <= start:
                j += 1
            k, low = j, start
            while k < len(theirs) and theirs[k].start < end:
                if low < theirs[k].start:
                    kept.append(Span(low, theirs[k].start))
                low = max(low, theirs[k].end)
                k += 1
            if low < end:
                kept.append(Span(low, end))
        return SpanSet(normal=tuple(kept))

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __bool__(self) -> bool:
        return bool(self._spans)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SpanSet) and self._spans == other._spans

    def __hash__(self) -> int:
        return hash(self._spans)

    def __repr__(self) -> str:
        return f"SpanSet({[tuple(span) for span in self._spans]})"


_FAR = 1 << 100  # later than any end, for bisecting on a start


def _normal(spans: Iterable[tuple[int, int]]) -> tuple[Span, ...]:
    ordered = sorted(spans)
    if len(ordered) == 1:
        one = ordered[0]
        return () if one[0] >= one[1] else (one if isinstance(one, Span) else Span(*one),)
    kept: list[Span] = []
    for start, end in ordered:
        if start >= end:
            continue
        if kept and start <= kept[-1].end:
            if end > kept[-1].end:
                kept[-1] = Span(kept[-1].start, end)
        else:
            kept.append(Span(start, end))
    return tuple(kept)


_EMPTY = SpanSet()
_NONE: Mapping[int, SpanSet] = {}


def on_grid(spans: SpanSet, timeframe: Timeframe) -> SpanSet:
    """The same candle opens, between grid points: spans that leave out no candle then touch."""
    return SpanSet((timeframe.ceil(max(0, a)), min(timeframe.ceil(b), EVER.end)) for a, b in spans if b > 0)


VENUE = "rest"
"""The source of what the venue itself answered to a request for candles."""


_Key = TypeVar("_Key", int, str)


class Coverage(msgspec.Struct, frozen=True):
    """What is covered (rows or quiet), which part of it is still ``provisional``, and where parts of it came from.

    ``provisional`` has spans by the time, microseconds UTC, at which they are asked once more. ``origins`` has spans by
    source, such as ``adopted`` or ``archive``; what is in none came from the venue.
    """

    covered: SpanSet = _EMPTY
    provisional: Mapping[int, SpanSet] = msgspec.field(default_factory=dict)
    origins: Mapping[str, SpanSet] = msgspec.field(default_factory=dict)

    def proved(self, proof: SpanSet, provisional: Mapping[int, SpanSet] = _NONE, *, source: str = VENUE) -> Coverage:
        """After a reply that proves `proof`. The newest reply counts: in it, only the new `provisional` stays."""
        again = change_each(provisional, lambda spans: spans & proof)
        origin = {source: proof} if proof and source != VENUE else {}
        return Coverage(
            self.covered | proof, _replaced(self.provisional, proof, again), _replaced(self.origins, proof, origin)
        )

    def of_source(self, source: str) -> SpanSet:
        """The part that came from `source`."""
        if source != VENUE:
            return self.origins.get(source, _EMPTY)
        found = self.covered
        for spans in self.origins.values():
            found = found - spans
        return found

    def clip(self, span: tuple[int, int]) -> Coverage:
        """The part inside `span`."""
        return self._each(lambda spans: spans.clip(span))

    def without(self, spans: SpanSet) -> Coverage:
        """The part outside `spans`."""
        return self._each(lambda held: held - spans) if self.covered else self

    def _each(self, change: Callable[[SpanSet], SpanSet]) -> Coverage:
        provisional, origins = change_each(self.provisional, change), change_each(self.origins, change)
        return Coverage(change(self.covered), provisional, origins)

    @staticmethod
    def joined(coverages: Sequence[Coverage]) -> Coverage:
        """One coverage of several, which are of different spans."""
        if len(coverages) == 1:
            return coverages[0]
        covered = SpanSet(span for coverage in coverages for span in coverage.covered)
        provisional = union_each([coverage.provisional for coverage in coverages])
        return Coverage(covered, provisional, union_each([coverage.origins for coverage in coverages]))

    def due(self, now_us: int) -> SpanSet:
        """The provisional spans whose second request is due."""
        return spans_due(self.provisional, now_us)


def spans_due(provisional: Mapping[int, SpanSet], now_us: int) -> SpanSet:
    """The provisional spans that are to be requested again at `now_us`."""
    return SpanSet(span for due_us, spans in provisional.items() if due_us <= now_us for span in spans)


def change_each(held: Mapping[_Key, SpanSet], change: Callable[[SpanSet], SpanSet]) -> Mapping[_Key, SpanSet]:
    """The sets of `held`, each changed; those of which nothing is left go."""
    return {key: rest for key, spans in held.items() if (rest := change(spans))} if held else held


def union_each(parts: Iterable[Mapping[_Key, SpanSet]]) -> Mapping[_Key, SpanSet]:
    """The union of the sets of each key."""
    found: dict[_Key, list[Span]] = {}
    for part in parts:
        for key, spans in part.items():
            found.setdefault(key, []).extend(spans)
    return {key: SpanSet(spans) for key, spans in found.items()}


def _replaced(held: Mapping[_Key, SpanSet], proof: SpanSet, new: Mapping[_Key, SpanSet]) -> Mapping[_Key, SpanSet]:
    """`held` outside `proof`, and `new` inside."""
    return union_each([change_each(held, lambda spans: spans - proof), new]) if held else new
