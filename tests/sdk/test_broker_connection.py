"""The broker connection, as far as it shows without a broker."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from edgefleet.errors import InputError, TransportError
from edgefleet.mqtt import RECONNECT_CAP_S, TAKEOVER_COUNT, BrokerAddress, Connection, Identity, Outgoing
from patience import PATIENCE_S


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def connection(
    address: BrokerAddress,
    clock: Callable[[], float] = time.monotonic,
) -> Connection:
    return Connection(
        address,
        Identity("pi", "pi"),
        [("edgefleet/1/home/d/pi/desired", 1)],
        on_message=lambda _topic, _payload, _retained: None,
        on_connected=lambda: None,
        will=lambda: Outgoing("edgefleet/1/home/d/pi/online", b"{}", 1, retained=True),
        clock=clock,
    )


@pytest.fixture(name="closed")
def _closed() -> BrokerAddress:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return BrokerAddress("127.0.0.1", taken.getsockname()[1])


@pytest.fixture(name="listening")
def _listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:1883", "127.0.0.1", 1883),
        ("broker.local:1", "broker.local", 1),
        ("x:65535", "x", 65535),
        ("[::1]:1883", "::1", 1883),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert BrokerAddress.parse(text) == BrokerAddress(host, port)
    assert BrokerAddress.parse(str(BrokerAddress(host, port))) == BrokerAddress(host, port)


@pytest.mark.parametrize(
    "text",
    ["", "host", ":1883", "host:", "host:0", "host:65536", "host:-1", "host:1e3", "host: 1883", "host:18 83", "1883"],
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        BrokerAddress.parse(text)


def test_a_closed_port_is_a_transport_error_at_once(closed: BrokerAddress) -> None:
    client = connection(closed)
    with pytest.raises(TransportError, match=rf"{closed}: .*refused") as caught:
        client.connect_now()
    assert len(str(caught.value).splitlines()) == 1
    assert not client.connected
    assert not client.writable


def test_a_name_that_cannot_be_one_is_a_transport_error() -> None:
    """Python's idna codec raises UnicodeError, which is no OSError, for a label of more than 63 characters."""
    with pytest.raises(TransportError):
        connection(BrokerAddress.parse("x" * 70 + ":1883")).connect_now()


def test_a_silent_peer_is_given_up(listening: socket.socket) -> None:
    client = connection(BrokerAddress("127.0.0.1", listening.getsockname()[1]))
    with pytest.raises(TransportError, match=r"no answer within 0\.2 s"):
        client.connect_now(0.2)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (1, "MQTT version"),
        (2, "client id"),
        (3, "not ready"),
        (4, "user name or password"),
        (5, "does not allow"),
    ],
)
def test_a_refusal_is_said_in_words(listening: socket.socket, code: int, reason: str) -> None:
    def refuse() -> None:
        # The first answer, to MQTT 5, shows that this broker speaks 3.1.1.
        for _ in range(2):
            peer, _ = listening.accept()
            with peer:
                peer.recv(1000)
                peer.sendall(bytes([0x20, 2, 0, code]))
                peer.recv(1000)

    broker = threading.Thread(target=refuse, daemon=True)
    broker.start()
    with pytest.raises(TransportError, match=reason):
        connection(BrokerAddress("127.0.0.1", listening.getsockname()[1])).connect_now(PATIENCE_S)
    broker.join(PATIENCE_S)


def test_a_broker_that_refuses_the_version_and_goes_away_is_a_transport_error(listening: socket.socket) -> None:
    """The second attempt, with 3.1.1, finds nobody."""

    def refuse() -> None:
        peer, _ = listening.accept()
        listening.close()
        with peer:
            peer.recv(1000)
            peer.sendall(bytes([0x20, 2, 0, 1]))
            peer.recv(1000)

    address = BrokerAddress("127.0.0.1", listening.getsockname()[1])
    broker = threading.Thread(target=refuse, daemon=True)
    broker.start()
    with pytest.raises(TransportError):
        connection(address).connect_now(PATIENCE_S)
    broker.join(PATIENCE_S)


def test_nothing_is_published_or_kept_without_a_connection(closed: BrokerAddress) -> None:
    client = connection(closed)
    assert client.publish(Outgoing("topic", b"", 1, retained=False)) is False
    client.close()
    client.poll(0.0)
    assert client.last_failure is None


def test_attempts_are_spread_further_and_further_up_to_a_minute(closed: BrokerAddress) -> None:
    clock = Clock()
    client = connection(closed, clock)
    waits: list[float] = []
    for _ in range(40):
        client.poll(0.0)
        waits.append(client._attempts.next_at - clock.now)
        before = client._attempts.failures
        client.poll(0.0)
        assert client._attempts.failures == before, "it must wait for its time"
        clock.now = client._attempts.next_at
    assert all(0 < wait <= min(RECONNECT_CAP_S, 2.0**number) for number, wait in enumerate(waits))
    assert max(waits[8:]) > RECONNECT_CAP_S / 3
    client.close()


def test_a_broker_that_is_away_for_days_does_not_end_the_agent(closed: BrokerAddress) -> None:
    """Some 1,100 attempts, 30 s apart on average, are nine hours."""
    clock = Clock()
    client = connection(closed, clock)
    for _ in range(1100):
        client.poll(0.0)
        clock.now += RECONNECT_CAP_S
    assert client.last_failure is not None
    client.close()


def test_two_clients_of_one_name_back_off_and_say_so(closed: BrokerAddress) -> None:
    """Each connect evicts the other: without a growing wait both would flap once a second for ever."""
    clock = Clock()
    client = connection(closed, clock)
    said: list[str] = []
    for _ in range(200):
        client.connected, client._connected_at = True, clock.now
        clock.now += 1.0
        client._lost("the broker closed the connection")
        said.append(str(client.last_failure))
        assert 0 < client._attempts.next_at - clock.now <= RECONNECT_CAP_S
        clock.now = client._attempts.next_at
    assert ["same name" in text for text in said] == [number >= TAKEOVER_COUNT for number in range(1, 201)]
    client.connected, client._connected_at = True, clock.now
    clock.now += 3600.0
    client._lost("the broker closed the connection")
    assert "same name" not in str(client.last_failure)
    assert client._attempts.next_at - clock.now <= 1.0
