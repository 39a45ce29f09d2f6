"""Trades that REST no longer has: taken from the venue's archive day by day, checked, and not stored.

A UTC day's file is used only when its checksum agrees and its trades make the day's candle: the same highest and lowest
price, the same volume. A day whose candle does not exist had no trades, and no file is asked for. What cannot be used
is a gap with its cause; nothing of such a day is in the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from backbone.candle_table import times_of
from backbone.coordinator.candles.reader import CandleAnswer
from backbone.errors import BackboneError, PayloadError, UnreachableError
from backbone.model import Span
from backbone.routing.archive import TRADE_SCHEMA, Download, TradeFile, checksum_ask, file_ask
from backbone.routing.wire import PAGE, Ask
from backbone.timeframe import DAY_US

__all__ = ["OldTrades", "OldTradesAnswer"]

_RELATIVE = 1e-9  # the candle's volume may be the sum in another order
_RELATIVE_BEFORE_SUMS = 2e-3  # while candles were no sums of their parts


@dataclass(frozen=True)
class OldTradesAnswer:
    """Trades in the archive's schema, oldest first; ``gaps`` and ``causes`` where a day could not be used."""

    table: pa.Table
    requests: int
    gaps: tuple[Span, ...] = ()
    causes: tuple[BackboneError, ...] = ()


class OldTrades:
    """Reads days of trades; made for one call.

    Parameters
    ----------
    request : puts one question to the archive and returns its value; raises the error tree.
    days : the closed day candles of a market in a span.
    sums_since_us : since when a candle's volume is the sum of its trades.
    """

    def __init__(
        self,
        request: Callable[[Ask], Any],
        days: Callable[[str, Span], CandleAnswer],
        sums_since_us: int,
    ) -> None:
        self._request = request
        self._days = days
        self._sums_since_us = sums_since_us
        self._asked = 0

    def read(self, market: str, span: Span, *, first: int | None = None, last: int | None = None) -> OldTradesAnswer:
        """The trades of `span`: all, the `first` so many, or the `last` so many."""
        self._asked = 0
        parts: list[pa.Table] = []
        gaps: list[Span] = []
        causes: list[BackboneError] = []
        rows, enough = 0, first or last
        for days, outcome in self._outcomes(market, span, is_counted=enough is not None, is_backwards=last is not None):
            if isinstance(outcome, BackboneError):
                causes.append(outcome)
                # a count is of neighbours: behind a gap there is none; an archive that is away stays away
                ends = enough is not None or isinstance(outcome, UnreachableError)
                failed = days if ends else days[:1]
                gaps += [Span(max(day, span.start), min(day + DAY_US, span.end)) for day in failed]
                if ends:
                    break
                continue
            low, high = np.searchsorted(times_of(outcome), (span.start, span.end))
            parts.append(outcome.slice(int(low), int(high - low)))
            rows += parts[-1].num_rows
            if enough is not None and rows >= enough:
                break
        if last is not None:
            parts.reverse()
        found = pa.concat_tables(parts) if parts else TRADE_SCHEMA.empty_table()
        if first is not None:
            found = found.slice(0, first)
        elif last is not None:
            found = found.slice(max(0, found.num_rows - last))
        return OldTradesAnswer(found, self._asked, tuple(sorted(gaps)), tuple(causes))

    def _outcomes(
        self, market: str, span: Span, *, is_counted: bool, is_backwards: bool
    ) -> Iterator[tuple[list[int], pa.Table | BackboneError]]:
        """The days of `span` that had trades, one after the other: those from it on, and its trades or what failed."""
        for window in _windows(span, is_counted, is_backwards):
            candles = self._days(market, window)
            self._asked += candles.pages
            at = {int(time): row for row, time in enumerate(times_of(candles.table))}
            unknown = (day for gap in candles.gaps for day in range(gap.start, gap.end, DAY_US))
            opens = sorted([*at, *unknown], reverse=is_backwards)
            for i, day_us in enumerate(opens):
                outcome: pa.Table | BackboneError
                try:
                    if day_us not in at:
                        causes = (cause for cause in candles.causes if isinstance(cause, BackboneError))
                        raise next(causes, PayloadError(f"the day candles of {market} could not be had", market=market))
                    file = TradeFile(market, Span(day_us, day_us + DAY_US))
                    outcome = self._day(file, candles.table.slice(at[day_us], 1))
                except BackboneError as exc:
                    outcome = exc
                yield opens[i:], outcome

    def _day(self, file: TradeFile, candle: pa.Table) -> pa.Table:
        """A day's trades, once they are certain. Raises the error tree."""
        for _ in range(2):  # a file may be issued again between the two questions
            self._asked += 2
            stated: str = self._request(checksum_ask(file))
            download: Download = self._request(file_ask(file))
            if download.sha256 == stated:
                break
        else:
            raise PayloadError(f"{file}: its checksum does not agree", market=file.market)
        self._check(file, download.table, candle)
        return download.table

    def _check(self, file: TradeFile, table: pa.Table, candle: pa.Table) -> None:
        if not table.num_rows:
            raise PayloadError(f"{file}: it is empty, the day's candle is not", market=file.market)
        price, volume = table.column("price").to_numpy(), float(table.column("volume").to_numpy().sum())
        high, low, whole = (candle.column(name)[0].as_py() for name in ("high", "low", "volume"))
        relative = _RELATIVE if file.span.start >= self._sums_since_us else _RELATIVE_BEFORE_SUMS
        for name, mine, theirs, allowed in (
            ("highest price", float(price.max()), high, 0.0),
            ("lowest price", float(price.min()), low, 0.0),
            ("volume", volume, whole, relative * whole),
        ):
            if abs(mine - theirs) > allowed:
                raise PayloadError(
                    f"{file}: its {name} is {mine:.12g}, that of the day's candle {theirs:.12g}", market=file.market
                )


def _windows(span: Span, is_counted: bool, is_backwards: bool) -> list[Span]:
    """The whole days of `span` in parts: a count is seldom of more days than one page of day candles."""
    start, end = span.start // DAY_US * DAY_US, -(-span.end // DAY_US) * DAY_US
    step = PAGE * DAY_US if is_counted else max(DAY_US, end - start)
    if is_backwards:
        return [Span(max(start, until - step), until) for until in range(end, start, -step)]
    return [Span(at, min(end, at + step)) for at in range(start, end, step)]
