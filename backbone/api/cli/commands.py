"""What each command does: one function a command, from an open client and its options to what is printed.

A command makes the calls that its options name. What it returns is printed as ``--format`` says; one that prints for
itself returns its exit code. Errors of the tree pass through; `main` turns them into exit codes.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from backbone.api.arguments import in_zone, parse_quote
from backbone.api.cli.output import (
    check_target,
    emit,
    flush_output,
    print_csv,
    print_frame,
    say,
    write_file,
)
from backbone.errors import IncompleteError, InputError, StoreError
from backbone.timeframe import parse_timeframe

__all__ = [
    "adopt",
    "backfill",
    "clear",
    "copy",
    "coverage",
    "demo",
    "doctor",
    "events",
    "explain",
    "fetch",
    "markets",
    "open_client",
    "open_demo",
    "remove",
    "repair",
    "size",
    "snapshot",
    "status",
    "store",
    "update",
    "verify",
    "watch",
]

EXIT_PROBLEMS, EXIT_INCOMPLETE, EXIT_INTERRUPTED = 1, 3, 130

_MARKETS_AT_ONCE = 16  # between two prints: their pages fill the quota's second
_LENGTH = re.compile(r"[1-9]\d*\s*((s|sec|m|min|h|hr|hour|d|day|w|week|mo|month|y|year)s?)?|[1-9]\d*(M|Y)", re.I)
"""A word that means a length of time, and can be no market."""


def open_client(options: argparse.Namespace) -> Any:
    """The client that the options of every command name."""
    from backbone.api.client import Backbone

    return Backbone(
        options.exchange,
        data_dir=options.data_dir,
        rest_url=options.rest_url,
        ws_url=options.ws_url,
        tz=options.tz,
        archive=options.archive,
        quota=options.quota,
    )


def _split(words: list[str]) -> tuple[list[str], str]:
    """Markets, and the timeframe that may stand behind them (``1m`` where none does)."""
    *markets, last = words
    try:
        return (markets, parse_timeframe(last, derived=True).name) if markets else (words, "1m")
    except InputError:
        if _LENGTH.fullmatch(last):
            raise
        return words, "1m"


def _one_or_many(markets: list[str]) -> str | list[str]:
    return markets[0] if len(markets) == 1 else markets


def _codes(client: Any, words: Iterable[str]) -> list[str]:
    """The markets that words mean; a quote currency means every market that the venue lists in it."""
    return list(dict.fromkeys(code for word in words for code in client.session.markets_of(word)))


# -- candles -----------------------------------------------------------------------------------------------------


def fetch(client: Any, options: argparse.Namespace) -> int:
    """Fetch candles. What is held is not asked again; what arrives is kept, also when the rest fails.

    Without --out and --format the first and last rows are shown; --format csv or json prints all of them: CSV of
    several markets as they arrive.
    """
    out = None if options.out is None else check_target(options.out)
    if out is not None and options.format not in (None, out.suffix.lower()[1:]):
        raise InputError("--format", options.format, f"left out: the ending of --out says that it is {out.suffix}")
    words, options.timeframe = _split(options.words)
    options.markets = words
    form = options.format or ("table" if options.out is None else "csv")
    try:
        is_streamed = form == "csv" and out is None and not options.offline
        is_quote = parse_quote(words[0], client.session.home) is not None
        if len(words) > 1 or is_streamed:
            options.markets = _codes(client, words)
        what = f"{' '.join(words)} {options.timeframe}"
        if is_streamed and (len(options.markets) > 1 or is_quote):
            _print_as_it_arrives(client, options, what)
        else:
            frame = _fetched(client, options, _one_or_many(options.markets))
            say(_facts(frame, what))
            if out is not None:
                write_file(frame, out)
            else:
                print_frame(frame, form, whole=options.out is not None)
        say(f"kept in {client.data_dir}")
    except KeyboardInterrupt:
        _fix_times(client, options)
        client.close()  # which stores what was still on its way
        with open_client(options) as reopened:
            say(_interrupted(reopened, options))
        return EXIT_INTERRUPTED
    return 0


def _fetched(client: Any, options: argparse.Namespace, markets: str | list[str]) -> Any:
    return client.candles(
        markets,
        options.timeframe,
        options.start,
        options.end,
        count=options.count,
        fill=options.fill,
        priority=options.priority,
        offline=options.offline,
    )


def _fix_times(client: Any, options: argparse.Namespace) -> None:
    """Make start and end absolute, so that ``3d`` and now mean the same in a later call."""
    for name in ("start", "end"):
        if getattr(options, name) is not None:
            setattr(options, name, in_zone(client.session.time(name, getattr(options, name)), client.tz))
    if options.end is None:
        options.end = in_zone(client.session.likely_now_us(), client.tz)


def _print_as_it_arrives(client: Any, options: argparse.Namespace, what: str) -> None:
    """Print the candles of several markets as CSV, a few markets at a time: the rows are those of one call for all.

    A market that could not be had whole does not keep the others back; its error is raised at the end.
    """
    if options.start is None or options.count is None:
        _fix_times(client, options)
    codes, at, size, is_begun, rows, requests = options.markets, 0, 4, False, 0, 0
    errors: list[IncompleteError] = []
    while at < len(codes):
        try:
            frame = _fetched(client, options, codes[at : at + size])
        except IncompleteError as exc:
            errors.append(exc)
            frame = exc.frame
        if frame is not None:
            print_csv(frame, header=not is_begun)
            flush_output()
            is_begun = True
            rows, requests = rows + len(frame), requests + frame.attrs["backbone"]["requests"]
        at, size = at + size, min(2 * size, _MARKETS_AT_ONCE)
    say(f"{what}: {rows} candles, {requests} requests")
    for error in errors[1:]:
        say(str(error))
    if errors:
        raise errors[0]


def _interrupted(client: Any, options: argparse.Namespace) -> str:
    """What was kept, and how to go on."""
    said = "\ninterrupted: every page that arrived is kept"
    is_one = len(options.markets) == 1 and parse_quote(options.markets[0], client.session.home) is None
    if is_one and options.start is not None and options.count is None:
        plan = client.explain(options.markets[0], options.timeframe, options.start, options.end)
        held = [f"  {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}" for start, end in plan.cached]
        said = "\n".join([f"{said} in {client.data_dir}", *held, f"still to fetch: {plan.pages} pages"])
    return f"{said}\nthe same command goes on from there"


def _facts(frame: Any, what: str) -> str:
    facts = frame.attrs["backbone"]
    sources = ", ".join(f"{number} from {name}" for name, number in facts["sources"].items()) or "none"
    return (
        f"{what}: {facts['data_count']} candles ({sources}), {facts['quiet']} quiet, {facts['unknown']} unknown, "
        f"{facts['requests']} requests, {facts['elapsed_ms']:.0f} ms"
    )


def backfill(client: Any, options: argparse.Namespace) -> int:
    """Fetch long ranges oldest first, at the lowest priority and the venue's full legal rate, with a progress bar.

    Ctrl-C keeps what arrived; the same command later asks for the rest only.
    """
    if options.start is None:
        raise InputError("--start", None, "where the range begins, such as 2017, 2024-01 or 1y")
    words, timeframe = _split(options.words)
    job = client.backfill(_codes(client, words), timeframe, options.start, options.end)
    job.wait(on_interrupt="cancel")
    say(_facts(job.result(), f"{' '.join(words)} {timeframe}"))
    say(f"kept in {client.data_dir}")
    return 0


def explain(client: Any, options: argparse.Namespace) -> int:
    """What a fetch would take. Makes no request, but for the market list where a quote currency is given."""
    import pandas as pd

    words, timeframe = _split(options.words)
    plans = client.explain(_codes(client, words), timeframe, options.start, options.end)
    if len(plans) == 1 and options.format == "table":
        emit(str(plans[0]))
        return 0
    rows = [
        (p.market, p.timeframe, p.start, p.end, len(p.cached), len(p.derived), len(p.gaps), p.pages, p.seconds)
        for p in plans
    ]
    names = ["market", "timeframe", "start", "end", "cached", "derived", "gaps", "pages", "seconds"]
    print_frame(pd.DataFrame(rows, columns=names), options.format)
    say(f"{plans.pages:,} page{'s' * (plans.pages != 1)}, about {plans.seconds:.1f} s")
    return 0


def coverage(client: Any, options: argparse.Namespace) -> Any:
    """What the store holds of a series, span by span: data, quiet (asked, no trades) or unknown."""
    words, timeframe = _split(options.words)
    return client.coverage(_one_or_many(_codes(client, words)), timeframe)


# -- now ---------------------------------------------------------------------------------------------------------


def markets(client: Any, options: argparse.Namespace) -> Any:
    """The venue's markets: codes, names, warnings."""
    return client.markets(options.quote, at=options.at)


def watch(client: Any, options: argparse.Namespace) -> Any:
    """The newest price of each market, redrawn in place as it changes, until Ctrl-C. Rising prices are red, falling
    ones blue. Where the output is no terminal each change is a line: time, market, price, change, source; with --format
    csv or json a row or an object of exact numbers. With --once the table is printed, as --format says.
    """
    from backbone.api.cli.watch import watch as show

    if options.seconds is not None and not options.seconds > 0:
        raise InputError("--seconds", options.seconds, "more than 0")
    with client.live(_one_or_many(options.markets)) as table:
        if options.once and options.format != "table":
            return table.frame()
        if options.once:
            view = table.view()
            view.refresh(force=True)
            return view.text()
        with contextlib.suppress(KeyboardInterrupt):  # how one ends it
            show(
                table,
                sys.stdout,
                clock=client.session.clock,
                zone=client.tz,
                seconds=options.seconds,
                coloured=not options.plain,
                form=options.format,
            )
    return 0


def status(client: Any, options: argparse.Namespace) -> Any:
    """What the processes of this machine have used of the running second's quota, what the store holds, and whether all
    is well. Makes no request.
    """
    from backbone.api.calls.status import status_facts

    if options.format == "json":
        return status_facts(client.session) | {"store": client.store.size()}
    return client.status() if options.format == "csv" else f"{client.dashboard().text()}\n\n{client!r}"


# -- the store ---------------------------------------------------------------------------------------------------


def verify(client: Any, options: argparse.Namespace) -> int:
    """Reads every file of the store and proves it: seals, order, coverage, candles. With --against-venue the newest
    candles (or a range) are fetched again and compared to the last digit. Ends with 1 where something is wrong.
    """
    against = "venue" if options.against_venue else None
    found = client.store.verify(
        options.market, options.timeframe, against=against, start=options.start, end=options.end
    )
    _print_problems(found, options.format)
    if len(found):
        say(f"{len(found)} problems; `backbone repair` repairs what can be repaired")
        return EXIT_PROBLEMS
    others = client.store.exchanges()
    if client.session.settings.store_exchange not in others:
        there = f"it holds candles of {', '.join(others)}" if others else "it holds no candles of any exchange"
        say(f"nothing was verified: {client.data_dir} holds no candles of this exchange; {there}")
        return EXIT_PROBLEMS
    held, chosen = client.store.size(), " ".join(filter(None, (options.market, options.timeframe)))
    whole = f"{held['files']} files of {held['markets']} markets, {held['bytes'] / 1e6:.1f} MB"
    say(f"all is well: {chosen or whole}")
    return 0


def update(client: Any, options: argparse.Namespace) -> int:
    """Brings all that is stored up to now, each series from its newest candle: for cron. Prints a row a series; with
    --quiet only those that could not be brought up to date, so that cron mails nothing else. Ends with 3 where there is
    such a one; the others are.
    """
    job = client.store.update(_one_or_many(options.markets) if options.markets else None, options.timeframe)
    job.wait(progress=False if options.quiet else None)
    frame = job.result()
    late = frame[frame["state"] != "done"]
    if not options.quiet:
        print_frame(frame, options.format, nothing="nothing is stored yet")
    elif len(late):
        print_frame(late, options.format)
    if len(late):
        say(f"{len(late)} of {len(frame)} series are not up to date; the same command goes on from there")
        return EXIT_INCOMPLETE
    return 0


def repair(client: Any, options: argparse.Namespace) -> int:
    """Quarantines damaged files and drops coverage that has no rows. What is lost that way is unknown again, and
    requested at the next fetch. Nothing is deleted.
    """
    done = client.store.repair()
    _print_problems(done, options.format)
    say(f"{len(done)} repaired" if len(done) else "nothing to repair")
    return 0


def _print_problems(found: Any, form: str) -> None:
    if form != "table":
        print_frame(found, form)
        return
    for row in found.to_dict("records"):
        emit(f"{row['kind']}: {row['market']} {row['timeframe']}  {row['path']}\n    {row['detail']}")


def store(client: Any, _: argparse.Namespace) -> Any:
    """What is stored: a row a series with its first and last candle, rows, holes and bytes."""
    return client.store.inventory()


def remove(client: Any, options: argparse.Namespace) -> Any:
    """Takes a series, or all of a market's, out of the store: into quarantine, or with --for-good for ever. Prints
    where it is now.
    """
    place = client.store.remove(options.market, options.timeframe, for_good=options.for_good)
    if place is not None:
        return place
    say("removed for good")
    return 0


def clear(client: Any, _: argparse.Namespace) -> Any:
    """Empties what can be made again or was quarantined: the memo of results, and the quarantine. Candles stay."""
    return client.store.clear()


def snapshot(client: Any, options: argparse.Namespace) -> Any:
    """Makes a data folder that never changes again and prints its path; without a name, lists those there are."""
    return client.store.snapshots() if options.name is None else client.store.snapshot(options.name)


def events(client: Any, options: argparse.Namespace) -> Any:
    """What happened to markets: listings, delistings, renamings, redenominations, restated candles."""
    return client.store.events(options.market)


def adopt(client: Any, options: argparse.Namespace) -> Any:
    """Takes a CSV, Parquet or Feather file of candles into the store, checked against the venue; without a market, the
    venue's market lists that somebody kept. Ends with 2, and with what was found, where the file is refused.
    """
    return client.store.adopt(options.source, options.market, options.timeframe, tz=options.file_tz, at=options.at)


def copy(client: Any, options: argparse.Namespace) -> Any:
    """Copies every candle to another folder or object store, proven on the way; what is there already is kept."""
    return client.store.copy_to(options.target)


def size(client: Any, options: argparse.Namespace) -> Any:
    """What it takes to hold many markets' candles. Bytes a candle and the traded share are measured on the store where
    it has some of them; what is assumed instead is named. Asks the venue for its market list, and with --probe for the
    beginning of each market's history.
    """
    found = client.size(
        _one_or_many(options.markets),
        options.timeframe,
        options.since,
        options.until,
        probe=options.probe,
        addresses=options.addresses,
    )
    return found.frame() if options.format == "csv" else found


# -- this machine ------------------------------------------------------------------------------------------------


def doctor(client: Any, options: argparse.Namespace) -> int:
    """Looks at this machine: Python, packages, data folder, proxy, venue, clock, socket, quota. A line a check: ok, or
    what is wrong and what to do. Makes about ten requests. Nothing private is in the lines. Ends with 1 where something
    is wrong; a note is not.
    """
    import pandas as pd

    from backbone.api.calls.doctor import examine

    checks = []
    for check in examine(client.session):
        checks.append(check)
        if options.format == "table":
            emit(str(check))
            flush_output()
    if options.format != "table":
        print_frame(pd.DataFrame(checks), options.format)
    return EXIT_PROBLEMS if any(check.state == "wrong" for check in checks) else 0


def open_demo(options: argparse.Namespace) -> Any:
    """A client of an embedded exchange of its own."""
    from backbone.api.client import Backbone

    if options.days < 1:
        raise InputError("--days", options.days, "1 or more")
    return Backbone.demo(seed=options.seed)


def demo(client: Any, options: argparse.Namespace) -> int:
    """Starts the embedded exchange on loopback, fetches candles from it, stores them, reads them back, and says what
    happened. Needs no network and leaves nothing behind.
    """
    emit(f"1. an embedded exchange, as strict as the venue: {client!r}")
    plan = client.explain("KRW-BTC", "1m", f"{options.days}d")
    emit(f"2. the plan for {options.days} days of minutes: {plan.pages} pages of 200, about {plan.seconds:.0f} s")
    first = client.candles("KRW-BTC", "1m", f"{options.days}d")
    emit(_facts(first, "3. fetched and stored"))
    second = client.candles("KRW-BTC", "1m", f"{options.days}d")
    emit(_facts(second, "4. the same call again"))
    if not first.equals(second) or second.attrs["backbone"]["requests"] != 0:
        raise StoreError("the second read differs from the first; please report this", path=client.data_dir)
    emit("   equal to the last digit, and no request was made")
    hours = client.candles("KRW-BTC", "1h", f"{options.days}d")
    emit(_facts(hours, "5. hours of the same span"))
    tickers = client.tickers("KRW")
    emit(f"6. tickers of all {len(tickers)} KRW markets in {tickers.attrs['backbone']['elapsed_ms']:.0f} ms")
    files = sorted(Path(client.data_dir).rglob("*.parquet"))
    held = sum(f.stat().st_size for f in files)
    each = held / len(first)
    emit(f"7. on disk: {held / 1000:.0f} kB in {len(files)} plain Parquet files, {each:.1f} bytes a minute\n")
    print_frame(first, "table", whole=False)
    return 0
