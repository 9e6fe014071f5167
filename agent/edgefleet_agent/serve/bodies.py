"""The body of a request as it comes in, of a known length or in chunks, within a limit. Pure.

Source: RFC 9112, sections 6 and 7.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

from edgefleet_agent.serve.answers import RefusedError
from edgefleet_agent.serve.head import MAX_HEAD_BYTES

MAX_CHUNK_LINE_BYTES = 256
# Each costs the loop some microseconds: 8 MB come in 2,048 chunks of 4 KiB.
MAX_CHUNKS = 16_384
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,12})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?")


class Body(Protocol):
    """What has come of a body."""

    @property
    def complete(self) -> bool:
        """Whether all of it is there."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Take what belongs to it; returns what comes after its end, b"" before. Raises RefusedError."""
        ...

    def content(self) -> memoryview:
        """The complete body."""
        ...


class SizedBody:
    """A body whose length the head told."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._whole: bytes | bytearray | None = b"" if length == 0 else None
        self._got = 0

    @property
    def complete(self) -> bool:
        """Whether all of it is there."""
        return self._got == self._length

    def feed(self, data: bytes) -> bytes:
        """Take what belongs to it; returns what comes after its end."""
        wanted = self._length - self._got
        if self._whole is None and len(data) >= wanted:
            # All in one piece, as most requests come: nothing to put together.
            self._whole = data[:wanted]
        elif wanted:
            if self._whole is None:
                self._whole = bytearray(self._length)
            piece = data[:wanted]
            memoryview(self._whole)[self._got : self._got + len(piece)] = piece
        self._got += min(wanted, len(data))
        return data[wanted:]

    def content(self) -> memoryview:
        """The complete body."""
        return memoryview(self._whole or b"")


class ChunkedBody:
    """A body in chunks; trailers are read over."""

    def __init__(self, limit: int) -> None:
        """`limit` in bytes, of the body without its chunks' lines."""
        self._limit = limit
        self._content = bytearray()
        self._buffer = b""
        self._position = 0
        self._chunks = 0
        self._data_left = 0
        self._step: Callable[[], bool] = self._size_line
        self.complete = False

    def feed(self, data: bytes) -> bytes:
        """Take what belongs to it; returns what comes after its end, b"" before. Raises RefusedError."""
        self._buffer, self._position = self._buffer[self._position :] + data, 0
        while not self.complete and self._step():
            pass
        return self._buffer[self._position :] if self.complete else b""

    def content(self) -> memoryview:
        """The complete body."""
        return memoryview(self._content)

    def _size_line(self) -> bool:
        """Take a chunk's first line; False when it is not there yet, here and below."""
        line = self._line(MAX_CHUNK_LINE_BYTES)
        if line is None:
            return False
        match = _CHUNK_LINE.fullmatch(line)
        self._chunks += 1
        if match is None or self._chunks > MAX_CHUNKS:
            raise _bad(f"more than {MAX_CHUNKS} chunks" if match else "a chunk does not begin with its size")
        self._data_left = int(match[1], 16)
        if len(self._content) + self._data_left > self._limit:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of more than {self._limit} bytes")
        self._step = self._data if self._data_left else self._trailer
        return True

    def _data(self) -> bool:
        piece = self._buffer[self._position : self._position + self._data_left]
        self._content += piece
        self._position += len(piece)
        self._data_left -= len(piece)
        if self._data_left:
            return False
        self._step = self._end_of_data
        return True

    def _end_of_data(self) -> bool:
        found = self._buffer[self._position : self._position + 2]
        if not b"\r\n".startswith(found):
            raise _bad("a chunk is longer than the size before it")
        if len(found) < 2:
            return False
        self._position += 2
        self._step = self._size_line
        return True

    def _trailer(self) -> bool:
        line = self._line(MAX_HEAD_BYTES)
        self.complete = line == b""
        return line is not None

    def _line(self, limit: int) -> bytes | None:
        start = self._position
        end = self._buffer.find(b"\r\n", start, start + limit)
        if end >= 0:
            self._position = end + 2
            return self._buffer[start:end]
        if len(self._buffer) - start >= limit:
            raise _bad(f"a line between chunks of more than {limit} bytes")
        return None


def _bad(reason: str) -> RefusedError:
    return RefusedError(HTTPStatus.BAD_REQUEST, reason)
