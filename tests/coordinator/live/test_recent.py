"""What is remembered of a stream: candles until they are confirmed."""

from __future__ import annotations

from backbone.coordinator.live.recent import CandleTrack, candle_rows, live_candles
from backbone.model import CANDLE_SCHEMA, Span
from backbone.timeframe import TIMEFRAMES
from tests.coordinator.live_doubles import MINUTE_US, START_US, candle


def test_track_keeps_the_last_state_of_each_candle() -> None:
    """The last frame of a candle is its truth, however many came before."""
    track = CandleTrack()
    for close in (100.0, 101.0, 102.0):
        track.note(candle(0, close))
    track.note(candle(1, 103.0))
    whole = Span(START_US, START_US + 2 * MINUTE_US)
    assert {c.close for c in track.finals(whole).values()} == {102.0, 103.0}
    track.note(candle(0, 99.0))
    assert track.finals(whole)[START_US].close == 99.0


def test_track_says_nothing_of_a_candle_cut_by_a_loss_until_it_comes_again() -> None:
    """A candle that was forming when the connection went may have grown since; a later frame of it completes it."""
    track, span = CandleTrack(), Span(START_US, START_US + MINUTE_US)
    track.note(candle(0, 100.0))
    track.lost()
    assert track.finals(span) == {}
    assert not track.was_whole(START_US)
    track.note(candle(0, 104.0))
    assert track.finals(span)[START_US].close == 104.0
    assert track.was_whole(START_US)


def test_track_since_is_none_where_a_candle_may_have_been_missed() -> None:
    """Forming candles are answered only from where the stream has sent all."""
    track = CandleTrack()
    assert track.since(START_US) is None
    track.note(candle(1))
    assert track.since(START_US) is None
    assert track.since(START_US + MINUTE_US) == [candle(1)]
    assert track.since(START_US + 2 * MINUTE_US) == []


def test_track_forgets_what_is_confirmed_but_for_the_newest() -> None:
    """Confirmed states are dropped; the newest stays, because it may still be asked for."""
    track = CandleTrack()
    for minute in range(4):
        track.note(candle(minute))
    track.forget_before(START_US + 10 * MINUTE_US)
    assert list(track.finals(Span(0, 1 << 60))) == [START_US + 3 * MINUTE_US]


def test_track_is_bounded() -> None:
    """A series that is never confirmed does not grow without bound."""
    track = CandleTrack()
    for minute in range(2000):
        track.note(candle(minute))
    assert len(track.finals(Span(0, 1 << 60))) == 600


def test_candle_rows_and_live_candles_are_inverse() -> None:
    """Live candles survive the way into a candle table and back."""
    streamed = [candle(minute, 100.0 + minute) for minute in range(3)]
    table = candle_rows(streamed)
    assert table.schema == CANDLE_SCHEMA
    assert live_candles("KRW-BTC", TIMEFRAMES["1m"], table, [c.stamp_us for c in streamed]) == streamed
    assert candle_rows([]).num_rows == 0
