"""How clients end: closed, forgotten, re-made in a cell, at the program's end; each in a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from backbone import Backbone
from backbone.errors import UnfinishedWarning
from backbone.simulator import SimulatorServer
from tests.processes import process

HEAD = """
import gc, os, sys, threading, time, weakref
from backbone import Backbone

def held():
    threads = sorted(t.name for t in threading.enumerate() if t.name.startswith("backbone"))
    return threads, len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 0

def falls_to(threads, files, what="", within_s=20.0):  # a busy machine is no fault of the code
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        now = held()
        if len(now[0]) <= threads and now[1] <= files:
            return
        time.sleep(0.02)
    raise SystemExit(f"still held {what}: {now}")

files_before = held()[1]
"""


def run(text: str, *args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", HEAD + text, *map(str, args)], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def _program(text: str, output: Path, words: list[str]) -> None:
    with output.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.argv = ["program", *words]
    exec(compile(text, "program", "exec"), {"__name__": "__main__"})


def run_forked(text: str, *args: object) -> None:
    """A program that does not care how an interpreter begins and ends: it is forked from one that has imported."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        program = process(_program, HEAD + text, output, [str(arg) for arg in args])
        program.start()
        program.join(110)
        assert program.exitcode == 0, output.read_text()


@pytest.fixture(scope="module")
def exchange() -> Iterator[SimulatorServer]:
    with SimulatorServer(seed=7, now="2025-08-22T09:00:00Z", frozen=True) as server:
        yield server


def test_client_that_nobody_holds_frees_its_threads_and_files(exchange: SimulatorServer, tmp_path: Path) -> None:
    """A cell that makes its client anew, ten times, with stored candles and a live table: no more than once."""
    run_forked(
        """
url, ws, folder = sys.argv[1:]
gc.disable()  # it must not take the collector
def cell():
    global client, table
    client = Backbone(data_dir=folder, rest_url=url, ws_url=ws)
    client.candles("KRW-BTC", "1h", count=30, include_forming=True)
    client.tickers("KRW-BTC", priority="critical")
    table = client.live("KRW-BTC")
cell()
threads, files = held()
for _ in range(9):
    cell()
falls_to(len(threads) + 2, files + 2)  # another client would be four threads more; workers start as they are needed
del client, table
falls_to(0, files_before + 4)
""",
        exchange.rest_url,
        exchange.ws_url,
        tmp_path,
    )


def test_client_in_a_circle_that_nobody_holds_is_closed_while_idle(exchange: SimulatorServer, tmp_path: Path) -> None:
    """What is shown, called back or caught refers back to its client: nobody has to call the collector, whose own turn
    never comes here, and no other client is made."""
    run_forked(
        """
from backbone import errors
from backbone.api import session
assert 0 < session._IDLE_S <= 5, "seconds"
session._IDLE_S, session._SHARE = 0.2, 1
gc.set_threshold(0)
url, ws, folder = sys.argv[1:]
def cell(kind):
    client = Backbone(data_dir=folder, rest_url=url, ws_url=ws)
    if kind == "view":
        client.live("KRW-BTC")._repr_html_()
    elif kind == "callback":
        client.live("KRW-BTC").on_update(lambda update: client)
    elif kind == "job":
        client.backfill("KRW-BTC", "1h", "2025-08-20").wait()._repr_html_()
    elif kind == "error":
        try:
            client.candles("KRW-NOPE", "1h", count=3)
        except errors.BackboneError as exc:
            caught = exc
    else:
        client.mine = [client]
    client.tickers("KRW-BTC")
    return held()
before = threading.active_count()
for kind in ("view", "callback", "job", "error", "circle"):
    threads, files = cell(kind)
    assert threads, kind
    falls_to(0, files_before + 4, kind)
    assert threading.active_count() == before, kind
""",
        exchange.rest_url,
        exchange.ws_url,
        tmp_path,
    )


def test_client_at_work_looks_for_no_garbage(exchange: SimulatorServer, tmp_path: Path) -> None:
    """A look stops every thread, of a large program for half a second: none while a job fetches, soon after its end."""
    run_forked(
        """
from backbone.api import session
session._IDLE_S, session._SHARE = 3.0, 1
gc.set_threshold(0)
looks = []
gc.callbacks.append(lambda phase, info: looks.append(phase))
url, folder = sys.argv[1:]
with Backbone(data_dir=folder, rest_url=url) as client:
    job = client.backfill("KRW-BTC", "1m", "2025-08-19")
    job.wait()
    assert not looks, looks
    limit = time.monotonic() + 60
    while not looks and time.monotonic() < limit:
        time.sleep(0.02)
    assert looks
""",
        exchange.rest_url,
        tmp_path,
    )


def test_cell_with_callbacks_and_views_leaves_no_client_behind(exchange: SimulatorServer, tmp_path: Path) -> None:
    """Tables, jobs and what shows them refer to each other; callbacks run on with their client."""
    run_forked(
        """
url, ws, folder = sys.argv[1:]
def cell():
    global client, table, shown
    client = Backbone(data_dir=folder, rest_url=url, ws_url=ws)
    client.candles("KRW-BTC", "1h", count=30)
    forgotten = client.live("KRW-BTC")
    forgotten.on_update(lambda update: None)
    forgotten = weakref.ref(forgotten)
    gc.collect()
    assert forgotten() is not None
    table = client.live("KRW-ETH")
    table.on_update(lambda update: None)
    shown = client.dashboard(), client.chart("KRW-BTC", "1h"), client.backfill("KRW-BTC", "1h", "2025-08-20").wait()
    for each in (table, *shown):
        each._repr_html_()
cell()
threads, files = held()
for _ in range(4):
    cell()
falls_to(2 * len(threads), 2 * files)  # the last one, and at most the one before
del client, table, shown
gc.collect()
falls_to(0, files_before + 4)
""",
        exchange.rest_url,
        exchange.ws_url,
        tmp_path,
    )


def test_interrupted_cell_leaves_no_client_behind(exchange: SimulatorServer, tmp_path: Path) -> None:
    """The traceback of an interrupted call keeps one client at most, the last."""
    run_forked(
        """
import _thread
url, folder = sys.argv[1:]
def interrupt(client):
    while not client.session.coordinator().scheduler.status()["in_flight"]["normal"]:
        time.sleep(0.005)
    _thread.interrupt_main()
def cell(market):
    global client
    client = Backbone(data_dir=folder, rest_url=url)
    threading.Thread(target=interrupt, args=(client,)).start()
    client.candles(market, "1m", count=30_000)
markets = Backbone(rest_url=url, data_dir=folder).markets("KRW").index
for market in markets[:4]:
    try:
        cell(market)
    except KeyboardInterrupt as exc:
        sys.last_traceback = exc.__traceback__
    else:
        raise SystemExit("it was not interrupted")
client = exc = sys.last_traceback = None
falls_to(0, files_before + 4)
""",
        exchange.rest_url,
        tmp_path,
    )


def test_demo_that_is_dropped_or_left_removes_its_folder() -> None:
    """Its exchange ends and its temporary folder goes: when nobody holds it, and at the program's normal end."""
    done = run(
        """
client = Backbone.demo()
folder = client.data_dir
client.candles("KRW-BTC", "1h", count=5)
del client
falls_to(0, files_before + 4)
until = time.monotonic() + 20
while folder.exists():
    assert time.monotonic() < until, folder
    time.sleep(0.02)
left = Backbone.demo()
left.candles("KRW-BTC", "1h", count=5)
print(left.data_dir)
"""
    )
    assert not Path(done.stdout.strip()).exists()
    assert done.stderr == ""


def test_client_is_collected_under_any_lock(exchange: SimulatorServer, tmp_path: Path) -> None:
    """The collector runs in the middle of code that holds the client's own locks, or those of `threading`."""
    run_forked(
        """
url, folder = sys.argv[1:]
client = Backbone(data_dir=folder, rest_url=url)
client.candles("KRW-BTC", "1h", count=5)
core = client.session.coordinator()
owned = client.session._owned
with core.scheduler._lock, owned.lock, threading._active_limbo_lock:
    del client
falls_to(0, files_before + 4)
assert core.is_closed
""",
        exchange.rest_url,
        tmp_path,
    )


SLOW = 'job = client.backfill("KRW-BTC", "1m", "2025-06-01")\nwhile not job.progress.rows: time.sleep(0.01)\n'


def test_script_that_ends_while_its_backfill_runs_says_so(exchange: SimulatorServer, tmp_path: Path) -> None:
    """How much is stored, how much is left, and that wait() is missing; what was stored is there afterwards."""
    head = "client = Backbone(data_dir=sys.argv[2], rest_url=sys.argv[1])\n"
    printed = run(head + SLOW, exchange.rest_url, tmp_path).stderr
    assert "UnfinishedWarning" in printed
    assert "KRW-BTC 1m" in printed
    assert "is left" in printed
    assert "wait()" in printed
    with Backbone(data_dir=tmp_path, rest_url=exchange.rest_url) as client:
        assert client.coverage("KRW-BTC", "1m").rows.sum() >= 200
    assert run(head + SLOW + "job.cancel()\n", exchange.rest_url, tmp_path).stderr == ""


def test_with_that_closes_a_running_backfill_warns(exchange: SimulatorServer, tmp_path: Path) -> None:
    """A category of its own; one that has ended, or was cancelled, is not warned of."""
    with (
        pytest.warns(UnfinishedWarning, match=r"KRW-ETH 1m \([\d.]+% is stored, [\d.]+% is left\)") as caught,
        Backbone(data_dir=tmp_path, rest_url=exchange.rest_url) as client,
    ):
        client.backfill("KRW-ETH", "1m", "2025-06-01")
    assert len(caught) == 1
    with Backbone(data_dir=tmp_path, rest_url=exchange.rest_url) as client:
        client.backfill("KRW-ETH", "1h", "2025-08-01").wait(progress=False)
        client.backfill("KRW-ETH", "1m", "2025-06-01").cancel()
