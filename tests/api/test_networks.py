"""Networks as people have them: one kind of address only, names that do not resolve for a while, pages to sign in."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from backbone import Backbone
from backbone.clock import SystemClock
from backbone.errors import BackboneError, SourceError, UnreachableError
from backbone.routing.websocket import Connection
from backbone.simulator import SimulatorServer
from tests.routing.http_venue import Venue, reply
from tests.routing.socket_venue import eventually

LIMIT = 500  # the quota is not what is tested here
NOW = "2025-08-22T09:00:00Z"
SPAN = ("2025-08-20T00:00Z", "2025-08-21T00:00Z")
NAME = "venue.example"

real_getaddrinfo = socket.getaddrinfo


def answered(client: Backbone) -> None:
    """REST at both priorities, and the socket."""
    assert len(client.candles("KRW-BTC", "1h", *SPAN)) == 24
    assert client.tickers("KRW-BTC", priority="critical", max_age=0).index.tolist() == ["KRW-BTC"]
    with client.live("KRW-BTC") as table:
        eventually(lambda: table.state == "streaming")


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Make `NAME` resolve to some addresses, in this order; none is a name that cannot be resolved."""

    def name(addresses: list[str]) -> None:
        def resolve(host: Any, port: Any, *args: Any, **words: Any) -> Any:
            if host != NAME:
                return real_getaddrinfo(host, port, *args, **words)
            if not addresses:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            return [
                found for address in addresses for found in real_getaddrinfo(address, port, type=socket.SOCK_STREAM)
            ]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)

    return name


def client_of(server: SimulatorServer, folder: Path) -> Backbone:
    port = server.rest_url.rpartition(":")[2]
    return Backbone(data_dir=folder, rest_url=f"http://{NAME}:{port}", ws_url=f"ws://{NAME}:{port}/websocket/v1")


@pytest.fixture
def tunnel(venue: SimulatorServer) -> Iterator[int]:
    """The port of a proxy that leads each CONNECT to the exchange, whatever host it names."""
    stop, ends = threading.Event(), ExitStack()
    place = urlsplit(venue.rest_url)

    def carry(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)

    def serve(peer: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += peer.recv(4096)
        assert head.startswith(f"CONNECT {NAME}:".encode())
        there = ends.enter_context(socket.create_connection((place.hostname or "", place.port or 0)))
        peer.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=carry, args=(there, peer), daemon=True).start()
        carry(peer, there)

    def accept() -> None:
        while not stop.is_set():
            with suppress(OSError):
                peer = ends.enter_context(listener.accept()[0])
                threading.Thread(target=serve, args=(peer,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener, ends:
        listener.settimeout(0.1)
        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def six() -> Iterator[SimulatorServer]:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with SimulatorServer(seed=7, now=NOW, frozen=True, host="::1", limit=500) as server:
        yield server


@pytest.mark.parametrize("addresses", [["::1"], ["127.0.0.1", "::1"], ["::1", "127.0.0.1"]])
def test_venue_that_listens_on_ipv6_only_is_reached(
    six: SimulatorServer, tmp_path: Path, named: Callable[[list[str]], None], addresses: list[str]
) -> None:
    """By its address, and by a name that has one of each kind."""
    named(addresses)
    with client_of(six, tmp_path / "by name") as client:
        answered(client)
    if len(addresses) == 1:
        with Backbone(data_dir=tmp_path / "by address", rest_url=six.rest_url, ws_url=six.ws_url) as client:
            answered(client)


KINDS_OF_NO = pytest.mark.parametrize(
    "code", [errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.EHOSTUNREACH, errno.EAFNOSUPPORT, errno.ETIMEDOUT]
)


@KINDS_OF_NO
def test_machine_without_ipv6_reaches_a_name_that_has_both(
    venue: SimulatorServer,
    tmp_path: Path,
    named: Callable[[list[str]], None],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    """However the system refuses the first address (containers have names for ::1 and no such address)."""
    named(["::1", "127.0.0.1"])
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> Any:
        if self.family == socket.AF_INET6:
            raise OSError(code, "no IPv6 here")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with client_of(venue, tmp_path) as client:
        answered(client)


@KINDS_OF_NO
def test_socket_tries_each_address_of_a_proxy(
    venue: SimulatorServer, tunnel: int, named: Callable[[list[str]], None], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """As of the venue itself: a proxy's name that has an address of each kind, of which one leads nowhere."""
    connect, tried = socket.socket.connect, []

    def refuse(self: socket.socket, address: Any) -> Any:
        tried.append(self.family)
        if self.family == socket.AF_INET6:
            raise OSError(code, "no IPv6 here")
        return connect(self, address)

    named(["::1", "127.0.0.1"])
    monkeypatch.setattr("backbone.routing.websocket.proxy_of", lambda url: f"http://{NAME}:{tunnel}")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(f"ws://{NAME}:80/websocket/v1", SystemClock(), theirs)
        connection.open()
        assert tried[:2] == [socket.AF_INET6, socket.AF_INET]
        connection.send(b'[{"ticket":"t"},{"type":"ticker","codes":["KRW-BTC"]}]')
        eventually(lambda: any(b"KRW-BTC" in payload for _, payload in connection.receive(1.0)))
        connection.close()


def test_name_that_resolves_again_after_a_while_is_used(
    venue: SimulatorServer, tmp_path: Path, named: Callable[[list[str]], None]
) -> None:
    """A call outlasts a short failure; a long one is one error, after which all works again."""
    named([])
    timer = threading.Timer(0.1, named, [["127.0.0.1"]])
    with client_of(venue, tmp_path) as client:
        timer.start()
        assert len(client.candles("KRW-BTC", "1h", *SPAN)) == 24
        timer.join()
    named([])
    with client_of(venue, tmp_path / "other") as client:
        with pytest.raises(UnreachableError, match="name resolution") as caught:
            client.candles("KRW-BTC", "1h", *SPAN)
        assert NAME in str(caught.value)
        named(["127.0.0.1"])
        answered(client)


def test_table_comes_back_when_its_name_resolves_again(
    venue: SimulatorServer, tmp_path: Path, named: Callable[[list[str]], None]
) -> None:
    """The connection and the name are lost; the name comes back, and so does the stream, by itself."""
    named(["127.0.0.1"])
    with client_of(venue, tmp_path) as client, client.live("KRW-BTC") as table:
        eventually(lambda: table.state == "streaming")
        named([])
        venue.pause()
        venue.resume()
        eventually(lambda: table.state != "streaming")
        eventually(lambda: "name resolution" in client.status().attrs["backbone"]["stream"]["last_error"])
        named(["127.0.0.1"])
        eventually(lambda: table.state == "streaming")


PAGE = b"<!DOCTYPE html><html><head><title>Hotel WiFi</title></head><body>Please sign in</body></html>"
PORTALS = {
    "page": lambda head: reply(200, PAGE, Content_Type="text/html", Date="Fri, 22 Aug 2031 09:00:00 GMT"),
    "redirect": lambda head: reply(302, b"", Location="http://login.hotel.example/?u=1"),
}
CALLS: dict[str, Callable[[Backbone], Any]] = {
    "candles": lambda client: client.candles("KRW-BTC", "1h", *SPAN),
    "candles critical": lambda client: client.candles("KRW-BTC", "1h", count=3, priority="critical"),
    "candles forming": lambda client: client.candles("KRW-BTC", "1h", count=3, include_forming=True),
    "backfill": lambda client: client.backfill("KRW-BTC", "1h", *SPAN).wait(progress=False).result(),
    "tickers": lambda client: client.tickers("KRW-BTC"),
    "tickers of all": lambda client: client.tickers("KRW"),
    "books": lambda client: client.orderbooks("KRW-BTC"),
    "trades": lambda client: client.trades("KRW-BTC", 5),
    "trades critical": lambda client: client.trades("KRW-BTC", 5, priority="critical"),
    "markets": lambda client: client.markets(),
    "live": lambda client: client.live("KRW-BTC"),
}


@pytest.fixture(scope="module")
def portal() -> Iterator[Venue]:
    server = Venue()
    yield server
    server.close()


@pytest.mark.parametrize("kind", PORTALS)
@pytest.mark.parametrize("call", CALLS)
def test_page_to_sign_in_is_named_on_every_call(portal: Venue, tmp_path: Path, kind: str, call: str) -> None:
    """An error of the tree that says so; nothing of the page is stored, and its clock is not the venue's."""
    portal.script = PORTALS[kind]
    with Backbone(data_dir=tmp_path, rest_url=portal.url) as client:
        with pytest.raises(BackboneError) as caught:
            CALLS[call](client)
        causes = [caught.value, *getattr(caught.value, "causes", ())]
        assert any(isinstance(cause, SourceError) and "sign in" in str(cause) for cause in causes), causes
        assert "Hotel" not in str(caught.value)
        assert client.session.coordinator().venue.offset_s() is None
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("kind", PORTALS)
def test_page_to_sign_in_on_the_socket_is_named_and_left_behind(
    venue: SimulatorServer, portal: Venue, tmp_path: Path, kind: str
) -> None:
    """REST works, the socket's address answers with a page: the table is fed by REST and says why."""
    portal.script = PORTALS[kind]
    url = portal.url.replace("http", "ws")
    with (
        Backbone(data_dir=tmp_path, rest_url=venue.rest_url, ws_url=f"{url}/websocket/v1") as client,
        client.live("KRW-BTC") as table,
    ):
        eventually(lambda: table.frame().index.tolist() == ["KRW-BTC"])
        assert table.state != "streaming"
        eventually(lambda: "sign in" in str(client.status().attrs["backbone"]["stream"]))
