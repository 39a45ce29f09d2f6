"""Our records with the venue's field names, for callers that know those: frames of the socket, rows of candles.

Every field of the venue's is there; what REST does not send is None while it stands in for the socket.
"""

from __future__ import annotations

from decimal import Decimal
from itertools import zip_longest
from typing import Any

from backbone.api.arguments import in_zone
from backbone.model import LiveCandle, OrderBook, Ticker, Trade

__all__ = ["KOREA", "candle_row", "frame_of"]

KOREA = "Asia/Seoul"
_STAMP = "%Y-%m-%dT%H:%M:%S"
_STREAMED = {"1h": "60m", "4h": "240m"}
_NOTHING = (0.0, 0.0)
_SIDES = {"buy": "BID", "sell": "ASK", None: None}


def frame_of(record: Ticker | Trade | OrderBook | LiveCandle, is_snapshot: bool = False) -> dict[str, Any]:
    """A record as the socket's DEFAULT format has it; a snapshot is how a market stood when it was subscribed to."""
    return {**_frame(record), "stream_type": "SNAPSHOT" if is_snapshot else "REALTIME"}


def _frame(record: Ticker | Trade | OrderBook | LiveCandle) -> dict[str, Any]:
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
        "candle_acc_trade_volume": volume,
        "candle_acc_trade_price": value,
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
        "acc_trade_price": row.value,
        "change": _change(row.change),
        "change_price": abs(row.change),
        "signed_change_price": row.change,
        "change_rate": abs(row.change_rate),
        "signed_change_rate": row.change_rate,
        "ask_bid": _SIDES[row.side],
        "trade_volume": row.last_volume,
        "acc_trade_volume": row.volume,
        "trade_date": at.strftime("%Y%m%d"),
        "trade_time": at.strftime("%H%M%S"),
        "trade_timestamp": row.time_us // 1000,
        "acc_ask_volume": row.ask_volume,
        "acc_bid_volume": row.bid_volume,
        "highest_52_week_price": row.high_52w,
        "highest_52_week_date": row.high_52w_day,
        "lowest_52_week_price": row.low_52w,
        "lowest_52_week_date": row.low_52w_day,
        "market_state": row.state,
        "is_trading_suspended": row.is_suspended,
        "delisting_date": row.delisting_day,
        "market_warning": row.warning,
        "timestamp": row.stamp_us // 1000,
        "acc_trade_price_24h": row.value_24h,
        "acc_trade_volume_24h": row.volume_24h,
    }


def _trade(row: Trade) -> dict[str, Any]:
    at = in_zone(row.time_us, "UTC")
    change = 0.0 if row.prev_close is None else _difference(row.price, row.prev_close)
    return {
        "type": "trade",
        "code": row.market,
        "timestamp": (row.time_us if row.sent_us is None else row.sent_us) // 1000,
        "trade_date": at.strftime("%Y-%m-%d"),
        "trade_time": at.strftime("%H:%M:%S"),
        "trade_timestamp": row.time_us // 1000,
        "trade_price": row.price,
        "trade_volume": row.volume,
        "ask_bid": _SIDES[row.side],
        "prev_closing_price": row.prev_close,
        "change": _change(change),
        "change_price": abs(change),
        "sequential_id": row.sequential_id,
        "best_ask_price": row.best_ask_price,
        "best_ask_size": row.best_ask_size,
        "best_bid_price": row.best_bid_price,
        "best_bid_size": row.best_bid_size,
    }


def _change(change: float) -> str:
    return "RISE" if change > 0 else "FALL" if change < 0 else "EVEN"


def _difference(one: float, other: float) -> float:
    """Of two prices as decimals: 0.3 - 0.1 is 0.2."""
    return float(Decimal(repr(one)) - Decimal(repr(other)))


def _book(row: OrderBook) -> dict[str, Any]:
    return {
        "type": "orderbook",
        "code": row.market,
        "timestamp": row.stamp_us // 1000,
        "total_ask_size": row.total_ask_size,
        "total_bid_size": row.total_bid_size,
        "orderbook_units": [
            {"ask_price": ask[0], "bid_price": bid[0], "ask_size": ask[1], "bid_size": bid[1]}
            for ask, bid in zip_longest(row.asks, row.bids, fillvalue=_NOTHING)
        ],
        "stream_type": "REALTIME",  # here the venue has it
        "level": row.level,
    }
