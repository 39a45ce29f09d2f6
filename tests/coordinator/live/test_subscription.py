"""A subscription counts its own records, and ends its followers with itself."""

from __future__ import annotations

from tests.coordinator.live_doubles import Rig, ticker


def test_subscription_counts_what_came_since_it_was_opened_and_keeps_the_count() -> None:
    """Records before it are not counted, records after its end neither."""
    live = Rig()
    first = live.feed.open(["ticker"], ["KRW-BTC"])
    live.stream.connect(ticker())
    second = live.feed.open(["ticker"], ["KRW-BTC"])
    live.stream.say(ticker(price=101.0, stamp_s=1))
    assert (first.received, second.received, first.is_complete) == (2, 1, True)
    second.close()
    live.stream.say(ticker(price=102.0, stamp_s=2))
    assert (first.received, second.received) == (3, 1)
    assert (first.mode, second.mode) == ("streaming", "stopped")


def test_subscription_closed_ends_its_followers_and_those_that_come_late() -> None:
    """A reader that waits goes on, with what was queued."""
    live = Rig()
    subscription = live.feed.open(["ticker"], ["KRW-BTC"])
    records, changes = subscription.queue(10), subscription.follow()
    live.stream.connect(ticker())
    subscription.close()
    subscription.close()
    assert len(changes.take(None) or []) == 1
    assert (changes.take(None), records.get(), records.get()) == (None, ticker(), None)
    assert subscription.queue(1).is_ended
