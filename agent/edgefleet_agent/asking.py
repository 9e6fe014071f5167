"""One small answer from the hubs, in parts on the reply topic: asked for, put together, asked for again.

The clock is an argument and nothing is sent from here. The content is not judged.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from edgefleet.protocol.messages import Reply, Request, RequestKind, Status
from edgefleet.retry import backoff_s

SILENCE_S = 3.0
SILENCE_CAP_S = 30.0
BUSY_S = 1.0
MAX_ATTEMPTS = 6
MAX_PARTS = 4096
"""2 MiB in the smallest parts that a broker's limit makes of them, and some."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question; neither body nor failure: the hubs have no such thing."""

    body: bytes | None = None
    """At most the bound and one byte more, which says that there was more."""
    failure: str | None = None


class Question:
    """One question; `answer` is there when it is over."""

    def __init__(
        self, kind: RequestKind, max_bytes: int, *,
        name: str | None = None, body: bytes = b"", digest: str | None = None,
    ) -> None:  # fmt: skip
        """`name`, `body` and `digest` as in Request; an answer is cut off behind `max_bytes`."""
        self.answer: Answer | None = None
        self._kind = kind
        self._name = name
        self._body = body
        self._digest = digest
        self._max_bytes = max_bytes
        self._req_id: str | None = None
        self._parts: dict[int, bytes] = {}
        self._held_bytes = 0
        self._next_at = 0.0
        self._attempts = 0

    def due(self, now: float) -> bool:
        """Whether to ask (again) now; ends the question when it was asked often enough."""
        if self.answer is not None or now < self._next_at:
            return False
        if self._attempts >= MAX_ATTEMPTS:
            self.answer = Answer(failure=f"no answer to {self._attempts} requests")
            return False
        return True

    def request(self, req_id: str) -> Request:
        """The request to send; call `asked` when it was."""
        return Request(req_id=req_id, kind=self._kind, digest=self._digest, name=self._name, body=self._body)

    def asked(self, req_id: str, now: float) -> None:
        """It was sent: answers to older requests are nobody's from here on."""
        self._req_id, self._parts, self._held_bytes = req_id, {}, 0
        self._attempts += 1
        self._wait(now)

    def reconnected(self) -> None:
        """What was asked is lost with the old connection: ask at once, and count anew."""
        self._next_at, self._attempts = 0.0, 0

    def take(self, reply: Reply, now: float) -> bool:
        """Take a reply; False when it answers something else."""
        if self.answer is not None or reply.req_id != self._req_id:
            return False
        if reply.status is Status.OK:
            self._add(reply, now)
        elif reply.status is Status.GONE:
            self.answer = Answer()
        elif reply.status is Status.BUSY:
            # Asked for by the hub, so it is no failed attempt.
            self._attempts -= 1
            self._next_at = now + (reply.retry_after_s or BUSY_S) * random.uniform(1.0, 1.5)  # noqa: S311 - jitter
        else:
            text = " ".join(reply.body.decode(errors="replace").split())[:200]
            self.answer = Answer(failure=f"the server says {reply.status}: {text}")
        return True

    def _add(self, reply: Reply, now: float) -> None:
        if reply.part >= reply.parts or (reply.part not in self._parts and len(self._parts) >= MAX_PARTS):
            return
        self._held_bytes += len(reply.body) - len(self._parts.get(reply.part, b""))
        self._parts[reply.part] = reply.body
        self._wait(now)
        if self._held_bytes > self._max_bytes or len(self._parts) == reply.parts:
            whole = b"".join(self._parts[part] for part in sorted(self._parts))
            self.answer = Answer(body=whole[: self._max_bytes + 1])

    def _wait(self, now: float) -> None:
        """Silence is measured from the last part: a slow line is not asked twice."""
        quiet_s = backoff_s(self._attempts, SILENCE_S, SILENCE_CAP_S)
        self._next_at = now + quiet_s * random.uniform(1.0, 1.25)  # noqa: S311 - jitter, not a secret
