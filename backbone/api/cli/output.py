"""How commands print: data on standard output, words on standard error, in any encoding, to a pipe that may close.

A table has three forms: ``table`` for eyes, ``csv`` and ``json`` for programs. Characters that the console lacks are
replaced. A reader that has seen enough (``| head``) ends a command quietly; an output that cannot be written, such as a
full disk, is an `OutputError` with an exit code of its own.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from backbone.api.format import plain
from backbone.errors import InputError, StoreError

__all__ = [
    "FORMATS",
    "OutputClosed",
    "OutputError",
    "check_target",
    "console",
    "drop_output",
    "emit",
    "flush_output",
    "print_csv",
    "print_frame",
    "print_value",
    "say",
    "write_file",
    "writing",
]

FORMATS = ("table", "csv", "json")
_ENDINGS = (".csv", ".parquet", ".json", ".feather")
_SHOWN_ROWS = 10


class OutputError(Exception):
    """Standard output cannot be written."""


class OutputClosed(Exception):
    """Whoever read standard output has closed it."""


@contextlib.contextmanager
def console() -> Iterator[None]:
    """While a command runs, replace what the console cannot show instead of raising."""
    changed: list[tuple[io.TextIOWrapper, str | None]] = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            changed.append((stream, stream.errors))
            stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, errors in changed:
            with contextlib.suppress(ValueError, OSError):  # closed meanwhile
                stream.reconfigure(errors=errors)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Around a write to standard output: raise `OutputClosed` or `OutputError` for what the system reports."""
    try:
        yield
    except BrokenPipeError as exc:
        raise OutputClosed from exc
    except OSError as exc:
        if exc.errno == errno.EINVAL and os.name == "nt":  # how Windows reports a closed pipe
            raise OutputClosed from exc
        raise OutputError(f"cannot write standard output: {exc.strerror or exc}") from exc


def emit(text: str = "", end: str = "\n") -> None:
    """Write data to standard output."""
    with writing():
        sys.stdout.write(text + end)


def flush_output() -> None:
    """Send what was written on its way; raises `OutputError` where it cannot be written."""
    with writing():
        sys.stdout.flush()


def drop_output() -> None:
    """Send what is still buffered nowhere, so that the interpreter's end does not fail on it again."""
    with contextlib.suppress(OSError, ValueError):  # an output without a descriptor buffers nothing
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def say(text: str) -> None:
    """Write words for a person to standard error; where that is closed, they are dropped."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


# -- tables ------------------------------------------------------------------------------------------------------


def _indexed(frame: Any) -> bool:
    return any(name is not None for name in frame.index.names)


def print_csv(frame: Any, *, header: bool = True) -> None:
    """Print a pandas frame as CSV; without its `header` it goes on where another one ended."""
    with writing():
        frame.to_csv(sys.stdout, index=_indexed(frame), header=header, lineterminator="\n")


def print_frame(frame: Any, form: str, *, whole: bool = True, nothing: str = "nothing was found") -> None:
    """Print a pandas frame. As a table not `whole`, only its first and last rows are shown; an empty one is no data,
    and `nothing` is said instead.
    """
    if form == "csv":
        print_csv(frame)
    elif form == "json":
        _print_json(_records(frame))
    elif frame.empty:
        say(nothing)
    else:
        most = None if whole or len(frame) <= _SHOWN_ROWS else _SHOWN_ROWS
        emit(frame.to_string(index=_indexed(frame), max_rows=most, min_rows=most))


def print_value(value: Any, form: str, *, nothing: str = "nothing was found") -> None:
    """Print what a call answered: a frame; of anything else its text, or its fields as one JSON object or CSV line."""
    import pandas as pd

    if isinstance(value, pd.DataFrame):
        print_frame(value, form, nothing=nothing)
    elif form == "table":
        fielded = isinstance(value, dict) or "__str__" not in vars(type(value))
        fields = _cells(value)
        emit(str(value) if "value" in fields or not fielded else "  ".join(f"{name} {fields[name]}" for name in fields))
    elif form == "json":
        _print_json(_fields(value))
    else:
        print_frame(pd.DataFrame([_cells(value)]), "csv")


def _cells(value: Any) -> dict[str, Any]:
    """The fields as one line has them: of a list its length."""
    return {name: len(item) if isinstance(item, list) else item for name, item in _fields(value).items()}


def _fields(value: Any) -> dict[str, Any]:
    found = plain(msgspec.to_builtins(value, builtin_types=(datetime,), enc_hook=plain))
    return found if isinstance(found, dict) else {"value": found}


def _print_json(value: Any) -> None:
    spells_all = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "") == "utf8"
    emit(json.dumps(value, indent=2, ensure_ascii=not spells_all))


def _records(frame: Any) -> list[dict[str, Any]]:
    flat = frame.reset_index() if _indexed(frame) else frame
    return [plain(row) for row in flat.to_dict("records")]


# -- files -------------------------------------------------------------------------------------------------------


def check_target(target: str) -> Path | None:
    """The file to write, or None for standard output; raises `InputError` before anything is fetched."""
    if target == "-":
        return None
    path = Path(target)
    if path.suffix.lower() not in _ENDINGS:
        raise InputError("--out", target, f"a file that ends in {', '.join(_ENDINGS)}, or - for standard output")
    if not path.parent.is_dir():
        raise InputError("--out", target, "a file in a folder that exists")
    return path


def write_file(frame: Any, path: Path) -> None:
    """Write a frame in the form that the file's ending names. Raises `StoreError`."""
    ending = path.suffix.lower()
    try:
        if ending == ".csv":
            frame.to_csv(path)
        elif ending == ".json":
            path.write_text(json.dumps(_records(frame), indent=2, ensure_ascii=False), encoding="utf-8")
        elif ending == ".feather":
            frame.reset_index().to_feather(path)
        else:
            frame.to_parquet(path)
    except OSError as exc:
        raise StoreError(
            f"cannot write {path}: {exc.strerror or exc}; the candles are in the store", path=path
        ) from exc
    say(f"wrote {len(frame)} rows to {path}")
