"""Small blobs fetched whole over the reply topic: asked for, put together, verified, asked for again.

The clock is an argument and nothing is sent from here.
"""

from __future__ import annotations

from edgefleet.package.digest import digest_of
from edgefleet.protocol.messages import Reply
from edgefleet.retry import backoff_s

RETRY_S = 2.0
RETRY_CAP_S = 60.0
MAX_BAD = 5
MAX_PARTS = 1024


class Fetch:
    """One metadata blob."""

    def __init__(self, digest: str) -> None:
        """`digest` is what the content must match."""
        self.digest = digest
        self.content: bytes | None = None
        self.bad = 0
        self._req_id: str | None = None
        self._parts: dict[int, bytes] = {}
        self._next_at = 0.0
        self._tries = 0

    def due(self, now: float) -> bool:
        """Whether to ask (again) now."""
        return self.content is None and now >= self._next_at

    def asked(self, req_id: str, now: float) -> None:
        """A request was sent; the next follows after 2 s, doubling up to 60 s."""
        self._req_id, self._parts = req_id, {}
        self._tries += 1
        self._next_at = now + backoff_s(self._tries, RETRY_S, RETRY_CAP_S)

    def reconnected(self) -> None:
        """Ask again at once."""
        self._next_at, self._tries = 0.0, 0

    def wait(self, seconds: float, now: float) -> None:
        """The hub is busy."""
        self._next_at = now + seconds

    def owns(self, reply: Reply) -> bool:
        """Whether a reply answers the last request (stale ones are nobody's)."""
        return reply.req_id == self._req_id

    def add(self, reply: Reply) -> bool:
        """Take a part; False when the whole was damaged too often to go on."""
        if reply.parts > MAX_PARTS or reply.part >= reply.parts:
            return True
        self._parts[reply.part] = reply.body
        if len(self._parts) < reply.parts:
            return True
        content = b"".join(self._parts[part] for part in sorted(self._parts))
        if digest_of(content) == self.digest:
            self.content = content
            return True
        self.bad += 1
        self._next_at, self._parts = 0.0, {}
        return self.bad < MAX_BAD
