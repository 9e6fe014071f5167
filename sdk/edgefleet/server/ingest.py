"""Ingest: what devices say goes into the store, one transaction a turn, and is acknowledged when it is on disk.

A message is applied by itself: a strange one costs only itself. What a device shall run is `reconcile`'s business.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable

from securesystemslib.signer import Signer

from edgefleet.errors import EdgefleetError, short_line
from edgefleet.protocol import messages, topics
from edgefleet.protocol.record import Message, MessageError
from edgefleet.protocol.topics import TopicName
from edgefleet.server import control
from edgefleet.server.budget import DeviceLog
from edgefleet.server.store import DesiredRow, Store
from edgefleet.trust.enrolment import flag_reason

REMEMBERED_STRANGERS = 256
# What one message may bring about; a store that fails ends the whole transaction.
COSTS_ONLY_ITSELF = (
    ValueError, OverflowError, OSError, EdgefleetError, sqlite3.IntegrityError, sqlite3.InterfaceError
)  # fmt: skip

log = logging.getLogger("edgefleet.server")

Send = Callable[[TopicName, str, Message], bool]


class Ingest:
    """Takes messages in; `commit` stores and acknowledges them."""

    def __init__(
        self,
        store: Store,
        fleet: str,
        send: Send,
        *,
        online_signer: Callable[[], Signer],
        on_state: Callable[[str, int], object],
        on_gone: Callable[[str], None],
        on_flag: Callable[[], None],
        on_event: Callable[[str, messages.Event, float], None],
    ) -> None:
        """`on_state` gets a device and the generation that it reported, `on_gone` a device that went offline;
        `on_flag` is called when a device is to be served no more, and `on_event` in the transaction that an event
        is stored in; it may raise ValueError.
        """
        self._store = store
        self._fleet = fleet
        self._send = send
        self._online_signer = online_signer
        self._on_state = on_state
        self._on_gone = on_gone
        self._on_flag = on_flag
        self._on_event = on_event
        self._log = DeviceLog(log)
        self._pending: list[tuple[str, Message]] = []
        self._sent: dict[str, int] = {}
        self._strangers: dict[tuple[str, str], None] = {}

    def receive(self, topic: str, payload: bytes, _retained: bool) -> None:
        """Keep a message for the next commit; rubbish is ignored."""
        address = topics.parse(self._fleet, topic)
        decode = DECODERS.get(address.name) if address else None
        # Nothing at all is how a retained message is cleared.
        if address is None or decode is None or not payload:
            return
        try:
            self._pending.append((address.device, decode(payload)))
        except MessageError as error:
            self._log.say(logging.WARNING, address.device, f"message ignored: {error}")

    def count_sent(self, sent: dict[str, int]) -> None:
        """Bytes of blocks that a hub has handed to the broker, by device."""
        for device, size in sent.items():
            self._sent[device] = self._sent.get(device, 0) + size

    def commit(self) -> None:
        """Store everything that came in since the last turn in one transaction; acknowledge what is on disk."""
        if not self._pending and not self._sent:
            return
        sent, self._sent = self._sent, {}
        # Facts first: what else a device says is understood only once it is known.
        pending = sorted(self._pending, key=lambda entry: not isinstance(entry[1], messages.Facts))
        self._pending = []
        try:
            with self._store.transaction():
                spools = self._apply_all(pending)
                self._store.add_sent_bytes(sent.items())
                acks = {key: self._store.advance(*key, oldest) for key, oldest in spools.items()}
        except sqlite3.Error as error:
            # Nothing is acknowledged, so the devices send it again.
            log.warning("the store: %s; %d messages are waited for again", error, len(pending))
            return
        for (device, spool_id), seq in acks.items():
            self._send(TopicName.ACK, device, messages.Ack(spool_id=spool_id, seq=seq))

    def _apply_all(self, pending: list[tuple[str, Message]]) -> dict[tuple[str, str], int]:
        """Apply each message by itself; returns spool → oldest seq."""
        spools: dict[tuple[str, str], int] = {}
        for device, message in pending:
            try:
                with self._store.savepoint():
                    self._apply(device, message)
            except COSTS_ONLY_ITSELF as error:
                self._log.say(logging.WARNING, device, f"{type(message).__name__} ignored: {error}")
                continue
            if isinstance(message, messages.Spooled):
                key = (device, message.spool_id)
                spools[key] = max(spools.get(key, 1), message.oldest_seq)
        return spools

    def _apply(self, device: str, message: Message) -> None:
        now = time.time()
        match message:
            case messages.Facts():
                self._hello(device, message, now)
            case messages.Online():
                if self._store.set_online(device, message) and not message.online:
                    self._on_gone(device)
            case messages.DeviceState():
                self._state(device, message, now)
            case messages.Telemetry():
                self._store.add_telemetry(device, message, now)
            case messages.Event():
                self._log.say(logging.INFO, device, f"{message.kind}: {message.text}")
                self._store.add_event(device, message, now)
                self._event(device, message, now)

    def _event(self, device: str, event: messages.Event, now: float) -> None:
        """What an event brings about; it is stored, whatever comes of that."""
        try:
            with self._store.savepoint():
                self._on_event(device, event, now)
        except COSTS_ONLY_ITSELF as error:
            self._log.say(logging.WARNING, device, f"{event.kind} has no effect: {short_line(str(error))}")

    def _hello(self, device: str, facts: messages.Facts, now: float) -> None:
        """Take up a device under its enrolment; one that is not enrolled so is ignored."""
        enrolment = self._store.enrolment(device)
        if enrolment is None or enrolment.revoked_at is not None or enrolment.enrolment_id != facts.enrolment_id:
            self._note_stranger(device, facts.enrolment_id)
            return
        if enrolment.hardware_serial is None and facts.machine.serial:
            self._store.set_hardware_serial(device, facts.machine.serial)
        elif enrolment.flag is None and (reason := flag_reason(enrolment, facts.machine.serial)):
            log.warning("device %s: flagged, it gets no deployments: %s", device, reason)
            self._store.set_flag(device, reason)
            self._on_flag()
        self._store.add_facts(device, facts, now)
        row = self._store.desired(device)
        if row is not None and row.enrolment_id != facts.enrolment_id:
            self._reissue(row, facts.enrolment_id, 0, now)
            self._on_state(device, 0)

    def _state(self, device: str, state: messages.DeviceState, now: float) -> None:
        """Record a state; a device that was away for so long that it would refuse what it shall run gets it anew."""
        self._store.set_state(device, state, now)
        row = self._store.desired(device)
        if row is not None and state.generation < row.generation and state.enrolment_id == row.enrolment_id:
            if row.desired.valid_until < now:
                self._reissue(row, row.enrolment_id, state.generation, now)
            self._on_state(device, state.generation)

    def _reissue(self, row: DesiredRow, enrolment_id: str, reported: int, now: float) -> None:
        self._store.set_desired(control.reissue(row.signed, enrolment_id, reported, now, self._online_signer()))

    def _note_stranger(self, device: str, enrolment_id: str) -> None:
        """Retained facts of a replaced device come with every connect: said once."""
        if (device, enrolment_id) in self._strangers:
            return
        if len(self._strangers) >= REMEMBERED_STRANGERS:
            self._strangers.clear()
        self._strangers[device, enrolment_id] = None
        self._log.say(logging.WARNING, device, f"its enrolment {enrolment_id} is not one of this server's: ignored")


DECODERS: dict[TopicName, Callable[[bytes], Message]] = {
    TopicName.ONLINE: messages.Online.decode,
    TopicName.STATE: messages.DeviceState.decode,
    TopicName.FACTS: messages.Facts.decode,
    TopicName.TELEMETRY: messages.Telemetry.decode,
    TopicName.EVENTS: messages.Event.decode,
}
