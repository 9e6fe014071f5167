"""The server's one loop: broker in, store and blobs behind, answers out.

Rules live in `hub` and `control`; this file moves messages between them, the broker and the store.
"""

from __future__ import annotations

import fcntl
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from edgefleet.errors import BusyError
from edgefleet.mqtt import BrokerAddress, Connection, Identity, Outgoing
from edgefleet.package.layout import BlobStore
from edgefleet.protocol import messages, topics
from edgefleet.protocol.topics import SERVER_USER, TOPICS, Role, TopicName
from edgefleet.server import control
from edgefleet.server.hub import Hub, TokenBucket
from edgefleet.server.requests import Requests
from edgefleet.server.store import Store

STORE_FILE = "store.sqlite"
LOCK_FILE = "server.lock"
LOCK_PATIENCE_S = 1.0
REPUBLISH_AFTER_S = 5.0
# A desired state, or what a device says of it, may be lost on a full broker queue: ask again this often.
RECONCILE_EVERY_S = 30.0
POLL_S = 0.2
# A name stays with the agent that holds it as long as that agent was heard of this recently.
CLAIM_S = 45.0

log = logging.getLogger("edgefleet.server")


def lock_data(data: Path) -> IO[bytes]:
    """Take the data folder for this process; raises BusyError when another server has it."""
    data.mkdir(parents=True, exist_ok=True)
    stream = (data / LOCK_FILE).open("ab")
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while not _try_lock(stream, fcntl.LOCK_EX):
        # A command that only looks holds it for an instant.
        if time.monotonic() > deadline:
            stream.close()
            raise BusyError(
                f"starting the server on {data}", "another server is running on it", "stop that one, or name another"
            )
        time.sleep(0.05)
    return stream


def is_running(data: Path) -> bool:
    """Whether a server holds the data folder."""
    try:
        with (data / LOCK_FILE).open("rb") as stream:
            return not _try_lock(stream, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _try_lock(stream: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Server:
    """Hub, ingest and reconciliation for one fleet."""

    def __init__(
        self, data: Path, fleet: str, address: BrokerAddress, *, rate_limit_bytes_per_s: float | None = None
    ) -> None:
        """Open the store and the blobs below `data`; the caller holds `lock_data`."""
        self.fleet = topics.check_name("fleet", fleet)
        self.store = Store(data / STORE_FILE)
        self.hub = Hub(TokenBucket(rate_limit_bytes_per_s, time.monotonic()))
        self._requests = Requests(BlobStore(data), self.hub, fleet, self._send)
        self._pending: list[tuple[str, messages.Message, bool]] = []
        self._heard: dict[str, float] = {}
        self._published: dict[str, tuple[int, float]] = {}
        self._store_version = -1
        self._reconciled_at = 0.0
        self._connected: bool | None = None
        self.connection = Connection(
            address,
            Identity(SERVER_USER, SERVER_USER),
            topics.filters_read_by(Role.SERVER, fleet),
            on_message=self._receive,
            on_connected=self._forget,
        )

    def run(self, stop: Callable[[], bool]) -> None:
        """Serve until `stop` says so; raises TransportError when the broker cannot be reached at the start."""
        self.connection.connect_now()
        log.info("fleet %s: serving", self.fleet)
        while not stop():
            self.connection.poll(self._wait_s())
            self._commit()
            self._note_connection()
            self._reconcile(time.monotonic())
            self._requests.send_pieces(self.connection)
        self.connection.close()
        self._commit()
        self.store.close()

    @contextmanager
    def _patience(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            log.warning("the store: %s", error)

    def _wait_s(self) -> float:
        """Until the next piece is due; a socket that is full wakes the loop by itself."""
        wait_s = self.hub.wait_s(time.monotonic()) if self.connection.writable else None
        return POLL_S if wait_s is None else min(POLL_S, wait_s)

    def _forget(self) -> None:
        """Retained is a cache: a broker that came back may have lost all of it, presence included."""
        self._published.clear()
        self._store_version = -1
        with self._patience():
            self.store.set_all_offline()

    # Incoming ----------------------------------------------------------------------------------------

    def _receive(self, topic: str, payload: bytes, retained: bool) -> None:
        address = topics.parse(self.fleet, topic)
        decode = _DECODERS.get(address.name) if address else None
        if address is None or decode is None:
            return
        try:
            message = decode(payload)
        except messages.MessageError as error:
            log.warning("device %s: message ignored: %s", address.device, error)
            return
        if isinstance(message, messages.Request):
            self._requests.answer(address.device, message)
        else:
            self._pending.append((address.device, message, retained))

    def _commit(self) -> None:
        """Store everything that came in since the last turn in one transaction; acknowledge what is on disk."""
        sent = self.hub.take_sent()
        if not self._pending and not sent:
            return
        # Facts first: what else a device says is understood only once it is known.
        pending = sorted(self._pending, key=lambda entry: not isinstance(entry[1], messages.Facts))
        self._pending = []
        try:
            with self.store.transaction():
                spools = self._apply_all(pending)
                self.store.add_sent_bytes(sent.items())
                acks = {key: self.store.advance(*key, oldest) for key, oldest in spools.items()}
        except sqlite3.Error as error:
            # Nothing is acknowledged, so the devices send it again.
            log.warning("the store: %s; %d messages are waited for again", error, len(pending))
            return
        for (device, spool_id), seq in acks.items():
            self._send(TopicName.ACK, device, messages.Ack(spool_id=spool_id, seq=seq))

    def _apply_all(self, pending: list[tuple[str, messages.Message, bool]]) -> dict[tuple[str, str], int]:
        """Apply each message by itself, so that a strange one costs only itself; returns spool → oldest seq."""
        spools: dict[tuple[str, str], int] = {}
        for device, message, retained in pending:
            try:
                with self.store.savepoint():
                    self._apply(device, message, retained=retained)
            except (ValueError, OverflowError, sqlite3.IntegrityError, sqlite3.InterfaceError) as error:
                log.warning("device %s: %s ignored: %s", device, type(message).__name__, error)
                continue
            if isinstance(message, messages.Spooled):
                key = (device, message.spool_id)
                spools[key] = max(spools.get(key, 1), message.oldest_seq)
        return spools

    def _apply(self, device: str, message: messages.Message, *, retained: bool) -> None:
        now = time.time()
        if not retained:
            self._note_heard(device, message, now)
        match message:
            case messages.Facts():
                self._hello(device, message, now, retained=retained)
            case messages.Online():
                if self.store.set_online(device, message) and not message.online:
                    self.hub.forget(device)
            case messages.DeviceState():
                self.store.set_state(device, message, now)
                self._reconcile_device(device, message.generation)
            case messages.Telemetry():
                self.store.add_telemetry(device, message, now)
            case messages.Event():
                log.info("device %s: %s: %s", device, message.kind, message.text)
                self.store.add_event(device, message, now)

    def _note_heard(self, device: str, message: messages.Message, now: float) -> None:
        known = self.store.device(device)
        if known is not None and getattr(message, "enrolment_id", None) == known.enrolment_id:
            self._heard[device] = time.monotonic()
            self.store.set_seen(device, now)

    def _hello(self, device: str, facts: messages.Facts, now: float, *, retained: bool) -> None:
        known = self.store.device(device)
        stranger = known is not None and known.enrolment_id != facts.enrolment_id
        if stranger and retained:
            return
        silent_s = time.monotonic() - self._heard.get(device, float("-inf"))
        if stranger and silent_s < CLAIM_S:
            self._refuse_name(device, facts.enrolment_id, silent_s)
            return
        self.store.add_facts(device, facts, now)
        desired = self.store.desired(device) if stranger else None
        if desired is not None:
            self.store.set_desired(control.reissue(desired, facts.enrolment_id, now))
            self._reconcile_device(device, 0)

    def _refuse_name(self, device: str, enrolment_id: str, silent_s: float) -> None:
        log.warning("device %s: a second agent was refused", device)
        reason = (
            f"the device name {device} belongs to another agent, heard of {silent_s:.0f} s ago; "
            f"stop that one and wait {CLAIM_S:.0f} s, or choose another device name"
        )
        reply = messages.Reply(req_id=f"hello-{enrolment_id}", status=messages.Status.DENIED, body=reason.encode())
        self._send(TopicName.REPLY, device, reply)

    # Desired states ----------------------------------------------------------------------------------

    def _reconcile(self, now: float) -> None:
        """Publish new desired states at once, and now and then those that nobody has answered."""
        if not self.connection.connected:
            self.hub.clear()
            return
        version = self.store.changed()
        if version != self._store_version:
            self._store_version = version
            self._requests.reopen()
            reported = {row.device: row.generation for row in self.store.devices()}
            for device in self.store.desired_generations():
                self._reconcile_device(device, reported.get(device, 0))
        if now - self._reconciled_at > RECONCILE_EVERY_S:
            self._reconciled_at = now
            for device in self.store.open_devices():
                self._reconcile_device(device, 0)

    def _reconcile_device(self, device: str, reported_generation: int) -> None:
        """Publish what a device shall run when it reports something older; not twice within 5 s."""
        desired = self.store.desired(device)
        if desired is None or reported_generation >= desired.generation:
            return
        generation, at = self._published.get(device, (0, 0.0))
        now = time.monotonic()
        if generation < desired.generation or now - at > REPUBLISH_AFTER_S:
            self._published[device] = (desired.generation, now)
            self._send(TopicName.DESIRED, device, desired)

    def _note_connection(self) -> None:
        if self._connected != self.connection.connected:
            connected, failure = self.connection.connected, self.connection.last_failure
            with self._patience():
                self.store.set_server(self.fleet, str(self.connection.address), connected=connected, failure=failure)
                self._connected = connected

    def _send(self, name: TopicName, device: str, message: messages.Message) -> None:
        row = TOPICS[name]
        topic = topics.topic_for(self.fleet, name, device)
        self.connection.publish(Outgoing(topic, message.encode(), row.qos, row.retained))


_DECODERS: dict[TopicName, Callable[[bytes], messages.Message]] = {
    TopicName.ONLINE: messages.Online.decode,
    TopicName.STATE: messages.DeviceState.decode,
    TopicName.FACTS: messages.Facts.decode,
    TopicName.TELEMETRY: messages.Telemetry.decode,
    TopicName.EVENTS: messages.Event.decode,
    TopicName.REQUEST: messages.Request.decode,
}
