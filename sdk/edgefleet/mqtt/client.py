"""paho's client on our own socket: paho keeps the session (CONNECT, QoS 1, keepalive), the load goes past it.

PUBLISH packets are read, and at QoS 0 written, without paho's copies of each payload; all else is paho's.
"""

from __future__ import annotations

import errno
import logging
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgefleet.mqtt.address import Identity, Outgoing
from edgefleet.mqtt.channel import Channel, Phase
from edgefleet.mqtt.packets import (
    CONNACK,
    PUBLISH,
    PacketError,
    decode_publish,
    publish_header,
)

# AWS IoT Core takes 8 filters in one SUBSCRIBE.
FILTERS_PER_SUBSCRIBE = 8
READS_PER_TURN = 64
INFLIGHT = 100
QUEUED = 2000
UNSUPPORTED_VERSION = 132
PERSISTENT_S = 7 * 24 * 3600
CLOSING_S = 0.2
# Without a reason, which stands for a normal one, it is the same in both versions.
DISCONNECT = b"\xe0\x00"
# What paho itself calls; the tests check that it still has them.
HOOKS = ("_create_socket", "_packet_read", "_packet_handle", "_sock_send", "_send_puback")

log = logging.getLogger("edgefleet.mqtt")


class Client(paho.Client):
    """One attempt at a connection and, when it succeeds, the session on it."""

    def __init__(
        self,
        channel: Channel,
        identity: Identity,
        *,
        version_5: bool,
        clean: bool,
        on_message: Callable[[str, bytes, bool], None],
    ) -> None:
        """`on_message` gets topic, payload, retained; at QoS 1 the broker is told so once it has returned."""
        super().__init__(
            CallbackAPIVersion.VERSION2,
            identity.client_id,
            clean_session=None if version_5 else clean,
            protocol=MQTTProtocolVersion.MQTTv5 if version_5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self.channel = channel
        self.version_5 = version_5
        self.protocol_error: str | None = None
        self.connack_code: int | None = None
        self.max_packet_bytes: int | None = None
        self.shared_subscriptions: bool | None = None
        self.ended_code: int | None = None
        self.ended_by_broker = False
        self.drained = True
        self._clean = clean
        self._leaving = False
        self._deliver = on_message
        self.username_pw_set(identity.user or None, identity.password)
        self.max_inflight_messages_set(INFLIGHT)
        self.max_queued_messages_set(QUEUED)
        self.on_connect = self._on_connack
        self.on_disconnect = self._on_end
        self.on_subscribe = self._on_suback

    def start(self, host: str, port: int, keepalive_s: int, will: Outgoing | None) -> None:
        """Queue the CONNECT packet; it leaves when the channel is open."""
        if will is not None:
            self.will_set(will.topic, will.payload, will.qos, will.retained)
        if not self.version_5:
            self.connect(host, port, keepalive_s)
            return
        properties = None
        if not self._clean:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = PERSISTENT_S
        self.connect(host, port, keepalive_s, clean_start=self._clean, properties=properties)

    def subscribe_all(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe in as few packets as brokers take."""
        for start in range(0, len(filters), FILTERS_PER_SUBSCRIBE):
            self.subscribe(list(filters[start : start + FILTERS_PER_SUBSCRIBE]))

    def send(self, message: Outgoing) -> bool:
        """Publish; False when paho's queue of messages at QoS 1 is full."""
        if message.qos:
            info = self.publish(message.topic, message.payload, message.qos, message.retained)
            return info.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE
        header = publish_header(
            message.topic, len(message.payload), retained=message.retained, version_5=self.version_5
        )
        self.channel.send(header, message.payload)
        self._last_msg_out = time.monotonic()
        return True

    def read(self) -> None:
        """Serve what the socket holds, at most READS_PER_TURN packets, so that others get their turn.

        `drained` tells whether that was all. What is sent meanwhile leaves together.
        """
        self.channel.corked = True
        try:
            for _ in range(READS_PER_TURN):
                had_connack = self.connack_code is not None
                self.loop_read()
                if self.drained or self.channel.phase is Phase.BROKEN or not had_connack:
                    return
        finally:
            self.channel.corked = False

    def leave(self, timeout_s: float) -> None:
        """Disconnect in good order: what was published leaves first and, at QoS 1, is acknowledged.

        What comes in meanwhile is dropped and, at QoS 1, not acknowledged: a kept session gets it again.
        """
        self._leaving = True
        deadline = time.monotonic() + timeout_s
        channel = self.channel
        while (channel.waiting_bytes or self._out_messages) and channel.phase is Phase.OPEN:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            channel.wait(left_s)
            self.read()
        if self.connack_code == 0:
            channel.corked = False
            channel.send(DISCONNECT)
            channel.close_gently(max(CLOSING_S, deadline - time.monotonic()))
        channel.close()

    def _on_connack(
        self, _client: paho.Client, _data: object, _flags: object, code: Any, properties: Properties | None
    ) -> None:
        self.connack_code = code.value
        if self.version_5:
            self.max_packet_bytes = getattr(properties, "MaximumPacketSize", None)
            # Absent means yes (MQTT 5.0, section 3.2.2.3.13).
            self.shared_subscriptions = bool(getattr(properties, "SharedSubscriptionAvailable", 1))
        limit = getattr(properties, "ReceiveMaximum", None)
        if limit is not None:
            # paho has no public way to lower it once connected.
            self._max_inflight_messages = min(INFLIGHT, limit)

    def _on_end(self, _client: paho.Client, _data: object, flags: Any, code: Any, _properties: object) -> None:
        self.ended_code = code.value
        self.ended_by_broker = flags.is_disconnect_packet_from_server

    def _on_suback(
        self, _client: paho.Client, _data: object, _packet_id: int, codes: Sequence[Any], _properties: object
    ) -> None:
        refused = [str(code) for code in codes if code.is_failure]
        if refused:
            log.warning("the broker refuses %d of %d subscriptions: %s", len(refused), len(codes), refused[0])

    # What paho calls -----------------------------------------------------------------------------------

    def _create_socket(self) -> Any:
        return self.channel

    def _sock_send(self, buf: bytes | bytearray) -> int:
        if self.channel.fileno() < 0:
            raise ConnectionError(errno.ENOTCONN, "the connection is closed")
        self.channel.send(buf)
        return len(buf)

    def _packet_read(self) -> MQTTErrorCode:
        """One packet; MQTT_ERR_AGAIN when there is none."""
        try:
            packet = self.channel.next_packet()
            self.drained = packet is None
            if packet is None:
                return MQTTErrorCode.MQTT_ERR_AGAIN
            with self._msgtime_mutex:
                self._last_bytes_received = time.monotonic()
            first, body = packet
            if first >> 4 == PUBLISH and first >> 1 & 3 < 2:
                publish = decode_publish(first, body, version_5=self.version_5)
            else:
                return self._handle_other(first, body)
        except PacketError as error:
            self.protocol_error = str(error)
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        except OSError:
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        if self._leaving:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        self._deliver(publish.topic, publish.payload, publish.retained)
        return self._send_puback(publish.packet_id) if publish.qos else MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_other(self, first: int, body: memoryview) -> MQTTErrorCode:
        self._in_packet = {
            "command": first,
            "have_remaining": 1,
            "remaining_count": [],
            "remaining_mult": 1,
            "remaining_length": len(body),
            "packet": bytearray(body),
            "to_process": 0,
            "pos": 0,
        }
        if first >> 4 == CONNACK and len(body) == 2 and (self.version_5 or body[1] == 1):
            # MQTT 5 always has a third byte: this broker speaks 3.1.1. And for code 1 of 3.1.1 paho calls nobody.
            self.connack_code = UNSUPPORTED_VERSION
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        try:
            return self._packet_handle()
        except (MQTTException, ValueError, LookupError, struct.error) as error:
            raise PacketError(f"a packet that cannot be read: {error}") from error
