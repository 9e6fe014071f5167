"""MQTT packets cut out of a stream of bytes, and the one packet that carries the load: PUBLISH.

No socket and no state of a session in here. Source: MQTT 3.1.1 and 5.0, sections 2.1 and 3.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

PUBLISH = 3
CONNACK = 2
FIRST_BUFFER_BYTES = 4096
# A receiver of 60 KiB pieces gets several of them per read.
MOST_BUFFER_BYTES = 256 * 1024
# No message of ours comes near it; without it a sender could make the receiver hold 256 MB.
LARGEST_PACKET_BYTES = 1024 * 1024
_LENGTH_BYTES = 4


class PacketError(Exception):
    """What came in is no MQTT packet that may be read."""


@dataclass(frozen=True, slots=True)
class Publish:
    """A PUBLISH that came in; `packet_id` is 0 at QoS 0."""

    topic: str
    payload: bytes
    qos: int
    retained: bool
    packet_id: int


class PacketReader:
    """A buffer that is read into, and the packets in it."""

    def __init__(self, largest_bytes: int = LARGEST_PACKET_BYTES) -> None:
        """Packets of more than `largest_bytes` raise PacketError."""
        self._largest_bytes = largest_bytes
        self._view = memoryview(bytearray(FIRST_BUFFER_BYTES))
        self._start = 0
        self._end = 0
        self._wanted_bytes = 0

    def space(self) -> memoryview:
        """Where the next bytes go; never empty. Packets that were handed out before lose their content."""
        held = self._end - self._start
        size = len(self._view)
        if self._end == size and size < MOST_BUFFER_BYTES:
            # The last read filled it: there is more to come than fits.
            size = min(2 * size, MOST_BUFFER_BYTES)
        size = max(size, self._wanted_bytes)
        target = self._view if size == len(self._view) else memoryview(bytearray(size))
        if self._start or target is not self._view:
            target[:held] = self._view[self._start : self._end]
        self._view, self._start, self._end = target, 0, held
        return target[held:]

    def filled(self, count: int) -> None:
        """`count` bytes were read into the space."""
        self._end += count

    def next(self) -> tuple[int, memoryview] | None:
        """First byte and body of the next whole packet, or None; raises PacketError. Use it before `space`."""
        view, start = self._view, self._start
        length, position = 0, start + 1
        for shift in range(0, 7 * _LENGTH_BYTES, 7):
            if position >= self._end:
                return None
            byte = view[position]
            position += 1
            length |= (byte & 127) << shift
            if byte < 128:
                break
        else:
            raise PacketError("a packet's length has more than four bytes")
        if length > self._largest_bytes:
            raise PacketError(f"a packet of {length} bytes is larger than {self._largest_bytes}")
        end = position + length
        if end > self._end:
            self._wanted_bytes = end - start
            return None
        self._start = end
        self._wanted_bytes = 0
        return view[start], view[position:end]


def encode_length(length: int) -> bytes:
    """`length` as a variable byte integer (MQTT 5.0, section 1.5.5)."""
    encoded = bytearray()
    while True:
        length, low = divmod(length, 128)
        encoded.append(low | 128 if length else low)
        if not length:
            return bytes(encoded)


def publish_header(topic: str, payload_bytes: int, *, retained: bool, version_5: bool) -> bytes:
    """Everything of a QoS 0 PUBLISH that stands before its payload."""
    name = topic.encode()
    properties = b"\0" if version_5 else b""
    length = 2 + len(name) + len(properties) + payload_bytes
    return b"".join(
        (bytes([PUBLISH << 4 | retained]), encode_length(length), struct.pack("!H", len(name)), name, properties)
    )


def decode_publish(first: int, body: memoryview, *, version_5: bool) -> Publish:
    """Take a PUBLISH apart, copying its payload once; raises PacketError."""
    try:
        topic_end = 2 + (body[0] << 8 | body[1])
        topic = str(body[2:topic_end], "utf-8")
        qos, position, packet_id = first >> 1 & 3, topic_end, 0
        if qos:
            packet_id = body[position] << 8 | body[position + 1]
            position += 2
        if version_5:
            position = _after_properties(body, position)
    except (IndexError, UnicodeDecodeError) as error:
        raise PacketError(f"a PUBLISH that cannot be read: {error}") from error
    if topic_end > len(body) or position > len(body) or not topic or (qos and not packet_id):
        raise PacketError("a PUBLISH that is shorter than it says, or without a topic or packet id")
    return Publish(topic, bytes(body[position:]), qos, bool(first & 1), packet_id)


def _after_properties(body: memoryview, position: int) -> int:
    length = 0
    for shift in range(0, 7 * _LENGTH_BYTES, 7):
        byte = body[position]
        position += 1
        length |= (byte & 127) << shift
        if byte < 128:
            return position + length
    raise PacketError("a PUBLISH whose properties have a length of more than four bytes")
