"""Days of the embedded exchange, made once for all workers of a run.

A day is the fold of 5,760 cells and one row of eight numbers, and clients that look where a market's history begins ask
for years of them: what one worker has made lies in a folder of the run for the others. The name of a file is a hash of
all that its days are computed from.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backbone.simulator.market import exchange
from backbone.simulator.market.catalogue import Market
from backbone.simulator.market.tape import Tape
from backbone.simulator.market.venue import Bars
from backbone.timeframe import Timeframe

__all__ = ["shared"]


@contextlib.contextmanager
def shared(folder: Path) -> Iterator[None]:
    """While the block runs, days that this process makes lie in `folder`, and those that lie there are not made."""
    folder.mkdir(exist_ok=True)
    make = exchange._bars_of

    def bars_of(tape: Tape, index: int, market: Market, timeframe: Timeframe, start_us: int, end_us: int) -> Bars:
        if timeframe.name != "1d":
            return make(tape, index, market, timeframe, start_us, end_us)
        facts = repr((tape.seed, tape.closed, tape.markets[index], market, start_us, end_us))
        file = folder / hashlib.sha256(facts.encode()).hexdigest()
        if file.exists():
            return _read(file)
        bars = make(tape, index, market, timeframe, start_us, end_us)
        _write(file, bars)
        return bars

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "_bars_of", bars_of)
        yield


def _write(file: Path, bars: Bars) -> None:
    part = file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    part.write_bytes(b"".join(np.ascontiguousarray(column).tobytes() for column in vars(bars).values()))
    part.replace(file)


def _read(file: Path) -> Bars:
    times, *numbers, stamps = np.fromfile(file, np.int64).reshape(len(Bars.__dataclass_fields__), -1)
    return Bars(times, *(column.view(np.float64) for column in numbers), stamps)
