"""The agent's one loop: broker, installation, worker and spool, in a single thread.

It carries messages between them and keeps the journal; each of them holds its own rules.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable
from typing import IO

from edgefleet.errors import BusyError, StorageError
from edgefleet.mqtt import BrokerAddress, Connection, Identity, Outgoing
from edgefleet.protocol import messages, topics
from edgefleet.protocol.messages import ActiveVariant, DeviceState, Reply, Request, State, Status, Window
from edgefleet.protocol.topics import TOPICS, Role, TopicName
from edgefleet_agent import facts as device_facts
from edgefleet_agent import lifecycle
from edgefleet_agent.acceptance import Verdict, judge
from edgefleet_agent.inference import Inference
from edgefleet_agent.install import Install, InstallError
from edgefleet_agent.journal import Journal
from edgefleet_agent.lifecycle import IN_PROGRESS, Trigger
from edgefleet_agent.power import open_meter
from edgefleet_agent.settings import Settings
from edgefleet_agent.slots import Slots
from edgefleet_agent.supervise import Worker
from edgefleet_agent.telemetry import Spool

LOCK_FILE = "agent.lock"
SPOOL_FILE = "spool.sqlite"
POLL_S = 0.1
STATE_EVERY_S = 0.25
JOURNAL_EVERY_S = 5.0

log = logging.getLogger("edgefleet.agent")


class Agent:
    """One agent on one state folder."""

    def __init__(self, settings: Settings) -> None:
        """Read the folder; raises BusyError when another agent has it, StorageError when it cannot be used."""
        self.settings = settings
        self.profile = device_facts.load_profile(settings.profile)
        folder = settings.state_folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(settings)
            self.journal = Journal(folder)
            self._slots = Slots(folder)
        except OSError as error:
            raise StorageError(
                f"opening the state folder {folder}",
                error.strerror or str(error),
                "check the disk and its permissions",
            ) from error
        entry = self.journal.entry
        self._facts = device_facts.gather(settings.root, self.profile, entry.enrolment_id, entry.connection)
        boot_id, limit = self._facts.boot_id, settings.telemetry.spool_messages
        self._spool = Spool(folder / SPOOL_FILE, entry.enrolment_id, boot_id, limit)
        meter = open_meter(settings.root, self.profile, simulated=self._facts.simulated)
        self._inference = Inference(settings, self._slots, meter, self)
        self._install: Install | None = None
        self._requests = 0
        self._published: tuple[float, DeviceState | None] = (0.0, None)
        self._journalled_at = time.monotonic()
        self._refused: str | None = None
        self.connection = Connection(
            BrokerAddress(settings.broker.host, settings.broker.port),
            Identity(settings.device, settings.device),
            topics.filters_read_by(Role.DEVICE, settings.fleet, settings.device),
            on_message=self._receive,
            on_connected=self._hello,
            will=self._will,
        )
        self._receivers: dict[TopicName, Callable[[topics.Address, bytes], None]] = {
            TopicName.DESIRED: self._on_desired,
            TopicName.ACK: self._on_ack,
            TopicName.REPLY: self._on_reply,
            TopicName.BLOCKS: self._on_piece,
        }

    def run(self, stop: Callable[[], bool]) -> None:
        """Serve until `stop` says so; raises BusyError when the server says that the name is another agent's."""
        self._restore()
        try:
            while not stop() and self._refused is None:
                self.connection.poll(POLL_S, {worker.fileno(): _nothing for worker in self._workers()})
                self.tick(time.monotonic())
        finally:
            self._shut_down()
        if self._refused is not None:
            found, _, remedy = self._refused.partition("; ")
            raise BusyError(
                f"connecting as the device {self.settings.device}", found, remedy or "choose another device name"
            )

    def tick(self, now: float) -> None:
        """One turn of the loop."""
        self._advance_install(now)
        self._inference.tick(self.journal.entry.active, now)
        self._send_spooled(now)
        self._publish_state(now)

    def _workers(self) -> list[Worker]:
        return self._inference.workers() + ([] if self._install is None else self._install.workers())

    def _shut_down(self) -> None:
        self._inference.stop()
        if self._install is not None:
            self._install.close()
        self._send(TopicName.ONLINE, self._presence(online=False))
        self.connection.close()
        self._spool.close()
        self._lock.close()

    # Start -------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Take up an installation that was cut off; what was committed is verified when its worker starts."""
        if self.journal.damage:
            self.note("damage", self.journal.damage)
        entry = self.journal.entry
        if entry.state in IN_PROGRESS and entry.desired is not None:
            self.journal.note(state=State.RESOLVING)
            self._start_install(entry.desired, resumed=True)

    def slot_damaged(self, reason: str) -> None:
        """The committed variant cannot run: without it the device has no model, and says so."""
        self.note("slot_damaged", reason)
        if self.journal.entry.state in IN_PROGRESS:
            self.journal.note(active=None)
        else:
            why = f"the committed variant is damaged: {reason}"
            self.journal.note(active=None, state=State.NO_MODEL, reason=why)

    # Messages ----------------------------------------------------------------------------------------

    def _will(self) -> Outgoing:
        """Asked before each connect: the counter is on disk before the broker can know it."""
        self.journal.note(connection=self.journal.entry.connection + 1)
        self._facts = self._facts.model_copy(update={"connection": self.journal.entry.connection})
        return self._outgoing(TopicName.ONLINE, self._presence(online=False))

    def _presence(self, *, online: bool) -> messages.Online:
        entry = self.journal.entry
        return messages.Online(online=online, enrolment_id=entry.enrolment_id, connection=entry.connection)

    def _hello(self) -> None:
        self._send(TopicName.FACTS, self._facts)
        self._send(TopicName.ONLINE, self._presence(online=True))
        self._published = (0.0, None)
        self._spool.restart()
        if self._install is not None:
            self._install.on_connected()

    def _receive(self, topic: str, payload: bytes, _retained: bool) -> None:
        address = topics.parse(self.settings.fleet, topic)
        if address is None or address.device != self.settings.device:
            return
        receiver = self._receivers.get(address.name)
        if receiver is None:
            return
        try:
            receiver(address, payload)
        except messages.MessageError as error:
            log.warning("message ignored: %s", error)
        except InstallError as error:
            self._fail(str(error))

    def _on_ack(self, _address: topics.Address, payload: bytes) -> None:
        ack = messages.Ack.decode(payload)
        self._spool.acknowledged(ack.spool_id, ack.seq, time.monotonic())

    def _on_reply(self, _address: topics.Address, payload: bytes) -> None:
        reply = Reply.decode(payload)
        hello = f"hello-{self.journal.entry.enrolment_id}"
        if reply.req_id == hello and reply.status is Status.DENIED:
            self._refused = reply.body.decode(errors="replace")
        elif self._install is not None:
            self._install.on_reply(reply, time.monotonic())

    def _on_piece(self, address: topics.Address, payload: bytes) -> None:
        if self._install is not None and address.sha12 is not None and address.piece is not None:
            self._install.on_piece(address.sha12, address.piece, payload, time.monotonic())

    def _on_desired(self, _address: topics.Address, payload: bytes) -> None:
        desired = messages.Desired.decode(payload)
        entry = self.journal.entry
        verdict, reason = judge(
            desired, self.settings.fleet, self.settings.device, entry.enrolment_id, entry.desired, time.time()
        )
        if verdict is Verdict.REPORT_AGAIN:
            self._published = (0.0, None)
        elif verdict is Verdict.REFUSE:
            log.warning("desired state refused: %s", reason)
        elif verdict is Verdict.ACCEPT:
            self._accept(desired)

    # Installation ------------------------------------------------------------------------------------

    def request(self, request: Request) -> bool:
        """Send a request to the hubs; False when not connected."""
        return self._send(TopicName.REQUEST, request)

    def next_req_id(self) -> str:
        """Unique: the connection counter never goes back, not even over a restart."""
        self._requests += 1
        return f"{self.journal.entry.connection}-{self._requests}"

    def note(self, kind: str, text: str) -> None:
        """Record an event."""
        log.info("%s: %s", kind, text)
        self._spool.add_event(kind, text)

    def add_window(self, window: Window) -> None:
        """Keep a telemetry window."""
        self._spool.add_window(window)

    def _accept(self, desired: messages.Desired) -> None:
        """Journal before acting; a newer generation replaces an installation that is under way."""
        state = lifecycle.after(self.journal.entry.state, Trigger.ACCEPTED)
        changes = {"desired": desired, "state": state, "reason": None, "progress": None}
        try:
            self.journal.record(**changes, pulled_bytes=0, bad_blocks=0, elapsed_s=0.0)
        except StorageError as error:
            # Not accepted: what runs runs on, and the server sends it again.
            log.warning("generation %d is not begun: %s", desired.generation, error)
            return
        if self._install is not None:
            self._install.close()
        self.note("accepted", f"generation {desired.generation}: {desired.deployment.deployment_id}")
        self._start_install(desired, resumed=False)

    def _start_install(self, desired: messages.Desired, *, resumed: bool) -> None:
        runtimes = self._facts.machine.runtimes
        self._install = Install(desired, self.profile, runtimes, self._slots, self, resumed=resumed)
        self._install.pulled_bytes = self.journal.entry.pulled_bytes
        self._install.bad_blocks = self.journal.entry.bad_blocks

    def _advance_install(self, now: float) -> None:
        install = self._install
        if install is None:
            return
        try:
            install.tick(now)
            self._journal_progress(install, now)
            if install.state is State.ACTIVATING:
                self._activate(install)
        except InstallError as error:
            self._fail(str(error))
        except StorageError as error:
            self._fail(f"insufficient_storage: {error}")

    def _journal_progress(self, install: Install, now: float) -> None:
        """Each new state, and the time spent every few seconds."""
        entry = self.journal.entry
        if install.state is entry.state and now - self._journalled_at < JOURNAL_EVERY_S:
            return
        elapsed_s = entry.elapsed_s + min(now - self._journalled_at, JOURNAL_EVERY_S * 2)
        self._journalled_at = now
        changes = {"pulled_bytes": install.pulled_bytes, "bad_blocks": install.bad_blocks, "elapsed_s": elapsed_s}
        self.journal.record(state=install.state, **changes)
        limit_s = install.desired.install_timeout_s
        if elapsed_s > limit_s and install.state is not State.ACTIVATING:
            raise InstallError(f"not finished within {limit_s:.0f} s of running time")

    def _activate(self, install: Install) -> None:
        """Switch the slot, then say so: after a crash in between the installation is taken up again."""
        if install.candidate is None or install.spec is None:
            raise InstallError("internal: nothing to activate")
        active = ActiveVariant(
            digest=install.candidate.digest,
            index_digest=install.desired.deployment.index_digest,
            name=install.spec.name,
            runtime=install.spec.runtime,
            precision=install.spec.precision,
        )
        try:
            self._slots.activate(active.digest)
        except OSError as error:
            raise InstallError(f"activation: {error.strerror or error}") from error
        self._end(install, lifecycle.after(install.state, Trigger.DONE), None, active=active)
        self.note("committed", install.spec.name)

    def _fail(self, reason: str) -> None:
        """End the installation; what was committed before still runs."""
        if (install := self._install) is None:
            return
        previous = self.journal.entry.active is not None
        trigger = Trigger.FAILED_WITH_PREVIOUS if previous else Trigger.FAILED_WITHOUT_PREVIOUS
        self._end(install, lifecycle.after(install.state, trigger), reason)
        self.note("install_failed", reason)

    def _end(self, install: Install, state: State, reason: str | None, **changes: ActiveVariant) -> None:
        """Give the disk back, and remember the outcome even when the disk refuses to: it is written later."""
        install.close()
        self._install = None
        active = changes.get("active", self.journal.entry.active)
        self._slots.collect(active.digest if active else None)
        self.journal.note(
            state=state,
            reason=reason,
            progress=install.progress,
            pulled_bytes=install.pulled_bytes,
            bad_blocks=install.bad_blocks,
            **changes,
        )

    # Outgoing ----------------------------------------------------------------------------------------

    def _send_spooled(self, now: float) -> None:
        if not self.connection.connected:
            return
        for message in self._spool.due(now):
            kind = TopicName.EVENTS if isinstance(message, messages.Event) else TopicName.TELEMETRY
            self._send(kind, message)

    def _publish_state(self, now: float) -> None:
        """Publish the state when it changed; while only the progress changes, four times a second at most."""
        at, before = self._published
        if not self.connection.connected or (self._install is not None and now - at < STATE_EVERY_S):
            return
        self.journal.retry()
        state = self._state()
        if state != before and self._send(TopicName.STATE, state):
            self._published = (now, state)

    def _state(self) -> DeviceState:
        entry, install = self.journal.entry, self._install
        return DeviceState(
            enrolment_id=entry.enrolment_id,
            generation=entry.desired.generation if entry.desired else 0,
            state=install.state if install else entry.state,
            reason=entry.reason,
            active=entry.active,
            progress=install.progress if install else entry.progress,
            pulled_bytes=install.pulled_bytes if install else entry.pulled_bytes,
            bad_blocks=install.bad_blocks if install else entry.bad_blocks,
        )

    def _outgoing(self, name: TopicName, message: messages.Message) -> Outgoing:
        row = TOPICS[name]
        topic = topics.topic_for(self.settings.fleet, name, self.settings.device)
        return Outgoing(topic, message.encode(), row.qos, row.retained)

    def _send(self, name: TopicName, message: messages.Message) -> bool:
        return self.connection.publish(self._outgoing(name, message))


def _nothing() -> None:
    """A child became readable: the loop turns, and `tick` reads it."""


def _lock(settings: Settings) -> IO[bytes]:
    stream = (settings.state_folder / LOCK_FILE).open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.close()
        raise BusyError(
            f"starting the agent {settings.device}",
            f"another agent is running on the state folder {settings.state_folder}",
            "stop that one, or give this one a state_folder and a device name of its own",
        ) from error
    return stream
