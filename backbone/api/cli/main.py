"""The command line over `Backbone`: words, options and exit codes, nothing that a client does not offer.

Data goes to standard output, words to standard error. What a command does is in `commands`, how it prints in `output`.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import backbone
from backbone.api.cli import commands
from backbone.api.cli.commands import EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_PROBLEMS
from backbone.api.cli.output import (
    FORMATS,
    OutputClosed,
    OutputError,
    console,
    drop_output,
    flush_output,
    print_value,
    say,
)
from backbone.errors import BackboneError, IncompleteError, InputError, StoreError

__all__ = ["EXIT_CODES", "main"]

EXIT_INPUT: Final = 2
EXIT_SOURCE: Final = 4
EXIT_STORE: Final = 5
EXIT_OUTPUT: Final = 6

EXIT_CODES: Final = {
    0: "done",
    EXIT_PROBLEMS: "verify, doctor: problems were found",
    EXIT_INPUT: "a wrong argument; nothing was requested",
    EXIT_INCOMPLETE: "part of the answer is missing; what arrived is kept",
    EXIT_SOURCE: "the venue cannot be reached, or refused; nothing arrived",
    EXIT_STORE: "the disk failed; what was stored stays readable",
    EXIT_OUTPUT: "standard output cannot be written",
    EXIT_INTERRUPTED: "interrupted; every page that arrived is kept",
}

_NOTHING: Final = {
    "coverage": "nothing is held of it yet",
    "events": "nothing happened that is known of",
    "snapshot": "no snapshot was made yet",
    "store": "nothing is stored yet",
}
"""What is said where a command's answer is a frame without rows."""

_EPILOG = """\
first steps:
  backbone demo                                              see it work, no network needed
  backbone doctor                                            is this machine ready, and if not, what to do
  backbone fetch KRW-BTC 1m --start 3d                       fetch and keep three days of minutes
  backbone fetch KRW 1d --start 2024 --out - --format csv    days of every KRW market, for a pipe
  backbone fetch KRW-BTC 1h --start 2024-01 --end 2024-02 --out january.csv
  backbone explain KRW-BTC 1m --start 2024-01                what that would take; makes no request
  backbone coverage KRW-BTC 1m                               what is held, what is quiet, what is unknown
  backbone watch KRW-BTC KRW-ETH                             live prices, until Ctrl-C
  backbone status                                            the quota of this machine, the store, the verdict
  backbone verify                                            prove every file of the store
  backbone size --markets KRW --timeframe 1m --since 2017    rows, gigabytes, requests and hours of that

where data goes: --data-dir, or $BACKBONE_DATA_DIR, or data/ of a checkout, or your user data folder.
another venue or the embedded exchange: --rest-url / --ws-url, or $BACKBONE_REST_URL / $BACKBONE_WS_URL.
data is on standard output, words are on standard error.

exit codes:
""" + "".join(f"  {code:<4} {words}\n" for code, words in EXIT_CODES.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    with console():
        try:
            code = _run(args)
            flush_output()
        except OutputClosed:
            drop_output()
            return 0
        except OutputError as exc:
            say(f"backbone: {exc}")
            drop_output()
            return EXIT_OUTPUT
        return code


def _run(args: list[str]) -> int:
    if args[:1] == ["simulator"]:
        from backbone.simulator.cli import run

        return run(args[1:])
    try:
        options = _parser().parse_args(args)
    except SystemExit as exc:  # --help, or a wrong option
        return exc.code if isinstance(exc.code, int) else EXIT_INPUT
    try:
        with options.open(options) as client:
            answer = options.run(client, options)
            if not isinstance(answer, int):
                print_value(answer, options.format, nothing=_NOTHING.get(options.run.__name__, "nothing was found"))
        return answer if isinstance(answer, int) else 0
    except KeyboardInterrupt:
        say("\ninterrupted: every page that arrived is kept; the same command goes on from there")
        return EXIT_INTERRUPTED
    except BackboneError as exc:
        say(f"backbone: {exc}")
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
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_data(parts)
    _add_now(parts)
    _add_store(parts)
    _add_machine(parts)
    parts.add_parser("simulator", help="run the embedded exchange (see: backbone simulator --help)", add_help=False)
    return parser


def _add(parts: Any, name: str, run: Callable[[Any, argparse.Namespace], Any], words: str, *, form: bool = True) -> Any:
    """A command: its first line of help, the docstring of its function, the options of every command."""
    parser = parts.add_parser(
        name,
        help=words,
        description=inspect.cleandoc(run.__doc__ or words),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, open=commands.open_client, format="table")
    if form:
        parser.add_argument("--format", choices=FORMATS, help="how the answer is printed (table)")
    if name == "demo":
        parser.set_defaults(open=commands.open_demo)
        return parser
    group = parser.add_argument_group("which exchange, which store")
    group.add_argument("--exchange", default="upbit", help="upbit, upbit-sg, upbit-id, upbit-th")
    group.add_argument("--data-dir", help="where candles are kept: a folder, or s3://bucket/prefix")
    group.add_argument("--rest-url", help="another host than the exchange's own")
    group.add_argument("--ws-url", help="another socket than the exchange's own")
    group.add_argument("--tz", help="zone of times read and shown (Asia/Seoul)")
    group.add_argument("--archive", metavar="accept-terms", help="use the bulk archive, by whose terms you abide")
    group.add_argument("--quota", help="redis://host:port/0: one quota for all hosts behind this address")
    return parser


def _words(parser: Any) -> None:
    parser.add_argument(
        "words",
        nargs="+",
        metavar="MARKET… [TIMEFRAME]",
        help="markets (KRW-BTC, krw-btc, BTC/KRW, BTC) or one quote currency (KRW), then the timeframe (1m)",
    )


def _range(parser: Any) -> None:
    _words(parser)
    parser.add_argument("--start", help="2024-01, 2024-01-31T09:00, today, or 3d, 3mo, 1y (that long ago)")
    parser.add_argument("--end", help="excluded; default: now")


def _json(parser: Any) -> None:
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="the same as --format json")


def _add_data(parts: Any) -> None:
    parser = _add(parts, "fetch", commands.fetch, "fetch candles into the store, and write or show them")
    _range(parser)
    parser.add_argument("--count", type=int, help="the newest that many closed candles instead of a start")
    parser.add_argument("--out", help="write them to a .csv, .parquet, .json or .feather file; - is standard output")
    parser.add_argument("--fill", choices=["ffill", "nan"], help="add marked rows for quiet candles")
    parser.add_argument("--priority", default="normal", help="critical, high, normal, low")
    parser.add_argument("--offline", action="store_true", help="answer from the store alone")
    parser.set_defaults(format=None)  # as --out says
    parser = _add(parts, "backfill", commands.backfill, "fetch long ranges at the lowest priority", form=False)
    _range(parser)
    parser = _add(parts, "explain", commands.explain, "what a fetch would take: held, gaps, pages, time")
    _range(parser)
    parser = _add(parts, "coverage", commands.coverage, "what is held: data, quiet, unknown")
    _words(parser)


def _add_now(parts: Any) -> None:
    parser = _add(parts, "markets", commands.markets, "the venue's markets")
    parser.add_argument("quote", nargs="?", help="one quote currency, such as KRW")
    parser.add_argument("--at", help="as recorded on that day")
    parser = _add(parts, "watch", commands.watch, "live prices in the terminal, until Ctrl-C")
    parser.add_argument("markets", nargs="+", help="markets, or one quote currency (KRW)")
    parser.add_argument("--once", action="store_true", help="show the table once and end")
    parser.add_argument("--seconds", type=float, help="end after that many seconds")
    parser.add_argument("--plain", action="store_true", help="no colours")


def _add_store(parts: Any) -> None:
    parser = _add(parts, "update", commands.update, "bring all that is stored up to now; for cron")
    parser.add_argument("markets", nargs="*", help="some of them, or a quote currency; default: all that is stored")
    parser.add_argument("--timeframe", help="one timeframe; default: all")
    parser.add_argument("--quiet", action="store_true", help="print only what could not be brought up to date")
    parser = _add(parts, "verify", commands.verify, "prove the store: a line a problem")
    parser.add_argument("market", nargs="?", help="one market; default: all")
    parser.add_argument("timeframe", nargs="?", help="one timeframe; default: all")
    parser.add_argument("--against-venue", action="store_true", help="compare with the venue's own candles, too")
    parser.add_argument("--start", help="of that comparison; default: the newest 200 candles of each")
    parser.add_argument("--end", help="of that comparison")
    _add(parts, "repair", commands.repair, "repair what verify finds; nothing is deleted")
    _add(parts, "store", commands.store, "what is stored: series, first and last candle, rows, holes, bytes")
    parser = _add(parts, "remove", commands.remove, "take a series out of the store", form=False)
    parser.add_argument("market", help="a market as it is stored")
    parser.add_argument("timeframe", nargs="?", help="one timeframe; default: all of the market's")
    parser.add_argument("--for-good", action="store_true", help="for ever, not into quarantine")
    _add(parts, "clear", commands.clear, "empty the memo of results and the quarantine; candles stay")
    parser = _add(parts, "snapshot", commands.snapshot, "a data folder that never changes again")
    parser.add_argument("name", nargs="?", help="its name; default: list those there are")
    parser = _add(parts, "events", commands.events, "what happened to markets")
    parser.add_argument("market", nargs="?", help="one market; default: all")
    parser = _add(parts, "adopt", commands.adopt, "take in a file of candles that you have, checked")
    parser.add_argument(
        "source", help="a .csv, .parquet or .feather file; alone: a market/all body, or a folder of them"
    )
    parser.add_argument("market", nargs="?", help="the market that it holds")
    parser.add_argument("timeframe", nargs="?", help="and its timeframe")
    parser.add_argument("--at", help="the day of a market list whose file name has none")
    parser.add_argument("--file-tz", help="zone of its naive times")
    parser = _add(parts, "copy", commands.copy, "copy the store to another folder or object store")
    parser.add_argument("target", help="a folder, or s3://bucket/prefix")
    parser = _add(parts, "size", commands.size, "rows, bytes, requests and hours, before they are spent")
    parser.add_argument("--markets", nargs="+", default=["KRW"], help="a quote currency (KRW), or markets")
    parser.add_argument("--timeframe", default="1m")
    parser.add_argument("--since", default="2017", help="2017, 2024-01, … (2017)")
    parser.add_argument("--until", help="default: now")
    parser.add_argument("--probe", action="store_true", help="ask where each market begins, one request each")
    parser.add_argument("--addresses", type=int, nargs="+", default=[1, 2, 4, 8], help="how many hosts (1 2 4 8)")


def _add_machine(parts: Any) -> None:
    parser = _add(parts, "demo", commands.demo, "see the whole path work on the embedded exchange", form=False)
    parser.add_argument("--seed", type=int, default=7, help="which history the embedded exchange has (7)")
    parser.add_argument("--days", type=int, default=2, help="days of 1-minute candles to fetch (2)")
    parser = _add(parts, "status", commands.status, "the quota of this machine, the store, the verdict")
    _json(parser)
    parser = _add(parts, "doctor", commands.doctor, "is this machine ready, and if not, what to do")
    _json(parser)


if __name__ == "__main__":
    sys.exit(main())
