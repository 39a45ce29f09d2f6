"""The client itself: what making and ending it does, what its copy elsewhere is, and what its calls share."""

from __future__ import annotations

import inspect
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

from backbone import Backbone
from backbone.errors import ClosedError, IncompleteError
from backbone.simulator import SimulatorServer

LIMIT = 500  # the quota is not what is tested here
START, END = "2025-08-20T00:00:00Z", "2025-08-20T01:00:00Z"


def facts(frame: Any) -> dict[str, Any]:
    return frame.attrs["backbone"]


def test_client_is_cheap_to_make_and_ends_cleanly(tmp_path: Path) -> None:
    """Constructing starts nothing; a closed client says so; closing twice is fine."""
    before = threading.active_count()
    client = Backbone(data_dir=tmp_path / "none")
    assert threading.active_count() == before
    assert not (tmp_path / "none").exists()
    client.close()
    client.close()
    with pytest.raises(ClosedError):
        client.candles("KRW-BTC", "1m", count=1)


def test_client_pickles_to_its_settings(client: Backbone) -> None:
    """A pickled client is the same client elsewhere, with nothing open."""
    client.candles("KRW-BTC", "1m", START, END)
    with pickle.loads(pickle.dumps(client)) as twin:
        assert (twin.data_dir, twin.tz, twin.exchange) == (client.data_dir, client.tz, client.exchange)
        assert facts(twin.candles("KRW-BTC", "1m", START, END))["requests"] == 0


def test_client_of_another_host_never_mixes_its_candles(client: Backbone, venue: SimulatorServer) -> None:
    """Candles of an overridden host are kept apart from the exchange's own, and the repr names it."""
    client.candles("KRW-BTC", "1m", START, END)
    assert venue.rest_url in repr(client)
    folders = {path.name for path in (client.data_dir / "candles").iterdir()}
    assert all(name.startswith("exchange=upbit-at-127.0.0.1-") for name in folders)
    with Backbone(data_dir=client.data_dir) as own, pytest.raises(IncompleteError):
        own.candles("KRW-BTC", "1m", START, END, offline=True)


@pytest.mark.parametrize("name", ["candles", "tickers", "orderbooks", "trades"])
def test_data_call_takes_the_words_that_all_of_them_take(name: str) -> None:
    """Priority and frames, by keyword only, on each of the four."""
    words = inspect.signature(getattr(Backbone, name)).parameters
    for word in ("priority", "frames"):
        assert words[word].kind is inspect.Parameter.KEYWORD_ONLY


def test_client_is_shared_between_threads(client: Backbone, venue: SimulatorServer) -> None:
    """Many threads that ask for the same get the same, and one request is sent for all."""
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(client.candles("KRW-BTC", "1m", START, END))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8
    assert all(frame.equals(found[0]) for frame in found)
    sent = venue.counts()["candles"][200]  # a second one where the page was short
    assert sent == max(facts(frame)["requests"] for frame in found) <= 2  # who comes late finds it stored
