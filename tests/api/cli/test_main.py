"""The command line as a shell sees it: options, exit codes, streams, encodings, pipes, and interruption."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backbone.api.cli import main as cli
from backbone.clock import SystemClock
from backbone.simulator import SimulatorServer

LIMIT = 500  # the quota is not what is tested here
NOW = "2025-08-22T09:00:00Z"
ROOT = Path(__file__).resolve().parents[3]
# What a shell does for a command in the foreground, whatever this test run was started by.
AS_IN_A_TERMINAL = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
MAIN = AS_IN_A_TERMINAL + "from backbone.api.cli.main import main; sys.exit(main())"


@pytest.fixture
def at(venue: SimulatorServer, tmp_path: Path) -> list[str]:
    """The options that lead to the embedded exchange and a store of the test's own."""
    return ["--rest-url", venue.rest_url, "--ws-url", venue.ws_url, "--data-dir", str(tmp_path / "data")]


def command(*words: str) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("BACKBONE_")}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", MAIN, *words],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@contextlib.contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    process = command(*words)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], timeout_s: float = 40.0) -> None:
    import threading

    clock, pause = SystemClock(), threading.Condition()
    until = clock.monotonic() + timeout_s
    while not condition():
        assert clock.monotonic() < until, "it never happened"
        with pause:
            clock.wait(pause, 0.02)


@pytest.mark.parametrize("end", [["--end", "2025-08-22"], []], ids=["end", "now"])
def test_fetch_interrupted_says_what_was_kept_and_goes_on(
    end: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the middle keeps every page that arrived, names what is left, exits with 130; the rest is fetched."""
    words = ["fetch", "KRW-BTC", "1m", "--start", "2025-08-20", *end, "--data-dir", str(tmp_path)]
    with SimulatorServer(seed=7, now=NOW, frozen=True, limit=4) as slow:
        at = ["--rest-url", slow.rest_url]
        with running(*words, *at) as process:
            wait_until(lambda: len([r for r in slow.requests if r.group == "candles"]) >= 6)
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=90)
    assert process.returncode == cli.EXIT_INTERRUPTED, error
    assert "every page that arrived is kept" in error
    assert re.search(r"  2025-08-2\d \d\d:\d\d to 2025-08-2\d \d\d:\d\d", error), error
    left = int(re.search(r"still to fetch: (\d+) pages", error)[1])  # type: ignore[index]
    assert "the same command goes on from there" in error
    assert "Traceback" not in error
    assert out == ""
    with SimulatorServer(seed=7, now=NOW, frozen=True, port=slow.port) as venue:
        assert cli.main([*words, "--rest-url", venue.rest_url]) == 0
        asked = len([r for r in venue.requests if r.group == "candles"])
        assert not end or asked == left
    assert ("2880 candles" if end else " 0 unknown") in capsys.readouterr().err


def test_watch_is_ended_by_ctrl_c_without_a_word(tmp_path: Path) -> None:
    """Ctrl-C is how one stops looking: no traceback, exit code 0; each change was a line, as the output is a pipe."""
    with SimulatorServer(seed=7, now=NOW, speed=30) as venue:
        at = ["--rest-url", venue.rest_url, "--ws-url", venue.ws_url, "--data-dir", str(tmp_path)]
        with running("watch", "KRW-BTC", *at) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=90)
    assert process.returncode == 0, error
    assert error == ""
    assert re.match(r"2025-08-22 18:\d\d:\d\d  KRW-BTC  [\d,]+  [+-]\d\.\d\d%  (stream|rest)$", line), line


def written(monkeypatch: pytest.MonkeyPatch, *words: str, encoding: str, out: Any = None) -> tuple[int, bytes, bytes]:
    """A command whose streams have an encoding, or one that writes to `out`."""
    data, said = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", out or io.TextIOWrapper(data, encoding=encoding, errors="strict"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(said, encoding=encoding, errors="strict"))
    code = cli.main(list(words))
    sys.stderr.flush()
    return code, data.getvalue(), said.getvalue()


DAY_TO_A_PIPE = ("fetch", "KRW-BTC", "1h", "--start", "2025-08-20", "--out", "-")
COMMANDS = [
    ("--help",),
    ("status",),
    ("status", "--json"),
    ("markets", "KRW"),
    ("markets", "KRW", "--format", "csv"),
    ("markets", "--format", "json"),
    ("watch", "KRW-BTC", "--once"),
    ("fetch", "KRW-BTC", "1h", "--start", "2025-08-20"),
    ("explain", "KRW-BTC", "1h", "--start", "2025-08-20"),
    ("coverage", "KRW-BTC", "1h"),
    ("size", "--markets", "KRW-BTC", "--timeframe", "1d"),
    ("verify",),
    ("repair",),
    ("fetch", "KRW-없다"),
]


@pytest.mark.parametrize("encoding", ["cp949", "ascii"])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_command_raises_on_a_console_that_lacks_characters(
    at: list[str], words: tuple[str, ...], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Korean Windows console, and one that knows letters only: what it lacks is replaced."""
    code, out, said = written(monkeypatch, *words, *([] if words == ("--help",) else at), encoding=encoding)
    nothing_held = words == ("verify",)  # of this exchange: a proof of nothing is no proof
    assert code == (cli.EXIT_INPUT if words[-1] == "KRW-없다" else cli.EXIT_PROBLEMS if nothing_held else 0), said
    out.decode(encoding)
    said.decode(encoding)
    assert b"Traceback" not in said


def test_json_loses_no_character_on_a_console_that_lacks_it(at: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Korean cannot be written, JSON escapes it."""
    code, out, _ = written(monkeypatch, "markets", "KRW", "--format", "json", *at, encoding="ascii")
    assert code == 0
    names = {row["market"]: row["korean_name"] for row in json.loads(out)}
    assert names["KRW-BTC"] == "비트코인"


@pytest.mark.parametrize(
    "words",
    [
        ("fetch", "KRW-BTC", "1h", "--start", "2025-08-20", "--out", "-"),
        ("--help",),
        ("watch", "KRW-BTC", "--seconds", "3"),
    ],
    ids=" ".join,
)
def test_reader_that_closes_its_pipe_ends_a_command_quietly(
    at: list[str], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`| head` has seen enough: exit code 0 and no word on standard error but the facts."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as out:
        code, _, said = written(monkeypatch, *words, *([] if words == ("--help",) else at), encoding="utf-8", out=out)
    assert code == 0
    assert b"Traceback" not in said
    assert b"cannot" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(
    "words", [("status",), ("fetch", "KRW-BTC", "1h", "--start", "2025-08-20", "--out", "-"), ("--help",)], ids=" ".join
)
def test_full_disk_on_standard_output_has_an_exit_code_of_its_own(
    at: list[str], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that could not be written is not a success."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        code, _, said = written(monkeypatch, *words, *([] if words == ("--help",) else at), encoding="utf-8", out=full)
    assert code == cli.EXIT_OUTPUT
    assert "cannot write standard output: No space left on device" in said.decode()


def test_shell_pipeline_ends_quietly(at: list[str]) -> None:
    """The whole process, interpreter's end included: nothing on standard error after the facts."""
    with running("fetch", "KRW-BTC", "1m", "--start", "2025-08-20", "--out", "-", *at) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "time,open,high,low,close,volume,value\n"
        process.stdout.close()
        said = process.stderr.read()
        process.wait(30)
    assert process.returncode == 0
    assert "Traceback" not in said
    assert "Exception ignored" not in said


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_days_of_every_market_through_head(tmp_path: Path) -> None:
    """The pipeline of the help: ten lines of data, every part of it a success, nothing said that is no fact."""
    words = ["fetch", "KRW", "1d", "--start", "2025-03", "--out", "-", "--format", "csv"]
    few = ["KRW-BTC", "KRW-ETH", "BTC-ETH"]
    with SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True, markets=few) as venue:
        words += ["--rest-url", venue.rest_url, "--ws-url", venue.ws_url, "--data-dir", str(tmp_path)]
        line = f"set -o pipefail; {shlex.join([sys.executable, '-m', 'backbone', *words])} | head"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert rows[0] == "time,market,open,high,low,close,volume,value"
    assert len(rows) == 10
    assert all(row.startswith("2025-03-0") and ",KRW-" in row for row in rows[1:])
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_markets_are_printed_as_they_arrive(at: list[str], venue: SimulatorServer) -> None:
    """Whoever reads the pipe has the first market before the last is asked; all rows are those of one call."""
    markets = ["KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-ADA", "KRW-DOGE"]
    words = ["fetch", *markets, "1h", "--start", "2025-08-20", "--end", "2025-08-21", "--format", "csv", *at]
    venue.faults.add("slow", seconds=3, match=f"market={markets[-1]}")
    with running(*words) as process:
        assert process.stdout is not None
        header = process.stdout.readline()
        answered = {one.query.get("market") for one in venue.requests if one.group == "candles"}
        rows = process.stdout.read().splitlines()
    assert markets[-1] not in answered
    assert header == "time,market,open,high,low,close,volume,value\n"
    assert [row.split(",")[1] for row in rows] == [market for market in markets for _ in range(24)]


def test_market_that_fails_keeps_no_other_from_the_pipe(
    at: list[str], venue: SimulatorServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are printed, the error is said and is the exit code."""
    venue.faults.add("reset", match="market=KRW-ETH", times=None)
    words = ["fetch", "KRW-ETH", "KRW-BTC", "KRW-XRP", "1h", "--start", "2025-08-20", "--end", "2025-08-21"]
    assert cli.main([*words, "--format", "csv", *at]) == cli.EXIT_INCOMPLETE
    out, said = capsys.readouterr()
    assert [row.split(",")[1] for row in out.splitlines()] == ["market", *["KRW-BTC"] * 24, *["KRW-XRP"] * 24]
    assert "KRW-ETH" in said


def test_help_has_one_table_of_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """Each code that a command can end with is named once."""
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out.partition("exit codes:")[2]
    found = [int(line.split()[0]) for line in text.splitlines() if line.strip()]
    assert found == list(cli.EXIT_CODES)


def test_wrong_option_is_a_wrong_argument(capsys: pytest.CaptureFixture[str]) -> None:
    """Usage goes to standard error, the code is that of a wrong argument."""
    assert cli.main(["fetch"]) == cli.EXIT_INPUT
    assert cli.main(["nonsense"]) == cli.EXIT_INPUT
    said = capsys.readouterr()
    assert said.out == ""
    assert "usage: backbone" in said.err


@pytest.mark.parametrize(
    "words",
    [
        ("fetch", "KRW-BTC", "1h", "--start", "2025-08-20"),
        ("markets",),
        ("fetch", "KRW-BTC", "--count", "3", "--priority", "critical"),
    ],
    ids=" ".join,
)
def test_unreachable_venue_has_one_exit_code(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing listens there: the venue's code, whatever was asked and however."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    at = ["--rest-url", f"http://127.0.0.1:{port}", "--data-dir", str(tmp_path)]
    assert cli.main([*words, *at]) == cli.EXIT_SOURCE
    assert capsys.readouterr().out == ""


def test_part_that_is_missing_has_a_code_of_its_own() -> None:
    """An answer of which something arrived is incomplete; where nothing did, the error is the venue's own."""
    import pandas as pd

    from backbone.errors import IncompleteError, StoreError, UnreachableError

    causes = [UnreachableError("no answer")]
    assert cli._exit_code(IncompleteError("some", causes=causes, frame=pd.DataFrame({"a": [1]}))) == cli.EXIT_INCOMPLETE
    assert cli._exit_code(IncompleteError("none", causes=[StoreError("disk")])) == cli.EXIT_INCOMPLETE
    assert cli._exit_code(IncompleteError("offline")) == cli.EXIT_INCOMPLETE
    assert cli._exit_code(causes[0]) == cli.EXIT_SOURCE
    assert cli._exit_code(StoreError("disk")) == cli.EXIT_STORE
