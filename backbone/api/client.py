"""`Backbone`, the client: the signatures of all calls, their contracts, and one forwarding line each.

One file because it is the list of what a person can call: each method says what it takes, gives and raises, and hands
the client's `Session` to the module that does it. It holds no other state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from backbone.api.arguments import TimeLike
from backbone.api.session import Session
from backbone.model import Priority
from backbone.settings import Settings, resolve

if TYPE_CHECKING:
    import polars as pl

    from backbone.api.calls.backfill import Job
    from backbone.api.calls.chart import LiveChart
    from backbone.api.calls.live import LiveTable
    from backbone.api.calls.prometheus import MetricsServer
    from backbone.api.calls.request import BackboneRequest, BackboneResponse
    from backbone.api.calls.size import Sizing
    from backbone.api.calls.status import Health
    from backbone.api.calls.store import StoreView
    from backbone.api.notebook.dashboard import Dashboard

__all__ = ["Backbone"]

T = TypeVar("T")


class Backbone:
    """Market data of the Upbit exchange as DataFrames: exact, fast, calm under load.

    Four data calls (`candles`, `tickers`, `orderbooks`, `trades`) and what helps them. Constructing opens no socket and
    starts no thread; use it with ``with`` or call `close()`; one that nobody refers to any more, and one that is left
    when the program ends, is closed by itself. Safe to share between threads; pickles to its settings; survives
    ``fork``. One class because a notebook's user finds every call behind one name.

    Parameters
    ----------
    exchange : ``"upbit"``, ``"upbit-sg"``, ``"upbit-id"`` or ``"upbit-th"``.
    data_dir : where candles are kept: argument → ``$BACKBONE_DATA_DIR`` → ``data/`` of the checkout → user data folder.
        ``"s3://bucket/prefix"`` keeps them on object storage (extra ``[s3]``; endpoint and credentials from the
        standard ``AWS_…`` environment).
    rest_url, ws_url : argument → ``$BACKBONE_REST_URL`` / ``$BACKBONE_WS_URL`` → the exchange's own.
    tz : zone of every index and of naive input (argument → ``$BACKBONE_TZ`` → Asia/Seoul); storage is UTC always.
    frames : ``"pandas"``, ``"polars"`` or ``"arrow"``; every data call also takes ``frames=``.
    quota : ``"redis://host:port/0"`` shares one quota among all hosts behind one address (argument →
        ``$BACKBONE_QUOTA``; a password only in ``$BACKBONE_QUOTA_PASSWORD``); None: this machine has an address of its
        own.
    archive : ``"accept-terms"`` takes whole closed months and days from the venue's bulk archive, many times faster
        than the quota allows (argument → ``$BACKBONE_ARCHIVE``). Its terms, which you accept by that, allow personal,
        non-commercial use only: https://www.upbit.com/historical_data/main
    archive_url : another host for the archive (argument → ``$BACKBONE_ARCHIVE_URL`` → the exchange's own).
    close_grace : seconds after its end, on the venue's clock, until a candle counts as closed, 0 to 60 (argument →
        ``$BACKBONE_CLOSE_GRACE`` → 3). Until then it is not stored: the venue may still count trades into it.

    Examples
    --------
    >>> with Backbone.demo(seed=7, now="2025-08-22T09:00:00Z") as client:
    ...     client.candles("KRW-BTC", "1h", "2025-08-21", "2025-08-22").shape
    (24, 6)
    """

    def __init__(
        self,
        exchange: str = "upbit",
        *,
        data_dir: str | os.PathLike[str] | None = None,
        rest_url: str | None = None,
        ws_url: str | None = None,
        tz: str | None = None,
        frames: str = "pandas",
        quota: str | None = None,
        archive: str | None = None,
        archive_url: str | None = None,
        close_grace: float | None = None,
    ) -> None:
        settings = resolve(
            exchange,
            data_dir=data_dir,
            rest_url=rest_url,
            ws_url=ws_url,
            tz=tz,
            frames=frames,
            quota=quota,
            archive=archive,
            archive_url=archive_url,
            close_grace=close_grace,
        )
        self._session = Session(settings)

    @classmethod
    def demo(cls, seed: int = 7, now: str | None = None, *, server: Any = None, **settings: Any) -> Backbone:
        """A client of an embedded exchange on loopback: fixed clock, temporary store, the same data everywhere.

        `seed` chooses the market's history, `now` the exchange's clock (default: 2025-08-22T09:00:00Z). `server` is a
        `backbone.simulator.SimulatorServer` of your own instead: to script its faults, or to let its clock run; it is
        started where it was not, and you close it. Further keywords go to `Backbone`. `close()` ends the demo's own
        exchange and removes the temporary store.
        """
        from backbone.api.demo import start_demo

        words, venue, ending = start_demo(seed, now, server, settings)
        try:
            client = cls(**words)
        except BaseException:
            for end in ending:
                end()
            raise
        client.session.venue = venue
        for end in ending:
            client.session.end_with(end)
        return client

    # -- candles -------------------------------------------------------------------------------------------------

    def candles(
        self,
        market: str | Iterable[str],
        timeframe: str = "1m",
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        count: int | None = None,
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
        """Candles, oldest first, complete for the whole range or an error.

        Reads the store first and asks the venue only for what is unknown; what arrives is stored. Safe to call from
        several threads: identical asks are one ask.

        Parameters
        ----------
        market : ``"KRW-BTC"`` (``"krw-btc"``, ``"BTC/KRW"``, ``"BTC"`` are read as that), several, or a quote currency
            (``"KRW"``): every market that the venue lists in it now.
        timeframe : ``1s 1m 3m 5m 10m 15m 30m 1h 4h 1d 1w 1M 1y``, or another length that divides a day (``2h``,
            ``45m``), folded from shorter candles. ``1M`` is a month, ``1m`` a minute.
        start : first open, included. Naive values are in the client's zone; ``"2024-03"`` is that month's first
            instant, ``"3d"`` three days ago.
        end : opens before this; None is now. Only closed candles count, on the venue's clock.
        count : the newest that many existing closed candles before `end`; with `start` and no `end`, the first that
            many from `start`. Neither start nor count: 200. All three at once is an `InputError`.
        priority : ``critical`` · ``high`` · ``normal`` · ``low``.
        include_forming : adds the candle that is not closed as the last row, and a bool column ``forming``, true in
            that row alone; with `count` at most one row more. In the seconds of grace after a candle's end
            (`close_grace`, 3) the last row is its successor if the venue shows one: the candle that has just ended is
            then the row before it, ``forming`` false. If the venue shows none, the candle that has just ended is the
            last row itself, ``forming`` true.
        fill : ``"ffill"`` or ``"nan"`` adds a row for every quiet slot, and a bool column ``synthetic``; never before a
            market's first candle.
        wide : one candle column, such as ``"close"``: a frame indexed by ``time`` with a float64 column a market; NaN
            where a market has no candle.
        frames : ``"pandas"``, ``"polars"``, ``"arrow"``; default: the client's.
        progress : a bar after two seconds where somebody can see it (None), always (True), never (False), or a
            function that is given each `Progress`.
        refresh : asks the venue again for the whole range; what differs from the store becomes a revision.
        offline : answer from the store alone; what is unknown is an error. With `count` the newest that are held;
            what lies behind them is in ``attrs["backbone"]["missing"]``.
        timeout : seconds after which the call ends; what has arrived by then is stored, the error names the cause.

        Returns
        -------
        Frame indexed by ``time`` (candle open, microseconds, the client's zone; sorted, unique) with float64 columns
        ``open high low close`` (quote currency), ``volume`` (base units), ``value`` (turnover, quote currency).
        Several markets: one long frame with ``market`` first. A candle without trades has no row.
        ``attrs["backbone"]`` says where the rows came from and how many slots are quiet or unknown.

        Raises
        ------
        InputError       before any page is asked, naming the argument and what is allowed.
        IncompleteError  some of it could not be had: ``.frame`` has what arrived (stored), ``.gaps``, ``.causes``.
        StoreError       the disk refused (full, read-only); what arrived stays readable from memory.

        Examples
        --------
        >>> client.candles("KRW-BTC", "1d", "2025-08-01", "2025-08-08")[["open", "close"]].shape
        (7, 2)
        """
        from backbone.api.calls.candles import candles

        return candles(
            self._session, market, timeframe, start, end, count=count, priority=priority,
            include_forming=include_forming, fill=fill, wide=wide, refresh=refresh, frames=frames, progress=progress,
            offline=offline, timeout=timeout,
        )  # fmt: skip

    def explain(
        self,
        market: str | Iterable[str],
        timeframe: str = "1m",
        start: TimeLike | None = None,
        end: TimeLike | None = None,
    ) -> Any:
        """What `candles` would do for a range: held, foldable from minutes, gaps, pages, seconds. Makes no request.

        Of one market a `Plan`; of several, or of a quote currency, a tuple of them whose ``pages`` and ``seconds`` are
        the sums.
        """
        from backbone.api.calls.candles import explain

        return explain(self._session, market, timeframe, start, end)

    def coverage(self, market: str | Iterable[str], timeframe: str = "1m", *, frames: str | None = None) -> Any:
        """What the store covers: one row an interval, ``start end state rows``; several markets: ``market`` first.

        ``state`` is ``"data"`` (candles), ``"quiet"`` (asked, no trades), or ``"unknown"`` (a hole between known
        intervals). Times in the client's zone, half-open. Makes no request.
        """
        from backbone.api.calls.candles import coverage

        return coverage(self._session, market, timeframe, frames=frames)

    def backfill(
        self,
        markets: str | Iterable[str],
        timeframe: str,
        start: TimeLike,
        end: TimeLike | None = None,
        *,
        priority: str | Priority = "low",
        frames: str | None = None,
    ) -> Job:
        """Fetch a long range in the background, oldest first, at the venue's full legal rate.

        Returns a `Job` at once: ``progress``, ``sections()`` (finished frames in time order while later pages still
        download), ``wait()``, ``cancel()``, ``result()``. The job yields to every more urgent call, outlasts an outage
        of some minutes, and keeps each page it gets; the same call while it runs joins it, and later fetches only what
        is missing.

        Examples
        --------
        >>> job = client.backfill("KRW-BTC", "1h", "2025-08-01", "2025-08-11")
        >>> sum(len(section) for section in job.sections())
        240
        """
        from backbone.api.calls.backfill import backfill

        return backfill(self._session, markets, timeframe, start, end, priority=priority, frames=frames)

    @property
    def store(self) -> StoreView:
        """What is on disk: ``verify() repair() revisions() incidents() size()``."""
        from backbone.api.calls.store import StoreView

        return StoreView(self._session)

    # -- now -----------------------------------------------------------------------------------------------------

    def live(
        self,
        markets: str | Iterable[str],
        kinds: str | Iterable[str] = ("ticker",),
        *,
        depth: int = 30,
        level: float = 0,
    ) -> LiveTable:
        """Live data in the background: a table that is kept up to date over the venue's socket.

        Returns once the first rows came (or after three seconds without). The socket's thread comes back by itself
        after an outage; meanwhile REST feeds the table, and candles that were missed are fetched.

        Parameters
        ----------
        markets : a quote currency (``"KRW"``), one market, or a list.
        kinds : some of ``ticker trade orderbook candle.1s candle.1m candle.3m candle.5m candle.10m candle.15m
            candle.30m candle.1h candle.4h``. Live candles are stored once closed and confirmed by REST.
        depth : levels of each order book, 1 to 30. The venue sends 1, 5, 15 or 30: no more than are needed are asked
            for.
        level : price grouping of the order books; 0 is none. It must be one that every market offers.

        Returns
        -------
        `LiveTable`: ``frame() received state missed events on_update() wait() updates() stop()``; use it with ``with``.

        Raises
        ------
        InputError at once for an unknown kind, market, depth or level; SourceError where the market list cannot be had.

        Examples
        --------
        >>> with client.live("KRW-BTC", ("ticker", "candle.1m")) as table:
        ...     table.frame("candle.1m").market.tolist()
        ['KRW-BTC']
        """
        from backbone.api.calls.live import start_live

        return start_live(self._session, markets, kinds, depth=depth, level=level)

    def tickers(
        self,
        markets: str | Iterable[str] = "KRW",
        *,
        priority: str | Priority = "high",
        max_age: float | None = None,
        frames: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The latest summary of each market.

        Parameters
        ----------
        markets : a quote currency (``"KRW"``, ``"BTC-*"``), one market, or a list. A bare ``"BTC"`` is KRW-BTC.
        max_age : seconds a row may be old to be answered from memory; 0 asks the venue. A market that is live (by
            `live`, or asked for again and again) is answered from the stream while that was received within so many
            seconds: until then it had nothing newer, however long ago the market last traded.
        timeout : seconds after which the call ends; the error names the cause.

        Returns
        -------
        Frame indexed by ``market``: ``time`` (last trade), ``price open high low prev_close`` (since 00:00 UTC),
        ``change change_rate`` (signed), ``volume value`` (since 00:00 UTC), ``volume_24h value_24h``, ``source``,
        ``age`` (seconds since it was known to be the latest: since its arrival, or since the stream was last received),
        ``ask_volume bid_volume`` (of `volume`, sold and bought by takers), ``high_52w low_52w``, ``state``
        (``"PREVIEW"``, ``"ACTIVE"``, ``"DELISTED"``). The volumes by side and the state come from the stream alone:
        NaN and None in a row from REST.

        Raises
        ------
        InputError for a market that is not listed; IncompleteError when one was delisted meanwhile (``.frame`` has the
        others); SourceError when the venue fails.

        Examples
        --------
        >>> client.tickers(["KRW-BTC", "KRW-ETH"]).index.tolist()
        ['KRW-BTC', 'KRW-ETH']
        """
        from backbone.api.calls.realtime import tickers

        with self._session.within(timeout):
            return tickers(self._session, markets, priority=priority, max_age=max_age, frames=frames)

    def orderbooks(
        self,
        markets: str | Iterable[str],
        *,
        level: float = 0,
        depth: int = 30,
        priority: str | Priority = "normal",
        max_age: float | None = None,
        frames: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Order books, best first: ``market time level ask_price ask_size bid_price bid_size``, a row a level.

        Parameters
        ----------
        level : price grouping in the quote currency, one of the market's own (KRW markets only); 0 is none.
        depth : levels a side, 1 to 30. A side with fewer orders is NaN, never a zero price.
        max_age : seconds a book may be old to be answered from memory; 0 asks the venue.
        timeout : seconds after which the call ends; the error names the cause.

        Raises
        ------
        InputError for an unknown market, level or depth; IncompleteError, SourceError as in `tickers`.

        Examples
        --------
        >>> client.orderbooks("KRW-BTC", depth=3).shape
        (3, 7)
        """
        from backbone.api.calls.realtime import orderbooks

        with self._session.within(timeout):
            return orderbooks(
                self._session, markets, level=level, depth=depth, priority=priority, max_age=max_age, frames=frames
            )

    def trades(
        self,
        market: str,
        count: int | None = None,
        *,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        sections: str | None = None,
        priority: str | Priority = "normal",
        frames: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Executions, oldest first; the venue keeps seven UTC days, its archive all since 2022-05-01.

        With ``Backbone(archive="accept-terms")``, what lies before those seven days, by `start`, `end` or a `count`
        that reaches there, comes from the archive's daily files, each checked against the day's candle (highest and
        lowest price, volume); nothing of them is stored.

        Parameters
        ----------
        count : the newest that many before `end` (default 200 where no `start` is given).
        start, end : half-open, by trade time.
        sections : a length such as ``"1h"``: the answer is an iterator of frames, one for each such part of the range,
            oldest first, with a UTC day in memory at a time. Without a trade in it a frame is empty.
        timeout : seconds after which the call (the reading of each day, with sections) ends; the error names the cause.

        Returns
        -------
        Frame indexed by ``time`` (milliseconds kept): ``market price volume side sequential_id``; ``side`` is the
        taker's, ``"buy"`` or ``"sell"``; ``sequential_id`` int64, unique. ``best_bid_price best_bid_size best_ask_price
        best_ask_size`` right after the trade come from the stream alone: NaN in a row from REST.

        Raises
        ------
        InputError for a range older than that, an unknown market, a wrong count; SourceError.
        IncompleteError  where a day's file is missing or differs from its candle: ``.gaps`` ``.frame``.

        Examples
        --------
        >>> client.trades("KRW-BTC", 700).sequential_id.is_unique
        True
        """
        from backbone.api.calls.realtime import trade_sections, trades

        if sections is not None:
            words: dict[str, Any] = {"start": start, "end": end, "priority": priority, "frames": frames}
            return trade_sections(self._session, market, sections, count, timeout=timeout, **words)
        with self._session.within(timeout):
            return trades(self._session, market, count, start=start, end=end, priority=priority, frames=frames)

    def markets(self, quote: str | None = None, *, at: TimeLike | None = None, frames: str | None = None) -> Any:
        """The venue's markets: index ``market``; ``korean_name english_name warning cautions tick_size``.

        Parameters
        ----------
        quote : keep one quote currency (``"KRW"``).
        at : a day, by its end, or a time: the list as it was recorded then, without ``tick_size``. Makes no request,
            except for the venue's time where nothing later is recorded.

        The list, the price steps and the prices at which they hold are kept for ten minutes, and asked side by side
        where a list was recorded. A step is that of the market's price at the time that
        ``attrs["backbone"]["tick_sizes_at"]`` names; nothing is recorded of earlier ones. `backbone.round_price` reads
        from all of them which step holds at another price.

        Raises
        ------
        InputError for a quote currency without markets, a day in the future, a day before anything was recorded.
        """
        if at is not None:  # needs no live parts
            from backbone.api.calls.listing import markets_at

            return markets_at(self._session, quote, at, frames)
        from backbone.api.calls.realtime import markets

        return markets(self._session, quote, frames=frames)

    def universe(
        self,
        quote: str = "KRW",
        *,
        at: TimeLike,
        top: int = 30,
        by: str = "value",
        window: str | timedelta = "30d",
        frames: str | None = None,
    ) -> Any:
        """The most traded markets of those listed at a time, by what was traded before it: nothing of later is used.

        Parameters
        ----------
        at : the time; a date is its start in the client's zone.
        top : how many.
        by : ``"value"`` or ``"volume"``.
        window : the whole days (UTC) before `at` that count, such as ``"30d"`` or ``"4w"``.

        Returns
        -------
        Frame indexed by ``market``, best first: ``rank``, the sum, ``days`` with a candle, and ``listed_as``, the code
        at that time: a market that was renamed since is indexed by what it is called now, under which its candles are.
        ``attrs["backbone"]`` has how many were ``listed``, and in ``without_data`` those of which no candle can be had.

        Raises
        ------
        InputError for a time in the future or before anything was recorded, and for what is none of these; SourceError.
        """
        from backbone.api.calls.listing import universe

        return universe(self._session, quote, at, top, by, window, frames)

    # -- to look at ----------------------------------------------------------------------------------------------

    def chart(
        self,
        market: str,
        timeframe: str = "1m",
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        count: int | None = None,
        live: bool | None = None,
        colours: str = "korean",
        height: int = 420,
    ) -> LiveChart:
        """Candles and volume as a chart that follows the live candle; as a cell's last line it shows itself.

        The range is that of `candles` (default: the newest 200), the candle that is still forming included. In a
        notebook it updates in place; on GitHub and in a terminal it is a picture and a line of text.

        Parameters
        ----------
        live : follow the market; default: where no `end` is given.
        colours : ``"korean"`` (rise red, fall blue) or ``"western"`` (rise green, fall red).
        height : in pixels.

        Returns
        -------
        The chart: ``rows text() svg() html() widget close()``. It follows until `close`, until the client is closed, or
        until no reference to it is left and no page shows it.

        Raises
        ------
        InputError for a wrong argument; what `candles` raises.

        Examples
        --------
        >>> client.chart("KRW-BTC", "1h", count=48)
        CandleChart(KRW-BTC 1h, 49 candles, still)
        """
        from backbone.api.calls.chart import open_chart

        style = {"colours": colours, "height": height}
        return open_chart(self._session, market, timeframe, start, end, count, live, style)

    def dashboard(self) -> Dashboard:
        """What this client is doing, updating in place: budget of each wire group, queue by priority, latencies, cache
        tiers, the live socket, the store. Elsewhere than in a notebook: ``text()`` or ``html()``. Makes no request.

        Examples
        --------
        >>> client.dashboard()
        Dashboard(ok)
        """
        from backbone.api.calls.status import dashboard

        return dashboard(self._session)

    # -- bigger than memory, and beyond one machine --------------------------------------------------------------

    def scan(
        self,
        markets: str | Iterable[str],
        timeframe: str = "1m",
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        partial: bool = False,
    ) -> pl.LazyFrame:
        """The stored candles as one Polars LazyFrame, for what does not fit into memory. Fetches nothing.

        Opens only the files of these markets and this span; collect it with ``engine="streaming"``. A frame that is
        kept shows the files that there were, as they are when it is collected, and each market in one state: where one
        was quarantined since (a redenomination), as it is stored then. A query that cuts the frame in two ways (a join
        of two filters) reads it twice; such a change in between is an error. ``tail`` reads from the first row on; a
        `start` does not.

        Parameters
        ----------
        markets : one market, several, or a quote currency (``"KRW"``: those that the store holds in this timeframe).
        start, end : half-open, as in `candles`; left out, that side goes as far as the store does.
        partial : take what is held where some of the span was never fetched, instead of an error.

        Returns
        -------
        LazyFrame ``market time open high low close volume value``; market by market, oldest first in each; ``time`` in
        the client's zone.

        Raises
        ------
        InputError       for a wrong argument.
        IncompleteError  before any row is read, where the files do not cover all of it: ``.gaps``, ``.frame``; by the
            collect, where they no longer do.
        StoreError       by the collect, where a market was quarantined in the middle of it: collect it again.

        Examples
        --------
        >>> job = client.backfill(["KRW-BTC"], "1h", "2025-08-01", "2025-08-08").wait()
        >>> client.scan("KRW", "1h").group_by("market").agg(pl.col("value").sum()).collect().height
        1
        """
        from backbone.api.calls.scan import scan

        return scan(self._session, markets, timeframe, start, end, partial=partial)

    def files(
        self,
        markets: str | Iterable[str],
        timeframe: str = "1m",
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        partial: bool = False,
    ) -> list[str]:
        """The files behind `scan`, for another engine (DuckDB, Dask, Spark): plain hive-partitioned Parquet.

        ``time`` is in UTC; a file holds a whole period, so it may reach beyond `start` and `end`. Raises as `scan`.
        """
        from backbone.api.calls.scan import files

        return files(self._session, markets, timeframe, start, end, partial=partial)

    def map(
        self,
        fn: Callable[[Any], T],
        markets: str | Iterable[str],
        timeframe: str,
        start: TimeLike,
        end: TimeLike | None = None,
        *,
        priority: str | Priority = "low",
        n_jobs: int | None = None,
    ) -> Iterator[tuple[str, T]]:
        """``(market, fn(frame))`` of each market's candles, as they finish, computed where they are fetched.

        Runs on `joblib.Parallel`: a process for each core here, or the hosts of a Dask cluster inside
        ``joblib.parallel_config("dask")`` (extra ``[dask]``). A whole market goes to one worker, which has a client of
        its own and so its own address's quota. Work begins at once, not with the first result taken.

        Parameters
        ----------
        fn : called with the candle frame (the client's frame type) in the worker; what it returns must pickle.
        markets : several, or a quote currency (``"KRW"``).
        n_jobs : workers here; None is what `joblib.parallel_config` says, else one a core; 1 is this process.

        Raises
        ------
        InputError       before any work, for a wrong argument.
        IncompleteError  a worker died; what was fetched is stored.
        What `fn` or a fetch raised is raised after the last result, with a note which market it was.

        Examples
        --------
        >>> dict(client.map(len, ["KRW-BTC", "KRW-ETH"], "1h", "2025-08-20", "2025-08-21", n_jobs=1))
        {'KRW-BTC': 24, 'KRW-ETH': 24}
        """
        from backbone.api.calls.parallel import map_markets

        return map_markets(self._session, fn, markets, timeframe, start, end, priority=priority, n_jobs=n_jobs)

    def size(
        self,
        markets: str | Iterable[str] = "KRW",
        timeframe: str = "1m",
        since: TimeLike = "2017",
        until: TimeLike | None = None,
        *,
        probe: bool = False,
        addresses: Sequence[int] = (1, 2, 4, 8),
    ) -> Sizing:
        """What it takes to hold all that: rows, gigabytes, requests, and hours by source and number of addresses.

        Bytes a candle and the traded share come from the store's own files where it has some, otherwise from recorded
        data (``.assumed`` says which). `probe` asks where each market's history begins, one request a market; without
        it every market counts from `since`, which is an upper bound.

        Examples
        --------
        >>> client.size(["KRW-BTC"], "1m", "2025-01-01", "2025-02-01").requests
        225
        """
        from backbone.api.calls.size import size

        return size(self._session, markets, timeframe, since, until, probe=probe, addresses=addresses)

    # -- how it goes ---------------------------------------------------------------------------------------------

    def status(self, *, frames: str | None = None) -> Any:
        """Now, a row a wire group: ``limit used left`` of the running second, permits ``kept_for_critical``, tickets
        ``queued_critical`` … ``queued_low``, ``refused`` so far, ``stopped_s``. ``attrs`` has counters, memory, the
        bytes of remembered frames, jobs, the stream and the clock's offset. Makes no request.
        """
        from backbone.api.calls.status import status

        return status(self._session, self._session.frames(frames))

    def metrics(self, *, frames: str | None = None) -> Any:
        """So far: ``kind group priority count mean_s p50_s p95_s p99_s max_s``.

        ``kind`` is ``waited`` (for a permit), ``answered`` (request to reply) or ``call`` (a whole data call); an empty
        ``group`` or ``priority`` means all. ``attrs`` has the counters.
        """
        from backbone.api.calls.status import metrics

        return metrics(self._session, self._session.frames(frames))

    def health(self) -> Health:
        """A verdict (``ok``, ``degraded``, ``down``; true when ok) and its ``reasons``. Makes no request."""
        from backbone.api.calls.status import health

        return health(self._session)

    def serve_metrics(self, port: int = 0) -> MetricsServer:
        """Serve `metrics` as Prometheus text on loopback until this client, or what is returned, is closed.

        Parameters
        ----------
        port : 0 takes any free one.

        Returns
        -------
        `MetricsServer`: ``url port close()``; use it with ``with`` if it shall end before the client.

        Raises
        ------
        InputError   a port that is none, or that is taken.
        ImportError  prometheus-client is missing: ``pip install 'backbone[metrics]'``.

        Examples
        --------
        >>> with client.serve_metrics() as server:
        ...     server.url.endswith("/metrics")
        True
        """
        from backbone.api.calls.prometheus import serve_metrics

        core = self._session.coordinator()  # a closed client has nothing to serve
        server = serve_metrics(port, core.metrics.snapshot)
        self._session.end_with(server.close)
        return server

    # -- as plain data -------------------------------------------------------------------------------------------

    def request(self, request: BackboneRequest) -> BackboneResponse:
        """The same calls in envelope form: a request in, one response out, both with a JSON form.

        Returns
        -------
        `BackboneResponse` with ``data``, a list of plain records. Whatever fails (the venue, the disk, the words of the
        request) is ``success=False`` with the error's facts in ``error``; what arrived is in ``data`` nevertheless.

        Raises
        ------
        InputError for what is no `BackboneRequest`.

        Examples
        --------
        >>> client.request(BackboneRequest("candles", "KRW-BTC", "1d", count=2)).metadata.data_count
        2
        """
        from backbone.api.calls.request import run

        return run(self._session, request)

    # -- what a client is ----------------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        """What the calls of this package share; no part of the contract."""
        return self._session

    @property
    def data_dir(self) -> Path | str:
        """Where candles are kept: a folder, or the address of an object store."""
        return self._session.data_dir

    @property
    def tz(self) -> str:
        """Zone of every index and of naive input."""
        return self._session.settings.tz

    @property
    def exchange(self) -> str:
        """The exchange's name."""
        return self._session.settings.exchange

    def close(self) -> None:
        """End everything: waits, threads, sockets; write what is pending. May be called twice.

        Warns (`errors.UnfinishedWarning`) where a backfill was still running: what arrived is stored.
        """
        self._session.close()

    def __enter__(self) -> Backbone:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._session.is_closed else "open"
        return f"<Backbone {self._session.settings.title}, data in {self.data_dir}, {self.tz}, {state}>"

    def _repr_html_(self) -> str:
        state = "closed" if self._session.is_closed else "open"
        return (
            f"<div><b>Backbone</b> {escape(self._session.settings.title)} · {state}<br>"
            f"<small>data in {escape(str(self.data_dir))} · {escape(self.tz)}</small></div>"
        )

    def __dir__(self) -> list[str]:
        return sorted(name for name in object.__dir__(self) if not name.startswith("_") and name != "session")

    def __getstate__(self) -> Settings:
        return self._session.settings

    def __setstate__(self, settings: Settings) -> None:
        self._session = Session(settings)
