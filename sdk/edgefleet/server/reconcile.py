"""Reconciliation: what devices shall run is published until they answer; retained is a cache, never the truth.

Desired states come signed from the store; nothing is decided or signed here.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

from edgefleet.protocol.record import Message
from edgefleet.protocol.topics import TopicName
from edgefleet.server.store import Store

REPUBLISH_AFTER_S = 5.0
# A desired state, or what a device says of it, may be lost on a full broker queue: ask again this often.
RECONCILE_EVERY_S = 30.0


class Reconciler:
    """Publishes desired states and commands, and says whom the hubs shall not serve."""

    def __init__(
        self,
        store: Store,
        send: Callable[[TopicName, str, Message], bool],
        deny: Callable[[dict[str, str]], None],
    ) -> None:
        self._store = store
        self._send = send
        self._deny = deny
        self._denied: dict[str, str] = {}
        self._published: dict[str, tuple[int, float]] = {}
        self._version = -1
        self._at = 0.0

    def begin_anew(self) -> None:
        """The broker came back, and may have lost what was retained: publish everything again."""
        self._published.clear()
        self._version = -1
        try:
            self._store.set_all_offline()
        except sqlite3.Error:
            # The next turn fails the same way, and says so.
            return

    def turn(self, now: float) -> None:
        """Publish new desired states and commands at once, and now and then those that nobody has answered.

        `now` is monotonic. Raises sqlite3.Error; the next turn tries again.
        """
        version = self._store.changed()
        if version != self._version:
            self.refuse()
            for device, envelope in self._store.take_commands(time.time()):
                self._send(TopicName.COMMANDS, device, envelope)
            reported = {row.device: row.generation for row in self._store.devices()}
            # What did not fit into the connection goes with the next turn.
            if self._publish_all(reported):
                self._version = version
        if now - self._at > RECONCILE_EVERY_S:
            self._at = now
            self.refuse()
            for device in self._store.open_devices():
                self.device(device, 0)

    def _publish_all(self, reported: dict[str, int]) -> bool:
        """False when the connection has room for no more."""
        return all(self.device(device, reported.get(device, 0)) for device in self._store.desired_generations())

    def device(self, device: str, reported_generation: int) -> bool:
        """Publish what a device shall run when it reports something older; not twice within 5 s.

        False when it has to be tried again, because too much waits for the broker.
        """
        row = self._store.desired(device)
        if row is None or reported_generation >= row.generation or device in self._denied:
            return True
        generation, at = self._published.get(device, (0, 0.0))
        now = time.monotonic()
        if generation >= row.generation and now - at <= REPUBLISH_AFTER_S:
            return True
        if not self._send(TopicName.DESIRED, device, row.signed):
            return False
        self._published[device] = (row.generation, now)
        return True

    def refuse(self) -> None:
        """Serve no more whom the store denies, from now on; raises sqlite3.Error."""
        self._denied = self._store.denied()
        self._deny(self._denied)
