"""Ranges over HTTP(S): whole blocks in order, one line for whatever goes wrong, and no device's name given away."""

from __future__ import annotations

import select
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.range_server import RangeServer
from edgefleet.package.digest import BLOCK_BYTES
from edgefleet.trust import pki
from edgefleet.trust.certificates import make_key_and_csr
from edgefleet_agent.http_pull import HttpAccess, HttpPull, Span
from patience import PATIENCE_S

BLOB = bytes((place * 31 + place // 997) % 256 for place in range(10 * BLOCK_BYTES + 777))


@contextmanager
def server(fault: str = "", context: ssl.SSLContext | None = None) -> Iterator[RangeServer]:
    made = RangeServer({"/blobs/x": BLOB, "/blobs/y": BLOB[::-1]}, fault, context)
    try:
        yield made
    finally:
        made.close()


def pulled(pull: HttpPull) -> tuple[list[tuple[int, bytes]], str | None]:
    """Everything that comes until it has ended."""
    blocks: list[tuple[int, bytes]] = []
    while True:
        assert select.select([pull.fileno()], [], [], PATIENCE_S)[0]
        more, ended, failure = pull.take()
        blocks += more
        if ended:
            pull.close()
            return blocks, failure


def span(url: str, first: int, count: int) -> Span:
    offset = first * BLOCK_BYTES
    return Span(url, first, offset, min(count * BLOCK_BYTES, len(BLOB) - offset))


def block(number: int) -> bytes:
    return BLOB[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]


def test_spans_come_as_whole_blocks_in_order_over_one_connection() -> None:
    with server() as there:
        url = f"{there.url}/blobs/x"
        found, failure = pulled(HttpPull(HttpAccess(None), [span(url, 7, 4), span(url, 0, 3)]))
        assert failure is None
        assert found == [(number, block(number)) for number in (7, 8, 9, 10, 0, 1, 2)]
        assert there.connections == 1
        assert there.ranges[1] == ("/blobs/x", f"bytes=0-{3 * BLOCK_BYTES - 1}")


def test_a_server_that_closes_after_each_answer_is_asked_again() -> None:
    with server("closes") as there:
        url = f"{there.url}/blobs/x"
        found, failure = pulled(HttpPull(HttpAccess(None), [span(url, number, 1) for number in range(5)]))
        assert (len(found), failure) == (5, None)
        assert there.connections == 5


def test_more_than_the_queue_holds_waits_for_its_taker() -> None:
    with server() as there:
        spans = [span(f"{there.url}/blobs/x", 0, 11)] * 12
        found, failure = pulled(HttpPull(HttpAccess(None), spans))
        assert (len(found), failure) == (132, None)


def test_a_redirection_is_followed() -> None:
    with server("redirects") as there:
        found, failure = pulled(HttpPull(HttpAccess(None), [span(f"{there.url}/blobs/x", 0, 11)]))
        assert (len(found), failure) == (11, None)
        assert [path for path, _ in there.ranges] == ["/blobs/x", "/blobs/x?moved"]


def test_a_server_without_ranges_will_do_for_a_whole_blob() -> None:
    with server("ignores the range") as there:
        found, failure = pulled(HttpPull(HttpAccess(None), [span(f"{there.url}/blobs/x", 0, 11)]))
        assert (len(found), failure) == (11, None)


@pytest.mark.parametrize(
    ("fault", "first", "said", "blocks"),
    [
        ("refuses", 0, "the server answered 403", 0),
        ("redirects for ever", 0, "more than 3 redirections", 0),
        ("redirects to a file", 0, "no place to pull from", 0),
        ("ignores the range", 2, "the server answered 200", 0),
        ("other range", 2, "the server sent another range", 0),
        ("breaks off", 0, "bytes early", 1),
    ],
)
def test_what_goes_wrong_ends_it_with_one_line(fault: str, first: int, said: str, blocks: int) -> None:
    with server(fault) as there:
        found, failure = pulled(HttpPull(HttpAccess(None), [span(f"{there.url}/blobs/x", first, 11 - first)]))
        assert failure is not None
        assert said in failure
        assert "\n" not in failure
        assert found == [(first + number, block(first + number)) for number in range(blocks)]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://localhost:1/x", "refused"),
        ("ftp://localhost/x", "no place to pull from"),
        ("http:///x", "no place to pull from"),
        ("http://localhost:99999/x", "Port out of range"),
        ("http://[::1/x", "Invalid"),
        ("", "no place to pull from"),
        ("http://localhost/a b", "control characters"),
    ],
)
def test_an_address_of_no_use_is_said(url: str, said: str) -> None:
    found, failure = pulled(HttpPull(HttpAccess(None), [span(url, 0, 1)]))
    assert found == []
    assert said in str(failure)


def test_closing_ends_a_transfer_that_hangs() -> None:
    with server("hangs") as there:
        pull = HttpPull(HttpAccess(None), [span(f"{there.url}/blobs/x", 0, 11)])
        assert select.select([pull.fileno()], [], [], PATIENCE_S)[0]
        pull.close()
        assert pull._ended.wait(PATIENCE_S)


def test_closing_ends_a_transfer_that_hangs_within_tls(identity: Path) -> None:
    with server("hangs", tls(identity, ssl.CERT_NONE)) as there:
        pull = HttpPull(access(identity, None), [span(f"{there.url}/blobs/x", 0, 11)])
        assert select.select([pull.fileno()], [], [], PATIENCE_S)[0]
        pull.close()
        assert pull._ended.wait(PATIENCE_S)


def test_closing_ends_a_transfer_that_nobody_takes() -> None:
    with server() as there:
        pull = HttpPull(HttpAccess(None), [span(f"{there.url}/blobs/x", 0, 11)] * 12)
        assert select.select([pull.fileno()], [], [], PATIENCE_S)[0]
        pull.close()
        assert pull._ended.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("base", "url"),
    [
        (None, None),
        ("https://a:1/blobs/", "https://a:1/blobs/sha256:0"),
        ("https://a", "https://a/sha256:0"),
        ("http://cdn/v2/{digest}?x=1", "http://cdn/v2/sha256:0?x=1"),
    ],
)
def test_the_configured_address(base: str | None, url: str | None) -> None:
    assert HttpAccess(base).url("sha256:0") == url


# TLS --------------------------------------------------------------------------------------------------


@pytest.fixture(name="identity", scope="module")
def _identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DATA/pki of a fleet, and a device's key and certificate beside it."""
    folder = tmp_path_factory.mktemp("pki")
    pki.create_fleet_pki(folder / "keys", folder, "home")
    key, csr = make_key_and_csr("pi")
    (folder / "device.key").write_bytes(key)
    (folder / "device.crt").write_bytes(pki.issue_device(folder, csr, "home", "pi", "e1", time.time()))
    return folder


def tls(folder: Path, wanted: ssl.VerifyMode) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pki" / "broker.crt", folder / "pki" / "broker.key")
    context.load_verify_locations(folder / "pki" / "ca-chain.crt")
    context.verify_mode = wanted
    return context


def access(folder: Path, base_url: str | None) -> HttpAccess:
    return HttpAccess(base_url, folder / "pki" / "root-ca.crt", folder / "device.crt", folder / "device.key")


def test_our_own_server_is_shown_the_devices_certificate(identity: Path) -> None:
    with server(context=tls(identity, ssl.CERT_REQUIRED)) as there:
        own = access(identity, f"{there.url}/blobs")
        found, failure = pulled(HttpPull(own, [span(str(own.url("x")), 0, 11)]))
        assert (len(found), failure) == (11, None)
        assert there.subjects[0]["subject"] == ((("commonName", "pi"),),)


def test_a_place_that_a_hub_named_is_not_shown_it(identity: Path) -> None:
    with server(context=tls(identity, ssl.CERT_OPTIONAL)) as there:
        found, failure = pulled(HttpPull(access(identity, None), [span(f"{there.url}/blobs/x", 0, 11)]))
        assert (len(found), failure) == (11, None)
        assert there.subjects in ([{}], [None])


def test_a_server_of_another_authority_is_refused(identity: Path) -> None:
    with server(context=tls(identity, ssl.CERT_NONE)) as there:
        found, failure = pulled(HttpPull(HttpAccess(None), [span(f"{there.url}/blobs/x", 0, 11)]))
        assert found == []
        assert "certificate verify failed" in str(failure)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::ffff:127.0.0.1]"])
def test_an_offered_address_on_the_device_itself_is_not_asked(host: str) -> None:
    """A hub's thief could otherwise have every device of the fleet speak to what listens on it, and beside it."""
    with server() as there:
        url = f"{there.url.replace('localhost', host)}/blobs/x"
        found, failure = pulled(HttpPull(HttpAccess(None, broker_host="broker.lan"), [span(url, 0, 11)]))
        assert not found
        assert "on this device or its link" in str(failure)
        assert not there.ranges
        same, _ = pulled(HttpPull(HttpAccess(None, broker_host="localhost"), [span(f"{there.url}/blobs/x", 0, 11)]))
        assert len(same) == 11


@pytest.mark.parametrize(
    ("address", "wanted"),
    [("169.254.169.254", False), ("fe80::1%eth0", False), ("::1", False), ("224.0.0.1", False), ("10.0.0.7", True)],
)
def test_which_addresses_may_be_offered(address: str, wanted: bool) -> None:
    assert HttpAccess("https://cdn.example/x", broker_host="broker.lan").admits("cdn.elsewhere", address) == wanted
    assert HttpAccess("https://cdn.example/x", broker_host="broker.lan").admits("cdn.example", address)
