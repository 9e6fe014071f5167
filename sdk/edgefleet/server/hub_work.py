"""What a hub owes its devices: replies in parts, blocks in pieces. Pure; who is next is `hub`'s rule.

Nothing is read or sent here.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from edgefleet.package.digest import BLOCK_BYTES
from edgefleet.server.budget import TokenBucket


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece to send: a block of a blob, or a part of one."""

    device: str
    digest: str
    offset: int
    size: int
    req_id: str
    """Of the device's latest request for this blob."""
    shared: bool = False
    """It goes to everyone who listens."""

    @property
    def block(self) -> int:
        """Number of the block that it belongs to."""
        return self.offset // BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a reply, ready to send."""

    device: str
    req_id: str
    part: int
    parts: int
    body: bytes


@dataclass(slots=True)
class Answer:
    """A reply on its way, in parts of `step` bytes."""

    req_id: str
    content: bytes
    step: int
    part: int = 0

    @property
    def parts(self) -> int:
        """How many parts it has."""
        return max(1, -(-len(self.content) // self.step))


@dataclass(slots=True)
class Outstanding:
    """What one device still gets of one blob."""

    size: int
    req_id: str
    blocks: deque[int] = field(default_factory=deque)
    sent_of_first: int = 0
    first_shared: bool = False
    """The pieces of the first block go to everyone who listens."""

    def drop(self, block: int) -> bool:
        """Take a block out; whether it was there."""
        if block not in self.blocks:
            return False
        if self.blocks[0] == block:
            self.sent_of_first, self.first_shared = 0, False
        self.blocks.remove(block)
        return True


@dataclass(slots=True)
class Work:
    """What one device still gets."""

    answers: deque[Answer] = field(default_factory=deque)
    blobs: OrderedDict[str, Outstanding] = field(default_factory=OrderedDict)
    bucket: TokenBucket | None = None


def block_size(size_bytes: int, block: int) -> int:
    """Bytes of a block of a blob of `size_bytes`."""
    return min(BLOCK_BYTES, size_bytes - block * BLOCK_BYTES)
