"""A TCP proxy before a broker that flips one bit in the payload of chosen large PUBLISH packets to the client.

It parses MQTT 3.1.1's fixed header (section 2.2) to hit payloads only.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

LARGE_BYTES = 30_000
PUBLISH = 3


class FlippingProxy:
    """Listens on a free loopback port and forwards to `broker_port`."""

    def __init__(self, broker_port: int, flip_publishes: set[int]) -> None:
        """`flip_publishes` numbers the large PUBLISH packets (from 1, over all connections) to damage."""
        self._broker_port = broker_port
        self._flip = flip_publishes
        self._seen = 0
        self.flipped = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listener]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                broker = socket.create_connection(("127.0.0.1", self._broker_port))
                self._sockets += [client, broker]
                threading.Thread(target=self._forward, args=(client, broker), daemon=True).start()
                threading.Thread(target=self._forward_packets, args=(broker, client), daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)

    def _forward_packets(self, source: socket.socket, target: socket.socket) -> None:
        stream = source.makefile("rb")
        with suppress(OSError, ValueError):
            while head := stream.read(1):
                length, encoded = _read_length(stream)
                body = bytearray(stream.read(length))
                if head[0] >> 4 == PUBLISH and length > LARGE_BYTES:
                    self._seen += 1
                    if self._seen in self._flip:
                        body[length // 2] ^= 0x10
                        self.flipped += 1
                target.sendall(head + encoded + body)


def _read_length(stream: object) -> tuple[int, bytes]:
    """Remaining length as a variable byte integer: (value, its bytes)."""
    value, encoded = 0, b""
    while True:
        byte = stream.read(1)  # type: ignore[attr-defined]
        value |= (byte[0] & 0x7F) << (7 * len(encoded))
        encoded += byte
        if not byte[0] & 0x80:
            return value, encoded
