"""Who was listed on a day, the most traded of them, what happened to markets, and lists that somebody kept."""

from __future__ import annotations

import codecs
import datetime as dt
import logging
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from backbone.api import frames as shaping
from backbone.api.arguments import TimeLike, in_zone, parse_time, parse_whole
from backbone.api.calls.candles import candles
from backbone.api.frames import REAL, TEXT, WHOLE
from backbone.api.session import Session
from backbone.coordinator.coordinator import Coordinator
from backbone.coordinator.market_log import Recorded
from backbone.errors import InputError, PayloadError, SourceError, UnreachableError
from backbone.model import MarketInfo, Priority, Span
from backbone.routing.wire import markets_ask
from backbone.timeframe import DAY_US, TIMEFRAMES

__all__ = ["adopt_lists", "listed_at", "markets_at", "of_quote", "prices_of", "tick_sizes", "universe"]

_log = logging.getLogger("backbone.fetch")
_DAY = TIMEFRAMES["1d"]
_DATE = re.compile(
    r"(\d{4})-(\d\d)(?:-(\d\d)(?:[T_ -](\d\d)[-:.h]?(\d\d)(?!\d{3}))?)?|"
    r"(?<!\d)(\d{4})(\d\d)(\d\d)(?:[T_ -]?(\d\d)[-:.h]?(\d\d)(?!\d{3}))?"
)
_A_DAY = re.compile(r"today|yesterday|\d{4}([-./])\d{1,2}\1\d{1,2}|\d{8}", re.I)
_WINDOW = re.compile(r"(\d+) ?([dw])")
_RANKS = ("value", "volume")
_NO_CANDLES = (
    "a JSON file of the venue's market/all that there is, or a folder of such files; for candles, say whose and which:"
    ' adopt(source, "KRW-BTC", "1h")'
)


def listed_at(session: Session, at: TimeLike, *, whole_day: bool) -> tuple[int, Recorded]:
    """The instant that `at` means, and the list as of it. A date means its end with `whole_day`, else its start."""
    at_us = parse_time("at", at, session.tz, lambda: _now_us(session))
    core = session.coordinator()
    is_date = isinstance(at, dt.date) and not isinstance(at, dt.datetime)
    is_date = is_date or (isinstance(at, str) and _A_DAY.fullmatch(at.strip()) is not None)
    until_us = at_us + DAY_US - 1 if whole_day and is_date else at_us
    if until_us > core.market_log.newest_us():  # else it is past, whatever a clock says
        now_us = _now_us(session)
        if at_us > now_us:
            raise InputError("at", at, "a day that is not in the future")
        until_us = min(now_us, until_us)
    return until_us, core.market_log.at(until_us, core.first_candles(), session.tz)


def _now_us(session: Session) -> int:
    """Now on the venue's clock, or on this machine's if the venue is out of reach: a recorded list needs no venue."""
    try:
        return session.now_us()
    except UnreachableError as exc:
        _log.info("listing.clock why=%s", exc)
        return session.likely_now_us()


def markets_at(session: Session, quote: str | None, at: TimeLike, frames: str | None) -> Any:
    """See `Backbone.markets`, of a day."""
    wanted = session.frames(frames)
    core = session.coordinator()
    began = core.clock.monotonic()
    at_us, recorded = listed_at(session, at, whole_day=True)
    listed = of_quote(recorded.markets, quote)
    elapsed_ms = (core.clock.monotonic() - began) * 1000
    attrs = shaping.facts(sources={"store": len(listed)}, elapsed_ms=elapsed_ms, priority=Priority.HIGH)
    attrs["at"], attrs["recorded_since"] = _iso(at_us), _iso(recorded.since_us)
    return shaping.deliver(shaping.markets_table(listed), wanted, index="market", zone=session.tz, attrs=attrs)


def of_quote(listed: Sequence[MarketInfo], quote: object) -> tuple[MarketInfo, ...]:
    """The markets of one quote currency, or all."""
    if quote is None:
        return tuple(listed)
    if not isinstance(quote, str):
        raise InputError("quote", quote, "a quote currency such as KRW")
    wanted = quote.strip().upper().removesuffix("-*")
    quotes = sorted({info.market.partition("-")[0] for info in listed})
    if wanted not in quotes:
        raise InputError("quote", quote, "one of " + ", ".join(quotes))
    return tuple(info for info in listed if info.market.startswith(wanted + "-"))


def tick_sizes(core: Coordinator, markets: Sequence[str]) -> tuple[list[float], int]:
    """The price step of each market, and how many requests that took: one where any is unknown, or as old as a market
    list that is asked for again, since prices cross bands. NaN where the venue does not say."""
    fresh_s = core.settings.markets_fresh_s
    unknown = [market for market in markets if core.realtime.instrument_age_s(market) >= fresh_s]
    requests = 0
    if unknown:
        requests = 1
        try:
            _, requests = core.realtime.instruments(sorted(unknown), Priority.HIGH)
        except SourceError as exc:
            _log.info("ticks.unknown why=%s", exc)
    ticks = [core.realtime.known_tick(market) for market in markets]
    return [float("nan") if tick is None else tick for tick in ticks], requests


def prices_of(core: Coordinator, markets: Sequence[str], max_age_s: float) -> tuple[list[float], int]:
    """The price of each market, and how many requests that took. NaN where the venue does not say."""
    found: dict[str, float] = {}
    requests = 1
    try:
        found, requests = core.realtime.prices(markets, max_age_s, Priority.HIGH)
    except SourceError as exc:
        _log.info("prices.unknown why=%s", exc)
    return [found.get(market, float("nan")) for market in markets], requests


def universe(
    session: Session, quote: str, at: TimeLike, top: int, by: str, window: str | dt.timedelta, frames: str | None
) -> Any:
    """See `Backbone.universe`."""
    if by not in _RANKS:
        raise InputError("by", by, " or ".join(_RANKS))
    top = parse_whole("top", top)
    length_us = _window_us(window)
    wanted = session.frames(frames)
    core = session.coordinator()
    began = core.clock.monotonic()
    at_us, recorded = listed_at(session, at, whole_day=False)
    end = _DAY.floor(at_us)
    if length_us > end:
        raise InputError("window", window, "days that begin after 1970-01-01")
    span = Span(end - length_us, end)
    today = core.markets.all_codes()
    then = _present_names(core, [info.market for info in of_quote(recorded.markets, quote)], today)
    answers, said = _daily(session, [code for code in then if code in today], span)
    sums: dict[str, tuple[float, int]] = {}
    for code in then:
        table = answers.get(code)
        if table is None:
            table = core.store.read(code, _DAY, span).table
            said["sources"]["disk"] = said["sources"].get("disk", 0) + table.num_rows
        if table.num_rows:
            sums[code] = (float(table.column(by).to_numpy().sum()), table.num_rows)
    ranked = sorted(sums, key=lambda code: (-sums[code][0], code))[:top]
    table = shaping.table_of(
        {"market": TEXT, "rank": WHOLE, by: REAL, "days": WHOLE, "listed_as": TEXT},
        [(code, rank, *sums[code], then[code]) for rank, code in enumerate(ranked, 1)],
    )
    elapsed_ms = (core.clock.monotonic() - began) * 1000
    attrs = shaping.facts(**said, elapsed_ms=elapsed_ms, rows=len(ranked), priority=Priority.NORMAL)
    attrs["at"], attrs["listed"] = _iso(at_us), len(then)
    attrs["without_data"] = sorted(then[code] for code in then.keys() - sums.keys())
    return shaping.deliver(table, wanted, index="market", zone=session.tz, attrs=attrs)


def _present_names(core: Coordinator, codes: Sequence[str], today: Collection[str]) -> dict[str, str]:
    """The codes of a list of the past by what the same markets are called now: one that is gone keeps its own."""
    then: dict[str, str] = {}
    for code in codes:
        rename = None if code in today else core.renames.find(code, Priority.NORMAL)
        then.setdefault(code if rename is None else rename.new, code)
    return then


def _daily(session: Session, codes: Sequence[str], span: Span) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Daily candles of markets that are listed today, stored ones from the store, and what they took."""
    if not codes:
        return {}, {"sources": {}, "requests": 0}
    frame = candles(session, list(codes), "1d", in_zone(span.start, "UTC"), in_zone(span.end, "UTC"), frames="arrow")
    answers = {code: frame.filter(pc.equal(frame.column("market"), code)) for code in codes}
    attrs = shaping.attrs_of(frame)
    return answers, {name: attrs[name] for name in ("sources", "requests")}


def _window_us(window: str | dt.timedelta) -> int:
    if isinstance(window, dt.timedelta):
        length_us = window // dt.timedelta(days=1) * DAY_US
    else:
        match = _WINDOW.fullmatch(str(window).strip().lower())
        length_us = 0 if match is None else int(match.group(1)) * (7 if match.group(2) == "w" else 1) * DAY_US
    if length_us <= 0:
        raise InputError("window", window, 'the days before `at`, such as "30d" or "4w"')
    return length_us


def adopt_lists(session: Session, source: object, at: TimeLike | None) -> dict[str, Any]:
    """Take in bodies of ``market/all`` that somebody kept: a JSON file, or a folder of them.

    A file's day is in its name (``market_all_2021-04-17.json``; of a month, its first day; ``20210417T0930.json``, also
    with the time), in the client's zone, or `at`. Hidden files of a folder do not count.
    """
    if not isinstance(source, str | os.PathLike):
        raise InputError("source", type(source).__name__, _NO_CANDLES)
    path = Path(source)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.glob("*.json") if not file.name.startswith("."))
    if not files or not all(file.is_file() for file in files):
        raise InputError("source", str(source), _NO_CANDLES)
    if at is not None and len(files) > 1:
        raise InputError("at", at, "nothing for several files: their days are in their names")
    lists = [(_file_time(session, file, at), file.name, _read_list(file)) for file in files]
    changes = session.coordinator().market_log.take(lists)
    return {
        "lists": len(lists),
        "markets": sorted({info.market for _, _, listed in lists for info in listed}),
        "events": changes,
        "from": _iso(min(time for time, _, _ in lists)),
        "to": _iso(max(time for time, _, _ in lists)),
    }


def _file_time(session: Session, file: Path, at: TimeLike | None) -> int:
    if at is not None:
        time_us = session.time("at", at)
    else:
        match = _DATE.search(file.name)
        if match is None:
            raise InputError("source", file.name, "a name with the day, such as market_all_2021-04-17.json, or `at`")
        year, month, day, hour, minute = match.groups()[:5] if match.group(1) else match.groups()[5:]
        try:
            text = f"{year}-{month}-{day or '01'}" + (f" {hour}:{minute}" if hour else "")
            time_us = session.time("at", text)
        except InputError as exc:
            raise InputError("source", file.name, f"a name with a day that there is, not {text}") from exc
    if time_us > session.now_us():
        argument, value = ("source", file.name) if at is None else ("at", at)
        raise InputError(argument, value, "a day that is not in the future")
    return time_us


def _read_list(file: Path) -> tuple[MarketInfo, ...]:
    try:
        listed: tuple[MarketInfo, ...] = markets_ask().parse(file.read_bytes().removeprefix(codecs.BOM_UTF8))
    except PayloadError as exc:
        raise InputError("source", file.name, f"the venue's market/all ({exc})") from exc
    return listed


def _iso(time_us: int) -> str:
    return in_zone(time_us, "UTC").isoformat()
