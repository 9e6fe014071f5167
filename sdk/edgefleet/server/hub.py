"""The hub's rules: which piece goes to which device next. Pure: no socket, no file, the clock is an argument.

Devices are served in turn, one block each; a device gets the blocks that it named and no byte more.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from edgefleet.package.digest import BLOCK_BYTES, block_count
from edgefleet.protocol.messages import MAX_CREDIT_BYTES, Request

REMEMBERED_REQUESTS = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece to send: a block of a blob."""

    device: str
    digest: str
    block: int
    offset: int
    size: int


class TokenBucket:
    """At most `rate` bytes a second on average, with a burst of 100 ms and never less than a block."""

    def __init__(self, rate_bytes_per_s: float | None, now: float) -> None:
        """`rate_bytes_per_s` None means no limit."""
        self.rate = rate_bytes_per_s
        self._capacity = max(BLOCK_BYTES, (rate_bytes_per_s or 0) / 10)
        self._tokens = self._capacity
        self._at = now

    def wait_s(self, now: float) -> float:
        """Seconds until something may be sent; 0 means now."""
        if self.rate is None:
            return 0.0
        self._tokens = min(self._capacity, self._tokens + (now - self._at) * self.rate)
        self._at = now
        return max(0.0, -self._tokens / self.rate) if self._tokens < 0 else 0.0

    def take(self, size: int) -> None:
        """Account for bytes sent; the balance may go below zero by one piece."""
        if self.rate is not None:
            self._tokens -= size


@dataclass(slots=True)
class _Outstanding:
    """What one device still gets of one blob."""

    size: int
    blocks: deque[int] = field(default_factory=deque)


class Hub:
    """Queues of blocks by device and blob; `next_piece` picks, round-robin between devices."""

    def __init__(self, bucket: TokenBucket) -> None:
        """`bucket` limits all devices together."""
        self._bucket = bucket
        self._queues: OrderedDict[str, OrderedDict[str, _Outstanding]] = OrderedDict()
        self._seen: dict[str, deque[str]] = {}
        self._sent_bytes: dict[str, int] = {}

    @property
    def idle(self) -> bool:
        """Nothing is waiting to be sent."""
        return not self._queues

    def ask(self, device: str, request: Request, size_bytes: int) -> str | None:
        """Queue the blocks that a request names of a blob of `size_bytes`; returns why it is bad, or None.

        A repeated request (QoS 1 may deliver twice) is ignored.
        """
        seen = self._seen.setdefault(device, deque(maxlen=REMEMBERED_REQUESTS))
        if request.req_id in seen:
            return None
        last, credit = block_count(size_bytes), request.credit_bytes
        blocks: list[int] = []
        for first, count in request.blocks:
            if first + count > last:
                return f"blocks {first} to {first + count - 1} of a blob with {last}"
            # Checked before the list is built: a few bytes of request must not cost megabytes here.
            credit -= (count - 1) * BLOCK_BYTES + _block_size(size_bytes, first + count - 1)
            if credit < 0:
                return f"the blocks named are more than the credit of {request.credit_bytes} bytes"
            blocks += range(first, first + count)
        seen.append(request.req_id)
        self._add(device, request, size_bytes, blocks)
        return None

    def _add(self, device: str, request: Request, size_bytes: int, blocks: Iterable[int]) -> None:
        blobs = self._queues.setdefault(device, OrderedDict())
        queue = blobs.setdefault(request.digest, _Outstanding(size_bytes))
        if request.fresh:
            queue.blocks.clear()
        queue.blocks.extend(blocks)
        # A device that asks without waiting gets what fits its credit, the newest last and first to be dropped.
        while len(queue.blocks) * BLOCK_BYTES > MAX_CREDIT_BYTES + BLOCK_BYTES:
            queue.blocks.pop()
        if not queue.blocks:
            del blobs[request.digest]
        if not blobs:
            del self._queues[device]

    def count_sent(self, piece: Piece) -> None:
        """A piece was handed to the broker."""
        self._sent_bytes[piece.device] = self._sent_bytes.get(piece.device, 0) + piece.size

    def take_sent(self) -> dict[str, int]:
        """Bytes handed to the broker since the last call, by device."""
        sent, self._sent_bytes = self._sent_bytes, {}
        return sent

    def clear(self) -> None:
        """Drop everything that waits: the broker is gone, and every device will ask anew."""
        self._queues.clear()

    def forget(self, device: str) -> None:
        """Drop what waits for a device that has gone."""
        self._queues.pop(device, None)
        self._seen.pop(device, None)

    def wait_s(self, now: float) -> float | None:
        """Seconds until `next_piece` has something, or None when nothing is queued."""
        return None if self.idle else self._bucket.wait_s(now)

    def next_piece(self, now: float) -> Piece | None:
        """The next block to send, or None when nothing is due yet."""
        if self.idle or self._bucket.wait_s(now) > 0:
            return None
        device, blobs = self._queues.popitem(last=False)
        digest, queue = next(iter(blobs.items()))
        block = queue.blocks.popleft()
        if not queue.blocks:
            del blobs[digest]
        if blobs:
            self._queues[device] = blobs
        size = _block_size(queue.size, block)
        self._bucket.take(size)
        return Piece(device, digest, block, block * BLOCK_BYTES, size)


def _block_size(size_bytes: int, block: int) -> int:
    return min(BLOCK_BYTES, size_bytes - block * BLOCK_BYTES)
