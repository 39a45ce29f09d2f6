"""The candle call: its words checked at once, run against the coordinator, shaped into a frame.

Everything wrong with the words is an `InputError` before any page is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from backbone.api import frames as shaping
from backbone.api.arguments import DEFAULT_COUNT, TimeLike, in_zone, parse_market, parse_markets, parse_priority
from backbone.api.calls.fill import fill_quiet, parse_fill
from backbone.api.calls.memo import Remembered
from backbone.api.notebook.bar import Bar
from backbone.candle_table import times_of
from backbone.coordinator.candles.derived import base_range, folded
from backbone.coordinator.candles.fetcher import CandlePlan
from backbone.coordinator.candles.pending import Progress
from backbone.coordinator.candles.ranges import Range, Watch
from backbone.coordinator.candles.reader import CandleAnswer, incomplete
from backbone.coordinator.markets import unknown_market
from backbone.errors import BackboneError, IncompleteError, InputError, RejectedError
from backbone.model import Priority, Span
from backbone.storage.fold import fold
from backbone.timeframe import Timeframe, parse_timeframe

if TYPE_CHECKING:
    from backbone.api.session import Session

__all__ = ["CandleCall", "Plan", "candles", "coverage", "explain"]


def candles(
    session: Session,
    market: str | Iterable[str],
    timeframe: str = "1m",
    start: TimeLike | None = None,
    end: TimeLike | None = None,
    *,
    count: object = None,
    priority: str | Priority = "normal",
    include_forming: bool = False,
    fill: str | None = None,
    frames: str | None = None,
    progress: bool | Callable[[Any], None] | None = None,
    offline: bool = False,
) -> Any:
    """See `Backbone.candles`."""
    call = CandleCall.parse(
        session,
        parse_markets(market, session.home),
        timeframe,
        start,
        end,
        count,
        priority,
        include_forming,
        fill,
        session.frames(frames),
        progress,
        offline,
    )
    return call.run(many=not isinstance(market, str))


@dataclass(frozen=True)
class CandleCall:
    """One checked call of `Backbone.candles`."""

    session: Session
    markets: list[str]
    timeframe: Timeframe
    asked: Range
    priority: Priority
    include_forming: bool
    fill: str | None
    frames: str
    progress: bool | Callable[[Any], None] | None
    offline: bool

    @classmethod
    def parse(
        cls,
        session: Session,
        markets: list[str],
        timeframe: str,
        start: TimeLike | None,
        end: TimeLike | None,
        count: object,
        priority: str | Priority,
        include_forming: bool,
        fill: str | None,
        frames: str,
        progress: bool | Callable[[Any], None] | None,
        offline: bool,
    ) -> CandleCall:
        """Check every word of the call."""
        tf, lane, how = parse_timeframe(timeframe, derived=True), parse_priority(priority), parse_fill(fill)
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise InputError("progress", progress, "None, True, False or a function")
        asked = session.range(start, end, count, may_ask=not offline)
        call = cls(session, markets, tf, asked, lane, bool(include_forming), how, frames, progress, bool(offline))
        call._check_listed()
        return call

    def _check_listed(self) -> None:
        """A market that a list already at hand does not have is refused now; a delisted one may still be stored."""
        core = self.session.coordinator()
        if self.offline:
            core.markets.check_known(self.markets)
        elif (listed := core.markets.known) is not None:
            codes = {info.market for info in listed}
            for market in self.markets:
                if market not in codes and not core.reader.is_held(market, self.timeframe.base or self.timeframe):
                    core.markets.check_listed([market], self.priority)

    def run(self, *, many: bool) -> Any:
        """Fetch, shape, and raise where the range is not whole."""
        core = self.session.coordinator()
        began = core.clock.monotonic()
        remembered = Remembered(self, many=many)
        if (frame := remembered.find()) is not None:
            return self._again(frame, (core.clock.monotonic() - began) * 1000)
        answers = self._collect()
        tables = [(answer.market, self._shape(answer)) for answer in answers]
        elapsed_ms = (core.clock.monotonic() - began) * 1000
        core.metrics.time("call", elapsed_ms / 1000, group="candles", priority=self.priority)
        table = shaping.candles_table(tables, many=many)
        frame = shaping.deliver(
            table,
            self.frames,
            index="time",
            zone=self.session.tz,
            attrs=self._facts(answers, table.num_rows, elapsed_ms),
        )
        error = self._error(answers)
        if error is None:
            if not any(answer.pages for answer in answers):
                remembered.keep(frame)
            return frame
        if isinstance(error, IncompleteError):
            error.frame = frame
        raise error

    def _again(self, frame: Any, elapsed_ms: float) -> Any:
        """A kept frame with what is to be said of this answer."""
        was = frame.attrs["backbone"]
        self.session.coordinator().metrics.time("call", elapsed_ms / 1000, group="candles", priority=self.priority)
        frame.attrs["backbone"] = facts(
            sources={"memo": len(frame)}, elapsed_ms=elapsed_ms, rows=len(frame), priority=self.priority, requests=0,
            pages=0, quiet=was["quiet"], unknown=was["unknown"],
        ) | named(self.markets, self.timeframe)  # fmt: skip
        return frame

    def _collect(self) -> list[CandleAnswer]:
        core = self.session.coordinator()
        if self.timeframe.base is None:
            return self._collect_of(self.markets, self.timeframe, self.asked)
        if not self.offline:
            core.sync_clock()  # what is closed decides which short candles are asked for
        closed = core.reader.closed_before(self.timeframe)
        part = base_range(self.asked, self.timeframe, closed)
        answers = self._collect_of(self.markets, self.timeframe.base, part)
        return [folded(answer, self.asked, self.timeframe, closed) for answer in answers]

    def _collect_of(self, markets: Sequence[str], timeframe: Timeframe, asked: Range) -> list[CandleAnswer]:
        """The answers for candles that the venue serves, by the way that this call takes."""
        core = self.session.coordinator()
        if self.offline:
            return core.ranges.recall(markets, timeframe, asked)
        if self.priority is Priority.CRITICAL:
            return [core.direct.candles(market, timeframe, asked) for market in markets]
        return core.ranges.collect(markets, timeframe, asked, self.priority, self._bar)

    def _bar(self, read: Callable[[], Progress]) -> AbstractContextManager[Watch]:
        label = f"{', '.join(self.markets[:3])}{'…' if len(self.markets) > 3 else ''} {self.timeframe}"
        return Bar(self.progress, label=label, zone=self.session.tz, clock=self.session.clock, read=read)

    def _shape(self, answer: CandleAnswer) -> pa.Table:
        table = answer.table
        if self.fill is not None:
            table = self._filled(answer)
        if self.include_forming:
            table = self._with_forming(answer, table)
        return table

    def _filled(self, answer: CandleAnswer) -> pa.Table:
        before = None
        span = answer.span
        times = times_of(answer.table)
        if self.fill == "ffill" and span.start < span.end and (len(times) == 0 or times[0] > span.start):
            before = self._close_before(answer.market, span.start)
        return fill_quiet(answer.table, self.timeframe, span, answer.gaps, str(self.fill), before)

    def _close_before(self, market: str, time_us: int) -> float | None:
        core = self.session.coordinator()
        asked, timeframe = Range(None, time_us, 1), self.timeframe.base or self.timeframe
        if self.offline:
            found = core.ranges.recall([market], timeframe, asked)[0]
        else:
            found = core.ranges.collect([market], timeframe, asked, self.priority)[0]
        return None if found.table.num_rows == 0 else float(found.table.column("close")[-1].as_py())

    def _with_forming(self, answer: CandleAnswer, table: pa.Table) -> pa.Table:
        core = self.session.coordinator()
        rows, source = None, ""
        is_recent = answer.span.end >= core.reader.closed_before(self.timeframe) - self.timeframe.step_us
        if is_recent and not self.offline and not answer.causes:  # where the rest failed, that is what is told
            wants_now = self.asked.end_us is None or self.asked.end_us > answer.span.end
            if wants_now:
                rows, source = self._forming(answer)
        table = table.append_column("forming", pa.array(np.zeros(table.num_rows, bool)))
        if rows is None or rows.num_rows == 0:
            return table
        answer.sources[source] = answer.sources.get(source, 0) + rows.num_rows
        if self.fill is not None:
            rows = rows.append_column("synthetic", pa.array(np.zeros(rows.num_rows, bool)))
        closed = core.reader.closed_before(self.timeframe)
        rows = rows.append_column("forming", pa.array(times_of(rows) >= closed))
        return pa.concat_tables([table, rows])

    def _forming(self, answer: CandleAnswer) -> tuple[pa.Table, str]:
        """The candles behind an answer that are not closed yet, and where from; a derived one is made of what is there
        of it."""
        core, base = self.session.coordinator(), self.timeframe.base
        after_us, before_us = answer.span.end, self.asked.end_us
        if base is None:
            return core.direct.forming(answer.market, self.timeframe, after_us, before_us, self.priority)
        closed = self._collect_of([answer.market], base, Range(after_us, before_us, None))[0]
        rows, source = core.direct.forming(answer.market, base, closed.span.end, before_us, self.priority)
        return fold(pa.concat_tables([closed.table, rows]), self.timeframe), source

    def _facts(self, answers: Sequence[CandleAnswer], rows: int, elapsed_ms: float) -> dict[str, Any]:
        sources: dict[str, int] = {}
        for answer in answers:
            for name, number in answer.sources.items():
                sources[name] = sources.get(name, 0) + number
        pages = sum(answer.pages for answer in answers)
        found = facts(
            sources=sources,
            elapsed_ms=elapsed_ms,
            rows=rows,
            priority=self.priority,
            requests=pages,
            pages=pages,
            quiet=sum(answer.quiet for answer in answers),
            unknown=sum(answer.unknown for answer in answers),
        )
        return {**found, **named(self.markets, self.timeframe)}

    def _error(self, answers: Sequence[CandleAnswer]) -> BackboneError | None:
        error = incomplete(answers, self.timeframe)
        if error is None:
            return None
        for answer in answers:
            gone = any(isinstance(cause, RejectedError) and cause.status == 404 for cause in answer.causes)
            if gone and answer.table.num_rows == 0:
                codes = self.session.coordinator().markets.all_codes(fresh=True)
                if answer.market not in codes:
                    refused = unknown_market(answer.market, codes)
                    refused.__cause__ = answer.causes[0]
                    return refused
        error.__cause__ = error.causes[0] if error.causes else None
        return error


def named(markets: Sequence[str], timeframe: Timeframe) -> dict[str, Any]:
    """What a candle frame says of itself: its market (a list, where several were asked for) and timeframe."""
    return {"market": markets[0] if len(markets) == 1 else list(markets), "timeframe": timeframe.name}


def facts(
    *,
    sources: dict[str, int],
    elapsed_ms: float,
    rows: int,
    priority: Priority,
    requests: int,
    pages: int,
    quiet: int = 0,
    unknown: int = 0,
) -> dict[str, Any]:
    """What ``attrs["backbone"]`` says of an answer; JSON-safe."""
    from backbone.api.session import new_request_id

    names = [name for name, number in sources.items() if number]
    return {
        "request_id": new_request_id(),
        "source": names[0] if len(names) == 1 else ("mixed" if names else "none"),
        "cache_hit": requests == 0,
        "elapsed_ms": round(elapsed_ms, 3),
        "data_count": rows,
        "priority": priority.value,
        "requests": requests,
        "pages": pages,
        "quiet": quiet,
        "unknown": unknown,
        "sources": sources,
    }


def told(rows: int, source: str = "memory") -> dict[str, Any]:
    """The same of what is known here without a question: how things stand, what the store says of itself."""
    return facts(sources={source: rows}, elapsed_ms=0.0, rows=rows, priority=Priority.NORMAL, requests=0, pages=0)


@dataclass(frozen=True)
class Plan:
    """What a range would take. ``cached``, ``derived`` and ``gaps`` are pairs of aware datetimes, half-open."""

    market: str
    timeframe: str
    start: Any
    end: Any
    cached: tuple[tuple[Any, Any], ...]
    derived: tuple[tuple[Any, Any], ...]
    gaps: tuple[tuple[Any, Any], ...]
    pages: int
    seconds: float

    def __repr__(self) -> str:
        return (
            f"<Plan {self.market} {self.timeframe} {self.start:%Y-%m-%d %H:%M} to {self.end:%Y-%m-%d %H:%M}: "
            f"{len(self.cached)} stretches held, {len(self.derived)} foldable, {len(self.gaps)} gaps, "
            f"{self.pages} pages, about {self.seconds:.1f} s>"
        )

    def __str__(self) -> str:
        lines = [self._title, *(f"  {what:17} {where}" for what, where in self._stretches), f"  {self._cost}"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align:left">{what}</td><td style="text-align:left">{where}</td></tr>'
            for what, where in self._stretches
        )
        return f"<div><b>{self._title}</b><table>{rows}</table>{self._cost}</div>"

    @property
    def _title(self) -> str:
        return f"{self.market} {self.timeframe}, {self.start:%Y-%m-%d %H:%M} to {self.end:%Y-%m-%d %H:%M %Z}"

    @property
    def _stretches(self) -> list[tuple[str, str]]:
        parts = (("held", self.cached), ("foldable from 1m", self.derived), ("to fetch", self.gaps))
        return [
            (what, f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}") for what, spans in parts for start, end in spans
        ]

    @property
    def _cost(self) -> str:
        if not self.pages:
            return "nothing to ask for"
        return f"{self.pages:,} page{'s' if self.pages > 1 else ''}, about {self.seconds:.1f} s at the legal rate"


def explain(
    session: Session,
    asked_market: str,
    timeframe: str = "1m",
    start: TimeLike | None = None,
    end: TimeLike | None = None,
) -> Plan:
    """The plan of a range; makes no request."""
    market = parse_market(asked_market, session.home)
    core, shown_tf = session.coordinator(), parse_timeframe(timeframe, derived=True)
    tf = shown_tf.base or shown_tf
    core.markets.check_known([market])
    asked = session.range(start, end, None, may_ask=False)
    last = core.reader.closed_before(tf)
    stop = last if asked.end_us is None else min(last, tf.ceil(asked.end_us))
    begin = shown_tf.next(stop, -DEFAULT_COUNT) if asked.start_us is None else tf.ceil(asked.start_us)
    pace = session.settings.venue.pace_per_s
    found: CandlePlan = core.candles.explain(market, tf, Span(min(begin, stop), stop), pace)

    def shown(spans: Sequence[Span]) -> tuple[tuple[Any, Any], ...]:
        return tuple((in_zone(s.start, session.tz), in_zone(s.end, session.tz)) for s in spans)

    return Plan(
        market,
        shown_tf.name,
        in_zone(found.span.start, session.tz),
        in_zone(found.span.end, session.tz),
        shown(found.cached),
        shown(found.derived),
        shown(found.gaps),
        found.pages,
        found.seconds,
    )


def coverage(session: Session, asked_market: str, timeframe: str = "1m", *, frames: str | None = None) -> Any:
    """The coverage frame: ``start end state rows``."""
    market, wanted = parse_market(asked_market, session.home), session.frames(frames)
    core, tf = session.coordinator(), parse_timeframe(timeframe)
    core.markets.check_known([market])
    rows = core.reader.intervals(market, tf)
    time = pa.timestamp("us", tz="UTC")
    table = pa.table(
        {
            "start": pa.array([r.start for r in rows], pa.int64()).cast(time),
            "end": pa.array([r.end for r in rows], pa.int64()).cast(time),
            "state": pa.array([r.state for r in rows], pa.string()),
            "rows": pa.array([r.slots if r.state == "data" else 0 for r in rows], pa.int64()),
        }
    )
    quiet = sum(r.slots for r in rows if r.state == "quiet")
    unknown = sum(r.slots for r in rows if r.state == "unknown")
    attrs = facts(
        sources={"store": len(rows)}, elapsed_ms=0.0, rows=len(rows), priority=Priority.NORMAL, requests=0, pages=0,
        quiet=quiet, unknown=unknown,
    )  # fmt: skip
    return shaping.deliver(table, wanted, index=None, zone=session.tz, attrs=attrs)
