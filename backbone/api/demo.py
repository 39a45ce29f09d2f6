"""The demo client: an embedded exchange on loopback with a fixed clock, and a store that goes with it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from backbone.api.arguments import parse_time
from backbone.clock import SystemClock, VenueClock
from backbone.errors import InputError

if TYPE_CHECKING:
    from backbone.simulator import SimulatorServer

__all__ = ["DEMO_NOW", "DEMO_SEED", "start_demo"]

DEMO_SEED = 7
DEMO_NOW = "2025-08-22T09:00:00Z"


def start_demo(
    seed: int, now: str | None, server: SimulatorServer | None, settings: dict[str, Any]
) -> tuple[dict[str, Any], VenueClock, list[Callable[[], None]]]:
    """What a demo client is made with, whose clock it goes by, and what ends with it. See `Backbone.demo`."""
    ending: list[Callable[[], None]] = []
    if server is None:
        server = _start_server(seed, now)
        ending.append(server.close)
    else:
        _check_own(seed, now, server)
        server.start()
    if settings.get("data_dir") is None:
        folder = tempfile.mkdtemp(prefix="backbone-demo-")
        ending.append(lambda: shutil.rmtree(folder, ignore_errors=True))
        settings = {**settings, "data_dir": folder}
    words = {"rest_url": server.rest_url, "ws_url": server.ws_url, **settings}
    return words, _OwnClock(server.clock.now_us), ending


def _start_server(seed: int, now: str | None) -> SimulatorServer:
    from backbone.simulator import SimulatorServer

    frozen_us = parse_time("now", now or DEMO_NOW, "UTC", SystemClock().now_us)
    return SimulatorServer(seed=seed, now=frozen_us, frozen=True).start()


def _check_own(seed: int, now: str | None, server: object) -> None:
    from backbone.simulator import SimulatorServer

    if not isinstance(server, SimulatorServer):
        raise InputError("server", server, "a backbone.simulator.SimulatorServer")
    if seed != DEMO_SEED or now is not None:
        raise InputError("server", server, "a server of your own, which has a seed and a clock, or seed and now")


class _OwnClock(VenueClock):
    """The exchange's own clock, which stands still or is moved by hand: an estimate would run on."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        super().__init__(SystemClock())
        self._now_us = now_us

    @property
    def is_known(self) -> bool:
        return True

    def now_us(self) -> int:
        return self._now_us()

    def offset_s(self) -> float | None:
        """None: it is not this machine's time, and should not be."""
        return None
