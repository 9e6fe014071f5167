"""The server without a broker: who is taken up, what is acknowledged when, and what one strange message costs."""

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
from edgefleet.prior import prior_name
from edgefleet.protocol import topics
from edgefleet.protocol.decisions import DECISION_EVENT, Conditions, Prior
from edgefleet.protocol.messages import Ack, Event, Reply, State, Status
from edgefleet.protocol.record import Message
from edgefleet.protocol.signed import Command, CommandName, Desired, Envelope
from edgefleet.protocol.topics import TOPICS, TopicName
from edgefleet.server import control, upkeep
from edgefleet.server.data_folder import STORE_FILE, fleet_of, is_running, lock_data, prior_file, trust_files
from edgefleet.server.hub_link import FromHub, Renewal, Renewed
from edgefleet.server.ingest import DECODERS
from edgefleet.server.reconcile import RECONCILE_EVERY_S, REPUBLISH_AFTER_S
from edgefleet.server.service import Server, ServerSettings
from edgefleet.server.store import DeviceRow, Store
from edgefleet.server.upkeep import LOOK_EVERY_S, WARN_EVERY_S
from edgefleet.trust.envelope import verify
from edgefleet.trust.online import load_online
from edgefleet.trust.pki import make_key_and_csr
from edgefleet.trust.repository import Repository
from sdk.fleet_made import LONG, MadeFleet, found
from sdk.wire_examples import DECISION, DESIRED, FACTS, SPOOL, STATE, desired_envelope, event, online, telemetry

PI = "pi-kitchen"
NOW = 1_750_000_000.0
READ: dict[TopicName, type[Message]] = {
    TopicName.ACK: Ack, TopicName.REPLY: Reply, TopicName.DESIRED: Envelope, TopicName.COMMANDS: Envelope,
}  # fmt: skip


class Service:
    """A server on a clock set by hand; what it publishes is caught on its way to the socket."""

    def __init__(self, fleet: MadeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 5000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "time", lambda: NOW + self.now)
        self.data = fleet.data
        fleet.store.close()
        self.server = Server(ServerSettings(fleet.data, BrokerAddress("127.0.0.1", 9), own_hubs=0))
        self.server.connection.connected = True
        self.published: list[Outgoing] = []
        monkeypatch.setattr(self.server.connection, "publish", self._publish)
        self.store = self.server.store
        self.enrol("e1")

    def _publish(self, message: Outgoing) -> bool:
        self.published.append(message)
        return True

    def put(self, name: TopicName, message: Message | bytes, device: str = PI, *, retained: bool = False) -> None:
        """A message comes in; `turn` has it taken up."""
        payload = message if isinstance(message, bytes) else message.encode()
        self.server.ingest.receive(topics.topic_for("home", name, device), payload, retained)

    def enrol(self, enrolment_id: str, device: str = PI) -> None:
        self.store.add_enrolment(device, enrolment_id, LONG, "0a", NOW)

    def turn(self, *, after: float = 0.0) -> list[tuple[TopicName, str, Any]]:
        """One turn of the loop; returns what was published in it."""
        self.now += after
        self.published.clear()
        self.server.ingest.commit()
        self.server.reconciler.turn(self.now)
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
        self.store.set_desired(desired_envelope(generation=generation, enrolment_id=enrolment_id))


@pytest.fixture(name="service")
def _service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    service = Service(found(tmp_path, NOW), monkeypatch)
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


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"fleet": "edgefleet-server"}', b'{"fleet": "../x"}'])
def test_a_folder_that_names_no_fleet_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match="keys init"):
        fleet_of(tmp_path)
    (tmp_path / "fleet.json").write_bytes(content)
    with pytest.raises(InputError):
        fleet_of(tmp_path)


# Whose name it is -------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["never enrolled", "another enrolment", "removed"])
def test_facts_of_one_that_is_not_enrolled_so_are_ignored(
    service: Service, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    device = "stranger" if why == "never enrolled" else PI
    if why == "removed":
        service.store.revoke_enrolment(PI, NOW)
    facts = FACTS.model_copy(update={"enrolment_id": "e0"} if why == "another enrolment" else {})
    for _ in range(3):
        service.put(TopicName.FACTS, facts, device)
        service.put(TopicName.ONLINE, online(1, facts.enrolment_id, online=True), device)
        assert service.turn() == []
    assert service.store.device(device) is None
    assert len([record for record in caplog.records if "not one of this server's" in record.message]) == 1


def test_another_enrolment_says_its_presence_and_state_in_vain(service: Service) -> None:
    service.hello("e1", connection=1)
    service.turn()
    service.hello("e0", connection=50)
    service.put(TopicName.ONLINE, online(60, "e0", online=False))
    service.put(TopicName.STATE, STATE.model_copy(update={"enrolment_id": "e0"}))
    service.turn()
    assert (service.row().enrolment_id, service.row().online, service.row().state) == ("e1", True, None)


def test_a_device_that_was_enrolled_anew_gets_its_desired_state_anew(service: Service) -> None:
    """What was signed for the old enrolment is refused by the new one: replay must stay harmless."""
    service.hello("e1")
    service.deploy(generation=7)
    service.put(TopicName.STATE, STATE.model_copy(update={"generation": 7}))
    service.turn()
    service.enrol("e2")
    service.hello("e2")
    ((name, device, envelope),) = service.turn(after=1.0)
    desired = Desired.unwrap(envelope)
    assert (name, device) == (TopicName.DESIRED, PI)
    assert (desired.enrolment_id, desired.deployment) == ("e2", DESIRED.deployment)
    assert desired.generation > 7
    assert desired.valid_until > NOW
    key = load_online(service.data).public_key
    verify(envelope, {key.keyid: key}, 1)
    row = service.row()
    assert (row.enrolment_id, row.online, row.generation, row.state) == ("e2", True, 0, None)


def test_a_second_board_under_one_identity_is_flagged_and_gets_nothing(service: Service) -> None:
    service.hello()
    service.turn()
    enrolment = service.store.enrolment(PI)
    assert enrolment is not None
    assert (enrolment.hardware_serial, enrolment.flag) == (FACTS.machine.serial, None)
    machine = FACTS.machine.model_copy(update={"serial": "10000000c0ffee00"})
    service.put(TopicName.FACTS, FACTS.model_copy(update={"machine": machine}))
    service.turn()
    enrolment = service.store.enrolment(PI)
    assert enrolment is not None
    assert enrolment.flag
    assert enrolment.hardware_serial == FACTS.machine.serial
    service.deploy(generation=99)
    assert service.turn(after=RECONCILE_EVERY_S + 1) == []
    service.put(TopicName.STATE, STATE.model_copy(update={"generation": 3}))
    assert service.turn(after=REPUBLISH_AFTER_S + 1) == []
    assert list(service.server.hubs._denied) == [PI]


def test_a_second_board_gets_nothing_from_the_moment_that_it_says_hello(service: Service) -> None:
    service.hello()
    service.turn()
    service.deploy(generation=99)
    machine = FACTS.machine.model_copy(update={"serial": "10000000c0ffee00"})
    service.put(TopicName.FACTS, FACTS.model_copy(update={"machine": machine}))
    service.put(TopicName.STATE, STATE.model_copy(update={"generation": 3}))
    assert service.turn() == []
    assert list(service.server.hubs._denied) == [PI]


def test_a_machine_without_a_serial_number_is_never_flagged(service: Service) -> None:
    for serial in (None, "10000000c0ffee00", None, "10000000c0ffee00"):
        machine = FACTS.machine.model_copy(update={"serial": serial})
        service.put(TopicName.FACTS, FACTS.model_copy(update={"machine": machine}))
        service.turn()
    assert service.store.denied() == {}


def test_a_device_that_was_removed_gets_nothing(service: Service) -> None:
    service.hello()
    service.turn()
    other = Store(service.data / STORE_FILE)
    other.revoke_enrolment(PI, NOW)
    other.close()
    service.deploy()
    assert service.turn(after=RECONCILE_EVERY_S + 1) == []
    assert list(service.server.hubs._denied) == [PI]


# Retained ---------------------------------------------------------------------------------------------


def test_retained_facts_make_a_device_known(service: Service) -> None:
    """A server that lost its store, but not its enrolments."""
    service.hello("e1", retained=True)
    service.turn()
    assert (service.row().enrolment_id, service.row().online) == ("e1", True)


@pytest.mark.parametrize("name", [TopicName.FACTS, TopicName.ONLINE, TopicName.STATE])
def test_a_retained_topic_that_was_cleared_says_nothing(
    service: Service, caplog: pytest.LogCaptureFixture, name: TopicName
) -> None:
    service.hello()
    service.turn()
    service.put(name, b"", retained=True)
    service.turn()
    assert service.row().online
    assert not caplog.records


def test_a_new_connection_to_the_broker_forgets_who_is_there(service: Service) -> None:
    service.deploy()
    service.hello()
    assert [name for name, _, _ in service.turn()] == [TopicName.DESIRED]
    service.server.reconciler.begin_anew()
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


def test_the_hubs_are_told_of_a_device_that_goes(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[str] = []
    monkeypatch.setattr(service.server.ingest, "_on_gone", gone.append)
    service.hello()
    service.put(TopicName.ONLINE, online(0, online=False))
    service.turn()
    assert gone == [], "an older will says nothing"
    service.put(TopicName.ONLINE, online(1, online=False))
    service.turn()
    assert gone == [PI]


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


def test_a_decision_becomes_a_prior_once_it_is_stored(service: Service) -> None:
    service.hello()
    text = DECISION.model_copy(update={"conditions": Conditions.IDLE, "throttled_share": 0.0}).encode().decode()
    service.put(TopicName.EVENTS, event(1).model_copy(update={"kind": DECISION_EVENT, "text": text}))
    service.put(TopicName.EVENTS, event(2).model_copy(update={"kind": DECISION_EVENT, "text": text[:-9]}))
    assert service.acks(service.turn()) == [(PI, SPOOL, 2)]
    service.server.priors.publish(NOW + service.now)
    path = prior_file(service.data, DECISION.index_digest, prior_name(DECISION.hardware_class, DECISION.objective))
    prior = Prior.decode(path.read_bytes())
    assert (prior.digest, prior.threads, prior.devices) == (DECISION.chosen, DECISION.threads, 1)
    assert [kind for kind, _ in service.store.events(PI)] == [DECISION_EVENT] * 2


def test_a_repeated_message_is_acknowledged_again(service: Service) -> None:
    """The acknowledgement was lost: without another the device would send it for ever."""
    for _ in range(2):
        service.put(TopicName.EVENTS, event(1))
        assert service.acks(service.turn()) == [(PI, SPOOL, 1)]
    assert len(service.store.events(PI)) == 1


def test_an_acknowledgement_leaves_only_after_its_commit(service: Service) -> None:
    service.put(TopicName.EVENTS, event(1))
    real, seen = service.server.ingest._send, []

    def send(name: TopicName, device: str, message: Message) -> bool:
        other = Store(service.data / STORE_FILE)
        seen.append((name, len(other.events(PI))))
        other.close()
        return real(name, device, message)

    service.server.ingest._send = send
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


def test_a_key_that_cannot_be_read_costs_only_the_one_who_needs_it(service: Service) -> None:
    service.hello()
    service.deploy()
    service.turn()
    (service.data / "trust" / "online.pem").unlink()
    service.enrol("e2")
    service.hello("e2")
    service.put(TopicName.EVENTS, event(1), device="nuc")
    assert service.acks(service.turn()) == [("nuc", SPOOL, 1)]


@pytest.mark.parametrize("payload", [b"", b"{}", b"\xff", b"[]", b'{"v": 2}', b"[" * 100_000])
@pytest.mark.parametrize("name", TopicName)
def test_rubbish_on_any_topic_is_ignored(service: Service, name: TopicName, payload: bytes) -> None:
    service.hello()
    service.put(name, payload)
    assert service.turn() == []
    assert service.row().online


def test_a_message_on_another_topic_is_ignored(service: Service) -> None:
    for topic in ("", "edgefleet/1/office/d/pi/facts", "edgefleet/1/home/d/pi/other", "edgefleet/2/home/d/pi/facts"):
        service.server.ingest.receive(topic, FACTS.encode(), False)
    service.turn()
    assert service.store.devices() == []


def test_what_the_hubs_sent_is_added_to_the_device(service: Service) -> None:
    service.hello()
    service.turn()
    service.server._hear_hub(FromHub(sent={PI: 61_000}), "edgefleet-hub-1")
    service.server._hear_hub(FromHub(sent={PI: 440}), "edgefleet-hub-2")
    service.turn()
    service.turn()
    assert service.row().sent_bytes == 61_440


# Desired states ---------------------------------------------------------------------------------------


def test_a_deployment_of_another_process_is_published_at_once(service: Service) -> None:
    service.hello()
    service.turn()
    other = Store(service.data / STORE_FILE)
    other.set_desired(desired_envelope())
    other.close()
    ((name, device, envelope),) = service.turn(after=0.1)
    assert (name, device, Desired.unwrap(envelope)) == (TopicName.DESIRED, PI, DESIRED)
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


def test_a_device_that_was_away_for_weeks_gets_its_desired_state_anew(service: Service) -> None:
    """What was signed then is refused by now; what it has answered is never sent again."""
    service.hello()
    service.turn()
    changes = {"valid_until": time.time() + 1000.0, "enrolment_id": "e1"}
    service.store.set_desired(desired_envelope(**changes))
    service.turn(after=900.0)
    older = STATE.model_copy(update={"generation": 5, "state": State.COMMITTED})
    service.put(TopicName.STATE, older)
    service.turn()
    assert service.store.desired_generations() == {PI: DESIRED.generation}
    service.put(TopicName.STATE, older)
    ((name, _, envelope),) = service.turn(after=200.0)
    assert (name, Desired.unwrap(envelope).valid_until > time.time()) == (TopicName.DESIRED, True)
    row = service.store.desired(PI)
    assert row is not None
    assert row.generation > DESIRED.generation
    service.put(TopicName.STATE, STATE.model_copy(update={"generation": row.generation, "state": State.COMMITTED}))
    service.hello(connection=4)
    assert service.turn(after=30 * 86_400.0) == []
    assert service.store.desired_generations() == {PI: row.generation}


def test_what_the_connection_has_no_room_for_goes_with_the_next_turn(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [f"pi-{number}" for number in range(10)]
    for device in devices:
        service.enrol("e1", device)
        service.put(TopicName.FACTS, FACTS, device)
        service.store.set_desired(desired_envelope(device=device))
    monkeypatch.setattr(service.server.connection, "publish", lambda message: (
        len(service.published) < 3 and service._publish(message)))  # fmt: skip
    got = [[device for _, device, _ in service.turn(after=0.2)] for _ in range(5)]
    assert sorted(device for each in got for device in each) == devices
    assert [len(each) for each in got] == [3, 3, 3, 1, 0]


def test_a_command_is_published_once(service: Service) -> None:
    service.hello()
    service.turn()
    other = Store(service.data / STORE_FILE)
    made = control.command(other, service.data, PI, CommandName.REPORT, time.time())
    other.close()
    ((name, device, envelope),) = service.turn(after=0.1)
    assert (name, device, Command.decode(envelope.payload)) == (TopicName.COMMANDS, PI, made)
    assert service.turn(after=0.1) == []


def test_what_a_hub_asks_to_be_renewed_is_renewed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[tuple[str, Renewed]] = []
    monkeypatch.setattr(service.server.hubs, "answer", lambda *answer: answers.append(answer))
    _, csr = make_key_and_csr(PI)
    asked = [
        Renewal(device=PI, req_id="1-1", body=csr),
        Renewal(device=PI, req_id="1-2", body=make_key_and_csr("nuc")[1]),
        Renewal(device="nobody", req_id="1-3", body=csr),
    ]
    service.server._hear_hub(FromHub(renewals=tuple(asked)), "edgefleet-hub-2")
    assert [hub for hub, _ in answers] == ["edgefleet-hub-2"] * 3
    statuses = {answer.req_id: answer.status for _, answer in answers}
    assert statuses == {"1-1": Status.OK, "1-2": Status.DENIED, "1-3": Status.DENIED}
    assert answers[0][1].body.startswith(b"-----BEGIN CERTIFICATE-----")
    enrolment = service.store.enrolment(PI)
    assert enrolment is not None
    assert enrolment.not_after < LONG
    assert enrolment.enrolment_id == "e1"


# Upkeep -----------------------------------------------------------------------------------------------


def test_metadata_is_signed_again_when_a_day_has_passed_whatever_the_clock_does(service: Service) -> None:
    repository = Repository(trust_files(service.data))
    service.server.begin()
    before = repository.timestamp().signed.version
    service.server.upkeep.turn(time.time())
    assert repository.timestamp().signed.version == before
    service.now += 2 * 86_400
    service.server.upkeep.turn(time.time())
    assert repository.timestamp().signed.version > before
    assert not repository.is_due(time.time())


def test_what_ends_soon_is_warned_of_once_a_day(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service.store.add_enrolment(PI, "e1", time.time() + 5 * 86_400, "0a", NOW)
    service.server.begin()
    turns = 2 * int(WARN_EVERY_S / LOOK_EVERY_S)
    monkeypatch.setattr(upkeep, "publish_changes", lambda *_: None)
    monkeypatch.setattr("edgefleet.trust.broker.refresh", lambda *_: None)
    for _ in range(turns):
        service.now += LOOK_EVERY_S
        service.server.upkeep.turn(time.time())
    said = [record.message for record in caplog.records if f"device {PI}" in record.message]
    assert len(said) == 3


def test_metadata_that_cannot_be_signed_is_said_and_does_not_end_the_server(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.server.begin()
    (service.data / "trust" / "online.pem").unlink()
    service.now += 2 * 86_400
    service.server.upkeep.turn(time.time())
    assert any("keeping the metadata fresh" in record.message for record in caplog.records)


# The broker and the disk ------------------------------------------------------------------------------


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


@pytest.mark.parametrize("where", ["set_all_offline", "set_server", "changed", "take_commands", "denied"])
def test_a_full_disk_does_not_end_the_server(service: Service, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """What is not acknowledged waits on the devices; a server that is gone serves nobody."""

    def fail(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    service.hello()
    service.turn()
    service.deploy()
    monkeypatch.setattr(service.server.connection, "poll", lambda *_: None)
    monkeypatch.setattr(service.server, "upkeep", upkeep.Upkeep(service.data, service.store, ()))
    with monkeypatch.context() as patch:
        patch.setattr(Store, where, fail)
        service.server.reconciler.begin_anew()
        service.server.turn()
    service.published.clear()
    service.server.reconciler.begin_anew()
    service.server.turn()
    assert not service.row().online
    assert service.store.server() is not None
    assert [name for name, _, _ in service.said()] == [TopicName.DESIRED]


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
    assert set(DECODERS) == read
