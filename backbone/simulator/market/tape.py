"""The trade tape of the embedded exchange: what was traded, at any instant, without remembering anything.

The tape is a pure function of (seed, market, time). Time is cut into cells of 15 seconds. A counter-based hash of
(market, cell) decides whether anybody traded in it, how many trades there were, at what price, how much, and who took.
Within a cell trades happen at two prices, the bid and the ask one tick above. So a cell's open, high, low, close,
volume and turnover are known in closed form, and are exactly those of its trades. Everything is integer arithmetic in
the market's own decimals, or float arithmetic that IEEE 754 fixes to the last bit (no libm). The same seed therefore
gives the same tape on every machine.

Candles are folds of cells. The matrix of a fold has one column a candle; its rows are named `TIME` to `STAMP`.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from backbone.model import Span
from backbone.simulator.market.catalogue import TICKS, Market, hash_text

__all__ = [
    "BOUGHT",
    "CELL_US",
    "CLOSE",
    "HIGH",
    "LOW",
    "OPEN",
    "ROWS",
    "STAMP",
    "TIME",
    "VALUE",
    "VALUE_LOW",
    "VOLUME",
    "Cells",
    "Columns",
    "Tape",
    "Timed",
    "Trades",
    "fold",
    "fold_trades",
    "mix",
    "runs",
    "value_as_float",
]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]

CELL_US = 15_000_000
CELL_MS = CELL_US // 1000
_DAY_CELLS = 86_400_000_000 // CELL_US
_YEAR_CELLS = 365 * _DAY_CELLS
_NOW_CELL = 1_755_820_800_000_000 // CELL_US  # 2025-08-22, where a market's `price` is its level

# rows of a fold
TIME, OPEN, HIGH, LOW, CLOSE, VOLUME, VALUE, VALUE_LOW, BOUGHT, STAMP = range(10)
ROWS = 10
_WHOLE = 1 << 53  # integers below this are float64
_LIMB = 100_000_000  # turnover travels as VALUE * _LIMB + VALUE_LOW, so that no sum overflows 64 bits

_SPACINGS = tuple(8**k for k in range(8))  # lattice spacings of the price noise, in cells: 15 s to a year
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)

# busy and quiet hours of the day (UTC), sixteenths: Korea trades in its morning and its late evening
_HOURS = np.array(
    [24, 22, 19, 17, 15, 14, 14, 15, 16, 16, 16, 17, 19, 20, 20, 18, 16, 13, 11, 10, 10, 11, 14, 17],
    dtype=np.int64,
)
_HOUR_OF_CELL = np.repeat(_HOURS, _DAY_CELLS // 24)


def mix(key: U64 | np.uint64, counter: U64) -> U64:
    """A 64-bit hash of a counter under a key (splitmix64's finalizer): uniform, order-free."""
    z: U64 = counter * _GOLDEN + key
    shifted = z >> _S30
    z ^= shifted
    z *= _M1
    z ^= np.right_shift(z, _S27, out=shifted)
    z *= _M2
    z ^= np.right_shift(z, _S31, out=shifted)
    return z


def _height(draw: U64) -> F64:
    """A hash as a number in [-1, 1)."""
    whole = (draw >> np.uint64(11)).view(np.int64)  # below 2**53: signed converts faster
    return whole.astype(np.float64) * 2.0**-52 - 1.0


def _exp2(x: F64) -> F64:
    """2**x by argument reduction and a polynomial: the same bits everywhere, which libm does not promise."""
    whole = np.floor(x)
    f = (x - whole) * 0.6931471805599453
    y = np.full_like(f, 1.0 / 5040)
    for c in (1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0):
        y *= f
        y += c
    return np.ldexp(y, whole.astype(np.int32))


class Columns:
    """A table of equally long columns, the fields of a frozen dataclass."""

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def take(self, where: npt.NDArray[np.bool_] | I64 | slice) -> Self:
        """The chosen rows."""
        return type(self)(*(column[where] for column in vars(self).values()))

    def newest(self, count: int) -> Self:
        """The last `count` rows, or all where there are fewer."""
        return self.take(slice(max(0, len(self) - count), None))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The rows of one or more tables, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))


@dataclass(frozen=True)
class Cells(Columns):
    """The cells in which somebody traded, in (market, time) order; one array element a cell.

    ``bid`` and ``tick`` are integer prices, ``volume`` and ``bought`` integer volumes, ``count`` and ``buys``
    numbers of trades, ``hash`` what a trade's own traits are drawn from.
    """

    market: I64
    cell: I64
    hash: U64
    count: I64
    buys: I64
    bid: I64
    tick: I64
    volume: I64
    bought: I64

    @property
    def phase(self) -> I64:
        """Where the pattern of sides starts, in trades."""
        return (self.hash >> np.uint64(48)).view(np.int64) % self.count


class Timed(Columns):
    """Columns of which one, ``time_ms``, says when each row happened."""

    time_ms: I64

    def between(self, start_us: int, end_us: int) -> Self:
        """The rows with ``start_us <= time < end_us``."""
        return self.take((self.time_ms * 1000 >= start_us) & (self.time_ms * 1000 < end_us))


@dataclass(frozen=True)
class Trades(Timed):
    """Single executions in time order; ``ordinal`` counts the trades of a market that share a millisecond."""

    market: I64
    time_ms: I64
    price: I64
    volume: I64
    is_buy: npt.NDArray[np.bool_]
    ordinal: I64


class Tape:
    """The tape of a list of markets that share a quote currency. Immutable, safe to share between threads."""

    def __init__(self, seed: int, markets: Sequence[Market], closed: Sequence[Span] = ()) -> None:
        """`closed` holds the spans in which the whole exchange was down; they are widened to whole cells."""
        self.seed = seed
        self.markets = tuple(markets)
        self.closed = tuple(closed)
        seed_key = hash_text(f"seed {seed}")
        names = ("activity", "cell")
        keys = {n: [hash_text(f"{seed_key} {n} {m.history}") for m in self.markets] for n in names}
        prices = [hash_text(f"{seed_key} price {m.history.partition('-')[2]}") for m in self.markets]
        self._price_key = np.array(prices, dtype=np.uint64)
        self._active_key = np.array(keys["activity"], dtype=np.uint64)
        self._cell_key = np.array(keys["cell"], dtype=np.uint64)
        self._listed = np.array([-(-m.listed_us // CELL_US) for m in self.markets], dtype=np.int64)
        rate = np.array([m.trades_per_minute / 4 for m in self.markets])
        # trades a cell = chance of any times the mean of them: thin markets rarely trade, and then once
        self._chance = np.minimum(1.0, rate)
        self._threshold = (self._chance * 65536).astype(np.int64)
        self._mean = np.maximum(1.0, rate)
        self._price = np.array([m.price for m in self.markets])
        self._drift = np.array([m.drift / _YEAR_CELLS for m in self.markets])
        amplitudes = np.sqrt(np.array(_SPACINGS, dtype=np.float64) / _DAY_CELLS)
        self._amplitude = np.array([m.day_volatility for m in self.markets])[:, None] * amplitudes[None, :]
        quote = self.markets[0].quote if self.markets else "KRW"
        bands = TICKS[quote]
        self._band_floor = np.array([floor for floor, _ in bands])
        self._price_unit = np.array([10**m.price_decimals for m in self.markets], dtype=np.float64)
        ticks = np.array([tick for _, tick in bands])
        self._tick = np.maximum(1, np.rint(ticks[None, :] * self._price_unit[:, None])).astype(np.int64)
        self._trade_value = np.array([m.trade_value for m in self.markets])
        self._volume_unit = np.array([10**m.volume_decimals for m in self.markets], dtype=np.float64)

    @property
    def key(self) -> Hashable:
        """All that it is made from."""
        return self.seed, self.markets, self.closed

    def cells(self, first: int, last: int, which: Sequence[int] | None = None) -> Cells:
        """The active cells of ``[first, last)`` of the markets `which` (indices; default all)."""
        chosen = np.arange(len(self.markets)) if which is None else np.asarray(which, dtype=np.int64)
        grid = np.arange(first, max(first, last), dtype=np.int64)
        hours = _HOUR_OF_CELL[grid % _DAY_CELLS]
        masks = [grid[None, :] >= self._listed[chosen][:, None]]
        if not (self._chance[chosen] >= 1.0).all():
            draw = mix(
                self._active_key[chosen][:, None], np.broadcast_to(grid.view(np.uint64), (len(chosen), len(grid)))
            )
            draw &= np.uint64(0xFFFF)
            bound = self._threshold[chosen] * np.where(self._chance[chosen] < 1.0, 1, 64)
            masks.append(draw < ((bound[:, None] * hours[None, :] + 15) >> 4).view(np.uint64))
        for span in self.closed:
            if span.start < last * CELL_US and span.end > first * CELL_US:
                masks.append((((grid + 1) * CELL_US <= span.start) | (grid * CELL_US >= span.end))[None, :])
        row, column = np.nonzero(functools.reduce(np.logical_and, masks))
        return self._describe(chosen, first, last, row, grid[column], hours[column])

    def _describe(self, chosen: I64, first: int, last: int, row: I64, cell: I64, hours: I64) -> Cells:
        """What happened in the given active cells (row: position in `chosen`)."""
        if not len(cell):
            nothing = np.zeros(0, dtype=np.int64)
            return Cells(nothing, cell, nothing.view(np.uint64), *(nothing,) * 6)
        market = chosen[row]
        of = chosen[0] if len(chosen) == 1 else market  # a single market's traits need no gathering
        draw = mix(self._cell_key[of], cell.view(np.uint64))
        quarters = draw.astype("<u8", copy=False).view("<u2").reshape(-1, 4)  # lowest first
        a, b = quarters[:, 0] / 65536.0, quarters[:, 1] / 65536.0
        c = quarters[:, 2].astype(np.int64)
        often = (self._mean[of] - 1.0) * 3.0 * a * a * hours * (1 / 16) + 1.0 + 0.5
        count = np.clip(often, 1.0, 400.0).astype(np.int64)
        price = self._level(chosen, first, last, row, of, cell)
        lowest, highest = np.searchsorted(self._band_floor, (price.min(), price.max()), side="right") - 1
        band = lowest if lowest == highest else np.searchsorted(self._band_floor, price, side="right") - 1
        tick = np.broadcast_to(self._tick[of, band], len(cell))
        bid = np.maximum((price * self._price_unit[of]).astype(np.int64) // tick, 1) * tick
        turnover = (3.9 * b * b * b + 0.02) * (count * self._trade_value[of])
        volume = np.maximum((turnover / price * self._volume_unit[of]).astype(np.int64), count)
        buys = (count + 1) * c >> 16
        return Cells(market, cell, draw, count, buys, bid, tick, volume, volume * buys // count)

    def _level(self, chosen: I64, first: int, last: int, row: I64, of: I64, cell: I64) -> F64:
        """The price level in the given cells: noise on lattices from 15 seconds to a year, and drift.

        Each lattice is drawn at its own nodes and filled in linearly at the nodes of the next finer one, so a
        cell costs one draw and one interpolation, however many lattices there are.
        """
        keys = self._price_key[chosen][:, None]
        coarse: F64 | None = None
        start = step = 0
        for octave in range(len(_SPACINGS) - 1, 0, -1):
            node_first, node_last = first >> 3 * octave, (max(first, last - 1) >> 3 * octave) + 1
            nodes = np.arange(node_first, node_last + 1, dtype=np.int64)
            height = _height(mix(keys, (nodes + (octave << 56)).astype(np.uint64)[None, :]))
            height *= self._amplitude[chosen, octave][:, None]
            if coarse is None:
                height += self._drift[chosen][:, None] * ((nodes << 3 * octave) - _NOW_CELL)
            else:
                at, within = (nodes >> 3) - start, (nodes & 7) * 0.125
                height += coarse[:, at] + (coarse[:, np.minimum(at + 1, step - 1)] - coarse[:, at]) * within
            coarse, start, step = height, node_first, len(nodes)
        assert coarse is not None
        curve = (_exp2(coarse) * self._price[chosen][:, None]).ravel()
        at = row * step + (cell >> 3) - start
        level = (curve[at + 1] - curve[at]) * ((cell & 7) * 0.125) + curve[at]
        height = _height(mix(self._price_key[of], cell.view(np.uint64)))  # every cell is a node of the finest lattice
        result: F64 = level * (height * self._amplitude[of, 0] + 1.0)
        return result

    def extremes(self, which: Sequence[int], day_us: int) -> list[tuple[float, int, float, int]]:
        """The highest and the lowest level, and their days, at the starts of the 364 days before `day_us`.

        Prices are on the price grid. Only the lattices wider than two hours are read, which makes a year of many
        markets cheap.
        """
        if not which:
            return []
        chosen = np.asarray(which, dtype=np.int64)
        days = (day_us // CELL_US - np.arange(364, -1, -1, dtype=np.int64) * _DAY_CELLS)[None, :]
        days = np.maximum(days, np.minimum(self._listed[chosen], day_us // CELL_US)[:, None])
        exponent: F64 = self._drift[chosen][:, None] * (days - _NOW_CELL)
        keys = self._price_key[chosen][:, None]
        for octave, spacing in enumerate(_SPACINGS):
            if spacing * CELL_US < 7_200_000_000:
                continue
            nodes = (days >> 3 * octave) + (octave << 56)
            left, right = (_height(mix(keys, (nodes + step).astype(np.uint64))) for step in (0, 1))
            within = (days & (spacing - 1)) * (1.0 / spacing)
            exponent += ((right - left) * within + left) * self._amplitude[chosen, octave][:, None]
        price = _exp2(exponent) * self._price[chosen][:, None]
        found = []
        for row, index in enumerate(which):
            top, bottom = int(price[row].argmax()), int(price[row].argmin())
            high, low = (self._on_grid(index, float(price[row, at])) for at in (top, bottom))
            found.append((high, int(days[row, top]) * CELL_US, low, int(days[row, bottom]) * CELL_US))
        return found

    def _on_grid(self, index: int, price: float) -> float:
        tick = int(self._tick[index, np.searchsorted(self._band_floor, price, side="right") - 1])
        unit = float(self._price_unit[index])
        return max(int(price * unit) // tick, 1) * tick / unit

    def rows(self, cells: Cells, labels_us: I64) -> I64:
        """Cells folded by (market, label). The label becomes `TIME`."""
        if not len(cells):
            return np.empty((ROWS, 0), dtype=np.int64)
        starts, ends = runs(labels_us, cells.market)
        opening, closing = cells.take(starts), cells.take(ends)
        bought_last = closing.buys - ((closing.count - 1) * closing.buys + closing.phase) // closing.count == 1
        value = cells.bid * cells.volume + cells.tick * cells.bought
        high = np.add.reduceat(value >> 24, starts)  # in two halves, so that no sum overflows
        low = np.add.reduceat(value & (1 << 24) - 1, starts) + (high % _LIMB << 24)
        out = np.empty((ROWS, len(starts)), dtype=np.int64)
        out[TIME] = labels_us[starts]
        out[OPEN] = opening.bid + opening.tick * (opening.phase >= opening.count - opening.buys)
        out[HIGH] = np.maximum.reduceat(cells.bid + cells.tick * (cells.buys > 0), starts)
        out[LOW] = np.minimum.reduceat(cells.bid + cells.tick * (cells.buys == cells.count), starts)
        out[CLOSE] = closing.bid + closing.tick * bought_last
        out[VOLUME] = np.add.reduceat(cells.volume, starts)
        out[VALUE] = (high // _LIMB << 24) + low // _LIMB
        out[VALUE_LOW] = low % _LIMB
        out[BOUGHT] = np.add.reduceat(cells.bought, starts)
        out[STAMP] = self._trade_ms(closing, closing.count - 1)
        return out

    @staticmethod
    def _slot(cells: Cells, index: I64) -> I64:
        """Trades come in bursts of up to three that share a millisecond; a burst's first is its slot."""
        third = index % 3
        draw = mix(cells.hash ^ np.uint64(0xB5), (index - third).astype(np.uint64))
        return index - np.where((draw & np.uint64(7)) == 0, third, 0)

    @classmethod
    def _trade_ms(cls, cells: Cells, index: I64) -> I64:
        slot = cls._slot(cells, index)
        jitter = (mix(cells.hash ^ np.uint64(0x71), slot.astype(np.uint64)) & np.uint64(0xFFFF)).astype(np.int64)
        return cells.cell * CELL_MS + (slot * 65536 + jitter) * CELL_MS // (cells.count * 65536)

    def trades(self, cells: Cells) -> Trades:
        """Every single trade of the given cells, in (market, time) order."""
        owner = np.repeat(np.arange(len(cells)), cells.count)
        starts = np.cumsum(cells.count) - cells.count
        index = np.arange(len(owner)) - starts[owner]
        each = cells.take(owner)
        time_ms = self._trade_ms(each, index)
        is_buy = ((index + 1) * each.buys + each.phase) // each.count > (index * each.buys + each.phase) // each.count
        slot = self._slot(each, index)
        weight = (mix(each.hash ^ np.uint64(0xE1), slot.astype(np.uint64)) & np.uint64(0x3FF)).astype(np.int64) + 1
        volume = _share(owner, is_buy, weight, cells)
        return Trades(
            each.market,
            time_ms,
            each.bid + each.tick * is_buy,
            volume,
            is_buy,
            _ordinals(each.market, time_ms),
        )


def _share(owner: I64, is_buy: npt.NDArray[np.bool_], weight: I64, cells: Cells) -> I64:
    """Each trade's volume: its cell's bought or sold volume is split by weight, to the last unit, and none gets 0."""
    side = owner * 2 + is_buy
    size = 2 * len(cells)
    total = np.zeros(size, dtype=np.int64)
    total[0::2] = cells.volume - cells.bought
    total[1::2] = cells.bought
    number = np.bincount(side, minlength=size)
    weights = np.bincount(side, weights=weight.astype(np.float64), minlength=size).astype(np.int64)
    spare = total - number
    volume = 1 + spare[side] * weight // np.maximum(weights, 1)[side]
    given = np.zeros(size, dtype=np.int64)
    np.add.at(given, side, volume)
    last = np.zeros(size, dtype=np.int64)
    last[side] = np.arange(len(side))  # the last trade of a side takes what the division left
    left = total - given
    has = number > 0
    volume[last[has]] += left[has]
    return volume


def runs(*keys: I64) -> tuple[I64, I64]:
    """The first and the last position of each run of neighbours that are equal in every key."""
    changes = np.flatnonzero(functools.reduce(np.logical_or, (key[1:] != key[:-1] for key in keys)))
    if not len(keys[0]):
        return changes, changes
    return np.append(0, changes + 1), np.append(changes, len(keys[0]) - 1)


def _ordinals(market: I64, time_ms: I64) -> I64:
    """The position of each trade among those of its market and millisecond."""
    starts, ends = runs(time_ms, market)
    return np.arange(len(time_ms)) - np.repeat(starts, ends - starts + 1)


def fold(rows: I64, key: I64) -> I64:
    """Columns with equal neighbouring keys become one: first open, highest, lowest, last close, sums."""
    if not rows.shape[1]:
        return rows
    starts, ends = runs(key)
    out = np.empty((ROWS, len(starts)), dtype=np.int64)
    out[TIME], out[OPEN] = rows[TIME][starts], rows[OPEN][starts]
    out[HIGH] = np.maximum.reduceat(rows[HIGH], starts)
    out[LOW] = np.minimum.reduceat(rows[LOW], starts)
    out[CLOSE], out[STAMP] = rows[CLOSE][ends], rows[STAMP][ends]
    for row in (VOLUME, VALUE, VALUE_LOW, BOUGHT):
        out[row] = np.add.reduceat(rows[row], starts)
    out[VALUE] += out[VALUE_LOW] // _LIMB
    out[VALUE_LOW] %= _LIMB
    return out


def fold_trades(trades: Trades, labels_us: I64) -> I64:
    """The candles that single trades make under the given labels (of one market)."""
    rows = np.empty((ROWS, len(trades)), dtype=np.int64)
    rows[TIME] = labels_us
    rows[OPEN : CLOSE + 1] = trades.price
    rows[VOLUME] = trades.volume
    value = trades.price * trades.volume
    rows[VALUE], rows[VALUE_LOW] = value // _LIMB, value % _LIMB
    rows[BOUGHT] = trades.volume * trades.is_buy
    rows[STAMP] = trades.time_ms
    return fold(rows, labels_us)


def value_as_float(rows: I64, decimals: int) -> F64:
    """The turnover of a fold, rounded once to the nearest float64; `decimals` = price's + volume's."""
    high, low = rows[VALUE] + rows[VALUE_LOW] // _LIMB, rows[VALUE_LOW] % _LIMB
    value: F64 = (high.astype(np.float64) * _LIMB + low) / 10.0**decimals
    inexact = np.flatnonzero(high >= _WHOLE // _LIMB)  # more digits than a float64: the quotient of integers is exact
    value[inexact] = [
        (h * _LIMB + w) / 10**decimals for h, w in zip(high[inexact].tolist(), low[inexact].tolist(), strict=True)
    ]
    return value
