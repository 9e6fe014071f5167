"""The socket to the broker, plain or TLS: it connects, shakes hands, reads and writes without ever blocking.

What MQTT says is none of its business, but for where one packet ends. Only looking up the host's name blocks.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import time
from collections import deque
from contextlib import suppress
from enum import StrEnum
from itertools import islice

from edgefleet.mqtt.packets import PacketReader

RECORD_BYTES = 16 * 1024
BUFFERS_PER_WRITE = 64


class Phase(StrEnum):
    """How far the connection has come."""

    CONNECTING = "connecting"
    HANDSHAKE = "handshake"
    OPEN = "open"
    BROKEN = "broken"


class ClosedByPeerError(ConnectionError):
    """The other end closed in good order and said nothing."""


class Channel:
    """One connection. `failure` says why it is broken; no method but `next_packet` raises."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        """Begin to connect; raises OSError or UnicodeError when the name cannot be looked up."""
        self.phase = Phase.CONNECTING
        self.failure: Exception | None = None
        self.write_error: OSError | None = None
        self.was_connected = False
        self.was_open = False
        self._tried_at = time.monotonic()
        self._opened_at = 0.0
        self.corked = False
        self.waiting_bytes = 0
        self._host = host
        self._context = context
        self._addresses = deque(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        self._socket: socket.socket | None = None
        self._handshake_mask = select.POLLOUT
        self._waiting: deque[memoryview] = deque()
        self._reader = PacketReader()
        self._drained = False
        self._next_address()

    def fileno(self) -> int:
        """The socket's descriptor, or -1 once it is closed."""
        return -1 if self._socket is None else self._socket.fileno()

    def setblocking(self, flag: bool) -> None:
        """Part of what paho calls a socket; it never blocks."""

    def close(self) -> None:
        """Close the socket at once; what waits is lost."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self.phase = Phase.BROKEN

    @property
    def mask(self) -> int:
        """What to poll the descriptor for."""
        match self.phase:
            case Phase.CONNECTING:
                return select.POLLOUT
            case Phase.HANDSHAKE:
                return self._handshake_mask
            case _:
                return select.POLLIN | (select.POLLOUT if self._waiting else 0)

    @property
    def tried_for_s(self) -> float:
        """Since the address that is being tried was first tried."""
        return time.monotonic() - self._tried_at

    @property
    def open_for_s(self) -> float:
        """Since both sides can talk."""
        return time.monotonic() - self._opened_at if self.phase is Phase.OPEN else 0.0

    def try_next_address(self) -> None:
        """Give up the address that is being tried, for the host's next one if there is any."""
        if self.phase is Phase.CONNECTING:
            self._next_address()

    def advance(self) -> None:
        """Go on with whatever the descriptor was ready for, as far as it goes."""
        if (
            self.phase is Phase.CONNECTING
            and self._socket is not None
            and _is_ready(self._socket.fileno(), select.POLLOUT, 0.0)
        ):
            code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self.failure = OSError(code, os.strerror(code))
                self._next_address()
            else:
                self._connected(self._socket)
        if self.phase is Phase.HANDSHAKE:
            self._shake_hands()
        if self.phase is Phase.OPEN:
            self.flush()

    def send(self, *parts: bytes | bytearray) -> None:
        """Write now what the socket takes; the rest waits, uncopied, in `waiting_bytes`."""
        for part in parts:
            if part and self.write_error is None:
                self._waiting.append(memoryview(part))
                self.waiting_bytes += len(part)
        if self.phase is Phase.OPEN and not self.corked:
            self.flush()

    def flush(self) -> None:
        """Write what waits until the socket is full."""
        try:
            while self._waiting and self._socket is not None and self.write_error is None:
                self._sent(self._write(self._socket))
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return
        except OSError as error:
            # Why is for reading to find out: a broker that refuses us says so before it closes.
            self.write_error = error
            self._waiting.clear()
            self.waiting_bytes = 0

    def wait(self, timeout_s: float) -> None:
        """Wait until the descriptor is ready for whatever is due; write what waits."""
        self.corked = False
        if self._socket is not None:
            _is_ready(self._socket.fileno(), self.mask, timeout_s)
        if self.phase is Phase.OPEN:
            self.flush()

    def close_gently(self, timeout_s: float) -> None:
        """Say that no more comes, and close once the other end has.

        Closed with bytes unread, TCP resets the connection, and the broker loses what it has not read yet.
        """
        deadline = time.monotonic() + timeout_s
        with suppress(OSError):
            if self._socket is not None and self.phase is Phase.OPEN:
                self._socket.shutdown(socket.SHUT_WR)
                while (left_s := deadline - time.monotonic()) > 0:
                    if _is_ready(self._socket.fileno(), select.POLLIN, left_s) and not self._socket.recv(RECORD_BYTES):
                        break
        self.close()

    def next_packet(self) -> tuple[int, memoryview] | None:
        """First byte and body of a packet, good until the next call; None when the socket holds no whole one.

        Raises OSError and PacketError.
        """
        while (packet := self._reader.next()) is None:
            if self._drained or self.phase is not Phase.OPEN or self._socket is None:
                self._drained = False
                return None
            try:
                self._read(self._socket)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if self.write_error is None:
                    return None
                self._broken(self.write_error)
                raise self.write_error from None
            except OSError as error:
                self._broken(error)
                raise
        return packet

    def _read(self, connected: socket.socket) -> None:
        space = self._reader.space()
        count = connected.recv_into(space)
        if not count:
            raise ClosedByPeerError(errno.ECONNRESET, "the broker closed the connection")
        self._reader.filled(count)
        # TLS hands out one record at a time and may hold more than the descriptor shows.
        self._drained = self._context is None and count < len(space)

    def _write(self, connected: socket.socket) -> int:
        if self._context is None:
            return connected.sendmsg(list(islice(self._waiting, BUFFERS_PER_WRITE)))
        first = self._waiting[0]
        if len(first) >= RECORD_BYTES or len(self._waiting) == 1:
            return connected.send(first)
        return connected.send(self._record())

    def _record(self) -> bytes:
        """Small parts joined: each record costs a header, a checksum and a system call."""
        parts, size = [], 0
        for part in self._waiting:
            parts.append(part[: RECORD_BYTES - size])
            size += len(parts[-1])
            if size == RECORD_BYTES:
                break
        return b"".join(parts)

    def _sent(self, count: int) -> None:
        self.waiting_bytes -= count
        while count:
            first = self._waiting.popleft()
            if count < len(first):
                self._waiting.appendleft(first[count:])
                return
            count -= len(first)

    def _next_address(self) -> None:
        """Begin to connect to the host's next address; broken when there is none left."""
        while self._addresses:
            family, kind, protocol, _, address = self._addresses.popleft()
            if self._socket is not None:
                self._socket.close()
            try:
                self._socket = socket.socket(family, kind, protocol)
                self._socket.setblocking(False)
                self._tried_at = time.monotonic()
                code = self._socket.connect_ex(address)
            except OSError as error:
                # A host without IPv6 may still be told an IPv6 address.
                self.failure = error
                continue
            if code in (0, errno.EINPROGRESS):
                return
            self.failure = OSError(code, os.strerror(code))
        self._broken(self.failure or TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def _connected(self, connected: socket.socket) -> None:
        self.failure = None
        self.was_connected = True
        # Without it on both ends a request and its answer take 88 ms instead of 0.35 ms.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is None:
            self._open()
            return
        try:
            self._socket = self._context.wrap_socket(
                connected, server_hostname=self._host, do_handshake_on_connect=False
            )
            self.phase = Phase.HANDSHAKE
        except (OSError, ValueError) as error:
            self._broken(error)

    def _shake_hands(self) -> None:
        try:
            if isinstance(self._socket, ssl.SSLSocket):
                self._socket.do_handshake()
            self._open()
        except ssl.SSLWantReadError:
            self._handshake_mask = select.POLLIN
        except ssl.SSLWantWriteError:
            self._handshake_mask = select.POLLOUT
        except (OSError, ValueError) as error:
            self._broken(error)

    def _open(self) -> None:
        self.phase = Phase.OPEN
        self.was_open = True
        self._opened_at = time.monotonic()

    def _broken(self, failure: Exception) -> None:
        self.close()
        self.failure = failure


def _is_ready(descriptor: int, mask: int, timeout_s: float) -> bool:
    waiting = select.poll()
    waiting.register(descriptor, mask)
    return bool(waiting.poll(1000 * max(0.0, timeout_s)))
