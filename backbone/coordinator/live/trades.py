"""How the trades of a range are paged: by cursor inside a UTC day, and by day into the past.

Pages go by cursor, never by time, so that trades which share a second or a millisecond are neither lost nor doubled.
The venue counts days back from its own today, which can turn while pages are under way: a reply that shows a later day
than was thought starts the walk over.

A page that is shorter than asked, or empty, reports that its day has nothing older. A second reply has to agree, and it
has to contain something known: it is a page that must begin with the oldest trade known of that day. Where no trade is
known, it is the newest 1-second candle before that time, which also shows how many days without trades lie before. Full
pages need no second reply. Pure: the walk takes what arrived and says what to ask next.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from backbone.coordinator.steps import Steps
from backbone.errors import BackboneError, PayloadError
from backbone.model import Span, Trade
from backbone.routing.wire import TRADES_PAGE, Ask, CandlePage, candles_ask, trades_ask
from backbone.timeframe import DAY_US, TIMEFRAMES
from backbone.venues import Venue

__all__ = ["DAYS_KEPT", "TradeWalk", "TradesAnswer"]

DAYS_KEPT = Venue.trades_kept_days
"""Whole UTC days before today that the venue answers."""


@dataclass(frozen=True)
class TradesAnswer:
    """Trades, oldest first, and the requests they took; ``gaps`` and ``causes`` where not all could be had."""

    rows: tuple[Trade, ...]
    requests: int
    gaps: tuple[Span, ...] = ()
    causes: tuple[BackboneError, ...] = ()


class TradeWalk:
    """The newest `count` trades before `end_us`, or all from `start_us`; from the newest page to the oldest.

    `today` is the venue's day (days since the epoch) as far as it is known. Not thread-safe; used by one call.
    """

    def __init__(self, market: str, count: int | None, start_us: int | None, end_us: int | None, today: int) -> None:
        self._market = market
        self._count = count
        self._start_us = start_us
        self._end_us = end_us
        self.requests = 0
        self._begin(today)

    def _begin(self, today: int) -> None:
        self._today = today
        self._day = today if self._end_us is None else min(today, (self._end_us - 1) // DAY_US)
        self._cursor: int | None = None
        self._asked = 0
        self._mode: Literal["page", "confirm", "candle"] = "page"
        self._oldest: Trade | None = None  # known of this day
        self._newer_id: int | None = None  # the trade after it
        self._is_doubted = False  # a candle spoke against an empty page
        self._found: dict[int, Trade] = {}
        self.is_done = self._today - self._day > DAYS_KEPT

    def next_ask(self) -> Ask:
        """The next request: a page, or what confirms that a day has nothing older."""
        if self._mode == "candle":
            return candles_ask(self._market, TIMEFRAMES["1s"], self._bound_us(), 1)
        asked, cursor = TRADES_PAGE, self._cursor
        if self._mode == "confirm" and self._oldest is not None:
            cursor = self._newer_id or self._oldest.sequential_id + 1
        elif self._count is not None and self._end_us is None:
            asked = min(TRADES_PAGE, self._count - len(self._found))
        self._asked, seconds = asked, self._first_second()
        return trades_ask(
            self._market,
            asked,
            cursor=cursor,
            days_ago=self._today - self._day or None,
            to=None if seconds is None or cursor is not None else time.strftime("%H%M%S", time.gmtime(seconds)),
        )

    def _first_second(self) -> int | None:
        """Where in the day to begin, in seconds; None: at its end. The venue leaves that second out."""
        if self._end_us is None or self._end_us // DAY_US != self._day:
            return None
        seconds = -(-(self._end_us % DAY_US) // 1_000_000) + 1
        return seconds if seconds < 86_400 else None

    def _bound_us(self) -> int | None:
        """The time before which this day's trades are asked for; None: now."""
        seconds = self._first_second()
        if seconds is not None:
            return self._day * DAY_US + seconds * 1_000_000
        return None if self._day == self._today else (self._day + 1) * DAY_US

    def take(self, reply: Sequence[Trade] | CandlePage, date_us: int | None) -> None:
        """What the request brought, and the reply's ``Date``.

        Raises `PayloadError` where paging does not advance, and where a reply lacks what it had to contain.
        """
        self.requests += 1
        today = self._today if date_us is None else date_us // DAY_US
        page = () if isinstance(reply, CandlePage) else reply
        if page:
            today = max(today, page[0].time_us // DAY_US + self._today - self._day)
        if today > self._today:
            self._begin(today)
            return
        if isinstance(reply, CandlePage):
            self._take_candle(reply.oldest_us)
            return
        if self._mode == "confirm":
            page = self._confirmed(page)
        for trade in page:
            if self._is_wanted(trade):
                self._found[trade.sequential_id] = trade
        if page:
            before = self._oldest.sequential_id if self._oldest is not None else None
            self._newer_id = page[-2].sequential_id if len(page) > 1 else before
            self._oldest = page[-1]
        is_agreed, self._mode = self._mode == "confirm" and not page, "page"
        has_all = self._count is not None and len(self._found) >= self._count
        is_past = self._start_us is not None and self._oldest is not None and self._oldest.time_us < self._start_us
        if has_all or is_past:
            self.is_done = True
        elif is_agreed:
            self._go_back(self._day - 1)
        elif len(reply) >= self._asked:
            self._go_on(reply[-1])
        else:
            self._mode = "candle" if self._oldest is None else "confirm"

    def _confirmed(self, page: Sequence[Trade]) -> Sequence[Trade]:
        """What a confirming page has beyond the trade that it had to begin with."""
        if not page or self._oldest is None or page[0].sequential_id != self._oldest.sequential_id:
            raise PayloadError(
                f"trades of {self._market}: the reply lacks a trade that is known to be there",
                market=self._market,
            )
        return page[1:]

    def _take_candle(self, newest_us: int | None) -> None:
        """The newest candle before a page that was empty: in that day, or as many days earlier as had no trades."""
        self._mode = "page"
        if newest_us is None:
            self._go_back(self._day - 1)
        elif newest_us < self._day * DAY_US or (self._start_us is not None and newest_us < self._start_us):
            self._go_back(newest_us // DAY_US if newest_us < self._day * DAY_US else self._day - 1)
        elif self._is_doubted:
            raise PayloadError(
                f"trades of {self._market}: a page is empty though its day has a candle",
                market=self._market,
            )
        else:
            self._is_doubted = True  # a trade may have happened since, or the page was wrong: asked once more

    def _is_wanted(self, trade: Trade) -> bool:
        return (self._end_us is None or trade.time_us < self._end_us) and (
            self._start_us is None or trade.time_us >= self._start_us
        )

    def _go_on(self, oldest: Trade) -> None:
        if oldest.sequential_id == self._cursor:
            raise PayloadError(
                f"trades of {self._market}: the page before {self._cursor} ends with that trade itself",
                market=self._market,
            )
        self._cursor = oldest.sequential_id

    def _go_back(self, day: int) -> None:
        is_first_day = self._start_us is not None and (day + 1) * DAY_US <= self._start_us
        self._day = day
        self._cursor = self._oldest = self._newer_id = None
        self._is_doubted = False
        self.is_done = is_first_day or self._today - self._day > DAYS_KEPT

    def steps(self) -> Steps[TradesAnswer]:
        """The whole walk. An error ends it: what it did not reach is in the answer's gaps."""
        while not self.is_done:
            try:
                reply = yield self.next_ask()
                self.take(reply.value, reply.date_us)
            except BackboneError as exc:
                return TradesAnswer(self.rows, self.requests, (self.missing,), (exc,))
        return TradesAnswer(self.rows, self.requests)

    @property
    def rows(self) -> tuple[Trade, ...]:
        """What was found and is wanted, oldest first."""
        rows = sorted(self._found.values(), key=lambda trade: (trade.time_us, trade.sequential_id))
        return tuple(rows if self._count is None else rows[-self._count :])

    @property
    def missing(self) -> Span:
        """What a walk that was broken off did not reach."""
        start = (self._today - DAYS_KEPT) * DAY_US if self._start_us is None else self._start_us
        end = self.rows[0].time_us if self._found else (self._end_us or (self._today + 1) * DAY_US)
        return Span(min(start, end), end)
