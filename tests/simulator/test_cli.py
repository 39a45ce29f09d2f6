"""The command line of the embedded exchange."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests

from backbone.errors import InputError
from backbone.simulator.cli import build_parser, parse_fault, run
from backbone.simulator.server.faults import KINDS

ROOT = Path(__file__).resolve().parents[2]


def test_run_prints_how_to_point_clients_at_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Addresses, both variables, and a clean end."""
    stop = threading.Event()
    stop.set()
    assert run(["--seed", "3", "--frozen", "--now", "2025-08-22T09:00:00Z"], stop) == 0
    out = capsys.readouterr().out
    assert "BACKBONE_REST_URL=http://127.0.0.1:" in out
    assert "BACKBONE_WS_URL=ws://127.0.0.1:" in out
    assert "seed=3" in out
    assert "2025-08-22T09:00:00" in out


@pytest.mark.parametrize(
    "argv",
    [["--fault", "explode"], ["--fault", "slow:seconds"], ["--fault", "500:times=few"], ["--now", "soon"],
     ["--limit", "0"], ["--replay", "/nowhere.parquet"], ["--markets", "KRW-NOPE"], ["--speed", "-1"],
     ["--fault", "delist"]],
)  # fmt: skip
def test_wrong_argument_is_one_clear_line_and_code_two(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error; nothing is started."""
    assert run(argv, threading.Event()) == 2
    err = capsys.readouterr().err
    assert err.startswith("backbone simulator: ")
    assert err.count("\n") == 1


def test_fault_is_parsed_with_its_options() -> None:
    """Colons within times do not part them."""
    fault = parse_fault("outage:start=2025-08-22T09:00:00Z:end=2025-08-22T10:00:00Z:times=all:after=2")
    assert (fault.kind, fault.times, fault.after) == ("outage", None, 2)
    assert fault.options == {"start": "2025-08-22T09:00:00Z", "end": "2025-08-22T10:00:00Z"}
    assert parse_fault("ws-drop").match == "/websocket/v1"
    with pytest.raises(InputError):
        parse_fault("429:body")


def test_help_teaches_every_option_and_every_fault() -> None:
    """Examples first, kinds with their options."""
    text = build_parser().format_help()
    assert "export BACKBONE_REST_URL" in text
    for kind in KINDS:
        assert kind in text


def test_module_serves_until_interrupted() -> None:
    """`python -m backbone.simulator`: answers, then Ctrl-C ends it with code 0."""
    process = subprocess.Popen(
        [sys.executable, "-m", "backbone.simulator", "--quiet", "--frozen", "--now", "2025-08-22T09:00:00Z"],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    try:
        rows = requests.get(url + "/v1/candles/days", params={"market": "KRW-BTC"}, timeout=10).json()
        assert rows[0]["candle_date_time_utc"] == "2025-08-22T00:00:00"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        process.stdout.close()
