"""``session.store``: what is on disk, proven, repaired, and what the venue restated."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from backbone.api import frames as shaping
from backbone.api.arguments import TimeLike, parse_market, parse_markets
from backbone.api.calls.adopt import adopt, promote
from backbone.api.calls.listing import adopt_lists
from backbone.api.calls.status import memo_bytes
from backbone.api.frames import TEXT, TIME, WHOLE
from backbone.candle_table import compare, rows_inside, times_of
from backbone.coordinator.candles.ranges import Range
from backbone.coordinator.markets import unknown_market
from backbone.errors import InputError, SourceError
from backbone.model import Priority, Span
from backbone.storage.audit import Problem
from backbone.storage.coverage import EVER
from backbone.timeframe import TIMEFRAMES, Timeframe, parse_timeframe

if TYPE_CHECKING:
    from backbone.api.calls.update import UpdateJob
    from backbone.api.session import Session
    from backbone.storage.copy import Copied

__all__ = ["StoreView"]

_RELATIVE = 1e-9  # sums of floats in another order


class StoreView:
    """The candle store of a session. Frames are of the client's type; times in its zone."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def verify(
        self,
        market: str | None = None,
        timeframe: str | None = None,
        *,
        against: str | None = None,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        frames: str | None = None,
    ) -> Any:
        """Prove the store from its files alone: one row a problem (``market timeframe path kind detail``), none where
        all is well. Without a market and a timeframe, each snapshot is proven too: rows that are not those that it was
        made of, since another program changed a file in its place, are a problem of kind ``changed``.

        With ``against="venue"`` also compares stored candles, and those folded from minutes, with the venue's own
        for the range (default: the newest 200 of each): open, high, low, close to the last digit, volume and value
        to 1e-9 relative; a difference is a problem of kind ``differs``. Adopted candles of the range are proven from
        then on, and those that differ are `revisions`; where most differ they stay as they are.

        Raises
        ------
        InputError for a market or a timeframe of which nothing is stored: a proof of nothing would say that all is
        well.
        """
        if against not in (None, "venue"):
            raise InputError("against", against, '"venue" or None')
        core = self._session.coordinator()
        tf = None if timeframe is None else parse_timeframe(timeframe)
        name = self._stored(market) if against is None else self._named(market)
        core.store.flush()
        problems: list[Problem] = []
        if against is None or tf is None or (name, tf) in core.store.series():
            problems += core.store.verify(name, tf)
        if name is None and tf is None:
            problems += core.store.upkeep.changed_snapshots()
        if against == "venue":
            for one, each in self._comparable(name, tf):
                problems += self._against_venue(one, each, start, end)
        if tf is not None and not problems:
            _check_stored(core.store.series(), name, tf, is_folded=against == "venue")
        return self._frame(problems, frames)

    def repair(self, *, frames: str | None = None) -> Any:
        """Repair what `verify` finds and say what was done, one row each.

        Damaged files are moved to quarantine, never deleted; what they covered is unknown again and is requested at the
        next call.
        """
        return self._frame(self._session.coordinator().store.repair(), frames)

    def revisions(self, market: str | None = None, timeframe: str | None = None, *, frames: str | None = None) -> Any:
        """What the venue restated of candles already stored: old and new values, and when it was seen."""
        core = self._session.coordinator()
        name = self._named(market)
        table = core.store.revisions(name, None if timeframe is None else parse_timeframe(timeframe))
        return self._deliver(table, frames)

    def incidents(self, *, frames: str | None = None) -> Any:
        """Damaged files in quarantine and writes that failed, since this client was opened: ``at kind path detail``."""
        columns = {"at_us": TIME, "kind": TEXT, "path": TEXT, "detail": TEXT}
        return self._records(columns, self._session.coordinator().store.incidents(), frames)

    def outages(
        self,
        timeframe: str = "1m",
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        markets: Iterable[str] | None = None,
        frames: str | None = None,
    ) -> Any:
        """When the whole exchange stood still, going by what is stored: ``start end slots markets``. Makes no request.

        A slot counts where none of the markets traded and the chance of that, given how often each trades, is below one
        in a million; so a thin market's pause is none, and one market alone is never enough. Half-open, in the client's
        zone; ``markets`` is how many cover it.

        Parameters
        ----------
        markets : default: all that are stored in this timeframe.
        start, end : default: from the first candle that is held to the last.
        """
        session = self._session
        core, tf = session.coordinator(), parse_timeframe(timeframe)
        if markets is None:
            names = core.renames.once(market for market, each in core.store.series() if each == tf)
        else:
            names = parse_markets(markets, session.home)
        begin = 0 if start is None else session.time("start", start, may_ask=False)
        last = core.reader.closed_before(tf) if end is None else session.time("end", end, may_ask=False)
        found = core.reader.outages(names, tf, Span(begin, max(begin, last)))
        return self._records({"start": TIME, "end": TIME, "slots": WHOLE, "markets": WHOLE}, found, frames)

    def _records(self, columns: dict[str, pa.DataType], found: Sequence[Any], frames: str | None) -> Any:
        """A row a record, of its attributes of these names; a column of times is named without its unit."""
        named = {name.removesuffix("_us"): kind for name, kind in columns.items()}
        return self._rows(named, [[getattr(one, name) for name in columns] for one in found], frames)

    def _rows(self, columns: dict[str, pa.DataType], rows: Sequence[Sequence[Any]], frames: str | None) -> Any:
        return self._deliver(shaping.table_of(columns, rows), frames)

    def _deliver(self, table: pa.Table, frames: str | None) -> Any:
        attrs = shaping.local_facts(table.num_rows, "store")
        return shaping.deliver(table, self._session.frames(frames), index=None, zone=self._session.tz, attrs=attrs)

    def _named(self, market: str | None) -> str | None:
        if market is None:
            return None
        name = parse_market(market, self._session.home)
        self._session.coordinator().markets.check_known([name])
        return name

    def _stored(self, market: str | None) -> str | None:
        """The name of a market of which something is stored: a proof of nothing would say that all is well."""
        name = self._named(market)
        stored = sorted({held for held, _ in self._session.coordinator().store.series()})
        if name is None or name in stored:
            return name
        shown = ", ".join(stored[:8]) + ("…" if len(stored) > 8 else "")
        raise InputError("market", name, f"a market of which something is stored: {shown or 'so far none'}")

    def events(self, market: str | None = None, *, frames: str | None = None) -> Any:
        """What happened to the markets, oldest first: ``at market kind detail how``; makes no request.

        ``kind`` is listed, delisted, named, renamed, warned, cautioned, state (what tickers say: the market's state,
        the day of a coming delisting, suspension, warning), redenominated, restated (stored candles came with other
        values: how many, and from which to which; `revisions` has the values), adopted, quarantined …; ``detail`` is
        JSON; ``how`` says how it is known.

        Raises
        ------
        InputError for a market that no recorded list has and of which nothing is stored.

        Examples
        --------
        >>> client.store.events("KRW-BTC").columns.tolist()
        ['at', 'market', 'kind', 'detail', 'how']
        """
        session = self._session
        name = None if market is None else parse_market(market, session.home)
        core = session.coordinator()
        core.store.flush(name)
        found = core.market_log.events(name)
        if name is not None and not found and all(name != held for held, _ in core.store.series()):
            codes = core.market_log.codes()
            if codes:  # each of a list has the event that it was in it
                raise unknown_market(name, codes)
        rows = [(one.at_us, one.market, one.kind, json.dumps(one.detail, ensure_ascii=False), one.how) for one in found]
        return self._rows({"at": TIME, "market": TEXT, "kind": TEXT, "detail": TEXT, "how": TEXT}, rows, frames)

    def inventory(self, *, frames: str | None = None) -> Any:
        """What is held, a row a series: ``market timeframe from to rows holes bytes``; makes no request.

        ``from`` is the first candle's open, ``to`` the last one's end, ``holes`` how many unknown spans lie between.

        Examples
        --------
        >>> client.store.inventory().columns.tolist()
        ['market', 'timeframe', 'from', 'to', 'rows', 'holes', 'bytes']
        """
        found = self._session.coordinator().store.upkeep.inventory()
        columns = {"market": TEXT, "timeframe": TEXT, "from": TIME, "to": TIME}
        columns |= {"rows": WHOLE, "holes": WHOLE, "bytes": WHOLE}
        rows = [
            (one.market, one.timeframe.name, one.start_us, one.end_us, one.rows, one.holes, one.bytes) for one in found
        ]
        return self._rows(columns, rows, frames)

    def exchanges(self) -> list[str]:
        """The exchange partitions of which the data folder holds something; another host's have its name in theirs."""
        store = self._session.coordinator().store
        store.flush()
        return store.upkeep.exchanges()

    def remove(self, market: str, timeframe: str | None = None, *, for_good: bool = False) -> str | None:
        """Take a market away, or one timeframe of it: into quarantine, or for good.

        Returns
        -------
        The folder that holds it now, which a client opens with ``data_dir=``; None where it was removed for good.

        Raises
        ------
        InputError where nothing of it is stored, naming what is.
        """
        name = parse_market(market, self._session.home)
        tf = None if timeframe is None else parse_timeframe(timeframe)
        core = self._session.coordinator()
        where = core.store.upkeep.remove(name, tf, for_good=for_good)
        if core.memo is not None:
            core.memo.trim()
        return where

    def clear(self) -> dict[str, int]:
        """Delete the quarantine and the remembered frames: ``files`` and ``bytes`` that were freed. Candles stay."""
        core = self._session.coordinator()
        files, size = core.store.upkeep.clear()
        if core.memo is not None:
            size += core.memo.size()
            core.memo.clear()
        return {"files": files, "bytes": size}

    def snapshot(self, name: str) -> Path | str:
        """A data folder with all that is stored now, which never changes again; any client opens it with ``data_dir=``.

        Hard links where the disk has them, so it costs no space until the store's own files change. Candles that a
        client fetches there are delivered and not kept.

        Raises
        ------
        InputError for a name that is taken or no folder's.
        """
        return self._session.coordinator().store.upkeep.snapshot(name)

    def snapshots(self, *, frames: str | None = None) -> Any:
        """The snapshots, oldest first: ``name at path rows content``.

        ``content`` is a hash of the rows alone: two people whose snapshots have the same one used the same data. It is
        computed at the first look, by reading the snapshot.
        """
        found = self._session.coordinator().store.upkeep.snapshots()
        columns = {"name": TEXT, "at_us": TIME, "path": TEXT, "rows": WHOLE, "content": TEXT}
        return self._records(columns, found, frames)

    def condition(self, market: str, timeframe: str = "1m", *, frames: str | None = None) -> Any:
        """What is held of a series, a row a day of UTC (a month for days and longer); makes no request.

        Columns ``start rows quiet unknown provisional revisions source``: candles held, slots without trades, slots
        never received, slots that are to be confirmed, candles that were revised. From the first candle held to the
        last. ``source`` names where the day's slots came from, most of them first, joined by ``+``: ``venue`` (asked of
        it), ``archive`` (its files), ``adopted`` (not confirmed yet), ``derived`` (folded from stored minutes).

        Raises
        ------
        InputError where nothing of it is held, naming what is.
        """
        name, tf = parse_market(market, self._session.home), parse_timeframe(timeframe)
        core = self._session.coordinator()
        core.store.flush()
        folded, spans = core.reader.fold_minutes(name, tf, Span(0, core.reader.closed_before(tf)))
        spans = spans - core.store.coverage(name, tf, EVER)
        derived = times_of(rows_inside(folded, spans)), spans
        found = core.store.upkeep.condition(name, tf, derived)
        numbers = ("rows", "quiet", "unknown", "provisional", "revisions")
        return self._records({"start_us": TIME, **dict.fromkeys(numbers, WHOLE), "source": TEXT}, found, frames)

    def size(self) -> dict[str, int]:
        """``files bytes markets pending_rows memo_bytes``, of this exchange and of the remembered frames."""
        core = self._session.coordinator()
        return core.store.size() | {"memo_bytes": memo_bytes(core)}

    def _frame(self, problems: Sequence[Problem], frames: str | None) -> Any:
        columns = ("market", "timeframe", "path", "kind", "detail")
        return self._records(dict.fromkeys(columns, TEXT), problems, frames)

    def _comparable(self, market: str | None, timeframe: Timeframe | None) -> list[tuple[str, Timeframe]]:
        """What to compare with the venue: what was named, or what is stored, and an hour folded from stored minutes."""
        if market is not None and timeframe is not None:
            return [(market, timeframe)]
        stored = self._session.coordinator().store.series()
        minutes, hours = TIMEFRAMES["1m"], TIMEFRAMES["1h"]
        folded = [(one, hours) for one, each in stored if each == minutes and (one, hours) not in stored]
        chosen = [(one, each) for one, each in stored + folded if market in (None, one) and timeframe in (None, each)]
        return sorted(chosen, key=lambda pair: (pair[0], pair[1].step_us))

    def _against_venue(
        self, market: str, timeframe: Timeframe, start: TimeLike | None, end: TimeLike | None
    ) -> list[Problem]:
        session, core = self._session, self._session.coordinator()
        begin = None if start is None else session.time("start", start, may_ask=False)
        stop = None if end is None else session.time("end", end, may_ask=False)
        asked = Range(begin, stop, 200 if begin is None else None)
        held = core.ranges.recall([market], timeframe, asked, newest_held=True)[0]
        if held.table.num_rows == 0:
            return []
        span = Span(int(times_of(held.table)[0]), held.span.end)
        try:
            theirs = core.direct.unstored(market, timeframe, span, Priority.LOW)
        except (SourceError, InputError) as exc:  # the venue did not answer, or has forgotten its candles
            rename = core.markets.renamed(market, Priority.LOW) if getattr(exc, "status", None) == 404 else None
            detail = f"could not be compared with the venue: {exc if rename is None else rename}"
            return [Problem(market, timeframe.name, str(session.data_dir), "uncompared", detail)]
        stored = core.store.read(market, timeframe, span)
        folded, foldable = core.reader.fold_minutes(market, timeframe, span)
        path = str(session.data_dir)
        found = [
            Problem(market, timeframe.name, path, "differs", f"{what}: {detail}")
            for what, mine, known in (("stored", stored.table, stored.covered), ("folded from 1m", folded, foldable))
            for detail in compare(mine, rows_inside(theirs, known), relative=_RELATIVE).describe("ours", "the venue's")
        ]
        promote(core, market, timeframe, span, theirs)
        return found

    def recheck(self, market: str | None = None, timeframe: str | None = None, *, frames: str | None = None) -> Any:
        """Ask the bulk archive whether files that candles were taken from were issued again: one row a file.

        ``file market timeframe state detail``; ``state`` is ``same``, ``changed`` (the new file was checked and stored,
        and what it changes is in `revisions`) or ``refused`` (it could not be had, or was rejected; nothing was
        changed). A request a file.
        """
        core = self._session.coordinator()
        if core.archive is None:
            raise InputError("archive", None, 'a client with archive="accept-terms"')
        tf = None if timeframe is None else parse_timeframe(timeframe)
        name = self._named(market)
        found = [
            row
            for held, held_tf in core.store.series()
            if name in (None, held) and tf in (None, held_tf)
            for row in core.archive.recheck(
                held, held_tf, Span(0, core.venue.now_us()), lambda ask: core.request(ask, Priority.LOW)
            )
        ]
        columns = ("file", "market", "timeframe", "state", "detail")
        return self._records(dict.fromkeys(columns, TEXT), found, frames)

    def update(
        self,
        markets: str | Iterable[str] | None = None,
        timeframe: str | None = None,
        *,
        priority: str | Priority = "low",
        frames: str | None = None,
    ) -> UpdateJob:
        """Bring all that is stored up to date: every series from its newest candle to now, in one background job.

        A series that fails does not stop the others. Two updates at once share what is on its way.

        Parameters
        ----------
        markets : a market, several, or a quote currency; None is all that is stored.
        timeframe : one of the stored ones; None is all.
        priority : ``low`` · ``normal`` · ``high``.
        frames : the frame type of its results.

        Returns
        -------
        `UpdateJob`: ``progress sections() wait() cancel() result()``; its result is a frame with a row a series.

        Raises
        ------
        InputError  a wrong argument, or nothing of that is stored.

        Examples
        --------
        >>> job = client.backfill("KRW-BTC", "1h", "2025-08-20", "2025-08-21").wait()
        >>> client.store.update("KRW-BTC").result()[["market", "timeframe", "state"]].values.tolist()
        [['KRW-BTC', '1h', 'done']]
        """
        from backbone.api.calls.update import update

        return update(self._session, markets, timeframe, priority=priority, frames=frames)

    def adopt(
        self,
        source: Any,
        market: str | None = None,
        timeframe: str | None = None,
        *,
        tz: str | None = None,
        at: TimeLike | None = None,
    ) -> Any:
        """Take in candles that somebody already has: a file or a frame, checked before anything of it is kept.

        The spellings of pyupbit, freqtrade, ccxt, Excel and of this package are known. A sample of the rows is compared
        with the venue, or with stored rows. Kept rows prove their own slots only: the slots between them stay unknown.
        They are marked as adopted (see `condition`) until a fetch or ``verify(against="venue")`` confirms them. Rows of
        slots that the store covers are left as they are.

        Without market and timeframe the source is a market list that somebody kept, a JSON body of ``market/all`` or a
        folder of them; its day is in the file's name (``market_all_2021-04-17.json``), or is `at`. The answer is then
        ``lists markets events from to``: what was read, and how many changes they brought.

        Parameters
        ----------
        source : a CSV, Parquet or Feather file, or a pandas, Polars or Arrow frame.
        market : whose candles they are; of a source with a column ``market`` (symbol, code, pair …) its rows count.
        timeframe : how long they are.
        tz : the zone of times that name none; None is the client's.

        Returns
        -------
        `Adopted`: ``rows kept start end compared differing has_value``. Without turnovers ``value`` is NaN.

        Raises
        ------
        InputError  what cannot be read (with the row or column), and what is not what it is said to be: another clock,
            timeframe, market or unit, or a last row that was still forming. Nothing is kept.
        StoreError  the file or the store cannot be read or written.

        Examples
        --------
        >>> mine = client.candles("KRW-BTC", "1h", "2025-08-20", "2025-08-21", priority="critical")
        >>> client.store.adopt(mine, "KRW-BTC", "1h").rows
        24
        """
        if market is None and timeframe is None:
            if tz is not None:
                raise InputError("tz", tz, "nothing for a list of markets: its day is in the client's zone")
            return adopt_lists(self._session, source, at)
        if market is None or timeframe is None:
            raise InputError("timeframe" if timeframe is None else "market", None, "both, for candles")
        if at is not None:
            raise InputError("at", at, "nothing for candles, which have their own times: it is a market list's day")
        return adopt(self._session, source, market, timeframe, tz=tz)

    def copy_to(self, target: str | os.PathLike[str]) -> Copied:
        """Copy the whole store to a folder or ``"s3://bucket/prefix"`` and prove it there; the source stays.

        Either way, and between two buckets. Pages of this process are written first. What the target already holds must
        be the same to the byte, else nothing is copied; of the log of events it gets the lines that it lacks.

        Returns
        -------
        ``files`` and ``bytes`` written, ``same`` that were there already, ``problems`` of the proof: none where all is
        well.

        Raises
        ------
        InputError for a wrong address; StoreError where the target refuses, holds something else, or has candles from
        before a redenomination.
        """
        from backbone.settings import parse_place
        from backbone.storage.s3 import open_files

        core = self._session.coordinator()
        return core.store.copy_to(open_files(parse_place(target), core.clock))

    def __repr__(self) -> str:
        return f"<Store {self._session.data_dir}>"

    def _repr_html_(self) -> str:
        size = self.size()
        return (
            f"<div><b>Store</b> {escape(str(self._session.data_dir))}<br><small>{size['markets']:,} markets · "
            f"{size['files']:,} files · {size['bytes'] / 1e6:,.1f} MB · {size['pending_rows']:,} rows not on disk yet"
            "</small></div>"
        )

    def __dir__(self) -> list[str]:
        return sorted(name for name in object.__dir__(self) if not name.startswith("_"))


def _check_stored(
    series: Iterable[tuple[str, Timeframe]], market: str | None, timeframe: Timeframe, *, is_folded: bool
) -> None:
    """Raise `InputError` where `series` has nothing of a timeframe nor, where `is_folded`, minutes to fold."""
    chosen = {each for held, each in series if market in (None, held)}
    if timeframe not in chosen and not (is_folded and TIMEFRAMES["1m"] in chosen):
        shown = " ".join(each.name for each in sorted(chosen, key=lambda each: each.step_us)) or "so far none"
        of = "" if market is None else f" of {market}"
        raise InputError("timeframe", timeframe.name, f"a timeframe of which something is stored{of}: {shown}")
