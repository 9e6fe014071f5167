"""Small blobs fetched whole over the reply topic: asked for, put together, verified, asked for again.

The clock is an argument and nothing is sent from here.
"""

from __future__ import annotations

import random
import zlib
from collections import OrderedDict

from edgefleet.package.digest import digest_of
from edgefleet.protocol.messages import Reply
from edgefleet.retry import backoff_s

RETRY_S = 2.0
RETRY_CAP_S = 60.0
MAX_BAD = 5
MAX_PARTS = 1024
MAX_BYTES = 4 * 1024 * 1024
# With the waits between them half an hour of a broker that is there and hubs that are not.
MAX_TRIES = 30
# On a slow line the answer to an older request may still be coming in.
OPEN_REQUESTS = 4


class Fetch:
    """One metadata blob."""

    def __init__(self, digest: str) -> None:
        """`digest` is what the content must match."""
        self.digest = digest
        self.content: bytes | None = None
        self.bad = 0
        self._answers: OrderedDict[str, dict[int, bytes]] = OrderedDict()
        self._next_at = 0.0
        self._tries = 0

    @property
    def gave_up(self) -> bool:
        """Asked again and again, and nothing came."""
        return self._tries > MAX_TRIES

    def due(self, now: float) -> bool:
        """Whether to ask (again) now."""
        return self.content is None and now >= self._next_at

    def asked(self, req_id: str, now: float) -> None:
        """A request was sent; the next follows after 2 s of silence, doubling up to 60 s."""
        self._answers[req_id] = {}
        if len(self._answers) > OPEN_REQUESTS:
            self._answers.popitem(last=False)
        self._tries += 1
        self._next_at = now + backoff_s(self._tries, RETRY_S, RETRY_CAP_S)

    def reconnected(self) -> None:
        """Ask again at once."""
        self._next_at, self._tries = 0.0, 0

    def wait(self, seconds: float, now: float, jitter: float | None = None) -> None:
        """The hub is busy: ask after `seconds`, and up to half of that later; `jitter` in 0..1, None draws one."""
        drawn = random.random() if jitter is None else jitter  # noqa: S311 - jitter, not a secret
        self._next_at, self._tries = now + seconds * (1 + drawn / 2), 0

    def owns(self, reply: Reply) -> bool:
        """Whether a reply answers one of the last requests (stale ones are nobody's)."""
        return reply.req_id in self._answers

    def add(self, reply: Reply, now: float) -> bool:
        """Take a part; False when the whole was damaged too often to go on."""
        parts = self._answers.get(reply.req_id)
        if parts is None or self.content is not None or reply.parts > MAX_PARTS or reply.part >= reply.parts:
            return True
        if sum(map(len, parts.values())) + len(reply.body) > MAX_BYTES:
            return True
        self._next_at = max(self._next_at, now + RETRY_S)
        parts[reply.part] = reply.body
        if len(parts) < reply.parts:
            return True
        content = b"".join(parts[part] for part in sorted(parts))
        if digest_of(content) != self.digest:
            content = _inflated(content)
        if digest_of(content) == self.digest:
            self.content = content
            self._answers.clear()
            return True
        self.bad += 1
        self._answers.clear()
        self._next_at = 0.0
        return self.bad < MAX_BAD


def _inflated(content: bytes) -> bytes:
    """What was deflated, up to what a blob may have; nothing where it was not."""
    try:
        return zlib.decompressobj().decompress(content, MAX_BYTES)
    except zlib.error:
        return b""
