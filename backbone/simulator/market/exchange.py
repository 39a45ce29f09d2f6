"""The synthetic market: a `Venue` whose candles, trades and tickers are folds of one deterministic trade tape.

Nothing is stored. Everything is computed from (seed, market, time), so any range can be asked in any order and the
answer is the same. All exchanges of a process share bounded caches of what was computed: whole candles in blocks (days
of minutes, months of days), last trades, and per quote currency the minutes of the last 24 hours from which tickers
are summed. Each exchange keeps the whole cells of its running candles.

The caches' locks are held for look-ups and for the sums of tickers, never while blocks are generated.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from datetime import datetime
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from backbone.errors import InputError
from backbone.model import Span
from backbone.simulator.market.catalogue import Market, catalogue, new_market
from backbone.simulator.market.tape import (
    BOUGHT,
    CELL_US,
    CLOSE,
    HIGH,
    I64,
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
    runs,
    value_as_float,
)
from backbone.simulator.market.venue import Bars, Executions, Summary, Venue, fold_bars
from backbone.timeframe import DAY_US, HOUR_US, MINUTE_US, TIMEFRAMES, Timeframe

__all__ = ["Exchange"]


_CACHE_BYTES = 160 * 2**20
_STRIDE_US = {
    "1m": DAY_US, "3m": DAY_US, "5m": DAY_US, "10m": 4 * DAY_US, "15m": 4 * DAY_US, "30m": 4 * DAY_US,
    "1h": 8 * DAY_US, "4h": 32 * DAY_US, "1d": 8 * DAY_US,
    "1w": 224 * DAY_US, "1M": 256 * DAY_US, "1y": 1024 * DAY_US,
}  # fmt: skip
_CHUNK_US = 4 * DAY_US  # generation in pieces that fit the processor's cache
_MINUTES = 1440
_BATCH = 16  # markets at once
_NO_ROWS = np.empty((ROWS, 0), dtype=np.int64)


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
        for code in markets or ():
            if code not in known:
                raise InputError("markets", code, "codes of the embedded exchange's catalogue, such as KRW-BTC")
        super().__init__(known if markets is None else {code: known[code] for code in markets})
        self.seed = seed
        self._taped: dict[str, dict[str, Market]] = {}  # quote -> history -> market
        for market in known.values():
            self._taped.setdefault(market.quote, {})[market.history] = market
        self._cache_lock = threading.Lock()
        self._open_tapes(tuple(outages))

    def __repr__(self) -> str:
        return f"Exchange(seed={self.seed}, markets={len(self.listed())})"

    def _open_tapes(self, outages: tuple[Span, ...]) -> None:
        place: dict[str, tuple[Tape, int, _RunningSums]] = {}
        for group in self._taped.values():
            tape = Tape(self.seed, tuple(group.values()), outages)
            running = _RUNNING_SUMS.of(tape.key, partial(_RunningSums, tape))
            place |= {market.history: (tape, index, running) for index, market in enumerate(tape.markets)}
        with self._cache_lock:
            self._outages, self._place = outages, place
            self._begun: dict[tuple[Tape, int, int], tuple[int, I64]] = {}  # running candles: up to which cell, folded

    def close_span(self, span: Span) -> None:
        """An outage: no trades in `span`, in any market (widened to 15 seconds)."""
        self._open_tapes((*self._outages, span))

    def list_market(self, code: str, at_us: int) -> Market:
        made = new_market(code, -(-at_us // CELL_US) * CELL_US)
        with self._cache_lock:
            self._taped[made.quote][made.history] = made
            outages = self._outages
        added = self._add(made)
        self._open_tapes(outages)
        return added

    def _tape(self, market: Market) -> tuple[Tape, int]:
        return self._place[market.history][:2]

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
        tape, index = self._tape(market)
        stride = self.stride_us(market, timeframe)
        parts = []
        for at in range(start // stride * stride, end_us, stride):
            key = (tape.seed, tape.closed, tape.markets[index], market.factor, timeframe.name, at)
            make = partial(_bars_of, tape, index, market, timeframe, at, at + stride)
            parts.append(_BLOCKS.of(key, make))
        return Bars.join(parts).between(start_us, end_us)

    def forming(self, market: Market, timeframe: Timeframe, now_us: int) -> Bars:
        start = timeframe.floor(now_us)
        since = max(start, market.listed_us // CELL_US * CELL_US)
        tape, index = self._tape(market)
        cell = now_us // CELL_US
        seen = tape.trades(tape.cells(cell, cell + 1, [index])).between(since, now_us + 1)
        parts = [fold_trades(seen, np.zeros(len(seen), dtype=np.int64))]
        if timeframe.name != "1s":
            parts.insert(0, self._whole_cells(tape, index, since // CELL_US, cell))
        rows = _as_one(np.concatenate(parts, axis=1))
        rows[TIME] = start
        return _as_bars(market, rows)

    def _whole_cells(self, tape: Tape, index: int, first: int, stop: int) -> I64:
        """The cells of ``[first, stop)`` as one column, or none; goes on from where it ended the last time."""
        key = (tape, index, first)
        with self._cache_lock:
            begun = self._begun
            at, done = begun.get(key, (first, _NO_ROWS))
        if at > stop:
            at, done = first, _NO_ROWS
        parts = [done]
        for start in range(at, stop, _CHUNK_US // CELL_US):
            cells = tape.cells(start, min(stop, start + _CHUNK_US // CELL_US), [index])
            parts.append(tape.rows(cells, np.zeros(len(cells), dtype=np.int64)))
        done = _as_one(np.concatenate(parts, axis=1))
        with self._cache_lock:
            if len(begun) > 4096:
                begun.clear()
            begun[key] = stop, done
        return done

    # -- executions ------------------------------------------------------------------------------------------

    def executions(self, market: Market, start_us: int, end_us: int) -> Executions:
        tape, index = self._tape(market)
        trades = tape.trades(tape.cells(start_us // CELL_US, -(-end_us // CELL_US), [index]))
        return _as_executions(market, trades.between(start_us, end_us))

    def last_execution(self, market: Market, before_us: int) -> Executions:
        tape, index = self._tape(market)
        key = (tape.seed, tape.closed, tape.markets[index], market.factor, market.listed_us, before_us)
        return _LAST.of(key, lambda: _as_executions(market, _last_trade(tape, index, before_us, market.listed_us)))

    def summaries(self, markets: Sequence[Market], now_us: int) -> list[Summary]:
        groups: dict[_RunningSums, list[tuple[Market, int]]] = {}
        for market in markets:
            _, index, running = self._place[market.history]
            groups.setdefault(running, []).append((market, index))
        found: dict[str, Summary | None] = {}
        for running, group in groups.items():
            indices = np.array([index for _, index in group], dtype=np.int64)
            for (market, _), sums in zip(group, running.sums(indices, now_us), strict=True):
                found[market.code] = self._summary(market, sums, now_us)
        return [summary for m in markets if (summary := found[m.code]) is not None]

    def _summary(self, market: Market, sums: _Sums, now_us: int) -> Summary | None:
        """The sums of a market, in the numbers of the wire."""
        last, day, before, year = sums
        if not last[0]:  # nothing for a day: look further back
            tape, index = self._tape(market)
            older = _last_trade(tape, index, (now_us // MINUTE_US - _MINUTES) * MINUTE_US, market.listed_us)
            if not len(older):
                return None
            last = [int(column[0]) for column in (older.time_ms, older.price, older.volume, older.is_buy)]
        time_ms, price, volume, is_buy = last
        is_quiet = not day[VOLUME]  # then the day stands where the last one ended
        units = (price, *((price,) * 3 if is_quiet else (day[OPEN], day[HIGH], day[LOW])), before[CLOSE])
        last_price, open_, high, low, close = market.prices(np.array(units)).tolist()
        amounts = (volume, day[VOLUME], day[BOUGHT], day[VOLUME] + before[VOLUME])
        last_volume, today, bought, volume_24h = market.volumes(np.array(amounts)).tolist()
        turnover = day[VALUE] * 10**8 + day[VALUE_LOW]
        earlier = before[VALUE] * 10**8 + before[VALUE_LOW]
        unit, factor = 10 ** (market.price_decimals + market.volume_decimals), float(market.factor)
        previous = close if before[VOLUME] else self.last_price(market, now_us // DAY_US * DAY_US)
        return Summary(
            market=market,
            last_ms=time_ms,
            last_price=last_price,
            last_volume=last_volume,
            last_is_buy=bool(is_buy),
            open=open_,
            high=high,
            low=low,
            prev_close=open_ if previous is None else previous,
            volume=today,
            value=turnover / unit,
            bought=bought,
            volume_24h=volume_24h,
            value_24h=(turnover + earlier) / unit,
            year=(year[0] * factor, year[1], year[2] * factor, year[3]),
        )


def _as_one(rows: I64) -> I64:
    """All the columns of a fold as one, or none."""
    return fold(rows, np.zeros(rows.shape[1], dtype=np.int64))


def _bars_of(tape: Tape, index: int, market: Market, timeframe: Timeframe, start_us: int, end_us: int) -> Bars:
    """Generate in chunks; `start_us` must be aligned to the timeframe."""
    parts = [_NO_ROWS]
    for at in range(start_us, end_us, _CHUNK_US):
        cells = tape.cells(at // CELL_US, -(-min(end_us, at + _CHUNK_US) // CELL_US), [index])
        if timeframe.name == "1s":
            trades = tape.trades(cells)
            parts.append(fold_trades(trades, trades.time_ms // 1000 * 1_000_000))
        else:
            parts.append(tape.rows(cells, timeframe.floor_array(cells.cell * CELL_US)))
    return _as_bars(market, np.concatenate(parts, axis=1)).between(start_us, end_us)


def _last_trade(tape: Tape, index: int, before_us: int, listed_us: int) -> Trades:
    often = tape.markets[index].trades_per_minute
    end, width = -(-before_us // CELL_US), int(min(5760, max(8, 12 / often)))  # some three trades
    floor = listed_us // CELL_US
    while True:
        start = max(floor, end - width)
        cells = tape.cells(start, end, [index])
        trades = tape.trades(cells.newest(2)).between(0, before_us)
        if len(trades) or start <= floor:
            return trades.newest(1)
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


_Extremes = tuple[float, int, float, int]
"""The highest and the lowest price of a span, each with its time."""


class _Sums(NamedTuple):
    """The running sums of one market, in the tape's units.

    ``last`` is its last trade within 24 hours: time (0 for none), price, volume, whether the taker bought. ``day`` is
    the UTC day so far and ``before`` the rest of the 24 hours, each as one column of a fold. ``year`` is of the 52
    weeks before the day.
    """

    last: list[int]
    day: list[int]
    before: list[int]
    year: _Extremes


class _RunningSums:
    """The running ticker sums of the markets of one quote currency.

    Holds the minutes of the last 24 hours as a ring (market by minute of the UTC day) for the markets asked for so far,
    what they add up to at the start of the running minute, and each market's last trade. The lock guards all of it.
    """

    def __init__(self, tape: Tape) -> None:
        count = len(tape.markets)
        self._tape = tape
        self._lock = threading.Lock()
        self._minute = -1  # the running minute; the ring holds the 1440 before it
        self._loaded = np.zeros(count, dtype=bool)
        self._ring = np.zeros((ROWS, count, _MINUTES), dtype=np.int64)
        self._last = np.zeros((4, count), dtype=np.int64)  # time_ms (0: none), price, volume, is_buy
        self._today = self._before = np.zeros((ROWS, count), dtype=np.int64)
        self._years: dict[int, _Extremes] = {}
        self._years_of_us = 0

    def sums(self, which: I64, now_us: int) -> list[_Sums]:
        """The sums of the markets at the positions `which` of the tape."""
        with self._lock:
            chosen = np.unique(which)
            self._advance_locked(chosen, now_us // MINUTE_US)
            cells = self._tape.cells(self._minute * 4, now_us // CELL_US + 1, chosen.tolist())
            trades = self._tape.trades(cells).between(0, now_us + 1)
            running = np.zeros_like(self._today)
            rows = fold_trades(trades, trades.market)
            running[:, rows[TIME]] = rows
            last = _replaced(self._last, trades)  # the running minute's trades count for this answer only
            day = _by_market(np.stack([self._today[:, which], running[:, which]], axis=2))
            self._see_years_locked(chosen.tolist(), now_us // DAY_US * DAY_US)
            columns = (column.T.tolist() for column in (last[:, which], day, self._before[:, which]))
            return list(map(_Sums, *columns, (self._years[i] for i in which.tolist())))

    def _advance_locked(self, chosen: I64, minute: int) -> None:
        """Bring the ring to the given running minute, with at least the markets `chosen` in it."""
        if not self._minute <= minute <= self._minute + _MINUTES:
            self._loaded[:] = False
        known = np.flatnonzero(self._loaded)
        added = np.setdiff1d(chosen, known)
        if len(known) and minute > self._minute:
            self._fill_locked(known, self._minute, minute)
        if len(added):
            self._last[:, added] = 0
            self._fill_locked(added, minute - _MINUTES, minute)
            self._loaded[added] = True
        if len(added) or minute != self._minute:
            self._minute = minute
            past = minute % _MINUTES  # the minutes of the ring before this one are today's
            self._today, self._before = _by_market(self._ring[:, :, :past]), _by_market(self._ring[:, :, past:])

    def _fill_locked(self, which: I64, first: int, last: int) -> None:
        minutes = np.arange(first, last) % _MINUTES
        slots = self._ring.reshape(ROWS, -1)
        for start in range(0, len(which), _BATCH):  # in batches that fit the processor's cache
            batch = which[start : start + _BATCH]
            self._ring[:, batch[:, None], minutes[None, :]] = 0
            cells = self._tape.cells(first * 4, last * 4, batch.tolist())
            rows = self._tape.rows(cells, cells.market * _MINUTES + cells.cell // 4 % _MINUTES)
            slots[:, rows[TIME]] = rows
            self._last = _replaced(self._last, self._tape.trades(cells.take(runs(cells.market)[1])))

    def _see_years_locked(self, chosen: Sequence[int], day_us: int) -> None:
        """The extremes of 52 weeks, taken at each day's first instant (a whole year of trades would be too dear)."""
        if day_us != self._years_of_us:
            self._years_of_us, self._years = day_us, {}
        wanted = [i for i in chosen if i not in self._years]
        self._years.update(zip(wanted, self._tape.extremes(wanted, day_us), strict=True))


_RUNNING_SUMS: _Cache[_RunningSums] = _Cache(6, lambda _: 1)


def _replaced(last: I64, trades: Trades) -> I64:
    """The last trade of each market: that of `trades` where it has any, else that of `last`."""
    newest = trades.take(runs(trades.market)[1])
    replaced = last.copy()
    replaced[:, newest.market] = np.stack([newest.time_ms, newest.price, newest.volume, newest.is_buy])
    return replaced


def _by_market(minutes: I64) -> I64:
    """Each market's minutes (row of a fold, market, minute) as one column a market; volume 0 where nobody traded."""
    traded = minutes[VOLUME] > 0
    if not traded.size:
        return np.zeros(minutes.shape[:2], dtype=np.int64)
    market = np.arange(len(traded))
    whole: I64 = np.zeros(minutes.shape[:2], dtype=np.int64)
    whole[OPEN] = minutes[OPEN][market, traded.argmax(axis=1)]
    whole[CLOSE] = minutes[CLOSE][market, -1 - traded[:, ::-1].argmax(axis=1)]
    whole[HIGH] = minutes[HIGH].max(axis=1)
    whole[LOW] = np.where(traded, minutes[LOW], 2**62).min(axis=1)
    for row in (VOLUME, VALUE, VALUE_LOW, BOUGHT):
        whole[row] = minutes[row].sum(axis=1)
    return whole
