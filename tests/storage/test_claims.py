"""Claims on spans that are being fetched: who sees which, for how long, and what a bad file costs."""

from __future__ import annotations

import errno
import os
import signal
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from backbone.clock import SystemClock
from backbone.model import Span
from backbone.storage import claims as claims_module
from backbone.storage import files
from backbone.storage import series_locks as disk
from backbone.storage.claims import CLAIM_S, Claims, Others, spans_claimed
from backbone.storage.coverage import SpanSet
from backbone.storage.files import LocalFiles
from backbone.storage.series_locks import SeriesLocks
from backbone.testing import ManualClock
from tests.processes import CONTEXT, process

KEY = "_locks/a.claims"
NORMAL, LOW = 2, 3


def claims_of(folder: Path, clock: ManualClock | None = None) -> Claims:
    return Claims(LocalFiles(folder, clock or ManualClock()), KEY, clock or ManualClock())


def take(claims: Claims, start: int, end: int, rank: int = NORMAL) -> Others:
    """Claim a span; what others did then."""
    seen: list[Others] = []

    def choose(others: Others) -> Span:
        seen.append(others)
        return Span(start, end)

    claims.take(rank, choose)
    (others,) = seen
    return others


def spans(others: Others, rank: int = LOW) -> list[tuple[int, int]]:
    return [tuple(span) for span in spans_claimed(others.claims, rank)]


def relies(claims: Claims, span: Span, rank: int) -> bool:
    """Whether the next page may be asked without another look at what others do."""
    return claims.is_unchanged() and claims.has(span, rank)


def test_claim_is_seen_by_others_and_not_by_its_owner(tmp_path: Path) -> None:
    """Each sees what the other fetches, until that is released."""
    clock = ManualClock()
    first, second = claims_of(tmp_path, clock), claims_of(tmp_path, clock)
    assert spans(take(first, 0, 10)) == []
    assert spans(first.look()) == []
    assert spans(take(second, 10, 20)) == [(0, 10)]
    assert spans(first.look()) == [(10, 20)]
    first.release([Span(0, 10)])
    assert spans(second.look()) == []
    assert spans(first.look()) == [(10, 20)]
    second.release([Span(10, 20)])
    assert (tmp_path / KEY).read_bytes() == b"[2,[]]"


def test_end_of_a_claim_is_seen_also_by_who_never_saw_the_claim(tmp_path: Path) -> None:
    """A whole fetch may come and go between two of another's pages; one's own say nothing new."""
    clock = ManualClock()
    first, second = claims_of(tmp_path, clock), claims_of(tmp_path, clock)
    before = take(second, 0, 10).ended
    second.release([Span(0, 10)])
    assert second.look().ended == before
    take(first, 10, 20)
    assert second.look().ended == before
    first.release([Span(10, 20)])
    assert second.look() == Others((), before + 1)


def test_claim_of_several_pages_ends_page_by_page(tmp_path: Path) -> None:
    """Others see what is left of it; what is needed no more ends at once."""
    clock = ManualClock()
    first, second = claims_of(tmp_path, clock), claims_of(tmp_path, clock)
    take(first, 0, 50)
    first.release([Span(20, 30), Span(40, 60)])
    assert spans(second.look()) == [(0, 20), (30, 40)]
    first.keep(lambda: SpanSet([Span(0, 10), Span(35, 90)]))
    assert spans(second.look()) == [(0, 10), (35, 40)]
    ended = second.look().ended
    first.keep(lambda: SpanSet([Span(0, 40)]))
    assert second.look().ended == ended, "nothing ended, so the file stays as it is"


def test_own_claim_is_relied_on_without_the_file_until_others_change_it(tmp_path: Path) -> None:
    """It has to be of that span, urgent enough, and to last; a stat of the file says whether others came."""
    clock = ManualClock()
    first, second = claims_of(tmp_path, clock), claims_of(tmp_path, clock)
    take(first, 0, 50)
    take(first, 50, 60, LOW)
    assert relies(first, Span(10, 50), NORMAL)
    assert relies(first, Span(10, 60), LOW)
    assert not relies(first, Span(10, 60), NORMAL)
    assert not relies(first, Span(10, 61), LOW)
    assert not relies(second, Span(10, 20), LOW)
    first.release([Span(30, 40)])
    assert relies(first, Span(0, 30), NORMAL)
    assert not relies(first, Span(30, 31), NORMAL)
    take(second, 60, 70)
    assert not relies(first, Span(0, 30), NORMAL), "somebody else was there"
    take(first, 0, 30)
    assert relies(first, Span(0, 30), NORMAL)
    clock.advance(1.0)
    assert not relies(first, Span(0, 30), NORMAL), "it ends too soon"


def test_what_others_did_is_not_passed_over_by_an_end_of_own_claims(tmp_path: Path) -> None:
    """More urgent work claims what is claimed already: whoever ends claims then has not seen that."""
    clock = ManualClock()
    low, normal = claims_of(tmp_path, clock), claims_of(tmp_path, clock)
    take(low, 0, 50, LOW)
    take(normal, 20, 30, NORMAL)
    low.release([Span(0, 10)])
    assert not relies(low, Span(20, 30), LOW)
    low.look()
    assert relies(low, Span(10, 20), LOW), "it was seen now"
    normal.release([Span(20, 30)])
    low.release([Span(10, 20)])
    assert not relies(low, Span(30, 40), LOW), "what it fetched may be on disk"


def test_claim_that_is_made_while_others_end_stays(tmp_path: Path) -> None:
    """What is needed is asked after it is known what is claimed."""
    clock = ManualClock()
    first, second = claims_of(tmp_path, clock), claims_of(tmp_path, clock)
    take(first, 0, 10)

    def needed() -> SpanSet:
        take(first, 10, 20)  # by another thread, for what came meanwhile
        return SpanSet()

    first.keep(needed)
    assert spans(second.look()) == [(10, 20)]


def test_nobody_waits_for_less_urgent_work(tmp_path: Path) -> None:
    """A claim counts at its own priority and below."""
    clock = ManualClock()
    first, second = claims_of(tmp_path, clock), claims_of(tmp_path, clock)
    take(first, 0, 10, LOW)
    take(first, 20, 30, NORMAL)
    seen = second.look()
    assert spans(seen, LOW) == [(0, 10), (20, 30)]
    assert spans(seen, NORMAL) == [(20, 30)]
    assert spans(seen, 0) == []


@pytest.mark.parametrize("passed_s", [CLAIM_S, -10 * CLAIM_S])
def test_claim_expires_also_where_the_clock_was_set_back(tmp_path: Path, passed_s: float) -> None:
    """A stopped process is waited for no longer than that; nor is one whose claims are from the future."""
    clock = ManualClock()
    first, second = claims_of(tmp_path, clock), claims_of(tmp_path, clock)
    take(first, 0, 10)
    clock.wall_us += int(passed_s * 1e6)
    assert spans(second.look()) == []


@pytest.mark.parametrize("data", [b"[[", b"{}", b"\x00" * 64, b'[["x"]]'])
def test_claims_file_that_was_cut_says_nothing(tmp_path: Path, data: bytes) -> None:
    """It is written anew by the next claim."""
    clock = ManualClock()
    first, second = claims_of(tmp_path, clock), claims_of(tmp_path, clock)
    take(first, 0, 10)
    (tmp_path / KEY).write_bytes(data)
    assert spans(take(second, 0, 10)) == []
    assert spans(first.look()) == [(0, 10)]


def _claim_and_wait(folder: Path, is_claimed: Event) -> None:
    clock = SystemClock()
    claims_module.CLAIM_S = 60.0
    Claims(LocalFiles(folder, clock), KEY, clock).take(NORMAL, lambda _: Span(0, 10))
    is_claimed.set()
    signal.pause()


@pytest.mark.skipif(os.name == "nt", reason="no signals to kill with")
def test_claim_of_a_killed_process_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it lives its claim counts."""
    monkeypatch.setattr(claims_module, "CLAIM_S", 60.0)  # not gone because its time is over, however slow this is
    is_claimed = CONTEXT.Event()
    holder = process(_claim_and_wait, tmp_path, is_claimed)
    holder.start()
    clock = SystemClock()
    mine = Claims(LocalFiles(tmp_path, clock), KEY, clock)
    try:
        assert is_claimed.wait(60)
        assert spans(mine.look()) == [(0, 10)]
        holder.kill()
        holder.join(20)
        assert spans(mine.look()) == []
    finally:
        holder.kill()
        holder.join(20)


def test_without_locks_everybody_fetches_for_himself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is made, nothing is seen, and the choice is made all the same."""
    monkeypatch.setattr(SeriesLocks, "has_kernel_locks", lambda self: False)
    first, second = claims_of(tmp_path), claims_of(tmp_path)
    assert spans(take(first, 0, 10)) == []
    assert spans(take(second, 0, 10)) == []
    assert spans(second.look()) == []
    assert not relies(first, Span(0, 10), LOW)
    second.release([Span(0, 10)])
    assert not (tmp_path / KEY).exists()


def test_file_that_cannot_be_looked_at_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk's error of the moment ends no fetch: the claim is taken anew."""
    claims = claims_of(tmp_path)
    take(claims, 0, 10)

    def refuse(path: str) -> os.stat_result:
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(files.os, "stat", refuse)
    assert not relies(claims, Span(0, 10), LOW)


@pytest.mark.skipif(disk.fcntl is None, reason="no kernel locks to hold")
def test_stopped_holder_stops_nobody(tmp_path: Path) -> None:
    """A file that cannot be had at once is done without."""
    first = claims_of(tmp_path, SystemClock())  # type: ignore[arg-type]
    take(first, 0, 10)
    with (tmp_path / KEY).open("r+b") as file:
        disk.fcntl.flock(file, disk.fcntl.LOCK_EX)
        assert spans(take(claims_of(tmp_path), 0, 10)) == []
