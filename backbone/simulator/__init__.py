"""An Upbit-speaking exchange inside the process: deterministic, on loopback, with scripted faults and its own clock.

`SimulatorServer` serves the venue's REST and WebSocket dialect. `Exchange` is the market behind it, without sockets.
`Faults` is the script of what goes wrong. Importing this package loads nothing heavy: names are resolved on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backbone.simulator.market.exchange import Exchange as Exchange
    from backbone.simulator.server.faults import Faults as Faults
    from backbone.simulator.server.http import SimulatorServer as SimulatorServer

_HOMES = {"Exchange": "market.exchange", "Faults": "server.faults", "SimulatorServer": "server.http"}

__all__ = ["Exchange", "Faults", "SimulatorServer"]


def __getattr__(name: str) -> Any:
    if home := _HOMES.get(name):
        return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
