"""Ten small programs as books and blogs about pyupbit write them, written anew: each takes the module and answers.

They differ from the originals in what a test needs: they end, and they return what they would print.
"""

from __future__ import annotations

import datetime as dt
import io
import time
from types import ModuleType
from typing import Any

__all__ = ["PROGRAMS", "REST", "paging_by_index"]

REST = {"seconds": 0.0}
"""The pause that each book puts between two calls, so that the venue does not refuse; 0.1 at the venue's own rate."""


def pause() -> None:
    """As in the books."""
    time.sleep(REST["seconds"])


def breakout(pyupbit: ModuleType) -> Any:
    """Volatility breakout: yesterday's range times k over today's open is the price to buy at, looked at in a loop."""
    signals = []
    for ticker in ("KRW-BTC", "KRW-ETH", "KRW-XRP"):
        for _ in range(5):
            df = pyupbit.get_ohlcv(ticker, "day", 2)
            target = df.iloc[0]["close"] + (df.iloc[0]["high"] - df.iloc[0]["low"]) * 0.5
            price = pyupbit.get_current_price(ticker)
            pause()
            signals.append((ticker, target, price, bool(price > target)))
    return signals


def moving_averages(pyupbit: ModuleType) -> Any:
    """Moving averages over 200 days: golden or dead cross of each coin."""
    crosses = {}
    for ticker in ("KRW-BTC", "KRW-ETH", "KRW-SOL"):
        close = pyupbit.get_ohlcv(ticker, interval="day", count=200)["close"]
        pause()
        ma5, ma20, ma60 = (close.rolling(n).mean().iloc[-1] for n in (5, 20, 60))
        crosses[ticker] = (ma5, ma20, ma60, "up" if ma5 > ma20 > ma60 else "not up")
    return crosses


def all_prices(pyupbit: ModuleType) -> Any:
    """All coins priced in won, and their prices in one go, three times."""
    tickers = pyupbit.get_tickers(fiat="KRW")
    for _ in range(3):
        prices = pyupbit.get_current_price(tickers)
        pause()
    return sorted(prices.items(), key=lambda item: item[1], reverse=True)


def volume_power(pyupbit: ModuleType) -> Any:
    """The newest trades from the socket: how much was bought, how much sold."""
    manager = pyupbit.WebSocketManager("trade", ["KRW-BTC", "KRW-ETH"])
    bought = sold = 0.0
    try:
        for _ in range(5):
            data = manager.get()
            if data["ask_bid"] == "BID":
                bought += data["trade_volume"]
            else:
                sold += data["trade_volume"]
    finally:
        manager.terminate()
    return sorted(key for key in ("type", "code", "trade_price", "trade_volume", "ask_bid") if key in data), (
        bought + sold > 0
    )


def rollover(pyupbit: ModuleType) -> Any:
    """A day of the exchange begins at nine in the morning: when does today's begin, and at what price."""
    df = pyupbit.get_ohlcv("KRW-BTC", interval="day", count=1)
    start = df.index[0]
    return start.isoformat(), start.hour, (start + dt.timedelta(days=1)).isoformat(), float(df["open"].iloc[0])


def paging(pyupbit: ModuleType) -> Any:
    """600 minutes, each page up to where the one before began, twice: the second time for another indicator.

    The careful form: both read an aware UTC `to` alike.
    """
    import pandas as pd

    found = []
    for _ in range(2):
        pages, to = [], None
        for _ in range(3):
            pages.append(pyupbit.get_ohlcv("KRW-XRP", interval="minute1", count=200, to=to))
            to = pages[-1].index[0].tz_localize("Asia/Seoul").tz_convert("UTC")
            pause()
        found.append(pd.concat(pages[::-1]))
    first, again = found
    return first.index.is_unique, len(first), float(again["close"].ewm(span=20).mean().iloc[-1])


def paging_by_index(pyupbit: ModuleType) -> Any:
    """The same 600 minutes as most blogs page them: `to` is the naive Korean time that the index shows."""
    import pandas as pd

    pages, to = [], None
    for _ in range(3):
        pages.append(pyupbit.get_ohlcv("KRW-XRP", interval="minute1", to=to))
        to = pages[-1].index[0]
        pause()
    return pd.concat(pages[::-1])


def spread(pyupbit: ModuleType) -> Any:
    """The spread of some books in percent, and the size within the first five levels."""
    found = {}
    for ticker in ("KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL"):
        units = pyupbit.get_orderbook(ticker)["orderbook_units"]
        pause()
        best_ask, best_bid = units[0]["ask_price"], units[0]["bid_price"]
        depth = sum(unit["ask_size"] + unit["bid_size"] for unit in units[:5])
        found[ticker] = ((best_ask - best_bid) / best_bid * 100, depth)
    return found


def midnight_days(pyupbit: ModuleType) -> Any:
    """Days that begin at midnight, folded from hours; only whole ones are looked at."""
    df = pyupbit.get_daily_ohlcv_from_base("KRW-BTC", base=0)
    whole = df.iloc[1:-1]
    return [(day.isoformat(), row.open, row.high, row.low, row.close) for day, row in whole.iterrows()]


def excel(pyupbit: ModuleType) -> Any:
    """Two years of days into a sheet and back."""
    df = pyupbit.get_ohlcv("KRW-ETH", interval="day", count=600, period=0.2)
    df["range"] = (df["high"] - df["low"]) * 0.5
    df["ror"] = (df["close"] / (df["open"] + df["range"].shift(1))).where(
        df["high"] > df["open"] + df["range"].shift(1), 1
    )
    import pandas as pd

    file = io.BytesIO()
    df.to_excel(file)
    return pd.read_excel(file, index_col=0)["ror"].cumprod().round(9).tolist()


def several_intervals(pyupbit: ModuleType) -> Any:
    """One coin at every scale, as a screen of charts would load it."""
    scales = ("minute1", "minute5", "minute60", "minute240", "day", "week", "month")
    frames = {}
    for scale in scales:
        frames[scale] = pyupbit.get_ohlcv("KRW-BTC", interval=scale, count=50)
        pause()
    return {scale: (len(df), df.index[-1].isoformat(), float(df["value"].sum())) for scale, df in frames.items()}


PROGRAMS = (
    breakout,
    moving_averages,
    all_prices,
    volume_power,
    rollover,
    paging,
    spread,
    midnight_days,
    excel,
    several_intervals,
)
