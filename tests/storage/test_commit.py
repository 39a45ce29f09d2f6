"""What reaches the disk, and what a failure leaves. The rest is proven through the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backbone.errors import StoreError
from backbone.storage.coverage import EVER
from tests.storage.helpers import MAY, MINUTE, minutes, open_store, span


def test_every_series_is_tried_and_the_first_failure_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One series whose file refuses does not keep the others from the disk; its own pages stay."""
    store = open_store(tmp_path)
    for market in ("KRW-A", "KRW-B", "KRW-C"):
        store.put(market, MINUTE, minutes(0, 3), span(0, 3), now_us=MAY)
    replace = store._files.replace

    def refuse(key: str, data: Any) -> Any:
        if "KRW-B" in key:
            raise StoreError("the disk is full", path=key)
        return replace(key, data)

    with monkeypatch.context() as patched:
        patched.setattr(store._files, "replace", refuse)
        with pytest.raises(StoreError, match=r"disk is full\. 3 rows of KRW-B 1m stay in memory"):
            store.flush()
    assert (store.commits, store.pending_rows()) == (2, 3)
    assert [market for market, _ in open_store(tmp_path).series()] == ["KRW-A", "KRW-C"]
    store.flush()
    assert open_store(tmp_path).read("KRW-B", MINUTE, EVER).table.num_rows == 3
