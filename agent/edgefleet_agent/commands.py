"""Commands as they come: looked into, judged, verified in the trust process, judged again, run at most once.

What a command does is the agent's business; here is who may give one, and when it is too late.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from edgefleet.errors import StorageError
from edgefleet.protocol.record import MessageError
from edgefleet.protocol.signed import COMMAND_TYPE, Command, CommandName, Envelope
from edgefleet_agent.acceptance import Own, Verdict, judge_command
from edgefleet_agent.journal import Journal
from edgefleet_agent.trust_frames import Kind
from edgefleet_agent.trust_queue import Job, TrustQueue
from edgefleet_agent.trust_session import Outcome

# Every command whose minute has not passed, and many more: a clock that is set back makes old ones valid again.
MOST_REMEMBERED = 64
# A command lives for a minute: what cannot be verified in that time is not worth another try.
ATTEMPTS = 3

log = logging.getLogger("edgefleet.agent")


class Host(Protocol):
    """What commands need of their agent."""

    def run_command(self, name: CommandName) -> str:
        """Do it; what came of it, in words."""
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


class Commands:
    """The judge between the commands topic and the agent."""

    def __init__(self, own: Own, journal: Journal, queue: TrustQueue, host: Host) -> None:
        """One for each agent."""
        self._own = own
        self._journal = journal
        self._queue = queue
        self._host = host

    def receive(self, payload: bytes) -> None:
        """Take a message of the commands topic; raises MessageError."""
        envelope = Envelope.decode(payload)
        if envelope.payload_type != COMMAND_TYPE:
            raise MessageError(f"Envelope: payloadType: {envelope.payload_type!r} where {COMMAND_TYPE} belongs")
        command = Command.decode(envelope.payload)
        if not self._act_on(command):
            return
        content = self._host.trust_job("check_command", envelope=envelope.model_dump_json())
        job = Job(
            name=f"command {command.command_id}", content=content,
            ended=lambda outcome: self._verified(command, outcome),
            wanted=lambda: self._act_on(command),
            attempts=ATTEMPTS,
        )  # fmt: skip
        if not self._queue.jobs(job.name) and not self._queue.submit(job):
            log.warning("command %s dropped: too many are waiting", command.command_id)

    def _act_on(self, command: Command) -> bool:
        ran = frozenset(self._journal.entry.commands)
        verdict, reason = judge_command(command, self._own, ran, self._host.wall_clock())
        if verdict is Verdict.REFUSE:
            self._refuse(command, reason)
        elif verdict is not Verdict.ACCEPT:
            log.info("command %s: %s", command.command_id, reason)
        return verdict is Verdict.ACCEPT

    def _verified(self, peeked: Command, outcome: Outcome) -> None:
        if outcome.kind is not Kind.DONE:
            self._refuse(peeked, outcome.text)
            return
        try:
            command = Command.decode(outcome.value.get("command", "").encode())
        except MessageError as error:
            self._refuse(peeked, str(error))
            return
        if not self._act_on(command):
            return
        # Remembered before it is run: a power cut in between costs the command, never runs it twice.
        try:
            self._journal.record(commands=(*self._journal.entry.commands, command.command_id)[-MOST_REMEMBERED:])
        except StorageError as error:
            self._refuse(command, str(error))
            return
        self._host.note("command", f"{command.name} {command.command_id}: {self._host.run_command(command.name)}")

    def _refuse(self, command: Command, reason: str) -> None:
        self._host.note("command_refused", f"{command.name} {command.command_id}: {reason}")
