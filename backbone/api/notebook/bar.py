"""A progress bar on the caller's own thread: quiet for two seconds, and only where somebody can see it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import signature
from typing import Any

from backbone.api.arguments import in_zone
from backbone.clock import Clock
from backbone.coordinator.candles.pending import Progress

__all__ = ["Bar", "is_watched"]

QUIET_S = 2.0


def is_watched() -> bool:
    """Whether somebody can see a bar: a terminal, or a notebook."""
    if "ipykernel" in sys.modules:
        return True
    return bool(getattr(sys.stderr, "isatty", lambda: False)())


class Bar:
    """Feeds `tqdm` (or the caller's own function) with `Progress`; used as a context manager.

    `show`: True always, False never, None when it is watched and takes longer than two seconds, or a callable that
    gets each `Progress`.
    """

    def __init__(
        self,
        show: bool | Callable[[Progress], None] | None,
        *,
        label: str,
        zone: str,
        clock: Clock,
        read: Callable[[], Progress],
    ) -> None:
        self._call = show if callable(show) else None
        self._wanted = show is True or (show is None and is_watched())
        self._after_s = 0.0 if show is True else QUIET_S
        self._label, self._zone, self._clock, self._read = label, zone, clock, read
        self._began_s = clock.monotonic()
        self._at_first: int | None = None  # slots done before this began: they say nothing of its rate
        self._bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def update(self) -> None:
        """Show where things stand."""
        if self._call is not None:
            self._call(self._read())
            return
        if not self._wanted:
            return
        if self._at_first is None:
            self._at_first = self._read().done_slots
        elapsed_s = self._clock.monotonic() - self._began_s
        if elapsed_s < self._after_s:
            return
        now = self._read()
        if self._bar is None:
            from tqdm.auto import tqdm
            from tqdm.std import tqdm as plain

            self._bar = tqdm(
                disable=signature(plain.__init__).parameters["disable"].default,  # $TQDM_DISABLE; a notebook's loses it
                total=now.total_slots,
                initial=self._at_first,
                desc=self._label,
                unit=" candles",
                unit_scale=True,
                leave=False,
            )
            if self._bar.disable:
                self._wanted, self._bar = False, None
                return
            self._bar.start_t -= elapsed_s  # it shows late, and counts from the beginning
        self._bar.total = now.total_slots
        self._bar.n = now.done_slots
        self._bar.set_postfix_str(
            f"{in_zone(now.reached_us, self._zone):%Y-%m-%d %H:%M}, {now.rows} rows", refresh=False
        )
        self._bar.refresh()

    def __exit__(self, *exc: object) -> None:
        if self._call is not None or self._bar is not None:
            self.update()
        if self._bar is not None:
            self._bar.close()
