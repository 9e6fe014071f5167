"""The head of a request: read strictly, refused with the right status. Pure."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_agent.serve import head as heads
from edgefleet_agent.serve import hosts
from edgefleet_agent.serve.answers import RefusedError
from edgefleet_agent.serve.head import CHUNKED, Head, parse_head

REFUSED = {
    b"": 400,
    b"GET /v2": 400,
    b"GET  /v2 HTTP/1.1\r\nHost: a": 400,
    b"GET /v2 HTTP/2.0\r\nHost: a": 400,
    b"GET /v2 HTTP/1.1 \r\nHost: a": 400,
    b"GET /v 2 HTTP/1.1\r\nHost: a": 400,
    b"GET /\x00 HTTP/1.1\r\nHost: a": 400,
    b"GET v2 HTTP/1.1\r\nHost: a": 400,
    b"OPTIONS * HTTP/1.1\r\nHost: a": 400,
    b"GET https://a/v2 HTTP/1.1\r\nHost: a": 400,
    b"GET /" + b"x" * 4096 + b" HTTP/1.1\r\nHost: a": 414,
    b"GET /v2 HTTP/1.1": 400,
    b"GET /v2 HTTP/1.1\r\nHost : a": 400,
    b"GET /v2 HTTP/1.1\r\nHost": 400,
    b"GET /v2 HTTP/1.1\r\n: a": 400,
    b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: 1\n2": 400,
    b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: 1\r2": 400,
    b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: 1\x002": 400,
    b"GET /v2 HTTP/1.1\r\nHost: a\r\n folded: 1": 400,
    b"GET /v2 HTTP/1.1\nHost: a": 400,
    b"GET /v2 HTTP/1.1\r\nHost: a" + b"\r\nX: 1" * 100: 431,
    # What two readers could take for two different ends of the same request.
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2": 400,
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1": 400,
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1": 400,
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1": 400,
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1": 400,
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ": 400,
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ²".encode("latin-1"): 400,
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 30: 400,
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked": 400,
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked": 501,
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked": 501,
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked": 501,
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\x0b: chunked": 400,
    b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked": 400,
    b"POST / HTTP/1.1\r\nHost: a\r\nExpect: the-impossible": 417,
}
BEGINNING = b"POST /v2/models/m/infer?a=b HTTP/1.1\r\nHost: localhost:8000\r\n"


def parsed(*lines: bytes, first: bytes = b"GET /v2 HTTP/1.1") -> Head:
    return parse_head(b"\r\n".join([first, *lines]))


@pytest.mark.parametrize("raw", REFUSED, ids=lambda raw: repr(raw[:60]))
def test_what_is_no_clean_request_is_refused(raw: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_head(raw)
    assert refused.value.status == REFUSED[raw]


def test_a_head_says_where_the_body_ends() -> None:
    assert parse_head(BEGINNING + b"Content-Length: 17").length == 17
    assert parse_head(BEGINNING + b"transfer-encoding: Chunked").length == CHUNKED
    head = parse_head(BEGINNING + b"X-Empty:\r\nX-Two: 1\r\nx-two:\t 2 \t")
    assert (head.length, head.path, head.host) == (0, "/v2/models/m/infer", "localhost:8000")
    assert (head.fields["x-empty"], head.fields["x-two"]) == ("", "1, 2")


def test_a_connection_is_kept_as_the_version_and_the_client_say() -> None:
    assert parsed(b"Host: a").keeps_open
    assert not parsed(b"Host: a", b"Connection: Close").keeps_open
    assert not parsed(b"Host: a", b"Connection: keep-alive, close").keeps_open
    assert not parsed(first=b"GET /v2 HTTP/1.0").keeps_open
    assert parsed(b"Connection: Keep-Alive", first=b"GET /v2 HTTP/1.0").keeps_open


def test_only_a_client_of_1_1_is_told_to_go_on() -> None:
    assert parsed(b"Host: a", b"Expect: 100-Continue").expects_continue
    assert not parsed(b"Expect: 100-continue", first=b"GET /v2 HTTP/1.0").expects_continue


def test_a_target_in_absolute_form_names_the_host() -> None:
    head = parsed(b"Host: localhost", first=b"GET http://evil.example/v2 HTTP/1.1")
    assert (head.path, head.host) == ("/v2", "evil.example")
    with pytest.raises(RefusedError):
        parsed(b"Host: a", first=b"GET http://evil.example HTTP/1.1")


@pytest.mark.parametrize(
    ("buffer", "status"),
    [
        (b"GET /" + b"x" * heads.MAX_HEAD_BYTES, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * heads.MAX_HEAD_BYTES, 431),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * heads.MAX_HEAD_BYTES + b"\r\n\r\n", 431),
    ],
)
def test_a_head_without_end_is_not_waited_for(buffer: bytes, status: int) -> None:
    with pytest.raises(RefusedError) as refused:
        heads.end_of_head(buffer)
    assert refused.value.status == status


def test_a_head_is_found_where_its_blank_line_is() -> None:
    assert heads.end_of_head(b"GET / HTTP/1.1\r\n") == -1
    assert heads.end_of_head(b"GET / HTTP/1.1\r\n\r\nbody") == 14


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_parse_or_be_refused(raw: bytes) -> None:
    with suppress(RefusedError):
        assert parse_head(raw).path.startswith("/")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "10.0.0.7", "pi.home."])
def test_addresses_and_own_names_are_meant_for_this_machine(host: str) -> None:
    hosts.check(parsed(b"Host: " + host.encode()), {"localhost", "pi.home"})


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"Host: evil.example", 421),
        (b"Host: localhost.evil.example", 421),
        (b"Host: 127.0.0.1.evil.example", 421),
        (b"Host: ", 421),
        (b"Host: localhost\r\nHost: evil.example", 400),
        (b"Host: user@localhost", 400),
        (b"Host: localhost\r\nOrigin: https://evil.example", 403),
        (b"Host: localhost\r\nOrigin: null", 403),
    ],
)
def test_a_name_that_a_page_made_point_here_is_not_served(line: bytes, status: int) -> None:
    with pytest.raises(RefusedError) as refused:
        hosts.check(parsed(*line.split(b"\r\n")), {"localhost"})
    assert refused.value.status == status


def test_only_an_old_client_may_leave_the_host_out() -> None:
    hosts.check(parsed(first=b"GET /v2 HTTP/1.0"), {"localhost"})
