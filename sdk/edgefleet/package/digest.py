"""Content addresses: `sha256:<64 hex>` as the OCI image-spec writes them, and 60 KiB block digests.

A block is the unit that is verified on a device before it is kept; a blob is verified again as a whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints

BLOCK_BYTES = 60 * 1024
DIGEST_BYTES = 32
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"

Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]


def digest_of(content: bytes) -> str:
    """Content address of `content`."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def digest_of_file(path: Path) -> str:
    """Content address of a file, read once in 1 MiB steps; raises OSError."""
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def is_digest(text: str) -> bool:
    """Whether `text` is a well-formed sha256 content address."""
    return re.fullmatch(DIGEST_PATTERN[1:-1], text) is not None


def block_count(size_bytes: int) -> int:
    """How many 60 KiB blocks a blob of `size_bytes` has (the last one may be short; an empty blob has 0)."""
    return -(-size_bytes // BLOCK_BYTES)


def block_digests(path: Path) -> Iterator[bytes]:
    """Yield the raw 32-byte sha256 of each 60 KiB block of a file, in order; raises OSError."""
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            yield hashlib.sha256(block).digest()
