"""Sessions on a real mosquitto: versions, limits, what is kept for whom is away, and what ends a connection."""

from __future__ import annotations

import os
import re
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from edgefleet.mqtt import BrokerAddress, Outgoing
from edgefleet.mqtt.connection import MOST_WAITING_BYTES
from sdk.mqtt_made import MOSQUITTO, Party, free_port, mosquitto

pytestmark = pytest.mark.service

EVERYTHING = (("a/#", 1),)
CONNACK, CONNACK_5 = b"\x20\x02\x00\x00", b"\x20\x03\x00\x00\x00"


@pytest.fixture(autouse=True)
def _services(need: Callable[[bool, str], None]) -> None:
    need(MOSQUITTO is not None, "mosquitto (a system package)")


@pytest.fixture(name="broker")
def _broker(tmp_path: Path) -> Iterator[BrokerAddress]:
    with mosquitto(tmp_path) as address:
        yield address


class Peer:
    """A broker by hand: each connection is answered by the next of `answers`, then left alone."""

    def __init__(self, *answers: bytes | None) -> None:
        """None closes the connection without an answer."""
        self.heard: list[bytes] = []
        self.answers = list(answers)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = BrokerAddress(*self.listener.getsockname())
        self.open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            for answer in self.answers:
                peer, _ = self.listener.accept()
                self.open.append(peer)
                self.heard.append(peer.recv(1000))
                if answer is None:
                    peer.close()
                else:
                    peer.sendall(answer)

    def level(self, number: int) -> int:
        """The protocol level of the CONNECT packet: 4 is MQTT 3.1.1, 5 is 5."""
        return self.heard[number][8]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"\x20\x02\x00\x01", id="says so as 3.1.1 has it"),
        pytest.param(b"\x20\x03\x00\x84\x00", id="says so as 5 has it"),
        pytest.param(b"\x20\x02\x00\x00", id="takes it for 3.1.1"),
        pytest.param(None, id="closes"),
    ],
)
def test_a_broker_without_5_gets_311_at_once(answer: bytes | None) -> None:
    peer = Peer(answer, CONNACK, CONNACK)
    party = Party(peer.address)
    party.connect()
    assert party.connection._attempts.failures == 0, "no wait between the two"
    assert (peer.level(0), peer.level(1), party.connection.protocol) == (5, 4, "3.1.1")
    assert (party.connection.max_packet_bytes, party.connection.shared_subscriptions) == (None, None)
    assert party.lost == []
    peer.open[1].close()
    party.until(lambda: party.lost == [False])
    party.connection.reconnect()
    party.until(lambda: party.welcomed == 2)
    assert peer.level(2) == 4, "remembered"
    party.connection.abandon()


def test_a_broker_that_waits_for_ever_on_5_gets_311_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """So does amqtt: it reads on in the middle of a CONNECT that it does not know."""
    monkeypatch.setattr("edgefleet.mqtt.connection.SILENCE_S", 0.05)
    peer = Peer(b"", CONNACK)
    party = Party(peer.address).connect()
    assert (peer.level(0), peer.level(1), party.connection.protocol) == (5, 4, "3.1.1")
    party.connection.abandon()


@pytest.mark.parametrize(
    ("properties", "limit", "shared"),
    [
        (b"", None, True),
        (b"\x27\x00\x00\x4e\x20", 20_000, True),
        (b"\x2a\x00", None, False),
        (b"\x27\x00\x01\x00\x00\x2a\x01", 65_536, True),
    ],
)
def test_what_a_broker_tells_of_itself(properties: bytes, limit: int | None, shared: bool) -> None:
    peer = Peer(bytes([0x20, 3 + len(properties), 0, 0, len(properties)]) + properties)
    party = Party(peer.address).connect()
    assert party.connection.protocol == "5"
    assert (party.connection.max_packet_bytes, party.connection.shared_subscriptions) == (limit, shared)
    party.connection.abandon()


def test_mosquitto_speaks_5_and_tells_its_limit(tmp_path: Path) -> None:
    with mosquitto(tmp_path, "max_packet_size 20000") as address:
        party = Party(address, filters=EVERYTHING).connect()
        assert (party.connection.protocol, party.connection.max_packet_bytes) == ("5", 20_000)
        party.publish("a/b", b"x" * 19_000)
        party.until(lambda: len(party.came) == 1)
        party.publish("a/b", b"x" * 30_000)
        party.until(lambda: party.lost != [])
        assert party.lost == [True]
        party.connection.close()


def test_a_limit_that_311_cannot_tell_shows_in_how_the_connection_ends(tmp_path: Path) -> None:
    with mosquitto(tmp_path, "max_packet_size 20000") as address:
        party = Party(address, filters=EVERYTHING)
        party.connection._attempts.refused_5(0.0, said_so=True)
        party.connect()
        assert (party.connection.protocol, party.connection.max_packet_bytes) == ("3.1.1", None)
        party.publish("a/b", b"x" * 61_440)
        party.until(lambda: party.lost == [True])
        party.connection.reconnect()
        party.until(lambda: party.welcomed == 2)
        party.publish("a/b", b"x" * 15_360)
        party.until(lambda: len(party.came) == 1)
        party.connection.close()


def test_a_connection_that_another_client_took_is_not_laid_to_the_size(broker: BrokerAddress) -> None:
    party = Party(broker, filters=EVERYTHING).connect()
    party.publish("a/b", b"x" * 8_000)
    party.until(lambda: len(party.came) == 1)
    thief = Party(broker).connect()
    party.until(lambda: party.lost == [False])
    party.connection.close()
    thief.connection.close()


@pytest.mark.parametrize("version_311", [False, True])
def test_what_came_at_qos_1_while_ingest_was_away_is_delivered(broker: BrokerAddress, version_311: bool) -> None:
    def ingest() -> Party:
        party = Party(broker, "server", EVERYTHING, clean_session=False)
        if version_311:
            party.connection._attempts.refused_5(0.0, said_so=True)
        return party.connect()

    first = ingest()
    device = Party(broker, "pi").connect()
    device.publish("a/b", b"before", 1)
    device.until(lambda: len(first.came) == 1, first)
    first.connection.abandon()
    # More than the 100 that go out unacknowledged, fewer than the 1,000 that mosquitto keeps for whoever is away.
    sent = [b"%d" % number for number in range(500)]
    assert all(device.publish("a/b", payload, 1) for payload in sent)
    client = device.connection._client
    device.until(lambda: client is not None and not client._out_messages)
    second = ingest()
    second.until(lambda: len(second.came) >= len(sent))
    assert [payload for _, payload, _ in second.came] == sent
    # In order: once this is acknowledged, so is all that came before.
    second.publish("b/last", b"", 1)
    client = second.connection._client
    second.until(lambda: client is not None and not client._out_messages)
    for party in (device, second):
        party.connection.close()
    third = ingest()
    third.publish("a/b", b"last", 1)
    third.until(lambda: bool(third.came))
    assert [payload for _, payload, _ in third.came] == [b"last"], "what was acknowledged does not come again"
    third.connection.close()


def test_a_clean_session_keeps_nothing(broker: BrokerAddress) -> None:
    Party(broker, "server", EVERYTHING).connect().connection.abandon()
    device = Party(broker, "pi").connect()
    device.publish("a/b", b"lost", 1)
    second = Party(broker, "server", EVERYTHING).connect()
    device.publish("a/b", b"kept", 1)
    device.until(lambda: bool(second.came), second)
    assert [payload for _, payload, _ in second.came] == [b"kept"]
    for party in (device, second):
        party.connection.close()


def test_the_broker_is_told_only_once_the_message_was_handled(broker: BrokerAddress) -> None:
    """A server that dies in the middle of a message gets it again."""

    class Dying(Party):
        def receive(self, topic: str, payload: bytes, retained: bool) -> None:
            super().receive(topic, payload, retained)
            raise RuntimeError("died")

    party = Dying(broker, "server", EVERYTHING, clean_session=False).connect()
    device = Party(broker, "pi").connect()
    device.publish("a/b", b"once", 1)
    with pytest.raises(RuntimeError, match="died"):
        device.until(lambda: False, party)
    party.connection.abandon()
    again = Party(broker, "server", EVERYTHING, clean_session=False).connect()
    again.until(lambda: bool(again.came))
    assert [payload for _, payload, _ in again.came] == [b"once"]
    for each in (device, again):
        each.connection.close()


def test_retained_and_live_messages_are_told_apart(broker: BrokerAddress) -> None:
    sender = Party(broker, "server").connect()
    sender.publish("a/b", b"kept", 1, retained=True)
    client = sender.connection._client
    sender.until(lambda: client is not None and not client._out_messages)
    party = Party(broker, "pi", EVERYTHING).connect()
    party.until(lambda: len(party.came) == 1)
    sender.publish("a/b", b"live", 1, retained=True)
    sender.publish("a/c", b"", 0)
    sender.until(lambda: len(party.came) == 3, party)
    assert party.came == [("a/b", b"kept", True), ("a/b", b"live", False), ("a/c", b"", False)]
    for each in (sender, party):
        each.connection.close()


def test_the_will_is_published_after_a_crash_only(broker: BrokerAddress) -> None:
    watcher = Party(broker, "server", EVERYTHING).connect()
    party = Party(broker, "pi", will=Outgoing("a/online", b"gone", 1, retained=False)).connect()
    party.connection.reconnect()
    assert (party.lost, party.connection.connected) == ([False], False)
    party.until(lambda: party.welcomed == 2, watcher)
    party.connection.close()
    party = Party(broker, "pi", will=Outgoing("a/online", b"crashed", 1, retained=False)).connect()
    party.connection.abandon()
    watcher.until(lambda: bool(watcher.came))
    assert [payload for _, payload, _ in watcher.came] == [b"crashed"]
    watcher.connection.close()


def test_a_client_may_close_while_it_handles_a_message(broker: BrokerAddress) -> None:
    class Leaving(Party):
        def receive(self, topic: str, payload: bytes, retained: bool) -> None:
            super().receive(topic, payload, retained)
            self.connection.close()

    watcher = Party(broker, "server", (("w/#", 1),)).connect()
    party = Leaving(broker, "pi", EVERYTHING, will=Outgoing("w/pi", b"crashed", 1, retained=False)).connect()
    for number in range(3):
        watcher.publish("a/b", b"%d" % number, 1)
    watcher.until(lambda: bool(party.came), party)
    watcher.publish("w/end", b"", 1)
    watcher.until(lambda: bool(watcher.came))
    assert [topic for topic, _, _ in watcher.came] == ["w/end"]
    assert (len(party.came), party.lost, party.connection.fileno()) == (1, [], -1)
    watcher.connection.close()


@pytest.mark.parametrize("version_311", [False, True])
def test_what_was_published_right_before_closing_arrives(broker: BrokerAddress, version_311: bool) -> None:
    """Also while more comes in than is read: closed with bytes unread, TCP would reset the connection."""
    watcher = Party(broker, "server", (("w/#", 1),)).connect()
    for turn in range(20):
        party = Party(broker, "pi", EVERYTHING, will=Outgoing("w/will", b"", 1, retained=False))
        if version_311:
            party.connection._attempts.refused_5(0.0, said_so=True)
        party.connect()
        for number in range(30):
            party.publish("a/echo", bytes(20_000), number % 2)
            party.publish(f"w/{turn}", b"%d" % number, 1)
        party.connection.close()
    watcher.until(lambda: len(watcher.came) >= 600)
    assert [topic for topic, _, _ in watcher.came] == [f"w/{turn}" for turn in range(20) for _ in range(30)]
    watcher.connection.close()


def test_many_filters_and_those_chosen_on_connecting(broker: BrokerAddress) -> None:
    class Choosing(Party):
        def welcome(self) -> None:
            super().welcome()
            assert self.connection.shared_subscriptions
            self.connection.subscribe([("$share/hubs/s/#", 1)])
            self.publish("c/here", b"hello")

    party = Choosing(broker, filters=(*((f"a/{number}", 1) for number in range(20)), ("c/#", 0))).connect()
    sender = Party(broker, "server").connect()
    for number in range(20):
        sender.publish(f"a/{number}", b"x", 1)
    sender.publish("s/1", b"shared", 1)
    sender.until(lambda: len(party.came) == 22, party)
    assert {topic for topic, _, _ in party.came} == {*(f"a/{number}" for number in range(20)), "s/1", "c/here"}
    for each in (sender, party):
        each.connection.close()


def test_a_message_may_be_answered_while_it_is_handled(broker: BrokerAddress) -> None:
    # All the answers together are fewer bytes than may wait: none is refused, however slow the broker is.
    answer_bytes = MOST_WAITING_BYTES // (2 * 300 + 10)

    class Answering(Party):
        def receive(self, topic: str, payload: bytes, retained: bool) -> None:
            super().receive(topic, payload, retained)
            for qos in (0, 1):
                assert self.publish("b/answer", bytes(answer_bytes), qos)

    hub = Answering(broker, "hub", EVERYTHING).connect()
    device = Party(broker, "pi", (("b/#", 1),)).connect()
    for _ in range(300):
        device.publish("a/question", b"x" * 1000, 1)
    device.until(lambda: len(device.came) == 600, hub)
    assert {len(payload) for _, payload, _ in device.came} == {answer_bytes}
    for each in (hub, device):
        each.connection.close()


def test_publishing_is_refused_before_it_fills_the_memory() -> None:
    """A peer that reads nothing."""
    peer = Peer(CONNACK_5)
    party = Party(peer.address).connect()
    taken = 0
    while party.publish("a/b", bytes(61_440)):
        taken += 1
        assert taken < 1000
    client = party.connection._client
    assert client is not None
    assert not party.connection.writable
    assert party.connection.wants_write
    assert client.channel.waiting_bytes <= MOST_WAITING_BYTES + 62_000
    party.connection.close()
    queued = Party(Peer(CONNACK_5).address).connect()
    count = sum(queued.publish("a/b", b"x", 1) for _ in range(5000))
    assert 1000 <= count < 5000
    queued.connection.abandon()


def test_publish_never_calls_back() -> None:
    """What ended is told from within `poll` only."""
    peer = Peer(CONNACK_5)
    party = Party(peer.address).connect()
    peer.open[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.open[0].close()
    for _ in range(50):
        party.publish("a/b", bytes(61_440))
    assert party.lost == []
    party.until(lambda: party.lost == [True])
    assert party.connection.last_failure is not None
    party.connection.close()


def test_a_dead_cable_is_noticed() -> None:
    """A peer that answers no PINGREQ within the keepalive."""
    peer = Peer(CONNACK_5)
    party = Party(peer.address, keepalive_s=1).connect()
    party.until(lambda: party.lost == [False])
    assert "does not answer any more" in str(party.connection.last_failure)
    assert peer.open[0].recv(100).endswith(b"\xc0\x00"), "a PINGREQ was sent"
    party.connection.close()


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"\x30\xff\xff\xff\x7f", "larger than"),
        (b"\x30\x03\x00\x09a", "cannot be read"),
        (b"\x40\x00", "cannot be read"),
        (b"\x90\x01\x00", "cannot be read"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "cannot be read|closed the connection"),
        (b"\xe0\x01\x8e", "another client took over the same name"),
        (b"\xe0\x01\x95", "a packet too large"),
        (b"\xe0\x00", "closed the connection"),
    ],
)
def test_what_no_broker_should_send_ends_the_connection_and_not_the_agent(garbage: bytes, reason: str) -> None:
    party = Party(Peer(CONNACK_5 + garbage).address)
    party.until(lambda: party.connection.last_failure is not None)
    assert re.search(reason, str(party.connection.last_failure))
    party.connection.close()


def test_a_refused_subscription_is_said(caplog: pytest.LogCaptureFixture) -> None:
    party = Party(Peer(CONNACK_5 + b"\x90\x05\x00\x01\x00\x00\x87").address, filters=(("a/#", 1), ("b/#", 1)))
    party.until(lambda: "refuses 1 of 2 subscriptions: Not authorized" in caplog.text)
    assert party.connection.connected
    party.connection.abandon()


def test_descriptors_above_1023(broker: BrokerAddress) -> None:
    """`select` refuses them; a simulated fleet of a thousand in one process has them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    with ExitStack() as kept:
        kept.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1100):
            kept.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        party = Party(broker, filters=EVERYTHING).connect()
        reader, writer = os.pipe()
        kept.callback(os.close, reader)
        kept.callback(os.close, writer)
        assert min(party.connection.fileno(), reader) > 1023
        read: list[bytes] = []
        os.write(writer, b"x")
        party.connection.poll(1.0, {reader: lambda: read.append(os.read(reader, 10))})
        assert read == [b"x"]
        party.publish("a/b", b"x" * 61_440)
        party.until(lambda: len(party.came) == 1)
        party.connection.close()


def test_it_comes_back_when_the_broker_does(tmp_path: Path) -> None:
    port = free_port()
    with mosquitto(tmp_path, port=port) as address:
        party = Party(address, filters=EVERYTHING).connect()
    party.until(lambda: party.lost == [False])
    assert not party.publish("a/b", b"x")
    with mosquitto(tmp_path, port=port):
        party.connection.reconnect()
        party.until(lambda: party.welcomed == 2)
        party.publish("a/b", b"x")
        party.until(lambda: len(party.came) == 1)
    party.connection.close()
