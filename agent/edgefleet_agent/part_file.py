"""One blob on its way to disk: a preallocated file that takes a block once the block matches its digest.

It keeps verified blocks only, so it can be trusted after re-hashing. It asks for nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgefleet.package.digest import BLOCK_BYTES, DIGEST_BYTES, block_count, block_digests
from edgefleet.protocol.topics import PIECE_UNIT_BYTES

# What a peer that sends the beginnings of many blocks may occupy: 7.5 MiB, and twice what may be in flight.
MAX_INCOMPLETE = 128


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a piece that fits: the block it belongs to, and the bytes of that block that are here."""

    block: int
    held_bytes: int
    verified: bool | None
    """None while pieces are missing; False when the whole block did not match and was thrown away."""


class PartFile:
    """A blob being assembled; it is written in any order, and becomes durable by `close`."""

    def __init__(
        self, path: Path, size_bytes: int, digests: bytes, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Open or create, and re-hash what is there until `cancelled`. `digests` are the raw 32-byte block digests,
        in order. Raises OSError (ENOSPC: the disk cannot hold the blob).
        """
        self.path = path
        self.size_bytes = size_bytes
        self._digests = digests
        self._pieces: dict[int, dict[int, bytes]] = {}
        existing = path.exists() and path.stat().st_size == size_bytes
        self._stream = path.open("r+b" if existing else "w+b")
        try:
            if size_bytes:
                # Of an existing file as well: a copy of it may be sparse.
                os.posix_fallocate(self._stream.fileno(), 0, size_bytes)
        except OSError:
            self._stream.close()
            if not existing:
                path.unlink(missing_ok=True)
            raise
        self.verified: set[int] = set()
        self.verified_bytes = 0
        """Bytes on disk that match their digests."""
        if existing:
            self._rehash(cancelled)

    def _rehash(self, cancelled: Callable[[], bool]) -> None:
        for block, raw in enumerate(block_digests(self.path)):
            if cancelled():
                return
            if raw == self.digest(block):
                self._note_verified(block)

    def _note_verified(self, block: int) -> None:
        self.verified.add(block)
        self.verified_bytes += self.block_size(block)
        self._pieces.pop(block, None)

    def digest(self, block: int) -> bytes:
        """Raw sha256 that a block must have."""
        return self._digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]

    def block_size(self, block: int) -> int:
        """Bytes of a block; the last one may be short."""
        return min(BLOCK_BYTES, self.size_bytes - block * BLOCK_BYTES)

    @property
    def missing(self) -> list[int]:
        """Blocks not yet verified, in order."""
        return [block for block in range(block_count(self.size_bytes)) if block not in self.verified]

    def add(self, piece: int, content: bytes) -> Added | None:
        """Take the piece at offset `piece` × 15 KiB; None for one that fits nowhere or is not wanted.

        Raises OSError.
        """
        block, inside = divmod(piece * PIECE_UNIT_BYTES, BLOCK_BYTES)
        if block >= block_count(self.size_bytes) or block in self.verified:
            return None
        size, end = self.block_size(block), inside + len(content)
        # What neither ends on a unit nor with its block was cut short on the way.
        if not content or end > size or (end < size and end % PIECE_UNIT_BYTES):
            return None
        if block not in self._pieces and len(self._pieces) >= MAX_INCOMPLETE:
            return None
        # Another hub may cut its pieces larger or smaller: what the new one overlaps is replaced.
        kept = self._pieces.get(block, {}).items()
        pieces = {start: old for start, old in kept if start + len(old) <= inside or start >= end}
        self._pieces[block] = pieces
        pieces[inside] = content
        held = sum(map(len, pieces.values()))
        if held < size:
            return Added(block, held, None)
        del self._pieces[block]
        good = self.add_block(block, b"".join(pieces[start] for start in sorted(pieces)))
        return Added(block, size if good else 0, good)

    def add_block(self, block: int, content: bytes) -> bool:
        """Write a whole block that matches its digest; False (and nothing written) for another; raises OSError."""
        if hashlib.sha256(content).digest() != self.digest(block) or len(content) != self.block_size(block):
            return False
        if block in self.verified:
            return True
        if os.pwrite(self._stream.fileno(), content, block * BLOCK_BYTES) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._note_verified(block)
        return True

    def abandon(self) -> None:
        """Close without waiting for the disk; what did not reach it is found missing by re-hashing."""
        self._stream.close()

    def close(self) -> None:
        """Flush to disk and close; raises OSError, and the file is gone then."""
        try:
            os.fsync(self._stream.fileno())
        except OSError:
            # The kernel forgets what it could not write: re-hashing would read it from memory, and believe it.
            self.path.unlink(missing_ok=True)
            raise
        finally:
            self._stream.close()
