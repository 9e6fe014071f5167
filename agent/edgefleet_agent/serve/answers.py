"""What goes back to a client: an answer, and the error that becomes one.

Nothing is sent here.
"""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

import pydantic_core

from edgefleet.errors import short_line
from edgefleet_agent.inference_types import Described, InferRequest

JSON = "application/json"
BINARY = "application/octet-stream"


class Form(NamedTuple):
    """What of a request and its answer stays the same with other values; all of those lie raw behind the JSON."""

    asked: bytes
    """The JSON of the request."""
    request: InferRequest
    answered: bytes
    """The JSON of the answer, with %.9f for the seconds that the inference took."""
    outputs: tuple[Described, ...]
    digest: str


# A tuple, since one is made for each request: a frozen dataclass takes four times as long.
class Answer(NamedTuple):
    """A status and a body in parts; `json_bytes` is given where raw tensors follow the JSON."""

    status: HTTPStatus
    parts: tuple[bytes | memoryview, ...]
    json_bytes: int | None = None
    allow: str | None = None
    """Of a 405: the methods that there are."""
    form: Form | None = None

    def head(self, *, closes: bool, version: str) -> bytes:
        """The header section; `version` is the client's, 1.0 or 1.1."""
        connection = ("close" if closes else "keep-alive") if closes or version == "1.0" else None
        return _head(self.status, sum(map(len, self.parts)), self.json_bytes, self.allow, connection)


# A client that infers again and again is answered in the same sizes.
@lru_cache(maxsize=64)
def _head(status: int, size_bytes: int, json_bytes: int | None, allow: str | None, connection: str | None) -> bytes:
    lines = [
        f"HTTP/1.1 {status:d} {HTTPStatus(status).phrase}",
        f"Content-Type: {JSON if json_bytes is None else BINARY}",
        f"Content-Length: {size_bytes}",
    ]
    if json_bytes is not None:
        lines.append(f"Inference-Header-Content-Length: {json_bytes}")
    if allow is not None:
        lines.append(f"Allow: {allow}")
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        lines.append("Retry-After: 1")
    if connection is not None:
        lines.append(f"Connection: {connection}")
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
