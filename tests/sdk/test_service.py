"""The server without a broker: whose name it is, what is acknowledged when, and what one strange message costs."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefleet.errors import BusyError, InputError
from edgefleet.mqtt import BrokerAddress, Outgoing
from edgefleet.package.layout import BlobStore
from edgefleet.protocol import topics
from edgefleet.protocol.messages import Ack, Desired, Event, Message, Reply, Request, RequestKind, State, Status
from edgefleet.protocol.topics import SERVER_USER, TOPICS, TopicName
from edgefleet.server.service import (
    _DECODERS,
    CLAIM_S,
    RECONCILE_EVERY_S,
    REPUBLISH_AFTER_S,
    STORE_FILE,
    Server,
    is_running,
    lock_data,
)
from edgefleet.server.store import DeviceRow, Store
from sdk.wire_examples import DEPLOYMENT, DESIRED, FACTS, SPOOL, STATE, event, online, telemetry

PI = "pi-kitchen"
NOW = 1_760_000_000.0
READ: dict[TopicName, type[Message]] = {
    TopicName.ACK: Ack, TopicName.REPLY: Reply, TopicName.DESIRED: Desired,
}  # fmt: skip


class Service:
    """A server on a clock set by hand; what it publishes is caught on its way to the socket."""

    def __init__(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 5000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "time", lambda: NOW + self.now)
        self.server = Server(data, "home", BrokerAddress("127.0.0.1", 9))
        self.server.connection.connected = True
        self.published: list[Outgoing] = []
        monkeypatch.setattr(self.server.connection, "publish", self._publish)
        self.store = self.server.store

    def _publish(self, message: Outgoing) -> bool:
        self.published.append(message)
        return True

    def put(self, name: TopicName, message: Message | bytes, device: str = PI, *, retained: bool = False) -> None:
        """A message comes in; `turn` has it taken up."""
        payload = message if isinstance(message, bytes) else message.encode()
        self.server._receive(topics.topic_for("home", name, device), payload, retained)

    def turn(self, *, after: float = 0.0) -> list[tuple[TopicName, str, Any]]:
        """One turn of the loop; returns what was published in it."""
        self.now += after
        self.published.clear()
        self.server._commit()
        self.server._reconcile(self.now)
        return self.said()

    def said(self) -> list[tuple[TopicName, str, Any]]:
        found = []
        for sent in self.published:
            address = topics.parse("home", sent.topic)
            assert address is not None
            row = TOPICS[address.name]
            assert (sent.qos, sent.retained) == (row.qos, row.retained)
            found.append((address.name, address.device, READ[address.name].decode(sent.payload)))
        return found

    def acks(self, said: list[tuple[TopicName, str, Any]]) -> list[tuple[str, str, int]]:
        return [(device, message.spool_id, message.seq) for name, device, message in said if name is TopicName.ACK]

    def hello(self, enrolment_id: str = "e1", connection: int = 1, *, retained: bool = False) -> None:
        facts = FACTS.model_copy(update={"enrolment_id": enrolment_id, "connection": connection})
        self.put(TopicName.FACTS, facts, retained=retained)
        self.put(TopicName.ONLINE, online(connection, enrolment_id, online=True), retained=retained)

    def row(self, device: str = PI) -> DeviceRow:
        row = self.store.device(device)
        assert row is not None
        return row

    def deploy(self, generation: int = 7, enrolment_id: str = "e1") -> None:
        changes = {"generation": generation, "enrolment_id": enrolment_id}
        self.store.set_desired(DESIRED.model_copy(update=changes))


@pytest.fixture(name="service")
def _service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    service = Service(tmp_path / "data", monkeypatch)
    yield service
    service.store.close()


def test_a_hello_makes_a_device_known_and_online(service: Service) -> None:
    service.hello()
    assert service.store.device(PI) is None
    assert service.turn() == []
    assert (service.row().enrolment_id, service.row().online) == ("e1", True)


def test_presence_that_overtakes_the_hello_is_understood(service: Service) -> None:
    """Retained messages come in the order of the broker's own tables."""
    service.put(TopicName.STATE, STATE)
    service.put(TopicName.ONLINE, online(3, online=True))
    service.put(TopicName.FACTS, FACTS)
    service.turn()
    assert (service.row().online, service.row().state) == (True, STATE.state)


def test_the_servers_own_name_is_no_fleets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fleet name"):
        Server(tmp_path, SERVER_USER, BrokerAddress("x", 1))


# Whose name it is -------------------------------------------------------------------------------------


@pytest.mark.parametrize("silent_s", [0.0, 10.0, CLAIM_S - 0.1])
def test_a_second_agent_of_one_name_is_refused_while_the_first_is_heard(service: Service, silent_s: float) -> None:
    service.hello("e1")
    service.turn()
    service.hello("e2")
    ((name, device, reply),) = service.turn(after=silent_s)
    assert (name, device) == (TopicName.REPLY, PI)
    assert (reply.req_id, reply.status) == ("hello-e2", Status.DENIED)
    assert b"belongs to another agent" in reply.body
    assert (service.row().enrolment_id, service.row().online) == ("e1", True)


def test_after_a_silence_the_name_is_free_and_the_desired_state_is_issued_again(service: Service) -> None:
    service.hello("e1")
    service.turn()
    service.deploy(generation=7)
    service.put(TopicName.STATE, STATE.model_copy(update={"generation": 7}))
    service.turn()
    service.hello("e2")
    said = service.turn(after=CLAIM_S + 0.1)
    ((name, device, desired),) = said
    assert (name, device) == (TopicName.DESIRED, PI)
    assert (desired.enrolment_id, desired.deployment) == ("e2", DEPLOYMENT)
    assert desired.generation > 7
    assert desired.valid_until > NOW
    assert service.store.desired(PI) == desired
    row = service.row()
    assert (row.enrolment_id, row.online, row.generation, row.state) == ("e2", True, 0, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (TopicName.TELEMETRY, telemetry(1)),
        (TopicName.EVENTS, event(1)),
        (TopicName.STATE, STATE),
        (TopicName.ONLINE, online(9, online=True)),
        (TopicName.FACTS, FACTS),
    ],
)
def test_any_word_of_the_holder_keeps_the_name(service: Service, name: TopicName, message: Message) -> None:
    service.hello("e1")
    service.turn()
    service.put(name, message)
    service.turn(after=CLAIM_S)
    service.hello("e2")
    said = service.turn(after=CLAIM_S - 1.0)
    assert [reply.req_id for name, _, reply in said if name is TopicName.REPLY] == ["hello-e2"]
    assert service.row().enrolment_id == "e1"
    assert service.row().seen_at == NOW + 5000.0 + CLAIM_S


def test_a_strangers_words_do_not_keep_the_name_for_the_holder(service: Service) -> None:
    service.hello("e1")
    service.turn()
    for _ in range(10):
        service.put(TopicName.EVENTS, event(1, enrolment_id="e2"))
        service.turn(after=CLAIM_S / 9)
    service.hello("e2")
    service.turn()
    assert service.row().enrolment_id == "e2"


def test_the_refused_agent_says_its_presence_in_vain(service: Service) -> None:
    service.hello("e1", connection=1)
    service.turn()
    service.put(TopicName.ONLINE, online(50, "e2", online=False))
    service.put(TopicName.STATE, STATE.model_copy(update={"enrolment_id": "e2"}))
    service.turn()
    assert (service.row().online, service.row().state) == (True, None)


def test_a_holder_that_goes_in_good_order_still_has_its_name_for_a_while(service: Service) -> None:
    service.hello("e1")
    service.put(TopicName.ONLINE, online(1, online=False))
    service.turn()
    service.hello("e2")
    assert [message.status for _, _, message in service.turn(after=1.0)] == [Status.DENIED]


# Retained ---------------------------------------------------------------------------------------------


def test_retained_facts_of_a_stranger_are_ignored(service: Service) -> None:
    """What a replaced device left on the broker comes back with every connect of the server."""
    service.hello("e1")
    service.turn()
    service.hello("e0", connection=99, retained=True)
    assert service.turn(after=CLAIM_S * 10) == []
    assert (service.row().enrolment_id, service.row().online) == ("e1", True)


def test_retained_facts_of_one_that_nobody_knows_make_it_known(service: Service) -> None:
    """A server that lost its store."""
    service.hello("e1", retained=True)
    service.turn()
    assert (service.row().enrolment_id, service.row().online) == ("e1", True)


def test_what_was_retained_is_no_sign_of_life(service: Service) -> None:
    service.hello("e1", retained=True)
    service.turn()
    service.hello("e2")
    service.turn(after=0.1)
    assert service.row().enrolment_id == "e2"


def test_a_new_connection_to_the_broker_forgets_who_is_there(service: Service) -> None:
    service.deploy()
    service.hello()
    assert [name for name, _, _ in service.turn()] == [TopicName.DESIRED]
    service.server._forget()
    assert not service.row().online
    # Retained is a cache: the broker may have lost it.
    assert [name for name, _, _ in service.turn(after=0.1)] == [TopicName.DESIRED]
    service.put(TopicName.ONLINE, online(1, online=True), retained=True)
    service.turn()
    assert service.row().online


def test_an_older_will_is_ignored(service: Service) -> None:
    service.hello(connection=5)
    service.put(TopicName.ONLINE, online(4, online=False))
    service.turn()
    assert service.row().online
    service.put(TopicName.ONLINE, online(5, online=False))
    service.turn()
    assert not service.row().online


def test_a_device_that_goes_gets_no_more_blocks(service: Service, tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "data")
    blobs.folder.mkdir(parents=True)
    digest = blobs.add(b"blob")
    service.hello()
    service.put(TopicName.REQUEST, Request(
        req_id="1-1", kind=RequestKind.BLOCKS, digest=digest, blocks=((0, 1),), credit_bytes=10))  # fmt: skip
    assert not service.server.hub.idle
    service.put(TopicName.ONLINE, online(0, online=False))
    service.turn()
    assert not service.server.hub.idle, "an older will says nothing"
    service.put(TopicName.ONLINE, online(1, online=False))
    service.turn()
    assert service.server.hub.idle


# Acknowledgement --------------------------------------------------------------------------------------


def test_what_is_stored_is_acknowledged_once_per_spool_and_turn(service: Service) -> None:
    service.hello()
    for seq in (1, 2, 4):
        service.put(TopicName.EVENTS, event(seq))
    service.put(TopicName.TELEMETRY, telemetry(1, spool_id="0b0b"))
    service.put(TopicName.EVENTS, event(1), device="nuc")
    assert service.published == []
    assert sorted(service.acks(service.turn())) == [("nuc", SPOOL, 1), (PI, "0b0b", 1), (PI, SPOOL, 2)]
    service.put(TopicName.TELEMETRY, telemetry(3))
    assert service.acks(service.turn()) == [(PI, SPOOL, 4)]
    assert service.turn() == []


def test_a_repeated_message_is_acknowledged_again(service: Service) -> None:
    """The acknowledgement was lost: without another the device would send it for ever."""
    for _ in range(2):
        service.put(TopicName.EVENTS, event(1))
        assert service.acks(service.turn()) == [(PI, SPOOL, 1)]
    assert len(service.store.events(PI)) == 1


def test_an_acknowledgement_leaves_only_after_its_commit(service: Service, tmp_path: Path) -> None:
    service.put(TopicName.EVENTS, event(1))
    real, seen = service.server._send, []

    def send(name: TopicName, device: str, message: Message) -> None:
        other = Store(tmp_path / "data" / STORE_FILE)
        seen.append((name, len(other.events(PI))))
        other.close()
        real(name, device, message)

    service.server._send = send  # type: ignore[method-assign]
    service.turn()
    assert seen == [(TopicName.ACK, 1)]


@pytest.mark.parametrize("where", ["add_event", "advance", "add_sent_bytes", "COMMIT"])
def test_a_commit_that_fails_acknowledges_nothing_and_stores_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    service.hello()
    service.turn()
    service.put(TopicName.EVENTS, event(1))
    with monkeypatch.context() as patch:
        if where == "COMMIT":
            service.store._db.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
            service.store._db.execute("CREATE TABLE child (id REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
            service.store._db.execute("PRAGMA foreign_keys = ON")
            real = Store.add_event

            def add_event(store: Store, device: str, message: Event, now: float) -> None:
                real(store, device, message, now)
                store._db.execute("INSERT INTO child VALUES (1)")

            patch.setattr(Store, "add_event", add_event)
        else:
            patch.setattr(Store, where, fail)
        assert service.turn() == []
    assert service.store.events(PI) == []
    service.put(TopicName.EVENTS, event(1))
    assert service.acks(service.turn()) == [(PI, SPOOL, 1)]


@pytest.mark.parametrize(
    "error", [ValueError("odd"), OverflowError("int too large"), sqlite3.IntegrityError("NOT NULL"),
              sqlite3.InterfaceError("type")],
)  # fmt: skip
def test_a_strange_message_costs_only_itself(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real = Store.add_event

    def add_event(store: Store, device: str, message: Event, now: float) -> None:
        real(store, device, message, now)
        if message.seq == 2:
            raise error

    monkeypatch.setattr(Store, "add_event", add_event)
    service.hello()
    for seq in (1, 2, 3):
        service.put(TopicName.EVENTS, event(seq))
    service.put(TopicName.EVENTS, event(1), device="nuc")
    assert sorted(service.acks(service.turn())) == [("nuc", SPOOL, 1), (PI, SPOOL, 1)]
    assert [text for _, text in service.store.events(PI)] == ["event 1", "event 3"]
    assert service.row().online


@pytest.mark.parametrize("payload", [b"", b"{}", b"\xff", b"[]", b'{"v": 2}', b"[" * 100_000])
@pytest.mark.parametrize("name", TopicName)
def test_rubbish_on_any_topic_is_ignored(service: Service, name: TopicName, payload: bytes) -> None:
    service.hello()
    service.put(name, payload)
    assert service.turn() == []
    assert service.row().online


def test_a_message_on_another_topic_is_ignored(service: Service) -> None:
    for topic in ("", "edgefleet/1/office/d/pi/facts", "edgefleet/1/home/d/pi/other", "edgefleet/2/home/d/pi/facts"):
        service.server._receive(topic, FACTS.encode(), retained=False)
    service.turn()
    assert service.store.devices() == []


def test_what_the_hub_sent_is_added_to_the_device(service: Service) -> None:
    service.hello()
    service.turn()
    service.server.hub._sent_bytes[PI] = 61_440
    service.turn()
    service.turn()
    assert service.row().sent_bytes == 61_440


# Desired states ---------------------------------------------------------------------------------------


def test_a_deployment_of_another_process_is_published_at_once(service: Service, tmp_path: Path) -> None:
    service.hello()
    service.turn()
    other = Store(tmp_path / "data" / STORE_FILE)
    other.set_desired(DESIRED)
    other.close()
    ((name, device, desired),) = service.turn(after=0.1)
    assert (name, device, desired) == (TopicName.DESIRED, PI, DESIRED)
    assert service.turn(after=0.1) == []


def test_a_desired_state_that_nobody_answers_is_published_again_now_and_then(service: Service) -> None:
    service.hello()
    service.deploy()
    assert len(service.turn()) == 1
    at = [second for second in range(1, 101) if service.turn(after=1.0)]
    assert len(at) == 3
    assert all(later - sooner == RECONCILE_EVERY_S + 1 for sooner, later in itertools.pairwise(at))


@pytest.mark.parametrize("why", ["offline", "ended", "nothing wanted"])
def test_nothing_is_published_again_to_who_cannot_or_need_not_answer(service: Service, why: str) -> None:
    service.hello()
    if why != "nothing wanted":
        service.deploy()
    service.turn()
    if why == "offline":
        service.put(TopicName.ONLINE, online(1, online=False))
    elif why == "ended":
        service.put(TopicName.STATE, STATE.model_copy(update={"generation": 7, "state": State.COMMITTED}))
    service.turn()
    assert [service.turn(after=1.0) for _ in range(100)] == [[]] * 100


def test_a_state_of_an_older_generation_is_answered_but_not_twice_within_seconds(service: Service) -> None:
    """A state comes four times a second while a device pulls."""
    service.hello()
    service.deploy(7)
    assert len(service.turn()) == 1
    older = STATE.model_copy(update={"generation": 6, "state": State.DOWNLOADING})
    published = 0
    for _ in range(40):
        service.put(TopicName.STATE, older)
        published += len(service.turn(after=0.25))
    assert published == int(10 / (REPUBLISH_AFTER_S + 0.25))
    service.put(TopicName.STATE, older.model_copy(update={"generation": 7}))
    assert service.turn(after=REPUBLISH_AFTER_S + 1.0) == []


def test_without_a_broker_nothing_is_published_and_what_waits_is_dropped(service: Service, tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "data")
    blobs.folder.mkdir(parents=True)
    service.hello()
    service.deploy()
    service.put(TopicName.REQUEST, Request(
        req_id="1-1", kind=RequestKind.BLOCKS, digest=blobs.add(b"x"), blocks=((0, 1),), credit_bytes=1))  # fmt: skip
    service.server.connection.connected = False
    assert service.turn() == []
    assert service.server.hub.idle


def test_requests_are_answered_at_once(service: Service) -> None:
    service.put(TopicName.REQUEST, Request(req_id="1-1", kind=RequestKind.METADATA, digest="sha256:" + "0" * 64))
    ((name, device, reply),) = service.said()
    assert (name, device, reply.status) == (TopicName.REPLY, PI, Status.GONE)


def test_whether_the_broker_is_there_is_written_when_it_changes(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bool] = []
    real = Store.set_server

    def set_server(store: Store, fleet: str, broker: str, *, connected: bool, failure: str | None) -> None:
        written.append(connected)
        real(store, fleet, broker, connected=connected, failure=failure)

    monkeypatch.setattr(Store, "set_server", set_server)
    for connected in (True, True, False, False, True):
        service.server.connection.connected = connected
        service.server._note_connection()
    assert written == [True, False, True]
    row = service.store.server()
    assert row is not None
    assert (row["fleet"], row["broker"], row["connected"]) == ("home", "127.0.0.1:9", 1)


@pytest.mark.parametrize("where", ["set_all_offline", "set_server"])
def test_a_full_disk_when_the_broker_comes_back_does_not_end_the_server(
    service: Service, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """What is not acknowledged waits on the devices; a server that is gone serves nobody."""

    def fail(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    service.hello()
    service.turn()
    with monkeypatch.context() as patch:
        patch.setattr(Store, where, fail)
        service.server._forget()
        service.server._note_connection()
    service.server._forget()
    service.server._note_connection()
    assert not service.row().online
    assert service.store.server() is not None


# The data folder --------------------------------------------------------------------------------------


def test_one_server_per_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    assert not is_running(data)
    clock = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with lock_data(data):
        assert is_running(data)
        with pytest.raises(BusyError, match="another server"):
            lock_data(data)
    assert not is_running(data)


def test_every_message_that_a_server_reads_has_its_decoder() -> None:
    read = {name for name, row in TOPICS.items() if row.reader is topics.Role.SERVER}
    assert set(_DECODERS) == read
