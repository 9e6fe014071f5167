"""A mosquitto with certificates, and clients that may or may not be allowed on it: the honest and the others.

Waiting is for something to happen, with a limit; nothing here asserts.
"""

from __future__ import annotations

import getpass
import select
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edgefleet.mqtt import BrokerAddress
from edgefleet.server.store import Store
from edgefleet.trust import broker, pki
from edgefleet.trust.enrolment import Enrolled, enroll
from edgefleet.trust.keys import KeyFolder
from edgefleet.trust.setup import init
from edgefleet_demo.broker import find_mosquitto
from edgefleet_demo.processes import free_port
from patience import PATIENCE_S

FLEET = "home"


def wait(ready: Callable[[], bool], what: str) -> None:
    """Wait until something holds; raises AssertionError."""
    deadline = time.monotonic() + PATIENCE_S
    while not ready():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {PATIENCE_S:g} s")
        time.sleep(0.01)


@dataclass
class TlsBroker:
    """A fleet's folder and its running broker."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    store: Store

    @property
    def data(self) -> Path:
        """The server's folder."""
        return self.folder / "data"

    @property
    def address(self) -> BrokerAddress:
        """Where it listens."""
        return BrokerAddress("localhost", self.port)

    def enroll(self, device: str) -> Enrolled:
        """Enrol a device; its identity folder is `folder`/DEVICE."""
        enrolled = enroll(self.data, self.store, device, host="localhost", port=self.port, now=time.time(), again=True)
        enrolled.write(self.folder / device)
        return enrolled

    def context(self, name: str) -> ssl.SSLContext:
        """TLS as a device of this name, or as one of the server's own, comes with it."""
        device = self.folder / name
        if device.is_dir():
            return self.context_of(device / "device.crt", device / "device.key")
        certificate, key = pki.ensure_service(self.data, name, time.time())
        return self.context_of(certificate, key)

    def context_of(self, certificate: Path, key: Path) -> ssl.SSLContext:
        """TLS with any certificate; the broker's own is checked as devices check it."""
        context = ssl.create_default_context(cafile=str(self.data / "pki" / "root-ca.crt"))
        context.load_cert_chain(certificate, key)
        return context

    def client(self, name: str, filters: list[tuple[str, int]] | None = None, **options: Any) -> Client:
        """A connected client with the certificate of `name`, and with its subscriptions answered."""
        client = Client(self, name, self.context(name), **options)
        client.open(filters or [])
        return client

    def stop(self) -> None:
        """Stop the broker."""
        self.process.terminate()
        self.process.wait()
        self.store.close()


def start_broker(folder: Path) -> TlsBroker | None:
    """Found a fleet below `folder` and start its broker; None where there is no mosquitto."""
    mosquitto = find_mosquitto()
    if mosquitto is None:
        return None
    folder.mkdir(exist_ok=True)
    init(FLEET, KeyFolder(folder / "keys"), folder / "data")
    port = free_port()
    configuration = broker.write(
        folder / "data", folder / "broker", FLEET, hosts=("localhost", "127.0.0.1"), port=port, user=getpass.getuser(),
        now=time.time(), listen="127.0.0.1",
    )  # fmt: skip
    log = (folder / "broker.log").open("wb")
    process = subprocess.Popen([mosquitto, "-c", str(configuration)], stdout=log, stderr=log)
    wait(lambda: _listens(port) or process.poll() is not None, "mosquitto listens")
    if process.poll() is not None:
        raise AssertionError((folder / "broker.log").read_text())
    return TlsBroker(folder, port, process, Store(folder / "data" / "store.sqlite"))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass
class Client:
    """A client that obeys no rule of ours: any client id, any user name, any topic."""

    broker: TlsBroker
    name: str
    context: ssl.SSLContext
    client_id: str | None = None
    user: str | None = None
    will: str | None = None
    messages: list[tuple[str, bytes, bool]] = field(default_factory=list)
    lost: int = 0

    def open(self, filters: list[tuple[str, int]]) -> None:
        """Connect and subscribe; returns when the broker has answered both."""
        answered: list[object] = []
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=self.client_id or self.name, reconnect_on_failure=False
        )
        client.tls_set_context(self.context)
        if self.user is not None:
            client.username_pw_set(self.user, "any")
        if self.will is not None:
            client.will_set(self.will, b"will", 1, retain=False)
        client.on_connect = lambda *arguments: answered.append(arguments[3])
        client.on_subscribe = lambda *arguments: answered.append(arguments[3])
        client.on_message = lambda _c, _d, message: self.messages.append(
            (message.topic, bytes(message.payload), message.retain)
        )
        client.on_disconnect = self._lost
        self._client = client
        client.connect("localhost", self.broker.port)
        client.loop_start()
        wait(lambda: bool(answered), f"{self.name}: an answer to CONNECT")
        if str(answered[0]) != "Success":
            raise PermissionError(str(answered[0]).lower())
        if filters:
            client.subscribe(filters)
            wait(lambda: len(answered) > 1, f"{self.name}: an answer to SUBSCRIBE")

    def _lost(self, *_arguments: object) -> None:
        self.lost += 1

    def publish(self, topic: str, payload: bytes, qos: int = 1, *, retained: bool = False) -> None:
        """Publish; with QoS 1 it returns when the broker has answered."""
        info = self._client.publish(topic, payload, qos, retained)
        info.wait_for_publish(PATIENCE_S)

    def wait_for(self, payload: bytes) -> None:
        """Wait until a message with this payload has come."""
        wait(lambda: any(message[1] == payload for message in self.messages), f"{self.name}: message {payload!r}")

    def topics(self) -> set[str]:
        """Topics of all that has come."""
        return {topic for topic, _, _ in self.messages}

    def close(self) -> None:
        """Disconnect in good order."""
        self._client.disconnect()
        self._client.loop_stop()

    def crash(self) -> None:
        """Drop the connection without a word: the broker publishes the will."""
        channel = self._client.socket()
        with suppress(OSError):
            if isinstance(channel, socket.socket):
                channel.shutdown(socket.SHUT_RDWR)
        self._client.loop_stop()


def knock(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSession | None:
    """Connect and read CONNACK, by hand; raises PermissionError with the reason when the broker refuses."""
    connect = b"\x00\x04MQTT\x04\x02" + struct.pack("!H", 30) + struct.pack("!H", 2) + b"zz"
    try:
        with (
            socket.create_connection(("127.0.0.1", port), PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as channel,
        ):
            if channel.version() == "TLSv1.3":
                # Here the client's certificate is judged after the handshake: an alert follows, or a ticket.
                select.select([channel], [], [], PATIENCE_S)
                channel.setblocking(False)
                with suppress(ssl.SSLWantReadError):
                    channel.recv(1)
                channel.settimeout(PATIENCE_S)
            channel.sendall(bytes([0x10, len(connect)]) + connect)
            answer = channel.recv(4)
            if answer != b"\x20\x02\x00\x00":
                raise PermissionError(f"CONNACK {answer!r}")
            return channel.session
    except (ssl.SSLError, ConnectionError) as error:
        raise PermissionError(str(error).lower().replace("_", " ")) from error


def write_pair(folder: Path, key_pem: bytes, chain_pem: bytes) -> tuple[Path, Path]:
    """(certificate, key) files of a forged identity."""
    folder.mkdir()
    (folder / "device.crt").write_bytes(chain_pem)
    (folder / "device.key").write_bytes(key_pem)
    return folder / "device.crt", folder / "device.key"
