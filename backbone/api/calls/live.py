"""`LiveTable`: what is true now, kept true in the background, as frames, callbacks, or a table that shows itself.

Decides what a person sees of the feed: one row a market, where it came from and how old it is, on which mode of the
fallback the feed stands, and what happened meanwhile. The rows are the coordinator's; a frame is made when it is asked
for. Callbacks run on a thread of their own (``backbone-callbacks``, one a table, started by the first callback, joined
by `stop`), never on the socket's: it takes what changed since it last looked, so a slow callback sees the latest values
and `missed` counts what it did not see. `LiveTable._lock` guards the callbacks and that thread.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from backbone.api import frames as shaping
from backbone.api.arguments import in_zone, parse_markets, parse_quote, parse_whole
from backbone.api.calls.realtime import DEPTH, parse_depth, parse_level
from backbone.api.format import tick_size
from backbone.api.frames import FLAG, REAL, TEXT, TIME
from backbone.coordinator.live.feed import KINDS, Subscription, parse_kind, timeframe_of
from backbone.coordinator.live.latest import ConflatedChanges, Held, RecordQueue
from backbone.coordinator.live.reconcile import LiveEvent
from backbone.errors import InputError, StreamClosedError
from backbone.locks import renew_after_fork
from backbone.model import CANDLE_COLUMNS, LiveCandle, OrderBook, Priority, Ticker, Trade
from backbone.routing.wire import LiveRecord, channel_of, grouped
from backbone.timeframe import Timeframe

if TYPE_CHECKING:
    from backbone.api.notebook.table import TableView, TickerTable
    from backbone.api.session import Session
    from backbone.coordinator.coordinator import Coordinator

__all__ = ["LiveTable", "LiveUpdate", "TableEvent", "start_live"]

_FIRST_S = 3.0  # that a new table waits for its first rows
_SETTLED_S = 0.3  # without a new row, after which the markets that have none count as quiet
_NEWS = ("listed", "delisted", "state")
_NEWS_US = 600_000_000  # that the table shows a market's joining, leaving, or new condition
NAN = float("nan")

log = logging.getLogger("backbone.live")


class TableEvent(NamedTuple):
    """Something that happened to the feed. Times are aware, in the client's zone.

    kind : ``"gap"`` (nothing was received from `gap_start` to `gap_end`; `filled` once the candles of that time are
    stored), ``"difference"`` (stream and REST disagree on a closed candle: `streamed` and `confirmed`), ``"silent"``
    (the venue sends nothing of a market), ``"failed"`` (a candle could not be confirmed or stored; it is tried again),
    ``"callback"`` (a callback raised), ``"listed"`` and ``"delisted"`` (a market of the table's quote currency joined
    or left), ``"state"`` (what a ticker says of its market: announced to be delisted, suspended, with a warning).
    """

    kind: str
    at: dt.datetime
    market: str
    timeframe: str
    gap_start: dt.datetime | None
    gap_end: dt.datetime | None
    filled: bool
    detail: str
    streamed: LiveCandle | None = None
    confirmed: LiveCandle | None = None


Shape = Callable[[str | None, Sequence[Held[Any]], str | None], Any]
"""Makes the frame of one kind of the rows given; the table's own, which knows its kinds and zone."""


class LiveUpdate(tuple[LiveRecord, ...]):
    """The newest record of each market (and kind) that changed since the last update.

    ``missed`` counts the records that newer ones had replaced by then.
    """

    missed: int
    _held: Sequence[Held[Any]]
    _shape: Shape

    def __new__(cls, held: Sequence[Held[Any]], missed: int, shape: Shape) -> LiveUpdate:
        update = super().__new__(cls, (one.row for one in held))
        update.missed, update._held, update._shape = missed, held, shape
        return update

    @property
    def markets(self) -> list[str]:
        """The markets that changed, each once."""
        return list(dict.fromkeys(record.market for record in self))

    def frame(self, kind: str | None = None, *, frames: str | None = None) -> Any:
        """The changed rows as `LiveTable.frame` shows them."""
        return self._shape(kind, self._held, frames)

    def __repr__(self) -> str:
        return f"<LiveUpdate {len(self)} rows, {self.missed} missed>"


class LiveTable:
    """Some kinds of live data of some markets, fed until `stop`. Made by `Backbone.live`; shared by any threads.

    Several tables share one socket; stopping the last one ends its thread. In a notebook it shows itself as a table
    that updates in place.

    Examples
    --------
    >>> with client.live(["KRW-BTC", "KRW-ETH"]) as table:
    ...     table.frame().index.tolist()
    ['KRW-BTC', 'KRW-ETH']
    """

    def __init__(self, session: Session, core: Coordinator, subscription: Subscription) -> None:
        self._session = session
        self._core = core
        self._subscription = subscription
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[LiveUpdate], object]] = []
        self._changes: ConflatedChanges | None = None
        self._thread: threading.Thread | None = None
        self._own_events: list[TableEvent] = []
        self._view: TickerTable | None = None
        self.callback_errors = 0
        renew_after_fork(self, LiveTable._renew)
        self.last_error: BaseException | None = None

    def _renew(self) -> None:
        """In a forked child: without the parent's thread, and what that waits for."""
        self._lock = threading.Lock()
        self._thread = self._changes = None

    # -- what it holds -------------------------------------------------------------------------------------------

    @property
    def markets(self) -> tuple[str, ...]:
        """The markets, in the order of the rows."""
        return self._subscription.markets

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds, as the venue names them."""
        return tuple(channel_of(kind)[0] for kind in self._subscription.kinds)

    @property
    def received(self) -> int:
        """Records that came since the table was opened, from the socket and from polls."""
        return self._subscription.received

    @property
    def missed(self) -> int:
        """Records that no callback saw, because newer ones had replaced them before it was called.

        An outage whose trades could not be had back counts one for each market, for want of their number.
        """
        changes = self._changes
        return self._subscription.lost + (0 if changes is None else changes.missed)

    @property
    def state(self) -> str:
        """How it is fed: ``streaming``, ``connecting`` or ``reconnecting`` (at any moment), ``polling`` (REST stands in
        for the socket), ``rest only`` (polling fails too), ``stopped``.
        """
        return self._subscription.mode

    @property
    def events(self) -> list[TableEvent]:
        """What happened to the feed since the table was opened, oldest first."""
        zone = self._session.tz
        with self._lock:
            own = list(self._own_events)
        return sorted(own + [_event(event, zone) for event in self._subscription.events()], key=lambda event: event.at)

    def frame(self, kind: str | None = None, *, frames: str | None = None) -> Any:
        """The newest row of each market at one instant; makes no request.

        kind : one of the table's kinds; default: its first. A market without a record has no row.

        Columns are those of `tickers` (index ``market``), `trades` (index ``time``), `orderbooks`, or of candles (index
        ``time``, with ``market`` first and a bool ``forming``), each with ``source`` (``"stream"`` or ``"rest"``) and
        ``age`` (seconds since the row was received: a quiet market's grows though the socket is well).
        """
        kind = self._kind(kind)
        self._subscription.check_process()
        return self._frame_of(kind, self._subscription.rows(self._fed_as(kind)), frames)

    def latest(self, market: str, kind: str | None = None) -> LiveRecord | None:
        """The newest record of one market, None before the first."""
        kind = self._kind(kind)
        self._subscription.check_process()
        (code,) = parse_markets(market, self._session.home)
        if code not in self.markets:
            raise InputError("market", market, "one of the table's markets: " + ", ".join(self.markets[:10]))
        row: LiveRecord | None = self._subscription.row(self._fed_as(kind), code)
        return row

    def _kind(self, kind: str | None) -> str:
        if kind is None:
            return self.kinds[0]
        known = parse_kind(kind)
        if known not in self.kinds:
            raise InputError("kind", kind, "one of the table's kinds: " + " ".join(self.kinds))
        return known

    def _fed_as(self, kind: str) -> str:
        """One of the table's kinds as the feed names it: books may be grouped."""
        return self._subscription.kinds[self.kinds.index(kind)]

    def _frame_of_update(self, kind: str | None, held: Sequence[Held[Any]], frames: str | None) -> Any:
        kind = self._kind(kind)
        wanted, timeframe = _TYPES.get(kind, LiveCandle), timeframe_of(kind)
        rows = [one for one in held if isinstance(one.row, wanted)]
        if timeframe is not None:
            rows = [one for one in rows if one.row.timeframe == timeframe.name]
        return self._frame_of(kind, rows, frames)

    def _frame_of(self, kind: str, held: Sequence[Held[Any]], frames: str | None) -> Any:
        began = self._core.clock.monotonic()
        rows = [one.row for one in held]
        sources = [one.source for one in held]
        ages = [max(0.0, began - one.received_s) for one in held]
        index: str | None = "time"
        wanted = self._session.frames(frames)
        table: Any
        if kind == "ticker":
            table, index = shaping.shape_tickers(rows, sources, ages, wanted, self._session.tz), "market"
        elif kind == "orderbook":
            table, index = _books(rows, sources, ages, self._subscription.depth), None
            sources = table.column("source").to_pylist()  # a row a level
        elif kind == "trade":
            table = shaping.trades_table(rows)
            table = table.add_column(6, "source", pa.array(sources, pa.string()))
            table = table.add_column(7, "age", pa.array(ages, pa.float64()))
        else:
            table = _candles(rows, sources, ages, kind, self._core.reader.closed_before)
        elapsed_ms = (self._core.clock.monotonic() - began) * 1000
        attrs = shaping.facts(sources=dict(Counter(sources)), elapsed_ms=elapsed_ms, priority=Priority.HIGH)
        attrs["state"] = self.state
        return shaping.deliver(table, wanted, index=index, zone=self._session.tz, attrs=attrs)

    # -- callbacks -----------------------------------------------------------------------------------------------

    def on_update(self, callback: Callable[[LiveUpdate], object]) -> Callable[[LiveUpdate], object]:
        """Call `callback` with a `LiveUpdate` whenever something changed; may be used as a decorator.

        It runs on the table's own thread, one call at a time. While it runs, changes gather: the next call gets the
        newest record of each market, and `missed` counts those in between. What it raises is recorded (`last_error`,
        `callback_errors`, an event) and logged; the table goes on.
        """
        if not callable(callback):
            raise InputError("callback", callback, "a function that takes a LiveUpdate")
        with self._lock:
            self._check_open()
            self._callbacks.append(callback)
            if self._thread is None:
                self._changes = self._subscription.follow()
                self._thread = threading.Thread(
                    target=_call_back, args=(weakref.ref(self), self._changes), name="backbone-callbacks", daemon=True
                )
                self._thread.start()
                self._session.keep_table(self)
        return callback

    def hand_out(self, held: Sequence[Held[Any]], missed: int) -> None:
        """Call the callbacks with what changed, on the thread that calls this."""
        update = LiveUpdate(held, missed, self._frame_of_update)
        with self._lock:
            callbacks = list(self._callbacks)
        for callback in callbacks:
            try:
                callback(update)
            except Exception as exc:  # noqa: BLE001 - somebody else's code must not end the table
                self._note_failure(callback, exc)

    def _note_failure(self, callback: object, exc: Exception) -> None:
        with self._lock:
            self.last_error = exc
            self.callback_errors += 1
            is_first = self.callback_errors == 1
            if is_first:
                at = in_zone(self._core.clock.now_us(), self._session.tz)
                detail = f"{callback!r} raised {exc!r}"
                self._own_events.append(TableEvent("callback", at, "", "", None, None, False, detail))
        log.log(logging.ERROR if is_first else logging.DEBUG, "live.callback_failed %r", callback, exc_info=exc)

    def wait(self, n: int = 1, timeout_s: float = 10.0) -> bool:
        """Wait until `n` more records came; False when `timeout_s` seconds passed first.

        Raises `StreamClosedError` on a stopped table.
        """
        n = parse_whole("n", n)
        self._check_open()
        changes = self._subscription.follow()
        try:
            return changes.wait_for(n, timeout_s)
        finally:
            changes.end()

    def updates(self, timeout_s: float | None = None) -> Iterator[LiveUpdate]:
        """What changes, as it does, to loop over: each time the newest record of each market that changed.

        Ends when the table is stopped, or when nothing came for `timeout_s` seconds.
        """
        self._check_open()
        changes = self._subscription.follow()
        missed = 0
        try:
            while not self._subscription.is_closed:
                held = changes.take(1.0 if timeout_s is None else timeout_s)
                if held:
                    missed, before = changes.missed, missed
                    yield LiveUpdate(held, missed - before, self._frame_of_update)
                elif held is None or timeout_s is not None:
                    return
        finally:
            changes.end()

    def records(self, size: int = 10_000) -> RecordQueue:
        """Every record from now on in a bounded queue: ``get(timeout_s)``, ``dropped``, ``end()``."""
        size = parse_whole("size", size)
        self._check_open()
        return self._subscription.queue(size)

    def _check_open(self) -> None:
        self._subscription.check_process()
        if self._subscription.is_closed:
            raise StreamClosedError("the table was stopped; open another", reason="stopped")

    # -- the end -------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop being fed. With the last table the socket's thread ends. What is shown stays. May be called twice."""
        self._subscription.close()
        with self._lock:
            changes, thread, self._thread = self._changes, self._thread, None
            view = self._view
        if changes is not None:
            changes.end()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        if view is not None:
            view.close("stopped")
        self._session.forget_table(self)

    def __enter__(self) -> LiveTable:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def __dir__(self) -> list[str]:
        return sorted(name for name in object.__dir__(self) if not name.startswith("_"))

    def __repr__(self) -> str:
        what = f"{' '.join(self.kinds)} of {len(self.markets)} markets"
        return f"<LiveTable {what}, {self.state}, {self.received} received>"

    # -- how it shows itself -------------------------------------------------------------------------------------

    def view(self, **style: Any) -> TickerTable:
        """The widget: ``colours="western"``, ``height=300``. Made on first use; shows the table's first kind."""
        from backbone.api.notebook.table import TickerTable

        with self._lock:
            if self._view is None or style:
                self._view = TickerTable(self.snapshot, title="LiveTable", clock=self._core.clock, **style)
            view = self._view
        if not self._subscription.is_closed:
            self._core.learn_ticks(self.markets)
        return view

    def snapshot(self) -> TableView:
        """The rows as widgets and terminals show them: numbers with their price step, source and age."""
        from backbone.api.notebook.table import TableRow, TableView

        now = self._core.clock.monotonic()
        known_tick = self._core.realtime.known_tick
        listed = {info.market: info.korean_name or info.english_name for info in self._core.markets.known or ()}
        rows = []
        for held in self._subscription.rows(self._subscription.kinds[0]):
            market, age_s = held.row.market, max(0.0, now - held.received_s)
            shown = _shown(held.row)
            tick = known_tick(market) or tick_size(market, shown[0])  # the band's, until the venue reports its own
            rows.append(TableRow(market, shown[0], tick, *shown[1:], held.source, age_s, listed.get(market, "")))
        notes = [f"{self.received:,} updates", *_notes(self._subscription.events(), self._core.venue.now_us())]
        return TableView(rows, self.state, " · ".join(notes))

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **more: Any) -> Any:
        return self.view()._repr_mimebundle_(include, exclude, **more)

    def _repr_html_(self) -> str:
        view = self.view()
        view.refresh()
        return view.html()


_TYPES: dict[str, type] = {"ticker": Ticker, "trade": Trade, "orderbook": OrderBook}


def _shown(row: LiveRecord) -> tuple[float, float, float, float, float]:
    """Price, change, rate, volume and value of a row, as far as its kind has them."""
    if isinstance(row, Ticker):
        return row.price, row.change, row.change_rate, row.volume_24h, row.value_24h
    if isinstance(row, LiveCandle):
        return row.close, row.close - row.open, row.close / row.open - 1, row.volume, row.value
    if isinstance(row, Trade):
        return row.price, NAN, NAN, row.volume, row.price * row.volume
    asks, bids = row.asks, row.bids
    best = asks[0][0] if asks else NAN
    spread = best - bids[0][0] if bids else NAN
    return best, spread, spread / best, sum(size for _, size in asks), NAN


def _books(rows: Sequence[OrderBook], sources: Sequence[str], ages: Sequence[float], depth: int) -> pa.Table:
    table = shaping.orderbooks_table(rows, depth)
    of_book = np.repeat(np.arange(len(rows)), [min(depth, len(book.levels)) for book in rows])
    table = table.append_column("source", pa.array(sources, pa.string()).take(of_book))
    return table.append_column("age", pa.array(np.array(ages, np.float64)[of_book]))


def _candles(
    rows: Sequence[LiveCandle],
    sources: Sequence[str],
    ages: Sequence[float],
    kind: str,
    closed_before: Callable[[Timeframe], int],
) -> pa.Table:
    timeframe = timeframe_of(kind)
    assert timeframe is not None
    numbers, closed = attrgetter(*CANDLE_COLUMNS), closed_before(timeframe)
    return shaping.table_of(
        {"time": TIME, "market": TEXT, **dict.fromkeys(CANDLE_COLUMNS, REAL)}
        | {"forming": FLAG, "source": TEXT, "age": REAL},
        [
            (row.time_us, row.market, *numbers(row), row.time_us >= closed, source, age)
            for row, source, age in zip(rows, sources, ages, strict=True)
        ],
    )


def _notes(events: Sequence[LiveEvent], now_us: int) -> list[str]:
    """How many gaps there were, and the newest two events of markets in the last minutes."""
    gaps = sum(event.kind == "gap" for event in events)
    news = [event.detail for event in events if event.kind in _NEWS and event.at_us >= now_us - _NEWS_US]
    return [*([f"{gaps} gaps"] if gaps else []), *news[:-3:-1]]


def _event(event: LiveEvent, zone: str) -> TableEvent:
    at, span = in_zone(event.at_us, zone), event.span
    start = None if span is None else in_zone(span.start, zone)
    end = None if span is None else in_zone(span.end, zone)
    what = event.filled, event.detail, event.streamed, event.confirmed
    return TableEvent(event.kind, at, event.market, event.timeframe, start, end, *what)


def _call_back(table: weakref.ref[LiveTable], changes: ConflatedChanges) -> None:
    """The callbacks' thread, until the table is stopped. While it waits it does not keep the table alive."""
    missed = 0
    while (held := changes.take(None)) is not None:
        missed, before = changes.missed, missed
        alive = table()
        if alive is None:
            return
        alive.hand_out(held, missed - before)
        del alive, held


def parse_kinds(value: object) -> list[str]:
    """One kind or several, each once, as the venue names them."""
    items = [value] if isinstance(value, str) else value if isinstance(value, Iterable) else ()
    kinds = list(dict.fromkeys(parse_kind(item) for item in items))
    if not kinds:
        raise InputError("kinds", value, "some of " + " ".join(KINDS))
    return kinds


def start_live(
    session: Session,
    asked: str | Iterable[str],
    kinds: object,
    *,
    depth: object = DEPTH,
    level: object = 0,
    opened: Callable[[Subscription], None] | None = None,
) -> LiveTable:
    """See `Backbone.live`. If `opened` takes the subscription, before its first record, no rows are waited for."""
    names = parse_kinds(kinds)
    deep = parse_depth(depth)
    for name, value, default in (("depth", depth, DEPTH), ("level", level, 0)):
        if value != default and "orderbook" not in names:
            raise InputError(name, value, 'nothing where no order books are live: kinds="orderbook"')
    quote, markets = parse_quote(asked, session.home), session.markets_of(asked)
    core = session.coordinator()
    core.markets.check_at_hand(markets)
    books = grouped(parse_level(core, markets, level, Priority.HIGH))
    kept = [books if name == "orderbook" else name for name in names]
    subscription = core.feed.open(kept, markets, quote, deep, opened)
    table = LiveTable(session, core, subscription)
    session.remember_table(table)
    try:
        if quote is None:
            core.markets.check_listed(markets)  # while the socket connects
        if opened is None:
            _await_first(core, subscription)
    except BaseException:
        table.stop()
        raise
    return table


def _await_first(core: Coordinator, subscription: Subscription) -> None:
    """Wait a moment for the venue's first rows, so that a table that is shown at once is not empty."""
    deadline = core.clock.monotonic() + _FIRST_S
    changes = subscription.follow()
    try:
        while not subscription.is_complete and core.clock.monotonic() < deadline:
            arrived = changes.arrived
            changes.take(_SETTLED_S)
            is_settled = changes.arrived == arrived and arrived and subscription.mode == "streaming"
            if is_settled:
                return  # some markets have no data
    finally:
        changes.end()
