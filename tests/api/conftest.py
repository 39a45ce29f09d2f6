"""What the tests of this layer share."""

from __future__ import annotations

import pytest

from backbone.coordinator import scheduler


@pytest.fixture(autouse=True)
def hasty_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many retries as ever, soon after each other: how long a back-off is, the scheduler's own tests decide."""
    monkeypatch.setattr(scheduler, "_BACKOFF_S", (0.01, 0.2))
