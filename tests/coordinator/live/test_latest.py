"""The latest: one newest row of each market, and followers that cannot hold it up."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.clock import SystemClock
from backbone.coordinator.live.latest import NEVER, TAPE, ConflatedChanges, LatestRows, RecordQueue, Slot
from backbone.model import Trade
from backbone.routing.wire import grouped
from backbone.testing import ManualClock
from tests.coordinator.live_doubles import book, candle, ticker, trade


@pytest.fixture
def latest() -> LatestRows:
    return LatestRows(ManualClock())


def held(latest: LatestRows, kind: str, market: str = "KRW-BTC"):  # type: ignore[no-untyped-def]
    return latest.slot(kind, market).held


def test_latest_rest_never_replaces_a_newer_row(latest: LatestRows) -> None:
    """A slow REST answer does not turn back what the stream has sent since."""
    latest.take(ticker(price=101.0, stamp_s=5), 1.0)
    latest.offer("ticker", [ticker(price=100.0, stamp_s=4)], 2.0)
    assert held(latest, "ticker").row.price == 101.0
    latest.offer("ticker", [ticker(price=102.0, stamp_s=6)], 3.0)
    assert (held(latest, "ticker").row.price, held(latest, "ticker").source) == (102.0, "rest")


def test_latest_stream_is_taken_in_the_order_of_arrival(latest: LatestRows) -> None:
    """On one connection the last frame is the truth, whatever its stamp says."""
    latest.take(ticker(price=101.0, stamp_s=5), 1.0)
    latest.take(ticker(price=102.0, stamp_s=4), 2.0)
    assert held(latest, "ticker").row.price == 102.0


def test_latest_stream_does_not_replace_a_newer_row_of_rest(latest: LatestRows) -> None:
    """A frame older than what REST sent is counted, and proves that the stream is received, but is not shown."""
    latest.offer("ticker", [ticker(price=102.0, stamp_s=6)], 1.0)
    latest.take(ticker(price=101.0, stamp_s=5), 2.0)
    slot = latest.slot("ticker", "KRW-BTC")
    assert (slot.held.row.price, slot.stream_s, slot.count) == (102.0, 2.0, 2)


def test_latest_same_row_again_is_younger_but_no_news(latest: LatestRows) -> None:
    """A poll that brings what is known makes it younger, and wakes nobody."""
    latest.offer("ticker", [ticker()], 1.0)
    changes = ConflatedChanges(latest, [latest.slot("ticker", "KRW-BTC")])
    latest.offer("ticker", [ticker()], 5.0)
    assert held(latest, "ticker").received_s == 5.0
    assert changes.arrived == 0


def test_latest_trade_that_came_twice_is_delivered_once(latest: LatestRows) -> None:
    """A subscription that changes brings the last trade as a snapshot; the trade itself may follow, or an older one."""
    slot = latest.slot("trade", "KRW-BTC")
    latest.want([slot])
    records = RecordQueue(latest, [slot], 10)
    latest.take(trade(1), 1.0)
    latest.take(trade(3), 2.0, True)
    latest.take(trade(2), 3.0)
    latest.take(trade(3), 4.0)
    latest.offer("trade", [trade(3), trade(4)], 5.0)
    assert [records.get(0) for _ in range(5)] == [trade(1), trade(3), trade(2), trade(4), None]
    assert slot.count == 4


def test_latest_tape_is_bounded_and_in_the_order_of_time(latest: LatestRows) -> None:
    """The newest trades come oldest first, also where the stream had two in another order; no more are kept."""
    slot = tape(latest)
    for number in (1, 3, 2, 4):
        latest.take(trade(number), 1.0, number == 1)
    assert newest(latest, slot, 3) == [trade(2), trade(3), trade(4)]
    assert newest(latest, slot, 5) is None
    for number in range(5, TAPE + 20):
        latest.take(trade(number), 1.0)
    assert newest(latest, slot, TAPE) == [trade(number) for number in range(20, TAPE + 20)]
    assert len(slot.tape) == TAPE


def test_latest_tape_after_a_loss_goes_on_where_nothing_was_missed(latest: LatestRows) -> None:
    """A snapshot of the last known trade, or the trades of the outage, keep the tape whole; else it starts anew."""
    slot = tape(latest)
    for number in (1, 2):
        latest.take(trade(number), 1.0, number == 1)
    for fetched, is_whole, whole in (([2], True, [1, 2]), ([2, 3, 4, 5], True, [1, 2, 5]), ([], False, [7])):
        latest.disconnected()
        assert newest(latest, slot, 1) is None
        latest.take(trade(whole[-1]), 2.0, True)
        assert newest(latest, slot, 1) is None
        latest.resume(slot, slot.epoch, [trade(number) for number in fetched], is_whole=is_whole)
        assert newest(latest, slot, 1) == [trade(whole[-1])]
    assert newest(latest, slot, 2) is None


def test_latest_polled_trades_do_not_make_a_tape(latest: LatestRows) -> None:
    """Between two polls there may be a hole, so they prove nothing."""
    slot = tape(latest)
    latest.offer("trade", [trade(1), trade(2)], 1.0)
    assert newest(latest, slot, 1) is None
    latest.take(trade(9), 2.0, True)
    assert newest(latest, slot, 1) == [trade(9)]
    assert newest(latest, slot, 2) is None


def test_latest_polls_beside_a_stream_that_stalls_leave_no_hole(latest: LatestRows) -> None:
    """Before the loss is noticed, polls bring later trades; what is between them is not on the tape, and a stream that
    sends again delivers nothing twice."""
    slot = tape(latest)
    records = RecordQueue(latest, [slot], 20)
    for number in (1, 2):
        latest.take(trade(number), 1.0, number == 1)
    latest.offer("trade", [trade(9)], 2.0)
    latest.take(trade(7), 3.0)
    assert newest(latest, slot, 1) == [trade(9)]
    assert newest(latest, slot, 2) is None
    latest.take(trade(9), 3.0)
    latest.disconnected()
    latest.take(trade(9), 4.0, True)
    latest.resume(slot, slot.epoch, [trade(9)])
    assert newest(latest, slot, 1) == [trade(9)]
    assert newest(latest, slot, 2) is None
    assert [records.get(0) for _ in range(5)] == [trade(1), trade(2), trade(9), trade(7), None]


@given(st.lists(st.sampled_from(["say", "poll", "miss", "drop", "cut", "return", "refill", "fail"]), max_size=60))
def test_latest_tape_never_has_a_hole(steps: list[str]) -> None:
    """Whatever is missed, polled and fetched, the trades of the tape are the venue's last ones without a hole, and
    each is delivered once."""
    latest = LatestRows(ManualClock())
    slot = tape(latest)
    records = RecordQueue(latest, [slot], 1000)
    number, is_connected = 0, False
    for step in steps:
        number += step in ("say", "miss")
        if step == "say" and is_connected:
            latest.take(trade(number), 1.0)
        elif step == "poll" and number and not is_connected:
            latest.offer("trade", [trade(number)], 1.0)
        elif step == "cut" or (step == "miss" and is_connected):
            latest.disconnected()
            is_connected = False
        elif step == "drop":  # it is noticed later
            is_connected = False
        elif step == "return" and number and not is_connected:
            latest.disconnected()
            latest.take(trade(number), 1.0, True)
            is_connected = True
        elif step in ("refill", "fail") and is_connected:
            start_us = slot.resume[0]
            found = [one for one in map(trade, range(1, number + 1)) if one.time_us >= start_us]
            latest.resume(slot, slot.epoch, found if step == "refill" else [], is_whole=step == "refill")
        for count in range(1, 10):
            found = newest(latest, slot, count)
            if found is not None and is_connected:
                assert found == [trade(each) for each in range(number - count + 1, number + 1)]
    delivered = [records.get(0) for _ in range(len(records))]
    assert len({record.sequential_id for record in delivered if isinstance(record, Trade)}) == len(delivered)


def tape(latest: LatestRows) -> Slot:
    """The slot of trades that somebody wants."""
    slot = latest.slot("trade", "KRW-BTC")
    latest.want([slot])
    return slot


def newest(latest: LatestRows, slot: Slot, count: int) -> list[Trade] | None:
    with latest.lock:
        return slot.newest_locked(count)


def test_latest_candle_received_late_is_not_shown_but_remembered(latest: LatestRows) -> None:
    """A state of the former candle after its successor's goes to the history, not to the table."""
    slot = latest.slot("candle.1m", "KRW-BTC")
    latest.want([slot])
    latest.take(candle(1, 105.0), 1.0)
    latest.take(candle(0, 99.0), 2.0)
    assert slot.held is not None
    assert slot.held.row == candle(1, 105.0)


def test_latest_levels_of_books_are_apart(latest: LatestRows) -> None:
    """A grouped book is another thing than the book itself."""
    latest.offer(grouped(1000.0), [book(level=1000.0)], 1.0)
    latest.take(book(stamp_s=9), 1.0)
    assert held(latest, "orderbook").row.level == 0
    assert held(latest, "orderbook@1000").row.level == 1000
    assert grouped(0.0) == "orderbook"


def test_latest_holds_one_copy_of_a_row(latest: LatestRows) -> None:
    """Whoever reads gets the same record, not a copy."""
    row = ticker()
    latest.take(row, 1.0)
    first, second = (latest.snapshot([latest.slot("ticker", "KRW-BTC")])[0].row for _ in range(2))
    assert first is row
    assert second is row


def test_latest_wanted_anew_does_not_count_what_came_before(latest: LatestRows) -> None:
    """What the stream said of a market before it was wanted again says nothing about now."""
    slot = latest.slot("trade", "KRW-BTC")
    latest.want([slot])
    latest.take(trade(1), 1.0)
    assert slot.stream_s == 1.0
    latest.unwant([slot])
    assert not slot.tape
    latest.take(trade(2), 2.0)  # a stray one
    latest.want([slot])
    assert slot.stream_s == NEVER
    assert not slot.tape


def test_latest_torn_distrusts_every_cell(latest: LatestRows) -> None:
    """After a loss every market must be sent again before the stream covers it."""
    slot = latest.slot("ticker", "KRW-BTC")
    latest.want([slot])
    latest.take(ticker(), 1.0)
    latest.disconnected()
    assert slot.stream_s == NEVER
    assert slot.held is not None


def test_changes_slow_taker_gets_the_latest_and_a_count_of_what_it_missed(latest: LatestRows) -> None:
    """However many records came, one row a market is taken: the newest; the others are counted."""
    slots = [latest.slot("ticker", market) for market in ("KRW-BTC", "KRW-ETH")]
    changes = ConflatedChanges(latest, slots)
    for price in range(1, 101):
        latest.take(ticker(price=float(price), stamp_s=price), 1.0)
    latest.take(ticker("KRW-ETH"), 1.0)
    taken = changes.take(0)
    assert taken is not None
    assert [(h.row.market, h.row.price) for h in taken] == [("KRW-BTC", 100.0), ("KRW-ETH", 100.0)]
    assert (changes.arrived, changes.missed) == (101, 99)
    assert changes.take(0) == []


def test_changes_repeated_snapshot_is_no_change(latest: LatestRows) -> None:
    """A snapshot that says what is known (after a new subscription) wakes nobody."""
    latest.take(ticker(), 1.0)
    changes = ConflatedChanges(latest, [latest.slot("ticker", "KRW-BTC")])
    latest.take(ticker(), 2.0, True)
    assert changes.arrived == 0
    latest.take(ticker(price=7.0), 3.0, True)
    assert changes.arrived == 1


def test_changes_ended_lets_the_sleeper_go() -> None:
    """Whoever waits for a change goes on when there will be none."""
    latest = LatestRows(SystemClock())
    changes = ConflatedChanges(latest, [latest.slot("ticker", "KRW-BTC")])
    ended = threading.Event()

    def sleep() -> None:
        assert changes.take(None) is None
        ended.set()

    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    changes.end()
    sleeper.join(5)
    assert ended.is_set()
    latest.take(ticker(), 1.0)
    assert changes.arrived == 0


def test_changes_wait_for_counts_records_and_wakes_in_time() -> None:
    """Waiting for so many records ends with the last of them."""
    latest = LatestRows(SystemClock())
    changes = ConflatedChanges(latest, [latest.slot("ticker", "KRW-BTC")])
    results = []
    waiter = threading.Thread(target=lambda: results.append(changes.wait_for(50, 10)))
    waiter.start()
    for n in range(50):
        latest.take(ticker(price=float(n + 1)), 1.0)
    waiter.join(5)
    assert results == [True]
    assert not changes.wait_for(51, 0)


def test_queue_keeps_the_newest_and_counts_the_dropped(latest: LatestRows) -> None:
    """A bounded queue gives up the oldest records, in order, and says how many."""
    records = RecordQueue(latest, [latest.slot("trade", "KRW-BTC")], 3)
    for number in range(5):
        latest.take(trade(number), 1.0)
    assert records.dropped == 2
    assert [records.get(0) for _ in range(4)] == [trade(2), trade(3), trade(4), None]
    records.end()
    assert records.is_ended
    latest.take(trade(9), 1.0)
    assert len(records) == 0


def test_queue_that_shows_the_start_has_the_row_that_is_live_already(latest: LatestRows) -> None:
    """What the stream has sent for somebody else is the first record; the next one is news."""
    slot = latest.slot("ticker", "KRW-BTC")
    latest.want([slot])
    latest.take(ticker(price=1.0), 1.0, is_snapshot=True)
    latest.take(ticker(price=2.0), 1.0)
    records, plain = RecordQueue(latest, [slot], 9, shows_start=True), RecordQueue(latest, [slot], 9)
    latest.take(ticker(price=3.0), 1.0)
    assert [records.next(0) for _ in range(3)] == [(ticker(price=2.0), True), (ticker(price=3.0), False), None]
    assert [plain.next(0) for _ in range(2)] == [(ticker(price=3.0), False), None]


@pytest.mark.parametrize("channel", ["stream", "rest"])
def test_queue_that_shows_the_start_takes_a_snapshot_that_is_no_news(latest: LatestRows, channel: str) -> None:
    """A row that was asked for before, and may be old, is not shown; the snapshot that confirms it is, once."""
    slot = latest.slot("ticker", "KRW-BTC")
    latest.offer("ticker", [ticker(price=2.0)], 1.0)
    latest.want([slot])
    records, plain = RecordQueue(latest, [slot], 9, shows_start=True), RecordQueue(latest, [slot], 9)
    assert len(records) == 0
    for _ in range(2):
        if channel == "stream":
            latest.take(ticker(price=2.0), 2.0, is_snapshot=True)
        else:
            latest.offer("ticker", [ticker(price=2.0)], 2.0)
    assert [records.next(0) for _ in range(2)] == [(ticker(price=2.0), True), None]
    assert len(plain) == 0
