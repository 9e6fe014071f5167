"""Frames between the agent and its trust process: four bytes of length, one of kind, then the body.

It neither reads nor writes; both sides have the same table of kinds.
"""

from __future__ import annotations

import struct
from enum import IntEnum

HEADER = struct.Struct("!IB")
MAX_BODY_BYTES = 8 * 1024 * 1024


class Kind(IntEnum):
    """What a frame is."""

    JOB = 1
    """To the process, once: what to do, as JSON."""
    FETCH = 2
    """From it: a metadata file is wanted, as JSON {name, max_bytes}. Exactly one of the next three answers."""
    BODY = 3
    """To it: the file."""
    NONE = 4
    """To it: there is no such file."""
    FAILED = 5
    """To it: the file could not be fetched; the body says why."""
    DONE = 6
    """From it, last: the job is done; the result as JSON."""
    REFUSED = 7
    """From it, last: not to be trusted; the body says why."""
    UNAVAILABLE = 8
    """From it, last: it could not be decided now; the body says why."""


_KINDS = frozenset(int(kind) for kind in Kind)
LAST_KINDS = frozenset({Kind.DONE, Kind.REFUSED, Kind.UNAVAILABLE})


class FrameError(ValueError):
    """The other side does not speak in frames."""


def pack(kind: Kind, body: bytes = b"") -> bytes:
    """A frame, ready to be written."""
    return HEADER.pack(len(body), kind) + body


def take(buffer: bytearray) -> tuple[Kind, bytes] | None:
    """Cut the first frame off `buffer`; None while it is not whole; raises FrameError."""
    if len(buffer) < HEADER.size:
        return None
    length, number = HEADER.unpack_from(buffer)
    if length > MAX_BODY_BYTES or number not in _KINDS:
        raise FrameError(f"a frame of kind {number} with {length} bytes")
    end = HEADER.size + length
    if len(buffer) < end:
        return None
    body = bytes(buffer[HEADER.size : end])
    del buffer[:end]
    return Kind(number), body
