"""Renewing the device's certificate: a new key made here, a request over the wire, a check, one rename.

Key and certificate are made and verified by the trust process; the old ones serve until the new ones are in place.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from edgefleet.errors import InputError
from edgefleet.identity import DeviceIdentity, needs_renewal
from edgefleet.protocol.messages import Reply, RequestKind
from edgefleet.retry import backoff_s
from edgefleet_agent.asking import Answer, Question
from edgefleet_agent.trust_frames import Kind
from edgefleet_agent.trust_queue import Job, Line, TrustQueue
from edgefleet_agent.trust_session import Outcome

JOB = "certificate"
LOOK_EVERY_S = 3600.0
# The server renews once a day at most; a clock that is wrong must not make that a loop.
AFTER_SUCCESS_S = 86400.0
RETRY_FIRST_S = 600.0
RETRY_CAP_S = 86400.0
MAX_CHAIN_BYTES = 64 * 1024
ATTEMPTS = 3

log = logging.getLogger("edgefleet.agent")


class Host(Line, Protocol):
    """What a renewal needs of its agent."""

    def renewed(self) -> None:
        """Connect anew: there is another certificate."""
        ...

    def note(self, kind: str, text: str) -> None:
        """Record an event."""
        ...

    def wall_clock(self) -> float:
        """Seconds since 1970, never before what was verified last."""
        ...

    def trust_job(self, kind: str, **content: Any) -> Mapping[str, Any]:
        """What the trust process is told."""
        ...


class Renewal:
    """The certificate of one identity."""

    def __init__(self, identity: DeviceIdentity, queue: TrustQueue, host: Host) -> None:
        """Nothing is done before `tick`."""
        self._identity = identity
        self._queue = queue
        self._host = host
        self._question: Question | None = None
        self._now = self._next_look = 0.0
        self._failures = 0
        self._said: str | None = None

    @property
    def under_way(self) -> bool:
        """Whether one was begun and has not ended."""
        return self._question is not None or bool(self._queue.jobs(JOB))

    def tick(self, now: float) -> None:
        """Begin one when it is time, and go on with what is under way."""
        self._now = now
        if self._question is not None:
            self._go_on(self._question, now)
        elif now >= self._next_look and self._host.connected and not self.under_way:
            self._next_look = now + LOOK_EVERY_S
            if self._is_due():
                self.begin()

    def begin(self) -> str:
        """Begin one now, due or not; what came of that, in words."""
        if not self._identity.tls:
            return "this fleet has no certificates"
        if self.under_way:
            return "a renewal is under way"
        self._submit("make_signing_request", self._made)
        return "a renewal was begun"

    def on_reply(self, reply: Reply, now: float) -> bool:
        """Take a reply from a hub; False when it answers something else."""
        return self._question is not None and self._question.take(reply, now)

    def on_connected(self) -> None:
        """What was asked before is lost."""
        if self._question is not None:
            self._question.reconnected()

    def _is_due(self) -> bool:
        if not self._identity.tls:
            return False
        try:
            return needs_renewal(self._identity.not_after, self._host.wall_clock())
        except InputError as error:
            log.warning("%s", error)
            return True

    def _submit(self, kind: str, then: Callable[[Mapping[str, str]], None], **content: str) -> None:
        def ended(outcome: Outcome) -> None:
            if outcome.kind is Kind.DONE:
                then(outcome.value)
            else:
                self._fail(outcome.text)

        job = self._host.trust_job(kind, identity=str(self._identity.folder), **content)
        if not self._queue.submit(Job(JOB, job, ended, attempts=ATTEMPTS, fetches=False)):
            self._fail("too much else is to be verified")

    def _made(self, value: Mapping[str, str]) -> None:
        self._question = Question(RequestKind.RENEW, MAX_CHAIN_BYTES, body=value.get("csr", "").encode())

    def _go_on(self, question: Question, now: float) -> None:
        if question.due(now):
            req_id = self._host.next_req_id()
            if self._host.request(question.request(req_id)):
                question.asked(req_id, now)
        if question.answer is not None:
            self._question = None
            self._take(question.answer)

    def _take(self, answer: Answer) -> None:
        if answer.body is None or len(answer.body) > MAX_CHAIN_BYTES:
            self._fail(answer.failure or "the server sent no certificate")
            return
        self._submit("take_certificate", self._done, chain=answer.body.decode("ascii", errors="replace"))

    def _done(self, value: Mapping[str, str]) -> None:
        self._failures, self._said = 0, None
        self._next_look = self._now + AFTER_SUCCESS_S
        self._host.note("certificate_renewed", f"it lasts until {value.get('not_after')} (Unix time)")
        self._host.renewed()

    def _fail(self, reason: str) -> None:
        self._failures += 1
        wait_s = backoff_s(self._failures, RETRY_FIRST_S, RETRY_CAP_S)
        self._next_look = self._now + wait_s * random.uniform(0.75, 1.25)  # noqa: S311 - jitter, not a secret
        log.warning("the certificate is not renewed: %s", reason)
        if reason != self._said:
            self._said = reason
            self._host.note("renewal_failed", reason)
