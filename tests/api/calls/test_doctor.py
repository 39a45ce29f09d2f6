"""What the doctor finds, on a machine that is well and on some that are not."""

from __future__ import annotations

import errno
import getpass
import json
import os
import platform
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.api.calls import doctor
from backbone.api.calls.doctor import Check, examine
from backbone.api.cli import main as cli
from backbone.simulator import SimulatorServer

NAMES = ["python", "backbone", "packages", "shadow", "notebook", "console", "folder", "locks", "sync", "space", "proxy",
         "venue", "clock", "socket", "quota"]  # fmt: skip


@pytest.fixture
def client(venue: SimulatorServer, tmp_path: Path) -> Iterator[Backbone]:
    """A client of the embedded exchange."""
    with Backbone(data_dir=tmp_path / "data", rest_url=venue.rest_url, ws_url=venue.ws_url) as opened:
        yield opened


def found(client: Backbone) -> dict[str, Check]:
    return {check.name: check for check in examine(client.session)}


def test_machine_that_is_well_has_no_wrong_line(client: Backbone, tmp_path: Path) -> None:
    """Every check is made, none is wrong, and nothing is left in the folder."""
    checks = found(client)
    assert list(checks) == NAMES
    assert [check for check in checks.values() if check.state == "wrong"] == []
    assert "streams" in checks["socket"].found
    assert "requests/s" in checks["venue"].found
    assert "MB/s" in checks["folder"].found
    assert [path for path in (tmp_path / "data").iterdir() if path.name.startswith("_doctor")] == []


def test_venue_that_is_not_there_is_wrong_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    """Nothing listens: the line says what to do; the folder and the packages are judged all the same."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Backbone(data_dir=tmp_path, rest_url=f"http://127.0.0.1:{port}") as client:
        checks = found(client)
    assert checks["venue"].state == "wrong"
    assert "network" in checks["venue"].advice
    assert checks["folder"].state == checks["packages"].state == "ok"


def test_folder_that_cannot_be_written_is_wrong(client: Backbone, tmp_path: Path) -> None:
    """A file where the folder should be, as nobody else can make one read-only for root."""
    (tmp_path / "data").write_text("", encoding="utf-8")
    (check,) = doctor._folder(client.session)
    assert check.state == "wrong"
    assert "BACKBONE_DATA_DIR" in check.advice


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_disk_without_folder_sync_is_a_note(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What such a disk promises less is said; it works."""

    def refuse(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    check = doctor._sync_check(tmp_path)
    assert check.state == "note"
    assert os.strerror(code) in check.found


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_disk_without_locks_is_a_note(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network drive: what the store does instead, and what to do."""

    def refuse(*args: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    check = doctor._lock_check(tmp_path / "x.lock")
    assert check.state == "note"
    assert os.strerror(code) in check.found
    monkeypatch.undo()
    assert doctor._lock_check(tmp_path / "x.lock").state == "ok"


def test_full_disk_is_wrong(client: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than a commit needs is wrong, little is a note."""
    for free, state in ((1 << 20, "wrong"), (1 << 29, "note"), (1 << 40, "ok")):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder, usage=usage: usage)
        checks = {check.name: check for check in doctor._folder(client.session)}
        assert checks["space"].state == state


@pytest.mark.parametrize(
    ("offset_s", "is_own", "state"),
    [(0.4, True, "ok"), (-9.0, True, "note"), (400.0, True, "wrong"), (400.0, False, "note"), (None, True, "note")],
)
def test_clock_is_judged_by_how_far_it_is_off(offset_s: float | None, is_own: bool, state: str) -> None:
    """Seconds are a note, minutes are wrong; an embedded exchange has a clock of its own."""
    assert doctor._clock_check(offset_s, is_own=is_own).state == state


def test_proxy_is_shown_without_its_password(client: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Host and port, and whether it is used for this venue."""
    monkeypatch.setenv("http_proxy", "http://kim:hunter2@proxy.example:3128/x")
    (check,) = doctor._proxy(client.session)
    assert check.found == "http://proxy.example:3128, not used for 127.0.0.1"


@pytest.mark.parametrize("name", ["backbone.py", "backbone/__init__.py"])
def test_package_of_the_same_name_in_the_working_folder_is_wrong(
    name: str, client: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs that start there import it in the package's place; a folder without code does no harm."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "backbone").mkdir()
    assert [check.state for check in doctor._shadow(client.session)] == ["ok"]
    (tmp_path / name).write_text("", encoding="utf-8")
    (check,) = doctor._shadow(client.session)
    assert check.state == "wrong"
    assert check.found.startswith("backbone")


def test_checkout_as_working_folder_is_a_note(
    client: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever follows the README stands in a checkout with the package installed beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "backbone/api/calls").mkdir(parents=True)
    for name in ("__init__.py", "api/calls/doctor.py"):
        (tmp_path / "backbone" / name).write_text("", encoding="utf-8")
    (check,) = doctor._shadow(client.session)
    assert check.state == "note"
    assert "checkout" in check.found


def test_package_that_is_missing_is_named(client: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setattr(doctor, "_PACKAGES", ("numpy", "no-such-package"))
    *_, check = doctor._packages(client.session)
    assert (check.state, check.advice) == ("wrong", "pip install no-such-package")


def test_nothing_private_is_printed(client: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the home folder nor this machine's name; addresses without user and password."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://kim:hunter2@proxy.example:3128")
    text = "\n".join(str(check) for check in examine(client.session))
    assert str(tmp_path) not in text
    assert "~" in text
    assert "hunter2" not in text
    assert platform.node() not in text
    assert getpass.getuser() not in text.replace("root", "") or getpass.getuser() == "root"


def test_command_ends_with_the_verdict(
    venue: SimulatorServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 where all is well, 1 where something is wrong; `--json` has the same lines for programs."""
    at = ["--rest-url", venue.rest_url, "--ws-url", venue.ws_url, "--data-dir", str(tmp_path / "data")]
    assert cli.main(["doctor", *at]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if "→" not in line] == NAMES
    assert cli.main(["doctor", "--json", *at]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == NAMES
    assert {"state", "found", "advice"} <= set(rows[0])
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert cli.main(["doctor", *at[:4], "--data-dir", str(tmp_path / "file")]) == cli.EXIT_PROBLEMS
    assert "WRONG  folder" in capsys.readouterr().out
