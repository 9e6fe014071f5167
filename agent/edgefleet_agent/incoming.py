"""What the broker brings: each message to the part of the agent that it is for.

It believes none of them: what is signed is verified by who gets it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgefleet.protocol import messages, topics
from edgefleet.protocol.messages import Reply
from edgefleet.protocol.record import MessageError
from edgefleet.protocol.topics import TopicName
from edgefleet_agent.acceptance import Own
from edgefleet_agent.commands import Commands
from edgefleet_agent.desired_states import DesiredStates
from edgefleet_agent.installer import Installer
from edgefleet_agent.refusal import InstallError
from edgefleet_agent.renewal import Renewal
from edgefleet_agent.spool import Spool
from edgefleet_agent.trust_queue import TrustQueue

log = logging.getLogger("edgefleet.agent")


@dataclass(frozen=True, slots=True)
class Incoming:
    """The parts that get messages."""

    own: Own
    desired_states: DesiredStates
    commands: Commands
    spool: Spool
    trust: TrustQueue
    renewal: Renewal
    installer: Installer

    def receive(self, topic: str, payload: bytes) -> None:
        """Pass a message on; what is none, or for another device, is dropped."""
        address = topics.parse(self.own.fleet, topic)
        if address is None or address.device not in (self.own.device, "") or address.name not in _RECEIVERS:
            return
        try:
            _RECEIVERS[address.name](self, address, payload)
        except MessageError as error:
            log.warning("message ignored: %s", error)
        except InstallError as error:
            self.installer.fail(str(error))

    def _on_desired(self, _address: topics.Address, payload: bytes) -> None:
        self.desired_states.receive(payload)

    def _on_command(self, _address: topics.Address, payload: bytes) -> None:
        self.commands.receive(payload)

    def _on_ack(self, _address: topics.Address, payload: bytes) -> None:
        ack = messages.Ack.decode(payload)
        self.spool.acknowledged(ack.spool_id, ack.seq, time.monotonic())

    def _on_reply(self, _address: topics.Address, payload: bytes) -> None:
        reply, now = Reply.decode(payload), time.monotonic()
        if self.trust.on_reply(reply, now) or self.renewal.on_reply(reply, now):
            return
        if self.installer.current is not None:
            self.installer.current.on_reply(reply, now)

    def _on_piece(self, address: topics.Address, payload: bytes) -> None:
        install = self.installer.current
        if install is not None and address.sha12 is not None and address.piece is not None:
            install.on_piece(address.sha12, address.piece, payload, time.monotonic())


_RECEIVERS: dict[TopicName, Callable[[Incoming, topics.Address, bytes], None]] = {
    TopicName.DESIRED: Incoming._on_desired,  # noqa: SLF001 - its own table
    TopicName.COMMANDS: Incoming._on_command,  # noqa: SLF001
    TopicName.ACK: Incoming._on_ack,  # noqa: SLF001
    TopicName.REPLY: Incoming._on_reply,  # noqa: SLF001
    TopicName.BLOCKS: Incoming._on_piece,  # noqa: SLF001
    TopicName.SHARED: Incoming._on_piece,  # noqa: SLF001
}
