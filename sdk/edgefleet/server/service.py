"""The server's one loop: ingest, reconciliation and upkeep, with the hubs as child processes beside it.

Rules live in `control` and `hub`; this file moves messages between them, the broker and the store.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgefleet.errors import EdgefleetError, StorageError
from edgefleet.mqtt import BrokerAddress, Connection, Identity, Outgoing
from edgefleet.protocol import topics
from edgefleet.protocol.messages import Status
from edgefleet.protocol.record import Message
from edgefleet.protocol.topics import HUB_USERS, SERVER_USER, TOPICS, Role, TopicName
from edgefleet.server.data_folder import STORE_FILE, ensure_share_group, fleet_of, remove_leftovers, tls_of
from edgefleet.server.home_link import HomeLink, HomeSettings
from edgefleet.server.hub_children import HubChildren
from edgefleet.server.hub_link import FromHub, Renewal, Renewed
from edgefleet.server.ingest import Ingest
from edgefleet.server.priors import Priors
from edgefleet.server.reconcile import Reconciler
from edgefleet.server.retention import DEFAULT_DAYS, Retention
from edgefleet.server.store import Store
from edgefleet.server.upkeep import Upkeep
from edgefleet.trust.enrolment import renew
from edgefleet.trust.online import load_online

POLL_S = 0.2

log = logging.getLogger("edgefleet.server")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server is told at its start."""

    data: Path
    address: BrokerAddress
    tls: bool = True
    own_hubs: int = 1
    """Hubs that this server starts itself: the first of all."""
    hub_arguments: Sequence[str] = field(default_factory=tuple)
    """Of `edgefleet hub`, for each of them."""
    home: HomeSettings | None = None
    """Home Assistant's broker; None: nothing is told to any."""
    telemetry_days: int = DEFAULT_DAYS
    """How long single windows are kept."""
    hubs: int = 1
    """Hubs in all, those elsewhere too: each one's certificate is made and renewed here."""


class Server:
    """Ingest, reconciliation and upkeep for one fleet."""

    def __init__(self, settings: ServerSettings) -> None:
        """Open the store below the data folder; the caller holds `lock_data`. Raises InputError, StorageError."""
        self._data = settings.data
        self.fleet = fleet_of(settings.data)
        self.store = Store(settings.data / STORE_FILE)
        hubs = HUB_USERS[: settings.own_hubs]
        self.hubs = HubChildren(hubs, settings.hub_arguments, on_line=self._hear_hub)
        self.reconciler = Reconciler(self.store, self._send, self.hubs.deny)
        self.priors = Priors(settings.data, self.store)
        self.ingest = Ingest(
            self.store, self.fleet, self._send, online_signer=lambda: load_online(settings.data),
            on_state=self.reconciler.device, on_gone=self.hubs.forget, on_flag=self.reconciler.refuse,
            on_event=self.priors.take,
        )  # fmt: skip
        users = (SERVER_USER, *HUB_USERS[: max(settings.hubs, settings.own_hubs)])
        self.upkeep = Upkeep(settings.data, self.store, users if settings.tls else ())
        self._retention = Retention(self.store, settings.telemetry_days)
        self._noted: bool | None = None
        self._home = None if settings.home is None else HomeLink(settings.home, self.fleet, self.store)
        self.connection = Connection(
            settings.address,
            Identity(SERVER_USER, SERVER_USER),
            topics.filters_read_by(Role.SERVER, self.fleet),
            on_message=self.ingest.receive,
            on_connected=self.reconciler.begin_anew,
            tls=tls_of(settings.data, SERVER_USER) if settings.tls else None,
            # What devices say while this server is away waits on the broker.
            clean_session=False,
        )

    def run(self, stop: Callable[[], bool]) -> None:
        """Serve until `stop` says so; raises TransportError when the broker cannot be reached at the start."""
        try:
            self.begin()
            # First, so that they are there when the first device asks.
            self.hubs.tend(time.monotonic())
            self.connection.connect_now()
            log.info("fleet %s: serving", self.fleet)
            while not stop():
                self.turn()
        finally:
            self.hubs.stop()
            self.ingest.commit()
            if self._home is not None:
                self._home.close()
            self.connection.close()
            self.store.close()

    def begin(self) -> None:
        """Clean up after an earlier run and see that the metadata is fresh; raises EdgefleetError."""
        try:
            if left := remove_leftovers(self._data):
                log.info("removed %d unfinished import(s)", len(left))
        except OSError as error:
            log.warning("looking for unfinished imports: %s", error.strerror or error)
        try:
            ensure_share_group(self._data)
        except OSError as error:
            raise StorageError(
                f"serving from {self._data}", error.strerror or str(error), "free the disk or mend it"
            ) from error
        self.upkeep.begin(time.time())

    def turn(self) -> None:
        """One turn of the loop."""
        self.connection.poll(POLL_S, self.hubs.readers())
        self.hubs.tend(time.monotonic())
        self.ingest.commit()
        with self._patience():
            self._note_connection()
            self.priors.publish(time.time())
            if self.connection.connected:
                self.reconciler.turn(time.monotonic())
            if self._home is not None:
                self._home.turn(time.monotonic())
        with self._patience():
            self._retention.turn(time.time())
        self.upkeep.turn(time.time())

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """A full disk does not end the server: what is not acknowledged waits on the devices."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            log.warning("the store: %s", error)

    def _note_connection(self) -> None:
        connected, failure = self.connection.connected, self.connection.last_failure
        if self._noted != connected:
            self.store.set_server(self.fleet, str(self.connection.address), connected=connected, failure=failure)
            self._noted = connected

    def _send(self, name: TopicName, device: str, message: Message) -> bool:
        row = TOPICS[name]
        topic = topics.topic_for(self.fleet, name, device)
        return self.connection.publish(Outgoing(topic, message.encode(), row.qos, row.retained))

    # The hubs ----------------------------------------------------------------------------------------

    def _hear_hub(self, line: FromHub, hub: str) -> None:
        self.ingest.count_sent(line.sent)
        for renewal in line.renewals:
            if (answer := self._renewed(renewal)) is not None:
                self.hubs.answer(hub, answer)

    def _renewed(self, asked: Renewal) -> Renewed | None:
        """The answer to a signing request; None where it must be asked again."""
        try:
            chain = renew(self._data, self.store, asked.device, asked.body, time.time())
        except EdgefleetError as error:
            return Renewed(device=asked.device, req_id=asked.req_id, status=Status.DENIED, body=error.found.encode())
        except (OSError, sqlite3.Error) as error:
            log.warning("renewing the certificate of %s: %s", asked.device, error)
            return None
        log.info("device %s: its certificate was renewed", asked.device)
        return Renewed(device=asked.device, req_id=asked.req_id, status=Status.OK, body=chain)
