"""A file that somebody took out of the folder is missed; what was taken away on purpose is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from backbone.storage.files import LocalFiles
from backbone.storage.layout import Series
from backbone.storage.listed import forget, listed, note
from backbone.storage.store import CandleStore
from backbone.testing import ManualClock
from backbone.timeframe import period_name, period_of
from tests.storage.helpers import MAY, MINUTE, minutes, open_store, span
from tests.storage.test_store import BTC, EVER, corrupt

SERIES = Series("upbit", BTC, MINUTE)
MONTH = 31 * 1440
MONTHS = [period_of(MINUTE, MAY + i * MONTH * 60_000_000) for i in range(3)]


def three_months(root: Path) -> CandleStore:
    store = open_store(root)
    for first in (0, MONTH, 2 * MONTH):
        store.put(BTC, MINUTE, minutes(first, first + 50), span(first, first + 50), now_us=MAY)
        store.flush()
    return store


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_removed_month_is_a_problem_of_its_own(tmp_path: Path, gone: int) -> None:
    """It is named with its file until it is fetched again or `repair` has run."""
    three_months(tmp_path).close()
    path = tmp_path / SERIES.key(MONTHS[gone])
    path.unlink()
    store = open_store(tmp_path)
    (problem,) = store.verify()
    assert (problem.kind, problem.path, problem.market, problem.timeframe) == ("missing", str(path), BTC, "1m")
    assert period_name(MINUTE, MONTHS[gone]) in problem.detail
    assert len(store.verify(BTC)) == len(store.verify(BTC, MINUTE)) == 1
    first = gone * MONTH
    store.put(BTC, MINUTE, minutes(first, first + 50), span(first, first + 50), now_us=MAY)
    store.flush()
    assert store.verify() == []
    path.unlink()
    (repaired,) = store.repair()
    assert repaired.kind == "missing"
    assert store.verify() == []


def test_what_was_taken_away_on_purpose_is_not_missed(tmp_path: Path) -> None:
    """Months that were never asked for, a series that was removed, a damaged file in quarantine, a copy, a snapshot."""
    store = open_store(tmp_path / "data")
    for first in (0, 2 * MONTH):
        store.put(BTC, MINUTE, minutes(first, first + 9), span(first, first + 9), now_us=MAY)
    store.flush()
    assert listed(LocalFiles(tmp_path / "data", ManualClock(MAY)), SERIES) == {"month-2024-05", "month-2024-07"}
    snapshot = store.upkeep.snapshot("one")
    store.copy_to(LocalFiles(tmp_path / "copy", ManualClock(MAY)))
    for folder in (tmp_path / "data", Path(snapshot), tmp_path / "copy"):
        assert open_store(folder).verify() == []
        name = period_name(MINUTE, MONTHS[2])
        (gone,) = (folder / "candles").rglob(f"period={name}/candles.parquet*")
        gone.unlink()
        assert [problem.kind for problem in open_store(folder).verify()] == ["missing"]
    store.upkeep.remove(BTC)
    assert store.verify() == []
    for first in (0, 2 * MONTH):  # and what is stored afterwards is missed again
        store.put(BTC, MINUTE, minutes(first, first + 9), span(first, first + 9), now_us=MAY)
        store.flush()
    (tmp_path / "data" / SERIES.key(MONTHS[0])).unlink()
    assert [problem.kind for problem in open_store(tmp_path / "data").verify()] == ["missing"]


def test_month_in_quarantine_is_not_missed(tmp_path: Path) -> None:
    """Whether a reader came upon the damage or `repair` did."""
    store = three_months(tmp_path)
    corrupt(tmp_path / SERIES.key(MONTHS[1]))
    other = open_store(tmp_path)
    other.read(BTC, MINUTE, EVER)
    assert other.verify() == []
    corrupt(tmp_path / SERIES.key(MONTHS[0]))
    assert [problem.kind for problem in store.repair()] == ["damaged"]
    assert store.verify() == []


def test_note_that_is_damaged_covers_nothing_and_is_made_again(tmp_path: Path) -> None:
    """It is written from the second period on."""
    files = LocalFiles(tmp_path, ManualClock(MAY))
    assert note(files, SERIES, ["month-2024-05"], frozenset()) == {"month-2024-05"}
    assert listed(files, SERIES) == frozenset()
    note(files, SERIES, ["month-2024-05", "month-2024-06"], frozenset())
    assert listed(files, SERIES) == {"month-2024-05", "month-2024-06"}
    (tmp_path / SERIES.listed_key).write_bytes(b'["month-2024-05",\xff')
    assert listed(files, SERIES) == frozenset()
    note(files, SERIES, ["month-2024-06", "month-2024-07"], frozenset())
    forget(files, SERIES, "month-2024-06")
    assert listed(files, SERIES) == {"month-2024-07"}


def test_empty_folder_of_a_quarantined_month_is_no_missing_month(tmp_path: Path) -> None:
    """Another store quarantined the only month there was, before a second one made the note."""
    store, other = open_store(tmp_path), open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 50), span(0, 50), now_us=MAY)
    store.flush()
    corrupt(tmp_path / SERIES.key(MONTHS[0]), 60)
    assert not other.read(BTC, MINUTE, EVER).covered
    store.put(BTC, MINUTE, minutes(MONTH, MONTH + 50), span(MONTH, MONTH + 50), now_us=MAY)
    store.flush()
    assert store.verify() == []
