"""Packets out of a stream, however it is cut; and what is no packet."""

from __future__ import annotations

from contextlib import suppress

import paho.mqtt.client as paho
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from edgefleet.mqtt.client import HOOKS
from edgefleet.mqtt.packets import (
    FIRST_BUFFER_BYTES,
    PacketError,
    PacketReader,
    Publish,
    decode_publish,
    encode_length,
    publish_header,
)

PACKETS = st.lists(
    st.tuples(st.integers(0, 255), st.one_of(st.binary(max_size=200), st.integers(0, 20_000).map(bytes))), max_size=8
)


def feed(reader: PacketReader, data: bytes, step: int) -> list[tuple[int, bytes]]:
    found, rest = [], memoryview(data)
    while rest:
        space = reader.space()
        count = min(len(space), step, len(rest))
        space[:count] = rest[:count]
        reader.filled(count)
        rest = rest[count:]
        while (packet := reader.next()) is not None:
            found.append((packet[0], bytes(packet[1])))
    return found


@given(PACKETS, st.integers(1, 30_000))
def test_packets_come_out_as_they_went_in(packets: list[tuple[int, bytes]], step: int) -> None:
    stream = b"".join(bytes([first]) + encode_length(len(body)) + body for first, body in packets)
    assert feed(PacketReader(), stream, step) == packets


@given(st.binary(max_size=300), st.integers(1, 50))
def test_any_bytes_are_packets_or_an_error(data: bytes, step: int) -> None:
    with suppress(PacketError):
        for first, body in feed(PacketReader(1000), data, step):
            if first >> 4 == 3:
                assert len(decode_publish(first, memoryview(body), version_5=bool(first & 8)).payload) < len(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x30\xff\xff\xff\xff\x01", "more than four bytes"),
        (b"\x30" + encode_length(1001), "1001 bytes is larger than 1000"),
        (b"\x30\xff\xff\xff\x7f", "268435455 bytes is larger"),
    ],
)
def test_lengths_that_are_refused_before_anything_is_kept(data: bytes, reason: str) -> None:
    reader = PacketReader(1000)
    with pytest.raises(PacketError, match=reason):
        feed(reader, data, 100)
    assert len(reader.space()) <= FIRST_BUFFER_BYTES


@pytest.mark.parametrize(
    ("first", "body", "version_5"),
    [
        (0x30, b"", False),
        (0x30, b"\0", False),
        (0x30, b"\0\0abc", False),
        (0x30, b"\0\x05abc", False),
        (0x32, b"\0\x01a", False),
        (0x32, b"\0\x01a\0\0payload", False),
        (0x30, b"\0\x01\xff", False),
        (0x30, b"\0\x01a", True),
        (0x30, b"\0\x01a\x05x", True),
        (0x30, b"\0\x01a\x80\x80\x80\x80\x01", True),
    ],
)
def test_a_publish_that_is_none(first: int, body: bytes, version_5: bool) -> None:
    with pytest.raises(PacketError):
        decode_publish(first, memoryview(body), version_5=version_5)


@given(st.text(min_size=1, max_size=60), st.binary(max_size=300), st.booleans(), st.booleans())
def test_a_publish_is_read_as_it_was_written(topic: str, payload: bytes, retained: bool, version_5: bool) -> None:
    stream = publish_header(topic, len(payload), retained=retained, version_5=version_5) + payload
    [(first, body)] = feed(PacketReader(), stream, 7)
    assert decode_publish(first, memoryview(body), version_5=version_5) == Publish(topic, payload, 0, retained, 0)


@pytest.mark.parametrize("version_5", [False, True])
@pytest.mark.parametrize("size", [0, 1, 100, 16_384, 61_440])
def test_the_header_is_the_one_that_paho_writes(size: int, version_5: bool) -> None:
    written: list[bytes] = []

    class Watched(paho.Client):
        def _packet_queue(self, *values: object, **_named: object) -> MQTTErrorCode:
            written.append(bytes(values[1]))  # type: ignore[call-overload]
            return MQTTErrorCode.MQTT_ERR_SUCCESS

    protocol = MQTTProtocolVersion.MQTTv5 if version_5 else MQTTProtocolVersion.MQTTv311
    client = Watched(CallbackAPIVersion.VERSION2, "x", protocol=protocol)
    client._sock = object()  # type: ignore[assignment]
    client.publish("edgefleet/1/home/d/pi/b/0123456789ab/7", bytes(size), 0, retain=True)
    client._sock = None
    header = publish_header("edgefleet/1/home/d/pi/b/0123456789ab/7", size, retained=True, version_5=version_5)
    assert written == [header + bytes(size)]


@pytest.mark.parametrize("hook", HOOKS)
def test_paho_still_has_what_we_hook_into(hook: str) -> None:
    """They are no public interface: another version of paho may have other names, and would go round our socket."""
    assert callable(getattr(paho.Client, hook))
