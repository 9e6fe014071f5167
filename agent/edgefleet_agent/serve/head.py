"""The head of an HTTP/1.1 request: request line and header fields, read strictly. Pure.

What two readers could understand differently (bare line feeds, folded lines, two lengths) is refused, not repaired:
that is what request smuggling lives on. Source: RFC 9112, sections 2, 3, 5 and 6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

from edgefleet_agent.serve.answers import RefusedError

MAX_TARGET_BYTES = 2048
MAX_HEAD_BYTES = 16 * 1024
MAX_FIELDS = 64
END = b"\r\n\r\n"
CHUNKED = -1
"""A body whose length nobody knows before its end."""

_REQUEST_LINE = re.compile(rb"([A-Za-z]{1,16}) ([!-~]+) HTTP/1\.([01])")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")
_LENGTH = re.compile(r"[0-9]{1,15}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Head:
    """What a request says before its body; names of fields in lower case, repeated ones joined by a comma."""

    method: str
    path: str
    host: str
    version: str
    fields: dict[str, str]
    length: int
    """Of the body in bytes, or `CHUNKED`."""
    keeps_open: bool
    expects_continue: bool


def end_of_head(buffer: bytes) -> int:
    """Where the blank line that ends the head begins, or -1; raises RefusedError when there is too much of it."""
    end = buffer.find(END)
    if (end if end >= 0 else len(buffer)) <= MAX_HEAD_BYTES:
        return end
    if buffer.find(b"\r\n", 0, MAX_HEAD_BYTES) < 0:
        raise RefusedError(HTTPStatus.REQUEST_URI_TOO_LONG, f"a request line of more than {MAX_HEAD_BYTES} bytes")
    reason = f"request line and header fields of more than {MAX_HEAD_BYTES} bytes"
    raise RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, reason)


def parse_head(raw: bytes) -> Head:
    """Read a head without the blank line that ends it; raises RefusedError."""
    first, *lines = raw.split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise _bad("the first line is not METHOD TARGET HTTP/1.1")
    if len(line[2]) > MAX_TARGET_BYTES:
        raise RefusedError(HTTPStatus.REQUEST_URI_TOO_LONG, f"a target of more than {MAX_TARGET_BYTES} bytes")
    fields = _fields(lines)
    version = f"1.{line[3].decode()}"
    path, host = _target(line[2].decode(), fields, version)
    return Head(
        method=line[1].decode(),
        path=path,
        host=host,
        version=version,
        fields=fields,
        length=_length(fields, version),
        keeps_open=_keeps_open(fields.get("connection", ""), version),
        expects_continue=_expects_continue(fields, version),
    )


def _bad(reason: str) -> RefusedError:
    return RefusedError(HTTPStatus.BAD_REQUEST, reason)


def _fields(lines: list[bytes]) -> dict[str, str]:
    if len(lines) > MAX_FIELDS:
        reason = f"more than {MAX_FIELDS} header fields"
        raise RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, reason)
    fields: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise _bad("a header field is not NAME: VALUE on one line")
        name, value = field[1].decode().lower(), field[2].decode("latin-1")
        # Repeated fields are one list (RFC 9110, 5.2). Where only one value makes sense, a list is none.
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _target(target: str, fields: dict[str, str], version: str) -> tuple[str, str]:
    """(path, host) of a target in origin form, or in the absolute form of a client that takes us for a proxy."""
    host = fields.get("host", "")
    if "host" not in fields and version == "1.1":
        raise _bad("an HTTP/1.1 request needs a Host field")
    if target[:7].lower() == "http://":
        host, slash, rest = target[7:].partition("/")
        target = slash + rest
    path = target.partition("?")[0]
    if not path.startswith("/"):
        raise _bad("the target is no path")
    return path, host


def _length(fields: dict[str, str], version: str) -> int:
    coding, length = fields.get("transfer-encoding"), fields.get("content-length")
    if coding is not None:
        if length is not None or version == "1.0":
            raise _bad("Transfer-Encoding beside Content-Length, or in HTTP/1.0")
        if coding.lower() != "chunked":
            raise RefusedError(HTTPStatus.NOT_IMPLEMENTED, "the only Transfer-Encoding is chunked")
        return CHUNKED
    if length is None:
        return 0
    if _LENGTH.fullmatch(length) is None:
        raise _bad("Content-Length is not one number")
    return int(length)


def _keeps_open(connection: str, version: str) -> bool:
    options = {option.strip() for option in connection.lower().split(",")}
    return "close" not in options and (version == "1.1" or "keep-alive" in options)


def _expects_continue(fields: dict[str, str], version: str) -> bool:
    expected = fields.get("expect")
    if expected is None or version == "1.0":
        return False
    if expected.lower() != "100-continue":
        raise RefusedError(HTTPStatus.EXPECTATION_FAILED, "the only expectation that is met is 100-continue")
    return True
