"""The command line: what it prints, how it exits, and what it says when it is interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backbone.api.cli import main as cli
from backbone.clock import SystemClock
from backbone.simulator import SimulatorServer

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


def test_fetch_interrupted_says_what_was_kept_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C in the middle keeps every page that arrived, names what is left, exits with 130; the rest is fetched."""
    words = ["fetch", "KRW-BTC", "1m", "--start", "2025-08-20", "--end", "2025-08-22", "--data-dir", str(tmp_path)]
    with SimulatorServer(seed=7, now=NOW, frozen=True, limit=4) as slow:
        at = ["--rest-url", slow.rest_url]
        with running(*words, *at) as process:
            wait_until(lambda: len([r for r in slow.requests if r.group == "candles"]) >= 6)
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=30)
    assert process.returncode == cli.EXIT_INTERRUPTED, error
    assert "every page that arrived is kept" in error
    assert re.search(r"  2025-08-2\d \d\d:\d\d to 2025-08-2\d \d\d:\d\d", error), error
    left = int(re.search(r"still to fetch: (\d+) pages", error)[1])  # type: ignore[index]
    assert "the same command goes on from there" in error
    assert "Traceback" not in error
    assert out == ""
    with SimulatorServer(seed=7, now=NOW, frozen=True, port=slow.port) as venue:
        assert cli.main([*words, "--rest-url", venue.rest_url]) == 0
        assert len([r for r in venue.requests if r.group == "candles"]) == left
    assert "2880 candles" in capsys.readouterr().out


def test_watch_is_ended_by_ctrl_c_without_a_word(tmp_path: Path) -> None:
    """Ctrl-C is how one stops looking: no traceback, exit code 0; each change was a line, as the output is a pipe."""
    with SimulatorServer(seed=7, now=NOW, speed=30) as venue:
        at = ["--rest-url", venue.rest_url, "--ws-url", venue.ws_url, "--data-dir", str(tmp_path)]
        with running("watch", "KRW-BTC", *at) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=30)
    assert process.returncode == 0, error
    assert error == ""
    assert re.match(r"2025-08-22 18:\d\d:\d\d  KRW-BTC  [\d,]+  [+-]\d\.\d\d%  (stream|rest)$", line), line


def test_watch_once_prints_the_table(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`watch --once` is the table as text, in the order asked for."""
    assert cli.main(["watch", "KRW-ETH", "btc", "--once", *at]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["Market", "Price"]
    assert [line.split()[0] for line in lines[1:3]] == ["KRW-ETH", "KRW-BTC"]
    assert lines[3].startswith("streaming · 2 markets")


def test_watch_for_seconds_ends_by_itself(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`--seconds` ends it, and a length that is none is refused."""
    assert cli.main(["watch", "KRW-BTC", "--seconds", "0.2", *at]) == 0
    assert cli.main(["watch", "KRW-BTC", "--seconds", "0", *at]) == cli.EXIT_INPUT
    assert "--seconds" in capsys.readouterr().err


def test_status_tells_quota_store_and_verdict(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`status` asks nobody; it shows what other processes used of the quota, and the store."""
    assert cli.main(["fetch", "KRW-BTC", "1h", "--start", "2025-08-20", "--end", "2025-08-21", *at]) == 0
    capsys.readouterr()
    assert cli.main(["status", *at]) == 0
    text = capsys.readouterr().out
    assert text.startswith("ok · upbit at http://127.0.0.1")
    assert re.search(r"candles +\d+% +\d+/10", text)
    assert re.search(r"markets +1\n", text)
    assert "data in" in text


def test_status_as_json_is_for_scripts(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`status --json` is one JSON object with the same facts."""
    assert cli.main(["status", "--json", *at]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["exchange"] == "upbit"
    assert facts["store"]["files"] == 0
    assert {"quota", "queued", "banned_s", "last_error"} <= facts.keys()


def test_verify_and_repair_find_and_mend_a_damaged_file(
    at: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` exits with 0 where all is well and with 1, naming the file, where a byte was lost; `repair` mends."""
    assert cli.main(["fetch", "KRW-BTC", "1h", "--start", "2025-08-20", "--end", "2025-08-21", *at]) == 0
    assert cli.main(["verify", *at]) == 0
    assert "all is well: 1 files of 1 markets" in capsys.readouterr().out
    (path,) = (tmp_path / "data").rglob("*.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert cli.main(["verify", *at]) == cli.EXIT_PROBLEMS
    said = capsys.readouterr()
    assert "damaged: KRW-BTC 1h" in said.out
    assert str(path) in said.out
    assert "backbone repair" in said.err
    assert cli.main(["repair", *at]) == 0
    assert "1 mended" in capsys.readouterr().out
    assert cli.main(["verify", *at]) == 0
    assert cli.main(["repair", *at]) == 0
    assert "nothing to mend" in capsys.readouterr().out


def test_verify_against_the_venue_compares_to_the_last_digit(
    at: list[str], venue: SimulatorServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A candle that the venue restated since is a problem of kind `differs`."""
    span = ["--start", "2025-08-10", "--end", "2025-08-11"]
    assert cli.main(["fetch", "KRW-XRP", "1h", *span, *at]) == 0
    assert cli.main(["verify", "KRW-XRP", "1h", "--against-venue", *span, *at]) == 0
    start, end = "2025-08-10T02:00:00Z", "2025-08-10T03:00:00Z"
    venue.faults.add("restate", market="KRW-XRP", start=start, end=end, shift=0.01)
    capsys.readouterr()
    assert cli.main(["verify", "KRW-XRP", "1h", "--against-venue", *span, *at]) == cli.EXIT_PROBLEMS
    assert "differs: KRW-XRP 1h" in capsys.readouterr().out


def test_explain_prints_the_plan(at: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`explain` names what is held, what is to fetch, and what that takes."""
    assert cli.main(["fetch", "KRW-BTC", "1h", "--start", "2025-08-20", "--end", "2025-08-21", *at]) == 0
    capsys.readouterr()
    assert cli.main(["explain", "KRW-BTC", "1h", "--start", "2025-08-19", "--end", "2025-08-21", *at]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "KRW-BTC 1h, 2025-08-19 00:00 to 2025-08-21 00:00 KST"
    assert lines[1].split() == ["held", "2025-08-20", "00:00", "to", "2025-08-21", "00:00"]
    assert lines[2].split() == ["to", "fetch", "2025-08-19", "00:00", "to", "2025-08-20", "00:00"]
    assert lines[3] == "  1 page, about 0.1 s at the legal rate"
