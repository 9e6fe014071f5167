"""How large a packet the hub's broker takes: told by MQTT 5, found out by being disconnected on 3.1.1. Pure.

It neither connects nor writes; what was found is kept by `hub_limits`.
"""

from __future__ import annotations

from edgefleet.package.digest import BLOCK_BYTES
from edgefleet.protocol.messages import REPLY_PART_BYTES
from edgefleet.protocol.topics import PIECE_UNIT_BYTES

PIECE_SIZES = (BLOCK_BYTES, 2 * PIECE_UNIT_BYTES, PIECE_UNIT_BYTES)
HEADROOM_BYTES = 512
"""For the packet's header, its topic and its properties."""
REPLY_OVERHEAD_BYTES = 256
"""What a reply's JSON needs beside its body."""
PROVEN_AFTER_S = 2.0
"""A broker that refuses a packet ends the connection at once; one that lived on has taken it."""


class PacketLimit:
    """Piece and reply sizes for one broker."""

    def __init__(self, remembered_piece_bytes: int | None = None) -> None:
        """Begin with the piece size that was found earlier, or with a whole block."""
        self.piece_bytes = remembered_piece_bytes if remembered_piece_bytes in PIECE_SIZES else BLOCK_BYTES
        self.halvings = 0
        self.too_small: int | None = None
        """The broker's own word, where not even the smallest piece fits it."""
        self.smallest_refused = False
        """The broker said nothing, and ended the connection after the smallest piece too."""
        self._told: int | None = None
        self._found = self.piece_bytes
        self._proven_bytes = 0
        self._trial_bytes = 0
        self._trial_at = 0.0

    @property
    def part_bytes(self) -> int:
        """Most bytes of content in one part of a reply: base64 makes 4 bytes of 3."""
        packet = self._told if self._told is not None else self.piece_bytes + HEADROOM_BYTES
        room = (packet - HEADROOM_BYTES - REPLY_OVERHEAD_BYTES) * 3 // 4
        return max(1024, min(REPLY_PART_BYTES, room))

    def connected(self, max_packet_bytes: int | None) -> None:
        """A connection begins; `max_packet_bytes` is the broker's own word (CONNACK), or None."""
        self._trial_bytes = 0
        self._told = max_packet_bytes
        if max_packet_bytes is None:
            self.piece_bytes = self._found
            return
        fitting = [size for size in PIECE_SIZES if size <= max_packet_bytes - HEADROOM_BYTES]
        self.too_small = None if fitting else max_packet_bytes
        self.piece_bytes = fitting[0] if fitting else PIECE_UNIT_BYTES

    def published(self, size: int, now: float) -> None:
        """A packet with a payload of `size` bytes was handed to the socket."""
        if self._told is not None or size <= self._proven_bytes:
            return
        if size > self._trial_bytes:
            self._trial_bytes, self._trial_at = size, now

    def lived(self, now: float) -> None:
        """The connection still stands."""
        if self._trial_bytes and now - self._trial_at > PROVEN_AFTER_S:
            self._proven_bytes, self._trial_bytes = self._trial_bytes, 0
            self.smallest_refused = False

    def lost(self, *, published: bool) -> bool:
        """The connection ended, `published`: right after a large packet. True when pieces are halved for it.

        A size that this broker has taken before is never blamed: a broker that is killed in mid-pull looks the same.
        """
        suspect = published and self._told is None and self._trial_bytes > 0
        self._trial_bytes = 0
        if not suspect:
            return False
        if self.piece_bytes == PIECE_UNIT_BYTES:
            self.smallest_refused = True
            return False
        self.piece_bytes = self._found = PIECE_SIZES[PIECE_SIZES.index(self.piece_bytes) + 1]
        self.halvings += 1
        return True
