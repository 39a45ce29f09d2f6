"""Bigger than memory: the stored candles of many markets as one Polars LazyFrame, and as files for other engines.

The files are the store's own, plain hive-partitioned Parquet; paths are computed from markets, timeframe and span, so
nothing is discovered, and no file outside the span is opened. Nothing is fetched. What an engine reads is what is on
disk: pages of this process are flushed first. A span that the files do not cover is an `IncompleteError` before any
row is read, since rows that were never fetched look just like rows that never were. A derived timeframe (``2h``) is
folded from the files of its base when the scan is collected, in memory; and so is any of a market of which only the
minutes are held.

Other engines read the same files as they lie (`Backbone.files`)::

    duckdb.read_parquet(client.files("KRW", "1m"), hive_partitioning=True)
    dask.dataframe.read_parquet(client.files("KRW", "1m"))
    spark.read.option("basePath", f"{client.data_dir}/candles").parquet(*client.files("KRW", "1m"))
    polars.scan_parquet(client.files("KRW", "1m"), hive_partitioning=True)

``time`` is the candle's open, UTC. Market and timeframe are the hive columns, text in every engine. The coverage is
read from the end of each file and not proven; `store.verify()` proves rows.

A scan shows one unit as the store does: pages and archive files are compared when they are stored, candle by candle
where they show what is held, else by the next prices. So only a redenomination by a factor of less than 1.5 that came
between two pages of one call, or between parts of a series that never met, is not seen until a page shows both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from backbone.api.arguments import TimeLike, parse_markets, parse_quote
from backbone.candle_table import rows_inside
from backbone.errors import IncompleteError, InputError
from backbone.model import CANDLE_SCHEMA, Span
from backbone.storage.coverage import EVER, SpanSet
from backbone.storage.fold import fold
from backbone.storage.generations import Generation
from backbone.storage.lazy import Selected
from backbone.timeframe import DAY_US, TIMEFRAMES, Timeframe, parse_timeframe

if TYPE_CHECKING:
    import polars as pl

    from backbone.api.session import Session
    from backbone.storage.store import CandleStore

__all__ = ["files", "scan"]

_MINUTE = TIMEFRAMES["1m"]


@dataclass(frozen=True)
class _Selection:
    """The files that hold what was asked, oldest first within each market, and what they do not cover."""

    timeframe: Timeframe
    span: Span
    paths: list[str] = field(default_factory=list)
    gaps: list[tuple[str, Span]] = field(default_factory=list)
    known: dict[str, SpanSet] = field(default_factory=dict)
    """By market whose rows are to be folded, where every short candle is known."""
    absent: list[str] = field(default_factory=list)
    """Markets of which nothing is stored, where a side of the span is open: how much they lack is not known."""
    generations: dict[str, Generation] = field(default_factory=dict)
    """By market, of which state the files are."""

    @property
    def is_whole(self) -> bool:
        return not self.gaps and not self.absent


def scan(
    session: Session,
    markets: str | Iterable[str],
    timeframe: str,
    start: TimeLike | None,
    end: TimeLike | None,
    *,
    partial: bool,
) -> pl.LazyFrame:
    """See `Backbone.scan`."""
    shown = parse_timeframe(timeframe, derived=True)
    span = _span(session, shown, start, end)
    names = list(markets) if isinstance(markets, Iterator) else markets  # which can be taken once
    select = functools.partial(_select, session, names, shown, span)
    found = select(partial=partial)
    lazy = _lazy(session, found, select, partial=partial)
    _check(session, found, lazy)
    return lazy


def _lazy(session: Session, found: _Selection, select: Callable[..., _Selection], *, partial: bool) -> pl.LazyFrame:
    """The rows of `found`; where those are gone when it is collected, of what `select` finds then."""
    import polars as pl

    is_whole = not partial and found.is_whole

    def again() -> Selected:
        now = select(partial=not is_whole)
        _check(session, now, _lazy(session, now, select, partial=True))
        return _selected(now)

    lazy = session.coordinator().store.lazy_frame(_selected(found), again)
    return lazy.with_columns(pl.col("time").dt.convert_time_zone(session.tz))


def files(
    session: Session,
    markets: str | Iterable[str],
    timeframe: str,
    start: TimeLike | None,
    end: TimeLike | None,
    *,
    partial: bool,
) -> list[str]:
    """See `Backbone.files`."""
    shown = parse_timeframe(parse_timeframe(timeframe).name, derived=True)
    found = _select(session, markets, shown, _span(session, shown, start, end), partial=partial, may_fold=False)
    _check(session, found, list(found.paths))
    return found.paths


def _selected(found: _Selection) -> Selected:
    return Selected(found.paths, found.span, found.generations, _folding(found) if found.known else None)


def _folding(found: _Selection) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """The function that folds short candles into longer ones when the scan is collected; whole ones only."""
    import polars as pl

    def fold_all(rows: pl.DataFrame) -> pl.DataFrame:
        parts = [rows.clear()]
        for (market,), part in rows.partition_by("market", as_dict=True, maintain_order=True).items():
            known = found.known.get(str(market))
            if known is None:
                parts.append(part)
                continue
            table = part.drop("market").to_arrow().cast(CANDLE_SCHEMA)
            made = pl.DataFrame(fold(rows_inside(table, known), found.timeframe))
            parts.append(made.select(pl.lit(market).alias("market"), pl.all()))
        return pl.concat(parts)

    return fold_all


def _select(
    session: Session,
    markets: str | Iterable[str],
    shown: Timeframe,
    span: Span,
    *,
    partial: bool,
    may_fold: bool = True,
) -> _Selection:
    tf = shown.base or shown
    store = session.coordinator().store
    foldable = Span(max(span.start, session.settings.venue.sums_since_us), span.end)
    may_fold = may_fold and _MINUTE.step_us < tf.step_us <= DAY_US and foldable.start < foldable.end
    minutes_of = foldable if may_fold else None
    names = _markets(session, markets, tf, may_fold)
    session.coordinator().markets.check_known(names)
    found = _Selection(shown, span)
    for market in names:
        store.flush(market)
        while True:
            state = store.state(market)
            own, held, known = _of_one(store, market, shown, span, minutes_of, is_proven=not partial)
            if store.state(market) == state:
                break
        found.generations[market] = state
        found.paths.extend(own)
        if known is not None:
            found.known[market] = known
        if not partial and held is not None:
            found.gaps.extend((market, gap) for gap in _wanted(span, held) - held)
            if not held and (span.start == EVER.start or span.end == EVER.end):
                found.absent.append(market)
    return found


def _of_one(
    store: CandleStore, market: str, shown: Timeframe, span: Span, minutes_of: Span | None, *, is_proven: bool
) -> tuple[list[str], SpanSet | None, SpanSet | None]:
    """The files of a market, what they cover (None: not looked at), and what of their rows is to be folded."""
    tf = shown.base or shown
    own, held, known = store.paths(market, tf, span), None, None
    if is_proven or shown.base is not None:  # a read of each file's end, slow in a bucket of very many files
        held = store.footer_coverage(market, tf, span)
        if shown.base is not None:
            known = _whole(held, shown)
    if minutes_of is not None and (not own or (held is not None and _wanted(span, held) - held)):
        minutes = _whole(store.footer_coverage(market, _MINUTE, minutes_of), shown)
        if minutes and (not own or not _wanted(span, minutes) - minutes):
            own, held, known = store.paths(market, _MINUTE, minutes_of), minutes, minutes
    return [str(path) for path in own], held, known


def _whole(held: SpanSet, timeframe: Timeframe) -> SpanSet:
    """The whole candles inside what is held of shorter ones."""
    whole = [(timeframe.ceil(each.start), timeframe.floor(each.end)) for each in held]
    return SpanSet(Span(first, last) for first, last in whole if first < last)


def _span(session: Session, timeframe: Timeframe, start: TimeLike | None, end: TimeLike | None) -> Span:
    first = EVER.start if start is None else timeframe.ceil(max(0, session.time("start", start, may_ask=False)))
    last = EVER.end if end is None else timeframe.ceil(max(0, session.time("end", end, may_ask=False)))
    if first > last:
        raise InputError("start", start, f"a time before the end ({end})")
    return Span(first, last)


def _markets(session: Session, markets: str | Iterable[str], timeframe: Timeframe, may_fold: bool) -> list[str]:
    """The markets named; for a quote currency, those that the store holds in this timeframe, one that was renamed
    once. Where it holds none and `may_fold`, those of which it holds minutes."""
    quote = parse_quote(markets, session.home)
    if quote is None:
        return parse_markets(markets, session.home)
    core = session.coordinator()
    stored = [(market, tf) for market, tf in core.store.series() if market.startswith(f"{quote}-")]
    found = [market for market, tf in stored if tf == timeframe]
    if may_fold and not found:
        found = [market for market, tf in stored if tf == _MINUTE]
    return core.renames.once(found, may_ask=True)


def _wanted(span: Span, held: SpanSet) -> SpanSet:
    """What should be covered: a side that was left open reaches as far as the store does."""
    bounds = held.bounds or Span(span.start, span.start)
    start = bounds.start if span.start == EVER.start else span.start
    end = bounds.end if span.end == EVER.end else span.end
    return SpanSet([Span(start, end)]) if start < end else SpanSet()


def _check(session: Session, found: _Selection, held: Any) -> None:
    if found.is_whole:
        return
    markets = list(dict.fromkeys([*found.absent, *(market for market, _ in found.gaps)]))
    shown = ", ".join(markets[:5]) + ("…" if len(markets) > 5 else "")
    length = found.timeframe.base or found.timeframe
    unknown = sum(length.count(gap) for _, gap in found.gaps)
    some = "candles" if found.absent else f"{unknown} candles"
    renames = [session.coordinator().markets.renamed(market, None) for market in markets]
    raise IncompleteError(
        f"the store does not hold all of it: {some} of {shown} were never asked for. "
        f"backfill([...], {length.name!r}, start, end) fetches them; "
        "partial=True takes what is held, which is also in .frame."
        + "".join(f" {rename}." for rename in renames if rename is not None),
        gaps=[gap for _, gap in found.gaps],
        frame=held,
    )
