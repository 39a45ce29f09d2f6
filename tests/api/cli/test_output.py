"""Values as text: for eyes, for programs, for files."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from backbone.api.cli.output import (
    OutputError,
    check_target,
    console,
    emit,
    print_frame,
    print_value,
    write_file,
)
from backbone.errors import InputError, StoreError

FRAME = pd.DataFrame(
    {"price": [1.5, float("nan")], "n": [1, 2]},
    index=pd.DatetimeIndex(["2025-01-01", "2025-01-02"], tz="Asia/Seoul", name="time"),
)


def test_json_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    """Times are ISO with their offset, NaN is null, integers stay integers."""
    print_frame(FRAME, "json")
    assert json.loads(capsys.readouterr().out) == [
        {"time": "2025-01-01T00:00:00+09:00", "price": 1.5, "n": 1},
        {"time": "2025-01-02T00:00:00+09:00", "price": None, "n": 2},
    ]


def test_csv_is_read_back_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """Every digit of a float, the index where it has a name, none where it has not."""
    frame = FRAME.assign(price=[0.1 + 0.2, 1e-8])
    print_frame(frame, "csv")
    back = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(back.columns) == ["time", "price", "n"]
    assert list(back["price"]) == list(frame["price"])
    print_frame(frame.reset_index(drop=True), "csv")
    assert capsys.readouterr().out.splitlines()[0] == "price,n"


def test_value_in_each_form(capsys: pytest.CaptureFixture[str]) -> None:
    """Text for eyes; an object or a line for programs; a frame in any form is a frame."""
    print_value({"rows": 3}, "json")
    assert json.loads(capsys.readouterr().out) == {"rows": 3}
    print_value({"rows": 3}, "csv")
    assert capsys.readouterr().out == "rows\n3\n"
    print_value(Path("x"), "table")
    assert capsys.readouterr().out == "x\n"
    print_value(FRAME, "csv")
    assert capsys.readouterr().out.startswith("time,price,n\n")


def test_console_gives_the_streams_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a command the streams handle errors as before it."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    with console():
        emit("값")
    assert stream.errors == "strict"
    stream.flush()
    assert stream.buffer.getvalue() == b"?\n"  # type: ignore[attr-defined]


def test_output_that_cannot_be_written_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system's reason."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OutputError, match="No space left"):
        emit("x")


def test_target_is_checked(tmp_path: Path) -> None:
    """A dash is standard output; an ending decides the form."""
    assert check_target("-") is None
    assert check_target(str(tmp_path / "a.CSV")) == tmp_path / "a.CSV"
    for wrong in ("a.txt", "a", str(tmp_path / "no" / "a.csv")):
        with pytest.raises(InputError):
            check_target(wrong)


def test_file_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    """With the path; the candles are in the store."""
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(StoreError, match="the candles are in the store"):
        write_file(FRAME, tmp_path / "x.csv")
