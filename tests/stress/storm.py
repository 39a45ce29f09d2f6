"""Random calls for candles on one store, each compared with the exchange's own history.

``python -m tests.stress storm --calls 5000`` draws markets (also thin and young ones), timeframes, ranges off the grid,
counts, the first so many, the forming candle, offline, critical, refresh, faults of the matrix, restarts, a second
process on the same folder that asks at the same moment, and a live table beside. The exchange's clock moves between the
calls, by seconds or by hours. An answer is right, or an error of the tree whose part is right; nothing else is.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from backbone import Backbone
from backbone.coordinator import coordinator, scheduler
from backbone.coordinator.quota.ledger import MachineLimiter
from backbone.coordinator.quota.rules import Rules
from backbone.errors import BackboneError, IncompleteError
from backbone.routing.rest import RestClient
from backbone.simulator import SimulatorServer
from backbone.timeframe import Timeframe, parse_timeframe
from tests.matrix import CANDLES, FAULTS, NOW, ODD_FIELDS
from tests.processes import CONTEXT, process
from tests.stress.report import Tally

__all__ = ["Storm", "StormTally", "run"]

MARKETS = ("KRW-BTC", "KRW-ETH", "KRW-THETA", "KRW-CARV", "BTC-ETH", "USDT-XRP")
TIMEFRAMES = ("1s", "1m", "1m", "1m", "3m", "5m", "15m", "1h", "1h", "4h", "1d", "1w", "1M", "2h", "45m")
STREAMED = (("KRW-BTC", "1m"), ("KRW-ETH", "1m"))
LIMIT = 1000
GRACE_US = 3_000_000
COLUMNS = ["open", "high", "low", "close", "volume", "value"]
_WAITING = frozenset({"429", "418"})  # they cost real seconds, and the matrix has them
_IMPOSSIBLE = frozenset({("1s", "off-grid")})  # every second is on the grid: a row that moved is one that was there


@dataclass
class StormTally(Tally):
    """What the calls came to, by their kind; ``wrong`` says what was not right."""

    wrong: list[str] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)

    def facts(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.rows.items()))
        return f"{self.verdict.rows:,} rows checked; {kinds}"

    def faulty(self) -> Iterable[str]:
        return self.wrong


@dataclass(frozen=True)
class Call:
    """One call: its words, and what it does besides."""

    market: str
    timeframe: str
    words: dict[str, Any]
    fault: tuple[str, int] | None = None

    def __str__(self) -> str:
        return f"{self.market} {self.timeframe} {self.words} fault={self.fault}"


def _time(time_us: int) -> pd.Timestamp:
    return pd.Timestamp(time_us, unit="us", tz="UTC")


def _us(time: Any) -> int:
    return int(pd.Timestamp(time).value) // 1000


def _quick() -> None:
    """Retries at once, a quota that is not in the way, and all the time that a reply of three years of days takes on a
    busy machine: what those are, others test."""
    scheduler._BACKOFF_S = (0.001, 0.01)
    coordinator.RestClient = partial(RestClient, timeout_s=(60.0, 60.0), total_s=120.0)  # type: ignore[assignment,misc]
    coordinator.MachineLimiter = partial(MachineLimiter, rules=Rules(limit=LIMIT))  # type: ignore[assignment,misc]


def _answer(client: Backbone, call: Call) -> tuple[str, Any]:
    """``("frame", …)``, or the kind of the error with the part that it has."""
    try:
        return "frame", client.candles(call.market, call.timeframe, progress=False, **call.words)
    except IncompleteError as exc:
        return "part", exc.frame
    except BackboneError as exc:
        return "error", type(exc).__name__


def _sync(client: Backbone) -> None:
    """Any reply brings the venue's time: a clock that jumps within two seconds of the last one is nobody's."""
    client.tickers("KRW-BTC", max_age=0)


def _second(folder: str, url: str, ledger: str, calls: Any) -> None:
    """The other process: answers what it is sent, until None."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BACKBONE_LEDGER_DIR", ledger)
        _quick()
        with Backbone(data_dir=folder, rest_url=url) as client:
            while (call := calls.recv()) is not None:
                calls.send(_sync(client) if call == "sync" else _answer(client, call))


def _is_between(before: Any, row: Any, now: Any) -> bool:
    """Whether a forming candle is as the stream had it between two times: a frame that the exchange has only just sent
    may still be on its way. A value of `before` is not a number where the candle had not begun."""
    has_shrunk = before["low"] < row["low"] or before["high"] > row["high"] or before["volume"] > row["volume"]
    is_beyond = row["low"] < now["low"] or row["high"] > now["high"] or row["volume"] > now["volume"]
    return bool(row["open"] == now["open"]) and not has_shrunk and not is_beyond


class Storm:
    """Calls drawn from a seed, and what the exchange says to each.

    ``moved_us`` has the exchange's time before each of its last moves.
    """

    def __init__(self, server: SimulatorServer, seed: int) -> None:
        self.server = server
        self.chance = random.Random(seed)
        self.moved_us: deque[int] = deque([server.clock.now_us()], maxlen=3)

    # -- what is asked -------------------------------------------------------------------------------------------

    def draw(self, now_us: int, *, may_fail: bool) -> Call:
        """A random call."""
        chance = self.chance
        timeframe = chance.choice(TIMEFRAMES)
        step = parse_timeframe(timeframe, derived=True)
        market = chance.choice(MARKETS)
        reach = chance.choice([5, 60, 300, 900])
        if step.step_us >= parse_timeframe("1h").step_us:
            reach = min(reach, 400)
        if timeframe in ("1w", "1M"):
            reach = 40
        back_us = reach * step.step_us
        start_us = now_us - chance.randrange(back_us // 2, back_us + 1)
        end_us = start_us + chance.randrange(1, back_us + 1)
        if chance.random() < 0.5:  # off the grid
            start_us += chance.randrange(-step.step_us, step.step_us)
        start_us = min(start_us, now_us - 1_000_000)
        count = chance.randrange(1, max(2, reach // 2))
        words: dict[str, Any] = {}
        kind = chance.choice(["range", "range", "open", "count", "count", "until", "first"])
        if kind in ("range", "open", "first"):
            words["start"] = _time(start_us // 1000 * 1000)
        if kind == "range" or kind == "until":
            words["end"] = _time(max(end_us, start_us + 1_000_000) // 1000 * 1000)
        if kind in ("count", "until", "first"):
            words["count"] = count
        flag = chance.choice(["", "", "", "forming", "offline", "critical", "refresh", "low"])
        if flag == "forming":
            words["include_forming"] = True
        elif flag in ("offline", "refresh"):
            words[flag] = True
        elif flag:
            words["priority"] = flag
        fault = None
        if may_fail and chance.random() < 0.2:
            kinds = [name for name in FAULTS if name not in _WAITING and (timeframe, name) not in _IMPOSSIBLE]
            fault = chance.choice(kinds), chance.randrange(3)
        return Call(market, timeframe, words, fault)

    # -- what is right -------------------------------------------------------------------------------------------

    def truth(self, market: str, step: Timeframe, start_us: int, end_us: int, now_us: int) -> pd.DataFrame:
        """The exchange's candles that open in a span, as of now; those of other lengths summed from shorter ones."""
        if step.base is None:
            table = self.server.exchange.candle_table(market, step, start_us, end_us, now_us)
            return table.to_pandas().set_index("time")
        base = self.truth(market, step.base, step.floor(start_us), end_us, now_us)
        opens = base.index.map(lambda time: _time(step.floor(_us(time))))
        groups = base.groupby(opens)
        folded = groups.agg({"open": "first", "high": "max", "low": "min", "close": "last"})
        for name in ("volume", "value"):
            folded[name] = groups[name].agg(lambda column: float(sum(Decimal(repr(each)) for each in column)))
        return folded[folded.index >= _time(start_us)].rename_axis("time")

    def check(self, call: Call, outcome: tuple[str, Any], now_us: int, *, is_exact: bool) -> tuple[int, str]:
        """The rows that were compared, and what is wrong; ``""`` where nothing is."""
        kind, frame = outcome
        if kind == "error" or frame is None:
            return 0, ""
        step = parse_timeframe(call.timeframe, derived=True)
        frame = frame.tz_convert("UTC")
        begin = call.words.get("start")
        low = step.floor(_us(frame.index[0])) if len(frame) else now_us
        if begin is not None:
            low = min(low, step.ceil(_us(begin)))
        right = self.truth(call.market, step, low, now_us + step.step_us, now_us)
        closed = _time(step.floor(now_us - GRACE_US))
        if call.words.get("include_forming"):
            return len(frame), self._check_forming(call, frame, right, step, now_us)
        if not frame.index.is_monotonic_increasing or not frame.index.is_unique:
            return len(frame), "not sorted"
        known = right.reindex(frame.index)
        if (frame.index >= closed).any():
            return len(frame), f"a candle that is not closed: {frame.index[-1]}, now {_time(now_us)}"
        if not (frame[COLUMNS].to_numpy() == known[COLUMNS].to_numpy()).all():
            differing = (frame[COLUMNS] != known[COLUMNS]).any(axis=1)
            return len(frame), f"{int(differing.sum())} rows are not the exchange's, first {frame.index[differing][0]}"
        if kind == "frame" and is_exact:
            return len(frame), self._check_whole(call, frame, right[right.index < closed], step)
        return len(frame), ""

    def _check_whole(self, call: Call, frame: pd.DataFrame, right: pd.DataFrame, step: Timeframe) -> str:
        words = call.words
        if "end" in words:
            right = right[right.index < _time(step.ceil(_us(words["end"])))]
        if "start" in words:
            right = right[right.index >= _time(step.ceil(_us(words["start"])))].head(words.get("count", len(right)))
        else:
            right = right.tail(words["count"])
            if len(frame) < words["count"] and len(frame) < len(right):
                return f"{len(frame)} rows of {len(right)}"
        lacking = right.index.difference(frame.index)
        more = frame.index.difference(right.index)
        return f"{len(lacking)} rows lack, {len(more)} are too many" if len(lacking) or len(more) else ""

    def _forming(self, market: str, step: Timeframe, now_us: int) -> pd.DataFrame:
        """The candle that is not over, as the exchange has it now; of a derived length its columns are not compared."""
        rows = self.server.exchange.candles(market, step.name, None, 1, now_us) if step.base is None else []
        names = ["opening_price", "high_price", "low_price", "trade_price"]
        names += ["candle_acc_trade_volume", "candle_acc_trade_price"]
        times = pd.DatetimeIndex([row["candle_date_time_utc"] for row in rows], tz="UTC").as_unit("us")
        found = pd.DataFrame([[float(row[name]) for name in names] for row in rows], index=times, columns=COLUMNS)
        return found[found.index >= _time(step.floor(now_us))]

    def _check_forming(self, call: Call, frame: pd.DataFrame, right: pd.DataFrame, step: Timeframe, now_us: int) -> str:
        if "forming" not in frame.columns:
            return "no column forming"
        if frame["forming"].sum() > 1 or frame["forming"][:-1].any():
            return "more than one row forms"
        if step.base is not None:
            frame = frame[frame.index < _time(step.floor(now_us))]
        known = pd.concat([right, self._forming(call.market, step, now_us)]).reindex(frame.index)
        differing = (frame[COLUMNS] != known[COLUMNS]).any(axis=1)
        if differing[-1:].any() and frame["forming"].iloc[-1] and (call.market, call.timeframe) in STREAMED:
            before = self._forming(call.market, step, self.moved_us[0]).reindex(frame.index[-1:])
            differing.iloc[-1] = not _is_between(before.iloc[0], frame.iloc[-1], known.iloc[-1])
        if differing.any():
            return (
                f"{int(differing.sum())} rows are not the exchange's, {frame.index[differing][0]} of {frame.index[-1]}"
            )
        over = frame.index[~frame["forming"].to_numpy(bool)]
        return "a row that forms is said to be closed" if len(over) and over[-1] >= _time(step.floor(now_us)) else ""


def run(seed: int, calls: int, *, now: str = NOW) -> StormTally:
    """`calls` random calls; what they came to."""
    tally = StormTally()
    folder = Path(tempfile.mkdtemp(prefix="backbone-storm-"))
    data, ledger = str(folder / "data"), str(folder / "ledger")
    limits = scheduler._BACKOFF_S, coordinator.MachineLimiter, coordinator.RestClient
    ours, theirs = CONTEXT.Pipe()
    with (
        pytest.MonkeyPatch.context() as patch,
        SimulatorServer(seed=seed, now=now, frozen=True, limit=LIMIT) as server,
    ):
        patch.setenv("BACKBONE_LEDGER_DIR", ledger)
        patch.setenv("BACKBONE_CACHE_DIR", str(folder / "cache"))
        _quick()
        other = process(_second, data, server.rest_url, ledger, theirs, daemon=True)
        other.start()
        client = Backbone(data_dir=data, rest_url=server.rest_url, ws_url=server.ws_url)
        table = client.live(["KRW-BTC", "KRW-ETH"], kinds=["ticker", "candle.1m"])
        storm = Storm(server, seed)
        try:
            for number in range(calls):
                chance = storm.chance.random()
                if chance < 0.01:
                    table.stop()
                    client.close()
                    client = Backbone(data_dir=data, rest_url=server.rest_url, ws_url=server.ws_url)
                    table = client.live(["KRW-BTC", "KRW-ETH"], kinds=["ticker", "candle.1m"])
                    tally.rows["restarts"] += 1
                elif chance < 0.4:
                    storm.moved_us.append(server.clock.now_us())
                    server.clock.advance(storm.chance.choice([1, 2.5, 7, 60, 61, 600, 7200]))
                    ours.send("sync")
                    _sync(client)
                    ours.recv()
                now_us = server.clock.now_us()
                is_shared = storm.chance.random() < 0.3
                call = storm.draw(now_us, may_fail=not is_shared)
                second = storm.draw(now_us, may_fail=False) if is_shared else None
                if second is not None:
                    ours.send(second)
                if call.fault is not None:
                    name, after = call.fault
                    options = {**FAULTS[name], **({"field": ODD_FIELDS[CANDLES]} if name == "odd" else {})}
                    server.faults.add(name, match=CANDLES, after=after, **options)
                outcome = _answer(client, call)
                server.faults.clear()
                done = [(call, outcome)]
                if second is not None:
                    done.append((second, ours.recv()))
                if outcome[0] != "frame" and call.fault is not None and not call.words.get("offline"):
                    done.append((call, _answer(client, call)))
                for each, found in done:
                    _count(tally, storm, number, each, found, now_us)
        finally:
            ours.send(None)
            other.join(30)
            table.stop()
            client.close()
            scheduler._BACKOFF_S, coordinator.MachineLimiter, coordinator.RestClient = limits  # type: ignore[misc]
            shutil.rmtree(folder, ignore_errors=True)
    tally.tried["calls"] = calls
    return tally


def _count(tally: StormTally, storm: Storm, number: int, call: Call, found: tuple[str, Any], now_us: int) -> None:
    kind = "offline" if call.words.get("offline") else found[0]
    tally.rows[kind] += 1
    rows, wrong = storm.check(call, found, now_us, is_exact=not call.words.get("offline"))
    tally.verdict.rows += rows
    if not wrong and kind != "offline" and found[0] != "frame" and call.fault is None:
        wrong = f"an error without a fault: {found[1] if found[0] == 'error' else 'a part'}"
    if wrong:
        tally.wrong.append(f"call {number}: {call}: {wrong}")
