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

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backbone.api.arguments import TimeLike, parse_markets, parse_quote
from backbone.candle_table import rows_inside
from backbone.errors import IncompleteError, InputError
from backbone.model import CANDLE_COLUMNS, CANDLE_SCHEMA, Span
from backbone.storage.coverage import EVER, SpanSet
from backbone.storage.fold import fold
from backbone.timeframe import DAY_US, TIMEFRAMES, Timeframe, parse_timeframe

if TYPE_CHECKING:
    import polars as pl

    from backbone.api.session import Session

__all__ = ["files", "scan"]

_MINUTE = TIMEFRAMES["1m"]
COLUMNS = ("market", "time", *CANDLE_COLUMNS)


@dataclass(frozen=True)
class _Selection:
    """The files that hold what was asked, oldest first within each market, and what they do not cover."""

    timeframe: Timeframe
    span: Span
    paths: list[str]
    gaps: list[tuple[str, Span]]
    known: dict[str, SpanSet]
    """By market whose rows are to be folded, where every short candle is known."""
    absent: list[str]
    """Markets of which nothing is stored, where a side of the span is open: how much they lack is not known."""


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
    import polars as pl

    found = _select(session, markets, timeframe, start, end, partial=partial)
    lazy = _lazy(found.paths, session.settings.data_dir)
    if found.span.start > EVER.start:
        lazy = lazy.filter(pl.col("time") >= _instant(found.span.start))
    if found.span.end < EVER.end:
        lazy = lazy.filter(pl.col("time") < _instant(found.span.end))
    if found.known:
        lazy = lazy.map_batches(
            _folding(found),
            predicate_pushdown=False,
            projection_pushdown=False,
            slice_pushdown=False,
            schema=lazy.collect_schema(),
        )
    lazy = lazy.with_columns(pl.col("time").dt.convert_time_zone(session.tz))
    _check(session, found, lazy)
    return lazy


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
    found = _select(session, markets, parse_timeframe(timeframe).name, start, end, partial=partial, may_fold=False)
    _check(session, found, list(found.paths))
    return found.paths


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


def _instant(time_us: int) -> Any:
    import polars as pl

    return pl.lit(time_us).cast(pl.Datetime("us", "UTC"))


def _lazy(paths: Sequence[str], data_dir: str) -> pl.LazyFrame:
    import polars as pl

    from backbone.storage.s3 import scan_options

    if not paths:
        schema: dict[str, Any] = {"market": pl.String, "time": pl.Datetime("us", "UTC")}
        return pl.LazyFrame(schema=schema | dict.fromkeys(CANDLE_COLUMNS, pl.Float64))
    lazy = pl.scan_parquet(
        list(paths),
        schema={"time": pl.Datetime("us", "UTC"), **dict.fromkeys(CANDLE_COLUMNS, pl.Float64)},
        hive_partitioning=True,
        try_parse_hive_dates=False,
        glob=False,
        storage_options=scan_options(data_dir),
    )  # with a schema, no file is looked at before the scan is collected: it may be another one by then
    return lazy.select(COLUMNS)


def _select(
    session: Session,
    markets: str | Iterable[str],
    timeframe: str,
    start: TimeLike | None,
    end: TimeLike | None,
    *,
    partial: bool,
    may_fold: bool = True,
) -> _Selection:
    shown = parse_timeframe(timeframe, derived=True)
    tf = shown.base or shown
    span = _span(session, shown, start, end)
    store = session.coordinator().store
    paths: list[str] = []
    gaps: list[tuple[str, Span]] = []
    absent: list[str] = []
    known: dict[str, SpanSet] = {}
    foldable = Span(max(span.start, session.settings.venue.sums_since_us), span.end)
    may_fold = may_fold and _MINUTE.step_us < tf.step_us <= DAY_US and foldable.start < foldable.end
    names = _markets(session, markets, tf, may_fold)
    session.coordinator().markets.check_known(names)
    for market in names:
        store.flush(market)
        own, held = store.paths(market, tf, span), None
        if not partial or shown.base is not None:  # a read of each file's end, slow in a bucket of very many files
            held = store.footer_coverage(market, tf, span)
            if shown.base is not None:
                known[market] = _whole(held, shown)
        if may_fold and (not own or (held is not None and _wanted(span, held) - held)):
            minutes = _whole(store.footer_coverage(market, _MINUTE, foldable), shown)
            if minutes and (not own or not _wanted(span, minutes) - minutes):
                own, held, known[market] = store.paths(market, _MINUTE, foldable), minutes, minutes
        if not partial and held is not None:
            gaps += [(market, gap) for gap in _wanted(span, held) - held]
            if not held and (span.start == EVER.start or span.end == EVER.end):
                absent.append(market)
        paths += [str(path) for path in own]
    return _Selection(shown, span, paths, gaps, known, absent)


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
    if not found.gaps and not found.absent:
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
