"""The demo and the doctor on the machines that people have: both run, and each problem comes with what to do."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from backbone.api.cli import main as cli
from backbone.simulator import SimulatorServer
from tests.stress.store_disk import read_only

LIMIT = 500  # the quota is not what is tested here

Host = Callable[[pytest.MonkeyPatch, Path, ExitStack], None]


def plain(patch: pytest.MonkeyPatch, folder: Path, stack: ExitStack) -> None:
    """Nothing is wrong."""


def dead_proxy(patch: pytest.MonkeyPatch, folder: Path, stack: ExitStack) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        patch.setenv(name, "http://kim:hunter2@127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        patch.delenv(name, raising=False)


def without_locks(patch: pytest.MonkeyPatch, folder: Path, stack: ExitStack) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    patch.setattr("fcntl.flock", refuse)


def without_sync(patch: pytest.MonkeyPatch, folder: Path, stack: ExitStack) -> None:
    sync = os.fsync

    def refuse(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(fd)

    patch.setattr(os, "fsync", refuse)


def for_reading(patch: pytest.MonkeyPatch, folder: Path, stack: ExitStack) -> None:
    (folder / "candles").mkdir(parents=True)
    if not stack.enter_context(read_only(folder)):
        pytest.skip("this user may not mount a folder for reading only")


def forbidden(patch: pytest.MonkeyPatch, folder: Path, stack: ExitStack) -> None:
    folder.mkdir(parents=True)
    if not stack.enter_context(read_only(folder)):
        pytest.skip("this user may not mount a folder for reading only")


HOSTS: dict[str, tuple[Host, str, str, str, str]] = {  # and the line that reports it: its name, state, found, advice
    "plain": (plain, "folder", "ok", "can be written", ""),
    "dead proxy": (dead_proxy, "proxy", "ok", "not used for 127.0.0.1", ""),
    "no locks": (without_locks, "locks", "note", "no locks", "local disk"),
    "no sync": (without_sync, "sync", "note", "cannot be synced", "local disk"),
    "reading only": (for_reading, "folder", "note", "reading only", "--data-dir"),
    "forbidden": (forbidden, "folder", "wrong", "cannot be written", "BACKBONE_DATA_DIR"),
}


def korean_console(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Write to a Korean Windows console from now on; called, it gives what was written since."""
    raw = io.BytesIO()
    console = io.TextIOWrapper(raw, encoding="cp949", write_through=True)
    monkeypatch.setattr(sys, "stdout", console)

    def text() -> str:
        console.flush()
        found = raw.getvalue().decode("cp949")
        raw.seek(0)
        raw.truncate()
        return found

    return text


@pytest.mark.parametrize("kind", HOSTS)
def test_demo_and_doctor_run_on_each_kind_of_machine(
    venue: SimulatorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The demo is right to the last digit; the doctor's line says what is different here, and ends with its verdict."""
    change, name, state, found, advice = HOSTS[kind]
    folder, console = tmp_path / "data", korean_console(monkeypatch)
    with ExitStack() as stack:
        change(monkeypatch, folder, stack)
        monkeypatch.setenv("BACKBONE_DATA_DIR", str(folder))
        assert cli.main(["demo", "--days", "1"]) == 0
        assert "equal to the last digit" in console()
        at = ["--rest-url", venue.rest_url, "--ws-url", venue.ws_url]
        code = cli.main(["doctor", "--format", "table", *at])
        text = console()
        assert code == (cli.EXIT_PROBLEMS if state == "wrong" else 0), text
        assert "hunter2" not in text
        assert cli.main(["doctor", "--json", *at]) == code
        (line,) = [row for row in json.loads(console()) if row["name"] == name]
        assert cli.main(["status", *at]) == 0
    assert line["state"] == state
    assert found in line["found"]
    assert advice in line["advice"]
    assert bool(line["advice"]) == (state != "ok")


def test_doctor_behind_a_dead_proxy_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A venue elsewhere is reached through the proxy of the environment: the line says what to look at."""
    console = korean_console(monkeypatch)
    dead_proxy(monkeypatch, tmp_path, ExitStack())
    code = cli.main(["doctor", "--rest-url", "http://venue.example", "--data-dir", str(tmp_path)])
    text = console()
    assert code == cli.EXIT_PROBLEMS
    assert "http://127.0.0.1:9, used for venue.example" in text
    assert "WRONG  venue" in text
    assert "check the network, the proxy and its certificates" in text
    assert "hunter2" not in text


def shim(folder: Path) -> Path:
    """A library that takes locks and sync away from what is below $NO_LOCKS_BELOW."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler here, or no Linux")
    made = folder / "no_locks.so"
    source = str(Path(__file__).with_name("no_locks.c"))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(made), source, "-ldl"], check=True, timeout=110)
    return made


def test_programs_run_with_all_of_it_at_once(venue: SimulatorServer, tmp_path: Path) -> None:
    """Real processes on a disk without locks and sync, behind a dead proxy, on a Korean console: the demo is right, the
    doctor names each, and what one program fetches is there for the next."""
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://kim:hunter2@127.0.0.1:9")
    host = {"LD_PRELOAD": str(shim(tmp_path)), "NO_LOCKS_BELOW": str(tmp_path), "TMPDIR": str(tmp_path)}
    places = {"BACKBONE_DATA_DIR": str(tmp_path / "자료"), "BACKBONE_CACHE_DIR": str(tmp_path / "cache")}
    env = os.environ | proxies | host | places | {"PYTHONIOENCODING": "cp949", "PYTHONUTF8": "0"}
    env = {name: value for name, value in env.items() if name.lower() != "no_proxy"}
    at = ["--rest-url", venue.rest_url, "--ws-url", venue.ws_url]

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "backbone", *words]
        done = subprocess.run(command, env=env, capture_output=True, timeout=100, check=False)
        said = (done.stdout + done.stderr).decode("cp949")
        assert done.returncode == 0, said
        assert "hunter2" not in said
        assert "Traceback" not in said
        return done.stdout.decode("cp949")

    assert "equal to the last digit" in run("demo", "--days", "1")
    lines = {row["name"]: row for row in json.loads(run("doctor", "--json", *at))}
    assert [lines[name]["state"] for name in ("folder", "locks", "sync", "proxy", "console")] == [
        "ok",
        "note",
        "note",
        "ok",
        "ok",
    ]
    notes = [lines[name]["found"] for name in ("locks", "sync", "proxy", "console")]
    for found, word in zip(
        notes, ("No locks available", "files cannot be synced", "not used for 127.0.0.1", "cp949"), strict=True
    ):
        assert word in found
    whole = run("fetch", "KRW-BTC", "1h", "--count", "30", "--out", "-", *at)
    assert run("fetch", "KRW-BTC", "1h", "--count", "30", "--out", "-", "--offline", *at) == whole
    run("verify", *at)
