"""Stored files as one Polars LazyFrame, safe against whoever moves them away while it is kept or collected.

Polars reads the files, in its streaming engine, with the filters and the columns of the query. Around that the markets'
generations are compared, as `CandleStore.read` does: rows are handed on only while all of them are of the state that
was selected. Where a market was quarantined since, or a file is gone (in a bucket: a blank is in its place), the files
are selected anew and read from the start; so a frame that is kept shows the old state or the new one. Only where rows
were handed on before that (a million at a time) it is an error, of ours, that says so; the next collect selects anew. A
query that has the frame twice, cut alike, reads it once; cut in two ways it is two reads, and such an error where their
states differ. Polars asks for the columns at the start of each collect, which is how the reads of one are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from backbone.clock import SystemClock
from backbone.errors import StoreError
from backbone.model import CANDLE_COLUMNS, Span
from backbone.storage.coverage import EVER
from backbone.storage.files import Files
from backbone.storage.generations import Generation, Generations
from backbone.storage.s3 import open_files, scan_options

if TYPE_CHECKING:
    import polars as pl

__all__ = ["SCAN_COLUMNS", "FileScan", "Selected"]

SCAN_COLUMNS = ("market", "time", *CANDLE_COLUMNS)
_BATCH_ROWS = 1_000_000
_SELECTIONS = 20  # in a row; what changes more often is left to the caller
_TRIES = 2  # of the same files: one may have been replaced while it was read


class Selected(msgspec.Struct, frozen=True):
    """The files of a scan, oldest first within each market, and of which generation of each market they are.

    ``fold`` makes longer candles of their rows, where shorter ones are read.
    """

    paths: Sequence[str]
    span: Span
    generations: Mapping[str, Generation]
    fold: Callable[[pl.DataFrame], pl.DataFrame] | None = None


class _ChangedError(Exception):
    """What was read is not of the state that was selected."""


class FileScan:
    """What is behind a LazyFrame: reads what is selected, and selects anew with `again` where that is gone.

    Thread-safe. A frame that is pickled reads the same files elsewhere, where there is nobody to select anew.
    """

    def __init__(
        self,
        selected: Selected,
        files: Files,
        exchange: str,
        again: Callable[[], Selected] | None = None,
    ) -> None:
        self._selected = selected
        self._files = files
        self._exchange = exchange
        self._generations = Generations(files, exchange)
        self._again = again
        self._place = files.address("")
        self._shown: dict[str, Mapping[str, Generation]] = {}  # the generations that the present collect shows

    def __reduce__(self) -> tuple[Any, ...]:
        return _revived, (self._selected, self._place, self._exchange)

    def frame(self) -> pl.LazyFrame:
        """The columns `SCAN_COLUMNS`, ``time`` in UTC. Reads nothing."""
        from polars.io.plugins import register_io_source

        return register_io_source(self._read, schema=self._begin, is_pure=True)  # read once where it stands twice

    def _begin(self) -> pl.Schema:
        """The columns. Polars calls it at the start of each collect, before any read of it; threads that collect one
        frame at the same time begin anew for each other."""
        import polars as pl

        self._shown = {}
        return pl.Schema({"market": pl.String(), **_file_schema()})

    def _read(
        self, columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        """Polars calls it at each collect, as often as the query cuts the frame in different ways."""
        from polars.exceptions import PolarsError

        def asked(rows: Any) -> Any:
            rows = rows if n_rows is None else rows.head(n_rows)  # before the filter: Polars hands on both for that
            rows = rows if predicate is None else rows.filter(predicate)
            return rows if columns is None else rows.select(columns)

        is_handed_on, failed = False, 0
        for _ in range(_SELECTIONS):
            selected = self._selected
            try:
                self._check(selected)
                for batches in _together(self._batches(selected, asked)):
                    if is_handed_on:
                        self._check(selected)
                    else:
                        self._show(selected)
                    is_handed_on = True
                    yield from batches
                if is_handed_on:
                    self._check_files(selected)
                else:
                    self._show(selected)  # no rows are an answer, too
                return
            except (_ChangedError, OSError, PolarsError) as exc:
                if self._is_other_now(selected, exc):
                    if is_handed_on:
                        words = f"{exc}, and this collect had handed on some of the rows before: collect it again"
                        raise StoreError(words, path=self._place) from exc
                    continue
                failed += 1
                if not is_handed_on and failed < _TRIES:
                    continue
                if isinstance(exc, PolarsError):
                    raise  # it is the query's, or a damaged file's
                raise StoreError(f"a file of this scan cannot be read: {exc}", path=self._place) from exc
        raise StoreError("the files of this scan were moved away again and again", path=self._place)

    def _show(self, selected: Selected) -> None:
        """Raise unless a read may hand on its first rows, which may be all that is taken of them."""
        self._check(selected)
        self._check_files(selected)
        now = selected.generations
        shown = self._shown.setdefault("now", now)  # one step: reads run side by side
        others = [market for market in {**shown, **now} if shown.get(market) != now.get(market)]
        if others:
            words = f"{_few(others)} was quarantined between two reads of this collect: collect it again"
            raise StoreError(words, path=self._place)

    def _check(self, selected: Selected) -> None:
        """Raise where a market is not, or no longer, in the state that was selected."""
        self._generations.refresh()
        changed = [market for market, state in selected.generations.items() if self._generations.of(market) != state]
        if changed:
            raise _ChangedError(f"{_few(changed)} was quarantined after this scan was made (store.events() says why)")

    def _check_files(self, selected: Selected) -> None:
        """Raise where a file was moved away and its place was taken, so that Polars does not miss it."""
        keys = (path.removeprefix(self._place).lstrip("/") for path in selected.paths)
        blanks = self._files.blanks(keys)
        if blanks:
            raise _ChangedError(f"{self._files.address(blanks[0])} was moved away (store.events() says why)")

    def _is_other_now(self, before: Selected, exc: Exception) -> bool:
        """Select anew, and say whether that is something else. Raises what the selection raises.

        Where nobody can select, a file that is gone is an error, and one of Polars' may be the query's.
        """
        from polars.exceptions import PolarsError

        if self._again is None:
            if isinstance(exc, PolarsError):
                return False
            raise StoreError(f"{exc}: make the scan again, in the client", path=self._place) from exc
        self._files.refresh()
        self._selected = now = self._again()
        return (now.paths, now.generations) != (before.paths, before.generations)

    def _batches(self, selected: Selected, asked: Callable[[Any], Any]) -> Iterator[pl.DataFrame]:
        """The rows of the files, cut to what was `asked` of them."""
        import polars as pl

        if not selected.paths:
            return
        lazy = pl.scan_parquet(
            list(selected.paths),
            schema=_file_schema(),
            hive_partitioning=True,
            try_parse_hive_dates=False,
            glob=False,
            storage_options=scan_options(self._place),
        )  # with a schema no file is looked at ahead: it may be another one by the time it is read
        lazy = lazy.select(SCAN_COLUMNS)
        if selected.span.start > EVER.start:
            lazy = lazy.filter(pl.col("time") >= _instant(selected.span.start))
        if selected.span.end < EVER.end:
            lazy = lazy.filter(pl.col("time") < _instant(selected.span.end))
        if selected.fold is None:
            yield from asked(lazy).collect_batches()
        else:
            yield asked(selected.fold(lazy.collect()))


def _revived(selected: Selected, place: str, exchange: str) -> FileScan:
    return FileScan(selected, open_files(place, SystemClock()), exchange)


def _together(batches: Iterator[pl.DataFrame]) -> Iterator[list[pl.DataFrame]]:
    """What is checked and handed on in one: batches as they come, since Polars would copy them into larger ones."""
    held, rows = list[Any](), 0
    for batch in batches:
        held.append(batch)
        rows += batch.height
        if rows >= _BATCH_ROWS:
            yield held
            held, rows = [], 0
    if held:
        yield held


def _few(markets: Sequence[str]) -> str:
    return ", ".join(markets[:5]) + ("…" if len(markets) > 5 else "")


def _file_schema() -> dict[str, Any]:
    import polars as pl

    return {"time": pl.Datetime("us", "UTC"), **dict.fromkeys(CANDLE_COLUMNS, pl.Float64())}


def _instant(time_us: int) -> Any:
    import polars as pl

    return pl.lit(time_us).cast(pl.Datetime("us", "UTC"))
