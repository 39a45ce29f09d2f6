"""The script of what goes wrong: faults are added while the exchange runs, and each request is given those it meets.

A fault waits for requests whose path (with the query) contains `match`. It lets `after` of them pass, applies to the
next `times` of them (None: for ever) and is gone. Faults that change the market itself (an outage, a delisting, a
renaming, a restatement) take effect at once. The lock guards the list; nothing else happens under it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from backbone.errors import InputError
from backbone.simulator.market.venue import Row

__all__ = ["KINDS", "ROW_FAULTS", "Fault", "Faults", "corrupt", "default_match"]

KINDS: Mapping[str, str] = {
    "429": "refused: body=text|json",
    "418": "blocked: seconds=5, the whole address",
    "500": "server error, JSON body",
    "502-html": "gateway error, HTML body",
    "portal": "a page of the network that asks to sign in, as an answer",
    "reset": "connection reset before any answer",
    "cut": "body cut in the middle, Content-Length says more: at=0.5",
    "stall": "no answer: seconds=30, then the connection closes",
    "slow": "a late answer: seconds=1",
    "gate": "addresses longer than limit=2000 are refused with status=414",
    "odd": "a row with a field that is not there: field=opening_price, value=null|0|missing, market=|row=half",
    "empty": "an empty list",
    "short": "fewer rows than there are: rows=half",
    "duplicate": "one row twice",
    "disorder": "rows out of order",
    "wrong-market": "rows of another market",
    "off-grid": "a time between two candles",
    "bad-ohlc": "a high below the low",
    "garbage": "not JSON",
    "beyond": "a row at or after `to`",
    "numbers": "exponent and padded spellings of every number",
    "gzip-off": "no compression though it was asked for",
    "late": "the last seconds of trades are not counted yet: seconds=2",
    "outage": "no trades: start=, end= (now)",
    "list": "a market is listed: market=, at= (now)",
    "delist": "a market vanishes: market=, at= (now; until then the stream announces it)",
    "rename": "a market moves to another code with its history: market=, to=",
    "rescale": "a redenomination: market=, factor=, prices times it and volumes divided by it, the whole history",
    "describe": "what is said of a market: market=, state= suspended= warning= cautions=A,B korean_name= english_name=",
    "restate": "opens are corrected: market=, start=, end=, shift=0.0005",
    "archive-missing": "the archive has no such file",
    "archive-checksum": "the archive's checksum does not agree with its file",
    "archive-columns": "a file of the archive has other columns",
    "archive-values": "a file of the archive has prices that REST does not confirm",
    "archive-layout": "the archive's listing has another shape",
    "ws-drop": "socket closed without a close frame: seconds=0 after the subscription",
    "ws-stall": "socket open, nothing sent, no pong: seconds=60",
    "ws-garbage": "a frame that is not JSON among the others",
    "ws-refuse": "connection refused: status=429|503",
    "ws-odd": "one frame with a field that is null, 0 or missing: as odd; match=ticker or a code",
    "ws-slow": "every frame late: seconds=1",
}
"""Kind → what it does and its options."""

MARKET_KINDS = frozenset({"outage", "list", "delist", "rename", "rescale", "describe", "restate"})
_DEFAULT_MATCH = {"archive-layout": "/market-data/listing", "odd": "/v1/ticker", "gate": "/v1/"}


@dataclass
class Fault:
    """One scripted fault; ``options`` are its keywords."""

    kind: str
    match: str = "/v1/candles"
    times: int | None = 1
    after: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    seen: int = 0
    used: int = 0

    def number(self, name: str, default: float) -> float:
        value = self.options.get(name, default)
        try:
            return float(value)
        except (TypeError, ValueError) as exc:
            raise InputError(f"{self.kind}:{name}", value, "a number") from exc

    def text(self, name: str, default: str) -> str:
        return str(self.options.get(name, default))


def default_match(kind: str) -> str:
    """The requests that a fault of this kind meets unless `match` says otherwise."""
    family = {"ws": "/websocket/v1", "archive": "/candle/"}.get(kind.partition("-")[0], "/v1/candles")
    return _DEFAULT_MATCH.get(kind, family)


class Faults:
    """A thread-safe script of faults.

    >>> faults = Faults()
    >>> _ = faults.add("500", match="/v1/candles", times=2)
    >>> [f.kind for f in faults.take("/v1/candles/days?market=KRW-BTC")]
    ['500']
    """

    def __init__(self, *scripted: Fault) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = list(scripted)
        self._apply: Callable[[Fault], None] | None = None
        self._log: deque[tuple[str, str]] = deque(maxlen=10_000)

    def __repr__(self) -> str:
        with self._lock:
            return f"Faults({', '.join(f.kind for f in self._waiting)})"

    def add(
        self, kind: str, *, match: str | None = None, times: int | None = 1, after: int = 0, **options: Any
    ) -> Fault:
        """Script one fault; `KINDS` lists what there is. Returns it, to watch ``used``."""
        if kind not in KINDS:
            raise InputError("kind", kind, "one of " + " ".join(KINDS))
        fault = Fault(kind, default_match(kind) if match is None else match, times, after, options)
        with self._lock:
            self._waiting.append(fault)
        self._change_market()
        return fault

    def clear(self) -> None:
        """Forget every fault still waiting (changes to the market stay)."""
        with self._lock:
            self._waiting.clear()

    def bind(self, apply: Callable[[Fault], None]) -> None:
        """Say who carries out the faults that change the market; scripted ones are carried out now."""
        with self._lock:
            self._apply = apply
        self._change_market()

    def _change_market(self) -> None:
        """Carry out the changes to the market that wait for nothing but somebody who can."""
        with self._lock:
            apply = self._apply
            due = [fault for fault in self._waiting if apply and fault.kind in MARKET_KINDS and not fault.after]
            self._waiting = [fault for fault in self._waiting if fault not in due]
        for fault in due:
            assert apply is not None
            apply(fault)
            fault.used += 1

    def take(self, target: str, *, websocket: bool = False, only: Set[str] | None = None) -> list[Fault]:
        """The faults that apply to this request (path and query), each counted as used.

        On a socket every data frame counts as a request, but for ``ws-refuse``, where connecting does. A change to the
        market that was to come `after` so many requests is carried out before this one is answered.
        """
        taken: list[Fault] = []
        with self._lock:
            for fault in list(self._waiting):
                if fault.match not in target or fault.kind.startswith("ws-") is not websocket:
                    continue
                if only is not None and fault.kind not in only:
                    continue
                if fault.kind == "gate" and len(target) <= fault.number("limit", 2000):
                    continue
                fault.seen += 1
                if fault.seen <= fault.after:
                    continue
                fault.used += 1
                taken.append(fault)
                self._log.append((fault.kind, target))
                if fault.times is not None and fault.used >= fault.times:
                    self._waiting.remove(fault)
            apply = self._apply
        if apply is not None:
            for fault in [fault for fault in taken if fault.kind in MARKET_KINDS]:
                taken.remove(fault)
                apply(fault)
        return taken

    @property
    def log(self) -> list[tuple[str, str]]:
        """What was applied: (kind, path and query), the newest 10,000."""
        with self._lock:
            return list(self._log)


# -- what a fault does to rows ---------------------------------------------------------------------------------

_TIMES = ("candle_date_time_utc", "candle_date_time_kst")


def corrupt(rows: list[Row], fault: Fault) -> list[Row]:
    """The rows as the fault would have them; the given ones, which other answers may share, stay as they are."""
    return ROW_FAULTS[fault.kind](rows, fault)


def _duplicate(rows: list[Row], _: Fault) -> list[Row]:
    at = len(rows) // 2
    return [*rows[: at + 1], *rows[at:]] if rows else rows


def _disorder(rows: list[Row], _: Fault) -> list[Row]:
    return rows[::-1] if len(rows) < 3 else [rows[1], rows[0], *rows[2:]]


def _wrong_market(rows: list[Row], fault: Fault) -> list[Row]:
    name = fault.text("market", "KRW-WRONG")
    return [{**row, "market": name} if "market" in row else row for row in rows]


def _shifted(row: Row, seconds: float) -> Row:
    moved = dict(row)
    for name in _TIMES:
        if name in row:
            moved[name] = (datetime.fromisoformat(row[name]) + timedelta(seconds=seconds)).isoformat()
    return moved


def _changed(rows: list[Row], at: int, change: Callable[[Row], Row]) -> list[Row]:
    """The rows with one of them changed."""
    return [change(row) if i == at else row for i, row in enumerate(rows)]


def _bad_ohlc(rows: list[Row], _: Fault) -> list[Row]:
    return _changed(
        rows, len(rows) // 2, lambda row: row | {"high_price": row["low_price"] * 0.99} if "low_price" in row else row
    )


def odd_row(row: Row, fault: Fault) -> Row:
    """The row with one field null, 0 or missing."""
    name, value = fault.text("field", "opening_price"), fault.text("value", "null")
    if name not in row:
        return row
    if value == "missing":
        return {key: one for key, one in row.items() if key != name}
    return {**row, name: None if value in ("null", "None") else float(value)}


def _odd(rows: list[Row], fault: Fault) -> list[Row]:
    code = fault.options.get("market")
    if code is not None:
        return [odd_row(row, fault) if row.get("market") == code else row for row in rows]
    return _changed(rows, int(fault.number("row", len(rows) // 2)), lambda row: odd_row(row, fault))


ROW_FAULTS: dict[str, Callable[[list[Row], Fault], list[Row]]] = {
    "empty": lambda _rows, _fault: [],
    "short": lambda rows, fault: rows[: int(fault.number("rows", len(rows) // 2))],
    "duplicate": _duplicate,
    "disorder": _disorder,
    "wrong-market": _wrong_market,
    "off-grid": lambda rows, _: _changed(rows, len(rows) // 2, lambda row: _shifted(row, -7)),
    "beyond": lambda rows, fault: _changed(rows, 0, lambda row: _shifted(row, fault.number("seconds", 86_400.0))),
    "bad-ohlc": _bad_ohlc,
    "odd": _odd,
}
