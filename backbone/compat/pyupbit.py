"""pyupbit's quotation functions, served by backbone: ``import backbone.compat.pyupbit as pyupbit``.

Same names, arguments, columns and Korean naive index. What pyupbit gets wrong is right here, and said once
(`DifferenceWarning`):

- an interval that does not exist is an `InputError`, not silently days;
- a failure raises (`backbone.errors`), instead of answering None; a market without candles is an empty frame;
- naive times mean Korean time, as the index does, so that ``to=df.index[0]`` goes on where `df` begins; pyupbit has
  them read as UTC, nine hours later;
- `get_ohlcv_from` answers from `fromDatetime` to `to`, both in Korean time;
- `get_daily_ohlcv_from_base` works on every pandas, and its first day is whole;
- `WebSocketManager` needs no process and no main guard, shares one socket with all others, and comes back by itself:
  no ``"ConnectionClosedError"`` among the data.

`period`, a pause between pages, is accepted and not needed: pages are paced by the venue's quota. What is no market
data (``Upbit(...)``, `get_tick_size`, `WebSocketClient`, errors) is pyupbit's own, where pyupbit is installed.
"""

from __future__ import annotations

import datetime as dt
import importlib
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from backbone.api.arguments import TimeLike, in_zone, parse_integer, parse_market, parse_markets, parse_time
from backbone.compat.default_client import DifferenceWarning, cleanup, get_client, initialize, say_once
from backbone.compat.spelling import KOREA, frame_of
from backbone.errors import InputError, RejectedError, StreamClosedError
from backbone.model import Priority
from backbone.timeframe import parse_timeframe

if TYPE_CHECKING:
    import pandas as pd

    from backbone.api.calls.live import LiveTable
    from backbone.coordinator.live.latest import RecordQueue
    from backbone.coordinator.live.subscription import Subscription

__all__ = [
    "DifferenceWarning",
    "WebSocketManager",
    "cleanup",
    "get_current_price",
    "get_daily_ohlcv_from_base",
    "get_ohlcv",
    "get_ohlcv_from",
    "get_orderbook",
    "get_tickers",
    "initialize",
]

_FIRST = "2000-01-01"
# fmt: off
_PYUPBITS = frozenset({
    "Upbit", "WebSocketClient", "get_tick_size", "get_url_ohlcv", "error_handler",
    "errors", "exchange_api", "quotation_api", "request_api", "websocket_api",
    "CreateAskError", "CreateBidError", "ExpiredAccessKey", "InValidAccessKey", "InsufficientFundsAsk",
    "InsufficientFundsBid", "InvalidQueryPayload", "JwtVerification", "NoAutorizationIP", "NonceUsed", "OutOfScope",
    "RemainingReqParsingError", "TooManyRequests", "UnderMinTotalAsk", "UnderMinTotalBid", "ValidationError",
    "WidthdrawAddressNotRegisterd",
})
# fmt: on
"""pyupbit's own names, as it spells them."""
_MINUTE_QUOTA = 600
"""What the venue has sent as ``min`` ever since it stopped counting minutes."""
_DEPTHS = {"1", "5", "15"}  # any other is 30 to the venue


# -- candles -----------------------------------------------------------------------------------------------------


def get_ohlcv(
    ticker: str = "KRW-BTC",
    interval: str = "day",
    count: int = 200,
    to: TimeLike | None = None,
    period: float = 0.1,  # noqa: ARG001 - pyupbit's pause
) -> pd.DataFrame:
    """The newest `count` candles that open before `to` (None: now), the forming one included; oldest first.

    Parameters
    ----------
    interval : ``"day"``, ``"minute1"`` … ``"minute240"``, ``"week"``, ``"month"``, or a timeframe such as ``"1h"``.
    to : excluded; naive means Korean time.

    Returns
    -------
    Frame of float64 ``open high low close volume value``, indexed by the candles' open in Korean time, naive.

    Raises
    ------
    InputError for an unknown ticker or interval; SourceError when the venue fails.
    """
    if to is not None:
        say_once(
            "to",
            "pyupbit drops the zone of `to` and has it read as UTC, nine hours later than the index it answers; here a"
            " naive `to` is Korean time, as the index is",
        )
    return _candles(ticker, interval, None, to, max(1, parse_integer("count", count)))


def get_ohlcv_from(
    ticker: str = "KRW-BTC",
    interval: str = "day",
    fromDatetime: TimeLike | None = None,
    to: TimeLike | None = None,
    period: float = 0.1,  # noqa: ARG001 - pyupbit's pause
) -> pd.DataFrame:
    """The candles that open in [`fromDatetime`, `to`), both Korean time where naive; see `get_ohlcv`.

    Defaults: from the first candle there is, to now with the forming one included.
    """
    if fromDatetime is not None or to is not None:
        say_once(
            "from",
            "pyupbit's get_ohlcv_from pages in UTC and cuts in Korean time, and so answers other hours than were asked"
            " for; here both ends are Korean time",
        )
    return _candles(ticker, interval, _FIRST if fromDatetime is None else fromDatetime, to, None)


def get_daily_ohlcv_from_base(ticker: str = "KRW-BTC", base: float = 0) -> pd.DataFrame:
    """Days that begin at `base` o'clock Korean time, folded from hours: ``open high low close volume``, some nine days.

    The last one is still forming.
    """
    if isinstance(base, bool) or not isinstance(base, int | float) or not abs(base) < float("inf"):
        raise InputError("base", base, "an hour of the day, such as 9")
    say_once(
        "base",
        "pyupbit's get_daily_ohlcv_from_base begins its first day in the middle (and answers None since pandas 2); here"
        " every day but the last is whole",
    )
    hours = _candles(ticker, "1h", None, None, 200)
    if len(hours):
        import pandas as pd

        shift = pd.Timedelta(hours=base % 24)
        first_day = (hours.index[0] - shift).floor("D") + shift
        if first_day < hours.index[0]:
            hours = pd.concat([_candles(ticker, "1h", first_day, hours.index[0], None), hours])
    days = hours.resample("24h", offset=f"{base % 24 * 3600:.0f}s")
    folded: pd.DataFrame = days.agg({"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"})
    return folded


def _candles(
    ticker: str, interval: str, start: TimeLike | None, end: TimeLike | None, count: int | None
) -> pd.DataFrame:
    client = get_client()
    market, timeframe = parse_market(ticker, client.session.home), _parse_interval(interval)
    first, last = _parse_korean("fromDatetime", start), _parse_korean("to", end)

    def ask(count: int | None, *, forming: bool = True) -> pd.DataFrame:
        found: pd.DataFrame = client.candles(
            market, timeframe, first, last, count=count, include_forming=forming, frames="pandas", progress=False
        )
        return found

    if count is None or count == 1 or last is not None:
        frame = ask(count)
    else:  # the forming one counts, and then a page has them all
        frame = ask(count - 1)
        if len(frame) < count and not frame["forming"].any():  # else its history is shorter than that
            frame = ask(count, forming=False)
    frame = frame.drop(columns="forming", errors="ignore")
    if count is not None:
        frame = frame.iloc[-count:]
    frame.index = _as_pyupbit(frame.index)
    return frame


def _as_pyupbit(index: Any) -> pd.Index:
    """Korean, naive, nameless, and of the unit that this pandas gives a list of datetimes: so pyupbit makes it."""
    import pandas as pd

    unit = pd.DatetimeIndex([dt.datetime(2000, 1, 1)]).unit  # noqa: DTZ001 - only its unit is looked at
    naive: pd.Index = index.tz_convert(KOREA).tz_localize(None).rename(None).as_unit(unit)
    return naive


def _parse_interval(interval: object) -> str:
    try:
        return parse_timeframe(interval, derived=True).name
    except InputError as exc:
        allowed = "day, minute1 minute3 minute5 minute10 minute15 minute30 minute60 minute240, week, month"
        allowed += ", or another length that divides a day, such as minute45"
        raise InputError("interval", interval, f"{allowed} (pyupbit would have answered days)") from exc


def _parse_korean(argument: str, value: TimeLike | None) -> TimeLike | None:
    """`value` as an aware time; naive ones are Korean. Text may be in any form that pandas reads, as in pyupbit."""
    if value is None:
        return None
    now_us = get_client().session.now_us
    try:
        time_us = parse_time(argument, value, KOREA, now_us)
    except InputError:
        if not isinstance(value, str):
            raise
        import pandas as pd

        stamp = pd.to_datetime(value, errors="coerce")
        if stamp is pd.NaT:
            raise
        time_us = parse_time(argument, stamp, KOREA, now_us)
    return in_zone(time_us, "UTC")


# -- now ---------------------------------------------------------------------------------------------------------


def get_tickers(fiat: str = "", is_details: bool = False, limit_info: bool = False, verbose: bool = False) -> Any:
    """The codes of the markets priced in `fiat` (empty: all), in the venue's order.

    With `verbose` a dict of each, with its names; with `is_details` with its warnings too; both have the venue's field
    names. With `limit_info` a pair: the answer, and ``{"group", "min", "sec"}``.
    """
    core = get_client().session.coordinator()
    if not (is_details or limit_info or verbose):
        return [info.market for info in core.markets.listed() if info.market.startswith(fiat)]
    reply = core.realtime.market_rows(Priority.HIGH, core.markets.confirm)
    rows = [row for row in reply.rows if row["market"].startswith(fiat)]
    tickers: list[Any]
    if is_details:
        tickers = [{**row, "market_warning": _warning(row)} for row in rows]
    elif verbose:
        tickers = [{name: value for name, value in row.items() if name != "market_event"} for row in rows]
    else:
        tickers = [row["market"] for row in rows]
    return (tickers, _limit(reply)) if limit_info else tickers


def _warning(row: dict[str, Any]) -> str:
    """The flag that the venue's rows had before ``market_event`` took its place; regional venues still send it."""
    flag: str | None = row.get("market_warning")
    return flag or ("CAUTION" if row.get("market_event", {}).get("warning") else "NONE")


def get_current_price(ticker: str | Iterable[str] = "KRW-BTC", limit_info: bool = False, verbose: bool = False) -> Any:
    """The last price of a ticker, or ``{ticker: price}`` of several.

    With `verbose` the venue's ticker rows (a list), with `limit_info` a pair as in `get_tickers`.
    """
    client = get_client()
    codes = parse_markets(ticker, client.session.home)
    if not (limit_info or verbose):
        frame = client.tickers(codes, frames="arrow")
        prices: dict[str, float] = dict(
            zip(frame.column("market").to_pylist(), frame.column("price").to_pylist(), strict=True)
        )
        return prices if len(codes) > 1 else prices[codes[0]]
    reply = _reply(client.session.coordinator().realtime.ticker_rows, codes)
    if verbose:
        answer: Any = reply.rows
    else:
        answer = {row["market"]: row["trade_price"] for row in reply.rows}
        if len(codes) == 1:
            answer = answer[codes[0]]
    return (answer, _limit(reply)) if limit_info else answer


def get_orderbook(ticker: str | Iterable[str] = "KRW-BTC", limit_info: bool = False) -> Any:
    """The venue's row of a ticker's order book, or the list of several; `limit_info` as in `get_tickers`."""
    client = get_client()
    codes = parse_markets(ticker, client.session.home)
    reply = _reply(client.session.coordinator().realtime.book_rows, codes)
    books: Any = reply.rows if len(codes) > 1 else reply.rows[0]
    return (books, _limit(reply)) if limit_info else books


def _reply(rows_of: Callable[[list[str], Priority], Any], codes: list[str]) -> Any:
    """Rows of markets; where the venue does not know one of them, its list names that."""
    core = get_client().session.coordinator()
    try:
        return rows_of(codes, Priority.HIGH)
    except RejectedError as exc:
        if exc.status == 404:
            core.markets.listed(fresh=True)
            core.markets.check_listed(codes, Priority.HIGH)
        raise


def _limit(reply: Any) -> dict[str, Any]:
    return {"group": reply.group, "min": _MINUTE_QUOTA, "sec": reply.remaining}


# -- live --------------------------------------------------------------------------------------------------------


class WebSocketManager:
    """Live data as a queue: ``WebSocketManager("ticker", ["KRW-BTC"])``, then `get` again and again, then `terminate`.

    Parameters
    ----------
    type : ``"ticker"``, ``"trade"``, ``"orderbook"``, or a candle such as ``"candle.1m"``.
    codes : markets; of an order book with the depth that is wanted, if not the whole (``"KRW-BTC.5"``).
    qsize : messages kept while they are not taken; the oldest are dropped (pyupbit stops reading instead).

    Messages begin with the start and have all of the venue's fields; each market's first one is how it stood
    then (``stream_type`` is ``"SNAPSHOT"``, where pyupbit asks for none). Safe to share between threads; the
    lock guards the start.
    """

    def __init__(self, type: str, codes: list[str], qsize: int = 1000) -> None:
        if isinstance(qsize, bool) or not isinstance(qsize, int) or qsize < 1:
            raise InputError("qsize", qsize, "a whole number, 1 or more")
        self.type = type
        self.codes = codes
        self.alive = False
        self._qsize = qsize
        self._lock = threading.Lock()
        self._table: LiveTable | None = None
        self._records: RecordQueue | None = None

    def __repr__(self) -> str:
        return f"<WebSocketManager {self.type} {self.codes} {'alive' if self.alive else 'not started'}>"

    def start(self) -> None:
        """Subscribe, unless that was done. Raises `InputError` for an unknown type or code."""
        with self._lock:
            if self._table is None:
                from backbone.api.calls.live import start_live

                codes, depth = _without_depth(self.codes) if self.type == "orderbook" else (self.codes, 30)
                self._table = start_live(get_client().session, codes, self.type, depth=depth, opened=self._collect)
                self.alive = True

    def _collect(self, subscription: Subscription) -> None:
        self._records = subscription.queue(self._qsize, shows_start=True)

    def get(self) -> dict[str, Any]:
        """The next message, waiting for it; the first call subscribes. Raises `StreamClosedError` after the end."""
        if self._records is None:
            self.start()
        assert self._records is not None
        found = self._records.next()
        if found is None:
            raise StreamClosedError("this WebSocketManager was terminated; make a new one", reason="terminated")
        return frame_of(*found)

    def terminate(self) -> None:
        """End it; whoever waits in `get` gets `StreamClosedError`. May be called twice."""
        with self._lock:
            table, self.alive = self._table, False
        if table is not None:
            table.stop()


def _without_depth(codes: list[str]) -> tuple[list[str], int]:
    """Codes of order books as ``KRW-BTC.5``: the markets, and the deepest that is wanted of one."""
    parts = [code.partition(".") for code in codes]
    depths = [int(depth) if depth in _DEPTHS else 30 for _, _, depth in parts]
    return [market for market, _, _ in parts], max(depths, default=30)


def __getattr__(name: str) -> Any:
    """What is no market data is pyupbit's own: `Upbit`, `get_tick_size`, `WebSocketClient`, its errors."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        pyupbit = importlib.import_module("pyupbit")
    except ModuleNotFoundError as exc:
        if exc.name != "pyupbit":
            raise
        missing = f"{name} is not market data but pyupbit's own: pip install pyupbit"
        if name in _PYUPBITS:  # no AttributeError, whose words `from … import` would drop
            raise ModuleNotFoundError(missing, name="pyupbit") from exc
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; if {missing}") from exc
    try:
        return getattr(pyupbit, name)
    except AttributeError as exc:
        raise AttributeError(f"neither module {__name__!r} nor pyupbit has an attribute {name!r}") from exc
