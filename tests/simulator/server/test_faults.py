"""The script of faults, and what they do to rows."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from backbone.errors import InputError
from backbone.simulator.server.faults import KINDS, ROW_FAULTS, Fault, Faults, corrupt

ROWS: list[dict[str, Any]] = [
    {"market": "KRW-BTC", "candle_date_time_utc": f"2025-08-22T00:0{m}:00", "low_price": 1.0, "high_price": 2.0}
    for m in (4, 3, 2, 1)
]
TIMES = [row["candle_date_time_utc"] for row in ROWS]


def _times(kind: str, **options: Any) -> list[str]:
    return [row["candle_date_time_utc"] for row in corrupt(ROWS, Fault(kind, options=options))]


def test_fault_waits_for_its_path_lets_some_pass_and_is_then_gone() -> None:
    """`match`, `after` and `times`."""
    faults = Faults()
    fault = faults.add("500", match="days", times=2, after=1)
    paths = ["/v1/candles/minutes/1", "/v1/candles/days", "/v1/candles/days", "/v1/candles/days", "/v1/candles/days"]
    assert [len(faults.take(p)) for p in paths] == [0, 0, 1, 1, 0]
    assert (fault.seen, fault.used) == (3, 2)


def test_fault_without_times_stays_until_cleared() -> None:
    """`times=None` is for ever."""
    faults = Faults(Fault("slow", match="/v1/", times=None))
    assert all(faults.take("/v1/ticker") for _ in range(5))
    faults.clear()
    assert faults.take("/v1/ticker") == []
    assert faults.log == [("slow", "/v1/ticker")] * 5


def test_socket_faults_do_not_meet_requests() -> None:
    """Nor the other way round."""
    faults = Faults()
    faults.add("ws-drop", match="")
    faults.add("500", match="")
    assert [f.kind for f in faults.take("/v1/ticker")] == ["500"]
    assert [f.kind for f in faults.take("/websocket/v1", websocket=True)] == ["ws-drop"]


def test_market_faults_are_carried_out_at_once() -> None:
    """And those scripted before there was a market, as soon as there is one."""
    faults, done = Faults(), []
    faults.add("delist", market="KRW-A")
    faults.bind(lambda fault: done.append(fault.options["market"]))
    faults.add("delist", market="KRW-W")
    assert done == ["KRW-A", "KRW-W"]


def test_market_fault_waits_for_so_many_requests() -> None:
    """`after`: it is carried out before the next one is answered, and changes nothing else about that."""
    faults, done = Faults(), []
    faults.add("rescale", market="KRW-A", after=1)
    faults.bind(lambda fault: done.append(fault.options["market"]))
    later = faults.add("delist", market="KRW-W", match="days", after=1)
    seen = [(faults.take(f"/v1/candles/{path}"), list(done)) for path in ("minutes", "days", "days", "days")]
    assert seen == [([], []), ([], ["KRW-A"]), ([], ["KRW-A", "KRW-W"]), ([], ["KRW-A", "KRW-W"])]
    assert later.used == 1


def test_unknown_kind_is_an_input_error_that_lists_the_kinds() -> None:
    """So that the script is learnt from its message."""
    with pytest.raises(InputError, match="garbage"):
        Faults().add("explode")


def test_option_that_is_no_number_is_an_input_error() -> None:
    """It names kind and option."""
    with pytest.raises(InputError) as caught:
        Fault("slow", options={"seconds": "long"}).number("seconds", 1.0)
    assert caught.value.argument == "slow:seconds"


def test_each_use_is_handed_out_once_however_many_threads_ask() -> None:
    """Taking marks as taken in the same locked step."""
    faults = Faults(Fault("500", match="/v1/", times=50))
    taken: list[int] = []
    threads = [
        threading.Thread(target=lambda: taken.extend(len(faults.take("/v1/x")) for _ in range(100))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 50


def test_every_row_fault_is_listed_and_leaves_the_rows_it_was_given_alone() -> None:
    """Rows may be shared with other answers."""
    before = [dict(row) for row in ROWS]
    for kind in ROW_FAULTS:
        assert kind in KINDS
        options = {"field": "low_price"} if kind == "odd" else {}
        assert corrupt(ROWS, Fault(kind, options=options)) != ROWS
        assert before == ROWS


def test_row_faults_do_what_they_say() -> None:
    """Each corrupts one thing."""
    assert _times("empty") == []
    assert _times("short") == TIMES[:2]
    assert _times("short", rows=3) == TIMES[:3]
    assert _times("duplicate") == [*TIMES[:3], *TIMES[2:]]
    assert sorted(_times("disorder")) == sorted(TIMES) != _times("disorder")
    assert "2025-08-22T00:01:53" in _times("off-grid")
    assert _times("beyond", seconds=60)[0] == "2025-08-22T00:05:00"
    assert {r["market"] for r in corrupt(ROWS, Fault("wrong-market"))} == {"KRW-WRONG"}
    assert sum(r["high_price"] < r["low_price"] for r in corrupt(ROWS, Fault("bad-ohlc"))) == 1


@pytest.mark.parametrize("kind", sorted(ROW_FAULTS))
def test_row_faults_survive_an_empty_answer(kind: str) -> None:
    """There is nothing to corrupt."""
    assert corrupt([], Fault(kind)) == []


@pytest.mark.parametrize(("value", "left"), [("null", None), ("0", 0.0), ("missing", "gone")])
def test_odd_row_has_one_field_that_is_not_there(value: str, left: object) -> None:
    """In the middle row, in a chosen one, or in that of a market."""
    changed = corrupt(ROWS, Fault("odd", options={"field": "low_price", "value": value}))
    assert [row.get("low_price", "gone") for row in changed] == [1.0, 1.0, left, 1.0]
    first = corrupt(ROWS, Fault("odd", options={"field": "low_price", "value": value, "row": 0}))
    assert [row.get("low_price", "gone") for row in first] == [left, 1.0, 1.0, 1.0]
    rows = [ROWS[0], {**ROWS[1], "market": "KRW-ETH"}]
    other = corrupt(rows, Fault("odd", options={"field": "low_price", "value": value, "market": "KRW-ETH"}))
    assert [row.get("low_price", "gone") for row in other] == [1.0, left]
    assert corrupt(ROWS, Fault("odd", options={"field": "none"})) == ROWS


def test_gate_meets_long_addresses_only() -> None:
    """Shorter ones pass and are not counted."""
    faults = Faults()
    fault = faults.add("gate", limit=50, times=None)
    assert faults.take("/v1/ticker?markets=KRW-BTC") == []
    assert faults.take("/v1/ticker?markets=" + "KRW-BTC," * 9) == [fault]
    assert fault.seen == 1
