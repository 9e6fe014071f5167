"""The agent's one loop: broker, installation, worker and spool, in a single thread.

It carries messages between them and keeps the journal; each of them holds its own rules.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable
from typing import IO, Any

from pydantic import ValidationError

from edgefleet.errors import BusyError, StorageError
from edgefleet.mqtt import BrokerAddress, Connection, Identity, Outgoing
from edgefleet.protocol import messages, topics
from edgefleet.protocol.messages import ActiveVariant, DeviceState, Reply, Request, State, Status, Window
from edgefleet.protocol.topics import TOPICS, Role, TopicName
from edgefleet_agent import facts as device_facts
from edgefleet_agent import lifecycle, supervise
from edgefleet_agent.acceptance import Verdict, judge
from edgefleet_agent.install import Install, InstallError
from edgefleet_agent.journal import Journal
from edgefleet_agent.lifecycle import IN_PROGRESS, Trigger
from edgefleet_agent.power import open_meter
from edgefleet_agent.settings import Settings
from edgefleet_agent.slots import SlotDamagedError, Slots
from edgefleet_agent.supervise import Worker
from edgefleet_agent.telemetry import Spool

LOCK_FILE = "agent.lock"
SPOOL_FILE = "spool.sqlite"
POLL_S = 0.1
STATE_EVERY_S = 0.25
JOURNAL_EVERY_S = 5.0
WORKER_BACKOFF_CAP_S = 60.0
WORKER_STABLE_S = 30.0

log = logging.getLogger("edgefleet.agent")


class Agent:
    """One agent on one state folder."""

    def __init__(self, settings: Settings) -> None:
        """Read the folder; raises BusyError when another agent has it, StorageError when it cannot be used."""
        self.settings = settings
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
        self.profile = device_facts.load_profile(settings.profile)
        entry = self.journal.entry
        self._facts = device_facts.gather(settings.root, self.profile, entry.enrolment_id, entry.connection)
        spool = folder / SPOOL_FILE
        self._spool = Spool(spool, entry.enrolment_id, self._facts.boot_id, settings.telemetry.spool_messages)
        self._meter = open_meter(settings.root, self.profile, simulated=self._facts.simulated)
        self._install: Install | None = None
        self._worker: Worker | None = None
        self._worker_started = 0.0
        self._worker_next = 0.0
        self._worker_failures = 0
        self._requests = 0
        self._published: tuple[float, bytes] = (0.0, b"")
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
                self.connection.poll(POLL_S, {worker.fileno(): _nothing for worker in self._children()})
                self.tick(time.monotonic())
        finally:
            self._shut_down()
        if self._refused is not None:
            raise BusyError(
                f"connecting as the device {self.settings.device}", self._refused.partition(";")[0],
                self._refused.partition("; ")[2] or "choose another device name",
            )  # fmt: skip

    def tick(self, now: float) -> None:
        """One turn of the loop."""
        self._advance_install(now)
        self._watch_worker(now)
        self._send_spooled(now)
        self._publish_state(now)

    def _children(self) -> list[Worker]:
        running = [] if self._worker is None else [self._worker]
        return running + ([] if self._install is None else self._install.workers())

    def _shut_down(self) -> None:
        for worker in self._children():
            worker.stop()
        self._send(TopicName.ONLINE, messages.Online(online=False, connection=self.journal.entry.connection))
        self.connection.close()
        self._spool.close()
        self._lock.close()

    # Start -------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Go on where the journal says: verify what was committed, take up an installation that was cut off."""
        for damage in (self.journal.damage, self._spool.damage):
            if damage:
                self.note("damage", damage)
        entry = self.journal.entry
        if entry.active is not None:
            try:
                self._slots.check(entry.active.digest)
            except SlotDamagedError as error:
                self.note("slot_damaged", str(error))
                entry_state = {
                    "state": State.NO_MODEL,
                    "reason": f"the committed variant is damaged: {error}",
                }
                changes = {} if entry.state in IN_PROGRESS else entry_state
                self.journal.record(active=None, **changes)
        if entry.state in IN_PROGRESS and entry.desired is not None:
            self._start_install(entry.desired)

    # Messages ----------------------------------------------------------------------------------------

    def _will(self) -> Outgoing:
        """Asked before each connect: the counter is on disk before the broker can know it."""
        connection = self.journal.entry.connection + 1
        try:
            self.journal.record(connection=connection)
        except StorageError as error:
            log.warning("%s", error)
        self._facts = self._facts.model_copy(update={"connection": connection})
        return self._outgoing(TopicName.ONLINE, messages.Online(online=False, connection=connection))

    def _hello(self) -> None:
        self._send(TopicName.FACTS, self._facts)
        self._send(TopicName.ONLINE, messages.Online(online=True, connection=self._facts.connection))
        self._published = (0.0, b"")
        self._spool.restart()
        if self._install is not None:
            self._install.on_connected()

    def _receive(self, topic: str, payload: bytes) -> None:
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
        if ack.enrolment_id == self.journal.entry.enrolment_id:
            self._spool.acknowledged(ack.seq, time.monotonic())

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
            self._published = (0.0, b"")
        elif verdict is Verdict.REFUSE:
            self.note("desired_refused", reason)
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

    def _accept(self, desired: messages.Desired) -> None:
        """Journal before acting; a newer generation replaces an installation that is under way."""
        if self._install is not None:
            self._install.close(discard=False)
            self._install = None
        state = lifecycle.after(self.journal.entry.state, Trigger.ACCEPTED)
        self.journal.record(
            desired=desired, state=state, reason=None, progress=None, pulled_bytes=0, bad_blocks=0, elapsed_s=0.0
        )
        self.note("accepted", f"generation {desired.generation}: {desired.deployment.deployment_id}")
        self._start_install(desired)

    def _start_install(self, desired: messages.Desired) -> None:
        active, runtimes = self.journal.entry.active, self._facts.machine.runtimes
        digest = active.digest if active else None
        self._install = Install(desired, self.profile, runtimes, self._slots, self, digest)
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
            elif install.state is State.COMMITTED:
                self._end(State.COMMITTED, None)
        except InstallError as error:
            self._fail(str(error))
        except StorageError as error:
            self._fail(f"insufficient_storage: {error}")

    def _journal_progress(self, install: Install, now: float) -> None:
        """Each new state, and the time spent every few seconds."""
        entry = self.journal.entry
        due = now - self._journalled_at > JOURNAL_EVERY_S
        if install.state is not entry.state or due:
            elapsed_s = entry.elapsed_s + min(now - self._journalled_at, JOURNAL_EVERY_S * 2)
            self._journalled_at = now
            self.journal.record(
                state=install.state,
                pulled_bytes=install.pulled_bytes,
                bad_blocks=install.bad_blocks,
                elapsed_s=elapsed_s,
            )
            limit_s = install.desired.install_timeout_s
            if elapsed_s > limit_s and install.state in IN_PROGRESS and install.state is not State.ACTIVATING:
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
        install.state = lifecycle.after(install.state, Trigger.DONE)
        self._end(install.state, None, active=active)
        self._slots.collect(active.digest)
        self._stop_worker()
        self._worker_failures, self._worker_next = 0, 0.0

    def _fail(self, reason: str) -> None:
        """End the installation; what was committed before still runs."""
        if self._install is None:
            return
        previous = self.journal.entry.active is not None
        trigger = Trigger.FAILED_WITH_PREVIOUS if previous else Trigger.FAILED_WITHOUT_PREVIOUS
        state = lifecycle.after(self._install.state, trigger)
        self._install.close(discard=True)
        self.note("install_failed", reason)
        try:
            self._end(state, reason)
        except StorageError as error:
            log.warning("%s", error)
            self._install = None

    def _end(self, state: State, reason: str | None, **changes: Any) -> None:
        install = self._install
        if install is not None:
            self.journal.record(
                state=state,
                reason=reason,
                progress=install.progress,
                pulled_bytes=install.pulled_bytes,
                bad_blocks=install.bad_blocks,
                **changes,
            )
            self._install = None
            if state is State.COMMITTED and install.spec is not None:
                self.note("committed", f"{install.spec.name}")

    # Inference ---------------------------------------------------------------------------------------

    def _watch_worker(self, now: float) -> None:
        """Keep a worker running on the committed variant; take what it says."""
        active = self.journal.entry.active
        if self._worker is None:
            if active is not None and now >= self._worker_next:
                self._start_worker(active, now)
            return
        said, ended = self._worker.messages()
        for message in said:
            self._on_worker(message)
        if ended:
            lived_s = now - self._worker_started
            self._worker_failures = 1 if lived_s > WORKER_STABLE_S else self._worker_failures + 1
            wait_s = min(WORKER_BACKOFF_CAP_S, 2.0 ** (self._worker_failures - 1))
            self._worker_next = now + wait_s
            self.note("worker_ended", f"{self._worker.exit_reason()}; starting again in {wait_s:.0f} s")
            self._stop_worker()

    def _start_worker(self, active: ActiveVariant, now: float) -> None:
        try:
            spec = self._slots.check(active.digest)
        except SlotDamagedError as error:
            self.note("slot_damaged", str(error))
            self.journal.record(active=None, state=State.NO_MODEL, reason=f"the committed variant is damaged: {error}")
            return
        slot = self._slots.path(active.digest)
        self._worker = supervise.inference(slot, spec, self.settings.source, self.settings.telemetry.window_s)
        self._worker_started = now
        self._meter.window()

    def _stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _on_worker(self, message: dict[str, Any]) -> None:
        active = self.journal.entry.active
        if message["kind"] == "failed":
            self.note("worker_failed", message["reason"])
        elif message["kind"] == "window" and active is not None:
            power = self._meter.window()
            try:
                window = Window.model_validate({**message, "digest": active.digest, "power": power})
            except ValidationError as error:
                log.warning("window dropped: %s", error)
                return
            self._spool.add_window(window)

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
        state = self._state()
        content = state.encode()
        if content == before or not self.connection.connected:
            return
        same_step = before and DeviceState.decode(before).state is state.state
        if same_step and now - at < STATE_EVERY_S:
            return
        if self._send(TopicName.STATE, state):
            self._published = (now, content)

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
