"""The one byte range of a request, as RFC 9110 (section 14) reads it. Pure.

Several ranges at once are answered with the whole, which the RFC allows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class UnsatisfiableError(ValueError):
    """The range lies outside of what there is (416)."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `first` to `last`, both included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.last - self.first + 1


def parse_range(header: str | None, size: int) -> Span | None:
    """The span that a Range header asks for of `size` bytes; None for the whole. Raises UnsatisfiableError."""
    match = None if header is None else _RANGE.fullmatch(header.strip())
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        wanted = int(match[2])
        if wanted == 0 or size == 0:
            raise UnsatisfiableError(header)
        return Span(max(0, size - wanted), size - 1)
    first = int(match[1])
    if match[2] and int(match[2]) < first:
        # Not a range at all: such a header is ignored.
        return None
    if first >= size:
        raise UnsatisfiableError(header)
    return Span(first, min(size - 1, int(match[2]) if match[2] else size - 1))
