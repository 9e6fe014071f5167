"""Blobs over HTTP(S): GET and HEAD of /blobs/{digest} with one Range, in threads beside the server's loop.

Nobody gets one without a certificate of our authority or a signed address; nothing else is served, nothing is listed.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

from edgefleet.errors import InputError
from edgefleet.mqtt import BrokerAddress
from edgefleet.package.digest import is_digest
from edgefleet.package.layout import BlobStore
from edgefleet.protocol.topics import SERVER_USER
from edgefleet.server.data_folder import tls_of
from edgefleet.server.http_ranges import Span, UnsatisfiableError, parse_range
from edgefleet.server.locate import ensure_key, is_valid

IDLE_S = 30.0
STOP_POLL_S = 0.1
MAX_CONNECTIONS = 256
CHUNK_BYTES = 256 * 1024
CRL_FILE = "crl.pem"
PREFIX = "/blobs/"

log = logging.getLogger("edgefleet.http")


class ServerTls:
    """Our certificate and whom we believe; the files are read again when one of them was replaced."""

    def __init__(self, data: Path) -> None:
        files = tls_of(data, SERVER_USER)
        self._files = files
        self._crl_file = files.ca_file.with_name(CRL_FILE)
        self._times: tuple[int, ...] = ()
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Lock()

    def context(self) -> ssl.SSLContext:
        """A context that asks for a client's certificate, and checks it where there is one; raises OSError."""
        watched = (self._files.ca_file, self._files.certificate_file, self._files.key_file, self._crl_file)
        with self._lock:
            times = tuple(path.stat().st_mtime_ns for path in watched)
            if self._context is None or times != self._times:
                self._context, self._times = self._load(), times
            return self._context

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._files.certificate_file, self._files.key_file)
        context.load_verify_locations(self._files.ca_file)
        context.load_verify_locations(self._crl_file)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        context.verify_mode = ssl.CERT_OPTIONAL
        return context


class BlobServer(ThreadingHTTPServer):
    """One thread for each connection, and only so many of them."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, data: Path, listen: BrokerAddress, *, tls: bool) -> None:
        """Listen; raises InputError when the address cannot be had."""
        self.address_family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        self.blobs = BlobStore(data)
        self.key = ensure_key(data)
        self._tls = ServerTls(data) if tls else None
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        try:
            super().__init__((listen.host, listen.port), _Handler)
        except OSError as error:
            raise InputError(
                f"serving blobs on {listen}", error.strerror or str(error), "choose another --http HOST:PORT"
            ) from error

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - the base's signature
        """Whether there is a thread for one more connection; called before one is started."""
        return self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands in the connection's own thread: a slow client must not keep others out."""
        request.settimeout(IDLE_S)
        if self._tls is not None:
            request = self._tls.context().wrap_socket(request, server_side=True)
        with request:
            super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base's signature
        """What ends a connection is the client's own affair."""
        log.debug("a connection from %s ended: %r", client_address, sys.exc_info()[1])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "edgefleet"
    sys_version = ""
    server: BlobServer
    wbufsize = 0
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Send a blob, or a part of it."""
        self._serve(with_body=True)

    def do_HEAD(self) -> None:
        """Say what a GET would send."""
        self._serve(with_body=False)

    def _serve(self, *, with_body: bool) -> None:
        parts = urlsplit(self.path)
        digest = parts.path.removeprefix(PREFIX).replace("%3A", ":").replace("%3a", ":")
        if not parts.path.startswith(PREFIX) or not is_digest(digest):
            self._refuse(HTTPStatus.NOT_FOUND)
        elif not self._may_have(digest, parts.query):
            self._refuse(HTTPStatus.FORBIDDEN)
        else:
            try:
                stream = self.server.blobs.path(digest).open("rb", buffering=0)
            except OSError:
                self._refuse(HTTPStatus.NOT_FOUND)
                return
            with stream:
                self._send(stream, digest, with_body=with_body)

    def _may_have(self, digest: str, query: str) -> bool:
        if isinstance(self.connection, ssl.SSLSocket) and self.connection.getpeercert():
            return True
        given = {name: values[-1] for name, values in parse_qs(query, max_num_fields=8).items()}
        return is_valid(self.server.key, digest, given.get("expires", ""), given.get("signature", ""), time.time())

    def _send(self, stream: IO[bytes], digest: str, *, with_body: bool) -> None:
        size, tag = os.fstat(stream.fileno()).st_size, f'"{digest}"'
        try:
            unchanged = self.headers.get("If-Range", tag) == tag
            span = parse_range(self.headers.get("Range"), size) if unchanged else None
        except UnsatisfiableError:
            self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"})
            return
        self.send_response(HTTPStatus.OK if span is None else HTTPStatus.PARTIAL_CONTENT)
        if span is not None:
            self.send_header("Content-Range", f"bytes {span.first}-{span.last}/{size}")
        span = span or Span(0, size - 1)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(span.size))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", tag)
        self.send_header("Cache-Control", "private, immutable, max-age=31536000")
        self.end_headers()
        if with_body:
            self._copy(stream, span)

    def _copy(self, stream: IO[bytes], span: Span) -> None:
        """Send the bytes: by the kernel where they go out as they are."""
        if not isinstance(self.connection, ssl.SSLSocket):
            if span.size:
                self.connection.sendfile(stream, span.first, span.size)
            return
        offset, end = span.first, span.last + 1
        while offset < end:
            chunk = os.pread(stream.fileno(), min(CHUNK_BYTES, end - offset), offset)
            if not chunk:
                # Shorter than promised: only a closed connection says so.
                self.close_connection = True
                return
            self.connection.sendall(chunk)
            offset += len(chunk)

    def _refuse(self, status: HTTPStatus, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's signature
        """Only for those who look for it."""
        log.debug("%s: %s", self.client_address[0], format % args)


@contextmanager
def serving(data: Path, listen: BrokerAddress | None, *, tls: bool) -> Iterator[BlobServer | None]:
    """Serve blobs in the background while the block runs; nothing when there is no address to listen on."""
    if listen is None:
        yield None
        return
    server = BlobServer(data, listen, tls=tls)
    thread = threading.Thread(target=server.serve_forever, args=(STOP_POLL_S,), name="http", daemon=True)
    thread.start()
    log.info("serving blobs on %s", listen)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
