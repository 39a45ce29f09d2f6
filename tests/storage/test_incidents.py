"""What went wrong on disk, kept and logged."""

from __future__ import annotations

import logging

import pytest

from backbone.storage.incidents import Incident, Incidents
from backbone.testing import ManualClock
from tests.storage.helpers import MAY


def test_incidents_are_kept_in_order_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Each incident has the time of its clock; the log names the kind as an event."""
    incidents = Incidents(ManualClock(MAY))
    with caplog.at_level(logging.WARNING):
        incidents.record("flush-failed", "a", "the disk is full")
        incidents.record("quarantined", "b", "cut")
    assert incidents.list() == [
        Incident("flush-failed", "a", "the disk is full", MAY),
        Incident("quarantined", "b", "cut", MAY),
    ]
    assert [record.message.split()[0] for record in caplog.records] == ["store.flush_failed", "store.quarantined"]


def test_incidents_are_bounded() -> None:
    """A disk that fails all day does not fill the memory: the newest thousand stay."""
    incidents = Incidents(ManualClock(MAY))
    for i in range(1100):
        incidents.record("damaged", str(i), "")
    assert [one.path for one in incidents.list()] == [str(i) for i in range(100, 1100)]
