"""A flood for crowds and measurements: extra socket messages of what was subscribed to, at a chosen rate.

It runs on the loop of an embedded exchange and writes ready-made frames straight to the transports, in small batches
and within what each reader takes. The frames are well-formed and stamped with the time at which they were sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from backbone.clock import SystemClock
from backbone.simulator import SimulatorServer
from backbone.simulator.server.frames import render
from backbone.simulator.server.sockets import Hub, Session

_now_s = SystemClock().monotonic
_BATCH = 256
_BUFFER = 512 * 1024
_STAMP = b"1000000000000"  # the hole in a frame


@contextmanager
def flooded(server: SimulatorServer, rate: float, kinds: Sequence[str] | None = None) -> Iterator[list[int]]:
    """Send every subscriber `rate` messages a second (of the types `kinds`) meanwhile; yields a counter."""
    hub, loop = server._hub, server._loop
    assert hub is not None
    assert loop is not None
    sent = [0]
    running = asyncio.run_coroutine_threadsafe(_flood(hub, rate, kinds, sent), loop)
    try:
        yield sent
    finally:
        running.cancel()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(10)  # a turn that was sending has counted


async def _flood(hub: Hub, rate: float, kinds: Sequence[str] | None, sent: list[int]) -> None:
    frames: dict[Session, tuple[Any, list[tuple[bytes, bytes]]]] = {}
    owed, last = 0.0, _now_s()
    while True:
        await asyncio.sleep(0.0 if owed >= _BATCH else 0.001)
        now = _now_s()
        owed = min(owed + (now - last) * rate, 0.2 * rate)
        last = now
        batch = min(int(owed), _BATCH)
        owed -= batch
        for session in list(hub._sessions):
            if session not in frames or frames[session][0] is not session.wants:
                frames[session] = (session.wants, _frames(hub, session, kinds))
            if batch and now >= session.stalled_until_s:
                sent[0] += _pour(hub, session, frames[session][1], sent[0], batch)


def _pour(hub: Hub, session: Session, frames: list[tuple[bytes, bytes]], start: int, batch: int) -> int:
    transport = session.transport
    if not frames or transport.is_closing() or transport.get_write_buffer_size() > _BUFFER:
        return 0
    stamp = str(hub.clock.now_us() // 1000).encode()
    chosen = (frames[(start + i) % len(frames)] for i in range(batch))
    transport.write(b"".join(head + stamp + tail for head, tail in chosen))
    session.active_s = _now_s()
    return batch


def _frames(hub: Hub, session: Session, kinds: Sequence[str] | None) -> list[tuple[bytes, bytes]]:
    """Ready-made frames around a hole for the ``timestamp``, a few prices each."""
    if session.socket.compress:
        return []
    frames: list[tuple[bytes, bytes]] = []
    now_us = hub.clock.now_us()
    listed = hub.venue.listed(now_us)
    for turn in range(4):
        for want in session.wants:
            if kinds is None or want.type in kinds:
                depths = {code: depth for code, depth in want.codes if code in listed}
                rows = hub.feed.snapshots((want.type, want.level), depths, now_us)
                frames += [_frame(row, session.form, depths[code], turn) for code, row in rows.items()]
    return frames


def _frame(row: dict[str, Any], form: str, depth: int, turn: int) -> tuple[bytes, bytes]:
    changed = {**row, "stream_type": "REALTIME", "timestamp": int(_STAMP)}
    if "high_price" in row:
        prices = (row["trade_price"], row["high_price"], row["low_price"], row["opening_price"])
        changed["trade_price"] = prices[turn]
    text = render(changed, form, depth)
    payload = (f"[{text}]" if form.endswith("LIST") else text).encode()
    size = len(payload)
    length = bytes((size,)) if size < 126 else b"\x7e" + size.to_bytes(2)
    assert size < 65536
    head, hole, tail = payload.partition(_STAMP)
    assert hole
    return b"\x82" + length + head, tail
