"""What calls get from the session: times read once, on one clock; and what ends with the client, ends once."""

from __future__ import annotations

from pathlib import Path

import pytest

from backbone.api.session import Session
from backbone.errors import ClosedError, InputError
from backbone.settings import resolve

MARCH_US = 1_709_251_200_000_000  # 2024-03-01T00:00:00Z


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(resolve("upbit", data_dir=tmp_path, rest_url=None, ws_url=None, tz="Asia/Seoul", frames="pandas"))


class Table:
    def __init__(self) -> None:
        self.stops = 0

    def stop(self) -> None:
        self.stops += 1


def test_naive_times_are_in_the_clients_zone(session: Session) -> None:
    """Nine in the morning in Seoul is midnight UTC; a time with a zone is that instant."""
    assert session.time("start", "2024-03-01T09:00", may_ask=False) == MARCH_US
    assert session.time("start", "2024-03-01T00:00Z", may_ask=False) == MARCH_US


def test_start_end_and_count_together_are_refused(session: Session) -> None:
    """Any two of the three say what is meant."""
    with pytest.raises(InputError, match="leave one out"):
        session.range("2024-03-01", "2024-03-02", 5, may_ask=False)
    span = session.range("2024-03-01T09:00", "2024-03-01T10:00", None, may_ask=False)
    assert (span.start_us, span.end_us) == (MARCH_US, MARCH_US + 3_600_000_000)


def test_start_after_the_end_is_refused(session: Session) -> None:
    """Also where the end is now."""
    with pytest.raises(InputError, match="before the end"):
        session.range("2024-03-02", "2024-03-01", None, may_ask=False)
    with pytest.raises(InputError, match="now"):
        session.range("2199-01-01", None, None, may_ask=False)
    session.close()


def test_what_ends_with_the_client_ends_once(session: Session) -> None:
    """Tables stop, endings are called; closing again does nothing."""
    session.coordinator()  # only a client that did something has tables
    table, forgotten, ended = Table(), Table(), []
    session.remember_table(table)
    session.remember_table(forgotten)
    session.forget_table(forgotten)
    session.end_with(lambda: ended.append(1))
    session.close()
    session.close()
    assert (table.stops, forgotten.stops, ended) == (1, 0, [1])


def test_closed_session_ends_at_once_what_comes_late(session: Session) -> None:
    """A table that was opened while the client closed does not run on."""
    session.close()
    table, ended = Table(), []
    with pytest.raises(ClosedError):
        session.remember_table(table)
    with pytest.raises(ClosedError):
        session.end_with(lambda: ended.append(1))
    with pytest.raises(ClosedError):
        session.coordinator()
    assert (table.stops, ended) == (1, [1])
