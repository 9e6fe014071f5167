"""An HTTP server with ranges on a loopback port, and the ways in which one goes wrong."""

from __future__ import annotations

import re
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class RangeServer:
    """Serves `blobs` by path; `fault` names what goes wrong, from the second block on where that makes sense."""

    def __init__(self, blobs: dict[str, bytes], fault: str = "", context: ssl.SSLContext | None = None) -> None:
        self.blobs, self.fault = blobs, fault
        self.ranges: list[tuple[str, str]] = []
        self.subjects: list[Any] = []
        self.connections = 0
        self.let_go = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://localhost:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.let_go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer.connections += 1

            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                if isinstance(self.connection, ssl.SSLSocket):
                    outer.subjects.append(self.connection.getpeercert())
                wanted = self.headers.get("Range", "")
                outer.ranges.append((self.path, wanted))
                outer.answer(self, wanted)

        return Handler

    def answer(self, handler: BaseHTTPRequestHandler, wanted: str) -> None:
        blob = self.blobs.get(handler.path.partition("?")[0])
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if blob is None or match is None:
            handler.send_error(404)
            return
        first, last = int(match[1]), int(match[2])
        content = blob[first : last + 1]
        match self.fault:
            case "refuses":
                handler.send_error(403)
            case "redirects for ever":
                _send(handler, 302, b"", {"Location": handler.path})
            case "redirects to a file":
                _send(handler, 302, b"", {"Location": "file:///etc/passwd"})
            case "redirects":
                self.fault = ""
                _send(handler, 307, b"", {"Location": f"{handler.path}?moved"})
            case "ignores the range":
                _send(handler, 200, blob, {})
            case "other range":
                _send(handler, 206, content, {"Content-Range": f"bytes {first + 1}-{last + 1}/{len(blob)}"})
            case _:
                self._send_range(handler, content, f"bytes {first}-{last}/{len(blob)}")

    def _send_range(self, handler: BaseHTTPRequestHandler, content: bytes, said: str) -> None:
        handler.send_response(206)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("Content-Range", said)
        handler.end_headers()
        if self.fault == "damages":
            content = content[:100_000] + bytes([content[100_000] ^ 1]) + content[100_001:]
        if self.fault in ("breaks off", "hangs"):
            handler.wfile.write(content[:100_000])
            if self.fault == "hangs":
                self.let_go.wait(600)
            handler.close_connection = True
            return
        handler.wfile.write(content)
        if self.fault == "closes":
            handler.close_connection = True


def _send(handler: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)
