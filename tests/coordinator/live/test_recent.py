"""What is remembered of a stream: trades without a hole, candles until they are confirmed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backbone.coordinator.live.recent import CandleTrack, TradeTape, candle_rows, history_of, live_candles
from backbone.model import CANDLE_SCHEMA, Span
from backbone.timeframe import TIMEFRAMES
from tests.coordinator.live_doubles import MINUTE_US, START_US, candle, trade


def test_history_of_kinds_that_have_one() -> None:
    """Trades and candles are remembered, of tickers and books only the newest row counts."""
    assert isinstance(history_of("trade"), TradeTape)
    assert isinstance(history_of("candle.60m"), CandleTrack)
    assert history_of("ticker") is None
    assert history_of("orderbook") is None


def test_tape_tells_the_newest_in_order_of_time() -> None:
    """The newest trades come oldest first, also where the stream told two in another order."""
    tape = TradeTape()
    for number in (1, 3, 2, 4):
        tape.note(trade(number), number == 1, "stream")
    assert tape.newest(3) == [trade(2), trade(3), trade(4)]
    assert tape.newest(5) is None


def test_tape_after_a_loss_starts_anew_unless_the_snapshot_is_the_last_known() -> None:
    """A snapshot that repeats the last known trade proves that nothing was missed; any other restarts the tape."""
    tape = TradeTape()
    for number in (1, 2):
        tape.note(trade(number), number == 1, "stream")
    tape.lost()
    assert tape.newest(1) is None
    tape.note(trade(2), True, "stream")
    assert tape.newest(2) == [trade(1), trade(2)]
    tape.lost()
    tape.note(trade(5), True, "stream")
    assert tape.newest(1) == [trade(5)]
    assert tape.newest(2) is None


def test_tape_told_a_trade_twice_holds_it_once() -> None:
    """A trade that happened while the snapshot was made comes in it and once more after it."""
    tape = TradeTape(2)
    for number in (3, 3, 4, 3, 5, 4):
        tape.note(trade(number), number == 3 and tape.newest(1) is None, "stream")
    assert tape.newest(2) == [trade(4), trade(5)]
    assert tape.newest(3) is None


def test_tape_ignores_what_polls_bring() -> None:
    """Polled trades may have holes between them, so they prove nothing."""
    tape = TradeTape()
    tape.note(trade(1), True, "rest")
    assert tape.newest(1) is None


@given(st.lists(st.sampled_from(["say", "miss", "reconnect"]), max_size=60), st.integers(1, 8))
def test_tape_never_tells_a_run_with_a_hole(steps: list[str], size: int) -> None:
    """Whatever is missed and reconnected, the trades told are the venue's last ones without a hole."""
    tape, number, is_connected = TradeTape(size), 0, False
    tape.lost()
    for step in steps:
        if step == "reconnect":
            tape.lost()
            if number:
                tape.note(trade(number), True, "stream")
                is_connected = True
        elif step == "say":
            number += 1
            if is_connected:
                tape.note(trade(number), False, "stream")
        else:
            number += 1
            tape.lost()
            is_connected = False
        for count in range(1, size + 1):
            told = tape.newest(count)
            if told is not None:
                assert [t.sequential_id - 10_000 for t in told] == list(range(number - count + 1, number + 1))


def test_track_keeps_the_last_state_of_each_candle() -> None:
    """The last frame of a candle is its truth, however many came before."""
    track = CandleTrack()
    for close in (100.0, 101.0, 102.0):
        track.note(candle(0, close), False, "stream")
    track.note(candle(1, 103.0), False, "stream")
    whole = Span(START_US, START_US + 2 * MINUTE_US)
    assert {c.close for c in track.finals(whole).values()} == {102.0, 103.0}
    track.note(candle(0, 99.0), False, "stream")
    assert track.finals(whole)[START_US].close == 99.0


def test_track_says_nothing_of_a_candle_cut_by_a_loss_until_it_is_told_again() -> None:
    """A candle that was forming when the connection went may have grown since; a later frame of it heals that."""
    track, span = CandleTrack(), Span(START_US, START_US + MINUTE_US)
    track.note(candle(0, 100.0), True, "stream")
    track.lost()
    assert track.finals(span) == {}
    assert not track.was_whole(START_US)
    track.note(candle(0, 104.0), True, "stream")
    assert track.finals(span)[START_US].close == 104.0
    assert track.was_whole(START_US)


def test_track_since_is_none_where_a_candle_may_have_been_missed() -> None:
    """Forming candles are answered only from where the stream has told all."""
    track = CandleTrack()
    assert track.since(START_US) is None
    track.note(candle(1), True, "stream")
    assert track.since(START_US) is None
    assert track.since(START_US + MINUTE_US) == [candle(1)]
    assert track.since(START_US + 2 * MINUTE_US) == []


def test_track_forgets_what_is_confirmed_but_for_the_newest() -> None:
    """Confirmed states are dropped; the newest stays, because it may still be asked for."""
    track = CandleTrack()
    for minute in range(4):
        track.note(candle(minute), False, "stream")
    track.forget_before(START_US + 10 * MINUTE_US)
    assert list(track.finals(Span(0, 1 << 60))) == [START_US + 3 * MINUTE_US]


def test_track_is_bounded() -> None:
    """A series that is never confirmed does not grow without bound."""
    track = CandleTrack()
    for minute in range(2000):
        track.note(candle(minute), False, "stream")
    assert len(track.finals(Span(0, 1 << 60))) == 600


def test_candle_rows_and_live_candles_are_inverse() -> None:
    """Live candles survive the way into a candle table and back."""
    told = [candle(minute, 100.0 + minute) for minute in range(3)]
    table = candle_rows(told)
    assert table.schema == CANDLE_SCHEMA
    assert live_candles("KRW-BTC", TIMEFRAMES["1m"], table, [c.stamp_us for c in told]) == told
    assert candle_rows([]).num_rows == 0
