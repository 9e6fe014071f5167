"""Blobs over HTTP: who may have one, ranges as RFC 9110 reads them, and nothing else to be had."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet.errors import InputError
from edgefleet.mqtt import BrokerAddress
from edgefleet.package.digest import digest_of
from edgefleet.package.layout import BlobStore
from edgefleet.server.http_blobs import BlobServer, serving
from edgefleet.server.http_ranges import Span, UnsatisfiableError, parse_range
from edgefleet.server.locate import (
    KEY_FILE,
    URL_VALID_S,
    Locator,
    check_template,
    ensure_key,
    is_valid,
    load_key,
    public_template,
)
from edgefleet.trust import pki
from edgefleet.trust.enrolment import enroll
from patience import PATIENCE_S
from sdk.fleet_made import MadeFleet, found
from sdk.packages_made import content

BLOB = content(700_001)
DIGEST = digest_of(BLOB)
Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def server(data: Path, *, tls: bool) -> Iterator[BlobServer]:
    blobs = BlobStore(data)
    blobs.folder.mkdir(parents=True, exist_ok=True)
    blobs.add(BLOB)
    with serving(data, BrokerAddress("127.0.0.1", 0), tls=tls) as running:
        assert running is not None
        yield running


@pytest.fixture(name="plain", scope="module")
def _plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlobServer]:
    with server(tmp_path_factory.mktemp("plain"), tls=False) as running:
        yield running


@pytest.fixture(name="fleet", scope="module")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> MadeFleet:
    return found(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(name="secure", scope="module")
def _secure(fleet: MadeFleet) -> Iterator[BlobServer]:
    with server(fleet.data, tls=True) as running:
        yield running


def client(running: BlobServer, context: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    port = running.server_address[1]
    if context is None:
        return http.client.HTTPConnection("127.0.0.1", int(port), timeout=PATIENCE_S)
    return http.client.HTTPSConnection("127.0.0.1", int(port), timeout=PATIENCE_S, context=context)


def ask(connection: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str) -> Answer:
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, dict(response.getheaders()), response.read()


def signed(running: BlobServer, digest: str = DIGEST, now: float | None = None) -> str:
    return Locator("/blobs/{digest}", running.key).url(digest, time.time() if now is None else now)


def test_the_whole_a_part_and_the_head_over_one_connection(plain: BlobServer) -> None:
    connection = client(plain)
    path = signed(plain)
    status, headers, body = ask(connection, path)
    assert (status, body) == (200, BLOB)
    assert (headers["Accept-Ranges"], headers["ETag"]) == ("bytes", f'"{DIGEST}"')
    status, headers, body = ask(connection, path, Range="bytes=100-699999")
    assert (status, body) == (206, BLOB[100:700_000])
    assert headers["Content-Range"] == "bytes 100-699999/700001"
    status, headers, body = ask(connection, path, "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "700001", b"")
    status, headers, body = ask(connection, path, "HEAD", Range="bytes=-1")
    assert (status, headers["Content-Length"], body) == (206, "1", b"")
    status, headers, body = ask(connection, path, Range="bytes=700001-")
    assert (status, headers["Content-Range"], body) == (416, "bytes */700001", b"")
    assert ask(connection, path, Range="bytes=0-0")[2] == BLOB[:1]
    connection.close()


def test_a_range_of_another_version_is_answered_with_the_whole(plain: BlobServer) -> None:
    connection = client(plain)
    assert ask(connection, signed(plain), Range="bytes=5-9", If_Range=f'"{DIGEST}"')[0] == 206
    assert ask(connection, signed(plain), Range="bytes=5-9", If_Range='"sha256:other"')[2] == BLOB
    connection.close()


@pytest.mark.parametrize("path", ["/", "/blobs/", "/blobs/../http.key", "/blobs/%2e%2e/http.key", "/http.key",
                                  "/blobs/sha256:abc", f"/blobs/{DIGEST}/..", f"/{DIGEST}"])  # fmt: skip
def test_nothing_but_blobs_is_served(plain: BlobServer, path: str) -> None:
    connection = client(plain)
    query = signed(plain).partition("?")[2]
    status, _, body = ask(connection, f"{path}?{query}")
    assert (status, body) == (404, b"")
    connection.close()


def test_only_a_good_signature_opens_a_blob(plain: BlobServer, tmp_path: Path) -> None:
    connection = client(plain)
    good = signed(plain)
    other = BlobStore(tmp_path)
    other.folder.mkdir(parents=True)
    bad = [
        f"/blobs/{DIGEST}",
        good[:-1] + ("0" if good[-1] != "0" else "1"),
        good.replace(DIGEST, digest_of(b"another")),
        good.replace("expires=", "expires=9"),
        signed(plain, now=time.time() - URL_VALID_S - 5),
        Locator("/blobs/{digest}", b"x" * 32).url(DIGEST, time.time()),
        f"/blobs/{DIGEST}?expires=-1&signature=",
        f"/blobs/{DIGEST}?expires=%C2%B2&signature=%C3%A4",
    ]
    for path in bad:
        status, _, body = ask(connection, path)
        assert (status, body) == (403, b""), path
    missing = digest_of(b"missing")
    assert ask(connection, signed(plain, missing))[0] == 404
    connection.close()


def test_other_methods_change_nothing(plain: BlobServer) -> None:
    for method in ("PUT", "DELETE", "POST"):
        connection = client(plain)
        assert ask(connection, signed(plain), method)[0] == 501
        connection.close()


# TLS --------------------------------------------------------------------------------------------------


def trusting(fleet: MadeFleet, files: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(fleet.data / "pki" / "root-ca.crt"))
    if files is not None:
        context.load_cert_chain(files / "device.crt", files / "device.key")
    return context


def enrolled(fleet: MadeFleet, device: str) -> Path:
    folder = fleet.folder / device
    made = enroll(fleet.data, fleet.store, device, host="127.0.0.1", port=1, now=time.time(), again=True)
    made.write(folder)
    return folder


def test_a_devices_certificate_or_a_signed_address_opens_a_blob(fleet: MadeFleet, secure: BlobServer) -> None:
    connection = client(secure, trusting(fleet, enrolled(fleet, "pi")))
    assert ask(connection, f"/blobs/{DIGEST}", Range="bytes=3-600000")[2] == BLOB[3:600_001]
    connection.close()
    connection = client(secure, trusting(fleet))
    assert ask(connection, f"/blobs/{DIGEST}")[0] == 403
    assert ask(connection, signed(secure))[2] == BLOB
    connection.close()


def test_a_revoked_or_foreign_certificate_is_refused_at_once(
    fleet: MadeFleet, secure: BlobServer, tmp_path: Path
) -> None:
    files = enrolled(fleet, "lost")
    connection = client(secure, trusting(fleet, files))
    assert ask(connection, f"/blobs/{DIGEST}")[0] == 200
    connection.close()
    pki.revoke(fleet.data, "lost", time.time())
    foreign = found(tmp_path / "foreign", now=1_780_000_000.0)
    for context in (trusting(fleet, files), trusting(fleet, enrolled(foreign, "pi"))):
        connection = client(secure, context)
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            ask(connection, f"/blobs/{DIGEST}")
        connection.close()


def test_one_that_never_shakes_hands_keeps_nobody_out(fleet: MadeFleet, secure: BlobServer) -> None:
    silent = client(secure)
    silent.connect()
    connection = client(secure, trusting(fleet))
    assert ask(connection, signed(secure))[0] == 200
    connection.close()
    silent.close()


def test_an_address_that_is_taken_is_named(plain: BlobServer, tmp_path: Path) -> None:
    taken = BrokerAddress("127.0.0.1", int(plain.server_address[1]))
    with pytest.raises(InputError, match=f"serving blobs on {taken}"), serving(tmp_path, taken, tls=False):
        pass


# Addresses and ranges ---------------------------------------------------------------------------------


def test_the_key_is_made_once_and_its_owners_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--http"):
        load_key(tmp_path)
    key = ensure_key(tmp_path)
    assert (len(key), ensure_key(tmp_path), load_key(tmp_path)) == (32, key, key)
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("template", ["ftp://x/{digest}", "https://x/blobs", "", "{digest}"])
def test_a_template_must_be_able_to_name_a_blob(template: str) -> None:
    with pytest.raises(InputError):
        check_template(template)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])  # noqa: S104 - refused
def test_an_address_that_devices_cannot_reach_needs_a_name(host: str) -> None:
    with pytest.raises(InputError, match="--blob-url"):
        public_template(host, 8443, tls=True)


def test_our_own_address_names_host_and_port() -> None:
    assert public_template("server.lan", 8443, tls=True) == "https://server.lan:8443/blobs/{digest}"
    assert public_template("::1", 80, tls=False) == "http://[::1]:80/blobs/{digest}"


@given(st.text(), st.text())
def test_no_text_is_a_signature(expires: str, given_signature: str) -> None:
    assert not is_valid(b"k" * 32, DIGEST, expires, given_signature, 0.0)


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, None), ("bytes=0-", Span(0, 99)), ("bytes=10-19", Span(10, 19)), ("bytes=90-1000", Span(90, 99)),
        ("bytes=-5", Span(95, 99)), ("bytes=-1000", Span(0, 99)), ("bytes=5-4", None), ("bytes=-", None),
        ("bytes=1-2,4-5", None), ("items=1-2", None), ("bytes=a-b", None), (" bytes=1-1 ", Span(1, 1)),
        ("bytes=²-3", None),
    ],
)  # fmt: skip
def test_one_range_is_read_and_anything_else_is_the_whole(header: str | None, wanted: Span | None) -> None:
    assert parse_range(header, 100) == wanted


@pytest.mark.parametrize(("header", "size"), [("bytes=100-", 100), ("bytes=-0", 100), ("bytes=0-", 0), ("bytes=-1", 0)])
def test_a_range_beyond_the_end_is_refused(header: str, size: int) -> None:
    with pytest.raises(UnsatisfiableError):
        parse_range(header, size)


@given(st.text(), st.integers(0, 10**12))
def test_any_header_is_a_span_inside_or_the_whole_or_refused(header: str, size: int) -> None:
    for text in (header, f"bytes={header}"):
        try:
            span = parse_range(text, size)
        except UnsatisfiableError:
            continue
        assert span is None or 0 <= span.first <= span.last < size
