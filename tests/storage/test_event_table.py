"""Lines as columns: they say what the events say."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.storage import event_table
from backbone.storage.event_table import Event, EventTable, encode_events

AT = 1_755_820_800_000_000
NAMES = st.text(st.characters(codec="utf-8"), max_size=60)
DETAILS = st.dictionaries(st.text(max_size=9), st.one_of(st.booleans(), st.integers(-9, 9), NAMES), max_size=3)
EVENTS = st.builds(
    Event,
    st.integers(0, 9 * AT),
    st.one_of(st.sampled_from(["KRW-BTC", "BTC-ETH", ""]), NAMES),
    st.one_of(st.sampled_from(["listed", "warned"]), NAMES),
    DETAILS,
    NAMES,
)


def rows_of(table: EventTable) -> list[tuple[int, str, str]]:
    """The table's rows: time, market, kind."""
    markets, kinds = list(table.markets), list(table.kinds)
    rows = zip(table.at_us.tolist(), table.market.tolist(), table.kind.tolist(), strict=True)
    return [(at_us, markets[market], kinds[kind]) for at_us, market, kind in rows]


@given(st.lists(st.lists(EVENTS, max_size=6), max_size=4))
def test_columns_say_what_the_lines_say(pieces: list[list[Event]]) -> None:
    """Any names, times and details, in any number of pieces."""
    table = EventTable()
    for piece in pieces:
        table = table.extended(encode_events(piece))
    events = [event for piece in pieces for event in piece]
    assert rows_of(table) == [(event.at_us, event.market, event.kind) for event in events]
    assert table.events() == events
    assert table.size == len(encode_events(events))
    for market in {event.market for event in events}:
        assert table.events(market) == [event for event in events if event.market == market]


@pytest.mark.parametrize("cut", range(1, 110))
def test_cut_line_is_no_event(cut: int) -> None:
    """Wherever a crash cut a line, and a later writer ended it: its neighbours are whole, and it is not delivered."""
    event = Event(AT, "KRW-A", "named", {"korean_name": "a", "english_name": "b"}, "market list")
    line = encode_events([event])
    table = EventTable().extended(line + line[: min(cut, len(line) - 2)] + b"\n" + line)
    assert table.events() == [event, event]
    assert {name for _, name, _ in rows_of(table)} == {"KRW-A"}


def test_lines_of_another_form_are_decoded() -> None:
    """Spaces, another order of fields, a time that is no whole number: read, or left out, as their JSON says."""
    fields = {"at_us": AT, "market": "KRW-A", "kind": "listed", "detail": {"korean_name": "x" * 50}, "how": "hand"}
    spaced = msgspec.json.format(msgspec.json.encode(fields), indent=0) + b"\n"
    turned = msgspec.json.encode(dict(reversed(fields.items()))) + b"\n"
    wrong = msgspec.json.encode(fields).replace(b"1755820800000000", b"175582080000.0e9") + b"\n"
    table = EventTable().extended(spaced + turned + b"\n[]\n\xff\xfe\n" + wrong)
    whole = Event(AT, "KRW-A", "listed", {"korean_name": "x" * 50}, "hand")
    assert table.events()[:2] == [whole, whole]
    assert set(rows_of(table)) == {(AT, "KRW-A", "listed")}


def test_newest_line_of_each_class_is_the_last_of_the_rows_that_count() -> None:
    """In the log's order, in another one, and of the first lines only."""
    kinds = ["listed", "warned", "delisted", "listed", "state"]
    table = EventTable().extended(
        encode_events(Event(AT + at, "KRW-A", kind, {}, "x") for at, kind in enumerate(kinds))
    )
    classes = {"listed": 0, "delisted": 0, "warned": 1, "renamed": 2}
    assert table.newest(classes).tolist() == [[3, 1, -1]]
    assert table.newest(classes, np.arange(5)[::-1]).tolist() == [[0, 1, -1]]
    assert table.newest(classes, np.arange(1)).tolist() == [[0, -1, -1]]
    assert EventTable().newest(classes).tolist() == []


def kept(text: bytes) -> tuple[EventTable | None, list[tuple[int, int]]]:
    """What is loaded of the columns of `TEXT` where the log holds `text`, and what was read of it."""
    looks: list[tuple[int, int]] = []

    def read(offset: int, most: int) -> bytes:
        looks.append((offset, most))
        return text[offset : offset + most]

    return EventTable.loaded(EventTable().extended(TEXT[:2000]).extended(TEXT[2000:]).saved(), read), looks


TEXT = encode_events(Event(AT + at, f"KRW-{at % 7}", "restated", {"number": at}, "x") for at in range(99))
TEXT = TEXT[:2000].rpartition(b"\n")[0].ljust(1999, b"\n") + b"\n" + TEXT


def test_loaded_columns_are_those_that_were_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces or not, and with lines that follow; of the text only the blocks that are looked at are read."""
    monkeypatch.setattr(event_table, "_BLOCK_BYTES", 100)
    whole = EventTable().extended(TEXT)
    table, looks = kept(TEXT)
    assert table is not None
    assert (rows_of(table), table.size, table.events()) == (rows_of(whole), whole.size, whole.events())
    table, looks = kept(TEXT)
    assert table is not None
    assert table.event(50) == whole.event(50)
    assert len(looks) <= 4
    more = encode_events([Event(AT, "KRW-NEW", "listed", {}, "x")])
    assert table.extended(more).events() == whole.extended(more).events()
    again = EventTable.loaded(table.extended(more).saved(), lambda offset, most: (TEXT + more)[offset : offset + most])
    assert again is not None
    assert again.events() == whole.extended(more).events()


def test_columns_that_are_damaged_or_of_another_log_are_not_loaded() -> None:
    """Each byte counts; a log that is shorter, or has other lines at the end, is another one."""
    saved = EventTable().extended(TEXT).saved()
    for cut in (0, 3, 4, 100, len(saved) - 1):
        assert EventTable.loaded(saved[:cut], lambda offset, most: TEXT[offset : offset + most]) is None
        damaged = bytearray(saved)
        damaged[cut] ^= 1
        assert EventTable.loaded(bytes(damaged), lambda offset, most: TEXT[offset : offset + most]) is None
    assert kept(TEXT[:-10])[0] is None
    assert kept(TEXT[1:] + b"\n")[0] is None
    assert kept(b"")[0] is None


def test_event_that_the_log_has_no_more_is_none() -> None:
    """A log that was cut while its columns are in memory: what is gone is no event."""
    text = bytearray(TEXT)
    table = EventTable.loaded(EventTable().extended(TEXT).saved(), lambda at, most: bytes(text[at : at + most]))
    assert table is not None
    text[:] = TEXT.replace(str(AT + 3).encode(), str(AT + 4).encode())
    assert table.event(len(table) - 96) is None
    assert table.event(len(table) - 95) is not None
