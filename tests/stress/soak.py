"""A day of mixed use in accelerated time, while everything goes wrong now and then.

``python -m tests.stress soak --minutes 10`` runs the embedded exchange in a process of its own, its clock so fast that
a day passes, under a script of random faults: refusals, blocks, resets, cut and garbled bodies, bad pages, delays,
outages of the network and of the market, socket drops. Two clients on one folder are used by a bot, a screener, a
chart, backtests, live tables and an auditor. Every answer is compared with the exchange's own history. Counted: answers
that are right, honest errors (of the error tree, with a part that is right), and everything else, which must stay below
one in a thousand, and no row among it; memory, threads and descriptors.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from backbone import Backbone
from backbone.errors import BackboneError, IncompleteError, InputError
from backbone.model import CANDLE_COLUMNS, Span
from backbone.simulator import Exchange, SimulatorServer
from backbone.storage.coverage import EVER
from backbone.timeframe import TIMEFRAMES
from tests.stress.report import Tally

NOW = "2025-08-22T09:00:00Z"
MARKETS = ["KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE", "KRW-THETA", "KRW-CARV", "BTC-ETH"]
LIMIT = 100  # requests a second of each group: ten times the venue's, so that a minute is worth ten
SPEED = 144.0  # of the exchange's clock: a day in ten minutes
CALL_S = 60.0  # no call may take longer: a venue that accepts and never answers is tried five times, 10 s each
FLAT = 1.2  # how much larger the process may be at the end than after the first third of a soak of minutes
WARM_S = 150.0  # in a shorter one the allocators are still warming up

_ANY, _CANDLES = "/v1/", "/v1/candles"
FAULTS: list[tuple[str, str, dict[str, Any]]] = [
    ("500", _ANY, {}),
    ("502-html", _ANY, {}),
    ("reset", _ANY, {}),
    ("cut", _ANY, {}),
    ("garbage", _ANY, {}),
    ("slow", _ANY, {"seconds": 0.4}),
    ("stall", _ANY, {"seconds": 1.5}),
    ("numbers", _ANY, {}),
    ("gzip-off", _ANY, {}),
    ("empty", _CANDLES, {}),
    ("short", _CANDLES, {}),
    ("duplicate", _CANDLES, {}),
    ("disorder", _CANDLES, {}),
    ("wrong-market", _CANDLES, {}),
    ("off-grid", _CANDLES, {}),
    ("bad-ohlc", _CANDLES, {}),
    ("beyond", _CANDLES, {}),
    ("ws-drop", "/websocket/v1", {}),
    ("ws-stall", "/websocket/v1", {"seconds": 2}),
    ("ws-garbage", "/websocket/v1", {}),
    ("ws-slow", "/websocket/v1", {"seconds": 0.2}),
    ("ws-refuse", "/websocket/v1", {"status": 503}),
]
"""Kind, what it applies to, options."""
RARE = ("429", "418", "unplugged", "outage")
"""Refusals are rare because they are answered by asking more slowly for minutes: bulk work would only wait."""


# ---------------------------------------------------------------------------------------------- the exchange's side


def serve(line: Any, seed: int, limit: int) -> None:
    """The exchange: does what the fault script says, and sends its time."""
    logging.disable()
    with SimulatorServer(seed=seed, now=NOW, speed=SPEED, limit=limit, markets=MARKETS, ban_after=10_000) as venue:
        line.send((venue.rest_url, venue.ws_url))
        while True:
            word, *args = line.recv()
            if word == "end":
                line.send(len(venue.requests))
                return
            if word == "fault":
                kind, match, options = args
                venue.faults.add(kind, match=match, times=1, **options)
            elif word == "outage":  # in which nobody trades; far enough ahead to be known before it comes
                start = TIMEFRAMES["1m"].ceil(venue.clock.now_us() + 3_600_000_000)
                venue.faults.add("outage", start=start, end=start + 240_000_000)
                line.send((start, start + 240_000_000))
                continue
            elif word == "unplug":
                venue.pause()
            elif word == "plug":
                venue.resume()
            line.send(venue.clock.now_us())


def judge(line: Any, seed: int) -> None:
    """The same market history once more: finds what is wrong with the clients' answers."""
    logging.disable()
    exchange = Exchange(seed, markets=MARKETS)
    line.send("ready")
    while True:
        word, *args = line.recv()
        if word == "outage":
            exchange.close_span(Span(*args))
            line.send("")
        elif word == "end":
            line.send("")
            return
        else:
            line.send(_verdict(exchange, *args))


def _verdict(
    exchange: Exchange, market: str, timeframe: str, whole: Any, times: Any, columns: dict[str, Any]
) -> tuple[int, int, str]:
    """How many rows are missing of a whole span, how many are not the exchange's, and the same in words."""
    if not len(times) and whole is None:
        return 0, 0, ""
    step = TIMEFRAMES[timeframe]
    start, end = whole if whole is not None else (int(times[0]), step.next(int(times[-1])))
    table = exchange.candle_table(market, timeframe, start, end)
    known = table.column("time").to_numpy().astype("datetime64[us]").astype(np.int64)
    both, i, j = np.intersect1d(times, known, assume_unique=True, return_indices=True)
    lost = len(known) - len(both) if whole is not None else 0
    invented = len(times) - len(both)
    differs = np.zeros(len(both), dtype=bool)
    for name in CANDLE_COLUMNS:
        ours, theirs = columns[name][i], table.column(name).to_numpy()[j]
        is_sum = name in ("volume", "value")  # of a folded candle: equal but for the order of adding
        differs |= ~np.isclose(ours, theirs, rtol=1e-9, atol=0) if is_sum else ours != theirs
    invented += int(differs.sum())
    said = f"{market} {timeframe}: {lost} rows missing, {invented} not the exchange's, of {len(known)}"
    return lost, invented, said if lost or invented else ""


class Line:
    """Another process: one question at a time."""

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=target, args=(there, *args), daemon=True)
        self._process.start()
        there.close()  # so that `recv` here ends with the other process
        self.greeting = self._here.recv()
        self.lock = threading.RLock()
        """Guards the pipe; held by a caller between whose questions no other may come."""

    def ask(self, *words: Any) -> Any:
        with self.lock:
            self._here.send(words)
            return self._here.recv()

    def close(self) -> Any:
        last = self.ask("end")
        self._process.join(20)
        self._process.close()
        self._here.close()
        return last


# ---------------------------------------------------------------------------------------------------- the clients' side


@dataclass
class SoakTally(Tally):
    """What was asked and what came of it. Guarded by its lock while the soak runs."""

    right: int = 0
    honest: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    users: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    hours: float = 0.0
    seconds: float = 0.0
    took: list[tuple[float, str]] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    live_frames: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def availability(self) -> float:
        """Share of calls that were answered right or with an honest error."""
        return 1 - len(self.wrong) / max(1, self.tried["calls"])

    @property
    def growth(self) -> float:
        """Memory at the end against what it was after the first third (medians of a tenth)."""
        tenth = max(1, len(self.memory_mb) // 10)
        begin = sorted(self.memory_mb[3 * tenth : 4 * tenth] or self.memory_mb)
        end = sorted(self.memory_mb[-tenth:])
        return end[len(end) // 2] / begin[len(begin) // 2]

    def facts(self) -> str:
        slowest, honest = max(self.took, default=(0.0, "")), sum(self.honest.values())
        return (
            f"{self.hours:.1f} hours: {self.availability:.2%} right or honest ({honest} errors), "
            f"slowest {slowest[0]:.1f} s, memory {self.memory_mb[-1]:.0f} MB x{self.growth:.2f}"
        )

    def faulty(self) -> list[str]:
        found = list(self.wrong) if self.availability < 0.999 else []
        if self.growth > FLAT and self.seconds > WARM_S:
            found.append(f"memory grew to {self.growth:.2f} times what it was")
        return found + [f"{count} {what} were left" for what, count in self.left.items() if count]

    def detailed(self) -> str:
        """Every count, for whoever asked for the long form."""
        errors = " ".join(f"{name} {number}" for name, number in self.honest.most_common())
        users = " ".join(f"{name} {number}" for name, number in self.users.most_common())
        took = sorted(self.took)
        marks = " ".join(f"p{p} {took[min(len(took) - 1, len(took) * p // 100)][0]:.2f}" for p in (50, 90, 99))
        slowest = ", ".join(f"{who} {seconds:.1f}" for seconds, who in took[:-9:-1])
        memory = ", ".join(f"{mb:.0f}" for mb in self.memory_mb[:: max(1, len(self.memory_mb) // 12)])
        return (
            f"calls by {users}; right {self.right}, honest {errors or 'none'}, neither {len(self.wrong)}; "
            f"requests {self.requests}; rows compared {self.verdict.rows}; live frames {self.live_frames}; "
            f"seconds a call {marks}, slowest {slowest}; memory {memory} MB"
        )


@dataclass(frozen=True)
class Said:
    """Candles that a client gave for an answer; with `whole`, all of that span."""

    frame: pd.DataFrame
    market: str
    timeframe: str
    whole: tuple[int, int] | None = None


class User:
    """One kind of use: `act` is one call, and returns its candles, or what is wrong with it (empty: nothing)."""

    def __init__(self, name: str, soak: Soak, act: Callable[[User], str | Said], pause_s: float) -> None:
        self.name, self.soak, self.chance = name, soak, random.Random(f"{soak.seed} {name}")
        self._act, self._pause_s = act, pause_s
        self.thread = threading.Thread(target=self._run, name=f"soak-{name}", daemon=True)

    @property
    def client(self) -> Backbone:
        return self.chance.choice(self.soak.clients)

    def _run(self) -> None:
        while not self.soak.over.wait(self._pause_s * self.chance.uniform(0.5, 1.5)):
            began_s = time.monotonic()
            said: str | Said = ""
            honest = ""
            try:
                said = self._act(self)
            except InputError as exc:
                said = f"{self.name}: {exc!r}"
            except IncompleteError as exc:
                honest, said = type(exc.causes[0]).__name__ if exc.causes else "Incomplete", self._part(exc)
            except BackboneError as exc:
                honest = type(exc).__name__
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is counted
                said = f"{self.name}: {exc!r}"
            took_s = time.monotonic() - began_s
            wrong = said if isinstance(said, str) else self.soak.judged(said)
            if took_s > CALL_S:
                wrong = wrong or f"{self.name}: took {took_s:.0f} s"
            self.soak.count(self.name, wrong, honest, took_s)

    def _part(self, exc: IncompleteError) -> str | Said:
        """An incomplete answer is honest if it says what is missing and its part is right."""
        if not exc.gaps or exc.frame is None:
            return f"{self.name}: incomplete, and does not say what is missing"
        frame, place = exc.frame, getattr(self, "asked", None)
        if place is None or "close" not in frame or "market" in frame or not len(frame):
            return ""
        return Said(frame[~frame["synthetic"]] if "synthetic" in frame else frame, *place)


class Soak:
    """The whole: an exchange, two clients, their users, and the fault script."""

    def __init__(self, seed: int, seconds: float, fault_every_s: float) -> None:
        self.seed, self._seconds, self._every_s = seed, seconds, fault_every_s
        self.tally = SoakTally(seconds=seconds)
        self.over = threading.Event()
        self.clients: list[Backbone] = []

    def run(self) -> SoakTally:
        resource_tracker.ensure_running()  # multiprocessing keeps it
        before = _threads(), _descriptors()
        folder = tempfile.mkdtemp(prefix="backbone-soak-")
        self.line, self._judge = Line(serve, self.seed, LIMIT), Line(judge, self.seed)
        self._rest_url, self._ws_url = self.line.greeting
        try:
            self.clients = [self._client(folder) for _ in range(2)]
            began_us = self.line.ask("now")
            self._live_through(self._users())
            self.tally.hours = (self.line.ask("now") - began_us) / 3.6e9
            self._judge_store()
            for client in self.clients:
                client.close()
        finally:
            self.over.set()
            self.tally.requests = self.line.close()
            self._judge.close()
            shutil.rmtree(folder, ignore_errors=True)
        gc.collect()
        after = _settled(before)
        self.tally.left = Counter(threads=after[0] - before[0]) + Counter(descriptors=after[1] - before[1])
        return self.tally

    def _client(self, folder: str) -> Backbone:
        """A client whose grace is as long as ever in real time: an answer is not made in an instant."""
        client = Backbone(data_dir=folder, rest_url=self._rest_url, ws_url=self._ws_url, tz="UTC")
        client.session.settings = replace(client.session.settings, close_grace_s=0.5 * SPEED, memory_bytes=16 << 20)
        return client

    def _users(self) -> list[User]:
        kinds: list[tuple[str, Callable[[User], str | Said], float]] = [
            ("bot", bot, 0.03),
            ("screener", screener, 0.3),
            ("chart", chart, 0.1),
            ("chart-2", chart, 0.1),
            ("backtest", backtest, 0.1),
            ("backtest-2", backtest, 0.1),
            ("reader", reader, 0.02),
            ("live", live, 0.5),
            ("auditor", auditor, 2.0),
        ]
        return [User(name, self, act, pause_s) for name, act, pause_s in kinds]

    def _live_through(self, users: Sequence[User]) -> None:
        for user in users:
            user.thread.start()
        end_s = time.monotonic() + self._seconds
        chance = random.Random(self.seed)
        while time.monotonic() < end_s:
            self.over.wait(self._every_s * chance.uniform(0.5, 1.5))
            self._misfortune(chance)
            self.tally.memory_mb.append(_memory_mb())
        self.over.set()
        deadline = time.monotonic() + CALL_S
        for user in users:
            user.thread.join(max(0.0, deadline - time.monotonic()))
            if user.thread.is_alive():
                self.count(user.name, f"{user.name} is stuck", "", 0.0)

    def _misfortune(self, chance: random.Random) -> None:
        if chance.random() > 0.04:
            kind, match, options = chance.choice(FAULTS)
            self.line.ask("fault", kind, match, options)
        else:
            kind = chance.choice(RARE)
            if kind == "429":
                self.line.ask("fault", "429", _ANY, chance.choice([{}, {"body": "json"}]))
            elif kind == "418":
                self.line.ask("fault", "418", _ANY, {"seconds": 1})
            elif kind == "outage":
                with self._judge.lock:  # nothing is judged by a history that lacks it
                    self._judge.ask("outage", *self.line.ask("outage"))
            else:
                self.line.ask("unplug")
                time.sleep(chance.uniform(0.2, 1.0))
                self.line.ask("plug")
        self.tally.tried["faults"] += 1

    def count(self, name: str, wrong: str, honest: str, took_s: float) -> None:
        tally = self.tally
        with tally.lock:
            tally.tried["calls"] += 1
            tally.users[name] += 1
            tally.took.append((took_s, name))
            if wrong:
                tally.wrong.append(wrong)
            elif honest:
                tally.honest[honest] += 1
            else:
                tally.right += 1

    def judged(self, said: Said) -> str:
        """What is wrong with candles; empty where nothing is."""
        with self.tally.lock:
            self.tally.verdict.rows += len(said.frame)
        times = said.frame.index.tz_convert(None).to_numpy().astype("datetime64[us]").astype(np.int64)
        columns = {name: said.frame[name].to_numpy() for name in CANDLE_COLUMNS}
        lost, invented, wrong = self._judge.ask("judge", said.market, said.timeframe, said.whole, times, columns)
        with self.tally.lock:
            self.tally.verdict.lost += lost
            self.tally.verdict.invented += invented
        return str(wrong)

    def _judge_store(self) -> None:
        """Whatever happened: the files are sound, and every row in them is the exchange's."""
        client = self.clients[0]
        problems = client.store.verify()
        self.tally.wrong += [f"store: {row.kind} {row.detail}" for row in problems.itertuples()]
        store = client.session.coordinator().store
        for market, timeframe in store.series():
            held = store.read(market, timeframe, EVER)
            frame = held.table.to_pandas().set_index("time")
            for span in held.covered:
                first, last = (pd.Timestamp(t, unit="us", tz="UTC") for t in (span.start, span.end - 1))
                rows = frame.loc[first:last]
                if wrong := self.judged(Said(rows, market, timeframe.name, span)):
                    self.tally.wrong.append(f"store: {wrong}")


def bot(user: User) -> str | Said:
    """What a trading bot asks: the present, urgently."""
    market = user.chance.choice(MARKETS)
    kind = user.chance.randrange(4)
    if kind == 0:
        frame = user.client.tickers(market, priority="critical", max_age=0)
        return "" if (frame["price"] > 0).all() and frame.index.tolist() == [market] else f"ticker of {market}"
    if kind == 1:
        book = user.client.orderbooks(market, depth=5, priority="critical", max_age=0)
        best = book.iloc[0]
        return "" if not best.ask_price <= best.bid_price and len(book) <= 5 else f"order book of {market}"
    if kind == 2:
        trades = user.client.trades(market, 50, priority="critical")
        if not trades["sequential_id"].is_unique or (trades["market"] != market).any():
            return f"trades of {market}: twice, or of another market"
        return "" if trades.index.is_monotonic_increasing else f"trades of {market} are not in order: {trades.index}"
    user.asked = (market, "1m")  # type: ignore[attr-defined]
    frame = user.client.candles(market, "1m", count=user.chance.randint(1, 50), priority="critical")
    return Said(frame, market, "1m")


def screener(user: User) -> str | Said:
    """All KRW markets at once."""
    frame = user.client.tickers("KRW", max_age=user.chance.choice([0.0, 1.0]))
    is_right = (frame["price"] >= frame["low"]).all() and (frame["price"] <= frame["high"]).all()
    return "" if is_right and len(frame) == len([m for m in MARKETS if m.startswith("KRW")]) else "tickers"


def chart(user: User) -> str | Said:
    """The newest candles, the forming one as well."""
    market, timeframe = user.chance.choice(MARKETS), user.chance.choice(["1m", "5m", "15m", "1h", "1d"])
    user.asked = (market, timeframe)  # type: ignore[attr-defined]
    count = user.chance.choice([20, 200, 400] if timeframe != "1d" else [10, 30])
    is_forming = user.chance.random() < 0.5
    frame = user.client.candles(market, timeframe, count=count, include_forming=is_forming)
    if is_forming:
        frame = frame[~frame["forming"]].drop(columns="forming")
    return Said(frame, market, timeframe)


def backtest(user: User) -> str | Said:
    """A range of history in the background, section by section."""
    market, timeframe, start, end = _range(user, 3000)
    sections = list(user.client.backfill(market, timeframe, start, end).sections())
    return Said(pd.concat(sections), market, timeframe, (_us(start), _us(end)))


def reader(user: User) -> str | Said:
    """A range of the past, filled or not."""
    market, timeframe, start, end = _range(user, 600)
    fill = user.chance.choice([None, None, "ffill", "nan"])
    frame = user.client.candles(market, timeframe, start, end, fill=fill)
    if fill:
        frame = frame[~frame["synthetic"]].drop(columns="synthetic")
    return Said(frame, market, timeframe, (_us(start), _us(end)))


def _range(user: User, slots: int) -> tuple[str, str, pd.Timestamp, pd.Timestamp]:
    market, timeframe = user.chance.choice(MARKETS), user.chance.choice(["1m", "1m", "5m", "1h"])
    user.asked = (market, timeframe)  # type: ignore[attr-defined]
    step = pd.Timedelta(TIMEFRAMES[timeframe].step_us, unit="us")
    end = pd.Timestamp(NOW) - step * user.chance.randrange(4 * slots)
    end = end.floor(step)
    return market, timeframe, end - step * user.chance.randint(1, slots), end


def live(user: User) -> str | Said:
    """A live table for a moment."""
    markets = user.chance.sample(MARKETS, 4)
    with user.client.live(markets, ("ticker", "trade", "candle.1m")) as table:
        for _ in range(user.chance.randint(1, 20)):
            if user.soak.over.wait(0.1):
                break
            frame = table.frame("ticker")
            user.soak.tally.live_frames += 1
            if not set(frame.index) <= set(markets) or not (frame["price"] > 0).all():
                return "live table"
    return ""


def auditor(user: User) -> str | Said:
    """The proof of the files, and what the store says of itself."""
    client = user.client
    problems = client.store.verify()
    market = user.chance.choice(MARKETS)
    coverage = client.coverage(market, "1m")
    client.store.outages()
    client.status()
    client.health()
    if not (coverage["start"].iloc[1:].to_numpy() == coverage["end"].iloc[:-1].to_numpy()).all():
        return f"coverage of {market} has holes"
    return "" if problems.empty else f"store: {problems.to_dict('records')[:3]}"


def _us(stamp: pd.Timestamp) -> int:
    return int(stamp.tz_convert(None).to_datetime64().astype("datetime64[us]").astype(np.int64))


def _memory_mb() -> float:
    """Resident memory of this process."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def _threads() -> int:
    return sum(thread.name.startswith("backbone-") for thread in threading.enumerate())


def _descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def _settled(before: tuple[int, int]) -> tuple[int, int]:
    """Threads and descriptors, once those that are about to end have ended."""
    deadline = time.monotonic() + 10
    while True:
        after = _threads(), _descriptors()
        if (after[0] <= before[0] and after[1] <= before[1]) or time.monotonic() > deadline:
            return after
        time.sleep(0.1)


@contextmanager
def _ten_times_the_rate() -> Iterator[None]:
    """The machine's ledger, with the limit that this exchange grants."""
    from backbone.coordinator import coordinator as fetch
    from backbone.coordinator.quota import ledger
    from backbone.coordinator.quota.rules import Rules

    real = fetch.MachineLimiter
    fetch.MachineLimiter = lambda url, clock: ledger.MachineLimiter(  # type: ignore[assignment,misc]
        url, clock, rules=Rules(limit=LIMIT)
    )
    try:
        yield
    finally:
        fetch.MachineLimiter = real  # type: ignore[misc]


def run(seed: int, seconds: float, *, fault_every_s: float = 0.6) -> SoakTally:
    """One soak of `seconds`."""
    with _ten_times_the_rate():
        return Soak(seed, seconds, fault_every_s).run()
