"""Where each exchange answers, and what is a fact of each: one frozen record a venue, pure data.

All four speak one dialect; markets and books are separate. What the regional ones lack, `wire` treats as optional:
their market rows carry ``market_warning`` in place of ``market_event`` and no Korean name, their books have no
``level`` (and the parameter is refused), instruments may lack ``supported_levels``, and no row has Korean times.

The fields with a default are facts of the dialect, so `Venue.candle_page` may also be read from the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from backbone.errors import InputError

__all__ = ["VENUES", "ArchiveHosts", "Retention", "Venue", "parse_exchange"]


class Retention(NamedTuple):
    """How long a venue serves its candles of one length.

    ``sure_days`` is the shortest that "three months" can be: an empty reply about a time before it may mean that the
    venue has forgotten its candles, and proves nothing.
    """

    days: int
    sure_days: int


class ArchiveHosts(NamedTuple):
    """The bulk archive: where its files are, where they are listed, and where its terms stand."""

    file_url: str
    list_url: str
    terms_url: str


@dataclass(frozen=True)
class Venue:
    """One exchange: ``rest_url`` without the version, ``ws_url`` complete, ``home`` a bare ``"BTC"``'s currency."""

    exchange: str
    rest_url: str
    ws_url: str
    home: str

    has_levels: bool = False
    """Whether books can be grouped by price levels."""

    archive: ArchiveHosts | None = None
    """Its bulk archive of candles, if it has one."""

    groups: tuple[str, ...] = ("market", "candles", "crix-trades", "ticker", "orderbook")
    """Rate groups as the wire names them (the venue's documentation has other names)."""

    requests_per_s: int = 10
    """The legal rate: requests of one group and one address in a second."""

    pace_per_s: float = 9.7
    """What paced work reaches of it, measured on the embedded exchange: the base of every estimate."""

    candle_page: int = 200
    """Most candles of one reply; the venue cuts a larger count without an error."""

    trades_page: int = 500
    """Most trades of one reply."""

    book_levels: int = 30
    """Most levels of a book."""

    book_depths: tuple[int, ...] = (1, 5, 15, 30)
    """Depths in which the socket sends a book; it takes any other for 30."""

    timeframes: tuple[str, ...] = ("1s", "1m", "3m", "5m", "10m", "15m", "30m", "1h", "4h", "1d", "1w", "1M", "1y")
    """Candle lengths it serves. Days open at 00:00 UTC, weeks on Monday, months on the 1st, years on 1 January."""

    streamed: tuple[str, ...] = ("1s", "1m", "3m", "5m", "10m", "15m", "30m", "1h", "4h")
    """Candle lengths that the socket has."""

    sums_since_us: int = 1_664_582_400_000_000
    """2022-10-01 UTC: candles that open from then on are the sums of their shorter ones; earlier ones are not."""

    candles_kept: tuple[tuple[str, Retention], ...] = (("1s", Retention(days=92, sure_days=89)),)
    """Candle lengths that are not served for ever: 1-second candles for three months."""

    trades_kept_days: int = 7
    """UTC days before today whose trades are served."""

    def retention(self, timeframe: str) -> Retention | None:
        """How long candles of `timeframe` are served; None: for ever."""
        return dict(self.candles_kept).get(timeframe)


def _venue(exchange: str, host: str, home: str, *, archive: ArchiveHosts | None = None, levels: bool = False) -> Venue:
    return Venue(exchange, f"https://{host}", f"wss://{host}/websocket/v1", home, has_levels=levels, archive=archive)


_ARCHIVE = ArchiveHosts(
    "https://crix-data.upbit.com", "https://crix-data-api.upbit.com", "https://www.upbit.com/historical_data/main"
)

VENUES: dict[str, Venue] = {
    venue.exchange: venue
    for venue in (
        _venue("upbit", "api.upbit.com", "KRW", archive=_ARCHIVE, levels=True),
        _venue("upbit-sg", "sg-api.upbit.com", "SGD"),
        _venue("upbit-id", "id-api.upbit.com", "IDR"),
        _venue("upbit-th", "th-api.upbit.com", "THB"),
    )
}


def parse_exchange(value: object) -> Venue:
    """The venue of a name; raises `InputError` for an unknown one."""
    venue = VENUES.get(value.strip().lower()) if isinstance(value, str) else None
    if venue is None:
        raise InputError("exchange", value, "one of " + " ".join(VENUES))
    return venue
