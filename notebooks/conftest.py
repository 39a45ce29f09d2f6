"""The tutorials are tests: each runs in a fresh kernel of this checkout and has to print what it shows here.

nbval compares every output; `sanitize.cfg` names the little that truly varies. Nothing has to be said on the command
line: ``pytest`` runs them with the rest, ``pytest notebooks/01_first_candles.ipynb`` one of them.
"""

from __future__ import annotations

from tests.early import pytest_addoption as pytest_addoption
from tests.early import pytest_runtestloop as pytest_runtestloop

# isort: split
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "nbval"):  # absent where the plugin is switched off
        config.option.nbval = config.option.nbval or not config.option.nbval_lax
        config.option.nbval_sanitize_with = config.option.nbval_sanitize_with or str(HERE / "sanitize.cfg")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Kernels start without tqdm's bars: one shows where a cell takes two seconds, which a busy machine decides. And
    they start warm, where processes can be forked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        if hasattr(os, "fork"):
            from tests import warm

            patch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", warm.launch)
        yield
