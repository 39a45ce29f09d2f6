"""What the transport does on a network that fails: deadlines, bounds, warm connections, proxies, certificates."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from urllib3.util import connection

from backbone.clock import SystemClock
from backbone.errors import (
    PayloadError,
    UnreachableError,
)
from backbone.locks import RUN_LOCK, RunLock
from backbone.routing import http
from backbone.routing.rest import RestClient
from tests.routing.http_venue import ASK, Shifted, Venue, failure, reply

# --------------------------------------------------------------------------------------- no answer, or half


def cut(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n[1]")
    sock.shutdown(socket.SHUT_RDWR)


def cut_chunked(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1]\r\n")
    sock.shutdown(socket.SHUT_RDWR)


def hang_up(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_RDWR)


def drip_head(sock: socket.socket) -> None:
    for letter in b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX: " + b"y" * 1000:
        sock.sendall(bytes([letter]))
        time.sleep(0.02)


def drip_body(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n")
    for _ in range(1000):
        sock.sendall(b"1")
        time.sleep(0.02)


def no_bytes(sock: socket.socket) -> None:
    time.sleep(0.5)


def not_http(sock: socket.socket) -> None:
    sock.sendall(b"hello, who is there?\r\n\r\n")


@pytest.mark.parametrize("answer", [cut, cut_chunked, hang_up, drip_head, drip_body, no_bytes, not_http])
def test_no_whole_answer_is_unreachable_within_the_deadline(
    venue: Venue, hasty: RestClient, answer: Callable[[socket.socket], None]
) -> None:
    """Cut, dripping, missing and foreign answers end in one error, in bounded time, after one request."""
    venue.script = lambda head: answer
    started = time.monotonic()
    error = failure(hasty)
    assert isinstance(error, UnreachableError)
    assert time.monotonic() - started < 10.0, "it would drip for twenty seconds"
    assert (error.market, error.reply_facts.group, error.reply_facts.date_us) == ("KRW-BTC", None, None)
    assert len(venue.requests) == 1


def test_drip_within_the_read_timeout_ends_at_the_total_deadline(venue: Venue) -> None:
    """Each byte is in time, the whole is not: the deadline holds."""
    venue.script = lambda head: drip_body
    client = RestClient(venue.url, clock=SystemClock(), timeout_s=(5.0, 30.0), total_s=0.3)
    started = time.monotonic()
    assert isinstance(failure(client), UnreachableError)
    assert 0.25 < time.monotonic() - started < 10.0
    client.close()


def test_stall_within_the_read_timeout_ends_at_the_total_deadline(venue: Venue) -> None:
    """A read may not wait longer than what is left of the whole."""
    quiet = threading.Event()
    venue.script = lambda head: lambda sock: (sock.sendall(b"HTTP/1.1 200 OK\r\n"), quiet.wait(30))[0]
    client = RestClient(venue.url, clock=SystemClock(), timeout_s=(5.0, 30.0), total_s=0.3)
    started = time.monotonic()
    assert isinstance(failure(client), UnreachableError)
    assert time.monotonic() - started < 10.0
    quiet.set()
    client.close()


def test_others_have_their_turn_while_the_network_is_waited_for(
    venue: Venue, client: RestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a connection, and for an answer."""
    monkeypatch.setattr(RunLock, "PATIENCE_S", 5.0)
    connect, seen = connection.create_connection, list[bool]()

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(RUN_LOCK.is_held)
        return connect(*args, **options)

    def another(head: str) -> bytes:
        with RUN_LOCK.running():
            seen.append(RUN_LOCK.is_held)
        return reply()

    monkeypatch.setattr(connection, "create_connection", watched)
    venue.script = another
    with RUN_LOCK.running():
        client.send(ASK)
        assert RUN_LOCK.is_held
    assert seen == [False, True]


def test_error_inside_another_handler_still_names_its_own_cause() -> None:
    """What the caller was handling is not taken for the reason."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    client = RestClient(f"http://127.0.0.1:{port}", clock=SystemClock())
    try:
        raise KeyError("unrelated")
    except KeyError:
        assert "unrelated" not in str(failure(client))
    client.close()


def test_body_beyond_the_bound_is_a_payload_error(
    venue: Venue, client: RestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No body grows without end, compressed or not."""
    monkeypatch.setattr(http, "BODY_BYTES", 1 << 20)
    plain = b"[" + b"1," * (1 << 20)
    for answer in (reply(body=plain), reply(body=gzip.compress(plain), Content_Encoding="gzip")):
        venue.script = lambda head, answer=answer: answer
        assert isinstance(failure(client), PayloadError)


def test_body_with_a_false_encoding_is_a_payload_error(venue: Venue, client: RestClient) -> None:
    """What says gzip and is not is rejected."""
    venue.script = lambda head: reply(body=b"[1,2,3,4,5,6,7,8]", Content_Encoding="gzip")
    assert isinstance(failure(client), PayloadError)


def test_body_packed_in_several_parts_is_read(venue: Venue, client: RestClient) -> None:
    """Each part of a compressed body may end by itself."""
    venue.script = lambda head: reply(body=gzip.compress(b"[1,") + gzip.compress(b"2]"), Content_Encoding="gzip")
    assert client.send(ASK).value == [1, 2]


def test_body_whose_encoding_is_cut_is_a_payload_error(venue: Venue, client: RestClient) -> None:
    """Half a compressed body says nothing, nor does one with something behind it."""
    whole = gzip.compress(b"[1]")
    for body in (whole[:-9], whole + b"more"):
        venue.script = lambda head, body=body: reply(body=body, Content_Encoding="gzip")
        assert isinstance(failure(client), PayloadError)


def sends(data: bytes, *, hang_up: bool = False) -> Callable[[socket.socket], None]:
    def answer(sock: socket.socket) -> None:
        sock.sendall(data)
        if hang_up:
            sock.shutdown(socket.SHUT_RDWR)

    return answer


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        (sends(OK + b"Content-Length: 3\r\n\r\n[1]"), 1),
        (sends(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[1\r\n1\r\n]\r\n0\r\n\r\n"), 1),
        (sends(b"HTTP/1.1 103 Early Hints\r\nContent-Encoding: br\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\n[1]"), 1),
        (sends(b"HTTP/1.1 200 OK\nContent-Length: 3\n\n[1]"), 1),
        (sends(OK + b"\r\n[1]", hang_up=True), 2),
        (sends(OK + b"Content-Length: 3\r\nConnection: close\r\n\r\n[1]"), 2),
        (sends(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n[1]"), 2),
        (sends(OK + b"Content-Length: 3\r\n\r\n[1]and more"), 2),
        (sends(OK + b"Content-Length: 3\r\n\r\n[1]" + OK + b"Content-Length: 3\r\n\r\n[2]"), 2),
    ],
    ids=[
        "length",
        "chunked",
        "announced",
        "bare line ends",
        "until closed",
        "close",
        "old",
        "garbage behind",
        "an answer behind",
    ],
)
def test_every_form_of_an_answer_is_read(
    venue: Venue, client: RestClient, answer: Callable[[socket.socket], None], connections: int
) -> None:
    """The connection is used again where the answer's end is sure and nothing lies behind it."""
    venue.script = lambda head: answer
    assert [client.send(ASK).value for _ in range(2)] == [[1], [1]]
    assert venue.connections == connections


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",
        OK + b"X: " + b"y" * (80 << 10),
        OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n[1]",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
    ],
    ids=["upgrade", "endless headers", "two lengths", "announced only"],
)
def test_what_is_no_answer_is_unreachable(venue: Venue, client: RestClient, data: bytes) -> None:
    """An error of ours names the address, whatever came."""
    venue.script = lambda head: sends(data, hang_up=True)
    error = failure(client)
    assert isinstance(error, UnreachableError)
    assert venue.url in str(error)


def test_threads_that_send_first_share_one_pool(venue: Venue, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is made once, however many come before it is there."""
    made: list[str] = []
    make = http.Transport._make_pool

    def slow(self: http.Transport, url: str) -> Any:
        made.append(url)
        time.sleep(0.05)
        return make(self, url)

    monkeypatch.setattr(http.Transport, "_make_pool", slow)
    client = RestClient(venue.url, clock=SystemClock())
    threads = [threading.Thread(target=client.send, args=(ASK,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(venue.requests)) == (1, 4)
    client.close()


# ----------------------------------------------------------------------------------------- warm connections


def test_warm_opens_one_connection_without_a_request(venue: Venue, client: RestClient) -> None:
    """Warming twice opens once, and the request that follows finds the connection open."""
    client.warm()
    client.warm()
    assert (venue.await_connections(1), venue.requests) == (1, [])
    client.send(ASK)
    client.warm()
    assert (venue.connections, len(venue.requests)) == (1, 1)


def test_connection_that_is_looked_at_is_lent_to_nobody(
    venue: Venue, client: RestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look at a secure connection may be to read from it: a request that had it then would miss a byte."""
    client.send(ASK)
    pool = client._open_transport()._pool
    looked: list[bool] = []

    def look(connection: Any) -> bool:
        looked.append(connection in pool.pool.queue)
        return True

    monkeypatch.setattr(http._Timed, "is_connected", property(look))
    assert client.is_warm
    assert looked == [False]
    assert any(each is not None for each in pool.pool.queue), "it is back"
    client.close()
    assert not client.is_warm


def test_connection_idle_for_long_is_not_used_again(venue: Venue) -> None:
    """Beyond the age at which servers hang up, a fresh connection is opened up front; warming renews it as well."""
    clock = Shifted()
    client = RestClient(venue.url, clock=clock)
    client.send(ASK)
    clock.ahead_s += http.IDLE_S - 5
    client.send(ASK)
    assert venue.connections == 1
    clock.ahead_s += http.IDLE_S + 5
    client.send(ASK)
    assert venue.connections == 2
    clock.ahead_s += http.IDLE_S + 5
    client.warm()
    assert venue.await_connections(3) == 3
    client.close()


def test_connection_that_the_server_closed_costs_no_request(venue: Venue, client: RestClient) -> None:
    """A hang-up between two requests is noticed before the second is sent."""
    client.send(ASK)
    venue.hang_up()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and venue.connections == 1:
        assert client.send(ASK).value == [1]
    assert venue.connections == 2


# ---------------------------------------------------------------------------------------------- environment


def test_proxy_of_the_environment_is_asked_once(venue: Venue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy set before the first request is used for good; one set later is not noticed."""
    monkeypatch.setenv("HTTP_PROXY", venue.url)
    client = RestClient("http://venue.invalid", clock=SystemClock())
    client.warm()
    assert venue.connections == 0
    client.send(ASK)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    client.send(ASK)
    assert [head.split("\r\n")[0] for _, head in venue.requests] == ["GET http://venue.invalid/v1/x HTTP/1.1"] * 2
    client.close()


@pytest.mark.parametrize("proxy", ["", "http://Proxy.Corp:3128", "HTTP://kim:s@proxy:3128/", "proxy:3128"])
def test_deadlines_hold_through_every_proxy(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However its address is spelled, connections are those that keep a total time and an age."""
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("https_proxy", proxy)
    transport = http.Transport("https://venue.invalid", SystemClock(), (1.0, 2.0), 7.0, 4)
    pool = transport._open_pool("https://venue.invalid/v1/x")
    assert pool.ConnectionCls.total_s == 7.0
    transport.close()


@pytest.mark.parametrize(
    ("base_url", "host"),
    [
        ("http://kim:s3cret@Venue.invalid:8080", "venue.invalid:8080"),
        ("http://venue.invalid:80", "venue.invalid"),
        ("http://venue.invalid:443", "venue.invalid:443"),
        ("http://[2001:db8::80]", "[2001:db8::80]"),
        ("http://거래소.invalid", "xn--v69ap5so3h.invalid"),
    ],
)
def test_host_is_named_as_the_request_names_it(
    venue: Venue, monkeypatch: pytest.MonkeyPatch, base_url: str, host: str
) -> None:
    """Without credentials and the scheme's own port, a name beyond ASCII as it is resolved."""
    monkeypatch.setenv("HTTP_PROXY", venue.url)
    client = RestClient(base_url, clock=SystemClock())
    client.send(ASK)
    client.close()
    assert f"\r\nHost: {host}\r\n" in venue.requests[0][1]


def test_proxy_is_not_used_for_hosts_that_the_environment_excludes(
    venue: Venue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``NO_PROXY`` is honoured: the host's own name is resolved, and the proxy not asked."""
    monkeypatch.setenv("HTTP_PROXY", venue.url)
    monkeypatch.setenv("NO_PROXY", "venue.invalid")
    client = RestClient("http://venue.invalid", clock=SystemClock())
    with pytest.raises(UnreachableError):
        client.send(ASK)
    assert venue.requests == []
    client.close()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_loopback_is_never_sent_through_a_proxy(
    venue: Venue, monkeypatch: pytest.MonkeyPatch, variable: str, host: str
) -> None:
    """The embedded exchange works on machines whose environment names a proxy."""
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    client = RestClient(f"http://{host}:{venue.port}", clock=SystemClock())
    client.warm()
    assert client.send(ASK).value == [1]
    client.close()


def test_credentials_of_a_proxy_are_sent_to_it_and_never_shown(venue: Venue, monkeypatch: pytest.MonkeyPatch) -> None:
    """User and password of the proxy's address reach the proxy, and no error."""
    venue.script = lambda head: reply(407, b"who are you")
    monkeypatch.setenv("HTTP_PROXY", f"http://kim:s3cret@localhost:{venue.port}")
    client = RestClient("http://venue.invalid", clock=SystemClock())
    error = failure(client)
    assert "proxy-authorization: basic a2ltonmzy3jldA==".lower() in venue.requests[0][1].lower()
    monkeypatch.setenv("HTTP_PROXY", "http://kim:s3cret@127.0.0.1:1")
    other = RestClient("http://venue.invalid", clock=SystemClock())
    for each in (error, failure(other)):
        assert "s3cret" not in f"{each!r} {each} {each.__cause__}"
    client.close()
    other.close()


def test_sign_in_page_of_a_network_is_named(venue: Venue, client: RestClient) -> None:
    """A captive portal answers 200 with a page; the error says what that may be."""
    venue.script = lambda head: reply(200, b"\n<!DOCTYPE html><html><body>Welcome to our Wi-Fi</body></html>")
    error = failure(client)
    assert isinstance(error, PayloadError)
    assert "sign in" in str(error)


def test_credentials_of_the_machine_are_not_sent(venue: Venue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``.netrc`` is none of the venue's business."""
    (tmp_path / "netrc").write_text("machine localhost login me password secret\n", encoding="ascii")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    client = RestClient(venue.url, clock=SystemClock())
    client.send(ASK)
    client.close()
    assert "authorization" not in venue.requests[0][1].lower()


@pytest.fixture(params=["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def secure_venue(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Venue]:
    trustme = pytest.importorskip("trustme", reason="trustme is not installed")
    authority: Any = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv(request.param, str(bundle))
    server = Venue(context)
    yield server
    server.close()


def test_secure_connection_stays_warm_although_the_server_sent_unasked(secure_venue: Venue) -> None:
    """TLS 1.3 servers send session tickets after the handshake; those are not taken for a dead connection."""
    client = RestClient(secure_venue.url, clock=SystemClock())
    client.warm()
    time.sleep(0.05)  # the tickets arrive
    client.warm()
    client.send(ASK)
    client.send(ASK)
    assert (secure_venue.connections, len(secure_venue.requests)) == (1, 2)
    client.close()


def test_certificate_of_no_known_authority_is_unreachable(secure_venue: Venue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's certificate ends the connection, and the error says so."""
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    client = RestClient(secure_venue.url, clock=SystemClock())
    for act in (lambda: client.send(ASK), client.warm):
        with pytest.raises(UnreachableError, match="certificate verify failed"):
            act()
    client.close()


def test_certificates_that_appear_later_are_used(
    secure_venue: Venue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle that is not there yet is said each time, and the next attempt after it came succeeds."""
    bundle = tmp_path / "later.pem"
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(bundle))
    client = RestClient(secure_venue.url, clock=SystemClock())
    for _ in range(2):
        with pytest.raises(UnreachableError, match="invalid path"):
            client.send(ASK)
    bundle.write_bytes((tmp_path / "ca.pem").read_bytes())
    assert client.send(ASK).value == [1]
    client.close()
