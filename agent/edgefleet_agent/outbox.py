"""What the agent publishes: its hello, its state when that changes, and what is in the spool.

It decides when a message is worth sending; what it says comes from the journal and from the installation.
"""

from __future__ import annotations

from edgefleet.mqtt import Connection, Outgoing
from edgefleet.protocol import messages, topics
from edgefleet.protocol.messages import DeviceState, Facts, State
from edgefleet.protocol.record import Message
from edgefleet.protocol.topics import TOPICS, TopicName
from edgefleet_agent.acceptance import Own
from edgefleet_agent.journal import Journal
from edgefleet_agent.spool import Spool

STATE_EVERY_S = 0.25


class Outbox:
    """The publishing side of one connection."""

    def __init__(self, connection: Connection, own: Own, journal: Journal, spool: Spool, facts: Facts) -> None:
        """`facts` are sent with every hello, with the number of that connection."""
        self._connection = connection
        self._own = own
        self._journal = journal
        self._spool = spool
        self._facts = facts
        self._published: tuple[float, DeviceState | None] = (0.0, None)

    def send(self, name: TopicName, message: Message) -> bool:
        """Publish; False when not connected."""
        return self._connection.publish(outgoing(self._own, name, message))

    def presence(self, *, online: bool) -> messages.Online:
        """Connected or not, with the number of this connection."""
        number = self._journal.entry.connection
        return messages.Online(online=online, enrolment_id=self._own.enrolment_id, connection=number)

    def hello(self) -> None:
        """Who this is; state and spool follow by themselves."""
        self._facts = self._facts.model_copy(update={"connection": self._journal.entry.connection})
        self.send(TopicName.FACTS, self._facts)
        self.send(TopicName.ONLINE, self.presence(online=True))
        self.report_again()
        self._spool.restart()

    def report_again(self) -> None:
        """Publish the state at the next turn, changed or not."""
        self._published = (0.0, None)

    def send_state(self, state: DeviceState, now: float, *, hurried: bool) -> None:
        """Publish the state if it changed; unless `hurried`, four times a second at most."""
        at, before = self._published
        if not self._connection.connected or (not hurried and now - at < STATE_EVERY_S):
            return
        if state != before and self.send(TopicName.STATE, state):
            self._published = (now, state)

    def send_refused(self, generation: int, reason: str) -> None:
        """Publish that a generation is not acted on; what runs, runs on."""
        active = self._journal.entry.active
        state = State.NO_MODEL if active is None else State.FAILED
        self.send(TopicName.STATE, DeviceState(
            enrolment_id=self._own.enrolment_id, generation=generation, state=state, reason=reason, active=active
        ))  # fmt: skip

    def send_spooled(self, now: float) -> None:
        """Publish what the spool holds, as far as the server keeps up."""
        if not self._connection.connected:
            return
        for message in self._spool.due(now):
            kind = TopicName.EVENTS if isinstance(message, messages.Event) else TopicName.TELEMETRY
            if not self.send(kind, message):
                break


def outgoing(own: Own, name: TopicName, message: Message) -> Outgoing:
    """A message of this device, as the table of topics has it sent."""
    row = TOPICS[name]
    return Outgoing(topics.topic_for(own.fleet, name, own.device), message.encode(), row.qos, row.retained)
