"""Which pages are still to be asked of one market's candles in one timeframe, for everyone who waits for them.

What a reply proves is decided in `witness`.

`SeriesPlan` is pure: it takes what is wanted and what was answered, and gives the next page. It decides as late as
possible (`next_page` is called when a permit has opened), so a page is always chosen with all that is known by then: on
a thin market one reply removes many pages that a fixed plan would have asked for. Callers share their pages: what one
waits for is never asked again for another.

Invariants: a page is claimed by at most one caller at a time; a `Pending` is done exactly when its missing set is
empty; nothing leaves the missing set without a proof, a final failure or `give_up`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from backbone.coordinator.candles.pending import Pending
from backbone.coordinator.candles.witness import EARLIEST_US, FOREVER_US, Page, Verdict, second_request
from backbone.model import Span
from backbone.storage.coverage import SpanSet
from backbone.timeframe import Timeframe

__all__ = ["SeriesPlan", "pages_needed"]

_DENSE = 0.98  # above this share of traded slots, a page is planned to hold exactly its slots
_TELLING = 20  # rows below which a reply says too little about the density
_UNDERSHOOT = 0.85  # planning a thin page a little short is cheaper than another request for a leftover
_NOTHING = SpanSet()


class SeriesPlan:
    """The shared plan of one series (market and timeframe). Not thread-safe: its owner holds a lock around each call.

    ``density`` is the share of slots that hold a candle, as the latest reply that showed one had it (``has_learned``).
    ``waiting`` are those whose pages are asked; `add` and `drop` change it.
    """

    def __init__(self, timeframe: Timeframe, page_size: int, *, density: float = 1.0) -> None:
        self.timeframe = timeframe
        self.page_size = page_size
        self.density = density
        self.has_learned = False
        self.waiting: list[Pending] = []
        self._claims: list[tuple[Page, Pending | None]] = []  # and for whom it is asked; None: of another source
        self._edge_us = EARLIEST_US  # the highest edge of a short reply that waits for its second one; none at this
        self._anchor_us: int | None = None  # its anchor
        self._is_sought = False  # whether the newest candle was found since
        self._readers = 0
        self._meanwhile = SpanSet()  # proven since the first of those who read began

    # -- what is wanted ------------------------------------------------------------------------------------------

    def begin_read(self) -> None:
        """Somebody begins to read what is stored, to ask for the rest. Ends with `end_read`."""
        self._readers += 1

    def end_read(self) -> SpanSet:
        """What was proven while that lasted, and so need not be asked although it was not seen."""
        meanwhile = self._meanwhile
        self._readers -= 1
        if not self._readers:
            self._meanwhile = SpanSet()
        return meanwhile

    def add(self, pending: Pending) -> None:
        """Ask for all that `pending` misses."""
        self.waiting.append(pending)

    def drop(self, pending: Pending) -> None:
        """`pending` is not waited for any more. Pages in flight are left to arrive."""
        if pending in self.waiting:
            self.waiting.remove(pending)

    # -- what to ask ---------------------------------------------------------------------------------------------

    def claimable(self, pending: Pending, others: SpanSet = _NOTHING) -> SpanSet:
        """What `pending` misses and is not being asked for at this moment, here or by `others`."""
        return pending.missing - others - SpanSet(page.claim for page, _ in self._claims)

    def pages_left(self, pending: Pending, others: SpanSet = _NOTHING) -> int:
        """How many more pages `pending` should take, going by the density seen so far (pages in flight not counted)."""
        spans, beside = self.claimable(pending, others), pending.joins.rows_beside
        return pages_needed(self.timeframe, spans, self.page_size, self.density, beside)

    def next_page(self, pending: Pending, others: SpanSet = _NOTHING) -> Page | None:
        """The page to ask now for `pending`, claimed and counted as its; None where nothing is left to ask.

        What `others` are asking for is left to them.
        """
        page = self.upcoming(pending, others)
        if page is not None:
            self.ask(page, pending)
        return page

    def upcoming(self, pending: Pending, others: SpanSet = _NOTHING) -> Page | None:
        """The page that `next_page` would give; nothing is claimed."""
        if pending not in self.waiting:
            return None
        return self._confirmation(pending) or self._next_span(pending, others)

    def ask(self, page: Page, pending: Pending) -> None:
        """Claim an upcoming page and count it as `pending`'s."""
        if page.confirms:
            self._edge_us, self._is_sought = EARLIEST_US, False
        self._claims.append((page, pending))
        pending.pages += 1

    def ahead(self, page: Page, pending: Pending, others: SpanSet, pages: int) -> Span:
        """The span of a `page` that was asked, and beside it what the next `pages` of `pending` are likely to ask."""
        start, end = page.claim
        slots = pages * _stride(self.page_size, self.density)
        for free in self.claimable(pending, others):
            if pending.ascending and free.start == end:
                end = min(free.end, self.timeframe.next(self.timeframe.floor(end), slots))
            elif not pending.ascending and free.end == start:
                start = max(free.start, self.timeframe.next(self.timeframe.ceil(start), -slots))
        return Span(start, end)

    @property
    def needed(self) -> SpanSet:
        """What somebody waits for, or is being asked."""
        return SpanSet(
            [*(page.claim for page, _ in self._claims), *(span for one in self.waiting for span in one.missing)]
        )

    def claim(self, span: Span) -> Page | None:
        """A claim on `span` for another source than pages; None where somebody is at it."""
        if any(page.claim.start < span.end and span.start < page.claim.end for page, _ in self._claims):
            return None
        page = Page(span.end, 1, span)
        self._claims.append((page, None))
        return page

    def _confirmation(self, pending: Pending) -> Page | None:
        edge = self._edge_us
        if not pending.missing or next(iter(pending.missing)).start >= edge:
            return None
        anchor = self._anchor_us if self.page_size > 1 else None
        page = second_request(self.timeframe, edge, anchor, is_sought=self._is_sought, count=self.page_size)
        is_asked = page.seeks and any(claimed.seeks for claimed, _ in self._claims)
        return None if is_asked else page

    def _doubt(self, edge_us: int, anchor_us: int | None) -> None:
        """Note an edge for a second reply to confirm. Lower ones follow from the highest, or are asked about again."""
        if edge_us >= self._edge_us:
            self._is_sought = self._is_sought and edge_us == self._edge_us
            self._edge_us, self._anchor_us = edge_us, anchor_us

    def _next_span(self, pending: Pending, others: SpanSet) -> Page | None:
        spans = list(self.claimable(pending, others))
        if not spans:
            return None
        tf, slots = self.timeframe, _stride(self.page_size, self.density)
        if spans[-1].end >= FOREVER_US:  # the newest candles, wherever they are
            return Page(FOREVER_US, self.page_size, spans[-1])
        below, above = pending.joins.below, pending.joins.above
        if pending.ascending:
            start, end = spans[0]
            slots -= below[start].rows if start in below else 0
            end = min(end, tf.next(tf.floor(start), slots))
        else:
            start, end = spans[-1]
            is_newest = pending.newest and end == pending.span.end
            above_rows = above[end].rows if end in above else int(is_newest)
            start = max(start, tf.next(tf.ceil(end), above_rows - slots))
            if start in below:
                start = self._reaching(Span(start, end), below[start].rows + above_rows)
            if is_newest:
                return Page(FOREVER_US, self.page_size, Span(start, end))
        claim = Span(start, end)
        to_us = tf.next(above[end].time_us) if end in above else end
        return Page(to_us, self.page_size, claim)  # a page costs one permit, whatever its length

    def _reaching(self, claim: Span, rows_beside: int) -> int:
        """Where `claim` starts, if a page with so many rows of what is held besides is to reach what is held below."""
        over = self.timeframe.count(claim) + rows_beside - self.page_size
        if over <= 0 or self.density < _DENSE:  # on a thin market a page reaches as far as it will
            return claim.start
        return min(self.timeframe.next(claim.start, over), self.timeframe.next(self.timeframe.ceil(claim.end), -1))

    # -- what was answered ---------------------------------------------------------------------------------------

    def settle(self, page: Page, verdict: Verdict, rows: int, *, anchor_us: int | None = None) -> None:
        """Take a judged reply into the plan, once its rows are in the store.

        `anchor_us`: the open of a candle that is held at most a page behind the edge in doubt, where there is one.
        """
        caller = self._release(page)
        if self._readers:
            self._meanwhile = self._meanwhile | verdict.proof
        if page.seeks:
            self._is_sought = True
        for one in self.waiting:
            if one is not caller and (one.missing & SpanSet([page.claim]) or one.missing & verdict.proof):
                one.pages += 1
            one.missing = one.missing - verdict.proof
        if verdict.edge_us is not None:
            self._doubt(verdict.edge_us, anchor_us)
        self._learn(page, verdict, rows)

    def _learn(self, page: Page, verdict: Verdict, rows: int) -> None:
        if verdict.edge_us is not None or not verdict.proof or rows < _TELLING:
            return
        slots = self.timeframe.count(next(iter(verdict.proof)))
        if slots > 0:
            self.density = min(1.0, max(1e-6, rows / slots))
            self.has_learned = True

    def fail(self, page: Page, cause: BaseException) -> None:
        """The page was given up on: its span stays unknown for all who waited for it."""
        self._release(page)
        for one in self.waiting:
            self.give_up(one, cause, SpanSet([page.claim]))

    def retract(self, page: Page) -> None:
        """The page was not answered and may be asked again."""
        self._release(page)
        if page.confirms:
            self._doubt(page.claim.end, page.anchor_us)

    def withdraw(self, page: Page) -> None:
        """The page was never asked: others were faster."""
        caller = self._release(page)
        if caller is not None:
            caller.pages -= 1

    def found(self, held: SpanSet) -> None:
        """`held` has meanwhile been stored by others: nobody here fetches it, save who wants the venue's own reply."""
        for one in self.waiting:
            if one.is_shared:
                one.gaps = one.gaps - (one.missing & held)
                one.missing = one.missing - held

    def give_up(self, pending: Pending, cause: BaseException, within: SpanSet | None = None) -> None:
        """What `pending` still misses (`within` a set, or all) will not be had."""
        hit = pending.missing if within is None else pending.missing & within
        if hit:
            pending.failed = pending.failed | hit
            pending.missing = pending.missing - hit
            pending.causes.append(cause)

    def forget(self, pending: Pending, spans: Iterable[Span]) -> None:
        """Take `spans` out of `pending`: they are not to be had yet (not closed on the venue's clock)."""
        pending.missing = pending.missing - SpanSet(spans)

    def _release(self, page: Page) -> Pending | None:
        at = next(at for at, (claimed, _) in enumerate(self._claims) if claimed == page)
        return self._claims.pop(at)[1]


def _stride(page_size: int, density: float) -> int:
    if density >= _DENSE:
        return page_size
    return max(page_size, math.floor(page_size / density * _UNDERSHOOT))


def pages_needed(
    timeframe: Timeframe,
    spans: SpanSet,
    page_size: int,
    density: float = 1.0,
    beside: Callable[[Span], int] = lambda _: 0,
) -> int:
    """How many pages `spans` take at a `density` of traded slots (each span takes at least one); `beside` is how many
    held candles a span's pages show besides."""
    stride = _stride(page_size, density)
    return sum(max(1, math.ceil((timeframe.count(span) + beside(span)) / stride)) for span in spans)
