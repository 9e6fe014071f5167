"""The server's one loop: broker in, store and blobs behind, answers out.

Rules live in `hub` and `control`; this file moves bytes between them, the broker and the disk.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from edgefleet.errors import BusyError
from edgefleet.mqtt import BrokerAddress, Connection, Identity, Outgoing
from edgefleet.package.layout import BlobStore
from edgefleet.protocol import messages, topics
from edgefleet.protocol.access import SERVER_USER
from edgefleet.protocol.topics import TOPICS, Role, TopicName
from edgefleet.server.hub import Hub, Piece, TokenBucket
from edgefleet.server.store import Store

STORE_FILE = "store.sqlite"
LOCK_FILE = "server.lock"
OPEN_BLOBS = 16
PIECES_PER_TURN = 64
MAX_METADATA_BYTES = 4 * 1024 * 1024
REPUBLISH_AFTER_S = 5.0
POLL_S = 0.2
# A name stays with the agent that holds it as long as that agent was heard of this recently.
CLAIM_S = 45.0

log = logging.getLogger("edgefleet.server")


class _OpenBlobs:
    """The few blobs that are being sent, kept open."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._open: OrderedDict[str, IO[bytes]] = OrderedDict()

    def read(self, piece: Piece) -> bytes:
        stream = self._open.pop(piece.digest, None) or self._blobs.path(piece.digest).open("rb")
        self._open[piece.digest] = stream
        if len(self._open) > OPEN_BLOBS:
            self._open.popitem(last=False)[1].close()
        return os.pread(stream.fileno(), piece.size, piece.offset)


def lock_data(data: Path) -> IO[bytes]:
    """Take the data folder for this process; raises BusyError when another server has it."""
    data.mkdir(parents=True, exist_ok=True)
    stream = (data / LOCK_FILE).open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        stream.close()
        raise BusyError(
            f"starting the server on {data}",
            "another server is running on it",
            "stop that one, or name another",
        ) from error
    return stream


def is_running(data: Path) -> bool:
    """Whether a server holds the data folder."""
    try:
        lock_data(data).close()
    except BusyError:
        return True
    return False


class Server:
    """Hub, ingest and reconciliation for one fleet."""

    def __init__(
        self, data: Path, fleet: str, address: BrokerAddress, *, rate_limit_bytes_per_s: float | None = None
    ) -> None:
        """Open the store and the blobs below `data`; the caller holds `lock_data`."""
        self.fleet = topics.check_name("fleet", fleet)
        self.store = Store(data / STORE_FILE)
        self.hub = Hub(TokenBucket(rate_limit_bytes_per_s, time.monotonic()))
        self._blobs = BlobStore(data)
        self._open_blobs = _OpenBlobs(self._blobs)
        self._pending: list[tuple[TopicName, str, messages.Message]] = []
        self._published: dict[str, tuple[int, float]] = {}
        self._store_version = -1
        self._connected: bool | None = None
        self._sent_before: dict[str, int] = {}
        self.connection = Connection(
            address,
            Identity(SERVER_USER, SERVER_USER),
            topics.filters_read_by(Role.SERVER, fleet),
            on_message=self._receive,
            on_connected=self._forget_published,
        )

    def run(self, stop: Callable[[], bool]) -> None:
        """Serve until `stop` says so; raises TransportError when the broker cannot be reached at the start."""
        self.connection.connect_now()
        log.info("fleet %s: serving %s", self.fleet, self._blobs.folder)
        while not stop():
            wait_s = self.hub.wait_s(time.monotonic())
            self.connection.poll(POLL_S if wait_s is None else min(POLL_S, wait_s))
            self._commit()
            self._note_connection()
            self._reconcile()
            self._send_pieces()
        self.connection.close()
        self.store.close()

    # Incoming ----------------------------------------------------------------------------------------

    def _receive(self, topic: str, payload: bytes) -> None:
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
            self._answer(address.device, message)
        else:
            self._pending.append((address.name, address.device, message))

    def _commit(self) -> None:
        """Store everything that came in since the last turn in one transaction; acknowledge what is on disk."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        spools: dict[tuple[str, str], int] = {}
        sent = {device: size - self._sent_before.get(device, 0) for device, size in self.hub.sent_bytes.items()}
        with self.store.transaction():
            for _, device, message in pending:
                self._apply(device, message)
                if isinstance(message, messages.Spooled):
                    key = (device, message.enrolment_id)
                    spools[key] = max(spools.get(key, 1), message.oldest_seq)
            self.store.add_sent_bytes((device, size) for device, size in sent.items() if size)
            acks = {key: self.store.advance(*key, oldest) for key, oldest in spools.items()}
        self._sent_before = dict(self.hub.sent_bytes)
        for (device, enrolment_id), seq in acks.items():
            self._send(TopicName.ACK, device, messages.Ack(enrolment_id=enrolment_id, seq=seq))

    def _apply(self, device: str, message: messages.Message) -> None:
        now = time.time()
        match message:
            case messages.Facts():
                self._hello(device, message, now)
            case messages.Online():
                self.store.set_online(device, online=message.online, connection=message.connection)
                if not message.online:
                    self.hub.forget(device)
            case messages.DeviceState():
                self.store.set_state(device, message, now)
                self._reconcile_device(device, message.generation)
            case messages.Telemetry():
                self.store.add_telemetry(device, message)
            case messages.Event():
                log.info("device %s: %s: %s", device, message.kind, message.text)
                self.store.add_event(device, message)

    def _hello(self, device: str, facts: messages.Facts, now: float) -> None:
        known = self.store.device(device)
        if known and known.enrolment_id != facts.enrolment_id and now - known.seen_at < CLAIM_S:
            reason = (
                f"the device name {device} belongs to another agent, seen {now - known.seen_at:.0f} s ago; "
                f"stop that one and wait {CLAIM_S:.0f} s, or choose another device name"
            )
            log.warning("device %s: a second agent was refused", device)
            self._send(TopicName.REPLY, device, messages.Reply(
                req_id=f"hello-{facts.enrolment_id}", status=messages.Status.DENIED, body=reason.encode()
            ))  # fmt: skip
            return
        self.store.add_facts(device, facts, now)

    # Requests ----------------------------------------------------------------------------------------

    def _answer(self, device: str, request: messages.Request) -> None:
        path = self._blobs.path(request.digest)
        try:
            size = path.stat().st_size
        except OSError:
            self._refuse(device, request, messages.Status.GONE, "this blob is not on the server")
            return
        if request.kind is messages.RequestKind.METADATA and size > MAX_METADATA_BYTES:
            self._refuse(device, request, messages.Status.BAD, f"{size} bytes are too many for metadata")
        elif request.kind is messages.RequestKind.METADATA:
            self._send_metadata(device, request, path.read_bytes())
        elif problem := self.hub.ask(device, request, size):
            self._refuse(device, request, messages.Status.BAD, problem)

    def _refuse(self, device: str, request: messages.Request, status: messages.Status, reason: str) -> None:
        self._send(
            TopicName.REPLY,
            device,
            messages.Reply(req_id=request.req_id, status=status, body=reason.encode()),
        )

    def _send_metadata(self, device: str, request: messages.Request, content: bytes) -> None:
        step = messages.REPLY_PART_BYTES
        parts = [content[start : start + step] for start in range(0, len(content), step)] or [b""]
        for number, body in enumerate(parts):
            self._send(TopicName.REPLY, device, messages.Reply(
                req_id=request.req_id, status=messages.Status.OK, part=number, parts=len(parts), body=body
            ))  # fmt: skip

    def _send_pieces(self) -> None:
        for _ in range(PIECES_PER_TURN):
            if not self.connection.writable or (piece := self.hub.next_piece(time.monotonic())) is None:
                return
            units = piece.offset // topics.PIECE_UNIT_BYTES
            topic = topics.topic_for(
                self.fleet,
                TopicName.BLOCKS,
                piece.device,
                sha12=topics.short_digest(piece.digest),
                piece=units,
            )
            with suppress(OSError):  # a blob withdrawn in between: the device's next request is told `gone`
                self.connection.publish(Outgoing(topic, self._open_blobs.read(piece), 0, retained=False))

    # Desired states ----------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        """Publish new desired states as soon as a command has committed them, or the broker was lost."""
        version = self.store.changed()
        if version != self._store_version and self.connection.connected:
            self._store_version = version
            reported = {row.device: row.generation for row in self.store.devices()}
            for device in self.store.desired_generations():
                self._reconcile_device(device, reported.get(device, 0))

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

    def _forget_published(self) -> None:
        """Retained is a cache: a broker that came back may have lost all of it."""
        self._published.clear()
        self._store_version = -1

    def _note_connection(self) -> None:
        if self._connected != self.connection.connected:
            self._connected = self.connection.connected
            self.store.set_server(
                self.fleet,
                str(self.connection.address),
                connected=self._connected,
                failure=self.connection.last_failure,
            )

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
