"""Results on a topic of the house's own MQTT broker, at QoS 0. While it is away they are lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgefleet.mqtt import Connection, Outgoing
from edgefleet_agent import local_broker


def open_sink(settings: Mapping[str, Any]) -> Topic:
    """Publish to `topic`; raises InputError for a password file that cannot be read."""
    return Topic(local_broker.connect(settings["broker"], [], lambda *_: None), settings["topic"])


class Topic:
    """One topic."""

    def __init__(self, connection: Connection, topic: str) -> None:
        """`connection` becomes its own."""
        self._connection = connection
        self._topic = topic

    def write(self, line: str) -> None:
        """Publish, when connected."""
        self._connection.poll(0.0)
        self._connection.publish(Outgoing(self._topic, line.encode(), 0, retained=False))

    def turn(self) -> None:
        """Keep the connection."""
        self._connection.poll(0.0)

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()
