"""The calls about now (tickers, books, trades, markets): arguments are checked, rows requested, frames made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from backbone.api import frames as shaping
from backbone.api.arguments import (
    TimeLike,
    in_zone,
    parse_age,
    parse_market,
    parse_markets,
    parse_priority,
    parse_quote,
    parse_whole,
)
from backbone.api.calls.listing import of_quote, prices_of, tick_sizes
from backbone.api.rounding import is_learned, learn_ticks
from backbone.api.session import Session
from backbone.candle_table import times_of
from backbone.coordinator.coordinator import Coordinator
from backbone.coordinator.live.old_trades import OldTradesAnswer
from backbone.coordinator.live.realtime import Answer, missing_error
from backbone.coordinator.live.trades import DAYS_KEPT, TradesAnswer
from backbone.errors import IncompleteError, InputError, RejectedError, SourceError
from backbone.model import MarketInfo, Priority, Span
from backbone.routing.archive import TRADE_SCHEMA, TRADES_SINCE_US
from backbone.routing.wire import ORDERBOOK_DEPTH as DEPTH
from backbone.timeframe import DAY_US, parse_timeframe

__all__ = ["DEPTH", "markets", "orderbooks", "parse_depth", "parse_level", "tickers", "trade_sections", "trades"]


_PAIR_S = 10.0  # a price step and the price at which it holds are received at most so far apart


def tickers(
    session: Session,
    asked: str | Iterable[str] = "KRW",
    *,
    priority: str | Priority = "high",
    max_age: float | None = None,
    frames: str | None = None,
) -> Any:
    """See `Backbone.tickers`."""
    lane, age, wanted = parse_priority(priority), parse_age(max_age), session.frames(frames)
    core = session.coordinator()
    began = core.clock.monotonic()
    quote = parse_quote(asked, session.home)
    if quote is not None:
        # the home currency is not worth a request: the venue has markets in it
        if quote != session.home and not core.markets.codes(quote, lane):
            raise InputError("markets", asked, "a quote currency that the venue has markets in, such as KRW")
        answer = core.realtime.tickers_of_quote([quote], core.markets.known_codes(quote), lane, age)
    else:
        codes = parse_markets(asked, session.home)
        core.markets.check_at_hand(codes, lane)
        answer = core.realtime.tickers(codes, lane, age)
    now = core.clock.monotonic()
    table = shaping.shape_tickers(
        [held.row for held in answer.held],
        [held.source for held in answer.held],
        np.maximum(now - np.array([held.received_s for held in answer.held], dtype=np.float64), 0.0),
        wanted,
        session.tz,
    )
    return _deliver(session, core, "tickers", table, wanted, "market", lane, began, answer)


def orderbooks(
    session: Session,
    markets: str | Iterable[str],
    *,
    level: object = 0,
    depth: object = DEPTH,
    priority: str | Priority = "normal",
    max_age: float | None = None,
    frames: str | None = None,
) -> Any:
    """See `Backbone.orderbooks`."""
    codes, lane = parse_markets(markets, session.home), parse_priority(priority)
    age, wanted = parse_age(max_age), session.frames(frames)
    deep = parse_depth(depth)
    core = session.coordinator()
    began = core.clock.monotonic()
    number = parse_level(core, codes, level, lane)
    core.markets.check_at_hand(codes, lane)
    answer = core.realtime.orderbooks(codes, number, lane, age, deep)
    table = shaping.orderbooks_table([held.row for held in answer.held], deep)
    rows = [min(deep, len(held.row.levels)) for held in answer.held]
    return _deliver(session, core, "orderbooks", table, wanted, None, lane, began, answer, rows)


def parse_depth(depth: object) -> int:
    """How many levels of a book are wanted."""
    return parse_whole("depth", depth, DEPTH)


def parse_level(core: Coordinator, codes: Sequence[str], level: object, priority: Priority) -> float:
    """A price grouping that every one of `codes` offers. The venue answers others with no data."""
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level < float("inf"):
        raise InputError("level", level, "0, or one of the market's own price groupings")
    if level:
        core.markets.check_listed(codes, priority)
        known = {code: core.realtime.known_instrument(code) for code in codes}
        unsure = [code for code, one in known.items() if one is None or float(level) not in one.levels]
        for code, instrument in core.realtime.instruments(unsure, priority)[0].items():
            if float(level) not in instrument.levels:
                offered = ", ".join(f"{x:g}" for x in instrument.levels)
                raise InputError("level", level, f"one of {offered} for {code}")
    return float(level)


def trades(
    session: Session,
    asked: str,
    count: object = None,
    *,
    start: TimeLike | None = None,
    end: TimeLike | None = None,
    priority: str | Priority = "normal",
    frames: str | None = None,
) -> Any:
    """See `Backbone.trades`."""
    market, lane, wanted = parse_market(asked, session.home), parse_priority(priority), session.frames(frames)
    core = session.coordinator()
    began = core.clock.monotonic()
    words = session.range(start, end, count)
    start_us, end_us, number = words.start_us, words.end_us, words.count
    if not core.venue.is_known:
        core.markets.check_listed([market], lane)  # the first reply carries the venue's day
    now = core.venue.now_us()
    first_kept = (now // DAY_US - DAYS_KEPT) * DAY_US
    old = core.old_trades(lane)
    first_had = first_kept if old is None else TRADES_SINCE_US
    for name, given, value in (("start", start, start_us), ("end", end, end_us)):
        if value is not None and value < first_had:
            raise InputError(name, given, _kept(old is not None))
    if start_us is not None and start_us > now:  # only now the venue's clock is known for certain
        raise InputError("start", start, "a time before now")
    core.markets.check_at_hand([market], lane)
    first_of = number if start_us is not None else None
    past = OldTradesAnswer(TRADE_SCHEMA.empty_table(), 0)
    is_over = end_us is not None and end_us <= first_kept
    if old is not None and start_us is not None and start_us < first_kept:
        past = old.read(market, Span(start_us, min(first_kept, end_us or first_kept)), first=first_of)
        start_us = first_kept
        if first_of is not None:
            first_of -= past.table.num_rows
            is_over = is_over or first_of == 0 or bool(past.gaps)
    elif old is not None and end_us is not None and is_over:
        past = old.read(market, Span(TRADES_SINCE_US, end_us), last=number)
    answer = TradesAnswer((), 0)
    if not is_over:
        try:
            answer = core.realtime.trades(
                market, None if first_of else number, lane, start_us=start_us, end_us=end_us, today_us=now
            )
        except RejectedError as exc:
            if exc.status != 404:
                raise
            core.markets.listed(fresh=True)
            raise core.markets.unknown(market, lane) from exc
    rows = answer.rows
    if first_of is not None and not answer.gaps:
        rows = rows[:first_of]
    elif old is not None and not is_over and number is not None and len(rows) < number and not answer.gaps:
        today_us = core.venue.now_us() // DAY_US * DAY_US  # it may have turned while pages were under way
        kept_us = today_us - DAYS_KEPT * DAY_US
        reached_us = first_kept if rows and rows[0].time_us < kept_us else kept_us
        past = old.read(market, Span(TRADES_SINCE_US, reached_us), last=number - len(rows))
    table = shaping.trades_table(rows)
    if past.table.num_rows:
        table = pa.concat_tables([shaping.with_best(past.table), table])
    gaps, causes = (*past.gaps, *answer.gaps), (*past.causes, *answer.causes)
    elapsed_s = core.clock.monotonic() - began
    core.metrics.time("call", elapsed_s, group="trades", priority=lane)
    requests = past.requests + answer.requests
    sources = {"rest" if answer.requests else "stream": len(rows)}
    if past.table.num_rows:
        sources["archive"] = past.table.num_rows
    attrs = shaping.facts(
        sources=sources, elapsed_ms=elapsed_s * 1000, priority=lane, requests=requests, unknown=len(gaps)
    )
    last_received_s = core.clock.monotonic() - core.feed.last_received_s()
    attrs["age_s"] = 0.0 if requests else round(min(1.0, max(0.0, last_received_s)), 3)
    frame = shaping.deliver(table, wanted, index="time", zone=session.tz, attrs=attrs)
    if gaps:
        if not table.num_rows and isinstance(causes[0], SourceError):
            raise causes[0]
        arrived = f"only {table.num_rows} arrived" if past.gaps else f"only the newest {len(rows)} arrived"
        raise IncompleteError(
            f"trades of {market}: {arrived}: {causes[0]}", gaps=gaps, causes=causes, frame=frame
        ) from causes[0]
    return frame


def trade_sections(
    session: Session,
    asked: str,
    length: str,
    count: object = None,
    *,
    start: TimeLike | None,
    end: TimeLike | None,
    priority: str | Priority,
    frames: str | None,
    timeout: float | None,
) -> Iterator[Any]:
    """The trades of a range in sections of `length`, oldest first, a day in memory at a time.

    The arguments are checked at once, not when the first section is taken.
    """
    timeframe, wanted = parse_timeframe(length, derived=True), session.frames(frames)
    if timeframe.step_us > DAY_US or timeframe.is_calendar:
        raise InputError("sections", length, "a length of a day or less, such as 1h")
    if start is None:
        raise InputError("start", start, "a time, for sections")
    if count is not None:
        raise InputError("count", count, "a range alone, for sections")
    parse_market(asked, session.home)
    parse_priority(priority)
    session.within(timeout)
    words = session.range(start, end, None)
    start_us = words.start_us or 0
    end_us = session.now_us() if words.end_us is None else words.end_us

    def day(part: Span) -> pa.Table:
        bounds = {"start": in_zone(part.start, "UTC"), "end": in_zone(part.end, "UTC")}
        with session.within(timeout):
            try:
                return trades(session, asked, priority=priority, frames="arrow", **bounds)
            except IncompleteError as exc:
                exc.frame = deliver(exc.frame, shaping.attrs_of(exc.frame))
                raise

    def deliver(table: pa.Table, attrs: dict[str, Any]) -> Any:
        attrs = {**attrs, "data_count": table.num_rows}
        return shaping.deliver(table, wanted, index="time", zone=session.tz, attrs=attrs)

    def sections() -> Iterator[Any]:
        for day_us in range(start_us // DAY_US * DAY_US, end_us, DAY_US):
            part = Span(max(start_us, day_us), min(end_us, day_us + DAY_US))
            table = day(part)
            attrs, times = shaping.attrs_of(table), times_of(table)
            at = timeframe.floor(part.start)
            while at < part.end:
                low, high = np.searchsorted(times, (at, timeframe.next(at)))
                yield deliver(table.slice(int(low), int(high - low)), attrs)
                at = timeframe.next(at)

    return sections()


def _kept(has_archive: bool) -> str:
    if has_archive:
        return "2022-05-01 or later: the archive has no older trades"
    return (
        f"within the {DAYS_KEPT} UTC days before today that the venue keeps; "
        'older trades come from its archive: Backbone(archive="accept-terms")'
    )


def markets(session: Session, quote: str | None = None, *, frames: str | None = None) -> Any:
    """See `Backbone.markets`, of now."""
    wanted_frames = session.frames(frames)
    core = session.coordinator()
    began = core.clock.monotonic()
    held = core.markets.known
    begun = _begin_ticks(core, held or core.market_log.newest(), quote)
    listed = core.markets.listed()
    known = listed is held
    listed = of_quote(listed, quote)
    codes = [info.market for info in listed]
    if not begun:
        begun = _begin_ticks(core, listed, None)
    ticks, more = tick_sizes(core, codes)
    if more or begun or not is_learned(codes):
        prices, count = prices_of(core, codes, _PAIR_S if more or begun else core.settings.markets_fresh_s)
        more = max(more + count, begun)  # those that were begun are shared
        learn_ticks(dict(zip(codes, zip(prices, ticks, strict=True), strict=True)))
    table = shaping.markets_table(listed).append_column("tick_size", pa.array(ticks, pa.float64()))
    attrs = shaping.facts(
        sources={"memory" if known else "rest": len(listed)},
        elapsed_ms=(core.clock.monotonic() - began) * 1000,
        priority=Priority.HIGH,
        requests=(0 if known else 1) + more,
    )
    ages_s = [core.realtime.instrument_age_s(code) for code, tick in zip(codes, ticks, strict=True) if tick > 0]
    at_us = core.venue.now_us() - int(max(ages_s, default=0.0) * 1e6)
    attrs["tick_sizes_at"] = in_zone(at_us, session.tz).isoformat()
    return shaping.deliver(table, wanted_frames, index="market", zone=session.tz, attrs=attrs)


def _begin_ticks(core: Coordinator, likely: Sequence[MarketInfo], quote: str | None) -> int:
    """Request the price steps of likely markets and, side by side, the prices at which they hold; how many requests."""
    fresh_s = core.settings.markets_fresh_s
    wanted = "" if quote is None else str(quote).strip().upper().removesuffix("-*") + "-"
    codes = [info.market for info in likely if info.market.startswith(wanted)]
    stale = [code for code in codes if core.realtime.instrument_age_s(code) >= fresh_s]
    if not stale:
        return 0
    return core.begin_prices(codes, _PAIR_S) + core.begin_ticks(stale)


def _deliver(
    session: Session,
    core: Coordinator,
    kind: str,
    table: Any,
    frames: str,
    index: str | None,
    priority: Priority,
    began: float,
    answer: Answer[Any],
    rows: Sequence[int] | None = None,
) -> Any:
    """The frame with its facts, or the error that carries it; `rows` says how many each record became, if not one."""
    if answer.missing and not answer.held:
        codes = {info.market for info in core.markets.known or ()}
        if answer.missing[0] not in codes:
            raise core.markets.unknown(answer.missing[0], priority) from answer.causes[0]
    elapsed_s = core.clock.monotonic() - began
    core.metrics.time("call", elapsed_s, group=kind, priority=priority)
    sources: Counter[str] = Counter()
    for held, count in zip(answer.held, rows or [1] * len(answer.held), strict=True):
        sources["memory" if held.source == "rest" and held.received_s < began else held.source] += count
    attrs = shaping.facts(
        sources=dict(sources),
        elapsed_ms=elapsed_s * 1000,
        priority=priority,
        requests=answer.requests,
        unknown=len(answer.missing),
    )
    now = core.clock.monotonic()
    attrs["age_s"] = round(max(0.0, now - min((held.received_s for held in answer.held), default=now)), 3)
    if answer.unreadable:
        attrs["unreadable"] = list(answer.unreadable)
    frame = shaping.deliver(table, frames, index=index, zone=session.tz, attrs=attrs)
    if answer.missing:
        error = missing_error(answer, kind)
        error.frame = frame
        raise error from answer.causes[0]
    return frame
