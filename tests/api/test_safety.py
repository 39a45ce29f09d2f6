"""What a client must never do, whatever the venue, the folder or a caller's words are like."""

from __future__ import annotations

import ast
import json
import pickle
import ssl
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import backbone
from backbone import Backbone
from backbone.api.calls.status import Health
from backbone.api.calls.store import StoreView
from backbone.errors import BackboneError, IncompleteError, InputError, UnreachableError
from backbone.simulator import SimulatorServer
from backbone.simulator.cli import run as run_simulator
from tests.routing.test_rest import Venue, reply

LIMIT = 500  # the quota is not what is tested here

EVIL = '<img src=x onerror="alert(1)">&'
LEAVING = [
    "../../KRW-BTC", "KRW-../../../etc/passwd", "KRW-BTC/../../x", "/etc/passwd", "KRW-BTC\0", "KRW-\nBTC", "..-..",
    "C:\\KRW-BTC", "KRW-%2e%2e%2f", "KRW-BTC ; rm", "~root-BTC", "KRW-..", "KRW-.", "con-KRW\\..\\x",
]  # fmt: skip


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.1", "example.org", "localhost.example.org"])
def test_simulator_listens_on_loopback_only(host: str) -> None:
    """The embedded exchange cannot be opened to a network, from code or from the command line."""
    with pytest.raises(InputError, match="loopback"):
        SimulatorServer(host=host)


def test_simulator_is_bound_to_loopback(shared_venue: SimulatorServer) -> None:
    """What it listens on is a loopback socket; the command line has no option for another."""
    listener = shared_venue._listener
    assert listener is not None
    assert {listening.getsockname()[0] for listening in listener.sockets} == {"127.0.0.1"}
    with pytest.raises(SystemExit):
        run_simulator(["--host", "0.0.0.0"])


@pytest.mark.parametrize("market", LEAVING)
def test_market_name_cannot_leave_the_data_folder(tmp_path: Path, market: str) -> None:
    """No call with such a name makes, reads or moves a file outside the folder, or asks the venue anything."""
    home = tmp_path / "home"
    with Backbone(data_dir=home / "data", rest_url="http://127.0.0.1:9") as client:
        calls: list[Callable[[], Any]] = [
            lambda: client.candles(market, "1m", count=1),
            lambda: client.candles([market], "1m", count=1, offline=True),
            lambda: client.backfill(market, "1m", "2024-01"),
            lambda: client.coverage(market),
            lambda: client.explain(market),
            lambda: client.store.verify(market),
            lambda: client.store.revisions(market),
            lambda: client.store.outages(markets=[market]),
            lambda: client.scan([market]),
            lambda: client.files([market]),
            lambda: client.trades(market),
            lambda: client.orderbooks(market),
            lambda: client.live(market),
        ]
        for call in calls:
            with pytest.raises(InputError):
                call()
    assert [path for path in tmp_path.rglob("*") if home / "data" not in (path, *path.parents) and path != home] == []


def test_market_names_of_a_hostile_venue_stay_in_the_folder(tmp_path: Path) -> None:
    """A venue that lists a market by such a name gets no file by it either."""
    listed = [{"market": m, "korean_name": EVIL, "english_name": EVIL} for m in ("KRW-BTC", "KRW-..", "..-..")]
    server = Venue()
    server.script = lambda head: reply(body=json.dumps(listed).encode())
    try:
        with Backbone(data_dir=tmp_path / "data", rest_url=server.url) as client:
            assert "KRW-.." in client.markets().index
            for market in ("KRW-..", "..-.."):
                with pytest.raises(BackboneError):
                    client.candles(market, "1m", "2024-01-01", "2024-01-02")
    finally:
        server.close()
    assert list(tmp_path.rglob("*.parquet")) == []


def test_data_folder_is_made_for_the_memo_alone_with_private_rights(tmp_path: Path) -> None:
    """Frames are unpickled from a folder that no other user can enter or write to."""
    from backbone.storage.memo import FrameMemo

    memo = FrameMemo(tmp_path / "memo")
    memo.keep(("key",), 1)
    assert stat.S_IMODE((tmp_path / "memo").stat().st_mode) == 0o700


# ------------------------------------------------------------------------------------------------------------- HTML


@pytest.fixture
def evil_client(shared_venue: SimulatorServer, tmp_path: Path) -> Iterator[Backbone]:
    """A client whose folder and whose markets' names are hostile."""
    folder = tmp_path / EVIL.replace("/", "")
    with Backbone(data_dir=folder, rest_url=shared_venue.rest_url, ws_url=shared_venue.ws_url) as client:
        core = client.session.coordinator()
        listed = core.markets.listed()
        evil = tuple(
            msgspec.structs.replace(one, korean_name=EVIL, english_name=EVIL, cautions=(EVIL,)) for one in listed
        )
        core.markets.note(evil)
        yield client


def _html_of(client: Backbone) -> dict[str, str]:
    """The HTML of everything that shows itself."""
    found: dict[str, Any] = {
        "Backbone": client,
        "StoreView": client.store,
        "Health": Health("degraded", (EVIL, "the disk")),
        "Plan": client.explain("KRW-BTC", "1h", "2025-08-21", "2025-08-22"),
        "Job": client.backfill("KRW-BTC", "1h", "2025-08-21", "2025-08-22").wait(progress=False),
    }
    found["Job"]._job.markets = (EVIL,)
    html = {name: one._repr_html_() for name, one in found.items()}
    with client.live(["KRW-BTC", "KRW-ETH"]) as table:
        html["LiveTable"] = table._repr_html_()
    with client.serve_metrics(0) as server:
        html["MetricsServer"] = server._repr_html_()
    return html


def test_html_of_everything_escapes_what_others_wrote(evil_client: Backbone) -> None:
    """Names from the venue, folders and error texts are text in every table and repr, never markup."""
    shown = _html_of(evil_client)
    for name, html in shown.items():
        assert "<img" not in html, name
        assert 'onerror="' not in html, name
    assert "&lt;img" in shown["Backbone"] + shown["StoreView"]


def test_html_of_everything_is_looked_at() -> None:
    """A class that shows itself as HTML is in the test above, or has its own in the widgets' tests."""
    looked_at = {"Backbone", "StoreView", "Health", "Plan", "Job", "LiveTable", "MetricsServer"}
    package = Path(backbone.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        if "notebook" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
                if "_repr_html_" in names:
                    found.add(node.name)
    assert found <= looked_at, f"not shown to escape what others wrote: {found - looked_at}"
    assert StoreView.__name__ in found


# ------------------------------------------------------------------------------------------------- TLS and secrets


@pytest.fixture
def authority() -> Any:
    """A certificate authority of our own."""
    return pytest.importorskip("trustme", reason="trustme is not installed").CA()


def tls_venue(authority: Any, name: str) -> Venue:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    server = Venue(context)
    server.script = lambda head: reply(body=b'[{"market":"KRW-BTC","korean_name":"b","english_name":"b"}]')
    return server


def test_tls_of_an_unknown_authority_is_refused(authority: Any, tmp_path: Path) -> None:
    """A client sends nothing to a venue whose certificate no known authority signed."""
    server = tls_venue(authority, "localhost")
    try:
        with Backbone(data_dir=tmp_path, rest_url=server.url) as client, pytest.raises(UnreachableError) as caught:
            client.markets()
        assert "certificate" in str(caught.value).lower()
        assert server.requests == []
    finally:
        server.close()


@pytest.mark.parametrize(("name", "is_right"), [("localhost", True), ("api.upbit.com", False)])
def test_tls_of_a_trusted_authority_must_be_of_the_host(
    authority: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_right: bool
) -> None:
    """A bundle named in the environment is used, and the certificate must name the host that was asked."""
    bundle = tmp_path / "bundle.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    server = tls_venue(authority, name)
    try:
        with Backbone(data_dir=tmp_path / "data", rest_url=server.url) as client:
            if is_right:
                assert client.markets().index.tolist() == ["KRW-BTC"]
            else:
                with pytest.raises(UnreachableError):
                    client.markets()
                assert server.requests == []
    finally:
        server.close()


def test_nothing_secret_is_needed_sent_or_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, cookie or origin is sent, although the machine has some; nothing of them is pickled or shown."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login me password sesame\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("BACKBONE_QUOTA_PASSWORD", "sesame")
    monkeypatch.setenv("UPBIT_OPEN_API_SECRET_KEY", "sesame")
    server = Venue()
    listed = b'[{"market":"KRW-BTC","korean_name":"b","english_name":"b"}]'
    server.script = lambda head: reply(body=listed, Set_Cookie="id=sesame; Path=/")
    try:
        with Backbone(data_dir=tmp_path / "data", rest_url=server.url) as client:
            client.markets()
            with pytest.raises((BackboneError, IncompleteError)):
                client.tickers("KRW-BTC", max_age=0)
            shown = repr(client) + client._repr_html_() + repr(client.session.settings) + repr(client.status().attrs)
            assert b"sesame" not in pickle.dumps(client)
            assert "sesame" not in shown
    finally:
        server.close()
    heads = "\n".join(head for _, head in server.requests).lower()
    assert heads
    for word in ("authorization", "cookie", "origin:", "sesame", "referer"):
        assert word not in heads
    kept = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert b"sesame" not in kept
