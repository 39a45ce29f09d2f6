"""The command line over `Backbone`: output formats and exit codes, nothing that a client does not offer.

Exit codes: 0 done, 1 `verify` found problems, 2 a wrong argument, 3 the answer is incomplete (what arrived is kept),
4 the venue failed, 5 the disk failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import backbone
from backbone.api.arguments import in_zone
from backbone.errors import BackboneError, IncompleteError, InputError, StoreError

__all__ = ["main"]

EXIT_PROBLEMS = 1
EXIT_INPUT, EXIT_INCOMPLETE, EXIT_SOURCE, EXIT_STORE, EXIT_INTERRUPTED = 2, 3, 4, 5, 130

_EPILOG = """\
first steps:
  backbone demo                                              see it work, no network needed
  backbone fetch KRW-BTC 1m --start 3d                       fetch and keep three days of minutes
  backbone fetch KRW-BTC 1h --start 2024-01 --end 2024-02 --out january.csv
  backbone explain KRW-BTC 1m --start 2024-01                what that would take, asking nobody
  backbone coverage KRW-BTC 1m                               what is held, what is quiet, what is unknown
  backbone watch KRW-BTC KRW-ETH                             live prices, until Ctrl-C
  backbone status                                            the quota of this machine, the store, the verdict
  backbone verify                                            prove every file of the store
  backbone size --markets KRW --timeframe 1m --since 2017    rows, gigabytes, requests and hours of that

where data goes: --data-dir, or $BACKBONE_DATA_DIR, or data/ of a checkout, or your user data folder.
another venue or the embedded exchange: --rest-url / --ws-url, or $BACKBONE_REST_URL / $BACKBONE_WS_URL.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["simulator"]:
        from backbone.simulator.cli import run

        return run(args[1:])
    options = _parser().parse_args(args)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except KeyboardInterrupt:
        print("\ninterrupted: every page that arrived is kept; the same command goes on from there", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return 0
    except BackboneError as exc:
        print(f"backbone: {exc}", file=sys.stderr)
        return _exit_code(exc)


def _exit_code(error: BackboneError) -> int:
    if isinstance(error, InputError):
        return EXIT_INPUT
    if isinstance(error, IncompleteError):
        return EXIT_INCOMPLETE
    return EXIT_STORE if isinstance(error, StoreError) else EXIT_SOURCE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="backbone",
        description="Market data of the Upbit exchange: fetched once, exact, kept as plain Parquet.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"backbone {backbone.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add = _Commands(commands)
    add.demo()
    add.fetch()
    add.explain()
    add.coverage()
    add.markets()
    add.watch()
    add.status()
    add.verify()
    add.repair()
    add.size()
    commands.add_parser("simulator", help="run the embedded exchange (see: backbone simulator --help)", add_help=False)
    return parser


class _Commands:
    """Adds the commands, each with its own words."""

    def __init__(self, commands: Any) -> None:
        self._commands = commands

    def _add(self, name: str, run: Callable[[argparse.Namespace], int], help_text: str, more: str = "") -> Any:
        parser = self._commands.add_parser(
            name,
            help=help_text,
            description=inspect.cleandoc(more) or help_text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=run)
        return parser

    def _client(self, parser: Any) -> None:
        group = parser.add_argument_group("which exchange, which store")
        group.add_argument("--exchange", default="upbit", help="upbit, upbit-sg, upbit-id, upbit-th")
        group.add_argument("--data-dir", help="where candles are kept: a folder, or s3://bucket/prefix")
        group.add_argument("--rest-url", help="another host than the exchange's own")
        group.add_argument("--ws-url", help="another socket than the exchange's own")
        group.add_argument("--tz", help="zone of times read and shown (Asia/Seoul)")
        group.add_argument("--archive", metavar="accept-terms", help="use the bulk archive, by whose terms you abide")
        group.add_argument("--quota", help="redis://host:port/0: one quota for all hosts behind this address")

    def _range(self, parser: Any) -> None:
        parser.add_argument("market", help="KRW-BTC, krw-btc, BTC/KRW or BTC")
        parser.add_argument("timeframe", nargs="?", default="1m", help="1s 1m 3m 5m 10m 15m 30m 1h 4h 1d 1w 1M 1y")
        parser.add_argument("--start", help="2024-01, 2024-01-31T09:00, or 3d (that long ago)")
        parser.add_argument("--end", help="excluded; default: now")

    def demo(self) -> None:
        parser = self._add("demo", _demo, "see the whole path work on the embedded exchange", _demo.__doc__ or "")
        parser.add_argument("--seed", type=int, default=7, help="which history the embedded exchange has (7)")
        parser.add_argument("--days", type=int, default=2, help="days of 1-minute candles to fetch (2)")

    def fetch(self) -> None:
        parser = self._add(
            "fetch", _fetch, "fetch candles into the store, and write or show them", _fetch.__doc__ or ""
        )
        self._range(parser)
        parser.add_argument("--count", type=int, help="the newest that many closed candles instead of a start")
        parser.add_argument("--out", type=Path, help="write them to a .parquet or .csv file")
        parser.add_argument("--fill", choices=["ffill", "nan"], help="add marked rows for quiet candles")
        parser.add_argument("--priority", default="normal", help="critical, high, normal, low")
        parser.add_argument("--offline", action="store_true", help="answer from the store alone")
        self._client(parser)

    def explain(self) -> None:
        parser = self._add("explain", _explain, "what a fetch would take: held, gaps, pages, time; asks nobody")
        self._range(parser)
        self._client(parser)

    def coverage(self) -> None:
        parser = self._add("coverage", _coverage, "what the store vouches for: data, quiet, unknown")
        parser.add_argument("market")
        parser.add_argument("timeframe", nargs="?", default="1m")
        self._client(parser)

    def markets(self) -> None:
        parser = self._add("markets", _markets, "the venue's markets")
        parser.add_argument("quote", nargs="?", help="one quote currency, such as KRW")
        self._client(parser)

    def watch(self) -> None:
        parser = self._add("watch", _watch, "live prices in the terminal, until Ctrl-C", _watch.__doc__ or "")
        parser.add_argument("markets", nargs="+", help="markets, or one quote currency (KRW)")
        parser.add_argument("--once", action="store_true", help="show the table once and end")
        parser.add_argument("--seconds", type=float, help="end after that many seconds")
        parser.add_argument("--plain", action="store_true", help="no colours")
        self._client(parser)

    def status(self) -> None:
        parser = self._add(
            "status", _status, "the quota of this machine, the store, the verdict", _status.__doc__ or ""
        )
        parser.add_argument("--json", action="store_true", help="as JSON, for scripts")
        self._client(parser)

    def verify(self) -> None:
        parser = self._add("verify", _verify, "prove the store: a line a problem", _verify.__doc__ or "")
        parser.add_argument("market", nargs="?", help="one market; default: all")
        parser.add_argument("timeframe", nargs="?", help="one timeframe; default: all")
        parser.add_argument("--against-venue", action="store_true", help="compare with the venue's own candles, too")
        parser.add_argument("--start", help="of that comparison; default: the newest 200 candles of each")
        parser.add_argument("--end", help="of that comparison")
        self._client(parser)

    def repair(self) -> None:
        parser = self._add("repair", _repair, "mend what verify finds; nothing is deleted", _repair.__doc__ or "")
        self._client(parser)

    def size(self) -> None:
        parser = self._add("size", _size, "rows, bytes, requests and hours, before they are spent", _size.__doc__ or "")
        parser.add_argument("--markets", nargs="+", default=["KRW"], help="a quote currency (KRW), or markets")
        parser.add_argument("--timeframe", default="1m")
        parser.add_argument("--since", default="2017", help="2017, 2024-01, … (2017)")
        parser.add_argument("--until", help="default: now")
        parser.add_argument("--probe", action="store_true", help="ask where each market begins, one request each")
        parser.add_argument("--addresses", type=int, nargs="+", default=[1, 2, 4, 8], help="how many hosts (1 2 4 8)")
        self._client(parser)


def _open(options: argparse.Namespace) -> Any:
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


def _fetch(options: argparse.Namespace) -> int:
    """Fetch candles. What is held is not asked again; what arrives is kept, also when the rest fails."""
    if options.out is not None and options.out.suffix not in (".parquet", ".csv"):
        raise InputError("--out", str(options.out), "a file that ends in .parquet or .csv")
    if options.out is not None and not options.out.parent.is_dir():
        raise InputError("--out", str(options.out), "a file in a folder that exists")
    try:
        with _open(options) as client:
            frame = _fetched(client, options)
            _say(frame, f"{options.market} {options.timeframe}")
            if options.out is None:
                _show(frame)
            else:
                _write(frame, options.out)
            print(f"kept in {client.data_dir}")
    except KeyboardInterrupt:
        with _open(options) as client:  # the one before has stored by now what was still on its way
            print(_interrupted(client, options), file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _fetched(client: Any, options: argparse.Namespace) -> Any:
    try:
        return client.candles(
            options.market,
            options.timeframe,
            options.start,
            options.end,
            count=options.count,
            fill=options.fill,
            priority=options.priority,
            offline=options.offline,
        )
    except KeyboardInterrupt:
        for name in ("start", "end"):  # as absolute times: what 3d meant, nobody need be asked again
            if getattr(options, name) is not None:
                setattr(options, name, in_zone(client.session.time(name, getattr(options, name)), client.tz))
        if options.end is None:
            options.end = in_zone(client.likely_now_us(), client.tz)
        raise


def _interrupted(client: Any, options: argparse.Namespace) -> str:
    """What was kept, and how to go on."""
    said = "\ninterrupted: every page that arrived is kept"
    if options.start is not None and options.count is None:
        plan = client.explain(options.market, options.timeframe, options.start, options.end)
        held = [f"  {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}" for start, end in plan.cached]
        said = "\n".join([f"{said} in {client.data_dir}", *held, f"still to fetch: {plan.pages} pages"])
    return f"{said}\nthe same command goes on from there"


def _write(frame: Any, path: Path) -> None:
    try:
        if path.suffix == ".csv":
            frame.to_csv(path)
        else:
            frame.to_parquet(path)
    except OSError as exc:
        raise StoreError(
            f"cannot write {path}: {exc.strerror or exc}; the candles are in the store", path=path
        ) from exc
    print(f"wrote {len(frame)} rows to {path}")


def _say(frame: Any, what: str) -> None:
    facts = frame.attrs["backbone"]
    sources = ", ".join(f"{number} from {name}" for name, number in facts["sources"].items()) or "none"
    print(
        f"{what}: {facts['data_count']} candles ({sources}), {facts['quiet']} quiet, {facts['unknown']} unknown, "
        f"{facts['requests']} requests, {facts['elapsed_ms']:.0f} ms"
    )


def _show(frame: Any, rows: int = 5) -> None:
    if len(frame) <= 2 * rows:
        print(frame.to_string())
        return
    lines = frame.to_string(max_rows=2 * rows, min_rows=2 * rows).splitlines()
    print("\n".join(lines))


def _explain(options: argparse.Namespace) -> int:
    with _open(options) as client:
        plan = client.explain(options.market, options.timeframe, options.start, options.end)
    print(plan)
    return 0


def _coverage(options: argparse.Namespace) -> int:
    with _open(options) as client:
        frame = client.coverage(options.market, options.timeframe)
    if frame.empty:
        print("nothing is held of it yet")
    else:
        print(frame.to_string(index=False))
    return 0


def _markets(options: argparse.Namespace) -> int:
    with _open(options) as client:
        frame = client.markets(options.quote)
    print(frame.to_string())
    return 0


def _watch(options: argparse.Namespace) -> int:
    """The newest price of each market, redrawn in place as it changes, until Ctrl-C. Rising prices are red, falling
    ones blue. Where the output is no terminal each change is a line: time, market, price, change, source.
    """
    from backbone.api.cli.watch import watch

    if options.seconds is not None and not options.seconds > 0:
        raise InputError("--seconds", options.seconds, "more than 0")
    markets = options.markets[0] if len(options.markets) == 1 else options.markets
    with _open(options) as client, client.live(markets) as table:
        if options.once:
            view = table.view()
            view.refresh(force=True)
            print(view.text())
            return 0
        try:
            watch(
                table,
                sys.stdout,
                clock=client.session.clock,
                zone=client.tz,
                seconds=options.seconds,
                coloured=not options.plain,
            )
        except KeyboardInterrupt:
            return 0  # how one stops looking
    return 0


def _status(options: argparse.Namespace) -> int:
    """What the processes of this machine have used of the running second's quota, what the store holds, and whether all
    is well. Asks nobody.
    """
    with _open(options) as client:
        if options.json:
            import json

            from backbone.api.calls.status import status_facts

            print(json.dumps(status_facts(client.session) | {"store": client.store.size()}, indent=2, default=str))
        else:
            print(client.dashboard().text())
            print(f"\n{client!r}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    """Reads every file of the store and proves it: seals, order, coverage, candles. With --against-venue the newest
    candles (or a range) are fetched again and compared to the last digit. Ends with 1 where something is wrong.
    """
    with _open(options) as client:
        against = "venue" if options.against_venue else None
        found = client.store.verify(
            options.market, options.timeframe, against=against, start=options.start, end=options.end
        )
        size = client.store.size()
    if len(found):
        _say_problems(found)
        print(f"{len(found)} problems; `backbone repair` mends what can be mended", file=sys.stderr)
        return EXIT_PROBLEMS
    print(f"all is well: {size['files']} files of {size['markets']} markets, {size['bytes'] / 1e6:.1f} MB")
    return 0


def _repair(options: argparse.Namespace) -> int:
    """Sets damaged files aside, and drops claims that nothing stands behind. What is lost that way is unknown again and
    asked for at the next fetch. Nothing is deleted.
    """
    with _open(options) as client:
        done = client.store.repair()
    _say_problems(done)
    print(f"{len(done)} mended" if len(done) else "nothing to mend")
    return 0


def _say_problems(found: Any) -> None:
    for row in found.to_dict("records"):
        print(f"{row['kind']}: {row['market']} {row['timeframe']}  {row['path']}\n    {row['detail']}")


def _size(options: argparse.Namespace) -> int:
    """What it takes to hold many markets' candles. Bytes a candle and the traded share are measured on the store where
    it has some of them; what is assumed instead is said. Asks the venue for its market list, and with --probe for the
    beginning of each market's history.
    """
    markets = options.markets[0] if len(options.markets) == 1 else options.markets
    with _open(options) as client:
        print(
            client.size(
                markets,
                options.timeframe,
                options.since,
                options.until,
                probe=options.probe,
                addresses=options.addresses,
            )
        )
    return 0


def _demo(options: argparse.Namespace) -> int:
    """Starts the embedded exchange on loopback, fetches candles from it, stores them, reads them back, and says what
    happened. Needs no network and leaves nothing behind.
    """
    from backbone.api.client import Backbone

    if options.days < 1:
        raise InputError("--days", options.days, "1 or more")
    with Backbone.demo(seed=options.seed) as client:
        print(f"1. an embedded exchange, as strict as the venue: {client!r}")
        plan = client.explain("KRW-BTC", "1m", f"{options.days}d")
        print(f"2. the plan for {options.days} days of minutes: {plan.pages} pages of 200, about {plan.seconds:.0f} s")
        first = client.candles("KRW-BTC", "1m", f"{options.days}d")
        _say(first, "3. fetched and stored")
        second = client.candles("KRW-BTC", "1m", f"{options.days}d")
        _say(second, "4. the same call again")
        if not first.equals(second) or second.attrs["backbone"]["requests"] != 0:
            raise StoreError("the second read differs from the first; please report this", path=client.data_dir)
        print("   equal to the last digit, and no request was made")
        hours = client.candles("KRW-BTC", "1h", f"{options.days}d")
        _say(hours, "5. hours of the same span")
        tickers = client.tickers("KRW")
        print(f"6. tickers of all {len(tickers)} KRW markets in {tickers.attrs['backbone']['elapsed_ms']:.0f} ms")
        files = sorted(Path(client.data_dir).rglob("*.parquet"))
        size = sum(f.stat().st_size for f in files)
        each = size / len(first)
        print(f"7. on disk: {size / 1000:.0f} kB in {len(files)} plain Parquet files, {each:.1f} bytes a minute\n")
        _show(first)
    return 0


if __name__ == "__main__":
    sys.exit(main())
