"""One blob on its way to disk: which blocks are missing, which are asked for, what came in.

`PartFile` keeps verified blocks only, so a part file can be trusted after re-hashing. `Pull` decides what to ask
for and when; it is pure: the clock is an argument and nothing is sent from here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import Iterable
from pathlib import Path

from edgefleet.package.digest import BLOCK_BYTES, DIGEST_BYTES, block_count, block_digests
from edgefleet.protocol.messages import MAX_CREDIT_BYTES, MAX_RANGES
from edgefleet.protocol.topics import PIECE_UNIT_BYTES
from edgefleet.retry import backoff_s

FIRST_CREDIT_BYTES = BLOCK_BYTES
# What a line is taken to carry before it was measured: GPRS on a bad day.
ASSUMED_BYTES_PER_S = 8000.0
CREDIT_SECONDS = 2.0
STALL_S = 2.0
STALL_INTERVALS = 4
STALL_CAP_S = 60.0
# Silence lowers the measured rate, which makes the next silence longer: without an end to that, a lossy line looks
# slower and slower until nothing is asked for any more. A line of 200 B/s brings a block in five minutes.
QUIET_CAP_S = 300.0
MAX_BAD_PER_BLOCK = 5


class PartFile:
    """A blob being assembled in a preallocated file; a block is written once it matches its digest."""

    def __init__(self, path: Path, size_bytes: int, digests: bytes) -> None:
        """Open or create; re-hash what is there. `digests` are the raw 32-byte block digests, in order.

        Raises OSError (ENOSPC: the disk cannot hold the blob).
        """
        self.path = path
        self.size_bytes = size_bytes
        self._digests = digests
        self._pieces: dict[int, dict[int, bytes]] = {}
        existing = path.exists() and path.stat().st_size == size_bytes
        self._stream = path.open("r+b" if existing else "w+b")
        try:
            if not existing and size_bytes:
                os.posix_fallocate(self._stream.fileno(), 0, size_bytes)
        except OSError:
            self._stream.close()
            path.unlink(missing_ok=True)
            raise
        done = enumerate(block_digests(path)) if existing else []
        self.verified = {block for block, raw in done if raw == self._digest(block)}
        self.verified_bytes = sum(self.block_size(block) for block in self.verified)
        """Bytes on disk that match their digests."""

    def _digest(self, block: int) -> bytes:
        return self._digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]

    def block_size(self, block: int) -> int:
        """Bytes of a block; the last one may be short."""
        return min(BLOCK_BYTES, self.size_bytes - block * BLOCK_BYTES)

    @property
    def missing(self) -> list[int]:
        """Blocks not yet verified, in order."""
        return [block for block in range(block_count(self.size_bytes)) if block not in self.verified]

    def add(self, piece: int, content: bytes) -> tuple[int, bool | None] | None:
        """Take the piece at offset `piece` × 15 KiB.

        Returns (block, True) when it completes and verifies a block, (block, False) when the completed block
        does not match its digest (its pieces are thrown away), (block, None) while pieces are missing, and None
        for a piece that fits nowhere or is not wanted. Raises OSError.
        """
        offset = piece * PIECE_UNIT_BYTES
        block, inside = divmod(offset, BLOCK_BYTES)
        if block >= block_count(self.size_bytes) or block in self.verified:
            return None
        size = self.block_size(block)
        if not content or inside + len(content) > size:
            return None
        # Another hub may cut its pieces larger or smaller: what the new one overlaps is replaced.
        kept = self._pieces.get(block, {}).items()
        end = inside + len(content)
        pieces = {start: old for start, old in kept if start + len(old) <= inside or start >= end}
        self._pieces[block] = pieces
        pieces[inside] = content
        if sum(map(len, pieces.values())) < size:
            return block, None
        del self._pieces[block]
        whole = b"".join(pieces[start] for start in sorted(pieces))
        if len(whole) != size or hashlib.sha256(whole).digest() != self._digest(block):
            return block, False
        if os.pwrite(self._stream.fileno(), whole, block * BLOCK_BYTES) != size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.verified.add(block)
        self.verified_bytes += size
        return block, True

    def abandon(self) -> None:
        """Close without waiting for the disk; what did not reach it is found missing by re-hashing."""
        self._stream.close()

    def close(self) -> None:
        """Flush to disk and close; raises OSError."""
        os.fsync(self._stream.fileno())
        self._stream.close()


class Pull:
    """What to ask for next. In flight is at most min(4 MiB, 2 s × measured rate), at least one block."""

    def __init__(self, missing: Iterable[int], now: float) -> None:
        """`missing` are the blocks wanted, in order."""
        # Insertion order is the order of asking; a dict finds and removes in constant time.
        self._todo = dict.fromkeys(missing)
        self._asked: dict[int, int] = {}
        self._bad: dict[int, int] = {}
        self._fresh = True
        self._rate_bytes_per_s = 0.0
        self._mark = (now, 0)
        self._interval_s = 0.0
        self._last_piece_at: float | None = None
        self._asked_at = now
        self._stalls = 0

    @property
    def done(self) -> bool:
        """Nothing is missing any more."""
        return not self._todo and not self._asked

    @property
    def credit_bytes(self) -> int:
        """Bytes that may be in flight now."""
        measured = int(CREDIT_SECONDS * self._rate_bytes_per_s) or FIRST_CREDIT_BYTES
        return max(BLOCK_BYTES, min(MAX_CREDIT_BYTES, measured))

    @property
    def stall_s(self) -> float:
        """Silence after which what was asked for counts as lost; doubles with each stall in a row, at most 60 s.

        A slow line is not a stall: a block may take as long as the measured (or assumed) rate says.
        """
        block_s = BLOCK_BYTES / (self._rate_bytes_per_s or ASSUMED_BYTES_PER_S)
        quiet_s = min(QUIET_CAP_S, max(STALL_S, STALL_INTERVALS * self._interval_s, block_s))
        return backoff_s(self._stalls + 1, quiet_s, max(STALL_CAP_S, quiet_s))

    def next_request(self, now: float, jitter: float | None = None) -> tuple[list[tuple[int, int]], bool] | None:
        """(block ranges to name, fresh) when it is time to ask, else None.

        `jitter` in 0..1 spreads the repeats of many devices; None draws one.
        """
        if self._asked and now - max(self._asked_at, self._last_piece_at or 0.0) > self.stall_s:
            self._stalls += 1
            self._lose_all()
            # The next silence is measured from here, up to a quarter later than asked for.
            self._asked_at = now + self.stall_s / 4 * (random.random() if jitter is None else jitter)  # noqa: S311
            return self._take(self._asked_at)
        if not self._todo or sum(self._asked.values()) > self.credit_bytes // 2:
            return None
        return self._take(now)

    def _take(self, now: float) -> tuple[list[tuple[int, int]], bool]:
        free = self.credit_bytes - sum(self._asked.values())
        chosen: list[int] = []
        while self._todo and len(chosen) < MAX_RANGES and (free >= BLOCK_BYTES or not (chosen or self._asked)):
            block = next(iter(self._todo))
            del self._todo[block]
            chosen.append(block)
            free -= BLOCK_BYTES
        self._asked.update(dict.fromkeys(chosen, BLOCK_BYTES))
        self._asked_at = now
        fresh, self._fresh = self._fresh, False
        return ranges(chosen), fresh

    def received(self, block: int, verified: bool | None, size: int, now: float) -> bool:
        """Account for a piece of `size` bytes; False when the block was bad too often to go on."""
        self.alive(size, now)
        if verified is None:
            return True
        self._asked.pop(block, None)
        if verified:
            self._todo.pop(block, None)
            return True
        self._bad[block] = self._bad.get(block, 0) + 1
        self._todo.pop(block, None)
        self._todo = {block: None} | self._todo
        return self._bad[block] < MAX_BAD_PER_BLOCK

    def alive(self, size: int, now: float) -> None:
        """A piece of this blob came, wanted or not: the line works."""
        self._measure(size, now)
        self._stalls = 0

    def reconnected(self) -> None:
        """What was in flight is gone with the old connection: ask again at once."""
        self._lose_all()
        self._last_piece_at = None
        self._stalls = 0

    def _lose_all(self) -> None:
        self._todo = dict.fromkeys(sorted(self._asked)) | self._todo
        self._asked.clear()
        self._fresh = True

    def _measure(self, size: int, now: float) -> None:
        if self._last_piece_at is not None:
            gap_s = now - self._last_piece_at
            self._interval_s += (gap_s - self._interval_s) / 8
        self._last_piece_at = now
        since, counted = self._mark
        counted += size
        if now - since >= 0.1:
            rate = counted / (now - since)
            self._rate_bytes_per_s = rate if not self._rate_bytes_per_s else (self._rate_bytes_per_s + rate) / 2
            since, counted = now, 0
        self._mark = (since, counted)


def ranges(blocks: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of consecutive blocks as (first, count), in the order given."""
    found: list[tuple[int, int]] = []
    for block in blocks:
        if found and block == found[-1][0] + found[-1][1]:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((block, 1))
    return found
