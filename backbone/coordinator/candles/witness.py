"""When a reply that shows no older candles proves that there are none: one rule for every way of asking candles. Pure.

The venue answers "the newest `count` candles that opened before `to`", and has no row for a slot without trades. A full
reply proves everything from its oldest row up to `to`; it needs no second request. A reply that is shorter than asked,
or empty, also reports that nothing is older than its *edge*. That may be a mistake, so a second reply has to agree, and
it has to contain a known candle. Where a candle is known at the edge or soon after it, the second request includes it
(the *anchor*), and the reply must have it as its newest row. Where none is known, the newest candle of all is requested
first: a venue that shows none at all proves nothing. The beginning of a history therefore costs one request more; it is
stored, so it costs that once.
"""

from __future__ import annotations

import msgspec

from backbone.errors import PayloadError
from backbone.model import Span
from backbone.storage.coverage import EVER, SpanSet
from backbone.timeframe import Timeframe

__all__ = ["EARLIEST_US", "FOREVER_US", "Page", "Verdict", "check", "judge", "second_request", "shows_since"]

EARLIEST_US = EVER.start
"""Nothing lies before the epoch: a proven beginning of history is quiet from here on."""

FOREVER_US = EVER.end
"""The bound of a page that asks for the newest candles."""


class Page(msgspec.Struct, frozen=True):
    """One request: the newest `count` candles before `to_us`; `claim` is the span it is asked for.

    ``confirms``: the second request behind a short reply, whose newest row must be ``anchor_us`` where that is known.
    ``seeks``: asks whether the series has any candle, the forming one included.
    """

    to_us: int
    count: int
    claim: Span
    confirms: bool = False
    anchor_us: int | None = None
    seeks: bool = False

    @property
    def bound_us(self) -> int | None:
        """The request's `to`; None for the newest candles."""
        return None if self.to_us >= FOREVER_US else self.to_us


class Verdict(msgspec.Struct, frozen=True):
    """What a reply proves (`proof`), and the edge whose "nothing is older" is to be confirmed by a second reply."""

    proof: SpanSet
    edge_us: int | None = None

    @property
    def has_beginning(self) -> bool:
        """Whether the reply reports a beginning of history: nothing is older than some time, confirmed or not."""
        return self.edge_us is not None or self.proof.holds(EARLIEST_US)


def judge(page: Page, oldest_us: int | None, rows: int) -> Verdict:
    """What a reply with `rows` candles, the oldest at `oldest_us`, proves, if nothing speaks against it (`check`)."""
    proven = SpanSet([Span(oldest_us, page.to_us)]) if oldest_us is not None else SpanSet()
    edge = oldest_us if oldest_us is not None else page.to_us
    if rows < page.count and page.confirms and edge >= page.claim.end:
        return Verdict(SpanSet([Span(EARLIEST_US, page.to_us)]))
    return Verdict(proven) if rows >= page.count or page.seeks else Verdict(proven, edge)


def shows_since(time_us: int, oldest_us: int | None) -> bool:
    """Whether a reply of the newest candles, the oldest at `oldest_us`, has all that opened at `time_us` or later."""
    return oldest_us is not None and oldest_us <= time_us


def check(page: Page, verdict: Verdict, newest_us: int | None, oldest_known_us: int | None, what: str) -> None:
    """Raise `PayloadError` for a reply that lacks what must be there.

    It lacks a known candle, has no candle at all, or reports that nothing is older than a candle that is known.

    Parameters
    ----------
    newest_us : the newest candle of the reply.
    oldest_known_us : the oldest candle that is known of the series, from wherever.
    what : the market and timeframe, for the error.
    """
    edge = page.claim.end if verdict.edge_us is None else verdict.edge_us
    if (page.anchor_us is not None and newest_us != page.anchor_us) or (page.seeks and newest_us is None):
        why = "it lacks a candle that is known to be there, or any candle at all"
    elif verdict.has_beginning and oldest_known_us is not None and oldest_known_us < edge:
        why = "it says that nothing lies before a time from before which candles are known"
    else:
        return
    raise PayloadError(f"{what}: the reply is not valid, {why}; the span stays unknown", sample=f"to={page.bound_us}")


def second_request(timeframe: Timeframe, edge_us: int, anchor_us: int | None, *, is_sought: bool, count: int) -> Page:
    """The request whose reply decides whether anything is older than `edge_us`.

    Parameters
    ----------
    anchor_us : a candle that is known at the edge or soon after it.
    is_sought : without an anchor, whether the newest candle of all was requested already, and found.
    """
    claim = Span(EARLIEST_US, edge_us)
    if anchor_us is None and not is_sought:
        return Page(FOREVER_US, 1, claim, seeks=True)
    to_us = edge_us if anchor_us is None else timeframe.next(anchor_us)
    return Page(to_us, count, claim, confirms=True, anchor_us=anchor_us)
