"""A registry in memory that can be made to fail: tokens with scopes, cut connections, wrong bytes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass
class Fake:
    """What the registry holds and how it misbehaves."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Tag or digest → (media type, content)."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, Range header) of every request."""
    tokens: bool = False
    """Ask for a bearer token whose scope allows the method."""
    ranges: bool = True
    alter: Callable[[str, bytes], bytes] = lambda _path, content: content
    """What is sent instead of a blob or manifest."""
    cut_after: int | None = None
    """Close the connection after so many bytes of the next large body, once."""
    authorized: list[bool] = field(default_factory=list)
    """Whether each request brought credentials."""
    uploads: str = "/v2/upload?session=1"
    """Where an upload is sent."""
    refuse: str | None = None
    """Answer 500 to a request whose path holds this."""

    def bodies_of(self, digest: str) -> list[str]:
        """Range header of every GET for a blob."""
        return [span for method, path, span in self.asked if method == "GET" and path.endswith(digest)]


@contextmanager
def fake_registry() -> Iterator[tuple[Fake, str]]:
    """Serve until the block ends; yields the registry and `127.0.0.1:PORT`."""
    fake = Fake()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield fake, f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: Fake

    def log_message(self, *_args: object) -> None:
        """Say nothing."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.fake.cut_after
        if cut is not None and len(body) > cut:
            self.fake.cut_after = None
            self.wfile.write(body[:cut])
            self.close_connection = True
            return
        self.wfile.write(body)

    def _admitted(self) -> bool:
        """Note the request; ask for a token with the right scope where that is wanted."""
        self.fake.asked.append((self.command, self.path, self.headers.get("Range", "")))
        self.fake.authorized.append("Authorization" in self.headers)
        if self.fake.refuse is not None and self.fake.refuse in self.path:
            self._answer(500, json.dumps({"errors": [{"message": "told to"}]}).encode())
            return False
        scope = "pull" if self.command in {"GET", "HEAD"} else "pull,push"
        held = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not self.fake.tokens or set(scope.split(",")) <= set(held.split(",")):
            return True
        realm = f"http://{self.headers['Host']}/token"
        challenge = f'Bearer realm="{realm}",service="fake",scope="repository:r:{scope}"'
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(401, WWW_Authenticate=challenge)
        return False

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/token":
            scope = parse_qs(url.query)["scope"][0].removeprefix("repository:r:")
            self._answer(200, json.dumps({"token": scope}).encode())
            return
        if not self._admitted():
            return
        if url.path == "/v2/":
            self._answer(200)
            return
        kind, _, name = url.path.rpartition("/")
        media_type, content = self.fake.manifests.get(name, ("", b""))
        if kind.endswith("/blobs"):
            media_type, content = "application/octet-stream", self.fake.blobs.get(name, b"")
        if not content and name not in self.fake.blobs:
            self._answer(404)
            return
        content = self.fake.alter(url.path, content)
        span = self.headers.get("Range", "")
        if span and self.fake.ranges:
            self._answer(206, content[int(span.removeprefix("bytes=").removesuffix("-")) :], Content_Type=media_type)
        else:
            self._answer(200, content, Content_Type=media_type)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        if self._admitted():
            self._answer(202, Location=self.fake.uploads)

    def do_PUT(self) -> None:
        if not self._admitted():
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        url = urlsplit(self.path)
        if "digest" in (query := parse_qs(url.query)):
            assert query["digest"] == ["sha256:" + hashlib.sha256(body).hexdigest()]
            self.fake.blobs[query["digest"][0]] = body
        else:
            self.fake.manifests[url.path.rpartition("/")[2]] = (self.headers["Content-Type"], body)
        self._answer(201)
