"""What every call needs: settings, clock, zone, home currency, the coordinator, and what ends with the client.

A client owns one `Session` and hands it to its calls, which therefore know nothing of the client. The coordinator is
made on first use, and made anew in a forked child. A session that is no longer referenced is closed on a thread of its
own, because the garbage collector may run in the middle of anything, under any lock; while a client is idle, one of its
threads collects such garbage. Sessions that are left when the program ends are closed then. The lock guards the making
of the coordinator and the lists of what ends.
"""

from __future__ import annotations

import _thread
import atexit
import gc
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from backbone.api.arguments import (
    DEFAULT_COUNT,
    TimeLike,
    parse_count,
    parse_markets,
    parse_quote,
    parse_time,
    parse_timeout,
)
from backbone.clock import Clock, Deadline, SystemClock, VenueClock, current_deadline, within
from backbone.coordinator.candles.ranges import Range
from backbone.errors import ClosedError, InputError, UnfinishedWarning
from backbone.settings import FRAMES, Settings

if TYPE_CHECKING:
    from backbone.coordinator.candles.jobs import CandleJob
    from backbone.coordinator.coordinator import Coordinator

__all__ = ["Session"]

_log = logging.getLogger("backbone.session")

_IDLE_S, _LONGEST_S = 2.0, 300.0  # until garbage is collected for the first time, and at most between two collections
_SHARE = 50  # a collection is followed by a pause of so many times its own length


class _Stoppable(Protocol):
    def stop(self) -> None: ...


class _Owned:
    """What ends with a session, apart from the session itself, which may be gone by then."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.core: Coordinator | None = None
        self.core_pid = 0
        self.closed = False
        self.tables: weakref.WeakSet[_Stoppable] = weakref.WeakSet()  # what is live
        self.ending: list[Callable[[], None]] = []  # the demo's exchange, a metrics server
        self.pid = os.getpid()  # and is not a forked child's to end
        self.used_s = 0.0  # when a call last began

    def end(self) -> None:
        """End all of it, once; warn of backfills that were running."""
        with self.lock:
            self.closed = True
            core, self.core = self.core, None
            tables, self.tables = list(self.tables), weakref.WeakSet()
            ending, self.ending = self.ending, []
        unfinished: list[CandleJob] = []
        with ExitStack() as ends:
            if self.pid == os.getpid():
                for end in reversed(ending):
                    ends.callback(end)
            if core is not None and self.core_pid == os.getpid():
                unfinished = [job for job in core.jobs.running() if not job.is_cancelled]
                ends.callback(core.close)
                for table in tables:
                    ends.callback(table.stop)
        if unfinished:
            warnings.warn(_unfinished(unfinished), UnfinishedWarning, stacklevel=4)


def _unfinished(jobs: Iterable[CandleJob]) -> str:
    """What a client's end left undone; its coordinator is closed, so that what arrived is counted."""
    parts = []
    for job in jobs:
        now = job.progress
        names = ", ".join(job.markets[:3]) + ("…" if len(job.markets) > 3 else "")
        parts.append(f"{names} {job.timeframe} ({now.share:.1%} is stored, {1 - now.share:.1%} is left)")
    return (
        f"the client ended while a backfill was running: {'; '.join(parts)}. What arrived was kept, and the same "
        "backfill asks for the rest only. Call wait() on the job before the client or the program ends."
    )


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_leaving: dict[threading.Event, int] = {}  # set when a forgotten session is closed; the process that closes it


def _forget(owned: _Owned) -> None:
    """A session was collected: close what it owned, elsewhere."""
    if owned.closed or (owned.core is None and not owned.ending):
        return
    gone = threading.Event()
    _leaving[gone] = os.getpid()

    def close() -> None:
        try:
            owned.end()
        finally:
            gone.set()
            _leaving.pop(gone, None)

    def start() -> None:
        try:  # a `Thread`, of which nothing is left afterwards: `threading` lists a bare one for ever
            threading.Thread(target=close, name="backbone-end", daemon=True).start()
        except RuntimeError:
            close()

    try:
        # a bare thread begins it: starting a `Thread` takes a lock of `threading` that the interrupted code may hold
        _thread.start_new_thread(start, ())
    except RuntimeError:  # the interpreter is ending and starts no threads: nothing else runs here now
        close()


_collected_s = float("-inf")  # when garbage was last collected


def _collect_when_idle(owned: _Owned, core: Coordinator, clock: Clock) -> None:
    """Collect garbage while a client is idle: views, callbacks and tracebacks that nobody holds may refer to it in a
    circle, which Python itself may not collect for a long time.

    First some seconds after the client's last call and its last request, then ever more rarely, never for more than a
    fiftieth of the time, and not where the program has switched the collector off.
    """
    wait_s = _IDLE_S

    def collect() -> None:
        global _collected_s
        nonlocal wait_s
        now = clock.monotonic()
        is_waiting = any(count for depths in core.scheduler.depths().values() for count in depths.values())
        used_s = now if is_waiting else max(owned.used_s, core.scheduler.used_s)
        if used_s > _collected_s:
            wait_s = _IDLE_S
        due_s = max(used_s, _collected_s) + wait_s
        if now >= due_s and gc.isenabled():
            gc.collect()
            _collected_s = clock.monotonic()
            wait_s = min(max(2 * wait_s, _SHARE * (_collected_s - now)), _LONGEST_S)
            due_s = _collected_s + wait_s
        again(max(due_s - now, _IDLE_S))

    def again(delay_s: float) -> None:
        if not owned.closed:
            with suppress(ClosedError):
                core.scheduler.call_later(delay_s, collect, starts=False)

    again(_IDLE_S)


@atexit.register
def _end_sessions() -> None:
    """The program ends: so do the clients that it has not closed."""
    for session in list(_sessions):
        try:
            session.close()
        except Exception:  # noqa: BLE001 - logged: the program ends, and the others are closed all the same
            _log.exception("client.end_failed")
    for gone, pid in list(_leaving.items()):
        if pid == os.getpid():
            gone.wait()


class Session:
    """The private half of one client, for the calls of this layer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock: Clock = SystemClock()
        self.venue: VenueClock | None = None
        """The venue's own clock, where it is at hand (the demo's exchange); None: the coordinator estimates it."""
        self._owned = _Owned()
        self._kept: set[_Stoppable] = set()  # tables whose callbacks run, whether or not anybody holds them
        _sessions.add(self)
        weakref.finalize(self, _forget, self._owned).atexit = False  # then `_end_sessions` closes it

    def within(self, timeout: float | None) -> AbstractContextManager[None]:
        """A block whose requests wait at most `timeout` seconds in all; None: as long as the block around it may."""
        seconds = parse_timeout(timeout)
        return within(current_deadline() if seconds is None else Deadline(self.clock, seconds))

    @property
    def tz(self) -> str:
        """Zone of every index and of naive input."""
        return self.settings.tz

    @property
    def data_dir(self) -> Path | str:
        """Where candles are kept: a folder, or the address of an object store."""
        return self.settings.data_dir if self.settings.is_remote else Path(self.settings.data_dir)

    @property
    def home(self) -> str:
        """The currency that a bare ``"BTC"`` is priced in."""
        return self.settings.venue.home

    @property
    def is_closed(self) -> bool:
        return self._owned.closed

    def frames(self, frames: str | None) -> str:
        """The frame type of an answer: what the call asks for, or the client's default."""
        if frames is None:
            return self.settings.frames
        if frames not in FRAMES:
            raise InputError("frames", frames, "one of " + ", ".join(FRAMES))
        return frames

    def coordinator(self) -> Coordinator:
        """The coordinator, made on first use in this process."""
        owned = self._owned
        with owned.lock:
            if owned.closed:
                raise ClosedError("the client is closed; make a new one")
            if owned.core is None or owned.core_pid != os.getpid():
                from backbone.coordinator.coordinator import Coordinator

                owned.core = Coordinator(self.settings, self.clock, self.venue)
                owned.core_pid = os.getpid()
                _collect_when_idle(owned, owned.core, self.clock)
            owned.used_s = self.clock.monotonic()
            return owned.core

    # -- markets -------------------------------------------------------------------------------------------------

    def markets_of(self, asked: str | Iterable[str], *, may_ask: bool = True) -> list[str]:
        """The markets meant by a market, several, or a quote currency (``"KRW"``, ``"BTC-*"``).

        A quote currency means every market that the venue lists in it now. If no request may be made (`may_ask`), it
        means those of the list at hand, and without a list those that are stored. Raises `InputError` for none.
        """
        quote = parse_quote(asked, self.home)
        if quote is None:
            return parse_markets(asked, self.home)
        core = self.coordinator()
        codes = core.markets.codes(quote) if may_ask else core.markets.known_codes(quote)
        if not codes and not may_ask:
            stored = {market for market, _ in core.store.series() if market.startswith(f"{quote}-")}
            codes = tuple(sorted(core.renames.once(stored)))
        if not codes and not may_ask and core.markets.confirmed is None:
            allowed = "a market; a quote currency once a market list came: this makes no request, markets() asks for it"
            raise InputError("market", asked, allowed)
        if not codes:
            raise InputError("market", asked, "a quote currency that the venue has markets in, such as KRW")
        return list(codes)

    # -- time ----------------------------------------------------------------------------------------------------

    def now_us(self) -> int:
        """Now on the venue's clock; the market list is requested if no reply was received yet."""
        core = self.coordinator()
        core.sync_clock()
        return core.venue.now_us()

    def likely_now_us(self) -> int:
        """Now on the venue's clock as far as it is known, else on this machine's; makes no request."""
        return self.coordinator().venue.now_us()

    def time(self, argument: str, value: TimeLike, *, may_ask: bool = True) -> int:
        """Microseconds UTC of what somebody wrote for a time."""
        return parse_time(argument, value, self.tz, self.now_us if may_ask else self.likely_now_us)

    def range(self, start: TimeLike | None, end: TimeLike | None, count: object, *, may_ask: bool = True) -> Range:
        """Any two of start, end and count; checked against each other and against now.

        Relative times count back on the venue's clock; if no request may be made, as far as that is known.
        """
        number = parse_count(count)
        if start is not None and end is not None and number is not None:
            raise InputError("count", count, "start, end and count together say too much: leave one out")
        start_us = None if start is None else self.time("start", start, may_ask=may_ask)
        end_us = None if end is None else self.time("end", end, may_ask=may_ask)
        if start_us is None and number is None:
            number = DEFAULT_COUNT
        if start_us is not None:
            if end_us is not None and start_us > end_us:
                raise InputError("start", start, f"a time before the end ({end})")
            is_over = start_us <= self.likely_now_us() or (may_ask and start_us <= self.now_us())
            if not is_over:  # on this machine's clock, which may be behind, and on the venue's
                raise InputError("start", start, "a time before now: nothing has happened there yet")
            if start_us < 0:
                raise InputError("start", start, "a time after 1970-01-01")
        return Range(start_us, end_us, number)

    # -- the end -------------------------------------------------------------------------------------------------

    def end_with(self, end: Callable[[], None]) -> None:
        """Call `end` when the client is closed; at once if it is. `end` must not refer to this session."""
        with self._owned.lock:
            if not self._owned.closed:
                self._owned.ending.append(end)
                return
        end()
        raise ClosedError("the client is closed; make a new one")

    def remember_table(self, table: _Stoppable) -> None:
        """Stop `table` when the client is closed; at once if it is."""
        with self._owned.lock:
            if not self._owned.closed:
                self._owned.tables.add(table)
                return
        table.stop()
        raise ClosedError("the client is closed; make a new one")

    def keep_table(self, table: _Stoppable) -> None:
        """Keep `table` alive as long as this session is."""
        with self._owned.lock:
            self._kept.add(table)

    def forget_table(self, table: _Stoppable) -> None:
        """`table` ended by itself."""
        with self._owned.lock:
            self._owned.tables.discard(table)
            self._kept.discard(table)

    def close(self) -> None:
        """End everything: waits, threads, sockets; write what is pending. May be called twice.

        Warns (`UnfinishedWarning`) where a backfill was running.
        """
        self._owned.end()
