"""What the stream publishes, and when: a pure function of the tape and an interval of the exchange's time.

A trade is published a few dozen milliseconds after it happened, and so is the ticker it changes; a book at
its changes, on a 100 ms grid; a candle once a second, when somebody traded in that second. So the same
interval always holds the same events, however the clock got through it. A long jump is thinned: of
tickers and books only the last, of candles each one's last state.

Not shared between threads: the server's loop owns it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from backbone.simulator.market.book import book_stamp_us, next_book_us, rounded
from backbone.simulator.market.catalogue import Market
from backbone.simulator.market.listing import UnknownMarketError
from backbone.simulator.market.venue import (
    KST_US,
    Bars,
    Executions,
    Row,
    Summary,
    Venue,
    iso_day,
    iso_seconds,
    stamp_of,
    ticker_row,
)
from backbone.simulator.server.frames import STREAM_TIMEFRAMES
from backbone.timeframe import DAY_US, TIMEFRAMES

__all__ = ["Event", "Feed"]

Channel = tuple[str, float]
"""A type and, for books, the grouping level."""

_BLOCK_US = 15_000_000
_THIN_US = 60_000_000  # a jump longer than this is thinned


class Event(NamedTuple):
    """Something to publish: when, on which channel, for which market, and the row (without ``stream_type``)."""

    time_us: int
    channel: Channel
    code: str
    row: Row


class _Trades(NamedTuple):
    """The trades of one market in ``[start_us, end_us)``, with the times they are published."""

    start_us: int
    end_us: int
    trades: Executions
    stamp_us: npt.NDArray[np.int64]


class Feed:
    """The events of a venue. See the module's docstring."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._held: dict[str, _Trades] = {}
        self._due: dict[str, int] = {}

    def forget(self) -> None:
        """The market was changed by a script: what was read ahead no longer holds."""
        self._held.clear()
        self._due.clear()

    def touch(self, codes: Iterable[str]) -> None:
        """The channels of these markets changed."""
        for code in codes:
            self._due.pop(code, None)

    # -- what happens ----------------------------------------------------------------------------------------

    def events(self, wanted: Mapping[str, frozenset[Channel]], after_us: int, until_us: int) -> list[Event]:
        """Everything published in ``(after_us, until_us]`` on the wanted channels, in order of time."""
        found: list[Event] = []
        tickers: list[tuple[int, str]] = []
        for code, channels in wanted.items():
            if self._due.get(code, 0) > until_us:
                continue
            market = self._listed(code, after_us, until_us)
            if market is None:  # delisted: nothing more is published of it
                self._due[code] = 1 << 62
                continue
            last_us = until_us if market.delisted_us is None else min(until_us, market.delisted_us - 1)
            kinds = {kind for kind, _ in channels}
            due = [1 << 62]
            if kinds - {"orderbook"}:
                due.append(self._trade_events(market, kinds, after_us, last_us, found, tickers))
            for kind, level in channels:
                if kind == "orderbook":
                    due.append(self._book_events(market, level, after_us, last_us, found))
            self._due[code] = min(due)
        if tickers:
            markets = [self._venue.market(code) for _, code in tickers]
            rows = {
                one.market.code: ticker_stream_row(one, until_us) for one in self._venue.summaries(markets, until_us)
            }
            found += [Event(at_us, ("ticker", 0.0), code, rows[code]) for at_us, code in tickers if code in rows]
        found.sort(key=lambda event: event.time_us)
        return found

    def _listed(self, code: str, after_us: int, until_us: int) -> Market | None:
        """The market of exactly this code, if it was listed at any time between the two; lower case is no code here."""
        for at_us in (until_us, after_us):
            with contextlib.suppress(UnknownMarketError):
                market = self._venue.market(code, at_us)
                return market if market.code == code else None
        return None

    def _trade_events(
        self,
        market: Market,
        kinds: set[str],
        after_us: int,
        until_us: int,
        found: list[Event],
        tickers: list[tuple[int, str]],
    ) -> int:
        """Add what trades bring about, for tickers only when; returns when the next is due."""
        held = self._read(market, after_us - 2_000_000, until_us)
        stamps = held.stamp_us
        if "trade" in kinds:
            for i in np.flatnonzero((stamps > after_us) & (stamps <= until_us)).tolist():
                row = self._trade(market, held.trades, i)
                found.append(Event(int(stamps[i]), ("trade", 0.0), market.code, row))
        if "ticker" in kinds:
            happened = int(np.searchsorted(held.trades.time_ms * 1000, until_us, side="right"))
            if happened and after_us < stamps[happened - 1] <= until_us:
                tickers.append((int(stamps[happened - 1]), market.code))
        found += self._candle_events(market, kinds, held.trades, after_us, until_us)
        due: int = min([held.end_us, *stamps[stamps > until_us][:1].tolist()])
        if kinds & STREAM_TIMEFRAMES.keys():
            due = min(due, (until_us // 1_000_000 + 1) * 1_000_000)
        return due

    def _candle_events(
        self, market: Market, kinds: set[str], trades: Executions, after_us: int, until_us: int
    ) -> list[Event]:
        """One state a second in which somebody traded, published when the second is over."""
        seconds = np.unique(trades.time_ms // 1000)
        over = (seconds + 1) * 1_000_000
        seconds = seconds[(over > after_us) & (over <= until_us)]
        found: list[Event] = []
        if not len(seconds):
            return found
        for kind in kinds & STREAM_TIMEFRAMES.keys():
            timeframe = TIMEFRAMES[STREAM_TIMEFRAMES[kind]]
            shown = seconds
            if until_us - after_us > _THIN_US:
                labels = timeframe.floor_array(seconds * 1_000_000)
                shown = seconds[np.append(labels[1:] != labels[:-1], True)]
            for second in shown:
                end_us = (int(second) + 1) * 1_000_000
                bars = self._venue.forming(market, timeframe, end_us - 1)
                if len(bars):
                    found.append(Event(end_us, (kind, 0.0), market.code, candle_stream_row(market, kind, bars)))
        return found

    def _book_events(self, market: Market, level: float, after_us: int, until_us: int, found: list[Event]) -> int:
        """Add the changes of a book; returns when the next one is due."""
        if until_us - after_us > _THIN_US:
            after_us = max(after_us, book_stamp_us(market, until_us) - 1)
        at = next_book_us(market, after_us)
        while at <= until_us:
            row = self._venue.orderbook(market.code, at, level)
            if row is not None:
                found.append(Event(at, ("orderbook", level), market.code, book_stream_row(row)))
            at = next_book_us(market, at)
        return at

    def _read(self, market: Market, start_us: int, end_us: int) -> _Trades:
        """The trades from `start_us` to `end_us` at least, read ahead by a block that holds some thirty."""
        held = self._held.get(market.history)
        if held is not None and held.start_us <= start_us and end_us < held.end_us:
            return held
        ahead = 30 * 60_000_000 / max(market.trades_per_minute, 1e-3)
        block = int(max(_BLOCK_US, min(3_600_000_000, ahead))) // _BLOCK_US * _BLOCK_US
        first = start_us // _BLOCK_US * _BLOCK_US
        last = (end_us // block + 1) * block
        trades = self._venue.executions(market, first, last)
        stamps = stamp_of(market, trades.time_ms) * 1000
        order = np.argsort(stamps, kind="stable")
        sorted_trades = trades.take(order)
        held = self._held[market.history] = _Trades(first, last, sorted_trades, stamps[order])
        return held

    # -- snapshots -------------------------------------------------------------------------------------------

    def snapshots(self, channel: Channel, codes: Iterable[str], now_us: int) -> dict[str, Row]:
        """The state of a channel by market, for the markets that have one."""
        kind, level = channel
        markets = [self._venue.market(code, now_us) for code in codes]
        if kind == "ticker":
            return {one.market.code: ticker_stream_row(one, now_us) for one in self._venue.summaries(markets, now_us)}
        rows = {market.code: self._snapshot(market, kind, level, now_us) for market in markets}
        return {code: row for code, row in rows.items() if row is not None}

    def _snapshot(self, market: Market, kind: str, level: float, now_us: int) -> Row | None:
        if kind == "orderbook":
            book = self._venue.orderbook(market.code, now_us, level)
            return None if book is None else book_stream_row(book)
        if kind == "trade":
            last = self._venue.last_execution(market, now_us + 1)
            return self._trade(market, last, 0) if len(last) else None
        bars = self._venue.newest_bars(market, TIMEFRAMES[STREAM_TIMEFRAMES[kind]], None, 1, now_us)
        return candle_stream_row(market, kind, bars) if len(bars) else None

    def _trade(self, market: Market, trades: Executions, i: int) -> Row:
        ms, price = int(trades.time_ms[i]), float(trades.price[i])
        previous = self._venue.last_price(market, ms * 1000 // DAY_US * DAY_US) or price
        stamp = iso_seconds(np.array([ms * 1000]))[0]
        book = self._venue.orderbook(market.code, ms * 1000, depth=1)
        best = book["orderbook_units"][0] if book is not None else {}
        return {
            "type": "trade",
            "code": market.code,
            "timestamp": stamp_of(market, ms),
            "trade_date": stamp[:10],
            "trade_time": stamp[11:],
            "trade_timestamp": ms,
            "trade_price": price,
            "trade_volume": float(trades.volume[i]),
            "ask_bid": "BID" if trades.is_buy[i] else "ASK",
            "prev_closing_price": previous,
            "change": "RISE" if price > previous else "FALL" if price < previous else "EVEN",
            "change_price": rounded(abs(price - previous), 8),
            "sequential_id": int(trades.sequential_id[i]),
            **{
                f"best_{side}_{what}": best[f"{side}_{what}"]
                for side in ("ask", "bid")
                for what in ("price", "size")
                if best
            },
        }


def ticker_stream_row(one: Summary, now_us: int) -> Row:
    """A ticker as the stream has it: the REST row's numbers, and those that REST lacks."""
    rest = ticker_row(one, now_us)
    row = {"type": "ticker", "code": rest.pop("market"), **rest}
    row["ask_bid"] = "BID" if one.last_is_buy else "ASK"
    row["acc_bid_volume"] = one.bought
    row["acc_ask_volume"] = rounded(one.volume - one.bought, 8)
    row["market_state"] = one.market.state
    row["is_trading_suspended"] = one.market.suspended
    gone_us = one.market.delisted_us
    row["delisting_date"] = None if gone_us is None else iso_day(gone_us + KST_US)
    row["market_warning"] = "CAUTION" if one.market.warning else "NONE"
    return row


def book_stream_row(book: Row) -> Row:
    """A book as the stream has it."""
    return {"type": "orderbook", "code": book["market"], **{k: v for k, v in book.items() if k != "market"}}


def candle_stream_row(market: Market, kind: str, bars: Bars) -> Row:
    """The last of `bars` as the stream has it."""
    last = bars.newest(1)
    return {
        "type": kind,
        "code": market.code,
        "candle_date_time_utc": iso_seconds(last.time_us)[0],
        "candle_date_time_kst": iso_seconds(last.time_us + KST_US)[0],
        "opening_price": float(last.open[0]),
        "high_price": float(last.high[0]),
        "low_price": float(last.low[0]),
        "trade_price": float(last.close[0]),
        "candle_acc_trade_volume": float(last.volume[0]),
        "candle_acc_trade_price": float(last.value[0]),
        "timestamp": int(last.stamp_ms[0]),
    }
