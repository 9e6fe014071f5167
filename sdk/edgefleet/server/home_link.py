"""The server's line to Home Assistant's broker: what has changed of the fleet is published there, and nothing is read.

It is another broker than the fleet's, whose access list knows nobody else. What is said is `home_assistant`'s business.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from edgefleet.errors import InputError
from edgefleet.mqtt import BrokerAddress, Connection, Identity, Outgoing
from edgefleet.server import home_assistant
from edgefleet.server.home_assistant import PREFIX, Seen
from edgefleet.server.store import DeviceRow, Store

LOOK_EVERY_S = 10.0

log = logging.getLogger("edgefleet.server")


@dataclass(frozen=True, slots=True)
class HomeSettings:
    """Where Home Assistant's broker is, and who we are there."""

    address: BrokerAddress
    user: str = ""
    password: str | None = None
    prefix: str = PREFIX


def read_login(path: Path) -> tuple[str, str]:
    """(user, password) of a file of one line, USER:PASSWORD; raises InputError, without a word of what is in it."""
    doing = f"reading the login for Home Assistant's broker, {path}"
    try:
        user, colon, password = path.read_text(encoding="utf-8").strip().partition(":")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(doing, getattr(error, "strerror", None) or "it is not text", "name a readable file") from error
    if not colon or not user or "\n" in password:
        raise InputError(doing, "it is not one line of USER:PASSWORD", "write it so")
    return user, password


class HomeLink:
    """Publishes a fleet to one Home Assistant."""

    def __init__(self, settings: HomeSettings, fleet: str, store: Store) -> None:
        """Nothing is connected before `turn`."""
        self._fleet = fleet
        self._store = store
        self._prefix = settings.prefix
        self._published: dict[str, bytes] = {}
        self._devices: set[str] = set()
        self._looked_at = float("-inf")
        self.connection = Connection(
            settings.address,
            Identity(f"edgefleet-{fleet}", settings.user, settings.password),
            [],
            on_message=lambda _topic, _payload, _retained: None,
            on_connected=self._begin_anew,
            will=lambda: home_assistant.server_says(fleet, online=False),
        )

    def turn(self, now: float) -> None:
        """Keep the line, and say every few seconds what is new; `now` is monotonic. Raises sqlite3.Error."""
        self.connection.poll(0.0)
        if not self.connection.connected or now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        rows = {row.device: row for row in self._store.devices()}
        for device in self._devices - set(rows):
            for message in home_assistant.forgotten(self._fleet, device, self._prefix):
                self._say(message)
        self._devices = set(rows)
        for row in rows.values():
            for message in home_assistant.messages(self._fleet, self._seen(row), self._prefix):
                self._say(message)

    def close(self) -> None:
        """Leave, and say so."""
        self.connection.publish(home_assistant.server_says(self._fleet, online=False))
        self.connection.close()

    def _begin_anew(self) -> None:
        """Another connection: that broker may have lost what it retained."""
        self._published.clear()
        self._looked_at = float("-inf")
        self._say(home_assistant.server_says(self._fleet, online=True))

    def _say(self, message: Outgoing) -> None:
        if self._published.get(message.topic) != message.payload and self.connection.publish(message):
            self._published[message.topic] = message.payload

    def _seen(self, row: DeviceRow) -> Seen:
        telemetry = None if row.digest is None else self._store.telemetry(row.device, row.digest)
        installed = None if row.index_digest is None else self._store.package_of(row.index_digest)
        return Seen(row, telemetry, installed, self._wanted(row.device))

    def _wanted(self, device: str) -> tuple[str, str] | None:
        desired = self._store.desired(device)
        version = None if desired is None else desired.desired.wanted
        return None if version is None else (version.package, version.version)
