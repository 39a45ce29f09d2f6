"""The live table: the smallest message that brings the browser to the present, and its static faces."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbone.api.notebook.table import TableDelta, TableRow, TableView, TickerTable, table_text
from backbone.errors import InputError
from backbone.testing import ManualClock

NAN = math.nan


def row(market: str = "KRW-BTC", price: float = 91_234_000.0, **changes: Any) -> TableRow:
    known = TableRow(market, price, 1000.0, -66_000.0, -0.00072, 1234.56, 1.1e11, "stream", 0.2)
    return known._replace(**changes)


def apply(state: dict[str, Any], message: dict[str, Any] | None) -> dict[str, Any]:
    """What the browser shows after a delta."""
    if message is None:
        return state
    for i, texts, numbers in message.get("r", ()):
        state["rows"][i] = texts
        state["numbers"][i] = numbers
    if "s" in message:
        state["line"] = message["s"]
    return state


rows = st.builds(
    TableRow,
    st.just("KRW-BTC"),
    st.sampled_from([91_234_000.0, 91_235_000.0, 0.5, NAN]),
    st.sampled_from([1000.0, 1.0, 1e-8]),
    st.sampled_from([0.0, 5.0, -5.0, NAN]),
    st.sampled_from([0.0, 0.01, -0.01, NAN]),
    st.sampled_from([0.0, 1234.5, 1e12, NAN]),
    st.sampled_from([0.0, 1.1e11, NAN]),
    st.sampled_from(["stream", "rest"]),
    st.sampled_from([0.0, 0.3, 45.0, NAN, math.inf]),
    st.just(""),
)
snapshots = st.lists(
    st.tuples(st.lists(rows, min_size=2, max_size=2), st.sampled_from(["streaming", "polling"])), min_size=1
)


@settings(max_examples=60, deadline=None)
@given(snapshots)
def test_deltas_bring_the_browser_to_what_a_fresh_one_would_see(history: list[tuple[list[TableRow], str]]) -> None:
    """After any history of deltas, cells, sort keys and state line equal those of the whole state."""
    delta = TableDelta()
    shown: dict[str, Any] = {}
    for step, (these, state) in enumerate(history):
        view = TableView([these[0], these[1]._replace(market="KRW-ETH")], state)
        if not shown:
            shown = delta.whole(view, step)
        else:
            assert delta.is_same_shape(view)
            apply(shown, delta.changes(view, step))
        fresh = TableDelta().whole(view, step)
        for part in ("rows", "numbers", "line"):
            assert shown[part] == fresh[part]


def test_an_unchanged_snapshot_sends_nothing() -> None:
    """What the browser knows is not sent again, however old it gets on its own."""
    delta = TableDelta()
    delta.whole(TableView([row(age_s=0.2)], "streaming"), 100.0)
    assert delta.changes(TableView([row(age_s=5.2)], "streaming"), 105.0) is None


def test_one_changed_price_sends_one_row_with_its_numbers() -> None:
    """A price that moved costs its row, some two hundred bytes at most."""
    delta = TableDelta()
    delta.whole(TableView([row(), row("KRW-ETH")], "streaming"), 0.0)
    message = delta.changes(TableView([row(), row("KRW-ETH", 91_235_000.0)], "streaming"), 0.0)
    assert message is not None
    [[at, texts, numbers]] = message.pop("r")
    assert message == {"t": "d"}
    assert (at, texts[:2], numbers[:2]) == (1, ["KRW-ETH", "91,235,000"], [None, 91_235_000.0])
    assert len(json.dumps([at, texts, numbers])) < 200


def test_a_row_that_was_received_again_sends_its_age() -> None:
    """The browser counts ages by itself; only a jump is sent."""
    delta = TableDelta()
    delta.whole(TableView([row(age_s=10.0)], "streaming"), 100.0)
    assert delta.changes(TableView([row(age_s=0.1)], "streaming"), 101.0) == {"t": "d", "a": [[0, 0.1]]}
    assert delta.changes(TableView([row(age_s=NAN)], "streaming"), 101.0) == {"t": "d", "a": [[0, None]]}
    assert delta.changes(TableView([row(age_s=NAN)], "streaming"), 102.0) is None


def test_a_change_of_state_sends_the_line_only() -> None:
    """A step down to polling is seen at once, without a cell being sent."""
    delta = TableDelta()
    delta.whole(TableView([row()], "streaming"), 0.0)
    assert delta.changes(TableView([row()], "polling", "socket down"), 0.0) == {
        "t": "d",
        "s": ["polling", "warn", "socket down"],
    }


def test_another_set_of_markets_is_another_shape() -> None:
    """A market that joins, leaves or moves needs the whole state."""
    delta = TableDelta()
    delta.whole(TableView([row(), row("KRW-ETH")]), 0.0)
    for other in ([row()], [row("KRW-ETH"), row()], [row(), row("KRW-ETH", name="이더리움")], []):
        assert not delta.is_same_shape(TableView(other))


class Venue:
    """A snapshot that the test changes."""

    def __init__(self) -> None:
        self.view = TableView([row(), row("KRW-ETH", 3_412_000.0)], "streaming")

    def __call__(self) -> TableView:
        return self.view


@pytest.fixture
def shown() -> Iterator[tuple[Venue, TickerTable, list[Any]]]:
    """A table with its widget made, and the messages it sends."""
    venue = Venue()
    table = TickerTable(venue, clock=ManualClock())
    messages: list[Any] = []
    table.widget.send = messages.append
    yield venue, table, messages
    table.widget.close()


def test_table_sends_deltas_and_no_html(shown: tuple[Venue, TickerTable, list[Any]]) -> None:
    """A refresh sends the changed rows and leaves the synced state as it was."""
    venue, table, messages = shown
    before = table.widget.state
    venue.view = venue.view._replace(rows=[row(price=91_300_000.0), venue.view.rows[1]])
    table.refresh(force=True)
    [message] = messages
    assert [(i, texts[1]) for i, texts, _ in message["r"]] == [(0, "91,300,000")]
    assert table.widget.state is before


def test_table_gives_a_late_browser_view_the_present_state(shown: tuple[Venue, TickerTable, list[Any]]) -> None:
    """A view that appears after deltas went out is brought to the present by the synced state."""
    venue, table, _ = shown
    venue.view = venue.view._replace(rows=[row(price=91_300_000.0), venue.view.rows[1]])
    table.refresh(force=True)
    assert table.widget.state["rows"][0][1] == "91,234,000"
    table.on_message({"t": "seen", "v": "b"})
    assert table.widget.state["rows"][0][1] == "91,300,000"


def test_table_with_other_markets_is_sent_whole(shown: tuple[Venue, TickerTable, list[Any]]) -> None:
    """When the markets change, the synced state is replaced."""
    venue, table, messages = shown
    venue.view = TableView([row("KRW-XRP", 812.0, tick=1.0)], "streaming")
    table.refresh(force=True)
    assert [cells[0] for cells in table.widget.state["rows"]] == ["KRW-XRP"]
    assert messages == []


def test_table_that_is_closed_says_so_and_keeps_its_rows(shown: tuple[Venue, TickerTable, list[Any]]) -> None:
    """Closing leaves the last prices on the screen, marked as no longer live."""
    _, table, messages = shown
    table.close("stopped")
    assert messages == [{"t": "d", "s": ["stopped", "off", ""]}]
    assert "91,234,000" in table.text()
    assert repr(table) == "TickerTable(2 markets, stopped)"


def test_table_repr_is_one_line() -> None:
    """The repr shows the number of markets and the state, before and after the first pull."""
    table = TickerTable(Venue())
    assert repr(table) == "TickerTable(0 markets, not shown)"
    table.refresh()
    assert repr(table) == "TickerTable(2 markets, streaming)"


def test_table_of_an_unknown_colour_scheme_is_refused() -> None:
    """Colours are Korean or Western."""
    with pytest.raises(InputError):
        TickerTable(Venue(), colours="pink")


def table_html(view: TableView, problem: str = "", *, colours: str = "korean") -> str:
    table = TickerTable(lambda: view, colours=colours)
    table.refresh()
    table.problem = problem
    return table.html()


def test_static_table_escapes_every_text_of_the_venue() -> None:
    """Markup in any field of the venue ends as text."""
    evil = "<script>alert(1)</script>"
    view = TableView([row(evil, source=evil, name=evil)], evil, evil)
    html = table_html(view, evil)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 4


def test_static_table_shows_direction_without_colour() -> None:
    """Arrows and signs survive a page that strips styles; the colours follow the convention asked for."""
    view = TableView([row(change=5000.0, change_rate=0.01), row("KRW-ETH", change=-5.0, change_rate=-0.01)])
    korean, western = table_html(view), table_html(view, colours="western")
    for html in (korean, western):
        assert "▲ +5,000" in html
        assert "▼ -5" in html
    assert korean.index("#cf3a2b") < korean.index("#1763c6")
    assert western.index("#0a8754") < western.index("#cf3a2b")


def test_static_table_is_the_same_for_the_same_rows() -> None:
    """Nothing random is in the HTML, so that notebooks compare equal."""
    view = TableView([row()], "streaming")
    assert table_html(view) == table_html(view)


def test_text_table_obeys_no_control_characters() -> None:
    """A terminal is never sent an escape sequence of the venue's."""
    text = table_text(TableView([row("KRW-\x1b[2J")], "streaming\r\n"))
    assert "\x1b" not in text
    assert "\r" not in text


def test_text_table_of_no_rows_has_a_head_and_a_state() -> None:
    """No markets are shown as no markets."""
    assert table_text(TableView((), "connecting")).splitlines()[-1] == "connecting · 0 markets"


def test_refresh_of_a_busy_market_stays_under_a_twentieth_of_a_core() -> None:
    """290 rows of which a third change cost less than 5 ms a refresh: 5 % of a core at ten a second."""
    source = random.Random(1)
    view = [row(f"KRW-C{i}", 1e6 + 1000 * i) for i in range(290)]
    table = TickerTable(lambda: TableView(list(view), "streaming"))
    table.widget.send = lambda message: None
    costs = []
    for _ in range(20):
        for i in source.sample(range(290), 97):
            view[i] = view[i]._replace(
                price=view[i].price + 1000, change=view[i].change + 1000, volume_24h=source.random()
            )
        began = time.process_time()
        table.refresh(force=True)
        costs.append(time.process_time() - began)
    table.widget.close()
    assert min(costs) < 0.005
