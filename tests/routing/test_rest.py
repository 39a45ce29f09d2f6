"""How a question travels: warm connections, hard deadlines, one error for each way to fail."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pickle
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backbone.clock import SystemClock
from backbone.errors import (
    ClosedError,
    PayloadError,
    RateLimitedError,
    RejectedError,
    SourceError,
    UnreachableError,
)
from backbone.routing import rest
from backbone.routing.refusals import BLOCK_S
from backbone.routing.rest import ReplyFacts, RestClient
from backbone.routing.wire import Ask, candles_ask, tickers_ask
from backbone.timeframe import TIMEFRAMES

ASK = Ask("candles", "/x", (), json.loads, "KRW-BTC")


class Shifted(SystemClock):
    """The machine's clock, movable."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


def reply(status: int = 200, body: bytes = b"[1]", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Because", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Venue:
    """A server that answers each request with what `script` makes of it: bytes, or a function of the socket.

    The connection stays open unless the function closes it. `requests` holds (connection number, head).
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.script: Callable[[str], bytes | Callable[[socket.socket], None]] = lambda head: reply()
        self.requests: list[tuple[int, str]] = []
        self.connections = 0
        self._tls = tls
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://localhost:{self.port}"
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(sock, self.connections))
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            self._open.append(sock)
            head = b""
            while part := sock.recv(65536):
                head += part
                while b"\r\n\r\n" in head:
                    one, _, head = head.partition(b"\r\n\r\n")
                    self.requests.append((number, one.decode()))
                    answer = self.script(one.decode())
                    if callable(answer):
                        answer(sock)
                    else:
                        sock.sendall(answer)
        sock.close()

    def await_connections(self, count: int) -> int:
        """How many connections were accepted, once `count` were (or a second passed)."""
        deadline = time.monotonic() + 1
        while self.connections < count and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.connections

    def hang_up(self) -> None:
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(5)
        self.hang_up()
        for thread in self._threads:
            thread.join(5)


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


def failure(client: RestClient, ask: Ask = ASK) -> SourceError:
    with pytest.raises(SourceError) as caught:
        client.send(ask)
    return caught.value


# -------------------------------------------------------------------------------------------------- sending


def test_client_made_but_unused_opens_nothing(venue: Venue, client: RestClient) -> None:
    """Constructing a client touches no network; its repr says so in one line."""
    assert repr(client) == f"<RestClient {venue.url} idle>"
    assert venue.connections == 0
    client.send(ASK)
    assert repr(client) == f"<RestClient {venue.url} open>"


def test_request_carries_no_origin_and_nothing_that_varies(venue: Venue, client: RestClient) -> None:
    """An ``Origin`` header would cut the rate to one in ten seconds; cookies are not kept either."""
    venue.script = lambda head: reply(Set_Cookie="a=b; Path=/")
    client.send(ASK)
    client.send(ASK)
    first, second = (head.split("\r\n") for _, head in venue.requests)
    assert first == second
    assert first[0] == "GET /v1/x HTTP/1.1"
    names = {line.partition(":")[0].lower() for line in first[1:]}
    assert names == {"host", "accept", "accept-encoding", "user-agent"}
    assert "Accept-Encoding: gzip" in first


def test_query_is_encoded_so_that_the_venue_understands_it(venue: Venue, client: RestClient) -> None:
    """Colons are escaped, commas between codes are not."""
    venue.script = lambda head: reply(body=b"[]")
    client.send(candles_ask("KRW-BTC", TIMEFRAMES["1m"], 1_582_197_540_000_000, 200))
    failure(client, tickers_ask(["KRW-BTC", "KRW-ETH"]))
    lines = [head.split("\r\n")[0] for _, head in venue.requests]
    assert lines == [
        "GET /v1/candles/minutes/1?market=KRW-BTC&count=200&to=2020-02-20T11%3A19%3A00Z HTTP/1.1",
        "GET /v1/ticker?markets=KRW-BTC,KRW-ETH HTTP/1.1",
    ]


def test_reply_carries_value_and_facts(venue: Venue, client: RestClient) -> None:
    """The quota, the venue's clock, both instants and the size come with the value."""
    date = "Thu, 20 Feb 2020 11:19:00 GMT"
    venue.script = lambda head: reply(Remaining_Req="group=candles; min=600; sec=9", Date=date)
    before = time.monotonic()
    answer = client.send(ASK)
    assert (answer.value, answer.group, answer.remaining) == ([1], "candles", 9)
    assert (answer.date_us, answer.size) == (1_582_197_540_000_000, 3)
    assert before <= answer.sent_s < answer.received_s <= time.monotonic()


def test_reply_without_those_headers_says_so(venue: Venue, client: RestClient) -> None:
    """What the venue did not say is None, and the answer is good all the same."""
    answer = client.send(ASK)
    assert (answer.value, answer.group, answer.remaining, answer.date_us) == ([1], None, None, None)


def test_reply_compressed_is_read(venue: Venue, client: RestClient) -> None:
    """gzip is asked for and undone; the size is the plain one."""
    plain = json.dumps(list(range(5000))).encode()
    venue.script = lambda head: reply(body=gzip.compress(plain), Content_Encoding="gzip")
    answer = client.send(ASK)
    assert (len(answer.value), answer.size) == (5000, len(plain))


def test_many_threads_share_connections(venue: Venue, client: RestClient) -> None:
    """Sixteen threads use at most sixteen connections, again and again."""
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.send(ASK).value, range(200)))
    assert answers == [[1]] * 200
    assert venue.connections <= 16


# ------------------------------------------------------------------------------------------------- refusals


def test_refused_request_is_rejected_with_the_venues_words(venue: Venue, client: RestClient) -> None:
    """A 404 tells status, code and reason, and where it happened."""
    venue.script = lambda head: reply(
        404,
        b'{"error":{"name":404,"message":"Code not found"}}',
        Remaining_Req="group=candles; min=600; sec=4",
    )
    error = failure(client)
    assert isinstance(error, RejectedError)
    assert (error.status, error.code, error.reason) == (404, "404", "Code not found")
    assert (error.market, error.url, error.attempts) == ("KRW-BTC", f"{venue.url}/v1/x", 1)
    assert isinstance(error.reply_facts, ReplyFacts)
    assert error.reply_facts[:3] == ("candles", 4, None)
    assert "Code not found" in str(error)


@pytest.mark.parametrize("body", [b"Too many API requests.", b'{"error":{"name":429,"message":"x"}}', b"", b"\xff"])
def test_rate_limit_is_told_whatever_its_body(venue: Venue, client: RestClient, body: bytes) -> None:
    """A 429 need not be JSON; its group is the one that the reply names."""
    venue.script = lambda head: reply(429, body, Remaining_Req="group=origin; min=6; sec=0")
    error = failure(client)
    assert isinstance(error, RateLimitedError)
    assert (error.group, error.retry_after_s, error.banned) == ("origin", 1.0, False)
    assert error.reply_facts[:2] == ("origin", 0)


def test_rate_limit_without_headers_counts_against_the_asks_group(venue: Venue, client: RestClient) -> None:
    """A gateway's 429 stops the group that was asked; a stated wait is kept."""
    venue.script = lambda head: reply(429, Retry_After="7")
    error = failure(client)
    assert isinstance(error, RateLimitedError)
    assert (error.group, error.retry_after_s) == ("candles", 7.0)


@pytest.mark.parametrize(
    ("body", "headers", "wait_s"),
    [
        (b"I'm a teapot", {}, BLOCK_S),
        (b"blocked for 90 seconds", {}, 90.0),
        (b"", {"Retry_After": "30"}, 30.0),
        (b'{"until":"2020-02-20T11:19:10Z"}', {"Date": "Thu, 20 Feb 2020 11:19:00 GMT"}, 10.0),
    ],
)
def test_block_is_told_with_its_length(
    venue: Venue, client: RestClient, body: bytes, headers: dict[str, str], wait_s: float
) -> None:
    """A 418 stops everything for as long as the venue says, by the venue's own clock."""
    venue.script = lambda head: reply(418, body, **headers)
    error = failure(client)
    assert isinstance(error, RateLimitedError)
    assert (error.banned, error.retry_after_s, error.group) == (True, wait_s, None)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
def test_faults_of_the_venue_are_unreachable(venue: Venue, client: RestClient, status: int) -> None:
    """A 5xx, whatever its body, is worth another try later."""
    venue.script = lambda head: reply(status, b"<html>down for maintenance</html>")
    error = failure(client)
    assert isinstance(error, UnreachableError)
    assert str(status) in str(error)


def test_redirect_is_not_followed(venue: Venue, client: RestClient) -> None:
    """A redirect would spend a request that nobody permitted."""
    venue.script = lambda head: reply(302, Location=f"{venue.url}/elsewhere")
    error = failure(client)
    assert isinstance(error, RejectedError)
    assert (error.status, error.reason) == (302, f"{venue.url}/elsewhere")
    assert len(venue.requests) == 1


def test_body_that_the_parser_refuses_is_told_with_its_place(venue: Venue, client: RestClient) -> None:
    """A `PayloadError` knows url, market and facts."""
    venue.script = lambda head: reply(body=b'[{"market":"KRW-ETH"}]', Remaining_Req="group=candles; min=1; sec=8")
    error = failure(client, candles_ask("KRW-BTC", TIMEFRAMES["1m"], None, 1))
    assert isinstance(error, PayloadError)
    assert error.url == f"{venue.url}/v1/candles/minutes/1?market=KRW-BTC&count=1"
    assert (error.market, error.reply_facts.remaining) == ("KRW-BTC", 8)


def test_success_without_content_is_a_payload_error(venue: Venue, client: RestClient) -> None:
    """A 204 is not an answer."""
    venue.script = lambda head: b"HTTP/1.1 204 No Content\r\n\r\n"
    assert isinstance(failure(client), PayloadError)


def test_errors_survive_pickling_with_their_facts(venue: Venue, client: RestClient) -> None:
    """An error may cross to another process."""
    venue.script = lambda head: reply(429)
    error = failure(client)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.reply_facts) == (RateLimitedError, str(error), error.reply_facts)


def test_refusals_leave_the_connection_usable(venue: Venue, client: RestClient) -> None:
    """After a refusal the same connection carries the next request."""
    venue.script = lambda head: reply(429, b"Too many API requests.")
    for _ in range(5):
        failure(client)
    assert venue.connections == 1


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
    for letter in b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX: " + b"y" * 200:
        sock.sendall(bytes([letter]))
        time.sleep(0.02)


def drip_body(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n")
    for _ in range(200):
        sock.sendall(b"1")
        time.sleep(0.02)


def silence(sock: socket.socket) -> None:
    time.sleep(0.5)


def not_http(sock: socket.socket) -> None:
    sock.sendall(b"hello, who is there?\r\n\r\n")


@pytest.mark.parametrize("answer", [cut, cut_chunked, hang_up, drip_head, drip_body, silence, not_http])
def test_no_whole_answer_is_unreachable_within_the_deadline(
    venue: Venue, hasty: RestClient, answer: Callable[[socket.socket], None]
) -> None:
    """Cut, dripping, silent and foreign answers end in one error, in bounded time, after one request."""
    venue.script = lambda head: answer
    started = time.monotonic()
    error = failure(hasty)
    assert isinstance(error, UnreachableError)
    assert time.monotonic() - started < 3.0
    assert (error.market, error.reply_facts.group, error.reply_facts.date_us) == ("KRW-BTC", None, None)
    assert len(venue.requests) == 1


def test_drip_within_the_read_timeout_ends_at_the_total_deadline(venue: Venue) -> None:
    """Each byte is in time, the whole is not: the deadline holds."""
    venue.script = lambda head: drip_body
    client = RestClient(venue.url, clock=SystemClock(), timeout_s=(1.0, 5.0), total_s=0.3)
    started = time.monotonic()
    assert isinstance(failure(client), UnreachableError)
    assert 0.25 < time.monotonic() - started < 1.5
    client.close()


def test_silence_within_the_read_timeout_ends_at_the_total_deadline(venue: Venue) -> None:
    """A read may not wait longer than what is left of the whole."""
    quiet = threading.Event()
    venue.script = lambda head: lambda sock: (sock.sendall(b"HTTP/1.1 200 OK\r\n"), quiet.wait(5))[0]
    client = RestClient(venue.url, clock=SystemClock(), timeout_s=(1.0, 5.0), total_s=0.3)
    started = time.monotonic()
    assert isinstance(failure(client), UnreachableError)
    assert time.monotonic() - started < 2.0
    quiet.set()
    client.close()


def test_nobody_listening_is_unreachable_and_says_why() -> None:
    """The reason is the operating system's, without the wrapping."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    client = RestClient(f"http://127.0.0.1:{port}", clock=SystemClock())
    for act in (lambda: client.send(ASK), client.warm):
        with pytest.raises(UnreachableError, match=r": \[Errno \d+\] Connection refused$"):
            act()
    client.close()


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
    monkeypatch.setattr(rest, "BODY_BYTES", 1 << 20)
    plain = b"[" + b"1," * (1 << 20)
    for answer in (reply(body=plain), reply(body=gzip.compress(plain), Content_Encoding="gzip")):
        venue.script = lambda head, answer=answer: answer
        assert isinstance(failure(client), PayloadError)


def test_body_with_a_false_encoding_is_a_payload_error(venue: Venue, client: RestClient) -> None:
    """What says gzip and is not cannot be believed."""
    venue.script = lambda head: reply(body=b"[1,2,3,4,5,6,7,8]", Content_Encoding="gzip")
    assert isinstance(failure(client), PayloadError)


# ----------------------------------------------------------------------------------------- warm connections


def test_warm_opens_one_connection_without_a_request(venue: Venue, client: RestClient) -> None:
    """Warming twice opens once, and the request that follows finds the connection open."""
    client.warm()
    client.warm()
    assert (venue.await_connections(1), venue.requests) == (1, [])
    client.send(ASK)
    client.warm()
    assert (venue.connections, len(venue.requests)) == (1, 1)


def test_connection_idle_for_long_is_not_used_again(venue: Venue) -> None:
    """Beyond the age at which servers hang up, a fresh connection is opened up front; warming renews it as well."""
    clock = Shifted()
    client = RestClient(venue.url, clock=clock)
    client.send(ASK)
    clock.ahead_s += rest.IDLE_S - 5
    client.send(ASK)
    assert venue.connections == 1
    clock.ahead_s += rest.IDLE_S + 5
    client.send(ASK)
    assert venue.connections == 2
    clock.ahead_s += rest.IDLE_S + 5
    client.warm()
    assert venue.await_connections(3) == 3
    client.close()


def test_connection_that_the_server_closed_costs_no_request(venue: Venue, client: RestClient) -> None:
    """A hang-up between two requests is noticed before the second is sent."""
    client.send(ASK)
    venue.hang_up()
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and venue.connections == 1:
        assert client.send(ASK).value == [1]
    assert venue.connections == 2


def test_critical_sibling_has_connections_of_its_own(venue: Venue, client: RestClient) -> None:
    """The urgent lane shares nothing with the bulk one, and ends with it."""
    sibling = client.critical()
    assert client.critical() is sibling
    sibling.warm()
    venue.await_connections(1)
    client.send(ASK)
    sibling.send(ASK)
    numbers = [number for number, _ in venue.requests]
    assert numbers == [2, 1]
    client.close()
    for each in (client, sibling, client.critical()):
        with pytest.raises(ClosedError):
            each.send(ASK)
    assert repr(client) == f"<RestClient {venue.url} closed>"


def test_close_twice_is_fine_and_hangs_up(venue: Venue, client: RestClient) -> None:
    """Closing ends the connections, once."""
    client.send(ASK)
    client.close()
    client.close()
    for thread in venue._threads:
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_gives_the_child_a_connection_of_its_own(venue: Venue, client: RestClient) -> None:
    """Parent and child never share a socket, even if a thread held the client's lock at the fork."""
    client.send(ASK)
    client._lock.acquire()
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            code = 0 if client.send(ASK).value == [1] else 2
        os._exit(code)
    client._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert client.send(ASK).value == [1]
    assert [number for number, _ in venue.requests] == [1, 2, 1]


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


def test_proxy_is_not_used_for_hosts_that_the_environment_excludes(
    venue: Venue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``NO_PROXY`` is honoured."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "localhost")
    client = RestClient(venue.url, clock=SystemClock())
    assert client.send(ASK).value == [1]
    client.close()


def test_credentials_of_the_machine_are_not_sent(venue: Venue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``.netrc`` is none of the venue's business."""
    (tmp_path / "netrc").write_text("machine localhost login me password secret\n", encoding="ascii")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    client = RestClient(venue.url, clock=SystemClock())
    client.send(ASK)
    client.close()
    assert "authorization" not in venue.requests[0][1].lower()


@pytest.fixture
def secure_venue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Venue]:
    trustme = pytest.importorskip("trustme", reason="trustme is not installed")
    authority: Any = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    server = Venue(context)
    yield server
    server.close()


def test_secure_connection_stays_warm_although_the_server_spoke_unasked(secure_venue: Venue) -> None:
    """TLS 1.3 servers send session tickets after the handshake; those are not taken for a dead connection."""
    client = RestClient(secure_venue.url, clock=SystemClock())
    client.warm()
    time.sleep(0.05)  # the tickets arrive
    client.warm()
    client.send(ASK)
    client.send(ASK)
    assert (secure_venue.connections, len(secure_venue.requests)) == (1, 2)
    client.close()


def test_certificate_that_nobody_vouches_for_is_unreachable(
    secure_venue: Venue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's certificate ends the connection, and the error says so."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    client = RestClient(secure_venue.url, clock=SystemClock())
    for act in (lambda: client.send(ASK), client.warm):
        with pytest.raises(UnreachableError, match="certificate verify failed"):
            act()
    client.close()
