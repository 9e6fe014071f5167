"""Whether a connection ended because of a packet's size. Pure: the caller gives the time.

MQTT 3.1.1 has no word for it: a broker that limits packets just closes the connection of whoever sends a larger one.
"""

from __future__ import annotations

# No broker limits packets as low as this.
SUSPECT_FROM_BYTES = 8 * 1024
WITHIN_S = 2.0


class LargestPublish:
    """The largest payload that was sent on one connection, and when its size was first tried."""

    def __init__(self) -> None:
        self._size_bytes = SUSPECT_FROM_BYTES
        self._first_at = float("-inf")

    def sent(self, size_bytes: int, now: float) -> None:
        """A payload was handed to the socket; a size that went before is no news."""
        if size_bytes > self._size_bytes:
            self._size_bytes, self._first_at = size_bytes, now

    def is_suspect(self, now: float) -> bool:
        """Whether the connection, ending now, may have ended because of it."""
        return now - self._first_at <= WITHIN_S
