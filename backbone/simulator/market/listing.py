"""Which markets are listed, under which code, and what a script changed about them.

Scripted changes are listing, delisting, renaming, redenominating, restating, and what is said of a market (names,
warning, cautions, state). The lock guards the list and the corrections.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from backbone.errors import InputError
from backbone.model import Span
from backbone.simulator.market.catalogue import CAUTIONS, Market, rescaled

__all__ = ["MarketList", "Restatement", "UnknownMarketError"]

Row = dict[str, Any]


class UnknownMarketError(InputError):
    """A code that is not listed (now). The wire form is 404 ``Code not found``."""

    def __init__(self, code: str) -> None:
        super().__init__("market", code, "one of the exchange's markets")


@dataclass(frozen=True)
class Restatement:
    """A scripted correction: the opens of the candles inside `span` move by `shift`, a fraction of the open."""

    market: str
    span: Span
    shift: float


class MarketList:
    """The markets of an exchange. Safe to share between threads."""

    def __init__(self, markets: Mapping[str, Market]) -> None:
        self._lock = threading.Lock()
        self._listed = dict(markets)
        self._restated: tuple[Restatement, ...] = ()
        self.edition = 0
        """Another number after each correction of past candles."""

    def listed(self, now_us: int | None = None) -> dict[str, Market]:
        """The markets by code; with `now_us`, only those that are listed by then."""
        with self._lock:
            listed = self._listed
        return {code: m for code, m in listed.items() if now_us is None or _is_listed(m, now_us)}

    def market(self, code: str, now_us: int | None = None) -> Market:
        """One listed market; lower case is accepted. Raises `UnknownMarketError`."""
        with self._lock:
            found = self._listed.get(code.upper())
        if found is None or (now_us is not None and not _is_listed(found, now_us)):
            raise UnknownMarketError(code)
        return found

    def list_market(self, code: str, at_us: int) -> Market:
        """A market that was not listed is from `at_us` on; its first trade is then."""
        raise NotImplementedError

    def _add(self, market: Market) -> Market:
        with self._lock:
            if market.code in self._listed:
                raise InputError("market", market.code, "a code that is not listed")
            self._listed = self._listed | {market.code: market}
        return market

    def delist(self, code: str, at_us: int | None = None) -> None:
        """The market vanishes, with its history: at once, or at `at_us`, which the stream announces until then."""
        market = self.market(code)
        self._put(market.code, None if at_us is None else replace(market, delisted_us=at_us))

    def _put(self, code: str, market: Market | None) -> None:
        """Put a market in the place of the one with this code; None takes that away."""
        with self._lock:
            places = {old: market if old == code else one for old, one in self._listed.items()}
            self._listed = {one.code: one for one in places.values() if one is not None}

    def describe(self, code: str, **changes: Any) -> None:
        """What is said of a market: any of `korean_name english_name warning cautions state suspended`."""
        wrong = changes.keys() - {"korean_name", "english_name", "warning", "cautions", "state", "suspended"}
        if wrong or not set(changes.get("cautions", ())) <= set(CAUTIONS):
            raise InputError("describe", changes, "names, warning, state, suspended, cautions of " + " ".join(CAUTIONS))
        market = self.market(code)
        self._put(market.code, replace(market, **changes))

    def rescale(self, code: str, factor: object) -> None:
        """A redenomination: the whole history's prices times `factor`, its volumes divided by it."""
        market = self.market(code)
        self._put(market.code, rescaled(market, factor))
        with self._lock:
            self.edition += 1

    def rename(self, code: str, to: str) -> None:
        """The market's history moves to a new code; the old one is unknown from now on."""
        market = self.market(code)
        self._put(market.code, replace(market, code=to))

    def restate(self, code: str, span: Span, shift: float = 0.0005) -> None:
        """The venue corrects history: opens inside `span` move by the fraction `shift`, within the range."""
        market = self.market(code)
        with self._lock:
            self._restated = (*self._restated, Restatement(market.history, span, shift))
            self.edition += 1

    def markets(self, details: bool = True, now_us: int | None = None) -> list[Row]:
        """The rows of ``market/all``; with `now_us`, of the markets listed by then."""
        rows: list[Row] = []
        for market in self.listed(now_us).values():
            row: Row = {
                "market": market.code, "korean_name": market.korean_name, "english_name": market.english_name
            }  # fmt: skip
            if details:
                caution = {name: name in market.cautions for name in CAUTIONS}
                row["market_event"] = {"warning": market.warning, "caution": caution}
            rows.append(row)
        return rows


def _is_listed(market: Market, now_us: int) -> bool:
    return market.listed_us <= now_us and (market.delisted_us is None or now_us < market.delisted_us)
