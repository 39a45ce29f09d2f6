"""How a question travels: warm connections, hard deadlines, one error for each way to fail."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pickle
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from backbone.clock import SystemClock
from backbone.errors import (
    ClosedError,
    PayloadError,
    RateLimitedError,
    RejectedError,
    UnreachableError,
)
from backbone.routing.refusals import BLOCK_S
from backbone.routing.rest import ReplyFacts, RestClient
from backbone.routing.wire import candles_ask, tickers_ask
from backbone.timeframe import TIMEFRAMES
from tests.routing.http_venue import ASK, Venue, failure, reply

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
    assert (answer.date_us, len(answer.body)) == (1_582_197_540_000_000, 3)
    assert before <= answer.sent_s < answer.received_s <= time.monotonic()


def test_reply_without_those_headers_says_so(venue: Venue, client: RestClient) -> None:
    """What the venue did not say is None, and the answer is good all the same."""
    answer = client.send(ASK)
    assert (answer.value, answer.group, answer.remaining, answer.date_us) == ([1], None, None, None)


def test_reply_compressed_is_read(venue: Venue, client: RestClient) -> None:
    """gzip is asked for and undone; the body is the plain one."""
    plain = json.dumps(list(range(5000))).encode()
    venue.script = lambda head: reply(body=gzip.compress(plain), Content_Encoding="gzip")
    answer = client.send(ASK)
    assert (len(answer.value), answer.body) == (5000, plain)


def test_many_threads_share_connections(venue: Venue, client: RestClient) -> None:
    """Sixteen threads use at most sixteen connections, again and again."""
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.send(ASK).value, range(200)))
    assert answers == [[1]] * 200
    assert venue.connections <= 16


# ------------------------------------------------------------------------------------------------- refusals


def test_refused_request_is_rejected_with_the_venues_words(venue: Venue, client: RestClient) -> None:
    """The error of a 404 has status, code and reason, and where it happened."""
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
def test_rate_limit_is_reported_whatever_its_body(venue: Venue, client: RestClient, body: bytes) -> None:
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
def test_block_is_reported_with_its_length(
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


def test_body_that_the_parser_refuses_is_reported_with_its_place(venue: Venue, client: RestClient) -> None:
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


def test_nobody_listening_is_unreachable_and_says_why() -> None:
    """The reason is the operating system's, without the wrapping."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    client = RestClient(f"http://127.0.0.1:{port}", clock=SystemClock())
    for act in (lambda: client.send(ASK), client.warm):
        with pytest.raises(UnreachableError, match=r": \[Errno \d+\] Connection refused$"):
            act()
    client.close()


def test_close_twice_is_fine_and_hangs_up(venue: Venue, client: RestClient) -> None:
    """Closing ends the connections, once."""
    client.send(ASK)
    client.close()
    client.close()
    assert repr(client) == f"<RestClient {venue.url} closed>"
    with pytest.raises(ClosedError):
        client.send(ASK)
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
