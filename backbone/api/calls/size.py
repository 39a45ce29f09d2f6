"""How big it gets and how long it takes, before it is fetched: rows, gigabytes, requests and hours.

Everything that can be measured is: bytes a candle and the share of slots that trade come from the files that the store
already has of these markets; the beginning of each market's history from what is proven of it (`probe` asks the venue
for it, one request a market). What was never measured is a constant, measured once on recorded data and on the embedded
exchange, and named as assumed. Nothing is fetched but the market list, and that only for a quote currency.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from backbone.api.arguments import TimeLike, in_zone, parse_whole
from backbone.api.session import Session
from backbone.coordinator.candles.ranges import Range
from backbone.coordinator.coordinator import Coordinator
from backbone.errors import InputError
from backbone.model import Priority, Span
from backbone.timeframe import DAY_US, TIMEFRAMES, Timeframe, parse_timeframe
from backbone.venues import Venue

__all__ = ["Sizing", "size"]

BYTES_A_CANDLE = 24.0
"""Recorded minutes of the majors take 21 to 23 bytes in the store, of thin coins 27, hours 25."""
BYTES_A_DAY_CANDLE = 30.0
"""Days and longer: fewer rows share a file."""
FIRST_DAY_US = 1_506_297_600_000_000
"""2017-09-25: no market of the venue has an older candle."""
ARCHIVE_FILES_PER_S = 4.0
"""Archive files a second: two requests each, a sample page and reading it, measured on the embedded exchange."""
_FILES_LOOKED_AT = 24  # a market's newest files say enough about its density
_ARCHIVED = ("1m", "3m", "5m", "10m", "15m", "30m", "1h")  # below, a month is a page or two
_MONTH = TIMEFRAMES["1M"]


@dataclass(frozen=True)
class Sizing:
    """What a span of many markets takes. ``hours`` has a row for each source and number of addresses.

    ``assumed`` names what could not be measured.
    """

    markets: int
    timeframe: str
    start: Any
    end: Any
    rows: int
    gigabytes: float
    requests: int
    archive_files: int
    bytes_a_candle: float
    density: float
    hours: tuple[tuple[str, int, int, float], ...]
    assumed: tuple[str, ...]

    def frame(self) -> Any:
        """The hours as a pandas frame: ``source addresses requests hours``."""
        import pandas as pd

        return pd.DataFrame(list(self.hours), columns=["source", "addresses", "requests", "hours"])

    def __repr__(self) -> str:
        lines = [
            f"{self.markets} markets of {self.timeframe}, {self.start:%Y-%m-%d} to {self.end:%Y-%m-%d}:",
            f"  {self.rows:,} candles (traded share {self.density:.2f}), {self.gigabytes:,.2f} GB "
            f"at {self.bytes_a_candle:.1f} bytes each",
        ]
        for source, addresses, requests, hours in self.hours:
            who = "1 address" if addresses == 1 else f"{addresses} addresses"
            lines.append(f"  {source:9}{who:>12}: {requests:>10,} requests, {_duration(hours)}")
        if self.assumed:
            lines.append("  assumed, not measured: " + "; ".join(self.assumed))
        return "\n".join(lines)

    __str__ = __repr__  # a text of its own, not its fields


@dataclass(frozen=True)
class _Share:
    """One market's part."""

    rows: int
    pages: int
    files: int
    tail_pages: int


def size(
    session: Session,
    markets: str | Iterable[str],
    timeframe: str,
    since: TimeLike,
    until: TimeLike | None,
    *,
    probe: bool,
    addresses: Sequence[int],
) -> Sizing:
    """See `Backbone.size`."""
    shown = parse_timeframe(timeframe, derived=True)
    tf = shown.base or shown  # what is fetched and kept, and folded at each call
    hosts = _addresses(addresses)
    core = session.coordinator()
    codes = session.markets_of(markets)
    core.markets.check_known(codes)
    start = max(FIRST_DAY_US, tf.ceil(session.time("since", since)))
    end = core.reader.closed_before(tf) if until is None else tf.ceil(session.time("until", until))
    if start > end:
        raise InputError("since", since, "a time before the end")
    if probe:
        core.ranges.collect(codes, _MONTH, Range(start, end, None), Priority.LOW)
    assumed: list[str] = []
    weight, density = _measured(core, codes, tf, assumed)
    begins = [core.reader.listed_from(code, _MONTH) or core.reader.listed_from(code, tf) for code in codes]
    if None in begins:
        unknown = sum(1 for begin in begins if begin is None)
        some = "1 market reaches" if unknown == 1 else f"{unknown} markets reach"
        assumed.append(f"{some} back to the start (probe finds out, one request each)")
    shares = [_share(tf, Span(max(start, begin or start), end), density) for begin in begins]
    rows = sum(share.rows for share in shares)
    return Sizing(
        markets=len(codes),
        timeframe=shown.name if shown is tf else f"{shown} (of {tf})",
        start=in_zone(start, session.tz),
        end=in_zone(end, session.tz),
        rows=rows,
        gigabytes=rows * weight / 1e9,
        requests=sum(share.pages for share in shares),
        archive_files=sum(share.files for share in shares),
        bytes_a_candle=weight,
        density=density,
        hours=tuple(_hours(shares, hosts)),
        assumed=tuple(assumed),
    )


def _addresses(value: Sequence[int]) -> list[int]:
    found = {parse_whole("addresses", number) for number in value} if isinstance(value, Iterable) else ()
    if not found:
        raise InputError("addresses", value, "whole numbers, 1 or more")
    return sorted(found)


def _measured(core: Coordinator, codes: Sequence[str], tf: Timeframe, assumed: list[str]) -> tuple[float, float]:
    """Bytes a candle and the traded share of slots, from the files there are."""
    stored = {market for market, held in core.store.series() if held == tf}
    weighed = [core.store.weigh(code, tf, _FILES_LOOKED_AT) for code in codes if code in stored]
    rows, held_bytes, slots = (sum(part) for part in zip(*weighed, strict=True)) if weighed else (0, 0, 0)
    if rows < 1000 or slots < 1000:
        weight = BYTES_A_DAY_CANDLE if tf.step_us >= DAY_US else BYTES_A_CANDLE
        assumed.append(f"{weight:g} bytes a candle, and one in every slot (the store has too few of them to measure)")
        return weight, 1.0
    if len(weighed) < len(codes):
        assumed.append(f"{len(codes) - len(weighed)} markets are like the {len(weighed)} in the store")
    return held_bytes / rows, min(1.0, rows / slots)


def _share(tf: Timeframe, span: Span, density: float) -> _Share:
    span = Span(min(span.start, span.end), span.end)
    slots = tf.count(span)
    rows = round(slots * density)
    months = 0
    tail = slots
    if tf.name in _ARCHIVED:
        whole = Span(_MONTH.ceil(span.start), _MONTH.floor(span.end))
        if whole.start < whole.end:
            months = _MONTH.count(whole)
            tail = slots - tf.count(whole)
    pages = math.ceil(rows / Venue.candle_page) + 1 if slots else 0
    return _Share(rows, pages, months, math.ceil(tail * density / Venue.candle_page))


def _hours(shares: Sequence[_Share], addresses: Sequence[int]) -> Iterable[tuple[str, int, int, float]]:
    """A whole market goes to one address, so the largest one is a floor."""
    rest = [share.pages / Venue.pace_per_s for share in shares]
    yield from (("rest", n, sum(s.pages for s in shares), _spread(rest, n)) for n in addresses)
    if any(share.files for share in shares):
        archive = [max(s.files / ARCHIVE_FILES_PER_S, (s.files + s.tail_pages) / Venue.pace_per_s) for s in shares]
        requests = sum(3 * share.files + share.tail_pages for share in shares)
        yield from (("archive", n, requests, _spread(archive, n)) for n in addresses)


def _spread(seconds: Sequence[float], addresses: int) -> float:
    return max(sum(seconds) / addresses, max(seconds, default=0.0)) / 3600


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{hours * 60:.1f} minutes" if hours >= 1 / 60 else f"{hours * 3600:.0f} seconds"
