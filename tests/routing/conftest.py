"""Fixtures of the routing tests: recordings, a scripted server, clients of it, an environment without proxies."""

from collections.abc import Iterator

import pytest

from backbone.clock import SystemClock
from backbone.routing.rest import RestClient
from tests.recordings import recordings as recordings
from tests.routing.http_venue import Venue


@pytest.fixture
def venue() -> Iterator[Venue]:
    server = Venue()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def client(venue: Venue) -> Iterator[RestClient]:
    made = RestClient(venue.url, clock=SystemClock())
    yield made
    made.close()


@pytest.fixture
def hasty(venue: Venue) -> Iterator[RestClient]:
    made = RestClient(venue.url, clock=SystemClock(), timeout_s=(1.0, 0.3), total_s=0.6)
    yield made
    made.close()
