"""The candle call: its arguments are checked at once, its candles collected by the coordinator, its frame made here.

A wrong argument is an `InputError` before any page is requested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from backbone.api import frames as shaping
from backbone.api.arguments import DEFAULT_COUNT, TimeLike, in_zone, parse_priority, parse_quote
from backbone.api.calls.fill import fill_quiet, parse_fill
from backbone.api.calls.memo import CandleWords, Remembered
from backbone.api.frames import TEXT, TIME, WHOLE
from backbone.api.notebook.bar import Bar
from backbone.api.session import Session
from backbone.candle_table import rows_inside, times_of
from backbone.clock import current_deadline
from backbone.coordinator.candles.derived import base_range, folded
from backbone.coordinator.candles.fetcher import CandlePlan
from backbone.coordinator.candles.pending import Progress
from backbone.coordinator.candles.ranges import Range, Watch
from backbone.coordinator.candles.reader import CandleAnswer, incomplete, with_cost
from backbone.coordinator.coordinator import Coordinator
from backbone.errors import BackboneError, IncompleteError, InputError, RejectedError, SourceError
from backbone.model import CANDLE_COLUMNS, Priority, Span, empty_candles
from backbone.storage.coverage import EVER
from backbone.storage.fold import fold
from backbone.timeframe import TIMEFRAMES, Timeframe, parse_timeframe

__all__ = ["CandleCall", "Plan", "candles", "coverage", "explain", "incomplete_error"]

_CHANGES = 5  # times an answer is made anew because what is stored of a market was quarantined meanwhile


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
    wide: str | None = None,
    refresh: bool = False,
    frames: str | None = None,
    progress: bool | Callable[[Any], None] | None = None,
    offline: bool = False,
    timeout: float | None = None,
) -> Any:
    """See `Backbone.candles`."""
    with session.within(timeout):
        if not (progress is None or isinstance(progress, bool) or callable(progress)):
            raise InputError("progress", progress, "None, True, False or a function")
        if refresh and offline:
            raise InputError(
                "refresh", refresh, "False where offline=True: the store cannot be compared with the venue"
            )
        is_whole = parse_quote(market, session.home) is not None
        call = CandleCall(
            session=session,
            markets=session.markets_of(market, may_ask=not offline),
            timeframe=parse_timeframe(timeframe, derived=True),
            asked=session.range(start, end, count, may_ask=not offline),
            priority=parse_priority(priority),
            include_forming=bool(include_forming),
            fill=parse_fill(fill),
            wide=parse_wide(wide),
            refresh=bool(refresh),
            frames=session.frames(frames),
            progress=progress,
            offline=bool(offline),
            many=not isinstance(market, str) or is_whole,
            is_whole=is_whole,
        )
        call.check_listed()
        return call.run()


def parse_wide(value: object) -> str | None:
    """The candle column that a wide frame shows, or None for a long frame."""
    if value is None or value in CANDLE_COLUMNS:
        return None if value is None else str(value)
    raise InputError("wide", value, "one of " + ", ".join(CANDLE_COLUMNS) + ", or None")


class CandleCall(CandleWords, frozen=True):
    """One checked call of `Backbone.candles`."""

    def check_listed(self) -> None:
        """A market that a list already at hand does not have is refused now; a delisted one may still be stored."""
        core = self.session.coordinator()
        if self.offline:
            core.markets.check_known(self.markets)
        elif (listed := core.markets.known) is not None:
            codes = {info.market for info in listed}
            for market in self.markets:
                if market not in codes and not core.reader.is_held(market, self.timeframe.base or self.timeframe):
                    core.markets.check_listed([market], self.priority)

    def run(self) -> Any:
        """Fetch, shape, and raise where the range is not whole."""
        core = self.session.coordinator()
        began = core.clock.monotonic()
        remembered = Remembered(self)
        if not self.refresh and (frame := remembered.find()) is not None:
            return self._again(frame, (core.clock.monotonic() - began) * 1000)
        try:
            answers, tables = self._answers()
        except RejectedError as exc:  # past the store the venue's own refusal ends the call
            unlisted = self._unlisted(exc)
            if unlisted is None:
                raise
            raise unlisted from exc
        elapsed_ms = (core.clock.monotonic() - began) * 1000
        core.metrics.time("call", elapsed_ms / 1000, group="candles", priority=self.priority)
        if self.wide is not None:
            table = shaping.wide_table(tables, self.wide)
        else:
            table = shaping.candles_table(tables, many=self.many)
        attrs = candle_facts(answers, self.timeframe, table.num_rows, elapsed_ms, self.priority)
        attrs |= self._missing(answers)
        frame = shaping.deliver(table, self.frames, index="time", zone=self.session.tz, attrs=attrs)
        error = self._error(answers)
        if error is None:
            if not any(answer.pages for answer in answers):
                remembered.keep(frame)
            return frame
        if isinstance(error, IncompleteError):
            error.frame = frame
        raise error

    def _answers(self) -> tuple[list[CandleAnswer], list[tuple[str, pa.Table]]]:
        """The answers and their rows, all of one unit: made anew where what is stored was quarantined meanwhile."""
        answers: list[CandleAnswer] = []
        before = self._generations()
        for _ in range(_CHANGES):
            closed_us = self.session.coordinator().reader.closed_before(self.timeframe)
            answers = with_cost(self._collect(), answers)
            tables = [(answer.market, self._shape(answer, closed_us)) for answer in answers]
            now = self._generations()
            if now == before:
                break
            before = now
        return answers, tables

    def _generations(self) -> list[int]:
        """The generation of each market's series, which changes when it is quarantined; warns of those that changed.

        From the store alone there is none to compare: each read takes the generation that it finds.
        """
        return [] if self.offline else self.session.coordinator().candles.units.warn(self.markets)

    def _again(self, frame: Any, elapsed_ms: float) -> Any:
        """A kept frame with the facts of this answer."""
        was = frame.attrs["backbone"]
        self.session.coordinator().metrics.time("call", elapsed_ms / 1000, group="candles", priority=self.priority)
        frame.attrs["backbone"] = shaping.facts(
            sources={"memo": len(frame)}, elapsed_ms=elapsed_ms, priority=self.priority,
            quiet=was["quiet"], unknown=was["unknown"],
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
        """The answers for candles that the venue serves: from the store, past it (critical), or through the queue."""
        core = self.session.coordinator()
        if self.offline:
            return core.ranges.recall(markets, timeframe, asked, newest_held=True)
        if self.priority is Priority.CRITICAL and not self.refresh:
            return [core.direct.candles(market, timeframe, asked) for market in markets]
        lane = Priority.HIGH if self.priority is Priority.CRITICAL else self.priority
        return core.ranges.collect(
            markets,
            timeframe,
            asked,
            lane,
            self._bar,
            forming=self.include_forming and self.timeframe.base is None,
            refresh=self.refresh,
        )

    def _bar(self, read: Callable[[], Progress]) -> AbstractContextManager[Watch]:
        shaping.prepare(self.frames)  # what is asked for is on its way
        label = f"{', '.join(self.markets[:3])}{'…' if len(self.markets) > 3 else ''} {self.timeframe}"
        return Bar(self.progress, label=label, zone=self.session.tz, clock=self.session.clock, read=read)

    def _shape(self, answer: CandleAnswer, closed_us: int) -> pa.Table:
        table = answer.table
        if self.fill is not None:
            table = self._filled(answer)
        if self.include_forming:
            table = self._with_forming(answer, table, closed_us)
        return table

    def _filled(self, answer: CandleAnswer) -> pa.Table:
        """The answer's candles and a row for each quiet slot, from the market's first candle on: before it there was no
        market that could be quiet."""
        before = None
        span = answer.span
        times = times_of(answer.table)
        if span.start < span.end and (len(times) == 0 or times[0] > span.start):
            before = self._close_before(answer.market, span.start)
            if before is None:
                span = Span(int(times[0]) if len(times) else span.end, span.end)
        return fill_quiet(answer.table, self.timeframe, span, answer.gaps, str(self.fill), before)

    def _close_before(self, market: str, time_us: int) -> float | None:
        core = self.session.coordinator()
        asked, timeframe = Range(None, time_us, 1), self.timeframe.base or self.timeframe
        if self.offline:
            found = core.ranges.recall([market], timeframe, asked)[0]
        else:
            found = core.ranges.collect([market], timeframe, asked, self.priority)[0]
        return None if found.table.num_rows == 0 else float(found.table.column("close")[-1].as_py())

    def _with_forming(self, answer: CandleAnswer, table: pa.Table, closed_us: int) -> pa.Table:
        """The answer and the candle that forms.

        A candle that has ended is no longer forming once the venue shows its successor, although its grace is not over.
        Where a count was asked for, it takes the place of the oldest one. `closed_us` is where what was closed ended
        when the call began: a candle that closed since is shown as it was while it formed.
        """
        core = self.session.coordinator()
        rows, source = empty_candles(), ""
        is_recent = answer.span.end >= core.reader.closed_before(self.timeframe) - self.timeframe.step_us
        is_recent = is_recent or answer.forming is not None  # of a long call, as the first page showed them
        is_wanted = self.asked.end_us is None or self.asked.end_us > answer.span.end
        if is_recent and is_wanted and not self.offline and not answer.causes:  # else what failed is reported
            rows, source = self._forming(answer)
            rows = rows_inside(rows, [Span(self.asked.start_us or EVER.start, EVER.end)])  # the candle may open before
        table = table.append_column("forming", pa.array(np.zeros(table.num_rows, bool)))
        known_us = min(closed_us, core.reader.closed_before(self.timeframe))
        is_forming = times_of(rows) >= max(answer.span.end, known_us)
        is_forming[:-1] = False
        if self.asked.start_us is not None and self.asked.count is not None:  # the first so many, and what forms next
            wanted = max(0, self.asked.count - answer.table.num_rows)
            wanted += int(wanted < len(is_forming) and is_forming[wanted])
            rows, is_forming = rows.slice(0, wanted), is_forming[:wanted]
        if not rows.num_rows:
            return table
        answer.sources[source] = answer.sources.get(source, 0) + rows.num_rows
        if self.fill is not None:
            rows = rows.append_column("synthetic", pa.array(np.zeros(rows.num_rows, bool)))
        table = pa.concat_tables([table, rows.append_column("forming", pa.array(is_forming))])
        if self.asked.count is None or self.asked.start_us is not None or self.fill is not None:
            return table
        return table.slice(max(0, table.num_rows - self.asked.count - int(is_forming[-1])))

    def _forming(self, answer: CandleAnswer) -> tuple[pa.Table, str]:
        """The candles after an answer that are not closed yet, and their source; a derived one is folded of its parts
        so far."""
        core, base = self.session.coordinator(), self.timeframe.base
        after_us, before_us = answer.span.end, self.asked.end_us
        if base is None and answer.forming is not None:
            return rows_inside(answer.forming, [Span(after_us, before_us or EVER.end)]), "rest"
        if base is None:
            last = answer.table.column("close")[-1].as_py() if answer.table.num_rows else None
            return core.direct.forming(answer.market, self.timeframe, after_us, before_us, self.priority, last)
        closed = self._collect_of([answer.market], base, Range(after_us, before_us, None))[0]
        rows, source = core.direct.forming(answer.market, base, closed.span.end, before_us, self.priority)
        return fold(pa.concat_tables([closed.table, rows]), self.timeframe), source

    def _missing(self, answers: Sequence[CandleAnswer]) -> dict[str, Any]:
        """For a count from the store alone: the spans after the newest held candles, which may have newer ones."""
        behind = [answer.behind for answer in answers if answer.behind is not None]
        zone = self.session.tz
        return {"missing": [[in_zone(time, zone).isoformat() for time in span] for span in behind]} if behind else {}

    def _error(self, answers: Sequence[CandleAnswer]) -> BackboneError | None:
        core, deadline = self.session.coordinator(), current_deadline()
        is_late = deadline is not None and deadline.left_s() <= 0  # then nothing can be asked for the error's words
        lane = None if self.offline or is_late else self.priority
        error = incomplete_error(core, answers, self.timeframe, lane)
        if error is None:
            return None
        unlisted = None if lane is None or self.is_whole else unlisted_error(core, answers, lane)
        return unlisted or error

    def _unlisted(self, cause: RejectedError) -> InputError | None:
        """The error for the market that a refusal is about, where the venue does not list it."""
        if cause.status != 404 or cause.market is None or self.is_whole:
            return None
        return _unlisted(self.session.coordinator(), cause.market, self.priority)


def unlisted_error(core: Coordinator, answers: Sequence[CandleAnswer], priority: Priority) -> InputError | None:
    """The error for a market that the venue does not know, of which nothing arrived and which its list lacks."""
    for answer in answers:
        if is_gone(answer) and answer.table.num_rows == 0:
            error = _unlisted(core, answer.market, priority)
            if error is not None:
                error.__cause__ = answer.causes[0]
                return error
    return None


def _unlisted(core: Coordinator, market: str, priority: Priority) -> InputError | None:
    is_listed = market in core.markets.all_codes(fresh=True)
    return None if is_listed else core.markets.unknown(market, priority)


def is_gone(answer: CandleAnswer) -> bool:
    """Whether the venue said that it does not know the market."""
    return any(isinstance(cause, RejectedError) and cause.status == 404 for cause in answer.causes)


def incomplete_error(
    core: Coordinator,
    answers: Sequence[CandleAnswer],
    timeframe: Timeframe,
    priority: Priority | None,
    *,
    arrived: int = 0,
) -> BackboneError | None:
    """The one error for what could not be had, or None: the venue's own where nothing arrived and it alone is why.

    It says what a market is called now; a `priority` looks for that where the venue does not know a market. `arrived`
    counts the rows that were delivered before.
    """
    error = incomplete(answers, timeframe)
    renames = []
    for answer in answers if error is not None else ():
        if answer.gaps and (priority is None or is_gone(answer)):
            rename = core.markets.renamed(answer.market, priority)
            renames += [rename] if rename is not None else []
    if error is not None:
        error.args = (" ".join([str(error), *(f"{rename}." for rename in renames)]),)
        rows = arrived + sum(answer.table.num_rows for answer in answers)
        if not rows and error.causes and all(isinstance(cause, SourceError) for cause in error.causes):
            first = error.causes[0]
            assert isinstance(first, SourceError)
            if renames and isinstance(first, RejectedError) and first.status == 404:
                refused = core.markets.unknown(renames[0].old, priority)
                refused.__cause__ = first
                return refused
            return first
        error.__cause__ = error.causes[0] if error.causes else None
    return error


def candle_facts(
    answers: Sequence[CandleAnswer], timeframe: Timeframe, rows: int, elapsed_ms: float, priority: Priority
) -> dict[str, Any]:
    """The facts of a frame of `rows` that was made of these answers."""
    return shaping.facts(
        sources=shaping.added_up(answer.sources for answer in answers),
        elapsed_ms=elapsed_ms,
        rows=rows,
        priority=priority,
        requests=sum(answer.pages for answer in answers),
        quiet=sum(answer.quiet for answer in answers),
        unknown=sum(answer.unknown for answer in answers),
    ) | named([answer.market for answer in answers], timeframe)


def named(markets: Sequence[str], timeframe: Timeframe) -> dict[str, Any]:
    """The market of a candle frame (a list of several) and its timeframe, as its attrs name them."""
    return {"market": markets[0] if len(markets) == 1 else list(markets), "timeframe": timeframe.name}


class Plan(msgspec.Struct, frozen=True):
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
            f"{len(self.cached)} intervals held, {len(self.derived)} foldable, {len(self.gaps)} gaps, "
            f"{self.pages} pages, about {self.seconds:.1f} s>"
        )

    def __str__(self) -> str:
        lines = [self._title, *(f"  {what:17} {where}" for what, where in self._intervals), f"  {self._cost}"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align:left">{what}</td><td style="text-align:left">{where}</td></tr>'
            for what, where in self._intervals
        )
        return f"<div><b>{self._title}</b><table>{rows}</table>{self._cost}</div>"

    @property
    def _title(self) -> str:
        return f"{self.market} {self.timeframe}, {self.start:%Y-%m-%d %H:%M} to {self.end:%Y-%m-%d %H:%M %Z}"

    @property
    def _intervals(self) -> list[tuple[str, str]]:
        parts = (("held", self.cached), ("foldable from 1m", self.derived), ("to fetch", self.gaps))
        return [
            (what, f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}") for what, spans in parts for start, end in spans
        ]

    @property
    def _cost(self) -> str:
        if not self.pages:
            return "nothing to ask for"
        return f"{self.pages:,} page{'s' if self.pages > 1 else ''}, about {self.seconds:.1f} s at the legal rate"


class Plans(tuple[Plan, ...]):
    """The plans of several markets: a tuple of `Plan`, with their sums."""

    @property
    def pages(self) -> int:
        """Requests of all."""
        return sum(plan.pages for plan in self)

    @property
    def seconds(self) -> float:
        """How long they take together at the legal rate."""
        return sum(plan.seconds for plan in self)

    def __repr__(self) -> str:
        return f"<Plans of {len(self)} markets: {self.pages:,} pages, about {self.seconds:.1f} s>"

    def __str__(self) -> str:
        waiting = [plan for plan in self if plan.pages]
        lines = [f"{plan.market:12} {plan.timeframe:4} {plan.pages:7,} pages" for plan in waiting]
        held = f"{len(self) - len(waiting)} of {len(self)} markets are held"
        return "\n".join([*lines, f"{held}; {self.pages:,} pages, about {self.seconds:.1f} s at the legal rate"])


def explain(
    session: Session,
    asked_market: str | Iterable[str],
    timeframe: str = "1m",
    start: TimeLike | None = None,
    end: TimeLike | None = None,
) -> Plan | Plans:
    """See `Backbone.explain`."""
    markets = session.markets_of(asked_market, may_ask=False)
    core, shown = session.coordinator(), parse_timeframe(timeframe, derived=True)
    tf = shown.base or shown
    core.markets.check_known(markets)
    asked = session.range(start, end, None, may_ask=False)
    last = core.reader.closed_before(tf)
    stop = last if asked.end_us is None else min(last, tf.ceil(asked.end_us))
    begin = shown.next(stop, -DEFAULT_COUNT) if asked.start_us is None else tf.ceil(asked.start_us)
    span = Span(min(begin, stop), stop)
    plans = Plans(_plan(session, market, shown, tf, span) for market in markets)
    is_one = isinstance(asked_market, str) and parse_quote(asked_market, session.home) is None
    return plans[0] if is_one else plans


def _plan(session: Session, market: str, shown: Timeframe, timeframe: Timeframe, span: Span) -> Plan:
    found: CandlePlan = session.coordinator().candles.explain(
        market, timeframe, span, session.settings.venue.pace_per_s
    )

    def moments(spans: Sequence[Span]) -> tuple[tuple[Any, Any], ...]:
        return tuple((in_zone(s.start, session.tz), in_zone(s.end, session.tz)) for s in spans)

    ((start, end),) = moments([found.span])
    spans = moments(found.cached), moments(found.derived), moments(found.gaps)
    return Plan(market, shown.name, start, end, *spans, found.pages, found.seconds)


def _held_of(core: Coordinator, market: str, timeframe: Timeframe) -> Timeframe:
    """The candles that are held: of a derived timeframe those that it is folded from."""
    base, minute = timeframe.base, TIMEFRAMES["1m"]
    if base is None or base.step_us < minute.step_us or core.store.oldest(market, base) is not None:
        return base or timeframe
    return minute


def coverage(
    session: Session, asked_market: str | Iterable[str], timeframe: str = "1m", *, frames: str | None = None
) -> Any:
    """See `Backbone.coverage`."""
    markets, wanted = session.markets_of(asked_market, may_ask=False), session.frames(frames)
    core, tf = session.coordinator(), parse_timeframe(timeframe, derived=True)
    core.markets.check_known(markets)
    rows = [(market, row) for market in markets for row in core.reader.intervals(market, _held_of(core, market, tf))]
    table = shaping.table_of(
        {"market": TEXT, "start": TIME, "end": TIME, "state": TEXT, "rows": WHOLE},
        [(market, r.start, r.end, r.state, r.slots if r.state == "data" else 0) for market, r in rows],
    )
    if isinstance(asked_market, str) and parse_quote(asked_market, session.home) is None:
        table = table.drop_columns("market")
    quiet = sum(r.slots for _, r in rows if r.state == "quiet")
    unknown = sum(r.slots for _, r in rows if r.state == "unknown")
    attrs = shaping.local_facts(len(rows), "store") | {"quiet": quiet, "unknown": unknown}
    return shaping.deliver(table, wanted, index=None, zone=session.tz, attrs=attrs)
