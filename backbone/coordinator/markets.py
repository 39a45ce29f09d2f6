"""The market list: who is listed, by quote currency, and what a code is that the venue does not list.

The list is asked when it is needed and kept in memory; `known` and `known_codes` make no request.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from backbone.clock import Clock
from backbone.coordinator.market_log import Rename
from backbone.errors import BackboneError, InputError, PayloadError
from backbone.model import MarketInfo, Priority
from backbone.routing.rest import Reply
from backbone.routing.wire import Ask, markets_ask

__all__ = ["Markets", "unknown_market"]

_log = logging.getLogger("backbone.fetch")

_REPLIES = 4  # after so many that do not agree it is given up
_YOUNG_S = 10.0  # a market may have been listed since: after this, an unknown code is worth one request


@dataclass(frozen=True)
class _List:
    """A market list as it counts after a reply: what only this reply lacks is in it, and not confirmed to be gone."""

    markets: tuple[MarketInfo, ...] = ()
    doubted: frozenset[str] = frozenset()
    is_confirmed: bool = False
    was_confirmed: bool = False  # it, or an earlier one

    @cached_property
    def codes(self) -> frozenset[str]:
        return frozenset(info.market for info in self.markets)

    @cached_property
    def by_quote(self) -> dict[str, tuple[str, ...]]:
        """The codes of each quote currency, in the venue's order."""
        found: dict[str, list[str]] = {}
        for info in self.markets:
            found.setdefault(info.market.partition("-")[0], []).append(info.market)
        return {quote: tuple(codes) for quote, codes in found.items()}

    def followed_by(self, listed: tuple[MarketInfo, ...], recorded: tuple[MarketInfo, ...]) -> _List:
        """The list after another reply; `recorded` is compared with the first one."""
        before = recorded if self is _NONE else self.markets
        if not before:
            return _List(listed)
        lacking = frozenset(info.market for info in before).difference(info.market for info in listed)
        doubted = lacking - self.doubted
        kept = tuple(info for info in before if info.market in doubted)
        return _List(listed + kept, doubted, not doubted, self.was_confirmed or not doubted)


_NONE = _List()


class Markets:
    """The venue's market list. Thread-safe.

    A market that one list lacks is gone only once the next list lacks it too. The first list is compared with what was
    recorded of earlier ones; where nothing was recorded, a second list has to confirm it. That a market is listed needs
    no second list.

    Parameters
    ----------
    request : sends one request and waits for its reply.
    fresh_s : how long a list is used before it is asked again.
    stored : the markets of which something is stored.
    recorded : the newest list that was recorded, by whomever; empty where none was.
    record : takes each list that is confirmed.
    renamed : what a market that is not listed is called now; without a priority it makes no request.
    """

    def __init__(
        self,
        request: Callable[[Ask, Priority], Reply],
        clock: Clock,
        *,
        fresh_s: float,
        stored: Callable[[], Iterable[str]],
        recorded: Callable[[], Sequence[MarketInfo]] = tuple,
        record: Callable[[tuple[MarketInfo, ...]], None] | None = None,
        renamed: Callable[[str, Priority | None], Rename | None] = lambda _market, _priority: None,
    ) -> None:
        self._request = request
        self._clock = clock
        self._fresh_s = fresh_s
        self._stored = stored
        self._renamed = renamed
        self._recorded = recorded
        self._record = record
        self._lock = threading.Lock()  # held while a reply is taken
        self._list = _NONE
        self._newest: tuple[MarketInfo, ...] | None = None  # reply
        self._at_s = float("-inf")  # when it came

    def listed(self, *, fresh: bool = False, priority: Priority = Priority.HIGH) -> tuple[MarketInfo, ...]:
        """The market list, from memory while it is young enough. Raises the error tree."""
        if self._list.is_confirmed and not fresh and self._age_s < self._fresh_s:
            return self._list.markets
        return self._ask(priority)

    @property
    def _age_s(self) -> float:
        return self._clock.monotonic() - self._at_s

    def request(self, priority: Priority = Priority.HIGH) -> None:
        """One request for the list, whatever it says: a small one whose reply carries the venue's time."""
        self.note(self._request(markets_ask(), priority).value)

    def _ask(self, priority: Priority, until: Collection[str] | None = None) -> tuple[MarketInfo, ...]:
        return self.confirm(lambda: self._request(markets_ask(), priority).value, until)

    def confirm(
        self, ask: Callable[[], tuple[MarketInfo, ...]], until: Collection[str] | None = None
    ) -> tuple[MarketInfo, ...]:
        """The list, with `ask` called until it is confirmed, or until it has the markets `until`."""
        for _ in range(_REPLIES):
            known, is_confirmed = self.note(ask())
            if is_confirmed or (until is not None and {info.market for info in known}.issuperset(until)):
                return known
        raise PayloadError(f"market list: {_REPLIES} replies each lack markets that another has; ask again later")

    def note(self, listed: tuple[MarketInfo, ...]) -> tuple[tuple[MarketInfo, ...], bool]:
        """Take the list of one reply. Returns the list as it now counts, and whether that is confirmed."""
        recorded = tuple(self._recorded()) if self._list is _NONE else ()
        with self._lock:
            if listed is not self._newest:  # a reply that two asked for counts once
                self._newest = listed
                self._list = self._list.followed_by(listed, recorded)
            self._at_s = self._clock.monotonic()  # after it: readers take no lock, and an old list is never young
            known = self._list
        if known.is_confirmed and self._record is not None:
            self._record(known.markets)
        return known.markets, known.is_confirmed

    def codes(self, quote: str, priority: Priority = Priority.HIGH) -> tuple[str, ...]:
        """The markets priced in `quote`, in the venue's order; empty where the venue has no such quote currency."""
        self.listed(priority=priority)
        return self.known_codes(quote)

    def all_codes(
        self, *, fresh: bool = False, priority: Priority = Priority.HIGH, until: Collection[str] = ()
    ) -> frozenset[str]:
        """Every code of the list. With `until`, markets that another reply has just named, a fresh list is requested,
        and counts at once if it has them all: the two replies confirm each other."""
        if until:
            self._ask(priority, until)
        else:
            self.listed(fresh=fresh, priority=priority)
        return self._list.codes

    @property
    def known(self) -> tuple[MarketInfo, ...] | None:
        """The newest list, confirmed or not: every market in it is listed. None before the first."""
        return None if self._list is _NONE else self._list.markets

    @property
    def confirmed(self) -> tuple[MarketInfo, ...] | None:
        """The newest list, None before any was confirmed: a market that it lacks is not listed."""
        return self._list.markets if self._list.was_confirmed else None

    def known_codes(self, quote: str) -> tuple[str, ...]:
        """The markets of `confirmed` that are priced in `quote`. Makes no request."""
        return self._list.by_quote.get(quote, ()) if self._list.was_confirmed else ()

    def check_listed(self, markets: Sequence[str], priority: Priority = Priority.HIGH) -> None:
        """Raise `InputError`, naming the nearest ones, for a market that the venue does not list.

        A known list is used for what it has (a delisting shows as a refusal), and for what it lacks only while it is
        very young.
        """
        if self._list.codes.issuperset(markets):
            return
        codes = self.recent_codes(priority, markets)
        for market in markets:
            if market not in codes:
                raise self.unknown(market, priority)

    def check_at_hand(self, markets: Sequence[str], priority: Priority = Priority.HIGH) -> None:
        """`check_listed` where a list is known; without one the reply itself will say, and nobody waits for a list."""
        if self.known is not None:
            self.check_listed(markets, priority)

    def check_known(self, markets: Sequence[str]) -> None:
        """Raise `InputError` for a market that a known list lacks and nothing is stored of. Makes no request: without a
        list every market passes."""
        known = self._list
        if not known.was_confirmed or known.codes.issuperset(markets):
            return
        stored = set(self._stored())
        for market in markets:
            if market not in known.codes and market not in stored:
                raise self.unknown(market, None)

    def unknown(self, market: str, priority: Priority | None) -> InputError:
        """The error for a market that is not listed, which names what it is called now; see `renamed`."""
        rename = self.renamed(market, priority)
        if rename is not None:
            return InputError("market", market, str(rename))
        return unknown_market(market, self._list.codes)

    def renamed(self, market: str, priority: Priority | None) -> Rename | None:
        """What a market is called now, if it has another name. Without a `priority` it makes no request; with one, a
        list is asked for where none is very young."""
        if priority is not None:
            try:
                if market in self.recent_codes(priority):  # the venue said since that it is not
                    self.all_codes(fresh=True, priority=priority)
            except BackboneError as exc:  # the name only adds to another error
                _log.info("renames.unknown market=%s why=%s", market, exc)
                priority = None
        return self._renamed(market, priority)

    def recent_codes(self, priority: Priority, until: Collection[str] | None = None) -> frozenset[str]:
        """Every code of a list of the last seconds, which decides whether a market is not listed. A list that has the
        markets `until` need not be confirmed."""
        if self._list.is_confirmed and self._age_s <= _YOUNG_S:
            return self._list.codes
        return frozenset(info.market for info in self._ask(priority, until))


def unknown_market(market: str, codes: Collection[str]) -> InputError:
    """The `InputError` for a market that is not listed."""
    import difflib

    close = difflib.get_close_matches(market, sorted(codes), n=8, cutoff=0.5)
    nearest = sorted(close, key=lambda code: not code.startswith(market[:-1]))[:3]  # the last letter is soonest wrong
    base = market.partition("-")[2]
    same_base = sorted(code for code in codes if code.partition("-")[2] == base)
    hints = list(dict.fromkeys(same_base[:3] + nearest))[:4]
    allowed = "a market the venue lists" + (f"; the nearest: {', '.join(hints)}" if hints else "")
    return InputError("market", market, allowed)
