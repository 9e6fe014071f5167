"""What the server and its hub tell each other: JSON lines over the hub's standard input and output.

A hub that runs alone has no link; it then knows of no device that is denied, and renews no certificate.
"""

from __future__ import annotations

import os
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgefleet.protocol.messages import Status
from edgefleet.protocol.record import Name

READ_BYTES = 64 * 1024
MAX_UNSENT_BYTES = 1024 * 1024


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    @classmethod
    def read(cls, text: bytes) -> Self | None:
        """A line of the other side; None for one that was cut off by its end."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None


class Renewal(_Line):
    """A device's signing request (PEM)."""

    device: Name
    req_id: str
    body: bytes


class Renewed(_Line):
    """What the device is answered: its chain (PEM), or why not."""

    device: Name
    req_id: str
    status: Status
    body: bytes


class FromHub(_Line):
    """The hub reports what it sent, and hands on what it has no key for."""

    sent: dict[Name, int] = Field(default_factory=dict)
    """Bytes of blocks handed to the broker since the last line, by device."""
    renewals: tuple[Renewal, ...] = ()


class ToHub(_Line):
    """The server tells whom not to serve, who has gone, and answers renewals."""

    denied: dict[Name, str] | None = None
    """Device → why; None: as before."""
    gone: tuple[Name, ...] = ()
    renewed: tuple[Renewed, ...] = ()


class Pipe:
    """Lines over two file descriptors that never block; what the other side does not read in time is dropped."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd = read_fd
        self.closed = False
        self._write_fd = write_fd
        self._incoming = b""
        self._unsent = bytearray()
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)

    def lines(self) -> list[bytes]:
        """Whole lines that have come; `closed` is set when the other side has gone."""
        while not self.closed:
            try:
                chunk = os.read(self.read_fd, READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            self.closed = not chunk
            self._incoming += chunk
        *whole, self._incoming = self._incoming.split(b"\n")
        return whole

    def send(self, line: BaseModel) -> None:
        """Write a line, or keep it for `flush`."""
        if len(self._unsent) < MAX_UNSENT_BYTES:
            self._unsent += line.model_dump_json().encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Write what was left over."""
        while self._unsent and not self.closed:
            try:
                written = os.write(self._write_fd, self._unsent)
            except BlockingIOError:
                return
            except OSError:
                self.closed = True
                return
            del self._unsent[:written]
