"""The join: the critical connection stays warm, and a closed one is not reopened."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from backbone import Backbone
from backbone.coordinator import coordinator as fetch
from backbone.errors import ClosedError, IncompleteError
from backbone.routing.rest import Reply
from backbone.routing.wire import Ask
from backbone.simulator import SimulatorServer


def test_critical_connection_is_kept_warm_between_requests(
    client: Backbone, venue: SimulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a critical request its connection is looked after, so that the next one need not connect."""
    import threading

    monkeypatch.setattr(fetch, "_WARM_EVERY_S", 0.05)
    core = client.session.coordinator()
    warmed, warm = threading.Event(), core._critical.warm

    def seen() -> None:
        warm()
        warmed.set()

    monkeypatch.setattr(core._critical, "warm", seen)
    client.tickers("KRW-BTC", priority="critical")
    assert warmed.wait(5)
    assert venue.counts()["ticker"] == {200: 1}  # warming spends no request


def test_critical_lane_has_connections_of_its_own_and_ends_with_the_client(
    client: Backbone, venue: SimulatorServer
) -> None:
    """The urgent lane shares nothing with the bulk one."""
    core = client.session.coordinator()
    core._critical.warm()
    assert (core._critical.is_warm, core.rest.is_warm) == (True, False)
    client.close()
    for each in (core._critical, core.rest):
        with pytest.raises(ClosedError):
            each.warm()


def test_critical_request_with_a_deadline_is_sent_by_its_own_thread_once_a_connection_is_open(
    client: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first opens it in the background: connecting has no deadline. Later ones pass no queue."""
    import threading

    core = client.session.coordinator()
    senders, warmed = [], threading.Event()
    send, warm = core._critical.send, core._critical.warm

    def seen(ask: Ask) -> Reply:
        senders.append(threading.current_thread())
        return send(ask)

    def warming() -> None:
        warm()
        warmed.set()

    monkeypatch.setattr(core._critical, "send", seen)
    monkeypatch.setattr(core._critical, "warm", warming)
    client.tickers("KRW-BTC", priority="critical", timeout=20, max_age=0)
    assert warmed.wait(10)
    assert senders == []
    client.tickers("KRW-BTC", priority="critical", timeout=20, max_age=0)
    client.candles("KRW-BTC", "1m", count=5, priority="critical", timeout=20)
    assert senders == [threading.current_thread()] * len(senders)
    assert len(senders) >= 2


def test_critical_connection_is_left_alone_without_critical_requests(
    client: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who never asks critically pays for no second connection."""
    core = client.session.coordinator()
    client.tickers("KRW-BTC")
    assert core._warm_until_s is None


def test_candles_whose_page_meets_a_mistake_inside_end_with_an_error(
    client: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong while a page is taken in, the call ends, and a backfill too; nobody waits for ever."""

    def mistaken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(client.session.coordinator().store, "put", mistaken)
    with caplog.at_level(logging.CRITICAL, "backbone.scheduler"):
        with pytest.raises(IncompleteError, match="inside backbone"):
            client.candles("KRW-BTC", "1m", count=50)
        with pytest.raises(IncompleteError):
            client.backfill("KRW-BTC", "1m", "2025-08-20", "2025-08-21").result()
