"""A series at a moment: what is in memory on top of the files, by one look at the market's generation."""

from __future__ import annotations

from pathlib import Path

import pytest

from backbone.storage.coverage import EVER, SpanSet
from backbone.storage.files import LocalFiles, Version
from backbone.storage.generations import Generations, Note
from backbone.testing import ManualClock
from tests.storage.helpers import MAY, MINUTE, minutes, open_store, opens, span

BTC = "KRW-BTC"


def test_pages_in_memory_lie_on_the_files(tmp_path: Path) -> None:
    """The newest page alone answers where it has all of the span; else it replaces what the file has."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 20), span(0, 20), now_us=MAY)
    store.flush()
    store.put(BTC, MINUTE, minutes(10, 30, salt=1, every=2), span(10, 30), now_us=MAY)
    view = store.view(BTC, MINUTE)
    mixed, newest = view.read(span(5, 40)), view.read(span(12, 16))
    assert opens(mixed.table) == opens(minutes(5, 10)) + opens(minutes(10, 30, every=2))
    assert mixed.covered == view.covered(span(5, 40)) == SpanSet([span(5, 30)])
    assert newest.table.equals(minutes(12, 16, salt=1, every=2))
    assert (mixed.tiers, newest.tiers) == ({"memory": 15, "disk": 0}, {"memory": 2, "disk": 0})
    assert mixed.table.equals(store.read(BTC, MINUTE, span(5, 40)).table)


def test_generation_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many questions follow; the files are looked at for each."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 20), span(0, 20), now_us=MAY)
    store.flush()
    looked: list[str] = []
    stat = LocalFiles.stat

    def counted(self: LocalFiles, key: str) -> Version | None:
        looked.append(key.split("/")[0])
        return stat(self, key)

    monkeypatch.setattr(LocalFiles, "stat", counted)
    view = store.view(BTC, MINUTE)
    view.covered(span(0, 20))
    view.covered(span(10, 40))
    view.read(span(0, 5))
    assert looked.count("_generations") == 1
    assert looked.count("candles") >= 3


def test_nothing_is_held_while_files_are_moved_away(tmp_path: Path) -> None:
    """Neither what the files have nor what waits in memory; pages of an older generation do not count after it."""
    store = open_store(tmp_path)
    store.put(BTC, MINUTE, minutes(0, 20), span(0, 20), now_us=MAY)
    store.flush()
    store.put(BTC, MINUTE, minutes(20, 30), span(20, 30), now_us=MAY)
    generations = Generations(LocalFiles(tmp_path, ManualClock(MAY)), "upbit")
    before = store.view(BTC, MINUTE)
    assert generations.begin(BTC, "2024", (Note("redenominated", {}, "test"),), after=0)
    leaving = store.view(BTC, MINUTE)
    assert leaving.read(EVER).table.num_rows == 0
    assert not leaving.covered(EVER)
    assert before.covered(EVER) == SpanSet([span(0, 30)]), "one look, before it began"
    store.upkeep.end_move(BTC)
    assert not store.view(BTC, MINUTE).pages
    assert not store.view(BTC, MINUTE).covered(EVER)
