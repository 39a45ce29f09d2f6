"""Kernels that start warm: a process that has imported what tutorials import forks one for each of them.

A kernel takes one to two seconds of a processor before its first cell runs, nearly all of it imports. The process is a
forkserver of `multiprocessing`: it only imports and has no thread of ours, so what it forks is as fresh as a program.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

IMPORTS = [
    "pandas", "polars", "pyarrow.parquet", "requests", "aiohttp.web", "anywidget", "ipykernel.ipkernel",
    "ipykernel.kernelapp", "matplotlib.pyplot", "backbone.api.client", "backbone.api.demo",
    "backbone.simulator.server.http", "tests.warm",
]  # fmt: skip


_server = forkserver.ForkServer()  # not the one of tests that fork: it has their environment, and this one a kernel's
_server.set_forkserver_preload(IMPORTS)


class Kernel:
    """A forked kernel, with what jupyter_client asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, process: Any) -> None:
        self._process = process
        self.pid: int = process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def launch(command: list[str], *, env: dict[str, str], cwd: str, **other: Any) -> Kernel:
    """What `jupyter_client.launcher.launch_kernel` does for ``python … -m ipykernel_launcher -f FILE``."""
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(command[command.index("-f") :], env, cwd, there))
    with (
        mock.patch.dict(os.environ, {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}),  # as a kernel has it
        mock.patch.object(forkserver, "connect_to_new_process", _server.connect_to_new_process),
    ):
        process.start()
    there.close()
    here.recv()  # it leads a group of its own, which may be signalled
    here.close()
    return Kernel(process)


def _run(options: list[str], env: dict[str, str], cwd: str, ready: Connection) -> None:
    """The kernel's process."""
    os.setsid()
    os.environ.clear()
    os.environ.update(env | {"JPY_PARENT_PID": str(os.getppid())})
    os.chdir(cwd)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    ready.send(None)
    ready.close()
    sys.argv = ["ipykernel_launcher", *options]
    import pandas
    from ipykernel.kernelapp import launch_new_instance

    pandas.set_option("display.max_columns", 20)  # as pandas chooses where a kernel imports it
    launch_new_instance()
