"""Who connects where, and a message on its way out.

Nothing here opens a socket.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgefleet.errors import InputError


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
    password: str | None = None
    """For a broker that is not the fleet's: there certificates say who one is."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish."""

    topic: str
    payload: bytes
    qos: int
    retained: bool
