"""sha256 of a file as a whole while it is still being written: read back behind the writer, a little at a time.

What is hashed is what the file holds, not what was meant to be written. Which of its bytes are final is for the
writer to say. No thread: two that share the interpreter wait for each other where the processor is busy.
"""

from __future__ import annotations

import hashlib
import os
from typing import IO

from edgefleet.package.digest import BLOCK_BYTES

# A writer that is called for each block catches up with what came out of order, and never holds up its loop for long.
STEP_BYTES = 4 * BLOCK_BYTES
READ_BYTES = 256 * 1024


class WholeDigest:
    """The hash of one open file, as far as it is final; `finish` does what is left."""

    def __init__(self, stream: IO[bytes]) -> None:
        """`stream` is open for reading until `finish` has returned; its position is not touched."""
        self._stream = stream
        self._known = hashlib.sha256()
        self._known_bytes = 0

    def follow(self, final_bytes: int) -> None:
        """Hash STEP_BYTES more at most of the first `final_bytes`, which will not change any more; raises OSError."""
        self._hash_up_to(min(final_bytes, self._known_bytes + STEP_BYTES))

    def finish(self, size_bytes: int) -> str:
        """Content address of the first `size_bytes`; raises OSError."""
        self._hash_up_to(size_bytes)
        return f"sha256:{self._known.hexdigest()}"

    def _hash_up_to(self, size_bytes: int) -> None:
        while (left_bytes := size_bytes - self._known_bytes) > 0:
            content = os.pread(self._stream.fileno(), min(left_bytes, READ_BYTES), self._known_bytes)
            if not content:
                return
            self._known.update(content)
            self._known_bytes += len(content)
