"""What is fuzzed: functions of hostile bytes that raise AssertionError where a promise is broken.

The promise is the same everywhere: no exception outside the error tree, and no wrong row.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from backbone.api.arguments import parse_market, parse_time
from backbone.coordinator.candles.pending import Pending
from backbone.coordinator.candles.planner import SeriesPlan
from backbone.coordinator.candles.witness import EARLIEST_US, check, judge
from backbone.errors import CorruptPartitionError, InputError, PayloadError, SourceError, StoreError
from backbone.model import CANDLE_SCHEMA, Priority, Span
from backbone.routing import refusals, wire
from backbone.storage.coverage import EVER, Coverage, SpanSet
from backbone.storage.layout import Series, is_market_name
from backbone.storage.partition import (
    Partition,
    decode_coverage,
    decode_partition,
    encode_coverage,
    encode_partition,
    peek_footer,
)
from backbone.timeframe import TIMEFRAMES, period_of
from tests.storage.helpers import MAY, MINUTE, minutes, open_store, opens, rows_of, span

__all__ = ["SEEDS", "TARGETS"]

TO = MAY + 600 * MINUTE.step_us
_STAMP = "2024-05-01T00:01:00"
_ROW = {
    "market": "KRW-BTC", "candle_date_time_utc": _STAMP, "opening_price": 2.0, "high_price": 3.0, "low_price": 1.0,
    "trade_price": 2.5, "timestamp": 1714521660500, "candle_acc_trade_price": 5.0, "candle_acc_trade_volume": 2.0,
}  # fmt: skip
_TICKER = {
    "market": "KRW-BTC", "trade_timestamp": 1785397260652, "opening_price": 2.0, "high_price": 3.0, "low_price": 1.0,
    "trade_price": 2.0, "prev_closing_price": 2.0, "signed_change_price": 0.0, "signed_change_rate": 0.0,
    "acc_trade_price": 4.0, "acc_trade_price_24h": 4.0, "acc_trade_volume": 2.0, "acc_trade_volume_24h": 2.0,
    "timestamp": 1785397260707,
}  # fmt: skip
_BOOK = {
    "market": "KRW-BTC", "timestamp": 1790134742106, "total_ask_size": 2.5, "total_bid_size": 1.6, "level": 0,
    "orderbook_units": [{"bid_price": 1, "bid_size": 1, "ask_price": 2, "ask_size": 1}],
}  # fmt: skip
_TRADE = {
    "market": "KRW-BTC", "trade_date_utc": "2026-07-30", "trade_time_utc": "07:41:00", "timestamp": 1785397260660,
    "trade_price": 9.0, "trade_volume": 1.0, "prev_closing_price": 9.0, "change_price": 0.0, "ask_bid": "BID",
    "sequential_id": 17853972606600000,
}  # fmt: skip
_ASKS = [
    wire.candles_ask("KRW-BTC", MINUTE, TO, 200),
    wire.markets_ask(),
    wire.tickers_ask(["KRW-BTC"]),
    wire.orderbooks_ask(["KRW-BTC"]),
    wire.instruments_ask(["KRW-BTC"]),
    wire.trades_ask("KRW-BTC", 500),
]


class Bytes:
    """Hostile bytes, read as numbers; zeros once they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, most: int) -> int:
        """0 to `most`."""
        size = 1 if most < 256 else 3
        part = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(part.ljust(size, b"\0"), "little") % (most + 1)

    @property
    def is_left(self) -> bool:
        return self._at < len(self._data)

    def rest(self) -> bytes:
        return self._data[self._at :]


def fuzz_wire(data: bytes) -> None:
    """A body is parsed into what it should be, or is a `PayloadError`."""
    hostile = Bytes(data)
    which = hostile.number(len(_ASKS))
    body = hostile.rest()
    try:
        found = wire.parse_frame(body) if which == len(_ASKS) else _ASKS[which].parse(body)
    except PayloadError as exc:
        found = len(exc.sample)
    assert not isinstance(found, int) or found <= 200
    if isinstance(found, wire.CandlePage):
        _check_page(found)


def _check_page(page: wire.CandlePage) -> None:
    table = page.table
    assert table.schema == CANDLE_SCHEMA
    assert page.rows == table.num_rows <= 200
    times = np.array(opens(table), dtype=np.int64)
    assert (times[1:] > times[:-1]).all()
    assert (times % MINUTE.step_us == 0).all()
    assert (times < TO).all()
    assert page.oldest_us == (int(times[0]) if len(times) else None)
    column = {name: table.column(name).to_numpy() for name in CANDLE_SCHEMA.names[1:]}
    assert all(np.isfinite(values).all() for values in column.values())
    assert (column["low"] > 0).all()
    for name in ("open", "close"):
        assert ((column["low"] <= column[name]) & (column[name] <= column["high"])).all()


def fuzz_refusal(data: bytes) -> None:
    """Whatever the venue says instead of data is one of its errors, with a wait that can be kept."""
    hostile = Bytes(data)
    status = (200, 301, 400, 404, 408, 418, 429, 500, 503)[hostile.number(8)]
    cut = hostile.number(255)
    text = hostile.rest()[:cut].decode("latin-1")
    body = hostile.rest()[cut:]
    error = refusals.refusal(status, body, "candles", MAY, retry_after=text, location=text)
    assert isinstance(error, SourceError)
    wait_s = getattr(error, "retry_after_s", 0.0)
    assert 0 <= wait_s <= 1_000_000
    group, left = refusals.parse_remaining(text)
    assert group is None or group
    assert left is None or left >= 0
    date_us = refusals.parse_date(text)
    assert date_us is None or isinstance(date_us, int)


def fuzz_planner(data: bytes) -> None:
    """Among true and corrupted replies the plan never breaks; what it proves holds no candle that was not sent."""
    hostile = Bytes(data)
    step, base = MINUTE.step_us, MAY
    plan = SeriesPlan(MINUTE, page_size=2 + hostile.number(8))
    traded = {base + hostile.number(90) * step for _ in range(hostile.number(40) + 1)}
    held: set[int] = set()
    proven: SpanSet = SpanSet()
    wants = []
    for _ in range(1 + hostile.number(3)):
        start = hostile.number(90)
        part = Span(base + start * step, base + (start + 1 + hostile.number(60)) * step)
        missing, ascending = SpanSet([part]), bool(hostile.number(1))
        wants.append(Pending("KRW-BTC", MINUTE, part, Priority.LOW, missing, ascending=ascending))
        plan.add(wants[-1])
    flying = []
    for _ in range(3000):
        open_wants = [want for want in wants if not want.is_done]
        if not open_wants and not flying:
            break
        page = plan.next_page(open_wants[hostile.number(len(open_wants) - 1)]) if open_wants else None
        if page is not None:
            flying.append(page)
            assert 1 <= page.count <= plan.page_size
            if hostile.number(3):
                continue
        if not flying:
            continue
        page = flying.pop(hostile.number(len(flying) - 1))
        reply = sorted(t for t in traded if t < page.to_us)[-page.count :]
        deed = hostile.number(7) if hostile.is_left else 7
        is_corrupted = deed < 3
        if deed == 0:
            reply = []
        elif deed == 1:
            reply = reply[len(reply) // 2 :]
        elif deed == 2:
            reply = reply[: len(reply) // 2]
        elif deed == 3:
            plan.retract(page)
            continue
        elif deed == 4:
            plan.fail(page, PayloadError("lost"))
            continue
        verdict = judge(page, reply[0] if reply else None, len(reply))
        try:
            check(page, verdict, reply[-1] if reply else None, min(held, default=None), "KRW-BTC 1m")
        except PayloadError as exc:
            plan.fail(page, exc)
            continue
        held.update(reply)
        if not is_corrupted and not verdict.proof.holds(EARLIEST_US):
            proven = proven | verdict.proof
        assert all(verdict.proof.holds(t) for t in reply if t < page.to_us)
        behind = None if verdict.edge_us is None else verdict.edge_us
        anchor = None if behind is None else min((t for t in held if behind <= t < behind + 9 * step), default=None)
        plan.settle(page, verdict, len(reply), anchor_us=anchor)
    assert all(want.is_done for want in wants), "the plan never ended"
    assert all(t in held for t in traded if proven.holds(t))


@cache
def _sealed() -> tuple[bytes, bytes, Series, Span]:
    series, period = Series("upbit", "KRW-BTC", MINUTE), period_of(MINUTE, MAY)
    partition = Partition(minutes(0, 300, every=2), Coverage(SpanSet([span(0, 300)])), Partition.empty().revisions)
    data = bytes(encode_partition(partition, series, period).data)
    quiet = bytes(encode_coverage(Coverage(SpanSet([span(-9000, -5000)])), series))
    return data, quiet, series, period


def _edited(original: bytes, hostile: Bytes) -> bytes:
    """`original` after the edits that the bytes say: overwritten, inserted, cut."""
    data = bytearray(original)
    while hostile.is_left:
        kind, at, size = hostile.number(3), hostile.number(1 << 20) % (len(data) + 1), hostile.number(40)
        if kind == 0:
            data[at : at + 1] = bytes([hostile.number(255)])
        elif kind == 1:
            data[at:at] = bytes(hostile.number(255) for _ in range(size))
        elif kind == 2:
            del data[at : at + size]
        else:
            del data[at:]
    return bytes(data)


def fuzz_partition(data: bytes) -> None:
    """An edited file is what was written, or damage; never another row, never another error."""
    original, quiet, series, period = _sealed()
    edited = _edited(original, Bytes(data))
    try:
        found = decode_partition(edited, series, period, "p")
    except StoreError:
        assert edited != original
    else:
        assert edited == original
        assert rows_of(found.table) == rows_of(minutes(0, 300, every=2))
    peek_footer(edited[-4096:])
    sidecar = _edited(quiet, Bytes(data))
    try:
        ledger = decode_coverage(sidecar, series, "p")
    except StoreError:
        assert sidecar != quiet
    else:
        assert ledger.covered == SpanSet([span(-9000, -5000)])


def fuzz_store(data: bytes) -> None:
    """A store with an edited file gives the rows that were put, or says that it does not know them."""
    original, quiet, series, period = _sealed()
    hostile = Bytes(data)
    is_partition = bool(hostile.number(1))
    rest = Bytes(hostile.rest())
    with tempfile.TemporaryDirectory(prefix="backbone-fuzz-") as folder:
        for key, content in ((series.key(period), original), (series.quiet_key, quiet)):
            path = Path(folder) / key
            path.parent.mkdir(parents=True)
            path.write_bytes(_edited(content, rest) if is_partition == (content is original) else content)
        store = open_store(Path(folder))
        try:
            found = store.read("KRW-BTC", MINUTE, EVER)
            store.footer_coverage("KRW-BTC", MINUTE, EVER)
        except CorruptPartitionError as exc:
            raise AssertionError("damage is survived, not raised") from exc
        except StoreError:
            return  # from a newer version
        truth = rows_of(minutes(0, 300, every=2))
        rows = rows_of(found.table)
        assert rows in ({}, truth)
        assert found.covered - SpanSet([span(0, 300), span(-9000, -5000)]) == SpanSet()
        assert bool(rows) == found.covered.contains(span(0, 300))
        assert all(problem.kind == "leftover" for problem in store.verify())


def fuzz_words(data: bytes) -> None:
    """Market names and times of any text are an `InputError` or safe: a name can be stored, a time is an int."""
    text = data.decode("utf-8", "replace")
    refused = []
    try:
        assert is_market_name(parse_market(text, "KRW"))
    except InputError as exc:
        refused.append(exc.argument)
    try:
        assert isinstance(parse_time("start", text, "Asia/Seoul", lambda: MAY), int)
    except InputError as exc:
        refused.append(exc.argument)
    assert set(refused) <= {"market", "start"}
    for timeframe in TIMEFRAMES.values():
        assert Series("upbit", "KRW-BTC", timeframe).folder.startswith("candles/exchange=upbit/market=KRW-BTC/")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "wire": fuzz_wire,
    "refusal": fuzz_refusal,
    "planner": fuzz_planner,
    "partition": fuzz_partition,
    "store": fuzz_store,
    "words": fuzz_words,
}

SEEDS: dict[str, list[bytes]] = {
    "wire": [
        bytes([at]) + json.dumps(content).encode()
        for at, content in enumerate(
            (
                [_ROW],
                [{"market": "KRW-BTC", "korean_name": "b", "english_name": "b"}],
                [_TICKER],
                [_BOOK],
                [{"market": "KRW-BTC", "quote_currency": "KRW", "tick_size": "1", "supported_levels": ["0"]}],
                [_TRADE],
                {"type": "trade", "code": "KRW-BTC", "status": "UP"},
            )
        )
    ],
    "refusal": [
        b"\x05\x20Wed, 21 Oct 2026 07:28:00 GMT   " + b'{"error":{"name":418,"message":"blocked for 30 seconds"}}',
        b"\x05\x30Wed, 21 Oct 2026 07:28:0" + b"2" * 40 + b" GMT",
        b"\x06\x30group=candles; min=600; sec=9                    " + b"Too many API requests.",
    ],
    "planner": [bytes(range(60)), bytes(200), bytes([7] * 100)],
    "partition": [b"", b"\0\0\1\0\0\7", b"\3\0\1\0\0", b"\0J" + b"\xc0" * 10 + b"JJJ\1\0\0\0BJJ."],
    "store": [b"\1", b"\1\0\0\1\0\0\7", b"\0\3\0\0\0\0"],
    "words": [b"KRW-BTC", b"BTC/KRW", b"2024-03", b"3d", b"2024-03-01T00:00:00+09:00", b"../../x", b"0220....."],
}
