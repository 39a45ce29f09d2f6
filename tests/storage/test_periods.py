"""Periods as the files have them. What reading and writing promise is proven through the store; here, the caches."""

from __future__ import annotations

from pathlib import Path

import pytest

from backbone.model import Span
from backbone.storage.coverage import EVER, Coverage, SpanSet
from backbone.storage.files import LocalFiles
from backbone.storage.generations import Generations
from backbone.storage.incidents import Incidents
from backbone.storage.layout import Series
from backbone.storage.merge import Page
from backbone.storage.periods import Periods, row_periods
from backbone.testing import ManualClock
from tests.storage.helpers import MAY, MINUTE, MINUTE_US, minutes, span

BTC = Series("upbit", "KRW-BTC", MINUTE)
JUNE = 31 * 1440


def page(number: int, first: int, last: int) -> Page:
    return Page(number, minutes(first, last), SpanSet([span(first, last)]), {}, "rest", MAY)


def made(root: Path) -> tuple[Periods, LocalFiles]:
    clock = ManualClock(MAY)
    files = LocalFiles(root, clock)
    return Periods(files, clock, Incidents(clock), 1 << 20, Generations(files, "upbit")), files


def test_rows_name_their_periods_inside_the_span() -> None:
    """Rows on both sides of a month's end are in two periods; the span leaves one out."""
    both = row_periods(BTC, [page(1, JUNE - 5, JUNE + 5)])
    assert [period.start for period in sorted(both)] == [MAY, MAY + JUNE * MINUTE_US]
    assert row_periods(BTC, [page(1, JUNE - 5, JUNE + 5)], span(0, 10)) == {sorted(both)[0]}


def test_period_that_another_process_replaced_is_read_again(tmp_path: Path) -> None:
    """A cached period is used only while its file is the one that it was read from."""
    (mine, files), (theirs, _) = made(tmp_path), made(tmp_path)
    assert mine.write(BTC, [page(1, 0, 9)], []) == 1
    assert mine.write(BTC, [page(1, 0, 9)], []) == 0  # nothing changes
    assert theirs.write(BTC, [page(2, 9, 20)], []) == 1
    (period,) = mine.with_file(BTC, EVER)
    held, tier = mine.current(BTC, period, [], mine.quiet(BTC))
    assert (held.partition.table.num_rows, tier, held.version) == (20, "disk", files.stat(BTC.key(period)))
    assert mine.current(BTC, period, [], mine.quiet(BTC))[1] == "memory"


def test_quiet_span_without_a_file_is_in_the_sidecar_until_its_period_has_one(tmp_path: Path) -> None:
    """What the sidecar covered moves into the file with the period's first row."""
    periods, files = made(tmp_path)
    periods.write(BTC, [Page(1, minutes(0, 0), SpanSet([Span(0, MAY + 9 * MINUTE_US)]), {}, "rest", MAY)], [])
    assert periods.with_file(BTC, EVER) == []
    assert periods.coverage(BTC, EVER).covered == SpanSet([Span(0, MAY + 9 * MINUTE_US)])
    periods.write(BTC, [page(2, 20, 30)], [])
    whole = SpanSet([Span(0, MAY + 9 * MINUTE_US), span(20, 30)])
    assert periods.coverage(BTC, EVER).covered == periods.footer_coverage(BTC, EVER).covered == whole
    assert periods.quiet(BTC).covered == SpanSet([Span(0, MAY)])
    assert files.stat(BTC.quiet_key) is not None


def test_files_read_ahead_are_read_once_and_never_when_they_are_others_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read ahead is used while its file is the same one, and forgotten with the call."""
    other = Series("upbit", "KRW-ETH", MINUTE)
    writer, _ = made(tmp_path)
    for series in (BTC, other):
        writer.write(series, [page(1, 0, 9)], [])
    (period,) = writer.with_file(BTC, EVER)
    periods, files = made(tmp_path)
    asked: list[str] = []
    read = files.read
    monkeypatch.setattr(files, "read", lambda key: asked.append(key) or read(key))
    wanted = [(series, span(0, 20)) for series in (BTC, other)]
    with periods.reading_ahead(wanted):
        keys = [series.key(period) for series in (BTC, other)]
        assert asked == keys
        writer.write(other, [page(2, 9, 20)], [])
        found = [periods.current(series, period, [], Coverage()) for series in (BTC, other)]
        assert [held.partition.table.num_rows for held, _ in found] == [9, 20]
        assert [tier for _, tier in found] == ["disk", "disk"]
        assert asked == [*keys, keys[1]]
    with periods.reading_ahead(wanted):
        assert asked == [*keys, keys[1]]  # both are in memory
    stale, files = made(tmp_path)
    monkeypatch.setattr(files, "read", lambda key: asked.append(key) or read(key))
    with stale.reading_ahead(wanted):
        asked.clear()
    stale.current(BTC, period, [], Coverage())
    assert asked == [keys[0]]  # nothing is left of what nobody asked for


def test_damaged_file_read_ahead_is_quarantined_by_whoever_asks_for_it(tmp_path: Path) -> None:
    """Reading ahead reports nothing; the damage is one incident, and the other files are read."""
    other = Series("upbit", "KRW-ETH", MINUTE)
    writer, _ = made(tmp_path)
    for series in (BTC, other):
        writer.write(series, [page(1, 0, 9)], [])
    periods, files = made(tmp_path)
    (period,) = periods.with_file(BTC, EVER)
    path = files.path(BTC.key(period))
    path.write_bytes(path.read_bytes()[:-20])
    with periods.reading_ahead([(series, span(0, 9)) for series in (BTC, other)]):
        assert path.exists()
        assert periods.current(BTC, period, [], Coverage())[0].version is None
        assert not path.exists()
        assert periods.current(other, period, [], Coverage())[0].partition.table.num_rows == 9
