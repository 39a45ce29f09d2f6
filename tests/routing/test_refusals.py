"""What the venue says besides data, in whatever form it says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.errors import PayloadError, RateLimitedError, RejectedError, SourceError, UnreachableError
from backbone.routing import refusals

T0 = 1_582_197_540_000_000  # 2020-02-20T11:19:00Z


def test_error_bodies_recorded_give_name_and_message(recordings: Path) -> None:
    """An integer name and a text name are both text; the message is the venue's."""
    recorded = json.loads((recordings / "raw/rest/nemanull_errors_2026-09-23.json").read_bytes())
    refused = [refusals.parse_error(each["body"].encode()) for each in recorded if each["status"] != 200]
    assert ("404", "Code not found") in refused
    assert ("not_found", "no Route matched with those values") in refused


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"Too many API requests.", ("", "Too many API requests.")),
        (b"", ("", "")),
        (b"\xff\xfe", ("", "\ufffd\ufffd")),
        (b'{"error":"no"}', ("", '{"error":"no"}')),
        (b'{"error":{"name":429}}', ("", '{"error":{"name":429}}')),
        (b"[1]", ("", "[1]")),
        (b'"text"', ("", '"text"')),
        (b"[" * 100_000, ("", "[" * 200)),
    ],
)
def test_error_bodies_of_any_shape_are_survived(data: bytes, expected: tuple[str, str]) -> None:
    """A refusal that is not JSON is its own message."""
    assert refusals.parse_error(data) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("group=candles; min=600; sec=9", ("candles", 9)),
        ("group=crix-trades;min=600;sec=0", ("crix-trades", 0)),
        ("sec=3", (None, 3)),
        ("group=x; sec=many", ("x", None)),
        ("nonsense", (None, None)),
        ("", (None, None)),
        (None, (None, None)),
    ],
)
def test_remaining_header_is_read_as_far_as_it_goes(header: str | None, expected: tuple[Any, Any]) -> None:
    """The group is an opaque word; what is missing is None."""
    assert refusals.parse_remaining(header) == expected


def test_date_header_is_an_instant_or_nothing() -> None:
    """A broken date is no reason to drop an answer."""
    assert refusals.parse_date("Thu, 20 Feb 2020 11:19:00 GMT") == T0
    assert refusals.parse_date("Thu, 20 Feb 2020 11:19:00 -0000") == T0
    assert [refusals.parse_date(text) for text in (None, "", "soon", "Thu, 99 Feb 2020 11:19:00 GMT")] == [None] * 4


@pytest.mark.parametrize(
    ("data", "retry_after", "expected"),
    [
        (b"", None, refusals.BLOCK_S),
        (b"I'm a teapot", None, refusals.BLOCK_S),
        (b'{"error":{"name":418,"message":"blocked"}}', None, refusals.BLOCK_S),
        (b"", "30", 30.0),
        (b"", "Thu, 20 Feb 2020 11:19:45 GMT", 45.0),
        (b'{"error":{"name":418,"message":"Blocked for 90 seconds."}}', None, 90.0),
        (b"Your IP is blocked for 2 minutes", None, 120.0),
        (b"blocked 1h", None, 3600.0),
        ("10분 동안 차단되었습니다".encode(), None, 600.0),
        ("30초 후 다시 시도".encode(), None, 30.0),
        (b'{"retry_after": 25}', None, 25.0),
        (b'{"block_time_ms": 2500}', None, 2.5),
        (b'{"blocked_minutes": 3}', None, 180.0),
        (b'{"until": "2020-02-20T11:20:10Z"}', None, 70.0),
        (b'{"until": "2020-02-20T20:20:10+09:00"}', None, 70.0),
        (b"blocked until 2020-02-20 20:20:10", None, 70.0),
        (b'{"until": 1582197600}', None, 60.0),
        (b'{"until": 1582197600000}', None, 60.0),
        (b"blocked since 2020-02-20T11:00:00Z", None, refusals.BLOCK_S),
        (b"blocked for 10 seconds", "40", 40.0),
        (b"blocked for 900000 hours", None, 86_400.0),
    ],
)
def test_block_time_is_found_however_it_is_said(data: bytes, retry_after: str | None, expected: float) -> None:
    """The form of a block's length is not documented; likely forms are read, none of them means a minute."""
    assert refusals.parse_block_s(data, retry_after, T0) == expected


@given(st.binary(max_size=300), st.text(max_size=30))
def test_block_time_of_anything_is_a_sane_number(data: bytes, header: str) -> None:
    """No body can make the wait negative, endless or an error."""
    assert 0 < refusals.parse_block_s(data, header, T0) <= 86_400


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (204, PayloadError),
        (301, RejectedError),
        (400, RejectedError),
        (404, RejectedError),
        (408, UnreachableError),
        (418, RateLimitedError),
        (429, RateLimitedError),
        (500, UnreachableError),
        (503, UnreachableError),
    ],
)
def test_status_decides_which_error_it_is(status: int, kind: type[SourceError]) -> None:
    """Each class of refusal is what a caller can do next, whatever the body says."""
    for body in (b"", b"words", b'{"error":{"name":1,"message":"words"}}'):
        assert type(refusals.refusal(status, body, "candles", T0)) is kind


@given(st.integers(201, 599), st.binary(max_size=200), st.none() | st.text(max_size=20))
def test_refusal_of_anything_is_an_error_of_the_tree(status: int, body: bytes, header: str | None) -> None:
    """No body and no header can make the reading of a refusal fail."""
    assert isinstance(refusals.refusal(status, body, "candles", T0, retry_after=header), SourceError)
