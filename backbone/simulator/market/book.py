"""Order books of the embedded exchange: when each changes, and what stands in it at that instant.

Pure: everything follows from the market and the time. Books change on a 100 ms grid, often in busy markets and rarely
in thin ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backbone.simulator.market.catalogue import Market, decimals_of, hash_text, tick_of
from backbone.simulator.market.tape import mix

__all__ = ["BOOK_DEPTH", "book_stamp_us", "make_book", "next_book_us", "supported_levels"]

Row = dict[str, Any]

BOOK_DEPTH = 30


def rounded(value: float, decimals: int) -> float:
    return round(value, decimals) + 0.0  # + 0.0 turns -0.0 into 0.0


def supported_levels(market: Market, price: float) -> list[float]:
    """The price groupings a KRW book can be asked in; other books know only 0."""
    if market.quote != "KRW":
        return [0.0]
    tick = tick_of(market.quote, price)
    levels = [0.0]
    step = tick * 10
    while step <= price * 1.000001 and len(levels) < 6:
        levels.append(rounded(step, market.shown_decimals))
        step *= 10
    return levels


def book_stamp_us(market: Market, now_us: int) -> int:
    """When the book last changed: on a 100 ms grid, often in busy markets, rarely in thin ones."""
    beat = _beat_us(market)
    version = now_us // beat
    stamp = _book_change_us(market, version, beat)
    return stamp if stamp <= now_us else _book_change_us(market, version - 1, beat)


def next_book_us(market: Market, after_us: int) -> int:
    """The first book change after `after_us`."""
    beat = _beat_us(market)
    version = after_us // beat
    while (stamp := _book_change_us(market, version, beat)) <= after_us:
        version += 1
    return stamp


def _beat_us(market: Market) -> int:
    per_trade = 60_000 / max(market.trades_per_minute, 1e-6) / 6
    return max(1, min(600, round(per_trade / 100))) * 100_000


def _book_change_us(market: Market, version: int, beat: int) -> int:
    draw = hash_text(f"book {market.history} {version}")
    return version * beat + draw % (beat // 100_000) * 100_000


def make_book(market: Market, stamp_us: int, bid: float, tick: float, level: float, depth: int) -> Row:
    """The row of a book around `bid`: deterministic from the market and the stamp."""
    decimals, sizes = max(market.shown_decimals, decimals_of(tick)), market.shown_volume_decimals
    draw = mix(
        np.uint64(hash_text(f"depth {market.history}")),
        np.arange(2 * BOOK_DEPTH, dtype=np.uint64) + np.uint64(stamp_us // 100_000 % 2**40 * 64),
    )
    share = ((draw & np.uint64(0xFFFF)).astype(np.float64) + 1) / 65536
    gap = 1 + ((draw >> np.uint64(16)) & np.uint64(3)).astype(np.int64) // (3 if level else 2)
    gap[0] = gap[BOOK_DEPTH] = 1
    if level:
        bid = np.floor(bid / level) * level
        gap[:] = 1
    unit = market.trade_value / max(bid, tick) * 4 * (level / tick_of(market.quote, bid) if level else 1.0)
    amount = np.round(unit * (0.01 + share**3 * 2), sizes)
    np.maximum(amount, 10.0**-sizes, out=amount)
    asks = np.round(bid + tick * np.cumsum(gap[:BOOK_DEPTH]), decimals)
    bids = np.round(bid - tick * (np.cumsum(gap[BOOK_DEPTH:]) - 1), decimals)
    ask_sizes, bid_sizes = amount[:BOOK_DEPTH], amount[BOOK_DEPTH:]
    ask_sizes[_side_depth(market, "ask") :] = 0.0
    bid_sizes[_side_depth(market, "bid") :] = 0.0
    bid_sizes[bids <= 0] = 0.0
    asks[ask_sizes == 0] = bids[bid_sizes == 0] = 0.0
    columns = {"bid_price": bids, "bid_size": bid_sizes, "ask_price": asks, "ask_size": ask_sizes}
    levels = zip(*(column[:depth].tolist() for column in columns.values()), strict=True)
    return {
        "market": market.code,
        "timestamp": stamp_us // 1000,
        "total_ask_size": rounded(float(np.sum(ask_sizes)), 8),
        "total_bid_size": rounded(float(np.sum(bid_sizes)), 8),
        "orderbook_units": [dict(zip(columns, map(_plain, one), strict=True)) for one in levels],
        "level": _plain(level),
    }


def _side_depth(market: Market, side: str) -> int:
    """Most books outside KRW have fewer orders on a side than the frame has room for."""
    draw = hash_text(f"{side} {market.history}")
    return 3 + draw % 26 if market.quote == "BTC" and draw % 3 else BOOK_DEPTH


def _plain(value: float) -> int | float:
    """Whole numbers without a fraction, as the book spells prices."""
    return int(value) if float(value).is_integer() else value
