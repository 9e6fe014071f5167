"""Desired states as they come: looked into, judged, verified in the trust process, judged again, handed on.

It installs nothing. What is refused is said once per generation, and leaves what runs alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

from edgefleet.protocol.record import MessageError
from edgefleet.protocol.signed import Desired, Envelope
from edgefleet_agent.acceptance import Memory, Own, Verdict, judge
from edgefleet_agent.journal import Journal, Refusal
from edgefleet_agent.trust_frames import Kind
from edgefleet_agent.trust_queue import Job, TrustQueue
from edgefleet_agent.trust_session import Outcome

JOB = "desired state"
# A server that has no answer asks again every few seconds; metadata may be mended meanwhile, but not so fast.
REFUSED_FOR_S = 30.0

log = logging.getLogger("edgefleet.agent")


class Host(Protocol):
    """What desired states need of their agent."""

    def begin(self, desired: Desired) -> None:
        """Journal an accepted desired state and start its installation."""
        ...

    def report_again(self) -> None:
        """Publish the state, changed or not."""
        ...

    def report_refused(self, generation: int, reason: str) -> None:
        """Publish that a generation is not acted on."""
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


class DesiredStates:
    """The judge between the desired topic and the installation."""

    def __init__(self, own: Own, journal: Journal, queue: TrustQueue, host: Host) -> None:
        """One for each agent."""
        self._own = own
        self._journal = journal
        self._queue = queue
        self._host = host
        self._refused: tuple[Envelope | None, float, str] = (None, 0.0, "")
        """What the trust process refused last, until when that holds, and why."""

    @property
    def waiting(self) -> bool:
        """Whether a verdict is awaited."""
        return bool(self._queue.jobs(JOB))

    def receive(self, payload: bytes) -> None:
        """Take a message of the desired topic; raises MessageError."""
        if not payload:
            return  # The server took its word back.
        envelope = Envelope.decode(payload)
        desired = Desired.unwrap(envelope)
        if self._act_on(desired):
            self._submit(envelope, desired)

    def _judge(self, desired: Desired) -> tuple[Verdict, str]:
        entry = self._journal.entry
        generation = entry.desired.generation if entry.desired else 0
        memory = Memory(generation, entry.deployment, entry.running)
        return judge(desired, self._own, memory, self._host.wall_clock())

    def _act_on(self, desired: Desired) -> bool:
        """Judge by what is known now; True when it is new, else what follows from it is done here."""
        verdict, reason = self._judge(desired)
        if verdict is Verdict.REPORT_AGAIN:
            self._host.report_again()
        elif verdict is Verdict.FOREIGN:
            self._say_refused(desired.generation, reason)
        elif verdict is Verdict.REFUSE:
            self._refuse(desired, reason)
        return verdict is Verdict.ACCEPT

    def _submit(self, envelope: Envelope, desired: Desired) -> None:
        content = self._host.trust_job(
            "check_desired", envelope=envelope.model_dump_json(),
            fleet=self._own.fleet, device=self._own.device, enrolment_id=self._own.enrolment_id,
        )  # fmt: skip
        # A broker sends its retained message after every reconnect: one of the same words is in work already.
        if any(job.content == content for job in self._queue.jobs(JOB)):
            return
        refused, until, reason = self._refused
        if envelope == refused and time.monotonic() < until:
            self._refuse(desired, reason)
            return
        self._queue.submit(Job(
            name=JOB, content=content,
            ended=lambda outcome: self._verified(envelope, desired, outcome),
            wanted=lambda: self._act_on(desired),
        ))  # fmt: skip

    def _verified(self, envelope: Envelope, peeked: Desired, outcome: Outcome) -> None:
        if outcome.kind is not Kind.DONE:
            self._refused = (envelope, time.monotonic() + REFUSED_FOR_S, outcome.text)
            self._refuse(peeked, outcome.text)
            return
        try:
            desired = Desired.decode(outcome.value.get("desired", "").encode())
        except MessageError as error:
            self._refuse(peeked, str(error))
            return
        # Another may have been accepted while this one was verified.
        if self._act_on(desired):
            self._host.begin(desired)

    def _refuse(self, desired: Desired, reason: str) -> None:
        self._say_refused(desired.generation, reason)
        self._host.report_refused(desired.generation, f"refused: {reason}")

    def _say_refused(self, generation: int, reason: str) -> None:
        log.warning("generation %d is refused: %s", generation, reason)
        before = self._journal.entry.refusal
        if before is None or before.generation != generation:
            self._journal.note(refusal=Refusal(generation=generation, reason=reason))
            self._host.note("refused", f"generation {generation}: {reason}")
