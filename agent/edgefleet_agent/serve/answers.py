"""What goes back to a client: an answer, and the error that becomes one.

Nothing is sent here.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

import pydantic_core

from edgefleet.errors import short_line

JSON = "application/json"
BINARY = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a body in parts; `json_bytes` is given where raw tensors follow the JSON."""

    status: HTTPStatus
    parts: tuple[bytes | memoryview, ...]
    json_bytes: int | None = None
    allow: str | None = None
    """Of a 405: the methods that there are."""

    def head(self, *, closes: bool, version: str) -> bytes:
        """The header section; `version` is the client's, 1.0 or 1.1."""
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Content-Type: {JSON if self.json_bytes is None else BINARY}",
            f"Content-Length: {sum(map(len, self.parts))}",
        ]
        if self.json_bytes is not None:
            lines.append(f"Inference-Header-Content-Length: {self.json_bytes}")
        if self.allow is not None:
            lines.append(f"Allow: {self.allow}")
        if self.status is HTTPStatus.SERVICE_UNAVAILABLE:
            lines.append("Retry-After: 1")
        if closes or version == "1.0":
            lines.append(f"Connection: {'close' if closes else 'keep-alive'}")
        # No Date: a device's clock may not know it (RFC 9110, section 6.6.1).
        return "\r\n".join([*lines, "", ""]).encode()


class RefusedError(Exception):
    """A request that is not served: the status, and the reason in one line for the protocol's error object."""

    def __init__(self, status: HTTPStatus, reason: str, *, allow: str | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.allow = allow

    def answer(self) -> Answer:
        """As the protocol says it: `{"error": reason}`."""
        body = pydantic_core.to_json({"error": short_line(str(self))})
        return Answer(self.status, (body,), allow=self.allow)


def json_answer(content: object, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    """Something that JSON has words for as an answer."""
    return Answer(status, (pydantic_core.to_json(content),))
