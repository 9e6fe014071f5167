"""Blocks over HTTP(S) by Range requests (RFC 9110, section 14), in a thread of its own.

It hands on what came and verifies nothing; the first failure ends it, and what is missing then is the caller's to
pull in another way.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import queue
import re
import socket
import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

from edgefleet.package.digest import BLOCK_BYTES

TIMEOUT_S = 10.0
QUEUED_BLOCKS = 32
MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_SCHEMES = ("http", "https")


class HttpPullError(Exception):
    """The transfer cannot go on; one line says why."""


@dataclass(frozen=True, slots=True)
class HttpAccess:
    """How blobs may be had over HTTP, and who this device is to our own server."""

    base_url: str | None
    """Configured; `{digest}` in it is replaced, else it is added at the end. None: only where a hub says."""
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    broker_host: str | None = None
    """The one host, beside the configured one, that may be this device itself or lie on its link; None: any may."""

    def admits(self, host: str, address: str) -> bool:
        """Whether `host` may be asked at `address`, which it turned out to have.

        Who speaks for a hub names any address: what listens on this device only, or gives a machine in a cloud its
        credentials, is not for him.
        """
        if self.broker_host is None or host in (self.broker_host, urlsplit(self.base_url or "").hostname):
            return True
        found = ipaddress.ip_address(address.partition("%")[0])
        found = getattr(found, "ipv4_mapped", None) or found
        return not (found.is_loopback or found.is_link_local or found.is_unspecified or found.is_multicast)

    def url(self, digest: str) -> str | None:
        """Where the configuration says that a blob is."""
        if self.base_url is None:
            return None
        if "{digest}" in self.base_url:
            return self.base_url.replace("{digest}", digest)
        return f"{self.base_url.rstrip('/')}/{digest}"

    def context(self, *, with_certificate: bool) -> ssl.SSLContext:
        """TLS settings; raises OSError (ssl.SSLError is one). The certificate is for the configured place only."""
        context = ssl.create_default_context()
        if self.ca_file is not None:
            context.load_verify_locations(self.ca_file)
        if with_certificate and self.certificate_file is not None:
            context.load_cert_chain(self.certificate_file, self.key_file)
        return context


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive missing blocks of one blob: whole blocks, but for the end of the blob."""

    url: str
    first_block: int
    """As the caller numbers blocks."""
    offset: int
    size_bytes: int


class HttpPull:
    """One transfer of several spans, in order."""

    def __init__(self, access: HttpAccess, spans: Sequence[Span]) -> None:
        """Start it."""
        self._access = access
        self._spans = list(spans)
        self._blocks: queue.Queue[tuple[int, bytes]] = queue.Queue(QUEUED_BLOCKS)
        self._failure: str | None = None
        self._ended = threading.Event()
        self._stopped = threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        self._place: tuple[str, str] | None = None
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        threading.Thread(target=self._run, name="http-pull", daemon=True).start()

    def fileno(self) -> int:
        """Becomes readable when there is something to take."""
        return self._ours.fileno()

    def take(self) -> tuple[list[tuple[int, bytes]], bool, str | None]:
        """(blocks that came since the last call, whether it has ended, why it failed); never blocks."""
        with suppress(BlockingIOError):
            while self._ours.recv(4096):
                pass
        ended = self._ended.is_set()
        blocks: list[tuple[int, bytes]] = []
        with suppress(queue.Empty):
            while True:
                blocks.append(self._blocks.get_nowait())
        return blocks, ended, self._failure if ended else None

    def close(self) -> None:
        """End it without waiting; what comes afterwards is nobody's."""
        self._stopped.set()
        connection = self._connection
        channel = connection.sock if connection is not None else None
        if channel is not None:
            # Wakes the thread out of a read; through the descriptor, for a TLS socket of two threads is nobody's.
            with suppress(OSError), socket.socket(fileno=os.dup(channel.fileno())) as plain:
                plain.shutdown(socket.SHUT_RDWR)
        self._ours.close()

    # In the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for span in self._spans:
                self._pull(span)
        except HttpPullError as error:
            self._failure = str(error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
            self._failure = " ".join(text.split())
        finally:
            if self._connection is not None:
                self._connection.close()
            self._ended.set()
            self._wake()
            self._theirs.close()

    def _pull(self, span: Span) -> None:
        response = self._respond(span)
        block, to_come = span.first_block, span.size_bytes
        while to_come:
            size = min(BLOCK_BYTES, to_come)
            content = response.read(size)
            if len(content) < size:
                raise HttpPullError(f"the answer ended {to_come - len(content)} bytes early")
            self._put(block, content)
            block, to_come = block + 1, to_come - size
        # The connection can be used again once the answer was read to its end.
        response.read(1)

    def _put(self, block: int, content: bytes) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._blocks.put((block, content), timeout=0.1)
                self._wake()
                return
        raise HttpPullError("it was stopped")

    def _wake(self) -> None:
        with suppress(OSError):
            self._theirs.send(b"x")

    def _respond(self, span: Span) -> http.client.HTTPResponse:
        url, own = span.url, self._access.base_url is not None
        for _ in range(MAX_REDIRECTS + 1):
            if self._stopped.is_set():
                raise HttpPullError("it was stopped")
            response = self._request(url, span, with_certificate=own)
            if response.status not in _REDIRECTS:
                _check(response, span)
                return response
            url, own = urljoin(url, response.headers.get("Location", "")), False
            response.close()
        raise HttpPullError(f"more than {MAX_REDIRECTS} redirections")

    def _request(self, url: str, span: Span, *, with_certificate: bool) -> http.client.HTTPResponse:
        """Ask on the connection that is there; a server may have closed it since the last answer."""
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise HttpPullError(f"{parts.scheme or 'no'}://{parts.hostname or ''} is no place to pull from")
        if re.search(r"[\x00-\x20\x7f]", url):
            raise HttpPullError("an address with spaces or control characters is no place to pull from")
        place = (parts.scheme, parts.netloc)
        if self._connection is not None and self._place == place:
            with suppress(http.client.RemoteDisconnected, ConnectionError):
                return self._ask(self._connection, parts, span)
        if self._connection is not None:
            self._connection.close()
        self._connection, self._place = self._connect(parts, with_certificate=with_certificate), place
        self._connection.connect()
        if not self._access.admits(parts.hostname, self._connection.sock.getpeername()[0]):
            raise HttpPullError(f"{parts.hostname} is an address on this device or its link")
        return self._ask(self._connection, parts, span)

    def _connect(self, parts: SplitResult, *, with_certificate: bool) -> http.client.HTTPConnection:
        host = parts.hostname or ""
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_S)
        context = self._access.context(with_certificate=with_certificate)
        return http.client.HTTPSConnection(host, parts.port, timeout=TIMEOUT_S, context=context)

    @staticmethod
    def _ask(connection: http.client.HTTPConnection, parts: SplitResult, span: Span) -> http.client.HTTPResponse:
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        wanted = f"bytes={span.offset}-{span.offset + span.size_bytes - 1}"
        connection.request("GET", target, headers={"Range": wanted, "Accept-Encoding": "identity"})
        return connection.getresponse()


def _check(response: http.client.HTTPResponse, span: Span) -> None:
    """Raise HttpPullError for an answer that is not the span."""
    if response.status == 200 and span.offset == 0 and response.length == span.size_bytes:
        return
    if response.status != 206:
        raise HttpPullError(f"the server answered {response.status}")
    said = response.headers.get("Content-Range", "")
    if re.match(rf"bytes {span.offset}-{span.offset + span.size_bytes - 1}/", said) is None:
        raise HttpPullError("the server sent another range than was asked for")
