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
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from backbone.errors import InputError
from backbone.locks import renew_after_fork
from backbone.model import Condition, MarketInfo, Ticker
from backbone.storage.events import Event
from backbone.timeframe import DAY_US

__all__ = ["EventLog", "MarketLog", "Recorded", "Rename"]

_EVER_US = 1 << 62
_AHEAD_US = 5_000_000
"""How much another process may be ahead in what it knows of the venue's clock."""
_LISTS = ""  # the market of the event that says that a whole list was recorded
_LISTED, _DELISTED, _NAMED, _WARNED, _CAUTIONED, _STATE = "listed", "delisted", "named", "warned", "cautioned", "state"
_RENAMED, _COMPARED = "renamed", "compared"
_FIELD = {
    _LISTED: "listing", _DELISTED: "listing", _NAMED: "names", _WARNED: "warning", _CAUTIONED: "cautions",
    _STATE: "state",
}  # fmt: skip
_CONDITION = ("market_state", "delisting_date", "is_trading_suspended", "market_warning")
_ORDINARY: Condition = ("ACTIVE", None, False, "NONE")


class EventLog(Protocol):
    """What the log of a store offers."""

    def add_all(self, events: list[Event]) -> int: ...
    def read(self, market: str | None = None) -> list[Event]: ...


@dataclass(frozen=True)
class Recorded:
    """The list as of a time: its markets, and when the first list of all was recorded."""

    markets: tuple[MarketInfo, ...]
    since_us: int


@dataclass(frozen=True)
class Rename:
    """A market that is listed under another code by now; ``since_us`` is when the first list lacked it."""

    old: str
    new: str
    since_us: int

    def __str__(self) -> str:
        return f"{self.old} is called {self.new} since {_day(self.since_us)}; ask for that"


State = dict[str, MarketInfo]
_Fields = dict[str, tuple[list[int], list[Event]]]
"""Of one market: for each kind of condition, the times at which it changed, and the events."""


class MarketLog:
    """What is known of the market list at any time. Thread-safe; opens nothing before it is used.

    Parameters
    ----------
    now_us : the venue's time.
    later : runs a job in the background.
    """

    def __init__(self, log: EventLog, now_us: Callable[[], int], later: Callable[[Callable[[], None]], None]) -> None:
        self._log = log
        self._now_us = now_us
        self._later = later
        self._index = _Index([])
        self._index_of: tuple[int, Event | None] = (0, None)
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
                said = _merged(said, before)
            if said == before:
                return False
            self._conditions[ticker.market] = said
            is_due = not self._state_events
            detail = dict(zip(_CONDITION, said, strict=True))
            self._state_events.append(Event(self._now_us(), ticker.market, _STATE, detail, "ticker"))
        if is_due:
            self._later(self.flush)
        return before is not None or not _is_ordinary(said)

    def flush(self) -> None:
        """Write what waits; what another thread is writing is written when this returns."""
        with self._writing:
            self._flush()

    def _flush(self) -> None:
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
            known = {market for market, fields in self._read().by_market.items() if "state" in fields}
            new: list[Event] = []
            for event in states:
                if event.market in known or not _is_ordinary(_said(event)):
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
                after = _Index([*index.events, *changes]).state(following)
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
            raise InputError("at", time_us, "nothing is recorded yet: the first list is, once `markets()` was called")
        since = index.lists[0]
        if time_us >= self._now_us() - _AHEAD_US:  # of now, whatever it was recorded as
            time_us = max(time_us, min(since, time_us + _AHEAD_US))
        if time_us < since:
            allowed = f"{_second(since, zone)} {zone} or later: nothing was recorded before"
            raise InputError("at", _second(time_us, zone), allowed)
        found = index.state(time_us)
        if first_candle_us is not None:
            present = {index.present_name(market) for market in found}
            for market, info in index.first_seen_after(time_us).items():
                first = None if index.present_name(market) in present else first_candle_us(market)
                if first is not None and first <= time_us:
                    found[market] = info
        return Recorded(tuple(found.values()), since)

    def events(self, market: str | None = None) -> list[Event]:
        """All that happened to markets (to one), oldest first."""
        self.flush()
        events = [
            event
            for event in self._log.read()
            if event.market != _LISTS and event.kind != _COMPARED and market in (None, event.market, _new_name(event))
        ]
        return sorted(events, key=lambda event: event.at_us)

    # -- names ---------------------------------------------------------------------------------------------------

    def rename(self, old: str, new: str) -> Rename:
        """Record that two codes are one market."""
        self.flush()
        event = Event(self._now_us(), old, _RENAMED, {"from": old, "to": new}, "identical candles")
        self._log.add_all([event])
        return self._read().renamed(old) or Rename(old, new, event.at_us)

    def tell_apart(self, market: str, others: Sequence[str]) -> None:
        """Record that `others` are not the market that was called so."""
        self._log.add_all([Event(self._now_us(), market, _COMPARED, {"differs": list(others)}, "candles")])

    def renamed(self, markets: Iterable[str]) -> dict[str, Rename]:
        """What those of `markets` are called now that have had another code since they were last listed."""
        index = self._read()
        return {market: rename for market in markets if (rename := index.renamed(market)) is not None}

    def told_apart(self, market: str) -> frozenset[str]:
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
        events = self._log.read()
        mark = (len(events), events[-1] if events else None)
        with self._lock:
            if mark == self._index_of:
                return self._index
            (known, last), index = self._index_of, self._index
        more = events[known:]
        if 0 < known <= len(events) and events[known - 1] == last and all(e.at_us >= index.newest_us for e in more):
            index = _Index(more, index)
        else:
            index = _Index(events)
        with self._lock:
            self._index, self._index_of = index, mark
        return index


class _Index:
    """The log by market and kind of condition, so that the state at a time is a search in each. It never changes.

    With `before`, the events are those that follow it; what they are not about is shared with it.
    """

    def __init__(self, events: Sequence[Event], before: _Index | None = None) -> None:
        more = sorted(events, key=lambda event: event.at_us)
        self.events: list[Event] = [] if before is None else before.events
        self.lists: list[int] = [] if before is None else before.lists
        self.apart: dict[str, frozenset[str]] = {} if before is None else dict(before.apart)
        self.by_market: dict[str, _Fields] = {} if before is None else dict(before.by_market)
        self.listed_us: dict[str, int] = {} if before is None else dict(before.listed_us)
        self.renames: dict[str, Event] = {} if before is None else dict(before.renames)
        self.events = [*self.events, *more]
        self.newest_us = self.events[-1].at_us if self.events else 0
        lists = {event.at_us for event in more if event.market == _LISTS and event.kind == "list"}
        self.lists = sorted(lists.union(self.lists)) if lists else self.lists
        for market in {event.market for event in more}:
            known = self.by_market.get(market, {})
            self.by_market[market] = {field: (list(times), list(kept)) for field, (times, kept) in known.items()}
        self.first: frozenset[str] = _first_list(more) if before is None else before.first
        for event in more:
            if event.market != _LISTS:
                self._add(event)

    def _add(self, event: Event) -> None:
        field = _FIELD.get(event.kind)
        if field is not None:
            times, kept = self.by_market[event.market].setdefault(field, ([], []))
            times.append(event.at_us)
            kept.append(event)
        if event.kind == _LISTED:
            self.listed_us[event.market] = event.at_us
        elif event.kind == _RENAMED:
            self.renames[event.market] = event
        elif event.kind == _COMPARED:
            known = self.apart.get(event.market, frozenset())
            self.apart[event.market] = known.union(event.detail["differs"])

    def renamed(self, market: str) -> Rename | None:
        """The present name of a market, through all its names; None for a code that was listed again since."""
        found, name = None, market
        names = {market}
        while (event := self.renames.get(name)) is not None and event.at_us >= self.listed_us.get(name, 0):
            gone_us, name = self.seen(name, _DELISTED), str(event.detail["to"])
            if name in names:
                return None
            names.add(name)
            found = Rename(market, name, event.at_us if gone_us is None else gone_us)
        return found

    def present_name(self, market: str) -> str:
        rename = self.renamed(market)
        return market if rename is None else rename.new

    def seen(self, market: str, kind: str) -> int | None:
        """When its newest listing or delisting was seen, if that is what it was."""
        listing = _newest(self.by_market.get(market, {}), "listing", _EVER_US)
        return listing.at_us if listing is not None and listing.kind == kind else None

    def listed(self) -> list[str]:
        return [market for market in self.by_market if self.seen(market, _LISTED) is not None]

    def state(self, time_us: int) -> State:
        """The listed markets at a time, with what was said of them."""
        found: State = {}
        for market, fields in self.by_market.items():
            listing = _newest(fields, "listing", time_us)
            if listing is not None and listing.kind == _LISTED:
                found[market] = self._info(market, fields, listing, time_us)
        return found

    def _info(self, market: str, fields: Any, listing: Event, time_us: int) -> MarketInfo:
        names = _newest(fields, "names", time_us)
        said = listing if names is None or names.at_us < listing.at_us else names
        warning, cautions = _newest(fields, "warning", time_us), _newest(fields, "cautions", time_us)
        return MarketInfo(
            market,
            said.detail.get("korean_name", ""),
            said.detail.get("english_name", ""),
            bool(warning is not None and warning.detail["warning"]),
            tuple(cautions.detail["cautions"]) if cautions is not None else (),
        )

    def first_seen_after(self, time_us: int) -> State:
        """The markets whose first listing was recorded after a time."""
        later: State = {}
        for market, fields in self.by_market.items():
            times, events = fields.get("listing", ([], []))
            if times and times[0] > time_us and events[0].kind == _LISTED:
                later[market] = self._info(market, fields, events[0], times[0])
        return later


def _first_list(events: Sequence[Event]) -> frozenset[str]:
    """The markets of the first list of all: those listed before the second one came, be it within the same second."""
    lists, found = 0, set[str]()
    for event in events:
        lists += event.market == _LISTS and event.kind == "list"
        if lists > 1:
            break
        if event.kind == _LISTED:
            found.add(event.market)
    return frozenset(found)


def _newest(fields: _Fields, field: str, time_us: int) -> Event | None:
    if field not in fields:
        return None
    times, events = fields[field]
    at = bisect_right(times, time_us)
    return events[at - 1] if at else None


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


def _merged(said: Condition, before: Condition) -> Condition:
    state, day, is_suspended, warning = said
    return (
        before[0] if state is None else state,
        before[1] if day is None else day,
        before[2] if is_suspended is None else is_suspended,
        before[3] if warning is None else warning,
    )


def _said(event: Event) -> Condition:
    state, day, is_suspended, warning = (event.detail[name] for name in _CONDITION)
    return state, day, is_suspended, warning


def _is_ordinary(said: Condition) -> bool:
    """Whether nothing is told that is worth an event where nothing was before."""
    return all(value is None or value == usual for value, usual in zip(said, _ORDINARY, strict=True))


def _list_event(at_us: int, count: int, how: str, origin: dict[str, Any]) -> Event:
    return Event(at_us, _LISTS, "list", {"markets": count, **origin}, how)


def _second(time_us: int, zone: str) -> str:
    return f"{dt.datetime.fromtimestamp(time_us / 1e6, ZoneInfo(zone)):%Y-%m-%d %H:%M:%S}"


def _day(time_us: int) -> str:
    return f"{dt.datetime.fromtimestamp(time_us / 1e6, dt.UTC):%Y-%m-%d}"
