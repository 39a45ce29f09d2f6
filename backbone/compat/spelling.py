"""Our records in the venue's words, for callers that know those: frames of the socket, rows of candles.

Only what a record holds is spelled; what backbone does not keep (52-week extremes, sums by side) is not there.
"""

from __future__ import annotations

import datetime as dt
from itertools import zip_longest
from typing import Any

from backbone.api.arguments import in_zone
from backbone.model import LiveCandle, OrderBook, Ticker, Trade

__all__ = ["KOREA", "candle_row", "frame_of"]

KOREA = "Asia/Seoul"
_STAMP = "%Y-%m-%dT%H:%M:%S"
_STREAMED = {"1h": "60m", "4h": "240m"}
_NOTHING = (0.0, 0.0)


def frame_of(record: Ticker | Trade | OrderBook | LiveCandle) -> dict[str, Any]:
    """A record as the socket's DEFAULT format has it."""
    if isinstance(record, Ticker):
        return _ticker(record)
    if isinstance(record, Trade):
        return _trade(record)
    if isinstance(record, OrderBook):
        return _book(record)
    kind = f"candle.{_STREAMED.get(record.timeframe, record.timeframe)}"
    values = (record.open, record.high, record.low, record.close, record.volume, record.value)
    return {
        "type": kind,
        "code": record.market,
        **_candle(record.time_us, values),
        "timestamp": record.stamp_us // 1000,
    }


def candle_row(market: str, time_us: int, values: tuple[float, ...]) -> dict[str, Any]:
    """A candle as REST has it; `values` are open, high, low, close, volume, value. Its stamp is its opening."""
    return {"market": market, **_candle(time_us, values), "timestamp": time_us // 1000}


def _candle(time_us: int, values: tuple[float, ...]) -> dict[str, Any]:
    opened, high, low, close, volume, value = values
    return {
        "candle_date_time_utc": in_zone(time_us, "UTC").strftime(_STAMP),
        "candle_date_time_kst": in_zone(time_us, KOREA).strftime(_STAMP),
        "opening_price": opened,
        "high_price": high,
        "low_price": low,
        "trade_price": close,
        "candle_acc_trade_price": value,
        "candle_acc_trade_volume": volume,
    }


def _ticker(row: Ticker) -> dict[str, Any]:
    at = in_zone(row.time_us, "UTC")
    return {
        "type": "ticker",
        "code": row.market,
        "opening_price": row.open,
        "high_price": row.high,
        "low_price": row.low,
        "trade_price": row.price,
        "prev_closing_price": row.prev_close,
        "change": "RISE" if row.change > 0 else "FALL" if row.change < 0 else "EVEN",
        "change_price": abs(row.change),
        "signed_change_price": row.change,
        "change_rate": abs(row.change_rate),
        "signed_change_rate": row.change_rate,
        "acc_trade_volume": row.volume,
        "acc_trade_volume_24h": row.volume_24h,
        "acc_trade_price": row.value,
        "acc_trade_price_24h": row.value_24h,
        "trade_date": at.strftime("%Y%m%d"),
        "trade_time": at.strftime("%H%M%S"),
        "trade_timestamp": row.time_us // 1000,
        "timestamp": row.stamp_us // 1000,
    }


def _trade(row: Trade) -> dict[str, Any]:
    at: dt.datetime = in_zone(row.time_us, "UTC")
    return {
        "type": "trade",
        "code": row.market,
        "trade_price": row.price,
        "trade_volume": row.volume,
        "ask_bid": "BID" if row.side == "buy" else "ASK",
        "trade_date": at.strftime("%Y-%m-%d"),
        "trade_time": at.strftime("%H:%M:%S"),
        "trade_timestamp": row.time_us // 1000,
        "sequential_id": row.sequential_id,
    }


def _book(row: OrderBook) -> dict[str, Any]:
    return {
        "type": "orderbook",
        "code": row.market,
        "total_ask_size": round(sum(size for _, size in row.asks), 8),
        "total_bid_size": round(sum(size for _, size in row.bids), 8),
        "orderbook_units": [
            {"ask_price": ask[0], "bid_price": bid[0], "ask_size": ask[1], "bid_size": bid[1]}
            for ask, bid in zip_longest(row.asks, row.bids, fillvalue=_NOTHING)
        ],
        "level": row.level,
        "timestamp": row.stamp_us // 1000,
    }
