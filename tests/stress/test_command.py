"""The command's counts can be other than zero: what is planted is found, printed, and ends in exit code 1."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from backbone.model import CANDLE_COLUMNS, Span
from backbone.simulator import SimulatorServer
from backbone.timeframe import TIMEFRAMES
from tests.stress import client_world, soak, store_kill, store_world
from tests.stress.__main__ import main
from tests.stress.report import Tally, Verdict
from tests.stress.store_world import START

needs_forkserver = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="this system cannot kill forked writers"
)
MINUTE = TIMEFRAMES["1m"]
FAR = Span(START + 100_000 * MINUTE.step_us, START + 100_100 * MINUTE.step_us)  # where no writer writes


@pytest.fixture(autouse=True)
def _log_again() -> Iterator[None]:
    """The command turns the log off."""
    yield
    logging.disable(logging.NOTSET)


def without_one(rows: pa.Table) -> pa.Table:
    return pa.concat_tables([rows.slice(0, 40), rows.slice(41)])


def with_another_close(rows: pa.Table) -> pa.Table:
    return rows.set_column(4, rows.schema.field(4), pa.array(np.minimum(rows.column(4).to_numpy(), 0.5)))


def plant(monkeypatch: pytest.MonkeyPatch, harm: Callable[[pa.Table], pa.Table]) -> None:
    """Let the store that the harness checks hold one page that is not the venue's."""
    check = store_world.check

    def harmed(root: Path, verdict: Verdict, **options: Any) -> None:
        store = store_world.open_store(root)
        store.put("KRW-BTC", MINUTE, harm(store_world.truth("KRW-BTC", MINUTE, FAR)), FAR, now_us=FAR.end)
        store.close()
        check(root, verdict, **options)

    monkeypatch.setattr(store_kill, "check", harmed)


@needs_forkserver
def test_command_with_a_planted_loss_counts_it_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A covered span that lacks one of its rows is one lost row, in the table, in the total and in the exit code."""
    plant(monkeypatch, without_one)
    assert main(["store_kill", "--kills", "1"]) == 1
    assert "1 kill tried; rows lost 1, rows invented 0" in capsys.readouterr().out


@needs_forkserver
def test_command_with_a_planted_price_counts_every_row_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hundred rows with another close than the venue's are a hundred invented rows."""
    plant(monkeypatch, with_another_close)
    assert main(["store_kill", "--kills", "1"]) == 1
    assert "rows lost 0, rows invented 100" in capsys.readouterr().out


def test_command_with_nothing_planted_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing is lost, invented or otherwise wrong, the exit code is 0 and the last line says so."""
    assert main(["store_disk", "--faults", "3", "--seed", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("form")
    assert lines[1].startswith("store_disk")
    assert lines[-1].endswith("faults tried; rows lost 0, rows invented 0")


def test_command_whose_form_breaks_prints_it_and_runs_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A form that ends early is a finding: it cannot pass for one that found nothing."""
    from tests.stress import __main__ as command

    def stuck(_: Any) -> Tally:
        raise AssertionError("process 1 is stuck")

    monkeypatch.setitem(command.FORMS, "store_crowd", stuck)
    assert main(["store_crowd", "store_disk", "--faults", "1"]) == 1
    out = capsys.readouterr().out
    assert "store_crowd: ended early: AssertionError('process 1 is stuck')" in out
    assert "\nstore_disk" in out


def test_tally_with_a_row_that_is_not_covered_is_not_clean() -> None:
    """Rows outside the coverage, problems and what a form calls faulty fail it, though none is lost or invented."""
    assert Tally().is_clean
    assert not Tally(verdict=Verdict(uncovered=1)).is_clean
    assert not Tally(verdict=Verdict(problems=["order /a"])).is_clean
    assert not store_kill.KillTally(oldest_asked_again_s=1.01).is_clean
    assert not soak.SoakTally(memory_mb=[1.0], left=soak.Counter(threads=1)).is_clean


@pytest.mark.parametrize(("harm", "lost", "invented"), [(without_one, 1, 0), (with_another_close, 0, 100)])
def test_check_of_a_clients_store_finds_what_is_planted(
    tmp_path: Path, harm: Callable[[pa.Table], pa.Table], lost: int, invented: int
) -> None:
    """The comparison with the embedded exchange counts a missing row and rows with another price."""
    with SimulatorServer(seed=7, now=client_world.NOW, frozen=True, markets=["KRW-BTC"]) as venue:
        now_us = venue.clock.now_us()
        span = Span(now_us - 6000 * 10**6 * 60, now_us - 5900 * 10**6 * 60)
        rows = venue.exchange.candle_table("KRW-BTC", "1m", *span)
        assert rows.num_rows == 100
        store = client_world.open_store(tmp_path, venue)
        store.put("KRW-BTC", MINUTE, harm(rows), span, now_us=now_us)
        store.close()
        verdict = Verdict()
        client_world.check(tmp_path, venue, verdict)
    assert (verdict.lost, verdict.invented) == (lost, invented)


def test_judge_of_the_soak_counts_missing_foreign_and_altered_rows() -> None:
    """An answer is compared row by row: what a whole span lacks, what does not exist, what has another number."""
    exchange = soak.Exchange(7, markets=["KRW-BTC"])
    end = MINUTE.floor(1_755_850_000_000_000)
    span = (end - 100 * MINUTE.step_us, end)
    table = exchange.candle_table("KRW-BTC", "1m", *span)
    times = table.column("time").to_numpy().astype("datetime64[us]").astype(np.int64)
    columns = {name: table.column(name).to_numpy().copy() for name in CANDLE_COLUMNS}

    def judged(keep: Any) -> tuple[int, int, str]:
        return soak._verdict(exchange, "KRW-BTC", "1m", span, times[keep], {n: c[keep] for n, c in columns.items()})

    assert judged(slice(None)) == (0, 0, "")
    assert judged(slice(0, 97))[:2] == (3, 0)
    columns["low"][5] *= 0.99
    assert judged(slice(None))[:2] == (0, 1)
    times[50] += 1_000_000
    assert judged(slice(None))[:2] == (1, 2)
