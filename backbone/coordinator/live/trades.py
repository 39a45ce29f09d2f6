"""How the trades of a range are paged: by cursor inside a UTC day, and by day into the past.

Pages go by cursor, never by time, so that trades which share a second or a millisecond are neither lost nor doubled.
The venue counts days back from its own today, which can turn while pages are under way: a reply that shows a later day
than was thought starts the walk over. Pure: the walk takes what arrived and says what to ask next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backbone.errors import BackboneError, PayloadError
from backbone.model import Span, Trade
from backbone.routing.wire import TRADES_PAGE, Ask, trades_ask
from backbone.venues import Venue

__all__ = ["DAYS_KEPT", "DAY_US", "TradeWalk", "TradesAnswer"]

DAY_US = 86_400_000_000
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
        self._found: dict[int, Trade] = {}
        self.is_done = self._today - self._day > DAYS_KEPT

    def next_ask(self) -> Ask:
        """The next page's question."""
        asked = TRADES_PAGE
        if self._count is not None and self._end_us is None:
            asked = min(TRADES_PAGE, self._count - len(self._found))
        self._asked = asked
        return trades_ask(
            self._market,
            asked,
            cursor=self._cursor,
            days_ago=self._today - self._day or None,
            to=self._time_of_day() if self._cursor is None else None,
        )

    def _time_of_day(self) -> str | None:
        """Where in the day to begin: the venue's ``to`` takes whole seconds, and leaves that second out."""
        if self._end_us is None or self._end_us // DAY_US != self._day:
            return None
        seconds = -(-(self._end_us % DAY_US) // 1_000_000) + 1
        if seconds >= 86_400:
            return None
        return f"{seconds // 3600:02d}{seconds // 60 % 60:02d}{seconds % 60:02d}"

    def take(self, page: Sequence[Trade], date_us: int | None) -> None:
        """What the question brought, and the reply's ``Date``. Raises `PayloadError` where paging does not advance."""
        self.requests += 1
        today = self._today if date_us is None else date_us // DAY_US
        if page:
            today = max(today, page[0].time_us // DAY_US + self._today - self._day)
        if today > self._today:
            self._begin(today)
            return
        for trade in page:
            if self._is_wanted(trade):
                self._found[trade.sequential_id] = trade
        if self._count is not None and len(self._found) >= self._count:
            self.is_done = True
        elif len(page) < self._asked:
            self._go_back_a_day()
        else:
            self._go_on(page[-1])

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
        self.is_done = self._start_us is not None and oldest.time_us < self._start_us

    def _go_back_a_day(self) -> None:
        is_first_day = self._start_us is not None and self._day * DAY_US <= self._start_us
        self._day -= 1
        self._cursor = None
        self.is_done = is_first_day or self._today - self._day > DAYS_KEPT

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
