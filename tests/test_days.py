"""Days that the workers of a run share are those that the exchange makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backbone.simulator.market import exchange
from backbone.simulator.market.venue import Bars
from backbone.timeframe import DAY_US, TIMEFRAMES
from tests import days

NOW_US = 1_755_820_800_000_000


def made(code: str, seed: int = 7, factor: int = 1) -> Bars:
    """Four weeks of days, by an exchange of a process that has made none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "_BLOCKS", exchange._Cache(2**20, exchange._BLOCKS._size_of))
        market = exchange.Exchange(seed, markets=[code])
        if factor != 1:
            market.rescale(code, factor)
        return market.bars(market.market(code), TIMEFRAMES["1d"], NOW_US - 28 * DAY_US, NOW_US)


@pytest.mark.parametrize("code", ["KRW-BTC", "BTC-ETH", "USDT-XRP"])
def test_days_that_are_read_are_those_that_are_made(tmp_path: Path, code: str) -> None:
    """To the last bit, with the same types; another seed or unit is another file."""
    right = made(code)
    with days.shared(tmp_path / "days"):
        made(code)
        files = set((tmp_path / "days").iterdir())
        found = made(code)
        assert set((tmp_path / "days").iterdir()) == files
        others = made(code, seed=8), made(code, factor=10)
    assert len(found) == 28
    for name, column in vars(right).items():
        read = getattr(found, name)
        assert read.dtype == column.dtype
        np.testing.assert_array_equal(read, column)
    assert not any(np.array_equal(other.close, right.close) for other in others)


def test_other_lengths_are_made_as_ever(tmp_path: Path) -> None:
    """Minutes are many and soon made; a span without days is an empty file."""
    with days.shared(tmp_path / "days"):
        market = exchange.Exchange(7, markets=["KRW-BTC"])
        assert len(market.bars(market.market("KRW-BTC"), TIMEFRAMES["1m"], NOW_US - DAY_US, NOW_US)) == 1440
    assert not list((tmp_path / "days").iterdir())
