"""The broker connection: MQTT 3.1.1 through paho, driven by the caller's own loop, reconnecting for ever.

One thread, no queue of its own: what is published goes to the socket, and `writable` says when to hold back.
It knows nothing of what the messages mean.
"""

from __future__ import annotations

import logging
import random
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edgefleet.errors import InputError, TransportError
from edgefleet.retry import backoff_s

CONNECT_TIMEOUT_S = 5.0
KEEPALIVE_S = 30
FLUSH_S = 1.0
RECONNECT_FIRST_S = 1.0
RECONNECT_CAP_S = 60.0
TAKEOVER_WINDOW_S = 5.0
TAKEOVER_COUNT = 3
READS_PER_POLL = 256
# paho gives the reason codes of MQTT 5 also for the return codes 1 to 5 of 3.1.1.
CONNACK_REASONS = {
    132: "it does not speak this MQTT version",
    133: "it refuses this client id",
    136: "it is not ready",
    134: "it refuses the user name or password",
    135: "it does not allow this client",
}

log = logging.getLogger("edgefleet.mqtt")


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> BrokerAddress:
        """Read `host:port`; raises InputError."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(
                f"reading the broker address {text!r}", "it is not HOST:PORT", "write it as 127.0.0.1:1883"
            )
        return cls(host.strip("[]"), int(port))


@dataclass(frozen=True, slots=True)
class Identity:
    """Who connects: client id, and the user name that the broker's access list goes by."""

    client_id: str
    user: str


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish."""

    topic: str
    payload: bytes
    qos: int
    retained: bool


class Connection:
    """One client. Call `poll` again and again; the callbacks run inside it."""

    def __init__(
        self,
        address: BrokerAddress,
        identity: Identity,
        filters: Sequence[tuple[str, int]],
        *,
        on_message: Callable[[str, bytes, bool], None],
        on_connected: Callable[[], None],
        will: Callable[[], Outgoing | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_message` gets topic, payload, and whether the broker had it retained; `on_connected` runs once the
        filters are subscribed; `will` is asked anew before each connect.
        """
        self.address = address
        self.connected = False
        self.last_failure: str | None = None
        self._identity = identity
        self._filters = list(filters)
        self._on_message = on_message
        self._on_connected = on_connected
        self._will = will
        self._clock = clock
        self._client: paho.Client | None = None
        self._next_attempt = 0.0
        self._failures = 0
        self._connected_at = 0.0
        self._short_lives = 0
        self._closed = False

    @property
    def writable(self) -> bool:
        """True while nothing waits for the socket: the moment to publish one more large message."""
        return self.connected and self._client is not None and not self._client.want_write()

    def publish(self, message: Outgoing) -> bool:
        """Hand a message to the socket; False (and nothing sent, nothing queued) when not connected."""
        if not self.connected or self._client is None:
            return False
        self._client.publish(message.topic, message.payload, message.qos, message.retained)
        return True

    def connect_now(self, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Connect once within `timeout_s`; raises TransportError. For commands that must not wait for ever."""
        deadline = self._clock() + timeout_s
        self._attempt()
        while not self.connected and self._client is not None and self._clock() < deadline:
            self.poll(0.05)
        if not self.connected:
            self.close()
            raise TransportError(
                f"connecting to the MQTT broker {self.address}",
                self.last_failure or f"no answer within {timeout_s:g} s",
                "check that it runs and that the address is right",
            )

    def poll(self, timeout_s: float, readers: Mapping[int, Callable[[], None]] | None = None) -> None:
        """Wait at most `timeout_s` for the socket or one of `readers` (file descriptor → callback); serve them."""
        readers = readers or {}
        if self._client is None and not self._closed and self._clock() >= self._next_attempt:
            self._attempt()
        client = self._client
        channel = client.socket() if client is not None else None
        reads: list[Any] = [*readers, *([channel] if channel is not None else [])]
        writes = [channel] if client is not None and channel is not None and client.want_write() else []
        ready, ready_to_write, _ = select.select(reads, writes, [], max(0.0, self._bounded(timeout_s)))
        for descriptor in ready:
            if descriptor is not channel:
                readers[descriptor]()
        if client is None or client is not self._client:
            return
        if channel in ready:
            self._read_all(client)
        if ready_to_write and self._client is client:
            client.loop_write()
        if self._client is client:
            client.loop_misc()

    def close(self) -> None:
        """Disconnect in good order (the broker publishes no will) and stay closed."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            self._flush(client)
            client.disconnect()
        self.connected = False

    def abandon(self) -> None:
        """Drop the socket as a crash would: the broker publishes the will."""
        client, self._client = self._client, None
        channel = client.socket() if client is not None else None
        if channel is not None:
            channel.close()
        self.connected = False

    def _bounded(self, timeout_s: float) -> float:
        if self._client is None and not self._closed:
            return min(timeout_s, self._next_attempt - self._clock())
        return timeout_s

    def _read_all(self, client: paho.Client) -> None:
        """Serve what the socket holds, at most READS_PER_POLL packets, so that other readers get their turn."""
        for _ in range(READS_PER_POLL):
            try:
                if client is not self._client or client.loop_read() != paho.MQTT_ERR_SUCCESS:
                    return
            except OSError as error:
                # paho connects anew by itself after a refused protocol version.
                self._lost(error.strerror or str(error))
                return
            channel = client.socket()
            if channel is None or not select.select([channel], [], [], 0)[0]:
                return

    def _flush(self, client: paho.Client) -> None:
        """Give what is queued a second to leave."""
        deadline = self._clock() + FLUSH_S
        while client.want_write() and (channel := client.socket()) is not None and self._clock() < deadline:
            select.select([], [channel], [], 0.1)
            client.loop_write()

    def _attempt(self) -> None:
        client = paho.Client(
            CallbackAPIVersion.VERSION2, self._identity.client_id, clean_session=True, protocol=paho.MQTTv311
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.username_pw_set(self._identity.user)
        client.on_socket_open = _set_nodelay
        client.on_connect = self._connack
        client.on_message = self._received
        client.on_disconnect = self._disconnected
        if (will := self._will()) is not None:
            client.will_set(will.topic, will.payload, will.qos, will.retained)
        self._client = client
        try:
            client.connect(self.address.host, self.address.port, KEEPALIVE_S)
        except (OSError, UnicodeError) as error:
            self._lost((isinstance(error, OSError) and error.strerror) or str(error))

    def _connack(self, client: paho.Client, _data: object, _flags: object, code: Any, _properties: object) -> None:
        if code.is_failure:
            self._lost(CONNACK_REASONS.get(code.value, str(code)))
            return
        self.connected = True
        self.last_failure = None
        self._connected_at = self._clock()
        if self._filters:
            client.subscribe(self._filters)
        log.info("connected to the broker %s", self.address)
        self._on_connected()

    def _received(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        self._on_message(message.topic, bytes(message.payload), message.retain)

    def _disconnected(self, client: paho.Client, _data: object, _flags: object, code: Any, _properties: object) -> None:
        if client is self._client:
            self._lost(f"the broker closed the connection ({code})")

    def _lost(self, reason: str) -> None:
        """Forget the client and schedule the next attempt with full jitter (at most 60 s)."""
        now = self._clock()
        lived_s = now - self._connected_at if self.connected else None
        self._client = None
        self.connected = False
        if lived_s is not None:
            # Two clients of one name evict each other: back off instead of flapping once a second.
            self._short_lives = self._short_lives + 1 if lived_s < TAKEOVER_WINDOW_S else 0
            self._failures = self._short_lives
            if self._short_lives >= TAKEOVER_COUNT:
                reason += f"; {self._short_lives} times in a row: another client may be using the same name"
        self._failures += 1
        cap_s = backoff_s(self._failures, RECONNECT_FIRST_S, RECONNECT_CAP_S)
        wait_s = random.uniform(min(0.1, cap_s), cap_s)  # noqa: S311 - jitter, not a secret
        self._next_attempt = now + wait_s
        self.last_failure = reason
        if not self._closed:
            log.warning("broker %s: %s; trying again in %.1f s", self.address, reason, wait_s)


def _set_nodelay(_client: paho.Client, _data: object, channel: Any) -> None:
    """Without it on both ends a request and its answer take 88 ms instead of 0.35 ms."""
    if isinstance(channel, socket.socket):
        channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
