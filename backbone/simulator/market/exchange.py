"""The synthetic market: a `Venue` whose candles, trades and tickers are folds of one deterministic trade
tape.

Nothing is stored: any range can be asked in any order and the answer is the same, because everything is
computed from (seed, market, time). What was computed is kept in bounded caches that all exchanges of a process share:
whole candles in blocks (days of minutes, months of days), last trades, and per quote currency the minutes of the last
24 hours from which tickers are summed; and per exchange the whole cells of running candles.

The caches' locks are held for look-ups and for the ticker board's own arithmetic, never for generating
blocks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from backbone.errors import InputError
from backbone.model import Span
from backbone.simulator.market.catalogue import Market, catalogue, new_market
from backbone.simulator.market.tape import (
    BOUGHT,
    CELL_US,
    CLOSE,
    HIGH,
    LOW,
    OPEN,
    ROWS,
    STAMP,
    TIME,
    VALUE,
    VALUE_LOW,
    VOLUME,
    Tape,
    Trades,
    fold,
    fold_trades,
    value_as_float,
)
from backbone.simulator.market.venue import Bars, Executions, Summary, Venue, fold_bars
from backbone.timeframe import DAY_US, HOUR_US, MINUTE_US, TIMEFRAMES, Timeframe

__all__ = ["Exchange"]

I64 = npt.NDArray[np.int64]

_CACHE_BYTES = 160 * 2**20
_STRIDE_US = {
    "1m": DAY_US, "3m": DAY_US, "5m": DAY_US, "10m": 4 * DAY_US, "15m": 4 * DAY_US, "30m": 4 * DAY_US,
    "1h": 8 * DAY_US, "4h": 32 * DAY_US, "1d": 8 * DAY_US,
    "1w": 224 * DAY_US, "1M": 256 * DAY_US, "1y": 1024 * DAY_US,
}  # fmt: skip
_CHUNK_US = 4 * DAY_US  # generation in pieces that fit the processor's cache
_MINUTES = 1440
_BATCH = 16  # markets at once


def _us(text: str) -> int:
    return int(datetime.fromisoformat(text + "+00:00").timestamp()) * 1_000_000


# Spans in which the real venue was down, so that quiet times across all markets exist to be recognised.
_OUTAGES = tuple(
    Span(_us(start), _us(end))
    for start, end in (
        ("2021-05-10T18:01", "2021-05-10T18:15"),
        ("2022-06-30T17:00", "2022-06-30T20:00"),
        ("2023-12-03T16:00", "2023-12-03T21:00"),
        ("2024-06-30T18:00", "2024-06-30T21:00"),
        ("2025-03-31T18:00", "2025-03-31T22:00"),
        ("2025-06-30T18:00", "2025-06-30T22:00"),
        ("2025-10-25T17:05", "2025-10-25T23:51"),
        ("2025-12-31T17:00", "2025-12-31T22:00"),
        ("2026-07-05T17:00", "2026-07-05T20:00"),
    )
)


Kept = TypeVar("Kept")


class _Cache(Generic[Kept]):
    """What was computed, as far as it was used last, `most` in size. Safe to share between threads.

    A key names all that something is computed from, so exchanges of the same seed use each other's.
    """

    def __init__(self, most: int, size: Callable[[Kept], int]) -> None:
        self._most, self._size_of = most, size
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()
        self._size = 0

    def of(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            self._kept[key] = made
            self._size += self._size_of(made)
            while self._size > self._most:
                _, gone = self._kept.popitem(last=False)
                self._size -= self._size_of(gone)
            return made


_BLOCKS: _Cache[Bars] = _Cache(_CACHE_BYTES, lambda block: 64 * len(block) + 500)
_LAST: _Cache[Executions] = _Cache(4096, lambda _: 1)


class Exchange(Venue):
    """A deterministic market with no sockets. The same seed gives the same market on every machine.

    Parameters
    ----------
    seed : which market history.
    markets : codes to list; default is the whole catalogue (about 290 KRW, 30 BTC and 20 USDT markets).
    outages : spans without any trade; default are some of the real venue's.
    """

    def __init__(
        self, seed: int = 7, *, markets: Sequence[str] | None = None, outages: Sequence[Span] = _OUTAGES
    ) -> None:
        known = catalogue()
        listed = known if markets is None else {code: _known(known, code) for code in markets}
        super().__init__(listed)
        self.seed = seed
        self._place: dict[str, tuple[str, int]] = {}  # history -> quote, index in its tape
        self._by_quote: dict[str, list[Market]] = {}
        for market in known.values():
            group = self._by_quote.setdefault(market.quote, [])
            self._place[market.history] = (market.quote, len(group))
            group.append(market)
        self._cache_lock = threading.Lock()
        self._open_tapes(tuple(outages))

    def __repr__(self) -> str:
        return f"Exchange(seed={self.seed}, markets={len(self.listed())})"

    def _open_tapes(self, outages: tuple[Span, ...]) -> None:
        tapes = {quote: Tape(self.seed, group, outages) for quote, group in self._by_quote.items()}
        with self._cache_lock:
            self._outages = outages
            self._tapes = tapes
            self._boards = {quote: _BOARDS.of(tape.key, partial(_Board, tape)) for quote, tape in tapes.items()}
            self._begun: dict[tuple[Tape, int, int], tuple[int, I64]] = {}  # running candles: up to which cell, folded

    def close_span(self, span: Span) -> None:
        """An outage: no trades in `span`, in any market (widened to 15 seconds)."""
        self._open_tapes((*self._outages, span))

    def list_market(self, code: str, at_us: int) -> Market:
        made = new_market(code, -(-at_us // CELL_US) * CELL_US)
        with self._cache_lock:
            group = self._by_quote[made.quote]
            if made.history in self._place:
                group[self._place[made.history][1]] = made
            else:
                self._place[made.history] = (made.quote, len(group))
                group.append(made)
            outages = self._outages
        added = self._add(made)
        self._open_tapes(outages)
        return added

    def _tape(self, market: Market) -> tuple[Tape, int]:
        quote, index = self._place[market.history]
        return self._tapes[quote], index

    def first_us(self, market: Market) -> int:
        return market.listed_us

    def stride_us(self, market: Market, timeframe: Timeframe) -> int:
        if timeframe.name == "1s":
            return HOUR_US if market.trades_per_minute > 4 else DAY_US
        return _STRIDE_US[timeframe.name]

    # -- candles ---------------------------------------------------------------------------------------------

    def bars(self, market: Market, timeframe: Timeframe, start_us: int, end_us: int) -> Bars:
        start = max(start_us, timeframe.floor(market.listed_us))
        if timeframe.name in ("1w", "1M", "1y"):
            days = self.bars(market, TIMEFRAMES["1d"], timeframe.floor(start), timeframe.ceil(max(start, end_us)))
            return fold_bars(days, timeframe).between(start_us, end_us)
        if end_us - start > 4 * self.stride_us(market, timeframe) and timeframe.name != "1d":
            return _bars_of(*self._tape(market), market, timeframe, start, end_us)
        stride = self.stride_us(market, timeframe)
        parts: list[Bars] = []
        at = start // stride * stride
        while at < end_us:
            parts.append(self._block(market, timeframe, at, at + stride))
            at += stride
        return Bars.join(parts).between(start_us, end_us)

    def _block(self, market: Market, timeframe: Timeframe, start_us: int, end_us: int) -> Bars:
        tape, index = self._tape(market)
        key = (tape.seed, tape.closed, tape.markets[index], market.factor, timeframe.name, start_us)
        return _BLOCKS.of(key, lambda: _bars_of(tape, index, market, timeframe, start_us, end_us))

    def forming(self, market: Market, timeframe: Timeframe, now_us: int) -> Bars:
        start = timeframe.floor(now_us)
        whole = self._rows_until(market, max(start, market.listed_us // CELL_US * CELL_US), now_us, timeframe)
        rows = fold(whole, np.zeros(whole.shape[1], dtype=np.int64))
        rows[TIME] = start
        return _as_bars(market, rows)

    def _rows_until(self, market: Market, start_us: int, now_us: int, timeframe: Timeframe) -> I64:
        """The fold's pieces from `start_us` (aligned) through `now_us`: whole cells, then the running cell's
        trades.
        """
        tape, index = self._tape(market)
        now_cell = now_us // CELL_US
        parts: list[I64] = []
        first = start_us // CELL_US
        if timeframe.name != "1s":
            with self._cache_lock:
                begun, key = self._begun, (tape, index, start_us)
                stop, whole = begun.get(key, (first, None))
            if whole is not None and stop <= now_cell:
                first = stop
                parts.append(whole)
            while first < now_cell:
                stop = min(now_cell, first + _CHUNK_US // CELL_US)
                cells = tape.cells(first, stop, [index])
                parts.append(tape.rows(cells, labels_us=np.zeros(len(cells), dtype=np.int64)))
                first = stop
            if parts:
                whole = np.concatenate(parts, axis=1)
                parts = [fold(whole, np.zeros(whole.shape[1], dtype=np.int64))]
                with self._cache_lock:
                    if len(begun) > 4096:
                        begun.clear()
                    begun[key] = now_cell, parts[0]
        trades = tape.trades(tape.cells(now_cell, now_cell + 1, [index]))
        seen = trades.take((trades.time_ms * 1000 <= now_us) & (trades.time_ms * 1000 >= start_us))
        parts.append(fold_trades(seen, np.zeros(len(seen), dtype=np.int64)))
        return np.concatenate(parts, axis=1)

    # -- executions ------------------------------------------------------------------------------------------

    def executions(self, market: Market, start_us: int, end_us: int) -> Executions:
        tape, index = self._tape(market)
        trades = tape.trades(tape.cells(start_us // CELL_US, -(-end_us // CELL_US), [index]))
        return _as_executions(
            market, trades.take((trades.time_ms * 1000 >= start_us) & (trades.time_ms * 1000 < end_us))
        )

    def last_execution(self, market: Market, before_us: int) -> Executions:
        tape, index = self._tape(market)
        key = (tape.seed, tape.closed, tape.markets[index], market.factor, market.listed_us, before_us)
        return _LAST.of(key, lambda: _as_executions(market, _last_trade(tape, index, before_us, market.listed_us)))

    def summaries(self, markets: Sequence[Market], now_us: int) -> list[Summary]:
        by_quote: dict[str, list[Market]] = {}
        for market in markets:
            by_quote.setdefault(self._place[market.history][0], []).append(market)
        found: dict[str, Summary] = {}
        for quote, group in by_quote.items():
            indices = [self._place[m.history][1] for m in group]
            for market, summary in zip(group, self._boards[quote].summaries(group, indices, now_us), strict=True):
                if summary is not None:
                    found[market.code] = summary
        return [found[m.code] for m in markets if m.code in found]


def _known(markets: Mapping[str, Market], code: str) -> Market:
    if code not in markets:
        raise InputError("markets", code, "codes of the embedded exchange's catalogue, such as KRW-BTC")
    return markets[code]


def _bars_of(tape: Tape, index: int, market: Market, timeframe: Timeframe, start_us: int, end_us: int) -> Bars:
    """Generate in chunks; `start_us` must be aligned to the timeframe."""
    parts: list[I64] = []
    at = start_us
    while at < end_us:
        stop = min(end_us, timeframe.ceil(at + _CHUNK_US) if timeframe.step_us <= DAY_US else end_us)
        cells = tape.cells(at // CELL_US, -(-stop // CELL_US), [index])
        if timeframe.name == "1s":
            trades = tape.trades(cells)
            parts.append(fold_trades(trades, trades.time_ms // 1000 * 1_000_000))
        else:
            parts.append(tape.rows(cells, labels_us=timeframe.floor_array(cells.cell * CELL_US)))
        at = stop
    rows = np.concatenate(parts, axis=1) if parts else np.empty((ROWS, 0), dtype=np.int64)
    return _as_bars(market, rows).between(start_us, end_us)


def _last_trade(tape: Tape, index: int, before_us: int, listed_us: int) -> Trades:
    often = tape.markets[index].trades_per_minute
    end, width = -(-before_us // CELL_US), int(min(5760, max(8, 12 / often)))  # some three trades
    floor = listed_us // CELL_US
    while True:
        start = max(floor, end - width)
        cells = tape.cells(start, end, [index])
        trades = tape.trades(cells.take(slice(max(0, len(cells) - 2), None)))
        trades = trades.take(trades.time_ms * 1000 < before_us)
        if len(trades) or start <= floor:
            return trades.take(slice(max(0, len(trades) - 1), None))
        end, width = start + 1, min(width * 8, 32 * 5760)


def _as_bars(market: Market, rows: I64) -> Bars:
    value = value_as_float(rows, market.price_decimals + market.volume_decimals)
    return Bars(
        rows[TIME],
        market.prices(rows[OPEN]),
        market.prices(rows[HIGH]),
        market.prices(rows[LOW]),
        market.prices(rows[CLOSE]),
        market.volumes(rows[VOLUME]),
        value,
        rows[STAMP],
    )


def _as_executions(market: Market, trades: Trades) -> Executions:
    factor = np.where(trades.time_ms >= 1_704_067_200_000, 10_000, 1000)  # ids gained a digit
    return Executions(
        trades.time_ms,
        market.prices(trades.price),
        market.volumes(trades.volume),
        trades.is_buy,
        trades.time_ms * factor + trades.ordinal,
    )


class _Board:
    """The running ticker sums of the markets of one quote currency.

    Holds the minutes of the last 24 hours as a ring (market by minute of the day) for the markets asked for
    so far, what they add up to at the start of the running minute, and each market's last trade. The lock
    guards all of it.
    """

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._lock = threading.Lock()
        count = len(tape.markets)
        self._minute = -1  # the running minute; the ring holds the 1440 before it
        self._loaded = np.zeros(count, dtype=bool)
        self._ring: I64 | None = None
        self._last = np.zeros((4, count), dtype=np.int64)  # time_ms (0: none), price, volume, is_buy
        self._sums: dict[str, I64] = {}
        self._previous: dict[tuple[int, int], int] = {}
        self._year: dict[tuple[int, int], tuple[float, int, float, int]] = {}

    def summaries(self, markets: Sequence[Market], indices: Sequence[int], now_us: int) -> list[Summary | None]:
        with self._lock:
            self._advance_locked(indices, now_us // MINUTE_US)
            return self._summaries_locked(markets, np.array(indices, dtype=np.int64), now_us)

    def _advance_locked(self, indices: Sequence[int], minute: int) -> None:
        """Bring the ring to the given running minute, with at least the markets `indices` in it."""
        if minute < self._minute or minute > self._minute + _MINUTES:
            self._loaded[:] = False
        known = np.flatnonzero(self._loaded)
        if len(known) and minute > self._minute:
            self._fill_locked(known, self._minute, minute)
        fresh = np.array([i for i in dict.fromkeys(indices) if not self._loaded[i]], dtype=np.int64)
        if len(fresh):
            self._last[:, fresh] = 0
            self._fill_locked(fresh, minute - _MINUTES, minute)
            self._loaded[fresh] = True
        if len(fresh) or minute != self._minute:
            self._minute = minute
            self._sum_locked()

    def _fill_locked(self, which: I64, first: int, last: int) -> None:
        if self._ring is None:
            self._ring = np.zeros((ROWS, len(self._tape.markets), _MINUTES), dtype=np.int64)
        for start in range(0, len(which), _BATCH):  # in batches that fit the processor's cache
            self._fill_some_locked(self._ring, which[start : start + _BATCH], first, last)

    def _fill_some_locked(self, ring: I64, which: I64, first: int, last: int) -> None:
        ring[:, which[:, None], np.arange(first, last)[None, :] % _MINUTES] = 0
        cells = self._tape.cells(first * 4, last * 4, [int(i) for i in which])
        if not len(cells):
            return
        labels = cells.cell // 4
        rows = self._tape.rows(cells, labels_us=labels)
        new = np.append(True, (cells.market[1:] != cells.market[:-1]) | (labels[1:] != labels[:-1]))
        ring[:, cells.market[new], rows[TIME] % _MINUTES] = rows
        ends = np.flatnonzero(np.append(cells.market[1:] != cells.market[:-1], True))
        self._note_last_locked(self._tape.trades(cells.take(ends)))

    def _note_last_locked(self, trades: Trades) -> None:
        ends = np.flatnonzero(np.append(trades.market[1:] != trades.market[:-1], True))
        owner = trades.market[ends]
        columns = (trades.time_ms, trades.price, trades.volume, trades.is_buy.astype(np.int64))
        self._last[:, owner] = np.stack([column[ends] for column in columns])

    def _sum_locked(self) -> None:
        """Fold the ring: the day so far, the 24 hours, and the close before the day (-1: not within 24
        hours).
        """
        ring = self._ring
        assert ring is not None
        past = self._minute % _MINUTES  # slots are minutes of the UTC day; those before it are today's
        traded = ring[VOLUME] > 0
        market = np.arange(traded.shape[0])
        today, before = traded[:, :past], traded[:, past:]
        sums = {"any": today.any(axis=1).astype(np.int64)}
        if past:
            sums["open"] = ring[OPEN][market, today.argmax(axis=1)]
            sums["high"] = ring[HIGH][:, :past].max(axis=1)
            sums["low"] = np.where(today, ring[LOW][:, :past], 2**62).min(axis=1)
        else:
            sums["open"] = sums["high"] = sums["low"] = np.zeros(len(market), dtype=np.int64)
        newest = _MINUTES - 1 - before[:, ::-1].argmax(axis=1)
        sums["previous"] = np.where(before.any(axis=1), ring[CLOSE][market, newest], -1)
        for name, which in (
            ("volume", VOLUME),
            ("value", VALUE),
            ("value_low", VALUE_LOW),
            ("bought", BOUGHT),
        ):
            day = ring[which][:, :past].sum(axis=1)
            sums[name] = day
            sums[name + "_24h"] = day + ring[which][:, past:].sum(axis=1)
        self._sums = sums

    def _summaries_locked(self, markets: Sequence[Market], which: I64, now_us: int) -> list[Summary | None]:
        tape, now_ms = self._tape, now_us // 1000
        trades = tape.trades(tape.cells(self._minute * 4, now_us // CELL_US + 1, sorted({int(i) for i in which})))
        trades = trades.take(trades.time_ms <= now_ms)
        last = self._last
        running = np.zeros((ROWS, last.shape[1]), dtype=np.int64)
        if len(trades):
            rows = fold_trades(trades, trades.market)
            running[:, rows[TIME]] = rows
            kept = last.copy()
            self._note_last_locked(trades)  # the running minute's trades only count for this answer
            last, self._last = self._last, kept
        sums = {name: column[which] for name, column in self._sums.items()}
        live = running[:, which]
        any_today, any_now = sums["any"] > 0, live[VOLUME] > 0
        columns = {
            "open": np.where(any_today, sums["open"], live[OPEN]),
            "high": np.where(any_today, np.maximum(sums["high"], live[HIGH]), live[HIGH]),
            "low": np.where(any_today & any_now, np.minimum(sums["low"], live[LOW]), live[LOW]),
            "previous": sums["previous"],
        }
        columns["low"] = np.where(any_today & ~any_now, sums["low"], columns["low"])
        for name, row in (("volume", VOLUME), ("value", VALUE), ("value_low", VALUE_LOW), ("bought", BOUGHT)):
            columns[name] = sums[name] + live[row]
            columns[name + "_24h"] = sums[name + "_24h"] + live[row]
        quiet = ~(any_today | any_now)
        lists = {name: column.tolist() for name, column in columns.items()}
        self._years_locked(which, now_us // DAY_US * DAY_US)
        return [
            self._summary_locked(
                market, int(which[i]), {k: v[i] for k, v in lists.items()}, last, bool(quiet[i]), now_us
            )
            for i, market in enumerate(markets)
        ]

    def _summary_locked(
        self, market: Market, index: int, sums: dict[str, int], last: I64, quiet: bool, now_us: int
    ) -> Summary | None:
        time_ms, price, volume, is_buy = last[:, index].tolist()
        if not time_ms:  # nothing for a day: look further back
            older = _last_trade(self._tape, index, (self._minute - _MINUTES) * MINUTE_US, market.listed_us)
            if not len(older):
                return None
            self._note_last_locked(older)
            time_ms, price, volume, is_buy = self._last[:, index].tolist()
        decimals = market.price_decimals + market.volume_decimals
        if quiet:  # no trades today yet: the day stands where yesterday ended
            sums["open"] = sums["high"] = sums["low"] = price
        day_us = now_us // DAY_US * DAY_US
        previous = sums["previous"] if sums["previous"] >= 0 else self._previous_locked(market, index, day_us)
        last_price, open_, high, low, close = market.prices(
            np.array([price, sums["open"], sums["high"], sums["low"], previous if previous >= 0 else sums["open"]])
        ).tolist()
        amounts = (volume, sums["volume"], sums["bought"], sums["volume_24h"])
        last_volume, today, bought, day = market.volumes(np.array(amounts)).tolist()
        top, top_us, bottom, bottom_us = self._year[index, day_us]
        top, bottom = top * float(market.factor), bottom * float(market.factor)
        return Summary(
            market=market,
            last_ms=time_ms,
            last_price=last_price,
            last_volume=last_volume,
            last_is_buy=bool(is_buy),
            open=open_,
            high=high,
            low=low,
            prev_close=close,
            volume=today,
            value=_value(sums["value"], sums["value_low"], decimals),
            bought=bought,
            volume_24h=day,
            value_24h=_value(sums["value_24h"], sums["value_low_24h"], decimals),
            high_52w=max(top, high),
            high_52w_us=top_us if top > high else day_us,
            low_52w=min(bottom, low),
            low_52w_us=bottom_us if bottom < low else day_us,
        )

    def _previous_locked(self, market: Market, index: int, day_us: int) -> int:
        """The last price before the day, where the 24 hours hold none; -1 where there never was any."""
        key = (index, day_us)
        if key not in self._previous:
            if len(self._previous) > 4 * len(self._tape.markets):
                self._previous.clear()
            one = _last_trade(self._tape, index, day_us, market.listed_us)
            self._previous[key] = int(one.price[0]) if len(one) else -1
        return self._previous[key]

    def _years_locked(self, which: I64, day_us: int) -> None:
        """The extremes of 52 weeks, taken at each day's first instant (a whole year of trades would be too
        dear).
        """
        wanted = [i for i in dict.fromkeys(which.tolist()) if (i, day_us) not in self._year]
        if wanted and len(self._year) > 4 * len(self._tape.markets):
            self._year.clear()
            wanted = list(dict.fromkeys(which.tolist()))
        for i, extremes in zip(wanted, self._tape.extremes(wanted, day_us), strict=True):
            self._year[i, day_us] = extremes


_BOARDS: _Cache[_Board] = _Cache(6, lambda _: 1)


def _value(value: int, value_low: int, decimals: int) -> float:
    """As `value_as_float`, of one number."""
    return float((int(value) * 10**8 + int(value_low)) / 10**decimals)
