"""The demo client: an embedded exchange on loopback with a fixed clock, and a store that goes with it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from backbone.api.times import parse_time
from backbone.clock import SystemClock, VenueClock

if TYPE_CHECKING:
    from backbone.api.client import Backbone

__all__ = ["DEMO_NOW", "start_demo"]

DEMO_NOW = "2025-08-22T09:00:00Z"
C = TypeVar("C", bound="Backbone")


def start_demo(cls: type[C], seed: int, now: str | None, settings: dict[str, Any]) -> C:
    """See `Backbone.demo`."""
    from backbone.simulator import SimulatorServer

    frozen_us = parse_time("now", now or DEMO_NOW, "UTC", SystemClock().now_us)
    server = SimulatorServer(seed=seed, now=frozen_us, frozen=True).start()
    folder = None
    try:
        if settings.get("data_dir") is None:
            folder = tempfile.mkdtemp(prefix="backbone-demo-")
            settings = {**settings, "data_dir": folder}
        client = cls(**{"rest_url": server.rest_url, "ws_url": server.ws_url, **settings})
    except BaseException:
        server.close()
        raise
    client._with_me.append(server.close)
    if folder is not None:
        client._with_me.append(lambda: shutil.rmtree(folder, ignore_errors=True))
    client._venue = _OwnClock(server.clock.now_us)
    return client


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
