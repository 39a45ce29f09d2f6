"""How the trades of a range are paged: by cursor inside a UTC day, and by day into the past.

Pages go by cursor, never by time, so that trades which share a second or a millisecond are neither lost nor doubled.
The venue counts days back from its own today, which can turn while pages are under way: a reply that shows a later day
than was thought starts the walk over.

A page that is shorter than asked, or empty, reports that its day has nothing older. A second reply has to agree, and it
has to contain something known: it is a page that must begin with the oldest trade known of that day. Where no trade is
known, it is the newest 1-second candle before that time, which also shows how many days without trades lie before. Full
pages need no second reply. Pure: the walk is written as steps, which are sent what arrived.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from backbone.coordinator.steps import Steps
from backbone.errors import BackboneError, PayloadError
from backbone.model import Span, Trade
from backbone.routing.rest import Reply
from backbone.routing.wire import TRADES_PAGE, Ask, candles_ask, trades_ask
from backbone.timeframe import DAY_US, TIMEFRAMES
from backbone.venues import Venue

__all__ = ["DAYS_KEPT", "TradesAnswer", "walk_trades"]

DAYS_KEPT = Venue.trades_kept_days
"""Whole UTC days before today that the venue answers."""


@dataclass(frozen=True)
class TradesAnswer:
    """Trades, oldest first, and the requests they took; ``gaps`` and ``causes`` where not all could be had."""

    rows: tuple[Trade, ...]
    requests: int
    gaps: tuple[Span, ...] = ()
    causes: tuple[BackboneError, ...] = ()


class _DayTurned(Exception):
    """A reply shows a later day than was thought: the walk starts over. Never leaves the module."""


def walk_trades(
    market: str, count: int | None, start_us: int | None, end_us: int | None, today: int
) -> Steps[TradesAnswer]:
    """The newest `count` trades before `end_us`, or all from `start_us`; from the newest page to the oldest.

    `today` is the venue's day (days since the epoch) as far as it is known. An error ends the walk: what it did not
    reach is in the answer's gaps.
    """
    walk = _Walk(market, count, start_us, end_us, today)
    while True:
        try:
            yield from walk.days()
        except _DayTurned:
            continue
        except BackboneError as exc:
            return TradesAnswer(walk.rows(), walk.requests, (walk.missing(),), (exc,))
        return TradesAnswer(walk.rows(), walk.requests)


@dataclass
class _Walk:
    """What is wanted, and what was found of it."""

    market: str
    count: int | None
    start_us: int | None
    end_us: int | None
    today: int
    requests: int = 0
    found: dict[int, Trade] = field(default_factory=dict)

    def days(self) -> Steps[None]:
        """One day after the other, into the past, until all is found that is wanted and kept."""
        day = self.today if self.end_us is None else min(self.today, (self.end_us - 1) // DAY_US)
        first = self.today - DAYS_KEPT
        if self.start_us is not None:
            first = max(first, min(day, self.start_us // DAY_US))  # a reply says whether today is later than thought
        while day >= first:
            day = yield from self._day(day)

    def _day(self, day: int) -> Steps[int]:
        """The trades of a day, newest first; returns the day to go on with: one before all days when it is enough.

        Raises `PayloadError` where paging does not advance, and where a reply lacks what it had to contain.
        """
        cursor: int | None = None
        oldest: Trade | None = None  # known of this day
        newer: Trade | None = None  # the one after it
        is_doubted = False  # a candle contradicted an empty page
        confirms: Trade | None = None  # what the next page must begin with, where it confirms that nothing is older
        while True:
            asked, at = TRADES_PAGE, cursor
            if confirms is not None:
                at = confirms.sequential_id + 1 if newer is None else newer.sequential_id
            elif self.count is not None and self.end_us is None:
                asked = min(TRADES_PAGE, self.count - len(self.found))
            reply: Sequence[Trade] = yield from self._page(day, asked, at)
            page = reply
            if confirms is not None:
                if not page or page[0].sequential_id != confirms.sequential_id:
                    raise self._error("the reply lacks a trade that is known to be there")
                page = page[1:]
            self.found |= {trade.sequential_id: trade for trade in page if self._is_wanted(trade)}
            if page:
                newer = page[-2] if len(page) > 1 else oldest
                oldest = page[-1]
            has_all = self.count is not None and len(self.found) >= self.count
            if has_all or (oldest is not None and self.start_us is not None and oldest.time_us < self.start_us):
                return -1
            if confirms is not None and not page:
                return day - 1
            if len(reply) >= asked:
                if reply[-1].sequential_id == cursor:
                    raise self._error(f"the page before {cursor} ends with that trade itself")
                cursor, confirms = reply[-1].sequential_id, None
            elif oldest is not None:
                confirms = oldest
            else:
                before = yield from self._day_before(day)
                if before is not None:
                    return before
                if is_doubted:
                    raise self._error("a page is empty though its day has a candle")
                is_doubted = True  # a trade may have happened since, or the page was wrong: asked once more

    def _page(self, day: int, count: int, cursor: int | None) -> Steps[Sequence[Trade]]:
        seconds = None if cursor is not None else self._first_second(day)
        to = None if seconds is None else time.strftime("%H%M%S", time.gmtime(seconds))
        ask = trades_ask(self.market, count, cursor=cursor, days_ago=self.today - day or None, to=to)
        reply = yield from self._reply(ask)
        page: Sequence[Trade] = reply.value
        if page:
            self._check_day(self.today + page[0].time_us // DAY_US - day)
        return page

    def _day_before(self, day: int) -> Steps[int | None]:
        """The day to go on with after a page that was empty, by the newest candle before it: as many days earlier as
        had no trades. None where the candle is of that day."""
        seconds = self._first_second(day)
        bound_us = None if day == self.today else (day + 1) * DAY_US
        if seconds is not None:
            bound_us = day * DAY_US + seconds * 1_000_000
        reply = yield from self._reply(candles_ask(self.market, TIMEFRAMES["1s"], bound_us, 1))
        newest_us: int | None = reply.value.oldest_us
        if newest_us is None or day * DAY_US <= newest_us < (self.start_us or 0):
            return day - 1
        return newest_us // DAY_US if newest_us < day * DAY_US else None

    def _reply(self, ask: Ask) -> Steps[Reply]:
        reply = yield ask
        self.requests += 1
        if reply.date_us is not None:
            self._check_day(reply.date_us // DAY_US)
        return reply

    def _check_day(self, today: int) -> None:
        if today > self.today:
            self.today = today
            self.found.clear()
            raise _DayTurned

    def _first_second(self, day: int) -> int | None:
        """Where in the day to begin, in seconds; None: at its end. The venue leaves that second out."""
        if self.end_us is None or self.end_us // DAY_US != day:
            return None
        seconds = -(-(self.end_us % DAY_US) // 1_000_000) + 1
        return seconds if seconds < 86_400 else None

    def _is_wanted(self, trade: Trade) -> bool:
        return (self.end_us is None or trade.time_us < self.end_us) and (
            self.start_us is None or trade.time_us >= self.start_us
        )

    def _error(self, what: str) -> PayloadError:
        return PayloadError(f"trades of {self.market}: {what}", market=self.market)

    def rows(self) -> tuple[Trade, ...]:
        """What was found and is wanted, oldest first."""
        rows = sorted(self.found.values(), key=lambda trade: (trade.time_us, trade.sequential_id))
        return tuple(rows if self.count is None else rows[-self.count :])

    def missing(self) -> Span:
        """What a walk that was broken off did not reach."""
        start = (self.today - DAYS_KEPT) * DAY_US if self.start_us is None else self.start_us
        end = self.rows()[0].time_us if self.found else (self.end_us or (self.today + 1) * DAY_US)
        return Span(min(start, end), end)
