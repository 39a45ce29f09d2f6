"""Closed candles of live markets are confirmed before they count, and no difference is hidden."""

from __future__ import annotations

import pytest

from backbone.coordinator.live.feed import Subscription
from backbone.coordinator.live.reconcile import MANY
from backbone.errors import StoreError, UnreachableError
from backbone.model import Priority, Span
from tests.coordinator.live_doubles import GRACE_S, MINUTE_US, START_US, Rig, candle

BTC = "KRW-BTC"


@pytest.fixture
def rig() -> Rig:
    return Rig()


def live(rig: Rig, *markets: str) -> Subscription:
    """A table of 1-minute candles, the first one forming since the start."""
    table = rig.feed.open(["candle.1m"], markets or (BTC,))
    rig.stream.connect(*(candle(0, market=market) for market in markets or (BTC,)))
    rig.scheduler.run()
    return table


def closed(rig: Rig, seconds: float = 60) -> None:
    """Let the candle that ends in so many seconds close, on a socket that is received."""
    rig.scheduler.advance(seconds + 2)
    rig.stream.pong()
    rig.scheduler.advance(2.5)


def spans(rig: Rig) -> list[Span]:
    return [one.span for one in rig.fetcher.asked]


def test_confirm_asks_once_the_candle_is_closed_on_the_venues_clock(rig: Rig) -> None:
    """A candle is fetched when its end and the grace have passed, successor or not, and not before."""
    live(rig)
    rig.scheduler.advance(60 + GRACE_S - 0.5)
    rig.stream.pong()
    assert spans(rig) == []
    rig.scheduler.advance(2.0)
    assert spans(rig) == [Span(START_US, START_US + MINUTE_US)]
    assert rig.fetcher.asked[0].priority is Priority.NORMAL


def test_confirm_same_on_both_channels_is_no_event(rig: Rig) -> None:
    """A candle that REST has as the stream sent it is shown as confirmed, and nothing is reported."""
    table = live(rig)
    rig.stream.say(candle(0, 105.0, stamp_s=59))
    rig.fetcher.has(candle(0, 105.0))
    closed(rig)
    rig.fetcher.finish()
    assert table.events() == []
    (held,) = table.rows("candle.1m")
    assert (held.row.close, held.source) == (105.0, "rest")
    assert rig.fetcher.flushed == 1


def test_confirm_difference_is_reported_and_rest_is_shown(rig: Rig) -> None:
    """Where the channels disagree, both states are in the event, and REST's is the one that counts."""
    table = live(rig)
    rig.fetcher.has(candle(0, 106.0))
    closed(rig)
    rig.fetcher.finish()
    (event,) = table.events()
    assert event.kind == "difference"
    assert event.detail == "close 100.0 became 106.0"
    assert (event.streamed, event.confirmed) == (candle(0), rig_row(event))
    assert event.span == Span(START_US, START_US + MINUTE_US)
    assert table.rows("candle.1m")[0].row.close == 106.0


def rig_row(event):  # type: ignore[no-untyped-def]
    """REST's state carries the candle's end as its stamp: no later frame of it is newer."""
    row = candle(0, 106.0)
    return type(row)(**{**_fields(row), "stamp_us": START_US + MINUTE_US})


def _fields(row):  # type: ignore[no-untyped-def]
    return {name: getattr(row, name) for name in row.__struct_fields__}


def test_confirm_candle_that_one_channel_lacks_is_reported(rig: Rig) -> None:
    """A candle that only one of the two has is a difference as well."""
    table = live(rig)
    rig.stream.say(candle(2))
    rig.fetcher.has(candle(0), candle(1))
    closed(rig, 180)
    while rig.fetcher.asked:
        rig.fetcher.finish()
        rig.scheduler.advance(1.0)
    found = {(e.span.start - START_US) // MINUTE_US: e.detail for e in table.events() if e.span is not None}
    assert found == {1: "only REST has it", 2: "only the stream has it"}


def test_confirm_candle_cut_by_an_outage_is_healed_not_reported(rig: Rig) -> None:
    """A candle that the stream did not send to its end is taken from REST, and is no difference."""
    table = live(rig)
    rig.stream.enter("backing-off")
    rig.fetcher.has(candle(0, 111.0), candle(1, 112.0))
    rig.clock.advance(125)
    rig.stream.connect(candle(2), gap=Span(START_US + 1, rig.clock.now_us()))
    for _ in range(3):
        rig.scheduler.advance(2.0)
        rig.fetcher.finish()
    assert [e.kind for e in table.events()] == ["gap"]


def test_confirm_late_frame_does_not_replace_a_confirmed_candle(rig: Rig) -> None:
    """After the REST row a straggling frame of the candle changes nothing that is shown."""
    table = live(rig)
    rig.fetcher.has(candle(0, 105.0))
    closed(rig)
    rig.fetcher.finish()
    rig.stream.say(candle(0, 99.0, stamp_s=59.9))
    assert table.rows("candle.1m")[0].row.close == 105.0


def test_confirm_failure_is_tried_again_and_said_once(rig: Rig) -> None:
    """A fetch that fails leaves the edge where it is, and the next try begins there."""
    table = live(rig)
    rig.fetcher.failing = UnreachableError("nobody there")
    closed(rig)
    rig.fetcher.finish()
    rig.scheduler.advance(6.0)
    rig.fetcher.finish()
    assert [(e.kind, e.detail) for e in table.events()] == [("failed", "nobody there")]
    rig.fetcher.failing = None
    rig.scheduler.advance(6.0)
    assert spans(rig) == [Span(START_US, START_US + MINUTE_US)]


def test_confirm_again_what_was_set_aside(rig: Rig) -> None:
    """Candles that left the store while they were confirmed (their unit is over) are not confirmed."""
    table = live(rig)
    rig.fetcher.is_set_aside = True
    closed(rig)
    rig.fetcher.finish()
    said = "what was stored of it was quarantined meanwhile"
    assert [(e.kind, e.detail) for e in table.events()] == [("failed", said)]
    rig.fetcher.is_set_aside = False
    rig.scheduler.advance(6.0)
    assert spans(rig) == [Span(START_US, START_US + MINUTE_US)]


def test_confirm_full_disk_is_an_event(rig: Rig) -> None:
    """A candle that could not be stored is not taken for confirmed."""
    table = live(rig)

    def full(markets: object, timeframe: object) -> None:
        raise StoreError("the disk is full")

    rig.fetcher.flush = full  # type: ignore[method-assign]
    closed(rig)
    rig.fetcher.finish()
    assert [(e.kind, e.detail) for e in table.events()] == [("failed", "the disk is full")]
    rig.scheduler.advance(6.0)
    assert spans(rig)


def test_confirm_many_series_are_bulk_work(rig: Rig) -> None:
    """Hundreds of live candles are confirmed behind everybody else's requests, some minutes at a time."""
    markets = [f"KRW-M{n}" for n in range(MANY + 5)]
    live(rig, *markets)
    rig.scheduler.advance(240.0, 1.0)
    assert spans(rig) == []
    closed(rig, 60)
    assert len(rig.fetcher.asked) == len(markets)
    assert {one.priority for one in rig.fetcher.asked} == {Priority.LOW}
    assert all(one.span.length_us >= 5 * MINUTE_US for one in rig.fetcher.asked)


def test_confirm_ends_with_the_last_table(rig: Rig) -> None:
    """Candles that nobody follows any more are not fetched."""
    first, second = live(rig), rig.feed.open(["candle.1m"], [BTC])
    first.close()
    closed(rig)
    assert len(rig.fetcher.finish()) == 1
    second.close()
    rig.scheduler.advance(300.0, 1.0)
    assert spans(rig) == []


def test_confirm_events_are_bounded(rig: Rig) -> None:
    """A feed that runs for months keeps its newest events only."""
    live(rig)
    for n in range(3000):
        rig.feed.confirmer.missed(Span(START_US + n, START_US + n + 1), [])
    assert len(rig.feed.confirmer.events()) == 1000


def test_confirm_waits_for_a_sign_of_life_before_it_compares(rig: Rig) -> None:
    """Where nothing is received the last frame may be on its way: REST is asked, but not set against what was sent."""
    table = live(rig)
    rig.fetcher.has(candle(0, 106.0))
    rig.scheduler.advance(70.0)
    assert spans(rig) == []
    rig.scheduler.advance(6.0)
    assert spans(rig) == [Span(START_US, START_US + MINUTE_US)]
    rig.fetcher.finish()
    assert table.events() == []
    assert table.rows("candle.1m")[0].row.close == 106.0
