"""The newest row of each kind and market, held once whichever channel brought it, and who follows its changes.

Decides which of two rows is the newer one, and what a consumer that cannot keep up gets: the latest of each slot, or
the newest records of a bounded queue. Rows come from the socket (`LatestRows.take`, one call a message, a
microsecond) and from REST (`LatestRows.offer`). Realtime data lives here and nowhere else, bounded by the number of
slots.

One lock guards every slot with what it remembers, and the followers; the conditions of the followers are built on it.
Nothing is called back under it: a follower is only marked and woken.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from backbone.clock import Clock
from backbone.coordinator.live.recent import CandleTrack
from backbone.locks import renew_after_fork
from backbone.model import LiveCandle, OrderBook, Ticker, Trade
from backbone.routing.wire import KINDS, ORDERBOOK_DEPTH, LiveRecord, kind_of

__all__ = ["ConflatedChanges", "Held", "LatestRows", "RecordQueue", "Slot", "cut"]

R = TypeVar("R", bound=LiveRecord)

NEVER = float("-inf")
TAPE = 500
"""Trades kept of a market that is followed: as many as one REST reply has."""
_NOT_SAID = (None, None, None, None)


class Held(msgspec.Struct, Generic[R], frozen=True, gc=False):
    """A row with where it came from (``"stream"``, ``"rest"``) and when (monotonic seconds)."""

    row: R
    source: str
    received_s: float


class Slot(msgspec.Struct, eq=False):
    """The newest row of one kind and market. Read `held` at will; the rest belongs to the latest rows.

    ``count`` counts every record that came for it. ``stream_s`` is when the stream last sent it on this connection;
    ``wants`` how many subscriptions want it; ``is_short``: one of them wanted its books less than whole.

    Trades are delivered without a hole: from the loss of the connection on, ``waiting`` holds back what comes until the
    trades after ``resume`` are fetched; ``epoch`` counts the losses, ``lost`` those whose trades could not be had. Each
    is delivered once: a subscription that changes brings a snapshot of the last trade, which may come by itself too.
    ``tape`` has the newest delivered ones by their ids; from ``whole_from`` on none is missing between them. A market
    that was listed just now ``is_joining`` until the stream sends its first trade. ``track`` is of candles alone.
    """

    kind: str
    market: str
    held: Held[Any] | None = None
    count: int = 0
    stream_s: float = NEVER
    wants: int = 0
    is_short: bool = False
    track: CandleTrack | None = None
    followers: tuple[_Follower, ...] = ()
    snapshot: LiveRecord | None = None  # the last record that was a snapshot and no news
    waiting: list[Trade] | None = None
    is_joining: bool = False
    tape: dict[int, Trade] = {}
    whole_from: tuple[int, int] = (0, 0)
    resume: tuple[int, int] = (0, 0)
    epoch: int = 0
    lost: int = 0

    def deliver_locked(self, record: LiveRecord) -> None:
        """Count a record and hand it to the followers; a trade that they had is none."""
        if type(record) is Trade:
            if record.sequential_id in self.tape:
                return
            self.remember_locked(record)
        self.count += 1
        for follower in self.followers:
            follower.note_locked(self, record)

    def repeat_locked(self, record: LiveRecord) -> None:
        """Hand a record that is no news to the followers that have had none of this slot."""
        for follower in self.followers:
            follower.repeat_locked(self, record)

    def remember_locked(self, trade: Trade) -> None:
        """Put a trade on the tape."""
        self.tape[trade.sequential_id] = trade
        if len(self.tape) > TAPE:
            del self.tape[next(iter(self.tape))]

    def newest_locked(self, count: int) -> list[Trade] | None:
        """The newest `count` trades, oldest first; None where the stream sent fewer without a hole."""
        if self.stream_s == NEVER or self.waiting is not None or len(self.tape) < count:
            return None
        whole = sorted((trade for trade in self.tape.values() if _place(trade) >= self.whole_from), key=_place)
        return whole[-count:] if len(whole) >= count else None

    def __repr__(self) -> str:
        return f"<Slot {self.kind} {self.market} {self.count} records>"


class _Follower:
    """Gets each record of its slots, from now on, until `end`. Its condition is built on the lock of the rows."""

    def __init__(self, latest: LatestRows, slots: Sequence[Slot], depth: int = ORDERBOOK_DEPTH) -> None:
        self._latest = latest
        self._slots = slots
        self._depth = depth
        self._condition = threading.Condition(latest.lock)
        self.is_ended = False  # no record will come any more
        with latest.lock:
            latest.refollow_locked(self, slots, ())
            self._begin_locked()

    def note_locked(self, slot: Slot, record: LiveRecord) -> None:
        """A record came for one of its slots."""
        raise NotImplementedError

    def repeat_locked(self, slot: Slot, record: LiveRecord) -> None:
        """A record came that says what the row of its slot says already: no news."""

    def _begin_locked(self) -> None:
        """It follows its slots from here on."""

    def _wait_locked(self, has_come: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until that which is waited for has come; False when the time ran out, or the end came first."""
        clock = self._latest.clock
        deadline = None if timeout_s is None else clock.monotonic() + timeout_s
        while not has_come() and not self.is_ended:
            left_s = None if deadline is None else deadline - clock.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            clock.wait(self._condition, left_s)
        return has_come()

    def end(self) -> None:
        """Nothing more is noted; whoever waits goes on. What has come can still be taken."""
        self._latest.refollow(self, (), self._slots)
        with self._latest.lock:
            self.is_ended = True
            self._condition.notify_all()


class ConflatedChanges(_Follower):
    """Which slots changed since they were last taken: the latest value of each, however slow the taker.

    ``arrived`` counts records, ``missed`` those that were replaced before they were taken.
    """

    def __init__(self, latest: LatestRows, slots: Sequence[Slot], depth: int = ORDERBOOK_DEPTH) -> None:
        self._changed: dict[Slot, None] = {}
        self._goal = 0  # `arrived` at which the sleeper is woken; 0: no one sleeps
        self.arrived = 0
        self.missed = 0
        super().__init__(latest, slots, depth)

    def note_locked(self, slot: Slot, record: LiveRecord) -> None:
        self.arrived += 1
        if slot in self._changed:
            self.missed += 1
        else:
            self._changed[slot] = None
        if 0 < self._goal <= self.arrived:
            self._condition.notify()

    def take(self, timeout_s: float | None) -> list[Held[Any]] | None:
        """Wait for a change; the newest row of each changed slot, none when the time ran out, None at the end."""
        with self._latest.lock:
            if not self._sleep_locked(lambda: bool(self._changed), self.arrived + 1, timeout_s):
                return None if self.is_ended else []
            slots, self._changed = self._changed, {}
            found = [slot.held for slot in slots if slot.held is not None]
        return cut(found, self._depth)

    def wait_for(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` more records came since this was made; False when the time ran out, or at the end."""
        with self._latest.lock:
            return self._sleep_locked(lambda: self.arrived >= count, count, timeout_s)

    def _sleep_locked(self, has_come: Callable[[], bool], goal: int, timeout_s: float | None) -> bool:
        self._goal = goal
        try:
            return self._wait_locked(has_come, timeout_s)
        finally:
            self._goal = 0


class RecordQueue(_Follower):
    """The records themselves, in order, in a bounded queue: the oldest are dropped when they are not taken.

    No `queue.Queue`: a full one refuses the newest record, and cannot be ended.

    With `shows_start` the first record of each slot is how it stood: the row that the stream has sent for somebody else
    already, or the next snapshot, be it news or not.
    """

    def __init__(
        self,
        latest: LatestRows,
        slots: Sequence[Slot],
        size: int,
        depth: int = ORDERBOOK_DEPTH,
        *,
        shows_start: bool = False,
    ) -> None:
        self._records: deque[tuple[LiveRecord, bool]] = deque(maxlen=size)
        self._unshown = set(slots) if shows_start else set()  # no record of them yet
        self.dropped = 0
        super().__init__(latest, slots, depth)

    def note_locked(self, slot: Slot, record: LiveRecord) -> None:
        self._append_locked(slot, record, record is slot.snapshot)

    def repeat_locked(self, slot: Slot, record: LiveRecord) -> None:
        if slot in self._unshown:
            self._append_locked(slot, record, True)

    def _begin_locked(self) -> None:
        for slot in self._slots:
            if slot in self._unshown and slot.held is not None and slot.stream_s > NEVER:
                self._append_locked(slot, slot.held.row, True)

    def _append_locked(self, slot: Slot, record: LiveRecord, is_snapshot: bool) -> None:
        self._unshown.discard(slot)
        if len(self._records) == self._records.maxlen:
            self.dropped += 1
        self._records.append((record, is_snapshot))
        self._condition.notify()

    def get(self, timeout_s: float | None = None) -> LiveRecord | None:
        """The oldest record in the queue, waiting for one; None when the time ran out or the end was reached."""
        found = self.next(timeout_s)
        return None if found is None else found[0]

    def next(self, timeout_s: float | None = None) -> tuple[LiveRecord, bool] | None:
        """As `get`, and whether the record is a snapshot (of the stream, or the first row, from REST) and no news."""
        with self._latest.lock:
            if not self._wait_locked(lambda: bool(self._records), timeout_s):
                return None
            record, is_snapshot = self._records.popleft()
        return (record.cut(self._depth) if isinstance(record, OrderBook) else record), is_snapshot

    def __len__(self) -> int:
        return len(self._records)


def cut(held: list[Held[Any]], depth: int) -> list[Held[Any]]:
    """The rows with their books no deeper than `depth`: somebody else may want them deeper."""
    if depth == ORDERBOOK_DEPTH:
        return held
    return [
        Held(one.row.cut(depth), one.source, one.received_s) if isinstance(one.row, OrderBook) else one for one in held
    ]


class LatestRows:
    """All slots. Safe to share between threads.

    `on_condition` gets each ticker whose market is in another condition than the one before said, outside the lock and
    on the thread that brought it: it must be quick.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.on_condition: Callable[[Ticker], object] = lambda _: None
        self._slots: dict[str, dict[str, Slot]] = {kind: {} for kind in KINDS}
        self._by_type: dict[type, dict[str, Slot]] = {
            Ticker: self._slots["ticker"],
            Trade: self._slots["trade"],
            OrderBook: self._slots["orderbook"],
        }
        self._begin()
        renew_after_fork(self, LatestRows._begin)

    def _begin(self) -> None:
        """A forked child has no followers: the threads that did are the parent's."""
        self.lock = threading.Lock()
        for slots in self._slots.values():
            for slot in slots.values():
                slot.followers, slot.stream_s = (), NEVER

    def __repr__(self) -> str:
        rows = sum(slot.held is not None for slots in self._slots.values() for slot in list(slots.values()))
        return f"<LatestRows {rows} rows>"

    # -- rows in -------------------------------------------------------------------------------------------------

    def take(self, record: LiveRecord, received_s: float, is_snapshot: bool = False) -> None:
        """A record from the stream. On one connection the last one received is the truth."""
        slots = self._by_type.get(type(record))
        with self.lock:
            if slots is None or (type(record) is OrderBook and record.level):
                slots = self._slots.setdefault(kind_of(record), {})
            slot = slots.get(record.market)
            if slot is None:
                slot = self._slot_locked(kind_of(record), record.market)
            slot.stream_s = received_s
            held = slot.held
            is_new_condition = type(record) is Ticker and _is_new_condition(record, held)
            if is_snapshot:
                slot.snapshot = record
                if type(record) is Trade and record.sequential_id not in slot.tape:  # some may be missing before it
                    slot.whole_from = max(_place(record), slot.resume if held is None else _place(held.row))
            is_repeated = is_snapshot and held is not None and _is_same(held.row, record)
            if held is None or _replaces(record, held):
                slot.held = Held(record, "stream", received_s)
            if slot.track is not None:
                slot.track.note(record)  # type: ignore[arg-type]
            if slot.waiting is not None and isinstance(record, Trade):
                slot.waiting.append(record)
            elif is_repeated:
                slot.count += 1
                if type(record) is Trade:
                    slot.remember_locked(record)
                slot.repeat_locked(record)
            else:
                slot.deliver_locked(record)
        if is_new_condition:
            self.on_condition(record)  # type: ignore[arg-type]

    def offer(self, kind: str, records: Sequence[LiveRecord], received_s: float) -> None:
        """Records from REST, of one kind; each is taken unless the slot has a newer one."""
        changed: list[Ticker] = []
        with self.lock:
            for record in records:
                slot = self._slots.setdefault(kind, {}).get(record.market) or self._slot_locked(kind, record.market)
                held = slot.held
                if held is not None and _is_newer(held.row, record):
                    continue
                if held is not None and isinstance(record, Ticker):
                    record = record.completed(held.row)
                if isinstance(record, Ticker) and _is_new_condition(record, held):
                    changed.append(record)
                if held is None:
                    slot.snapshot = record
                is_news = held is None or not _is_same(held.row, record)
                if is_news or held is None or held.source != "stream":
                    slot.held = Held(record, "rest", received_s)
                if not is_news:
                    slot.repeat_locked(record)
                    continue
                if slot.waiting and isinstance(record, Trade):  # the stream is back: its turn comes with the others
                    slot.waiting.append(record)
                    continue
                if isinstance(record, Trade):
                    slot.resume = max(slot.resume, _place(record))
                    if record.sequential_id not in slot.tape:  # what the stream and the polls brought may not join
                        slot.whole_from = _place(record)
                slot.deliver_locked(record)
        for ticker in changed:
            self.on_condition(ticker)

    def confirm(self, slot: Slot, candle: LiveCandle) -> None:
        """Show REST's row of a closed candle, where that candle is still the newest and the row shown is not REST's."""
        with self.lock:
            if slot.held is None or slot.held.row.time_us != candle.time_us or slot.held.source == "rest":
                return
            slot.held = Held(candle, "rest", self.clock.monotonic())
            slot.deliver_locked(candle)

    # -- slots ---------------------------------------------------------------------------------------------------

    def slot(self, kind: str, market: str) -> Slot:
        """The slot of a kind and market, made on first use."""
        with self.lock:
            return self._slot_locked(kind, market)

    def _slot_locked(self, kind: str, market: str) -> Slot:
        slots = self._slots.setdefault(kind, {})
        slot = slots.get(market)
        if slot is None:
            slot = slots[market] = Slot(kind, market)
        return slot

    def known(self, kind: str, markets: Iterable[str]) -> dict[str, Slot]:
        """The slots of `markets` that hold a row; makes none."""
        slots = self._slots.get(kind, {})
        return {m: slot for m in markets if (slot := slots.get(m)) is not None and slot.held is not None}

    def wanted(self, kind: str) -> frozenset[str]:
        """The markets whose `kind` is subscribed to."""
        with self.lock:
            return frozenset(market for market, slot in self._slots.get(kind, {}).items() if slot.wants)

    def snapshot(self, slots: Sequence[Slot]) -> list[Held[Any]]:
        """The rows of `slots` at one instant; a slot without a record has none."""
        with self.lock:
            return [slot.held for slot in slots if slot.held is not None]

    def want(self, slots: Sequence[Slot], depth: int = ORDERBOOK_DEPTH) -> None:
        """One more subscription wants `slots`; what the stream said before it was wanted counts no more."""
        with self.lock:
            for slot in slots:
                if not slot.wants:
                    slot.stream_s = NEVER
                    slot.track = CandleTrack() if slot.kind.startswith("candle.") else None
                    slot.tape.clear()
                    slot.whole_from = (0, 0)
                slot.wants += 1
                slot.is_short = slot.is_short or depth < ORDERBOOK_DEPTH

    def unwant(self, slots: Sequence[Slot]) -> None:
        """One subscription less; what is remembered without subscriptions is dropped."""
        with self.lock:
            for slot in slots:
                slot.wants -= 1
                if not slot.wants:
                    slot.stream_s = NEVER
                    slot.track = slot.waiting = None
                    slot.tape.clear()
                    slot.is_joining = False

    def disconnected(self) -> None:
        """The stream may have missed something: a slot counts as covered again from its next frame on."""
        with self.lock:
            for slots in self._slots.values():
                for slot in slots.values():
                    slot.stream_s = NEVER
                    if slot.track is not None:
                        slot.track.lost()
            for slot in self._slots["trade"].values():
                slot.epoch += 1
                slot.is_joining = False  # the return of the stream has its trades fetched
                if slot.wants and slot.waiting is None and slot.held is not None:
                    slot.waiting, slot.resume = [], _place(slot.held.row)

    def expect(self, slots: Sequence[Slot], since_us: int) -> None:
        """Hold back the trades of newly wanted `slots`, which were not listed at `since_us`, until those since then
        are fetched. A slot that somebody else has live already misses nothing."""
        with self.lock:
            for slot in slots:
                if slot.kind == "trade" and slot.wants == 1 and slot.waiting is None:
                    held = slot.held.row if slot.held is not None else None
                    slot.waiting, slot.resume = [], (since_us, -1) if held is None else _place(held)
                    slot.is_joining = True

    def joined(self) -> tuple[list[tuple[Slot, int, int]], bool]:
        """The joining slots that the stream sends by now, as `interrupted` has them; and whether any is left.

        What was traded after the stream's first trade is sent, what was before is to be fetched. Until it comes nothing
        was traded, or the subscription is on its way.
        """
        with self.lock:
            joining = [slot for slot in self._slots["trade"].values() if slot.is_joining]
            begun = [slot for slot in joining if slot.stream_s > NEVER]
            for slot in begun:
                slot.is_joining = False
            return [(slot, slot.epoch, slot.resume[0]) for slot in begun], len(begun) < len(joining)

    def interrupted(self) -> list[tuple[Slot, int, int]]:
        """The slots of trades that wait for those of an outage, each with its epoch and the time to fetch from."""
        with self.lock:
            waiting = [slot for slot in self._slots["trade"].values() if slot.waiting is not None]
            return [(slot, slot.epoch, slot.resume[0]) for slot in waiting]

    def resume(self, slot: Slot, epoch: int, fetched: Sequence[Trade], *, is_whole: bool = True) -> None:
        """Deliver the trades of an outage and what was held back meanwhile: each once, in order.

        Nothing happens where the connection was lost again since `epoch`: the next return fetches it all.
        """
        with self.lock:
            if slot.waiting is None or slot.epoch != epoch:
                return
            trades = {trade.sequential_id: trade for trade in (*fetched, *slot.waiting)}
            slot.waiting = None
            slot.lost += not is_whole
            if fetched and is_whole:
                slot.whole_from = min(slot.whole_from, *map(_place, fetched))
            else:
                slot.whole_from = max((slot.resume[0], slot.resume[1] + 1), *map(_place, trades.values()))
            for trade in sorted(trades.values(), key=_place):
                if _place(trade) <= slot.resume:
                    slot.remember_locked(trade)
                else:
                    slot.deliver_locked(trade)
                    if slot.held is None or _is_newer(trade, slot.held.row):
                        slot.held = Held(trade, "rest", self.clock.monotonic())

    # -- followers -----------------------------------------------------------------------------------------------

    def refollow(self, follower: _Follower, came: Iterable[Slot], gone: Iterable[Slot]) -> None:
        """Have a follower follow `came`, and `gone` no more."""
        with self.lock:
            self.refollow_locked(follower, came, gone)

    def refollow_locked(self, follower: _Follower, came: Iterable[Slot], gone: Iterable[Slot]) -> None:
        """As `refollow`."""
        for slot in came:
            slot.followers += (follower,)
        for slot in gone:
            slot.followers = tuple(each for each in slot.followers if each is not follower)


def _place(trade: Trade) -> tuple[int, int]:
    """Where a trade stands in the order of its market."""
    return trade.time_us, trade.sequential_id


def _is_new_condition(ticker: Ticker, held: Held[Any] | None) -> bool:
    """Whether it says how its market is, and not what the row before it said."""
    said = ticker.condition
    return said != _NOT_SAID and (held is None or held.row.condition != said)


def _is_same(known: Any, record: Any) -> bool:
    """Whether a record says what is known already; a trade is known by its id, whatever a channel leaves out."""
    if type(record) is Trade:
        return bool(known.sequential_id == record.sequential_id)
    return bool(known == record)


def _replaces(record: Any, held: Held[Any]) -> bool:
    """Whether a record of the stream takes the place of `held`."""
    if held.source == "stream":  # the order of arrival is the truth, but a candle may come late
        return type(record) is not LiveCandle or bool(held.row.time_us <= record.time_us)
    return not _is_newer(held.row, record)


def _is_newer(known: Any, record: Any) -> bool:
    """Whether the row `known` is of a later instant than `record`."""
    if type(known) is LiveCandle:
        return bool((known.time_us, known.stamp_us) > (record.time_us, record.stamp_us))
    return bool(known.stamp_us > record.stamp_us)
