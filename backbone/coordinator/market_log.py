"""The market list that remembers: who was listed when, under which names, with which warnings, from a log of changes.

Each list that the venue sends is compared in memory with the one before; what differs is written in the background, as
events of the store's log. A list of the past that somebody kept is put in at its time, without changing what was
recorded later. The state at any time is the newest event of each kind before it.

`_lock` guards the newest list, what waits to be written, and the index; files are read and written outside it, by one
thread at a time, which holds `_writing`.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast
from zoneinfo import ZoneInfo

import numpy as np

from backbone.errors import InputError
from backbone.locks import renew_after_fork
from backbone.model import Condition, MarketInfo, Ticker
from backbone.storage.event_table import Event, EventTable, encode_events
from backbone.storage.events import Events
from backbone.timeframe import DAY_US

__all__ = ["MarketLog", "Recorded", "Rename"]

_EVER_US = 1 << 62
_AHEAD_US = 5_000_000
"""How much another process may be ahead in what it knows of the venue's clock."""
_LISTS = ""  # the market of the event that says that a whole list was recorded
_LISTED, _DELISTED, _NAMED, _WARNED, _CAUTIONED, _STATE = "listed", "delisted", "named", "warned", "cautioned", "state"
_RENAMED, _REDENOMINATED, _COMPARED = "renamed", "redenominated", "compared"
_LISTING, _NAMES, _WARNING, _CAUTIONS, _STATED = range(5)
_FIELDS = {
    _LISTED: _LISTING, _DELISTED: _LISTING, _NAMED: _NAMES, _WARNED: _WARNING, _CAUTIONED: _CAUTIONS, _STATE: _STATED,
}  # fmt: skip
"""What a kind is a condition of."""
_ORDINARY = {
    "market_state": "ACTIVE", "delisting_date": None, "is_trading_suspended": False, "market_warning": "NONE",
}  # fmt: skip
"""What a `Condition` is called in an event, in its order, and what it usually is."""


@dataclass(frozen=True)
class Recorded:
    """The list as of a time: its markets, and when the first list of all was recorded."""

    markets: tuple[MarketInfo, ...]
    since_us: int


@dataclass(frozen=True)
class Rename:
    """A market that is listed under another code by now; ``since_us`` is when the first list lacked it.

    ``factor`` is that of a redenomination which came with the name: of every price.
    """

    old: str
    new: str
    since_us: int
    factor: float = 1.0

    def __str__(self) -> str:
        unit = "" if self.factor == 1 else f", in another unit: its prices are multiplied by {self.factor:g}"
        return f"{self.old} is called {self.new} since {_day(self.since_us)}{unit}; ask for that"


State = dict[str, MarketInfo]


class MarketLog:
    """What is known of the market list at any time. Thread-safe; opens nothing before it is used.

    Parameters
    ----------
    now_us : the venue's time.
    later : runs a job in the background.
    """

    def __init__(self, log: Events, now_us: Callable[[], int], later: Callable[[Callable[[], None]], None]) -> None:
        self._log = log
        self._now_us = now_us
        self._later = later
        self._index = _Index(EventTable())
        self._renew()
        renew_after_fork(self, MarketLog._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._seen: tuple[MarketInfo, ...] | None = None
        self._waiting: list[tuple[int, tuple[MarketInfo, ...]]] = []
        self._conditions: dict[str, Condition] = {}
        self._state_events: list[Event] = []

    # -- what is new ---------------------------------------------------------------------------------------------

    def note(self, listed: tuple[MarketInfo, ...]) -> None:
        """A list came from the venue. A comparison in memory; what is new is written in the background."""
        with self._lock:
            if listed == self._seen:
                return
            self._seen = listed
            self._waiting.append((self._now_us(), listed))
        self._later(self.flush)

    def note_state(self, ticker: Ticker) -> bool:
        """A ticker came that says how its market is: its state, the day of an announced delisting, suspension, warning.

        A comparison in memory; what is new is written in the background. Returns whether it is news: another condition
        than the last one that came, or a first one that is out of the ordinary.
        """
        with self._lock:
            before = self._conditions.get(ticker.market)
            said = ticker.condition
            if ticker.state is None and before is not None:  # REST may leave out what the stream says
                merged = tuple(old if new is None else new for new, old in zip(said, before, strict=True))
                said = cast(Condition, merged)
            if said == before:
                return False
            self._conditions[ticker.market] = said
            is_due = not self._state_events
            detail = dict(zip(_ORDINARY, said, strict=True))
            self._state_events.append(Event(self._now_us(), ticker.market, _STATE, detail, "ticker"))
        if is_due:
            self._later(self.flush)
        return before is not None or not _is_ordinary(detail)

    def flush(self) -> None:
        """Write what waits; what another thread is writing is written when this returns."""
        with self._writing:
            with self._lock:
                waiting, self._waiting = self._waiting, []
                states, self._state_events = self._state_events, []
            for at_us, listed in waiting:
                index = self._read()
                at_us = max([at_us, *index.lists[-1:]])  # another process may be ahead by its clock
                changes = _changes(index.state(at_us), listed, at_us, "market list", {})
                if changes or not index.lists:
                    self._log.add_all([_list_event(at_us, len(listed), "market list", {}), *changes])
            if states:
                known = self._read().with_state()
                new: list[Event] = []
                for event in states:
                    if event.market in known or not _is_ordinary(event.detail):
                        known.add(event.market)
                        new.append(event)
                self._log.add_all(new)

    def take(self, lists: Iterable[tuple[int, str, Sequence[MarketInfo]]]) -> int:
        """Put in lists of the past, each with its time and where it is from. Returns how many changes they brought.

        What was recorded of later times stays as it is: a market that a later list lacks is delisted by then.
        """
        self.flush()
        brought = 0
        for at_us, source, listed in sorted(lists, key=lambda one: one[0]):
            index = self._read()
            origin = {"list": source}
            changes = _changes(index.state(at_us), listed, at_us, "adopted list", origin)
            if not changes and at_us in index.lists:
                continue
            following = next((time for time in index.lists if time > at_us), None)
            marker = _list_event(at_us, len(listed), "adopted list", origin)
            repairs: list[Event] = []
            if following is not None:
                after = _Index(index.table.extended(encode_events(changes))).state(following)
                kept = tuple(index.state(following).values())
                repairs = _changes(after, kept, following, "a later list", {"after": source})
            self._log.add_all([marker, *changes, *repairs])
            brought += len(changes)
        return brought

    def newest(self) -> tuple[MarketInfo, ...]:
        """The newest list that was recorded; empty where none was."""
        index = self._read()
        return tuple(index.state(_EVER_US).values()) if index.lists else ()

    # -- what is known -------------------------------------------------------------------------------------------

    def at(
        self, time_us: int, first_candle_us: Callable[[str], int | None] | None = None, zone: str = "UTC"
    ) -> Recorded:
        """The list as of a time. Raises `InputError`, in `zone`, for a time before anything was recorded.

        `first_candle_us` is asked of markets that were first seen later: one that traded before was listed then.
        """
        self.flush()
        index = self._read()
        if not index.lists:
            allowed = "nothing is recorded yet: the first list is, once `markets()` was called"
            raise InputError("at", f"{_second(time_us, zone)} {zone}", allowed)
        since = index.lists[0]
        if time_us >= self._now_us() - _AHEAD_US:  # of now, whatever it was recorded as
            time_us = max(time_us, min(since, time_us + _AHEAD_US))
        if time_us < since:
            allowed = f"{_second(since, zone)} {zone} or later: nothing was recorded before"
            raise InputError("at", _second(time_us, zone), allowed)
        found = index.state(time_us)
        if first_candle_us is not None:
            present = {index.present_name(market) for market in found}
            for market in index.first_seen_after(time_us):
                first = None if index.present_name(market) in present else first_candle_us(market)
                if first is not None and first <= time_us:
                    found[market] = index.first_info(market)
        return Recorded(tuple(found.values()), since)

    def newest_us(self) -> int:
        """The time of the newest event; 0 where there is none."""
        self.flush()
        return self._read().newest_us

    def events(self, market: str | None = None) -> list[Event]:
        """All that happened to markets (to one), oldest first."""
        self.flush()
        events = [
            event
            for event in self._log.table().events()
            if event.market != _LISTS and event.kind != _COMPARED and market in (None, event.market, _new_name(event))
        ]
        return sorted(events, key=lambda event: event.at_us)

    # -- names ---------------------------------------------------------------------------------------------------

    def rename(self, old: str, new: str, factor: float) -> Rename:
        """Record that two codes are one market, in another unit where `factor` is not 1: that is an event of its own,
        of the new code."""
        self.flush()
        names: dict[str, Any] = {"from": old, "to": new}
        how = "identical candles"
        if factor == 1:
            events = [Event(self._now_us(), old, _RENAMED, names, how)]
        else:
            names, how = {**names, "factor": factor}, "candles that differ by one factor"
            both = (old, _RENAMED), (new, _REDENOMINATED)
            events = [Event(self._now_us(), code, kind, names, how) for code, kind in both]
        if self._log.add_all(events[:1]):  # else another process recorded it
            self._log.add_all(events[1:])
        return self._read().renamed(old) or Rename(old, new, events[0].at_us, factor)

    def note_distinct(self, market: str, others: Sequence[str]) -> None:
        """Record that `others` are not the market that was called so."""
        self._log.add_all([Event(self._now_us(), market, _COMPARED, {"differs": list(others)}, "candles")])

    def renamed(self, markets: Iterable[str]) -> dict[str, Rename]:
        """What those of `markets` are called now that have had another code since they were last listed."""
        index = self._read()
        return {market: rename for market in markets if (rename := index.renamed(market)) is not None}

    def known_distinct(self, market: str) -> frozenset[str]:
        """The markets that it is known not to be."""
        return self._read().apart.get(market, frozenset())

    def codes(self) -> frozenset[str]:
        """The codes of the newest list that is recorded."""
        return frozenset(self._read().listed())

    def delisted_us(self, market: str) -> int | None:
        """When the newest list came that lacks it, where one with it is recorded."""
        self.flush()
        return self._read().seen(market, _DELISTED)

    def is_new(self, market: str) -> bool:
        """Whether it was first in a list within the last day."""
        listed_us = self.listed_us(market)
        return listed_us is not None and self._now_us() - listed_us < DAY_US

    def listed_us(self, market: str) -> int | None:
        """When it was first in a list after one without it; None where the first list of all has it."""
        index = self._read()
        seen = index.seen(market, _LISTED)
        return None if seen is None or (market in index.first and seen == index.lists[0]) else seen

    def _read(self) -> _Index:
        table = self._log.table()
        with self._lock:
            if self._index.table is table:
                return self._index
        index = _Index(table)
        with self._lock:
            self._index = index
        return index


class _Index:
    """The log in the order of time, so that the state at a time is the newest line of each kind before it."""

    def __init__(self, table: EventTable) -> None:
        self.table = table
        times = table.at_us
        self._order = np.argsort(times, kind="stable")
        self._times = times[self._order]
        self.newest_us = int(self._times[-1]) if len(times) else 0
        self._markets = list(table.markets)
        is_list = (table.kind == table.kinds.get("list", -1)) & (table.market == table.markets.get(_LISTS, -1))
        self.lists: list[int] = np.unique(times[is_list]).tolist()
        self.first = self._first_list(np.flatnonzero(is_list[self._order]))
        self.renames: dict[str, Event] = {}
        self.apart: dict[str, frozenset[str]] = {}
        for event in self._events_of(_RENAMED):
            self.renames[event.market] = event
        for event in self._events_of(_COMPARED):
            self.apart[event.market] = self.apart.get(event.market, frozenset()).union(event.detail["differs"])

    @cached_property
    def _last(self) -> Any:
        return self._newest(_EVER_US)

    @cached_property
    def _first(self) -> Any:
        return self.table.newest({_LISTED: 0, _DELISTED: 0}, self._order[::-1])[:, 0]

    def _rows_of(self, kind: str, rows: Any) -> Any:
        return rows[self.table.kind[rows] == self.table.kinds.get(kind, -1)]

    def _events_of(self, kind: str) -> list[Event]:
        found = (self.table.event(row) for row in self._rows_of(kind, self._order).tolist())
        return [event for event in found if event is not None]

    def _first_list(self, lists: Any) -> frozenset[str]:
        """The markets of the first list of all: those listed before the second one came, be it within the second."""
        rows = self._rows_of(_LISTED, self._order[: lists[1]] if len(lists) > 1 else self._order)
        return frozenset(self._markets[number] for number in self.table.market[rows].tolist())

    def _newest(self, time_us: int) -> Any:
        return self.table.newest(_FIELDS, self._order[: np.searchsorted(self._times, time_us, "right")])

    def renamed(self, market: str) -> Rename | None:
        """The present name of a market, through all its names; None for a code that was listed again since."""
        found, name, factor = None, market, 1.0
        names = {market}
        while (event := self.renames.get(name)) is not None and event.at_us >= self._listed_us(name):
            gone_us, name = self.seen(name, _DELISTED), str(event.detail["to"])
            if name in names:
                return None
            names.add(name)
            factor *= event.detail.get("factor", 1.0)
            found = Rename(market, name, event.at_us if gone_us is None else gone_us, factor)
        return found

    def present_name(self, market: str) -> str:
        rename = self.renamed(market)
        return market if rename is None else rename.new

    def seen(self, market: str, kind: str) -> int | None:
        """When its newest listing or delisting was seen, if that is what it was."""
        row = self._last[self.table.markets[market], _LISTING] if market in self.table.markets else -1
        return int(self.table.at_us[row]) if row >= 0 and self.table.kind[row] == self.table.kinds.get(kind) else None

    def listed(self) -> list[str]:
        return [self._markets[number] for number in self._listed_in(self._last)]

    def _listed_in(self, newest: Any) -> list[int]:
        rows = newest[:, _LISTING]
        kinds = self.table.kind[rows] if len(self.table) else rows
        found: list[int] = np.flatnonzero((rows >= 0) & (kinds == self.table.kinds.get(_LISTED, -1))).tolist()
        return found

    def with_state(self) -> set[str]:
        """The markets of which tickers' states are recorded."""
        return {self._markets[number] for number in np.flatnonzero(self._last[:, _STATED] >= 0).tolist()}

    def state(self, time_us: int) -> State:
        """The listed markets at a time, with what was said of them."""
        newest = self._newest(time_us)
        return {
            (market := self._markets[number]): self._info(market, newest[number]) for number in self._listed_in(newest)
        }

    def _info(self, market: str, rows: Any) -> MarketInfo:
        listing, names, warning, cautions = (
            self.table.event(row) if row >= 0 else None for row in rows[:_STATED].tolist()
        )
        said = names if listing is None or (names is not None and names.at_us >= listing.at_us) else listing
        known = {} if said is None else said.detail
        return MarketInfo(
            market,
            known.get("korean_name", ""),
            known.get("english_name", ""),
            bool(warning is not None and warning.detail["warning"]),
            tuple(cautions.detail["cautions"]) if cautions is not None else (),
        )

    def first_seen_after(self, time_us: int) -> list[str]:
        """The markets whose first listing was recorded after a time."""
        rows = self._first[self._first >= 0]
        rows = self._rows_of(_LISTED, rows[self.table.at_us[rows] > time_us])
        return [self._markets[number] for number in self.table.market[rows].tolist()]

    def first_info(self, market: str) -> MarketInfo:
        """What was said of a market when it was first listed."""
        number = self.table.markets[market]
        return self._info(market, self._newest(int(self.table.at_us[self._first[number]]))[number])

    def _listed_us(self, market: str) -> int:
        """When it was last listed; 0 where it never was."""
        rows = self._rows_of(_LISTED, self._order)
        times = self.table.at_us[rows[self.table.market[rows] == self.table.markets.get(market, -1)]]
        return int(times[-1]) if len(times) else 0


def _changes(before: State, listed: Sequence[MarketInfo], at_us: int, how: str, origin: dict[str, Any]) -> list[Event]:
    """What a list says that the state before did not."""
    events: list[Event] = []

    def say(market: str, kind: str, **detail: Any) -> None:
        events.append(Event(at_us, market, kind, {**detail, **origin}, how))

    for info in listed:
        known = before.get(info.market)
        names = {"korean_name": info.korean_name, "english_name": info.english_name}
        if known is None:
            say(info.market, _LISTED, **names)
        elif (known.korean_name, known.english_name) != (info.korean_name, info.english_name):
            say(info.market, _NAMED, **names)
        if info.warning != (known is not None and known.warning):
            say(info.market, _WARNED, warning=info.warning)
        if set(info.cautions) != set(known.cautions if known is not None else ()):
            say(info.market, _CAUTIONED, cautions=list(info.cautions))
    for market in before.keys() - {info.market for info in listed}:
        if before[market].warning:
            say(market, _WARNED, warning=False)
        if before[market].cautions:
            say(market, _CAUTIONED, cautions=[])
        say(market, _DELISTED)
    return events


def _new_name(event: Event) -> str | None:
    """The other code of a renaming, which is an event of both."""
    return str(event.detail["to"]) if event.kind == _RENAMED else None


def _is_ordinary(detail: dict[str, Any]) -> bool:
    """Whether a first condition is worth no event."""
    return all(detail[name] in (None, usual) for name, usual in _ORDINARY.items())


def _list_event(at_us: int, count: int, how: str, origin: dict[str, Any]) -> Event:
    return Event(at_us, _LISTS, "list", {"markets": count, **origin}, how)


def _second(time_us: int, zone: str) -> str:
    return f"{dt.datetime.fromtimestamp(time_us / 1e6, ZoneInfo(zone)):%Y-%m-%d %H:%M:%S}"


def _day(time_us: int) -> str:
    return f"{dt.datetime.fromtimestamp(time_us / 1e6, dt.UTC):%Y-%m-%d}"
