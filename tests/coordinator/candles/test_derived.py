"""Lengths that the venue does not serve, folded of shorter candles: the range asked for, and the answer made of it."""

from __future__ import annotations

import pyarrow as pa
import pytest

from backbone.candle_table import times_of
from backbone.coordinator.candles.derived import base_range, folded
from backbone.coordinator.candles.ranges import Range
from backbone.coordinator.candles.reader import CandleAnswer
from backbone.model import Span
from backbone.timeframe import HOUR_US, parse_timeframe
from tests.storage.helpers import candles

SIX = parse_timeframe("6h", derived=True)
DAY = 24 * HOUR_US
START = 20_000 * DAY


def answer(hours: list[int], span: Span, gaps: tuple[Span, ...] = ()) -> CandleAnswer:
    table: pa.Table = candles(START + hour * HOUR_US for hour in hours)
    return CandleAnswer("KRW-BTC", span, table, 0, 0, {"rest": len(hours)}, gaps)


def opens(found: CandleAnswer) -> list[int]:
    return [(open_us - START) // HOUR_US for open_us in times_of(found.table).tolist()]


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (Range(START, None, None), Range(START, START + DAY, None)),
        (Range(START + 1, START + DAY - 1, None), Range(START + 6 * HOUR_US, START + DAY, None)),
        (Range(None, None, 3), Range(None, START + DAY, 23)),
        (Range(START, None, 3), Range(START, None, 18)),
        (Range(START + 9 * DAY, None, None), Range(START + DAY, START + DAY, None)),
    ],
)
def test_base_range_holds_what_the_candles_are_made_of(asked: Range, wanted: Range) -> None:
    """The grid of the long candles, and enough short ones for a count whose oldest candle may be cut off."""
    assert base_range(asked, SIX, START + DAY) == wanted


def test_folded_newest_are_whole_and_no_more_than_asked() -> None:
    """The candle that the oldest short ones belong to in part is left out; quiet slots are counted."""
    short = answer([*range(2, 12), *range(18, 24)], Span(START + 2 * HOUR_US, START + DAY))
    found = folded(short, Range(None, None, 2), SIX, START + DAY)
    assert opens(found) == [6, 18]
    assert (found.quiet, found.unknown, found.sources) == (1, 0, {"derived:1h": 2})


def test_folded_candle_with_an_unknown_part_is_a_gap() -> None:
    """A long candle of which one short one could not be had is not there, and its whole slot is missing."""
    hole = Span(START + 7 * HOUR_US, START + 8 * HOUR_US)
    short = answer([h for h in range(24) if h != 7], Span(START, START + DAY), (hole,))
    found = folded(short, Range(START, START + DAY, None), SIX, START + DAY)
    assert opens(found) == [0, 12, 18]
    assert found.gaps == (Span(START + 6 * HOUR_US, START + 12 * HOUR_US),)
    assert (found.unknown, found.quiet) == (1, 0)


def test_folded_first_so_many_end_with_the_last_whole_one() -> None:
    """The first two of a market that trades seldom; the third is cut off and not handed out."""
    short = answer([1, 2, 13, 14, 15, 16, 17, 18], Span(START, START + 19 * HOUR_US))
    found = folded(short, Range(START, None, 2), SIX, START + DAY)
    assert opens(found) == [0, 12]
    assert found.span == Span(START, START + 18 * HOUR_US)
