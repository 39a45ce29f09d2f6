"""The market list: who is listed, by quote currency, and what a code is that the venue does not list.

The list is asked when it is needed and kept in memory; `known` and `known_codes` make no request.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Sequence

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


class Markets:
    """The venue's market list. Thread-safe.

    A list that lacks markets is not believed alone: they are gone once the next list lacks them too. The first list is
    compared with what was recorded of earlier ones; where nothing was, a second list has to confirm it. That a market
    is listed needs no second list.

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
        self._lock = threading.Lock()  # guards all below
        self._list: tuple[MarketInfo, ...] | None = None  # with what only the newest reply lacks
        self._newest: tuple[MarketInfo, ...] | None = None  # reply
        self._lacking: frozenset[str] = frozenset()  # in the newest reply
        self._is_confirmed = False
        self._was_confirmed = False
        self._at_s = 0.0
        self._codes = _Codes(())

    def listed(self, *, fresh: bool = False, priority: Priority = Priority.HIGH) -> tuple[MarketInfo, ...]:
        """The market list, from memory while it is young enough. Raises the error tree."""
        with self._lock:
            known, age_s = self._list, self._clock.monotonic() - self._at_s
            is_usable = self._is_confirmed and age_s < self._fresh_s
        if known is not None and is_usable and not fresh:
            return known
        return self._ask(priority)

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
        with self._lock:
            is_first = self._list is None
        recorded = tuple(self._recorded()) if is_first else ()
        with self._lock:
            self._at_s = self._clock.monotonic()
            if listed is not self._newest:  # a reply that two asked for counts once
                self._newest = listed
                self._take_locked(listed, recorded)
            known, is_confirmed = self._list or listed, self._is_confirmed
        if is_confirmed and self._record is not None:
            self._record(known)
        return known, is_confirmed

    def _take_locked(self, listed: tuple[MarketInfo, ...], recorded: tuple[MarketInfo, ...]) -> None:
        before = recorded if self._list is None else self._list
        if not before:
            self._list = listed
            return
        lacking = frozenset(info.market for info in before).difference(info.market for info in listed)
        doubted = lacking - self._lacking
        self._list = listed + tuple(info for info in before if info.market in doubted)
        self._lacking = doubted
        self._is_confirmed = not doubted
        self._was_confirmed = self._was_confirmed or self._is_confirmed

    def codes(self, quote: str, priority: Priority = Priority.HIGH) -> tuple[str, ...]:
        """The markets priced in `quote`, in the venue's order; empty where the venue has no such quote currency."""
        self.listed(priority=priority)
        return self.known_codes(quote)

    def all_codes(
        self, *, fresh: bool = False, priority: Priority = Priority.HIGH, until: Collection[str] = ()
    ) -> frozenset[str]:
        """Every code of the list; of a fresh one that need not be confirmed, where it has the markets `until`, which
        another reply has just named: the two are each other's witness."""
        if until:
            self._ask(priority, until)
        else:
            self.listed(fresh=fresh, priority=priority)
        with self._lock:
            return self._codes_locked().all

    @property
    def known(self) -> tuple[MarketInfo, ...] | None:
        """The list as far as one came, be it not confirmed: what it has is listed."""
        with self._lock:
            return self._list

    @property
    def confirmed(self) -> tuple[MarketInfo, ...] | None:
        """The list if one was ever confirmed: what it lacks is not listed."""
        with self._lock:
            return self._list if self._was_confirmed else None

    def known_codes(self, quote: str) -> tuple[str, ...]:
        """The markets priced in `quote` of the list if one was ever confirmed."""
        with self._lock:
            return self._codes_locked().by_quote.get(quote, ()) if self._was_confirmed else ()

    def check_listed(self, markets: Sequence[str], priority: Priority = Priority.HIGH) -> None:
        """Raise `InputError`, naming the nearest ones, for a market that the venue does not list.

        A known list is used for what it has (a delisting shows as a refusal), and for what it lacks only while it is
        very young.
        """
        with self._lock:
            codes = self._codes_locked().all
        if codes.issuperset(markets):
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
        with self._lock:
            is_known, codes = self._was_confirmed, self._codes_locked().all
        if not is_known or codes.issuperset(markets):
            return
        stored = set(self._stored())
        for market in markets:
            if market not in codes and market not in stored:
                raise self.unknown(market, None)

    def unknown(self, market: str, priority: Priority | None) -> InputError:
        """The error for a market that is not listed, which names what it is called now; see `renamed`."""
        rename = self.renamed(market, priority)
        with self._lock:
            codes = self._codes_locked().all
        return unknown_market(market, codes) if rename is None else InputError("market", market, str(rename))

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
        """Every code of a list that is very young: to be asked once something is said not to be listed. A list that
        has the markets `until` need not be confirmed."""
        with self._lock:
            is_young = self._is_confirmed and self._clock.monotonic() - self._at_s <= _YOUNG_S
            codes = self._codes_locked().all
        return codes if is_young else frozenset(info.market for info in self._ask(priority, until))

    def _codes_locked(self) -> _Codes:
        """The codes of the known list; ordered once a list, because nearly every call asks."""
        listed = self._list or ()
        if self._codes.listed is not listed:
            self._codes = _Codes(listed)
        return self._codes


class _Codes:
    """What a market list holds: all its codes, and those of each quote currency in the venue's order."""

    def __init__(self, listed: tuple[MarketInfo, ...]) -> None:
        self.listed = listed
        self.all = frozenset(info.market for info in listed)
        by_quote: dict[str, list[str]] = {}
        for info in listed:
            by_quote.setdefault(info.market.partition("-")[0], []).append(info.market)
        self.by_quote = {quote: tuple(codes) for quote, codes in by_quote.items()}


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
