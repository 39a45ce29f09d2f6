"""Where each exchange answers, and how the exchanges differ.

All four speak one dialect; markets and books are separate. What the regional ones lack, `wire` treats as
optional everywhere, so nothing but the addresses has to be chosen: their market rows carry
``market_warning`` in place of ``market_event`` and no Korean name, their books have no ``level`` (and the
parameter is refused), instruments may lack ``supported_levels``, and no row has Korean times. Pure data.
"""

from __future__ import annotations

from dataclasses import dataclass

from backbone.errors import InputError

__all__ = ["VENUES", "Venue", "parse_exchange"]


@dataclass(frozen=True)
class Venue:
    """One exchange: ``rest_url`` without the version, ``ws_url`` complete, whether books can be grouped."""

    exchange: str
    rest_url: str
    ws_url: str
    has_levels: bool


def _venue(exchange: str, host: str) -> Venue:
    return Venue(exchange, f"https://{host}", f"wss://{host}/websocket/v1", has_levels=exchange == "upbit")


VENUES: dict[str, Venue] = {
    venue.exchange: venue
    for venue in (
        _venue("upbit", "api.upbit.com"),
        _venue("upbit-sg", "sg-api.upbit.com"),
        _venue("upbit-id", "id-api.upbit.com"),
        _venue("upbit-th", "th-api.upbit.com"),
    )
}


def parse_exchange(value: object) -> Venue:
    """The venue of a name; raises `InputError` for an unknown one."""
    venue = VENUES.get(value.strip().lower()) if isinstance(value, str) else None
    if venue is None:
        raise InputError("exchange", value, "one of " + " ".join(VENUES))
    return venue
