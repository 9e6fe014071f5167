"""The server on a real mosquitto: what devices say while it is away is kept for it, and acknowledged when stored."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgefleet.mqtt import BrokerAddress
from edgefleet.protocol import topics
from edgefleet.protocol.messages import Ack
from edgefleet.protocol.record import Message
from edgefleet.protocol.signed import Desired, Envelope
from edgefleet.protocol.topics import TOPICS, Role, TopicName
from edgefleet.server import control
from edgefleet.server.data_folder import STORE_FILE
from edgefleet.server.service import Server, ServerSettings
from edgefleet.server.store import Store
from patience import PATIENCE_S
from sdk.fleet_made import LONG, MadeFleet, found
from sdk.mqtt_made import MOSQUITTO, Party, mosquitto
from sdk.wire_examples import FACTS, SPOOL, event, online

pytestmark = pytest.mark.service
PI = "pi-kitchen"


@pytest.fixture(name="fleet")
def _fleet(tmp_path: Path, need: Callable[[bool, str], None]) -> MadeFleet:
    need(MOSQUITTO is not None, "mosquitto")
    fleet = found(tmp_path / "fleet", time.time() // 3600 * 3600)
    fleet.store.add_enrolment(PI, "e1", LONG, "0a", 1.0)
    return fleet


def start(fleet: MadeFleet, address: BrokerAddress) -> Server:
    server = Server(ServerSettings(fleet.data, address, tls=False, own_hubs=0))
    server.begin()
    server.connection.connect_now()
    return server


def stop(server: Server) -> None:
    server.connection.close()
    server.store.close()


def say(device: Party, name: TopicName, message: Message) -> None:
    row = TOPICS[name]
    assert device.publish(topics.topic_for("home", name, PI), message.encode(), row.qos, retained=row.retained)


def came(device: Party, name: TopicName) -> list[bytes]:
    found = [(topics.parse("home", topic), payload) for topic, payload, _ in device.came]
    return [payload for address, payload in found if address is not None and address.name is name]


def serve(server: Server | None, device: Party, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not until():
        assert time.monotonic() < deadline, "waited in vain"
        if server is not None:
            server.connection.poll(0.002)
            server.ingest.commit()
            if server.connection.connected:
                server.reconciler.turn(time.monotonic())
        device.connection.poll(0.002)


def acknowledged(device: Party) -> int:
    return max((Ack.decode(payload).seq for payload in came(device, TopicName.ACK)), default=0)


def test_what_is_said_while_the_server_is_away_is_stored_when_it_comes_back(fleet: MadeFleet, tmp_path: Path) -> None:
    with mosquitto(tmp_path) as address:
        server = start(fleet, address)
        device = Party(address, PI, tuple(topics.filters_read_by(Role.DEVICE, "home", PI))).connect()
        say(device, TopicName.FACTS, FACTS.model_copy(update={"connection": 1}))
        say(device, TopicName.EVENTS, event(1))
        serve(server, device, lambda: acknowledged(device) == 1)
        stop(server)
        for seq in range(2, 42):
            say(device, TopicName.EVENTS, event(seq))
        serve(None, device, lambda: not device.connection.wants_write)
        server = start(fleet, address)
        serve(server, device, lambda: acknowledged(device) == 41)
        assert len(server.store.events(PI)) == 41
        assert SPOOL in {Ack.decode(payload).spool_id for payload in came(device, TopicName.ACK)}
        stop(server)
        device.connection.close()


def test_a_broker_that_lost_everything_is_told_everything_again(fleet: MadeFleet, tmp_path: Path) -> None:
    """Retained is a cache: mosquitto forgets it when it is killed."""
    target = fleet.publish()
    with mosquitto(tmp_path) as address:
        server = start(fleet, address)
        device = Party(address, PI, tuple(topics.filters_read_by(Role.DEVICE, "home", PI))).connect()
        say(device, TopicName.FACTS, FACTS.model_copy(update={"connection": 1}))
        say(device, TopicName.ONLINE, online(1, online=True))
        serve(server, device, lambda: bool((row := server.store.device(PI)) and row.online))
        other = Store(fleet.data / STORE_FILE)
        operator = fleet.keys.signer("operator-default")
        _, generations = control.deploy(other, fleet.data, target, "all", operator, time.time())
        other.close()
        serve(server, device, lambda: bool(came(device, TopicName.DESIRED)))
    device.came.clear()
    with mosquitto(tmp_path, port=address.port):
        serve(server, device, lambda: bool(came(device, TopicName.DESIRED)))
        desired = Desired.unwrap(Envelope.decode(came(device, TopicName.DESIRED)[-1]))
        assert {desired.device: desired.generation} == generations
        stop(server)
        device.connection.close()
