"""Candles that somebody already has, taken into the store: read in any of the known spellings, checked, then kept.

Nothing of a file is kept before all of it was checked: the grid, doubles, prices, the candle that still forms, and a
sample of its rows against the venue (or against stored rows). A sample that differs is named as what it is: another
clock, another market, another unit, or a last row that was still forming when the file was written. What is kept proves
its own slots only, and is marked as adopted until the venue confirms it; between its rows the store stays unknown.
"""

from __future__ import annotations

import codecs
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from backbone.api.arguments import in_zone, parse_market
from backbone.api.session import Session
from backbone.candle_table import compare, rows_inside, show_time, times_of
from backbone.coordinator.coordinator import Coordinator
from backbone.errors import InputError, StoreError
from backbone.model import CANDLE_COLUMNS, CANDLE_SCHEMA, Priority, Span
from backbone.settings import parse_zone
from backbone.storage.continuity import runs
from backbone.storage.coverage import SpanSet
from backbone.timeframe import HOUR_US, TIMEFRAMES, Timeframe, parse_timeframe, periods_in

__all__ = ["ADOPTED", "Adopted", "adopt", "promote", "read_candles"]

ADOPTED = "adopted"
"""The source of adopted rows in the store, and the kind of the event."""

_SAMPLES = 5  # pages of the venue that are compared, the newest rows among them
_PAGE_ROWS = 100
_MOST_HOURS = 14  # that a zone may be apart from UTC
_MOST_COMPARED = 2_000  # candles that are requested to find the right zone
_MOSTLY = 0.9  # the share of rows that must agree with the venue for an explanation to hold
_MOST_DIFFERING = 0.05  # the share of rows that may differ: the venue restated openings and corrected volumes
_SPELLINGS = {
    "time": "time timestamp date datetime open_time candle_date_time_utc candle_date_time_kst 시간 일시 날짜 일자",
    "open": "open opening_price open_price 시가",
    "high": "high high_price 고가",
    "low": "low low_price 저가",
    "close": "close trade_price close_price 종가 현재가",
    "volume": "volume vol candle_acc_trade_volume base_volume 거래량",
    "value": "value candle_acc_trade_price turnover quote_volume amount 거래대금",
}
_NAMES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_MARKET_TITLES = ("market", "symbol", "code", "pair", "ticker", "종목")
_EPOCH_UNITS = ((1e11, 1_000_000), (1e14, 1_000), (1e17, 1))  # seconds, milliseconds, microseconds; else nanoseconds
_DIGITS = ((8, "%Y%m%d"), (12, "%Y%m%d%H%M"), (14, "%Y%m%d%H%M%S"))  # epochs of no candle
_SHEET_DAYS, _SHEET_EPOCH = range(40_000, 80_000), 25_569  # 2009 to 2119; that of 1970
_AM, _PM = "오전|AM|am", "오후|PM|pm"
_KOREA = "Asia/Seoul"


@dataclass(frozen=True)
class Adopted:
    """What was taken in.

    rows : candles in the source; ``kept`` of them were new to the store.
    start, end : the first and last open, aware UTC.
    compared, differing : rows that were compared with the venue or the store, and those of them that differ.
    has_value : whether the source had turnovers; where not, ``value`` is NaN.
    """

    market: str
    timeframe: str
    rows: int
    kept: int
    start: Any
    end: Any
    compared: int
    differing: int
    has_value: bool

    def __str__(self) -> str:
        lacks = "" if self.has_value else "; it had no turnover, so value is NaN"
        return (
            f"{self.market} {self.timeframe}: {self.kept} of {self.rows} candles kept, {self.start:%Y-%m-%d %H:%M} to "
            f"{self.end:%Y-%m-%d %H:%M} UTC; {self.compared} compared, {self.differing} differ{lacks}"
        )


def adopt(session: Session, source: Any, market: str, timeframe: str, *, tz: str | None = None) -> Adopted:
    """See `StoreView.adopt`."""
    code, tf = parse_market(market, session.home), parse_timeframe(timeframe)
    core = session.coordinator()
    core.markets.check_listed([code])
    table, has_value = read_candles(source, session.tz if tz is None else parse_zone(tz), code, session.home)
    name = _name_of(source)
    _check_grid(table, tf, name)
    core.sync_clock()
    times = times_of(table)
    closed = core.reader.closed_before(tf)
    if times[-1] >= closed:
        why = f"closed candles only: its last row, {show_time(times[-1])}, is still forming or yet to come"
        raise InputError("source", name, why)
    compared, differing = _compare(session, code, tf, table, name)
    kept = _keep(session, code, tf, table)
    if kept:
        detail = {"source": name, "timeframe": tf.name, "rows": kept, "compared": compared, "differing": differing}
        core.store.events.add(code, ADOPTED, detail, how="adopt")
    first, last = (in_zone(int(at), "UTC") for at in (times[0], times[-1]))
    return Adopted(code, tf.name, table.num_rows, kept, first, last, compared, differing, has_value)


# -- reading ---------------------------------------------------------------------------------------------------------


def read_candles(source: Any, tz: str, market: str = "", home: str = "KRW") -> tuple[pa.Table, bool]:
    """The candles of a file or frame (of `market`, where it names several), sorted, and whether it had turnovers; naive
    times are in `tz`.

    Raises `InputError` that names the line or column that cannot be read.
    """
    name = _name_of(source)
    raw = _raw_table(source, name)
    raw = _of_market(raw, market, home, name) if market else raw
    columns = _columns(raw, name)
    times = _times(raw.column(columns["time"]), columns["time"], tz, name)
    arrays = [times]
    for wanted in CANDLE_COLUMNS:
        if wanted in columns:
            arrays.append(_numbers(raw.column(columns[wanted]), columns[wanted], name))
        else:
            arrays.append(pa.array(np.full(raw.num_rows, np.nan)))
    table = pa.Table.from_arrays(arrays, schema=CANDLE_SCHEMA)
    if not table.num_rows:
        raise InputError("source", name, "a source with at least one candle")
    order = np.argsort(times_of(table), kind="stable")
    if (np.diff(order) != 1).any():
        table = table.take(pa.array(order))
    return _once(table, name), "value" in columns


def _name_of(source: Any) -> str:
    return Path(source).name if isinstance(source, str | os.PathLike) else f"a {type(source).__name__}"


def _raw_table(source: Any, name: str) -> pa.Table:
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, str | os.PathLike):
        return _file(Path(source), name)
    if hasattr(source, "to_arrow"):  # Polars
        return pa.table(source.to_arrow())
    if hasattr(source, "reset_index"):  # pandas
        return _of_pandas(source, name)
    raise InputError("source", name, "a CSV, Parquet or Feather file, or a pandas, Polars or Arrow frame")


def _of_pandas(source: Any, name: str) -> pa.Table:
    """A pandas frame as a table: its index has the times, unless it numbers the rows beside a column of times."""
    index = source.index
    try:
        if index.dtype.kind == "M" or not (_has_times(source) or type(index).__name__ == "RangeIndex"):
            source = source.drop(columns=["time", *index.names], errors="ignore").reset_index()
            if not _has_times(source):
                source = source.rename(columns={source.columns[0]: "time"})
        return pa.Table.from_pandas(source, preserve_index=False)
    except (ValueError, pa.ArrowException) as exc:
        raise InputError("source", name, f"a frame with one index, and a name and a type a column ({exc})") from exc


def _has_times(frame: Any) -> bool:
    return any(_ours(str(column)) == "time" for column in frame.columns)


def _file(path: Path, name: str) -> pa.Table:
    import pyarrow.feather
    import pyarrow.parquet

    kind = "".join(path.suffixes[-2:]).lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    try:
        if kind in (".parquet", ".pq"):
            return pyarrow.parquet.read_table(path)
        if kind in (".feather", ".arrow"):
            return pyarrow.feather.read_table(path)
        if kind in (".csv", ".txt", ".tsv", ".csv.gz"):
            return _csv(path)
    except FileNotFoundError as exc:
        raise InputError("source", str(path), "a file that exists") from exc
    except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError, EOFError) as exc:
        raise InputError("source", name, f"a file that can be read ({exc})") from exc
    except OSError as exc:
        if exc.errno is None:  # Arrow's, for bytes that cannot be unpacked
            raise InputError("source", name, f"a file that can be read ({exc})") from exc
        raise StoreError(f"cannot read {path}: {exc.strerror or exc}", path=path) from exc
    raise InputError("source", name, "a file that ends with .csv, .csv.gz, .tsv, .txt, .parquet or .feather")


def _csv(path: Path) -> pa.Table:
    """A text file: commas, semicolons or tabs, with a header or, as ccxt's lists are saved, without."""
    from pyarrow import csv

    with pa.input_stream(str(path), compression="detect") as stream:
        head = stream.read(65536)
    encoding = "utf-8"
    try:
        codecs.getincrementaldecoder(encoding)().decode(head)  # but for a character that its end cuts off
    except UnicodeDecodeError:
        encoding = "cp949"  # as Excel saves a CSV in Korea
    first = head.decode(encoding, errors="replace").lstrip("\ufeff").splitlines()
    if not first:
        raise pa.ArrowInvalid("it is empty")
    delimiter = max(",;\t", key=first[0].count)
    cells = [cell.strip().strip('"') for cell in first[0].split(delimiter)]
    bare = all(_is_number(cell) for cell in cells) and len(cells) in (6, 7)
    names = ["time", *CANDLE_COLUMNS[: len(cells) - 1]] if bare else None

    def read(*, use_threads: bool) -> pa.Table:
        return csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=names, encoding=encoding, use_threads=use_threads),
            parse_options=csv.ParseOptions(delimiter=delimiter),
            convert_options=csv.ConvertOptions(strings_can_be_null=True, timestamp_parsers=[csv.ISO8601]),
        )

    try:
        return read(use_threads=True)
    except pa.ArrowInvalid:
        return read(use_threads=False)  # whose error names the line


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _of_market(raw: pa.Table, market: str, home: str, name: str) -> pa.Table:
    """The rows of one market, where a column names them."""
    title = next((one for one in raw.column_names if one.strip().lower() in _MARKET_TITLES), None)
    if title is None:
        return raw
    column = pc.cast(raw.column(title), pa.string())
    names = [value for value in pc.unique(column).to_pylist() if value]
    meant = [value for value in names if _is_market(value, market, home)]
    if len(names) < 2 and not meant and not any(mark in "".join(names) for mark in "-/_"):
        return raw  # another way of writing than ours, such as BTCKRW: the prices tell
    if not meant:
        shown = ", ".join(names[:4]) + ("…" if len(names) > 4 else "")
        raise InputError("source", name, f"candles of {market}; its column {title!r} has {shown or 'none'}")
    return raw.filter(pc.is_in(column, pa.array(meant)))


def _is_market(value: str, market: str, home: str) -> bool:
    try:
        return parse_market(value, home) == market
    except InputError:
        return False


def _plain(column: str) -> str:
    return column.strip().lstrip("\ufeff").lower().replace(" ", "_")


def _ours(column: str) -> str | None:
    """Our name of a source's column; None where it is none of ours."""
    return _NAMES.get(_plain(column))


def _columns(raw: pa.Table, name: str) -> dict[str, str]:
    """Which column of the source is which of ours."""
    found: dict[str, str] = {}
    for at, column in enumerate(raw.column_names):
        plain, ours = _plain(column), _ours(column)
        if ours is None and at == 0 and plain in ("", "index", "unnamed:_0", "level_0", "__index_level_0__"):
            ours = "time"  # an index that was saved without its name
        if ours is not None and (ours not in found or plain == "candle_date_time_utc"):
            found[ours] = column
    missing = [wanted for wanted in ("time", "open", "high", "low", "close", "volume") if wanted not in found]
    if missing:
        raise InputError("source", name, f"columns for {' '.join(missing)}; it has {', '.join(raw.column_names)}")
    return found


def _numbers(column: pa.ChunkedArray, title: str, name: str) -> pa.Array:
    values = column.combine_chunks()
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = pc.replace_substring(values, ",", "")  # thousands, as Excel writes them
    try:
        values = pc.cast(values, pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        row = next((i for i, value in enumerate(values.to_pylist()) if not _is_number(str(value))), 0)
        raise InputError("source", name, f"numbers in column {title!r}; row {row + 1} has {values[row]}") from exc
    wrong = pc.invert(pc.fill_null(pc.is_finite(values), False))
    if pc.any(wrong).as_py():
        row = int(np.flatnonzero(wrong.to_numpy(zero_copy_only=False))[0])
        raise InputError("source", name, f"a number in column {title!r} of every row; row {row + 1} has none")
    return values


def _times(column: pa.ChunkedArray, title: str, tz: str, name: str) -> pa.Array:
    values, stamp = column.combine_chunks(), CANDLE_SCHEMA.field("time").type
    zone = {"candle_date_time_utc": "UTC", "candle_date_time_kst": _KOREA}.get(title.strip().lower(), tz)
    if values.null_count:
        row = int(np.flatnonzero(pc.is_null(values).to_numpy(zero_copy_only=False))[0])
        raise InputError("source", name, f"a time in column {title!r} of every row; row {row + 1} has none")
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        numbers = values.to_numpy(zero_copy_only=False)
        dates = _dates(numbers)
        if dates is not None:
            return pc.assume_timezone(dates, zone, ambiguous="earliest", nonexistent="latest").cast(stamp)
        largest = float(np.abs(numbers).max())
        scale = next((scale for limit, scale in _EPOCH_UNITS if largest < limit), None)
        micros = numbers.astype(np.int64) // 1000 if scale is None else (numbers * scale).astype(np.int64)
        return pa.array(micros).cast(stamp)
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("us"))
    if not pa.types.is_timestamp(values.type):
        import pandas as pd

        texts = pc.cast(values, pa.string())
        texts = pc.replace_substring_regex(texts, r"(\d)\s*[./년]\s*(\d+)\s*[./월]\s*(\d+)(?:\s*[.일])?", r"\1-\2-\3")
        is_late, is_early = (pc.match_substring_regex(texts, word).to_numpy(False) for word in (_PM, _AM))
        texts = pc.replace_substring_regex(texts, rf"\s*({_PM}|{_AM})", "")
        try:
            moments = pd.to_datetime(texts.to_pandas(), format="ISO8601")
            if is_late.any() or is_early.any():
                is_noon = (moments.dt.hour == 12).to_numpy()
                halves = (is_late & ~is_noon).astype(int) - (is_early & is_noon)
                moments = moments + pd.to_timedelta(12 * halves, unit="h")
        except ValueError as exc:
            unread = pd.to_datetime(texts.to_pandas(), format="ISO8601", errors="coerce", utc=True).isna()
            row = int(np.flatnonzero(unread.to_numpy())[0]) if unread.any() else 0
            why = f"times such as 2025-03-01 09:00 in column {title!r}; row {row + 1} has {values[row]}"
            raise InputError("source", name, why) from exc
        values = pa.Array.from_pandas(moments)
    if values.type.tz is None:
        values = pc.assume_timezone(values.cast(pa.timestamp("us")), zone, ambiguous="earliest", nonexistent="latest")
    return values.cast(stamp)


def _dates(numbers: Any) -> pa.Array | None:
    """Numbers that are dates in digits, such as 20250301, or a spreadsheet's days since 1899; None for others."""
    if len(numbers) and numbers.min() >= _SHEET_DAYS.start and numbers.max() < _SHEET_DAYS.stop:
        seconds = np.round((numbers - _SHEET_EPOCH) * 86_400).astype(np.int64)  # they are cut at some digit
        return pa.array(seconds).cast(pa.timestamp("s")).cast(pa.timestamp("us"))
    for digits, form in _DIGITS:
        unit = 10 ** (digits - 8)
        if len(numbers) and numbers.min() >= 19_900_101 * unit and numbers.max() <= 21_001_231 * unit + unit - 1:
            import pandas as pd

            found = pd.to_datetime(pd.Series(numbers.astype(np.int64)).astype(str), format=form, errors="coerce")
            return None if found.isna().any() else pa.Array.from_pandas(found).cast(pa.timestamp("us"))
    return None


def _once(table: pa.Table, name: str) -> pa.Table:
    """Each open once: rows that are there twice and equal are one; rows that differ are refused."""
    times = times_of(table)
    doubled = np.flatnonzero(np.diff(times) == 0)
    if not len(doubled):
        return table
    for column in CANDLE_COLUMNS:
        values = table.column(column).to_numpy()
        before, after = values[doubled], values[doubled + 1]
        differs = ~((before == after) | (np.isnan(before) & np.isnan(after)))
        if differs.any():
            at = times[doubled[int(np.flatnonzero(differs)[0])]]
            raise InputError("source", name, f"one row an open: {show_time(at)} is there twice with another {column}")
    return table.take(pa.array(np.setdiff1d(np.arange(len(times)), doubled + 1)))


# -- checking --------------------------------------------------------------------------------------------------------


def _check_grid(table: pa.Table, timeframe: Timeframe, name: str) -> None:
    """The rows are candles of this timeframe, each possible."""
    times = times_of(table)
    off = np.flatnonzero(timeframe.floor_array(times) != times)
    if len(off):
        why = f"opens on the grid of {timeframe}: {show_time(times[off[0]])} is none{_step(times)}"
        for hours in (9, -9):
            moved = times + hours * HOUR_US
            if (timeframe.floor_array(moved) == moved).all():
                why += f"; moved by {hours} hours they are: say in which zone they are written, such as tz='UTC'"
        raise InputError("source", name, why)
    if len(times) >= 4 and not timeframe.is_calendar and int(np.gcd.reduce(np.diff(times))) > timeframe.step_us:
        raise InputError("source", name, f"candles of {timeframe}: its rows lie on a coarser grid{_step(times)}")
    o, h, low, c, v = (table.column(n).to_numpy() for n in CANDLE_COLUMNS[:5])
    wrong = (low > np.minimum(o, c)) | (h < np.maximum(o, c)) | (low <= 0) | (v < 0)
    if wrong.any():
        at = times[int(np.flatnonzero(wrong)[0])]
        raise InputError("source", name, f"low ≤ open, close ≤ high, and volume ≥ 0: not so at {show_time(at)}")


def _step(times: Any) -> str:
    """What length the rows seem to have."""
    step = int(np.gcd.reduce(np.diff(times))) if len(times) > 1 else 0
    known = [timeframe.name for timeframe in TIMEFRAMES.values() if timeframe.step_us == step]
    return f" (they are {known[0]} candles)" if known else ""


def _compare(session: Session, market: str, timeframe: Timeframe, table: pa.Table, name: str) -> tuple[int, int]:
    """Rows of a sample compared with the venue's, and how many differ. Raises `InputError` that names what differs."""
    times = times_of(table)
    compared = differing = 0
    for span in _sample(times, timeframe):
        mine = rows_inside(table, SpanSet([span]))
        theirs = _venue_rows(session, market, timeframe, span)
        wrong = _differing(mine, theirs)
        compared, differing = compared + mine.num_rows, differing + len(wrong)
        if len(wrong) > max(1, _MOST_DIFFERING * mine.num_rows):
            raise InputError("source", name, _diagnosis(session, market, timeframe, mine, theirs, span))
        if wrong.tolist() == [times[-1]] and times[-1] in times_of(theirs):
            why = f"closed candles only: its last row, {show_time(times[-1])}, was forming when it was saved"
            raise InputError("source", name, why)
    return compared, differing


def _sample(times: Any, timeframe: Timeframe) -> list[Span]:
    """Up to five intervals of some hundred slots, the newest rows among them."""
    count = len(times)
    starts = np.unique(np.linspace(0, max(0, count - _PAGE_ROWS), _SAMPLES).astype(np.int64))
    spans = []
    for at in starts.tolist():
        last = min(count, at + _PAGE_ROWS) - 1
        end = timeframe.next(int(times[last]))
        spans.append(Span(max(int(times[at]), timeframe.next(end, -2 * _PAGE_ROWS)), end))
    return spans


def _venue_rows(session: Session, market: str, timeframe: Timeframe, span: Span) -> pa.Table:
    """What the store holds of a span whole, else the venue's own."""
    core = session.coordinator()
    stored = core.store.read(market, timeframe, span)
    if stored.covered.contains(span):
        return stored.table
    return core.direct.unstored(market, timeframe, span, Priority.NORMAL)


def _differing(mine: pa.Table, theirs: pa.Table) -> Any:
    """The opens of the rows that the venue lacks, or has with another high, low, close, volume or turnover.

    Openings do not count, since the venue restated them, and neither do turnovers that the source does not have.
    """
    found = compare(mine, theirs, relative=1e-6)
    changed = [opens[~np.isnan(values)] for name, (opens, values, _) in found.changed.items() if name != "open"]
    return np.unique(np.concatenate([found.only_first, *changed]))


def _diagnosis(
    session: Session, market: str, timeframe: Timeframe, mine: pa.Table, theirs: pa.Table, span: Span
) -> str:
    """What a sample that differs from the venue's rows seems to be."""
    shift = _shift(session, market, timeframe, mine, span)
    if shift is not None:
        hours = f"{abs(shift) / HOUR_US:g} hours {'late' if shift < 0 else 'early'}"
        return f"times of {market}: they are {hours}; say in which zone they are written, such as tz='UTC'"
    for slots, words in ((-1, "ends, a candle later"), (1, "predecessors, a candle earlier")):
        moved = np.array([timeframe.next(int(at), slots) for at in times_of(mine)])
        if _share_equal(moved, mine, theirs, "close", "close") > _MOSTLY:
            return f"times of {market}: they are those of the candles' {words}; a candle is named by its open"
    times = times_of(mine)
    if _share_equal(times, mine, theirs, "close", "close") > _MOSTLY:
        if _share_equal(times, mine, theirs, "close", "close", 0.0) <= _MOSTLY:
            return f"prices of {market} to their last digit: they are rounded, such as by float32"
        if _share_equal(times, mine, theirs, "volume", "value") > _MOSTLY:
            return f"volumes of {market} in its coin: they are turnovers"
        is_volume = _share_equal(times, mine, theirs, "volume", "volume") > _MOSTLY
        what = "turnovers (leave them out, if they are something else)" if is_volume else "volumes"
        return f"{what} of {market}: the prices are the venue's and these are not"
    both, left, right = np.intersect1d(times, times_of(theirs), return_indices=True)
    if len(both) >= 3:
        ratio = mine.column("close").to_numpy()[left] / theirs.column("close").to_numpy()[right]
        if np.ptp(ratio) <= 1e-3 * ratio.mean():
            return f"prices in the unit of {market}: they are {ratio.mean():.6g} times the venue's"
    if not len(both):
        return f"candles that {market} had: the venue has none at {show_time(times_of(mine)[0])} and after it"
    return f"candles of {market} {timeframe}: {len(both)} times agree and the prices do not; another market?"


def _shift(session: Session, market: str, timeframe: Timeframe, mine: pa.Table, span: Span) -> int | None:
    """By how much the source's clock is off, where a shift by another zone's hours makes its rows the venue's: Korea's
    nine first, the others where that takes few requests."""
    closed, nine = session.coordinator().reader.closed_before(timeframe), 9 * HOUR_US
    day = [half * HOUR_US // 2 for half in range(-2 * _MOST_HOURS, 2 * _MOST_HOURS + 1) if half]
    is_short = timeframe.count(Span(span.start - day[-1], span.end + day[-1])) <= _MOST_COMPARED
    for shifts in ((-nine,), (nine,), tuple(day) if is_short else ()):
        whole = Span(span.start + min(shifts), min(span.end + max(shifts), closed)) if shifts else Span(0, 0)
        if whole.start >= whole.end:
            continue
        theirs = _venue_rows(session, market, timeframe, whole)
        for shift in sorted(shifts, key=abs):
            if shift % timeframe.step_us or abs(shift) <= timeframe.step_us:
                continue
            if _share_equal(times_of(mine) + shift, mine, theirs, "close", "close") > _MOSTLY:
                return shift
    return None


def _share_equal(
    times: Any, mine: pa.Table, theirs: pa.Table, column: str, other: str, tolerance: float = 1e-6
) -> float:
    """In how many of the rows at the same times, with `mine` taken to be at `times`, one column is the venue's other;
    0 where too few are."""
    both, left, right = np.intersect1d(times, times_of(theirs), return_indices=True)
    if len(both) < 3:
        return 0.0
    values = mine.column(column).to_numpy()[left], theirs.column(other).to_numpy()[right]
    return float(np.isclose(*values, rtol=tolerance, atol=0.0).mean())


# -- keeping ---------------------------------------------------------------------------------------------------------


def _keep(session: Session, market: str, timeframe: Timeframe, table: pa.Table) -> int:
    """Store the rows that are not held yet, a partition at a time, marked as adopted; each proves its own slot."""
    core, kept = session.coordinator(), 0
    times = times_of(table)
    whole = Span(int(times[0]), timeframe.next(int(times[-1])))
    for period in periods_in(timeframe, whole):
        part = Span(max(period.start, whole.start), min(period.end, whole.end))
        new = SpanSet([part]) - core.store.coverage(market, timeframe, part)
        rows = rows_inside(table, new)
        if not rows.num_rows:
            continue
        slots = runs(times_of(rows), timeframe)
        core.store.put(market, timeframe, rows, slots, source=ADOPTED, now_us=core.venue.now_us())
        core.store.flush(market, timeframe)
        kept += rows.num_rows
    return kept


def promote(core: Coordinator, market: str, timeframe: Timeframe, span: Span, theirs: pa.Table) -> None:
    """Make adopted candles of `span` proven ones, with what the venue has there (`theirs`).

    What differs becomes a revision. Where most of it differs nothing is changed: another unit, or another market.
    """
    adopted = core.store.from_source(market, timeframe, span, ADOPTED)
    mine = rows_inside(core.store.read(market, timeframe, span).table, adopted)
    proven = rows_inside(theirs, adopted)
    if not mine.num_rows or len(_differing(mine, proven)) > max(1, _MOST_DIFFERING * mine.num_rows):
        return
    core.store.put(market, timeframe, proven, adopted, now_us=core.venue.now_us())
    core.store.flush(market, timeframe)
