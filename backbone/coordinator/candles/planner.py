"""Which pages are still to be asked of one market's candles in one timeframe, for everyone who waits for them.

The venue answers "the newest `count` candles that opened before `to`", and gives no row to a candle that nobody traded
in. So a reply proves more, or less, than the stretch it was asked for: all from its oldest row up to `to`; and, when it
is short, that nothing lies before, which is believed only once a second ask has said the same. Where a row is known at
or soon after the silence, the second ask includes that row (its *anchor*), so that an empty reply by mistake betrays
itself; where none is, the newest candle is sought before: a venue that has none is not believed about silence either.

`SeriesPlan` is pure: it is told what is wanted and what was answered, and says what to ask next. It decides as late as
possible (`next_page` is called when a permit has opened), so a page is always chosen with all that is known by then: on
a thin market one reply removes many pages that a fixed plan would have asked for. Wants share their pages: what one
waits for is never asked again for another.

Invariants: a page is claimed by at most one asker at a time; a want is done exactly when its missing set is empty;
nothing leaves the missing set without a proof, a final failure or `give_up`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from backbone.model import Span
from backbone.storage.coverage import SpanSet
from backbone.timeframe import Timeframe

__all__ = ["EARLIEST_US", "FOREVER_US", "Page", "SeriesPlan", "Verdict", "Want", "pages_needed"]

EARLIEST_US = 0
"""Nothing lies before the epoch: a proven beginning of history is quiet from here on."""

FOREVER_US = 1 << 62
"""The bound of a page that asks for the newest candles."""

_DENSE = 0.98  # above this share of traded slots, a page is planned to hold exactly its slots
_TELLING = 20  # rows below which a reply says too little about the density
_UNDERSHOOT = 0.85  # planning a thin page a little short is cheaper than another request for a leftover


@dataclass(frozen=True)
class Page:
    """One request: the newest `count` candles before `to_us`; `claim` is the stretch it is asked for.

    ``confirms``: the second ask behind a short reply, whose newest row must be ``anchor_us`` where that is known.
    ``seeks``: asks whether the series has any candle, the forming one included.
    """

    to_us: int
    count: int
    claim: Span
    confirms: bool = False
    anchor_us: int | None = None
    seeks: bool = False


@dataclass(eq=False)
class Want:
    """One asker's share of the plan."""

    rank: int
    ascending: bool
    missing: SpanSet
    causes: list[BaseException] = field(default_factory=list)
    failed: SpanSet = field(default_factory=SpanSet)
    pages: int = 0  # asked for it, whether or not the reply was still needed, and those of others that answered it

    @property
    def is_done(self) -> bool:
        return not self.missing


@dataclass(frozen=True)
class Verdict:
    """What a reply proves (`proof`), and whether its silence before `edge_us` has yet to be confirmed."""

    proof: SpanSet
    edge_us: int | None = None


class SeriesPlan:
    """The shared plan of one series (market and timeframe). Not thread-safe: its owner holds a lock around each call.

    ``density`` is the share of slots that hold a candle, as the latest telling reply had it (``has_learned``).
    """

    def __init__(self, timeframe: Timeframe, page_size: int, *, density: float = 1.0) -> None:
        self.timeframe = timeframe
        self.page_size = page_size
        self.density = density
        self.has_learned = False
        self._wants: list[Want] = []
        self._claims: list[tuple[Page, Want | None]] = []  # and for whom it is asked; None: of another source
        self._doubts: dict[int, int | None] = {}  # edges of short replies that wait for their second ask → anchor
        self._sought: set[int] = set()  # those since which the newest candle was found
        self._lookers = 0
        self._meanwhile = SpanSet()  # proven since the first of those who look began

    # -- what is wanted ------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Somebody begins to look at what is stored, to want the rest. Ends with `looked`."""
        self._lookers += 1

    def looked(self) -> SpanSet:
        """What was proven while that lasted, and so need not be wanted although it was not seen."""
        meanwhile = self._meanwhile
        self._lookers -= 1
        if not self._lookers:
            self._meanwhile = SpanSet()
        return meanwhile

    def want(self, missing: SpanSet, *, rank: int, ascending: bool = False) -> Want:
        """Ask for all of `missing`; `rank` 0 is the most urgent."""
        want = Want(rank, ascending, missing)
        self._wants.append(want)
        return want

    def drop(self, want: Want) -> None:
        """Nobody waits for `want` any more. Pages in flight are left to arrive."""
        if want in self._wants:
            self._wants.remove(want)

    @property
    def wants(self) -> tuple[Want, ...]:
        return tuple(self._wants)

    @property
    def is_idle(self) -> bool:
        return not self._wants and not self._claims

    # -- what to ask ---------------------------------------------------------------------------------------------

    def claimable(self, want: Want) -> SpanSet:
        """What `want` misses and nobody is asking for at this moment."""
        free = want.missing
        for page, _ in self._claims:
            free = free - SpanSet([page.claim])
        return free

    def pages_left(self, want: Want) -> int:
        """How many more pages `want` should take, going by the density seen so far (pages in flight not counted)."""
        return pages_needed(self.timeframe, self.claimable(want), self.page_size, self.density)

    def next_page(self, want: Want) -> Page | None:
        """The page to ask now on behalf of `want`, claimed and counted as its; None where nothing is left to ask."""
        if want not in self._wants:
            return None
        page = self._confirmation(want) or self._next_stretch(want)
        if page is not None:
            self._claims.append((page, want))
            want.pages += 1
        return page

    def claim(self, span: Span) -> Page | None:
        """A claim on `span` for another source than pages; None where somebody is at it."""
        if any(page.claim.start < span.end and span.start < page.claim.end for page, _ in self._claims):
            return None
        page = Page(span.end, 1, span)
        self._claims.append((page, None))
        return page

    def _confirmation(self, want: Want) -> Page | None:
        edge = max(self._doubts, default=EARLIEST_US)
        if not want.missing or next(iter(want.missing)).start >= edge:
            return None
        claim = Span(EARLIEST_US, edge)
        anchor = self._doubts[edge] if self.page_size > 1 else None
        if anchor is None and edge not in self._sought:
            is_sought = any(page.seeks for page, _ in self._claims)
            return None if is_sought else Page(FOREVER_US, 1, claim, seeks=True)
        self._doubts.clear()  # a lower edge follows from the highest, or is asked about again
        self._sought.clear()
        to_us = edge if anchor is None else self.timeframe.next(anchor)
        return Page(to_us, self.page_size, claim, confirms=True, anchor_us=anchor)

    def _next_stretch(self, want: Want) -> Page | None:
        spans = list(self.claimable(want))
        if not spans:
            return None
        tf, slots = self.timeframe, self._stride()
        if want.ascending:
            start, end = spans[0]
            end = min(end, tf.next(tf.floor(start), slots))
        else:
            start, end = spans[-1]
            start = max(start, tf.next(tf.ceil(end), -slots))
        claim = Span(start, end)
        return Page(end, max(1, min(self.page_size, tf.count(claim))), claim)

    def _stride(self) -> int:
        return _stride(self.page_size, self.density)

    # -- what was answered ---------------------------------------------------------------------------------------

    def is_contradicted(self, page: Page, newest_us: int | None) -> bool:
        """Whether a reply, whose newest candle is `newest_us`, lacks what is known to be there: a mistake, no proof."""
        return (page.anchor_us is not None and newest_us != page.anchor_us) or (page.seeks and newest_us is None)

    def judge(self, page: Page, oldest_us: int | None, rows: int) -> Verdict:
        """What a reply that is not contradicted, with `rows` candles, the oldest at `oldest_us`, proves.

        Changes nothing.
        """
        proven = SpanSet([Span(oldest_us, page.to_us)]) if oldest_us is not None else SpanSet()
        edge = oldest_us if oldest_us is not None else page.to_us
        if rows < page.count and page.confirms and edge >= page.claim.end:
            return Verdict(SpanSet([Span(EARLIEST_US, page.to_us)]))
        return Verdict(proven) if rows >= page.count or page.seeks else Verdict(proven, edge)

    def settle(self, page: Page, verdict: Verdict, rows: int, *, anchor_us: int | None = None) -> None:
        """Take a judged reply into the plan, once its rows are in the store.

        `anchor_us`: the open of a candle that is held at most a page behind the edge in doubt, where there is one.
        """
        asker = self._release(page)
        if self._lookers:
            self._meanwhile = self._meanwhile | verdict.proof
        if page.seeks:
            self._sought.update(self._doubts)
        for want in self._wants:
            if want is not asker and (want.missing & SpanSet([page.claim]) or want.missing & verdict.proof):
                want.pages += 1
            want.missing = want.missing - verdict.proof
        if verdict.edge_us is not None and verdict.edge_us > EARLIEST_US:
            self._doubts[verdict.edge_us] = anchor_us
        self._learn(page, verdict, rows)

    def _learn(self, page: Page, verdict: Verdict, rows: int) -> None:
        if verdict.edge_us is not None or not verdict.proof or rows < _TELLING:
            return
        slots = self.timeframe.count(next(iter(verdict.proof)))
        if slots > 0:
            self.density = min(1.0, max(1e-6, rows / slots))
            self.has_learned = True

    def fail(self, page: Page, cause: BaseException) -> None:
        """The page was given up on: its stretch stays unknown for all who waited for it."""
        self._release(page)
        lost = SpanSet([page.claim])
        for want in self._wants:
            hit = want.missing & lost
            if hit:
                want.failed = want.failed | hit
                want.missing = want.missing - lost
                want.causes.append(cause)

    def retract(self, page: Page) -> None:
        """The page was not answered and may be asked again."""
        self._release(page)
        if page.confirms:
            self._doubts.setdefault(page.claim.end, page.anchor_us)

    def give_up(self, want: Want, cause: BaseException, within: SpanSet | None = None) -> None:
        """What `want` still misses (`within` a set, or all) will not be had."""
        hit = want.missing if within is None else want.missing & within
        if hit:
            want.failed = want.failed | hit
            want.missing = want.missing - hit
            want.causes.append(cause)

    def forget(self, want: Want, spans: Iterable[Span]) -> None:
        """Take `spans` out of `want`: they are not to be had yet (not closed on the venue's clock)."""
        want.missing = want.missing - SpanSet(spans)

    def _release(self, page: Page) -> Want | None:
        at = next(at for at, (claimed, _) in enumerate(self._claims) if claimed == page)
        return self._claims.pop(at)[1]


def _stride(page_size: int, density: float) -> int:
    if density >= _DENSE:
        return page_size
    return max(page_size, math.floor(page_size / density * _UNDERSHOOT))


def pages_needed(timeframe: Timeframe, spans: SpanSet, page_size: int, density: float = 1.0) -> int:
    """How many pages `spans` take at a `density` of traded slots (each span takes at least one)."""
    stride = _stride(page_size, density)
    return sum(max(1, math.ceil(timeframe.count(span) / stride)) for span in spans)
